//! Nonces, and those of mappings that are gone. A server keeps a freed external port for minutes from everybody but its last
//! owner, whom it knows by internal address, internal port and nonce (RFC 6887 §15). An application that
//! restarts deletes its port and asks for it again at once: with a new nonce it would hear "conflict" until the hold is over.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use wire::pcp::{Nonce, Protocol};

use crate::entropy::Entropy;

/// The server holds a port for two hours at most, and nobody has this many at once.
const MOST: usize = 4096;

/// What the server knows a client by, apart from the nonce: the third party, if it is one, protocol, internal port.
pub(super) type Client = (Option<Ipv4Addr>, Protocol, u16);

/// The nonce of `client` at the server with this address: always the same for this installation, and nobody else's.
pub(super) fn derived(server: IpAddr, client: Client, entropy: &dyn Entropy) -> Nonce {
    let (third_party, protocol, internal_port) = client;
    let mut name = b"PCP nonce ".to_vec();
    match server {
        IpAddr::V4(v4) => name.extend(v4.to_ipv6_mapped().octets()),
        IpAddr::V6(v6) => name.extend(v6.octets()),
    }
    name.extend(third_party.map_or([0; 4], |host| host.octets()));
    name.push(protocol.0);
    name.extend(internal_port.to_be_bytes());
    let [nonce @ .., _, _, _, _] = entropy.derive(&name);
    Nonce(nonce)
}

/// What is remembered of a client whose mapping is gone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Kept {
    /// Its nonce, when that is another one than [`derived`] gives.
    pub(super) nonce: Option<Nonce>,
    /// The server may still have a filter for it: a copy of an old request that comes late makes the mapping anew.
    pub(super) filtered: bool,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Nonces {
    kept: BTreeMap<Client, (Kept, u64)>,
    order: BTreeMap<u64, Client>,
    next: u64,
}

impl Nonces {
    /// Remembers a client whose mapping is gone; the oldest is forgotten when there are too many.
    pub(super) fn keep(&mut self, client: Client, kept: Kept) {
        self.take(client);
        self.next += 1;
        self.kept.insert(client, (kept, self.next));
        self.order.insert(self.next, client);
        if self.kept.len() > MOST
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.kept.remove(&oldest);
        }
    }

    /// What is remembered of a client, if anything.
    pub(super) fn peek(&self, client: Client) -> Option<Kept> {
        self.kept.get(&client).map(|(kept, _)| *kept)
    }

    /// The same; it is used now.
    pub(super) fn take(&mut self, client: Client) -> Option<Kept> {
        let (kept, at) = self.kept.remove(&client)?;
        self.order.remove(&at);
        Some(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_used_again_once_and_memory_is_bounded() {
        let mut nonces = Nonces::default();
        let client = |port| (None, Protocol::TCP, port);
        let kept = |octet| Kept { nonce: Some(Nonce([octet; 12])), filtered: false };
        nonces.keep(client(1), kept(1));
        nonces.keep(client(1), kept(2));
        assert_eq!(nonces.take(client(1)), Some(kept(2)));
        assert_eq!(nonces.take(client(1)), None);
        for port in 0..5000 {
            nonces.keep(client(port), kept(3));
        }
        assert_eq!((nonces.kept.len(), nonces.order.len()), (MOST, MOST));
        assert_eq!(nonces.take(client(0)), None, "the oldest went first");
        assert!(nonces.take(client(4999)).is_some());
    }
}
