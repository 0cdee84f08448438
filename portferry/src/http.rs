//! The HTTP server of the LAN side: descriptions out, control requests in. It checks who asks and in what form, and
//! decides nothing else.
//!
//! The connection is hyper's; here are the limits, the guards against web pages (DNS rebinding, cross-site requests), and
//! the way of a control request to the gateway and back.

mod counters;
mod patience;
mod places;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::device::Devices;
use engine::gena::SubscribeError;
use engine::policy::Known;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use wire::description::Uuid;
use wire::error::UpnpError;
use wire::gena::{self, GenaError, Subscribe};
use wire::services::{Face, Resource, Service};
use wire::soap::{self, SoapError};

use crate::neighbours::Neighbours;
use patience::{Patient, WRITE_TIME};
use places::Place;

pub use counters::{Counted, Counters};
pub use places::Places;

/// Limits of the security policy.
const MAX_BODY: usize = 64 * 1024;
const MAX_HEAD: usize = 16 * 1024;
const MAX_FIELDS: usize = 64;
const HEAD_TIME: Duration = Duration::from_secs(10);
const BODY_TIME: Duration = Duration::from_secs(10);
/// A connection takes no new request after this, whatever it does; then it has [`WRITE_TIME`] for the last answer, beside what the
/// gateway takes for that.
const CONNECTION_TIME: Duration = Duration::from_secs(60);

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
    /// What the neighbour table shows of it.
    pub known: Known,
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
    /// The owner is asked about hosts (`policy.default`), who are known by their network cards, so that each is looked up.
    pub asks_owner: AtomicBool,
    /// Connections of each host.
    pub connections: Arc<Mutex<Places>>,
    /// What has become of them.
    pub counters: Counters,
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
            Ok((stream, peer)) => {
                let place = on_link(peer.ip()).then(|| Place::take(&context.connections, peer.ip()));
                let Some(place) = place.flatten() else {
                    context.counters.turned_away();
                    continue;
                };
                // Answers are small and complete: waiting for more to send only delays them.
                let _ = stream.set_nodelay(true);
                tokio::spawn(connection(TokioIo::new(stream), door, peer.ip(), place, context.clone()));
            }
            // Too many open files, a peer that hung up early: transient, whatever it is (spec: `accept` ends nothing).
            Err(error) => {
                tracing::debug!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(
    stream: impl hyper::rt::Read + hyper::rt::Write + Unpin,
    door: Door,
    peer: IpAddr,
    place: Place,
    context: Arc<Context>,
) {
    let context = &*context;
    let busy = Arc::new(AtomicBool::new(false));
    let stream = Patient::new(stream, busy.clone());
    let busy = &busy;
    let service = hyper::service::service_fn(|request| async move {
        busy.store(true, Ordering::Relaxed);
        let mut response = answer(request, door, peer, context).await;
        busy.store(false, Ordering::Relaxed);
        context.counters.answer(response.status());
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
        .serve_connection(stream, service);
    let mut connection = std::pin::pin!(connection);
    let served = async {
        match tokio::time::timeout(CONNECTION_TIME, connection.as_mut()).await {
            Ok(ended) => Some(ended),
            Err(_) => {
                // The answer under way is finished, if the peer reads it.
                connection.as_mut().graceful_shutdown();
                tokio::time::timeout(context.patience + WRITE_TIME, connection).await.ok()
            }
        }
    };
    let ended = tokio::select! {
        ended = served => ended,
        () = place.lost() => None,
    };
    match ended {
        Some(Ok(())) => {}
        // An error is the peer's: it sent what is no HTTP (hyper has answered 400), …
        Some(Err(error)) if error.is_parse() => {
            context.counters.malformed();
            tracing::debug!("connection of {peer}: {error}");
        }
        // … went away, or was too slow.
        Some(Err(error)) => {
            context.counters.dropped();
            tracing::debug!("connection of {peer}: {error}");
        }
        None => context.counters.dropped(),
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
    let body = match tokio::time::timeout(BODY_TIME, whole(body)).await {
        Ok(Ok(body)) => body,
        Ok(Err(code)) => return status(code),
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

/// The body, [`MAX_BODY`] octets at most. It is copied piece by piece: a piece that were kept as it is would keep the whole buffer that it
/// was read into, which is 8 KiB for an octet that comes alone.
async fn whole(mut body: hyper::body::Incoming) -> Result<Vec<u8>, StatusCode> {
    const TOO_LARGE: StatusCode = StatusCode::PAYLOAD_TOO_LARGE;
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(TOO_LARGE);
    }
    let mut whole = Vec::with_capacity(usize::try_from(body.size_hint().lower()).unwrap_or(0));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| StatusCode::BAD_REQUEST)?;
        // Trailers say nothing that matters here.
        let data = frame.data_ref().map(|data| &data[..]).unwrap_or_default();
        if whole.len() + data.len() > MAX_BODY {
            return Err(TOO_LARGE);
        }
        whole.extend_from_slice(data);
    }
    Ok(whole)
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
    let asks = service == Service::WanIpConnection && context.asks_owner.load(Ordering::Relaxed);
    let known = match asks || needs_others(from, service) {
        true => context.neighbours.of(interface, from).await,
        false => Known::default(),
    };
    let (reply, waiting) = oneshot::channel();
    context.gateway.send(Incoming { from, known, interface, what: what(reply) }).await.ok()?;
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
            asks_owner: AtomicBool::new(false),
            connections: Arc::default(),
            counters: Counters::default(),
        })
    }

    /// H-1, H-3, H-5, H-6, C-9, on a real connection: one row a request.
    #[tokio::test]
    async fn statuses_of_requests_as_they_come() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        use tokio::net::TcpStream;

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
            (
                &*format!("OPTIONS {control} HTTP/1.1"),
                "Origin: http://evil.example\r\nAccess-Control-Request-Method: POST\r\n".into(),
                "",
                403,
            ),
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
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            let answer = String::from_utf8(answer).unwrap().to_ascii_lowercase();
            let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
            assert_eq!(code, Some(status), "{line}");
            assert!(!answer.contains("access-control-"), "no page may read it: {answer}");
        }
        server.abort();
        let counted = context.counters.read();
        assert_eq!((counted.answered, counted.faults, counted.turned_away), (3, 0, 0));
        // hyper answers before it tells that the connection is over.
        assert!(counted.refused >= 13, "{counted:?}");
    }

    /// A connection of a peer at the other end of a pipe that holds `room` octets.
    fn served(context: &Arc<Context>, room: usize) -> tokio::io::DuplexStream {
        let (peer, ours) = tokio::io::duplex(room);
        let host = IpAddr::from([192, 168, 1, 10]);
        let place = Place::take(&context.connections, host).expect("there is room");
        let door = Door { own: "192.168.1.1:5431".parse().unwrap(), interface: 1 };
        tokio::spawn(connection(TokioIo::new(ours), door, host, place, context.clone()));
        peer
    }

    /// How long it takes until the connection is over, reading what comes by `pause`s of so many octets.
    async fn lasts(mut peer: tokio::io::DuplexStream, reads: Option<Duration>) -> (Duration, Vec<u8>) {
        use tokio::io::AsyncReadExt;

        let began = tokio::time::Instant::now();
        let mut said = Vec::new();
        if let Some(pause) = reads {
            let mut octet = [0];
            while matches!(peer.read(&mut octet).await, Ok(1)) {
                said.push(octet[0]);
                tokio::time::sleep(pause).await;
            }
        }
        // A pipe whose other end is gone takes nothing more.
        while tokio::io::AsyncWriteExt::write_all(&mut peer, b"\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        (began.elapsed(), said)
    }

    fn seconds(range: std::ops::Range<u64>, took: Duration) -> bool {
        range.contains(&took.as_secs())
    }

    const GET: &str = "GET /v1/igd.xml HTTP/1.1\r\nHost: 192.168.1.1:5431\r\n\r\n";

    /// The security policy's times of HTTP: 5 s between requests, 10 s for a head, 10 s for a body, 10 s for who does not read.
    #[tokio::test(start_paused = true)]
    async fn nobody_holds_a_connection_for_longer_than_its_time() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let context = context();
        let gone = || context.counters.read().dropped;

        // Silence from the start, and after an answer.
        for request in ["", GET] {
            let mut peer = served(&context, 1 << 20);
            peer.write_all(request.as_bytes()).await.unwrap();
            let began = tokio::time::Instant::now();
            let mut said = Vec::new();
            peer.read_to_end(&mut said).await.unwrap();
            assert!(seconds(5..6, began.elapsed()), "{:?} {}", began.elapsed(), said.len());
            assert_eq!(said.is_empty(), request.is_empty());
        }
        assert_eq!(gone(), 0, "that is nobody's fault");

        // A head, an octet a second.
        let mut peer = served(&context, 1 << 20);
        let began = tokio::time::Instant::now();
        for octet in GET.as_bytes().iter().cycle() {
            if peer.write_all(&[*octet]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(seconds(9..12, began.elapsed()), "{:?}", began.elapsed());

        // A body that stops: 408, and the connection with it.
        let identity = context.devices.identity();
        let control = Service::WanIpConnection.control_path(Face::V1, &identity.url_token);
        let mut peer = served(&context, 1 << 20);
        let head = format!(
            "POST {control} HTTP/1.1\r\nHost: 192.168.1.1:5431\r\nSOAPACTION: a#b\r\nContent-Length: 60000\r\n\r\n<"
        );
        peer.write_all(head.as_bytes()).await.unwrap();
        let began = tokio::time::Instant::now();
        let mut said = String::new();
        peer.read_to_string(&mut said).await.unwrap();
        assert!(said.starts_with("HTTP/1.1 408 "), "{said}");
        assert!(seconds(10..12, began.elapsed()), "{:?}", began.elapsed());

        // Answers that nobody reads, and one that is read an octet a second: 10 s from the first that has no room.
        for reads in [None, Some(Duration::from_secs(1))] {
            let before = gone();
            let mut peer = served(&context, 256);
            peer.write_all(GET.as_bytes()).await.unwrap();
            let (took, said) = lasts(peer, reads).await;
            assert!(reads.is_some() || seconds(10..12, took), "{took:?}");
            assert!(said.len() < 300, "{}", said.len());
            assert_eq!(gone(), before + 1);
        }
        assert!(context.connections.lock().unwrap().is_empty());
    }
}
