//! When a PCP client sends: retransmission (RFC 6887 §8.1.1) and renewal (§11.2.1; R-32). All randomness is an argument.

use crate::time::Duration;

/// Initial retransmission time.
const IRT: Duration = Duration::from_secs(3);
/// Maximum retransmission time.
const MRT: Duration = Duration::from_secs(1024);
/// Two renewals of one mapping are never closer together (RFC 6887 §11.2.1).
pub const MIN_RENEWAL_GAP: Duration = Duration::from_secs(4);

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
}
