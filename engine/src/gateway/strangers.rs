//! The LAN has other addresses than before: what leads to where no host of it can be any more ends, unless that passes. What is not known
//! just now, for an interface is away, loses nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use super::{Alarm, Gateway, LanInterface};
use crate::notice::{Cause, PinholeEnd};
use crate::policy::{Consent, Facts, PinholeFacts};
use crate::time::{Duration, Instant};

/// A prefix of the LAN may be away for so long before what leads there ends.
const RENUMBERED: Duration = Duration::from_secs(600);

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    /// LAN interfaces that have had an IPv4 address, under these settings.
    seen: BTreeSet<String>,
}

impl Strangers {
    /// Others may be LAN interfaces.
    pub(super) fn on_reconfigure(&mut self) {
        self.seen.clear();
    }
}

impl Gateway {
    /// The LAN's interfaces and addresses are these.
    pub(super) fn on_lan(&mut self, now: Instant, lan: Vec<LanInterface>) {
        let seen = lan.iter().filter(|lan| has_v4(lan)).map(|lan| lan.name.clone());
        self.strangers.seen.extend(seen);
        // News of the same does not put off what is due.
        if self.lan != lan {
            self.lan = lan;
            self.timers.set(Alarm::Strangers, now + RENUMBERED);
        }
    }

    /// They have been so for a while.
    pub(super) fn end_strangers(&mut self, now: Instant) {
        let (lan, wan) = (self.lan_addresses(), self.wan.addresses_v6.clone());
        let facts = PinholeFacts { lan: &lan, wan: &wan, held_by_host: 0, held: 0, consent: Consent::Given };
        let strange = self
            .all_pinholes()
            .filter(|pinhole| self.config.policy.check_address(pinhole.flows.to.addr, facts).is_err());
        let ids: Vec<u16> = strange.map(|pinhole| pinhole.id).collect();
        self.close_pinholes(now, &ids, PinholeEnd::OffLan);
        if !self.lan_is_whole() {
            return;
        }
        let wan = self.wan.addresses.clone();
        let facts = Facts { lan: &lan, wan: &wan, held_by_host: 0, held: 0, consent: Consent::Given };
        let strange = |host: &Ipv4Addr| self.config.policy.check_host(*host, facts).is_err();
        for host in self.clients().into_iter().filter(strange).collect::<Vec<_>>() {
            self.on_release(now, host, Cause::OffLan);
        }
    }

    /// Whether every LAN interface has an IPv4 address, also those that have had one: else nobody knows who is on the others' links.
    fn lan_is_whole(&self) -> bool {
        let is_there = |name: &String| self.lan.iter().any(|lan| lan.name == *name);
        !self.lan.is_empty() && self.lan.iter().all(has_v4) && self.strangers.seen.iter().all(is_there)
    }
}

fn has_v4(lan: &LanInterface) -> bool {
    lan.addresses.iter().any(|link| matches!(link.addr, IpAddr::V4(_)))
}
