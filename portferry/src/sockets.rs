//! UDP sockets: SSDP and PCP on each LAN interface, the uplink towards the PCP server, the group for its announcements, and the search for the
//! provider's router.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// One octet more than any protocol here takes, so that a datagram that is cut looks too long.
const BUFFER: usize = wire::ssdp::MAX_DATAGRAM + 1;

/// A socket that the gateway needs, by the interface that it is bound to. Which there may be is a matter of the privileged process.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub enum Spec {
    /// See [`ssdp`].
    Ssdp {
        /// One of the LAN.
        interface: String,
    },
    /// See [`ssdp_group`].
    SsdpGroup {
        /// One of the LAN.
        interface: String,
        /// One of SSDP's groups.
        group: Ipv6Addr,
    },
    /// See [`ssdp_at`].
    SsdpAt {
        /// One of the LAN.
        interface: String,
        /// One of its addresses.
        own: Ipv6Addr,
    },
    /// See [`pcp`].
    Pcp {
        /// One of the LAN.
        interface: String,
        /// One of its addresses.
        addr: IpAddr,
    },
    /// See [`http`]; the port is the configuration's.
    Http {
        /// One of the LAN.
        interface: String,
        /// One of its addresses.
        addr: IpAddr,
    },
    /// A connection to a subscriber, which may be under way.
    Callback {
        /// One of the LAN.
        interface: String,
        /// A host on its link.
        to: SocketAddr,
    },
    /// See [`uplink`].
    Uplink {
        /// One of the WAN.
        interface: String,
        /// A PCP server.
        server: SocketAddr,
        /// The source, where it is not the system's choice.
        #[serde(skip)]
        from: Option<IpAddr>,
    },
    /// See [`scout`].
    Scout {
        /// One of the WAN.
        interface: String,
        /// In IPv6.
        v6: bool,
        /// The source, where it is not the system's choice.
        #[serde(skip)]
        from: Option<IpAddr>,
    },
    /// See [`announcements`] and [`announcements_v6`].
    Announcements {
        /// One of the WAN.
        interface: String,
        /// In IPv6.
        v6: bool,
    },
    /// See [`search`].
    Search {
        /// One of the WAN.
        interface: String,
    },
    /// A connection to the provider's router, which may be under way.
    Router {
        /// One of the WAN.
        interface: String,
        /// The router there.
        to: SocketAddrV4,
    },
    /// See [`dhcp`].
    Dhcp {
        /// One of the WAN.
        interface: String,
        /// A DHCP client's port on one of its addresses.
        source: SocketAddr,
    },
}

impl Spec {
    /// The interface that it is bound to.
    pub fn interface(&self) -> &str {
        match self {
            Spec::Ssdp { interface }
            | Spec::SsdpGroup { interface, .. }
            | Spec::SsdpAt { interface, .. }
            | Spec::Pcp { interface, .. }
            | Spec::Http { interface, .. }
            | Spec::Callback { interface, .. }
            | Spec::Uplink { interface, .. }
            | Spec::Scout { interface, .. }
            | Spec::Announcements { interface, .. }
            | Spec::Search { interface }
            | Spec::Router { interface, .. }
            | Spec::Dhcp { interface, .. } => interface,
        }
    }

    /// Opens it. `index` is the kernel's number of its interface, `http_port` the configuration's.
    ///
    /// # Errors
    /// What the system says: a port that is taken, an address that is not there, a privilege that is missing.
    pub fn open(&self, index: u32, http_port: u16) -> io::Result<OwnedFd> {
        Ok(match *self {
            Spec::Ssdp { ref interface } => ssdp(interface, index)?.into(),
            Spec::SsdpGroup { ref interface, group } => ssdp_group(interface, index, group)?.into(),
            Spec::SsdpAt { ref interface, own } => ssdp_at(interface, index, own)?.into(),
            Spec::Pcp { ref interface, addr } => pcp(interface, index, addr)?.into(),
            Spec::Http { ref interface, addr } => http(interface, at(addr, http_port, index))?.into(),
            Spec::Callback { ref interface, to } => connection(interface, to)?,
            Spec::Uplink { ref interface, server, from } => uplink(interface, from, server)?.into(),
            Spec::Scout { ref interface, v6, from } => scout(interface, from, v6)?.into(),
            Spec::Announcements { ref interface, v6: false } => announcements(interface, index)?.into(),
            Spec::Announcements { ref interface, v6: true } => announcements_v6(interface, index)?.into(),
            Spec::Search { ref interface } => search(interface)?.into(),
            Spec::Router { ref interface, to } => connection(interface, to.into())?,
            Spec::Dhcp { ref interface, source } => dhcp(interface, index, source)?.into(),
        })
    }
}

/// An address of ours with a port: the same link-local one may be on several links.
pub fn at(addr: IpAddr, port: u16, index: u32) -> SocketAddr {
    match addr {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => SocketAddrV6::new(v6, port, 0, index).into(),
        _ => SocketAddr::new(addr, port),
    }
}

/// A TCP connection that has begun; [`connected`] waits until it stands.
fn connection(interface: &str, to: SocketAddr) -> io::Result<OwnedFd> {
    const EINPROGRESS: i32 = 115;
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// The connection that a [`Spec`] has begun, when it stands.
///
/// # Errors
/// It came to nothing.
pub async fn connected(socket: OwnedFd) -> io::Result<tokio::net::TcpStream> {
    let stream = tokio::net::TcpStream::from_std(socket.into())?;
    stream.writable().await?;
    stream.take_error()?.map_or(Ok(stream), Err)
}

/// A socket and the task that reads it; dropping it ends both.
#[derive(Debug)]
pub struct Reading {
    /// For sending, which never waits: a full buffer is an error like any other.
    pub sender: UdpSocket,
    task: JoinHandle<()>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Reading {
    /// Reads `socket` for ever; each datagram goes to `queue` as `wrap` makes it. When the receiver is behind, the
    /// kernel's buffer fills and datagrams are lost, as on any network.
    pub fn start<T: Send + 'static>(
        socket: UdpSocket,
        queue: mpsc::Sender<T>,
        wrap: impl Fn(SocketAddr, Vec<u8>) -> T + Send + 'static,
    ) -> io::Result<Self> {
        Self::start_with(socket, queue, wrap, || None)
    }

    /// The same, of a connected socket; `refused` says what to send when nobody listens at the other end, as ICMP has told.
    pub fn start_with<T: Send + 'static>(
        socket: UdpSocket,
        queue: mpsc::Sender<T>,
        wrap: impl Fn(SocketAddr, Vec<u8>) -> T + Send + 'static,
        refused: impl Fn() -> Option<T> + Send + 'static,
    ) -> io::Result<Self> {
        let sender = socket.try_clone()?;
        let reader = tokio::net::UdpSocket::from_std(socket)?;
        let task = tokio::spawn(async move {
            let mut buffer = [0; BUFFER];
            loop {
                match reader.recv_from(&mut buffer).await {
                    Ok((len, from)) => {
                        if queue.send(wrap(from, buffer[..len].to_vec())).await.is_err() {
                            return;
                        }
                    }
                    // "Connection refused" after a datagram to a closed port, "network down": nothing is lost by
                    // going on, and yielding keeps a lasting error from eating the processor.
                    Err(error) => {
                        if let Some(news) = refused().filter(|_| is_refused(&error))
                            && queue.send(news).await.is_err()
                        {
                            return;
                        }
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    }
                }
            }
        });
        Ok(Self { sender, task })
    }
}

/// Whether an error of a connected socket means that nobody is there (RFC 7488 §3: a hard ICMP error).
pub fn is_refused(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable)
}

/// A socket on SSDP's port that hears only `interface`, the group and unicast alike, and sends by it.
pub fn ssdp(interface: &str, index: u32) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    // Other UPnP programs share the port.
    socket.set_reuse_address(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, wire::ssdp::PORT)).into())?;
    socket.join_multicast_v4_n(&wire::ssdp::GROUP_V4, &InterfaceIndexOrAddress::Index(index))?;
    // Groups that other programs joined on this interface are none of our business.
    socket.set_multicast_all_v4(false)?;
    socket.set_multicast_ttl_v4(2)?;
    nonblocking(socket)
}

/// A socket on SSDP's port that hears what comes to an IPv6 group by `interface`, and nothing else.
pub fn ssdp_group(interface: &str, index: u32, group: Ipv6Addr) -> io::Result<UdpSocket> {
    let socket = ssdp_over_ipv6(interface, index, group)?;
    socket.join_multicast_v6(&group, index)?;
    nonblocking(socket)
}

/// A socket on SSDP's port that hears what is sent to `own` by `interface`, and sends from there, to groups, too. So an answer comes
/// from the address that it names, which the kernel would choose otherwise (K-5).
pub fn ssdp_at(interface: &str, index: u32, own: Ipv6Addr) -> io::Result<UdpSocket> {
    let socket = ssdp_over_ipv6(interface, index, own)?;
    socket.set_multicast_if_v6(index)?;
    // uda.md 5.
    socket.set_multicast_hops_v6(if own.is_unicast_link_local() { 1 } else { 10 })?;
    nonblocking(socket)
}

fn ssdp_over_ipv6(interface: &str, index: u32, at: Ipv6Addr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    // What comes over IPv4 is the other socket's (K-2).
    socket.set_only_v6(true)?;
    socket.set_reuse_address(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    let zone = if at.is_unicast_link_local() || at.is_multicast() { index } else { 0 };
    socket.bind(&SocketAddrV6::new(at, wire::ssdp::PORT, 0, zone).into())?;
    Ok(socket)
}

/// A socket that searches for the provider's router on the WAN interface, from a random port; what answers comes back to it.
pub fn search(interface: &str) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into())?;
    socket.set_multicast_ttl_v4(2)?;
    nonblocking(socket)
}

/// A socket connected to the PCP server, from a random port, by the WAN interface, and from `from` where that is given.
pub fn uplink(interface: &str, from: Option<IpAddr>, server: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(server), Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(Some(interface.as_bytes()))?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    socket.connect(&server.into())?;
    nonblocking(socket)
}

/// A socket for questions to servers that may be there, from a random port, by the WAN interface.
pub fn scout(interface: &str, from: Option<IpAddr>, v6: bool) -> io::Result<UdpSocket> {
    let any = if v6 { IpAddr::from([0; 16]) } else { IpAddr::from([0; 4]) };
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddr::new(from.unwrap_or(any), 0).into())?;
    nonblocking(socket)
}

/// A socket that hears the announcements of a PCP server that speaks IPv4, on the WAN interface (RFC 6887 §14.1.3).
pub fn announcements(interface: &str, index: u32) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    // Bound to the group itself: unicast to this port is not ours.
    let group = wire::pcp::ANNOUNCE_GROUP_V4;
    socket.bind(&SocketAddr::from((group, wire::pcp::CLIENT_PORT)).into())?;
    socket.join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(index))?;
    nonblocking(socket)
}

/// The same for a server that speaks IPv6: it announces itself to `ff02::1` (RFC 6887 §14.1.3).
pub fn announcements_v6(interface: &str, index: u32) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_only_v6(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    let group = wire::pcp::ANNOUNCE_GROUP_V6;
    socket.bind(&SocketAddrV6::new(group, wire::pcp::CLIENT_PORT, 0, index).into())?;
    socket.join_multicast_v6(&group, index)?;
    nonblocking(socket)
}

/// A socket on the port of PCP servers that hears what comes to `addr` by `interface` only, and answers from there (RFC 6887 §8.2,
/// step 1).
pub fn pcp(interface: &str, index: u32, addr: IpAddr) -> io::Result<UdpSocket> {
    let port = wire::pcp::SERVER_PORT;
    let at = at(addr, port, index);
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(Some(interface.as_bytes()))?;
    // What comes while the disk is waited for; the kernel gives as much as it allows.
    socket.set_recv_buffer_size(1 << 20)?;
    match addr {
        IpAddr::V4(_) => {
            // Link-local, as RFC 6887 §14.1 has it; by the interface that the socket is bound to.
            socket.set_multicast_ttl_v4(1)?;
            socket.set_multicast_loop_v4(false)?;
        }
        IpAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_multicast_if_v6(index)?;
            socket.set_multicast_loop_v6(false)?;
        }
    }
    socket.bind(&at.into())?;
    nonblocking(socket)
}

/// A socket on the port of DHCP clients that asks by `interface`, from `source`. Other programs that allow it have the port, too;
/// then the one that opened it last hears.
pub fn dhcp(interface: &str, index: u32, source: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(source), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    match source {
        SocketAddr::V4(_) => {
            socket.set_broadcast(true)?;
            socket.bind(&source.into())?;
        }
        SocketAddr::V6(source) => {
            socket.set_only_v6(true)?;
            socket.set_multicast_if_v6(index)?;
            socket.bind(&SocketAddrV6::new(*source.ip(), source.port(), 0, index).into())?;
        }
    }
    nonblocking(socket)
}

/// A listening socket for the HTTP server that accepts only what comes in by `interface`.
pub fn http(interface: &str, addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&addr.into())?;
    // Who comes when this is full waits for a second, until TCP tries again.
    socket.listen(1024)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn nonblocking(socket: Socket) -> io::Result<UdpSocket> {
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}
