//! Faults of the machine that the daemon runs on, each against the real daemon: what comes of it, and how long until all is right
//! again, which is printed and not asserted. docs/faults.md is the list. What a provider does wrong, a full file system under load,
//! and kill -9 at any moment are in `recovery`.
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test faults
//! ```

#[path = "../common/mod.rs"]
mod common;

mod clock;
mod limits;
mod network;
mod ruleset;
mod state;

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{Caller, ControlPoint, NAT, SECOND, TCP, Told, say};
use lab::netns::{Host, LAN1, Network, Process};
use lab::subject::{self, Listed, Subject};
use lab::wait::eventually;

pub(crate) const PCP_SERVER: &str = env!("CARGO_BIN_EXE_lab-pcp-server");

/// Nothing here waits for a provider that is starting.
pub(crate) const SETTINGS: &str = "service_wait = 0.1\n";

/// So long something may take that is printed; it takes less.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Starts the daemon by way of a program that runs the rest of its command line, as `prlimit` or `unshare` do.
#[track_caller]
pub(crate) fn start_by(subject: &Subject, network: &Network, program: &str, arguments: &[&str]) -> Process {
    let Subject::Portferry(daemon) = subject else { panic!("it is asked for an interworking function") };
    let file = network.directory().join("portferry.toml");
    std::fs::create_dir_all(state_directory(network)).expect("the directory is ours");
    std::fs::write(&file, subject::configuration(network, NAT, SETTINGS)).expect("the directory is ours");
    let (daemon, file) = (daemon.display().to_string(), file.display().to_string());
    let all = [arguments, &[&daemon, "run", "--config", &file]].concat();
    network.spawn(Host::Router, "portferry", program, all)
}

#[track_caller]
pub(crate) fn start(subject: &Subject, network: &Network) -> Process {
    subject.start(network, NAT, SETTINGS)
}

pub(crate) fn state_directory(network: &Network) -> PathBuf {
    network.directory().join("state")
}

/// Waits until it says that it runs, `before` being what it had said before this start.
#[track_caller]
pub(crate) fn runs(daemon: &mut Process, before: &str) {
    eventually("the daemon", LONG, || {
        let log = daemon.log();
        if let Some(status) = daemon.ended() {
            panic!("it ended with {status}:\n{}", &daemon.log()[before.len()..]);
        }
        log[before.len()..].contains("is running").then_some(())
    });
}

/// TCP, from a port of the first LAN host to the same outside, for ever.
#[track_caller]
pub(crate) fn add(caller: &mut Caller, port: u16) -> Told {
    caller.add(TCP, port, SocketAddrV4::new(LAN1, port), 0, "kept")
}

pub(crate) fn caller(control_point: &ControlPoint<'_>) -> Caller {
    Caller::new(control_point, 1)
}

/// External ports of the daemon's table; nothing while it does not answer.
pub(crate) fn ports(network: &Network) -> Option<BTreeSet<u16>> {
    Some(subject::listed(network)?.iter().map(|mapping| mapping.external.port()).collect())
}

/// Whether all that it lists is confirmed by the provider.
pub(crate) fn all_active(all: &[Listed]) -> bool {
    all.iter().all(|mapping| mapping.state == "active")
}

/// Prints how long it was since `began` until all was right again.
pub(crate) fn took(what: &str, began: Instant) {
    say(&format!("{what}: right again after {:.2?}", began.elapsed()));
}

/// Lines of a log that have `text` in them.
pub(crate) fn lines_with(log: &str, text: &str) -> usize {
    log.lines().filter(|line| line.contains(text)).count()
}

/// Waits for an AddPortMapping that succeeds.
#[track_caller]
pub(crate) fn adds_soon(caller: &mut Caller, port: u16) {
    eventually("a mapping", LONG, || {
        let told = add(caller, port);
        if told != Told::done() {
            // Not a flood of them.
            std::thread::sleep(SECOND / 10);
        }
        (told == Told::done()).then_some(())
    });
}
