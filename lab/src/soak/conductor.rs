//! Builds the network, lets the players play, lets things fail, looks at the daemon, and says what came of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::faults::{self, happen};
use super::samples::{Process as Measured, Sample};
use super::tally::{Counts, Line, Trouble};
use super::verdict::{self, Window};
use crate::netns::{Host, LAN1, LAN1_V6, LAN2, LAN2_V6, Layout, Network, Process, text};
use crate::provider::QuickProvider;
use crate::subject::{self, Subject, network_process};
use crate::wait::{eventually, poll};

/// What to play.
pub struct Plan {
    /// The program of the players, `lab-soak` itself.
    pub player: PathBuf,
    /// `lab-pcp-server`.
    pub pcp_server: PathBuf,
    /// The daemon.
    pub subject: PathBuf,
    /// How long they play.
    pub length: Duration,
    /// Whether it counts how good requests were answered: not on a machine that may have better to do.
    pub judges_answers: bool,
}

/// No lifetime of the provider's is longer, in seconds: renewals all the time.
const LIFETIME: u32 = 20;
/// Between two questions at the control socket.
const QUESTION: Duration = Duration::from_secs(1);
/// Between two runs of the command line's `status`.
const COMMAND: Duration = Duration::from_secs(15);
/// Until players that are told to finish have let go of everything.
const FINISHED_WITHIN: Duration = Duration::from_secs(180);
/// Beyond the longest lease: until all is gone that nobody let go of.
const GONE_WITHIN: Duration = Duration::from_secs(150);

const HOSTS: [Host; 2] = [Host::Lan1, Host::Lan2];

/// One player's process.
struct Player {
    child: Child,
    say: ChildStdin,
}

impl Player {
    fn start(
        plan: &Plan,
        network: &Network,
        number: usize,
        lease: u32,
        to: &mpsc::Sender<(usize, Line)>,
    ) -> Self {
        let addresses = [(LAN1, LAN1_V6), (LAN2, LAN2_V6)][number];
        let mut child = network
            .command(HOSTS[number], &plan.player)
            .args(["play", &addresses.0.to_string(), &addresses.1.to_string(), &lease.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("ip netns exec can be run");
        let out = BufReader::new(child.stdout.take().expect("piped above"));
        let to = to.clone();
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                // Nobody listens to who is late.
                match Line::parse(&line).map(|line| to.send((number, line))) {
                    Some(_) => {}
                    None => eprintln!("player {number}: {line}"),
                }
            }
        });
        let say = child.stdin.take().expect("piped above");
        Self { child, say }
    }

    fn tell(&mut self, word: &str) {
        writeln!(self.say, "{word}").expect("the player runs");
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the conductor knows so far.
struct Score<'a> {
    plan: &'a Plan,
    network: &'a Network,
    /// Its processes: privileged, network.
    processes: [u32; 2],
    began: Instant,
    lines: Receiver<(usize, Line)>,
    players: Vec<Player>,
    counts: Vec<Counts>,
    troubles: Vec<(usize, Trouble)>,
    windows: Vec<Window>,
    questions: BTreeMap<String, u64>,
    unanswered_questions: u64,
    faults: BTreeMap<String, u64>,
    samples: Vec<(String, Sample)>,
    finished: bool,
}

/// Plays it all; whether it was good. The report goes to standard output.
///
/// # Panics
///
/// If there is no laboratory here, or the daemon does not come up in it.
#[must_use]
pub fn run(plan: &Plan) -> bool {
    let network = Network::new(Layout::default());
    network.add_ipv6();
    let lease = u32::try_from((plan.length.as_secs() / 2).clamp(10, 300)).expect("at most 300");
    let pcp_server = plan.pcp_server.display().to_string();
    let mut provider = QuickProvider::granting(&network, &pcp_server, LIFETIME);
    let more =
        "answer_within = 3.5\nrecovery_wait = 2.0\nservice_wait = 1.0\nanycast = false\ndhcp = \"off\"\n";
    let mut daemon = Subject::Portferry(plan.subject.clone()).start(&network, "nftables", more);
    let (to, lines) = mpsc::channel();
    let players = (0..2).map(|number| Player::start(plan, &network, number, lease, &to)).collect();
    let mut score = Score {
        plan,
        network: &network,
        processes: [0; 2],
        began: Instant::now(),
        lines,
        players,
        counts: vec![Counts::new(); 2],
        troubles: Vec::new(),
        windows: Vec::new(),
        questions: BTreeMap::new(),
        unanswered_questions: 0,
        faults: BTreeMap::new(),
        samples: Vec::new(),
        finished: false,
    };
    score.await_both("the gateway is found", Duration::from_secs(60), |line| *line == Line::Ready);
    // Discovery has used connections; they close when they have been idle.
    let privileged = daemon.id();
    let of_network =
        eventually("the network process", Duration::from_secs(5), || network_process(privileged).ok());
    score.processes = [privileged, of_network];
    let quiet = Duration::from_secs(7);
    thread::sleep(quiet);
    println!(
        "processes: privileged {privileged}, network {of_network}; leases up to {lease} s, lifetimes up to {LIFETIME} s"
    );
    println!("{}", Sample::HEAD);
    score.sample("start");
    score.play(&mut daemon, &mut provider);
    score.finish(Duration::from_secs(lease.into()) + GONE_WITHIN);
    let mut failures = score.failures();
    match daemon.ended() {
        Some(status) => failures.push(format!("the daemon has ended: {status}")),
        None => failures.extend(ends_badly(&network, &mut daemon)),
    }
    println!("\n{}", score.report());
    let verdict = if failures.is_empty() { "PASS" } else { "FAIL" };
    println!("{verdict}\n{}", failures.iter().map(|failure| format!("* {failure}\n")).collect::<String>());
    failures.is_empty()
}

impl Score<'_> {
    fn play(&mut self, daemon: &mut Process, provider: &mut QuickProvider<'_>) {
        self.players.iter_mut().for_each(|player| player.tell("play"));
        self.began = Instant::now();
        let length = self.plan.length;
        let every = (length / 60).clamp(Duration::from_secs(2), Duration::from_secs(10));
        let between_faults = (length / 10).clamp(Duration::from_secs(3), Duration::from_secs(45));
        // The last faults have passed when the play ends.
        let calm = length.saturating_sub(Duration::from_secs(if length.as_secs() > 120 { 60 } else { 4 }));
        let (mut next_sample, mut next_fault, mut turn) = (every, between_faults, 0);
        let (mut next_question, mut next_command) = (QUESTION, COMMAND.min(length / 2));
        // Each fault happens once at least.
        let all = faults::ALL.len();
        while (self.began.elapsed() < length || turn < all) && daemon.ended().is_none() {
            self.listen(Duration::from_millis(100));
            let elapsed = self.began.elapsed();
            if elapsed >= next_sample {
                next_sample += every;
                self.sample("");
            }
            if elapsed >= next_question {
                next_question += QUESTION;
                self.question(
                    ["mappings", "status", "pinholes"][usize::try_from(elapsed.as_secs() % 3).unwrap_or(0)],
                );
            }
            if elapsed >= next_command {
                next_command += COMMAND;
                self.command();
            }
            if elapsed >= next_fault && (elapsed < calm || turn < all) {
                next_fault += between_faults;
                let fault = faults::ALL[turn % all];
                println!("at {} s: {fault:?}", elapsed.as_secs());
                *self.faults.entry(format!("{fault:?}")).or_default() += 1;
                let window = happen(fault, self.network, daemon, provider, turn / all);
                self.windows.extend(window);
                turn += 1;
            }
        }
    }

    /// Everything is let go of, and looked at once more.
    fn finish(&mut self, within: Duration) {
        self.sample("end");
        self.players.iter_mut().for_each(|player| player.tell("finish"));
        self.await_both("the players have finished", FINISHED_WITHIN, |line| *line == Line::Done);
        self.finished = true;
        let start = self.samples[0].1.clone();
        let _ = poll(within, || {
            thread::sleep(Duration::from_secs(1));
            verdict::leftovers(&start, &self.measure()?).is_empty().then_some(())
        });
        self.sample("all gone");
    }

    /// Takes in what players say, for so long.
    fn listen(&mut self, wait: Duration) {
        let until = Instant::now() + wait;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            match self.lines.recv_timeout(left) {
                Ok((player, line)) => self.note(player, line),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => thread::sleep(left),
            }
        }
    }

    fn note(&mut self, player: usize, line: Line) {
        match line {
            Line::Count(kind, answer, number) => {
                self.counts[player].insert((kind, answer), number);
            }
            Line::Trouble(trouble) => {
                let took = trouble.during.1.saturating_sub(trouble.during.0).as_millis();
                let what = if trouble.silent { "no answer" } else { "wrong" };
                println!(
                    "at {} s: {}: {what} after {took} ms: {}: {}",
                    self.began.elapsed().as_secs(),
                    HOSTS[player],
                    trouble.kind,
                    trouble.why
                );
                self.troubles.push((player, trouble));
            }
            Line::Ready | Line::Reported | Line::Done => {}
        }
    }

    #[track_caller]
    fn await_both(&mut self, what: &str, within: Duration, is_it: impl Fn(&Line) -> bool) {
        let until = Instant::now() + within;
        let mut seen = [false; 2];
        while seen != [true; 2] {
            let left = until.saturating_duration_since(Instant::now());
            let (player, line) =
                self.lines.recv_timeout(left).unwrap_or_else(|error| panic!("{what}: {error}"));
            seen[player] |= is_it(&line);
            self.note(player, line);
        }
    }

    fn measure(&self) -> Option<Sample> {
        let list = |question: &str| -> Option<usize> {
            let answer: Value = serde_json::from_str(&subject::ask(self.network, question)?).ok()?;
            Some(answer.as_array()?.len())
        };
        let counts = self.counts.iter().flat_map(Counts::iter);
        Some(Sample {
            at: self.began.elapsed(),
            privileged: Measured::of(self.processes[0]).ok()?,
            network: Measured::of(self.processes[1]).ok()?,
            mappings: list("mappings")?,
            pinholes: list("pinholes")?,
            rules: rules(self.network),
            requests: counts.filter(|((kind, _), _)| is_request(kind)).map(|(_, number)| number).sum(),
        })
    }

    fn sample(&mut self, name: &str) {
        // Before the first they have nothing to say, and behind the last they are gone.
        if !self.samples.is_empty() && !self.finished {
            self.players.iter_mut().for_each(|player| player.tell("report"));
            self.await_both("reports", Duration::from_secs(20), |line| *line == Line::Reported);
        }
        match self.measure() {
            Some(sample) => {
                let name =
                    if name.is_empty() { format!("{} s", sample.at.as_secs()) } else { name.to_owned() };
                println!("| {name} | {sample}");
                self.samples.push((name, sample));
            }
            None => self.unanswered("a sample"),
        }
    }

    fn question(&mut self, what: &str) {
        let answer = subject::ask(self.network, what);
        let good = answer.is_some_and(|answer| serde_json::from_str::<Value>(&answer).is_ok());
        if good {
            *self.questions.entry(format!("control socket: {what}")).or_default() += 1;
        } else {
            self.unanswered(what);
        }
    }

    /// `portferry status` and `portferry mappings`, as an administrator asks.
    fn command(&mut self) {
        let socket = self.network.directory().join("control.sock").display().to_string();
        for what in ["status", "mappings"] {
            let mut command = self.network.command(Host::Router, &self.plan.subject);
            let output = command.args([what, "--socket", &socket]).output().expect("it runs");
            if output.status.success() {
                *self.questions.entry(format!("portferry {what}")).or_default() += 1;
            } else {
                self.unanswered(&format!("portferry {what}: {}", text(&output)));
            }
        }
    }

    fn unanswered(&mut self, what: &str) {
        println!("at {} s: no answer: {what}", self.began.elapsed().as_secs());
        self.unanswered_questions += 1;
    }

    fn unexcused(&self) -> Vec<&(usize, Trouble)> {
        let excused =
            |player, trouble: &Trouble| self.windows.iter().any(|window| window.excuses(player, trouble));
        self.troubles.iter().filter(|(player, trouble)| !excused(*player, trouble)).collect()
    }

    fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        if network_process(self.processes[0]).ok() != Some(self.processes[1]) {
            failures.push("the network process is not the one that it was".to_owned());
        }
        let samples: Vec<Sample> = self.samples.iter().map(|(_, sample)| sample.clone()).collect();
        failures.extend(verdict::memory(&samples, self.plan.length));
        match (samples.first(), self.samples.last()) {
            (Some(start), Some((name, end))) if name == "all gone" => {
                failures.extend(verdict::leftovers(start, end));
            }
            _ => failures.push("the daemon could not be measured when all was let go".to_owned()),
        }
        if !self.plan.judges_answers {
            return failures;
        }
        if self.unanswered_questions > 0 {
            failures.push(format!(
                "{} questions of the administrator's went unanswered",
                self.unanswered_questions
            ));
        }
        failures.extend(self.unexcused().iter().take(20).map(|(player, trouble)| {
            let what = if trouble.silent { "no answer" } else { "a wrong answer" };
            format!("{}: {what}: {}: {}", HOSTS[*player], trouble.kind, trouble.why)
        }));
        failures
    }

    fn report(&self) -> String {
        let mut report = format!("{}\n", Sample::HEAD);
        let length = self.plan.length;
        let wanted = [
            ("1 min", Duration::from_secs(60)),
            ("a quarter", length / 4),
            ("half", length / 2),
            ("three quarters", length * 3 / 4),
        ];
        let mut row = |name: &str, sample: &Sample| {
            let _ = writeln!(report, "| {name} ({} s) | {sample}", sample.at.as_secs());
        };
        if let Some((name, first)) = self.samples.first() {
            row(name, &Sample { at: Duration::ZERO, ..first.clone() });
        }
        for (name, at) in wanted {
            let found = self.samples.iter().skip(1).find(|(_, sample)| sample.at >= at && at < length);
            if let Some((_, sample)) = found {
                row(name, sample);
            }
        }
        for (name, sample) in self.samples.iter().filter(|(name, _)| name == "end" || name == "all gone") {
            row(name, sample);
        }
        let _ = writeln!(report, "\n| request | answers |\n|---|---|");
        let mut kinds: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
        for ((kind, answer), number) in self.counts.iter().flat_map(Counts::iter) {
            *kinds.entry(kind).or_default().entry(answer).or_default() += number;
        }
        for (kind, answers) in kinds {
            let answers: Vec<_> =
                answers.iter().map(|(answer, number)| format!("{answer}: {number}")).collect();
            let _ = writeln!(report, "| {kind} | {} |", answers.join(", "));
        }
        for (what, number) in &self.questions {
            let _ = writeln!(report, "| {what} | answered: {number} |");
        }
        let requests = self.samples.last().map_or(0, |(_, sample)| sample.requests);
        let _ = writeln!(
            report,
            "\nrequests: {requests}, {:.1} a second\nfaults: {:?}\ntroubles: {}, of these {} that no fault excuses",
            // What players do to clean up is among them, which is little beside an hour.
            u32::try_from(requests).map_or(0.0, f64::from) / length.as_secs_f64(),
            self.faults,
            self.troubles.len(),
            self.unexcused().len(),
        );
        report
    }
}

/// Ends the daemon, with nothing left of it in the kernel; what of that it did not do.
fn ends_badly(network: &Network, daemon: &mut Process) -> Option<String> {
    let status = daemon.terminate(Duration::from_secs(30));
    let tables = network.run(Host::Router, "nft", ["list", "tables"]);
    let good = status.success() && !tables.contains("portferry");
    (!good).then(|| format!("at its end: {status}, and the kernel has {tables:?}"))
}

/// Rather than a word on something else.
fn is_request(kind: &str) -> bool {
    !matches!(kind, "UPnP kept connections" | "GENA first event" | "bad datagrams")
}

/// Elements of the router's NAT, and pinholes in its firewall.
fn rules(network: &Network) -> usize {
    let list = |arguments: &[&str]| {
        let output =
            network.command(Host::Router, "nft").args(arguments).output().expect("ip netns exec can be run");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let elements = network.elements(Host::Router, "portferry", "ports").map_or(0, |all| all.len());
    // The comments of rules are nobody's but theirs.
    let pinholes = list(&["-n", "list", "table", "ip6", "portferry"]);
    elements + pinholes.matches("2001:db8:77::").count()
}

/// A program beside that one.
///
/// # Panics
///
/// If it is not there.
#[must_use]
pub fn beside(own: &Path, name: &str) -> PathBuf {
    let program = own.with_file_name(name);
    assert!(program.is_file(), "{} does not exist", program.display());
    program
}
