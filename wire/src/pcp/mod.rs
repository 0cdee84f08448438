//! The Port Control Protocol, version 2 (RFC 6887 and its extensions): whole messages, client and server side.
//!
//! Octets become values here and back. What a server grants, when a client asks again, who may ask for what: none of it
//! is decided here, and no clock is read.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::codec::{Malformed, Reader, Wire};

mod codes;
mod data;
mod options;
pub mod query;
#[cfg(test)]
mod tests;
mod trace;

pub use codes::{Opcode, OptionCode, Protocol, ResultCode};
pub use data::{AuthData, Body, MapData, Nonce, PeerData};
pub use options::{Filter, MAX_TEXT_LEN, PcpOption, PortSet, Prefix64};
pub use query::{GetData, NextMapping};

/// UDP port a server listens on (RFC 6887 §19).
pub const SERVER_PORT: u16 = 5351;
/// UDP port clients hear multicast announcements on (RFC 6887 §14.1).
pub const CLIENT_PORT: u16 = 5350;
/// Where an IPv4 server multicasts its announcements (RFC 6887 §14.1).
pub const ANNOUNCE_GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
/// Where an IPv6 server multicasts its announcements (RFC 6887 §14.1).
pub const ANNOUNCE_GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The version this module speaks.
pub const VERSION: u8 = 2;
/// Longest UDP payload, in octets (RFC 6887 §7).
pub const MAX_LEN: usize = 1100;
/// Octets of the common header (RFC 6887 §7.1, §7.2).
pub const HEADER_LEN: usize = 24;
/// The all-zeros IPv4 address: no suggestion (RFC 6887 §5).
pub const NO_ADDR_V4: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0);

/// Tells a response from a request, beside the opcode in octet 1.
const R: u8 = 0x80;

/// An IPv4 address as it travels: `::ffff:a.b.c.d` (RFC 6887 §5).
pub fn mapped(addr: Ipv4Addr) -> Ipv6Addr {
    addr.to_ipv6_mapped()
}

/// The address meant by 16 octets on the wire: `::ffff:a.b.c.d` is IPv4 (RFC 6887 §5).
pub fn ip_from_wire(addr: Ipv6Addr) -> IpAddr {
    addr.to_canonical()
}

/// An address as it travels; IPv4 becomes `::ffff:a.b.c.d` (RFC 6887 §5).
pub fn ip_to_wire(addr: IpAddr) -> Ipv6Addr {
    match addr {
        IpAddr::V4(addr) => mapped(addr),
        IpAddr::V6(addr) => addr,
    }
}

/// Why a datagram is not a request a server can look at (RFC 6887 §8.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rejection {
    /// Drop the datagram without a word.
    Silence,
    /// Send [`error_response`] with this result.
    Answer(ResultCode),
}

/// A request's common header, 24 octets, and a promise that the datagram is long enough for its opcode.
///
/// The promise does not hold for GET, which is of private use: see [`Body::Other`].
///
/// A server that keeps to the order of RFC 6887 §8.2 compares `client_addr` with the packet's source, then looks
/// whether it knows `opcode`, and only then calls [`Request::parse`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RequestHeader {
    /// Any value of 0 to 127.
    pub opcode: Opcode,
    /// Seconds.
    pub lifetime: u32,
    /// The source of the packet as the client believes it; IPv4 as `::ffff:a.b.c.d`.
    pub client_addr: Ipv6Addr,
}

impl RequestHeader {
    /// Checks everything that comes before the options, in the order of RFC 6887 §8.2.
    pub fn parse(payload: &[u8]) -> Result<Self, Rejection> {
        let [version, opcode, ..] = *payload else { return Err(Rejection::Silence) };
        if opcode & R != 0 {
            return Err(Rejection::Silence);
        }
        if version != VERSION {
            return Err(Rejection::Answer(ResultCode::UNSUPP_VERSION));
        }
        let mut r = Reader::new(payload);
        let (header, code) = Self::decode(&mut r).map_err(|Malformed| Rejection::Silence)?;
        let too_short = Body::decode(header.opcode, code, &mut r).is_err();
        if payload.len() > MAX_LEN || !payload.len().is_multiple_of(4) || too_short {
            return Err(Rejection::Answer(ResultCode::MALFORMED_REQUEST));
        }
        Ok(header)
    }

    /// The header, and octet 3 beside it.
    fn decode(r: &mut Reader<'_>) -> Result<(Self, ResultCode), Malformed> {
        let [_version, opcode, _reserved, code] = r.array()?;
        let (lifetime, client_addr) = (r.u32()?, r.array::<16>()?.into());
        Ok((Self { opcode: Opcode(opcode), lifetime, client_addr }, ResultCode(code)))
    }
}

/// A request: common header, opcode data, options (RFC 6887 §7.1).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    /// Seconds; 0 deletes a mapping, and is what ANNOUNCE carries.
    pub lifetime: u32,
    /// The source of the packet as the client believes it; IPv4 as `::ffff:a.b.c.d`.
    pub client_addr: Ipv6Addr,
    /// Opcode and its data.
    pub body: Body,
    /// In order of appearance. Empty beside [`Body::Other`].
    pub options: Vec<PcpOption>,
}

impl Request {
    /// The datagram. Its length is a multiple of four; that it is not above [`MAX_LEN`] is up to the caller's options.
    pub fn to_bytes(&self) -> Vec<u8> {
        let code = match &self.body {
            Body::Authentication(data) => data.code.0,
            _ => 0,
        };
        let mut w = vec![VERSION, self.body.opcode().0 & !R, 0, code];
        w.extend(self.lifetime.to_be_bytes());
        w.extend(self.client_addr.octets());
        encode_rest(&self.body, &self.options, &mut w);
        w
    }

    /// Reads a datagram as a server does, in the order of RFC 6887 §8.2, as far as its octets alone tell.
    ///
    /// An option whose layout or contents break its own specification, or which may be there only once and is there
    /// twice, is MALFORMED_OPTION (RFC 6887 §7.3). Options this crate does not know are kept, mandatory ones
    /// too, and so are unknown opcodes: the server knows what it supports and answers UNSUPP_OPTION or UNSUPP_OPCODE.
    /// The source address must be compared with `client_addr`; [`RequestHeader::parse`] lets that come first.
    pub fn parse(payload: &[u8]) -> Result<Self, Rejection> {
        RequestHeader::parse(payload)?;
        let mut r = Reader::new(payload);
        let malformed_request = |Malformed| Rejection::Answer(ResultCode::MALFORMED_REQUEST);
        let (header, code) = RequestHeader::decode(&mut r).map_err(malformed_request)?;
        let body = Body::decode(header.opcode, code, &mut r).map_err(malformed_request)?;
        let malformed_option = Rejection::Answer(ResultCode::MALFORMED_OPTION);
        let options = options::decode_all(&mut r).map_err(|Malformed| malformed_option)?;
        for (i, option) in options.iter().enumerate() {
            let earlier = options.iter().take(i).any(|other| other.code() == option.code());
            let again = earlier && option.code().is_once_only();
            if !option.is_in_range() || again || (body.is_get() && option.is_foreign_next()) {
                return Err(malformed_option);
            }
        }
        let RequestHeader { lifetime, client_addr, .. } = header;
        Ok(Self { lifetime, client_addr, body, options })
    }

    /// The first option of this kind.
    pub fn option(&self, code: OptionCode) -> Option<&PcpOption> {
        self.options.iter().find(|option| option.code() == code)
    }
}

/// A response: common header, opcode data, options (RFC 6887 §7.2).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Response {
    /// SUCCESS, or why not.
    pub result: ResultCode,
    /// Seconds: of the mapping, or how long the same request will fail again.
    pub lifetime: u32,
    /// Seconds since the server last lost its state (RFC 6887 §8.5).
    pub epoch: u32,
    /// Opcode and its data.
    pub body: Body,
    /// In order of appearance. Empty beside [`Body::Other`].
    pub options: Vec<PcpOption>,
}

impl Response {
    /// The datagram. Its length is a multiple of four; that it is not above [`MAX_LEN`] is up to the caller's options.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut w = vec![VERSION, self.body.opcode().0 | R, 0, self.result.0];
        w.extend(self.lifetime.to_be_bytes());
        w.extend(self.epoch.to_be_bytes());
        w.extend([0; 12]);
        encode_rest(&self.body, &self.options, &mut w);
        w
    }

    /// Reads a datagram as a client does (RFC 6887 §8.3), apart from the refusals of [`version_refusal`], which come
    /// first.
    ///
    /// Unknown options are kept for the caller to ignore, and repeated ones too. An error response returns what the
    /// server was sent, so there options that cannot be read are dropped, and data too short for its opcode becomes
    /// [`Body::Other`]; in a success both are [`Malformed`], apart from data of GET.
    pub fn parse(datagram: &[u8]) -> Result<Self, Malformed> {
        if datagram.len() > MAX_LEN || !datagram.len().is_multiple_of(4) {
            return Err(Malformed);
        }
        let mut r = Reader::new(datagram);
        let [version, opcode, _reserved, result] = r.array()?;
        if version != VERSION || opcode & R == 0 {
            return Err(Malformed);
        }
        let (opcode, result) = (Opcode(opcode & !R), ResultCode(result));
        let (lifetime, epoch, _reserved) = (r.u32()?, r.u32()?, r.take(12)?);
        let data = r.clone();
        let body = match Body::decode(opcode, result, &mut r) {
            Err(Malformed) if result != ResultCode::SUCCESS => {
                r = data;
                Body::Other(opcode, r.rest().to_vec())
            }
            body => body?,
        };
        let options = match result {
            ResultCode::SUCCESS => options::decode_all(&mut r)?,
            _ => options::decode_readable(&mut r),
        };
        if result == ResultCode::SUCCESS && body.is_get() && options.iter().any(PcpOption::is_foreign_next) {
            return Err(Malformed);
        }
        Ok(Self { result, lifetime, epoch, body, options })
    }

    /// The first option of this kind.
    pub fn option(&self, code: OptionCode) -> Option<&PcpOption> {
        self.options.iter().find(|option| option.code() == code)
    }
}

fn encode_rest(body: &Body, options: &[PcpOption], w: &mut Vec<u8>) {
    body.encode(w);
    for option in options {
        option.encode(w);
    }
}

/// A server's word that it does not speak our version.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct VersionRefusal {
    /// The version the server names instead (RFC 6887 §9); 0 is NAT-PMP.
    pub version: u8,
    /// Seconds the refusal lasts; 0 if the server does not say.
    pub lifetime: u32,
    /// The server's epoch, if it says.
    pub epoch: Option<u32>,
}

/// Reads a datagram that refuses our version, whoever wrote it; `None` for anything else.
///
/// Two layouts count. PCP's UNSUPP_VERSION has the R bit and may be as short as 4 octets (RFC 6887 §8.3). A server
/// that speaks NAT-PMP only answers with 8 octets: version 0, opcode, result 1 in two octets, epoch (RFC 6886 §3.5).
/// Its opcode is 0 in the RFC's figure, so the R bit is clear and RFC 6887's rules alone would drop it; deployed
/// servers send 128 and more. We take both.
pub fn version_refusal(datagram: &[u8]) -> Option<VersionRefusal> {
    let mut r = Reader::new(datagram);
    let [version, opcode, reserved, code] = r.array().ok()?;
    let is_response = opcode & R != 0;
    if ResultCode(code) != ResultCode::UNSUPP_VERSION {
        return None;
    }
    if version == 0 && (opcode == 0 || datagram.len() < HEADER_LEN) {
        // NAT-PMP: octets 2 and 3 are one number, and there is no lifetime.
        let is_refusal = reserved == 0 && (is_response || (opcode == 0 && datagram.len() >= 8));
        return is_refusal.then(|| VersionRefusal { version, lifetime: 0, epoch: r.u32().ok() });
    }
    is_response.then(|| VersionRefusal { version, lifetime: r.u32().unwrap_or(0), epoch: r.u32().ok() })
}

/// The answer to a request that is refused: its own octets, made into a response (RFC 6887 §8.2).
///
/// Shape: at most 1100 octets of `payload`, zero-padded to a multiple of four and to the 24 of a header, then version,
/// R bit, result, lifetime and epoch set. Octets 12 to 23 are zero if `payload` parses, else they stay what they are:
/// the end of the client's address field (RFC 6887 §7.2).
///
/// Padding to 24 is ours: the RFC would let a two-octet NAT-PMP request be answered with four octets. Octets 2 and 3
/// of the answer to it read as NAT-PMP's "unsupported version", as they should.
pub fn error_response(payload: &[u8], result: ResultCode, lifetime: u32, epoch: u32) -> Vec<u8> {
    let mut answer = payload.get(..MAX_LEN).unwrap_or(payload).to_vec();
    answer.resize(answer.len().next_multiple_of(4).max(HEADER_LEN), 0);
    let opcode = payload.get(1).copied().unwrap_or(0);
    let mut header = vec![VERSION, opcode | R, 0, result.0];
    header.extend(lifetime.to_be_bytes());
    header.extend(epoch.to_be_bytes());
    if Request::parse(payload).is_ok() {
        header.extend([0; 12]);
    }
    answer.splice(..header.len(), header);
    answer
}
