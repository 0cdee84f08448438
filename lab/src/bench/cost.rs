//! Processor time of one request, and time that passes: least, median, ninety-ninth of a hundred.

use std::fmt;
use std::time::Duration;

use super::rig::Rig;

/// Processor time of one request, of several rounds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Cost {
    pub(super) least: Duration,
    pub(super) median: Duration,
}

impl Cost {
    /// Measures rounds of so many requests each, which `round` makes.
    pub(super) fn of(rig: &Rig, rounds: u32, requests: u32, mut round: impl FnMut()) -> Self {
        let one = |_| {
            let before = rig.cpu();
            round();
            (rig.cpu() - before) / requests.max(1)
        };
        let times: Times = (0..rounds).map(one).collect();
        Self { least: times.at(0), median: times.at(50) }
    }
}

/// The least, and the median in brackets, in microseconds.
impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", micros(self.least), micros(self.median))
    }
}

/// Microseconds, with as many digits as mean something.
pub(super) fn micros(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    if micros < 100.0 { format!("{micros:.1}") } else { format!("{micros:.0}") }
}

/// Milliseconds, likewise.
pub(super) fn millis(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1e3;
    if millis < 10.0 { format!("{millis:.2}") } else { format!("{millis:.0}") }
}

/// Durations in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Times(Vec<Duration>);

impl FromIterator<Duration> for Times {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        let mut all: Vec<Duration> = times.into_iter().collect();
        all.sort_unstable();
        Self(all)
    }
}

impl Times {
    /// What so many of a hundred are not longer than: 0 the least, 50 the median.
    pub(super) fn at(&self, percent: usize) -> Duration {
        let last = self.0.len().saturating_sub(1);
        self.0.get((self.0.len() * percent / 100).min(last)).copied().unwrap_or_default()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let times: Times = (1..=200).rev().map(Duration::from_micros).collect();
        let at = |percent| times.at(percent).as_micros();
        assert_eq!((at(0), at(50), at(99), at(100)), (1, 101, 199, 200));
        assert_eq!(Times::default().at(50), Duration::ZERO);
        assert_eq!((micros(times.at(0)), millis(times.at(99))), ("1.0".to_owned(), "0.20".to_owned()));
    }
}
