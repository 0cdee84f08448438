//! The router's own NAT (NAT1) and the filter in front of the LAN, as one nf_tables table of ours (decisions 24 and
//! 25). Spoken to over netlink only; no `nft` process, no other program's table is ever touched.
//!
//! Mappings are elements of two maps, never rules, so a change costs the same however many there are. Every
//! [`Nft::apply`] is one kernel transaction. What the table holds is kept here too: it tells what a change does to the
//! kernel's state, and it moves only when the kernel has agreed.
//!
//! ```text
//! table inet portferry {
//!   map ports   { type inet_proto . inet_service : ipv4_addr . inet_service }               protocol . w : internal
//!   map peers   { type inet_proto . inet_service . ipv4_addr : ipv4_addr . inet_service }   the same, one remote peer
//!   map sources { type inet_proto . ipv4_addr . inet_service : inet_service }               protocol . internal : w
//!   set lan     { type ifname }
//!   set wan     { type ifname }                                                             spare lines, too
//!   chain prerouting  dnat by peers, then by ports: what arrives on the WAN interface for any address of this router
//!   chain forward     WAN to LAN only what a mapping (or somebody else's DNAT) lets in
//!   chain postrouting LAN to WAN: masquerade, with a mapping's own port where there is one
//! }
//! ```
//!
//! [`provider`] is another table, a PCP server's; the modules beside it are what both are made with.
//!
//! **Limits of an own table.** `accept` in our chain does not undo a `drop` in another one (fw4, firewalld, ufw): their
//! rules must let `ct status dnat` pass. And our `drop` stands whatever they accept; port forwardings that the
//! administrator made elsewhere pass, because they are DNAT too, but IPv6 pinholes made elsewhere do not, which is one
//! reason why [`TableConfig::forward_filter`] is a choice. `nft flush ruleset` takes our table with it; the next
//! [`Nft::apply`] then fails with [`ErrorKind::NotFound`], and [`Nft::open`] builds it again.
//!
//! **Kernel.** Linux 5.7 or later (`iifname` in postrouting), with nf_tables and its nat, masq, fib and reject modules.
//! Ending flows needs nf_conntrack_netlink (a package of its own on OpenWrt): without it mappings work, but a removed
//! one's flows go on until they end by themselves. From 6.10 on the kernel finds the flows itself.

mod batch;
mod conntrack;
mod counter;
mod link;
pub mod provider;
pub(crate) mod reading;
mod rule;
mod ruleset;

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddrV4},
};

use socket2::{Domain, Socket, Type};

use batch::{Batch, Kind};
use conntrack::Flows;
use link::Link;
use ruleset::{PEERS, PORTS, SOURCES};

/// Priority of our `prerouting` chain: one after `dstnat` (-100), so that the port forwardings an administrator made
/// by hand win over what a control point asked for.
pub const PREROUTING_PRIORITY: i32 = -99;
/// Priority of our `forward` chain: before the usual `filter` (0).
pub const FORWARD_PRIORITY: i32 = -5;
/// Priority of our `postrouting` chain: one before `srcnat` (100), or a plain `masquerade` there would choose the port.
pub const POSTROUTING_PRIORITY: i32 = 99;

/// Changes that one [`Nft::apply`] takes. A transaction is one write, which must fit the socket's send buffer
/// (160 KiB on 32-bit kernels); a change takes 190 octets at most.
pub const MAX_CHANGES: usize = 512;

/// One mapping of the router's own NAT.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Nat1Rule {
    /// IANA protocol number: 6 (TCP) or 17 (UDP).
    pub protocol: u8,
    /// Port on the WAN address (w in `spec/iwf.md`), 1..=65535.
    pub external_port: u16,
    /// LAN host and port that packets are sent on to.
    pub internal: SocketAddrV4,
    /// Only this host's packets match (IGD's RemoteHost); `None`: anybody's.
    pub remote_peer: Option<Ipv4Addr>,
}

/// What the table is to be like. Interface names have 1..=15 octets and need not exist yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TableConfig {
    /// Name of the table in family `inet`, 1..=64 octets; normally `portferry`.
    pub name: String,
    /// The interface towards the Internet, by which mappings lead in.
    pub wan_interface: String,
    /// Others that may take its place. Mappings do not lead in by them; they are filtered and masqueraded all the same.
    pub spare_interfaces: Vec<String>,
    /// The interfaces towards the LAN, at least one.
    pub lan_interfaces: Vec<String>,
    /// Forward from the WAN to the LAN interfaces only what belongs to a known flow or was DNATed (IPv4 and IPv6), and
    /// reset TCP connections from the LAN whose beginning the kernel hasn't seen. Without the latter the LAN host's next
    /// packet would revive a removed mapping's connection as one of its own.
    pub forward_filter: bool,
    /// Masquerade what goes from the LAN to the WAN interface (IPv4). A mapped host's packets from its internal port then
    /// leave by the external port.
    pub masquerade: bool,
}

/// One step of an [`Nft::apply`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    /// A new mapping; nothing happens if the same one is there already.
    Add(Nat1Rule),
    /// The end of a mapping and of the flows that came in through it.
    Remove(Nat1Rule),
    /// `Remove` and `Add` without a moment in between.
    Replace {
        /// What is there.
        old: Nat1Rule,
        /// What takes its place, under the same or another external port.
        new: Nat1Rule,
    },
}

/// Our table, open for changes.
pub struct Nft {
    config: TableConfig,
    table: Table,
    link: Link,
    kernel_filters: bool,
}

impl Nft {
    /// Creates the table; one of the same name, left by an earlier run, is deleted in the same transaction. Flows that
    /// run through it go on.
    ///
    /// # Errors
    /// * [`ErrorKind::PermissionDenied`]: CAP_NET_ADMIN is missing.
    /// * [`ErrorKind::InvalidInput`]: `config` has an impossible name, or no LAN interface.
    /// * [`ErrorKind::Unsupported`], [`ErrorKind::NotFound`]: the kernel lacks nf_tables or one of its modules (nat, fib,
    ///   masq, reject).
    /// * [`ErrorKind::TimedOut`]: no answer within 5 s.
    pub async fn open(config: TableConfig) -> io::Result<Self> {
        config.check()?;
        let mut nft = Self { config, table: Table::default(), link: Link::default(), kernel_filters: true };
        nft.recreate().await?;
        Ok(nft)
    }

    /// Carries out `changes`, in order, as one transaction: all of them or, with any error, none. Afterwards ends the
    /// flows of mappings that are gone, and flows to a new UDP mapping's port that began too early to be translated;
    /// should that fail, the changes stand and the log has a warning. Drive it to its end: dropped half way, it leaves
    /// open whether the kernel has made the changes, and then only [`Nft::open`] brings certainty.
    ///
    /// # Errors
    /// * [`ErrorKind::AlreadyExists`]: an `Add` for the (protocol, external port, remote peer) of another mapping.
    /// * [`ErrorKind::NotFound`]: a `Remove` or `Replace` of what isn't mapped, or the table is gone.
    /// * [`ErrorKind::InvalidInput`]: a rule that is no unicast TCP or UDP mapping, or more than [`MAX_CHANGES`].
    /// * [`ErrorKind::TimedOut`]: no answer within 5 s; whether the changes were made is unknown.
    pub async fn apply(&mut self, changes: &[Change]) -> io::Result<()> {
        if changes.len() > MAX_CHANGES {
            return Err(invalid(format!("more than {MAX_CHANGES} changes in one transaction")));
        }
        let plan = self.table.plan(changes)?;
        if plan.is_empty() {
            return Ok(());
        }
        let masquerade = self.config.masquerade;
        let name = self.config.name.clone();
        self.link.transact("changing mappings", |batch| plan.write(batch, &name, masquerade)).await?;
        let flows = plan.flows();
        self.table.commit(plan.after);
        if !flows.is_empty() {
            let kernel_filters = &mut self.kernel_filters;
            self.link.end_flows(async |socket| conntrack::end(socket, &flows, kernel_filters).await).await;
        }
        Ok(())
    }

    /// Deletes the table with all mappings; flows that run through them go on. Succeeds if it is gone already.
    /// Afterwards only [`Nft::open`] makes sense.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] without CAP_NET_ADMIN; [`ErrorKind::TimedOut`] without an answer within 5 s.
    pub async fn clear(&mut self) -> io::Result<()> {
        let name = self.config.name.clone();
        self.link.transact("deleting the table", |batch| rule::delete(batch, &name)).await?;
        self.table = Table::default();
        Ok(())
    }

    /// Deletes a table of this name that an earlier run has left. Succeeds where there is none.
    ///
    /// # Errors
    /// As [`Nft::clear`].
    pub async fn remove(name: &str) -> io::Result<()> {
        Link::default().transact("deleting a table", |batch| rule::delete(batch, name)).await
    }

    /// What [`Nft::open`] was given.
    pub fn config(&self) -> &TableConfig {
        &self.config
    }

    /// The mappings in the table, by protocol, external port and remote peer.
    pub fn rules(&self) -> impl Iterator<Item = Nat1Rule> {
        self.table.mappings.iter().map(|(&key, &internal)| rule(key, internal))
    }

    /// Whether this very mapping is in the table.
    pub fn holds(&self, rule: &Nat1Rule) -> bool {
        let key = (rule.protocol, rule.external_port, rule.remote_peer);
        self.table.mappings.get(&key) == Some(&rule.internal)
    }

    async fn recreate(&mut self) -> io::Result<()> {
        let config = self.config.clone();
        self.link.transact("creating the table", |batch| ruleset::recreate(batch, &config)).await
    }
}

impl TableConfig {
    fn check(&self) -> io::Result<()> {
        if !plain_name(&self.name, 64) {
            return Err(invalid(format!("bad table name {:?}", self.name)));
        }
        if self.lan_interfaces.is_empty() {
            return Err(invalid("no LAN interface".to_owned()));
        }
        let wans = self.spare_interfaces.iter().chain([&self.wan_interface]);
        match self.lan_interfaces.iter().chain(wans).find(|name| !plain_name(name, 15)) {
            Some(name) => Err(invalid(format!("bad interface name {name:?}"))),
            None => Ok(()),
        }
    }
}

/// Whether no program of this router uses `port` on `addr`: tries to bind it, without SO_REUSEADDR and without
/// listening, and lets it go again. `protocol` is 6 or 17; any other is never free. Anything but “in use” counts as
/// free, a missing address or a privileged port for instance, since it tells nothing of other programs. NAT is not
/// asked: ports that another table forwards look free.
#[must_use]
pub fn port_is_free(protocol: u8, addr: Ipv4Addr, port: u16) -> bool {
    let kind = match protocol {
        TCP => Type::STREAM,
        UDP => Type::DGRAM,
        _ => return false,
    };
    let bound = Socket::new(Domain::IPV4, kind, None)
        .and_then(|socket| socket.bind(&SocketAddrV4::new(addr, port).into()));
    !matches!(bound, Err(e) if e.kind() == ErrorKind::AddrInUse)
}

const TCP: u8 = 6;
const UDP: u8 = 17;

/// What the kernel looks a packet up by: protocol, external port, remote peer.
type Key = (u8, u16, Option<Ipv4Addr>);
/// A LAN host's socket: protocol, internal address and port.
type Source = (u8, SocketAddrV4);

fn rule((protocol, external_port, remote_peer): Key, internal: SocketAddrV4) -> Nat1Rule {
    Nat1Rule { protocol, external_port, internal, remote_peer }
}

/// What the kernel's maps hold.
#[derive(Debug, Default)]
struct Table {
    mappings: BTreeMap<Key, SocketAddrV4>,
    /// Mappings of each source, oldest first; its flows leave by the external port of the first.
    sources: BTreeMap<Source, Vec<Key>>,
}

/// Some entries of a [`Table`] as they are to become; absent and empty ones go.
#[derive(Debug, Default)]
struct After {
    mappings: BTreeMap<Key, Option<SocketAddrV4>>,
    sources: BTreeMap<Source, Vec<Key>>,
}

/// A difference between two tables.
struct Plan {
    removed: Vec<Nat1Rule>,
    added: Vec<Nat1Rule>,
    sources_removed: Vec<Source>,
    sources_added: Vec<(Source, u16)>,
    after: After,
}

impl Table {
    fn plan(&self, changes: &[Change]) -> io::Result<Plan> {
        let mut after = After::default();
        for change in changes {
            match change {
                Change::Add(new) => self.add(&mut after, new)?,
                Change::Remove(old) => self.remove(&mut after, old)?,
                Change::Replace { old, new } => {
                    self.remove(&mut after, old)?;
                    self.add(&mut after, new)?;
                }
            }
        }
        let (mut removed, mut added) = (Vec::new(), Vec::new());
        for (&key, &new) in &after.mappings {
            let old = self.mappings.get(&key).copied();
            if old != new {
                removed.extend(old.map(|internal| rule(key, internal)));
                added.extend(new.map(|internal| rule(key, internal)));
            }
        }
        let (mut sources_removed, mut sources_added) = (Vec::new(), Vec::new());
        for (&source, keys) in &after.sources {
            let port = |keys: Option<&Vec<Key>>| keys.and_then(|keys| keys.first()).map(|key| key.1);
            let (old, new) = (port(self.sources.get(&source)), port(Some(keys)));
            if old != new {
                sources_removed.extend(old.map(|_| source));
                sources_added.extend(new.map(|port| (source, port)));
            }
        }
        Ok(Plan { removed, added, sources_removed, sources_added, after })
    }

    fn add(&self, after: &mut After, new: &Nat1Rule) -> io::Result<()> {
        let (key, source) = new.check()?;
        match self.current(after, key) {
            Some(internal) if internal == new.internal => return Ok(()),
            Some(internal) => {
                let message = format!("{new:?}: the external port is mapped to {internal}");
                return Err(io::Error::new(ErrorKind::AlreadyExists, message));
            }
            None => {}
        }
        after.mappings.insert(key, Some(new.internal));
        self.holders(after, source).push(key);
        Ok(())
    }

    fn remove(&self, after: &mut After, old: &Nat1Rule) -> io::Result<()> {
        let (key, source) = old.check()?;
        if self.current(after, key) != Some(old.internal) {
            return Err(io::Error::new(ErrorKind::NotFound, format!("{old:?} is not mapped")));
        }
        after.mappings.insert(key, None);
        self.holders(after, source).retain(|holder| *holder != key);
        Ok(())
    }

    fn current(&self, after: &After, key: Key) -> Option<SocketAddrV4> {
        after.mappings.get(&key).copied().unwrap_or_else(|| self.mappings.get(&key).copied())
    }

    fn holders<'a>(&self, after: &'a mut After, source: Source) -> &'a mut Vec<Key> {
        after.sources.entry(source).or_insert_with(|| self.sources.get(&source).cloned().unwrap_or_default())
    }

    fn commit(&mut self, after: After) {
        for (key, internal) in after.mappings {
            match internal {
                Some(internal) => self.mappings.insert(key, internal),
                None => self.mappings.remove(&key),
            };
        }
        for (source, keys) in after.sources {
            if keys.is_empty() {
                self.sources.remove(&source);
            } else {
                self.sources.insert(source, keys);
            }
        }
    }
}

impl Nat1Rule {
    fn check(&self) -> io::Result<(Key, Source)> {
        let host = self.internal.ip();
        let bad = !matches!(self.protocol, TCP | UDP)
            || self.external_port == 0
            || self.internal.port() == 0
            || host.is_unspecified()
            || host.is_loopback()
            || host.is_multicast()
            || host.is_broadcast();
        if bad {
            return Err(invalid(format!("{self:?} is no unicast TCP or UDP mapping")));
        }
        let key = (self.protocol, self.external_port, self.remote_peer);
        Ok((key, (self.protocol, self.internal)))
    }

    fn set(&self) -> &'static str {
        if self.remote_peer.is_some() { PEERS } else { PORTS }
    }
}

impl Plan {
    fn is_empty(&self) -> bool {
        // The order of a source's holders may have changed though nothing else did.
        self.after.mappings.is_empty() && self.after.sources.is_empty()
    }

    /// All that goes before all that comes: an element can be replaced only by deleting it first.
    fn write(&self, batch: &mut Batch, table: &str, masquerade: bool) {
        let mapping = |rules: &[Nat1Rule], set: &str, value: bool| -> Vec<_> {
            let wanted = rules.iter().filter(|rule| rule.set() == set);
            wanted
                .map(|r| {
                    let internal = value.then_some(r.internal);
                    ruleset::mapping_element(r.protocol, r.external_port, r.remote_peer, internal)
                })
                .collect()
        };
        for set in [PORTS, PEERS] {
            batch.elements(Kind::DelElement, table, set, &mapping(&self.removed, set, false));
        }
        if masquerade {
            let elements: Vec<_> =
                self.sources_removed.iter().map(|s| ruleset::source_element(s.0, s.1, None)).collect();
            batch.elements(Kind::DelElement, table, SOURCES, &elements);
        }
        for set in [PORTS, PEERS] {
            batch.elements(Kind::NewElement, table, set, &mapping(&self.added, set, true));
        }
        if masquerade {
            let elements: Vec<_> = self
                .sources_added
                .iter()
                .map(|(s, port)| ruleset::source_element(s.0, s.1, Some(*port)))
                .collect();
            batch.elements(Kind::NewElement, table, SOURCES, &elements);
        }
    }

    fn flows(&self) -> Vec<Flows> {
        let gone = self.removed.iter().map(|rule| Flows::Mapped(*rule));
        // TCP needs no such thing: a refused connection leaves nothing that the next attempt would run into.
        let early = self
            .added
            .iter()
            .filter(|rule| rule.protocol == UDP)
            .map(|rule| Flows::Unanswered { protocol: rule.protocol, external_port: rule.external_port });
        gone.chain(early).collect()
    }
}

/// A name that the kernel takes, for a table or an interface.
fn plain_name(name: &str, max: usize) -> bool {
    (1..=max).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
}

fn invalid(message: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests;
