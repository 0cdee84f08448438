//! Files of the state directory that are not what they ought to be: kept under another name, so that the program starts, and that
//! nothing is lost which a person could still read.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::path::Path;

/// So many are kept of each name; the newest is number 1.
const KEPT: u32 = 3;

/// What is left of the old name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Old {
    /// Nothing.
    Goes,
    /// The same file, which is about to be replaced: a power cut before that loses nothing.
    Stays,
}

/// Opens a file for reading; `None` when there is none.
///
/// # Errors
/// What the system says. [`ErrorKind::InvalidInput`]: there is something else than a file, which could be read for ever.
pub fn open(path: &Path) -> io::Result<Option<File>> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => File::open(path).map(Some),
        Ok(found) if found.is_dir() => Err(io::Error::new(ErrorKind::InvalidInput, "it is a directory")),
        Ok(_) => Err(io::Error::new(ErrorKind::InvalidInput, "it is no file")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads a file of `most` octets at most; `None` when there is none.
///
/// # Errors
/// As [`open`]; [`ErrorKind::InvalidData`]: it is longer.
pub fn read(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = open(path)? else { return Ok(None) };
    let mut octets = Vec::new();
    file.take(most + 1).read_to_end(&mut octets)?;
    if octets.len() as u64 > most {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("it has more than {most} octets")));
    }
    Ok(Some(octets))
}

/// Keeps what is called `name` in `directory` as `<name>.damaged-1`; what was that is number 2, and so on, and the last one goes. The
/// new name.
///
/// # Errors
/// What the system says: the old name is there still, or there is nothing.
pub fn set_aside(directory: &Path, name: &str, old: Old) -> io::Result<String> {
    let numbered = |number: u32| directory.join(format!("{name}.damaged-{number}"));
    for number in (1..=KEPT).rev() {
        let there = numbered(number);
        if fs::symlink_metadata(&there).is_err() {
            continue;
        }
        if number < KEPT {
            fs::rename(there, numbered(number + 1))?;
        } else if there.is_dir() && !there.is_symlink() {
            fs::remove_dir_all(there)?;
        } else {
            fs::remove_file(there)?;
        }
    }
    let (from, to) = (directory.join(name), numbered(1));
    // Not every file system knows links.
    if old == Old::Goes || fs::hard_link(&from, &to).is_err() {
        fs::rename(from, to)?;
    }
    Ok(format!("{name}.damaged-1"))
}

/// Makes way for a file called `name` that is to be written: anything but a file is set aside.
pub fn make_way(directory: &Path, name: &str) {
    let path = directory.join(name);
    if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
        match set_aside(directory, name, Old::Goes) {
            Ok(kept) => tracing::warn!("{} is no file; it is kept as {kept}", path.display()),
            // Whoever writes says so.
            Err(error) => tracing::debug!("{}: {error}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Directory;

    #[test]
    fn three_are_kept_the_newest_first() {
        let directory = Directory::new("aside");
        let path = |name: &str| directory.0.join(name);
        for round in 0..5 {
            if round % 2 == 0 {
                fs::write(path("file"), round.to_string()).unwrap();
            } else {
                fs::create_dir(path("file")).unwrap();
                fs::write(path("file/in it"), "").unwrap();
            }
            assert_eq!(set_aside(&directory.0, "file", Old::Goes).unwrap(), "file.damaged-1");
            assert!(!path("file").exists());
        }
        assert_eq!(fs::read_to_string(path("file.damaged-1")).unwrap(), "4");
        assert!(path("file.damaged-2").is_dir());
        assert_eq!(fs::read_to_string(path("file.damaged-3")).unwrap(), "2");
        assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 3);
        set_aside(&directory.0, "file", Old::Goes).unwrap_err();
    }

    #[test]
    fn what_stays_is_there_twice() {
        let directory = Directory::new("aside-stays");
        fs::write(directory.0.join("file"), "some").unwrap();
        let kept = set_aside(&directory.0, "file", Old::Stays).unwrap();
        for name in ["file", &kept] {
            assert_eq!(fs::read_to_string(directory.0.join(name)).unwrap(), "some");
        }
    }

    #[test]
    fn only_files_are_read_and_no_more_of_them_than_wanted() {
        let directory = Directory::new("aside-read");
        let path = directory.0.join("file");
        assert!(read(&path, 4).unwrap().is_none());
        fs::write(&path, "some").unwrap();
        assert_eq!(read(&path, 4).unwrap().unwrap(), b"some");
        assert_eq!(read(&path, 3).unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(read(Path::new("/dev/zero"), 4).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(read(&directory.0, 4).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
