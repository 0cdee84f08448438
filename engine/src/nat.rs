//! The router's own NAT as the engine sees it: which ports it uses towards the provider, and what the kernel
//! is to be told.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use wire::pcp::{CLIENT_PORT, Protocol, SERVER_PORT};

use crate::entropy::Entropy;
use crate::uplink::FlowId;

/// One mapping of the router's own NAT: from a port of its WAN address to a LAN host. It ends with the provider's (R-15, T-12,
/// D-5).
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct NatRule {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port on the WAN address.
    pub port: u16,
    /// The LAN host and its port.
    pub internal: SocketAddrV4,
    /// The only remote host that may come in; `None` for all.
    pub remote_peer: Option<Ipv4Addr>,
}

/// What the kernel is to be told. Each is answered by [`Event::Nat`](crate::gateway::Event::Nat).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NatChange {
    /// Nothing yet; but does the router itself use this port of its WAN address?
    Reserve {
        /// TCP or UDP.
        protocol: Protocol,
        /// The port on the WAN address.
        port: u16,
        /// The WAN address.
        addr: Ipv4Addr,
    },
    /// Let this traffic in.
    Install {
        /// The mapping.
        rule: NatRule,
        /// Address and port at the provider's NAT, where there are any: LAN hosts reach the mapping by them, too (decision 26).
        /// Only one mapping at a time has them, but for one that could not be removed; then it is the newest.
        external: Option<SocketAddrV4>,
    },
    /// One mapping is led elsewhere, in one step.
    Replace {
        /// What is there.
        old: NatRule,
        /// What is wanted.
        new: NatRule,
        /// As for `Install`.
        external: Option<SocketAddrV4>,
    },
    /// The mapping at this port of the WAN address, if one is there, has another address or port at the provider's NAT.
    Move {
        /// TCP or UDP.
        protocol: Protocol,
        /// The port on the WAN address.
        port: u16,
        /// As for `Install`.
        external: Option<SocketAddrV4>,
    },
    /// Let it in no more, and cut what flows.
    Remove(NatRule),
}

/// Why the kernel did not do it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NatFailure {
    /// A program of the router uses the port.
    PortInUse,
    /// The kernel's own words.
    Kernel(String),
}

/// The ports of the WAN address that the NAT uses.
#[derive(Debug, Default)]
pub struct NatPorts {
    used: BTreeMap<(Protocol, u16), FlowId>,
}

impl NatPorts {
    /// Takes a port for `flow`: the first of `wishes` that is free, else a random one that is; `None` when all are
    /// taken. `refused` ports are passed over.
    pub fn take(
        &mut self,
        protocol: Protocol,
        wishes: &[u16],
        refused: &[u16],
        flow: FlowId,
        entropy: &mut dyn Entropy,
    ) -> Option<u16> {
        let free = |port: u16| {
            is_given(protocol, port) && !refused.contains(&port) && !self.used.contains_key(&(protocol, port))
        };
        let found = wishes.iter().copied().find(|&port| free(port)).or_else(|| {
            let mut start = [0; 2];
            entropy.fill(&mut start);
            // The dynamic range first (RFC 6335), from a random place on, so that ports are not guessed in a row.
            let start = 49152 | u16::from_be_bytes(start);
            (start..=65535).chain(49152..start).chain((1024..49152).rev()).find(|&port| free(port))
        })?;
        self.used.insert((protocol, found), flow);
        Some(found)
    }

    /// Who has taken this port.
    pub fn holder(&self, protocol: Protocol, port: u16) -> Option<FlowId> {
        self.used.get(&(protocol, port)).copied()
    }

    /// How many ports are taken.
    pub(crate) fn len(&self) -> usize {
        self.used.len()
    }

    /// Whether it can be claimed.
    pub fn is_free(&self, protocol: Protocol, port: u16) -> bool {
        is_given(protocol, port) && !self.used.contains_key(&(protocol, port))
    }

    /// Takes this very port for a mapping of before; false when it is taken, or none that is ever given.
    pub fn claim(&mut self, protocol: Protocol, port: u16, flow: FlowId) -> bool {
        let free = self.is_free(protocol, port);
        if free {
            self.used.insert((protocol, port), flow);
        }
        free
    }

    /// Gives a port back.
    pub fn release(&mut self, protocol: Protocol, port: u16) {
        self.used.remove(&(protocol, port));
    }
}

/// Whether the NAT ever uses this port of the WAN address: not those of the system's services, nor PCP's own.
fn is_given(protocol: Protocol, port: u16) -> bool {
    port >= 1024 && (protocol != Protocol::UDP || !matches!(port, CLIENT_PORT | SERVER_PORT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::SeededEntropy;

    #[test]
    fn decision_23_internal_port_else_external_port_else_any() {
        let mut ports = NatPorts::default();
        let mut entropy = SeededEntropy::new(1);
        let mut take = |ports: &mut NatPorts, protocol, wishes: &[u16], refused: &[u16]| {
            ports.take(protocol, wishes, refused, FlowId(0), &mut entropy)
        };
        assert_eq!(take(&mut ports, Protocol::TCP, &[4000, 5000], &[]), Some(4000));
        assert_eq!(take(&mut ports, Protocol::TCP, &[4000, 5000], &[]), Some(5000));
        assert!(take(&mut ports, Protocol::TCP, &[4000, 5000], &[]).unwrap() >= 49152);
        assert_eq!(take(&mut ports, Protocol::UDP, &[4000, 5000], &[]), Some(4000), "UDP is another space");
        assert_eq!(
            take(&mut ports, Protocol::UDP, &[6000, 6001], &[6000]),
            Some(6001),
            "the router uses 6000"
        );
        assert_eq!(take(&mut ports, Protocol::UDP, &[5351, 5350, 7000], &[]), Some(7000), "PCP's own ports");
        assert_eq!(take(&mut ports, Protocol::TCP, &[5351], &[]), Some(5351));
        ports.release(Protocol::TCP, 4000);
        assert_eq!(take(&mut ports, Protocol::TCP, &[4000], &[]), Some(4000));
    }

    #[test]
    fn every_port_is_used_before_none_is_left() {
        let mut ports = NatPorts::default();
        let mut entropy = SeededEntropy::new(2);
        ports.used = (1024..=65535).map(|port| ((Protocol::TCP, port), FlowId(0))).collect();
        for left in [65535, 49152, 49151, 1024] {
            ports.release(Protocol::TCP, left);
            assert_eq!(ports.take(Protocol::TCP, &[], &[], FlowId(0), &mut entropy), Some(left));
        }
        assert_eq!(ports.take(Protocol::TCP, &[], &[], FlowId(0), &mut entropy), None);
    }
}
