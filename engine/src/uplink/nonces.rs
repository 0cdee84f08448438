//! Nonces. A server keeps a freed external port for minutes from everybody but its last owner, whom it knows by
//! internal address, internal port and nonce (RFC 6887 §15). An application that restarts deletes its port and asks for it
//! again at once: with a new nonce it would hear "conflict" until the hold is over.

use std::net::{IpAddr, SocketAddr};

use wire::pcp::{Nonce, Protocol};

use super::flow::Want;
use crate::entropy::Entropy;

/// What the server knows a client by, apart from the nonce: the third party, if it is one, protocol, internal port.
pub(super) type Client = (Option<IpAddr>, Protocol, u16);

/// What tells a server from all others.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerIdentity {
    /// The first of its addresses.
    pub addr: IpAddr,
    /// The interface that it is reached by: the routers behind two of them may both be 192.168.1.1.
    pub interface: String,
}

/// The nonce by which this server knows the owner of such a mapping.
pub fn derived_nonce(server: &ServerIdentity, want: &Want, entropy: &dyn Entropy) -> Nonce {
    derived(server, super::flow::client(want), entropy)
}

/// The nonce of `client` at this server: always the same for this installation, and nobody else's.
pub(super) fn derived(server: &ServerIdentity, client: Client, entropy: &dyn Entropy) -> Nonce {
    derived_from(name(b"PCP nonce ", server, client), entropy)
}

/// The same for its flow to one remote peer.
pub(super) fn derived_for_peer(
    server: &ServerIdentity,
    client: Client,
    remote: SocketAddr,
    entropy: &dyn Entropy,
) -> Nonce {
    let mut name = name(b"PCP nonce of PEER ", server, client);
    name.extend(remote.to_string().into_bytes());
    derived_from(name, entropy)
}

fn derived_from(name: Vec<u8>, entropy: &dyn Entropy) -> Nonce {
    let [nonce @ .., _, _, _, _] = entropy.derive(&name);
    Nonce(nonce)
}

/// What tells a client at this server from all others.
fn name(what: &[u8], server: &ServerIdentity, client: Client) -> Vec<u8> {
    let (third_party, protocol, internal_port) = client;
    let mut name = what.to_vec();
    match server.addr {
        IpAddr::V4(v4) => name.extend(v4.to_ipv6_mapped().octets()),
        IpAddr::V6(v6) => name.extend(v6.octets()),
    }
    match third_party {
        Some(IpAddr::V6(host)) => name.extend(host.octets()),
        Some(IpAddr::V4(host)) => name.extend(host.octets()),
        None => name.extend([0; 4]),
    }
    name.push(protocol.0);
    name.extend(internal_port.to_be_bytes());
    name.extend(server.interface.as_bytes());
    name
}
