//! What has to hold after every step, and in the end.

use std::collections::BTreeSet;
use std::net::IpAddr;

use engine::gateway::NatMode;
use engine::policy::{Consent, Device, MOST_WAITING, Ports};
use engine::table::Health;
use engine::time::Duration;
use wire::pcp::Protocol;

use super::{ANSWER_WITHIN, Run};
use crate::policy::may_have;

impl Run<'_> {
    /// What holds after every step.
    pub(super) fn check(&mut self) {
        for (id, &since) in &self.asked {
            let late = self.now - since > ANSWER_WITHIN && !self.counting.contains(id);
            assert!(!late, "{id:?} has waited since {since:?}, it is {:?}", self.now);
        }
        let mappings: Vec<_> = self.gateway.mappings(self.now).collect();
        assert_eq!(mappings.len(), self.gateway.status(self.now).mappings);
        assert!(mappings.len() <= self.config.policy.mappings);
        assert!(mappings.iter().all(|mapping| mapping.external.port() != 0));
        // What waits to be given back is no mapping any more.
        let mut standing = BTreeSet::new();
        for mapping in mappings.iter().filter(|mapping| mapping.health != Health::Deleting) {
            let host = IpAddr::V4(*mapping.internal.ip());
            let (protocol, external) = (mapping.protocol, mapping.external.port());
            let ports = Ports { protocol, host, internal: mapping.internal.port(), external: Some(external) };
            let place = (protocol, host, external);
            let is_old =
                self.seen.contains(&place) || self.seen_internal.contains(&(protocol, mapping.internal));
            self.check_allowed(&ports, external, self.stood.contains(&place), is_old);
            standing.insert(place);
            self.seen.insert(place);
            self.seen_internal.insert((protocol, mapping.internal));
        }
        self.stood = standing;
        for pinhole in self.gateway.pinholes(self.now).iter().filter(|pinhole| pinhole.is_open) {
            let to = pinhole.flows.to;
            let ports = Ports {
                protocol: to.protocol,
                host: to.addr.into(),
                internal: to.port,
                external: Some(to.port),
            };
            self.check_allowed(&ports, to.port, true, true);
        }
        let consents = self.gateway.consents(self.now);
        assert!(consents.waiting.len() <= MOST_WAITING);
        self.check_v6();
    }

    /// Whoever made it and however the provider has moved it, policy allows what stands. Who is asked about keeps what he has, and gets
    /// it back; beside that, a host without consent gets nothing that no rule names.
    pub(super) fn check_allowed(&self, ports: &Ports, external: u16, stands: bool, is_old: bool) {
        let consent = match self.consent_of(ports.host) {
            _ if stands => Consent::Given,
            Consent::Unknown if is_old => Consent::Given,
            consent => consent,
        };
        let may = may_have(&self.config.policy, ports, external, consent);
        assert!(may, "{ports:?} stands against policy, {consent:?}: {:?}", self.config.policy.rules);
    }

    /// What the owner has said: of the network card, else of the address.
    pub(super) fn consent_of(&self, host: IpAddr) -> Consent {
        let decided = self.gateway.consents(self.now).decided;
        let of = |device| decided.iter().find(|one| one.device == device).map(|one| one.allowed);
        let by_card = self.cards.get(&host).and_then(|card| of(Device::Hardware(*card)));
        match by_card.or_else(|| of(Device::Address(host))) {
            None => Consent::Unknown,
            Some(true) => Consent::Given,
            Some(false) => Consent::Refused,
        }
    }

    /// Everybody has answered and time has passed: nothing is left over.
    pub(super) fn end(&mut self) {
        self.advance(Duration::from_secs(60));
        while !self.outcomes.is_empty() {
            self.kernel_answers();
        }
        self.advance(Duration::from_secs(60));
        while !self.outcomes.is_empty() {
            self.kernel_answers();
        }
        self.check();
        assert!(self.stopped || !self.stopping, "the gateway does not come to its end");
        self.end_v6();
        if self.kernel_failed || self.config.nat == NatMode::None {
            return;
        }
        let open: BTreeSet<(Protocol, u16)> = self
            .gateway
            .mappings(self.now)
            .filter(|mapping| mapping.health != Health::Deleting)
            .filter_map(|mapping| Some((mapping.protocol, mapping.nat_port?)))
            .chain(self.gateway.peer_rules().map(|rule| (rule.protocol, rule.port)))
            .collect();
        let installed: BTreeSet<(Protocol, u16)> =
            self.rules.keys().map(|&(protocol, port, _)| (protocol, port)).collect();
        assert_eq!(installed, open, "the NAT holds other rules than the table");
    }
}
