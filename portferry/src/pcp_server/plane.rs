//! What carries mappings out: the kernel's nftables, or sockets of the server itself.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use engine::provider::{Binding, FlowQuery, NatChange, NatRefused};

use super::config::{self, Config};
use super::served::is_served;
use crate::exit::Failure;
use crate::memory_nat::MemoryPlane;
use crate::nft::{port_is_free, provider as nft};

/// See the module's description.
pub enum Plane {
    /// The kernel.
    Nftables(Box<Kernel>),
    /// Sockets.
    Memory(MemoryPlane),
}

/// The kernel's table.
pub struct Kernel {
    nat: nft::ProviderNat,
    /// The external addresses, as clients are told and as packets have them.
    pool: Vec<(Ipv4Addr, Ipv4Addr)>,
}

impl Plane {
    /// Makes it, empty.
    ///
    /// # Errors
    /// Why it cannot be made, and what to do.
    pub async fn open(config: &Config, pool: Vec<(Ipv4Addr, Ipv4Addr)>) -> Result<Self, Failure> {
        if config.nat.plane == config::Plane::Memory {
            return Ok(Self::Memory(MemoryPlane::default()));
        }
        let table = config.table(&on_the_wire(&pool));
        nft::ProviderNat::open(table).await.map(|nat| Self::Nftables(Box::new(Kernel { nat, pool }))).map_err(|error| match error.kind() {
            ErrorKind::PermissionDenied => Failure::no_permission(format!(
                "the NAT's table cannot be made: {error}; run as root or with CAP_NET_ADMIN, or set nat.plane = \"memory\" to try out"
            )),
            _ => Failure::system(format!(
                "the NAT's table cannot be made: {error}; are the kernel modules nf_tables, nft_chain_nat and nft_masq there?"
            )),
        })
    }

    /// Carries out `changes` in order; what became of each. `again`: they were all there before, so nobody else's ports are taken.
    pub async fn apply(&mut self, changes: &[NatChange], again: bool) -> Vec<Result<(), NatRefused>> {
        match self {
            Self::Memory(plane) => {
                let mut outcomes = Vec::with_capacity(changes.len());
                for change in changes {
                    outcomes.push(
                        plane.change(change).await.map_err(|error| refused("the mapping's socket", &error)),
                    );
                }
                outcomes
            }
            Self::Nftables(kernel) => {
                let Kernel { nat, pool } = &mut **kernel;
                let steps: Vec<nft::Change> = changes.iter().map(|change| step(change, pool)).collect();
                let taken: Vec<bool> = steps.iter().map(|step| !again && is_taken(step)).collect();
                if !taken.contains(&true) {
                    match nat.change(&steps).await {
                        Ok(()) => return vec![Ok(()); changes.len()],
                        Err(error) if is_about_one(error.kind()) => {}
                        Err(error) => return vec![Err(refused("the NAT's table", &error)); changes.len()],
                    }
                }
                // One of them is refused, and would take the others with it.
                let mut outcomes = Vec::with_capacity(changes.len());
                for (one, taken) in steps.iter().zip(taken) {
                    if taken {
                        outcomes.push(Err(NatRefused::Taken));
                        continue;
                    }
                    outcomes.push(match nat.change(std::slice::from_ref(one)).await {
                        // It is not there, as it should be.
                        Err(error)
                            if error.kind() == ErrorKind::NotFound
                                && matches!(one, nft::Change::Close(_)) =>
                        {
                            Ok(())
                        }
                        outcome => outcome.map_err(|error| refused("the NAT's table", &error)),
                    });
                }
                outcomes
            }
        }
    }

    /// Where flows go out that hosts have begun by themselves, as clients are told; `None`: there is none, or it is not known.
    pub async fn flows(&mut self, flows: &[FlowQuery]) -> Vec<Option<SocketAddrV4>> {
        let unknown = vec![None; flows.len()];
        // The memory plane translates nobody but by a mapping.
        let Self::Nftables(kernel) = self else { return unknown };
        let questions: Vec<nft::FlowFrom> = flows.iter().map(flow_from).collect();
        match kernel.nat.flows(&questions).await {
            Ok(places) => places.into_iter().map(|place| told(&kernel.pool, place?)).collect(),
            Err(error) => {
                tracing::debug!("where flows go out: {error}");
                unknown
            }
        }
    }

    /// Whether there are flows to look at that ended mappings have left.
    pub fn wants_sweep(&self) -> bool {
        matches!(self, Self::Nftables(kernel) if kernel.nat.wants_sweep())
    }

    /// Looks at them.
    pub async fn sweep(&mut self) {
        if let Self::Nftables(kernel) = self {
            kernel.nat.sweep().await;
        }
    }

    /// Datagrams for the PCP server that have come from outside and were dropped.
    pub async fn strangers(&mut self) -> u64 {
        match self {
            Self::Nftables(kernel) => kernel.nat.strangers().await,
            Self::Memory(_) => 0, // it has no outside interface
        }
    }

    /// Looks whether it is still there.
    pub async fn heal(&mut self) {
        if let Self::Nftables(kernel) = self
            && let Err(error) = kernel.nat.heal().await
        {
            tracing::warn!("the NAT's table cannot be looked at: {error}; trying again");
        }
    }

    /// Whether an external address is another one on the wire than the mappings in the table have.
    pub fn stands_elsewhere(&self, pool: &[(Ipv4Addr, Ipv4Addr)]) -> bool {
        let Self::Nftables(kernel) = self else { return false };
        kernel.pool.iter().any(|&(told, own)| on_the_wire_of(pool, told) != own)
    }

    /// Other settings or external addresses; false when the kernel refuses.
    pub async fn reconfigure(&mut self, config: &Config, pool: Vec<(Ipv4Addr, Ipv4Addr)>) -> bool {
        if let Self::Nftables(kernel) = self {
            let new = config.table(&on_the_wire(&pool));
            if new != *kernel.nat.config()
                && let Err(error) = kernel.nat.reconfigure(new).await
            {
                tracing::warn!("the NAT's table cannot be changed: {error}; trying again");
                return false;
            }
            kernel.pool = pool;
        }
        true
    }

    /// Takes everything away.
    pub async fn clear(&mut self) {
        if let Self::Nftables(kernel) = self
            && let Err(error) = kernel.nat.clear().await
        {
            let name = &kernel.nat.config().name;
            tracing::warn!(
                "the NAT's table could not be deleted: {error}; `nft delete table inet {name}` does it"
            );
        }
    }
}

/// How large a change is, as [`nft::MAX_PORTS`] counts: the ports of the old and the new mapping, and each filter of one again.
#[must_use]
pub fn ports(change: &NatChange) -> usize {
    let of = |binding: &Binding| usize::from(binding.ports) * (1 + binding.filters.len());
    match change {
        NatChange::Open(binding) | NatChange::Close(binding) => of(binding),
        NatChange::Replace { old, new } => of(old) + of(new),
    }
}

/// Whether one of several changes is refused, and takes the others with it.
fn is_about_one(kind: ErrorKind) -> bool {
    !matches!(kind, ErrorKind::TimedOut | ErrorKind::PermissionDenied | ErrorKind::Unsupported)
}

/// Whether a program of this machine has one of the ports that are to lead inside: its packets would not reach it any more. Of
/// all ports at once nobody asks that, for they are meant to be all. Most ports can be bound, which is told in no time; the
/// kernel's list of sockets takes milliseconds.
fn is_taken(change: &nft::Change) -> bool {
    let nft::Change::Open(nft::Binding {
        protocol: protocol @ (6 | 17),
        external: SocketAddr::V4(external),
        ports,
        peer: None,
        ..
    }) = change
    else {
        return false;
    };
    let first = external.port();
    first != 0
        && (first..=first.saturating_add(ports - 1)).any(|port| {
            !port_is_free(*protocol, *external.ip(), port) && is_served(*protocol, *external.ip(), port)
        })
}

fn refused(what: &str, error: &io::Error) -> NatRefused {
    tracing::debug!("{what}: {error}");
    match error.kind() {
        ErrorKind::OutOfMemory | ErrorKind::StorageFull | ErrorKind::QuotaExceeded => NatRefused::Full,
        ErrorKind::AddrInUse => NatRefused::Taken,
        ErrorKind::InvalidInput => NatRefused::Unfit,
        _ => NatRefused::Failed,
    }
}

fn on_the_wire(pool: &[(Ipv4Addr, Ipv4Addr)]) -> Vec<Ipv4Addr> {
    pool.iter().map(|&(_, own)| own).collect()
}

fn on_the_wire_of(pool: &[(Ipv4Addr, Ipv4Addr)], told: Ipv4Addr) -> Ipv4Addr {
    pool.iter().find(|pair| pair.0 == told).map_or(told, |pair| pair.1)
}

fn told(pool: &[(Ipv4Addr, Ipv4Addr)], place: SocketAddrV4) -> Option<SocketAddrV4> {
    let told = pool.iter().find(|pair| pair.1 == *place.ip())?.0;
    Some(SocketAddrV4::new(told, place.port()))
}

fn flow_from(flow: &FlowQuery) -> nft::FlowFrom {
    nft::FlowFrom {
        protocol: flow.protocol.0,
        internal: (flow.inside.addr, flow.internal_port).into(),
        remote: flow.remote,
    }
}

fn step(change: &NatChange, pool: &[(Ipv4Addr, Ipv4Addr)]) -> nft::Change {
    match change {
        NatChange::Open(new) => nft::Change::Open(binding(new, pool)),
        NatChange::Replace { old, new } => {
            nft::Change::Replace { old: binding(old, pool), new: binding(new, pool) }
        }
        NatChange::Close(old) => nft::Change::Close(binding(old, pool)),
    }
}

fn binding(binding: &Binding, pool: &[(Ipv4Addr, Ipv4Addr)]) -> nft::Binding {
    let external = match binding.external {
        SocketAddr::V4(told) => (on_the_wire_of(pool, *told.ip()), told.port()).into(),
        pinhole @ SocketAddr::V6(_) => pinhole,
    };
    let filters = binding.filters.iter().map(|filter| nft::Filter {
        prefix: filter.remote_addr.into(),
        len: filter.prefix_len,
        port: filter.remote_port,
    });
    nft::Binding {
        protocol: binding.protocol.0,
        softwire: binding.inside.softwire,
        internal: (binding.inside.addr, binding.internal_port).into(),
        external,
        ports: binding.ports,
        filters: filters.collect(),
        peer: binding.peer,
    }
}
