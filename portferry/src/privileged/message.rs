//! What the network process asks of the privileged one, and the answers: a handful of typed messages, JSON on a socket that keeps
//! their bounds. None of them names a file, a program or a table; each is checked on arrival ([`super::check`]).

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use engine::nat::{NatFailure, NatRule};
use serde::{Deserialize, Serialize};
use wire::pcp::Protocol;

use crate::config::MAX_LEN;
use crate::exit::Failure;
use crate::nft::Nat1Rule;
use crate::nft::pinholes::PinholeRule;
use crate::sockets::Spec;

/// Octets of a message that asks; a change that a hook is told of is the longest.
pub(super) const MAX_REQUEST: usize = 64 * 1024;
/// Octets of an answer; a configuration file is the longest, in which JSON writes no character that TOML has as more than two. Each
/// kernel's usual buffer of a socket has room for one.
pub(super) const MAX_ANSWER: usize = 2 * MAX_LEN + 1024;

/// One question, with the number that its answer has.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    pub(super) id: u64,
    pub(super) request: Request,
}

/// What is asked. An uplink is known by its place among the configuration's lines.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) enum Request {
    /// The configuration file's text, read again: [`Answer::Text`]. From now on it counts on both sides.
    Configuration,
    /// The listening control socket: a descriptor.
    ControlSocket,
    /// A socket: a descriptor.
    Socket(Spec),
    /// Make the tables, and look after other firewalls' rules, as the configuration wants it.
    Open,
    /// The uplink's way to the Internet is this one of its interfaces, and addresses may be others: [`Answer::Yes`] if all follows.
    Follow { place: usize, way: usize },
    /// A change of this router's NAT.
    Nat { place: usize, change: NatChange },
    /// A pinhole is opened or closed.
    Pinhole { place: usize, open: bool, rule: PinholeRule },
    /// How many packets a pinhole has let in: [`Answer::Number`].
    Packets { place: usize, rule: PinholeRule },
    /// By which port of the WAN's addresses a flow of a LAN host leaves: [`Answer::Number`].
    Flow { place: usize, protocol: u8, internal: SocketAddrV4, remote: SocketAddrV4 },
    /// The seconds after which connection tracking forgets a flow of this protocol: [`Answer::Number`].
    IdleTimeout { protocol: u8 },
    /// The speed of the interface in use, in Mbit/s: [`Answer::Number`].
    Speed { place: usize },
    /// An uplink that the configuration does not have any more: its tables go.
    Forget(String),
    /// The addresses of a host name: [`Answer::Addresses`].
    Resolve(String),
    /// The program of `[hooks]` is told this line.
    Hook(String),
    /// The end: everything in the kernel goes, unless the configuration keeps it.
    Close,
}

/// A change of this router's NAT, [`engine::nat::NatChange`] in the kernel's terms.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) enum NatChange {
    Reserve { protocol: u8, port: u16, addr: Ipv4Addr },
    Install(Nat1Rule),
    Replace { old: Nat1Rule, new: Nat1Rule },
    Move { protocol: u8, port: u16, outermost: Option<SocketAddrV4> },
    Remove(Nat1Rule),
}

impl From<engine::nat::NatChange> for NatChange {
    fn from(change: engine::nat::NatChange) -> Self {
        use engine::nat::NatChange as Engine;
        match change {
            Engine::Reserve { protocol: Protocol(protocol), port, addr } => {
                NatChange::Reserve { protocol, port, addr }
            }
            Engine::Install { rule, external } => NatChange::Install(nat1(rule, external)),
            Engine::Replace { old, new, external } => {
                NatChange::Replace { old: nat1(old, None), new: nat1(new, external) }
            }
            Engine::Move { protocol: Protocol(protocol), port, external } => {
                NatChange::Move { protocol, port, outermost: external }
            }
            Engine::Remove(rule) => NatChange::Remove(nat1(rule, None)),
        }
    }
}

fn nat1(rule: NatRule, outermost: Option<SocketAddrV4>) -> Nat1Rule {
    Nat1Rule {
        protocol: rule.protocol.0,
        external_port: rule.port,
        internal: rule.internal,
        remote_peer: rule.remote_peer,
        outermost,
    }
}

/// What the privileged process says.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) enum Said {
    /// The answer to the question of this number.
    Answer { id: u64, answer: Answer },
    /// Read the configuration again.
    Reload,
    /// Take everything back and end.
    Stop,
}

/// An answer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) enum Answer {
    /// It is done.
    Done,
    /// It is, or is not.
    Yes(bool),
    /// So many, if it can be told.
    Number(Option<u32>),
    Text(String),
    Addresses(Vec<Ipv4Addr>),
    /// A program of the router uses the port.
    PortInUse,
    /// An error of the system's: its number, if it has one, and what to read.
    System(Option<i32>, String),
    /// The start has failed: the code for the shell and the line.
    Failed(u8, String),
    /// The message asks for what policy does not allow, or is none. Nothing has happened.
    Refused(String),
}

impl From<Result<(), NatFailure>> for Answer {
    fn from(done: Result<(), NatFailure>) -> Self {
        match done {
            Ok(()) => Answer::Done,
            Err(NatFailure::PortInUse) => Answer::PortInUse,
            Err(NatFailure::Kernel(error)) => Answer::System(None, error),
        }
    }
}

impl From<Failure> for Answer {
    fn from(failure: Failure) -> Self {
        Answer::Failed(failure.code(), failure.to_string())
    }
}

impl Answer {
    /// As an error of the system's.
    pub(super) fn error(self) -> io::Error {
        match self {
            Answer::System(Some(number), _) => io::Error::from_raw_os_error(number),
            Answer::System(None, text) | Answer::Failed(_, text) => io::Error::other(text),
            Answer::Refused(why) => io::Error::other(why),
            other => io::Error::other(format!("the privileged process answered {other:?}")),
        }
    }

    pub(super) fn nat(self) -> Result<(), NatFailure> {
        match self {
            Answer::Done => Ok(()),
            Answer::PortInUse => Err(NatFailure::PortInUse),
            other => Err(NatFailure::Kernel(other.error().to_string())),
        }
    }
}

/// Whether a name could be one of DNS or of the hosts file (RFC 952, RFC 1123 §2.1): nothing else is looked up.
pub(super) fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
    };
    name.len() <= 253 && name.parse::<IpAddr>().is_err() && name.trim_end_matches('.').split('.').all(label)
}
