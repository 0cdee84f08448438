//! What carries mappings out: the kernel's nftables, or sockets of the server itself.

use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;

use engine::provider::{Binding, NatChange, NatRefused};

use super::config::{self, Config};
use crate::exit::Failure;
use crate::memory_nat::MemoryPlane;
use crate::nft::provider as nft;

/// See the module's description.
pub enum Plane {
    /// The kernel.
    Nftables(nft::ProviderNat),
    /// Sockets.
    Memory(MemoryPlane),
}

impl Plane {
    /// Makes it, empty.
    ///
    /// # Errors
    /// Why it cannot be made, and what to do.
    pub async fn open(config: &Config, pool: &[Ipv4Addr]) -> Result<Self, Failure> {
        if config.nat.plane == config::Plane::Memory {
            return Ok(Self::Memory(MemoryPlane::default()));
        }
        let table = config.table(pool);
        nft::ProviderNat::open(table).await.map(Self::Nftables).map_err(|error| match error.kind() {
            ErrorKind::PermissionDenied => Failure::no_permission(format!(
                "the NAT's table cannot be made: {error}; run as root or with CAP_NET_ADMIN, or set nat.plane = \"memory\" to try out"
            )),
            _ => Failure::system(format!(
                "the NAT's table cannot be made: {error}; are the kernel modules nf_tables, nft_chain_nat and nft_masq there?"
            )),
        })
    }

    /// Carries out `changes` in order; what became of each.
    pub async fn apply(&mut self, changes: &[NatChange]) -> Vec<Result<(), NatRefused>> {
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
            Self::Nftables(nat) => {
                let steps: Vec<nft::Change> = changes.iter().map(step).collect();
                if nat.apply(&steps).await.is_ok() {
                    return vec![Ok(()); changes.len()];
                }
                // One of them is refused, and takes the others with it.
                let mut outcomes = Vec::with_capacity(changes.len());
                for one in &steps {
                    outcomes.push(match nat.apply(std::slice::from_ref(one)).await {
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

    /// Looks whether it is still there.
    pub async fn heal(&mut self) {
        if let Self::Nftables(nat) = self
            && let Err(error) = nat.heal().await
        {
            tracing::warn!("the NAT's table cannot be looked at: {error}; trying again");
        }
    }

    /// Other settings or external addresses.
    pub async fn reconfigure(&mut self, config: &Config, pool: &[Ipv4Addr]) {
        if let Self::Nftables(nat) = self {
            let new = config.table(pool);
            if new != *nat.config()
                && let Err(error) = nat.reconfigure(new).await
            {
                tracing::warn!("the NAT's table stays as it was: {error}");
            }
        }
    }

    /// Takes everything away.
    pub async fn clear(&mut self) {
        if let Self::Nftables(nat) = self
            && let Err(error) = nat.clear().await
        {
            tracing::warn!("the NAT's table could not be deleted: {error}; `nft delete table` does it");
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

fn refused(what: &str, error: &io::Error) -> NatRefused {
    tracing::debug!("{what}: {error}");
    match error.kind() {
        ErrorKind::OutOfMemory | ErrorKind::StorageFull | ErrorKind::QuotaExceeded => NatRefused::Full,
        _ => NatRefused::Failed,
    }
}

fn step(change: &NatChange) -> nft::Change {
    match change {
        NatChange::Open(new) => nft::Change::Open(binding(new)),
        NatChange::Replace { old, new } => nft::Change::Replace { old: binding(old), new: binding(new) },
        NatChange::Close(old) => nft::Change::Close(binding(old)),
    }
}

fn binding(binding: &Binding) -> nft::Binding {
    let filters = binding.filters.iter().map(|filter| nft::Filter {
        prefix: filter.remote_addr.into(),
        len: filter.prefix_len,
        port: filter.remote_port,
    });
    nft::Binding {
        protocol: binding.protocol.0,
        softwire: binding.inside.softwire,
        internal: (binding.inside.addr, binding.internal_port).into(),
        external: binding.external,
        ports: binding.ports,
        filters: filters.collect(),
        peer: binding.peer,
    }
}
