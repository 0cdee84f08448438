//! `lab-pcp-server ADDRESS EXTERNAL`: the engine's PCP server on a real socket and a real NAT, for what Debian's miniupnpd
//! is too slow for, and too lenient. It has nothing to begin with, says so to 224.0.0.1 (RFC 6887 §14.1.3), and keeps its
//! mappings in the map `ports` of the nftables table `inet labpcp` of the namespace it runs in.
//!
//! It serves one datagram after the other, as a server does that is no wonder: the next is not looked at before the
//! kernel's NAT has been changed for this one, and who floods it loses datagrams.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::process::{Command, ExitCode, Stdio};
use std::time;

use engine::provider::{NatEvent, Provider, ProviderConfig, ProviderMapping};
use engine::time::Instant;

const SERVER_PORT: u16 = 5351;
const CLIENTS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 1), 5350);

fn main() -> ExitCode {
    let arguments: Vec<Ipv4Addr> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let [address, external] = arguments[..] else {
        eprintln!("see the first lines of lab-pcp-server.rs");
        return ExitCode::FAILURE;
    };
    match serve(address, external) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(address: Ipv4Addr, external: Ipv4Addr) -> io::Result<()> {
    let began = time::Instant::now();
    let now = || Instant::from_millis(began.elapsed().as_millis().try_into().expect("not that many years"));
    let mut provider = Provider::new(now(), ProviderConfig::new(external));
    nft(&format!(
        "table inet labpcp\ndelete table inet labpcp\ntable inet labpcp {{\n map ports {{\n  \
         type inet_proto . inet_service : ipv4_addr . inet_service\n }}\n chain prerouting {{\n  \
         type nat hook prerouting priority -100\n  \
         ip daddr {external} dnat ip to meta l4proto . th dport map @ports\n }}\n}}\n"
    ))?;
    let socket = UdpSocket::bind((address, SERVER_PORT))?;
    socket.send_to(&provider.lose_state(now()), CLIENTS)?;
    println!("listening");
    let mut buffer = [0; 2048];
    loop {
        let wait = provider.next_timeout().map_or(time::Duration::from_secs(3600), |at| at.since(now()));
        socket.set_read_timeout(Some(wait.max(time::Duration::from_millis(1))))?; // zero would be for ever
        let received = match socket.recv_from(&mut buffer) {
            Ok(received) => Some(received),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => return Err(error),
        };
        provider.handle_timeout(now());
        let answer = received.and_then(|(length, from)| {
            Some((provider.handle_datagram(now(), from, &buffer[..length])?, from))
        });
        change(&mut provider)?; // what is granted works
        if let Some((answer, to)) = answer {
            send(&socket, &answer, to);
        }
    }
}

/// A subscriber that has just gone is no reason to stop.
fn send(socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(answer, to) {
        eprintln!("to {to}: {error}");
    }
}

/// Brings the kernel's NAT to where the server is.
fn change(provider: &mut Provider) -> io::Result<()> {
    let mut rules = String::new();
    while let Some(event) = provider.poll_event() {
        rules += &match event {
            NatEvent::Opened(mapping) => {
                let to = mapping.internal;
                format!(
                    "add element inet labpcp ports {{ {} : {} . {} }}\n",
                    key(&mapping),
                    to.ip(),
                    to.port()
                )
            }
            NatEvent::Closed(mapping) => {
                format!("delete element inet labpcp ports {{ {} }}\n", key(&mapping))
            }
        };
    }
    if rules.is_empty() { Ok(()) } else { nft(&rules) }
}

fn key(mapping: &ProviderMapping) -> String {
    format!("{} . {}", mapping.protocol.0, mapping.external.port())
}

fn nft(rules: &str) -> io::Result<()> {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
    child.stdin.take().expect("piped above").write_all(rules.as_bytes())?;
    if child.wait()?.success() { Ok(()) } else { Err(io::Error::other(format!("nft refuses\n{rules}"))) }
}
