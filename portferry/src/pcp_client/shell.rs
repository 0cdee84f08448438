//! Sockets, clock, signals and terminal around [`Client`], which decides.

use std::future;
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::args::Errand;
use super::client::{Client, Event, Route};
use super::listen::Announcements;
use super::note::Note;
use super::plan::Job;
use super::server;
use super::voice::{Ends, Voice};
use crate::clock;
use crate::entropy::KernelEntropy;
use crate::exit::Failure;

/// More than any message of either protocol, so that one that is too long shows.
const BUFFER: usize = 2048;

/// Our port: what the server sends, and what others do.
struct Sockets {
    /// Connected: the kernel tells when nobody is there.
    server: UdpSocket,
    /// The same port for everybody else. An answer from another address than was asked is worth to be shown.
    others: UdpSocket,
    own: SocketAddr,
}

/// Runs the errand to its end.
pub(super) async fn run(mut errand: Errand) -> Result<(), Failure> {
    let source = errand.asking.source;
    let server = server::find(errand.asking.server.as_ref(), source).await?;
    let sockets = Sockets::open(server, source).map_err(|error| cannot_ask(server, source, &error))?;
    if let Job::External { internal_port, .. } = &mut errand.plan.job {
        *internal_port = sockets.own.port();
    }
    let client = errand.asking.client_address.unwrap_or(sockets.own.ip());
    let mut voice = Voice::new(&errand, Ends { server, source: sockets.own, client });
    say(&voice.begin());
    let keeps = errand.plan.job.keeps();
    let mut signals = Signals::watch(keeps)?;
    let mut announcements = if keeps { Announcements::beside(sockets.own.ip()).await } else { None };
    // No secret is derived here: only randomness is drawn.
    let mut entropy = KernelEntropy::new([0; 16]);
    let began = Instant::now();
    let mut client = Client::new(clock::now(), errand.plan, Route { server, client }, &mut entropy);
    let (mut buffer, mut stray) = ([0; BUFFER], [0; BUFFER]);
    loop {
        while let Some(event) = client.poll_event() {
            let at = began.elapsed();
            let failed = match &event {
                Event::Send { bytes, .. } => sockets.server.send(bytes).await.err(),
                _ => None,
            };
            say(&voice.hear(at, &event));
            if event == Event::Note(Note::GivingBack) && !keeps {
                signals = Signals::watch(true)?;
            }
            if let Event::Ended(outcome) = event {
                return outcome.failure(server).map_or(Ok(()), Err);
            }
            if let Some(error) = failed {
                client.handle_unreachable(clock::now(), closed(&error), &error.to_string());
            }
        }
        tokio::select! {
            received = sockets.server.recv(&mut buffer) => match received {
                Ok(len) => client.handle_datagram(clock::now(), server, &buffer[..len], &mut entropy),
                Err(error) => client.handle_unreachable(clock::now(), closed(&error), &error.to_string()),
            },
            received = sockets.others.recv_from(&mut stray) => {
                if let Ok((len, from)) = received {
                    client.handle_datagram(clock::now(), from, &stray[..len], &mut entropy);
                }
            }
            heard = Announcements::next(&mut announcements) => {
                client.handle_datagram(clock::now(), heard.from, &heard.bytes, &mut entropy);
            }
            () = signals.next() => client.handle_interrupt(clock::now(), &mut entropy),
            () = until(client.next_timeout()) => client.handle_timeout(clock::now(), &mut entropy),
        }
    }
}

impl Sockets {
    fn open(server: SocketAddr, source: Option<IpAddr>) -> io::Result<Self> {
        let mut own = match source {
            Some(source) => SocketAddr::new(source, 0),
            // The way that leads there decides the address.
            None => {
                let probe = Socket::new(Domain::for_address(server), Type::DGRAM, Some(Protocol::UDP))?;
                probe.connect(&server.into())?;
                probe.local_addr()?.as_socket().ok_or(ErrorKind::AddrNotAvailable)?
            }
        };
        own.set_port(0);
        if let (SocketAddr::V6(own), SocketAddr::V6(server)) = (&mut own, server)
            && own.ip().is_unicast_link_local()
            && own.scope_id() == 0
        {
            own.set_scope_id(server.scope_id());
        }
        let connected = bound(own)?;
        let own = connected.local_addr()?.as_socket().ok_or(ErrorKind::AddrNotAvailable)?;
        let others = bound(own)?;
        connected.connect(&server.into())?;
        Ok(Self {
            server: UdpSocket::from_std(connected.into())?,
            others: UdpSocket::from_std(others.into())?,
            own,
        })
    }
}

fn bound(own: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(own), Type::DGRAM, Some(Protocol::UDP))?;
    // Both of our sockets have the port; nobody of another user gets it.
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&own.into())?;
    Ok(socket)
}

fn cannot_ask(server: SocketAddr, source: Option<IpAddr>, error: &io::Error) -> Failure {
    match (source, error.kind()) {
        (Some(source), _) if source.is_ipv4() != server.is_ipv4() => {
            Failure::usage(format!("{source} cannot send to {server}: they are of two families"))
        }
        (Some(source), ErrorKind::AddrNotAvailable) => {
            Failure::usage(format!("{source} is no address of this host: see `ip address`"))
        }
        (_, ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable) => {
            Failure::unavailable(format!("no way leads to {server}: see `ip route get {}`", server.ip()))
        }
        _ => Failure::system(format!("cannot ask {server}: {error}")),
    }
}

fn closed(error: &io::Error) -> bool {
    error.kind() == ErrorKind::ConnectionRefused
}

/// SIGINT and SIGTERM, where a mapping has to be deleted first; elsewhere they end the program as they always do.
struct Signals(Vec<Signal>);

impl Signals {
    fn watch(wanted: bool) -> Result<Self, Failure> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate()];
        let kinds = kinds.into_iter().filter(|_| wanted);
        let streams = kinds.map(signal).collect::<io::Result<_>>();
        streams.map(Self).map_err(|error| Failure::system(format!("no signals: {error}")))
    }

    async fn next(&mut self) {
        match &mut self.0[..] {
            [interrupt, terminate] => tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            },
            _ => future::pending().await,
        }
    }
}

async fn until(at: Option<engine::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep(at.since(clock::now()).max(Duration::from_millis(1))).await,
        None => future::pending().await,
    }
}

/// A reader that went away, such as `head`, is no failure; whether somebody still reads.
pub(super) fn say(text: &str) -> bool {
    let mut out = io::stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// The server's own octets, everybody else's, and the news that nobody is there come by three ways.
    #[test]
    fn answers_by_who_sent_them() {
        let exchange = async {
            let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let stranger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let sockets = Sockets::open(server.local_addr().unwrap(), None).unwrap();
            sockets.server.send(b"question").await.unwrap();
            let mut buffer = [0; 16];
            let (_, asker) = server.recv_from(&mut buffer).await.unwrap();
            assert_eq!(asker, sockets.own);
            stranger.send_to(b"stranger", asker).await.unwrap();
            server.send_to(b"server", asker).await.unwrap();
            let len = sockets.server.recv(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..len], b"server");
            let (len, from) = sockets.others.recv_from(&mut buffer).await.unwrap();
            assert_eq!((&buffer[..len], from), (&b"stranger"[..], stranger.local_addr().unwrap()));

            drop(server);
            sockets.server.send(b"question").await.unwrap();
            let error = sockets.server.recv(&mut buffer).await.unwrap_err();
            assert!(closed(&error), "{error}");
        };
        let runtime = crate::run::runtime().unwrap();
        let soon = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), exchange).await });
        soon.expect("nothing of this takes long");
    }

    #[test]
    fn what_cannot_be_asked_is_a_wrong_command_line() {
        let runtime = crate::run::runtime().unwrap();
        let _entered = runtime.enter();
        let failure = |server: &str, source: &str| {
            let (server, source) = (server.parse().unwrap(), source.parse().unwrap());
            let error = Sockets::open(server, Some(source)).map(|_| ()).unwrap_err();
            cannot_ask(server, Some(source), &error).to_string()
        };
        assert!(failure("127.0.0.1:5351", "192.0.2.1").contains("no address of this host"));
        assert!(failure("127.0.0.1:5351", "::1").contains("two families"));
    }
}
