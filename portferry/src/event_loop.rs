//! The one loop: what happens becomes an event, every effect is carried out, and nothing is decided here.

mod datagrams;
mod effects;
mod identity;
mod interfaces;
mod pinholes;
mod uplink;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::device::{DeviceConfig, Devices};
use engine::gateway::{ControlRequest, Counters, Event, LookupId, NatTicket, RequestId, UplinkEvent};
use engine::gateways::{Gateways, Place, To};
use engine::gena::Delivery;
use engine::nat::NatFailure;
use engine::time::{Duration, Instant};
use engine::uplink::{HttpId, HttpOutcome};
use hyper::header::HeaderValue;
use tokio::sync::{mpsc, oneshot};
use wire::description::Uuid;
use wire::error::UpnpError;

use crate::clock::{Alarm, now};
use crate::config::{Config, Line, PolicyDefault};
use crate::control::{
    Asked, ConsentsReport, MappingReport, OfferReport, PinholeReport, Question, ReleaseReport, StatusReport,
};
use crate::dhcp::Dhcp;
use crate::exit::Failure;
use crate::hooks::{Hooks, Told};
use crate::http::{self, What};
use crate::log::Notices;
use crate::neighbours::Neighbours;
use crate::privileged::Kernel;
use crate::store::{self, Loaded, Store};

use datagrams::Datagram;
use identity::{Decision, LookUps};
use interfaces::LanSockets;
pub use interfaces::Links;
use uplink::Uplink;

/// How long until a socket that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// How a run ends, apart from failing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stop {
    /// It was told to, and has taken everything back.
    Clean,
}

/// What effects answer at once, and is handled in the turns that follow.
#[derive(Debug)]
enum Outcome {
    Nat(NatTicket, Result<(), NatFailure>),
    Counters(RequestId, Option<Counters>),
    UplinkOpened(SocketAddr, IpAddr),
    UplinkFailed(SocketAddr, String),
    UplinkUnreachable(SocketAddr),
    FirewallOpened(SocketAddr, IpAddr),
    FirewallFailed(SocketAddr, String),
    FirewallUnreachable(SocketAddr),
    PinholeRead(RequestId, Option<u32>),
    FlowFound(RequestId, Option<u16>),
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
    /// Mappings are to survive a crash; not those of the demonstration.
    keeps_state: bool,
    /// By their place among the gateways.
    uplinks: Vec<Uplink>,
    lan: BTreeMap<(u32, String), LanSockets>,
    /// What could not be opened and is tried again then.
    retry: Option<Instant>,
    waiting: BTreeMap<RequestId, oneshot::Sender<Result<String, UpnpError>>>,
    subscribing: BTreeMap<RequestId, oneshot::Sender<http::Subscribed>>,
    next_request: u64,
    outcomes: VecDeque<(Place, Outcome)>,
    notices: Notices,
    hooks: Hooks,
    /// What needs a privilege.
    kernel: Kernel,
    context: Arc<http::Context>,
    control: mpsc::Receiver<http::Incoming>,
    delivered: Both<(Place, Uuid, Delivery)>,
    resolved: Both<(Place, LookupId, Vec<Ipv4Addr>)>,
    exchanged: Both<(Place, HttpId, HttpOutcome)>,
    datagrams: Both<(Place, Datagram)>,
    decisions: Both<Decision>,
    /// Places for what waits for the neighbour table, beside the loop.
    looking_up: LookUps,
    asked: mpsc::Receiver<Asked>,
    asked_sender: mpsc::Sender<Asked>,
    signals: mpsc::Receiver<Signal>,
    alarm: Alarm,
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
            neighbours: Neighbours::default(),
            asks_owner: AtomicBool::new(config.policy.default == PolicyDefault::Ask),
            connections: Arc::default(),
            counters: http::Counters::default(),
        };
        Self {
            hooks: Hooks::new(config.hooks.clone()),
            kernel: Kernel::here(&config, matches!(links, Links::Kernel(_))),
            uplinks: config.lines().into_iter().map(Uplink::new).collect(),
            config,
            device,
            reload,
            links,
            keeps_state: false,
            lan: BTreeMap::new(),
            retry: None,
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
            decisions: mpsc::channel(16),
            looking_up: LookUps::default(),
            asked,
            asked_sender,
            signals,
            alarm: Alarm::default(),
            stopped: false,
        }
    }

    /// Keeps what has to survive a crash.
    pub fn with_state(self) -> Self {
        Self { keeps_state: true, ..self }
    }

    /// What needs a privilege is done by another process.
    pub(crate) fn with_kernel(mut self, kernel: Kernel) -> Self {
        self.hooks.run_by(kernel.client().cloned());
        Self { kernel, ..self }
    }

    /// Hears of the PCP servers that DHCP offers; `dhcp` is called once for each uplink.
    pub fn with_dhcp(mut self, dhcp: impl Fn() -> Dhcp) -> Self {
        for uplink in &mut self.uplinks {
            uplink.dhcp = Some(dhcp());
        }
        self
    }

    /// The way to the gateway for the control socket.
    pub fn asked(&self) -> mpsc::Sender<Asked> {
        self.asked_sender.clone()
    }

    /// Runs until told to stop. The gateways are those of the configuration's lines, in their order.
    pub async fn run(mut self, gateways: &mut Gateways) -> Result<Stop, Failure> {
        self.hooks.start();
        self.refresh(gateways, true).await?;
        // After the sockets: a gateway that is started twice must find them taken before it empties the table of the
        // one that is running.
        self.kernel.open().await?;
        if self.keeps_state {
            self.forget_former_uplinks().await;
            self.restore(gateways).await?;
            self.look_up_denied(gateways);
        }
        tracing::info!("portferry {} is running", env!("CARGO_PKG_VERSION"));
        loop {
            for uplink in &mut self.uplinks {
                uplink.store_failed = false;
            }
            self.perform_all(gateways).await;
            self.sync();
            if self.stopped {
                if self.uplinks.iter().any(|uplink| uplink.store_failed) {
                    tracing::warn!(
                        "the state could not be written at the end: the next start may take up mappings that were given back"
                    );
                }
                self.close().await;
                return Ok(Stop::Clean);
            }
            if let Some((place, outcome)) = self.outcomes.pop_front() {
                gateways.handle(now(), To::Uplink(place), event(outcome));
                continue;
            }
            self.wait(gateways).await?;
        }
    }

    /// What is left of uplinks that the configuration does not have any more: no mapping of theirs leads in, and none comes back.
    async fn forget_former_uplinks(&self) {
        let known: Vec<&str> = self.uplinks.iter().map(|uplink| uplink.line.name.as_str()).collect();
        for (name, directory) in Line::directories(&self.config) {
            if known.contains(&name.as_str()) {
                continue;
            }
            self.kernel.forget(&name).await;
            match std::fs::remove_dir_all(&directory) {
                Ok(()) => tracing::warn!(
                    "{name} is no uplink of its own any more ([[uplink.extra]]): what its hosts had there is forgotten, and ends at its provider by itself"
                ),
                Err(error) => tracing::warn!("{} cannot be deleted: {error}", directory.display()),
            }
        }
    }

    async fn perform_all(&mut self, gateways: &mut Gateways) {
        while let Some((place, effect)) = gateways.poll_effect() {
            self.perform(place, effect).await;
        }
    }

    /// Tells the gateways what survived, before they hear that there is a way to the provider.
    async fn restore(&mut self, gateways: &mut Gateways) -> Result<(), Failure> {
        self.perform_all(gateways).await;
        let mut all_consents = Vec::new();
        let mut restored = Vec::new();
        for place in 0..self.uplinks.len() {
            let uplink = &mut self.uplinks[place];
            let (store, loaded) = open_store(&uplink.line)?;
            // The file was read; it can be written, or says why not, in a moment.
            uplink.store_retry = store.is_behind().then(now);
            uplink.store = Some(store);
            let file = uplink.line.directory.join(store::FILE);
            if let Some(line) = loaded.damage.report(&file, "mappings and pinholes") {
                tracing::warn!("{line}");
            }
            all_consents.extend_from_slice(&loaded.consents);
            restored.push(loaded);
        }
        for (place, loaded) in restored.into_iter().enumerate() {
            let Loaded { mappings, probe, filtered, pinholes, .. } = loaded;
            // A device is one whichever uplink is its.
            gateways.handle(now(), To::Uplink(place), Event::RestoreConsents(all_consents.clone()));
            self.perform_all(gateways).await;
            gateways.handle(now(), To::Uplink(place), Event::Restore { mappings, probe, filtered });
            self.perform_all(gateways).await;
            gateways.handle(now(), To::Uplink(place), Event::RestorePinholes(pinholes));
        }
        // Whose an uplink is may have changed since.
        self.perform_all(gateways).await;
        gateways.release_strangers(now());
        Ok(())
    }

    /// Waits for one thing to happen, and tells the gateway.
    ///
    /// What is due goes first, and what LAN hosts send goes last: a flood of datagrams that never leaves the queue empty
    /// delays no renewal, no end of a lease, and nobody who asks on the control socket.
    async fn wait(&mut self, gateways: &mut Gateways) -> Result<(), Failure> {
        if self.retry.is_some_and(|at| at <= now()) {
            self.retry = None;
            return self.refresh(gateways, false).await;
        }
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now());
        if let Some(place) = self.uplinks.iter().position(|uplink| due(uplink.store_retry)) {
            self.uplinks[place].store_retry = None;
            self.catch_up(place);
            return Ok(());
        }
        let dhcp_due = |uplink: &Uplink| uplink.dhcp.as_ref().and_then(Dhcp::next_timeout);
        if let Some(place) = self.uplinks.iter().position(|uplink| due(dhcp_due(uplink))) {
            return self.on_dhcp(gateways, place, |dhcp| dhcp.handle_timeout(now())).await;
        }
        let of_uplinks =
            |when: &dyn Fn(&Uplink) -> Option<Instant>| self.uplinks.iter().filter_map(when).min();
        let (store_retry, dhcp_due) = (of_uplinks(&|uplink| uplink.store_retry), of_uplinks(&dhcp_due));
        let timeout = gateways.next_timeout();
        if due(timeout) {
            gateways.handle_timeout(now());
            // However much is due, the other tasks get their turn.
            tokio::task::consume_budget().await;
            return Ok(());
        }
        let next = [timeout, self.retry, store_retry, dhcp_due].into_iter().flatten().min();
        tokio::select! {
            biased;
            Some(signal) = self.signals.recv() => match signal {
                Signal::Stop => gateways.handle_stop(now()),
                Signal::Reload => self.reload(gateways).await,
            },
            Some(Asked { question, reply }) = self.asked.recv() => {
                let answer = match question {
                    Question::Release(host) => self.release(gateways, host).await,
                    Question::DhcpServers => {
                        self.refresh(gateways, false).await?;
                        let offered = gateways.iter().flat_map(|(_, gateway)| gateway.status(now()).offered);
                        json(&OfferReport { offered_pcp_servers: offered.collect() })
                    }
                    Question::Status => json(&self.status(gateways)),
                    Question::Mappings => json(&self.mappings(gateways)),
                    Question::Pinholes => json(&self.pinholes(gateways)),
                    Question::Consents => {
                        json(&ConsentsReport::new(gateways.iter().map(|(_, gateway)| gateway.consents(now()))))
                    }
                    Question::Consent(verb, named) => {
                        self.look_up_device(named, gateways.resolve_device(named), verb, Some(reply));
                        return Ok(());
                    }
                };
                // Whoever asked may have hung up.
                let _ = reply.send(answer);
            }
            // While a retry is due anyway, a lasting error must not be heard again and again.
            changed = self.links.changed(), if self.retry.is_none() => match changed {
                Ok(()) => self.refresh(gateways, false).await?,
                Err(error) => {
                    tracing::warn!("the kernel's news of interfaces: {error}; looking again");
                    self.retry = Some(now() + RETRY);
                }
            },
            Some(decision) = self.decisions.1.recv() => self.on_decision(gateways, decision).await,
            due = self.kernel.due() => self.kernel.attend(due).await,
            Some(incoming) = self.control.recv() => self.take_in(gateways, incoming),
            Some((place, sid, delivery)) = self.delivered.1.recv() => {
                gateways.handle(now(), To::Uplink(place), Event::Delivered { sid, delivery });
            }
            Some((place, lookup, addresses)) = self.resolved.1.recv() => {
                gateways.handle(now(), To::Uplink(place), Event::Resolved { lookup, addresses });
            }
            Some((place, id, outcome)) = self.exchanged.1.recv() => {
                gateways.handle(now(), To::Uplink(place), Event::Http { id, outcome });
            }
            Some((place, datagram)) = self.datagrams.1.recv() => {
                self.on_datagram(gateways, place, datagram).await?;
            }
            () = self.alarm.at(next) => {} // the next turn sees what is due
        }
        Ok(())
    }

    /// What DHCP offers is another of the WAN's properties.
    async fn on_dhcp(
        &mut self,
        gateways: &mut Gateways,
        place: Place,
        happens: impl FnOnce(&mut Dhcp),
    ) -> Result<(), Failure> {
        if let Some(dhcp) = &mut self.uplinks[place].dhcp {
            happens(dhcp);
        }
        if self.perform_dhcp(place).await {
            self.refresh(gateways, false).await?;
        }
        Ok(())
    }

    /// Sockets that nobody needs any more are closed, questions asked; true when other servers are offered now.
    async fn perform_dhcp(&mut self, place: Place) -> bool {
        let sockets = self.kernel.sockets();
        let uplink = &mut self.uplinks[place];
        let interface = uplink.interface().to_owned();
        let wrap = move |datagram| (place, Datagram::Dhcp(datagram));
        let Some(dhcp) = &mut uplink.dhcp else { return false };
        dhcp.perform(now(), &interface, &sockets, (&self.datagrams.0, wrap), &mut self.notices).await
    }

    fn status(&self, gateways: &Gateways) -> StatusReport {
        let mut all = gateways.iter().zip(&self.uplinks);
        let ((_, first), _) = all.next().expect("there is one at least");
        let others = all.map(|((_, gateway), uplink)| (uplink.line.hosts.clone(), gateway.status(now())));
        StatusReport::new(first.status(now()), others, self.context.counters.read())
    }

    fn mappings(&self, gateways: &Gateways) -> Vec<MappingReport> {
        let of = |(place, gateway): (Place, &engine::gateway::Gateway)| {
            let uplink = (place > 0).then(|| self.uplinks[place].line.name.clone());
            let report =
                move |mapping| MappingReport { uplink: uplink.clone(), ..MappingReport::from(mapping) };
            gateway.mappings(now()).map(report).collect::<Vec<_>>()
        };
        gateways.iter().flat_map(of).collect()
    }

    fn pinholes(&self, gateways: &Gateways) -> Vec<PinholeReport> {
        let of = |(place, gateway): (Place, &engine::gateway::Gateway)| {
            let uplink = (place > 0).then(|| self.uplinks[place].line.name.clone());
            let report =
                move |pinhole| PinholeReport { uplink: uplink.clone(), ..PinholeReport::from(pinhole) };
            gateway.pinholes(now()).into_iter().map(report)
        };
        gateways.iter().flat_map(of).collect()
    }

    /// Everything of a LAN host goes; the answer says whether that will survive a crash.
    async fn release(&mut self, gateways: &mut Gateways, host: IpAddr) -> String {
        let mut released = 0;
        for (_, gateway) in gateways.iter() {
            let mappings =
                gateway.mappings(now()).filter(|mapping| IpAddr::V4(*mapping.internal.ip()) == host);
            let pinholes = gateway.pinholes(now()).into_iter();
            released += mappings.count();
            released += pinholes.filter(|pinhole| IpAddr::V6(pinhole.flows.to.addr) == host).count();
        }
        match host {
            IpAddr::V4(_) => gateways.handle(now(), To::Host(host), Event::Release(host)),
            // Which uplink's such a host is, its IPv4 addresses tell.
            IpAddr::V6(_) => {
                for place in 0..self.uplinks.len() {
                    gateways.handle(now(), To::Uplink(place), Event::Release(host));
                    self.perform_all(gateways).await;
                }
            }
        }
        self.perform_all(gateways).await;
        self.sync();
        json(&ReleaseReport {
            host,
            released,
            stored: !self.uplinks.iter().any(|uplink| uplink.store_failed),
        })
    }

    /// Hands a request of a control point to the gateway.
    fn take_in(&mut self, gateways: &mut Gateways, incoming: http::Incoming) {
        gateways.know(incoming.from, &incoming.known);
        self.next_request += 1;
        let id = RequestId(self.next_request);
        let from = incoming.from;
        let event = match incoming.what {
            What::Control(face, request, reply) => {
                self.waiting.insert(id, reply);
                Event::Control(ControlRequest { id, from, also: incoming.known.also, face, request })
            }
            What::Subscribe(of, subscribe, reply) => {
                self.subscribing.insert(id, reply);
                let (also, interface) = (incoming.known.also, incoming.interface);
                Event::Subscribe { request: id, from, also, interface, of, subscribe }
            }
            What::Unsubscribe(service, sid, reply) => {
                self.subscribing.insert(id, reply);
                Event::Unsubscribe { request: id, from, also: incoming.known.also, service, sid }
            }
        };
        gateways.handle(now(), To::Host(from), event);
    }

    /// Reads the configuration again; a bad one changes nothing.
    async fn reload(&mut self, gateways: &mut Gateways) {
        let Some(path) = &self.reload else { return };
        let new = match self.kernel.configuration(path).await {
            Ok(new) => new,
            Err(error) => return tracing::warn!("reload refused, nothing changed: {error}"),
        };
        let late = self.config.needs_restart(&new);
        let asked = self.config.policy.default == PolicyDefault::Ask;
        if let Err(error) = self.config.take_over(new) {
            return tracing::warn!("reload refused, nothing changed: {}: {error}", path.display());
        }
        if late.is_empty() {
            tracing::info!("configuration read again");
        } else {
            tracing::warn!("configuration read again; {} only counts after a restart", late.join(", "));
        }
        self.config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
        self.context.asks_owner.store(self.config.policy.default == PolicyDefault::Ask, Ordering::Relaxed);
        let lines = self.config.lines();
        // Given back to the servers that they are at, before those are others.
        gateways.bind(now(), lines.iter().skip(1).map(|line| line.hosts.clone()).collect());
        self.perform_all(gateways).await;
        for (place, line) in lines.into_iter().enumerate() {
            let config = self.config.engine(&line, self.device.clone());
            gateways.handle(now(), To::Uplink(place), Event::Reconfigure(Box::new(config)));
            self.uplinks[place].take_over(line);
        }
        self.perform_all(gateways).await;
        if !asked {
            self.look_up_denied(gateways);
        }
        self.kernel.configure(&self.config);
        let standing = self.standing(gateways);
        self.hooks.configure(self.config.hooks.clone(), standing.into_iter());
        if let Err(failure) = self.refresh(gateways, false).await {
            tracing::warn!("{failure}");
        }
    }

    /// What the program of `[hooks]` is told of who knows nothing yet.
    fn standing(&self, gateways: &Gateways) -> Vec<Told> {
        let told = |(place, change)| Told { uplink: self.name(place), change };
        gateways.standing(now()).map(told).collect()
    }

    /// What an uplink is called.
    fn name(&self, place: Place) -> Arc<str> {
        self.uplinks[place].line.name.as_str().into()
    }

    /// Leaves nothing behind.
    async fn close(&mut self) {
        self.kernel.close().await;
        self.hooks.finish().await;
        // Answers that are on their way get a moment; the listeners close with the shell.
        tokio::task::yield_now().await;
    }
}

fn open_store(line: &Line) -> Result<(Store, Loaded), Failure> {
    let directory = &line.directory;
    std::fs::create_dir_all(directory).and_then(|()| Store::open(directory)).map_err(|error| {
        Failure::cannot_create(format!(
            "cannot keep mappings in {}: {error}; portferry has to be able to write there ([state] directory)",
            directory.display()
        ))
    })
}

fn event(outcome: Outcome) -> Event<'static> {
    match outcome {
        Outcome::Nat(ticket, outcome) => Event::Nat { ticket, outcome },
        Outcome::Counters(request, counters) => Event::Counters { request, counters },
        Outcome::UplinkOpened(server, source) => Event::UplinkOpened { server, source },
        Outcome::UplinkFailed(server, error) => Event::UplinkFailed { server, error },
        Outcome::UplinkUnreachable(server) => Event::UplinkUnreachable(server),
        Outcome::FirewallOpened(server, source) => {
            Event::FirewallUplink(UplinkEvent::Opened { server, source })
        }
        Outcome::FirewallFailed(server, error) => {
            Event::FirewallUplink(UplinkEvent::Failed { server, error })
        }
        Outcome::FirewallUnreachable(server) => Event::FirewallUplink(UplinkEvent::Unreachable(server)),
        Outcome::PinholeRead(request, value) => Event::PinholeRead { request, value },
        Outcome::FlowFound(request, port) => Event::FlowFound { request, port },
        Outcome::StoreFailed(error) => Event::StoreFailed(error),
        Outcome::StoreWorks => Event::StoreWorks,
    }
}

fn json(report: &impl serde::Serialize) -> String {
    serde_json::to_string(report).expect("plain values become JSON")
}

#[cfg(test)]
mod tests {
    use engine::gateway::{Effect, Gateway, LanInterface};
    use engine::journal::{Record, StoredNonce};
    use engine::policy::InterfaceAddress;

    use super::*;
    use crate::entropy::KernelEntropy;
    use crate::netlink::Snapshot;

    fn gateways(config: &Config, device: &DeviceConfig) -> Gateways {
        let settings = config.engine(&config.lines()[0], device.clone());
        Gateways::new(Gateway::new(settings, Box::new(KernelEntropy::new([7; 16]))))
    }

    /// an answer of success is only sent when the mapping is stored.
    #[tokio::test]
    async fn what_cannot_be_stored_is_no_success() {
        let text = "[lan]\ninterfaces = [\"lan\"]\n[wan]\ninterface = \"wan\"\nnat = \"none\"\n";
        let config = Config::parse(std::path::Path::new("test"), text).unwrap();
        let device = crate::run::device(&config, &crate::state::Identity::random());
        let links = Links::Fixed(Snapshot::default(), IpAddr::from([127, 0, 0, 1]));
        let (_signals, received) = mpsc::channel(1);
        let mut shell = Shell::new(config, None, device, links, received);
        shell.uplinks[0].store = Some(Store::full());
        for stored in [false, true] {
            shell.uplinks[0].store_failed = false;
            let (reply, answer) = oneshot::channel();
            shell.waiting.insert(RequestId(1), reply);
            if stored {
                let nonce = StoredNonce { nonce: wire::pcp::Nonce([7; 12]), wan: None };
                shell.perform(0, Effect::Store(Record::Probe(nonce))).await;
            }
            shell.perform(0, Effect::Reply { request: RequestId(1), answer: Ok("fine".to_owned()) }).await;
            let expected = if stored { Err(UpnpError::ACTION_FAILED) } else { Ok("fine".to_owned()) };
            assert_eq!(answer.await.unwrap(), expected);
            assert_eq!(matches!(shell.outcomes.front(), Some((0, Outcome::StoreFailed(_)))), stored);
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
        let mut gateways = gateways(&config, &device);
        let (_signals, received) = mpsc::channel(1);
        let links = Links::Fixed(Snapshot::default(), IpAddr::from([127, 0, 0, 1]));
        let mut shell = Shell::new(config, None, device, links, received);
        shell.uplinks[0].store = Some(Store::open(&directory).unwrap().0);
        shell.write(0, |_| Err(std::io::ErrorKind::StorageFull.into()));
        let retry = shell.uplinks[0].store_retry.expect("it is tried again");
        assert!(retry > now() && retry <= now() + effects::STORE_RETRY);
        assert!(matches!(shell.outcomes.pop_front(), Some((0, Outcome::StoreFailed(_)))));
        // Half a minute later there is room.
        shell.uplinks[0].store.as_mut().unwrap().fall_behind();
        shell.uplinks[0].store_retry = Some(now());
        shell.wait(&mut gateways).await.unwrap();
        assert!(matches!(shell.outcomes.pop_front(), Some((0, Outcome::StoreWorks))));
        assert_eq!(shell.uplinks[0].store_retry, None);
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[tokio::test]
    async fn what_is_due_goes_before_a_flood_of_datagrams() {
        let text = "[lan]\ninterfaces = [\"lan\"]\n[wan]\ninterface = \"wan\"\nnat = \"none\"\n";
        let config = Config::parse(std::path::Path::new("test"), text).unwrap();
        let device = crate::run::device(&config, &crate::state::Identity::random());
        let mut gateways = gateways(&config, &device);
        let (_signals, received) = mpsc::channel(1);
        let links = Links::Fixed(Snapshot::default(), IpAddr::V4(Ipv4Addr::LOCALHOST));
        let mut shell = Shell::new(config, None, device, links, received);
        let addr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 1));
        let lan = LanInterface {
            index: 1,
            name: "lan".into(),
            addresses: vec![InterfaceAddress { addr, prefix_len: 24 }],
        };
        gateways.handle_lan(now(), &[lan]);
        while gateways.poll_effect().is_some() {}
        let queue = shell.datagrams.0.clone();
        let from = SocketAddr::new(addr, 1900);
        while queue
            .try_send((0, Datagram::Ssdp { interface: 1, local: None, from, bytes: Vec::new() }))
            .is_ok()
        {}
        // The first announcements come within 100 ms.
        let due = gateways.next_timeout().expect("announcements are due");
        while now() < due {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        shell.wait(&mut gateways).await.unwrap();
        assert!(matches!(gateways.poll_effect(), Some((0, Effect::Ssdp(_)))), "the announcements are out");
    }
}
