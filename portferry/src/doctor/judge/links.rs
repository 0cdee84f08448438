//! Interfaces, addresses, default routes, forwarding.

use engine::policy::InterfaceAddress;
use std::net::{IpAddr, Ipv4Addr};

use super::address::Kind;
use super::and;
use crate::config::NatMode;
use crate::doctor::facts::{Facts, Leaving, Role, UplinkSetup};
use crate::doctor::finding::Finding;
use crate::netlink::DefaultRoute;

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut all: Vec<Finding> = forwarding(facts).into_iter().collect();
    for lan in &facts.setup.lan {
        all.extend(lan_interface(facts, lan));
    }
    for uplink in &facts.setup.uplinks {
        all.extend(wan_interface(facts, uplink));
        all.extend(default_route(facts, uplink));
    }
    all.extend(facts.leaving.iter().map(|found| leaving(facts, found)));
    all
}

/// The kernel asks the interface that a packet comes in by; `net.ipv4.ip_forward` only sets all of them at once.
fn forwarding(facts: &Facts) -> Option<Finding> {
    let those = |wanted| facts.ports.iter().filter(move |(_, port)| port.forwarding == Some(wanted));
    let off: Vec<String> = those(false).map(|(name, _)| name.clone()).collect();
    if off.is_empty() {
        those(true).next()?;
        return Some(Finding::new("forwarding-on", "this machine forwards IPv4 packets"));
    }
    let seen = format!(
        "this machine forwards no IPv4 packets that come in by {} (net.ipv4.conf.*.forwarding = 0)",
        and(&off)
    );
    let finding = Finding::new("forwarding-off", seen)
        .todo("switch forwarding on, and keep it so with a file in /etc/sysctl.d, or in the network's configuration");
    // With slashes, for an interface's name may have dots.
    let command = |name: &String| format!("sysctl -w net/ipv4/conf/{name}/forwarding=1");
    Some(off.iter().map(command).fold(finding, Finding::command))
}

/// Whether a bound host's traffic takes the way that its mappings are at.
fn leaving(facts: &Facts, found: &Leaving) -> Finding {
    let Leaving { prefix, host, bound_to, interface } = found;
    if interface.as_ref() == Some(bound_to) {
        let seen = format!("what {host} sends leaves by {bound_to}, the uplink that it is bound to");
        return Finding::new("bound-host", seen).at(bound_to);
    }
    let way = match interface {
        Some(other) => format!("leaves by {other}"),
        None => "does not leave at all".to_owned(),
    };
    let seen = format!(
        "{host} is bound to {bound_to}, and what it sends {way}: nobody out there understands its answers"
    );
    let table = table_of(facts, bound_to);
    let todo =
        format!("have a rule lead it to a table whose default route is by {bound_to} (docs/uplinks.md)");
    let finding = Finding::new("bound-host-elsewhere", seen).at(bound_to);
    let finding = match table.route {
        Route::There => finding.todo(todo),
        Route::To(way) => {
            let route = format!("ip route replace default {way}dev {bound_to} table {}", table.number);
            finding.todo(todo).command(route)
        }
        Route::Unknown => finding.todo(format!(
            "{todo}; first `ip route add default via … dev {bound_to} table {}`, with the address of the router there, which is not \
             known here",
            table.number
        )),
    };
    // Other LANs stay where they are. Not 0: a VPN may have put 0.0.0.0/1 and 128.0.0.0/1 in the place of a default route.
    let main = "lookup main suppress_prefixlength 1";
    let rest = format!("from {prefix} lookup {}", table.number);
    // The longest prefix says whose a host is.
    let priority = 101 + 32_u8.saturating_sub(prefix.bits());
    finding
        .command(format!(
            "ip rule show | grep -q '^100:.*suppress_prefixlength 1' || ip rule add priority 100 {main}"
        ))
        .command(format!("ip rule add priority {priority} {rest}"))
}

/// A table of routes for the traffic of an uplink.
struct Table {
    number: u32,
    route: Route,
}

/// Its default route.
enum Route {
    There,
    /// "via 192.0.2.1 ", or nothing where none is needed.
    To(String),
    /// It needs a router's address.
    Unknown,
}

fn table_of(facts: &Facts, uplink: &str) -> Table {
    let interface = facts.interface(uplink);
    let is_own = |route: &&DefaultRoute| {
        !route.is_ipv6 && interface.is_some_and(|interface| interface.index == route.interface)
    };
    let links = &facts.links;
    if let Some(route) = links.other_default_routes.iter().find(is_own) {
        return Table { number: route.table, route: Route::There };
    }
    // A number for each uplink, and one that nobody else has.
    let all = facts.setup.uplinks.iter();
    let first = 100 + (1_u32..).zip(all).find(|(_, own)| own.interface == uplink).map_or(1, |(n, _)| n - 1);
    let taken = |number: &u32| links.other_default_routes.iter().any(|route| route.table == *number);
    let number = (first..).step_by(facts.setup.uplinks.len().max(1)).find(|number| !taken(number));
    let via = links.default_routes.iter().filter(is_own).find_map(|route| route.gateway);
    // A link with hardware addresses has more than one other side.
    let is_shared = interface.is_some_and(|interface| interface.mac.is_some());
    let route = match via {
        Some(IpAddr::V4(router)) => Route::To(format!("via {router} ")),
        Some(IpAddr::V6(router)) => Route::To(format!("via inet6 {router} ")),
        None if is_shared => Route::Unknown,
        None => Route::To(String::new()),
    };
    Table { number: number.unwrap_or(first), route }
}

fn lan_interface(facts: &Facts, name: &str) -> Option<Finding> {
    let Some(interface) = facts.interface(name) else {
        let seen = format!("there is no interface {name}");
        return Some(
            Finding::new("lan-interface-missing", seen).at(name).todo(format!(
                "bring {name} up, or correct lan.interfaces; these are there: {}",
                names(facts)
            )),
        );
    };
    if !interface.up {
        let finding =
            Finding::new("lan-interface-down", format!("{name} is down, or has no carrier")).at(name);
        let todo = "bring it up and look at its cable, or, of a bridge, at its ports";
        return Some(finding.todo(todo).command(format!("ip link set {name} up")));
    }
    let addresses = facts.addresses(name);
    let Some((first, len)) = addresses.first() else {
        let finding = Finding::new("lan-address-none", format!("{name} has no IPv4 address")).at(name);
        return Some(finding.todo("give it one: applications are served over IPv4"));
    };
    for uplink in &facts.setup.uplinks {
        for (wan, wan_len) in facts.addresses(&uplink.interface) {
            let shorter = wan_len.min(*len);
            let same = InterfaceAddress { addr: IpAddr::V4(*first), prefix_len: shorter };
            if wan_len < 32 && *len < 32 && same.contains(IpAddr::V4(wan)) {
                let wan_name = &uplink.interface;
                let seen = format!(
                    "{name} ({first}/{len}) and {wan_name} ({wan}/{wan_len}) are in the same network: answers go out by the wrong \
                     interface"
                );
                return Some(Finding::new("lan-wan-overlap", seen).at(name).todo(format!(
                    "give the LAN another network, for instance 192.168.{}.1/24, here and in the DHCP server; or change that \
                     of the router in front",
                    if first.octets()[2] == 77 { 78 } else { 77 }
                )));
            }
        }
    }
    let kind = Kind::of(*first);
    let seen = format!("{name} is up with {first}/{len}, a {} address", kind.words());
    Some(Finding::new("lan-interface", seen).at(name).with("address", first.to_string()))
}

fn names(facts: &Facts) -> String {
    let names = facts.links.interfaces.iter().map(|interface| interface.name.as_str());
    names.filter(|name| *name != "lo").collect::<Vec<_>>().join(", ")
}

fn wan_interface(facts: &Facts, uplink: &UplinkSetup) -> Option<Finding> {
    let name = uplink.interface.as_str();
    if uplink.role == Role::Spare && !facts.interface(name).is_some_and(|interface| interface.up) {
        let seen = format!(
            "{name}, a spare line, is down or not there: it could not take the place of another one now"
        );
        return Some(Finding::new("spare-down", seen).at(name));
    }
    let Some(interface) = facts.interface(name) else {
        let seen = format!("there is no interface {name}");
        let todo = format!(
            "correct wan.interface (or uplink.extra.interface), or bring {name} up; these are there: {}",
            names(facts)
        );
        return Some(Finding::new("wan-interface-missing", seen).at(name).todo(todo));
    };
    if !interface.up {
        let finding =
            Finding::new("wan-interface-down", format!("{name} is down, or has no carrier")).at(name);
        let todo = "bring it up; look at the cable, the modem, the dial-up";
        return Some(finding.todo(todo).command(format!("ip link set {name} up")));
    }
    let v6 = interface.addresses.iter().any(
        |(addr, _)| matches!(addr, IpAddr::V6(addr) if !addr.is_unicast_link_local() && !addr.is_loopback()),
    );
    let Some((addr, _)) = facts.addresses(name).first().copied() else {
        return Some(match (uplink.nat, v6) {
            (NatMode::None, true) => Finding::new(
                "wan-ds-lite",
                format!("{name} has IPv6 addresses only: IPv4 comes by a softwire (DS-Lite, MAP-E, 464XLAT)"),
            )
            .at(name),
            (NatMode::Nftables, true) => {
                Finding::new("wan-address-none", format!("{name} has IPv6 addresses only")).at(name).todo(
                    "with DS-Lite set wan.nat = \"none\": the provider's NAT is the only one; else see why there is no IPv4 address",
                )
            }
            (_, false) => Finding::new("wan-address-none", format!("{name} has no address"))
                .at(name)
                .todo("see what the DHCP client, or the dial-up, of that interface says"),
        });
    };
    Some(of_kind(name, addr))
}

fn of_kind(name: &str, addr: Ipv4Addr) -> Finding {
    let kind = Kind::of(addr);
    let seen = |more: &str| format!("{name} is up with {addr}, a {} address{more}", kind.words());
    let finding = match kind {
        Kind::Public => Finding::new("wan-address-public", seen("")),
        Kind::Private => Finding::new("wan-address-private", seen(": there is another router in front")),
        Kind::Shared => Finding::new("wan-address-shared", seen(": there is a provider's NAT")),
        Kind::DsLite => Finding::new("wan-ds-lite", seen(": there is a provider's NAT (AFTR)")),
        Kind::LinkLocal => Finding::new("wan-address-link-local", seen(": nobody gave it one"))
            .todo("see what the DHCP client of that interface says, and whether the modem is connected"),
        Kind::Documentation | Kind::Reserved => Finding::new("wan-address-reserved", seen(""))
            .todo("ask your provider: nobody in the Internet can reach such an address"),
    };
    finding.at(name).with("address", addr.to_string())
}

/// Whether what no other uplink takes leaves by the usual one: by what the kernel says, for rules and other tables count as well; if it
/// says nothing, by the main table, and by others.
fn default_route(facts: &Facts, uplink: &UplinkSetup) -> Option<Finding> {
    let name = uplink.interface.as_str();
    let interface = facts.interface(name)?;
    let usual = uplink.role == Role::Usual;
    let way_out = facts.way_out.as_deref().filter(|_| usual);
    // By metric.
    let v4 = |routes: &'_ [DefaultRoute]| {
        routes.iter().filter(|route| !route.is_ipv6).cloned().collect::<Vec<_>>()
    };
    let (main, others) = (v4(&facts.links.default_routes), v4(&facts.links.other_default_routes));
    let is_own = |route: &&DefaultRoute| route.interface == interface.index;
    let in_main = main.iter().find(is_own);
    let own = in_main.or_else(|| others.iter().find(is_own));
    let is_good = match (way_out, in_main, main.first()) {
        (Some(way), ..) => way == name,
        (None, Some(own), Some(first)) => !usual || first.metric >= own.metric,
        (None, ..) => own.is_some(),
    };
    if is_good {
        let seen = match own {
            Some(own) => {
                let way = own.gateway.map_or(String::new(), |gateway| format!(" to {gateway}"));
                format!("the default route leads out by {name}{way}")
            }
            None => format!("what the LAN sends leaves by {name}"),
        };
        return Some(Finding::new("default-route", seen).at(name));
    }
    // Its routes may be in another table, or come when they are needed.
    if !usual {
        return None;
    }
    // IPv4 goes through a softwire's device, PCP does not.
    let is_softwire = uplink.nat == NatMode::None && facts.addresses(name).is_empty();
    let by_index = |index| facts.links.interfaces.iter().find(move |interface| interface.index == index);
    let of_route = |route: &DefaultRoute| by_index(route.interface).map_or("?", |found| found.name.as_str());
    let Some(other) = way_out.or_else(|| main.first().map(of_route)) else {
        let v6 = facts.links.default_routes.iter().any(|route| route.is_ipv6 && is_own(&route));
        if is_softwire && v6 {
            return None;
        }
        let seen = "there is no default route: nothing of the LAN gets out";
        let todo = format!("see what the DHCP client, or the dial-up, of {name} says");
        return Some(Finding::new("default-route-none", seen).at(name).todo(todo));
    };
    let is_spare = |spare: &UplinkSetup| spare.role == Role::Spare && spare.interface == other;
    // A spare line has taken its place, as it should.
    if facts.setup.uplinks.iter().any(is_spare) {
        let seen = format!("the default route leads out by {other}, a spare line, and not by {name}");
        return Some(Finding::new("default-route-spare", seen).at(name));
    }
    if is_softwire {
        return None;
    }
    let seen = format!("what the LAN sends leaves by {other}, not by {name}");
    let todo = format!(
        "if {other} is the way to your provider, or a VPN that everything goes through, set wan.interface = \"{other}\"; else see why \
         {name} has no default route, or one with a greater metric"
    );
    Some(Finding::new("default-route-elsewhere", seen).at(name).todo(todo))
}
