//! What control points say, in the engine's terms: arguments that passed the decoder become a typed action, with the
//! rules of the service version that was spoken.

mod pinholes;
mod refusal;

use std::net::{Ipv4Addr, SocketAddrV4};

use wire::error::UpnpError;
use wire::pcp::Protocol;
use wire::services::ActionId;
use wire::soap::Call;

pub use pinholes::{PinholeAction, pinhole_action};
pub use refusal::{Asked, REFUSALS, upnp_error};

use crate::claims::Asker;
use crate::request::MappingRequest;
use crate::table::Mapping;
use crate::time::Duration;

/// The longest lease of WANIPConnection:2, and what it makes of a lease of 0 (spec A-3).
const WEEK: u32 = 604_800;

/// An action on port mappings, its arguments checked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MappingAction {
    /// AddPortMapping (strict) or AddAnyPortMapping.
    Add(AddRequest),
    /// DeletePortMapping.
    Delete(Entry),
    /// GetSpecificPortMappingEntry.
    GetSpecific(Entry),
    /// GetGenericPortMappingEntry.
    GetGeneric(usize),
    /// DeletePortMappingRange.
    DeleteRange(Range),
    /// GetListOfPortMappings, at most so many.
    List(Range, usize),
}

/// A mapping that is asked for, perhaps with names that have to be looked up before.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AddRequest {
    /// The mapping. Its remote peer is missing as long as the remote name has not been looked up.
    pub request: MappingRequest,
    /// The internal client, when it was given by a name; the request's address means nothing then.
    pub internal_name: Option<String>,
}

impl AddRequest {
    /// The same for this host.
    pub fn to_host(self, host: Ipv4Addr) -> Self {
        let internal = SocketAddrV4::new(host, self.request.internal.port());
        Self { request: MappingRequest { internal, ..self.request }, ..self }
    }
}

/// A remote host as a control point names it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RemoteHost {
    /// By its address.
    Address(Ipv4Addr),
    /// By its name, in small letters.
    Name(String),
}

/// IGD's key of a mapping (spec A-1).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The external port.
    pub external_port: u16,
    /// The remote host; `None` for the wildcard.
    pub remote_host: Option<RemoteHost>,
}

impl Entry {
    /// Whether `mapping` is for this remote host, by the name or the address that it was made with.
    pub fn names_remote_host_of(&self, mapping: &Mapping) -> bool {
        match &self.remote_host {
            None => mapping.remote_peer.is_none(),
            Some(RemoteHost::Address(addr)) => mapping.remote_peer == Some(*addr),
            Some(RemoteHost::Name(name)) => mapping.remote_name.as_ref() == Some(name),
        }
    }
}

/// A range of external ports of one protocol, both ends included.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Range {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The first port.
    pub first: u16,
    /// The last port, not below the first.
    pub last: u16,
}

/// Turns a decoded call into a typed action; `None` for the actions that are not about port mappings. `from` is the
/// control point's address and `external` the external address that it knows of, which some send as a wildcard (K-7).
pub fn mapping_action(
    call: &Call,
    from: Option<Ipv4Addr>,
    external: Option<Ipv4Addr>,
) -> Option<Result<MappingAction, UpnpError>> {
    Some(match call.action.id {
        ActionId::AddPortMapping => add_request(call, from, external, true).map(MappingAction::Add),
        ActionId::AddAnyPortMapping => add_request(call, from, external, false).map(MappingAction::Add),
        ActionId::DeletePortMapping => entry(call, external).map(MappingAction::Delete),
        ActionId::GetSpecificPortMappingEntry => entry(call, external).map(MappingAction::GetSpecific),
        ActionId::GetGenericPortMappingEntry => Ok(MappingAction::GetGeneric(
            usize::try_from(call.number("NewPortMappingIndex")).unwrap_or(usize::MAX),
        )),
        ActionId::DeletePortMappingRange => range(call).map(MappingAction::DeleteRange),
        ActionId::GetListOfPortMappings => range(call).map(|range| {
            let most = match call.number("NewNumberOfPorts") {
                0 => usize::MAX,
                most => usize::try_from(most).unwrap_or(usize::MAX),
            };
            MappingAction::List(range, most)
        }),
        _ => return None,
    })
}

/// The lease that `seconds` ask for in this version of the service (spec A-3, decision 14): never refused, for clients
/// that hear 402 give up; only clamped. `None` is for ever.
fn lease(seconds: u32, version: u8) -> Option<Duration> {
    let seconds = match (seconds, version) {
        (0, 0..=1) => return None,
        (0, _) => WEEK,
        (_, 0..=1) => seconds,
        _ => seconds.min(WEEK),
    };
    Some(Duration::from_secs(u64::from(seconds)))
}

fn add_request(
    call: &Call,
    from: Option<Ipv4Addr>,
    external: Option<Ipv4Addr>,
    strict: bool,
) -> Result<AddRequest, UpnpError> {
    if !call.boolean("NewEnabled") {
        return Err(UpnpError::ACTION_FAILED);
    }
    let external_port = port(call, "NewExternalPort");
    if strict && external_port == 0 {
        return Err(UpnpError::WILDCARD_EXT_PORT); // T-10, decision 8
    }
    let internal_port = port(call, "NewInternalPort");
    if internal_port == 0 {
        // A-6; :1 has no code of its own for it.
        return Err(if call.version < 2 { UpnpError::INVALID_ARGS } else { UpnpError::WILDCARD_INT_PORT });
    }
    let (host, internal_name) = match call.text("NewInternalClient").trim() {
        "" => (from.ok_or(UpnpError::WILDCARD_SRC_IP)?, None), // whoever asks
        "255.255.255.255" => return Err(UpnpError::ACTION_FAILED), // T-11
        text => match text.parse() {
            Ok(addr) => (addr, None),
            Err(_) => (Ipv4Addr::UNSPECIFIED, Some(host_name(text).ok_or(UpnpError::INVALID_ARGS)?)),
        },
    };
    let (remote_peer, remote_name) = match remote_host(call, external)? {
        None => (None, None),
        Some(RemoteHost::Address(addr)) => (Some(addr), None),
        Some(RemoteHost::Name(name)) => (None, Some(name)),
    };
    let request = MappingRequest {
        protocol: protocol(call)?,
        internal: SocketAddrV4::new(host, internal_port),
        external_port: (external_port != 0).then_some(external_port),
        strict,
        external_addr: None,
        lease: lease(call.number("NewLeaseDuration"), call.version),
        remote_peer,
        remote_name,
        description: call.text("NewPortMappingDescription").to_owned(),
        by: Asker::Igd,
    };
    Ok(AddRequest { request, internal_name })
}

fn entry(call: &Call, external: Option<Ipv4Addr>) -> Result<Entry, UpnpError> {
    Ok(Entry {
        protocol: protocol(call)?,
        external_port: port(call, "NewExternalPort"),
        remote_host: remote_host(call, external)?,
    })
}

fn range(call: &Call) -> Result<Range, UpnpError> {
    let range = Range {
        protocol: protocol(call)?,
        first: port(call, "NewStartPort"),
        last: port(call, "NewEndPort"),
    };
    if range.first > range.last {
        return Err(UpnpError::INCONSISTENT_PARAMETERS);
    }
    Ok(range)
}

fn protocol(call: &Call) -> Result<Protocol, UpnpError> {
    match call.text("NewProtocol") {
        "TCP" => Ok(Protocol::TCP),
        "UDP" => Ok(Protocol::UDP),
        _ => Err(UpnpError::VALUE_OUT_OF_RANGE),
    }
}

fn port(call: &Call, argument: &str) -> u16 {
    u16::try_from(call.number(argument)).expect("the decoder keeps to the range of ui2")
}

/// K-7: everything that real clients send when they mean "anyone". Names are of WANIPConnection:2; one without a dot
/// (`undefined` is really sent) is no host of the Internet.
fn remote_host(call: &Call, external: Option<Ipv4Addr>) -> Result<Option<RemoteHost>, UpnpError> {
    match call.text("NewRemoteHost").trim() {
        "" | "*" | "0.0.0.0" => Ok(None),
        text => match text.parse() {
            Ok(peer) => Ok((Some(peer) != external).then_some(RemoteHost::Address(peer))),
            Err(_) => host_name(text)
                .filter(|name| call.version >= 2 && name.contains('.'))
                .map(|name| Some(RemoteHost::Name(name)))
                .ok_or(UpnpError::INVALID_ARGS),
        },
    }
}

/// A host name (RFC 1123 §2.1) in small letters. Its last label has a letter: what looks like a short form of an address,
/// octal or hexadecimal, is none.
fn host_name(text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let good = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len())
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = name.rsplit('.').next()?;
    let hexadecimal = last.starts_with("0x") || last.starts_with("0X");
    (name.len() <= 253
        && name.split('.').all(good)
        && last.bytes().any(|byte| byte.is_ascii_alphabetic())
        && !hexadecimal)
        .then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests;
