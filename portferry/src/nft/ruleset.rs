//! Our table: its sets, chains and rules, written once when it is created, and the elements that come and go.
//! Rules never depend on a mapping; only elements do.

use std::{
    ffi::CStr,
    net::{Ipv4Addr, SocketAddrV4},
};

use netlink_bindings::nftables::{
    CmpOps, CtKeys, FibFlags, MetaKeys, NatRangeFlags, PayloadBase, PushChainAttrs, PushExprCounterAttrs,
    PushExprListAttrs, PushExprMasqAttrs, PushRuleAttrs, PushSetAttrs, PushTableAttrs, Registers,
    RejectTypes, VerdictCode,
};
use netlink_bindings::{
    traits::Pusher,
    utils::{finalize_nested_header, push_header, push_nested_header},
};

use super::batch::{APPEND, Batch, CREATE, Element, Kind};
use super::{FORWARD_PRIORITY, POSTROUTING_PRIORITY, PREROUTING_PRIORITY, TableConfig};

/// `protocol . external port : internal address . internal port`, any remote peer.
pub(super) const PORTS: &str = "ports";
/// `protocol . external port . remote peer : internal address . internal port`.
pub(super) const PEERS: &str = "peers";
/// `protocol . internal address . internal port : external port`, for flows that a mapped host starts.
pub(super) const SOURCES: &str = "sources";
/// Names of the LAN interfaces.
const LAN: &str = "lan";

const PREROUTING: &str = "prerouting";
const FORWARD: &str = "forward";
const POSTROUTING: &str = "postrouting";

// Data types as nft numbers them; the kernel only hands them back when somebody lists the table.
const TYPE_IPV4_ADDR: u32 = 7;
const TYPE_INET_PROTO: u32 = 12;
const TYPE_INET_SERVICE: u32 = 13;
const TYPE_IFNAME: u32 = 41;
const IFNAMSIZ: usize = 16;

const NF_INET_PRE_ROUTING: u32 = 0;
const NF_INET_FORWARD: u32 = 2;
const NF_INET_POST_ROUTING: u32 = 4;
const NFPROTO_IPV4: u8 = 2;
const IPPROTO_TCP: u8 = 6;
const RTN_LOCAL: u32 = 2;
/// `NFT_FIB_RESULT_ADDRTYPE`; the bindings' `FibResult` starts one too low.
const FIB_RESULT_ADDRTYPE: u32 = 3;
const CT_STATE_ESTABLISHED_OR_RELATED: u32 = 0b0110;
const CT_STATE_NEW: u32 = 0b1000;
/// `IPS_DST_NAT`.
const CT_STATUS_DNAT: u32 = 0x20;
const TCP_SYN: u8 = 0x02;
const TCP_FIN_SYN_RST_ACK: u8 = 0x17;

// The 4-octet registers; `Reg1` names the same place as `Reg3200` and is what nft writes for the first.
const REG: [u32; 3] = [Registers::Reg1 as u32, Registers::Reg3201 as u32, Registers::Reg3202 as u32];

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
    let names: Vec<Element> = config
        .lan_interfaces
        .iter()
        .map(|name| Element { key: interface_key(name).to_vec(), value: Vec::new() })
        .collect();
    batch.elements(Kind::NewElement, t, LAN, &names);

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
        let inwards = || Rule::new().arriving_from(&config.wan_interface).leaving_to_lan();
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
            .arriving_from_lan()
            .leaving_to(&config.wan_interface)
            .ct(CtKeys::State, CT_STATE_NEW)
            .tcp_without_syn()
            .reject_with_reset()
            .append(batch, t, FORWARD);
    }
    if config.masquerade {
        let source_key = concat(&[TYPE_INET_PROTO, TYPE_IPV4_ADDR, TYPE_INET_SERVICE]);
        set(batch, t, 4, SOURCES, (source_key, 12), Some((TYPE_INET_SERVICE, 2)));
        chain(batch, t, POSTROUTING, "nat", NF_INET_POST_ROUTING, POSTROUTING_PRIORITY);
        let leaving = || Rule::new().ipv4().arriving_from_lan().leaving_to(&config.wan_interface);
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

/// Deletes our table; creating it first makes that succeed when there is none.
pub(super) fn delete(batch: &mut Batch, name: &str) {
    table(batch, name);
    batch.message(Kind::DelTable, 0, |o| drop(PushTableAttrs::new(o).push_name_bytes(name.as_bytes())));
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

fn push_port(octets: &mut Vec<u8>, port: u16) {
    octets.extend(port.to_be_bytes());
    octets.extend([0; 2]);
}

fn interface_key(name: &str) -> [u8; IFNAMSIZ] {
    let mut key = [0; IFNAMSIZ];
    key[..name.len()].copy_from_slice(name.as_bytes());
    key
}

/// A concatenated type as nft numbers it: six bits each, the first uppermost.
fn concat(types: &[u32]) -> u32 {
    types.iter().fold(0, |all, one| (all << 6) | one)
}

fn table(batch: &mut Batch, name: &str) {
    batch.message(Kind::NewTable, CREATE, |o| {
        drop(PushTableAttrs::new(o).push_name_bytes(name.as_bytes()).push_flags(0));
    });
}

/// A set, or a map when `data` is given; both as (type, length in octets).
fn set(batch: &mut Batch, table: &str, id: u32, name: &str, key: (u32, u32), data: Option<(u32, u32)>) {
    const MAP: u32 = 0x8;
    batch.message(Kind::NewSet, CREATE, |o| {
        let mut attrs = PushSetAttrs::new(o)
            .push_table_bytes(table.as_bytes())
            .push_name_bytes(name.as_bytes())
            .push_flags(if data.is_some() { MAP } else { 0 })
            .push_key_type(key.0)
            .push_key_len(key.1);
        if let Some((kind, len)) = data {
            attrs = attrs.push_data_type(kind).push_data_len(len);
        }
        // What nft needs to print it: octet order of key (tag 0) and data (tag 1), 1 = the host's, 2 = the network's.
        let order = |kind| if kind == TYPE_IFNAME { 1u32 } else { 2 };
        let mut userdata = vec![0, 4];
        userdata.extend(order(key.0).to_ne_bytes());
        if let Some((kind, _)) = data {
            userdata.extend([1, 4]);
            userdata.extend(order(kind).to_ne_bytes());
        }
        attrs.push_id(id).push_userdata(&userdata);
    });
}

fn chain(batch: &mut Batch, table: &str, name: &str, kind: &str, hook: u32, priority: i32) {
    batch.message(Kind::NewChain, CREATE, |o| {
        PushChainAttrs::new(o)
            .push_table_bytes(table.as_bytes())
            .push_name_bytes(name.as_bytes())
            .push_type_bytes(kind.as_bytes())
            .push_policy(VerdictCode::Accept as u32)
            .nested_hook()
            .push_num(hook)
            .push_priority(priority);
    });
}

/// The expressions of one rule, in order; every method appends what the nft words in its comment stand for.
struct Rule(Vec<u8>);

impl Rule {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn append(self, batch: &mut Batch, table: &str, chain: &str) {
        batch.message(Kind::NewRule, CREATE | APPEND, |o| {
            PushRuleAttrs::new(o)
                .push_table_bytes(table.as_bytes())
                .push_chain_bytes(chain.as_bytes())
                .nested_expressions()
                .as_vec_mut()
                .extend(self.0);
        });
    }

    /// `meta nfproto ipv4`
    fn ipv4(self) -> Self {
        self.meta(MetaKeys::Nfproto, 0).cmp(CmpOps::Eq, &[NFPROTO_IPV4])
    }
    /// `iifname NAME`
    fn arriving_from(self, interface: &str) -> Self {
        self.meta(MetaKeys::Iifname, 0).cmp(CmpOps::Eq, &interface_key(interface))
    }
    /// `oifname NAME`
    fn leaving_to(self, interface: &str) -> Self {
        self.meta(MetaKeys::Oifname, 0).cmp(CmpOps::Eq, &interface_key(interface))
    }
    /// `iifname @lan`
    fn arriving_from_lan(self) -> Self {
        self.meta(MetaKeys::Iifname, 0).member(LAN)
    }
    /// `oifname @lan`
    fn leaving_to_lan(self) -> Self {
        self.meta(MetaKeys::Oifname, 0).member(LAN)
    }

    /// `fib daddr type local`
    fn for_this_router(mut self) -> Self {
        PushExprListAttrs::new(&mut self.0)
            .nested_elem()
            .nested_data_fib()
            .push_dreg(REG[0])
            .push_result(FIB_RESULT_ADDRTYPE)
            .push_flags(FibFlags::Daddr as u32);
        self.cmp(CmpOps::Eq, &RTN_LOCAL.to_ne_bytes())
    }

    /// `ct state BITS` or `ct status BITS`: any of them is set
    fn ct(mut self, key: CtKeys, bits: u32) -> Self {
        PushExprListAttrs::new(&mut self.0)
            .nested_elem()
            .nested_data_ct()
            .push_dreg(REG[0])
            .push_key(key as u32);
        self.mask(&bits.to_ne_bytes()).cmp(CmpOps::Neq, &[0; 4])
    }

    /// `meta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn`
    fn tcp_without_syn(self) -> Self {
        self.load_protocol(0)
            .cmp(CmpOps::Eq, &[IPPROTO_TCP])
            .payload(PayloadBase::TransportHeader, 13, 1, 0)
            .mask(&[TCP_FIN_SYN_RST_ACK])
            .cmp(CmpOps::Neq, &[TCP_SYN])
    }

    /// `meta l4proto` into a register
    fn load_protocol(self, register: usize) -> Self {
        self.meta(MetaKeys::L4Proto, register)
    }
    /// `ip saddr` into a register
    fn load_source_address(self, register: usize) -> Self {
        self.payload(PayloadBase::NetworkHeader, 12, 4, register)
    }
    /// `th sport` into a register
    fn load_source_port(self, register: usize) -> Self {
        self.payload(PayloadBase::TransportHeader, 0, 2, register)
    }
    /// `th dport` into a register
    fn load_destination_port(self, register: usize) -> Self {
        self.payload(PayloadBase::TransportHeader, 2, 2, register)
    }

    /// `map @NAME`, register 0 to register 0: the rule ends here if there is no such element
    fn map(self, set: &str) -> Self {
        self.lookup(set, Some(REG[0]))
    }

    /// `dnat ip to ADDRESS . PORT`, from registers 0 and 1
    fn dnat(mut self) -> Self {
        const NFT_NAT_DNAT: u32 = 1;
        PushExprListAttrs::new(&mut self.0)
            .nested_elem()
            .nested_data_nat()
            .push_type(NFT_NAT_DNAT)
            .push_family(u32::from(NFPROTO_IPV4))
            .push_reg_addr_min(REG[0])
            .push_reg_proto_min(REG[1]);
        self
    }

    /// `masquerade`
    fn masquerade(self) -> Self {
        self.expression(c"masq", |_| {})
    }

    /// `masquerade to :PORT`, from register 0
    fn masquerade_to_port(self) -> Self {
        self.expression(c"masq", |octets| {
            PushExprMasqAttrs::new(octets)
                .push_flags(NatRangeFlags::ProtoSpecified as u32)
                .push_reg_proto_min(REG[0]);
        })
    }

    /// `reject with tcp reset`
    fn reject_with_reset(mut self) -> Self {
        PushExprListAttrs::new(&mut self.0)
            .nested_elem()
            .nested_data_reject()
            .push_type(RejectTypes::TcpRst as u32)
            .push_icmp_code(0);
        self
    }

    /// `counter`
    fn counter(mut self) -> Self {
        let counter: PushExprCounterAttrs<_> =
            PushExprListAttrs::new(&mut self.0).nested_elem().nested_data_counter();
        drop(counter.push_bytes(0).push_packets(0));
        self
    }

    /// `accept` or `drop`
    fn verdict(mut self, code: VerdictCode) -> Self {
        PushExprListAttrs::new(&mut self.0)
            .nested_elem()
            .nested_data_immediate()
            .push_dreg(Registers::RegVerdict as u32)
            .nested_data()
            .nested_verdict()
            .push_code(code as u32);
        self
    }

    fn meta(mut self, key: MetaKeys, register: usize) -> Self {
        PushExprListAttrs::new(&mut self.0)
            .nested_elem()
            .nested_data_meta()
            .push_key(key as u32)
            .push_dreg(REG[register]);
        self
    }

    fn payload(mut self, base: PayloadBase, offset: u32, len: u32, register: usize) -> Self {
        PushExprListAttrs::new(&mut self.0)
            .nested_elem()
            .nested_data_payload()
            .push_dreg(REG[register])
            .push_base(base as u32)
            .push_offset(offset)
            .push_len(len);
        self
    }

    fn member(self, set: &str) -> Self {
        self.lookup(set, None)
    }

    /// The bindings number these attributes differently from the kernel.
    fn lookup(self, set: &str, value: Option<u32>) -> Self {
        const NFTA_LOOKUP_SET: u16 = 1;
        const NFTA_LOOKUP_SREG: u16 = 2;
        const NFTA_LOOKUP_DREG: u16 = 3;
        self.expression(c"lookup", |octets| {
            let len = u16::try_from(set.len() + 1).expect("our sets have short names");
            push_header(octets, NFTA_LOOKUP_SET, len);
            octets.extend(set.as_bytes());
            octets.push(0);
            push_header(octets, NFTA_LOOKUP_SREG, 4);
            octets.extend(REG[0].to_be_bytes());
            if let Some(register) = value {
                push_header(octets, NFTA_LOOKUP_DREG, 4);
                octets.extend(register.to_be_bytes());
            }
        })
    }

    /// An expression whose attributes `fill` writes, where the bindings are of no use.
    fn expression(mut self, name: &CStr, fill: impl FnOnce(&mut Vec<u8>)) -> Self {
        const NFTA_EXPR_DATA: u16 = 2;
        let mut expression = PushExprListAttrs::new(&mut self.0).nested_elem().push_name(name);
        let octets = expression.as_vec_mut();
        let data = push_nested_header(octets, NFTA_EXPR_DATA);
        fill(octets);
        finalize_nested_header(octets, data);
        drop(expression);
        self
    }

    fn mask(mut self, mask: &[u8]) -> Self {
        let len = u32::try_from(mask.len()).expect("a mask has at most four octets");
        PushExprListAttrs::new(&mut self.0)
            .nested_elem()
            .nested_data_bitwise()
            .push_sreg(REG[0])
            .push_dreg(REG[0])
            .push_len(len)
            .nested_mask()
            .push_value(mask)
            .end_nested()
            .nested_xor()
            .push_value(&vec![0; mask.len()]);
        self
    }

    fn cmp(mut self, op: CmpOps, value: &[u8]) -> Self {
        PushExprListAttrs::new(&mut self.0)
            .nested_elem()
            .nested_data_cmp()
            .push_sreg(REG[0])
            .push_op(op as u32)
            .nested_data()
            .push_value(value);
        self
    }
}
