//! The kernel's rules, changed by somebody else.

use std::time::{Duration, Instant};

use lab::netns::{Host, Network, Process};
use lab::provider::QuickProvider;
use lab::wait::eventually;

use crate::common::{
    CASCADED, ControlPoint, NAT, TCP, Told, UDP, interworking_subject, listener, reaches, ready, say,
};
use crate::{LONG, PCP_SERVER, add, caller, lines_with};

const CHANGED: &str = ": changed by another program";
const FILTER: &str = "service_wait = 0.1\n[nat]\nforward_filter = true\n";

/// Both tables as nft prints them, without what is counted and with what is listed in order; nothing while one is not there.
fn tables(network: &Network) -> Option<Vec<String>> {
    let mut words = Vec::new();
    for family in ["inet", "ip6"] {
        let mut command = network.command(Host::Router, "nft");
        let output = command.args(["-s", "list", "table", family, "portferry"]).output().expect("it runs");
        if !output.status.success() {
            return None;
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let clean = |word: &str| {
            let word = word.trim().trim_start_matches("elements = {").trim_end_matches('}').trim();
            format!("{family} {word}")
        };
        words.extend(text.split([',', '\n']).map(clean));
    }
    words.sort_unstable();
    Some(words)
}

fn nft(network: &Network, command: &str) {
    network.run(Host::Router, "nft", [command]);
}

struct Mapped<'a> {
    network: &'a Network,
    _provider: QuickProvider<'a>,
    daemon: Process,
    control_point: ControlPoint<'a>,
    _listeners: [Process; 2],
}

impl<'a> Mapped<'a> {
    fn new(network: &'a Network, subject: &lab::subject::Subject) -> Self {
        let provider = QuickProvider::start(network, PCP_SERVER);
        let mut daemon = subject.start(network, NAT, FILTER);
        let control_point = ready(network, &mut daemon, Host::Lan1);
        let mut caller = caller(&control_point);
        let listeners = [TCP, UDP].map(|protocol| listener(network, Host::Lan1, protocol, 7001));
        for protocol in [TCP, UDP] {
            let internal = std::net::SocketAddrV4::new(lab::netns::LAN1, 7001);
            assert_eq!(caller.add(protocol, 7001, internal, 3600, "kept"), Told::done());
        }
        let mapped = Self { network, _provider: provider, daemon, control_point, _listeners: listeners };
        mapped.works();
        mapped
    }

    fn works(&self) {
        for protocol in [TCP, UDP] {
            reaches(self.network, protocol, 7001, &Host::Lan1.to_string());
        }
    }

    fn complaints(&self) -> usize {
        lines_with(&self.daemon.log(), CHANGED)
    }
}

/// Whoever flushes the rules, deletes ours or adds some, the kernel says so, and a moment later all is as before, with one line in
/// the log; nobody has to ask for anything.
#[test]
fn what_others_do_to_our_tables_is_undone_at_once() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let mapped = Mapped::new(&network, &subject);
    let before = tables(&network).expect("they are there");
    assert_eq!(mapped.complaints(), 0, "what it does itself is no news\n{}", mapped.daemon.log());
    let mut slowest = (Duration::ZERO, "");
    for (number, damage) in [
        "flush ruleset",
        "delete table inet portferry",
        "delete table ip6 portferry",
        "flush chain inet portferry prerouting",
        "delete element inet portferry ports { tcp . 7001 }",
        "flush chain ip6 portferry forward",
        "insert rule inet portferry forward drop",
        "add element inet portferry ports { tcp . 22 : 192.168.77.11 . 22 }",
    ]
    .into_iter()
    .enumerate()
    {
        nft(&network, damage);
        let began = Instant::now();
        eventually(damage, LONG, || (tables(&network).as_ref() == Some(&before)).then_some(()));
        let took = began.elapsed();
        if took > slowest.0 {
            slowest = (took, damage);
        }
        mapped.works();
        say(&format!("`nft {damage}`: right again after {took:.2?}"));
        // A line for each, until it becomes too many.
        assert_eq!(mapped.complaints(), (number + 1).min(5), "{}", mapped.daemon.log());
    }
    assert_eq!(lines_with(&mapped.daemon.log(), "another program (nft)"), 5);
    say(&format!("rules changed by others: right again after {:.2?} at most ({})", slowest.0, slowest.1));

    // Rules of others, and changes of ours, are no reason for anything.
    nft(&network, "add table inet somebody; add chain inet somebody some; flush table inet somebody");
    let mut caller = caller(&mapped.control_point);
    for port in 8000..8020 {
        assert_eq!(add(&mut caller, port), Told::done());
        assert_eq!(caller.delete(TCP, port), Told::done());
    }
    assert_eq!(tables(&network), Some(before));
}

/// A program that deletes our table again and again is not fought without end: the table is made anew at growing intervals, the
/// log says so five times, and once there is peace all is right again.
#[test]
fn there_is_no_endless_fight() {
    const DELETIONS: usize = 200;
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let mut mapped = Mapped::new(&network, &subject);
    let before = tables(&network).expect("they are there");
    let began = Instant::now();
    let mut there = 0;
    while there < 7 && began.elapsed() < LONG {
        let mut command = network.command(Host::Router, "nft");
        let deleted = command.args(["delete table inet portferry"]).output().expect("it runs");
        there += usize::from(deleted.status.success());
        std::thread::sleep(Duration::from_millis(20));
    }
    let fought = began.elapsed();
    assert_eq!(there, 7, "{}", mapped.daemon.log());
    // 100 ms, 200, 400 …: seven of them are more than six seconds.
    assert!(fought > Duration::from_secs(3), "made anew seven times in {fought:.1?}");
    for _ in 0..DELETIONS {
        let mut command = network.command(Host::Router, "nft");
        let _ = command.args(["delete table inet portferry"]).output().expect("it runs");
    }
    let began = Instant::now();
    eventually("both tables", LONG, || (tables(&network).as_ref() == Some(&before)).then_some(()));
    mapped.works();
    say(&format!("a fight over a table: right again {:.2?} after its end", began.elapsed()));
    assert!(mapped.complaints() <= 5, "{}", mapped.daemon.log());
    assert_eq!(mapped.daemon.ended(), None);
}
