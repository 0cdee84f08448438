//! PCP servers that the provider names by DHCP (RFC 7291), in network namespaces: Debian's DHCP clients with their hooks from
//! packaging/dhcp, and the daemon's own questions, also beside systemd-networkd, at Debian's dnsmasq. Real processes as in
//! `end_to_end`, so it needs root.
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test dhcp
//! ```

mod common;

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use common::{
    CASCADED, NAT, SECOND, TCP, UDP, interworking_subject, listener, reaches, ready, skipped, tagged,
};
use lab::netns::{Host, Network, PROVIDER, Process, ROUTER_WAN, WAN_INTERFACE};
use lab::pcp_server::PcpServer;
use lab::subject::{self, Subject};
use lab::wait::{eventually, poll};
use serde_json::{Value, json};

/// What is called, and the Debian package that has it.
const TOOLS: [(&str, &str); 4] = [
    ("dnsmasq", "dnsmasq-base"),
    ("dhclient", "isc-dhcp-client"),
    ("dhcpcd", "dhcpcd-base"),
    ("udhcpc", "udhcpc"),
];

const PACKAGING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/dhcp");
const PAGE: &str = include_str!("../../docs/dhcp.md");

/// Two PCP servers, the second with two addresses.
const OPTION_158: &str = "04:c0:00:02:01:08:c6:33:64:01:c6:33:64:02";
/// A list of five octets.
const ODD: &str = "05:c0:00:02:01:01";

fn offered_v4() -> Value {
    json!([["192.0.2.1"], ["198.51.100.1", "198.51.100.2"]])
}

fn offered_v6() -> Value {
    json!([["2001:db8::1", "192.0.2.86"]])
}

/// The network with IPv6 on the WAN, and a program that hands in; `None` (after saying so) where there is no laboratory.
fn laboratory() -> Option<(Network, PathBuf)> {
    let Subject::Portferry(program) = interworking_subject()? else { return None };
    let path = std::env::var_os("PATH").unwrap_or_default();
    for (tool, package) in TOOLS {
        let found = std::env::split_paths(&path).any(|directory| directory.join(tool).is_file());
        assert!(found, "this needs `{tool}`: apt-get install {package}");
    }
    let network = Network::new(CASCADED);
    for (host, interface) in [(Host::Router, WAN_INTERFACE), (Host::Provider, "cust0")] {
        // Link-local addresses at once.
        network.run(host, "sysctl", ["-qw", &format!("net.ipv6.conf.{interface}.accept_dad=0")]);
        network.run(host, "sysctl", ["-qw", &format!("net.ipv6.conf.{interface}.disable_ipv6=0")]);
    }
    network.run(Host::Provider, "ip", "addr add 2001:db8:1::1/64 dev cust0 nodad".split(' '));
    // As it would be installed, but for the place of the socket.
    let bin = network.directory().join("bin");
    fs::create_dir(&bin).expect("the directory is ours");
    let socket = network.directory().join("control.sock");
    let script = format!("#!/bin/sh\nexec {} \"$@\" --socket {}\n", program.display(), socket.display());
    fs::write(bin.join("portferry"), script).expect("the directory is ours");
    fs::set_permissions(bin.join("portferry"), fs::Permissions::from_mode(0o755)).expect("it is ours");
    Some((network, program))
}

/// The provider's DHCP server, with this value of option 158.
fn dhcp_server(network: &Network, option_158: &str) -> Process {
    let arguments = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--user=root",
        "--port=0",
        "--interface=cust0",
        "--bind-dynamic",
        "--leasefile-ro",
        "--no-ping",
        "--pid-file=",
        "--log-dhcp",
        "--log-facility=-",
        &format!("--dhcp-range={ROUTER_WAN},{ROUTER_WAN},255.255.255.0,1h"),
        "--dhcp-range=2001:db8:1::10,2001:db8:1::20,64,1h",
        &format!("--dhcp-option=3,{PROVIDER}"),
        &format!("--dhcp-option=158,{option_158}"),
        "--dhcp-option=option6:86,[2001:db8::1],[::ffff:192.0.2.86]",
    ];
    let mut server = network.spawn(Host::Provider, "dnsmasq", "dnsmasq", arguments);
    server.await_log("DHCPv6, IP range", 5 * SECOND);
    server
}

/// The daemon with these lines of `[uplink]`; the test's own servers first. Without a server it is to ask by itself.
fn daemon(network: &Network, program: &Path, uplink: &str) -> Process {
    let configuration = subject::configuration(network, NAT, uplink);
    let configuration = match uplink.contains("auto") {
        true => configuration.replace(&format!("servers = [\"{PROVIDER}\"]"), "servers = []"),
        false => configuration,
    };
    let daemon = subject::run(network, Host::Router, "portferry", program, &configuration);
    eventually("the control socket", 10 * SECOND, || offered(network));
    daemon
}

/// `wan.offered_pcp_servers`, as a running daemon says it.
fn offered(network: &Network) -> Option<Value> {
    let status: Value = serde_json::from_str(&subject::ask(network, "status")?).ok()?;
    Some(status["wan"]["offered_pcp_servers"].clone())
}

#[track_caller]
fn await_offer(network: &Network, expected: &Value) {
    let mut last = Value::Null;
    let found = poll(20 * SECOND, || {
        last = offered(network).unwrap_or_default();
        (last == *expected).then_some(())
    });
    assert!(found.is_some(), "{expected} is not offered, but {last}");
}

/// The code block below a heading of docs/dhcp.md that has `word` in it.
fn block(heading: &str, word: &str) -> &'static str {
    let (_, section) = PAGE.split_once(&format!("\n## {heading}")).expect("the page has this heading");
    let section = section.split("\n## ").next().expect("split yields one at least");
    let mut blocks = section.split("```\n").skip(1).step_by(2);
    blocks.find(|block| block.contains(word)).expect("the section has this block")
}

/// Lines that lay a directory of ours over one of the machine's, in the mount namespace of one command alone, which `ip netns
/// exec` has made for it: nothing is there to be removed.
fn over(network: &Network, directories: &[(&str, &str)]) -> String {
    let mut script = "set -e\n".to_owned();
    for (own, there) in [("bin", "/usr/local/sbin")].iter().chain(directories) {
        let own = network.directory().join(own);
        if !own.exists() {
            fs::create_dir(&own).expect("the directory is ours");
        }
        script += &format!("mount --bind {} {there}\n", own.display());
    }
    let resolver = network.directory().join("resolv.conf");
    fs::write(&resolver, "").expect("the directory is ours");
    script += &format!("mount --bind {} /etc/resolv.conf\n", resolver.display());
    script
}

/// The WAN as it is before a DHCP client has done its work.
fn without_address(network: &Network) {
    network.run(Host::Router, "ip", ["addr", "flush", "dev", WAN_INTERFACE, "scope", "global"]);
}

fn install(network: &Network, hook: &str, directory: &str, name: &str) {
    let directory = network.directory().join(directory);
    fs::create_dir_all(&directory).expect("the directory is ours");
    fs::copy(Path::new(PACKAGING).join(hook), directory.join(name)).expect("the hook is in packaging/dhcp");
}

/// Decision 19: ISC dhclient, by the page's lines and its hook: octets without leading zeros, and IPv6 addresses as text.
#[test]
fn dhclient_hands_in_what_it_was_offered() {
    let Some((network, program)) = laboratory() else { return };
    let _server = dhcp_server(&network, OPTION_158);
    let mut daemon = daemon(&network, &program, "");
    without_address(&network);
    install(&network, "dhclient-exit-hook", "exit-hooks", "portferry");
    let path = |name: &str| network.directory().join(name).display().to_string();
    fs::write(path("dhclient.conf"), block("dhclient", "pcp-server")).expect("the directory is ours");
    let over = over(&network, &[("exit-hooks", "/etc/dhcp/dhclient-exit-hooks.d")]);
    for (version, expected) in [("-4", offered_v4()), ("-6", offered_v6())] {
        let call = |more: &str| {
            let (conf, lease, pid) = (path("dhclient.conf"), path("lease"), path("dhclient.pid"));
            format!(
                "{over}exec dhclient {version} {more} -cf {conf} -lf {lease}{version} -pf {pid} {WAN_INTERFACE}\n"
            )
        };
        let _client = network.spawn(Host::Router, &format!("dhclient{version}"), "sh", ["-c", &call("-d")]);
        await_offer(&network, &expected);
        network.run(Host::Router, "sh", ["-c", &call("-r")]);
        await_offer(&network, &json!([]));
    }
    assert!(daemon.terminate(30 * SECOND).success());
}

/// Decision 19: dhcpcd, likewise: plain hexadecimal, and IPv6 addresses as text.
#[test]
fn dhcpcd_hands_in_what_it_was_offered() {
    let Some((network, program)) = laboratory() else { return };
    let _server = dhcp_server(&network, OPTION_158);
    let mut daemon = daemon(&network, &program, "");
    without_address(&network);
    install(&network, "dhcpcd-hook", "dhcpcd-hooks", "90-portferry");
    for (version, more, expected) in
        [("-4", "nodelay\nnoarp\n", offered_v4()), ("-6", "nodelay\nnoipv6rs\nia_na\n", offered_v6())]
    {
        let mut client = dhcpcd(&network, version, more);
        await_offer(&network, &expected);
        // One that is told to stop while it still starts its helpers may miss it.
        let ended = (0..10).find_map(|_| {
            client.signal("TERM");
            poll(3 * SECOND, || client.ended())
        });
        assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
        await_offer(&network, &json!([]));
    }
    assert!(daemon.terminate(30 * SECOND).success());
}

/// dhcpcd with the lines of the page and these, and the hooks in `dhcpcd-hooks`.
fn dhcpcd(network: &Network, version: &str, more: &str) -> Process {
    let name = format!("dhcpcd{version}");
    let configuration = network.directory().join(format!("{name}.conf"));
    let lines = format!("{}{more}", block("dhcpcd", "define 158"));
    fs::write(&configuration, lines).expect("the directory is ours");
    let own = [
        ("dhcpcd-hooks", "/usr/lib/dhcpcd/dhcpcd-hooks"),
        (&format!("{name}.run"), "/run"),
        (&format!("{name}.lib"), "/var/lib/dhcpcd"),
    ];
    let over = over(network, &own);
    let call = format!("{over}exec dhcpcd {version} -B -d -f {} {WAN_INTERFACE}\n", configuration.display());
    network.spawn(Host::Router, &name, "sh", ["-c", &call])
}

/// Decision 19: busybox udhcpc with a script that sources the hook: plain hexadecimal. A list of odd length is none.
#[test]
fn udhcpc_hands_in_what_it_was_offered() {
    let Some((network, program)) = laboratory() else { return };
    let mut daemon = daemon(&network, &program, "");
    let script = network.directory().join("udhcpc.script");
    let lines = format!(
        "#!/bin/sh\n[ \"$1\" != bound ] || ip addr replace $ip/24 dev $interface\n. {PACKAGING}/udhcpc-user\n"
    );
    fs::write(&script, lines).expect("the directory is ours");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let over = over(&network, &[]);
    for (option, expected) in [(OPTION_158, offered_v4()), (ODD, json!([]))] {
        let _server = dhcp_server(&network, option);
        without_address(&network);
        let call = format!("{over}exec udhcpc -f -R -O 158 -i {WAN_INTERFACE} -s {}\n", script.display());
        let mut client = network.spawn(Host::Router, "udhcpc", "sh", ["-c", &call]);
        client.await_log("obtained", 10 * SECOND);
        if option == ODD {
            client.await_log("counts as none: 05c000020101", 5 * SECOND);
        }
        await_offer(&network, &expected);
        assert!(client.terminate(10 * SECOND).success());
        await_offer(&network, &json!([]));
        fs::remove_file(network.directory().join("udhcpc.log")).expect("it was written");
    }
    assert!(daemon.terminate(30 * SECOND).success());
}

/// Decision 19: what odhcp6c's script is told (Debian has no odhcp6c), and a daemon that starts after a hook has spoken.
#[test]
fn odhcp6cs_script_hands_in_what_it_was_told() {
    let Some((network, program)) = laboratory() else { return };
    let over = over(&network, &[]);
    let says = |happened: &str, option: &str| {
        let call = format!(
            "{over}export OPTION_86={option}\nset -- {WAN_INTERFACE} {happened}\n. {PACKAGING}/odhcp6c-user\n"
        );
        network.run(Host::Router, "sh", ["-c", &call]);
    };
    let option = "20010db800000000000000000000000100000000000000000000ffffc0000256";
    says("started", "");
    says("bound", option);
    let file = network.directory().join(format!("dhcp6-{WAN_INTERFACE}"));
    assert_eq!(fs::metadata(&file).expect("it is there").permissions().mode() & 0o777, 0o644);
    let mut daemon = daemon(&network, &program, "");
    await_offer(&network, &offered_v6());
    says("ra-updated", "");
    await_offer(&network, &offered_v6());
    says("updated", &option[1..]);
    await_offer(&network, &json!([]));
    says("updated", &option[..32]);
    await_offer(&network, &json!([["2001:db8::1"]]));
    says("stopped", "");
    await_offer(&network, &json!([]));
    assert!(!file.exists());
    assert!(daemon.terminate(30 * SECOND).success());
}

/// Decision 19: where no hook has spoken portferry asks itself, by DHCPINFORM and Information-request (RFC 2131 §4.4.3, RFC 8415
/// §18.2.6), and closes the ports of DHCP clients when it has its answers. A hook's word comes first.
#[test]
fn portferry_asks_where_no_hook_has_spoken() {
    let Some((network, program)) = laboratory() else { return };
    let server = dhcp_server(&network, OPTION_158);
    let mut daemon = daemon(&network, &program, "dhcp = \"auto\"\n");
    let both = json!([offered_v6()[0], offered_v4()[0], offered_v4()[1]]);
    await_offer(&network, &both);
    let log = server.log();
    assert!(log.contains("DHCPINFORM(cust0) 100.64.0.2") && log.contains("DHCPINFORMATION-REQUEST(cust0)"));
    let sockets = network.run(Host::Router, "cat", ["/proc/net/udp", "/proc/net/udp6"]);
    // Local ports in hexadecimal.
    assert!(!sockets.contains(":0044 ") && !sockets.contains(":0222 "), "68 and 546 are open:\n{sockets}");

    let hook = network.directory().join("bin/portferry");
    let says = |line: &str| network.run(Host::Router, &hook, line.split(' '));
    says("dhcp-servers set wan0 dhcpv4 192.0.2.77,192.0.2.78");
    await_offer(&network, &json!([offered_v6()[0], ["192.0.2.77", "192.0.2.78"]]));
    says("dhcp-servers set wan0 dhcpv6");
    await_offer(&network, &json!([["192.0.2.77", "192.0.2.78"]]));
    says("dhcp-servers clear wan0 dhcpv4");
    says("dhcp-servers clear wan0 dhcpv6");
    await_offer(&network, &both);
    let table = network.run(Host::Router, &hook, ["status"]);
    assert!(
        table.contains("offered by DHCP   2001:db8::1, 192.0.2.86; 192.0.2.1; 198.51.100.1, 198.51.100.2\n"),
        "{table}"
    );
    assert!(daemon.terminate(30 * SECOND).success());
}

/// The ports belong to a DHCP client that keeps no such option, as systemd-networkd does: portferry hears its answers all the
/// same. An option of odd length is said, and counts as none.
#[test]
fn portferry_asks_beside_a_dhcp_client() {
    let Some((network, program)) = laboratory() else { return };
    let _server = dhcp_server(&network, ODD);
    without_address(&network);
    let mut client = dhcpcd(&network, "-4", "nodelay\nnoarp\n");
    eventually("the lease", 15 * SECOND, || client.log().contains("spawned listener").then_some(()));
    let mut daemon = daemon(&network, &program, "dhcp = \"inform\"\n");
    await_offer(&network, &offered_v6());
    daemon.await_log("DHCPv4 offers PCP servers in an option that cannot be read", 15 * SECOND);
    assert_eq!(client.ended(), None);
    assert!(daemon.terminate(30 * SECOND).success());
}

/// Where Debian has it.
const NETWORKD: &str = "/lib/systemd/systemd-networkd";

/// systemd-networkd keeps no such option, also where it is told to request it: portferry asks beside it, and is served by whom
/// DHCP names, though the default router says nothing.
#[test]
fn portferry_asks_beside_systemd_networkd() {
    const SERVER: &str = "203.0.114.158";
    const OPTION: &str = "04:cb:00:72:9e";
    let Some((network, program)) = laboratory() else { return };
    if !Path::new(NETWORKD).exists() {
        return skipped("systemd-networkd is missing");
    }
    network.run(Host::Provider, "ip", ["addr", "add", &format!("{SERVER}/32"), "dev", "lo"]);
    network.nft(
        Host::Provider,
        "table inet silent {\n chain input {\n  type filter hook input priority 0\n  \
         ip daddr 100.64.0.1 udp dport 5351 drop\n }\n}\n",
    );
    let _pcp_server = PcpServer::start_at(&network, &program, &["100.64.0.0/24"], &[SERVER], "");
    let dhcp_server = dhcp_server(&network, OPTION);
    without_address(&network);
    let mut daemon = daemon(&network, &program, "dhcp = \"auto\"\nanycast = false\n");
    let mut client = networkd(&network);
    await_offer(&network, &json!([offered_v6()[0], [SERVER]]));
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let status: Value =
        serde_json::from_str(&subject::ask(&network, "status").expect("it runs")).expect("JSON");
    assert_eq!(status["server"], format!("{SERVER}:5351"), "{status:#}");
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    control_point.adds(8080, 9090, "TCP", 3600);
    reaches(&network, TCP, 9090, "lan1");

    // It has asked for the option, has heard it, and has not kept it.
    let log = dhcp_server.log();
    let asked = log.lines().any(|line| line.contains("requested options") && line.contains("158"));
    assert!(
        asked && log.contains("DHCPACK(cust0) 100.64.0.2") && log.contains("DHCPINFORM(cust0) 100.64.0.2"),
        "{log}"
    );
    let leases = network.directory().join("networkd.run/netif/leases");
    let lease = fs::read_dir(&leases).expect("it has one").map(|file| file.expect("a file").path()).next();
    let lease = fs::read_to_string(lease.expect("it has one")).expect("text");
    assert!(lease.contains("ADDRESS=100.64.0.2") && !lease.contains("cb00729e"), "{lease}");
    assert_eq!(client.ended(), None);
    assert!(client.terminate(10 * SECOND).success());
    assert!(daemon.terminate(30 * SECOND).success());
}

/// systemd-networkd as the WAN's DHCP client, with directories of ours in the places of the machine's. There is no bus, which it can do
/// without, and no udev, for which it waits unless /sys is read-only, as in a container.
fn networkd(network: &Network) -> Process {
    let lines = format!(
        "[Match]\nName={WAN_INTERFACE}\n[Network]\nDHCP=ipv4\nIPv6AcceptRA=no\n\
         [DHCPv4]\nClientIdentifier=mac\nRequestOptions=158\nUseHostname=no\nUseDNS=no\nUseNTP=no\n"
    );
    let own = [("networkd.etc", "/etc/systemd/network"), ("networkd.run", "/run/systemd")];
    let over = over(network, &own);
    fs::write(network.directory().join("networkd.etc/wan.network"), lines).expect("the directory is ours");
    let call = format!("{over}mount -o remount,bind,ro /sys\nexec {NETWORKD}\n");
    let environment = "SYSTEMD_LOG_LEVEL=debug SYSTEMD_LOG_TARGET=console".split(' ');
    let arguments = environment.chain(["sh", "-c", &call]);
    network.spawn(Host::Router, "networkd", "env", arguments)
}

/// A program that has the port for itself: one line, and the rest goes on.
#[test]
fn a_port_that_is_taken_is_said() {
    let Some((network, program)) = laboratory() else { return };
    let _server = dhcp_server(&network, OPTION_158);
    let _client = tagged(&network, Host::Router, UDP, (Ipv4Addr::UNSPECIFIED, 68), "client");
    let mut daemon = daemon(&network, &program, "dhcp = \"inform\"\n");
    daemon.await_log("cannot ask for PCP servers by DHCPv4, UDP port 68", 10 * SECOND);
    await_offer(&network, &offered_v6());
    assert_eq!(daemon.log().matches("cannot ask for PCP servers").count(), 1);
    assert!(daemon.terminate(30 * SECOND).success());
}
