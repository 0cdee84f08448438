//! The one loop: what happens becomes an event, every effect is carried out, and nothing is decided here.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use engine::device::{DeviceConfig, Devices};
use engine::gateway::{
    ControlRequest, Counters, Effect, Event, Gateway, LanInterface, LookupId, NatTicket, RequestId, Wan,
};
use engine::gena::Delivery;
use engine::nat::{NatChange, NatFailure, NatRule};
use engine::policy::InterfaceAddress;
use engine::status::MappingStatus;
use engine::time::{Duration, Instant};
use engine::uplink::{HttpId, HttpOutcome};
use hyper::header::HeaderValue;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use wire::description::Uuid;
use wire::error::UpnpError;

use crate::clock::now;
use crate::config::{Config, NatMode};
use crate::control::{Asked, MappingReport, OfferReport, Question, ReleaseReport, StatusReport};
use crate::dhcp::{self, Dhcp};
use crate::exit::Failure;
use crate::hooks::Hooks;
use crate::http::{self, What};
use crate::isp_router;
use crate::log::Notices;
use crate::netlink::{Interface, Netlink, Snapshot};
use crate::nft::{Change, MAX_CHANGES, Nat1Rule, Nft, TableConfig, port_is_free};
use crate::notify;
use crate::resolve;
use crate::sockets::{self, Reading};
use crate::store::{Loaded, Store};

/// How long until a socket that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// When it is tried again to write what could not be stored.
const STORE_RETRY: Duration = Duration::from_secs(30);

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

/// What hears the PCP server's announcements (RFC 6887 §14.1.3), unless it could not be opened.
#[derive(Debug, Default)]
struct Announcements {
    v4: Option<Reading>,
    v6: Option<Reading>,
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

/// Where the interfaces' state comes from.
pub enum Links {
    /// The kernel.
    Kernel(Netlink),
    /// Nothing ever changes, and the uplink sends from this address: for the demonstration.
    Fixed(Snapshot, IpAddr),
}

impl Links {
    async fn snapshot(&mut self) -> std::io::Result<Snapshot> {
        match self {
            Links::Kernel(netlink) => netlink.snapshot().await,
            Links::Fixed(snapshot, _) => Ok(snapshot.clone()),
        }
    }

    async fn changed(&mut self) -> std::io::Result<()> {
        match self {
            Links::Kernel(netlink) => netlink.changed().await,
            Links::Fixed(..) => std::future::pending().await,
        }
    }

    async fn counters(&mut self, interface: u32) -> Option<Counters> {
        match self {
            Links::Kernel(netlink) => netlink.link_stats(interface).await.ok().map(|stats| Counters {
                bytes_sent: stats.tx_bytes,
                bytes_received: stats.rx_bytes,
                packets_sent: stats.tx_packets,
                packets_received: stats.rx_packets,
            }),
            Links::Fixed(..) => Some(Counters::default()),
        }
    }
}

/// Sockets of one LAN interface.
#[derive(Debug)]
struct LanSockets {
    ssdp: Reading,
    http: BTreeMap<Ipv4Addr, HttpTask>,
}

/// The HTTP server of one address, and the link whose hosts it accepts.
#[derive(Debug)]
struct HttpTask {
    task: JoinHandle<Infallible>,
    link: watch::Sender<InterfaceAddress>,
}

impl Drop for HttpTask {
    fn drop(&mut self) {
        self.task.abort();
    }
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

    /// Looks at the interfaces again, opens and closes sockets, and tells the gateway.
    async fn refresh(&mut self, gateway: &mut Gateway, first: bool) -> Result<(), Failure> {
        let snapshot = match self.links.snapshot().await {
            Ok(snapshot) => snapshot,
            Err(error) if first => {
                return Err(Failure::system(format!("cannot read the interfaces: {error}")));
            }
            Err(error) => {
                tracing::warn!("cannot read the interfaces: {error}; trying again");
                self.retry = Some(now() + RETRY);
                return Ok(());
            }
        };
        let lan = self.lan_interfaces(&snapshot, first);
        self.open_lan(&lan, first)?;
        gateway.handle(now(), Event::Lan(lan));
        while let Some(effect) = gateway.poll_effect() {
            self.perform(effect).await;
        }
        let wan = self.wan(&snapshot);
        self.open_announcements();
        gateway.handle(now(), Event::Wan(wan));
        Ok(())
    }

    fn lan_interfaces(&self, snapshot: &Snapshot, first: bool) -> Vec<LanInterface> {
        let mut lan = Vec::new();
        for name in &self.config.lan.interfaces.0 {
            let found = snapshot.interfaces.iter().find(|interface| interface.name == name.0);
            match found {
                Some(found) => lan.push(LanInterface {
                    index: found.index,
                    name: found.name.clone(),
                    addresses: found
                        .addresses
                        .iter()
                        .map(|&(addr, prefix_len)| InterfaceAddress { addr, prefix_len })
                        .collect(),
                }),
                None if first => tracing::warn!(
                    "the LAN interface {} does not exist; it is served as soon as it comes ([lan] interfaces)",
                    name.0
                ),
                None => {}
            }
        }
        lan
    }

    fn wan(&mut self, snapshot: &Snapshot) -> Wan {
        let name = self.config.wan.interface.0.clone();
        let Some(found) = snapshot.interfaces.iter().find(|interface| interface.name == name) else {
            self.wan_index = None;
            self.offered(None);
            return Wan { name, ..Wan::default() };
        };
        self.wan_index = Some(found.index);
        let (mut addresses, mut addresses_v6) = (Vec::new(), Vec::new());
        for (addr, _) in found.addresses.iter().filter(|_| found.up) {
            match addr {
                IpAddr::V4(v4) => addresses.push(*v4),
                IpAddr::V6(v6) if !v6.is_unicast_link_local() => addresses_v6.push(*v6),
                IpAddr::V6(_) => {}
            }
        }
        let router = snapshot
            .default_routes
            .iter()
            .filter(|route| route.interface == found.index)
            .filter_map(|route| Some((route.metric, route.gateway.filter(IpAddr::is_ipv4)?)))
            .min();
        let speed = std::fs::read_to_string(format!("/sys/class/net/{name}/speed")).ok();
        Wan {
            up: found.up,
            addresses,
            addresses_v6,
            router: router.map(|(_, gateway)| gateway),
            offered: self.offered(Some(found)),
            // In Mbit/s; -1 where the driver does not know.
            bits_per_second: speed
                .and_then(|text| text.trim().parse::<u64>().ok())
                .map(|mbit| mbit * 1_000_000),
            name,
        }
    }

    /// Opens what is missing and closes what is gone. At the start an occupied port ends the program; later it is
    /// tried again.
    fn open_lan(&mut self, lan: &[LanInterface], first: bool) -> Result<(), Failure> {
        self.lan.retain(|(index, name), _| lan.iter().any(|lan| lan.index == *index && lan.name == *name));
        for lan in lan {
            if let Err((error, what)) = self.open_interface(lan) {
                let in_use = error.kind() == std::io::ErrorKind::AddrInUse;
                let hint = match error.kind() {
                    std::io::ErrorKind::AddrInUse => "is used by another program (miniupnpd?); stop that one",
                    std::io::ErrorKind::PermissionDenied => {
                        "needs root or CAP_NET_RAW (and CAP_NET_BIND_SERVICE below port 1024)"
                    }
                    _ => "cannot be opened",
                };
                let line = format!("{what} on {} {hint}: {error}", lan.name);
                if first && (in_use || error.kind() == std::io::ErrorKind::PermissionDenied) {
                    return Err(if in_use {
                        Failure::unavailable(line)
                    } else {
                        Failure::no_permission(line)
                    });
                }
                tracing::warn!("{line}; trying again");
                self.retry = Some(now() + RETRY);
            }
        }
        Ok(())
    }

    fn open_interface(&mut self, lan: &LanInterface) -> Result<(), (std::io::Error, String)> {
        let key = (lan.index, lan.name.clone());
        if !self.lan.contains_key(&key) {
            let what = format!("SSDP's port {}", wire::ssdp::PORT);
            let interface = lan.index;
            let wrap = move |from, bytes| Datagram::Ssdp { interface, from, bytes };
            let ssdp = sockets::ssdp(&lan.name, lan.index)
                .and_then(|socket| Reading::start(socket, self.datagrams.0.clone(), wrap))
                .map_err(|error| (error, what))?;
            self.lan.insert(key.clone(), LanSockets { ssdp, http: BTreeMap::new() });
        }
        let port = self.config.lan.http_port.0;
        let sockets = self.lan.get_mut(&key).expect("put there above");
        let links: Vec<(Ipv4Addr, InterfaceAddress)> = lan
            .addresses
            .iter()
            .filter_map(|link| match link.addr {
                IpAddr::V4(v4) => Some((v4, *link)),
                IpAddr::V6(_) => None,
            })
            .collect();
        sockets.http.retain(|addr, _| links.iter().any(|(own, _)| own == addr));
        let mut failed = None;
        for (addr, link) in links {
            if let Some(open) = sockets.http.get(&addr) {
                // Its prefix may be another one now.
                open.link.send_replace(link);
                continue;
            }
            let own = SocketAddrV4::new(addr, port);
            let listener = match sockets::http(&lan.name, own) {
                Ok(listener) => listener,
                Err(error) => {
                    failed.get_or_insert((error, format!("TCP port {port} of {addr}")));
                    continue;
                }
            };
            let (link, current) = watch::channel(link);
            let on_link = move |peer| current.borrow().contains(peer);
            let task =
                tokio::spawn(http::serve(listener, SocketAddr::V4(own), on_link, self.context.clone()));
            sockets.http.insert(addr, HttpTask { task, link });
            tracing::info!("serving control points at http://{own} on {}", lan.name);
        }
        failed.map_or(Ok(()), Err)
    }

    fn open_announcements(&mut self) {
        let Some(index) = self.wan_index else {
            self.announcements = None;
            return;
        };
        let first = self.announcements.as_ref().is_none_or(|(open, _)| *open != index);
        if first {
            self.announcements = Some((index, Announcements::default()));
        }
        let Some((_, open)) = &mut self.announcements else { return };
        let interface = &self.config.wan.interface.0;
        // In both families: which one the server speaks may change. A WAN may get one of them later than the other.
        for (reading, v6) in [(&mut open.v4, false), (&mut open.v6, true)] {
            if reading.is_some() {
                continue;
            }
            let socket = if v6 {
                sockets::announcements_v6(interface, index)
            } else {
                sockets::announcements(interface, index)
            };
            let wrap = |from, bytes| Datagram::Announcement { from, bytes };
            match socket.and_then(|socket| Reading::start(socket, self.datagrams.0.clone(), wrap)) {
                Ok(opened) => *reading = Some(opened),
                // The epoch in ordinary answers tells the same, only later.
                Err(error) if first => {
                    tracing::warn!("cannot listen for all announcements of the PCP server: {error}");
                }
                Err(error) => tracing::debug!("announcements of the PCP server: {error}"),
            }
        }
    }

    async fn perform(&mut self, effect: Effect) {
        // One for all changes of a turn; what only this router sees does not wait for it.
        if !matches!(effect, Effect::Store(_) | Effect::Notice(_) | Effect::Nat { .. }) {
            self.sync();
        }
        match effect {
            Effect::Reply { request, answer } => {
                // A success counts on what was stored.
                let answer =
                    if self.store_failed { answer.and(Err(UpnpError::ACTION_FAILED)) } else { answer };
                if let Some(reply) = self.waiting.remove(&request) {
                    // The control point may have hung up.
                    let _ = reply.send(answer);
                }
            }
            Effect::Subscribed { request, answer } => {
                if let Some(reply) = self.subscribing.remove(&request) {
                    let _ = reply.send(answer);
                }
            }
            Effect::Notify(event) => {
                // A slow subscriber delays nobody; the gateway keeps one event for each on its way.
                let delivered = self.delivered.0.clone();
                tokio::spawn(async move {
                    let delivery = notify::deliver(&event).await;
                    let _ = delivered.send((event.sid, delivery)).await;
                });
            }
            Effect::Resolve { lookup, name } => {
                // A slow resolver delays nobody; the gateway bounds how many there are.
                let resolved = self.resolved.0.clone();
                tokio::spawn(async move {
                    let _ = resolved.send((lookup, resolve::addresses(&name).await)).await;
                });
            }
            Effect::ReadCounters { request } => {
                let counters = match self.wan_index {
                    Some(index) => self.links.counters(index).await,
                    None => None,
                };
                self.outcomes.push_back(Outcome::Counters(request, counters));
            }
            Effect::OpenUplink { server } => self.open_uplink(server),
            Effect::CloseUplink => {
                self.uplink = None;
                self.scouts.clear();
            }
            Effect::Send { to, bytes } => {
                if let Some(uplink) = &self.uplink
                    && let Err(error) = uplink.sender.send(&bytes)
                {
                    // As if lost on the way: it is sent again. The error may be that of the last one.
                    tracing::debug!("to {to}: {error}");
                    if sockets::is_refused(&error) {
                        self.outcomes.push_back(Outcome::UplinkUnreachable(to));
                    }
                }
            }
            Effect::Search { to, bytes } => self.seek(to, &bytes),
            Effect::EndSearch => self.search = None,
            Effect::Http(request) => {
                // A slow router delays nobody; the gateway has a few on their way at most.
                let (exchanged, interface) = (self.exchanged.0.clone(), self.config.wan.interface.0.clone());
                tokio::spawn(async move {
                    let outcome = isp_router::exchange(&interface, &request).await;
                    let _ = exchanged.send((request.id, outcome)).await;
                });
            }
            Effect::Scout { to, bytes } => self.scout(to, &bytes),
            Effect::Ssdp { interface, to, bytes } => {
                let sockets = self.lan.iter().find(|((index, _), _)| *index == interface);
                if let Some((_, sockets)) = sockets
                    && let Err(error) = sockets.ssdp.sender.send_to(&bytes, to)
                {
                    tracing::debug!("SSDP to {to}: {error}");
                }
            }
            Effect::Nat { ticket, change } => {
                let outcome = self.change_nat(change).await;
                self.outcomes.push_back(Outcome::Nat(ticket, outcome));
            }
            Effect::Store(record) => {
                self.write(|store| store.append(&record));
            }
            Effect::Changed(change) => self.hooks.tell(change),
            Effect::Notice(notice) => self.notices.write(now(), &notice),
            Effect::Stopped => self.stopped = true,
        }
    }

    /// What was stored survives a power cut from now on.
    fn sync(&mut self) {
        self.write(Store::sync);
    }

    /// Nothing may have to be stored for a long time.
    fn catch_up(&mut self) {
        self.write(|store| if store.is_behind() { store.catch_up() } else { Ok(()) });
    }

    /// The gateway hears of a failure before anything else.
    fn write(&mut self, what: impl FnOnce(&mut Store) -> std::io::Result<()>) {
        let Some(store) = &mut self.store else { return };
        let before = store.is_behind();
        match what(store) {
            Err(error) => {
                self.store_failed = true;
                self.store_retry = Some(now() + STORE_RETRY);
                self.outcomes.push_front(Outcome::StoreFailed(error.to_string()));
            }
            Ok(()) if before && !store.is_behind() => self.outcomes.push_back(Outcome::StoreWorks),
            Ok(()) => {}
        }
    }

    /// Another source address than the system's choice.
    fn fixed_source(&self) -> Option<IpAddr> {
        match &self.links {
            Links::Kernel(_) => None,
            Links::Fixed(_, from) => Some(*from),
        }
    }

    fn scout(&mut self, to: SocketAddr, bytes: &[u8]) {
        let family = to.is_ipv6();
        if !self.scouts.contains_key(&family) {
            let wrap = |from, bytes| Datagram::Scouted { from, bytes };
            let opened = sockets::scout(&self.config.wan.interface.0, self.fixed_source(), to)
                .and_then(|socket| Reading::start(socket, self.datagrams.0.clone(), wrap));
            match opened {
                Ok(reading) => drop(self.scouts.insert(family, reading)),
                Err(error) => return tracing::debug!("no socket to look for {to}: {error}"),
            }
        }
        if let Some(Err(error)) = self.scouts.get(&family).map(|scout| scout.sender.send_to(bytes, to)) {
            // It is looked at again; the interface may be another one by then.
            tracing::debug!("to {to}: {error}");
            self.scouts.remove(&family);
        }
    }

    fn open_uplink(&mut self, server: SocketAddr) {
        self.uplink = None;
        let from = self.fixed_source();
        let wrap = |from, bytes| Datagram::Uplink { from, bytes };
        let opened =
            sockets::uplink(&self.config.wan.interface.0, from, server).and_then(|(socket, source)| {
                let refused = move || Some(Datagram::UplinkUnreachable(server));
                Reading::start_with(socket, self.datagrams.0.clone(), wrap, refused)
                    .map(|reading| (reading, source))
            });
        let outcome = match opened {
            Ok((reading, source)) => {
                self.uplink = Some(reading);
                Outcome::UplinkOpened(server, source)
            }
            Err(error) => Outcome::UplinkFailed(server, error.to_string()),
        };
        self.outcomes.push_back(outcome);
    }

    /// Sends a search; its socket is opened with the first one.
    fn seek(&mut self, to: SocketAddrV4, bytes: &[u8]) {
        if self.search.is_none() {
            let wrap = |from, bytes| Datagram::SearchAnswer { from, bytes };
            let socket = sockets::search(&self.config.wan.interface.0);
            match socket.and_then(|socket| Reading::start(socket, self.datagrams.0.clone(), wrap)) {
                Ok(reading) => self.search = Some(reading),
                Err(error) => {
                    return tracing::warn!("no socket to search for the provider's router: {error}");
                }
            }
        }
        if let Some(search) = &self.search
            && let Err(error) = search.sender.send_to(bytes, to)
        {
            tracing::debug!("search to {to}: {error}");
        }
    }

    async fn change_nat(&mut self, change: NatChange) -> Result<(), NatFailure> {
        let change = match change {
            NatChange::Reserve { protocol, port, addr } => {
                return if port_is_free(protocol.0, addr, port) {
                    Ok(())
                } else {
                    Err(NatFailure::PortInUse)
                };
            }
            NatChange::Install(rule) => Change::Add(nat1(rule)),
            NatChange::Replace { old, new } => Change::Replace { old: nat1(old), new: nat1(new) },
            NatChange::Remove(rule) => Change::Remove(nat1(rule)),
        };
        let Some(nft) = &mut self.nft else {
            return Err(NatFailure::Kernel("there is no NAT table".to_owned()));
        };
        let change = match change {
            // It is not there, as it should be.
            Change::Remove(old) if !nft.holds(&old) => return Ok(()),
            Change::Replace { old, new } if !nft.holds(&old) => Change::Add(new),
            change => change,
        };
        let mut result = nft.apply(&[change]).await;
        if result.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
            // Somebody flushed the whole ruleset, as a restarted firewall does.
            result = make_anew(nft).await;
            if result.is_ok() {
                tracing::warn!("the table of this router's NAT was gone (nft flush ruleset?); made anew");
                result = nft.apply(&[change]).await;
            }
        }
        result.map_err(|error| NatFailure::Kernel(error.to_string()))
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

async fn open_nft(config: &Config) -> Result<Nft, Failure> {
    let table = TableConfig {
        name: config.nat.table.0.clone(),
        wan_interface: config.wan.interface.0.clone(),
        lan_interfaces: config.lan.interfaces.0.iter().map(|name| name.0.clone()).collect(),
        forward_filter: config.nat.forward_filter,
        masquerade: config.nat.masquerade,
    };
    Nft::open(table).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => Failure::no_permission(
            "changing nftables needs root or CAP_NET_ADMIN; run as root, or set wan.nat = \"none\" if this router has no NAT",
        ),
        _ => Failure::system(format!("cannot set up nftables: {error}")),
    })
}

/// Makes the table anew, with everything that was in it.
async fn make_anew(nft: &mut Nft) -> std::io::Result<()> {
    let rules: Vec<Change> = nft.rules().map(Change::Add).collect();
    *nft = Nft::open(nft.config().clone()).await?;
    for some in rules.chunks(MAX_CHANGES) {
        nft.apply(some).await?;
    }
    Ok(())
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

fn nat1(rule: NatRule) -> Nat1Rule {
    Nat1Rule {
        protocol: rule.protocol.0,
        external_port: rule.port,
        internal: rule.internal,
        remote_peer: rule.remote_peer,
    }
}

fn json(report: &impl serde::Serialize) -> String {
    serde_json::to_string(report).expect("plain values become JSON")
}

#[cfg(test)]
mod tests {
    use engine::journal::Record;

    use super::*;
    use crate::entropy::KernelEntropy;

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
        assert!(retry > now() && retry <= now() + STORE_RETRY);
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
