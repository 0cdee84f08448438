//! A file of what survives a crash: one line for each change, appended and synced before whatever counts on it.
//!
//! A line is a CRC-32 in eight hexadecimal digits, a blank, and JSON. A line that was torn by a power cut has a wrong CRC
//! and is passed over; so is any other that makes no sense, but then the file is kept under another name. When most lines are history, the file is written anew beside the old one and renamed. So it is after
//! anything could not be written: until then the file is as it was before, and nothing that happens since is in it.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufRead, BufReader, Read as _, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::set_aside::{self, Old};

/// Lines of history that are kept before the file is written anew.
pub const HISTORY: usize = 512;
/// While the file is behind, a change tries to write everything only so often.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// No line is longer; what is comes from somebody else.
const MAX_LINE: usize = 64 * 1024;

/// What a file says, or is to say.
pub trait Contents: Default {
    /// One line of it.
    type Line: DeserializeOwned + Serialize;

    /// Takes in one line, the `number`th; it comes back when it has changed something.
    fn apply(&mut self, number: usize, line: Self::Line) -> Option<Self::Line>;
    /// Leaves out what has ended by now.
    fn forget_what_is_over(&mut self, now: Stamp);
    /// All of it, in the order of the numbers.
    fn lines(&self) -> Vec<Self::Line>;
    /// How many lines that is.
    fn line_count(&self) -> usize;
}

/// The open file.
#[derive(Debug)]
pub struct JournalFile<C> {
    directory: PathBuf,
    name: &'static str,
    /// Absent while it could not be written.
    file: Option<File>,
    /// Lines in the file.
    lines: usize,
    /// So many may there be before it is tried again to write the file anew, after that has failed.
    most_lines: usize,
    /// Something was appended since the last [`JournalFile::sync`].
    unsynced: bool,
    /// When it was last tried to write everything.
    tried: Option<Instant>,
    /// The number of the last line; it goes on when the file is written anew.
    number: usize,
    contents: C,
}

impl<C: Contents> JournalFile<C> {
    /// Reads the file called `name` in `directory`, if there is one, and writes it anew without its history. Beside it, what
    /// was wrong with it: a file that made no sense, as a whole or in part, is kept under another name. However long it is, little of
    /// it is in memory at a time.
    ///
    /// # Errors
    /// Those of writing unless the file system is full or read-only: then what is there is used, and
    /// [`is_behind`](Self::is_behind). [`PermissionDenied`](io::ErrorKind::PermissionDenied): what is there may not be read; it stays as
    /// it is.
    pub fn open(directory: &Path, name: &'static str) -> io::Result<(Self, Damage)> {
        let Read { mut contents, number, mut damage } = match set_aside::open(&directory.join(name)) {
            Ok(Some(file)) => read::<C>(BufReader::new(file)),
            Ok(None) => Read::default(),
            // That is nothing which the file could do for; who may read it finds it whole.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(io::Error::new(error.kind(), format!("{name} cannot be read: {error}")));
            }
            Err(error) => Read {
                damage: Damage { unread: Some(error.to_string()), ..Damage::default() },
                ..Read::default()
            },
        };
        if damage.is_grave() {
            damage.kept = Some(set_aside::set_aside(directory, name, Old::Stays).map_err(|e| e.to_string()));
        }
        set_aside::make_way(directory, &beside(name));
        contents.forget_what_is_over(Stamp::now());
        let directory = directory.to_owned();
        let mut journal = Self {
            directory,
            name,
            file: None,
            lines: 0,
            most_lines: 0,
            unsynced: false,
            tried: None,
            number,
            contents,
        };
        match journal.catch_up() {
            Err(error) if is_lack_of_room(&error) => {}
            other => other?,
        }
        Ok((journal, damage))
    }

    /// What the file says, or is to say.
    pub fn contents(&self) -> &C {
        &self.contents
    }

    /// A change that no line is written for: what ends by itself.
    pub fn change(&mut self, change: impl FnOnce(&mut C)) {
        change(&mut self.contents);
    }

    /// Stores one change. It survives the end of this process; a power cut only after [`sync`](Self::sync).
    ///
    /// # Errors
    /// Whatever the system says; the file [is behind](Self::is_behind) then.
    pub fn append(&mut self, line: C::Line) -> io::Result<()> {
        self.number += 1;
        let Some(line) = self.contents.apply(self.number, line) else { return Ok(()) };
        if self.is_behind() {
            // Not everything again for each of many changes.
            let again = self.tried.is_none_or(|tried| tried.elapsed() >= TRY_AGAIN);
            return if again { self.catch_up() } else { Err(io::ErrorKind::StorageFull.into()) };
        }
        if self.lines > self.most_lines.max(self.contents.line_count() * 2 + HISTORY) {
            match self.catch_up() {
                Ok(()) => return Ok(()),
                // Where there is no room for a second file there may be some for a line.
                Err(_) if !self.is_behind() => self.most_lines = self.lines * 2,
                Err(error) => return Err(error),
            }
        }
        let Some(file) = self.file.as_mut() else { return Err(io::ErrorKind::StorageFull.into()) };
        self.lines += 1;
        self.unsynced = true;
        let written = encode(&line).and_then(|line| file.write_all(&line));
        if written.is_err() {
            self.file = None;
        }
        written
    }

    /// On return everything that was appended survives a power cut.
    ///
    /// # Errors
    /// Whatever the system says; the file [is behind](Self::is_behind) then, for nobody knows what has been written.
    pub fn sync(&mut self) -> io::Result<()> {
        let synced = match &self.file {
            Some(file) if std::mem::take(&mut self.unsynced) => file.sync_data(),
            _ => Ok(()),
        };
        if synced.is_err() {
            self.file = None;
        }
        synced
    }

    /// Whether something could not be written, so that the file is as it was before that. Once a second an
    /// [`append`](Self::append) tries to write everything, and so does each [`catch_up`](Self::catch_up).
    pub fn is_behind(&self) -> bool {
        self.file.is_none()
    }

    /// Writes everything that stands into a new file and puts it in the old one's place; on return it survives a power cut.
    ///
    /// # Errors
    /// Whatever the system says; the old file is there still and is gone on with, or the file [is behind](Self::is_behind).
    pub fn catch_up(&mut self) -> io::Result<()> {
        self.tried = Some(Instant::now());
        let octets = self.octets()?;
        let new = NewFile::write(&self.directory, self.name, &octets)?;
        // Should it fail from here on, nobody knows which of the two files is there.
        self.file = None;
        self.file = Some(new.put_in_place()?);
        Ok(())
    }

    /// As [`catch_up`](Self::catch_up), when less stands than before: where there is no room for a second file, the one that
    /// is there is written over. A power cut meanwhile leaves a part.
    ///
    /// # Errors
    /// Whatever the system says; the file [is behind](Self::is_behind) then.
    pub fn shrink(&mut self) -> io::Result<()> {
        if self.catch_up().is_ok() {
            return Ok(());
        }
        self.file = None;
        let octets = self.octets()?;
        let path = self.directory.join(self.name);
        let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
        file.write_all(&octets)?;
        file.sync_all()?;
        self.file = Some(file);
        Ok(())
    }

    /// Everything that stands.
    fn octets(&mut self) -> io::Result<Vec<u8>> {
        self.contents.forget_what_is_over(Stamp::now());
        let lines = self.contents.lines();
        (self.lines, self.most_lines, self.unsynced) = (lines.len(), 0, false);
        let octets: Vec<Vec<u8>> = lines.iter().map(encode).collect::<io::Result<_>>()?;
        Ok(octets.concat())
    }
}

#[cfg(test)]
impl<C: Contents> JournalFile<C> {
    /// One on a file system without room.
    pub fn full() -> Self {
        let file = OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
        let (directory, name, contents) = (PathBuf::from("/dev/full"), "full", C::default());
        Self {
            directory,
            name,
            file: Some(file),
            lines: 0,
            most_lines: 0,
            unsynced: false,
            tried: None,
            number: 0,
            contents,
        }
    }

    /// Something could not be written, a while ago.
    pub fn fall_behind(&mut self) {
        (self.file, self.tried) = (None, None);
    }

    /// From now on its file system has no room.
    pub fn fill(&mut self) {
        self.file = Self::full().file;
    }

    /// Lines in the file.
    pub fn lines(&self) -> usize {
        self.lines
    }
}

/// What was wrong with a file.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Damage {
    /// Lines that made no sense.
    pub lines: usize,
    /// Lines that are as they were written, by a version that knows more than this one.
    pub unknown: usize,
    /// The last line was not written to its end.
    pub torn: bool,
    /// Why it could not be read to its end, or at all.
    pub unread: Option<String>,
    /// Under which name it was kept, or why it was not.
    pub kept: Option<Result<String, String>>,
}

impl Damage {
    /// Lines that were passed over.
    pub fn count(&self) -> usize {
        self.lines + self.unknown + usize::from(self.torn)
    }

    /// More than what a power cut does, which loses nothing that anybody was told of.
    fn is_grave(&self) -> bool {
        self.lines > 0 || self.unknown > 0 || self.unread.is_some()
    }

    /// One line for the log; `file` is what was damaged, `what` is what it has told of.
    pub fn report(&self, file: &Path, what: &str) -> Option<String> {
        let file = file.display();
        if !self.is_grave() {
            return self.torn.then(|| {
                format!("the last line of {file} was not written to its end (a power cut?): it is passed over, and nobody was told of it")
            });
        }
        let lines = |count, are: &str| (count > 0).then(|| format!("{count} of its lines {are}"));
        let cannot = self.unread.as_ref().map(|why| format!("it cannot be read: {why}"));
        let all = [cannot, lines(self.lines, "make no sense"), lines(self.unknown, "are of another version")];
        let why: Vec<String> = all.into_iter().flatten().collect();
        let kept = match &self.kept {
            Some(Ok(name)) => format!("the file is kept as {name}"),
            Some(Err(error)) => format!("the file could not be kept: {error}"),
            None => "it is gone".to_owned(),
        };
        Some(format!(
            "{file} is damaged ({}): what they said of {what} is lost, the rest stands; {kept}",
            why.join(", ")
        ))
    }
}

/// Puts a file with these octets in the place of the one called `name`, so that a power cut leaves the old or the new
/// one; only this user can read it.
pub fn write_anew(directory: &Path, name: &str, octets: &[u8]) -> io::Result<()> {
    NewFile::write(directory, name, octets)?.put_in_place().map(drop)
}

/// A file beside the one that it is to replace.
struct NewFile<'a> {
    directory: &'a Path,
    name: &'a str,
    path: PathBuf,
    file: File,
}

impl<'a> NewFile<'a> {
    /// The old one is as it was, also after an error.
    fn write(directory: &'a Path, name: &'a str, octets: &[u8]) -> io::Result<Self> {
        let path = directory.join(beside(name));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        // One that was there already may have been anybody's to read.
        let private = file.set_permissions(Permissions::from_mode(0o600));
        let written = private.and_then(|()| file.write_all(octets)).and_then(|()| file.sync_all());
        if let Err(error) = written {
            // What room it has taken is needed elsewhere.
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        Ok(Self { directory, name, path, file })
    }

    /// After an error it is there, or the old one.
    fn put_in_place(self) -> io::Result<File> {
        std::fs::rename(&self.path, self.directory.join(self.name))?;
        File::open(self.directory)?.sync_all()?;
        Ok(self.file)
    }
}

/// What a file is called until it takes another one's place.
fn beside(name: &str) -> String {
    format!("{name}.new")
}

/// What passes: no room, or a file system that went read-only.
pub fn is_lack_of_room(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem)
}

/// When a line was written, so that a later life knows how long ago that was: by the clock of the machine's start as long as
/// that has not been started again, else by the wall clock as far as that knows.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Stamp {
    /// Seconds since 1970.
    pub at: u64,
    /// Which start of the machine it was; 0 when that is not known.
    #[serde(default)]
    pub boot: u64,
    /// Seconds since then, suspend included.
    #[serde(default)]
    pub up: u64,
}

/// A wall clock before 2025 has never been set: routers without a battery start in 1970, or when their firmware was made.
const SET: u64 = 1_735_689_600;

impl Stamp {
    /// Now.
    pub fn now() -> Self {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Self { at, boot: boot(), up: crate::clock::now().as_secs() }
    }

    /// Whether [`since`](Self::since) tells how long ago that was.
    pub fn knows(self, then: Self) -> bool {
        self.boot != 0 && self.boot == then.boot || then.at >= SET && self.at >= then.at
    }

    /// Seconds that have passed since `then`. A wall clock that went back, or had not been set then, tells of no time at all.
    pub fn since(self, then: Self) -> u64 {
        if self.boot != 0 && self.boot == then.boot {
            self.up.saturating_sub(then.up)
        } else if then.at < SET {
            0
        } else {
            self.at.saturating_sub(then.at)
        }
    }
}

/// A number for this start of the machine.
fn boot() -> u64 {
    static BOOT: OnceLock<u64> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(15).collect();
        u64::from_str_radix(&digits, 16).unwrap_or(0)
    })
}

/// What a file says.
#[derive(Default)]
pub(crate) struct Read<C> {
    pub(crate) contents: C,
    /// Lines that there are.
    pub(crate) number: usize,
    /// What was wrong with it.
    pub(crate) damage: Damage,
}

/// Takes in all lines of a file.
pub(crate) fn read<C: Contents>(reader: impl BufRead) -> Read<C> {
    let Read { mut contents, mut number, mut damage } = Read::<C>::default();
    let read = each_line(reader, |line, is_whole| {
        number += 1;
        match line.map_or(Parsed::Nonsense, parse) {
            Parsed::Known(line) => drop(contents.apply(number, line)),
            Parsed::Nonsense if !is_whole && line.is_some_and(may_be_torn) => damage.torn = true,
            Parsed::Nonsense => damage.lines += 1,
            Parsed::Unknown => damage.unknown += 1,
        }
    });
    damage.unread = read.err().map(|error| error.to_string());
    Read { contents, number, damage }
}

/// A line of the file with this JSON.
pub(crate) fn line(json: &[u8]) -> Vec<u8> {
    let crc = format!("{:08x} ", crc32(json));
    [crc.as_bytes(), json, b"\n"].concat()
}

pub(crate) fn encode(line: &impl Serialize) -> io::Result<Vec<u8>> {
    Ok(self::line(&serde_json::to_vec(line)?))
}

/// Calls `take` with each line but empty ones, and whether it was written to its end; a line that is too long is not there.
fn each_line(mut reader: impl BufRead, mut take: impl FnMut(Option<&[u8]>, bool)) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let most = u64::try_from(MAX_LINE).unwrap_or(u64::MAX) + 1;
        reader.by_ref().take(most).read_until(b'\n', &mut line)?;
        let mut is_whole = line.ends_with(b"\n");
        let is_long = !is_whole && line.len() > MAX_LINE;
        if is_long {
            is_whole = skip_line(&mut reader)?;
        }
        match line.strip_suffix(b"\n").unwrap_or(&line) {
            [] if is_whole => {}
            [] => return Ok(()),
            _ if is_long => take(None, is_whole),
            line => take(Some(line), is_whole),
        }
    }
}

/// Goes on to the next line; false if there is none.
fn skip_line(reader: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let some = reader.fill_buf()?;
        if some.is_empty() {
            return Ok(false);
        }
        let end = some.iter().position(|octet| *octet == b'\n');
        let len = end.map_or(some.len(), |end| end + 1);
        reader.consume(len);
        if end.is_some() {
            return Ok(true);
        }
    }
}

/// Whether a line that was not written to its end looks like the beginning of one of ours: what a power cut leaves, and zeros where the
/// disk did not get the rest.
fn may_be_torn(line: &[u8]) -> bool {
    let written = line.split(|octet| *octet == 0).next().unwrap_or_default();
    written.iter().take(10).enumerate().all(|(place, octet)| match place {
        ..8 => octet.is_ascii_hexdigit(),
        8 => *octet == b' ',
        _ => *octet == b'{',
    })
}

/// What a line is.
enum Parsed<L> {
    Known(L),
    /// As it was written, by a version that knows more.
    Unknown,
    Nonsense,
}

fn parse<L: DeserializeOwned>(line: &[u8]) -> Parsed<L> {
    let json = || {
        let (crc, json) = line.split_at_checked(9)?;
        let crc = u32::from_str_radix(std::str::from_utf8(crc).ok()?.strip_suffix(' ')?, 16).ok()?;
        (crc == crc32(json)).then_some(json)
    };
    match json().map(serde_json::from_slice) {
        Some(Ok(line)) => Parsed::Known(line),
        Some(Err(_)) => Parsed::Unknown,
        None => Parsed::Nonsense,
    }
}

/// CRC-32 as in Ethernet and zip: polynomial 0xedb88320, reflected.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
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

    #[test]
    fn how_long_ago_something_was_written() {
        let stamp = |at, boot, up| Stamp { at, boot, up };
        let day = 1_800_000_000;
        for (then, now, passed, why) in [
            (stamp(day, 7, 100), stamp(day + 60, 7, 160), 60, "nothing special"),
            (stamp(50, 7, 100), stamp(day, 7, 160), 60, "the time was set meanwhile"),
            (stamp(day, 7, 100), stamp(50, 7, 160), 60, "or set back"),
            (stamp(day, 7, 100), stamp(day + 60, 8, 10), 60, "started again"),
            (stamp(50, 7, 100), stamp(day, 8, 10), 0, "written before the time was set"),
            (stamp(day, 7, 100), stamp(50, 8, 10), 0, "read before the time is set"),
            (stamp(day, 0, 0), stamp(day + 60, 0, 0), 60, "of an older version"),
        ] {
            assert_eq!((now.since(then), now.knows(then)), (passed, passed > 0), "{why}");
        }
        let now = Stamp::now();
        assert!(now.boot != 0 && now.since(now) == 0);
    }

    /// It is no damage, and nothing of it is lost: who may not read it says so, and ends.
    #[test]
    fn a_file_that_may_not_be_read_stays() {
        use crate::scratch::{Directory, unreadable};
        use crate::store::Store;

        let directory = Directory::new("journal-unreadable");
        let path = directory.0.join("mappings.journal");
        std::fs::write(&path, b"precious").unwrap();
        let Some(outcome) = unreadable(&path, || Store::open(&directory.0).err()) else { return };
        let error = outcome.expect("it cannot be opened");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("mappings.journal cannot be read"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        assert_eq!(std::fs::read_dir(&directory.0).unwrap().count(), 1, "nothing is beside it");
    }

    /// A file of somebody else's is as long as it likes; of a line that is too long nothing is remembered.
    #[test]
    fn lines_are_bounded() {
        let long = vec![b'x'; MAX_LINE + 1];
        let at_most = vec![b'y'; MAX_LINE];
        let file = [b"a\n\nb\n", &long[..], b"\n", &at_most, b"\nc\n", &long, &long, b"\nd"].concat();
        let mut seen = Vec::new();
        each_line(BufReader::with_capacity(100, &file[..]), |line, is_whole| {
            seen.push((line.map(|line| (line[0], line.len())), is_whole));
        })
        .unwrap();
        assert_eq!(
            seen,
            [
                (Some((b'a', 1)), true),
                (Some((b'b', 1)), true),
                (None, true),
                (Some((b'y', MAX_LINE)), true),
                (Some((b'c', 1)), true),
                (None, true),
                (Some((b'd', 1)), false),
            ]
        );
        let mut endless = 0;
        each_line(&long[..], |line, is_whole| {
            assert_eq!((line, is_whole), (None, false));
            endless += 1;
        })
        .unwrap();
        assert_eq!(endless, 1);
    }

    #[test]
    fn what_a_power_cut_leaves() {
        let line = b"5fd924d6 {\"put\":{}}";
        for cut in 1..line.len() {
            assert!(may_be_torn(&line[..cut]), "{cut}");
            assert!(may_be_torn(&[&line[..cut], &[0; 512]].concat()), "{cut} and zeros");
        }
        for other in [&b"x"[..], b"5fd924d6x", b"5fd924d6 x", b"[mappings]"] {
            assert!(!may_be_torn(other), "{other:?}");
        }
    }

    #[test]
    fn crc_of_the_usual_check_word() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
