//! Where the attacks take place: the gateway, a provider that can be made to lie, and what is looked at after each of them.

use std::cell::RefCell;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use lab::netns::{
    EXTERNAL, Host, LAN_INTERFACE, LAN1, LAN2, Network, Process, ROUTER_LAN, ROUTER_WAN, WAN_INTERFACE,
};
use lab::subject::{self, HTTP_PORT, Subject};
use lab::wait::{eventually, poll};
use serde_json::Value;

use crate::Row;
use crate::common::{CASCADED, NAT, PROBE, SECOND};
use crate::upstream::Upstream;

/// An address that a LAN host has beside its own, and that is not of the LAN although the router knows the way to it.
pub(crate) const OFF_LINK: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
/// The external port of the good request.
const GOOD: u16 = 7777;

/// Where the gateway serves, by its description.
#[derive(Clone, Debug, Default)]
pub(crate) struct Paths {
    pub(crate) description: String,
    pub(crate) scpd: String,
    pub(crate) control: String,
    pub(crate) event: String,
    pub(crate) service: String,
    pub(crate) udn: String,
}

pub(crate) struct Scene<'a> {
    pub(crate) network: &'a Network,
    pub(crate) upstream: Upstream,
    pub(crate) paths: Paths,
    subject: Subject,
    daemon: RefCell<Process>,
}

/// What came back over TCP.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) octets: Vec<u8>,
    /// The connection ended, rather than the patience.
    pub(crate) over: bool,
    pub(crate) refused: bool,
}

impl Heard {
    /// In a few words: `403`, `fault 606`, `closed`, `silence`.
    pub(crate) fn verdict(&self) -> String {
        let text = String::from_utf8_lossy(&self.octets);
        let status = text.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5));
        let code = text.split_once("<errorCode>").and_then(|(_, rest)| Some(rest.split_once('<')?.0));
        match (status, code) {
            (Some("500"), Some(code)) => format!("fault {code}"),
            (Some(status), _) => status.to_owned(),
            (None, _) if !self.octets.is_empty() => "something that is no HTTP/1".to_owned(),
            _ if self.refused => "refused".to_owned(),
            _ if self.over => "closed".to_owned(),
            _ => "silence".to_owned(),
        }
    }

    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.octets).into_owned();
        let (head, _) = text.split_once("\r\n\r\n")?;
        head.lines().find_map(|line| {
            let (own, value) = line.split_once(':')?;
            own.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    }
}

/// The gateway's door for control points.
pub(crate) fn door() -> SocketAddr {
    (ROUTER_LAN, HTTP_PORT).into()
}

/// Sends to `to` and hears until the answer is whole, the connection over or the time is up.
pub(crate) fn exchange(to: SocketAddr, octets: &[u8], patience: Duration) -> Heard {
    let mut heard = Heard::default();
    let stream = match TcpStream::connect_timeout(&to, patience.min(SECOND)) {
        Ok(stream) => stream,
        Err(error) => {
            heard.refused = error.kind() == io::ErrorKind::ConnectionRefused;
            return heard;
        }
    };
    let _ = stream.set_write_timeout(Some(patience));
    // The answer may come, and the connection go, before all is written.
    let _ = (&stream).write_all(octets);
    hear(&stream, patience, &mut heard);
    heard
}

/// Hears one answer.
pub(crate) fn hear(mut stream: &TcpStream, patience: Duration, heard: &mut Heard) {
    let deadline = Instant::now() + patience;
    let mut part = [0; 16_384];
    while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        if is_whole(&heard.octets) {
            return;
        }
        let _ = stream.set_read_timeout(Some(left));
        match stream.read(&mut part) {
            Ok(0) => heard.over = true,
            Ok(len) => heard.octets.extend(&part[..len]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(_) => heard.over = true,
        }
        if heard.over {
            return;
        }
    }
}

fn is_whole(octets: &[u8]) -> bool {
    let Some(end) = octets.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&octets[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    length.is_some_and(|length: usize| octets.len() >= end + 4 + length)
}

impl<'a> Scene<'a> {
    /// The usual network; [`OFF_LINK`] is on the LAN's cable, and the other subscriber knows a way to the router's LAN address.
    pub(crate) fn network() -> Network {
        let network = Network::new(CASCADED);
        let off_link = format!("{OFF_LINK}/32");
        network.run(Host::Lan1, "ip", ["addr", "add", &off_link, "dev", "eth0"]);
        network.run(Host::Router, "ip", ["route", "add", &off_link, "dev", LAN_INTERFACE]);
        network.run(Host::Router, "sysctl", ["-qw", "net.ipv4.conf.all.rp_filter=0"]);
        let (door, way) = (format!("{ROUTER_LAN}/32"), ROUTER_WAN.to_string());
        network.run(Host::Other, "ip", ["route", "add", &door, "via", &way, "dev", WAN_INTERFACE]);
        network
    }

    pub(crate) fn start(network: &'a Network, subject: Subject) -> Self {
        let upstream = Upstream::start(network);
        let daemon = RefCell::new(subject.start(network, NAT, ""));
        let mut scene = Self { network, upstream, paths: Paths::default(), subject, daemon };
        scene.find();
        scene
    }

    /// Waits until the gateway is found and knows its external address.
    fn find(&mut self) {
        const TARGET: &str = "urn:schemas-upnp-org:device:InternetGatewayDevice:1";
        let location = eventually("an answer to M-SEARCH", 15 * SECOND, || {
            let mut command = self.network.command(Host::Lan1, PROBE);
            let output = command.args(["search", TARGET, "1500"]).output().expect("it runs");
            let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            output.status.success().then_some(said)
        });
        let (_, path) =
            location.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("a URL");
        let description = format!("/{path}");
        let get = format!("GET {description} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", door());
        let heard = self.network.inside(Host::Lan2, || exchange(door(), get.as_bytes(), 3 * SECOND));
        let text = String::from_utf8_lossy(&heard.octets).into_owned();
        let (_, body) = text.split_once("\r\n\r\n").expect("a body");
        let device = wire::description::parse(body.as_bytes()).expect("a description");
        let service = device.services.iter().find(|one| one.service_type.contains(":WANIPConnection:"));
        let service = service.expect("it is an IGD");
        self.paths = Paths {
            description,
            scpd: service.scpd_url.clone(),
            control: service.control_url.clone(),
            event: service.event_url.clone(),
            service: service.service_type.clone(),
            udn: device.udn.clone(),
        };
        eventually("the external address", 15 * SECOND, || {
            let heard = self.call(Host::Lan2, "GetExternalIPAddress", "", 2 * SECOND);
            String::from_utf8_lossy(&heard.octets).contains(&EXTERNAL.to_string()).then_some(())
        });
        eventually("a good request", 5 * SECOND, || self.serves().then_some(()));
    }

    /// Whether it is portferry.
    pub(crate) fn is_ours(&self) -> bool {
        self.subject.interworks()
    }

    /// The gateway's process.
    pub(crate) fn process(&self) -> u32 {
        self.daemon.borrow().id()
    }

    /// What portferry says of itself.
    pub(crate) fn status(&self) -> Value {
        let said = subject::ask(self.network, "status");
        said.and_then(|said| serde_json::from_str(&said).ok()).unwrap_or(Value::Null)
    }

    pub(crate) fn counter(&self, pointer: &str) -> u64 {
        if pointer.is_empty() {
            0
        } else {
            self.status().pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
        }
    }

    /// A row, and what is looked at afterwards, both in words; and whether portferry has counted it, before anything else is asked.
    pub(crate) fn suffer(&mut self, row: &Row) -> (String, bool) {
        let before = self.counter(row.counter);
        let mut came = (row.attack)(self);
        let counts = self.is_ours() && !row.counter.is_empty();
        let is_counted =
            !counts || poll(SECOND, || (self.counter(row.counter) > before).then_some(())).is_some();
        // What the provider was asked to take back is on its way, perhaps.
        if poll(SECOND, || self.mappings().is_empty().then_some(())).is_none() {
            came += "; **a mapping is made**";
            self.clean();
        }
        let began = Instant::now();
        if self.daemon.borrow_mut().ended().is_some() {
            came += "; **it has ended**";
        } else if !self.serves() {
            came += "; **nobody else is served**";
        }
        if !self.is_ours() && (came.contains("it has ended") || came.contains("nobody else")) {
            if self.daemon.borrow_mut().ended().is_none() {
                came += &format!(" after {} s", began.elapsed().as_secs());
            }
            self.restart();
        }
        (came, is_counted)
    }

    /// Only miniupnpd is ever begun anew.
    fn restart(&mut self) {
        self.daemon.borrow().signal("KILL");
        self.daemon.borrow_mut().wait(5 * SECOND);
        self.network.nft(Host::Router, "delete table inet miniupnpd\n");
        let daemon = self.subject.start(self.network, NAT, "");
        self.daemon.replace(daemon);
        self.find();
    }

    /// Mappings that there are, in the router's kernel and at the provider.
    pub(crate) fn mappings(&self) -> Vec<String> {
        if self.is_ours() {
            let here = subject::elements(self.network).expect("its table is there").into_iter();
            let here = here.map(|(_, port, to)| format!("{port} to {to}"));
            return here.chain(self.upstream.mappings()).collect();
        }
        let rules = self.network.run(
            Host::Router,
            "nft",
            ["-n", "list", "chain", "inet", "miniupnpd", "prerouting_miniupnpd"],
        );
        rules.lines().filter(|line| line.contains("dnat")).map(str::to_owned).collect()
    }

    /// Whatever an attack has made is no business of the next one.
    fn clean(&self) {
        if self.is_ours() {
            for host in [LAN1, LAN2] {
                let _ = subject::ask(self.network, &format!("release {host}"));
            }
            eventually("an empty table", 5 * SECOND, || self.mappings().is_empty().then_some(()));
        } else {
            for chain in ["miniupnpd", "prerouting_miniupnpd", "postrouting_miniupnpd"] {
                self.network.run(Host::Router, "nft", ["flush", "chain", "inet", "miniupnpd", chain]);
            }
        }
    }

    /// Whether another host than the attacker gets a mapping within a second, and can give it back.
    pub(crate) fn serves(&self) -> bool {
        let arguments = arguments(LAN2, GOOD, &[]);
        let made = self.call(Host::Lan2, "AddPortMapping", &arguments, SECOND).verdict();
        let stands = self.mappings().iter().any(|mapping| mapping.contains(&GOOD.to_string()));
        let gone = self.delete(Host::Lan2, GOOD, SECOND).verdict();
        made == "200" && stands && gone == "200" && self.mappings().is_empty()
    }

    /// Calls an action of WANIPConnection; `inner` is the arguments' XML.
    pub(crate) fn call(&self, host: Host, action: &str, inner: &str, patience: Duration) -> Heard {
        let request = self.post(action, inner).octets();
        self.network.inside(host, || exchange(door(), &request, patience))
    }

    /// DeletePortMapping of a TCP port.
    pub(crate) fn delete(&self, host: Host, port: u16, patience: Duration) -> Heard {
        let inner = format!(
            "<NewRemoteHost></NewRemoteHost><NewExternalPort>{port}</NewExternalPort><NewProtocol>TCP</NewProtocol>"
        );
        self.call(host, "DeletePortMapping", &inner, patience)
    }

    /// A request that calls an action, to be spoilt.
    pub(crate) fn post(&self, action: &str, inner: &str) -> Post {
        let Paths { control, service, .. } = &self.paths;
        let body = format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{action} xmlns:u=\"{service}\">\
             {inner}</u:{action}></s:Body></s:Envelope>\r\n"
        );
        let headers = [
            ("Host", door().to_string()),
            ("SOAPAction", format!("\"{service}#{action}\"")),
            ("Content-Type", "text/xml; charset=\"utf-8\"".to_owned()),
            ("Connection", "close".to_owned()),
        ];
        Post {
            line: format!("POST {control} HTTP/1.1"),
            headers: headers.map(|(name, value)| (name.to_owned(), value.into_bytes())).into(),
            body: body.into_bytes(),
            length: true,
        }
    }

    /// One that asks for a mapping of the attacker's own, which nothing is wrong with.
    pub(crate) fn add(&self) -> Post {
        self.post("AddPortMapping", &arguments(LAN1, 4444, &[]))
    }

    /// What the attacker hears after so many octets.
    pub(crate) fn send(&self, octets: &[u8]) -> Heard {
        self.network.inside(Host::Lan1, || exchange(door(), octets, 4 * SECOND))
    }
}

/// The arguments of AddPortMapping for a TCP port of `host`, some of them replaced; they go out as they are.
pub(crate) fn arguments(host: Ipv4Addr, port: u16, other: &[(&str, &str)]) -> String {
    let (host, port) = (host.to_string(), port.to_string());
    let usual = [
        ("NewRemoteHost", ""),
        ("NewExternalPort", &*port),
        ("NewProtocol", "TCP"),
        ("NewInternalPort", &*port),
        ("NewInternalClient", &*host),
        ("NewEnabled", "1"),
        ("NewPortMappingDescription", "attack"),
        ("NewLeaseDuration", "3600"),
    ];
    let element = |(name, value): (&str, &str)| {
        let value = other.iter().find(|(own, _)| *own == name).map_or(value, |(_, value)| value);
        format!("<{name}>{value}</{name}>")
    };
    usual.into_iter().map(element).collect()
}

/// An HTTP request.
#[derive(Clone, Debug)]
pub(crate) struct Post {
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    /// Whether Content-Length is said by itself.
    length: bool,
}

impl Post {
    /// Another first line.
    pub(crate) fn line(mut self, line: String) -> Self {
        self.line = line;
        self
    }

    /// In the place of all headers of that name.
    pub(crate) fn set(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.without(name).also(name, value)
    }

    pub(crate) fn also(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(own, _)| !own.eq_ignore_ascii_case(name));
        self
    }

    pub(crate) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    pub(crate) fn without_length(mut self) -> Self {
        self.length = false;
        self
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn octets(&self) -> Vec<u8> {
        let mut octets = format!("{}\r\n", self.line).into_bytes();
        for (name, value) in &self.headers {
            octets.extend(name.bytes().chain(*b": "));
            octets.extend(value);
            octets.extend(b"\r\n");
        }
        if self.length {
            octets.extend(format!("Content-Length: {}\r\n", self.body.len()).bytes());
        }
        octets.extend(b"\r\n");
        octets.extend(&self.body);
        octets
    }
}
