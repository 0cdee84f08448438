//! What survives a crash: written as it happens, taken up again at the next start (decisions 16 and 17,
//! D-2, D-9; R-44 asks for less).

use super::external::{DISCARD, probe_want};
use super::own_nat::{NatPurpose, outermost};
use super::{Effect, Gateway, NatMode};
use crate::journal::{Record, StoredMapping, StoredNonce};
use crate::nat::NatChange;
use crate::notice::{Cause, Notice};
use crate::table::{Health, Key, Mapping};
use crate::time::{Duration, Instant};
use crate::uplink::{Filtered, Filters, FlowId, Want, derived_nonce};

/// A server keeps no mapping longer without a renewal; a stored one that it does not confirm in this time is gone.
pub(super) const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// What was stored and waits for the first PCP server.
#[derive(Debug, Default)]
pub(super) struct Restored {
    /// There are mappings among it.
    pub(super) any: bool,
    pub(super) nonces: Vec<(Want, StoredNonce)>,
    pub(super) filters: Filters,
    /// What is wanted no more, and the server has not been told.
    pub(super) unwanted: Vec<(FlowId, Want)>,
}

impl Gateway {
    /// Every stored mapping stands again at once, here and in this router's own NAT; the provider is asked as soon as
    /// there is a way to it, and until it answers they count as degraded.
    pub(super) fn on_restore(
        &mut self,
        now: Instant,
        mappings: Vec<StoredMapping>,
        probe: Option<StoredNonce>,
        filtered: Vec<Filtered>,
    ) {
        let (firewall, nat): (Vec<Filtered>, Vec<Filtered>) =
            filtered.into_iter().partition(|one| one.third_party.is_some_and(|host| host.is_ipv6()));
        self.restored.filters = Filters::restored(nat);
        self.pinholes.provider.filters = Filters::restored(firewall);
        self.probe.restore(probe.clone());
        if let Some(nonce) = probe {
            self.restored.nonces.push((probe_want(DISCARD), nonce));
        }
        // They come the newest first, which is the order in which they are asked for again.
        let mut rules = Vec::new();
        for (older, stored) in (0..mappings.len()).rev().zip(mappings) {
            let asked_at = Instant::from_millis(u64::try_from(older).unwrap_or(u64::MAX));
            rules.extend(self.restore(now, stored, asked_at));
        }
        // The oldest first: where several lead to one port of a host, that is the one that its own packets leave by. Before stores
        // told which that is, it was the one that was stored first.
        rules.reverse();
        rules.sort_by_key(|&(made, ..)| made);
        for (_, install, flow) in rules {
            self.change_nat(install, NatPurpose::Reinstall(flow));
        }
        if !self.table.is_empty() {
            self.notice(Notice::Restored(self.table.len()));
        }
    }

    fn restore(
        &mut self,
        now: Instant,
        stored: StoredMapping,
        asked_at: Instant,
    ) -> Option<(u64, NatChange, FlowId)> {
        let key = Key { protocol: stored.protocol, external_port: stored.external.port() };
        // Another deployment than before, or a store that somebody edited: not ours to keep.
        let fits =
            (self.config.nat == NatMode::Own) == stored.nat_port.is_some() && self.table.find(key).is_none();
        let flow = self.new_flow();
        let claimed =
            fits && stored.nat_port.is_none_or(|port| self.nat_ports.claim(stored.protocol, port, flow));
        if !claimed {
            self.effects.push_back(Effect::Store(Record::Remove(key.protocol, key.external_port)));
            return None;
        }
        let mapping = Mapping {
            protocol: stored.protocol,
            external: stored.external,
            internal: stored.internal,
            nat_port: stored.nat_port,
            remote_peer: stored.remote_peer,
            remote_name: stored.remote_name,
            description: stored.description,
            strict: stored.strict,
            created: now,
            made: stored.made,
            asked_at,
            claims: stored.claims.from_now(now),
            lifetime_ends: now + LONGEST,
            health: Health::Degraded,
            confirmed: false,
            flow,
        };
        self.made = self.made.max(stored.made);
        self.restored.any = true;
        self.restored.nonces.push((self.want_to_keep(&mapping), stored.nonce));
        self.set_lease_alarm(&mapping);
        self.table.insert(mapping.clone());
        let rule = self.rule(&mapping)?;
        Some((mapping.made, NatChange::Install { rule, external: outermost(&mapping) }, flow))
    }

    /// This mapping has to survive from now on.
    pub(super) fn store(&mut self, now: Instant, mapping: &Mapping) {
        if let Some(stored) = self.stored(now, mapping) {
            self.effects.push_back(Effect::Store(Record::Put(stored)));
        }
    }

    /// It has another external port from now on than this one.
    pub(super) fn store_moved(&mut self, now: Instant, mapping: &Mapping, before: u16) {
        if let Some(stored) = self.stored(now, mapping) {
            self.effects.push_back(Effect::Store(Record::Move(before, stored)));
        }
    }

    fn stored(&self, now: Instant, mapping: &Mapping) -> Option<StoredMapping> {
        let want = self.want_to_keep(mapping);
        let nonce = match &self.uplink {
            Some(client) => {
                let known = client.nonce(mapping.flow).or_else(|| client.remembered(&want));
                // What a PCP server there would know it by, were it asked.
                let derived = derived_nonce(&self.identity(client.server()), &want, &*self.entropy);
                let of_others = self.nonces_elsewhere.iter().find(|(other, _)| is_same_client(other, &want));
                match of_others {
                    // That can be derived again; the other one may have come with an orphan.
                    Some((_, other)) if known.is_none_or(|known| known == derived) => other.clone(),
                    _ => StoredNonce { nonce: known.unwrap_or(derived), wan: Some(self.uplink_on.clone()) },
                }
            }
            // Before the first PCP server is known, the nonce is still where it was restored to.
            None => {
                let mut nonces = self.restored.nonces.iter();
                let restored = nonces.find(|(other, _)| is_same_client(other, &want));
                restored?.1.clone()
            }
        };
        Some(StoredMapping {
            protocol: mapping.protocol,
            external: mapping.external,
            internal: mapping.internal,
            nat_port: mapping.nat_port,
            remote_peer: mapping.remote_peer,
            remote_name: mapping.remote_name.clone(),
            description: mapping.description.clone(),
            strict: mapping.strict,
            claims: mapping.claims.left(now),
            made: mapping.made,
            nonce,
        })
    }

    /// What has just come to stand could not be stored, so its control point was not told of it: it goes.
    pub(super) fn on_store_failed(&mut self, now: Instant, error: String, stood: Vec<FlowId>) {
        if self.store_error.replace(error.clone()).is_none() {
            self.notice(Notice::StoreFailed(error));
        }
        for flow in stood {
            if let Some(key) = self.table.find_flow(flow).map(Mapping::key) {
                self.drop_mapping(now, key, Cause::NotStored);
            }
        }
    }

    pub(super) fn on_store_works(&mut self) {
        if self.store_error.take().is_some() {
            self.notice(Notice::StoreWorks);
        }
    }

    /// This mapping must not come back.
    pub(super) fn unstore(&mut self, mapping: &Mapping) {
        let key = mapping.key();
        self.effects.push_back(Effect::Store(Record::Remove(key.protocol, key.external_port)));
    }

    /// Written when it is another one than before, which is once.
    pub(super) fn store_probe(&mut self) {
        if let Some(nonce) = self.new_probe_nonce() {
            self.effects.push_back(Effect::Store(Record::Probe(nonce)));
        }
    }
}

fn is_same_client(one: &Want, other: &Want) -> bool {
    (one.third_party, one.protocol, one.internal_port)
        == (other.third_party, other.protocol, other.internal_port)
}
