//! Host names for InternalClient and RemoteHost: looked up beside the loop, and a remote host's again with every renewal.

use super::*;
use crate::limits::Rate;

const PEER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const MOVED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

impl Lab {
    /// The names that are being looked up turn out to have these addresses.
    fn resolve(&mut self, addresses: &[Ipv4Addr]) -> Vec<String> {
        let mut names = Vec::new();
        for (lookup, name) in std::mem::take(&mut self.lookups) {
            names.push(name);
            self.event(Event::Resolved { lookup, addresses: addresses.to_vec() });
        }
        names
    }

    fn start_add_by_name(&mut self, client: &str, remote: &str) -> RequestId {
        self.start_add_by_name_of(ALICE, client, remote)
    }

    fn start_add_by_name_of(&mut self, host: Ipv4Addr, client: &str, remote: &str) -> RequestId {
        let mut args = port(8080).args(host);
        args[0].1 = remote.into();
        args[4].1 = client.into();
        self.start(host, 2, "AddPortMapping", &borrowed(&args))
    }

    pub(super) fn filters(&mut self) -> Vec<Ipv6Addr> {
        let mapping = self.provider().mappings().find(|m| m.external.port() == 8080).expect("it is there");
        mapping.filters.iter().map(|filter| filter.remote_addr).collect()
    }

    fn way_in(&self) -> Vec<Option<Ipv4Addr>> {
        self.rules.iter().map(|rule| rule.remote_peer).collect()
    }
}

/// Iwf.md 2.1, security policy: a name for the internal client must come out as the requester.
#[test]
fn the_internal_client_by_name() {
    for nat in BOTH {
        for (addresses, heard) in [
            (&[ALICE][..], done()),
            (&[BOB, ALICE], done()),
            (&[BOB], Err(606)),
            (&[Ipv4Addr::LOCALHOST], Err(606)),
            (&[], Err(402)),
        ] {
            let mut lab = Lab::up(nat);
            let id = lab.start_add_by_name("Laptop", "");
            assert_eq!((lab.heard(id), lab.sent()), (None, vec![]), "nobody else waits for that");
            assert_eq!(lab.add(BOB, 1, port(9090)), done());
            assert_eq!(lab.resolve(addresses), ["laptop"]);
            assert_eq!(lab.heard(id), Some(heard), "{addresses:?}");
        }
    }
}

/// Iwf.md 2.4, T-10: a name for the remote host is looked up before anything is sent; it is FILTER and NAT1's rule, and
/// the name that control points find the mapping by.
#[test]
fn the_remote_host_by_name() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        let id = lab.start_add_by_name("192.168.1.10", "peer.example.net");
        assert_eq!(lab.sent(), []);
        assert_eq!(lab.resolve(&[PEER]), ["peer.example.net"]);
        assert_eq!(lab.heard(id), Some(done()), "{nat:?}");
        assert_eq!(lab.filters(), [PEER.to_ipv6_mapped()]);
        if nat == NatMode::Own {
            assert_eq!(lab.way_in(), [Some(PEER)]);
        }
        let entry = |lab: &mut Lab, index: &str| {
            lab.call(BOB, 2, "GetGenericPortMappingEntry", &[("NewPortMappingIndex", index)])
        };
        assert_eq!(entry(&mut lab, "0").unwrap()[0], "peer.example.net");
        let delete = |lab: &mut Lab, host: &str| {
            let mut args = key(8080);
            args[0].1 = host.into();
            lab.call(ALICE, 2, "DeletePortMapping", &borrowed(&args))
        };
        assert_eq!(delete(&mut lab, "other.example.net"), Err(714));
        assert_eq!(delete(&mut lab, "Peer.example.net"), done(), "without another look-up");
        assert_eq!((lab.upstream(), lab.rules.len()), (vec![], 0));
        // A name that nobody knows, and one that is no host of the Internet (K-7).
        for addresses in [&[][..], &[Ipv4Addr::LOCALHOST]] {
            let id = lab.start_add_by_name("", "nobody.example.net");
            lab.resolve(addresses);
            assert_eq!(lab.heard(id), Some(Err(402)));
        }
    }
}

/// Iwf.md 2.4: looked up again when the mapping is renewed; the filter of before is dropped, and so is its way in.
#[test]
fn a_remote_host_that_moves() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        lab.provider().config_mut().longest = 2000;
        lab.start_add_by_name("", "peer.example.net");
        lab.resolve(&[PEER]);
        lab.pass(100);
        assert_eq!(lab.lookups, [], "not all the time");
        lab.pass(2200);
        assert!(lab.resolve(&[MOVED, PEER]).contains(&"peer.example.net".to_owned()), "{nat:?}");
        assert_eq!(lab.filters(), [PEER.to_ipv6_mapped()], "it is still where it was");
        lab.pass(1000);
        lab.effects.clear();
        lab.start_add_by_name("", "peer.example.net"); // its owner asks again
        lab.resolve(&[MOVED]);
        assert_eq!(lab.filters(), [MOVED.to_ipv6_mapped()]);
        assert!(lab.notices().iter().any(|notice| matches!(notice, Notice::Readmitted(_))));
        assert_eq!(lab.store[&(Protocol::TCP, 8080)].remote_peer, Some(MOVED));
        if nat == NatMode::Own {
            assert_eq!(lab.way_in(), [Some(MOVED)]);
        }
        lab.pass(2200);
        lab.resolve(&[PEER]);
        lab.pass(1);
        assert_eq!(lab.filters(), [PEER.to_ipv6_mapped()], "found out by itself");
        // Neither an answer that is empty nor one that comes too late changes anything.
        lab.start_add_by_name("", "peer.example.net");
        lab.resolve(&[]);
        assert_eq!(lab.filters(), [PEER.to_ipv6_mapped()]);
        let mut args = key(8080);
        args[0].1 = "peer.example.net".into();
        assert_eq!(lab.call(ALICE, 2, "DeletePortMapping", &borrowed(&args)), done());
        assert_eq!(lab.rules, []);
    }
}

/// Decision 1: who waits for a slow look-up hears 501 in time, and what comes later makes no mapping.
#[test]
fn a_slow_lookup() {
    let mut lab = Lab::up(NatMode::Own);
    let id = lab.start_add_by_name("", "peer.example.net");
    lab.pass(4);
    assert_eq!(lab.heard(id), Some(Err(501)));
    lab.resolve(&[PEER]);
    assert_eq!((lab.sent(), lab.mapped()), (vec![], vec![]));
    assert!(lab.gateway.is_idle());
    // One host cannot keep the resolver busy.
    let ids: Vec<RequestId> = (0..6).map(|_| lab.start_add_by_name("", "slow.example.net")).collect();
    let refused: Vec<bool> = ids.iter().map(|&id| lab.heard(id) == Some(Err(501))).collect();
    assert_eq!(refused, [false, false, false, false, true, true]);
}

/// Decision 27: a name that is somewhere else each time costs the provider and the kernel no more than what a host may have in exchanges.
#[test]
fn a_remote_host_that_never_stays() {
    for nat in BOTH {
        let exchanges = Rate { per_second: 10, burst: 5 };
        let policy = Policy { exchanges, ..Policy::default() };
        let mut lab = Lab::up_with(Config { policy, ..config(nat) });
        lab.start_add_by_name("", "peer.example.net");
        lab.resolve(&[PEER]);
        lab.pass(10);
        lab.effects.clear();
        for n in 0..100 {
            let id = lab.start_add_by_name("", "peer.example.net");
            lab.resolve(&[if n % 2 == 0 { MOVED } else { PEER }]);
            assert_eq!(lab.heard(id), Some(done()), "{nat:?}");
        }
        let is_change = |(_, effect): &&(u64, Effect)| matches!(effect, Effect::Nat { .. });
        let changes = lab.effects.iter().filter(is_change).count();
        let sent = lab.sent().len();
        assert!(sent <= 5 && changes <= 5, "{nat:?}: {sent}, {changes}");
        lab.pass(10);
        lab.start_add_by_name("", "peer.example.net");
        lab.resolve(&[MOVED]);
        lab.pass(10);
        assert_eq!(lab.filters(), [MOVED.to_ipv6_mapped()], "{nat:?}: then it is followed");
    }
}

/// 4 of a host and 64 in all wait for the resolver; the next is told at once, and is served when there is room again.
#[test]
fn many_lookups() {
    let mut lab = Lab::up(NatMode::Own);
    let host = |number: u8| Ipv4Addr::new(192, 168, 1, 20 + number);
    let ask = |lab: &mut Lab, host| lab.start_add_by_name_of(host, "", "slow.example.net");
    for number in 0..16 {
        let ids: Vec<RequestId> = (0..5).map(|_| ask(&mut lab, host(number))).collect();
        let refused: Vec<bool> = ids.iter().map(|&id| lab.heard(id) == Some(Err(501))).collect();
        assert_eq!(refused, [false, false, false, false, true], "{number}");
    }
    let id = ask(&mut lab, host(16));
    assert_eq!(lab.heard(id), Some(Err(501)));
    assert_eq!(lab.resolve(&[]).len(), 64);
    let id = ask(&mut lab, host(16));
    assert_eq!(lab.heard(id), None);
}
