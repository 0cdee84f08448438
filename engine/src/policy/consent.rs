//! `policy.default = "ask"`: which hosts the owner of the router lets have mappings, and who waits for that.
//!
//! Decisions survive; who waits does not, for it asks again.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use wire::pcp::Protocol;

use super::{Device, Requester};
use crate::claims::{AskedBy, Asker};
use crate::time::{Duration, Instant};

/// So many wait; then who has been silent for the longest is forgotten, and waits again when it asks again.
pub const MOST_WAITING: usize = 64;
/// So many lines in a row say that somebody waits, and then one in this time: a host that pretends to be many fills no log.
const LINES: u32 = 8;
const LINE_EVERY: Duration = Duration::from_secs(60);

/// What the owner has said about who asks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Consent {
    /// Yes; or nobody asks for it.
    Given,
    /// No.
    Refused,
    /// Nothing yet.
    Unknown,
}

/// A decision.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Decided {
    /// About whom.
    pub device: Device,
    /// Where it was at the time, for people.
    pub address: Option<IpAddr>,
    /// Yes or no.
    pub allowed: bool,
}

/// What a host wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Wish {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The internal client and port.
    pub internal: SocketAddr,
    /// The external port; `None`: any.
    pub external_port: Option<u16>,
    /// In which protocol.
    pub by: Asker,
}

/// Somebody who waits for the owner.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Waiting {
    /// Who.
    pub device: Device,
    /// Where it last spoke from.
    pub address: IpAddr,
    /// What it wanted first.
    pub first: Wish,
    /// What it wanted last.
    pub last: Wish,
    /// In which protocols.
    pub asked_by: AskedBy,
    /// Since when.
    pub since: Instant,
    /// When it asked last.
    pub last_at: Instant,
    /// How often it has asked.
    pub times: u64,
}

/// What the owner wants of a decision.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verb {
    /// It may have mappings.
    Allow,
    /// It may not, and what it has goes.
    Deny,
    /// Nothing is decided: it waits when it asks again.
    Forget,
}

/// See the module's description.
#[derive(Debug)]
pub struct Consents {
    decided: BTreeMap<Device, Decided>,
    waiting: BTreeMap<Device, Waiting>,
    lines_left: u32,
    lines_since: Instant,
}

impl Default for Consents {
    fn default() -> Self {
        let (decided, waiting) = (BTreeMap::new(), BTreeMap::new());
        Self { decided, waiting, lines_left: LINES, lines_since: Instant::default() }
    }
}

impl Consents {
    /// What is decided of who asks: of its network card, else of any of its addresses, where a no counts more.
    pub fn of(&self, who: &Requester) -> Consent {
        let by_address = || {
            let addresses = self.decided.values().filter(|decided| match decided.device {
                Device::Address(addr) => who.has(addr),
                Device::Hardware(_) => false,
            });
            addresses.map(|decided| decided.allowed).min()
        };
        let by_hardware = self.decided.get(&who.device()).map(|decided| decided.allowed);
        match by_hardware.or_else(by_address) {
            None => Consent::Unknown,
            Some(true) => Consent::Given,
            Some(false) => Consent::Refused,
        }
    }

    /// Somebody asks about whom nothing is decided; true when that is worth a line.
    pub fn wait(&mut self, now: Instant, who: &Requester, wish: Wish) -> bool {
        let device = who.device();
        let mut asked_by = AskedBy::default();
        asked_by.add(wish.by);
        if let Some(before) = self.waiting.get_mut(&device) {
            before.asked_by.add(wish.by);
            (before.address, before.last, before.last_at) = (who.source(), wish, now);
            before.times = before.times.saturating_add(1);
            return false;
        }
        if self.waiting.len() >= MOST_WAITING {
            let oldest = self.waiting.values().min_by_key(|waiting| waiting.last_at).map(|one| one.device);
            if let Some(oldest) = oldest {
                self.waiting.remove(&oldest);
            }
        }
        let (address, first, last) = (who.source(), wish, wish);
        let (since, last_at, times) = (now, now, 1);
        self.waiting
            .insert(device, Waiting { device, address, first, last, asked_by, since, last_at, times });
        self.take_line(now)
    }

    fn take_line(&mut self, now: Instant) -> bool {
        let more = (now - self.lines_since).as_millis() / LINE_EVERY.as_millis();
        if more > 0 {
            let more = u32::try_from(more).unwrap_or(u32::MAX);
            self.lines_left = self.lines_left.saturating_add(more).min(LINES);
            self.lines_since = now;
        }
        let has = self.lines_left > 0;
        self.lines_left -= u32::from(has);
        has
    }

    /// Whom the owner means: somebody who waits, or was decided on, at this address is known by its network card, if that is known;
    /// of several, who asked last.
    pub fn resolve(&self, named: Device) -> Device {
        let Device::Address(addr) = named else { return named };
        let here = self.waiting.values().filter(|one| one.address == addr);
        let waiting = here.max_by_key(|one| one.last_at).map(|one| one.device);
        let decided = || {
            let exactly = self.decided.contains_key(&named).then_some(named);
            let at = || self.decided.values().find(|one| one.address == Some(addr)).map(|one| one.device);
            exactly.or_else(at)
        };
        waiting.or_else(decided).unwrap_or(named)
    }

    /// Where somebody who waits last spoke from, or was when it was decided on.
    pub fn address_of(&self, device: Device) -> Option<IpAddr> {
        let decided = || self.decided.get(&device)?.address;
        self.waiting.get(&device).map(|one| one.address).or_else(decided)
    }

    /// It is decided.
    pub fn decide(&mut self, decided: Decided) {
        self.waiting.remove(&decided.device);
        self.decided.insert(decided.device, decided);
    }

    /// It is not decided any more; whether there was anything to forget.
    pub fn forget(&mut self, device: Device) -> bool {
        let waited = self.waiting.remove(&device).is_some();
        self.decided.remove(&device).is_some() || waited
    }

    /// Who waits, who has waited longest first.
    pub fn waiting(&self) -> Vec<Waiting> {
        let mut all: Vec<Waiting> = self.waiting.values().copied().collect();
        all.sort_by_key(|one| (one.since, one.device));
        all
    }

    /// All decisions.
    pub fn decided(&self) -> impl Iterator<Item = Decided> {
        self.decided.values().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::HardwareAddress;

    fn wish(port: u16) -> Wish {
        let internal = SocketAddr::from(([192, 168, 1, 10], port));
        Wish { protocol: Protocol::TCP, internal, external_port: Some(port), by: Asker::Igd }
    }

    fn host(last: u8) -> Requester {
        Requester::new(IpAddr::from([192, 168, 1, last]), &[])
    }

    fn card(last: u8) -> HardwareAddress {
        HardwareAddress([2, 0, 0, 0, 0, last])
    }

    #[test]
    fn whom_a_decision_is_about() {
        let by_card = Device::Hardware(card(10));
        let at = |last| Device::Address(IpAddr::from([192, 168, 1, last]));
        let yes = |device| Decided { device, address: None, allowed: true };
        let no = |device| Decided { device, address: None, allowed: false };
        let plain = host(10);
        let known = host(10).with_hardware(Some(card(10)));
        let both = Requester::new(IpAddr::from([192, 168, 1, 10]), &[IpAddr::from([192, 168, 1, 11])]);
        for (what, decided, who, consent) in [
            ("nothing is decided", vec![], &plain, Consent::Unknown),
            ("of its card", vec![yes(by_card)], &known, Consent::Given),
            ("of its card, which nobody knows", vec![yes(by_card)], &plain, Consent::Unknown),
            ("of its address", vec![no(at(10))], &plain, Consent::Refused),
            ("of its address, whose card is known by now", vec![no(at(10))], &known, Consent::Refused),
            ("of its card, whatever its address", vec![yes(by_card), no(at(10))], &known, Consent::Given),
            ("of another", vec![yes(at(12))], &plain, Consent::Unknown),
            ("of one of its addresses", vec![yes(at(11))], &both, Consent::Given),
            ("of another of its addresses", vec![yes(at(11)), no(at(10))], &both, Consent::Refused),
        ] {
            let mut all = Consents::default();
            decided.into_iter().for_each(|one| all.decide(one));
            assert_eq!(all.of(who), consent, "{what}");
        }
    }

    #[test]
    fn who_waits_is_counted_and_known_again() {
        let mut all = Consents::default();
        let at = Instant::from_secs;
        let who = host(10).with_hardware(Some(card(10)));
        assert!(all.wait(at(1), &who, wish(80)));
        assert!(!all.wait(at(5), &host(20).with_hardware(Some(card(10))), wish(81)), "one line for each");
        let waiting = all.waiting();
        assert_eq!(waiting.len(), 1, "whatever its address");
        let Waiting { address, first, last, since, last_at, times, .. } = waiting[0];
        assert_eq!((first.external_port, last.external_port), (Some(80), Some(81)));
        assert_eq!((since, last_at, times), (at(1), at(5), 2));
        assert_eq!(address, IpAddr::from([192, 168, 1, 20]));
        // The owner says its address, and means the card that was seen there.
        let device = all.resolve(Device::Address(address));
        assert_eq!(device, Device::Hardware(card(10)));
        all.decide(Decided { device, address: Some(address), allowed: true });
        assert!(all.waiting().is_empty());
        assert_eq!(all.resolve(Device::Address(address)), device, "also afterwards");
        assert_eq!(all.address_of(device), Some(address));
        assert!(all.forget(device) && !all.forget(device));
        assert_eq!(all.of(&who), Consent::Unknown);
    }

    #[test]
    fn of_several_at_one_address_the_last_is_meant() {
        let mut all = Consents::default();
        for (seconds, last) in [(1, 9), (3, 11), (2, 10)] {
            all.wait(Instant::from_secs(seconds), &host(20).with_hardware(Some(card(last))), wish(80));
        }
        let named = Device::Address(IpAddr::from([192, 168, 1, 20]));
        assert_eq!(all.resolve(named), Device::Hardware(card(11)));
    }

    #[test]
    fn a_host_that_pretends_to_be_many_fills_neither_the_list_nor_the_log() {
        let mut all = Consents::default();
        let mut lines = 0;
        for n in 0..2000_u16 {
            let [high, low] = n.to_be_bytes();
            let who = Requester::new(IpAddr::from([10, 0, high, low]), &[]);
            lines += u32::from(all.wait(Instant::from_millis(u64::from(n)), &who, wish(80)));
            assert!(all.waiting().len() <= MOST_WAITING);
        }
        assert_eq!(lines, LINES);
        assert_eq!(
            all.waiting().first().map(|one| one.address),
            Some(IpAddr::from([10, 0, 7, 144])),
            "the newest stay"
        );
        assert!(all.wait(Instant::from_secs(62), &host(1), wish(80)), "a minute later there is a line again");
        assert!(!all.wait(Instant::from_secs(63), &host(2), wish(80)));
    }
}
