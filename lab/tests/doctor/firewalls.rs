//! Packet filters that drop what has to pass: what doctor says of each, and that what it tells to do helps. Done as it says, doctor
//! finds no fault, and bytes pass.

use std::fs;

use lab::netns::{Host, Network};
use lab::provider::{Options, Provider};
use lab::wait::eventually;

use super::common::firewalls::{FW4, Firewalld, load_fw4, ufw_files, with_ipv6};
use super::common::{
    CASCADED, ControlPoint, NAT, NO_NAT, ROUTED, SECOND, TCP, interworking_subject, listener, reaches,
    reaches_nobody, ready, there_is,
};
use super::{FILE, examine, obey, status};

/// A gateway with a mapping that leads to the first LAN host, before anybody filters.
fn mapped<'a>(network: &'a Network, daemon: &mut lab::netns::Process) -> ControlPoint<'a> {
    let control_point = ready(network, daemon, Host::Lan1);
    control_point.adds(8080, 8080, "TCP", 3600);
    reaches(network, TCP, 8080, "lan1");
    control_point
}

/// A ruleset of somebody's own that drops everything, in and through.
#[test]
fn nftables() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    let _control_point = mapped(&network, &mut daemon);
    network.nft(
        Host::Router,
        "table inet mine {
          chain in { type filter hook input priority 0; policy drop; iifname lo accept; }
          chain through { type filter hook forward priority 0; policy drop; ct state vmap { established: accept, related: accept }; iifname br-lan accept; }
        }",
    );
    let examined = examine(&network, &subject, FILE);
    for id in [
        "firewall-forward-drops",
        "firewall-search-drops",
        "firewall-http-drops",
        "firewall-uplink-drops",
        "search-lost",
    ] {
        assert_eq!(examined.find(id)["verdict"], "fault", "{id}");
    }
    assert_eq!(examined.find("firewall-forward-drops")["data"]["firewall"], "nftables");
    reaches_nobody(&network, TCP, 8080);
    for id in
        ["firewall-forward-drops", "firewall-search-drops", "firewall-http-drops", "firewall-uplink-drops"]
    {
        obey(&network, examined.find(id), &[], "");
    }
    let examined = examine(&network, &subject, FILE);
    examined.has_exactly(&[]);
    examined.has(&["firewall-announcements-drop", "firewall-pcp-drops"]);
    reaches(&network, TCP, 8080, "lan1");
    let natpmpc = || {
        let mut command = network.command(Host::Lan1, "timeout");
        let output = command.args(["2", "natpmpc", "-g", "192.168.77.1"]).output().expect("it runs");
        lab::netns::text(&output).contains("Public IP address")
    };
    assert!(!natpmpc(), "it is dropped");
    obey(&network, examined.find("firewall-pcp-drops"), &[], "");
    assert!(natpmpc());
    let examined = examine(&network, &subject, FILE);
    examined.has_exactly(&[]);
    examined.has(&["firewall-input"]);

    // The answers of the LAN are dropped, and then what nobody understands may let something pass.
    network.nft(Host::Router, "insert rule inet mine through iifname br-lan drop");
    let examined = examine(&network, &subject, FILE);
    examined.has_exactly(&["firewall-replies-drop"]);
    obey(&network, examined.find("firewall-replies-drop"), &[], "");
    examine(&network, &subject, FILE).has_exactly(&[]);
    reaches(&network, TCP, 8080, "lan1");
    network.nft(
        Host::Router,
        "flush chain inet mine through; add rule inet mine through iifname wan0 numgen inc mod 2 0 accept",
    );
    let examined = examine(&network, &subject, FILE);
    examined.has_exactly(&["firewall-forward-unclear"]);
    obey(&network, examined.find("firewall-forward-unclear"), &[], "");
    assert!(!examine(&network, &subject, FILE).bad().contains("firewall-forward-unclear"));
    // Some sources only.
    network.nft(
        Host::Router,
        "flush chain inet mine through; add rule inet mine through ip saddr 73.0.0.0/8 drop; add rule inet mine through accept",
    );
    examine(&network, &subject, FILE).has_exactly(&["firewall-forward-sources"]);
    // The same of what comes in.
    network.nft(
        Host::Router,
        "flush chain inet mine through; add rule inet mine through accept;
         flush chain inet mine in; add rule inet mine in iifname lo accept; add rule inet mine in ct state established accept;
         add rule inet mine in udp dport 1900 numgen inc mod 1 0 accept; add rule inet mine in tcp dport 5431 accept",
    );
    let examined = examine(&network, &subject, FILE);
    examined.has_exactly(&["firewall-input-unclear"]);
    obey(&network, examined.find("firewall-input-unclear"), &[], "");
    examine(&network, &subject, FILE).has_exactly(&[]);
    // Not even the router itself is answered.
    network.nft(Host::Router, "insert rule inet mine in iifname lo tcp dport 5431 drop");
    assert!(examine(&network, &subject, FILE).bad().contains("control-point-http-silent"));
}

/// Where nothing is translated, what doctor tells to do opens the LAN over IPv4 only.
#[test]
fn nftables_without_a_nat() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(ROUTED);
    let _provider = Provider::start(&network, Options { third_party: true, ..Options::default() });
    let mut daemon = subject.start(&network, NO_NAT, "");
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    let _control_point = mapped(&network, &mut daemon);
    with_ipv6(&network);
    // Nobody listens there, and the host says so.
    let arrives = || {
        let mut connect = network.command(Host::Provider, "timeout");
        let output = connect.args(["1", "bash", "-c", "exec 3<>/dev/tcp/2001:db8:77::10/9"]).output();
        String::from_utf8_lossy(&output.expect("it runs").stderr).contains("refused")
    };
    eventually("IPv6 of the LAN", 10 * SECOND, || arrives().then_some(()));
    network.nft(
        Host::Router,
        "table inet mine {
          chain through { type filter hook forward priority 0; policy drop; iifname br-lan accept; }
        }",
    );
    let examined = examine(&network, &subject, FILE);
    examined.has_exactly(&["firewall-forward-drops"]);
    reaches_nobody(&network, TCP, 8080);
    obey(&network, examined.find("firewall-forward-drops"), &[], "");
    examine(&network, &subject, FILE).has_exactly(&[]);
    reaches(&network, TCP, 8080, "lan1");
    assert!(!arrives(), "IPv6 is closed as before");
}

#[test]
fn fw4() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    let _control_point = mapped(&network, &mut daemon);
    load_fw4(&network);
    let examined = examine(&network, &subject, FILE);
    examined.has_exactly(&["firewall-forward-drops"]);
    let drops = examined.find("firewall-forward-drops");
    assert_eq!(
        (&drops["data"]["firewall"], &drops["data"]["chain"]),
        (&"fw4".into(), &"handle_reject".into())
    );
    reaches_nobody(&network, TCP, 8080);

    // Its program puts files into the chains that their directories name.
    let share = network.directory().join("share");
    fs::create_dir_all(&share).expect("the directory is ours");
    fs::write(share.join("fw4.nft"), FW4).expect("the directory is ours");
    let program = "fw4() { sed \"s,INCLUDED,include \\\"/usr/share/nftables.d/chain-pre/forward/*.nft\\\"\\;,\" /usr/share/fw4.nft | nft -f -; }";
    obey(&network, drops, &[("/usr/share", share)], program);
    examine(&network, &subject, FILE).has_exactly(&[]);
    reaches(&network, TCP, 8080, "lan1");
}

#[test]
fn ufw() {
    let Some(subject) = interworking_subject() else { return };
    if !there_is("ufw") {
        return;
    }
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    let control_point = mapped(&network, &mut daemon);
    let files = ufw_files(&network);
    let enable = serde_json::json!({ "commands": ["ufw --force enable >/dev/null"] });
    obey(&network, &enable, &files, "");
    let examined = examine(&network, &subject, FILE);
    // It lets searches in by itself.
    let found = ["firewall-forward-drops", "firewall-http-drops"];
    examined.has_exactly(&found);
    reaches_nobody(&network, TCP, 8080);
    for id in found {
        let finding = examined.find(id);
        assert_eq!(finding["data"]["firewall"], "ufw", "{finding}");
        obey(&network, finding, &files, "");
    }
    let examined = examine(&network, &subject, FILE);
    examined.has_exactly(&[]);
    reaches(&network, TCP, 8080, "lan1");
    control_point.adds(8081, 8081, "TCP", 3600);
}

/// Without a NAT here a line of IPv4 lets pass what comes for the LAN, and none of IPv6 does.
#[test]
fn ufw_without_a_nat() {
    let Some(subject) = interworking_subject() else { return };
    if !there_is("ufw") {
        return;
    }
    let network = Network::new(ROUTED);
    let _provider = Provider::start(&network, Options { third_party: true, ..Options::default() });
    let mut daemon = subject.start(&network, NO_NAT, "");
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    let _control_point = mapped(&network, &mut daemon);
    let files = ufw_files(&network);
    let enable = serde_json::json!({ "commands": ["ufw --force enable >/dev/null"] });
    obey(&network, &enable, &files, "");
    reaches_nobody(&network, TCP, 8080);
    let examined = examine(&network, &subject, FILE);
    let found = ["firewall-forward-drops", "firewall-http-drops"];
    examined.has_exactly(&found);
    for id in found {
        obey(&network, examined.find(id), &files, "");
    }
    examine(&network, &subject, FILE).has_exactly(&[]);
    reaches(&network, TCP, 8080, "lan1");
    let rules = network.run(Host::Router, "nft", ["list", "ruleset", "ip6"]);
    assert!(!rules.contains("oifname \"br-lan\""), "{rules}");
}

/// Chains as Docker makes them, by iptables-nft.
#[test]
fn docker() {
    let Some(subject) = interworking_subject() else { return };
    if !there_is("iptables-nft") {
        return;
    }
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    let _control_point = mapped(&network, &mut daemon);
    for line in [
        "-N DOCKER",
        "-N DOCKER-USER",
        "-N DOCKER-FORWARD",
        "-P FORWARD DROP",
        "-A FORWARD -j DOCKER-USER",
        "-A FORWARD -j DOCKER-FORWARD",
        "-A DOCKER-FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A DOCKER-FORWARD -o docker0 -j DOCKER",
        "-A DOCKER-FORWARD -i docker0 -j ACCEPT",
        "-A DOCKER ! -i docker0 -o docker0 -j DROP",
    ] {
        network.run(Host::Router, "iptables-nft", line.split(' '));
    }
    let alias = "iptables() { iptables-nft \"$@\"; }";
    // What comes in first, then the answers.
    for id in ["firewall-forward-drops", "firewall-replies-drop"] {
        reaches_nobody(&network, TCP, 8080);
        let examined = examine(&network, &subject, FILE);
        examined.has_exactly(&[id]);
        let finding = examined.find(id);
        assert_eq!(finding["data"]["firewall"], "Docker", "{finding}");
        obey(&network, finding, &[], alias);
    }
    examine(&network, &subject, FILE).has_exactly(&[]);
    reaches(&network, TCP, 8080, "lan1");
    // Without Docker's chains, whose rules they are.
    for line in ["-F FORWARD", "-F DOCKER-USER", "-F DOCKER", "-F DOCKER-FORWARD", "-X DOCKER-USER"] {
        network.run(Host::Router, "iptables-nft", line.split(' '));
    }
    for id in ["firewall-forward-drops", "firewall-replies-drop"] {
        let examined = examine(&network, &subject, FILE);
        let finding = examined.find(id);
        assert_eq!(finding["data"]["firewall"], "iptables", "{finding}");
        obey(&network, finding, &[], alias);
    }
    examine(&network, &subject, FILE).has_exactly(&[]);
    reaches(&network, TCP, 8080, "lan1");
}

/// The older iptables, whose rules are not to be seen: the tables' names are.
#[test]
fn legacy() {
    let Some(subject) = interworking_subject() else { return };
    if !there_is("iptables-legacy") {
        return;
    }
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    let _control_point = mapped(&network, &mut daemon);
    let drop = network.command(Host::Router, "iptables-legacy").args(["-P", "FORWARD", "DROP"]).output();
    if !drop.expect("it runs").status.success() {
        return super::common::skipped("the kernel has no rules of the older iptables");
    }
    reaches_nobody(&network, TCP, 8080);
    let examined = examine(&network, &subject, FILE);
    examined.has_exactly(&["firewall-legacy"]);
    obey(&network, examined.find("firewall-legacy"), &[], "");
    reaches(&network, TCP, 8080, "lan1");
}

impl Firewalld<'_> {
    #[track_caller]
    fn obey(&self, network: &Network, finding: &serde_json::Value) {
        assert_eq!(finding["data"]["firewall"], "firewalld", "{finding}");
        obey(network, finding, &[], &format!("export {}", self.variable()));
    }
}

/// What is translated here passes by itself; searches and requests of the LAN do not.
#[test]
fn firewalld() {
    let Some(subject) = interworking_subject() else { return };
    if !there_is("firewalld") || !there_is("dbus-daemon") {
        return;
    }
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    let control_point = mapped(&network, &mut daemon);
    let firewall = Firewalld::start(&network);
    // The LAN is in the default zone, as the WAN is, and is given one of its own.
    let examined = examine(&network, &subject, FILE);
    let found = ["firewall-search-drops", "firewall-http-drops", "search-lost"];
    examined.has_exactly(&found);
    examined.has(&["firewall-forward"]);
    reaches(&network, TCP, 8080, "lan1");
    for id in &found[..2] {
        firewall.obey(&network, examined.find(id));
    }
    examine(&network, &subject, FILE).has_exactly(&[]);
    control_point.adds(8081, 8081, "TCP", 3600);
    let zone = |interface: &str| firewall.tell(&format!("--get-zone-of-interface={interface}"));
    assert_eq!(zone("br-lan").trim(), "internal");
    let open = firewall.tell("--list-ports");
    assert!(!open.contains("1900") && !open.contains("5431"), "{open}");
    reaches(&network, TCP, 8080, "lan1");
}

/// Without a NAT here what comes for the LAN is rejected, until a policy lets it pass.
#[test]
fn firewalld_without_a_nat() {
    let Some(subject) = interworking_subject() else { return };
    if !there_is("firewalld") || !there_is("dbus-daemon") {
        return;
    }
    let network = Network::new(ROUTED);
    let _provider = Provider::start(&network, Options { third_party: true, ..Options::default() });
    let mut daemon = subject.start(&network, NO_NAT, "");
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    let _control_point = mapped(&network, &mut daemon);
    let firewall = Firewalld::start(&network);
    for line in [
        "--permanent --zone=public --add-interface=wan0",
        "--permanent --zone=trusted --add-interface=br-lan",
        "--reload",
    ] {
        firewall.tell(line);
    }
    let examined = examine(&network, &subject, FILE);
    examined.has_exactly(&["firewall-forward-drops"]);
    reaches_nobody(&network, TCP, 8080);
    firewall.obey(&network, examined.find("firewall-forward-drops"));
    examine(&network, &subject, FILE).has_exactly(&[]);
    reaches(&network, TCP, 8080, "lan1");
    assert_eq!(status(&network)["uplink"], "answering");
}
