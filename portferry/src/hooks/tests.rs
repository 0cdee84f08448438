//! Real programs, in a directory of the test. Nothing waits longer than it has to: a program says by a file where it is.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use engine::gateway::{Change, What};
use engine::notice::Cause;
use engine::status::MappingStatus;
use engine::table::Health;
use engine::uplink::FlowId;
use wire::pcp::Protocol;

use super::*;
use crate::config::{Argv, Seconds};
use crate::scratch::Directory;

/// A mapping with this external port.
pub(super) fn mapping(port: u16) -> MappingStatus {
    MappingStatus {
        protocol: Protocol::TCP,
        external: SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), port),
        nat_port: None,
        internal: SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 10), 51_413),
        remote_peer: None,
        remote_name: None,
        description: "torrent".to_owned(),
        age: Duration::ZERO,
        asked_by: engine::claims::AskedBy { igd: true, ..Default::default() },
        lease_left: Some(Duration::from_secs(3600)),
        lifetime_left: Duration::from_secs(600),
        health: Health::Active,
    }
}

/// A change at the usual uplink.
pub(super) fn told(change: Change) -> Told {
    Told { uplink: "wan0".into(), change }
}

/// A change of the mapping with this number.
pub(super) fn of(flow: u64, what: What, port: u16) -> Told {
    told(Change::Mapping { flow: FlowId(flow), what, mapping: mapping(port) })
}

/// Where programs of one test are and what they write.
struct Place(Directory);

impl Place {
    fn new(name: &str) -> Self {
        let directory = Directory::new(&format!("hooks-{name}"));
        // Whatever the umask of who runs the test is.
        std::fs::set_permissions(&directory.0, PermissionsExt::from_mode(0o755)).unwrap();
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.0.join(name)
    }

    /// A shell script that is run in this directory.
    fn program(&self, script: &str) -> String {
        let path = self.path("program");
        let place = self.0.0.display();
        std::fs::write(&path, format!("#!/bin/sh\ncd '{place}'\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path.display().to_string()
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The events in a file of lines, and the external ports.
    fn events(&self, name: &str) -> Vec<(String, u64)> {
        self.read(name)
            .lines()
            .map(|line| {
                let value: serde_json::Value = serde_json::from_str(line).expect(line);
                (value["event"].as_str().unwrap().to_owned(), value["external_port"].as_u64().unwrap_or(0))
            })
            .collect()
    }
}

fn settings(argv: &[&str], timeout: f64) -> config::Hooks {
    let on_change = Argv(argv.iter().map(|&argument| argument.to_owned()).collect());
    config::Hooks { on_change, timeout: Seconds(timeout) }
}

/// By the shell's own path: a script that was written just now may be open still in a child of another test, and the kernel runs
/// nothing that somebody could write to.
const SHELL: &str = "/bin/sh";

async fn run(script: &str, timeout: Duration, line: &str) -> Result<(), program::Error> {
    program::run(&[SHELL.to_owned(), script.to_owned()], timeout, line).await
}

fn running(script: &str, timeout: f64) -> Hooks {
    let mut hooks = Hooks::new(settings(&[SHELL, script], timeout));
    hooks.start();
    hooks
}

/// Until something is so; the limit is for a test that fails.
async fn until(what: &str, is: impl Fn() -> bool) {
    for _ in 0..2000 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what}");
}

/// Whether a process runs; one that is dead and not waited for does not.
fn lives(id: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(id.trim()).join("stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

fn events(wanted: &[(&str, u64)]) -> Vec<(String, u64)> {
    wanted.iter().map(|(event, port)| ((*event).to_owned(), *port)).collect()
}

#[tokio::test]
async fn each_change_is_one_run_in_its_order_and_a_stop_waits_for_them() {
    let place = Place::new("order");
    // Two at once would mix their lines, or find the other's file.
    let program = place.program("[ ! -e busy ] || echo two >> wrong\n: > busy\ncat >> log\nrm busy");
    let mut hooks = running(&program, 10.0);
    for n in 0..20 {
        hooks.tell(of(n, What::Began, 5000 + u16::try_from(n).unwrap()));
    }
    hooks.tell(of(3, What::Ended(Cause::Deleted), 5003));
    hooks.finish().await;
    let mut wanted = vec![("start", 0)];
    wanted.extend((5000..5020).map(|port| ("began", port)));
    wanted.push(("ended", 5003));
    assert_eq!((place.events("log"), place.read("wrong")), (events(&wanted), String::new()));
}

#[tokio::test]
async fn arguments_are_not_read_by_a_shell_and_the_environment_is_clean() {
    let place = Place::new("arguments");
    let program = place
        .program("printf '%s\\n' \"$@\" > arguments\nenv | cut -d= -f1 | sort > environment\npwd > where");
    let mut hooks = Hooks::new(settings(&[SHELL, &program, "a b", "$(touch x)", ""], 10.0));
    hooks.start();
    hooks.finish().await;
    assert_eq!(place.read("arguments"), "a b\n$(touch x)\n\n");
    // PWD, OLDPWD and such are the shell's own.
    let known = ["PATH", "LANG", "LC_ALL", "TZ", "PWD", "OLDPWD", "SHLVL", "_"];
    let environment = place.read("environment");
    assert!(environment.lines().all(|name| known.contains(&name)), "{environment}");
    assert!(environment.contains("PATH"), "{environment}");
}

/// It ignores SIGTERM, and so does its child, which would go on for a minute.
#[tokio::test]
async fn a_program_that_hangs_is_killed_with_all_its_children() {
    let place = Place::new("timeout");
    let program = place.program(
        "trap '' TERM\n(trap '' TERM; exec sleep 60) &\necho $! > child\necho $$ > own\necho waiting\nwait",
    );
    let error = run(&program, Duration::from_millis(300), "{}\n").await.unwrap_err().to_string();
    assert!(error.contains("was killed because it took longer than 0.3 s"), "{error}");
    assert!(error.ends_with("it said \"waiting\""), "{error}");
    until("both are gone", || !lives(&place.read("own")) && !lives(&place.read("child"))).await;
    assert_ne!(place.read("child"), "");
}

/// SIGTERM comes first, for programs that want to clean up.
#[tokio::test]
async fn a_program_may_end_by_itself_when_it_is_told_to() {
    let place = Place::new("term");
    let program = place.program("trap 'echo bye > log; exit 0' TERM\nsleep 60 &\nwait");
    let error = run(&program, Duration::from_millis(300), "{}\n").await.unwrap_err().to_string();
    assert!(error.contains("took longer than"), "{error}");
    assert_eq!(place.read("log"), "bye\n");
}

/// What it leaves in the background holds up nobody, and is ended.
#[tokio::test]
async fn nothing_is_left_of_a_program_that_ends() {
    let place = Place::new("background");
    let program = place.program("sleep 60 &\necho $! > child");
    run(&program, Duration::from_secs(30), "{}\n").await.unwrap();
    until("the child is gone", || !lives(&place.read("child"))).await;
    assert_ne!(place.read("child"), "");
}

#[tokio::test]
async fn a_failure_is_one_bounded_line_and_the_next_change_is_told() {
    let place = Place::new("failure");
    let program =
        place.program("cat >> log\nhead -c 1000000 /dev/zero | tr '\\0' x\necho '\x1b[31mwhy' >&2\nexit 3");
    let error = run(&program, Duration::from_secs(30), "{}\n").await.unwrap_err().to_string();
    assert!(error.starts_with("has failed with exit status 3; that change is not told again"), "{error}");
    assert!(error.ends_with("\\n\\u{1b}[31mwhy\""), "what it says cannot steer a terminal: {error}");
    assert!(error.len() < 2 * 4096, "{}", error.len());
    std::fs::remove_file(place.path("log")).unwrap();
    let mut hooks = running(&program, 10.0);
    hooks.tell(of(1, What::Began, 5000));
    hooks.tell(of(1, What::Ended(Cause::Deleted), 5000));
    hooks.finish().await;
    assert_eq!(place.events("log"), events(&[("start", 0), ("began", 5000), ("ended", 5000)]));
}

/// Nor is a program that reads nothing a failure, however long the line is.
#[tokio::test]
async fn a_program_need_not_read() {
    let place = Place::new("deaf");
    let program = place.program("exit 0");
    run(&program, Duration::from_secs(30), &"x".repeat(1_000_000)).await.unwrap();
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_program_that_hangs() {
    let place = Place::new("stop");
    let program = place.program("cat >> log\ntrap '' TERM\necho $$ > own\nsleep 60");
    let mut hooks = running(&program, 0.3);
    hooks.tell(of(1, What::Began, 5000));
    hooks.tell(of(2, What::Began, 5001));
    until("it runs", || !place.read("own").is_empty()).await;
    hooks.finish().await;
    until("it is gone", || !lives(&place.read("own"))).await;
    let told = place.events("log").len();
    assert!(told < 3, "{told}");
}

#[tokio::test]
async fn a_slow_program_is_told_of_each_mapping_as_it_is() {
    let place = Place::new("merge");
    let program = place.program("cat >> log\nuntil [ -e go ]; do sleep 0.01; done");
    let mut hooks = running(&program, 60.0);
    until("it runs", || !place.read("log").is_empty()).await;
    let mut port = 5000;
    hooks.tell(of(1, What::Began, port));
    for n in 0..3 * u64::try_from(queue::ROOM).unwrap() {
        let from = mapping(port).external;
        port = if port == 5000 { 6000 } else { 5000 };
        hooks.tell(of(1, What::Moved(from), port));
        hooks.tell(of(2 + n, What::Began, 7000));
        hooks.tell(of(2 + n, What::Ended(Cause::Deleted), 7000));
    }
    hooks.shared.state().queue.drop_overtaken();
    std::fs::write(place.path("go"), "").unwrap();
    hooks.finish().await;
    assert_eq!(place.events("log"), events(&[("start", 0), ("began", u64::from(port))]));
}

#[tokio::test]
async fn after_a_reload_the_program_is_told_what_stands() {
    let place = Place::new("reload");
    let program = place.program("cat >> \"$1\"");
    let mut hooks = Hooks::new(settings(&[], 10.0));
    hooks.start();
    hooks.tell(of(1, What::Began, 5000));
    hooks.configure(settings(&[SHELL, &program, "a"], 10.0), [of(1, What::Present, 5000)].into_iter());
    until("all is told", || place.events("a").len() == 2).await;
    // The same one, too: it may have missed something.
    hooks.configure(settings(&[SHELL, &program, "a"], 5.0), [of(1, What::Present, 5000)].into_iter());
    hooks.tell(of(2, What::Began, 5001));
    until("all is told", || place.events("a").len() == 5).await;
    hooks.configure(settings(&[SHELL, &program, "b"], 5.0), [of(2, What::Present, 5001)].into_iter());
    hooks.finish().await;
    assert_eq!(
        place.events("a"),
        events(&[("start", 0), ("present", 5000), ("start", 0), ("present", 5000), ("began", 5001)])
    );
    assert_eq!(place.events("b"), events(&[("start", 0), ("present", 5001)]));
}

/// A program that somebody else could have written is not run.
#[tokio::test]
async fn a_program_that_others_can_write_is_refused() {
    let place = Place::new("refused");
    let program = place.program("echo > ran");
    let refusal = || program::check(&program).err().map(|error| error.to_string());
    assert_eq!(refusal(), None);
    let mode = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    for (path, bad, good, why) in [
        (Path::new(&program), 0o757, 0o755, "others can write to"),
        (Path::new(&program), 0o644, 0o755, "it is no executable file"),
        (&place.0.0, 0o777, 0o755, "others can write to"),
    ] {
        mode(path, bad);
        assert!(refusal().is_some_and(|error| error.contains(why)), "{why}: {:?}", refusal());
        assert!(program::run(std::slice::from_ref(&program), Duration::from_secs(30), "{}\n").await.is_err());
        mode(path, good);
    }
    assert!(!place.path("ran").exists());
    std::os::unix::fs::symlink(&program, place.path("link")).unwrap();
    mode(Path::new(&program), 0o757);
    assert!(program::check(&place.path("link").display().to_string()).is_err(), "what it leads to counts");
    let missing = program::check("/nonexistent/hook").unwrap_err().to_string();
    assert!(missing.starts_with("is not run: No such file"), "{missing}");
}

#[test]
fn one_line_a_minute() {
    let mut complaints = Complaints::default();
    let at = Instant::from_secs;
    let said: Vec<Option<u32>> = [0, 1, 59, 60, 61, 200].map(|second| complaints.count(at(second))).into();
    assert_eq!(said, [Some(0), None, None, Some(2), None, Some(1)]);
}
