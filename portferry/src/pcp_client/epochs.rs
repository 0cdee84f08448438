//! Whether a server still has the state that it had. Each protocol has an epoch of its own, and a rule of its own.

use engine::time::Instant;
use engine::uplink::EpochClock;

use super::message::Answer;

/// What was last heard of one server's epochs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Epochs {
    pcp: EpochClock,
    nat_pmp: Option<(Instant, u32)>,
}

impl Epochs {
    /// Takes in an answer received at `now`; false when the server must have lost its state since the last one in the same
    /// protocol.
    pub(super) fn is_consistent(&mut self, now: Instant, answer: &Answer) -> bool {
        match answer {
            // Who does not speak the version has no state in it.
            Answer::Version(_) => true,
            Answer::Pcp(response) => self.pcp.is_consistent(now, response.epoch),
            Answer::NatPmp(response) => {
                let Some(epoch) = response.epoch() else { return true };
                let Some((then, before)) = self.nat_pmp.replace((now, epoch)) else { return true };
                // RFC 6886 §3.6: behind 7/8 of our own clock by more than 2 s. One that is ahead has lost nothing.
                let expected = u64::from(before) + (now - then).as_secs() * 7 / 8;
                u64::from(epoch) + 2 >= expected
            }
        }
    }
}
