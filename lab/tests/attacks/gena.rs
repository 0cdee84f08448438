//! Subscriptions that lead events elsewhere (CallStranger, CVE-2020-12695), and too many of them.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use lab::netns::{Host, LAN1, LAN2};

use crate::common::SECOND;
use crate::scene::{Heard, Scene, door, exchange};
use crate::{Row, row};

const REFUSED: &str = "/http/refused";
const PATIENCE: Duration = SECOND;

fn request(scene: &Scene<'_>, method: &str, headers: &str) -> Vec<u8> {
    let event = &scene.paths.event;
    format!("{method} {event} HTTP/1.1\r\nHost: {}\r\n{headers}Connection: close\r\n\r\n", door())
        .into_bytes()
}

fn subscribe(scene: &Scene<'_>, host: Host, callback: &str) -> Heard {
    let headers = format!("CALLBACK: {callback}\r\nNT: upnp:event\r\nTIMEOUT: Second-1800\r\n");
    let request = request(scene, "SUBSCRIBE", &headers);
    scene.network.inside(host, || exchange(door(), &request, 3 * SECOND))
}

fn unsubscribe(scene: &Scene<'_>, host: Host, sid: &str) -> Heard {
    let request = request(scene, "UNSUBSCRIBE", &format!("SID: {sid}\r\n"));
    scene.network.inside(host, || exchange(door(), &request, 3 * SECOND))
}

/// A listener on a host, and the callback that leads there.
fn listener(scene: &Scene<'_>, host: Host, address: Ipv4Addr) -> (TcpListener, String) {
    let listener = scene.network.inside(host, || TcpListener::bind((address, 0))).expect("it is its address");
    listener.set_nonblocking(true).expect("a socket can be so");
    let callback = format!("<http://{}/e>", listener.local_addr().expect("it is bound"));
    (listener, callback)
}

/// The next connection.
fn accept(listener: &TcpListener, patience: Duration) -> Option<TcpStream> {
    let deadline = Instant::now() + patience;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).ok()?;
                return Some(stream);
            }
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Err(_) => return None,
        }
    }
}

/// A callback by itself: the status, and whether anybody is told anything there.
fn callback(name: &'static str, sent: &'static str, answer: &'static str, url: &'static str) -> Row {
    row(name, sent, answer, REFUSED, move |scene| {
        let heard = subscribe(scene, Host::Lan1, url);
        if let Some(sid) = heard.header("SID") {
            unsubscribe(scene, Host::Lan1, &sid);
        }
        heard.verdict()
    })
}

pub(crate) fn rows() -> Vec<Row> {
    let mut rows: Vec<Row> = [
        ("a callback to the Internet", "`<http://198.51.100.20/>`", "<http://198.51.100.20/>"),
        ("a callback to another host", "`<http://192.168.77.11:80/>`", "<http://192.168.77.11:80/>"),
        ("a callback to the router", "`<http://192.168.77.1:80/>`", "<http://192.168.77.1:80/>"),
        ("a callback to the router's WAN", "`<http://100.64.0.2/>`", "<http://100.64.0.2/>"),
        ("a callback to the router itself", "`<http://127.0.0.1:5431/>`", "<http://127.0.0.1:5431/>"),
        ("a callback by name", "`<http://localhost/>`", "<http://localhost/>"),
        ("a callback over TLS", "`<https://192.168.77.10/>`", "<https://192.168.77.10/>"),
        (
            "a callback with user info",
            "`<http://192.168.77.10@192.168.77.11/>`",
            "<http://192.168.77.10@192.168.77.11/>",
        ),
        (
            "a callback with a name behind the address",
            "`<http://192.168.77.10.evil.example/>`",
            "<http://192.168.77.10.evil.example/>",
        ),
        ("a callback in octal", "`<http://0300.0250.0115.012/>`", "<http://0300.0250.0115.012/>"),
        ("a callback to an IPv6 zone", "`<http://[fe80::1%25eth0]/>`", "<http://[fe80::1%25eth0]/>"),
        ("a callback to port 0", "`<http://192.168.77.10:0/>`", "<http://192.168.77.10:0/>"),
        ("a callback to no port", "`<http://192.168.77.10:99999/>`", "<http://192.168.77.10:99999/>"),
        ("a callback to a file", "`<file:///etc/passwd>`", "<file:///etc/passwd>"),
        ("a callback that would be two lines", "a blank within the path", "<http://192.168.77.10/a b>"),
        ("a callback without brackets", "`http://192.168.77.10/`", "http://192.168.77.10/"),
        ("a callback that does not end", "`<http://192.168.77.10/`", "<http://192.168.77.10/"),
    ]
    .into_iter()
    .map(|(name, sent, url)| callback(name, sent, "412", url))
    .collect();
    rows.extend([
        row("100 callbacks", "99 to another host, the last to oneself", "412", REFUSED, |scene| {
            let (theirs, other) = listener(scene, Host::Lan2, LAN2);
            let (_own, own) = listener(scene, Host::Lan1, LAN1);
            let heard = subscribe(scene, Host::Lan1, &format!("{}{own}", other.repeat(99)));
            let told = accept(&theirs, PATIENCE).is_some();
            if let Some(sid) = heard.header("SID") {
                unsubscribe(scene, Host::Lan1, &sid);
            }
            format!("{}{}", heard.verdict(), if told { "; **another host is told**" } else { "" })
        }),
        row("another host's callback beside one's own", "one of each", "200, only the own one is told", "/http/answered", |scene| {
            let (theirs, other) = listener(scene, Host::Lan2, LAN2);
            let (mine, own) = listener(scene, Host::Lan1, LAN1);
            let heard = subscribe(scene, Host::Lan1, &format!("{other}{own}"));
            let told = (accept(&mine, PATIENCE).is_some(), accept(&theirs, Duration::from_millis(300)).is_some());
            if let Some(sid) = heard.header("SID") {
                unsubscribe(scene, Host::Lan1, &sid);
            }
            let told = match told {
                (true, false) => ", only the own one is told",
                (false, false) => ", nobody is told",
                (_, true) => ", **the other is told**",
            };
            format!("{}{}", heard.verdict(), if heard.verdict() == "200" { told } else { "" })
        }),
        row("a subscriber that redirects", "302 to another host", "200, not followed", "/http/answered", |scene| {
            let (theirs, other) = listener(scene, Host::Lan2, LAN2);
            let (mine, own) = listener(scene, Host::Lan1, LAN1);
            let heard = subscribe(scene, Host::Lan1, &own);
            if let Some(mut stream) = accept(&mine, PATIENCE) {
                let _ = stream.read(&mut [0; 4096]);
                let to = other.trim_matches(['<', '>']);
                let _ = stream.write_all(format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n").as_bytes());
            }
            let followed = accept(&theirs, PATIENCE / 2).is_some();
            if let Some(sid) = heard.header("SID") {
                unsubscribe(scene, Host::Lan1, &sid);
            }
            format!("{}, {}", heard.verdict(), if followed { "**followed**" } else { "not followed" })
        }),
        row("SID and CALLBACK at once", "both headers", "400", REFUSED, |scene| {
            let headers = "SID: uuid:00000000-0000-0000-0000-000000000000\r\nCALLBACK: <http://192.168.77.10/>\r\nNT: upnp:event\r\n";
            let request = request(scene, "SUBSCRIBE", headers);
            scene.send(&request).verdict()
        }),
        row("a SID that is none", "`SID: uuid:../../etc`", "412", REFUSED, |scene| unsubscribe(scene, Host::Lan1, "uuid:../../etc").verdict()),
    ]);
    for (name, sent, method) in [
        ("renewing another host's subscription", "SUBSCRIBE with its SID", "SUBSCRIBE"),
        ("ending another host's subscription", "UNSUBSCRIBE with its SID", "UNSUBSCRIBE"),
    ] {
        rows.push(row(name, sent, "412, it stands", REFUSED, move |scene| {
            let (_theirs, callback) = listener(scene, Host::Lan2, LAN2);
            let sid = subscribe(scene, Host::Lan2, &callback).header("SID").unwrap_or_default();
            let request = request(scene, method, &format!("SID: {sid}\r\nTIMEOUT: Second-1800\r\n"));
            let came = scene.send(&request).verdict();
            let stands = unsubscribe(scene, Host::Lan2, &sid).verdict() == "200";
            format!("{came}, {}", if stands { "it stands" } else { "**it is gone**" })
        }));
    }
    rows.push(row(
        "40 subscriptions of one host",
        "all to itself",
        "32 granted; another host has one, and is told",
        REFUSED,
        |scene| {
            let (_mine, own) = listener(scene, Host::Lan1, LAN1);
            let held = many(scene, &own);
            let (theirs, callback) = listener(scene, Host::Lan2, LAN2);
            let heard = subscribe(scene, Host::Lan2, &callback);
            let told = accept(&theirs, PATIENCE).is_some();
            let granted = held.len();
            end(scene, Host::Lan1, &held);
            end(scene, Host::Lan2, &heard.header("SID").into_iter().collect::<Vec<_>>());
            in_words(granted, &heard, told)
        },
    ));
    for (name, sent, endless) in [
        ("subscribers that never answer", "32 of one host, none reads its event", false),
        ("subscribers that never end", "32 of one host, each answers with a line that goes on", true),
    ] {
        rows.push(row(
            name,
            sent,
            "32 granted; another host has one, and is told",
            "/http/answered",
            move |scene| {
                let (mine, own) = listener(scene, Host::Lan1, LAN1);
                let held = many(scene, &own);
                let hostile = std::thread::spawn(move || {
                    let mut all = Vec::new();
                    while let Some(stream) = accept(&mine, PATIENCE) {
                        if endless {
                            let _ = stream.set_write_timeout(Some(Duration::from_millis(100)));
                            let _ = (&stream).write_all(&[b'x'; 65_536]);
                        }
                        all.push(stream);
                    }
                    all.len()
                });
                let (theirs, callback) = listener(scene, Host::Lan2, LAN2);
                let heard = subscribe(scene, Host::Lan2, &callback);
                let told = accept(&theirs, PATIENCE).is_some();
                hostile.join().expect("it accepts");
                let granted = held.len();
                end(scene, Host::Lan1, &held);
                end(scene, Host::Lan2, &heard.header("SID").into_iter().collect::<Vec<_>>());
                in_words(granted, &heard, told)
            },
        ));
    }
    rows
}

/// SIDs of up to 40 subscriptions.
fn many(scene: &Scene<'_>, callback: &str) -> Vec<String> {
    (0..40).filter_map(|_| subscribe(scene, Host::Lan1, callback).header("SID")).collect()
}

fn end(scene: &Scene<'_>, host: Host, sids: &[String]) {
    for sid in sids {
        unsubscribe(scene, host, sid);
    }
}

fn in_words(granted: usize, heard: &Heard, told: bool) -> String {
    let other = match (heard.verdict().as_str(), told) {
        ("200", true) => "another host has one, and is told".to_owned(),
        ("200", false) => "**another host has one, and is told nothing**".to_owned(),
        (verdict, _) => format!("**another host hears {verdict}**"),
    };
    format!("{granted} granted; {other}")
}
