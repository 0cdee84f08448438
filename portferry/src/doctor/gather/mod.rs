//! Looks at the machine and its networks, and judges nothing. What it sends makes no state anywhere, but for the probe mapping,
//! which is deleted again.

mod clients;
mod firewall;
mod gateway;
mod igd;
mod probe;
mod system;
mod uplink;

use std::net::{IpAddr, Ipv4Addr};
use std::task::Poll;

use engine::policy::InterfaceAddress;
use engine::prefix::Prefix;

use super::facts::{Facts, Gateway, Leaving, Role, Setup};
use crate::config::Config;
use crate::exit::Failure;
use crate::netlink::{Netlink, Snapshot};

/// Somebody in the Internet, as far as routes are concerned; nothing is sent there. Servers of the root zone, for which no router has a
/// route of its own as it may for a resolver that it knows.
const STRANGERS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(193, 0, 14, 129), Ipv4Addr::new(199, 7, 83, 42), Ipv4Addr::new(198, 41, 0, 4)];

/// Everything.
///
/// # Errors
/// The system does not even tell its interfaces; or somebody did not want to wait.
pub(crate) async fn gather(config: &Config) -> Result<Facts, Failure> {
    let setup = Setup::of(config);
    let links = snapshot().await?;
    let socket = &config.control.socket;
    let mut gateway = gateway::ask(socket);
    let (rules, legacy) = firewall::read(&setup).await;
    let foreign = firewall::foreign(&setup).await;
    let (clients, neighbours, control_points, uplinks) = tokio::join!(
        clients::knock(&gateway),
        igd::neighbours(&setup, &links),
        igd::control_points(&setup, &links, &gateway),
        uplink::all(config, &setup, &links, &gateway)
    );
    gateway::ask_again(&mut gateway, socket);
    let uplinks = probe::all(&setup, &links, &gateway, uplinks).await?;
    let port = setup.http_port;
    Ok(Facts {
        gateway,
        ports: system::ports(&setup),
        rules,
        legacy,
        foreign,
        ssdp: system::holders(&["udp"], wire::ssdp::PORT, false),
        http: system::holders(&["tcp", "tcp6"], port, true),
        joined: system::joined(wire::ssdp::GROUP_V4),
        uplinks,
        leaving: leaving(&setup, &links).await,
        way_out: way_out(&setup, &links).await,
        neighbours,
        control_points,
        clients,
        links,
        setup,
    })
}

/// By which interface a host of each bound prefix leaves, if it is on the LAN.
async fn leaving(setup: &Setup, links: &Snapshot) -> Vec<Leaving> {
    let Ok(mut netlink) = Netlink::open() else { return Vec::new() };
    let mut all = Vec::new();
    for uplink in &setup.uplinks {
        let Role::Bound(hosts) = &uplink.role else { continue };
        for prefix in hosts {
            let Some((host, arriving)) = a_host(setup, links, *prefix) else { continue };
            let Ok(way) = way(&mut netlink, host, arriving).await else { continue };
            let interface = way.map(|index| name(links, index));
            all.push(Leaving { prefix: *prefix, host, bound_to: uplink.interface.clone(), interface });
        }
    }
    all
}

/// By which interface a host leaves that is bound to no uplink: the first address of the LAN that is nobody's but a host's.
async fn way_out(setup: &Setup, links: &Snapshot) -> Option<String> {
    let (host, arriving) = an_unbound_host(setup, links)?;
    let way = way(&mut Netlink::open().ok()?, host, arriving).await.ok()?;
    way.map(|index| name(links, index))
}

/// The interface, or none if the host gets nowhere.
async fn way(netlink: &mut Netlink, host: Ipv4Addr, arriving: u32) -> std::io::Result<Option<u32>> {
    for stranger in STRANGERS {
        if let Some(index) = netlink.way_of(host, arriving, stranger).await? {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

fn an_unbound_host(setup: &Setup, links: &Snapshot) -> Option<(Ipv4Addr, u32)> {
    let is_bound = |host: Ipv4Addr| {
        setup.uplinks.iter().any(|uplink| match &uplink.role {
            Role::Bound(hosts) => hosts.iter().any(|prefix| prefix.contains(host.into())),
            Role::Usual | Role::Spare => false,
        })
    };
    let lans = setup.lan.iter().filter_map(|lan| links.interfaces.iter().find(|found| found.name == *lan));
    lans.into_iter().find_map(|interface| {
        interface.addresses.iter().find_map(|&(own, prefix_len)| {
            let IpAddr::V4(network) = Prefix::new(own, prefix_len).first() else { return None };
            let link = InterfaceAddress { addr: own, prefix_len };
            let candidates = (1..=512).map(|n| Ipv4Addr::from(u32::from(network).saturating_add(n)));
            let mut hosts = candidates.take_while(|&host| link.contains(host.into()));
            let host = hosts.find(|&host| IpAddr::V4(host) != own && !is_bound(host))?;
            Some((host, interface.index))
        })
    })
}

/// An address of the prefix that a host may have, and the LAN interface that it is on.
fn a_host(setup: &Setup, links: &Snapshot, prefix: Prefix) -> Option<(Ipv4Addr, u32)> {
    let IpAddr::V4(first) = prefix.first() else { return None };
    let links = setup.lan.iter().filter_map(|lan| links.interfaces.iter().find(|found| found.name == *lan));
    links.into_iter().find_map(|interface| {
        interface.addresses.iter().find_map(|&(own, prefix_len)| {
            let link = InterfaceAddress { addr: own, prefix_len };
            // The first few, but for the network's own and the router's.
            let candidates = (0..4).map(|n| Ipv4Addr::from(u32::from(first).saturating_add(n)));
            let mut hosts = candidates.filter(|&host| {
                let inside = prefix.contains(host.into()) && link.contains(host.into());
                inside && IpAddr::V4(host) != own && (prefix.bits() == 32 || host != first)
            });
            Some((hosts.next()?, interface.index))
        })
    })
}

fn name(links: &Snapshot, index: u32) -> String {
    let found = links.interfaces.iter().find(|interface| interface.index == index);
    found.map_or_else(|| format!("interface {index}"), |interface| interface.name.clone())
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

/// Whether the gateway itself asks by UPnP at this uplink, so that no server is there to be asked.
fn asks_by_upnp(gateway: &Gateway, interface: &str) -> bool {
    gateway.uplink(interface).is_some_and(|status| status.protocol.as_deref() == Some("UPnP IGD"))
}

/// All of it at once; what comes of each, in this order.
async fn together<F: Future>(work: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut all: Vec<_> = work.into_iter().map(|one| (Box::pin(one), None)).collect();
    std::future::poll_fn(|context| {
        for (one, output) in &mut all {
            if output.is_none()
                && let Poll::Ready(ready) = one.as_mut().poll(context)
            {
                *output = Some(ready);
            }
        }
        if all.iter().all(|(_, output)| output.is_some()) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    all.into_iter().filter_map(|(_, output)| output).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Interface;

    #[tokio::test]
    async fn at_once_and_in_order() {
        let began = std::time::Instant::now();
        let one = |time: u64| async move {
            tokio::time::sleep(std::time::Duration::from_millis(time)).await;
            time
        };
        assert_eq!(together([300, 100, 200].map(one)).await, [300, 100, 200]);
        assert!(began.elapsed().as_millis() < 600);
    }

    #[test]
    fn a_host_that_is_bound_to_no_uplink() {
        let config = "[lan]\ninterfaces = [\"br-lan\"]\n[wan]\ninterface = \"wan0\"\n";
        let of = |more: &str| {
            let config = Config::parse(std::path::Path::new("x"), &format!("{config}{more}")).unwrap();
            let addresses = vec![("192.168.77.1".parse().unwrap(), 24)];
            let lan = Interface { index: 3, name: "br-lan".to_owned(), up: true, addresses, mac: None };
            let links = Snapshot { interfaces: vec![lan], ..Snapshot::default() };
            an_unbound_host(&Setup::of(&config), &links)
        };
        let extra = |hosts: &str| format!("[[uplink.extra]]\ninterface = \"wg0\"\nhosts = [\"{hosts}\"]\n");
        assert_eq!(of(""), Some(([192, 168, 77, 2].into(), 3)));
        assert_eq!(of(&extra("192.168.77.0/28")), Some(([192, 168, 77, 16].into(), 3)));
        assert_eq!(of(&extra("192.168.77.0/24")), None);
    }
}
