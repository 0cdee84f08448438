//! The machine's nf_tables rules, whoever made them, as plain values: for `portferry doctor`, which walks a packet through them.
//! It only reads. What it has no word for stays in as [`Step::Unknown`], so that nobody takes it for nothing.

use std::collections::BTreeMap;
use std::io;

use netlink_bindings::nftables::{Nfgenmsg, Request};
use netlink_socket2::{ReplyError, tokio::NetlinkSocket};

use super::link::Link;

const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
/// A set with more elements than that is not read: what is in it counts as unknown.
const MAX_ELEMENTS: usize = 20_000;
const SET_INTERVAL: u32 = 0x4;
const ELEMENT_END: u32 = 0x1;
/// Of `NFT_META_*` and of `NFT_CT_*`.
const MARK: u32 = 3;
const VERDICT_JUMP: i32 = -3;
const VERDICT_GOTO: i32 = -4;
const VERDICT_RETURN: i32 = -5;
/// Octets of the kernel's sixteen 4-octet registers.
pub(crate) const REGISTERS: usize = 64;

/// What was read, of the families ip and inet.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Ruleset {
    pub(crate) chains: Vec<Chain>,
    pub(crate) sets: BTreeMap<SetName, Set>,
}

/// A table, by its family and name.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct TableName {
    pub(crate) family: Family,
    pub(crate) name: String,
}

/// A set, by its table and its own name.
pub(crate) type SetName = (TableName, String);

/// Whose packets a table sees.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Family {
    Ip,
    Inet,
}

/// A chain and its rules, in their order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chain {
    pub(crate) table: TableName,
    pub(crate) name: String,
    /// Where the kernel calls it; nothing for one that others jump to.
    pub(crate) base: Option<Base>,
    pub(crate) rules: Vec<Vec<Step>>,
}

/// Where and when the kernel calls a chain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Base {
    /// `NF_INET_*`.
    pub(crate) hook: u32,
    pub(crate) priority: i32,
    /// "filter", "nat" or "route".
    pub(crate) kind: String,
    pub(crate) drops: bool,
}

/// One expression of a rule. Registers are offsets in octets.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Something of the packet into a register.
    Load {
        to: usize,
        len: usize,
        what: Load,
    },
    Constant {
        to: usize,
        value: Vec<u8>,
    },
    Mask {
        from: usize,
        to: usize,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    /// Each group of so many octets is turned round.
    Swap {
        from: usize,
        to: usize,
        len: usize,
        size: usize,
    },
    Compare {
        from: usize,
        how: Compare,
        value: Vec<u8>,
    },
    Range {
        from: usize,
        inverted: bool,
        first: Vec<u8>,
        last: Vec<u8>,
    },
    /// `to`: the register of the element's value; [`To::Verdict`] for a verdict map.
    Lookup {
        set: String,
        from: usize,
        to: To,
        inverted: bool,
    },
    Verdict(Verdict),
    /// A rate or a quota; `over`: matches what exceeds it.
    Limit {
        over: bool,
    },
    /// A match of xtables, as iptables-nft writes them.
    Match {
        name: String,
        revision: u32,
        info: Vec<u8>,
    },
    /// A target of xtables.
    Target {
        name: String,
    },
    /// The source is translated: snat or masquerade.
    Masquerade,
    /// The destination is translated.
    Redirect,
    /// A mark of a packet or flow is set: the rule goes on.
    SetsMark,
    /// Counts, logs, and the like: the rule goes on.
    Nothing,
    /// Nobody here knows whether it matches.
    Unknown(String),
}

/// Where a lookup's value goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum To {
    Nowhere,
    Verdict,
    Register(usize),
}

/// What is loaded, with the kernel's numbers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Load {
    Meta(u32),
    Conntrack(u32),
    Payload {
        base: u32,
        offset: u32,
    },
    /// What the routing table says of an address.
    Fib {
        result: u32,
        flags: u32,
    },
    Other(String),
}

/// How two values compare.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Compare {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// What a rule decides.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    Accept,
    Drop,
    Reject,
    Return,
    Jump(String),
    Goto(String),
    /// To a program, which decides.
    Queue,
}

/// The elements of a set or map.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Set {
    pub(crate) key_len: usize,
    pub(crate) intervals: bool,
    /// Not all of it was read.
    pub(crate) incomplete: bool,
    /// Sorted by key, what ends an interval before what begins one.
    pub(crate) elements: Vec<Element>,
}

/// One element.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Element {
    /// Empty: see [`Self::is_catch_all`].
    pub(crate) key: Vec<u8>,
    /// The last key of an interval, where the kernel keeps it with the first.
    pub(crate) key_end: Option<Vec<u8>>,
    /// It is the end of an interval, the first key that is no longer in it.
    pub(crate) ends: bool,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) verdict: Option<Verdict>,
}

impl Element {
    /// It stands for every key that is in no other element; the kernel sends it without one.
    pub(crate) fn is_catch_all(&self) -> bool {
        self.key.is_empty()
    }
}

impl Ruleset {
    /// Reads all of it.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] without CAP_NET_ADMIN; else what the kernel says.
    pub(crate) async fn read() -> io::Result<Self> {
        Link::default().ask("reading nftables", async |socket| read(socket).await).await
    }

    /// What a table of ours marks is known, and is told with the packet.
    pub(crate) fn knows_marks_of(&mut self, name: &str) {
        let is_it = |chain: &&mut Chain| chain.table.family == Family::Inet && chain.table.name == name;
        let steps = self.chains.iter_mut().filter(is_it).flat_map(|chain| &mut chain.rules).flatten();
        steps.filter(|step| **step == Step::SetsMark).for_each(|step| *step = Step::Nothing);
    }

    /// Whether there is such a table.
    pub(crate) fn has_table(&self, family: Family, name: &str) -> bool {
        let is_it = |table: &TableName| table.family == family && table.name == name;
        self.chains.iter().any(|chain| is_it(&chain.table)) || self.sets.keys().any(|(table, _)| is_it(table))
    }
}

fn families() -> [(Family, u8); 2] {
    [(Family::Ip, NFPROTO_IPV4), (Family::Inet, NFPROTO_INET)]
}

fn header(family: u8) -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = family;
    header
}

async fn read(socket: &mut NetlinkSocket) -> Result<Ruleset, ReplyError> {
    let mut ruleset = Ruleset::default();
    for (family, number) in families() {
        let header = header(number);
        let mut replies = socket.request(&Request::new().op_getchain_dump(&header)).await?;
        while let Some(reply) = replies.recv().await {
            ruleset.chains.extend(chain(family, reply?.1.get_buf()));
        }
        let mut replies = socket.request(&Request::new().op_getrule_dump(&header)).await?;
        while let Some(reply) = replies.recv().await {
            add_rule(&mut ruleset.chains, family, reply?.1.get_buf());
        }
        let mut names = Vec::new();
        let mut replies = socket.request(&Request::new().op_getset_dump(&header)).await?;
        while let Some(reply) = replies.recv().await {
            let attrs = reply?.1.get_buf();
            let table = TableName { family, name: text(attrs, 1) };
            let set = Set {
                key_len: number_of(attrs, 5) as usize,
                intervals: number_of(attrs, 3) & SET_INTERVAL != 0,
                ..Set::default()
            };
            names.push(((table, text(attrs, 2)), set));
        }
        for (name, mut set) in names {
            elements(socket, &header, &name, &mut set).await?;
            ruleset.sets.insert(name, set);
        }
    }
    Ok(ruleset)
}

async fn elements(
    socket: &mut NetlinkSocket,
    header: &Nfgenmsg,
    (table, name): &SetName,
    set: &mut Set,
) -> Result<(), ReplyError> {
    let mut request = Request::new().op_getsetelem_dump(header);
    let _ = request.encode().push_table_bytes(table.name.as_bytes()).push_set_bytes(name.as_bytes());
    let mut replies = socket.request(&request).await?;
    while let Some(reply) = replies.recv().await {
        let attrs = reply?.1.get_buf();
        for (_, one) in attributes(attribute(attrs, 3).unwrap_or_default()) {
            if set.elements.len() < MAX_ELEMENTS {
                set.elements.push(element(one));
            } else {
                set.incomplete = true;
            }
        }
    }
    set.elements.sort_by(|a, b| a.key.cmp(&b.key).then(b.ends.cmp(&a.ends)));
    Ok(())
}

fn element(attrs: &[u8]) -> Element {
    let data = attribute(attrs, 2);
    Element {
        key: value(attrs, 1),
        key_end: attribute(attrs, 10).map(|_| value(attrs, 10)),
        ends: number_of(attrs, 3) & ELEMENT_END != 0,
        value: data.and_then(|data| attribute(data, 1)).map(<[u8]>::to_vec),
        verdict: data.and_then(|data| attribute(data, 2)).and_then(verdict),
    }
}

fn chain(family: Family, attrs: &[u8]) -> Option<Chain> {
    let base = attribute(attrs, 4).map(|hook| Base {
        hook: number_of(hook, 1),
        priority: number_of(hook, 2).cast_signed(),
        kind: text(attrs, 7),
        drops: attribute(attrs, 5).is_some() && number_of(attrs, 5) == 0,
    });
    let table = TableName { family, name: text(attrs, 1) };
    Some(Chain { table, name: text(attrs, 3), base, rules: Vec::new() })
}

fn add_rule(chains: &mut [Chain], family: Family, attrs: &[u8]) {
    let (table, name) = (text(attrs, 1), text(attrs, 2));
    let mut chains = chains.iter_mut();
    let of_it =
        |chain: &&mut Chain| chain.table.family == family && chain.table.name == table && chain.name == name;
    if let Some(chain) = chains.find(of_it) {
        let expressions = attributes(attribute(attrs, 4).unwrap_or_default());
        chain.rules.push(expressions.map(|(_, expression)| step(expression)).collect());
    }
}

/// One expression, by the kernel's own numbers of its attributes (`nf_tables.h`).
fn step(expression: &[u8]) -> Step {
    let name = text(expression, 1);
    let a = attribute(expression, 2).unwrap_or_default();
    let (one, two) = (register(number_of(a, 1)), register(number_of(a, 2)));
    match name.as_str() {
        "counter" | "log" | "comment" | "notrack" | "flow_offload" | "last" | "dup" => Step::Nothing,
        "immediate" => match attribute(a, 2).and_then(|data| attribute(data, 2)).map(verdict) {
            Some(Some(verdict)) => Step::Verdict(verdict),
            Some(None) => Step::Nothing, // continue, break
            None => Step::Constant { to: one, value: value(a, 2) },
        },
        "cmp" => Step::Compare { from: one, how: compare(number_of(a, 2)), value: value(a, 3) },
        "bitwise" if number_of(a, 6) == 0 => {
            Step::Mask { from: one, to: two, mask: value(a, 4), xor: value(a, 5) }
        }
        "byteorder" => {
            Step::Swap { from: one, to: two, len: number_of(a, 4) as usize, size: number_of(a, 5) as usize }
        }
        "meta" if attribute(a, 1).is_some() => {
            let key = number_of(a, 2);
            Step::Load { to: one, len: meta_len(key), what: Load::Meta(key) }
        }
        "ct" if attribute(a, 1).is_some() => {
            let key = number_of(a, 2);
            // Anything that has a direction is of the flow as it began.
            let what = match attribute(a, 3) {
                Some(_) => Load::Other("ct".to_owned()),
                None => Load::Conntrack(key),
            };
            Step::Load { to: one, len: 4, what }
        }
        "meta" | "ct" if number_of(a, 2) == MARK => Step::SetsMark,
        "meta" | "ct" => Step::Nothing,
        "payload" if attribute(a, 1).is_some() => {
            let what = Load::Payload { base: number_of(a, 2), offset: number_of(a, 3) };
            Step::Load { to: one, len: number_of(a, 4) as usize, what }
        }
        "payload" => Step::Nothing,
        "lookup" => {
            let to = match attribute(a, 3).map(|_| number_of(a, 3)) {
                None => To::Nowhere,
                Some(0) => To::Verdict,
                Some(number) => To::Register(register(number)),
            };
            let inverted = number_of(a, 5) & 1 != 0;
            Step::Lookup { set: text(a, 1), from: two, to, inverted }
        }
        "range" => {
            Step::Range { from: one, inverted: number_of(a, 2) == 1, first: value(a, 3), last: value(a, 4) }
        }
        "quota" => Step::Limit { over: number_of(a, 2) & 1 != 0 },
        "limit" => Step::Limit { over: number_of(a, 5) & 1 != 0 },
        "match" => Step::Match {
            name: text(a, 1),
            revision: number_of(a, 2),
            info: attribute(a, 3).unwrap_or_default().to_vec(),
        },
        "target" => Step::Target { name: text(a, 1) },
        "reject" => Step::Verdict(Verdict::Reject),
        "queue" => Step::Verdict(Verdict::Queue),
        "masq" => Step::Masquerade,
        "nat" if number_of(a, 1) == 0 => Step::Masquerade,
        "nat" | "redir" | "tproxy" => Step::Redirect,
        // A counter that has a name; anything else with one may be a limit.
        "objref" if number_of(a, 1) == 1 => Step::Nothing,
        // Elements are added to a set; with an expression of its own it may stop the rule.
        "dynset" if attribute(a, 7).is_none() && attribute(a, 10).is_none() => Step::Nothing,
        "fib" => {
            let what = Load::Fib { result: number_of(a, 2), flags: number_of(a, 3) };
            Step::Load { to: one, len: 4, what }
        }
        "rt" | "socket" | "exthdr" | "hash" | "numgen" | "osf" | "xfrm" | "tunnel" => {
            let to = if matches!(name.as_str(), "hash") { two } else { one };
            Step::Load { to, len: 16, what: Load::Other(name) }
        }
        _ => Step::Unknown(name),
    }
}

fn verdict(attrs: &[u8]) -> Option<Verdict> {
    let chain = || text(attrs, 2);
    Some(match number_of(attrs, 1).cast_signed() {
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        VERDICT_JUMP => Verdict::Jump(chain()),
        VERDICT_GOTO => Verdict::Goto(chain()),
        VERDICT_RETURN => Verdict::Return,
        code if code & 0xff == 3 => Verdict::Queue,
        _ => return None,
    })
}

fn compare(number: u32) -> Compare {
    match number {
        0 => Compare::Equal,
        1 => Compare::Unequal,
        2 => Compare::Less,
        3 => Compare::LessOrEqual,
        4 => Compare::Greater,
        _ => Compare::GreaterOrEqual,
    }
}

fn meta_len(key: u32) -> usize {
    match key {
        6 | 7 | 26 | 27 => 16, // names and kinds of interfaces
        1 | 8 | 9 => 2,        // Ethernet's protocol, types of interfaces
        15 | 16 | 19 => 1,     // family, transport protocol, kind of packet
        30 => 8,
        _ => 4,
    }
}

/// Registers 1 to 4 have sixteen octets, those from 8 on have four; both count from the same place.
fn register(number: u32) -> usize {
    let offset = match number {
        1..=4 => (number - 1) * 16,
        8..=23 => (number - 8) * 4,
        _ => 0,
    };
    offset as usize
}

/// The attributes of a message or of one that holds others.
pub(super) fn attributes(mut octets: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (&[l0, l1, k0, k1], _) = octets.split_first_chunk::<4>()?;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = octets.get(4..len)?;
        octets = octets.get(len.next_multiple_of(4)..).unwrap_or_default();
        // The upper bits say that it holds others, or that its octets are in network order.
        Some((u16::from_ne_bytes([k0, k1]) & 0x3fff, value))
    })
}

pub(super) fn attribute(octets: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(octets).find(|(own, _)| *own == kind).map(|(_, value)| value)
}

/// A number of up to four octets; 0 where there is none.
pub(super) fn number_of(octets: &[u8], kind: u16) -> u32 {
    let value = attribute(octets, kind).unwrap_or_default();
    value.iter().take(4).fold(0, |number, octet| number << 8 | u32::from(*octet))
}

pub(super) fn text(octets: &[u8], kind: u16) -> String {
    let value = attribute(octets, kind).unwrap_or_default();
    let end = value.iter().position(|octet| *octet == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// What is in an attribute's NFTA_DATA_VALUE.
fn value(octets: &[u8], kind: u16) -> Vec<u8> {
    attribute(octets, kind).and_then(|data| attribute(data, 1)).unwrap_or_default().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
        let len = u16::try_from(value.len() + 4).unwrap();
        let mut octets = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
        octets.extend(value);
        octets.resize(octets.len().next_multiple_of(4), 0);
        octets
    }

    fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
        [attr(1, format!("{name}\0").as_bytes()), attr(2 | 0x8000, &data.concat())].concat()
    }

    #[test]
    fn expressions_by_the_kernels_numbers() {
        let number = |kind, number: u32| attr(kind, &number.to_be_bytes());
        let data = |kind: u16, octets: &[u8]| attr(kind | 0x8000, &attr(1, octets));
        let jump = attr(2, &attr(2, &[attr(1, &(-3_i32).to_be_bytes()), attr(2, b"other\0")].concat()));
        for (octets, expected) in [
            (
                expression("meta", &[number(1, 1), number(2, 6)]),
                Step::Load { to: 0, len: 16, what: Load::Meta(6) },
            ),
            (
                expression("ct", &[number(1, 9), number(2, 2)]),
                Step::Load { to: 4, len: 4, what: Load::Conntrack(2) },
            ),
            (
                expression("cmp", &[number(1, 2), number(2, 1), data(3, &[7])]),
                Step::Compare { from: 16, how: Compare::Unequal, value: vec![7] },
            ),
            (
                expression("immediate", &[number(1, 0), jump]),
                Step::Verdict(Verdict::Jump("other".to_owned())),
            ),
            (
                expression("lookup", &[attr(1, b"__set0\0"), number(2, 1), number(3, 0)]),
                Step::Lookup { set: "__set0".to_owned(), from: 0, to: To::Verdict, inverted: false },
            ),
            (expression("limit", &[number(5, 1)]), Step::Limit { over: true }),
            (expression("quota", &[number(2, 1)]), Step::Limit { over: true }),
            (expression("meta", &[number(2, 3), number(3, 1)]), Step::SetsMark),
            (expression("quota", &[]), Step::Limit { over: false }),
            (expression("nat", &[number(1, 1)]), Step::Redirect),
            (expression("strange", &[]), Step::Unknown("strange".to_owned())),
        ] {
            assert_eq!(step(&octets), expected);
            for end in 0..octets.len() {
                let _ = step(&octets[..end]);
            }
        }
    }
}
