//! The daemon under test, in the router's namespace; which one is chosen at run time by `PF_SUBJECT`:
//!
//! * not set: `portferry` of the same build, `target/<profile>/portferry`;
//! * `miniupnpd`: Debian's, an IGD without a PCP client, for comparison and to check the laboratory itself;
//! * anything else: the path of a program that understands `run --config FILE` as portferry does.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddrV4;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::netns::{
    EXTERNAL, Element, Host, LAN_INTERFACE, Network, PROVIDER, Process, ROUTER_LAN, WAN_INTERFACE,
};
use crate::provider::{CHAIN_SETTINGS, CHAINS};

/// The port of the control points' HTTP requests.
pub const HTTP_PORT: u16 = 5431;

/// What is tested.
#[derive(Clone, Debug)]
pub enum Subject {
    /// An interworking function with portferry's command line and configuration.
    Portferry(PathBuf),
    /// An IGD that controls the router's own NAT alone.
    Miniupnpd,
}

impl Subject {
    /// The choice that `PF_SUBJECT` makes.
    ///
    /// # Panics
    ///
    /// If the program doesn't exist.
    #[must_use]
    pub fn from_environment() -> Self {
        match std::env::var_os("PF_SUBJECT") {
            Some(word) if word == "miniupnpd" => Self::Miniupnpd,
            Some(path) => {
                assert!(Path::new(&path).is_file(), "PF_SUBJECT: {} is no file", path.display());
                Self::Portferry(path.into())
            }
            None => {
                let own = std::env::current_exe().expect("Linux knows a process's program");
                let profile = own.ancestors().nth(2).expect("target/<profile>/deps/<test>");
                let program = profile.join("portferry");
                assert!(
                    program.is_file(),
                    "{} does not exist; build it first: cargo build -p portferry",
                    program.display()
                );
                Self::Portferry(program)
            }
        }
    }

    /// Whether it asks the provider for its mappings.
    #[must_use]
    pub fn interworks(&self) -> bool {
        matches!(self, Self::Portferry(_))
    }

    /// Starts it in the router's namespace. `nat` and `more` are for [`configuration`]; miniupnpd takes no notice of them.
    /// It need not be ready when this returns.
    #[track_caller]
    #[must_use]
    pub fn start(&self, network: &Network, nat: &str, more: &str) -> Process {
        let path = |name: &str| network.directory().join(name).display().to_string();
        match self {
            Self::Portferry(program) => {
                run(network, Host::Router, "portferry", program, &configuration(network, nat, more))
            }
            Self::Miniupnpd => {
                network.nft(Host::Router, CHAINS);
                let settings = format!(
                    "ext_ifname={WAN_INTERFACE}\next_ip={EXTERNAL}\nlistening_ip={LAN_INTERFACE}\nhttp_port={HTTP_PORT}\n\
                     ipv6_disable=yes\nenable_upnp=yes\nenable_natpmp=yes\nsecure_mode=yes\nmin_lifetime=4\n\
                     uuid=8d5f1c2e-0000-4000-8000-{:012x}\n{CHAIN_SETTINGS}allow 0-65535 {ROUTER_LAN}/24 0-65535\n",
                    std::process::id()
                );
                fs::write(path("router.conf"), settings).expect("the directory is ours");
                let arguments = ["-d", "-f", &path("router.conf"), "-P", &path("router.pid")];
                network.spawn(Host::Router, "router-miniupnpd", "miniupnpd", arguments)
            }
        }
    }
}

/// Starts a program with portferry's command line on a router; its configuration is `<name>.toml`, its log `<name>.log`.
#[track_caller]
#[must_use]
pub fn run(network: &Network, router: Host, name: &str, program: &Path, configuration: &str) -> Process {
    fs::create_dir_all(network.directory().join("state")).expect("the directory is ours");
    let file = network.directory().join(format!("{name}.toml"));
    fs::write(&file, configuration).expect("the directory is ours");
    network.spawn(router, name, program, ["run", "--config", &file.display().to_string()])
}

/// A mapping as `portferry mappings --json` tells it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listed {
    /// 6 TCP, 17 UDP.
    pub protocol: u8,
    /// Address and port at the provider's NAT.
    pub external: SocketAddrV4,
    /// The port of the router's own NAT, if it has one.
    pub nat_port: Option<u16>,
    /// The LAN host and its port.
    pub internal: SocketAddrV4,
    /// Its owner's words.
    pub description: String,
    /// Seconds left of the lease; `None` for ever.
    pub lease_left: Option<u64>,
    /// `active`, `degraded` or `deleting`.
    pub state: String,
}

/// What a running portferry answers at its control socket; `None` while nobody does.
#[must_use]
pub fn ask(network: &Network, question: &str) -> Option<String> {
    let mut socket = UnixStream::connect(network.directory().join("control.sock")).ok()?;
    writeln!(socket, "{question}").ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// The table of a running portferry, asked for at its control socket; `None` while nobody answers there.
///
/// # Panics
///
/// If the answer is not what [`Listed`] describes.
#[must_use]
pub fn listed(network: &Network) -> Option<Vec<Listed>> {
    let answer = ask(network, "mappings")?;
    // A daemon that is killed says half of it, or nothing.
    let answer: Value = serde_json::from_str(&answer).ok()?;
    let all = answer.as_array().expect("an array").iter().map(|mapping| {
        let text = |key: &str| Some(mapping.get(key)?.as_str()?.to_owned());
        let number = |key: &str| mapping.get(key)?.as_u64();
        Some(Listed {
            protocol: if text("protocol")? == "TCP" { 6 } else { 17 },
            external: text("external")?.parse().ok()?,
            nat_port: number("nat_port").map(|port| u16::try_from(port).expect("a port")),
            internal: text("internal")?.parse().ok()?,
            description: text("description")?,
            lease_left: number("lease_left"),
            state: text("state")?,
        })
    });
    Some(all.map(|mapping| mapping.expect("every key that Listed has")).collect())
}

/// What portferry's nftables table lets in from everybody, or `None` when there is no such table.
#[must_use]
pub fn elements(network: &Network) -> Option<Vec<Element>> {
    network.elements(Host::Router, "portferry", "ports")
}

/// A configuration file: `nat` is `nftables` or `none`, `more` is appended as it is: keys of
/// `[uplink]`, then other sections.
#[must_use]
pub fn configuration(network: &Network, nat: &str, more: &str) -> String {
    configuration_for(network.directory(), (WAN_INTERFACE, nat), &PROVIDER.to_string(), more)
}

/// Likewise with another WAN (its interface, and its NAT) and another PCP server; state and control socket are in
/// `directory`, which has to be there.
#[must_use]
pub fn configuration_for(directory: &Path, (wan, nat): (&str, &str), server: &str, more: &str) -> String {
    let directory = directory.display();
    format!(
        r#"[lan]
interfaces = ["{LAN_INTERFACE}"]
http_port = {HTTP_PORT}
[wan]
interface = "{wan}"
nat = "{nat}"
[state]
directory = "{directory}/state"
[control]
socket = "{directory}/control.sock"
[uplink]
servers = ["{server}"]
{more}"#
    )
}

/// The child of `parent` that runs as portferry's network process.
///
/// # Errors
///
/// If there is none.
pub fn network_process(parent: u32) -> io::Result<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    let is_it = |pid: &u32| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.split(|octet| *octet == 0).any(|word| word == b"network-process"))
    };
    let found = children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(is_it);
    found.ok_or_else(|| io::Error::other("the daemon has no network process"))
}
