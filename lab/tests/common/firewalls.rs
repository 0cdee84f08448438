//! Packet filters of somebody else's on the router: the real ones of Debian, with files of their own, and rules in fw4's layout.

use std::fs;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::process::Command;

use lab::netns::{Host, Network, Process};
use lab::wait::eventually;

use super::{SECOND, TCP, ask_within, tagged};

/// In the layout of OpenWrt's with its default zones, as a reload loads it: one transaction, which flushes the table first. `INCLUDED`
/// is where files of `chain-pre/forward` go.
pub(crate) const FW4: &str = r#"
table inet fw4
flush table inet fw4
table inet fw4 {
 chain input {
  type filter hook input priority filter; policy drop;
  iifname "lo" accept comment "!fw4: Accept traffic from loopback"
  ct state vmap { established : accept, related : accept } comment "!fw4: Handle inbound flows"
  tcp flags & (fin | syn | rst | ack) == syn jump syn_flood comment "!fw4: Rate limit TCP syn packets"
  iifname "br-lan" jump input_lan comment "!fw4: Handle lan IPv4/IPv6 input traffic"
  iifname "wan0" jump input_wan comment "!fw4: Handle wan IPv4/IPv6 input traffic"
  jump handle_reject
 }
 chain forward {
  type filter hook forward priority filter; policy drop;
  INCLUDED
  ct state vmap { established : accept, related : accept } comment "!fw4: Handle forwarded flows"
  iifname "br-lan" jump forward_lan comment "!fw4: Handle lan IPv4/IPv6 forward traffic"
  iifname "wan0" jump forward_wan comment "!fw4: Handle wan IPv4/IPv6 forward traffic"
  jump handle_reject
 }
 chain output {
  type filter hook output priority filter; policy accept;
  oifname "lo" accept
  ct state vmap { established : accept, related : accept }
  oifname "br-lan" jump output_lan
  oifname "wan0" jump output_wan
 }
 chain prerouting { type filter hook prerouting priority filter; policy accept; }
 chain handle_reject {
  meta l4proto tcp reject with tcp reset comment "!fw4: Reject TCP traffic"
  reject comment "!fw4: Reject any other traffic"
 }
 chain syn_flood { limit rate 25/second burst 50 packets return; drop; }
 chain input_lan { jump accept_from_lan; }
 chain output_lan { jump accept_to_lan; }
 chain forward_lan {
  jump accept_to_wan comment "!fw4: Accept lan to wan forwarding"
  jump accept_to_lan
 }
 chain accept_from_lan { iifname "br-lan" counter accept; }
 chain accept_to_lan { oifname "br-lan" counter accept; }
 chain input_wan {
  meta nfproto ipv4 udp dport 68 counter accept comment "!fw4: Allow-DHCP-Renew"
  icmp type echo-request counter accept comment "!fw4: Allow-Ping"
  meta nfproto ipv6 udp dport 546 counter accept comment "!fw4: Allow-DHCPv6"
  icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert, echo-request, echo-reply } limit rate 1000/second counter accept comment "!fw4: Allow-ICMPv6-Input"
  jump reject_from_wan
 }
 chain output_wan { jump accept_to_wan; }
 chain forward_wan {
  icmpv6 type { echo-request, echo-reply, destination-unreachable } limit rate 1000/second counter accept comment "!fw4: Allow-ICMPv6-Forward"
  meta l4proto esp counter jump accept_to_lan comment "!fw4: Allow-IPSec-ESP"
  jump reject_to_wan
 }
 chain accept_to_wan { meta nfproto ipv4 oifname "wan0" ct state invalid counter drop; oifname "wan0" counter accept; }
 chain reject_from_wan { iifname "wan0" counter jump handle_reject; }
 chain reject_to_wan { oifname "wan0" counter jump handle_reject; }
 chain dstnat { type nat hook prerouting priority dstnat; policy accept; }
 chain srcnat {
  type nat hook postrouting priority srcnat; policy accept;
  oifname "wan0" jump srcnat_wan
 }
 chain srcnat_wan { meta nfproto ipv4 masquerade comment "!fw4: Masquerade IPv4 wan traffic"; }
 chain raw_prerouting { type filter hook prerouting priority raw; policy accept; }
 chain mangle_forward {
  type filter hook forward priority mangle; policy accept;
  iifname "wan0" tcp flags & (fin | syn | rst) == syn tcp option maxseg size set rt mtu
 }
}
"#;

/// Nothing included.
pub(crate) fn load_fw4(network: &Network) {
    network.nft(Host::Router, &FW4.replace("INCLUDED", ""));
}

/// A copy of a directory of /etc for the network alone.
pub(crate) fn own_copy(network: &Network, directory: &str) -> PathBuf {
    let own = network.directory().join(directory.trim_start_matches('/').replace('/', "-"));
    let copied = Command::new("cp").arg("-r").arg(directory).arg(&own).status().expect("it runs");
    assert!(copied.success(), "{directory}");
    own
}

/// Files of ufw's for the network alone.
pub(crate) fn ufw_files(network: &Network) -> [(&'static str, PathBuf); 4] {
    let state = network.directory().join("ufw-state");
    fs::create_dir_all(&state).expect("the directory is ours");
    // Its own files may name the older iptables.
    let alternatives = own_copy(network, "/etc/alternatives");
    [
        ("/etc/ufw", own_copy(network, "/etc/ufw")),
        ("/etc/default", own_copy(network, "/etc/default")),
        ("/run", state),
        ("/etc/alternatives", alternatives),
    ]
}

/// Has lines of a shell find other directories in the place of the machine's.
#[track_caller]
pub(crate) fn with_files(network: &Network, files: &[(&str, PathBuf)], lines: &[&str]) -> String {
    let mounts = files.iter().map(|(at, own)| format!("mount --bind {} {at}", own.display()));
    let script: Vec<String> = mounts.chain(lines.iter().map(|line| (*line).to_owned())).collect();
    network.run(Host::Router, "sh", ["-ec", &script.join("\n")])
}

/// The real one, with a message bus of its own.
pub(crate) struct Firewalld<'a> {
    network: &'a Network,
    bus: String,
    _bus: Process,
    pub(crate) process: Process,
}

impl<'a> Firewalld<'a> {
    pub(crate) fn start(network: &'a Network) -> Self {
        let directory = network.directory().join("firewalld");
        fs::create_dir_all(&directory).expect("the directory is ours");
        let bus = format!("unix:path={}", directory.join("bus").display());
        let configuration = format!(
            "<busconfig><type>system</type><listen>{bus}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
             <allow own=\"*\"/><allow send_destination=\"*\"/><allow receive_sender=\"*\"/><allow user=\"*\"/>\
             </policy></busconfig>"
        );
        let file = directory.join("bus.conf");
        fs::write(&file, configuration).expect("the directory is ours");
        let arguments =
            [format!("--config-file={}", file.display()), "--nofork".into(), "--nopidfile".into()];
        let daemon = network.spawn(Host::Router, "dbus", "dbus-daemon", arguments);
        let there = directory.join("bus");
        eventually("the message bus", 10 * SECOND, || there.exists().then_some(()));
        let own = directory.join("etc");
        fs::create_dir_all(&own).expect("the directory is ours");
        fs::copy("/etc/firewalld/firewalld.conf", own.join("firewalld.conf")).expect("the package has it");
        let firewall = run_firewalld(network, &bus, &own);
        let this = Self { network, bus, _bus: daemon, process: firewall };
        eventually("firewalld", 60 * SECOND, || {
            let mut command = network.command(Host::Router, "env");
            let state = command.arg(this.variable()).args(["firewall-cmd", "--state"]).output();
            state.expect("it runs").status.success().then_some(())
        });
        this
    }

    /// How others find its message bus.
    pub(crate) fn variable(&self) -> String {
        format!("DBUS_SYSTEM_BUS_ADDRESS={}", self.bus)
    }

    #[track_caller]
    pub(crate) fn tell(&self, line: &str) -> String {
        let arguments = [self.variable(), "firewall-cmd".to_owned()];
        self.network.run(Host::Router, "env", arguments.into_iter().chain(line.split(' ').map(str::to_owned)))
    }
}

fn run_firewalld(network: &Network, bus: &str, own: &Path) -> Process {
    let arguments = [
        format!("DBUS_SYSTEM_BUS_ADDRESS={bus}"),
        "firewalld".into(),
        "--nofork".into(),
        "--nopid".into(),
        "--system-config".into(),
        own.display().to_string(),
    ];
    network.spawn(Host::Router, "firewalld", "env", arguments)
}

/// The first LAN host, where the LAN has IPv6.
pub(crate) const LAN1_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 0x10);

/// Gives a network that was made without IPv6 that, from the provider to the first LAN host.
#[track_caller]
pub(crate) fn with_ipv6(network: &Network) {
    for host in [Host::Router, Host::Provider, Host::Lan1] {
        network.run(host, "sysctl", ["-qw", "net.ipv6.conf.all.disable_ipv6=0"]);
    }
    network.run(Host::Router, "sysctl", ["-qw", "net.ipv6.conf.all.forwarding=1"]);
    for (host, line) in [
        (Host::Router, "addr add 2001:db8:1::2/64 dev wan0 nodad"),
        (Host::Router, "addr add 2001:db8:77::1/64 dev br-lan nodad"),
        (Host::Provider, "addr add 2001:db8:1::1/64 dev cust0 nodad"),
        (Host::Provider, "route add 2001:db8:77::/64 via 2001:db8:1::2"),
        (Host::Lan1, "addr add 2001:db8:77::10/64 dev eth0 nodad"),
        (Host::Lan1, "route add default via 2001:db8:77::1"),
    ] {
        network.run(host, "ip", ["-6"].into_iter().chain(line.split(' ')));
    }
}

/// Answers on the first LAN host over IPv6.
#[track_caller]
pub(crate) fn listener_v6(network: &Network, port: u16) -> Process {
    tagged(network, Host::Lan1, TCP, SocketAddrV6::new(LAN1_V6, port, 0, 0), "lan1-v6")
}

/// Whether that is reached by who is at the provider.
pub(crate) fn arrives_v6(network: &Network, port: u16) -> bool {
    let to = SocketAddrV6::new(LAN1_V6, port, 0, 0);
    ask_within(SECOND, network, Host::Provider, TCP, to, "knock").is_ok()
}
