//! What an AFTR and a NAT64 have in common: packets in, packets out, a table between them, and a service for their hosts.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use engine::time::Instant;

use crate::nat::{Binding, Nat, Taken};
use crate::packet::Refused;

/// Where a datagram to the PCP server came from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Arrival {
    /// Source.
    pub from: SocketAddr,
    /// Destination; the answer comes from it.
    pub to: IpAddr,
    /// The B4's IPv6 address, when it came inside of a softwire.
    pub softwire: Option<Ipv6Addr>,
}

/// What becomes of a packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Passed {
    /// This one is sent.
    Packet(Vec<u8>),
    /// It was a datagram for the PCP server.
    Request(Arrival, Vec<u8>),
}

/// A translator between two networks.
pub trait DataPlane {
    /// What becomes of a packet from either side.
    ///
    /// # Errors
    ///
    /// Why it goes no further.
    fn handle_packet(&mut self, now: Instant, packet: &[u8]) -> Result<Passed, Refused>;

    /// A datagram from the PCP server to one of its clients, inside of a softwire or not; `None` when there is no way to it.
    fn datagram(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        softwire: Option<Ipv6Addr>,
        data: &[u8],
    ) -> Option<Vec<u8>>;

    /// Its table.
    fn nat(&mut self) -> &mut Nat;
}

/// A translator at work, with the time it has to be woken at.
#[derive(Debug)]
pub struct Carrier<P> {
    plane: P,
    packets: VecDeque<Vec<u8>>,
}

impl<P: DataPlane> Carrier<P> {
    /// With bindings that are there from the start.
    ///
    /// # Errors
    ///
    /// [`Taken`] when two of them contradict each other.
    pub fn new(mut plane: P, bindings: Vec<Binding>) -> Result<Self, Taken> {
        for binding in bindings {
            plane.nat().open(binding)?;
        }
        Ok(Self { plane, packets: VecDeque::new() })
    }

    /// Takes a packet from either side.
    ///
    /// # Errors
    ///
    /// Why it goes no further.
    pub fn handle_packet(&mut self, now: Instant, packet: &[u8]) -> Result<(), Refused> {
        match self.plane.handle_packet(now, packet)? {
            Passed::Packet(packet) => self.packets.push_back(packet),
            Passed::Request(..) => return Err(Refused::Protocol),
        }
        Ok(())
    }

    /// The next packet to be sent.
    pub fn poll_packet(&mut self) -> Option<Vec<u8>> {
        self.packets.pop_front()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.plane.nat().handle_timeout(now);
    }

    /// When something will be due.
    pub fn next_timeout(&mut self) -> Option<Instant> {
        self.plane.nat().next_timeout()
    }
}
