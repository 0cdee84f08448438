//! Who may have how many connections, so that one host never has the others' places.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

pub(super) const CONNECTIONS_PER_HOST: usize = 32;
pub(super) const CONNECTIONS: usize = 256;
/// A host has as many IPv6 addresses as it wants: those that speak over IPv6 never take all places.
pub(super) const CONNECTIONS_OVER_IPV6: usize = 128;

/// Connections of each host, the oldest first. No host without one is remembered.
#[derive(Debug, Default)]
pub struct Places {
    hosts: BTreeMap<IpAddr, VecDeque<Arc<Notify>>>,
}

impl Places {
    /// Whether nobody has one.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    fn count(&self, counts: impl Fn(&IpAddr) -> bool) -> usize {
        self.hosts.iter().filter(|(host, _)| counts(host)).map(|(_, own)| own.len()).sum()
    }

    /// Where all places are taken, whoever has most of them gives its oldest one to a host that has fewer even with that; false when
    /// there is no such host.
    fn make_room(&mut self, host: IpAddr) -> bool {
        let over_ipv6 = |host: &IpAddr| host.is_ipv6();
        let all_taken = self.count(|_| true) >= CONNECTIONS;
        if !(all_taken || host.is_ipv6() && self.count(over_ipv6) >= CONNECTIONS_OVER_IPV6) {
            return true;
        }
        let own = self.hosts.get(&host).map_or(0, VecDeque::len);
        let rivals = self.hosts.iter_mut().filter(|(rival, _)| all_taken || over_ipv6(rival));
        let Some((_, most)) = rivals.max_by_key(|(_, theirs)| theirs.len()) else { return false };
        if most.len() <= own + 1 {
            return false;
        }
        if let Some(oldest) = most.pop_front() {
            oldest.notify_one();
        }
        true
    }
}

/// One of the connections that a host may have, given back on drop.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Mutex<Places>>,
    host: IpAddr,
    lost: Arc<Notify>,
}

impl Place {
    pub(super) fn take(places: &Arc<Mutex<Places>>, host: IpAddr) -> Option<Self> {
        let mut all = places.lock().unwrap_or_else(PoisonError::into_inner);
        if all.hosts.get(&host).is_some_and(|own| own.len() >= CONNECTIONS_PER_HOST) || !all.make_room(host) {
            return None;
        }
        let lost = Arc::new(Notify::new());
        all.hosts.entry(host).or_default().push_back(lost.clone());
        Some(Self { places: places.clone(), host, lost })
    }

    /// Comes when another host has got the place.
    pub(super) async fn lost(&self) {
        self.lost.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = all.hosts.get_mut(&self.host) {
            own.retain(|other| !Arc::ptr_eq(other, &self.lost));
            if own.is_empty() {
                all.hosts.remove(&self.host);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_check::is_lost;

    use super::*;

    /// Looking at a future once needs no runtime.
    mod futures_check {
        use std::pin::pin;
        use std::task::{Context, Waker};

        pub(super) fn is_lost(place: &super::Place) -> bool {
            pin!(place.lost()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
        }
    }

    fn host(n: usize) -> IpAddr {
        IpAddr::from([10, 0, 0, u8::try_from(n).unwrap()])
    }

    #[test]
    fn a_host_that_is_turned_away_is_not_remembered() {
        let places = Arc::default();
        let own: Vec<Place> = (0..CONNECTIONS).filter_map(|_| Place::take(&places, host(1))).collect();
        assert_eq!(own.len(), CONNECTIONS_PER_HOST);
        assert!(Place::take(&places, host(2)).is_some(), "another host is served");
        let v6 = |n: u16| IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, n]);
        let flood: Vec<Place> = (0..1000).filter_map(|n| Place::take(&places, v6(n))).collect();
        assert_eq!(flood.len(), CONNECTIONS_OVER_IPV6);
        assert_eq!(places.lock().unwrap().hosts.len(), 1 + CONNECTIONS_OVER_IPV6);
        assert!(Place::take(&places, host(2)).is_some(), "also beside a flood from very many addresses");
        drop((own, flood));
        assert!(places.lock().unwrap().hosts.is_empty());
    }

    /// All places taken by few: the next host has the oldest of whoever has most, and no more than its share.
    #[test]
    fn who_has_most_gives_to_who_has_none() {
        let places = Arc::default();
        let taken: Vec<Place> = (0..CONNECTIONS)
            .map(|n| Place::take(&places, host(n / CONNECTIONS_PER_HOST)).expect("there is room"))
            .collect();
        assert!(Place::take(&places, host(0)).is_none(), "nothing for who has enough");
        let newcomer: Vec<Place> = (0..40).map_while(|_| Place::take(&places, host(100))).collect();
        assert_eq!(newcomer.len(), CONNECTIONS / 9, "as many as everybody");
        assert_eq!(taken.iter().filter(|place| is_lost(place)).count(), newcomer.len());
        assert!(!newcomer.iter().any(is_lost));
        let all = places.lock().unwrap();
        assert_eq!(all.count(|_| true), CONNECTIONS);
        let counts: Vec<usize> = all.hosts.values().map(VecDeque::len).collect();
        assert!(counts.iter().all(|&count| count.abs_diff(CONNECTIONS / 9) <= 1), "{counts:?}");
        drop(all);
        drop((taken, newcomer));
        assert!(places.lock().unwrap().hosts.is_empty());
    }

    #[test]
    fn who_has_a_single_place_keeps_it() {
        let places = Arc::default();
        let taken: Vec<Place> = (0..CONNECTIONS)
            .map(|n| Place::take(&places, IpAddr::from([10, 0, 1, u8::try_from(n).unwrap()])).expect("room"))
            .collect();
        assert!(Place::take(&places, host(1)).is_none());
        assert!(!taken.iter().any(is_lost));
    }
}
