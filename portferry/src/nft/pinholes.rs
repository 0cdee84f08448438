//! Pinholes of the router's IPv6 firewall, as one nf_tables table of ours: what hosts of the LAN let in by
//! WANIPv6FirewallControl's AddPinhole or PCP's MAP. It takes plain rules and knows nothing of either. Spoken to over netlink
//! only, as all of [`super`].
//!
//! A pinhole is an element of one of four sets, never a rule; a change is one kernel transaction, whose cost does not grow with
//! the table.
//!
//! ```text
//! table ip6 portferry {
//!   set pinholes           { type inet_proto . ipv6_addr . inet_service; counter }   protocol . internal address . port
//!   set pinholes_addr      { … . ipv6_addr; counter }                                the same, one remote address
//!   set pinholes_port      { … . inet_service; counter }                             the same, one remote port
//!   set pinholes_addr_port { … . ipv6_addr . inet_service; counter }                 the same, both
//!   set lan, set wan       { type ifname }
//!   chain forward   WAN to LAN, as the flow began: pinholes; then, with the filter, only what else has to pass
//!   chain pinholes  asks the four sets: sets the mark, accepts
//! }
//! ```
//!
//! **What is counted.** Every packet that comes in by a pinhole, of established flows, too, so the sets are asked before what is
//! established is accepted. Answers to what a host of the LAN has begun are not among them, whatever its port: they need no
//! pinhole. Leaving them out is one look at the flow's direction, so that a download costs no look at the sets.
//!
//! **The mark** is for firewalls whose own chain drops: `accept` here does not undo that, a rule of theirs that accepts what has
//! the mark does.
//!
//! **The filter** is that of the NAT's table ([`super::TableConfig::forward_filter`]) for IPv6; ICMPv6 passes as RFC 4890 §4.3.1
//! asks: errors belong to a flow that the kernel knows, echo requests are let in.
//!
//! A pinhole's end ends the flows that came in by it, so that the kernel's “established” does not let them go on. That a packet came
//! from the LAN and not from the WAN connection tracking does not know: a flow between two LAN interfaces to the same address and port
//! ends, too, and the next packet begins it anew, for nothing of ours is between them.

mod ruleset;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, ErrorKind},
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use netlink_socket2::{ReplyError, tokio::NetlinkSocket};
use serde::{Deserialize, Serialize};

use super::batch::{Batch, Element, Kind};
use super::conntrack::{Flow, Towards, cannot_select, end_each};
use super::link::Link;
use super::rule::{self, NFPROTO_IPV6};
use super::shape::{self, Shape};
use super::{FORWARD_PRIORITY, MAX_CHANGES, TCP, UDP, counter, invalid, look, plain_name};

/// Priority of the `forward` chain: just before that of the NAT's table.
pub const PRIORITY: i32 = FORWARD_PRIORITY - 1;

/// Up to this many ends at a time, the kernel selects the flows, in a walk of its table each; beyond, we read the table once.
const SINGLY: usize = 8;
/// What one transaction of a table that is made anew takes.
const ELEMENTS_PER_TRANSACTION: usize = 1024;

/// One pinhole: who may come in, and to whom.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PinholeRule {
    /// IANA protocol number: 6 (TCP) or 17 (UDP).
    pub protocol: u8,
    /// The host that packets come to; it is not translated.
    pub internal: Ipv6Addr,
    /// Its port, 1..=65535.
    pub internal_port: u16,
    /// Only this host's packets match; `None`: anybody's.
    pub remote: Option<Ipv6Addr>,
    /// Only packets from this port match, 1..=65535; `None`: from any.
    pub remote_port: Option<u16>,
}

/// What the table is to be like. Interface names have 1..=15 octets and need not exist yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PinholesConfig {
    /// Name of the table in family `ip6`, 1..=64 octets; that of the NAT's table will do.
    pub name: String,
    /// The interfaces towards the Internet, in use or not, at least one.
    pub wan_interfaces: Vec<String>,
    /// The interfaces towards the LAN, at least one.
    pub lan_interfaces: Vec<String>,
    /// Forward from the WAN to the LAN interfaces only what a pinhole lets in, what belongs to a known flow, was DNATed, or is an
    /// echo request; and reset TCP connections from the LAN whose beginning the kernel hasn't seen, or the LAN host's next packet
    /// would revive a closed pinhole's connection as one of its own.
    pub filter: bool,
    /// Bits that are set in the packet mark of what comes in by a pinhole, at least one.
    pub mark: Option<u32>,
}

/// One step of a [`Pinholes::apply`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    /// A new pinhole; one that is there already stays as it is.
    Open(PinholeRule),
    /// The end of a pinhole, and of the flows that came in by it and by no other.
    Close(PinholeRule),
}

/// The table, open for changes.
pub struct Pinholes {
    config: PinholesConfig,
    /// What is open, and how many packets it has let in by tables that were before this one.
    held: BTreeMap<PinholeRule, u64>,
    link: Link,
    kernel_filters: bool,
    /// What the kernel made of it when it was created.
    shape: Option<Shape>,
}

/// The difference that some changes make.
#[derive(Debug, Default, Eq, PartialEq)]
struct Plan {
    opened: BTreeSet<PinholeRule>,
    closed: BTreeSet<PinholeRule>,
}

impl Pinholes {
    /// Creates the table; one of the same name, left by an earlier run, is deleted in the same transaction. Flows that came
    /// in by it go on.
    ///
    /// # Errors
    /// * [`ErrorKind::PermissionDenied`]: CAP_NET_ADMIN is missing.
    /// * [`ErrorKind::InvalidInput`]: `config` has an impossible name, no interface on one side, or a mark without bits.
    /// * [`ErrorKind::Unsupported`], [`ErrorKind::NotFound`]: the kernel lacks nf_tables for IPv6 or its reject module.
    /// * [`ErrorKind::TimedOut`]: no answer within 5 s.
    pub async fn open(config: PinholesConfig) -> io::Result<Self> {
        config.check()?;
        let link = Link::of(NFPROTO_IPV6);
        let mut pinholes = Self { config, held: BTreeMap::new(), link, kernel_filters: true, shape: None };
        pinholes.rebuild(None).await?;
        Ok(pinholes)
    }

    /// Carries out `changes`, in order, as one transaction: all of them or, with any error, none. Afterwards ends the flows
    /// that came in by what is closed now; should that fail, the changes stand and the log has a warning. Drive it to its end:
    /// dropped half way, it leaves open whether the kernel has made the changes.
    ///
    /// # Errors
    /// * [`ErrorKind::NotFound`]: a `Close` of what isn't open, or the table is gone: [`Pinholes::reconfigure`] makes it anew.
    /// * [`ErrorKind::InvalidInput`]: a rule that is no TCP or UDP port of a host, or more than [`MAX_CHANGES`].
    /// * [`ErrorKind::TimedOut`]: no answer within 5 s; whether the changes were made is unknown.
    pub async fn apply(&mut self, changes: &[Change]) -> io::Result<()> {
        if changes.len() > MAX_CHANGES {
            return Err(invalid(format!("more than {MAX_CHANGES} changes in one transaction")));
        }
        let plan = Plan::new(&self.held, changes)?;
        if plan == Plan::default() {
            return Ok(());
        }
        let name = &self.config.name;
        self.link.transact("changing pinholes", |batch| plan.write(batch, name)).await?;
        self.held.retain(|rule, _| !plan.closed.contains(rule));
        self.held.extend(plan.opened.iter().map(|rule| (*rule, 0)));
        if !plan.closed.is_empty() {
            let (held, kernel_filters) = (&self.held, &mut self.kernel_filters);
            let work = async |socket: &mut _| end_flows(socket, &plan.closed, held, kernel_filters).await;
            self.link.end_flows(work).await;
        }
        Ok(())
    }

    /// Makes the table anew by this configuration, or by the same one when somebody has deleted it, with everything that is
    /// open. What the old table has counted is kept, unless it was gone. If the name changes, the old table goes.
    ///
    /// # Errors
    /// As [`Pinholes::open`]. What is open is still known then, and this may be called again.
    pub async fn reconfigure(&mut self, config: PinholesConfig) -> io::Result<()> {
        config.check()?;
        let counted = self.counted().await;
        let old = std::mem::replace(&mut self.config, config);
        if let Err(error) = self.rebuild(Some(&old.name)).await {
            self.config = old;
            return Err(error);
        }
        for (rule, packets) in counted {
            let before = self.held.entry(rule).or_default();
            *before = before.saturating_add(packets);
        }
        Ok(())
    }

    /// Looks whether the table is as it ought to be, and makes it anew if it is not, with everything that is open; whether it had to.
    ///
    /// # Errors
    /// As [`Pinholes::reconfigure`].
    pub async fn restore(&mut self) -> io::Result<bool> {
        if self.is_whole().await? {
            return Ok(false);
        }
        self.reconfigure(self.config.clone()).await?;
        Ok(true)
    }

    /// Deletes the table with all pinholes; flows that came in by them go on. Succeeds if it is gone already. Afterwards only
    /// [`Pinholes::open`] and [`Pinholes::reconfigure`] make sense.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] without CAP_NET_ADMIN; [`ErrorKind::TimedOut`] without an answer within 5 s.
    pub async fn clear(&mut self) -> io::Result<()> {
        let name = &self.config.name;
        self.link.transact("deleting the table", |batch| rule::delete(batch, name)).await?;
        self.held.clear();
        Ok(())
    }

    /// Deletes a table of this name that an earlier run has left. Succeeds where there is none.
    ///
    /// # Errors
    /// As [`Pinholes::clear`].
    pub async fn remove(name: &str) -> io::Result<()> {
        Link::of(NFPROTO_IPV6).transact("deleting a table", |batch| rule::delete(batch, name)).await
    }

    /// What [`Pinholes::open`] or [`Pinholes::reconfigure`] was given.
    pub fn config(&self) -> &PinholesConfig {
        &self.config
    }

    /// What is open.
    pub fn rules(&self) -> impl Iterator<Item = PinholeRule> {
        self.held.keys().copied()
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether this is open.
    pub fn holds(&self, rule: &PinholeRule) -> bool {
        self.held.contains_key(rule)
    }

    /// How many packets a pinhole has let in since it was opened. What a table has counted that somebody deleted is lost.
    ///
    /// # Errors
    /// * [`ErrorKind::NotFound`]: it isn't open, or the table is gone.
    /// * [`ErrorKind::PermissionDenied`] without CAP_NET_ADMIN; [`ErrorKind::TimedOut`] without an answer within 5 s.
    pub async fn packets(&mut self, rule: &PinholeRule) -> io::Result<u64> {
        let Some(&before) = self.held.get(rule) else {
            return Err(io::Error::new(ErrorKind::NotFound, format!("{rule:?} is not open")));
        };
        let (set, key) = ruleset::entry(rule);
        let place = (NFPROTO_IPV6, self.config.name.as_str(), set);
        let work = async |socket: &mut _| counter::of_one(socket, place, &key).await;
        Ok(before.saturating_add(self.link.ask("reading a counter", work).await?))
    }

    /// What the table has counted; nothing if it is gone.
    async fn counted(&mut self) -> Vec<(PinholeRule, u64)> {
        let by_entry: BTreeMap<_, _> = self.held.keys().map(|rule| (ruleset::entry(rule), *rule)).collect();
        let mut all = Vec::new();
        for set in ruleset::SETS {
            let place = (NFPROTO_IPV6, self.config.name.as_str(), set);
            let work = async |socket: &mut _| counter::of_elements(socket, place).await;
            match self.link.ask("reading counters", work).await {
                Ok(counted) => {
                    let of_rule = |(key, packets)| Some((*by_entry.get(&(set, key))?, packets));
                    all.extend(counted.into_iter().filter_map(of_rule));
                }
                Err(error) => tracing::debug!("{error}"),
            }
        }
        all
    }

    /// One transaction unless there is much in it; then what is left comes in several.
    async fn rebuild(&mut self, former: Option<&str>) -> io::Result<()> {
        let (config, rules) = (&self.config, self.held.keys().copied().collect::<Vec<_>>());
        let former = former.filter(|name| *name != config.name);
        let mut parts = rules.chunks(ELEMENTS_PER_TRANSACTION);
        let first = parts.next().unwrap_or_default();
        let create = |batch: &mut Batch| {
            if let Some(name) = former {
                rule::delete(batch, name);
            }
            ruleset::recreate(batch, config);
            write(batch, &config.name, Kind::NewElement, first);
        };
        self.link.transact("creating the table", create).await?;
        for part in parts {
            let fill = |batch: &mut Batch| write(batch, &config.name, Kind::NewElement, part);
            self.link.transact("filling the table", fill).await?;
        }
        // Without an answer it is made anew once more when somebody touches it.
        self.shape = look(&mut self.link, (NFPROTO_IPV6, &self.config.name)).await.ok().flatten();
        Ok(())
    }

    async fn is_whole(&mut self) -> io::Result<bool> {
        let Some(shape) = &self.shape else { return Ok(false) };
        let entries = self.held.keys().map(ruleset::entry);
        let elements = entries.map(|(set, key)| (set, Element { key, value: Vec::new() }));
        let wanted = shape::wanted(shape, &ruleset::SETS, elements);
        let now = look(&mut self.link, (NFPROTO_IPV6, &self.config.name)).await?;
        Ok(now.is_some_and(|now| shape.is_still(&now, wanted)))
    }
}

impl Plan {
    fn new(held: &BTreeMap<PinholeRule, u64>, changes: &[Change]) -> io::Result<Self> {
        let mut wanted: BTreeMap<PinholeRule, bool> = BTreeMap::new();
        for change in changes {
            match change {
                Change::Open(rule) => {
                    rule.check()?;
                    wanted.insert(*rule, true);
                }
                Change::Close(rule) => {
                    if !wanted.get(rule).copied().unwrap_or_else(|| held.contains_key(rule)) {
                        return Err(io::Error::new(ErrorKind::NotFound, format!("{rule:?} is not open")));
                    }
                    wanted.insert(*rule, false);
                }
            }
        }
        let mut plan = Self::default();
        for (rule, open) in wanted {
            match (held.contains_key(&rule), open) {
                (false, true) => drop(plan.opened.insert(rule)),
                (true, false) => drop(plan.closed.insert(rule)),
                _ => {}
            }
        }
        Ok(plan)
    }

    fn write(&self, batch: &mut Batch, table: &str) {
        for (kind, rules) in [(Kind::DelElement, &self.closed), (Kind::NewElement, &self.opened)] {
            write(batch, table, kind, rules.iter());
        }
    }
}

fn write<'a>(
    batch: &mut Batch,
    table: &str,
    kind: Kind,
    rules: impl IntoIterator<Item = &'a PinholeRule> + Clone,
) {
    for set in ruleset::SETS {
        let entries = rules.clone().into_iter().map(ruleset::entry).filter(|(of, _)| *of == set);
        let elements: Vec<_> = entries.map(|(_, key)| Element { key, value: Vec::new() }).collect();
        batch.elements(kind, table, set, &elements);
    }
}

/// Ends the flows that came in by what is closed and by nothing that is still open.
async fn end_flows(
    socket: &mut NetlinkSocket,
    closed: &BTreeSet<PinholeRule>,
    held: &BTreeMap<PinholeRule, u64>,
    kernel_filters: &mut bool,
) -> Result<(), ReplyError> {
    let doomed = |flow: &Flow| {
        let ways = ways_in(flow);
        ways.iter().any(|way| closed.contains(way)) && !ways.iter().any(|way| held.contains_key(way))
    };
    let ends: BTreeSet<_> =
        closed.iter().map(|rule| (rule.protocol, rule.internal, rule.internal_port)).collect();
    if *kernel_filters && ends.len() <= SINGLY {
        match end_at(socket, &ends, &doomed).await {
            Err(error) if cannot_select(&error) => *kernel_filters = false,
            outcome => return outcome,
        }
    }
    end_each(socket, true, None, doomed).await
}

/// The same, only looking at flows to these protocols, hosts and ports.
async fn end_at(
    socket: &mut NetlinkSocket,
    ends: &BTreeSet<(u8, Ipv6Addr, u16)>,
    doomed: &impl Fn(&Flow) -> bool,
) -> Result<(), ReplyError> {
    for &(protocol, internal, port) in ends {
        let addr = IpAddr::V6(internal);
        let towards = Towards { addr, protocol: Some(protocol), port: Some(port), answers: false };
        end_each(socket, true, Some(towards), doomed).await?;
    }
    Ok(())
}

/// The pinholes that let a flow in, if they are open.
fn ways_in(flow: &Flow) -> Vec<PinholeRule> {
    let (SocketAddr::V6(remote), SocketAddr::V6(internal)) = (flow.source, flow.destination) else {
        return Vec::new();
    };
    let mut ways = Vec::with_capacity(4);
    for addr in [None, Some(*remote.ip())] {
        for remote_port in [None, Some(remote.port())] {
            ways.push(PinholeRule {
                protocol: flow.protocol,
                internal: *internal.ip(),
                internal_port: internal.port(),
                remote: addr,
                remote_port,
            });
        }
    }
    ways
}

impl PinholeRule {
    fn check(&self) -> io::Result<()> {
        let bad = !matches!(self.protocol, TCP | UDP)
            || self.internal_port == 0
            || self.remote_port == Some(0)
            || !is_host(self.internal)
            || self.remote.is_some_and(|remote| !is_host(remote));
        if bad {
            return Err(invalid(format!("{self:?} is no TCP or UDP port of a host")));
        }
        Ok(())
    }
}

/// Whether packets of its can be forwarded.
fn is_host(addr: Ipv6Addr) -> bool {
    !(addr.is_unspecified()
        || addr.is_loopback()
        || addr.is_multicast()
        || addr.is_unicast_link_local()
        || addr.to_ipv4_mapped().is_some())
}

impl PinholesConfig {
    fn check(&self) -> io::Result<()> {
        if !plain_name(&self.name, 64) {
            return Err(invalid(format!("bad table name {:?}", self.name)));
        }
        for (side, names) in [("WAN", &self.wan_interfaces), ("LAN", &self.lan_interfaces)] {
            if names.is_empty() {
                return Err(invalid(format!("no {side} interface")));
            }
            if let Some(name) = names.iter().find(|name| !plain_name(name, 15)) {
                return Err(invalid(format!("bad interface name {name:?}")));
            }
        }
        if self.mark == Some(0) {
            return Err(invalid("a mark without bits".to_owned()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
