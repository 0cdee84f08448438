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
use crate::packet::protocol::{ICMPV6, UDP};
use crate::packet::{Ipv4, Ipv6, Prefix64, Refused, Segment, echo_reply_v6, udp_v4, udp_v6};

/// The ports that the PCP server gives out: those that the NAT does not.
const PORTS: RangeInclusive<u16> = 1024..=32_767;

/// How many clients outside of softwires are told of a new epoch.
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
    /// What becomes of a packet from its hosts' side.
    ///
    /// # Errors
    ///
    /// Why it goes no further.
    fn outbound(&mut self, now: Instant, packet: &Ipv6) -> Result<Passed, Refused>;

    /// What becomes of a packet to one of its external addresses.
    ///
    /// # Errors
    ///
    /// Why it goes no further.
    fn inbound(&mut self, now: Instant, packet: Ipv4) -> Result<Passed, Refused>;

    /// Its table.
    fn nat(&mut self) -> &mut Nat;

    /// Puts a packet into the softwire to a B4; `None` where there are no softwires.
    fn encapsulate(&self, _b4: Ipv6Addr, _packet: &Ipv4) -> Option<Ipv6> {
        None
    }

    /// The softwires that packets have come in by, and the server's address inside of them.
    fn softwires(&self) -> impl Iterator<Item = (Ipv6Addr, IpAddr)> {
        std::iter::empty()
    }

    /// What becomes of a packet from either side.
    ///
    /// # Errors
    ///
    /// Why it goes no further.
    fn handle_packet(&mut self, now: Instant, packet: &[u8]) -> Result<Passed, Refused> {
        if packet.first().is_some_and(|first| first >> 4 == 6) {
            return self.outbound(now, &Ipv6::parse(packet)?);
        }
        let packet = Ipv4::parse(packet)?;
        if self.nat().owns(packet.dst) { self.inbound(now, packet) } else { Err(Refused::Address) }
    }

    /// A datagram from the PCP server to one of its clients, inside of a softwire or not; `None` when there is no way to it.
    fn datagram(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        softwire: Option<Ipv6Addr>,
        data: &[u8],
    ) -> Option<Vec<u8>> {
        let packet = match (from, to, softwire) {
            (SocketAddr::V4(from), SocketAddr::V4(to), Some(b4)) => {
                self.encapsulate(b4, &udp_v4((*from.ip(), from.port()), (*to.ip(), to.port()), data))?
            }
            (SocketAddr::V6(from), SocketAddr::V6(to), None) => {
                udp_v6((*from.ip(), from.port()), (*to.ip(), to.port()), data)
            }
            _ => return None,
        };
        Some(packet.to_bytes())
    }
}

/// What becomes of an IPv6 packet to the PCP server's own address: it is asked, or answers an echo.
///
/// # Errors
///
/// Why it goes no further.
pub fn to_server(packet: &Ipv6) -> Result<Passed, Refused> {
    let (protocol, at) = packet.upper()?;
    match (protocol, Segment::parse(protocol, &packet.payload[at..])?) {
        (UDP, Segment::Udp(port, SERVER_PORT)) => {
            let from = SocketAddr::new(packet.src.into(), port);
            let arrival = Arrival { from, to: packet.dst.into(), softwire: None, interface: 0, inside: true };
            Ok(Passed::Request(arrival, packet.udp_data()?.to_vec()))
        }
        (ICMPV6, Segment::EchoRequest(_)) if at == 0 => Ok(Passed::Packet(echo_reply_v6(packet).to_bytes())),
        _ => Err(Refused::Protocol),
    }
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

/// A translator and its PCP server at work: packets in, packets out, and what the server says to who runs it.
///
/// What is announced to all is sent by every softwire that has been used since the start, and to each client that has asked
/// outside of one; a real carrier is on no link of its subscribers. For one that is, the announcements in IPv6 come out of
/// [`Self::poll_announcement`], too.
#[derive(Debug)]
pub struct Carrier<P> {
    plane: P,
    server: Server,
    /// Addresses of a client and of the server as it knows it.
    clients: BTreeSet<(Ipv6Addr, IpAddr)>,
    packets: VecDeque<Vec<u8>>,
    announcements: VecDeque<(SocketAddr, Vec<u8>)>,
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
            announcements: VecDeque::new(),
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
                if let (IpAddr::V6(client), None) = (arrival.from.ip(), arrival.softwire)
                    && self.clients.len() < CLIENTS
                {
                    self.clients.insert((client, arrival.to));
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

    /// The next datagram from the PCP server to a multicast group of IPv6.
    pub fn poll_announcement(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.announcements.pop_front()
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
                Output::Send { to, from, softwire, bytes, .. } => self.send(from, to, softwire, &bytes),
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
                    self.server.handle_nat(now, ticket, outcome.map_err(|Taken| NatRefused::Taken));
                }
                Output::Flow { ticket, flow } => {
                    let external = self.plane.nat().goes_out(flow.inside, flow.protocol, flow.internal_port);
                    self.server.handle_flow(now, ticket, external);
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
        if group.is_ipv4() {
            let softwires: Vec<_> = self.plane.softwires().collect();
            softwires.into_iter().for_each(|(b4, server)| self.send(server, group, Some(b4), bytes));
        } else {
            let clients: Vec<_> = self.clients.iter().copied().collect();
            for (client, server) in clients {
                self.send(server, SocketAddr::new(client.into(), CLIENT_PORT), None, bytes);
            }
            self.announcements.push_back((group, bytes.to_vec()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;

    use engine::time::Duration;
    use wire::pcp::{
        ANNOUNCE_GROUP_V4, Body, MapData, NO_ADDR_V4, Nonce, PcpOption, Protocol, Request, Response,
    };

    use super::*;
    use crate::aftr::{AFTR_ADDRESS, Aftr};
    use crate::b4::{B4, B4_ADDRESS};
    use crate::packet::End;

    const AFTR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    const B4S: [B4; 2] = [
        B4 { own: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2), aftr: AFTR },
        B4 { own: Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2), aftr: AFTR },
    ];
    const POOL: Ipv4Addr = Ipv4Addr::new(203, 0, 114, 1);
    const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 10);
    const PEER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);
    const T0: Instant = Instant::from_secs(0);

    fn carrier() -> Carrier<Aftr> {
        let plane = Aftr::new(AFTR, Nat::new(vec![POOL], None));
        Carrier::new(T0, plane, ds_lite_server(vec![POOL]), Vec::new()).unwrap()
    }

    fn map(client: IpAddr, external_port: u16, lifetime: u32, for_host: bool) -> Vec<u8> {
        let (nonce, protocol) = (Nonce([7; 12]), Protocol::UDP);
        let data = MapData { nonce, protocol, internal_port: 7000, external_port, external_addr: NO_ADDR_V4 };
        let options = if for_host { vec![PcpOption::ThirdParty(HOST.to_ipv6_mapped())] } else { Vec::new() };
        let client_addr = wire::pcp::ip_to_wire(client);
        Request { lifetime, client_addr, body: Body::Map(data), options }.to_bytes()
    }

    /// How a B4, or a host behind it, may ask.
    #[derive(Clone, Copy, Debug)]
    enum Way {
        /// In IPv6, for the host by THIRD_PARTY.
        Plain,
        /// In the softwire, the B4 for the host.
        Softwire,
        /// In the softwire, the host for itself.
        Host,
    }

    /// Sends a request; the external port of the answer.
    #[track_caller]
    fn ask(carrier: &mut Carrier<Aftr>, now: Instant, b4: B4, way: Way, port: u16, lifetime: u32) -> u16 {
        let (bytes, to) = match way {
            Way::Plain => {
                let request = map(b4.own.into(), port, lifetime, true);
                (udp_v6((b4.own, 5350), (AFTR, 5351), &request).to_bytes(), AFTR.into())
            }
            Way::Softwire | Way::Host => {
                let src = if matches!(way, Way::Host) { HOST } else { B4_ADDRESS };
                let request = map(src.into(), port, lifetime, src != HOST);
                let inner = udp_v4((src, 5350), (AFTR_ADDRESS, 5351), &request);
                (b4.handle_packet(&inner.to_bytes()).unwrap(), IpAddr::V4(AFTR_ADDRESS))
            }
        };
        carrier.handle_packet(now, &bytes).unwrap();
        let answer = carrier.poll_packet().expect("an answer");
        let response = Response::parse(&datagram(b4, &answer, to)).unwrap();
        let Body::Map(data) = response.body else { panic!("{response:?}") };
        assert_eq!(response.result, wire::pcp::ResultCode::SUCCESS, "{way:?} {response:?}");
        data.external_port
    }

    /// The data of a datagram from the server, inside of the softwire or not.
    #[track_caller]
    fn datagram(b4: B4, packet: &[u8], from: IpAddr) -> Vec<u8> {
        match from {
            IpAddr::V6(_) => {
                let packet = Ipv6::parse(packet).unwrap();
                assert_eq!((IpAddr::from(packet.src), packet.dst), (from, b4.own));
                packet.udp_data().unwrap().to_vec()
            }
            IpAddr::V4(_) => {
                let packet = Ipv4::parse(&b4.handle_packet(packet).unwrap()).unwrap();
                assert_eq!(IpAddr::from(packet.src), from);
                packet.udp_data().unwrap().to_vec()
            }
        }
    }

    /// Whom a datagram from the Internet reaches.
    fn knock(carrier: &mut Carrier<Aftr>, now: Instant, port: u16) -> Option<(Ipv6Addr, SocketAddrV4)> {
        carrier.handle_packet(now, &udp_v4((PEER, 9), (POOL, port), b"knock").to_bytes()).ok()?;
        let outer = Ipv6::parse(&carrier.poll_packet().expect("passed on")).unwrap();
        let inner = crate::packet::decapsulate(&outer).unwrap();
        let (port, _) = Segment::parse(UDP, &inner.payload).unwrap().ports(End::Destination);
        Some((outer.dst, SocketAddrV4::new(inner.dst, port)))
    }

    /// RFC 6333 §6.6, §8.5: in each way, for two homes whose hosts have the same address; then the end of the lifetime, and
    /// a deletion.
    #[test]
    fn what_is_granted_works_for_its_subscriber_until_it_ends() {
        for way in [Way::Plain, Way::Softwire, Way::Host] {
            let mut carrier = carrier();
            assert_eq!(knock(&mut carrier, T0, 8080), None);
            assert_eq!(ask(&mut carrier, T0, B4S[0], way, 8080, 3600), 8080, "{way:?}");
            let other = ask(&mut carrier, T0, B4S[1], way, 8080, 600);
            assert_ne!(other, 8080);
            let host = SocketAddrV4::new(HOST, 7000);
            assert_eq!(knock(&mut carrier, T0, 8080), Some((B4S[0].own, host)), "{way:?}");
            assert_eq!(knock(&mut carrier, T0, other), Some((B4S[1].own, host)));
            let later = T0 + Duration::from_secs(600);
            assert!(carrier.next_timeout().is_some_and(|at| at <= later));
            carrier.handle_timeout(later);
            while carrier.poll_packet().is_some() {} // announcements of the start
            assert_eq!(knock(&mut carrier, later, other), None, "{way:?}: its lifetime is over");
            assert_eq!(knock(&mut carrier, later, 8080), Some((B4S[0].own, host)));
            ask(&mut carrier, later, B4S[0], way, 0, 0);
            assert_eq!(knock(&mut carrier, later, 8080), None, "{way:?}: deleted");
        }
    }

    /// Decision 22, RFC 6333 §8.5: however it asks, a subscriber's host is the same one, and another home's is not.
    #[test]
    fn a_mapping_is_its_subscribers_in_each_way() {
        for made in [Way::Plain, Way::Softwire, Way::Host] {
            for used in [Way::Plain, Way::Softwire, Way::Host] {
                let mut carrier = carrier();
                assert_eq!(ask(&mut carrier, T0, B4S[0], made, 8080, 3600), 8080);
                assert_eq!(ask(&mut carrier, T0, B4S[0], used, 0, 3600), 8080, "{made:?}, {used:?}: renewed");
                ask(&mut carrier, T0, B4S[1], used, 0, 0);
                let host = SocketAddrV4::new(HOST, 7000);
                let reached = knock(&mut carrier, T0, 8080);
                assert_eq!(reached, Some((B4S[0].own, host)), "{made:?}, {used:?}: not deleted");
                ask(&mut carrier, T0, B4S[0], used, 0, 0);
                assert_eq!(knock(&mut carrier, T0, 8080), None, "{made:?}, {used:?}: deleted");
            }
        }
    }

    /// RFC 6887 §14.1.3: softwires and clients are told of the epoch as soon as they are known; the run of the start is on.
    #[test]
    fn announcements_find_their_clients() {
        let mut carrier = carrier();
        assert_eq!(carrier.poll_packet(), None, "nobody is known yet");
        ask(&mut carrier, T0, B4S[0], Way::Plain, 8080, 3600);
        let any = B4S[1].handle_packet(&udp_v4((HOST, 1), (PEER, 2), b"anything").to_bytes()).unwrap();
        carrier.handle_packet(T0, &any).unwrap();
        assert!(carrier.poll_packet().is_some_and(|packet| Ipv4::parse(&packet).is_ok()), "passed on");
        carrier.handle_timeout(Instant::from_millis(250));
        let all: Vec<Vec<u8>> = std::iter::from_fn(|| carrier.poll_packet()).collect();
        let is_announcement = |bytes: &[u8]| Response::parse(bytes).is_ok_and(|r| r.body == Body::Announce);
        let inside: Vec<Ipv4> = all
            .iter()
            .filter_map(|packet| Ipv4::parse(&B4S[1].handle_packet(packet).ok()?).ok())
            .filter(|packet| is_announcement(&packet.payload[8..]))
            .collect();
        // NAT-PMP's announcement goes the same way (N-13).
        assert_eq!(inside.len(), 1, "{all:?}");
        assert_eq!((inside[0].src, inside[0].dst), (AFTR_ADDRESS, ANNOUNCE_GROUP_V4));
        let outside: Vec<Ipv6> = all
            .iter()
            .map(|packet| Ipv6::parse(packet).unwrap())
            .filter(|packet| packet.next_header == UDP && is_announcement(&packet.payload[8..]))
            .collect();
        assert_eq!(outside.len(), 1, "{all:?}");
        assert_eq!((outside[0].src, outside[0].dst), (AFTR, B4S[0].own));
        let ports = Segment::parse(UDP, &outside[0].payload).unwrap().ports(End::Source);
        assert_eq!(ports, (SERVER_PORT, CLIENT_PORT));
    }

    /// What somebody else has set up is in the way of one port and of no other.
    #[test]
    fn bindings_of_the_start_stay() {
        let binding = crate::nat::read_binding(&format!("udp/{HOST}:80@{}={POOL}:8080", B4S[1].own)).unwrap();
        let plane = Aftr::new(AFTR, Nat::new(vec![POOL], None));
        let mut carrier = Carrier::new(T0, plane, ds_lite_server(vec![POOL]), vec![binding]).unwrap();
        assert_eq!(ask(&mut carrier, T0, B4S[0], Way::Plain, 8081, 3600), 8081);
        assert_eq!(knock(&mut carrier, T0, 8080), Some((B4S[1].own, SocketAddrV4::new(HOST, 80))));
    }
}
