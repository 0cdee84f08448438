//! What the program has not been told yet. As long as there is room, all of it; beyond that, of each mapping how it is now.
//! So a queue is never longer than what there is to know, and nothing that stands is lost.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use engine::gateway::{Change, What};
use engine::uplink::FlowId;

/// So many changes are kept as they came.
pub(super) const ROOM: usize = 1024;

/// A change, and the uplink whose it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// What that is called.
    pub uplink: Arc<str>,
    /// The change.
    pub change: Change,
}

/// Something to tell.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum News {
    /// Nothing that was told before counts.
    Start,
    Change(Told),
}

/// What waits, and since when, in seconds since 1970.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Waiting {
    pub(super) news: News,
    pub(super) time: u64,
}

#[derive(Debug)]
pub(super) struct Queue {
    waiting: VecDeque<Waiting>,
    /// When it is as long as that, what has been overtaken goes.
    limit: usize,
    /// Something has gone since the queue was last empty.
    behind: bool,
}

impl Default for Queue {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), limit: ROOM, behind: false }
    }
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// A program that knows nothing: it hears what stands.
    pub(super) fn begin(&mut self, standing: impl Iterator<Item = Told>) {
        self.append(News::Start);
        for told in standing {
            self.push(told);
        }
    }

    /// True when something that was overtaken went, for the first time since the queue was empty.
    pub(super) fn push(&mut self, told: Told) -> bool {
        self.append(News::Change(told));
        if self.waiting.len() <= self.limit {
            return false;
        }
        let before = self.waiting.len();
        self.drop_overtaken();
        // Twice what there is to know, so that a change costs the same on average, however many there are.
        self.limit = ROOM.max(2 * self.waiting.len());
        let went = self.waiting.len() < before;
        went && !std::mem::replace(&mut self.behind, true)
    }

    fn append(&mut self, news: News) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.waiting.push_back(Waiting { news, time });
    }

    pub(super) fn pop(&mut self) -> Option<Waiting> {
        let next = self.waiting.pop_front();
        if next.is_none() {
            *self = Self::default();
        }
        next
    }

    /// Of each mapping, and of the external address, one change is left, in the place of the newest.
    pub(super) fn drop_overtaken(&mut self) {
        let mut kept: Vec<Option<Waiting>> = Vec::new();
        let mut places: BTreeMap<(Arc<str>, Option<FlowId>), usize> = BTreeMap::new();
        for Waiting { news, time } in std::mem::take(&mut self.waiting) {
            let News::Change(Told { uplink, change }) = news else {
                kept.push(Some(Waiting { news, time }));
                continue;
            };
            let flow = match &change {
                Change::External { .. } => None,
                Change::Mapping { flow, .. } => Some(*flow),
            };
            let of = (uplink.clone(), flow);
            let older = places.remove(&of).and_then(|place| kept[place].take());
            let merged = match older {
                Some(Waiting { news: News::Change(older), .. }) => merge(older.change, change),
                _ => Some(change),
            };
            if let Some(change) = merged {
                places.insert(of, kept.len());
                kept.push(Some(Waiting { news: News::Change(Told { uplink, change }), time }));
            }
        }
        self.waiting = kept.into_iter().flatten().collect();
    }
}

/// Two changes of the same as one; `None` when there is nothing to tell any more.
fn merge(older: Change, newer: Change) -> Option<Change> {
    match (older, newer) {
        (Change::External { before, .. }, Change::External { now, .. }) => {
            (before != now).then_some(Change::External { before, now })
        }
        (Change::Mapping { what: older, .. }, Change::Mapping { flow, what: newer, mapping }) => {
            let what = match (older, newer) {
                // The program has never heard of it.
                (What::Present | What::Began, What::Ended(_)) => return None,
                (What::Present | What::Began, _) => older,
                (What::Moved(from), What::Moved(_)) if from == mapping.external => What::Changed,
                (What::Moved(from), What::Moved(_) | What::Changed) => What::Moved(from),
                (_, newer) => newer,
            };
            Some(Change::Mapping { flow, what, mapping })
        }
        (_, newer) => Some(newer),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use engine::notice::Cause;

    use super::super::tests::{mapping, of, told};
    use super::*;

    fn all(queue: &mut Queue) -> Vec<(u64, What, u16)> {
        std::iter::from_fn(|| queue.pop())
            .filter_map(|waiting| match waiting.news {
                News::Change(Told { change: Change::Mapping { flow, what, mapping }, .. }) => {
                    Some((flow.0, what, mapping.external.port()))
                }
                _ => None,
            })
            .collect()
    }

    fn at(port: u16) -> SocketAddrV4 {
        mapping(port).external
    }

    #[test]
    fn everything_is_kept_while_there_is_room() {
        let mut queue = Queue::default();
        for n in 0..ROOM {
            let what = if n == 0 { What::Began } else { What::Changed };
            assert!(!queue.push(of(1, what, 5000)));
        }
        assert_eq!(all(&mut queue).len(), ROOM);
    }

    #[test]
    fn beyond_that_each_mapping_is_told_as_it_is_now() {
        let ended = What::Ended(Cause::Deleted);
        for (changes, wanted) in [
            (
                vec![of(1, What::Began, 5000), of(1, What::Moved(at(5000)), 5001)],
                vec![(1, What::Began, 5001)],
            ),
            (vec![of(1, What::Present, 5000), of(1, What::Changed, 5000)], vec![(1, What::Present, 5000)]),
            (vec![of(1, What::Began, 5000), of(1, ended, 5000)], vec![]),
            (
                vec![of(1, What::Moved(at(5000)), 5001), of(1, What::Moved(at(5001)), 5002)],
                vec![(1, What::Moved(at(5000)), 5002)],
            ),
            (
                vec![of(1, What::Moved(at(5000)), 5001), of(1, What::Changed, 5001)],
                vec![(1, What::Moved(at(5000)), 5001)],
            ),
            (
                vec![of(1, What::Moved(at(5000)), 5001), of(1, What::Moved(at(5001)), 5000)],
                vec![(1, What::Changed, 5000)],
            ),
            (vec![of(1, What::Changed, 5000), of(1, ended, 5000)], vec![(1, ended, 5000)]),
            // In the order of the last change of each.
            (
                vec![of(1, What::Changed, 5000), of(2, What::Began, 6000), of(1, What::Changed, 5000)],
                vec![(2, What::Began, 6000), (1, What::Changed, 5000)],
            ),
        ] {
            let mut queue = Queue::default();
            for change in changes.clone() {
                queue.push(change);
            }
            queue.drop_overtaken();
            assert_eq!(all(&mut queue), wanted, "{changes:?}");
        }
    }

    #[test]
    fn the_external_address_is_told_as_it_is_now() {
        let a = |n| Some(Ipv4Addr::new(203, 0, 113, n));
        let mut queue = Queue::default();
        queue.begin(std::iter::empty());
        for (before, now) in [(None, a(1)), (a(1), None), (None, a(2))] {
            queue.push(told(Change::External { before, now }));
        }
        let vpn = Told { uplink: "wg0".into(), change: Change::External { before: None, now: a(9) } };
        queue.push(vpn.clone());
        queue.drop_overtaken();
        assert_eq!(queue.pop().unwrap().news, News::Start);
        let wan = told(Change::External { before: None, now: a(2) });
        assert_eq!(queue.pop().unwrap().news, News::Change(wan));
        assert_eq!(queue.pop().unwrap().news, News::Change(vpn), "each uplink has its own");
        assert_eq!(queue.pop(), None);
    }

    /// However long it goes on, and it is said once.
    #[test]
    fn a_queue_is_not_longer_than_what_there_is_to_know() {
        let mut queue = Queue::default();
        let mut said = 0;
        let mut port = 5000;
        queue.push(of(1, What::Began, port));
        for n in 0..100_000_u64 {
            let from = at(port);
            port = if port == 5000 { 6000 } else { 5000 };
            said += usize::from(queue.push(of(1, What::Moved(from), port)));
            queue.push(of(2 + n, What::Began, 7000));
            queue.push(of(2 + n, What::Ended(Cause::Deleted), 7000));
            assert!(queue.len() <= ROOM + 1, "{}", queue.len());
        }
        assert_eq!(said, 1);
        queue.drop_overtaken();
        assert_eq!(all(&mut queue), [(1, What::Began, 5000)]);
    }

    /// A table of more mappings than there is room.
    #[test]
    fn what_stands_is_told_however_much_it_is() {
        let mut queue = Queue::default();
        queue.begin((0..5000).map(|n| of(n, What::Present, 7000)));
        assert_eq!(queue.len(), 5001);
        assert_eq!(all(&mut queue).len(), 5000);
    }
}
