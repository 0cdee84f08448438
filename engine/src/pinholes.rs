//! Pinholes: which flows from outside reach which port of an IPv6 host, as WANIPv6FirewallControl:1 and PCP know them (igd.md 8,
//! RFC 6887 §2.2). Nothing is translated, so nobody can take another one's port, and one port may have several
//! pinholes, each for another remote host.
//!
//! To the provider all pinholes of one port are one mapping ([`Endpoint`]), and their remote hosts its filters.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv6Addr, SocketAddrV6};

use wire::pcp::Protocol;

use crate::claims::Claims;
use crate::policy::HardwareAddress;
use crate::time::Instant;
use crate::uplink::RemotePeer;

/// More remote hosts of one port than this cannot be told to a provider: a PCP message has 1100 octets.
pub const MOST_REMOTES: usize = 16;

/// Whether it is a unicast address that the Internet routes: 2000::/3 is what there is (RFC 4291 §2.4).
pub fn is_of_the_internet(addr: Ipv6Addr) -> bool {
    addr.segments()[0] >> 13 == 1
}

/// A port of an IPv6 host.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Endpoint {
    /// The LAN host.
    pub addr: Ipv6Addr,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Its port.
    pub port: u16,
}

/// What a pinhole lets in, and what tells it from all others.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Flows {
    /// The LAN host's port.
    pub to: Endpoint,
    /// The only remote host that may come in; `None` for all.
    pub remote: Option<Ipv6Addr>,
    /// The only port that it may come from; `None` for any.
    pub remote_port: Option<u16>,
}

impl Flows {
    /// Whether it is open to everybody.
    pub fn are_all(&self) -> bool {
        (self.remote, self.remote_port) == (None, None)
    }
}

impl fmt::Display for Flows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Endpoint { addr, protocol, port } = self.to;
        let name = if protocol == Protocol::UDP { "UDP" } else { "TCP" };
        write!(f, "{name} {}", SocketAddrV6::new(addr, port, 0, 0))?;
        match (self.remote, self.remote_port) {
            (None, None) => Ok(()),
            (Some(remote), None) => write!(f, " from {remote} only"),
            (None, Some(port)) => write!(f, " from port {port} only"),
            (Some(remote), Some(port)) => {
                write!(f, " from {} only", SocketAddrV6::new(remote, port, 0, 0))
            }
        }
    }
}

/// What the kernel is to be told. Each is answered by [`Event::Nat`](crate::gateway::Event::Nat).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FirewallChange {
    /// Let these flows in; nothing is done where they are.
    Open(Flows),
    /// Let them in no more, and cut what flows by nothing else.
    Close(Flows),
}

/// How far a pinhole is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// The provider's firewall is being asked, or looked for.
    Asking,
    /// This router's own is about to be opened.
    Opening,
    /// It is open.
    Open,
}

/// A pinhole.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pinhole {
    /// `UniqueID`.
    pub id: u16,
    /// What it lets in.
    pub flows: Flows,
    /// The client's own words, where its protocol has any.
    pub description: String,
    /// The network card of the host that asked for it, if that is known: it is one host by all of its addresses.
    pub hardware: Option<HardwareAddress>,
    /// Who counts on it.
    pub claims: Claims<Instant>,
    /// When it was asked for.
    pub created: Instant,
    /// When its owner last asked for it.
    pub asked_at: Instant,
    /// See there.
    pub stage: Stage,
    /// Its owner has been told of it, and so it is stored.
    pub stored: bool,
}

/// All pinholes.
#[derive(Debug, Default)]
pub struct PinholeTable {
    by_id: BTreeMap<u16, Pinhole>,
    by_flows: BTreeMap<Flows, u16>,
    last_id: u16,
}

impl PinholeTable {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// All, by their numbers.
    pub fn iter(&self) -> impl Iterator<Item = &Pinhole> {
        self.by_id.values()
    }

    /// That of a number.
    pub fn find(&self, id: u16) -> Option<&Pinhole> {
        self.by_id.get(&id)
    }

    /// The same, to be changed in everything but number and flows.
    pub fn find_mut(&mut self, id: u16) -> Option<&mut Pinhole> {
        self.by_id.get_mut(&id)
    }

    /// That which lets in exactly these flows.
    pub fn at(&self, flows: &Flows) -> Option<&Pinhole> {
        self.find(*self.by_flows.get(flows)?)
    }

    /// Those of one port of a host.
    pub fn of(&self, to: Endpoint) -> impl Iterator<Item = &Pinhole> {
        let first = Flows { to, remote: None, remote_port: None };
        let own = self.by_flows.range(first..).take_while(move |(flows, _)| flows.to == to);
        own.filter_map(|(_, &id)| self.find(id))
    }

    /// How many lead to this address.
    pub fn held_by(&self, addr: Ipv6Addr) -> usize {
        let first = Endpoint { addr, protocol: Protocol(0), port: 0 };
        let first = Flows { to: first, remote: None, remote_port: None };
        self.by_flows.range(first..).take_while(|(flows, _)| flows.to.addr == addr).count()
    }

    /// All ports that have any.
    pub fn endpoints(&self) -> BTreeSet<Endpoint> {
        self.by_flows.keys().map(|flows| flows.to).collect()
    }

    /// A number that nobody has, and that nobody had lately; `None`: all are taken.
    pub fn free_id(&mut self) -> Option<u16> {
        let after = self.last_id;
        let id = (1..=u16::MAX)
            .map(|n| after.wrapping_add(n))
            .find(|id| *id != 0 && !self.by_id.contains_key(id))?;
        self.last_id = id;
        Some(id)
    }

    /// Numbers go on after this one.
    pub fn begin_after(&mut self, id: u16) {
        self.last_id = id;
    }

    /// Takes in a new one; false, and nothing done, when its number or its flows are there.
    pub fn insert(&mut self, pinhole: Pinhole) -> bool {
        let free = !self.by_id.contains_key(&pinhole.id) && !self.by_flows.contains_key(&pinhole.flows);
        if free {
            self.by_flows.insert(pinhole.flows, pinhole.id);
            self.by_id.insert(pinhole.id, pinhole);
        }
        free
    }

    /// Takes it out.
    pub fn remove(&mut self, id: u16) -> Option<Pinhole> {
        let pinhole = self.by_id.remove(&id)?;
        self.by_flows.remove(&pinhole.flows);
        Some(pinhole)
    }

    /// Whom the provider has to let in to this port, for all of its pinholes; empty for everybody. What filters cannot say is
    /// left to this router's own firewall.
    pub fn remote_peers(&self, to: Endpoint) -> Vec<RemotePeer> {
        let peers: Option<Vec<RemotePeer>> = self
            .of(to)
            .map(|pinhole| {
                Some(RemotePeer { addr: pinhole.flows.remote?.into(), port: pinhole.flows.remote_port })
            })
            .collect();
        peers.unwrap_or_default()
    }

    /// When the last of them ends; `None` for none, for each has an end.
    pub fn last_claim(&self, to: Endpoint) -> Option<Instant> {
        self.of(to).filter_map(|pinhole| pinhole.claims.end()).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::Asker;

    fn flows(host: u16, port: u16, remote: Option<u16>, remote_port: Option<u16>) -> Flows {
        let addr = |last| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last);
        let to = Endpoint { addr: addr(host), protocol: Protocol::TCP, port };
        Flows { to, remote: remote.map(addr), remote_port }
    }

    fn pinhole(id: u16, flows: Flows, ends: u64) -> Pinhole {
        Pinhole {
            id,
            flows,
            description: String::new(),
            hardware: None,
            claims: Claims::of(Asker::Igd, Some(Instant::from_secs(ends))),
            created: Instant::default(),
            asked_at: Instant::default(),
            stage: Stage::Open,
            stored: true,
        }
    }

    #[test]
    fn flows_and_numbers_are_unique() {
        let mut table = PinholeTable::default();
        assert!(table.insert(pinhole(1, flows(1, 80, None, None), 10)));
        assert!(!table.insert(pinhole(2, flows(1, 80, None, None), 10)));
        assert!(!table.insert(pinhole(1, flows(1, 81, None, None), 10)));
        assert!(table.insert(pinhole(2, flows(1, 80, Some(9), None), 20)));
        assert!(table.insert(pinhole(3, flows(1, 80, Some(9), Some(5)), 30)));
        assert!(table.insert(pinhole(4, flows(2, 80, None, None), 40)));
        let to = flows(1, 80, None, None).to;
        assert_eq!(table.of(to).map(|pinhole| pinhole.id).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!((table.held_by(to.addr), table.len(), table.endpoints().len()), (3, 4, 2));
        assert_eq!(table.last_claim(to), Some(Instant::from_secs(30)));
        assert!(table.remove(3).is_some() && table.remove(3).is_none());
        assert_eq!(table.at(&flows(1, 80, Some(9), Some(5))), None);
        assert_eq!(table.last_claim(to), Some(Instant::from_secs(20)));
    }

    /// RFC 6887 §13.3: no filter lets in everybody, and there is none for a port alone.
    #[test]
    fn one_mapping_lets_in_all_that_its_pinholes_do() {
        let mut table = PinholeTable::default();
        let to = flows(1, 80, None, None).to;
        let peer = |last, port| RemotePeer { addr: flows(last, 0, None, None).to.addr.into(), port };
        table.insert(pinhole(1, flows(1, 80, Some(9), None), 10));
        table.insert(pinhole(2, flows(1, 80, Some(8), Some(5)), 10));
        assert_eq!(table.remote_peers(to), [peer(8, Some(5)), peer(9, None)]);
        table.insert(pinhole(3, flows(1, 80, None, Some(5)), 10));
        assert_eq!(table.remote_peers(to), [], "this router looks at the port");
        table.remove(3);
        assert_eq!(table.remote_peers(to).len(), 2);
        table.insert(pinhole(4, flows(1, 80, None, None), 10));
        assert_eq!(table.remote_peers(to), []);
    }

    #[test]
    fn numbers_come_back_late_and_never_as_0() {
        let mut table = PinholeTable::default();
        table.begin_after(u16::MAX - 1);
        assert_eq!([table.free_id(), table.free_id(), table.free_id()], [Some(u16::MAX), Some(1), Some(2)]);
        for id in 1..=u16::MAX {
            table.insert(pinhole(id, flows(1, id, None, None), 10));
        }
        assert_eq!(table.free_id(), None);
        table.remove(77);
        assert_eq!(table.free_id(), Some(77));
    }

    #[test]
    fn flows_in_words() {
        for (flows, words) in [
            (flows(1, 80, None, None), "TCP [2001:db8::1]:80"),
            (flows(1, 80, Some(9), None), "TCP [2001:db8::1]:80 from 2001:db8::9 only"),
            (flows(1, 80, None, Some(53)), "TCP [2001:db8::1]:80 from port 53 only"),
            (flows(1, 80, Some(9), Some(53)), "TCP [2001:db8::1]:80 from [2001:db8::9]:53 only"),
        ] {
            assert_eq!(flows.to_string(), words);
        }
    }
}
