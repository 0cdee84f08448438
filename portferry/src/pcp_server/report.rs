//! What `portferry pcp-server status` and `mappings` tell, in JSON and as tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use engine::provider::{Server, ServerMapping};
use engine::time::Instant;
use serde::{Deserialize, Serialize};

use crate::table::{columns, duration, printable};

/// The server at one moment.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct StatusReport {
    /// portferry's version.
    pub version: String,
    /// "nftables" or "memory".
    pub plane: String,
    /// Where it listens: interface and address.
    pub listening: Vec<(String, IpAddr)>,
    /// The external addresses.
    pub external: Vec<IpAddr>,
    /// Seconds since a mapping was last lost (RFC 6887 §8.5).
    pub epoch: u32,
    /// How many mappings there are.
    pub mappings: usize,
    /// How many subscribers have them.
    pub subscribers: usize,
    /// Datagrams that came.
    pub received: u64,
    /// Datagrams that went out.
    pub sent: u64,
    /// Requests and other datagrams that were refused or met with silence, by reason; those that never happened are left
    /// out.
    pub refused: BTreeMap<String, u64>,
    /// Why the state cannot be written at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_error: Option<String>,
}

/// One mapping.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct MappingReport {
    /// "TCP", "UDP", a number, or "all".
    pub protocol: String,
    /// Address and port inside; port 0: all.
    pub internal: SocketAddr,
    /// Address and port outside; port 0: all.
    pub external: SocketAddr,
    /// How many consecutive ports.
    pub ports: u16,
    /// The only remote endpoint, if PEER made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<SocketAddr>,
    /// Who may come in; empty: everybody.
    pub filters: Vec<String>,
    /// Who asked for it.
    pub requester: IpAddr,
    /// "PCP" or "NAT-PMP".
    pub made_by: String,
    /// What its client calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Seconds until it ends.
    pub left: u32,
}

impl MappingReport {
    /// The mapping at this moment.
    pub fn new(now: Instant, mapping: &ServerMapping) -> Self {
        Self {
            protocol: if mapping.protocol.0 == 0 { "all".to_owned() } else { mapping.protocol.to_string() },
            internal: (mapping.inside.addr, mapping.internal_port).into(),
            external: mapping.external,
            ports: mapping.ports,
            peer: mapping.peer,
            filters: mapping.filters.iter().map(filter).collect(),
            requester: mapping.requester.addr,
            made_by: if mapping.nonce.is_some() { "PCP" } else { "NAT-PMP" }.to_owned(),
            description: mapping.description.clone(),
            left: mapping.ends.secs_left(now),
        }
    }
}

fn filter(filter: &wire::pcp::Filter) -> String {
    let addr = wire::pcp::ip_from_wire(filter.remote_addr);
    let len = if addr.is_ipv4() { filter.prefix_len.saturating_sub(96) } else { filter.prefix_len };
    match filter.remote_port {
        0 => format!("{addr}/{len}"),
        port => format!("{addr}/{len} port {port}"),
    }
}

/// All mappings of a server, by internal endpoint.
pub fn mappings(now: Instant, server: &Server) -> Vec<MappingReport> {
    server.mappings().map(|mapping| MappingReport::new(now, mapping)).collect()
}

/// The status for people.
#[must_use]
pub fn status_table(report: &StatusReport) -> String {
    let list = |items: Vec<String>| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
    let listening =
        report.listening.iter().map(|(interface, addr)| format!("{addr} on {interface}")).collect();
    let refused: u64 = report.refused.values().sum();
    let mut rows = vec![
        ("listening", list(listening)),
        ("external", list(report.external.iter().map(ToString::to_string).collect())),
        ("NAT", report.plane.clone()),
        ("mappings", format!("{} of {} subscribers", report.mappings, report.subscribers)),
        ("epoch", format!("{}, so long nothing was lost", duration(report.epoch.into()))),
        (
            "datagrams",
            format!("{} received, {} sent, {refused} refused or not answered", report.received, report.sent),
        ),
    ];
    if let Some(error) = &report.store_error {
        rows.push(("storage", format!("cannot be written, so a restart will lose mappings: {error}")));
    }
    let mut out = String::new();
    for (name, value) in rows {
        let _ = writeln!(out, "{name:<12} {value}");
    }
    for (reason, count) in &report.refused {
        let _ = writeln!(out, "{:<12} {count:>8}  {reason}", "");
    }
    out
}

/// The mappings for people.
#[must_use]
pub fn mappings_table(reports: &[MappingReport]) -> String {
    if reports.is_empty() {
        return "no mappings\n".to_owned();
    }
    let rows = reports.iter().map(|report| {
        let ports = |addr: SocketAddr| match (addr.port(), report.ports) {
            (0, _) => format!("{}, all ports", addr.ip()),
            (_, 1) => addr.to_string(),
            (first, ports) => format!("{addr} to {}", u32::from(first) + u32::from(ports) - 1),
        };
        let from = match (&report.peer, &report.filters[..]) {
            (Some(peer), _) => peer.to_string(),
            (None, []) => "anybody".to_owned(),
            (None, filters) => filters.join(", "),
        };
        [
            report.protocol.clone(),
            ports(report.external),
            ports(report.internal),
            from,
            duration(report.left.into()),
            report.made_by.clone(),
            report.description.as_deref().map(printable).unwrap_or_default(),
        ]
    });
    let head = ["PROTO", "EXTERNAL", "INTERNAL", "FROM", "LEFT", "BY", "DESCRIPTION"].map(str::to_owned);
    columns(std::iter::once(head).chain(rows))
}
