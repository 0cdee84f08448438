//! What hosts of the LAN ask for, by every protocol; likely things and unlikely ones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use engine::gateway::{ControlRequest, Event, LanArrival, RequestId};
use engine::gena::Delivery;
use engine::time::Duration;
use wire::description::Uuid;
use wire::gena::{CallbackUrl, Subscribe};
use wire::pcp::{Body, MapData, Protocol};
use wire::services::{Face, Service};
use wire::{natpmp, pcp, soap, ssdp};

use super::{LINK_LOCAL, Run};

impl Run<'_> {
    /// A mapping action, with arguments from a small world so that they meet each other.
    pub(super) fn ask_for_mapping(&mut self) {
        let action = self.octets.one_of(&[
            "AddPortMapping",
            "AddAnyPortMapping",
            "DeletePortMapping",
            "AddPortMapping",
            "DeletePortMappingRange",
        ]);
        let host = 10 + self.octets.next() % 3;
        let shape = self.octets.next();
        let external = self.octets.one_of(&["8080", "8081", "8082", "0", "5351", "80"]);
        let internal = self.octets.one_of(&["8080", "8081", "9090", "8082", "0"]);
        let lease = self.octets.one_of(&["0", "1", "60", "3600", "604800", "4294967295"]);
        let client = match shape & 33 {
            0 => format!("192.168.1.{host}"),
            1 | 33 => "192.168.1.10".to_owned(),
            _ => "laptop".to_owned(),
        };
        let peer = ["", "", "peer.example.net", "203.0.113.9"][usize::from(shape >> 1) & 3];
        let protocol = if shape & 8 == 0 { "TCP" } else { "UDP" };
        let args: &[(&str, &str)] = match action {
            "DeletePortMapping" => {
                &[("NewRemoteHost", peer), ("NewExternalPort", external), ("NewProtocol", protocol)]
            }
            "DeletePortMappingRange" => &[
                ("NewStartPort", external),
                ("NewEndPort", "9000"),
                ("NewProtocol", protocol),
                ("NewManage", "0"),
            ],
            _ => &[
                ("NewRemoteHost", peer),
                ("NewExternalPort", external),
                ("NewProtocol", protocol),
                ("NewInternalPort", internal),
                ("NewInternalClient", &client),
                ("NewEnabled", "1"),
                ("NewPortMappingDescription", "fuzz"),
                ("NewLeaseDuration", lease),
            ],
        };
        let version = if shape & 16 == 0 { 1 } else { 2 };
        self.call(host, Service::WanIpConnection, version, action, args);
    }

    /// Any action of the table, or a query, with arguments that fit or do not.
    pub(super) fn ask_anything(&mut self) {
        let service = self.octets.one_of(&Service::ALL);
        let number = usize::from(self.octets.next());
        if number >= 200 {
            let variables = service.variables();
            let variable = variables[number % variables.len()].name;
            let body = format!(
                "<s:Envelope><s:Body><u:QueryStateVariable><varName>{variable}</varName>\
                 </u:QueryStateVariable></s:Body></s:Envelope>"
            );
            let header = "urn:schemas-upnp-org:control-1-0#QueryStateVariable";
            let from = IpAddr::from([192, 168, 1, 10]);
            return self.control(from, service, Face::V2, header, &body);
        }
        let action = &service.actions()[number % service.actions().len()];
        let values: Vec<(&str, &str)> = action
            .inputs
            .iter()
            .map(|input| {
                let pool = ["1", "8080", "TCP", "192.168.1.10", "65535", "UDP", "0", "", "203.0.113.9"];
                (input.name, self.octets.one_of(&pool))
            })
            .collect();
        let version = service.highest_version();
        self.call(
            10 + self.octets.left.first().map_or(0, |octet| octet % 3),
            service,
            version,
            action.name,
            &values,
        );
    }

    pub(super) fn call(
        &mut self,
        host: u8,
        service: Service,
        version: u8,
        action: &str,
        args: &[(&str, &str)],
    ) {
        let service_type = service.service_type(version);
        let body = soap::encode_call(&service_type, action, args);
        let face = if version < 2 { Face::V1 } else { Face::V2 };
        let from = IpAddr::V4(Ipv4Addr::new(192, 168, 1, host));
        self.control(from, service, face, &format!("{service_type}#{action}"), &body);
    }

    pub(super) fn control(&mut self, from: IpAddr, service: Service, face: Face, header: &str, body: &str) {
        let Ok(request) = soap::decode(service, face, Some(header), body.as_bytes()) else { return };
        self.next_request += 1;
        let id = RequestId(self.next_request);
        self.asked.insert(id, self.now);
        self.handle(Event::Control(ControlRequest { id, from, also: Vec::new(), face, request }));
    }

    /// Everything about events: subscribe, renew, end, and what became of one.
    pub(super) fn subscribe(&mut self) {
        self.next_request += 1;
        let request = RequestId(self.next_request);
        let from = IpAddr::from([192, 168, 1, 10 + self.octets.next() % 3]);
        let service = self.octets.one_of(&Service::ALL);
        let of = (self.octets.one_of(&Face::ALL), service);
        let timeout = Duration::from_secs(1800);
        let which = usize::from(self.octets.next());
        let sid = self.sids.get(which % self.sids.len().max(1)).copied().unwrap_or(Uuid([1; 16]));
        let subscribe = match self.octets.next() % 6 {
            0 | 1 => {
                let urls = [format!("http://{from}:5000/e"), "http://203.0.113.9/".to_owned()];
                let callbacks = urls.iter().filter_map(|url| CallbackUrl::parse(url)).collect();
                Subscribe::New { callbacks, timeout }
            }
            2 => Subscribe::Renew { sid, timeout },
            3 => {
                self.subscribing = Some(request);
                return self.handle(Event::Unsubscribe { request, from, also: Vec::new(), service, sid });
            }
            _ => {
                let delivery = self.octets.one_of(&[Delivery::Done, Delivery::Failed, Delivery::Unknown]);
                self.notified.remove(&sid);
                return self.handle(Event::Delivered { sid, delivery });
            }
        };
        self.subscribing = Some(request);
        self.handle(Event::Subscribe { request, from, also: Vec::new(), interface: 2, of, subscribe });
    }

    pub(super) fn search(&mut self) {
        let shape = self.octets.next();
        let mut from = SocketAddr::from(([192, 168, 1, 10 + shape % 4], 40_000));
        let mut local = None;
        if shape & 0x20 != 0 {
            from = SocketAddr::from(([0xfe80, 0, 0, 0, 0, 0, 0, u16::from(shape % 4)], 40_000));
            local = (shape & 0x10 != 0).then_some(IpAddr::V6(LINK_LOCAL));
        }
        if shape & 0x40 != 0 {
            return self.ask_at_5351(from);
        }
        if shape & 0x80 == 0 {
            let length = usize::from(self.octets.next());
            let bytes = self.octets.take(length);
            return self.handle(Event::Ssdp { interface: u32::from(shape % 4), local, from, bytes });
        }
        let target = self.octets.one_of(&[
            "ssdp:all",
            "upnp:rootdevice",
            "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
            "urn:schemas-upnp-org:service:WANIPConnection:1",
        ]);
        let text = ssdp::search(ssdp::HOST_V4, &ssdp::Target::parse(target), Some(shape % 7));
        self.handle(Event::Ssdp { interface: 2, local, from, bytes: text.as_bytes() });
    }

    /// A LAN host asks in PCP or NAT-PMP, or says something that looks like it.
    pub(super) fn ask_at_5351(&mut self, from: SocketAddr) {
        let (local, client_addr) = match from.ip() {
            IpAddr::V4(host) => (IpAddr::from([192, 168, 1, 1]), host.to_ipv6_mapped()),
            IpAddr::V6(host) => (IpAddr::V6(LINK_LOCAL), host),
        };
        let arrival = LanArrival { interface: 2, local, from };
        let (shape, port) = (self.octets.next(), 5000 + u16::from(self.octets.next() % 8));
        let lifetime = [0, 1, 600, u32::MAX][usize::from(shape % 4)];
        let bytes = match shape / 4 % 4 {
            0 => {
                let length = usize::from(self.octets.next());
                self.octets.take(length).to_vec()
            }
            1 => {
                let protocol =
                    if shape & 0x80 == 0 { natpmp::Transport::Tcp } else { natpmp::Transport::Udp };
                natpmp::Request::Map { protocol, internal_port: port, external_port: port, lifetime }
                    .to_bytes()
            }
            3 => {
                let protocol = if shape & 0x80 == 0 { Protocol::TCP } else { Protocol::UDP };
                let (remote_addr, suggests) = match from.ip() {
                    IpAddr::V4(_) => (
                        Ipv4Addr::new(203, 0, 113, 9).to_ipv6_mapped(),
                        Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
                    ),
                    IpAddr::V6(_) => (Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 1), Ipv6Addr::UNSPECIFIED),
                };
                let body = Body::Peer(pcp::PeerData {
                    nonce: pcp::Nonce([shape & 0x10; 12]),
                    protocol,
                    internal_port: port,
                    external_port: if shape & 0x20 == 0 { 0 } else { port },
                    external_addr: suggests,
                    remote_port: 443,
                    remote_addr,
                });
                pcp::Request { lifetime, client_addr, body, options: vec![] }.to_bytes()
            }
            _ => {
                let protocol = if shape & 0x80 == 0 { Protocol::TCP } else { Protocol::UDP };
                let external_addr = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
                let nonce = pcp::Nonce([shape & 0x10; 12]);
                let map =
                    MapData { nonce, protocol, internal_port: port, external_port: port, external_addr };
                let mut options =
                    if shape & 0x20 == 0 { vec![] } else { vec![pcp::PcpOption::PreferFailure] };
                if shape & 0x40 != 0 {
                    let of = Ipv4Addr::new(192, 168, 1, 10 + shape % 4);
                    options.push(pcp::PcpOption::ThirdParty(of.to_ipv6_mapped()));
                }
                pcp::Request { lifetime, client_addr, body: Body::Map(map), options }.to_bytes()
            }
        };
        self.handle(Event::Lan5351 { arrival, bytes: &bytes });
    }
}
