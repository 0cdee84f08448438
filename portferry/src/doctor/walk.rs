//! Walks a packet through the machine's rules, as the kernel would, and says what becomes of it. Without I/O.
//!
//! The packet is a typical one, and all of it is known: a rule that asks for something else about it does not match. What nobody
//! here understands may match or not: what would be dropped otherwise, and may be accepted by such a rule, is unclear. A rule that
//! may drop is passed over: most such are for what is not typical, and a warning of each would be of no use.

use std::cell::Cell;
use std::net::Ipv4Addr;

use crate::nft::reading::{Base, Chain, Compare, Element, Load, REGISTERS, Ruleset, Set, Step, To, Verdict};

use super::xtables;

/// Of `NF_INET_*`.
pub(crate) const INPUT: u32 = 1;
pub(crate) const FORWARD: u32 = 2;
pub(crate) const POSTROUTING: u32 = 4;

/// Of `NFT_META_*` and of `NFT_CT_*`.
const MARK: u32 = 3;
/// Chains may jump so deep; the kernel has 16.
const MAX_DEPTH: usize = 16;
/// More rules than any packet meets.
const MAX_RULES: usize = 200_000;

/// A packet and what connection tracking knows of it.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) hook: u32,
    pub(crate) arrives: (String, u32),
    /// Nothing for what is for this machine.
    pub(crate) leaves: Option<(String, u32)>,
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    /// 6 or 17.
    pub(crate) protocol: u8,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    /// It belongs to a flow that was let through before.
    pub(crate) established: bool,
    /// Its destination was translated.
    pub(crate) translated: bool,
    /// Bits of its mark that we set; others may have set more.
    pub(crate) mark: u32,
}

/// What becomes of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    Passes,
    Dropped(Place),
    /// It would be dropped there, if a rule that is not understood does not accept it.
    Unclear(Place, String),
}

/// Where a packet is dropped.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    /// `inet fw4`
    pub(crate) table: String,
    pub(crate) chain: String,
    /// "its policy", "a rule", "a reject".
    pub(crate) by: &'static str,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "table {}, chain {}, by {}", self.table, self.chain, self.by)
    }
}

/// Whether something matches.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Matches {
    Yes,
    No,
    Maybe,
}

impl From<bool> for Matches {
    fn from(yes: bool) -> Self {
        if yes { Matches::Yes } else { Matches::No }
    }
}

impl Matches {
    /// The opposite, if `inverted`.
    pub(crate) fn inverted(self, inverted: bool) -> Self {
        match self {
            Matches::Yes if inverted => Matches::No,
            Matches::No if inverted => Matches::Yes,
            other => other,
        }
    }
}

/// What a chain comes to.
enum End {
    Accept,
    Drop(Place),
    /// The caller goes on.
    Return,
}

/// Walks `packet` through every base chain of its hook, the lowest priority first.
pub(crate) fn walk(rules: &Ruleset, packet: &Packet) -> Outcome {
    let mut unclear = None;
    for (chain, base) in base_chains(rules, packet, "filter") {
        let mut walker = Walker::new(rules, packet);
        let dropped = match walker.chain(chain, true, 0) {
            End::Accept => None,
            End::Drop(place) => Some(place),
            End::Return => base.drops.then(|| place(chain, "its policy")),
        };
        match (dropped, walker.perhaps_accepted) {
            (Some(place), None) => return Outcome::Dropped(place),
            (Some(place), Some(what)) => drop(unclear.get_or_insert(Outcome::Unclear(place, what))),
            (None, _) => {}
        }
    }
    unclear.unwrap_or(Outcome::Passes)
}

/// Whether somebody gives `packet` another source on its way out.
pub(crate) fn masquerades(rules: &Ruleset, packet: &Packet) -> bool {
    base_chains(rules, packet, "nat").iter().any(|(chain, _)| {
        let mut walker = Walker::new(rules, packet);
        walker.chain(chain, true, 0);
        walker.masqueraded.get()
    })
}

/// In the order in which the kernel calls them.
fn base_chains<'a>(rules: &'a Ruleset, packet: &Packet, kind: &str) -> Vec<(&'a Chain, &'a Base)> {
    let all = rules.chains.iter().filter_map(|chain| Some((chain, chain.base.as_ref()?)));
    let mut chains: Vec<_> = all.filter(|(_, base)| base.hook == packet.hook && base.kind == kind).collect();
    chains.sort_by_key(|(_, base)| base.priority);
    chains
}

fn place(chain: &Chain, by: &'static str) -> Place {
    let family = match chain.table.family {
        crate::nft::reading::Family::Ip => "ip",
        crate::nft::reading::Family::Inet => "inet",
    };
    Place { table: format!("{family} {}", chain.table.name), chain: chain.name.clone(), by }
}

struct Walker<'a> {
    rules: &'a Ruleset,
    packet: &'a Packet,
    left: usize,
    /// Some rule sets marks, so that nobody knows them; otherwise there are none.
    marks: bool,
    /// Where it would have been accepted if a rule matched that is not understood.
    perhaps_accepted: Option<String>,
    masqueraded: Cell<bool>,
}

/// What registers hold; nothing for what is not known.
type Registers = [Option<u8>; REGISTERS];

impl<'a> Walker<'a> {
    fn new(rules: &'a Ruleset, packet: &'a Packet) -> Self {
        let sets_marks = |step: &Step| match step {
            Step::SetsMark => true,
            Step::Target { name } => xtables::sets_marks(name),
            _ => false,
        };
        let marks = rules.chains.iter().flat_map(|chain| &chain.rules).flatten().any(sets_marks);
        Self { rules, packet, left: MAX_RULES, marks, perhaps_accepted: None, masqueraded: Cell::new(false) }
    }

    /// `sure`: the chain is reached without doubt; otherwise what it decides is only noted.
    fn chain(&mut self, chain: &Chain, sure: bool, depth: usize) -> End {
        for rule in &chain.rules {
            if self.left == 0 {
                return End::Return;
            }
            self.left -= 1;
            if let Some((verdict, certain)) = self.rule(chain, rule) {
                match self.decide(chain, &verdict, sure && certain, depth) {
                    Some(end) if sure && certain => return end,
                    _ => {}
                }
            }
        }
        End::Return
    }

    /// The end of the chain, or `None` to go on with its next rule.
    fn decide(&mut self, chain: &Chain, verdict: &Verdict, certain: bool, depth: usize) -> Option<End> {
        match verdict {
            Verdict::Accept if certain => Some(End::Accept),
            Verdict::Accept | Verdict::Queue => {
                let table = place(chain, "").table;
                self.perhaps_accepted.get_or_insert(format!("table {table}, chain {}", chain.name));
                None
            }
            Verdict::Drop => Some(End::Drop(place(chain, "a rule"))),
            Verdict::Reject => Some(End::Drop(place(chain, "a reject"))),
            Verdict::Return => Some(End::Return),
            Verdict::Jump(name) | Verdict::Goto(name) => {
                let rules = self.rules;
                let of_it = |other: &&Chain| other.table == chain.table && other.name == *name;
                let target = rules.chains.iter().find(of_it).filter(|_| depth < MAX_DEPTH)?;
                match self.chain(target, certain, depth + 1) {
                    End::Return if matches!(verdict, Verdict::Jump(_)) => None,
                    end => Some(end),
                }
            }
        }
    }

    /// What the rule decides, and whether it certainly does; `None` when it does not match, or decides nothing.
    fn rule(&self, chain: &Chain, steps: &[Step]) -> Option<(Verdict, bool)> {
        let mut registers: Registers = [None; REGISTERS];
        let mut certain = true;
        // The register that has the packet's mark, of which some bits may be known.
        let mut mark_in = None;
        for step in steps {
            let matches = match step {
                Step::Load { to, len, what } => {
                    let value = self.load(what, *len);
                    put(&mut registers, *to, value.into_iter());
                    mark_in = (*what == Load::Meta(MARK)).then_some(*to);
                    Matches::Yes
                }
                Step::Constant { to, value } => {
                    put(&mut registers, *to, value.iter().copied().map(Some));
                    Matches::Yes
                }
                Step::Mask { from, to, mask, xor } => {
                    let known = mark_in.take().filter(|register| register == from);
                    if let Some(bits) = known.and_then(|_| self.packet.known_of_mark(mask)) {
                        put(&mut registers, *from, bits.to_ne_bytes().into_iter().map(Some));
                    }
                    let value: Vec<_> = masked(&registers, *from, mask, xor).collect();
                    put(&mut registers, *to, value.into_iter());
                    Matches::Yes
                }
                Step::Swap { from, to, len, size } => {
                    let value: Vec<_> = registers.iter().skip(*from).take(*len).copied().collect();
                    let turned = value.chunks((*size).max(1)).flat_map(|part| part.iter().rev().copied());
                    put(&mut registers, *to, turned.collect::<Vec<_>>().into_iter());
                    Matches::Yes
                }
                Step::Compare { from, how, value } => compare(&registers, *from, *how, value),
                Step::Range { from, inverted, first, last } => match known(&registers, *from, first.len()) {
                    Some(value) => Matches::from(*first <= value && value <= *last).inverted(*inverted),
                    None => Matches::Maybe,
                },
                Step::Lookup { set, from, to, inverted } => {
                    let set = self.rules.sets.get(&(chain.table.clone(), set.clone()));
                    let (found, element) = look_up(set, &registers, *from);
                    match (to, element) {
                        (To::Verdict, Some(element)) => {
                            return element.verdict.clone().map(|verdict| (verdict, certain));
                        }
                        // Any of its verdicts.
                        (To::Verdict, None) if found == Matches::Maybe => {
                            return Some((Verdict::Queue, false));
                        }
                        (To::Register(to), Some(Element { value: Some(value), .. })) => {
                            put(&mut registers, *to, value.iter().copied().map(Some));
                        }
                        _ => {}
                    }
                    found.inverted(*inverted)
                }
                Step::Verdict(verdict) => return Some((verdict.clone(), certain)),
                Step::Limit { over } => Matches::from(!over),
                Step::Match { name, info, .. } if self.marks && xtables::asks_for_marks(name) => {
                    xtables::known_mark(name, info, self.packet).unwrap_or(Matches::Maybe)
                }
                Step::Match { name, revision, info } => xtables::matches(name, *revision, info, self.packet),
                Step::Target { name } => match xtables::target(name) {
                    xtables::Target::GoesOn => Matches::Yes,
                    xtables::Target::Rejects => return Some((Verdict::Reject, certain)),
                    xtables::Target::Masquerades => {
                        self.masqueraded.set(true);
                        return Some((Verdict::Accept, certain));
                    }
                    xtables::Target::Unknown => return Some((Verdict::Queue, false)),
                },
                Step::Masquerade => {
                    self.masqueraded.set(true);
                    return Some((Verdict::Accept, certain));
                }
                Step::Redirect | Step::SetsMark | Step::Nothing => Matches::Yes,
                Step::Unknown(_) => Matches::Maybe,
            };
            match matches {
                Matches::Yes => {}
                Matches::No => return None,
                Matches::Maybe => certain = false,
            }
        }
        None
    }

    fn load(&self, what: &Load, len: usize) -> Vec<Option<u8>> {
        let packet = self.packet;
        let name = |interface: &str| {
            let mut octets = interface.as_bytes().to_vec();
            octets.resize(16, 0);
            Some(octets)
        };
        let leaves = packet.leaves.as_ref();
        let value = match what {
            Load::Meta(1) => Some(0x0800_u16.to_be_bytes().to_vec()),
            Load::Meta(MARK) if !self.marks => Some(packet.mark.to_ne_bytes().to_vec()),
            Load::Conntrack(MARK) if !self.marks => Some(vec![0; 4]),
            Load::Meta(4) => Some(packet.arrives.1.to_ne_bytes().to_vec()),
            Load::Meta(5) => Some(leaves.map_or(0, |(_, index)| *index).to_ne_bytes().to_vec()),
            Load::Meta(6) => name(&packet.arrives.0),
            Load::Meta(7) => name(leaves.map_or("", |(name, _)| name)),
            Load::Meta(15) => Some(vec![2]),
            Load::Meta(16) => Some(vec![packet.protocol]),
            Load::Meta(19) => Some(vec![if packet.destination.is_multicast() { 2 } else { 0 }]),
            Load::Conntrack(0) => Some(packet.state().to_ne_bytes().to_vec()),
            Load::Conntrack(2) => Some(packet.status().to_ne_bytes().to_vec()),
            Load::Payload { base: 1, offset } => return part(&packet.network_header(), *offset, len),
            Load::Payload { base: 2, offset } => return part(&packet.transport_header(), *offset, len),
            // The kind of the destination's, or the source's, address.
            Load::Fib { result: 3, flags } if flags & 2 != 0 => {
                Some(u32::from(packet.destination_kind()).to_ne_bytes().to_vec())
            }
            Load::Fib { result: 3, flags } if flags & 1 != 0 => Some(1_u32.to_ne_bytes().to_vec()),
            _ => None,
        };
        let mut value: Vec<_> = value.unwrap_or_default().into_iter().map(Some).collect();
        value.resize(len, None);
        value
    }
}

impl Packet {
    /// `NF_CT_STATE_BIT`.
    pub(crate) fn state(&self) -> u32 {
        if self.established { 2 } else { 8 }
    }

    /// `IPS_*`: confirmed, assured and answered; translated.
    pub(crate) fn status(&self) -> u32 {
        let of_flow = if self.established { 0x0e } else { 0 };
        of_flow | if self.translated { 0x20 } else { 0 }
    }

    /// What a mask leaves of the mark, if that is of our bits alone.
    fn known_of_mark(&self, mask: &[u8]) -> Option<u32> {
        let mask = u32::from_ne_bytes(mask.try_into().ok()?);
        (self.mark != 0 && mask & !self.mark == 0).then_some(self.mark)
    }

    /// `RTN_*`.
    pub(crate) fn destination_kind(&self) -> u8 {
        match (self.destination.is_multicast(), self.hook) {
            (true, _) => 5,
            (false, INPUT) => 2,
            _ => 1,
        }
    }

    fn network_header(&self) -> Vec<Option<u8>> {
        let mut header = vec![None; 20];
        header[0] = Some(0x45);
        (header[6], header[7]) = (Some(0x40), Some(0)); // one piece
        header[9] = Some(self.protocol);
        put_octets(&mut header, 12, &self.source.octets());
        put_octets(&mut header, 16, &self.destination.octets());
        header
    }

    fn transport_header(&self) -> Vec<Option<u8>> {
        let mut header = vec![None; 20];
        put_octets(&mut header, 0, &self.source_port.to_be_bytes());
        put_octets(&mut header, 2, &self.destination_port.to_be_bytes());
        if self.protocol == 6 {
            header[12] = Some(0x50);
            header[13] = Some(self.tcp_flags());
        }
        header
    }

    /// SYN, or ACK later.
    pub(crate) fn tcp_flags(&self) -> u8 {
        if self.established { 0x10 } else { 0x02 }
    }
}

fn put_octets(header: &mut [Option<u8>], at: usize, octets: &[u8]) {
    for (place, octet) in header[at..].iter_mut().zip(octets) {
        *place = Some(*octet);
    }
}

fn part(header: &[Option<u8>], offset: u32, len: usize) -> Vec<Option<u8>> {
    (0..len).map(|n| header.get(offset as usize + n).copied().flatten()).collect()
}

/// The kernel fills the last of the four-octet registers with zeros.
fn put(registers: &mut Registers, at: usize, value: impl Iterator<Item = Option<u8>>) {
    let mut value = value.peekable();
    for register in registers[at.min(REGISTERS)..].chunks_mut(4) {
        if value.peek().is_none() {
            return;
        }
        register.fill_with(|| value.next().unwrap_or(Some(0)));
    }
}

fn known(registers: &Registers, from: usize, len: usize) -> Option<Vec<u8>> {
    registers.get(from..from + len)?.iter().copied().collect()
}

/// An octet that is masked away is known.
fn masked(registers: &Registers, from: usize, mask: &[u8], xor: &[u8]) -> impl Iterator<Item = Option<u8>> {
    let octets = registers.iter().skip(from).zip(mask);
    octets.enumerate().map(|(n, (octet, mask))| {
        let octet = if *mask == 0 { Some(0) } else { *octet };
        octet.map(|octet| octet & mask ^ xor.get(n).copied().unwrap_or(0))
    })
}

fn compare(registers: &Registers, from: usize, how: Compare, value: &[u8]) -> Matches {
    let Some(own) = known(registers, from, value.len()) else { return Matches::Maybe };
    let own = own.as_slice();
    Matches::from(match how {
        Compare::Equal => own == value,
        Compare::Unequal => own != value,
        Compare::Less => own < value,
        Compare::LessOrEqual => own <= value,
        Compare::Greater => own > value,
        Compare::GreaterOrEqual => own >= value,
    })
}

fn look_up<'a>(set: Option<&'a Set>, registers: &Registers, from: usize) -> (Matches, Option<&'a Element>) {
    let Some(set) = set else { return (Matches::Maybe, None) };
    let Some(key) = known(registers, from, set.key_len) else { return (Matches::Maybe, None) };
    let elements = || set.elements.iter().filter(|element| !element.is_catch_all());
    let within = |element: &&Element| match &element.key_end {
        // Field by field, in a concatenation; each is padded to four octets.
        Some(end) => {
            let fields = key.chunks(4).zip(element.key.chunks(4)).zip(end.chunks(4));
            fields.into_iter().all(|((key, first), last)| first <= key && key <= last)
        }
        None => element.key == key,
    };
    let found = if set.intervals && elements().all(|element| element.key_end.is_none()) {
        let below = elements().rfind(|element| element.key <= key);
        below.filter(|element| !element.ends)
    } else {
        elements().find(within)
    };
    match found {
        Some(element) => (Matches::Yes, Some(element)),
        None if set.incomplete => (Matches::Maybe, None),
        None => match set.elements.iter().find(|element| element.is_catch_all()) {
            Some(element) => (Matches::Yes, Some(element)),
            None => (Matches::No, None),
        },
    }
}

#[cfg(test)]
#[path = "walk_tests.rs"]
mod tests;
