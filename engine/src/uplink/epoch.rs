//! Has the server lost its state? (RFC 6887 §8.5; R-38, decision 16)

use crate::time::Instant;

/// What was last heard of one server's epoch.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct EpochClock {
    last: Option<(Instant, u32)>,
}

impl EpochClock {
    /// Takes in the Epoch Time of a response received at `now`; false when the server must have lost its state
    /// since the last one.
    pub fn is_consistent(&mut self, now: Instant, epoch: u32) -> bool {
        let Some((then, before)) = self.last.replace((now, epoch)) else {
            return true;
        };
        if epoch < before && before - epoch > 1 {
            return false;
        }
        // A step back of one second is allowed (reordering) and counts as no step at all.
        let server = u64::from(epoch.saturating_sub(before));
        let client = now.as_secs() - then.as_secs();
        client + 2 >= server - server / 16 && server + 2 >= client - client / 16
    }

    /// The server's last Epoch Time, in seconds.
    pub fn last(&self) -> Option<u32> {
        self.last.map(|(_, epoch)| epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row: client seconds and epoch of two responses, and whether the second is believed (RFC 6887 §8.5).
    #[test]
    fn rfc6887_8_5_epoch_rule() {
        for (first, second, consistent) in [
            ((0, 100), (10, 110), true),
            ((0, 100), (10, 112), true),  // server ahead by 2
            ((0, 100), (10, 113), false), // by 3
            ((0, 100), (10, 108), true),  // behind by 2
            ((0, 100), (10, 107), false),
            ((0, 100), (0, 99), true),             // back by one: reordered
            ((0, 100), (0, 98), false),            // back by two: lost
            ((0, 100_000), (1600, 101_702), true), // a clock that is 1/16 fast: 1702 - 106 = 1596 <= 1602
            ((0, 100_000), (1600, 101_710), false),
            ((0, 100_000), (1600, 101_498), true), // a clock that is 1/16 slow
            ((0, 100_000), (1600, 101_497), false),
            ((0, 100_000), (60, 0), false), // restarted
            ((5, 0xffff_ffff), (6, 0), false),
        ] {
            let mut clock = EpochClock::default();
            assert!(clock.is_consistent(Instant::from_secs(first.0), first.1));
            let verdict = clock.is_consistent(Instant::from_secs(second.0), second.1);
            assert_eq!(verdict, consistent, "{first:?} then {second:?}");
        }
    }

    #[test]
    fn a_loss_is_told_once() {
        let mut clock = EpochClock::default();
        assert!(clock.is_consistent(Instant::from_secs(0), 5000));
        assert!(!clock.is_consistent(Instant::from_secs(1), 3));
        assert!(clock.is_consistent(Instant::from_secs(2), 4));
    }
}
