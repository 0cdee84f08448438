//! What the server says: which of it is believed, which flow it belongs to, and what follows.

use super::*;

impl PcpClient {
    pub(super) fn on_datagram(&mut self, now: Instant, bytes: &[u8], entropy: &mut dyn Entropy) {
        if self.fallback && self.may_speak_another(now) && self.unanswered > 0 && speaks_nat_pmp(bytes) {
            return self.outputs.push_back(Output::Speaks(UplinkProtocol::NatPmp));
        }
        if let Some(refusal) = pcp::version_refusal(bytes) {
            return self.on_version_refused(now, refusal.version, refusal.lifetime);
        }
        let Ok(response) = Response::parse(bytes) else {
            self.ignored += 1;
            return;
        };
        let knocked = self.knocks;
        match &response.body {
            Body::Announce if response.result != ResultCode::SUCCESS => self.ignored += 1,
            Body::Announce => {
                self.heard(now, entropy);
                self.check_epoch(now, response.epoch, false, None, entropy);
            }
            Body::Get(_) => self.on_list(now, &response, entropy),
            Body::Map(map) => match self.matching(map, &response) {
                Some(id) if !self.is_of_another_family(id, map, &response) => {
                    self.on_map(now, id, *map, &response, entropy);
                }
                _ => self.ignored += 1,
            },
            Body::Peer(data) => match self.peers.matching(self.source, data, &response) {
                Some(id) => self.on_peer(now, id, data, &response, entropy),
                None => self.ignored += 1,
            },
            _ => self.ignored += 1,
        }
        // Whatever that says of ANNOUNCE.
        if knocked {
            self.speak_up(now, entropy);
        }
    }

    pub(super) fn on_multicast(&mut self, now: Instant, bytes: &[u8], entropy: &mut dyn Entropy) {
        match Response::parse(bytes) {
            Ok(response)
                if matches!(response.body, Body::Announce) && response.result == ResultCode::SUCCESS =>
            {
                // It is no answer, so a server that announces itself may be silent all the same; but it is worth a try.
                if self.answering == Some(false) {
                    self.nudge(now, entropy);
                }
                self.check_epoch(now, response.epoch, true, None, entropy);
            }
            _ => self.ignored += 1,
        }
    }

    /// The flow that a MAP response belongs to (RFC 6887 §11.4): nonce, protocol, internal port, internal address.
    fn matching(&self, map: &MapData, response: &Response) -> Option<FlowId> {
        let id = *self.by_nonce.get(&(map.nonce, map.protocol, map.internal_port))?;
        let flow = self.flows.get(&id)?;
        let third_party = match response.option(OptionCode::THIRD_PARTY) {
            Some(PcpOption::ThirdParty(addr)) => Some(*addr),
            _ => None,
        };
        let same = third_party == self::third_party(&flow.want, self.source).map(pcp::ip_to_wire);
        // A delete was answered twice, and the same client has asked anew since.
        let late_delete = response.result == ResultCode::SUCCESS
            && (response.lifetime, map.external_port) == (0, 0)
            && !matches!(flow.phase, Phase::Deleting { .. });
        (same && !late_delete).then_some(id)
    }

    /// A success with an address of the other family is no answer to what was asked. Should it be the server's last word, whoever
    /// waits gives up and deletes the flow.
    fn is_of_another_family(&self, id: FlowId, map: &MapData, response: &Response) -> bool {
        let deleting = matches!(self.flows[&id].phase, Phase::Deleting { .. });
        let grants = response.result == ResultCode::SUCCESS && response.lifetime > 0;
        grants && !deleting && external(&self.flows[&id].want, map).is_none()
    }

    fn on_map(
        &mut self,
        now: Instant,
        id: FlowId,
        map: MapData,
        response: &Response,
        entropy: &mut dyn Entropy,
    ) {
        self.heard(now, entropy);
        self.check_epoch(now, response.epoch, false, Some(id), entropy);
        if response.result == ResultCode::SUCCESS {
            self.on_success(now, id, map, response, entropy);
        } else {
            self.on_error(now, id, map, response, entropy);
        }
    }

    fn on_success(
        &mut self,
        now: Instant,
        id: FlowId,
        map: MapData,
        response: &Response,
        entropy: &mut dyn Entropy,
    ) {
        let lifetime = response.lifetime;
        let flow = self.flows.get_mut(&id).expect("matching() returns live flows");
        if let Phase::Deleting { sent, .. } = flow.phase {
            // A server may keep a deleted mapping for its idle time and say so (RFC 6887 §15); a late answer to the
            // request before the delete looks the same, so that is only believed once the delete was repeated.
            if lifetime == 0 || sent > 1 {
                self.remove(id);
                self.outputs.push_back(Output::Deleted(id));
            } else if let (Some(before), Some(external)) = (&mut flow.grant, external(&flow.want, &map)) {
                // Should the delete be refused, it lasts until then.
                *before = granted(now, external, lifetime);
            }
            return;
        }
        let repeated: Vec<Filter> = response.options.iter().filter_map(filter).collect();
        self.repeats_filters |= !repeated.is_empty();
        // What was processed is in the answer (RFC 6887 §7.3), unless the server passes filters over and so has none.
        let reset = repeated == flow.filters() || !self.repeats_filters;
        let external = external(&flow.want, &map);
        let (Some(external), 1..) = (external, lifetime) else {
            return self.on_error(now, id, map, response, entropy);
        };
        let grant = granted(now, external, lifetime);
        flow.grant = Some(grant);
        flow.any_address = false;
        let wanted = |one: &Filter| flow.want.remote_peers.iter().any(|peer| peer.filter() == *one);
        let foreign = |one: &Filter| one.prefix_len > 0 && !wanted(one);
        if !flow.reset_filters && repeated.iter().any(foreign) {
            // It answers an earlier request that has come after ours, and there is a filter now that nobody wants any more.
            (flow.reset_filters, flow.phase) = (true, Phase::ASK);
            self.outputs.push_back(Output::Granted(id, grant));
            return self.on_timer(now, id, entropy);
        }
        let filters_matter = flow.reset_filters || flow.want.is_v6();
        if filters_matter && !reset && matches!(flow.phase, Phase::Asking { .. }) {
            // An answer to a request before the one that drops or adds filters, which is still to be answered.
            self.outputs.push_back(Output::Granted(id, grant));
            return;
        }
        flow.reset_filters &= !reset;
        if !flow.reset_filters && flow.want.remote_peers.is_empty() {
            self.filters.forget(Filtered::new(self.source, client(&flow.want)));
        }
        flow.unanswered = false;
        flow.phase = Phase::Held { attempts: 0 };
        flow.want.urgent = false;
        let omitted = std::mem::take(&mut flow.omitted);
        self.turns.answered(id);
        self.learn(omitted);
        self.schedule_renewal(now, id, entropy);
        self.outputs.push_back(Output::Granted(id, grant));
    }

    /// What a request was refused with and granted without is not sent to this server again.
    fn learn(&mut self, omitted: Omitted) {
        if omitted.prefer_failure && !self.lacks.prefer_failure {
            self.lacks.prefer_failure = true;
            self.outputs.push_back(Output::Lacks(OptionCode::PREFER_FAILURE));
        }
        if omitted.description && !self.lacks.description {
            self.lacks.description = true;
            self.outputs.push_back(Output::Lacks(OptionCode::DESCRIPTION));
        }
    }

    /// The option that a refused request may be repeated without, if that is what it was refused for.
    fn option_to_omit(&self, id: FlowId, result: ResultCode) -> Option<OptionCode> {
        let flow = self.flows.get(&id)?;
        match result {
            ResultCode::UNSUPP_OPTION if flow.carried.prefer_failure => Some(OptionCode::PREFER_FAILURE),
            // K-17: servers that do not like its length.
            ResultCode::MALFORMED_OPTION if flow.carried.description => Some(OptionCode::DESCRIPTION),
            _ => None,
        }
    }

    fn on_error(
        &mut self,
        now: Instant,
        id: FlowId,
        map: MapData,
        response: &Response,
        entropy: &mut dyn Entropy,
    ) {
        // A success without a mapping leaves nothing to keep or to delete.
        let (result, lifetime) = match response.result {
            ResultCode::SUCCESS => (ResultCode::NETWORK_FAILURE, 0),
            result => (result, response.lifetime),
        };
        let lifetime = Duration::from_secs(u64::from(lifetime.min(MAX_ERROR_LIFETIME)));
        let omit = self.option_to_omit(id, result);
        let refuses_option = matches!(
            result,
            ResultCode::UNSUPP_OPTION | ResultCode::MALFORMED_OPTION | ResultCode::EXCESSIVE_REMOTE_PEERS
        );
        let flow = self.flows.get_mut(&id).expect("matching() returns live flows");
        let deleting = flow.is_deleting();
        let echoes = |code| response.option(code).is_some();
        let before = flow.any_address && !deleting && !is_no_address(map.external_addr)
            || deleting && [OptionCode::PREFER_FAILURE, OptionCode::FILTER].into_iter().any(echoes)
            || !flow.carried.prefer_failure && echoes(OptionCode::PREFER_FAILURE)
            || !flow.carried.description && echoes(OptionCode::DESCRIPTION)
            || !flow.carried.reset
                && response.options.iter().filter_map(filter).any(|one| one.prefix_len == 0);
        if before {
            // Errors echo what was asked: this one answers the request before, which still had what this one lacks.
            self.ignored += 1;
            return;
        }
        flow.unanswered = false;
        flow.errors = flow.errors.saturating_add(1);
        self.turns.answered(id);
        if let Some(option) = omit {
            flow.omitted.prefer_failure |= option == OptionCode::PREFER_FAILURE;
            flow.omitted.description |= option == OptionCode::DESCRIPTION;
            flow.phase = Phase::ASK;
            return self.on_timer(now, id, entropy);
        }
        if flow.carried.reset && refuses_option && !deleting {
            // It cannot drop filters, so it has none or leaves us no way.
            (flow.reset_filters, flow.phase) = (false, Phase::ASK);
            flow.omitted = Omitted::default();
            if flow.want.remote_peers.is_empty() {
                self.filters.forget(Filtered::new(self.source, client(&flow.want)));
            }
            return self.on_timer(now, id, entropy);
        }
        if result == ResultCode::NO_RESOURCES && !deleting && lifetime > Duration::ZERO {
            self.hold = Some((now + lifetime, result));
        }
        match (&flow.phase, flow.grant) {
            // The most deployed server says NO_RESOURCES when there is nothing to delete (spec/clients.md, K-17).
            (Phase::Deleting { .. }, _) if result == ResultCode::NO_RESOURCES => {
                self.remove(id);
                self.outputs.push_back(Output::Deleted(id));
            }
            (Phase::Deleting { .. }, None) => {
                self.remove(id);
                self.outputs.push_back(Output::Deleted(id));
            }
            (Phase::Deleting { .. }, Some(grant)) => {
                flow.want.urgent = false;
                self.deleting.remove(&client(&flow.want));
                if std::mem::take(&mut flow.doubtful) {
                    flow.phase = Phase::ASK;
                    flow.requested = lifetime_to_ask(now, &flow.want.terms);
                    self.timers.set(id, grant.ends());
                    self.turns.enqueue(flow.used_at, id);
                } else {
                    flow.phase = Phase::Held { attempts: 0 };
                    self.schedule_renewal(now, id, entropy);
                }
                self.outputs.push_back(Output::DeleteRefused(id, result));
                if let Some((waiting, _)) = self.behind.remove(&id) {
                    // The server has one mapping for the client, and keeps that.
                    let refused = ResultCode::CANNOT_PROVIDE_EXTERNAL;
                    self.outputs.push_back(Output::Refused(waiting, refused, Duration::ZERO));
                }
            }
            (_, None) => {
                // An error leaves the server as it was before this flow.
                if flow.errors >= flow.copies && !flow.reset_filters {
                    self.filters.forget(Filtered::new(self.source, client(&flow.want)));
                }
                self.remove(id);
                self.outputs.push_back(Output::Refused(id, result, lifetime));
            }
            (_, Some(_))
                if result == ResultCode::CANNOT_PROVIDE_EXTERNAL
                    && flow.want.terms.prefer_failure
                    && !flow.any_address =>
            {
                // PREFER_FAILURE insists on the address too (RFC 6887 §13.2). Its owner asked for a port only.
                flow.any_address = true;
                flow.phase = Phase::ASK;
                self.on_timer(now, id, entropy);
            }
            (_, Some(_)) if result == ResultCode::CANNOT_PROVIDE_EXTERNAL => {
                self.remove(id);
                self.outputs.push_back(Output::Lost(id));
            }
            (Phase::Asking { .. }, Some(_)) => {
                // Recovery was refused: fall back to the renewal schedule until the lifetime ends.
                flow.phase = Phase::Held { attempts: 0 };
                self.schedule_renewal(now, id, entropy);
                self.outputs.push_back(Output::RenewalRefused(id, result));
            }
            (Phase::Held { .. }, Some(_)) => self.outputs.push_back(Output::RenewalRefused(id, result)),
        }
    }

    fn on_version_refused(&mut self, now: Instant, version: u8, lifetime: u32) {
        // It carries no nonce, so it is believed only when it may be an answer, and never against better knowledge.
        if version == pcp::VERSION || !self.may_speak_another(now) || self.unanswered == 0 {
            self.ignored += 1;
            return;
        }
        self.unanswered = 0;
        self.unanswered_since = None;
        if version == natpmp::VERSION && self.fallback {
            return self.outputs.push_back(Output::Speaks(UplinkProtocol::NatPmp));
        }
        // RFC 6887 §9: no common version; log, and try again after the lifetime, at most 30 minutes.
        let wait = Duration::from_secs(u64::from(lifetime.clamp(30, MAX_ERROR_LIFETIME)));
        self.hold = Some((now + wait, ResultCode::UNSUPP_VERSION));
        let waits = |flow: &Flow| flow.grant.is_none() && !flow.is_deleting();
        let waiting: Vec<FlowId> =
            self.flows.iter().filter(|(_, flow)| waits(flow)).map(|(&id, _)| id).collect();
        for id in waiting {
            self.remove(id);
            self.outputs.push_back(Output::Refused(id, ResultCode::UNSUPP_VERSION, wait));
        }
        for id in self.peers.take_all() {
            self.outputs.push_back(Output::PeerRefused(id, ResultCode::UNSUPP_VERSION, wait));
        }
        self.outputs.push_back(Output::VersionRefused(version));
    }
}

/// Whether it answers the question for the external address, well or not.
fn speaks_nat_pmp(bytes: &[u8]) -> bool {
    matches!(natpmp::Response::parse(bytes), Ok(natpmp::Response::ExternalAddress { .. }))
}

fn filter(option: &PcpOption) -> Option<Filter> {
    match option {
        PcpOption::Filter(filter) => Some(*filter),
        _ => None,
    }
}

/// What a success gives for so many seconds.
pub(super) fn granted(now: Instant, external: SocketAddr, lifetime: u32) -> Grant {
    Grant { external, lifetime: Duration::from_secs(u64::from(lifetime.min(MAX_LIFETIME))), since: now }
}

/// The assigned external address and port, if that is of the family that was asked for.
fn external(want: &Want, map: &MapData) -> Option<SocketAddr> {
    let addr = pcp::ip_from_wire(map.external_addr);
    (addr.is_ipv6() == want.is_v6()).then_some(SocketAddr::new(addr, map.external_port))
}

/// Zeros of either family: no address is suggested.
fn is_no_address(addr: Ipv6Addr) -> bool {
    addr == NO_ADDR_V4 || addr.is_unspecified()
}
