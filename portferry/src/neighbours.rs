//! Which other addresses a LAN host has (K-3): those that the kernel's neighbour table shows with the same MAC, on the same interface.
//!
//! An entry proves no more than that its MAC was last seen with that address, which is what the LAN believes, too: who can
//! make the router send another host's packets to itself has them anyway.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::policy::{Device, HardwareAddress, Known};

use crate::netlink::{self, Neighbour};

/// How long a control point waits for it at most.
const TIME: Duration = Duration::from_millis(500);
/// The table is read at most once in this time, for all who ask meanwhile: whoever floods has it read no more often.
const BETWEEN: Duration = Duration::from_millis(20);
/// A MAC with more addresses than this answers for others (proxy ARP, a bridge that hides what is behind it). Of IPv6 a host
/// has several in each prefix, and another one every day.
const MOST_V4: usize = 8;
const MOST_V6: usize = 32;

type Mac = [u8; 6];

/// See the module's description.
#[derive(Debug, Default)]
pub struct Neighbours {
    /// The router's own; `None` where there is no kernel to ask.
    own: Mutex<Option<Vec<Mac>>>,
    /// What was last read, and when that was begun.
    read: tokio::sync::Mutex<Option<(Instant, Arc<Vec<Neighbour>>)>>,
}

impl Neighbours {
    /// The MACs of the router's interfaces are these now.
    pub fn set_own(&self, macs: Vec<Mac>) {
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = Some(macs);
    }

    /// What is known of `host`, on the interface with this index: its other addresses, none of link-local scope, and its network card.
    /// Nothing of one that cannot be looked up in time.
    pub async fn of(&self, interface: u32, host: IpAddr) -> Known {
        let host = host.to_canonical();
        self.look(|all, own| known(all, interface, host, own)).await.unwrap_or_default()
    }

    /// All addresses of a device on whichever interface, and its network card if it was named by an address.
    pub async fn of_device(&self, device: Device) -> (Vec<IpAddr>, Option<HardwareAddress>) {
        self.look(|all, own| of_device(all, device, own)).await.unwrap_or_default()
    }

    async fn look<T>(&self, find: impl FnOnce(&[Neighbour], &[Mac]) -> T) -> Option<T> {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let all = tokio::time::timeout(TIME, self.table(Instant::now())).await.ok()??;
        Some(find(&all, &own))
    }

    /// The table as it was at `asked`, or later.
    async fn table(&self, asked: Instant) -> Option<Arc<Vec<Neighbour>>> {
        let mut read = self.read.lock().await;
        if let Some((begun, all)) = &*read {
            if *begun >= asked {
                return Some(all.clone());
            }
            tokio::time::sleep(BETWEEN.saturating_sub(begun.elapsed())).await;
        }
        let begun = Instant::now();
        match netlink::neighbours().await {
            Ok(all) => {
                let all = Arc::new(all);
                *read = Some((begun, all.clone()));
                Some(all)
            }
            Err(error) => {
                tracing::debug!("the addresses of neighbours: {error}");
                None
            }
        }
    }
}

/// The network card of a host, if it is one.
fn card(all: &[Neighbour], is_it: impl Fn(&Neighbour) -> bool, own: &[Mac]) -> Option<Mac> {
    let mac = all.iter().find(|entry| is_it(entry)).map(|entry| entry.mac)?;
    let is_multicast = mac[0] & 1 == 1;
    (!is_multicast && mac != Mac::default() && !own.contains(&mac)).then_some(mac)
}

fn known(all: &[Neighbour], interface: u32, host: IpAddr, own: &[Mac]) -> Known {
    let is_it = |entry: &Neighbour| entry.interface == interface && entry.addr == host;
    let hardware = card(all, is_it, own).map(HardwareAddress);
    Known { also: aliases(all, interface, host, own), hardware }
}

fn of_device(all: &[Neighbour], device: Device, own: &[Mac]) -> (Vec<IpAddr>, Option<HardwareAddress>) {
    let mac = match device {
        Device::Hardware(hardware) => Some(hardware.0),
        Device::Address(addr) => card(all, |entry| entry.addr == addr, own),
    };
    let its = all.iter().filter(|entry| Some(entry.mac) == mac && !own.contains(&entry.mac));
    (its.map(|entry| entry.addr.to_canonical()).collect(), mac.map(HardwareAddress))
}

/// What the neighbour table says of a host.
fn aliases(all: &[Neighbour], interface: u32, host: IpAddr, own: &[Mac]) -> Vec<IpAddr> {
    let here = || all.iter().filter(|entry| entry.interface == interface);
    let is_it = |entry: &Neighbour| entry.interface == interface && entry.addr == host;
    let Some(mac) = card(all, is_it, own) else { return Vec::new() };
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
            let known = known(&table(mac_of_host), interface, host.parse().unwrap(), &own);
            let is_host = !found.is_empty() || what == "another host, too";
            assert_eq!(known.hardware.is_some(), is_host, "{what}");
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
            // Its network card is one all the same, by which it counts as one.
            let host = super::known(&all, LAN, "fe80::10".parse().unwrap(), &own);
            assert_eq!(host.hardware, Some(HardwareAddress(mac(10))));
        }
    }

    #[test]
    fn a_device_by_either_name() {
        let mac = |last: u8| [2, 0, 0, 0, 0, last];
        let entry = |interface, addr: &str, mac| Neighbour { interface, addr: addr.parse().unwrap(), mac };
        let table = [
            entry(3, "192.168.1.10", mac(10)),
            entry(3, "2001:db8::10", mac(10)),
            entry(4, "192.168.2.10", mac(10)),
            entry(3, "192.168.1.11", mac(11)),
            entry(3, "192.168.1.1", mac(1)),
        ];
        let all = ["192.168.1.10", "2001:db8::10", "192.168.2.10"];
        for (device, addresses, card) in [
            ("02:00:00:00:00:0a", &all[..], Some(mac(10))),
            ("192.168.1.10", &all, Some(mac(10))),
            ("2001:db8::10", &all, Some(mac(10))),
            ("192.168.1.99", &[], None),
            ("02:00:00:00:00:63", &[], Some(mac(99))), // it is not here just now
            ("192.168.1.1", &[], None),                // the router's own
            ("02:00:00:00:00:01", &[], Some(mac(1))),
        ] {
            let (found, hardware) = of_device(&table, device.parse().unwrap(), &[mac(1)]);
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            assert_eq!(
                (found.as_slice(), hardware),
                (
                    &addresses.iter().map(|&addr| addr.to_owned()).collect::<Vec<_>>()[..],
                    card.map(HardwareAddress)
                ),
                "{device}"
            );
        }
    }

    #[tokio::test]
    async fn nothing_is_known_without_a_kernel_and_of_strangers() {
        let neighbours = Neighbours::default();
        assert_eq!(neighbours.of(1, "fe80::1".parse().unwrap()).await, Known::default());
        neighbours.set_own(Vec::new());
        for host in ["192.168.1.10", "::ffff:192.168.1.10", "2001:db8::ffff"] {
            assert_eq!(neighbours.of(u32::MAX, host.parse().unwrap()).await, Known::default(), "{host}");
        }
    }
}
