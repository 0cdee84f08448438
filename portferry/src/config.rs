//! The configuration file: TOML, every key with a default but the two interfaces. What does not fit is refused with
//! file, line, key and what was expected; nothing is ever guessed.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use engine::device::IgdVersion;
use serde::{Deserialize, Deserializer};

/// Where the configuration is read from unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/portferry/portferry.toml";
/// Where the running gateway listens for `portferry status` and `portferry mappings`.
pub const DEFAULT_SOCKET: &str = "/run/portferry/control.sock";

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
}

impl Default for Uplink {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
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
        }
    }
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
}

impl Default for Nat {
    fn default() -> Self {
        Self { table: TableName("portferry".into()), masquerade: false, forward_filter: false }
    }
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

/// `[policy]`
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// External and internal ports below this are refused.
    pub lowest_port: Port,
    /// Mappings of one host.
    pub mappings_per_host: Count,
    /// Mappings in all.
    pub mappings: Count,
}

impl Default for Policy {
    fn default() -> Self {
        let policy = engine::policy::Policy::default();
        Self {
            lowest_port: Port(policy.lowest_port),
            mappings_per_host: Count(policy.mappings_per_host),
            mappings: Count(policy.mappings),
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

fn default_http_port() -> Port {
    Port(5431)
}

/// Whether a network interface can have this name, and a file that is named after it lies where it should.
pub fn is_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len()) && !name.contains(|c: char| c.is_whitespace() || c == '/')
}

/// A text that is checked as it is read, so that an error names its line.
macro_rules! checked {
    ($(#[$doc:meta])* $name:ident($inner:ty) from $raw:ty, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name(pub $inner);

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let check: fn($raw) -> Result<$inner, String> = $check;
                check(<$raw>::deserialize(deserializer)?).map($name).map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(crate) use checked;

checked!(
    /// A port number, 1 to 65535.
    Port(u16) from i64, |n| match u16::try_from(n) {
        Ok(port @ 1..) => Ok(port),
        _ => Err(format!("expected a port number from 1 to 65535, got {n}")),
    }
);

checked!(
    /// A number of things, at least one.
    Count(usize) from i64, |n| match usize::try_from(n) {
        Ok(count @ 1..=65_000) => Ok(count),
        _ => Err(format!("expected a number from 1 to 65000, got {n}")),
    }
);

checked!(
    /// A time in seconds, from a tenth to ten minutes.
    Seconds(f64) from Number, |Number(n)| {
        if (0.1..=600.0).contains(&n) { Ok(n) } else { Err(format!("expected seconds from 0.1 to 600, got {n}")) }
    }
);

checked!(
    /// The name of a network interface.
    Interface(String) from String, |name| {
        if is_interface_name(&name) { Ok(name) } else { Err(format!("expected the name of a network interface, got {name:?}")) }
    }
);

checked!(
    /// At least one network interface, none of them twice.
    Interfaces(Vec<Interface>) from Vec<Interface>, |names| {
        let twice = (1..names.len()).find(|&nth| names[..nth].contains(&names[nth])).map(|nth| &names[nth].0);
        match twice {
            _ if names.is_empty() => Err("expected at least one network interface".to_owned()),
            Some(name) => Err(format!("expected each network interface once, got {name:?} twice")),
            None => Ok(names),
        }
    }
);

checked!(
    /// The name of an nftables table.
    TableName(String) from String, |name| {
        let letters = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        if letters && (1..=32).contains(&name.len()) {
            Ok(name)
        } else {
            Err(format!("expected a name of letters, digits, - and _, got {name:?}"))
        }
    }
);

checked!(
    /// A PCP server: an address, or address and port.
    Server(SocketAddr) from String, |text| {
        let addr = IpAddr::from_str(&text).map(|ip| SocketAddr::new(ip, wire::pcp::SERVER_PORT));
        let addr = addr.or_else(|_| SocketAddr::from_str(&text));
        match addr {
            Ok(addr) if !addr.ip().is_unspecified() && !addr.ip().is_multicast() && addr.port() != 0 => Ok(addr),
            _ => Err(format!("expected the address of a PCP server such as \"192.0.2.1\", got {text:?}")),
        }
    }
);

checked!(
    /// `igd.version`
    Version(IgdVersion) from toml::Value, |value| match &value {
        toml::Value::String(text) if text == "auto" => Ok(IgdVersion::Auto),
        toml::Value::Integer(1) => Ok(IgdVersion::V1),
        toml::Value::Integer(2) => Ok(IgdVersion::V2),
        toml::Value::String(text) => Err(format!("expected \"auto\", 1 or 2, got {text:?}")),
        toml::Value::Integer(number) => Err(format!("expected \"auto\", 1 or 2, got {number}")),
        other => Err(format!("expected \"auto\", 1 or 2, got a {}", other.type_str())),
    }
);

checked!(
    /// A program by its full path, and its arguments; empty for none.
    Argv(Vec<String>) from Vec<String>, |argv| match argv.first() {
        Some(program) if !program.starts_with('/') => {
            Err(format!("expected the full path of a program, then its arguments, got {program:?}"))
        }
        _ if argv.iter().any(|argument| argument.contains('\0')) => {
            Err("expected arguments without a zero octet".to_owned())
        }
        _ => Ok(argv),
    }
);

/// An integer or a float.
struct Number(f64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a number of seconds")]
        enum Either {
            Integer(i32),
            Float(f64),
        }
        Ok(Number(match Either::deserialize(deserializer)? {
            Either::Integer(n) => f64::from(n),
            Either::Float(n) => n,
        }))
    }
}

impl Seconds {
    /// As a duration.
    pub fn duration(&self) -> std::time::Duration {
        std::time::Duration::from_secs_f64(self.0)
    }
}

/// Why a configuration file is refused: where, and what was expected.
#[derive(Debug, PartialEq)]
pub struct ConfigError {
    path: PathBuf,
    /// Line, and the key there.
    place: Option<(usize, Option<String>)>,
    message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some((line, key)) = &self.place {
            write!(f, ", line {line}")?;
            if let Some(key) = key {
                write!(f, ", {key}")?;
            }
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(path, &read(path)?)
    }

    /// Checks a file's content.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        parse(path, text, Self::contradiction)
    }

    /// What is good by itself and makes no sense together: the key, and what is wrong with it.
    fn contradiction(&self) -> Option<(&'static str, String)> {
        let wan = &self.wan.interface;
        if self.lan.interfaces.0.contains(wan) {
            let message = format!("expected another interface than those of [lan], got {:?}", wan.0);
            return Some(("wan.interface", message));
        }
        if self.uplink.when_unreachable == WhenUnreachable::Local && self.wan.nat == NatMode::None {
            let message = "expected \"refuse\": a router without a NAT of its own (wan.nat = \"none\") has nothing to give";
            return Some(("uplink.when_unreachable", message.to_owned()));
        }
        let v6 = self.uplink.servers.iter().find(|server| server.0.is_ipv6());
        let server = v6.filter(|_| self.wan.nat == NatMode::Nftables)?;
        let message = format!(
            "expected IPv4 addresses, got \"{}\": a server that is asked in IPv6 (DS-Lite) maps to LAN hosts, which needs wan.nat = \"none\"",
            server.0.ip()
        );
        Some(("uplink.servers", message))
    }

    /// What the engine needs of it.
    pub fn engine(&self, device: engine::device::DeviceConfig) -> engine::gateway::Config {
        engine::gateway::Config {
            nat: match self.wan.nat {
                NatMode::Nftables => engine::gateway::NatMode::Own,
                NatMode::None => engine::gateway::NatMode::None,
            },
            servers: self.uplink.servers.iter().map(|server| server.0).collect(),
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
            when_unreachable: match self.uplink.when_unreachable {
                WhenUnreachable::Refuse => engine::gateway::WhenUnreachable::Refuse,
                WhenUnreachable::Local => engine::gateway::WhenUnreachable::Local,
            },
            send_descriptions: self.uplink.send_descriptions,
            list_mappings: self.uplink.list_mappings,
            optimistic_delete: self.igd.optimistic_delete,
            keep_on_stop: self.state.keep_on_stop,
            policy: engine::policy::Policy {
                lowest_port: self.policy.lowest_port.0,
                mappings_per_host: self.policy.mappings_per_host.0,
                mappings: self.policy.mappings.0,
                loopback_lan: false,
            },
            device,
        }
    }

    fn names_lan_in_nat(&self) -> bool {
        self.wan.nat == NatMode::Nftables && (self.nat.masquerade || self.nat.forward_filter)
    }

    /// Takes over what counts without a restart; the rest keeps its value.
    ///
    /// # Errors
    /// The running WAN interface would become one of the LAN; nothing has been taken over.
    pub fn take_over(&mut self, new: Config) -> Result<(), String> {
        let wan = &self.wan.interface;
        if new.lan.interfaces.0.contains(wan) {
            return Err(format!("{} is the WAN interface until the next start, not one of the LAN", wan.0));
        }
        self.lan.interfaces = new.lan.interfaces;
        self.uplink = new.uplink;
        self.policy = new.policy;
        self.state.keep_on_stop = new.state.keep_on_stop;
        self.hooks = new.hooks;
        // What descriptions say of the gateway stays.
        let Igd { version, friendly_name, .. } = std::mem::take(&mut self.igd);
        self.igd = Igd { version, friendly_name, ..new.igd };
        Ok(())
    }

    /// The keys whose new values only count from the next start on.
    pub fn needs_restart(&self, new: &Config) -> Vec<&'static str> {
        [
            ("wan.interface", self.wan.interface != new.wan.interface),
            ("wan.nat", self.wan.nat != new.wan.nat),
            ("lan.http_port", self.lan.http_port != new.lan.http_port),
            ("[nat]", self.nat != new.nat),
            // The rules of these two name the LAN interfaces.
            ("lan.interfaces in [nat]", self.lan.interfaces != new.lan.interfaces && self.names_lan_in_nat()),
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

/// The content of a configuration file.
pub fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|error| ConfigError {
        path: path.to_owned(),
        place: None,
        message: format!("cannot be read: {error}"),
    })
}

/// Checks a file's content, each value by itself and then all together: `contradiction` names a key and what is wrong
/// with it.
pub fn parse<T: serde::de::DeserializeOwned>(
    path: &Path,
    text: &str,
    contradiction: impl Fn(&T) -> Option<(&'static str, String)>,
) -> Result<T, ConfigError> {
    let config: T = toml::from_str(text).map_err(|error| {
        let place = error.span().map(|span| place(text, span.start));
        ConfigError { path: path.to_owned(), place, message: error.message().trim().replace('\n', " ") }
    })?;
    match contradiction(&config) {
        None => Ok(config),
        Some((key, message)) => {
            let mut lines = 1..=text.lines().count();
            let line = lines.find(|&line| key_at(text, line).as_deref() == Some(key));
            let place = line.map(|line| (line, Some(key.to_owned())));
            Err(ConfigError { path: path.to_owned(), place, message })
        }
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.get(..at).unwrap_or(text).matches('\n').count() + 1
}

/// The line of an offset, and the full name of the key that stands there.
fn place(text: &str, at: usize) -> (usize, Option<String>) {
    let line = line_of(text, at);
    (line, key_at(text, line))
}

/// The full name of the key in a line, or the section that begins there.
fn key_at(text: &str, line: usize) -> Option<String> {
    let mut section = None;
    for (number, content) in (1..=line).zip(text.lines()) {
        let content = content.trim();
        if let Some(name) = content.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            section = Some(name.trim());
            if number == line {
                return Some(format!("[{}]", name.trim()));
            }
        }
    }
    let (key, _) = text.lines().nth(line.checked_sub(1)?)?.split_once('=')?;
    let key = key.trim();
    Some(section.map_or(key.to_owned(), |section| format!("{section}.{key}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[lan]\ninterfaces = [\"br-lan\"]\n[wan]\ninterface = \"wan0\"\n";

    fn refused(text: &str) -> String {
        Config::parse(Path::new("pf.toml"), text).expect_err("it should be refused").to_string()
    }

    #[test]
    fn two_interfaces_are_enough() {
        let config = Config::parse(Path::new("pf.toml"), GOOD).unwrap();
        assert_eq!(config.wan.nat, NatMode::Nftables);
        assert_eq!(config.lan.http_port, Port(5431));
        assert_eq!(config.uplink, Uplink::default());
    }

    #[test]
    fn errors_name_file_line_key_and_what_was_expected() {
        for (text, wanted) in [
            (
                "[lan]\ninterfaces = []\n",
                "pf.toml, line 2, lan.interfaces: expected at least one network interface",
            ),
            (
                "[lan]\ninterfaces = [\"br0\", \"br1\", \"br0\"]\n",
                "pf.toml, line 2, lan.interfaces: expected each network interface once, got \"br0\" twice",
            ),
            (
                "[lan]\ninterfaces = [\"br-lan\"]\nhttp_port = 70000\n",
                "pf.toml, line 3, lan.http_port: expected a port number from 1 to 65535, got 70000",
            ),
            (
                "[lan]\ninterfaces = [\"a/b\"]\n",
                "pf.toml, line 2, lan.interfaces: expected the name of a network interface, got \"a/b\"",
            ),
            (
                "[lan]\ninterfaces = [\"br0\"]\n[wan]\ninterface = \"br0\"\n",
                "pf.toml, line 4, wan.interface: expected another interface than those of [lan], got \"br0\"",
            ),
        ] {
            assert_eq!(refused(text), wanted);
        }
        let with = |more: &str| refused(&format!("{GOOD}{more}"));
        for (more, wanted) in [
            (
                "nat = \"iptables\"\n",
                "pf.toml, line 5, wan.nat: unknown variant `iptables`, expected `nftables` or `none`",
            ),
            (
                "[uplink]\nservers = [\"example.net\"]\n",
                "pf.toml, line 6, uplink.servers: expected the address of a PCP server such as \"192.0.2.1\", got \"example.net\"",
            ),
            (
                "[uplink]\nanswer_within = 0\n",
                "pf.toml, line 6, uplink.answer_within: expected seconds from 0.1 to 600, got 0",
            ),
            (
                "[uplink]\nservers = [\"2001:db8::1\"]\n",
                "pf.toml, line 6, uplink.servers: expected IPv4 addresses, got \"2001:db8::1\": a server that is asked in IPv6 (DS-Lite) maps to LAN hosts, which needs wan.nat = \"none\"",
            ),
            (
                "nat = \"none\"\n[uplink]\nwhen_unreachable = \"local\"\n",
                "pf.toml, line 7, uplink.when_unreachable: expected \"refuse\": a router without a NAT of its own (wan.nat = \"none\") has nothing to give",
            ),
            (
                "[hooks]\non_change = [\"hook.sh\"]\n",
                "pf.toml, line 6, hooks.on_change: expected the full path of a program, then its arguments, got \"hook.sh\"",
            ),
            (
                "[hooks]\ntimeout = 3600\n",
                "pf.toml, line 6, hooks.timeout: expected seconds from 0.1 to 600, got 3600",
            ),
            ("[igd]\nversion = 3\n", "pf.toml, line 6, igd.version: expected \"auto\", 1 or 2, got 3"),
        ] {
            assert_eq!(with(more), wanted);
        }
        let unknown = with("netmask = 3\n");
        assert!(
            unknown.starts_with("pf.toml, line 5, wan.netmask: unknown field `netmask`, expected"),
            "{unknown}"
        );
        let section = with("[lna]\n");
        assert!(section.starts_with("pf.toml, line 5, [lna]: unknown field `lna`"), "{section}");
        let syntax = with("x = \n");
        assert!(syntax.starts_with("pf.toml, line 5, wan.x: "), "{syntax}");
        let missing = refused("[lan]\ninterfaces = [\"br-lan\"]\n");
        assert!(missing.contains("missing field `wan`"), "{missing}");
    }

    #[test]
    fn a_reload_never_serves_control_points_on_the_wan() {
        let parse = |text: &str| Config::parse(Path::new("pf.toml"), text).unwrap();
        let mut running = parse(GOOD);
        let swapped = parse("[lan]\ninterfaces = [\"wan0\"]\n[wan]\ninterface = \"br-lan\"\n");
        assert!(running.take_over(swapped).unwrap_err().starts_with("wan0 is the WAN interface"));
        assert_eq!(running, parse(GOOD));
        let more = parse(&format!(
            "{}[policy]\nlowest_port = 1\n[igd]\nadd_port_mapping = \"any-then-hold\"\nget_specific = \"local\"\n[state]\nkeep_on_stop = true\n[hooks]\non_change = [\"/bin/true\", \"x\"]\ntimeout = 1\n",
            GOOD.replace("\"br-lan\"", "\"br-lan\", \"br1\"")
        ));
        assert_eq!(running.needs_restart(&more), Vec::<&str>::new());
        running.take_over(more.clone()).unwrap();
        assert_eq!(running, more);
        let mut filtering = parse(&format!("{GOOD}[nat]\nforward_filter = true\n"));
        assert_eq!(
            filtering.needs_restart(&Config { nat: filtering.nat.clone(), ..more.clone() }),
            ["lan.interfaces in [nat]"]
        );
        filtering.take_over(more).unwrap();
    }

    #[test]
    fn servers_are_addresses_with_or_without_port() {
        let text = format!(
            "{GOOD}nat = \"none\"\n[uplink]\nservers = [\"192.0.2.1\", \"192.0.2.1:5352\", \"2001:db8::1\"]\n"
        );
        let config = Config::parse(Path::new("pf.toml"), &text).unwrap();
        let servers: Vec<String> = config.uplink.servers.iter().map(|s| s.0.to_string()).collect();
        assert_eq!(servers, ["192.0.2.1:5351", "192.0.2.1:5352", "[2001:db8::1]:5351"]);
    }

    /// The example file names every key there is, with its default.
    #[test]
    fn the_example_file_is_complete_and_holds_the_defaults() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/portferry.example.toml"));
        let text = std::fs::read_to_string(path).unwrap();
        let as_printed = Config::parse(path, &text).unwrap();
        let minimal = Config::parse(Path::new("pf.toml"), GOOD).unwrap();
        assert_eq!(as_printed.wan, minimal.wan);
        assert_eq!(as_printed.lan, minimal.lan);
        // Every key is there, commented out with its default or set: uncommenting all changes nothing.
        let all: String = text
            .lines()
            .map(|line| line.strip_prefix("#= ").unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        let uncommented = Config::parse(path, &all).unwrap();
        assert_eq!(uncommented, minimal);
        for key in [
            "interfaces",
            "http_port",
            "interface",
            "nat",
            "servers",
            "answer_within",
            "service_wait",
            "recovery_wait",
            "igd",
            "external_address_probe",
            "when_unreachable",
            "send_descriptions",
            "list_mappings",
            "table",
            "masquerade",
            "forward_filter",
            "version",
            "friendly_name",
            "add_port_mapping",
            "get_specific",
            "optimistic_delete",
            "lowest_port",
            "mappings_per_host",
            "mappings",
            "directory",
            "keep_on_stop",
            "socket",
            "on_change",
            "timeout",
            "level",
        ] {
            assert!(all.lines().any(|line| line.split('=').next().is_some_and(|k| k.trim() == key)), "{key}");
        }
    }
}
