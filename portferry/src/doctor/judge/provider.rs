//! The provider's side: who answers, and whether a port can be had.

use super::address::Kind;
use crate::config::NatMode;
use crate::doctor::facts::{Candidate, Facts, NatPmpSays, Origin, PcpSays, Probe, UplinkFacts, UplinkSetup};
use crate::doctor::finding::Finding;

/// Milliseconds after which an application has begun to lose its patience.
const SLOW: f64 = 1000.0;

const WITHOUT_THIRD_PARTY: &str = "with wan.nat = \"none\" nothing works without it: ask your provider to allow THIRD_PARTY for your \
     LAN, or let this router translate (wan.nat = \"nftables\")";

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    for (uplink, found) in facts.each_uplink() {
        let usable = facts.interface(&uplink.interface).is_some_and(|interface| interface.up);
        if !usable {
            continue; // said of the interface
        }
        all.extend(found.candidates.iter().filter_map(|one| candidate(uplink, found, one)));
        all.extend(igd(uplink, found));
        all.extend(nobody(facts, uplink, found));
        all.extend(gateway(facts, uplink));
        all.extend(probe(uplink, found));
    }
    all
}

fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::Configured => "configured",
        Origin::Offered => "offered by DHCP",
        Origin::Router => "the default router",
        Origin::Anycast => "anycast",
    }
}

fn candidate(uplink: &UplinkSetup, found: &UplinkFacts, one: &Candidate) -> Option<Finding> {
    let (server, why) = (one.server, origin(one.origin));
    let finding = |id, seen: String| {
        Finding::new(id, seen).at(&uplink.interface).with("server", server.to_string()).with("origin", why)
    };
    if let Some((protocol, ms)) = one.answers() {
        let mut seen = format!("{server} ({why}) answers {protocol} in {ms:.1} ms");
        if let Some((_, PcpSays::Version(version))) = one.pcp {
            seen += &format!("; of PCP it says that it speaks version {version}");
        }
        if let Some((_, PcpSays::Refused(code))) = &one.pcp {
            seen += &format!(" with {code}");
        }
        let id = if ms > SLOW { "server-slow" } else { "server-answers" };
        let mut finding = finding(id, seen).with("protocol", protocol).with("milliseconds", ms);
        if ms > SLOW {
            finding = finding
                .todo("applications wait 4 to 5 s in all: see what loads the line, or prefer another server");
        }
        return Some(finding);
    }
    let (id, what) = if let Some((_, NatPmpSays::Refused(code))) = &one.nat_pmp {
        ("server-silent", format!("refuses NAT-PMP with {code}, and does not answer PCP"))
    } else if let Some((_, PcpSays::Version(version))) = one.pcp {
        ("server-silent", format!("speaks version {version} of PCP, and does not answer NAT-PMP"))
    } else if let Some(error) = &one.unreachable {
        ("server-silent", format!("cannot be sent to: {error}"))
    } else if one.closed {
        ("server-closed", "says that nobody listens there (ICMP port unreachable)".to_owned())
    } else {
        ("server-silent", "answers neither PCP nor NAT-PMP".to_owned())
    };
    let seen = format!("{server} ({why}) {what}");
    if one.origin == Origin::Configured {
        return Some(finding("server-configured-silent", seen).todo(format!(
            "is that the address your provider named, and is PCP enabled there for you? Without uplink.servers portferry looks for one; \
             try `portferry pcp announce --server {}`",
            server.ip()
        )));
    }
    let others = found.candidates.iter().any(|other| other.answers().is_some());
    (one.origin != Origin::Anycast || !others).then(|| finding(id, seen))
}

fn igd(uplink: &UplinkSetup, found: &UplinkFacts) -> Option<Finding> {
    let igd = found.igd.as_ref()?;
    let who = igd.server.as_ref().map_or(String::new(), |server| format!(" ({server})"));
    match igd.external {
        Some(external) => {
            let seen = format!(
                "the provider's router {}{who} speaks UPnP and has the address {external}",
                igd.address
            );
            Some(
                Finding::new("isp-router-upnp", seen)
                    .at(&uplink.interface)
                    .with("external", external.to_string()),
            )
        }
        None => {
            let status = igd.status.as_deref().unwrap_or("unknown");
            let seen = format!(
                "the provider's router {}{who} speaks UPnP and has no external address; it says \"{status}\"",
                igd.address
            );
            let todo =
                "see on its web page whether it is connected, and whether UPnP is allowed to open ports";
            Some(Finding::new("isp-router-disconnected", seen).at(&uplink.interface).todo(todo))
        }
    }
}

/// What it means when nobody answers.
fn nobody(facts: &Facts, uplink: &UplinkSetup, found: &UplinkFacts) -> Option<Finding> {
    let answered = found.candidates.iter().any(|candidate| candidate.answers().is_some());
    let answering = facts.gateway.uplink(&uplink.interface);
    let by_gateway = answering
        .is_some_and(|status| status.uplink == "answering" && status.protocol.as_deref() != Some("none"));
    if answered || found.igd.is_some() || by_gateway {
        return None;
    }
    let public = facts.addresses(&uplink.interface).iter().any(|(addr, _)| Kind::of(*addr) == Kind::Public);
    let name = &uplink.interface;
    if public && uplink.nat == NatMode::Nftables && uplink.servers.is_empty() {
        let seen = format!(
            "{name} has a public address and no PCP server: portferry is an ordinary gateway of this router's NAT"
        );
        return Some(Finding::new("uplink-none-needed", seen).at(name));
    }
    let upnp = if facts.setup.igd {
        "nor UPnP is answered"
    } else {
        "is answered (uplink.igd = false: UPnP was not tried)"
    };
    let seen = format!("nobody on {name} opens ports: neither PCP nor NAT-PMP {upnp}");
    Some(Finding::new("uplink-none", seen).at(name).todo(
        "if a router is in front, enable UPnP, NAT-PMP or PCP there, or have it bridge; if it is your provider's NAT, ask for PCP or a \
         public address, or rent a VPS (docs/vps.md)",
    ))
}

fn gateway(facts: &Facts, uplink: &UplinkSetup) -> Option<Finding> {
    let status = facts.gateway.uplink(&uplink.interface)?;
    let server = status.server.map_or("its server".to_owned(), |server| server.to_string());
    let protocol = status.protocol.as_deref().unwrap_or("PCP");
    let ago = status.last_heard.map_or(String::new(), |seconds| format!(", last {seconds} s ago"));
    let finding = |id, seen: String| Some(Finding::new(id, seen).at(&uplink.interface));
    match status.uplink.as_str() {
        _ if protocol == "none" => None,
        "answering" => {
            finding("gateway-uplink-answering", format!("the gateway hears {server} by {protocol}{ago}"))
        }
        "silent" => {
            let seen = format!("the gateway asks {server} by {protocol} and hears nothing{ago}");
            Some(finding("gateway-uplink-silent", seen)?.todo(
                "applications hear error 501 as long; see above what answers, and whether a firewall drops the answers; \
                 uplink.when_unreachable = \"local\" gives them ports of this router meanwhile",
            ))
        }
        _ => finding("gateway-uplink-unknown", format!("the gateway has not heard {server} yet")),
    }
}

/// What whom runs the router can do about a refusal; for the others the hint of `portferry pcp` does.
fn advice(code: &str) -> Option<&'static str> {
    let known = [
        (
            "ADDRESS_MISMATCH",
            "have that NAT (another router, a container, a VPN) bridge, or name its own server in uplink.servers",
        ),
        ("NOT_AUTHORIZED", "ask your provider whether PCP is enabled for your line"),
        (
            "USER_EX_QUOTA",
            "have applications give ports back that nobody needs (`portferry mappings`), or ask for more",
        ),
        ("NETWORK_FAILURE", "the server itself is not connected: ask your provider, or restart that router"),
    ];
    known.iter().find(|(name, _)| code.starts_with(name)).map(|(_, advice)| *advice)
}

fn probe(uplink: &UplinkSetup, found: &UplinkFacts) -> Vec<Finding> {
    let name = uplink.interface.as_str();
    let mut all = Vec::new();
    match &found.probe {
        Probe::Skipped(why) => {
            all.push(Finding::new("probe-skipped", format!("no port was asked for: {why}")).at(name));
        }
        Probe::Granted(granted) => {
            let external = granted.external.map_or(String::new(), |addr| format!("{addr}:"));
            let whose =
                granted.third_party.map_or(String::new(), |host| format!(" for {host} (THIRD_PARTY)"));
            let left = if granted.left.is_none() { ", and takes it back" } else { "" };
            let seen = format!(
                "{} gives UDP port {external}{}{whose} by {} for {} s{left}",
                granted.server, granted.port, granted.protocol, granted.lifetime
            );
            let mut finding = Finding::new("probe-granted", seen).at(name).with("port", granted.port);
            if let Some(external) = granted.external {
                finding = finding.with("external", external.to_string());
            }
            all.push(finding);
            if let Some(left) = granted.left {
                let seen = format!(
                    "{} did not confirm that the port was given back: it may stand for {left} s more, and leads to nobody",
                    granted.server
                );
                all.push(Finding::new("probe-left", seen).at(name).with("seconds", left));
            }
        }
        Probe::Refused { code, why, third_party: true, .. } => {
            let seen = format!("the server refuses to map for LAN hosts (THIRD_PARTY): {code}; {why}");
            all.push(Finding::new("third-party-refused", seen).at(name).todo(WITHOUT_THIRD_PARTY));
        }
        Probe::Refused { code, why, todo, third_party: false } => {
            let seen = format!("the server refuses a port: {code}; {why}");
            let todo =
                format!("{}; `portferry pcp map udp 40000` asks again by hand", advice(code).unwrap_or(todo));
            all.push(Finding::new("probe-refused", seen).at(name).todo(todo).with("code", code.clone()));
        }
        Probe::NoThirdParty(why) => {
            let seen = format!("the server does not map for LAN hosts (THIRD_PARTY): {why}");
            all.push(Finding::new("third-party-refused", seen).at(name).todo(WITHOUT_THIRD_PARTY));
        }
        Probe::Failed(what) => {
            let seen = format!("asking for a port came to nothing: {what}");
            let todo = "try again; `portferry pcp map udp 40000 --verbose` shows what is said";
            all.push(Finding::new("probe-failed", seen).at(name).todo(todo));
        }
    }
    match found.prefer_failure {
        Some(true) => {
            let seen = "the server honours PREFER_FAILURE: an application that insists on a port hears at once that it is taken";
            all.push(Finding::new("prefer-failure-honoured", seen).at(name));
        }
        Some(false) => {
            let seen = "the server passes over PREFER_FAILURE: portferry gives other ports back, which costs an exchange more";
            all.push(Finding::new("prefer-failure-ignored", seen).at(name));
        }
        None => {}
    }
    all
}
