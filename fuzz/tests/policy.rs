//! No mapping that policy accepts violates its definition: rules from a small world, so that they meet each other, over every external port.

use engine::policy::{ByDefault, Consent, Policy, PortRange, Ports};
use proptest::prelude::*;
use wire::pcp::Protocol;

fn range() -> impl Strategy<Value = PortRange> {
    let port = prop::sample::select(vec![0_u16, 1, 80, 1023, 1024, 3389, 3390, 8080, 8081, 65_534, 65_535]);
    (port.clone(), port).prop_map(|(one, other)| {
        PortRange::new(one.min(other), one.max(other)).expect("the smaller one is the first")
    })
}

fn rule() -> impl Strategy<Value = String> {
    let hosts = prop::sample::select(vec![
        "0.0.0.0/0",
        "192.168.1.0/24",
        "192.168.1.0/255.255.255.0",
        "192.168.1.10",
        "192.168.1.11/32",
        "::/0",
        "2001:db8:1::/64",
        "2001:db8:1::10",
    ]);
    let protocol = prop::sample::select(vec!["", " tcp", " udp"]);
    (any::<bool>(), range(), hosts, range(), protocol).prop_map(
        |(allows, external, hosts, internal, protocol)| {
            let verb = if allows { "allow" } else { "deny" };
            format!("{verb} {external} {hosts} {internal}{protocol}")
        },
    )
}

fn policy() -> impl Strategy<Value = Policy> {
    let default = prop::sample::select(vec![ByDefault::Allow, ByDefault::Deny, ByDefault::Ask]);
    let lowest_port = prop::sample::select(vec![1_u16, 1024, 8081]);
    let (rules, never) = (prop::collection::vec(rule(), 0..5), prop::collection::vec(range(), 0..3));
    (rules, default, lowest_port, never).prop_map(|(rules, default, lowest_port, never)| Policy {
        rules: rules.iter().map(|rule| rule.parse().expect("it is one")).collect(),
        default,
        lowest_port,
        never,
        ..Policy::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_accepted_mapping_violates_the_definition(
        policy in policy(),
        host in prop::sample::select(vec!["192.168.1.10", "192.168.1.11", "192.168.2.10", "2001:db8:1::10", "2001:db8:2::10"]),
        internal in prop::sample::select(vec![80_u16, 1024, 3389, 8080]),
        external in prop::option::of(prop::sample::select(vec![1_u16, 80, 1024, 3389, 8080, 65_535])),
        protocol in prop::sample::select(vec![Protocol::TCP, Protocol::UDP]),
        consent in prop::sample::select(vec![Consent::Given, Consent::Refused, Consent::Unknown]),
    ) {
        let ports = Ports { protocol, host: host.parse().expect("an address"), internal, external };
        fuzz::check_verdict(&policy, &ports, consent, 1..=u16::MAX);
    }
}
