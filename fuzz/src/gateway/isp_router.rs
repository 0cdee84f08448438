//! A provider whose router speaks UPnP and nothing else: the gateway finds it, and asks it by HTTP.

use std::net::{IpAddr, SocketAddr};

use engine::gateway::Event;
use engine::uplink::{HttpOutcome, HttpRequest};
use wire::error::UpnpError;
use wire::services::{Face, Service};
use wire::soap::{self, Request};
use wire::ssdp;

use super::{Run, gateway_with};

/// What there is beside success, and beside what makes no sense.
const FAULTS: [u16; 8] = [402, 501, 606, 714, 718, 724, 725, 728];

/// The router: which ports it has given to whom, by "TCP" or "UDP".
#[derive(Default)]
pub(super) struct Router {
    entries: std::collections::BTreeMap<(String, u32), (String, u32)>,
}

/// Octets as a sequence of events into a gateway behind such a router.
pub fn isp_router_events(data: &[u8]) {
    gateway_with(data, Some(Router::default()));
}

impl Run<'_> {
    /// Searches reach the router, which says where its description is.
    pub(super) fn router_is_searched(&mut self) {
        let target = ssdp::Target::parse("urn:schemas-upnp-org:device:InternetGatewayDevice:1");
        let sender = ssdp::Sender {
            location: "http://100.64.0.1:5000/d/igd.xml",
            server: "a/1 UPnP/1.1 b/1",
            max_age: 1800,
            boot_id: 7,
            config_id: 9,
        };
        let answer = ssdp::search_response(&sender, &target, "uuid:1::upnp:rootdevice", None);
        let from = SocketAddr::new(self.server.ip(), ssdp::PORT);
        self.handle(Event::SearchAnswer { from, bytes: answer.as_bytes() });
    }

    /// The oldest exchange, or a later one, is answered as `shape` says; 0 is right.
    pub(super) fn router_answers(&mut self, shape: u8) {
        if self.exchanges.is_empty() {
            return;
        }
        let which = usize::from(shape >> 6) % self.exchanges.len();
        let request = self.exchanges.remove(which);
        let body = match &request.action {
            None => self.describe(shape),
            Some(_) => self.router_acts(&request, shape),
        };
        let outcome = match (shape & 15, body) {
            (13, _) => HttpOutcome::Failed,
            (14, _) => {
                let length = usize::from(self.octets.next());
                HttpOutcome::Answer { status: 200, body: self.octets.take(length).to_vec() }
            }
            (15, Ok(mut body)) => {
                // Some octets of a good answer are others.
                for _ in 0..=self.octets.next() % 4 {
                    let at = (usize::from(self.octets.next()) << 2) % body.len().max(1);
                    if let Some(octet) = body.get_mut(at) {
                        *octet = self.octets.next();
                    }
                }
                HttpOutcome::Answer { status: 200, body }
            }
            (_, Ok(body)) => HttpOutcome::Answer { status: 200, body },
            (_, Err(error)) => HttpOutcome::Answer { status: 500, body: soap::fault(error).into_bytes() },
        };
        self.handle(Event::Http { id: request.id, outcome });
    }

    fn describe(&mut self, shape: u8) -> Result<Vec<u8>, UpnpError> {
        let version = 1 + (shape >> 4 & 1);
        let control = match shape & 15 {
            1 => "http://100.64.0.9/control",
            2 => "../c?d=1#e",
            _ => "/control",
        };
        let text = format!(
            "<root><device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><serviceList><service>\
             <serviceType>urn:schemas-upnp-org:service:WANIPConnection:{version}</serviceType>\
             <controlURL>{control}</controlURL></service></serviceList></device></root>"
        );
        Ok(text.into_bytes())
    }

    fn router_acts(&mut self, request: &HttpRequest, shape: u8) -> Result<Vec<u8>, UpnpError> {
        let action = request.action.as_deref().unwrap_or_default();
        let service = Service::WanIpConnection;
        let decoded = soap::decode(service, Face::V2, Some(action), request.body.as_bytes());
        let Ok(Request::Call(call)) = decoded else {
            panic!("what is asked can be read: {action} {decoded:?}")
        };
        let fault = match shape & 15 {
            1 => Some(FAULTS[usize::from(self.octets.next()) % FAULTS.len()]),
            _ => None,
        };
        if let Some(code) = fault {
            return Err(UpnpError { code, description: "no" });
        }
        let name = call.action.name;
        let key = (call.text("NewProtocol").to_owned(), call.number("NewExternalPort"));
        let entry = (call.text("NewInternalClient").to_owned(), call.number("NewInternalPort"));
        let found = self.router.as_ref().and_then(|router| router.entries.get(&key).cloned());
        let Some(router) = &mut self.router else { return Err(UpnpError::ACTION_FAILED) };
        let mut reserved = key.1;
        match name {
            "AddPortMapping" | "AddAnyPortMapping"
                if found.as_ref().is_some_and(|found| found.0 != entry.0) =>
            {
                if name == "AddPortMapping" {
                    return Err(UpnpError::CONFLICT);
                }
                reserved = 40_000;
                router.entries.insert((key.0, reserved), entry.clone());
            }
            // It says so, and does not.
            "AddPortMapping" | "AddAnyPortMapping" if shape & 15 == 2 => {}
            "AddPortMapping" | "AddAnyPortMapping" => drop(router.entries.insert(key, entry.clone())),
            "DeletePortMapping" => {
                router.entries.remove(&key).ok_or(UpnpError::NO_SUCH_ENTRY)?;
            }
            "GetSpecificPortMappingEntry" if found.is_none() => return Err(UpnpError::NO_SUCH_ENTRY),
            _ => {}
        }
        let (client, port) = match shape & 15 {
            3 => ("192.168.9.9".to_owned(), 80),
            4 => (String::new(), 0),
            _ => found.unwrap_or(entry),
        };
        let external = match shape & 15 {
            5 => "10.0.0.1",
            6 => "",
            7 => "127.0.0.1",
            8 => "x",
            _ => "198.51.100.7",
        };
        let uptime = if shape & 15 == 9 { 1 } else { self.now.as_secs() + 1000 };
        let lease = if shape & 15 == 10 { 1 } else { call.number("NewLeaseDuration") };
        if shape & 15 == 11 {
            reserved = u32::from(self.octets.next()) << 8;
        }
        let service_type = service.service_type(1);
        Ok(format!(
            "<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body><u:{name}Response xmlns:u=\"{service_type}\">\
             <NewExternalIPAddress>{external}</NewExternalIPAddress><NewUptime>{uptime}</NewUptime>\
             <NewConnectionStatus>Connected</NewConnectionStatus><NewInternalClient>{client}</NewInternalClient>\
             <NewInternalPort>{port}</NewInternalPort><NewEnabled>1</NewEnabled><NewLeaseDuration>{lease}</NewLeaseDuration>\
             <NewReservedPort>{reserved}</NewReservedPort></u:{name}Response></s:Body></s:Envelope>"
        )
        .into_bytes())
    }

    /// Whom exchanges of HTTP may go to: the router, and nobody else whatever it names.
    pub(super) fn router_is_asked(&mut self, request: HttpRequest) {
        assert_eq!(IpAddr::V4(*request.to.ip()), self.server.ip());
        assert!(request.path.starts_with('/') && request.path.bytes().all(|octet| octet.is_ascii_graphic()));
        self.exchanges.push(request);
    }
}
