//! What is looked at before a request is carried out, in the order of RFC 6887 §8.2: where it comes from, whether it is one,
//! how many there are of it, and who it is for.

use std::net::{IpAddr, Ipv6Addr};

use wire::natpmp;
use wire::pcp::{self, Body, Opcode, PcpOption, Rejection, Request, RequestHeader, ResultCode};

use super::config::ServerConfig;
use super::interface::{Arrival, Inside, Requester, Subscriber};
use super::journal::MappingKey;
use super::reason::{Kind, Reason, Refused};
use super::{Server, nat};
use crate::prefix::Prefix;
use crate::time::Instant;

/// Tells a response from a request, in PCP and in NAT-PMP.
const R: u8 = 0x80;

/// What of a request is met with an answer right away.
pub(super) enum Served {
    /// This one.
    Answer(Vec<u8>),
    /// All that was to be said has been said, or the data plane has to speak first.
    Waits,
}

/// Who has sent a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    pub(super) arrival: Arrival,
    pub(super) requester: Requester,
    pub(super) subscriber: Subscriber,
}

impl Client {
    pub(super) fn new(arrival: &Arrival, config: &ServerConfig) -> Self {
        let requester = Requester { addr: arrival.from.ip().to_canonical(), softwire: arrival.softwire };
        let subscriber = if is_link_local(requester.addr) && arrival.softwire.is_none() {
            Subscriber::OnLink { addr: requester.addr, interface: arrival.interface }
        } else {
            Subscriber::of(requester, config)
        };
        Self { arrival: *arrival, requester, subscriber }
    }

    /// The host that sent it.
    pub(super) fn host(&self) -> Inside {
        Inside { softwire: self.requester.softwire, addr: self.requester.addr }
    }
}

impl Subscriber {
    /// Whose a requester is. A B4 is the same subscriber in both modes of DS-Lite.
    pub(super) fn of(requester: Requester, config: &ServerConfig) -> Self {
        match (requester.softwire, requester.addr) {
            (Some(b4), _) => Self::Softwire(b4),
            (None, IpAddr::V4(addr)) => Self::V4(addr),
            (None, IpAddr::V6(addr)) if is_b4(config, addr) => Self::Softwire(addr),
            (None, IpAddr::V6(addr)) => match Prefix::new(addr.into(), config.subscriber_bits).first() {
                IpAddr::V6(prefix) => Self::V6(prefix),
                IpAddr::V4(_) => Self::V6(addr),
            },
        }
    }
}

/// Whether a B4 that talks outside of its softwire has this address.
pub(super) fn is_b4(config: &ServerConfig, addr: Ipv6Addr) -> bool {
    config.b4.iter().any(|prefix| prefix.contains(addr.into()))
}

/// Whether it can be the address of a host that packets are forwarded to: one host on every link, and none of class E.
pub(super) fn is_host(addr: IpAddr) -> bool {
    !addr.is_unspecified()
        && !addr.is_multicast()
        && !addr.is_loopback()
        && !is_link_local(addr)
        && !matches!(addr, IpAddr::V4(addr) if addr.octets()[0] >= 240)
}

fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.is_link_local(),
        IpAddr::V6(addr) => addr.is_unicast_link_local(),
    }
}

impl Server {
    /// One datagram that came to port 5351, whoever sent it and whatever it is.
    pub fn handle_datagram(&mut self, now: Instant, arrival: &Arrival, payload: &[u8]) {
        self.counters.received += 1;
        self.end_mappings(now);
        self.pool.end_holds(now, 2);
        let client = Client::new(arrival, &self.config);
        if let Err(silence) = self.admit(now, &client, payload) {
            return self.counters.refuse(silence);
        }
        self.handle_admitted(now, &client, payload);
    }

    /// RFC 6887 §8.2 as far as it ends in silence, and what is too much.
    fn admit(&mut self, now: Instant, client: &Client, payload: &[u8]) -> Result<(), Reason> {
        if !client.arrival.inside {
            return Err(Reason::WrongInterface);
        }
        let [_version, opcode, ..] = *payload else { return Err(Reason::TooShort) };
        if opcode & R != 0 {
            return Err(Reason::IsResponse);
        }
        if self.has_token(now, client) { Ok(()) } else { Err(Reason::RateLimited) }
    }

    /// Whether the client may ask once more; that takes a token.
    pub(super) fn has_token(&mut self, now: Instant, client: &Client) -> bool {
        self.config.rate.is_none_or(|rate| self.limits.admit(now, rate, client.subscriber))
    }

    /// A request that waited for the end of an earlier one.
    pub(super) fn handle_again(&mut self, now: Instant, arrival: &Arrival, payload: &[u8]) {
        let client = Client::new(arrival, &self.config);
        self.handle_admitted(now, &client, payload);
    }

    fn handle_admitted(&mut self, now: Instant, client: &Client, payload: &[u8]) {
        let is_natpmp = payload.first() == Some(&natpmp::VERSION);
        // NAT-PMP is IPv4's (RFC 6886 §3).
        let served = if is_natpmp && self.config.natpmp && client.requester.addr.is_ipv4() {
            self.serve_natpmp(now, client, payload)
        } else {
            self.serve(now, client, payload).or_else(|refused| self.refused(now, payload, refused))
        };
        match served {
            Ok(Served::Answer(bytes)) => self.send(&client.arrival, bytes),
            Ok(Served::Waits) => {}
            Err(silence) => self.counters.refuse(silence),
        }
    }

    /// The answer to a request that is refused; silence where that is the answer.
    pub(super) fn refused(
        &mut self,
        now: Instant,
        payload: &[u8],
        refused: Refused,
    ) -> Result<Served, Reason> {
        let result = refused.reason.result().ok_or(refused.reason)?;
        self.counters.refuse(refused.reason);
        let epoch = self.epoch(now);
        Ok(Served::Answer(pcp::error_response(payload, result, refused.lifetime, epoch)))
    }

    /// RFC 6887 §8.2, in its order.
    fn serve(&mut self, now: Instant, client: &Client, payload: &[u8]) -> Result<Served, Refused> {
        let rejected = |rejection| match rejection {
            Rejection::Silence => Reason::HeaderTooShort,
            Rejection::Answer(ResultCode::UNSUPP_VERSION) => Reason::UnsupportedVersion,
            Rejection::Answer(ResultCode::MALFORMED_OPTION) => Reason::MalformedOption,
            Rejection::Answer(_) => Reason::MalformedRequest,
        };
        let header = RequestHeader::parse(payload).map_err(rejected)?;
        if pcp::ip_from_wire(header.client_addr) != client.requester.addr {
            return Err(Reason::AddressMismatch.into());
        }
        let supported = match header.opcode {
            Opcode::ANNOUNCE | Opcode::MAP => true,
            Opcode::PEER => self.config.peer,
            Opcode::GET => self.config.query,
            _ => false,
        };
        if !supported {
            return Err(Reason::UnsupportedOpcode.into());
        }
        if header.opcode != Opcode::ANNOUNCE {
            self.can_have_mappings(client)?;
        }
        let request = Request::parse(payload).map_err(rejected)?;
        match request.body {
            Body::Map(map) => self.map(now, client, payload, map, &request),
            Body::Peer(peer) => self.peer(now, client, payload, peer, &request),
            Body::Get(filters) => self.get(now, client, filters, &request),
            Body::Announce => self.announced_to(now, &request),
            // A GET cut short.
            Body::Authentication(_) | Body::Other(..) => Err(Reason::MalformedRequest.into()),
        }
    }

    /// Whether the sender is a host that a mapping can lead to, and that its address alone tells from all others.
    ///
    /// A link-local address does neither: nothing is forwarded to it, and the same one on another link is another host,
    /// which would see the mappings of this one. It may ask for an ANNOUNCE, for such a client may well hear the server at
    /// its link-local address only. RFC 6887 §7.4 has NOT_AUTHORIZED for what the policy leaves to nobody who asks so. Silence
    /// would make the client ask again and again; with an answer it may ask from its other address.
    pub(super) fn can_have_mappings(&self, client: &Client) -> Result<(), Refused> {
        let Requester { addr, softwire } = client.requester;
        if is_link_local(addr) || self.is_own(Inside { softwire, addr }) {
            return Err(Reason::NotMapped.into());
        }
        Ok(())
    }

    /// Whether it is this machine. Behind a B4, the same address is another host.
    fn is_own(&self, inside: Inside) -> bool {
        inside.softwire.is_none() && self.config.own.contains(&inside.addr)
    }

    fn announced_to(&mut self, now: Instant, request: &Request) -> Result<Served, Refused> {
        // No mandatory option is for ANNOUNCE, and those that we do not process are refused (§7.3).
        if request.options.iter().any(|option| option.code().is_mandatory()) {
            return Err(Reason::UnsupportedOption.into());
        }
        for option in &request.options {
            if let PcpOption::Prefix64(asked) = option {
                self.wants_prefixes(asked)?;
            }
        }
        self.counters.grant(Kind::Announce);
        Ok(Served::Answer(self.announcement(now).to_bytes()))
    }

    /// The host that THIRD_PARTY names (RFC 6887 §13.1). In DS-Lite it is behind the B4 that asks, whichever way that talks.
    pub(super) fn third_party(&self, client: &Client, addr: Ipv6Addr) -> Result<Inside, Refused> {
        let host = pcp::ip_from_wire(addr);
        let b4 = match (client.requester.softwire, client.requester.addr) {
            (Some(b4), _) => Some(b4),
            (None, IpAddr::V6(addr)) if is_b4(&self.config, addr) && host.is_ipv4() => Some(addr),
            (None, _) => None,
        };
        let asks = client.requester.client();
        let is_b4 = b4.is_some_and(|b4| is_b4(&self.config, b4));
        let mut rules = self.config.third_party.iter().filter(|rule| rule.client.contains(asks)).peekable();
        if !is_b4 && rules.peek().is_none() {
            return Err(Reason::ThirdPartyDenied.into());
        }
        if host == client.requester.addr {
            return Err(Reason::ThirdPartyIsSource.into());
        }
        let is_allowed = is_b4 && host.is_ipv4()
            || rules.any(|rule| rule.internal.iter().any(|internal| internal.contains(host)));
        // The demonstration's hosts are all on one machine.
        let on_one_machine = host.is_loopback() && client.requester.addr.is_loopback();
        let inside = Inside { softwire: b4, addr: host };
        if !is_allowed || !is_host(host) && !on_one_machine || self.is_own(inside) {
            return Err(Reason::ThirdPartyDenied.into());
        }
        Ok(inside)
    }

    /// A request about a mapping that is being changed, or about whose flow the data plane is asked, waits until that is done. One
    /// that is the same as what is being done is answered with it.
    pub(super) fn wait(
        &mut self,
        key: MappingKey,
        client: &Client,
        payload: &[u8],
    ) -> Result<Served, Refused> {
        let busy = self.table.get(&key).and_then(|mapping| mapping.busy);
        let asker =
            busy.and_then(|ticket| self.pending.get(&ticket)).and_then(|pending| pending.asker.as_ref());
        let first =
            asker.map(|asker| (&asker.arrival, &asker.payload[..])).or_else(|| self.flows.asker(&key));
        let waiting = self.waiting.entry(key).or_default();
        let same =
            |(arrival, bytes): &(Arrival, Vec<u8>)| (arrival, &bytes[..]) == (&client.arrival, payload);
        if first == Some((&client.arrival, payload)) || waiting.iter().any(same) {
            return Err(Reason::Retransmission.into());
        }
        if waiting.len() >= nat::MAX_WAITING {
            return Err(Reason::Busy.into());
        }
        waiting.push_back((client.arrival, payload.to_vec()));
        Ok(Served::Waits)
    }
}
