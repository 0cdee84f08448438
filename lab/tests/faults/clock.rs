//! Clocks that jump, as far as a machine lets one of its processes see that: a time namespace moves the clock of the machine's start,
//! as a suspend does. Wall clocks that jump are in `portferry::journal_file`'s tests, a suspend while the daemon runs in
//! `engine/src/gateway/tests/suspend.rs`.

use std::net::SocketAddrV4;
use std::process::Command;
use std::time::Instant;

use lab::netns::{Host, LAN1, Network};
use lab::provider::QuickProvider;
use lab::subject;
use lab::wait::eventually;

use crate::common::{
    CASCADED, TCP, Told, interworking_subject, listener, reaches, reaches_nobody, ready, skipped,
};
use crate::{LONG, PCP_SERVER, add, all_active, caller, ports, start_by, took};

const WEEK: u64 = 7 * 86_400;

/// A week passes between kill -9 and the next start, and then is taken back: what has ended is gone, nothing else is, and time that
/// goes backwards ends nothing.
#[test]
fn a_week_passes_between_two_starts() {
    let Some(subject) = interworking_subject() else { return };
    let moved =
        |by: u64| ["--time".to_owned(), "--kill-child".to_owned(), "--boottime".to_owned(), by.to_string()];
    let works = Command::new("unshare").args(moved(WEEK)).arg("true").status();
    if !works.is_ok_and(|status| status.success()) {
        return skipped("there are no time namespaces");
    }
    let network = Network::new(CASCADED);
    let _provider = QuickProvider::start(&network, PCP_SERVER);
    let start = |by: u64| {
        let moved = moved(by);
        start_by(&subject, &network, "unshare", &moved.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let mut daemon = start(0);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let mut caller = caller(&control_point);
    let _listeners = [7001, 7002].map(|port| listener(&network, Host::Lan1, TCP, port));
    assert_eq!(add(&mut caller, 7001), Told::done());
    assert_eq!(caller.add(TCP, 7002, SocketAddrV4::new(LAN1, 7002), 3600, "an hour"), Told::done());
    reaches(&network, TCP, 7002, &Host::Lan1.to_string());
    for (by, what) in [(WEEK, "a week later"), (0, "a week earlier")] {
        drop(daemon); // by SIGKILL
        eventually("its end", LONG, || subject::listed(&network).is_none().then_some(()));
        let began = Instant::now();
        daemon = start(by);
        ready(&network, &mut daemon, Host::Lan1);
        eventually("the mapping without an end", LONG, || {
            let all = subject::listed(&network)?;
            (all_active(&all) && ports(&network)?.into_iter().eq([7001])).then_some(())
        });
        took(what, began);
        reaches(&network, TCP, 7001, &Host::Lan1.to_string());
        reaches_nobody(&network, TCP, 7002);
    }
}
