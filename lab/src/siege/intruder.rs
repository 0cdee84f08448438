//! The host that means ill: it asks for what is others', for too much, for nonsense, and without end. It has no other source addresses than
//! its own two, and those that no host of the LAN has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use engine::entropy::Entropy;
use engine::gateway::RequestId;
use engine::time::Duration;
use wire::natpmp;
use wire::pcp::{self, Body, Filter, MapData, Nonce, PcpOption, PeerData, Protocol};
use wire::services::{DataType, Face, Service};
use wire::ssdp;

use super::clients::{name, nonce, transport};
use super::pinholes::host;
use super::{HOSTS, INTRUDER, Siege};
use crate::sim::Callback;
use crate::simulation::{Broken, broken};

/// What nobody of the LAN is: strangers, the gateway itself, groups.
const NOBODY: [&str; 9] = [
    "203.0.113.5:4000",
    "192.168.1.1:4000",
    "192.168.1.0:4000",
    "192.168.1.255:4000",
    "255.255.255.255:4000",
    "0.0.0.0:4000",
    "224.0.0.1:4000",
    "127.0.0.1:4000",
    "192.168.2.10:5351",
];
/// Texts that may be arguments.
const TEXTS: [&str; 16] = [
    "",
    "0",
    "1",
    "5000",
    "5002",
    "65535",
    "65536",
    "-1",
    "TCP",
    "UDP",
    "192.168.1.10",
    "192.168.1.1",
    "192.168.1.66",
    "127.0.0.1",
    "*",
    "x\u{7}<&",
];
/// So many subscriptions may a host have.
const SUBSCRIPTIONS: usize = 32;

impl Siege {
    fn octets(&mut self, len: u16) -> Vec<u8> {
        let mut octets = vec![0; len.into()];
        self.dice.0.fill(&mut octets);
        octets
    }

    /// It does one of the things that it knows; what others have is as before.
    pub(super) fn intruder_acts(&mut self) -> Result<(), Broken> {
        self.look()?;
        let before = self.possessions_of_others();
        let own = self.dice.pick(&INTRUDER);
        self.tally.count("acts of the intruder");
        match self.dice.roll(15) {
            0 => self.says_nonsense(own),
            1 => self.says_almost_sense(own),
            2 => self.asks_for_others(own),
            3 => self.asks_by_nat_pmp(own),
            4 => self.asks_for_too_much(own),
            5 | 6 => self.controls_others(own),
            7 => self.calls_anything(own),
            8 => self.intruder_floods(200),
            9 => self.subscribes_others(own)?,
            10 => self.searches(),
            11 => self.speaks_as_nobody()?,
            12 | 13 if self.ipv6 => self.opens_others(),
            _ => self.peers_for_others(own),
        }
        let after = self.possessions_of_others();
        if before != after {
            return broken(format!("the intruder has changed what others have: {before:?} is {after:?}"));
        }
        self.look()
    }

    fn tells(&mut self, own: Ipv4Addr, bytes: &[u8]) {
        self.world.ask_at_5351(SocketAddr::from((own, 4000)), bytes);
    }

    fn says_nonsense(&mut self, own: Ipv4Addr) {
        let len = self.dice.roll(1200);
        let mut bytes = self.octets(len);
        if let (Some(first), true) = (bytes.first_mut(), self.dice.one_in(2)) {
            *first = 2;
        }
        self.world.note(format!("* {own} says {len} octets of nonsense"));
        self.tells(own, &bytes);
    }

    /// A MAP request of its own, for any port.
    fn a_request(&mut self, own: Ipv4Addr) -> pcp::Request {
        let protocol =
            self.dice.pick(&[Protocol::TCP, Protocol::UDP, Protocol::TCP, Protocol(132), Protocol(0)]);
        let internal_port = self.dice.pick(&[5000, 5001, 5002, 6000, 22, 0, 5351]);
        let external_port = self.dice.pick(&[5000, 5001, 5010, 5012, 80, 0, 5351, 5350]);
        let external_addr = self.dice.pick(&[
            Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
            crate::sim::EXTERNAL.to_ipv6_mapped(),
            Ipv6Addr::UNSPECIFIED,
            host(10),
        ]);
        let nonce = match self.dice.roll(3) {
            // As if it had heard that of another host.
            0 => nonce(IpAddr::V4(HOSTS[0]), internal_port),
            _ => Nonce([self.dice.roll(3).to_be_bytes()[1]; 12]),
        };
        let map = MapData { nonce, protocol, internal_port, external_port, external_addr };
        let lifetime = self.dice.pick(&[0, 1, 120, 3600, 3600, u32::MAX]);
        let mut options = Vec::new();
        for _ in 0..self.dice.roll(3) {
            let remote_addr = Ipv4Addr::new(203, 0, 113, 9).to_ipv6_mapped();
            let filter = |prefix_len| PcpOption::Filter(Filter { prefix_len, remote_port: 0, remote_addr });
            options.push(match self.dice.roll(7) {
                0 => PcpOption::PreferFailure,
                1 => filter(128),
                2 => filter(0),
                3 => filter(100),
                4 => PcpOption::Description(b"a\x07\xff".to_vec()),
                5 => PcpOption::ThirdParty(HOSTS[1].to_ipv6_mapped()),
                _ => PcpOption::Unknown { code: pcp::OptionCode(77), data: vec![1; 5] },
            });
        }
        pcp::Request { lifetime, client_addr: own.to_ipv6_mapped(), body: Body::Map(map), options }
    }

    fn says_almost_sense(&mut self, own: Ipv4Addr) {
        let mut bytes = self.a_request(own).to_bytes();
        for _ in 0..self.dice.roll(4) {
            let at = usize::from(self.dice.roll(u16::try_from(bytes.len()).unwrap_or(1)));
            bytes[at] ^= 1 << self.dice.roll(8);
        }
        if self.dice.one_in(4) {
            bytes.truncate(usize::from(self.dice.roll(70)));
        }
        self.world.note(format!("* {own} says {bytes:?}"));
        self.tells(own, &bytes);
    }

    /// In PCP, for other clients and third parties.
    fn asks_for_others(&mut self, own: Ipv4Addr) {
        let mut request = self.a_request(own);
        let other = self.dice.pick(&[HOSTS[0], HOSTS[1], Ipv4Addr::new(192, 168, 1, 1), Ipv4Addr::LOCALHOST]);
        if self.dice.one_in(2) {
            request.client_addr = other.to_ipv6_mapped();
        } else {
            request.options.push(PcpOption::ThirdParty(other.to_ipv6_mapped()));
        }
        self.world.note(format!("* {own}: {request}"));
        self.tells(own, &request.to_bytes());
    }

    fn asks_by_nat_pmp(&mut self, own: Ipv4Addr) {
        let protocol = transport(self.dice.pick(&[Protocol::TCP, Protocol::UDP]));
        let internal_port = self.dice.pick(&[0, 22, 5000, 5001, 5002]);
        let external_port = self.dice.pick(&[0, 80, 5000, 5001, 5002, 5010]);
        let lifetime = self.dice.pick(&[0, 0, 1, 3600, u32::MAX]);
        let request = natpmp::Request::Map { protocol, internal_port, external_port, lifetime };
        self.world.note(format!("* {own}: {request}"));
        self.world.ask_at_5351(SocketAddr::from((own, 4001)), &request.to_bytes());
    }

    /// Many mappings, by every protocol at once.
    fn asks_for_too_much(&mut self, own: Ipv4Addr) {
        self.tally.count("quotas tried");
        self.world.note(format!("* {own} asks for too much"));
        let first = 20_000 + self.dice.roll(20_000);
        for port in first..first + 15 {
            let (nonce, protocol) = (Nonce([9; 12]), Protocol::TCP);
            let external_addr = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
            let map = MapData { nonce, protocol, internal_port: port, external_port: port, external_addr };
            let (client_addr, body) = (own.to_ipv6_mapped(), Body::Map(map));
            let request = pcp::Request { lifetime: 3600, client_addr, body, options: vec![] };
            match self.dice.roll(3) {
                0 => self.tells(own, &request.to_bytes()),
                1 => {
                    let protocol = natpmp::Transport::Udp;
                    let (internal_port, external_port, lifetime) = (port, port, 3600);
                    let request = natpmp::Request::Map { protocol, internal_port, external_port, lifetime };
                    self.tells(own, &request.to_bytes());
                }
                _ => drop(self.controls(own, "AddPortMapping", (&own.to_string(), port, port), "3600")),
            }
        }
    }

    fn controls(
        &mut self,
        own: Ipv4Addr,
        action: &str,
        (client, external, internal): (&str, u16, u16),
        lease: &str,
    ) -> RequestId {
        let (external, internal) = (external.to_string(), internal.to_string());
        let protocol = name(self.dice.pick(&[Protocol::TCP, Protocol::UDP, Protocol::TCP]));
        let arguments: &[(&str, &str)] = match action {
            "DeletePortMapping" | "GetSpecificPortMappingEntry" => {
                &[("NewRemoteHost", ""), ("NewExternalPort", &external), ("NewProtocol", protocol)]
            }
            "DeletePortMappingRange" => &[
                ("NewStartPort", "1"),
                ("NewEndPort", "65535"),
                ("NewProtocol", protocol),
                ("NewManage", "1"),
            ],
            _ => &[
                ("NewRemoteHost", ""),
                ("NewExternalPort", &external),
                ("NewProtocol", protocol),
                ("NewInternalPort", &internal),
                ("NewInternalClient", client),
                ("NewEnabled", "1"),
                ("NewPortMappingDescription", "<&>\u{1}"),
                ("NewLeaseDuration", lease),
            ],
        };
        let version = if action.contains("Any") || action.contains("Range") { 2 } else { 1 };
        self.world.call(own, Service::WanIpConnection, version, action, arguments)
    }

    /// By UPnP, others' ports and to others' addresses.
    fn controls_others(&mut self, own: Ipv4Addr) {
        let external = self.dice.pick(&[5000, 5001, 5002, 5010, 5011, 80, 0, 1023]);
        let internal = self.dice.pick(&[5000, 5001, 22, 0, 8080]);
        let action = self.dice.pick(&[
            "AddPortMapping",
            "AddPortMapping",
            "AddAnyPortMapping",
            "DeletePortMapping",
            "DeletePortMappingRange",
            "GetSpecificPortMappingEntry",
        ]);
        let mine = own.to_string();
        let client = self.dice.pick(&[
            mine.as_str(),
            "192.168.1.10",
            "192.168.1.11",
            "192.168.1.1",
            "192.168.1.255",
            "127.0.0.1",
            "224.0.0.1",
            "203.0.113.5",
            "100.64.0.2",
            "0300.0250.1.10",
            "laptop",
        ]);
        let lease = self.dice.pick(&["0", "300", "3600", "4294967295"]);
        self.world.note(format!("* {own}: {action} {external} -> {client}:{internal}"));
        let id = self.controls(own, action, (client, external, internal), lease);
        // Another host's is never given to who asks for it.
        let refused = self.world.reply(id).is_some_and(|reply| reply.answer.is_err());
        self.tally.count(if refused {
            "refusals of the intruder"
        } else {
            "control requests of the intruder"
        });
    }

    /// Any action with any texts.
    fn calls_anything(&mut self, own: Ipv4Addr) {
        let service = self.dice.pick(&Service::ALL);
        let actions = service.actions();
        let action = &actions[usize::from(self.dice.roll(u16::try_from(actions.len()).unwrap_or(1)))];
        let arguments: Vec<(&str, &str)> = action
            .inputs
            .iter()
            .map(|input| {
                let is_text = service
                    .variable(input.variable)
                    .is_some_and(|variable| matches!(variable.data_type, DataType::String));
                let text = if is_text || self.dice.one_in(4) { self.dice.pick(&TEXTS) } else { "1" };
                (input.name, text)
            })
            .collect();
        self.world.note(format!("* {own}: {} {arguments:?}", action.name));
        self.world.call(own, service, service.highest_version(), action.name, &arguments);
    }

    /// So much at once that a host of honest needs would be shut out if everybody shared one bound.
    pub(super) fn intruder_floods(&mut self, count: u16) {
        let own = self.dice.pick(&INTRUDER);
        self.world.note(format!("* {own} floods"));
        self.tally.count("floods of the intruder");
        for nth in 0..count {
            match self.dice.roll(4) {
                0 => {
                    let request = self.a_request(own);
                    self.tells(own, &request.to_bytes());
                }
                1 => {
                    let port = 30_000 + nth;
                    self.controls(own, "AddPortMapping", (&own.to_string(), port, port), "120");
                }
                2 => {
                    let target = ssdp::Target::All;
                    let text = ssdp::search(ssdp::HOST_V4, &target, Some(1));
                    self.world.say_to_ssdp(2, SocketAddr::from((own, 40_000 + nth)), text.as_bytes());
                }
                _ => {
                    self.controls(own, "GetSpecificPortMappingEntry", ("", 30_000 + nth, 0), "");
                }
            }
        }
    }

    /// Events for who has not asked for them, too many subscriptions, and those of others.
    fn subscribes_others(&mut self, own: Ipv4Addr) -> Result<(), Broken> {
        let of = (self.dice.pick(&Face::ALL), Service::WanIpConnection);
        for callback in [
            "<http://192.168.1.10:80/>",
            "<http://203.0.113.5/x>",
            "<http://192.168.1.1:5000/>",
            "<http://127.0.0.1/>",
            "<http://router.example/>",
            "<https://192.168.1.66/>",
        ] {
            if self.world.subscribe_at(own, of, 300, Callback::Works, callback).is_ok() {
                return broken(format!("{own} has events sent to {callback}"));
            }
        }
        let behaves = self.dice.pick(&[
            Callback::Works,
            Callback::Fails,
            Callback::Takes(Duration::from_secs(9)),
            Callback::Forgets,
        ]);
        let taken = (0..40).filter(|_| self.world.subscribe(own, of, 300, behaves).is_ok()).count();
        if taken > SUBSCRIPTIONS {
            return broken(format!("{own} has {taken} subscriptions"));
        }
        // Somebody else has room still, and what it has is its own.
        let host = self.dice.pick(&HOSTS);
        let theirs = self.world.subscriptions().filter(|(_, one)| one.host == host && !one.over).count();
        if theirs + 1 < SUBSCRIPTIONS {
            let Ok(sid) = self.world.subscribe(host, of, 300, Callback::Works) else {
                return broken(format!("{host} cannot subscribe any more"));
            };
            if self.world.take_over_subscription(own, sid) {
                return broken(format!("{own} has changed {host}'s subscription"));
            }
            self.tally.count("subscriptions attacked");
            let _ = self.world.unsubscribe(sid);
        }
        Ok(())
    }

    fn searches(&mut self) {
        let len = self.dice.roll(700);
        let garbage = self.octets(len);
        let search = ssdp::search(ssdp::HOST_V4, &ssdp::Target::RootDevice, Some(3));
        for from in NOBODY.iter().filter_map(|from| from.parse().ok()) {
            let interface = self.dice.pick(&[2, 2, 3, 0]);
            self.world.say_to_ssdp(interface, from, search.as_bytes());
            self.world.say_to_ssdp(interface, from, &garbage);
        }
        let mut almost = search.into_bytes();
        let at = usize::from(self.dice.roll(u16::try_from(almost.len()).unwrap_or(1)));
        almost[at] ^= 1 << self.dice.roll(8);
        self.world.say_to_ssdp(2, SocketAddr::from((INTRUDER[0], 53)), &almost);
    }

    /// Whoever is no host of the LAN hears nothing, and has nothing.
    fn speaks_as_nobody(&mut self) -> Result<(), Broken> {
        let count = self.mappings().len();
        for from in NOBODY.iter().filter_map(|from| from.parse::<SocketAddr>().ok()) {
            self.silenced.insert(from.ip());
            let IpAddr::V4(addr) = from.ip() else { continue };
            let request = self.a_request(addr);
            self.world.ask_at_5351(from, &request.to_bytes());
            let protocol = natpmp::Transport::Tcp;
            let (internal_port, external_port, lifetime) = (5000, 5000, 3600);
            let request = natpmp::Request::Map { protocol, internal_port, external_port, lifetime };
            self.world.ask_at_5351(from, &request.to_bytes());
        }
        self.tally.count("requests of nobody");
        if self.mappings().len() != count {
            return broken("somebody who is no host of the LAN has got a mapping".to_owned());
        }
        Ok(())
    }

    /// Pinholes of others, and to others.
    fn opens_others(&mut self) {
        let own = super::pinholes::INTRUDER;
        let client =
            self.dice.pick(&["2001:db8:1::10", "2001:db8:1::66", "2001:db8:1::1", "::1", "fe80::1", "*"]);
        // The hosts' addresses end in 10, 11 and 12 of decimal.
        let client = if client.ends_with("::10") { host(10).to_string() } else { client.to_owned() };
        let client = if client.ends_with("::66") { own.to_string() } else { client };
        let port = self.dice.pick(&["6000", "6001", "22", "0", "6100"]);
        let protocol = self.dice.pick(&["6", "17", "65535", "1"]);
        let number = self.dice.roll(8).to_string();
        let lease = self.dice.pick(&["1", "120", "3600", "86400"]);
        let service = Service::WanIpv6FirewallControl;
        let (action, arguments): (&str, &[(&str, &str)]) = match self.dice.roll(5) {
            0 => ("DeletePinhole", &[("UniqueID", &number)]),
            1 => ("UpdatePinhole", &[("UniqueID", &number), ("NewLeaseTime", lease)]),
            2 => ("CheckPinholeWorking", &[("UniqueID", &number)]),
            _ => (
                "AddPinhole",
                &[
                    ("RemoteHost", ""),
                    ("RemotePort", "0"),
                    ("InternalClient", &client),
                    ("InternalPort", port),
                    ("Protocol", protocol),
                    ("LeaseTime", lease),
                ],
            ),
        };
        self.world.note(format!("* {own}: {action} {arguments:?}"));
        self.world.call(own, service, 1, action, arguments);
        let mut request = self.a_request(Ipv4Addr::UNSPECIFIED);
        request.client_addr = if self.dice.one_in(3) { host(10) } else { own };
        self.world.ask_at_5351(SocketAddr::from((own, 4000)), &request.to_bytes());
        for first in 0..self.dice.pick(&[0, 0, 15]) {
            self.map_over_ipv6_for(own, 7000 + first);
        }
    }

    fn map_over_ipv6_for(&mut self, addr: Ipv6Addr, port: u16) {
        let (nonce, protocol) = (Nonce([9; 12]), Protocol::TCP);
        let external_addr = Ipv6Addr::UNSPECIFIED;
        let map = MapData { nonce, protocol, internal_port: port, external_port: port, external_addr };
        let request =
            pcp::Request { lifetime: 600, client_addr: addr, body: Body::Map(map), options: vec![] };
        self.world.ask_at_5351(SocketAddr::from((addr, 4000)), &request.to_bytes());
    }

    /// PEER for flows that are others', or nobody's.
    fn peers_for_others(&mut self, own: Ipv4Addr) {
        let internal_port = self.dice.pick(&[5000, 5001, 22, 0, 9000]);
        let data = PeerData {
            nonce: Nonce([9; 12]),
            protocol: self.dice.pick(&[Protocol::TCP, Protocol::UDP, Protocol(0)]),
            internal_port,
            external_port: self.dice.pick(&[0, 5000, 5010, 80]),
            external_addr: Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
            remote_port: self.dice.pick(&[443, 0]),
            remote_addr: self
                .dice
                .pick(&[Ipv4Addr::new(203, 0, 113, 9), HOSTS[0], Ipv4Addr::BROADCAST])
                .to_ipv6_mapped(),
        };
        let (client_addr, body) = (own.to_ipv6_mapped(), Body::Peer(data));
        let request = pcp::Request { lifetime: 600, client_addr, body, options: vec![] };
        self.world.note(format!("* {own}: {request}"));
        self.tells(own, &request.to_bytes());
    }
}
