//! `when_unreachable = "local"` (draft -00, 5.6; D-6, decision 21): nobody knows whether a flow comes from the Internet or
//! from nearer by, so while the provider's server is silent a control point gets what this router alone can give. The
//! server is asked all the while, and what it says when it answers is what happens to any mapping that stands.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::own_nat::NatPurpose;
use super::pending::{Purpose, Stage};
use super::{Alarm, Gateway, NatMode, WhenUnreachable};
use crate::nat::NatChange;
use crate::notice::Notice;
use crate::table::{Key, Mapping};
use crate::time::{Duration, Instant};
use crate::uplink::FlowId;

/// What the router's own NAT may take, so that the answer is there before the control point gives up.
pub(super) const KERNEL: Duration = Duration::from_millis(250);

impl Gateway {
    /// Whether a control point that asks now gets what this router alone can give.
    pub(super) fn is_unreachable(&self) -> bool {
        let silent = self.uplink.as_ref().and_then(|client| client.is_answering()) == Some(false);
        self.config.when_unreachable == WhenUnreachable::Local && silent
    }

    /// Whether only this router knows of a mapping, and cannot tell anybody.
    pub(super) fn is_local_only(&self, mapping: &Mapping) -> bool {
        !mapping.confirmed && mapping.external.ip().is_unspecified() && self.is_unreachable()
    }

    /// The server has just turned out to be silent: who waits for it gets what there is.
    pub(super) fn map_all_locally(&mut self) {
        for flow in self.pending.keys().copied().collect::<Vec<_>>() {
            self.map_locally(flow);
        }
    }

    /// What was just asked for gets what there is at once, when the server is known to be silent, or just before the control
    /// point loses its patience.
    pub(super) fn prepare_locally(&mut self, now: Instant, flow: FlowId) {
        if self.is_unreachable() {
            return self.map_locally(flow);
        }
        if self.config.when_unreachable == WhenUnreachable::Local
            && let Some(pending) = self.pending.get(&flow)
        {
            let left = (pending.answer_by - now).saturating_sub(KERNEL);
            self.timers.set(Alarm::Local(flow), now + left);
        }
    }

    /// Sets up the router's own NAT for a wanted mapping that the server does not answer for.
    pub(super) fn map_locally(&mut self, flow: FlowId) {
        if self.config.when_unreachable != WhenUnreachable::Local || self.config.nat != NatMode::Own {
            return;
        }
        let Some(pending) = self.pending.get(&flow) else { return };
        if pending.request.external_addr.is_some() {
            return; // nobody knows whether it is that one
        }
        let waited_for = pending.purpose == Purpose::Add && !pending.waiters.is_empty();
        let wish = pending.request.external_port.filter(|_| !pending.any_port);
        let (Some(external_port), Some(rule)) = (wish.or(pending.nat_port), pending.rule()) else { return };
        let key = Key { protocol: rule.protocol, external_port };
        if rule.port != external_port {
            return; // nobody would find it there
        }
        if self.judge_granted(pending, external_port).is_err() {
            return; // of any ports it is one that policy refuses; the provider may have another one
        }
        let free = self.table.find(key).is_none() && self.held.at(key).is_none();
        if pending.stage != Stage::Asking || !waited_for || !free {
            return;
        }
        let external = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, external_port);
        self.pending.get_mut(&flow).expect("found above").stage = Stage::Local(external);
        self.change_nat(NatChange::Install { rule, external: None }, NatPurpose::Install(flow));
    }

    /// The router's own NAT lets it in: into the table, in doubt until the server answers.
    pub(super) fn finish_locally(&mut self, now: Instant, flow: FlowId, external: SocketAddrV4) {
        if self.refuses_grant(now, flow, external.port()) {
            return;
        }
        let mapping = self.stand(now, flow, external, None);
        self.notice(Notice::MappedLocally(mapping));
    }
}
