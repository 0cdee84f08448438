//! A control point that finds the gateway and calls its actions.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use wire::soap::{self, AnswerError};
use wire::{description, ssdp};

use crate::http::{Answer, Client, head};
use crate::netns::ROUTER_LAN;

/// What control points search for that know the newer face.
pub(crate) const NEWER: &str = "urn:schemas-upnp-org:device:InternetGatewayDevice:2";

/// A service of the gateway's.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// `urn:…:service:…:n`.
    pub(crate) name: String,
    /// The path for its control.
    pub(crate) control: String,
    /// The path for its events.
    pub(crate) events: String,
}

impl Service {
    /// The head and the body of a call of an action, as [`Client::ask`] takes them.
    pub(crate) fn request(&self, action: &str, arguments: &[(&str, &str)]) -> (String, String) {
        let fields = [
            ("SOAPAction", &*format!("\"{}#{action}\"", self.name)),
            ("Content-Type", "text/xml; charset=\"utf-8\""),
        ];
        (head("POST", &self.control, &fields), soap::encode_call(&self.name, action, arguments))
    }
}

/// What a call of an action came to: its values, or UPnP's error code.
pub(crate) type Called = Result<Vec<(String, String)>, u16>;

/// Reads the answer to a call; `None` when it is no SOAP.
pub(crate) fn called(action: &str, answer: &Answer) -> Option<Called> {
    match soap::decode_answer_to(action, &answer.body) {
        Ok(answer) => Some(Ok(answer.values)),
        Err(AnswerError::Fault { code, .. }) => Some(Err(code)),
        Err(AnswerError::Malformed) => None,
    }
}

/// The path of the description that answers a search for `target` from `host`.
///
/// # Errors
/// Nobody answers in that time.
pub(crate) fn find(host: Ipv4Addr, target: &str, within: Duration) -> io::Result<String> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(location) = search(host, target, Duration::from_millis(1500))? {
            let path = location.strip_prefix("http://").and_then(|rest| Some(&rest[rest.find('/')?..]));
            return path.map(str::to_owned).ok_or_else(|| io::Error::other(format!("LOCATION: {location}")));
        }
        if Instant::now() > deadline {
            return Err(io::Error::other("nobody answers M-SEARCH"));
        }
    }
}

/// The services of a description.
///
/// # Errors
/// It cannot be had, or is none.
pub(crate) fn services(gateway: SocketAddr, path: &str) -> io::Result<Vec<Service>> {
    let answer = Client::new(gateway).ask(&head("GET", path, &[]), "", false)?;
    let read = description::parse(&answer.body).map_err(|_| io::Error::other("a bad description"))?;
    let services = read.services.into_iter().map(|service| Service {
        name: service.service_type,
        control: service.control_url,
        events: service.event_url,
    });
    Ok(services.collect())
}

/// The first LOCATION that is answered in that time.
pub(crate) fn search(host: Ipv4Addr, target: &str, wait: Duration) -> io::Result<Option<String>> {
    let socket = UdpSocket::bind((host, 0))?;
    let request = ssdp::search("239.255.255.250:1900", &ssdp::Target::parse(target), Some(1));
    socket.send_to(request.as_bytes(), (ssdp::GROUP_V4, ssdp::PORT))?;
    let deadline = Instant::now() + wait;
    let mut buffer = [0; 2048];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        if let Ok(ssdp::Message::Response(response)) = ssdp::parse(&buffer[..length])
            && from.ip() == IpAddr::V4(ROUTER_LAN)
        {
            return Ok(Some(response.location));
        }
    }
}
