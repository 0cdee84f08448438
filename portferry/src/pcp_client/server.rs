//! Which server is meant: the one that was named, or the system's default router.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use wire::pcp::SERVER_PORT;

use super::parse::ServerName;
use crate::exit::Failure;
use crate::netlink::{Netlink, Snapshot};

/// The server's address with its port and, for a link-local address, its interface.
pub(super) async fn find(name: Option<&ServerName>, source: Option<IpAddr>) -> Result<SocketAddr, Failure> {
    if let Some(ServerName { addr, port, zone: None }) = name {
        if let IpAddr::V6(v6) = addr
            && v6.is_unicast_link_local()
        {
            return Err(Failure::usage(format!("{addr} is on every link: name the interface, {addr}%eth0")));
        }
        return Ok(SocketAddr::new(*addr, *port));
    }
    let no_netlink = |error| Failure::system(format!("cannot read the system's routes: {error}"));
    let snapshot = Netlink::open().map_err(no_netlink)?.snapshot().await.map_err(no_netlink)?;
    choose(&snapshot, name, source)
}

fn choose(
    snapshot: &Snapshot,
    name: Option<&ServerName>,
    source: Option<IpAddr>,
) -> Result<SocketAddr, Failure> {
    match name {
        Some(ServerName { addr, port, zone }) => {
            let zone = zone.as_deref().unwrap_or_default();
            let index = index(snapshot, zone)
                .ok_or_else(|| Failure::usage(format!("there is no interface {zone}: see `ip link`")))?;
            Ok(with_scope(*addr, *port, index))
        }
        None => {
            // RFC 6887 §8.1: the default routers, in the order of their metrics; IPv4 first unless IPv6 is sent from.
            let wanted = |addr: &IpAddr| source.is_none_or(|source| source.is_ipv4() == addr.is_ipv4());
            let routes = snapshot.default_routes.iter();
            let routers = routes.filter_map(|route| Some((route.gateway.filter(wanted)?, route.interface)));
            let (addr, interface) = routers.min_by_key(|(addr, _)| addr.is_ipv6()).ok_or_else(|| {
                Failure::unavailable("there is no default router to ask: name the server with --server ADDR")
            })?;
            Ok(with_scope(addr, SERVER_PORT, interface))
        }
    }
}

fn index(snapshot: &Snapshot, zone: &str) -> Option<u32> {
    let named = snapshot.interfaces.iter().find(|interface| interface.name == zone);
    named.map(|interface| interface.index).or_else(|| zone.parse().ok())
}

/// The interface counts for link-local addresses only.
fn with_scope(addr: IpAddr, port: u16, interface: u32) -> SocketAddr {
    match addr {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => SocketAddrV6::new(v6, port, 0, interface).into(),
        other => SocketAddr::new(other, port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{DefaultRoute, Interface};
    use crate::pcp_client::parse;

    fn snapshot(gateways: &[&str]) -> Snapshot {
        let interface = Interface { index: 2, name: "wan0".into(), up: true, addresses: vec![], mac: None };
        let route = |gateway: &&str| DefaultRoute {
            is_ipv6: false,
            table: 254,
            interface: 2,
            gateway: Some(gateway.parse().unwrap()),
            metric: 100,
        };
        Snapshot {
            interfaces: vec![interface],
            default_routes: gateways.iter().map(route).collect(),
            ..Snapshot::default()
        }
    }

    #[test]
    fn the_default_router_of_the_family_that_is_sent_from() {
        let both = snapshot(&["fe80::1", "192.0.2.1", "192.0.2.2"]);
        let find = |source: Option<&str>| {
            choose(&both, None, source.map(|addr| addr.parse().unwrap()))
                .map(|addr| addr.to_string())
                .unwrap()
        };
        assert_eq!(find(None), "192.0.2.1:5351");
        assert_eq!(find(Some("192.0.2.9")), "192.0.2.1:5351");
        assert_eq!(find(Some("2001:db8::9")), "[fe80::1%2]:5351");
        let failure = choose(&snapshot(&[]), None, None).unwrap_err();
        assert!(failure.to_string().contains("--server"));
        assert_eq!(failure.code(), 69, "nothing is wrong with the command line");
    }

    #[test]
    fn a_link_local_server_by_its_interface() {
        let find = |text: &str| choose(&snapshot(&[]), Some(&parse::server(text).unwrap()), None);
        assert_eq!(find("fe80::1%wan0").unwrap().to_string(), "[fe80::1%2]:5351");
        assert_eq!(find("[fe80::1%7]:53510").unwrap().to_string(), "[fe80::1%7]:53510");
        assert!(find("fe80::1%wan9").unwrap_err().to_string().contains("no interface wan9"));
    }
}
