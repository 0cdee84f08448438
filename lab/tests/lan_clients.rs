//! Clients of all protocols side by side on the LAN, none of them ours: natpmpc (NAT-PMP), crab_nat (PCP and NAT-PMP), libtorrent (UPnP and
//! PCP at once) and upnpc; against the provider's servers that there are, with and without a NAT of the router's own. Needs root.
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test lan_clients
//! ```

mod common;

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};

use common::pcp::Pcp;
use common::{
    CASCADED, ControlPoint, NAT, NO_NAT, PROBE, ROUTED, SECOND, TCP, UDP, interworking_subject, lan_address,
    listener, name, reaches, reaches_nobody, ready,
};
use lab::netns::{
    self, EXTERNAL, Host, INTERNET, LAN1, LAN2, Layout, Network, Process, ROUTER_LAN, ROUTER_WAN,
};
use lab::pcp_server::{PcpServer, SUBSCRIBERS};
use lab::provider::{Options, Provider};
use lab::subject::{self, Subject};
use lab::wait::eventually;
use serde_json::Value;

const CRAB_NAT: &str = env!("CARGO_BIN_EXE_lab-crab-nat");

/// A provider's server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Of {
    Miniupnpd,
    Ours,
}

/// Who is at the provider, and what stands in between.
const ALL: [(Of, Layout, &str); 3] =
    [(Of::Miniupnpd, CASCADED, NAT), (Of::Ours, CASCADED, NAT), (Of::Miniupnpd, ROUTED, NO_NAT)];

enum Upstream<'a> {
    Miniupnpd(Provider<'a>),
    Ours(PcpServer<'a>),
}

impl<'a> Upstream<'a> {
    fn start(of: Of, network: &'a Network, subject: &Subject) -> Self {
        match (of, subject) {
            (Of::Ours, Subject::Portferry(program)) => {
                Self::Ours(PcpServer::start(network, program, &[SUBSCRIBERS], "[mappings]\nhold = 0\n"))
            }
            _ => {
                let third_party = true; // without a NAT of the router's own
                Self::Miniupnpd(Provider::start(network, Options { third_party, ..Options::default() }))
            }
        }
    }

    /// External ports there, but that of the mapping that tells the external address.
    fn ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = match self {
            Self::Miniupnpd(provider) => {
                let all = provider.forwardings().into_iter();
                all.filter(|one| one.to.port() != 9).map(|one| one.external_port).collect()
            }
            Self::Ours(server) => {
                let port = |mapping: &Value, what: &str| -> u16 {
                    let text = mapping[what].as_str().expect("text");
                    text.rsplit_once(':').expect("a port").1.parse().expect("a number")
                };
                let all = server.mappings();
                all.iter().filter(|one| port(one, "internal") != 9).map(|one| port(one, "external")).collect()
            }
        };
        ports.sort_unstable();
        ports
    }
}

/// What our table says: external port, internal host, by which protocols.
fn table(network: &Network) -> Vec<(u16, Ipv4Addr, String)> {
    let answer = subject::ask(network, "mappings").expect("the daemon answers");
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    let mut all: Vec<_> = answer
        .as_array()
        .expect("an array")
        .iter()
        .map(|mapping| {
            let text = |key: &str| mapping[key].as_str().expect("text").to_owned();
            let (_, port) =
                text("external").rsplit_once(':').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("a port");
            let host = text("internal").rsplit_once(':').expect("a port").0.parse().expect("an address");
            let by: Vec<&str> = mapping["asked_by"]
                .as_array()
                .expect("an array")
                .iter()
                .map(|by| by.as_str().expect("text"))
                .collect();
            (port.parse().expect("a number"), host, by.join("+"))
        })
        .collect();
    all.sort();
    all
}

/// libnatpmp asks the router; what it says.
fn natpmpc(network: &Network, host: Host, arguments: &[&str]) -> String {
    let mut command = network.command(host, "timeout");
    command.args(["20", "natpmpc", "-g", &ROUTER_LAN.to_string()]).args(arguments);
    netns::text(&command.output().expect("it runs"))
}

/// crab_nat keeps a mapping until it is told to drop it.
struct CrabNat {
    child: Child,
    stdin: ChildStdin,
}

impl CrabNat {
    fn maps(network: &Network, which: &str, host: Host, protocol: u8, internal: u16, external: u16) -> Self {
        let mut child = network
            .command(host, CRAB_NAT)
            .args([which, &ROUTER_LAN.to_string(), &lan_address(host).to_string(), name(protocol)])
            .args([internal.to_string(), external.to_string(), "600".to_owned()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let stdin = child.stdin.take().expect("piped above");
        Self { child, stdin }
    }

    /// What it has said in the end.
    fn ends(mut self, words: &str) -> String {
        self.stdin.write_all(words.as_bytes()).expect("it reads");
        drop(self.stdin);
        let output = self.child.wait_with_output().expect("it ends");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// The daemon serves the LAN at port 5351.
fn serves<'a>(network: &'a Network, daemon: &mut Process) -> ControlPoint<'a> {
    let control_point = ready(network, daemon, Host::Lan1);
    assert!(daemon.log().contains(&format!("serving PCP and NAT-PMP at {ROUTER_LAN} on br-lan")));
    control_point
}

/// Four clients, three protocols, two hosts: each has its port, bytes come through, all listings agree, nobody takes another's, and what
/// ends is gone everywhere.
#[test]
fn all_protocols_side_by_side() {
    let Some(subject) = interworking_subject() else { return };
    for (of, layout, nat) in ALL {
        let network = Network::new(layout);
        let upstream = Upstream::start(of, &network, &subject);
        let mut daemon = subject.start(&network, nat, "");
        let control_point = serves(&network, &mut daemon);
        let what = format!("{of:?}, {nat}");

        let said = natpmpc(&network, Host::Lan1, &["-a", "8181", "8080", "tcp", "3600"]);
        assert!(said.contains(&format!("Public IP address : {EXTERNAL}")), "{what}: {said}");
        assert!(said.contains("Mapped public port 8181 protocol TCP to local port 8080"), "{what}: {said}");
        let crab = CrabNat::maps(&network, "pcp", Host::Lan2, UDP, 8001, 9090);
        eventually("crab_nat's mapping", 10 * SECOND, || (table(&network).len() == 2).then_some(()));
        control_point.adds(7000, 7000, "TCP", 3600);
        let expected = [
            (7000, LAN1, "UPnP".to_owned()),
            (8181, LAN1, "NAT-PMP".to_owned()),
            (9090, LAN2, "PCP".to_owned()),
        ];
        assert_eq!(table(&network), expected, "{what}");
        assert_eq!(upstream.ports(), [7000, 8181, 9090], "{what}");
        let listed = control_point.upnpc(&["-l"]);
        for line in [
            format!("TCP  7000->{LAN1}:7000"),
            format!("TCP  8181->{LAN1}:8080"),
            format!("UDP  9090->{LAN2}:8001"),
        ] {
            assert!(listed.contains(&line), "{what}: {line} in\n{listed}");
        }
        let _one = listener(&network, Host::Lan1, TCP, 8080);
        let _two = listener(&network, Host::Lan2, UDP, 8001);
        let _three = listener(&network, Host::Lan1, TCP, 7000);
        reaches(&network, TCP, 8181, "lan1");
        reaches(&network, UDP, 9090, "lan2");
        reaches(&network, TCP, 7000, "lan1");

        // Nobody takes what is another's, in any protocol.
        let other = ControlPoint { host: Host::Lan2, ..control_point.clone() };
        let refused = other.add("-a", 8080, 8181, "TCP", 3600);
        assert!(refused.contains("718"), "{what}: {refused}");
        let said = natpmpc(&network, Host::Lan2, &["-a", "7000", "7000", "tcp", "60"]);
        assert!(said.contains("Mapped public port") && !said.contains("public port 7000 "), "{what}: {said}");
        natpmpc(&network, Host::Lan2, &["-a", "0", "7000", "tcp", "0"]);
        assert!(other.upnpc(&["-d", "8181", "TCP"]).contains("failed"), "{what}");
        assert_eq!(table(&network), expected, "{what}");

        // What ends is gone everywhere: told, by its lifetime, and by its owner.
        let said = crab.ends("renew\ndrop\n");
        assert!(said.contains("renewed 9090 ") && said.ends_with("dropped\n"), "{what}: {said}");
        reaches_nobody(&network, UDP, 9090);
        let said = natpmpc(&network, Host::Lan1, &["-a", "8181", "8080", "tcp", "1"]);
        assert!(said.contains("to local port 8080 liftime 1\n"), "{what}: {said}");
        eventually("the end of its lifetime", 20 * SECOND, || (table(&network).len() == 1).then_some(()));
        // Without a NAT of ours it is the provider that lets nobody in, once it has heard of that.
        eventually("its end at the provider", 10 * SECOND, || {
            (!upstream.ports().contains(&8181)).then_some(())
        });
        reaches_nobody(&network, TCP, 8181);
        control_point.deletes(7000, "TCP");
        eventually("nothing at the provider", 10 * SECOND, || upstream.ports().is_empty().then_some(()));
        if nat == NAT {
            assert_eq!(subject::elements(&network), Some(Vec::new()), "{what}");
        }
    }
}

/// libtorrent asks by UPnP and by PCP for the same ports at once, as file-sharing programs do: one mapping each, reached from outside, and
/// nothing is left when it has ended.
#[test]
fn libtorrent_asks_by_two_protocols_at_once() {
    const PYTHON: &str = "/usr/bin/python3";
    let Some(subject) = interworking_subject() else { return };
    for (of, layout, nat) in ALL {
        let network = Network::new(layout);
        let upstream = Upstream::start(of, &network, &subject);
        let mut daemon = subject.start(&network, nat, "");
        serves(&network, &mut daemon);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/libtorrent-client.py");
        let mut child = network
            .command(Host::Lan1, PYTHON)
            .arg(script)
            .arg("upnp")
            .current_dir(network.directory())
            .stdin(Stdio::piped())
            .stdout(
                std::fs::File::create(network.directory().join("libtorrent.log"))
                    .expect("the directory is ours"),
            )
            .spawn()
            .expect("it runs");
        let both = "UPnP+PCP";
        eventually("TCP and UDP by both protocols", 60 * SECOND, || {
            let all = table(&network);
            (all.len() == 2 && all.iter().all(|(_, host, by)| (*host, by.as_str()) == (LAN1, both)))
                .then_some(())
        });
        let port = table(&network)[0].0;
        assert_eq!(upstream.ports(), [port, port], "{of:?}, {nat}");
        let mut probe = network.command(Host::Internet, PROBE);
        let ping = "d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe";
        probe.args(["udp-send", &format!("{EXTERNAL}:{port}"), ping, "5000"]);
        let answer = netns::text(&probe.output().expect("it runs"));
        assert!(answer.contains("1:y1:r"), "{of:?}, {nat}: {answer}");
        drop(child.stdin.take());
        let ended =
            eventually("its end", 60 * SECOND, || child.try_wait().expect("a child can be waited for"));
        assert!(ended.success());
        eventually("the end of its mappings", 20 * SECOND, || table(&network).is_empty().then_some(()));
        eventually("nothing at the provider", 10 * SECOND, || upstream.ports().is_empty().then_some(()));
    }
}

/// Kill -9: after the start a PCP client is still known by its nonce, and a NAT-PMP client by its address; both have what they had.
#[test]
fn a_killed_daemon_knows_its_clients_again() {
    let Some(subject) = interworking_subject() else { return };
    for (of, layout, nat) in ALL {
        let network = Network::new(layout);
        let upstream = Upstream::start(of, &network, &subject);
        let mut daemon = subject.start(&network, nat, "");
        serves(&network, &mut daemon);
        let crab = CrabNat::maps(&network, "pcp", Host::Lan1, TCP, 8001, 9090);
        eventually("crab_nat's mapping", 10 * SECOND, || (table(&network).len() == 1).then_some(()));
        natpmpc(&network, Host::Lan2, &["-a", "8181", "8080", "udp", "3600"]);
        let before = table(&network);
        assert_eq!(before.len(), 2);
        daemon.signal("KILL");
        daemon.wait(10 * SECOND);
        let mut daemon = subject.start(&network, nat, "service_wait = 1\n");
        serves(&network, &mut daemon);
        assert_eq!(table(&network), before, "{of:?}, {nat}");
        let said = crab.ends("renew\ndrop\n");
        assert!(said.contains("renewed 9090 ") && said.ends_with("dropped\n"), "{of:?}, {nat}: {said}");
        natpmpc(&network, Host::Lan2, &["-a", "0", "8080", "udp", "0"]);
        eventually("nothing at the provider", 10 * SECOND, || upstream.ports().is_empty().then_some(()));
    }
}

/// RFC 6887 §8.2: nothing that comes from the WAN side is heard, to whatever address; what a LAN host sends from another one's address,
/// or for it, changes nothing.
#[test]
fn only_the_lan_is_served() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    serves(&network, &mut daemon);
    for to in [ROUTER_WAN, ROUTER_LAN] {
        let mut command = network.command(Host::Provider, "timeout");
        command.args(["2", "natpmpc", "-g", &to.to_string()]);
        let said = netns::text(&command.output().expect("it runs"));
        assert!(!said.contains("Public IP address"), "{to}: {said}");
    }
    let other = CrabNat::maps(&network, "pcp", Host::Lan2, TCP, 8001, 9090);
    eventually("its mapping", 10 * SECOND, || (table(&network).len() == 1).then_some(()));
    // The same internal port by another nonce, and the external one by another host.
    let thief = CrabNat::maps(&network, "pcp", Host::Lan2, TCP, 8001, 9090);
    let said = thief.ends("");
    assert!(!said.contains("mapped"), "{said}");
    let said = CrabNat::maps(&network, "pcp", Host::Lan1, TCP, 8001, 9090).ends("drop\n");
    assert!(said.starts_with("mapped ") && !said.starts_with("mapped 9090 "), "{said}");
    assert_eq!(table(&network), [(9090, LAN2, "PCP".to_owned())]);
    assert!(other.ends("drop\n").ends_with("dropped\n"));
    assert_eq!(daemon.ended(), None);
}

/// RFC 6887 §12, RFC 7648: `portferry pcp peer` on a LAN host tells where a flow that is there comes from, as a server outside sees it
/// behind both NATs, each of which has given it another port. That stays so when both kernels have forgotten the flow, and in both
/// directions.
#[test]
fn where_a_flow_of_a_lan_host_comes_from() {
    const NONCE: &str = "000102030405060708090a0b";
    let Some(subject) = interworking_subject() else { return };
    let Subject::Portferry(program) = &subject else { return };
    let network = Network::new(CASCADED);
    let _server = PcpServer::start(&network, program, &[SUBSCRIBERS], "[mappings]\nhold = 0\n");
    let mut daemon = subject.start(&network, NAT, "");
    serves(&network, &mut daemon);
    let pcp = Pcp::new(&network, program);
    let blast = |host: Host, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), word: &str| {
        let mut blast = network.command(host, PROBE);
        blast.args(["udp-blast", &format!("{}:{}", from.0, from.1), &format!("{}:{}", to.0, to.1)]);
        let mut blast = blast.stdin(Stdio::piped()).spawn().expect("it runs");
        let hex: String = word.bytes().map(|octet| format!("{octet:02x}")).collect();
        let mut stdin = blast.stdin.take().expect("piped above");
        writeln!(stdin, "{hex}").expect("it reads");
        drop(stdin);
        assert!(blast.wait().expect("it ends").success());
    };
    let says = |word: &str| blast(Host::Lan1, (LAN1, 7600), (INTERNET, 7500), word);
    let forget = || {
        for host in [Host::Router, Host::Provider] {
            let shorten = "for name in nf_conntrack_udp_timeout nf_conntrack_udp_timeout_stream; do \
                           echo 1 > /proc/sys/net/netfilter/$name; done";
            network.run(host, "sh", ["-c", shorten]);
        }
        std::thread::sleep(4 * SECOND);
    };
    // Both NATs would keep the port, if nobody else had it towards the same server.
    blast(Host::Lan2, (LAN2, 7600), (INTERNET, 7500), "neighbour");
    let mut internet = listener(&network, Host::Internet, UDP, 7500);
    says("first");
    let line = format!("peer udp 7600 {INTERNET}:7500 --server {ROUTER_LAN} --nonce {NONCE} --lifetime 600");
    let told = pcp.json_of(Host::Lan1, &line);
    assert_eq!(
        (&told["outcome"], &told["result"]["name"]),
        (&"granted".into(), &"SUCCESS".into()),
        "{told:#}"
    );
    let external = &told["mapping"]["external"];
    let port = external["port"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
    assert_eq!(external["address"], EXTERNAL.to_string(), "{told:#}");
    internet.await_log(&format!("{EXTERNAL}:{port} first"), 5 * SECOND);
    assert_ne!(port, 7600);
    assert!(table(&network).is_empty(), "it is no mapping");

    forget();
    blast(Host::Lan2, (LAN2, 7600), (INTERNET, 7500), "neighbour again");
    says("again");
    internet.await_log(&format!("{EXTERNAL}:{port} again"), 5 * SECOND);
    let again = pcp.json_of(Host::Lan1, &line);
    assert_eq!(&again["mapping"]["external"], external);
    let other = pcp.json_of(Host::Lan1, &line.replace(NONCE, "ffffffffffffffffffffffff"));
    assert_eq!(other["result"]["name"], "NOT_AUTHORIZED");

    forget();
    drop(internet);
    let mut lan = listener(&network, Host::Lan1, UDP, 7600);
    blast(Host::Internet, (INTERNET, 7500), (EXTERNAL, port), "hello");
    lan.await_log(&format!("{INTERNET}:7500 hello"), 5 * SECOND);
    blast(Host::Internet, (INTERNET, 7501), (EXTERNAL, port), "stranger");
    std::thread::sleep(SECOND);
    assert!(!lan.log().contains("stranger"), "{}", lan.log());

    // Nothing has been sent yet: what will be comes from the port that is told.
    let line = format!("peer udp 7700 {INTERNET}:7502 --server {ROUTER_LAN} --nonce {NONCE} --lifetime 600");
    let told = pcp.json_of(Host::Lan2, &line);
    let port = &told["mapping"]["external"]["port"];
    let mut internet = listener(&network, Host::Internet, UDP, 7502);
    blast(Host::Lan2, (LAN2, 7700), (INTERNET, 7502), "begins");
    internet.await_log(&format!("{EXTERNAL}:{port} begins"), 5 * SECOND);
}
