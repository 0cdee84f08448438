//! This router's own NAT: the engine's changes of it become rules in the kernel.

use std::net::SocketAddrV4;

use engine::gateways::Place;
use engine::nat::{NatChange, NatFailure, NatRule};

use super::Shell;
use super::uplink::Uplink;
use crate::config::Config;
use crate::exit::Failure;
use crate::nft::{Change, MAX_CHANGES, Nat1Rule, Nft, TableConfig, port_is_free};

impl Shell {
    /// When the way to the Internet is by another interface, so is the way in; by its addresses LAN hosts come back to each
    /// other, and by the interfaces that are the LAN's. True if it is as it should be.
    pub(super) async fn move_nat(&mut self, place: Place) -> bool {
        let uplink = &mut self.uplinks[place];
        let table = table(&self.config, uplink);
        let Some(nft) = &mut uplink.nft else { return true };
        if *nft.config() == table {
            return true;
        }
        let readdressed = TableConfig { wan_addresses: table.wan_addresses.clone(), ..nft.config().clone() };
        // The addresses alone are two sets.
        if readdressed == table && nft.readdress(table.wan_addresses.clone()).await.is_ok() {
            return true;
        }
        let made = make_anew(nft, table).await;
        if let Err(error) = &made {
            tracing::warn!(
                "the table of this router's NAT could not be made for {}: {error}; trying again",
                uplink.interface()
            );
        }
        made.is_ok()
    }

    pub(super) async fn change_nat(&mut self, place: Place, change: NatChange) -> Result<(), NatFailure> {
        if let NatChange::Reserve { protocol, port, addr } = change {
            let free = port_is_free(protocol.0, addr, port);
            return if free { Ok(()) } else { Err(NatFailure::PortInUse) };
        }
        let uplink = &mut self.uplinks[place];
        let Some(nft) = &mut uplink.nft else {
            return Err(NatFailure::Kernel("there is no NAT table".to_owned()));
        };
        let change = match change {
            NatChange::Reserve { .. } => return Ok(()), // answered above
            NatChange::Install { rule, external } => Change::Add(nat1(rule, external)),
            NatChange::Replace { old, new, external } => {
                let (old, new) = (nat1(old, None), nat1(new, external));
                if nft.holds(&old) { Change::Replace { old, new } } else { Change::Add(new) }
            }
            NatChange::Move { protocol, port, external } => match nft.at(protocol.0, port).next() {
                Some(rule) => Change::Add(Nat1Rule { outermost: external, ..rule }),
                None => return Ok(()),
            },
            NatChange::Remove(rule) => match nat1(rule, None) {
                // It is not there, as it should be.
                old if !nft.holds(&old) => return Ok(()),
                old => Change::Remove(old),
            },
        };
        let mut result = nft.apply(&[change]).await;
        if result.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
            (_, result) = make_all_anew(uplink).await;
            if let (Ok(()), Some(nft)) = (&result, &mut uplink.nft) {
                result = nft.apply(&[change]).await;
            }
        }
        result.map_err(|error| NatFailure::Kernel(error.to_string()))
    }

    /// By which port of the WAN's addresses a flow leaves; where the kernel does not tell, it is as if there were none.
    pub(super) async fn find_flow(
        &mut self,
        place: Place,
        protocol: u8,
        internal: SocketAddrV4,
        remote: SocketAddrV4,
    ) -> Option<u16> {
        let nft = self.uplinks[place].nft.as_mut()?;
        let found = nft.leaves_by(protocol, internal, remote).await;
        found.unwrap_or_else(|error| {
            tracing::debug!("by which port a flow leaves: {error}");
            None
        })
    }
}

fn table(config: &Config, uplink: &Uplink) -> TableConfig {
    TableConfig {
        name: uplink.line.table.clone(),
        wan_interface: uplink.interface().to_owned(),
        spare_interfaces: uplink.others().map(str::to_owned).collect(),
        wan_addresses: uplink.addresses.clone(),
        lan_interfaces: config.lan.interfaces.0.iter().map(|name| name.0.clone()).collect(),
        forward_filter: config.nat.forward_filter,
        masquerade: config.nat.masquerade,
        hairpin: config.nat.hairpin,
        mark: Some(config.mark()).filter(|mark| *mark != 0),
    }
}

pub(super) async fn open_nft(config: &Config, uplink: &Uplink) -> Result<Nft, Failure> {
    Nft::open(table(config, uplink)).await.map_err(|error| failure(&error))
}

pub(super) fn failure(error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => Failure::no_permission(
            "changing nftables needs root or CAP_NET_ADMIN; run as root, or set wan.nat = \"none\" if this router has no NAT",
        ),
        _ => Failure::system(format!("cannot set up nftables: {error}")),
    }
}

/// Somebody flushed the whole ruleset, as a restarted firewall does. Whether the table of the pinholes is there again, and whether
/// that of the NAT is: one's failure is no reason to leave the other away.
pub(super) async fn make_all_anew(uplink: &mut Uplink) -> (std::io::Result<()>, std::io::Result<()>) {
    let pinholes = match &mut uplink.pinholes {
        Some(pinholes) => pinholes.reconfigure(pinholes.config().clone()).await,
        None => Ok(()),
    };
    let nat = match &mut uplink.nft {
        Some(nft) => make_anew(nft, nft.config().clone()).await,
        None => Ok(()),
    };
    let table = &uplink.line.table;
    match pinholes.as_ref().and(nat.as_ref()) {
        Ok(()) => tracing::warn!("nftables table {table} was gone (nft flush ruleset?); made anew"),
        Err(error) => tracing::warn!(
            "nftables table {table} was gone (nft flush ruleset?) and could not be made anew: {error}"
        ),
    }
    (pinholes, nat)
}

/// Makes the table anew, with everything that was in it.
async fn make_anew(nft: &mut Nft, table: TableConfig) -> std::io::Result<()> {
    let rules: Vec<Change> = nft.rules().map(Change::Add).collect();
    let mut new = Nft::open(table).await?;
    for some in rules.chunks(MAX_CHANGES) {
        new.apply(some).await?;
    }
    // Not before: should it fail half way, what belongs into it is still known.
    *nft = new;
    Ok(())
}

fn nat1(rule: NatRule, outermost: Option<SocketAddrV4>) -> Nat1Rule {
    Nat1Rule {
        protocol: rule.protocol.0,
        external_port: rule.port,
        internal: rule.internal,
        remote_peer: rule.remote_peer,
        outermost,
    }
}
