//! The router's own NAT (NAT1) and the filter in front of the LAN, as one nf_tables table of ours (decisions 24 and
//! 25). Spoken to over netlink only; no `nft` process, and no other program's table is touched but by
//! `foreign`.
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
//!   set kept    { type inet_proto . ipv4_addr . inet_service }                              the same where w is internal's port
//!   set mapped  { type inet_proto . inet_service }                                          protocol . w
//!   map hairpin, hairpin_peers, hairpin_sources   as ports, peers and sources, with the outermost address and port for w
//!   set wan_addresses, hairpin_addresses { type ipv4_addr }           the WAN interface's; these and the outermost ones
//!   set hairpin_links { type ifname . ifname }                        each LAN interface and itself
//!   set marked  { type inet_proto . ipv4_addr . inet_service }        protocol . internal: to whom mappings lead
//!   set marked_peers { type inet_proto . ipv4_addr . inet_service . ipv4_addr }             the same for one remote peer
//!   set lan     { type ifname }
//!   set wan     { type ifname }                                                             spare lines, too
//!   chain prerouting  dnat by peers, then by ports: what arrives on the WAN interface for any address of this router;
//!                     what arrives on the LAN for an outermost address and port, or for a port of the WAN's addresses
//!   chain forward     sets a mark on what came by a mapping; WAN to LAN only what a mapping (or somebody else's DNAT) lets in
//!   chain mark        asks the two sets of the mark
//!   chain postrouting LAN to LAN: the source of hairpinned packets; LAN to WAN: a mapping's own port where there is one
//! }
//! ```
//!
//! **Hairpin** (decision 26, RFC 7648; RFC 4787 REQ-9). Answers to a hairpinned packet have to come back through this router, or the
//! sender does not know them. A sender that has a mapping for its port is shown by that mapping's outermost address and
//! port, as REQ-9 asks: the receiver knows it by these from elsewhere (a server that introduced them, say), and may refuse
//! others; its answer goes to an address that is not on its link, so to this router. What anybody else would be shown by
//! is the provider's to choose, and unknown here: it is shown by the router's own LAN address where both are on one link, and
//! as it is where they are not, for then the way back leads here anyway.
//!
//! **A mapping's own packets** (RFC 6887 §11: a mapping is for both directions) leave by its port of the WAN address, TCP's and UDP's,
//! in a chain before the usual masquerade, and also where there is none, for answers to what came in leave by that port, too. Of
//! several mappings of one host's port the oldest counts, then the next. Where w is the host's own port (`kept`) that is a plain
//! masquerade, which keeps the port unless a flow of another host's to the same remote endpoint has it; then the packet leaves by
//! another port, as it would without us, where with a port that is set (`sources`) it would be lost. What others send from a
//! mapped port is kept off it (`mapped`) where masquerading is ours; it is not for us to translate what the firewall may mean to
//! leave alone.
//!
//! **The mark** is for firewalls whose own chain drops and that cannot tell our translation from anybody's. It is set on what was
//! translated and goes where a mapping leads whoever sent it, from the WAN and, with hairpin, from the LAN. Not asked is the port by
//! which it came (nft cannot list a rule that looks a flow's original port up together with anything): an administrator's forward to the
//! same host and port is marked as well, for senders to whom a mapping opens that anyway. Most packets cost a look at their flow's
//! status.
//!
//! [`pinholes`] is another table, of IPv6's pinholes, [`provider`] a PCP server's; the modules beside them are what all are made
//! with. `foreign` is one rule in somebody else's chain, where `[firewall] integrate` wants it (`crate::firewall`).
//!
//! **Limits of an own table.** `accept` in our chain does not undo a `drop` in another one (fw4, firewalld, ufw): their
//! rules must let `ct status dnat` pass, or what has our mark (`crate::firewall`). And our `drop` stands whatever they accept; port forwardings that
//! the administrator made elsewhere pass, because they are DNAT too. The filter is for IPv4; that for IPv6 is [`pinholes`], where
//! what is let in elsewhere does not pass, which is one reason why [`TableConfig::forward_filter`] is a choice. `nft flush ruleset` takes our table with it: `watch` notices
//! that, and whatever else another program does to it, and [`Nft::restore`] makes it anew; an [`Nft::apply`] before that fails with
//! [`ErrorKind::NotFound`].
//!
//! **Kernel.** Linux 5.7 or later (`iifname` in postrouting), with nf_tables and its nat, masq, fib and reject modules.
//! Ending flows needs nf_conntrack_netlink (a package of its own on OpenWrt): without it mappings work, but a removed
//! one's flows go on until they end by themselves. From 6.10 on the kernel finds the flows itself.

mod batch;
mod conntrack;
mod counter;
mod ending;
pub(crate) mod foreign;
mod link;
mod mappings;
pub mod pinholes;
pub mod provider;
pub(crate) mod reading;
mod rule;
mod ruleset;
mod shape;
pub(crate) mod watch;

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddrV4},
};

use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};
use tokio::time::Instant;

use batch::{Batch, NFPROTO_INET};
use conntrack::FlowFrom;
use ending::Ending;
use link::Link;
use mappings::{Plan, Table};
use shape::Shape;

/// Priority of our `prerouting` chain: one after `dstnat` (-100), so that the port forwardings an administrator made
/// by hand win over what a control point asked for.
pub const PREROUTING_PRIORITY: i32 = -99;
/// Priority of our `forward` chain: before the usual `filter` (0).
pub const FORWARD_PRIORITY: i32 = -5;
/// Priority of our `postrouting` chain: one before `srcnat` (100), or a plain `masquerade` there would choose the port.
pub const POSTROUTING_PRIORITY: i32 = 99;

/// Changes that one [`Nft::apply`] takes. A transaction is one write, which must fit the socket's send buffer
/// (160 KiB on 32-bit kernels); a change takes 600 octets at most.
pub const MAX_CHANGES: usize = 256;

/// One mapping of the router's own NAT.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Nat1Rule {
    /// IANA protocol number: 6 (TCP) or 17 (UDP).
    pub protocol: u8,
    /// Port on the WAN address (w in `spec/iwf.md`), 1..=65535.
    pub external_port: u16,
    /// LAN host and port that packets are sent on to.
    pub internal: SocketAddrV4,
    /// Only this host's packets match (IGD's RemoteHost); `None`: anybody's.
    pub remote_peer: Option<Ipv4Addr>,
    /// Address and port at the provider's NAT, which stand on none of this router's interfaces: LAN hosts reach the mapping by
    /// them. It does not tell mappings apart.
    pub outermost: Option<SocketAddrV4>,
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
    /// The addresses of `wan_interface`, by which LAN hosts reach mappings. What arrives there is for mappings whatever the address.
    pub wan_addresses: Vec<Ipv4Addr>,
    /// The interfaces towards the LAN, at least one.
    pub lan_interfaces: Vec<String>,
    /// Forward from the WAN to the LAN interfaces only what belongs to a known flow or was DNATed (IPv4), and
    /// reset TCP connections from the LAN whose beginning the kernel hasn't seen. Without the latter the LAN host's next
    /// packet would revive a removed mapping's connection as one of its own.
    pub forward_filter: bool,
    /// Masquerade what goes from the LAN to the WAN interface (IPv4). A mapped host's packets from its internal port
    /// leave by the external port in any case.
    pub masquerade: bool,
    /// LAN hosts reach mappings by their external addresses, too.
    pub hairpin: bool,
    /// Bits, at least one, that are set in the packet mark of what comes in by a mapping, from LAN hosts, too. It is accepted.
    pub mark: Option<u32>,
}

/// One step of an [`Nft::apply`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    /// A new mapping; one that is there already gets this outermost address and port.
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
    ending: Ending,
    /// What the kernel made of it when it was created.
    shape: Option<Shape>,
}

impl Nft {
    /// Creates the table; one of the same name, left by an earlier run, is deleted in the same transaction. Flows that
    /// run through it go on.
    ///
    /// # Errors
    /// * [`ErrorKind::PermissionDenied`]: CAP_NET_ADMIN is missing.
    /// * [`ErrorKind::InvalidInput`]: `config` has an impossible name, no LAN interface, or a mark without bits.
    /// * [`ErrorKind::Unsupported`], [`ErrorKind::NotFound`]: the kernel lacks nf_tables or one of its modules (nat, fib,
    ///   masq, reject).
    /// * [`ErrorKind::TimedOut`]: no answer within 5 s.
    pub async fn open(config: TableConfig) -> io::Result<Self> {
        config.check()?;
        let table = Table::new(&config);
        let (link, ending) = (Link::default(), Ending::default());
        let mut nft = Self { config, table, link, kernel_filters: true, ending, shape: None };
        nft.rebuild().await?;
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
        self.change(changes).await?;
        self.end_flows().await;
        Ok(())
    }

    /// The same, but that flows are not ended yet: that is for [`Nft::end_flows`] when [`Nft::flows_due`] says so.
    ///
    /// # Errors
    /// As [`Nft::apply`].
    pub async fn change(&mut self, changes: &[Change]) -> io::Result<()> {
        if changes.len() > MAX_CHANGES {
            return Err(invalid(format!("more than {MAX_CHANGES} changes in one transaction")));
        }
        let added = changes.iter().filter_map(|change| match change {
            Change::Add(new) | Change::Replace { new, .. } => Some(new),
            Change::Remove(_) => None,
        });
        if self.ending.is_empty() {
            return self.make(changes).await;
        }
        let before = self.ending.clone();
        if added.filter(|new| self.ending.is_in_the_way_of(new)).count() > 0 {
            self.end_flows().await;
        }
        let made = self.make(changes).await;
        if made.is_err() {
            // What was to come back is gone for good: so are its flows.
            self.ending = before;
        }
        made
    }

    async fn make(&mut self, changes: &[Change]) -> io::Result<()> {
        let plan = self.table.change(changes)?;
        self.carry_out("changing mappings", plan).await
    }

    /// When [`Nft::end_flows`] is due: at once, or, where changes follow upon each other, a moment later. `None`: nothing is left to end.
    pub fn flows_due(&self) -> Option<Instant> {
        self.ending.due(Instant::now())
    }

    /// Ends the flows that changes have left. Should that fail, the log has a warning.
    pub async fn end_flows(&mut self) {
        let (flows, since) = (self.ending.take(), Instant::now());
        if flows.is_empty() {
            return;
        }
        let kernel_filters = &mut self.kernel_filters;
        self.link.end_flows(async |socket| conntrack::end(socket, &flows, kernel_filters).await).await;
        self.ending.walked(since, Instant::now());
    }

    /// The WAN interface has these addresses from now on.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]: the table is gone. [`ErrorKind::TimedOut`]: no answer within 5 s.
    pub async fn readdress(&mut self, addresses: Vec<Ipv4Addr>) -> io::Result<()> {
        let plan = self.table.readdress(&addresses);
        let before = std::mem::replace(&mut self.config.wan_addresses, addresses);
        let outcome = self.carry_out("changing the WAN's addresses", plan).await;
        if outcome.is_err() {
            let _ = self.table.readdress(&before);
            self.config.wan_addresses = before;
        }
        outcome
    }

    async fn carry_out(&mut self, what: &str, plan: Plan) -> io::Result<()> {
        if plan.changes_nothing() {
            return Ok(());
        }
        let name = self.config.name.clone();
        if let Err(error) = self.link.transact(what, |batch| plan.write(batch, &name)).await {
            self.table.undo(&plan);
            return Err(error);
        }
        let gone = plan.gone();
        self.ending.add(plan.flows, gone);
        Ok(())
    }

    /// By which port of the WAN's addresses a flow leaves that a LAN host has begun; `None`: there is none, or it is not translated.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] without CAP_NET_ADMIN; [`ErrorKind::TimedOut`] without an answer within 5 s; what the kernel says
    /// that has no nf_conntrack_netlink.
    pub async fn leaves_by(
        &mut self,
        protocol: u8,
        internal: SocketAddrV4,
        remote: SocketAddrV4,
    ) -> io::Result<Option<u16>> {
        let asked = [FlowFrom { protocol, internal: internal.into(), remote: Some(remote.into()) }];
        let addresses = &self.config.wan_addresses;
        let work = async |socket: &mut _| conntrack::places(socket, &asked, addresses).await;
        let places = self.link.ask("looking for a flow", work).await?;
        Ok(places.into_iter().flatten().next().map(|place| place.port()))
    }

    /// Deletes the table with all mappings; flows that run through them go on. Succeeds if it is gone already.
    /// Afterwards only [`Nft::open`] makes sense.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] without CAP_NET_ADMIN; [`ErrorKind::TimedOut`] without an answer within 5 s.
    pub async fn clear(&mut self) -> io::Result<()> {
        let name = self.config.name.clone();
        self.link.transact("deleting the table", |batch| rule::delete(batch, &name)).await?;
        self.table = Table::new(&self.config);
        self.ending = Ending::default();
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

    /// The mappings in the table, the oldest first.
    pub fn rules(&self) -> impl Iterator<Item = Nat1Rule> {
        self.table.rules()
    }

    /// How many mappings there are.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.table.len() == 0
    }

    /// How many lead to this host.
    pub fn held_by(&self, host: Ipv4Addr) -> usize {
        self.table.held_by(host)
    }

    /// Those of a port of the WAN address, one for each remote peer.
    pub fn at(&self, protocol: u8, external_port: u16) -> impl Iterator<Item = Nat1Rule> {
        self.table.at(protocol, external_port)
    }

    /// Whether this mapping is in the table, whatever its outermost address and port.
    pub fn holds(&self, rule: &Nat1Rule) -> bool {
        self.table.holds(rule)
    }

    /// Looks whether the table is as it ought to be, and makes it anew if it is not, with everything that is mapped; whether it had to.
    ///
    /// # Errors
    /// As [`Nft::open`]. What is mapped is still known then, and this may be called again.
    pub async fn restore(&mut self) -> io::Result<bool> {
        if self.is_whole().await? {
            return Ok(false);
        }
        self.rebuild().await?;
        Ok(true)
    }

    async fn is_whole(&mut self) -> io::Result<bool> {
        let Some(shape) = &self.shape else { return Ok(false) };
        let entries = self.table.entries();
        let wanted =
            shape::wanted(shape, &ruleset::SETS, entries.into_iter().map(|entry| (entry.set, entry.element)));
        let now = look(&mut self.link, (NFPROTO_INET, &self.config.name)).await?;
        Ok(now.is_some_and(|now| shape.is_still(&now, wanted)))
    }

    /// Creates the table with what is mapped: as much as one transaction holds at once, the rest in more. Flows that began while
    /// it was not there, and ought to have been translated, end as after an [`Nft::apply`].
    async fn rebuild(&mut self) -> io::Result<()> {
        // Beside the table itself there is room for this much.
        const FIRST: usize = MAX_CHANGES / 2;
        let rules: Vec<Change> = self.table.rules().map(Change::Add).collect();
        let (first, rest) = rules.split_at(rules.len().min(FIRST));
        let (config, mut table) = (self.config.clone(), Table::new(&self.config));
        let mut plan = table.change(first)?;
        let create = |batch: &mut Batch| {
            ruleset::recreate(batch, &config);
            plan.write(batch, &config.name);
        };
        self.link.transact("creating the table", create).await?;
        for some in rest.chunks(MAX_CHANGES) {
            let more = table.change(some)?;
            self.link.transact("filling the table", |batch| more.write(batch, &config.name)).await?;
            plan.flows.extend(more.flows);
        }
        // Not before: should it fail half way, what belongs into it is still known.
        self.table = table;
        self.ending.add(plan.flows, []);
        self.end_flows().await;
        // Without an answer it is made anew once more when somebody touches it.
        self.shape = look(&mut self.link, (NFPROTO_INET, &config.name)).await.ok().flatten();
        Ok(())
    }
}

/// What that table is like; `None`: it is not there, or was taken away meanwhile.
async fn look(link: &mut Link, table: (u8, &str)) -> io::Result<Option<Shape>> {
    let looked = link.ask("looking at our table", async |socket| Shape::read(socket, table).await).await;
    match looked {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        other => other,
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
        if self.mark == Some(0) {
            return Err(invalid("a mark without bits".to_owned()));
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

/// A name that the kernel takes, for a table or an interface.
fn plain_name(name: &str, max: usize) -> bool {
    (1..=max).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
}

fn invalid(message: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests;
