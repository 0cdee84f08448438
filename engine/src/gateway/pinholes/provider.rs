//! The provider's IPv6 firewall: which of the PCP servers that may be one answers, and what it says.
//!
//! Few providers have one, so nobody waits for it longer than an answer takes. It is looked for when the WAN is another one, and while there is
//! a pinhole that it could be asked for, ever more seldom.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use wire::pcp::{self, Body, ResultCode, SERVER_PORT};

use super::super::servers::ANYCAST_V6;
use super::super::{Alarm, Effect, Gateway, WhenUnreachable};
use crate::journal::Record;
use crate::notice::{Notice, PinholeNews};
use crate::time::{Duration, Instant};
use crate::uplink::{Filters, FlowId, Input, Output, PcpClient, ServerIdentity, Uplink};

/// An answer that takes longer is one of a server that is too slow to be waited for.
const LOOK: Duration = Duration::from_millis(1500);
/// When it is looked for again, at first and at last.
const FIRST_GAP: Duration = Duration::from_secs(60);
const LAST_GAP: Duration = Duration::from_secs(30 * 60);
/// How long the last deletes are waited for where pinholes are switched off.
const LEAVE: Duration = Duration::from_secs(20);

/// What happens to the socket towards the provider's firewall.
#[derive(Debug)]
pub enum UplinkEvent<'a> {
    /// It is there.
    Opened {
        /// The server that it leads to.
        server: SocketAddr,
        /// Its own address.
        source: IpAddr,
    },
    /// It could not be made, in the system's own words.
    Failed {
        /// The server that it was to lead to.
        server: SocketAddr,
        /// Why.
        error: String,
    },
    /// Nobody listens at the server's port, says the machine that it is on.
    Unreachable(SocketAddr),
    /// A datagram came.
    Datagram {
        /// Its source.
        from: SocketAddr,
        /// Its content.
        bytes: &'a [u8],
    },
}

/// What is to be done with it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum UplinkEffect {
    /// Open a UDP socket connected to this server, from a random port, on the WAN interface; an older one is closed.
    Open(SocketAddr),
    /// Close it: nothing of it is believed any more.
    Close,
    /// Send this on it.
    Send {
        /// The server.
        to: SocketAddr,
        /// The datagram.
        bytes: Vec<u8>,
    },
}

/// Whether there is somebody to ask.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Standing {
    /// That is being found out, and soon known.
    Looking,
    /// There is nobody.
    Nobody,
    /// There is.
    Serving,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(in super::super) struct Provider {
    /// Who may be asked, the best first.
    candidates: Vec<SocketAddr>,
    /// By which interface and from which addresses that was.
    link: (String, bool, Vec<Ipv6Addr>),
    current: Option<SocketAddr>,
    pub(super) client: Option<PcpClient>,
    open: bool,
    looking_until: Option<Instant>,
    looked_at: Option<Instant>,
    gap: Duration,
    /// What was stored has not been asked for yet.
    pub(super) restored: bool,
    /// Nobody may have pinholes any more, and the last deletes are waited for so long.
    leaving_by: Option<Instant>,
    /// What servers may have filters for.
    pub(in super::super) filters: Filters,
}

impl Provider {
    pub(super) fn standing(&self) -> Standing {
        match (self.current, self.client.is_some() && self.open) {
            (Some(_), true) => Standing::Serving,
            (Some(_), false) => Standing::Looking,
            (None, _) if self.looking_until.is_some() => Standing::Looking,
            (None, _) => Standing::Nobody,
        }
    }
}

impl Provider {
    fn is_silent(&self) -> bool {
        self.client.as_ref().is_some_and(|client| client.is_answering() == Some(false))
    }
}

impl Gateway {
    /// The settings or the WAN may have changed: who may be asked now?
    pub(in super::super) fn find_firewall(&mut self, now: Instant) {
        let needed = self.allows_pinholes() || !self.pinholes.carriage.unwanted.is_empty();
        let candidates = if needed { self.firewalls() } else { Vec::new() };
        let link = (self.wan.name.clone(), self.wan.up, self.wan.addresses_v6.clone());
        if !needed && !self.pinholes.is_given_back() && !self.stopping {
            // What nobody may have any more is given back first.
            let by = *self.pinholes.provider.leaving_by.get_or_insert(now + LEAVE);
            if now < by {
                return self.timers.set(Alarm::FirewallLeft, by);
            }
        }
        self.pinholes.provider.leaving_by = None;
        let provider = &self.pinholes.provider;
        if (&candidates, &link) == (&provider.candidates, &provider.link) || self.stopping {
            return;
        }
        let same_way = link.0 == provider.link.0 && link.1;
        let stays = provider.current.filter(|current| same_way && candidates.contains(current));
        (self.pinholes.provider.candidates, self.pinholes.provider.link) = (candidates, link);
        if let Some(server) = stays {
            // From another address, perhaps.
            return self.effects.push_back(Effect::FirewallUplink(UplinkEffect::Open(server)));
        }
        self.leave_firewall(now);
        self.pinholes.provider.gap = FIRST_GAP;
        self.look_for_firewall(now);
    }

    fn firewalls(&self) -> Vec<SocketAddr> {
        let is_v6 = |server: &SocketAddr| server.is_ipv6();
        if !self.config.firewall_servers.is_empty() && !self.wan.is_spare {
            return self.config.firewall_servers.clone();
        }
        let chosen = self.wan.servers.as_deref().unwrap_or(&self.config.servers);
        let chosen: Vec<SocketAddr> = chosen.iter().copied().filter(is_v6).collect();
        if !chosen.is_empty() {
            return chosen;
        }
        let has_ipv6 = !self.wan.addresses_v6.is_empty() || self.wan.router_v6.is_some();
        if !self.wan.up || !has_ipv6 {
            return Vec::new();
        }
        let at_port = |addr| SocketAddr::new(addr, SERVER_PORT);
        let offered = self.wan.offered.iter().flatten().copied().map(at_port).filter(is_v6);
        let router = self.wan.router_v6.map(SocketAddr::V6);
        let anycast = Some(at_port(ANYCAST_V6)).filter(|_| self.config.anycast);
        let mut all = Vec::new();
        for server in offered.chain(router).chain(anycast) {
            if !all.contains(&server) {
                all.push(server);
            }
        }
        all
    }

    fn leave_firewall(&mut self, now: Instant) {
        if let Some(mut client) = self.pinholes.provider.client.take() {
            self.pinholes.provider.filters = client.take_filters();
        }
        if self.pinholes.provider.current.take().is_some() {
            self.effects.push_back(Effect::FirewallUplink(UplinkEffect::Close));
        }
        self.pinholes.provider.open = false;
        // What stands there ends by itself; another server knows nothing of it.
        self.pinholes.carriage.forget();
        self.stop_if_done(now);
    }

    /// A pinhole is wanted; perhaps there is somebody by now.
    pub(super) fn look_for_firewall_if_due(&mut self, now: Instant) {
        let provider = &self.pinholes.provider;
        if provider.standing() != Standing::Nobody || provider.candidates.is_empty() {
            return;
        }
        match provider.looked_at.map(|at| at + FIRST_GAP).filter(|due| *due > now) {
            Some(due) => self.timers.set(Alarm::Firewall, due),
            None => self.look_for_firewall(now),
        }
    }

    /// Asks all who may be one whether they are there.
    pub(in super::super) fn look_for_firewall(&mut self, now: Instant) {
        if self.stopping || self.pinholes.provider.candidates.is_empty() {
            return self.on_firewall_looked(now);
        }
        let source = self.wan.addresses_v6.first().copied().unwrap_or(Ipv6Addr::UNSPECIFIED);
        let announce =
            pcp::Request { lifetime: 0, client_addr: source, body: Body::Announce, options: Vec::new() };
        for to in self.pinholes.provider.candidates.clone() {
            self.effects.push_back(Effect::Scout { to, bytes: announce.to_bytes() });
        }
        self.pinholes.provider.looked_at = Some(now);
        self.pinholes.provider.looking_until = Some(now + LOOK);
        self.timers.set(Alarm::FirewallLooked, now + LOOK);
    }

    /// Who has not answered by now is not there.
    pub(in super::super) fn on_firewall_looked(&mut self, now: Instant) {
        self.pinholes.provider.looking_until = None;
        if self.pinholes.provider.standing() == Standing::Nobody {
            self.carry_what_waits(now);
        }
        if self.pinholes.provider.standing() == Standing::Nobody {
            self.pinholes.carriage.unwanted.clear();
        }
        let silent = self.pinholes.provider.is_silent();
        let needed = self.pinholes.provider.current.is_none() || silent;
        if needed && !self.pinholes.table.is_empty() && !self.pinholes.provider.candidates.is_empty() {
            let gap = self.pinholes.provider.gap.max(FIRST_GAP);
            self.pinholes.provider.gap = (gap * 2).min(LAST_GAP);
            self.timers.set(Alarm::Firewall, now + gap);
        }
    }

    /// Somebody answers who was looked at, perhaps on behalf of the NAT.
    pub(in super::super) fn on_firewall_scouted(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        let provider = &self.pinholes.provider;
        let Some(place) = provider.candidates.iter().position(|&one| one == from) else { return };
        if provider.looking_until.is_none_or(|until| until < now) || !speaks_pcp(bytes) || self.stopping {
            return;
        }
        let silent = provider.is_silent();
        let before =
            provider.current.and_then(|current| provider.candidates.iter().position(|&one| one == current));
        if before.is_some_and(|before| before <= place) && !(silent && before != Some(place)) {
            if let Some(source) = provider
                .client
                .as_ref()
                .filter(|_| silent && before == Some(place))
                .map(|client| client.source())
            {
                // It is back: what was asked in vain is asked again at once.
                self.firewall_input(now, Input::Source(source));
            }
            return;
        }
        if provider.client.is_some() {
            self.leave_firewall(now);
        }
        self.pinholes.provider.current = Some(from);
        self.effects.push_back(Effect::FirewallUplink(UplinkEffect::Open(from)));
    }

    pub(in super::super) fn on_firewall_uplink(&mut self, now: Instant, event: UplinkEvent<'_>) {
        match event {
            UplinkEvent::Opened { server, source } if self.pinholes.provider.current == Some(server) => {
                self.pinholes.provider.open = true;
                self.pinholes.provider.gap = FIRST_GAP;
                if self.pinholes.provider.client.as_ref().is_some_and(|client| client.server() == server) {
                    self.firewall_input(now, Input::Source(source));
                    return self.carry_what_waits(now);
                }
                self.notice(Notice::Pinhole(PinholeNews::Firewall(server)));
                let identity = ServerIdentity { addr: server.ip(), interface: self.wan.name.clone() };
                let mut client = PcpClient::new(server, source, self.config.recovery_wait)
                    .known_as(identity)
                    .that_has_spoken(now);
                client.set_filters(std::mem::take(&mut self.pinholes.provider.filters));
                self.pinholes.provider.client = Some(client);
                self.carry_what_waits(now);
                let restored = std::mem::take(&mut self.pinholes.provider.restored);
                let wait = if restored { self.config.service_wait } else { self.config.recovery_wait };
                let wait = self.entropy.up_to(wait);
                self.firewall_input(now, Input::TurnsFrom(now + wait));
                self.carry_all(now);
                self.give_back_unwanted(now);
            }
            UplinkEvent::Failed { server, error } if self.pinholes.provider.current == Some(server) => {
                self.notice(Notice::Pinhole(PinholeNews::NoSocket(server, error)));
                self.leave_firewall(now);
                if self.pinholes.provider.looking_until.is_none() {
                    self.on_firewall_looked(now);
                }
            }
            UplinkEvent::Unreachable(server) if self.pinholes.provider.current == Some(server) => {
                self.firewall_input(now, Input::Unreachable);
            }
            UplinkEvent::Datagram { from, bytes } if self.pinholes.provider.open => {
                self.firewall_input(now, Input::Datagram(from, bytes));
            }
            _ => {} // it is wanted no more
        }
    }

    pub(in super::super) fn firewall_input(&mut self, now: Instant, input: Input<'_>) {
        if let Some(client) = &mut self.pinholes.provider.client {
            client.handle_input(now, input, &mut *self.entropy);
        }
    }

    /// What its client has to say.
    pub(in super::super) fn drain_firewall(&mut self, now: Instant) {
        while let Some(client) = &mut self.pinholes.provider.client {
            let server = client.server();
            let Some(output) = client.poll_output() else { break };
            match output {
                Output::Transmit(bytes) => {
                    let send = UplinkEffect::Send { to: server, bytes };
                    self.effects.push_back(Effect::FirewallUplink(send));
                }
                Output::Filtered(filtered) => {
                    self.effects.push_back(Effect::Store(Record::Filtered(filtered)));
                }
                Output::Granted(flow, grant) => self.on_pinhole_granted(now, flow, grant),
                Output::Refused(flow, result, wait) => self.on_pinhole_refused(now, flow, result, wait),
                Output::RenewalRefused(flow, result) => self.on_pinhole_renewal_refused(now, flow, result),
                Output::Lost(flow) => self.on_pinhole_lost(now, flow),
                Output::Deleted(flow) => {
                    self.on_given_back(flow);
                    self.on_stray_gone(now, flow);
                }
                // It stands until its lifetime ends.
                Output::DeleteRefused(flow, _) => {
                    self.firewall_input(now, Input::Forget(flow));
                    self.on_stray_gone(now, flow);
                }
                Output::StateLost => {
                    let pinholes = self.pinholes.carriage.len();
                    self.notice(Notice::Pinhole(PinholeNews::StateLost(server, pinholes)));
                }
                Output::Unrenewed(flow) => self.on_pinhole_unrenewed(flow),
                Output::Silent => self.on_firewall_silent(now, server),
                Output::Lacks(option) => self.notice(Notice::Lacks(server, option)),
                Output::VersionRefused(version) => self.notice(Notice::VersionRefused(server, version)),
                // That it answers was known before it was asked; the rest only NATs have to tell.
                Output::Answering
                | Output::PeerGranted(..)
                | Output::PeerRefused(..)
                | Output::Listed(_)
                | Output::NotListed(_)
                | Output::Speaks(_)
                | Output::External(_)
                | Output::NatAbove(_)
                | Output::Http(_) => {}
            }
        }
    }

    fn on_stray_gone(&mut self, now: Instant, flow: FlowId) {
        self.pinholes.carriage.strays.remove(&flow);
        if self.pinholes.provider.leaving_by.is_some() {
            self.find_firewall(now);
        }
        self.stop_if_done(now);
    }

    /// It has answered before (decision 21).
    fn on_firewall_silent(&mut self, now: Instant, server: SocketAddr) {
        let local = self.config.when_unreachable == WhenUnreachable::Local;
        self.notice(Notice::Pinhole(PinholeNews::Silent(server, local)));
        if local {
            for to in self.pinholes.table.endpoints() {
                self.open_here(to);
            }
        }
        self.timers.set(Alarm::Firewall, now + FIRST_GAP);
    }
}

/// A server that does not know ANNOUNCE, or by which address it was asked, is one.
fn speaks_pcp(bytes: &[u8]) -> bool {
    pcp::Response::parse(bytes).is_ok_and(|response| {
        matches!(
            response.result,
            ResultCode::SUCCESS | ResultCode::UNSUPP_OPCODE | ResultCode::ADDRESS_MISMATCH
        )
    })
}
