//! A mapping's nonce: from the kernel's randomness, or a file that keeps it from one command to the next.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use wire::pcp::Nonce;

use super::parse;
use crate::exit::Failure;

/// 96 bits that nobody can guess (RFC 6887 §11.2).
pub(super) fn random() -> Nonce {
    let mut octets = [0; 12];
    getrandom::fill(&mut octets).expect("the kernel gives random octets");
    Nonce(octets)
}

/// The nonce in the file: one line of 24 hexadecimal digits.
pub(super) fn read(path: &Path) -> Result<Nonce, Failure> {
    let text = fs::read_to_string(path).map_err(|error| {
        Failure::no_input(format!("cannot read the nonce in {}: {error}", path.display()))
    })?;
    parse::nonce(&text).map_err(|why| {
        Failure::no_input(format!("{}: {why}; delete the file if it is not one of mine", path.display()))
    })
}

/// The nonce in the file, or a new one that is then in the file, for its owner alone.
pub(super) fn read_or_make(path: &Path) -> Result<Nonce, Failure> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => {
            let nonce = random();
            writeln!(file, "{nonce}").map_err(|error| cannot(path, &error))?;
            Ok(nonce)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => read(path),
        Err(error) => Err(cannot(path, &error)),
    }
}

fn cannot(path: &Path, error: &std::io::Error) -> Failure {
    Failure::cannot_create(format!("cannot write the nonce to {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_nonce_file_is_made_once_and_read_again() {
        let path = std::env::temp_dir().join(format!("portferry-nonce-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        assert!(read(&path).unwrap_err().to_string().contains("cannot read the nonce"));
        let made = read_or_make(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!((read_or_make(&path).unwrap(), read(&path).unwrap()), (made, made));
        fs::write(&path, "not hex").unwrap();
        assert!(read_or_make(&path).unwrap_err().to_string().contains("not one of mine"));
        fs::remove_file(&path).unwrap();
    }
}
