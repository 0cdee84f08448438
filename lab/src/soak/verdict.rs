//! Pass or fail, from what was seen.

use std::time::Duration;

use super::samples::Sample;
use super::tally::Trouble;

/// RssAnon of a process may grow by so much after the warm-up, in KiB...
pub(super) const GROWTH: u64 = 512;
/// ...and by so much for each mapping and pinhole that there are more than then.
pub(super) const OF_ONE: u64 = 4;
/// A shorter play says nothing of memory.
pub(super) const SHORTEST: Duration = Duration::from_secs(300);

/// What troubles a fault is an excuse for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Window {
    /// From when until when, as [`super::tally::now`] tells it.
    pub(super) during: (Duration, Duration),
    /// The player whose troubles these are; `None`: each.
    pub(super) player: Option<usize>,
    /// Whether it excuses silence; else wrong answers alone.
    pub(super) silence: bool,
}

impl Window {
    /// Whether the fault may be why.
    pub(super) fn excuses(&self, player: usize, trouble: &Trouble) -> bool {
        let overlaps = trouble.during.0 <= self.during.1 && self.during.0 <= trouble.during.1;
        overlaps && self.player.is_none_or(|own| own == player) && (self.silence || !trouble.silent)
    }
}

/// When the warm-up ends and the first part of what is compared begins, and how long that is; the last part is as long.
fn parts(played: Duration) -> (Duration, Duration) {
    (Duration::from_secs(60).max(played / 10), played / 10)
}

/// RssAnon of one of the processes.
type Anonymous = fn(&Sample) -> u64;

/// What grew more than it may, of the samples of a play of that length.
pub(super) fn memory(samples: &[Sample], played: Duration) -> Vec<String> {
    if played < SHORTEST {
        return Vec::new();
    }
    let (begins, lasts) = parts(played);
    let between = |from: Duration, to: Duration| -> Vec<&Sample> {
        samples.iter().filter(|sample| (from..=to).contains(&sample.at)).collect()
    };
    let (early, late) = (between(begins, begins + lasts), between(played.saturating_sub(lasts), played));
    let table = |part: &[&Sample]| {
        let mut sizes: Vec<_> = part.iter().map(|sample| sample.mappings + sample.pinholes).collect();
        u64::try_from(median(&mut sizes)).unwrap_or(u64::MAX)
    };
    let may = GROWTH + OF_ONE * table(&late).saturating_sub(table(&early));
    let of: [(&str, Anonymous); 2] = [
        ("privileged", |sample| sample.privileged.anonymous),
        ("network", |sample| sample.network.anonymous),
    ];
    let mut failures = Vec::new();
    for (name, of_process) in of {
        let anonymous =
            |part: &[&Sample]| median(&mut part.iter().map(|sample| of_process(sample)).collect::<Vec<_>>());
        let (then, now) = (anonymous(&early), anonymous(&late));
        if now > then + may {
            failures.push(format!(
                "RssAnon of the {name} process grew from {then} to {now} KiB; {may} KiB more were allowed"
            ));
        }
    }
    failures
}

/// The middle one; 0 of none.
fn median<T: Ord + Copy + Default>(of: &mut [T]) -> T {
    of.sort_unstable();
    of.get(of.len() / 2).copied().unwrap_or_default()
}

/// What is left when everything should be gone again.
pub(super) fn leftovers(start: &Sample, end: &Sample) -> Vec<String> {
    let counts = [
        ("descriptors of the privileged process", start.privileged.descriptors, end.privileged.descriptors),
        ("descriptors of the network process", start.network.descriptors, end.network.descriptors),
        ("mappings", start.mappings, end.mappings),
        ("pinholes", start.pinholes, end.pinholes),
        ("rules in the kernel", start.rules, end.rules),
    ];
    let more = counts.into_iter().filter(|(_, then, now)| now > then);
    more.map(|(what, then, now)| format!("{what}: {then} at the start, {now} when all was let go")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::samples::Process;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn hour(network: impl Fn(u64) -> u64, mappings: impl Fn(u64) -> usize) -> Vec<Sample> {
        let sample = |at: u64| Sample {
            at: Duration::from_secs(at),
            network: Process { anonymous: network(at), ..Process::default() },
            mappings: mappings(at),
            ..Sample::default()
        };
        (0..=360).map(|ten| sample(ten * 10)).collect()
    }

    #[test]
    fn memory_that_grows_is_seen_and_memory_that_breathes_is_not() {
        let played = 3600 * SECOND;
        let verdict = |network: &dyn Fn(u64) -> u64, mappings: &dyn Fn(u64) -> usize| {
            memory(&hour(network, mappings), played).len()
        };
        assert_eq!(verdict(&|_| 3000, &|_| 100), 0);
        assert_eq!(verdict(&|at| 3000 + at, &|_| 100), 1, "a KiB a second");
        assert_eq!(verdict(&|at| 3000 + at % 400, &|_| 100), 0, "up and down");
        assert_eq!(verdict(&|at| if at < 60 { 500 } else { 3000 }, &|_| 100), 0, "the warm-up");
        assert_eq!(verdict(&|at| if at == 3600 { 9000 } else { 3000 }, &|_| 100), 0, "one peak");
        assert_eq!(verdict(&|at| 3000 + at, &|at| usize::try_from(at).unwrap()), 0, "as many more mappings");
        assert_eq!(memory(&hour(|at| 3000 + at * 100, |_| 0), 299 * SECOND), Vec::<String>::new());
    }

    #[test]
    fn what_is_left_is_named() {
        let start = Sample { mappings: 1, rules: 2, ..Sample::default() };
        assert_eq!(leftovers(&start, &start), Vec::<String>::new());
        assert_eq!(leftovers(&start, &Sample { mappings: 2, ..start.clone() }).len(), 1);
        let network = Process { descriptors: 1, ..Process::default() };
        assert_eq!(leftovers(&start, &Sample { network, ..start.clone() }).len(), 1);
        assert_eq!(leftovers(&start, &Sample { mappings: 0, ..start.clone() }), Vec::<String>::new());
    }

    #[test]
    fn a_fault_excuses_what_it_may_have_done_and_nothing_else() {
        let trouble = |silent, from: u32, to: u32| Trouble {
            silent,
            kind: "x".into(),
            during: (from * SECOND, to * SECOND),
            why: String::new(),
        };
        let window = Window { during: (10 * SECOND, 20 * SECOND), player: Some(1), silence: false };
        assert!(window.excuses(1, &trouble(false, 5, 10)));
        assert!(window.excuses(1, &trouble(false, 20, 25)));
        assert!(window.excuses(1, &trouble(false, 5, 25)));
        assert!(!window.excuses(1, &trouble(false, 5, 9)));
        assert!(!window.excuses(1, &trouble(false, 21, 25)));
        assert!(!window.excuses(0, &trouble(false, 12, 13)), "another host's");
        assert!(!window.excuses(1, &trouble(true, 12, 13)), "silence");
        assert!(Window { silence: true, player: None, ..window }.excuses(0, &trouble(true, 12, 13)));
    }
}
