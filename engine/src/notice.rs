//! What the person who runs the router is told: one line a happening, saying what happened to whom, why, and what to
//! do about it.

mod pinholes;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use wire::pcp::{OptionCode, Protocol, ResultCode};

use crate::policy::{Denied, Device};
use crate::request::Refusal;
use crate::table::Mapping;
use crate::time::Duration;
use crate::uplink::UplinkProtocol;

pub use pinholes::{PinholeEnd, PinholeNews};

/// How loud a line is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Level {
    /// For whoever hunts a fault.
    Debug,
    /// The gateway's daily work.
    Info,
    /// Somebody may have to do something.
    Warning,
}

/// Why a mapping is no more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// Its owner deleted it.
    Deleted,
    /// Its owner asked for another one in its place.
    Replaced,
    /// The lease that its owner asked for is over.
    LeaseEnded,
    /// The PCP server did not renew it, or took it away.
    LostUpstream,
    /// The PCP server moved it to another port, and its owner asked for this one.
    MovedUpstream(SocketAddrV4),
    /// The router's own NAT refused it.
    LocalNat,
    /// It could not be stored.
    NotStored,
    /// The router's DHCP server has taken the host's address back.
    Released,
    /// The host is another uplink's now.
    Rebound,
    /// The LAN has other addresses now, and the host's is none of them.
    OffLan,
    /// The protocol that it was asked for by is served no more.
    ProtocolOff,
    /// Policy does not allow it any more, or not where the provider has put it.
    Policy,
    /// The gateway is stopping.
    Stopping,
}

/// What a router of the provider's that speaks UPnP has to tell.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum IspRouterNews {
    /// It answers.
    Answers,
    /// It does not; whether new mappings are made of this router's own NAT meanwhile.
    Silent(bool),
    /// It has forgotten a mapping, and so perhaps all of them, so many.
    HasForgotten(usize),
    /// Its external address is of another NAT above it.
    NatAbove(Ipv4Addr),
}

/// A happening worth a line.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// A control point has a mapping.
    Granted(Mapping),
    /// A control point has a mapping of the router's own NAT; the PCP server is silent.
    MappedLocally(Mapping),
    /// Its owner changed it.
    Changed(Mapping),
    /// Renewed upstream.
    Renewed(Mapping),
    /// It is no more.
    Removed(Mapping, Cause),
    /// Its remote host has another address.
    Readmitted(Mapping),
    /// The PCP server gave it another external address or port.
    Moved(Mapping, SocketAddrV4),
    /// The server refused to renew it.
    RenewalRefused(Mapping, ResultCode),
    /// This spare line's server does not give it.
    NotAtSpare(Mapping, String),
    /// The server refused to delete it.
    DeleteRefused(Mapping, ResultCode),
    /// Policy refused a request.
    Denied(IpAddr, Protocol, Option<u16>, SocketAddrV4, Denied),
    /// A host asks for the first time, and the owner of the router has to say whether it may have mappings.
    AwaitsConsent(Device, IpAddr),
    /// A PCP client asks for this port of another host (THIRD_PARTY).
    ForThirdParty(IpAddr, Protocol, SocketAddr),
    /// A request failed for another reason.
    Refused(IpAddr, Protocol, Option<u16>, SocketAddrV4, Refusal),
    /// The server gave another port than the one asked for, and it was given back.
    OtherPort(SocketAddr, Protocol, u16, SocketAddrV4),
    /// The server gave another port than the one asked for, and it is held for this control point.
    PortHeld(SocketAddr, Protocol, u16, SocketAddrV4, IpAddr),
    /// The server holds so many mappings for us that nobody here knows.
    Orphans(SocketAddr, usize),
    /// The server was asked what it holds for us, and refused or did not answer.
    NotListed(SocketAddr, Option<ResultCode>),
    /// The server refuses an option, and serves without it.
    Lacks(SocketAddr, OptionCode),
    /// The kernel refused a change.
    NatFailed(String),
    /// Mappings of before the start, so many, stand again.
    Restored(usize),
    /// The gateway ends before the server has confirmed the deletion of so many mappings.
    LeftBehind(usize),
    /// What has to survive a crash could not be stored.
    StoreFailed(String),
    /// It is stored now, and can be again.
    StoreWorks,
    /// The external address is known, or another one.
    ExternalAddress(Ipv4Addr),
    /// No external address any more.
    NoExternalAddress,
    /// The PCP server answers.
    Answering(SocketAddr),
    /// It does not; whether new mappings are made of this router's own NAT meanwhile.
    Silent(SocketAddr, bool),
    /// It has lost its state.
    StateLost(SocketAddr, usize),
    /// Nothing was looked after for so long, as after a suspend; so many mappings stand.
    Woke(Duration, usize),
    /// It speaks another version.
    VersionRefused(SocketAddr, u8),
    /// The first does not answer, or is less preferred than the second, which does.
    OtherServer {
        /// The one so far.
        from: SocketAddr,
        /// The one from now on.
        to: SocketAddr,
        /// The second one is preferred.
        preferred: bool,
    },
    /// The way to the Internet is by another interface.
    OtherWan {
        /// The one so far.
        from: String,
        /// The one from now on.
        to: String,
    },
    /// Where nobody was so far, there is a server.
    Found(SocketAddr),
    /// It speaks this protocol, and is asked by that from now on.
    Speaks(SocketAddr, UplinkProtocol),
    /// A router of the provider's that speaks UPnP, and what of it.
    IspRouter(SocketAddr, IspRouterNews),
    /// It refuses even the mapping that tells the external address.
    ProbeRefused(SocketAddr, ResultCode, Duration),
    /// It gives an external address that nobody can reach.
    UnusableExternal(SocketAddr, Ipv4Addr),
    /// The socket towards it could not be opened.
    UplinkFailed(SocketAddr, String),
    /// The WAN interface of this name does not exist, is down, or has no address of this family, which leads to the
    /// server.
    NoWanAddress(String, &'static str),
    /// There is nobody who could be asked.
    NoServer,
    /// Something about pinholes.
    Pinhole(PinholeNews),
}

fn name(protocol: Protocol) -> &'static str {
    if protocol == Protocol::UDP { "UDP" } else { "TCP" }
}

/// The port that was asked for, in words.
struct Wanted(Protocol, Option<u16>, SocketAddrV4);

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Some(port) => write!(f, "{} port {port} for {}", name(self.0), self.2),
            None => write!(f, "any {} port for {}", name(self.0), self.2),
        }
    }
}

/// A mapping in words: `TCP 198.51.100.7:8080 -> 192.168.1.5:8080 "game"`.
struct Described<'a>(&'a Mapping);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = self.0;
        if m.external.ip().is_unspecified() {
            write!(f, "{} port {} -> {}", name(m.protocol), m.external.port(), m.internal)?;
        } else {
            write!(f, "{} {} -> {}", name(m.protocol), m.external, m.internal)?;
        }
        if let Some(port) = m.nat_port.filter(|&port| port != m.internal.port()) {
            write!(f, " by port {port} of this router")?;
        }
        if let Some(peer) = m.remote_peer {
            write!(f, " from {peer} only")?;
        }
        if !m.description.is_empty() {
            write!(f, " {:?}", m.description)?;
        }
        Ok(())
    }
}

fn why(refusal: Refusal) -> String {
    match refusal {
        Refusal::Conflict => "another host has it".to_owned(),
        Refusal::NotAuthorized => "policy does not allow it".to_owned(),
        Refusal::Quota | Refusal::Full => "there are too many mappings".to_owned(),
        Refusal::TooOften => "the host asks too often".to_owned(),
        Refusal::OtherPeer => "there is a mapping of that port for another remote host".to_owned(),
        Refusal::NoSuchEntry => "there is no such mapping".to_owned(),
        Refusal::Upstream(ResultCode::CANNOT_PROVIDE_EXTERNAL) => {
            "the provider's NAT does not have this port free".to_owned()
        }
        Refusal::Upstream(result) => format!("the provider's server answers {result}"),
        Refusal::NoAnswer => {
            "the provider's server has not answered; `portferry status` shows how the uplink is doing"
                .to_owned()
        }
        Refusal::Unusable => {
            "the provider's server gave an external address that nobody can reach".to_owned()
        }
        Refusal::LocalNat => "this router's own NAT could not be set up".to_owned(),
        Refusal::Released => "its address was released, or has another uplink now".to_owned(),
        Refusal::Stopping => "portferry is stopping".to_owned(),
    }
}

impl Notice {
    /// How loud the line is.
    pub fn level(&self) -> Level {
        match self {
            // Who asks again and again is in the status, and fills no log.
            Notice::Renewed(_)
            | Notice::Denied(.., Denied::AwaitsConsent | Denied::NoConsent | Denied::TooOften) => {
                Level::Debug
            }
            Notice::Granted(_)
            | Notice::Changed(_)
            | Notice::MappedLocally(_)
            | Notice::Readmitted(_)
            | Notice::Removed(
                _,
                Cause::Deleted
                | Cause::Replaced
                | Cause::LeaseEnded
                | Cause::Released
                | Cause::Rebound
                | Cause::OffLan
                | Cause::ProtocolOff
                | Cause::Policy
                | Cause::Stopping,
            )
            | Notice::Moved(..)
            | Notice::ForThirdParty(..)
            | Notice::Refused(..)
            | Notice::OtherPort(..)
            | Notice::PortHeld(..)
            | Notice::Lacks(..)
            | Notice::Orphans(..)
            | Notice::NotListed(..)
            | Notice::Restored(_)
            | Notice::Woke(..)
            | Notice::ExternalAddress(_)
            | Notice::Speaks(..)
            | Notice::IspRouter(_, IspRouterNews::Answers)
            | Notice::Found(_)
            | Notice::Answering(_) => Level::Info,
            Notice::Pinhole(news) => news.level(),
            _ => Level::Warning,
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::Granted(m) => write!(f, "mapped {}", Described(m)),
            Notice::MappedLocally(m) => {
                write!(
                    f,
                    "mapped in this router only, until the provider's server answers: {}",
                    Described(m)
                )
            }
            Notice::Changed(m) => write!(f, "changed by its owner: {}", Described(m)),
            Notice::Readmitted(m) => {
                write!(f, "the remote host has another address by now: {}", Described(m))
            }
            Notice::Renewed(m) => write!(f, "renewed {}", Described(m)),
            Notice::Removed(m, cause) => {
                write!(f, "no longer mapped: {}: ", Described(m))?;
                match cause {
                    Cause::Deleted => write!(f, "its owner deleted it"),
                    Cause::Replaced => write!(f, "its owner asked for another one in its place"),
                    Cause::LeaseEnded => write!(f, "its lease has ended"),
                    Cause::LostUpstream => write!(
                        f,
                        "the provider's server did not give or renew it; the application has to ask again"
                    ),
                    Cause::MovedUpstream(to) => write!(
                        f,
                        "the provider moved it to {to} and its owner asked for this port; the application has to ask again"
                    ),
                    Cause::LocalNat => write!(f, "this router's own NAT refused it"),
                    Cause::NotStored => write!(f, "it could not be stored"),
                    Cause::Released => write!(f, "its host's address was released"),
                    Cause::Rebound => write!(f, "its host has another uplink now ([[uplink.extra]] hosts)"),
                    Cause::OffLan => write!(f, "its host's address is not on the LAN any more"),
                    Cause::ProtocolOff => write!(f, "its protocol is switched off ([lan] pcp, nat_pmp)"),
                    Cause::Policy => write!(f, "policy does not allow it any more ([policy], or `portferry consent deny`)"),
                    Cause::Stopping => write!(f, "portferry is stopping"),
                }
            }
            Notice::Moved(m, from) => write!(f, "the provider moved {from}: now {}", Described(m)),
            Notice::RenewalRefused(m, result) => write!(
                f,
                "renewal refused ({result}) by the provider's server: {}; it is tried again until its lifetime ends",
                Described(m)
            ),
            Notice::NotAtSpare(m, wan) => write!(
                f,
                "{} cannot be had behind {wan}; it is kept for when the usual line is back",
                Described(m)
            ),
            Notice::DeleteRefused(m, result) => {
                write!(
                    f,
                    "the provider's server refuses ({result}) to delete {}; it stands until its lifetime ends",
                    Described(m)
                )
            }
            Notice::ForThirdParty(from, protocol, internal) => {
                write!(f, "{from} asks for another host: {} {internal}", name(*protocol))
            }
            Notice::AwaitsConsent(device, from) => {
                write!(f, "{from}")?;
                if let Device::Hardware(hardware) = device {
                    write!(f, " ({hardware})")?;
                }
                write!(f, " asks for a port and waits for you: `portferry consent allow {device}`, or deny")
            }
            Notice::Denied(from, protocol, port, internal, denied) => {
                write!(f, "refused {from}: {}: {denied}", Wanted(*protocol, *port, *internal))
            }
            Notice::Refused(from, protocol, port, internal, refusal) => {
                write!(f, "refused {from}: {}: {}", Wanted(*protocol, *port, *internal), why(*refusal))
            }
            Notice::OtherPort(server, protocol, wanted, got) => write!(
                f,
                "PCP server {server} gave {} {got} where only port {wanted} was asked for; given back",
                name(*protocol)
            ),
            Notice::PortHeld(server, protocol, wanted, got, host) => write!(
                f,
                "PCP server {server} gave {} {got} where port {wanted} was asked for; kept for a while in case {host} asks for that one",
                name(*protocol)
            ),
            Notice::Orphans(server, orphans) => write!(
                f,
                "PCP server {server} holds {orphans} mappings of ours that nobody here knows (was the state directory lost?); given back in 10 minutes unless an application asks for them"
            ),
            Notice::NotListed(server, Some(result)) => {
                write!(
                    f,
                    "PCP server {server} does not list its mappings ({result}); they are asked for one by one"
                )
            }
            Notice::NotListed(server, None) => {
                write!(
                    f,
                    "PCP server {server} does not answer when it is asked for its list of mappings; they are asked for one by one"
                )
            }
            Notice::Lacks(server, OptionCode::PREFER_FAILURE) => write!(
                f,
                "PCP server {server} does not know PREFER_FAILURE; ports are asked for without it from now on, and another port than the one wanted is a conflict"
            ),
            Notice::Lacks(server, option) => {
                write!(f, "PCP server {server} refuses the option {option}; it is left out from now on")
            }
            Notice::NatFailed(error) => {
                write!(
                    f,
                    "the kernel refused a change of this router's NAT ({error}); does `nft list ruleset` work?"
                )
            }
            Notice::Restored(mappings) => {
                write!(f, "{mappings} mappings of before the start; asking the provider for them again")
            }
            Notice::LeftBehind(mappings) => write!(
                f,
                "stopping although the provider has not confirmed the end of {mappings} mappings and pinholes: they stand there until their lifetimes end, and the next start takes them up again"
            ),
            Notice::StoreFailed(error) => write!(
                f,
                "the state cannot be written ({error}): new mappings are refused until it can; is the file system full ([state] directory)?"
            ),
            Notice::StoreWorks => write!(f, "the state can be written again; everything is stored"),
            Notice::ExternalAddress(addr) => write!(f, "external address {addr}"),
            Notice::NoExternalAddress => write!(f, "the external address is unknown"),
            Notice::Answering(server) => write!(f, "PCP server {server} answers"),
            Notice::Silent(server, local) => write!(
                f,
                "PCP server {server} does not answer; new mappings are {} until it does. Does the provider offer PCP there ([uplink] servers)?",
                if *local { "of this router only" } else { "refused" }
            ),
            Notice::Woke(slept, mappings) => write!(
                f,
                "nothing ran for {} s (a suspend?): {mappings} mappings are asked for again, in turn",
                slept.as_secs()
            ),
            Notice::StateLost(server, mappings) => {
                write!(f, "PCP server {server} has lost its state; asking again for {mappings} mappings")
            }
            Notice::VersionRefused(server, version) => write!(
                f,
                "PCP server {server} speaks version {version} only, portferry speaks version 2; trying again later"
            ),
            Notice::OtherServer { from, to, preferred: false } => {
                write!(
                    f,
                    "{to} takes the place of {from}, which does not answer; every mapping is asked for there"
                )
            }
            Notice::OtherServer { from, to, preferred: true } => {
                write!(
                    f,
                    "{to} answers again and takes the place of {from}; every mapping is asked for there"
                )
            }
            Notice::OtherWan { from, to } => {
                write!(f, "{to} is the WAN now, in the place of {from}; every mapping is asked for there")
            }
            Notice::Found(server) => write!(f, "there is a server at {server}; every mapping is asked for there"),
            Notice::Speaks(_, UplinkProtocol::Local) => f.write_str(
                "no server of the provider's was found; until there is one, mappings are those of this router's own NAT",
            ),
            Notice::Speaks(server, UplinkProtocol::Pcp) => {
                write!(f, "{server} speaks PCP now; every mapping is asked for anew")
            }
            Notice::Speaks(server, UplinkProtocol::NatPmp) => {
                write!(f, "{server} does not speak PCP, but NAT-PMP, and is asked by that")
            }
            Notice::Speaks(server, UplinkProtocol::Igd) => {
                write!(
                    f,
                    "the router in front of this one speaks neither PCP nor NAT-PMP, but UPnP at {server}, and is asked by that"
                )
            }
            Notice::IspRouter(server, IspRouterNews::Answers) => {
                write!(f, "the provider's router {server} answers")
            }
            Notice::IspRouter(server, IspRouterNews::Silent(local)) => write!(
                f,
                "the provider's router {server} does not answer; new mappings are {} until it does",
                if *local { "of this router only" } else { "refused" }
            ),
            Notice::IspRouter(server, IspRouterNews::HasForgotten(mappings)) => write!(
                f,
                "the provider's router {server} has forgotten what it had mapped; asking again for {mappings} mappings"
            ),
            Notice::IspRouter(server, IspRouterNews::NatAbove(addr)) => write!(
                f,
                "the provider's router {server} has the external address {addr}, which is of another NAT above it: nobody out there can reach it, so nothing is mapped; ask the provider for a public address, or for PCP"
            ),
            Notice::ProbeRefused(server, result, wait) => write!(
                f,
                "PCP server {server} answers {result} to the mapping that tells the external address; trying again in {} s",
                wait.as_secs()
            ),
            Notice::UnusableExternal(server, addr) => write!(
                f,
                "PCP server {server} gives {addr} as external address, which nobody can reach; given back, trying again later"
            ),
            Notice::UplinkFailed(server, error) => {
                write!(f, "no socket towards PCP server {server} ({error}); trying again")
            }
            Notice::NoWanAddress(name, family) => write!(
                f,
                "the WAN interface {name} does not exist, is down or has no {family} address; new mappings are refused until it has ([wan] interface)"
            ),
            Notice::Pinhole(news) => news.fmt(f),
            Notice::NoServer => write!(
                f,
                "no PCP server: none of use is configured ([uplink] servers) or offered by DHCP, the WAN interface has no default router, and uplink.anycast is off; configure one of them"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::Claims;
    use crate::table::Health;
    use crate::time::Instant;
    use crate::uplink::FlowId;

    /// Control characters are replaced where a description is read; were one to get in by another way, it still is text.
    #[test]
    fn a_description_steers_no_terminal() {
        let notice = Notice::Granted(Mapping {
            protocol: Protocol::TCP,
            external: "198.51.100.7:8080".parse().unwrap(),
            internal: "192.168.1.10:80".parse().unwrap(),
            nat_port: None,
            remote_peer: None,
            remote_name: None,
            description: "game\u{1b}[2J\r\n2026-01-01 INFO all is well\u{202e}\u{9b}\"".to_owned(),
            strict: true,
            created: Instant::default(),
            made: 1,
            asked_at: Instant::default(),
            claims: Claims::default(),
            lifetime_ends: Instant::default(),
            health: Health::Active,
            confirmed: true,
            flow: FlowId(1),
        });
        let line = notice.to_string();
        let told = "mapped TCP 198.51.100.7:8080 -> 192.168.1.10:80 \"game\\u{1b}[2J\\r\\n";
        assert!(line.starts_with(told), "{line}");
        assert!(line.chars().all(|c| c.is_ascii() && !c.is_control()), "{line}");
    }
}
