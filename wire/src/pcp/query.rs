//! GET and NEXT: a client asks which mappings the server holds for it. Private use on both sides, off unless configured.
//!
//! The names come from draft-boucadair-pcp-failure, which has expired; the octets are those of the one public client
//! that speaks it, the rest of this page is ours. Opcode 98, option 224 and results 192 and 193 are all
//! from the ranges that RFC 6887 §19 leaves to private use. That client has NEXT at 131 and its results at 130 and 131,
//! which are IANA's to assign: they are not read as ours, since an option of an RFC to come may stand there.
//!
//! What is of private use means something only between parties that agreed on it. So octets under these numbers that do
//! not have our layout are an unknown opcode ([`Body::Other`](super::Body::Other)) or, beside another opcode than GET, an
//! unknown option; neither spoils a message.
//!
//! # The exchange
//!
//! * **Request.** Lifetime 0; [`GetData`] are filters, zero lets everything through. THIRD_PARTY asks for the mappings of
//!   another host. One NEXT option holds the last mapping that the client has seen, and asks for those behind it; only
//!   its [key](NextMapping::key) counts.
//! * **Answer.** SUCCESS, lifetime 0, the filters as they came, THIRD_PARTY if it was asked for; then as many NEXT options as
//!   fit into [`MAX_LEN`](super::MAX_LEN), each a mapping, in the order of their keys: internal address, protocol,
//!   internal port. `more` says that another one comes after this one, in this answer or in the next: that of the last
//!   NEXT tells the client whether to go on. The NEXT of the request is not repeated.
//! * **Nothing to tell**, from the start or behind the last one seen: NON_EXIST_MAPPING. There is no snapshot: what is made or
//!   deleted between two requests may be missed, but no mapping that stands all the while is, and none comes twice.
//! * **No GET here**: UNSUPP_OPCODE.
//!
//! GET has no nonce of its own: an answer is matched by the server it comes from and by the filters it repeats.
//!
//! # Whose mappings, and whose nonces
//!
//! Without THIRD_PARTY, those that the packet's source has made, for itself or for third parties. With it (and only where it is
//! allowed), those of that host, whoever made them.
//!
//! A nonce is what proves that a mapping is one's own (RFC 6887 §11.3, §18). A client that has lost its memory needs it back: to
//! tell its mappings from others', and to delete those of an earlier installation, which would use up its quota until
//! they expire. So the server tells the nonce of a mapping to the source address that made it, and to nobody else: with
//! THIRD_PARTY, mappings that another source has made come with a nonce of zeros.
//!
//! The price: the address becomes the proof. An attacker off the path who spoofs it learns nothing, since the answer goes to the
//! address. But whoever sends from it does, and behind a NAT that is every host which that NAT lets through to the
//! server. A gateway whose server speaks GET must keep its LAN away from the server's port; a provider that cannot rely
//! on that leaves GET off.

use core::fmt;
use core::net::{Ipv6Addr, SocketAddr};

use super::trace::Abridged;
use super::{Nonce, PcpOption, Protocol, ip_from_wire, options};
use crate::codec::{Malformed, Reader, Wire};

/// GET's filters, 40 octets, request and response alike. Zero, in an address also `::ffff:0.0.0.0`, lets all through.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GetData {
    /// [`Protocol::ALL`]: no filter.
    pub protocol: Protocol,
    /// IPv4 travels as `::ffff:a.b.c.d`.
    pub internal_addr: Ipv6Addr,
    /// IPv4 travels as `::ffff:a.b.c.d`.
    pub external_addr: Ipv6Addr,
    /// 0: no filter.
    pub internal_port: u16,
    /// 0: no filter.
    pub external_port: u16,
}

impl GetData {
    /// Octets on the wire.
    pub(super) const LEN: usize = 40;

    /// No filter at all.
    pub const ALL: Self = Self {
        protocol: Protocol::ALL,
        internal_addr: Ipv6Addr::UNSPECIFIED,
        external_addr: Ipv6Addr::UNSPECIFIED,
        internal_port: 0,
        external_port: 0,
    };
}

impl Wire for GetData {
    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let [protocol, _, _, _] = r.array()?;
        Ok(Self {
            protocol: Protocol(protocol),
            internal_addr: r.array::<16>()?.into(),
            external_addr: r.array::<16>()?.into(),
            internal_port: r.u16()?,
            external_port: r.u16()?,
        })
    }

    fn encode(&self, w: &mut Vec<u8>) {
        w.extend([self.protocol.0, 0, 0, 0]);
        w.extend(self.internal_addr.octets());
        w.extend(self.external_addr.octets());
        w.extend(self.internal_port.to_be_bytes());
        w.extend(self.external_port.to_be_bytes());
    }
}

/// `all mappings`, or the filters that are set: `TCP, internal 10.0.0.5:0`.
impl fmt::Display for GetData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if self.protocol != Protocol::ALL {
            write!(f, "{}", self.protocol)?;
            separator = ", ";
        }
        for (side, addr, port) in [
            ("internal", self.internal_addr, self.internal_port),
            ("external", self.external_addr, self.external_port),
        ] {
            let endpoint = SocketAddr::new(ip_from_wire(addr), port);
            if !endpoint.ip().is_unspecified() || port != 0 {
                write!(f, "{separator}{side} {endpoint}")?;
                separator = ", ";
            }
        }
        if separator.is_empty() { f.write_str("all mappings") } else { Ok(()) }
    }
}

/// One mapping of a list: NEXT's data, 56 octets and the options of that mapping.
///
/// In a request it is the last mapping that the client has seen, and only its [`key`](Self::key) counts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NextMapping {
    /// All zeros when it is not told.
    pub nonce: Nonce,
    /// With the internal endpoint, what the list is ordered by.
    pub protocol: Protocol,
    /// Whether another mapping comes after this one. Any octet but 0 counts as yes.
    pub more: bool,
    /// IPv4 travels as `::ffff:a.b.c.d`.
    pub internal_addr: Ipv6Addr,
    /// IPv4 travels as `::ffff:a.b.c.d`.
    pub external_addr: Ipv6Addr,
    /// Seconds that are left; 0 in a request.
    pub lifetime: u32,
    /// 0: all ports.
    pub internal_port: u16,
    /// 0: all ports.
    pub external_port: u16,
    /// What the mapping was made with, such as FILTER and DESCRIPTION; unknown ones are kept. Never another NEXT.
    pub options: Vec<PcpOption>,
}

impl NextMapping {
    /// What tells the mappings of a server apart and what their list is ordered by: internal address, protocol, internal
    /// port.
    pub fn key(&self) -> (Ipv6Addr, Protocol, u16) {
        (self.internal_addr, self.protocol, self.internal_port)
    }

    /// Reads all of `r`. A NEXT inside is [`Malformed`], so that no octets nest deeper than two levels.
    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let [nonce @ .., protocol, _, _, more] = r.array::<16>()?;
        Ok(Self {
            nonce: Nonce(nonce),
            protocol: Protocol(protocol),
            more: more != 0,
            internal_addr: r.array::<16>()?.into(),
            external_addr: r.array::<16>()?.into(),
            lifetime: r.u32()?,
            internal_port: r.u16()?,
            external_port: r.u16()?,
            options: options::decode_nested(r)?,
        })
    }

    pub(super) fn encode(&self, w: &mut Vec<u8>) {
        w.extend(self.nonce.0);
        w.extend([self.protocol.0, 0, 0, self.more.into()]);
        w.extend(self.internal_addr.octets());
        w.extend(self.external_addr.octets());
        w.extend(self.lifetime.to_be_bytes());
        w.extend(self.internal_port.to_be_bytes());
        w.extend(self.external_port.to_be_bytes());
        for option in &self.options {
            option.encode(w);
        }
    }
}

/// `(TCP 10.0.0.5:8080 -> 198.51.100.7:9090, 3600 s, nonce 0001…, more)`
impl fmt::Display for NextMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let internal = SocketAddr::new(ip_from_wire(self.internal_addr), self.internal_port);
        let external = SocketAddr::new(ip_from_wire(self.external_addr), self.external_port);
        let Self { protocol, lifetime, nonce, .. } = self;
        write!(f, "({protocol} {internal} -> {external}, {lifetime} s, nonce {}", Abridged(*nonce))?;
        f.write_str(if self.more { ", more" } else { "" })?;
        self.options.iter().try_for_each(|option| write!(f, ", {option}"))?;
        f.write_str(")")
    }
}
