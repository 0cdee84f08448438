//! What is kept over restarts: who this installation is.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::exit::Failure;
use crate::journal_file::{is_lack_of_room, write_anew};

/// Random once, then kept.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
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

impl Identity {
    /// A new one.
    pub fn random() -> Self {
        Self { seed: random(), token: random(), nonce_key: random(), boot_id: 1 }
    }

    /// Reads the one in `directory`, counts the start, and writes it back; makes a new one where there is none.
    pub fn next_start(directory: &Path) -> Result<Self, Failure> {
        let failed = |what: &str, error: std::io::Error| {
            Failure::cannot_create(format!(
                "{what} {}: {error}; portferry has to be able to write there ([state] directory)",
                directory.display()
            ))
        };
        std::fs::create_dir_all(directory)
            .map_err(|error| failed("cannot make the state directory", error))?;
        let path = directory.join(FILE);
        let mut known = false;
        let identity = match std::fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<Identity>(&bytes) {
                Ok(old) => {
                    known = true;
                    Self { boot_id: (old.boot_id + 1) & 0x7fff_ffff, ..old }
                }
                Err(error) => {
                    tracing::warn!(
                        "{} cannot be understood ({error}); making a new identity: control points will see a new gateway",
                        path.display()
                    );
                    Self::random()
                }
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::random(),
            Err(error) => return Err(failed("cannot read the state in", error)),
        };
        match identity.write(directory) {
            Ok(()) => Ok(identity),
            // What is known is enough to serve with; control points may miss that the next start is another one.
            Err(error) if known && is_lack_of_room(&error) => {
                tracing::warn!("the state cannot be written in {}: {error}", directory.display());
                Ok(identity)
            }
            Err(error) => Err(failed("cannot write the state in", error)),
        }
    }

    /// The paths of control come from the seed: no other user has to know it.
    fn write(&self, directory: &Path) -> std::io::Result<()> {
        write_anew(directory, FILE, &serde_json::to_vec(self)?)
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

    #[test]
    fn the_seed_stays_and_the_boot_id_rises() {
        let dir = std::env::temp_dir().join(format!("portferry-state-{}", std::process::id()));
        let first = Identity::next_start(&dir).unwrap();
        let second = Identity::next_start(&dir).unwrap();
        assert_eq!((second.seed, second.boot_id), (first.seed, first.boot_id + 1));
        std::fs::write(dir.join(FILE), b"{").unwrap();
        let third = Identity::next_start(&dir).unwrap();
        assert_ne!(third.seed, first.seed);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
