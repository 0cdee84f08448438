//! Datagrams to port 5351 of the LAN side (`docs/spec/pcp.md` 7, `docs/spec/nat-pmp.md` 2).

use std::net::{Ipv4Addr, SocketAddr};

use lab::netns::{Host, INTERNET, LAN1, LAN2, OTHER, ROUTER_LAN, ROUTER_WAN};
use wire::pcp::{Body, MapData, Nonce, PcpOption, Protocol, Request, mapped};

use crate::common::SECOND;
use crate::scene::{OFF_LINK, Scene};
use crate::udp::{QUIET, asks, at, hears, raw, spoof};
use crate::{Row, row};

const REFUSED: &str = "/lan_requests/refused";
const IGNORED: &str = "/lan_requests/ignored";

fn server() -> SocketAddr {
    (ROUTER_LAN, 5351).into()
}

/// MAP of TCP 4444 by the first LAN host.
fn map(lifetime: u32) -> Request {
    let data = MapData {
        nonce: Nonce([7; 12]),
        protocol: Protocol::TCP,
        internal_port: 4444,
        external_port: 4444,
        external_addr: mapped(Ipv4Addr::UNSPECIFIED),
    };
    Request { lifetime, client_addr: mapped(LAN1), body: Body::Map(data), options: Vec::new() }
}

/// Version and result of an answer.
fn in_words(answer: Option<Vec<u8>>) -> String {
    match answer.as_deref() {
        None => "silence".to_owned(),
        Some([0, _, 0, result, ..]) => format!("NAT-PMP, result {result}"),
        Some([2, _, _, result, ..]) => format!("PCP, result {result}"),
        Some(other) => format!("{} octets of something else", other.len()),
    }
}

fn asked(name: &'static str, sent: &'static str, answer: &'static str, datagram: impl Into<Vec<u8>>) -> Row {
    let datagram = datagram.into();
    let (silent, counter) = (answer == "silence", if answer == "silence" { IGNORED } else { REFUSED });
    let patience = if silent { QUIET } else { 4 * SECOND };
    row(name, sent, answer, counter, move |scene| {
        in_words(scene.network.inside(Host::Lan1, || asks(LAN1, server(), &datagram, patience)))
    })
}

/// MAP, octets of it changed.
fn changed(
    name: &'static str,
    sent: &'static str,
    answer: &'static str,
    change: impl FnOnce(&mut Vec<u8>),
) -> Row {
    let mut datagram = map(3600).to_bytes();
    change(&mut datagram);
    asked(name, sent, answer, datagram)
}

fn option(code: u8, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).expect("short").to_be_bytes();
    let mut option = vec![code, 0, length[0], length[1]];
    option.extend(data);
    option.resize(option.len().next_multiple_of(4), 0);
    option
}

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = malformed();
    rows.extend(nat_pmp());
    rows.extend(elsewhere());
    rows
}

fn malformed() -> Vec<Row> {
    let third_party =
        |addr| Request { options: vec![PcpOption::ThirdParty(mapped(addr))], ..map(3600) }.to_bytes();
    vec![
        asked("PCP: an empty datagram", "0 octets", "silence", []),
        asked("PCP: one octet", "`02`", "silence", [2]),
        changed("PCP: a response", "R set", "silence", |map| map[1] |= 0x80),
        changed("PCP: version 255", "version 255", "PCP, result 1", |map| map[0] = 255),
        changed("PCP: version 1", "version 1", "PCP, result 1", |map| map[0] = 1),
        changed("PCP: a header cut short", "23 octets", "silence", |map| map.truncate(23)),
        changed("PCP: data cut short", "MAP of 56 octets", "PCP, result 3", |map| map.truncate(56)),
        changed("PCP: no multiple of four", "62 octets", "PCP, result 3", |map| map.extend([0, 0])),
        changed("PCP: too long", "1101 octets", "PCP, result 3", |map| map.resize(1101, 0)),
        changed("PCP: much too long", "2000 octets", "PCP, result 3", |map| map.resize(2000, 0)),
        changed("PCP: a foreign client address", "that of another host", "PCP, result 12", |map| {
            map[8..24].copy_from_slice(&mapped(LAN2).octets());
        }),
        changed("PCP: an unknown opcode", "opcode 95", "PCP, result 4", |map| map[1] = 95),
        changed("PCP: an unknown mandatory option", "option 100", "PCP, result 5", |map| {
            map.extend(option(100, &[]));
        }),
        changed("PCP: an option that goes beyond the end", "it says 1000 octets", "PCP, result 6", |map| {
            map.extend([3, 0, 3, 232]);
        }),
        changed(
            "PCP: an option cut within its header",
            "4 octets, 2 of them a length that is not there",
            "PCP, result 6",
            |map| {
                map.extend([1, 0, 0, 16]);
            },
        ),
        changed("PCP: PREFER_FAILURE with data", "4 octets of it", "PCP, result 6", |map| {
            map.extend(option(2, &[0; 4]));
        }),
        changed("PCP: PREFER_FAILURE twice", "the same option again", "PCP, result 6", |map| {
            map.extend(option(2, &[]));
            map.extend(option(2, &[]));
        }),
        changed("PCP: FILTER of a longer prefix than there is", "129", "PCP, result 6", |map| {
            map.extend(option(3, &[&[0, 129, 0, 0][..], &[0; 16]].concat()));
        }),
        asked("PCP: THIRD_PARTY for another host", "192.168.77.11", "PCP, result 5", third_party(LAN2)),
        asked(
            "PCP: THIRD_PARTY for the Internet (UPnProxy)",
            "198.51.100.20",
            "PCP, result 5",
            third_party(INTERNET),
        ),
        asked("PCP: THIRD_PARTY for the router", "192.168.77.1", "PCP, result 5", third_party(ROUTER_LAN)),
        changed("PCP: a port of no protocol", "protocol 0, port 4444", "PCP, result 3", |map| map[36] = 0),
        changed("PCP: a low port", "internal port 22", "PCP, result 2", |map| {
            map[40..42].copy_from_slice(&[0, 22]);
        }),
        changed("PCP: all ports", "internal port 0", "PCP, result 9", |map| {
            map[40..42].copy_from_slice(&[0, 0]);
        }),
        changed("PCP: another protocol", "SCTP", "PCP, result 9", |map| map[36] = 132),
        row(
            "PCP: a mapping over another nonce",
            "MAP of the same port by another nonce",
            "PCP, result 2, it stands",
            REFUSED,
            |scene| {
                let mut other = map(3600).to_bytes();
                other[24..36].copy_from_slice(&[9; 12]);
                let mut delete = other.clone();
                delete[4..8].copy_from_slice(&[0; 4]);
                let ask = |datagram: &[u8]| {
                    scene.network.inside(Host::Lan1, || asks(LAN1, server(), datagram, 4 * SECOND))
                };
                ask(&map(3600).to_bytes());
                let before = scene.mappings();
                let came = in_words(ask(&other));
                ask(&delete);
                let stands = scene.mappings() == before && !before.is_empty();
                ask(&map(0).to_bytes());
                format!("{came}, {}", if stands { "it stands" } else { "**it is gone**" })
            },
        ),
    ]
}

fn nat_pmp() -> Vec<Row> {
    vec![
        asked("NAT-PMP: one octet", "`00`", "silence", [0]),
        asked(
            "NAT-PMP: a response",
            "opcode 129",
            "silence",
            [&[0, 129, 0, 0][..], &4444_u32.to_be_bytes(), &[0, 0, 14, 16]].concat(),
        ),
        asked("NAT-PMP: an unknown opcode", "opcode 99", "NAT-PMP, result 5", [0, 99, 0, 0]),
        asked("NAT-PMP: a request cut short", "8 octets", "silence", [0, 2, 0, 0, 0x11, 0x5c, 0x11, 0x5c]),
        asked(
            "NAT-PMP: a low port",
            "internal port 22",
            "NAT-PMP, result 2",
            [0, 2, 0, 0, 0, 22, 0x11, 0x5c, 0, 0, 14, 16],
        ),
        asked(
            "NAT-PMP: no port",
            "internal port 0, lifetime 3600",
            "NAT-PMP, result 2",
            [0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 14, 16],
        ),
        row(
            "NAT-PMP: ending all mappings",
            "internal port 0, lifetime 0",
            "NAT-PMP, result 0; another host's stands",
            "/lan_requests/nat_pmp",
            |scene| {
                let inner = crate::scene::arguments(LAN2, 7000, &[]);
                scene.call(Host::Lan2, "AddPortMapping", &inner, 4 * SECOND);
                let before = scene.mappings();
                let datagram = [0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                let came = in_words(
                    scene.network.inside(Host::Lan1, || asks(LAN1, server(), &datagram, 4 * SECOND)),
                );
                let stands = scene.mappings() == before && !before.is_empty();
                scene.delete(Host::Lan2, 7000, 2 * SECOND);
                format!(
                    "{came}; {}",
                    if stands { "another host's stands" } else { "**another host's is gone**" }
                )
            },
        ),
    ]
}

/// A good request that comes from elsewhere.
fn by(scene: &Scene<'_>, host: Host, from: Ipv4Addr, to: Ipv4Addr) -> String {
    let good = Request { client_addr: mapped(from), ..map(3600) }.to_bytes();
    in_words(scene.network.inside(host, || asks(from, (to, 5351).into(), &good, QUIET)))
}

fn elsewhere() -> Vec<Row> {
    vec![
        row("the WAN, to the WAN's address", "MAP by another subscriber", "silence", "", |scene| {
            by(scene, Host::Other, OTHER, ROUTER_WAN)
        }),
        row("the WAN, to the LAN's address", "the same, routed there", "silence", "", |scene| {
            by(scene, Host::Other, OTHER, ROUTER_LAN)
        }),
        row(
            "the LAN's cable, an address that is not of the LAN",
            "MAP by 10.9.9.9",
            "silence",
            IGNORED,
            |scene| by(scene, Host::Lan1, OFF_LINK, ROUTER_LAN),
        ),
        row(
            "the Internet's address",
            "MAP, spoofed, with THIRD_PARTY for oneself",
            "silence",
            IGNORED,
            |scene| {
                let options = vec![PcpOption::ThirdParty(mapped(LAN1))];
                let request = Request { client_addr: mapped(INTERNET), options, ..map(3600) }.to_bytes();
                let socket = scene.network.inside(Host::Internet, || at(INTERNET, 4000));
                scene
                    .network
                    .inside(Host::Lan1, || spoof(&raw(), (INTERNET, 4000), (ROUTER_LAN, 5351), &request));
                in_words(hears(&socket, QUIET).into_iter().next())
            },
        ),
        row(
            "a storm of mappings",
            "300 MAPs for 300 ports, at once",
            "at most 100 stand; another host is served",
            IGNORED,
            |scene| {
                let storm: Vec<Vec<u8>> = (0..300_u16)
                    .map(|n| {
                        let mut request = map(3600).to_bytes();
                        request[40..42].copy_from_slice(&(20_000 + n).to_be_bytes());
                        request[42..44].copy_from_slice(&(20_000 + n).to_be_bytes());
                        request
                    })
                    .collect();
                let granted = scene.network.inside(Host::Lan1, || {
                    let socket = at(LAN1, 0);
                    for request in &storm {
                        socket.send_to(request, server()).expect("there is a way");
                    }
                    let heard = hears(&socket, 3 * SECOND);
                    heard.iter().filter(|answer| answer.get(3) == Some(&0)).count()
                });
                let inner = crate::scene::arguments(LAN2, 7001, &[]);
                let other = scene.call(Host::Lan2, "AddPortMapping", &inner, SECOND).verdict();
                scene.delete(Host::Lan2, 7001, 2 * SECOND);
                let standing = scene.mappings().len();
                // Whoever has made them takes them back, at the pace that it may ask at.
                if scene.is_ours() {
                    let _ = lab::subject::ask(scene.network, &format!("release {LAN1}"));
                    lab::wait::eventually("an empty table", 10 * SECOND, || {
                        scene.mappings().is_empty().then_some(())
                    });
                }
                let other = if other == "200" {
                    "another host is served".to_owned()
                } else {
                    format!("**another host hears {other}**")
                };
                // Here and at the provider: two for each.
                let bounded = granted <= 100 && standing <= 200;
                if bounded {
                    format!("at most 100 stand; {other}")
                } else {
                    format!("{granted} granted; {other}")
                }
            },
        ),
    ]
}
