//! A NAT64 (RFC 6146) in network namespaces: IPv6-only hosts, and an Internet that has IPv4 only. Real processes as in
//! `end_to_end`, so it needs root, and TUN devices.
//!
//! ```text
//! cargo test -p lab --test nat64
//! ```

mod common;

use std::net::Ipv6Addr;

use wire::pcp::{
    Body, Filter, MapData, NO_ADDR_V4, Nonce, OptionCode, PcpOption, Prefix64, Protocol, Request, Response,
    ResultCode,
};

use common::{
    BOTH, PROBE, SECOND, TCP, UDP, ask, ask_within, name, pings, reaches, reaches_nobody, tagged, with_tun,
};
use lab::netns::{
    EXTERNAL, Host, INTERNET, LAN1_V6, LAN2_V6, NAT64_DEVICE, NAT64_PREFIX, NAT64_SERVER, Network,
    PROVIDER_INTERNET, Process,
};

const LAB_NAT64: &str = env!("CARGO_BIN_EXE_lab-nat64");

fn network() -> Option<Network> {
    with_tun(Network::nat64)
}

fn data_plane(network: &Network, bindings: &[String]) -> Process {
    let mut arguments = vec![
        NAT64_DEVICE.to_owned(),
        NAT64_SERVER.to_string(),
        NAT64_PREFIX.to_string(),
        EXTERNAL.to_string(),
    ];
    arguments.extend_from_slice(bindings);
    let mut process = network.spawn(Host::Provider, "nat64", LAB_NAT64, arguments);
    process.await_log("ready", 5 * SECOND);
    process
}

/// The Internet's host as IPv6-only hosts know it.
fn internet() -> Ipv6Addr {
    lab::packet::Prefix64::from(NAT64_PREFIX).embed(INTERNET)
}

/// Answers with the host's name, to whatever version of IP.
#[track_caller]
fn listener(network: &Network, host: Host, protocol: u8, port: u16) -> Process {
    tagged(network, host, protocol, (Ipv6Addr::UNSPECIFIED, port), &host.to_string())
}

// ── The data plane ─────────────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn ipv6_only_hosts_reach_the_internet() {
    let Some(network) = network() else { return };
    let _plane = data_plane(&network, &[]);
    let listeners = BOTH.map(|protocol| common::listener(&network, Host::Internet, protocol, 7000));
    let to = (internet(), 7000);
    for host in [Host::Lan1, Host::Lan2] {
        assert!(pings(&network, host, internet(), 3 * SECOND), "ping from {host}");
        assert!(pings(&network, host, NAT64_SERVER, 3 * SECOND), "the NAT64 itself answers {host}");
        for protocol in BOTH {
            let heard = ask(&network, host, protocol, to, &format!("from-{host}"));
            assert_eq!(heard, Ok(format!("internet:from-{host}")), "{} {host}", name(protocol));
        }
    }
    for listener in &listeners {
        let log = listener.log();
        assert_eq!(log.matches(&format!("{EXTERNAL}:")).count(), 2, "{log}");
    }
    let text = "x".repeat(100_000);
    let heard = ask(&network, Host::Lan1, TCP, to, &text);
    assert!(heard == Ok(format!("internet:{text}")), "100,000 octets there and back");
    let heard = ask(&network, Host::Lan1, UDP, (internet(), 7001), "knock");
    assert!(heard.as_ref().is_err_and(|heard| heard.contains("refused")), "{heard:?}");
}

/// What would have to be fragmented in IPv6 (RFC 7915 §4.1) is lost, and that is counted.
#[test]
fn what_may_be_fragmented_is_lost_when_it_is_too_long() {
    let Some(network) = network() else { return };
    let mut plane = data_plane(&network, &[format!("udp/[{LAN1_V6}]:80={EXTERNAL}:8080")]);
    let mut listener = listener(&network, Host::Lan1, UDP, 80);
    network.run(Host::Internet, "sysctl", ["-qw", "net.ipv4.ip_no_pmtu_disc=1"]);
    let send = |length, wait| {
        let text = "x".repeat(length);
        let heard = ask_within(wait, &network, Host::Internet, UDP, (EXTERNAL, 8080), &text);
        (heard.is_ok(), format!(" {text}\n"))
    };
    let (answered, _) = send(1447, 3 * SECOND); // with `lan1:` before it, it is 1,500 octets of IPv6
    assert!(answered);
    assert!(!plane.log().contains("a fragment"), "{}", plane.log());
    let (_, lost) = send(1453, SECOND / 1000);
    plane.await_log("refused: a fragment, 2 so far", 3 * SECOND);
    let (_, longest) = send(1452, SECOND / 1000);
    listener.await_log(&longest, 3 * SECOND);
    assert!(!listener.log().contains(&lost), "it is not there");
}

#[test]
fn a_binding_leads_to_its_host_and_nowhere_else() {
    let Some(network) = network() else { return };
    let mut bindings = Vec::new();
    for protocol in BOTH.map(name) {
        bindings.push(format!("{protocol}/[{LAN1_V6}]:80={EXTERNAL}:8080"));
        bindings.push(format!("{protocol}/[{LAN2_V6}]:80={EXTERNAL}:8081"));
    }
    let _plane = data_plane(&network, &bindings);
    let hosts = [Host::Lan1, Host::Lan2];
    let _listeners = hosts.map(|host| BOTH.map(|protocol| listener(&network, host, protocol, 80)));
    let external = lab::packet::Prefix64::from(NAT64_PREFIX).embed(EXTERNAL);
    for protocol in BOTH {
        reaches(&network, protocol, 8080, "lan1");
        reaches(&network, protocol, 8081, "lan2");
        reaches_nobody(&network, protocol, 8082);
        for host in hosts {
            let heard = ask(&network, host, protocol, (external, 8081), "hello");
            assert_eq!(heard, Ok("lan2:hello".to_owned()), "{} from {host}", name(protocol));
        }
    }
}

// ── A host asks the NAT64 ──────────────────────────────────────────────────────────────────────────────────────────

/// A PCP client without any memory, on a host of the LAN.
struct Client<'a> {
    network: &'a Network,
    host: Host,
    addr: Ipv6Addr,
    nonce: Nonce,
}

impl Client<'_> {
    #[track_caller]
    fn ask(&self, lifetime: u32, body: Body, options: Vec<PcpOption>) -> Response {
        let request = Request { lifetime, client_addr: self.addr, body, options }.to_bytes();
        let hex: String = request.iter().map(|octet| format!("{octet:02x}")).collect();
        let server = format!("[{NAT64_SERVER}]:5351");
        let answer = self.network.run(self.host, PROBE, ["udp-exchange", &server, &hex, "3000"]);
        let digits: Vec<u32> = answer.trim().chars().map(|digit| digit.to_digit(16).expect("hex")).collect();
        let octets: Vec<u8> = digits
            .chunks(2)
            .map(|pair| {
                u8::try_from(pair.iter().fold(0, |octet, digit| octet << 4 | digit)).expect("two digits")
            })
            .collect();
        Response::parse(&octets).expect("the server answers in PCP")
    }

    /// MAP of internal port 7000 with a suggested external port at whatever IPv4 address.
    #[track_caller]
    fn map(&self, protocol: u8, external_port: u16, lifetime: u32, options: Vec<PcpOption>) -> Response {
        let (nonce, protocol) = (self.nonce, Protocol(protocol));
        let external_addr = NO_ADDR_V4;
        let data = MapData { nonce, protocol, internal_port: 7000, external_port, external_addr };
        self.ask(lifetime, Body::Map(data), options)
    }
}

/// Where a mapping is outside.
#[track_caller]
fn assigned(response: &Response) -> (Ipv6Addr, u16) {
    let Body::Map(data) = &response.body else { panic!("not MAP: {response:?}") };
    assert_eq!(response.result, ResultCode::SUCCESS, "{response:?}");
    (data.external_addr, data.external_port)
}

/// RFC 6887 §11.3 with an IPv4 address outside and an IPv6 host inside.
#[test]
fn a_host_maps_a_port_of_an_ipv4_address() {
    let Some(network) = network() else { return };
    let _plane = data_plane(&network, &[]);
    let hosts = [Host::Lan1, Host::Lan2];
    let _listeners = hosts.map(|host| BOTH.map(|protocol| listener(&network, host, protocol, 7000)));
    let client = |host, addr, nonce| Client { network: &network, host, addr, nonce: Nonce([nonce; 12]) };
    let [one, two] = [client(Host::Lan1, LAN1_V6, 1), client(Host::Lan2, LAN2_V6, 2)];
    let external = EXTERNAL.to_ipv6_mapped();

    for protocol in BOTH {
        reaches_nobody(&network, protocol, 8080);
        assert_eq!(assigned(&one.map(protocol, 8080, 3600, Vec::new())), (external, 8080));
        reaches(&network, protocol, 8080, "lan1");
        let refused = two.map(protocol, 8080, 3600, vec![PcpOption::PreferFailure]);
        assert_eq!(refused.result, ResultCode::CANNOT_PROVIDE_EXTERNAL);
        let (addr, port) = assigned(&two.map(protocol, 8080, 3600, Vec::new()));
        assert_eq!(addr, external);
        assert_ne!(port, 8080);
        reaches(&network, protocol, port, "lan2");
        // From one host to the other by the external address.
        let external = lab::packet::Prefix64::from(NAT64_PREFIX).embed(EXTERNAL);
        let heard = ask(&network, Host::Lan2, protocol, (external, 8080), "hello");
        assert_eq!(heard, Ok("lan1:hello".to_owned()));
        assert_eq!(one.map(protocol, 0, 0, Vec::new()).result, ResultCode::SUCCESS);
        reaches_nobody(&network, protocol, 8080);
        reaches(&network, protocol, port, "lan2");
    }
}

/// RFC 6887 §13.3: remote peers have the family of the internal address, which the prefix of the NAT64 gives them.
#[test]
fn filters_are_enforced() {
    let Some(network) = network() else { return };
    let _plane = data_plane(&network, &[]);
    let _listener = listener(&network, Host::Lan1, UDP, 7000);
    let client = Client { network: &network, host: Host::Lan1, addr: LAN1_V6, nonce: Nonce([1; 12]) };
    let only = |remote_addr| {
        [0, 128]
            .map(|prefix_len| PcpOption::Filter(Filter { prefix_len, remote_port: 0, remote_addr }))
            .to_vec()
    };
    let elsewhere = lab::packet::Prefix64::from(NAT64_PREFIX).embed(PROVIDER_INTERNET);
    assigned(&client.map(UDP, 8080, 3600, only(elsewhere)));
    reaches_nobody(&network, UDP, 8080);
    assigned(&client.map(UDP, 8080, 3600, only(internet())));
    reaches(&network, UDP, 8080, "lan1");
}

/// RFC 7225 §4: a host learns the prefix from the server.
#[test]
fn the_prefix_is_told() {
    let Some(network) = network() else { return };
    let _plane = data_plane(&network, &[]);
    let client = Client { network: &network, host: Host::Lan1, addr: LAN1_V6, nonce: Nonce([1; 12]) };
    let prefix = |octets: [u8; 12]| {
        PcpOption::Prefix64(Prefix64 {
            prefix: octets.to_vec(),
            suffix: Vec::new(),
            ipv4_prefixes: Vec::new(),
        })
    };
    let expected = prefix(lab::packet::Prefix64::WELL_KNOWN.octets());
    for answer in
        [client.map(UDP, 0, 120, vec![prefix([0; 12])]), client.ask(0, Body::Announce, vec![prefix([0; 12])])]
    {
        assert_eq!(answer.result, ResultCode::SUCCESS, "{answer:?}");
        assert_eq!(answer.option(OptionCode::PREFIX64), Some(&expected));
    }
}
