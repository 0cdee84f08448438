//! The uplinks that a configuration makes: the usual one, and one for each `[[uplink.extra]]` that has hosts of its own.

use std::net::SocketAddr;
use std::path::PathBuf;

use engine::prefix::Prefix;

use super::{Config, Interface, NatMode, Server, is_interface_name};

/// An interface that an uplink may use.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WanWay {
    /// Its name.
    pub interface: String,
    /// The servers that somebody has chosen there; empty: those that are found.
    pub servers: Vec<SocketAddr>,
}

/// An uplink with a provider, a table and a state of its own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Line {
    /// What it is called: its first interface.
    pub name: String,
    /// At least one, the most preferred first.
    pub ways: Vec<WanWay>,
    /// Whose it is; of the first uplink nobody, for it is everybody's else.
    pub hosts: Vec<Prefix>,
    /// Whether this router translates addresses there.
    pub nat: NatMode,
    /// Its nftables table.
    pub table: String,
    /// Where it keeps its mappings.
    pub directory: PathBuf,
}

/// What the directories of uplinks with hosts begin with.
const DIRECTORY: &str = "uplink-";
/// What the name of the PCP server's table ends with.
const PROVIDER: &str = "provider";
/// An interface that is called so has this instead, which no other interface has.
const PROVIDER_HERE: &str = "_70rovider";

impl Line {
    /// The nftables table of an uplink with hosts.
    pub fn table_of(config: &Config, name: &str) -> String {
        format!("{}-{}", config.nat.table.0, in_table_name(name))
    }

    /// What there is of uplinks with hosts, now or before: their names, and where they keep their mappings.
    pub fn directories(config: &Config) -> Vec<(String, PathBuf)> {
        let entries = std::fs::read_dir(&config.state.directory).into_iter().flatten().flatten();
        let of = |entry: std::fs::DirEntry| {
            let name = entry.file_name().to_str()?.strip_prefix(DIRECTORY)?.to_owned();
            (entry.file_type().ok()?.is_dir() && is_interface_name(&name)).then(|| (name, entry.path()))
        };
        entries.filter_map(of).collect()
    }
}

impl Config {
    /// All uplinks, the usual one first.
    pub fn lines(&self) -> Vec<Line> {
        let of = |interface: &Interface, servers: &[Server]| WanWay {
            interface: interface.0.clone(),
            servers: servers.iter().map(|server| server.0).collect(),
        };
        let (spare, bound): (Vec<_>, Vec<_>) =
            self.uplink.extra.iter().partition(|extra| extra.hosts.is_empty());
        let usual = of(&self.wan.interface, &self.uplink.servers);
        let first = Line {
            name: usual.interface.clone(),
            ways: [usual]
                .into_iter()
                .chain(spare.into_iter().map(|extra| of(&extra.interface, &extra.servers)))
                .collect(),
            hosts: Vec::new(),
            nat: self.wan.nat,
            table: self.nat.table.0.clone(),
            directory: self.state.directory.clone(),
        };
        let bound = bound.into_iter().map(|extra| {
            let name = extra.interface.0.clone();
            Line {
                ways: vec![of(&extra.interface, &extra.servers)],
                hosts: extra.hosts.iter().map(|hosts| hosts.0).collect(),
                nat: extra.nat.unwrap_or(self.wan.nat),
                table: Line::table_of(self, &name),
                directory: self.state.directory.join(format!("{DIRECTORY}{name}")),
                name,
            }
        });
        std::iter::once(first).chain(bound).collect()
    }
}

/// What the nft program reads as a part of a table's name: letters and digits as they are, the rest in hexadecimal, so that no two
/// interfaces share a table; nor does one with `portferry pcp-server`, whose table is usually `portferry-provider`.
fn in_table_name(interface: &str) -> String {
    if interface == PROVIDER {
        return PROVIDER_HERE.to_owned();
    }
    let character = |byte: u8| match byte {
        b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' => char::from(byte).to_string(),
        other => format!("_{other:02x}"),
    };
    interface.bytes().map(character).collect()
}
