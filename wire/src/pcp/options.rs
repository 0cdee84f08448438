//! PCP options: what follows the opcode data.
//!
//! This module knows the layout and the range of each option's contents. Whether an option makes sense in a request is
//! the server's business, not decided here.

use core::fmt;
use core::net::{Ipv4Addr, Ipv6Addr};

use super::{NextMapping, OptionCode, ip_from_wire};
use crate::codec::{Malformed, Reader, Wire};

/// The longest text or identifier a DESCRIPTION or THIRD_PARTY_ID may hold, in octets (RFC 7220, RFC 7843).
pub const MAX_TEXT_LEN: usize = 1016;

/// Prefix lengths a FILTER on IPv4 peers counts from: the 96 bits of `::ffff:0:0/96` (RFC 6887 §13.3).
const V4_BITS: u8 = 96;

/// Which remote peers may use a mapping: FILTER's data, 20 octets (RFC 6887 §13.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Filter {
    /// In bits of the 128-bit address: IPv4's prefix length plus 96. 0 drops all filters set before.
    pub prefix_len: u8,
    /// 0 means all ports.
    pub remote_port: u16,
    /// IPv4 travels as `::ffff:a.b.c.d`.
    pub remote_addr: Ipv6Addr,
}

impl Filter {
    /// Whether the prefix length is in the range of the address' family: 96 to 128 for IPv4, 0 to 128 for IPv6, and
    /// always 0, which drops filters (RFC 6887 §13.3).
    pub fn is_in_range(&self) -> bool {
        let least = if self.remote_addr.to_ipv4_mapped().is_some() { V4_BITS } else { 0 };
        self.prefix_len == 0 || (least..=128).contains(&self.prefix_len)
    }
}

impl Wire for Filter {
    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let [_reserved, prefix_len] = r.array()?;
        Ok(Self { prefix_len, remote_port: r.u16()?, remote_addr: r.array::<16>()?.into() })
    }

    fn encode(&self, w: &mut Vec<u8>) {
        w.extend([0, self.prefix_len]);
        w.extend(self.remote_port.to_be_bytes());
        w.extend(self.remote_addr.octets());
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix_len == 0 {
            return f.write_str("none");
        }
        let v4 = self.remote_addr.to_ipv4_mapped().is_some() && self.prefix_len >= V4_BITS;
        let prefix_len = if v4 { self.prefix_len - V4_BITS } else { self.prefix_len };
        write!(f, "{}/{prefix_len}", ip_from_wire(self.remote_addr))?;
        match self.remote_port {
            0 => Ok(()),
            port => write!(f, " port {port}"),
        }
    }
}

/// A NAT64's prefix, and which IPv4 destinations it serves: PREFIX64's data (RFC 7225).
///
/// Shape: prefix length in octets (2), prefix, suffix, then a count (2) and as many pairs of IPv4 prefix length (2) and
/// address (4). The list may be left out on the wire; it is then empty here, and written with a count of 0.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Prefix64 {
    /// 4, 5, 6, 7, 8 or 12 octets.
    pub prefix: Vec<u8>,
    /// The octets which complete the prefix to 12.
    pub suffix: Vec<u8>,
    /// Prefix length in bits, 0 to 32, and address. Empty: all IPv4 destinations.
    pub ipv4_prefixes: Vec<(u16, Ipv4Addr)>,
}

impl Prefix64 {
    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let len = usize::from(r.u16()?);
        if !matches!(len, 4..=8 | 12) {
            return Err(Malformed);
        }
        let (prefix, suffix) = (r.take(len)?.to_vec(), r.take(12 - len)?.to_vec());
        let count = if r.is_empty() { 0 } else { r.u16()? };
        let mut ipv4_prefixes = Vec::new();
        for _ in 0..count {
            let (bits, addr) = (r.u16()?, r.array::<4>()?.into());
            if bits > 32 {
                return Err(Malformed);
            }
            ipv4_prefixes.push((bits, addr));
        }
        Ok(Self { prefix, suffix, ipv4_prefixes })
    }

    fn encode(&self, w: &mut Vec<u8>) {
        w.extend(length(&self.prefix).to_be_bytes());
        w.extend(&self.prefix);
        w.extend(&self.suffix);
        let count = length(&self.ipv4_prefixes);
        w.extend(count.to_be_bytes());
        for (bits, addr) in self.ipv4_prefixes.iter().take(count.into()) {
            w.extend(bits.to_be_bytes());
            w.extend(addr.octets());
        }
    }
}

/// Several consecutive ports at once: PORT_SET's data, 5 octets (RFC 7753).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PortSet {
    /// Number of ports; never 0 in a well-formed request, 0xffff asks for as many as possible.
    pub size: u16,
    /// Equal to the MAP's internal port.
    pub first_internal_port: u16,
    /// Whether the external ports must keep the parity of the internal ones.
    pub parity: bool,
}

impl Wire for PortSet {
    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { size: r.u16()?, first_internal_port: r.u16()?, parity: r.u8()? & 1 == 1 })
    }

    fn encode(&self, w: &mut Vec<u8>) {
        w.extend(self.size.to_be_bytes());
        w.extend(self.first_internal_port.to_be_bytes());
        w.push(self.parity.into());
    }
}

/// An option of a request or response (RFC 6887 §7.3).
///
/// Shape: code (1), reserved (1), length (2) of the data without padding, data, zeros up to a multiple of four. Padding
/// with other octets than zero is tolerated, missing padding is not. Data longer than 65535 octets cannot be written
/// and is cut.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PcpOption {
    /// The internal address the mapping is for; IPv4 as `::ffff:a.b.c.d` (RFC 6887 §13.1).
    ThirdParty(Ipv6Addr),
    /// The suggested external address and port or an error; no data (RFC 6887 §13.2).
    PreferFailure,
    /// A permitted remote peer (RFC 6887 §13.3).
    Filter(Filter),
    /// The client's part of an authentication session's key (RFC 7652).
    Nonce(u32),
    /// Session ID, sequence number, key ID (12 octets together), then the MAC (RFC 7652).
    AuthenticationTag(Vec<u8>),
    /// Key ID (4 octets), then the MAC (RFC 7652).
    PaAuthenticationTag(Vec<u8>),
    /// An EAP message (RFC 7652).
    EapPayload(Vec<u8>),
    /// An IKEv2 pseudo-random function's number (RFC 7652).
    Prf(u32),
    /// An IKEv2 integrity algorithm's number (RFC 7652).
    MacAlgorithm(u32),
    /// Seconds (RFC 7652).
    SessionLifetime(u32),
    /// The sequence number that has been received (RFC 7652).
    ReceivedPak(u32),
    /// Text which helps to choose credentials (RFC 7652).
    IdIndicator(Vec<u8>),
    /// An opaque identifier, at most [`MAX_TEXT_LEN`] octets (RFC 7843).
    ThirdPartyId(Vec<u8>),
    /// UTF-8 without NUL, at most [`MAX_TEXT_LEN`] octets; not checked to be UTF-8, since a server treats other
    /// octets by not echoing them (RFC 7220).
    Description(Vec<u8>),
    /// A NAT64 prefix (RFC 7225).
    Prefix64(Prefix64),
    /// Several ports (RFC 7753).
    PortSet(PortSet),
    /// One mapping of a list, of private use ([`query`](super::query)).
    Next(NextMapping),
    /// An option this crate does not know, kept as it came.
    Unknown {
        /// Any code without a variant of its own; or NEXT, when the data are not those of a [`NextMapping`].
        code: OptionCode,
        /// Without padding.
        data: Vec<u8>,
    },
}

impl PcpOption {
    /// The option's number.
    pub fn code(&self) -> OptionCode {
        match self {
            Self::ThirdParty(_) => OptionCode::THIRD_PARTY,
            Self::PreferFailure => OptionCode::PREFER_FAILURE,
            Self::Filter(_) => OptionCode::FILTER,
            Self::Nonce(_) => OptionCode::NONCE,
            Self::AuthenticationTag(_) => OptionCode::AUTHENTICATION_TAG,
            Self::PaAuthenticationTag(_) => OptionCode::PA_AUTHENTICATION_TAG,
            Self::EapPayload(_) => OptionCode::EAP_PAYLOAD,
            Self::Prf(_) => OptionCode::PRF,
            Self::MacAlgorithm(_) => OptionCode::MAC_ALGORITHM,
            Self::SessionLifetime(_) => OptionCode::SESSION_LIFETIME,
            Self::ReceivedPak(_) => OptionCode::RECEIVED_PAK,
            Self::IdIndicator(_) => OptionCode::ID_INDICATOR,
            Self::ThirdPartyId(_) => OptionCode::THIRD_PARTY_ID,
            Self::Description(_) => OptionCode::DESCRIPTION,
            Self::Prefix64(_) => OptionCode::PREFIX64,
            Self::PortSet(_) => OptionCode::PORT_SET,
            Self::Next(_) => OptionCode::NEXT,
            Self::Unknown { code, .. } => *code,
        }
    }

    /// Whether the contents are in the ranges a request must keep; the layout has been checked by decoding.
    pub(super) fn is_in_range(&self) -> bool {
        match self {
            Self::Filter(filter) => filter.is_in_range(),
            Self::ThirdPartyId(octets) | Self::Description(octets) => octets.len() <= MAX_TEXT_LEN,
            Self::PortSet(set) => set.size != 0,
            _ => true,
        }
    }

    /// Whether the number is NEXT's but the data are not: another party's option, unless it stands beside GET.
    pub(super) fn is_foreign_next(&self) -> bool {
        matches!(self, Self::Unknown { code: OptionCode::NEXT, .. })
    }

    /// Gives the data of an option its meaning; data of the wrong length is [`Malformed`].
    fn from_data(code: OptionCode, data: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(data);
        let option = match code {
            OptionCode::THIRD_PARTY => Self::ThirdParty(r.array::<16>()?.into()),
            OptionCode::PREFER_FAILURE => Self::PreferFailure,
            OptionCode::FILTER => Self::Filter(Filter::decode(&mut r)?),
            OptionCode::NONCE => Self::Nonce(r.u32()?),
            OptionCode::AUTHENTICATION_TAG if data.len() >= 12 => Self::AuthenticationTag(r.rest().to_vec()),
            OptionCode::PA_AUTHENTICATION_TAG if data.len() >= 4 => {
                Self::PaAuthenticationTag(r.rest().to_vec())
            }
            OptionCode::AUTHENTICATION_TAG | OptionCode::PA_AUTHENTICATION_TAG => return Err(Malformed),
            OptionCode::EAP_PAYLOAD => Self::EapPayload(r.rest().to_vec()),
            OptionCode::PRF => Self::Prf(r.u32()?),
            OptionCode::MAC_ALGORITHM => Self::MacAlgorithm(r.u32()?),
            OptionCode::SESSION_LIFETIME => Self::SessionLifetime(r.u32()?),
            OptionCode::RECEIVED_PAK => Self::ReceivedPak(r.u32()?),
            OptionCode::ID_INDICATOR => Self::IdIndicator(r.rest().to_vec()),
            OptionCode::THIRD_PARTY_ID => Self::ThirdPartyId(r.rest().to_vec()),
            OptionCode::DESCRIPTION => Self::Description(r.rest().to_vec()),
            OptionCode::PREFIX64 => Self::Prefix64(Prefix64::decode(&mut r)?),
            OptionCode::PORT_SET => Self::PortSet(PortSet::decode(&mut r)?),
            OptionCode::NEXT => match NextMapping::decode(&mut r.clone()) {
                Ok(next) => {
                    r.rest();
                    Self::Next(next)
                }
                Err(Malformed) => Self::Unknown { code, data: r.rest().to_vec() },
            },
            _ => Self::Unknown { code, data: r.rest().to_vec() },
        };
        if r.is_empty() { Ok(option) } else { Err(Malformed) }
    }

    fn encode_data(&self, w: &mut Vec<u8>) {
        match self {
            Self::ThirdParty(addr) => w.extend(addr.octets()),
            Self::PreferFailure => {}
            Self::Filter(filter) => filter.encode(w),
            Self::Nonce(n)
            | Self::Prf(n)
            | Self::MacAlgorithm(n)
            | Self::SessionLifetime(n)
            | Self::ReceivedPak(n) => w.extend(n.to_be_bytes()),
            Self::AuthenticationTag(octets)
            | Self::PaAuthenticationTag(octets)
            | Self::EapPayload(octets)
            | Self::IdIndicator(octets)
            | Self::ThirdPartyId(octets)
            | Self::Description(octets)
            | Self::Unknown { data: octets, .. } => w.extend(octets),
            Self::Prefix64(prefix) => prefix.encode(w),
            Self::PortSet(set) => set.encode(w),
            Self::Next(next) => next.encode(w),
        }
    }
}

impl Wire for PcpOption {
    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (code, data) = decode_tlv(r)?;
        Self::from_data(code, data)
    }

    fn encode(&self, w: &mut Vec<u8>) {
        let mut data = Vec::new();
        self.encode_data(&mut data);
        let len = length(&data);
        data.truncate(len.into());
        data.resize(data.len().next_multiple_of(4), 0);
        w.extend([self.code().0, 0]);
        w.extend(len.to_be_bytes());
        w.extend(data);
    }
}

/// As one reads it in a trace: `FILTER 203.0.113.9/32 port 80`.
impl fmt::Display for PcpOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.code();
        match self {
            Self::PreferFailure => write!(f, "{code}"),
            Self::ThirdParty(addr) => write!(f, "{code} {}", ip_from_wire(*addr)),
            Self::Filter(filter) => write!(f, "{code} {filter}"),
            Self::Nonce(n) => write!(f, "{code} {n:08x}"),
            Self::Prf(n) | Self::MacAlgorithm(n) | Self::ReceivedPak(n) => write!(f, "{code} {n}"),
            Self::SessionLifetime(n) => write!(f, "{code} {n} s"),
            Self::Description(text) | Self::IdIndicator(text) => {
                write!(f, "{code} {:?}", String::from_utf8_lossy(text))
            }
            Self::PortSet(set) => {
                write!(f, "{code} {} from {}", set.size, set.first_internal_port)?;
                f.write_str(if set.parity { " with parity" } else { "" })
            }
            Self::Next(next) => write!(f, "{code} {next}"),
            Self::Prefix64(prefix) => {
                let mut octets = [0; 16];
                for (to, from) in octets.iter_mut().zip(&prefix.prefix) {
                    *to = *from;
                }
                write!(f, "{code} {}/{}", Ipv6Addr::from(octets), prefix.prefix.len() * 8)
            }
            Self::AuthenticationTag(octets)
            | Self::PaAuthenticationTag(octets)
            | Self::EapPayload(octets)
            | Self::ThirdPartyId(octets)
            | Self::Unknown { data: octets, .. } => write!(f, "{code} ({} octets)", octets.len()),
        }
    }
}

/// All options up to the end of a message; the first flaw is fatal.
pub(super) fn decode_all(r: &mut Reader<'_>) -> Result<Vec<PcpOption>, Malformed> {
    let mut options = Vec::new();
    while !r.is_empty() {
        options.push(PcpOption::decode(r)?);
    }
    Ok(options)
}

/// All options up to the end of a NEXT's data; the first flaw is fatal, and a NEXT is one.
pub(super) fn decode_nested(r: &mut Reader<'_>) -> Result<Vec<PcpOption>, Malformed> {
    let mut options = Vec::new();
    while !r.is_empty() {
        match decode_tlv(r)? {
            (OptionCode::NEXT, _) => return Err(Malformed),
            (code, data) => options.push(PcpOption::from_data(code, data)?),
        }
    }
    Ok(options)
}

/// All options that can be read: an option with wrong contents is dropped, a broken structure ends the list.
///
/// For error responses, which return the options of the request as the server found them.
pub(super) fn decode_readable(r: &mut Reader<'_>) -> Vec<PcpOption> {
    core::iter::from_fn(|| decode_tlv(r).ok())
        .filter_map(|(code, data)| PcpOption::from_data(code, data).ok())
        .collect()
}

/// One option's frame: code and data, padding read and gone.
fn decode_tlv<'a>(r: &mut Reader<'a>) -> Result<(OptionCode, &'a [u8]), Malformed> {
    let [code, _reserved] = r.array()?;
    let len = usize::from(r.u16()?);
    let data = r.take(len)?;
    r.take(len.next_multiple_of(4) - len)?;
    Ok((OptionCode(code), data))
}

/// A length field; what does not fit is cut by the caller.
fn length<T>(items: &[T]) -> u16 {
    u16::try_from(items.len()).unwrap_or(u16::MAX)
}
