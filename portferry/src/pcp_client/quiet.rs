//! A mapping asked for and given back without showing anything: for `portferry doctor`. It never repeats what another client of this
//! machine asks: the internal port is its own, and so is the nonce.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use wire::pcp::{PcpOption, Protocol, ResultCode, ip_to_wire};

use super::client::{Client, Event, Route};
use super::nonce;
use super::outcome::{Code, Outcome};
use super::parse::Suggestion;
use super::plan::{Job, Mapping, Plan, Speak};
use crate::clock;
use crate::entropy::KernelEntropy;
use crate::sockets;

/// A mapping of UDP to ask for.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) server: SocketAddr,
    /// By NAT-PMP alone: the server is silent about PCP.
    pub(crate) nat_pmp: bool,
    /// The interface that it goes out by.
    pub(crate) interface: String,
    pub(crate) internal_port: u16,
    /// Seconds.
    pub(crate) lifetime: u32,
    /// The host inside, if it is not this one.
    pub(crate) third_party: Option<IpAddr>,
    /// While it stands, its external port is asked for from this internal port, too, with PREFER_FAILURE.
    pub(crate) rival: Option<u16>,
    pub(crate) patience: Duration,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    Granted {
        nat_pmp: bool,
        external: Option<IpAddr>,
        port: u16,
        lifetime: u32,
        /// Seconds that it stands for still: 0 when it was deleted, `None` when nobody confirmed that.
        left: Option<u32>,
        /// Whether the rival was refused, as it should be; `None` where that was not to be found out.
        prefers_failure: Option<bool>,
    },
    /// Granted to another host than asked, and given back.
    Otherwise(String),
    Refused {
        code: String,
        why: String,
        todo: String,
    },
    /// The server speaks NAT-PMP only, and another host was asked for.
    Inexpressible,
    Failed(String),
}

/// Asks, and deletes what was granted.
pub(crate) async fn map(asked: &Asked) -> Told {
    let third_party = asked.third_party.map(|host| PcpOption::ThirdParty(ip_to_wire(host)));
    let mapping = Mapping {
        nonce: nonce::random(),
        protocol: Protocol::UDP,
        internal_port: asked.internal_port,
        suggestion: Suggestion::default(),
        lifetime: asked.lifetime,
        peer: None,
        options: third_party.into_iter().collect(),
        keep: false,
    };
    match carry_out(asked, mapping.clone()).await {
        Outcome::Granted(grant) => {
            let prefers_failure = match asked.rival.filter(|_| grant.nonce.is_some()) {
                Some(port) => rival(asked, &mapping, port, grant.external_port).await,
                None => None,
            };
            let left = match carry_out(asked, mapping.deleted()).await {
                Outcome::Deleted { remaining } => Some(remaining),
                _ => None,
            };
            Told::Granted {
                nat_pmp: grant.nonce.is_none(),
                external: grant.external_addr,
                port: grant.external_port,
                lifetime: grant.lifetime,
                left,
                prefers_failure,
            }
        }
        Outcome::NotAsAsked { got, .. } => Told::Otherwise(got),
        Outcome::Refused(refusal) => {
            let hint = refusal.code.hint();
            Told::Refused {
                code: refusal.code.to_string(),
                why: hint.why.to_owned(),
                todo: hint.what_to_do.to_owned(),
            }
        }
        Outcome::Inexpressible(_) => Told::Inexpressible,
        other => {
            let words = other.failure(asked.server).map(|failure| failure.to_string());
            let first = words.as_deref().and_then(|words| words.lines().next()).unwrap_or(other.word());
            Told::Failed(first.trim_end_matches('.').to_owned())
        }
    }
}

/// Asks for a port that is taken, and no other: who grants another one passes over PREFER_FAILURE (RFC 6887 §13.2).
async fn rival(asked: &Asked, first: &Mapping, internal_port: u16, port: u16) -> Option<bool> {
    let mut mapping = Mapping {
        nonce: nonce::random(),
        internal_port,
        suggestion: Suggestion { addr: None, port },
        ..first.clone()
    };
    mapping.options.push(PcpOption::PreferFailure);
    match carry_out(asked, mapping.clone()).await {
        Outcome::Refused(refusal) => match refusal.code {
            Code::Pcp(ResultCode::CANNOT_PROVIDE_EXTERNAL) => Some(true),
            Code::Pcp(ResultCode::UNSUPP_OPTION) => Some(false),
            _ => None,
        },
        Outcome::NotAsAsked { .. } => Some(false),
        Outcome::Granted(_) => {
            carry_out(asked, mapping.deleted()).await;
            None
        }
        _ => None,
    }
}

async fn carry_out(asked: &Asked, mapping: Mapping) -> Outcome {
    let speak = if asked.nat_pmp { Speak::NatPmp } else { Speak::Auto };
    let plan = Plan { job: Job::Mapping(mapping), speak, patience: asked.patience, retries: None };
    let unreachable =
        |error: std::io::Error| Outcome::Unreachable { closed: false, error: error.to_string() };
    let opened = sockets::uplink(&asked.interface, None, asked.server)
        .and_then(|(socket, own)| Ok((UdpSocket::from_std(socket)?, own)));
    let (socket, own) = match opened {
        Ok(opened) => opened,
        Err(error) => return unreachable(error),
    };
    // No secret is derived here: only randomness is drawn.
    let mut entropy = KernelEntropy::new([0; 16]);
    let route = Route { server: asked.server, client: own };
    let mut client = Client::new(clock::now(), plan, route, &mut entropy);
    let mut buffer = [0; 2048];
    loop {
        while let Some(event) = client.poll_event() {
            match event {
                Event::Send { bytes, .. } => {
                    if let Err(error) = socket.send(&bytes).await {
                        let closed = error.kind() == std::io::ErrorKind::ConnectionRefused;
                        client.handle_unreachable(clock::now(), closed, &error.to_string());
                    }
                }
                Event::Ended(outcome) => return outcome,
                _ => {}
            }
        }
        let timeout = async {
            match client.next_timeout() {
                Some(at) => tokio::time::sleep(at.since(clock::now()).max(Duration::from_millis(1))).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            received = socket.recv(&mut buffer) => match received {
                Ok(len) => client.handle_datagram(clock::now(), asked.server, &buffer[..len], &mut entropy),
                Err(error) => {
                    let closed = error.kind() == std::io::ErrorKind::ConnectionRefused;
                    client.handle_unreachable(clock::now(), closed, &error.to_string());
                }
            },
            () = timeout => client.handle_timeout(clock::now(), &mut entropy),
        }
    }
}
