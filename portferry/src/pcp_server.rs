//! `portferry pcp-server`: a PCP and NAT-PMP server on this machine's NAT, for a VPS, a small provider, a test bench.
//!
//! As in the gateway one task owns the [`Server`], which decides; this turns sockets, signals and the kernel into what it is
//! told, and its [`Output`]s into what happens. Nothing else is decided here.

pub mod config;
mod inside;
mod outside;
pub mod plane;
pub mod report;
pub mod served;
pub mod sockets;
pub mod store;
pub mod waiting;

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use engine::notice::Level;
use engine::provider::{Arrival, FlowQuery, NatChange, Output, Reason, Record, Server, ServerConfig, Ticket};
use engine::time::{Duration, Instant};
use rustix::thread::CapabilitySet;
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;

use crate::clock::now;
use crate::control::{self, Asked, Question};
use crate::event_loop::Signal;
use crate::exit::Failure;
use crate::log::Notices;
use crate::netlink::{Netlink, Snapshot};
use crate::nft;
use crate::privileged::sandbox::{self, Needs};
use crate::run::{runtime, watch};
use config::Config;
use inside::{Link, is_subscriber, links};
use outside::{addresses_of, await_address, external, listed, told};
use plane::Plane;
use report::StatusReport;
use sockets::{Datagram, Sockets};
use store::{Loaded, Store};
use waiting::Waiting;

/// When it is tried again to read the interfaces, or to open a socket.
const RETRY: Duration = Duration::from_secs(5);
/// When it is tried again to write what could not be stored.
const STORE_RETRY: Duration = Duration::from_secs(30);
/// How often it is looked whether the NAT's table is still there.
const HEAL: Duration = Duration::from_secs(30);
/// How long the outside interfaces may be without an address before that counts: a link that flaps, or a network that comes up
/// behind this server, must cost no mapping.
const ADDRESSLESS: Duration = Duration::from_secs(30);
/// How often all tracked flows are looked at, at most: with many of them that takes its time.
const SWEEP: Duration = Duration::from_secs(1);
/// Ports whose changes of the NAT go together; a transaction has a size of its own, and costs much the same whatever is in it.
const BATCH: usize = nft::provider::MAX_PORTS;
/// Transactions, and turns of questions, before anything else gets its turn.
const TRANSACTIONS: usize = 4;
/// Datagrams that are taken in before anything else gets its turn.
const DATAGRAMS: usize = 64;

/// Runs the server of the file at `path` until it is told to stop.
///
/// # Errors
/// Why it cannot start, or cannot go on.
pub fn run(path: &Path, sandboxed: bool) -> Result<(), Failure> {
    let config = Config::load(path).map_err(|error| Failure::config(error.to_string()))?;
    crate::log::start(config.log.level);
    runtime()?.block_on(serve(config, path, sandboxed))
}

/// It changes the firewall itself, and keeps the right to that; nothing else.
fn enter_sandbox(config: &Config, path: &Path) -> Result<(), Failure> {
    let failed = |what: &str, error: std::io::Error| {
        Failure::system(format!("cannot go into the sandbox: {what}: {error}"))
    };
    let state = &config.state.directory;
    // What is not there cannot be let in.
    std::fs::create_dir_all(state).map_err(|error| {
        Failure::cannot_create(format!(
            "cannot make the state directory {}: {error}; portferry has to be able to write there ([state] directory)",
            state.display()
        ))
    })?;
    let needed = CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW | CapabilitySet::NET_BIND_SERVICE;
    sandbox::keep_capabilities(needed).map_err(|error| failed("capabilities", error))?;
    let whole = std::path::absolute(path).map_err(|error| failed("the configuration", error))?;
    // The file may be replaced, and is read again; not for that all of a directory that is everybody's.
    let directory =
        whole.parent().filter(|directory| *directory != Path::new("/etc") && directory.parent().is_some());
    let sandbox = sandbox::enter(&Needs {
        writes: &[state],
        // Of other programs' ports and of forwarding the kernel tells in /proc.
        reads: &[directory.unwrap_or(&whole), Path::new("/proc")],
        sockets: true,
    });
    if sandbox.is_whole() {
        tracing::info!("the right to change the firewall and no other, {sandbox}");
    } else {
        tracing::warn!("this kernel lacks a part of the sandbox: {sandbox}");
    }
    Ok(())
}

async fn serve(config: Config, path: &Path, sandboxed: bool) -> Result<(), Failure> {
    let (signals, received) = mpsc::channel(4);
    watch(SignalKind::terminate(), Signal::Stop, &signals)?;
    watch(SignalKind::interrupt(), Signal::Stop, &signals)?;
    watch(SignalKind::hangup(), Signal::Reload, &signals)?;
    let (asking, asked) = mpsc::channel(16);
    // Before anything else: whoever is started twice must not empty the other's table, not even where neither has an interface
    // to listen on yet. What is asked meanwhile waits.
    let listening = control::listen(&config.control.socket)?;
    let socket = listening.fd().try_clone().map_err(|error| Failure::system(error.to_string()))?;
    let control = control::Server::start(socket, asking)?;
    if sandboxed {
        enter_sandbox(&config, path)?;
    }
    let mut shell = Shell::start(config, path, received, asked).await?;
    let ended = shell.run().await;
    drop(control);
    ended?;
    tracing::info!("stopped");
    Ok(())
}

struct Shell {
    config: Config,
    path: PathBuf,
    server: Server,
    /// What the server wants done and has not been begun.
    next: Option<Output>,
    /// What goes out once everything that it counts on is stored.
    outbox: Vec<Output>,
    notices: Notices,
    plane: Plane,
    store: Store,
    /// Why the store is behind.
    store_error: Option<String>,
    store_retry: Option<Instant>,
    heal_at: Instant,
    /// No sooner are all tracked flows looked at.
    sweep_at: Instant,
    netlink: Netlink,
    /// The external addresses, as clients are told and as packets have them.
    pool: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// Until when the external addresses of before count, though there are none.
    addressless: Option<Instant>,
    /// When the interfaces are looked at again, though the kernel says nothing.
    retry: Option<Instant>,
    sockets: Sockets,
    /// The prefixes that are on the link of an inside interface, and the server's own address there.
    links: Vec<Link>,
    datagrams: (mpsc::Sender<Datagram>, mpsc::Receiver<Datagram>),
    waiting: Waiting,
    received: u64,
    signals: mpsc::Receiver<Signal>,
    asked: mpsc::Receiver<Asked>,
}

impl Shell {
    async fn start(
        config: Config,
        path: &Path,
        signals: mpsc::Receiver<Signal>,
        asked: mpsc::Receiver<Asked>,
    ) -> Result<Self, Failure> {
        let mut netlink = Netlink::open().map_err(|error| Failure::system(format!("no netlink: {error}")))?;
        let mut snapshot = netlink
            .snapshot()
            .await
            .map_err(|error| Failure::system(format!("cannot read the interfaces: {error}")))?;
        let datagrams = mpsc::channel(1024);
        let mut sockets = Sockets::default();
        // Before the table: another program that listens there may have one of its own.
        let failed = follow(&mut sockets, &config, &snapshot, &datagrams.0);
        if let Some((place, error)) = failed.into_iter().next() {
            let line =
                format!("UDP port {} of {} on {}", wire::pcp::SERVER_PORT, place.addr, place.interface);
            return Err(match error.kind() {
                std::io::ErrorKind::AddrInUse => Failure::unavailable(format!(
                    "{line} is used by another program (miniupnpd, another PCP server?); stop that one"
                )),
                std::io::ErrorKind::PermissionDenied => {
                    Failure::no_permission(format!("{line} needs root or CAP_NET_RAW: {error}"))
                }
                _ => Failure::system(format!("{line} cannot be opened: {error}")),
            });
        }
        for name in &config.inside.interfaces.0 {
            if !snapshot.interfaces.iter().any(|interface| interface.name == name.0) {
                tracing::warn!(
                    "the inside interface {} does not exist; it is served as soon as it comes ([inside] interfaces)",
                    name.0
                );
            }
        }
        let mut pool = external(&config, &snapshot);
        let mut found = !pool.is_empty();
        let directory = &config.state.directory;
        let (store, loaded) = Store::open(directory, config.hold()).map_err(|error| {
            Failure::cannot_create(format!(
                "cannot keep mappings in {}: {error}; portferry has to be able to write there ([state] directory)",
                directory.display()
            ))
        })?;
        let Loaded { mappings, holds, epoch, damage } = loaded;
        if let Some(line) = damage.report(&directory.join(store::FILE), "subscribers' mappings") {
            tracing::warn!("{line}");
        }
        let mut moves = false;
        if config.outside.public.is_empty() {
            // Stored mappings stand where they stood. What is missing there may be on its way still; if another address has come
            // instead, they follow it as if they had seen it come.
            let stood = addresses_of(&mappings);
            if !stood.iter().all(|addr| told(&pool).contains(addr)) {
                moves = found;
                pool = stood.into_iter().map(|addr| (addr, addr)).collect();
            }
        } else if !found && !mappings.is_empty() {
            // What a cloud translates cannot be guessed.
            tracing::warn!(
                "the outside interface has no address yet; it is waited for {} s, for the sake of stored mappings ([outside])",
                ADDRESSLESS.as_secs()
            );
            (snapshot, pool) = await_address(&config, &mut netlink, snapshot).await;
            found = !pool.is_empty();
        }
        if pool.is_empty() {
            tracing::warn!(
                "there is no external address yet: requests are answered NETWORK_FAILURE until the outside interface has one ([outside])"
            );
        } else if !found {
            tracing::warn!(
                "the outside interface has no address yet; stored mappings wait {} s for theirs ([outside])",
                ADDRESSLESS.as_secs()
            );
        }
        if config.nat.plane == config::Plane::Nftables && !forwards() {
            tracing::warn!(
                "the kernel forwards no IPv4 packets, so mappings will lead nowhere: sysctl -w net.ipv4.ip_forward=1"
            );
        }
        // Last of all, for it empties the table of the run before.
        let plane = Plane::open(&config, pool.clone()).await?;
        let behind = store.is_behind();
        let mut server =
            Server::with_age(now(), settings(&config, &pool, &snapshot), epoch.unwrap_or_default());
        server.restore(now(), mappings, holds);
        server.announce(now());
        Ok(Self {
            path: path.to_owned(),
            server,
            next: None,
            outbox: Vec::new(),
            notices: Notices::default(),
            links: links(&config, &snapshot),
            sweep_at: now(),
            plane,
            store,
            store_error: None,
            store_retry: behind.then(now),
            heal_at: now() + HEAL,
            netlink,
            pool,
            addressless: (!found).then(|| now() + ADDRESSLESS),
            retry: moves.then(now),
            sockets,
            datagrams,
            waiting: Waiting::default(),
            received: 0,
            signals,
            asked,
            config,
        })
    }

    async fn run(&mut self) -> Result<(), Failure> {
        tracing::info!(
            "portferry {} serves PCP; external addresses: {}",
            env!("CARGO_PKG_VERSION"),
            listed(&self.server.config().pool)
        );
        loop {
            let more = self.perform_some().await;
            let more = more || !self.waiting.is_empty();
            if !self.wait(more).await {
                break;
            }
        }
        self.perform_all().await;
        let count = self.server.mapping_count();
        if self.config.state.keep_on_stop {
            tracing::info!(
                "stopping; mappings that stay open (state.keep_on_stop) and are stored for the next start: {count}"
            );
        } else {
            self.plane.clear().await;
            tracing::info!("stopping; mappings that are closed and are stored for the next start: {count}");
        }
        Ok(())
    }

    /// Waits for one thing to happen, or only looks whether it has when there is `more` to do; false when it is time to stop.
    async fn wait(&mut self, more: bool) -> bool {
        let sweep = self.plane.wants_sweep().then_some(self.sweep_at);
        let retries = [self.store_retry, self.retry, self.addressless, Some(self.heal_at), sweep];
        let due = retries.into_iter().chain([self.server.next_timeout()]);
        let due = due.flatten().min();
        let overdue = due.is_some_and(|at| at <= now());
        if overdue {
            self.on_due().await;
        }
        let sleep = async {
            match due {
                // However much is due, others have questions meanwhile.
                _ if more || overdue => tokio::task::yield_now().await,
                // A millisecond more, for the clock counts whole ones.
                Some(at) => tokio::time::sleep((at - now()) + Duration::from_millis(1)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(signal) = self.signals.recv() => match signal {
                Signal::Stop => return false,
                Signal::Reload => self.reload().await,
            },
            Some(Asked { question, reply }) = self.asked.recv() => {
                // Whoever asked may have hung up.
                let _ = reply.send(self.report(question).await);
            }
            // While a retry is due anyway, a lasting error must not be heard again and again.
            changed = self.netlink.changed(), if self.retry.is_none() => match changed {
                Ok(()) => self.refresh().await,
                Err(error) => {
                    tracing::warn!("the kernel's news of interfaces: {error}; looking again");
                    self.retry = Some(now() + RETRY);
                }
            },
            Some(datagram) = self.datagrams.1.recv() => self.queue(datagram),
            () = sleep => {} // the next turn sees what is due
        }
        self.take_in_some();
        true
    }

    async fn on_due(&mut self) {
        let at = now();
        if [self.retry, self.addressless].into_iter().flatten().any(|due| due <= at) {
            self.retry = None;
            self.refresh().await;
        }
        if self.store_retry.is_some_and(|due| due <= at) {
            self.store_retry = None;
            if self.store.is_behind() {
                self.write(Store::catch_up);
            }
        }
        if self.heal_at <= at {
            self.heal_at = at + HEAL;
            self.plane.heal().await;
        }
        if self.plane.wants_sweep() && self.sweep_at <= at {
            self.plane.sweep().await;
            self.sweep_at = now() + SWEEP;
        }
        self.server.handle_timeout(at);
    }

    fn queue(&mut self, datagram: Datagram) {
        self.received += 1;
        if self.is_inside(&datagram) {
            self.waiting.push(datagram, self.config.access.ipv6_subscriber_bits.0);
        } else {
            self.take_in(&datagram); // counted at once, in nobody's place
        }
    }

    /// Some of those that have come, but all of them are seen: what is left in the sockets' buffers is nobody's turn.
    fn take_in_some(&mut self) {
        while let Ok(datagram) = self.datagrams.1.try_recv() {
            self.queue(datagram);
        }
        for _ in 0..DATAGRAMS {
            let Some(datagram) = self.waiting.pop() else { break };
            self.take_in(&datagram);
        }
    }

    fn is_inside(&self, Datagram { place, from, .. }: &Datagram) -> bool {
        is_subscriber(from.ip().to_canonical(), place.index, &self.config.inside.prefixes, &self.links)
    }

    fn take_in(&mut self, datagram: &Datagram) {
        let Datagram { place, from, bytes } = datagram;
        let inside = self.is_inside(datagram);
        let arrival = Arrival { from: *from, to: place.addr, softwire: None, interface: place.index, inside };
        self.server.handle_datagram(now(), &arrival, bytes);
    }

    /// The same until nothing is left.
    async fn perform_all(&mut self) {
        while self.perform_some().await {}
    }

    /// Does what the server wants done, in its order; changes of the NAT that stand together go together. True when there may be
    /// more: the mappings of a whole town want to stand again after a restart, and others have questions meanwhile.
    async fn perform_some(&mut self) -> bool {
        for _ in 0..TRANSACTIONS {
            let (mut changes, mut ports, mut questions) = (Vec::new(), 0, Vec::new());
            loop {
                match self.next.take().or_else(|| self.server.poll_output()) {
                    // Nothing depends on when it is answered, so all are answered together.
                    Some(Output::Flow { ticket, flow }) => questions.push((ticket, flow)),
                    Some(Output::Nat { ticket, change })
                        if changes.is_empty() || ports + plane::ports(&change) <= BATCH =>
                    {
                        ports += plane::ports(&change);
                        changes.push((ticket, change));
                    }
                    Some(output) if changes.is_empty() => self.perform(output),
                    other => {
                        self.next = other;
                        break;
                    }
                }
            }
            self.send_all();
            if changes.is_empty() && questions.is_empty() {
                return false;
            }
            if !changes.is_empty() {
                self.change_nat(changes).await;
            }
            if !questions.is_empty() {
                self.answer_questions(questions).await;
            }
        }
        true
    }

    async fn answer_questions(&mut self, questions: Vec<(Ticket, FlowQuery)>) {
        let (tickets, flows): (Vec<Ticket>, Vec<FlowQuery>) = questions.into_iter().unzip();
        let places = self.plane.flows(&flows).await;
        for (ticket, place) in tickets.into_iter().zip(places) {
            self.server.handle_flow(now(), ticket, place);
        }
    }

    async fn change_nat(&mut self, changes: Vec<(Ticket, NatChange)>) {
        let (tickets, steps): (Vec<Ticket>, Vec<NatChange>) = changes.into_iter().unzip();
        let outcomes = self.plane.apply(&steps, self.server.is_restoring()).await;
        for (ticket, outcome) in tickets.into_iter().zip(outcomes) {
            self.server.handle_nat(now(), ticket, outcome);
        }
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Send { .. } | Output::Multicast { .. } => self.outbox.push(output),
            Output::Store(record) => self.keep(&record),
            Output::Notice(notice) => {
                let level = if notice.is_warning() { Level::Warning } else { Level::Info };
                self.notices.line(now(), level, &notice);
            }
            Output::Nat { .. } | Output::Flow { .. } => {} // taken out above
        }
    }

    /// One sync for all that goes out.
    fn send_all(&mut self) {
        self.sync();
        for output in std::mem::take(&mut self.outbox) {
            match output {
                Output::Send { to, from, interface, bytes, .. } => {
                    self.sockets.send(interface, from, to, &bytes);
                }
                Output::Multicast { group, bytes } => self.sockets.multicast(group, &bytes),
                // Done in its turn.
                Output::Store(_) | Output::Notice(_) | Output::Nat { .. } | Output::Flow { .. } => {}
            }
        }
    }

    fn keep(&mut self, record: &Record) {
        self.write(|store| store.append(record));
    }

    /// What was stored survives a power cut from now on.
    fn sync(&mut self) {
        self.write(Store::sync);
    }

    fn write(&mut self, what: impl FnOnce(&mut Store) -> std::io::Result<()>) {
        match what(&mut self.store) {
            Err(error) => {
                if self.store_error.replace(error.to_string()).is_none() {
                    tracing::warn!(
                        "the state cannot be written ({error}): mappings stand, but a restart begins a new epoch; is the file system full ([state] directory)?"
                    );
                }
                // Under traffic there is always another error.
                self.store_retry.get_or_insert(now() + STORE_RETRY);
            }
            Ok(()) if !self.store.is_behind() && self.store_error.take().is_some() => {
                tracing::info!("the state can be written again; everything is stored");
            }
            Ok(()) => {}
        }
    }

    /// Looks at the interfaces again.
    async fn refresh(&mut self) {
        let snapshot = match self.netlink.snapshot().await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                tracing::warn!("cannot read the interfaces: {error}; trying again");
                self.retry = Some(now() + RETRY);
                self.addressless = self.addressless.map(|until| until.max(now() + RETRY));
                return;
            }
        };
        for (place, error) in follow(&mut self.sockets, &self.config, &snapshot, &self.datagrams.0) {
            tracing::warn!(
                "UDP port {} of {} on {} cannot be opened: {error}; trying again",
                wire::pcp::SERVER_PORT,
                place.addr,
                place.interface
            );
            self.retry = Some(now() + RETRY);
        }
        let mut pool = external(&self.config, &snapshot);
        if !pool.is_empty() {
            if self.addressless.take().is_some() {
                tracing::info!("the outside interface has an address: {}", listed(&told(&pool)));
            }
        } else if !self.server.config().pool.is_empty() {
            let until = *self.addressless.get_or_insert_with(|| {
                tracing::warn!(
                    "the outside interface has no address; mappings wait {} s for it to come back ([outside])",
                    ADDRESSLESS.as_secs()
                );
                now() + ADDRESSLESS
            });
            if now() < until {
                pool.clone_from(&self.pool);
            }
        }
        let new = settings(&self.config, &pool, &snapshot);
        if self.plane.stands_elsewhere(&pool) {
            // What the clients know stays the same, and leads nowhere: all of it goes, and they ask again.
            self.server.reconfigure(now(), self.config.engine(Vec::new()));
            self.perform_all().await;
        }
        if !self.plane.reconfigure(&self.config, pool.clone()).await {
            self.retry = Some(now() + RETRY);
            self.addressless = self.addressless.map(|until| until.max(now() + RETRY));
            return; // clients are told of no address that the kernel does not know
        }
        self.pool = pool;
        self.links = links(&self.config, &snapshot);
        if new != *self.server.config() {
            if new.pool != self.server.config().pool {
                tracing::info!("external addresses are now: {}", listed(&new.pool));
            }
            self.server.reconfigure(now(), new);
        }
        if self.addressless.is_some_and(|until| until <= now()) {
            self.addressless = None;
        }
    }

    /// Reads the configuration again; a bad one changes nothing.
    async fn reload(&mut self) {
        let new = match Config::load(&self.path) {
            Ok(new) => new,
            Err(error) => return tracing::warn!("reload refused, nothing changed: {error}"),
        };
        let late = self.config.needs_restart(&new);
        self.config = match self.config.taken_over(new) {
            Ok(config) => config,
            Err((key, why)) => return tracing::warn!("reload refused, nothing changed: {key}: {why}"),
        };
        if late.is_empty() {
            tracing::info!("configuration read again");
        } else {
            tracing::warn!("configuration read again; {} only counts after a restart", late.join(", "));
        }
        self.refresh().await;
    }

    async fn report(&mut self, question: Question) -> String {
        let json = match question {
            Question::Status => serde_json::to_string(&self.status().await),
            Question::Mappings => serde_json::to_string(&report::mappings(now(), &self.server)),
            Question::Pinholes
            | Question::Release(_)
            | Question::Consents
            | Question::Consent(..)
            | Question::DhcpServers => {
                Ok(r#"{"error":"the PCP server does not know that question; it is one to portferry run"}"#
                    .to_owned())
            }
        };
        json.expect("plain values become JSON")
    }

    async fn status(&mut self) -> StatusReport {
        let strangers = self.plane.strangers().await;
        let counters = self.server.counters();
        let refused = Reason::ALL.iter().map(|&reason| (reason.to_string(), counters.refusals(reason)));
        let refused = refused.chain([
            ("too much waiting".to_owned(), self.waiting.dropped()),
            ("by an outside interface".to_owned(), strangers),
        ]);
        StatusReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            plane: match self.plane {
                Plane::Nftables(_) => "nftables".to_owned(),
                Plane::Memory(_) => "memory".to_owned(),
            },
            table: match self.plane {
                Plane::Nftables(_) => Some(self.config.nat.table.0.clone()),
                Plane::Memory(_) => None,
            },
            listening: self.sockets.addresses().map(|place| (place.interface.clone(), place.addr)).collect(),
            external: self.server.config().pool.iter().copied().map(IpAddr::V4).collect(),
            epoch: self.server.epoch(now()),
            mappings: self.server.mapping_count(),
            subscribers: self.server.subscriber_count(),
            received: self.received + strangers,
            sent: counters.sent,
            refused: refused.filter(|(_, count)| *count > 0).collect(),
            store_error: self.store_error.clone(),
        }
    }
}

fn follow(
    sockets: &mut Sockets,
    config: &Config,
    snapshot: &Snapshot,
    queue: &mpsc::Sender<Datagram>,
) -> Vec<(sockets::Place, std::io::Error)> {
    let names: Vec<String> = config.inside.interfaces.0.iter().map(|name| name.0.clone()).collect();
    sockets.follow(&names, &config.inside.addresses, snapshot, queue)
}

/// What the engine is told.
fn settings(config: &Config, pool: &[(Ipv4Addr, Ipv4Addr)], snapshot: &Snapshot) -> ServerConfig {
    let own =
        snapshot.interfaces.iter().flat_map(|interface| interface.addresses.iter()).map(|&(addr, _)| addr);
    ServerConfig { own: own.collect(), ..config.engine(told(pool)) }
}

/// Whether this machine is a router at all; where that cannot be told it is taken for one.
fn forwards() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").map_or(true, |text| text.trim() != "0")
}
