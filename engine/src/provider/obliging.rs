//! The server on a NAT that does at once what it is told, with one external IPv4 address, asked and answered in one call: what
//! simulations and tests of the other side need, and servers that change the NAT before they look at the next datagram.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use wire::natpmp;
use wire::pcp::{self, Filter, Protocol};

use super::Server;
use super::config::{Description, PreferFailure, ServerConfig};
use super::interface::{Arrival, Binding, NatChange, Output, filters_let_in};
use super::table::ServerMapping;
use crate::prefix::{Prefix, ThirdParty};
use crate::time::{Duration, Instant};

/// By which protocols a [`Provider`] is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Speaks {
    /// PCP alone; NAT-PMP is answered with PCP's version.
    Pcp,
    /// Both.
    Both,
    /// NAT-PMP alone, as gateways from before PCP do: PCP is answered with NAT-PMP's version (RFC 6886 §3.5).
    NatPmp,
    /// The same, but PCP is met with silence.
    NatPmpSilently,
}

/// What of a [`ServerConfig`] can be set here; the rest is as in [`ServerConfig::new`], but there is neither PEER nor PORT_SET,
/// and nobody asks too often.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProviderConfig {
    /// The external address of all mappings.
    pub external: Ipv4Addr,
    /// [`ServerConfig::shortest`].
    pub shortest: u32,
    /// [`ServerConfig::longest`].
    pub longest: u32,
    /// [`ServerConfig::hold`].
    pub hold: Duration,
    /// Whether THIRD_PARTY is allowed, to everybody and for everybody.
    pub third_party: bool,
    /// [`ServerConfig::prefer_failure`].
    pub prefer_failure: PreferFailure,
    /// [`ServerConfig::quota`].
    pub quota: usize,
    /// [`ServerConfig::description`].
    pub description: Description,
    /// [`ServerConfig::conflict_lifetime`].
    pub conflict_lifetime: Option<u32>,
    /// [`ServerConfig::query`].
    pub query: bool,
    /// [`ServerConfig::peer`].
    pub peer: bool,
    /// See there.
    pub speaks: Speaks,
}

impl ProviderConfig {
    /// What a well-behaved provider would have, with this external address.
    pub fn new(external: Ipv4Addr) -> Self {
        let server = ServerConfig::new(vec![external]);
        Self {
            external,
            shortest: server.shortest,
            longest: server.longest,
            hold: server.hold,
            third_party: false,
            prefer_failure: server.prefer_failure,
            quota: server.quota.try_into().unwrap_or(usize::MAX),
            description: Description::Ignored,
            conflict_lifetime: server.conflict_lifetime,
            query: server.query,
            peer: false,
            speaks: Speaks::Pcp,
        }
    }
}

impl From<&ProviderConfig> for ServerConfig {
    fn from(config: &ProviderConfig) -> Self {
        let everybody = [Prefix::ALL_V4, Prefix::ALL_V6];
        let rule = |client| ThirdParty { client, internal: everybody.to_vec() };
        Self {
            shortest: config.shortest,
            longest: config.longest,
            hold: config.hold,
            third_party: everybody.into_iter().filter(|_| config.third_party).map(rule).collect(),
            prefer_failure: config.prefer_failure,
            quota: config.quota.try_into().unwrap_or(u32::MAX),
            description: config.description,
            conflict_lifetime: config.conflict_lifetime,
            query: config.query,
            rate: None,
            peer: config.peer,
            port_set: 1,
            natpmp: config.speaks != Speaks::Pcp,
            announcements: 1,
            updates: false,
            ..Self::new(vec![config.external])
        }
    }
}

/// A mapping of one port of IPv4 to IPv4.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProviderMapping {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address and port outside.
    pub external: SocketAddrV4,
    /// Address and port inside, as the provider sees them.
    pub internal: SocketAddrV4,
    /// The packet source that asked for it.
    pub subscriber: IpAddr,
    /// The only remote addresses that may come in; empty for all.
    pub filters: Vec<Filter>,
    /// A text for people, at most 128 octets, never empty.
    pub description: Option<String>,
    /// When it ends unless it is renewed.
    pub ends: Instant,
}

impl ProviderMapping {
    fn of(mapping: &ServerMapping) -> Option<Self> {
        let (SocketAddr::V4(external), IpAddr::V4(host)) = (mapping.external, mapping.inside.addr) else {
            return None;
        };
        Some(Self {
            protocol: mapping.protocol,
            external,
            internal: SocketAddrV4::new(host, mapping.internal_port),
            subscriber: mapping.requester.addr,
            filters: mapping.filters.clone(),
            description: mapping.description.clone(),
            ends: mapping.ends,
        })
    }

    /// Whether a packet of `remote` may come in.
    pub fn lets_in(&self, remote: Ipv4Addr) -> bool {
        filters_let_in(&self.filters, SocketAddr::new(remote.into(), 0))
    }
}

/// What has become of the provider's NAT.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NatEvent {
    /// Let this in, from now on with these filters.
    Opened(Binding),
    /// Let it in no more.
    Closed(Binding),
}

/// See the module's description.
#[derive(Debug)]
pub struct Provider {
    config: ProviderConfig,
    server: Server,
    events: VecDeque<NatEvent>,
}

impl Provider {
    /// A server that has lost all state just now.
    pub fn new(now: Instant, config: ProviderConfig) -> Self {
        let server = Server::new(now, ServerConfig::from(&config), now);
        Self { config, server, events: VecDeque::new() }
    }

    /// Its settings, to be changed while it runs. Another external address is announced to nobody, and the epoch goes on:
    /// everything moves there, and who asks is told.
    pub fn config_mut(&mut self) -> &mut ProviderConfig {
        &mut self.config
    }

    /// All mappings, in the order of their internal endpoints.
    pub fn mappings(&self) -> impl Iterator<Item = ProviderMapping> {
        self.server.mappings().filter_map(ProviderMapping::of)
    }

    /// What has become of the NAT; call until `None`.
    pub fn poll_event(&mut self) -> Option<NatEvent> {
        self.events.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.server.next_timeout()
    }

    /// Ends the mappings whose lifetime is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        // In one turn only so many.
        loop {
            self.server.handle_timeout(now);
            self.oblige(now);
            if self.server.next_timeout().is_none_or(|at| at > now) {
                break;
            }
        }
    }

    /// Forgets everything, as a restart without storage does. The answer is the announcement (RFC 6887 §14.1.3).
    pub fn lose_state(&mut self, now: Instant) -> Vec<u8> {
        self.apply_settings(now);
        self.server.lose_state(now);
        let (_, announcement) = self.oblige(now);
        announcement.expect("a loss of state is announced at once")
    }

    /// The answer to one datagram from the subscribers' side; `None` for silence.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
        self.apply_settings(now);
        self.handle_timeout(now);
        if payload.first() == Some(&pcp::VERSION) {
            let refusal = natpmp::Response::UnsupportedVersion { opcode: 0, epoch: self.server.epoch(now) };
            match self.config.speaks {
                Speaks::Pcp | Speaks::Both => {}
                Speaks::NatPmp => return Some(refusal.to_bytes()),
                Speaks::NatPmpSilently => return None,
            }
        }
        let to = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let arrival = Arrival { from, to, softwire: None, interface: 0, inside: true };
        self.server.handle_datagram(now, &arrival, payload);
        let (answer, _) = self.oblige(now);
        answer
    }

    fn apply_settings(&mut self, now: Instant) {
        let config = ServerConfig::from(&self.config);
        if config != *self.server.config() {
            self.server.reconfigure_quietly(now, config);
            self.oblige(now);
        }
    }

    /// Does what the server wants; the answer and the announcement that it gives.
    fn oblige(&mut self, now: Instant) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
        let (mut answer, mut announcement) = (None, None);
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Send { bytes, .. } => answer = Some(bytes),
                Output::Multicast { bytes, .. } => announcement = announcement.or(Some(bytes)),
                Output::Nat { ticket, change } => {
                    match change {
                        NatChange::Open(new) => self.events.push_back(NatEvent::Opened(new)),
                        NatChange::Replace { old, new } => {
                            if old.external != new.external {
                                self.events.push_back(NatEvent::Closed(old));
                            }
                            self.events.push_back(NatEvent::Opened(new));
                        }
                        NatChange::Close(old) => self.events.push_back(NatEvent::Closed(old)),
                    }
                    self.server.handle_nat(now, ticket, Ok(()));
                }
                // Its NAT is the mappings alone.
                Output::Flow { ticket, .. } => self.server.handle_flow(now, ticket, None),
                Output::Store(_) | Output::Notice(_) => {}
            }
        }
        (answer, announcement)
    }
}
