//! The search in virtual time: what is sent, whom it believes, and what it comes to.

use wire::ssdp::{Message, Sender};

use super::*;
use crate::uplink::igd_model::IgdModel;

const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 178, 1);
const HERE: Ipv4Addr = Ipv4Addr::new(192, 168, 178, 2);
const IGD_1: &str = "urn:schemas-upnp-org:device:InternetGatewayDevice:1";
const IGD_2: &str = "urn:schemas-upnp-org:device:InternetGatewayDevice:2";

struct Rig {
    finder: IgdFinder,
    now: u64,
    searches: Vec<(SocketAddrV4, String)>,
    asked: Vec<HttpRequest>,
    done: Vec<Option<FoundIgd>>,
}

impl Rig {
    fn new() -> Self {
        let finder = IgdFinder::new(Instant::default(), ROUTER, 1000);
        let mut rig = Self { finder, now: 0, searches: Vec::new(), asked: Vec::new(), done: Vec::new() };
        rig.drain();
        rig
    }

    fn drain(&mut self) {
        while let Some(finding) = self.finder.poll() {
            match finding {
                Finding::Search(to, bytes) => self.searches.push((to, String::from_utf8(bytes).unwrap())),
                Finding::Http(request) => self.asked.push(request),
                Finding::Done(found) => self.done.push(found),
            }
        }
    }

    fn run(&mut self, to: u64) {
        while let Some(at) = self.finder.next_timeout().map(Instant::as_millis).filter(|&at| at <= to) {
            self.now = self.now.max(at);
            self.finder.on_timeout(Instant::from_millis(self.now));
            self.drain();
        }
        self.now = to;
    }

    fn hears(&mut self, from: &str, st: &str, location: &str) {
        let sender = Sender { location, server: "x", max_age: 1800, boot_id: 1, config_id: 1 };
        let answer = ssdp::search_response(&sender, &Target::parse(st), "uuid:x", None);
        self.finder.on_answer(from.parse().unwrap(), answer.as_bytes());
        self.drain();
    }

    /// The last request has this outcome.
    fn answer(&mut self, outcome: HttpOutcome) {
        let id = self.asked.last().expect("something was asked").id;
        self.finder.on_http(Instant::from_millis(self.now), id, &outcome);
        self.drain();
    }

    fn document(&mut self, status: u16, body: &str) {
        self.answer(HttpOutcome::Answer { status, body: body.as_bytes().to_vec() });
    }

    fn last_path(&self) -> &str {
        &self.asked.last().expect("something was asked").path
    }

    /// The model answers for the router.
    fn by(&mut self, model: &mut IgdModel) {
        let request = self.asked.last().expect("something was asked").clone();
        assert_eq!(*request.to.ip(), ROUTER);
        let outcome = model.answer(Instant::from_millis(self.now), HERE, &request);
        self.answer(outcome);
    }
}

#[test]
fn a_router_is_found() {
    let mut rig = Rig::new();
    // To the router itself, and to the group; twice.
    assert_eq!(rig.searches.len(), 6);
    for (to, text) in &rig.searches {
        let Ok(Message::Search(search)) = ssdp::parse(text.as_bytes()) else { panic!("{text}") };
        let multicast = to.ip().is_multicast();
        assert_eq!((search.mx, search.host), (multicast.then_some(1), Some(to.to_string())));
        assert!(multicast || *to == SocketAddrV4::new(ROUTER, 1900));
    }
    rig.run(1000);
    assert_eq!(rig.searches.len(), 12);
    rig.hears("192.168.178.1:1900", "upnp:rootdevice", "http://192.168.178.1:49000/nas.xml");
    rig.hears("192.168.178.1:41000", IGD_1, "http://192.168.178.1:49000/igddesc.xml");
    rig.hears("192.168.178.1:1900", IGD_2, "http://192.168.178.1:49000/igd2desc.xml");
    rig.hears("192.168.178.1:1900", "upnp:rootdevice", "http://192.168.178.1:49000/igd2desc.xml");
    assert_eq!(rig.asked, []);
    rig.run(2000);
    assert_eq!(rig.last_path(), "/igd2desc.xml", "the one that promises most");
    let mut model = IgdModel::new("203.0.114.1");
    rig.by(&mut model);
    assert_eq!(rig.last_path(), "/control");
    rig.by(&mut model);
    let [Some(found)] = &rig.done[..] else { panic!("{:?}", rig.done) };
    assert_eq!(found.external, Ipv4Addr::new(203, 0, 114, 1));
    assert_eq!(found.connection.control.to_string(), "http://192.168.178.1:49000/control");
    assert_eq!((found.connection.version, rig.finder.ignored(), rig.finder.next_timeout()), (2, 0, None));
}

/// One row an answer that is not believed.
#[test]
fn only_the_router_itself_is_believed() {
    for (from, location) in [
        ("192.168.178.66:1900", "http://192.168.178.66:5000/desc.xml"),
        ("192.168.178.66:1900", "http://192.168.178.1:5000/desc.xml"),
        ("192.168.178.1:1900", "http://192.168.178.66:5000/desc.xml"),
        ("192.168.178.1:1900", "http://198.51.100.1/desc.xml"),
        ("192.168.178.1:1900", "http://127.0.0.1/desc.xml"),
        ("192.168.178.1:1900", "http://router.example/desc.xml"),
        ("192.168.178.1:1900", "https://192.168.178.1/desc.xml"),
        ("192.168.178.1:1900", "file:///etc/passwd"),
        ("[fe80::1]:1900", "http://192.168.178.1:5000/desc.xml"),
    ] {
        let mut rig = Rig::new();
        rig.hears(from, IGD_1, location);
        rig.run(2000);
        assert_eq!((rig.asked.len(), rig.finder.ignored()), (0, 1), "{from} {location}");
        assert_eq!(rig.done, [None]);
    }
    let mut rig = Rig::new();
    rig.finder.on_answer("192.168.178.1:1900".parse().unwrap(), b"M-SEARCH * HTTP/1.1\r\n\r\n");
    for n in 0..20 {
        rig.hears("192.168.178.1:1900", IGD_1, &format!("http://192.168.178.1:{}/", 5000 + n));
    }
    assert_eq!(rig.finder.ignored(), 1 + 12, "so many descriptions are enough");
    rig.run(2000);
    rig.hears("192.168.178.1:1900", IGD_1, "http://192.168.178.1:9999/");
    assert_eq!(rig.finder.ignored(), 13, "too late");
}

/// What is no description, or leads elsewhere, is counted; the next one is read.
#[test]
fn hostile_descriptions_and_answers() {
    for (status, body) in [
        (200, String::new()),
        (302, IgdModel::description(1)),
        (404, IgdModel::description(1)),
        (200, "<a>".repeat(20_000)),
        (200, "<!DOCTYPE x><root/>".to_owned()),
    ] {
        let mut rig = Rig::new();
        rig.hears("192.168.178.1:1900", IGD_2, "http://192.168.178.1:5000/bad.xml");
        rig.hears("192.168.178.1:1900", IGD_1, "http://192.168.178.1:5000/good.xml");
        rig.run(2000);
        rig.document(status, &body);
        assert_eq!((rig.finder.ignored(), rig.last_path()), (1, "/good.xml"), "{status}");
    }
    for said in [
        HttpOutcome::Failed,
        HttpOutcome::Answer { status: 200, body: b"<x/>".to_vec() },
        HttpOutcome::Answer { status: 200, body: Vec::new() },
    ] {
        let mut rig = Rig::new();
        rig.hears("192.168.178.1:1900", IGD_1, "http://192.168.178.1:5000/desc.xml");
        rig.run(2000);
        rig.document(200, &IgdModel::description(1));
        rig.answer(said);
        assert_eq!((&rig.done[..], rig.finder.ignored()), (&[None][..], 1));
    }
    let elsewhere = IgdModel::description(1).replace("/control", "http://192.168.178.66/control");
    let mut rig = Rig::new();
    rig.hears("192.168.178.1:1900", IGD_1, "http://192.168.178.1:5000/desc.xml");
    rig.run(2000);
    rig.document(200, &elsewhere);
    assert_eq!((rig.asked.len(), &rig.done[..]), (1, &[None][..]));
}

/// Outcomes of other exchanges mean nothing, and an exchange whose outcome nobody tells has an end.
#[test]
fn every_exchange_ends() {
    let mut rig = Rig::new();
    rig.hears("192.168.178.1:1900", IGD_1, "http://192.168.178.1:5000/desc.xml");
    rig.run(2000);
    assert_eq!(rig.asked[0].id, HttpId(1000));
    rig.finder.on_http(Instant::from_secs(2), HttpId(7), &HttpOutcome::Failed);
    assert_eq!(rig.done, []);
    rig.run(60_000);
    assert_eq!(rig.done, [None]);
}

/// The connection that is in use, and a public address before one of another NAT.
#[test]
fn the_best_connection() {
    for (first, second, expected) in [
        ("", "203.0.114.1", Some("203.0.114.1")),
        ("10.0.0.7", "203.0.114.1", Some("203.0.114.1")),
        ("10.0.0.7", "", Some("10.0.0.7")),
        ("", "0.0.0.0", None),
        ("239.1.1.1", "127.0.0.1", None),
        ("not an address", "", None),
    ] {
        let service = |path: &str| {
            format!(
                "<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
                 <controlURL>{path}</controlURL></service>"
            )
        };
        let both = service("/a") + &service("/b");
        let body = format!("<root><device><deviceType>x</deviceType>{both}</device></root>");
        let mut rig = Rig::new();
        rig.hears("192.168.178.1:1900", IGD_1, "http://192.168.178.1:5000/desc.xml");
        rig.run(2000);
        rig.document(200, &body);
        for external in [first, second] {
            if rig.done.is_empty() {
                let answer = format!(
                    "<Envelope><Body><GetExternalIPAddressResponse><NewExternalIPAddress>{external}\
                     </NewExternalIPAddress></GetExternalIPAddressResponse></Body></Envelope>"
                );
                rig.document(200, &answer);
            }
        }
        let [found] = &rig.done[..] else { panic!("{first} {second}: {:?}", rig.done) };
        let found = found.as_ref().map(|found| found.external.to_string());
        // A loopback address is of no use, whatever NAT it is of.
        assert_eq!(found.as_deref(), expected, "{first:?} {second:?}");
    }
}
