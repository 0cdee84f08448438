//! The matches and targets of iptables as iptables-nft and ufw write them into nf_tables: the kernel's own structures, as far
//! as rules of a firewall need them. What is not known is said to be so.

use super::walk::{Matches, Packet};

/// What a target does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Target {
    GoesOn,
    Rejects,
    Masquerades,
    Unknown,
}

/// By a target's name.
pub(crate) fn target(name: &str) -> Target {
    match name {
        "LOG" | "NFLOG" | "ULOG" | "MARK" | "CONNMARK" | "TCPMSS" | "SET" | "CT" | "CHECKSUM"
        | "CLASSIFY" | "TRACE" | "DSCP" | "TOS" | "TTL" | "SECMARK" | "CONNSECMARK" | "AUDIT" => {
            Target::GoesOn
        }
        "MASQUERADE" | "SNAT" | "NETMAP" => Target::Masquerades,
        "REJECT" => Target::Rejects,
        _ => Target::Unknown,
    }
}

/// Whether the target of this name sets marks.
pub(crate) fn sets_marks(name: &str) -> bool {
    matches!(name, "MARK" | "CONNMARK" | "SET")
}

/// Whether the match of this name asks for a mark.
pub(crate) fn asks_for_marks(name: &str) -> bool {
    matches!(name, "mark" | "connmark")
}

/// Whether `packet` is what a match asks for.
pub(crate) fn matches(name: &str, revision: u32, info: &[u8], packet: &Packet) -> Matches {
    match name {
        // The first packets of a rate, and remarks.
        "comment" | "limit" => Some(Matches::Yes),
        "hashlimit" => hashlimit(revision, info),
        "icmp" | "icmp6" | "sctp" | "esp" | "ah" => Some(Matches::No),
        "state" => number(info, 0).map(|mask| Matches::from(state(packet) & mask != 0)),
        "conntrack" => conntrack(revision, info, packet),
        "tcp" => tcp(info, packet),
        "udp" => udp(info, packet),
        "multiport" if revision == 1 => multiport(info, packet),
        "addrtype" if revision == 1 => addrtype(info, packet),
        "pkttype" => pkttype(info, packet),
        "mark" => mark(info, packet.mark),
        "connmark" => mark(info, 0),
        // Only what passes between two ports of one bridge has any.
        "physdev" => Some(Matches::No),
        _ => None,
    }
    .unwrap_or(Matches::Maybe)
}

fn short(info: &[u8], at: usize) -> Option<u16> {
    let octets = info.get(at..at + 2)?;
    Some(u16::from_ne_bytes([octets[0], octets[1]]))
}

fn number(info: &[u8], at: usize) -> Option<u32> {
    let octets = info.get(at..at + 4)?;
    Some(u32::from_ne_bytes([octets[0], octets[1], octets[2], octets[3]]))
}

/// `struct xt_hashlimit_mtinfo1` to `3`: what exceeds a rate is not typical; what is below one of many may be.
fn hashlimit(revision: u32, info: &[u8]) -> Option<Matches> {
    const INVERT: u32 = 1 << 4;
    let mode = match revision {
        1 => number(info, 16)?,
        2 | 3 => number(info, 272)?,
        _ => return None,
    };
    Some(if mode & INVERT != 0 { Matches::No } else { Matches::Maybe })
}

/// `XT_CONNTRACK_STATE_BIT`, which has other places for translated ones than nf_tables.
fn state(packet: &Packet) -> u32 {
    const DNAT: u32 = 1 << 7;
    packet.state() | if packet.translated { DNAT } else { 0 }
}

/// `struct xt_conntrack_mtinfo1` to `3`: eight addresses, two times, then ports, flags and masks.
fn conntrack(revision: u32, info: &[u8], packet: &Packet) -> Option<Matches> {
    const STATE: u16 = 1 << 0;
    const STATUS: u16 = 1 << 6;
    let (flags, inverted) = (short(info, 146)?, short(info, 148)?);
    let (states, statuses) = match revision {
        1 => (u16::from(*info.get(150)?), u16::from(*info.get(151)?)),
        _ => (short(info, 150)?, short(info, 152)?),
    };
    let mut all = Matches::Yes;
    if flags & STATE != 0 {
        let found = state(packet) & u32::from(states) != 0;
        if found == (inverted & STATE != 0) {
            return Some(Matches::No);
        }
    }
    if flags & STATUS != 0 {
        let found = packet.status() & u32::from(statuses) != 0;
        if found == (inverted & STATUS != 0) {
            return Some(Matches::No);
        }
    }
    if flags & !(STATE | STATUS) != 0 {
        all = Matches::Maybe;
    }
    Some(all)
}

fn within(port: u16, first: u16, last: u16, inverted: bool) -> bool {
    (first..=last).contains(&port) != inverted
}

/// `struct xt_tcp`.
fn tcp(info: &[u8], packet: &Packet) -> Option<Matches> {
    let inverted = *info.get(11)?;
    let (option, mask, flags) = (*info.get(8)?, *info.get(9)?, *info.get(10)?);
    let ports = within(packet.source_port, short(info, 0)?, short(info, 2)?, inverted & 1 != 0)
        && within(packet.destination_port, short(info, 4)?, short(info, 6)?, inverted & 2 != 0);
    let flags = (packet.tcp_flags() & mask == flags) != (inverted & 4 != 0);
    let unknown = option != 0;
    Some(match packet.protocol == 6 && ports && flags {
        true if unknown => Matches::Maybe,
        all => all.into(),
    })
}

/// `struct xt_udp`.
fn udp(info: &[u8], packet: &Packet) -> Option<Matches> {
    let inverted = *info.get(8)?;
    let ports = within(packet.source_port, short(info, 0)?, short(info, 2)?, inverted & 1 != 0)
        && within(packet.destination_port, short(info, 4)?, short(info, 6)?, inverted & 2 != 0);
    Some((packet.protocol == 17 && ports).into())
}

/// `struct xt_multiport_v1`.
fn multiport(info: &[u8], packet: &Packet) -> Option<Matches> {
    let (of, count) = (*info.first()?, usize::from(*info.get(1)?));
    let inverted = *info.get(47)? != 0;
    let is_one = |port: u16| -> Option<bool> {
        let mut n = 0;
        while n < count.min(15) {
            let first = short(info, 2 + 2 * n)?;
            let ranges = *info.get(32 + n)? != 0;
            let last = if ranges { short(info, 4 + 2 * n)? } else { first };
            if (first..=last).contains(&port) {
                return Some(true);
            }
            n += if ranges { 2 } else { 1 };
        }
        Some(false)
    };
    let (source, destination) = (is_one(packet.source_port)?, is_one(packet.destination_port)?);
    let found = match of {
        0 => source,
        1 => destination,
        _ => source || destination,
    };
    Some((found != inverted).into())
}

/// `struct xt_addrtype_info_v1`.
fn addrtype(info: &[u8], packet: &Packet) -> Option<Matches> {
    let (source, destination, flags) = (short(info, 0)?, short(info, 2)?, number(info, 4)?);
    let kind = match packet.destination_kind() {
        5 => 1 << 5,
        2 => 1 << 2,
        _ => 1 << 1,
    };
    let of_source = source == 0 || (source & 1 << 1 != 0) != (flags & 1 != 0);
    let of_destination = destination == 0 || (destination & kind != 0) != (flags & 2 != 0);
    Some((of_source && of_destination).into())
}

/// `struct xt_pkttype_info`.
fn pkttype(info: &[u8], packet: &Packet) -> Option<Matches> {
    let own = if packet.destination.is_multicast() { 2 } else { 0 };
    Some(((number(info, 0)? == own) != (number(info, 4)? != 0)).into())
}

/// `struct xt_mark_mtinfo1`, `struct xt_connmark_mtinfo1`: mark and mask, where nobody else sets any.
fn mark(info: &[u8], mark: u32) -> Option<Matches> {
    let inverted = *info.get(8)? != 0;
    Some(((mark & number(info, 4)? == number(info, 0)?) != inverted).into())
}

/// What a match for a mark says where others set marks, too, if it asks for our bits alone.
pub(crate) fn known_mark(name: &str, info: &[u8], packet: &Packet) -> Option<Matches> {
    let asked = number(info, 4)?;
    let ours = name == "mark" && packet.mark != 0 && asked & !packet.mark == 0;
    if ours { mark(info, packet.mark) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::walk::FORWARD;

    fn packet(established: bool, translated: bool) -> Packet {
        Packet {
            hook: FORWARD,
            arrives: ("wan0".to_owned(), 2),
            leaves: Some(("br-lan".to_owned(), 3)),
            source: [198, 51, 100, 20].into(),
            destination: [192, 168, 77, 10].into(),
            protocol: 6,
            source_port: 50_000,
            destination_port: 8080,
            established,
            translated,
            mark: 0,
        }
    }

    fn conntrack_info(states: u16) -> Vec<u8> {
        let mut info = vec![0; 164];
        info[146..148].copy_from_slice(&1_u16.to_ne_bytes());
        info[150..152].copy_from_slice(&states.to_ne_bytes());
        info
    }

    #[test]
    fn states_as_xtables_counts_them() {
        let dnat = conntrack_info(1 << 7);
        let established = conntrack_info(1 << 1 | 1 << 2);
        for (info, packet, expected) in [
            (&dnat, packet(false, true), Matches::Yes),
            (&dnat, packet(false, false), Matches::No),
            (&established, packet(true, false), Matches::Yes),
            (&established, packet(false, true), Matches::No),
        ] {
            assert_eq!(matches("conntrack", 3, info, &packet), expected);
        }
        assert_eq!(matches("conntrack", 3, &dnat[..100], &packet(false, true)), Matches::Maybe);
    }

    #[test]
    fn what_exceeds_a_rate() {
        for (revision, at) in [(1, 16), (2, 272), (3, 272)] {
            let mut info = vec![0; 320];
            assert_eq!(matches("hashlimit", revision, &info, &packet(false, true)), Matches::Maybe);
            info[at..at + 4].copy_from_slice(&0x11_u32.to_ne_bytes());
            assert_eq!(matches("hashlimit", revision, &info, &packet(false, true)), Matches::No);
        }
        assert_eq!(matches("hashlimit", 0, &[0xff; 320], &packet(false, true)), Matches::Maybe);
    }

    #[test]
    fn ports_and_what_is_not_known() {
        let mut tcp = Vec::new();
        for port in [0, 65_535, 8000, 8100_u16] {
            tcp.extend(port.to_ne_bytes());
        }
        tcp.extend([0; 4]);
        assert_eq!(matches("tcp", 0, &tcp, &packet(false, true)), Matches::Yes);
        tcp[11] = 2;
        assert_eq!(matches("tcp", 0, &tcp, &packet(false, true)), Matches::No);
        assert_eq!(matches("recent", 0, &[], &packet(false, true)), Matches::Maybe);
        assert_eq!(target("REJECT"), Target::Rejects);
        assert_eq!(target("IDLETIMER"), Target::Unknown);
    }
}
