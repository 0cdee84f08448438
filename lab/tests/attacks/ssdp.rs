//! Searches and announcements that no control point sends.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use lab::netns::{Host, LAN1, LAN2, OTHER, ROUTER_LAN, ROUTER_WAN};

use crate::common::{SECOND, say};
use crate::scene::{OFF_LINK, Scene};
use crate::udp::{QUIET, at, hears, raw, spoof};
use crate::{Row, row};

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
const IGNORED: &str = "/ignored_ssdp";
const IGD: &str = "urn:schemas-upnp-org:device:InternetGatewayDevice:1";

fn search(headers: &str) -> Vec<u8> {
    format!("M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n{headers}\r\n").into_bytes()
}

/// The usual one, for one target, without hurry.
fn usual(target: &str) -> Vec<u8> {
    search(&format!("MAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {target}\r\n"))
}

/// How many answers come to that address and port.
fn answers(from: (Ipv4Addr, u16), to: Ipv4Addr, datagram: &[u8], patience: Duration) -> usize {
    let socket = at(from.0, from.1);
    socket.send_to(datagram, SocketAddr::from((to, 1900))).expect("there is a way");
    hears(&socket, patience).len()
}

fn in_words(answers: usize) -> String {
    match answers {
        0 => "silence".to_owned(),
        1 => "1 answer".to_owned(),
        more => format!("{more} answers"),
    }
}

fn asked(
    name: &'static str,
    sent: &'static str,
    answer: &'static str,
    counter: &'static str,
    datagram: Vec<u8>,
) -> Row {
    let patience = if answer == "silence" { QUIET } else { SECOND + QUIET };
    row(name, sent, answer, counter, move |scene| {
        in_words(scene.network.inside(Host::Lan1, || answers((LAN1, 0), GROUP, &datagram, patience)))
    })
}

pub(crate) fn rows() -> Vec<Row> {
    let discover = "MAN: \"ssdp:discover\"\r\n";
    let mut rows = vec![
        asked("no MAN", "the other headers", "silence", IGNORED, search(&format!("MX: 1\r\nST: {IGD}\r\n"))),
        asked("no ST", "the other headers", "silence", IGNORED, search(&format!("{discover}MX: 1\r\n"))),
        asked(
            "a negative MX",
            "`MX: -1`",
            "1 answer",
            "/searches",
            search(&format!("{discover}MX: -1\r\nST: {IGD}\r\n")),
        ),
        asked(
            "a huge MX",
            "`MX: 99999999999999999999`",
            "1 answer",
            "/searches",
            search(&format!("{discover}MX: 99999999999999999999\r\nST: {IGD}\r\n")),
        ),
        asked("a long ST", "1,900 octets", "silence", "/searches", usual(&"x".repeat(1900))),
        asked(
            "an ST that would leave its line",
            "`ssdp:all` and a lone CR",
            "silence",
            "",
            usual("ssdp:all\rLOCATION: http://evil.example/"),
        ),
        asked("a datagram that is too long", "4,000 octets", "silence", IGNORED, usual(&"x".repeat(3900))),
        asked("no search", "4 KiB of zeros", "silence", IGNORED, vec![0; 4096]),
        asked("one octet", "`M`", "silence", IGNORED, b"M".to_vec()),
        asked(
            "another version",
            "`M-SEARCH * HTTP/9.9`",
            "silence",
            IGNORED,
            b"M-SEARCH * HTTP/9.9\r\n\r\n".to_vec(),
        ),
        row("the same search 20 times", "within a moment, of one socket", "1 answer", IGNORED, |scene| {
            in_words(scene.network.inside(Host::Lan1, || {
                let socket = at(LAN1, 0);
                for _ in 0..20 {
                    socket.send_to(&usual(IGD), (GROUP, 1900)).expect("there is a way");
                }
                hears(&socket, SECOND + QUIET).len()
            }))
        }),
        row(
            "a privileged source port",
            "from port 53 (reflection at a resolver)",
            "silence",
            IGNORED,
            |scene| {
                in_words(scene.network.inside(Host::Lan1, || answers((LAN1, 53), GROUP, &usual(IGD), QUIET)))
            },
        ),
        row(
            "an address that is not of the LAN",
            "from 10.9.9.9, on the LAN's cable",
            "silence",
            IGNORED,
            |scene| {
                in_words(
                    scene.network.inside(Host::Lan1, || {
                        answers((OFF_LINK, 0), ROUTER_LAN, &usual(IGD), SECOND + QUIET)
                    }),
                )
            },
        ),
        row("the victim's address", "spoofed, of a host on the Internet", "silence", IGNORED, |scene| {
            let victim = lab::netns::INTERNET;
            let socket = scene.network.inside(Host::Internet, || at(victim, 4000));
            scene.network.inside(Host::Lan1, || {
                spoof(&raw(), (victim, 4000), (ROUTER_LAN, 1900), &usual("ssdp:all"));
            });
            in_words(hears(&socket, SECOND + QUIET).len())
        }),
        row("everybody's address", "spoofed, from 192.168.77.255", "silence", IGNORED, |scene| {
            let socket = scene.network.inside(Host::Lan2, || at(Ipv4Addr::UNSPECIFIED, 4000));
            scene.network.inside(Host::Lan1, || {
                spoof(
                    &raw(),
                    (Ipv4Addr::new(192, 168, 77, 255), 4000),
                    (ROUTER_LAN, 1900),
                    &usual("ssdp:all"),
                );
            });
            in_words(hears(&socket, SECOND + QUIET).len())
        }),
        row("the WAN, to the group", "from another subscriber", "silence", "", |scene| {
            in_words(
                scene
                    .network
                    .inside(Host::Other, || answers((OTHER, 0), GROUP, &usual("ssdp:all"), SECOND + QUIET)),
            )
        }),
        row(
            "the WAN, to the router",
            "from another subscriber, to both of its addresses",
            "silence",
            "",
            |scene| {
                in_words(scene.network.inside(Host::Other, || {
                    let socket = at(OTHER, 0);
                    for to in [ROUTER_WAN, ROUTER_LAN] {
                        socket.send_to(&usual("ssdp:all"), (to, 1900)).expect("there is a way");
                    }
                    hears(&socket, SECOND + QUIET).len()
                }))
            },
        ),
        row(
            "byebye in our name",
            "`NTS: ssdp:byebye` with our UDN",
            "1 answer to the next search",
            "",
            |scene| {
                let udn = &scene.paths.udn;
                let notify = format!(
                    "NOTIFY * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nNTS: ssdp:byebye\r\nNT: upnp:rootdevice\r\nUSN: {udn}::upnp:rootdevice\r\n\r\n"
                );
                scene
                    .network
                    .inside(Host::Lan2, || at(LAN2, 0).send_to(notify.as_bytes(), (GROUP, 1900)))
                    .expect("a way");
                let heard = scene
                    .network
                    .inside(Host::Lan1, || answers((LAN1, 0), GROUP, &usual(IGD), SECOND + QUIET));
                format!("{} to the next search", in_words(heard))
            },
        ),
    ];
    rows.push(row(
        "a flood of `ssdp:all`",
        "10,000 in a second, from 200 ports of one host",
        "at most 50 datagrams a second, fewer than 3 octets for each that came",
        IGNORED,
        flood,
    ));
    rows.push(row(
        "slow amplification",
        "`ssdp:all` five times a second for 8 s, each from another port",
        "at most 3 octets for each that came, beside five complete sets and 1 kB a second",
        IGNORED,
        slow,
    ));
    rows
}

fn flood(scene: &Scene<'_>) -> String {
    let search = usual("ssdp:all");
    let (sent, took, heard) = scene.network.inside(Host::Lan1, || {
        let sockets: Vec<_> = (0..200).map(|_| at(LAN1, 0)).collect();
        let began = Instant::now();
        let mut sent = 0;
        while sent < 10_000 && began.elapsed() < 2 * SECOND {
            for socket in &sockets {
                sent += usize::from(socket.send_to(&search, (GROUP, 1900)).is_ok());
            }
        }
        let took = began.elapsed();
        std::thread::sleep(SECOND + QUIET); // what was asked within that time comes in another second at most
        let heard: Vec<Vec<u8>> =
            sockets.iter().flat_map(|socket| hears(socket, Duration::from_millis(1))).collect();
        (sent, took, heard)
    });
    let (octets_in, octets_out) = (sent * search.len(), heard.iter().map(Vec::len).sum::<usize>());
    say(&format!(
        "SSDP flood: {sent} searches of {octets_in} octets in {took:?}, {} answers of {octets_out} octets",
        heard.len()
    ));
    let seconds = took.as_secs() + 1;
    bounded(
        heard.len() as u64 <= 50 * seconds && octets_out < 3 * octets_in,
        "at most 50 datagrams a second, fewer than 3 octets for each that came",
        (octets_in, octets_out, heard.len()),
    )
}

fn slow(scene: &Scene<'_>) -> String {
    let search = usual("ssdp:all");
    let heard = scene.network.inside(Host::Lan1, || {
        let began = Instant::now();
        let sockets: Vec<_> = (0..40_u32)
            .map(|nth| {
                let at_port = at(LAN1, 0);
                std::thread::sleep((began + nth * SECOND / 5).saturating_duration_since(Instant::now()));
                at_port.send_to(&search, (GROUP, 1900)).expect("there is a way");
                at_port
            })
            .collect();
        std::thread::sleep(SECOND + QUIET);
        let heard: Vec<Vec<u8>> =
            sockets.iter().flat_map(|socket| hears(socket, Duration::from_millis(1))).collect();
        heard
    });
    let (octets_in, octets_out) = (40 * search.len(), heard.iter().map(Vec::len).sum::<usize>());
    say(&format!(
        "SSDP slowly: 40 searches of {octets_in} octets in 8 s, {} answers of {octets_out} octets",
        heard.len()
    ));
    let allowed = 3 * octets_in + 50 * wire::ssdp::MAX_SENT + 9000;
    bounded(
        octets_out <= allowed,
        "at most 3 octets for each that came, beside five complete sets and 1 kB a second",
        (octets_in, octets_out, heard.len()),
    )
}

fn bounded(is: bool, words: &str, (octets_in, octets_out, answers): (usize, usize, usize)) -> String {
    if is { words.to_owned() } else { format!("{answers} answers, {octets_out} octets for {octets_in}") }
}
