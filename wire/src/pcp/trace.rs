//! Messages as one line for people. Nothing reads these lines back.

use core::fmt;
use core::net::{Ipv6Addr, SocketAddr};

use super::{Body, Nonce, PcpOption, Protocol, Request, Response, ResultCode, ip_from_wire};

/// `PCP MAP request TCP internal 8080, suggested 0.0.0.0:8080, 3600 s, nonce 0001…, PREFER_FAILURE`
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PCP {} request", self.body.opcode())?;
        let lifetime = self.lifetime;
        match &self.body {
            Body::Announce => {}
            Body::Map(map) => {
                write!(f, " {}", Internal(map.protocol, map.internal_port))?;
                match lifetime {
                    0 => f.write_str(", delete")?,
                    _ => write!(
                        f,
                        ", suggested {}, {lifetime} s",
                        endpoint(map.external_addr, map.external_port)
                    )?,
                }
                write!(f, ", nonce {}", Abridged(map.nonce))?;
            }
            Body::Peer(peer) => write!(
                f,
                " {}, suggested {}, remote peer {}, {lifetime} s, nonce {}",
                Internal(peer.protocol, peer.internal_port),
                endpoint(peer.external_addr, peer.external_port),
                endpoint(peer.remote_addr, peer.remote_port),
                Abridged(peer.nonce)
            )?,
            Body::Authentication(data) => {
                write!(f, " {} session {:08x}, sequence {}", data.code, data.session, data.sequence)?;
            }
            Body::Get(filters) => write!(f, " for {filters}")?,
            Body::Other(_, octets) => write!(f, " ({} octets), {lifetime} s", octets.len())?,
        }
        write_options(f, &self.options)
    }
}

/// `PCP MAP SUCCESS TCP 8080 -> 198.51.100.7:8080, 3600 s, epoch 100`
impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PCP {} {}", self.body.opcode(), self.result)?;
        let granted = self.result == ResultCode::SUCCESS;
        match &self.body {
            Body::Map(map) => {
                write!(f, " {}", Port(map.protocol, map.internal_port))?;
                match (granted, self.lifetime) {
                    (true, 0) => f.write_str(" deleted")?,
                    (true, _) => write!(f, " -> {}", endpoint(map.external_addr, map.external_port))?,
                    (false, _) => {}
                }
            }
            Body::Peer(peer) => {
                write!(f, " {}", Port(peer.protocol, peer.internal_port))?;
                if granted {
                    write!(f, " -> {}", endpoint(peer.external_addr, peer.external_port))?;
                }
                write!(f, ", remote peer {}", endpoint(peer.remote_addr, peer.remote_port))?;
            }
            Body::Authentication(data) => {
                write!(f, " session {:08x}, sequence {}", data.session, data.sequence)?;
            }
            Body::Get(filters) => write!(f, " for {filters}")?,
            Body::Other(_, octets) => write!(f, " ({} octets)", octets.len())?,
            Body::Announce => {}
        }
        if !granted || self.lifetime != 0 {
            write!(f, ", {} s", self.lifetime)?;
        }
        write!(f, ", epoch {}", self.epoch)?;
        write_options(f, &self.options)
    }
}

fn write_options(f: &mut fmt::Formatter<'_>, options: &[PcpOption]) -> fmt::Result {
    options.iter().try_for_each(|option| write!(f, ", {option}"))
}

fn endpoint(addr: Ipv6Addr, port: u16) -> SocketAddr {
    SocketAddr::new(ip_from_wire(addr), port)
}

/// `TCP 8080`, `TCP all ports`, `all protocols`.
struct Port(Protocol, u16);

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self(Protocol::ALL, 0) => f.write_str("all protocols"),
            Self(protocol, 0) => write!(f, "{protocol} all ports"),
            Self(protocol, port) => write!(f, "{protocol} {port}"),
        }
    }
}

/// `TCP internal 8080`, `TCP all ports`, `all protocols`.
struct Internal(Protocol, u16);

impl fmt::Display for Internal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self(protocol, 0) => Port(protocol, 0).fmt(f),
            Self(protocol, port) => write!(f, "{protocol} internal {port}"),
        }
    }
}

/// The first two octets tell mappings apart well enough, and keep the rest of the secret out of traces.
pub(super) struct Abridged(pub Nonce);

impl fmt::Display for Abridged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, ..] = self.0.0;
        write!(f, "{a:02x}{b:02x}…")
    }
}
