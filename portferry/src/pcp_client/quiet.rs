//! A mapping asked for and given back without showing anything: for `portferry doctor`. It never repeats what another client of this
//! machine asks: the internal port is its own, and so is the nonce.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::watch;
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

/// Turns true when somebody does not want to wait any longer.
pub(crate) type Stopped = watch::Receiver<bool>;

/// What a delete may take whose request was not answered either.
const LOST: Duration = Duration::from_secs(1);

/// Asks, and deletes what was granted, or may have been.
pub(crate) async fn map(asked: &Asked, stopped: Stopped) -> Told {
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
    match ask(asked, &mapping, &stopped).await {
        Outcome::Granted(grant) => {
            let prefers_failure = match asked.rival.filter(|_| grant.nonce.is_some() && !*stopped.borrow()) {
                Some(port) => rival(asked, &mapping, port, grant.external_port, &stopped).await,
                None => None,
            };
            let left = match carry_out(asked, mapping.deleted(), asked.patience, None).await {
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
async fn rival(
    asked: &Asked,
    first: &Mapping,
    internal_port: u16,
    port: u16,
    stopped: &Stopped,
) -> Option<bool> {
    let mut mapping = Mapping {
        nonce: nonce::random(),
        internal_port,
        suggestion: Suggestion { addr: None, port },
        ..first.clone()
    };
    mapping.options.push(PcpOption::PreferFailure);
    match ask(asked, &mapping, stopped).await {
        Outcome::Refused(refusal) => match refusal.code {
            Code::Pcp(ResultCode::CANNOT_PROVIDE_EXTERNAL) => Some(true),
            Code::Pcp(ResultCode::UNSUPP_OPTION) => Some(false),
            _ => None,
        },
        Outcome::NotAsAsked { .. } => Some(false),
        Outcome::Granted(_) => {
            carry_out(asked, mapping.deleted(), asked.patience, None).await;
            None
        }
        _ => None,
    }
}

/// Asks. Where the answer was lost, or makes no sense, the mapping may stand all the same: it is deleted.
async fn ask(asked: &Asked, mapping: &Mapping, stopped: &Stopped) -> Outcome {
    let outcome = carry_out(asked, mapping.clone(), asked.patience, Some(stopped.clone())).await;
    if matches!(outcome, Outcome::Silent { .. } | Outcome::Nonsense(_)) {
        carry_out(asked, mapping.deleted(), LOST, None).await;
    }
    outcome
}

/// Who is interrupted gives back by itself.
async fn carry_out(
    asked: &Asked,
    mapping: Mapping,
    patience: Duration,
    mut stopped: Option<Stopped>,
) -> Outcome {
    let speak = if asked.nat_pmp { Speak::NatPmp } else { Speak::Auto };
    let plan = Plan { job: Job::Mapping(mapping), speak, patience, retries: None };
    let unreachable =
        |error: std::io::Error| Outcome::Unreachable { closed: false, error: error.to_string() };
    let opened = sockets::uplink(&asked.interface, None, asked.server)
        .and_then(|socket| Ok((socket.local_addr()?.ip(), UdpSocket::from_std(socket)?)));
    let (own, socket) = match opened {
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
        let stop = async {
            let is_it = match &mut stopped {
                Some(stopped) => stopped.wait_for(|stopped| *stopped).await.is_ok(),
                None => false,
            };
            if !is_it {
                std::future::pending::<()>().await;
            }
        };
        let is_stopped = tokio::select! {
            received = socket.recv(&mut buffer) => {
                match received {
                    Ok(len) => client.handle_datagram(clock::now(), asked.server, &buffer[..len], &mut entropy),
                    Err(error) => {
                        let closed = error.kind() == std::io::ErrorKind::ConnectionRefused;
                        client.handle_unreachable(clock::now(), closed, &error.to_string());
                    }
                }
                false
            }
            () = timeout => {
                client.handle_timeout(clock::now(), &mut entropy);
                false
            }
            () = stop => true,
        };
        if is_stopped {
            // Once: the second time would mean not to wait.
            stopped = None;
            client.handle_interrupt(clock::now(), &mut entropy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lifetimes that a server is asked for which never answers.
    async fn lifetimes(stop_at_once: bool) -> Vec<u32> {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let asked = Asked {
            server: server.local_addr().unwrap(),
            nat_pmp: false,
            interface: "lo".to_owned(),
            internal_port: 9,
            lifetime: 120,
            third_party: None,
            rival: None,
            // Long enough for a repetition, which nobody wants who is interrupted.
            patience: Duration::from_millis(if stop_at_once { 2000 } else { 300 }),
        };
        let (stop, stopped) = watch::channel(false);
        let client = async {
            assert!(matches!(map(&asked, stopped).await, Told::Failed(_)));
        };
        let mut buffer = [0; 100];
        let mut lifetimes = Vec::new();
        let hear = async {
            loop {
                server.recv(&mut buffer).await.unwrap();
                lifetimes.push(u32::from_be_bytes(buffer[4..8].try_into().unwrap()));
                if stop_at_once {
                    stop.send_replace(true);
                }
            }
        };
        tokio::select! {
            () = client => {}
            () = hear => {}
        }
        lifetimes
    }

    #[tokio::test]
    async fn what_was_lost_is_deleted() {
        let lifetimes = lifetimes(false).await;
        assert_eq!(lifetimes[..2], [120, 0]);
    }

    #[tokio::test]
    async fn who_is_interrupted_deletes() {
        let lifetimes = lifetimes(true).await;
        assert_eq!(lifetimes[..2], [120, 0]);
    }
}
