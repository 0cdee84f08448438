//! Rules that open more than who wrote them may have meant: an `allow` of many ports lifts [`Policy::never`] for those among them.

use std::fmt;

use super::{Policy, PortRange, Rule};

/// Such a rule, and what of [`Policy::never`] it opens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lifted<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// In the order of [`Policy::never`].
    pub never: Vec<PortRange>,
}

/// The line for who has written it.
impl fmt::Display for Lifted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the rule \"{}\" allows ports of policy.never, too: ", self.rule)?;
        for (place, ports) in self.never.iter().enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            write!(f, "{comma}{ports}")?;
        }
        write!(f, "; policy.default = \"allow\" without it, or a deny for them before it, keeps them closed")
    }
}

impl Policy {
    /// The rules that allow many ports, some of [`Policy::never`] and others; who names but those has meant them. What a rule before
    /// denies is not opened.
    pub fn lifted(&self) -> Vec<Lifted<'_>> {
        let of_rule = |(place, rule): (usize, &'_ Rule)| {
            let opens = |ports: &&PortRange| {
                let denied = |of: fn(&Rule) -> PortRange, other: fn(&Rule) -> PortRange| {
                    self.rules[..place].iter().any(|before| {
                        before.denies_all_of(rule)
                            && of(before).covers(ports)
                            && other(before).covers(&other(rule))
                    })
                };
                let outside = self.is_broad(rule.external) && rule.external.overlaps(ports);
                let inside = self.is_broad(rule.internal) && rule.internal.overlaps(ports);
                outside && !denied(|rule| rule.external, |rule| rule.internal)
                    || inside && !denied(|rule| rule.internal, |rule| rule.external)
            };
            self.never.iter().filter(opens).copied().collect::<Vec<PortRange>>()
        };
        let allows = (0..).zip(&self.rules).filter(|(_, rule)| rule.allows);
        let lifted = allows.map(|(place, rule)| Lifted { rule, never: of_rule((place, rule)) });
        lifted.filter(|lifted| !lifted.never.is_empty()).collect()
    }

    /// Whether there are more of these ports than those that are never to be open.
    fn is_broad(&self, ports: PortRange) -> bool {
        let named = self.never.iter().any(|never| never.covers(&ports));
        ports.first() != ports.last() && !named
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_open_more_than_they_name() {
        for (rules, lifted) in [
            (&[][..], &[][..]),
            // miniupnpd's stock rules.
            (
                &["allow 1024-65535 192.168.1.0/24 1024-65535", "deny 0-65535 0.0.0.0/0 0-65535"],
                &[(
                    0,
                    "1433-1434 1900 2049 2375-2376 3306 3389 3702 5353 5432 5555 5900-5901 5985-5986 6379 7547 8291 9100 9200 11211",
                )],
            ),
            (&["allow 3389 192.168.1.5 3389"], &[]),
            (&["allow 5900-5901 192.168.1.5 5900-5901"], &[]),
            (&["allow 5900-5905 192.168.1.5 5900-5905"], &[(0, "5900-5901")]),
            (&["allow 6881-6889 192.168.1.5 6881-6889"], &[]),
            (&["allow 40000 192.168.1.5 5000-6000"], &[(0, "5353 5432 5555 5900-5901 5985-5986")]),
            (&["deny 5000-6000 192.168.1.5 5000-6000"], &[]),
            (&["deny 5900-5901 0.0.0.0/0 0-65535", "allow 5900-5905 192.168.1.5 8080"], &[]),
            (
                &["deny 5900-5901 192.168.1.6 0-65535", "allow 5900-5905 192.168.1.5 8080"],
                &[(1, "5900-5901")],
            ),
            (
                &["deny 5900-5901 0.0.0.0/0 0-65535 udp", "allow 5900-5905 192.168.1.5 8080"],
                &[(1, "5900-5901")],
            ),
            (
                &["deny 5900-5901 192.168.1.0/24 9090", "allow 5900-5905 192.168.1.5 8080"],
                &[(1, "5900-5901")],
            ),
            (&["allow 5900-5905 192.168.1.5 8080", "deny 5900-5901 0.0.0.0/0 0-65535"], &[(0, "5900-5901")]),
        ] {
            let parsed = rules.iter().map(|rule| rule.parse().unwrap()).collect();
            let policy = Policy { rules: parsed, ..Policy::default() };
            let found = policy.lifted();
            let words = |lifted: &Lifted<'_>| {
                let never: Vec<String> = lifted.never.iter().map(ToString::to_string).collect();
                (policy.rules.iter().position(|rule| rule == lifted.rule).unwrap(), never.join(" "))
            };
            let expected: Vec<(usize, String)> =
                lifted.iter().map(|&(place, never)| (place, never.to_owned())).collect();
            assert_eq!(found.iter().map(words).collect::<Vec<_>>(), expected, "{rules:?}");
        }
        let rule = ["allow 5900-5905 192.168.1.5 8080".parse().unwrap()];
        let policy = Policy { rules: rule.into(), ..Policy::default() };
        assert_eq!(
            policy.lifted()[0].to_string(),
            "the rule \"allow 5900-5905 192.168.1.5/32 8080\" allows ports of policy.never, too: 5900-5901; \
             policy.default = \"allow\" without it, or a deny for them before it, keeps them closed"
        );
        let policy = Policy { never: Vec::new(), ..policy };
        assert_eq!(policy.lifted(), [], "there are none");
    }
}
