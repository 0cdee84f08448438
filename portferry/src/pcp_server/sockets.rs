//! The sockets that a server hears its subscribers by: one for each of its own addresses on their interfaces.
//!
//! A socket hears only its interface, and answers from the address that it is bound to. So nothing that comes by another
//! interface is ever heard (RFC 6887 §8.2, step 1), and no answer leaves by one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use tokio::sync::mpsc;
use wire::pcp::SERVER_PORT;

use crate::netlink::{Interface, Snapshot};
use crate::sockets::{self, Reading};

/// Where a datagram was heard.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Place {
    /// The interface.
    pub interface: String,
    /// The kernel's number for it.
    pub index: u32,
    /// The server's own address.
    pub addr: IpAddr,
}

/// A datagram of a subscriber.
#[derive(Debug)]
pub struct Datagram {
    /// Where it was heard.
    pub place: Place,
    /// Its source.
    pub from: SocketAddr,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Sockets {
    open: BTreeMap<Place, Reading>,
}

impl Sockets {
    /// Opens what is missing and closes what is gone; what could not be opened, and why.
    pub fn follow(
        &mut self,
        interfaces: &[String],
        also: &[IpAddr],
        snapshot: &Snapshot,
        queue: &mpsc::Sender<Datagram>,
    ) -> Vec<(Place, io::Error)> {
        let named = |interface: &&Interface| interfaces.contains(&interface.name) && interface.up;
        let everywhere: BTreeSet<IpAddr> = snapshot
            .interfaces
            .iter()
            .flat_map(|interface| interface.addresses.iter().map(|&(addr, _)| addr))
            .collect();
        let mut wanted = BTreeSet::new();
        for interface in snapshot.interfaces.iter().filter(named) {
            let own = interface.addresses.iter().map(|&(addr, _)| addr);
            for addr in own.chain(also.iter().copied().filter(|addr| everywhere.contains(addr))) {
                wanted.insert(Place { interface: interface.name.clone(), index: interface.index, addr });
            }
        }
        self.open.retain(|place, _| wanted.contains(place));
        let mut failed = Vec::new();
        for place in wanted {
            if self.open.contains_key(&place) {
                continue;
            }
            let heard = place.clone();
            let wrap = move |from, bytes| Datagram { place: heard.clone(), from, bytes };
            match sockets::pcp(&place.interface, place.index, place.addr)
                .and_then(|socket| Reading::start(socket, queue.clone(), wrap))
            {
                Ok(reading) => {
                    tracing::info!(
                        "serving PCP at {} on {}",
                        SocketAddr::new(place.addr, SERVER_PORT),
                        place.interface
                    );
                    self.open.insert(place, reading);
                }
                Err(error) => failed.push((place, error)),
            }
        }
        failed
    }

    /// Answers from the address that the request came to, by the interface of that number, which it came by.
    pub fn send(&self, interface: u32, from: IpAddr, to: SocketAddr, bytes: &[u8]) {
        let fits = |place: &Place| place.addr == from && place.index == interface;
        for (_, reading) in self.open.iter().filter(|(place, _)| fits(place)) {
            if let Err(error) = reading.sender.send_to(bytes, to) {
                // As if lost on the way: the client asks again.
                tracing::debug!("to {to}: {error}");
            }
        }
    }

    /// Sends to a multicast group by every interface, from each of its addresses of that family: a client believes only
    /// the address that it knows the server by (RFC 6887 §14.1.3), which in IPv6 may well be the link-local one.
    pub fn multicast(&self, group: SocketAddr, bytes: &[u8]) {
        for (place, reading) in self.open.iter().filter(|(place, _)| place.addr.is_ipv4() == group.is_ipv4())
        {
            let to = match group {
                SocketAddr::V6(group) => SocketAddrV6::new(*group.ip(), group.port(), 0, place.index).into(),
                group => group,
            };
            if let Err(error) = reading.sender.send_to(bytes, to) {
                tracing::debug!("to {group} on {}: {error}", place.interface);
            }
        }
    }

    /// The server's addresses that are served.
    pub fn addresses(&self) -> impl Iterator<Item = &Place> {
        self.open.keys()
    }
}

/// Whether this can be the source of a subscriber's packet at all.
#[must_use]
pub fn is_unicast(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => !(v4.is_unspecified() || v4.is_multicast() || v4 == Ipv4Addr::BROADCAST),
        IpAddr::V6(v6) => !(v6 == Ipv6Addr::UNSPECIFIED || v6.is_multicast()),
    }
}
