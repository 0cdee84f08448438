//! What went over a wire: tcpdump's files, and the PCP in them.
//!
//! This reads octets on its own, without the `wire` crate: the witness must not share a mistake with the accused.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::netns::{Host, Network, Process};

/// A running tcpdump.
pub struct Capture {
    file: PathBuf,
    process: Process,
}

/// A UDP datagram, as captured.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Packet {
    /// Since the Unix epoch.
    pub at: Duration,
    /// Its sender.
    pub source: SocketAddr,
    /// Its receiver.
    pub destination: SocketAddr,
    /// The UDP payload.
    pub payload: Vec<u8>,
}

/// A PCP MAP message, request or response (RFC 6887 §7, §11.1).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MapMessage {
    /// Response, not request.
    pub response: bool,
    /// Result code; 0 in requests.
    pub result: u8,
    /// Requested or granted lifetime.
    pub lifetime: Duration,
    /// The PCP client's address; in requests only.
    pub client: Option<IpAddr>,
    /// Mapping nonce.
    pub nonce: [u8; 12],
    /// 6 TCP, 17 UDP.
    pub protocol: u8,
    /// Internal port.
    pub internal_port: u16,
    /// Suggested or assigned external port.
    pub external_port: u16,
    /// Suggested or assigned external address.
    pub external_address: Option<Ipv4Addr>,
    /// Codes and contents.
    pub options: Vec<(u8, Vec<u8>)>,
}

impl Capture {
    /// Starts to capture what `filter` (in tcpdump's language) selects on an interface; returns when tcpdump listens.
    #[track_caller]
    #[must_use]
    pub fn start(network: &Network, host: Host, interface: &str, filter: &str) -> Self {
        let name = format!("tcpdump-{host}-{interface}");
        let file = network.directory().join(format!("{name}.pcap"));
        // -U and immediate mode: each packet is in the file as soon as it was on the wire; -B, in KiB: none is missed in a
        // burst; -Z: no other user, the directory is ours.
        let arguments = ["-n", "-U", "--immediate-mode", "-B", "16384", "-Z", "root", "-i", interface, "-w"];
        let mut process = network.spawn(
            host,
            &name,
            "tcpdump",
            arguments.map(String::from).into_iter().chain([file.display().to_string(), filter.into()]),
        );
        process.await_log("listening on", Duration::from_secs(10));
        Self { file, process }
    }

    /// All datagrams so far.
    #[must_use]
    pub fn packets(&self) -> Vec<Packet> {
        packets(&fs::read(&self.file).unwrap_or_default())
    }

    /// All PCP MAP messages so far, with their datagrams.
    #[must_use]
    pub fn maps(&self) -> Vec<(Packet, MapMessage)> {
        self.packets()
            .into_iter()
            .filter_map(|packet| map_message(&packet.payload).map(|map| (packet, map)))
            .collect()
    }

    /// Ends tcpdump.
    pub fn stop(mut self) {
        self.process.terminate(Duration::from_secs(5));
    }
}

impl MapMessage {
    /// The content of an option, if it is there.
    #[must_use]
    pub fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.iter().find(|(own, _)| *own == code).map(|(_, content)| &content[..])
    }

    /// The internal address that a THIRD_PARTY option (code 1) names.
    #[must_use]
    pub fn third_party(&self) -> Option<Ipv4Addr> {
        self.option(1).and_then(|content| content.try_into().ok()).and_then(mapped)
    }
}

/// How many MAP requests were without an answer at the same time, at most. A request that was repeated counts once; one
/// that is never answered counts to the end.
#[must_use]
pub fn most_unanswered<'a>(maps: impl IntoIterator<Item = &'a MapMessage>) -> usize {
    let mut open = BTreeSet::new();
    let mut most = 0;
    for map in maps {
        let request = (map.nonce, map.protocol, map.internal_port, map.third_party());
        if map.response {
            open.remove(&request);
        } else {
            open.insert(request);
            most = most.max(open.len());
        }
    }
    most
}

/// Parses a pcap file of Ethernet frames, or of IP packets from a TUN device; a record that is still being written is left
/// out, and so is what isn't UDP over unfragmented IPv4, or over IPv6 without extension headers.
fn packets(file: &[u8]) -> Vec<Packet> {
    const MICROSECONDS: u32 = 0xa1b2_c3d4;
    const ETHERNET: u32 = 1;
    const IP: u32 = 101;
    let Some(header) = file.get(..24) else { return Vec::new() };
    assert_eq!(le32(header, 0), Some(MICROSECONDS), "a little-endian pcap file in microseconds");
    let link = le32(header, 20).expect("24 octets");
    assert!(matches!(link, ETHERNET | IP), "captured on an Ethernet-like interface or a TUN device");
    let mut rest = &file[24..];
    let mut packets = Vec::new();
    while let Some((seconds, micros, length)) = record(rest) {
        let Some(frame) = rest.get(16..16 + length) else { break };
        rest = &rest[16 + length..];
        let at = Duration::from_secs(seconds.into()) + Duration::from_micros(micros.into());
        let ip = if link == ETHERNET { ethernet(frame) } else { Some(frame) };
        packets.extend(ip.and_then(|ip| udp(at, ip)));
    }
    packets
}

fn record(rest: &[u8]) -> Option<(u32, u32, usize)> {
    Some((le32(rest, 0)?, le32(rest, 4)?, usize::try_from(le32(rest, 8)?).ok()?))
}

/// The IP packet in a frame.
fn ethernet(frame: &[u8]) -> Option<&[u8]> {
    const IPV4: u16 = 0x0800;
    const IPV6: u16 = 0x86dd;
    let kind = be16(frame, 12)?;
    frame.get(14..).filter(|_| matches!(kind, IPV4 | IPV6))
}

fn udp(at: Duration, ip: &[u8]) -> Option<Packet> {
    const UDP: u8 = 17;
    let (protocol, source, destination, header): (u8, IpAddr, IpAddr, usize) = if ip.first()? >> 4 == 4 {
        let fragment = be16(ip, 6)? & 0x3fff;
        let header = usize::from(ip.first()? & 15) * 4;
        (*ip.get(9).filter(|_| fragment == 0)?, ipv4(ip, 12)?.into(), ipv4(ip, 16)?.into(), header)
    } else {
        (*ip.get(6)?, ipv6(ip, 8)?.into(), ipv6(ip, 24)?.into(), 40)
    };
    let udp = ip.get(header..).filter(|_| protocol == UDP)?;
    Some(Packet {
        at,
        source: SocketAddr::new(source, be16(udp, 0)?),
        destination: SocketAddr::new(destination, be16(udp, 2)?),
        payload: udp.get(8..usize::from(be16(udp, 4)?))?.to_vec(),
    })
}

fn map_message(payload: &[u8]) -> Option<MapMessage> {
    const MAP: u8 = 1;
    let opcode = payload.get(1)?;
    if payload[0] != 2 || opcode & 0x7f != MAP || payload.len() < 60 {
        return None;
    }
    let response = opcode & 0x80 != 0;
    Some(MapMessage {
        response,
        result: if response { payload[3] } else { 0 },
        lifetime: Duration::from_secs(u32::from_be_bytes(payload[4..8].try_into().ok()?).into()),
        client: (!response)
            .then_some(Ipv6Addr::from(<[u8; 16]>::try_from(&payload[8..24]).ok()?).to_canonical()),
        nonce: payload[24..36].try_into().ok()?,
        protocol: payload[36],
        internal_port: be16(payload, 40)?,
        external_port: be16(payload, 42)?,
        external_address: mapped(payload[44..60].try_into().ok()?),
        options: options(&payload[60..]),
    })
}

fn options(mut rest: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut options = Vec::new();
    while let Some(length) = be16(rest, 2).map(usize::from) {
        let Some(content) = rest.get(4..4 + length) else { break };
        options.push((rest[0], content.to_vec()));
        rest = rest.get(4 + length.next_multiple_of(4)..).unwrap_or_default();
    }
    options
}

fn mapped(address: [u8; 16]) -> Option<Ipv4Addr> {
    Ipv6Addr::from(address).to_ipv4_mapped()
}

fn le32(octets: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(octets.get(at..at + 4)?.try_into().ok()?))
}

fn be16(octets: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(octets.get(at..at + 2)?.try_into().ok()?))
}

fn ipv4(octets: &[u8], at: usize) -> Option<Ipv4Addr> {
    Some(<[u8; 4]>::try_from(octets.get(at..at + 4)?).ok()?.into())
}

fn ipv6(octets: &[u8], at: usize) -> Option<Ipv6Addr> {
    Some(<[u8; 16]>::try_from(octets.get(at..at + 16)?).ok()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `spec/pcp.md` section 16: MAP request with PREFER_FAILURE, then the THIRD_PARTY option of the same section.
    const REQUEST: &str = "0201000000000e10000000000000 00000000ffffc000020a000102030405060708090a0b\
        060000001f901f9000000000000000000000ffff0000000002000000010000100000000000000000 0000ffff0a000005";

    fn octets(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    fn file(payload: &[u8]) -> Vec<u8> {
        let word = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
        let udp = [&word(40000)[..], &word(5351), &word(payload.len() + 8), &[0, 0], payload].concat();
        let ip = [
            &[0x45, 0][..],
            &word(udp.len() + 20),
            &[0, 0, 0x40, 0, 64, 17, 0, 0],
            &[100, 64, 0, 2],
            &[100, 64, 0, 1],
        ];
        let frame = [&[0; 12][..], &[8, 0], &ip.concat(), &udp].concat();
        let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
        let header = [&[0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0][..], &[0; 12], &[1, 0, 0, 0]].concat();
        [&header[..], &7_u32.to_le_bytes(), &5_u32.to_le_bytes(), &length, &length, &frame].concat()
    }

    #[test]
    fn a_captured_map_request_is_read() {
        let packets = packets(&file(&octets(REQUEST)));
        let [packet] = &packets[..] else { panic!("{packets:?}") };
        assert_eq!(packet.at, Duration::new(7, 5_000));
        assert_eq!(packet.source, "100.64.0.2:40000".parse().unwrap());
        assert_eq!(packet.destination, "100.64.0.1:5351".parse().unwrap());
        let map = map_message(&packet.payload).unwrap();
        assert_eq!(map.client, Some(Ipv4Addr::new(192, 0, 2, 10).into()));
        assert_eq!((map.protocol, map.internal_port, map.external_port), (6, 8080, 8080));
        assert_eq!(map.nonce, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(map.lifetime, Duration::from_secs(3600));
        assert_eq!(map.option(2), Some(&[][..]));
        assert_eq!(map.third_party(), Some(Ipv4Addr::new(10, 0, 0, 5)));
    }

    /// As a TUN device has them: no frame around the packet, of either version.
    #[test]
    fn packets_without_a_frame_are_read() {
        let ethernet = file(&octets(REQUEST));
        let (header, rest) = ethernet.split_at(24);
        let (record, frame) = rest.split_at(16);
        let udp = &frame[34..];
        let length = u16::try_from(udp.len()).unwrap().to_be_bytes();
        let addresses = ["2001:db8::2", "2001:db8::1"].map(|text| text.parse::<Ipv6Addr>().unwrap().octets());
        let v6 = [&[0x60, 0, 0, 0][..], &length, &[17, 64], &addresses.concat(), udp].concat();
        for (packet, source) in [(&frame[14..], "100.64.0.2:40000"), (&v6, "[2001:db8::2]:40000")] {
            let length = u32::try_from(packet.len()).unwrap().to_le_bytes();
            let file = [&header[..20], &[101, 0, 0, 0], &record[..8], &length, &length, packet].concat();
            let packets = packets(&file);
            assert_eq!(packets[0].source, source.parse().unwrap());
            assert_eq!(packets[0].payload, octets(REQUEST));
        }
    }

    #[test]
    fn requests_without_an_answer_are_counted_once_each() {
        let request = map_message(&octets(REQUEST)).unwrap();
        let other = MapMessage { internal_port: 8081, ..request.clone() };
        let answer = |to: &MapMessage| MapMessage { response: true, ..to.clone() };
        assert_eq!(most_unanswered([]), 0);
        assert_eq!(most_unanswered([&request, &request, &answer(&request), &other]), 1);
        assert_eq!(most_unanswered([&request, &other, &answer(&request), &request, &answer(&other)]), 2);
    }

    #[test]
    fn a_file_cut_anywhere_yields_what_is_whole() {
        let file = file(&octets(REQUEST));
        for length in 0..file.len() {
            assert_eq!(packets(&file[..length]), [], "{length}");
        }
    }
}
