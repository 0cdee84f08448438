//! Which servers of the provider's answer, and how fast: asked with what makes no state there, PCP's ANNOUNCE and NAT-PMP's question
//! for the external address. All at once, so that silence is waited for only once.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use engine::dhcp::Version;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};
use wire::natpmp;
use wire::pcp::{self, Body, Request, Response, ResultCode, ip_to_wire};

use super::{asks_by_upnp, igd, together};
use crate::config::{Config, DhcpMode, NatMode};
use crate::dhcp::offer;
use crate::doctor::facts::{
    Candidate, Gateway, NatPmpSays, Origin, PcpSays, Probe, Setup, UplinkFacts, UplinkSetup,
};
use crate::netlink::Snapshot;
use crate::sockets;

/// The anycast addresses of RFC 7723.
const ANYCAST: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 9)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 1, 0, 0, 0, 0, 0, 1)),
];
/// When the question is sent: at once and twice again, for datagrams are lost.
const SENDS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(400), Duration::from_millis(1000)];
/// The end of patience.
const PATIENCE: Duration = Duration::from_millis(3000);

/// Each uplink of the setup.
pub(super) async fn all(
    config: &Config,
    setup: &Setup,
    links: &Snapshot,
    gateway: &Gateway,
) -> Vec<UplinkFacts> {
    together(setup.uplinks.iter().map(|uplink| one(config, uplink, links, gateway))).await
}

async fn one(config: &Config, uplink: &UplinkSetup, links: &Snapshot, gateway: &Gateway) -> UplinkFacts {
    let mut found = UplinkFacts {
        candidates: Vec::new(),
        igd: None,
        probe: Probe::Skipped("nobody answers who could be asked".to_owned()),
        prefer_failure: None,
    };
    let interface = links.interfaces.iter().find(|interface| interface.name == uplink.interface);
    let Some(interface) = interface.filter(|interface| interface.up) else { return found };
    let router = igd::router(links, interface.index);
    let has_v6 = interface.addresses.iter().any(|(addr, _)| addr.is_ipv6());
    let mut asking = tokio::task::JoinSet::new();
    for (n, (server, origin)) in list(config, uplink, router, gateway).into_iter().enumerate() {
        if server.is_ipv4() || has_v6 {
            let interface = uplink.interface.clone();
            asking.spawn(async move { (n, ask(&interface, server, origin).await) });
        }
    }
    let mut candidates = asking.join_all().await;
    candidates.sort_by_key(|(n, _)| *n);
    found.candidates = candidates.into_iter().map(|(_, candidate)| candidate).collect();
    let answered = found.candidates.iter().any(|candidate| candidate.answers().is_some());
    if let Some(router) =
        router.filter(|_| config.uplink.igd && (!answered || asks_by_upnp(gateway, &uplink.interface)))
    {
        found.igd = igd::isp_router(&uplink.interface, router).await;
    }
    found
}

/// The servers in the gateway's own order: those that are configured, or those that can be found.
fn list(
    config: &Config,
    uplink: &UplinkSetup,
    router: Option<Ipv4Addr>,
    gateway: &Gateway,
) -> Vec<(SocketAddr, Origin)> {
    if !uplink.servers.is_empty() {
        return uplink.servers.iter().map(|server| (*server, Origin::Configured)).collect();
    }
    let at_port = |addr| SocketAddr::new(addr, pcp::SERVER_PORT);
    let offered = match gateway.uplink(&uplink.interface) {
        Some(status) => status.wan.offered_pcp_servers.concat(),
        None => {
            let directory = offer::directory(&config.control.socket);
            let heeded = matches!(config.uplink.dhcp, DhcpMode::Auto | DhcpMode::Hooks);
            let said = |version| offer::read(directory, &uplink.interface, version).ok().flatten();
            Version::ALL.into_iter().filter(|_| heeded).filter_map(said).flatten().flatten().collect()
        }
    };
    let mut all: Vec<(SocketAddr, Origin)> = Vec::new();
    let offered = offered.into_iter().map(|addr| (addr, Origin::Offered));
    let router = router.into_iter().map(|addr| (IpAddr::V4(addr), Origin::Router));
    let anycast = ANYCAST.into_iter().filter(|_| config.uplink.anycast).map(|addr| (addr, Origin::Anycast));
    for (addr, origin) in offered.chain(router).chain(anycast) {
        // Asked in IPv6, a server maps to LAN hosts, not to the NAT in between.
        let of_use = addr.is_ipv4() || uplink.nat == NatMode::None;
        if of_use && !all.iter().any(|(known, _)| known.ip() == addr) {
            all.push((at_port(addr), origin));
        }
    }
    all
}

async fn ask(interface: &str, server: SocketAddr, origin: Origin) -> Candidate {
    let announce = |own| {
        let client_addr = ip_to_wire(own);
        Request { lifetime: 0, client_addr, body: Body::Announce, options: Vec::new() }.to_bytes()
    };
    let external = |_| natpmp::Request::ExternalAddress.to_bytes();
    let nat_pmp = async {
        match server {
            // RFC 6886 knows IPv4 only.
            SocketAddr::V4(_) => question(interface, server, external, read_nat_pmp).await,
            SocketAddr::V6(_) => Ok(None),
        }
    };
    let (pcp, nat_pmp) = tokio::join!(question(interface, server, announce, read_pcp), nat_pmp);
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    let error = [pcp.as_ref().err(), nat_pmp.as_ref().err()].into_iter().flatten().next();
    let closed = error.is_some_and(refused);
    let unreachable = error.filter(|error| !refused(error)).map(ToString::to_string);
    Candidate {
        server,
        origin,
        closed,
        unreachable,
        pcp: pcp.ok().flatten(),
        nat_pmp: nat_pmp.ok().flatten(),
    }
}

/// Milliseconds until the answer, and what it says; nothing after so long.
async fn question<T>(
    interface: &str,
    server: SocketAddr,
    octets: impl Fn(IpAddr) -> Vec<u8>,
    read: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<Option<(f64, T)>> {
    let socket = UdpSocket::from_std(sockets::uplink(interface, None, server)?)?;
    let octets = octets(socket.local_addr()?.ip());
    let began = Instant::now();
    let mut sent = began;
    let mut buffer = [0; 2048];
    for (n, at) in SENDS.iter().enumerate() {
        tokio::time::sleep_until(began + *at).await;
        sent = if n == 0 { Instant::now() } else { sent };
        socket.send(&octets).await?;
        let until = began + SENDS.get(n + 1).copied().unwrap_or(PATIENCE);
        while let Ok(received) = timeout_at(until, socket.recv(&mut buffer)).await {
            if let Some(says) = read(&buffer[..received?]) {
                return Ok(Some((sent.elapsed().as_secs_f64() * 1000.0, says)));
            }
        }
    }
    Ok(None)
}

fn read_pcp(datagram: &[u8]) -> Option<PcpSays> {
    if let Some(refusal) = pcp::version_refusal(datagram) {
        return Some(PcpSays::Version(refusal.version));
    }
    let response = Response::parse(datagram).ok()?;
    Some(match response.result {
        ResultCode::SUCCESS => PcpSays::Success,
        code => PcpSays::Refused(code.to_string()),
    })
}

fn read_nat_pmp(datagram: &[u8]) -> Option<NatPmpSays> {
    match natpmp::Response::parse(datagram).ok()? {
        natpmp::Response::ExternalAddress { addr, result, .. } if result == natpmp::ResultCode::SUCCESS => {
            Some(NatPmpSays::External(addr))
        }
        response => Some(NatPmpSays::Refused(response.result().to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "[lan]\ninterfaces = [\"br-lan\"]\n[wan]\ninterface = \"wan0\"\n";

    /// As decision 19 has it.
    #[test]
    fn servers_in_the_gateways_order() {
        let order = |more: &str, router: Option<&str>| {
            let config = Config::parse(std::path::Path::new("x"), &format!("{CONFIG}{more}")).unwrap();
            let setup = Setup::of(&config);
            let router = router.map(|addr| addr.parse().unwrap());
            let all = list(&config, &setup.uplinks[0], router, &Gateway::NotRunning);
            all.iter().map(|(server, origin)| format!("{server} {origin:?}")).collect::<Vec<_>>()
        };
        assert_eq!(
            order("", Some("192.0.2.1")),
            ["192.0.2.1:5351 Router", "192.0.0.9:5351 Anycast"],
            "IPv6 has no use behind a NAT of our own"
        );
        assert_eq!(order("nat = \"none\"\n", None), ["192.0.0.9:5351 Anycast", "[2001:1::1]:5351 Anycast"]);
        assert_eq!(order("[uplink]\nanycast = false\n", None), [""; 0]);
        let configured = "[uplink]\nservers = [\"192.0.2.9:1\", \"192.0.2.8\"]\n";
        assert_eq!(
            order(configured, Some("192.0.2.1")),
            ["192.0.2.9:1 Configured", "192.0.2.8:5351 Configured"]
        );
    }
}
