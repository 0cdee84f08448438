//! Control points that wait for an answer: each hears exactly one, in the form of what it asked, and in time.

use std::net::{IpAddr, SocketAddrV4};

use wire::error::UpnpError;
use wire::services::Value;
use wire::soap::Call;

use super::lan::Question;
use super::pending::Purpose;
use super::{Alarm, Effect, Gateway, RequestId};
use crate::igd::{Asked, upnp_error};
use crate::notice::Notice;
use crate::request::{MappingRequest, Refusal};
use crate::time::{Duration, Instant};

/// How long an exchange goes on when nobody waits for it any more (decision 1).
pub(super) const BACKGROUND: Duration = Duration::from_secs(20);

/// What was said, which the answer's form follows.
#[derive(Debug)]
pub(super) enum Form {
    /// By a control point.
    Upnp(Call),
    /// By a PCP or NAT-PMP client.
    Lan(Box<Question>),
}

/// Somebody who waits for an answer.
#[derive(Debug)]
pub(super) struct Waiter {
    /// See there.
    pub form: Form,
    /// What for, when it comes to errors.
    pub asked: Asked,
}

impl Gateway {
    /// A control point waits for the answer to `call` from now on.
    pub(super) fn wait(&mut self, now: Instant, id: RequestId, call: Call, asked: Asked) {
        self.waiting.insert(id, Waiter { form: Form::Upnp(call), asked });
        self.timers.set(Alarm::Patience(id), now + self.config.answer_within);
    }

    /// A control point has waited as long as it can: 501 (R-7, T-7, decision 21, D-1). What it asked for goes on without it.
    pub(super) fn on_patience_over(&mut self, now: Instant, id: RequestId) {
        if self.on_pinhole_patience_over(now, id) {
            return;
        }
        let deferred = self.undefer(id);
        let lan = self.waiting.get(&id).is_some_and(|waiter| matches!(waiter.form, Form::Lan(_)));
        let pending = self.pending.iter_mut().find(|(_, pending)| pending.waiters.contains(&id));
        match pending {
            Some((&flow, pending)) => {
                pending.waiters.retain(|&waiter| waiter != id);
                let (from, request) = (pending.from(), pending.request.clone());
                let told = pending.purpose == Purpose::Add && !lan;
                if pending.waiters.is_empty() && pending.purpose != Purpose::Restore {
                    self.timers.set(Alarm::Background(flow), now + BACKGROUND);
                }
                if told {
                    self.notice_refusal(from, &request, Refusal::NoAnswer);
                }
                if lan { self.on_lan_patience_over(id) } else { self.refuse(id, Refusal::NoAnswer) }
            }
            None if lan => {
                self.end_deletion(id);
                self.on_lan_patience_over(id);
            }
            None if deferred => self.refuse(id, Refusal::NoAnswer),
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
        let lan = |waiter: &Waiter| matches!(waiter.form, Form::Lan(_));
        if self.waiting.get(&id).is_some_and(lan) {
            self.timers.cancel(Alarm::Patience(id));
            if let Some(Waiter { form: Form::Lan(question), .. }) = self.waiting.remove(&id) {
                self.answer_mapped(&question, external);
            }
            return;
        }
        self.answer(id, &[Value::Number(u32::from(external.port()))]);
    }

    /// It waits no more, and its answer is the caller's.
    pub(super) fn take_waiter(&mut self, id: RequestId) -> Option<Waiter> {
        self.timers.cancel(Alarm::Patience(id));
        self.waiting.remove(&id)
    }

    /// Answers with as many of `values` as the action has out arguments.
    pub(super) fn answer(&mut self, id: RequestId, values: &[Value]) {
        self.timers.cancel(Alarm::Patience(id));
        match self.waiting.remove(&id).map(|waiter| waiter.form) {
            Some(Form::Upnp(call)) => {
                let values = &values[..call.action.outputs.len().min(values.len())];
                let answer = Ok(call.response(values));
                self.effects.push_back(Effect::Reply { request: id, answer });
            }
            Some(Form::Lan(question)) => self.answer_let_go(&question),
            None => {}
        }
    }

    pub(super) fn refuse(&mut self, id: RequestId, refusal: Refusal) {
        let Some(Waiter { form, asked }) = self.waiting.get(&id) else { return };
        match form {
            Form::Upnp(call) => {
                let error = upnp_error(refusal, *asked, call.version);
                self.answer_error(id, error);
            }
            Form::Lan(_) => {
                self.timers.cancel(Alarm::Patience(id));
                if let Some(Waiter { form: Form::Lan(question), .. }) = self.waiting.remove(&id) {
                    self.refuse_question(&question, refusal);
                }
            }
        }
    }

    /// Whether a PCP or NAT-PMP client waits there.
    pub(super) fn is_of_lan_client(&self, id: RequestId) -> bool {
        self.waiting.get(&id).is_some_and(|waiter| matches!(waiter.form, Form::Lan(_)))
    }

    /// Nothing has come of it in time: a control point hears that, a PCP client asks again.
    pub(super) fn refuse_or_forget(&mut self, id: RequestId) {
        if self.is_of_lan_client(id) {
            self.forget_question(id);
        } else {
            self.refuse(id, Refusal::NoAnswer);
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
