//! The external address: what tells it, and whether the gateway is connected. As long as no mapping of a control point
//! tells it, a mapping of the router itself does (R-46, T-8, D-13, decision 11).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use wire::pcp::{Protocol, ResultCode};

use super::mappings::v4;
use super::{Alarm, Gateway};
use crate::journal::StoredNonce;
use crate::notice::Notice;
use crate::policy::is_usable_external;
use crate::time::{Duration, Instant};
use crate::uplink::{FlowId, Input, Terms, Want};

/// The longest lifetime asked for the mapping that tells the external address.
const PROBE_LIFETIME: u32 = 600;
/// When a server that gives an external address of no use is asked again.
const UNUSABLE_RETRY: Duration = Duration::from_secs(300);
/// The shortest pause after a refusal.
const REFUSED_RETRY: Duration = Duration::from_secs(30);
/// The discard port (RFC 6970 §4.2).
pub(super) const DISCARD: u16 = 9;

/// The mapping of the router itself that tells the external address.
#[derive(Clone, Debug, Default)]
pub(super) struct Probe {
    flow: Option<FlowId>,
    /// It is not renewed any more: mappings of control points tell the address.
    lapsing: bool,
    /// The server has refused it, and is not asked again before [`Alarm::Probe`].
    paused: bool,
    /// The server refused the discard port; a high one is asked for.
    high_port: bool,
    /// The high port, as long as it is in use.
    taken: Option<u16>,
    /// The nonce that was stored.
    stored: Option<StoredNonce>,
    /// After a start it is not asked for before that, unless a control point comes.
    begins: Option<Instant>,
    /// Mappings that were stored are asked for, and their answers will tell the address.
    behind: bool,
}

impl Probe {
    /// Whether this flow is the probe's.
    pub(super) fn is(&self, flow: FlowId) -> bool {
        self.flow == Some(flow)
    }

    /// What was stored when the gateway last ran.
    pub(super) fn restore(&mut self, nonce: Option<StoredNonce>) {
        self.stored = nonce;
    }

    /// A mapping was refused or has gone: the address may have to be learned without any.
    pub(super) fn step_forward(&mut self) {
        self.behind = false;
    }
}

impl Gateway {
    /// Starts, keeps or lets go of the probe, as it is needed; whether there was something to do.
    pub(super) fn tend_probe(&mut self, now: Instant) -> bool {
        let told_by_mapping = self.uplink.as_ref().is_some_and(|uplink| uplink.needs_probe());
        let wanted = self.config.external_address_probe && told_by_mapping && !self.stopping;
        let needed = !self.table.tells_address();
        let behind = self.probe.behind && !self.table.is_empty();
        match self.probe.flow {
            Some(flow) if self.probe.lapsing == needed => {
                self.probe.lapsing = !needed;
                let terms = probe_terms(self.probe.lapsing.then_some(now));
                self.input(now, Input::Extend(flow, terms));
                true
            }
            None if wanted && needed && !self.probe.paused && !behind => {
                self.start_probe(now);
                true
            }
            _ => false,
        }
    }

    fn start_probe(&mut self, now: Instant) {
        let flow = self.new_flow();
        let internal_port = if self.probe.high_port {
            self.probe.taken = self.nat_ports.take(Protocol::UDP, &[], &[], flow, &mut *self.entropy);
            self.probe.taken.unwrap_or(u16::MAX)
        } else {
            DISCARD
        };
        self.probe.flow = Some(flow);
        self.probe.lapsing = false;
        let want = Want { third_party: self.probe_host().map(IpAddr::V4), ..probe_want(internal_port) };
        self.input(now, Input::Ask(flow, want));
    }

    /// Who the probe is for: the packet's own source. That of a PCP server which is asked in IPv6 has no IPv4 mapping, so
    /// there it is the router as the LAN knows it.
    fn probe_host(&self) -> Option<Ipv4Addr> {
        let v6 = self.uplink.as_ref().is_some_and(|client| client.server().is_ipv6());
        let mut own = self.lan.iter().flat_map(|lan| &lan.addresses).filter_map(|link| v4(link.addr));
        v6.then(|| own.next()).flatten()
    }

    /// A whole town starts at the same moment, and what every router asks for by itself is as many requests as there are
    /// routers (D-9): the probe waits as the stored mappings do, and longer while their answers will make it needless.
    pub(super) fn probe_after(&mut self, due: Instant, mappings: bool) {
        self.probe.begins = Some(due);
        self.probe.behind = mappings;
    }

    /// There is a way to the server again.
    pub(super) fn probe_when_due(&mut self, now: Instant) {
        match self.probe.begins {
            Some(due) if due > now => self.pause_probe(now, due - now),
            _ => self.probe_without_pause(),
        }
    }

    /// A control point is there, and may want to know the address.
    pub(super) fn hasten_probe(&mut self, now: Instant) {
        self.probe.behind = false;
        if self.probe.begins.take().is_some_and(|due| due > now) {
            self.probe_without_pause();
        }
    }

    /// The pause after a refusal is over.
    pub(super) fn probe_without_pause(&mut self) {
        self.probe.paused = false;
        self.timers.cancel(Alarm::Probe);
    }

    fn pause_probe(&mut self, now: Instant, wait: Duration) {
        self.probe.paused = true;
        self.timers.set(Alarm::Probe, now + wait);
    }

    pub(super) fn on_probe_granted(&mut self, now: Instant, server: SocketAddr, addr: Ipv4Addr) {
        if is_usable_external(addr) {
            self.store_probe();
            return self.learn_external(now, addr);
        }
        self.notice(Notice::UnusableExternal(server, addr));
        self.end_probe(now);
        self.forget_external();
        self.pause_probe(now, UNUSABLE_RETRY);
    }

    /// The uplink tells it by itself.
    pub(super) fn on_external_told(&mut self, now: Instant, server: SocketAddr, addr: Ipv4Addr) {
        if is_usable_external(addr) {
            return self.learn_external(now, addr);
        }
        self.notice(Notice::UnusableExternal(server, addr));
        self.forget_external();
    }

    pub(super) fn on_probe_refused(
        &mut self,
        now: Instant,
        server: SocketAddr,
        result: ResultCode,
        wait: Duration,
    ) {
        self.lose_probe();
        let policy = matches!(result, ResultCode::NOT_AUTHORIZED | ResultCode::CANNOT_PROVIDE_EXTERNAL);
        if policy && !self.probe.high_port {
            // Many servers map no port below 1024, on either side.
            self.probe.high_port = true;
            return;
        }
        if self.table.is_empty() {
            self.forget_external();
        }
        let wait = wait.max(REFUSED_RETRY);
        self.pause_probe(now, wait);
        self.notice(Notice::ProbeRefused(server, result, wait));
    }

    pub(super) fn on_probe_lost(&mut self) {
        self.lose_probe();
        if self.table.is_empty() {
            self.forget_external();
        }
    }

    fn lose_probe(&mut self) {
        self.probe.flow = None;
        if let Some(port) = self.probe.taken.take() {
            self.nat_ports.release(Protocol::UDP, port);
        }
    }

    /// Gives the mapping that tells the external address back.
    pub(super) fn end_probe(&mut self, now: Instant) {
        self.probe_without_pause();
        let flow = self.probe.flow;
        self.lose_probe();
        if let Some(flow) = flow {
            self.give_back(now, flow);
        }
    }

    /// The server has lost it anyway, and it is not needed.
    pub(super) fn drop_lapsing_probe(&mut self, now: Instant) {
        if let (Some(flow), true) = (self.probe.flow, self.probe.lapsing) {
            self.lose_probe();
            self.input(now, Input::Forget(flow));
        }
    }

    /// Another server is in use.
    pub(super) fn forget_probe(&mut self) {
        self.lose_probe();
        self.probe_without_pause();
        // Another server is no reason to hurry.
        let Probe { stored, begins, behind, .. } = std::mem::take(&mut self.probe);
        self.probe = Probe { stored, begins, behind, ..Probe::default() };
    }

    /// The probe's nonce, if it is another one than was stored. With another one the server would refuse the probe until
    /// the old mapping ends, so it has to survive.
    pub(super) fn new_probe_nonce(&mut self) -> Option<StoredNonce> {
        let nonce = self.probe.flow.and_then(|flow| self.uplink.as_ref()?.nonce(flow))?;
        if self.probe.high_port || self.probe.stored.as_ref().is_some_and(|stored| stored.nonce == nonce) {
            return None;
        }
        let stored = StoredNonce { nonce, wan: Some(self.uplink_on.clone()) };
        self.probe.stored = Some(stored.clone());
        Some(stored)
    }

    /// After an interruption: what the mappings that still stand say.
    pub(super) fn recall_external(&mut self, now: Instant) {
        let Some(client) = &self.uplink else { return };
        let flows = self.probe.flow.into_iter().chain(self.table.iter().map(|mapping| mapping.flow));
        let newest = flows.filter_map(|flow| client.grant(flow)).max_by_key(|grant| grant.since);
        if let Some(grant) = newest.filter(|grant| grant.ends() > now) {
            self.learn_external(now, *grant.external_v4().ip());
        }
    }

    pub(super) fn learn_external(&mut self, now: Instant, addr: Ipv4Addr) {
        // Without a way out nobody comes to it, whoever may still say so.
        if !is_usable_external(addr) || !self.uplink_open {
            return;
        }
        if self.external != Some(addr) {
            self.external = Some(addr);
            if self.told_external.replace(addr).is_some_and(|before| before != addr) {
                self.system_update_id = self.system_update_id.wrapping_add(1); // decision 12
            }
            self.refusals.forget();
            self.notice(Notice::ExternalAddress(addr));
        }
        self.note_connection(now);
    }

    pub(super) fn forget_external(&mut self) {
        self.connected_since = None;
        if self.external.take().is_some() {
            self.notice(Notice::NoExternalAddress);
        }
    }

    /// Decision 13: connected when the upstream answers and has given an address.
    pub(super) fn is_connected(&self) -> bool {
        self.uplink_open
            && self.external.is_some()
            && self.uplink.as_ref().is_some_and(|client| client.is_answering() == Some(true))
    }

    pub(super) fn note_connection(&mut self, now: Instant) {
        if !self.is_connected() {
            self.connected_since = None;
        } else if self.connected_since.is_none() {
            self.connected_since = Some(now);
        }
    }
}

/// What is asked for to learn the external address.
pub(super) fn probe_want(internal_port: u16) -> Want {
    Want {
        third_party: None,
        protocol: Protocol::UDP,
        internal_port,
        external_port: 0,
        remote_peers: Vec::new(),
        terms: probe_terms(None),
        urgent: false,
    }
}

fn probe_terms(lease_ends: Option<Instant>) -> Terms {
    Terms { prefer_failure: false, lease_ends, longest: PROBE_LIFETIME, description: String::new() }
}
