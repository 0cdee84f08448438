//! Who the network process is: a user with no rights, and whose the state directory is.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Gid, OFlags, Uid, fchown};
use rustix::process::geteuid;
use rustix::thread::{CapabilitySet, capabilities};

/// Its name, if the system has one of its own for it.
const NAME: &str = "portferry";
/// Everybody's, if not.
const NOBODY: &str = "nobody";
const PASSWD: &str = "/etc/passwd";

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
    /// root's are given away, only by our names, and only such as have no second name. One that cannot be is no reason to leave
    /// the others.
    ///
    /// # Errors
    /// What the system says, of the directory or of the first file.
    pub(super) fn take_over(&self, directory: &Path) -> io::Result<()> {
        // Where root has led it elsewhere, that is meant.
        let directory = fs::canonicalize(directory)?;
        let found = fs::symlink_metadata(&directory)?;
        let entries = self.own(&directory, true).and_then(|()| fs::read_dir(&directory));
        let entries = match entries {
            // A root that may not look into others' directories has nothing to give away in this one.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && found.uid() == self.uid => {
                return Ok(());
            }
            entries => entries?,
        };
        let mut outcome = Ok(());
        let mut note = |done: io::Result<()>| {
            if outcome.is_ok() {
                outcome = done;
            }
        };
        for entry in entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_ours)) {
            let (path, is_directory) = (entry.path(), entry.file_type().is_ok_and(|kind| kind.is_dir()));
            note(self.own(&path, is_directory));
            let inside = if is_directory { fs::read_dir(&path).ok() } else { None };
            for entry in inside.into_iter().flatten().flatten() {
                note(self.own(&entry.path(), false));
            }
        }
        outcome
    }

    fn own(&self, path: &Path, is_directory: bool) -> io::Result<()> {
        let kind = fs::symlink_metadata(path)?.file_type();
        if !(kind.is_dir() && is_directory || kind.is_file() && !is_directory) {
            return Ok(());
        }
        let follow_nothing = OFlags::NOFOLLOW.bits() | OFlags::NONBLOCK.bits();
        let flags = i32::try_from(follow_nothing).expect("flags are small");
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        let found = file.metadata()?;
        if found.is_dir() != is_directory || !found.is_dir() && (!found.is_file() || found.nlink() != 1) {
            return Ok(());
        }
        // For him alone, and for him to read and to write.
        let mode = if is_directory { 0o700 } else { 0o600 };
        if found.mode() & 0o777 != mode {
            file.set_permissions(fs::Permissions::from_mode(mode))?;
        }
        // That of nobody was this process's before there was a user of its own.
        let is_given = found.uid() == 0 || found.uid() == 65534;
        if is_given && found.uid() != self.uid {
            fchown(file.as_fd(), Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        }
        Ok(())
    }
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
    /// Which everybody shares, wherever they are.
    const SHARED: [&str; 15] = [
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
        "/usr",
        "/var",
        "/var/lib",
        "/var/tmp",
    ];
    if !directory.exists() {
        if let Some(above) = directory.parent() {
            fs::create_dir_all(above)?;
        }
        fs::DirBuilder::new().mode(0o700).create(directory)?;
    }
    let whole = fs::canonicalize(directory)?;
    let shared = SHARED.iter().any(|shared| whole == Path::new(shared));
    let has_others = others.iter().any(|other| {
        let other = fs::canonicalize(other).unwrap_or_else(|_| other.to_path_buf());
        other.starts_with(&whole)
    });
    if shared || has_others {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "others have files in it; choose one that is portferry's alone",
        ));
    }
    Ok(())
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
    use std::os::unix::fs::{MetadataExt, symlink};

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
        std::os::unix::fs::chown(&others, Some(77), None).unwrap();
        symlink(&elsewhere, state.join("mappings.journal.link")).unwrap();
        fs::hard_link(&elsewhere, state.join("mappings.journal.second")).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&inside[0], fs::Permissions::from_mode(0o0)).unwrap();
        user.take_over(&state).unwrap();
        for path in &inside {
            assert_eq!(of(path), (4242, 0o600), "{}", path.display());
        }
        assert_eq!(of(&elsewhere).0, 0);
        assert_eq!((of(&others).0, of(&foreign).0), (77, 0));
        assert_eq!(of(&state), (4242, 0o700));
        assert_eq!(of(&state.join("uplink-wan1")), (4242, 0o700));
        // Led elsewhere by root.
        let led = scratch.0.join("led");
        symlink(&state, &led).unwrap();
        user.take_over(&led).unwrap();
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
