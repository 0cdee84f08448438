//! What an application on the LAN hears from the gateway, and whether it would go on then.

use super::address::Kind;
use crate::doctor::facts::{ControlPoint, Facts};
use crate::doctor::finding::Finding;

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    if facts.control_points.is_empty() {
        let why = match facts.gateway.status() {
            None => "the gateway was not asked: it does not run, or does not answer",
            Some(_) => "the gateway serves no LAN interface",
        };
        return vec![Finding::new("control-point-skipped", why)];
    }
    facts.control_points.iter().map(|one| control_point(facts, one)).collect()
}

fn control_point(facts: &Facts, one: &ControlPoint) -> Finding {
    let ControlPoint { interface, address, answer } = one;
    let port = facts.setup.http_port;
    let Some(igd) = answer else {
        let seen = format!("http://{address}:{port} does not give the gateway's description to {interface}");
        return Finding::new("control-point-http-silent", seen).at(interface).todo(format!(
            "see under Firewall whether TCP port {port} is dropped, and in the log whether it could be opened"
        ));
    };
    let status = igd.status.as_deref().unwrap_or("nothing");
    let external = igd.external.map_or("no address".to_owned(), |addr| addr.to_string());
    let Some(addr) = igd.external.filter(|_| status == "Connected") else {
        let seen = format!("applications on {interface} hear \"{status}\" and {external}, and give up");
        return Finding::new("control-point-disconnected", seen)
            .at(interface)
            .todo("see under the provider's NAT why there is no external address");
    };
    let kind = Kind::of(addr);
    if kind != Kind::Public {
        let seen = format!(
            "applications on {interface} hear \"Connected\" and {addr}, a {} address: many take that for a gateway that is not connected",
            kind.words()
        );
        return Finding::new("control-point-address-refused", seen)
            .at(interface)
            .with("external", addr.to_string())
            .todo("nobody in the Internet reaches such an address: see under NATs on the way");
    }
    let seen = format!("applications on {interface} hear \"{status}\" and the external address {addr}");
    Finding::new("control-point", seen).at(interface).with("external", addr.to_string())
}
