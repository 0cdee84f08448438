//! IP packets as translators see them: the headers of IPv4, IPv6, TCP, UDP and ICMP, their checksums, the softwire of
//! DS-Lite and the translation between the two versions. Octets in, values and octets out; no device, no clock.
//!
//! Checksums of TCP, UDP and ICMP are changed by what a header's change means for them and never made anew, so what was
//! damaged on the way stays so (RFC 1624, RFC 3022 §4.2). Fragments are refused, and nothing is fragmented: softwires need
//! links that are long enough (RFC 6333 §5.3), and a NAT64 loses what would have to be (RFC 7915 §4.1).

use std::fmt;

mod checksum;
mod icmp;
mod ip;
mod softwire;
mod translate;
mod transport;

pub use checksum::Sum;
pub use icmp::{Quoted, echo_reply_v4, echo_reply_v6, quoted_v4, quoted_v6, requote_v4};
pub use ip::{Ipv4, Ipv6};
pub use softwire::{decapsulate, encapsulate};
pub use translate::{Prefix64, error_to_v4, error_to_v6, to_v4, to_v6};
pub use transport::{End, Segment, TcpFlags, udp_v4, udp_v6};

/// Next header values (IANA's protocol numbers).
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in what comes before it: a softwire.
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
}

/// Why a packet goes no further.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Refused {
    /// A header is cut short, contradicts itself, or has a wrong checksum.
    Malformed,
    /// A fragment, or a header that says there may be more.
    Fragment,
    /// A source route or a routing header with segments left (RFC 7915 §4.1, §5.1).
    SourceRoute,
    /// A protocol, or a type of ICMP message, that is not translated.
    Protocol,
    /// An address that is not the translator's to translate.
    Address,
    /// Nobody inside has asked for it, and no binding lets it in.
    NoMapping,
    /// There is a binding, and its filters shut this remote peer out.
    Filtered,
    /// Every external port is taken.
    NoPort,
    /// Congestion was marked on a packet that cannot carry the mark (RFC 6040 §4.2).
    Congestion,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "malformed",
            Self::Fragment => "a fragment",
            Self::SourceRoute => "source routed",
            Self::Protocol => "a protocol that is not translated",
            Self::Address => "an address that is not translated",
            Self::NoMapping => "no mapping",
            Self::Filtered => "filtered",
            Self::NoPort => "no port left",
            Self::Congestion => "congestion experienced",
        })
    }
}

impl std::error::Error for Refused {}
