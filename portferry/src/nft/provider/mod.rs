//! A provider's NAT44 and IPv6 firewall, as one nf_tables table of ours: what a PCP server's mappings do to packets.
//!
//! A mapping is elements of maps and sets, never a rule, so a change costs the same however many mappings there are.
//! Every [`ProviderNat::apply`] is one kernel transaction. What the table holds is kept here too: it tells what a change
//! does to the kernel's state, makes the table anew when somebody has flushed it, and moves only with the kernel.
//!
//! ```text
//! table inet portferry-provider {
//!   map ports / protocols / hosts / peers   external address … : internal address …     (DNAT; a port, all ports of a
//!                                           protocol, everything, and one remote endpoint's PEER mapping)
//!   map sources / peer-sources              internal endpoint … : external endpoint      (SNAT of mapped ports)
//!   map pairs, prefix-pairs                 internal address : external address          (SNAT of everything else)
//!   set taken, reserved, owners             mapped ports, for dynamic flows to keep off
//!   set mapped4… filtered4…, mapped6…       internal endpoints that have mappings, and those that have filters
//!   set allowed4-ports-24 …                 who may come in there: one set for each length of a filter's prefix
//!   chain requests, answers   notrack, for what subscribers and the PCP server say to each other
//!   chain prerouting   dnat, for what comes from outside and for what comes from inside (hairpin)
//!   chain postrouting  snat: by the mapping, else to the subscriber's external address
//!   chain forward      from outside to inside only mappings, and of those with filters only what these let in
//!   chain input        the filters of mappings whose internal host is this router; from outside nothing to the PCP server
//!   chain strangers    counts and drops that
//!   chain hairpin      filters for subscribers, as whom they come out; and no dynamic flow on a mapped port
//! }
//! ```
//!
//! **Filters** (RFC 6887 §13.3) are elements of hash sets, keyed by the internal endpoint and the masked remote address.
//! They are looked up where packets leave, so a subscriber's hairpin packets count as coming from its external address. An
//! internal endpoint that has a mapping of its own has that one's filters also when an all-ports mapping led there. There is
//! a set and a rule for each prefix length that has been in use since the table was made: at most 33 lengths of IPv4
//! and 129 of IPv6, with or without a remote port, for each of the three kinds of mappings. One set with intervals
//! would need no such rules, but the kernel copies such a set as a whole with each change, and refuses overlapping
//! prefixes.
//!
//! **Dynamic translation and mapped ports.** A subscriber's flow from a port without a mapping keeps its port number
//! outside, unless that number is mapped on any external address: then it gets one at random. When the kernel sees a
//! number in use towards the same remote endpoint, it takes another one by itself. When the result happens to be mapped,
//! the flow's first packet is dropped, and its repetition gets another number. So a mapped port is used by its own host
//! only. A UDP flow that had it before the mapping came is ended; a TCP connection goes on, and until it ends its remote
//! endpoint, and no other, does not reach the mapped host there. PEER mappings (RFC 6887 §12) do not reserve their port
//! against other flows. The kernel gives a socket of a subscriber the same translation for all remote endpoints as long
//! as none of them has another flow there.
//!
//! **Hairpin** (RFC 4787 REQ-9): what a subscriber sends to an external address of the pool is translated at both ends,
//! so the host inside sees an external address and port. This needs a pair or [`ProviderConfig::default_external`] for
//! the sender. PEER mappings whose remote endpoint is an external address of the pool are not found this way.
//!
//! **The server's own packets** are no flows: a flood of requests would fill the kernel's flow table, which has one size
//! for everybody's connections, and make every change of a mapping slow. A firewall of this router must let UDP 5351 in from
//! inside by its port, and not by `ct state new`.
//!
//! **Limits.** What [`super`] says of other tables' `drop` and of our own holds here too. An all-protocols mapping takes
//! everything that comes to its external address, this router's own services among it; who may have one is the server's
//! decision. DCCP needs a kernel whose connection tracking knows it, which recent ones no longer do; those translate its
//! address only.
//!
//! **Cost of ending flows.** The kernel (Linux 6.10 and later) selects them itself, walking its flow table once or twice
//! for each change: some 0.1 ms for 250,000 empty buckets, and more the more flows there are. A narrower filter, a
//! mapping of all ports, or more than eight mapped ports at once need a list of the flows, which takes it some 20 ms.

mod flows;
mod ruleset;
mod state;

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4},
    ops::RangeInclusive,
};

pub use super::conntrack::FlowFrom;
use super::link::Link;
use super::{conntrack, counter, invalid, plain_name, rule};
use flows::Scopes;
use state::{State, Step};

/// Most ports of mappings that one [`ProviderNat::apply`] surely takes, old and new ones counted, without filters. Each
/// filter of a mapping adds an element for each of its ports.
pub const MAX_PORTS: usize = 768;

/// Elements that go into one transaction when the table is made anew.
const ELEMENTS_PER_TRANSACTION: usize = 2000;

/// One mapping.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Binding {
    /// IANA protocol number; 0: all protocols, then both ports are 0.
    pub protocol: u8,
    /// Must be `None`: a softwire's packets never pass this table.
    pub softwire: Option<Ipv6Addr>,
    /// Host and port inside; port 0: all ports. A mapping of one port needs a protocol with ports: TCP (6), UDP (17),
    /// DCCP (33), SCTP (132), UDP-Lite (136).
    pub internal: SocketAddr,
    /// What stands for it outside, of the same family; port 0 if the internal one is. IPv6: equal to `internal`.
    pub external: SocketAddr,
    /// 1, or the size of a PORT_SET: internal port + i and external port + i belong together.
    pub ports: u16,
    /// Who may send to it; empty: everybody.
    pub filters: Vec<Filter>,
    /// `Some`: made by PEER, for this remote endpoint only, without filters.
    pub peer: Option<SocketAddr>,
}

/// Remote peers that a mapping lets in (RFC 6887 §13.3, [`wire::pcp::Filter`]).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Filter {
    /// The remote address; IPv4 as `::ffff:a.b.c.d`. Bits past the prefix do not matter.
    pub prefix: u128,
    /// Prefix length in bits, 0..=128; IPv4's plus 96.
    pub len: u8,
    /// Remote port, 0: all. Another one needs a mapping of a protocol with ports.
    pub port: u16,
}

/// One step of a [`ProviderNat::apply`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// A new mapping; nothing happens if the same one is there already.
    Open(Binding),
    /// `Close` and `Open` without a moment in between.
    Replace {
        /// What is there.
        old: Binding,
        /// What takes its place.
        new: Binding,
    },
    /// The end of a mapping, and of the flows that came in through it.
    Close(Binding),
}

/// An IPv4 prefix.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Prefix {
    /// Bits past the prefix do not matter.
    pub addr: Ipv4Addr,
    /// 0..=32.
    pub len: u8,
}

/// Which external address the flows of some subscribers get.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pair {
    /// Internal addresses.
    pub inside: Prefix,
    /// Theirs outside.
    pub external: Ipv4Addr,
}

/// What the table is to be like. Interface names have 1..=15 octets and need not exist yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProviderConfig {
    /// Name of the table in family `inet`, 1..=64 octets; normally `portferry-provider`.
    pub name: String,
    /// The interfaces towards the Internet, at least one.
    pub outside_interfaces: Vec<String>,
    /// The interfaces towards the subscribers; empty: all that are not outside.
    pub inside_interfaces: Vec<String>,
    /// Whose flows are translated; empty: those of everybody inside. Mapped hosts must be among them.
    pub subscribers: Vec<Prefix>,
    /// The external addresses. They may be this router's own or just routed to it.
    pub pool: Vec<Ipv4Addr>,
    /// External addresses of subscribers that are decided beforehand; no two may overlap. A host with a mapping keeps
    /// the mapping's external address for all its new flows (RFC 4787 REQ-2, paired).
    pub pairs: Vec<Pair>,
    /// The external address of subscribers who have neither a mapping nor a pair; `None`: their flows are not translated.
    pub default_external: Option<Ipv4Addr>,
    /// Where the port of a dynamic flow comes from that can't keep its own, first port at least 1.
    pub dynamic_ports: RangeInclusive<u16>,
    /// Forward IPv4 from outside to inside only what belongs to a known flow or was DNATed, and reset TCP connections
    /// from inside whose beginning the kernel hasn't seen. Filters are enforced in any case.
    pub ipv4_filter: bool,
    /// Forward IPv6 from outside to inside only what belongs to a known flow or has a mapping, and reset TCP likewise.
    /// Without it no IPv6 mapping can be had.
    pub ipv6_firewall: bool,
}

/// Our table, open for changes.
pub struct ProviderNat {
    config: ProviderConfig,
    state: State,
    link: Link,
    kernel_filters: bool,
    /// Where flows have to be looked at still.
    doomed: Scopes,
    /// The last transaction's outcome isn't known, or the table is known to differ from `state`.
    unsure: bool,
    strangers: Strangers,
}

/// Datagrams from outside to the PCP server.
#[derive(Default)]
struct Strangers {
    /// By the counter of this table, when it was last read.
    here: u64,
    /// By the counters of the tables before.
    before: u64,
}

impl Strangers {
    fn read(&mut self, packets: u64) {
        if packets < self.here {
            // It is another table's, or was set back.
            self.before += self.here;
        }
        self.here = packets;
    }
}

impl ProviderNat {
    /// Creates the table; one of the same name, left by an earlier run, is deleted in the same transaction. Flows that
    /// run through it go on.
    ///
    /// # Errors
    /// * [`ErrorKind::PermissionDenied`]: CAP_NET_ADMIN is missing.
    /// * [`ErrorKind::InvalidInput`]: `config` has an impossible name, prefix or port range, no outside interface, or
    ///   pairs that overlap.
    /// * [`ErrorKind::Unsupported`], [`ErrorKind::NotFound`]: the kernel lacks nf_tables or one of its modules (nat,
    ///   reject).
    /// * [`ErrorKind::TimedOut`]: no answer within 5 s.
    pub async fn open(config: ProviderConfig) -> io::Result<Self> {
        config.check()?;
        let mut nat = Self {
            config,
            state: State::default(),
            link: Link::default(),
            kernel_filters: true,
            doomed: Scopes::default(),
            unsure: true,
            strangers: Strangers::default(),
        };
        nat.rebuild().await?;
        Ok(nat)
    }

    /// Carries out `changes`, in order, as one transaction: all of them or, with any error, none. Afterwards ends the
    /// flows that the table would no longer let through as they are: those of mappings that are gone or lead elsewhere,
    /// those of peers that a new filter keeps out, foreign ones on a port that is mapped now, and unanswered ones that
    /// began too early to be translated. Should that fail, the changes stand and the log has a warning.
    ///
    /// When the table turns out to be gone or changed by somebody else (`nft flush ruleset`), it is made anew with
    /// everything in it. So it is by the next call after one that timed out or was dropped half way; the changes of the
    /// latter count as made.
    ///
    /// # Errors
    /// * [`ErrorKind::AlreadyExists`]: an `Open` of what another mapping has, outside or inside: an internal endpoint has
    ///   one mapping, and one PEER mapping for each remote endpoint.
    /// * [`ErrorKind::NotFound`]: a `Close` or `Replace` of what isn't mapped.
    /// * [`ErrorKind::InvalidInput`]: a binding that isn't as [`Binding`] says, or too many ports and filters for one
    ///   transaction (see [`MAX_PORTS`]).
    /// * [`ErrorKind::TimedOut`]: no answer within 5 s; the changes count as not made.
    pub async fn apply(&mut self, changes: &[Change]) -> io::Result<()> {
        self.change(changes).await?;
        self.sweep().await;
        Ok(())
    }

    /// As [`ProviderNat::apply`], but flows that take a look at all that are tracked are left to
    /// [`ProviderNat::sweep`]: for who has many changes, or somebody who waits.
    ///
    /// # Errors
    /// As [`ProviderNat::apply`].
    pub async fn change(&mut self, changes: &[Change]) -> io::Result<()> {
        for change in changes {
            match change {
                Change::Open(new) | Change::Replace { new, .. } => self.config.check_binding(new)?,
                Change::Close(_) => {}
            }
        }
        let mut step = Step::default();
        for change in changes {
            if let Err(e) = self.state.change(&mut step, change) {
                self.state.undo(step);
                return Err(e);
            }
        }
        let delta = self.state.delta(&mut step);
        if delta.is_empty() && !self.unsure {
            return Ok(());
        }
        let outcome = if self.unsure {
            self.rebuild().await
        } else {
            // Stays so if this future is dropped while the kernel works.
            self.unsure = true;
            let name = &self.config.name;
            let made = self.link.transact("changing mappings", |batch| delta.write(batch, name)).await;
            match made {
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists) => {
                    tracing::warn!("{e}: somebody has changed table inet {name}; it is made anew");
                    self.rebuild().await
                }
                Err(e) => {
                    self.unsure = e.kind() == ErrorKind::TimedOut;
                    Err(e)
                }
                Ok(()) => {
                    self.unsure = false;
                    Ok(())
                }
            }
        };
        if let Err(e) = outcome {
            self.state.undo(step);
            return Err(e);
        }
        let (state, kernel_filters) = (&self.state, &mut self.kernel_filters);
        let mut left = Scopes::of(&step);
        let work = async |socket: &mut _| {
            left = flows::end(socket, state, &step, kernel_filters).await?;
            Ok(())
        };
        self.link.end_flows(work).await;
        self.doomed.add(left);
        Ok(())
    }

    /// The external endpoints that tracked flows have, of the pool; `None` for one that is not there. Where the remote peer is known
    /// that takes the kernel a look; for all others together, one walk of its flow table.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] without CAP_NET_ADMIN; [`ErrorKind::TimedOut`] without an answer within 5 s.
    pub async fn flows(&mut self, asked: &[FlowFrom]) -> io::Result<Vec<Option<SocketAddrV4>>> {
        let pool = &self.config.pool;
        let work = async |socket: &mut _| conntrack::places(socket, asked, pool).await;
        self.link.ask("looking for flows", work).await
    }

    /// Whether there are flows to look at that [`ProviderNat::change`] has left.
    pub fn wants_sweep(&self) -> bool {
        !self.doomed.is_empty()
    }

    /// Looks at all tracked flows, once for all changes since the last time, and ends those that the table would no longer let
    /// through as they are. Should that fail, the log has a warning.
    pub async fn sweep(&mut self) {
        let scopes = std::mem::take(&mut self.doomed);
        if scopes.is_empty() {
            return;
        }
        let state = &self.state;
        self.link.end_flows(async |socket| flows::sweep(socket, state, &scopes).await).await;
    }

    /// Looks whether the table is still there, and makes it anew with everything in it if not: for a timer, since a
    /// flushed table is noticed only by who asks. Whether it was gone.
    ///
    /// # Errors
    /// As [`ProviderNat::open`].
    pub async fn heal(&mut self) -> io::Result<bool> {
        if !self.unsure {
            let config = &self.config;
            let asked =
                self.link.transact("looking at the table", |batch| ruleset::touch(batch, config)).await;
            match asked {
                Ok(()) => return Ok(false),
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    tracing::warn!("{e}: table inet {} is gone; it is made anew", config.name);
                    self.unsure = true;
                }
                Err(e) => return Err(e),
            }
        }
        self.rebuild().await?;
        Ok(true)
    }

    /// Makes the table anew by another configuration, with all mappings. If the name changes, the old table goes.
    ///
    /// # Errors
    /// As [`ProviderNat::open`]; [`ErrorKind::InvalidInput`] also when there are IPv6 mappings and `config` has no IPv6
    /// firewall. With any error the old configuration stays.
    pub async fn reconfigure(&mut self, config: ProviderConfig) -> io::Result<()> {
        config.check()?;
        for binding in self.state.bindings() {
            config.check_binding(binding)?;
        }
        self.strangers().await;
        let renamed = config.name != self.config.name;
        let old = std::mem::replace(&mut self.config, config);
        self.unsure = true;
        if let Err(e) = self.rebuild().await {
            self.config = old;
            return Err(e);
        }
        if renamed {
            let name = old.name;
            self.link.transact("deleting the old table", |batch| rule::delete(batch, &name)).await?;
        }
        Ok(())
    }

    /// Deletes the table with all mappings; flows that run through them go on. Succeeds if it is gone already. The next
    /// [`ProviderNat::apply`] would make it again.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] without CAP_NET_ADMIN; [`ErrorKind::TimedOut`] without an answer within 5 s.
    pub async fn clear(&mut self) -> io::Result<()> {
        self.unsure = true;
        let name = &self.config.name;
        self.link.transact("deleting the table", |batch| rule::delete(batch, name)).await?;
        self.state = State::default();
        Ok(())
    }

    /// How many datagrams have come by the outside interfaces for the PCP server, since [`ProviderNat::open`]: they are dropped.
    /// Those that a table has counted since the last call are lost with it when somebody else deletes it.
    pub async fn strangers(&mut self) -> u64 {
        let name = &self.config.name;
        let work = async |socket: &mut _| counter::packets(socket, name, ruleset::STRANGERS).await;
        match self.link.ask("reading a counter", work).await {
            Ok(packets) => self.strangers.read(packets),
            Err(e) => tracing::debug!("{e}"),
        }
        self.strangers.before + self.strangers.here
    }

    /// What [`ProviderNat::open`] or [`ProviderNat::reconfigure`] was given.
    pub fn config(&self) -> &ProviderConfig {
        &self.config
    }

    /// The mappings in the table.
    pub fn bindings(&self) -> impl Iterator<Item = &Binding> {
        self.state.bindings()
    }

    /// The table with everything in it: one transaction unless it is large, then its mappings come in several.
    async fn rebuild(&mut self) -> io::Result<()> {
        self.strangers().await;
        let all = self.state.everything();
        let (config, name) = (&self.config, &self.config.name);
        let mut parts = all.elements.chunks(ELEMENTS_PER_TRANSACTION);
        let first = parts.next().unwrap_or_default();
        let create = |batch: &mut super::batch::Batch| {
            ruleset::recreate(batch, config);
            all.write_shapes(batch, name);
            state::write(batch, name, first);
        };
        self.link.transact("creating the table", create).await?;
        self.strangers.read(0);
        for part in parts {
            self.link.transact("filling the table", |batch| state::write(batch, name, part)).await?;
        }
        self.unsure = false;
        if !all.elements.is_empty() {
            self.doomed.add(Scopes::everything());
        }
        Ok(())
    }
}

impl ProviderConfig {
    fn check(&self) -> io::Result<()> {
        if !plain_name(&self.name, 64) {
            return Err(invalid(format!("bad table name {:?}", self.name)));
        }
        if self.outside_interfaces.is_empty() {
            return Err(invalid("no outside interface".to_owned()));
        }
        let mut names = self.outside_interfaces.iter().chain(&self.inside_interfaces);
        if let Some(name) = names.find(|name| !plain_name(name, 15)) {
            return Err(invalid(format!("bad interface name {name:?}")));
        }
        if let Some(name) = self.inside_interfaces.iter().find(|name| self.outside_interfaces.contains(name))
        {
            return Err(invalid(format!("{name} can't be inside and outside")));
        }
        let prefixes = self.subscribers.iter().chain(self.pairs.iter().map(|pair| &pair.inside));
        if let Some(prefix) = prefixes.into_iter().find(|prefix| prefix.len > 32) {
            return Err(invalid(format!("bad prefix length {}", prefix.len)));
        }
        let mut ranges: Vec<_> = self.pairs.iter().map(|pair| pair.inside.range()).collect();
        ranges.sort_unstable();
        if ranges.windows(2).any(|two| two[1].0 <= two[0].1) {
            return Err(invalid("pairs overlap".to_owned()));
        }
        if self.dynamic_ports.is_empty() || *self.dynamic_ports.start() == 0 {
            return Err(invalid(format!("bad dynamic ports {:?}", self.dynamic_ports)));
        }
        Ok(())
    }

    fn check_binding(&self, binding: &Binding) -> io::Result<()> {
        let wrong = |why: &str| Err(invalid(format!("{why}: {binding:?}")));
        let (internal, external) = (binding.internal, binding.external);
        if binding.softwire.is_some() {
            return wrong("a softwire's mapping");
        }
        if internal.is_ipv4() != external.is_ipv4() {
            return wrong("two families");
        }
        if !is_host(internal.ip()) || !is_host(external.ip()) {
            return wrong("not a host's address");
        }
        if internal.is_ipv6() {
            if !self.ipv6_firewall {
                return wrong("no IPv6 firewall");
            }
            if (internal.ip(), internal.port()) != (external.ip(), external.port()) {
                return wrong("IPv6 addresses are not translated");
            }
        }
        let all_ports = internal.port() == 0;
        if all_ports != (external.port() == 0) {
            return wrong("all ports at one end");
        }
        if !all_ports && !has_ports(binding.protocol) {
            return wrong("no protocol with ports");
        }
        let fits = |port: u16| (binding.ports - 1).checked_add(port).is_some();
        if binding.ports == 0 || (all_ports && binding.ports != 1) {
            return wrong("bad number of ports");
        }
        if !fits(internal.port()) || !fits(external.port()) {
            return wrong("ports past 65535");
        }
        if let Some(filter) = binding.filters.iter().find(|filter| filter.len > 128) {
            return wrong(&format!("bad prefix length {}", filter.len));
        }
        if binding.filters.iter().any(|filter| filter.port != 0) && !has_ports(binding.protocol) {
            return wrong("a filter's port without a protocol with ports");
        }
        if let Some(peer) = binding.peer {
            let bad = all_ports
                || binding.ports != 1
                || !binding.filters.is_empty()
                || peer.is_ipv4() != external.is_ipv4()
                || peer.port() == 0
                || !is_host(peer.ip());
            if bad {
                return wrong("no mapping for one remote endpoint");
            }
        }
        Ok(())
    }
}

impl Prefix {
    /// First and last address.
    fn range(self) -> (u32, u32) {
        let host_bits = u32::MAX.checked_shr(u32::from(self.len)).unwrap_or(0);
        let first = u32::from(self.addr) & !host_bits;
        (first, first | host_bits)
    }
}

fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 33 | 132 | 136)
}

fn is_host(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => {
            !(addr.is_unspecified() || addr.is_loopback() || addr.is_multicast() || addr.is_broadcast())
        }
        IpAddr::V6(addr) => {
            let mapped = addr.to_ipv4_mapped().is_some();
            !(addr.is_unspecified() || addr.is_loopback() || addr.is_multicast() || mapped)
        }
    }
}

#[cfg(test)]
mod tests;
