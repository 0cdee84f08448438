//! Datagrams that have come and not been looked at. Whoever sends many waits for itself: each source has its turn, and takes
//! no place of another's.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

use super::sockets::Datagram;

/// Datagrams of all sources together.
const MOST: usize = 8192;
/// Datagrams of one source.
const EACH: usize = 32;
/// As many as that of all, and each source may have one.
const CROWDED: usize = MOST / 2;

/// See the module's description. Every operation costs the logarithm of the number of sources.
#[derive(Debug, Default)]
pub struct Waiting {
    by_source: BTreeMap<IpAddr, VecDeque<Datagram>>,
    /// The sources that have some, whose turn is next first.
    turns: VecDeque<IpAddr>,
    len: usize,
    dropped: u64,
}

impl Waiting {
    /// Takes one in, or drops it; `bits` of an IPv6 address tell one source from another.
    pub fn push(&mut self, datagram: Datagram, bits: u8) {
        let source = match datagram.from.ip().to_canonical() {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) if v6.is_unicast_link_local() => v6.into(),
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0);
                Ipv6Addr::from(u128::from(v6) & mask).into()
            }
        };
        let own = self.by_source.get(&source).map_or(0, VecDeque::len);
        let most = if self.len < CROWDED { EACH } else { 1 };
        if own >= most || self.len >= MOST {
            self.dropped += 1;
            return;
        }
        if own == 0 {
            self.turns.push_back(source);
        }
        self.by_source.entry(source).or_default().push_back(datagram);
        self.len += 1;
    }

    /// The one whose turn it is.
    pub fn pop(&mut self) -> Option<Datagram> {
        let source = self.turns.pop_front()?;
        let own = self.by_source.get_mut(&source)?;
        let datagram = own.pop_front();
        if own.is_empty() {
            self.by_source.remove(&source);
        } else {
            self.turns.push_back(source);
        }
        self.len -= usize::from(datagram.is_some());
        datagram
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many were not taken in.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::sockets::Place;
    use super::*;

    fn datagram(from: IpAddr, number: u8) -> Datagram {
        let place = Place { interface: "lan".into(), index: 1, addr: IpAddr::from([10, 8, 0, 1]) };
        Datagram { place, from: SocketAddr::new(from, 5350), bytes: vec![number] }
    }

    fn v4(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a08_0000 + n).into()
    }

    #[test]
    fn each_source_has_its_turn_and_its_order() {
        let mut waiting = Waiting::default();
        for number in 0..200 {
            waiting.push(datagram(v4(1), number), 64);
        }
        waiting.push(datagram(v4(2), 200), 64);
        waiting.push(datagram(v4(2), 201), 64);
        let all: Vec<u8> = std::iter::from_fn(|| waiting.pop()).map(|one| one.bytes[0]).collect();
        assert_eq!(all[..5], [0, 200, 1, 201, 2]);
        assert_eq!((all.len(), waiting.dropped()), (EACH + 2, 200 - EACH as u64));
        assert!(waiting.is_empty() && waiting.by_source.is_empty() && waiting.turns.is_empty());
    }

    /// However many sources there are, nobody who has nothing waiting is kept out by those who have much.
    #[test]
    fn a_crowd_leaves_room_and_takes_no_more_memory() {
        let mut waiting = Waiting::default();
        for _ in 0..100 {
            (1..=4000).for_each(|n| waiting.push(datagram(v4(n), 0), 64));
        }
        assert!(waiting.len < MOST, "{}", waiting.len);
        waiting.push(datagram(v4(5000), 1), 64);
        assert!(waiting.by_source.contains_key(&v4(5000)));
        (6000..20_000).for_each(|n| waiting.push(datagram(v4(n), 0), 64));
        assert_eq!(waiting.len, MOST);
        assert_eq!(std::iter::from_fn(|| waiting.pop()).count(), MOST);
        assert_eq!(waiting.len, 0);
    }

    #[test]
    fn an_ipv6_prefix_is_one_source() {
        let mut waiting = Waiting::default();
        for n in 0..200_u128 {
            let addr = Ipv6Addr::from((0x2001_0db8 << 96) | n);
            waiting.push(datagram(addr.into(), 0), 64);
        }
        assert_eq!(waiting.by_source.len(), 1);
        waiting.push(datagram(IpAddr::V6("2001:db8:0:1::1".parse().unwrap()), 0), 64);
        assert_eq!(waiting.by_source.len(), 2);
        for host in ["fe80::1", "fe80::2"] {
            waiting.push(datagram(IpAddr::V6(host.parse().unwrap()), 0), 64);
        }
        assert_eq!(waiting.by_source.len(), 4, "on the link each host is one");
    }
}
