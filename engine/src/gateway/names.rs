//! Host names in arguments: WANIPConnection:2 allows them for RemoteHost, and for InternalClient. They are looked up by
//! the caller, beside the loop; a remote host's again whenever its mapping is renewed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use wire::error::UpnpError;

use super::own_nat::NatPurpose;
use super::{Effect, Gateway, RequestId};
use crate::igd::AddRequest;
use crate::nat::NatRule;
use crate::notice::Notice;
use crate::policy::{Denied, Requester, is_usable_external};
use crate::request::{MappingRequest, Refusal};
use crate::table::{Health, Mapping};
use crate::time::Instant;
use crate::uplink::{FlowId, Input, RemotePeer};

/// Look-ups on their way, of one host and in all.
const MOST_OF_ONE_HOST: usize = 4;
const MOST: usize = 64;

/// Handle of a name that is being looked up.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct LookupId(pub u64);

/// What a look-up is for.
#[derive(Debug)]
enum Purpose {
    /// The InternalClient of a request.
    Internal { id: RequestId, who: Requester, add: AddRequest },
    /// Its RemoteHost.
    Remote { id: RequestId, who: Requester, request: MappingRequest },
    /// The remote host of a mapping that stands.
    Again(FlowId),
}

/// Names that are being looked up.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    pending: BTreeMap<LookupId, Purpose>,
    next: u64,
    /// Mappings whose remote host has moved, which the provider has not confirmed.
    following: BTreeSet<FlowId>,
}

impl Lookups {
    /// There is no such mapping any more.
    pub(super) fn forget(&mut self, flow: FlowId) {
        self.following.remove(&flow);
    }

    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }
}

impl Gateway {
    /// AddPortMapping or AddAnyPortMapping, whose names, if there are any, are looked up first.
    pub(super) fn add_by_names(&mut self, now: Instant, id: RequestId, who: &Requester, add: AddRequest) {
        if who.addresses().is_empty() {
            // Nothing can be mapped to it (K-3), whatever a name comes out as: one host has many IPv6 addresses to ask from.
            self.add(now, id, who, add.request);
        } else if let Some(name) = add.internal_name.clone() {
            self.look_up(name, who, Purpose::Internal { id, who: who.clone(), add }, id);
        } else if let Some(name) = add.request.remote_name.clone() {
            let request = add.request;
            self.look_up(name, who, Purpose::Remote { id, who: who.clone(), request }, id);
        } else {
            self.add(now, id, who, add.request);
        }
    }

    fn look_up(&mut self, name: String, who: &Requester, purpose: Purpose, id: RequestId) {
        let of_host = |purpose: &&Purpose| match purpose {
            Purpose::Internal { who: other, .. } | Purpose::Remote { who: other, .. } => {
                other.is_same_host(who)
            }
            Purpose::Again(_) => false,
        };
        let held = self.lookups.pending.values().filter(of_host).count();
        if held >= MOST_OF_ONE_HOST || !self.start_lookup(name, purpose) {
            self.refuse(id, Refusal::NoAnswer);
        }
    }

    /// A host is gone: what it wanted by a name is wanted no more.
    pub(super) fn forget_lookups_of(&mut self, host: Ipv4Addr) {
        let mut waiting = Vec::new();
        self.lookups.pending.retain(|_, purpose| match purpose {
            Purpose::Internal { id, who, .. } | Purpose::Remote { id, who, .. } if who.is(host) => {
                waiting.push(*id);
                false
            }
            _ => true,
        });
        for id in waiting {
            self.refuse(id, Refusal::NoAnswer);
        }
    }

    /// Whether there was room for one more.
    fn start_lookup(&mut self, name: String, purpose: Purpose) -> bool {
        if self.lookups.pending.len() >= MOST {
            return false;
        }
        self.lookups.next += 1;
        let lookup = LookupId(self.lookups.next);
        self.lookups.pending.insert(lookup, purpose);
        self.effects.push_back(Effect::Resolve { lookup, name });
        true
    }

    pub(super) fn on_resolved(&mut self, now: Instant, lookup: LookupId, addresses: &[Ipv4Addr]) {
        match self.lookups.pending.remove(&lookup) {
            Some(Purpose::Internal { id, who, add }) if self.waiting.contains_key(&id) => {
                self.on_internal_client(now, id, &who, add, addresses);
            }
            Some(Purpose::Remote { id, who, request }) if self.waiting.contains_key(&id) => {
                match addresses.iter().copied().find(|&addr| is_usable_external(addr)) {
                    Some(peer) => {
                        self.add(now, id, &who, MappingRequest { remote_peer: Some(peer), ..request });
                    }
                    None => self.answer_error(id, UpnpError::INVALID_ARGS), // K-7
                }
            }
            Some(Purpose::Again(flow)) => self.on_remote_host(now, flow, addresses),
            // Whoever asked has been told 501.
            Some(_) | None => {}
        }
    }

    /// Security policy: the name must be the requester's own.
    fn on_internal_client(
        &mut self,
        now: Instant,
        id: RequestId,
        who: &Requester,
        add: AddRequest,
        addresses: &[Ipv4Addr],
    ) {
        let own = who.addresses().iter().copied().find(|host| addresses.contains(host));
        match (own, addresses.first()) {
            (Some(host), _) => {
                self.add_by_names(now, id, who, AddRequest { internal_name: None, ..add.to_host(host) });
            }
            (None, Some(&other)) => {
                let refusal = self.deny_mapping(now, who, &add.to_host(other).request, Denied::OtherHost);
                self.refuse(id, refusal);
            }
            (None, None) => self.answer_error(id, UpnpError::INVALID_ARGS),
        }
    }

    /// A mapping was renewed: its remote host may have another address by now; not where that was just the reason.
    pub(super) fn look_up_again(&mut self, mapping: &Mapping) {
        if self.lookups.following.remove(&mapping.flow) {
            return;
        }
        if let Some(name) = mapping.remote_name.clone() {
            // When there is no room it is done at the next renewal.
            self.start_lookup(name, Purpose::Again(mapping.flow));
        }
    }

    /// The remote host of a mapping has these addresses; when it is not at the one that is let in, it has moved.
    pub(super) fn on_remote_host(&mut self, now: Instant, flow: FlowId, addresses: &[Ipv4Addr]) {
        let Some(mapping) = self.table.find_flow(flow).cloned() else { return };
        let same = mapping.remote_peer.is_some_and(|peer| addresses.contains(&peer));
        let Some(peer) = addresses.iter().copied().find(|&addr| is_usable_external(addr)) else { return };
        if same || mapping.health == Health::Deleting || mapping.remote_name.is_none() {
            return;
        }
        // A name that is somewhere else each time costs its owner what it costs the provider; otherwise it is followed at the next renewal.
        let who = self.requester(IpAddr::V4(*mapping.internal.ip()), &[]);
        if self.takes_exchange(now, &who) {
            self.lookups.following.insert(flow);
            self.let_in(now, &mapping, Some(peer));
        }
    }

    /// A mapping lets in this remote host from now on, and nobody else; `None`: everybody.
    pub(super) fn let_in(&mut self, now: Instant, mapping: &Mapping, remote_peer: Option<Ipv4Addr>) {
        let flow = mapping.flow;
        match self.rule(mapping) {
            Some(old) => {
                let new = NatRule { remote_peer, ..old };
                self.repoint(flow, old, new, NatPurpose::Readmit { flow, old, new });
            }
            None => self.readmit(now, flow, remote_peer),
        }
    }

    /// The remote host of a mapping is somewhere else now.
    pub(super) fn readmit(&mut self, now: Instant, flow: FlowId, peer: Option<Ipv4Addr>) {
        let Some(key) = self.table.find_flow(flow).map(Mapping::key) else { return };
        self.table.update(key, |mapping| mapping.remote_peer = peer);
        let mapping = self.table.find(key).expect("found above").clone();
        self.input(now, Input::Filter(flow, RemotePeer::of(peer)));
        self.store(now, &mapping);
        self.notice(Notice::Readmitted(mapping));
    }
}
