//! What GetSpecificPortMappingEntry has promised: a port that was said to be free is held for its control point for a
//! minute (spec T-2), unless something happens to the provider, the router's NAT or the gateway meanwhile.

use std::net::Ipv4Addr;

use engine::gateway::NatMode;
use engine::time::{Duration, Instant};
use wire::pcp::Protocol;

use super::shadow::Asked;
use super::storm::Add;
use super::{Broken, Key, Simulation, broken};
use crate::sim::Server;

/// How long a probe is held (RFC 6970 §4.2).
const HELD: Duration = Duration::from_secs(60);
/// Mappings of one host that are held at most.
const MOST_OF_ONE_HOST: usize = 8;
/// A kernel that is quicker than this does not cost a control point its patience.
const QUICK: Duration = Duration::from_millis(500);

/// A port that is held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promise {
    host: Ipv4Addr,
    at: Instant,
    until: Instant,
}

impl Promise {
    pub(super) fn is_for(&self, host: Ipv4Addr) -> bool {
        self.host == host
    }
}

impl Simulation {
    /// `host` heard that this port is free. It is held for it if the provider has just granted it: other ways to the same
    /// answer promise nothing.
    pub(super) fn on_free(&mut self, key: Key, host: Ipv4Addr, at: Instant) {
        let asks = |asked: &Asked| matches!(asked, Asked::Add { host: other, .. } if *other == host);
        let granted = self.ledger.granted_at(key, at);
        if let Some(ends) = granted.filter(|_| !self.open.values().any(|(_, asked)| asks(asked))) {
            self.tally.count("ports held by a probe");
            self.promises.insert(key, Promise { host, at, until: ends.min(at + HELD) });
        }
    }

    /// Something happens that what is held need not survive.
    pub(super) fn disturb(&mut self) {
        self.disturbed = self.world.now();
    }

    pub(super) fn is_disturbed_since(&self, since: Instant) -> bool {
        let world = &self.world;
        let last = [self.disturbed, world.troubled(), world.server_started(), self.crowded];
        last.into_iter().max() >= Some(since)
            || self.nat_failed.is_some_and(|at| at >= since)
            || world.server != Server::Serves
            || self.stale.is_some()
            || world.nat.takes > QUICK
            || world.wan_address().is_none()
    }

    /// What was promised to the host that asks for this; whatever else it asks for of the same port ends the promise.
    pub(super) fn keep_promise(&mut self, host: Ipv4Addr, add: &Add) -> Option<Instant> {
        let now = self.world.now();
        let key = (add.protocol, add.external);
        let own_nat = self.nat == NatMode::Own;
        let promise = self.promises.get(&key).copied().filter(|promise| {
            let same_port = own_nat || add.internal == add.external;
            promise.host == host && now < promise.until && !add.any && add.peer.is_none() && same_port
        });
        self.promises.retain(|other, promise| {
            let same =
                other.0 == add.protocol && (add.any || other.1 == add.external || other.1 == add.internal);
            promise.host != host || !same
        });
        let kept = promise.map(|promise| promise.at).filter(|&at| !self.is_disturbed_since(at));
        if kept.is_some() {
            self.tally.count("promised ports asked for");
        }
        kept
    }

    /// Nobody else gets what is held for a control point.
    pub(super) fn check_promised_to(&self, host: Ipv4Addr, key: Key, now: Instant) -> Result<(), Broken> {
        match self.promises.get(&key) {
            Some(promise)
                if promise.host != host && now < promise.until && !self.is_disturbed_since(promise.at) =>
            {
                broken(format!("{key:?} is given to {host}, and it is held: {promise:?}"))
            }
            _ => Ok(()),
        }
    }

    /// So many mappings may be held that nobody has asked for, and no more.
    pub(super) fn check_held(&mut self) -> Result<(), Broken> {
        let now = self.world.now();
        self.promises.retain(|_, promise| now < promise.until);
        let held = self.world.gateway.status(now).held;
        if held >= MOST_OF_ONE_HOST {
            self.crowded = now;
        }
        if held > 0 {
            self.tally.count("steps with something held");
        }
        // Orphans are not counted by host: there are as many as the server has.
        let orphans = if self.lists { usize::MAX } else { 0 };
        let most = (MOST_OF_ONE_HOST * super::HOSTS.len()).saturating_add(orphans);
        if held > most {
            return broken(format!("{held} mappings are held"));
        }
        Ok(())
    }
}

/// TCP, as what is mapped where it does not matter.
pub(super) const TCP: Protocol = Protocol::TCP;
