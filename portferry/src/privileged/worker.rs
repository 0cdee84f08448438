//! The privileged process: it starts the network process, does what that may ask for, and tells it what signals mean.
//!
//! It must never read what came from the network, and never decide what a mapping is to be.

use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until};

use super::channel::{self, Channel};
use super::check::{Held, Known, Refused};
use super::message::{Answer, Asked, MAX_REQUEST, NatChange, Request, Said, is_host_name};
use super::tables::Tables;
use super::user::{self, User};
use super::{NETWORK_PROCESS, RESOLVE, sandbox};
use crate::config::{self, Config, Integrate, is_interface_name};
use crate::control;
use crate::event_loop::Signal;
use crate::exit::Failure;
use crate::firewall::Keeper;
use crate::hooks;
use crate::netlink::Netlink;
use crate::nft::{Nat1Rule, Nft, port_is_free};

/// What both processes are given of the environment, beside what hooks get.
const ENVIRONMENT: [&str; 5] = ["JOURNAL_STREAM", "RUST_BACKTRACE", "TZ", "LANG", "LC_ALL"];
/// Host names that are looked up at once, each by a process of its own.
const LOOKUPS: usize = 4;
/// Those that are looked up or wait for it: as many as the gateway asks for at once.
const MOST_LOOKUPS: usize = 64;
/// How long one may take; the gateway waits a little longer.
const LOOKUP_TIME: Duration = Duration::from_secs(5);
/// How long the network process may take for its end, after it has said that all is taken back.
const END: Duration = Duration::from_secs(5);
/// How long for a stop in all: it waits for the provider (75 s) and for the program of `[hooks]` (10 s).
const STOP: Duration = Duration::from_secs(87);
/// How long it may leave its messages unread.
const UNREAD: Duration = Duration::from_secs(5);
/// What is read of the addresses of a name.
const LOOKED_UP: u64 = 4096;
/// Octets of what is said of a configuration that is wrong.
const MAX_REASON: usize = 4096;
/// When the kernel's news of interfaces fail, they are heard again after this.
const RETRY: Duration = Duration::from_secs(5);
/// What was seen so shortly ago need not be looked at again: news are told no sooner after a change.
const FRESH: Duration = Duration::from_millis(40);
/// A refusal is held against newer facts no more often than this.
const STALE: Duration = Duration::from_secs(1);

/// The privileged half of `portferry run`.
///
/// # Errors
/// The network process could not be started, or ends with a failure: its code, and the line where it has not said one.
pub(crate) async fn supervise(config: Config, text: String, path: &Path) -> Result<(), Failure> {
    let system = |what: &str, error: io::Error| Failure::system(format!("{what}: {error}"));
    let user = User::of_network_process();
    prepare_state(&config, path)?;
    let control = control::listen(&config.control.socket)?;
    // Not before: now nobody else runs who has something to do there.
    if let Some(user) = &user {
        hand_over(user, &config);
    }
    let netlink = Netlink::open().map_err(|error| system("no netlink", error))?;
    let (ours, its) = channel::pair().map_err(|error| system("no socket pair", error))?;
    let mut child =
        start(its, path, user.as_ref()).map_err(|error| system("cannot start the network process", error))?;
    let confined =
        keep_what_is_needed(&config).map_err(|error| system("cannot give capabilities up", error))?;
    let channel = Channel::new(ours).map_err(|error| system("no socket pair", error))?;
    let (later, finished) = mpsc::channel(16);
    let mut worker = Worker::new(config, text, path, (netlink, control, channel), later);
    (worker.user, worker.confined) = (user, confined);
    worker.complain_early();
    let ended = worker.serve(&mut child, finished).await?;
    outcome(ended, worker.closed)
}

/// What the end of the network process means.
fn outcome(ended: ExitStatus, closed: bool) -> Result<(), Failure> {
    use std::os::unix::process::ExitStatusExt;
    match (ended.code(), ended.signal()) {
        (Some(0), _) if closed => Ok(()),
        (Some(0), _) => Err(Failure::system("the network process has ended, and nobody had told it to")),
        (Some(code), _) => Err(Failure::said(u8::try_from(code).unwrap_or(70))),
        (None, signal) => Err(Failure::system(format!(
            "the network process was ended by signal {}; what it has promised is stored, and kept after the next start",
            signal.unwrap_or_default()
        ))),
    }
}

/// A state directory, of portferry's own, for its user alone. `path` is the configuration's file.
///
/// # Errors
/// There can be none.
pub(crate) fn prepare_state(config: &Config, path: &Path) -> Result<(), Failure> {
    let directory = &config.state.directory;
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    user::make_directory(directory, &[&whole, &config.control.socket]).map_err(|error| {
        Failure::cannot_create(format!(
            "cannot make the state directory {}: {error}; portferry has to be able to write there ([state] directory)",
            directory.display()
        ))
    })
}

/// The state is the network process's to read and to write. Where it cannot be handed over, that process says what it lacks: of a
/// file system that is read-only or full nothing is lost yet.
fn hand_over(user: &User, config: &Config) {
    let directory = &config.state.directory;
    if let Err(error) = user.take_over(directory) {
        tracing::warn!("the state directory {} is not all {}'s: {error}", directory.display(), user.name);
    }
}

fn start(socket: OwnedFd, path: &Path, user: Option<&User>) -> io::Result<Child> {
    // What this process runs, also when the file has been replaced by a newer one.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("portferry")
        .arg(NETWORK_PROCESS)
        .arg(path)
        .env_clear()
        .envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .current_dir("/")
        .stdin(Stdio::from(socket))
        .kill_on_drop(true);
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    command.spawn()
}

/// Of root's rights those stay that the tables, sockets by interface, ports of DHCP clients, and processes of other users need. True
/// where no program that it runs could get others back: not with `[hooks]` or another firewall, whose programs are root's.
fn keep_what_is_needed(config: &Config) -> io::Result<bool> {
    let needed = CapabilitySet::NET_ADMIN
        | CapabilitySet::NET_RAW
        | CapabilitySet::NET_BIND_SERVICE
        | CapabilitySet::SETUID
        | CapabilitySet::SETGID
        | CapabilitySet::KILL;
    let confined = config.hooks.on_change.0.is_empty() && config.firewall.integrate == Integrate::None;
    if confined {
        sandbox::keep_capabilities(needed)?;
    } else {
        let has = capabilities(None)?;
        let kept = has.permitted & needed;
        // What a supervisor gave for programs, too, they go on to have.
        let inheritable = has.inheritable & needed;
        set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable })?;
    }
    Ok(confined)
}

/// See the module's description.
struct Worker {
    known: Known,
    tables: Tables,
    config: Config,
    /// Of the configuration at the start, until it has been handed out.
    text: Option<String>,
    path: PathBuf,
    user: Option<User>,
    control: control::Listening,
    netlink: Netlink,
    keeper: Option<Keeper>,
    channel: Channel,
    /// Answers of what goes on beside the loop.
    later: mpsc::Sender<(u64, Answer)>,
    lookups: Arc<Semaphore>,
    /// Who may wait for one of those.
    lookups_asked: Arc<Semaphore>,
    hooks: Arc<Semaphore>,
    /// Programs cannot have more rights than this process.
    confined: bool,
    /// A mapping or a pinhole was asked for: what an earlier start has left is looked through.
    settled: bool,
    /// The supervisor, or a person, has had it stopped.
    stopping: bool,
    /// Everything is taken back.
    closed: bool,
    /// When the interfaces were last looked at.
    looked: Option<Instant>,
}

impl Worker {
    /// Nothing is done yet. `text` is that of the configuration, which the file at `path` has.
    fn new(
        config: Config,
        text: String,
        path: &Path,
        (netlink, control, channel): (Netlink, control::Listening, Channel),
        later: mpsc::Sender<(u64, Answer)>,
    ) -> Self {
        Self {
            known: Known::new(&config),
            tables: Tables::new(&config),
            config,
            text: Some(text),
            path: path.to_owned(),
            user: None,
            control,
            netlink,
            keeper: None,
            channel,
            later,
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
            lookups_asked: Arc::new(Semaphore::new(MOST_LOOKUPS)),
            hooks: Arc::new(Semaphore::new(1)),
            confined: false,
            settled: false,
            stopping: false,
            closed: false,
            looked: None,
        }
    }

    /// Until the network process has ended.
    async fn serve(
        &mut self,
        child: &mut Child,
        mut finished: mpsc::Receiver<(u64, Answer)>,
    ) -> Result<ExitStatus, Failure> {
        let system = |error: io::Error| Failure::system(format!("the privileged process: {error}"));
        let (signals, mut signalled) = mpsc::channel(4);
        for (kind, meaning) in [
            (SignalKind::terminate(), Signal::Stop),
            (SignalKind::interrupt(), Signal::Stop),
            (SignalKind::hangup(), Signal::Reload),
        ] {
            let mut stream = signal(kind).map_err(system)?;
            let signals = signals.clone();
            tokio::spawn(async move {
                while stream.recv().await.is_some() && signals.send(meaning).await.is_ok() {}
            });
        }
        self.look().await;
        let mut buffer = vec![0; MAX_REQUEST];
        let (mut talks, mut deadline, mut deaf_until) = (true, None, Instant::now());
        loop {
            let overdue = async {
                match deadline {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                ended = child.wait() => {
                    let ended = ended.map_err(system)?;
                    // It was killed before it could take anything back: what it has promised stands until the next start.
                    self.tables.end_flows().await;
                    if let Some(keeper) = self.keeper.take() {
                        keeper.stop(true).await;
                    }
                    return Ok(ended);
                }
                () = overdue => {
                    tracing::warn!("the network process does not end: it is killed");
                    deadline = None;
                    let _ = child.start_kill();
                    self.end_for_it().await;
                }
                Some(signal) = signalled.recv() => {
                    let said = match signal {
                        Signal::Stop => Said::Stop,
                        Signal::Reload => Said::Reload,
                    };
                    if signal == Signal::Stop {
                        self.stopping = true;
                        deadline = deadline.or(Some(Instant::now() + STOP));
                    }
                    if !self.say(&said, None).await {
                        deadline = Some(Instant::now());
                    }
                }
                Some((id, answer)) = finished.recv() => {
                    if !self.say(&Said::Answer { id, answer }, None).await {
                        deadline = Some(Instant::now());
                    }
                }
                changed = self.netlink.changed(), if Instant::now() >= deaf_until => {
                    if let Err(error) = changed {
                        tracing::debug!("the kernel's news of interfaces: {error}");
                        deaf_until = Instant::now() + RETRY;
                    }
                    self.look().await;
                }
                due = self.tables.due() => self.tables.attend(due).await,
                received = self.channel.receive(&mut buffer), if talks => match received {
                    Ok(Some(message)) => {
                        if !self.on_message(&buffer[..message.len]).await {
                            deadline = Some(Instant::now());
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::InvalidData => {
                        tracing::warn!("a message of the network process is passed over: it is too long");
                    }
                    // It ends by itself, or it never will.
                    Ok(None) | Err(_) => {
                        talks = false;
                        deadline = Some(Instant::now() + END);
                    }
                },
            }
        }
    }

    /// The network process has not come to its end in time. After a stop what it has left undone is done here; else everything stands
    /// until the next start, as when it is killed: what it closes or leaves unread takes no filter away.
    async fn end_for_it(&mut self) {
        if self.stopping && !self.closed {
            super::close(&mut self.tables, self.keeper.take()).await;
        }
    }

    /// False when the other side leaves it unread, or cannot be told.
    async fn say(&self, said: &Said, fd: Option<&OwnedFd>) -> bool {
        let octets = serde_json::to_vec(said).expect("plain values become JSON");
        match tokio::time::timeout(UNREAD, self.channel.send(&octets, fd.map(AsFd::as_fd))).await {
            Ok(Ok(())) => true,
            // Its end comes next.
            Ok(Err(error)) if is_gone(&error) => {
                tracing::debug!("to the network process: {error}");
                true
            }
            // It would wait for ever for what it is never told.
            Ok(Err(error)) => {
                tracing::warn!("the network process cannot be told an answer, and is ended: {error}");
                false
            }
            Err(_) => false,
        }
    }

    /// What the kernel says of interfaces now.
    async fn look(&mut self) {
        match self.netlink.snapshot().await {
            Ok(snapshot) => {
                self.known.look(snapshot);
                self.looked = Some(Instant::now());
            }
            Err(error) => tracing::debug!("the interfaces: {error}"),
        }
    }

    /// The same, unless that is known from so short a time ago; whether it was looked.
    async fn look_after(&mut self, age: Duration) -> bool {
        let is_old = self.looked.is_none_or(|then| then.elapsed() > age);
        if is_old {
            self.look().await;
        }
        is_old
    }

    /// What is refused by what is known is held against the kernel's word of now, for an interface may have come a moment ago.
    async fn hold_against<T>(&mut self, check: impl Fn(&Known) -> Result<T, Refused>) -> Result<T, Refused> {
        let first = match check(&self.known) {
            Err(first) if self.look_after(STALE).await => first,
            outcome => return outcome,
        };
        check(&self.known).map_err(|_| first)
    }

    /// False when its answer is left unread.
    async fn on_message(&mut self, octets: &[u8]) -> bool {
        let Asked { id, request } = match serde_json::from_slice(octets) {
            Ok(asked) => asked,
            Err(error) => {
                tracing::warn!("a message of the network process is passed over: {error}");
                return true;
            }
        };
        // In the order in which they were asked, but for what takes long: that goes on beside.
        let mut fd = None;
        let answer = match request {
            Request::Resolve(name) => match self.resolve(id, name) {
                Ok(()) => return true,
                Err(answer) => answer,
            },
            Request::Hook(line) => match self.hook(id, line) {
                Ok(()) => return true,
                Err(why) => Answer::Refused(why),
            },
            Request::Socket(spec) => match self.socket(&spec).await {
                Ok(opened) => {
                    fd = Some(opened);
                    Answer::Done
                }
                Err(answer) => answer,
            },
            Request::ControlSocket => {
                return self.say(&Said::Answer { id, answer: Answer::Done }, Some(self.control.fd())).await;
            }
            other => self.do_at_once(other).await,
        };
        if let Answer::Refused(why) = &answer {
            tracing::warn!("the network process is refused what it asks for: {why}");
        }
        self.say(&Said::Answer { id, answer }, fd.as_ref()).await
    }

    /// A change of the NAT, if it may be.
    async fn change_nat(&mut self, place: usize, change: NatChange) -> Answer {
        // What stands when it is made, and what it replaces.
        let (rule, old) = match change {
            NatChange::Reserve { .. } | NatChange::Remove(_) => (None, None),
            NatChange::Install(rule) => (Some(rule), None),
            NatChange::Replace { old, new } => (Some(new), Some(old)),
            NatChange::Move { protocol, port, outermost } => {
                let there = self.tables.nat(place).and_then(|nat| nat.at(protocol, port).next());
                (there.map(|rule| Nat1Rule { outermost, ..rule }), there)
            }
        };
        if let Some(rule) = rule {
            let nat = self.tables.nat(place);
            let freed = usize::from(old.is_some_and(|old| nat.is_some_and(|nat| nat.holds(&old))));
            let of_host = nat.map_or(0, |nat| nat.held_by(*rule.internal.ip()));
            let held = Held {
                all: nat.map_or(0, Nft::len).saturating_sub(freed),
                of_host: of_host.saturating_sub(freed),
            };
            let is_new = nat.is_some_and(|nat| nat.at(rule.protocol, rule.external_port).next().is_none());
            if let Err(why) = self.hold_against(|known| known.rule(place, &rule, held)).await {
                return Answer::Refused(why);
            }
            // A program of the router's own that waits there keeps its port.
            let interface = self.tables.interface(place).unwrap_or_default();
            let in_use = |addr: &Ipv4Addr| !port_is_free(rule.protocol, *addr, rule.external_port);
            if is_new && self.known.addresses(interface).iter().any(in_use) {
                return Answer::PortInUse;
            }
        }
        self.tables.change_nat(place, change).await.into()
    }

    async fn do_at_once(&mut self, request: Request) -> Answer {
        match request {
            Request::Configuration => self.configuration(),
            Request::Open => match self.tables.open().await {
                Ok(()) => {
                    self.keeper = Keeper::start(&self.config).await;
                    Answer::Done
                }
                Err(failure) => failure.into(),
            },
            Request::Follow { place, way } => {
                // Its news may be newer than what is known here.
                self.look_after(FRESH).await;
                let lines = self.config.lines();
                let Some(chosen) = lines.get(place).and_then(|line| line.ways.get(way)) else {
                    return Answer::Refused(format!("there is no uplink {place} with {way} ways"));
                };
                let addresses = self.known.addresses(&chosen.interface);
                Answer::Yes(self.tables.follow(place, way, addresses).await)
            }
            Request::Nat { place, change } => {
                self.settled = true;
                self.change_nat(place, change).await
            }
            Request::Pinhole { place, open, rule } => {
                self.settled = true;
                let held = self.tables.pinholes(place);
                if open && let Err(why) = self.hold_against(|known| known.pinhole(&rule, held)).await {
                    return Answer::Refused(why);
                }
                self.tables.change_pinhole(place, open, rule).await.into()
            }
            Request::Packets { place, rule } => {
                Answer::Number(self.tables.pinhole_packets(place, rule).await)
            }
            Request::Flow { place, protocol, internal, remote } => match self.known.flow(internal) {
                Ok(()) => {
                    let port = self.tables.find_flow(place, protocol, internal, remote).await;
                    Answer::Number(port.map(u32::from))
                }
                Err(why) => Answer::Refused(why),
            },
            Request::IdleTimeout { protocol } => Answer::Number(Some(super::idle_timeout(protocol))),
            Request::Speed { place } => Answer::Number(self.tables.interface(place).and_then(super::speed)),
            Request::Forget(name) => {
                let known = self.config.lines().into_iter().any(|line| line.name == name);
                // Another daemon's table may be called so, too: not more of them than a start has to know of.
                if known || self.settled || !is_interface_name(&name) {
                    return Answer::Refused(format!("{name:?} is no uplink of before"));
                }
                self.tables.forget(&name).await;
                Answer::Done
            }
            // It takes the filter of what is forwarded with it, which is nobody's to take but who stops the whole.
            Request::Close if !self.stopping => Answer::Refused("nobody has it stopped".to_owned()),
            Request::Close => {
                super::close(&mut self.tables, self.keeper.take()).await;
                self.closed = true;
                Answer::Done
            }
            Request::Resolve(_) | Request::Hook(_) | Request::Socket(_) | Request::ControlSocket => {
                unreachable!("answered by the caller")
            }
        }
    }

    /// The first time that of the start, so that both processes begin with the same; then it is read again.
    fn configuration(&mut self) -> Answer {
        if let Some(text) = self.text.take() {
            return Answer::Text(text);
        }
        let read = config::read(&self.path, config::MAX_LEN)
            .and_then(|text| Config::parse(&self.path, &text).map(|config| (text, config)));
        let (text, new) = match read {
            Ok(read) => read,
            // It quotes what is wrong, however long that is.
            Err(error) => {
                let mut why = error.to_string();
                why.truncate(why.floor_char_boundary(MAX_REASON));
                return Answer::Failed(78, why);
            }
        };
        let taken = self.config.take_over(new);
        if let Err(error) = taken {
            return Answer::Failed(78, format!("{}: {error}", self.path.display()));
        }
        self.known.configure(&self.config);
        self.tables.configure(&self.config);
        if let Some(keeper) = &self.keeper {
            keeper.configure(&self.config);
        }
        self.complain_early();
        Answer::Text(text)
    }

    fn complain_early(&self) {
        hooks::complain_early(&self.config.hooks);
        if self.confined && !self.config.hooks.on_change.0.is_empty() {
            tracing::warn!(
                "the program of [hooks] is new: until the next start it has no other capabilities than this process ([hooks] on_change)"
            );
        }
    }

    async fn socket(&mut self, spec: &crate::sockets::Spec) -> Result<OwnedFd, Answer> {
        let index = self.hold_against(|known| known.socket(spec)).await.map_err(Answer::Refused)?;
        let opened = spec.open(index, self.config.lan.http_port.0);
        opened.map_err(|error| Answer::System(error.raw_os_error(), error.to_string()))
    }

    /// By a process of its own, of the same user as the network process: what reads answers of DNS servers is no better place for
    /// privileges.
    fn resolve(&self, id: u64, name: String) -> Result<(), Answer> {
        if !is_host_name(&name) {
            return Err(Answer::Refused(format!("{name:?} is no host name")));
        }
        let asked = self.lookups_asked.clone().try_acquire_owned();
        let asked = asked.map_err(|_| Answer::Addresses(Vec::new()))?;
        let (later, lookups, user) = (self.later.clone(), self.lookups.clone(), self.user.clone());
        tokio::spawn(async move {
            let answer = look_up(&name, &lookups, user.as_ref()).await;
            let _ = later.send((id, answer)).await;
            drop(asked);
        });
        Ok(())
    }

    /// The program is the configuration's, one at a time; what it is told is a line as docs/hooks.md has them, written here.
    fn hook(&self, id: u64, line: String) -> Result<(), String> {
        let line = hooks::checked(&line)
            .map_err(|why| format!("what the program of [hooks] would be told is no line of ours: {why}"))?;
        let turn = self.hooks.clone().try_acquire_owned();
        let turn = turn.map_err(|_| "the program of [hooks] is still running".to_owned())?;
        let (later, settings) = (self.later.clone(), self.config.hooks.clone());
        tokio::spawn(async move {
            let answer = match hooks::run(&settings, &line).await {
                Ok(()) => Answer::Done,
                Err(why) => Answer::System(None, why),
            };
            drop(turn);
            let _ = later.send((id, answer)).await;
        });
        Ok(())
    }
}

/// Whether nobody is at the other end any more.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::NotConnected)
}

async fn look_up(name: &str, lookups: &Semaphore, user: Option<&User>) -> Answer {
    let Ok(_place) = lookups.acquire().await else { return Answer::Addresses(Vec::new()) };
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("portferry")
        .args([RESOLVE, name])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    let read = async {
        let mut child = command.spawn()?;
        let mut text = String::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(LOOKED_UP).read_to_string(&mut text).await?;
        }
        io::Result::Ok(text)
    };
    match tokio::time::timeout(LOOKUP_TIME, read).await {
        Ok(Ok(text)) => Answer::Addresses(text.lines().filter_map(|line| line.parse().ok()).collect()),
        Ok(Err(error)) => Answer::System(error.raw_os_error(), error.to_string()),
        Err(_) => Answer::Addresses(Vec::new()),
    }
}

#[cfg(test)]
mod tests;
