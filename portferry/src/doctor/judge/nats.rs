//! The NATs between the LAN and the Internet, as far as they can be seen from here.

use std::net::{IpAddr, Ipv4Addr};

use super::address::Kind;
use super::firewall::out_of_lan;
use crate::config::NatMode;
use crate::doctor::facts::{Facts, NatPmpSays, Probe, Role, UplinkFacts, UplinkSetup};
use crate::doctor::finding::Finding;
use crate::doctor::walk::masquerades;
use crate::nft::reading::Family;

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    for (uplink, found) in facts.each_uplink() {
        all.extend(path(facts, uplink, found));
    }
    all.extend(facts.setup.uplinks.iter().filter_map(|uplink| own_table(facts, uplink)));
    all.extend(facts.setup.uplinks.iter().filter_map(|uplink| masquerade(facts, uplink)));
    all
}

/// The external address, as the gateway knows it or a server said just now.
pub(super) fn external(facts: &Facts, uplink: &UplinkSetup, found: &UplinkFacts) -> Option<Ipv4Addr> {
    let gateway = facts.gateway.uplink(&uplink.interface);
    let of_gateway = gateway.and_then(|status| status.nat_above.or(status.external_address));
    let of_probe = match &found.probe {
        Probe::Granted(granted) => match granted.external {
            Some(IpAddr::V4(addr)) => Some(addr),
            _ => None,
        },
        _ => None,
    };
    let of_nat_pmp = found.candidates.iter().find_map(|candidate| match candidate.nat_pmp {
        Some((_, NatPmpSays::External(addr))) => Some(addr),
        _ => None,
    });
    let of_igd = found.igd.as_ref().and_then(|igd| igd.external);
    of_probe.or(of_gateway).or(of_nat_pmp).or(of_igd).filter(|addr| !addr.is_unspecified())
}

fn path(facts: &Facts, uplink: &UplinkSetup, found: &UplinkFacts) -> Option<Finding> {
    let wan = facts.addresses(&uplink.interface).first().map(|(addr, _)| *addr);
    let external = external(facts, uplink, found);
    let mut nats = Vec::new();
    if uplink.nat == NatMode::Nftables {
        nats.push("this router".to_owned());
    }
    let end = external.or(wan)?;
    if external.is_some() && external != wan {
        nats.push(match (&found.igd, wan.map(Kind::of)) {
            (Some(igd), _) => format!("the provider's router at {}", igd.address),
            (None, Some(Kind::Private)) => "the router in front".to_owned(),
            _ => "the provider".to_owned(),
        });
    }
    let kind = Kind::of(end);
    let list = |nats: &[String]| match nats {
        [] => "none".to_owned(),
        all => all.join(", then "),
    };
    let reachable = matches!(kind, Kind::Public | Kind::Documentation);
    if external.is_none() && !reachable {
        // That nobody answers is said where servers are.
        return None;
    }
    if !reachable {
        let seen = format!(
            "behind {} the address is {end}, which is {}: there is one more NAT above, which nobody opens",
            list(&nats),
            kind.words()
        );
        return Some(Finding::new("nat-above", seen).at(&uplink.interface).with("external", end.to_string()).todo(
            "have the router in front bridge instead of translating, or name the upper NAT's server in uplink.servers; where that NAT is your \
             provider's and has no PCP, ask for a public address, or see docs/vps.md",
        ));
    }
    let seen = format!("NATs: {}; beyond is {end}", list(&nats));
    Some(
        Finding::new("nats", seen).at(&uplink.interface).with("external", end.to_string()).with("nats", nats),
    )
}

fn own_table(facts: &Facts, uplink: &UplinkSetup) -> Option<Finding> {
    let rules = facts.rules.as_ref().ok()?;
    // One table for an uplink and its spares, which is made while the gateway runs.
    facts.gateway.status()?;
    if uplink.nat != NatMode::Nftables || uplink.role == Role::Spare {
        return None;
    }
    let table = &uplink.table;
    let finding = if rules.has_table(Family::Inet, table) {
        Finding::new("own-nat", format!("the router's own NAT stands: table inet {table}"))
    } else {
        let seen = format!(
            "the nftables table inet {table} is gone, so that no mapping leads to the LAN: somebody flushed the ruleset"
        );
        Finding::new("own-nat-missing", seen).todo(
            "ask again in ten seconds, for portferry makes it anew by itself: its log says who deleted it, or why it cannot be made",
        )
    };
    Some(finding.at(&uplink.interface))
}

/// Whether the LAN's own traffic is translated on its way out, as the configuration says.
fn masquerade(facts: &Facts, uplink: &UplinkSetup) -> Option<Finding> {
    let rules = facts.rules.as_ref().ok()?;
    if facts.legacy.iter().any(|table| table == "nat") {
        return None; // by rules that cannot be read
    }
    let packet = out_of_lan(facts, uplink)?;
    let (lan, wan) = (packet.arrives.0.clone(), packet.leaves.clone()?.0);
    let translated = masquerades(rules, &packet);
    match (uplink.nat, translated) {
        (NatMode::Nftables, true) => {
            Some(Finding::new("masquerade", format!("what {lan} sends out by {wan} is translated")).at(&wan))
        }
        (NatMode::Nftables, false) => {
            let seen = format!(
                "nobody translates what {lan} sends out by {wan}, though wan.nat says that this router does"
            );
            Some(
                Finding::new("masquerade-none", seen)
                    .at(&wan)
                    .todo("set nat.masquerade = true and restart portferry, or have the firewall do it; if the provider routes the LAN's addresses, set wan.nat = \"none\""),
            )
        }
        (NatMode::None, true) => {
            let seen = format!(
                "what {lan} sends out by {wan} is translated here, though wan.nat = \"none\" says that this router has no NAT"
            );
            Some(
                Finding::new("masquerade-unexpected", seen)
                    .at(&wan)
                    .todo("set wan.nat = \"nftables\", or take the masquerading away"),
            )
        }
        (NatMode::None, false) => None,
    }
}
