//! What `portferry status` and `portferry mappings` print for people.

use std::fmt::Write;

use crate::control::{
    ConsentReport, ConsentsReport, MappingReport, PinholeReport, RefusedReport, StatusReport, UplinkReport,
    WishReport,
};

/// The gateway in a few lines.
pub fn status(report: &StatusReport) -> String {
    let lan: Vec<String> =
        report.lan.iter().map(|lan| format!("{} {}", lan.name, addresses(&lan.addresses))).collect();
    let lan = if lan.is_empty() { "no interface yet".to_owned() } else { lan.join("; ") };
    let usual = &report.usual;
    let asked = report.lan_requests;
    let http = report.http;
    let ignored = format!(
        "{} from upstream, {} searches, {} to port 5351, {} over HTTP",
        usual.ignored_upstream,
        report.ignored_ssdp,
        asked.ignored,
        http.refused + http.turned_away + http.dropped
    );
    let mut out = rows(uplink(usual, Some(lan), ignored));
    for extra in &report.extra {
        let whose = format!("{} of {}", extra.uplink.wan.name, extra.hosts.join(", "));
        let ignored = format!("{} from upstream", extra.uplink.ignored_upstream);
        let _ = writeln!(out);
        out += &rows([("uplink", whose)].into_iter().chain(uplink(&extra.uplink, None, ignored)));
    }
    out + &rows(policy(report))
}

/// What policy has refused, one line each, and who waits for the owner; nothing where there is nothing.
fn policy(report: &StatusReport) -> impl Iterator<Item = (&'static str, String)> {
    let waiting = (report.awaiting_consent > 0).then(|| {
        let hosts = if report.awaiting_consent == 1 { "host waits" } else { "hosts wait" };
        ("consent", format!("{} {hosts} for you: portferry consent", report.awaiting_consent))
    });
    let refused = report.refused.iter().map(|RefusedReport { words, times, last_by, last, .. }| {
        ("refused", format!("{times} {words}, last {last_by} {} ago", duration(*last)))
    });
    waiting.into_iter().chain(refused)
}

/// Who waits for the owner, and on whom is decided.
pub fn consents(report: &ConsentsReport) -> String {
    let mut out = String::new();
    if !report.asks {
        out += "nobody is asked about (policy.default is not \"ask\"), so that decisions do not count\n";
    }
    if report.waiting.is_empty() && report.decided.is_empty() {
        return out + "nobody waits, and nothing is decided\n";
    }
    let wish = |wish: &WishReport| match wish.external_port {
        Some(port) => format!("{} {port} -> {}", wish.protocol, wish.internal),
        None => format!("{} any -> {}", wish.protocol, wish.internal),
    };
    if !report.waiting.is_empty() {
        let head = ["WAITING", "ADDRESS", "SINCE", "TIMES", "BY", "FIRST", "LAST"].map(str::to_owned);
        let waiting = report.waiting.iter().map(|one| {
            [
                one.device.clone(),
                one.address.to_string(),
                duration(one.since),
                one.times.to_string(),
                one.asked_by.join("+"),
                wish(&one.first),
                wish(&one.last),
            ]
        });
        out += &columns([head].into_iter().chain(waiting));
    }
    if !report.decided.is_empty() {
        if !report.waiting.is_empty() {
            out.push('\n');
        }
        let head = ["DECIDED", "ADDRESS THEN", "DECISION"].map(str::to_owned);
        let decided = report.decided.iter().map(|one| {
            let address = one.address.map_or("-".to_owned(), |addr| addr.to_string());
            [one.device.clone(), address, if one.allowed { "allowed" } else { "denied" }.to_owned()]
        });
        out += &columns([head].into_iter().chain(decided));
    }
    out
}

/// What has come of a decision.
pub fn consent(report: &ConsentReport) -> String {
    let mut out = match report.decision.as_str() {
        "allow" => format!("{} may have mappings", report.device),
        "deny" => format!("{} may have no mappings; given back: {}", report.device, report.released),
        _ => format!("nothing is decided about {}", report.device),
    };
    if !report.asks {
        out += ", which counts once policy.default is \"ask\"";
    }
    if !report.stored {
        out += "; but that cannot be stored: after a restart nobody knows of it";
    }
    out + "\n"
}

fn rows(rows: impl IntoIterator<Item = (&'static str, String)>) -> String {
    rows.into_iter().fold(String::new(), |mut out, (name, value)| {
        let _ = writeln!(out, "{name:<17} {value}");
        out
    })
}

fn addresses(addresses: &[std::net::Ipv4Addr]) -> String {
    match addresses {
        [] => "no address".to_owned(),
        all => all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

fn uplink(
    report: &UplinkReport,
    lan: Option<String>,
    ignored: String,
) -> impl Iterator<Item = (&'static str, String)> {
    let server = report.server.map_or("none known".to_owned(), |server| server.to_string());
    let uplink = match (report.uplink.as_str(), report.last_heard) {
        ("answering", Some(heard)) => format!("{server} answers, last {} ago", duration(heard)),
        ("silent", Some(heard)) => format!("{server} is silent, last heard {} ago", duration(heard)),
        ("silent", None) => format!("{server} has never answered"),
        _ => format!("{server}, not heard yet"),
    };
    let external = match (report.external_address, report.uptime) {
        (Some(addr), Some(uptime)) => format!("{addr}, for {}", duration(uptime)),
        (Some(addr), None) => format!("{addr}, but not connected"),
        (None, _) => match report.nat_above {
            Some(addr) => format!("none: the router in front has {addr}, which is of another NAT above it"),
            None => "unknown".to_owned(),
        },
    };
    let own_nat = if report.nat == "none" { "none" } else { "nftables, in between" };
    let mappings = match report.held {
        0 => report.mappings.to_string(),
        held => format!("{}, and {held} kept for a while in case an application asks", report.mappings),
    };
    let servers = |servers: &[Vec<std::net::IpAddr>]| {
        let server = |addresses: &Vec<std::net::IpAddr>| {
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        servers.iter().map(server).collect::<Vec<_>>().join("; ")
    };
    let offered = Some(&report.wan.offered_pcp_servers)
        .filter(|offered| !offered.is_empty())
        .map(|offered| ("offered by DHCP", servers(offered)));
    let storage = report
        .store_error
        .as_ref()
        .map(|error| ("storage", format!("cannot be written, so new mappings are refused: {error}")));
    let server = match report.protocol.as_deref() {
        Some("none") => ("server", "none found; mappings are this router's own".to_owned()),
        Some("NAT-PMP") => ("NAT-PMP gateway", uplink),
        Some("UPnP IGD") => ("UPnP IGD", uplink),
        _ => ("PCP server", uplink),
    };
    let wan = format!("{} {}", report.wan.name, addresses(&report.wan.addresses));
    let first =
        [("external address", external), server, ("WAN", wan), ("own NAT", own_nat.to_owned())].into_iter();
    let pinholes = (report.pinholes > 0).then(|| ("pinholes", report.pinholes.to_string()));
    let firewall =
        report.firewall_server.map(|server| ("IPv6 firewall", format!("{server}, the provider's")));
    let mappings = [("mappings", mappings)].into_iter().chain(pinholes).chain(firewall);
    let last = mappings.chain([("ignored", ignored)]);
    first.chain(lan.map(|lan| ("LAN", lan))).chain(last).chain(offered).chain(storage)
}

/// One line a mapping.
pub fn mappings(report: &[MappingReport]) -> String {
    if report.is_empty() {
        return "no mappings\n".to_owned();
    }
    let head = ["PROTO", "EXTERNAL", "OWN NAT", "INTERNAL", "LEASE", "STATE", "BY", "UPLINK", "DESCRIPTION"]
        .map(str::to_owned);
    let mut rows = vec![head];
    for mapping in report {
        let outside = match mapping.external.ip().is_unspecified() {
            true => format!("port {}, here only", mapping.external.port()),
            false => mapping.external.to_string(),
        };
        let external = match (mapping.remote_host, &mapping.remote_name) {
            (Some(remote), Some(name)) => format!("{outside} from {name} ({remote})"),
            (Some(remote), None) => format!("{outside} from {remote}"),
            (None, _) => outside,
        };
        rows.push([
            mapping.protocol.clone(),
            external,
            mapping.nat_port.map_or("-".to_owned(), |port| port.to_string()),
            mapping.internal.to_string(),
            mapping.lease_left.map_or("for ever".to_owned(), duration),
            mapping.state.clone(),
            mapping.asked_by.join("+"),
            mapping.uplink.clone().unwrap_or_else(|| "-".to_owned()),
            printable(&mapping.description),
        ]);
    }
    if report.iter().any(|mapping| mapping.uplink.is_some()) {
        return columns(rows);
    }
    columns(rows.into_iter().map(|[proto, external, nat, internal, lease, state, by, _, description]| {
        [proto, external, nat, internal, lease, state, by, description]
    }))
}

/// One line a pinhole.
pub fn pinholes(report: &[PinholeReport]) -> String {
    if report.is_empty() {
        return "no pinholes\n".to_owned();
    }
    let head =
        ["ID", "PROTO", "INTERNAL", "FROM", "LEASE", "STATE", "PROVIDER", "BY", "UPLINK", "DESCRIPTION"];
    let mut rows = vec![head.map(str::to_owned)];
    for pinhole in report {
        let from = match (pinhole.remote_host, pinhole.remote_port) {
            (None, None) => "anybody".to_owned(),
            (Some(host), None) => host.to_string(),
            (None, Some(port)) => format!("port {port}"),
            (Some(host), Some(port)) => format!("[{host}]:{port}"),
        };
        let at_provider = match pinhole.at_provider {
            None => "-".to_owned(),
            Some(there) if there == pinhole.internal.into() => "lets it in".to_owned(),
            Some(there) => there.to_string(),
        };
        rows.push([
            pinhole.id.to_string(),
            pinhole.protocol.clone(),
            pinhole.internal.to_string(),
            from,
            pinhole.lease_left.map_or("for ever".to_owned(), duration),
            pinhole.state.clone(),
            at_provider,
            pinhole.asked_by.join("+"),
            pinhole.uplink.clone().unwrap_or_else(|| "-".to_owned()),
            printable(&pinhole.description),
        ]);
    }
    if report.iter().any(|pinhole| pinhole.uplink.is_some()) {
        return columns(rows);
    }
    columns(rows.into_iter().map(
        |[id, protocol, internal, from, lease, state, there, by, _, description]| {
            [id, protocol, internal, from, lease, state, there, by, description]
        },
    ))
}

/// Rows of cells, each column as wide as its widest cell.
pub(crate) fn columns<const N: usize>(rows: impl IntoIterator<Item = [String; N]>) -> String {
    let rows: Vec<_> = rows.into_iter().collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

/// `59s`, `12m 05s`, `3h 10m`, `2d 04h`.
pub(crate) fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..=59 => format!("{seconds}s"),
        60..=3599 => format!("{minutes}m {:02}s", seconds % 60),
        3600..=86_399 => format!("{hours}h {:02}m", minutes % 60),
        _ => format!("{days}d {:02}h", hours % 24),
    }
}

/// A terminal must not be steered by what a stranger wrote.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping() -> MappingReport {
        MappingReport {
            uplink: None,
            protocol: "TCP".into(),
            external: "198.51.100.7:8080".parse().unwrap(),
            nat_port: Some(8080),
            internal: "192.168.1.10:80".parse().unwrap(),
            remote_host: None,
            remote_name: None,
            description: "web\u{1b}[31m".into(),
            asked_by: vec!["UPnP".into()],
            age: 5,
            lease_left: Some(3599),
            lifetime_left: 100,
            state: "active".into(),
        }
    }

    #[test]
    fn what_policy_refused_is_a_line_each() {
        let one = |words: &str, times, last| RefusedReport {
            reason: "rule".into(),
            rule: None,
            words: words.into(),
            times,
            last_by: "192.168.1.10".parse().unwrap(),
            last,
        };
        let text = r#"{"version":"1","lan":[],"nat":"none","wan":{"name":"wan0","addresses":[]},"server":null,"uplink":"unknown","last_heard":null,
            "epoch":null,"external_address":null,"uptime":null,"mappings":0,"held":0,"ignored_upstream":0,"system_update_id":0,"ignored_ssdp":0}"#;
        let plain: StatusReport = serde_json::from_str(text).unwrap();
        assert!(!status(&plain).contains("refused") && !status(&plain).contains("consent"));
        let refused = vec![one("ports of policy.never", 3, 61), one("by the rule \"deny 80 ::/0 80\"", 1, 0)];
        let all = status(&StatusReport { refused, awaiting_consent: 2, ..plain.clone() });
        let lines: Vec<&str> = all.lines().rev().take(3).collect();
        assert_eq!(
            lines,
            [
                "refused           1 by the rule \"deny 80 ::/0 80\", last 192.168.1.10 0s ago",
                "refused           3 ports of policy.never, last 192.168.1.10 1m 01s ago",
                "consent           2 hosts wait for you: portferry consent",
            ]
        );
        let one = status(&StatusReport { awaiting_consent: 1, ..plain });
        assert!(one.ends_with("consent           1 host waits for you: portferry consent\n"), "{one}");
    }

    #[test]
    fn who_waits_and_who_is_decided_on() {
        use crate::control::{DecidedReport, WaitingReport};

        let wish = |external_port| WishReport {
            protocol: "TCP".into(),
            external_port,
            internal: "192.168.1.10:8080".parse().unwrap(),
        };
        let waiting = WaitingReport {
            device: "02:00:5e:10:00:0a".into(),
            address: "192.168.1.10".parse().unwrap(),
            first: wish(Some(8080)),
            last: wish(None),
            asked_by: vec!["UPnP".into(), "PCP".into()],
            since: 61,
            last_asked: 3,
            times: 4,
        };
        let decided = DecidedReport { device: "192.168.1.11".into(), address: None, allowed: false };
        let report = ConsentsReport { asks: true, waiting: vec![waiting], decided: vec![decided] };
        assert_eq!(
            consents(&report),
            "WAITING            ADDRESS       SINCE   TIMES  BY        FIRST                          LAST\n\
             02:00:5e:10:00:0a  192.168.1.10  1m 01s  4      UPnP+PCP  TCP 8080 -> 192.168.1.10:8080  TCP any -> 192.168.1.10:8080\n\
             \n\
             DECIDED       ADDRESS THEN  DECISION\n\
             192.168.1.11  -             denied\n"
        );
        let nobody = ConsentsReport { asks: false, waiting: vec![], decided: vec![] };
        assert_eq!(
            consents(&nobody),
            "nobody is asked about (policy.default is not \"ask\"), so that decisions do not count\n\
             nobody waits, and nothing is decided\n"
        );
        let report = |decision: &str, asks, stored| {
            let (device, decision) = ("02:00:5e:10:00:0a".to_owned(), decision.to_owned());
            consent(&ConsentReport { device, decision, asks, released: 2, stored })
        };
        assert_eq!(report("allow", true, true), "02:00:5e:10:00:0a may have mappings\n");
        assert_eq!(report("deny", true, true), "02:00:5e:10:00:0a may have no mappings; given back: 2\n");
        assert!(report("forget", true, false).contains("cannot be stored"));
        assert!(report("allow", false, true).contains("once policy.default"));
    }

    #[test]
    fn pinholes_stand_in_columns() {
        let pinhole = PinholeReport {
            uplink: None,
            id: 7,
            protocol: "TCP".into(),
            internal: "[2001:db8:1::10]:8080".parse().unwrap(),
            remote_host: None,
            remote_port: None,
            description: "web\u{1b}[31m".into(),
            asked_by: vec!["UPnP".into(), "PCP".into()],
            age: 5,
            lease_left: Some(3599),
            state: "open".into(),
            at_provider: Some("[2001:db8:1::10]:8080".parse().unwrap()),
        };
        let other = PinholeReport {
            id: 65_535,
            remote_host: Some("2001:db8:9::1".parse().unwrap()),
            remote_port: Some(53),
            description: String::new(),
            at_provider: Some("[2001:db8:ff::10]:8080".parse().unwrap()),
            ..pinhole.clone()
        };
        let third = PinholeReport { remote_port: Some(53), at_provider: None, ..pinhole.clone() };
        assert_eq!(
            pinholes(&[pinhole.clone(), other, third]),
            "ID     PROTO  INTERNAL               FROM                LEASE    STATE  PROVIDER                BY        DESCRIPTION\n\
             7      TCP    [2001:db8:1::10]:8080  anybody             59m 59s  open   lets it in              UPnP+PCP  web\u{fffd}[31m\n\
             65535  TCP    [2001:db8:1::10]:8080  [2001:db8:9::1]:53  59m 59s  open   [2001:db8:ff::10]:8080  UPnP+PCP\n\
             7      TCP    [2001:db8:1::10]:8080  port 53             59m 59s  open   -                       UPnP+PCP  web\u{fffd}[31m\n"
        );
        assert_eq!(pinholes(&[]), "no pinholes\n");
        let at_another = PinholeReport { uplink: Some("wg0".into()), ..pinhole };
        assert!(pinholes(&[at_another]).contains("UPnP+PCP  wg0"));
    }

    #[test]
    fn mappings_stand_in_columns_and_steer_no_terminal() {
        let other = MappingReport {
            protocol: "UDP".into(),
            nat_port: None,
            lease_left: None,
            remote_host: Some("203.0.113.9".parse().unwrap()),
            description: String::new(),
            asked_by: vec!["PCP".into(), "NAT-PMP".into()],
            ..mapping()
        };
        assert_eq!(
            mappings(&[mapping(), other]),
            "PROTO  EXTERNAL                            OWN NAT  INTERNAL         LEASE     STATE   BY           DESCRIPTION\n\
             TCP    198.51.100.7:8080                   8080     192.168.1.10:80  59m 59s   active  UPnP         web\u{fffd}[31m\n\
             UDP    198.51.100.7:8080 from 203.0.113.9  -        192.168.1.10:80  for ever  active  PCP+NAT-PMP\n"
        );
        let at_another = MappingReport { uplink: Some("wg0".into()), ..mapping() };
        assert_eq!(
            mappings(&[mapping(), at_another]),
            "PROTO  EXTERNAL           OWN NAT  INTERNAL         LEASE    STATE   BY    UPLINK  DESCRIPTION\n\
             TCP    198.51.100.7:8080  8080     192.168.1.10:80  59m 59s  active  UPnP  -       web\u{fffd}[31m\n\
             TCP    198.51.100.7:8080  8080     192.168.1.10:80  59m 59s  active  UPnP  wg0     web\u{fffd}[31m\n"
        );
        let named = MappingReport {
            remote_host: Some("203.0.113.9".parse().unwrap()),
            remote_name: Some("peer.example.net".into()),
            ..mapping()
        };
        let local =
            MappingReport { external: "0.0.0.0:8080".parse().unwrap(), state: "local".into(), ..mapping() };
        assert!(mappings(&[local]).contains("TCP    port 8080, here only  8080     "));
        assert!(mappings(&[named]).contains("8080 from peer.example.net (203.0.113.9) "));
        assert_eq!(mappings(&[]), "no mappings\n");
    }

    #[test]
    fn durations_in_two_units() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (60, "1m 00s"), (3599, "59m 59s"), (3600, "1h 00m"), (604_800, "7d 00h")]
        {
            assert_eq!(duration(seconds), text);
        }
    }
}
