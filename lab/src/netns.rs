//! A provider, a router, its LAN and the Internet, as network namespaces of one Linux machine.
//!
//! ```text
//! lan1 192.168.77.10 ┐ br-lan                        sub1 ┐ cust0                inet0
//!                    ├─────── router ── wan0 ────────────┤ 100.64.0.1  provider ─────── internet
//! lan2 192.168.77.11 ┘ .77.1          100.64.0.2         │        198.51.100.1 198.51.100.20
//!                                     other 100.64.0.3 ──┘ sub2         + 203.0.114.1
//! ```
//!
//! The host's own namespace never sees an interface, address, route or rule of a laboratory: each end of each link is
//! created inside the namespace it stays in. Everything dies with the [`Network`], also when a test panics, and what a
//! killed test process left is swept by the next one.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::wait;

mod carrier;
mod inside;
mod two_lines;
mod vps;

pub use carrier::{
    ACCESS_INTERFACE, AFTR, AFTR_DEVICE, B4_DEVICE, LAN1_V6, LAN2_V6, NAT64_DEVICE, NAT64_PREFIX,
    NAT64_SERVER, OTHER_ACCESS, PROVIDER_ACCESS, ROUTER_ACCESS, ROUTER_LAN_V6, reason_to_skip_tun,
};
pub use two_lines::{SECOND_EXTERNAL, SECOND_PROVIDER, SECOND_ROUTER_WAN, SECOND_WAN};
pub use vps::{
    ANOTHER_EXTERNAL, HOME_TUNNEL, OTHER_TUNNEL, TUNNEL_INTERFACE, VPS_INTERFACE, VPS_PRIVATE, VPS_TUNNEL,
};

/// The router on its LAN.
pub const ROUTER_LAN: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
/// The first LAN host.
pub const LAN1: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 10);
/// The second LAN host.
pub const LAN2: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 11);
/// The router as the provider knows it.
pub const ROUTER_WAN: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
/// Another subscriber of the same provider.
pub const OTHER: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 3);
/// The provider towards its subscribers, and its PCP server.
pub const PROVIDER: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
/// The provider towards the Internet; what subscribers send leaves with this source.
pub const PROVIDER_INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The provider's other address on the Internet, the external address of mappings. It has to look public: many control
/// points refuse an IGD whose external address is private, shared or for documentation (and miniupnpd refuses to serve one).
pub const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 114, 1);
/// Somebody on the Internet.
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);

/// The interface on the router's LAN side.
pub const LAN_INTERFACE: &str = "br-lan";
/// The interface on the router's provider side.
pub const WAN_INTERFACE: &str = "wan0";

/// What the laboratory calls, and the Debian package that has it.
const TOOLS: [(&str, &str); 9] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("sysctl", "procps"),
    ("timeout", "coreutils"),
    ("tcpdump", "tcpdump"),
    ("miniupnpd", "miniupnpd-nftables"),
    ("upnpc", "miniupnpc"),
    ("natpmpc", "natpmpc"),
    ("sh", "dash"),
];

/// How many octets of each log a failing test prints.
const LOG_TAIL: usize = 16_384;

/// The members of a [`Network`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Host {
    /// [`LAN1`].
    Lan1,
    /// [`LAN2`].
    Lan2,
    /// [`ROUTER_LAN`] and [`ROUTER_WAN`]; what is tested runs here.
    Router,
    /// [`PROVIDER`], [`PROVIDER_INTERNET`] and [`EXTERNAL`].
    Provider,
    /// [`OTHER`].
    Other,
    /// Behind [`Self::Other`] in [`Network::ds_lite`], with the address of [`Self::Lan1`].
    OtherLan,
    /// [`INTERNET`].
    Internet,
}

impl Host {
    /// Those of [`Network::new`].
    pub const ALL: [Self; 6] =
        [Self::Lan1, Self::Lan2, Self::Router, Self::Provider, Self::Other, Self::Internet];
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lan1 => "lan1",
            Self::Lan2 => "lan2",
            Self::Router => "router",
            Self::Provider => "provider",
            Self::Other => "other",
            Self::OtherLan => "other-lan",
            Self::Internet => "internet",
        })
    }
}

/// What differs between two laboratories.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Whether the router masquerades its LAN (cascaded NAT). Otherwise the provider routes the LAN to the router.
    pub router_nat: bool,
    /// Whether [`LAN_INTERFACE`] is there from the start; if not, [`Network::add_lan`] makes it.
    pub lan: bool,
}

impl Default for Layout {
    fn default() -> Self {
        Self { router_nat: true, lan: true }
    }
}

/// Why there can be no laboratory here, or `None`: it needs root, and `PF_LAB=skip` forgoes it.
#[must_use]
pub fn reason_to_skip() -> Option<&'static str> {
    let root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    if !root {
        return Some("the lab needs root (network namespaces)");
    }
    std::env::var_os("PF_LAB").is_some_and(|lab| lab == "skip").then_some("PF_LAB=skip")
}

/// Namespaces, links, addresses, routes and NAT rules; removed on drop, with all processes inside.
pub struct Network {
    prefix: String,
    directory: PathBuf,
    hosts: Vec<Host>,
}

impl Network {
    /// Builds it; takes about a quarter of a second.
    ///
    /// # Panics
    ///
    /// If a tool is missing (the message names its Debian package) or a command fails.
    #[must_use]
    pub fn new(layout: Layout) -> Self {
        let network = Self::empty(&Host::ALL);
        network.build(layout);
        network
    }

    /// Namespaces with nothing in them.
    fn empty(hosts: &[Host]) -> Self {
        static FIRST: Once = Once::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        demand_tools();
        FIRST.call_once(sweep);
        let prefix = format!("pf{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(&prefix);
        fs::create_dir(&directory).expect("the temporary directory is writable, and has no such entry");
        let network = Self { prefix, directory, hosts: hosts.to_vec() }; // from here on, a panic tears down
        for host in hosts {
            must(Command::new("ip").args(["netns", "add", &network.namespace(*host)]));
        }
        network
    }

    fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Makes a router of a member.
    fn forward(&self, host: Host) {
        self.run(host, "sysctl", ["-qw", "net.ipv4.ip_forward=1"]);
        // Where br_netfilter is loaded (Docker does it), frames between two ports of a bridge would pass the IP rules,
        // source NAT included. `-e`: elsewhere there is no such key.
        self.run(host, "sysctl", ["-eqw", "net.bridge.bridge-nf-call-iptables=0"]);
    }

    fn build(&self, layout: Layout) {
        for host in Host::ALL {
            self.run(host, "sysctl", ["-qw", "net.ipv6.conf.all.disable_ipv6=1"]);
            self.ip(host, "link set lo up");
        }
        for host in [Host::Router, Host::Provider] {
            self.forward(host);
        }
        self.ip(Host::Provider, "link add cust0 type bridge");
        self.ip(Host::Provider, &format!("addr add {PROVIDER}/24 dev cust0"));
        self.ip(Host::Provider, "link set cust0 up");
        for (host, address, port) in [(Host::Router, ROUTER_WAN, "sub1"), (Host::Other, OTHER, "sub2")] {
            self.link(host, WAN_INTERFACE, Host::Provider, port);
            self.ip(Host::Provider, &format!("link set {port} master cust0"));
            self.ip(host, &format!("addr add {address}/24 dev {WAN_INTERFACE}"));
            self.ip(host, &format!("route add default via {PROVIDER}"));
        }
        self.link(Host::Internet, "eth0", Host::Provider, "inet0");
        self.ip(Host::Provider, &format!("addr add {PROVIDER_INTERNET}/24 dev inet0"));
        self.ip(Host::Provider, &format!("addr add {EXTERNAL}/32 dev inet0"));
        self.ip(Host::Internet, &format!("addr add {INTERNET}/24 dev eth0"));
        self.ip(Host::Internet, &format!("route add {EXTERNAL}/32 via {PROVIDER_INTERNET}"));
        self.masquerade(Host::Provider, "inet0");
        if layout.router_nat {
            self.masquerade(Host::Router, WAN_INTERFACE);
        } else {
            self.ip(Host::Provider, &format!("route add 192.168.77.0/24 via {ROUTER_WAN}"));
        }
        if layout.lan {
            self.add_lan();
        }
    }

    /// Plugs the LAN in: the bridge [`LAN_INTERFACE`], both LAN hosts, their addresses and routes.
    pub fn add_lan(&self) {
        self.ip(Host::Router, &format!("link add {LAN_INTERFACE} type bridge"));
        self.ip(Host::Router, &format!("addr add {ROUTER_LAN}/24 dev {LAN_INTERFACE}"));
        self.ip(Host::Router, &format!("link set {LAN_INTERFACE} up"));
        for (host, address, port) in [(Host::Lan1, LAN1, "port1"), (Host::Lan2, LAN2, "port2")] {
            self.link(host, "eth0", Host::Router, port);
            self.ip(Host::Router, &format!("link set {port} master {LAN_INTERFACE}"));
            self.ip(host, &format!("addr add {address}/24 dev eth0"));
            self.ip(host, &format!("route add default via {ROUTER_LAN}"));
        }
    }

    /// The name of a member's namespace, `pf<pid>-<n>-<host>`.
    #[must_use]
    pub fn namespace(&self, host: Host) -> String {
        format!("{}-{host}", self.prefix)
    }

    /// Where logs, configurations, captures and sockets of this laboratory go; removed with it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A command that will run in a member's namespace. Its process id is the program's own.
    #[must_use]
    pub fn command(&self, host: Host, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(host)]).arg(program).stdin(Stdio::null());
        command
    }

    /// Runs a program in a member's namespace to its end; what it printed on its standard output.
    ///
    /// # Panics
    ///
    /// If it fails.
    #[track_caller]
    pub fn run<A: AsRef<OsStr>>(
        &self,
        host: Host,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> String {
        must(self.command(host, program).args(arguments))
    }

    /// Loads nftables rules into a member's namespace.
    #[track_caller]
    pub fn nft(&self, host: Host, rules: &str) {
        let mut child = self
            .command(host, "nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("ip netns exec can be run");
        let mut stdin = child.stdin.take().expect("piped above");
        stdin.write_all(rules.as_bytes()).expect("nft reads its input");
        drop(stdin);
        let status = child.wait().expect("a child can be waited for");
        assert!(status.success(), "nft in {host} refuses\n{rules}");
    }

    /// The elements of an nftables map (of family inet, from protocol and port to address and port) in a member's namespace,
    /// or `None` when there is no such map.
    ///
    /// # Panics
    ///
    /// If nft prints an element otherwise than `tcp . 8080 : 192.168.77.10 . 8080`.
    #[track_caller]
    #[must_use]
    pub fn elements(&self, host: Host, table: &str, map: &str) -> Option<Vec<Element>> {
        let arguments = ["-n", "list", "map", "inet", table, map];
        let output = self.command(host, "nft").args(arguments).output().expect("ip netns exec can be run");
        output.status.success().then(|| elements(&String::from_utf8_lossy(&output.stdout)))
    }

    /// Starts a program in a member's namespace; both of its outputs go to `<name>.log` in [`Self::directory`], which is
    /// printed if the test fails.
    #[track_caller]
    pub fn spawn<A: AsRef<OsStr>>(
        &self,
        host: Host,
        name: &str,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Process {
        let log = self.directory.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log).expect("the directory is ours");
        let both = output.try_clone().expect("a file can be shared");
        let child = self
            .command(host, program)
            .args(arguments)
            .stdout(output)
            .stderr(both)
            .spawn()
            .expect("ip netns exec can be run");
        Process { child, log }
    }

    #[track_caller]
    fn ip(&self, host: Host, arguments: &str) {
        must(Command::new("ip").args(["-n", &self.namespace(host)]).args(arguments.split(' ')));
    }

    #[track_caller]
    fn link(&self, host: Host, interface: &str, peer: Host, peer_interface: &str) {
        let peer_namespace = self.namespace(peer);
        self.ip(
            host,
            &format!("link add {interface} type veth peer name {peer_interface} netns {peer_namespace}"),
        );
        self.ip(host, &format!("link set {interface} up"));
        self.ip(peer, &format!("link set {peer_interface} up"));
    }

    #[track_caller]
    fn masquerade(&self, host: Host, interface: &str) {
        self.nft(
            host,
            &format!(
                "table ip labnat {{\n chain postrouting {{\n  type nat hook postrouting priority 110;\n  \
                 oifname \"{interface}\" masquerade\n }}\n}}\n"
            ),
        );
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if std::thread::panicking() {
            print_logs(&self.directory);
        }
        for host in &self.hosts {
            remove_namespace(&self.namespace(*host));
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A program running in a namespace; killed on drop.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let what = format!("the end of the process that writes {}", self.log.display());
        wait::eventually(&what, within, || self.ended())
    }

    /// Sends a signal (`TERM`, `HUP`, `STOP`, …).
    #[track_caller]
    pub fn signal(&self, signal: &str) {
        must(Command::new("sh").args(["-c", &format!("kill -{signal} {}", self.child.id())]));
    }

    /// Sends SIGTERM and waits for the end.
    #[track_caller]
    pub fn terminate(&mut self, within: Duration) -> ExitStatus {
        self.signal("TERM");
        self.wait(within)
    }

    /// Waits until its output contains `text`.
    #[track_caller]
    pub fn await_log(&mut self, text: &str, within: Duration) {
        wait::eventually(&format!("`{text}` in {}", self.log.display()), within, || {
            if self.log().contains(text) {
                return Some(());
            }
            if let Some(status) = self.ended() {
                assert!(self.log().contains(text), "ended ({status}) without `{text}`:\n{}", self.log());
            }
            None
        });
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An element of a NAT's map: protocol (6 TCP, 17 UDP), port, and where that leads.
pub type Element = (u8, u16, SocketAddrV4);

#[track_caller]
fn elements(listing: &str) -> Vec<Element> {
    let Some((_, elements)) = listing.split_once("elements = {") else { return Vec::new() };
    let (elements, _) = elements.split_once('}').expect("nft closes what it opens");
    let element = |text: &str| {
        let (key, value) = text.split_once(" : ")?;
        let (protocol, port) = key.split_once(" . ")?;
        let (host, internal_port) = value.split_once(" . ")?;
        // With -n a protocol is a number in some versions and a name in others.
        let protocol = match protocol.trim() {
            "tcp" => 6,
            "udp" => 17,
            number => number.parse().ok()?,
        };
        let internal = SocketAddrV4::new(host.trim().parse().ok()?, internal_port.trim().parse().ok()?);
        Some((protocol, port.trim().parse().ok()?, internal))
    };
    let all = elements.split(',').map(str::trim).filter(|text| !text.is_empty());
    all.map(|text| element(text).unwrap_or_else(|| panic!("not an element of a NAT's map: {text}"))).collect()
}

/// Output and error output of a finished command, as text.
#[must_use]
pub fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat()
}

#[track_caller]
fn must(command: &mut Command) -> String {
    let output = command.output().expect("the tools were looked for");
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn demand_tools() {
    let path = std::env::var_os("PATH").unwrap_or_default();
    for (tool, package) in TOOLS {
        let found = std::env::split_paths(&path).any(|directory| directory.join(tool).is_file());
        assert!(found, "the lab needs `{tool}`: apt-get install {package}");
    }
}

/// Removes what test processes left that died without dropping their networks.
fn sweep() {
    let namespaces =
        Command::new("ip").args(["netns", "list"]).output().map(|o| o.stdout).unwrap_or_default();
    for line in String::from_utf8_lossy(&namespaces).lines() {
        let name = line.split(' ').next().unwrap_or_default();
        if is_orphan(name) {
            remove_namespace(name);
        }
    }
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(is_orphan) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether `name` is `pf<pid>-<n>…` of a process that is no more.
fn is_orphan(name: &str) -> bool {
    let Some((pid, rest)) = name.strip_prefix("pf").and_then(|name| name.split_once('-')) else {
        return false;
    };
    let count = rest.split('-').next().unwrap_or_default();
    let numbers = pid.parse::<u32>().is_ok() && count.parse::<u32>().is_ok();
    // Our own number is no exception: when this is asked, nothing is ours yet.
    let ours = pid.parse() == Ok(std::process::id());
    numbers && (ours || !Path::new("/proc").join(pid).exists())
}

fn remove_namespace(name: &str) {
    let pids =
        Command::new("ip").args(["netns", "pids", name]).output().map(|o| o.stdout).unwrap_or_default();
    for pid in String::from_utf8_lossy(&pids).split_whitespace() {
        let _ = Command::new("sh").args(["-c", &format!("kill -KILL {pid}")]).stderr(Stdio::null()).status();
    }
    let _ = Command::new("ip").args(["netns", "delete", name]).stderr(Stdio::null()).status();
}

fn print_logs(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "log" || extension == "toml") {
            let log = fs::read(&path).unwrap_or_default();
            let tail = &log[log.len().saturating_sub(LOG_TAIL)..];
            eprintln!("──── {}\n{}", path.display(), String::from_utf8_lossy(tail));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_as_nft_prints_them() {
        let listing = "table inet portferry {\n\tmap ports {\n\t\ttype inet_proto . inet_service : ipv4_addr . inet_service\n\
                       \t\telements = { 6 . 8080 : 192.168.77.10 . 80,\n\t\t\t     udp . 9090 : 192.168.77.11 . 9091 }\n\t}\n}\n";
        let expected = [
            (6, 8080, "192.168.77.10:80".parse().unwrap()),
            (17, 9090, "192.168.77.11:9091".parse().unwrap()),
        ];
        assert_eq!(elements(listing), expected);
        assert_eq!(elements("table inet portferry {\n\tmap ports {\n\t}\n}\n"), []);
    }

    #[test]
    fn only_what_dead_processes_left_is_swept() {
        assert!(is_orphan("pf4294967295-0-router"));
        assert!(is_orphan("pf4294967295-0"));
        assert!(!is_orphan("pf1-0-router"));
        assert!(!is_orphan("pf-router"));
        assert!(!is_orphan("pfx-0-router"));
        assert!(!is_orphan("pf4294967295-x-router"));
        assert!(!is_orphan("router"));
    }
}
