//! Values that are checked as they are read, so that an error names their line.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use engine::device::IgdVersion;
use engine::policy::{NotARule, PortRange, Rule};
use engine::prefix::{Prefix, ThirdParty};
use serde::{Deserialize, Deserializer};

pub(super) fn yes() -> bool {
    true
}

pub(super) fn default_http_port() -> Port {
    Port(5431)
}

/// As people write it: one host by its address alone.
pub fn hosts_text(hosts: &Prefix) -> String {
    if *hosts == Prefix::from(hosts.first()) { hosts.first().to_string() } else { hosts.to_string() }
}

/// Whether a network interface can have this name (Linux's rules), and a file that is named after it lies where it should.
pub fn is_interface_name(name: &str) -> bool {
    !matches!(name, "." | "..")
        && (1..=15).contains(&name.len())
        && !name.contains(|c: char| c.is_whitespace() || matches!(c, '/' | ':' | '\0'))
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
    /// One bit of a packet's mark, or none.
    Mark(u32) from i64, |n| match u32::try_from(n) {
        Ok(mark) if mark.count_ones() < 2 => Ok(mark),
        _ => Err(format!("expected one bit of 32 such as 0x20000000, or 0, got {n:#x}")),
    }
);

checked!(
    /// Ports: one, or from one to another.
    PortsText(PortRange) from String, |text| {
        text.parse().map_err(|_| format!("expected a port or ports such as \"137-139\", got {text:?}"))
    }
);

checked!(
    /// A rule of `policy.rules`.
    RuleText(Rule) from String, |text| text.parse().map_err(|why: NotARule| {
        format!(
            "expected a rule such as \"allow 1024-65535 192.168.1.0/24 1024-65535\", got {text:?}: {why}"
        )
    })
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
    /// LAN hosts: an IPv4 address, or a prefix of such. Control points are heard by IPv4 alone.
    Hosts(Prefix) from String, |text| match text.parse::<Prefix>() {
        Ok(prefix) if prefix.first().is_ipv4() => Ok(prefix),
        _ => Err(format!("expected an IPv4 address or prefix such as \"192.168.1.64/26\", got {text:?}")),
    }
);

checked!(
    /// `CLIENT for INTERNAL…`
    ThirdPartyText(ThirdParty) from String, |text| third_party(&text).ok_or_else(|| {
        format!("expected who for whom such as \"10.8.0.2 for 192.168.1.0/24\", got {text:?}")
    })
);

fn third_party(text: &str) -> Option<ThirdParty> {
    let (client, internal) = text.split_once(" for ")?;
    let internal: Vec<Prefix> = internal.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let client = client.trim().parse().ok()?;
    (!internal.is_empty()).then_some(ThirdParty { client, internal })
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_interfaces() {
        for name in ["lo", "br-lan", "eth0.2", "wg@home", "a\u{1b}b", "fifteen-octets-"] {
            assert!(is_interface_name(name), "{name:?}");
        }
        for name in ["", ".", "..", "a/b", "a b", "a\nb", "eth0:1", "a\0b", "sixteen-octets--"] {
            assert!(!is_interface_name(name), "{name:?}");
        }
    }
}
