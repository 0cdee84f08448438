//! What the daemon has open for one uplink: its interface as it is now, sockets towards its provider, its NAT, its store.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use engine::gateway::{Way, preferred};
use engine::time::Instant;

use super::interfaces::Announcements;
use crate::config::{Line, NatMode, WanWay};
use crate::dhcp::Dhcp;
use crate::netlink::{Interface, Snapshot};
use crate::sockets::Reading;
use crate::store::Store;

/// See the module's description.
pub(super) struct Uplink {
    pub(super) line: Line,
    /// Which of its ways is in use.
    pub(super) way: usize,
    /// The kernel's number of that interface, while it is there.
    pub(super) index: Option<u32>,
    /// That interface's IPv4 addresses, while it is up.
    pub(super) addresses: Vec<Ipv4Addr>,
    /// The socket to the server in use, and which that is.
    pub(super) socket: Option<(SocketAddr, Reading)>,
    /// The same to the provider's IPv6 firewall.
    pub(super) firewall: Option<(SocketAddr, Reading)>,
    /// Searches for the provider's router.
    pub(super) search: Option<Reading>,
    /// What looks at other servers, by the interface that it is on and whether they have IPv6 addresses.
    pub(super) scouts: BTreeMap<(String, bool), Reading>,
    /// What finds the PCP servers that DHCP offers; not in the demonstration.
    pub(super) dhcp: Option<Dhcp>,
    /// The interface that announcements are to be heard on, and what hears them.
    pub(super) announcements: Option<(u32, Announcements)>,
    pub(super) store: Option<Store>,
    /// Something of this turn could not be stored.
    pub(super) store_failed: bool,
    /// When it is tried again to store what could not be.
    pub(super) store_retry: Option<Instant>,
}

impl Uplink {
    /// Nothing is open yet.
    pub(super) fn new(line: Line) -> Self {
        Self {
            line,
            way: 0,
            index: None,
            addresses: Vec::new(),
            socket: None,
            firewall: None,
            search: None,
            scouts: BTreeMap::new(),
            dhcp: None,
            announcements: None,
            store: None,
            store_failed: false,
            store_retry: None,
        }
    }

    fn chosen(&self) -> &WanWay {
        self.line.ways.get(self.way).or(self.line.ways.first()).expect("there is one at least")
    }

    /// The interface in use.
    pub(super) fn interface(&self) -> &str {
        &self.chosen().interface
    }

    fn has_nat(&self) -> bool {
        self.line.nat == NatMode::Nftables
    }

    /// The servers that somebody has chosen for the interface in use, unless that is the usual one.
    pub(super) fn servers_in_place(&self) -> Option<Vec<SocketAddr>> {
        self.is_spare().then(|| self.chosen().servers.clone())
    }

    /// Whether the interface in use stands in for the usual one.
    pub(super) fn is_spare(&self) -> bool {
        self.way > 0
    }

    /// Whether somebody has chosen the servers.
    pub(super) fn is_named(&self) -> bool {
        !self.chosen().servers.is_empty()
    }

    /// Settings were read again; the interfaces are the same.
    pub(super) fn take_over(&mut self, line: Line) {
        self.line = line;
    }

    /// Chooses among its interfaces, and looks at the one in use.
    pub(super) fn choose(&mut self, snapshot: &Snapshot) {
        let named = |index: u32| {
            let found = snapshot.interfaces.iter().find(|interface| interface.index == index);
            found.is_some_and(|found| self.line.ways.iter().any(|way| way.interface == found.name))
        };
        let mut routes = snapshot.default_routes.iter();
        let elsewhere = routes.find(|route| !route.is_ipv6 && !named(route.interface));
        let ways: Vec<Way> = self.line.ways.iter().map(|way| self.of(snapshot, &way.interface)).collect();
        self.way = preferred(&ways, elsewhere.map(|route| route.metric), self.way);
        let found = snapshot.interfaces.iter().find(|found| found.up && found.name == self.interface());
        let addresses = found.into_iter().flat_map(|found| &found.addresses);
        self.addresses = addresses
            .filter_map(|(addr, _)| match addr {
                IpAddr::V4(v4) => Some(*v4),
                IpAddr::V6(_) => None,
            })
            .collect();
    }

    /// What speaks for an interface.
    fn of(&self, snapshot: &Snapshot, name: &str) -> Way {
        let Some(found) = snapshot.interfaces.iter().find(|interface| interface.name == name) else {
            return Way::default();
        };
        let route = |v6: bool| {
            let mut routes = snapshot.default_routes.iter().filter(|route| route.interface == found.index);
            routes.find(|route| route.is_ipv6 == v6).map(|route| route.metric)
        };
        // What a NAT of our own translates to is IPv4.
        let usable = has_address(found, !self.has_nat());
        Way { usable, route_v4: route(false), route_v6: route(true) }
    }
}

fn has_address(found: &Interface, v6_too: bool) -> bool {
    let is_of_use = |addr: &IpAddr| match addr {
        IpAddr::V4(_) => true,
        IpAddr::V6(v6) => v6_too && !v6.is_unicast_link_local(),
    };
    found.up && found.addresses.iter().any(|(addr, _)| is_of_use(addr))
}
