//! WANIPv6FirewallControl:1 in the engine's terms (igd.md 8). Its codes 701 to 709 are its own.

use std::net::Ipv6Addr;

use wire::error::UpnpError as E;
use wire::pcp::{Protocol, ResultCode as Rc};
use wire::services::ActionId;
use wire::soap::Call;

use crate::pinholes::{Endpoint, Flows, is_of_the_internet};
use crate::request::Refusal;
use crate::time::Duration;

/// The longest lease, in seconds; a longer one, and none, are this (Q-5: a lease is clamped, never refused).
const DAY: u32 = 86_400;
/// All protocols.
const ANY_PROTOCOL: u32 = 65_535;

/// An action on pinholes, its arguments checked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PinholeAction {
    /// GetFirewallStatus.
    Status,
    /// GetOutboundPinholeTimeout, for this protocol.
    Timeout(Protocol),
    /// AddPinhole.
    Add(Flows, Duration),
    /// UpdatePinhole.
    Update(u16, Duration),
    /// DeletePinhole.
    Delete(u16),
    /// GetPinholePackets.
    Packets(u16),
    /// CheckPinholeWorking.
    Check(u16),
}

/// Turns a decoded call into a typed action; `None` for those of other services.
pub fn pinhole_action(call: &Call) -> Option<Result<PinholeAction, E>> {
    Some(match call.action.id {
        ActionId::GetFirewallStatus => Ok(PinholeAction::Status),
        ActionId::GetOutboundPinholeTimeout => protocol(call).map(PinholeAction::Timeout),
        ActionId::AddPinhole => flows(call).map(|flows| PinholeAction::Add(flows, lease(call, "LeaseTime"))),
        ActionId::UpdatePinhole => Ok(PinholeAction::Update(id(call), lease(call, "NewLeaseTime"))),
        ActionId::DeletePinhole => Ok(PinholeAction::Delete(id(call))),
        ActionId::GetPinholePackets => Ok(PinholeAction::Packets(id(call))),
        ActionId::CheckPinholeWorking => Ok(PinholeAction::Check(id(call))),
        _ => return None,
    })
}

/// What a control point is told instead of a pinhole.
pub(super) fn pinhole_error(refusal: Refusal) -> E {
    match refusal {
        Refusal::NotAuthorized | Refusal::Upstream(Rc::NOT_AUTHORIZED) => E::NOT_AUTHORIZED,
        Refusal::NoSuchEntry => E::NO_SUCH_PINHOLE,
        Refusal::Quota
        | Refusal::Full
        | Refusal::OtherPeer
        | Refusal::Upstream(Rc::NO_RESOURCES | Rc::USER_EX_QUOTA | Rc::EXCESSIVE_REMOTE_PEERS) => {
            E::PINHOLE_SPACE_EXHAUSTED
        }
        Refusal::Conflict
        | Refusal::TooOften
        | Refusal::Upstream(_)
        | Refusal::NoAnswer
        | Refusal::Unusable
        | Refusal::LocalNat
        | Refusal::Released
        | Refusal::Stopping => E::ACTION_FAILED,
    }
}

fn flows(call: &Call) -> Result<Flows, E> {
    let addr = addr(call, "InternalClient")?.ok_or(E::WILDCARD_INTERNAL_CLIENT)?;
    let port = port(call, "InternalPort").ok_or(E::INTERNAL_PORT_WILDCARD)?;
    let to = Endpoint { addr, protocol: protocol(call)?, port };
    Ok(Flows { to, remote: addr_or_all(call)?, remote_port: self::port(call, "RemotePort") })
}

fn addr_or_all(call: &Call) -> Result<Option<Ipv6Addr>, E> {
    match addr(call, "RemoteHost") {
        // Nobody who could come from outside.
        Ok(Some(remote)) if !is_of_the_internet(remote) => Err(E::INVALID_ARGS),
        // K-7 knows it from WANIPConnection.
        Err(_) if call.text("RemoteHost").trim() == "*" => Ok(None),
        addr => addr,
    }
}

/// `None` for the wildcard, which is nothing or zeros.
fn addr(call: &Call, argument: &str) -> Result<Option<Ipv6Addr>, E> {
    let text = call.text(argument).trim();
    if text.is_empty() {
        return Ok(None);
    }
    let addr: Ipv6Addr = text.parse().map_err(|_| E::INVALID_ARGS)?;
    // What it would stand for is IPv4, which has its own service.
    if addr.to_ipv4_mapped().is_some() || addr.is_multicast() || addr.is_loopback() {
        return Err(E::INVALID_ARGS);
    }
    Ok(Some(addr).filter(|addr| !addr.is_unspecified()))
}

fn protocol(call: &Call) -> Result<Protocol, E> {
    match call.number("Protocol") {
        6 => Ok(Protocol::TCP),
        17 => Ok(Protocol::UDP),
        ANY_PROTOCOL => Err(E::PROTOCOL_WILDCARD),
        _ => Err(E::PROTOCOL_NOT_SUPPORTED),
    }
}

/// `None` for the wildcard.
fn port(call: &Call, argument: &str) -> Option<u16> {
    Some(ui2(call, argument)).filter(|&port| port != 0)
}

fn id(call: &Call) -> u16 {
    ui2(call, "UniqueID")
}

fn ui2(call: &Call, argument: &str) -> u16 {
    u16::try_from(call.number(argument)).expect("the decoder keeps to the range of ui2")
}

fn lease(call: &Call, argument: &str) -> Duration {
    let seconds = match call.number(argument) {
        0 => DAY,
        seconds => seconds.min(DAY),
    };
    Duration::from_secs(u64::from(seconds))
}
