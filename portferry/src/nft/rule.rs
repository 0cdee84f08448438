//! What the rulesets of our tables are written with: sets, chains, and rules expression by expression. It knows nothing
//! of mappings.

use std::ffi::CStr;

use netlink_bindings::nftables::{
    CmpOps, CtDirection, CtKeys, FibFlags, LookupFlags, MetaKeys, NatRangeFlags, PayloadBase, PushChainAttrs,
    PushExprCounterAttrs, PushExprListAttrs, PushExprMasqAttrs, PushRuleAttrs, PushSetAttrs,
    PushSetelemListAttrs, PushTableAttrs, Registers, RejectTypes, VerdictCode,
};
use netlink_bindings::{
    traits::Pusher,
    utils::{finalize_nested_header, push_header, push_nested_header},
};

use super::batch::{APPEND, Batch, CREATE, Kind};

// Data types as nft numbers them; the kernel only hands them back when somebody lists the table.
pub(super) const TYPE_IPV4_ADDR: u32 = 7;
pub(super) const TYPE_IPV6_ADDR: u32 = 8;
pub(super) const TYPE_INET_PROTO: u32 = 12;
pub(super) const TYPE_INET_SERVICE: u32 = 13;
pub(super) const TYPE_IFNAME: u32 = 41;
const NFT_NAT_SNAT: u32 = 0;
const NFT_NAT_DNAT: u32 = 1;
const IFNAMSIZ: usize = 16;

pub(super) const NF_INET_PRE_ROUTING: u32 = 0;
pub(super) const NF_INET_LOCAL_IN: u32 = 1;
pub(super) const NF_INET_FORWARD: u32 = 2;
pub(super) const NF_INET_LOCAL_OUT: u32 = 3;
pub(super) const NF_INET_POST_ROUTING: u32 = 4;
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_IPV6: u8 = 10;
pub(super) const IPPROTO_TCP: u8 = 6;
pub(super) const IPPROTO_UDP: u8 = 17;
const IPPROTO_ICMPV6: u8 = 58;
const ICMPV6_ECHO_REQUEST: u8 = 128;
pub(super) const RTN_LOCAL: u32 = 2;
/// `NFT_FIB_RESULT_ADDRTYPE`; the bindings' `FibResult` starts one too low.
pub(super) const FIB_RESULT_ADDRTYPE: u32 = 3;
pub(super) const CT_STATE_ESTABLISHED_OR_RELATED: u32 = 0b0110;
pub(super) const CT_STATE_NEW: u32 = 0b1000;
/// `IPS_DST_NAT`.
pub(super) const CT_STATUS_DNAT: u32 = 0x20;
pub(super) const TCP_SYN: u8 = 0x02;
pub(super) const TCP_FIN_SYN_RST_ACK: u8 = 0x17;

/// Number of a 4-octet register of the sixteen; `Reg1` names the same place as `Reg3200` and is what nft writes for the
/// first.
fn reg(index: usize) -> u32 {
    let index = u32::try_from(index).expect("there are sixteen registers");
    if index == 0 { Registers::Reg1 as u32 } else { Registers::Reg3200 as u32 + index }
}

/// Deletes our table; creating it first makes that succeed when there is none.
pub(super) fn delete(batch: &mut Batch, name: &str) {
    table(batch, name);
    batch.message(Kind::DelTable, 0, |o| drop(PushTableAttrs::new(o).push_name_bytes(name.as_bytes())));
}

pub(super) fn push_port(octets: &mut Vec<u8>, port: u16) {
    octets.extend(port.to_be_bytes());
    octets.extend([0; 2]);
}

pub(super) fn interface_key(name: &str) -> [u8; IFNAMSIZ] {
    let mut key = [0; IFNAMSIZ];
    key[..name.len()].copy_from_slice(name.as_bytes());
    key
}

/// A concatenated type as nft numbers it: six bits each, the first uppermost.
pub(super) fn concat(types: &[u32]) -> u32 {
    types.iter().fold(0, |all, one| (all << 6) | one)
}

pub(super) fn table(batch: &mut Batch, name: &str) {
    batch.message(Kind::NewTable, CREATE, |o| {
        drop(PushTableAttrs::new(o).push_name_bytes(name.as_bytes()).push_flags(0));
    });
}

/// A set, or a map when `data` is given; both as (type, length in octets).
pub(super) fn set(
    batch: &mut Batch,
    table: &str,
    id: u32,
    name: &str,
    key: (u32, u32),
    data: Option<(u32, u32)>,
) {
    set_with(batch, table, id, name, key, data, Sort::Plain);
}

/// A set whose elements count the packets that they match.
pub(super) fn counting_set(batch: &mut Batch, table: &str, id: u32, name: &str, key: (u32, u32)) {
    set_with(batch, table, id, name, key, None, Sort::Counting);
}

/// The same, of intervals; its elements are written with [`Batch::intervals`].
pub(super) fn interval_set(
    batch: &mut Batch,
    table: &str,
    id: u32,
    name: &str,
    key: (u32, u32),
    data: Option<(u32, u32)>,
) {
    set_with(batch, table, id, name, key, data, Sort::Intervals);
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Sort {
    Plain,
    Intervals,
    Counting,
    Unnamed,
}

/// What the kernel makes a name of for a set that has none.
const UNNAMED_SET: &str = "__set%d";

/// A set of interfaces for one rule of the same batch, with which it comes and goes.
pub(super) fn unnamed_interfaces(batch: &mut Batch, table: &str, id: u32, names: &[String]) {
    set_with(batch, table, id, UNNAMED_SET, (TYPE_IFNAME, 16), None, Sort::Unnamed);
    batch.message(Kind::NewElement, CREATE, |o| {
        let mut list = PushSetelemListAttrs::new(o)
            .push_table_bytes(table.as_bytes())
            .push_set_bytes(UNNAMED_SET.as_bytes())
            .push_set_id(id)
            .nested_elements();
        for name in names {
            let key = interface_key(name);
            list = list.nested_elem().nested_key().push_value(&key).end_nested().end_nested();
        }
    });
}

fn set_with(
    batch: &mut Batch,
    table: &str,
    id: u32,
    name: &str,
    key: (u32, u32),
    data: Option<(u32, u32)>,
    sort: Sort,
) {
    const ANONYMOUS: u32 = 0x1;
    const CONSTANT: u32 = 0x2;
    const INTERVAL: u32 = 0x4;
    const MAP: u32 = 0x8;
    let flags = match sort {
        Sort::Plain | Sort::Counting => 0,
        Sort::Intervals => INTERVAL,
        Sort::Unnamed => ANONYMOUS | CONSTANT,
    };
    batch.message(Kind::NewSet, CREATE, |o| {
        let mut attrs = PushSetAttrs::new(o)
            .push_table_bytes(table.as_bytes())
            .push_name_bytes(name.as_bytes())
            .push_flags(flags | if data.is_some() { MAP } else { 0 })
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
        let attrs = attrs.push_id(id).push_userdata(&userdata);
        if sort == Sort::Counting {
            let counter: PushExprCounterAttrs<_> = attrs.nested_expr().nested_data_counter();
            drop(counter.push_bytes(0).push_packets(0));
        }
    });
}

pub(super) fn chain(batch: &mut Batch, table: &str, name: &str, kind: &str, hook: u32, priority: i32) {
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

/// A chain that others jump to.
pub(super) fn plain_chain(batch: &mut Batch, table: &str, name: &str) {
    batch.message(Kind::NewChain, CREATE, |o| {
        drop(PushChainAttrs::new(o).push_table_bytes(table.as_bytes()).push_name_bytes(name.as_bytes()));
    });
}

/// The expressions of one rule, in order; every method appends what the nft words in its comment stand for.
pub(super) struct Rule(Vec<u8>);

impl Rule {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    /// The rule becomes its chain's last one.
    pub(super) fn append(self, batch: &mut Batch, table: &str, chain: &str) {
        self.write(batch, CREATE | APPEND, table, chain);
    }

    /// The rule becomes its chain's first one.
    pub(super) fn insert(self, batch: &mut Batch, table: &str, chain: &str) {
        self.write(batch, CREATE, table, chain);
    }

    fn write(self, batch: &mut Batch, flags: u16, table: &str, chain: &str) {
        batch.message(Kind::NewRule, flags, |o| {
            PushRuleAttrs::new(o)
                .push_table_bytes(table.as_bytes())
                .push_chain_bytes(chain.as_bytes())
                .nested_expressions()
                .as_vec_mut()
                .extend(self.0);
        });
    }

    /// As [`Self::insert`], and the rule has this comment: octets as nft writes them.
    pub(super) fn insert_with(self, batch: &mut Batch, table: &str, chain: &str, comment: &[u8]) {
        batch.message(Kind::NewRule, CREATE, |o| {
            let mut rule = PushRuleAttrs::new(o)
                .push_table_bytes(table.as_bytes())
                .push_chain_bytes(chain.as_bytes())
                .push_userdata(comment)
                .nested_expressions();
            rule.as_vec_mut().extend(self.0);
        });
    }

    /// `meta nfproto ipv4`
    pub(super) fn ipv4(self) -> Self {
        self.meta(MetaKeys::Nfproto, 0).cmp(CmpOps::Eq, &[NFPROTO_IPV4])
    }
    /// `meta nfproto ipv6`
    pub(super) fn ipv6(self) -> Self {
        self.meta(MetaKeys::Nfproto, 0).cmp(CmpOps::Eq, &[NFPROTO_IPV6])
    }
    /// `iifname NAME`
    pub(super) fn arriving_from(self, interface: &str) -> Self {
        self.meta(MetaKeys::Iifname, 0).cmp(CmpOps::Eq, &interface_key(interface))
    }
    /// `iifname @SET`
    pub(super) fn arriving_from_any(self, set: &str) -> Self {
        self.meta(MetaKeys::Iifname, 0).member(set)
    }
    /// `iifname != @SET`
    pub(super) fn arriving_from_none(self, set: &str) -> Self {
        self.meta(MetaKeys::Iifname, 0).lookup(set, None, true)
    }
    /// `oifname != @SET`
    pub(super) fn leaving_to_none(self, set: &str) -> Self {
        self.meta(MetaKeys::Oifname, 0).lookup(set, None, true)
    }
    /// `oifname NAME`
    pub(super) fn leaving_to(self, interface: &str) -> Self {
        self.meta(MetaKeys::Oifname, 0).cmp(CmpOps::Eq, &interface_key(interface))
    }
    /// `oifname @SET`
    pub(super) fn leaving_to_any(self, set: &str) -> Self {
        self.meta(MetaKeys::Oifname, 0).member(set)
    }
    /// `iifname . oifname @SET`
    pub(super) fn passing_any(self, set: &str) -> Self {
        self.meta(MetaKeys::Iifname, 0).meta(MetaKeys::Oifname, 4).member(set)
    }

    /// `meta mark & BITS == BITS`
    pub(super) fn marked(self, bits: u32) -> Self {
        let bits = bits.to_ne_bytes();
        self.meta(MetaKeys::Mark, 0).mask(&bits).cmp(CmpOps::Eq, &bits)
    }
    /// `iifname { NAME, … }`, an unnamed set of this number in the same batch
    pub(super) fn arriving_from_unnamed(self, id: u32) -> Self {
        self.meta(MetaKeys::Iifname, 0).lookup_of(UNNAMED_SET, Some(id), None, false)
    }

    /// `fib daddr type local`
    pub(super) fn for_this_router(mut self) -> Self {
        PushExprListAttrs::new(&mut self.0)
            .nested_elem()
            .nested_data_fib()
            .push_dreg(reg(0))
            .push_result(FIB_RESULT_ADDRTYPE)
            .push_flags(FibFlags::Daddr as u32);
        self.cmp(CmpOps::Eq, &RTN_LOCAL.to_ne_bytes())
    }

    /// `ct state BITS` or `ct status BITS`: any of them is set
    pub(super) fn ct(mut self, key: CtKeys, bits: u32) -> Self {
        PushExprListAttrs::new(&mut self.0)
            .nested_elem()
            .nested_data_ct()
            .push_dreg(reg(0))
            .push_key(key as u32);
        self.mask(&bits.to_ne_bytes()).cmp(CmpOps::Neq, &[0; 4])
    }

    /// `ct direction original`: as the flow's first packet went, not as answers go
    pub(super) fn begun_this_way(mut self) -> Self {
        PushExprListAttrs::new(&mut self.0)
            .nested_elem()
            .nested_data_ct()
            .push_dreg(reg(0))
            .push_key(CtKeys::Direction as u32);
        self.cmp(CmpOps::Eq, &[CtDirection::Original as u8])
    }

    /// `icmpv6 type echo-request`
    pub(super) fn echo_request(self) -> Self {
        self.load_protocol(0)
            .cmp(CmpOps::Eq, &[IPPROTO_ICMPV6])
            .payload(PayloadBase::TransportHeader, 0, 1, 0)
            .cmp(CmpOps::Eq, &[ICMPV6_ECHO_REQUEST])
    }

    /// `meta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn`
    pub(super) fn tcp_without_syn(self) -> Self {
        self.load_protocol(0)
            .cmp(CmpOps::Eq, &[IPPROTO_TCP])
            .payload(PayloadBase::TransportHeader, 13, 1, 0)
            .mask(&[TCP_FIN_SYN_RST_ACK])
            .cmp(CmpOps::Neq, &[TCP_SYN])
    }

    /// `udp dport PORT`
    pub(super) fn udp_to_port(self, port: u16) -> Self {
        self.load_protocol(0)
            .cmp(CmpOps::Eq, &[IPPROTO_UDP])
            .load_destination_port(0)
            .cmp(CmpOps::Eq, &port.to_be_bytes())
    }
    /// `udp sport PORT`
    pub(super) fn udp_from_port(self, port: u16) -> Self {
        self.load_protocol(0)
            .cmp(CmpOps::Eq, &[IPPROTO_UDP])
            .load_source_port(0)
            .cmp(CmpOps::Eq, &port.to_be_bytes())
    }
    /// `notrack`
    pub(super) fn notrack(mut self) -> Self {
        drop(PushExprListAttrs::new(&mut self.0).nested_elem().push_name(c"notrack"));
        self
    }

    /// `meta l4proto` into a register
    pub(super) fn load_protocol(self, register: usize) -> Self {
        self.meta(MetaKeys::L4Proto, register)
    }
    /// `ip saddr` into a register
    pub(super) fn load_source_address(self, register: usize) -> Self {
        self.payload(PayloadBase::NetworkHeader, 12, 4, register)
    }
    /// `ip daddr` into a register
    pub(super) fn load_destination_address(self, register: usize) -> Self {
        self.payload(PayloadBase::NetworkHeader, 16, 4, register)
    }
    /// `ip6 saddr` into four registers
    pub(super) fn load_ipv6_source_address(self, register: usize) -> Self {
        self.payload(PayloadBase::NetworkHeader, 8, 16, register)
    }
    /// `ip6 daddr` into four registers
    pub(super) fn load_ipv6_destination_address(self, register: usize) -> Self {
        self.payload(PayloadBase::NetworkHeader, 24, 16, register)
    }
    /// `ct original KEY` into a register: what the flow's first packet had when it came
    pub(super) fn load_original(mut self, key: CtKeys, register: usize) -> Self {
        PushExprListAttrs::new(&mut self.0)
            .nested_elem()
            .nested_data_ct()
            .push_dreg(reg(register))
            .push_key(key as u32)
            .push_direction(CtDirection::Original as u8);
        self
    }
    /// A constant into a register
    pub(super) fn load_constant(mut self, value: &[u8], register: usize) -> Self {
        PushExprListAttrs::new(&mut self.0)
            .nested_elem()
            .nested_data_immediate()
            .push_dreg(reg(register))
            .nested_data()
            .push_value(value);
        self
    }
    /// `th sport` into a register
    pub(super) fn load_source_port(self, register: usize) -> Self {
        self.payload(PayloadBase::TransportHeader, 0, 2, register)
    }
    /// `th dport` into a register
    pub(super) fn load_destination_port(self, register: usize) -> Self {
        self.payload(PayloadBase::TransportHeader, 2, 2, register)
    }

    /// `map @NAME`, register 0 to register 0: the rule ends here if there is no such element
    pub(super) fn map(self, set: &str) -> Self {
        self.lookup(set, Some(0), false)
    }
    /// `@NAME`: register 0 and those that follow it are an element
    pub(super) fn member(self, set: &str) -> Self {
        self.lookup(set, None, false)
    }

    /// `dnat ip to ADDRESS . PORT`, from registers 0 and 1
    pub(super) fn dnat(self) -> Self {
        self.nat(NFT_NAT_DNAT, Some((1, 1)), 0)
    }
    /// `dnat ip to ADDRESS`, from register 0
    pub(super) fn dnat_keeping_port(self) -> Self {
        self.nat(NFT_NAT_DNAT, None, 0)
    }
    /// `snat ip to ADDRESS . PORT`, from registers 0 and 1
    pub(super) fn snat(self) -> Self {
        self.nat(NFT_NAT_SNAT, Some((1, 1)), 0)
    }
    /// `snat ip to ADDRESS`, from register 0; the port is kept unless another flow has it
    pub(super) fn snat_keeping_port(self) -> Self {
        self.nat(NFT_NAT_SNAT, None, 0)
    }
    /// `snat ip to ADDRESS:PORT-PORT fully-random`, from registers 0 to 2
    pub(super) fn snat_at_random(self) -> Self {
        self.nat(NFT_NAT_SNAT, Some((1, 2)), NatRangeFlags::ProtoRandomFully as u32)
    }

    fn nat(mut self, kind: u32, ports: Option<(usize, usize)>, flags: u32) -> Self {
        let mut nat = PushExprListAttrs::new(&mut self.0)
            .nested_elem()
            .nested_data_nat()
            .push_type(kind)
            .push_family(u32::from(NFPROTO_IPV4))
            .push_reg_addr_min(reg(0));
        if let Some((first, last)) = ports {
            nat = nat.push_reg_proto_min(reg(first));
            if first != last {
                nat = nat.push_reg_proto_max(reg(last));
            }
        }
        if flags != 0 {
            nat = nat.push_flags(flags);
        }
        drop(nat);
        self
    }

    /// `masquerade`
    pub(super) fn masquerade(self) -> Self {
        self.expression(c"masq", |_| {})
    }

    /// `masquerade to :PORT`, from register 0
    pub(super) fn masquerade_to_port(self) -> Self {
        self.expression(c"masq", |octets| {
            PushExprMasqAttrs::new(octets)
                .push_flags(NatRangeFlags::ProtoSpecified as u32)
                .push_reg_proto_min(reg(0));
        })
    }

    /// `masquerade to :PORT-PORT`, from registers 0 and 1
    pub(super) fn masquerade_to_ports(self) -> Self {
        self.expression(c"masq", |octets| {
            PushExprMasqAttrs::new(octets)
                .push_flags(NatRangeFlags::ProtoSpecified as u32)
                .push_reg_proto_min(reg(0))
                .push_reg_proto_max(reg(1));
        })
    }

    /// `reject with tcp reset`
    pub(super) fn reject_with_reset(mut self) -> Self {
        PushExprListAttrs::new(&mut self.0)
            .nested_elem()
            .nested_data_reject()
            .push_type(RejectTypes::TcpRst as u32)
            .push_icmp_code(0);
        self
    }

    /// `counter`
    pub(super) fn counter(mut self) -> Self {
        let counter: PushExprCounterAttrs<_> =
            PushExprListAttrs::new(&mut self.0).nested_elem().nested_data_counter();
        drop(counter.push_bytes(0).push_packets(0));
        self
    }

    /// `meta mark set meta mark | BITS`
    pub(super) fn mark(self, bits: u32) -> Self {
        let loaded = self.meta(MetaKeys::Mark, 0);
        let mut set = loaded.bitwise(0, &(!bits).to_ne_bytes(), &bits.to_ne_bytes());
        PushExprListAttrs::new(&mut set.0)
            .nested_elem()
            .nested_data_meta()
            .push_key(MetaKeys::Mark as u32)
            .push_sreg(reg(0));
        set
    }

    /// `accept`, `drop` or `return`
    pub(super) fn verdict(self, code: VerdictCode) -> Self {
        self.decide(code, None)
    }
    /// `jump CHAIN`
    pub(super) fn jump(self, chain: &str) -> Self {
        self.decide(VerdictCode::Jump, Some(chain))
    }
    /// `goto CHAIN`
    pub(super) fn goto(self, chain: &str) -> Self {
        self.decide(VerdictCode::Goto, Some(chain))
    }

    fn decide(mut self, code: VerdictCode, chain: Option<&str>) -> Self {
        let verdict = PushExprListAttrs::new(&mut self.0)
            .nested_elem()
            .nested_data_immediate()
            .push_dreg(Registers::RegVerdict as u32)
            .nested_data()
            .nested_verdict()
            .push_code(code as u32);
        match chain {
            Some(chain) => drop(verdict.push_chain_bytes(chain.as_bytes())),
            None => drop(verdict),
        }
        self
    }

    fn meta(mut self, key: MetaKeys, register: usize) -> Self {
        PushExprListAttrs::new(&mut self.0)
            .nested_elem()
            .nested_data_meta()
            .push_key(key as u32)
            .push_dreg(reg(register));
        self
    }

    fn payload(mut self, base: PayloadBase, offset: u32, len: u32, register: usize) -> Self {
        PushExprListAttrs::new(&mut self.0)
            .nested_elem()
            .nested_data_payload()
            .push_dreg(reg(register))
            .push_base(base as u32)
            .push_offset(offset)
            .push_len(len);
        self
    }

    /// The bindings number these attributes differently from the kernel.
    fn lookup(self, set: &str, value: Option<usize>, inverted: bool) -> Self {
        self.lookup_of(set, None, value, inverted)
    }

    /// `id`: of a set that has no name yet.
    fn lookup_of(self, set: &str, id: Option<u32>, value: Option<usize>, inverted: bool) -> Self {
        const NFTA_LOOKUP_SET: u16 = 1;
        const NFTA_LOOKUP_SREG: u16 = 2;
        const NFTA_LOOKUP_DREG: u16 = 3;
        const NFTA_LOOKUP_SET_ID: u16 = 4;
        const NFTA_LOOKUP_FLAGS: u16 = 5;
        self.expression(c"lookup", |octets| {
            let len = u16::try_from(set.len() + 1).expect("our sets have short names");
            push_header(octets, NFTA_LOOKUP_SET, len);
            octets.extend(set.as_bytes());
            octets.push(0);
            octets.resize(octets.len().next_multiple_of(4), 0);
            push_header(octets, NFTA_LOOKUP_SREG, 4);
            octets.extend(reg(0).to_be_bytes());
            if let Some(register) = value {
                push_header(octets, NFTA_LOOKUP_DREG, 4);
                octets.extend(reg(register).to_be_bytes());
            }
            if let Some(id) = id {
                push_header(octets, NFTA_LOOKUP_SET_ID, 4);
                // In the order in which the bindings write the set's own.
                octets.extend(id.to_ne_bytes());
            }
            if inverted {
                push_header(octets, NFTA_LOOKUP_FLAGS, 4);
                octets.extend((LookupFlags::Invert as u32).to_be_bytes());
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

    fn mask(self, mask: &[u8]) -> Self {
        self.mask_at(0, mask)
    }

    /// `& MASK`, of a register or, with sixteen octets, of four
    pub(super) fn mask_at(self, register: usize, mask: &[u8]) -> Self {
        self.bitwise(register, mask, &vec![0; mask.len()])
    }

    fn bitwise(mut self, register: usize, mask: &[u8], xor: &[u8]) -> Self {
        let len = u32::try_from(mask.len()).expect("a mask has at most sixteen octets");
        PushExprListAttrs::new(&mut self.0)
            .nested_elem()
            .nested_data_bitwise()
            .push_sreg(reg(register))
            .push_dreg(reg(register))
            .push_len(len)
            .nested_mask()
            .push_value(mask)
            .end_nested()
            .nested_xor()
            .push_value(xor);
        self
    }

    fn cmp(mut self, op: CmpOps, value: &[u8]) -> Self {
        PushExprListAttrs::new(&mut self.0)
            .nested_elem()
            .nested_data_cmp()
            .push_sreg(reg(0))
            .push_op(op as u32)
            .nested_data()
            .push_value(value);
        self
    }
}
