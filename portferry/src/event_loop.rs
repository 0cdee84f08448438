//! The one loop: what happens becomes an event, every effect is carried out, and nothing is decided here.

mod effects;
mod interfaces;
mod nat1;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use engine::device::{DeviceConfig, Devices};
use engine::gateway::{ControlRequest, Counters, Event, Gateway, LookupId, NatTicket, RequestId};
use engine::gena::Delivery;
use engine::nat::NatFailure;
use engine::status::MappingStatus;
use engine::time::{Duration, Instant};
use engine::uplink::{HttpId, HttpOutcome};
use hyper::header::HeaderValue;
use tokio::sync::{mpsc, oneshot};
use wire::description::Uuid;
use wire::error::UpnpError;

use crate::clock::now;
use crate::config::{Config, NatMode};
use crate::control::{Asked, MappingReport, OfferReport, Question, ReleaseReport, StatusReport};
use crate::dhcp::{self, Dhcp};
use crate::exit::Failure;
use crate::hooks::Hooks;
use crate::http::{self, What};
use crate::log::Notices;
use crate::netlink::Interface;
use crate::nft::Nft;
use crate::sockets::Reading;
use crate::store::{Loaded, Store};

pub use interfaces::Links;
use interfaces::{Announcements, LanSockets};
use nat1::open_nft;

/// How long until a socket that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// How a run ends, apart from failing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stop {
    /// It was told to, and has taken everything back.
    Clean,
}

/// What comes in by sockets.
#[derive(Debug)]
enum Datagram {
    Ssdp { interface: u32, from: SocketAddr, bytes: Vec<u8> },
    Uplink { from: SocketAddr, bytes: Vec<u8> },
    UplinkUnreachable(SocketAddr),
    Scouted { from: SocketAddr, bytes: Vec<u8> },
    Announcement { from: SocketAddr, bytes: Vec<u8> },
    SearchAnswer { from: SocketAddr, bytes: Vec<u8> },
    Dhcp(dhcp::Datagram),
}

impl From<dhcp::Datagram> for Datagram {
    fn from(datagram: dhcp::Datagram) -> Self {
        Self::Dhcp(datagram)
    }
}

/// What effects answer at once, and is handled in the turns that follow.
#[derive(Debug)]
enum Outcome {
    Nat(NatTicket, Result<(), NatFailure>),
    Counters(RequestId, Option<Counters>),
    UplinkOpened(SocketAddr, IpAddr),
    UplinkFailed(SocketAddr, String),
    UplinkUnreachable(SocketAddr),
    StoreFailed(String),
    StoreWorks,
}

/// What tells the loop to reload or to stop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Signal {
    /// Read the configuration again.
    Reload,
    /// Take everything back and end.
    Stop,
}

/// Both ends of a channel whose senders are made here.
type Both<T> = (mpsc::Sender<T>, mpsc::Receiver<T>);

/// Everything that touches the system.
pub struct Shell {
    config: Config,
    device: DeviceConfig,
    reload: Option<PathBuf>,
    links: Links,
    /// Where to keep what survives a crash, until that is open; nowhere in the demonstration.
    state: Option<PathBuf>,
    store: Option<Store>,
    /// Something of this turn could not be stored.
    store_failed: bool,
    /// When it is tried again to store what could not be.
    store_retry: Option<Instant>,
    wan_index: Option<u32>,
    lan: BTreeMap<(u32, String), LanSockets>,
    /// What could not be opened and is tried again then.
    retry: Option<Instant>,
    nft: Option<Nft>,
    uplink: Option<Reading>,
    /// Searches for the provider's router.
    search: Option<Reading>,
    /// What looks at other servers, by whether they have IPv6 addresses.
    scouts: BTreeMap<bool, Reading>,
    /// What finds the PCP servers that DHCP offers; not in the demonstration.
    dhcp: Option<Dhcp>,
    /// The WAN interface that announcements are to be heard on, and what hears them.
    announcements: Option<(u32, Announcements)>,
    waiting: BTreeMap<RequestId, oneshot::Sender<Result<String, UpnpError>>>,
    subscribing: BTreeMap<RequestId, oneshot::Sender<http::Subscribed>>,
    next_request: u64,
    outcomes: VecDeque<Outcome>,
    notices: Notices,
    hooks: Hooks,
    context: Arc<http::Context>,
    control: mpsc::Receiver<http::Incoming>,
    delivered: Both<(Uuid, Delivery)>,
    resolved: Both<(LookupId, Vec<Ipv4Addr>)>,
    exchanged: Both<(HttpId, HttpOutcome)>,
    datagrams: Both<Datagram>,
    asked: mpsc::Receiver<Asked>,
    asked_sender: mpsc::Sender<Asked>,
    signals: mpsc::Receiver<Signal>,
    stopped: bool,
}

impl Shell {
    /// A shell for the gateway of `device`. `reload` is the file that [`Signal::Reload`] reads.
    pub fn new(
        config: Config,
        reload: Option<PathBuf>,
        device: DeviceConfig,
        links: Links,
        signals: mpsc::Receiver<Signal>,
    ) -> Self {
        let (gateway, control) = mpsc::channel(256);
        let (asked_sender, asked) = mpsc::channel(16);
        let context = http::Context {
            devices: Devices::new(&device),
            server: HeaderValue::from_str(&device.server).unwrap_or(HeaderValue::from_static("portferry")),
            gateway,
            patience: config.uplink.answer_within.duration(),
            connections: Mutex::default(),
        };
        Self {
            hooks: Hooks::new(config.hooks.clone()),
            config,
            device,
            reload,
            links,
            state: None,
            store: None,
            store_failed: false,
            store_retry: None,
            wan_index: None,
            lan: BTreeMap::new(),
            retry: None,
            nft: None,
            uplink: None,
            search: None,
            scouts: BTreeMap::new(),
            dhcp: None,
            announcements: None,
            waiting: BTreeMap::new(),
            subscribing: BTreeMap::new(),
            next_request: 0,
            outcomes: VecDeque::new(),
            notices: Notices::default(),
            context: Arc::new(context),
            control,
            delivered: mpsc::channel(64),
            resolved: mpsc::channel(64),
            exchanged: mpsc::channel(16),
            datagrams: mpsc::channel(1024),
            asked,
            asked_sender,
            signals,
            stopped: false,
        }
    }

    /// Keeps what has to survive a crash in `directory`.
    pub fn with_state(self, directory: PathBuf) -> Self {
        Self { state: Some(directory), ..self }
    }

    /// Hears of the PCP servers that DHCP offers.
    pub fn with_dhcp(self, dhcp: Dhcp) -> Self {
        Self { dhcp: Some(dhcp), ..self }
    }

    /// The way to the gateway for the control socket.
    pub fn asked(&self) -> mpsc::Sender<Asked> {
        self.asked_sender.clone()
    }

    /// Runs until told to stop.
    pub async fn run(mut self, gateway: &mut Gateway) -> Result<Stop, Failure> {
        self.hooks.start();
        self.refresh(gateway, true).await?;
        // After the sockets: a gateway that is started twice must find them taken before it empties the table of the
        // one that is running.
        if self.config.wan.nat == NatMode::Nftables {
            self.nft = Some(open_nft(&self.config).await?);
        }
        if let Some(directory) = self.state.take() {
            self.restore(gateway, &directory).await?;
        }
        tracing::info!("portferry {} is running", env!("CARGO_PKG_VERSION"));
        loop {
            self.store_failed = false;
            while let Some(effect) = gateway.poll_effect() {
                self.perform(effect).await;
            }
            self.sync();
            if self.stopped {
                if self.store_failed {
                    tracing::warn!(
                        "the state could not be written at the end: the next start may take up mappings that were given back"
                    );
                }
                self.close().await;
                return Ok(Stop::Clean);
            }
            if let Some(outcome) = self.outcomes.pop_front() {
                gateway.handle(now(), event(outcome));
                continue;
            }
            self.wait(gateway).await?;
        }
    }

    /// Tells the gateway what survived, before it hears that there is a way to the provider.
    async fn restore(&mut self, gateway: &mut Gateway, directory: &Path) -> Result<(), Failure> {
        let (store, loaded) = Store::open(directory).map_err(|error| {
            Failure::cannot_create(format!(
                "cannot keep mappings in {}: {error}; portferry has to be able to write there ([state] directory)",
                directory.display()
            ))
        })?;
        let behind = store.is_behind();
        self.store = Some(store);
        if loaded.damaged > 0 {
            tracing::warn!("{} damaged lines of stored mappings were passed over", loaded.damaged);
        }
        while let Some(effect) = gateway.poll_effect() {
            self.perform(effect).await;
        }
        let Loaded { mappings, probe, filtered, .. } = loaded;
        gateway.handle(now(), Event::Restore { mappings, probe, filtered });
        if behind {
            // The file was read; it can be written, or says why not, in a moment.
            self.store_retry = Some(now());
        }
        Ok(())
    }

    /// Waits for one thing to happen, and tells the gateway.
    ///
    /// What is due goes first, and what LAN hosts send goes last: a flood of datagrams that never leaves the queue empty
    /// delays no renewal, no end of a lease, and nobody who asks on the control socket.
    async fn wait(&mut self, gateway: &mut Gateway) -> Result<(), Failure> {
        if self.retry.is_some_and(|at| at <= now()) {
            self.retry = None;
            return self.refresh(gateway, false).await;
        }
        if self.store_retry.is_some_and(|at| at <= now()) {
            self.store_retry = None;
            self.catch_up();
            return Ok(());
        }
        let dhcp_due = self.dhcp.as_ref().and_then(Dhcp::next_timeout);
        if dhcp_due.is_some_and(|at| at <= now()) {
            return self.on_dhcp(gateway, |dhcp| dhcp.handle_timeout(now())).await;
        }
        let timeout = gateway.next_timeout();
        if timeout.is_some_and(|at| at <= now()) {
            gateway.handle(now(), Event::Timeout);
            // However much is due, the other tasks get their turn.
            tokio::task::consume_budget().await;
            return Ok(());
        }
        let sleep = async {
            match [timeout, self.retry, self.store_retry, dhcp_due].into_iter().flatten().min() {
                // A millisecond more, for the clock counts whole ones.
                Some(at) => tokio::time::sleep((at - now()) + Duration::from_millis(1)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(signal) = self.signals.recv() => match signal {
                Signal::Stop => gateway.handle(now(), Event::Stop),
                Signal::Reload => self.reload(gateway).await,
            },
            Some(Asked { question, reply }) = self.asked.recv() => {
                let answer = match question {
                    Question::Release(host) => self.release(gateway, host).await,
                    Question::DhcpServers => {
                        self.refresh(gateway, false).await?;
                        json(&OfferReport { offered_pcp_servers: gateway.status(now()).offered })
                    }
                    Question::Status => json(&StatusReport::from(gateway.status(now()))),
                    Question::Mappings => {
                        json(&gateway.mappings(now()).map(MappingReport::from).collect::<Vec<_>>())
                    }
                };
                // Whoever asked may have hung up.
                let _ = reply.send(answer);
            }
            // While a retry is due anyway, a lasting error must not be heard again and again.
            changed = self.links.changed(), if self.retry.is_none() => match changed {
                Ok(()) => self.refresh(gateway, false).await?,
                Err(error) => {
                    tracing::warn!("the kernel's news of interfaces: {error}; looking again");
                    self.retry = Some(now() + RETRY);
                }
            },
            Some(incoming) = self.control.recv() => self.take_in(gateway, incoming),
            Some((sid, delivery)) = self.delivered.1.recv() => {
                gateway.handle(now(), Event::Delivered { sid, delivery });
            }
            Some((lookup, addresses)) = self.resolved.1.recv() => {
                gateway.handle(now(), Event::Resolved { lookup, addresses });
            }
            Some((id, outcome)) = self.exchanged.1.recv() => {
                gateway.handle(now(), Event::Http { id, outcome });
            }
            Some(datagram) = self.datagrams.1.recv() => {
                let event = match &datagram {
                    Datagram::Ssdp { interface, from, bytes } => {
                        Event::Ssdp { interface: *interface, from: *from, bytes }
                    }
                    Datagram::Uplink { from, bytes } => Event::Uplink { from: *from, bytes },
                    Datagram::UplinkUnreachable(server) => Event::UplinkUnreachable(*server),
                    Datagram::Scouted { from, bytes } => Event::Scouted { from: *from, bytes },
                    Datagram::Announcement { from, bytes } => Event::Announcement { from: *from, bytes },
                    Datagram::SearchAnswer { from, bytes } => Event::SearchAnswer { from: *from, bytes },
                    Datagram::Dhcp(datagram) => {
                        return self.on_dhcp(gateway, |dhcp| dhcp.handle_datagram(now(), datagram)).await;
                    }
                };
                gateway.handle(now(), event);
            }
            () = sleep => {} // the next turn sees what is due
        }
        Ok(())
    }

    /// What DHCP offers is another of the WAN's properties.
    async fn on_dhcp(
        &mut self,
        gateway: &mut Gateway,
        happens: impl FnOnce(&mut Dhcp),
    ) -> Result<(), Failure> {
        let Some(dhcp) = &mut self.dhcp else { return Ok(()) };
        happens(dhcp);
        if dhcp.perform(now(), &self.config.wan.interface.0, &self.datagrams.0, &mut self.notices) {
            self.refresh(gateway, false).await?;
        }
        Ok(())
    }

    /// The PCP servers that DHCP offers on the WAN interface, as far as it is there.
    fn offered(&mut self, found: Option<&Interface>) -> Vec<Vec<IpAddr>> {
        let Some(dhcp) = &mut self.dhcp else { return Vec::new() };
        let offered = dhcp.offered(now(), &self.config, found);
        // Sockets that nobody needs any more are closed; what has changed is told by who asks here.
        dhcp.perform(now(), &self.config.wan.interface.0, &self.datagrams.0, &mut self.notices);
        offered
    }

    /// Everything of a LAN host goes; the answer says whether that will survive a crash.
    async fn release(&mut self, gateway: &mut Gateway, host: Ipv4Addr) -> String {
        let of_host = |mapping: &MappingStatus| *mapping.internal.ip() == host;
        let released = gateway.mappings(now()).filter(of_host).count();
        gateway.handle(now(), Event::Release(host));
        while let Some(effect) = gateway.poll_effect() {
            self.perform(effect).await;
        }
        self.sync();
        json(&ReleaseReport { host, released, stored: !self.store_failed })
    }

    /// Hands a request of a control point to the gateway.
    fn take_in(&mut self, gateway: &mut Gateway, incoming: http::Incoming) {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        let from = incoming.from;
        let event = match incoming.what {
            What::Control(face, request, reply) => {
                self.waiting.insert(id, reply);
                Event::Control(ControlRequest { id, from, face, request })
            }
            What::Subscribe(of, subscribe, reply) => {
                self.subscribing.insert(id, reply);
                Event::Subscribe { request: id, from, of, subscribe }
            }
            What::Unsubscribe(service, sid, reply) => {
                self.subscribing.insert(id, reply);
                Event::Unsubscribe { request: id, from, service, sid }
            }
        };
        gateway.handle(now(), event);
    }

    /// Reads the configuration again; a bad one changes nothing.
    async fn reload(&mut self, gateway: &mut Gateway) {
        let Some(path) = &self.reload else { return };
        let new = match Config::load(path) {
            Ok(new) => new,
            Err(error) => return tracing::warn!("reload refused, nothing changed: {error}"),
        };
        let late = self.config.needs_restart(&new);
        if let Err(error) = self.config.take_over(new) {
            return tracing::warn!("reload refused, nothing changed: {}: {error}", path.display());
        }
        if late.is_empty() {
            tracing::info!("configuration read again");
        } else {
            tracing::warn!("configuration read again; {} only counts after a restart", late.join(", "));
        }
        gateway.handle(now(), Event::Reconfigure(Box::new(self.config.engine(self.device.clone()))));
        while let Some(effect) = gateway.poll_effect() {
            self.perform(effect).await;
        }
        self.hooks.configure(self.config.hooks.clone(), gateway.standing(now()));
        if let Err(failure) = self.refresh(gateway, false).await {
            tracing::warn!("{failure}");
        }
    }

    /// Leaves nothing behind.
    async fn close(&mut self) {
        // What is kept over the stop goes on to let in what it lets in.
        if let Some(nft) = self.nft.as_mut().filter(|_| !self.config.state.keep_on_stop)
            && let Err(error) = nft.clear().await
        {
            tracing::warn!("the table of this router's NAT could not be deleted: {error}");
        }
        self.hooks.finish().await;
        // Answers that are on their way get a moment; the listeners close with the shell.
        tokio::task::yield_now().await;
    }
}

fn event(outcome: Outcome) -> Event<'static> {
    match outcome {
        Outcome::Nat(ticket, outcome) => Event::Nat { ticket, outcome },
        Outcome::Counters(request, counters) => Event::Counters { request, counters },
        Outcome::UplinkOpened(server, source) => Event::UplinkOpened { server, source },
        Outcome::UplinkFailed(server, error) => Event::UplinkFailed { server, error },
        Outcome::UplinkUnreachable(server) => Event::UplinkUnreachable(server),
        Outcome::StoreFailed(error) => Event::StoreFailed(error),
        Outcome::StoreWorks => Event::StoreWorks,
    }
}

fn json(report: &impl serde::Serialize) -> String {
    serde_json::to_string(report).expect("plain values become JSON")
}

#[cfg(test)]
mod tests {
    use engine::gateway::{Effect, LanInterface};
    use engine::journal::Record;
    use engine::policy::InterfaceAddress;

    use super::*;
    use crate::entropy::KernelEntropy;
    use crate::netlink::Snapshot;

    /// an answer of success is only sent when the mapping is stored.
    #[tokio::test]
    async fn what_cannot_be_stored_is_no_success() {
        let text = "[lan]\ninterfaces = [\"lan\"]\n[wan]\ninterface = \"wan\"\nnat = \"none\"\n";
        let config = Config::parse(std::path::Path::new("test"), text).unwrap();
        let device = crate::run::device(&config, &crate::state::Identity::random());
        let links = Links::Fixed(Snapshot::default(), IpAddr::from([127, 0, 0, 1]));
        let (_signals, received) = mpsc::channel(1);
        let mut shell = Shell::new(config, None, device, links, received);
        shell.store = Some(Store::full());
        for stored in [false, true] {
            shell.store_failed = false;
            let (reply, answer) = oneshot::channel();
            shell.waiting.insert(RequestId(1), reply);
            if stored {
                shell.perform(Effect::Store(Record::Probe(wire::pcp::Nonce([1; 12])))).await;
            }
            shell.perform(Effect::Reply { request: RequestId(1), answer: Ok("fine".to_owned()) }).await;
            let expected = if stored { Err(UpnpError::ACTION_FAILED) } else { Ok("fine".to_owned()) };
            assert_eq!(answer.await.unwrap(), expected);
            assert_eq!(matches!(shell.outcomes.front(), Some(Outcome::StoreFailed(_))), stored);
        }
    }

    /// what could not be stored is tried again by itself, and the gateway hears of it.
    #[tokio::test]
    async fn what_could_not_be_stored_is_tried_again() {
        let directory = std::env::temp_dir().join(format!("portferry-retry-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let text = "[lan]\ninterfaces = [\"lan\"]\n[wan]\ninterface = \"wan\"\nnat = \"none\"\n";
        let config = Config::parse(std::path::Path::new("test"), text).unwrap();
        let device = crate::run::device(&config, &crate::state::Identity::random());
        let mut gateway = Gateway::new(config.engine(device.clone()), Box::new(KernelEntropy::new([7; 16])));
        let (_signals, received) = mpsc::channel(1);
        let links = Links::Fixed(Snapshot::default(), IpAddr::from([127, 0, 0, 1]));
        let mut shell = Shell::new(config, None, device, links, received);
        shell.store = Some(Store::open(&directory).unwrap().0);
        shell.write(|_| Err(std::io::ErrorKind::StorageFull.into()));
        let retry = shell.store_retry.expect("it is tried again");
        assert!(retry > now() && retry <= now() + effects::STORE_RETRY);
        assert!(matches!(shell.outcomes.pop_front(), Some(Outcome::StoreFailed(_))));
        // Half a minute later there is room.
        shell.store.as_mut().unwrap().fall_behind();
        shell.store_retry = Some(now());
        shell.wait(&mut gateway).await.unwrap();
        assert!(matches!(shell.outcomes.pop_front(), Some(Outcome::StoreWorks)));
        assert_eq!(shell.store_retry, None);
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[tokio::test]
    async fn what_is_due_goes_before_a_flood_of_datagrams() {
        let text = "[lan]\ninterfaces = [\"lan\"]\n[wan]\ninterface = \"wan\"\nnat = \"none\"\n";
        let config = Config::parse(std::path::Path::new("test"), text).unwrap();
        let device = crate::run::device(&config, &crate::state::Identity::random());
        let mut gateway = Gateway::new(config.engine(device.clone()), Box::new(KernelEntropy::new([7; 16])));
        let (_signals, received) = mpsc::channel(1);
        let links = Links::Fixed(Snapshot::default(), IpAddr::V4(Ipv4Addr::LOCALHOST));
        let mut shell = Shell::new(config, None, device, links, received);
        let addr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 1));
        let lan = LanInterface {
            index: 1,
            name: "lan".into(),
            addresses: vec![InterfaceAddress { addr, prefix_len: 24 }],
        };
        gateway.handle(now(), Event::Lan(vec![lan]));
        while gateway.poll_effect().is_some() {}
        let queue = shell.datagrams.0.clone();
        let from = SocketAddr::new(addr, 1900);
        while queue.try_send(Datagram::Ssdp { interface: 1, from, bytes: Vec::new() }).is_ok() {}
        // The first announcements come within 100 ms.
        let due = gateway.next_timeout().expect("announcements are due");
        while now() < due {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        shell.wait(&mut gateway).await.unwrap();
        assert!(matches!(gateway.poll_effect(), Some(Effect::Ssdp { .. })), "the announcements are out");
    }
}
