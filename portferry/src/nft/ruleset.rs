//! Our table: its sets, chains and rules, written once when it is created, and the elements that come and go.
//! Rules never depend on a mapping; only elements do.

use std::net::{Ipv4Addr, SocketAddrV4};

use netlink_bindings::nftables::{CtKeys, VerdictCode};

use super::batch::{Batch, Element, Kind};
use super::rule::{
    CT_STATE_ESTABLISHED_OR_RELATED, CT_STATE_NEW, CT_STATUS_DNAT, NF_INET_FORWARD, NF_INET_POST_ROUTING,
    NF_INET_PRE_ROUTING, Rule, TYPE_IFNAME, TYPE_INET_PROTO, TYPE_INET_SERVICE, TYPE_IPV4_ADDR, chain,
    concat, delete, interface_key, push_port, set, table,
};
use super::{FORWARD_PRIORITY, POSTROUTING_PRIORITY, PREROUTING_PRIORITY, TableConfig};

/// `protocol . external port : internal address . internal port`, any remote peer.
pub(super) const PORTS: &str = "ports";
/// `protocol . external port . remote peer : internal address . internal port`.
pub(super) const PEERS: &str = "peers";
/// `protocol . internal address . internal port : external port`, for flows that a mapped host starts.
pub(super) const SOURCES: &str = "sources";
/// Names of the LAN interfaces.
const LAN: &str = "lan";
/// Names of the interfaces towards the Internet, in use or not.
const WAN: &str = "wan";

const PREROUTING: &str = "prerouting";
const FORWARD: &str = "forward";
const POSTROUTING: &str = "postrouting";

/// Deletes our table if there is one, and creates it empty of mappings.
pub(super) fn recreate(batch: &mut Batch, config: &TableConfig) {
    delete(batch, &config.name);
    table(batch, &config.name);
    let t = config.name.as_str();
    let service_key = concat(&[TYPE_INET_PROTO, TYPE_INET_SERVICE]);
    let host = (concat(&[TYPE_IPV4_ADDR, TYPE_INET_SERVICE]), 8);
    set(batch, t, 1, PORTS, (service_key, 8), Some(host));
    set(batch, t, 2, PEERS, (concat(&[TYPE_INET_PROTO, TYPE_INET_SERVICE, TYPE_IPV4_ADDR]), 12), Some(host));
    set(batch, t, 3, LAN, (TYPE_IFNAME, 16), None);
    set(batch, t, 4, WAN, (TYPE_IFNAME, 16), None);
    let names = |names: &[String]| -> Vec<Element> {
        let element = |name: &String| Element { key: interface_key(name).to_vec(), value: Vec::new() };
        names.iter().map(element).collect()
    };
    batch.elements(Kind::NewElement, t, LAN, &names(&config.lan_interfaces));
    let wans = [std::slice::from_ref(&config.wan_interface), &config.spare_interfaces].concat();
    batch.elements(Kind::NewElement, t, WAN, &names(&wans));

    chain(batch, t, PREROUTING, "nat", NF_INET_PRE_ROUTING, PREROUTING_PRIORITY);
    let arriving = || Rule::new().ipv4().arriving_from(&config.wan_interface).for_this_router();
    arriving()
        .load_protocol(0)
        .load_destination_port(1)
        .load_source_address(2)
        .map(PEERS)
        .dnat()
        .append(batch, t, PREROUTING);
    arriving().load_protocol(0).load_destination_port(1).map(PORTS).dnat().append(batch, t, PREROUTING);

    if config.forward_filter {
        chain(batch, t, FORWARD, "filter", NF_INET_FORWARD, FORWARD_PRIORITY);
        let inwards = || Rule::new().arriving_from_any(WAN).leaving_to_any(LAN);
        Rule::new()
            .ct(CtKeys::State, CT_STATE_ESTABLISHED_OR_RELATED)
            .verdict(VerdictCode::Accept)
            .append(batch, t, FORWARD);
        inwards()
            .ct(CtKeys::State, CT_STATE_NEW)
            .ct(CtKeys::Status, CT_STATUS_DNAT)
            .verdict(VerdictCode::Accept)
            .append(batch, t, FORWARD);
        inwards().counter().verdict(VerdictCode::Drop).append(batch, t, FORWARD);
        Rule::new()
            .arriving_from_any(LAN)
            .leaving_to_any(WAN)
            .ct(CtKeys::State, CT_STATE_NEW)
            .tcp_without_syn()
            .reject_with_reset()
            .append(batch, t, FORWARD);
    }
    if config.masquerade {
        let source_key = concat(&[TYPE_INET_PROTO, TYPE_IPV4_ADDR, TYPE_INET_SERVICE]);
        set(batch, t, 5, SOURCES, (source_key, 12), Some((TYPE_INET_SERVICE, 2)));
        chain(batch, t, POSTROUTING, "nat", NF_INET_POST_ROUTING, POSTROUTING_PRIORITY);
        let leaving = || Rule::new().ipv4().arriving_from_any(LAN).leaving_to_any(WAN);
        leaving()
            .load_protocol(0)
            .load_source_address(1)
            .load_source_port(2)
            .map(SOURCES)
            .masquerade_to_port()
            .append(batch, t, POSTROUTING);
        leaving().masquerade().append(batch, t, POSTROUTING);
    }
}

/// Element of `ports`, or of `peers` if a remote peer is given.
pub(super) fn mapping_element(
    protocol: u8,
    external_port: u16,
    peer: Option<Ipv4Addr>,
    internal: Option<SocketAddrV4>,
) -> Element {
    let mut key = Vec::with_capacity(12);
    key.extend([protocol, 0, 0, 0]);
    push_port(&mut key, external_port);
    key.extend(peer.iter().flat_map(Ipv4Addr::octets));
    let mut value = Vec::with_capacity(8);
    if let Some(internal) = internal {
        value.extend(internal.ip().octets());
        push_port(&mut value, internal.port());
    }
    Element { key, value }
}

/// Element of `sources`.
pub(super) fn source_element(protocol: u8, internal: SocketAddrV4, external_port: Option<u16>) -> Element {
    let mut key = Vec::with_capacity(12);
    key.extend([protocol, 0, 0, 0]);
    key.extend(internal.ip().octets());
    push_port(&mut key, internal.port());
    Element { key, value: external_port.map(|port| port.to_be_bytes().to_vec()).unwrap_or_default() }
}
