//! Datagrams from where they should not come from.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use lab::packet::{Ipv4, udp_v4};
use socket2::{Domain, Protocol, Socket, Type};

/// How long silence has to last.
pub(crate) const QUIET: Duration = Duration::from_millis(400);

/// A socket in the namespace that the caller is in, at that address and port.
pub(crate) fn at(address: Ipv4Addr, port: u16) -> UdpSocket {
    UdpSocket::bind((address, port)).unwrap_or_else(|error| panic!("{address}:{port}: {error}"))
}

/// Everything that comes to a socket within that time.
pub(crate) fn hears(socket: &UdpSocket, patience: Duration) -> Vec<Vec<u8>> {
    let deadline = Instant::now() + patience;
    let mut all = Vec::new();
    let mut buffer = [0; 2048];
    while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        let _ = socket.set_read_timeout(Some(left));
        if let Ok((len, _)) = socket.recv_from(&mut buffer) {
            all.push(buffer[..len].to_vec());
        }
    }
    all
}

/// The first answer to a datagram, within [`QUIET`] or so long.
pub(crate) fn asks(from: Ipv4Addr, to: SocketAddr, datagram: &[u8], patience: Duration) -> Option<Vec<u8>> {
    let socket = at(from, 0);
    socket.set_read_timeout(Some(patience)).expect("not zero");
    socket.send_to(datagram, to).ok()?;
    let mut buffer = [0; 2048];
    let (len, _) = socket.recv_from(&mut buffer).ok()?;
    Some(buffer[..len].to_vec())
}

/// A socket that sends whole packets, whatever they say of where they come from.
pub(crate) fn raw() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).expect("the lab has root");
    socket.set_header_included_v4(true).expect("it is raw");
    socket
}

pub(crate) fn forge(socket: &Socket, packet: &Ipv4) {
    let to = SocketAddr::from(SocketAddrV4::new(packet.dst, 0));
    socket.send_to(&packet.to_bytes(), &to.into()).expect("there is a way");
}

/// A datagram in another's name.
pub(crate) fn spoof(socket: &Socket, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), datagram: &[u8]) {
    forge(socket, &udp_v4(from, to, datagram));
}
