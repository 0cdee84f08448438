//! Decision 27 at work, protocol by protocol: rules, ports that are never open, the owner's consent, rates; what is counted, and what
//! becomes of what stands.

mod consent;
mod one_host;
mod rate;
mod reload;
mod unknown;

use super::lan_server::{Map, map};
use super::peer::peer;
use super::pinholes::{CAROL, DAVE, hole, lan6, map6, wan6};
use super::*;
use crate::limits::Rate;
use crate::notice::Level;
use crate::policy::{ByDefault, Counted, HardwareAddress, Known, Verb};

const DENY_ALL: &str = "deny 0-65535 0.0.0.0/0 0-65535";
const OK: ResultCode = ResultCode::SUCCESS;
/// A third host.
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 12);
const NOT_AUTHORIZED: ResultCode = ResultCode::NOT_AUTHORIZED;

fn with_rules(rules: &[&str]) -> Config {
    let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    Config { policy: Policy { rules, ..Policy::default() }, ..config(NatMode::Own) }
}

fn asking() -> Config {
    Config { policy: Policy { default: ByDefault::Ask, ..Policy::default() }, ..config(NatMode::Own) }
}

/// A gateway at work on a network with IPv6, whose provider has no firewall.
fn up(config: Config) -> Lab {
    let mut lab = Lab::new(config);
    lab.event(Event::Lan(lan6()));
    lab.event(Event::Wan(wan6()));
    lab.run(10_000);
    lab.effects.clear();
    lab
}

fn card(last: u8) -> HardwareAddress {
    HardwareAddress([2, 0, 0, 0, 0, last])
}

impl Lab {
    /// The neighbour table shows the host with this network card.
    pub(super) fn is_known(&mut self, host: impl Into<IpAddr>, last: u8) {
        self.gateway.know(host.into(), Known { also: Vec::new(), hardware: Some(card(last)) });
    }

    /// The owner of the router decides.
    fn decide(&mut self, device: Device, verb: Verb) {
        let device = self.gateway.resolve_device(device);
        self.event(Event::Consent { device, verb, addresses: Vec::new() });
    }

    /// How often policy has refused for which reason.
    fn refused(&self) -> Vec<(String, u64)> {
        let all = self.status().policy.refused.into_iter();
        all.map(|one| (one.what.to_string(), one.times)).collect()
    }

    fn waiting(&self) -> Vec<Device> {
        self.gateway.consents(self.instant()).waiting.iter().map(|one| one.of.device).collect()
    }
}

/// One list of rules for all protocols; what it denies costs the provider nothing, and is counted with its rule.
#[test]
fn one_policy_for_every_protocol() {
    let rules = [
        "allow 8080 192.168.1.10 8080",
        "allow 443 192.168.1.10 443 tcp",
        "allow 22 2001:db8:1::10 22",
        DENY_ALL,
    ];
    let mut lab = up(with_rules(&rules));
    assert_eq!(lab.add(BOB, 1, port(8080)), Err(718));
    assert_eq!(lab.add(BOB, 2, port(8080)), Err(606));
    assert_eq!(lab.add(BOB, 2, any(8080)), Err(606));
    assert_eq!(lab.add(ALICE, 2, port(8081)), Err(606));
    assert_eq!(lab.map(BOB, &map(8080)).0, NOT_AUTHORIZED);
    assert_eq!(lab.nat_pmp_map(BOB, 8080, 8080, 3600).0, 2);
    assert_eq!(lab.open(CAROL, &hole(8080)), Err(606));
    assert_eq!(lab.map6(CAROL, &map6(8080)).0, NOT_AUTHORIZED);
    assert_eq!(lab.map6(DAVE, &map6(22)).0, NOT_AUTHORIZED);
    assert_eq!((lab.sent(), lab.mapped(), lab.rules.len()), (vec![], vec![], 0));
    assert_eq!(lab.refused(), [(format!("by the rule \"{DENY_ALL}\""), 9)]);
    let last = lab.status().policy.refused.remove(0);
    assert_eq!((last.last_by, last.last), (IpAddr::V6(DAVE), Duration::ZERO));
    // What is allowed is, also below 1024.
    lab.script.push_back(Reaction::Grant(E, 443)); // by itself it gives none below 1024
    assert_eq!(lab.add(ALICE, 1, port(443)), done());
    assert_eq!(lab.map(ALICE, &map(8080)), (OK, 3600, 8080));
    assert_eq!(lab.map6(CAROL, &map6(22)).0, OK);
    assert!(lab.open(CAROL, &hole(22)).is_ok());
    assert_eq!(lab.mapped(), [(443, at(ALICE, 443)), (8080, at(ALICE, 8080))]);
    lab.agrees();
}

/// Ports that are never to be open, by every protocol, outside and inside. To PCP and NAT-PMP a suggestion that cannot be met is none.
#[test]
fn ports_that_are_never_open() {
    let mut lab = up(config(NatMode::Own));
    assert_eq!(lab.add(ALICE, 1, port(3389)), Err(718));
    assert_eq!(lab.add(ALICE, 2, port(8080).to(3389)), Err(606));
    assert_eq!(lab.add(ALICE, 2, any(3389).to(8080)), Err(606));
    assert_eq!(lab.map(ALICE, &Map { external: 8080, ..map(3389) }).0, NOT_AUTHORIZED);
    assert_eq!(lab.nat_pmp_map(ALICE, 3389, 8080, 3600).0, 2);
    assert_eq!(lab.open(CAROL, &hole(3389)), Err(606));
    assert_eq!(lab.map6(CAROL, &map6(3389)).0, NOT_AUTHORIZED);
    assert_eq!(lab.refused(), [("ports of policy.never".to_owned(), 7)]);
    let insists = Map { external: 3389, options: vec![PcpOption::PreferFailure], ..map(8080) };
    assert_eq!(lab.map(ALICE, &insists).0, ResultCode::CANNOT_PROVIDE_EXTERNAL, "another port is to be had");
    assert_eq!(lab.refused(), [("ports of policy.never".to_owned(), 8)]);
    assert_eq!((lab.sent(), lab.mapped()), (vec![], vec![]));
    let (result, _, external) = lab.map(ALICE, &Map { external: 3389, ..map(8080) });
    assert!(result == OK && external != 3389, "{external}");
    let (result, _, external) = lab.nat_pmp_map(BOB, 8080, 3389, 3600);
    assert!(result == 0 && external != 3389, "{external}");
}

/// What a client hears that asks for port 8080, or any.
type Ask = fn(&mut Lab) -> u16;

/// A port that nobody asked for: the provider's choice is looked at before anything is opened, and goes back.
#[test]
fn a_granted_port_that_policy_denies_goes_back() {
    let no_such = ["deny 6000-6999 0.0.0.0/0 0-65535"];
    let by_igd: Ask = |lab| lab.add(ALICE, 2, any(8080)).unwrap_err();
    let by_pcp: Ask = |lab| lab.map(ALICE, &Map { external: 0, ..map(8080) }).0.0.into();
    let by_nat_pmp: Ask = |lab| lab.nat_pmp_map(ALICE, 8080, 0, 3600).0;
    for (what, ask, refused) in [("IGD", by_igd, 606), ("PCP", by_pcp, 2), ("NAT-PMP", by_nat_pmp, 2)] {
        for nat in BOTH {
            let mut lab = Lab::up_with(Config { nat, ..with_rules(&no_such) });
            let ports = lab.gateway.nat_ports_in_use();
            lab.script.push_back(Reaction::Grant(E, 6500));
            assert_eq!(ask(&mut lab), refused, "{what} {nat:?}");
            assert_eq!((lab.mapped(), lab.rules.len(), lab.gateway.nat_ports_in_use()), (vec![], 0, ports));
            let (_, last) = lab.sent().pop().unwrap();
            assert_eq!(last.lifetime, 0, "{what} {nat:?}: it is given back");
            assert_eq!(lab.refused(), [("by the rule \"deny 6000-6999 0.0.0.0/0 0-65535\"".to_owned(), 1)]);
        }
    }
    // Nor does one come by being moved there later.
    let mut lab = Lab::up_with(with_rules(&no_such));
    lab.script.push_back(Reaction::GrantFor(600, E, 8080));
    assert_eq!(lab.add(ALICE, 2, any(8080)), Ok(vec!["8080".into()]));
    lab.script.extend([Reaction::GrantFor(600, E, 6500); 4]);
    lab.pass(3500);
    assert!(lab.mapped().iter().all(|(external, _)| *external != 6500), "{:?}", lab.mapped());
    assert!(lab.notices().iter().any(|notice| matches!(notice, Notice::Removed(_, Cause::Policy))));
}

/// A rule leaves few ports, and any will do: the request goes out, for there are some.
#[test]
fn any_port_where_there_are_few() {
    let mut lab = Lab::up_with(with_rules(&["allow 7000-7100 192.168.1.0/24 1024-65535", DENY_ALL]));
    lab.script.push_back(Reaction::Grant(E, 7050));
    assert_eq!(lab.map(ALICE, &Map { external: 8080, ..map(8080) }), (OK, 3600, 7050));
    assert_eq!(map_of(&lab.sent()[0].1).external_port, 0, "its wish is none");
    assert_eq!(lab.add(BOB, 2, any(8081)), Err(606), "UPnP's is more than a wish");
}

/// `policy.default = "ask"`: nobody gets anything before the owner has said so; who waits is shown, once each.
#[test]
fn the_owner_is_asked() {
    let mut lab = up(asking());
    assert_eq!(lab.add(ALICE, 1, port(8080)), Err(718));
    lab.pass(5);
    assert_eq!(lab.add(ALICE, 2, port(8081)), Err(606));
    assert_eq!(lab.map(BOB, &map(8080)).0, NOT_AUTHORIZED);
    assert_eq!(lab.nat_pmp_map(BOB, 8080, 8080, 3600).0, 2);
    lab.pass(1);
    lab.is_known(CAROL, 0x10);
    assert_eq!(lab.map6(CAROL, &map6(8080)).0, NOT_AUTHORIZED);
    assert_eq!(lab.open(CAROL, &hole(8080)), Err(606));
    assert_eq!((lab.sent(), lab.mapped(), lab.pinholes.open.len()), (vec![], vec![], 0));
    let (alice, bob) = (Device::Address(ALICE.into()), Device::Address(BOB.into()));
    assert_eq!(lab.waiting(), [alice, bob, Device::Hardware(card(0x10))]);
    let of_alice = lab.gateway.consents(lab.instant()).waiting[0];
    assert_eq!((of_alice.of.first.external_port, of_alice.of.last.external_port), (Some(8080), Some(8081)));
    assert_eq!(
        (of_alice.since, of_alice.last, of_alice.of.times),
        (Duration::from_secs(6), Duration::from_secs(1), 2)
    );
    let lines = lab.notices().into_iter().filter(|notice| notice.level() > Level::Debug);
    assert_eq!(
        lines.map(|notice| notice.to_string()).collect::<Vec<_>>(),
        [
            "192.168.1.10 asks for a port and waits for you: `portferry consent allow 192.168.1.10`, or deny",
            "192.168.1.11 asks for a port and waits for you: `portferry consent allow 192.168.1.11`, or deny",
            "2001:db8:1::10 (02:00:00:00:00:10) asks for a port and waits for you: `portferry consent allow 02:00:00:00:00:10`, or deny",
        ]
    );
    assert_eq!(lab.status().policy.waiting, 3);
    // What is refused anyway is no reason to ask.
    assert_eq!(lab.add(Ipv4Addr::new(192, 168, 1, 12), 2, port(80)), Err(606));
    assert_eq!(lab.waiting().len(), 3);

    lab.decide(alice, Verb::Allow);
    lab.decide(Device::Address(CAROL.into()), Verb::Allow); // its network card is meant
    assert_eq!(lab.waiting(), [bob]);
    assert_eq!(lab.add(ALICE, 1, port(8080)), done());
    assert_eq!(lab.map(ALICE, &map(8081)), (OK, 3600, 8081));
    assert_eq!(lab.map6(CAROL, &map6(8080)).0, OK);
    lab.is_known(DAVE, 0x10);
    assert!(lab.open(DAVE, &hole(8080)).is_ok(), "another address of the same host");
    lab.agrees();
}

/// No: what the host has goes, by whichever of its addresses; and stays so over a restart, until that is forgotten.
#[test]
fn the_owner_says_no() {
    let mut lab = up(asking());
    let carol = Device::Hardware(card(0x10));
    for host in [IpAddr::V4(ALICE), CAROL.into(), DAVE.into()] {
        lab.is_known(host, 0x10);
    }
    lab.decide(carol, Verb::Allow);
    lab.decide(Device::Address(BOB.into()), Verb::Allow);
    assert_eq!(lab.add(ALICE, 1, port(8080)), done());
    assert_eq!(lab.add(BOB, 1, port(9090)), done());
    assert!(lab.open(CAROL, &hole(8080)).is_ok());
    assert_eq!(lab.map6(DAVE, &map6(8081)).0, OK);
    lab.effects.clear();
    lab.decide(carol, Verb::Deny);
    assert_eq!(lab.mapped(), [(9090, at(BOB, 9090))]);
    assert_eq!((lab.upstream(), lab.rules.len(), lab.store.len()), (vec![(9090, at(W, 9090))], 1, 1));
    assert!(lab.pinholes.open.is_empty() && lab.pinholes.stored.is_empty());
    let gone = lab
        .notices()
        .into_iter()
        .filter(|notice| notice.to_string().contains("policy does not allow it any more"));
    assert_eq!(gone.count(), 3, "a line each");
    assert_eq!(lab.add(ALICE, 2, port(8080)), Err(606));
    assert_eq!(lab.open(CAROL, &hole(8080)), Err(606));
    assert!(lab.waiting().is_empty(), "it does not ask again");
    assert_eq!(lab.refused(), [("you have denied the host".to_owned(), 2)]);

    lab.crash(asking(), 78, 1000);
    lab.event(Event::Lan(lan6()));
    lab.event(Event::Wan(wan6()));
    lab.pass(40);
    assert_eq!(lab.add(BOB, 2, port(9091)), done(), "also what was allowed is known");
    lab.is_known(ALICE, 0x10);
    assert_eq!(lab.add(ALICE, 2, port(8080)), Err(606));
    assert!(lab.waiting().is_empty());
    lab.decide(carol, Verb::Forget);
    assert_eq!(lab.add(ALICE, 2, port(8080)), Err(606));
    assert_eq!(lab.waiting(), [carol], "as if it was new");
    assert_eq!(lab.decided.keys().copied().collect::<Vec<_>>(), [Device::Address(BOB.into())]);
}

/// Where nobody is to be asked, decisions are kept and do nothing.
#[test]
fn decisions_count_where_the_owner_is_asked() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 1, port(8080)), done());
    lab.decide(Device::Address(ALICE.into()), Verb::Deny);
    assert_eq!(lab.mapped().len(), 1);
    assert_eq!(lab.add(ALICE, 1, port(8081)), done());
    assert!(!lab.gateway.consents(lab.instant()).asks);
    lab.event(Event::Reconfigure(Box::new(asking())));
    assert!(lab.mapped().is_empty(), "from now on they do");
    assert_eq!(lab.add(ALICE, 1, port(8080)), Err(718));
}

/// Who pretends to be many hosts fills neither the list nor the log.
#[test]
fn a_flood_of_new_hosts() {
    let mut lab = Lab::up_with(asking());
    for last in 10..210 {
        assert_eq!(lab.add(Ipv4Addr::new(192, 168, 1, last), 2, port(8080)), Err(606));
    }
    assert_eq!(lab.waiting().len(), crate::policy::MOST_WAITING);
    let loud = lab.notices().into_iter().filter(|notice| notice.level() > Level::Debug).count();
    assert_eq!(loud, 8);
    assert_eq!(lab.refused(), [("waiting for your consent".to_owned(), 200)]);
}

/// Decision 27: ten exchanges a second and host, fifty at once. What needs none does not count. Over that, a control point hears
/// 501, which it takes for a fault that passes; PCP and NAT-PMP clients hear nothing, and repeat themselves.
#[test]
fn exchanges_of_a_host_by_every_protocol() {
    let exchanges = Rate { per_second: 10, burst: 5 };
    let limited = || Config { policy: Policy { exchanges, ..Policy::default() }, ..config(NatMode::Own) };
    let mut lab = up(limited());
    let hears = |lab: &mut Lab, host, number| lab.datagram(host, &map(number).request(host).to_bytes()).len();
    for number in 0..5 {
        assert_eq!(lab.add(ALICE, 1 + u8::from(number > 2), port(8080 + number)), done());
    }
    assert_eq!(lab.add(ALICE, 1, port(9000)), Err(501));
    assert_eq!(lab.add(ALICE, 2, any(9000)), Err(501));
    assert_eq!(hears(&mut lab, ALICE, 9000), 0, "PCP: silence");
    let nat_pmp = super::lan_server::nat_pmp(9000, 9000, 3600).to_bytes();
    assert_eq!(lab.datagram(ALICE, &nat_pmp).len(), 0, "NAT-PMP: silence");
    assert_eq!(lab.mapped().len(), 5);
    assert_eq!(lab.refused(), [("more often than policy.exchanges_per_second".to_owned(), 4)]);
    // What needs no exchange is answered all the same.
    for _ in 0..20 {
        assert_eq!(lab.add(ALICE, 1, port(8080)), done(), "renewed");
        assert_eq!(lab.map(ALICE, &map(8081)).0, OK);
        assert!(lab.call(ALICE, 1, "GetExternalIPAddress", &[]).is_ok());
        assert_eq!(lab.add(ALICE, 2, port(80)), Err(606));
    }
    assert_eq!(
        lab.call(ALICE, 2, "GetSpecificPortMappingEntry", &borrowed(&key(9001))),
        Err(714),
        "from the table"
    );
    assert_eq!(lab.delete(ALICE, 1, 8084), done(), "nobody is kept from giving back");
    // Another host is another's.
    assert_eq!(lab.add(BOB, 1, port(9000)), done());
    lab.run(lab.now + 100);
    assert_eq!(hears(&mut lab, ALICE, 9002), 1, "a tenth of a second later one more");
    assert_eq!(hears(&mut lab, ALICE, 9003), 0);

    // The same for pinholes, whichever address a host speaks from.
    let mut lab = up(limited());
    for last in 0x20..0x25 {
        let host = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, last);
        lab.is_known(host, 0x20);
        assert!(lab.open(host, &hole(8080)).is_ok());
    }
    lab.is_known(CAROL, 0x20);
    assert_eq!(lab.open(CAROL, &hole(8080)), Err(501));
    assert_eq!(lab.pcp6(CAROL, &map6(8080).request(CAROL)), None);
    assert!(lab.open(DAVE, &hole(8080)).is_ok(), "another host");
    lab.agrees();
}

/// K-3: a host with many IPv6 addresses has one quota, by UPnP and by PCP, however many of them are known.
#[test]
fn one_quota_for_all_ipv6_addresses_of_a_host() {
    let settings =
        || Config { policy: Policy { mappings_per_host: 3, ..Policy::default() }, ..config(NatMode::Own) };
    let host = |last: u16| Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, last);
    for by_card in [true, false] {
        let mut lab = up(settings());
        for last in 0x20..0x28 {
            // Beyond some tens of addresses the neighbour table names the network card alone.
            let also = if by_card { vec![] } else { (0x20..0x28).map(host).map(IpAddr::V6).collect() };
            let hardware = by_card.then(|| card(0x20));
            lab.gateway.know(host(last).into(), Known { also, hardware });
        }
        assert_eq!(lab.map6(host(0x20), &map6(8080)).0, OK);
        assert_eq!(lab.map6(host(0x21), &map6(8080)).0, OK);
        assert!(lab.open(host(0x22), &hole(8080)).is_ok());
        for last in 0x23..0x28 {
            assert_eq!(lab.map6(host(last), &map6(8080)).0, ResultCode::USER_EX_QUOTA, "{by_card}");
            assert_eq!(lab.open(host(last), &hole(8080)), Err(701), "{by_card}");
        }
        assert_eq!(lab.map6(host(0x20), &map6(8080)).0, OK, "what it has it may renew");
        lab.is_known(DAVE, 0x11);
        assert_eq!(lab.map6(DAVE, &map6(8080)).0, OK, "another host");
        lab.agrees();
    }
}

/// SIGHUP: what a new rule denies goes at once, here and at the provider, with a line; what it is not about stays.
#[test]
fn a_new_rule_counts_for_what_stands() {
    for nat in BOTH {
        let mut lab = up(Config { nat, ..config(NatMode::Own) });
        assert_eq!(lab.add(ALICE, 1, port(8080)), done());
        assert_eq!(lab.map(BOB, &map(9090)), (OK, 3600, 9090));
        assert!(lab.open(CAROL, &hole(8080)).is_ok());
        lab.effects.clear();
        let rules = |rules: &[&str]| Box::new(Config { nat, ..with_rules(rules) });
        lab.event(Event::Reconfigure(rules(&["deny 9000-9999 192.168.1.0/24 0-65535"])));
        assert_eq!((lab.mapped(), lab.upstream().len()), (vec![(8080, at(ALICE, 8080))], 1), "{nat:?}");
        assert_eq!((lab.rules.len(), lab.pinholes.open.len()), (usize::from(nat == NatMode::Own), 1));
        let gone = |lab: &Lab| {
            let all = lab.notices();
            all.iter()
                .filter(|notice| notice.to_string().contains("policy does not allow it any more"))
                .count()
        };
        assert_eq!(gone(&lab), 1);
        assert_eq!(lab.add(BOB, 2, port(9090)), Err(606));
        lab.event(Event::Reconfigure(rules(&["allow 0-65535 192.168.1.10 0-65535", DENY_ALL])));
        assert_eq!((lab.mapped().len(), lab.pinholes.open.len(), gone(&lab)), (1, 0, 2), "{nat:?}");
        // Of rules that are none any more no counts are kept.
        assert_eq!(lab.refused(), []);
        lab.event(Event::Reconfigure(rules(&[DENY_ALL])));
        assert_eq!((lab.mapped(), lab.upstream(), lab.rules.len()), (vec![], vec![], 0), "{nat:?}");
        lab.agrees();
    }
}

/// Asked about from now on: who has something keeps it until it ends, and does not get it renewed unasked.
#[test]
fn who_is_asked_about_keeps_what_stands() {
    let mut lab = up(config(NatMode::Own));
    assert_eq!(lab.add(ALICE, 1, port(8080)), done());
    assert_eq!(lab.map(BOB, &map(9090)).0, OK);
    let number = lab.open(CAROL, &hole(8080)).unwrap().remove(0);
    lab.event(Event::Reconfigure(Box::new(asking())));
    assert_eq!(lab.mapped().len(), 2);
    assert_eq!(lab.add(ALICE, 1, port(8080)), Err(718));
    assert_eq!(lab.map(BOB, &map(9090)).0, NOT_AUTHORIZED);
    let update = [("UniqueID", number), ("NewLeaseTime", "7200".to_owned())];
    let id = lab.start_from(CAROL.into(), &[], 1, "UpdatePinhole", &borrowed(&update));
    assert_eq!(lab.heard(id), Some(Err(606)));
    assert_eq!(lab.waiting().len(), 3);
    assert_eq!((lab.mapped().len(), lab.pinholes.open.len()), (2, 1));
    lab.pass(3601);
    assert_eq!((lab.mapped().len(), lab.pinholes.open.len()), (0, 0));
    lab.agrees();
}

/// What was stored under other rules does not come back.
#[test]
fn a_start_with_other_rules() {
    let mut lab = up(config(NatMode::Own));
    assert_eq!(lab.add(ALICE, 1, port(8080)), done());
    assert_eq!(lab.add(BOB, 1, port(9090)), done());
    lab.crash(with_rules(&["deny 0-65535 192.168.1.11 0-65535"]), 78, 1000);
    assert_eq!((lab.mapped(), lab.store.len()), (vec![(8080, at(ALICE, 8080))], 1));
    lab.event(Event::Lan(lan6()));
    lab.event(Event::Wan(wan6()));
    lab.pass(40);
    assert_eq!((lab.upstream(), lab.rules.len()), (vec![(8080, at(W, 8080))], 1), "the provider is told");
}

/// Every reason has a counter, and every counter its words.
#[test]
fn what_is_refused_is_counted() {
    let mut settings = config(NatMode::Own);
    (settings.policy.mappings_per_host, settings.policy.mappings) = (1, 2);
    let mut lab = up(settings);
    let client = |client: [u8; 4]| Add { client: Some(client.into()), ..port(8080) };
    assert_eq!(lab.add(ALICE, 1, port(8080)), done());
    assert_eq!(lab.add(BOB, 1, port(8081)), done());
    assert_eq!(lab.add(ALICE, 2, port(8090)), Err(728));
    assert_eq!(lab.add(Ipv4Addr::new(192, 168, 1, 12), 2, port(8091)), Err(728));
    assert_eq!(lab.add(ALICE, 2, port(80)), Err(606));
    assert_eq!(lab.add(ALICE, 2, port(3389)), Err(606));
    assert_eq!(lab.add(ALICE, 2, client([192, 168, 1, 11])), Err(606));
    assert_eq!(lab.add(ALICE, 2, client([192, 168, 1, 1])), Err(606));
    assert_eq!(lab.add(ALICE, 2, client([8, 8, 8, 8])), Err(606));
    let counted: Vec<Counted> = lab.status().policy.refused.into_iter().map(|one| one.what).collect();
    assert_eq!(
        counted,
        [
            Counted::OtherHost,
            Counted::NeverMapped,
            Counted::OffLan,
            Counted::LowPort,
            Counted::NeverPort,
            Counted::HostQuota,
            Counted::TableFull,
        ]
    );
    assert!(lab.status().policy.refused.iter().all(|one| one.times == 1));

    // Likewise PCP's, MAP and PEER alike: its own share is USER_EX_QUOTA, that of all NO_RESOURCES (RFC 6887 §7.4).
    let mut settings = config(NatMode::Own);
    (settings.policy.mappings_per_host, settings.policy.mappings) = (1, 2);
    let mut lab = up(settings);
    lab.provider().config_mut().peer = true;
    for (host, number) in [(ALICE, 8080), (ALICE, 8081), (BOB, 8082), (BOB, 8083), (OTHER, 8084)] {
        lab.flows_by(host, &peer(number), number);
    }
    assert_eq!(lab.peer(ALICE, &peer(8080)).0, OK);
    assert_eq!(lab.peer(ALICE, &peer(8081)).0, ResultCode::USER_EX_QUOTA);
    assert_eq!(lab.refused(), [("the host has policy.mappings_per_host already".to_owned(), 1)]);
    assert_eq!(lab.peer(BOB, &peer(8082)).0, OK);
    assert_eq!(lab.peer(OTHER, &peer(8084)).0, ResultCode::NO_RESOURCES);
    assert_eq!(lab.refused()[1..], [("there are policy.mappings already".to_owned(), 1)]);
    assert_eq!(lab.map(ALICE, &map(9000)).0, OK, "flows are no mappings");
    assert_eq!(lab.map(ALICE, &map(9001)).0, ResultCode::USER_EX_QUOTA);
    assert_eq!(lab.map(BOB, &map(9002)).0, OK);
    assert_eq!(lab.map(OTHER, &map(9003)).0, ResultCode::NO_RESOURCES);
    assert_eq!(lab.nat_pmp_map(OTHER, 9003, 9003, 3600).0, 4);
    let times: Vec<u64> = lab.refused().into_iter().map(|(_, times)| times).collect();
    assert_eq!(times, [2, 3]);
    assert!(lab.status().policy.refused.iter().any(|one| one.last_by == IpAddr::V4(OTHER)));
}
