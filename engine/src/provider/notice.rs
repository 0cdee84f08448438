//! What the person who runs the server is told. Only what changes is told, never each request: who floods the server does not
//! flood its log.

use std::fmt;
use std::net::Ipv4Addr;

use super::interface::NatRefused;
use crate::time::{Duration, Instant};

/// A happening worth a line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Notice {
    /// The epoch begins anew: clients make their mappings again.
    EpochBegan(NewEpoch),
    /// So many mappings stand again after a restart.
    Restored(usize),
    /// The data plane refuses changes, since just now.
    NatRefuses(NatRefused),
    /// The data plane does what it is told again.
    NatWorks,
    /// No port of this external address is left for somebody who asked for one, for the first time since one was given back.
    PortsUsedUp(Ipv4Addr),
    /// There are as many mappings as there may be, since just now.
    TableFull(usize),
}

impl Notice {
    /// Whether somebody should look at it.
    #[must_use]
    pub fn is_warning(&self) -> bool {
        match self {
            Self::EpochBegan(why) => matches!(why, NewEpoch::NotRestored(_)),
            Self::NatRefuses(_) | Self::PortsUsedUp(_) | Self::TableFull(_) => true,
            Self::Restored(_) | Self::NatWorks => false,
        }
    }
}

/// When something was told that clients can bring about again and again, so that they do not fill a log with it.
#[derive(Debug, Default)]
pub(super) struct Told {
    at: Option<Instant>,
    is_so: bool,
}

impl Told {
    /// So long it is not told again.
    const PAUSE: Duration = Duration::from_secs(60);

    /// It is so. Whether that is to be told: it is news, or lasts since it could not be told.
    pub(super) fn begins(&mut self, now: Instant) -> bool {
        let tell = !self.is_so && self.may_tell(now);
        self.is_so = self.is_so || tell;
        tell
    }

    /// It is so no more.
    pub(super) fn ends(&mut self) {
        self.is_so = false;
    }

    /// Whether enough time has passed; if so, it is told now.
    pub(super) fn may_tell(&mut self, now: Instant) -> bool {
        let may = self.at.is_none_or(|at| now - at >= Self::PAUSE);
        if may {
            self.at = Some(now);
        }
        may
    }
}

/// Why the epoch begins anew.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NewEpoch {
    /// Nothing was stored, or what was stored is not whole.
    Fresh,
    /// So many stored mappings could not be set up again.
    NotRestored(usize),
    /// An external address is another one.
    Readdressed,
    /// Everything was forgotten.
    Lost,
}

/// One line.
impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EpochBegan(NewEpoch::Fresh) => {
                f.write_str("a new epoch begins: nothing is stored of an earlier one, so clients ask again for what they had")
            }
            Self::EpochBegan(NewEpoch::NotRestored(count)) => write!(
                f,
                "a new epoch begins: {count} stored mappings could not be set up again, and their clients have to ask for them"
            ),
            Self::EpochBegan(NewEpoch::Readdressed) => {
                f.write_str("a new epoch begins: an external address has changed")
            }
            Self::EpochBegan(NewEpoch::Lost) => f.write_str("a new epoch begins: all mappings are forgotten"),
            Self::Restored(1) => f.write_str("1 stored mapping stands again"),
            Self::Restored(count) => write!(f, "{count} stored mappings stand again"),
            Self::NatRefuses(NatRefused::Failed | NatRefused::Taken | NatRefused::Unfit) => {
                f.write_str("the NAT refuses changes: clients are told NETWORK_FAILURE until it works again")
            }
            Self::NatRefuses(NatRefused::Full) => {
                f.write_str("the NAT has no room: clients are told NO_RESOURCES until it has")
            }
            Self::NatWorks => f.write_str("the NAT does what it is told again"),
            Self::PortsUsedUp(addr) => write!(
                f,
                "no port of {addr} is left for a subscriber that asked for one: the pool is too small, or the quota too large"
            ),
            Self::TableFull(count) => {
                write!(f, "there are {count} mappings, as many as there may be: new ones are refused")
            }
        }
    }
}
