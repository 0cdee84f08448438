//! LAN hosts of a [`World`] that ask at port 5351, in PCP and NAT-PMP, and what they hear.

use std::net::{IpAddr, SocketAddr, SocketAddrV4};

use engine::gateway::{Event, LanArrival};
use engine::nat::NatRule;
use engine::status::{MappingStatus, PinholeStatus};
use engine::time::Instant;
use wire::pcp::Protocol;

use super::{GATEWAY, GATEWAY_V6, LAN_INDEX, World};

/// A datagram from port 5351 of the gateway, and what there was when it was sent.
#[derive(Clone, Debug)]
pub struct LanAnswer {
    /// When.
    pub at: Instant,
    /// To whom: a client, or a group.
    pub to: SocketAddr,
    /// Its content.
    pub bytes: Vec<u8>,
    /// The mappings at the end of the turn in which it was said.
    pub mappings: Vec<MappingStatus>,
    /// The pinholes likewise.
    pub pinholes: Vec<PinholeStatus>,
    /// The rules of the router's own NAT at that moment.
    pub rules: Vec<NatRule>,
}

/// A flow that a LAN host has begun: protocol, host and port, and whom it goes to.
pub type Flow = (Protocol, SocketAddrV4, SocketAddrV4);

impl World {
    /// A datagram comes to port 5351 of the gateway's LAN address of the same family, by the LAN interface.
    pub fn ask_at_5351(&mut self, from: SocketAddr, bytes: &[u8]) {
        let local = if from.is_ipv4() { IpAddr::V4(GATEWAY) } else { IpAddr::V6(GATEWAY_V6) };
        let arrival = LanArrival { interface: LAN_INDEX, local, from };
        self.handle(Event::Lan5351 { arrival, bytes });
    }

    /// A datagram comes to SSDP's port, whatever it is and says of where it comes from.
    pub fn say_to_ssdp(&mut self, interface: u32, from: SocketAddr, bytes: &[u8]) {
        self.handle(Event::Ssdp { interface, local: None, from, bytes });
    }

    /// A LAN host has begun a flow that leaves by this port of the WAN address; `None`: it is over.
    pub fn set_flow(&mut self, flow: Flow, port: Option<u16>) {
        match port {
            Some(port) => drop(self.flows.insert(flow, port)),
            None => drop(self.flows.remove(&flow)),
        }
    }

    /// What came from port 5351 since the last call.
    pub fn take_lan_answers(&mut self) -> Vec<LanAnswer> {
        std::mem::take(&mut self.lan_answers)
    }

    pub(super) fn on_lan_send(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        if to.ip().is_multicast() {
            return; // announcements are for the engine's own tests to read
        }
        let mappings = self.gateway.mappings(self.now).collect();
        let pinholes = self.gateway.pinholes(self.now);
        let rules = self.nat.rules().copied().collect();
        let words = match (wire::pcp::Response::parse(&bytes), wire::natpmp::Response::parse(&bytes)) {
            (Ok(response), _) => format!("{to} hears {response}"),
            (_, Ok(response)) => format!("{to} hears {response}"),
            // A refusal of what is no whole request is no whole answer.
            _ if bytes.get(3).is_some_and(|result| *result != 0) => format!("{to} hears an error"),
            _ => return self.violation(format!("{to} hears what is no answer: {bytes:?}")),
        };
        self.note(words);
        self.lan_answers.push(LanAnswer { at: self.now, to, bytes, mappings, pinholes, rules });
    }
}
