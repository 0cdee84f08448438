//! What LAN hosts have by a protocol that is served no more goes (security policy), here and at the provider, unless they count on it by
//! another one.

use super::super::waiting::Form;
use super::super::{Config, Gateway, RequestId};
use super::What;
use crate::claims::{Asker, Claims};
use crate::notice::{Cause, PinholeEnd};
use crate::request::{MappingRequest, Refusal};
use crate::table::{Health, Key};
use crate::time::Instant;
use crate::uplink::FlowId;

impl Gateway {
    /// Lets go all claims of the protocols that are switched off; nothing where there are none.
    pub(in super::super) fn let_go_switched_off(&mut self, now: Instant) {
        if self.config.pcp && self.config.nat_pmp {
            return;
        }
        self.refuse_switched_off(now);
        if !self.config.pcp {
            self.drop_peers(None, Refusal::Released, false);
        }
        let claimed = self.table.iter().filter(|mapping| mapping.health != Health::Deleting);
        let claimed = claimed.map(|mapping| {
            let off: Vec<Asker> = claims_of_off(&self.config, mapping.claims).collect();
            let mut left = mapping.claims.at(now);
            off.iter().for_each(|&asker| left.give_up(asker));
            (mapping.key(), off, left == Claims::default())
        });
        let claimed = claimed.filter(|(_, off, _)| !off.is_empty());
        for (key, off, goes) in claimed.collect::<Vec<(Key, Vec<Asker>, bool)>>() {
            if goes {
                self.drop_mapping(now, key, Cause::ProtocolOff); // whole, so that its PCP client is told
            } else {
                off.into_iter().for_each(|asker| self.give_up_claim(now, key, asker));
            }
        }
        let claimed = self.all_pinholes().flat_map(|pinhole| {
            claims_of_off(&self.config, pinhole.claims).map(move |asker| (pinhole.id, asker))
        });
        for (id, asker) in claimed.collect::<Vec<(u16, Asker)>>() {
            self.let_pinhole_go(now, id, asker, PinholeEnd::ProtocolOff);
        }
    }

    /// Nothing comes of what is on its way. Who waits for a delete hears of it all the same.
    fn refuse_switched_off(&mut self, now: Instant) {
        let config = self.config.clone();
        let is_off = |request: &MappingRequest| is_off(&config, request.by);
        let wanted = self.pending.iter().filter(|(_, pending)| is_off(&pending.request));
        for flow in wanted.map(|(&flow, _)| flow).collect::<Vec<FlowId>>() {
            self.fail(now, flow, Refusal::Released);
        }
        self.lan_server.deferred.retain(|_, (.., request)| !is_off(request));
        let waits = self.waiting.iter().filter(|(_, waiter)| match &waiter.form {
            Form::Lan(question) => match &question.what {
                What::Map(map) => !config.pcp && map.lifetime() > 0,
                What::Peer(_) => !config.pcp,
                What::NatPmp(asked) => !config.nat_pmp && asked.lifetime() > 0,
            },
            Form::Upnp(_) => false,
        });
        for id in waits.map(|(&id, _)| id).collect::<Vec<RequestId>>() {
            self.waits_no_more_for_pinhole(now, id);
            self.refuse(id, Refusal::Released);
        }
    }
}

fn is_off(config: &Config, asker: Asker) -> bool {
    match asker {
        Asker::Igd => false,
        Asker::Pcp(_) | Asker::Peer(_) => !config.pcp,
        Asker::NatPmp => !config.nat_pmp,
    }
}

/// Those of the protocols that are switched off.
fn claims_of_off(config: &Config, claims: Claims<Instant>) -> impl Iterator<Item = Asker> {
    let all = [
        claims.pcp.map(|claim| Asker::Pcp(claim.nonce)),
        claims.peer.map(|claim| Asker::Peer(claim.nonce)),
        claims.nat_pmp.map(|_| Asker::NatPmp),
    ];
    all.into_iter().flatten().filter(|&asker| is_off(config, asker))
}
