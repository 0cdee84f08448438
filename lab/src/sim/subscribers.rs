//! Hosts of a [`World`] that subscribe to state variables by GENA (UDA §4), and what they hear.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use engine::gateway::{Event, RequestId};
use engine::gena::{Delivery, Notification, SubscribeError};
use engine::time::{Duration, Instant};
use wire::description::Uuid;
use wire::gena::{self, GenaError};
use wire::services::{Face, Service};

use super::{KERNEL, LAN_INDEX, Parcel, World};

/// How long the daemon waits for a callback.
const PATIENCE: Duration = Duration::from_secs(2);

/// How a subscriber's callback takes events.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Callback {
    /// At once.
    Works,
    /// After so long; beyond two seconds the gateway gives up first.
    Takes(Duration),
    /// Nothing is there.
    Fails,
    /// It answers 412: it knows nothing of the subscription.
    Forgets,
}

/// One event, as it came to a subscriber.
#[derive(Clone, Debug)]
pub struct Told {
    /// When.
    pub at: Instant,
    /// SEQ.
    pub seq: u32,
    /// Names and values of state variables.
    pub values: Vec<(String, String)>,
}

/// A subscription, seen from the host that made it.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// The subscriber.
    pub host: Ipv4Addr,
    /// What it subscribed to.
    pub of: (Face, Service),
    /// When it ends unless it is renewed.
    pub ends: Instant,
    /// How it takes events.
    pub callback: Callback,
    /// What it heard.
    pub told: Vec<Told>,
    /// The variables as far as it was told.
    pub view: BTreeMap<String, String>,
    /// Whether an event did not reach it since it subscribed.
    pub missed: bool,
    /// Whether it has ended: by UNSUBSCRIBE, with the gateway, or by too many failures.
    pub over: bool,
    next_seq: u32,
    failures: u32,
    in_flight: bool,
}

impl World {
    /// A host subscribes, with a TIMEOUT header of so many seconds. The answer is the HTTP status of a refusal.
    ///
    /// # Errors
    /// 412, 503.
    pub fn subscribe(
        &mut self,
        host: Ipv4Addr,
        of: (Face, Service),
        timeout: u32,
        callback: Callback,
    ) -> Result<Uuid, u16> {
        self.subscribe_at(host, of, timeout, callback, &format!("<http://{host}:4004/event>"))
    }

    /// The same with another CALLBACK header than the usual one.
    ///
    /// # Errors
    /// 412, 503.
    pub fn subscribe_at(
        &mut self,
        host: Ipv4Addr,
        of: (Face, Service),
        timeout: u32,
        callback: Callback,
        url: &str,
    ) -> Result<Uuid, u16> {
        let timeout = format!("Second-{timeout}");
        let subscribe = gena::Subscribe::parse(Some(url), Some("upnp:event"), None, Some(&timeout));
        self.note(format!("{host} subscribes to {}", of.1.service_type(of.1.version(of.0))));
        let (sid, granted) = self.ask_to_subscribe(host, of, subscribe)?;
        let ends = self.now + granted;
        let fresh = Subscription {
            host,
            of,
            ends,
            callback,
            told: Vec::new(),
            view: BTreeMap::new(),
            missed: false,
            over: false,
            next_seq: 0,
            failures: 0,
            in_flight: false,
        };
        if self.subscriptions.insert(sid, fresh).is_some() {
            self.violation(format!("subscription {sid} is given out twice"));
        }
        Ok(sid)
    }

    /// A subscription is to go on.
    ///
    /// # Errors
    /// 412.
    pub fn renew(&mut self, sid: Uuid, timeout: u32) -> Result<(), u16> {
        let Some(Subscription { host, of, .. }) = self.subscriptions.get(&sid).cloned() else {
            return Err(GenaError::PreconditionFailed.status());
        };
        let (uuid, timeout) = (format!("uuid:{sid}"), format!("Second-{timeout}"));
        let subscribe = gena::Subscribe::parse(None, None, Some(&uuid), Some(&timeout));
        self.note(format!("{host} renews its subscription"));
        let (same, granted) = self.ask_to_subscribe(host, of, subscribe)?;
        let ends = self.now + granted;
        if same != sid {
            self.violation(format!("{sid} was renewed as {same}"));
        }
        self.subscriptions.get_mut(&sid).expect("it was there above").ends = ends;
        Ok(())
    }

    /// Another host renews a subscription, and ends it; whether it may.
    pub fn take_over_subscription(&mut self, thief: Ipv4Addr, sid: Uuid) -> bool {
        let Some(Subscription { of, .. }) = self.subscriptions.get(&sid).cloned() else { return false };
        self.note(format!("{thief} wants {sid}"));
        let uuid = format!("uuid:{sid}");
        let renewal = gena::Subscribe::parse(None, None, Some(&uuid), Some("Second-300"));
        let renewed = self.ask_to_subscribe(thief, of, renewal).is_ok();
        let request = self.new_request();
        let from = IpAddr::V4(thief);
        self.handle(Event::Unsubscribe { request, from, also: Vec::new(), service: of.1, sid });
        renewed || self.subscribed(request).is_ok()
    }

    /// A subscription ends.
    ///
    /// # Errors
    /// 412.
    pub fn unsubscribe(&mut self, sid: Uuid) -> Result<(), u16> {
        let Some(Subscription { host, of, .. }) = self.subscriptions.get(&sid).cloned() else {
            return Err(GenaError::PreconditionFailed.status());
        };
        self.note(format!("{host} unsubscribes"));
        let request = self.new_request();
        let sid = gena::parse_unsubscribe(None, None, Some(&format!("uuid:{sid}")));
        let sid = sid.map_err(GenaError::status)?;
        self.handle(Event::Unsubscribe {
            request,
            from: IpAddr::V4(host),
            also: Vec::new(),
            service: of.1,
            sid,
        });
        match self.subscribed(request) {
            Ok(None) => {
                self.subscriptions.get_mut(&sid).expect("it was there above").over = true;
                Ok(())
            }
            Ok(Some(_)) => {
                self.violation(format!("the end of {sid} is answered as its beginning"));
                Ok(())
            }
            Err(status) => Err(status),
        }
    }

    fn ask_to_subscribe(
        &mut self,
        host: Ipv4Addr,
        of: (Face, Service),
        subscribe: Result<gena::Subscribe, GenaError>,
    ) -> Result<(Uuid, Duration), u16> {
        let subscribe = subscribe.map_err(GenaError::status)?;
        let request = self.new_request();
        self.handle(Event::Subscribe {
            request,
            from: IpAddr::V4(host),
            also: Vec::new(),
            interface: LAN_INDEX,
            of,
            subscribe,
        });
        match self.subscribed(request)? {
            Some(granted) => Ok(granted),
            None => Err(0),
        }
    }

    /// The answer, which comes in the same turn; status 0 when the gateway is gone.
    fn subscribed(&mut self, request: RequestId) -> Result<Option<(Uuid, Duration)>, u16> {
        match self.gena_answers.remove(&request) {
            Some(answer) => answer.map_err(|error| match error {
                SubscribeError::PreconditionFailed => 412,
                SubscribeError::TooMany => 503,
            }),
            None if self.alive => {
                self.violation("a subscriber is not answered".to_owned());
                Err(0)
            }
            None => Err(0),
        }
    }

    /// What a host knows of its subscription.
    #[must_use]
    pub fn subscription(&self, sid: Uuid) -> Option<&Subscription> {
        self.subscriptions.get(&sid)
    }

    /// All subscriptions that were ever made.
    pub fn subscriptions(&self) -> impl Iterator<Item = (Uuid, &Subscription)> {
        self.subscriptions.iter().map(|(&sid, subscription)| (sid, subscription))
    }

    /// From now on a subscriber's callback behaves so.
    pub fn set_callback(&mut self, sid: Uuid, callback: Callback) {
        if let Some(subscription) = self.subscriptions.get_mut(&sid) {
            subscription.callback = callback;
        }
    }

    /// The gateway has gone, or said that it starts anew: nothing is to be heard of it.
    pub(super) fn end_subscriptions(&mut self) {
        self.gena_answers.clear();
        for subscription in self.subscriptions.values_mut() {
            (subscription.over, subscription.in_flight) = (true, false);
        }
    }

    /// The gateway sends an event.
    pub(super) fn on_notify(&mut self, event: Notification) {
        let Notification { sid, callbacks, seq, body, .. } = event;
        let now = self.now;
        let Some(subscription) = self.subscriptions.get_mut(&sid) else {
            return self.violation(format!("an event for {sid}, which nobody knows"));
        };
        let values = gena::parse_property_set(body.as_bytes());
        let (face, service) = subscription.of;
        let wrong = if subscription.over {
            Some("the subscription is over")
        } else if subscription.ends < now {
            Some("the subscription has run out")
        } else if subscription.in_flight {
            Some("another one is on its way")
        } else if seq != subscription.next_seq {
            Some("SEQ has a gap")
        } else if callbacks.iter().any(|url| url.host != IpAddr::V4(subscription.host))
            || callbacks.is_empty()
        {
            Some("it goes to another host than the subscriber")
        } else {
            match &values {
                Err(_) => Some("it cannot be read"),
                Ok(values) if values.is_empty() => Some("it says nothing"),
                Ok(values) if seq == 0 => {
                    let told: Vec<&str> = values.iter().map(|(name, _)| name.as_str()).collect();
                    let all: Vec<&str> = service.evented(face).map(|variable| variable.name).collect();
                    (told != all).then_some("the first one does not have every evented variable")
                }
                Ok(values) => {
                    let evented = |name: &str| service.evented(face).any(|variable| variable.name == name);
                    let all = values.iter().all(|(name, _)| evented(name));
                    (!all).then_some("it has a variable that is not evented")
                }
            }
        };
        subscription.in_flight = true;
        subscription.next_seq = gena::next_seq(seq);
        let values = values.unwrap_or_default();
        let (delay, delivery) = match subscription.callback {
            Callback::Works => (KERNEL, Delivery::Done),
            Callback::Takes(time) if time < PATIENCE => (time, Delivery::Done),
            Callback::Takes(_) => (PATIENCE, Delivery::Failed),
            Callback::Fails => (KERNEL, Delivery::Failed),
            Callback::Forgets => (KERNEL, Delivery::Unknown),
        };
        if let Some(wrong) = wrong {
            self.violation(format!("event {seq} for {sid}: {wrong}"));
        }
        self.post(delay, Parcel::Event { sid, seq, values, delivery });
    }

    /// An event has reached its subscriber, or not.
    pub(super) fn on_event(
        &mut self,
        sid: Uuid,
        seq: u32,
        values: Vec<(String, String)>,
        delivery: Delivery,
    ) {
        let now = self.now;
        let Some(subscription) = self.subscriptions.get_mut(&sid) else { return };
        subscription.in_flight = false;
        let line = match delivery {
            Delivery::Done => {
                subscription.failures = 0;
                subscription.view.extend(values.iter().cloned());
                let words: Vec<String> =
                    values.iter().map(|(name, value)| format!(" {name}={value:?}")).collect();
                subscription.told.push(Told { at: now, seq, values });
                format!("{} hears event {seq}:{}", subscription.host, words.concat())
            }
            Delivery::Failed | Delivery::Unknown => {
                subscription.missed = true;
                subscription.failures += 1;
                // Three in a row end it (E-6), and so does a callback that knows nothing of it (E-8).
                subscription.over |= delivery == Delivery::Unknown || subscription.failures >= 3;
                format!("{} does not hear event {seq}", subscription.host)
            }
        };
        self.note(line);
        self.handle(Event::Delivered { sid, delivery });
    }
}
