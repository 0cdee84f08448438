//! What the daemon has open for one uplink: its interface as it is now, sockets towards its provider, its NAT, its store.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use engine::gateway::{Way, preferred};
use engine::time::Instant;

use super::interfaces::Announcements;
use crate::config::{Line, NatMode, WanWay};
use crate::dhcp::Dhcp;
use crate::netlink::{Interface, Snapshot};
use crate::nft::Nft;
use crate::sockets::Reading;
use crate::store::Store;

/// See the module's description.
pub(super) struct Uplink {
    pub(super) line: Line,
    /// Which of its ways is in use.
    way: usize,
    /// The kernel's number of that interface, while it is there.
    pub(super) index: Option<u32>,
    pub(super) socket: Option<Reading>,
    /// Searches for the provider's router.
    pub(super) search: Option<Reading>,
    /// What looks at other servers, by whether they have IPv6 addresses.
    pub(super) scouts: BTreeMap<bool, Reading>,
    /// What finds the PCP servers that DHCP offers; not in the demonstration.
    pub(super) dhcp: Option<Dhcp>,
    /// The interface that announcements are to be heard on, and what hears them.
    pub(super) announcements: Option<(u32, Announcements)>,
    pub(super) nft: Option<Nft>,
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
            socket: None,
            search: None,
            scouts: BTreeMap::new(),
            dhcp: None,
            announcements: None,
            nft: None,
            store: None,
            store_failed: false,
            store_retry: None,
        }
    }

    fn way(&self) -> &WanWay {
        self.line.ways.get(self.way).or(self.line.ways.first()).expect("there is one at least")
    }

    /// The interface in use.
    pub(super) fn interface(&self) -> &str {
        &self.way().interface
    }

    pub(super) fn has_nat(&self) -> bool {
        self.line.nat == NatMode::Nftables
    }

    /// The servers that somebody has chosen for the interface in use, unless that is the usual one.
    pub(super) fn servers_in_place(&self) -> Option<Vec<SocketAddr>> {
        (self.way > 0).then(|| self.way().servers.clone())
    }

    /// Whether somebody has chosen the servers.
    pub(super) fn is_named(&self) -> bool {
        !self.way().servers.is_empty()
    }

    /// Settings were read again; the interfaces are the same.
    pub(super) fn take_over(&mut self, line: Line) {
        self.line = line;
    }

    /// Chooses among its interfaces; true when it is another one than before.
    pub(super) fn choose(&mut self, snapshot: &Snapshot) -> bool {
        let ways: Vec<Way> = self.line.ways.iter().map(|way| of(snapshot, &way.interface)).collect();
        let before = std::mem::replace(&mut self.way, preferred(&ways));
        before != self.way
    }
}

/// What speaks for an interface.
fn of(snapshot: &Snapshot, name: &str) -> Way {
    let Some(found) = snapshot.interfaces.iter().find(|interface| interface.name == name) else {
        return Way::default();
    };
    let route = |v6: bool| {
        let mut routes = snapshot.default_routes.iter().filter(|route| route.interface == found.index);
        routes.find(|route| route.is_ipv6 == v6).map(|route| route.metric)
    };
    Way { usable: has_address(found), route_v4: route(false), route_v6: route(true) }
}

fn has_address(found: &Interface) -> bool {
    let is_of_use = |addr: &std::net::IpAddr| match addr {
        std::net::IpAddr::V4(_) => true,
        std::net::IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    };
    found.up && found.addresses.iter().any(|(addr, _)| is_of_use(addr))
}
