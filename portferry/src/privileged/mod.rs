//! What needs a privilege: the kernel's tables, sockets, programs, host names, the configuration file. The gateway asks for it here, and
//! does nothing of it itself.
//!
//! `portferry run` is two processes (`docs/security.md`). The **privileged** one, which the supervisor starts, does what is asked for
//! ([`worker`]) and never reads an octet that came from the network. The **network** process, which it starts, speaks with everybody
//! and decides everything; it has no capability, and a sandbox ([`sandbox`]) in which it can open no file but its state, make no socket, and
//! run no program. Between them is one socket pair ([`channel`]) with a handful of typed messages ([`message`]), each of which
//! is checked against the configuration and the kernel's own word ([`check`]): who takes over the network process can add and
//! remove mappings inside policy, and nothing else.
//!
//! Without a sandbox (`--no-sandbox`), in the demonstration and in tests both are one process.

mod channel;
mod check;
mod client;
mod message;
mod network;
pub(crate) mod sandbox;
mod tables;
mod user;
mod worker;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::Path;

use engine::nat::NatFailure;

pub(crate) use client::Client;
pub(crate) use message::NatChange;
pub(crate) use worker::{prepare_state, supervise};

use crate::config::Config;
use crate::exit::Failure;
use crate::firewall::Keeper;
use crate::nft::pinholes::PinholeRule;
use crate::resolve;
use crate::sockets::Spec;
use message::Request;
use tables::{Due, Tables};

/// The hidden word of the command line by which the network process is started.
const NETWORK_PROCESS: &str = "network-process";
/// The same for a process that looks up one host name.
const RESOLVE: &str = "resolve-name";

/// The processes that `portferry run` starts; nothing if this is none of them.
pub(crate) fn part_of_run() -> Option<Result<(), Failure>> {
    let mut arguments = std::env::args_os().skip(1);
    let (word, of) = (arguments.next()?, arguments.next()?);
    match word.to_str()? {
        NETWORK_PROCESS => Some(network::run(of.into())),
        RESOLVE => Some(network::resolve(of.to_str()?)),
        _ => None,
    }
}

/// What does what needs a privilege.
pub(crate) struct Kernel(Kind);

enum Kind {
    Here { tables: Box<Tables>, keeper: Option<Keeper>, changes_kernel: bool },
    Apart(Client),
}

/// Opens sockets; as many of it as are wanted.
#[derive(Clone)]
pub(crate) enum Sockets {
    /// This process does it; the port of HTTP is this.
    Here(u16),
    /// The privileged process does it.
    Apart(Client),
}

impl Kernel {
    /// This process does it all; `changes_kernel` unless it is a demonstration.
    pub(crate) fn here(config: &Config, changes_kernel: bool) -> Self {
        Self(Kind::Here { tables: Box::new(Tables::new(config)), keeper: None, changes_kernel })
    }

    /// The privileged process does it.
    pub(crate) fn apart(client: Client) -> Self {
        Self(Kind::Apart(client))
    }

    /// The way to the privileged process, if that is another one.
    pub(crate) fn client(&self) -> Option<&Client> {
        match &self.0 {
            Kind::Here { .. } => None,
            Kind::Apart(client) => Some(client),
        }
    }

    /// What opens sockets.
    pub(crate) fn sockets(&self) -> Sockets {
        match &self.0 {
            Kind::Here { tables, .. } => Sockets::Here(tables.config().lan.http_port.0),
            Kind::Apart(client) => Sockets::Apart(client.clone()),
        }
    }

    /// The configuration of the file at `path`, read again.
    ///
    /// # Errors
    /// What is wrong with it, in words; nothing has changed.
    pub(crate) async fn configuration(&self, path: &Path) -> Result<Config, String> {
        match &self.0 {
            Kind::Here { .. } => Config::load(path).map_err(|error| error.to_string()),
            Kind::Apart(client) => {
                let text = client.configuration().await?;
                Config::parse(path, &text).map_err(|error| error.to_string())
            }
        }
    }

    /// Settings were read again and taken over.
    pub(crate) fn configure(&mut self, config: &Config) {
        if let Kind::Here { tables, keeper, .. } = &mut self.0 {
            tables.configure(config);
            if let Some(keeper) = keeper {
                keeper.configure(config);
            }
        }
    }

    /// Makes the tables, at the start, and looks after other firewalls' rules.
    ///
    /// # Errors
    /// A table that is needed cannot be made.
    pub(crate) async fn open(&mut self) -> Result<(), Failure> {
        match &mut self.0 {
            Kind::Here { changes_kernel: false, .. } => Ok(()),
            Kind::Here { tables, keeper, .. } => {
                tables.open().await?;
                *keeper = Keeper::start(tables.config()).await;
                Ok(())
            }
            Kind::Apart(client) => client.open().await,
        }
    }

    /// See [`Tables::due`]. Of tables that are not this process's it never resolves.
    pub(crate) async fn due(&mut self) -> Due {
        match &mut self.0 {
            Kind::Here { tables, .. } => tables.due().await,
            Kind::Apart(_) => std::future::pending().await,
        }
    }

    /// See [`Tables::attend`].
    pub(crate) async fn attend(&mut self, due: Due) {
        if let Kind::Here { tables, .. } = &mut self.0 {
            tables.attend(due).await;
        }
    }

    /// See [`Tables::forget`].
    pub(crate) async fn forget(&self, name: &str) {
        match &self.0 {
            Kind::Here { tables, .. } => tables.forget(name).await,
            Kind::Apart(client) => client.tell(Request::Forget(name.to_owned())).await,
        }
    }

    /// See [`Tables::follow`]. The privileged process asks the kernel itself for the addresses.
    pub(crate) async fn follow(&mut self, place: usize, way: usize, addresses: &[Ipv4Addr]) -> bool {
        match &mut self.0 {
            Kind::Here { tables, .. } => tables.follow(place, way, addresses.to_vec()).await,
            Kind::Apart(client) => client.follow(place, way).await,
        }
    }

    /// See [`Tables::change_nat`].
    pub(crate) async fn change_nat(&mut self, place: usize, change: NatChange) -> Result<(), NatFailure> {
        match &mut self.0 {
            Kind::Here { tables, .. } => tables.change_nat(place, change).await,
            Kind::Apart(client) => client.ask(Request::Nat { place, change }).await.nat(),
        }
    }

    /// See [`Tables::change_pinhole`].
    pub(crate) async fn change_pinhole(
        &mut self,
        place: usize,
        open: bool,
        rule: PinholeRule,
    ) -> Result<(), NatFailure> {
        match &mut self.0 {
            Kind::Here { tables, .. } => tables.change_pinhole(place, open, rule).await,
            Kind::Apart(client) => client.ask(Request::Pinhole { place, open, rule }).await.nat(),
        }
    }

    /// See [`Tables::pinhole_packets`].
    pub(crate) async fn pinhole_packets(&mut self, place: usize, rule: PinholeRule) -> Option<u32> {
        match &mut self.0 {
            Kind::Here { tables, .. } => tables.pinhole_packets(place, rule).await,
            Kind::Apart(client) => client.number(Request::Packets { place, rule }).await,
        }
    }

    /// After how many seconds without a packet connection tracking forgets a flow of this protocol that was answered.
    pub(crate) async fn idle_timeout(&self, protocol: u8) -> Option<u32> {
        match &self.0 {
            Kind::Here { .. } => Some(idle_timeout(protocol)),
            Kind::Apart(client) => client.number(Request::IdleTimeout { protocol }).await,
        }
    }

    /// See [`Tables::find_flow`].
    pub(crate) async fn find_flow(
        &mut self,
        place: usize,
        protocol: u8,
        internal: SocketAddrV4,
        remote: SocketAddrV4,
    ) -> Option<u16> {
        match &mut self.0 {
            Kind::Here { tables, .. } => tables.find_flow(place, protocol, internal, remote).await,
            Kind::Apart(client) => {
                let port = client.number(Request::Flow { place, protocol, internal, remote }).await;
                port.and_then(|port| port.try_into().ok())
            }
        }
    }

    /// The speed of the interface that an uplink uses, in Mbit/s, where the driver knows it.
    pub(crate) async fn speed(&self, place: usize, interface: &str) -> Option<u32> {
        match &self.0 {
            Kind::Here { .. } => speed(interface),
            Kind::Apart(client) => client.number(Request::Speed { place }).await,
        }
    }

    /// The addresses of a host name, beside the caller.
    pub(crate) fn resolve(&self, name: String) -> impl Future<Output = Vec<Ipv4Addr>> + Send + use<> {
        let client = self.client().cloned();
        async move {
            match client {
                None => resolve::addresses(&name).await,
                Some(client) => client.resolve(name).await,
            }
        }
    }

    /// The end: nothing is left in the kernel, unless the configuration keeps it.
    pub(crate) async fn close(&mut self) {
        match &mut self.0 {
            Kind::Here { tables, keeper, .. } => close(tables, keeper.take()).await,
            Kind::Apart(client) => client.tell(Request::Close).await,
        }
    }
}

impl Sockets {
    /// Opens one. `index` is the kernel's number of its interface, where this process knows it.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) async fn open(&self, spec: Spec, index: u32) -> io::Result<OwnedFd> {
        match self {
            Sockets::Here(http_port) => spec.open(index, *http_port),
            Sockets::Apart(client) => client.socket(spec).await,
        }
    }
}

/// What is kept over the stop goes on to let in what it lets in.
async fn close(tables: &mut Tables, keeper: Option<Keeper>) {
    let keep = tables.config().state.keep_on_stop;
    tables.end_flows().await;
    if let Some(keeper) = keeper {
        keeper.stop(keep).await;
    }
    if !keep {
        tables.close().await;
    }
}

/// The kernel's usual ones where it does not tell.
fn idle_timeout(protocol: u8) -> u32 {
    const UDP: u8 = 17;
    let (name, usual) = match protocol {
        UDP => ("udp_timeout_stream", 120),
        _ => ("tcp_timeout_established", 432_000),
    };
    let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"));
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(usual)
}

/// In Mbit/s; -1 where the driver does not know.
fn speed(interface: &str) -> Option<u32> {
    std::fs::read_to_string(format!("/sys/class/net/{interface}/speed")).ok()?.trim().parse().ok()
}
