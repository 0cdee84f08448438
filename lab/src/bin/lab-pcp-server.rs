//! `lab-pcp-server ADDRESS EXTERNAL [LIFETIME]`: the engine's PCP server on a real socket and a real NAT, for what Debian's
//! miniupnpd is too slow for, and too lenient. It grants no lifetime above LIFETIME, in seconds. It has nothing to begin with,
//! says so to 224.0.0.1 (RFC 6887 §14.1.3), and keeps its mappings in the map `ports` of the nftables table `inet labpcp` of the
//! namespace it runs in.
//!
//! It serves one datagram after the other, as a server does that is no wonder: the next is not looked at before the
//! kernel's NAT has been changed for this one, and who floods it loses datagrams.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Command, ExitCode, Stdio};
use std::time;

use engine::provider::{Arrival, Binding, NatChange, NatRefused, Output, Server, ServerConfig};
use engine::time::Instant;

const SERVER_PORT: u16 = 5351;

fn main() -> ExitCode {
    let addresses: Vec<Ipv4Addr> = std::env::args().skip(1).take(2).filter_map(|a| a.parse().ok()).collect();
    let lifetime = std::env::args().nth(3).map(|seconds| seconds.parse()).transpose();
    let ([address, external], Ok(lifetime)) = (&addresses[..], lifetime) else {
        eprintln!("see the first lines of lab-pcp-server.rs");
        return ExitCode::FAILURE;
    };
    match serve(*address, *external, lifetime) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(address: Ipv4Addr, external: Ipv4Addr, lifetime: Option<u32>) -> io::Result<()> {
    let began = time::Instant::now();
    let now = || Instant::from_millis(began.elapsed().as_millis().try_into().expect("not that many years"));
    // What floods it is to lose datagrams at the socket, and it begins anew but once.
    let mut config =
        ServerConfig { rate: None, announcements: 1, natpmp: false, ..ServerConfig::new(vec![external]) };
    if let Some(lifetime) = lifetime {
        (config.shortest, config.longest) = (config.shortest.min(lifetime), lifetime);
    }
    let mut server = Server::new(now(), config, now());
    nft(&format!(
        "table inet labpcp\ndelete table inet labpcp\ntable inet labpcp {{\n map ports {{\n  \
         type inet_proto . inet_service : ipv4_addr . inet_service\n }}\n chain prerouting {{\n  \
         type nat hook prerouting priority -100\n  \
         ip daddr {external} dnat ip to meta l4proto . th dport map @ports\n }}\n}}\n"
    ))?;
    let socket = UdpSocket::bind((address, SERVER_PORT))?;
    server.announce(now());
    perform(&mut server, &socket, now)?;
    println!("listening");
    let mut buffer = [0; 2048];
    loop {
        let wait = server.next_timeout().map_or(time::Duration::from_secs(3600), |at| at.since(now()));
        socket.set_read_timeout(Some(wait.max(time::Duration::from_millis(1))))?; // zero would be for ever
        let received = match socket.recv_from(&mut buffer) {
            Ok(received) => Some(received),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => return Err(error),
        };
        server.handle_timeout(now());
        if let Some((length, from)) = received {
            let arrival =
                Arrival { from, to: IpAddr::V4(address), softwire: None, interface: 0, inside: true };
            server.handle_datagram(now(), &arrival, &buffer[..length]);
        }
        perform(&mut server, &socket, now)?;
    }
}

/// Does what the server wants; what is granted works.
fn perform(server: &mut Server, socket: &UdpSocket, now: impl Fn() -> Instant) -> io::Result<()> {
    while let Some(output) = server.poll_output() {
        match output {
            Output::Send { to, bytes, .. } => send(socket, &bytes, to),
            Output::Multicast { group, bytes } if group.is_ipv4() => send(socket, &bytes, group),
            Output::Nat { ticket, change } => {
                let outcome = nft(&rules(&change)).map_err(|error| {
                    eprintln!("{error}");
                    NatRefused::Failed
                });
                server.handle_nat(now(), ticket, outcome);
            }
            Output::Flow { ticket, .. } => server.handle_flow(now(), ticket, None),
            Output::Multicast { .. } | Output::Store(_) | Output::Notice(_) => {}
        }
    }
    Ok(())
}

/// A subscriber that has just gone is no reason to stop.
fn send(socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(answer, to) {
        eprintln!("to {to}: {error}");
    }
}

/// What brings the kernel's NAT to where the server wants it. Nobody's tests filter here.
fn rules(change: &NatChange) -> String {
    let key = |binding: &Binding| format!("{} . {}", binding.protocol.0, binding.external.port());
    match change {
        NatChange::Open(binding) => {
            let to = format!("{} . {}", binding.inside.addr, binding.internal_port);
            format!("add element inet labpcp ports {{ {} : {to} }}\n", key(binding))
        }
        NatChange::Close(binding) => format!("delete element inet labpcp ports {{ {} }}\n", key(binding)),
        NatChange::Replace { .. } => String::new(),
    }
}

fn nft(rules: &str) -> io::Result<()> {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
    child.stdin.take().expect("piped above").write_all(rules.as_bytes())?;
    if child.wait()?.success() { Ok(()) } else { Err(io::Error::other(format!("nft refuses\n{rules}"))) }
}
