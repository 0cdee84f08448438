//! Being found: announcements and answers to searches over IPv4 and IPv6 (UDA §1 and annex A), without a socket.
//!
//! It answers hosts of the LAN only, each search once and over the family that it came by, and never more than a bounded
//! number of datagrams to one source: SSDP is an amplifier. What it says of where it is holds of the address that it says
//! it from.

mod budget;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use wire::services::Face;
use wire::ssdp::{
    self, GROUP_V4, GROUP_V6_LINK, GROUP_V6_SITE, HOST_V4, HOST_V6_LINK, HOST_V6_SITE, Message, PORT, Search,
    Sender, Target,
};

use crate::device::{DeviceConfig, Devices, IgdVersion};
use crate::entropy::Entropy;
use crate::gateway::LanInterface;
use crate::policy::InterfaceAddress;
use crate::time::{Duration, Instant};
use budget::Budget;

/// How long announcements and answers hold, in seconds.
const MAX_AGE: u32 = 1800;
/// The first announcement comes after a random wait up to this.
const START_WAIT: Duration = Duration::from_millis(100);
/// The set is announced twice, so far apart.
const SECOND_SET: Duration = Duration::from_millis(250);
/// Announcements are repeated after a random time from here …
const REFRESH_FROM: Duration = Duration::from_secs(600);
/// … up to here, which is half of [`MAX_AGE`].
const REFRESH_TO: Duration = Duration::from_secs(900);
/// The first answer to a search is never later, however long the control point would wait.
const FIRST_ANSWER: Duration = Duration::from_millis(100);
/// Answers are spread over this time at most: a common client stops listening when its MX is over.
const SPREAD: Duration = Duration::from_secs(1);
/// Answers that wait to be sent; beyond, searches are dropped.
const MAX_QUEUED: usize = 2048;
/// Of those, the ones over IPv6, where a host has as many addresses as it wants: they never take all places.
const QUEUED_OVER_IPV6: usize = MAX_QUEUED / 2;

/// The groups that are announced to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Group {
    V4,
    Link,
    Site,
}

impl Group {
    const ALL: [Self; 3] = [Self::V4, Self::Link, Self::Site];

    fn to(self) -> SocketAddr {
        let addr = match self {
            Self::V4 => IpAddr::V4(GROUP_V4),
            Self::Link => IpAddr::V6(GROUP_V6_LINK),
            Self::Site => IpAddr::V6(GROUP_V6_SITE),
        };
        SocketAddr::new(addr, PORT)
    }

    fn host(self) -> &'static str {
        match self {
            Self::V4 => HOST_V4,
            Self::Link => HOST_V6_LINK,
            Self::Site => HOST_V6_SITE,
        }
    }

    /// Whether what goes there comes from an address like this (annex A: of the group's scope).
    fn suits(self, own: IpAddr) -> bool {
        match (self, own) {
            (Self::V4, IpAddr::V4(_)) => true,
            (Self::Link, IpAddr::V6(own)) => own.is_unicast_link_local(),
            (Self::Site, IpAddr::V6(own)) => !own.is_unicast_link_local() && !own.is_loopback(),
            _ => false,
        }
    }
}

#[derive(Debug)]
struct Interface {
    index: u32,
    links: Vec<InterfaceAddress>,
    /// The address of ours that each group is told.
    told: [Option<IpAddr>; 3],
}

impl Interface {
    fn new(lan: &LanInterface, before: Option<&Interface>) -> Self {
        let told = Group::ALL.map(|group| {
            let suiting = || lan.addresses.iter().map(|link| link.addr).filter(|own| group.suits(*own));
            // What was told stays as long as it is there; and what the router has chosen itself outlives what a provider has lent it.
            let old = before.and_then(|before| before.told(group)).filter(IpAddr::is_ipv6);
            let lasting = |own: &IpAddr| matches!(own, IpAddr::V6(own) if own.is_unique_local());
            old.filter(|old| suiting().any(|own| own == *old))
                .or_else(|| suiting().find(lasting))
                .or_else(|| suiting().next())
        });
        Self { index: lan.index, links: lan.addresses.clone(), told }
    }

    fn told(&self, group: Group) -> Option<IpAddr> {
        self.told.get(group as usize).copied().flatten()
    }

    fn v4(&self) -> impl Iterator<Item = &InterfaceAddress> {
        self.links.iter().filter(|link| link.addr.is_ipv4())
    }
}

/// A datagram to be sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outgoing {
    /// The kernel's number of the interface.
    pub interface: u32,
    /// Our address that it comes from.
    pub local: IpAddr,
    /// A control point, or a group.
    pub to: SocketAddr,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// See the module's description.
#[derive(Debug)]
pub struct SsdpServer {
    devices: Rc<Devices>,
    igd_version: IgdVersion,
    server: String,
    http_port: u16,
    boot_id: u32,
    announced: bool,
    stopped: bool,
    interfaces: Vec<Interface>,
    queue: BTreeMap<(Instant, u64), Outgoing>,
    next: u64,
    refresh: Option<Instant>,
    budget: Budget,
    ignored: u64,
    heard: Heard,
    ready: std::collections::VecDeque<Outgoing>,
}

/// Well-formed searches that came in.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Heard {
    /// By others.
    pub hosts: u64,
    /// By this router itself.
    pub own: u64,
}

impl SsdpServer {
    /// A server that knows no interface yet.
    pub fn new(devices: &Rc<Devices>, config: &DeviceConfig) -> Self {
        Self {
            devices: Rc::clone(devices),
            igd_version: config.igd_version,
            server: config.server.clone(),
            http_port: config.http_port,
            boot_id: config.boot_id & 0x7fff_ffff,
            announced: false,
            stopped: false,
            interfaces: Vec::new(),
            queue: BTreeMap::new(),
            next: 0,
            refresh: None,
            budget: Budget::default(),
            ignored: 0,
            heard: Heard::default(),
            ready: std::collections::VecDeque::new(),
        }
    }

    /// Searches that came in, whether they were answered or not.
    pub fn heard(&self) -> Heard {
        self.heard
    }

    /// Datagrams that were not answered: malformed, foreign, too many.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// The LAN interfaces are these now. What is new is announced; an IPv4 address that changed is a new start
    /// (BOOTID) for whoever knows the old one.
    /// True when it was one: subscriptions to events are over then.
    pub fn set_interfaces(&mut self, now: Instant, lan: &[LanInterface], entropy: &mut dyn Entropy) -> bool {
        if self.stopped {
            return false;
        }
        let before = std::mem::take(&mut self.interfaces);
        let old = |index: u32| before.iter().find(|old| old.index == index);
        self.interfaces = lan
            .iter()
            .map(|lan| Interface::new(lan, old(lan.index)))
            .filter(|interface| interface.told.iter().any(Option::is_some))
            .collect();
        let known = |interface: &Interface| {
            interface.v4().next().is_none()
                || old(interface.index).is_some_and(|old| old.v4().eq(interface.v4()))
        };
        if self.interfaces.is_empty() || self.announced && self.interfaces.iter().all(known) {
            self.announce_comers(now, &before, entropy);
            return false;
        }
        let again = self.announced;
        if again {
            self.boot_id = (self.boot_id + 1) & 0x7fff_ffff;
        }
        self.announced = true;
        // What of an older announcement is not sent yet tells the old addresses.
        self.queue.retain(|_, outgoing| !outgoing.to.ip().is_multicast());
        let start = now + entropy.up_to(START_WAIT);
        self.announce(&[start], false);
        self.announce(&[start, start + SECOND_SET], true);
        self.refresh = Some(start + REFRESH_FROM + entropy.up_to(REFRESH_TO - REFRESH_FROM));
        again
    }

    /// IPv6 addresses come and go by themselves, and who knows one that has gone is still on the link: that is no new start, which
    /// would end everybody's subscriptions. Where another one is told now it is announced, without the byebye that
    /// would be that of the same device over IPv4.
    fn announce_comers(&mut self, now: Instant, before: &[Interface], entropy: &mut dyn Entropy) {
        let told = |all: &[Interface], index: u32, group: Group| {
            all.iter().find(|interface| interface.index == index).and_then(|found| found.told(group))
        };
        let stands = |outgoing: &Outgoing| {
            let of = self.interfaces.iter().filter(|interface| interface.index == outgoing.interface);
            of.flat_map(|interface| interface.told).any(|told| told == Some(outgoing.local))
        };
        self.queue.retain(|_, outgoing| !outgoing.to.ip().is_multicast() || stands(outgoing));
        let mut comers = Vec::new();
        for interface in &self.interfaces {
            for group in Group::ALL {
                let is = interface.told(group);
                if is.is_some() && is != told(before, interface.index, group) {
                    comers.extend(self.set(interface, group, true));
                }
            }
        }
        if comers.is_empty() {
            return;
        }
        let start = now + entropy.up_to(START_WAIT);
        self.enqueue_all(&[start, start + SECOND_SET], comers);
    }

    /// Reads a datagram that came in by `interface`, to `local` of our addresses, or to a group or nobody knows where.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        (interface, local): (u32, Option<IpAddr>),
        from: SocketAddr,
        bytes: &[u8],
        entropy: &mut dyn Entropy,
    ) {
        match ssdp::parse(bytes) {
            Ok(Message::Search(search)) => {
                if self.is_own(from.ip()) {
                    self.heard.own += 1;
                } else {
                    self.heard.hosts += 1;
                }
                let search = (&search, bytes.len());
                if self.answer(now, (interface, local), from, search, entropy).is_none() {
                    self.ignored += 1;
                }
            }
            // Other devices' announcements, and our own that came back.
            Ok(Message::Notify(_) | Message::Response(_)) => {}
            Err(_) => self.ignored += 1,
        }
    }

    /// Whether it is one of this router's addresses, from which `portferry doctor` searches.
    fn is_own(&self, from: IpAddr) -> bool {
        let mut own = self.interfaces.iter().flat_map(|interface| &interface.links);
        own.any(|own| own.addr == from)
    }

    /// Queues the answers to a search; `None` when it is not answered for a reason worth counting.
    fn answer(
        &mut self,
        now: Instant,
        (index, local): (u32, Option<IpAddr>),
        from: SocketAddr,
        (search, octets): (&Search, usize),
        entropy: &mut dyn Entropy,
    ) -> Option<()> {
        let interface = self.interfaces.iter().find(|interface| interface.index == index)?;
        let near = interface.links.iter().find(|link| link.contains(from.ip()))?.addr;
        // K-5: it answers where it was asked, and who asks everybody hears of the address next to his.
        let own = match local {
            Some(local) => interface.links.iter().find(|own| own.addr == local)?.addr,
            None => near,
        };
        // An answer to a broadcast address would be everybody's.
        let is_host = interface.links.iter().all(|own| match from.ip() {
            IpAddr::V4(host) => own.addr != host && !own.is_edge(host),
            IpAddr::V6(host) => own.addr != host,
        });
        let port_allowed = from.port() >= 1024 || from.port() == PORT;
        if !port_allowed || !is_host {
            return None;
        }
        let matches: Vec<(Face, Target, String)> = self
            .faces_for(&search.target)
            .flat_map(|face| {
                let matches = ssdp::matches(self.devices.advertised(face), &search.target);
                matches.into_iter().map(move |(st, usn)| (face, st, usn))
            })
            .collect();
        if matches.is_empty() {
            return Some(()); // somebody else's device is sought
        }
        let v6 = self.queue.values().filter(|waits| from.is_ipv6() && waits.to.is_ipv6()).count();
        if self.queue.len() + matches.len() > MAX_QUEUED || v6 + matches.len() > QUEUED_OVER_IPV6 {
            return None;
        }
        let datagrams = matches.len();
        let mut budget = std::mem::take(&mut self.budget);
        let answers =
            budget.spend(now, (index, from.ip()), (from.port(), &search.target, octets), datagrams, || {
                let answer = |(face, st, usn): (Face, Target, String)| {
                    let location = self.location(own, face);
                    ssdp::search_response(&self.sender(&location), &st, &usn, None).into_bytes()
                };
                matches.into_iter().map(answer).collect()
            });
        self.budget = budget;
        let answers = answers?;
        // Who asks this router alone waits for nobody else's answer (S-6).
        let spread = match search.mx {
            _ if local.is_some() || is_for(search, own) => Duration::ZERO,
            Some(mx) => Duration::from_secs(u64::from(mx)).min(SPREAD),
            None => FIRST_ANSWER,
        };
        let first = entropy.up_to(FIRST_ANSWER.min(spread));
        let gap = spread.saturating_sub(first) / u32::try_from(datagrams).unwrap_or(1);
        for (nth, bytes) in (0_u32..).zip(answers) {
            let outgoing = Outgoing { interface: index, local: own, to: from, bytes };
            self.enqueue(now + first + gap * nth, outgoing);
        }
        Some(())
    }

    /// Decision 10 and K-1: who searches for a `:2` type is led to the `:2` face, everybody else to the `:1` face.
    fn faces_for(&self, target: &Target) -> impl Iterator<Item = Face> + use<> {
        let version = self.igd_version;
        let asks_for_two =
            matches!(target, Target::Device { version: 2.., .. } | Target::Service { version: 2.., .. });
        let by_name = matches!(target, Target::Uuid(_));
        Face::ALL.into_iter().filter(move |&face| {
            let wanted = if asks_for_two && version.shows(Face::V2) { Face::V2 } else { version.usual() };
            version.shows(face) && (by_name || face == wanted)
        })
    }

    /// Queues the whole set on every interface, for every group, at each of these times: alive, or byebye.
    fn announce(&mut self, times: &[Instant], alive: bool) {
        let mut set = Vec::new();
        for interface in &self.interfaces {
            for group in Group::ALL {
                set.extend(self.set(interface, group, alive));
            }
        }
        self.enqueue_all(times, set);
    }

    fn enqueue_all(&mut self, times: &[Instant], set: Vec<Outgoing>) {
        let Some((last, earlier)) = times.split_last() else { return };
        for at in earlier {
            for outgoing in &set {
                self.enqueue(*at, outgoing.clone());
            }
        }
        for outgoing in set {
            self.enqueue(*last, outgoing);
        }
    }

    /// The whole set for one group, which is none where no address of ours suits it.
    fn set(&self, interface: &Interface, group: Group, alive: bool) -> Vec<Outgoing> {
        let Some(own) = interface.told(group) else { return Vec::new() };
        let face = self.igd_version.usual();
        let location = self.location(own, face);
        let message = |(nt, usn): &(Target, String)| {
            let text = if alive {
                ssdp::alive(&self.sender(&location), group.host(), nt, usn)
            } else {
                ssdp::byebye(&self.sender(&location), group.host(), nt, usn)
            };
            Outgoing { interface: interface.index, local: own, to: group.to(), bytes: text.into_bytes() }
        };
        self.devices.advertised(face).iter().map(message).collect()
    }

    /// Everything that is due.
    pub fn on_timeout(&mut self, now: Instant, entropy: &mut dyn Entropy) {
        if self.refresh.is_some_and(|at| at <= now) {
            self.announce(&[now], true);
            self.refresh = Some(now + REFRESH_FROM + entropy.up_to(REFRESH_TO - REFRESH_FROM));
        }
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > now {
                break;
            }
            self.ready.push_back(entry.remove());
        }
    }

    /// Takes back every announcement, at once.
    pub fn stop(&mut self, now: Instant) {
        self.stopped = true;
        self.queue.clear();
        self.refresh = None;
        self.announce(&[now], false);
        while let Some((_, outgoing)) = self.queue.pop_first() {
            self.ready.push_back(outgoing);
        }
        self.interfaces.clear();
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Outgoing> {
        self.ready.pop_front()
    }

    /// When [`on_timeout`](Self::on_timeout) is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
        [queued, self.refresh].into_iter().flatten().min()
    }

    fn enqueue(&mut self, at: Instant, outgoing: Outgoing) {
        self.next += 1;
        self.queue.insert((at, self.next), outgoing);
    }

    /// K-5: the very address that the datagram leaves from, as a literal. A zone would be our own name of the link, which means
    /// nothing to anybody else (annex A, RFC 6874 §1).
    fn location(&self, own: IpAddr, face: Face) -> String {
        format!("http://{}{}", SocketAddr::new(own, self.http_port), face.description_path())
    }

    fn sender<'a>(&'a self, location: &'a str) -> Sender<'a> {
        Sender {
            location,
            server: &self.server,
            max_age: MAX_AGE,
            boot_id: self.boot_id,
            config_id: self.devices.identity().config_id,
        }
    }
}

/// Whether a search names this address of ours as the one that it goes to, and has no MX, as one that goes to a group has.
fn is_for(search: &Search, own: IpAddr) -> bool {
    let host = search.host.as_deref().filter(|_| search.mx.is_none()).unwrap_or_default();
    let named = host.parse().map(|named: SocketAddr| named.ip()).or_else(|_| host.parse());
    named == Ok(own)
}

#[cfg(test)]
mod tests;
