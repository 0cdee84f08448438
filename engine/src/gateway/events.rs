//! Events to subscribers: what has changed in a turn is seen by comparing, not by whoever changed it, so that nothing is
//! forgotten and one set of changes is one event (spec A-13, T-9).

use std::net::Ipv4Addr;
use std::time::Duration;

use wire::description::Uuid;
use wire::gena::Subscribe;
use wire::services::{Face, Service};

use super::{Effect, Gateway, RequestId};
use crate::gena::Subscriber;
use crate::policy::Requester;
use crate::time::Instant;

/// Everything that is evented and can change, apart from who sees which external address.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Evented {
    connection_status: &'static str,
    link_status: &'static str,
    external: Option<Ipv4Addr>,
    /// Counts up when a host's own external address changes.
    external_of_hosts: u32,
    entries: usize,
    system_update_id: u32,
    pinholes_allowed: bool,
}

impl Gateway {
    pub(super) fn on_subscribe(
        &mut self,
        now: Instant,
        request: RequestId,
        subscriber: Subscriber,
        (face, service): (Face, Service),
        subscribe: Subscribe,
    ) {
        if self.subscriptions.is_empty() {
            self.evented = self.evented(); // nobody has looked for a while
        }
        let answer: Result<(Uuid, Duration), _> = match subscribe {
            Subscribe::New { callbacks, timeout } => self
                .subscriptions
                .subscribe(now, subscriber, (face, service), callbacks, timeout, &mut *self.entropy)
                .map(|sid| (sid, timeout)),
            Subscribe::Renew { sid, timeout } => {
                self.subscriptions.renew(now, &subscriber.who, service, sid, timeout).map(|()| (sid, timeout))
            }
        };
        self.effects.push_back(Effect::Subscribed { request, answer: answer.map(Some) });
    }

    pub(super) fn on_unsubscribe(
        &mut self,
        request: RequestId,
        who: &Requester,
        service: Service,
        sid: Uuid,
    ) {
        let answer = self.subscriptions.unsubscribe(who, service, sid).map(|()| None);
        self.effects.push_back(Effect::Subscribed { request, answer });
    }

    /// Ends a turn: what is different from the last one is told.
    pub(super) fn tell_subscribers(&mut self, now: Instant) {
        if self.subscriptions.is_empty() {
            return;
        }
        let evented = self.evented();
        if evented != self.evented {
            let before = std::mem::replace(&mut self.evented, evented);
            let after = &self.evented;
            let changed = [
                ("ConnectionStatus", before.connection_status != after.connection_status),
                (
                    "ExternalIPAddress",
                    (before.external, before.external_of_hosts) != (after.external, after.external_of_hosts),
                ),
                ("PortMappingNumberOfEntries", before.entries != after.entries),
                ("SystemUpdateID", before.system_update_id != after.system_update_id),
            ];
            let names: Vec<&str> = changed.into_iter().filter_map(|(name, is)| is.then_some(name)).collect();
            self.subscriptions.changed(now, Service::WanIpConnection, &names);
            if before.link_status != after.link_status {
                self.subscriptions.changed(now, Service::WanCommonInterfaceConfig, &["PhysicalLinkStatus"]);
            }
            if before.pinholes_allowed != after.pinholes_allowed {
                let service = Service::WanIpv6FirewallControl;
                self.subscriptions.changed(now, service, &["InboundPinholeAllowed"]);
            }
            self.subscriptions.on_timeout(now);
        }
        loop {
            // Taken out so that values can be read from the rest of the gateway while an event is made.
            let mut subscriptions = std::mem::take(&mut self.subscriptions);
            let event = subscriptions
                .poll(|face, service, variable, who| self.variable(now, face, service, variable, who));
            self.subscriptions = subscriptions;
            match event {
                Some(event) => self.effects.push_back(Effect::Notify(event)),
                None => break,
            }
        }
    }

    /// What subscribers are told of, as it is now.
    pub(super) fn evented(&self) -> Evented {
        Evented {
            connection_status: self.connection_status(),
            link_status: self.link_status(),
            external: self.external,
            external_of_hosts: self.table.host_addresses_changed(),
            entries: self.table.len(),
            system_update_id: self.system_update_id,
            pinholes_allowed: self.allows_pinholes(),
        }
    }
}
