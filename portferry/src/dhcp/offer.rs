//! What a DHCP client's hook said, one small file for an interface and a DHCP, beside the control socket. A file without a
//! server says that none is offered; without a file no hook has spoken.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use engine::dhcp::Version;
use wire::dhcp::{ServerAddresses, bounded};

/// As long as a file of ours can be, and then some.
const MAX_LEN: u64 = 16_384;

/// Where the files lie: the directory of the control socket.
pub fn directory(socket: &Path) -> &Path {
    socket.parent().unwrap_or(Path::new("/"))
}

/// `dhcp4-wan0`, `dhcp6-wan0`.
pub fn path(directory: &Path, interface: &str, version: Version) -> PathBuf {
    let version = match version {
        Version::V4 => "dhcp4",
        Version::V6 => "dhcp6",
    };
    directory.join(format!("{version}-{interface}"))
}

/// Reads one; `None` when there is none. It is trusted no further than the network that it comes from.
///
/// # Errors
/// It is no file, too long, or has something else than comments and addresses.
pub fn read(directory: &Path, interface: &str, version: Version) -> io::Result<Option<Vec<ServerAddresses>>> {
    let path = path(directory, interface, version);
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
        Ok(found) if !found.is_file() => return Err(invalid("it is no file")),
        Ok(_) => {}
    }
    let mut text = String::new();
    File::open(&path)?.take(MAX_LEN + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_LEN {
        return Err(invalid("it is too long"));
    }
    parse(&text).map(Some).ok_or_else(|| invalid("it has a line that is not of addresses"))
}

/// What such a file says; `None` where something else stands in it than comments and addresses.
pub(crate) fn parse(text: &str) -> Option<Vec<ServerAddresses>> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let server = |line: &str| line.split_whitespace().map(|addr| addr.parse::<IpAddr>().ok()).collect();
    Some(bounded(lines.map(server).collect::<Option<Vec<ServerAddresses>>>()?))
}

/// What stands in the file of these servers.
pub(crate) fn to_text(interface: &str, version: Version, servers: &[ServerAddresses]) -> String {
    let mut text = format!("# PCP servers that {version} offers on {interface}, by portferry dhcp-servers\n");
    for addresses in bounded(servers.iter().cloned()) {
        let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
        text += &addresses.join(" ");
        text.push('\n');
    }
    text
}

/// Writes one, whole or not at all; the directory is made if it has to be. Everybody may read it.
///
/// # Errors
/// What the system says.
pub fn write(
    directory: &Path,
    interface: &str,
    version: Version,
    servers: &[ServerAddresses],
) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let text = to_text(interface, version, servers);
    let path = path(directory, interface, version);
    let new = path.with_file_name(format!(".{version}-{interface}-{}", std::process::id()));
    // Never through a link that somebody put there.
    let open = || File::options().write(true).create_new(true).mode(0o644).open(&new);
    let file = match open() {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            fs::remove_file(&new)?; // of a process of that number that was killed
            open()
        }
        file => file,
    };
    let written = file.and_then(|mut file| {
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        file.write_all(text.as_bytes())
    });
    let renamed = written.and_then(|()| fs::rename(&new, &path));
    if renamed.is_err() {
        let _ = fs::remove_file(&new);
    }
    renamed
}

/// Takes one away; there need not be one.
///
/// # Errors
/// What the system says.
pub fn remove(directory: &Path, interface: &str, version: Version) -> io::Result<()> {
    match fs::remove_file(path(directory, interface, version)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::scratch::Directory;

    fn servers(text: &str) -> Vec<ServerAddresses> {
        let server = |server: &str| server.split(' ').map(|addr| addr.parse().unwrap()).collect();
        text.split(';').filter(|server| !server.is_empty()).map(server).collect()
    }

    #[test]
    fn a_file_comes_back() {
        let scratch = Directory::new("offer");
        let directory = scratch.0.join("run");
        assert_eq!(read(&directory, "wan0", Version::V4).unwrap(), None);
        remove(&directory, "wan0", Version::V4).unwrap();
        for text in ["", "192.0.2.1", "192.0.2.1 192.0.2.2;2001:db8::1"] {
            write(&directory, "wan0", Version::V4, &servers(text)).unwrap();
            assert_eq!(read(&directory, "wan0", Version::V4).unwrap(), Some(servers(text)));
        }
        assert_eq!(read(&directory, "wan0", Version::V6).unwrap(), None);
        assert_eq!(read(&directory, "wan1", Version::V4).unwrap(), None);
        let path = path(&directory, "wan0", Version::V4);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "nothing else is left");
        remove(&directory, "wan0", Version::V4).unwrap();
        assert_eq!(read(&directory, "wan0", Version::V4).unwrap(), None);
    }

    #[test]
    fn what_others_wrote_is_addresses_or_nothing() {
        let scratch = Directory::new("offer-others");
        let path = path(&scratch.0, "wan0", Version::V6);
        let long = "2001:db8::1\n".repeat(1500);
        for (text, expected) in [
            ("# a comment\n\n192.0.2.1\n", Some("192.0.2.1")),
            ("192.0.2.1 $(reboot)\n", None),
            ("server.example\n", None),
            ("192.0.2.1/24\n", None),
            ("127.0.0.1 192.0.2.1\n224.0.0.1\n", Some("192.0.2.1")),
            (&long, None),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(
                read(&scratch.0, "wan0", Version::V6).ok().flatten(),
                expected.map(servers),
                "{text:.30}"
            );
        }
        let most = "2001:db8::1 2001:db8::2\n".repeat(100);
        fs::write(&path, most).unwrap();
        assert_eq!(read(&scratch.0, "wan0", Version::V6).unwrap().unwrap().len(), wire::dhcp::MAX_SERVERS);
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(read(&scratch.0, "wan0", Version::V6).is_err());
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(read(&scratch.0, "wan0", Version::V6).is_err(), "no link is followed");
        write(&scratch.0, "wan0", Version::V6, &servers("192.0.2.1")).unwrap();
        assert_eq!(read(&scratch.0, "wan0", Version::V6).unwrap(), Some(servers("192.0.2.1")));
    }
}
