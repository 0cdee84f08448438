//! `portferry pcp …` as a program, against a server of this test on the loopback interface: what only real sockets and a
//! real clock show. Against a server that others wrote see `lab/tests/pcp_client.rs`.

use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use wire::pcp::{
    self, Body, MapData, NextMapping, PcpOption, PeerData, Prefix64, Request, Response, ResultCode,
};

/// A socket that a client is served from.
fn socket(addr: impl Into<IpAddr>) -> UdpSocket {
    let socket = UdpSocket::bind(SocketAddr::new(addr.into(), 0)).expect("the loopback interface is there");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("that is no zero");
    socket
}

fn receive(socket: &UdpSocket) -> (Request, SocketAddr) {
    let mut buffer = [0; 2048];
    let (len, from) = socket.recv_from(&mut buffer).expect("the client asks");
    (Request::parse(&buffer[..len]).expect("a good request"), from)
}

fn answer(request: &Request) -> Response {
    let body = match request.body.clone() {
        Body::Map(map) => {
            Body::Map(MapData { external_addr: pcp::mapped(Ipv4Addr::new(203, 0, 114, 1)), ..map })
        }
        other => other,
    };
    let (lifetime, options) = (request.lifetime, request.options.clone());
    Response { result: ResultCode::SUCCESS, lifetime, epoch: 100, body, options }
}

fn start(server: &UdpSocket, line: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_portferry"))
        .arg("pcp")
        .args(line.split(' '))
        .arg("--server")
        .arg(server.local_addr().expect("it is bound").to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program was built with this test")
}

fn ends(client: Child) -> (i32, String, String) {
    let Output { status, stdout, stderr } = client.wait_with_output().expect("it can be waited for");
    let text = |octets: Vec<u8>| String::from_utf8(octets).expect("it prints text");
    (status.code().expect("it ends by itself"), text(stdout), text(stderr))
}

/// RFC 6887 §8.1.1, §8.3: asked again by itself; an answer from another port is not believed, and shown with --verbose.
#[test]
fn a_lost_datagram_and_a_stranger() {
    let (server, stranger) = (socket(Ipv4Addr::LOCALHOST), socket(Ipv4Addr::LOCALHOST));
    let mut client = start(&server, "map tcp 8080 8080 --verbose");
    let (first, _) = receive(&server);
    let (again, from) = receive(&server);
    assert_eq!(first, again);
    stranger.send_to(&answer(&again).to_bytes(), from).unwrap();
    // The two come by different sockets of the client: the good one waits until the other has been seen.
    let mut reader = BufReader::new(client.stdout.take().expect("piped"));
    let mut out = String::new();
    while !out.contains("ignored") {
        assert_ne!(reader.read_line(&mut out).expect("text"), 0, "it ended with: {out}");
    }
    server.send_to(&answer(&again).to_bytes(), from).unwrap();
    reader.read_to_string(&mut out).expect("text");
    let (code, _, errors) = ends(client);
    assert_eq!(code, 0, "{out}{errors}");
    let stranger = stranger.local_addr().unwrap();
    assert!(
        out.contains(&format!("ignored 60 octets: it comes from {stranger}, which was not asked")),
        "{out}"
    );
    assert!(out.contains("(try 2)") && out.contains("-> 203.0.114.1:8080"), "{out}");
}

/// DS-Lite in plain IPv6: the server's address and the client's are IPv6, the mapping is for an IPv4 host.
#[test]
fn ipv6_with_a_third_party() {
    let server = socket(Ipv6Addr::LOCALHOST);
    let client = start(&server, "map udp 53 --third-party 10.0.0.5");
    let (request, from) = receive(&server);
    assert_eq!(request.client_addr, Ipv6Addr::LOCALHOST);
    assert_eq!(request.options, [PcpOption::ThirdParty(pcp::mapped(Ipv4Addr::new(10, 0, 0, 5)))]);
    server.send_to(&answer(&request).to_bytes(), from).unwrap();
    let (code, out, errors) = ends(client);
    assert_eq!(code, 0, "{out}{errors}");
    assert!(out.contains("mapping      UDP 10.0.0.5:53 -> 203.0.114.1"), "{out}");
}

/// `wire::pcp::query`: two pages, and a table of them.
#[test]
fn a_list_of_two_pages() {
    let server = socket(Ipv4Addr::LOCALHOST);
    let client = start(&server, "get");
    for port in [1, 2] {
        let (request, from) = receive(&server);
        let seen = request.options.iter().filter(|option| matches!(option, PcpOption::Next(_))).count();
        assert_eq!(seen, usize::from(port) - 1, "the last mapping seen is in the second question only");
        let next = NextMapping {
            nonce: pcp::Nonce([port.try_into().unwrap(); 12]),
            protocol: pcp::Protocol::TCP,
            more: port == 1,
            internal_addr: pcp::mapped(Ipv4Addr::new(10, 0, 0, 5)),
            external_addr: pcp::mapped(Ipv4Addr::new(203, 0, 114, 1)),
            lifetime: 3599,
            internal_port: port,
            external_port: 9000 + port,
            options: vec![PcpOption::Description(b"web".to_vec())],
        };
        let page = Response { options: vec![PcpOption::Next(next)], ..answer(&request) };
        server.send_to(&page.to_bytes(), from).unwrap();
    }
    let (code, out, errors) = ends(client);
    assert_eq!(code, 0, "{out}{errors}");
    assert!(
        out.ends_with(
            "\n\
             PROTO  INTERNAL    EXTERNAL          LEFT     NONCE                     OPTIONS\n\
             TCP    10.0.0.5:1  203.0.114.1:9001  59m 59s  010101010101010101010101  DESCRIPTION \"web\"\n\
             TCP    10.0.0.5:2  203.0.114.1:9002  59m 59s  020202020202020202020202  DESCRIPTION \"web\"\n"
        ),
        "{out}"
    );
}

/// The server says that it speaks version 0: NAT-PMP, without being told to.
#[test]
fn nat_pmp_when_the_server_says_so() {
    let server = socket(Ipv4Addr::LOCALHOST);
    let client = start(&server, "external");
    let (_, from) = receive(&server);
    server.send_to(&[0, 129, 0, 1, 0, 0, 0, 9], from).unwrap();
    let mut buffer = [0; 64];
    let (len, from) = server.recv_from(&mut buffer).expect("the client asks again");
    assert_eq!(buffer[..len], [0, 0]);
    server.send_to(&[0, 128, 0, 0, 0, 0, 0, 9, 203, 0, 114, 1], from).unwrap();
    let (code, out, errors) = ends(client);
    assert_eq!(code, 0, "{out}{errors}");
    assert!(out.contains("asking by NAT-PMP") && out.contains("external  203.0.114.1\n"), "{out}");
}

/// RFC 6887 §12: the remote peer is asked for and shown, and nothing is said to delete it with.
#[test]
fn a_mapping_towards_one_remote_peer() {
    let server = socket(Ipv4Addr::LOCALHOST);
    let client = start(&server, "peer udp 53 203.0.113.9:443 8053");
    let (request, from) = receive(&server);
    let Body::Peer(peer) = request.body else { panic!("PEER, not {request}") };
    assert_eq!((peer.internal_port, peer.external_port, peer.remote_port), (53, 8053, 443));
    let external_addr = pcp::mapped(Ipv4Addr::new(203, 0, 114, 1));
    let body = Body::Peer(PeerData { external_addr, ..peer });
    server.send_to(&Response { body, ..answer(&request) }.to_bytes(), from).unwrap();
    let (code, out, errors) = ends(client);
    assert_eq!(code, 0, "{out}{errors}");
    assert!(
        out.contains("mapping   UDP 127.0.0.1:53 -> 203.0.114.1:8053, for 203.0.113.9:443 only\n"),
        "{out}"
    );
    assert!(out.contains("a PEER mapping cannot be deleted") && !out.contains("delete with"), "{out}");
}

/// RFC 7225: asked for by ::/96, by MAP and by ANNOUNCE.
#[test]
fn the_prefix_of_a_nat64() {
    let server = socket(Ipv6Addr::LOCALHOST);
    let prefix: Ipv6Addr = "64:ff9b::".parse().unwrap();
    let prefix64 = |prefix: &[u8]| {
        let (prefix, suffix, ipv4_prefixes) = (prefix.to_vec(), vec![], vec![]);
        PcpOption::Prefix64(Prefix64 { prefix, suffix, ipv4_prefixes })
    };
    for line in ["announce --prefix64", "map tcp 8080 0.0.0.0 --prefix64"] {
        let client = start(&server, line);
        let (request, from) = receive(&server);
        assert_eq!(request.options, [prefix64(&[0; 12])]);
        let options = vec![prefix64(&prefix.octets()[..12])];
        server.send_to(&Response { options, ..answer(&request) }.to_bytes(), from).unwrap();
        let (code, out, errors) = ends(client);
        assert_eq!(code, 0, "{out}{errors}");
        assert!(out.contains("PREFIX64 64:ff9b::/96") && !out.contains("ignored"), "{out}");
    }
}

/// RFC 6887 §13.2: what was not as asked is given back, and Ctrl-C waits for that, also where nothing is kept.
#[test]
fn an_interrupt_waits_until_it_is_given_back() {
    let server = socket(Ipv4Addr::LOCALHOST);
    let client = start(&server, "map tcp 8080 8080 --prefer-failure --json");
    let (request, from) = receive(&server);
    let Body::Map(map) = request.body else { panic!("MAP, not {request}") };
    let body = Body::Map(MapData { external_port: 8081, ..map });
    server.send_to(&Response { body, ..answer(&request) }.to_bytes(), from).unwrap();
    let (delete, _) = receive(&server);
    assert_eq!(delete.lifetime, 0);
    let kill = Command::new("kill").args(["-INT", &client.id().to_string()]).status();
    assert!(kill.expect("there is a kill").success());
    let (again, from) = receive(&server);
    assert_eq!(delete, again);
    server.send_to(&answer(&again).to_bytes(), from).unwrap();
    let (code, out, _) = ends(client);
    assert_eq!(code, 76, "{out}");
    assert!(out.contains("\"not as asked\"") && out.contains("\"remaining\": 0"), "{out}");
    assert!(out.contains("Ctrl-C again"), "it says what it waits for: {out}");
}
