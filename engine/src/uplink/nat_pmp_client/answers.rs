//! What the gateway says: which of it is believed, which flow it belongs to, and what follows.

use super::*;
use crate::policy::is_usable_external;

impl NatPmpClient {
    pub(super) fn on_datagram(&mut self, now: Instant, bytes: &[u8], entropy: &mut dyn Entropy) {
        if bytes.first() == Some(&pcp::VERSION) {
            return self.on_pcp(now, bytes, entropy);
        }
        let Ok(response) = Response::parse(bytes) else {
            self.ignored += 1;
            return;
        };
        match response {
            // The answer to a knock.
            Response::UnsupportedVersion { .. } if self.knocking => {
                self.knocking = false;
                self.heard(now, entropy);
            }
            Response::ExternalAddress { result, epoch, addr } if self.asks_address() => {
                self.heard(now, entropy);
                self.check_clock(now, epoch, None, entropy);
                self.on_address(now, result, addr);
            }
            Response::UnsupportedVersion { .. } | Response::ExternalAddress { .. } => self.ignored += 1,
            Response::Map { result, epoch, protocol, internal_port, external_port, lifetime } => {
                let id = self.by_key.get(&(protocol.into(), internal_port)).copied();
                let Some(id) = id.filter(|&id| self.is_answer(id, result, lifetime)) else {
                    self.ignored += 1;
                    return;
                };
                self.heard(now, entropy);
                self.check_clock(now, epoch, Some(id), entropy);
                match result {
                    natpmp::ResultCode::SUCCESS => {
                        self.on_success(now, id, external_port, lifetime, entropy);
                    }
                    refused => self.on_error(now, id, refused, entropy),
                }
            }
            Response::UnsupportedOpcode { opcode, .. } => {
                let Some(Exchange { what, .. }) = self.out else {
                    self.ignored += 1;
                    return;
                };
                self.heard(now, entropy);
                match (what, opcode) {
                    (What::Address, 0) => {
                        let result = natpmp::ResultCode::UNSUPPORTED_OPCODE;
                        self.on_address(now, result, Ipv4Addr::UNSPECIFIED);
                    }
                    (What::Flow(id), 1 | 2) => {
                        self.on_error(now, id, natpmp::ResultCode::UNSUPPORTED_OPCODE, entropy);
                    }
                    _ => self.ignored += 1,
                }
            }
        }
    }

    /// The gateway has started anew, or has another address (RFC 6886 §3.2.1). Anybody on the link can say so: what the address is,
    /// the gateway is asked by the socket.
    pub(super) fn on_multicast(&mut self, now: Instant, bytes: &[u8], entropy: &mut dyn Entropy) {
        match Response::parse(bytes) {
            Ok(Response::ExternalAddress { epoch, .. }) => {
                if self.answering == Some(false) {
                    self.again();
                }
                let begun = self.begun_since_a_grant(now, epoch);
                if !self.clock.is_consistent(now, epoch) || begun == Some(BegunSince::Yes) {
                    self.lost(now, None, entropy);
                } else if begun >= Some(BegunSince::Perhaps) {
                    self.doubt(now, None, entropy);
                }
                self.ask_address();
            }
            // PCP's announcement, from a gateway that speaks both.
            _ if pcp::Response::parse(bytes).is_ok() => {
                if now - self.knocked >= MIN_RENEWAL_GAP {
                    self.knock(now);
                }
            }
            _ => self.ignored += 1,
        }
    }

    /// Whether the gateway has begun since it gave a mapping that counts as held.
    fn begun_since_a_grant(&self, now: Instant, epoch: u32) -> Option<BegunSince> {
        let held = self.flows.values().filter(|flow| matches!(flow.phase, Phase::Held { .. }));
        let grants = held.filter_map(|flow| flow.grant);
        grants.map(|grant| begun_since(grant.since, now, epoch, CLOCK_SLACK)).max()
    }

    /// Any response of PCP to a knock shows that it speaks it, but one that says that it does not.
    fn on_pcp(&mut self, now: Instant, bytes: &[u8], entropy: &mut dyn Entropy) {
        let knows = |response: &pcp::Response| response.result != ResultCode::UNSUPP_VERSION;
        if !self.knocking || !pcp::Response::parse(bytes).as_ref().is_ok_and(knows) {
            self.ignored += 1;
            return;
        }
        self.knocking = false;
        self.heard(now, entropy);
        self.outputs.push_back(Output::Speaks(UplinkProtocol::Pcp));
    }

    fn asks_address(&self) -> bool {
        self.out.is_some_and(|out| out.what == What::Address)
    }

    /// Whether it can be an answer to what was last asked. A late answer to the request before looks like one of the other kind:
    /// a delete is confirmed with lifetime 0, a mapping is not.
    fn is_answer(&self, id: FlowId, result: natpmp::ResultCode, lifetime: u32) -> bool {
        let Some(flow) = self.flows.get(&id) else { return false };
        if result != natpmp::ResultCode::SUCCESS {
            // Errors do not say what they are about, so one that nobody waits for is about nothing.
            return flow.unanswered;
        }
        flow.unanswered && flow.is_deleting() == (lifetime == 0)
    }

    pub(super) fn heard(&mut self, now: Instant, entropy: &mut dyn Entropy) {
        self.last_heard = Some(now);
        self.unanswered = 0;
        self.unanswered_since = None;
        if self.answering == Some(false) {
            self.again();
            // What was renewed in vain.
            for (&id, flow) in &self.flows {
                if let (Phase::Held { attempts: 1.. }, Some(grant)) = (flow.phase, flow.grant) {
                    let wake = now.max(flow.sent_at + MIN_RENEWAL_GAP) + entropy.up_to(self.recovery_wait);
                    self.timers.set(id, wake.min(grant.ends()));
                }
            }
        }
        if self.answering != Some(true) {
            self.answering = Some(true);
            self.outputs.push_back(Output::Answering);
        }
    }

    /// What is out begins again: its next copy may be a minute away.
    pub(super) fn again(&mut self) {
        if let Some(out) = self.out.take() {
            self.line.join(out.rank, out.what);
        }
    }

    fn check_clock(
        &mut self,
        now: Instant,
        epoch: u32,
        confirmed: Option<FlowId>,
        entropy: &mut dyn Entropy,
    ) {
        if self.clock.is_consistent(now, epoch) {
            return;
        }
        self.lost(now, confirmed, entropy);
    }

    /// The gateway has lost its state.
    fn lost(&mut self, now: Instant, confirmed: Option<FlowId>, entropy: &mut dyn Entropy) {
        if self.doubt(now, confirmed, entropy) {
            self.outputs.push_back(Output::StateLost);
            self.ask_address();
            // It may be another program now.
            self.knock(now);
        }
    }

    /// It may have: asks again for every mapping but `confirmed`. False when that is due already, and will find out what there is.
    fn doubt(&mut self, now: Instant, confirmed: Option<FlowId>, entropy: &mut dyn Entropy) -> bool {
        let (start, another) = self.recoveries.begin(now);
        self.recover(now, start, confirmed, entropy);
        another
    }

    fn on_address(&mut self, now: Instant, result: natpmp::ResultCode, addr: Ipv4Addr) {
        self.out = None; // that was the question
        let known = result == natpmp::ResultCode::SUCCESS && is_usable_external(addr);
        let external = known.then_some(addr);
        self.ask_address_at = (!known).then(|| now + ADDRESS_RETRY);
        if self.external != Some(external) || external.is_some() {
            self.external = Some(external);
            self.outputs.push_back(Output::External(external));
        }
        let Some(addr) = external else {
            let waits = |flow: &Flow| flow.unreported && flow.want.urgent;
            let waiting: Vec<FlowId> =
                self.flows.iter().filter(|(_, flow)| waits(flow)).map(|(&id, _)| id).collect();
            for id in waiting {
                self.refuse_without_address(now, id);
            }
            return;
        };
        for (&id, flow) in &mut self.flows {
            let deleting = flow.is_deleting();
            let Some(grant) = &mut flow.grant else { continue };
            let moved = grant.external.ip() != addr;
            grant.external.set_ip(addr.into());
            if (std::mem::take(&mut flow.unreported) || moved) && !deleting {
                flow.stands = true;
                self.outputs.push_back(Output::Granted(id, *grant));
            }
        }
    }

    fn on_success(
        &mut self,
        now: Instant,
        id: FlowId,
        external_port: u16,
        lifetime: u32,
        entropy: &mut dyn Entropy,
    ) {
        let flow = self.flows.get_mut(&id).expect("is_answer() has found it");
        flow.unanswered = false;
        if flow.is_deleting() {
            self.remove(id);
            self.outputs.push_back(Output::Deleted(id));
            return;
        }
        if external_port == 0 {
            return self.on_error(now, id, natpmp::ResultCode::NETWORK_FAILURE, entropy);
        }
        let external = self.external.flatten();
        let grant = Grant {
            external: (external.unwrap_or(Ipv4Addr::UNSPECIFIED), external_port).into(),
            lifetime: Duration::from_secs(u64::from(lifetime.min(MAX_LIFETIME))),
            since: now,
        };
        flow.grant = Some(grant);
        flow.phase = Phase::Held { attempts: 0 };
        flow.unreported = external.is_none();
        let urgent = std::mem::take(&mut flow.want.urgent);
        flow.want.urgent = urgent && flow.unreported;
        self.leave_line(id);
        self.schedule_renewal(now, id, entropy);
        match self.external {
            Some(Some(_)) => {
                self.flows.get_mut(&id).expect("found above").stands = true;
                self.outputs.push_back(Output::Granted(id, grant));
            }
            Some(None) if urgent => self.refuse_without_address(now, id),
            _ => self.ask_address(),
        }
    }

    /// What is granted is of no use to anybody who has to be told where. Whoever waits hears so; what the gateway has given goes
    /// back, unless it is a mapping that stands.
    fn refuse_without_address(&mut self, now: Instant, id: FlowId) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.want.urgent = false;
        if flow.stands {
            return self.outputs.push_back(Output::RenewalRefused(id, ResultCode::NETWORK_FAILURE));
        }
        self.outputs.push_back(Output::Refused(id, ResultCode::NETWORK_FAILURE, ERROR_LIFETIME));
        if self.begin_delete(now, id) {
            self.line.join(Rank::Delete, What::Flow(id));
        }
    }

    fn on_error(&mut self, now: Instant, id: FlowId, result: natpmp::ResultCode, entropy: &mut dyn Entropy) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.unanswered = false;
        let result = match result {
            natpmp::ResultCode::NOT_AUTHORIZED => ResultCode::NOT_AUTHORIZED,
            natpmp::ResultCode::OUT_OF_RESOURCES => ResultCode::NO_RESOURCES,
            natpmp::ResultCode::UNSUPPORTED_OPCODE => ResultCode::UNSUPP_OPCODE,
            // An unknown one is fatal for the request (RFC 6886 §3.5).
            _ => ResultCode::NETWORK_FAILURE,
        };
        let (phase, grant) = (flow.phase, flow.grant.filter(|grant| grant.ends() > now));
        self.leave_line(id);
        match (phase, grant) {
            (Phase::Deleting { .. }, Some(_)) => {
                let flow = self.flows.get_mut(&id).expect("found above");
                flow.phase = Phase::Held { attempts: 0 };
                self.schedule_renewal(now, id, entropy);
                self.outputs.push_back(Output::DeleteRefused(id, result));
                if let Some((waiting, _)) = self.behind.remove(&id) {
                    let refused = ResultCode::CANNOT_PROVIDE_EXTERNAL;
                    self.outputs.push_back(Output::Refused(waiting, refused, Duration::ZERO));
                }
            }
            (Phase::Deleting { .. }, None) => {
                self.remove(id);
                self.outputs.push_back(Output::Deleted(id));
            }
            (_, None) => {
                self.remove(id);
                self.outputs.push_back(Output::Refused(id, result, ERROR_LIFETIME));
            }
            (_, Some(_)) => {
                let flow = self.flows.get_mut(&id).expect("found above");
                if flow.phase == Phase::Asking {
                    flow.phase = Phase::Held { attempts: 0 };
                    self.schedule_renewal(now, id, entropy);
                }
                self.outputs.push_back(Output::RenewalRefused(id, result));
            }
        }
    }
}
