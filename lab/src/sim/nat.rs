//! The router's own NAT of a [`World`](super::World): what the kernel would hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;

use engine::nat::{NatChange, NatFailure, NatRule};
use engine::time::Duration;
use wire::pcp::Protocol;

use super::KERNEL;

/// The router's own NAT: what the kernel would hold.
#[derive(Debug)]
pub struct Nat {
    rules: BTreeMap<(Protocol, u16), NatRule>,
    /// By which external address and port LAN hosts come to a rule.
    hairpins: BTreeMap<(Protocol, u16), SocketAddrV4>,
    /// Where the last change was refused, so that it may be another one.
    refused: BTreeSet<(Protocol, u16)>,
    /// Where a rule is that could not be removed.
    kept: BTreeSet<(Protocol, u16)>,
    /// Ports of the WAN address that the router itself uses.
    pub ports_in_use: BTreeSet<(Protocol, u16)>,
    /// Every change fails with these words.
    pub broken: Option<String>,
    /// So many of the next changes of rules are refused, which is told before anything else happens, as the daemon does.
    pub refuse_next: u32,
    /// How long the kernel takes to say what became of a change; the change itself is there at once.
    pub takes: Duration,
}

impl Nat {
    pub(super) fn new(ports_in_use: BTreeSet<(Protocol, u16)>) -> Self {
        Self {
            rules: BTreeMap::new(),
            hairpins: BTreeMap::new(),
            refused: BTreeSet::new(),
            kept: BTreeSet::new(),
            ports_in_use,
            broken: None,
            refuse_next: 0,
            takes: KERNEL,
        }
    }

    /// The rules, by protocol and port of the WAN address.
    pub fn rules(&self) -> impl Iterator<Item = &NatRule> {
        self.rules.values()
    }

    /// Whether the rule of this port was to be removed and could not be.
    #[must_use]
    pub fn keeps(&self, rule: &NatRule) -> bool {
        self.kept.contains(&(rule.protocol, rule.port))
    }

    /// The rule of a port of the WAN address.
    #[must_use]
    pub fn rule(&self, protocol: Protocol, port: u16) -> Option<&NatRule> {
        self.rules.get(&(protocol, port))
    }

    /// Whether LAN hosts come to the rule of this port by that external address and port; or a change of that was refused, and has not
    /// been made since.
    #[must_use]
    pub fn leads_by(&self, protocol: Protocol, port: u16, external: Option<SocketAddrV4>) -> bool {
        let place = (protocol, port);
        self.refused.contains(&place) || self.hairpins.get(&place).copied() == external
    }

    /// All rules go at once.
    pub(super) fn flush(&mut self) {
        self.rules.clear();
        self.hairpins.clear();
        self.refused.clear();
        self.kept.clear();
    }

    /// What the kernel says to `change`, and what is wrong with asking for it. Outcomes are told in their order, so that
    /// what is told at once can only fail when it is `quiet`.
    pub(super) fn apply(
        &mut self,
        change: NatChange,
        quiet: bool,
    ) -> (Result<(), NatFailure>, Option<String>) {
        let place = match change {
            NatChange::Install { rule, .. }
            | NatChange::Replace { new: rule, .. }
            | NatChange::Remove(rule) => Some((rule.protocol, rule.port)),
            NatChange::Move { protocol, port, .. } => Some((protocol, port)),
            NatChange::Reserve { .. } => None,
        };
        if let Some(words) = &self.broken {
            self.refused.extend(place);
            return (Err(NatFailure::Kernel(words.clone())), None);
        }
        if quiet && self.refuse_next > 0 && !matches!(change, NatChange::Reserve { .. }) {
            self.refuse_next -= 1;
            self.refused.extend(place);
            if let NatChange::Remove(rule) = change {
                self.kept.insert((rule.protocol, rule.port));
            }
            return (Err(NatFailure::Kernel("no buffer space available".to_owned())), None);
        }
        let key = |rule: NatRule| (rule.protocol, rule.port);
        if let NatChange::Remove(rule) | NatChange::Replace { new: rule, .. } = change {
            self.kept.remove(&key(rule));
        }
        if let Some(place) = place {
            let external = match change {
                NatChange::Install { external, .. }
                | NatChange::Replace { external, .. }
                | NatChange::Move { external, .. } => external,
                NatChange::Remove(_) | NatChange::Reserve { .. } => None,
            };
            self.refused.remove(&place);
            self.hairpins.remove(&place);
            self.hairpins.extend(external.map(|external| (place, external)));
        }
        let wrong = match change {
            NatChange::Reserve { protocol, port, .. } if self.ports_in_use.contains(&(protocol, port)) => {
                return (Err(NatFailure::PortInUse), None);
            }
            NatChange::Reserve { protocol, port, .. } => (self.rules.contains_key(&(protocol, port))
                && !self.kept.contains(&(protocol, port)))
            .then(|| format!("{protocol} {port} reserved while mapped")),
            NatChange::Move { .. } => None,
            NatChange::Install { rule, .. } => {
                let old = self.rules.insert(key(rule), rule);
                old.map(|old| format!("{rule:?} installed over {old:?}"))
            }
            NatChange::Replace { old, new, .. } => {
                let there = self.rules.insert(key(new), new);
                (there != Some(old) || key(old) != key(new))
                    .then(|| format!("{old:?} replaced by {new:?}, but there was {there:?}"))
            }
            NatChange::Remove(rule) => {
                let there = self.rules.remove(&key(rule));
                (there != Some(rule)).then(|| format!("{rule:?} removed, but there was {there:?}"))
            }
        };
        (Ok(()), wrong)
    }
}

pub(super) fn described(change: NatChange) -> String {
    let rule = |rule: NatRule| format!("{} {} -> {}", rule.protocol, rule.port, rule.internal);
    match change {
        NatChange::Reserve { protocol, port, .. } => format!("reserves {protocol} {port}"),
        NatChange::Install { rule: new, .. } => format!("installs {}", rule(new)),
        NatChange::Move { protocol, port, external } => {
            format!("leads LAN hosts to {protocol} {port} by {external:?}")
        }
        NatChange::Replace { new, .. } => format!("repoints {}", rule(new)),
        NatChange::Remove(old) => format!("removes {}", rule(old)),
    }
}

pub(super) fn outcome_words(outcome: &Result<(), NatFailure>) -> String {
    match outcome {
        Ok(()) => String::new(),
        Err(failure) => format!("FAILS: {failure:?}"),
    }
}
