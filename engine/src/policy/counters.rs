//! How often policy has said no, by which rule, and to whom last.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use super::Denied;
use crate::time::Instant;

/// What is counted: a reason, or a rule by its own words, so that its count outlives a reload that moves it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Counted {
    /// As [`Denied::OtherHost`].
    OtherHost,
    /// As [`Denied::NeverMapped`].
    NeverMapped,
    /// As [`Denied::OffLan`].
    OffLan,
    /// As [`Denied::LowPort`].
    LowPort,
    /// As [`Denied::NeverPort`].
    NeverPort,
    /// A rule of the administrator's.
    Rule(String),
    /// As [`Denied::Default`].
    Default,
    /// As [`Denied::AwaitsConsent`].
    AwaitsConsent,
    /// As [`Denied::NoConsent`].
    NoConsent,
    /// As [`Denied::HostQuota`].
    HostQuota,
    /// As [`Denied::TableFull`].
    TableFull,
    /// As [`Denied::TooOften`].
    TooOften,
}

impl Counted {
    /// What `denied` counts as. `rule` gives the words of a rule by its number.
    pub(crate) fn of(denied: Denied, rule: impl Fn(usize) -> String) -> Self {
        match denied {
            Denied::OtherHost => Self::OtherHost,
            Denied::NeverMapped => Self::NeverMapped,
            Denied::OffLan => Self::OffLan,
            Denied::LowPort(_) => Self::LowPort,
            Denied::NeverPort(_) => Self::NeverPort,
            Denied::Rule(number) => Self::Rule(rule(number)),
            Denied::Default => Self::Default,
            Denied::AwaitsConsent => Self::AwaitsConsent,
            Denied::NoConsent => Self::NoConsent,
            Denied::HostQuota(_) => Self::HostQuota,
            Denied::TableFull(_) => Self::TableFull,
            Denied::TooOften => Self::TooOften,
        }
    }

    /// One word for programs; a rule is `rule`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::OtherHost => "other-host",
            Self::NeverMapped => "never-mapped",
            Self::OffLan => "off-lan",
            Self::LowPort => "low-port",
            Self::NeverPort => "never-port",
            Self::Rule(_) => "rule",
            Self::Default => "default",
            Self::AwaitsConsent => "awaits-consent",
            Self::NoConsent => "no-consent",
            Self::HostQuota => "host-quota",
            Self::TableFull => "table-full",
            Self::TooOften => "too-often",
        }
    }
}

/// In a few words, for people.
impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherHost => "asked for another host",
            Self::NeverMapped => "for an address that is never mapped",
            Self::OffLan => "for an address that is not on the LAN",
            Self::LowPort => "ports below policy.lowest_port",
            Self::NeverPort => "ports of policy.never",
            Self::Rule(rule) => return write!(f, "by the rule \"{rule}\""),
            Self::Default => "no rule allows it, and policy.default is \"deny\"",
            Self::AwaitsConsent => "waiting for your consent",
            Self::NoConsent => "you have denied the host",
            Self::HostQuota => "the host has policy.mappings_per_host already",
            Self::TableFull => "there are policy.mappings already",
            Self::TooOften => "more often than policy.exchanges_per_second",
        })
    }
}

/// How often, and the last time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Count {
    /// How often.
    pub times: u64,
    /// Who was the last.
    pub last_by: IpAddr,
    /// When that was.
    pub last_at: Instant,
}

/// See the module's description. There are as many as reasons and rules, whoever asks how often.
#[derive(Debug, Default)]
pub struct Refusals(BTreeMap<Counted, Count>);

impl Refusals {
    /// `by` was refused for this.
    pub fn count(&mut self, now: Instant, what: Counted, by: IpAddr) {
        let count = self.0.entry(what).or_insert(Count { times: 0, last_by: by, last_at: now });
        *count = Count { times: count.times.saturating_add(1), last_by: by, last_at: now };
    }

    /// All that are not zero.
    pub fn iter(&self) -> impl Iterator<Item = (&Counted, Count)> {
        self.0.iter().map(|(what, count)| (what, *count))
    }

    /// The rules are others: what is none any more is forgotten.
    pub fn keep_rules(&mut self, stays: impl Fn(&str) -> bool) {
        self.0.retain(|what, _| match what {
            Counted::Rule(rule) => stays(rule),
            _ => true,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_by_reason_and_by_rule() {
        let (one, two) = (IpAddr::from([192, 168, 1, 10]), IpAddr::from([192, 168, 1, 11]));
        let words = |number: usize| format!("rule {number}");
        let mut all = Refusals::default();
        for (at, denied, by) in [
            (1, Denied::LowPort(1024), one),
            (2, Denied::LowPort(100), two),
            (3, Denied::Rule(1), one),
            (4, Denied::Rule(2), one),
            (5, Denied::Rule(1), two),
        ] {
            all.count(Instant::from_secs(at), Counted::of(denied, words), by);
        }
        let seen: Vec<_> =
            all.iter().map(|(what, count)| (what.to_string(), count.times, count.last_by)).collect();
        assert_eq!(
            seen,
            [
                ("ports below policy.lowest_port".to_owned(), 2, two),
                ("by the rule \"rule 1\"".to_owned(), 2, two),
                ("by the rule \"rule 2\"".to_owned(), 1, one),
            ]
        );
        all.keep_rules(|rule| rule == "rule 2");
        let left: Vec<_> = all.iter().map(|(what, count)| (what.name(), count.last_at)).collect();
        assert_eq!(left, [("low-port", Instant::from_secs(2)), ("rule", Instant::from_secs(4))]);
    }
}
