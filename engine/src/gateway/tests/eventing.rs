//! Events to subscribers (UDA §4, IGD:2 A-13): our answer to "the control point cannot be informed" (T-9).

use wire::gena::{CallbackUrl, Subscribe, parse_property_set};

use super::*;

impl Lab {
    fn subscribe(&mut self, from: Ipv4Addr, face: Face, service: Service) -> Uuid {
        self.next_id += 1;
        let request = RequestId(self.next_id);
        let callbacks = vec![CallbackUrl::parse(&format!("http://{from}:4004/e")).unwrap()];
        let subscribe = Subscribe::New { callbacks, timeout: Duration::from_secs(1800) };
        self.event(Event::Subscribe {
            request,
            from: IpAddr::V4(from),
            also: Vec::new(),
            interface: 3,
            of: (face, service),
            subscribe,
        });
        let (sid, timeout) = self.subscribed.remove(&request).unwrap().unwrap().unwrap();
        assert_eq!(timeout, Duration::from_secs(1800));
        sid
    }

    /// Runs for a second and takes every event as a good subscriber does; names and values, in the order of the table.
    fn told(&mut self, sid: Uuid) -> Vec<Vec<(String, String)>> {
        let mut told = Vec::new();
        for _ in 0..10 {
            self.run(self.now + 100);
            for (_, event) in std::mem::take(&mut self.events) {
                let delivery = Delivery::Done;
                self.event(Event::Delivered { sid: event.sid, delivery });
                if event.sid == sid {
                    told.push(parse_property_set(event.body.as_bytes()).unwrap());
                }
            }
        }
        told
    }
}

fn set(rows: &[(&str, &str)]) -> Vec<(String, String)> {
    rows.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// T-9, E-4, K-10, and A-13: both counters of a change in one event; nothing twice, nothing left out.
#[test]
fn a_subscriber_is_told_of_every_change_once() {
    let mut lab = Lab::up(NatMode::Own);
    let sid = lab.subscribe(BOB, Face::V2, Service::WanIpConnection);
    let initial = lab.told(sid);
    assert_eq!(initial.len(), 1);
    let initial: BTreeMap<_, _> = initial[0].iter().cloned().collect();
    assert_eq!(initial.len(), 5);
    assert_eq!(initial["ConnectionStatus"], "Connected");
    assert_eq!(initial["PortMappingNumberOfEntries"], "0");
    let id: u32 = initial["SystemUpdateID"].parse().unwrap();

    assert_eq!(lab.add(ALICE, 1, port(8080)), done());
    let after = |n: u32, entries: &str| {
        vec![set(&[("PortMappingNumberOfEntries", entries), ("SystemUpdateID", &n.to_string())])]
    };
    assert_eq!(lab.told(sid), after(id + 1, "1"));
    assert_eq!(lab.told(sid), Vec::<Vec<_>>::new());
    // The same again changes the lease: the counter counts, the number of entries stays.
    assert_eq!(lab.add(ALICE, 1, port(8080)), done());
    assert_eq!(lab.told(sid), [set(&[("SystemUpdateID", &(id + 2).to_string())])]);
    lab.start_delete(ALICE, 1, 8080);
    assert_eq!(lab.told(sid), after(id + 3, "0"));
}

/// The :1 face has no SystemUpdateID; the other services have their own variables.
#[test]
fn by_face_and_by_service() {
    let mut lab = Lab::up(NatMode::Own);
    let one = lab.subscribe(BOB, Face::V1, Service::WanIpConnection);
    let link = lab.subscribe(BOB, Face::V1, Service::WanCommonInterfaceConfig);
    let layer3 = lab.subscribe(BOB, Face::V2, Service::Layer3Forwarding);
    lab.run(lab.now + 1000);
    let names = |lab: &Lab, sid| -> Vec<String> {
        let (_, event) = lab.events.iter().find(|(_, event)| event.sid == sid).unwrap();
        parse_property_set(event.body.as_bytes()).unwrap().into_iter().map(|(name, _)| name).collect()
    };
    assert!(!names(&lab, one).contains(&"SystemUpdateID".to_owned()));
    assert_eq!(names(&lab, link), ["PhysicalLinkStatus"]);
    assert_eq!(names(&lab, layer3), ["DefaultConnectionService"]);
}

/// T-9, decision 13: ConnectionStatus, ExternalIPAddress and PhysicalLinkStatus follow the WAN.
#[test]
fn the_wan_is_evented() {
    let mut lab = Lab::up(NatMode::Own);
    let ip = lab.subscribe(BOB, Face::V1, Service::WanIpConnection);
    let link = lab.subscribe(BOB, Face::V1, Service::WanCommonInterfaceConfig);
    lab.told(ip);
    lab.event(Event::Wan(Wan { name: "wan0".into(), ..Wan::default() }));
    let mut down = Vec::new();
    for _ in 0..10 {
        lab.run(lab.now + 100);
        for (_, event) in std::mem::take(&mut lab.events) {
            lab.event(Event::Delivered { sid: event.sid, delivery: Delivery::Done });
            down.push((event.sid, parse_property_set(event.body.as_bytes()).unwrap()));
        }
    }
    down.sort_by_key(|(sid, _)| *sid != ip);
    assert_eq!(down[0], (ip, set(&[("ConnectionStatus", "Disconnected"), ("ExternalIPAddress", "")])));
    assert_eq!(down[1], (link, set(&[("PhysicalLinkStatus", "Down")])));
}

/// R-42, decision 12: each control point sees the address of the last answer about its own mappings; a new one is evented.
#[test]
fn the_external_address_is_kept_for_each_control_point() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 1, port(8080)), done());
    let before = lab.call(ALICE, 1, "GetExternalIPAddress", &[]).unwrap();
    let other: Ipv4Addr = "198.51.100.99".parse().unwrap();
    for provider in lab.providers.values_mut() {
        provider.config_mut().external = other;
    }
    let sid = lab.subscribe(BOB, Face::V1, Service::WanIpConnection);
    lab.told(sid);
    assert_eq!(lab.add(BOB, 1, port(9090)), done());
    assert_eq!(lab.call(ALICE, 1, "GetExternalIPAddress", &[]).unwrap(), before);
    assert_eq!(lab.call(BOB, 1, "GetExternalIPAddress", &[]).unwrap(), [other.to_string()]);
    let told = lab.told(sid).concat();
    assert!(told.contains(&("ExternalIPAddress".to_owned(), other.to_string())), "{told:?}");
}

/// E-9: a byebye or a new BOOTID ends all subscriptions; nobody is told anything any more.
#[test]
fn subscriptions_end_with_the_boot_id() {
    let mut lab = Lab::up(NatMode::Own);
    let sid = lab.subscribe(BOB, Face::V1, Service::WanIpConnection);
    lab.told(sid);
    let mut lan = lab.gateway.lan.clone();
    lan[0].addresses[0].addr = IpAddr::from([192, 168, 1, 254]);
    lab.event(Event::Lan(lan));
    assert_eq!(lab.add(ALICE, 1, port(8080)), done());
    assert_eq!(lab.told(sid), Vec::<Vec<_>>::new());
    let request = RequestId(9_999_999);
    let (from, service) = (IpAddr::V4(BOB), Service::WanIpConnection);
    lab.event(Event::Unsubscribe { request, from, also: Vec::new(), service, sid });
    assert_eq!(lab.subscribed.remove(&request), Some(Err(SubscribeError::PreconditionFailed)));
}
