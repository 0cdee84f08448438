//! Who counts on a mapping, and until when: one host may have asked for the same one by several protocols at once, as file-sharing
//! programs do, and it stands until the last of them has let it go.

use wire::pcp::Nonce;

use crate::time::{Duration, Instant};

/// In which protocol a LAN host asks, and by what it shows later that it was it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Asker {
    /// UPnP IGD: the host's address is all there is.
    Igd,
    /// PCP, by this nonce of the client's.
    Pcp(Nonce),
    /// NAT-PMP: the host's address, too.
    NatPmp,
    /// PCP's PEER, by this nonce: it counts on the way out, and only on that.
    Peer(Nonce),
}

impl Asker {
    /// Whether both are the same protocol.
    pub fn speaks_like(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

/// What a PCP client counts on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PcpClaim<T> {
    /// Its nonce.
    pub nonce: Nonce,
    /// When its lifetime ends, or what is left of it.
    pub ends: T,
}

/// See the module's description. `T` is a moment, or a time that is left.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Claims<T> {
    /// A control point's lease; `Some(None)`: for ever.
    pub igd: Option<Option<T>>,
    /// A PCP client's lifetime.
    pub pcp: Option<PcpClaim<T>>,
    /// A NAT-PMP client's lifetime.
    pub nat_pmp: Option<T>,
    /// What a PCP client counts on by PEER. It is no claim of MAP's, whose delete does not end it (RFC 6887 §15).
    pub peer: Option<PcpClaim<T>>,
}

impl<T> Default for Claims<T> {
    fn default() -> Self {
        Self { igd: None, pcp: None, nat_pmp: None, peer: None }
    }
}

impl<T: Copy + Ord> Claims<T> {
    /// That of the first who asks.
    pub fn of(asker: Asker, ends: Option<T>) -> Self {
        let mut new = Self::default();
        new.renew(asker, ends);
        new
    }

    /// `asker` counts on it until then; `None`: for ever, which only UPnP knows.
    pub fn renew(&mut self, asker: Asker, ends: Option<T>) {
        match (asker, ends) {
            (Asker::Igd, ends) => self.igd = Some(ends),
            (Asker::Pcp(nonce), Some(ends)) => self.pcp = Some(PcpClaim { nonce, ends }),
            (Asker::NatPmp, Some(ends)) => self.nat_pmp = Some(ends),
            // RFC 6887 §12.1: it does not become shorter.
            (Asker::Peer(nonce), Some(ends)) => {
                // Nor does another one's: there is room for who has the longest.
                let before = self.peer.filter(|before| before.ends >= ends);
                self.peer = Some(before.unwrap_or(PcpClaim { nonce, ends }));
            }
            (Asker::Pcp(_) | Asker::NatPmp | Asker::Peer(_), None) => {}
        }
    }

    /// `asker` has let it go.
    pub fn give_up(&mut self, asker: Asker) {
        match asker {
            Asker::Igd => self.igd = None,
            Asker::Pcp(_) => self.pcp = None,
            Asker::NatPmp => self.nat_pmp = None,
            Asker::Peer(_) => self.peer = None,
        }
    }

    /// When the last of them ends; `None` for never.
    pub fn end(&self) -> Option<T> {
        if self.igd == Some(None) {
            return None;
        }
        let [pcp, peer] = [self.pcp, self.peer].map(|claim| claim.map(|claim| claim.ends));
        [self.igd.flatten(), pcp, self.nat_pmp, peer].into_iter().flatten().max()
    }

    /// The same by another measure; `None` for one that has ended.
    #[must_use]
    pub fn map<U>(self, to: impl Fn(T) -> Option<U>) -> Claims<U> {
        let of_pcp = |PcpClaim { nonce, ends }| to(ends).map(|ends| PcpClaim { nonce, ends });
        Claims {
            igd: match self.igd {
                Some(Some(ends)) => to(ends).map(Some),
                Some(None) => Some(None),
                None => None,
            },
            pcp: self.pcp.and_then(of_pcp),
            nat_pmp: self.nat_pmp.and_then(&to),
            peer: self.peer.and_then(of_pcp),
        }
    }
}

/// By which protocols a mapping was asked for, of those that count on it still.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AskedBy {
    /// UPnP IGD.
    pub igd: bool,
    /// PCP, by MAP or PEER.
    pub pcp: bool,
    /// NAT-PMP.
    pub nat_pmp: bool,
}

impl AskedBy {
    /// And in this protocol.
    pub fn add(&mut self, asker: Asker) {
        match asker {
            Asker::Igd => self.igd = true,
            Asker::Pcp(_) | Asker::Peer(_) => self.pcp = true,
            Asker::NatPmp => self.nat_pmp = true,
        }
    }
}

impl<T> Claims<T> {
    /// By whom it was asked for and not let go. What ends by time alone stays in it until somebody next asks for the mapping, or lets
    /// it go: that is when who follows the mappings is told.
    pub fn protocols(&self) -> AskedBy {
        let Self { igd, pcp, nat_pmp, peer } = self;
        let by_pcp = pcp.is_some() || peer.is_some();
        AskedBy { igd: igd.is_some(), pcp: by_pcp, nat_pmp: nat_pmp.is_some() }
    }
}

impl Claims<Instant> {
    /// By whom it was asked for, of those who count on it; of what has just ended, who did.
    pub fn asked_by(self, now: Instant) -> AskedBy {
        self.last(now).protocols()
    }

    /// Those that have not ended.
    #[must_use]
    pub fn at(self, now: Instant) -> Self {
        self.map(|ends| (ends > now).then_some(ends))
    }

    /// What is left of them; when all are over, a moment, for no claims at all are no end.
    pub fn left(self, now: Instant) -> Claims<Duration> {
        self.last(now).map(|ends| Some((ends - now).max(Duration::from_millis(1))))
    }

    /// Those that have not ended, or all of them when none is left.
    fn last(self, now: Instant) -> Self {
        if self.at(now) == Self::default() { self } else { self.at(now) }
    }

    /// The same without PEER's, which does not care who else may come in.
    #[must_use]
    pub fn inward(self) -> Self {
        Self { peer: None, ..self }
    }

    /// Whether others than `asker` count on it.
    pub fn has_others_than(self, asker: Asker, now: Instant) -> bool {
        let mut others = self.at(now);
        others.give_up(asker);
        others != Self::default()
    }
}

impl Claims<Duration> {
    /// What is left of them after this time.
    #[must_use]
    pub fn after(self, passed: Duration) -> Self {
        self.map(|left| left.checked_sub(passed).filter(|left| !left.is_zero()))
    }

    /// As moments.
    pub fn from_now(self, now: Instant) -> Claims<Instant> {
        self.map(|left| Some(now + left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PCP: Asker = Asker::Pcp(Nonce([7; 12]));
    const PEER: Asker = Asker::Peer(Nonce([7; 12]));

    fn at(second: u64) -> Instant {
        Instant::from_secs(second)
    }

    #[test]
    fn it_stands_until_the_last_has_let_it_go() {
        let mut claims = Claims::of(Asker::Igd, None);
        assert_eq!(claims.end(), None, "for ever");
        claims.renew(PCP, Some(at(100)));
        claims.renew(Asker::NatPmp, Some(at(50)));
        assert_eq!(claims.end(), None);
        claims.renew(Asker::Igd, Some(at(60)));
        assert_eq!(claims.end(), Some(at(100)));
        claims.give_up(PCP);
        assert_eq!(claims.end(), Some(at(60)));
        assert!(claims.has_others_than(Asker::Igd, at(49)));
        assert!(!claims.has_others_than(Asker::Igd, at(50)), "NAT-PMP's has ended");
        claims.give_up(Asker::Igd);
        assert_eq!((claims.end(), claims.at(at(50))), (Some(at(50)), Claims::default()));
    }

    /// RFC 6887 §15: who lets go what MAP has made has not let go what PEER has, by the same nonce or another one.
    #[test]
    fn map_and_peer_are_apart() {
        let mut claims = Claims::of(PCP, Some(at(100)));
        claims.renew(PEER, Some(at(50)));
        claims.renew(PEER, Some(at(40)));
        claims.give_up(PCP);
        assert_eq!((claims.end(), claims.has_others_than(PCP, at(49))), (Some(at(50)), true));
        assert_eq!(claims.inward(), Claims::default());
    }

    #[test]
    fn what_is_left_comes_back_later() {
        let mut claims = Claims::of(PCP, Some(at(100)));
        claims.renew(Asker::Igd, None);
        claims.renew(Asker::NatPmp, Some(at(10)));
        let again = claims.left(at(40)).from_now(at(1000));
        let expected = Claims { pcp: Some(PcpClaim { nonce: Nonce([7; 12]), ends: at(1060) }), ..claims };
        assert_eq!(again, Claims { nat_pmp: None, ..expected });
    }

    /// What has just ended is stored as something that ends, not as something without an end.
    #[test]
    fn what_is_over_is_not_for_ever() {
        for asker in [Asker::Igd, PCP, Asker::NatPmp, PEER] {
            let left = Claims::of(asker, Some(at(10))).left(at(20));
            assert!(left.end().is_some_and(|left| left < Duration::from_secs(1)), "{left:?}");
            assert_eq!(left.after(Duration::from_secs(1)), Claims::default());
            let asked_by = Claims::of(asker, Some(at(10))).asked_by(at(20));
            assert_eq!(asked_by, Claims::of(asker, Some(at(30))).asked_by(at(20)));
        }
    }

    /// Only UPnP has mappings without an end.
    #[test]
    fn a_lifetime_without_an_end_is_none() {
        for asker in [PCP, Asker::NatPmp, PEER] {
            assert_eq!(Claims::<Instant>::of(asker, None), Claims::default());
        }
    }
}
