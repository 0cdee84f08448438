//! Being found, in virtual time: who is answered, with what, when, and who is not.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use wire::description::{Identity, Uuid};
use wire::ssdp::{Notify, Nts, Response};

use super::budget::{MAX_SOURCES, SOURCES_OVER_IPV6};
use super::*;
use crate::entropy::SeededEntropy;

const OWN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);

fn config(igd_version: IgdVersion) -> DeviceConfig {
    DeviceConfig {
        seed: [7; 16],
        token: [7; 16],
        boot_id: 41,
        friendly_name: "portferry".into(),
        http_port: 5000,
        igd_version,
        server: "Linux/6 UPnP/1.1 portferry/0.1".into(),
        version: "0.1".into(),
    }
}

fn lan(index: u32, addrs: &[([u8; 4], u8)]) -> LanInterface {
    let address =
        |&(addr, prefix_len): &([u8; 4], u8)| InterfaceAddress { addr: IpAddr::from(addr), prefix_len };
    LanInterface { index, name: format!("lan{index}"), addresses: addrs.iter().map(address).collect() }
}

fn home() -> LanInterface {
    lan(3, &[([192, 168, 1, 1], 24)])
}

/// An interface with these addresses of either version.
fn dual(index: u32, addrs: &[&str]) -> LanInterface {
    let address = |text: &&str| {
        let (addr, prefix_len) = text.split_once('/').unwrap();
        InterfaceAddress { addr: addr.parse().unwrap(), prefix_len: prefix_len.parse().unwrap() }
    };
    LanInterface { index, name: format!("lan{index}"), addresses: addrs.iter().map(address).collect() }
}

const LINK: &str = "fe80::1/64";
const GLOBAL: &str = "2001:db8:7::1/64";
const LOCAL: &str = "fd00:7::1/64";

struct Rig {
    server: SsdpServer,
    entropy: SeededEntropy,
    now: u64,
    identity: Identity,
}

/// When, by which interface, to whom, what.
type Sent = (u64, u32, SocketAddr, Message);

impl Rig {
    /// One that knows no interface yet.
    fn new(igd_version: IgdVersion, seed: u64) -> Self {
        let devices = Rc::new(Devices::new(&config(igd_version)));
        let identity = devices.identity().clone();
        let server = SsdpServer::new(&devices, &config(igd_version));
        Self { server, entropy: SeededEntropy::new(seed), now: 0, identity }
    }

    /// One on the home LAN that has announced itself.
    fn at_home(igd_version: IgdVersion) -> Self {
        let mut rig = Self::new(igd_version, 1);
        rig.set(&[home()]);
        rig.run(10_000);
        rig
    }

    fn set(&mut self, lan: &[LanInterface]) {
        self.server.set_interfaces(Instant::from_millis(self.now), lan, &mut self.entropy);
    }

    fn run(&mut self, to: u64) -> Vec<Sent> {
        let mut out = self.drain();
        while let Some(at) = self.server.next_timeout().map(Instant::as_millis).filter(|&at| at <= to) {
            assert!(at >= self.now);
            self.now = at;
            self.server.on_timeout(Instant::from_millis(at), &mut self.entropy);
            out.extend(self.drain());
        }
        self.now = to;
        out
    }

    /// Of every datagram: it is short, over one family, and what it says of where we are is where it comes from (K-5).
    fn drain(&mut self) -> Vec<Sent> {
        let now = self.now;
        std::iter::from_fn(|| self.server.poll_transmit())
            .map(|Outgoing { interface, local, to, bytes }| {
                assert!(bytes.len() <= ssdp::MAX_SENT);
                assert_eq!(local.is_ipv4(), to.is_ipv4());
                let message = ssdp::parse(&bytes).expect("we speak SSDP");
                let location = match &message {
                    Message::Notify(notify) => notify.location.clone(),
                    Message::Response(response) => Some(response.location.clone()),
                    Message::Search(_) => panic!("we search for nobody"),
                };
                let own = format!("http://{}/", SocketAddr::new(local, 5000));
                assert!(location.is_none_or(|location| location.starts_with(&own)), "{own}");
                (now, interface, to, message)
            })
            .collect()
    }

    /// A search now, and everything that is sent within the next five seconds.
    fn search(&mut self, from: &str, target: &Target, mx: Option<u8>) -> Vec<Sent> {
        self.receive(3, from, ssdp::search(HOST_V4, target, mx).as_bytes());
        self.run(self.now + 5000)
    }

    fn receive(&mut self, interface: u32, from: &str, bytes: &[u8]) {
        self.receive_at(interface, None, from, bytes);
    }

    fn receive_at(&mut self, interface: u32, local: Option<&str>, from: &str, bytes: &[u8]) {
        let now = Instant::from_millis(self.now);
        let arrival = (interface, local.map(|local| local.parse().unwrap()));
        self.server.handle_datagram(now, arrival, from.parse().unwrap(), bytes, &mut self.entropy);
    }

    fn udn(&self, face: Face) -> String {
        self.identity.udn(face, wire::services::Device::InternetGateway)
    }
}

fn notifies(sent: &[Sent]) -> Vec<(u64, u32, Nts, Notify)> {
    sent.iter()
        .map(|(at, interface, to, message)| match message {
            Message::Notify(notify) => {
                assert_eq!(*to, "239.255.255.250:1900".parse().unwrap());
                (*at, *interface, notify.nts, notify.clone())
            }
            other => panic!("{other:?}"),
        })
        .collect()
}

fn responses(sent: &[Sent], to: &str) -> Vec<(u64, Response)> {
    sent.iter()
        .map(|(at, interface, dest, message)| match message {
            Message::Response(response) => {
                assert_eq!((*interface, *dest), (3, to.parse().unwrap()));
                (*at, response.clone())
            }
            other => panic!("{other:?}"),
        })
        .collect()
}

fn device(version: u8) -> Target {
    Target::Device { name: "InternetGatewayDevice".into(), version }
}

fn wan_ip(version: u8) -> Target {
    Target::Service { name: "WANIPConnection".into(), version }
}

const HOST: &str = "192.168.1.10:50000";

// Announcing

/// uda.md 3 and igd.md A-14: within 100 ms, byebye first, the whole set of 3 + 2d + k = 10 twice, 250 ms apart;
/// LOCATION is the interface's own (K-5), the face the :1 one (K-1).
#[test]
fn the_first_announcement() {
    for seed in 0..20 {
        let mut rig = Rig::new(IgdVersion::Auto, seed);
        rig.set(&[home(), lan(4, &[([10, 0, 0, 1], 8)])]);
        let out = notifies(&rig.run(10_000));
        let start = out[0].0;
        assert!(start < 100, "seed {seed}: {start}");
        for (interface, location) in
            [(3, "http://192.168.1.1:5000/v1/igd.xml"), (4, "http://10.0.0.1:5000/v1/igd.xml")]
        {
            let of = |nts| out.iter().filter(move |row| row.1 == interface && row.2 == nts);
            let set: Vec<(Target, String)> = ssdp::advertisements(Face::V1, &rig.identity);
            let names = |rows: Vec<&(u64, u32, Nts, Notify)>| -> Vec<(Target, String)> {
                rows.iter().map(|row| (row.3.nt.clone(), row.3.usn.clone())).collect()
            };
            assert_eq!(names(of(Nts::Byebye).collect()), set);
            assert_eq!(set.len(), 10);
            assert_eq!(names(of(Nts::Alive).collect()), [set.clone(), set].concat());
            let times: Vec<u64> = of(Nts::Alive).map(|row| row.0).collect();
            assert_eq!(times, [[start; 10], [start + 250; 10]].concat());
            assert!(of(Nts::Byebye).all(|row| row.0 == start));
            for (.., notify) in of(Nts::Alive) {
                assert_eq!(notify.location.as_deref(), Some(location));
                assert_eq!((notify.max_age, notify.boot_id), (Some(1800), Some(41)));
            }
        }
        let last_byebye = out.iter().rposition(|row| row.2 == Nts::Byebye);
        let first_alive = out.iter().position(|row| row.2 == Nts::Alive);
        assert!(last_byebye < first_alive, "byebye comes before alive");
    }
}

/// uda.md 3.3: refreshed at random, within half of max-age.
#[test]
fn announcements_are_refreshed() {
    let mut rig = Rig::at_home(IgdVersion::Auto);
    let out = notifies(&rig.run(20_000_000));
    let times: Vec<u64> = out.iter().step_by(10).map(|row| row.0).collect();
    assert!(out.iter().all(|row| row.2 == Nts::Alive));
    assert!(times.len() > 20);
    assert!(times.windows(2).all(|pair| (600_000..900_000).contains(&(pair[1] - pair[0]))), "{times:?}");
}

/// A change of address is a new start for who knows the old one: BOOTID rises. What stays as it is is not announced
/// again, and what was queued with the old address is not sent.
#[test]
fn a_new_address_raises_bootid() {
    let mut rig = Rig::new(IgdVersion::Auto, 1);
    rig.set(&[home()]);
    rig.set(&[lan(3, &[([192, 168, 7, 1], 24)])]);
    let out = notifies(&rig.run(10_000));
    assert_eq!(out.len(), 30);
    for (.., notify) in &out {
        assert_eq!(notify.boot_id, Some(42));
        let location = notify.location.as_deref();
        assert!(
            location.is_none_or(|location| location == "http://192.168.7.1:5000/v1/igd.xml"),
            "{location:?}"
        );
    }
    rig.set(&[lan(3, &[([192, 168, 7, 1], 24)])]);
    assert_eq!(rig.run(20_000), [], "nothing new");
    rig.set(&[]);
    assert_eq!(rig.run(30_000), [], "and nobody to tell");
    rig.set(&[lan(3, &[([192, 168, 7, 1], 24)])]);
    assert!(notifies(&rig.run(40_000)).iter().all(|row| row.3.boot_id == Some(43)), "it was away");
}

/// Who announces what to whom: NTS, the group, and where LOCATION leads, in the order of their sets.
fn announced(sent: &[Sent]) -> Vec<(Nts, String, Option<String>)> {
    let mut sets: Vec<(Nts, String, Option<String>)> = Vec::new();
    for (_, _, to, message) in sent {
        let Message::Notify(notify) = message else { panic!("{message:?}") };
        let host = notify.location.as_deref().map(|location| {
            location.strip_prefix("http://").unwrap().split_once(":5000/v1/igd.xml").unwrap().0.to_owned()
        });
        let set = (notify.nts, to.to_string(), host);
        if notify.nt == Target::RootDevice {
            sets.push(set);
        } else {
            assert_eq!(sets.last(), Some(&set), "a set is one piece");
        }
    }
    sets
}

/// uda.md 5 and 3.5: to each group from an address of its scope, where there is one; the longer-lived of several; no zone
/// in LOCATION; byebye and alive alike. An interface without IPv4 is served over IPv6 alone, and the other way round.
#[test]
fn each_group_is_told_an_address_of_its_scope() {
    let (v4, link, site) = ("239.255.255.250:1900", "[ff02::c]:1900", "[ff05::c]:1900");
    for (addresses, told) in [
        (&["192.168.1.1/24"][..], &[(v4, "192.168.1.1")][..]),
        (&["192.168.1.1/24", LINK], &[(v4, "192.168.1.1"), (link, "[fe80::1]")]),
        (&[LINK], &[(link, "[fe80::1]")]),
        (&[GLOBAL, LINK], &[(link, "[fe80::1]"), (site, "[2001:db8:7::1]")]),
        (&[LOCAL], &[(site, "[fd00:7::1]")]),
        (&[GLOBAL, "2001:db8:8::1/64"], &[(site, "[2001:db8:7::1]")]),
        (
            &[GLOBAL, LOCAL, "192.168.1.1/24", "10.0.0.1/8", LINK],
            &[(v4, "192.168.1.1"), (link, "[fe80::1]"), (site, "[fd00:7::1]")],
        ),
        (&["::1/128"], &[]),
        (&[], &[]),
    ] {
        let mut rig = Rig::new(IgdVersion::Auto, 1);
        rig.set(&[dual(3, addresses)]);
        let set = |nts: Nts| {
            let host = move |own: &str| (nts != Nts::Byebye).then(|| own.to_owned());
            told.iter().map(move |(group, own)| (nts, (*group).to_owned(), host(own)))
        };
        let all: Vec<_> = set(Nts::Byebye).chain(set(Nts::Alive)).chain(set(Nts::Alive)).collect();
        assert_eq!(announced(&rig.run(10_000)), all, "{addresses:?}");
        rig.server.stop(Instant::from_millis(10_000));
        assert_eq!(announced(&rig.drain()), set(Nts::Byebye).collect::<Vec<_>>(), "{addresses:?}");
    }
}

/// HOST names the group as the annex writes it, and BOOTID is one for both families (uda.md 5).
#[test]
fn host_and_bootid_over_ipv6() {
    let mut rig = Rig::new(IgdVersion::Auto, 1);
    rig.set(&[dual(3, &["192.168.1.1/24", LINK, GLOBAL])]);
    rig.server.on_timeout(Instant::from_millis(1000), &mut rig.entropy);
    let mut hosts = BTreeMap::new();
    while let Some(outgoing) = rig.server.poll_transmit() {
        let text = String::from_utf8(outgoing.bytes).unwrap();
        let line = text.lines().find(|line| line.starts_with("HOST: ")).unwrap().to_owned();
        assert!(text.contains("\r\nBOOTID.UPNP.ORG: 41\r\n") && text.contains("\r\n01-NLS: 41\r\n"));
        hosts.insert(outgoing.to.to_string(), line);
    }
    assert_eq!(hosts["239.255.255.250:1900"], "HOST: 239.255.255.250:1900");
    assert_eq!(hosts["[ff02::c]:1900"], "HOST: [FF02::C]:1900");
    assert_eq!(hosts["[ff05::c]:1900"], "HOST: [FF05::C]:1900");
}

/// IPv6 addresses come and go without a new start: what is told now and was not is announced, twice, with the BOOTID that
/// stands and without a byebye; what was told and is still there stays.
#[test]
fn ipv6_addresses_come_and_go() {
    const V4: &str = "192.168.1.1/24";
    let (link, site) = ("[ff02::c]:1900", "[ff05::c]:1900");
    let mut rig = Rig::new(IgdVersion::Auto, 1);
    rig.set(&[dual(3, &[V4])]);
    rig.run(10_000);
    for (addresses, told) in [
        (&[V4, LINK][..], &[(link, "[fe80::1]")][..]),
        (&[V4, LINK, GLOBAL], &[(site, "[2001:db8:7::1]")]),
        (&[V4, LINK, LOCAL, GLOBAL], &[]), // as good as the other one
        (&[V4, LINK, LOCAL, "2001:db8:8::1/64"], &[(site, "[fd00:7::1]")]),
        (&[V4, LINK, LOCAL], &[]),
        (&[V4, LINK], &[]),
        (&[V4], &[]),
        (&[V4, "fe80::2/64", GLOBAL], &[(link, "[fe80::2]"), (site, "[2001:db8:7::1]")]),
    ] {
        rig.set(&[dual(3, addresses)]);
        let now = rig.now;
        let out = rig.run(now + 10_000);
        let all: Vec<_> = std::iter::repeat_n(told, 2)
            .flatten()
            .map(|(group, own)| (Nts::Alive, (*group).to_owned(), Some((*own).to_owned())))
            .collect();
        assert_eq!(announced(&out), all, "{addresses:?}");
        for (at, _, _, message) in &out {
            assert!(*at < now + 350, "soon");
            assert!(matches!(message, Message::Notify(notify) if notify.boot_id == Some(41)));
        }
    }
    // What was to be told and is gone before it is, is not.
    rig.set(&[dual(3, &[V4, LINK])]);
    rig.set(&[dual(3, &[V4, "fe80::3/64"])]);
    let out = announced(&rig.run(rig.now + 10_000));
    assert_eq!(out, vec![(Nts::Alive, link.to_owned(), Some("[fe80::3]".to_owned())); 2]);
    // A new IPv4 address is a new start for everybody, subscribers included.
    let start = Instant::from_millis(rig.now);
    assert!(rig.server.set_interfaces(start, &[dual(3, &["10.0.0.1/8", LINK])], &mut rig.entropy));
    for (.., message) in rig.run(rig.now + 10_000) {
        assert!(matches!(message, Message::Notify(notify) if notify.boot_id == Some(42)));
    }
}

/// uda.md 3.4: the whole set is taken back, at once; afterwards there is silence, whatever happens.
#[test]
fn stopping_takes_everything_back() {
    let mut rig = Rig::new(IgdVersion::Auto, 1);
    rig.set(&[home()]);
    rig.server.stop(Instant::from_millis(0));
    let out = notifies(&rig.drain());
    let names: Vec<(Target, String)> = out.iter().map(|row| (row.3.nt.clone(), row.3.usn.clone())).collect();
    assert_eq!(names, ssdp::advertisements(Face::V1, &rig.identity));
    assert!(out.iter().all(|row| row.2 == Nts::Byebye && row.0 == 0));
    rig.set(&[home(), lan(4, &[([10, 0, 0, 1], 8)])]);
    assert_eq!(rig.search(HOST, &Target::RootDevice, Some(1)), []);
    assert_eq!(rig.server.next_timeout(), None);
}

// Answering

/// K-1 and decision 10: who searches for a `:2` type is led to the `:2` face, everybody else to the `:1` face; the
/// type comes back as it was asked for (S-5); other people's searches are not answered.
#[test]
fn who_is_led_to_which_face() {
    use IgdVersion::{Auto, V1, V2};
    let other = Target::Other("urn:dslforum-org:device:InternetGatewayDevice:1".into());
    for (shown, target, face) in [
        (Auto, Target::RootDevice, Some(Face::V1)),
        (Auto, device(1), Some(Face::V1)),
        (Auto, wan_ip(1), Some(Face::V1)),
        (Auto, device(2), Some(Face::V2)),
        (Auto, wan_ip(2), Some(Face::V2)),
        (Auto, device(3), None),
        (Auto, wan_ip(0xff), None),
        (Auto, Target::Service { name: "WANPPPConnection".into(), version: 1 }, None),
        (Auto, Target::Device { name: "MediaServer".into(), version: 1 }, None),
        (Auto, other, None),
        (V1, Target::RootDevice, Some(Face::V1)),
        (V1, device(1), Some(Face::V1)),
        (V1, device(2), None),
        (V2, Target::RootDevice, Some(Face::V2)),
        (V2, device(1), Some(Face::V2)),
        (V2, wan_ip(1), Some(Face::V2)),
        (V2, wan_ip(2), Some(Face::V2)),
    ] {
        let mut rig = Rig::at_home(shown);
        let out = responses(&rig.search(HOST, &target, Some(2)), HOST);
        let expected: Vec<(Target, Option<String>)> = face
            .map(|face| (target.clone(), Some(format!("http://{OWN}:5000{}", face.description_path()))))
            .into_iter()
            .collect();
        let got: Vec<(Target, Option<String>)> =
            out.iter().map(|(_, response)| (response.st.clone(), Some(response.location.clone()))).collect();
        assert_eq!(got, expected, "{shown:?} {target:?}");
        assert_eq!(
            rig.server.ignored(),
            0,
            "{shown:?} {target:?}: other devices' searches are nothing to count"
        );
        if let (Some(face), [(_, response)]) = (face, &out[..])
            && matches!(target, Target::RootDevice | Target::Device { .. })
        {
            assert_eq!(response.usn, format!("{}::{target}", rig.udn(face)));
            assert_eq!((response.max_age, response.boot_id), (Some(1800), Some(41)));
        }
    }
}

/// A device is found by its name on either face.
#[test]
fn a_search_by_uuid() {
    let mut rig = Rig::at_home(IgdVersion::Auto);
    for face in Face::ALL {
        let uuid = rig.udn(face)["uuid:".len()..].to_uppercase();
        let out = responses(&rig.search(HOST, &Target::Uuid(uuid), Some(1)), HOST);
        assert_eq!(out.len(), 1);
        assert!(out[0].1.location.ends_with(face.description_path()));
    }
    let stranger = Uuid::derive([8; 16], "stranger").to_string();
    assert_eq!(rig.search(HOST, &Target::Uuid(stranger), Some(1)), []);
}

/// S-3: `ssdp:all` is answered by the whole set of one face, spread over min(MX, 1) s, the first within 100 ms.
#[test]
fn answers_are_spread() {
    for seed in 0..30 {
        for (mx, last) in [(Some(0), 0), (Some(1), 1000), (Some(2), 1000), (Some(5), 1000), (None, 100)] {
            let mut rig = Rig::new(IgdVersion::Auto, seed);
            rig.set(&[home()]);
            rig.run(10_000);
            let out = responses(&rig.search(HOST, &Target::All, mx), HOST);
            let names: Vec<(Target, String)> =
                out.iter().map(|(_, r)| (r.st.clone(), r.usn.clone())).collect();
            assert_eq!(names, ssdp::advertisements(Face::V1, &rig.identity));
            let (from, to) = (out[0].0 - 10_000, out[9].0 - 10_000);
            assert!(from <= 100 && to <= last, "seed {seed}, MX {mx:?}: {from} to {to}");
        }
    }
}

/// S-6: who asks this router alone is told at once, for there is nobody else whose answers could come at the same time.
#[test]
fn who_asks_here_alone_does_not_wait() {
    let mut rig = Rig::at_home(IgdVersion::Auto);
    for (from, to, host, mx, at_once) in [
        (HOST, Some("192.168.1.1"), "192.168.1.1:1900", None, true),
        // Where the kernel says where it came.
        ("192.168.1.11:50000", Some("192.168.1.1"), HOST_V4, Some(3), true),
        // Where it does not.
        ("192.168.1.12:50000", None, "192.168.1.1:1900", None, true),
        ("192.168.1.13:50000", None, "192.168.1.1", None, true),
        ("192.168.1.14:50000", None, "192.168.1.1:1900", Some(3), false),
        ("192.168.1.15:50000", None, HOST_V4, None, false),
        ("192.168.1.16:50000", None, "192.168.1.2:1900", None, false),
    ] {
        let asked = rig.now;
        rig.receive_at(3, to, from, ssdp::search(host, &Target::All, mx).as_bytes());
        let out = responses(&rig.run(asked + 5000), from);
        assert_eq!(out.len(), 10);
        assert_eq!(out.iter().all(|(at, _)| *at == asked), at_once, "{from}");
    }
}

/// K-2 and Q-3: the same search of the same socket is answered once a second; another socket's or another target's
/// is another search.
#[test]
fn each_search_is_answered_once() {
    let mut rig = Rig::at_home(IgdVersion::Auto);
    for _ in 0..3 {
        rig.receive(3, HOST, ssdp::search(HOST_V4, &device(1), Some(2)).as_bytes());
    }
    rig.receive(3, HOST, ssdp::search(HOST_V4, &wan_ip(1), Some(2)).as_bytes());
    rig.receive(3, "192.168.1.10:50001", ssdp::search(HOST_V4, &device(1), Some(2)).as_bytes());
    assert_eq!(rig.server.ignored(), 2);
    let mut out = rig.run(11_000);
    rig.receive(3, HOST, ssdp::search(HOST_V4, &device(1), Some(2)).as_bytes());
    out.extend(rig.run(20_000));
    let to: Vec<u16> = out.iter().map(|(_, _, to, _)| to.port()).collect();
    assert_eq!(to.iter().filter(|&&port| port == 50000).count(), 3);
    assert_eq!(to.iter().filter(|&&port| port == 50001).count(), 1);
}

/// The security policy: five full answers a second to one source, and a bounded number of sources; nobody else
/// suffers from one source's flood.
#[test]
fn floods_are_not_answered() {
    let mut rig = Rig::at_home(IgdVersion::Auto);
    for port in 40_000..40_100 {
        rig.receive(
            3,
            &format!("192.168.1.66:{port}"),
            ssdp::search(HOST_V4, &Target::All, Some(1)).as_bytes(),
        );
    }
    rig.receive(3, HOST, ssdp::search(HOST_V4, &device(1), Some(1)).as_bytes());
    let out = rig.run(12_000);
    let to = |host: [u8; 4]| out.iter().filter(|row| row.2.ip() == IpAddr::from(host)).count();
    assert_eq!((to([192, 168, 1, 66]), to([192, 168, 1, 10])), (50, 1));
    assert_eq!(rig.server.ignored(), 95);

    let mut rig = Rig::new(IgdVersion::Auto, 1);
    rig.set(&[lan(3, &[([10, 0, 0, 1], 8)])]);
    rig.run(10_000);
    for n in 0..10_000_u32 {
        let host = Ipv4Addr::from(0x0a01_0000 + n);
        rig.receive(3, &format!("{host}:5000"), ssdp::search(HOST_V4, &Target::All, Some(1)).as_bytes());
    }
    assert!(rig.server.queue.len() <= MAX_QUEUED && rig.server.budget.len() <= MAX_SOURCES);
    assert!(rig.run(12_000).len() <= MAX_QUEUED);
    rig.receive(3, "10.9.9.9:5000", ssdp::search(HOST_V4, &device(1), Some(1)).as_bytes());
    assert_eq!(rig.run(14_000).len(), 1, "a second later it is over");
}

/// Security policy: for a while a source hears five complete sets each second; who goes on hears three times what it has sent, and little
/// more, whatever it searches for.
#[test]
fn in_the_long_run_nobody_hears_more_than_three_times_what_it_sends() {
    for (searches_a_second, seconds) in [(1, 200), (5, 100), (20, 30), (200, 10)] {
        let mut rig = Rig::at_home(IgdVersion::Auto);
        let (mut octets_in, mut octets_out) = (0, 0);
        for n in 0..searches_a_second * seconds {
            let search = ssdp::search(HOST_V4, &Target::All, Some(1));
            octets_in += search.len();
            let from = format!("192.168.1.66:{}", 1024 + n % 60_000);
            rig.receive(3, &from, search.as_bytes());
            rig.now += (1000 / searches_a_second) as u64;
            for outgoing in due(&mut rig) {
                octets_out += outgoing.bytes.len();
            }
        }
        let steady = seconds * 1000 + 50 * ssdp::MAX_SENT;
        assert!(octets_out <= 3 * octets_in + steady, "{octets_out} out, {octets_in} in");
        let sets = octets_out / (10 * ssdp::MAX_SENT);
        assert!(sets >= seconds / 10, "{sets} complete sets in {seconds} s, for who searches now and then");
    }
}

/// What is sent up to now.
fn due(rig: &mut Rig) -> Vec<Outgoing> {
    let now = Instant::from_millis(rig.now);
    rig.server.on_timeout(now, &mut rig.entropy);
    let sent = std::iter::from_fn(|| rig.server.poll_transmit());
    sent.filter(|outgoing| !outgoing.to.ip().is_multicast()).collect()
}

/// S-8 and the security policy: silence for who is not a host of this link, for ourselves, for privileged ports other
/// than 1900, and for what is no search.
#[test]
fn who_is_not_answered() {
    let search = ssdp::search(HOST_V4, &Target::RootDevice, Some(1));
    for (interface, from, answers) in [
        (3, HOST, 1),
        (3, "192.168.1.10:1900", 1), // K-4
        (3, "192.168.1.10:1024", 1),
        (3, "192.168.1.10:1023", 0),
        (3, "192.168.1.10:53", 0),
        (3, "192.168.1.10:0", 0),
        (3, "192.168.2.10:50000", 0),  // off-link
        (3, "8.8.8.8:50000", 0),       // off-link
        (3, "192.168.1.1:50000", 0),   // our own
        (3, "192.168.1.2:50000", 0),   // our own other one
        (3, "192.168.1.255:50000", 0), // broadcast
        (3, "192.168.1.0:50000", 0),
        (3, "0.0.0.0:50000", 0),
        (3, "[fe80::10]:50000", 0),
        (4, HOST, 0), // a host of another interface
        (9, HOST, 0), // an interface that is none of ours
    ] {
        let mut rig = Rig::new(IgdVersion::Auto, 1);
        rig.set(&[lan(3, &[([192, 168, 1, 1], 24), ([192, 168, 1, 2], 24)]), lan(4, &[([10, 0, 0, 1], 8)])]);
        rig.run(10_000);
        rig.receive(interface, from, search.as_bytes());
        assert_eq!(rig.run(20_000).len(), answers, "{from} by {interface}");
        assert_eq!(rig.server.ignored(), 1 - u64::try_from(answers).unwrap(), "{from} by {interface}");
    }
    let mut rig = Rig::at_home(IgdVersion::Auto);
    for (bytes, ignored) in [
        (&b""[..], 1),
        (b"\0\xff\0\xff", 2),
        (b"GET / HTTP/1.1\r\n\r\n", 3),
        // Others' announcements and answers are none of our business.
        (b"NOTIFY * HTTP/1.1\r\nNT: upnp:rootdevice\r\nNTS: ssdp:byebye\r\nUSN: uuid:x::upnp:rootdevice\r\n\r\n", 3),
        (b"HTTP/1.1 200 OK\r\nST: ssdp:all\r\nUSN: uuid:x\r\nLOCATION: http://192.168.1.9/\r\n\r\n", 3),
    ] {
        rig.receive(3, HOST, bytes);
        assert_eq!(rig.server.ignored(), ignored, "{:?}", String::from_utf8_lossy(bytes));
    }
    assert_eq!(rig.run(20_000), []);
}

/// K-5: with several addresses on a link, LOCATION names the one that the control point is on-link with.
#[test]
fn location_is_the_address_next_to_the_control_point() {
    let mut rig = Rig::new(IgdVersion::Auto, 1);
    rig.set(&[lan(3, &[([192, 168, 1, 1], 24), ([10, 0, 0, 1], 8)])]);
    rig.run(10_000);
    let from = SocketAddrV4::new(Ipv4Addr::new(10, 2, 3, 4), 5000).to_string();
    let out = responses(&rig.search(&from, &Target::RootDevice, Some(1)), &from);
    assert_eq!(out[0].1.location, "http://10.0.0.1:5000/v1/igd.xml");
}

/// K-2, K-5, S-6 and S-8 over IPv6, row by row: who is answered, and from which address of ours.
#[test]
fn searches_over_ipv6() {
    const GROUP: Option<&str> = None;
    let lan = [dual(3, &["192.168.1.1/24", LINK, GLOBAL, LOCAL]), dual(4, &[LINK, "2001:db8:8::1/64"])];
    for (interface, local, from, own) in [
        // To a group: the address on the link with the control point.
        (3, GROUP, "[fe80::10%3]:50000", Some("[fe80::1]")),
        (3, GROUP, "[2001:db8:7::10]:50000", Some("[2001:db8:7::1]")),
        (3, GROUP, "[fd00:7::10]:50000", Some("[fd00:7::1]")),
        (4, GROUP, "[fe80::10%4]:50000", Some("[fe80::1]")),
        (4, GROUP, "[2001:db8:8::10]:50000", Some("[2001:db8:8::1]")),
        // To one of our addresses: that one.
        (3, Some("fe80::1"), "[fe80::10%3]:50000", Some("[fe80::1]")),
        (3, Some("2001:db8:7::1"), "[2001:db8:7::10]:50000", Some("[2001:db8:7::1]")),
        (3, Some("2001:db8:7::1"), "[fd00:7::10]:50000", Some("[2001:db8:7::1]")),
        (3, Some("fd00:7::1"), "[fe80::10%3]:50000", Some("[fd00:7::1]")),
        // That is gone, or another interface's.
        (3, Some("fd00:9::1"), "[fd00:7::10]:50000", None),
        (3, Some("2001:db8:8::1"), "[2001:db8:7::10]:50000", None),
        // K-4, S-8: the source port.
        (3, GROUP, "[fe80::10%3]:1900", Some("[fe80::1]")),
        (3, GROUP, "[fe80::10%3]:1024", Some("[fe80::1]")),
        (3, GROUP, "[fe80::10%3]:1023", None),
        (3, Some("fe80::1"), "[fe80::10%3]:53", None),
        // S-8: not of this link.
        (3, GROUP, "[2001:db8:9::10]:50000", None),
        (3, GROUP, "[2001:db8:8::10]:50000", None),
        (4, GROUP, "[fd00:7::10]:50000", None),
        (9, GROUP, "[fe80::10%9]:50000", None),
        (4, GROUP, "192.168.1.10:50000", None),
        // Nobody, everybody, ourselves.
        (3, GROUP, "[::]:50000", None),
        (3, GROUP, "[::1]:50000", None),
        (3, GROUP, "[ff02::1]:50000", None),
        (3, GROUP, "[fe80::1%3]:50000", None),
        (3, GROUP, "[2001:db8:7::1]:50000", None),
    ] {
        let mut rig = Rig::new(IgdVersion::Auto, 1);
        rig.set(&lan);
        rig.run(10_000);
        for (host, mx) in [(HOST_V6_LINK, Some(1)), ("[2001:db8:7::1]:1900", None)] {
            rig.receive_at(interface, local, from, ssdp::search(host, &device(2), mx).as_bytes());
        }
        let out = rig.run(12_000);
        let rows: Vec<_> = out
            .iter()
            .map(|(_, interface, to, message)| match message {
                Message::Response(response) => (*interface, *to, response.location.clone()),
                other => panic!("{other:?}"),
            })
            .collect();
        let answer = |own: &str| (interface, from.parse().unwrap(), format!("http://{own}:5000/v2/igd.xml"));
        assert_eq!(
            rows,
            own.map(answer).into_iter().collect::<Vec<_>>(),
            "{from} to {local:?} by {interface}"
        );
        assert_eq!(rig.server.ignored(), if own.is_some() { 1 } else { 2 }, "{from}: said twice");
    }
}

/// S-4 over IPv6: `ssdp:all` is answered by the whole set, spread as over IPv4.
#[test]
fn the_whole_set_over_ipv6() {
    let mut rig = Rig::new(IgdVersion::Auto, 1);
    rig.set(&[dual(3, &["192.168.1.1/24", LINK])]);
    rig.run(10_000);
    let out = responses(&rig.search("[fe80::10%3]:50000", &Target::All, Some(3)), "[fe80::10%3]:50000");
    let names: Vec<(Target, String)> = out.iter().map(|(_, r)| (r.st.clone(), r.usn.clone())).collect();
    assert_eq!(names, ssdp::advertisements(Face::V1, &rig.identity));
    assert!(out[0].0 <= 10_100 && out[9].0 <= 11_000);
}

/// The security policy: a host has as many IPv6 addresses as it wants. Together they never take what hosts over IPv4 need, and
/// those of one link are not those of another.
#[test]
fn floods_over_ipv6_are_not_everybodys() {
    let mut rig = Rig::new(IgdVersion::Auto, 1);
    rig.set(&[dual(3, &["192.168.1.1/24", LINK]), dual(4, &[LINK])]);
    rig.run(10_000);
    let link_local = |n: u16, zone: u32| {
        let addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 1, n);
        format!("[{addr}%{zone}]:5000")
    };
    for n in 0..2000 {
        rig.receive(3, &link_local(n, 3), ssdp::search(HOST_V6_LINK, &Target::All, Some(1)).as_bytes());
        rig.receive(3, &link_local(n, 3), ssdp::search(HOST_V6_LINK, &device(7), Some(1)).as_bytes());
    }
    assert!(rig.server.queue.len() <= QUEUED_OVER_IPV6 && rig.server.budget.len() <= SOURCES_OVER_IPV6);
    rig.receive(3, HOST, ssdp::search(HOST_V4, &Target::All, Some(1)).as_bytes());
    let out = rig.run(12_000);
    assert_eq!(out.iter().filter(|(_, _, to, _)| to.is_ipv4()).count(), 10);
    assert!(out.len() <= QUEUED_OVER_IPV6 + 10);

    // Whoever has the same address on another link has asked nothing yet.
    let all = ssdp::search(HOST_V6_LINK, &Target::All, Some(1));
    for port in 5000..5050 {
        rig.receive(4, &format!("[fe80::10%4]:{port}"), all.as_bytes());
    }
    rig.receive(3, "[fe80::10%3]:5000", all.as_bytes());
    let out = rig.run(14_000);
    let by = |interface: u32| out.iter().filter(|row| row.1 == interface).count();
    assert_eq!((by(3), by(4)), (10, 50));
}

/// `portferry doctor` searches from the router itself: that is heard, not answered, and no host's.
#[test]
fn searches_are_counted_by_who_sent_them() {
    let mut rig = Rig::at_home(IgdVersion::Auto);
    assert_eq!(rig.search("192.168.1.10:50000", &device(1), Some(1)).len(), 1);
    assert_eq!(rig.search("192.168.1.1:50000", &device(1), Some(1)), []);
    rig.receive(3, "192.168.1.10:50000", b"no search at all");
    assert_eq!(rig.server.heard(), Heard { hosts: 1, own: 1 });
    rig.set(&[dual(3, &["192.168.1.1/24", LINK])]);
    rig.run(30_000);
    assert_eq!(rig.search("[fe80::10%3]:50000", &device(1), Some(1)).len(), 1);
    assert_eq!(rig.search("[fe80::1%3]:50000", &device(1), Some(1)), []);
    assert_eq!(rig.server.heard(), Heard { hosts: 2, own: 2 });
}
