//! Whether the packet filter lets in what it has to: mapped traffic to the LAN and its answers, searches and requests of
//! applications, the answers of the provider's server. Typical packets are walked through the rules as they stand.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use engine::policy::InterfaceAddress;
use engine::prefix::Prefix;

use super::and;
use super::remedy::{Firewall, Wish, remedy, zone};
use crate::config::{Integrate, NatMode};
use crate::doctor::facts::{Facts, Gateway, Role, Unread, UplinkSetup};
use crate::doctor::finding::Finding;
use crate::doctor::walk::{FORWARD, INPUT, Outcome, POSTROUTING, Packet, Place, walk};
use crate::firewall::{Foreign, State};
use crate::nft::reading::Ruleset;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Some in the Internet, at home with providers of three continents: one alone may stand in somebody's list, as addresses that
/// everybody knows do. And ports that nothing has by itself.
const STRANGERS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(84, 150, 64, 20), Ipv4Addr::new(73, 158, 64, 20), Ipv4Addr::new(126, 110, 64, 20)];
const STRANGERS_PORT: u16 = 40_000;
const MAPPED_PORT: u16 = 51_413;

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    if facts.legacy.iter().any(|table| table == "filter") {
        all.push(
            Finding::new(
                "firewall-legacy",
                "there are rules of the older iptables, which doctor cannot read: whether they let mapped traffic pass is not known",
            )
            .todo("see whether FORWARD drops, and let translated flows pass; better move to iptables-nft or nftables")
            .command("iptables-legacy -S FORWARD")
            .command("iptables-legacy -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT"),
        );
    }
    let rules = match &facts.rules {
        Ok(rules) => rules,
        Err(why) => {
            let (why, todo) = match why {
                Unread::NotAllowed => ("that takes CAP_NET_ADMIN", "run doctor as root"),
                Unread::Failed(why) => (why.as_str(), "see whether the kernel has nf_tables"),
            };
            let seen = format!("the firewall's rules were not read: {why}");
            all.push(Finding::new("firewall-unread", seen).todo(todo));
            return all;
        }
    };
    all.extend(integration(facts));
    for lan in &facts.setup.lan {
        for uplink in &facts.setup.uplinks {
            all.extend(forward(facts, rules, lan, uplink));
        }
        all.extend(input(facts, rules, lan));
    }
    for uplink in &facts.setup.uplinks {
        all.extend(answers(facts, rules, uplink));
    }
    all
}

/// By which traffic of the Internet comes: with DS-Lite and the like that is a softwire's device.
fn outside<'a>(facts: &'a Facts, uplink: &'a UplinkSetup) -> Option<(&'a str, u32)> {
    let own = facts.interface(&uplink.interface)?;
    if uplink.nat == NatMode::None && facts.addresses(&uplink.interface).is_empty() {
        let v4 = facts.links.default_routes.iter().find(|route| {
            route.gateway.is_none_or(|gateway| gateway.is_ipv4()) && route.interface != own.index
        });
        let device = v4.and_then(|route| {
            facts.links.interfaces.iter().find(|interface| interface.index == route.interface)
        });
        if let Some(device) = device {
            return Some((&device.name, device.index));
        }
    }
    Some((&own.name, own.index))
}

/// A host of that LAN: one that has a mapping, or any.
fn host(facts: &Facts, lan: &str) -> Option<(Ipv4Addr, u16)> {
    host_of(facts, lan, |_| true, &[])
}

/// A host of that LAN whose traffic takes the uplink. None where hosts are bound to it that are not there.
fn user(facts: &Facts, lan: &str, uplink: &UplinkSetup) -> Option<(Ipv4Addr, u16)> {
    match &uplink.role {
        Role::Bound(hosts) => host_of(facts, lan, |addr| within(hosts, addr), hosts),
        Role::Usual | Role::Spare => {
            let bound = facts.setup.uplinks.iter().filter_map(|uplink| match &uplink.role {
                Role::Bound(hosts) => Some(hosts.as_slice()),
                _ => None,
            });
            let bound: Vec<&[Prefix]> = bound.collect();
            host_of(facts, lan, |addr| !bound.iter().any(|hosts| within(hosts, addr)), &[])
        }
    }
}

fn within(hosts: &[Prefix], addr: Ipv4Addr) -> bool {
    hosts.iter().any(|prefix| prefix.contains(IpAddr::V4(addr)))
}

/// One that has a mapping, the first of these prefixes, or any near the router's own address.
fn host_of(
    facts: &Facts,
    lan: &str,
    suits: impl Fn(Ipv4Addr) -> bool,
    prefixes: &[Prefix],
) -> Option<(Ipv4Addr, u16)> {
    let (own, len) = *facts.addresses(lan).first()?;
    let link = InterfaceAddress { addr: IpAddr::V4(own), prefix_len: len };
    let fits = |addr: &Ipv4Addr| *addr != own && link.contains(IpAddr::V4(*addr)) && suits(*addr);
    let mapped = match &facts.gateway {
        Gateway::Running { mappings, .. } => mappings.iter().find(|mapping| fits(mapping.internal.ip())),
        _ => None,
    };
    if let Some(mapping) = mapped {
        return Some((*mapping.internal.ip(), mapping.internal.port()));
    }
    // The first address of a network is nobody's.
    let firsts = prefixes.iter().filter_map(|prefix| match prefix.first() {
        IpAddr::V4(addr) if prefix.bits() < 31 => Some(Ipv4Addr::from(u32::from(addr) | 2)),
        IpAddr::V4(addr) => Some(addr),
        IpAddr::V6(_) => None,
    });
    let near = (2..=255).map(|n| Ipv4Addr::from(u32::from(own) ^ n));
    firsts.chain(near).find(fits).map(|addr| (addr, MAPPED_PORT))
}

fn lan_side(facts: &Facts, lan: &str) -> Option<(String, u32)> {
    let interface = facts.interface(lan)?;
    Some((interface.name.clone(), interface.index))
}

/// A packet of the LAN on its way out, where a source is translated.
pub(super) fn out_of_lan(facts: &Facts, uplink: &UplinkSetup) -> Option<Packet> {
    let up = |name: &str| facts.interface(name).is_some_and(|interface| interface.up);
    let mut lans = facts.setup.lan.iter().filter(|lan| up(lan));
    let (lan, (source, _)) = lans.find_map(|lan| Some((lan, user(facts, lan, uplink)?)))?;
    let (wan, index) = outside(facts, uplink).filter(|(wan, _)| up(wan))?;
    Some(Packet {
        hook: POSTROUTING,
        arrives: lan_side(facts, lan)?,
        leaves: Some((wan.to_owned(), index)),
        source,
        destination: STRANGERS[0],
        protocol: TCP,
        source_port: STRANGERS_PORT,
        destination_port: 443,
        established: false,
        translated: false,
        mark: 0,
    })
}

fn forward(facts: &Facts, rules: &Ruleset, lan: &str, uplink: &UplinkSetup) -> Option<Finding> {
    let (wan, wan_index) = outside(facts, uplink)?;
    let ((host, port), inside) = (user(facts, lan, uplink)?, lan_side(facts, lan)?);
    let translated = uplink.nat == NatMode::Nftables;
    let comes = |protocol, stranger| Packet {
        hook: FORWARD,
        arrives: (wan.to_owned(), wan_index),
        leaves: Some(inside.clone()),
        source: stranger,
        destination: host,
        protocol,
        source_port: STRANGERS_PORT,
        destination_port: port,
        established: false,
        translated,
        mark: if translated { facts.setup.mark } else { 0 },
    };
    let goes = |protocol, stranger| Packet {
        arrives: inside.clone(),
        leaves: Some((wan.to_owned(), wan_index)),
        source: host,
        destination: stranger,
        source_port: port,
        destination_port: STRANGERS_PORT,
        established: true,
        mark: 0,
        ..comes(protocol, stranger)
    };
    let what = if translated { "traffic that a mapping lets in" } else { "traffic of the provider's NAT" };
    let wish = Wish::Forward { wan, lan, dnat: translated };
    let integrate = facts.setup.integrate;
    let [udp, tcp] =
        [UDP, TCP].map(|protocol| of_all(STRANGERS.map(|stranger| walk(rules, &comes(protocol, stranger)))));
    let worst = udp.severity().max(tcp.severity());
    let affected: Vec<String> = [("UDP", &udp), ("TCP", &tcp)]
        .iter()
        .filter(|(_, whole)| whole.severity() == worst)
        .map(|(name, _)| (*name).to_owned())
        .collect();
    let affected = and(&affected);
    let first = if udp.severity() == worst { udp } else { tcp };
    let some = match first {
        Whole::Dropped(place) => {
            let by = Firewall::of(rules, &place);
            let seen = format!("{} drops {what} from {wan} to {lan} ({affected}; {place})", by.name());
            let finding = advised(Finding::new("firewall-forward-drops", seen), by, &place, wish);
            return Some(integration_first(finding, by, wish, integrate).at(wan));
        }
        Whole::Unclear(place, perhaps) => {
            let by = Firewall::of(rules, &place);
            let seen = format!(
                "{} drops {what} from {wan} to {lan} ({affected}; {place}) unless a rule accepts it that doctor does not \
                 understand ({perhaps})",
                by.name()
            );
            let finding = advised(Finding::new("firewall-forward-unclear", seen), by, &place, wish);
            return Some(integration_first(finding, by, wish, integrate).at(wan));
        }
        Whole::Some(place) => Some(place),
        Whole::Passes => None,
    };
    for protocol in [UDP, TCP] {
        let answers = of_all(STRANGERS.map(|stranger| walk(rules, &goes(protocol, stranger))));
        if let Whole::Dropped(place) = answers {
            let by = Firewall::of(rules, &place);
            let seen = format!("{} drops what {lan} answers to mapped traffic of {wan} ({place})", by.name());
            let finding = Finding::new("firewall-replies-drop", seen);
            return Some(advised(finding, by, &place, Wish::Replies { wan, lan }).at(wan));
        }
    }
    if let Some(place) = some {
        let by = Firewall::of(rules, &place);
        let seen = format!(
            "{} drops {what} from {wan} to {lan} where it comes from some sources ({affected}; {place})",
            by.name()
        );
        let todo =
            "see whether you mean them, such as a list of countries; those who are in it reach no mapping";
        let finding = Finding::new("firewall-forward-sources", seen).at(wan).todo(todo);
        return Some(finding.with("firewall", by.name()).with("chain", place.chain));
    }
    let whose = by_whom(rules);
    let seen = format!("{whose}: {what} passes from {wan} to {lan}, and so do the answers");
    Some(Finding::new("firewall-forward", seen).at(wan))
}

/// What becomes of the packets of all strangers.
enum Whole {
    Passes,
    /// Those of some are dropped.
    Some(Place),
    Unclear(Place, String),
    Dropped(Place),
}

impl Whole {
    /// The worse, the more.
    fn severity(&self) -> u8 {
        match self {
            Whole::Passes => 0,
            Whole::Some(_) => 1,
            Whole::Unclear(..) => 2,
            Whole::Dropped(_) => 3,
        }
    }
}

fn of_all(outcomes: [Outcome; 3]) -> Whole {
    let all = outcomes.iter().all(|outcome| matches!(outcome, Outcome::Dropped(_)));
    let passes = outcomes.contains(&Outcome::Passes);
    let (mut dropped, mut unclear) = (None, None);
    for outcome in outcomes {
        match outcome {
            Outcome::Passes => {}
            Outcome::Dropped(place) => {
                dropped.get_or_insert(place);
            }
            Outcome::Unclear(place, perhaps) => {
                unclear.get_or_insert((place, perhaps));
            }
        }
    }
    match (dropped, unclear) {
        (Some(place), _) if all => Whole::Dropped(place),
        (Some(place), _) if passes => Whole::Some(place),
        (_, Some((place, perhaps))) => Whole::Unclear(place, perhaps),
        _ => Whole::Passes,
    }
}

/// Where a packet is dropped, under which id, and what of it is in doubt; `None` when it passes.
fn of_input(outcome: Outcome, id: &'static str) -> Option<(Place, &'static str, String)> {
    match outcome {
        Outcome::Passes => None,
        Outcome::Dropped(place) => Some((place, id, String::new())),
        Outcome::Unclear(place, perhaps) => {
            let doubt = format!(" unless a rule accepts it that doctor does not understand ({perhaps})");
            Some((place, "firewall-input-unclear", doubt))
        }
    }
}

fn advised(finding: Finding, by: Firewall, place: &Place, wish: Wish<'_>) -> Finding {
    let (todo, commands) = remedy(by, place, wish);
    let finding = finding.todo(todo).with("firewall", by.name()).with("chain", place.chain.clone());
    commands.into_iter().fold(finding, Finding::command)
}

/// Where portferry can do it by itself, that is said before what to type.
fn integration_first(finding: Finding, by: Firewall, wish: Wish<'_>, integrate: Integrate) -> Finding {
    let can = matches!(wish, Wish::Forward { dnat: true, .. });
    let foreign = by.foreign().filter(|foreign| can && !Foreign::wanted(integrate).contains(foreign));
    match (foreign, finding.todo.clone()) {
        (Some(_), Some(by_hand)) => finding.todo(format!(
            "set integrate = \"auto\" in [firewall] of the configuration and restart portferry, which then keeps a rule there by \
             itself; or by hand: {by_hand}"
        )),
        _ => finding,
    }
}

/// Whether our rule is where it is wanted. While no gateway runs there is none to be.
fn integration(facts: &Facts) -> Vec<Finding> {
    let runs = facts.gateway.status().is_some();
    let judged = facts.foreign.iter().filter_map(|&(foreign, state)| {
        let (name, place) = (foreign.name(), foreign.place());
        let finding = match state {
            State::Absent => return None,
            State::There => {
                Finding::new("firewall-rule", format!("{name} has portferry's rule for mappings ({place})"))
            }
            State::Missing if !runs => return None,
            State::Missing => Finding::new(
                "firewall-rule-missing",
                format!("{name} has no rule of portferry's ({place}), although [firewall] integrate wants one"),
            )
            .todo("see the gateway's log for why; the running one may have been started before that was set: restart it"),
            State::Closed => Finding::new(
                "firewall-rule-closed",
                format!("{name} lets nobody else change its table, so it has no rule of portferry's ({place})"),
            )
            .todo("have it allow that; until then IPv6 pinholes stay closed")
            .command("sed -i '/^NftablesTableOwner=/d' /etc/firewalld/firewalld.conf")
            .command("echo NftablesTableOwner=no >> /etc/firewalld/firewalld.conf")
            .command("systemctl restart firewalld"),
        };
        Some(finding.with("firewall", name))
    });
    judged.collect()
}

/// Who filters at all.
fn by_whom(rules: &Ruleset) -> String {
    let mut names: Vec<String> = Vec::new();
    for chain in &rules.chains {
        let filters = chain
            .base
            .as_ref()
            .is_some_and(|base| base.kind == "filter" && matches!(base.hook, INPUT | FORWARD));
        if filters {
            let family = match chain.table.family {
                crate::nft::reading::Family::Ip => "ip",
                crate::nft::reading::Family::Inet => "inet",
            };
            let table = format!("{family} {}", chain.table.name);
            let place = Place { table: table.clone(), chain: chain.name.clone(), by: "" };
            let name = match Firewall::of(rules, &place) {
                Firewall::Nftables => format!("table {table}"),
                by => by.name().to_owned(),
            };
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    if names.is_empty() { "no rules".to_owned() } else { and(&names) }
}

/// Searches and HTTP of the LAN.
fn input(facts: &Facts, rules: &Ruleset, lan: &str) -> Vec<Finding> {
    let (Some((host, _)), Some(inside)) = (host(facts, lan), lan_side(facts, lan)) else { return Vec::new() };
    let Some((own, _)) = facts.addresses(lan).first().copied() else { return Vec::new() };
    let to = |destination, protocol, destination_port| Packet {
        hook: INPUT,
        arrives: inside.clone(),
        leaves: None,
        source: host,
        destination,
        protocol,
        source_port: STRANGERS_PORT,
        destination_port,
        established: false,
        translated: false,
        mark: 0,
    };
    let port = facts.setup.http_port;
    let wans = facts.setup.uplinks.iter().map(|uplink| uplink.interface.as_str());
    let shared = wans.into_iter().find(|wan| zone(rules, wan) == zone(rules, lan));
    let mut all = Vec::new();
    for (id, packet, protocol, port, what) in [
        (
            "firewall-search-drops",
            to(wire::ssdp::GROUP_V4, UDP, wire::ssdp::PORT),
            "udp",
            wire::ssdp::PORT,
            "searches of applications",
        ),
        ("firewall-http-drops", to(own, TCP, port), "tcp", port, "requests of applications"),
    ] {
        if let Some((place, id, doubt)) = of_input(walk(rules, &packet), id) {
            let by = Firewall::of(rules, &place);
            let seen = format!(
                "{} drops {what} that come by {lan} ({} port {port}; {place}){doubt}",
                by.name(),
                protocol.to_uppercase()
            );
            let wish = Wish::Input { lan, protocol, port, shared };
            all.push(advised(Finding::new(id, seen), by, &place, wish).at(lan));
        }
    }
    let pcp = wire::pcp::SERVER_PORT;
    // The others work, so it is no fault.
    if let (true, Outcome::Dropped(place)) = (facts.setup.pcp, walk(rules, &to(own, UDP, pcp))) {
        let by = Firewall::of(rules, &place);
        let seen = format!(
            "{} drops what applications ask in PCP and NAT-PMP by {lan} (UDP port {pcp}; {place}): those that do not speak UPnP get no port",
            by.name()
        );
        let wish = Wish::Input { lan, protocol: "udp", port: pcp, shared };
        return [all, vec![advised(Finding::new("firewall-pcp-drops", seen), by, &place, wish).at(lan)]]
            .concat();
    }
    if all.is_empty() {
        let seen = format!("searches (UDP 1900) and requests (TCP {port}) of {lan} are let in");
        all.push(Finding::new("firewall-input", seen).at(lan));
    }
    all
}

/// Whether this router hears what a LAN host answers to it; if not, its silence says nothing.
pub(super) fn hears(facts: &Facts, client: SocketAddrV4) -> bool {
    let Ok(rules) = &facts.rules else { return true };
    let on_link = |(own, prefix_len): &(Ipv4Addr, u8)| {
        let link = InterfaceAddress { addr: IpAddr::V4(*own), prefix_len: *prefix_len };
        link.contains(IpAddr::V4(*client.ip()))
    };
    let mut ways = facts.setup.lan.iter().filter_map(|lan| {
        let (own, _) = facts.addresses(lan).into_iter().find(on_link)?;
        Some((lan_side(facts, lan)?, own))
    });
    let Some((arrives, own)) = ways.next() else { return true };
    let answer = Packet {
        hook: INPUT,
        arrives,
        leaves: None,
        source: *client.ip(),
        destination: own,
        protocol: TCP,
        source_port: client.port(),
        destination_port: STRANGERS_PORT,
        established: true,
        translated: false,
        mark: 0,
    };
    !matches!(walk(rules, &answer), Outcome::Dropped(_))
}

/// What the provider's server says.
fn answers(facts: &Facts, rules: &Ruleset, uplink: &UplinkSetup) -> Option<Finding> {
    let wan = uplink.interface.as_str();
    let (own, _) = *facts.addresses(wan).first()?;
    let used = facts.gateway.uplink(&uplink.interface).and_then(|status| status.server);
    let server = match used.or(uplink.servers.first().copied()).map(|server| server.ip()) {
        Some(IpAddr::V4(server)) => server,
        _ => STRANGERS[0],
    };
    let answer = Packet {
        hook: INPUT,
        arrives: lan_side(facts, wan)?,
        leaves: None,
        source: server,
        destination: own,
        protocol: UDP,
        source_port: wire::pcp::SERVER_PORT,
        destination_port: STRANGERS_PORT,
        established: true,
        translated: false,
        mark: 0,
    };
    if let Some((place, id, doubt)) = of_input(walk(rules, &answer), "firewall-uplink-drops") {
        let by = Firewall::of(rules, &place);
        let seen =
            format!("{} drops the answers of the provider's server on {wan} ({place}){doubt}", by.name());
        let finding = Finding::new(id, seen);
        return Some(advised(finding, by, &place, Wish::Answers { wan }).at(wan));
    }
    let announcement = Packet {
        destination: wire::pcp::ANNOUNCE_GROUP_V4,
        destination_port: wire::pcp::CLIENT_PORT,
        established: false,
        ..answer
    };
    let Outcome::Dropped(place) = walk(rules, &announcement) else { return None };
    let by = Firewall::of(rules, &place);
    let seen = format!(
        "{} drops announcements on {wan} (UDP port 5350; {place}): that the provider's server has lost its state is noticed later, \
         at the next renewal",
        by.name()
    );
    let todo = format!("if you care, let UDP port 5350 in on {wan}");
    Some(Finding::new("firewall-announcements-drop", seen).at(wan).todo(todo))
}
