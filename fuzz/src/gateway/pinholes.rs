//! The IPv6 side of the world: hosts that ask for pinholes, this router's firewall, and the provider's.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use engine::gateway::{Effect, Event, LanArrival, RequestId, UplinkEffect, UplinkEvent};
use engine::nat::NatFailure;
use engine::pinholes::{FirewallChange, Flows};
use engine::policy::InterfaceAddress;
use wire::pcp::{self, Body, Filter, MapData, PcpOption, Protocol, ResultCode};
use wire::services::{Face, Service};

use super::{REMEMBERED, Run};

/// The last octets of LAN hosts are 10 to 12.
fn host(last: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, u16::from(10 + last % 3))
}

const ROUTER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);

pub(super) fn link() -> InterfaceAddress {
    InterfaceAddress { addr: ROUTER.into(), prefix_len: 64 }
}

pub(super) fn server() -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), pcp::SERVER_PORT)
}

#[derive(Default)]
pub(super) struct Ipv6 {
    open: BTreeSet<Flows>,
    /// What the kernel would not close.
    stuck: BTreeSet<Flows>,
    /// The socket towards the provider's firewall is asked for, or there.
    opening: bool,
    socket: bool,
    requests: VecDeque<pcp::Request>,
    reading: Vec<RequestId>,
}

impl Run<'_> {
    pub(super) fn step_v6(&mut self, number: u8) {
        match number % 8 {
            0..=2 => self.ask_for_pinhole(),
            3 => self.map_v6(),
            4 => {
                let shape = self.octets.next();
                let which = usize::from(shape) % self.v6.requests.len().max(1);
                if let Some(request) = self.v6.requests.get(which).cloned() {
                    self.firewall_answers(&request, self.octets.left.first().copied().unwrap_or(0));
                }
            }
            5 => self.firewall_opens(number),
            6 => {
                let response = pcp::Response {
                    result: ResultCode(self.octets.next() % 3),
                    lifetime: 0,
                    epoch: u32::from(self.octets.next()),
                    body: Body::Announce,
                    options: Vec::new(),
                };
                self.handle(Event::Scouted { from: server(), bytes: &response.to_bytes() });
            }
            _ => {
                if let Some(request) = self.v6.reading.pop() {
                    let value = self.octets.one_of(&[None, Some(0), Some(7)]);
                    self.counting.remove(&request);
                    self.handle(Event::PinholeRead { request, value });
                }
            }
        }
    }

    fn ask_for_pinhole(&mut self) {
        let shape = self.octets.next();
        let own = host(shape);
        let ids: Vec<u16> = self.gateway.pinholes(self.now).iter().map(|pinhole| pinhole.id).collect();
        let id = ids.get(usize::from(shape) % ids.len().max(1)).copied().unwrap_or(1).to_string();
        let client = if shape & 0x40 == 0 { own } else { host(shape / 2) }.to_string();
        let remote = self.octets.one_of(&["", "", "2001:db8:9::1", "2001:db8:9::2", "x"]);
        let remote_port = self.octets.one_of(&["0", "0", "53"]);
        let port = self.octets.one_of(&["8080", "8081", "80", "0"]);
        let lease = self.octets.one_of(&["60", "1", "3600", "86400", "0"]);
        let (action, args): (&str, &[(&str, &str)]) = match shape >> 3 & 7 {
            0 => ("UpdatePinhole", &[("UniqueID", &id), ("NewLeaseTime", lease)]),
            1 | 2 => ("DeletePinhole", &[("UniqueID", &id)]),
            3 => ("CheckPinholeWorking", &[("UniqueID", &id)]),
            _ => (
                "AddPinhole",
                &[
                    ("RemoteHost", remote),
                    ("RemotePort", remote_port),
                    ("InternalClient", &client),
                    ("InternalPort", port),
                    ("Protocol", if shape & 0x80 == 0 { "6" } else { "17" }),
                    ("LeaseTime", lease),
                ],
            ),
        };
        let service = Service::WanIpv6FirewallControl;
        let service_type = service.service_type(1);
        let body = wire::soap::encode_call(&service_type, action, args);
        self.control(IpAddr::V6(own), service, Face::V2, &format!("{service_type}#{action}"), &body);
    }

    fn map_v6(&mut self) {
        let (shape, port) = (self.octets.next(), 8080 + u16::from(self.octets.next() % 4));
        let own = host(shape);
        let arrival = LanArrival { interface: 2, local: ROUTER.into(), from: SocketAddr::from((own, 4000)) };
        let protocol = if shape & 0x80 == 0 { Protocol::TCP } else { Protocol::UDP };
        let nonce = pcp::Nonce([shape & 0x10; 12]);
        let external_addr = Ipv6Addr::UNSPECIFIED;
        let map = MapData { nonce, protocol, internal_port: port, external_port: port, external_addr };
        let filter = |prefix_len| {
            let last = if prefix_len == 0 { 0 } else { 1 };
            let remote_addr = Ipv6Addr::new(last * 0x2001, last * 0xdb8, last * 9, 0, 0, 0, 0, last);
            PcpOption::Filter(Filter { prefix_len, remote_port: 0, remote_addr })
        };
        let options = match shape >> 5 & 3 {
            0 => vec![filter(128)],
            1 => vec![filter(0)],
            2 => vec![PcpOption::PreferFailure],
            _ => Vec::new(),
        };
        let lifetime = [0, 1, 600, u32::MAX][usize::from(shape >> 2 & 3)];
        let request = pcp::Request { lifetime, client_addr: own, body: Body::Map(map), options };
        self.handle(Event::Lan5351 { arrival, bytes: &request.to_bytes() });
    }

    pub(super) fn firewall_opens(&mut self, number: u8) {
        if !std::mem::take(&mut self.v6.opening) {
            return;
        }
        let server = server();
        if number == 253 {
            let error = "unreachable".to_owned();
            return self.handle(Event::FirewallUplink(UplinkEvent::Failed { server, error }));
        }
        self.v6.socket = true;
        let source = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2));
        self.handle(Event::FirewallUplink(UplinkEvent::Opened { server, source }));
    }

    pub(super) fn firewall_answers(&mut self, request: &pcp::Request, shape: u8) {
        let Body::Map(map) = request.body else { return };
        let host = request.options.iter().find_map(|option| match option {
            PcpOption::ThirdParty(host) => Some(*host),
            _ => None,
        });
        let response = pcp::Response {
            result: if shape & 3 == 3 { ResultCode(shape >> 2) } else { ResultCode::SUCCESS },
            lifetime: if shape & 0x40 == 0 { request.lifetime.min(3600) } else { 0 },
            epoch: 1000 + u32::try_from(self.now.as_secs()).unwrap_or(0),
            body: Body::Map(MapData { external_addr: host.unwrap_or(ROUTER), ..map }),
            options: request.options.clone(),
        };
        let bytes = response.to_bytes();
        self.handle(Event::FirewallUplink(UplinkEvent::Datagram { from: server(), bytes: &bytes }));
    }

    /// Performs an effect that is about IPv6; the request, if it is one to the provider's firewall.
    pub(super) fn perform_v6(&mut self, effect: Effect) -> Option<pcp::Request> {
        match effect {
            Effect::FirewallUplink(UplinkEffect::Open(to)) => {
                assert_eq!(to, server());
                (self.v6.opening, self.v6.socket) = (true, false);
            }
            Effect::FirewallUplink(UplinkEffect::Close) => (self.v6.opening, self.v6.socket) = (false, false),
            Effect::FirewallUplink(UplinkEffect::Send { to, bytes }) => {
                assert!(to == server() && bytes.len() <= pcp::MAX_LEN);
                assert!(self.v6.socket || self.v6.opening, "a datagram without a socket");
                let request = pcp::Request::parse(&bytes).expect("what is sent is a request");
                self.v6.requests.push_front(request.clone());
                self.v6.requests.truncate(REMEMBERED);
                return self.v6.socket.then_some(request);
            }
            Effect::Firewall { ticket, change } => {
                let refuses = self.octets.left.first().is_some_and(|octet| octet % 16 == 15);
                let outcome = match change {
                    _ if !self.helpful && refuses => {
                        if let FirewallChange::Close(flows) = change {
                            self.v6.stuck.insert(flows);
                        }
                        Err(NatFailure::Kernel("no".to_owned()))
                    }
                    FirewallChange::Open(flows) => {
                        let stuck = self.v6.stuck.remove(&flows);
                        assert!(self.v6.open.insert(flows) || stuck, "{flows} is open already");
                        Ok(())
                    }
                    FirewallChange::Close(flows) => {
                        self.v6.open.remove(&flows);
                        self.v6.stuck.remove(&flows);
                        Ok(())
                    }
                };
                self.outcomes.push_back((ticket, outcome));
            }
            Effect::ReadPinhole { request, .. } => self.v6.reading.push(request),
            other => unreachable!("{other:?} is not about IPv6"),
        }
        None
    }

    /// What holds after every step.
    pub(super) fn check_v6(&self) {
        let pinholes = self.gateway.pinholes(self.now);
        assert!(pinholes.len() <= self.config.policy.mappings);
        let flows: BTreeSet<Flows> = pinholes.iter().map(|pinhole| pinhole.flows).collect();
        assert_eq!(flows.len(), pinholes.len(), "each is there once");
        assert!(pinholes.iter().all(|pinhole| !pinhole.is_open || self.v6.open.contains(&pinhole.flows)));
    }

    /// Nothing is on its way any more.
    pub(super) fn end_v6(&self) {
        let table: BTreeSet<Flows> =
            self.gateway.pinholes(self.now).into_iter().map(|pinhole| pinhole.flows).collect();
        // What the kernel would not close at the end goes with its table.
        let stuck = |flows: &&Flows| !self.stopped || !self.v6.stuck.contains(flows);
        let open: BTreeSet<Flows> = self.v6.open.iter().filter(stuck).copied().collect();
        assert_eq!(open, table, "the firewall lets in something else than the table");
    }
}
