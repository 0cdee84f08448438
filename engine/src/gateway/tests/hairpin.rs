//! Decision 26: by which external address and port LAN hosts come to a mapping behind the router's own NAT. Every test of the gateway
//! checks that it is what the mapping has.

use super::changes::short_of_time;
use super::*;
use crate::table::Health;

impl Lab {
    /// When the kernel has said what became of every change.
    pub(super) fn check_hairpins(&self) {
        if !self.gateway.nat_tickets.is_empty() || self.gateway.config.nat == NatMode::None {
            return;
        }
        for mapping in self.gateway.table.iter().filter(|mapping| mapping.health != Health::Deleting) {
            let place = (mapping.protocol, mapping.nat_port.expect("it is of the router's own NAT"));
            let known = Some(mapping.external).filter(|external| !external.ip().is_unspecified());
            let led = self.hairpins.get(&place).copied();
            assert!(led == known || self.gateway.unmoved.contains(&mapping.flow), "{mapping:?} by {led:?}");
        }
    }

    /// Port of the WAN address, and by what LAN hosts come to it.
    fn led(&self) -> Vec<(u16, SocketAddrV4)> {
        self.hairpins.iter().map(|(&(_, port), &external)| (port, external)).collect()
    }

    /// What the kernel was told since this was last asked.
    fn nat_told(&mut self) -> Vec<NatChange> {
        let seen = std::mem::take(&mut self.effects).into_iter();
        seen.filter_map(|(_, effect)| match effect {
            Effect::Nat { change, .. } => Some(change),
            _ => None,
        })
        .collect()
    }
}

/// RFC 7648 §3.1: by the outermost address and port, from the first to the last, in one change each.
#[test]
fn a_mapping_is_reached_by_what_the_provider_gave() {
    let mut lab = Lab::up(NatMode::Own);
    lab.nat_told();
    assert_eq!(lab.add(ALICE, 1, port(8080).to(80 + 8000)), done());
    let rule = tcp(8080, at(ALICE, 8080));
    let reserve = NatChange::Reserve { protocol: Protocol::TCP, port: 8080, addr: W };
    let external = Some(at(E, 8080));
    assert_eq!(lab.nat_told(), [reserve, NatChange::Install { rule, external }]);
    let new = tcp(8080, at(ALICE, 9090));
    assert_eq!(lab.add(ALICE, 1, port(8080).to(9090)), done());
    assert_eq!(lab.nat_told(), [NatChange::Replace { old: rule, new, external }]);
    // The same again changes nothing.
    assert_eq!(lab.add(ALICE, 1, port(8080).to(9090)), done());
    assert_eq!(lab.nat_told(), []);
    assert_eq!(lab.delete(ALICE, 1, 8080), done());
    assert_eq!((lab.nat_told(), lab.led()), (vec![NatChange::Remove(new)], vec![]));
}

#[test]
fn the_provider_moves_a_mapping() {
    let other = Ipv4Addr::new(203, 0, 113, 9);
    let mut lab = short_of_time(NatMode::Own);
    assert_eq!(lab.add(ALICE, 2, Add { lease: 86_400, ..any(8080) }), Ok(vec!["8080".to_owned()]));
    lab.nat_told();
    lab.script.push_back(Reaction::Grant(E, 7000));
    lab.pass(250);
    let moved =
        |addr| NatChange::Move { protocol: Protocol::TCP, port: 8080, external: Some(at(addr, 7000)) };
    assert_eq!((lab.nat_told(), lab.led()), (vec![moved(E)], vec![(8080, at(E, 7000))]));
    lab.script.push_back(Reaction::Grant(other, 7000));
    lab.pass(2400);
    assert_eq!((lab.nat_told().first(), lab.led()), (Some(&moved(other)), vec![(8080, at(other, 7000))]));
}

/// The answer to a repetition tells another port while the kernel is at work for the first: it hears of that, too.
#[test]
fn a_grant_that_changes_while_the_kernel_is_at_work() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 2, any(8080)), Ok(vec!["8080".to_owned()]));
    lab.slow_nat = true;
    let id = lab.start_add(BOB, 2, any(8080));
    lab.script.extend([Reaction::Grant(E, 7000)]);
    lab.release_nat();
    let (_, sent) = lab.sent().pop().unwrap();
    let map = MapData { external_port: 7001, external_addr: E.to_ipv6_mapped(), ..map_of(&sent) };
    let epoch = u32::try_from(lab.now / 1000).unwrap();
    let again = Response {
        result: ResultCode::SUCCESS,
        lifetime: 3600,
        epoch,
        body: Body::Map(map),
        options: vec![],
    };
    lab.event(Event::Uplink { from: server(), bytes: &again.to_bytes() });
    lab.release_nat();
    lab.release_nat();
    lab.slow_nat = false;
    let external =
        lab.gateway.mappings(lab.instant()).find(|m| m.internal == at(BOB, 8080)).unwrap().external;
    assert_eq!(lab.heard(id), Some(Ok(vec![external.port().to_string()])));
    assert!(lab.led().iter().any(|&(_, led)| led == external), "{:?}", lab.led());
}

/// The kernel that would not is asked again; it is told once.
#[test]
fn a_move_that_the_kernel_refused() {
    let mut lab = short_of_time(NatMode::Own);
    assert_eq!(lab.add(ALICE, 2, Add { lease: 86_400, ..any(8080) }), Ok(vec!["8080".to_owned()]));
    lab.broken = true;
    lab.script.push_back(Reaction::Grant(E, 7000));
    lab.pass(250);
    assert_eq!((lab.led(), lab.gateway.is_idle()), (vec![(8080, at(E, 8080))], false));
    lab.broken = false;
    lab.pass(11);
    assert_eq!((lab.led(), lab.gateway.is_idle()), (vec![(8080, at(E, 7000))], true));
    assert_eq!(lab.notices().iter().filter(|told| matches!(told, Notice::NatFailed(_))).count(), 1);
    // Nor is one asked for that has gone meanwhile.
    lab.broken = true;
    lab.script.push_back(Reaction::Grant(E, 7001));
    lab.pass(2400);
    lab.broken = false;
    assert_eq!(lab.delete(ALICE, 2, 7001), done());
    assert_eq!((lab.led(), lab.gateway.is_idle()), (vec![], true));
}

/// A crash, and a mapping that only this router knows: by its WAN address alone, until the provider has it.
#[test]
fn from_the_start_and_from_the_provider_on() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    lab.crash(config(NatMode::Own), 77, 1000);
    assert_eq!(lab.led(), [(8080, at(E, 8080))], "before anybody is asked");

    let mut lab = Lab::up(NatMode::Own);
    let local = Config { when_unreachable: WhenUnreachable::Local, ..config(NatMode::Own) };
    lab.event(Event::Reconfigure(Box::new(local)));
    lab.silent = true;
    let id = lab.start_add(ALICE, 2, port(8080));
    lab.pass(5);
    assert_eq!(lab.heard(id), Some(done()));
    assert_eq!((lab.rules.len(), lab.led()), (1, vec![]));
    lab.silent = false;
    lab.pass(2000);
    assert_eq!(lab.led(), [(8080, at(E, 8080))]);
}

/// Several to one port of a host: the kernel hears of them in the order in which they were made, also after a crash, and whatever was
/// asked for last; in the order of the store where that does not tell.
#[test]
fn a_crash_keeps_the_order() {
    for tells in [true, false] {
        let mut lab = Lab::up(NatMode::Own);
        for external in [8081, 8080] {
            assert_eq!(lab.add(ALICE, 2, port(external).to(8080)), done());
        }
        let rules = lab.rules.clone();
        let mut newest_first: Vec<_> =
            [8080, 8081].map(|port| lab.store[&(Protocol::TCP, port)].clone()).into();
        if tells {
            newest_first.reverse(); // the first was asked for again
        } else {
            newest_first.iter_mut().for_each(|stored| stored.made = 0);
        }
        lab.gateway = Gateway::new(config(NatMode::Own), Box::new(SeededEntropy::new(7)));
        lab.follower = changes::Follower::default();
        lab.rules.clear();
        lab.hairpins.clear();
        lab.event(Event::Restore { mappings: newest_first, probe: None, filtered: vec![] });
        assert_eq!(lab.rules, rules);
        // Those that are made from now on are younger.
        assert_eq!(lab.gateway.made, if tells { 2 } else { 0 });
    }
}
