//! Control points that wait for an answer: each hears exactly one, in the form of what it asked, and in time.

use std::net::{IpAddr, SocketAddrV4};

use wire::error::UpnpError;
use wire::services::Value;
use wire::soap::Call;

use super::pending::Purpose;
use super::{Alarm, Effect, Gateway, RequestId};
use crate::igd::{Asked, upnp_error};
use crate::notice::Notice;
use crate::request::{MappingRequest, Refusal};
use crate::time::{Duration, Instant};

/// How long an exchange goes on when nobody waits for it any more (decision 1).
pub(super) const BACKGROUND: Duration = Duration::from_secs(20);

/// A control point that waits for its answer.
#[derive(Debug)]
pub(super) struct Waiter {
    /// What it said, which the answer's form follows.
    pub call: Call,
    /// What for, when it comes to errors.
    pub asked: Asked,
}

impl Gateway {
    /// A control point waits for the answer to `call` from now on.
    pub(super) fn wait(&mut self, now: Instant, id: RequestId, call: Call, asked: Asked) {
        self.waiting.insert(id, Waiter { call, asked });
        self.timers.set(Alarm::Patience(id), now + self.config.answer_within);
    }

    /// A control point has waited as long as it can: 501 (R-7, T-7, decision 21, D-1). What it asked for goes on without it.
    pub(super) fn on_patience_over(&mut self, now: Instant, id: RequestId) {
        let pending = self.pending.iter_mut().find(|(_, pending)| pending.waiters.contains(&id));
        match pending {
            Some((&flow, pending)) => {
                pending.waiters.retain(|&waiter| waiter != id);
                let (from, request) = (pending.from, pending.request.clone());
                let told = pending.purpose == Purpose::Add;
                if pending.waiters.is_empty() && pending.purpose != Purpose::Restore {
                    self.timers.set(Alarm::Background(flow), now + BACKGROUND);
                }
                if told {
                    self.notice_refusal(from, &request, Refusal::NoAnswer);
                }
                self.refuse(id, Refusal::NoAnswer);
            }
            None if self.counting.contains_key(&id) => self.on_counters(id, None),
            None => {
                self.end_deletion(id);
                self.refuse(id, Refusal::NoAnswer);
            }
        }
    }

    /// AddPortMapping hears nothing but success, AddAnyPortMapping its port; and who had only asked about the port, that
    /// it was free.
    pub(super) fn answer_added(&mut self, id: RequestId, external: SocketAddrV4) {
        if self.waiting.get(&id).is_some_and(|waiter| waiter.asked == Asked::Specific) {
            return self.refuse(id, Refusal::NoSuchEntry);
        }
        self.answer(id, &[Value::Number(u32::from(external.port()))]);
    }

    /// Answers with as many of `values` as the action has out arguments.
    pub(super) fn answer(&mut self, id: RequestId, values: &[Value]) {
        self.timers.cancel(Alarm::Patience(id));
        if let Some(waiter) = self.waiting.remove(&id) {
            let values = &values[..waiter.call.action.outputs.len().min(values.len())];
            let answer = Ok(waiter.call.response(values));
            self.effects.push_back(Effect::Reply { request: id, answer });
        }
    }

    pub(super) fn refuse(&mut self, id: RequestId, refusal: Refusal) {
        if let Some(waiter) = self.waiting.get(&id) {
            let error = upnp_error(refusal, waiter.asked, waiter.call.version);
            self.answer_error(id, error);
        }
    }

    pub(super) fn refuse_request(
        &mut self,
        id: RequestId,
        from: IpAddr,
        request: &MappingRequest,
        refusal: Refusal,
    ) {
        self.notice_refusal(from, request, refusal);
        self.refuse(id, refusal);
    }

    pub(super) fn notice_refusal(&mut self, from: IpAddr, request: &MappingRequest, refusal: Refusal) {
        let MappingRequest { protocol, external_port, internal, .. } = *request;
        self.notice(Notice::Refused(from, protocol, external_port, internal, refusal));
    }

    pub(super) fn answer_error(&mut self, id: RequestId, error: UpnpError) {
        self.timers.cancel(Alarm::Patience(id));
        if self.waiting.remove(&id).is_some() {
            self.effects.push_back(Effect::Reply { request: id, answer: Err(error) });
        }
    }
}
