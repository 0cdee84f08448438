//! Has the server lost its state? (RFC 6887 §8.5; R-38, decision 16)

use crate::time::{Duration, Instant};

/// Whether a server has begun since it gave something.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum BegunSince {
    /// It gave that in this life.
    No,
    /// It may have, within the second that it counts as one.
    Perhaps,
    /// It has, unless its clock is slow.
    Probably,
    /// It has.
    Yes,
}

/// Whether a server that has counted `epoch` seconds at `now` has begun since `granted`. It counts whole seconds, and so can show
/// nothing of what was less than one before its start; its clock may be slower than ours by one part in `slack` (RFC 6887 §8.5: 16,
/// RFC 6886 §3.6: 7).
pub(super) fn begun_since(granted: Instant, now: Instant, epoch: u32, slack: u32) -> BegunSince {
    let (ago, least) = (now - granted, u64::from(epoch));
    let counted = least + 1;
    let limits = [
        (counted + least / u64::from(slack), BegunSince::Yes),
        (counted, BegunSince::Probably),
        (least, BegunSince::Perhaps),
    ];
    let beyond = limits.into_iter().find(|(limit, _)| ago > Duration::from_secs(*limit));
    beyond.map_or(BegunSince::No, |(_, begun)| begun)
}

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

/// State losses are recovered from at most this often: a server with a wrong epoch must not make a storm (security policy).
const RECOVERY_GAP: Duration = Duration::from_secs(10);

/// When a server's state was last recovered, or will be.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Recoveries {
    last: Option<Instant>,
}

impl Recoveries {
    /// One is needed at `now`: when it begins; and whether it is another one, or one that is due already and will find out what there
    /// is.
    pub(super) fn begin(&mut self, now: Instant) -> (Instant, bool) {
        let due = self.last.filter(|last| *last > now);
        let start = due.unwrap_or(self.last.map_or(now, |last| now.max(last + RECOVERY_GAP)));
        self.last = Some(start);
        (start, due.is_none())
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

    /// Each row: how long ago something was given (milliseconds), the epoch now, and what follows by RFC 6887's clocks.
    #[test]
    fn younger_than_what_it_gave() {
        use BegunSince::{No, Perhaps, Probably, Yes};
        for (ago, epoch, begun) in [
            (0, 0, No),
            (1, 0, Perhaps),
            (1000, 0, Perhaps),
            (1001, 0, Yes),
            (5000, 5, No),
            (5001, 5, Perhaps),
            (6001, 5, Yes),
            (160_000, 160, No),
            (161_000, 160, Perhaps),
            (171_000, 160, Probably), // a clock that is 1/16 slow
            (171_001, 160, Yes),
            (u64::from(u32::MAX) * 1000, u32::MAX, No),
        ] {
            let granted = Instant::from_secs(5);
            let now = granted + Duration::from_millis(ago);
            assert_eq!(begun_since(granted, now, epoch, 16), begun, "{ago} ms ago at {epoch}");
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
