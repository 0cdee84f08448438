//! What a server keeps over restarts: its mappings in a journal, and beside it since when none has been lost.
//!
//! The epoch's file is there only as long as the journal holds every mapping that a client was told of: it is taken away
//! before the journal falls behind, and comes back when that has caught up. So an epoch that goes on counting over a restart
//! is an honest one (RFC 6887 §8.5), whatever the disk did.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};

use engine::provider::{Inside, MappingKey, Record, Requester, StoredHold, StoredMapping};
use engine::time::Duration;
use serde::{Deserialize, Serialize};
use wire::pcp::{Filter, Nonce, Protocol};

use super::config::LONGEST_HOLD;
use crate::journal_file::{self, Contents as _, Damage, JournalFile, Stamp, write_anew};
use crate::set_aside::{self, Old};

/// What the journal is called.
pub const FILE: &str = "provider.journal";
const EPOCH: &str = "epoch.json";
/// It never has as many octets.
const MAX_EPOCH: u64 = 16_384;

/// One line.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Put(Mapping),
    Remove(Key),
    Hold(Hold),
}

/// What tells mappings apart.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
struct Key {
    addr: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    softwire: Option<Ipv6Addr>,
    protocol: u8,
    internal_port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    peer: Option<SocketAddr>,
}

/// A mapping as it stands in the file.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Mapping {
    #[serde(flatten)]
    key: Key,
    external: SocketAddr,
    ports: u16,
    nonce: Option<[u8; 12]>,
    companion: bool,
    requester: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requester_softwire: Option<Ipv6Addr>,
    /// Prefix length, port, address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    filters: Vec<(u8, u16, Ipv6Addr)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// Seconds that were left when it was written.
    left: u64,
    #[serde(flatten)]
    written: Stamp,
}

/// Freed ports as they stand in the file.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Hold {
    #[serde(flatten)]
    key: Key,
    external: SocketAddrV4,
    ports: u16,
    nonce: Option<[u8; 12]>,
    requester: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requester_softwire: Option<Ipv6Addr>,
    /// Seconds from when it was written until they were freed.
    #[serde(default, skip_serializing_if = "is_zero")]
    freed_after: u64,
    /// For how many seconds they are held from then on; `None`: for as long as the settings say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held: Option<u64>,
    #[serde(flatten)]
    written: Stamp,
}

#[derive(Debug, Default)]
struct Contents {
    mappings: BTreeMap<Key, Mapping>,
    /// By external address and first port, how many ports, and protocol.
    holds: BTreeMap<(SocketAddrV4, u16, u8), Hold>,
}

/// Since when nothing was lost.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Epoch {
    began: Stamp,
}

/// The open files.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    journal: JournalFile<Contents>,
    /// `None` before the first [`Record::Epoch`].
    epoch: Option<Epoch>,
    /// Its file is not there.
    unwritten: bool,
}

/// What was stored.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Mappings that have not ended since.
    pub mappings: Vec<StoredMapping>,
    /// Freed ports that are held still.
    pub holds: Vec<StoredHold>,
    /// The age of the epoch, if nothing was lost since it began.
    pub epoch: Option<Duration>,
    /// What was wrong with the file.
    pub damage: Damage,
}

impl Store {
    /// Reads what is in `directory`. What has ended by itself since is held for `hold` from then on.
    ///
    /// # Errors
    /// Those of making the directory and of [`JournalFile::open`].
    pub fn open(directory: &Path, hold: Duration) -> io::Result<(Self, Loaded)> {
        std::fs::create_dir_all(directory)?;
        // One that makes no sense is as one that is lost: the epoch begins anew.
        let epoch = match set_aside::read(&directory.join(EPOCH), MAX_EPOCH) {
            Ok(octets) => octets.and_then(|octets| serde_json::from_slice::<Epoch>(&octets).ok()),
            Err(error) => {
                let kept = set_aside::set_aside(directory, EPOCH, Old::Goes);
                let kept =
                    kept.map_or_else(|error| format!("not kept: {error}"), |name| format!("kept as {name}"));
                tracing::warn!(
                    "{} is damaged ({error}); it is {kept}. The epoch begins anew",
                    directory.join(EPOCH).display()
                );
                None
            }
        };
        // What the journal has lost is not to be seen any more once it is written anew.
        let whole = directory.join(FILE).exists();
        take_away(directory)?;
        let (journal, damage) = JournalFile::<Contents>::open(directory, FILE)?;
        let now = Stamp::now();
        let Contents { mappings, .. } = journal.contents();
        // A clock that does not know how long ago that was does not tell how old the epoch is.
        let known = |epoch: &Epoch| {
            now.knows(epoch.began) && mappings.values().all(|mapping| now.knows(mapping.written))
        };
        let epoch = epoch.filter(|epoch| whole && damage == Damage::default() && known(epoch));
        let epoch_age = epoch.map(|epoch| Duration::from_secs(now.since(epoch.began)));
        let loaded = Loaded { epoch: epoch_age, ..journal.contents().loaded(now, hold, damage) };
        let mut store = Self { directory: directory.to_owned(), journal, epoch, unwritten: true };
        if !store.journal.is_behind() {
            store.write_epoch()?;
        }
        Ok((store, loaded))
    }

    /// Stores one change; a power cut may take it until [`sync`](Self::sync).
    ///
    /// # Errors
    /// Whatever the system says; [`is_behind`](Self::is_behind) then.
    pub fn append(&mut self, record: &Record) -> io::Result<()> {
        let done = match record {
            Record::Epoch => {
                (self.epoch, self.unwritten) = (Some(Epoch { began: Stamp::now() }), true);
                // The old one is over also where there is no room for the new one.
                take_away(&self.directory)
            }
            Record::Clear => {
                self.journal.change(|contents| *contents = Contents::default());
                self.journal.shrink()
            }
            Record::Put(stored) => self.journal.append(Line::Put(Mapping::new(stored, Stamp::now()))),
            Record::Remove(key) => self.journal.append(Line::Remove(Key::new(key))),
            Record::Hold(stored) => self.journal.append(Line::Hold(Hold::new(stored, Stamp::now()))),
        };
        self.honestly(done)
    }

    /// On return everything that was appended survives a power cut.
    ///
    /// # Errors
    /// Whatever the system says; [`is_behind`](Self::is_behind) then.
    pub fn sync(&mut self) -> io::Result<()> {
        let done = self.journal.sync();
        self.honestly(done)
    }

    /// Whether something could not be written yet.
    pub fn is_behind(&self) -> bool {
        self.journal.is_behind() || self.unwritten && self.epoch.is_some()
    }

    /// Writes what could not be written.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn catch_up(&mut self) -> io::Result<()> {
        if self.journal.is_behind() {
            self.journal.catch_up()?;
        }
        self.write_epoch()
    }

    /// As long as the journal is behind there is no epoch to go on with.
    fn honestly(&mut self, done: io::Result<()>) -> io::Result<()> {
        match done {
            Err(error) => {
                self.unwritten = true;
                // On a full disk a file can be taken away still. On one that is read-only nothing helps: said, for a person.
                if let Err(other) = take_away(&self.directory) {
                    tracing::warn!(
                        "{} cannot be taken away ({other}): should this server be killed now, its next start believes that no mapping was lost; delete that file by hand then",
                        self.directory.join(EPOCH).display()
                    );
                }
                Err(error)
            }
            Ok(()) if self.unwritten && !self.journal.is_behind() => self.write_epoch(),
            Ok(()) => Ok(()),
        }
    }

    fn write_epoch(&mut self) -> io::Result<()> {
        if let Some(epoch) = self.epoch {
            write_anew(&self.directory, EPOCH, &serde_json::to_vec(&epoch)?)?;
            self.unwritten = false;
        }
        Ok(())
    }
}

impl Contents {
    fn loaded(&self, now: Stamp, hold: Duration, damage: Damage) -> Loaded {
        Loaded {
            mappings: self.mappings.values().map(|mapping| mapping.stored(now)).collect(),
            holds: self.holds.values().map(|held| held.stored(now, hold)).collect(),
            epoch: None,
            damage,
        }
    }
}

/// What a start would load from a journal of these lines.
pub(crate) fn load(file: &[u8], now: Stamp, hold: Duration) -> Loaded {
    let mut read = crate::fuzzing::journal::<Contents>(file);
    read.contents.forget_what_is_over(now);
    read.contents.loaded(now, hold, read.damage)
}

/// The epoch's file is not there any more, also after a power cut.
fn take_away(directory: &Path) -> io::Result<()> {
    match std::fs::remove_file(directory.join(EPOCH)) {
        Ok(()) => std::fs::File::open(directory)?.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

impl journal_file::Contents for Contents {
    type Line = Line;

    fn apply(&mut self, _number: usize, line: Line) -> Option<Line> {
        match &line {
            Line::Put(mapping) => drop(self.mappings.insert(mapping.key.clone(), mapping.clone())),
            Line::Remove(key) => drop(self.mappings.remove(key)?),
            Line::Hold(hold) => drop(self.holds.insert(hold.ports(), hold.clone())),
        }
        Some(line)
    }

    fn forget_what_is_over(&mut self, now: Stamp) {
        let over = |mapping: &Mapping| left_at(mapping.left, mapping.written, now) == 0;
        let ended: Vec<Mapping> =
            self.mappings.extract_if(.., |_, mapping| over(mapping)).map(|one| one.1).collect();
        for hold in ended.into_iter().filter_map(Mapping::ended) {
            self.holds.entry(hold.ports()).or_insert(hold);
        }
        self.holds.retain(|_, hold| hold.left_at(now, Duration::from_secs(LONGEST_HOLD.into())) > 0);
    }

    fn lines(&self) -> Vec<Line> {
        let holds = self.holds.values().cloned().map(Line::Hold);
        self.mappings.values().cloned().map(Line::Put).chain(holds).collect()
    }

    fn line_count(&self) -> usize {
        self.mappings.len() + self.holds.len()
    }
}

impl Key {
    fn new(key: &MappingKey) -> Self {
        let Inside { softwire, addr } = key.inside();
        Self {
            addr,
            softwire,
            protocol: key.protocol().0,
            internal_port: key.internal_port(),
            peer: key.peer(),
        }
    }

    fn stored(&self) -> MappingKey {
        let Self { addr, softwire, protocol, internal_port, peer } = *self;
        MappingKey::new(Inside { softwire, addr }, Protocol(protocol), internal_port, peer)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Of so many seconds.
fn left_at(left: u64, written: Stamp, now: Stamp) -> u64 {
    left.saturating_sub(now.since(written))
}

impl Hold {
    fn new(stored: &StoredHold, written: Stamp) -> Self {
        Self {
            key: Key::new(&stored.key),
            external: stored.external,
            ports: stored.ports,
            nonce: stored.nonce.map(|nonce| nonce.0),
            requester: stored.requester.addr,
            requester_softwire: stored.requester.softwire,
            freed_after: 0,
            held: Some(stored.left.as_secs().max(1)),
            written,
        }
    }

    fn ports(&self) -> (SocketAddrV4, u16, u8) {
        (self.external, self.ports, self.key.protocol)
    }

    fn left_at(&self, now: Stamp, usual: Duration) -> u64 {
        left_at(self.freed_after.saturating_add(self.held.unwrap_or(usual.as_secs())), self.written, now)
    }

    fn stored(&self, now: Stamp, usual: Duration) -> StoredHold {
        StoredHold {
            key: self.key.stored(),
            external: self.external,
            ports: self.ports,
            nonce: self.nonce.map(Nonce),
            requester: Requester { addr: self.requester, softwire: self.requester_softwire },
            left: Duration::from_secs(self.left_at(now, usual)),
        }
    }
}

impl Mapping {
    fn new(stored: &StoredMapping, written: Stamp) -> Self {
        let filter = |filter: &Filter| (filter.prefix_len, filter.remote_port, filter.remote_addr);
        Self {
            key: Key::new(&stored.key),
            external: stored.external,
            ports: stored.ports,
            nonce: stored.nonce.map(|nonce| nonce.0),
            companion: stored.companion,
            requester: stored.requester.addr,
            requester_softwire: stored.requester.softwire,
            filters: stored.filters.iter().map(filter).collect(),
            description: stored.description.clone(),
            left: stored.left.as_secs().max(1),
            written,
        }
    }

    /// What is held of it, after it has ended by itself.
    fn ended(self) -> Option<Hold> {
        let SocketAddr::V4(external) = self.external else { return None };
        let Self { mut key, ports, nonce, requester, requester_softwire, left, written, .. } = self;
        key.peer = None; // the place of its internal endpoint
        let is_host = key.internal_port != 0;
        is_host.then_some(Hold {
            key,
            external,
            ports,
            nonce,
            requester,
            requester_softwire,
            freed_after: left,
            held: None,
            written,
        })
    }

    fn stored(&self, now: Stamp) -> StoredMapping {
        let filter = |&(prefix_len, remote_port, remote_addr): &(u8, u16, Ipv6Addr)| Filter {
            prefix_len,
            remote_port,
            remote_addr,
        };
        StoredMapping {
            key: self.key.stored(),
            external: self.external,
            ports: self.ports,
            nonce: self.nonce.map(Nonce),
            companion: self.companion,
            requester: Requester { addr: self.requester, softwire: self.requester_softwire },
            filters: self.filters.iter().map(filter).collect(),
            description: self.description.clone(),
            left: Duration::from_secs(left_at(self.left, self.written, now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Directory;

    fn mapping(port: u16) -> StoredMapping {
        let inside = Inside { softwire: None, addr: IpAddr::from([10, 8, 0, 2]) };
        StoredMapping {
            key: MappingKey::new(inside, Protocol::TCP, port, None),
            external: SocketAddr::from(([198, 51, 100, 7], port)),
            ports: 1,
            nonce: Some(Nonce([port.to_be_bytes()[1]; 12])),
            companion: false,
            requester: Requester { addr: inside.addr, softwire: None },
            filters: vec![Filter {
                prefix_len: 120,
                remote_port: 0,
                remote_addr: "::ffff:203.0.113.0".parse().unwrap(),
            }],
            description: Some("a game\n".to_owned()),
            left: Duration::from_secs(3600),
        }
    }

    fn hold(port: u16, ports: u16) -> StoredHold {
        let StoredMapping { key, nonce, requester, .. } = mapping(port);
        let external = SocketAddrV4::new([198, 51, 100, 7].into(), port);
        StoredHold { key, external, ports, nonce, requester, left: Duration::from_secs(120) }
    }

    fn load(directory: &Directory) -> Loaded {
        Store::open(&directory.0, Duration::from_secs(120)).unwrap().1
    }

    /// RFC 6887 §8.5: an epoch that is over is over also where there is no room to say when the new one began.
    #[test]
    fn no_old_epoch_outlives_a_new_one() {
        let directory = Directory::new("provider-store-over");
        let (mut store, _) = Store::open(&directory.0, Duration::from_secs(120)).unwrap();
        store.append(&Record::Epoch).unwrap();
        store.append(&Record::Put(mapping(1))).unwrap();
        store.sync().unwrap();
        assert!(directory.0.join(EPOCH).exists());
        let obstacle = directory.0.join(format!("{EPOCH}.new"));
        std::fs::create_dir(&obstacle).unwrap();
        store.append(&Record::Epoch).unwrap_err();
        std::fs::remove_dir(&obstacle).unwrap();
        let loaded = load(&directory);
        assert_eq!((loaded.mappings.len(), loaded.epoch), (1, None));
    }

    /// RFC 6887 §8.5: what comes back whole goes on counting.
    #[test]
    fn what_was_stored_comes_back_with_its_epoch() {
        let directory = Directory::new("provider-store-back");
        let (mut store, loaded) = Store::open(&directory.0, Duration::from_secs(120)).unwrap();
        assert_eq!((loaded.mappings.len(), loaded.epoch), (0, None), "nothing is known of an earlier life");
        let peer = Some(SocketAddr::from(([203, 0, 113, 9], 443)));
        let by_peer = StoredMapping {
            key: MappingKey::new(mapping(1).key.inside(), Protocol::TCP, 1, peer),
            nonce: None,
            filters: Vec::new(),
            ..mapping(1)
        };
        for record in [
            Record::Epoch,
            Record::Put(mapping(1)),
            Record::Put(mapping(2)),
            Record::Put(by_peer.clone()),
            Record::Remove(mapping(2).key),
            Record::Hold(hold(2, 1)),
            Record::Hold(hold(2, 8)),
            Record::Hold(hold(2, 1)),
        ] {
            store.append(&record).unwrap();
        }
        store.sync().unwrap();
        let loaded = load(&directory);
        let about = |left: Duration| (3598..=3600).contains(&left.as_secs());
        assert!(loaded.mappings.iter().all(|stored| about(stored.left)));
        let same: Vec<StoredMapping> = loaded
            .mappings
            .into_iter()
            .map(|stored| StoredMapping { left: Duration::from_secs(3600), ..stored })
            .collect();
        assert_eq!(same, [mapping(1), by_peer]);
        assert!(loaded.holds.iter().all(|held| (118..=120).contains(&held.left.as_secs())));
        let held = loaded.holds.into_iter().map(|held| StoredHold { left: Duration::from_secs(120), ..held });
        assert_eq!(
            held.collect::<Vec<_>>(),
            [hold(2, 1), hold(2, 8)],
            "a later one of the same ports counts"
        );
        assert!(loaded.epoch.is_some_and(|age| age < Duration::from_secs(3)));
    }

    /// A line that cannot be read is a mapping that is lost; so is one that a full disk has refused.
    #[test]
    fn an_epoch_ends_with_what_is_lost() {
        let directory = Directory::new("provider-store-lost");
        let (mut store, _) = Store::open(&directory.0, Duration::from_secs(120)).unwrap();
        store.append(&Record::Epoch).unwrap();
        store.append(&Record::Put(mapping(1))).unwrap();
        store.append(&Record::Put(mapping(2))).unwrap();
        let path = directory.0.join(FILE);
        let whole = std::fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        damaged[20] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        let loaded = load(&directory);
        assert_eq!((loaded.mappings.len(), loaded.epoch, loaded.damage.count()), (1, None, 1));
        assert_eq!(load(&directory).epoch, None, "it is not forgotten with the line");
        std::fs::write(directory.0.join(EPOCH), r#"{"began":{"at":1800000000}}"#).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(load(&directory).epoch, None, "everything was lost");
        std::fs::write(directory.0.join(EPOCH), serde_json::to_vec(&store.epoch).unwrap()).unwrap();

        std::fs::write(&path, &whole).unwrap();
        let (mut store, loaded) = Store::open(&directory.0, Duration::from_secs(120)).unwrap();
        assert!(loaded.epoch.is_some());
        store.journal.fill();
        std::fs::create_dir(directory.0.join("provider.journal.new")).unwrap();
        store.append(&Record::Put(mapping(3))).unwrap_err();
        assert!(store.is_behind());
        std::fs::remove_dir(directory.0.join("provider.journal.new")).unwrap();
        assert_eq!(load(&directory).epoch, None, "3 was answered and is not stored");
        store.catch_up().unwrap();
        let loaded = load(&directory);
        assert_eq!((loaded.mappings.len(), loaded.epoch.is_some()), (3, true));
        // Also when it is the next change that finds room.
        store.journal.fall_behind();
        store.honestly(Err(io::ErrorKind::StorageFull.into())).unwrap_err();
        assert!(!directory.0.join(EPOCH).exists());
        store.append(&Record::Put(mapping(4))).unwrap();
        assert!(!store.is_behind() && directory.0.join(EPOCH).exists());
    }

    /// D-15: what has ended while nobody was there is held from then on.
    #[test]
    fn what_is_over_is_held() {
        let now = Stamp { at: 1_800_000_000, boot: 7, up: 50 };
        let later = |seconds| Stamp { up: now.up + seconds, ..now };
        let usual = Duration::from_secs(120);
        let contents_at = |seconds| {
            let mut contents = Contents::default();
            for mapping in [mapping(1), StoredMapping { left: Duration::from_secs(60), ..mapping(2) }] {
                let line = Line::Put(Mapping::new(&mapping, now));
                journal_file::Contents::apply(&mut contents, 1, line);
            }
            journal_file::Contents::forget_what_is_over(&mut contents, later(seconds));
            contents
        };
        assert!(contents_at(59).holds.is_empty());
        let contents = contents_at(100);
        assert_eq!((contents.mappings.len(), contents.holds.len()), (1, 1));
        let held = contents.holds.values().next().unwrap();
        assert_eq!(
            held.stored(later(100), usual),
            StoredHold { left: Duration::from_secs(80), ..hold(2, 1) }
        );
        // Written anew with the rest, and read again.
        let text = serde_json::to_string(&journal_file::Contents::lines(&contents)[1]).unwrap();
        let Line::Hold(again) = serde_json::from_str(&text).unwrap() else { panic!("{text}") };
        assert_eq!(again.left_at(later(150), usual), 30);
        assert_eq!(again.left_at(later(180), usual), 0);
        let late = contents_at(60 + u64::from(LONGEST_HOLD));
        assert!(late.holds.values().all(|held| held.external.port() == 1), "{late:?}");
    }

    #[test]
    fn what_is_over_does_not_come_back() {
        let now = Stamp { at: 1_800_000_000, boot: 7, up: 50 };
        let later = |seconds| Stamp { up: now.up + seconds, ..now };
        let stored = Mapping::new(&mapping(1), now);
        assert_eq!(stored.stored(later(3000)).left, Duration::from_secs(600));
        assert_eq!(left_at(stored.left, stored.written, later(3600)), 0);
    }
}
