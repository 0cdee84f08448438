//! A provider's NAT without kernel or privilege: each mapping is a socket on a loopback address, and what comes in there
//! is passed on to the host inside. Bytes really pass.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::provider::{NatEvent, Provider, ProviderMapping};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use wire::pcp::{Protocol, Request, Response};

use crate::clock::now;

/// How long an answer to a datagram finds its way back.
const UDP_IDLE: Duration = Duration::from_secs(30);

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
    provider: Provider,
    socket: UdpSocket,
    /// Stands for the external address.
    outside: Ipv4Addr,
    open: BTreeMap<(Protocol, u16), Forward>,
    trace: Rc<dyn Fn(Heard)>,
}

struct Forward(JoinHandle<()>);

impl Drop for Forward {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl MemoryNat {
    /// A server on `socket`, with `outside` standing for its external address.
    pub fn new(provider: Provider, socket: UdpSocket, outside: Ipv4Addr, trace: Rc<dyn Fn(Heard)>) -> Self {
        Self { provider, socket, outside, open: BTreeMap::new(), trace }
    }

    /// Serves for ever; an error is one of the socket.
    pub async fn run(mut self) -> io::Result<std::convert::Infallible> {
        let mut buffer = [0; wire::pcp::MAX_LEN + 1];
        loop {
            let sleep = async {
                match self.provider.next_timeout() {
                    Some(at) => tokio::time::sleep((at - now()) + Duration::from_millis(1)).await,
                    None => std::future::pending().await,
                }
            };
            let received = tokio::select! {
                received = self.socket.recv_from(&mut buffer) => Some(received?),
                () = sleep => None,
            };
            match received {
                Some((len, from)) => self.answer(from, &buffer[..len]).await,
                None => self.provider.handle_timeout(now()),
            }
            while let Some(event) = self.provider.poll_event() {
                self.change(event).await;
            }
        }
    }

    async fn answer(&mut self, from: SocketAddr, payload: &[u8]) {
        if let Ok(request) = Request::parse(payload) {
            (self.trace)(Heard::Request(request));
        }
        if let Some(answer) = self.provider.handle_datagram(now(), from, payload) {
            if let Ok(response) = Response::parse(&answer) {
                (self.trace)(Heard::Response(response));
            }
            // As if lost on the way: the client asks again.
            let _ = self.socket.send_to(&answer, from).await;
        }
    }

    async fn change(&mut self, event: NatEvent) {
        match event {
            NatEvent::Closed(mapping) => drop(self.open.remove(&(mapping.protocol, mapping.external.port()))),
            NatEvent::Opened(mapping) => {
                let key = (mapping.protocol, mapping.external.port());
                // A port that another program of this machine has stays closed, as on a broken NAT.
                if let Ok(forward) = self.forward(mapping).await {
                    self.open.insert(key, forward);
                }
            }
        }
    }

    async fn forward(&mut self, mapping: ProviderMapping) -> io::Result<Forward> {
        // A changed filter replaces the socket, so the old one has to go first.
        drop(self.open.remove(&(mapping.protocol, mapping.external.port())));
        let outside = SocketAddrV4::new(self.outside, mapping.external.port());
        Ok(Forward(if mapping.protocol == Protocol::TCP {
            tokio::spawn(forward_tcp(TcpListener::bind(outside).await?, mapping))
        } else {
            tokio::spawn(forward_udp(Arc::new(UdpSocket::bind(outside).await?), mapping))
        }))
    }
}

fn lets_in(mapping: &ProviderMapping, remote: SocketAddr) -> bool {
    match remote.ip() {
        IpAddr::V4(remote) => mapping.lets_in(remote),
        IpAddr::V6(_) => false,
    }
}

async fn forward_tcp(listener: TcpListener, mapping: ProviderMapping) {
    // Connections end with the mapping.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((mut outside, remote)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        if lets_in(&mapping, remote) {
            let internal = mapping.internal;
            connections.spawn(async move {
                if let Ok(mut inside) = TcpStream::connect(internal).await {
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                }
            });
        }
    }
}

async fn forward_udp(outside: Arc<UdpSocket>, mapping: ProviderMapping) {
    let mut inside: BTreeMap<SocketAddr, (Arc<UdpSocket>, JoinHandle<()>)> = BTreeMap::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((len, remote)) = outside.recv_from(&mut buffer).await else { continue };
        if !lets_in(&mapping, remote) {
            continue;
        }
        inside.retain(|_, (_, task)| !task.is_finished());
        let socket = match inside.entry(remote) {
            Entry::Occupied(entry) => entry.get().0.clone(),
            Entry::Vacant(entry) => {
                let Ok(socket) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await else { continue };
                if socket.connect(mapping.internal).await.is_err() {
                    continue;
                }
                let socket = Arc::new(socket);
                let task = tokio::spawn(back(socket.clone(), outside.clone(), remote));
                entry.insert((socket.clone(), task));
                socket
            }
        };
        let _ = socket.send(&buffer[..len]).await;
    }
}

/// Answers of the host inside, for as long as there are any.
async fn back(inside: Arc<UdpSocket>, outside: Arc<UdpSocket>, remote: SocketAddr) {
    let mut buffer = vec![0; 65_536];
    while let Ok(Ok(len)) = tokio::time::timeout(UDP_IDLE, inside.recv(&mut buffer)).await {
        let _ = outside.send_to(&buffer[..len], remote).await;
    }
}
