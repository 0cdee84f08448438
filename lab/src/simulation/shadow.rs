//! What control points were told: every mapping that was acknowledged and neither deleted, nor over, nor lost for a
//! reason that the provider gave. The gateway's table has to be the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use engine::status::MappingStatus;
use engine::table::Health;
use engine::time::{Duration, Instant};
use wire::pcp::Protocol;

use super::ledger::Client;
use super::{Key, PEERS};

/// A week: the longest lease of WANIPConnection:2.
const WEEK: u64 = 604_800;
/// How much later than its answer a change that was refused with 501 may still be made.
const LATE: Duration = Duration::from_secs(60);
/// The journal counts whole seconds.
const JOURNAL: Duration = Duration::from_secs(2);

/// What was asked for, as far as the model has to know.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    /// AddPortMapping, or AddAnyPortMapping if `any`; `promised` is when its port was said to be free and held for it.
    Add { any: bool, key: Key, host: Ipv4Addr, wanted: Wanted, promised: Option<Instant> },
    /// DeletePortMapping.
    Delete { key: Key, host: Ipv4Addr, peer: Option<Peer> },
    /// DeletePortMappingRange.
    DeleteRange { protocol: Protocol, first: u16, last: u16, host: Ipv4Addr },
    /// GetSpecificPortMappingEntry.
    Specific { key: Key, host: Ipv4Addr, peer: Option<Peer> },
    /// GetGenericPortMappingEntry.
    Generic(usize),
    /// GetListOfPortMappings.
    List { protocol: Protocol, first: u16, last: u16, most: usize },
    /// GetExternalIPAddress.
    ExternalAddress,
    /// GetStatusInfo.
    Status,
    /// Anything that is about no mapping.
    Other,
}

/// A remote host as a control point names it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Peer {
    /// By its address.
    Address(Ipv4Addr),
    /// By its name.
    Name(&'static str),
}

impl Peer {
    pub(super) fn text(peer: Option<Peer>) -> String {
        match peer {
            None => String::new(),
            Some(Peer::Address(addr)) => addr.to_string(),
            Some(Peer::Name(name)) => name.to_owned(),
        }
    }

    /// Whether a mapping for `peer` may let in `addr` only; a name may have had any of its addresses.
    fn fits(peer: Option<Peer>, addr: Option<Ipv4Addr>) -> bool {
        match (peer, addr) {
            (None, addr) => addr.is_none(),
            (Some(Peer::Address(own)), addr) => addr == Some(own),
            (Some(Peer::Name(_)), addr) => addr.is_some_and(|addr| PEERS.contains(&addr)),
        }
    }
}

/// What an Add says of a mapping besides its key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Wanted {
    pub(super) internal_port: u16,
    pub(super) description: String,
    /// `None` for ever.
    pub(super) lease: Option<Duration>,
    pub(super) peer: Option<Peer>,
}

impl Wanted {
    /// The lease that so many seconds ask for in this version of the service (spec A-3).
    pub(super) fn lease(seconds: u32, version: u8) -> Option<Duration> {
        match (u64::from(seconds), version) {
            (0, 1) => None,
            (0, _) => Some(Duration::from_secs(WEEK)),
            (seconds, 1) => Some(Duration::from_secs(seconds)),
            (seconds, _) => Some(Duration::from_secs(seconds.min(WEEK))),
        }
    }
}

/// One state that a mapping may be in, by what its owner was told.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Version {
    internal_port: u16,
    description: String,
    peer: Option<Peer>,
    /// Made by AddPortMapping.
    strict: bool,
    /// Between which moments the lease ends; `None` for never.
    ends: Option<(Instant, Instant)>,
}

impl Version {
    fn new(any: bool, wanted: Wanted, first: Instant, last: Instant) -> Self {
        let Wanted { internal_port, description, lease, peer } = wanted;
        let ends = lease.map(|lease| (first + lease, last + lease));
        Self { internal_port, description, peer, strict: !any, ends }
    }

    fn fits(&self, now: Instant, mapping: &MappingStatus) -> bool {
        let lease = match (self.ends, mapping.lease_left) {
            (None, None) => true,
            (Some((first, last)), Some(left)) => first <= now + left && now + left <= last,
            _ => false,
        };
        lease
            && Peer::fits(self.peer, mapping.remote_peer)
            && (self.internal_port, &self.description) == (mapping.internal.port(), &mapping.description)
    }
}

/// A mapping that its owner counts on.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) host: Ipv4Addr,
    pub(super) told_at: Instant,
    /// It has to be there; otherwise it may be, for its owner has heard an error about it since.
    pub(super) sure: bool,
    /// More than one after an error that leaves it open.
    versions: Vec<Version>,
    /// The port of the router's own NAT, when it was last seen.
    nat_port: Option<u16>,
    /// It was restored after a crash, and the provider has not said anything yet.
    pub(super) restored: Option<Instant>,
    /// The key that it had until the provider gave it another port, and when that was.
    before: Option<(Key, Instant)>,
}

impl Claim {
    /// The gateway was killed and started again.
    fn crash(&mut self, now: Instant) {
        for version in &mut self.versions {
            if let Some((first, last)) = &mut version.ends {
                let before = Instant::default();
                *first = before + (*first - before).saturating_sub(JOURNAL);
                *last = *last + JOURNAL;
            }
        }
        self.restored = Some(now);
    }

    /// It may be as it was before, too.
    fn add_versions_of(&mut self, older: Option<&Claim>, now: Instant) {
        if let Some(older) = older {
            let mut older = older.clone();
            older.crash(now);
            self.versions.extend(older.versions);
        }
    }

    pub(super) fn fits(&self, now: Instant, mapping: &MappingStatus) -> bool {
        self.host == *mapping.internal.ip() && self.versions.iter().any(|version| version.fits(now, mapping))
    }

    /// Whether its lease may be over.
    pub(super) fn may_be_over(&self, now: Instant) -> bool {
        self.versions.iter().any(|version| version.ends.is_some_and(|(first, _)| first <= now))
    }

    /// Whether its lease is over for certain.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.versions.iter().all(|version| version.ends.is_some_and(|(_, last)| last <= now))
    }

    /// Whether it may lead to another port than this one.
    pub(super) fn may_lead_elsewhere(&self, port: u16) -> bool {
        self.versions.iter().any(|version| version.internal_port != port)
    }

    pub(super) fn has_internal_port(&self, port: u16) -> bool {
        self.versions.iter().any(|version| version.internal_port == port)
    }

    /// Whether who names `peer` may mean this mapping.
    pub(super) fn may_be_for(&self, peer: Option<Peer>) -> bool {
        self.versions.iter().any(|version| match (peer, version.peer) {
            // By the address that the name has at this moment.
            (Some(Peer::Address(_)), Some(Peer::Name(_))) => true,
            (asked, own) => asked == own,
        })
    }

    /// Whether who names `peer` means this mapping.
    pub(super) fn is_for(&self, peer: Option<Peer>) -> bool {
        self.versions.iter().all(|version| version.peer == peer)
    }

    /// How its remote host may be shown.
    pub(super) fn may_show(&self, text: &str) -> bool {
        self.versions.iter().any(|version| Peer::text(version.peer) == text)
    }

    /// The name of its remote host, if that is how it is known for certain.
    pub(super) fn peer_name(&self) -> Option<&'static str> {
        match self.versions.as_slice() {
            [Version { peer: Some(Peer::Name(name)), .. }] => Some(name),
            _ => None,
        }
    }

    /// Whether its remote host may be known by a name.
    pub(super) fn may_have_name(&self) -> bool {
        self.versions.iter().any(|version| matches!(version.peer, Some(Peer::Name(_))))
    }

    /// Whether its owner counts on the external port for certain.
    pub(super) fn is_strict(&self) -> bool {
        self.versions.iter().all(|version| version.strict)
    }

    /// As whom the provider knows it, with every internal port that it may have.
    pub(super) fn clients(&self, protocol: Protocol, own_nat: bool) -> Vec<Client> {
        if own_nat {
            return self.nat_port.map(|port| (None, protocol, port)).into_iter().collect();
        }
        self.versions.iter().map(|version| (Some(self.host), protocol, version.internal_port)).collect()
    }
}

/// See the module's description.
#[derive(Default)]
pub(super) struct Shadow {
    pub(super) claims: BTreeMap<Key, Claim>,
    /// Requests that nobody will ever be answered.
    lost: Vec<Asked>,
}

impl Shadow {
    /// A control point was told that its mapping stands.
    pub(super) fn told(
        &mut self,
        key: Key,
        (any, host, wanted): (bool, Ipv4Addr, Wanted),
        (asked_at, now): (Instant, Instant),
    ) -> Option<Claim> {
        let before = self.claims.get(&key);
        let nat_port = before.filter(|claim| claim.host == host).and_then(|claim| claim.nat_port);
        let restored = before.filter(|claim| claim.host == host).and_then(|claim| claim.restored);
        let versions = vec![Version::new(any, wanted, asked_at, now)];
        let claim = Claim { host, told_at: now, sure: true, versions, nat_port, restored, before: None };
        self.claims.insert(key, claim)
    }

    /// A control point was told that its mapping cannot be, or be changed: as far as there is one, it may be as before or
    /// as it was asked for. Without a NAT of its own the router cannot lead it elsewhere in one step (spec T-4), so that it
    /// may be gone, too.
    pub(super) fn refused(
        &mut self,
        (key, any): (Key, bool),
        (host, wanted): (Ipv4Addr, Wanted),
        (asked_at, now): (Instant, Instant),
        own_nat: bool,
    ) {
        let version = Version::new(any, wanted, asked_at, now + LATE);
        for (_, claim) in self.claims.iter_mut().filter(|(other, claim)| {
            // Without a NAT of its own the router has one mapping for each internal port (spec T-3).
            let its = any && !own_nat && claim.has_internal_port(version.internal_port);
            let had = claim.before.is_some_and(|(before, at)| before == key && at >= asked_at);
            claim.host == host && other.0 == key.0 && (other.1 == key.1 || its || had)
        }) {
            if !own_nat && claim.may_lead_elsewhere(version.internal_port) {
                claim.sure = false;
            }
            if !claim.versions.contains(&version) {
                claim.versions.push(version.clone());
            }
        }
    }

    /// The owner of a mapping was not told what became of its deletion.
    pub(super) fn doubt(&mut self, asked_at: Instant, which: impl Fn(Key, &Claim) -> bool) {
        for (&key, claim) in &mut self.claims {
            if claim.told_at <= asked_at && which(key, claim) {
                claim.sure = false;
            }
        }
    }

    /// The owner of mappings was told that they are deleted; the answer is those that were not its own.
    pub(super) fn deleted(&mut self, asked_at: Instant, which: impl Fn(Key, &Claim) -> bool) {
        self.claims.retain(|&key, claim| claim.told_at > asked_at || !which(key, claim));
    }

    /// The gateway was killed before it answered this.
    pub(super) fn lose(&mut self, now: Instant, asked: Asked) {
        match &asked {
            Asked::Add { any, key, host, wanted, .. } => {
                // Asked for at any moment before: the lease may have begun long ago.
                self.refused((*key, *any), (*host, wanted.clone()), (Instant::default(), now), false);
            }
            Asked::Delete { key, host, .. } => {
                self.doubt(now, |other, claim| other == *key && claim.host == *host);
            }
            Asked::DeleteRange { protocol, first, last, host } => {
                let range = (*protocol, *first)..=(*protocol, *last);
                self.doubt(now, |other, claim| range.contains(&other) && claim.host == *host);
            }
            _ => {}
        }
        self.lost.push(asked);
    }

    /// What was acknowledged stands again, and nothing else but what somebody has asked for and was not told of. Where the disk
    /// was behind, what stood when it filled up may be back (`stale`). `moved`: the provider has just given that claim another
    /// port.
    pub(super) fn restored(
        &mut self,
        now: Instant,
        mappings: &[MappingStatus],
        stale: Option<&BTreeMap<Key, Claim>>,
        moved: impl Fn(Key, &Claim) -> bool,
    ) -> Result<(), String> {
        for claim in self.claims.values_mut() {
            claim.crash(now);
        }
        let keys: BTreeSet<Key> =
            mappings.iter().map(|found| (found.protocol, found.external.port())).collect();
        for mapping in mappings {
            let key = (mapping.protocol, mapping.external.port());
            if self.claims.get(&key).is_some_and(|claim| claim.fits(now, mapping)) {
                continue;
            }
            // The same mapping, under the port that it got just before or that it had before that.
            let same = |(other, claim): &(&Key, &Claim)| {
                other.0 == key.0
                    && !keys.contains(*other)
                    && claim.host == *mapping.internal.ip()
                    && !claim.is_strict()
                    && (claim.fits(now, mapping) && moved(**other, claim)
                        || stale.is_some_and(|stale| !stale.contains_key(*other)))
            };
            if let (false, Some((&other, _))) =
                (self.claims.get(&key).is_some_and(|claim| claim.sure), self.claims.iter().find(same))
            {
                let mut claim = self.claims.remove(&other).expect("it was found");
                claim.add_versions_of(stale.and_then(|stale| stale.get(&key)), now);
                if claim.fits(now, mapping) {
                    self.claims.insert(key, claim);
                    continue;
                }
                self.claims.insert(other, claim);
            }
            if let Some(old) = stale.and_then(|stale| stale.get(&key)) {
                let mut old = old.clone();
                old.crash(now);
                if old.fits(now, mapping) {
                    // Perhaps its owner was told that this could not be changed, or ended.
                    match self.claims.get_mut(&key) {
                        Some(claim) if claim.host == old.host => claim.add_versions_of(Some(&old), now),
                        _ => drop(self.claims.insert(key, Claim { sure: false, ..old })),
                    }
                    continue;
                }
            }
            if let Some(claim) = self.claims.get(&key).filter(|claim| claim.sure) {
                return Err(format!("after a crash {mapping:?} is not what its owner was told: {claim:?}"));
            }
            let versions: Vec<Version> = self
                .lost
                .iter()
                .filter_map(|asked| match asked {
                    Asked::Add { any, key: wanted_key, host, wanted, .. }
                        if wanted_key.0 == key.0
                            && (*any || wanted_key.1 == key.1)
                            && host == mapping.internal.ip() =>
                    {
                        let version = Version::new(*any, wanted.clone(), Instant::default(), now + JOURNAL);
                        let ends = version.ends.map(|(_, last)| (Instant::default(), last));
                        Some(Version { ends, ..version })
                    }
                    _ => None,
                })
                .filter(|version| version.fits(now, mapping))
                .collect();
            if versions.is_empty() {
                return Err(format!("nobody was told of this, and it stands after a crash: {mapping:?}"));
            }
            let claim = Claim {
                host: *mapping.internal.ip(),
                told_at: now,
                sure: true,
                versions,
                nat_port: mapping.nat_port,
                restored: Some(now),
                before: None,
            };
            self.claims.insert(key, claim);
        }
        // On a full disk it may have a lease that is over: it was changed since, and its owner was told that this could not be stored.
        for (key, old) in stale.into_iter().flatten().filter(|(key, _)| !keys.contains(key)) {
            let mut old = old.clone();
            old.crash(now);
            if let Some(claim) = self.claims.get_mut(key).filter(|_| old.may_be_over(now)) {
                claim.sure = false;
            }
        }
        self.lost.clear();
        Ok(())
    }

    /// The provider has given it another port.
    pub(super) fn moved(&mut self, now: Instant, from: Key, to: Key) {
        let claim = self.claims.remove(&from).expect("the caller has found it");
        self.claims.insert(to, Claim { before: Some((from, now)), ..claim });
    }

    /// Nothing is stored any more of what control points were told.
    pub(super) fn forget(&mut self) {
        self.claims.clear();
        self.lost.clear();
    }

    /// What is there is noted; a mapping that fits is one of its versions only, if `settled`.
    pub(super) fn seen(&mut self, now: Instant, mapping: &MappingStatus, settled: bool) {
        let key = (mapping.protocol, mapping.external.port());
        let Some(claim) = self.claims.get_mut(&key) else { return };
        claim.nat_port = mapping.nat_port;
        if mapping.health == Health::Active {
            claim.restored = None;
        }
        if settled && claim.versions.len() > 1 {
            claim.versions.retain(|version| version.fits(now, mapping));
        }
    }
}
