//! What a day costs, in virtual time: octets that are written to the state directory, and how often the daemon has to wake.
//!
//! The provider is a server that grants everything at once, for as long as it is asked but some hours at most. Nothing here depends on
//! the machine.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use engine::device::{DeviceConfig, IgdVersion};
use engine::entropy::SeededEntropy;
use engine::gateway::{
    Config, ControlRequest, Effect, Event, Gateway, LanInterface, NatMode, NatTicket, RequestId, Wan,
};
use engine::policy::{InterfaceAddress, Policy};
use engine::time::{Duration, Instant};
use portferry::store::{FILE, Store};
use wire::pcp::{Body, MapData, Request, Response, ResultCode, SERVER_PORT, mapped};
use wire::services::{Face, Service};
use wire::soap;

const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(100, 64, 0, 1), SERVER_PORT);
const WAN: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 10));
const HOUR: u32 = 3600;
const DAY: Duration = Duration::from_secs(24 * 3600);
const MINUTES: f64 = 24.0 * 60.0;

/// What happens next, outside of the gateway.
enum Next {
    Datagram(Vec<u8>),
    Nat(NatTicket),
    Open(SocketAddr),
}

/// A gateway at work.
struct Day {
    gateway: Gateway,
    now: Instant,
    store: Store,
    /// Octets of the file that were written anew, or appended.
    written: u64,
    length: u64,
    directory: std::path::PathBuf,
    /// Moments at which something was due or came.
    wakes: usize,
    /// Requests to the provider.
    datagrams: usize,
    requests: u64,
    refused: usize,
    /// The longest lifetime that the provider grants, in seconds.
    longest: u32,
}

impl Day {
    fn new(name: &str, longest: u32) -> Self {
        let directory = std::env::temp_dir().join(format!("portferry-budget-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir(&directory).expect("the temporary directory is writable");
        let device = DeviceConfig {
            seed: [7; 16],
            token: [7; 16],
            boot_id: 1,
            friendly_name: "Router".to_owned(),
            http_port: 5000,
            igd_version: IgdVersion::Auto,
            server: "Linux/6 UPnP/1.1 portferry/0".to_owned(),
            version: "0".to_owned(),
        };
        let policy = Policy { mappings_per_host: 2000, never: Vec::new(), ..Policy::default() };
        let config = Config { nat: NatMode::Own, policy, ..Config::new(device) };
        let (store, _) = Store::open(&directory).expect("an empty directory");
        let mut day = Self {
            gateway: Gateway::new(config, Box::new(SeededEntropy::new(1))),
            now: Instant::default(),
            store,
            written: 0,
            length: 0,
            directory,
            wakes: 0,
            datagrams: 0,
            requests: 0,
            refused: 0,
            longest,
        };
        let addr = InterfaceAddress { addr: IpAddr::from([192, 168, 1, 1]), prefix_len: 24 };
        day.handle(Event::Lan(vec![LanInterface {
            index: 2,
            name: "lan0".to_owned(),
            addresses: vec![addr],
        }]));
        let router = Some(IpAddr::V4(SERVER.0));
        let name = "wan0".to_owned();
        day.handle(Event::Wan(Wan { name, up: true, addresses: vec![WAN], router, ..Wan::default() }));
        day.pass(Duration::from_secs(120));
        day
    }

    fn handle(&mut self, event: Event<'_>) {
        let mut next = VecDeque::new();
        self.gateway.handle(self.now, event);
        loop {
            while let Some(effect) = self.gateway.poll_effect() {
                match effect {
                    Effect::Send { bytes, .. } => next.push_back(Next::Datagram(bytes)),
                    Effect::Nat { ticket, .. } => next.push_back(Next::Nat(ticket)),
                    Effect::OpenUplink { server } => next.push_back(Next::Open(server)),
                    Effect::Reply { answer, .. } => self.refused += usize::from(answer.is_err()),
                    Effect::Store(record) => {
                        self.store.append(&record).expect("there is room");
                        self.measure();
                    }
                    _ => {}
                }
            }
            let Some(one) = next.pop_front() else { return };
            match one {
                Next::Datagram(bytes) => {
                    self.datagrams += 1;
                    let answer = grant(&bytes, self.now, self.longest);
                    self.gateway.handle(self.now, Event::Uplink { from: SERVER.into(), bytes: &answer });
                }
                Next::Nat(ticket) => self.gateway.handle(self.now, Event::Nat { ticket, outcome: Ok(()) }),
                Next::Open(server) => {
                    self.gateway.handle(self.now, Event::UplinkOpened { server, source: WAN.into() });
                }
            }
        }
    }

    /// A file that became shorter was written anew.
    fn measure(&mut self) {
        let length = std::fs::metadata(self.directory.join(FILE)).map_or(0, |file| file.len());
        self.written += if length >= self.length { length - self.length } else { length };
        self.length = length;
    }

    /// What is due at one moment is one wake-up, whatever comes of it.
    fn pass(&mut self, span: Duration) {
        let until = self.now + span;
        while let Some(next) = self.gateway.next_timeout().filter(|next| *next <= until) {
            self.wakes += usize::from(next > self.now);
            self.now = self.now.max(next);
            self.handle(Event::Timeout);
        }
        self.now = until;
    }

    fn add(&mut self, port: u16, lease: u32) {
        let service = Service::WanIpConnection.service_type(2);
        let (port, lease) = (port.to_string(), lease.to_string());
        let arguments = [
            ("NewRemoteHost", ""),
            ("NewExternalPort", &*port),
            ("NewProtocol", "TCP"),
            ("NewInternalPort", &port),
            ("NewInternalClient", &HOST.to_string()),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", "an application"),
            ("NewLeaseDuration", &lease),
        ];
        let body = soap::encode_call(&service, "AddPortMapping", &arguments);
        let header = format!("{service}#AddPortMapping");
        let request = soap::decode(Service::WanIpConnection, Face::V2, Some(&header), body.as_bytes());
        self.requests += 1;
        self.handle(Event::Control(ControlRequest {
            id: RequestId(self.requests),
            from: HOST,
            also: Vec::new(),
            face: Face::V2,
            request: request.expect("it is a call"),
        }));
    }

    fn mappings(&self) -> usize {
        self.gateway.mappings(self.now).count()
    }
}

impl Drop for Day {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(Path::new(&self.directory));
    }
}

/// What is wished for is granted.
fn grant(datagram: &[u8], now: Instant, longest: u32) -> Vec<u8> {
    let request = Request::parse(datagram).expect("what is sent is a request");
    let body = match request.body {
        Body::Map(map) => {
            let external_port = if map.external_port == 0 { map.internal_port } else { map.external_port };
            Body::Map(MapData { external_port, external_addr: mapped(EXTERNAL), ..map })
        }
        other => other,
    };
    let response = Response {
        result: ResultCode::SUCCESS,
        lifetime: request.lifetime.min(longest),
        epoch: 1000 + u32::try_from(now.as_secs()).expect("some days"),
        body,
        options: request.options,
    };
    response.to_bytes()
}

/// 100 mappings that are kept for a day while the provider grants an hour at a time: 64 KiB at most. Renewals write nothing.
#[test]
fn a_day_of_renewals_on_flash() {
    let mut day = Day::new("renewals", HOUR);
    for port in 0..100 {
        day.add(10_000 + port, 0);
        day.pass(Duration::from_secs(1));
    }
    day.pass(DAY);
    assert_eq!((day.mappings(), day.refused), (100, 0));
    println!("{} octets in a day, {} datagrams", day.written, day.datagrams);
    assert!(day.datagrams > 100 * 24, "they were renewed");
    assert!(day.written <= 64 * 1024, "{} octets", day.written);
}

/// 100 mappings with leases of an hour, which their applications ask for again after each half of it: one line for each time.
#[test]
fn a_day_of_leases_on_flash() {
    let mut day = Day::new("leases", HOUR);
    for _ in 0..48 {
        for port in 0..100 {
            day.add(10_000 + port, HOUR);
            day.pass(Duration::from_secs(1));
        }
        day.pass(Duration::from_secs(1800 - 100));
    }
    assert_eq!((day.mappings(), day.refused), (100, 0));
    let line = day.written / day.requests;
    println!("{} octets in a day, {line} for each request", day.written);
    assert!(line <= 400, "{line} octets");
}

/// Without a mapping the process wakes once in a minute at most; with 1,000 of two hours three times.
#[test]
fn a_day_without_requests() {
    for (mappings, most) in [(0_u16, 1.0), (1000, 3.0)] {
        let mut day = Day::new(&format!("wakes-{mappings}"), 2 * HOUR);
        for port in 0..mappings {
            day.add(10_000 + port, 0);
            day.pass(Duration::from_secs(1));
        }
        (day.wakes, day.datagrams) = (0, 0);
        day.pass(DAY);
        assert_eq!((day.mappings(), day.refused), (usize::from(mappings), 0));
        let wakes = f64::from(u32::try_from(day.wakes).expect("not that many")) / MINUTES;
        println!("{mappings} mappings: {wakes:.2} wake-ups a minute, {} datagrams", day.datagrams);
        assert!(wakes <= most, "{mappings} mappings: {wakes:.2} wake-ups a minute");
    }
}
