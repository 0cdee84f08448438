//! What is kept over restarts: who this installation is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::exit::Failure;
use crate::journal_file::{is_lack_of_room, write_anew};
use crate::set_aside::{self, Old};

/// Random once, then kept.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Identity {
    /// Device names come from it.
    pub seed: [u8; 16],
    /// The hidden part of the control URLs.
    pub token: [u8; 16],
    /// Nonces come from it.
    #[serde(default = "random")]
    pub nonce_key: [u8; 16],
    /// One more at each start (BOOTID.UPNP.ORG).
    pub boot_id: u32,
}

const FILE: &str = "identity.json";
/// It never has as many octets.
const MAX_LEN: u64 = 16_384;
/// When it is tried again to write what could not be written.
const RETRY: Duration = Duration::from_secs(5);

impl Identity {
    /// A new one.
    pub fn random() -> Self {
        Self { seed: random(), token: random(), nonce_key: random(), boot_id: 1 }
    }

    /// Reads the one in `directory`, counts the start, and writes it back; makes a new one where there is none, or none that makes
    /// sense. Beside it whether it could be written: see [`Unwritten`].
    ///
    /// # Errors
    /// The directory cannot be made, or not be written for another reason than want of room; or what is there may not be read.
    pub fn next_start(directory: &Path) -> Result<(Self, Option<Unwritten>), Failure> {
        let failed = |what: &str, error: std::io::Error| {
            Failure::cannot_create(format!(
                "{what} {}: {error}; portferry has to be able to write there ([state] directory)",
                directory.display()
            ))
        };
        std::fs::create_dir_all(directory)
            .map_err(|error| failed("cannot make the state directory", error))?;
        let path = directory.join(FILE);
        let read = match set_aside::read(&path, MAX_LEN) {
            // That is nothing which the file could do for; who may read it finds it whole.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                return Err(failed(&format!("cannot read {FILE} in"), error));
            }
            read => read,
        };
        let parsed = read.map_err(|error| error.to_string()).and_then(|octets| match octets {
            Some(octets) => {
                serde_json::from_slice::<Identity>(&octets).map(Some).map_err(|error| error.to_string())
            }
            None => Ok(None),
        });
        let identity = match parsed {
            Ok(Some(old)) => Self { boot_id: old.boot_id.wrapping_add(1) & 0x7fff_ffff, ..old },
            Ok(None) => Self::random(),
            Err(why) => {
                let kept = match set_aside::set_aside(directory, FILE, Old::Goes) {
                    Ok(name) => format!("kept as {name}"),
                    Err(error) => format!("not kept: {error}"),
                };
                tracing::warn!(
                    "{} is damaged ({why}); it is {kept}. A new identity is made: control points will see a new gateway; mappings stay",
                    path.display()
                );
                Self::random()
            }
        };
        set_aside::make_way(directory, &format!("{FILE}.new"));
        match identity.write(directory) {
            Ok(()) => Ok((identity, None)),
            // It is enough to serve with.
            Err(error) if is_lack_of_room(&error) => {
                tracing::warn!(
                    "the state cannot be written in {}: {error}; trying again. A start before that works is another gateway to control points, or looks like this one",
                    directory.display()
                );
                let unwritten = Unwritten { identity: identity.clone(), directory: directory.to_owned() };
                Ok((identity, Some(unwritten)))
            }
            Err(error) => Err(failed("cannot write the state in", error)),
        }
    }

    /// The paths of control come from the seed: no other user has to know it.
    fn write(&self, directory: &Path) -> std::io::Result<()> {
        write_anew(directory, FILE, &serde_json::to_vec(self)?)
    }
}

/// An identity for which there was no room.
#[derive(Debug)]
pub struct Unwritten {
    identity: Identity,
    directory: PathBuf,
}

impl Unwritten {
    /// Tries until there is room.
    pub async fn write_once_there_is_room(self) {
        loop {
            tokio::time::sleep(RETRY).await;
            match self.identity.write(&self.directory) {
                Ok(()) => return tracing::info!("the state is written in {} now", self.directory.display()),
                Err(error) => tracing::debug!("the state in {}: {error}", self.directory.display()),
            }
        }
    }
}

fn random() -> [u8; 16] {
    let mut octets = [0; 16];
    getrandom::fill(&mut octets).expect("the kernel gives random octets");
    octets
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::scratch::{Directory, unreadable};

    fn start(directory: &Directory) -> Identity {
        let (identity, unwritten) = Identity::next_start(&directory.0).unwrap();
        assert!(unwritten.is_none());
        identity
    }

    #[test]
    fn the_seed_stays_and_the_boot_id_rises() {
        let directory = Directory::new("state");
        let first = start(&directory);
        let second = start(&directory);
        assert_eq!(second, Identity { boot_id: first.boot_id + 1, ..first });
        // The highest number is followed by the lowest (UDA §1.1.2: 31 bits).
        for (boot_id, next) in [(0x7fff_ffff, 0), (u32::MAX, 0), (u32::MAX - 1, 0x7fff_ffff)] {
            let last = Identity { boot_id, ..second.clone() };
            last.write(&directory.0).unwrap();
            assert_eq!(start(&directory), Identity { boot_id: next, ..last });
        }
    }

    #[test]
    fn a_damaged_identity_is_kept_and_replaced() {
        let directory = Directory::new("state-damaged");
        let path = directory.0.join(FILE);
        let first = start(&directory);
        let whole = std::fs::read(&path).unwrap();
        let mut damages: Vec<Vec<u8>> =
            (0..whole.len()).step_by(7).map(|len| whole[..len].to_vec()).collect();
        damages.extend([vec![0; 100], vec![b'['; 10_000], vec![b' '; 100_000], b"{\"seed\":[]}".to_vec()]);
        for damage in damages {
            std::fs::write(&path, &damage).unwrap();
            let new = start(&directory);
            assert_ne!(new.seed, first.seed);
            assert_eq!(std::fs::read(directory.0.join("identity.json.damaged-1")).unwrap(), damage);
            assert_eq!(start(&directory).seed, new.seed, "once");
        }
        for name in [FILE, "identity.json.new"] {
            let _ = std::fs::remove_file(directory.0.join(name));
            std::fs::create_dir(directory.0.join(name)).unwrap();
        }
        let new = start(&directory);
        assert_eq!(start(&directory).seed, new.seed);
        // What a later version adds is no damage.
        let later = [&whole[..whole.len() - 1], b",\"more\":[1,2]}"].concat();
        std::fs::write(&path, later).unwrap();
        assert_eq!(start(&directory).seed, first.seed);
    }
    #[test]
    fn an_identity_that_may_not_be_read_stays() {
        let directory = Directory::new("state-unreadable");
        start(&directory);
        let path = directory.0.join(FILE);
        let whole = std::fs::read(&path).unwrap();
        let Some(outcome) = unreadable(&path, || Identity::next_start(&directory.0)) else { return };
        let failure = outcome.unwrap_err();
        assert_eq!(failure.code(), 73);
        assert!(failure.to_string().contains("cannot read identity.json"), "{failure}");
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        assert_eq!(std::fs::read_dir(&directory.0).unwrap().count(), 1, "nothing is beside it");
    }
}
