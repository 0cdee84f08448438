//! Which ports are free, kept as runs of neighbours: finding one, or many in a row, costs the logarithm of their number.

use std::collections::{BTreeMap, BTreeSet};

/// A set of ports.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Runs {
    /// First and last port of each run; between two runs there is a gap.
    runs: BTreeMap<u16, u16>,
    /// Parity of the first port, how many more there are behind it, the first port: one for each run.
    by_len: BTreeSet<(u16, u16, u16)>,
}

impl Runs {
    /// Adds all from `first` to `last`, whether there already or not.
    pub(super) fn add(&mut self, first: u16, last: u16) {
        self.cut(first, last);
        let (mut first, mut last) = (first, last);
        if let Some(before) = first.checked_sub(1).and_then(|before| self.run_of(before)) {
            self.forget(before);
            first = before.0;
        }
        if let Some(behind) = last.checked_add(1).and_then(|behind| self.run_of(behind)) {
            self.forget(behind);
            last = behind.1;
        }
        self.keep((first, last));
    }

    /// Removes all from `first` to `last`, whether there or not.
    pub(super) fn cut(&mut self, first: u16, last: u16) {
        while let Some((from, to)) = self.overlapping(first, last) {
            self.forget((from, to));
            if from < first {
                self.keep((from, first - 1));
            }
            if to > last {
                self.keep((last + 1, to));
            }
        }
    }

    /// Whether all from `first` to `last` are there.
    pub(super) fn contains(&self, first: u16, last: u16) -> bool {
        self.run_of(first).is_some_and(|(_, to)| last <= to)
    }

    /// The first from `first` to `last` that is there.
    pub(super) fn first_in(&self, first: u16, last: u16) -> Option<u16> {
        self.overlapping(first, last).map(|(from, _)| from.max(first))
    }

    /// The runs from `first` to `last`, cut at these ends.
    pub(super) fn within(&self, first: u16, last: u16) -> impl Iterator<Item = (u16, u16)> {
        let begun = first.checked_sub(1).and_then(|before| self.run_of(before));
        let begun = begun.into_iter().filter(move |&(_, to)| to >= first);
        let others = self.runs.range(first..).take_while(move |&(&from, _)| from <= last);
        begun
            .chain(others.map(|(&from, &to)| (from, to)))
            .map(move |(from, to)| (from.max(first), to.min(last)))
    }

    /// How many are there in a row from `port` on.
    pub(super) fn in_a_row(&self, port: u16) -> u16 {
        self.run_of(port).map_or(0, |(_, to)| (to - port).saturating_add(1))
    }

    /// `size` of them in a row, from a port of that parity if one is given, out of the shortest run that has so many. Fewer
    /// from the longest one, if there is no such run; none at all only when there is no port of that parity.
    pub(super) fn row(&self, size: u16, parity: Option<u16>) -> Option<(u16, u16)> {
        // Which port of a run comes first, and how many may follow it.
        let fit = |&(even, more, from): &(u16, u16, u16)| {
            let skipped = u16::from(parity.is_some_and(|parity| parity != even));
            Some((from.checked_add(skipped)?, more.checked_sub(skipped)?))
        };
        let candidates = |even: u16| {
            let skipped = u16::from(parity.is_some_and(|parity| parity != even));
            let least = (size - 1).saturating_add(skipped);
            let enough = self.by_len.range((even, least, 0)..=(even, u16::MAX, u16::MAX)).next();
            let longest = self.by_len.range((even, 0, 0)..=(even, u16::MAX, u16::MAX)).next_back();
            (enough.and_then(fit), longest.and_then(fit))
        };
        let (even, odd) = (candidates(0), candidates(1));
        let enough = [even.0, odd.0].into_iter().flatten().filter(|&(_, more)| more >= size - 1);
        let shortest = enough.min_by_key(|&(from, more)| (more, from));
        let longest = [even.1, odd.1].into_iter().flatten().max_by_key(|&(_, more)| more);
        shortest.or(longest).map(|(from, more)| (from, more.saturating_add(1).min(size)))
    }

    fn run_of(&self, port: u16) -> Option<(u16, u16)> {
        let (&from, &to) = self.runs.range(..=port).next_back()?;
        (port <= to).then_some((from, to))
    }

    fn overlapping(&self, first: u16, last: u16) -> Option<(u16, u16)> {
        self.run_of(first).or_else(|| self.runs.range(first..=last).next().map(|(&from, &to)| (from, to)))
    }

    fn keep(&mut self, (from, to): (u16, u16)) {
        self.runs.insert(from, to);
        self.by_len.insert((from % 2, to - from, from));
    }

    fn forget(&mut self, (from, to): (u16, u16)) {
        self.runs.remove(&from);
        self.by_len.remove(&(from % 2, to - from, from));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::{Entropy as _, SeededEntropy};

    fn runs(of: &[(u16, u16)]) -> Runs {
        let mut runs = Runs::default();
        for &(first, last) in of {
            runs.add(first, last);
        }
        runs
    }

    #[test]
    fn neighbours_become_one_run() {
        let mut all = runs(&[(10, 19), (30, 39), (20, 29)]);
        assert_eq!(all.within(0, u16::MAX).collect::<Vec<_>>(), [(10, 39)]);
        all.cut(15, 34);
        assert_eq!(all.within(0, u16::MAX).collect::<Vec<_>>(), [(10, 14), (35, 39)]);
        assert_eq!(all.within(12, 36).collect::<Vec<_>>(), [(12, 14), (35, 36)]);
        all.add(0, u16::MAX);
        assert_eq!(all, runs(&[(0, u16::MAX)]));
        all.cut(0, u16::MAX);
        assert_eq!(all, Runs::default());
        assert_eq!((all.row(1, None), all.first_in(0, u16::MAX)), (None, None));
    }

    #[test]
    fn rows_keep_parity_and_come_from_the_shortest_run_that_has_them() {
        let all = runs(&[(11, 13), (20, 29), (41, 60)]);
        for (size, parity, expected) in [
            (1, None, Some((11, 1))),
            (3, None, Some((11, 3))),
            (3, Some(1), Some((11, 3))),
            (2, Some(0), Some((12, 2))),
            (3, Some(0), Some((20, 3))),
            (10, Some(0), Some((20, 10))),
            (10, Some(1), Some((41, 10))),
            (19, Some(0), Some((42, 19))),
            (20, Some(0), Some((42, 19))),
            (u16::MAX, None, Some((41, 20))),
        ] {
            assert_eq!(all.row(size, parity), expected, "{size} {parity:?}");
        }
        assert_eq!(runs(&[(7, 7)]).row(1, Some(0)), None);
        assert_eq!(runs(&[(7, 7)]).row(9, Some(1)), Some((7, 1)));
        assert_eq!(runs(&[(65_535, 65_535)]).row(2, Some(0)), None);
    }

    /// Against a plain list of ports.
    #[test]
    fn runs_say_what_a_list_would() {
        let mut dice = SeededEntropy::new(7);
        let mut roll = |sides: u16| {
            let mut two = [0; 2];
            dice.fill(&mut two);
            u16::from_be_bytes(two) % sides
        };
        let (mut all, mut list) = (Runs::default(), [false; 64]);
        for step in 0..4000 {
            let (first, more) = (roll(64), roll(8));
            let last = (first + more).min(63);
            let free = roll(2) == 0;
            if free {
                all.add(first, last);
            } else {
                all.cut(first, last);
            }
            list[usize::from(first)..=usize::from(last)].fill(free);
            let there = |port: u16| list.get(usize::from(port)).copied().unwrap_or(false);
            let ports: Vec<u16> = all.within(0, 63).flat_map(|(from, to)| from..=to).collect();
            assert_eq!(ports, (0..64).filter(|&port| there(port)).collect::<Vec<_>>(), "step {step}");
            assert_eq!(all.by_len.len(), all.runs.len(), "step {step}");
            let port = roll(64);
            let row = (port..64).take_while(|&port| there(port)).count();
            assert_eq!(usize::from(all.in_a_row(port)), row, "step {step}");
            assert_eq!(all.first_in(port, 63), (port..64).find(|&port| there(port)), "step {step}");
            assert_eq!(all.contains(first, last), (first..=last).all(there), "step {step}");
            let (size, parity) = (1 + roll(9), Some(roll(3)).filter(|&parity| parity < 2));
            let best = (0..64)
                .filter(|&from| parity.is_none_or(|parity| from % 2 == parity))
                .map(|from| (from..64).take(size.into()).take_while(|&port| there(port)).count())
                .max();
            let (from, got) = all.row(size, parity).unwrap_or((0, 0));
            assert_eq!(Some(usize::from(got)), best, "step {step}");
            assert!(
                (from..from + got).all(there) && parity.is_none_or(|parity| got == 0 || from % 2 == parity)
            );
        }
    }
}
