//! How an errand ends, and what that is to the shell that started it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use wire::pcp::{NextMapping, Nonce, OptionCode, PcpOption, Protocol};
use wire::{natpmp, pcp};

use super::hints::{self, Hint};
use crate::exit::Failure;

/// A result code of either protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Code {
    Pcp(pcp::ResultCode),
    NatPmp(natpmp::ResultCode),
}

impl Code {
    pub(super) fn number(self) -> u16 {
        match self {
            Code::Pcp(code) => code.0.into(),
            Code::NatPmp(code) => code.0,
        }
    }

    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Code::Pcp(code) => code.name(),
            Code::NatPmp(code) => code.name(),
        }
    }

    pub(super) fn hint(self) -> Hint {
        match self {
            Code::Pcp(code) => hints::pcp(code),
            Code::NatPmp(code) => hints::nat_pmp(code),
        }
    }
}

/// `NOT_AUTHORIZED (2)`, `result 77`.
impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({})", self.number()),
            None => write!(f, "result {}", self.number()),
        }
    }
}

/// A server's no.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Refusal {
    pub(super) code: Code,
    /// Seconds that the same request will fail; 0 if the server does not say.
    pub(super) lifetime: u32,
    /// The version that it names instead, where that is the reason.
    pub(super) version: Option<u8>,
}

/// `NOT_AUTHORIZED (2), the same request fails for 3580 s.`, then lines that begin with `Why:` and `Try:`.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Hint { why, what_to_do } = self.code.hint();
        write!(f, "{}", self.code)?;
        if let Some(version) = self.version {
            write!(f, ", it speaks version {version}")?;
        }
        if self.lifetime != 0 {
            write!(f, ", the same request fails for {} s", self.lifetime)?;
        }
        write!(f, ".\n  Why: {why}.\n  Try: {what_to_do}")
    }
}

/// A mapping that stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Grant {
    pub(super) protocol: Protocol,
    pub(super) internal: SocketAddr,
    /// NAT-PMP does not tell it with the port.
    pub(super) external_addr: Option<IpAddr>,
    pub(super) external_port: u16,
    pub(super) peer: Option<SocketAddr>,
    pub(super) lifetime: u32,
    /// NAT-PMP has none.
    pub(super) nonce: Option<Nonce>,
    /// What the server has processed.
    pub(super) options: Vec<PcpOption>,
}

/// How it ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    Granted(Grant),
    /// Gone, or not for another `remaining` seconds: a server need not cut what outbound traffic keeps (RFC 6887 §15).
    Deleted {
        remaining: u32,
    },
    /// ANNOUNCE was answered.
    Alive,
    Listed(Vec<NextMapping>),
    External(IpAddr),
    Refused(Refusal),
    /// Granted otherwise than the only way that was asked for, by this option. What was granted stands for another `left`
    /// seconds: 0 when it was given back, `None` when there was nothing to give back.
    NotAsAsked {
        option: OptionCode,
        asked: String,
        got: String,
        left: Option<u32>,
    },
    /// The server's answers make no sense.
    Nonsense(String),
    /// Nobody answered, and `ignored` datagrams were not believed.
    Silent {
        tries: u32,
        waited: Duration,
        ignored: u32,
    },
    /// The network said that nobody is there: its words, and whether at least the host is.
    Unreachable {
        closed: bool,
        error: String,
    },
    /// The server speaks NAT-PMP only, which has no words for it.
    Inexpressible(String),
    /// Somebody did not want to wait.
    Interrupted,
}

impl Outcome {
    /// The same, where the mapping stands for so many seconds still; 0: it is gone.
    pub(super) fn leaving(self, seconds: u32) -> Self {
        match self {
            Outcome::Deleted { .. } => Outcome::Deleted { remaining: seconds },
            Outcome::NotAsAsked { option, asked, got, .. } => {
                Outcome::NotAsAsked { option, asked, got, left: Some(seconds) }
            }
            other => other,
        }
    }

    /// Seconds that a mapping stands for still which was to be gone; `None`: none was to be.
    pub(super) fn remaining(&self) -> Option<u32> {
        match self {
            Outcome::Deleted { remaining } => Some(*remaining),
            Outcome::NotAsAsked { left, .. } => *left,
            _ => None,
        }
    }

    /// One word, or a few, as `--json` has it.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Outcome::Granted(_) => "granted",
            Outcome::Deleted { remaining: 0 } => "deleted",
            Outcome::Deleted { .. } => "not yet deleted",
            Outcome::Alive => "alive",
            Outcome::Listed(_) => "listed",
            Outcome::External(_) => "external",
            Outcome::Refused(_) => "refused",
            Outcome::NotAsAsked { .. } => "not as asked",
            Outcome::Nonsense(_) => "nonsense",
            Outcome::Silent { .. } => "silent",
            Outcome::Unreachable { .. } => "unreachable",
            Outcome::Inexpressible(_) => "inexpressible",
            Outcome::Interrupted => "interrupted",
        }
    }

    /// What the shell hears: nothing if all is well.
    pub(super) fn failure(&self, server: SocketAddr) -> Option<Failure> {
        Some(match self {
            Outcome::Granted(_)
            | Outcome::Deleted { .. }
            | Outcome::Alive
            | Outcome::Listed(_)
            | Outcome::External(_) => return None,
            Outcome::Refused(refusal) => Failure::refused(format!("{server} refuses: {refusal}")),
            Outcome::Inexpressible(why) => Failure::refused(format!(
                "{server} speaks NAT-PMP only: {why}.\n  Try: leave that out, or ask a PCP server"
            )),
            Outcome::NotAsAsked { option, asked, got, left } => {
                let stays = match left {
                    None => String::new(),
                    Some(0) => ", which was given back".to_owned(),
                    Some(left) => {
                        format!(", which could not be given back and stands for another {left} s")
                    }
                };
                Failure::protocol(match *option {
                    OptionCode::THIRD_PARTY => format!(
                        "{server} answers THIRD_PARTY {asked} with SUCCESS for {got}{stays}.\n  \
                         Why: it passes over THIRD_PARTY, which it should refuse if it does not know it.\n  \
                         Try: ask from {asked} itself"
                    ),
                    _ => format!(
                        "{server} answers {option} for {asked} with SUCCESS for {got}{stays}.\n  \
                         Why: it does not know PREFER_FAILURE (miniupnpd is known for that), and {asked} is taken.\n  \
                         Try: another port, or without --prefer-failure"
                    ),
                })
            }
            Outcome::Nonsense(what) => Failure::protocol(format!(
                "{server}: {what}.\n  Try: --hex shows the octets for whoever makes the server"
            )),
            Outcome::Silent { tries, waited, ignored } => {
                let seconds = waited.as_secs_f64();
                let mut text = format!("{server} does not answer ({tries} tries, {seconds:.1} s)");
                if *ignored > 0 {
                    text += &format!("; {ignored} datagrams came and were not believed, --verbose says why");
                }
                text += ".\n  Why: no server there, it does not serve this side, or a firewall on UDP 5351.\n  \
                         Try: --protocol nat-pmp, another --server or --source, or more patience (--wait)";
                Failure::unavailable(text)
            }
            Outcome::Unreachable { closed: true, .. } => Failure::unavailable(format!(
                "{server}: the port is closed (ICMP port unreachable).\n  \
                 Why: no PCP or NAT-PMP server listens there, or not for this side.\n  \
                 Try: another --server"
            )),
            Outcome::Unreachable { closed: false, error } => Failure::unavailable(format!(
                "{server} cannot be reached: {error}.\n  \
                 Why: no way leads there, or a firewall of this host forbids it.\n  \
                 Try: another --server; `ip route get {}` shows the way",
                server.ip()
            )),
            Outcome::Interrupted => Failure::unavailable(format!("interrupted before {server} answered")),
        })
    }
}
