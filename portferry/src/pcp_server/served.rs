//! Ports at which a program of this machine waits for the world: what a mapping leads inside does not reach it any more.

use std::net::Ipv4Addr;

/// Whether a program listens at TCP (6) or has an unconnected UDP socket (17) at `port` of `addr`, or of every address. Connections
/// that go out from it do not count: they are other flows than what comes in, and gone in a moment. Of another protocol, and where
/// the kernel does not tell, nobody does.
pub fn is_served(protocol: u8, addr: Ipv4Addr, port: u16) -> bool {
    let (name, state) = match protocol {
        6 => ("tcp", "0A"),
        17 => ("udp", "07"),
        _ => return false,
    };
    [name.to_owned(), format!("{name}6")].iter().any(|name| {
        std::fs::read_to_string(format!("/proc/thread-self/net/{name}"))
            .is_ok_and(|table| table.lines().skip(1).any(|line| serves(line, state, addr, port)))
    })
}

/// One line of /proc/net/tcp and its like (proc_pid_net(5)): "0: 0100007F:1F90 00000000:0000 0A …", addresses as the machine has
/// its words.
fn serves(line: &str, state: &str, addr: Ipv4Addr, port: u16) -> bool {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (Some(local), Some(_), Some(found)) = (fields.next(), fields.next(), fields.next()) else {
        return false;
    };
    let Some((place, number)) = local.rsplit_once(':') else { return false };
    let word = u32::from_ne_bytes(addr.octets());
    let mapped = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
    let here = place.bytes().all(|digit| digit == b'0')
        || place == format!("{word:08X}")
        || place == format!("{:016X}{mapped:08X}{word:08X}", 0);
    found == state && here && u16::from_str_radix(number, 16) == Ok(port)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
    const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

    #[test]
    fn who_waits_counts_and_who_went_out_does_not() {
        let listener = TcpListener::bind((HERE, 0)).unwrap();
        let place = listener.local_addr().unwrap();
        assert!(is_served(6, HERE, place.port()));
        assert!(!is_served(17, HERE, place.port()) && !is_served(6, ELSEWHERE, place.port()));
        assert!(!is_served(132, HERE, place.port()));
        let connection = TcpStream::connect(place).unwrap();
        assert!(!is_served(6, HERE, connection.local_addr().unwrap().port()));

        for everywhere in ["0.0.0.0:0", "[::]:0", "[::ffff:127.0.0.1]:0"] {
            // A machine may have no IPv6.
            let Ok(socket) = UdpSocket::bind(everywhere) else { continue };
            let port = socket.local_addr().unwrap().port();
            assert!(is_served(17, HERE, port), "{everywhere}");
            assert_eq!(is_served(17, ELSEWHERE, port), !everywhere.contains("127"), "{everywhere}");
        }
        let asking = UdpSocket::bind((HERE, 0)).unwrap();
        asking.connect((HERE, 53)).unwrap();
        assert!(!is_served(17, HERE, asking.local_addr().unwrap().port()));
    }

    #[test]
    fn lines_that_say_nothing() {
        for line in ["", "0:", "0: 0100007F", "0: 0100007F:1F90 x", "0: zz:zz x 0A", "0: :1F90 0 0B"] {
            assert!(!serves(line, "0A", HERE, 8080), "{line}");
        }
    }
}
