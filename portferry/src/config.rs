//! The configuration file: TOML, every key with a default but the two interfaces. What does not fit is refused with
//! file, line, key and what was expected; nothing is ever guessed.

mod file;
mod lines;
mod policy;
#[cfg(test)]
mod tests;
mod value;

use std::path::{Path, PathBuf};

use engine::device::IgdVersion;
use serde::Deserialize;

pub use file::{ConfigError, Key, parse, read};
pub use lines::{Line, WanWay};
pub use policy::{Policy, PolicyDefault};
pub(crate) use value::checked;
pub use value::{
    Argv, Count, Hosts, Interface, Interfaces, Mark, Port, PortsText, RuleText, Seconds, Server, TableName,
    ThirdPartyText, Version, hosts_text, is_interface_name,
};
use value::{default_http_port, yes};

/// Where the configuration is read from unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/portferry/portferry.toml";
/// Where the running gateway listens for `portferry status` and `portferry mappings`.
pub const DEFAULT_SOCKET: &str = "/run/portferry/control.sock";
/// Octets of the file: written as JSON it is twice as long at most, and the network process gets it in one message
/// (`crate::privileged`).
pub const MAX_LEN: usize = 64 * 1024;
/// A bit that no firewall of those that we know uses by itself.
const DEFAULT_MARK: u32 = 0x2000_0000;

/// The whole file.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where control points are.
    pub lan: Lan,
    /// Where the provider is.
    pub wan: Wan,
    /// How the provider's NAT is asked.
    #[serde(default)]
    pub uplink: Uplink,
    /// The router's own NAT, with `wan.nat = "nftables"`.
    #[serde(default)]
    pub nat: Nat,
    /// The packet filter that somebody else has.
    #[serde(default)]
    pub firewall: Firewall,
    /// What control points are shown.
    #[serde(default)]
    pub igd: Igd,
    /// Who may map what.
    #[serde(default)]
    pub policy: Policy,
    /// What is kept over restarts.
    #[serde(default)]
    pub state: State,
    /// The local control socket.
    #[serde(default)]
    pub control: Control,
    /// What is run when mappings change.
    #[serde(default)]
    pub hooks: Hooks,
    /// Logging.
    #[serde(default)]
    pub log: Log,
}

/// `[lan]`
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Lan {
    /// Interfaces on which control points are served; at least one.
    pub interfaces: Interfaces,
    /// TCP port of descriptions and control.
    #[serde(default = "default_http_port")]
    pub http_port: Port,
    /// Serve PCP (RFC 6887).
    #[serde(default = "yes")]
    pub pcp: bool,
    /// Serve NAT-PMP (RFC 6886).
    #[serde(default = "yes")]
    pub nat_pmp: bool,
    /// Who may ask for whom by PCP's THIRD_PARTY.
    #[serde(default)]
    pub third_party: Vec<ThirdPartyText>,
    /// Hosts may open pinholes of this router's IPv6 firewall.
    #[serde(default = "yes")]
    pub ipv6_pinholes: bool,
}

/// `[wan]`
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Wan {
    /// The interface towards the provider.
    pub interface: Interface,
    /// Whether this router translates addresses itself.
    #[serde(default)]
    pub nat: NatMode,
}

/// `wan.nat`
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum NatMode {
    /// This router has a NAT of its own; portferry opens it with nftables.
    #[default]
    Nftables,
    /// It has none: the provider's NAT is asked for the LAN hosts by THIRD_PARTY.
    None,
}

/// `[uplink]`
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Uplink {
    /// The provider's servers, the best first. Empty: those that are found.
    pub servers: Vec<Server>,
    /// The PCP servers of the provider's IPv6 firewall, the best first. Empty: those that are found.
    pub firewall_servers: Vec<Server>,
    /// Of those that are found, the anycast addresses of RFC 7723 are the last.
    pub anycast: bool,
    /// How the PCP servers that DHCP offers are heard of (RFC 7291).
    pub dhcp: DhcpMode,
    /// A control point hears "501 Action Failed" after so many seconds without an answer from the provider.
    pub answer_within: Seconds,
    /// Mappings are asked for again within so many seconds after the provider lost its state.
    pub recovery_wait: Seconds,
    /// After a start, stored mappings are asked for again within so many seconds.
    pub service_wait: Seconds,
    /// Look for a router of the provider's in front that speaks UPnP, where neither PCP nor NAT-PMP is answered.
    pub igd: bool,
    /// Keep a mapping of the router itself, so that the external address is known before anybody asks.
    pub external_address_probe: bool,
    /// What an application hears when the provider's server is silent.
    pub when_unreachable: WhenUnreachable,
    /// What an application hears when no server of the provider's was found.
    pub when_none_found: WhenNoneFound,
    /// Tell the provider what applications call their mappings (RFC 7220).
    pub send_descriptions: bool,
    /// Ask the provider's server at the start which mappings it holds for us.
    pub list_mappings: bool,
    /// Further ways to the Internet.
    pub extra: Vec<Extra>,
}

impl Default for Uplink {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            firewall_servers: Vec::new(),
            anycast: true,
            dhcp: DhcpMode::default(),
            answer_within: Seconds(3.5),
            recovery_wait: Seconds(5.0),
            service_wait: Seconds(30.0),
            igd: true,
            external_address_probe: true,
            when_unreachable: WhenUnreachable::default(),
            when_none_found: WhenNoneFound::default(),
            send_descriptions: true,
            list_mappings: false,
            extra: Vec::new(),
        }
    }
}

/// `[[uplink.extra]]`
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Extra {
    /// The interface towards the other provider.
    pub interface: Interface,
    /// As [`Uplink::servers`], behind this interface.
    #[serde(default)]
    pub servers: Vec<Server>,
    /// The LAN hosts whose traffic leaves by it. None: it takes the place of [`Wan::interface`] while the default route is there.
    #[serde(default)]
    pub hosts: Vec<Hosts>,
    /// As [`Wan::nat`], which it is by default; for one with hosts of its own.
    pub nat: Option<NatMode>,
}

/// `uplink.dhcp`
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum DhcpMode {
    /// By a DHCP client's hook; where none has spoken and no server is configured, by asking.
    #[default]
    Auto,
    /// By hooks alone.
    Hooks,
    /// By asking alone.
    Inform,
    /// Not at all.
    Off,
}

/// `uplink.when_unreachable`
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum WhenUnreachable {
    /// "501 Action Failed".
    #[default]
    Refuse,
    /// A mapping of this router's own NAT, which is carried to the provider once it answers.
    Local,
}

/// `uplink.when_none_found`
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum WhenNoneFound {
    /// A mapping of this router's own NAT.
    #[default]
    Local,
    /// "501 Action Failed".
    Refuse,
}

/// `[nat]`
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Nat {
    /// Name of the nftables table (family inet) that belongs to portferry alone.
    pub table: TableName,
    /// Translate what the LAN sends out, too; off where another program does it.
    pub masquerade: bool,
    /// Drop what comes from the WAN for the LAN and is neither mapped nor an answer; off where another program does it.
    pub forward_filter: bool,
    /// LAN hosts reach each other's mappings by the external addresses.
    pub hairpin: bool,
    /// The bit of the packet mark that mapped traffic has in the forward hook; 0: see [`Config::mark`].
    pub mark: Mark,
}

impl Default for Nat {
    fn default() -> Self {
        Self {
            table: TableName("portferry".into()),
            masquerade: false,
            forward_filter: false,
            hairpin: true,
            mark: Mark(0),
        }
    }
}

/// `[firewall]`
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Firewall {
    /// Whose rules are given one of ours.
    pub integrate: Integrate,
}

/// `firewall.integrate`
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Integrate {
    /// Nobody's: portferry has its own table and nothing else.
    #[default]
    None,
    /// Those of each of the others that is found.
    Auto,
    /// OpenWrt's.
    Fw4,
    /// firewalld's.
    Firewalld,
    /// ufw's.
    Ufw,
}

/// `[igd]`
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Igd {
    /// Which versions are shown.
    pub version: Version,
    /// What people see in their file manager.
    pub friendly_name: String,
    /// How AddPortMapping, which wants one port or none, is carried to the provider.
    pub add_port_mapping: AddPortMapping,
    /// How GetSpecificPortMappingEntry learns whether a port is free.
    pub get_specific: GetSpecific,
    /// Answer DeletePortMappingRange before the provider has confirmed it.
    pub optimistic_delete: bool,
}

/// `igd.add_port_mapping`
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum AddPortMapping {
    /// With PREFER_FAILURE.
    #[default]
    PreferFailure,
    /// Without it; another port than the one that is wanted is held for who asked.
    Hold,
    /// With it, then any port, which is held.
    AnyThenHold,
}

/// `igd.get_specific`
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum GetSpecific {
    /// The provider is asked for the port.
    #[default]
    Probe,
    /// Portferry's own table is the answer.
    Local,
}

impl Default for Igd {
    fn default() -> Self {
        Self {
            version: Version(IgdVersion::Auto),
            friendly_name: "portferry gateway".into(),
            add_port_mapping: AddPortMapping::default(),
            get_specific: GetSpecific::default(),
            optimistic_delete: false,
        }
    }
}

/// `[state]`
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct State {
    /// Where the installation's identity is kept.
    pub directory: PathBuf,
    /// A stop gives no mapping back, so that a restart loses none.
    pub keep_on_stop: bool,
}

impl Default for State {
    fn default() -> Self {
        Self { directory: "/var/lib/portferry".into(), keep_on_stop: false }
    }
}

/// `[control]`
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// The socket that `portferry status` and `portferry mappings` ask.
    pub socket: PathBuf,
}

impl Default for Control {
    fn default() -> Self {
        Self { socket: DEFAULT_SOCKET.into() }
    }
}

/// `[hooks]`
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Hooks {
    /// The program that is told of every change, and its arguments; none when empty.
    pub on_change: Argv,
    /// It is killed after so many seconds.
    pub timeout: Seconds,
}

impl Default for Hooks {
    fn default() -> Self {
        Self { on_change: Argv(Vec::new()), timeout: Seconds(10.0) }
    }
}

/// `[log]`
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// How much is said.
    pub level: Level,
}

/// `log.level`
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// What somebody has to look at.
    Warning,
    /// And the gateway's daily work.
    #[default]
    Info,
    /// And what helps to hunt a fault.
    Debug,
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(path, &read(path, MAX_LEN)?)
    }

    /// Checks a file's content.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        parse(path, text, Self::contradiction)
    }

    /// What is wrong with one of the further uplinks, and at which of its keys.
    fn contradiction_of(&self, place: usize, extra: &Extra) -> Option<(&'static str, String)> {
        let name = &extra.interface;
        let others = &self.uplink.extra[..place];
        if self.lan.interfaces.0.contains(name) {
            let message = format!("expected another interface than those of [lan], got {:?}", name.0);
            return Some(("uplink.extra.interface", message));
        }
        if self.wan.interface == *name || others.iter().any(|other| other.interface == *name) {
            let message = format!("expected each interface once, got {:?} twice", name.0);
            return Some(("uplink.extra.interface", message));
        }
        if extra.hosts.is_empty() && extra.nat.is_some_and(|nat| nat != self.wan.nat) {
            let message =
                "expected that of [wan]: without hosts of its own it takes the place of wan.interface";
            return Some(("uplink.extra.nat", message.to_owned()));
        }
        let taken = |hosts: &&Hosts| others.iter().any(|other| other.hosts.contains(hosts));
        if let Some(hosts) = extra.hosts.iter().find(taken) {
            return Some((
                "uplink.extra.hosts",
                format!("expected the hosts of one uplink, got {} twice", hosts_text(&hosts.0)),
            ));
        }
        Some(("uplink.extra.servers", v6_behind_nat(&extra.servers, extra.nat.unwrap_or(self.wan.nat))?))
    }

    /// What is good by itself and makes no sense together: the key, and what is wrong with it.
    fn contradiction(&self) -> Option<(Key, String)> {
        self.contradiction_of_first().map(|(name, message)| (name.into(), message)).or_else(|| {
            let mut extras = self.uplink.extra.iter().enumerate();
            extras.find_map(|(section, extra)| {
                let (name, message) = self.contradiction_of(section, extra)?;
                Some((Key { name, section }, message))
            })
        })
    }

    fn contradiction_of_first(&self) -> Option<(&'static str, String)> {
        let wan = &self.wan.interface;
        if self.lan.interfaces.0.contains(wan) {
            let message = format!("expected another interface than those of [lan], got {:?}", wan.0);
            return Some(("wan.interface", message));
        }
        if self.uplink.when_unreachable == WhenUnreachable::Local && self.wan.nat == NatMode::None {
            let message = "expected \"refuse\": a router without a NAT of its own (wan.nat = \"none\") has nothing to give";
            return Some(("uplink.when_unreachable", message.to_owned()));
        }
        if let Some(server) = self.uplink.firewall_servers.iter().find(|server| server.0.is_ipv4()) {
            let message =
                format!("expected IPv6 addresses, got \"{}\": it is a firewall of IPv6", server.0.ip());
            return Some(("uplink.firewall_servers", message));
        }
        Some(("uplink.servers", v6_behind_nat(&self.uplink.servers, self.wan.nat)?))
    }

    /// The bit of the packet mark by which foreign firewalls know mapped traffic; 0 where nobody asks for one.
    pub fn mark(&self) -> u32 {
        match (self.nat.mark.0, self.firewall.integrate) {
            (0, Integrate::None) => 0,
            (0, _) => DEFAULT_MARK,
            (mark, _) => mark,
        }
    }

    /// What the engine needs of it.
    pub fn engine(&self, line: &Line, device: engine::device::DeviceConfig) -> engine::gateway::Config {
        engine::gateway::Config {
            nat: match line.nat {
                NatMode::Nftables => engine::gateway::NatMode::Own,
                NatMode::None => engine::gateway::NatMode::None,
            },
            servers: line.ways.first().map_or_else(Vec::new, |usual| usual.servers.clone()),
            anycast: self.uplink.anycast,
            answer_within: self.uplink.answer_within.duration(),
            recovery_wait: self.uplink.recovery_wait.duration(),
            service_wait: self.uplink.service_wait.duration(),
            isp_router: self.uplink.igd,
            external_address_probe: self.uplink.external_address_probe,
            add_port_mapping: match self.igd.add_port_mapping {
                AddPortMapping::PreferFailure => engine::gateway::AddPortMapping::PreferFailure,
                AddPortMapping::Hold => engine::gateway::AddPortMapping::Hold,
                AddPortMapping::AnyThenHold => engine::gateway::AddPortMapping::AnyThenHold,
            },
            get_specific: match self.igd.get_specific {
                GetSpecific::Probe => engine::gateway::GetSpecific::Probe,
                GetSpecific::Local => engine::gateway::GetSpecific::Local,
            },
            when_none_found: match self.uplink.when_none_found {
                WhenNoneFound::Local => engine::gateway::WhenNoneFound::Local,
                WhenNoneFound::Refuse => engine::gateway::WhenNoneFound::Refuse,
            },
            when_unreachable: match (self.uplink.when_unreachable, line.nat) {
                (WhenUnreachable::Local, NatMode::Nftables) => engine::gateway::WhenUnreachable::Local,
                _ => engine::gateway::WhenUnreachable::Refuse,
            },
            send_descriptions: self.uplink.send_descriptions,
            pcp: self.lan.pcp,
            nat_pmp: self.lan.nat_pmp,
            third_party: self.lan.third_party.iter().map(|allowed| allowed.0.clone()).collect(),
            pinholes: self.lan.ipv6_pinholes,
            // Whose hosts have an uplink of their own, have another provider's.
            firewall_servers: match line.hosts.is_empty() {
                true => self.uplink.firewall_servers.iter().map(|server| server.0).collect(),
                false => Vec::new(),
            },
            list_mappings: self.uplink.list_mappings,
            optimistic_delete: self.igd.optimistic_delete,
            keep_on_stop: self.state.keep_on_stop,
            policy: self.policy.engine(),
            device,
        }
    }

    /// Whether the further uplinks are the same but for their servers and whose they are.
    fn extras_stay(&self, new: &Config) -> bool {
        let fixed = |config: &Config| -> Vec<(Interface, Option<NatMode>, bool)> {
            let all = config.uplink.extra.iter();
            all.map(|extra| (extra.interface.clone(), extra.nat, extra.hosts.is_empty())).collect()
        };
        fixed(self) == fixed(new)
    }

    /// Takes over what counts without a restart; the rest keeps its value.
    ///
    /// # Errors
    /// The running WAN interface would become one of the LAN; nothing has been taken over.
    pub fn take_over(&mut self, new: Config) -> Result<(), String> {
        let extras_stay = self.extras_stay(&new);
        let extras = self.uplink.extra.iter().map(|extra| &extra.interface);
        let wan =
            [&self.wan.interface].into_iter().chain(extras).find(|&wan| new.lan.interfaces.0.contains(wan));
        if let Some(wan) = wan {
            return Err(format!("{} is a WAN interface until the next start, not one of the LAN", wan.0));
        }
        let Lan { interfaces, pcp, nat_pmp, third_party, .. } = new.lan;
        (self.lan.interfaces, self.lan.pcp, self.lan.nat_pmp) = (interfaces, pcp, nat_pmp);
        self.lan.third_party = third_party;
        let extra = if extras_stay { new.uplink.extra } else { std::mem::take(&mut self.uplink.extra) };
        self.uplink = Uplink { extra, ..new.uplink };
        self.policy = new.policy;
        self.state.keep_on_stop = new.state.keep_on_stop;
        self.hooks = new.hooks;
        // What descriptions say of the gateway stays.
        let Igd { version, friendly_name, .. } = std::mem::take(&mut self.igd);
        self.igd = Igd { version, friendly_name, ..new.igd };
        Ok(())
    }

    /// What is right, and may be more than was meant.
    pub fn warnings(&self) -> Vec<String> {
        self.policy.engine().lifted().iter().map(ToString::to_string).collect()
    }

    /// The keys whose new values only count from the next start on.
    pub fn needs_restart(&self, new: &Config) -> Vec<&'static str> {
        [
            ("wan.interface", self.wan.interface != new.wan.interface),
            ("wan.nat", self.wan.nat != new.wan.nat),
            ("[[uplink.extra]]", !self.extras_stay(new)),
            ("lan.http_port", self.lan.http_port != new.lan.http_port),
            ("lan.ipv6_pinholes", self.lan.ipv6_pinholes != new.lan.ipv6_pinholes),
            ("[nat]", self.nat != new.nat),
            ("[firewall]", self.firewall != new.firewall),
            ("igd.version", self.igd.version != new.igd.version),
            ("igd.friendly_name", self.igd.friendly_name != new.igd.friendly_name),
            ("state.directory", self.state.directory != new.state.directory),
            ("control.socket", self.control != new.control),
            ("log.level", self.log != new.log),
        ]
        .into_iter()
        .filter_map(|(key, changed)| changed.then_some(key))
        .collect()
    }
}

/// What is wrong with servers that are asked in IPv6 behind a NAT of the router's own.
fn v6_behind_nat(servers: &[Server], nat: NatMode) -> Option<String> {
    let server = servers.iter().find(|server| server.0.is_ipv6() && nat == NatMode::Nftables)?;
    Some(format!(
        "expected IPv4 addresses, got \"{}\": a server that is asked in IPv6 (DS-Lite) maps to LAN hosts, which needs wan.nat = \"none\"",
        server.0.ip()
    ))
}
