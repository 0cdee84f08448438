//! What an AFTR and a NAT64 have in common: packets in, packets out, a table between them, and a PCP server on it.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use engine::provider::{
    Arrival, Binding, NatChange, NatRefused, Output, Prefix, Server, ServerConfig, ThirdParty,
};
use engine::time::Instant;
use wire::pcp::{CLIENT_PORT, SERVER_PORT};

use crate::nat::{Nat, Taken};
use crate::packet::{Prefix64, Refused};

/// The ports that the PCP server gives out: those that the NAT does not.
const PORTS: RangeInclusive<u16> = 1024..=32_767;

/// How many clients are told of a new epoch.
const CLIENTS: usize = 4096;

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

/// A PCP server for the subscribers of an AFTR, in both modes: in plain IPv6, where a B4 names its hosts by THIRD_PARTY, and
/// in IPv4 inside of the softwire, where it may do so too.
#[must_use]
pub fn ds_lite_server(pool: Vec<Ipv4Addr>) -> ServerConfig {
    ServerConfig {
        ports: PORTS,
        b4: vec![Prefix::ALL_V6],
        third_party: vec![ThirdParty { client: Prefix::ALL_V6, internal: vec![Prefix::ALL_V4] }],
        ..ServerConfig::new(pool)
    }
}

/// A PCP server for the hosts of a NAT64.
#[must_use]
pub fn nat64_server(pool: Vec<Ipv4Addr>, prefix: Prefix64) -> ServerConfig {
    let prefix = wire::pcp::Prefix64 {
        prefix: prefix.octets().to_vec(),
        suffix: Vec::new(),
        ipv4_prefixes: Vec::new(),
    };
    ServerConfig { ports: PORTS, nat64: true, prefix64: vec![prefix], ..ServerConfig::new(pool) }
}

/// Somebody who has asked the PCP server, and how.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Client {
    addr: IpAddr,
    server: IpAddr,
    softwire: Option<Ipv6Addr>,
}

/// A translator and its PCP server at work: packets in, packets out, and what the server says to who runs it.
///
/// What is announced to all is sent to everybody who has asked since the start: there is no link that subscribers are on.
#[derive(Debug)]
pub struct Carrier<P> {
    plane: P,
    server: Server,
    clients: BTreeSet<Client>,
    packets: VecDeque<Vec<u8>>,
    words: VecDeque<String>,
}

impl<P: DataPlane> Carrier<P> {
    /// With bindings that are there from the start and are none of the server's business.
    ///
    /// # Errors
    ///
    /// [`Taken`] when two of them contradict each other.
    pub fn new(
        now: Instant,
        mut plane: P,
        config: ServerConfig,
        bindings: Vec<Binding>,
    ) -> Result<Self, Taken> {
        for binding in bindings {
            plane.nat().open(binding)?;
        }
        let mut new = Self {
            plane,
            server: Server::new(now, config, now),
            clients: BTreeSet::new(),
            packets: VecDeque::new(),
            words: VecDeque::new(),
        };
        new.server.announce(now);
        new.work(now);
        Ok(new)
    }

    /// Takes a packet from either side.
    ///
    /// # Errors
    ///
    /// Why it goes no further.
    pub fn handle_packet(&mut self, now: Instant, packet: &[u8]) -> Result<(), Refused> {
        match self.plane.handle_packet(now, packet)? {
            Passed::Packet(packet) => self.packets.push_back(packet),
            Passed::Request(arrival, request) => {
                let Arrival { from, to, softwire, .. } = arrival;
                if self.clients.len() < CLIENTS {
                    self.clients.insert(Client { addr: from.ip(), server: to, softwire });
                }
                self.server.handle_datagram(now, &arrival, &request);
                self.work(now);
            }
        }
        Ok(())
    }

    /// The next packet to be sent.
    pub fn poll_packet(&mut self) -> Option<Vec<u8>> {
        self.packets.pop_front()
    }

    /// The next line for who runs it.
    pub fn poll_words(&mut self) -> Option<String> {
        self.words.pop_front()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.plane.nat().handle_timeout(now);
        self.server.handle_timeout(now);
        self.work(now);
    }

    /// When something will be due.
    pub fn next_timeout(&mut self) -> Option<Instant> {
        let all = [self.plane.nat().next_timeout(), self.server.next_timeout()];
        all.into_iter().flatten().min()
    }

    fn work(&mut self, now: Instant) {
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Send { to, from, softwire, bytes } => self.send(from, to, softwire, &bytes),
                Output::Multicast { group, bytes } => self.announce(group, &bytes),
                Output::Nat { ticket, change } => {
                    let nat = self.plane.nat();
                    let outcome = match change {
                        NatChange::Open(binding) => nat.open(binding),
                        NatChange::Replace { old, new } => nat.replace(&old, new),
                        NatChange::Close(binding) => {
                            nat.close(&binding);
                            Ok(())
                        }
                    };
                    // In the way is what is there from the start; another port may do.
                    self.server.handle_nat(now, ticket, outcome.map_err(|Taken| NatRefused::Full));
                }
                // Nothing outlives the program, and the epoch says so.
                Output::Store(_) => {}
                Output::Notice(notice) => self.words.push_back(notice.to_string()),
            }
        }
    }

    fn send(&mut self, from: IpAddr, to: SocketAddr, softwire: Option<Ipv6Addr>, bytes: &[u8]) {
        let from = SocketAddr::new(from, SERVER_PORT);
        self.packets.extend(self.plane.datagram(from, to, softwire, bytes));
    }

    /// Inside of a softwire the group is reached as it is on a link; outside, each client by its own address.
    fn announce(&mut self, group: SocketAddr, bytes: &[u8]) {
        let clients: BTreeSet<(IpAddr, SocketAddr, Option<Ipv6Addr>)> = self
            .clients
            .iter()
            .filter(|client| client.server.is_ipv4() == group.is_ipv4())
            .map(|client| match client.softwire {
                Some(_) => (client.server, group, client.softwire),
                None => (client.server, SocketAddr::new(client.addr, CLIENT_PORT), None),
            })
            .collect();
        for (server, to, softwire) in clients {
            self.send(server, to, softwire, bytes);
        }
    }
}
