//! When a question that nobody answers is asked again. All randomness is an argument.
//!
//! RFC 6887 §8.1.1 waits 3 s, then doubles, each time ±10 %, with 1024 s at most. Somebody who watches a terminal does not
//! wait that long: here the first wait is 1 s. RFC 6886 §3.1 waits 250 ms, then doubles, without a dice.

use std::time::Duration;

/// The longest wait (RFC 6887 §8.1.1, MRT).
const MRT: Duration = Duration::from_secs(1024);

/// How fast questions follow each other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Pace {
    /// PCP, somebody waits.
    Watched,
    /// PCP, as the RFC has it: a mapping that was kept and ended is asked for anew.
    Rfc,
    /// NAT-PMP.
    NatPmp,
}

impl Pace {
    /// The wait after a transmission, `previous` being the one before it; `roll` is uniform in `[0, 1)`.
    pub(super) fn wait(self, previous: Option<Duration>, roll: f64) -> Duration {
        let first = match self {
            Pace::Watched => Duration::from_secs(1),
            Pace::Rfc => Duration::from_secs(3),
            Pace::NatPmp => Duration::from_millis(250),
        };
        let wait = previous.map_or(first, |previous| previous * 2).min(MRT);
        match self {
            Pace::NatPmp => wait,
            Pace::Watched | Pace::Rfc => wait.mul_f64(0.9 + 0.2 * roll),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(pace: Pace, roll: f64) -> Vec<f64> {
        let mut previous = None;
        let mut all = Vec::new();
        for _ in 0..12 {
            let wait = pace.wait(previous, roll);
            all.push((wait.as_secs_f64() * 100.0).round() / 100.0);
            previous = Some(wait);
        }
        all
    }

    /// RFC 6887 §8.1.1: IRT 3 s, doubling, at most 1024 s, RAND in ±0.1. RFC 6886 §3.1: 250 ms, doubling.
    #[test]
    fn waits_double() {
        assert_eq!(waits(Pace::Rfc, 0.5)[..5], [3.0, 6.0, 12.0, 24.0, 48.0]);
        assert_eq!(waits(Pace::Rfc, 0.5)[11], 1024.0);
        assert_eq!(waits(Pace::Rfc, 0.0)[..2], [2.7, 4.86]);
        assert_eq!(Pace::Rfc.wait(None, 1.0), Duration::from_millis(3300));
        assert_eq!(waits(Pace::Watched, 0.5)[..4], [1.0, 2.0, 4.0, 8.0]);
        assert_eq!(waits(Pace::NatPmp, 0.9)[..4], [0.25, 0.5, 1.0, 2.0]);
    }
}
