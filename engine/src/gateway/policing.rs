//! Policy at work: who is who, what the owner has said, how often each may ask, what is counted; and what stands though policy says by now
//! that it may not. What is allowed [`policy`](crate::policy) alone says.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::pending::{Pending, Purpose};
use super::{Effect, Gateway, LanInterface, RequestId};
use crate::journal::Record;
use crate::limits::Limits;
use crate::notice::{Cause, Notice, PinholeEnd};
use crate::policy::{
    ByDefault, Consent, Consents, Counted, Decided, Denied, Device, HardwareAddress, Known, Policy, Ports,
    Refusals, Requester, Rule, Verb, Wish,
};
use crate::request::{MappingRequest, Refusal};
use crate::status::{ConsentStatus, PolicyStatus, RefusedStatus, WaitingStatus};
use crate::table::{Health, Key, Mapping};
use crate::time::Instant;
use crate::uplink::FlowId;

/// So many hosts are remembered as the neighbour table has shown them; those of which one has heard longest ago are forgotten first.
const MOST_KNOWN: usize = 1024;

/// As whom somebody is counted who wants an exchange.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum CountedAs {
    /// A host of its own.
    Device(Device),
    /// Whoever is on this LAN interface, speaks IPv6 and is known by no network card: all of them are one.
    Nobody(Option<u32>),
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Policing {
    consents: Consents,
    refusals: Refusals,
    exchanges: Limits<CountedAs>,
    known: BTreeMap<IpAddr, (u64, Known)>,
    heard: u64,
}

impl Policing {
    /// The rules, or what decides about them, are others.
    pub(super) fn on_reconfigure(&mut self, policy: &Policy) {
        self.refusals.keep_rules(|words| policy.rules.iter().any(|rule| rule.to_string() == words));
    }

    /// Who is looked up depends on the settings: what nobody looks up any more must not be believed for ever.
    pub(super) fn forget_known(&mut self) {
        self.known.clear();
    }

    fn known_of(&self, host: IpAddr) -> Known {
        self.known.get(&host.to_canonical()).map(|(_, known)| known.clone()).unwrap_or_default()
    }
}

impl Gateway {
    /// The neighbour table shows `host` like this, just before it asks for something; what it showed before counts no more.
    pub fn know(&mut self, host: IpAddr, known: Known) {
        let (host, policing) = (host.to_canonical(), &mut self.policing);
        if known == Known::default() {
            policing.known.remove(&host);
            return;
        }
        policing.heard += 1;
        policing.known.insert(host, (policing.heard, known));
        if policing.known.len() > MOST_KNOWN {
            let oldest = policing.known.iter().min_by_key(|(_, (heard, _))| *heard).map(|(&host, _)| host);
            if let Some(oldest) = oldest {
                policing.known.remove(&oldest);
            }
        }
    }

    /// Who asks from there.
    pub(super) fn requester(&self, from: IpAddr, also: &[IpAddr]) -> Requester {
        let known = self.policing.known_of(from);
        let all: Vec<IpAddr> = also.iter().chain(&known.also).copied().collect();
        Requester::new(from, &all).with_hardware(known.hardware)
    }

    /// The host that a request from there is for, and who asks for it, if that is another one.
    pub(super) fn host_of_request(&self, request: &MappingRequest, from: IpAddr) -> Requester {
        self.asked_for(IpAddr::V4(*request.internal.ip()), from)
    }

    /// The same of any host.
    pub(super) fn asked_for(&self, host: IpAddr, from: IpAddr) -> Requester {
        let who = self.requester(host, &[]);
        if who.has(from) {
            return who;
        }
        let asker = self.requester(from, &[]);
        if asker.has(host) { who } else { who.asked_for_by(asker) }
    }

    /// What the owner has said of it.
    pub(super) fn consent_of(&self, who: &Requester) -> Consent {
        match self.config.policy.default {
            ByDefault::Ask => self.policing.consents.of(who),
            ByDefault::Allow | ByDefault::Deny => Consent::Given,
        }
    }

    /// Policy has refused a request: it is counted, shown, and the refusal to answer with. `notice` is the line for the log.
    pub(super) fn deny(
        &mut self,
        now: Instant,
        who: &Requester,
        wish: Wish,
        denied: Denied,
        notice: Notice,
    ) -> Refusal {
        let words = |number: usize| {
            let rule = number.checked_sub(1).and_then(|place| self.config.policy.rules.get(place));
            rule.map(Rule::to_string).unwrap_or_default()
        };
        self.policing.refusals.count(now, Counted::of(denied, words), who.asker().source());
        if denied == Denied::AwaitsConsent && self.policing.consents.wait(now, who, wish) {
            self.notice(Notice::AwaitsConsent(who.device(), who.source()));
        }
        self.notice(notice);
        match denied {
            Denied::HostQuota(_) => Refusal::Quota,
            Denied::TableFull(_) => Refusal::Full,
            Denied::TooOften => Refusal::TooOften,
            _ => Refusal::NotAuthorized,
        }
    }

    /// The same for a mapping.
    pub(super) fn deny_mapping(
        &mut self,
        now: Instant,
        who: &Requester,
        request: &MappingRequest,
        denied: Denied,
    ) -> Refusal {
        let MappingRequest { protocol, external_port, internal, by, .. } = *request;
        let wish = Wish { protocol, internal: SocketAddr::V4(internal), external_port, by };
        let notice = Notice::Denied(who.asker().source(), protocol, external_port, internal, denied);
        self.deny(now, who, wish, denied, notice)
    }

    /// Whether a host may have one more exchange with the provider, or change of this router's NAT, now (decision 27). Who may not is
    /// answered, or, if it speaks PCP or NAT-PMP, is not: it repeats itself within seconds, while an error would keep it away for longer.
    pub(super) fn may_exchange(
        &mut self,
        now: Instant,
        id: RequestId,
        who: &Requester,
        request: &MappingRequest,
    ) -> bool {
        if self.takes_exchange(now, who) {
            return true;
        }
        let refusal = self.deny_mapping(now, who, request, Denied::TooOften);
        self.refuse(id, refusal);
        false
    }

    /// The same for what nobody need be refused for.
    pub(super) fn takes_exchange(&mut self, now: Instant, who: &Requester) -> bool {
        let counted_as = self.counted_as(who.asker());
        self.policing.exchanges.admit(now, self.config.policy.exchanges, counted_as)
    }

    /// Over IPv6 a host has as many addresses as it wants, and an address that was never heard of before is in no neighbour table: so those
    /// who are not known by their network cards share what one host may have.
    pub(super) fn counted_as(&self, who: &Requester) -> CountedAs {
        let v4 = who.addresses().first().map(|&addr| Device::Address(IpAddr::V4(addr)));
        match (who.device(), v4) {
            (Device::Address(IpAddr::V6(_)), Some(v4)) => CountedAs::Device(v4),
            (Device::Address(IpAddr::V6(addr)), None) => CountedAs::Nobody(self.link_of(addr)),
            (device, _) => CountedAs::Device(device),
        }
    }

    /// The LAN interface that an address is on.
    pub(super) fn link_of(&self, addr: Ipv6Addr) -> Option<u32> {
        let is_there = |lan: &&LanInterface| lan.addresses.iter().any(|link| link.contains(IpAddr::V6(addr)));
        self.lan.iter().find(is_there).map(|lan| lan.index)
    }

    /// The same for a host that wants a pinhole; false when it has been refused.
    pub(super) fn may_exchange_for_pinhole(
        &mut self,
        now: Instant,
        id: RequestId,
        who: &Requester,
        (wish, notice): (Wish, Notice),
    ) -> bool {
        if self.takes_exchange(now, who) {
            return true;
        }
        let refusal = self.deny(now, who, wish, Denied::TooOften, notice);
        self.refuse(id, refusal);
        false
    }

    /// A mapping that stands is asked for again: the refusal, if policy allows it no more.
    pub(super) fn deny_renewal(
        &mut self,
        now: Instant,
        who: &Requester,
        request: &MappingRequest,
        external_port: u16,
    ) -> Option<Refusal> {
        let ports = Ports { external: Some(external_port), ..Ports::of(request) };
        let denied = self.config.policy.judge_of(who, &ports, self.consent_of(who)).err()?;
        Some(self.deny_mapping(now, who, request, denied))
    }

    /// The same for a pinhole.
    pub(super) fn deny_pinhole_renewal(
        &mut self,
        now: Instant,
        who: &Requester,
        ports: &Ports,
        (wish, notice): (Wish, impl FnOnce(Denied) -> Notice),
    ) -> Result<(), Refusal> {
        match self.config.policy.judge_of(who, ports, self.consent_of(who)) {
            Ok(()) => Ok(()),
            Err(denied) => Err(self.deny(now, who, wish, denied, notice(denied))),
        }
    }

    /// Whether the external port that a request suggests is one that policy leaves to nobody, while there are others that it does.
    pub(super) fn wants_denied_port(&self, who: &Requester, request: &MappingRequest) -> Option<Denied> {
        let (ports, consent) = (Ports::of(request), self.consent_of(who));
        let any = Ports { external: None, ..ports };
        let denied = self.config.policy.judge_of(who, &ports, consent).err()?;
        self.config.policy.judge_of(who, &any, consent).is_ok().then_some(denied)
    }

    /// What was granted, or is about to be had, is looked at again: a port that nobody asked for may be one that policy refuses, or
    /// that no rule gives to a host without the owner's consent; and the rules may be others by now.
    pub(super) fn judge_granted(&self, pending: &Pending, external_port: u16) -> Result<(), Denied> {
        let ports = Ports { external: Some(external_port), ..Ports::of(&pending.request) };
        // Its network card may have become known meanwhile.
        let hardware = self.policing.known_of(ports.host).hardware.or(pending.who.hardware());
        let who = pending.who.clone().with_hardware(hardware);
        match self.config.policy.judge_of(&who, &ports, self.consent_of(&who)) {
            // What comes back stood before: who waits for the owner keeps it.
            Err(Denied::AwaitsConsent) if pending.purpose == Purpose::Restore => Ok(()),
            judged => judged,
        }
    }

    /// What policy says of a mapping that stands. Who waits for the owner keeps what it has until that ends.
    pub(super) fn judge_standing(&self, mapping: &Mapping, external_port: u16) -> Result<(), Denied> {
        let host = IpAddr::V4(*mapping.internal.ip());
        let ports = Ports {
            protocol: mapping.protocol,
            host,
            internal: mapping.internal.port(),
            external: Some(external_port),
        };
        self.judge_kept(&ports, None)
    }

    /// `hardware` is the network card by which it was known when it asked.
    pub(super) fn judge_kept(&self, ports: &Ports, hardware: Option<HardwareAddress>) -> Result<(), Denied> {
        let who = self.requester(ports.host, &[]);
        let hardware = who.hardware().or(hardware);
        let who = who.with_hardware(hardware);
        match self.config.policy.judge_of(&who, ports, self.consent_of(&who)) {
            Err(Denied::AwaitsConsent) => Ok(()),
            judged => judged,
        }
    }

    /// The rules are others, or what stands was stored under others: what is denied now is given back, here and at the provider.
    pub(super) fn give_back_denied(&mut self, now: Instant) {
        let denied = |mapping: &&Mapping| {
            mapping.health != Health::Deleting
                && self.judge_standing(mapping, mapping.external.port()).is_err()
        };
        for key in self.table.iter().filter(denied).map(Mapping::key).collect::<Vec<Key>>() {
            self.drop_mapping(now, key, Cause::Policy);
        }
        let pinholes = self.all_pinholes();
        let denied = pinholes.filter(|pinhole| {
            self.judge_kept(&Ports::of_pinhole(pinhole.flows.to), pinhole.hardware).is_err()
        });
        let ids: Vec<u16> = denied.map(|pinhole| pinhole.id).collect();
        self.close_pinholes(now, &ids, PinholeEnd::Policy);
        self.end_denied_peers();
    }

    /// What the owner decided before the start.
    pub(super) fn on_restore_consents(&mut self, decided: Vec<Decided>) {
        decided.into_iter().for_each(|one| self.policing.consents.decide(one));
    }

    /// Whom the owner means by an address: the device that was seen there, if one was.
    pub fn resolve_device(&self, named: Device) -> Device {
        let device = self.policing.consents.resolve(named);
        match device {
            Device::Address(addr) => self.policing.known_of(addr).hardware.map_or(device, Device::Hardware),
            Device::Hardware(_) => device,
        }
    }

    /// The owner has decided. `addresses` are those that the device is known to have.
    pub(super) fn on_consent(&mut self, now: Instant, device: Device, verb: Verb, addresses: &[IpAddr]) {
        let mut all: Vec<IpAddr> = addresses.iter().map(IpAddr::to_canonical).collect();
        all.extend(self.policing.consents.address_of(device));
        match device {
            Device::Address(addr) => all.push(addr),
            Device::Hardware(hardware) => {
                let is_its = |(_, known): &(u64, Known)| known.hardware == Some(hardware);
                let known = self.policing.known.iter().filter(|(_, entry)| is_its(entry));
                all.extend(known.flat_map(|(&host, (_, known))| known.also.iter().copied().chain([host])));
            }
        }
        let address = self.policing.consents.address_of(device).or(all.first().copied());
        match verb {
            Verb::Forget => {
                if self.policing.consents.forget(device) {
                    self.effects.push_back(Effect::Store(Record::NoConsent(device)));
                }
            }
            Verb::Allow | Verb::Deny => {
                let decided = Decided { device, address, allowed: verb == Verb::Allow };
                self.policing.consents.decide(decided);
                self.effects.push_back(Effect::Store(Record::Consent(decided)));
            }
        }
        if verb != Verb::Deny || self.config.policy.default != ByDefault::Ask {
            return;
        }
        all.sort_unstable();
        all.dedup();
        for host in all {
            match host {
                IpAddr::V4(host) => self.on_release(now, host, Cause::Policy),
                IpAddr::V6(host) => self.release_pinholes(now, host, PinholeEnd::Policy),
            }
        }
        let Device::Hardware(hardware) = device else { return };
        let is_its = |hardware_of: &Option<_>| *hardware_of == Some(hardware);
        let ids: Vec<u16> = self
            .all_pinholes()
            .filter(|pinhole| is_its(&pinhole.hardware))
            .map(|pinhole| pinhole.id)
            .collect();
        self.close_pinholes(now, &ids, PinholeEnd::Policy);
    }

    /// What policy has refused, and who waits for the owner.
    pub(super) fn policy_status(&self, now: Instant) -> PolicyStatus {
        let refused = self.policing.refusals.iter().map(|(what, count)| RefusedStatus {
            what: what.clone(),
            times: count.times,
            last_by: count.last_by,
            last: now - count.last_at,
        });
        PolicyStatus { refused: refused.collect(), waiting: self.policing.consents.waiting().len() }
    }

    /// Who waits for the owner, and on whom is decided.
    pub fn consents(&self, now: Instant) -> ConsentStatus {
        let waiting = self.policing.consents.waiting().into_iter();
        let waiting =
            waiting.map(|one| WaitingStatus { since: now - one.since, last: now - one.last_at, of: one });
        ConsentStatus {
            asks: self.config.policy.default == ByDefault::Ask,
            waiting: waiting.collect(),
            decided: self.policing.consents.decided().collect(),
        }
    }

    /// A grant that policy refuses is given back; true when that is so.
    pub(super) fn refuses_grant(&mut self, now: Instant, flow: FlowId, external_port: u16) -> bool {
        let Some(pending) = self.pending.get(&flow) else { return false };
        let Err(denied) = self.judge_granted(pending, external_port) else { return false };
        let who = pending.who.clone();
        let granted = MappingRequest { external_port: Some(external_port), ..pending.request.clone() };
        let refusal = self.deny_mapping(now, &who, &granted, denied);
        self.fail(now, flow, refusal);
        true
    }
}
