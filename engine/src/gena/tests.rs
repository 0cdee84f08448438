use super::*;
use crate::entropy::SeededEntropy;

const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 1, 10));
const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 1, 11));
const WAN: Service = Service::WanIpConnection;
const HALF_HOUR: Duration = Duration::from_secs(1800);

fn ms(at: u64) -> Instant {
    Instant::from_millis(at)
}

/// A host with one address.
fn who(host: IpAddr) -> Requester {
    Requester::new(host, &[])
}

fn url(text: &str) -> CallbackUrl {
    CallbackUrl::parse(text).unwrap()
}

/// Another value each time.
fn value(_: Face, _: Service, variable: &'static Variable, who: &Requester) -> Option<Value> {
    thread_local!(static N: std::cell::Cell<u32> = const { std::cell::Cell::new(0) });
    let n = N.get();
    N.set(n + 1);
    Some(Value::Text(format!("{} for {}, {n}", variable.name, who.source())))
}

struct Rig {
    subscriptions: Subscriptions,
    entropy: SeededEntropy,
}

impl Rig {
    fn new() -> Self {
        Self { subscriptions: Subscriptions::default(), entropy: SeededEntropy::new(1) }
    }

    fn subscribe(
        &mut self,
        at: u64,
        host: IpAddr,
        face: Face,
        callbacks: &[&str],
    ) -> Result<Uuid, SubscribeError> {
        self.subscribe_as(at, who(host), face, callbacks)
    }

    fn subscribe_as(
        &mut self,
        at: u64,
        who: Requester,
        face: Face,
        callbacks: &[&str],
    ) -> Result<Uuid, SubscribeError> {
        let callbacks = callbacks.iter().map(|text| url(text)).collect();
        let subscriber = Subscriber { who, interface: 3 };
        self.subscriptions.subscribe(ms(at), subscriber, (face, WAN), callbacks, HALF_HOUR, &mut self.entropy)
    }

    fn one(&mut self, at: u64) -> Uuid {
        self.subscribe(at, HOST, Face::V2, &["http://192.168.1.10:5000/e"]).unwrap()
    }

    /// What is sent at `at`.
    fn events(&mut self, at: u64) -> Vec<Notification> {
        self.subscriptions.on_timeout(ms(at));
        std::iter::from_fn(|| self.subscriptions.poll(value)).collect()
    }
}

fn names(notification: &Notification) -> Vec<String> {
    let properties = gena::parse_property_set(notification.body.as_bytes()).unwrap();
    properties.into_iter().map(|(name, _)| name).collect()
}

/// E-4, K-10: all evented variables, SEQ 0, after the answer and within two seconds; by face.
#[test]
fn the_initial_event_has_everything() {
    let mut rig = Rig::new();
    rig.one(0);
    rig.subscribe(0, OTHER, Face::V1, &["http://192.168.1.11/"]).unwrap();
    assert_eq!(rig.events(199), []);
    let events = rig.events(200);
    assert_eq!(events.len(), 2);
    for event in events {
        assert_eq!(event.seq, 0);
        let two = event.callbacks[0].host == HOST;
        let mut wanted = vec![
            "PossibleConnectionTypes",
            "ConnectionStatus",
            "ExternalIPAddress",
            "PortMappingNumberOfEntries",
        ];
        if two {
            wanted.push("SystemUpdateID");
        }
        let mut got = names(&event);
        got.sort();
        wanted.sort_unstable();
        assert_eq!(got, wanted);
        assert!(event.body.contains(&format!("ExternalIPAddress for {}", event.callbacks[0].host)), "R-42");
    }
}

/// A-13 and E-5: what changes together is told together, SEQ counts up, unknown and other services' names are nothing.
#[test]
fn one_event_per_change_set() {
    let mut rig = Rig::new();
    let sid = rig.one(0);
    assert_eq!(rig.events(200).len(), 1);
    rig.subscriptions.delivered(ms(210), sid, Delivery::Done);
    rig.subscriptions.changed(ms(300), WAN, &["PortMappingNumberOfEntries", "SystemUpdateID"]);
    rig.subscriptions.changed(ms(300), Service::Layer3Forwarding, &["DefaultConnectionService"]);
    rig.subscriptions.changed(ms(300), WAN, &["Uptime"]);
    assert_eq!(rig.events(409), [], "moderation: 200 ms after the last one");
    rig.subscriptions.changed(ms(409), WAN, &["ExternalIPAddress"]);
    let events = rig.events(410);
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].sid, events[0].seq), (sid, 1));
    assert_eq!(names(&events[0]), ["ExternalIPAddress", "PortMappingNumberOfEntries", "SystemUpdateID"]);
    // While it is on its way, more is collected and sent after its end, not before.
    rig.subscriptions.changed(ms(500), WAN, &["ConnectionStatus"]);
    assert_eq!(rig.events(5000), []);
    rig.subscriptions.delivered(ms(5000), sid, Delivery::Done);
    let events = rig.events(5200);
    assert_eq!((events[0].seq, names(&events[0])), (2, vec!["ConnectionStatus".to_owned()]));
}

/// What changes back before it is told was never changed.
#[test]
fn nobody_is_told_the_same_again() {
    let mut rig = Rig::new();
    let sid = rig.one(0);
    let same = |_: Face, _: Service, variable: &'static Variable, _: &Requester| {
        Some(Value::Text(variable.name.to_owned()))
    };
    rig.subscriptions.on_timeout(ms(200));
    assert!(rig.subscriptions.poll(same).is_some());
    rig.subscriptions.delivered(ms(200), sid, Delivery::Done);
    rig.subscriptions.changed(ms(500), WAN, &["ConnectionStatus"]);
    rig.subscriptions.on_timeout(ms(500));
    assert_eq!(rig.subscriptions.poll(same), None);
    rig.subscriptions.changed(ms(600), WAN, &["ConnectionStatus"]);
    assert_eq!(rig.events(600)[0].seq, 1, "no number is lost on it");
}

/// E-10, K-3 and K-10: callbacks to any of the subscriber's own addresses, and to nobody else's; it is told at which link it is. By
/// whichever of them it renews the subscription and ends it.
#[test]
fn a_subscriber_is_one_host_by_all_of_its_addresses() {
    let addr = |text: &str| text.parse::<IpAddr>().unwrap();
    let host = |source: &str, also: &[&str]| {
        Requester::new(addr(source), &also.iter().map(|text| addr(text)).collect::<Vec<_>>())
    };
    let (all, global) = (["192.168.1.10", "2001:db8::10"], ["192.168.1.10", "2001:db8::11"]);
    for (source, also, callback, taken) in [
        ("fe80::10", &all[..], "http://[fe80::10]:5000/e", true),
        ("fe80::10", &all, "http://[fe80::10%eth0]:5000/e", true),
        ("fe80::10", &all, "http://[2001:db8::10]:5000/e", true),
        ("fe80::10", &all, "http://192.168.1.10:5000/e", true),
        ("2001:db8::10", &global, "http://[2001:db8::11]:5000/e", true),
        ("2001:db8::10", &[], "http://[2001:db8::10]:5000/e", true),
        ("::ffff:192.168.1.10", &[], "http://192.168.1.10:5000/e", true),
        ("fe80::10", &all, "http://[fe80::11]:5000/e", false),
        ("fe80::10", &all, "http://192.168.1.11:5000/e", false),
        ("fe80::10", &[], "http://[2001:db8::10]:5000/e", false), // nothing is known of it
        ("2001:db8::10", &[], "http://192.168.1.10:5000/e", false),
        ("192.168.1.10", &[], "http://[2001:db8::10]:5000/e", false),
    ] {
        let mut rig = Rig::new();
        let told = rig.subscribe_as(0, host(source, also), Face::V2, &[callback]);
        assert_eq!(told.is_ok(), taken, "{source} {callback}");
        let events = rig.events(200);
        let to: Vec<_> = events.iter().map(|event| (event.callbacks.clone(), event.interface)).collect();
        assert_eq!(to, told.iter().map(|_| (vec![url(callback)], 3)).collect::<Vec<_>>());
    }
    let mut rig = Rig::new();
    let sid = rig.subscribe_as(0, host("fe80::10", &all), Face::V2, &["http://[fe80::10]/"]).unwrap();
    for (source, also, is_it) in [
        ("fe80::10", &[][..], true),
        ("2001:db8::10", &[], true),
        ("192.168.1.10", &[], true),
        ("2001:db8::99", &["192.168.1.10"], true), // an address of today
        ("fe80::11", &["192.168.1.11"], false),
        ("2001:db8::11", &[], false),
    ] {
        let told = rig.subscriptions.renew(ms(1), &host(source, also), WAN, sid, HALF_HOUR);
        assert_eq!(told.is_ok(), is_it, "{source}");
    }
    assert_eq!(rig.subscriptions.hosts().collect::<Vec<_>>(), [std::net::Ipv4Addr::new(192, 168, 1, 10)]);
    assert_eq!(rig.subscriptions.unsubscribe(&host("2001:db8::10", &[]), WAN, sid), Ok(()));
}

/// E-10: callbacks to the subscriber's own address only.
#[test]
fn callstranger() {
    let mut rig = Rig::new();
    let refused = Err(SubscribeError::PreconditionFailed);
    assert_eq!(rig.subscribe(0, HOST, Face::V1, &["http://203.0.113.9/"]), refused);
    assert_eq!(rig.subscribe(0, HOST, Face::V1, &["http://192.168.1.11/"]), refused);
    rig.subscribe(0, HOST, Face::V1, &["http://192.168.1.11/", "http://192.168.1.10:1/x"]).unwrap();
    assert_eq!(rig.events(200)[0].callbacks, [url("http://192.168.1.10:1/x")]);
}

/// Security policy: only the subscriber renews or cancels.
#[test]
fn a_subscription_belongs_to_its_subscriber() {
    let mut rig = Rig::new();
    let sid = rig.one(0);
    let subscriptions = &mut rig.subscriptions;
    let refused = Err(SubscribeError::PreconditionFailed);
    assert_eq!(subscriptions.renew(ms(1), &who(OTHER), WAN, sid, HALF_HOUR), refused);
    assert_eq!(subscriptions.renew(ms(1), &who(HOST), Service::Layer3Forwarding, sid, HALF_HOUR), refused);
    assert_eq!(subscriptions.unsubscribe(&who(OTHER), WAN, sid), refused);
    assert_eq!(subscriptions.renew(ms(1000), &who(HOST), WAN, sid, HALF_HOUR), Ok(()));
    assert_eq!(subscriptions.unsubscribe(&who(HOST), WAN, sid), Ok(()));
    assert_eq!(subscriptions.unsubscribe(&who(HOST), WAN, sid), refused);
    assert!(subscriptions.is_empty());
}

#[test]
fn a_subscription_ends_unless_it_is_renewed() {
    let mut rig = Rig::new();
    let sid = rig.one(0);
    rig.events(200);
    rig.subscriptions.delivered(ms(200), sid, Delivery::Done);
    assert_eq!(rig.subscriptions.renew(ms(1_000_000), &who(HOST), WAN, sid, HALF_HOUR), Ok(()));
    rig.events(2_799_999);
    assert_eq!(rig.subscriptions.len(), 1, "no initial event after a renewal (E-4)");
    rig.events(2_800_000);
    assert!(rig.subscriptions.is_empty());
    assert_eq!(rig.subscriptions.next_timeout(), None);
}

/// E-6, E-8: three failures in a row, or a subscriber that knows nothing of it, end it.
#[test]
fn dead_subscribers_are_dropped() {
    let mut rig = Rig::new();
    let sid = rig.one(0);
    for attempt in 0..3_u64 {
        let at = 1000 * (attempt + 1);
        rig.subscriptions.changed(ms(at), WAN, &["ConnectionStatus"]);
        assert_eq!(rig.events(at + 300).len(), 1, "attempt {attempt}");
        rig.subscriptions.delivered(ms(at + 300), sid, Delivery::Failed);
    }
    assert!(rig.subscriptions.is_empty());
    let sid = rig.one(10_000);
    rig.events(10_200);
    rig.subscriptions.delivered(ms(10_201), sid, Delivery::Unknown);
    assert!(rig.subscriptions.is_empty());
    rig.subscriptions.delivered(ms(10_202), sid, Delivery::Done); // stale
}

#[test]
fn counts_are_bounded() {
    let mut rig = Rig::new();
    for _ in 0..PER_HOST {
        rig.one(0);
    }
    assert_eq!(rig.subscribe(0, HOST, Face::V1, &["http://192.168.1.10/"]), Err(SubscribeError::TooMany));
    rig.subscribe(0, OTHER, Face::V1, &["http://192.168.1.11/"]).unwrap();
    for n in 0..1000 {
        let host = std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, n);
        let _ = rig.subscribe(0, IpAddr::V6(host), Face::V1, &[&format!("http://[{host}]/")]);
    }
    assert_eq!(rig.subscriptions.len(), PER_HOST + 1 + OVER_IPV6, "there is room for others");
    for n in 0..=IN_ALL {
        let host = std::net::Ipv4Addr::from(0x0a00_0000 + u32::try_from(n).unwrap());
        let _ = rig.subscribe(0, IpAddr::V4(host), Face::V1, &[&format!("http://{host}/")]);
    }
    assert_eq!(rig.subscriptions.len(), IN_ALL);
}
