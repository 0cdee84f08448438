//! What the router answers: which of it is believed, and what follows.

use wire::error::UpnpError;
use wire::foreign::{self, Entry};
use wire::natpmp;
use wire::soap::{Answer, AnswerError, decode_answer_to};

use super::errors::result;
use super::*;
use crate::policy::{is_behind_nat, is_usable_external};

/// What an answer is: the values, or the code of a fault.
type Told = Result<Answer, u16>;

/// Whose an entry is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Seen {
    Gone,
    /// It leads here, for so many seconds; 0 for ever.
    Ours(u32),
    /// It leads to another port of ours, or is switched off.
    Otherwise,
    Foreign,
    /// The router does not tell.
    Unknown,
}

impl Doing {
    fn action(self) -> &'static str {
        match self {
            Self::Address => "GetExternalIPAddress",
            Self::Uptime => "GetStatusInfo",
            Self::Look(_) => "GetSpecificPortMappingEntry",
            Self::Add(..) => "AddPortMapping",
            Self::AddAny(..) => "AddAnyPortMapping",
            Self::Delete(_) => "DeletePortMapping",
        }
    }
}

impl IgdClient {
    pub(super) fn on_http(
        &mut self,
        now: Instant,
        id: HttpId,
        outcome: &HttpOutcome,
        entropy: &mut dyn Entropy,
    ) {
        // Another one is that of an exchange which was given up.
        let Some(out) = self.out.take_if(|out| out.id == id) else { return };
        self.timers.cancel(Alarm::Due);
        let told = match outcome {
            HttpOutcome::Failed => return self.failed(now, out),
            HttpOutcome::Answer { body, .. } => decode_answer_to(out.doing.action(), body),
        };
        let told = match told {
            Ok(answer) => Ok(answer),
            Err(AnswerError::Fault { code, .. }) => Err(code),
            Err(AnswerError::Malformed) => {
                self.ignored += 1;
                return self.failed(now, out);
            }
        };
        self.heard(now);
        match (out.what, out.doing) {
            (What::Address, _) => match told.map(|answer| foreign::read_external(&answer)) {
                Ok(Ok(addr)) => self.on_address(addr),
                Ok(Err(_)) => self.ignored += 1,
                Err(_) => self.on_address(None),
            },
            (What::Uptime, _) => {
                let uptime = told.ok().and_then(|answer| foreign::read_uptime(&answer).ok());
                self.on_uptime(now, uptime);
            }
            (What::Look(id), _) => self.on_look(now, id, &told, entropy),
            (What::Flow(id), doing) => {
                // It may be another wish for the same mapping by now, or be given back.
                let (Doing::Look(port) | Doing::Add(port, _) | Doing::AddAny(port, _) | Doing::Delete(port)) =
                    doing
                else {
                    return;
                };
                let adds = matches!(doing, Doing::Add(..) | Doing::AddAny(..));
                let current = self.flows.get(&id).filter(|flow| flow.port == port);
                if current.is_none_or(|flow| adds && flow.is_deleting()) {
                    return;
                }
                let goes_on = match doing {
                    Doing::Look(_) => self.on_looked(now, id, &told, entropy),
                    Doing::Delete(_) => self.on_deleted(now, id, &told, entropy),
                    Doing::Add(_, lease) => match told {
                        Ok(_) => self.on_added(now, id, port, lease, entropy),
                        Err(code) => self.on_refused(now, id, lease, code, entropy),
                    },
                    Doing::AddAny(_, lease) => match told.map(|answer| foreign::read_reserved(&answer)) {
                        Ok(Ok(port)) => self.on_added(now, id, port, lease, entropy),
                        Ok(Err(_)) => {
                            self.ignored += 1;
                            self.refuse(now, id, ResultCode::NETWORK_FAILURE, entropy);
                            false
                        }
                        Err(code) => self.on_any_refused(now, id, code, entropy),
                    },
                    Doing::Address | Doing::Uptime => false,
                };
                if goes_on && self.open && self.out.is_none() {
                    self.line.leave(What::Flow(id));
                    self.begin(now, out.rank, What::Flow(id), entropy);
                }
            }
        }
    }

    /// There was no answer, or none that is one.
    fn failed(&mut self, now: Instant, out: Exchange) {
        self.failures += 1;
        let since = *self.failing_since.get_or_insert(out.began);
        let wait = (FIRST_WAIT * 2_u32.saturating_pow(self.failures - 1)).min(LAST_WAIT);
        self.resume = (now + wait, now + FIRST_WAIT.min(wait));
        if let What::Flow(id) | What::Look(id) = out.what
            && let Some(flow) = self.flows.get_mut(&id)
        {
            // Nobody knows what it has done.
            flow.looked = Looked::No;
            let patient = self.failures > 3;
            self.line.join(if patient { Rank::AfterOthers } else { out.rank.after_others() }, out.what);
        }
        if self.failures >= SILENT_AFTER && now - since >= SILENT_FOR && self.answering != Some(false) {
            self.answering = Some(false);
            self.outputs.push_back(Output::Silent);
        }
    }

    pub(super) fn heard(&mut self, now: Instant) {
        self.last_heard = Some(now);
        self.failures = 0;
        self.failing_since = None;
        self.resume = (now, now);
        if self.answering == Some(false) {
            self.look_at_all(now); // it may have started anew
        }
        if self.answering != Some(true) {
            self.answering = Some(true);
            self.outputs.push_back(Output::Answering);
        }
    }

    /// Nothing of what is out is waited for any more; it is asked again when it can be.
    pub(super) fn stop_waiting(&mut self) {
        if let Some(out) = self.out.take() {
            self.timers.cancel(Alarm::Due);
            if let What::Flow(id) | What::Look(id) = out.what
                && let Some(flow) = self.flows.get_mut(&id)
            {
                flow.looked = Looked::No;
                self.line.join(out.rank, out.what);
            }
        }
    }

    /// An answer to a knock: it speaks PCP now, or at least NAT-PMP.
    pub(super) fn on_datagram(&mut self, bytes: &[u8]) {
        let protocol = if pcp::Response::parse(bytes).is_ok() {
            UplinkProtocol::Pcp
        } else if let Ok(natpmp::Response::UnsupportedVersion { .. }) = natpmp::Response::parse(bytes) {
            UplinkProtocol::NatPmp
        } else {
            self.ignored += 1;
            return;
        };
        self.outputs.push_back(Output::Speaks(protocol));
    }

    pub(super) fn on_address(&mut self, addr: Option<Ipv4Addr>) {
        if self.told == Some(addr) {
            return;
        }
        self.told = Some(addr);
        let addr = addr.filter(|&addr| is_usable_external(addr));
        let behind = addr.filter(|&addr| is_behind_nat(addr));
        self.external = addr.filter(|_| behind.is_none());
        self.outputs.push_back(match behind {
            Some(addr) => Output::NatAbove(addr),
            None => Output::External(self.external),
        });
        let Some(external) = self.external else { return };
        let mut asking = Vec::new();
        for (&id, flow) in &mut self.flows {
            match (flow.phase, &mut flow.grant) {
                (Phase::Held { .. }, Some(grant)) if grant.external.ip() != external => {
                    grant.external.set_ip(external.into());
                    self.outputs.push_back(Output::Granted(id, *grant));
                    self.line.join(Rank::in_turn(flow.used_at), What::Look(id));
                }
                (Phase::Asking, grant) => {
                    if let Some(grant) = grant {
                        grant.external.set_ip(external.into());
                    }
                    asking.push(id);
                }
                _ => {}
            }
        }
        for id in asking {
            self.ask_in_turn(id);
        }
    }

    /// The connection, or the router, is younger than it can be, or than the last look at it.
    fn on_uptime(&mut self, now: Instant, uptime: Option<u32>) {
        let before = std::mem::replace(&mut self.uptime, uptime.map(|uptime| (now, uptime)));
        let (Some((then, before)), Some(uptime)) = (before, uptime) else { return };
        let passed = (now - then).as_secs();
        let went_back = u64::from(uptime) + 2 < u64::from(before) + passed * 7 / 8;
        let began_since = u64::from(uptime) <= passed + 2;
        // Some never count it.
        if uptime != before && (went_back || began_since) {
            self.knock(now); // it may be another program now
            self.line.join(Rank::Address, What::Address);
            self.look_at_all(now);
        }
    }

    fn seen(&mut self, id: FlowId, told: &Told) -> Seen {
        let Some(flow) = self.flows.get(&id) else { return Seen::Unknown };
        let entry = match told {
            Ok(answer) => Entry::read(answer),
            Err(714 | 713) => return Seen::Gone,
            Err(_) => return Seen::Unknown,
        };
        let Ok(entry) = entry else {
            self.ignored += 1;
            return Seen::Unknown;
        };
        match entry.internal_client.parse::<Ipv4Addr>() {
            Ok(client) if client != self.source => Seen::Foreign,
            Ok(_) if entry.internal_port == flow.want.internal_port && entry.enabled => {
                Seen::Ours(entry.lease)
            }
            Ok(_) => Seen::Otherwise,
            Err(_) => Seen::Unknown, // a name, which says nothing
        }
    }

    /// A mapping that stands was looked at.
    fn on_look(&mut self, now: Instant, id: FlowId, told: &Told, entropy: &mut dyn Entropy) {
        let seen = self.seen(id, told);
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let Phase::Held { .. } = flow.phase else { return };
        flow.seen_at = now;
        match seen {
            Seen::Ours(lease) => {
                flow.vanished = 0;
                flow.permanent = lease == 0;
                if lease != 0 && flow.shorten(now, lease) {
                    self.schedule_renewal(now, id, entropy);
                }
            }
            Seen::Unknown => {}
            Seen::Gone | Seen::Foreign | Seen::Otherwise => {
                flow.vanished += 1;
                if flow.vanished >= MOST_VANISHED {
                    // It says that it maps, and does not.
                    self.remove(id);
                    self.outputs.push_back(Output::Lost(id));
                } else {
                    self.lose_state(now, None, entropy);
                }
            }
        }
    }

    /// The router has forgotten what it gave, perhaps all of it; `known` is asked for already.
    fn lose_state(&mut self, now: Instant, known: Option<FlowId>, entropy: &mut dyn Entropy) {
        let (start, another) = self.recoveries.begin(now);
        self.recover(now, start, known, entropy);
        if another {
            self.outputs.push_back(Output::StateLost);
            self.line.join(Rank::Address, What::Address);
            self.knock(now);
        }
    }

    /// The entry was looked at before something is done with it; whether that is done now.
    fn on_looked(&mut self, now: Instant, id: FlowId, told: &Told, entropy: &mut dyn Entropy) -> bool {
        let seen = self.seen(id, told);
        let Some(flow) = self.flows.get_mut(&id) else { return false };
        flow.looked = match seen {
            Seen::Ours(_) | Seen::Otherwise => Looked::Ours,
            _ => Looked::Free,
        };
        if flow.is_deleting() {
            let no_more = match seen {
                // Somebody else's is none of ours any more,
                Seen::Gone | Seen::Foreign => true,
                // and what ends by itself was made in the other protocol, where the router has one list for both.
                Seen::Ours(lease) => self.leaving && lease != 0,
                Seen::Otherwise => self.leaving,
                Seen::Unknown => false,
            };
            if no_more {
                self.remove(id);
                if !self.leaving {
                    self.outputs.push_back(Output::Deleted(id));
                }
                return false;
            }
            return true;
        }
        if let (Seen::Gone, Phase::Held { .. }) = (seen, flow.phase) {
            self.lose_state(now, Some(id), entropy);
        } else if seen == Seen::Foreign {
            return self.on_taken(now, id, entropy);
        }
        true
    }

    /// Another host has the port.
    fn on_taken(&mut self, now: Instant, id: FlowId, entropy: &mut dyn Entropy) -> bool {
        let Some(flow) = self.flows.get_mut(&id) else { return false };
        let had = flow.grant.take().is_some();
        if flow.takes_any() {
            flow.phase = Phase::Asking;
            self.timers.cancel(Alarm::Flow(id));
            if self.another_port(id, entropy) {
                return true;
            }
        }
        if had {
            self.remove(id);
            self.outputs.push_back(Output::Lost(id));
        } else {
            self.refuse(now, id, ResultCode::CANNOT_PROVIDE_EXTERNAL, entropy);
        }
        false
    }

    fn on_added(
        &mut self,
        now: Instant,
        id: FlowId,
        port: u16,
        lease: u32,
        entropy: &mut dyn Entropy,
    ) -> bool {
        let Some(flow) = self.flows.get(&id) else { return false };
        if flow.port != port {
            if self.by_port.contains_key(&(flow.want.protocol, port)) {
                // It has given one mapping of ours for another.
                self.ignored += 1;
                self.refuse(now, id, ResultCode::NETWORK_FAILURE, entropy);
                return false;
            }
            self.take_port(id, port);
        }
        let external = self.external;
        let Some(flow) = self.flows.get_mut(&id) else { return false };
        flow.unanswered = false;
        flow.permanent = lease == 0;
        flow.seen_at = now;
        flow.phase = Phase::Held { attempts: 0 };
        // What has no end there has one here.
        let seconds = if lease == 0 { lifetime_to_ask(now, &flow.want.terms).min(LEASE) } else { lease };
        let grant = Grant {
            external: (external.unwrap_or(Ipv4Addr::UNSPECIFIED), port).into(),
            lifetime: Duration::from_secs(seconds.into()),
            since: now,
        };
        flow.grant = Some(grant);
        flow.want.urgent = false;
        self.leave_line(id);
        if external.is_none() {
            // The address went while the mapping came.
            self.outputs.push_back(Output::Refused(id, ResultCode::NETWORK_FAILURE, ERROR_LIFETIME));
            if self.begin_delete(now, id) {
                self.line.join(Rank::Delete, What::Flow(id));
            }
            return false;
        }
        self.schedule_renewal(now, id, entropy);
        self.outputs.push_back(Output::Granted(id, grant));
        // Is it true, and for how long?
        self.line.join(Rank::Renewal, What::Look(id));
        false
    }

    /// AddPortMapping is refused; whether there is another way.
    fn on_refused(
        &mut self,
        now: Instant,
        id: FlowId,
        lease: u32,
        code: u16,
        entropy: &mut dyn Entropy,
    ) -> bool {
        let one = self.connection.version == 1;
        let Some(flow) = self.flows.get_mut(&id) else { return false };
        flow.unanswered = false;
        let conflict =
            code == UpnpError::CONFLICT.code || code == UpnpError::CONFLICT_WITH_OTHER_MECHANISMS.code;
        if code == UpnpError::ONLY_PERMANENT_LEASES.code && lease != 0 && one {
            self.only_permanent = true;
            return true;
        }
        // So do some that mean the same.
        if code == UpnpError::INVALID_ARGS.code && lease != 0 && one && !flow.tried_permanent {
            (flow.tried_permanent, flow.permanent) = (true, true);
            return true;
        }
        if conflict && flow.looked == Looked::Ours {
            flow.looked = Looked::ToClear;
            return true;
        }
        if code == UpnpError::SAME_PORT_REQUIRED.code
            && flow.takes_any()
            && flow.port != flow.want.internal_port
            && !self.by_port.contains_key(&(flow.want.protocol, flow.want.internal_port))
        {
            let port = flow.want.internal_port;
            self.take_port(id, port);
            return true;
        }
        if conflict && flow.takes_any() && !flow.lasts(now) && self.another_port(id, entropy) {
            return true;
        }
        self.refuse(now, id, result(code), entropy);
        false
    }

    /// AddAnyPortMapping is refused; whether there is another way.
    fn on_any_refused(&mut self, now: Instant, id: FlowId, code: u16, entropy: &mut dyn Entropy) -> bool {
        let unknown = [UpnpError::INVALID_ACTION, UpnpError::INVALID_ARGS, UpnpError::NOT_IMPLEMENTED];
        if unknown.iter().any(|error| error.code == code) {
            self.lacks_any = true;
            return true;
        }
        let conflict =
            code == UpnpError::CONFLICT.code || code == UpnpError::CONFLICT_WITH_OTHER_MECHANISMS.code;
        if conflict && self.another_port(id, entropy) {
            return true;
        }
        self.refuse(now, id, result(code), entropy);
        false
    }

    /// Whoever waits hears that it cannot be had. What stands is kept, and asked for again later.
    pub(super) fn refuse(&mut self, now: Instant, id: FlowId, result: ResultCode, entropy: &mut dyn Entropy) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.want.urgent = false;
        if flow.lasts(now) {
            if flow.phase == Phase::Asking {
                flow.begin(Phase::Held { attempts: 0 });
                self.schedule_renewal(now, id, entropy);
            }
            self.outputs.push_back(Output::RenewalRefused(id, result));
        } else {
            self.remove(id);
            self.outputs.push_back(Output::Refused(id, result, ERROR_LIFETIME));
        }
    }

    fn on_deleted(&mut self, now: Instant, id: FlowId, told: &Told, entropy: &mut dyn Entropy) -> bool {
        let Some(flow) = self.flows.get_mut(&id) else { return false };
        let refused = told.as_ref().err().copied().filter(|&code| code != UpnpError::NO_SUCH_ENTRY.code);
        match (flow.is_deleting(), refused) {
            (false, None) => {
                flow.looked = Looked::Cleared;
                return true;
            }
            (false, Some(code)) => self.refuse(now, id, result(code), entropy),
            (true, Some(code)) if flow.lasts(now) => {
                flow.begin(Phase::Held { attempts: 0 });
                self.schedule_renewal(now, id, entropy);
                self.outputs.push_back(Output::DeleteRefused(id, result(code)));
            }
            (true, _) => {
                self.remove(id);
                self.outputs.push_back(Output::Deleted(id));
            }
        }
        false
    }
}
