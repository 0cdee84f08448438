//! What nobody should send: malformed and forbidden requests in every protocol, connections that never get to their point.

use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use wire::soap;
use wire::ssdp;

use super::pcp::{NOBODY, PORT};
use super::player::Player;
use super::tally;
use crate::http::{self, PATIENCE};
use crate::netns::ROUTER_LAN;
use crate::pcp_load::{self, Dice, MAP, Wish};

/// Until a gateway has closed what leads to nothing: well above each of its own limits.
const CLOSED_WITHIN: Duration = Duration::from_secs(80);
/// Connections that are held open at the same time.
const HELD: usize = 6;

/// A request over HTTP that must not succeed.
fn bad_request(player: &Player, which: u64) -> (&'static str, Vec<u8>) {
    let gateway = Player::gateway();
    let service = &player.connection;
    let (path, name) = (&service.control, &service.name);
    let call = |arguments: &[(&str, &str)]| soap::encode_call(name, "AddPortMapping", arguments);
    let post = |fields: &str, body: &str| {
        let length = body.len();
        format!(
            "POST {path} HTTP/1.1\r\nHost: {gateway}\r\nContent-Type: text/xml\r\nConnection: close\r\n{fields}\
             Content-Length: {length}\r\n\r\n{body}"
        )
    };
    let action = format!("SOAPAction: \"{name}#AddPortMapping\"\r\n");
    let add = |port: &str, client: &str| {
        post(
            &action,
            &call(&[
                ("NewRemoteHost", ""),
                ("NewExternalPort", port),
                ("NewProtocol", "TCP"),
                ("NewInternalPort", port),
                ("NewInternalClient", client),
                ("NewEnabled", "1"),
                ("NewPortMappingDescription", "bad"),
                ("NewLeaseDuration", "60"),
            ]),
        )
    };
    let own = player.host.to_string();
    let deep = format!("{}{}", "<a>".repeat(200), "</a>".repeat(200));
    let xml = |inside: &str| post(&action, &format!("<?xml version=\"1.0\"?>{inside}"));
    let get = |fields: &str| format!("GET /{} HTTP/1.1\r\n{fields}\r\n", "x".repeat(8));
    let host = format!("Host: {gateway}\r\nConnection: close\r\n");
    let (what, text) = match which % 30 {
        0 => ("no HTTP", "\u{1}\u{2}\u{3}\r\n\r\n".to_owned()),
        1 => ("no Host", get("Connection: close\r\n")),
        2 => ("a foreign Host", get("Host: attacker.example\r\nConnection: close\r\n")),
        3 => ("two Hosts", get(&format!("{host}Host: attacker.example\r\n"))),
        4 => ("what is not there", get(&host)),
        5 => ("no SOAPAction", post("", &call(&[]))),
        6 => {
            ("another SOAPAction", post(&format!("SOAPAction: \"{name}#DeletePortMapping\"\r\n"), &call(&[])))
        }
        7 => ("no arguments", post(&action, &call(&[]))),
        8 => ("a port beyond ports", add("70000", &own)),
        9 => ("a low port", add("80", &own)),
        10 => ("for another host", add("28000", &NOBODY.to_string())),
        11 => ("for the router", add("28000", &ROUTER_LAN.to_string())),
        12 => ("for everybody", add("28000", "255.255.255.255")),
        13 => ("a negative port", add("-1", &own)),
        14 => ("a protocol that is none", add("28000", &own).replace(">TCP<", ">XYZ<")),
        15 => ("DOCTYPE", xml("<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>")),
        16 => ("too deep", xml(&deep)),
        17 => ("not well-formed", xml("<a><b></a>")),
        18 => ("half an envelope", xml("<s:Envelope><s:Body>")),
        19 => ("a great body", post(&action, &"x".repeat(70_000))),
        20 => ("a great head", get(&format!("{host}X: {}\r\n", "x".repeat(20_000)))),
        21 => ("many fields", get(&format!("{host}{}", "X: y\r\n".repeat(100)))),
        22 => ("two lengths", post("Content-Length: 5\r\n", &call(&[]))),
        23 => ("bad chunks", {
            format!("POST {path} HTTP/1.1\r\n{host}{action}Transfer-Encoding: chunked\r\n\r\nzz\r\n")
        }),
        24 => ("text/plain", post(&action, &call(&[])).replace("text/xml", "text/plain")),
        25 => ("a foreign Origin", post(&format!("{action}Origin: http://attacker.example\r\n"), &call(&[]))),
        26 => ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
        27 => ("a callback elsewhere", {
            let events = &service.events;
            format!(
                "SUBSCRIBE {events} HTTP/1.1\r\n{host}CALLBACK: <http://198.51.100.20:80/>\r\nNT: upnp:event\r\n\r\n"
            )
        }),
        28 => ("a subscription that is none", {
            let (events, sid) = (&service.events, "uuid:00000000-0000-4000-8000-000000000000");
            format!("UNSUBSCRIBE {events} HTTP/1.1\r\n{host}SID: {sid}\r\n\r\n")
        }),
        _ => ("no UTF-8", post(&action, "<a>\u{fffd}</a>")),
    };
    let mut octets = text.into_bytes();
    // What stands for an octet that no UTF-8 has.
    if let Some(at) = octets.windows(3).position(|three| three == "\u{fffd}".as_bytes()) {
        octets[at] = 0xff;
    }
    (what, octets)
}

/// All kinds of them, one after the other, until the end.
pub(super) fn requests(player: &Player) {
    let mut dice = player.dice(7);
    while player.plays() {
        let (what, request) = bad_request(player, dice.roll(30));
        let kind = format!("bad HTTP: {what}");
        let since = tally::now();
        match first_answer(&request) {
            Ok(Some(status)) => {
                player.tally.count(&kind, &status.to_string());
                if status < 400 {
                    player.tally.wrong(&kind, since, &status.to_string());
                }
            }
            Ok(None) => player.tally.count(&kind, "closed"),
            // A reset, too, is an answer to that.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => player.tally.count(&kind, "closed"),
            Err(error) => player.tally.silence(&kind, since, &error.to_string()),
        }
        player.pause(&mut dice, 300);
    }
}

/// The status, or that the connection ends without one.
fn first_answer(request: &[u8]) -> io::Result<Option<u16>> {
    let mut stream = TcpStream::connect_timeout(&Player::gateway(), PATIENCE)?;
    // The server may wait for more of what will never come.
    stream.set_read_timeout(Some(PATIENCE * 2))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // It need not read all of it.
    let _ = stream.write_all(request);
    match http::read(&mut BufReader::new(stream)) {
        Ok(answer) => Ok(Some(answer.status)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Datagrams that are wrong, to all ports there are. Nobody has to answer any.
pub(super) fn datagrams(player: &Player) {
    let mut dice = player.dice(8);
    let Ok(socket) = UdpSocket::bind((player.host, 0)) else {
        return player.tally.wrong("bad datagrams", tally::now(), "no socket");
    };
    let _ = socket.set_nonblocking(true);
    let mut buffer = [0; 2048];
    while player.plays() {
        let (kind, datagram, port) = bad_datagram(player, &mut dice);
        // A link that is down refuses it.
        let _ = socket.send_to(&datagram, (ROUTER_LAN, port));
        player.tally.count(&format!("bad datagram: {kind}"), "sent");
        player.pause(&mut dice, 300);
        while socket.recv(&mut buffer).is_ok() {
            player.tally.count("bad datagrams", "answered");
        }
    }
}

fn bad_datagram(player: &Player, dice: &mut Dice) -> (&'static str, Vec<u8>, u16) {
    let own: IpAddr = player.host.into();
    let wish = Wish { protocol: 6, internal_port: 28_000, suggested: 28_000, lifetime: 60 };
    let good = pcp_load::map(own, wish);
    let with = |at: usize, octet: u8| {
        let mut datagram = good.clone();
        datagram[at] = octet;
        datagram
    };
    let ssdp = |text: &str| text.as_bytes().to_vec();
    let noise = |dice: &mut Dice| {
        // The first octet is no version that there is.
        let octets = (0..=dice.roll(600)).map(|_| u8::try_from(dice.roll(256)).unwrap_or(0));
        std::iter::once(64).chain(octets).collect::<Vec<u8>>()
    };
    match dice.roll(16) {
        0 => ("PCP of version 9", with(0, 9), PORT),
        1 => ("PCP that is cut short", good[..good.len() - 7].to_vec(), PORT),
        2 => ("PCP that is an answer", with(1, 0x80 | MAP), PORT),
        3 => ("PCP of opcode 99", with(1, 99), PORT),
        4 => ("PCP of another host's address", pcp_load::map(NOBODY.into(), wish), PORT),
        5 => ("PCP with an option that must be known", [&good[..], &[99, 0, 0, 0]].concat(), PORT),
        6 => ("PCP with an option that ends early", [&good[..], &[2, 0, 0, 200]].concat(), PORT),
        7 => ("PCP above 1100 octets", [&good[..], &[0; 1100]].concat(), PORT),
        8 => ("PCP for no port", [&good[..40], &[0, 0], &good[42..]].concat(), PORT),
        9 => ("NAT-PMP that is cut short", vec![0, 1, 0, 0, 1], PORT),
        10 => ("NAT-PMP of opcode 99", vec![0, 99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], PORT),
        11 => ("PCP, noise", noise(dice), PORT),
        12 => ("SSDP, noise", noise(dice), ssdp::PORT),
        13 => ("SSDP without MAN", ssdp("M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMX: 1\r\nST: ssdp:all\r\n\r\n"), ssdp::PORT),
        14 => (
            "SSDP for a great target",
            format!("M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {}\r\n\r\n", "x".repeat(1200)).into_bytes(),
            ssdp::PORT,
        ),
        _ => ("SSDP, somebody's byebye", ssdp("NOTIFY * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nNT: upnp:rootdevice\r\nNTS: ssdp:byebye\r\nUSN: uuid:x\r\n\r\n"), ssdp::PORT),
    }
}

/// Connections that begin a request and never end it. The gateway has to close each of them.
pub(super) fn half_open(player: &Player) {
    let begins: [(&str, String); 3] = [
        ("nothing", String::new()),
        ("half a head", "POST /x HTTP/1.1\r\nHost: 192".to_owned()),
        (
            "half a body",
            format!(
                "POST {} HTTP/1.1\r\nHost: {}\r\nSOAPAction: \"{}#AddPortMapping\"\r\nContent-Length: 900\r\n\r\n<a>",
                player.connection.control,
                Player::gateway(),
                player.connection.name
            ),
        ),
    ];
    hold(player, 9, "half-open connection", &begins);
}

/// Connections that have been used and are kept for nothing.
pub(super) fn idle(player: &Player) {
    let get = format!("GET /x HTTP/1.1\r\nHost: {}\r\n\r\n", Player::gateway());
    hold(player, 10, "idle connection", &[("an answered request", get)]);
}

fn hold(player: &Player, thread: u64, kind: &str, begins: &[(&str, String)]) {
    let mut dice = player.dice(thread);
    let mut held: Vec<(TcpStream, Duration, Instant)> = Vec::new();
    while player.plays() {
        let which = usize::try_from(dice.roll(u64::try_from(begins.len()).unwrap_or(1))).unwrap_or(0);
        let since = tally::now();
        if held.len() < HELD {
            match TcpStream::connect_timeout(&Player::gateway(), PATIENCE) {
                Ok(mut stream) => {
                    player.tally.count(kind, begins[which].0);
                    let _ = stream.write_all(begins[which].1.as_bytes());
                    let _ = stream.set_nonblocking(true);
                    held.push((stream, since, Instant::now()));
                }
                Err(error) => player.tally.silence(kind, since, &error.to_string()),
            }
        }
        held.retain_mut(|(stream, since, opened)| {
            if is_closed(stream) {
                player.tally.count(kind, "closed by the gateway");
                return false;
            }
            let overdue = opened.elapsed() > CLOSED_WITHIN;
            if overdue {
                player.tally.wrong(kind, *since, "it is still open");
            }
            !overdue
        });
        player.pause(&mut dice, 1500);
    }
}

fn is_closed(stream: &mut TcpStream) -> bool {
    let mut part = [0; 4096];
    loop {
        match stream.read(&mut part) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}
