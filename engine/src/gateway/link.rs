//! The gateway's links: the WAN as it comes and goes, the uplink's socket, what the PCP client reports, and the end.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use wire::error::UpnpError;

use super::restore::LONGEST;
use super::servers::NOBODY;
use super::{Alarm, Config, Effect, Gateway, NatMode, Wan, WhenUnreachable};
use crate::journal::{Record, StoredNonce};
use crate::notice::{Cause, Notice};
use crate::request::Refusal;
use crate::table::Mapping;
use crate::time::{Duration, Instant};
use crate::uplink::{Input, LocalNat, NatPmpClient, Output, PcpClient, Uplink, UplinkProtocol, Want};

/// How long until a socket that could not be opened is tried again.
const UPLINK_RETRY: Duration = Duration::from_secs(10);
/// How long the gateway waits at its end for the next delete to be confirmed, and for all of them: service managers lose
/// their patience after 90 s.
const STOP_WAIT: Duration = Duration::from_secs(2);
const STOP_LIMIT: Duration = Duration::from_secs(75);

impl Gateway {
    pub(super) fn on_wan(&mut self, now: Instant, wan: Wan) {
        let before = (self.server(), self.ways_out(), self.wan.router, self.wan.up);
        let other = self.wan.name != wan.name;
        let might_go_alone = self.may_go_alone();
        if other && !self.wan.name.is_empty() {
            self.notice(Notice::OtherWan { from: self.wan.name.clone(), to: wan.name.clone() });
            self.servers.forget();
            self.forget_external();
            self.table.forget_externals();
        }
        self.wan = wan;
        self.list_servers_again(now);
        let same = before == (self.server(), self.ways_out(), self.wan.router, self.wan.up);
        if same && !other && !self.is_alone_no_more() {
            return self.go_alone_by_and_by(now, might_go_alone);
        }
        self.isp_router.forget_leftover();
        self.find_way_out(now);
    }

    fn find_way_out(&mut self, now: Instant) {
        if !self.ways_out().is_empty() {
            return self.open_uplink(now);
        }
        self.close_uplink(now);
        let family = if self.server().is_some_and(|server| server.is_ipv6()) { "IPv6" } else { "IPv4" };
        self.notice(Notice::NoWanAddress(self.wan.name.clone(), family));
    }

    fn close_uplink(&mut self, now: Instant) {
        if self.uplink_open {
            self.uplink_open = false;
            self.effects.push_back(Effect::CloseUplink);
            self.input(now, Input::Closed);
        }
        self.timers.cancel(Alarm::Uplink);
        self.servers.link_is_gone();
        self.forget_external();
        self.doubt_peers(now);
        self.drop_peers(None, Refusal::NoAnswer, false);
        self.refuse_all_pending(now);
        self.release_all(now);
    }

    pub(super) fn on_reconfigure(&mut self, now: Instant, config: Config) {
        let (before, might_go_alone) = (self.server(), self.may_go_alone());
        // What is burnt into descriptions, sockets and rules stays until the next start.
        self.config = Config { nat: self.config.nat, device: self.config.device.clone(), ..config };
        if let Some(client) = &mut self.uplink {
            client.set_recovery_wait(self.config.recovery_wait);
        }
        self.list_servers_again(now);
        if self.server() != before || self.is_alone_no_more() {
            self.find_way_out(now);
        } else {
            self.go_alone_by_and_by(now, might_go_alone);
        }
        if !self.config.external_address_probe {
            self.end_probe(now);
        }
    }

    /// The WAN's addresses of the server's family: without one there is no way to it. With DS-Lite the server is
    /// reached by IPv6, and the WAN has no IPv4 address at all (decision 22).
    fn ways_out(&self) -> Vec<IpAddr> {
        match self.server() {
            Some(server) => self.ways_to(server),
            None => self.wan.addresses.iter().copied().map(IpAddr::V4).collect(),
        }
    }

    pub(super) fn ways_to(&self, server: SocketAddr) -> Vec<IpAddr> {
        if server.is_ipv6() {
            self.wan.addresses_v6.iter().copied().map(IpAddr::V6).collect()
        } else {
            self.wan.addresses.iter().copied().map(IpAddr::V4).collect()
        }
    }

    pub(super) fn open_uplink(&mut self, now: Instant) {
        if self.stopping || self.ways_out().is_empty() {
            return;
        }
        match self.server() {
            Some(server) => self.effects.push_back(Effect::OpenUplink { server }),
            None => self.wait_for_nobody(now),
        }
    }

    /// Nobody is named, and there is nobody to guess at: should it stay so for a while, this router's own NAT counts as the last one.
    fn wait_for_nobody(&mut self, now: Instant) {
        let may = self.may_go_alone();
        let at = self.uplink.as_ref().filter(|_| self.is_alone()).map(|uplink| uplink.source());
        let same = at.is_some() && at == self.wan.addresses.first().map(|&addr| addr.into());
        if may && same && self.uplink_open {
            return;
        }
        self.close_uplink(now);
        if may {
            // A route may be a moment later than an address.
            return self.timers.set(Alarm::Alone, now + NOBODY);
        }
        self.notice(Notice::NoServer);
    }

    /// This router's own NAT counts as the last one, in the place of `server` that does not answer.
    pub(super) fn serve_alone(&mut self, now: Instant, server: SocketAddr, addr: Ipv4Addr) {
        self.uplink_open = true;
        self.notice(Notice::Speaks(server, UplinkProtocol::Local));
        self.refuse_half_done(now);
        self.reserve_as_outermost(now);
        self.serve_by(now, Box::new(LocalNat::new(now, server, addr)));
        self.probe_when_due(now);
    }

    pub(super) fn on_uplink_failed(&mut self, now: Instant, server: SocketAddr, error: String) {
        if self.server() != Some(server) {
            return; // it is wanted no more
        }
        self.notice(Notice::UplinkFailed(server, error));
        if self.is_alone_all_the_same() {
            return;
        }
        if self.is_alone() {
            self.forget_external(); // that was at another address, or must not be
        }
        self.uplink_open = false;
        self.input(now, Input::Closed);
        self.note_connection(now);
        self.timers.set(Alarm::Uplink, now + UPLINK_RETRY);
        self.on_server_silent(now);
        self.go_alone_unopened(now, server);
    }

    /// The machine is there, and nobody on it who could answer.
    pub(super) fn on_unreachable(&mut self, now: Instant, server: SocketAddr) {
        if self.uplink_open && self.server() == Some(server) {
            if self.uplink.as_ref().is_some_and(|uplink| uplink.unanswered_since().is_some()) {
                self.servers.give_up();
            }
            self.input(now, Input::Unreachable);
        }
    }

    pub(super) fn on_uplink_opened(&mut self, now: Instant, server: SocketAddr, source: IpAddr) {
        if self.ways_out().is_empty() || self.server() != Some(server) {
            return; // it is wanted no more
        }
        self.uplink_open = true;
        self.timers.cancel(Alarm::Uplink);
        let same = |client: &dyn Uplink| {
            client.server() == server && self.uplink_on == self.wan.name
                // What is asked otherwise may speak something better here.
                && !matches!(client.protocol(), UplinkProtocol::Local | UplinkProtocol::Igd)
        };
        if self.uplink.as_ref().is_some_and(|client| same(&**client)) {
            let moved = self.uplink.as_ref().is_some_and(|client| client.source() != source);
            self.input(now, Input::Source(source));
            if moved {
                self.doubt_all(|_| {}); // the server knows none of them under this address
                self.doubt_peers(now);
            } else {
                self.recall_external(now);
            }
            // What had to wait may be had now.
            for flow in self.table.iter().map(|mapping| mapping.flow).collect::<Vec<_>>() {
                if self.timers.cancel(Alarm::Again(flow)) {
                    self.ask_again_to_keep(now, flow);
                }
            }
        } else {
            // Who waits for one that has never answered may wait for this one instead.
            if self.uplink.as_ref().is_some_and(|before| before.last_heard().is_some()) {
                self.refuse_all_pending(now);
            } else {
                self.refuse_half_done(now);
            }
            self.serve_by(now, Box::new(self.pcp_client(server, source)));
        }
        self.probe_when_due(now);
        self.await_server(now);
    }

    /// A server is named now, or this router must not be an ordinary gateway any more.
    fn is_alone_no_more(&self) -> bool {
        self.is_alone() && self.uplink_open && !self.may_go_alone()
    }

    fn pcp_client(&self, server: SocketAddr, source: IpAddr) -> PcpClient {
        let client =
            PcpClient::new(server, source, self.config.recovery_wait).known_as(self.identity(server));
        let client = if self.may_be_nobody(server) { client.that_may_be_nobody() } else { client };
        // NAT-PMP maps to the packet's own source alone, which is this router.
        if self.config.nat == NatMode::Own { client.with_fallback() } else { client }
    }

    /// The server speaks another protocol than it was asked by (decision 20): everything is asked for anew, also what waits.
    pub(super) fn change_protocol(&mut self, now: Instant, protocol: UplinkProtocol) {
        let Some(before) = self.uplink.as_ref().filter(|_| !self.stopping) else { return };
        let (server, source, wait) = (before.server(), before.source(), self.config.recovery_wait);
        self.notice(Notice::Speaks(server, protocol));
        self.refuse_half_done(now);
        let client: Box<dyn Uplink> = match protocol {
            UplinkProtocol::Pcp => Box::new(self.pcp_client(server, source).that_has_spoken(now)),
            UplinkProtocol::NatPmp => Box::new(NatPmpClient::new(now, server, source, wait)),
            // These take more than an address, see `ask_isp_router` and `go_alone`.
            UplinkProtocol::Igd | UplinkProtocol::Local => return,
        };
        self.serve_by(now, client);
        self.probe_when_due(now);
    }

    /// Another server, or the same one in another protocol, knows none of our mappings: the old one's lapse, the new one is asked
    /// for each.
    pub(super) fn serve_by(&mut self, now: Instant, mut client: Box<dyn Uplink>) {
        self.release_all(now);
        self.doubt_peers(now);
        self.drop_peers(None, Refusal::NoAnswer, false);
        self.abandon_deletes(now);
        self.refusals.forget();
        self.strays.clear();
        self.forget_probe();
        self.forget_isp_router();
        let mut restored = std::mem::take(&mut self.restored);
        let (before_us, mappings_before_us) = (!restored.nonces.is_empty(), restored.any);
        restored.nonces.append(&mut self.nonces_elsewhere);
        restored.nonces.extend(self.nonces_left_behind());
        for (want, StoredNonce { nonce, wan }) in restored.nonces {
            // What is another server's must not be told to this one (RFC 6887 §11.2, RFC 7488 §4).
            if wan.as_ref().is_some_and(|wan| *wan != self.wan.name) {
                self.nonces_elsewhere.push((want, StoredNonce { nonce, wan }));
            } else if !self.is_of_another_server(client.server(), &want, nonce) {
                client.remember(&want, nonce);
            }
        }
        let before = self.uplink.take().map(|mut before| {
            let filters = before.take_filters();
            self.leave_behind(before, &*client);
            filters
        });
        client.set_filters(before.unwrap_or(restored.filters));
        self.uplink = Some(client);
        self.uplink_on.clone_from(&self.wan.name);
        if std::mem::replace(&mut self.on_spare, self.wan.is_spare) {
            // However long the spare line was in use, this one's server is asked before anything ends; as after a restart.
            let all: Vec<_> = self.table.iter().map(Mapping::key).collect();
            for key in all {
                self.table.update(key, |mapping| {
                    mapping.lifetime_ends = mapping.lifetime_ends.max(now + LONGEST);
                });
            }
        }
        let mappings: Vec<_> = self
            .table
            .iter()
            .map(|mapping| {
                (mapping.flow, mapping.lifetime_ends, self.want_to_keep(mapping), mapping.asked_at)
            })
            .collect();
        // The whole town comes back at the same moment (D-9); a list is asked for then, too.
        let spread = before_us || self.config.list_mappings;
        let wait = match (spread, self.servers.take_failed_over()) {
            (true, _) => self.config.service_wait,
            (false, true) => self.config.recovery_wait,
            (false, false) => Duration::ZERO,
        };
        // Another protocol is no reason to hurry.
        let due = self.servers.not_before(now + self.entropy.up_to(wait));
        if before_us {
            self.probe_after(due, mappings_before_us);
        }
        self.input(now, Input::TurnsFrom(due));
        if self.config.list_mappings {
            self.input(now, Input::List(due));
        }
        self.doubt_all(|mapping| mapping.confirmed = false);
        for (flow, want) in restored.unwanted {
            self.strays.insert(flow);
            self.input(now, Input::Assume(flow, want));
            self.input(now, Input::DeleteInTurn(flow));
        }
        for (flow, lifetime_ends, want, asked_at) in mappings {
            self.timers.cancel(Alarm::Again(flow));
            self.timers.set(Alarm::Lifetime(flow), lifetime_ends);
            self.input(now, Input::AskInTurn(flow, want, asked_at));
        }
        self.ask_again(now);
        self.stop_if_done(now);
    }

    /// By what the server of the WAN interface so far knows what is mapped, if another interface takes its place. A nonce that was adopted
    /// from the server's list cannot be derived again.
    fn nonces_left_behind(&self) -> Vec<(Want, StoredNonce)> {
        let Some(before) = self.uplink.as_ref().filter(|_| self.uplink_on != self.wan.name) else {
            return Vec::new();
        };
        let known = self.table.iter().filter_map(|mapping| {
            let want = self.want_to_keep(mapping);
            let nonce = before.nonce(mapping.flow).or_else(|| before.remembered(&want))?;
            Some((want, StoredNonce { nonce, wan: Some(self.uplink_on.clone()) }))
        });
        known.collect()
    }

    pub(super) fn on_uplink_datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: &[u8],
        multicast: bool,
    ) {
        if !self.uplink_open {
            return;
        }
        self.input(now, if multicast { Input::Multicast(from, bytes) } else { Input::Datagram(from, bytes) });
    }

    /// Hands `input` to the PCP client; its outputs are acted on at the end of the turn.
    pub(super) fn input(&mut self, now: Instant, input: Input<'_>) {
        if let Some(client) = &mut self.uplink {
            client.handle_input(now, input, &mut *self.entropy);
        }
    }

    /// Acts on everything that the PCP client wants done or known.
    pub(super) fn drain_uplink(&mut self, now: Instant) {
        while let Some(output) = self.uplink.as_mut().and_then(|client| client.poll_output()) {
            let server = self.uplink.as_ref().expect("it has just been polled").server();
            let Some(output) = self.of_isp_router(now, output) else { continue };
            match output {
                Output::Transmit(bytes) => self.effects.push_back(Effect::Send { to: server, bytes }),
                Output::Filtered(filtered) => {
                    self.effects.push_back(Effect::Store(Record::Filtered(filtered)));
                }
                Output::Granted(flow, grant) if self.probe.is(flow) => {
                    self.on_probe_granted(now, server, *grant.external_v4().ip());
                }
                Output::Granted(flow, grant) => self.on_granted(now, flow, grant),
                Output::Refused(flow, result, wait) if self.probe.is(flow) => {
                    self.on_probe_refused(now, server, result, wait);
                }
                Output::Refused(flow, result, wait) => {
                    self.probe.step_forward();
                    self.on_refused(now, flow, result, wait);
                }
                Output::Unrenewed(flow) => self.on_unrenewed(flow),
                Output::RenewalRefused(flow, result) => self.on_renewal_refused(now, flow, result),
                Output::Lost(flow) if self.probe.is(flow) => self.on_probe_lost(),
                Output::Lost(flow) => {
                    self.probe.step_forward();
                    let ends = self.table.find_flow(flow).map(|mapping| mapping.lifetime_ends);
                    self.on_lost(now, flow, ends.is_none_or(|ends| ends > now));
                }
                Output::Deleted(flow) => self.on_deleted(now, flow),
                Output::DeleteRefused(flow, result) => self.on_delete_refused(now, flow, result),
                Output::StateLost => {
                    self.refusals.forget();
                    self.drop_lapsing_probe(now);
                    self.doubt_all(|_| {});
                    self.doubt_peers(now);
                    let mappings = self.table.len();
                    self.notice(Notice::StateLost(server, mappings));
                }
                Output::Answering => {
                    if !self.is_alone() {
                        self.on_server_answers(now);
                        self.notice(Notice::Answering(server));
                    }
                    self.note_connection(now);
                }
                Output::Silent => {
                    let local = self.config.when_unreachable == WhenUnreachable::Local;
                    self.notice(Notice::Silent(server, local));
                    self.map_all_locally();
                    self.note_connection(now);
                    self.on_server_silent(now);
                }
                Output::Listed(unknown) => self.adopt(now, unknown),
                Output::NotListed(result) => self.notice(Notice::NotListed(server, result)),
                Output::Lacks(option) => self.notice(Notice::Lacks(server, option)),
                Output::Speaks(protocol) => self.change_protocol(now, protocol),
                Output::External(Some(addr)) => self.on_external_told(now, server, addr),
                Output::External(None) => self.forget_external(),
                Output::PeerGranted(flow, grant) => self.on_peer_granted(now, flow, grant),
                Output::PeerRefused(flow, result, wait) => self.on_peer_refused(now, flow, result, wait),
                // Only routers that speak UPnP have these.
                Output::Http(_) | Output::NatAbove(_) => {}
                Output::VersionRefused(version) => self.notice(Notice::VersionRefused(server, version)),
            }
        }
    }

    pub(super) fn on_stop(&mut self, now: Instant) {
        if self.stopping {
            return;
        }
        self.stopping = true;
        self.ssdp.stop(now);
        self.subscriptions.clear(); // a byebye says so (E-9)
        for (request, _) in std::mem::take(&mut self.counting) {
            self.timers.cancel(Alarm::Patience(request));
            self.effects.push_back(Effect::Reply { request, answer: Err(UpnpError::ACTION_FAILED) });
        }
        self.refuse_all_pending(now);
        self.release_all(now);
        self.drop_peers(None, Refusal::Stopping, self.config.keep_on_stop);
        self.end_probe(now);
        self.stop_pinholes(now);
        if !self.config.keep_on_stop {
            for key in self.table.iter().map(Mapping::key).collect::<Vec<_>>() {
                self.drop_mapping(now, key, Cause::Stopping);
            }
        }
        self.drain_uplink(now);
        self.drain_firewall(now);
        // Nobody is left without an answer.
        for id in std::mem::take(&mut self.deletes).into_keys() {
            self.refuse(id, Refusal::Stopping);
        }
        for id in self.waiting.keys().copied().collect::<Vec<_>>() {
            self.refuse(id, Refusal::Stopping);
        }
        self.lookups = super::names::Lookups::default();
        self.stop_by = now + STOP_LIMIT;
        let asks = self.uplink_open || !self.pinholes.is_given_back();
        self.timers.set(Alarm::Stop, now + if asks { STOP_WAIT } else { Duration::ZERO });
        self.stop_if_done(now);
    }

    /// Ends early when every delete is confirmed, and waits on as long as one after the other is.
    pub(super) fn stop_if_done(&mut self, now: Instant) {
        if !self.stopping || self.stopped {
            return;
        }
        let given_back = self.strays.is_empty() && self.pinholes.is_given_back();
        if given_back && (self.table.is_empty() || self.config.keep_on_stop) {
            self.finish_stop();
        } else if self.uplink_open || !self.pinholes.is_given_back() {
            self.timers.set(Alarm::Stop, (now + STOP_WAIT).min(self.stop_by));
        }
    }

    pub(super) fn finish_stop(&mut self) {
        self.stopped = true;
        self.timers.cancel(Alarm::Stop);
        // What the server has not confirmed may still be there: the next start knows of it.
        let given_back = std::mem::take(&mut self.given_back);
        let mappings = given_back.keys().filter(|&flow| self.strays.contains(flow)).count();
        let left = mappings + self.pinholes_left_behind();
        if left > 0 {
            self.notice(Notice::LeftBehind(left));
            for (flow, key) in given_back {
                if !self.strays.contains(&flow) {
                    self.effects.push_back(Effect::Store(Record::Remove(key.protocol, key.external_port)));
                }
            }
        } else if !given_back.is_empty() {
            self.effects.push_back(Effect::Store(Record::Clear));
        }
    }
}
