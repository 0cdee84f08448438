//! What survives the gateway in a [`World`]: its journal, and the kill -9 that shows what the journal is worth.

use std::collections::BTreeMap;
use std::net::IpAddr;

use engine::entropy::{Entropy, SeededEntropy};
use engine::gateway::{Event, Gateway, LanInterface, RequestId};
use engine::journal::{Record, StoredMapping};
use engine::policy::InterfaceAddress;
use engine::time::{Duration, Instant};
use wire::pcp::{Nonce, Protocol};

use super::{GATEWAY, LAN_INDEX, Parcel, World};

/// The journal as the daemon's store keeps it: whole seconds, the newest first.
#[derive(Debug, Default)]
pub(super) struct Disk {
    mappings: BTreeMap<(Protocol, u16), Line>,
    probe: Option<Nonce>,
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

#[derive(Debug)]
struct Line {
    number: u64,
    at: u64,
    /// In seconds.
    lease_left: Option<u64>,
    mapping: StoredMapping,
}

impl Disk {
    pub(super) fn append(&mut self, now: Instant, record: Record) {
        match record {
            Record::Put(mapping) => {
                self.next += 1;
                let lease_left = mapping.lease_left.map(|left| left.as_secs().max(1));
                let key = (mapping.protocol, mapping.external.port());
                let line = Line { number: self.next, at: now.as_secs(), lease_left, mapping };
                self.mappings.insert(key, line);
            }
            Record::Remove(protocol, port) => drop(self.mappings.remove(&(protocol, port))),
            // The line in the file ends by itself.
            Record::Ended(..) => {}
            Record::Clear => self.mappings.clear(),
            Record::Probe(nonce) => self.probe = Some(nonce),
        }
    }

    /// What a start at this time reads.
    fn load(&mut self, now: Instant) -> (Vec<StoredMapping>, Option<Nonce>) {
        let left = |line: &Line| line.lease_left.map(|left| left.saturating_sub(now.as_secs() - line.at));
        self.mappings.retain(|_, line| left(line) != Some(0));
        let mut lines: Vec<&Line> = self.mappings.values().collect();
        lines.sort_by_key(|line| std::cmp::Reverse(line.number));
        let stored = lines.into_iter().map(|line| StoredMapping {
            lease_left: left(line).map(Duration::from_secs),
            ..line.mapping.clone()
        });
        (stored.collect(), self.probe)
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
        self.troubled = self.now;
        // What is on its way to the server arrives.
        self.parcels.retain(|_, parcel| matches!(parcel, Parcel::ToServer { .. }));
        self.tickets.clear();
        self.nat_refusals.clear();
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
        self.tell_interfaces();
        // The router's own NAT is a table of ours alone, created empty.
        self.nat.flush();
        let (mappings, probe) = self.disk.load(self.now);
        self.handle(Event::Restore { mappings, probe });
    }

    pub(super) fn tell_interfaces(&mut self) {
        let link = InterfaceAddress { addr: IpAddr::V4(GATEWAY), prefix_len: 24 };
        let lan = LanInterface { index: LAN_INDEX, name: "lan0".to_owned(), addresses: vec![link] };
        self.handle(Event::Lan(vec![lan]));
        self.handle(Event::Wan(self.wan.clone()));
    }

    /// Whether this request was never answered because the gateway was killed.
    #[must_use]
    pub fn is_lost(&self, id: RequestId) -> bool {
        !self.asked.contains_key(&id) && !self.replies.contains_key(&id)
    }
}
