//! Gateways that speak UPnP, as a control point sees them: others on the LAN, this one, and the provider's router.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use engine::uplink::{HttpId, HttpOutcome, HttpRequest};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout, timeout_at};
use wire::foreign::{self, Call, Connection, Url};
use wire::services::Face;
use wire::soap::decode_answer_to;
use wire::ssdp::{self, Message, Target};

use super::{own_address, together};
use crate::doctor::facts::{ControlPoint, Gateway, Igd, Neighbour, Setup};
use crate::isp_router::exchange;
use crate::netlink::Snapshot;
use crate::privileged::Sockets;
use crate::sockets;

/// Answers to a search may take so long; MX is a second.
const LISTEN: Duration = Duration::from_millis(1800);
/// The search is repeated after that.
const REPEAT: Duration = Duration::from_millis(300);
/// More gateways than any LAN has.
const MOST: usize = 32;
/// One exchange of HTTP.
const WITHIN: Duration = Duration::from_secs(3);
/// All exchanges with one gateway.
const DESCRIBED: Duration = Duration::from_secs(5);
/// So many descriptions of one router are tried.
const LOCATIONS: usize = 3;

/// Other gateways that answer on the LAN. This router's own portferry answers no search of the router itself.
pub(super) async fn neighbours(setup: &Setup, links: &Snapshot) -> Vec<Neighbour> {
    let mut searches = tokio::task::JoinSet::new();
    for interface in setup.lan.clone() {
        let Some(address) = own_address(links, &interface) else { continue };
        searches.spawn(async move {
            let group = SocketAddrV4::new(ssdp::GROUP_V4, ssdp::PORT);
            let found = match on_lan(address) {
                Ok(socket) => search(&socket, &[group]).await,
                Err(_) => Vec::new(),
            };
            let neighbour = |(address, location, server): (Ipv4Addr, Url, Option<String>)| Neighbour {
                interface: interface.clone(),
                address,
                location: location.to_string(),
                server,
            };
            found.into_iter().map(neighbour).collect::<Vec<_>>()
        });
    }
    let mut all = searches.join_all().await.concat();
    all.sort_by(|a, b| (&a.interface, a.address, &a.location).cmp(&(&b.interface, b.address, &b.location)));
    // One gateway may show two descriptions.
    all.dedup_by(|a, b| (&a.interface, a.address) == (&b.interface, b.address));
    all
}

/// Not bound to the interface: what this machine itself answers comes by the loopback interface.
fn on_lan(address: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind(&SocketAddr::from((address, 0)).into())?;
    socket.set_multicast_if_v4(&address)?;
    socket.set_multicast_ttl_v4(2)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket.into())
}

/// Searches for gateways; who answered, and where its description is: at its own address, or it is not believed.
async fn search(socket: &UdpSocket, to: &[SocketAddrV4]) -> Vec<(Ipv4Addr, Url, Option<String>)> {
    let device = |version| Target::Device { name: "InternetGatewayDevice".to_owned(), version };
    let mut found: Vec<(Ipv4Addr, Url, Option<String>)> = Vec::new();
    let began = Instant::now();
    let mut buffer = [0; ssdp::MAX_DATAGRAM];
    // Twice, for datagrams are lost.
    for until in [began + REPEAT, began + LISTEN] {
        for (to, target) in to.iter().flat_map(|to| [(to, device(1)), (to, device(2))]) {
            let (host, mx) = if to.ip().is_multicast() {
                (ssdp::HOST_V4.to_owned(), Some(1))
            } else {
                (to.to_string(), None)
            };
            let search = ssdp::search(&host, &target, mx);
            let _ = socket.send_to(search.as_bytes(), SocketAddr::V4(*to)).await;
        }
        while Instant::now() < until
            && let Ok(received) = timeout_at(until, socket.recv_from(&mut buffer)).await
        {
            if let Ok((len, SocketAddr::V4(from))) = received
                && let Ok(Message::Response(response)) = ssdp::parse(&buffer[..len])
                && let Some(url) = Url::parse(&response.location).filter(|url| url.at.ip() == from.ip())
                && !found.iter().any(|(_, known, _)| *known == url)
                && found.len() < MOST
            {
                found.push((*from.ip(), url, response.server));
            }
        }
    }
    found
}

/// What each LAN interface's control points hear of the running gateway.
pub(super) async fn control_points(setup: &Setup, links: &Snapshot, gateway: &Gateway) -> Vec<ControlPoint> {
    let Some(status) = gateway.status() else { return Vec::new() };
    let one = |interface: &String| {
        let address = own_address(links, interface)?;
        // Only where it serves.
        let serves = status.lan.iter().find(|lan| lan.name == *interface);
        serves.filter(|lan| !lan.addresses.is_empty())?;
        let at = SocketAddrV4::new(address, setup.http_port);
        let location = Url { at, path: Face::V1.description_path().to_owned() };
        let interface = interface.clone();
        Some(async move {
            let answer = timeout(DESCRIBED, describe(&interface, &location, None)).await.ok().flatten();
            ControlPoint { interface, address, answer }
        })
    };
    together(setup.lan.iter().filter_map(one)).await
}

/// The provider's router, where it speaks UPnP.
pub(super) async fn isp_router(interface: &str, router: Ipv4Addr) -> Option<Igd> {
    let socket = UdpSocket::from_std(sockets::search(interface).ok()?).ok()?;
    let at = |address| SocketAddrV4::new(address, ssdp::PORT);
    let found = search(&socket, &[at(router), at(ssdp::GROUP_V4)]).await;
    let its = found.into_iter().filter(|(from, ..)| *from == router).take(LOCATIONS);
    let first = async {
        for (_, location, server) in its {
            if let Some(igd) = describe(interface, &location, server).await {
                return Some(igd);
            }
        }
        None
    };
    timeout(DESCRIBED, first).await.ok().flatten()
}

/// Reads a description, and asks its first WAN connection.
async fn describe(interface: &str, location: &Url, server: Option<String>) -> Option<Igd> {
    let body = fetch(interface, request(location, None)).await?;
    let connections = foreign::connections(location, &body).ok()?;
    let connection = connections.first()?;
    let status = call(interface, connection, &Call::GetStatusInfo).await;
    let status = status.and_then(|answer| answer.value("NewConnectionStatus").map(str::to_owned));
    let external = call(interface, connection, &Call::GetExternalIpAddress).await;
    let external = external.and_then(|answer| foreign::read_external(&answer).ok().flatten());
    Some(Igd { address: *location.at.ip(), server, status, external })
}

async fn call(interface: &str, connection: &Connection, call: &Call<'_>) -> Option<wire::soap::Answer> {
    let (body, action) = call.encode(&connection.service_type);
    let answer = fetch(interface, request(&connection.control, Some((action, body)))).await?;
    decode_answer_to(call.action(), &answer).ok()
}

fn request(url: &Url, action: Option<(String, String)>) -> HttpRequest {
    let (action, body) = action.map_or((None, String::new()), |(action, body)| (Some(action), body));
    HttpRequest { id: HttpId(0), to: url.at, path: url.path.clone(), action, body, within: WITHIN }
}

async fn fetch(interface: &str, request: HttpRequest) -> Option<Vec<u8>> {
    match exchange(interface, &request, &Sockets::Here(0)).await {
        HttpOutcome::Answer { status: 200, body } => Some(body),
        _ => None,
    }
}

/// The default router of an interface.
pub(super) fn router(links: &Snapshot, index: u32) -> Option<Ipv4Addr> {
    let all = links.default_routes.iter().chain(&links.other_default_routes);
    let mut routes = all.filter(|route| route.interface == index);
    routes.find_map(|route| match route.gateway {
        Some(IpAddr::V4(router)) => Some(router),
        _ => None,
    })
}
