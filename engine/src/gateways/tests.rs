//! Two uplinks of one device in virtual time, each with its provider; both servers are called the same.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use wire::pcp::{Body, MapData, Nonce, Protocol, Response, ResultCode};
use wire::services::{Face, Service};
use wire::soap::{self, decode_answer, encode_call};

use super::*;
use crate::device::{DeviceConfig, IgdVersion};
use crate::entropy::SeededEntropy;
use crate::gateway::{Config, ControlRequest, LanArrival, NatMode, RequestId, Wan};
use crate::journal::Record;
use crate::notice::{Cause, Notice};
use crate::policy::InterfaceAddress;
use crate::prefix::ThirdParty;
use crate::provider::{Provider, ProviderConfig};
use crate::uplink::FlowId;

const ALICE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);
const BOB: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 11);
const EXTERNAL: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 7), Ipv4Addr::new(203, 0, 113, 7)];

fn server() -> SocketAddr {
    "192.0.2.1:5351".parse().unwrap()
}

fn config() -> Config {
    let device = DeviceConfig {
        seed: [7; 16],
        token: [0xab; 16],
        boot_id: 1,
        friendly_name: "portferry".into(),
        http_port: 5000,
        igd_version: IgdVersion::Auto,
        server: "Linux/6 UPnP/1.1 portferry/0.1".into(),
        version: "0.1".into(),
    };
    Config { nat: NatMode::None, servers: vec![server()], ..Config::new(device) }
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

/// Alice has the first uplink, Bob the second.
struct Lab {
    gateways: Gateways,
    providers: [Provider; 2],
    silent: bool,
    now: u64,
    effects: Vec<(Place, Effect)>,
    heard: BTreeMap<RequestId, Result<Vec<String>, u16>>,
}

impl Lab {
    fn up() -> Self {
        let mut lab = Self::down("192.168.1.11");
        lab.bring_up();
        lab
    }

    /// These hosts have the second uplink; nothing is there yet.
    fn down(hosts: &str) -> Self {
        let gateway = |seed| Gateway::new(config(), Box::new(SeededEntropy::new(seed)));
        let provider = |external| {
            Provider::new(
                Instant::default(),
                ProviderConfig { third_party: true, ..ProviderConfig::new(external) },
            )
        };
        Self {
            gateways: Gateways::new(gateway(1)).with(vec![prefix(hosts)], gateway(2)),
            providers: EXTERNAL.map(provider),
            silent: false,
            now: 0,
            effects: Vec::new(),
            heard: BTreeMap::new(),
        }
    }

    fn bring_up(&mut self) {
        let addresses = vec![InterfaceAddress { addr: Ipv4Addr::new(192, 168, 1, 1).into(), prefix_len: 24 }];
        let lan = [LanInterface { index: 3, name: "lan0".into(), addresses }];
        self.turn(|gateways, now| gateways.handle_lan(now, &lan));
        for (place, name) in ["wan0", "wan1"].into_iter().enumerate() {
            let addresses = vec![Ipv4Addr::new(192, 0, 2, 10)];
            let wan = Wan { name: name.into(), up: true, addresses, ..Wan::default() };
            self.turn(|gateways, now| gateways.handle(now, To::Uplink(place), Event::Wan(wan)));
        }
    }

    fn instant(&self) -> Instant {
        Instant::from_millis(self.now)
    }

    /// One turn, and those that follow from it at the same moment.
    fn turn(&mut self, what: impl FnOnce(&mut Gateways, Instant)) {
        what(&mut self.gateways, Instant::from_millis(self.now));
        let mut next = VecDeque::new();
        loop {
            self.perform(&mut next);
            let Some((place, from, bytes)) = next.pop_front() else { return };
            let now = self.instant();
            let event = match &bytes {
                Some(bytes) => Event::Uplink { from, bytes },
                None => Event::UplinkOpened { server: from, source: Ipv4Addr::new(192, 0, 2, 10).into() },
            };
            self.gateways.handle(now, To::Uplink(place), event);
        }
    }

    fn perform(&mut self, next: &mut VecDeque<(Place, SocketAddr, Option<Vec<u8>>)>) {
        while let Some((place, effect)) = self.gateways.poll_effect() {
            match &effect {
                Effect::OpenUplink { server } => next.push_back((place, *server, None)),
                Effect::Send { to, bytes } if !self.silent => {
                    let from = "192.0.2.10:49152".parse().unwrap();
                    let answer =
                        self.providers[place].handle_datagram(Instant::from_millis(self.now), from, bytes);
                    next.extend(answer.map(|answer| (place, *to, Some(answer))));
                }
                Effect::Reply { request, answer } => {
                    let heard = answer.as_ref().map_err(|error| error.code).map(|envelope| {
                        let answer = decode_answer(envelope.as_bytes()).expect("well-formed");
                        answer.values.into_iter().map(|(_, value)| value).collect()
                    });
                    assert!(self.heard.insert(*request, heard).is_none(), "answered once");
                }
                _ => {}
            }
            self.effects.push((place, effect));
        }
    }

    fn pass(&mut self, secs: u64) {
        let end = self.now + secs * 1000;
        while let Some(due) = self.gateways.next_timeout().filter(|due| due.as_millis() <= end) {
            self.now = self.now.max(due.as_millis());
            self.turn(Gateways::handle_timeout);
        }
        self.now = end;
    }

    fn call(&mut self, from: Ipv4Addr, action: &str, args: &[(&str, &str)]) -> Result<Vec<String>, u16> {
        self.call_from(from.into(), &[], action, args)
    }

    fn call_from(
        &mut self,
        from: IpAddr,
        also: &[IpAddr],
        action: &str,
        args: &[(&str, &str)],
    ) -> Result<Vec<String>, u16> {
        let id = RequestId(self.heard.len() as u64 + 1);
        let service_type = Service::WanIpConnection.service_type(2);
        let header = format!("\"{service_type}#{action}\"");
        let body = encode_call(&service_type, action, args);
        let request = soap::decode(Service::WanIpConnection, Face::V2, Some(&header), body.as_bytes());
        let request = request.expect("a good request");
        let event = Event::Control(ControlRequest { id, from, also: also.to_vec(), face: Face::V2, request });
        self.turn(|gateways, now| gateways.handle(now, To::Host(from), event));
        self.heard.get(&id).cloned().expect("answered at once")
    }

    fn add(&mut self, host: Ipv4Addr, port: u16) -> Result<Vec<String>, u16> {
        self.add_from(host.into(), &[], host, port)
    }

    fn add_from(
        &mut self,
        from: IpAddr,
        also: &[IpAddr],
        host: Ipv4Addr,
        port: u16,
    ) -> Result<Vec<String>, u16> {
        let port = port.to_string();
        self.call_from(
            from,
            also,
            "AddPortMapping",
            &[
                ("NewRemoteHost", ""),
                ("NewExternalPort", &port),
                ("NewProtocol", "TCP"),
                ("NewInternalPort", &port),
                ("NewInternalClient", &host.to_string()),
                ("NewEnabled", "1"),
                ("NewPortMappingDescription", "test"),
                ("NewLeaseDuration", "3600"),
            ],
        )
    }

    /// External ports that the provider of this uplink has given, but the probe's.
    fn upstream(&self, place: Place) -> Vec<u16> {
        let mappings = self.providers[place].mappings().filter(|mapping| mapping.internal.port() != 9);
        mappings.map(|mapping| mapping.external.port()).collect()
    }

    fn mapped(&self, place: Place) -> usize {
        self.gateways.iter().nth(place).map_or(0, |(_, gateway)| gateway.mappings(self.instant()).count())
    }
}

#[test]
fn the_longest_prefix_says_whose_a_host_is() {
    let gateway = || Gateway::new(config(), Box::new(SeededEntropy::new(1)));
    let gateways = Gateways::new(gateway())
        .with(vec![prefix("192.168.1.0/24"), prefix("192.168.2.7")], gateway())
        .with(vec![prefix("192.168.1.64/26")], gateway());
    for (host, place) in [
        ("192.168.1.1", 1),
        ("192.168.1.64", 2),
        ("192.168.1.127", 2),
        ("192.168.1.128", 1),
        ("192.168.2.7", 1),
        ("192.168.2.8", 0),
        ("::ffff:192.168.2.7", 1),
        ("2001:db8::1", 0),
    ] {
        assert_eq!(gateways.of_host(host.parse().unwrap()), place, "{host}");
    }
}

#[test]
fn two_hosts_have_the_same_port_each_at_its_own_address() {
    let mut lab = Lab::up();
    for (place, host) in [ALICE, BOB].into_iter().enumerate() {
        assert_eq!(lab.add(host, 8080), Ok(vec![]));
        let external = lab.call(host, "GetExternalIPAddress", &[]).unwrap();
        assert_eq!(external, [EXTERNAL[place].to_string()]);
        assert_eq!(lab.upstream(place), [8080]);
        let entry = lab.call(host, "GetGenericPortMappingEntry", &[("NewPortMappingIndex", "0")]).unwrap();
        assert!(entry.contains(&host.to_string()), "{entry:?}");
        let next = lab.call(host, "GetGenericPortMappingEntry", &[("NewPortMappingIndex", "1")]);
        assert_eq!(next, Err(713), "each sees its own uplink");
    }
    let flows: Vec<FlowId> = lab
        .gateways
        .standing(lab.instant())
        .filter_map(|(_, change)| match change {
            Change::Mapping { flow, .. } => Some(flow),
            Change::External { .. } => None,
        })
        .collect();
    assert!(flows.len() == 2 && flows[0] != flows[1], "{flows:?}");
    // Nobody reaches another one's uplink, whoever he says that he is.
    assert_eq!(
        lab.call(
            ALICE,
            "DeletePortMapping",
            &[("NewRemoteHost", ""), ("NewExternalPort", "8080"), ("NewProtocol", "TCP")]
        ),
        Ok(vec![])
    );
    assert_eq!((lab.upstream(0), lab.upstream(1)), (vec![], vec![8080]));
}

/// K-3: who speaks over IPv6 has the uplink of his IPv4 addresses, and gets nothing at another one for them.
#[test]
fn a_host_is_bound_by_all_of_its_addresses() {
    let carol = Ipv4Addr::new(192, 168, 1, 12);
    let (link_local, global): (IpAddr, IpAddr) =
        ("fe80::11".parse().unwrap(), "2001:db8::11".parse().unwrap());
    let [alice_v4, bob_v4, carol_v4] = [ALICE, BOB, carol].map(IpAddr::V4);
    for (bound, also, host, heard, upstream) in [
        ("192.168.1.11", &[bob_v4][..], BOB, Ok(vec![]), [vec![], vec![8080]]),
        ("192.168.1.11", &[alice_v4], ALICE, Ok(vec![]), [vec![8080], vec![]]),
        ("192.168.1.11", &[], BOB, Err(606), [vec![], vec![]]),
        ("192.168.1.11", &[alice_v4], BOB, Err(606), [vec![], vec![]]),
        // Addresses of two uplinks: those of the usual one count.
        ("192.168.1.11", &[bob_v4, carol_v4], BOB, Err(606), [vec![], vec![]]),
        ("192.168.1.11", &[bob_v4, carol_v4], carol, Ok(vec![]), [vec![8080], vec![]]),
        // It is bound by the address that it speaks from, and the other is not.
        ("fe80::/10", &[bob_v4], BOB, Err(606), [vec![], vec![]]),
        // An IPv6 address that nobody has bound says nothing; one that is bound is another uplink's.
        ("192.168.1.11", &[global, bob_v4], BOB, Ok(vec![]), [vec![], vec![8080]]),
        ("2001:db8::11", &[global, bob_v4], BOB, Ok(vec![]), [vec![8080], vec![]]),
    ] {
        let mut lab = Lab::down(bound);
        lab.bring_up();
        assert_eq!(lab.add_from(link_local, also, host, 8080), heard, "{bound} {also:?} {host}");
        assert_eq!([lab.upstream(0), lab.upstream(1)], upstream, "{bound} {also:?} {host}");
    }
}

/// K-3 and R-42: who subscribes over IPv6 hears of the uplink of his IPv4 addresses, and his subscription stays where it was made.
#[test]
fn a_subscription_is_at_the_uplink_of_its_host() {
    let mut lab = Lab::up();
    let from: IpAddr = "fe80::11".parse().unwrap();
    let ask = |lab: &mut Lab, also: &[Ipv4Addr], subscribe: Subscribe| {
        let request = RequestId(1000);
        let (also, of) =
            (also.iter().copied().map(IpAddr::V4).collect(), (Face::V2, Service::WanIpConnection));
        let event = Event::Subscribe { request, from, also, interface: 3, of, subscribe };
        lab.effects.clear();
        lab.turn(|gateways, now| gateways.handle(now, To::Host(from), event));
        let told = lab.effects.iter().find_map(|(place, effect)| match effect {
            Effect::Subscribed { answer, .. } => Some((*place, *answer)),
            _ => None,
        });
        told.expect("answered at once")
    };
    let timeout = Duration::from_secs(1800);
    let callbacks = vec![wire::gena::CallbackUrl::parse("http://[fe80::11]:5000/").unwrap()];
    let (place, answer) = ask(&mut lab, &[BOB], Subscribe::New { callbacks, timeout });
    let (sid, _) = answer.unwrap().unwrap();
    assert_eq!(place, 1);
    lab.pass(1000);
    let told = lab.effects.iter().find_map(|(place, effect)| match effect {
        Effect::Notify(event) => Some((*place, event.body.clone())),
        _ => None,
    });
    let (place, body) = told.expect("the initial event");
    assert!(place == 1 && body.contains(&EXTERNAL[1].to_string()), "{body}");
    // Nobody knows its addresses for the moment.
    let (place, answer) = ask(&mut lab, &[], Subscribe::Renew { sid, timeout });
    assert_eq!((place, answer), (1, Ok(Some((sid, timeout)))));
    // Bound to the usual uplink, it is told of that, when it asks anew.
    lab.turn(|gateways, now| gateways.bind(now, vec![vec![]]));
    let (_, answer) = ask(&mut lab, &[BOB], Subscribe::Renew { sid, timeout });
    assert_eq!(answer, Err(crate::gena::SubscribeError::PreconditionFailed));
}

/// The first alone is found; a search that comes in goes to it.
#[test]
fn one_device_is_announced() {
    let mut lab = Lab::up();
    lab.pass(2000);
    lab.turn(Gateways::handle_stop);
    lab.pass(100);
    let spoke = |place: Place| {
        lab.effects.iter().filter(|(at, effect)| *at == place && matches!(effect, Effect::Ssdp(_))).count()
    };
    assert!(spoke(0) > 0);
    assert_eq!(spoke(1), 0);
}

/// What a host has at an uplink that is not its own any more is given back there.
#[test]
fn a_host_that_is_bound_anew() {
    let mut lab = Lab::up();
    for host in [ALICE, BOB] {
        assert_eq!(lab.add(host, 8080), Ok(vec![]));
    }
    lab.turn(|gateways, now| gateways.bind(now, vec![vec![prefix("192.168.1.10")]]));
    lab.pass(10);
    assert_eq!((lab.upstream(0), lab.upstream(1)), (vec![], vec![]), "Bob's and Alice's");
    assert_eq!((lab.mapped(0), lab.mapped(1)), (0, 0));
    let rebound =
        |(_, effect): &&(Place, Effect)| matches!(effect, Effect::Notice(Notice::Removed(_, Cause::Rebound)));
    assert_eq!(lab.effects.iter().filter(rebound).count(), 2);
    // Another port, for the provider keeps Bob's for him a while.
    assert_eq!(lab.add(ALICE, 9090), Ok(vec![]));
    assert_eq!((lab.upstream(0), lab.upstream(1)), (vec![], vec![9090]));
    // Who stays where he is keeps what he has.
    lab.turn(|gateways, now| gateways.bind(now, vec![vec![prefix("192.168.1.0/28")]]));
    lab.pass(10);
    assert_eq!(lab.upstream(1), [9090]);
}

/// One that cannot give back in time does not keep the other from it, and the end comes once.
#[test]
fn the_end_comes_when_all_have_stopped() {
    let mut lab = Lab::up();
    for host in [ALICE, BOB] {
        assert_eq!(lab.add(host, 8080), Ok(vec![]));
    }
    lab.silent = true;
    lab.turn(Gateways::handle_stop);
    let stopped = |lab: &Lab| {
        let is = |(_, effect): &&(Place, Effect)| matches!(effect, Effect::Stopped);
        (lab.effects.iter().filter(is).count(), matches!(lab.effects.last(), Some((_, Effect::Stopped))))
    };
    assert_eq!(stopped(&lab), (0, false));
    lab.pass(120);
    assert_eq!(stopped(&lab), (1, true));
    assert_eq!(lab.gateways.next_timeout(), None);
}

/// The second uplink is down: its host hears so, and is not served by the first. Both timers run.
#[test]
fn nobody_is_served_at_another_uplink() {
    let mut lab = Lab::up();
    let down = Wan { name: "wan1".into(), ..Wan::default() };
    lab.turn(|gateways, now| gateways.handle(now, To::Uplink(1), Event::Wan(down)));
    assert_eq!(lab.add(BOB, 8080), Err(501));
    assert_eq!(lab.call(BOB, "GetExternalIPAddress", &[]), Ok(vec![String::new()]));
    assert_eq!(lab.add(ALICE, 8080), Ok(vec![]));
    lab.pass(Duration::from_secs(2 * 3600).as_secs());
    assert_eq!((lab.upstream(0), lab.mapped(0)), (vec![], 0), "the lease has ended");
}

/// Between two starts a host got another uplink: as soon as the old one's server can be asked, it hears that the mapping is not wanted.
#[test]
fn a_host_that_is_bound_anew_over_a_restart() {
    let mut before = Lab::up();
    assert_eq!(before.add(BOB, 8080), Ok(vec![]));
    let stored = before.effects.iter().find_map(|(_, effect)| match effect {
        Effect::Store(Record::Put(stored)) => Some(stored.clone()),
        _ => None,
    });
    let mut lab = Lab::down("192.168.1.10");
    lab.providers = before.providers;
    lab.now = before.now + 1000;
    let restore =
        Event::Restore { mappings: stored.into_iter().collect(), probe: None, filtered: Vec::new() };
    lab.turn(|gateways, now| gateways.handle(now, To::Uplink(1), restore));
    lab.turn(Gateways::release_strangers);
    assert_eq!((lab.mapped(1), lab.upstream(1)), (0, vec![8080]), "nobody can be asked yet");
    lab.bring_up();
    lab.pass(60);
    assert_eq!(lab.upstream(1), [] as [u16; 0]);
}

/// Whoever asks an uplink that has stopped, while another one has not, is answered.
#[test]
fn nobody_waits_for_an_uplink_that_has_stopped() {
    let mut lab = Lab::up();
    assert_eq!(lab.add(ALICE, 8080), Ok(vec![]));
    lab.silent = true;
    lab.turn(Gateways::handle_stop);
    lab.pass(1);
    assert_eq!(lab.add(BOB, 9090), Err(501));
    assert_eq!(lab.add(ALICE, 9090), Err(501));
}

/// Who may ask for others by THIRD_PARTY may for those of his own uplink: what he is told comes from one epoch and one external address, and
/// nobody gets anything at another uplink.
#[test]
fn third_parties_of_another_uplink() {
    const CAROL: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 12);
    let mut lab = Lab::up();
    let everybody = prefix("192.168.1.0/24");
    let third_party = vec![ThirdParty { client: everybody, internal: vec![everybody] }];
    for (allowed, of_another) in
        [(third_party, ResultCode::NOT_AUTHORIZED), (Vec::new(), ResultCode::UNSUPP_OPTION)]
    {
        for place in [0, 1] {
            let settings = Config { third_party: allowed.clone(), ..config() };
            lab.turn(|gateways, now| {
                gateways.handle(now, To::Uplink(place), Event::Reconfigure(Box::new(settings)));
            });
        }
        let own = if allowed.is_empty() { ResultCode::UNSUPP_OPTION } else { ResultCode::SUCCESS };
        for (from, of, result) in [
            (ALICE, CAROL, own),
            (ALICE, BOB, of_another),
            (BOB, ALICE, of_another),
            (BOB, CAROL, of_another),
        ] {
            let map = MapData {
                nonce: Nonce([1; 12]),
                protocol: Protocol::TCP,
                internal_port: 8080,
                external_port: 8080,
                external_addr: Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
            };
            let options = vec![PcpOption::ThirdParty(of.to_ipv6_mapped())];
            let (client_addr, body) = (from.to_ipv6_mapped(), Body::Map(map));
            let bytes = Request { lifetime: 600, client_addr, body, options }.to_bytes();
            let local = Ipv4Addr::new(192, 168, 1, 1).into();
            let arrival = LanArrival { interface: 3, local, from: SocketAddr::from((from, 4000)) };
            lab.effects.clear();
            lab.turn(|gateways, now| {
                gateways.handle(now, To::Host(from.into()), Event::Lan5351 { arrival, bytes: &bytes });
            });
            let told = lab.effects.iter().find_map(|(_, effect)| match effect {
                Effect::LanSend { to, bytes, .. } if *to == arrival.from => Response::parse(bytes).ok(),
                _ => None,
            });
            assert_eq!(told.map(|told| told.result), Some(result), "{from} for {of}");
        }
    }
    assert_eq!((lab.upstream(0), lab.upstream(1)), (vec![8080], vec![]));
}
