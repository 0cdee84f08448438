//! What survives the gateway in a [`World`]: its journal, and the kill -9 that shows what the journal is worth.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use engine::claims::Claims;
use engine::entropy::{Entropy, SeededEntropy};
use engine::gateway::{Event, Gateway, LanInterface, RequestId};
use engine::journal::{Record, StoredMapping, StoredNonce, StoredPinhole};
use engine::policy::InterfaceAddress;
use engine::time::{Duration, Instant};
use engine::uplink::Filtered;
use wire::pcp::Protocol;

use super::follower::Follower;
use super::{GATEWAY, GATEWAY_V6, LAN_INDEX, Parcel, World};

/// When the shell tries again to write what it could not.
const RETRY: Duration = Duration::from_secs(30);

/// The journal as the daemon's store keeps it: whole seconds, the newest first.
#[derive(Debug, Default)]
pub(super) struct Disk {
    /// As it is to be.
    wanted: Contents,
    /// As it is, since something could not be written.
    written: Option<Contents>,
}

#[derive(Clone, Debug, Default)]
struct Contents {
    mappings: BTreeMap<(Protocol, u16), Line>,
    probe: Option<StoredNonce>,
    filtered: BTreeSet<Filtered>,
    /// With the second in which each was written.
    pinholes: BTreeMap<u16, (u64, StoredPinhole)>,
    next: u64,
}

/// Random numbers, and what is derived from the secret that the state directory holds.
pub(super) struct Installation {
    number: u64,
    random: SeededEntropy,
}

impl Installation {
    pub(super) fn new(number: u64, seed: u64) -> Self {
        Self { number, random: SeededEntropy::new(seed) }
    }
}

impl Entropy for Installation {
    fn fill(&mut self, bytes: &mut [u8]) {
        self.random.fill(bytes);
    }

    fn derive(&self, name: &[u8]) -> [u8; 16] {
        match self.number {
            0 => self.random.derive(name),
            number => self.random.derive(&[&number.to_be_bytes(), name].concat()),
        }
    }
}

#[derive(Clone, Debug)]
struct Line {
    number: u64,
    at: u64,
    mapping: StoredMapping,
}

impl Disk {
    /// Whether something could not be written, and is not yet.
    pub(super) fn is_behind(&self) -> bool {
        self.written.is_some()
    }

    /// Takes in a change; true when it is on the disk, and everything before it.
    pub(super) fn append(&mut self, now: Instant, record: Record, full: bool) -> bool {
        if full && self.written.is_none() {
            self.written = Some(self.wanted.clone());
        }
        self.wanted.append(now, record);
        if !full {
            self.written = None;
        }
        !full
    }

    fn catch_up(&mut self) {
        self.written = None;
    }

    /// What a start at this time reads.
    fn load(&mut self, now: Instant) -> (Vec<StoredMapping>, Option<StoredNonce>, Vec<Filtered>) {
        if let Some(written) = self.written.take() {
            self.wanted = written;
        }
        self.wanted.load(now)
    }
}

impl Contents {
    fn append(&mut self, now: Instant, record: Record) {
        match record {
            Record::Put(mapping) => {
                self.next += 1;
                let claims = mapping.claims.map(|left| Some(Duration::from_secs(left.as_secs().max(1))));
                let key = (mapping.protocol, mapping.external.port());
                let mapping = StoredMapping { claims, ..mapping };
                let line = Line { number: self.next, at: now.as_secs(), mapping };
                self.mappings.insert(key, line);
            }
            Record::Move(before, mapping) => {
                self.mappings.remove(&(mapping.protocol, before));
                self.append(now, Record::Put(mapping));
            }
            Record::Remove(protocol, port) => drop(self.mappings.remove(&(protocol, port))),
            // The line in the file ends by itself.
            Record::Ended(..) => {}
            Record::Clear => self.mappings.clear(),
            Record::Probe(nonce) => self.probe = Some(nonce),
            Record::Filtered(filtered) => drop(self.filtered.insert(filtered)),
            Record::PutPinhole(pinhole) => {
                let claims = pinhole.claims.map(|left| Some(Duration::from_secs(left.as_secs().max(1))));
                let pinhole = StoredPinhole { claims, ..pinhole };
                self.pinholes.insert(pinhole.id, (now.as_secs(), pinhole));
            }
            Record::RemovePinhole(id) => drop(self.pinholes.remove(&id)),
            Record::Consent(_) | Record::NoConsent(_) => {}
        }
    }

    /// The pinholes whose leases have not ended.
    fn pinholes(&self, now: Instant) -> Vec<StoredPinhole> {
        let stored = self.pinholes.values().map(|(at, pinhole)| {
            let passed = Duration::from_secs(now.as_secs() - at);
            StoredPinhole { claims: pinhole.claims.after(passed), ..pinhole.clone() }
        });
        stored.filter(|pinhole| pinhole.claims != Claims::default()).collect()
    }

    fn load(&mut self, now: Instant) -> (Vec<StoredMapping>, Option<StoredNonce>, Vec<Filtered>) {
        let left = |line: &Line| line.mapping.claims.after(Duration::from_secs(now.as_secs() - line.at));
        self.mappings.retain(|_, line| left(line) != Claims::default());
        let mut lines: Vec<&Line> = self.mappings.values().collect();
        lines.sort_by_key(|line| std::cmp::Reverse(line.number));
        let stored =
            lines.into_iter().map(|line| StoredMapping { claims: left(line), ..line.mapping.clone() });
        (stored.collect(), self.probe.clone(), self.filtered.iter().copied().collect())
    }
}

impl World {
    /// The gateway is killed after it has done so many more things, in the middle of a turn if need be: the rest of that
    /// turn is not done.
    pub fn kill_after(&mut self, effects: u32) {
        self.fuse = Some(effects);
    }

    /// The gateway is not killed after all.
    pub fn spare(&mut self) {
        self.fuse = None;
    }

    /// Nothing can be written to the state directory from now on, or it can again; the gateway finds out by itself.
    pub fn fill_disk(&mut self, full: bool) {
        if full != self.full {
            self.note(if full { "the state directory is full" } else { "the state directory has room" });
            self.full = full;
        }
    }

    /// Whether nothing can be written to the state directory.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        self.full
    }

    /// Whether something that was to be stored is not.
    #[must_use]
    pub fn is_disk_behind(&self) -> bool {
        self.disk.is_behind()
    }

    /// What the daemon's shell does with [`Effect::Store`](engine::gateway::Effect::Store).
    pub(super) fn store(&mut self, record: Record) {
        let before = self.disk.is_behind();
        if self.disk.append(self.now, record, self.full) {
            self.storing_works |= before;
        } else {
            self.note("the state cannot be written");
            self.store_failed = true;
            if !before {
                self.post(RETRY, Parcel::StoreRetry);
            }
        }
    }

    pub(super) fn retry_to_store(&mut self) {
        if !self.disk.is_behind() || !self.alive {
        } else if self.full {
            self.post(RETRY, Parcel::StoreRetry);
        } else {
            self.disk.catch_up();
            self.handle(Event::StoreWorks);
        }
    }

    /// Whether the gateway runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.alive
    }

    /// How often the gateway was started anew.
    #[must_use]
    pub fn starts(&self) -> u32 {
        self.starts
    }

    /// The gateway is killed, now. What it had not said is never said.
    pub fn kill(&mut self) {
        self.note("the gateway is killed");
        self.is_gone();
    }

    /// The gateway has stopped, and its process is over.
    pub fn exit(&mut self) {
        self.note("the gateway exits");
        self.is_gone();
    }

    /// Everything that was stored is lost, with the secret that nonces come from; the gateway does not run.
    pub fn lose_disk(&mut self) {
        self.note("the state directory is lost");
        self.disk = Disk::default();
        self.installation += 1;
    }

    fn is_gone(&mut self) {
        self.fuse = None;
        self.alive = false;
        self.socket += 1;
        (self.open, self.opening) = (false, false);
        (self.store_failed, self.storing_works) = (false, false);
        self.troubled = self.now;
        // What is on its way to the server arrives.
        self.parcels.retain(|_, parcel| matches!(parcel, Parcel::ToServer { .. }));
        self.lan_answers.clear();
        self.tickets.clear();
        self.nat_refusals.clear();
        self.found_flows.clear();
        self.asked.clear();
        self.end_subscriptions();
    }

    /// The gateway is started again: what the daemon does at its start, in the same order.
    pub fn start(&mut self) {
        self.note("the gateway starts");
        self.alive = true;
        self.stopped = false;
        self.starts += 1;
        // Another start of the device (UDA §1.1.2), other random numbers.
        self.config.device.boot_id += 1;
        let mut seed = [0; 8];
        self.entropy.fill(&mut seed);
        let entropy = Box::new(Installation::new(self.installation, u64::from_be_bytes(seed)));
        self.gateway = Gateway::new(self.config.clone(), entropy);
        self.follower = Follower::default();
        // The router's own tables are ours alone, and created empty.
        self.nat.flush();
        self.v6.open.clear();
        let (mappings, probe, filtered) = self.disk.load(self.now);
        if self.v6.is_there {
            let pinholes = self.disk.wanted.pinholes(self.now);
            self.handle(Event::RestorePinholes(pinholes));
        }
        self.tell_interfaces();
        self.handle(Event::Restore { mappings, probe, filtered });
    }

    pub(super) fn tell_interfaces(&mut self) {
        let link = InterfaceAddress { addr: IpAddr::V4(GATEWAY), prefix_len: 24 };
        let v6 = InterfaceAddress { addr: IpAddr::V6(GATEWAY_V6), prefix_len: 64 };
        let addresses = if self.v6.is_there { vec![link, v6] } else { vec![link] };
        let lan = LanInterface { index: LAN_INDEX, name: "lan0".to_owned(), addresses };
        self.handle(Event::Lan(vec![lan]));
        self.handle(Event::Wan(self.wan.clone()));
    }

    /// Whether this request was never answered because the gateway was killed.
    #[must_use]
    pub fn is_lost(&self, id: RequestId) -> bool {
        !self.asked.contains_key(&id) && !self.replies.contains_key(&id)
    }
}
