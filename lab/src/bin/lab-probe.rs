//! `lab-probe`: the small end of each conversation in the network-namespace laboratory.
//!
//! | arguments | does |
//! |---|---|
//! | `tcp-listen ADDRESS TAG`, `udp-listen ADDRESS TAG` | answers each line or datagram with `TAG:` and the same; logs it |
//! | `tcp-send ADDRESS TEXT MS`, `udp-send ADDRESS TEXT MS` | sends and prints the answer; exit code 1 without one |
//! | `udp-exchange ADDRESS HEX MS` | sends that datagram and prints the answer, in hexadecimal; exit code 1 without one |
//! | `ping ADDRESS MS` | sends an echo request; exit code 1 without an answer |
//! | `search TARGET MS` | M-SEARCH; prints the first LOCATION; exit code 1 without an answer |
//! | `searches ADDRESS TARGET MS` | M-SEARCH to a group, by the interface that its zone numbers, or to a gateway; prints source and LOCATION of every answer |
//! | `announcements GROUP` | prints source, NTS, LOCATION or `-`, and NT of what is announced to that group, on the interface that its zone numbers |
//! | `get ADDRESS PATH` | HTTP GET; prints the whole answer |
//! | `control ADDRESS PATH TYPE` | calls the action in each line of standard input, `ACTION` and `NAME=VALUE`s with tabs between; prints `done` and the out arguments likewise (line ends become blanks), a UPnP error code, or `nothing` and why |
//! | `subscribe ADDRESS PATH [CALLBACK]` | SUBSCRIBE at the event URL of WANIPConnection in that description, with a callback at that address of its own, or the one that it speaks from; prints each event's SEQ, names and values |
//! | `hold ADDRESS PATH COUNT OCTETS` | opens so many connections, begins a control request on each with so many octets of its body, prints how many were taken, and keeps them |
//! | `udp-blast FROM TO` | sends each line of standard input (hexadecimal) as a datagram |
//! | `tcp-blast ADDRESS` | sends each line of standard input (hexadecimal) on a connection of its own, ends its half and prints the first line that comes back |

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use lab::packet::{Ipv4, Sum};
use socket2::{Domain, Protocol, Socket, Type};
use wire::soap::{self, AnswerError};

/// How long a blasted server may take for its answer.
const PATIENCE: Duration = Duration::from_millis(1500);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["tcp-listen", address, tag] => tcp_listen(address, tag),
        ["udp-listen", address, tag] => udp_listen(address, tag),
        ["tcp-send", address, text, wait] => tcp_send(address, text, millis(wait)),
        ["udp-send", address, text, wait] => udp_send(address, text, millis(wait)),
        ["udp-exchange", address, hex, wait] => udp_exchange(address, hex, millis(wait)),
        ["ping", address, wait] => ping(address, millis(wait)),
        ["search", target, wait] => search(target, millis(wait)),
        ["searches", address, target, wait] => searches(address, target, millis(wait)),
        ["announcements", group] => announcements(group),
        ["get", address, path] => get(address, path),
        ["control", address, path, service_type] => control(address, path, service_type),
        ["subscribe", address, path] => subscribe(address, path, None),
        ["subscribe", address, path, callback] => subscribe(address, path, callback.parse().ok()),
        ["hold", address, path, count, octets] => hold(address, path, (number(count), number(octets))),
        ["udp-blast", from, to] => udp_blast(from, to),
        ["tcp-blast", address] => tcp_blast(address),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "see the first lines of lab-probe.rs")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", arguments.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> usize {
    text.parse().expect("a number")
}

fn millis(text: &str) -> Duration {
    Duration::from_millis(text.parse().expect("a number of milliseconds"))
}

fn tcp_listen(address: &str, tag: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("listening");
    for stream in listener.incoming() {
        let (stream, tag) = (stream?, tag.to_owned());
        thread::spawn(move || -> io::Result<()> {
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line)?;
            println!("{} {}", stream.peer_addr()?, line.trim_end());
            (&stream).write_all(format!("{tag}:{line}").as_bytes())
        });
    }
    Ok(())
}

fn udp_listen(address: &str, tag: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    println!("listening");
    let mut buffer = [0; 2048];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        println!("{peer} {text}");
        socket.send_to(format!("{tag}:{text}").as_bytes(), peer)?;
    }
}

fn tcp_send(address: &str, text: &str, wait: Duration) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&parse(address)?, wait)?;
    stream.set_read_timeout(Some(wait))?;
    stream.write_all(format!("{text}\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    println!("{}", answer.trim_end());
    Ok(())
}

/// Sends again after a second, as TCP does: a busy machine loses a datagram now and then.
fn udp_send(address: &str, text: &str, wait: Duration) -> io::Result<()> {
    println!(
        "{}",
        String::from_utf8_lossy(&answer_to(address, text.as_bytes(), wait, Duration::from_secs(1))?)
    );
    Ok(())
}

/// Sends once.
fn udp_exchange(address: &str, hex: &str, wait: Duration) -> io::Result<()> {
    let answer = answer_to(address, &octets(hex), wait, wait)?;
    println!("{}", answer.iter().map(|octet| format!("{octet:02x}")).collect::<String>());
    Ok(())
}

fn answer_to(address: &str, datagram: &[u8], wait: Duration, again_after: Duration) -> io::Result<Vec<u8>> {
    let address = parse(address)?;
    let any: IpAddr =
        if address.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?; // a fresh port each time: no earlier flow of the NATs fits
    socket.connect(address)?;
    let deadline = Instant::now() + wait;
    let mut buffer = [0; 2048];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        socket.set_read_timeout(Some(left.min(again_after).max(Duration::from_millis(1))))?;
        socket.send(datagram)?;
        match socket.recv(&mut buffer) {
            Ok(length) => return Ok(buffer[..length].to_vec()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {}
            Err(error) => return Err(error),
        }
    }
}

fn ping(address: &str, wait: Duration) -> io::Result<()> {
    let to: IpAddr = address.parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let (domain, protocol, request, reply) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket: UdpSocket = Socket::new(domain, Type::RAW, Some(protocol))?.into();
    socket.connect((to, 0))?;
    socket.set_read_timeout(Some(wait))?;
    let [high, low] = (std::process::id() & 0xffff).to_be_bytes()[2..] else { unreachable!("four octets") };
    let mut message = [request, 0, 0, 0, high, low, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8];
    if to.is_ipv4() {
        let checksum = Sum::default().octets(&message).checksum(); // in IPv6 the kernel does that
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    socket.send(&message)?;
    let deadline = Instant::now() + wait;
    let mut buffer = [0; 2048];
    while Instant::now() < deadline {
        let length = socket.recv(&mut buffer)?;
        // In IPv4 a raw socket hears the whole packet.
        let heard = match to {
            IpAddr::V4(_) => Ipv4::parse(&buffer[..length]).map(|packet| packet.payload).unwrap_or_default(),
            IpAddr::V6(_) => buffer[..length].to_vec(),
        };
        if heard.first() == Some(&reply) && heard.get(4..) == Some(&message[4..]) {
            println!("answered");
            return Ok(());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

fn search(target: &str, wait: Duration) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let request = format!(
        "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {target}\r\n\r\n"
    );
    socket.send_to(request.as_bytes(), "239.255.255.250:1900")?;
    let deadline = Instant::now() + wait;
    let mut buffer = [0; 2048];
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        socket.set_read_timeout(Some(left))?;
        let (length, _) = socket.recv_from(&mut buffer)?;
        let answer = String::from_utf8_lossy(&buffer[..length]);
        let location = answer.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.trim().eq_ignore_ascii_case("location").then(|| value.trim())
        });
        if let Some(location) = location {
            println!("{location}");
            return Ok(());
        }
    }
}

fn searches(address: &str, target: &str, wait: Duration) -> io::Result<()> {
    let address = parse(address)?;
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if let SocketAddr::V6(address) = address {
        socket.set_multicast_if_v6(address.scope_id())?;
    }
    let socket: UdpSocket = socket.into();
    let host = SocketAddr::new(address.ip(), address.port()).to_string();
    let mx = address.ip().is_multicast().then_some(1);
    let request = wire::ssdp::search(&host, &wire::ssdp::Target::parse(target), mx);
    socket.send_to(request.as_bytes(), address)?;
    let deadline = Instant::now() + wait;
    let mut buffer = [0; 2048];
    while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        socket.set_read_timeout(Some(left))?;
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        if let Ok(wire::ssdp::Message::Response(response)) = wire::ssdp::parse(&buffer[..length]) {
            println!("{} {}", from.ip(), response.location);
        }
    }
    Ok(())
}

fn announcements(group: &str) -> io::Result<()> {
    let group = parse(group)?;
    let socket = Socket::new(Domain::for_address(group), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    match group {
        SocketAddr::V4(group) => socket.join_multicast_v4(group.ip(), &Ipv4Addr::UNSPECIFIED)?,
        SocketAddr::V6(group) => socket.join_multicast_v6(group.ip(), group.scope_id())?,
    }
    socket.bind(&group.into())?;
    let socket: UdpSocket = socket.into();
    println!("listening");
    let mut buffer = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        if let Ok(wire::ssdp::Message::Notify(notify)) = wire::ssdp::parse(&buffer[..length]) {
            let location = notify.location.as_deref().unwrap_or("-");
            println!("{} {:?} {location} {}", from.ip(), notify.nts, notify.nt);
        }
    }
}

fn get(address: &str, path: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&parse(address)?, PATIENCE)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    io::stdout().write_all(&answer)
}

fn control(address: &str, path: &str, service_type: &str) -> io::Result<()> {
    let address = parse(address)?;
    for line in io::stdin().lines() {
        let line = line?;
        let mut fields = line.split('\t');
        let action = fields.next().unwrap_or_default();
        let arguments: Vec<(&str, &str)> = fields.filter_map(|field| field.split_once('=')).collect();
        let call = soap::encode_call(service_type, action, &arguments);
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nSOAPAction: \"{service_type}#{action}\"\r\n\
             Content-Type: text/xml; charset=\"utf-8\"\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            call.len()
        );
        let told = match exchange(address, &[head, call].concat()).map(|body| soap::decode_answer(&body)) {
            Ok(Ok(answer)) => answer.values.iter().fold("done".to_owned(), |told, (name, value)| {
                told + "\t" + name + "=" + &value.replace(['\n', '\t'], " ")
            }),
            Ok(Err(AnswerError::Fault { code, .. })) => code.to_string(),
            Ok(Err(AnswerError::Malformed)) => "nothing\tno SOAP".to_owned(),
            Err(error) => format!("nothing\t{error}"),
        };
        println!("{told}");
    }
    Ok(())
}

/// One request on a connection of its own; the body of the answer.
fn exchange(address: SocketAddr, request: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    // A gateway answers within some seconds, whatever its provider does; one that is killed ends the connection.
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    // An answer cut short is none: what it says is then not what its sender meant.
    let head = String::from_utf8_lossy(&answer[..end.unwrap_or(0)]).to_ascii_lowercase();
    let length: Option<usize> =
        head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    match (end, length) {
        (Some(end), Some(length)) if answer.len() == end + 4 + length => Ok(answer.split_off(end + 4)),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn subscribe(address: &str, path: &str, callback: Option<IpAddr>) -> io::Result<()> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let ask = |head: String| -> io::Result<(String, SocketAddr)> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(head.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok((answer, stream.local_addr()?))
    };
    let (answer, mut own) =
        ask(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"))?;
    let (_, description) = answer.split_once("\r\n\r\n").ok_or_else(|| invalid("no description"))?;
    let device =
        wire::description::parse(description.as_bytes()).map_err(|_| invalid("a bad description"))?;
    let service = device.services.iter().find(|service| service.service_type.contains(":WANIPConnection:"));
    let events = &service.ok_or_else(|| invalid("no WANIPConnection"))?.event_url;
    match callback {
        Some(callback) => own = SocketAddr::new(callback, 0),
        None => own.set_port(0), // a link-local one keeps its zone
    }
    let listener = TcpListener::bind(own)?;
    let callback = listener.local_addr()?;
    let (answer, _) = ask(format!(
        "SUBSCRIBE {events} HTTP/1.1\r\nHost: {address}\r\nCALLBACK: <http://{callback}/e>\r\nNT: upnp:event\r\n\
         TIMEOUT: Second-540\r\nConnection: close\r\n\r\n"
    ))?;
    println!("{}", answer.lines().next().unwrap_or_default());
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut request = String::new();
        while !request.contains("propertyset>") || !request.trim_end().ends_with("</e:propertyset>") {
            let mut part = [0; 2048];
            match stream.read(&mut part)? {
                0 => break,
                len => request.push_str(&String::from_utf8_lossy(&part[..len])),
            }
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
        let (head, body) = request.split_once("\r\n\r\n").unwrap_or((&request, ""));
        let seq = head.lines().find_map(|line| line.strip_prefix("SEQ: ")).unwrap_or("?");
        let properties =
            wire::gena::parse_property_set(body.as_bytes()).map_err(|_| invalid("a bad event"))?;
        let properties: Vec<String> =
            properties.iter().map(|(name, value)| format!("{name}={value}")).collect();
        println!("event {seq}: {}", properties.join(" "));
    }
}

fn hold(address: &str, path: &str, (count, octets): (usize, usize)) -> io::Result<()> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nSOAPAction: \"urn:schemas-upnp-org:service:WANIPConnection:1#AddPortMapping\"\r\n\
         Content-Type: text/xml; charset=\"utf-8\"\r\nContent-Length: {}\r\n\r\n",
        octets + 1
    );
    let request = [head.as_bytes(), &vec![b' '; octets]].concat();
    let mut held = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect_timeout(&parse(address)?, PATIENCE)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        // Whoever does not take it all has taken the connection.
        if stream.write_all(&request).is_ok() {
            held.push(stream);
        }
    }
    println!("held {}", held.len());
    loop {
        thread::park();
    }
}

fn udp_blast(from: &str, to: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(from)?;
    let to = parse(to)?;
    for line in io::stdin().lines() {
        // An ICMP error for an earlier datagram is no reason to stop.
        let _ = socket.send_to(&octets(&line?), to);
    }
    Ok(())
}

fn tcp_blast(address: &str) -> io::Result<()> {
    let address = parse(address)?;
    for line in io::stdin().lines() {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        println!(
            "{}",
            first_line(&stream, &octets(&line?)).unwrap_or_else(|error| format!("{:?}", error.kind()))
        );
    }
    Ok(())
}

fn first_line(mut stream: &TcpStream, request: &[u8]) -> io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let sent = stream.write_all(request).and_then(|()| stream.shutdown(Shutdown::Write));
    let mut line = Vec::new();
    let got = BufReader::new(stream).take(200).read_until(b'\n', &mut line);
    if line.is_empty() {
        sent?;
        got?;
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

fn parse(address: &str) -> io::Result<SocketAddr> {
    address.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "not an address and port"))
}

fn octets(hex: &str) -> Vec<u8> {
    let digit = |digit: u8| char::from(digit).to_digit(16).expect("hexadecimal digits only");
    let octet = |pair: &[u8]| pair.iter().fold(0, |octet, &next| octet << 4 | digit(next));
    hex.as_bytes().chunks(2).map(|pair| u8::try_from(octet(pair)).expect("two digits")).collect()
}
