//! Subscriptions to state variables (UDA §4), without a socket: who is told what, when and in which order.
//!
//! It never asks for values by itself: whoever owns it says which variables changed, and gives their values when an event
//! is made. Events of one turn are one message; a slow or dead subscriber delays nobody and is dropped.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};

use wire::description::Uuid;
use wire::gena::{self, CallbackUrl};
use wire::services::{Face, Service, Value, Variable};

use crate::entropy::Entropy;
use crate::policy::Requester;
use crate::time::{Duration, Instant, Timers};

/// Subscriptions of one host (security policy).
const PER_HOST: usize = 32;
/// Subscriptions in all.
const IN_ALL: usize = 512;
/// Those of hosts that speak over IPv6, where one has as many addresses as it wants: they never take all places.
const OVER_IPV6: usize = 256;
/// The initial event waits so long, so that it comes after the answer to SUBSCRIBE (E-4), and well within the two
/// seconds that clients wait for it (K-10).
const AFTER_ANSWER: Duration = Duration::from_millis(200);
/// Two events to one subscriber are never closer; what changes in between is told together.
const GAP: Duration = Duration::from_millis(200);
/// So many events in a row that could not be delivered end a subscription (E-6).
const FAILURES: u8 = 3;

/// Why a subscription is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SubscribeError {
    /// HTTP 412: no usable callback, or no such subscription.
    PreconditionFailed,
    /// HTTP 503: there are as many as there may be.
    TooMany,
}

/// Who subscribes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Subscriber {
    /// The host.
    pub who: Requester,
    /// The LAN interface that it is on.
    pub interface: u32,
}

/// An event on its way.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Notification {
    /// The subscription.
    pub sid: Uuid,
    /// Where to, in the order to try; all are the subscriber's own addresses.
    pub callbacks: Vec<CallbackUrl>,
    /// The LAN interface that it is on: a link-local address is one there.
    pub interface: u32,
    /// SEQ.
    pub seq: u32,
    /// The property set.
    pub body: String,
}

/// What became of a [`Notification`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Delivery {
    /// The subscriber took it.
    Done,
    /// It could not be reached, or did not answer in time.
    Failed,
    /// It does not know the subscription (412).
    Unknown,
}

#[derive(Debug)]
struct Subscription {
    subscriber: Subscriber,
    service: Service,
    face: Face,
    callbacks: Vec<CallbackUrl>,
    seq: u32,
    /// What may have another value than the subscriber was told.
    changed: BTreeSet<&'static str>,
    told: BTreeMap<&'static str, String>,
    in_flight: bool,
    /// What the last event told.
    on_its_way: Vec<&'static str>,
    failures: u8,
    not_before: Instant,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Alarm {
    Send(Uuid),
    Expire(Uuid),
}

/// See the module's description.
#[derive(Debug, Default)]
pub struct Subscriptions {
    all: BTreeMap<Uuid, Subscription>,
    per_host: BTreeMap<IpAddr, usize>,
    timers: Timers<Alarm>,
    due: VecDeque<Uuid>,
}

impl Subscriptions {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// A new subscription; its first event has every evented variable. Callbacks to any other host than the subscriber
    /// are passed over (E-10), who is one host by all of its addresses (K-3).
    pub fn subscribe(
        &mut self,
        now: Instant,
        subscriber: Subscriber,
        (face, service): (Face, Service),
        callbacks: Vec<CallbackUrl>,
        timeout: Duration,
        entropy: &mut dyn Entropy,
    ) -> Result<Uuid, SubscribeError> {
        let callbacks: Vec<CallbackUrl> =
            callbacks.into_iter().filter(|url| subscriber.who.has(url.host)).collect();
        if callbacks.is_empty() {
            return Err(SubscribeError::PreconditionFailed);
        }
        let host = subscriber.who.source();
        let own = self.per_host.get(&host).copied().unwrap_or(0);
        let v6 = self.per_host.iter().filter(|(host, _)| host.is_ipv6()).map(|(_, count)| count);
        let no_place = host.is_ipv6() && v6.sum::<usize>() >= OVER_IPV6;
        if own >= PER_HOST || self.all.len() >= IN_ALL || no_place {
            return Err(SubscribeError::TooMany);
        }
        let mut sid = Uuid([0; 16]);
        entropy.fill(&mut sid.0);
        let subscription = Subscription {
            subscriber,
            service,
            face,
            callbacks,
            seq: 0,
            changed: service.evented(face).map(|variable| variable.name).collect(),
            told: BTreeMap::new(),
            in_flight: false,
            on_its_way: Vec::new(),
            failures: 0,
            not_before: now + AFTER_ANSWER,
        };
        *self.per_host.entry(host).or_default() += 1;
        self.timers.set(Alarm::Expire(sid), now + timeout);
        self.timers.set(Alarm::Send(sid), subscription.not_before);
        self.all.insert(sid, subscription);
        Ok(sid)
    }

    /// The subscription goes on; for its subscriber only.
    pub fn renew(
        &mut self,
        now: Instant,
        who: &Requester,
        service: Service,
        sid: Uuid,
        timeout: Duration,
    ) -> Result<(), SubscribeError> {
        self.check_own(who, service, sid)?;
        self.timers.set(Alarm::Expire(sid), now + timeout);
        Ok(())
    }

    /// The subscription ends; for its subscriber only.
    pub fn unsubscribe(
        &mut self,
        who: &Requester,
        service: Service,
        sid: Uuid,
    ) -> Result<(), SubscribeError> {
        self.check_own(who, service, sid)?;
        self.remove(sid);
        Ok(())
    }

    fn check_own(&self, who: &Requester, service: Service, sid: Uuid) -> Result<(), SubscribeError> {
        let is_own =
            |found: &Subscription| found.subscriber.who.is_same_host(who) && found.service == service;
        self.all.get(&sid).is_some_and(is_own).then_some(()).ok_or(SubscribeError::PreconditionFailed)
    }

    /// Whether there is this one, whoever's it is.
    pub fn contains(&self, sid: Uuid) -> bool {
        self.all.contains_key(&sid)
    }

    /// These variables of `service` have other values now.
    pub fn changed(&mut self, now: Instant, service: Service, names: &[&'static str]) {
        for (&sid, subscription) in &mut self.all {
            if subscription.service != service {
                continue;
            }
            let face = subscription.face;
            let evented = service.evented(face).map(|variable| variable.name);
            let told: Vec<&str> = evented.filter(|name| names.contains(name)).collect();
            let any = !told.is_empty();
            subscription.changed.extend(told);
            if any && !subscription.in_flight {
                self.timers.set(Alarm::Send(sid), subscription.not_before.max(now));
            }
        }
    }

    /// What became of an event.
    pub fn delivered(&mut self, now: Instant, sid: Uuid, delivery: Delivery) {
        let Some(subscription) = self.all.get_mut(&sid) else { return };
        subscription.in_flight = false;
        subscription.failures = match delivery {
            Delivery::Done => 0,
            Delivery::Failed => subscription.failures + 1,
            Delivery::Unknown => FAILURES,
        };
        if subscription.failures >= FAILURES {
            return self.remove(sid);
        }
        subscription.not_before = now + GAP;
        if !subscription.changed.is_empty() {
            self.timers.set(Alarm::Send(sid), now + GAP);
        }
        if delivery == Delivery::Failed {
            // It is not told again by itself; the next event tells it, too.
            for name in std::mem::take(&mut subscription.on_its_way) {
                subscription.told.remove(name);
                subscription.changed.insert(name);
            }
        }
    }

    /// Everything that is due: subscriptions that are over go, events become ready for [`poll`](Self::poll).
    pub fn on_timeout(&mut self, now: Instant) {
        while let Some(alarm) = self.timers.pop_due(now) {
            match alarm {
                Alarm::Expire(sid) => self.remove(sid),
                Alarm::Send(sid) => self.due.push_back(sid),
            }
        }
    }

    /// The next event; `value` gives a variable's value as that subscriber is to see it.
    pub fn poll(
        &mut self,
        value: impl Fn(Face, Service, &'static Variable, &Requester) -> Option<Value>,
    ) -> Option<Notification> {
        while let Some(sid) = self.due.pop_front() {
            let Some(subscription) = self.all.get_mut(&sid) else { continue };
            if subscription.in_flight || subscription.changed.is_empty() {
                continue;
            }
            let names = std::mem::take(&mut subscription.changed);
            let Subscription { service, face, .. } = *subscription;
            let mut properties: Vec<(&'static str, String)> = Vec::new();
            for variable in service.evented(face).filter(|variable| names.contains(variable.name)) {
                let Some(value) = value(face, service, variable, &subscription.subscriber.who) else {
                    continue;
                };
                let text = value.to_string();
                if subscription.told.insert(variable.name, text.clone()).as_ref() != Some(&text) {
                    properties.push((variable.name, text));
                }
            }
            if properties.is_empty() {
                continue; // it is again what it was
            }
            subscription.on_its_way = properties.iter().map(|(name, _)| *name).collect();
            let properties: Vec<(&str, &dyn std::fmt::Display)> =
                properties.iter().map(|(name, text)| (*name, text as &dyn std::fmt::Display)).collect();
            let seq = subscription.seq;
            subscription.seq = gena::next_seq(seq);
            subscription.in_flight = true;
            let (callbacks, interface) = (subscription.callbacks.clone(), subscription.subscriber.interface);
            return Some(Notification {
                sid,
                callbacks,
                interface,
                seq,
                body: gena::property_set(&properties),
            });
        }
        None
    }

    /// When [`on_timeout`](Self::on_timeout) is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// All subscriptions are over: a byebye or a new BOOTID says so (E-9).
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whoever has one, by its IPv4 addresses.
    pub fn hosts(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.all.values().flat_map(|subscription| subscription.subscriber.who.addresses()).copied()
    }

    /// Those of this host are over: it learns so when it renews one.
    pub fn forget(&mut self, host: Ipv4Addr) {
        let own = self.all.iter().filter(|(_, subscription)| subscription.subscriber.who.is(host));
        for sid in own.map(|(&sid, _)| sid).collect::<Vec<_>>() {
            self.remove(sid);
        }
    }

    fn remove(&mut self, sid: Uuid) {
        let Some(subscription) = self.all.remove(&sid) else { return };
        self.timers.cancel(Alarm::Send(sid));
        self.timers.cancel(Alarm::Expire(sid));
        let host = subscription.subscriber.who.source();
        if let Some(own) = self.per_host.get_mut(&host) {
            *own -= 1;
            if *own == 0 {
                self.per_host.remove(&host);
            }
        }
    }
}

#[cfg(test)]
mod tests;
