//! The file of what survives a crash (R-10): one line for each change, appended and synced before the answer that counts on it.

mod pinholes;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::Duration;

use engine::claims::{Asker, Claims, PcpClaim};
use engine::journal::{Record, StoredMapping, StoredNonce, StoredPinhole};
use engine::policy::{Decided, Device};
use engine::uplink::Filtered;
use serde::{Deserialize, Serialize};
use wire::pcp::{Nonce, Protocol};

use crate::journal_file::{self, Contents as _, Damage, JournalFile, Stamp};
use pinholes::Pinhole;

/// What it is called.
pub const FILE: &str = "mappings.journal";
/// Mappings at the server that may have filters, at most; no more are remembered by whoever uses them.
const MOST_FILTERED: usize = 4096;
/// Seconds after which there is no such mapping any more: it was asked for at most half a day later (the engine says so anew
/// then), for a day at most.
const FILTERED_FOR: u64 = 48 * 3600;

/// One line.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Put {
        #[serde(flatten)]
        mapping: Mapping,
        /// The external port that it had until now, if that was another one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<u16>,
    },
    Remove {
        protocol: u8,
        external_port: u16,
    },
    Probe {
        nonce: [u8; 12],
        #[serde(default, skip_serializing_if = "Option::is_none")]
        wan: Option<String>,
    },
    Filtered {
        source: Option<IpAddr>,
        third_party: Option<IpAddr>,
        protocol: u8,
        internal_port: u16,
        #[serde(flatten)]
        written: Stamp,
    },
    Pinhole(Pinhole),
    NoPinhole {
        id: u16,
    },
    Consent {
        /// A hardware address, or an IP address.
        device: String,
        /// Where it was at the time.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<IpAddr>,
        allowed: bool,
    },
    NoConsent {
        device: String,
    },
}

/// A mapping as it stands in the file.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Mapping {
    protocol: u8,
    external: SocketAddrV4,
    internal: SocketAddrV4,
    nat_port: Option<u16>,
    remote_peer: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    remote_name: Option<String>,
    description: String,
    strict: bool,
    #[serde(default)]
    made: u64,
    /// Seconds that were left of the lease when it was written; absent for ever.
    lease_left: Option<u64>,
    /// Who had asked for it, unless that was a control point alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    claims: Option<Box<WrittenClaims>>,
    nonce: [u8; 12],
    /// The WAN interface behind which the nonce is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wan: Option<String>,
    #[serde(flatten)]
    written: Stamp,
}

/// Who counts on a mapping; times are the seconds that were left.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct WrittenClaims {
    /// `null` in it: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "lease")]
    igd: Option<Option<u64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pcp: Option<([u8; 12], u64)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nat_pmp: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    peer: Option<([u8; 12], u64)>,
}

/// A lease that is there and has no end is not one that is not there.
mod lease {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[allow(clippy::option_option, clippy::ref_option, reason = "absent, without an end, or so many seconds")]
    pub(super) fn serialize<S: Serializer>(lease: &Option<Option<u64>>, s: S) -> Result<S::Ok, S::Error> {
        lease.flatten().serialize(s)
    }

    #[allow(clippy::option_option, reason = "absent, without an end, or so many seconds")]
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Option<u64>>, D::Error> {
        Option::deserialize(d).map(Some)
    }
}

/// The open file.
#[derive(Debug)]
pub struct Store(JournalFile<Contents>);

/// What the file says, or is to say.
#[derive(Debug, Default)]
struct Contents {
    mappings: Mappings,
    probe: Option<StoredNonce>,
    /// Mappings at the server that may have filters, and when that was written.
    filtered: BTreeMap<Client, Stamp>,
    pinholes: BTreeMap<u16, Pinhole>,
    /// What the owner has decided about devices.
    consents: BTreeMap<Device, Decided>,
}

impl Contents {
    fn loaded(&self, now: Stamp, damage: Damage) -> Loaded {
        let mappings = in_order(&self.mappings).into_iter().rev();
        Loaded {
            mappings: mappings.map(|mapping| mapping.stored(now)).collect(),
            probe: self.probe.clone(),
            filtered: self.filtered.keys().map(filtered).collect(),
            pinholes: self.pinholes.values().map(|pinhole| pinhole.stored(now)).collect(),
            consents: self.consents.values().copied().collect(),
            damage,
        }
    }
}

/// What a start would load from a file of these lines.
pub(crate) fn load(file: &[u8], now: Stamp) -> Loaded {
    let mut read = crate::fuzzing::journal::<Contents>(file);
    read.contents.forget_what_is_over(now);
    read.contents.loaded(now, read.damage)
}

/// By what the server knows a mapping: its requests' source, a third party, protocol, internal port.
type Client = (Option<IpAddr>, Option<IpAddr>, u8, u16);

/// What stands, each with the number of its line: a later one is newer, whatever the clock says.
type Mappings = BTreeMap<(u8, u16), (usize, Box<Mapping>)>;

/// What was stored.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Loaded {
    /// The mappings whose leases have not ended since, the newest first: where a clock that went back makes two of them
    /// contradict each other, the newer one is right.
    pub mappings: Vec<StoredMapping>,
    /// The nonce of the mapping that tells the external address.
    pub probe: Option<StoredNonce>,
    /// What the server may have filters for.
    pub filtered: Vec<Filtered>,
    /// The pinholes whose leases have not ended since, by their numbers.
    pub pinholes: Vec<StoredPinhole>,
    /// What the owner has decided about devices.
    pub consents: Vec<Decided>,
    /// What was wrong with the file.
    pub damage: Damage,
}

impl Store {
    /// Reads what is in `directory`, and writes it anew without its history.
    ///
    /// # Errors
    /// As [`JournalFile::open`].
    pub fn open(directory: &Path) -> io::Result<(Self, Loaded)> {
        let (file, damage) = JournalFile::<Contents>::open(directory, FILE)?;
        let loaded = file.contents().loaded(Stamp::now(), damage);
        Ok((Self(file), loaded))
    }

    /// Stores one change. It survives the end of this process; a power cut only after [`sync`](Self::sync).
    ///
    /// # Errors
    /// As [`JournalFile::append`].
    pub fn append(&mut self, record: &Record) -> io::Result<()> {
        let now = Stamp::now();
        self.0.append(match record {
            Record::Put(stored) => Line::Put { mapping: Mapping::new(stored, now), before: None },
            Record::Move(before, stored) => {
                Line::Put { mapping: Mapping::new(stored, now), before: Some(*before) }
            }
            Record::Remove(protocol, external_port) => {
                Line::Remove { protocol: protocol.0, external_port: *external_port }
            }
            Record::Ended(protocol, external_port) => {
                // The line in the file ends by itself; it is left out when the file is next written anew.
                self.0.change(|contents| drop(contents.mappings.remove(&(protocol.0, *external_port))));
                return Ok(());
            }
            Record::Clear => {
                self.0.change(|contents| contents.mappings.clear());
                return self.0.shrink();
            }
            Record::Probe(StoredNonce { nonce, wan }) => Line::Probe { nonce: nonce.0, wan: wan.clone() },
            Record::Filtered(filtered) => {
                let Filtered { source, third_party, protocol, internal_port } = *filtered;
                Line::Filtered { source, third_party, protocol: protocol.0, internal_port, written: now }
            }
            Record::PutPinhole(stored) => Line::Pinhole(Pinhole::new(stored, now)),
            Record::RemovePinhole(id) => Line::NoPinhole { id: *id },
            Record::Consent(decided) => consent(decided),
            Record::NoConsent(device) => Line::NoConsent { device: device.to_string() },
        })
    }

    /// On return everything that was appended survives a power cut.
    ///
    /// # Errors
    /// As [`JournalFile::sync`].
    pub fn sync(&mut self) -> io::Result<()> {
        self.0.sync()
    }

    /// Whether something could not be written yet: see [`JournalFile::is_behind`].
    pub fn is_behind(&self) -> bool {
        self.0.is_behind()
    }

    /// Writes what could not be written.
    ///
    /// # Errors
    /// As [`JournalFile::catch_up`].
    pub fn catch_up(&mut self) -> io::Result<()> {
        self.0.catch_up()
    }
}

impl journal_file::Contents for Contents {
    type Line = Line;

    fn apply(&mut self, number: usize, line: Line) -> Option<Line> {
        match &line {
            Line::Put { mapping, before } => {
                if let Some(before) = before {
                    self.mappings.remove(&(mapping.protocol, *before));
                }
                self.mappings.insert(key(mapping), (number, Box::new(mapping.clone())));
            }
            Line::Remove { protocol, external_port } => {
                self.mappings.remove(&(*protocol, *external_port))?;
            }
            Line::Pinhole(pinhole) => drop(self.pinholes.insert(pinhole.id, pinhole.clone())),
            Line::NoPinhole { id } => drop(self.pinholes.remove(id)?),
            Line::Consent { device, address, allowed } => {
                let (device, address, allowed) = (device.parse().ok()?, *address, *allowed);
                self.consents.insert(device, Decided { device, address, allowed });
            }
            Line::NoConsent { device } => {
                self.consents.remove(&device.parse().ok()?)?;
            }
            Line::Probe { nonce, wan } => {
                self.probe = Some(StoredNonce { nonce: Nonce(*nonce), wan: wan.clone() });
            }
            Line::Filtered { source, third_party, protocol, internal_port, written } => {
                self.filtered.insert((*source, *third_party, *protocol, *internal_port), *written);
                while self.filtered.len() > MOST_FILTERED {
                    let oldest =
                        self.filtered.iter().min_by_key(|(_, written)| written.at).map(|(client, _)| *client);
                    self.filtered.remove(&oldest.expect("it is not empty"));
                }
            }
        }
        Some(line)
    }

    fn forget_what_is_over(&mut self, now: Stamp) {
        self.mappings.retain(|_, (_, mapping)| mapping.lease_at(now) != Some(0));
        self.pinholes.retain(|_, pinhole| !pinhole.is_over(now));
        self.filtered.retain(|_, written| now.since(*written) < FILTERED_FOR);
    }

    fn lines(&self) -> Vec<Line> {
        let mappings = in_order(&self.mappings).into_iter().cloned();
        let mappings = mappings.map(|mapping| Line::Put { mapping, before: None });
        let probe = self.probe.clone().map(|StoredNonce { nonce, wan }| Line::Probe { nonce: nonce.0, wan });
        let filtered =
            self.filtered.iter().map(|(&(source, third_party, protocol, internal_port), &written)| {
                Line::Filtered { source, third_party, protocol, internal_port, written }
            });
        let pinholes = self.pinholes.values().cloned().map(Line::Pinhole);
        let consents = self.consents.values().map(consent);
        mappings.chain(probe).chain(filtered).chain(pinholes).chain(consents).collect()
    }

    fn line_count(&self) -> usize {
        let probe = usize::from(self.probe.is_some());
        self.mappings.len() + self.filtered.len() + self.pinholes.len() + self.consents.len() + probe
    }
}

fn consent(decided: &Decided) -> Line {
    let Decided { device, address, allowed } = *decided;
    Line::Consent { device: device.to_string(), address, allowed }
}

fn filtered(&(source, third_party, protocol, internal_port): &Client) -> Filtered {
    Filtered { source, third_party, protocol: Protocol(protocol), internal_port }
}

#[cfg(test)]
impl Store {
    /// One on a file system without room.
    pub fn full() -> Self {
        Self(JournalFile::full())
    }

    /// Something could not be written.
    pub fn fall_behind(&mut self) {
        self.0.fall_behind();
    }
}

/// The oldest first.
fn in_order(mappings: &Mappings) -> Vec<&Mapping> {
    let mut all: Vec<&(usize, Box<Mapping>)> = mappings.values().collect();
    all.sort_by_key(|(number, _)| *number);
    all.into_iter().map(|(_, mapping)| &**mapping).collect()
}

impl Mapping {
    fn new(stored: &StoredMapping, written: Stamp) -> Self {
        Self {
            protocol: stored.protocol.0,
            external: stored.external,
            internal: stored.internal,
            nat_port: stored.nat_port,
            remote_peer: stored.remote_peer,
            remote_name: stored.remote_name.clone(),
            description: stored.description.clone(),
            strict: stored.strict,
            made: stored.made,
            lease_left: seconds(stored.claims).end(),
            claims: WrittenClaims::new(seconds(stored.claims)).map(Box::new),
            nonce: stored.nonce.nonce.0,
            wan: stored.nonce.wan.clone(),
            written,
        }
    }

    /// Seconds left of the lease.
    fn lease_at(&self, now: Stamp) -> Option<u64> {
        self.lease_left.map(|left| left.saturating_sub(now.since(self.written)))
    }

    fn claims(&self) -> Claims<u64> {
        match self.claims.as_deref() {
            None => Claims::of(Asker::Igd, self.lease_left),
            Some(WrittenClaims { igd, pcp, nat_pmp, peer }) => Claims {
                igd: *igd,
                pcp: pcp.map(|(nonce, ends)| PcpClaim { nonce: Nonce(nonce), ends }),
                nat_pmp: *nat_pmp,
                peer: peer.map(|(nonce, ends)| PcpClaim { nonce: Nonce(nonce), ends }),
            },
        }
    }

    fn stored(&self, now: Stamp) -> StoredMapping {
        StoredMapping {
            protocol: Protocol(self.protocol),
            external: self.external,
            internal: self.internal,
            nat_port: self.nat_port,
            remote_peer: self.remote_peer,
            remote_name: self.remote_name.clone(),
            description: self.description.clone(),
            strict: self.strict,
            made: self.made,
            claims: self
                .claims()
                .map(|left| Some(Duration::from_secs(left)))
                .after(Duration::from_secs(now.since(self.written))),
            nonce: StoredNonce { nonce: Nonce(self.nonce), wan: self.wan.clone() },
        }
    }
}

impl WrittenClaims {
    fn new(claims: Claims<u64>) -> Option<Self> {
        let Claims { igd, pcp, nat_pmp, peer } = claims;
        let others = pcp.or(peer).is_some() || nat_pmp.is_some();
        let [pcp, peer] = [pcp, peer].map(|claim| claim.map(|claim| (claim.nonce.0, claim.ends)));
        others.then_some(Self { igd, pcp, nat_pmp, peer })
    }
}

/// In whole seconds, and nothing is over before it is.
fn seconds(claims: Claims<Duration>) -> Claims<u64> {
    claims.map(|left| Some(left.as_secs().max(1)))
}

fn key(mapping: &Mapping) -> (u8, u16) {
    (mapping.protocol, mapping.external.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal_file::HISTORY;
    use crate::scratch::Directory;

    fn mapping(port: u16, lease_left: Option<u64>) -> StoredMapping {
        StoredMapping {
            protocol: Protocol::TCP,
            external: SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 7), port),
            internal: SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 10), 80),
            nat_port: Some(8080),
            remote_peer: None,
            remote_name: None,
            description: "a\nb \"c\" 5fd924d6 {}".into(),
            strict: true,
            made: u64::from(port),
            claims: Claims::of(Asker::Igd, lease_left.map(Duration::from_secs)),
            nonce: nonce(9),
        }
    }

    /// What the owner has decided comes back, over a start that gives up all mappings, too; what he has forgotten does not.
    #[test]
    fn decisions_come_back() {
        let directory = Directory::new("consents");
        let decided = |device: &str, allowed| Decided {
            device: device.parse().unwrap(),
            address: Some(Ipv4Addr::new(192, 168, 1, 10).into()),
            allowed,
        };
        let (card, other) = (decided("02:00:5e:10:00:0a", true), decided("2001:db8::10", false));
        let denied = Decided { allowed: false, ..card };
        let forgotten = Decided { address: None, ..decided("192.168.1.11", true) };
        let (mut store, loaded) = Store::open(&directory.0).unwrap();
        assert_eq!(loaded.consents, []);
        for one in [card, forgotten, other, denied] {
            store.append(&Record::Consent(one)).unwrap();
        }
        store.append(&Record::NoConsent(forgotten.device)).unwrap();
        store.append(&Record::NoConsent(forgotten.device)).unwrap();
        store.append(&Record::Clear).unwrap();
        for _ in 0..2 {
            let (_, loaded) = Store::open(&directory.0).unwrap();
            assert_eq!((loaded.consents, loaded.damage.count()), (vec![denied, other], 0));
        }
    }

    /// Who counts on a mapping comes back, each with what is left; a lease without an end stays one, and what was written before there were
    /// others than UPnP is UPnP's.
    #[test]
    fn claims_come_back() {
        let left = Duration::from_secs;
        let mut all = Claims::of(Asker::Igd, None);
        all.renew(Asker::Pcp(Nonce([3; 12])), Some(left(600)));
        all.renew(Asker::NatPmp, Some(left(7200)));
        all.renew(Asker::Peer(Nonce([4; 12])), Some(left(300)));
        let nat_pmp = Claims::of(Asker::NatPmp, Some(left(60)));
        let directory = Directory::new("claims");
        let mut store = Store::open(&directory.0).unwrap().0;
        for (port, claims) in [(1, all), (2, nat_pmp), (3, Claims::of(Asker::Igd, Some(left(100))))] {
            store.append(&Record::Put(StoredMapping { claims, ..mapping(port, None) })).unwrap();
        }
        drop(store);
        let loaded = load(&directory);
        let of = |port| loaded.mappings.iter().find(|one| one.external.port() == port).unwrap().claims;
        let about = |claims: Claims<Duration>| claims.map(|left| Some((left.as_secs() + 5) / 10));
        assert_eq!(about(of(1)), about(all));
        assert_eq!(about(of(2)), about(nat_pmp));
        assert_eq!(about(of(3)), Claims::of(Asker::Igd, Some(10)));
        assert_eq!(of(1).end(), None);
    }

    fn nonce(octet: u8) -> StoredNonce {
        StoredNonce { nonce: Nonce([octet; 12]), wan: Some("wan0".into()) }
    }

    fn load(directory: &Directory) -> Loaded {
        Store::open(&directory.0).unwrap().1
    }

    /// R-10, D-4: also after a second start.
    #[test]
    fn what_was_stored_comes_back() {
        let directory = Directory::new("store-back");
        let (mut store, loaded) = Store::open(&directory.0).unwrap();
        assert_eq!(loaded, Loaded::default());
        for record in [
            Record::Put(mapping(1, None)),
            Record::Put(mapping(2, Some(1000))),
            Record::Put(mapping(3, Some(1000))),
            Record::Remove(Protocol::TCP, 2),
            Record::Remove(Protocol::UDP, 3),
            Record::Probe(nonce(4)),
        ] {
            store.append(&record).unwrap();
        }
        for _ in 0..2 {
            let loaded = load(&directory);
            assert_eq!(loaded.mappings[1], mapping(1, None));
            assert_eq!(loaded.mappings[0].external.port(), 3, "the newest first");
            let left = loaded.mappings[0].claims.end().unwrap().as_secs();
            assert!((990..=1000).contains(&left), "{left}");
            assert_eq!((loaded.mappings.len(), loaded.probe, loaded.damage.count()), (2, Some(nonce(4)), 0));
        }
    }

    /// R-10, decision 16: a power cut leaves any prefix of the file; whatever was synced before is there, and nothing else.
    #[test]
    fn every_prefix_of_the_file_is_good() {
        let directory = Directory::new("store-torn");
        let (mut store, _) = Store::open(&directory.0).unwrap();
        let path = directory.0.join(FILE);
        let mut ends = vec![0];
        for port in 1..=5 {
            store.append(&Record::Put(mapping(port, None))).unwrap();
            ends.push(std::fs::metadata(&path).unwrap().len());
        }
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let loaded = load(&directory);
            // A line without its line feed is whole all the same.
            let stored =
                ends.iter().filter(|&&end| end > 0 && u64::try_from(cut).unwrap() + 1 >= end).count();
            assert_eq!(loaded.mappings.len(), stored, "cut after {cut} octets");
        }
        let mut damaged = whole.clone();
        damaged[20] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        let loaded = load(&directory);
        assert_eq!((loaded.mappings.len(), loaded.damage.count()), (4, 1));
    }

    /// Whatever a file is instead, the program starts, what can be read of it stands, and it is kept under another name.
    #[test]
    fn what_is_damaged_is_kept() {
        let directory = Directory::new("store-damaged");
        let (mut store, _) = Store::open(&directory.0).unwrap();
        for port in 1..=3 {
            store.append(&Record::Put(mapping(port, None))).unwrap();
        }
        let path = directory.0.join(FILE);
        let whole = std::fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[20] ^= 1;
        let later = br#"{"from_the_future":{"answer":42}}"#;
        let later = [format!("{:08x} ", journal_file::crc32(later)).as_bytes(), later, b"\n"].concat();
        let garbage: Vec<u8> =
            (0..300_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
        let cases: [(&str, Vec<u8>, &[u16]); 5] = [
            ("an octet is another", flipped, &[2, 3]),
            ("a later version's", [&later[..], &whole].concat(), &[1, 2, 3]),
            ("garbage", [&garbage[..], b"\n"].concat(), &[]),
            ("garbage first", [&garbage[..], b"\n", &whole].concat(), &[1, 2, 3]),
            ("another program's", b"[mappings]\n1 = 2\n".to_vec(), &[]),
        ];
        for (what, octets, left) in &cases {
            std::fs::write(&path, octets).unwrap();
            let loaded = load(&directory);
            assert_eq!((&ports(&loaded)[..], loaded.damage.count() > 0), (*left, true), "{what}");
            assert_eq!(loaded.damage.unknown, usize::from(*what == "a later version's"));
            assert_eq!(loaded.damage.kept, Some(Ok(format!("{FILE}.damaged-1"))), "{what}");
            assert_eq!(
                &std::fs::read(directory.0.join(format!("{FILE}.damaged-1"))).unwrap(),
                octets,
                "{what}"
            );
            let report = loaded.damage.report(&path, "mappings").unwrap();
            assert!(
                report.contains(FILE) && report.contains("damaged-1") && !report.contains('\n'),
                "{report}"
            );
            // It is written anew, and whole.
            assert_eq!(
                (load(&directory).damage, ports(&load(&directory))),
                (Damage::default(), left.to_vec()),
                "{what}"
            );
        }
        // What a power cut leaves is no reason to keep anything.
        std::fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        let loaded = load(&directory);
        assert_eq!((ports(&loaded), loaded.damage), (vec![1, 2], Damage { torn: true, ..Damage::default() }));
        assert_eq!(std::fs::read_dir(&directory.0).unwrap().count(), 1 + 3, "no more than three are kept");
    }

    #[test]
    fn what_is_no_file_makes_way() {
        let directory = Directory::new("store-no-file");
        for name in [FILE, "mappings.journal.new"] {
            std::fs::create_dir(directory.0.join(name)).unwrap();
        }
        let (mut store, loaded) = Store::open(&directory.0).unwrap();
        assert!(loaded.damage.unread.is_some() && !store.is_behind());
        store.append(&Record::Put(mapping(1, None))).unwrap();
        assert_eq!(ports(&load(&directory)), [1]);
        // A link leads to a file that is read, and is replaced by one of our own.
        let elsewhere = directory.0.join("elsewhere");
        std::fs::rename(directory.0.join(FILE), &elsewhere).unwrap();
        let before = std::fs::read(&elsewhere).unwrap();
        for name in [FILE, "mappings.journal.new"] {
            std::os::unix::fs::symlink(&elsewhere, directory.0.join(name)).unwrap();
        }
        assert_eq!(ports(&load(&directory)), [1]);
        assert!(!directory.0.join(FILE).is_symlink());
        assert_eq!(std::fs::read(&elsewhere).unwrap(), before, "nothing is written where a link leads");
    }

    fn ports(loaded: &Loaded) -> Vec<u16> {
        let mut ports: Vec<u16> = loaded.mappings.iter().map(|mapping| mapping.external.port()).collect();
        ports.sort_unstable();
        ports
    }

    /// R-10: what could not be written is written with the next change that can be, or by itself; until then the file is as it
    /// was, whatever was torn off in it. An open file on a full file system stands for one: whoever is root has no other
    /// way to be refused here.
    #[test]
    fn what_could_not_be_written_follows() {
        for torn in ["", "5fd924d6 {\"put\":{\"proto"] {
            let directory = Directory::new("store-behind");
            let (mut store, _) = Store::open(&directory.0).unwrap();
            for port in [1, 2] {
                store.append(&Record::Put(mapping(port, None))).unwrap();
            }
            // No room for a line, nor for a new file.
            std::fs::write(
                directory.0.join(FILE),
                [std::fs::read(directory.0.join(FILE)).unwrap(), torn.into()].concat(),
            )
            .unwrap();
            store.0.fill();
            std::fs::create_dir(directory.0.join("mappings.journal.new")).unwrap();
            store.append(&Record::Put(mapping(3, None))).unwrap_err();
            assert!(store.is_behind());
            store.append(&Record::Remove(Protocol::TCP, 1)).unwrap_err();
            store.catch_up().unwrap_err();
            store.sync().unwrap();
            let left = std::fs::read(directory.0.join(FILE)).unwrap();
            std::fs::remove_dir(directory.0.join("mappings.journal.new")).unwrap();
            assert_eq!(ports(&load(&directory)), [1, 2]);
            std::fs::write(directory.0.join(FILE), left).unwrap();
            // It was tried a moment ago, and whether that is a second by now is nobody's business here.
            let _ = store.append(&Record::Put(mapping(4, None)));
            store.catch_up().unwrap();
            assert!(!store.is_behind());
            store.append(&Record::Put(mapping(5, None))).unwrap();
            let loaded = load(&directory);
            assert_eq!((ports(&loaded), loaded.damage.count()), (vec![2, 3, 4, 5], 0));
        }
    }

    /// What is stopped leaves nothing behind, also where there is no room for another file.
    #[test]
    fn everything_can_be_given_up_on_a_full_disk() {
        let directory = Directory::new("store-clear");
        let (mut store, _) = Store::open(&directory.0).unwrap();
        store.append(&Record::Put(mapping(1, None))).unwrap();
        store.append(&Record::Probe(nonce(4))).unwrap();
        std::fs::create_dir(directory.0.join("mappings.journal.new")).unwrap();
        store.append(&Record::Clear).unwrap();
        std::fs::remove_dir(directory.0.join("mappings.journal.new")).unwrap();
        let loaded = load(&directory);
        assert_eq!((loaded.mappings, loaded.probe), (vec![], Some(nonce(4))));
    }

    /// A mapping that the provider moved is stored under one port or the other, wherever the power was cut.
    #[test]
    fn a_moved_mapping_is_never_lost() {
        let directory = Directory::new("store-moved");
        let (mut store, _) = Store::open(&directory.0).unwrap();
        let path = directory.0.join(FILE);
        store.append(&Record::Put(mapping(1, None))).unwrap();
        let before = std::fs::metadata(&path).unwrap().len();
        store.append(&Record::Move(1, mapping(2, None))).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in usize::try_from(before).unwrap()..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let ports = ports(&load(&directory));
            assert!(ports == [1] || ports == [2], "{ports:?} after {cut} octets");
        }
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(ports(&load(&directory)), [2]);
    }

    /// RFC 6887 §13.3: filters are remembered for two days, and no more than whoever uses them can use.
    #[test]
    fn filters_are_remembered_for_a_while() {
        let directory = Directory::new("store-filters");
        let (mut store, _) = Store::open(&directory.0).unwrap();
        let client = |port| Filtered {
            source: Some(IpAddr::from([100, 64, 0, 2])),
            third_party: None,
            protocol: Protocol::TCP,
            internal_port: port,
        };
        for port in [1, 2, 2] {
            store.append(&Record::Filtered(client(port))).unwrap();
        }
        store.append(&Record::Clear).unwrap();
        assert_eq!(load(&directory).filtered, [client(1), client(2)]);
        let mut contents = Contents::default();
        let now = Stamp::now();
        let older = |by: u64| Stamp { boot: 0, at: now.at - by, ..now };
        for (port, written) in [(1, older(FILTERED_FOR)), (2, older(FILTERED_FOR - 1)), (3, now)] {
            contents.filtered.insert((None, None, 6, port), written);
        }
        contents.forget_what_is_over(now);
        assert_eq!(contents.filtered.keys().map(|client| client.3).collect::<Vec<_>>(), [2, 3]);
        for port in 0..u16::try_from(MOST_FILTERED).unwrap() {
            let (source, third_party, protocol, written) = (None, None, 17, now);
            contents.apply(1, Line::Filtered { source, third_party, protocol, internal_port: port, written });
        }
        assert_eq!(contents.filtered.len(), MOST_FILTERED);
        assert!(!contents.filtered.contains_key(&(None, None, 6, 2)), "the oldest went first");
    }

    #[test]
    fn lines_of_an_older_version_are_read() {
        let line = r#"{"put":{"protocol":6,"external":"198.51.100.7:1","internal":"192.168.1.10:80","nat_port":8080,
            "remote_peer":null,"description":"","strict":true,"lease_left":100,"nonce":[9,9,9,9,9,9,9,9,9,9,9,9],"at":1800000000}}"#;
        let Line::Put { mapping, before: None } = serde_json::from_str(line).unwrap() else {
            panic!("a mapping")
        };
        let now = Stamp { at: 1_800_000_060, boot: 7, up: 5 };
        assert_eq!((mapping.lease_at(now), mapping.nonce), (Some(40), [9; 12]));
    }

    #[test]
    fn leases_end_while_the_power_is_off() {
        let now = Stamp { at: 1_800_000_000, boot: 0, up: 0 };
        let later = |seconds: u64| Stamp { at: now.at + seconds, ..now };
        let stored = Mapping::new(&mapping(1, Some(100)), now);
        assert_eq!(stored.lease_at(later(60)), Some(40));
        assert_eq!(stored.lease_at(later(100)), Some(0));
        assert_eq!(stored.lease_at(Stamp { at: 0, ..now }), Some(100), "a clock that starts in 1970");
        assert_eq!(Mapping::new(&mapping(1, None), now).lease_at(later(u64::MAX / 4)), None);
    }

    /// Short leases that end by themselves leave nothing in memory, and in the file no more than its history.
    #[test]
    fn ended_leases_are_left_out() {
        let directory = Directory::new("store-ended");
        let (mut store, _) = Store::open(&directory.0).unwrap();
        store.append(&Record::Put(mapping(7, None))).unwrap();
        for n in 0..2 * HISTORY {
            let port = 1024 + u16::try_from(n).unwrap();
            store.append(&Record::Put(mapping(port, Some(600)))).unwrap();
            store.append(&Record::Ended(Protocol::TCP, port)).unwrap();
        }
        assert_eq!(store.0.contents().mappings.len(), 1);
        assert!(store.0.lines() <= HISTORY + 4, "{}", store.0.lines());
        drop(store);
        assert!(
            load(&directory).mappings.len() <= HISTORY + 4,
            "those not rewritten yet, until their leases end"
        );
    }

    #[test]
    fn history_is_bounded() {
        let directory = Directory::new("store-history");
        let (mut store, _) = Store::open(&directory.0).unwrap();
        for n in 0..5 * HISTORY {
            let record =
                if n % 2 == 0 { Record::Put(mapping(7, None)) } else { Record::Remove(Protocol::TCP, 7) };
            store.append(&record).unwrap();
        }
        assert!(
            std::fs::metadata(directory.0.join(FILE)).unwrap().len() < 400 * u64::try_from(HISTORY).unwrap()
        );
        assert_eq!(load(&directory).mappings, []);
    }
}
