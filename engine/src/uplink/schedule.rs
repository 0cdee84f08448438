//! When a client sends: PCP's retransmission (RFC 6887 §8.1.1), and every protocol's renewal (§11.2.1; R-32) and delete. All
//! randomness is an argument.

use super::flow::{Grant, Terms};
use crate::entropy::Entropy;
use crate::time::{Duration, Instant};

/// Initial retransmission time.
const IRT: Duration = Duration::from_secs(3);
/// Maximum retransmission time.
const MRT: Duration = Duration::from_secs(1024);
/// Two renewals of one mapping are never closer together (RFC 6887 §11.2.1).
pub const MIN_RENEWAL_GAP: Duration = Duration::from_secs(4);
/// How long a delete is repeated when it is not known what the server holds.
pub(super) const BLIND_DELETE: Duration = Duration::from_secs(30);

/// `(1 + RAND) × IRT`, the wait after the first transmission; `roll` is uniform in `[0, 1)`, RAND in ±0.1.
pub fn first_rt(roll: f64) -> Duration {
    IRT.mul_f64(0.9 + 0.2 * roll)
}

/// `(1 + RAND) × min(2 × previous, MRT)`.
pub fn next_rt(previous: Duration, roll: f64) -> Duration {
    (previous * 2).min(MRT).mul_f64(0.9 + 0.2 * roll)
}

/// The waits after each of the first transmissions when a control point is waiting for the answer: it gives up
/// after 4–5 s, so the RFC's first 3 s (a SHOULD) would leave room for one packet only.
pub(super) const IMPATIENT: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];

/// When renewal number `attempt` (1, 2, 3 …) is due, counted from the grant: uniform in [1/2, 5/8) of `lifetime`,
/// then [3/4, 13/16), then [7/8, 29/32), …
pub fn renewal_delay(lifetime: Duration, attempt: u32, roll: f64) -> Duration {
    let left = 0.5_f64.powi(i32::try_from(attempt).unwrap_or(i32::MAX));
    lifetime.mul_f64(1.0 - left + roll * left / 4.0)
}

/// When a held mapping is looked after next, last asked for at `sent_at` and in vain `attempts` times since it was granted: its
/// next renewal, or its end when its owner's lease ends first.
pub(super) fn next_wake(
    now: Instant,
    grant: Grant,
    terms: &Terms,
    sent_at: Instant,
    attempts: u32,
    entropy: &mut dyn Entropy,
) -> Instant {
    if terms.lease_ends.is_some_and(|end| end <= grant.ends()) {
        return grant.ends();
    }
    let due = grant.since + renewal_delay(grant.lifetime, attempts + 1, entropy.unit());
    due.max(sent_at + MIN_RENEWAL_GAP).max(now).min(grant.ends())
}

/// Whether a mapping that was granted, and not asked for since, may be renewed already: from half of its lifetime on, unless its
/// owner's lease ends before that.
pub(super) fn may_renew(now: Instant, grant: Grant, terms: &Terms, sent_at: Instant) -> bool {
    terms.lease_ends.is_none_or(|end| end > grant.ends())
        && now >= grant.since + renewal_delay(grant.lifetime, 1, 0.0)
        && now >= sent_at + MIN_RENEWAL_GAP
        && now < grant.ends()
}

/// Until when a delete that begins now is repeated: as long as the server may hold what it granted.
pub(super) fn delete_until(now: Instant, grant: Option<Grant>) -> Instant {
    let known = grant.map(|grant| grant.ends()).filter(|&ends| ends > now);
    known.map_or(now + BLIND_DELETE, |ends| ends.max(now + MIN_RENEWAL_GAP))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALMOST_ONE: f64 = 1.0 - 1e-9;

    #[test]
    fn rfc6887_8_1_1_retransmission_times() {
        let secs = |d: Duration| (d.as_secs_f64() * 1000.0).round() / 1000.0;
        assert_eq!((secs(first_rt(0.0)), secs(first_rt(ALMOST_ONE))), (2.7, 3.3));
        let three = Duration::from_secs(3);
        assert_eq!((secs(next_rt(three, 0.0)), secs(next_rt(three, ALMOST_ONE))), (5.4, 6.6));
        assert_eq!(secs(next_rt(Duration::from_secs(600), 0.5)), 1024.0);
        assert_eq!(secs(next_rt(Duration::from_secs(2000), ALMOST_ONE)), 1126.4);
    }

    /// RFC 6887 §11.2.1's own example: 5 minutes.
    #[test]
    fn rfc6887_11_2_1_renewal_times_of_five_minutes() {
        let lifetime = Duration::from_secs(300);
        for (attempt, from, to) in [(1, 150.0, 187.5), (2, 225.0, 243.75), (3, 262.5, 271.875)] {
            assert_eq!(renewal_delay(lifetime, attempt, 0.0).as_secs_f64(), from);
            let latest = renewal_delay(lifetime, attempt, ALMOST_ONE).as_secs_f64();
            assert!(latest <= to && latest > to - 0.001, "attempt {attempt}: {latest}");
        }
    }

    #[test]
    fn no_attempt_is_ever_past_the_lifetime() {
        for attempt in [30, 100, u32::MAX] {
            assert!(
                renewal_delay(Duration::from_secs(86400), attempt, ALMOST_ONE) <= Duration::from_secs(86400)
            );
        }
    }

    /// Always half of what may be drawn.
    struct Half;

    impl Entropy for Half {
        fn fill(&mut self, bytes: &mut [u8]) {
            bytes.fill(0);
            bytes[0] = 0x80;
        }

        fn derive(&self, _: &[u8]) -> [u8; 16] {
            [0; 16]
        }
    }

    fn at(seconds: u64) -> Instant {
        Instant::default() + Duration::from_secs(seconds)
    }

    fn granted(lifetime: u64) -> Grant {
        Grant {
            external: "192.0.2.1:80".parse().unwrap(),
            lifetime: Duration::from_secs(lifetime),
            since: at(1000),
        }
    }

    #[test]
    fn what_stands_is_looked_after_before_it_ends() {
        for (what, lifetime, lease_ends, sent_at, now, expected) in [
            ("RFC 6887 §11.2.1: between a half and five eighths", 1600, None, 1000, 1000, 1900),
            ("a lease that goes on beyond the grant changes nothing", 1600, Some(2601), 1000, 1000, 1900),
            ("a lease that ends with the grant needs no renewal", 1600, Some(2600), 1000, 1000, 2600),
            ("never within 4 s of the last request", 8, None, 1003, 1003, 1007),
            ("never in the past", 1600, None, 1000, 2000, 2000),
            ("never after the end", 2, None, 1000, 1000, 1002),
        ] {
            let terms = Terms {
                prefer_failure: false,
                lease_ends: lease_ends.map(at),
                longest: 3600,
                description: String::new(),
            };
            let wake = next_wake(at(now), granted(lifetime), &terms, at(sent_at), 0, &mut Half);
            assert_eq!(wake, at(expected), "{what}");
        }
    }

    #[test]
    fn a_delete_is_repeated_as_long_as_it_makes_sense() {
        assert_eq!(delete_until(at(1000), Some(granted(600))), at(1600), "until the grant ends");
        assert_eq!(delete_until(at(1599), Some(granted(600))), at(1603), "and for one answer at least");
        assert_eq!(delete_until(at(1600), Some(granted(600))), at(1630), "a renewal may have got through");
        assert_eq!(delete_until(at(1000), None), at(1030), "what was never granted may stand all the same");
    }
}
