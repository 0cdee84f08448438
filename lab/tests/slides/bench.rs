//! A provider, a home with portferry on its router, another subscriber, and a witness on the wire between.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;

use lab::capture::{Capture, MapMessage, Packet};
use lab::netns::{
    ACCESS_INTERFACE, AFTR, B4_DEVICE, EXTERNAL, Host, Network, PROVIDER, Process, ROUTER_ACCESS, ROUTER_WAN,
    WAN_INTERFACE,
};
use lab::subject::{self, Subject, configuration_for};
use lab::wait::eventually;
use serde_json::Value;

use crate::common::{
    CASCADED, Caller, ControlPoint, NAT, NO_NAT, PROBE, SECOND, Told, UDP, ds_lite, interworking_subject,
    lan_address, listener, name, ready, tagged,
};

/// How the home gets its IPv4.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Deployment {
    /// From an AFTR; the router has no NAT, and asks in plain IPv6, for its hosts by THIRD_PARTY.
    DsLite,
    /// By a NAT of the provider's behind that of the router.
    Nat44,
}

/// What a provider's server has otherwise than usual.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Seconds that a freed port is held.
    pub(crate) hold: u32,
    /// Seconds that are granted, at least and at most.
    pub(crate) lifetimes: (u32, u32),
    /// Ports of one subscriber.
    pub(crate) quota: u32,
}

impl Terms {
    /// As servers have it that nobody has told otherwise.
    pub(crate) const USUAL: Self = Self { hold: 120, lifetimes: (120, 86_400), quota: 1000 };

    /// Switches of `lab-aftr`.
    fn switches(self) -> Vec<String> {
        let (shortest, longest) = self.lifetimes;
        let words =
            format!("--list --hold {} --lifetimes {shortest}-{longest} --quota {}", self.hold, self.quota);
        words.split(' ').map(str::to_owned).collect()
    }

    /// A configuration of `portferry pcp-server`.
    fn configuration(self, network: &Network) -> String {
        let directory = network.directory().join("provider");
        let (shortest, longest) = self.lifetimes;
        format!(
            "[inside]\ninterfaces = [\"{ACCESS_INTERFACE}\"]\n[outside]\ninterfaces = [\"inet0\"]\naddresses = [\"{EXTERNAL}\"]\n\
             [nat]\nplane = \"nftables\"\nmasquerade = false\n[mappings]\nhold = {}\nmin_lifetime = {shortest}\n\
             max_lifetime = {longest}\nper_subscriber = {}\nlist = true\n[state]\ndirectory = \"{directory}/state\"\n\
             [control]\nsocket = \"{directory}/control.sock\"\n",
            self.hold,
            self.quota,
            directory = directory.display(),
        )
    }
}

/// See the module's description. What is first is dropped first: processes before the network that they are in.
pub(crate) struct Bench {
    daemon: Process,
    _provider: Vec<Process>,
    wire: Capture,
    /// Exchanges that [`Self::asked`] has told.
    told: usize,
    marks: u32,
    program: PathBuf,
    configuration: String,
    location: Option<String>,
    pub(crate) deployment: Deployment,
    pub(crate) network: Network,
}

/// A MAP request, and what was answered to it.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) packet: Packet,
    pub(crate) map: MapMessage,
    pub(crate) answer: Option<(Packet, MapMessage)>,
}

/// A mapping as the provider's server lists it (GET and NEXT).
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Held {
    pub(crate) protocol: u8,
    pub(crate) internal: SocketAddrV4,
    pub(crate) external: SocketAddrV4,
    pub(crate) description: Option<String>,
    pub(crate) nonce: String,
}

/// Option codes of RFC 6887 §13 and RFC 7220.
pub(crate) const THIRD_PARTY: u8 = 1;
pub(crate) const PREFER_FAILURE: u8 = 2;
pub(crate) const FILTER: u8 = 3;
pub(crate) const DESCRIPTION: u8 = 128;

/// Result codes of RFC 6887 §7.4.
pub(crate) const SUCCESS: u8 = 0;
pub(crate) const USER_EX_QUOTA: u8 = 10;
pub(crate) const CANNOT_PROVIDE_EXTERNAL: u8 = 11;

impl Bench {
    /// `None` (after saying so) where there is no laboratory. `uplink` are more keys of `[uplink]`.
    pub(crate) fn new(deployment: Deployment, terms: Terms, uplink: &str) -> Option<Self> {
        let Subject::Portferry(program) = interworking_subject()? else { return None };
        let network = match deployment {
            Deployment::DsLite => ds_lite::network()?,
            Deployment::Nat44 => Network::new(CASCADED),
        };
        let provider = match deployment {
            Deployment::DsLite => {
                let aftr = ds_lite::aftr(&network, "aftr", &terms.switches(), &[]);
                let [b4, other_b4] = ds_lite::b4s(&network);
                vec![aftr, b4, other_b4]
            }
            Deployment::Nat44 => {
                let file = network.directory().join("pcp-server.toml");
                fs::create_dir_all(network.directory().join("provider/state"))
                    .expect("the directory is ours");
                fs::write(&file, terms.configuration(&network)).expect("the directory is ours");
                let arguments = ["pcp-server", "--config", &file.display().to_string()];
                let mut server = network.spawn(Host::Provider, "pcp-server", &program, arguments);
                server.await_log(&format!("serving PCP at {PROVIDER}:5351"), 5 * SECOND);
                vec![server]
            }
        };
        let wire = Capture::start(&network, Host::Router, WAN_INTERFACE, "udp port 5351");
        let nat = match deployment {
            Deployment::DsLite => NO_NAT,
            Deployment::Nat44 => NAT,
        };
        let server = deployment.server().to_string();
        let configuration = configuration_for(network.directory(), (WAN_INTERFACE, nat), &server, uplink);
        let mut daemon = subject::run(&network, Host::Router, "portferry", &program, &configuration);
        let location = ready(&network, &mut daemon, Host::Lan1).location;
        let (told, marks) = (0, 0);
        let provider = provider.into_iter().collect();
        Some(Self {
            daemon,
            _provider: provider,
            wire,
            told,
            marks,
            program,
            configuration,
            location,
            deployment,
            network,
        })
    }

    /// A control point on a LAN host that speaks a version of WANIPConnection.
    pub(crate) fn caller(&self, host: Host, version: u8) -> Caller {
        let location = self.location.clone();
        Caller::new(&ControlPoint { network: &self.network, host, location }, version)
    }

    /// What a host of the home has for an address and port, as the server knows it.
    pub(crate) fn internal(&self, host: Host, port: u16) -> SocketAddrV4 {
        match self.deployment {
            Deployment::DsLite => SocketAddrV4::new(lan_address(host), port),
            Deployment::Nat44 => SocketAddrV4::new(ROUTER_WAN, port),
        }
    }

    /// Everything that the router has asked since the last look, its own mapping left out. A request that was
    /// repeated before it was answered counts once.
    #[track_caller]
    pub(crate) fn asked(&mut self) -> Vec<Exchange> {
        self.mark();
        let mut all: Vec<Exchange> = Vec::new();
        for (packet, map) in self.wire.maps() {
            let ours = |own: &MapMessage| (own.nonce, own.protocol, own.internal_port);
            if map.response {
                // Of several open requests for one mapping, the oldest was answered.
                let open = all.iter_mut().find(|one| one.answer.is_none() && ours(&one.map) == ours(&map));
                if let Some(open) = open {
                    open.answer = Some((packet, map));
                }
            } else {
                let again = |one: &Exchange| one.answer.is_none() && one.packet.payload == packet.payload;
                if !all.iter().any(again) {
                    all.push(Exchange { packet, map, answer: None });
                }
            }
        }
        all.retain(|one| !is_own(one.map.protocol, one.map.internal_port));
        let new = all.split_off(self.told);
        self.told += new.len();
        new
    }

    /// There was one request.
    #[track_caller]
    pub(crate) fn asked_once(&mut self) -> Exchange {
        let asked = self.asked();
        let [one] = &asked[..] else { panic!("one request was expected: {asked:#?}") };
        one.clone()
    }

    /// There was none.
    #[track_caller]
    pub(crate) fn asked_nothing(&mut self) {
        let asked = self.asked();
        assert!(asked.is_empty(), "nothing was to be asked: {asked:#?}");
    }

    /// All datagrams between router and server so far.
    #[track_caller]
    pub(crate) fn datagrams(&mut self) -> Vec<Packet> {
        self.mark();
        self.wire.packets().into_iter().filter(|packet| !packet.payload.starts_with(b"mark")).collect()
    }

    /// What went over the wire before this is in the capture after it.
    #[track_caller]
    fn mark(&mut self) {
        self.marks += 1;
        let mark = format!("mark{:04}", self.marks);
        let hex: String = mark.bytes().map(|octet| format!("{octet:02x}")).collect();
        let server = SocketAddr::new(self.deployment.server(), 5351).to_string();
        // Whatever is answered to that does not matter.
        let _ = self.network.command(Host::Router, PROBE).args(["udp-exchange", &server, &hex, "1"]).output();
        eventually("the mark in the capture", 10 * SECOND, || {
            self.wire.packets().iter().any(|packet| packet.payload == mark.as_bytes()).then_some(())
        });
    }

    /// What the server holds for this home, as it tells the router; the router's own left out.
    #[track_caller]
    pub(crate) fn held(&self) -> Vec<Held> {
        let answer = self.pcp(Host::Router, "get");
        let mut all = Vec::new();
        for mapping in answer["mappings"].as_array().expect("docs/pcp-json.md has it") {
            let endpoint = |key: &str| {
                let (addr, port) = (&mapping[key]["address"], &mapping[key]["port"]);
                let addr = addr.as_str()?.parse().ok()?;
                Some(SocketAddrV4::new(addr, u16::try_from(port.as_u64()?).ok()?))
            };
            let options = mapping["options"].as_array().expect("docs/pcp-json.md has it");
            let description = options.iter().find_map(|option| option["text"].as_str()).map(str::trim_end);
            all.push(Held {
                protocol: u8::try_from(mapping["transport"]["number"].as_u64().expect("a number"))
                    .expect("8 bits"),
                internal: endpoint("internal").unwrap_or_else(|| panic!("{mapping:#}")),
                external: endpoint("external").unwrap_or_else(|| panic!("{mapping:#}")),
                description: description.map(str::to_owned),
                nonce: mapping["nonce"].as_str().expect("24 digits").to_owned(),
            });
        }
        all.retain(|held| !is_own(held.protocol, held.internal.port()));
        all
    }

    /// `portferry pcp …` on a router or another subscriber, asking the provider's server; its JSON.
    #[track_caller]
    pub(crate) fn pcp(&self, host: Host, line: &str) -> Value {
        crate::common::pcp(&self.network, host, &self.program, self.deployment.server(), line)
    }

    /// The other subscriber asks for a port of the shared external address and takes no other; the result, and for how
    /// many seconds.
    #[track_caller]
    pub(crate) fn other_asks(&self, protocol: u8, port: u16) -> (u8, u64) {
        let third_party = match self.deployment {
            Deployment::DsLite => format!(" --third-party {}", lan_address(Host::OtherLan)),
            Deployment::Nat44 => String::new(),
        };
        let line = format!(
            "map {} {port} {port} --prefer-failure --nonce 0f0e0d0c0b0a090807060504{third_party}",
            name(protocol)
        );
        let said = self.pcp(Host::Other, &line);
        let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{said:#}"));
        let result = u8::try_from(number(&said["result"]["number"])).expect("8 bits");
        if result == SUCCESS {
            assert_eq!(said["mapping"]["external"]["address"], EXTERNAL.to_string(), "one address for all");
        }
        (result, number(&said["lifetime"]))
    }

    /// The other subscriber has the port from now on.
    #[track_caller]
    pub(crate) fn other_takes(&self, protocol: u8, port: u16) {
        assert_eq!(self.other_asks(protocol, port).0, SUCCESS, "{} {port}", name(protocol));
    }

    /// The host that the other subscriber's mappings lead to.
    pub(crate) fn other_host(&self) -> Host {
        match self.deployment {
            Deployment::DsLite => Host::OtherLan,
            Deployment::Nat44 => Host::Other,
        }
    }

    /// Programs that answer on a port of these hosts.
    pub(crate) fn listeners(&self, hosts: &[Host], protocol: u8, port: u16) -> Vec<Process> {
        hosts.iter().map(|host| listener(&self.network, *host, protocol, port)).collect()
    }

    /// A program that answers with `tag` instead of the host's name.
    #[track_caller]
    pub(crate) fn tagged(&self, host: Host, protocol: u8, port: u16, tag: &str) -> Process {
        tagged(&self.network, host, protocol, (Ipv4Addr::UNSPECIFIED, port), tag)
    }

    /// A capture of PCP on the router's end of the softwire.
    pub(crate) fn softwire(&self) -> Capture {
        Capture::start(&self.network, Host::Router, B4_DEVICE, "udp port 5351")
    }

    /// The daemon dies without a word.
    #[track_caller]
    pub(crate) fn crash(&mut self) {
        self.daemon.signal("KILL");
        self.daemon.wait(5 * SECOND);
    }

    /// It comes back, with what it had stored or without.
    #[track_caller]
    pub(crate) fn reboot(&mut self, stored: bool) {
        if !stored {
            fs::remove_dir_all(self.network.directory().join("state")).expect("it was there");
        }
        self.daemon =
            subject::run(&self.network, Host::Router, "portferry", &self.program, &self.configuration);
        self.location = ready(&self.network, &mut self.daemon, Host::Lan1).location;
    }

    /// What the daemon says of itself.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        let answer = eventually("an answer at the control socket", 5 * SECOND, || {
            subject::ask(&self.network, "status")
        });
        serde_json::from_str(&answer).expect("JSON")
    }
}

impl Deployment {
    /// The provider's PCP server.
    pub(crate) fn server(self) -> IpAddr {
        match self {
            Self::DsLite => AFTR.into(),
            Self::Nat44 => PROVIDER.into(),
        }
    }

    /// The router as the server knows it.
    pub(crate) fn router(self) -> IpAddr {
        match self {
            Self::DsLite => ROUTER_ACCESS.into(),
            Self::Nat44 => ROUTER_WAN.into(),
        }
    }
}

impl Exchange {
    /// The result of the answer.
    #[track_caller]
    pub(crate) fn result(&self) -> u8 {
        self.answered().result
    }

    /// The answer.
    #[track_caller]
    pub(crate) fn answered(&self) -> &MapMessage {
        &self.answer.as_ref().unwrap_or_else(|| panic!("it was answered: {self:#?}")).1
    }

    /// A strict request for an external port and for a lifetime, which got that result.
    #[track_caller]
    pub(crate) fn is_strict(&self, protocol: u8, external_port: u16, lifetime: u32, result: u8) {
        let map = &self.map;
        assert_eq!((map.protocol, map.external_port), (protocol, external_port), "{self:#?}");
        assert_eq!(map.lifetime.as_secs(), u64::from(lifetime), "{self:#?}");
        assert_eq!(map.option(PREFER_FAILURE), Some(&[][..]), "{self:#?}");
        assert_eq!(self.result(), result, "{self:#?}");
    }
}

/// Whether a mapping is the router's own, by which it learns its external address: UDP 9, or a high port where the server
/// does not give that. No test has such a port.
fn is_own(protocol: u8, internal_port: u16) -> bool {
    protocol == UDP && matches!(internal_port, 9 | 49_152..)
}

/// Lease 0 of WANIPConnection:1, for ever (T-1).
pub(crate) const FOR_EVER: u32 = u32::MAX;

/// AddPortMapping by its own host with the same port inside as outside.
#[track_caller]
pub(crate) fn add(caller: &mut Caller, host: Host, protocol: u8, port: u16, description: &str) -> Told {
    caller.add(protocol, port, SocketAddrV4::new(lan_address(host), port), 0, description)
}
