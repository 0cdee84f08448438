//! `portferry doctor`: every fault and every warning that it can find, produced in a network of its own, and a healthy one in
//! which it finds none. Needs root, see [`lab::netns`].
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test doctor
//! ```

#[path = "../common/mod.rs"]
mod common;
mod firewalls;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddrV4;
use std::path::PathBuf;

use common::{
    CASCADED, Caller, NAT, NO_NAT, PROBE, SECOND, Small, TCP, Told, interworking_subject, listener, reaches,
    ready,
};
use lab::netns::{
    AFTR, B4_DEVICE, EXTERNAL, Host, LAN1, LAN2, Layout, Network, PROVIDER, ROUTER_LAN, SECOND_EXTERNAL,
    SECOND_PROVIDER, SECOND_WAN, WAN_INTERFACE,
};
use lab::pcp_server::{PROVIDER_SITE, PcpServer, Site};
use lab::provider::{Options, Provider, QuickProvider};
use lab::subject::{self, Subject};
use lab::wait::eventually;
use serde_json::Value;

const BAD_IGD: &str = env!("CARGO_BIN_EXE_lab-bad-igd");
const PCP_SERVER: &str = env!("CARGO_BIN_EXE_lab-pcp-server");

/// What doctor says of a router.
struct Examined {
    code: i32,
    report: Value,
}

impl Examined {
    fn findings(&self) -> &[Value] {
        self.report["findings"].as_array().expect("a list of findings")
    }

    /// Ids of findings that have one of these verdicts.
    fn with(&self, verdicts: &[&str]) -> BTreeSet<&str> {
        let all = self.findings().iter();
        let wanted =
            all.filter(|finding| verdicts.contains(&finding["verdict"].as_str().unwrap_or_default()));
        wanted.filter_map(|finding| finding["id"].as_str()).collect()
    }

    fn bad(&self) -> BTreeSet<&str> {
        self.with(&["warning", "fault"])
    }

    #[track_caller]
    fn find(&self, id: &str) -> &Value {
        let found = self.findings().iter().find(|finding| finding["id"] == id);
        found.unwrap_or_else(|| panic!("no {id} in {:#}", self.report))
    }

    /// These faults and warnings, no others.
    #[track_caller]
    fn has_exactly(&self, ids: &[&str]) {
        assert_eq!(self.bad(), ids.iter().copied().collect(), "{:#}", self.report);
        let faults = !self.with(&["fault"]).is_empty();
        assert_eq!(self.code, i32::from(faults), "{:#}", self.report);
        for id in ids {
            assert!(self.find(id)["todo"].is_string(), "{id} says what to do");
        }
    }

    #[track_caller]
    fn has(&self, ids: &[&str]) {
        for id in ids {
            self.find(id);
        }
    }
}

fn program(subject: &Subject) -> PathBuf {
    let Subject::Portferry(program) = subject else { panic!("it interworks") };
    program.clone()
}

/// Runs doctor on the router with the configuration of [`Subject::start`], or another one. `PF_SHOW=1` shows it as people see it,
/// too.
#[track_caller]
fn examine(network: &Network, subject: &Subject, file: &str) -> Examined {
    let file = network.directory().join(file);
    if std::env::var_os("PF_SHOW").is_some() {
        let mut command = network.command(Host::Router, program(subject));
        let shown = command.args(["doctor", "--config"]).arg(&file).output().expect("it runs");
        common::say(&lab::netns::text(&shown));
    }
    let mut command = network.command(Host::Router, "timeout");
    command.arg("60").arg(program(subject)).args(["doctor", "--json", "--config"]).arg(file);
    let output = command.output().expect("it runs");
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", lab::netns::text(&output)));
    Examined { code: output.status.code().expect("it ends by itself"), report }
}

/// A configuration that nobody has started.
fn write(network: &Network, nat: &str, more: &str) -> &'static str {
    let text = subject::configuration(network, nat, more);
    fs::write(network.directory().join("portferry.toml"), text).expect("the directory is ours");
    "portferry.toml"
}

const FILE: &str = "portferry.toml";

/// An interface of the router whose other end is on a LAN host.
fn plug(network: &Network, name: &str, address: &str) {
    let peer = network.namespace(Host::Lan2);
    let ip = |line: &str| network.run(Host::Router, "ip", line.split(' '));
    ip(&format!("link add {name} type veth peer name {name} netns {peer}"));
    network.run(Host::Lan2, "ip", ["link", "set", name, "up"]);
    ip(&format!("addr add {address} dev {name}"));
    ip(&format!("link set {name} up"));
}

fn ip(network: &Network, line: &str) {
    network.run(Host::Router, "ip", line.split(' '));
}

/// What the running portferry says of itself; `Null` while it does not.
fn status(network: &Network) -> Value {
    subject::ask(network, "status").and_then(|said| serde_json::from_str(&said).ok()).unwrap_or(Value::Null)
}

/// Does what doctor says, as one who reads it would: `files` are directories of the machine that the commands may write to, each
/// with a copy that takes its place; `more` are variables for the shell.
#[track_caller]
fn obey(network: &Network, finding: &Value, files: &[(&str, PathBuf)], more: &str) {
    let commands = finding["commands"].as_array().expect("commands");
    let mounts = files.iter().map(|(at, own)| format!("mount --bind {} {at}", own.display()));
    let lines = commands.iter().filter_map(Value::as_str).map(str::to_owned);
    let script: Vec<String> = mounts.chain([more.to_owned()]).chain(lines).collect();
    network.run(Host::Router, "sh", ["-ec", &script.join("\n")]);
}

// ── No fault ───────────────────────────────────────────────────────────────────────────────────────────────────────

/// The network as it should be. Nothing that doctor does is left behind, neither here nor at the provider.
#[test]
fn a_healthy_network() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    control_point.adds(8080, 9090, "TCP", 3600);
    reaches(&network, TCP, 9090, "lan1");
    let before = (subject::listed(&network).map(|all| all.len()), provider.forwardings().len());
    let healthy = examine(&network, &subject, FILE);
    healthy.has_exactly(&[]);
    healthy.has(&[
        "configuration-good",
        "gateway-running",
        "forwarding-on",
        "lan-interface",
        "wan-address-shared",
        "default-route",
        "server-answers",
        "gateway-uplink-answering",
        "probe-granted",
        "prefer-failure-ignored",
        "nats",
        "own-nat",
        "masquerade",
        "firewall-forward",
        "firewall-input",
        "ssdp-port",
        "ssdp-group",
        "bridge-snooping",
        "searches-heard",
        "control-point",
        "mappings",
    ]);
    assert_eq!(healthy.find("probe-granted")["data"]["external"], EXTERNAL.to_string());
    let after = (subject::listed(&network).map(|all| all.len()), provider.forwardings().len());
    assert_eq!(after, before);
    reaches(&network, TCP, 9090, "lan1");

    // Who is not root sees less, and no fault where there is none.
    let mut command = network.command(Host::Router, "setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program(&subject));
    let output = command.args(["doctor", "--json", "--config"]).arg(network.directory().join(FILE)).output();
    let output = output.expect("it runs");
    let report = serde_json::from_slice(&output.stdout).expect("a report");
    let seen = Examined { code: output.status.code().expect("it ends by itself"), report };
    seen.has_exactly(&[]);
    assert_eq!(
        seen.with(&["skipped"]),
        ["control-point-skipped", "firewall-unread", "gateway-not-asked", "mappings-skipped"].into()
    );

    // And as people see it.
    let mut command = network.command(Host::Router, program(&subject));
    let output = command.args(["doctor", "--config"]).arg(network.directory().join(FILE)).output();
    let output = output.expect("it runs");
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.ends_with("\nNo fault and no warning.\n"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
}

// ── Without a gateway ──────────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn a_configuration_that_is_none() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    fs::write(network.directory().join(FILE), "[lan]\ninterfaces = []\n").expect("the directory is ours");
    let examined = examine(&network, &subject, FILE);
    assert_eq!((examined.code, examined.bad()), (78, ["configuration-bad"].into()));
    let seen = examined.find("configuration-bad")["seen"].as_str().expect("a sentence").to_owned();
    assert!(seen.contains("line 2, lan.interfaces"), "{seen}");
    assert_eq!(examine(&network, &subject, "missing.toml").code, 78);
}

/// Interfaces, addresses and routes as they are not meant to be, in several steps.
#[test]
fn links_and_addresses() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(Layout { router_nat: false, lan: false });
    let file = write(&network, NAT, "igd = false\n");
    let always = ["gateway-not-running"];
    let nobody = ["server-configured-silent", "uplink-none"];

    // Neither interface is there.
    let text = subject::configuration(&network, NAT, "igd = false\n").replace(WAN_INTERFACE, "wan9");
    fs::write(network.directory().join("wan9.toml"), text).expect("the directory is ours");
    let examined = examine(&network, &subject, "wan9.toml");
    examined.has_exactly(&["gateway-not-running", "lan-interface-missing", "wan-interface-missing"]);

    // Both are down.
    network.add_lan();
    ip(&network, "link set br-lan down");
    ip(&network, "link set wan0 down");
    let examined = examine(&network, &subject, file);
    examined.has_exactly(
        &[&always[..], &["lan-interface-down", "wan-interface-down", "default-route-none"]].concat(),
    );

    // Both are up and have no address.
    ip(&network, "link set br-lan up");
    ip(&network, "link set wan0 up");
    ip(&network, "addr flush dev br-lan");
    ip(&network, "addr flush dev wan0");
    let examined = examine(&network, &subject, file);
    examined.has_exactly(
        &[&always[..], &nobody, &["lan-address-none", "wan-address-none", "default-route-none"]].concat(),
    );

    // No router: it does not forward, nobody gave the WAN an address, nobody translates. Somebody has portferry's port.
    ip(&network, &format!("addr add {ROUTER_LAN}/24 dev br-lan"));
    ip(&network, "addr add 169.254.7.7/16 dev wan0");
    network.run(Host::Router, "sysctl", ["-qw", "net.ipv4.ip_forward=0"]);
    let _other = listener(&network, Host::Router, TCP, subject::HTTP_PORT);
    let examined = examine(&network, &subject, file);
    let found = [
        "forwarding-off",
        "wan-address-link-local",
        "default-route-none",
        "masquerade-none",
        "http-port-taken",
    ];
    examined.has_exactly(&[&always[..], &nobody, &found].concat());
    assert!(examined.find("http-port-taken")["seen"].as_str().is_some_and(|seen| seen.contains("lab-probe")));
    obey(&network, examined.find("forwarding-off"), &[], "");
    drop(_other);

    // An address out of a document, and another way out.
    ip(&network, "addr flush dev wan0");
    ip(&network, "addr add 192.0.2.7/24 dev wan0");
    plug(&network, "wan1", "100.99.0.2/24");
    ip(&network, "route add default via 100.99.0.1");
    let examined = examine(&network, &subject, file);
    let found = ["wan-address-reserved", "default-route-elsewhere", "masquerade-none"];
    examined.has_exactly(&[&always[..], &nobody, &found].concat());
    let todo = examined.find("default-route-elsewhere")["todo"].as_str().expect("a sentence");
    assert!(todo.contains("wan.interface = \"wan1\""), "{todo}");

    // The router in front has the same network as the LAN.
    ip(&network, "addr flush dev wan0");
    ip(&network, "addr add 192.168.77.201/24 dev wan0");
    ip(&network, "route replace default dev wan0");
    let examined = examine(&network, &subject, file);
    examined.has(&["lan-wan-overlap", "wan-address-private", "default-route"]);
}

/// A public address and nobody who could be asked: an ordinary gateway.
#[test]
fn an_ordinary_gateway() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let file = "portferry.toml";
    let text = subject::configuration(&network, NAT, "").replace("servers = [\"100.64.0.1\"]\n", "");
    fs::write(network.directory().join(file), text).expect("the directory is ours");
    ip(&network, "addr add 203.0.114.77/24 dev wan0");
    ip(&network, "addr del 100.64.0.2/24 dev wan0");
    network.run(Host::Provider, "ip", ["addr", "add", "203.0.114.76/24", "dev", "cust0"]);
    ip(&network, "route replace default via 203.0.114.76 dev wan0");
    let examined = examine(&network, &subject, file);
    examined.has_exactly(&["gateway-not-running"]);
    examined.has(&["wan-address-public", "uplink-none-needed", "server-closed", "nats", "probe-skipped"]);
}

/// The provider's server, and what it says no to.
#[test]
fn providers() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let file = write(&network, NAT, "");
    let always = "gateway-not-running";

    // A router that speaks UPnP, and is behind another NAT, or has no address.
    let router = PROVIDER.to_string();
    let location = format!("http://{router}:5000/desc.xml");
    for (mode, ids) in [("private", &["nat-above"][..]), ("unconnected", &["isp-router-disconnected"][..])] {
        let mut bad = network.spawn(Host::Provider, mode, BAD_IGD, [&router, &location, mode]);
        bad.await_log("listening", 5 * SECOND);
        let examined = examine(&network, &subject, file);
        examined.has_exactly(&[&[always, "server-configured-silent"], ids].concat());
    }

    // Somebody translates what the router itself says to the server.
    let _provider = Provider::start(&network, Options::default());
    ip(&network, "addr add 100.64.0.9/32 dev wan0");
    network.nft(
        Host::Router,
        "table ip between {\n chain post {\n  type nat hook postrouting priority 90;\n  udp dport 5351 snat to 100.64.0.9\n }\n}\n",
    );
    let examined = examine(&network, &subject, file);
    examined.has_exactly(&[always, "probe-refused"]);
    let code = examined.find("probe-refused")["data"]["code"].as_str().expect("a code").to_owned();
    assert!(code.starts_with("ADDRESS_MISMATCH"), "{code}");
    network.run(Host::Router, "nft", ["delete", "table", "ip", "between"]);

    // It is there, and what asks for a mapping is lost on the way (opcode 1).
    network.nft(
        Host::Provider,
        "table inet lossy {\n chain input {\n  type filter hook input priority -10;\n  udp dport 5351 @th,72,8 1 drop\n }\n}\n",
    );
    let examined = examine(&network, &subject, file);
    examined.has_exactly(&[always, "probe-failed"]);
    network.run(Host::Provider, "nft", ["delete", "table", "inet", "lossy"]);

    // No THIRD_PARTY, on which everything depends without a NAT here; and there is one.
    let file = write(&network, NO_NAT, "");
    let examined = examine(&network, &subject, file);
    examined.has_exactly(&[always, "third-party-refused", "masquerade-unexpected"]);
}

/// Others that speak UPnP on the LAN: on this machine, and on another one.
#[test]
fn other_gateways() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let file = write(&network, NAT, "");
    let mut miniupnpd = Subject::Miniupnpd.start(&network, NAT, "");
    miniupnpd.await_log("HTTP listening on port", 10 * SECOND);
    let (own, location) = (lab::netns::LAN2.to_string(), format!("http://{}:5000/x.xml", lab::netns::LAN2));
    let mut neighbour = network.spawn(Host::Lan2, "neighbour", BAD_IGD, [&own, &location, "neighbour"]);
    neighbour.await_log("listening", 5 * SECOND);
    let examined = examine(&network, &subject, file);
    examined.has_exactly(&["gateway-not-running", "ssdp-port-shared", "http-port-taken", "other-gateway"]);
    assert!(
        examined.find("ssdp-port-shared")["seen"].as_str().is_some_and(|seen| seen.contains("miniupnpd"))
    );
    let others = examined.findings().iter().filter(|finding| finding["id"] == "other-gateway");
    let addresses: BTreeSet<_> = others.filter_map(|other| other["data"]["address"].as_str()).collect();
    assert_eq!(addresses, [own.as_str(), &ROUTER_LAN.to_string()].into());
}

// ── With a gateway that is in trouble ──────────────────────────────────────────────────────────────────────────────

/// One that serves nobody, for its LAN is not there.
#[test]
fn a_gateway_without_a_lan() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(Layout { router_nat: true, lan: false });
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    eventually("it answers", 15 * SECOND, || {
        assert_eq!(daemon.ended(), None, "the daemon lives");
        (status(&network)["uplink"] == "answering").then_some(())
    });
    let examined = examine(&network, &subject, FILE);
    examined.has_exactly(&["lan-interface-missing", "ssdp-port-not-ours"]);
    examined.has(&["control-point-skipped"]);
}

/// What befalls a running one, one thing after the other.
#[test]
fn a_gateway_in_trouble() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    eventually("it answers", 15 * SECOND, || (status(&network)["uplink"] == "answering").then_some(()));

    // Nobody has searched yet.
    let examined = examine(&network, &subject, FILE);
    examined.has_exactly(&["bridge-snooping-unqueried"]);
    examined.has(&["searches-none"]);
    obey(&network, examined.find("bridge-snooping-unqueried"), &[], "");

    // Multicast is off, and the file speaks of another LAN interface and another server.
    ip(&network, "link set br-lan multicast off");
    plug(&network, "guest0", "192.168.99.1/24");
    let other = subject::configuration(&network, NAT, "")
        .replace("[\"br-lan\"]", "[\"br-lan\", \"guest0\"]")
        .replace("servers = [\"100.64.0.1\"]", "servers = [\"100.64.0.3\", \"100.64.0.9\"]");
    fs::write(network.directory().join("other.toml"), other).expect("the directory is ours");
    let examined = examine(&network, &subject, "other.toml");
    examined.has_exactly(&[
        "gateway-other-configuration",
        "ssdp-group-missing",
        "lan-multicast-off",
        "server-configured-silent",
    ]);
    obey(&network, examined.find("lan-multicast-off"), &[], "");

    // What somebody deletes is there again at once, unless the process that does that is held up.
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let listener = listener(&network, Host::Lan1, TCP, 8080);
    control_point.adds(8080, 9090, "TCP", 3600);
    let before = subject::elements(&network);
    daemon.signal("STOP");
    network.run(Host::Router, "nft", ["flush", "map", "inet", "portferry", "ports"]);
    examine(&network, &subject, FILE).has_exactly(&["mapping-nat-missing"]);
    network.run(Host::Router, "nft", ["delete", "table", "inet", "portferry"]);
    examine(&network, &subject, FILE).has_exactly(&["own-nat-missing"]);
    daemon.signal("CONT");
    eventually("the table as it was", 20 * SECOND, || (subject::elements(&network) == before).then_some(()));
    examine(&network, &subject, FILE).has_exactly(&[]);

    // The application goes, and then its host.
    drop(listener);
    examine(&network, &subject, FILE).has_exactly(&["mapping-client-refuses"]);
    network.run(Host::Lan1, "ip", ["link", "set", "eth0", "down"]);
    examine(&network, &subject, FILE).has_exactly(&["mapping-client-silent"]);
    network.run(Host::Lan1, "ip", ["link", "set", "eth0", "up"]);
}

/// It is killed, and comes back when the provider does not answer. Then it stands still itself.
#[test]
fn a_gateway_whose_provider_is_silent() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    control_point.adds(8080, 9090, "UDP", 3600);
    daemon.signal("KILL");
    daemon.wait(5 * SECOND);
    provider.freeze();
    let daemon = subject.start(&network, NAT, "service_wait = 0.1\n");
    // Somebody waits for an answer.
    let _ = control_point.add("-a", 8081, 9091, "UDP", 3600);
    eventually("silence", 120 * SECOND, || (status(&network)["uplink"] == "silent").then_some(()));
    let examined = examine(&network, &subject, FILE);
    examined.has(&[
        "mapping-degraded",
        "gateway-uplink-silent",
        "uplink-none",
        "server-configured-silent",
        "control-point-disconnected",
    ]);

    // And it stands still itself: the process that answers is the privileged one's child.
    let of_it = ["-STOP", "-P", &daemon.id().to_string()];
    assert!(std::process::Command::new("pkill").args(of_it).status().expect("procps is there").success());
    examine(&network, &subject, FILE).has(&["gateway-unanswering"]);
}

/// What it cannot store it refuses.
#[test]
fn a_full_file_system() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let small = Small::mount(network.directory().join("state"));
    let provider = QuickProvider::start(&network, PCP_SERVER);
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let mut caller = Caller::new(&control_point, 1);
    small.fill(true);
    let mut add = |port| caller.add(TCP, port, SocketAddrV4::new(LAN1, port), 0, "kept");
    // Small lines may still fit into what the last page has left.
    let refused = (0..60).map(|n| add(8000 + n)).find(|told| *told != Told::done());
    assert_eq!(refused, Some(Told::Refused(501)));
    let examined = examine(&network, &subject, FILE);
    examined.has_exactly(&["store-error", "mapping-client-refuses"]);
    examined.has(&["prefer-failure-honoured"]);
    small.fill(false);
    drop(provider);
}

/// The provider's external address is out of a document.
#[test]
fn an_address_that_applications_refuse() {
    let Some(subject) = interworking_subject() else { return };
    // The router's own NAT and filter are portferry's, too.
    let network = Network::new(Layout { router_nat: false, lan: true });
    let addresses = [PROVIDER, lab::netns::PROVIDER_INTERNET].map(|address| address.to_string());
    let mut provider = network.spawn(Host::Provider, "documented", PCP_SERVER, addresses);
    provider.await_log("listening", 10 * SECOND);
    let _daemon = subject.start(&network, NAT, "[nat]\nmasquerade = true\nforward_filter = true\n");
    eventually("the external address", 15 * SECOND, || {
        status(&network)["external_address"].is_string().then_some(())
    });
    // A search, as applications begin.
    let _ = network.command(Host::Lan1, PROBE).args(["search", "upnp:rootdevice", "1500"]).output();
    let examined = examine(&network, &subject, FILE);
    examined.has_exactly(&["control-point-address-refused"]);
    examined.has(&["masquerade", "firewall-forward"]);
}

// ── Other networks that are as they should be ──────────────────────────────────────────────────────────────────────

/// DS-Lite: asked beside the softwire, and inside of it.
#[test]
fn ds_lite() {
    let Some(subject) = interworking_subject() else { return };
    let Some(network) = common::ds_lite::network() else { return };
    let _aftr = common::ds_lite::aftr(&network, "aftr", &[], &[]);
    let _b4s = common::ds_lite::b4s(&network);
    let plain = (WAN_INTERFACE, format!("[{AFTR}]:5351"));
    for (file, (wan, server)) in [("plain.toml", plain), ("inside.toml", (B4_DEVICE, "192.0.0.1".to_owned()))]
    {
        let text = subject::configuration_for(network.directory(), (wan, NO_NAT), &server, "");
        fs::write(network.directory().join(file), text).expect("the directory is ours");
        let examined = examine(&network, &subject, file);
        examined.has_exactly(&["gateway-not-running"]);
        examined.has(&["wan-ds-lite", "server-answers", "probe-granted", "nats", "firewall-forward"]);
        let seen = examined.find("firewall-forward")["seen"].as_str().expect("a sentence");
        assert!(seen.contains("from b4 to br-lan"), "{seen}");
    }
}

/// A router of the provider's that speaks UPnP alone, and one that speaks NAT-PMP alone.
#[test]
fn older_protocols() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let text = subject::configuration(&network, NAT, "").replace("servers = [\"100.64.0.1\"]\n", "");
    fs::write(network.directory().join(FILE), text).expect("the directory is ours");
    let mut provider = Provider::start(&network, Options { upnp: true, ..Options::default() });
    let examined = examine(&network, &subject, FILE);
    examined.has_exactly(&["gateway-not-running"]);
    examined.has(&["isp-router-upnp", "nats", "probe-skipped", "server-closed"]);
    provider.stop();
    // Whatever begins with PCP's version meets silence.
    network.nft(
        Host::Provider,
        "table inet before-pcp {\n chain input {\n  type filter hook input priority 0\n  udp dport 5351 @th,64,8 2 drop\n }\n}\n",
    );
    let _provider = Provider::start(&network, Options::default());
    let examined = examine(&network, &subject, FILE);
    examined.has_exactly(&["gateway-not-running"]);
    examined.has(&["server-answers", "nats", "probe-granted"]);
    assert_eq!(examined.find("server-answers")["data"]["protocol"], "NAT-PMP");
}

// ── Several uplinks ─────────────────────────────────────────────────────────────────────────────────────────────────

/// The second provider of [`Network::two_lines`].
const SECOND_SITE: Site = Site {
    host: Host::Other,
    name: "second-server",
    inside: "cust0",
    outside: "inet0",
    external: SECOND_EXTERNAL,
};

/// A host is bound to the second line and its traffic leaves by the first; after what doctor says it does not, and nothing is wrong.
/// With a spare line: while that has the default route, and while it is down, which is no fault.
#[test]
fn two_lines() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::two_lines();
    let program = program(&subject);
    let _first = PcpServer::start_in(&network, &program, PROVIDER_SITE, &["100.64.0.0/24"], &[], "");
    let _second = PcpServer::start_in(&network, &program, SECOND_SITE, &["100.65.0.0/24"], &[], "");
    let extra =
        format!("[[uplink.extra]]\ninterface = \"{SECOND_WAN}\"\nservers = [\"{SECOND_PROVIDER}\"]\n");
    let bound = format!("{extra}hosts = [\"{LAN2}\"]\n");
    let mut daemon = subject.start(&network, NAT, &bound);
    ready(&network, &mut daemon, Host::Lan1);
    eventually("the second uplink", 15 * SECOND, || {
        (status(&network)["extra"][0]["external_address"] == SECOND_EXTERNAL.to_string()).then_some(())
    });
    let astray = examine(&network, &subject, FILE);
    astray.has_exactly(&["bound-host-elsewhere"]);
    obey(&network, astray.find("bound-host-elsewhere"), &[], "");
    let healthy = examine(&network, &subject, FILE);
    healthy.has_exactly(&[]);
    assert_eq!(healthy.find("bound-host")["interface"], SECOND_WAN);
    let own = healthy.findings().iter().filter(|finding| finding["id"] == "own-nat").count();
    let granted = healthy.findings().iter().filter(|finding| finding["id"] == "probe-granted").count();
    assert_eq!((own, granted), (2, 2), "{:#}", healthy.report);
    ip(&network, "route flush table 101");
    ip(&network, &format!("rule del from {LAN2} lookup 101"));
    ip(&network, "rule del priority 100");
    daemon.terminate(20 * SECOND);

    let mut daemon = subject.start(&network, NAT, &format!("service_wait = 0.1\n{extra}"));
    ready(&network, &mut daemon, Host::Lan1);
    ip(&network, "route del default via 100.64.0.1 metric 100");
    eventually("the spare line", 15 * SECOND, || {
        (status(&network)["external_address"] == SECOND_EXTERNAL.to_string()).then_some(())
    });
    let spare = examine(&network, &subject, FILE);
    spare.has_exactly(&[]);
    spare.has(&["default-route-spare"]);
    network.usual_route();
    ip(&network, &format!("link set {SECOND_WAN} down"));
    eventually("the usual line", 15 * SECOND, || {
        (status(&network)["external_address"] == EXTERNAL.to_string()).then_some(())
    });
    let down = examine(&network, &subject, FILE);
    down.has_exactly(&[]);
    down.has(&["spare-down", "default-route"]);
}
