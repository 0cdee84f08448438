//! Who the network process is: a user with no rights, and whose the state directory is.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fstat, openat};
use rustix::path::Arg;
use rustix::process::geteuid;
use rustix::thread::{CapabilitySet, capabilities};

/// Its name, if the system has one of its own for it.
const NAME: &str = "portferry";
/// Everybody's, if not.
const NOBODY: &str = "nobody";
const PASSWD: &str = "/etc/passwd";
/// Root and its group.
const ROOT: (u32, u32) = (0, 0);

/// Which everybody shares, wherever they are.
const SHARED: [&str; 17] = [
    "/",
    "/dev/shm",
    "/etc",
    "/etc/config",
    "/home",
    "/mnt",
    "/opt",
    "/root",
    "/run",
    "/srv",
    "/tmp",
    "/tmp/run",
    "/usr",
    "/var",
    "/var/lib",
    "/var/run",
    "/var/tmp",
];

/// A user and his group.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct User {
    /// As the system calls him.
    pub name: String,
    /// His number.
    pub uid: u32,
    /// His group's.
    pub gid: u32,
}

impl User {
    /// Whom the network process is to be; `None` where this process cannot make it another than itself.
    pub(super) fn of_network_process() -> Option<Self> {
        if !geteuid().is_root() {
            return None;
        }
        let may = capabilities(None).map_or(CapabilitySet::empty(), |has| has.permitted);
        if !may.contains(CapabilitySet::SETUID | CapabilitySet::SETGID) {
            tracing::warn!(
                "without CAP_SETUID and CAP_SETGID the network process is root, too; it has no capability and its sandbox all the same"
            );
            return None;
        }
        let passwd = fs::read_to_string(PASSWD).unwrap_or_default();
        let own = find(&passwd, NAME);
        if own.is_none() {
            tracing::warn!(
                "there is no user {NAME}: the network process runs as {NOBODY}, whose other programs may read what it stores; `useradd --system --no-create-home {NAME}` makes it one"
            );
        }
        let nobody = || Self { name: NOBODY.to_owned(), uid: 65534, gid: 65534 };
        Some(own.or_else(|| find(&passwd, NOBODY)).unwrap_or_else(nobody))
    }

    /// Makes the state directory this user's, who alone may look into it, and what portferry has left there. Only files that are
    /// root's or nobody's are given away, only by our names, and only such as have no second name. One that cannot be is no reason to
    /// leave the others.
    ///
    /// A directory is root's while what is in it is handed over, and given away last: nobody changes anything in it meanwhile, and a root
    /// who may not look into others' directories looks into his own.
    ///
    /// # Errors
    /// What the system says, of the directory or of the first file.
    pub(super) fn take_over(&self, directory: &Path) -> io::Result<()> {
        // Where root has led it elsewhere, that is meant.
        let directory = open(CWD, &fs::canonicalize(directory)?, OFlags::DIRECTORY)?;
        self.hand_over(&directory, is_ours, true)
    }

    /// The same of any directory, as far as its files have names that are `wanted`; `deep`: and of directories in it.
    fn hand_over(&self, directory: &OwnedFd, wanted: fn(&str) -> bool, deep: bool) -> io::Result<()> {
        let found = fstat(directory)?;
        let given = self.is_to_be_given(found.st_uid);
        if given {
            // Without CAP_CHOWN it stays whose it is.
            let _ = own(directory, ROOT).and_then(|()| set_mode(directory, &found, 0o700));
        }
        let (names, mut outcome) = match list(directory) {
            Ok(names) => (names, Ok(())),
            // A root that may not look into others' directories, nor make them his, has nothing to give away in this one.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && found.st_uid == self.uid => {
                (Vec::new(), Ok(()))
            }
            Err(error) => (Vec::new(), Err(error)),
        };
        let mut note = |done: io::Result<()>| {
            if outcome.is_ok() {
                outcome = done;
            }
        };
        for name in names.iter().filter(|name| name.to_str().is_ok_and(wanted)) {
            note(self.hand_over_entry(directory, name, deep));
        }
        if given && fstat(directory)?.st_uid != self.uid {
            note(own(directory, (self.uid, self.gid)));
        }
        outcome
    }

    fn hand_over_entry(&self, directory: &OwnedFd, name: &CStr, deep: bool) -> io::Result<()> {
        let entry = open(directory, name, OFlags::empty())?;
        let found = fstat(&entry)?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory if deep => self.hand_over(&entry, |_| true, false),
            FileType::RegularFile if found.st_nlink == 1 && self.is_to_be_given(found.st_uid) => {
                let is_good = found.st_mode & 0o777 == 0o600;
                if is_good && found.st_uid == self.uid {
                    return Ok(());
                }
                let made_good = if is_good {
                    Ok(())
                } else {
                    own(&entry, ROOT).and_then(|()| set_mode(&entry, &found, 0o600))
                };
                own(&entry, (self.uid, self.gid)).and(made_good)
            }
            _ => Ok(()),
        }
    }

    /// That of nobody was this process's before there was a user of its own.
    fn is_to_be_given(&self, owner: u32) -> bool {
        [0, 65534, self.uid].contains(&owner)
    }
}

/// The thing itself, whatever may be done with it: no link, and none of what is behind it is read or waited for.
fn open<P: Arg>(directory: impl AsFd, name: P, more: OFlags) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC | more;
    Ok(openat(directory, name, flags, Mode::empty())?)
}

fn own(entry: &OwnedFd, (uid, gid): (u32, u32)) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    Ok(chownat(entry, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
}

/// For its owner to read and to write, and for nobody else.
fn set_mode(entry: &OwnedFd, found: &Stat, mode: u32) -> io::Result<()> {
    if found.st_mode & 0o777 == mode {
        return Ok(());
    }
    let path = format!("/proc/self/fd/{}", entry.as_raw_fd());
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// The names of what is in a directory.
fn list(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let entries = Dir::new(openat(directory, c".", flags, Mode::empty())?)?;
    let names = entries.flatten().map(|entry| entry.file_name().to_owned());
    Ok(names.filter(|name| !matches!(name.to_bytes(), b"." | b"..")).collect())
}

/// Whether portferry gives such names to what it stores.
fn is_ours(name: &str) -> bool {
    ["identity.json", "mappings.journal", "uplink-"].iter().any(|ours| name.starts_with(ours))
}

/// Makes the state directory where there is none, for its owner alone.
///
/// # Errors
/// It is one that others have things in: who writes there could write what root reads. Or what the system says.
pub(super) fn make_directory(directory: &Path, others: &[&Path]) -> io::Result<()> {
    if !directory.exists() {
        if let Some(above) = directory.parent() {
            fs::create_dir_all(above)?;
        }
        fs::DirBuilder::new().mode(0o700).create(directory)?;
    }
    let whole = fs::canonicalize(directory)?;
    let has_others = others.iter().any(|other| {
        let other = fs::canonicalize(other).unwrap_or_else(|_| other.to_path_buf());
        other.starts_with(&whole)
    });
    if is_shared(&whole) || has_others {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "others have files in it; choose one that is portferry's alone",
        ));
    }
    Ok(())
}

/// Whether everybody has things in this directory, whose real name it is.
pub(super) fn is_shared(directory: &Path) -> bool {
    SHARED.iter().any(|shared| directory == Path::new(shared))
}

/// A line of passwd(5).
fn find(passwd: &str, name: &str) -> Option<User> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (found, _password, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let user = || Some(User { name: found.to_owned(), uid: uid.parse().ok()?, gid: gid.parse().ok()? });
        // Root has rights, whatever he is called.
        (found == name).then(user)?.filter(|user| user.uid != 0)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, chown, symlink};

    use rustix::thread::{CapabilitySets, set_capabilities};

    use super::*;
    use crate::scratch::Directory;

    #[test]
    fn users_of_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n# broken\nportferry:x:990:991::/:/bin/false\ntoor:x:0:0::/:/bin/sh\nbad:x:y:z\n";
        let found = User { name: "portferry".into(), uid: 990, gid: 991 };
        assert_eq!(find(passwd, "portferry"), Some(found));
        for name in ["toor", "root", "bad", "none", "# broken"] {
            assert_eq!(find(passwd, name), None, "{name}");
        }
    }

    /// Nothing that the network process could have put there leads to somebody else's file.
    #[test]
    fn only_plain_files_of_roots_are_given_away() {
        if !geteuid().is_root() {
            return; // nobody else gives anything away
        }
        let scratch = Directory::new("take-over");
        let (state, elsewhere) = (scratch.0.join("state"), scratch.0.join("shadow"));
        let user = User { name: "test".into(), uid: 4242, gid: 4243 };
        make_directory(&state, &[&elsewhere]).unwrap();
        user.take_over(&state).unwrap();
        let of = |path: &Path| {
            let found = path.symlink_metadata().unwrap();
            (found.uid(), found.mode() & 0o777)
        };
        assert_eq!(of(&state), (4242, 0o700));
        fs::create_dir(state.join("uplink-wan1")).unwrap();
        let inside = [state.join("mappings.journal"), state.join("uplink-wan1/mappings.journal")];
        let (others, foreign) = (state.join("identity.json.new"), state.join("lost+found"));
        for path in inside.iter().chain([&elsewhere, &others, &foreign]) {
            fs::write(path, "x").unwrap();
        }
        chown(&others, Some(77), None).unwrap();
        symlink(&elsewhere, state.join("mappings.journal.link")).unwrap();
        symlink(&scratch.0, state.join("uplink-led")).unwrap();
        fs::hard_link(&elsewhere, state.join("mappings.journal.second")).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&inside[0], fs::Permissions::from_mode(0o0)).unwrap();
        user.take_over(&state).unwrap();
        for path in &inside {
            assert_eq!(of(path), (4242, 0o600), "{}", path.display());
        }
        assert_eq!((of(&elsewhere).0, of(&scratch.0).0), (0, 0));
        assert_eq!((of(&others).0, of(&foreign).0), (77, 0));
        assert_eq!(of(&state), (4242, 0o700));
        assert_eq!(of(&state.join("uplink-wan1")), (4242, 0o700));
        // Led elsewhere by root.
        let led = scratch.0.join("led");
        symlink(&state, &led).unwrap();
        user.take_over(&led).unwrap();
    }

    /// What the shipped unit gives: of others' files and directories such a root reads nothing. All is handed over, whoever ran before:
    /// root himself (`--no-sandbox`), or nobody, before there was a user of its own.
    #[test]
    fn a_root_without_rights_to_others_files_hands_over_everything() {
        if !geteuid().is_root() {
            return;
        }
        let scratch = Directory::new("take-over-confined");
        let user = User { name: "test".into(), uid: 4242, gid: 4243 };
        let (root, nobody, own) = (0, 65534, user.uid);
        for (number, (of_directory, of_files)) in
            [(root, root), (own, root), (own, own), (nobody, nobody), (root, own)].into_iter().enumerate()
        {
            let state = scratch.0.join(format!("state-{number}"));
            let inside = state.join("uplink-wan1");
            fs::create_dir_all(&inside).unwrap();
            let files = [state.join("identity.json"), inside.join("mappings.journal")];
            for path in &files {
                fs::write(path, "x").unwrap();
                fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
                chown(path, Some(of_files), Some(of_files)).unwrap();
            }
            for path in [&inside, &state] {
                fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
                chown(path, Some(of_directory), Some(of_directory)).unwrap();
            }
            let has = capabilities(None).unwrap();
            let units = CapabilitySet::CHOWN | CapabilitySet::SETUID | CapabilitySet::SETGID;
            let confined = CapabilitySets { effective: has.effective & units, ..has };
            // Of this thread alone.
            set_capabilities(None, confined).unwrap();
            let (unreadable, outcome) = (fs::read(&files[1]).is_err(), user.take_over(&state));
            set_capabilities(None, has).unwrap();
            assert_eq!(unreadable, of_directory != root || of_files != root, "the test tries what it says");
            outcome.unwrap();
            for path in files.iter().chain([&inside, &state]) {
                let found = path.symlink_metadata().unwrap();
                assert_eq!((found.uid(), found.mode() & 0o077), (own, 0), "{number}: {}", path.display());
            }
        }
    }

    /// What root reads and runs is in no directory that the network process writes to.
    #[test]
    fn a_directory_of_its_own() {
        let scratch = Directory::new("state-place");
        let file = scratch.0.join("portferry.toml");
        fs::write(&file, "").unwrap();
        for (directory, good) in [
            (scratch.0.join("state"), true),
            (scratch.0.join("deeper/state"), true),
            (scratch.0.clone(), false),
            ("/".into(), false),
            ("/etc".into(), false),
            ("/etc/../tmp".into(), false),
            ("/var/lib".into(), false),
        ] {
            assert_eq!(make_directory(&directory, &[&file]).is_ok(), good, "{}", directory.display());
        }
    }
}
