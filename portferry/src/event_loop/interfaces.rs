//! Interfaces, addresses and routes: what they become in the engine, and the sockets that listen on them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};

use engine::gateway::{Counters, Event, LanArrival, LanInterface, Wan};
use engine::gateways::{Gateways, Place, To};
use engine::policy::InterfaceAddress;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Datagram, RETRY, Shell};
use crate::clock::now;
use crate::exit::Failure;
use crate::http::{self, Door};
use crate::netlink::{DefaultRoute, Netlink, Snapshot};
use crate::sockets::{self, Reading, Spec};

/// The default router of IPv6 behind that interface, as a PCP server; by its link-local address, most of the time.
fn of_it_v6(routes: &[DefaultRoute], interface: u32) -> Option<SocketAddrV6> {
    let own = routes.iter().filter(|route| route.interface == interface);
    let gateways = own.filter_map(|route| match route.gateway? {
        IpAddr::V6(gateway) => Some((route.metric, gateway)),
        IpAddr::V4(_) => None,
    });
    let (_, gateway) = gateways.min()?;
    let scope = if gateway.is_unicast_link_local() { interface } else { 0 };
    Some(SocketAddrV6::new(gateway, wire::pcp::SERVER_PORT, 0, scope))
}

/// So often the interfaces are read at the start before a kernel that does not answer ends it.
const FIRST_TRIES: u32 = 6;

/// Where the interfaces' state comes from.
pub enum Links {
    /// The kernel.
    Kernel(Netlink),
    /// Nothing ever changes, and the uplink sends from this address: for the demonstration.
    Fixed(Snapshot, IpAddr),
}

impl Links {
    pub(super) async fn snapshot(&mut self) -> std::io::Result<Snapshot> {
        match self {
            Links::Kernel(netlink) => netlink.snapshot().await,
            Links::Fixed(snapshot, _) => Ok(snapshot.clone()),
        }
    }

    pub(super) async fn changed(&mut self) -> std::io::Result<()> {
        match self {
            Links::Kernel(netlink) => netlink.changed().await,
            Links::Fixed(..) => std::future::pending().await,
        }
    }

    pub(super) async fn counters(&mut self, interface: u32) -> Option<Counters> {
        match self {
            Links::Kernel(netlink) => netlink.link_stats(interface).await.ok().map(|stats| Counters {
                bytes_sent: stats.tx_bytes,
                bytes_received: stats.rx_bytes,
                packets_sent: stats.tx_packets,
                packets_received: stats.rx_packets,
            }),
            Links::Fixed(..) => Some(Counters::default()),
        }
    }
}

/// What hears the PCP server's announcements (RFC 6887 §14.1.3), unless it could not be opened.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    v4: Option<Reading>,
    v6: Option<Reading>,
}

/// Sockets of one LAN interface.
#[derive(Debug)]
pub(super) struct LanSockets {
    ssdp: Reading,
    /// SSDP over IPv6, at both groups and at each of our addresses.
    ssdp_v6: BTreeMap<Ipv6Addr, Reading>,
    /// That could not be opened, and the log says so.
    ssdp_v6_failed: bool,
    /// PCP and NAT-PMP, at each of our addresses.
    pub(super) pcp: BTreeMap<IpAddr, Reading>,
    /// That could not be opened, and the log says so.
    pcp_failed: bool,
    http: BTreeMap<IpAddr, HttpTask>,
}

impl LanSockets {
    /// What SSDP says something from this address of ours with.
    pub(super) fn ssdp_from(&self, local: IpAddr) -> Option<&Reading> {
        match local {
            IpAddr::V4(_) => Some(&self.ssdp),
            IpAddr::V6(own) => self.ssdp_v6.get(&own),
        }
    }
}

/// The HTTP server of one address, and the links whose hosts it accepts: those of the interface, for a control point may be led to
/// another of our addresses than the one next to its own.
#[derive(Debug)]
struct HttpTask {
    task: JoinHandle<Infallible>,
    links: watch::Sender<Vec<InterfaceAddress>>,
}

impl Drop for HttpTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shell {
    /// Looks at the interfaces again, opens and closes sockets, and tells the gateway.
    pub(super) async fn refresh(&mut self, gateways: &mut Gateways, first: bool) -> Result<(), Failure> {
        let mut snapshot = self.links.snapshot().await;
        // While a machine starts, the kernel may have other things to do.
        for _ in 1..FIRST_TRIES {
            match &snapshot {
                Err(error) if first && error.kind() == std::io::ErrorKind::TimedOut => {
                    tracing::warn!("cannot read the interfaces: {error}; trying again");
                    snapshot = self.links.snapshot().await;
                }
                _ => break,
            }
        }
        let snapshot = match snapshot {
            Ok(snapshot) => snapshot,
            Err(error) if first => {
                return Err(Failure::system(format!("cannot read the interfaces: {error}")));
            }
            Err(error) => {
                tracing::warn!("cannot read the interfaces: {error}; trying again");
                self.retry = Some(now() + RETRY);
                return Ok(());
            }
        };
        if let Links::Kernel(_) = self.links {
            let own = snapshot.interfaces.iter().filter_map(|interface| interface.mac);
            self.context.neighbours.set_own(own.collect());
        }
        let lan = self.lan_interfaces(&snapshot, first);
        self.open_lan(&lan, first).await?;
        gateways.handle_lan(now(), &lan);
        self.perform_all(gateways).await;
        for place in 0..self.uplinks.len() {
            self.uplinks[place].choose(&snapshot);
            let (way, addresses) = (self.uplinks[place].way, self.uplinks[place].addresses.clone());
            if !self.kernel.follow(place, way, &addresses).await {
                self.retry = Some(now() + RETRY);
            }
            let wan = self.wan(place, &snapshot).await;
            self.open_announcements(place).await;
            gateways.handle(now(), To::Uplink(place), Event::Wan(wan));
        }
        Ok(())
    }

    fn lan_interfaces(&self, snapshot: &Snapshot, first: bool) -> Vec<LanInterface> {
        let mut lan = Vec::new();
        for name in &self.config.lan.interfaces.0 {
            let found = snapshot.interfaces.iter().find(|interface| interface.name == name.0);
            match found {
                Some(found) => lan.push(LanInterface {
                    index: found.index,
                    name: found.name.clone(),
                    addresses: found
                        .addresses
                        .iter()
                        .map(|&(addr, prefix_len)| InterfaceAddress { addr, prefix_len })
                        .collect(),
                }),
                None if first => tracing::warn!(
                    "the LAN interface {} does not exist; it is served as soon as it comes ([lan] interfaces)",
                    name.0
                ),
                None => {}
            }
        }
        lan
    }

    async fn wan(&mut self, place: Place, snapshot: &Snapshot) -> Wan {
        let uplink = &mut self.uplinks[place];
        let (name, servers) = (uplink.interface().to_owned(), uplink.servers_in_place());
        let is_spare = uplink.is_spare();
        let found = snapshot.interfaces.iter().find(|interface| interface.name == name);
        uplink.index = found.map(|found| found.index);
        let is_named = uplink.is_named();
        let offered = uplink.dhcp.as_mut().map(|dhcp| dhcp.offered(now(), &self.config, is_named, found));
        self.perform_dhcp(place).await;
        let offered = offered.unwrap_or_default();
        let Some(found) = found else { return Wan { name, servers, is_spare, ..Wan::default() } };
        let (mut addresses, mut addresses_v6) = (Vec::new(), Vec::new());
        for (addr, _) in found.addresses.iter().filter(|_| found.up) {
            match addr {
                IpAddr::V4(v4) => addresses.push(*v4),
                IpAddr::V6(v6) if !v6.is_unicast_link_local() => addresses_v6.push(*v6),
                IpAddr::V6(_) => {}
            }
        }
        let of_it = |routes: &[DefaultRoute]| {
            let own = routes.iter().filter(|route| route.interface == found.index);
            own.filter_map(|route| Some((route.metric, route.gateway.filter(IpAddr::is_ipv4)?))).min()
        };
        // Where only some of the traffic goes by it, its route is in a table of its own.
        let router = of_it(&snapshot.default_routes).or_else(|| of_it(&snapshot.other_default_routes));
        let router_v6 = of_it_v6(&snapshot.default_routes, found.index);
        let speed = self.kernel.speed(place, &name).await;
        Wan {
            up: found.up,
            addresses,
            addresses_v6,
            router: router.map(|(_, gateway)| gateway),
            router_v6,
            offered,
            servers,
            is_spare,
            bits_per_second: speed.map(|mbit| u64::from(mbit) * 1_000_000),
            name,
        }
    }

    /// Opens what is missing and closes what is gone. At the start an occupied port ends the program; later it is
    /// tried again.
    async fn open_lan(&mut self, lan: &[LanInterface], first: bool) -> Result<(), Failure> {
        self.lan.retain(|(index, name), _| lan.iter().any(|lan| lan.index == *index && lan.name == *name));
        for lan in lan {
            if let Err((error, what)) = self.open_interface(lan).await {
                let in_use = error.kind() == std::io::ErrorKind::AddrInUse;
                let hint = match error.kind() {
                    std::io::ErrorKind::AddrInUse => "is used by another program (miniupnpd?); stop that one",
                    std::io::ErrorKind::PermissionDenied => {
                        "needs root or CAP_NET_RAW (and CAP_NET_BIND_SERVICE below port 1024)"
                    }
                    _ => "cannot be opened",
                };
                let line = format!("{what} on {} {hint}: {error}", lan.name);
                if first && (in_use || error.kind() == std::io::ErrorKind::PermissionDenied) {
                    return Err(if in_use {
                        Failure::unavailable(line)
                    } else {
                        Failure::no_permission(line)
                    });
                }
                tracing::warn!("{line}; trying again");
                self.retry = Some(now() + RETRY);
            }
        }
        Ok(())
    }

    async fn open_interface(&mut self, lan: &LanInterface) -> Result<(), (std::io::Error, String)> {
        let opener = self.kernel.sockets();
        let key = (lan.index, lan.name.clone());
        if !self.lan.contains_key(&key) {
            let what = format!("SSDP's port {}", wire::ssdp::PORT);
            let interface = lan.index;
            // The first of several gateways answers.
            let wrap = move |from, bytes| (0, Datagram::Ssdp { interface, local: None, from, bytes });
            let ssdp = opener.open(Spec::Ssdp { interface: lan.name.clone() }, interface).await;
            let ssdp = ssdp
                .and_then(|socket| Reading::start(socket.into(), self.datagrams.0.clone(), wrap))
                .map_err(|error| (error, what))?;
            self.lan.insert(
                key.clone(),
                LanSockets {
                    ssdp,
                    ssdp_v6: BTreeMap::new(),
                    ssdp_v6_failed: false,
                    pcp: BTreeMap::new(),
                    pcp_failed: false,
                    http: BTreeMap::new(),
                },
            );
        }
        self.open_ssdp_over_ipv6(lan).await;
        let port = self.config.lan.http_port.0;
        let sockets = self.lan.get_mut(&key).expect("put there above");
        sockets.http.retain(|addr, _| lan.addresses.iter().any(|link| link.addr == *addr));
        let (pcp, nat_pmp) = (self.config.lan.pcp, self.config.lan.nat_pmp);
        // NAT-PMP is of IPv4.
        let is_served = |addr: &IpAddr| pcp || nat_pmp && addr.is_ipv4();
        sockets.pcp.retain(|addr, _| is_served(addr) && lan.addresses.iter().any(|link| link.addr == *addr));
        for local in lan.addresses.iter().map(|link| link.addr).filter(is_served) {
            if sockets.pcp.contains_key(&local) {
                continue;
            }
            let interface = lan.index;
            let wrap = move |from, bytes| {
                (0, Datagram::Lan5351 { arrival: LanArrival { interface, local, from }, bytes })
            };
            let spec = Spec::Pcp { interface: lan.name.clone(), addr: local };
            let opened = opener.open(spec, interface).await;
            let opened =
                opened.and_then(|socket| Reading::start(socket.into(), self.datagrams.0.clone(), wrap));
            match opened {
                Ok(reading) => {
                    let what = match (pcp, nat_pmp && local.is_ipv4()) {
                        (true, true) => "PCP and NAT-PMP",
                        (true, false) => "PCP",
                        _ => "NAT-PMP",
                    };
                    tracing::info!("serving {what} at {local} on {}", lan.name);
                    sockets.pcp.insert(local, reading);
                    sockets.pcp_failed = false;
                }
                // UPnP works without it, so it is no reason to end.
                Err(error) => {
                    if !std::mem::replace(&mut sockets.pcp_failed, true) {
                        tracing::warn!(
                            "PCP and NAT-PMP are not served at {local} on {}: UDP port {} {}: {error}; trying again ([lan] pcp, nat_pmp)",
                            lan.name,
                            wire::pcp::SERVER_PORT,
                            if error.kind() == std::io::ErrorKind::AddrInUse {
                                "is used by another program (miniupnpd?)"
                            } else {
                                "cannot be opened"
                            }
                        );
                    }
                    self.retry = Some(now() + RETRY);
                }
            }
        }
        let mut failed = None;
        for &InterfaceAddress { addr, .. } in &lan.addresses {
            if let Some(open) = sockets.http.get(&addr) {
                // They may be others now.
                open.links.send_replace(lan.addresses.clone());
                continue;
            }
            let own = sockets::at(addr, port, lan.index);
            let spec = Spec::Http { interface: lan.name.clone(), addr };
            let opened = opener.open(spec, lan.index).await;
            let listener = match opened.and_then(|socket| TcpListener::from_std(socket.into())) {
                Ok(listener) => listener,
                Err(error) => {
                    failed.get_or_insert((error, format!("TCP port {port} of {addr}")));
                    continue;
                }
            };
            let (links, current) = watch::channel(lan.addresses.clone());
            let on_link = move |peer| current.borrow().iter().any(|link| link.contains(peer));
            let door = Door { own, interface: lan.index };
            let task = tokio::spawn(http::serve(listener, door, on_link, self.context.clone()));
            sockets.http.insert(addr, HttpTask { task, links });
            tracing::info!("serving control points at http://{own} on {}", lan.name);
        }
        failed.map_or(Ok(()), Err)
    }

    /// An interface without IPv6 is served as well, and so is one where this fails.
    async fn open_ssdp_over_ipv6(&mut self, lan: &LanInterface) {
        let opener = self.kernel.sockets();
        let Some(sockets) = self.lan.get_mut(&(lan.index, lan.name.clone())) else { return };
        let own: Vec<Ipv6Addr> = lan
            .addresses
            .iter()
            .filter_map(|link| match link.addr {
                IpAddr::V6(own) => Some(own),
                IpAddr::V4(_) => None,
            })
            .collect();
        let mut wanted = own;
        if !wanted.is_empty() {
            wanted.extend([wire::ssdp::GROUP_V6_LINK, wire::ssdp::GROUP_V6_SITE]);
        }
        sockets.ssdp_v6.retain(|at, _| wanted.contains(at));
        for at in wanted {
            if sockets.ssdp_v6.contains_key(&at) {
                continue;
            }
            let (interface, local) = (lan.index, (!at.is_multicast()).then_some(IpAddr::V6(at)));
            let wrap = move |from, bytes| (0, Datagram::Ssdp { interface, local, from, bytes });
            let of = lan.name.clone();
            let spec = match local {
                Some(_) => Spec::SsdpAt { interface: of, own: at },
                None => Spec::SsdpGroup { interface: of, group: at },
            };
            let socket = opener.open(spec, interface).await;
            match socket.and_then(|socket| Reading::start(socket.into(), self.datagrams.0.clone(), wrap)) {
                Ok(reading) => {
                    sockets.ssdp_v6.insert(at, reading);
                    sockets.ssdp_v6_failed = false;
                }
                Err(error) => {
                    if !std::mem::replace(&mut sockets.ssdp_v6_failed, true) {
                        tracing::warn!(
                            "searches over IPv6 are not heard at {at} on {}: UDP port {} cannot be opened: {error}; trying again",
                            lan.name,
                            wire::ssdp::PORT
                        );
                    }
                    self.retry = Some(now() + RETRY);
                }
            }
        }
    }

    async fn open_announcements(&mut self, place: Place) {
        let opener = self.kernel.sockets();
        let uplink = &mut self.uplinks[place];
        let Some(index) = uplink.index else {
            uplink.announcements = None;
            return;
        };
        let first = uplink.announcements.as_ref().is_none_or(|(open, _)| *open != index);
        if first {
            uplink.announcements = Some((index, Announcements::default()));
        }
        let interface = uplink.interface().to_owned();
        let Some((_, open)) = &mut uplink.announcements else { return };
        // In both families: which one the server speaks may change. A WAN may get one of them later than the other.
        for (reading, v6) in [(&mut open.v4, false), (&mut open.v6, true)] {
            if reading.is_some() {
                continue;
            }
            let spec = Spec::Announcements { interface: interface.clone(), v6 };
            let socket = opener.open(spec, index).await;
            let wrap = move |from, bytes| (place, Datagram::Announcement { from, bytes });
            let queue = self.datagrams.0.clone();
            match socket.and_then(|socket| Reading::start(socket.into(), queue, wrap)) {
                Ok(opened) => *reading = Some(opened),
                // The epoch in ordinary answers tells the same, only later.
                Err(error) if first => {
                    tracing::warn!("cannot listen for all announcements of the PCP server: {error}");
                }
                Err(error) => tracing::debug!("announcements of the PCP server: {error}"),
            }
        }
    }
}
