//! What is left after the worst: a provider that forgets everything, hosts that fight, hundreds of mappings, and a daemon
//! that is killed again and again. Real processes as in `end_to_end`, so it needs root.
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test recovery
//! PF_SEED=7 cargo test -p lab --test recovery killed     # the same choice of moments again
//! ```

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    BOTH, CASCADED, Caller, ControlPoint, NAT, SECOND, Small, TCP, Told, UDP, interworking_subject,
    lan_address, listener, name, now, reaches, reaches_nobody, ready, say, try_reach,
};
use engine::entropy::{Entropy as _, SeededEntropy};
use lab::capture::{Capture, MapMessage, most_unanswered};
use lab::netns::{Host, INTERNET, LAN1, Network, Process, ROUTER_WAN, WAN_INTERFACE};
use lab::provider::{Forwarding, Options, Provider, QuickProvider};
use lab::subject::{self, Listed, Subject};
use lab::wait::eventually;

const PCP_SERVER: &str = env!("CARGO_BIN_EXE_lab-pcp-server");

/// From a provider's return until every mapping is back: twice `recovery_wait`.
const RECOVERY: Duration = Duration::from_secs(10);
/// How old a provider's server has to be before it forgets: a younger one's epoch does not tell (RFC 6887 §8.5 allows
/// for two seconds and a sixteenth).
const EPOCH_TELLS: Duration = Duration::from_secs(5);

/// Protocol and external port; the internal and the local NAT's port are the same throughout this file.
type Key = (u8, u16);

// ── The provider forgets ───────────────────────────────────────────────────────────────────────────────────────────

const SOME: [(u8, u16, Host); 6] = [
    (TCP, 7001, Host::Lan1),
    (TCP, 7002, Host::Lan2),
    (TCP, 7003, Host::Lan1),
    (UDP, 7001, Host::Lan2),
    (UDP, 7002, Host::Lan1),
    (UDP, 7003, Host::Lan2),
];

/// [`SOME`] mappings that work, in a provider that is about to forget them.
struct Mapped<'a> {
    network: &'a Network,
    provider: Provider<'a>,
    wire: Capture,
    caller: Caller,
    _daemon: Process,
    _listeners: Vec<Process>,
}

impl<'a> Mapped<'a> {
    /// `None` where there is no laboratory.
    fn new(network: &'a Network, subject: &Subject, options: Options) -> Self {
        let started = Instant::now();
        let provider = Provider::start(network, options);
        let mut daemon = subject.start(network, NAT, "");
        let control_point = ready(network, &mut daemon, Host::Lan1);
        let listeners = SOME.map(|(protocol, port, host)| listener(network, host, protocol, port));
        let wire = Capture::start(network, Host::Router, WAN_INTERFACE, "udp port 5350 or udp port 5351");
        let other = ControlPoint { host: Host::Lan2, ..control_point.clone() };
        let (mut caller, mut other) = (Caller::new(&control_point, 1), Caller::new(&other, 1));
        eventually("a provider whose epoch tells", 2 * EPOCH_TELLS, || {
            (started.elapsed() > EPOCH_TELLS).then_some(())
        });
        for (protocol, port, host) in SOME {
            let caller = if host == Host::Lan1 { &mut caller } else { &mut other };
            let internal = SocketAddrV4::new(lan_address(host), port);
            assert_eq!(caller.add(protocol, port, internal, 3600, "some"), Told::done(), "{port}");
        }
        let mapped = Self { network, provider, wire, caller, _daemon: daemon, _listeners: listeners.into() };
        mapped.all_reach();
        mapped
    }

    fn all_reach(&self) {
        for (protocol, port, host) in SOME {
            reaches(self.network, protocol, port, &host.to_string());
        }
    }

    /// Restarts the server without its state; when it was there again, for this process and for captures.
    fn lose_state(&mut self) -> (Instant, Duration) {
        self.provider.stop();
        self.provider.forget();
        assert!(!try_reach(self.network, SOME[0].0, SOME[0].1), "the provider has forgotten");
        let back = now();
        self.provider.restart();
        (Instant::now(), back)
    }

    /// Whether the server has said since `back` that it is there again.
    fn announced(&self, back: Duration) -> bool {
        let announcement = |destination: IpAddr| destination == Ipv4Addr::new(224, 0, 0, 1);
        self.wire.packets().iter().any(|packet| packet.at >= back && announcement(packet.destination.ip()))
    }

    /// Waits for all mappings at the provider, then sends through each; how long that took, counted from `from`.
    fn all_return(&self, from: Instant) -> (Duration, Duration) {
        let within = RECOVERY.saturating_sub(from.elapsed());
        eventually("all mappings at the provider", within, || {
            let there = self.provider.forwardings();
            let has = |&(protocol, port, _): &(u8, u16, Host)| {
                there.iter().any(|f| (f.protocol, f.external_port) == (protocol, port))
            };
            SOME.iter().all(has).then_some(())
        });
        let mapped = from.elapsed();
        self.all_reach();
        (mapped, from.elapsed())
    }
}

/// The router hears no announcement any more.
fn deafen(network: &Network) {
    network.nft(
        Host::Router,
        "table inet labdeaf {\n chain input {\n  type filter hook input priority 0;\n  udp dport 5350 drop\n }\n}\n",
    );
}

#[test]
fn after_an_announced_restart_of_the_provider_traffic_flows_again_in_10_s() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let mut mapped = Mapped::new(&network, &subject, Options::default());
    let (returned, back) = mapped.lose_state();
    assert!(mapped.announced(back), "miniupnpd announces its start");
    let (there, reached) = mapped.all_return(returned);
    say(&format!(
        "announced restart: mappings back after {there:.1?}, traffic through all after {reached:.1?}"
    ));
}

/// Without an announcement nobody can know before the server answers something; what it answers tells its epoch. Left
/// alone, that is the first renewal: at the latest 5/8 of a lifetime after the last grant, hours on a provider that
/// grants a day. From then on it goes as fast as after an announcement.
#[test]
fn after_a_silent_restart_of_the_provider_the_first_renewal_tells() {
    const LIFETIME: u32 = 16;
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let options = Options { min_lifetime: 4, max_lifetime: LIFETIME, ..Options::default() };
    let mut mapped = Mapped::new(&network, &subject, options);
    deafen(&network);
    let granted = Instant::now(); // no later than this
    let (returned, back) = mapped.lose_state();
    assert!(mapped.announced(back), "it was said, and not heard");
    let renewal = Duration::from_secs(LIFETIME.into()) * 5 / 8;
    eventually(
        "the first answer",
        (granted + renewal + 5 * SECOND).saturating_duration_since(returned),
        || mapped.wire.maps().into_iter().find(|(packet, map)| packet.at >= back && map.response),
    );
    let told = Instant::now();
    let (there, reached) = mapped.all_return(told);
    say(&format!(
        "silent restart: first renewal {:.1?} after the return, from then on mappings back after {there:.1?}, traffic \
         through all after {reached:.1?}",
        told - returned
    ));
}

#[test]
fn after_a_silent_restart_of_the_provider_the_next_new_mapping_tells() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let mut mapped = Mapped::new(&network, &subject, Options::default());
    deafen(&network);
    let (_, back) = mapped.lose_state();
    assert!(mapped.announced(back), "it was said, and not heard");
    assert_eq!(mapped.caller.add(TCP, 7004, SocketAddrV4::new(LAN1, 7004), 3600, "next"), Told::done());
    let told = Instant::now();
    let (there, reached) = mapped.all_return(told);
    say(&format!(
        "silent restart: after the next new mapping, mappings back after {there:.1?}, traffic through all after \
         {reached:.1?}"
    ));
    let again = mapped.provider.forwarding(TCP, 7004);
    assert_eq!(again, Some(SocketAddrV4::new(ROUTER_WAN, 7004)), "the one that told has its port too");
}

// ── Two hosts, one port ────────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn of_two_hosts_that_fight_for_a_port_one_wins() {
    const IN_TURN: usize = 6;
    const AT_ONCE: usize = 14;
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let hosts = [Host::Lan1, Host::Lan2];
    let mut callers = hosts.map(|host| Caller::new(&ControlPoint { host, ..control_point.clone() }, 1));
    let port = 6001;
    let internal = |one: usize| SocketAddrV4::new(lan_address(hosts[one]), port);
    let _listeners = hosts.map(|host| BOTH.map(|protocol| listener(&network, host, protocol, port)));
    let add = |caller: &mut Caller, protocol, one| caller.add(protocol, port, internal(one), 3600, "mine");
    let refused_delete = |told: Told, what: &str| {
        assert!(matches!(told, Told::Refused(714 | 606)), "{what}: the loser's delete is told {told:?}");
    };
    let mut wins = [0; 2];

    for round in 0..IN_TURN + AT_ONCE {
        let protocol = BOTH[round / 2 % 2];
        let what = format!("round {round}, {}", name(protocol));
        let winner = if round < IN_TURN {
            let first = round % 2;
            assert_eq!(add(&mut callers[first], protocol, first), Told::done(), "{what}");
            assert_eq!(add(&mut callers[1 - first], protocol, 1 - first), Told::Refused(718), "{what}");
            first
        } else {
            let start = Barrier::new(2);
            let [one, other] = &mut callers;
            let run = |caller, who| {
                start.wait();
                add(caller, protocol, who)
            };
            let told = thread::scope(|scope| {
                let first = scope.spawn(|| run(one, 0));
                let second = run(other, 1);
                [first.join().expect("it doesn't panic"), second]
            });
            match told {
                [Told::Done(_), Told::Refused(718)] => 0,
                [Told::Refused(718), Told::Done(_)] => 1,
                told => panic!("{what}: {told:?}"),
            }
        };
        wins[winner] += 1;
        let loser = 1 - winner;
        refused_delete(callers[loser].delete(protocol, port), &what);
        reaches(&network, protocol, port, &hosts[winner].to_string());

        // The winner lets it go; half of the time the other asks in the same moment.
        let mut had = false;
        if round < IN_TURN {
            assert_eq!(callers[winner].delete(protocol, port), Told::done(), "{what}");
        } else {
            let start = Barrier::new(2);
            let [one, other] = &mut callers;
            let (giving, wanting) = if winner == 0 { (one, other) } else { (other, one) };
            let (deleted, added) = thread::scope(|scope| {
                let deleted = scope.spawn(|| {
                    start.wait();
                    giving.delete(protocol, port)
                });
                start.wait();
                let added = add(wanting, protocol, loser);
                (deleted.join().expect("it doesn't panic"), added)
            });
            assert_eq!(deleted, Told::done(), "{what}");
            // 501: just while the provider is asked to delete the other's.
            assert!(matches!(added, Told::Done(_) | Told::Refused(718 | 501)), "{what}: {added:?}");
            had = added == Told::done();
        }
        if !had {
            assert_eq!(add(&mut callers[loser], protocol, loser), Told::done(), "{what}");
        }
        refused_delete(callers[winner].delete(protocol, port), &what);
        reaches(&network, protocol, port, &hosts[loser].to_string());
        assert_eq!(callers[loser].delete(protocol, port), Told::done(), "{what}");
        assert_eq!(provider.forwarding(protocol, port), None, "{what}");
        assert_eq!(subject::elements(&network), Some(Vec::new()), "{what}");
    }
    say(&format!("two hosts, one port: lan1 won {} rounds, lan2 {}", wins[0], wins[1]));
}

// ── Many ───────────────────────────────────────────────────────────────────────────────────────────────────────────

/// So many requests of a recovery, or of a stop, may be unanswered at once (decision 16).
const IN_TURN: usize = 4;

/// Decision 16: what goes in large numbers goes in turn. D-15 and invariant 11: nothing is left behind, however slow the server is; this one
/// serves one datagram after the other.
#[test]
fn five_hundred_mappings_are_listed_used_recovered_and_taken_back() {
    const EACH: u16 = 125; // control point; there are four
    const SAMPLE: usize = 62; // every so many is used
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let mut provider = QuickProvider::start(&network, PCP_SERVER);
    let mut daemon = subject.start(
        &network,
        NAT,
        "[policy]\nmappings_per_host = 300\nexchanges_per_second = 1000\nexchanges_burst = 1000\n",
    );
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let owners = [(Host::Lan1, 20_000), (Host::Lan2, 21_000), (Host::Lan1, 22_000), (Host::Lan2, 23_000)];
    let all: Vec<(Key, Host)> = owners
        .iter()
        .flat_map(|&(host, first)| (first..first + EACH).map(move |port| (key(port), host)))
        .collect();

    let began = Instant::now();
    thread::scope(|scope| {
        for (host, first) in owners {
            let control_point = ControlPoint { host, ..control_point.clone() };
            scope.spawn(move || {
                let mut caller = Caller::new(&control_point, 1);
                for port in first..first + EACH {
                    let internal = SocketAddrV4::new(lan_address(host), port);
                    let told = caller.add(key(port).0, port, internal, 3600, "one of many");
                    assert_eq!(told, Told::done(), "{port}");
                }
            });
        }
    });
    let added = began.elapsed();

    let began = Instant::now();
    let list = control_point.upnpc(&["-l"]);
    let listed_one_by_one = began.elapsed();
    let began = Instant::now();
    let mut caller = Caller::new(&control_point, 2);
    let mut listing = Vec::new();
    for protocol in BOTH {
        let told = caller.call(
            "GetListOfPortMappings",
            &[
                ("NewStartPort", "1024"),
                ("NewEndPort", "65535"),
                ("NewProtocol", &name(protocol).to_uppercase()),
                ("NewManage", "1"),
                ("NewNumberOfPorts", "0"),
            ],
        );
        let Told::Done(values) = told else { panic!("{told:?}") };
        let document = values.iter().find(|(name, _)| name == "NewPortListing").expect("its one argument");
        listing.extend(wire::listing::decode(&document.1).expect("well-formed"));
    }
    let listed_at_once = began.elapsed();
    for &((protocol, port), host) in &all {
        let (upper, address) = (name(protocol).to_uppercase(), lan_address(host));
        let line = format!("{upper} {port:>5}->{address}:{port:<5} ");
        assert_eq!(list.matches(&line).count(), 1, "`{line}` in\n{list}");
        let same = |entry: &&wire::listing::ListingEntry| {
            (&*entry.protocol, entry.external_port, entry.internal_port) == (&*upper, port, port)
                && entry.internal_client == address.to_string()
        };
        assert_eq!(listing.iter().filter(same).count(), 1, "{upper} {port} in {listing:?}");
    }
    assert_eq!(listing.len(), all.len());

    let sample: Vec<_> = all.iter().copied().step_by(SAMPLE).collect();
    let _listeners: Vec<_> =
        sample.iter().map(|&((protocol, port), host)| listener(&network, host, protocol, port)).collect();
    let use_sample = || {
        for &((protocol, port), host) in &sample {
            reaches(&network, protocol, port, &host.to_string());
        }
    };
    use_sample();

    let wire = Capture::start(&network, Host::Router, WAN_INTERFACE, "udp port 5351");
    provider.lose_state();
    let returned = Instant::now();
    let keys: BTreeSet<Key> = all.iter().map(|(key, _)| *key).collect();
    // At most `recovery_wait`, and then as fast as provider and machine are.
    eventually("all mappings at the provider", 60 * SECOND, || {
        let there: BTreeSet<Key> = ours(provider.forwardings()).into_keys().collect();
        keys.is_subset(&there).then_some(())
    });
    let recovered = returned.elapsed();
    use_sample();
    let table = subject::listed(&network).expect("the daemon lives");
    assert_eq!(table.iter().map(|m| (m.protocol, m.external.port())).collect::<BTreeSet<_>>(), keys);

    let began = Instant::now();
    let status = daemon.terminate(60 * SECOND);
    let stopped = began.elapsed();
    assert!(status.success(), "{status}");
    // Every delete was confirmed, and a server confirms what it has done.
    assert_eq!(ours(provider.forwardings()), BTreeMap::new(), "nothing is left at the provider");
    assert_eq!(subject::elements(&network), None, "nothing is left in the kernel");

    // Only these mappings: the router's own probe does not go in turn with them.
    let maps = || -> Vec<_> {
        let of_these = |map: &MapMessage| keys.contains(&(map.protocol, map.internal_port));
        wire.maps().into_iter().map(|(_, map)| map).filter(of_these).collect()
    };
    let is_delete = |map: &MapMessage| !map.response && map.lifetime.is_zero();
    let maps = eventually("all deletes in the capture, with their answers", 10 * SECOND, || {
        let maps = maps();
        let deletes = maps.iter().position(is_delete)?;
        (seen(&maps[deletes..], true) == keys).then_some(maps)
    });
    let (recovery, stop) = maps.split_at(maps.iter().position(is_delete).expect("found just before"));
    assert_eq!(seen(recovery, false), keys, "the capture has missed nothing");
    assert_eq!(seen(stop, false), keys, "the capture has missed nothing");
    let at_once = [recovery, stop].map(most_unanswered);
    assert!(at_once.iter().all(|most| *most <= IN_TURN), "recovery, stop: {at_once:?} unanswered at once");
    let asked = [recovery, stop].map(|maps| maps.iter().filter(|map| !map.response).count());
    say(&format!(
        "{} mappings: added in {added:.1?}, listed in {listed_one_by_one:.1?} one by one and {listed_at_once:.1?} at once, \
         recovered in {recovered:.1?} by {} requests, taken back in {stopped:.1?} by {}; at most {} and {} were unanswered \
         at the same time",
        all.len(),
        asked[0],
        asked[1],
        at_once[0],
        at_once[1],
    ));
}

/// Whose requests, or responses, there are.
fn seen(maps: &[MapMessage], response: bool) -> BTreeSet<Key> {
    let of_kind = maps.iter().filter(|map| map.response == response);
    of_kind.map(|map| (map.protocol, map.internal_port)).collect()
}

/// Even ports are TCP's, odd ones UDP's.
fn key(port: u16) -> Key {
    (BOTH[usize::from(port % 2)], port)
}

/// What the provider forwards to the router, but for the mapping that tells the external address; where to.
#[track_caller]
fn ours(forwardings: Vec<Forwarding>) -> BTreeMap<Key, u16> {
    const DISCARD: u16 = 9;
    let mut all = BTreeMap::new();
    for forwarding in forwardings {
        if *forwarding.to.ip() == ROUTER_WAN && forwarding.to.port() != DISCARD {
            let before = all.insert((forwarding.protocol, forwarding.external_port), forwarding.to.port());
            assert_eq!(before, None, "{forwarding:?} is there twice");
        }
    }
    all
}

// ── A stop that keeps ──────────────────────────────────────────────────────────────────────────────────────────────

/// `[state] keep_on_stop`, for a router that comes back at once: what was mapped works while the daemon is down, and the next one
/// has it all (decision 16).
#[test]
fn what_is_kept_over_a_stop_works_meanwhile_and_is_there_after() {
    const FOREIGN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 21); // nobody
    const ONE_PEER: u16 = 7010;
    const ANOTHER_PEER: u16 = 7011;
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let provider = QuickProvider::start(&network, PCP_SERVER);
    let mut daemon = start_keeping(&subject, &network);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let mut callers =
        [Host::Lan1, Host::Lan2].map(|host| Caller::new(&ControlPoint { host, ..control_point.clone() }, 1));
    let _listeners = SOME.map(|(protocol, port, host)| listener(&network, host, protocol, port));
    let _peers = [ONE_PEER, ANOTHER_PEER].map(|port| listener(&network, Host::Lan1, TCP, port));
    for (protocol, port, host) in SOME {
        let caller = &mut callers[usize::from(host == Host::Lan2)];
        let lease = if protocol == TCP { 0 } else { 3600 };
        let internal = SocketAddrV4::new(lan_address(host), port);
        assert_eq!(caller.add(protocol, port, internal, lease, "kept"), Told::done(), "{port}");
    }
    for (port, peer) in [(ONE_PEER, INTERNET), (ANOTHER_PEER, FOREIGN)] {
        let internal = SocketAddrV4::new(LAN1, port);
        let told = callers[0].add_for(&peer.to_string(), TCP, port, internal, 3600, "kept");
        assert_eq!(told, Told::done(), "{peer}");
    }
    let works = || {
        for (protocol, port, host) in SOME {
            reaches(&network, protocol, port, &host.to_string());
        }
        reaches(&network, TCP, ONE_PEER, &Host::Lan1.to_string());
        reaches_nobody(&network, TCP, ANOTHER_PEER);
    };
    // All but the seconds that are left.
    let table = || {
        let mut table = subject::listed(&network)?;
        table.sort_by_key(|mapping| (mapping.protocol, mapping.external.port()));
        for mapping in &mut table {
            mapping.lease_left = mapping.lease_left.map(|_| 0);
        }
        Some(table)
    };
    let elements = || {
        let mut elements = subject::elements(&network)?;
        elements.sort_unstable();
        Some(elements)
    };
    works();
    let before = (table().expect("the daemon lives"), elements(), ours(provider.forwardings()));
    let keys: BTreeSet<Key> = before.0.iter().map(|m| (m.protocol, m.external.port())).collect();
    assert_eq!(keys.len(), SOME.len() + 2);
    assert_eq!(before.2.keys().copied().collect::<BTreeSet<_>>(), keys);

    let wire = Capture::start(&network, Host::Router, WAN_INTERFACE, "udp port 5351");
    let status = daemon.terminate(10 * SECOND);
    assert!(status.success(), "{status}");
    assert_eq!(table(), None, "nobody is there");
    assert_eq!((elements(), ours(provider.forwardings())), (before.1.clone(), before.2.clone()));
    works();

    // The next one, which will give it all back.
    let mut daemon = subject.start(&network, NAT, "service_wait = 0.1\n");
    eventually("the same mappings, confirmed by the provider", 15 * SECOND, || {
        assert_eq!(daemon.ended(), None, "the daemon lives");
        let maps: Vec<_> = wire.maps().into_iter().map(|(_, map)| map).collect();
        (table()? == before.0 && keys.is_subset(&seen(&maps, true))).then_some(())
    });
    assert_eq!((elements(), ours(provider.forwardings())), (before.1, before.2));
    works();
    let of_these = |map: &MapMessage| keys.contains(&(map.protocol, map.internal_port));
    let maps: Vec<_> = wire.maps().into_iter().map(|(_, map)| map).filter(of_these).collect();
    assert!(
        maps.iter().all(|map| !map.lifetime.is_zero() && map.result == 0),
        "no delete, no refusal: {maps:?}"
    );

    let status = daemon.terminate(30 * SECOND);
    assert!(status.success(), "{status}");
    assert_eq!((elements(), ours(provider.forwardings())), (None, BTreeMap::new()));
}

/// With `keep_on_stop`.
fn start_keeping(subject: &Subject, network: &Network) -> Process {
    let Subject::Portferry(program) = subject else { panic!("only an interworking function keeps mappings") };
    let usual = subject::configuration(network, NAT, "");
    let keeping = usual.replace("[state]\n", "[state]\nkeep_on_stop = true\n");
    assert_ne!(usual, keeping);
    let file = network.directory().join("keeping.toml");
    fs::create_dir_all(network.directory().join("state")).expect("the directory is ours");
    fs::write(&file, keeping).expect("the directory is ours");
    network.spawn(
        Host::Router,
        "portferry-keeping",
        program,
        ["run", "--config", &file.display().to_string()],
    )
}

// ── A full file system ─────────────────────────────────────────────────────────────────────────────────────────────

/// R-10, decision 16: what cannot be stored is no success, and is not left at the provider; what was there before goes on. The
/// daemon starts on a full file system, too, and once there is room everything is as ever.
#[test]
fn on_a_full_file_system_nothing_new_stands_and_nothing_old_falls() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let small = Small::mount(network.directory().join("state"));
    let provider = QuickProvider::start(&network, PCP_SERVER);
    let mut daemon = subject.start(&network, NAT, "service_wait = 0.1\n");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let mut caller = Caller::new(&control_point, 1);
    let add = |caller: &mut Caller, port| {
        let internal = SocketAddrV4::new(LAN1, port);
        caller.add(TCP, port, internal, 0, "kept")
    };
    let _listeners = [7001, 7002].map(|port| listener(&network, Host::Lan1, TCP, port));
    assert_eq!(add(&mut caller, 7001), Told::done());
    small.fill(true);
    // Small lines may still fit into what the last page has left.
    let full = (0..30).map(|n| add(&mut caller, 8000 + n)).find(|told| *told != Told::done());
    assert_eq!(full, Some(Told::Refused(501)));
    assert_eq!(add(&mut caller, 7002), Told::Refused(501));
    reaches(&network, TCP, 7001, &Host::Lan1.to_string());
    let key = |port| ours(provider.forwardings()).contains_key(&(TCP, port));
    eventually("what was not stored goes back", 5 * SECOND, || (!key(7002)).then_some(()));
    let cannot_be_written = || {
        let answer = subject::ask(&network, "status").expect("the daemon lives");
        answer.contains("store_error")
    };
    assert!(cannot_be_written());

    drop(daemon); // by SIGKILL
    let mut daemon = subject.start(&network, NAT, "service_wait = 0.1\n");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let mut caller = Caller::new(&control_point, 1);
    reaches(&network, TCP, 7001, &Host::Lan1.to_string());
    assert_eq!(add(&mut caller, 7002), Told::Refused(501), "{}", daemon.log());
    small.fill(false);
    // It is tried once a second, and by itself.
    eventually("room for a mapping", 3 * SECOND, || (add(&mut caller, 7002) == Told::done()).then_some(()));
    reaches(&network, TCP, 7002, &Host::Lan1.to_string());
    assert!(!cannot_be_written());

    drop(daemon); // by SIGKILL
    let mut daemon = subject.start(&network, NAT, "service_wait = 0.1\n");
    ready(&network, &mut daemon, Host::Lan1);
    for port in [7001, 7002] {
        reaches(&network, TCP, port, &Host::Lan1.to_string());
    }
}

// ── kill -9 ────────────────────────────────────────────────────────────────────────────────────────────────────────

/// How often a daemon is killed.
const ROUNDS: usize = 40;

/// What a control point asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Asked {
    internal: SocketAddrV4,
    description: String,
    /// Seconds; 0 for ever.
    lease: u32,
}

/// What may be true of an external port, as far as its owner can know: one possibility after an answer, several after a
/// request whose answer never came. `None`: there is no mapping.
type Possible = Vec<Option<Asked>>;

/// What one control point was told, kept where the daemon cannot reach it.
struct Journal {
    host: Host,
    ports: Vec<u16>,
    known: BTreeMap<Key, Possible>,
    /// Ports whose last success is younger than the last look at the provider.
    told: BTreeSet<Key>,
    /// How often it was told what: successes of adds, of refreshes and of deletes, 501, no answer.
    counts: [usize; 5],
    next: usize,
}

impl Journal {
    fn new(host: Host, first: u16) -> Self {
        let ports: Vec<u16> = (first..first + 5).collect();
        let known = ports.iter().map(|&port| (key(port), vec![None])).collect();
        Self { host, ports, known, told: BTreeSet::new(), counts: [0; 5], next: 0 }
    }

    /// Adds, refreshes and deletes until the daemon is killed.
    fn work(&mut self, caller: &mut Caller, seed: u64, killing: &AtomicBool, successes: &Sender<()>) {
        let mut dice = SeededEntropy::new(seed);
        loop {
            let port = self.ports[below(&mut dice, self.ports.len())];
            let key = key(port);
            let possible = self.known[&key].clone();
            let delete = possible.iter().any(Option::is_some) && below(&mut dice, 4) == 0;
            self.next += 1;
            let asked = (!delete).then(|| Asked {
                internal: SocketAddrV4::new(lan_address(self.host), port),
                description: format!("{}-{}-{}", self.host, self.ports[0], self.next),
                lease: [0, 3600, 7200][below(&mut dice, 3)],
            });
            let told = match &asked {
                Some(Asked { internal, description, lease }) => {
                    caller.add(key.0, port, *internal, *lease, description)
                }
                None => caller.delete(key.0, port),
            };
            match told {
                Told::Done(_) => {
                    let kind = if delete { 2 } else { usize::from(possible[0].is_some()) };
                    self.counts[kind] += 1;
                    self.known.insert(key, vec![asked]);
                    self.told.insert(key);
                    let _ = successes.send(()); // heard until it is enough
                }
                // No such mapping: right if there may be none.
                Told::Refused(714) if delete && possible.contains(&None) => {
                    self.known.insert(key, vec![None]);
                }
                // The provider did not answer in time; what it answers later may count.
                Told::Refused(501) => {
                    self.counts[3] += 1;
                    self.may_be(key, asked);
                }
                Told::Refused(code) => {
                    panic!("{key:?}: {asked:?} is refused with {code}; before: {possible:?}")
                }
                Told::Nothing(why) => {
                    let unasked = why.contains("refused"); // nobody listens
                    if !unasked {
                        self.counts[4] += 1;
                        self.may_be(key, asked);
                    }
                    if killing.load(Ordering::SeqCst) {
                        return;
                    }
                    assert!(unasked, "{key:?}: the daemon lives, and {why}");
                }
            }
        }
    }

    fn may_be(&mut self, key: Key, state: Option<Asked>) {
        let possible = self.known.get_mut(&key).expect("one of its ports");
        if !possible.contains(&state) {
            possible.push(state);
        }
    }

    /// Whether a line of the daemon's journal is of a request whose answer never came: a power cut may tear that one.
    fn is_unanswered(&self, line: &str) -> bool {
        self.known.iter().any(|(key, possible)| {
            // The first is what it was told, the others are what it asked for since.
            possible[1..].iter().any(|state| match state {
                Some(asked) => line.contains(&format!("\"{}\"", asked.description)),
                None => line.contains("remove") && line.contains(&format!("\"external_port\":{}}}", key.1)),
            })
        })
    }

    /// Compares with the daemon's table; what was not known is known now. Takes what it has found out of `table`, and notes
    /// in `stray` what the provider may still hold though nobody here knows of it.
    fn check(&mut self, table: &mut BTreeMap<Key, Listed>, stray: &mut BTreeSet<Key>, what: &str) {
        for (key, possible) in &mut self.known {
            let found = table.remove(key);
            let fits = |state: &&Option<Asked>| match (state, &found) {
                (None, None) => true,
                (Some(asked), Some(found)) => is(asked, found),
                _ => false,
            };
            let Some(state) = possible.iter().find(fits).cloned() else {
                panic!("{what}: {key:?} is {found:?}; its owner was told that it is one of {possible:?}");
            };
            if self.told.contains(key) || state.is_some() {
                stray.remove(key);
            }
            if possible.len() > 1 && state.is_none() {
                stray.insert(*key);
            }
            *possible = vec![state];
        }
        self.told.clear();
    }
}

/// Whether a mapping of the table is what was asked for.
fn is(asked: &Asked, found: &Listed) -> bool {
    let lease = match found.lease_left {
        None => asked.lease == 0,
        Some(left) => left <= asked.lease.into() && left + 600 > asked.lease.into(),
    };
    lease && asked.internal == found.internal && asked.description == found.description
}

fn below(dice: &mut SeededEntropy, limit: usize) -> usize {
    let mut bytes = [0; 8];
    dice.fill(&mut bytes);
    usize::try_from(u64::from_le_bytes(bytes) % u64::try_from(limit).expect("small")).expect("below a usize")
}

/// What a power cut makes of the daemon's journal: the line that was being written is torn.
fn tear(network: &Network, dice: &mut SeededEntropy, journals: &[Journal]) {
    let file = network.directory().join("state").join("mappings.journal");
    let content = fs::read_to_string(&file).expect("the daemon has written it");
    let last = content.lines().last().unwrap_or_default();
    assert!(last.len() > 10, "the daemon's journal ends with a line: {content:?}");
    let cut = 1 + below(dice, last.len() - 2);
    if below(dice, 2) == 0 {
        // The power went while the file was written anew: a part of that lies beside it, and counts for nothing.
        let beside = file.with_file_name("mappings.journal.new");
        fs::write(beside, &content.as_bytes()[..below(dice, content.len())]).expect("the disk has room");
    }
    if journals.iter().any(|journal| journal.is_unanswered(last)) {
        // Nobody was told of it, so it need not have reached the disk.
        let end = content.len() - 1 - cut;
        let file = OpenOptions::new().write(true).open(file).expect("it was read");
        file.set_len(end.try_into().expect("small")).expect("it can be cut");
    } else {
        // All that is there was told. The next line was on its way; a disk may give zeros for what it did not get.
        let zeros = vec![0; [0, 512][below(dice, 2)]];
        let mut file = OpenOptions::new().append(true).open(file).expect("it was read");
        file.write_all(&[&last.as_bytes()[..cut], &zeros].concat()).expect("the disk has room");
    }
}

#[test]
fn a_daemon_that_is_killed_at_any_moment_keeps_what_it_said() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let provider = Provider::start(&network, Options::default());
    kill_again_and_again(&subject, &network, &|| provider.forwardings(), "miniupnpd");
}

/// The same with a server that refuses whoever comes with another nonce than before (RFC 6887 §11.3; R-4): each mapping has to be
/// asked for, and given back, with the nonce of a daemon that is dead.
#[test]
fn a_daemon_that_is_killed_at_any_moment_is_known_to_a_strict_provider() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let provider = QuickProvider::start(&network, PCP_SERVER);
    let wire = Capture::start(&network, Host::Router, WAN_INTERFACE, "udp port 5351");
    kill_again_and_again(&subject, &network, &|| provider.forwardings(), "strict provider");
    let answers: Vec<_> = wire.maps().into_iter().map(|(_, map)| map).filter(|map| map.response).collect();
    assert!(answers.len() > ROUNDS, "the capture has missed most: {}", answers.len());
    let refused: Vec<_> = answers.iter().filter(|map| map.result != 0).collect();
    assert!(refused.is_empty(), "the provider refuses {refused:?}");
}

fn kill_again_and_again(
    subject: &Subject,
    network: &Network,
    forwardings: &dyn Fn() -> Vec<Forwarding>,
    provider: &str,
) {
    const SETTINGS: &str = "service_wait = 0.1\n";
    let seed = match std::env::var("PF_SEED") {
        Ok(seed) => seed.parse().expect("PF_SEED is a number"),
        Err(_) => u64::from(now().subsec_nanos()),
    };
    say(&format!("{provider}, killed at random moments: PF_SEED={seed}"));
    let mut dice = SeededEntropy::new(seed);
    let start = || subject.start(network, NAT, SETTINGS);
    let mut daemon = start();
    let control_point = ready(network, &mut daemon, Host::Lan1);
    let owners = [(Host::Lan1, 30_000), (Host::Lan2, 31_000), (Host::Lan1, 32_000), (Host::Lan2, 33_000)];
    let mut journals = owners.map(|(host, first)| Journal::new(host, first));
    let mut callers = owners.map(|(host, _)| Caller::new(&ControlPoint { host, ..control_point.clone() }, 1));
    let mut stray = BTreeSet::new();
    let (mut torn, mut settled) = (0, Vec::new());

    for round in 0..ROUNDS {
        let what = format!("{provider}, PF_SEED={seed}, round {round}");
        // In some rounds the daemon writes its journal anew while it runs.
        let wanted = if round % 20 == 19 { 550 } else { 0 } + below(&mut dice, 20);
        let moment = Duration::from_micros(below(&mut dice, 5_000).try_into().expect("small"));
        let killing = AtomicBool::new(false);
        let (successes, hear) = mpsc::channel();
        thread::scope(|scope| {
            for (journal, caller) in journals.iter_mut().zip(&mut callers) {
                let seed = u64::try_from(below(&mut dice, usize::MAX)).expect("64 bits at most");
                let (killing, successes) = (&killing, successes.clone());
                scope.spawn(move || journal.work(caller, seed, killing, &successes));
            }
            let heard = (0..wanted).take_while(|_| hear.recv_timeout(30 * SECOND).is_ok()).count();
            thread::sleep(moment); // the moment is the point, not a wait for something
            killing.store(true, Ordering::SeqCst);
            drop(daemon); // SIGKILL
            assert_eq!(heard, wanted, "{what}: the daemon serves no more");
        });

        if below(&mut dice, 3) == 0 {
            tear(network, &mut dice, &journals);
            torn += 1;
        }
        if below(&mut dice, 4) == 0 {
            let starting = start(); // and again while it starts
            thread::sleep(Duration::from_millis(below(&mut dice, 150).try_into().expect("small")));
            drop(starting);
        }
        daemon = start();
        let began = Instant::now();
        let list = eventually("the table", 15 * SECOND, || {
            assert_eq!(daemon.ended(), None, "{what}: the daemon lives");
            subject::listed(network)
        });
        let mut table = BTreeMap::new();
        for mapping in list {
            let before = table.insert((mapping.protocol, mapping.external.port()), mapping);
            assert_eq!(before, None, "{what}: there twice");
        }
        for journal in &mut journals {
            journal.check(&mut table, &mut stray, &what);
        }
        assert_eq!(table, BTreeMap::new(), "{what}: nobody asked for these");
        agree(network, forwardings, &journals, &stray, &what);
        settled.push(began.elapsed());
    }

    let status = daemon.terminate(30 * SECOND);
    assert!(status.success(), "{status}");
    assert_eq!(subject::elements(network), None, "nothing is left in the kernel");
    let left: BTreeSet<Key> = ours(forwardings()).into_keys().collect();
    assert!(left.is_subset(&stray), "left at the provider: {left:?}, of which unknown: {stray:?}");
    let count = |kind: usize| journals.iter().map(|journal| journal.counts[kind]).sum::<usize>();
    say(&format!(
        "{provider}, killed {ROUNDS} times: told of {} new mappings, {} refreshed, {} deleted; {} times 501, {} requests unanswered, {torn} \
         torn files; everything agreed again after {:.1?} at most; unknown at the provider in the end: {}",
        count(0),
        count(1),
        count(2),
        count(3),
        count(4),
        settled.iter().max().expect("there were rounds"),
        left.len(),
    ));
}

/// The provider, the router's own NAT and the table tell the same story, soon.
fn agree(
    network: &Network,
    forwardings: &dyn Fn() -> Vec<Forwarding>,
    journals: &[Journal],
    stray: &BTreeSet<Key>,
    what: &str,
) {
    let expected: BTreeMap<Key, SocketAddrV4> = journals
        .iter()
        .flat_map(|journal| &journal.known)
        .filter_map(|(key, possible)| Some((*key, possible[0].as_ref()?.internal)))
        .collect();
    let mut last = String::new();
    let agreed = lab::wait::poll(20 * SECOND, || {
        let table = subject::listed(network).unwrap_or_default();
        let confirmed = table.iter().filter(|mapping| mapping.state == "active");
        let confirmed: BTreeMap<Key, SocketAddrV4> =
            confirmed.map(|m| ((m.protocol, m.external.port()), m.internal)).collect();
        let mut elements = subject::elements(network).unwrap_or_default();
        let mut wanted: Vec<_> = table
            .iter()
            .map(|mapping| (mapping.protocol, mapping.nat_port.expect("with a NAT"), mapping.internal))
            .collect();
        elements.sort_unstable();
        wanted.sort_unstable();
        let upstream = ours(forwardings());
        let asked_for: BTreeMap<Key, u16> = table
            .iter()
            .map(|m| ((m.protocol, m.external.port()), m.nat_port.expect("with a NAT")))
            .collect();
        let known = upstream.iter().filter(|(key, _)| asked_for.contains_key(*key) || !stray.contains(*key));
        let upstream_agrees = known.map(|(key, port)| (*key, *port)).collect::<BTreeMap<_, _>>() == asked_for;
        let same =
            table.len() == expected.len() && confirmed == expected && elements == wanted && upstream_agrees;
        if !same {
            last = format!(
                "expected {expected:?}\ntable {table:?}\nnftables {elements:?}\nprovider {upstream:?}"
            );
        }
        same.then_some(())
    });
    assert!(agreed.is_some(), "{what}: no agreement; stray {stray:?}\n{last}");
}
