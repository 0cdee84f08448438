//! The file of what survives a crash: one line for each change, appended and synced before the answer that counts on it.
//!
//! A line is a CRC-32 in eight hexadecimal digits, a blank, and JSON. A line that was torn by a power cut has a wrong CRC
//! and is passed over. When most lines are history, the file is written anew beside the old one and renamed.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::journal::{Record, StoredMapping};
use serde::{Deserialize, Serialize};
use wire::pcp::{Nonce, Protocol};

const FILE: &str = "mappings.journal";
/// Lines of history that are kept before the file is written anew.
const HISTORY: usize = 512;

/// One line.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Put(Mapping),
    Remove { protocol: u8, external_port: u16 },
    Probe { nonce: [u8; 12] },
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
    /// Seconds that were left of the lease at `at`; absent for ever.
    lease_left: Option<u64>,
    nonce: [u8; 12],
    /// Seconds since 1970.
    at: u64,
}

/// The open file.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    file: File,
    /// Lines in the file.
    lines: usize,
    /// Something was appended since the last [`Store::sync`].
    unsynced: bool,
    /// The number of the next line; it goes on when the file is written anew.
    next: usize,
    mappings: Mappings,
    probe: Option<[u8; 12]>,
}

/// What stands, each with the number of its line: a later one is newer, whatever the clock says.
type Mappings = BTreeMap<(u8, u16), (usize, Mapping)>;

/// What was stored.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Loaded {
    /// The mappings whose leases have not ended since, the newest first: where a clock that went back makes two of them
    /// contradict each other, the newer one is right.
    pub mappings: Vec<StoredMapping>,
    /// The nonce of the mapping that tells the external address.
    pub probe: Option<Nonce>,
    /// Lines that made no sense.
    pub damaged: usize,
}

impl Store {
    /// Reads what is in `directory`, and writes it anew without its history.
    pub fn open(directory: &Path) -> io::Result<(Self, Loaded)> {
        let bytes = match std::fs::read(directory.join(FILE)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let (mut mappings, mut probe, mut damaged) = (Mappings::new(), None, 0);
        for (number, line) in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).enumerate() {
            match parse(line) {
                Some(Line::Put(mapping)) => drop(mappings.insert(key(&mapping), (number, mapping))),
                Some(Line::Remove { protocol, external_port }) => {
                    drop(mappings.remove(&(protocol, external_port)));
                }
                Some(Line::Probe { nonce }) => probe = Some(nonce),
                None => damaged += 1,
            }
        }
        let now = unix_time();
        mappings.retain(|_, (_, mapping)| mapping.lease_at(now) != Some(0));
        let loaded = Loaded {
            mappings: in_order(&mappings).into_iter().rev().map(|mapping| mapping.stored(now)).collect(),
            probe: probe.map(Nonce),
            damaged,
        };
        let (file, lines) = write_anew(directory, &mappings, probe)?;
        let next = mappings.values().map(|(number, _)| number + 1).max().unwrap_or(0);
        let directory = directory.to_owned();
        Ok((Self { directory, file, lines, unsynced: false, next, mappings, probe }, loaded))
    }

    /// Stores one change. It survives the end of this process; a power cut only after [`sync`](Self::sync).
    pub fn append(&mut self, record: &Record) -> io::Result<()> {
        self.next += 1;
        let line = match record {
            Record::Put(stored) => {
                let mapping = Mapping::new(stored, unix_time());
                self.mappings.insert(key(&mapping), (self.next, mapping.clone()));
                Line::Put(mapping)
            }
            Record::Remove(protocol, external_port) => {
                if self.mappings.remove(&(protocol.0, *external_port)).is_none() {
                    return Ok(()); // it is not there
                }
                Line::Remove { protocol: protocol.0, external_port: *external_port }
            }
            Record::Ended(protocol, external_port) => {
                // The line in the file ends by itself; it is left out when the file is next written anew.
                self.mappings.remove(&(protocol.0, *external_port));
                return Ok(());
            }
            Record::Clear => {
                self.mappings.clear();
                (self.file, self.lines) = write_anew(&self.directory, &self.mappings, self.probe)?;
                return Ok(());
            }
            Record::Probe(nonce) => {
                self.probe = Some(nonce.0);
                Line::Probe { nonce: nonce.0 }
            }
        };
        if self.lines > self.mappings.len() * 2 + HISTORY {
            (self.file, self.lines) = write_anew(&self.directory, &self.mappings, self.probe)?;
            return Ok(());
        }
        self.lines += 1;
        self.unsynced = true;
        self.file.write_all(&encode(&line)?)
    }

    /// On return everything that was appended survives a power cut.
    pub fn sync(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.unsynced) { self.file.sync_data() } else { Ok(()) }
    }
}

#[cfg(test)]
impl Store {
    /// One on a file system without room.
    pub fn full() -> Self {
        let file = OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
        let directory = PathBuf::from("/dev/full");
        Self { directory, file, lines: 0, unsynced: false, next: 0, mappings: Mappings::new(), probe: None }
    }
}

/// Writes everything that stands into a new file and puts it in the old one's place.
fn write_anew(directory: &Path, mappings: &Mappings, probe: Option<[u8; 12]>) -> io::Result<(File, usize)> {
    let lines = in_order(mappings)
        .into_iter()
        .cloned()
        .map(Line::Put)
        .chain(probe.map(|nonce| Line::Probe { nonce }));
    let lines: Vec<Vec<u8>> = lines.map(|line| encode(&line)).collect::<io::Result<_>>()?;
    let new = directory.join("mappings.journal.new");
    // The nonces are what keeps others from deleting mappings.
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&lines.concat())?;
    file.sync_all()?;
    std::fs::rename(&new, directory.join(FILE))?;
    File::open(directory)?.sync_all()?;
    Ok((file, lines.len()))
}

/// The oldest first.
fn in_order(mappings: &Mappings) -> Vec<&Mapping> {
    let mut all: Vec<&(usize, Mapping)> = mappings.values().collect();
    all.sort_by_key(|(number, _)| *number);
    all.into_iter().map(|(_, mapping)| mapping).collect()
}

impl Mapping {
    fn new(stored: &StoredMapping, at: u64) -> Self {
        Self {
            protocol: stored.protocol.0,
            external: stored.external,
            internal: stored.internal,
            nat_port: stored.nat_port,
            remote_peer: stored.remote_peer,
            remote_name: stored.remote_name.clone(),
            description: stored.description.clone(),
            strict: stored.strict,
            lease_left: stored.lease_left.map(|left| left.as_secs().max(1)),
            nonce: stored.nonce.0,
            at,
        }
    }

    /// Seconds left of the lease; a clock that went back (a router without a battery) counts as no time at all.
    fn lease_at(&self, now: u64) -> Option<u64> {
        self.lease_left.map(|left| left.saturating_sub(now.saturating_sub(self.at)))
    }

    fn stored(&self, now: u64) -> StoredMapping {
        StoredMapping {
            protocol: Protocol(self.protocol),
            external: self.external,
            internal: self.internal,
            nat_port: self.nat_port,
            remote_peer: self.remote_peer,
            remote_name: self.remote_name.clone(),
            description: self.description.clone(),
            strict: self.strict,
            lease_left: self.lease_at(now).map(Duration::from_secs),
            nonce: Nonce(self.nonce),
        }
    }
}

fn key(mapping: &Mapping) -> (u8, u16) {
    (mapping.protocol, mapping.external.port())
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn encode(line: &Line) -> io::Result<Vec<u8>> {
    let json = serde_json::to_string(line)?;
    Ok(format!("{:08x} {json}\n", crc32(json.as_bytes())).into_bytes())
}

fn parse(line: &[u8]) -> Option<Line> {
    let (crc, json) = line.split_at_checked(9)?;
    let crc = u32::from_str_radix(std::str::from_utf8(crc).ok()?.strip_suffix(' ')?, 16).ok()?;
    (crc == crc32(json)).then(|| serde_json::from_slice(json).ok())?
}

/// CRC-32 as in Ethernet and zip: polynomial 0xedb88320, reflected.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0_u32; 256];
        let mut n = 0;
        while n < 256 {
            #[allow(clippy::cast_possible_truncation, reason = "below 256")]
            let mut crc = n as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
                bit += 1;
            }
            table[n] = crc;
            n += 1;
        }
        table
    };
    !bytes.iter().fold(u32::MAX, |crc, &byte| crc >> 8 ^ TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

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
            lease_left: lease_left.map(Duration::from_secs),
            nonce: Nonce([9; 12]),
        }
    }

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("portferry-store-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn load(&self) -> Loaded {
            Store::open(&self.0).unwrap().1
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn crc_of_the_usual_check_word() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    /// R-10, D-4: also after a second start.
    #[test]
    fn what_was_stored_comes_back() {
        let directory = Directory::new("back");
        let (mut store, loaded) = Store::open(&directory.0).unwrap();
        assert_eq!(loaded, Loaded::default());
        for record in [
            Record::Put(mapping(1, None)),
            Record::Put(mapping(2, Some(1000))),
            Record::Put(mapping(3, Some(1000))),
            Record::Remove(Protocol::TCP, 2),
            Record::Remove(Protocol::UDP, 3),
            Record::Probe(Nonce([4; 12])),
        ] {
            store.append(&record).unwrap();
        }
        for _ in 0..2 {
            let loaded = directory.load();
            assert_eq!(loaded.mappings[1], mapping(1, None));
            assert_eq!(loaded.mappings[0].external.port(), 3, "the newest first");
            let left = loaded.mappings[0].lease_left.unwrap().as_secs();
            assert!((990..=1000).contains(&left), "{left}");
            assert_eq!((loaded.mappings.len(), loaded.probe, loaded.damaged), (2, Some(Nonce([4; 12])), 0));
        }
    }

    /// R-10, decision 16: a power cut leaves any prefix of the file; whatever was synced before is there, and nothing else.
    #[test]
    fn every_prefix_of_the_file_is_good() {
        let directory = Directory::new("torn");
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
            let loaded = directory.load();
            // A line without its line feed is whole all the same.
            let stored =
                ends.iter().filter(|&&end| end > 0 && u64::try_from(cut).unwrap() + 1 >= end).count();
            assert_eq!(loaded.mappings.len(), stored, "cut after {cut} octets");
        }
        let mut damaged = whole.clone();
        damaged[20] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        let loaded = directory.load();
        assert_eq!((loaded.mappings.len(), loaded.damaged), (4, 1));
    }

    #[test]
    fn leases_end_while_the_power_is_off() {
        let now = 1_000_000;
        let stored = Mapping::new(&mapping(1, Some(100)), now);
        assert_eq!(stored.lease_at(now + 60), Some(40));
        assert_eq!(stored.lease_at(now + 100), Some(0));
        assert_eq!(stored.lease_at(0), Some(100), "a clock that starts in 1970");
        assert_eq!(Mapping::new(&mapping(1, None), now).lease_at(u64::MAX), None);
    }

    /// Short leases that end by themselves leave nothing in memory, and in the file no more than its history.
    #[test]
    fn ended_leases_are_left_out() {
        let directory = Directory::new("ended");
        let (mut store, _) = Store::open(&directory.0).unwrap();
        store.append(&Record::Put(mapping(7, None))).unwrap();
        for n in 0..2 * HISTORY {
            let port = 1024 + u16::try_from(n).unwrap();
            store.append(&Record::Put(mapping(port, Some(600)))).unwrap();
            store.append(&Record::Ended(Protocol::TCP, port)).unwrap();
        }
        assert_eq!(store.mappings.len(), 1);
        assert!(store.lines <= HISTORY + 4, "{}", store.lines);
        drop(store);
        assert!(
            directory.load().mappings.len() <= HISTORY + 4,
            "those not rewritten yet, until their leases end"
        );
    }

    #[test]
    fn history_is_bounded() {
        let directory = Directory::new("history");
        let (mut store, _) = Store::open(&directory.0).unwrap();
        for n in 0..5 * HISTORY {
            let record =
                if n % 2 == 0 { Record::Put(mapping(7, None)) } else { Record::Remove(Protocol::TCP, 7) };
            store.append(&record).unwrap();
        }
        assert!(
            std::fs::metadata(directory.0.join(FILE)).unwrap().len() < 400 * u64::try_from(HISTORY).unwrap()
        );
        assert_eq!(directory.load().mappings, []);
    }
}
