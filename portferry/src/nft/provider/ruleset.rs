//! The provider's table: its sets, chains and rules. Only a filter's prefix length that is new adds a rule; nothing else
//! that comes with a mapping does.

use std::net::IpAddr;

use netlink_bindings::nftables::{CtKeys, VerdictCode};
use wire::pcp::SERVER_PORT;

use super::super::batch::{Batch, Element, Kind};
use super::super::rule::{
    CT_STATE_ESTABLISHED_OR_RELATED, CT_STATE_NEW, CT_STATUS_DNAT, NF_INET_FORWARD, NF_INET_LOCAL_IN,
    NF_INET_LOCAL_OUT, NF_INET_POST_ROUTING, NF_INET_PRE_ROUTING, Rule, TYPE_IFNAME, TYPE_INET_PROTO,
    TYPE_INET_SERVICE, TYPE_IPV4_ADDR, TYPE_IPV6_ADDR, chain, concat, delete, interface_key, interval_set,
    plain_chain, set, table,
};
use super::super::{FORWARD_PRIORITY, POSTROUTING_PRIORITY, PREROUTING_PRIORITY};
use super::{Prefix, ProviderConfig};

/// One after the kernel's source translation (100), whatever the priority of the chain that decides it.
const HAIRPIN_PRIORITY: i32 = 101;
/// Before the kernel makes a flow of a packet (`raw`).
const UNTRACKED_PRIORITY: i32 = -300;

const OUTSIDE: &str = "outside";
const INSIDE: &str = "inside";
const SUBSCRIBERS: &str = "subscribers";
const POOL: &str = "pool";
const PREFIX_PAIRS: &str = "prefix-pairs";

const REQUESTS: &str = "requests";
const ANSWERS: &str = "answers";
const PREROUTING: &str = "prerouting";
const DESTINATION: &str = "destination";
const FORWARD: &str = "forward";
const INPUT: &str = "input";
/// Counts what comes to the PCP server from outside.
pub(super) const STRANGERS: &str = "strangers";
const POSTROUTING: &str = "postrouting";
const TRANSLATE: &str = "translate";
const HAIRPIN: &str = "hairpin";
const KEEP_OFF: &str = "keep-off";

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Family {
    V4,
    V6,
}

/// What a mapping stands for.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Level {
    /// One port of a protocol.
    Port,
    /// All of a protocol.
    Protocol,
    /// Everything of an external address.
    Host,
}

/// Filters that one rule can look up.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Shape {
    pub(super) family: Family,
    pub(super) level: Level,
    /// Of the remote prefix, in bits of the family's addresses.
    pub(super) len: u8,
    /// For one remote port.
    pub(super) with_port: bool,
}

/// The sets and maps whose elements come and go with mappings. Their keys are external ones, protocol . external
/// address . external port, or internal ones, protocol . internal address . internal port, or less of that. `Peers`
/// append the remote address . port, `Allowed` the masked remote address and perhaps the port.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Set {
    /// External to internal address . port.
    Ports,
    /// External to internal address.
    Protocols,
    /// External to internal address.
    Hosts,
    /// External with a remote endpoint to internal address . port.
    Peers,
    /// Internal to external address . port.
    Sources,
    /// Internal with a remote endpoint to external address . port.
    PeerSources,
    /// Internal address to external address.
    Pairs,
    /// External.
    Reserved,
    /// External, with the internal address appended.
    Owners,
    /// Protocol . external port, of any external address.
    Taken,
    /// Internal.
    Mapped(Family, Level),
    /// Internal with a remote endpoint.
    MappedPeers(Family),
    /// Internal.
    Filtered(Family, Level),
    /// Internal with remote addresses.
    Allowed(Shape),
}

impl Family {
    pub(super) fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn digit(self) -> char {
        match self {
            Self::V4 => '4',
            Self::V6 => '6',
        }
    }

    /// nft's number of its addresses' type, and their length.
    fn addr(self) -> (u32, u32) {
        match self {
            Self::V4 => (TYPE_IPV4_ADDR, 4),
            Self::V6 => (TYPE_IPV6_ADDR, 16),
        }
    }
}

impl Level {
    pub(super) fn of(protocol: u8, port: u16) -> Self {
        match (protocol, port) {
            (0, _) => Self::Host,
            (_, 0) => Self::Protocol,
            _ => Self::Port,
        }
    }

    fn plural(self) -> &'static str {
        match self {
            Self::Port => "ports",
            Self::Protocol => "protocols",
            Self::Host => "hosts",
        }
    }

    fn key(self) -> &'static [Field] {
        match self {
            Self::Port => &[Protocol, Destination, DestinationPort],
            Self::Protocol => &[Protocol, Destination],
            Self::Host => &[Destination],
        }
    }
}

impl Set {
    pub(super) fn name(self) -> String {
        match self {
            Self::Ports => "ports".to_owned(),
            Self::Protocols => "protocols".to_owned(),
            Self::Hosts => "hosts".to_owned(),
            Self::Peers => "peers".to_owned(),
            Self::Sources => "sources".to_owned(),
            Self::PeerSources => "peer-sources".to_owned(),
            Self::Pairs => "pairs".to_owned(),
            Self::Mapped(family, level) => format!("mapped{}-{}", family.digit(), level.plural()),
            Self::MappedPeers(family) => format!("mapped{}-peers", family.digit()),
            Self::Reserved => "reserved".to_owned(),
            Self::Owners => "owners".to_owned(),
            Self::Taken => "taken".to_owned(),
            Self::Filtered(family, level) => format!("filtered{}-{}", family.digit(), level.plural()),
            Self::Allowed(Shape { family, level, len, with_port }) => {
                let port = if with_port { "-port" } else { "" };
                format!("allowed{}-{}-{len}{port}", family.digit(), level.plural())
            }
        }
    }
}

/// A part of a key, as a rule reads it from a packet.
#[derive(Clone, Copy)]
enum Field {
    Protocol,
    Source,
    SourcePort,
    Destination,
    DestinationPort,
    /// Before any translation. Of IPv4 only. nft can't list a rule with an original port in a concatenation.
    OriginalSource,
}

impl Field {
    /// Type and length. A port takes a register as a protocol does.
    fn kind(self, family: Family) -> (u32, u32) {
        match self {
            Self::Protocol => (TYPE_INET_PROTO, 4),
            Self::Source | Self::Destination | Self::OriginalSource => family.addr(),
            _ => (TYPE_INET_SERVICE, 4),
        }
    }

    fn load(self, rule: Rule, family: Family, at: usize) -> Rule {
        let v6 = family == Family::V6;
        match self {
            Self::Protocol => rule.load_protocol(at),
            Self::Source if v6 => rule.load_ipv6_source_address(at),
            Self::Source => rule.load_source_address(at),
            Self::SourcePort => rule.load_source_port(at),
            Self::Destination if v6 => rule.load_ipv6_destination_address(at),
            Self::Destination => rule.load_destination_address(at),
            Self::DestinationPort => rule.load_destination_port(at),
            Self::OriginalSource => rule.load_original(CtKeys::SrcIp, at),
        }
    }
}

/// A rule for packets of a family, with a concatenation loaded from register 0 on.
fn key(family: Family, fields: &[Field]) -> Rule {
    // Without this nft lists the addresses as raw octets.
    let mut rule = match family {
        Family::V4 => Rule::new().ipv4(),
        Family::V6 => Rule::new().ipv6(),
    };
    let mut at = 0;
    for field in fields {
        rule = field.load(rule, family, at);
        at += registers(field.kind(family).1);
    }
    rule
}

fn registers(octets: u32) -> usize {
    octets.div_ceil(4) as usize
}

/// Type and length of a concatenation.
fn kind(family: Family, fields: &[Field]) -> (u32, u32) {
    let kinds: Vec<_> = fields.iter().map(|field| field.kind(family)).collect();
    let types: Vec<_> = kinds.iter().map(|kind| kind.0).collect();
    (concat(&types), kinds.iter().map(|kind| kind.1).sum())
}

use Field::{Destination, DestinationPort, OriginalSource, Protocol, Source, SourcePort};

/// A remote endpoint's packet to the host that it is mapped to, or to its external endpoint.
const FROM_PEER: &[Field] = &[Protocol, Destination, DestinationPort, Source, SourcePort];
/// A packet from inside to a remote endpoint.
const TO_PEER: &[Field] = &[Protocol, Source, SourcePort, Destination, DestinationPort];
const OWNER: &[Field] = &[Protocol, Source, SourcePort, OriginalSource];
const LEVELS: [Level; 3] = [Level::Port, Level::Protocol, Level::Host];

/// Deletes our table if there is one, and creates it empty of mappings.
pub(super) fn recreate(batch: &mut Batch, config: &ProviderConfig) {
    delete(batch, &config.name);
    table(batch, &config.name);
    let t = config.name.as_str();
    sets(batch, config);
    untracked(batch, t, config);
    destination(batch, t, config);
    forward(batch, t, config);
    translate(batch, t, config);
    hairpin(batch, t, config);
}

/// Changes nothing, and fails with ENOENT if the table is gone.
pub(super) fn touch(batch: &mut Batch, config: &ProviderConfig) {
    batch.elements(Kind::NewElement, &config.name, OUTSIDE, &interface_elements(&config.outside_interfaces));
}

/// The set of a shape, and the rule that asks it, in front of the one that drops what no rule accepts.
pub(super) fn shape(batch: &mut Batch, table: &str, number: u32, shape: Shape) {
    // Numbers matter within a transaction only; those of `sets` are lower.
    const FIRST: u32 = 1000;
    let Shape { family, level, len, with_port } = shape;
    let name = Set::Allowed(shape).name();
    let mut fields = level.key().to_vec();
    fields.push(Source);
    if with_port {
        fields.push(SourcePort);
    }
    set(batch, table, FIRST + number, &name, kind(family, &fields), None);
    let octets = family.addr().1 as usize;
    let mask = u128::MAX.checked_shl(8 * family.addr().1 - u32::from(len)).unwrap_or(0).to_be_bytes();
    let at = registers(kind(family, level.key()).1);
    key(family, &fields).mask_at(at, &mask[16 - octets..]).member(&name).verdict(VerdictCode::Accept).insert(
        batch,
        table,
        &Set::Filtered(family, level).name(),
    );
}

fn sets(batch: &mut Batch, config: &ProviderConfig) {
    let t = config.name.as_str();
    let mut number = 0;
    let mut numbered = || {
        number += 1;
        number
    };
    let v4 = (TYPE_IPV4_ADDR, 4);
    let v4_endpoint = (concat(&[TYPE_IPV4_ADDR, TYPE_INET_SERVICE]), 8);
    let level = |level: Level| kind(Family::V4, level.key());
    set(batch, t, numbered(), OUTSIDE, (TYPE_IFNAME, 16), None);
    touch(batch, config);
    if !config.inside_interfaces.is_empty() {
        set(batch, t, numbered(), INSIDE, (TYPE_IFNAME, 16), None);
        batch.elements(Kind::NewElement, t, INSIDE, &interface_elements(&config.inside_interfaces));
    }
    if !config.subscribers.is_empty() {
        interval_set(batch, t, numbered(), SUBSCRIBERS, v4, None);
        batch.intervals(
            t,
            SUBSCRIBERS,
            &intervals(config.subscribers.iter().map(|prefix| (*prefix, Vec::new()))),
        );
    }
    set(batch, t, numbered(), POOL, v4, None);
    let mut pool: Vec<_> =
        config.pool.iter().map(|addr| Element { key: addr.octets().to_vec(), value: Vec::new() }).collect();
    pool.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    pool.dedup_by(|a, b| a.key == b.key);
    batch.elements(Kind::NewElement, t, POOL, &pool);
    if !config.pairs.is_empty() {
        interval_set(batch, t, numbered(), PREFIX_PAIRS, v4, Some(v4));
        let pairs = config.pairs.iter().map(|pair| (pair.inside, pair.external.octets().to_vec()));
        batch.intervals(t, PREFIX_PAIRS, &intervals(pairs));
    }
    for (map, key, data) in [
        (Set::Ports, level(Level::Port), v4_endpoint),
        (Set::Protocols, level(Level::Protocol), v4),
        (Set::Hosts, level(Level::Host), v4),
        (Set::Peers, kind(Family::V4, FROM_PEER), v4_endpoint),
        (Set::Sources, level(Level::Port), v4_endpoint),
        (Set::PeerSources, kind(Family::V4, TO_PEER), v4_endpoint),
        (Set::Pairs, v4, v4),
    ] {
        set(batch, t, numbered(), &map.name(), key, Some(data));
    }
    set(batch, t, numbered(), &Set::Reserved.name(), level(Level::Port), None);
    set(batch, t, numbered(), &Set::Owners.name(), kind(Family::V4, OWNER), None);
    set(batch, t, numbered(), &Set::Taken.name(), kind(Family::V4, &[Protocol, SourcePort]), None);
    for family in families(config) {
        for level in LEVELS {
            for one in [Set::Mapped(family, level), Set::Filtered(family, level)] {
                set(batch, t, numbered(), &one.name(), kind(family, level.key()), None);
            }
        }
        set(batch, t, numbered(), &Set::MappedPeers(family).name(), kind(family, FROM_PEER), None);
        check(batch, t, family);
    }
}

/// `check4`, `check6`: accepts a new flow that a mapping lets in, drops one that a filter keeps out, and returns when
/// there is no mapping.
fn check(batch: &mut Batch, t: &str, family: Family) {
    let check = check_chain(family);
    plain_chain(batch, t, &check);
    let lookup = |fields: &[Field], set: Set| key(family, fields).member(&set.name());
    lookup(FROM_PEER, Set::MappedPeers(family)).verdict(VerdictCode::Accept).append(batch, t, &check);
    for level in LEVELS {
        let filtered = Set::Filtered(family, level);
        plain_chain(batch, t, &filtered.name());
        Rule::new().counter().verdict(VerdictCode::Drop).append(batch, t, &filtered.name());
        lookup(level.key(), filtered).goto(&filtered.name()).append(batch, t, &check);
        lookup(level.key(), Set::Mapped(family, level)).verdict(VerdictCode::Accept).append(batch, t, &check);
    }
}

fn check_chain(family: Family) -> String {
    format!("check{}", family.digit())
}

fn families(config: &ProviderConfig) -> impl Iterator<Item = Family> {
    [Family::V4].into_iter().chain(config.ipv6_firewall.then_some(Family::V6))
}

/// Whoever floods the PCP server from many ports or addresses does not fill the kernel's flow table, which everybody's
/// connections need.
fn untracked(batch: &mut Batch, t: &str, config: &ProviderConfig) {
    chain(batch, t, REQUESTS, "filter", NF_INET_PRE_ROUTING, UNTRACKED_PRIORITY);
    from_inside(Rule::new(), config)
        .udp_to_port(SERVER_PORT)
        .for_this_router()
        .notrack()
        .append(batch, t, REQUESTS);
    chain(batch, t, ANSWERS, "filter", NF_INET_LOCAL_OUT, UNTRACKED_PRIORITY);
    to_inside(Rule::new(), config).udp_from_port(SERVER_PORT).notrack().append(batch, t, ANSWERS);
}

/// DNAT.
fn destination(batch: &mut Batch, t: &str, config: &ProviderConfig) {
    plain_chain(batch, t, DESTINATION);
    let lookup = |fields: &[Field], set: Set| key(Family::V4, fields).map(&set.name());
    lookup(FROM_PEER, Set::Peers).dnat().append(batch, t, DESTINATION);
    lookup(Level::Port.key(), Set::Ports).dnat().append(batch, t, DESTINATION);
    lookup(Level::Protocol.key(), Set::Protocols).dnat_keeping_port().append(batch, t, DESTINATION);
    lookup(Level::Host.key(), Set::Hosts).dnat_keeping_port().append(batch, t, DESTINATION);

    chain(batch, t, PREROUTING, "nat", NF_INET_PRE_ROUTING, PREROUTING_PRIORITY);
    Rule::new().ipv4().arriving_from_any(OUTSIDE).goto(DESTINATION).append(batch, t, PREROUTING);
    from_inside(Rule::new().ipv4(), config).goto(DESTINATION).append(batch, t, PREROUTING);
}

/// What may come in, over this router or to it.
fn forward(batch: &mut Batch, t: &str, config: &ProviderConfig) {
    let translated = |rule: Rule| rule.ipv4().ct(CtKeys::Status, CT_STATUS_DNAT);
    let dropped = |rule: Rule| rule.counter().verdict(VerdictCode::Drop);
    let inwards = || to_inside(Rule::new().arriving_from_any(OUTSIDE), config);
    chain(batch, t, FORWARD, "filter", NF_INET_FORWARD, FORWARD_PRIORITY);
    Rule::new()
        .ct(CtKeys::State, CT_STATE_ESTABLISHED_OR_RELATED)
        .verdict(VerdictCode::Accept)
        .append(batch, t, FORWARD);
    translated(inwards()).jump(&check_chain(Family::V4)).append(batch, t, FORWARD);
    if config.ipv4_filter {
        // Somebody else's DNAT.
        translated(inwards()).verdict(VerdictCode::Accept).append(batch, t, FORWARD);
        dropped(inwards().ipv4()).append(batch, t, FORWARD);
    }
    if config.ipv6_firewall {
        inwards().ipv6().jump(&check_chain(Family::V6)).append(batch, t, FORWARD);
        dropped(inwards().ipv6()).append(batch, t, FORWARD);
    }
    // Otherwise the next packet from inside would revive the connection of a mapping that is gone.
    let reset = |rule: Rule, batch: &mut Batch| {
        from_inside(rule, config)
            .leaving_to_any(OUTSIDE)
            .ct(CtKeys::State, CT_STATE_NEW)
            .tcp_without_syn()
            .reject_with_reset()
            .append(batch, t, FORWARD);
    };
    if config.ipv4_filter {
        reset(Rule::new().ipv4(), batch);
    }
    if config.ipv6_firewall {
        reset(Rule::new().ipv6(), batch);
    }

    chain(batch, t, INPUT, "filter", NF_INET_LOCAL_IN, FORWARD_PRIORITY);
    translated(Rule::new().arriving_from_any(OUTSIDE).ct(CtKeys::State, CT_STATE_NEW))
        .jump(&check_chain(Family::V4))
        .append(batch, t, INPUT);
    plain_chain(batch, t, STRANGERS);
    dropped(Rule::new()).append(batch, t, STRANGERS);
    translated(Rule::new().arriving_from_any(OUTSIDE)).verdict(VerdictCode::Accept).append(batch, t, INPUT);
    // Answers to a program of this machine that has asked from there.
    Rule::new()
        .ct(CtKeys::State, CT_STATE_ESTABLISHED_OR_RELATED)
        .verdict(VerdictCode::Accept)
        .append(batch, t, INPUT);
    Rule::new().arriving_from_any(OUTSIDE).udp_to_port(SERVER_PORT).goto(STRANGERS).append(batch, t, INPUT);
}

/// SNAT.
fn translate(batch: &mut Batch, t: &str, config: &ProviderConfig) {
    plain_chain(batch, t, TRANSLATE);
    let lookup = |fields: &[Field], set: Set| key(Family::V4, fields).map(&set.name());
    lookup(TO_PEER, Set::PeerSources).snat().append(batch, t, TRANSLATE);
    lookup(&[Protocol, Source, SourcePort], Set::Sources).snat().append(batch, t, TRANSLATE);
    let pairs = Set::Pairs.name();
    let mut dynamic = |external: &dyn Fn(Rule) -> Rule| {
        // Asked of all external addresses, since nft can't list a key that is itself looked up.
        external(key(Family::V4, &[Protocol, SourcePort]).member(&Set::Taken.name()))
            .load_constant(&config.dynamic_ports.start().to_be_bytes(), 1)
            .load_constant(&config.dynamic_ports.end().to_be_bytes(), 2)
            .snat_at_random()
            .append(batch, t, TRANSLATE);
        external(Rule::new().ipv4()).snat_keeping_port().append(batch, t, TRANSLATE);
    };
    dynamic(&|rule| rule.load_source_address(0).map(&pairs));
    if !config.pairs.is_empty() {
        dynamic(&|rule| rule.load_source_address(0).map(PREFIX_PAIRS));
    }
    if let Some(external) = config.default_external {
        dynamic(&|rule| rule.load_constant(&external.octets(), 0));
    }

    chain(batch, t, POSTROUTING, "nat", NF_INET_POST_ROUTING, POSTROUTING_PRIORITY);
    let subscriber = || {
        let rule = from_inside(Rule::new().ipv4(), config);
        if config.subscribers.is_empty() { rule } else { rule.load_source_address(0).member(SUBSCRIBERS) }
    };
    subscriber().leaving_to_any(OUTSIDE).goto(TRANSLATE).append(batch, t, POSTROUTING);
    by_pool(subscriber(), config).goto(TRANSLATE).append(batch, t, POSTROUTING);
}

/// What has to wait until the source is translated.
fn hairpin(batch: &mut Batch, t: &str, config: &ProviderConfig) {
    plain_chain(batch, t, KEEP_OFF);
    key(Family::V4, OWNER)
        .member(&Set::Owners.name())
        .verdict(VerdictCode::Return)
        .append(batch, t, KEEP_OFF);
    key(Family::V4, &[Protocol, Source, SourcePort])
        .member(&Set::Reserved.name())
        .counter()
        .verdict(VerdictCode::Drop)
        .append(batch, t, KEEP_OFF);

    chain(batch, t, HAIRPIN, "filter", NF_INET_POST_ROUTING, HAIRPIN_PRIORITY);
    let new = || from_inside(Rule::new().ipv4(), config).ct(CtKeys::State, CT_STATE_NEW);
    new().jump(KEEP_OFF).append(batch, t, HAIRPIN);
    by_pool(new(), config).jump(&check_chain(Family::V4)).append(batch, t, HAIRPIN);
}

/// From inside back to inside, by an external address.
fn by_pool(rule: Rule, config: &ProviderConfig) -> Rule {
    to_inside(rule, config).ct(CtKeys::Status, CT_STATUS_DNAT).load_original(CtKeys::DstIp, 0).member(POOL)
}

fn from_inside(rule: Rule, config: &ProviderConfig) -> Rule {
    if config.inside_interfaces.is_empty() {
        rule.arriving_from_none(OUTSIDE)
    } else {
        rule.arriving_from_any(INSIDE)
    }
}

fn to_inside(rule: Rule, config: &ProviderConfig) -> Rule {
    if config.inside_interfaces.is_empty() {
        rule.leaving_to_none(OUTSIDE)
    } else {
        rule.leaving_to_any(INSIDE)
    }
}

fn interface_elements(names: &[String]) -> Vec<Element> {
    names.iter().map(|name| Element { key: interface_key(name).to_vec(), value: Vec::new() }).collect()
}

/// Prefixes with their values as a set takes them, without those that lie in another one.
pub(super) fn intervals(
    prefixes: impl Iterator<Item = (Prefix, Vec<u8>)>,
) -> Vec<(Element, Option<Vec<u8>>)> {
    let mut ranges: Vec<_> = prefixes.map(|(prefix, value)| (prefix.range(), value)).collect();
    ranges.sort_unstable_by_key(|((first, last), _)| (*first, std::cmp::Reverse(*last)));
    let mut end = None;
    ranges.retain(|((_, last), _)| {
        let apart = end.is_none_or(|end| *last > end);
        end = end.max(Some(*last));
        apart
    });
    let element = |((first, last), value): ((u32, u32), Vec<u8>)| {
        let end = last.checked_add(1).map(|end| end.to_be_bytes().to_vec());
        (Element { key: first.to_be_bytes().to_vec(), value }, end)
    };
    ranges.into_iter().map(element).collect()
}
