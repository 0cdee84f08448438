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
    /// The nftables table (family inet) of the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
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
    let nowhere = "nowhere: no interface of [inside] is up and has an address".to_owned();
    let mappings = match (report.mappings, report.subscribers) {
        (0, _) => "none".to_owned(),
        (mappings, 1) => format!("{mappings} of 1 subscriber"),
        (mappings, subscribers) => format!("{mappings} of {subscribers} subscribers"),
    };
    let rows = [
        ("listening", if report.listening.is_empty() { nowhere } else { list(listening) }),
        ("external", list(report.external.iter().map(ToString::to_string).collect())),
        (
            "NAT",
            report
                .table
                .as_ref()
                .map_or(report.plane.clone(), |table| format!("{}, table inet {table}", report.plane)),
        ),
        ("mappings", mappings),
        ("epoch", format!("{}, in which no mapping was lost", duration(report.epoch.into()))),
        (
            "datagrams",
            format!("{} received, {} sent, {refused} refused or not answered", report.received, report.sent),
        ),
    ];
    let mut out = String::new();
    for (name, value) in rows {
        let _ = writeln!(out, "{name:<12} {value}");
    }
    for (reason, count) in &report.refused {
        let _ = writeln!(out, "{:<12} {count:>8}  {reason}", "");
    }
    if let Some(error) = &report.store_error {
        let _ = writeln!(out, "storage      cannot be written, so a restart will lose mappings: {error}");
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
            if report.requester == report.internal.ip() {
                report.made_by.clone()
            } else {
                format!("{}, by {}", report.made_by, report.requester)
            },
            report.description.as_deref().map(printable).unwrap_or_default(),
        ]
    });
    let head = ["PROTO", "EXTERNAL", "INTERNAL", "FROM", "LEFT", "BY", "DESCRIPTION"].map(str::to_owned);
    columns(std::iter::once(head).chain(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> StatusReport {
        StatusReport {
            version: "1".to_owned(),
            plane: "nftables".to_owned(),
            table: Some("portferry-provider".to_owned()),
            listening: vec![("wg0".to_owned(), IpAddr::from([10, 8, 0, 1]))],
            external: vec![IpAddr::from([203, 0, 113, 1])],
            epoch: 11_400,
            mappings: 3,
            subscribers: 1,
            received: 20,
            sent: 17,
            refused: BTreeMap::new(),
            store_error: None,
        }
    }

    #[test]
    fn a_status_as_people_see_it() {
        let wanted = "\
listening    10.8.0.1 on wg0
external     203.0.113.1
NAT          nftables, table inet portferry-provider
mappings     3 of 1 subscriber
epoch        3h 10m, in which no mapping was lost
datagrams    20 received, 17 sent, 0 refused or not answered
";
        assert_eq!(status_table(&status()), wanted);
        let troubled = StatusReport {
            plane: "memory".to_owned(),
            table: None,
            listening: Vec::new(),
            external: Vec::new(),
            mappings: 0,
            refused: [("quota used up".to_owned(), 12), ("too many requests".to_owned(), 1)].into(),
            store_error: Some("No space left on device".to_owned()),
            ..status()
        };
        let wanted = "\
listening    nowhere: no interface of [inside] is up and has an address
external     none
NAT          memory
mappings     none
epoch        3h 10m, in which no mapping was lost
datagrams    20 received, 17 sent, 13 refused or not answered
                   12  quota used up
                    1  too many requests
storage      cannot be written, so a restart will lose mappings: No space left on device
";
        assert_eq!(status_table(&troubled), wanted);
    }

    #[test]
    fn mappings_as_people_see_them() {
        let one = MappingReport {
            protocol: "TCP".to_owned(),
            internal: ([192, 168, 1, 7], 8080).into(),
            external: ([203, 0, 113, 1], 9090).into(),
            ports: 1,
            peer: None,
            filters: Vec::new(),
            requester: IpAddr::from([192, 168, 1, 7]),
            made_by: "NAT-PMP".to_owned(),
            description: None,
            left: 59,
        };
        let others = MappingReport {
            protocol: "UDP".to_owned(),
            ports: 4,
            filters: vec!["198.51.100.20/32".to_owned(), "198.51.100.64/26 port 53".to_owned()],
            requester: IpAddr::from([10, 8, 0, 2]),
            made_by: "PCP".to_owned(),
            description: Some("a \u{1b}[2Jgame".to_owned()),
            left: 3600,
            ..one.clone()
        };
        let wanted = "\
PROTO  EXTERNAL                  INTERNAL                  FROM                                        LEFT    BY                DESCRIPTION
TCP    203.0.113.1:9090          192.168.1.7:8080          anybody                                     59s     NAT-PMP
UDP    203.0.113.1:9090 to 9093  192.168.1.7:8080 to 8083  198.51.100.20/32, 198.51.100.64/26 port 53  1h 00m  PCP, by 10.8.0.2  a \u{fffd}[2Jgame
";
        assert_eq!(mappings_table(&[one, others]), wanted);
        assert_eq!(mappings_table(&[]), "no mappings\n");
    }
}
