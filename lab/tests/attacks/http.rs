//! Requests that no control point makes: from web pages, from elsewhere, in odd forms, too many.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use lab::netns::{Host, ROUTER_LAN, ROUTER_WAN};
use lab::subject::HTTP_PORT;
use socket2::{Domain, Protocol, Socket, Type};

use crate::common::SECOND;
use crate::scene::{Heard, OFF_LINK, Post, arguments, door, exchange, hear};
use crate::{Row, row};

const REFUSED: &str = "/http/refused";

/// A good request for a mapping, spoilt.
fn spoilt(
    name: &'static str,
    sent: &'static str,
    answer: &'static str,
    counter: &'static str,
    spoil: impl Fn(Post) -> Post + 'static,
) -> Row {
    row(name, sent, answer, counter, move |scene| scene.send(&spoil(scene.add()).octets()).verdict())
}

pub(crate) fn rows() -> Vec<Row> {
    [web_pages(), forms(), sizes(), connections()].into_iter().flatten().collect()
}

fn web_pages() -> Vec<Row> {
    vec![
        spoilt("DNS rebinding", "`Host: evil.example`", "403", REFUSED, |post| {
            post.set("Host", "evil.example")
        }),
        spoilt("the address as a number", "`Host: 0xc0a84d01`", "403", REFUSED, |post| {
            post.set("Host", "0xc0a84d01")
        }),
        spoilt("no Host", "HTTP/1.1 without Host", "400", REFUSED, |post| post.without("Host")),
        spoilt("two Hosts", "ours, then `evil.example`", "400", REFUSED, |post| {
            post.also("Host", "evil.example")
        }),
        row(
            "an absolute target of a foreign authority",
            "`POST http://evil.example/…`",
            "403",
            REFUSED,
            |scene| {
                let line = format!("POST http://evil.example{} HTTP/1.1", scene.paths.control);
                scene.send(&scene.add().line(line).octets()).verdict()
            },
        ),
        spoilt("another site's page", "`Origin: http://evil.example`", "403", REFUSED, |post| {
            post.also("Origin", "http://evil.example")
        }),
        spoilt("a page of a file or a sandbox", "`Origin: null`", "403", REFUSED, |post| {
            post.also("Origin", "null")
        }),
        spoilt("another site, as the browser says", "`Sec-Fetch-Site: cross-site`", "403", REFUSED, |post| {
            post.also("Sec-Fetch-Site", "cross-site")
        }),
        spoilt("a form", "`Content-Type: application/x-www-form-urlencoded`", "403", REFUSED, |post| {
            post.set("Content-Type", "application/x-www-form-urlencoded")
        }),
        spoilt("a form with files", "`Content-Type: multipart/form-data`", "403", REFUSED, |post| {
            post.set("Content-Type", "multipart/form-data; boundary=x")
        }),
        spoilt("a request that needs no preflight", "`Content-Type: text/plain`", "403", REFUSED, |post| {
            post.set("Content-Type", "text/plain")
        }),
        row(
            "a preflight",
            "`OPTIONS` with `Access-Control-Request-Method`",
            "405, no CORS header",
            REFUSED,
            |scene| {
                let line = format!("OPTIONS {} HTTP/1.1", scene.paths.control);
                let post = scene.add().line(line).body("").also("Access-Control-Request-Method", "POST");
                let heard = scene.send(&post.octets());
                let cors = heard.header("Access-Control-Allow-Origin").is_some();
                format!("{}, {}", heard.verdict(), if cors { "**a CORS header**" } else { "no CORS header" })
            },
        ),
    ]
}

fn forms() -> Vec<Row> {
    let mut rows = vec![
        spoilt("no SOAPACTION", "the body alone", "400", REFUSED, |post| post.without("SOAPAction")),
        row(
            "a SOAPACTION that differs from the body",
            "`GetStatusInfo` above AddPortMapping",
            "fault 401",
            "/http/faults",
            |scene| {
                let action = format!("\"{}#GetStatusInfo\"", scene.paths.service);
                scene.send(&scene.add().set("SOAPAction", action).octets()).verdict()
            },
        ),
        spoilt("an empty SOAPACTION", "`SOAPAction:`", "400", REFUSED, |post| post.set("SOAPAction", "")),
        spoilt("quotes with nothing inside", "`SOAPAction: \"\"`", "400", REFUSED, |post| {
            post.set("SOAPAction", "\"\"")
        }),
        spoilt("one quote", "`SOAPAction: \"`", "fault 401", "/http/faults", |post| {
            post.set("SOAPAction", "\"")
        }),
        spoilt("a hash alone", "`SOAPAction: #`", "fault 401", "/http/faults", |post| {
            post.set("SOAPAction", "#")
        }),
        spoilt(
            "no action behind the hash",
            "`SOAPAction: \"urn:…:1#\"`",
            "fault 401",
            "/http/faults",
            |post| post.set("SOAPAction", "\"urn:schemas-upnp-org:service:WANIPConnection:1#\""),
        ),
        spoilt("two SOAPACTIONs", "the right one, then another", "400", REFUSED, |post| {
            post.also("SOAPAction", "\"urn:x#DeletePortMapping\"")
        }),
        spoilt("a long SOAPACTION", "16 KiB", "431", REFUSED, |post| {
            post.set("SOAPAction", "A".repeat(16_384))
        }),
        row("control by GET", "`GET` at the control URL", "405", REFUSED, |scene| {
            let line = format!("GET {} HTTP/1.1", scene.paths.control);
            scene.send(&scene.add().line(line).octets()).verdict()
        }),
        row("a wrong URL", "`POST /ctl/IPConn/../x`", "404", REFUSED, |scene| {
            scene.send(&scene.add().line("POST /ctl/IPConn/../x HTTP/1.1".into()).octets()).verdict()
        }),
        row("a wrong method", "`BREW` at the control URL", "501", REFUSED, |scene| {
            let line = format!("BREW {} HTTP/1.1", scene.paths.control);
            scene.send(&scene.add().line(line).octets()).verdict()
        }),
        spoilt(
            "two Content-Lengths that differ",
            "`Content-Length` once more, `: 5`",
            "400",
            REFUSED,
            |post| post.also("Content-Length", "5"),
        ),
        spoilt("a negative Content-Length", "`Content-Length: -1`", "400", REFUSED, |post| {
            post.without_length().also("Content-Length", "-1")
        }),
        spoilt(
            "a Content-Length that overflows",
            "`Content-Length: 18446744073709551617`",
            "400",
            REFUSED,
            |post| post.without_length().also("Content-Length", "18446744073709551617"),
        ),
        spoilt(
            "Content-Length and Transfer-Encoding",
            "both, the body in neither's form",
            "400",
            REFUSED,
            |post| post.also("Transfer-Encoding", "chunked"),
        ),
        spoilt("no length at all", "neither header", "411", REFUSED, Post::without_length),
    ];
    for (name, sent, chunks) in [
        ("chunks of no size", "`Transfer-Encoding: chunked`, `zz`", "zz\r\nxx\r\n0\r\n\r\n".to_owned()),
        ("a chunk of all there is", "size `ffffffffffffffffff`", "ffffffffffffffffff\r\nx".to_owned()),
        ("a chunk of a negative size", "size `-1`", "-1\r\nx\r\n0\r\n\r\n".to_owned()),
        (
            "a chunk's extension that does not end",
            "20 KiB of it",
            format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(20_480)),
        ),
    ] {
        rows.push(spoilt(name, sent, "400", REFUSED, move |post| {
            post.without_length().also("Transfer-Encoding", "chunked").body(&chunks)
        }));
    }
    for (name, sent, answer, octets) in [
        ("HTTP/0.9", "`GET /` alone", "400", &b"GET /\r\n\r\n"[..]),
        (
            "NUL in the target",
            "`GET /\\0 HTTP/1.1`",
            "400",
            b"GET /\0 HTTP/1.1\r\nHost: 192.168.77.1:5431\r\n\r\n",
        ),
        (
            "NUL in a header",
            "`X: a\\0b`",
            "400",
            b"GET / HTTP/1.1\r\nHost: 192.168.77.1:5431\r\nX: a\0b\r\n\r\n",
        ),
        (
            "a folded header",
            "a line that begins with a blank",
            "400",
            b"GET / HTTP/1.1\r\nHost: 192.168.77.1:5431\r\nX: a\r\n b\r\n\r\n",
        ),
        (
            "a blank before the colon",
            "`Host : …`",
            "400",
            b"GET / HTTP/1.1\r\nHost : 192.168.77.1:5431\r\n\r\n",
        ),
        ("TLS", "a ClientHello", "400", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00\r\n\r\n"),
        ("HTTP/2", "its preface", "closed", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ] {
        rows.push(row(name, sent, answer, REFUSED, move |scene| scene.send(octets).verdict()));
    }
    for (name, sent, argument) in [
        (
            "CRLF in a description",
            "`x&#13;&#10;Y: z`, then `\\r\\nY: z` as it is",
            "NewPortMappingDescription",
        ),
        ("CRLF in RemoteHost", "the same there", "NewRemoteHost"),
    ] {
        let answer = if argument == "NewRemoteHost" { "fault 402" } else { "200, one line of text" };
        let counter = if argument == "NewRemoteHost" { "/http/faults" } else { "/http/answered" };
        rows.push(row(name, sent, answer, counter, move |scene| {
            let text = "x&#13;&#10;Y: z\r\nY: z";
            let inner = arguments(lab::netns::LAN1, 4444, &[(argument, text)]);
            let came = scene.call(Host::Lan1, "AddPortMapping", &inner, 4 * SECOND).verdict();
            if came != "200" {
                return came;
            }
            let entry = "<NewPortMappingIndex>0</NewPortMappingIndex>";
            let heard = scene.call(Host::Lan1, "GetGenericPortMappingEntry", entry, SECOND);
            let text = String::from_utf8_lossy(&heard.octets).into_owned();
            let broken = text.lines().any(|line| line.starts_with("Y: z"));
            scene.delete(Host::Lan1, 4444, 2 * SECOND);
            format!("{came}, {}", if broken { "**several lines**" } else { "one line of text" })
        }));
    }
    rows
}

fn sizes() -> Vec<Row> {
    vec![
        spoilt("a head that is too large", "a header of 20 KiB", "431", REFUSED, |post| {
            post.also("X", "x".repeat(20_480))
        }),
        spoilt("too many fields", "70 headers", "431", REFUSED, |post| {
            (0..70).fold(post, |post, n| post.also(&format!("X-{n}"), "x"))
        }),
        row("a long target", "`GET /` and 32 KiB", "431", REFUSED, |scene| {
            let line = format!("GET /{} HTTP/1.1", "x".repeat(32_768));
            scene.send(&scene.add().line(line).octets()).verdict()
        }),
        spoilt("a body that is too large", "70,000 octets", "413", REFUSED, |post| {
            let more = " ".repeat(70_000 - post.body.len());
            let body = [post.body.clone(), more.into_bytes()].concat();
            post.body(body)
        }),
        spoilt(
            "a body that is said to be huge",
            "`Content-Length: 4294967295`, and 1 KiB",
            "413",
            REFUSED,
            |post| post.without_length().also("Content-Length", "4294967295"),
        ),
        spoilt("a huge body in chunks", "80 KiB, 16 octets each", "413", REFUSED, |post| {
            let chunks = "10\r\nxxxxxxxxxxxxxxxx\r\n".repeat(5120);
            post.without_length().also("Transfer-Encoding", "chunked").body(chunks)
        }),
    ]
}

/// A connection that comes from that address of the attacker's.
fn from(address: std::net::Ipv4Addr, octets: &[u8]) -> Heard {
    let mut heard = Heard::default();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    socket.bind(&SocketAddr::from((address, 0)).into()).expect("it is ours");
    if let Err(error) = socket.connect_timeout(&door().into(), SECOND) {
        heard.refused = error.kind() == std::io::ErrorKind::ConnectionRefused;
        return heard;
    }
    let stream: TcpStream = socket.into();
    let _ = (&stream).write_all(octets);
    hear(&stream, 2 * SECOND, &mut heard);
    heard
}

fn connections() -> Vec<Row> {
    vec![
        row(
            "300 idle connections of one host",
            "300 connects, nothing else",
            "32 stay, 268 are closed",
            "/http/turned_away",
            |scene| {
                let held: Vec<TcpStream> = scene.network.inside(Host::Lan1, || {
                    (0..300).filter_map(|_| TcpStream::connect_timeout(&door(), 5 * SECOND).ok()).collect()
                });
                // In their order: the last one is known to have been looked at when the good request has been served.
                let served = scene.serves();
                let closed = held.iter().filter(|stream| is_closed(stream)).count();
                let others = if served { "" } else { "; **meanwhile nobody else is served**" };
                format!("{} stay, {closed} are closed{others}", held.len() - closed)
            },
        ),
        row(
            "a flood of requests on one connection",
            "1000 pipelined GETs",
            "1000 answers",
            "/http/answered",
            |scene| {
                let get = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", scene.paths.description, door());
                let all = get.repeat(1000);
                let heard = scene.network.inside(Host::Lan1, || {
                    let stream = TcpStream::connect_timeout(&door(), SECOND).expect("it listens");
                    stream.set_read_timeout(Some(2 * SECOND)).expect("not zero");
                    let writer = stream.try_clone().expect("a descriptor");
                    std::thread::scope(|scope| {
                        scope.spawn(move || (&writer).write_all(all.as_bytes()));
                        let mut heard = Vec::new();
                        let mut part = [0; 65_536];
                        while let Ok(len @ 1..) = (&stream).read(&mut part) {
                            heard.extend_from_slice(&part[..len]);
                            if count(&heard) >= 1000 && heard.ends_with(b"</root>\n") {
                                break;
                            }
                        }
                        let _ = stream.shutdown(std::net::Shutdown::Both);
                        heard
                    })
                });
                format!("{} answers", count(&heard))
            },
        ),
        row(
            "the WAN, to the WAN's address",
            "a good request from another subscriber",
            "refused",
            "",
            |scene| {
                let octets = scene.add().octets();
                let to = (ROUTER_WAN, HTTP_PORT).into();
                scene.network.inside(Host::Other, || exchange(to, &octets, 2 * SECOND)).verdict()
            },
        ),
        row("the WAN, to the LAN's address", "the same, routed there", "refused", "", |scene| {
            let octets = scene.add().octets();
            let to = (ROUTER_LAN, HTTP_PORT).into();
            scene.network.inside(Host::Other, || exchange(to, &octets, 2 * SECOND)).verdict()
        }),
        row(
            "the LAN's cable, an address that is not of the LAN",
            "a good request from 10.9.9.9",
            "closed",
            "/http/turned_away",
            |scene| {
                let octets = scene.add().octets();
                scene.network.inside(Host::Lan1, || from(OFF_LINK, &octets)).verdict()
            },
        ),
    ]
}

fn count(heard: &[u8]) -> usize {
    heard.windows(15).filter(|window| *window == b"HTTP/1.1 200 OK").count()
}

/// Whether the other side has ended it.
pub(crate) fn is_closed(mut stream: &TcpStream) -> bool {
    let _ = stream.set_read_timeout(Some(Duration::from_millis(1)));
    match stream.read(&mut [0; 16]) {
        Ok(len) => len == 0,
        Err(error) => !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
    }
}
