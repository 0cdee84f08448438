//! A foreign gateway, as a control point reads it: where its description says that its WAN connection is controlled, the calls
//! that map ports there, and what it answers.
//!
//! Reading is liberal in what real gateways get wrong. It is strict in one thing: whatever a description says, it never leads
//! to another host than the one it came from.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use crate::codec::Malformed;
use crate::description::{self, ParsedDevice};
use crate::gena::CallbackUrl;
use crate::services::split_service_type;
use crate::soap::{Answer, encode_call};

/// The longest path of a URL that is followed, in octets.
const MAX_PATH: usize = 512;
/// How many WAN connections of one description are looked at.
const MAX_CONNECTIONS: usize = 4;

/// An `http` URL whose host is an IPv4 literal.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Url {
    /// Host and port.
    pub at: SocketAddrV4,
    /// Path and query, beginning with a slash; printable ASCII.
    pub path: String,
}

impl Url {
    /// Reads an absolute URL; `None` for another scheme, for a host that is a name or no IPv4 address, and for what is no URL.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let CallbackUrl { host: IpAddr::V4(host), port, path } = CallbackUrl::parse(text.trim())? else {
            return None;
        };
        (path.len() <= MAX_PATH).then(|| Self { at: SocketAddrV4::new(host, port), path })
    }

    /// A URL as it stands in a document that is here: absolute, or relative to this one. `None` if it leads to another host, or is
    /// no URL.
    #[must_use]
    pub fn join(&self, reference: &str) -> Option<Self> {
        let reference = reference.trim().split('#').next().unwrap_or_default();
        let has_scheme = reference.split(['/', '?']).next().is_some_and(|first| first.contains(':'));
        if has_scheme || reference.starts_with("//") {
            let absolute = if has_scheme { reference.to_owned() } else { format!("http:{reference}") };
            return Self::parse(&absolute).filter(|url| url.at.ip() == self.at.ip());
        }
        let path = if reference.starts_with('/') {
            reference.to_owned()
        } else {
            let own = self.path.split('?').next().unwrap_or_default();
            let directory = &own[..=own.rfind('/').unwrap_or(0)];
            format!("{directory}{reference}")
        };
        let fits = path.starts_with('/') && path.len() <= MAX_PATH;
        (fits && path.bytes().all(|byte| byte.is_ascii_graphic())).then_some(Self { at: self.at, path })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.at, self.path)
    }
}

/// A service of a foreign gateway that maps ports.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Connection {
    /// Where it is controlled.
    pub control: Url,
    /// As it stands in the description: `urn:schemas-upnp-org:service:WANIPConnection:1`, or `…:2`, or WANPPPConnection's.
    pub service_type: String,
    /// 1, or 2 for what knows AddAnyPortMapping.
    pub version: u8,
}

/// The WAN connections of the description that came from `location`, in the order of the document; those whose URL leads
/// elsewhere, or nowhere, are left out.
///
/// A URLBase that names another host is passed over: some gateways name one that they had once.
///
/// # Errors
/// It is no device description.
pub fn connections(location: &Url, body: &[u8]) -> Result<Vec<Connection>, Malformed> {
    let ParsedDevice { url_base, services, .. } = description::parse(text(body).as_bytes())?;
    let base = url_base.and_then(|base| location.join(&base)).unwrap_or_else(|| location.clone());
    let mut found = Vec::new();
    for service in services {
        let Some((name, version)) = split_service_type(&service.service_type) else { continue };
        let maps = match name {
            "WANIPConnection" => true,
            "WANPPPConnection" => version == 1,
            _ => false,
        };
        let control = base.join(&service.control_url).filter(|_| maps && !service.control_url.is_empty());
        let Some(control) = control else { continue };
        let connection = Connection { control, version: version.min(2), service_type: service.service_type };
        if found.len() < MAX_CONNECTIONS && !found.contains(&connection) {
            found.push(connection);
        }
    }
    Ok(found)
}

/// What came as a document: text with what is no UTF-8 replaced, without the zeros and blanks that some gateways send behind it.
pub(crate) fn text(body: &[u8]) -> Cow<'_, str> {
    let end =
        body.iter().rposition(|byte| *byte != 0 && !byte.is_ascii_whitespace()).map_or(0, |last| last + 1);
    String::from_utf8_lossy(&body[..end])
}

/// A mapping as AddPortMapping and AddAnyPortMapping ask for it; the remote host is anybody.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mapping<'a> {
    /// Not 0.
    pub external_port: u16,
    /// `TCP` or `UDP`.
    pub protocol: &'a str,
    /// Not 0.
    pub internal_port: u16,
    /// Whom it leads to.
    pub internal_client: Ipv4Addr,
    /// What people read in the gateway's list.
    pub description: &'a str,
    /// Seconds; 0 for ever (of :1), or for a week (of :2).
    pub lease: u32,
}

/// An action of a WAN connection that a control point calls.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Call<'a> {
    /// The external address.
    GetExternalIpAddress,
    /// Whether there is a connection, and since when.
    GetStatusInfo,
    /// Who has this port, by `TCP` or `UDP`.
    GetSpecificPortMappingEntry(u16, &'a str),
    /// This port and no other.
    AddPortMapping(Mapping<'a>),
    /// This port or another one; of :2 only.
    AddAnyPortMapping(Mapping<'a>),
    /// The end of it.
    DeletePortMapping(u16, &'a str),
}

impl Call<'_> {
    /// The action's name.
    #[must_use]
    pub fn action(&self) -> &'static str {
        match self {
            Self::GetExternalIpAddress => "GetExternalIPAddress",
            Self::GetStatusInfo => "GetStatusInfo",
            Self::GetSpecificPortMappingEntry(..) => "GetSpecificPortMappingEntry",
            Self::AddPortMapping(_) => "AddPortMapping",
            Self::AddAnyPortMapping(_) => "AddAnyPortMapping",
            Self::DeletePortMapping(..) => "DeletePortMapping",
        }
    }

    /// The body, for a service of this type, and the value of SOAPACTION without its quotes.
    #[must_use]
    pub fn encode(&self, service_type: &str) -> (String, String) {
        let body = match self {
            Self::GetExternalIpAddress | Self::GetStatusInfo => encode_call(service_type, self.action(), &[]),
            Self::GetSpecificPortMappingEntry(port, protocol) | Self::DeletePortMapping(port, protocol) => {
                let args = [
                    ("NewRemoteHost", ""),
                    ("NewExternalPort", &port.to_string()),
                    ("NewProtocol", protocol),
                ];
                encode_call(service_type, self.action(), &args)
            }
            Self::AddPortMapping(mapping) | Self::AddAnyPortMapping(mapping) => {
                let args = [
                    ("NewRemoteHost", ""),
                    ("NewExternalPort", &mapping.external_port.to_string()),
                    ("NewProtocol", mapping.protocol),
                    ("NewInternalPort", &mapping.internal_port.to_string()),
                    ("NewInternalClient", &mapping.internal_client.to_string()),
                    ("NewEnabled", "1"),
                    ("NewPortMappingDescription", mapping.description),
                    ("NewLeaseDuration", &mapping.lease.to_string()),
                ];
                encode_call(service_type, self.action(), &args)
            }
        };
        (body, format!("{service_type}#{}", self.action()))
    }
}

/// What GetSpecificPortMappingEntry tells.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Whom it leads to, as it was written: an address, or a host name.
    pub internal_client: String,
    /// The port there.
    pub internal_port: u16,
    /// Whether it is in force.
    pub enabled: bool,
    /// Seconds left; 0 for ever.
    pub lease: u32,
}

impl Entry {
    /// Reads the answer. A gateway that leaves out what it thinks of as usual means enabled, and no end.
    ///
    /// # Errors
    /// No internal client, or no port.
    pub fn read(answer: &Answer) -> Result<Self, Malformed> {
        let value = |name| answer.value(name).map(str::trim);
        let internal_client = value("NewInternalClient").filter(|text| !text.is_empty()).ok_or(Malformed)?;
        let enabled = value("NewEnabled").unwrap_or_default();
        Ok(Self {
            internal_client: internal_client.to_owned(),
            internal_port: port(value("NewInternalPort"))?,
            enabled: !["0", "false", "no"].iter().any(|no| enabled.eq_ignore_ascii_case(no)),
            lease: value("NewLeaseDuration").and_then(|text| text.parse().ok()).unwrap_or(0),
        })
    }
}

/// Reads the answer to GetExternalIPAddress; `Ok(None)` when the gateway has none at the moment.
///
/// # Errors
/// No address where one should be.
pub fn read_external(answer: &Answer) -> Result<Option<Ipv4Addr>, Malformed> {
    let text = answer.value("NewExternalIPAddress").ok_or(Malformed)?.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let addr: Ipv4Addr = text.parse().map_err(|_| Malformed)?;
    Ok(Some(addr).filter(|addr| !addr.is_unspecified()))
}

/// Reads the answer to GetStatusInfo: for how many seconds the connection has been up.
///
/// # Errors
/// It does not say.
pub fn read_uptime(answer: &Answer) -> Result<u32, Malformed> {
    answer.value("NewUptime").and_then(|text| text.trim().parse().ok()).ok_or(Malformed)
}

/// Reads the answer to AddAnyPortMapping: the external port.
///
/// # Errors
/// There is none in it.
pub fn read_reserved(answer: &Answer) -> Result<u16, Malformed> {
    port(answer.value("NewReservedPort").map(str::trim))
}

fn port(text: Option<&str>) -> Result<u16, Malformed> {
    text.and_then(|text| text.parse().ok()).filter(|&port| port != 0).ok_or(Malformed)
}

#[cfg(test)]
mod tests;
