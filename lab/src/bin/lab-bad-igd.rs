//! `lab-bad-igd ADDRESS LOCATION MODE`: answers every search that comes to it, by unicast or to the group, with LOCATION; and serves
//! HTTP at port 5000 of its address, where it logs each request and answers as MODE says:
//!
//! * `endless`: XML that never ends;
//! * `deep`: XML of ten thousand levels;
//! * `entities`: XML whose entities would make gigabytes of it;
//! * `redirect`: to the same path at LOCATION's next port;
//! * `elsewhere`: a description whose control URL is on another host;
//! * `private`: a router with an external address of another NAT, which says yes to everything;
//! * `unconnected`: one that has no external address.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use socket2::{Domain, Protocol, Socket, Type};
use wire::ssdp::{self, Message, Sender};

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, location, mode] = &arguments[..] else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "see the first lines of lab-bad-igd.rs"));
    };
    let own: Ipv4Addr = address.parse().map_err(io::Error::other)?;
    let listener = TcpListener::bind((own, 5000))?;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&std::net::SocketAddr::from((Ipv4Addr::UNSPECIFIED, ssdp::PORT)).into())?;
    socket.join_multicast_v4(&ssdp::GROUP_V4, &own)?;
    let socket = std::net::UdpSocket::from(socket);
    let mode = mode.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Whoever has had enough of it hangs up.
            let _ = serve(stream, &mode);
        }
    });
    println!("listening");
    let mut buffer = [0; ssdp::MAX_DATAGRAM];
    loop {
        let (len, from) = socket.recv_from(&mut buffer)?;
        if let Ok(Message::Search(search)) = ssdp::parse(&buffer[..len]) {
            println!("searched from {from}");
            let sender = Sender { location, server: "bad", max_age: 1800, boot_id: 1, config_id: 1 };
            let answer = ssdp::search_response(&sender, &search.target, "uuid:bad", None);
            socket.send_to(answer.as_bytes(), from)?;
        }
    }
}

fn serve(mut stream: TcpStream, mode: &str) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut lines = reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    println!("asked {}", lines.next().unwrap_or_default());
    let heads: Vec<String> = lines.collect();
    let value = |name: &str| {
        heads.iter().filter_map(|line| line.split_once(": ")).find(|head| head.0.eq_ignore_ascii_case(name))
    };
    let length = value("content-length").and_then(|(_, length)| length.parse().ok()).unwrap_or(0);
    let action = value("soapaction")
        .and_then(|(_, action)| Some(action.trim_matches('"').rsplit_once('#')?.1.to_owned()));
    io::copy(&mut reader.take(length), &mut io::sink())?;
    match mode {
        "endless" => {
            write!(stream, "HTTP/1.1 200 OK\r\n\r\n<root>")?;
            loop {
                stream.write_all(b"<device>")?;
            }
        }
        "deep" => {
            let body = format!("<root>{}{}</root>", "<device>".repeat(10_000), "</device>".repeat(10_000));
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        }
        "entities" => {
            let entities: String = (1..10)
                .map(|n| format!("<!ENTITY e{n} \"{}\">", format!("&e{};", n - 1).repeat(10)))
                .collect();
            let body = format!("<!DOCTYPE root [<!ENTITY e0 \"x\">{entities}]><root>&e9;</root>");
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        }
        "redirect" => {
            write!(
                stream,
                "HTTP/1.1 302 Found\r\nLocation: http://{}/x\r\nContent-Length: 0\r\n\r\n",
                stream.local_addr()?
            )
        }
        "private" | "unconnected" => {
            let external = if mode == "private" { "10.1.2.3" } else { "" };
            let body = match action {
                Some(action) => format!(
                    "<Envelope><Body><{action}Response><NewExternalIPAddress>{external}</NewExternalIPAddress>\
                     <NewConnectionStatus>Disconnected</NewConnectionStatus></{action}Response></Body></Envelope>"
                ),
                None => "<root><device><deviceType>x</deviceType><service>\
                         <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
                         <controlURL>/control</controlURL></service></device></root>"
                    .to_owned(),
            };
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        }
        _ => {
            let body = "<root><device><deviceType>x</deviceType><service>\
                        <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
                        <controlURL>http://100.64.0.3:5000/control</controlURL></service></device></root>";
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        }
    }
}
