//! A flow: one mapping at the PCP server, from the first request to the confirmed delete, and the request that stands
//! for it on the wire.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use wire::pcp::{self, Body, Filter, MapData, NO_ADDR_V4, Nonce, PcpOption, Protocol, Request};

use super::nonces::Client;
use crate::time::{Duration, Instant};

/// The longest description that is sent, in octets: what every server that takes one stores (RFC 7220 §3).
const LONGEST_DESCRIPTION: usize = 128;

/// One mapping at the server, from the first request to the confirmed delete.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct FlowId(pub u64);

/// What the server is asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Want {
    /// The LAN host that the mapping is for, sent as THIRD_PARTY (R-12, decision 22); `None` when it is the packet's own
    /// source (R-40, T-5). An IPv6 address asks the provider's firewall, any other its NAT.
    pub third_party: Option<IpAddr>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port as the server sees it: behind the router's own NAT, that NAT's port.
    pub internal_port: u16,
    /// Suggested external port; 0 when any will do.
    pub external_port: u16,
    /// FILTER (decision 25, D-7): who alone may come in; empty for everybody.
    pub remote_peers: Vec<RemotePeer>,
    /// What may change while the mapping stands.
    pub terms: Terms,
    /// A control point is waiting: repeat early.
    pub urgent: bool,
}

impl Want {
    /// Whether the provider's IPv6 firewall is asked, and not its NAT.
    pub(super) fn is_v6(&self) -> bool {
        self.third_party.is_some_and(|host| host.is_ipv6())
    }

    /// “No preference”, in the family that is wanted (RFC 6887 §11.1).
    fn no_addr(&self) -> Ipv6Addr {
        if self.is_v6() { Ipv6Addr::UNSPECIFIED } else { NO_ADDR_V4 }
    }
}

/// A remote host that may come in.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct RemotePeer {
    /// Its address.
    pub addr: IpAddr,
    /// From this port only; `None` for any.
    pub port: Option<u16>,
}

impl RemotePeer {
    /// Those of a mapping that lets in one host, from whatever port, or everybody.
    pub(crate) fn of(peer: Option<Ipv4Addr>) -> Vec<Self> {
        peer.map(|peer| Self { addr: peer.into(), port: None }).into_iter().collect()
    }

    /// As it travels.
    pub(super) fn filter(self) -> Filter {
        let remote_port = self.port.unwrap_or(0);
        Filter { prefix_len: 128, remote_port, remote_addr: pcp::ip_to_wire(self.addr) }
    }
}

/// The terms on which a mapping is kept; its owner may change them as long as it stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Terms {
    /// PREFER_FAILURE: the suggested port or none. Only with a suggested port (RFC 6887 §13.2), and left out for a
    /// server that does not know it.
    pub prefer_failure: bool,
    /// When the lease ends; `None` for a mapping that is renewed for ever.
    pub lease_ends: Option<Instant>,
    /// The longest Requested Lifetime, in seconds.
    pub longest: u32,
    /// DESCRIPTION (RFC 7220, R-45), where the server takes it; empty for none.
    pub description: String,
}

/// What the server gave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Grant {
    /// Assigned external address and port, of the family that was asked for.
    pub external: SocketAddr,
    /// Granted lifetime, at most 24 hours.
    pub lifetime: Duration,
    /// When the answer arrived.
    pub since: Instant,
}

impl Grant {
    /// What a NAT has given.
    ///
    /// # Panics
    /// When a firewall of IPv6 was asked.
    pub fn external_v4(&self) -> SocketAddrV4 {
        let SocketAddr::V4(external) = self.external else {
            panic!("nothing but IPv4 is granted to who asks a NAT")
        };
        external
    }

    /// When the server forgets the mapping unless it is renewed.
    pub fn ends(&self) -> Instant {
        self.since + self.lifetime
    }
}

/// A mapping that the server holds for us, and that we do not know.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unknown {
    /// The LAN host that it is for; `None` when it is the packet's own source.
    pub third_party: Option<Ipv4Addr>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port as the server sees it.
    pub internal_port: u16,
    /// Its external address and port, and what is left of its lifetime.
    pub grant: Grant,
    /// What the server knows its owner by.
    pub nonce: Nonce,
}

/// Options that a server refuses to hear of, or that one request does without to find that out.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Omitted {
    pub(super) prefer_failure: bool,
    pub(super) description: bool,
}

/// Options that a request may be refused for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Carried {
    pub(super) prefer_failure: bool,
    pub(super) description: bool,
    /// A FILTER that drops others.
    pub(super) reset: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Phase {
    /// A request is out (or about to be: `sent` is 0) and unanswered.
    Asking { rt: Duration, sent: u32 },
    /// Granted; so many renewals have been tried since.
    Held { attempts: u32 },
    /// A delete is out; it makes no sense after `until`.
    Deleting { rt: Duration, sent: u32, until: Instant },
}

impl Phase {
    pub(super) const ASK: Phase = Phase::Asking { rt: Duration::ZERO, sent: 0 };
}

#[derive(Clone, Debug)]
pub(super) struct Flow {
    pub(super) nonce: Nonce,
    /// The nonce can be derived again.
    pub(super) derived: bool,
    pub(super) want: Want,
    /// The Requested Lifetime of the datagram that is repeated.
    pub(super) requested: u32,
    pub(super) grant: Option<Grant>,
    pub(super) phase: Phase,
    /// The server does not have the granted address any more: it is not suggested again.
    pub(super) any_address: bool,
    /// The server may still have the filters of another remote peer: they are dropped first.
    pub(super) reset_filters: bool,
    /// Copies of the request that went out, and errors that came: as long as there are as many, nothing got through.
    pub(super) copies: u32,
    pub(super) errors: u32,
    /// What this request does without, because the same one with it was refused.
    pub(super) omitted: Omitted,
    /// Whether the last request had these options.
    pub(super) carried: Carried,
    /// A request went out, and no answer came since.
    pub(super) unanswered: bool,
    /// The server may have lost it; that is looked after when it is not deleted after all.
    pub(super) doubtful: bool,
    /// When the last datagram went out.
    pub(super) sent_at: Instant,
    /// When its owner last asked for it.
    pub(super) used_at: Instant,
}

impl Flow {
    /// One that nothing has been sent for.
    pub(super) fn new(now: Instant, nonce: Nonce, derived: bool, want: Want) -> Self {
        Self {
            nonce,
            derived,
            requested: lifetime_to_ask(now, &want.terms),
            want,
            grant: None,
            phase: Phase::ASK,
            any_address: false,
            reset_filters: false,
            copies: 0,
            errors: 0,
            omitted: Omitted::default(),
            carried: Carried::default(),
            unanswered: false,
            doubtful: false,
            sent_at: now,
            used_at: now,
        }
    }

    /// What an answer to it has: nonce, protocol and internal port (RFC 6887 §11.4).
    pub(super) fn answers(&self) -> (Nonce, Protocol, u16) {
        (self.nonce, self.want.protocol, self.want.internal_port)
    }

    pub(super) fn is_deleting(&self) -> bool {
        matches!(self.phase, Phase::Deleting { .. })
    }

    /// Whether the request has a FILTER that drops those of before.
    pub(super) fn resets(&self) -> bool {
        self.reset_filters && !self.is_deleting()
    }

    /// The FILTERs of the request, in their order.
    pub(super) fn filters(&self) -> Vec<Filter> {
        if self.is_deleting() {
            return Vec::new();
        }
        // They add up in the server until one of prefix length 0 drops them (RFC 6887 §13.3).
        let everybody = Filter { prefix_len: 0, remote_port: 0, remote_addr: Ipv6Addr::UNSPECIFIED };
        let reset = self.resets().then_some(everybody);
        reset.into_iter().chain(self.want.remote_peers.iter().map(|peer| peer.filter())).collect()
    }

    fn external_port(&self) -> u16 {
        self.grant.map_or(self.want.external_port, |grant| grant.external.port())
    }

    /// Whether the request has PREFER_FAILURE, at a server that lacks what `lacks` says.
    pub(super) fn prefers_failure(&self, lacks: Omitted) -> bool {
        self.want.terms.prefer_failure
            && self.external_port() != 0
            && !(lacks.prefer_failure || self.omitted.prefer_failure || self.is_deleting())
    }

    /// Whether the request has a DESCRIPTION, at a server that lacks what `lacks` says.
    pub(super) fn describes(&self, lacks: Omitted) -> bool {
        let without = lacks.description || self.omitted.description || self.is_deleting();
        !without && !self.want.terms.description.is_empty()
    }

    /// The request as it goes out from `source`. In a delete the suggested fields are zero and there is no option but
    /// THIRD_PARTY (RFC 6887 §11.3, §13.3, §15.1).
    pub(super) fn request(&self, source: IpAddr, lacks: Omitted) -> Request {
        let want = &self.want;
        let deleting = self.is_deleting();
        let mut options = Vec::new();
        if let Some(host) = third_party(want, source) {
            options.push(PcpOption::ThirdParty(pcp::ip_to_wire(host)));
        }
        if self.prefers_failure(lacks) {
            options.push(PcpOption::PreferFailure);
        }
        options.extend(self.filters().into_iter().map(PcpOption::Filter));
        if self.describes(lacks) {
            options.push(PcpOption::Description(description(&want.terms.description)));
        }
        let (mut external_port, mut external_addr) = (0, want.no_addr());
        if !deleting {
            external_port = self.external_port();
            if let Some(grant) = self.grant.filter(|_| !self.any_address) {
                external_addr = pcp::ip_to_wire(grant.external.ip());
            }
        }
        Request {
            lifetime: if deleting { 0 } else { self.requested },
            client_addr: pcp::ip_to_wire(source),
            body: Body::Map(MapData {
                nonce: self.nonce,
                protocol: want.protocol,
                internal_port: want.internal_port,
                external_port,
                external_addr,
            }),
            options,
        }
    }
}

/// The THIRD_PARTY of a request from `source`; it must not name the source itself (spec T-5).
pub(super) fn third_party(want: &Want, source: IpAddr) -> Option<IpAddr> {
    want.third_party.filter(|&host| host != source)
}

/// What the server will know the mapping by.
pub(super) fn client(want: &Want) -> Client {
    (want.third_party, want.protocol, want.internal_port)
}

/// Requested Lifetime: the rest of the lease, at least a second. RFC 6970 §5.9 asks for 2^32 when the lease has no
/// end, which the field cannot hold (spec/iwf.md, T-1).
pub(super) fn lifetime_to_ask(now: Instant, terms: &Terms) -> u32 {
    terms.lease_ends.map_or(u32::MAX, |end| end.secs_left(now).max(1)).min(terms.longest)
}

/// As much of a text as every server stores, cut between characters and filled up with blanks to a multiple of four
/// octets: the most deployed server refuses other lengths (spec/clients.md, K-17).
fn description(text: &str) -> Vec<u8> {
    let end = (0..=text.len().min(LONGEST_DESCRIPTION)).rev().find(|&end| text.is_char_boundary(end));
    let mut octets = text.as_bytes()[..end.unwrap_or(0)].to_vec();
    octets.resize(octets.len().next_multiple_of(4), b' ');
    octets
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7220 §3, R-45 and K-17.
    #[test]
    fn descriptions_are_cut_between_characters_and_filled_up() {
        assert_eq!(description("game"), b"game");
        assert_eq!(description("games"), b"games   ");
        assert_eq!(description(&"x".repeat(300)).len(), 128);
        let umlauts = description(&format!("x{}", "ü".repeat(100)));
        assert_eq!(umlauts.len(), 128);
        assert_eq!(std::str::from_utf8(&umlauts).unwrap().trim_end().len(), 127);
    }
}
