//! A stateful NAT64 (RFC 6146): IPv6-only hosts on one side, IPv4 addresses on the other, the translation of RFC 7915 and a
//! NAT between them.

use std::net::{IpAddr, Ipv6Addr, SocketAddrV4};

use engine::provider::Inside;
use engine::time::Instant;
use wire::pcp::Protocol;

use crate::carrier::{DataPlane, Passed, to_server};
use crate::nat::Nat;
use crate::packet::protocol::{ICMP, ICMPV6};
use crate::packet::{
    End, Ipv4, Ipv6, Prefix64, Quoted, Refused, Segment, error_to_v4, error_to_v6, quoted_v4, quoted_v6,
    to_v4, to_v6,
};

/// See the module's description.
#[derive(Debug)]
pub struct Nat64 {
    address: Ipv6Addr,
    prefix: Prefix64,
    nat: Nat,
    /// The next identification of a packet that may be fragmented.
    id: u16,
}

impl Nat64 {
    /// With the address of its PCP server, the prefix of IPv4 hosts, and a table that knows the same prefix.
    #[must_use]
    pub fn new(address: Ipv6Addr, prefix: Prefix64, nat: Nat) -> Self {
        Self { address, prefix, nat, id: 0 }
    }

    /// Makes IPv4 of a packet, with its external address.
    fn translate(&mut self, now: Instant, packet: &Ipv6) -> Result<Ipv4, Refused> {
        let (protocol, at) = packet.upper()?;
        let segment = Segment::parse(protocol, &packet.payload[at..])?;
        let remote = self.prefix.extract(packet.dst).ok_or(Refused::Address)?;
        self.id = self.id.wrapping_add(1);
        if segment == Segment::Error {
            // About a packet that came in; its receiver is the host inside, whoever complains.
            let about = quoted_v6(packet)?;
            let (protocol, at) = about.packet.upper()?;
            let sender = self.prefix.extract(about.packet.src).ok_or(Refused::Address)?;
            let (port, far) = Segment::parse(protocol, &about.packet.payload[at..])?.ports(End::Destination);
            let own = (host(about.packet.dst), port);
            let external = self.nat.external(key(protocol)?, own, SocketAddrV4::new(sender, far));
            let external = external.ok_or(Refused::NoMapping)?;
            let mut quoted = to_v4(&about.packet, sender, *external.ip(), self.id)?;
            quoted.readdress(End::Destination, *external.ip(), external.port());
            let quoted = Quoted { packet: quoted, len: about.len.saturating_sub(at) };
            return error_to_v4(packet, *external.ip(), remote, &quoted);
        }
        if packet.lacks_checksum() {
            return Err(Refused::Malformed);
        }
        let (port, far) = segment.ports(End::Source);
        let (own, remote) = ((host(packet.src), port), SocketAddrV4::new(remote, far));
        let external = match segment {
            // The answer to an echo, and never a flow's beginning.
            Segment::EchoReply(_) => {
                self.nat.external(key(protocol)?, own, remote).ok_or(Refused::NoMapping)?
            }
            Segment::Other => return Err(Refused::Protocol),
            _ => self.nat.outbound(now, key(protocol)?, own, remote, segment.flags())?,
        };
        let mut translated = to_v4(packet, *external.ip(), *remote.ip(), self.id)?;
        translated.readdress(End::Source, *external.ip(), external.port());
        Ok(translated)
    }
}

fn host(addr: Ipv6Addr) -> Inside {
    Inside { softwire: None, addr: addr.into() }
}

/// The table knows the IPv4 side's protocols.
fn key(protocol: u8) -> Result<Protocol, Refused> {
    match protocol {
        ICMPV6 => Ok(Protocol(ICMP)),
        ICMP => Err(Refused::Protocol), // it means nothing in IPv6
        other => Ok(Protocol(other)),
    }
}

/// A binding may lead to what is no IPv6 host; there is no way there.
fn address_of(inside: Inside) -> Result<Ipv6Addr, Refused> {
    if let IpAddr::V6(addr) = inside.addr { Ok(addr) } else { Err(Refused::Address) }
}

impl DataPlane for Nat64 {
    fn outbound(&mut self, now: Instant, packet: &Ipv6) -> Result<Passed, Refused> {
        if packet.dst == self.address {
            return to_server(packet);
        }
        // RFC 6146 §3.5: what seems to come from an IPv4 host has been translated already.
        if self.prefix.extract(packet.src).is_some() {
            return Err(Refused::Address);
        }
        let translated = self.translate(now, packet)?;
        if self.nat.owns(translated.dst) {
            return self.inbound(now, translated);
        }
        Ok(Passed::Packet(translated.to_bytes()))
    }

    fn inbound(&mut self, now: Instant, packet: Ipv4) -> Result<Passed, Refused> {
        if packet.is_fragment() {
            return Err(Refused::Fragment);
        }
        let src = self.prefix.embed(packet.src);
        let segment = Segment::parse(packet.protocol, &packet.payload)?;
        if segment == Segment::Error {
            let about = quoted_v4(&packet)?;
            let (protocol, payload) = (about.packet.protocol, &about.packet.payload);
            let (port, far) = Segment::parse(protocol, payload)?.ports(End::Source);
            let external = SocketAddrV4::new(about.packet.src, port);
            let found =
                self.nat.inside(Protocol(protocol), external, SocketAddrV4::new(about.packet.dst, far));
            let (inside, port) = found.ok_or(Refused::NoMapping)?;
            let dst = address_of(inside)?;
            let mut quoted = to_v6(&about.packet, dst, self.prefix.embed(about.packet.dst))?;
            quoted.set_port(End::Source, port)?;
            let quoted = Quoted { packet: quoted, len: about.len };
            return Ok(Passed::Packet(error_to_v6(&packet, src, dst, &quoted)?.to_bytes()));
        }
        if segment == Segment::Other {
            return Err(Refused::Protocol);
        }
        let (port, far) = segment.ports(End::Destination);
        let (external, remote) = (SocketAddrV4::new(packet.dst, port), SocketAddrV4::new(packet.src, far));
        let protocol = Protocol(packet.protocol);
        let (inside, port) = self.nat.inbound(now, protocol, external, remote, segment.flags())?;
        let mut translated = to_v6(&packet, src, address_of(inside)?)?;
        if translated.lacks_checksum() {
            return Err(Refused::Malformed); // its lengths contradict each other, so it was given none
        }
        translated.set_port(End::Destination, port)?;
        Ok(Passed::Packet(translated.to_bytes()))
    }

    fn nat(&mut self) -> &mut Nat {
        &mut self.nat
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use engine::provider::{Arrival, Binding};
    use wire::pcp::SERVER_PORT;

    use crate::packet::protocol::UDP;
    use crate::packet::{Sum, udp_v4, udp_v6};

    const ADDRESS: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    const HOSTS: [Ipv6Addr; 2] =
        [Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2), Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 3)];
    const POOL: Ipv4Addr = Ipv4Addr::new(203, 0, 114, 1);
    const PEER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);
    const T0: Instant = Instant::from_secs(0);

    fn nat64() -> Nat64 {
        let prefix = Prefix64::WELL_KNOWN;
        Nat64::new(ADDRESS, prefix, Nat::new(vec![POOL], Some(prefix)))
    }

    fn v6(addr: Ipv4Addr) -> Ipv6Addr {
        Prefix64::WELL_KNOWN.embed(addr)
    }

    fn bind(nat64: &mut Nat64, host_addr: Ipv6Addr, internal_port: u16, external_port: u16) {
        let (inside, external) = (host(host_addr), (POOL, external_port).into());
        let protocol = Protocol(UDP);
        let binding =
            Binding { protocol, inside, internal_port, external, ports: 1, filters: Vec::new(), peer: None };
        nat64.nat.open(binding).unwrap();
    }

    fn pass(nat64: &mut Nat64, packet: &[u8]) -> Result<Vec<u8>, Refused> {
        match nat64.handle_packet(T0, packet)? {
            Passed::Packet(packet) => Ok(packet),
            Passed::Request(..) => panic!("a request"),
        }
    }

    fn send(nat64: &mut Nat64, packet: &Ipv6) -> Result<Ipv4, Refused> {
        Ok(Ipv4::parse(&pass(nat64, &packet.to_bytes())?).unwrap())
    }

    fn receive(nat64: &mut Nat64, packet: &Ipv4) -> Result<Ipv6, Refused> {
        Ok(Ipv6::parse(&pass(nat64, &packet.to_bytes())?).unwrap())
    }

    fn source_port(packet: &Ipv4) -> u16 {
        Segment::parse(packet.protocol, &packet.payload).unwrap().ports(End::Source).0
    }

    #[test]
    fn two_hosts_each_get_their_answers() {
        let mut nat64 = nat64();
        for addr in HOSTS {
            let sent = send(&mut nat64, &udp_v6((addr, 5000), (v6(PEER), 53), b"query")).unwrap();
            let port = source_port(&sent);
            let expected = udp_v4((POOL, port), (PEER, 53), b"query");
            assert_eq!((sent.src, sent.dst, sent.payload), (POOL, PEER, expected.payload), "{addr}");
            let answer = receive(&mut nat64, &udp_v4((PEER, 53), (POOL, port), b"answer"));
            assert_eq!(answer, Ok(udp_v6((v6(PEER), 53), (addr, 5000), b"answer")));
            let stranger = udp_v4((PEER, 54), (POOL, port), b"hello");
            assert_eq!(receive(&mut nat64, &stranger), Err(Refused::NoMapping));
        }
    }

    #[test]
    fn a_binding_leads_to_its_host() {
        let mut nat64 = nat64();
        bind(&mut nat64, HOSTS[0], 80, 8080);
        let got = receive(&mut nat64, &udp_v4((PEER, 9), (POOL, 8080), b"knock"));
        assert_eq!(got, Ok(udp_v6((v6(PEER), 9), (HOSTS[0], 80), b"knock")));
        let sent = send(&mut nat64, &udp_v6((HOSTS[0], 80), (v6(PEER), 9), b"who?")).unwrap();
        assert_eq!(sent.payload, udp_v4((POOL, 8080), (PEER, 9), b"who?").payload);
    }

    /// RFC 6146 §3.8.
    #[test]
    fn hosts_reach_each_other_by_their_external_addresses() {
        let mut nat64 = nat64();
        bind(&mut nat64, HOSTS[1], 80, 8080);
        let knock = udp_v6((HOSTS[0], 5000), (v6(POOL), 8080), b"knock");
        let got = Ipv6::parse(&pass(&mut nat64, &knock.to_bytes()).unwrap()).unwrap();
        let (port, _) = Segment::parse(UDP, &got.payload).unwrap().ports(End::Source);
        assert_eq!(got, udp_v6((v6(POOL), port), (HOSTS[1], 80), b"knock"));
        let answer = udp_v6((HOSTS[1], 80), (v6(POOL), port), b"who?");
        let got = Ipv6::parse(&pass(&mut nat64, &answer.to_bytes()).unwrap()).unwrap();
        assert_eq!(got, udp_v6((v6(POOL), 8080), (HOSTS[0], 5000), b"who?"));
    }

    fn echo_v6(kind: u8, src: Ipv6Addr, dst: Ipv6Addr, id: u16) -> Ipv6 {
        let [high, low] = id.to_be_bytes();
        let mut message = vec![kind, 0, 0, 0, high, low, 0, 1, 9];
        let sum = Sum::default().pseudo_v6(src, dst, ICMPV6, message.len()).octets(&message).checksum();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        Ipv6::new(src, dst, ICMPV6, message)
    }

    fn echo_v4(kind: u8, src: Ipv4Addr, dst: Ipv4Addr, id: u16) -> Ipv4 {
        let [high, low] = id.to_be_bytes();
        let mut message = vec![kind, 0, 0, 0, high, low, 0, 1, 9];
        let sum = Sum::default().octets(&message).checksum();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        Ipv4::new(src, dst, ICMP, message)
    }

    #[test]
    fn echoes_pass_and_are_answered() {
        let mut nat64 = nat64();
        for addr in HOSTS {
            let sent = send(&mut nat64, &echo_v6(128, addr, v6(PEER), 77)).unwrap();
            let Ok(Segment::EchoRequest(id)) = Segment::parse(ICMP, &sent.payload) else {
                panic!("{sent:?}")
            };
            assert_eq!(sent.payload, echo_v4(8, POOL, PEER, id).payload);
            let got = receive(&mut nat64, &echo_v4(0, PEER, POOL, id));
            assert_eq!(got, Ok(echo_v6(129, v6(PEER), addr, 77)));
        }
        let own = pass(&mut nat64, &echo_v6(128, HOSTS[0], ADDRESS, 5).to_bytes());
        assert_eq!(own, Ok(echo_v6(129, ADDRESS, HOSTS[0], 5).to_bytes()));
    }

    /// RFC 6146 §3.5.1.3 and its counterpart, with a router in between.
    #[test]
    fn errors_find_the_flows_that_they_are_about() {
        let mut nat64 = nat64();
        let query = udp_v6((HOSTS[0], 5000), (v6(PEER), 53), b"query");
        let sent = send(&mut nat64, &query).unwrap();
        let router = Ipv4Addr::new(198, 51, 100, 1);
        let mut message = [&[3, 1, 0, 0, 0, 0, 0, 0], &sent.to_bytes()[..28]].concat();
        let sum = Sum::default().octets(&message).checksum();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let got = receive(&mut nat64, &Ipv4::new(router, POOL, ICMP, message)).unwrap();
        assert_eq!((got.src, got.dst, got.payload[0], got.payload[1]), (v6(router), HOSTS[0], 1, 0));
        let about = quoted_v6(&got).unwrap();
        assert_eq!(
            (about.packet.to_bytes()[8..].to_vec(), about.len),
            (query.to_bytes()[8..48].to_vec(), 13)
        );

        bind(&mut nat64, HOSTS[1], 80, 8080);
        let knock = udp_v4((PEER, 9), (POOL, 8080), b"knock");
        let inside = receive(&mut nat64, &knock).unwrap();
        let mut message = [&[1, 4, 0, 0, 0, 0, 0, 0], &inside.to_bytes()[..]].concat();
        let sum =
            Sum::default().pseudo_v6(HOSTS[1], v6(PEER), ICMPV6, message.len()).octets(&message).checksum();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let sent = send(&mut nat64, &Ipv6::new(HOSTS[1], v6(PEER), ICMPV6, message)).unwrap();
        assert_eq!((sent.src, sent.dst, sent.payload[0], sent.payload[1]), (POOL, PEER, 3, 3));
        assert_eq!(quoted_v4(&sent).unwrap().packet.payload, knock.payload);
    }

    #[test]
    fn what_goes_no_further() {
        let mut nat64 = nat64();
        let rows = [
            (udp_v6((HOSTS[0], 1), (HOSTS[1], 2), b""), Refused::Address),
            (udp_v6((v6(PEER), 1), (v6(PEER), 2), b""), Refused::Address),
            (Ipv6::new(HOSTS[0], v6(PEER), 47, vec![0; 8]), Refused::Protocol),
            (Ipv6::new(HOSTS[0], v6(PEER), ICMP, vec![8; 8]), Refused::Protocol),
            (Ipv6::new(HOSTS[0], v6(PEER), 44, vec![17, 0, 0, 1, 0, 0, 0, 0]), Refused::Fragment),
            (echo_v6(129, HOSTS[0], v6(PEER), 1), Refused::NoMapping),
            (echo_v6(135, HOSTS[0], v6(PEER), 1), Refused::Protocol),
            (udp_v6((HOSTS[0], 1), (ADDRESS, 53), b""), Refused::Protocol),
        ];
        for (packet, expected) in rows {
            assert_eq!(pass(&mut nat64, &packet.to_bytes()), Err(expected), "{packet:?}");
        }
        let rows = [
            (udp_v4((PEER, 1), (POOL, 2), b""), Refused::NoMapping),
            (udp_v4((PEER, 1), (PEER, 2), b""), Refused::Address),
            (Ipv4 { fragmentation: 1, ..udp_v4((PEER, 1), (POOL, 2), b"") }, Refused::Fragment),
            (Ipv4::new(PEER, POOL, 47, vec![0; 8]), Refused::Protocol),
        ];
        for (packet, expected) in rows {
            assert_eq!(pass(&mut nat64, &packet.to_bytes()), Err(expected), "{packet:?}");
        }
    }

    /// RFC 8200 §8.1: UDP over IPv6 has a checksum; RFC 6146 §3.4 gives it one where it comes without.
    #[test]
    fn no_datagram_without_checksum_is_in_ipv6() {
        let mut nat64 = nat64();
        bind(&mut nat64, HOSTS[0], 80, 8080);
        for to in [(v6(PEER), 53), (ADDRESS, SERVER_PORT)] {
            let mut without = udp_v6((HOSTS[0], 5000), to, b"query");
            without.payload[6..8].copy_from_slice(&[0, 0]);
            assert_eq!(nat64.handle_packet(T0, &without.to_bytes()), Err(Refused::Malformed), "{to:?}");
        }
        assert_eq!(nat64.nat.flows(), 0);
        let mut without = udp_v4((PEER, 9), (POOL, 8080), b"knock");
        without.payload[6..8].copy_from_slice(&[0, 0]);
        let expected = udp_v6((v6(PEER), 9), (HOSTS[0], 80), b"knock");
        assert_eq!(receive(&mut nat64, &without), Ok(expected));
        for len in [7, 12, 14] {
            without.payload[5] = len; // it has 13 octets: there is no telling what was to be counted
            assert_eq!(receive(&mut nat64, &without), Err(Refused::Malformed), "{len}");
        }
    }

    #[test]
    fn requests_are_heard() {
        let mut nat64 = nat64();
        let request = udp_v6((HOSTS[0], 5350), (ADDRESS, SERVER_PORT), b"request").to_bytes();
        let arrival = Arrival {
            from: (HOSTS[0], 5350).into(),
            to: ADDRESS.into(),
            softwire: None,
            interface: 0,
            inside: true,
        };
        assert_eq!(nat64.handle_packet(T0, &request), Ok(Passed::Request(arrival, b"request".to_vec())));
        let answer = nat64.datagram((ADDRESS, SERVER_PORT).into(), arrival.from, None, b"answer");
        let expected = udp_v6((ADDRESS, SERVER_PORT), (HOSTS[0], 5350), b"answer").to_bytes();
        assert_eq!(answer, Some(expected));
    }
}
