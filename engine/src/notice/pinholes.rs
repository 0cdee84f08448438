//! Lines about pinholes.

use std::fmt;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use wire::pcp::{Protocol, ResultCode};

use super::{Level, why};
use crate::pinholes::{Endpoint, Flows, Pinhole};
use crate::policy::Denied;
use crate::request::Refusal;

/// Why a pinhole is no more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PinholeEnd {
    /// Its owner deleted it.
    Deleted,
    /// Its owner asked for another one in its place.
    Replaced,
    /// The lease that its owner asked for is over.
    LeaseEnded,
    /// It could not be stored.
    NotStored,
    /// The router's DHCP server has taken the host's address back.
    Released,
    /// Its host's address is none of the LAN's any more.
    OffLan,
    /// Nobody may have any, by the settings.
    SwitchedOff,
    /// The protocol that it was asked for by is served no more.
    ProtocolOff,
    /// Policy does not allow it any more.
    Policy,
    /// The gateway is stopping.
    Stopping,
}

/// A happening worth a line.
#[derive(Clone, Debug, PartialEq)]
pub enum PinholeNews {
    /// There is one; whether the provider's firewall has let it in, too.
    Opened(Pinhole, bool),
    /// There is one no more.
    Closed(Pinhole, PinholeEnd),
    /// Policy refused a request.
    Denied(IpAddr, Flows, Denied),
    /// A request failed for another reason.
    Refused(Flows, Refusal),
    /// This router's firewall did not take it, in the kernel's own words.
    NotOpened(Flows, String),
    /// This router's firewall did not close it, in the kernel's own words.
    NotClosed(Flows, String),
    /// Pinholes of before the start, so many, are opened again.
    Restored(usize),
    /// The provider has a firewall that can be asked.
    Firewall(SocketAddr),
    /// The socket towards it could not be opened.
    NoSocket(SocketAddr, String),
    /// It does not answer any more; whether new pinholes are this router's only meanwhile.
    Silent(SocketAddr, bool),
    /// It has lost its state.
    StateLost(SocketAddr, usize),
    /// It lets in what this router did already.
    Carried(Endpoint),
    /// It does not let in, or no more, what this router does.
    NotCarried(Endpoint, Refusal),
    /// It refuses to renew what it lets in.
    RenewalRefused(Endpoint, ResultCode),
    /// It says that it does not serve pinholes at all.
    NoFirewall(Endpoint, ResultCode),
}

struct Port(Endpoint);

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Endpoint { addr, protocol, port } = self.0;
        let name = if protocol == Protocol::UDP { "UDP" } else { "TCP" };
        write!(f, "{name} {}", SocketAddrV6::new(addr, port, 0, 0))
    }
}

impl PinholeNews {
    pub(super) fn level(&self) -> Level {
        match self {
            // Who asks again and again is in the status, and fills no log.
            Self::Denied(.., Denied::AwaitsConsent | Denied::NoConsent | Denied::TooOften) => Level::Debug,
            Self::Opened(..)
            | Self::Closed(..)
            | Self::Refused(..)
            | Self::Restored(_)
            | Self::Firewall(_)
            | Self::Carried(_)
            | Self::NoFirewall(..) => Level::Info,
            _ => Level::Warning,
        }
    }
}

impl fmt::Display for PinholeNews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opened(pinhole, carried) => {
                write!(f, "pinhole for {}", pinhole.flows)?;
                if !pinhole.description.is_empty() {
                    write!(f, " {:?}", pinhole.description)?;
                }
                if *carried { write!(f, ", in the provider's firewall, too") } else { Ok(()) }
            }
            Self::Closed(pinhole, end) => {
                write!(f, "no pinhole any more for {}: ", pinhole.flows)?;
                f.write_str(match end {
                    PinholeEnd::Deleted => "its owner deleted it",
                    PinholeEnd::Replaced => "its owner asked for another one in its place",
                    PinholeEnd::LeaseEnded => "its lease has ended",
                    PinholeEnd::NotStored => "it could not be stored",
                    PinholeEnd::Released => "its host's address was released",
                    PinholeEnd::OffLan => "its address is none of the LAN's any more",
                    PinholeEnd::SwitchedOff => "pinholes are switched off ([lan] ipv6_pinholes)",
                    PinholeEnd::ProtocolOff => "its protocol is switched off ([lan] pcp)",
                    PinholeEnd::Policy => {
                        "policy does not allow it any more ([policy], or `portferry consent deny`)"
                    }
                    PinholeEnd::Stopping => "portferry is stopping",
                })
            }
            Self::Denied(from, flows, denied) => write!(f, "refused {from}: a pinhole for {flows}: {denied}"),
            Self::Refused(flows, refusal) => {
                let why = match refusal {
                    Refusal::Unusable => {
                        "the provider's firewall gave another port or an address that nobody can reach"
                            .to_owned()
                    }
                    Refusal::LocalNat => "this router's firewall could not be changed".to_owned(),
                    other => why(*other),
                };
                write!(f, "refused a pinhole for {flows}: {why}")
            }
            Self::NotOpened(flows, error) => write!(
                f,
                "the kernel did not open this router's IPv6 firewall for {flows} ({error}); does `nft list ruleset` work?"
            ),
            Self::NotClosed(flows, error) => write!(
                f,
                "the kernel did not close this router's IPv6 firewall for {flows} ({error}): that still comes in, and it is tried again; does `nft list ruleset` work?"
            ),
            Self::Restored(pinholes) => write!(f, "{pinholes} pinholes of before the start are opened again"),
            Self::Firewall(server) => {
                write!(f, "PCP server {server} is asked for pinholes in the provider's IPv6 firewall")
            }
            Self::NoSocket(server, error) => {
                write!(f, "no socket towards the provider's IPv6 firewall {server} ({error}); trying again")
            }
            Self::Silent(server, local) => write!(
                f,
                "the provider's IPv6 firewall {server} does not answer; new pinholes are {} until it does",
                if *local { "of this router only" } else { "refused" }
            ),
            Self::StateLost(server, ports) => write!(
                f,
                "the provider's IPv6 firewall {server} has lost its state; asking again for the pinholes of {ports} ports"
            ),
            Self::Carried(port) => {
                write!(f, "the provider's IPv6 firewall lets in what is for {}, too", Port(*port))
            }
            Self::NotCarried(port, refusal) => write!(
                f,
                "the provider's IPv6 firewall does not let in what is for {}: {}; this router does, and the provider is asked again",
                Port(*port),
                why(*refusal)
            ),
            Self::RenewalRefused(port, result) => write!(
                f,
                "renewal refused ({result}) by the provider's IPv6 firewall: {}; it is tried again until its lifetime ends",
                Port(*port)
            ),
            Self::NoFirewall(port, result) => write!(
                f,
                "the provider's PCP server answers {result} to a pinhole for {}: it has no IPv6 firewall to open, so this router's counts alone",
                Port(*port)
            ),
        }
    }
}
