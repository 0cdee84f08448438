//! One mapping at the router, from the first look at its port to the end.

use super::{Duration, Grant, Instant, Want, name};

/// The longest description that is sent, in octets: some routers refuse longer ones, or cut them in the middle of a character.
const LONGEST_DESCRIPTION: usize = 48;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Phase {
    /// It is asked for, or waits in the line for that.
    Asking,
    /// Granted; so many renewals have been tried since.
    Held { attempts: u32 },
    /// It is given back; that makes no sense after `until`.
    Deleting { until: Instant },
}

/// What is known of the entry at its port, in this round.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Looked {
    No,
    /// There is none, or the router does not tell.
    Free,
    /// It leads here.
    Ours,
    /// It leads here, and the router refuses to renew it: it goes first.
    ToClear,
    /// So it has gone.
    Cleared,
}

#[derive(Clone, Debug)]
pub(super) struct Flow {
    pub(super) want: Want,
    pub(super) phase: Phase,
    pub(super) grant: Option<Grant>,
    /// The external port that it has or tries; 0 before it is chosen.
    pub(super) port: u16,
    /// How many others were tried before.
    pub(super) tries: u32,
    pub(super) looked: Looked,
    /// The router keeps it until it is deleted.
    pub(super) permanent: bool,
    /// A lease without end was tried because another one was refused.
    pub(super) tried_permanent: bool,
    /// How often it was gone when it was looked at, since it was last seen.
    pub(super) vanished: u32,
    /// AddPortMapping went out, and no answer came since.
    pub(super) unanswered: bool,
    /// When that went out last.
    pub(super) sent_at: Instant,
    /// When its entry was last seen, or made.
    pub(super) seen_at: Instant,
    /// When its owner last asked for it.
    pub(super) used_at: Instant,
}

impl Flow {
    pub(super) fn new(now: Instant, want: Want) -> Self {
        Self {
            want,
            phase: Phase::Asking,
            grant: None,
            port: 0,
            tries: 0,
            looked: Looked::No,
            permanent: false,
            tried_permanent: false,
            vanished: 0,
            unanswered: false,
            sent_at: now,
            seen_at: now,
            used_at: now,
        }
    }

    /// What follows is another round: the entry is looked at again.
    pub(super) fn begin(&mut self, phase: Phase) {
        self.phase = phase;
        self.looked = Looked::No;
    }

    pub(super) fn is_deleting(&self) -> bool {
        matches!(self.phase, Phase::Deleting { .. })
    }

    /// Whether another external port does as well.
    pub(super) fn takes_any(&self) -> bool {
        !self.want.terms.prefer_failure || self.want.external_port == 0
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.grant.is_some_and(|grant| grant.ends() <= now)
    }

    pub(super) fn lasts(&self, now: Instant) -> bool {
        self.grant.is_some_and(|grant| grant.ends() > now)
    }

    pub(super) fn protocol(&self) -> &'static str {
        name(self.want.protocol).expect("no other is taken in")
    }

    /// As much of its owner's words as every router stores, cut between characters; some refuse an empty text.
    pub(super) fn description(&self) -> &str {
        let text = &*self.want.terms.description;
        let end = (0..=text.len().min(LONGEST_DESCRIPTION)).rev().find(|&end| text.is_char_boundary(end));
        match text[..end.unwrap_or(0)].trim() {
            "" => "portferry",
            words => words,
        }
    }

    /// The router says that so many seconds are left, which are fewer than was thought.
    pub(super) fn shorten(&mut self, now: Instant, lease: u32) -> bool {
        let left = Duration::from_secs(lease.into());
        match &mut self.grant {
            Some(grant) if now + left + Duration::from_secs(60) < grant.ends() => {
                (grant.since, grant.lifetime) = (now, left);
                true
            }
            _ => false,
        }
    }
}
