//! The table of pinholes: its sets, chains and rules, written once when it is created, and the elements that come and go.
//! Rules never depend on a pinhole; only elements do.

use netlink_bindings::nftables::VerdictCode;

use super::super::batch::{Batch, Element, Kind};
use super::super::rule::{
    NF_INET_FORWARD, Rule, TYPE_IFNAME, TYPE_INET_PROTO, TYPE_INET_SERVICE, TYPE_IPV6_ADDR, chain, concat,
    counting_set, delete, interface_key, plain_chain, push_port, set, table,
};
use super::super::ruleset::{FORWARD, LAN, WAN, forward_filter};
use super::{PRIORITY, PinholeRule, PinholesConfig};

/// `protocol . internal address . internal port`, anybody.
const ANYBODY: &str = "pinholes";
/// The same, and the remote address.
const BY_ADDRESS: &str = "pinholes_addr";
/// The same, and the remote port.
const BY_PORT: &str = "pinholes_port";
/// The same, and both.
const BY_BOTH: &str = "pinholes_addr_port";

/// Those whose elements come and go.
pub(super) const SETS: [&str; 4] = [ANYBODY, BY_ADDRESS, BY_PORT, BY_BOTH];

const PINHOLES: &str = "pinholes";

/// Deletes our table if there is one, and creates it without pinholes.
pub(super) fn recreate(batch: &mut Batch, config: &PinholesConfig) {
    delete(batch, &config.name);
    table(batch, &config.name);
    let t = config.name.as_str();
    let names = |names: &[String]| -> Vec<Element> {
        names.iter().map(|name| Element { key: interface_key(name).to_vec(), value: Vec::new() }).collect()
    };
    for (id, name, interfaces) in [(1, LAN, &config.lan_interfaces), (2, WAN, &config.wan_interfaces)] {
        set(batch, t, id, name, (TYPE_IFNAME, 16), None);
        batch.elements(Kind::NewElement, t, name, &names(interfaces));
    }
    for (id, name) in (3..).zip(SETS) {
        let (mut types, mut len) = (vec![TYPE_INET_PROTO, TYPE_IPV6_ADDR, TYPE_INET_SERVICE], 24);
        if has_address(name) {
            types.push(TYPE_IPV6_ADDR);
            len += 16;
        }
        if has_port(name) {
            types.push(TYPE_INET_SERVICE);
            len += 4;
        }
        counting_set(batch, t, id, name, (concat(&types), len));
    }

    plain_chain(batch, t, PINHOLES);
    for name in SETS {
        let mut rule = Rule::new().load_protocol(0).load_ipv6_destination_address(1).load_destination_port(5);
        let mut at = 6;
        if has_address(name) {
            rule = rule.load_ipv6_source_address(at);
            at += 4;
        }
        if has_port(name) {
            rule = rule.load_source_port(at);
        }
        rule = rule.member(name);
        if let Some(bits) = config.mark {
            rule = rule.mark(bits);
        }
        rule.verdict(VerdictCode::Accept).append(batch, t, PINHOLES);
    }

    chain(batch, t, FORWARD, "filter", NF_INET_FORWARD, PRIORITY);
    let inwards = |rule: Rule| rule.arriving_from_any(WAN).leaving_to_any(LAN);
    inwards(Rule::new().begun_this_way()).jump(PINHOLES).append(batch, t, FORWARD);
    if config.filter {
        forward_filter(batch, t, |rule| rule, &[Rule::echo_request]);
    }
}

fn has_address(set: &str) -> bool {
    matches!(set, BY_ADDRESS | BY_BOTH)
}

fn has_port(set: &str) -> bool {
    matches!(set, BY_PORT | BY_BOTH)
}

/// A pinhole's set, and its key there.
pub(super) fn entry(rule: &PinholeRule) -> (&'static str, Vec<u8>) {
    let mut key = vec![rule.protocol, 0, 0, 0];
    key.extend(rule.internal.octets());
    push_port(&mut key, rule.internal_port);
    let set = match (rule.remote, rule.remote_port) {
        (None, None) => ANYBODY,
        (Some(_), None) => BY_ADDRESS,
        (None, Some(_)) => BY_PORT,
        (Some(_), Some(_)) => BY_BOTH,
    };
    key.extend(rule.remote.iter().flat_map(std::net::Ipv6Addr::octets));
    if let Some(port) = rule.remote_port {
        push_port(&mut key, port);
    }
    (set, key)
}
