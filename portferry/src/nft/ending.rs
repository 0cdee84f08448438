//! Flows that changes of the table leave to be ended, and when that is done.
//!
//! The kernel looks through its whole table of flows for each of them: that takes some twenty microseconds on a small router and a millisecond
//! on one with much memory, however few flows there are. So after a mapping that ends alone it is done at once, and after
//! several that end one upon the other it is done for all of them together. What a new mapping has to have out of its way ends at once in any case: its host's
//! next packet counts on it.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::Nat1Rule;
use super::conntrack::Flows;

/// From the end of one walk to the next.
const APART: Duration = Duration::from_millis(100);
/// A walk takes no more than this part of the time …
const SHARE: u32 = 20;
/// … unless something would wait for longer than this.
const LONGEST: Duration = Duration::from_secs(1);

/// See the module's description.
#[derive(Clone, Debug, Default)]
pub(super) struct Ending {
    flows: BTreeSet<Flows>,
    /// The mappings that have gone, of which some of those are.
    gone: Vec<Nat1Rule>,
    not_before: Option<Instant>,
}

impl Ending {
    pub(super) fn add(&mut self, flows: BTreeSet<Flows>, gone: impl IntoIterator<Item = Nat1Rule>) {
        if !flows.is_empty() {
            self.flows.extend(flows);
            self.gone.extend(gone);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// When the next walk is due; `None`: there is nothing to end.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let waits = |flows: &Flows| matches!(flows, Flows::Mapped { .. } | Flows::Hairpin { .. });
        let not_before = self.not_before.filter(|at| *at > now && self.flows.iter().all(waits));
        (!self.flows.is_empty()).then(|| not_before.unwrap_or(now))
    }

    /// What is to be ended, once.
    pub(super) fn take(&mut self) -> BTreeSet<Flows> {
        self.gone.clear();
        std::mem::take(&mut self.flows)
    }

    /// A walk has ended that began then.
    pub(super) fn walked(&mut self, since: Instant, now: Instant) {
        self.not_before = Some(now + ((now - since) * (SHARE - 1)).clamp(APART, LONGEST));
    }

    /// Whether a mapping that is about to be made could not be told apart from what is to be ended, which has to end before then. One
    /// that comes back as it was has its flows back instead.
    pub(super) fn is_in_the_way_of(&mut self, new: &Nat1Rule) -> bool {
        if self.gone.contains(new) {
            self.gone.retain(|gone| gone != new);
            self.flows.retain(|flows| !is_of(flows, new));
        }
        self.flows.iter().any(|flows| touches(flows, new))
    }
}

/// Whether all that this selects came in by that very mapping.
fn is_of(flows: &Flows, rule: &Nat1Rule) -> bool {
    match *flows {
        Flows::Mapped { protocol, external_port, internal, remote_peer } => {
            (protocol, external_port, internal, remote_peer)
                == (rule.protocol, rule.external_port, rule.internal, rule.remote_peer)
        }
        Flows::Hairpin { protocol, outermost, internal, remote_peer } => {
            (protocol, Some(outermost), internal, remote_peer)
                == (rule.protocol, rule.outermost, rule.internal, rule.remote_peer)
        }
        Flows::Unanswered { .. } | Flows::Missed { .. } | Flows::From { .. } => false,
    }
}

/// Whether this may select what comes in, or leaves, by that mapping.
fn touches(flows: &Flows, rule: &Nat1Rule) -> bool {
    match *flows {
        Flows::Mapped { protocol, external_port, .. } => {
            (protocol, external_port) == (rule.protocol, rule.external_port)
        }
        Flows::Hairpin { protocol, outermost, .. } => {
            (protocol, Some(outermost)) == (rule.protocol, rule.outermost)
        }
        Flows::From { protocol, internal } => (protocol, internal) == (rule.protocol, rule.internal),
        // Those are translated by no mapping.
        Flows::Unanswered { .. } | Flows::Missed { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn mapped(port: u16) -> BTreeSet<Flows> {
        let internal = std::net::SocketAddrV4::new([10, 0, 0, 2].into(), port);
        BTreeSet::from([Flows::Mapped { protocol: 6, external_port: port, internal, remote_peer: None }])
    }

    #[tokio::test(start_paused = true)]
    async fn one_at_once_and_many_together() {
        let (mut ending, start) = (Ending::default(), Instant::now());
        assert_eq!(ending.due(start), None);
        ending.add(mapped(1), []);
        assert_eq!(ending.due(start), Some(start), "nobody waits for one");
        assert_eq!(ending.take(), mapped(1));
        ending.walked(start, start + MS);
        assert_eq!(ending.due(start + MS), None);
        ending.add(mapped(2), []);
        ending.add(mapped(3), []);
        assert_eq!(ending.due(start + MS * 2), Some(start + MS * 101));
        // A new mapping's host does not wait.
        ending.add(BTreeSet::from([Flows::Unanswered { protocol: 17, external_port: 4 }]), []);
        assert_eq!(ending.due(start + MS * 2), Some(start + MS * 2));
        assert_eq!(ending.take().len(), 3);
        // A kernel that takes long is asked seldom …
        ending.walked(start + MS * 200, start + MS * 220);
        ending.add(mapped(4), []);
        assert_eq!(ending.due(start + MS * 221), Some(start + MS * (220 + 19 * 20)));
        assert_eq!(ending.due(start + MS * 5000), Some(start + MS * 5000), "and now");
        // … but something ends for all that.
        ending.walked(start, start + MS * 5000);
        assert_eq!(ending.due(start), Some(start + MS * 6000));
    }

    #[test]
    fn what_comes_back_and_what_comes_in_its_place() {
        let rule = |external_port, host: u8, outermost: Option<&str>| Nat1Rule {
            protocol: 6,
            external_port,
            internal: std::net::SocketAddrV4::new([10, 0, 0, host].into(), 80),
            remote_peer: None,
            outermost: outermost.map(|text| text.parse().unwrap()),
        };
        let web = rule(8080, 2, Some("198.51.100.1:8080"));
        let mapped_by = |rule: &Nat1Rule| Flows::Mapped {
            protocol: rule.protocol,
            external_port: rule.external_port,
            internal: rule.internal,
            remote_peer: None,
        };
        for (name, new, in_the_way, left) in [
            ("the same", web, false, 0),
            ("by another outermost address", rule(8080, 2, Some("198.51.100.9:8080")), true, 1),
            ("to another host", rule(8080, 3, Some("198.51.100.1:8080")), true, 1),
            ("for one remote peer", Nat1Rule { remote_peer: Some([203, 0, 113, 9].into()), ..web }, true, 1),
            ("by another port", rule(8081, 2, None), false, 1),
            ("in UDP", Nat1Rule { protocol: 17, ..web }, false, 1),
        ] {
            let mut ending = Ending::default();
            ending.add(BTreeSet::from([mapped_by(&web)]), [web]);
            assert_eq!(ending.is_in_the_way_of(&new), in_the_way, "{name}");
            assert_eq!(ending.take().len(), left, "{name}");
        }
    }
}
