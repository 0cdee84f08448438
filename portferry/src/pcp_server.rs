//! `portferry pcp-server`: a PCP and NAT-PMP server on this machine's NAT, for a VPS, a small provider, a test bench.
//!
//! As in the gateway one task owns the [`Server`], which decides; this turns sockets, signals and the kernel into what it is
//! told, and its [`Output`]s into what happens. Nothing else is decided here.

pub mod config;
pub mod plane;
pub mod report;
pub mod sockets;
pub mod store;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use engine::provider::{Arrival, NatChange, Notice, Output, Reason, Record, Server, Ticket};
use engine::time::{Duration, Instant};
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;

use crate::clock::now;
use crate::control::{self, Asked, Question};
use crate::event_loop::Signal;
use crate::exit::Failure;
use crate::netlink::{Netlink, Snapshot};
use crate::run::{runtime, watch};
use config::Config;
use plane::Plane;
use report::StatusReport;
use sockets::{Datagram, Sockets};
use store::{Loaded, Store};

/// When it is tried again to read the interfaces, or to open a socket.
const RETRY: Duration = Duration::from_secs(5);
/// When it is tried again to write what could not be stored.
const STORE_RETRY: Duration = Duration::from_secs(30);
/// How often it is looked whether the NAT's table is still there.
const HEAL: Duration = Duration::from_secs(30);
/// Changes of the NAT that go together.
const BATCH: usize = 64;
/// Datagrams that are taken in before anything else gets its turn.
const DATAGRAMS: usize = 64;

/// Runs the server of the file at `path` until it is told to stop.
///
/// # Errors
/// Why it cannot start, or cannot go on.
pub fn run(path: &Path) -> Result<(), Failure> {
    let config = Config::load(path).map_err(|error| Failure::config(error.to_string()))?;
    crate::log::start(config.log.level);
    runtime()?.block_on(serve(config, path))
}

async fn serve(config: Config, path: &Path) -> Result<(), Failure> {
    let (signals, received) = mpsc::channel(4);
    watch(SignalKind::terminate(), Signal::Stop, &signals)?;
    watch(SignalKind::interrupt(), Signal::Stop, &signals)?;
    watch(SignalKind::hangup(), Signal::Reload, &signals)?;
    let (asking, asked) = mpsc::channel(16);
    let socket = config.control.socket.clone();
    let mut shell = Shell::start(config, path, received, asked).await?;
    let control = control::Server::start(&socket, asking)?;
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
    plane: Plane,
    store: Store,
    /// Why the store is behind.
    store_error: Option<String>,
    store_retry: Option<Instant>,
    heal_at: Instant,
    netlink: Netlink,
    /// When the interfaces are looked at again, though the kernel says nothing.
    retry: Option<Instant>,
    sockets: Sockets,
    datagrams: (mpsc::Sender<Datagram>, mpsc::Receiver<Datagram>),
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
        let snapshot = netlink
            .snapshot()
            .await
            .map_err(|error| Failure::system(format!("cannot read the interfaces: {error}")))?;
        let datagrams = mpsc::channel(1024);
        let mut sockets = Sockets::default();
        // Before anything else: a server that is started twice must find them taken before it empties the other's table.
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
        let pool = external(&config, &snapshot);
        if pool.is_empty() {
            tracing::warn!(
                "there is no external address yet: requests are answered NETWORK_FAILURE until the outside interface has one ([outside])"
            );
        }
        if config.nat.plane == config::Plane::Nftables && !forwards() {
            tracing::warn!(
                "the kernel forwards no IPv4 packets, so mappings will lead nowhere: sysctl -w net.ipv4.ip_forward=1"
            );
        }
        let plane = Plane::open(&config, &pool).await?;
        let directory = &config.state.directory;
        let (store, loaded) = Store::open(directory).map_err(|error| {
            Failure::cannot_create(format!(
                "cannot keep mappings in {}: {error}; portferry has to be able to write there ([state] directory)",
                directory.display()
            ))
        })?;
        let Loaded { mappings, epoch, damaged } = loaded;
        if damaged > 0 {
            tracing::warn!("{damaged} damaged lines of stored mappings were passed over");
        }
        let behind = store.is_behind();
        let mut server = Server::with_age(now(), config.engine(pool), epoch.unwrap_or_default());
        server.restore(now(), mappings);
        server.announce(now());
        Ok(Self {
            path: path.to_owned(),
            server,
            plane,
            store,
            store_error: None,
            store_retry: behind.then(now),
            heal_at: now() + HEAL,
            netlink,
            retry: None,
            sockets,
            datagrams,
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
            self.perform_all().await;
            if !self.wait().await {
                break;
            }
        }
        self.sync();
        let count = self.server.mappings().count();
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

    /// Waits for one thing to happen; false when it is time to stop.
    async fn wait(&mut self) -> bool {
        let due = [self.server.next_timeout(), self.store_retry, self.retry, Some(self.heal_at)];
        let due = due.into_iter().flatten().min();
        if due.is_some_and(|at| at <= now()) {
            self.on_due().await;
            tokio::task::consume_budget().await;
            return true;
        }
        let sleep = async {
            match due {
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
                let _ = reply.send(self.report(question));
            }
            // While a retry is due anyway, a lasting error must not be heard again and again.
            changed = self.netlink.changed(), if self.retry.is_none() => match changed {
                Ok(()) => self.refresh().await,
                Err(error) => {
                    tracing::warn!("the kernel's news of interfaces: {error}; looking again");
                    self.retry = Some(now() + RETRY);
                }
            },
            Some(datagram) = self.datagrams.1.recv() => {
                self.take_in(&datagram);
                for _ in 1..DATAGRAMS {
                    match self.datagrams.1.try_recv() {
                        Ok(datagram) => self.take_in(&datagram),
                        Err(_) => break,
                    }
                }
            }
            () = sleep => {} // the next turn sees what is due
        }
        true
    }

    async fn on_due(&mut self) {
        let at = now();
        if self.retry.is_some_and(|due| due <= at) {
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
        self.server.handle_timeout(at);
    }

    fn take_in(&mut self, datagram: &Datagram) {
        let Datagram { place, from, bytes } = datagram;
        self.received += 1;
        let source = from.ip().to_canonical();
        let prefixes = &self.config.inside.prefixes;
        let known = prefixes.is_empty()
            || prefixes.iter().any(|prefix| prefix.0.contains(source))
            || is_link_local(source);
        let arrival = Arrival {
            from: *from,
            to: place.addr,
            softwire: None,
            interface: place.index,
            inside: known && sockets::is_unicast(source),
        };
        self.server.handle_datagram(now(), &arrival, bytes);
    }

    /// Does everything that the server wants done, in its order; changes of the NAT that stand together go together.
    async fn perform_all(&mut self) {
        let mut changes: Vec<(Ticket, NatChange)> = Vec::new();
        loop {
            let output = self.server.poll_output();
            if let Some(Output::Nat { ticket, change }) = output {
                changes.push((ticket, change));
                if changes.len() < BATCH {
                    continue;
                }
                self.change_nat(&mut changes).await;
                continue;
            }
            if !changes.is_empty() {
                self.change_nat(&mut changes).await;
            }
            let Some(output) = output else {
                // The outcomes may have brought more.
                match self.server.poll_output() {
                    Some(Output::Nat { ticket, change }) => changes.push((ticket, change)),
                    Some(output) => self.perform(output),
                    None => break,
                }
                continue;
            };
            self.perform(output);
        }
        self.sync();
    }

    async fn change_nat(&mut self, changes: &mut Vec<(Ticket, NatChange)>) {
        let (tickets, steps): (Vec<Ticket>, Vec<NatChange>) = changes.drain(..).unzip();
        let outcomes = self.plane.apply(&steps).await;
        for (ticket, outcome) in tickets.into_iter().zip(outcomes) {
            self.server.handle_nat(now(), ticket, outcome);
        }
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Send { to, from, interface, bytes, .. } => {
                self.sync();
                self.sockets.send(interface, from, to, &bytes);
            }
            Output::Multicast { group, bytes } => {
                self.sync();
                self.sockets.multicast(group, &bytes);
            }
            Output::Store(record) => self.keep(&record),
            Output::Notice(notice) => write(&notice),
            Output::Nat { .. } => {} // taken out before
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
                self.store_retry = Some(now() + STORE_RETRY);
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
        let pool = external(&self.config, &snapshot);
        self.plane.reconfigure(&self.config, &pool).await;
        let new = self.config.engine(pool);
        if new != *self.server.config() {
            if new.pool != self.server.config().pool {
                tracing::info!("external addresses are now: {}", listed(&new.pool));
            }
            self.server.reconfigure(now(), new);
        }
    }

    /// Reads the configuration again; a bad one changes nothing.
    async fn reload(&mut self) {
        let new = match Config::load(&self.path) {
            Ok(new) => new,
            Err(error) => return tracing::warn!("reload refused, nothing changed: {error}"),
        };
        let late = self.config.needs_restart(&new);
        self.config = self.config.taken_over(new);
        if late.is_empty() {
            tracing::info!("configuration read again");
        } else {
            tracing::warn!("configuration read again; {} only counts after a restart", late.join(", "));
        }
        self.refresh().await;
    }

    fn report(&self, question: Question) -> String {
        let json = match question {
            Question::Status => serde_json::to_string(&self.status()),
            Question::Mappings => serde_json::to_string(&report::mappings(now(), &self.server)),
            Question::Release(_) => Ok(r#"{"error":"that is a question to the gateway"}"#.to_owned()),
        };
        json.expect("plain values become JSON")
    }

    fn status(&self) -> StatusReport {
        let counters = self.server.counters();
        let refused = Reason::ALL.iter().map(|&reason| (reason.to_string(), counters.refusals(reason)));
        let subscribers: BTreeSet<_> = self.server.mappings().map(|mapping| mapping.subscriber).collect();
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
            mappings: self.server.mappings().count(),
            subscribers: subscribers.len(),
            received: self.received,
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

/// The external addresses: those of the configuration, or those that the outside interfaces have.
fn external(config: &Config, snapshot: &Snapshot) -> Vec<Ipv4Addr> {
    if !config.outside.addresses.is_empty() {
        return config.outside.addresses.clone();
    }
    let outside = |name: &str| config.outside.interfaces.0.iter().any(|one| one.0 == name);
    let interfaces = snapshot.interfaces.iter().filter(|interface| outside(&interface.name) && interface.up);
    let addresses = interfaces.flat_map(|interface| interface.addresses.iter());
    let mut found: Vec<Ipv4Addr> = Vec::new();
    for (addr, _) in addresses {
        match addr {
            IpAddr::V4(v4) if !v4.is_link_local() && !found.contains(v4) => found.push(*v4),
            _ => {}
        }
    }
    found
}

/// Whether this machine is a router at all; where that cannot be told it is taken for one.
fn forwards() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").map_or(true, |text| text.trim() != "0")
}

fn listed(addresses: &[Ipv4Addr]) -> String {
    let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    if list.is_empty() { "none".to_owned() } else { list.join(", ") }
}

fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn write(notice: &Notice) {
    if notice.is_warning() {
        tracing::warn!("{notice}");
    } else {
        tracing::info!("{notice}");
    }
}
