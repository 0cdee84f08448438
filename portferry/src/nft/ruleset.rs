//! Our table: its sets, chains and rules, written once when it is created, and the elements that come and go.
//! Rules never depend on a mapping; only elements do.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use netlink_bindings::nftables::{CtKeys, VerdictCode};

use super::batch::{Batch, Element, Kind};
use super::rule::{
    CT_STATE_ESTABLISHED_OR_RELATED, CT_STATE_NEW, CT_STATUS_DNAT, NF_INET_FORWARD, NF_INET_POST_ROUTING,
    NF_INET_PRE_ROUTING, Rule, TYPE_IFNAME, TYPE_INET_PROTO, TYPE_INET_SERVICE, TYPE_IPV4_ADDR, chain,
    concat, delete, interface_key, plain_chain, push_port, set, table,
};
use super::{FORWARD_PRIORITY, POSTROUTING_PRIORITY, PREROUTING_PRIORITY, TableConfig};

/// `protocol . external port : internal address . internal port`, any remote peer.
const PORTS: &str = "ports";
/// `protocol . external port . remote peer : internal address . internal port`.
const PEERS: &str = "peers";
/// `protocol . internal address . internal port : external port`, for flows that a mapped host starts.
const SOURCES: &str = "sources";
/// `protocol . internal address . internal port`, where the external port is the same.
const KEPT: &str = "kept";
/// `protocol . external port`: nobody else's flows leave by it.
const MAPPED: &str = "mapped";
/// `protocol . outermost address . port : internal address . internal port`, any LAN host.
const HAIRPIN: &str = "hairpin";
/// The same for one LAN host.
const HAIRPIN_PEERS: &str = "hairpin_peers";
/// `protocol . internal address . internal port : outermost address . port`.
const HAIRPIN_SOURCES: &str = "hairpin_sources";
/// Addresses that LAN hosts reach mappings by.
const HAIRPIN_ADDRESSES: &str = "hairpin_addresses";
/// Those of the WAN interface among them.
const WAN_ADDRESSES: &str = "wan_addresses";
/// `LAN interface . LAN interface`, each with itself.
const HAIRPIN_LINKS: &str = "hairpin_links";
/// `protocol . internal address . internal port`, where a mapping leads any remote peer.
const MARKED: &str = "marked";
/// `protocol . internal address . internal port . remote peer`.
const MARKED_PEERS: &str = "marked_peers";
/// Names of the LAN interfaces.
pub(super) const LAN: &str = "lan";
/// Names of the interfaces towards the Internet, in use or not.
pub(super) const WAN: &str = "wan";

/// Those whose elements come and go.
pub(super) const SETS: [&str; 12] = [
    PORTS,
    PEERS,
    SOURCES,
    KEPT,
    MAPPED,
    HAIRPIN,
    HAIRPIN_PEERS,
    HAIRPIN_SOURCES,
    HAIRPIN_ADDRESSES,
    WAN_ADDRESSES,
    MARKED,
    MARKED_PEERS,
];

const PREROUTING: &str = "prerouting";
pub(super) const FORWARD: &str = "forward";
const MARK: &str = "mark";
const POSTROUTING: &str = "postrouting";

/// Deletes our table if there is one, and creates it empty of mappings.
pub(super) fn recreate(batch: &mut Batch, config: &TableConfig) {
    delete(batch, &config.name);
    table(batch, &config.name);
    let t = config.name.as_str();
    let service_key = concat(&[TYPE_INET_PROTO, TYPE_INET_SERVICE]);
    let source_key = concat(&[TYPE_INET_PROTO, TYPE_IPV4_ADDR, TYPE_INET_SERVICE]);
    let peer_key = concat(&[TYPE_INET_PROTO, TYPE_IPV4_ADDR, TYPE_INET_SERVICE, TYPE_IPV4_ADDR]);
    let host = (concat(&[TYPE_IPV4_ADDR, TYPE_INET_SERVICE]), 8);
    set(batch, t, 1, PORTS, (service_key, 8), Some(host));
    set(batch, t, 2, PEERS, (concat(&[TYPE_INET_PROTO, TYPE_INET_SERVICE, TYPE_IPV4_ADDR]), 12), Some(host));
    set(batch, t, 3, LAN, (TYPE_IFNAME, 16), None);
    set(batch, t, 4, WAN, (TYPE_IFNAME, 16), None);
    set(batch, t, 5, SOURCES, (source_key, 12), Some((TYPE_INET_SERVICE, 2)));
    set(batch, t, 6, KEPT, (source_key, 12), None);
    let element = |key: Vec<u8>| Element { key, value: Vec::new() };
    let names = |names: &[String]| -> Vec<Element> {
        names.iter().map(|name| element(interface_key(name).to_vec())).collect()
    };
    batch.elements(Kind::NewElement, t, LAN, &names(&config.lan_interfaces));
    let wans = [std::slice::from_ref(&config.wan_interface), &config.spare_interfaces].concat();
    batch.elements(Kind::NewElement, t, WAN, &names(&wans));
    if config.masquerade {
        set(batch, t, 7, MAPPED, (service_key, 8), None);
    }
    if config.hairpin {
        set(batch, t, 8, HAIRPIN, (source_key, 12), Some(host));
        set(batch, t, 9, HAIRPIN_PEERS, (peer_key, 16), Some(host));
        set(batch, t, 10, HAIRPIN_SOURCES, (source_key, 12), Some(host));
        set(batch, t, 11, HAIRPIN_ADDRESSES, (TYPE_IPV4_ADDR, 4), None);
        set(batch, t, 12, WAN_ADDRESSES, (TYPE_IPV4_ADDR, 4), None);
        set(batch, t, 13, HAIRPIN_LINKS, (concat(&[TYPE_IFNAME, TYPE_IFNAME]), 32), None);
        let addresses: BTreeSet<Ipv4Addr> = config.wan_addresses.iter().copied().collect();
        let addresses: Vec<_> = addresses.iter().map(|addr| element(addr.octets().to_vec())).collect();
        for set in [HAIRPIN_ADDRESSES, WAN_ADDRESSES] {
            batch.elements(Kind::NewElement, t, set, &addresses);
        }
        let links = config.lan_interfaces.iter().map(|name| element([interface_key(name); 2].concat()));
        batch.elements(Kind::NewElement, t, HAIRPIN_LINKS, &links.collect::<Vec<_>>());
    }
    if config.mark.is_some() {
        set(batch, t, 14, MARKED, (source_key, 12), None);
        set(batch, t, 15, MARKED_PEERS, (peer_key, 16), None);
    }

    chain(batch, t, PREROUTING, "nat", NF_INET_PRE_ROUTING, PREROUTING_PRIORITY);
    let by_port = |rule: Rule| rule.load_protocol(0).load_destination_port(1);
    let arriving = || Rule::new().ipv4().arriving_from(&config.wan_interface).for_this_router();
    by_port(arriving()).load_source_address(2).map(PEERS).dnat().append(batch, t, PREROUTING);
    by_port(arriving()).map(PORTS).dnat().append(batch, t, PREROUTING);
    if config.hairpin {
        let from_lan = || Rule::new().ipv4().arriving_from_any(LAN);
        let by_outermost =
            || from_lan().load_protocol(0).load_destination_address(1).load_destination_port(2);
        let by_wan = || by_port(from_lan().load_destination_address(0).member(WAN_ADDRESSES));
        by_outermost().load_source_address(3).map(HAIRPIN_PEERS).dnat().append(batch, t, PREROUTING);
        by_outermost().map(HAIRPIN).dnat().append(batch, t, PREROUTING);
        by_wan().load_source_address(2).map(PEERS).dnat().append(batch, t, PREROUTING);
        by_wan().map(PORTS).dnat().append(batch, t, PREROUTING);
    }

    if config.forward_filter || config.mark.is_some() {
        chain(batch, t, FORWARD, "filter", NF_INET_FORWARD, FORWARD_PRIORITY);
    }
    if let Some(bits) = config.mark {
        plain_chain(batch, t, MARK);
        let to = || Rule::new().ipv4().load_protocol(0).load_destination_address(1).load_destination_port(2);
        for rule in [to().member(MARKED), to().load_source_address(3).member(MARKED_PEERS)] {
            rule.mark(bits).verdict(VerdictCode::Accept).append(batch, t, MARK);
        }
        // All packets of a flow, so before what is established is accepted.
        let translated = || Rule::new().ipv4().ct(CtKeys::Status, CT_STATUS_DNAT);
        translated().arriving_from_any(WAN).leaving_to_any(LAN).jump(MARK).append(batch, t, FORWARD);
        if config.hairpin {
            translated().arriving_from_any(LAN).leaving_to_any(LAN).jump(MARK).append(batch, t, FORWARD);
        }
    }
    if config.forward_filter {
        // Of IPv6 it is the pinholes' table that does it.
        forward_filter(batch, t, Rule::ipv4, &[]);
    }
    chain(batch, t, POSTROUTING, "nat", NF_INET_POST_ROUTING, POSTROUTING_PRIORITY);
    let by_source = |rule: Rule| rule.load_protocol(0).load_source_address(1).load_source_port(2);
    if config.hairpin {
        // Who else's DNAT leads back by such an address has to be translated, too, or would not work.
        let back = |rule: Rule| {
            rule.ct(CtKeys::Status, CT_STATUS_DNAT).load_original(CtKeys::DstIp, 0).member(HAIRPIN_ADDRESSES)
        };
        by_source(back(Rule::new().ipv4().arriving_from_any(LAN).leaving_to_any(LAN)))
            .map(HAIRPIN_SOURCES)
            .snat()
            .append(batch, t, POSTROUTING);
        back(Rule::new().ipv4().passing_any(HAIRPIN_LINKS)).masquerade().append(batch, t, POSTROUTING);
    }
    // A mapping leads in by the interface in use alone.
    let leaving = || Rule::new().ipv4().arriving_from_any(LAN).leaving_to(&config.wan_interface);
    by_source(leaving()).member(KEPT).masquerade().append(batch, t, POSTROUTING);
    by_source(leaving()).map(SOURCES).masquerade_to_port().append(batch, t, POSTROUTING);
    if config.masquerade {
        leaving()
            .load_protocol(0)
            .load_source_port(1)
            .member(MAPPED)
            .load_constant(&FREE_PORTS.0.to_be_bytes(), 0)
            .load_constant(&FREE_PORTS.1.to_be_bytes(), 1)
            .masquerade_to_ports()
            .append(batch, t, POSTROUTING);
        Rule::new().ipv4().arriving_from_any(LAN).leaving_to_any(WAN).masquerade().append(
            batch,
            t,
            POSTROUTING,
        );
    }
}

/// `nat.forward_filter` for one family: into the LAN comes what has begun, what this router let in, and what is listed besides; nothing
/// else does. The chain and both sets have these names in either table.
pub(super) fn forward_filter(
    batch: &mut Batch,
    table: &str,
    of_family: fn(Rule) -> Rule,
    besides: &[fn(Rule) -> Rule],
) {
    let inwards = || of_family(Rule::new()).arriving_from_any(WAN).leaving_to_any(LAN);
    Rule::new()
        .ct(CtKeys::State, CT_STATE_ESTABLISHED_OR_RELATED)
        .verdict(VerdictCode::Accept)
        .append(batch, table, FORWARD);
    inwards()
        .ct(CtKeys::State, CT_STATE_NEW)
        .ct(CtKeys::Status, CT_STATUS_DNAT)
        .verdict(VerdictCode::Accept)
        .append(batch, table, FORWARD);
    for more in besides {
        more(inwards()).verdict(VerdictCode::Accept).append(batch, table, FORWARD);
    }
    inwards().counter().verdict(VerdictCode::Drop).append(batch, table, FORWARD);
    of_family(Rule::new())
        .arriving_from_any(LAN)
        .leaving_to_any(WAN)
        .ct(CtKeys::State, CT_STATE_NEW)
        .tcp_without_syn()
        .reject_with_reset()
        .append(batch, table, FORWARD);
}

/// Where the kernel finds another port for who may not leave by its own, at random: that it is a mapped one, to the same remote
/// endpoint, is unlikely enough.
const FREE_PORTS: (u16, u16) = (1024, 65535);

/// An element, and of which set or map.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Entry {
    pub(super) set: &'static str,
    pub(super) element: Element,
}

/// Of `ports`, or of `peers` if a remote peer is given.
pub(super) fn port(protocol: u8, port: u16, peer: Option<Ipv4Addr>, internal: SocketAddrV4) -> Entry {
    let mut key = vec![protocol, 0, 0, 0];
    push_port(&mut key, port);
    key.extend(peer.iter().flat_map(Ipv4Addr::octets));
    entry(if peer.is_some() { PEERS } else { PORTS }, key, endpoint(internal))
}

/// Of `hairpin`, or of `hairpin_peers`.
pub(super) fn hairpin(
    protocol: u8,
    outermost: SocketAddrV4,
    peer: Option<Ipv4Addr>,
    internal: SocketAddrV4,
) -> Entry {
    let mut key = protocol_and(protocol, outermost);
    key.extend(peer.iter().flat_map(Ipv4Addr::octets));
    entry(if peer.is_some() { HAIRPIN_PEERS } else { HAIRPIN }, key, endpoint(internal))
}

/// Of `sources`, or of `kept`.
pub(super) fn source(protocol: u8, internal: SocketAddrV4, external_port: u16) -> Entry {
    let key = protocol_and(protocol, internal);
    if external_port == internal.port() {
        entry(KEPT, key, Vec::new())
    } else {
        entry(SOURCES, key, external_port.to_be_bytes().to_vec())
    }
}

/// Of `hairpin_sources`.
pub(super) fn hairpin_source(protocol: u8, internal: SocketAddrV4, outermost: SocketAddrV4) -> Entry {
    entry(HAIRPIN_SOURCES, protocol_and(protocol, internal), endpoint(outermost))
}

/// Of `mapped`.
pub(super) fn mapped(protocol: u8, port: u16) -> Entry {
    let mut key = vec![protocol, 0, 0, 0];
    push_port(&mut key, port);
    entry(MAPPED, key, Vec::new())
}

/// Of `hairpin_addresses`.
pub(super) fn hairpin_address(addr: Ipv4Addr) -> Entry {
    entry(HAIRPIN_ADDRESSES, addr.octets().to_vec(), Vec::new())
}

/// Of `wan_addresses`.
pub(super) fn wan_address(addr: Ipv4Addr) -> Entry {
    entry(WAN_ADDRESSES, addr.octets().to_vec(), Vec::new())
}

/// Of `marked`, or of `marked_peers`.
pub(super) fn marked(protocol: u8, internal: SocketAddrV4, peer: Option<Ipv4Addr>) -> Entry {
    let mut key = protocol_and(protocol, internal);
    key.extend(peer.iter().flat_map(Ipv4Addr::octets));
    entry(if peer.is_some() { MARKED_PEERS } else { MARKED }, key, Vec::new())
}

fn entry(set: &'static str, key: Vec<u8>, value: Vec<u8>) -> Entry {
    Entry { set, element: Element { key, value } }
}

fn endpoint(socket: SocketAddrV4) -> Vec<u8> {
    let mut octets = socket.ip().octets().to_vec();
    push_port(&mut octets, socket.port());
    octets
}

fn protocol_and(protocol: u8, socket: SocketAddrV4) -> Vec<u8> {
    let mut octets = vec![protocol, 0, 0, 0];
    octets.extend(endpoint(socket));
    octets
}
