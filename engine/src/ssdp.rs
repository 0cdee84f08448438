//! Being found: announcements and answers to searches (UDA §1), without a socket.
//!
//! It answers hosts of the LAN only, each search once, and never more than a bounded number of datagrams to one
//! source: SSDP is an amplifier.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use wire::description::Identity;
use wire::services::Face;
use wire::ssdp::{self, GROUP_V4, HOST_V4, Message, PORT, Search, Sender, Target};

use crate::device::{DeviceConfig, Devices, IgdVersion};
use crate::entropy::Entropy;
use crate::gateway::LanInterface;
use crate::policy::InterfaceAddress;
use crate::time::{Duration, Instant};

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
/// Datagrams to one source within a second: five complete sets.
const ANSWERS_PER_SOURCE: usize = 50;
/// Sources that are remembered for the limit, and answers that wait to be sent; beyond, searches are dropped.
const MAX_SOURCES: usize = 512;
const MAX_QUEUED: usize = 2048;

#[derive(Debug)]
struct Interface {
    index: u32,
    links: Vec<(Ipv4Addr, InterfaceAddress)>,
}

/// What one source was answered within the running second.
#[derive(Debug)]
struct Answered {
    since: Instant,
    datagrams: usize,
    searches: Vec<(u16, Target)>,
}

type Outgoing = (u32, SocketAddr, Vec<u8>);

/// See the module's description.
#[derive(Debug)]
pub struct SsdpServer {
    identity: Identity,
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
    sources: BTreeMap<IpAddr, Answered>,
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
    pub fn new(devices: &Devices, config: &DeviceConfig) -> Self {
        Self {
            identity: devices.identity().clone(),
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
            sources: BTreeMap::new(),
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

    /// The LAN interfaces are these now. What is new is announced; an address that changed is a new start
    /// (BOOTID) for whoever knows the old one.
    /// True when it was one: subscriptions to events are over then.
    pub fn set_interfaces(&mut self, now: Instant, lan: &[LanInterface], entropy: &mut dyn Entropy) -> bool {
        if self.stopped {
            return false;
        }
        let before = std::mem::take(&mut self.interfaces);
        self.interfaces = lan
            .iter()
            .map(|lan| Interface {
                index: lan.index,
                links: lan
                    .addresses
                    .iter()
                    .filter_map(|link| match link.addr {
                        IpAddr::V4(v4) => Some((v4, *link)),
                        IpAddr::V6(_) => None,
                    })
                    .collect(),
            })
            .filter(|interface| !interface.links.is_empty())
            .collect();
        let known = |interface: &Interface| {
            before.iter().any(|old| old.index == interface.index && old.links == interface.links)
        };
        if self.interfaces.iter().all(known) {
            return false;
        }
        let again = self.announced;
        if again {
            self.boot_id = (self.boot_id + 1) & 0x7fff_ffff;
        }
        self.announced = true;
        // What of an older announcement is not sent yet tells the old addresses.
        self.queue.retain(|_, (_, to, _)| !to.ip().is_multicast());
        let start = now + entropy.up_to(START_WAIT);
        self.announce(start, false);
        self.announce(start, true);
        self.announce(start + SECOND_SET, true);
        self.refresh = Some(start + REFRESH_FROM + entropy.up_to(REFRESH_TO - REFRESH_FROM));
        again
    }

    /// Reads a datagram that came in by `interface`.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        interface: u32,
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
                if self.answer(now, interface, from, &search, entropy).is_none() {
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
        own.any(|(own, _)| IpAddr::V4(*own) == from)
    }

    /// Queues the answers to a search; `None` when it is not answered for a reason worth counting.
    fn answer(
        &mut self,
        now: Instant,
        index: u32,
        from: SocketAddr,
        search: &Search,
        entropy: &mut dyn Entropy,
    ) -> Option<()> {
        let interface = self.interfaces.iter().find(|interface| interface.index == index)?;
        let (own, _) = *interface.links.iter().find(|(_, link)| link.contains(from.ip()))?;
        // An answer to a broadcast address would be everybody's.
        let is_host = match from.ip() {
            IpAddr::V4(host) => interface.links.iter().all(|(own, link)| *own != host && !link.is_edge(host)),
            IpAddr::V6(_) => false,
        };
        let port_allowed = from.port() >= 1024 || from.port() == PORT;
        if !port_allowed || !is_host {
            return None;
        }
        let matches: Vec<(Face, Target, String)> = self
            .faces_for(&search.target)
            .flat_map(|face| {
                let matches = ssdp::matches(face, &self.identity, &search.target);
                matches.into_iter().map(move |(st, usn)| (face, st, usn))
            })
            .collect();
        if matches.is_empty() {
            return Some(()); // somebody else's device is sought
        }
        if self.queue.len() + matches.len() > MAX_QUEUED
            || !self.within_limit(now, from, search, matches.len())
        {
            return None;
        }
        let spread = search.mx.map_or(FIRST_ANSWER, |mx| Duration::from_secs(u64::from(mx)).min(SPREAD));
        let first = entropy.up_to(FIRST_ANSWER.min(spread));
        let gap = spread.saturating_sub(first) / u32::try_from(matches.len()).unwrap_or(1);
        for (nth, (face, st, usn)) in (0_u32..).zip(matches) {
            let location = self.location(own, face);
            let text = ssdp::search_response(&self.sender(&location), &st, &usn, None);
            self.enqueue(now + first + gap * nth, (index, from, text.into_bytes()));
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

    /// One source hears each search once a second, and a bounded number of datagrams in all.
    fn within_limit(&mut self, now: Instant, from: SocketAddr, search: &Search, datagrams: usize) -> bool {
        let second = Duration::from_secs(1);
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&from.ip()) {
            self.sources.retain(|_, answered| now - answered.since < second);
            if self.sources.len() >= MAX_SOURCES {
                return false;
            }
        }
        let fresh = || Answered { since: now, datagrams: 0, searches: Vec::new() };
        let answered = self.sources.entry(from.ip()).or_insert_with(fresh);
        if now - answered.since >= second {
            *answered = fresh();
        }
        let key = (from.port(), search.target.clone());
        if answered.datagrams + datagrams > ANSWERS_PER_SOURCE || answered.searches.contains(&key) {
            return false;
        }
        answered.datagrams += datagrams;
        answered.searches.push(key);
        true
    }

    /// Queues the whole set on every interface: alive, or byebye.
    fn announce(&mut self, at: Instant, alive: bool) {
        let face = self.igd_version.usual();
        let group = SocketAddr::new(IpAddr::V4(GROUP_V4), PORT);
        let mut sets = Vec::new();
        for interface in &self.interfaces {
            let location = self.location(interface.links[0].0, face);
            for (nt, usn) in ssdp::advertisements(face, &self.identity) {
                let text = if alive {
                    ssdp::alive(&self.sender(&location), HOST_V4, &nt, &usn)
                } else {
                    ssdp::byebye(&self.sender(&location), HOST_V4, &nt, &usn)
                };
                sets.push((interface.index, group, text.into_bytes()));
            }
        }
        for outgoing in sets {
            self.enqueue(at, outgoing);
        }
    }

    /// Everything that is due.
    pub fn on_timeout(&mut self, now: Instant, entropy: &mut dyn Entropy) {
        if self.refresh.is_some_and(|at| at <= now) {
            self.announce(now, true);
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
        self.announce(now, false);
        while let Some((_, outgoing)) = self.queue.pop_first() {
            self.ready.push_back(outgoing);
        }
        self.interfaces.clear();
    }

    /// The next datagram to send: interface, destination, content.
    pub fn poll_transmit(&mut self) -> Option<(u32, SocketAddr, Vec<u8>)> {
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

    /// K-5: the very address that the datagram leaves from, as a literal.
    fn location(&self, own: Ipv4Addr, face: Face) -> String {
        format!("http://{own}:{}{}", self.http_port, face.description_path())
    }

    fn sender<'a>(&'a self, location: &'a str) -> Sender<'a> {
        Sender {
            location,
            server: &self.server,
            max_age: MAX_AGE,
            boot_id: self.boot_id,
            config_id: self.identity.config_id,
        }
    }
}

#[cfg(test)]
mod tests;
