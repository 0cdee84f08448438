//! `lab-pcp-load`: PCP requests in numbers, from one host of the network-namespace laboratory.
//!
//! | arguments | does |
//! |---|---|
//! | `work SERVER FROM LIFETIME WINDOW` | MAP for each line `PROTOCOL FIRST COUNT` of standard input, at most WINDOW unanswered ones at once, each repeated every second until it is answered; lifetime 0 deletes. Prints `PROTOCOL INTERNAL RESULT EXTERNAL LIFETIME` for each |
//! | `flood SERVER FROM COUNT SEED` | sends so many datagrams as fast as it can; FROM is its own address, or a prefix whose addresses it makes its source in turn. Prints how many were sent |
//! | `spoof SERVER FROM` | sends the datagram in each line of standard input (hexadecimal) as if FROM had sent it |
//! | `exchange SERVER FROM` | sends the datagram in each line of standard input (hexadecimal), and an ANNOUNCE behind it: prints what was answered before that, or `silence` |

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use lab::packet::{udp_v4, udp_v6};
use lab::pcp_load::{self, ANNOUNCE, Dice, MAP, Range, Wish};
use socket2::{Domain, Protocol, Socket, Type};

/// Until a request is repeated.
const REPEAT: Duration = Duration::from_secs(1);
/// Then it is given up.
const TRIES: u32 = 60;
/// How long the ANNOUNCE behind a datagram may take to be answered.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["work", server, from, lifetime, window] => work(server, from, lifetime, window),
        ["flood", server, from, count, seed] => flood(server, from, count, seed),
        ["spoof", server, from] => spoof(server, from),
        ["exchange", server, from] => exchange(server, from),
        _ => Err(invalid("see the first lines of lab-pcp-load.rs")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", arguments.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse().map_err(|_| invalid(&format!("not a number or address: {text}")))
}

/// A request on its way.
struct Unanswered {
    request: Vec<u8>,
    sent: Instant,
    tries: u32,
}

fn work(server: &str, from: &str, lifetime: &str, window: &str) -> io::Result<()> {
    let (server, from): (SocketAddr, IpAddr) = (number(server)?, number(from)?);
    let (lifetime, window): (u32, usize) = (number(lifetime)?, number(window)?);
    let mut wishes = Vec::new();
    for line in io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let [protocol, first, count] = words[..] else { return Err(invalid(&line)) };
        let (first, count): (u16, u16) = (number(first)?, number(count)?);
        let protocol = number(protocol)?;
        let port = |nth| first.checked_add(nth).ok_or_else(|| invalid(&line));
        for nth in 0..count {
            let internal_port = port(nth)?;
            let suggested = if lifetime == 0 { 0 } else { internal_port };
            wishes.push(Wish { protocol, internal_port, suggested, lifetime });
        }
    }
    let socket = UdpSocket::bind((from, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut wishes = wishes.into_iter();
    let mut unanswered: BTreeMap<(u8, u16), Unanswered> = BTreeMap::new();
    let mut out = io::BufWriter::new(io::stdout());
    let mut buffer = [0; 2048];
    loop {
        while unanswered.len() < window
            && let Some(wish) = wishes.next()
        {
            let request = pcp_load::map(from, wish);
            socket.send(&request)?;
            let key = (wish.protocol, wish.internal_port);
            unanswered.insert(key, Unanswered { request, sent: Instant::now(), tries: 1 });
        }
        if unanswered.is_empty() {
            return out.flush();
        }
        match socket.recv(&mut buffer) {
            Ok(len) => {
                let answer = &buffer[..len];
                if len < 60 || answer[..2] != [2, MAP | 0x80] {
                    continue;
                }
                let short = |at: usize| u16::from_be_bytes([answer[at], answer[at + 1]]);
                let key = (answer[36], short(40));
                if unanswered.remove(&key).is_some() {
                    let left = u32::from(short(4)) << 16 | u32::from(short(6));
                    writeln!(out, "{} {} {} {} {left}", key.0, key.1, answer[3], short(42))?;
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock) => {}
            // ICMP: nobody listens at the moment.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(error) => return Err(error),
        }
        let now = Instant::now();
        for one in unanswered.values_mut().filter(|one| now - one.sent >= REPEAT) {
            if one.tries == TRIES {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "a request is never answered"));
            }
            (one.sent, one.tries) = (now, one.tries + 1);
            let _ = socket.send(&one.request);
        }
    }
}

fn flood(server: &str, from: &str, count: &str, seed: &str) -> io::Result<()> {
    let server: SocketAddr = number(server)?;
    let sources = Range::parse(from).ok_or_else(|| invalid(from))?;
    let (count, mut dice): (u64, _) = (number(count)?, Dice::new(number(seed)?));
    let mut sent = 0_u64;
    if sources.addresses == 1 {
        let socket = UdpSocket::bind((sources.address(0), 0))?;
        for _ in 0..count {
            let datagram = pcp_load::flood(&mut dice, sources.address(0));
            sent += u64::from(socket.send_to(&datagram, server).is_ok());
        }
    } else {
        let pretender = Pretender::new(server)?;
        for number in 0..count {
            let source = sources.address(number);
            let datagram = pcp_load::flood(&mut dice, source);
            let port = 1024 + u16::try_from(dice.roll(60_000)).expect("less than that");
            sent += u64::from(pretender.send(SocketAddr::new(source, port), &datagram).is_ok());
        }
    }
    println!("{sent}");
    Ok(())
}

fn spoof(server: &str, from: &str) -> io::Result<()> {
    let pretender = Pretender::new(number(server)?)?;
    let from = SocketAddr::new(number(from)?, 5350);
    io::stdin().lines().try_for_each(|line| pretender.send(from, &octets(&line?)?))
}

/// Sends packets that are its own making, their sources included.
struct Pretender {
    socket: Socket,
    server: SocketAddr,
}

impl Pretender {
    fn new(server: SocketAddr) -> io::Result<Self> {
        let domain = if server.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        Ok(Self { socket: Socket::new(domain, Type::RAW, Some(Protocol::from(255)))?, server })
    }

    fn send(&self, from: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        let packet = match (from, self.server) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) => {
                udp_v4((*from.ip(), from.port()), (*to.ip(), to.port()), datagram).to_bytes()
            }
            (SocketAddr::V6(from), SocketAddr::V6(to)) => {
                udp_v6((*from.ip(), from.port()), (*to.ip(), to.port()), datagram).to_bytes()
            }
            _ => return Err(invalid("two families")),
        };
        // In IPv6 a port would be taken for a protocol.
        self.socket.send_to(&packet, &SocketAddr::new(self.server.ip(), 0).into()).map(drop)
    }
}

fn exchange(server: &str, from: &str) -> io::Result<()> {
    let (server, from): (SocketAddr, IpAddr) = (number(server)?, number(from)?);
    let socket = UdpSocket::bind((from, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 2048];
    for line in io::stdin().lines() {
        let line = line?;
        socket.send(&octets(&line)?)?;
        socket.send(&pcp_load::header(ANNOUNCE, 0, from))?;
        let mut answers = Vec::new();
        loop {
            let len = socket.recv(&mut buffer)?;
            // A success of ANNOUNCE, of which nothing else here gets one.
            if len == 24 && buffer[..4] == [2, ANNOUNCE | 0x80, 0, 0] {
                break;
            }
            answers.push(buffer[..len].iter().map(|octet| format!("{octet:02x}")).collect::<String>());
        }
        println!("{}", if answers.is_empty() { "silence".to_owned() } else { answers.join(" ") });
    }
    Ok(())
}

fn octets(hex: &str) -> io::Result<Vec<u8>> {
    let octet = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(pair, 16).ok()
    };
    hex.as_bytes().chunks(2).map(octet).collect::<Option<_>>().ok_or_else(|| invalid("not hexadecimal"))
}
