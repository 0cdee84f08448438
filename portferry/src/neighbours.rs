//! Which other addresses a LAN host has (K-3): those that the kernel's neighbour table shows with the same MAC, on the same interface.
//!
//! An entry proves no more than that its MAC was last seen with that address, which is what the LAN believes, too: who can
//! make the router send another host's packets to itself has them anyway.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::netlink::{self, Neighbour};

/// How long a control point waits for it at most.
const TIME: Duration = Duration::from_millis(500);
/// How many are looked up at once.
const AT_ONCE: usize = 4;
/// A MAC with more addresses than this answers for others (proxy ARP, a bridge that hides what is behind it). Of IPv6 a host
/// has several in each prefix, and another one every day.
const MOST_V4: usize = 8;
const MOST_V6: usize = 32;

type Mac = [u8; 6];

/// See the module's description.
#[derive(Debug)]
pub struct Neighbours {
    /// The router's own; `None` where there is no kernel to ask.
    own: Mutex<Option<Vec<Mac>>>,
    places: Semaphore,
}

impl Default for Neighbours {
    fn default() -> Self {
        Self { own: Mutex::default(), places: Semaphore::new(AT_ONCE) }
    }
}

impl Neighbours {
    /// The MACs of the router's interfaces are these now.
    pub fn set_own(&self, macs: Vec<Mac>) {
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = Some(macs);
    }

    /// The addresses of a host beside `host`, which it speaks from, on the interface with this index; none of link-local scope. None
    /// are known of one that cannot be looked up in time.
    pub async fn of(&self, interface: u32, host: IpAddr) -> Vec<IpAddr> {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(own) = own else { return Vec::new() };
        let host = host.to_canonical();
        let look = async {
            let _place = self.places.acquire().await.ok()?;
            match netlink::neighbours().await {
                Ok(all) => Some(aliases(&all, interface, host, &own)),
                Err(error) => {
                    tracing::debug!("the addresses of {host}: {error}");
                    None
                }
            }
        };
        tokio::time::timeout(TIME, look).await.ok().flatten().unwrap_or_default()
    }
}

/// What the neighbour table says of a host.
fn aliases(all: &[Neighbour], interface: u32, host: IpAddr, own: &[Mac]) -> Vec<IpAddr> {
    let here = || all.iter().filter(|entry| entry.interface == interface);
    let Some(mac) = here().find(|entry| entry.addr == host).map(|entry| entry.mac) else {
        return Vec::new();
    };
    let is_multicast = mac[0] & 1 == 1;
    if is_multicast || mac == Mac::default() || own.contains(&mac) {
        return Vec::new();
    }
    let mut found: Vec<IpAddr> =
        here().filter(|entry| entry.mac == mac).map(|entry| entry.addr.to_canonical()).collect();
    found.sort_unstable();
    found.dedup();
    let v4 = found.iter().filter(|addr| addr.is_ipv4()).count();
    if v4 > MOST_V4 || found.len() - v4 > MOST_V6 {
        return Vec::new();
    }
    // What is of the link alone is nothing that anything leads to.
    let is_link_local = |addr: &IpAddr| matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local());
    found.retain(|addr| *addr != host && !is_link_local(addr));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// K-3, row by row.
    #[test]
    fn a_host_by_its_mac() {
        const LAN: u32 = 3;
        let mac = |last: u8| [2, 0, 0, 0, 0, last];
        let entry = |interface, addr: &str, mac| Neighbour { interface, addr: addr.parse().unwrap(), mac };
        let own = [mac(1), mac(2)];
        let table = |mac_of_host: Mac| {
            vec![
                entry(LAN, "fe80::10", mac_of_host),
                entry(LAN, "2001:db8::10", mac_of_host),
                entry(LAN, "192.168.1.10", mac_of_host),
                entry(LAN, "192.168.1.11", mac(11)),
                entry(LAN, "fe80::11", mac(11)),
                entry(4, "192.168.2.10", mac_of_host), // on another LAN
                entry(4, "fe80::10", mac(12)),
                entry(4, "192.168.2.12", mac(12)),
            ]
        };
        for (what, mac_of_host, host, interface, expected) in [
            ("by its link-local address", mac(10), "fe80::10", LAN, &["192.168.1.10", "2001:db8::10"][..]),
            ("by its global address", mac(10), "2001:db8::10", LAN, &["192.168.1.10"]),
            ("by its IPv4 address", mac(10), "192.168.1.10", LAN, &["2001:db8::10"]),
            ("another host, too", mac(10), "192.168.1.11", LAN, &[]),
            ("another host", mac(10), "fe80::11", LAN, &["192.168.1.11"]),
            ("the same link-local address on another link", mac(10), "fe80::10", 4, &["192.168.2.12"]),
            ("nobody knows it", mac(10), "fe80::99", LAN, &[]),
            ("it is not on this link", mac(10), "2001:db8::10", 4, &[]),
            ("a MAC of the router's own", mac(2), "fe80::10", LAN, &[]),
            ("no MAC", Mac::default(), "fe80::10", LAN, &[]),
            ("a multicast MAC", [0x33, 0x33, 0, 0, 0, 1], "fe80::10", LAN, &[]),
            ("broadcast", [0xff; 6], "fe80::10", LAN, &[]),
        ] {
            let found = aliases(&table(mac_of_host), interface, host.parse().unwrap(), &own);
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{what}");
        }
        // Several are all its own, up to a number that one host may have; beyond, nobody's.
        for (v4, v6, known) in [
            (2, 0, 2),
            (8, 0, 8),
            (9, 0, 0),
            (1, 31, 32), // and the link-local one
            (1, 32, 0),
            (0, 31, 31),
            (8, 31, 39),
            (9, 31, 0),
        ] {
            let mut all = vec![entry(LAN, "fe80::10", mac(10))];
            all.extend((1..=v4).map(|n| entry(LAN, &format!("192.168.1.{n}"), mac(10))));
            all.extend((1..=v6).map(|n| entry(LAN, &format!("2001:db8::{n}"), mac(10))));
            all.extend(all.last().cloned());
            assert_eq!(aliases(&all, LAN, "fe80::10".parse().unwrap(), &own).len(), known, "{v4} {v6}");
        }
    }

    #[tokio::test]
    async fn nothing_is_known_without_a_kernel_and_of_strangers() {
        let neighbours = Neighbours::default();
        assert!(neighbours.of(1, "fe80::1".parse().unwrap()).await.is_empty());
        neighbours.set_own(Vec::new());
        for host in ["192.168.1.10", "::ffff:192.168.1.10", "2001:db8::ffff"] {
            assert!(neighbours.of(u32::MAX, host.parse().unwrap()).await.is_empty(), "{host}");
        }
    }
}
