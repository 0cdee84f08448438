//! A provider's NAT without kernel or privilege: each mapping is a socket on a loopback address, and what comes in there
//! is passed on to the host inside. Bytes really pass.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use engine::provider::{Arrival, Binding, NatChange, NatRefused, Output, Server};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{AbortHandle, JoinSet};
use wire::pcp::{Protocol, Request, Response};

use crate::clock::now;

/// How long an answer to a datagram finds its way back.
const UDP_IDLE: Duration = Duration::from_secs(30);
/// Connections, or remote endpoints, of one port at once.
const MOST_FLOWS: usize = 256;

/// What the server heard and said, for a trace.
#[derive(Clone, Debug)]
pub enum Heard {
    /// A request.
    Request(Request),
    /// What was answered.
    Response(Response),
}

/// A PCP server and the NAT that it steers.
pub struct MemoryNat {
    server: Server,
    socket: UdpSocket,
    plane: MemoryPlane,
    trace: Rc<dyn Fn(Heard)>,
}

/// The NAT alone.
#[derive(Default)]
pub struct MemoryPlane {
    /// Stands for every external address; `None`: they are this machine's own.
    outside: Option<Ipv4Addr>,
    open: BTreeMap<(Protocol, SocketAddr), Forward>,
}

struct Forward {
    /// They end with it: one for each port.
    tasks: JoinSet<()>,
    binding: Shared,
}

impl Forward {
    /// On return its ports are free.
    async fn end(mut self) {
        self.tasks.shutdown().await;
    }
}

/// A binding whose filters may change while it stands.
type Shared = Arc<Mutex<Binding>>;

impl MemoryNat {
    /// A server on `socket`, with `outside` standing for its external address.
    pub fn new(server: Server, socket: UdpSocket, outside: Ipv4Addr, trace: Rc<dyn Fn(Heard)>) -> Self {
        let plane = MemoryPlane { outside: Some(outside), open: BTreeMap::new() };
        Self { server, socket, plane, trace }
    }

    /// Serves for ever; an error is one of the socket.
    pub async fn run(mut self) -> io::Result<std::convert::Infallible> {
        let to = self.socket.local_addr()?.ip();
        let mut buffer = [0; wire::pcp::MAX_LEN + 1];
        loop {
            while let Some(output) = self.server.poll_output() {
                self.perform(output).await;
            }
            let sleep = async {
                match self.server.next_timeout() {
                    Some(at) => tokio::time::sleep((at - now()) + Duration::from_millis(1)).await,
                    None => std::future::pending().await,
                }
            };
            let received = tokio::select! {
                received = self.socket.recv_from(&mut buffer) => Some(received?),
                () = sleep => None,
            };
            let Some((len, from)) = received else {
                self.server.handle_timeout(now());
                continue;
            };
            let payload = &buffer[..len];
            if let Ok(request) = Request::parse(payload) {
                (self.trace)(Heard::Request(request));
            }
            let arrival = Arrival { from, to, softwire: None, interface: 0, inside: true };
            self.server.handle_datagram(now(), &arrival, payload);
        }
    }

    async fn perform(&mut self, output: Output) {
        match output {
            Output::Send { to, bytes, .. } => {
                if let Ok(response) = Response::parse(&bytes) {
                    (self.trace)(Heard::Response(response));
                }
                // As if lost on the way: the client asks again.
                let _ = self.socket.send_to(&bytes, to).await;
            }
            Output::Nat { ticket, change } => {
                let outcome = self.plane.change(&change).await.map_err(|error| match error.kind() {
                    io::ErrorKind::AddrInUse => NatRefused::Taken,
                    _ => NatRefused::Failed,
                });
                self.server.handle_nat(now(), ticket, outcome);
            }
            // Nobody is translated but by a mapping.
            Output::Flow { ticket, .. } => self.server.handle_flow(now(), ticket, None),
            // Everybody is on this machine and has just been started; nothing outlives it.
            Output::Multicast { .. } | Output::Store(_) | Output::Notice(_) => {}
        }
    }
}

impl MemoryPlane {
    /// Carries out one change.
    ///
    /// # Errors
    /// A port that another program of this machine has, or an address that is not this machine's; nothing has changed
    /// then.
    pub async fn change(&mut self, change: &NatChange) -> io::Result<()> {
        let key = |binding: &Binding| (binding.protocol, binding.external);
        match change {
            NatChange::Close(binding) => {
                if let Some(forward) = self.open.remove(&key(binding)) {
                    forward.end().await;
                }
            }
            NatChange::Open(binding) => {
                let forward = self.forward(binding).await?;
                self.open.insert(key(binding), forward);
            }
            NatChange::Replace { old, new } => match self.open.get(&key(old)) {
                Some(forward) if key(old) == key(new) => *locked(&forward.binding) = new.clone(),
                _ => {
                    let forward = self.forward(new).await?;
                    if let Some(before) = self.open.remove(&key(old)) {
                        before.end().await;
                    }
                    self.open.insert(key(new), forward);
                }
            },
        }
        Ok(())
    }

    async fn forward(&self, binding: &Binding) -> io::Result<Forward> {
        let addr = self.outside.map_or(binding.external.ip(), IpAddr::V4);
        let is_tcp = binding.protocol == Protocol::TCP;
        let shared = Arc::new(Mutex::new(binding.clone()));
        let mut tasks = JoinSet::new();
        for nth in 0..binding.ports {
            let outside = SocketAddr::new(addr, binding.external.port() + nth);
            if is_tcp {
                tasks.spawn(forward_tcp(TcpListener::bind(outside).await?, shared.clone(), nth));
            } else {
                tasks.spawn(forward_udp(Arc::new(UdpSocket::bind(outside).await?), shared.clone(), nth));
            }
        }
        Ok(Forward { tasks, binding: shared })
    }
}

fn locked(binding: &Shared) -> std::sync::MutexGuard<'_, Binding> {
    binding.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a packet from `remote` goes, if it may come in.
fn inside(binding: &Shared, nth: u16, remote: SocketAddr) -> Option<SocketAddr> {
    let binding = locked(binding);
    binding.lets_in(remote).then_some(SocketAddr::new(binding.inside.addr, binding.internal_port + nth))
}

async fn forward_tcp(listener: TcpListener, binding: Shared, nth: u16) {
    // Connections end with the mapping.
    let mut connections = JoinSet::new();
    loop {
        let Ok((mut outside, remote)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        if connections.len() >= MOST_FLOWS {
            continue; // whoever is refused tries again
        }
        if let Some(internal) = inside(&binding, nth, remote) {
            connections.spawn(async move {
                if let Ok(mut inside) = TcpStream::connect(internal).await {
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                }
            });
        }
    }
}

async fn forward_udp(outside: Arc<UdpSocket>, binding: Shared, nth: u16) {
    let mut sockets: BTreeMap<SocketAddr, (Arc<UdpSocket>, AbortHandle)> = BTreeMap::new();
    // Answers end with the mapping.
    let mut answers = JoinSet::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((len, remote)) = outside.recv_from(&mut buffer).await else { continue };
        let Some(internal) = inside(&binding, nth, remote) else { continue };
        while answers.try_join_next().is_some() {}
        sockets.retain(|_, (_, task)| !task.is_finished());
        if sockets.len() >= MOST_FLOWS && !sockets.contains_key(&remote) {
            continue; // as if lost on the way
        }
        let socket = match sockets.entry(remote) {
            Entry::Occupied(entry) => entry.get().0.clone(),
            Entry::Vacant(entry) => {
                let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await else { continue };
                if socket.connect(internal).await.is_err() {
                    continue;
                }
                let socket = Arc::new(socket);
                let task = answers.spawn(back(socket.clone(), Arc::downgrade(&outside), remote));
                entry.insert((socket.clone(), task));
                socket
            }
        };
        let _ = socket.send(&buffer[..len]).await;
    }
}

/// Answers of the host inside, for as long as there are any, and the mapping.
async fn back(inside: Arc<UdpSocket>, outside: Weak<UdpSocket>, remote: SocketAddr) {
    let mut buffer = vec![0; 65_536];
    while let Ok(Ok(len)) = tokio::time::timeout(UDP_IDLE, inside.recv(&mut buffer)).await {
        let Some(outside) = outside.upgrade() else { return };
        let _ = outside.send_to(&buffer[..len], remote).await;
    }
}

#[cfg(test)]
mod tests {
    use engine::provider::Inside;

    use super::*;

    fn binding(protocol: Protocol, inside: u16, outside: u16) -> Binding {
        let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Binding {
            protocol,
            inside: Inside { softwire: None, addr: host },
            internal_port: inside,
            external: SocketAddr::new(host, outside),
            ports: 1,
            filters: Vec::new(),
            peer: None,
        }
    }

    /// Its client may have the port again at once, and the host inside says nothing more to who asked by the mapping that was.
    #[tokio::test]
    async fn what_is_closed_can_be_opened_again() {
        let host = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let patience = Some(Duration::from_secs(5));
        host.set_read_timeout(patience).unwrap();
        let port = |socket: &std::net::UdpSocket| socket.local_addr().unwrap().port();
        // Other tests have ports of their own, of either protocol.
        let free = (0..100).find_map(|_| {
            let udp = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port(&udp))).is_ok().then(|| port(&udp))
        });
        let free = free.expect("some port is free in both");
        let mut plane = MemoryPlane::default();
        for protocol in [Protocol::TCP, Protocol::UDP] {
            let binding = binding(protocol, port(&host), free);
            for _ in 0..3 {
                plane.change(&NatChange::Open(binding.clone())).await.unwrap();
                if protocol == Protocol::UDP {
                    let remote = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
                    remote.send_to(b"knock", binding.external).await.unwrap();
                    let knocked = |host: std::net::UdpSocket| {
                        let mut buffer = [0; 16];
                        let (len, from) = host.recv_from(&mut buffer).unwrap();
                        assert_eq!(&buffer[..len], b"knock");
                        host.send_to(b"come in", from).unwrap();
                    };
                    let host = host.try_clone().unwrap();
                    tokio::task::spawn_blocking(move || knocked(host)).await.unwrap();
                    let mut buffer = [0; 16];
                    let answer = tokio::time::timeout(Duration::from_secs(5), remote.recv(&mut buffer)).await;
                    assert_eq!(&buffer[..answer.unwrap().unwrap()], b"come in");
                }
                plane.change(&NatChange::Close(binding.clone())).await.unwrap();
            }
        }
    }
}
