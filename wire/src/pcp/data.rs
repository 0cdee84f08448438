//! What an opcode adds to the common header.

use core::fmt;
use core::net::Ipv6Addr;

use super::{GetData, Opcode, Protocol, ResultCode};
use crate::codec::{Malformed, Reader, Wire};

/// Proof that a request about a mapping comes from the client that made it: 96 random bits (RFC 6887 §11.1).
#[derive(Clone, Copy, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Nonce(pub [u8; 12]);

/// 24 hexadecimal digits.
impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// MAP opcode data, 36 octets, request and response alike (RFC 6887 §11.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MapData {
    /// The same in every request about the mapping, and in its responses.
    pub nonce: Nonce,
    /// [`Protocol::ALL`] only together with internal port 0.
    pub protocol: Protocol,
    /// 0: all ports.
    pub internal_port: u16,
    /// Suggested in a request (0: no preference), assigned in a response.
    pub external_port: u16,
    /// IPv4 travels as `::ffff:a.b.c.d` (RFC 6887 §5).
    pub external_addr: Ipv6Addr,
}

impl Wire for MapData {
    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let [nonce @ .., protocol, _, _, _] = r.array::<16>()?;
        let nonce = Nonce(nonce);
        let (internal_port, external_port) = (r.u16()?, r.u16()?);
        let external_addr = r.array::<16>()?.into();
        Ok(Self { nonce, protocol: Protocol(protocol), internal_port, external_port, external_addr })
    }

    fn encode(&self, w: &mut Vec<u8>) {
        w.extend(self.nonce.0);
        w.extend([self.protocol.0, 0, 0, 0]);
        w.extend(self.internal_port.to_be_bytes());
        w.extend(self.external_port.to_be_bytes());
        w.extend(self.external_addr.octets());
    }
}

/// PEER opcode data, 56 octets, request and response alike (RFC 6887 §12.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PeerData {
    /// The same in every request about the mapping, and in its responses.
    pub nonce: Nonce,
    /// Never [`Protocol::ALL`] in a valid request.
    pub protocol: Protocol,
    /// Never 0 in a valid request.
    pub internal_port: u16,
    /// Suggested in a request (0: no preference), assigned in a response.
    pub external_port: u16,
    /// IPv4 travels as `::ffff:a.b.c.d` (RFC 6887 §5).
    pub external_addr: Ipv6Addr,
    /// Never 0 in a valid request.
    pub remote_port: u16,
    /// As the internal client sees the remote peer, in the internal address' family.
    pub remote_addr: Ipv6Addr,
}

impl Wire for PeerData {
    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let MapData { nonce, protocol, internal_port, external_port, external_addr } = MapData::decode(r)?;
        let remote_port = r.u16()?;
        let _reserved = r.u16()?;
        let remote_addr = r.array::<16>()?.into();
        Ok(Self { nonce, protocol, internal_port, external_port, external_addr, remote_port, remote_addr })
    }

    fn encode(&self, w: &mut Vec<u8>) {
        let Self { nonce, protocol, internal_port, external_port, external_addr, .. } = *self;
        MapData { nonce, protocol, internal_port, external_port, external_addr }.encode(w);
        w.extend(self.remote_port.to_be_bytes());
        w.extend([0, 0]);
        w.extend(self.remote_addr.octets());
    }
}

/// AUTHENTICATION opcode data, 8 octets, and the code beside it in the header (RFC 7652).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AuthData {
    /// Octet 3 of the header, which a request of this opcode uses too. In a response it is the response's result,
    /// and not written from here.
    pub code: ResultCode,
    /// 0 until the server has chosen one.
    pub session: u32,
    /// Counts the messages of a session.
    pub sequence: u32,
}

/// The opcode with its data.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Body {
    /// No data (RFC 6887 §14.1).
    Announce,
    /// 36 octets (RFC 6887 §11.1).
    Map(MapData),
    /// 56 octets (RFC 6887 §12.1).
    Peer(PeerData),
    /// 8 octets (RFC 7652).
    Authentication(AuthData),
    /// 40 octets, of private use ([`query`](super::query)).
    Get(GetData),
    /// Everything after the common header, options and all: where the data of an unknown opcode ends is not known.
    ///
    /// An error response about a known opcode that is too short for its data comes in this form too, and so does every
    /// message under GET's number that is too short for GET: somebody else may mean something else by that number.
    Other(Opcode, Vec<u8>),
}

impl Body {
    /// The opcode; what the R bit would be is 0 in it.
    pub fn opcode(&self) -> Opcode {
        match self {
            Self::Announce => Opcode::ANNOUNCE,
            Self::Map(_) => Opcode::MAP,
            Self::Peer(_) => Opcode::PEER,
            Self::Authentication(_) => Opcode::AUTHENTICATION,
            Self::Get(_) => Opcode::GET,
            Self::Other(opcode, _) => *opcode,
        }
    }

    pub(super) fn is_get(&self) -> bool {
        matches!(self, Self::Get(_))
    }

    /// Reads the data of `opcode`; `code` is octet 3 of the header.
    pub(super) fn decode(opcode: Opcode, code: ResultCode, r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(match opcode {
            Opcode::ANNOUNCE => Self::Announce,
            Opcode::MAP => Self::Map(MapData::decode(r)?),
            Opcode::PEER => Self::Peer(PeerData::decode(r)?),
            Opcode::AUTHENTICATION => {
                Self::Authentication(AuthData { code, session: r.u32()?, sequence: r.u32()? })
            }
            Opcode::GET if r.remaining() >= GetData::LEN => Self::Get(GetData::decode(r)?),
            _ => Self::Other(opcode, r.rest().to_vec()),
        })
    }

    pub(super) fn encode(&self, w: &mut Vec<u8>) {
        match self {
            Self::Announce => {}
            Self::Map(data) => data.encode(w),
            Self::Peer(data) => data.encode(w),
            Self::Authentication(data) => {
                w.extend(data.session.to_be_bytes());
                w.extend(data.sequence.to_be_bytes());
            }
            Self::Get(data) => data.encode(w),
            Self::Other(_, octets) => {
                w.extend(octets);
                w.resize(w.len().next_multiple_of(4), 0);
            }
        }
    }
}
