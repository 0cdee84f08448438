//! This router's own NAT: the engine's changes of it become rules in the kernel.

use engine::gateways::Place;
use engine::nat::{NatChange, NatFailure, NatRule};

use super::uplink::Uplink;
use super::{RETRY, Shell};
use crate::clock::now;
use crate::config::Config;
use crate::exit::Failure;
use crate::nft::{Change, MAX_CHANGES, Nat1Rule, Nft, TableConfig, port_is_free};

impl Shell {
    /// The way to the Internet is by another interface: so is the way in.
    pub(super) async fn move_nat(&mut self, place: Place) {
        let uplink = &mut self.uplinks[place];
        let Some(before) = uplink.nft.as_ref().map(|nft| nft.config().clone()) else { return };
        let table = TableConfig { wan_interface: uplink.interface().to_owned(), ..before };
        let Some(nft) = &mut uplink.nft else { return };
        if let Err(error) = make_anew(nft, table).await {
            tracing::warn!(
                "the table of this router's NAT could not be made for {}: {error}; trying again",
                uplink.interface()
            );
            self.retry = Some(now() + RETRY);
        }
    }

    pub(super) async fn change_nat(&mut self, place: Place, change: NatChange) -> Result<(), NatFailure> {
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
        let Some(nft) = &mut self.uplinks[place].nft else {
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
            result = make_anew(nft, nft.config().clone()).await;
            if result.is_ok() {
                tracing::warn!("the table of this router's NAT was gone (nft flush ruleset?); made anew");
                result = nft.apply(&[change]).await;
            }
        }
        result.map_err(|error| NatFailure::Kernel(error.to_string()))
    }
}

fn table(config: &Config, uplink: &Uplink) -> TableConfig {
    TableConfig {
        name: uplink.line.table.clone(),
        wan_interface: uplink.interface().to_owned(),
        lan_interfaces: config.lan.interfaces.0.iter().map(|name| name.0.clone()).collect(),
        forward_filter: config.nat.forward_filter,
        masquerade: config.nat.masquerade,
    }
}

pub(super) async fn open_nft(config: &Config, uplink: &Uplink) -> Result<Nft, Failure> {
    Nft::open(table(config, uplink)).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => Failure::no_permission(
            "changing nftables needs root or CAP_NET_ADMIN; run as root, or set wan.nat = \"none\" if this router has no NAT",
        ),
        _ => Failure::system(format!("cannot set up nftables: {error}")),
    })
}

/// Makes the table anew, with everything that was in it.
async fn make_anew(nft: &mut Nft, table: TableConfig) -> std::io::Result<()> {
    let rules: Vec<Change> = nft.rules().map(Change::Add).collect();
    *nft = Nft::open(table).await?;
    for some in rules.chunks(MAX_CHANGES) {
        nft.apply(some).await?;
    }
    Ok(())
}

fn nat1(rule: NatRule) -> Nat1Rule {
    Nat1Rule {
        protocol: rule.protocol.0,
        external_port: rule.port,
        internal: rule.internal,
        remote_peer: rule.remote_peer,
    }
}
