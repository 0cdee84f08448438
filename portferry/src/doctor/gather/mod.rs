//! Looks at the machine and its networks, and judges nothing. What it sends makes no state anywhere, but for the probe mapping,
//! which is deleted again.

mod clients;
mod firewall;
mod gateway;
mod igd;
mod probe;
mod system;
mod uplink;

use std::path::Path;

use super::facts::{Facts, Gateway, Setup};
use crate::config::Config;
use crate::exit::Failure;
use crate::netlink::{Netlink, Snapshot};

/// Everything.
///
/// # Errors
/// The system does not even tell its interfaces.
pub(crate) async fn gather(config: &Config) -> Result<Facts, Failure> {
    let setup = Setup::of(config);
    let links = snapshot().await?;
    let socket = &config.control.socket;
    let mut gateway = gateway::ask(socket);
    let (rules, legacy) = firewall::read().await;
    let (clients, neighbours, control_points, uplinks) = tokio::join!(
        clients::knock(&gateway),
        igd::neighbours(&setup, &links),
        igd::control_points(&setup, &links, &gateway),
        uplink::all(config, &setup, &links, &gateway)
    );
    gateway::ask_again(&mut gateway, socket);
    let uplinks = probe::all(&setup, &links, &gateway, uplinks).await;
    let port = setup.http_port;
    Ok(Facts {
        gateway,
        forwarding: system::forwarding(),
        ports: system::ports(&setup),
        rules,
        legacy,
        ssdp: system::holders(Path::new("/proc/net/udp"), wire::ssdp::PORT, false),
        http: system::holders(Path::new("/proc/net/tcp"), port, true),
        joined: system::joined(wire::ssdp::GROUP_V4),
        uplinks,
        neighbours,
        control_points,
        clients,
        links,
        setup,
    })
}

async fn snapshot() -> Result<Snapshot, Failure> {
    let failed = |error| Failure::system(format!("cannot read the system's interfaces: {error}"));
    Netlink::open().map_err(failed)?.snapshot().await.map_err(failed)
}

/// The router's IPv4 address on an interface, the first.
fn own_address(links: &Snapshot, name: &str) -> Option<std::net::Ipv4Addr> {
    let interface = links.interfaces.iter().find(|interface| interface.name == name)?;
    interface.addresses.iter().find_map(|(addr, _)| match addr {
        std::net::IpAddr::V4(addr) => Some(*addr),
        std::net::IpAddr::V6(_) => None,
    })
}

/// Whether the gateway itself asks by UPnP, so that no server is there to be asked.
fn asks_by_upnp(gateway: &Gateway) -> bool {
    gateway.status().is_some_and(|status| status.usual.protocol.as_deref() == Some("UPnP IGD"))
}
