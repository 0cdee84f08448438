//! Several gateways behind one device: each uplink that LAN hosts are bound to has one of its own, with its own provider, external
//! address and table, and a control point sees that of its host. So two hosts may have the same port, each at its own address.
//!
//! Nobody gets anything at another uplink than his own, however long that is down: who is behind a VPN has a reason.

use std::net::{IpAddr, Ipv4Addr};

use wire::description::Uuid;
use wire::gena::Subscribe;
use wire::pcp::{self, PcpOption, Request};

use crate::gateway::{Change, Effect, Event, Gateway, LanInterface};
use crate::policy::{Device, Known};
use crate::prefix::Prefix;
use crate::time::Instant;

/// The place of an uplink: 0 is that of all hosts that are bound to no other one.
pub type Place = usize;

/// Whom an event is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum To {
    /// The uplink that it comes from.
    Uplink(Place),
    /// The uplink of this LAN host.
    Host(IpAddr),
}

/// See the module's description.
pub struct Gateways {
    /// At least one.
    all: Vec<Bound>,
}

struct Bound {
    gateway: Gateway,
    /// Nobody's are the first one's.
    hosts: Vec<Prefix>,
    stopped: bool,
}

impl Gateways {
    /// This one alone, which has all hosts, and is the one that searches are answered by.
    pub fn new(gateway: Gateway) -> Self {
        Self { all: vec![Bound { gateway, hosts: Vec::new(), stopped: false }] }
    }

    /// One more, of these hosts.
    #[must_use]
    pub fn with(mut self, hosts: Vec<Prefix>, gateway: Gateway) -> Self {
        let gateway = gateway.beside(self.all.len());
        self.all.push(Bound { gateway, hosts, stopped: false });
        self.all.iter_mut().for_each(|bound| bound.gateway.is_not_alone());
        self
    }

    /// How many there are.
    #[expect(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Each with its place, the first one first.
    pub fn iter(&self) -> impl Iterator<Item = (Place, &Gateway)> {
        self.all.iter().map(|bound| &bound.gateway).enumerate()
    }

    /// The first one: what is the same for all of them can be asked there.
    pub fn first(&self) -> &Gateway {
        &self.all.first().expect("there is always one").gateway
    }

    /// Which of them is a host's: the one with the longest prefix that it is in.
    pub fn of_host(&self, host: IpAddr) -> Place {
        let bits =
            |bound: &Bound| bound.hosts.iter().filter(|prefix| prefix.contains(host)).map(Prefix::bits).max();
        let longest = self.all.iter().enumerate().filter_map(|(place, bound)| Some((bits(bound)?, place)));
        longest.max_by_key(|&(bits, place)| (bits, std::cmp::Reverse(place))).map_or(0, |(_, place)| place)
    }

    /// Which of them is a control point's. A host that speaks over IPv6 is bound by its other addresses as well (K-3), if they are
    /// all of one uplink; of its addresses only those count that are of the uplink that it gets.
    fn of_control_point(&self, from: IpAddr, also: &mut Vec<IpAddr>) -> Place {
        let source = from.to_canonical();
        // Where nobody has bound an IPv6 address, that says nothing of whose its host is.
        let says = |host: IpAddr| host.is_ipv4() || self.is_bound(host);
        let mut places = also.iter().filter(|&&host| says(host)).map(|&host| self.of_host(host));
        let place = match places.next() {
            Some(first)
                if source.is_ipv6() && !self.is_bound(source) && places.all(|other| other == first) =>
            {
                first
            }
            _ => self.of_host(source),
        };
        also.retain(|&host| !says(host) || self.of_host(host) == place);
        place
    }

    fn of_subscription(&self, sid: Uuid) -> Option<Place> {
        self.all.iter().position(|bound| bound.gateway.has_subscription(sid))
    }

    fn is_bound(&self, host: IpAddr) -> bool {
        self.all.iter().any(|bound| bound.hosts.iter().any(|prefix| prefix.contains(host)))
    }

    /// Takes in one event, as [`Gateway::handle`] does. What comes from SSDP's port is for the first.
    pub fn handle(&mut self, now: Instant, to: To, event: Event<'_>) {
        let (place, event) = match (to, event) {
            (To::Host(_), Event::Control(mut request)) => {
                let place = self.of_control_point(request.from, &mut request.also);
                (place, Event::Control(request))
            }
            // Where it was made it goes on, whatever is known of its host by then.
            (To::Host(_), Event::Subscribe { request, from, mut also, interface, of, subscribe }) => {
                let place = self.of_control_point(from, &mut also);
                let made = match subscribe {
                    Subscribe::Renew { sid, .. } => self.of_subscription(sid),
                    Subscribe::New { .. } => None,
                };
                let event = Event::Subscribe { request, from, also, interface, of, subscribe };
                (made.unwrap_or(place), event)
            }
            (To::Host(_), Event::Unsubscribe { request, from, mut also, service, sid }) => {
                let place = self.of_control_point(from, &mut also);
                let event = Event::Unsubscribe { request, from, also, service, sid };
                (self.of_subscription(sid).unwrap_or(place), event)
            }
            // Nor does anybody get something at another uplink by asking for somebody there.
            (To::Host(host), Event::Lan5351 { arrival, bytes })
                if self.all.len() > 1
                    && third_party(bytes).is_some_and(|of| self.of_host(of) != self.of_host(host)) =>
            {
                (self.of_host(host), Event::Lan5351Elsewhere { arrival, bytes })
            }
            (To::Uplink(place), event) => (place, event),
            (To::Host(host), event) => (self.of_host(host), event),
        };
        if let Some(bound) = self.all.get_mut(place) {
            bound.gateway.handle(now, event);
        }
    }

    /// [`Gateways::next_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        for bound in &mut self.all {
            if bound.gateway.next_timeout().is_some_and(|due| due <= now) {
                bound.gateway.handle(now, Event::Timeout);
            }
        }
    }

    /// The LAN interfaces are these now.
    pub fn handle_lan(&mut self, now: Instant, lan: &[LanInterface]) {
        for bound in &mut self.all {
            bound.gateway.handle(now, Event::Lan(lan.to_vec()));
        }
    }

    /// Take everything back and stop.
    pub fn handle_stop(&mut self, now: Instant) {
        for bound in &mut self.all {
            bound.gateway.handle(now, Event::Stop);
        }
    }

    /// The hosts of the others are these now, in their order.
    pub fn bind(&mut self, now: Instant, hosts: Vec<Vec<Prefix>>) {
        for (bound, hosts) in self.all.iter_mut().skip(1).zip(hosts) {
            bound.hosts = hosts;
        }
        self.release_strangers(now);
    }

    /// What an uplink has of hosts that are another one's (now, or since before a restart) is given back: their applications ask
    /// again, and hear of their new address.
    pub fn release_strangers(&mut self, now: Instant) {
        let strangers = |place: Place, gateway: &Gateway| -> Vec<Ipv4Addr> {
            gateway.clients().into_iter().filter(|&host| self.of_host(host.into()) != place).collect()
        };
        let all: Vec<_> = self.iter().map(|(place, gateway)| strangers(place, gateway)).collect();
        for (bound, strangers) in self.all.iter_mut().zip(all).filter(|(_, strangers)| !strangers.is_empty())
        {
            bound.gateway.handle(now, Event::Rebound(strangers));
        }
    }

    /// What the neighbour table shows of a host, as [`Gateway::know`].
    pub fn know(&mut self, host: IpAddr, known: &Known) {
        for bound in &mut self.all {
            bound.gateway.know(host, known.clone());
        }
    }

    /// A datagram of this host to port 5351 was dropped unread, because too many were waiting.
    pub fn ignored(&mut self, host: IpAddr) {
        let place = self.of_host(host);
        if let Some(bound) = self.all.get_mut(place) {
            bound.gateway.ignored_on_lan();
        }
    }

    /// As [`Gateway::resolve_device`]: whichever of them knows better than who asks.
    pub fn resolve_device(&self, named: Device) -> Device {
        let better = self.iter().map(|(_, gateway)| gateway.resolve_device(named)).find(|&one| one != named);
        better.unwrap_or(named)
    }

    /// The next thing to do, and for which uplink; call until `None`. [`Effect::Stopped`] comes when all have stopped.
    pub fn poll_effect(&mut self) -> Option<(Place, Effect)> {
        for place in 0..self.all.len() {
            while let Some(effect) = self.all.get_mut(place).and_then(|bound| bound.gateway.poll_effect()) {
                if effect != Effect::Stopped {
                    return Some((place, effect));
                }
                if let Some(bound) = self.all.get_mut(place) {
                    bound.stopped = true;
                }
                if self.all.iter().all(|bound| bound.stopped) {
                    return Some((place, Effect::Stopped));
                }
            }
        }
        None
    }

    /// When [`Gateways::handle_timeout`] is due; `None` when nothing is to be waited for.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.all.iter().filter_map(|bound| bound.gateway.next_timeout()).min()
    }

    /// As [`Gateway::standing`], of all of them.
    pub fn standing(&self, now: Instant) -> impl Iterator<Item = (Place, Change)> {
        self.iter().flat_map(move |(place, gateway)| gateway.standing(now).map(move |change| (place, change)))
    }
}

/// The host that a PCP request is for, if it is not who asks.
fn third_party(bytes: &[u8]) -> Option<IpAddr> {
    let request = Request::parse(bytes).ok()?;
    request.options.iter().find_map(|option| match option {
        PcpOption::ThirdParty(host) => Some(pcp::ip_from_wire(*host)),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
