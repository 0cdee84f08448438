//! The carrier's end of DS-Lite (RFC 6333 §6): softwires on one side, IPv4 addresses on the other, a NAT between them.
//!
//! Who may have a softwire is the access network's business: whoever can send to the AFTR's address is a subscriber.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use engine::provider::{Arrival, Inside};
use engine::time::Instant;
use wire::pcp::{Protocol, SERVER_PORT};

use crate::carrier::{DataPlane, Passed, to_server};
use crate::nat::Nat;
use crate::packet::protocol::{ICMP, IPV4};
use crate::packet::{
    End, Ipv4, Ipv6, Refused, Segment, decapsulate, echo_reply_v4, encapsulate, quoted_v4, requote_v4,
};

/// The AFTR's IPv4 address inside each softwire (RFC 6333 §5.7).
pub const AFTR_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 1);

/// How many softwires are remembered, to be told of a new epoch.
const SOFTWIRES: usize = 4096;

/// See the module's description.
#[derive(Debug)]
pub struct Aftr {
    address: Ipv6Addr,
    nat: Nat,
    softwires: BTreeSet<Ipv6Addr>,
}

impl Aftr {
    /// With the address that softwires lead to.
    #[must_use]
    pub fn new(address: Ipv6Addr, nat: Nat) -> Self {
        Self { address, nat, softwires: BTreeSet::new() }
    }

    fn handle_inner(&mut self, now: Instant, b4: Ipv6Addr, inner: Ipv4) -> Result<Passed, Refused> {
        if inner.is_fragment() {
            return Err(Refused::Fragment);
        }
        let segment = Segment::parse(inner.protocol, &inner.payload)?;
        if inner.dst == AFTR_ADDRESS {
            return match segment {
                Segment::Udp(port, SERVER_PORT) => {
                    let from = SocketAddr::new(inner.src.into(), port);
                    let arrival = Arrival {
                        from,
                        to: inner.dst.into(),
                        softwire: Some(b4),
                        interface: 0,
                        inside: true,
                    };
                    Ok(Passed::Request(arrival, inner.udp_data()?.to_vec()))
                }
                Segment::EchoRequest(_) => {
                    Ok(Passed::Packet(encapsulate(self.address, b4, &echo_reply_v4(&inner)).to_bytes()))
                }
                _ => Err(Refused::Protocol),
            };
        }
        if matches!(inner.dst.octets(), [192, 0, 0, 0..8]) {
            return Err(Refused::Address); // 192.0.0.0/29 is the softwires' own (RFC 6333 §5.7)
        }
        let packet = self.translate(now, b4, inner, segment)?;
        if self.nat.owns(packet.dst) {
            return self.inbound(now, packet); // from one subscriber to another, or to itself
        }
        Ok(Passed::Packet(packet.to_bytes()))
    }

    /// Gives a packet from a softwire its external address.
    fn translate(
        &mut self,
        now: Instant,
        b4: Ipv6Addr,
        mut packet: Ipv4,
        segment: Segment,
    ) -> Result<Ipv4, Refused> {
        let host = |addr: Ipv4Addr| Inside { softwire: Some(b4), addr: addr.into() };
        if segment == Segment::Error {
            // About a packet that came in; its receiver is the host inside, whoever complains.
            let mut quoted = quoted_v4(&packet)?;
            let about = &quoted.packet;
            let (port, far) = Segment::parse(about.protocol, &about.payload)?.ports(End::Destination);
            let (own, remote) = ((host(about.dst), port), SocketAddrV4::new(about.src, far));
            let external =
                self.nat.external(Protocol(about.protocol), own, remote).ok_or(Refused::NoMapping)?;
            quoted.packet.readdress(End::Destination, *external.ip(), external.port());
            requote_v4(&mut packet, &quoted);
            packet.src = *external.ip();
            return Ok(packet);
        }
        let (protocol, (port, far)) = (Protocol(packet.protocol), segment.ports(End::Source));
        let (own, remote) = ((host(packet.src), port), SocketAddrV4::new(packet.dst, far));
        let external = match segment {
            // The answer to an echo, and never a flow's beginning.
            Segment::EchoReply(_) => self.nat.external(protocol, own, remote).ok_or(Refused::NoMapping)?,
            Segment::Other if packet.protocol == ICMP => return Err(Refused::Protocol),
            _ => self.nat.outbound(now, protocol, own, remote, segment.flags())?,
        };
        packet.readdress(End::Source, *external.ip(), external.port());
        Ok(packet)
    }
}

/// A binding may lead to what is no host of a softwire; there is no way there.
fn inner_address(inside: Inside) -> Result<Ipv4Addr, Refused> {
    if let IpAddr::V4(addr) = inside.addr { Ok(addr) } else { Err(Refused::Address) }
}

impl DataPlane for Aftr {
    fn outbound(&mut self, now: Instant, packet: &Ipv6) -> Result<Passed, Refused> {
        if packet.dst != self.address {
            return Err(Refused::Address);
        }
        if packet.upper()?.0 != IPV4 {
            return to_server(packet);
        }
        let inner = decapsulate(packet)?;
        if self.softwires.len() < SOFTWIRES {
            self.softwires.insert(packet.src);
        }
        self.handle_inner(now, packet.src, inner)
    }

    fn inbound(&mut self, now: Instant, mut packet: Ipv4) -> Result<Passed, Refused> {
        if packet.is_fragment() {
            return Err(Refused::Fragment);
        }
        let segment = Segment::parse(packet.protocol, &packet.payload)?;
        let inside = if segment == Segment::Error {
            let mut quoted = quoted_v4(&packet)?;
            let about = &quoted.packet;
            let (port, far) = Segment::parse(about.protocol, &about.payload)?.ports(End::Source);
            let (external, remote) = (SocketAddrV4::new(about.src, port), SocketAddrV4::new(about.dst, far));
            let (inside, port) =
                self.nat.inside(Protocol(about.protocol), external, remote).ok_or(Refused::NoMapping)?;
            quoted.packet.readdress(End::Source, inner_address(inside)?, port);
            requote_v4(&mut packet, &quoted);
            packet.dst = inner_address(inside)?;
            inside
        } else {
            let (port, far) = segment.ports(End::Destination);
            let (external, remote) =
                (SocketAddrV4::new(packet.dst, port), SocketAddrV4::new(packet.src, far));
            let protocol = Protocol(packet.protocol);
            let (inside, port) = self.nat.inbound(now, protocol, external, remote, segment.flags())?;
            packet.readdress(End::Destination, inner_address(inside)?, port);
            inside
        };
        let b4 = inside.softwire.ok_or(Refused::Address)?;
        Ok(Passed::Packet(encapsulate(self.address, b4, &packet).to_bytes()))
    }

    fn nat(&mut self) -> &mut Nat {
        &mut self.nat
    }

    fn encapsulate(&self, b4: Ipv6Addr, packet: &Ipv4) -> Option<Ipv6> {
        Some(encapsulate(self.address, b4, packet))
    }

    fn softwires(&self) -> impl Iterator<Item = (Ipv6Addr, IpAddr)> {
        self.softwires.iter().map(|&b4| (b4, IpAddr::V4(AFTR_ADDRESS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::provider::Binding;

    use crate::packet::protocol::{TCP, UDP};
    use crate::packet::{Sum, TcpFlags, udp_v4, udp_v6};

    const AFTR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    const B4S: [Ipv6Addr; 2] =
        [Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2), Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2)];
    const POOL: Ipv4Addr = Ipv4Addr::new(203, 0, 114, 1);
    const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 10);
    const PEER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);
    const T0: Instant = Instant::from_secs(0);

    fn aftr() -> Aftr {
        Aftr::new(AFTR, Nat::new(vec![POOL], None))
    }

    fn bind(aftr: &mut Aftr, b4: Ipv6Addr, internal_port: u16, external_port: u16) {
        let inside = Inside { softwire: Some(b4), addr: HOST.into() };
        let external = (POOL, external_port).into();
        let protocol = Protocol(UDP);
        let binding =
            Binding { protocol, inside, internal_port, external, ports: 1, filters: Vec::new(), peer: None };
        aftr.nat.open(binding).unwrap();
    }

    /// Into the softwire; what comes out on the IPv4 side, or in the other softwire.
    fn send(aftr: &mut Aftr, b4: Ipv6Addr, inner: &Ipv4) -> Result<Vec<u8>, Refused> {
        match aftr.handle_packet(T0, &encapsulate(b4, AFTR, inner).to_bytes())? {
            Passed::Packet(packet) => Ok(packet),
            Passed::Request(..) => panic!("a request"),
        }
    }

    /// From the Internet; the B4 and what it gets.
    fn receive(aftr: &mut Aftr, packet: &Ipv4) -> Result<(Ipv6Addr, Ipv4), Refused> {
        match aftr.handle_packet(T0, &packet.to_bytes())? {
            Passed::Packet(packet) => Ok(unwrap(&packet)),
            Passed::Request(..) => panic!("a request"),
        }
    }

    fn unwrap(packet: &[u8]) -> (Ipv6Addr, Ipv4) {
        let outer = Ipv6::parse(packet).unwrap();
        assert_eq!(outer.src, AFTR);
        (outer.dst, decapsulate(&outer).unwrap())
    }

    /// RFC 6333 §6.6, appendix B.1.
    #[test]
    fn two_subscribers_with_the_same_addresses_each_get_their_answers() {
        let mut aftr = aftr();
        let ports = B4S.map(|b4| {
            let sent = send(&mut aftr, b4, &udp_v4((HOST, 5000), (PEER, 53), b"query")).unwrap();
            let sent = Ipv4::parse(&sent).unwrap();
            let Ok(Segment::Udp(port, 53)) = Segment::parse(UDP, &sent.payload) else { panic!("{sent:?}") };
            assert_eq!(sent, udp_v4((POOL, port), (PEER, 53), b"query"), "with the right checksum");
            port
        });
        assert_ne!(ports[0], ports[1]);
        for (b4, port) in B4S.into_iter().zip(ports) {
            let answer = receive(&mut aftr, &udp_v4((PEER, 53), (POOL, port), b"answer"));
            assert_eq!(answer, Ok((b4, udp_v4((PEER, 53), (HOST, 5000), b"answer"))));
        }
        let stranger = receive(&mut aftr, &udp_v4((PEER, 54), (POOL, ports[0]), b"hello"));
        assert_eq!(stranger, Err(Refused::NoMapping));
    }

    #[test]
    fn a_binding_leads_into_its_softwire() {
        let mut aftr = aftr();
        bind(&mut aftr, B4S[0], 80, 8080);
        bind(&mut aftr, B4S[1], 80, 8081);
        for (b4, port) in B4S.into_iter().zip([8080, 8081]) {
            let got = receive(&mut aftr, &udp_v4((PEER, 9), (POOL, port), b"knock"));
            assert_eq!(got, Ok((b4, udp_v4((PEER, 9), (HOST, 80), b"knock"))));
            let sent = send(&mut aftr, b4, &udp_v4((HOST, 80), (PEER, 9), b"who?")).unwrap();
            assert_eq!(sent, udp_v4((POOL, port), (PEER, 9), b"who?").to_bytes());
        }
    }

    /// RFC 4787 REQ-9 (external source), RFC 6888 REQ-1: between two subscribers whose hosts have one address.
    #[test]
    fn subscribers_reach_each_other_by_their_external_addresses() {
        let mut aftr = aftr();
        bind(&mut aftr, B4S[1], 80, 8080);
        for b4 in B4S {
            let sent = send(&mut aftr, b4, &udp_v4((HOST, 5000), (POOL, 8080), b"knock")).unwrap();
            let (to, got) = unwrap(&sent);
            let Ok(Segment::Udp(port, 80)) = Segment::parse(UDP, &got.payload) else { panic!("{got:?}") };
            assert_eq!((to, &got), (B4S[1], &udp_v4((POOL, port), (HOST, 80), b"knock")));
            let answer = send(&mut aftr, B4S[1], &udp_v4((HOST, 80), (POOL, port), b"who?")).unwrap();
            assert_eq!(unwrap(&answer), (b4, udp_v4((POOL, 8080), (HOST, 5000), b"who?")));
        }
    }

    fn echo(kind: u8, src: Ipv4Addr, dst: Ipv4Addr, id: u16) -> Ipv4 {
        let [high, low] = id.to_be_bytes();
        let mut message = vec![kind, 0, 0, 0, high, low, 0, 1, 1, 2, 3, 4];
        let checksum = Sum::default().octets(&message).checksum();
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        Ipv4::new(src, dst, ICMP, message)
    }

    /// RFC 5508 REQ-1.
    #[test]
    fn echoes_are_told_apart_by_their_identifiers() {
        let mut aftr = aftr();
        for b4 in B4S {
            let sent = Ipv4::parse(&send(&mut aftr, b4, &echo(8, HOST, PEER, 77)).unwrap()).unwrap();
            let Ok(Segment::EchoRequest(id)) = Segment::parse(ICMP, &sent.payload) else {
                panic!("{sent:?}")
            };
            assert_eq!(sent, echo(8, POOL, PEER, id));
            let got = receive(&mut aftr, &echo(0, PEER, POOL, id));
            assert_eq!(got, Ok((b4, echo(0, PEER, HOST, 77))));
        }
        assert_eq!(receive(&mut aftr, &echo(0, PEER, POOL, 77)), Err(Refused::NoMapping));
        assert_eq!(receive(&mut aftr, &echo(8, PEER, POOL, 77)), Err(Refused::NoMapping));
        assert_eq!(send(&mut aftr, B4S[0], &echo(0, HOST, PEER, 78)), Err(Refused::NoMapping));
    }

    fn error(src: Ipv4Addr, about: &Ipv4) -> Ipv4 {
        let message = [&[3, 3, 0, 0, 0, 0, 0, 0], &about.to_bytes()[..28]].concat();
        let mut error = Ipv4::new(src, about.src, ICMP, message);
        let checksum = Sum::default().octets(&error.payload).checksum();
        error.payload[2..4].copy_from_slice(&checksum.to_be_bytes());
        error
    }

    /// RFC 5508 REQ-4, REQ-5, REQ-6; RFC 6887 §11.3 asks it for explicit mappings.
    #[test]
    fn errors_find_the_flows_that_they_are_about() {
        let mut aftr = aftr();
        // About what went out, from a router on the way.
        let query = udp_v4((HOST, 5000), (PEER, 53), b"query");
        let sent = Ipv4::parse(&send(&mut aftr, B4S[0], &query).unwrap()).unwrap();
        let router = Ipv4Addr::new(198, 51, 100, 1);
        let got = receive(&mut aftr, &error(router, &sent));
        assert_eq!(got, Ok((B4S[0], error(router, &query))));
        let unknown = udp_v4((POOL, 9), (PEER, 53), b"query");
        assert_eq!(receive(&mut aftr, &error(router, &unknown)), Err(Refused::NoMapping));
        // About what came in, from the host or from its router.
        bind(&mut aftr, B4S[1], 80, 8080);
        let knock = udp_v4((PEER, 9), (POOL, 8080), b"knock");
        let (_, inside) = receive(&mut aftr, &knock).unwrap();
        for complainer in [HOST, Ipv4Addr::new(192, 168, 77, 1)] {
            let sent = send(&mut aftr, B4S[1], &error(complainer, &inside)).unwrap();
            assert_eq!(Ipv4::parse(&sent), Ok(error(POOL, &knock)));
        }
        assert_eq!(send(&mut aftr, B4S[0], &error(HOST, &inside)), Err(Refused::NoMapping));
        // About what another subscriber sent.
        let sent = send(&mut aftr, B4S[0], &udp_v4((HOST, 5001), (POOL, 8080), b"knock")).unwrap();
        let (_, inside) = unwrap(&sent);
        let (to, got) = unwrap(&send(&mut aftr, B4S[1], &error(HOST, &inside)).unwrap());
        assert_eq!(to, B4S[0]);
        assert_eq!(got, error(POOL, &udp_v4((HOST, 5001), (POOL, 8080), b"knock")));
    }

    #[test]
    fn requests_are_heard_in_the_softwire_and_outside_of_it() {
        let mut aftr = aftr();
        let b4 = B4S[0];
        let inner = udp_v4((HOST, 5350), (AFTR_ADDRESS, SERVER_PORT), b"request");
        let heard = aftr.handle_packet(T0, &encapsulate(b4, AFTR, &inner).to_bytes());
        let from: SocketAddr = (HOST, 5350).into();
        let arrival =
            Arrival { from, to: AFTR_ADDRESS.into(), softwire: Some(b4), interface: 0, inside: true };
        assert_eq!(heard, Ok(Passed::Request(arrival, b"request".to_vec())));
        let answer = aftr.datagram((AFTR_ADDRESS, SERVER_PORT).into(), from, Some(b4), b"answer").unwrap();
        assert_eq!(unwrap(&answer), (b4, udp_v4((AFTR_ADDRESS, SERVER_PORT), (HOST, 5350), b"answer")));

        let heard = aftr.handle_packet(T0, &udp_v6((b4, 5350), (AFTR, SERVER_PORT), b"request").to_bytes());
        let from: SocketAddr = (b4, 5350).into();
        let arrival = Arrival { from, to: AFTR.into(), softwire: None, interface: 0, inside: true };
        assert_eq!(heard, Ok(Passed::Request(arrival, b"request".to_vec())));
        let answer = aftr.datagram((AFTR, SERVER_PORT).into(), from, None, b"answer");
        assert_eq!(answer, Some(udp_v6((AFTR, SERVER_PORT), (b4, 5350), b"answer").to_bytes()));
        let outside = udp_v4((PEER, 5350), (POOL, SERVER_PORT), b"request");
        assert_eq!(receive(&mut aftr, &outside), Err(Refused::NoMapping));
    }

    #[test]
    fn the_aftr_answers_echoes_itself() {
        let mut aftr = aftr();
        let reply = send(&mut aftr, B4S[0], &echo(8, HOST, AFTR_ADDRESS, 7)).unwrap();
        assert_eq!(unwrap(&reply), (B4S[0], echo(0, AFTR_ADDRESS, HOST, 7)));
    }

    #[test]
    fn what_goes_no_further() {
        let mut aftr = aftr();
        let datagram = udp_v4((HOST, 5000), (PEER, 53), b"query");
        let rows = [
            (Ipv4 { fragmentation: 0x2000, ..datagram.clone() }, Refused::Fragment),
            (Ipv4 { protocol: 47, ..datagram.clone() }, Refused::Protocol),
            (echo(5, HOST, PEER, 1), Refused::Protocol),
            (Ipv4::new(HOST, PEER, TCP, vec![0; 20]), Refused::NoMapping),
            (Ipv4::new(HOST, PEER, TCP, vec![0; 7]), Refused::Malformed),
            (udp_v4((HOST, 1), (AFTR_ADDRESS, 53), b"query"), Refused::Protocol),
        ];
        // RFC 6333 §5.7: the rest of the softwire's own addresses.
        let softwires = [0, 2, 3, 4, 5, 6, 7].map(|last| {
            (udp_v4((HOST, 1), (Ipv4Addr::new(192, 0, 0, last), 53), b"query"), Refused::Address)
        });
        for (packet, expected) in rows.into_iter().chain(softwires) {
            assert_eq!(send(&mut aftr, B4S[0], &packet), Err(expected), "{packet:?}");
        }
        let outer = encapsulate(B4S[0], B4S[1], &datagram);
        assert_eq!(aftr.handle_packet(T0, &outer.to_bytes()), Err(Refused::Address));
        assert_eq!(aftr.handle_packet(T0, &datagram.to_bytes()), Err(Refused::Address));
        assert_eq!(Segment::Other.flags(), TcpFlags::default());
        // What is next to them is none of theirs.
        let beside = udp_v4((HOST, 1), (Ipv4Addr::new(192, 0, 0, 8), 53), b"query");
        assert!(send(&mut aftr, B4S[0], &beside).is_ok());
    }
}
