//! The provider's side of a [`World`]: the link, the server's moods, other subscribers, and what came of each request.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use engine::entropy::Entropy;
use engine::gateway::NatMode;
use engine::provider::{ProviderConfig, Speaks};
use engine::time::{Duration, Instant};
use wire::natpmp;
use wire::pcp::{self, Body, MapData, NO_ADDR_V4, Nonce, PcpOption, Protocol, ResultCode};

use super::{Parcel, SERVER, STRANGER, World};

/// So late that it has been asked for again meanwhile.
const LATE: Duration = Duration::from_millis(400);

/// How the link between router and provider treats datagrams, both ways.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// The share that is lost, 0 to 1.
    pub loss: f64,
    /// One way.
    pub delay: Duration,
    /// Up to so much more, so that datagrams overtake each other.
    pub jitter: Duration,
    /// So many of the next ones are lost, whatever `loss` says.
    pub lose_next: u32,
    /// The share that arrives twice, 0 to 1.
    pub doubled: f64,
}

/// How the PCP server behaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Server {
    /// As [`Provider`](engine::provider::Provider) does.
    Serves,
    /// It says nothing, and what reaches it changes nothing.
    Silent,
    /// It does what it is asked, and nobody hears of it.
    Mute,
    /// Every MAP request is refused with this result, for so many seconds; the mappings stay.
    Refuses(ResultCode, u32),
    /// It knows NAT-PMP only and says so in eight octets (RFC 6886 §3.5); by NAT-PMP it serves.
    NatPmpOnly,
    /// It says so, and is silent about NAT-PMP, too.
    SaysNatPmpOnly,
}

/// A request to the PCP server as it left the gateway.
#[derive(Clone, Debug)]
pub struct Sent {
    /// When.
    pub at: Instant,
    /// What.
    pub request: pcp::Request,
}

/// An answer of the PCP server that reached the gateway.
#[derive(Clone, Debug)]
pub struct Answered {
    /// When the server gave it.
    pub issued: Instant,
    /// When it arrived.
    pub at: Instant,
    /// What.
    pub response: pcp::Response,
}

/// A mapping that the server dropped because the gateway asked for that.
#[derive(Clone, Copy, Debug)]
pub struct Dropped {
    /// When the request left the gateway.
    pub sent: Instant,
    /// When the server carried it out.
    pub at: Instant,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address and port inside, as the provider sees them.
    pub internal: SocketAddrV4,
}

impl World {
    /// Sends by the link, which may lose it or double it.
    pub(super) fn post_by_link(&mut self, parcel: Parcel) {
        let unlucky = self.entropy.unit() < self.link.loss;
        let delay = self.link.delay + self.entropy.up_to(self.link.jitter);
        if self.link.lose_next > 0 || unlucky {
            self.link.lose_next = self.link.lose_next.saturating_sub(1);
            self.troubled = self.now;
            return self.note("the link loses it");
        }
        if delay > LATE {
            self.troubled = self.now;
        }
        if self.link.doubled > 0.0 && self.entropy.unit() < self.link.doubled {
            let delay = self.link.delay + self.entropy.up_to(self.link.jitter);
            self.troubled = self.now;
            self.note("the link doubles it");
            self.post(delay, parcel.clone());
        }
        self.post(delay, parcel);
    }

    /// A datagram has reached the server.
    pub(super) fn on_arrival(&mut self, sent: Instant, socket: u64, from: SocketAddr, bytes: &[u8]) {
        let before = self.provider.mappings().count();
        let answer = self.serve(from, bytes);
        if self.server == Server::Serves || self.server == Server::Mute {
            self.judge(sent, from, bytes, answer.as_deref(), before);
        } else {
            self.troubled = self.now;
        }
        match answer {
            Some(_) if self.server == Server::Mute => {
                self.troubled = self.now;
                self.note("nobody hears the answer");
            }
            answer if self.tampers() => {
                self.troubled = self.now;
                for (after, bytes) in self.on_the_way_back(answer) {
                    self.post(after, Parcel::ToGateway { issued: self.now, socket, bytes });
                }
            }
            Some(bytes) => {
                let parcel = Parcel::ToGateway { issued: self.now, socket, bytes };
                self.post_by_link(parcel);
            }
            None => {}
        }
    }

    /// Keeps in mind what came of a request to a server that serves.
    fn judge(&mut self, sent: Instant, from: SocketAddr, bytes: &[u8], answer: Option<&[u8]>, before: usize) {
        let response = answer.and_then(|answer| pcp::Response::parse(answer).ok());
        let Some(pcp::Response { result, body: Body::Map(map), .. }) = response else { return };
        if result == ResultCode::NOT_AUTHORIZED {
            if let Ok(request) = pcp::Request::parse(bytes) {
                self.wrong_nonces.push(Sent { at: self.now, request });
            }
            self.note("the provider knows this client by another nonce");
        }
        let Ok(request) = pcp::Request::parse(bytes) else { return };
        if request.lifetime == 0 && self.provider.mappings().count() < before {
            let third_party = request.options.iter().find_map(|option| match option {
                PcpOption::ThirdParty(host) => Some(pcp::ip_from_wire(*host)),
                _ => None,
            });
            if let IpAddr::V4(host) = third_party.unwrap_or(from.ip()) {
                let internal = SocketAddrV4::new(host, map.internal_port);
                self.dropped.push(Dropped { sent, at: self.now, protocol: map.protocol, internal });
            }
        }
    }

    fn serve(&mut self, from: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
        let epoch = u32::try_from((self.now - self.server_started).as_secs()).unwrap_or(u32::MAX);
        match self.server {
            Server::Serves | Server::Mute => self.provider.handle_datagram(self.now, from, bytes),
            Server::Silent => None,
            Server::Refuses(result, lifetime) => Some(pcp::error_response(bytes, result, lifetime, epoch)),
            Server::SaysNatPmpOnly => {
                let refusal = natpmp::Response::UnsupportedVersion { opcode: 128, epoch };
                (bytes.first() != Some(&natpmp::VERSION)).then(|| refusal.to_bytes())
            }
            Server::NatPmpOnly => {
                let before = std::mem::replace(&mut self.provider.config_mut().speaks, Speaks::NatPmp);
                let answer = self.provider.handle_datagram(self.now, from, bytes);
                self.provider.config_mut().speaks = before;
                answer
            }
        }
    }

    pub(super) fn on_send(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        match (pcp::Request::parse(&bytes), natpmp::Request::parse(&bytes)) {
            (Ok(request), _) if bytes.len() <= pcp::MAX_LEN => {
                self.note(format!("-> {request}"));
                self.sent.push(Sent { at: self.now, request });
            }
            (Err(_), Ok(request)) if bytes == request.to_bytes() => self.note(format!("-> {request}")),
            _ => {
                let what = format!("{} octets that are no request sent to {to}", bytes.len());
                return self.violation(what);
            }
        }
        let (true, Some(addr)) = (self.open, self.wan_address()) else {
            // While the next socket is being opened there is none: lost on the way.
            if !self.opening {
                self.violation(format!("a datagram to {to} without a socket"));
            }
            self.troubled = self.now;
            return;
        };
        let from = SocketAddr::new(IpAddr::V4(addr), 50_000);
        if to == SocketAddr::V4(SERVER) {
            self.post_by_link(Parcel::ToServer { sent: self.now, socket: self.socket, from, bytes });
        }
    }

    /// The PCP server restarts without its mappings, and says so by multicast if `announced`.
    pub fn lose_state(&mut self, announced: bool) {
        self.note("the provider loses its state");
        self.firewall_forgets();
        self.server_started = self.now;
        let announcement = self.provider.lose_state(self.now);
        let heard = matches!(self.server, Server::Serves | Server::Refuses(..));
        if announced && heard {
            self.post_by_link(Parcel::Announcement(announcement));
        }
    }

    /// When the PCP server last began without any mapping.
    #[must_use]
    pub fn server_started(&self) -> Instant {
        self.server_started
    }

    /// The provider's settings, to be changed while it runs.
    pub fn provider_config(&mut self) -> &mut ProviderConfig {
        self.provider.config_mut()
    }

    /// Every answer of the server that reached the gateway.
    #[must_use]
    pub fn answers(&self) -> &[Answered] {
        &self.answers
    }

    /// Every mapping that the gateway had the server drop.
    #[must_use]
    pub fn dropped(&self) -> &[Dropped] {
        &self.dropped
    }

    /// Requests with a nonce that was not the one the server knew the client by, and when they reached it.
    #[must_use]
    pub fn wrong_nonces(&self) -> &[Sent] {
        &self.wrong_nonces
    }

    /// When something was last lost, late or doubled between gateway and provider, or refused by a server that serves
    /// nobody.
    #[must_use]
    pub fn troubled(&self) -> Instant {
        self.troubled
    }

    /// When the gateway last heard the server announce that it begins anew.
    #[must_use]
    pub fn announced(&self) -> Instant {
        self.announced
    }

    /// Another subscriber takes an external port; false when it cannot be had.
    pub fn occupy(&mut self, protocol: Protocol, port: u16, lifetime: u32) -> bool {
        let mut nonce = Nonce([0; 12]);
        self.entropy.fill(&mut nonce.0);
        let taken = self.ask_as_stranger(protocol, port, nonce, lifetime);
        if taken {
            self.strangers.insert((protocol, port), nonce);
        }
        taken
    }

    /// That subscriber gives the port back.
    pub fn vacate(&mut self, protocol: Protocol, port: u16) -> bool {
        let nonce = self.strangers.remove(&(protocol, port));
        nonce.is_some_and(|nonce| self.ask_as_stranger(protocol, port, nonce, 0))
    }

    fn ask_as_stranger(&mut self, protocol: Protocol, port: u16, nonce: Nonce, lifetime: u32) -> bool {
        let (external_port, options) =
            if lifetime == 0 { (0, vec![]) } else { (port, vec![PcpOption::PreferFailure]) };
        let data = MapData { nonce, protocol, internal_port: port, external_port, external_addr: NO_ADDR_V4 };
        let client_addr = pcp::mapped(STRANGER);
        let request = pcp::Request { lifetime, client_addr, body: Body::Map(data), options };
        let from = SocketAddr::new(IpAddr::V4(STRANGER), 50_000);
        let answer = self.provider.handle_datagram(self.now, from, &request.to_bytes());
        let response = answer.and_then(|bytes| pcp::Response::parse(&bytes).ok());
        response.is_some_and(|response| response.result == ResultCode::SUCCESS)
    }

    /// Where a packet from `remote` to this port of the provider's external address ends up.
    #[must_use]
    pub fn reach(&self, protocol: Protocol, port: u16, remote: Ipv4Addr) -> Option<SocketAddrV4> {
        let mapping = self.provider.mappings().find(|mapping| {
            mapping.protocol == protocol && mapping.external.port() == port && mapping.lets_in(remote)
        })?;
        if self.config.nat == NatMode::None {
            return Some(mapping.internal);
        }
        if Some(*mapping.internal.ip()) != self.wan_address() {
            return None;
        }
        let rule = self.nat.rule(protocol, mapping.internal.port())?;
        rule.remote_peer.is_none_or(|peer| peer == remote).then_some(rule.internal)
    }
}
