//! Rules of an administrator, and what they make of mappings, beside the definition written down a second time: as plainly as the
//! documentation says it.

use std::net::IpAddr;

use engine::policy::{ByDefault, Consent, Denied, Policy, Ports, Rule};
use wire::pcp::Protocol;

/// What docs/policy.md says of one external port; quotas and addresses are looked at apart.
pub fn may_have(policy: &Policy, ports: &Ports, external: u16, consent: Consent) -> bool {
    for rule in &policy.rules {
        let everybody = !rule.allows && rule.hosts.to_string() == "0.0.0.0/0";
        if rule.external.contains(external)
            && rule.internal.contains(ports.internal)
            && (rule.hosts.contains(ports.host) || everybody)
            && (rule.protocol.is_none() || rule.protocol == Some(ports.protocol))
        {
            return rule.allows;
        }
    }
    let low = external < policy.lowest_port || ports.internal < policy.lowest_port;
    let never = |port: u16| policy.never.iter().any(|range| range.contains(port));
    let plain = !low && !never(external) && !never(ports.internal);
    match policy.default {
        ByDefault::Allow => plain,
        ByDefault::Deny => false,
        ByDefault::Ask => plain && consent == Consent::Given,
    }
}

/// Whether the engine's verdict is that of the definition; with any external port, whether there is one among `all`.
pub fn check_verdict(policy: &Policy, ports: &Ports, consent: Consent, all: impl Iterator<Item = u16>) {
    let verdict = policy.judge(ports, consent);
    let right = match ports.external {
        Some(external) => may_have(policy, ports, external, consent),
        None => all.filter(|port| *port > 0).any(|external| may_have(policy, ports, external, consent)),
    };
    assert_eq!(verdict.is_ok(), right, "{verdict:?} {ports:?} {consent:?} {policy:?}");
    if let Err(Denied::Rule(number)) = verdict {
        assert!(policy.rules.get(number.wrapping_sub(1)).is_some_and(|rule| !rule.allows), "{verdict:?}");
    }
}

/// Text as `policy.rules`, a rule in each line: nothing panics, what is shown is the same rule, and what the rules say is the definition.
pub fn policy_rules(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut policy = Policy::default();
    let mut edges = vec![1, 1023, 1024, 1025, 3389, 65_535];
    for line in text.lines().take(16) {
        match line.parse::<Rule>() {
            Ok(rule) => {
                assert_eq!(rule.to_string().parse(), Ok(rule.clone()), "{line:?}");
                let ends = [rule.external.first(), rule.external.beyond().unwrap_or(u16::MAX)];
                edges.extend(
                    ends.into_iter().flat_map(|port| [port.saturating_sub(1), port, port.saturating_add(1)]),
                );
                policy.rules.push(rule);
            }
            Err(why) => assert!(why.to_string().len() < 300),
        }
    }
    // Behind each port that is never open there is one that may be.
    edges.extend(policy.never.iter().filter_map(|range| range.beyond()));
    policy.default = [ByDefault::Allow, ByDefault::Deny, ByDefault::Ask][data.len() % 3];
    let named = policy.rules.iter().map(|rule| rule.hosts.first());
    let hosts: Vec<IpAddr> =
        named.chain([[192, 168, 1, 10].into(), [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into()]).collect();
    for host in hosts {
        for internal in [80, 3389, 8080] {
            for external in [None, Some(80), Some(3389), Some(8080), edges.last().copied()] {
                let protocol = if internal == 80 { Protocol::TCP } else { Protocol::UDP };
                let ports = Ports { protocol, host, internal, external };
                for consent in [Consent::Given, Consent::Refused, Consent::Unknown] {
                    check_verdict(&policy, &ports, consent, edges.iter().copied());
                }
            }
        }
    }
}
