//! Who the network process is: a user with no rights, and whose the state directory is.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Gid, OFlags, Uid, fchown};
use rustix::process::geteuid;

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

    /// Makes the state directory if there is none, and what is in it this user's, who alone may look into it. Only files that
    /// are root's are given away, and only such as have no second name.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn take_over(&self, directory: &Path) -> io::Result<()> {
        if !directory.exists() {
            if let Some(above) = directory.parent() {
                fs::create_dir_all(above)?;
            }
            fs::DirBuilder::new().mode(0o700).create(directory)?;
        }
        let found = fs::symlink_metadata(directory)?;
        let entries = self.own(directory, true).and_then(|()| fs::read_dir(directory));
        let entries = match entries {
            // A root that may not look into others' directories has nothing to give away in this one.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && found.uid() == self.uid => {
                return Ok(());
            }
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.own(&entry.path(), true)?;
                for entry in fs::read_dir(entry.path())? {
                    let entry = entry?;
                    if entry.file_type()?.is_file() {
                        self.own(&entry.path(), false)?;
                    }
                }
            } else if kind.is_file() {
                self.own(&entry.path(), false)?;
            }
        }
        Ok(())
    }

    fn own(&self, path: &Path, is_directory: bool) -> io::Result<()> {
        let follow_nothing = OFlags::NOFOLLOW.bits() | OFlags::NONBLOCK.bits();
        let flags = i32::try_from(follow_nothing).expect("flags are small");
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        let found = file.metadata()?;
        if found.is_dir() != is_directory || !found.is_dir() && (!found.is_file() || found.nlink() != 1) {
            return Ok(());
        }
        if is_directory && found.mode() & 0o077 != 0 {
            file.set_permissions(fs::Permissions::from_mode(0o700))?;
        }
        // That of nobody was this process's before there was a user of its own.
        let is_ours = found.uid() == 0 || found.uid() == 65534;
        if is_ours && found.uid() != self.uid {
            fchown(file.as_fd(), Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        }
        Ok(())
    }
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
        user.take_over(&state).unwrap();
        let of = |path: &Path| {
            let found = path.symlink_metadata().unwrap();
            (found.uid(), found.mode() & 0o777)
        };
        assert_eq!(of(&state), (4242, 0o700));
        fs::create_dir(state.join("uplink-wan1")).unwrap();
        let inside = [state.join("journal"), state.join("uplink-wan1/journal")];
        for path in inside.iter().chain([&elsewhere, &state.join("others")]) {
            fs::write(path, "x").unwrap();
        }
        std::os::unix::fs::chown(state.join("others"), Some(77), None).unwrap();
        symlink(&elsewhere, state.join("link")).unwrap();
        fs::hard_link(&elsewhere, state.join("second-name")).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).unwrap();
        user.take_over(&state).unwrap();
        for path in &inside {
            assert_eq!(of(path).0, 4242, "{}", path.display());
        }
        assert_eq!(of(&elsewhere).0, 0);
        assert_eq!(of(&state.join("others")).0, 77);
        assert_eq!(of(&state), (4242, 0o700));
        assert_eq!(of(&state.join("uplink-wan1")), (4242, 0o700));
    }
}
