//! Clients of PCP and NAT-PMP. Requests are `lab::pcp_load`'s, written without the `wire` crate; what is answered is read here the
//! same way, so that nobody's mistake is shared.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::player::Player;
use super::tally;
use crate::netns::{ROUTER_LAN, ROUTER_LAN_V6};
use crate::pcp_load::{self, ANNOUNCE, Dice, Wish};

/// The port of both protocols.
pub(super) const PORT: u16 = 5351;
/// A request is sent so often. The first answer is awaited for three seconds (RFC 6887 §8.1.1), later ones for longer.
const WAITS: [Duration; 3] = [Duration::from_secs(3), Duration::from_secs(4), Duration::from_secs(5)];
/// How many ports of each protocol a client has.
const PORTS: u64 = 12;

/// The result for what is somebody else's, in both protocols.
const NOT_AUTHORIZED: u8 = 2;

/// Whether an answer is one to this request.
type Belongs = dyn Fn(&[u8]) -> bool;

/// Sends it, again and again, until what comes belongs to it.
fn ask(from: IpAddr, request: &[u8], belongs: &Belongs) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind((from, 0))?;
    let router: IpAddr = if from.is_ipv4() { ROUTER_LAN.into() } else { ROUTER_LAN_V6.into() };
    socket.connect(SocketAddr::new(router, PORT))?;
    let mut buffer = [0; 1500];
    for wait in WAITS {
        let until = Instant::now() + wait;
        // A link that is down refuses to send; the next try may not.
        let _ = socket.send(request);
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            socket.set_read_timeout(Some(left))?;
            match socket.recv(&mut buffer) {
                Ok(length) if belongs(&buffer[..length]) => return Ok(buffer[..length].to_vec()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // ICMP's word on an earlier one.
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Counts it; any result but SUCCESS and those that `may` be is trouble.
fn result(player: &Player, kind: &str, since: Duration, answer: io::Result<Vec<u8>>, may: &[u8]) {
    match answer {
        Ok(answer) => {
            let code = answer.get(3).copied().unwrap_or(u8::MAX);
            player.tally.count(kind, &if code == 0 { "SUCCESS".to_owned() } else { code.to_string() });
            if code != 0 && !may.contains(&code) {
                player.tally.wrong(kind, since, &format!("result {code}"));
            }
        }
        Err(error) => {
            player.tally.silence(kind, since, &error.to_string());
        }
    }
}

/// MAP, the same deleted, and ANNOUNCE, over IPv4 and IPv6 (RFC 6887), until the end; then deletes all.
pub(super) fn client(player: &Player) {
    let mut dice = player.dice(3);
    while player.plays() {
        // One of three is a pinhole's.
        let from: IpAddr = if dice.roll(3) == 0 { player.host_v6.into() } else { player.host.into() };
        match dice.roll(8) {
            0 => announce(player, from),
            1..4 => map(player, from, &mut dice, 0),
            _ => {
                let lifetime = 5 + dice.roll(player.lease.into());
                map(player, from, &mut dice, u32::try_from(lifetime).unwrap_or(5));
            }
        }
        player.pause(&mut dice, 200);
    }
    for port in 0..PORTS {
        for protocol in [6, 17] {
            for from in [IpAddr::from(player.host), player.host_v6.into()] {
                delete(player, from, protocol, port);
            }
        }
    }
}

fn announce(player: &Player, from: IpAddr) {
    let since = tally::now();
    let answer = ask(from, &pcp_load::header(ANNOUNCE, 0, from), &|answer| {
        answer.len() >= 24 && answer[..2] == [2, 0x80 | ANNOUNCE]
    });
    result(player, "PCP ANNOUNCE", since, answer, &[]);
}

fn map(player: &Player, from: IpAddr, dice: &mut Dice, lifetime: u32) {
    let protocol = if dice.roll(2) == 0 { 6 } else { 17 };
    let port = dice.roll(PORTS);
    if lifetime == 0 {
        delete(player, from, protocol, port);
    } else {
        request(player, from, protocol, port, lifetime);
    }
}

fn delete(player: &Player, from: IpAddr, protocol: u8, port: u64) {
    request(player, from, protocol, port, 0);
}

fn request(player: &Player, from: IpAddr, protocol: u8, port: u64, lifetime: u32) {
    // Ports of their own for each host: nobody has them already at the provider.
    let host = u16::from(player.host.octets()[3]);
    let internal_port = 40_000 + host * 100 + u16::try_from(port).unwrap_or(0);
    let suggested = if lifetime == 0 { 0 } else { internal_port };
    let wish = Wish { protocol, internal_port, suggested, lifetime };
    let request = pcp_load::map(from, wish);
    let same = request[24..42].to_vec();
    let kind = match (lifetime, from.is_ipv4()) {
        (0, true) => "PCP MAP, delete",
        (0, false) => "PCP MAP over IPv6, delete",
        (_, true) => "PCP MAP",
        (_, false) => "PCP MAP over IPv6",
    };
    let since = tally::now();
    // Nonce, protocol and internal port (RFC 6887 §11.4).
    let answer = ask(from, &request, &move |answer| {
        answer.len() >= 60 && answer[..2] == [2, 0x80 | pcp_load::MAP] && answer[24..42] == same
    });
    // What NAT-PMP alone has mapped is not PCP's to delete.
    let may = if lifetime == 0 && port >= PORTS / 2 { &[NOT_AUTHORIZED][..] } else { &[] };
    result(player, kind, since, answer, may);
}

/// External address, mappings and their deletion (RFC 6886), until the end; then deletes all.
pub(super) fn nat_pmp_client(player: &Player) {
    let mut dice = player.dice(4);
    // Half of its ports are those of the PCP client beside it: their mappings have two claims.
    let first = 40_000 + u16::from(player.host.octets()[3]) * 100 + u16::try_from(PORTS / 2).unwrap_or(0);
    while player.plays() {
        let opcode = 1 + u8::try_from(dice.roll(2)).unwrap_or(0);
        let port = first + u16::try_from(dice.roll(PORTS)).unwrap_or(0);
        match dice.roll(6) {
            0 | 1 => external_address(player),
            2 | 3 => nat_pmp_map(player, opcode, port, 0),
            _ => {
                let lifetime = 5 + dice.roll(player.lease.into());
                nat_pmp_map(player, opcode, port, u32::try_from(lifetime).unwrap_or(5));
            }
        }
        player.pause(&mut dice, 400);
    }
    for opcode in [1, 2] {
        for port in first..first + u16::try_from(PORTS).unwrap_or(0) {
            nat_pmp_map(player, opcode, port, 0);
        }
    }
}

fn external_address(player: &Player) {
    let since = tally::now();
    let belongs = |answer: &[u8]| answer.len() >= 12 && answer[..2] == [0, 128];
    result(player, "NAT-PMP external address", since, ask(player.host.into(), &[0, 0], &belongs), &[]);
}

fn nat_pmp_map(player: &Player, opcode: u8, port: u16, lifetime: u32) {
    let port_octets = port.to_be_bytes();
    let suggested = if lifetime == 0 { [0, 0] } else { port_octets };
    let request = [&[0, opcode, 0, 0][..], &port_octets, &suggested, &lifetime.to_be_bytes()].concat();
    let since = tally::now();
    let belongs = move |answer: &[u8]| {
        answer.len() >= 16 && answer[..2] == [0, 128 + opcode] && answer[8..10] == port_octets
    };
    let kind = if lifetime == 0 { "NAT-PMP mapping, delete" } else { "NAT-PMP mapping" };
    // What PCP alone has mapped is not NAT-PMP's to delete.
    let may = if lifetime == 0 { &[NOT_AUTHORIZED][..] } else { &[] };
    result(player, kind, since, ask(player.host.into(), &request, &belongs), may);
}

/// Any address, for who needs one that is not a host's.
pub(super) const NOBODY: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 200);
