//! Whether the searches of applications reach the gateway, and only this one.

use std::net::IpAddr;

use super::and;
use crate::doctor::facts::{Facts, Gateway, Holder, Neighbour};
use crate::doctor::finding::Finding;

/// Programs that are gateways themselves; others that have the port do no harm.
const GATEWAYS: [&str; 5] = ["miniupnpd", "upnpd", "igdd", "linux-igd", "natpmpd"];

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut all = ports(facts);
    for lan in &facts.setup.lan {
        all.extend(interface(facts, lan));
    }
    all.extend(searches(facts));
    all.extend(neighbours(facts));
    all
}

fn name(holder: &Holder) -> String {
    match &holder.process {
        Some((pid, name)) => format!("{name} (process {pid})"),
        None => "another program".to_owned(),
    }
}

fn ports(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    let others: Vec<&Holder> = facts.ssdp.iter().filter(|holder| !holder.is_portferry()).collect();
    let mut gateways: Vec<String> = others
        .iter()
        .filter(|holder| holder.process.as_ref().is_some_and(|(_, name)| GATEWAYS.contains(&name.as_str())))
        .map(|holder| name(holder))
        .collect();
    gateways.sort();
    gateways.dedup();
    if !gateways.is_empty() {
        let seen = format!(
            "{} listens for searches on this machine, too: applications find two gateways",
            and(&gateways)
        );
        all.push(
            Finding::new("ssdp-port-shared", seen)
                .todo("stop it and have it not start again: portferry takes its place"),
        );
    }
    let ours = facts.ssdp.iter().any(Holder::is_portferry);
    // Without root one sees no other user's processes.
    let seen_by_name = facts.ssdp.iter().all(|holder| holder.process.is_some());
    match &facts.gateway {
        Gateway::Running { .. } if ours => {
            all.push(Finding::new("ssdp-port", "portferry listens for searches (UDP port 1900)"));
        }
        Gateway::Running { .. } if seen_by_name => {
            let seen =
                "portferry runs and does not listen for searches (UDP port 1900): it serves no LAN interface";
            all.push(Finding::new("ssdp-port-not-ours", seen).todo(
                "see above what is wrong with the interfaces of lan.interfaces, and in the log why the port could not be opened",
            ));
        }
        Gateway::NotRunning => all.extend(http_port(facts)),
        _ => {}
    }
    all
}

/// Whether somebody has the port where applications would be served: on an address of the LAN, or on all of them.
fn http_port(facts: &Facts) -> Option<Finding> {
    let served: Vec<IpAddr> = facts
        .setup
        .lan
        .iter()
        .flat_map(|lan| facts.addresses(lan))
        .map(|(address, _)| IpAddr::V4(address))
        .collect();
    // `[::]` takes IPv4 along, unless the program has said otherwise.
    let is_in_the_way =
        |holder: &&Holder| holder.address.is_unspecified() || served.contains(&holder.address);
    let holders: Vec<&Holder> = facts.http.iter().filter(is_in_the_way).collect();
    let mut names: Vec<String> = holders.iter().map(|holder| name(holder)).collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return None;
    }
    let port = facts.setup.http_port;
    let seen =
        format!("TCP port {port}, where portferry would serve applications, is taken by {}", and(&names));
    let todo = if holders.iter().all(|holder| holder.is_portferry()) {
        "that is a portferry with another control socket: name its configuration with --config, or stop it"
    } else {
        "stop that program, or choose another port (lan.http_port)"
    };
    Some(Finding::new("http-port-taken", seen).todo(todo))
}

fn interface(facts: &Facts, lan: &str) -> Vec<Finding> {
    let Some(port) = facts.ports.get(lan) else { return Vec::new() };
    let mut all = Vec::new();
    if !port.multicast {
        let seen = format!("multicast is switched off on {lan}: searches are not received");
        all.push(
            Finding::new("lan-multicast-off", seen)
                .at(lan)
                .todo("switch it on, and see who switched it off")
                .command(format!("ip link set {lan} multicast on")),
        );
    }
    let status = facts.gateway.status();
    let up = facts.interface(lan).is_some_and(|interface| interface.up) && !facts.addresses(lan).is_empty();
    if let Some(joined) = facts.joined.as_ref().filter(|_| status.is_some() && up) {
        if joined.contains(lan) {
            all.push(
                Finding::new(
                    "ssdp-group",
                    format!("the group of searches, 239.255.255.250, is joined on {lan}"),
                )
                .at(lan),
            );
        } else {
            let seen = format!(
                "nobody has joined the group of searches, 239.255.255.250, on {lan}: the running portferry does not serve it"
            );
            all.push(
                Finding::new("ssdp-group-missing", seen)
                    .at(lan)
                    .todo("send portferry SIGHUP, so that it reads lan.interfaces again, or see its log"),
            );
        }
    }
    if port.bridge.as_ref().is_some_and(|bridge| bridge.snooping && !bridge.querier) {
        let heard = status.is_none_or(|status| status.searches > 0);
        let what = format!("the bridge {lan} snoops on multicast, and is no querier");
        if heard {
            let seen = format!("{what}; as long as nobody else on the LAN queries, it floods, which is fine");
            all.push(Finding::new("bridge-snooping", seen).at(lan));
        } else {
            let seen = format!(
                "{what}, and no search has arrived yet: switches and access points that snoop, too, may not send searches on"
            );
            all.push(
                Finding::new("bridge-snooping-unqueried", seen)
                    .at(lan)
                    .todo("if applications find no gateway, have the bridge query, or not snoop")
                    .command(format!("ip link set {lan} type bridge mcast_querier 1")),
            );
        }
    }
    all
}

fn searches(facts: &Facts) -> Vec<Finding> {
    let Gateway::Running { status, own_searches, .. } = &facts.gateway else { return Vec::new() };
    let mut all = Vec::new();
    let served = facts.setup.lan.iter().any(|lan| {
        let serves = status.lan.iter().any(|own| own.name == *lan && !own.addresses.is_empty());
        serves && facts.ports.get(lan).is_some_and(|port| port.multicast)
    });
    if let Some((before, after)) = own_searches
        && served
        && status.version == env!("CARGO_PKG_VERSION")
        && before == after
    {
        let seen = "a search that doctor sent on the LAN did not reach the gateway";
        all.push(
            Finding::new("search-lost", seen)
                .todo("see under Firewall whether UDP port 1900 is dropped, and whether multicast is on"),
        );
    }
    if status.searches > 0 {
        let seen = match status.searches {
            1 => "a search of a LAN host has arrived since the start".to_owned(),
            many => format!("{many} searches of LAN hosts have arrived since the start"),
        };
        all.push(Finding::new("searches-heard", seen).with("searches", status.searches));
    } else {
        let seen = "no search of a LAN host has arrived since the start: either no application runs that uses UPnP, or it does not reach us";
        all.push(Finding::new("searches-none", seen).todo("start an application, and run doctor again"));
    }
    all
}

fn neighbours(facts: &Facts) -> Vec<Finding> {
    let one = |neighbour: &Neighbour| {
        let Neighbour { interface, address, location, server } = neighbour;
        let who =
            server.as_ref().map_or(String::new(), |server| format!(", which calls itself \"{server}\""));
        let own = facts.addresses(interface).iter().any(|(addr, _)| addr == address);
        let place = if own { "this router itself" } else { "another machine" };
        let seen = format!(
            "there is another gateway on {interface}: {address} ({place}{who}); an application may take it for the right one"
        );
        let todo = if own {
            "stop that program: portferry takes its place".to_owned()
        } else {
            format!("switch UPnP off at {address} (an access point needs none), or take it off this LAN")
        };
        Finding::new("other-gateway", seen)
            .at(interface)
            .todo(todo)
            .with("address", address.to_string())
            .with("location", location.clone())
    };
    facts.neighbours.iter().map(one).collect()
}
