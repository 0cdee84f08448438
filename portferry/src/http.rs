//! The HTTP server of the LAN side: descriptions out, control requests in. It checks who asks and in what form, and
//! decides nothing else.
//!
//! The connection is hyper's; here are the limits, the guards against web pages (DNS rebinding, cross-site requests), and
//! the way of a control request to the gateway and back.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine::device::Devices;
use engine::gena::SubscribeError;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use wire::description::Uuid;
use wire::error::UpnpError;
use wire::gena::{self, GenaError, Subscribe};
use wire::services::{Face, Resource, Service};
use wire::soap::{self, SoapError};

use crate::neighbours::Neighbours;

/// Limits of the security policy.
const MAX_BODY: usize = 64 * 1024;
const MAX_HEAD: usize = 16 * 1024;
const MAX_FIELDS: usize = 64;
const HEAD_TIME: Duration = Duration::from_secs(10);
const BODY_TIME: Duration = Duration::from_secs(10);
/// A connection takes no new request after this, whatever it does …
const CONNECTION_TIME: Duration = Duration::from_secs(60);
/// … and then has this long for the last answer, beside what the gateway takes for it: a slow reader holds nothing for ever.
const WRITE_TIME: Duration = Duration::from_secs(10);
const CONNECTIONS_PER_HOST: usize = 32;
const CONNECTIONS: usize = 256;
/// A host has as many IPv6 addresses as it wants: those that speak over IPv6 never take all places.
const CONNECTIONS_OVER_IPV6: usize = 128;

const XML: HeaderValue = HeaderValue::from_static("text/xml; charset=\"utf-8\"");
const EXT: HeaderName = HeaderName::from_static("ext");
const SOAPACTION: HeaderName = HeaderName::from_static("soapaction");
const CALLBACK: HeaderName = HeaderName::from_static("callback");
const NT: HeaderName = HeaderName::from_static("nt");
const SID: HeaderName = HeaderName::from_static("sid");
const TIMEOUT: HeaderName = HeaderName::from_static("timeout");
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// A request on its way to the gateway.
#[derive(Debug)]
pub struct Incoming {
    /// The control point.
    pub from: IpAddr,
    /// Addresses that it has beside that.
    pub also: Vec<IpAddr>,
    /// The index of the interface that it is on.
    pub interface: u32,
    /// What it wants.
    pub what: What,
}

/// What a control point wants, and where the answer goes.
#[derive(Debug)]
pub enum What {
    /// Control of a service.
    Control(Face, soap::Request, oneshot::Sender<Result<String, UpnpError>>),
    /// Events of a service.
    Subscribe((Face, Service), Subscribe, oneshot::Sender<Subscribed>),
    /// No more of them.
    Unsubscribe(Service, Uuid, oneshot::Sender<Subscribed>),
}

/// The subscription and the time it is granted for; nothing for one that has ended.
pub type Subscribed = Result<Option<(Uuid, Duration)>, SubscribeError>;

/// What all connections share.
#[derive(Debug)]
pub struct Context {
    /// The documents.
    pub devices: Devices,
    /// The SERVER header.
    pub server: HeaderValue,
    /// The way to the gateway.
    pub gateway: mpsc::Sender<Incoming>,
    /// How long the gateway may take for an answer.
    pub patience: Duration,
    /// Which other addresses LAN hosts have.
    pub neighbours: Neighbours,
    /// Connections of each host.
    pub connections: Mutex<BTreeMap<IpAddr, usize>>,
}

/// Where a connection comes in.
#[derive(Clone, Copy, Debug)]
pub struct Door {
    /// The address and port that are listened on.
    pub own: SocketAddr,
    /// The index of the interface.
    pub interface: u32,
}

/// Serves what `listener` accepts, for ever. `on_link` tells which peers are on that link.
pub async fn serve(
    listener: TcpListener,
    door: Door,
    on_link: impl Fn(IpAddr) -> bool,
    context: Arc<Context>,
) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) if on_link(peer.ip()) => {
                if let Some(place) = Place::take(&context, peer.ip()) {
                    tokio::spawn(connection(stream, door, peer.ip(), place));
                }
            }
            Ok(_) => {}
            // Too many open files, a peer that hung up early: transient, whatever it is (spec: `accept` ends nothing).
            Err(error) => {
                tracing::debug!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One of the connections that a host may have, given back on drop.
struct Place {
    context: Arc<Context>,
    host: IpAddr,
}

impl Place {
    fn take(context: &Arc<Context>, host: IpAddr) -> Option<Self> {
        let mut connections = context.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let own = connections.get(&host).copied().unwrap_or_default();
        let over_v6: usize =
            connections.iter().filter(|(host, _)| host.is_ipv6()).map(|(_, count)| count).sum();
        if own >= CONNECTIONS_PER_HOST
            || connections.values().sum::<usize>() >= CONNECTIONS
            || host.is_ipv6() && over_v6 >= CONNECTIONS_OVER_IPV6
        {
            return None;
        }
        connections.insert(host, own + 1);
        Some(Self { context: context.clone(), host })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connections = self.context.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = connections.get_mut(&self.host) {
            *own -= 1;
            if *own == 0 {
                connections.remove(&self.host);
            }
        }
    }
}

async fn connection(stream: TcpStream, door: Door, peer: IpAddr, place: Place) {
    // Answers are small and complete: waiting for more to send only delays them.
    let _ = stream.set_nodelay(true);
    let context = &place.context;
    let service = hyper::service::service_fn(|request| async move {
        let mut response = answer(request, door, peer, context).await;
        response.headers_mut().insert(header::SERVER, context.server.clone());
        Ok::<_, Infallible>(response)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_FIELDS)
        .title_case_headers(true)
        // Some control points close their sending side once the request is out.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = match tokio::time::timeout(CONNECTION_TIME, connection.as_mut()).await {
        Ok(ended) => ended,
        Err(_) => {
            // The answer under way is finished, if the peer reads it.
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(context.patience + WRITE_TIME, connection).await.unwrap_or(Ok(()))
        }
    };
    // An error is the peer's: it went away, sent what is no HTTP (hyper has answered 400), or was too slow.
    if let Err(error) = ended {
        tracing::debug!("connection of {peer}: {error}");
    }
}

type Answer = Response<Full<Bytes>>;

fn status(code: StatusCode) -> Answer {
    let mut response = Response::new(Full::default());
    *response.status_mut() = code;
    response
}

fn xml(code: StatusCode, text: String) -> Answer {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, XML);
    response
}

fn not_allowed(allowed: &'static str) -> Answer {
    let mut response = status(StatusCode::METHOD_NOT_ALLOWED);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

async fn answer(
    request: Request<hyper::body::Incoming>,
    Door { own, interface }: Door,
    peer: IpAddr,
    context: &Context,
) -> Answer {
    if let Err(code) = guard(request.headers(), request.version(), own) {
        return status(code);
    }
    // An absolute-form target names the host once more, and it is the one that counts (RFC 9112 §3.2.2).
    if request.uri().authority().is_some_and(|host| !is_own(host.as_str(), own)) {
        return status(StatusCode::FORBIDDEN);
    }
    let Some(resource) = context.devices.resource(request.uri().path()) else {
        return status(StatusCode::NOT_FOUND);
    };
    let method = request.method().clone();
    match resource {
        Resource::Description(_) | Resource::Scpd(..) => {
            let text = context.devices.document(resource).unwrap_or_default();
            match method {
                Method::GET | Method::HEAD => description(request.headers(), text),
                _ if is_known(&method) => not_allowed("GET, HEAD"),
                _ => status(StatusCode::NOT_IMPLEMENTED),
            }
        }
        Resource::Control(service, face) => match method.as_str() {
            "POST" | "M-POST" => control(request, service, face, (interface, peer), context).await,
            _ if is_known(&method) => not_allowed("POST"),
            _ => status(StatusCode::NOT_IMPLEMENTED),
        },
        Resource::Event(service, face) => match method.as_str() {
            "SUBSCRIBE" => subscribe(request.headers(), service, face, (interface, peer), context).await,
            "UNSUBSCRIBE" => unsubscribe(request.headers(), service, (interface, peer), context).await,
            _ if is_known(&method) => not_allowed("SUBSCRIBE, UNSUBSCRIBE"),
            _ => status(StatusCode::NOT_IMPLEMENTED),
        },
    }
}

/// Whether a method that is wrong here is one of HTTP's or UPnP's: 405, else 501 (H-3).
fn is_known(method: &Method) -> bool {
    matches!(
        method.as_str(),
        "GET"
            | "HEAD"
            | "POST"
            | "PUT"
            | "DELETE"
            | "OPTIONS"
            | "PATCH"
            | "TRACE"
            | "CONNECT"
            | "M-POST"
            | "SUBSCRIBE"
            | "UNSUBSCRIBE"
    )
}

fn description(headers: &HeaderMap, text: &str) -> Answer {
    let mut response = xml(StatusCode::OK, text.to_owned());
    if headers.contains_key(header::ACCEPT_LANGUAGE) {
        response.headers_mut().insert(header::CONTENT_LANGUAGE, HeaderValue::from_static("en"));
    }
    response
}

/// Keeps web pages out: a browser that was led here by a name (DNS rebinding), or by another site's page, is refused
/// before anything is looked at.
pub(crate) fn guard(headers: &HeaderMap, version: Version, own: SocketAddr) -> Result<(), StatusCode> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if host.to_str().is_ok_and(|host| is_own(host, own)) => {}
        (Some(_), None) => return Err(StatusCode::FORBIDDEN),
        (None, None) if version == Version::HTTP_10 => {}
        _ => return Err(StatusCode::BAD_REQUEST),
    }
    let ours = |origin: &HeaderValue| {
        let origin = origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://"));
        origin.is_some_and(|host| is_own(host, own))
    };
    if headers.get_all(header::ORIGIN).iter().any(|origin| !ours(origin)) {
        return Err(StatusCode::FORBIDDEN);
    }
    let same = |site: &HeaderValue| matches!(site.as_bytes(), b"same-origin" | b"none");
    if headers.get_all(SEC_FETCH_SITE).iter().any(|site| !same(site)) {
        return Err(StatusCode::FORBIDDEN);
    }
    Ok(())
}

/// Whether a Host is the literal address that the connection came to, with its port or without one. An IPv6 address stands in
/// brackets (RFC 3986 §3.2.2); some put their own name of the link behind it, which says nothing here (RFC 6874 §4).
fn is_own(host: &str, own: SocketAddr) -> bool {
    let host = host.trim();
    let (ip, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((ip, "")) => (ip.split('%').next(), None),
        Some((ip, rest)) => (ip.split('%').next(), Some(rest)),
        None => match host.split_once(':') {
            Some((ip, _)) => (Some(ip), host.get(ip.len()..)),
            None => (Some(host), None),
        },
    };
    let same_port = port.is_none_or(|port| port == format!(":{}", own.port()));
    same_port && ip.and_then(|ip| ip.parse::<IpAddr>().ok()).is_some_and(|ip| ip == own.ip())
}

async fn control(
    request: Request<hyper::body::Incoming>,
    service: Service,
    face: Face,
    from: (u32, IpAddr),
    context: &Context,
) -> Answer {
    let (head, body) = request.into_parts();
    if head.headers.get(header::CONTENT_TYPE).is_some_and(is_form) {
        return status(StatusCode::FORBIDDEN);
    }
    if !head.headers.contains_key(header::CONTENT_LENGTH)
        && !head.headers.contains_key(header::TRANSFER_ENCODING)
    {
        return status(StatusCode::LENGTH_REQUIRED);
    }
    let soap_action = match soap_action(&head.headers) {
        Ok(action) => action,
        Err(code) => return status(code),
    };
    let body = match tokio::time::timeout(BODY_TIME, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return status(StatusCode::PAYLOAD_TOO_LARGE),
        Ok(Err(_)) => return status(StatusCode::BAD_REQUEST),
        Err(_) => return status(StatusCode::REQUEST_TIMEOUT),
    };
    let request = match soap::decode(service, face, soap_action.as_deref(), &body) {
        Ok(request) => request,
        Err(SoapError::BadRequest) => return status(StatusCode::BAD_REQUEST),
        Err(SoapError::Upnp(error)) => return envelope(Err(error)),
    };
    match ask(context, from, service, |reply| What::Control(face, request, reply)).await {
        Some(answer) => envelope(answer),
        None => status(StatusCode::SERVICE_UNAVAILABLE),
    }
}

/// Whether a host's other addresses count for what it wants of this service (K-3), so that they are looked up: for who speaks over IPv6 always,
/// since mappings lead to IPv4, and a subscriber may listen at
/// another address than it speaks from; for who speaks over IPv4 only where IPv6 addresses are what it is about.
fn needs_others(peer: IpAddr, service: Service) -> bool {
    peer.to_canonical().is_ipv6() || service == Service::WanIpv6FirewallControl
}

/// Asks the gateway; nothing when it is stopping.
async fn ask<T>(
    context: &Context,
    (interface, from): (u32, IpAddr),
    service: Service,
    what: impl FnOnce(oneshot::Sender<T>) -> What,
) -> Option<T> {
    let also = match needs_others(from, service) {
        true => context.neighbours.of(interface, from).await,
        false => Vec::new(),
    };
    let (reply, waiting) = oneshot::channel();
    context.gateway.send(Incoming { from, also, interface, what: what(reply) }).await.ok()?;
    waiting.await.ok()
}

async fn subscribe(
    headers: &HeaderMap,
    service: Service,
    face: Face,
    from: (u32, IpAddr),
    context: &Context,
) -> Answer {
    let value = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    match Subscribe::parse(value(CALLBACK), value(NT), value(SID), value(TIMEOUT)) {
        Ok(subscribe) => {
            let what = |reply| What::Subscribe((face, service), subscribe, reply);
            subscribed(ask(context, from, service, what).await)
        }
        Err(error) => gena_error(error),
    }
}

async fn unsubscribe(
    headers: &HeaderMap,
    service: Service,
    from: (u32, IpAddr),
    context: &Context,
) -> Answer {
    let value = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    match gena::parse_unsubscribe(value(CALLBACK), value(NT), value(SID)) {
        Ok(sid) => {
            subscribed(ask(context, from, service, |reply| What::Unsubscribe(service, sid, reply)).await)
        }
        Err(error) => gena_error(error),
    }
}

fn gena_error(error: GenaError) -> Answer {
    status(StatusCode::from_u16(error.status()).unwrap_or(StatusCode::BAD_REQUEST))
}

fn subscribed(answer: Option<Subscribed>) -> Answer {
    match answer {
        Some(Ok(None)) => status(StatusCode::OK),
        Some(Ok(Some((sid, timeout)))) => {
            let mut response = status(StatusCode::OK);
            let headers = response.headers_mut();
            for (name, value) in
                [(SID, format!("uuid:{sid}")), (TIMEOUT, format!("Second-{}", timeout.as_secs()))]
            {
                headers.insert(name, HeaderValue::try_from(value).expect("digits, letters and dashes"));
            }
            response
        }
        Some(Err(SubscribeError::PreconditionFailed)) => status(StatusCode::PRECONDITION_FAILED),
        Some(Err(SubscribeError::TooMany)) | None => status(StatusCode::SERVICE_UNAVAILABLE),
    }
}

fn envelope(answer: Result<String, UpnpError>) -> Answer {
    let mut response = match answer {
        Ok(text) => xml(StatusCode::OK, text),
        Err(error) => xml(StatusCode::INTERNAL_SERVER_ERROR, soap::fault(error)),
    };
    response.headers_mut().insert(EXT, HeaderValue::from_static(""));
    response
}

/// What an HTML form can send by itself.
fn is_form(content_type: &HeaderValue) -> bool {
    let Ok(text) = content_type.to_str() else { return true };
    let kind = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    matches!(kind.as_str(), "text/plain" | "application/x-www-form-urlencoded" | "multipart/form-data")
}

/// SOAPACTION, or with M-POST the header that MAN's namespace number names (UDA 1.0 §3.2).
fn soap_action(headers: &HeaderMap) -> Result<Option<String>, StatusCode> {
    let mut values = headers
        .iter()
        .filter(|(name, _)| **name == SOAPACTION || name.as_str().ends_with("-soapaction"))
        .map(|(_, value)| value);
    let (first, second) = (values.next(), values.next());
    if second.is_some() {
        return Err(StatusCode::BAD_REQUEST);
    }
    first.map(|value| value.to_str().map(str::to_owned)).transpose().map_err(|_| StatusCode::BAD_REQUEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// H-5 and the security policy: one of our own literals, port optional, nothing else.
    #[test]
    fn only_our_own_literal_address_is_a_good_host() {
        let own: SocketAddr = "192.168.1.1:5431".parse().unwrap();
        for (host, good) in [
            ("192.168.1.1:5431", true),
            ("192.168.1.1", true),
            (" 192.168.1.1:5431", true),
            ("192.168.1.1:80", false),
            ("192.168.1.2:5431", false),
            ("router.lan:5431", false),
            ("192.168.1.1.evil.example", false),
            ("0xc0.0xa8.1.1", false),
            ("192.168.257", false),
            ("", false),
        ] {
            assert_eq!(is_own(host, own), good, "{host:?}");
        }
        for (host, own, good) in [
            ("[2001:db8::1]:5431", "[2001:db8::1]:5431", true),
            ("[2001:db8::1]", "[2001:db8::1]:5431", true),
            ("[2001:DB8:0:0::1]:5431", "[2001:db8::1]:5431", true),
            ("[fe80::1]:5431", "[fe80::1%3]:5431", true),
            ("[fe80::1%eth0]:5431", "[fe80::1%3]:5431", true),
            ("[fe80::1%25eth0]", "[fe80::1%3]:5431", true),
            ("[2001:db8::1]:80", "[2001:db8::1]:5431", false),
            ("[2001:db8::1]:5431x", "[2001:db8::1]:5431", false),
            ("[2001:db8::1]5431", "[2001:db8::1]:5431", false),
            ("[2001:db8::1]:", "[2001:db8::1]:5431", false),
            ("[2001:db8::2]:5431", "[2001:db8::1]:5431", false),
            ("2001:db8::1", "[2001:db8::1]:5431", false),
            ("[2001:db8::1", "[2001:db8::1]:5431", false),
            ("[]:5431", "[2001:db8::1]:5431", false),
            ("[rebind.example]:5431", "[2001:db8::1]:5431", false),
            ("[192.168.1.1]:5431", "192.168.1.1:5431", true), // nobody's name, whatever the brackets
        ] {
            assert_eq!(is_own(host, own.parse().unwrap()), good, "{host:?}");
        }
    }

    /// K-3: look-ups are rare.
    #[test]
    fn whose_other_addresses_are_looked_up() {
        for service in Service::ALL {
            for (peer, over_ipv6) in [
                ("192.168.1.10", false),
                ("::ffff:192.168.1.10", false),
                ("fe80::10", true),
                ("2001:db8::10", true),
            ] {
                let looks = needs_others(peer.parse().unwrap(), service);
                assert_eq!(
                    looks,
                    over_ipv6 || service == Service::WanIpv6FirewallControl,
                    "{peer} {service:?}"
                );
            }
        }
    }

    fn headers(rows: &[(&str, &str)]) -> HeaderMap {
        rows.iter()
            .map(|(name, value)| {
                (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
            })
            .collect()
    }

    /// H-5, H-6: one row a request.
    #[test]
    fn web_pages_are_kept_out() {
        let own: SocketAddr = "192.168.1.1:5431".parse().unwrap();
        let host = ("host", "192.168.1.1:5431");
        for (rows, version, verdict) in [
            (vec![host], Version::HTTP_11, Ok(())),
            (vec![], Version::HTTP_10, Ok(())),
            (vec![], Version::HTTP_11, Err(StatusCode::BAD_REQUEST)),
            (vec![host, host], Version::HTTP_11, Err(StatusCode::BAD_REQUEST)),
            (vec![("host", "rebind.example")], Version::HTTP_11, Err(StatusCode::FORBIDDEN)),
            (vec![host, ("origin", "http://evil.example")], Version::HTTP_11, Err(StatusCode::FORBIDDEN)),
            (vec![host, ("origin", "null")], Version::HTTP_11, Err(StatusCode::FORBIDDEN)),
            (vec![host, ("origin", "http://192.168.1.1:5431")], Version::HTTP_11, Ok(())),
            (vec![host, ("sec-fetch-site", "cross-site")], Version::HTTP_11, Err(StatusCode::FORBIDDEN)),
            (vec![host, ("sec-fetch-site", "same-origin")], Version::HTTP_11, Ok(())),
        ] {
            assert_eq!(guard(&headers(&rows), version, own), verdict, "{rows:?}");
        }
    }

    #[test]
    fn soap_action_is_found_once_or_not_at_all() {
        assert_eq!(soap_action(&headers(&[])), Ok(None));
        assert_eq!(soap_action(&headers(&[("SOAPACTION", "\"a#b\"")])), Ok(Some("\"a#b\"".into())));
        assert_eq!(soap_action(&headers(&[("01-SOAPACTION", "a#b")])), Ok(Some("a#b".into())));
        let twice = headers(&[("soapaction", "a#b"), ("soapaction", "a#c")]);
        assert_eq!(soap_action(&twice), Err(StatusCode::BAD_REQUEST));
    }

    #[test]
    fn what_a_form_can_send_is_refused() {
        for (kind, form) in [
            ("text/xml; charset=\"utf-8\"", false),
            ("application/soap+xml", false),
            ("text/plain", true),
            ("Text/Plain;charset=utf-8", true),
            ("application/x-www-form-urlencoded", true),
            ("multipart/form-data; boundary=x", true),
        ] {
            assert_eq!(is_form(&HeaderValue::from_static(kind)), form, "{kind}");
        }
    }

    fn context() -> Arc<Context> {
        let devices = Devices::new(&engine::device::DeviceConfig {
            seed: [7; 16],
            token: [7; 16],
            boot_id: 1,
            friendly_name: "test".into(),
            http_port: 5431,
            igd_version: engine::device::IgdVersion::Auto,
            server: "a/1 UPnP/1.1 b/2".into(),
            version: "1".into(),
        });
        let (gateway, _) = mpsc::channel(1);
        let server = HeaderValue::from_static("a/1 UPnP/1.1 b/2");
        Arc::new(Context {
            devices,
            server,
            gateway,
            patience: Duration::ZERO,
            neighbours: Neighbours::default(),
            connections: Mutex::default(),
        })
    }

    #[test]
    fn a_host_that_is_turned_away_is_not_remembered() {
        let context = context();
        let host = |n: usize| IpAddr::from([10, 0, 0, u8::try_from(n).unwrap()]);
        let places: Vec<Place> =
            (0..CONNECTIONS).filter_map(|n| Place::take(&context, host(n / CONNECTIONS_PER_HOST))).collect();
        assert_eq!(places.len(), CONNECTIONS);
        assert!(Place::take(&context, host(200)).is_none(), "all places are taken");
        assert_eq!(context.connections.lock().unwrap().len(), CONNECTIONS / CONNECTIONS_PER_HOST);
        drop(places);
        assert!(context.connections.lock().unwrap().is_empty());
        let own: Vec<Place> = (0..CONNECTIONS).filter_map(|_| Place::take(&context, host(1))).collect();
        assert_eq!(own.len(), CONNECTIONS_PER_HOST);
        assert!(Place::take(&context, host(2)).is_some(), "another host is served");
        let v6 = |n: u16| IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, n]);
        let flood: Vec<Place> = (0..1000).filter_map(|n| Place::take(&context, v6(n))).collect();
        assert_eq!(flood.len(), CONNECTIONS_OVER_IPV6);
        assert!(Place::take(&context, host(2)).is_some(), "also beside a flood from very many addresses");
    }

    /// H-1, H-3, H-5, H-6, C-9, on a real connection: one row a request.
    #[tokio::test]
    async fn statuses_of_requests_as_they_come() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap();
        let context = context();
        let identity = context.devices.identity();
        let control = Service::WanIpConnection.control_path(Face::V1, &identity.url_token);
        let server = tokio::spawn(serve(listener, Door { own, interface: 1 }, |_| true, context.clone()));
        let action = "SOAPACTION: urn:schemas-upnp-org:service:WANIPConnection:1#GetStatusInfo\r\n";
        let long = "x".repeat(MAX_HEAD + 1);
        for (line, headers, body, status) in [
            ("GET /v1/igd.xml HTTP/1.1", String::new(), "", 200),
            ("HEAD /v2/igd.xml HTTP/1.0", String::new(), "", 200),
            (&*format!("GET http://{own}/v1/igd.xml HTTP/1.1"), String::new(), "", 200),
            ("GET http://rebind.example/v1/igd.xml HTTP/1.1", String::new(), "", 403),
            ("GET /v1/igd.xml HTTP/1.1", "Origin: http://evil.example\r\n".into(), "", 403),
            ("GET /nothing HTTP/1.1", String::new(), "", 404),
            ("POST /v1/igd.xml HTTP/1.1", "Content-Length: 0\r\n".into(), "", 405),
            ("M-POST /v1/igd.xml HTTP/1.1", "Content-Length: 0\r\n".into(), "", 405),
            ("JUMP /v1/igd.xml HTTP/1.1", String::new(), "", 501),
            ("GET /v1/igd.xml HTTP/1.1", format!("X: {long}\r\n"), "", 431),
            (&*format!("GET {control} HTTP/1.1"), action.into(), "", 405),
            (&*format!("POST {control} HTTP/1.1"), action.into(), "", 411),
            (&*format!("POST {control} HTTP/1.1"), "Content-Length: 4\r\n".into(), "<a/>", 400),
            (&*format!("POST {control} HTTP/1.1"), format!("{action}Content-Length: 4\r\n"), "<a/>", 400),
            (
                &*format!("POST {control} HTTP/1.1"),
                format!("{action}Content-Length: 4\r\nContent-Length: 5\r\n"),
                "<a/>",
                400,
            ),
            (
                &*format!("POST {control} HTTP/1.1"),
                format!("{action}Transfer-Encoding: chunked\r\n"),
                "4\r\n<a/>\r\n0\r\n\r\n",
                400,
            ),
            (
                &*format!("POST {control} HTTP/1.1"),
                format!("{action}Content-Type: text/plain\r\nContent-Length: 4\r\n"),
                "<a/>",
                403,
            ),
            (
                &*format!("POST {control} HTTP/1.1"),
                format!("{action}Content-Length: 70000\r\n"),
                &"x".repeat(70_000),
                413,
            ),
            ("gibberish", String::new(), "", 400),
        ] {
            let mut stream = TcpStream::connect(own).await.unwrap();
            let request = format!("{line}\r\nHost: {own}\r\nConnection: close\r\n{headers}\r\n{body}");
            // The answer may come, and the connection go, before all is written.
            let _ = stream.write_all(request.as_bytes()).await;
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.unwrap();
            let code =
                std::str::from_utf8(&answer).unwrap().split(' ').nth(1).and_then(|code| code.parse().ok());
            assert_eq!(code, Some(status), "{line}");
        }
        server.abort();
    }
}
