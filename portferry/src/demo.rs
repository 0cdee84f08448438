//! `portferry demo`: a provider, a gateway and an application in one process, on the loopback interface, without root
//! and without configuration. What they say to each other goes through the real network stack, and is shown.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use engine::gateway::Gateway;
use engine::gateways::Gateways;
use engine::provider::{Prefix, Server, ServerConfig, ThirdParty};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use wire::description::ParsedDevice;
use wire::pcp::SERVER_PORT;
use wire::soap::AnswerError;
use wire::ssdp::{self, Message, Target};

use crate::clock::now;
use crate::config::Config;
use crate::control::{Asked, MappingReport, Question};
use crate::entropy::KernelEntropy;
use crate::event_loop::{Links, Shell, Signal};
use crate::exit::Failure;
use crate::memory_nat::{Heard, MemoryNat};
use crate::netlink::{Interface, Snapshot};
use crate::state::Identity;
use crate::{run, table};

const APPLICATION: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const GATEWAY_LAN: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const GATEWAY_WAN: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const PROVIDER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 4);
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 5);
/// Applications switch themselves off when the external address is reserved (spec/clients.md, K-6), so the provider
/// declares one that is not.
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(1, 2, 3, 4);
/// Short, so that a renewal can be watched.
const LIFETIME: u32 = 60;
/// The port that the application would like to have.
const WANTED: u16 = 6881;
const STEP: Duration = Duration::from_secs(5);

/// Plays it; with `once` it ends when the mapping has been shown to work.
pub fn demo(once: bool) -> Result<(), Failure> {
    run::runtime()?.block_on(play(once))
}

async fn play(once: bool) -> Result<(), Failure> {
    let server = provider_socket().await?;
    let server_addr = server.local_addr().map_err(|error| failed("the provider's socket", &error))?;
    let http_port = free_http_port()?;
    say(
        "portferry demo: an application, this gateway and a provider's NAT, all on the loopback interface.\n",
    );
    for (part, address) in [
        ("application", APPLICATION.to_string()),
        ("gateway, LAN side", GATEWAY_LAN.to_string()),
        ("gateway, WAN side", GATEWAY_WAN.to_string()),
        ("provider", format!("{PROVIDER}, which stands for the public address {EXTERNAL}")),
        ("stranger", STRANGER.to_string()),
    ] {
        say(&format!("   {part:<20} {address}"));
    }

    let mut config = ServerConfig::new(vec![EXTERNAL]);
    (config.shortest, config.longest) = (LIFETIME, LIFETIME);
    config.third_party = vec![ThirdParty { client: Prefix::ALL_V4, internal: vec![Prefix::ALL_V4] }];
    let trace = Rc::new(|heard| match heard {
        Heard::Request(request) => line("gateway", "provider", &request.to_string()),
        Heard::Response(response) => line("provider", "gateway", &response.to_string()),
    });
    let provider = MemoryNat::new(Server::new(now(), config, now()), server, PROVIDER, trace);

    let text = format!(
        "[lan]\ninterfaces = [\"lo\"]\nhttp_port = {http_port}\npcp = false\nnat_pmp = false\n[wan]\ninterface = \"wan\"\nnat = \"none\"\n\
         [uplink]\nservers = [\"{server_addr}\"]\n[igd]\nfriendly_name = \"portferry demo\"\n"
    );
    let mut config =
        Config::parse(Path::new("demo"), &text).expect("the demonstration's configuration is good");
    config.wan.interface.0 = "lo".to_owned();
    let identity = Identity::random();
    let device = run::device(&config, &identity);
    let usual = config.lines().remove(0);
    let mut engine_config = config.engine(&usual, device.clone());
    engine_config.policy.loopback_lan = true;
    let gateway = Gateway::new(engine_config, Box::new(KernelEntropy::new(identity.nonce_key)));
    let mut gateways = Gateways::new(gateway);

    let (signals, received) = mpsc::channel(4);
    let links = Links::Fixed(loopback()?, IpAddr::V4(GATEWAY_WAN));
    let shell = Shell::new(config, None, device, links, received);
    let asked = shell.asked();
    let interrupted = interrupt()?;
    let script = async {
        let result = application(http_port, &asked).await;
        if result.is_ok() && !once {
            interrupted.await;
            say("\nStopping: the gateway gives everything back.\n");
        }
        // The shell may have ended by itself, with a failure of its own.
        let _ = signals.send(Signal::Stop).await;
        result
    };
    let (ran, result) = tokio::select! {
        both = async { tokio::join!(shell.run(&mut gateways), script) } => both,
        Err(error) = provider.run() => return Err(failed("the provider's socket", &error)),
    };
    ran?;
    result?;
    say("\nDone.");
    Ok(())
}

/// The application's part, step by step, like any UPnP client; then a stranger's.
async fn application(http_port: u16, asked: &mpsc::Sender<Asked>) -> Result<(), Failure> {
    step(1, "The gateway learns its external address, before anybody asks");
    wait_for_address(asked).await?;

    step(2, "The application looks for a gateway (SSDP)");
    let location = search().await?;

    step(3, "It reads the gateway's description (HTTP)");
    let path = location.strip_prefix(&format!("http://{GATEWAY_LAN}:{http_port}")).unwrap_or("/").to_owned();
    line("application", "gateway", &format!("GET {path}"));
    let (_, body) = http(http_port, "GET", &path, None).await?;
    let device = wire::description::parse(body.as_bytes())
        .map_err(|_| Failure::system("the gateway's description cannot be read"))?;
    line("gateway", "application", &format!("{:?}, {}", device.friendly_name, short(&device.device_type)));

    step(
        4,
        "It asks for the external address, then for a port of it (SOAP); the gateway asks the provider (PCP)",
    );
    call(http_port, &device, "GetExternalIPAddress", &[]).await?;
    let listener =
        TcpListener::bind((APPLICATION, 0)).await.map_err(|error| failed("the application", &error))?;
    let internal = listener.local_addr().map_err(|error| failed("the application", &error))?.port();
    let external = map(http_port, &device, internal).await?;

    step(5, &format!("A stranger connects to {EXTERNAL}:{external} and the bytes arrive"));
    let arrived =
        stranger(listener, external).await.map_err(|error| failed("the stranger's connection", &error))?;
    line("stranger", "application", &format!("{arrived:?}"));

    step(6, "The gateway's table");
    for row in table::mappings(&mappings(asked).await?).lines() {
        say(&format!("   {row}"));
    }
    say(&format!(
        "\nTry it by hand while this runs (package miniupnpc), from another terminal:\n\n    \
         upnpc -u {location} -a {APPLICATION} 4000 4000 TCP\n    upnpc -u {location} -l\n\n\
         Renewals appear here, the first after half of the {LIFETIME} s that this provider grants. Ctrl-C ends."
    ));
    Ok(())
}

/// AddPortMapping, and where that port is taken, the next one: as applications do.
async fn map(http_port: u16, device: &ParsedDevice, internal: u16) -> Result<u16, Failure> {
    for external in WANTED..WANTED + 10 {
        let (external_text, internal_text) = (external.to_string(), internal.to_string());
        let arguments = [
            ("NewRemoteHost", ""),
            ("NewExternalPort", external_text.as_str()),
            ("NewProtocol", "TCP"),
            ("NewInternalPort", internal_text.as_str()),
            ("NewInternalClient", "127.0.0.1"),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", "demo"),
            ("NewLeaseDuration", "3600"),
        ];
        if call(http_port, device, "AddPortMapping", &arguments).await? {
            return Ok(external);
        }
    }
    Err(Failure::unavailable("the gateway gave none of ten ports"))
}

/// Calls an action and shows both directions; false for a fault.
async fn call(
    http_port: u16,
    device: &ParsedDevice,
    action: &str,
    arguments: &[(&str, &str)],
) -> Result<bool, Failure> {
    let service = device
        .services
        .iter()
        .find(|service| service.service_type.contains(":WANIPConnection:"))
        .ok_or_else(|| Failure::system("the gateway's description names no WANIPConnection"))?;
    let shown: Vec<String> = arguments
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{}={value}", name.trim_start_matches("New")))
        .collect();
    line("application", "gateway", format!("{action} {}", shown.join(" ")).trim_end());
    let soap_action = format!("\"{}#{action}\"", service.service_type);
    let body = wire::soap::encode_call(&service.service_type, action, arguments);
    let (status, body) = http(http_port, "POST", &service.control_url, Some((&soap_action, body))).await?;
    match wire::soap::decode_answer(body.as_bytes()) {
        Ok(answer) => {
            let values: Vec<String> = answer
                .values
                .iter()
                .map(|(name, value)| format!("{}={value}", name.trim_start_matches("New")))
                .collect();
            line("gateway", "application", format!("{action} OK {}", values.join(" ")).trim_end());
            Ok(true)
        }
        Err(AnswerError::Fault { code, description }) => {
            line("gateway", "application", &format!("{action} error {code} {description}"));
            Ok(false)
        }
        Err(AnswerError::Malformed) => {
            Err(Failure::system(format!("the gateway answers {action} with {status} and no SOAP")))
        }
    }
}

/// Searches by multicast, as every application does, and waits for the first answer of our own gateway.
async fn search() -> Result<String, Failure> {
    let what = "the search (is the loopback interface up?)";
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)
        .and_then(|socket| {
            socket.bind_device(Some(b"lo"))?;
            socket.bind(&SocketAddr::from((APPLICATION, 0)).into())?;
            socket.set_nonblocking(true)?;
            UdpSocket::from_std(socket.into())
        })
        .map_err(|error| failed(what, &error))?;
    let target = Target::Device { name: "InternetGatewayDevice".into(), version: 1 };
    line("application", "239.255.255.250", &format!("M-SEARCH {target}"));
    let text = ssdp::search(ssdp::HOST_V4, &target, Some(1));
    let group = SocketAddrV4::new(ssdp::GROUP_V4, ssdp::PORT);
    socket.send_to(text.as_bytes(), group).await.map_err(|error| failed(what, &error))?;
    let mut buffer = [0; ssdp::MAX_DATAGRAM];
    let ours = format!("http://{GATEWAY_LAN}:");
    let answer = async {
        loop {
            let (len, _) = socket.recv_from(&mut buffer).await?;
            if let Ok(Message::Response(response)) = ssdp::parse(&buffer[..len])
                && response.location.starts_with(&ours)
            {
                return Ok(response.location);
            }
        }
    };
    match tokio::time::timeout(STEP, answer).await {
        Ok(Ok(location)) => {
            line("gateway", "application", &format!("200 OK, LOCATION {location}"));
            Ok(location)
        }
        Ok(Err(error)) => Err(failed(what, &error)),
        Err(_) => Err(Failure::unavailable("nobody answered the search on the loopback interface")),
    }
}

async fn stranger(listener: TcpListener, external: u16) -> io::Result<String> {
    const GREETING: &[u8] = b"hello from the Internet";
    let send = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((STRANGER, 0)))?;
        let mut stream = socket.connect(SocketAddr::from((PROVIDER, external))).await?;
        stream.write_all(GREETING).await?;
        stream.shutdown().await
    };
    let receive = async {
        let (mut stream, _) = listener.accept().await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    };
    let both = async { tokio::try_join!(send, receive) };
    let ((), text) = tokio::time::timeout(STEP, both).await.map_err(|_| io::ErrorKind::TimedOut)??;
    Ok(text)
}

/// One HTTP exchange with the gateway.
async fn http(
    port: u16,
    method: &str,
    path: &str,
    soap: Option<(&str, String)>,
) -> Result<(StatusCode, String), Failure> {
    let exchange = async {
        let other = |error: hyper::Error| io::Error::other(error);
        let stream = TcpStream::connect((GATEWAY_LAN, port)).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(other)?;
        let connection = tokio::spawn(connection);
        let mut request =
            Request::builder().method(method).uri(path).header("Host", format!("{GATEWAY_LAN}:{port}"));
        let mut body = String::new();
        if let Some((action, text)) = soap {
            request =
                request.header("Content-Type", "text/xml; charset=\"utf-8\"").header("SOAPAction", action);
            body = text;
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(io::Error::other)?;
        let response = sender.send_request(request).await.map_err(other)?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(other)?.to_bytes();
        connection.abort();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    match tokio::time::timeout(STEP, exchange).await {
        Ok(result) => result.map_err(|error: io::Error| failed("the gateway's HTTP server", &error)),
        Err(_) => Err(Failure::unavailable("the gateway's HTTP server did not answer")),
    }
}

async fn question(asked: &mpsc::Sender<Asked>, question: Question) -> Result<String, Failure> {
    let (reply, waiting) = oneshot::channel();
    let gone = || Failure::system("the gateway has stopped");
    asked.send(Asked { question, reply }).await.map_err(|_| gone())?;
    waiting.await.map_err(|_| gone())
}

async fn mappings(asked: &mpsc::Sender<Asked>) -> Result<Vec<MappingReport>, Failure> {
    let text = question(asked, Question::Mappings).await?;
    serde_json::from_str(&text).map_err(|error| Failure::system(error.to_string()))
}

async fn wait_for_address(asked: &mpsc::Sender<Asked>) -> Result<(), Failure> {
    for _ in 0..100 {
        let text = question(asked, Question::Status).await?;
        let status: crate::control::StatusReport =
            serde_json::from_str(&text).map_err(|error| Failure::system(error.to_string()))?;
        if status.usual.external_address.is_some() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(Failure::unavailable("the provider of the demonstration did not answer"))
}

/// The provider's usual port, or any when another demonstration has it.
async fn provider_socket() -> Result<UdpSocket, Failure> {
    match UdpSocket::bind((PROVIDER, SERVER_PORT)).await {
        Ok(socket) => Ok(socket),
        Err(_) => {
            UdpSocket::bind((PROVIDER, 0)).await.map_err(|error| failed("the provider's socket", &error))
        }
    }
}

/// The usual port of descriptions and control, or any when it is taken.
fn free_http_port() -> Result<u16, Failure> {
    let bind = |port| std::net::TcpListener::bind((GATEWAY_LAN, port));
    let listener =
        bind(5431).or_else(|_| bind(0)).map_err(|error| failed("the gateway's HTTP server", &error))?;
    Ok(listener.local_addr().map_err(|error| failed("the gateway's HTTP server", &error))?.port())
}

/// The loopback interface as LAN and as WAN.
fn loopback() -> Result<Snapshot, Failure> {
    let index = std::fs::read_to_string("/sys/class/net/lo/ifindex")
        .map_err(|error| failed("the loopback interface", &error))?;
    let index = index.trim().parse().map_err(|_| Failure::system("the loopback interface has no number"))?;
    let lo = Interface {
        index,
        name: "lo".to_owned(),
        up: true,
        addresses: vec![(IpAddr::V4(GATEWAY_LAN), 8)],
        mac: None,
    };
    Ok(Snapshot { interfaces: vec![lo], ..Snapshot::default() })
}

/// Resolves at Ctrl-C or SIGTERM.
fn interrupt() -> Result<impl Future<Output = ()>, Failure> {
    let watch = |kind| signal(kind).map_err(|error| failed("signals", &error));
    let (mut interrupt, mut terminate) = (watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

fn failed(what: &str, error: &io::Error) -> Failure {
    Failure::system(format!("{what}: {error}"))
}

fn short(device_type: &str) -> &str {
    device_type.strip_prefix("urn:schemas-upnp-org:device:").unwrap_or(device_type)
}

fn step(number: u8, what: &str) {
    say(&format!("\n{number}. {what}"));
}

fn line(from: &str, to: &str, what: &str) {
    say(&format!("   {:<31} {what}", format!("{from} -> {to}")));
}

/// A reader that went away is no reason to stop.
fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}
