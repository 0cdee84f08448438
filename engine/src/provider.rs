//! The provider's side: a PCP server (RFC 6887 and its extensions, server half) and a NAT-PMP server (RFC 6886) on one table of
//! mappings, without socket, clock, file or thread.
//!
//! Datagrams come in as [`Arrival`]s, what is to be done comes out as [`Output`]s, in their order. The NAT itself is the
//! caller's: each change of it is an [`Output::Nat`], the answer to the client waits for its outcome
//! ([`Server::handle_nat`]), and when it is refused nothing has changed. Which flows go through it by themselves it is asked by
//! [`Output::Flow`]. What is answered is stored first ([`Record`]), so
//! that the epoch goes on counting over a restart that has lost nothing, and begins anew over any other.
//!
//! # Who may do what
//!
//! The simple threat model of RFC 6887 §18.1. A mapping of PCP belongs to its nonce. One of NAT-PMP, which has none, belongs to its
//! source address: a PCP request from there takes it over with its nonce, a NAT-PMP request neither shortens nor deletes
//! what PCP has made, though it is told where it is (N-5) and may make it last longer. Static mappings belong to nobody.
//!
//! # What must never happen
//!
//! One external port for two clients; a mapping that changes or ends by another's doing; a request that is half carried out;
//! an epoch that goes on counting although a mapping was lost; memory that grows with what is asked.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use wire::pcp::{self, SERVER_PORT};

use crate::announcements::Announcements;
use crate::limits::Limits;
use crate::time::{Duration, Instant};

mod admission;
mod announce;
mod config;
mod flows;
mod interface;
mod journal;
mod map;
mod nat;
mod natpmp;
mod notice;
mod obliging;
mod options;
mod peer;
mod pool;
mod query;
mod reason;
mod restore;
mod runs;
mod table;
#[cfg(test)]
mod tests;
mod updates;

pub use crate::prefix::{NotAPrefix, Prefix, ThirdParty};
pub use config::{
    AclRule, Description, MAX_FILTERS, MAX_PORT_SET, PreferFailure, Rate, ServerConfig, StaticMapping,
};
pub use flows::FlowQuery;
pub use interface::{Arrival, Binding, Inside, NatChange, NatRefused, Output, Requester, Subscriber, Ticket};
pub use journal::{MappingKey, Record, StoredHold, StoredMapping};
pub use notice::{NewEpoch, Notice};
pub use obliging::{NatEvent, Provider, ProviderConfig, ProviderMapping, Speaks};
pub use reason::{Counters, Kind, Reason};
pub use table::ServerMapping;

use flows::Flows;
use nat::{Abandoned, Batch, Pending};
use notice::Told;
use pool::Pool;
use restore::Restoring;
use table::Table;
use updates::Updates;

/// See the module's description.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    /// The static mappings of `config`, by what they are for.
    statics: BTreeMap<MappingKey, SocketAddr>,
    /// How old the epoch was at a certain time.
    epoch: (Instant, Duration),
    table: Table,
    pool: Pool,
    limits: Limits<Subscriber>,
    announcements: Announcements,
    updates: Updates,
    restoring: Restoring,
    /// Changes that the data plane has not answered yet.
    pending: BTreeMap<Ticket, Pending>,
    /// What was on its way when the state was lost.
    abandoned: BTreeMap<Ticket, Abandoned>,
    /// How many of them somebody waits for.
    asked: usize,
    /// Requests about mappings that are being changed, in the order in which they came.
    waiting: BTreeMap<MappingKey, VecDeque<(Arrival, Vec<u8>)>>,
    batches: BTreeMap<u64, Batch>,
    flows: Flows,
    next_number: u64,
    outputs: VecDeque<Output>,
    counters: Counters,
    /// What was told last of the data plane, the table and the ports, so that only changes are told.
    nat_refuses: Option<NatRefused>,
    told_of_nat: Told,
    table_full: Told,
    used_up: BTreeMap<Ipv4Addr, Told>,
}

impl Server {
    /// A server whose epoch counts from `started`. That lies before now only when nothing was lost since then, and what was stored
    /// comes by [`restore`](Self::restore) before the first datagram.
    pub fn new(now: Instant, config: ServerConfig, started: Instant) -> Self {
        Self::with_age(now, config, now - started)
    }

    /// As [`new`](Self::new), with the age that the epoch has now: it may have begun before the clock did.
    pub fn with_age(now: Instant, config: ServerConfig, age: Duration) -> Self {
        let mut new = Self {
            statics: statics(&config),
            pool: Pool::new(&config),
            config,
            epoch: (now, age),
            table: Table::default(),
            limits: Limits::default(),
            announcements: Announcements::default(),
            updates: Updates::default(),
            restoring: Restoring::default(),
            pending: BTreeMap::new(),
            abandoned: BTreeMap::new(),
            asked: 0,
            waiting: BTreeMap::new(),
            batches: BTreeMap::new(),
            flows: Flows::default(),
            next_number: 0,
            outputs: VecDeque::new(),
            counters: Counters::default(),
            nat_refuses: None,
            told_of_nat: Told::default(),
            table_full: Told::default(),
            used_up: BTreeMap::new(),
        };
        if age.is_zero() {
            new.begin_epoch(now, NewEpoch::Fresh);
        }
        new
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &ServerConfig {
        &self.config
    }

    /// What wants to be done; call until `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        [self.table.next_end(), self.announcements.next(), self.updates.next()].into_iter().flatten().min()
    }

    /// Ends the mappings whose lifetime is over, and announces and tells what there is to be told; a bounded number of each in
    /// one turn, and when there is more, the next one is due at once.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.end_mappings(now);
        self.continue_announcing(now);
        self.tell_updates(now);
    }

    /// The mappings that the data plane has, in the order of their keys.
    pub fn mappings(&self) -> impl Iterator<Item = &ServerMapping> {
        self.table.all().filter(|mapping| mapping.is_open())
    }

    /// How many mappings the data plane has; this costs nothing, however many there are.
    #[must_use]
    pub fn mapping_count(&self) -> usize {
        self.table.open()
    }

    /// How many subscribers have a mapping, or wait for one; this costs nothing either.
    #[must_use]
    pub fn subscriber_count(&self) -> usize {
        self.table.subscribers()
    }

    /// What has been asked, and what came of it.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Seconds since state was last lost (RFC 6887 §8.5).
    #[must_use]
    pub fn epoch(&self, now: Instant) -> u32 {
        let (at, age) = self.epoch;
        u32::try_from((now - at).saturating_add(age).as_secs()).unwrap_or(u32::MAX)
    }

    /// Other settings. Where an external address goes, its mappings move to another one, with their ports where those are free;
    /// then, and when an address comes, the epoch begins anew and that is announced (RFC 6887 §8.5, N-13). Clients whose
    /// mapping has moved are told so, too (§14.2). A mapping that
    /// nothing is left for ends.
    pub fn reconfigure(&mut self, now: Instant, config: ServerConfig) {
        let addresses = |config: &ServerConfig| config.pool.iter().copied().collect::<BTreeSet<Ipv4Addr>>();
        let readdressed = addresses(&config) != addresses(&self.config);
        let prefixes = config.prefix64 != self.config.prefix64;
        self.reconfigure_quietly(now, config);
        if readdressed {
            self.begin_epoch(now, NewEpoch::Readdressed);
        }
        if readdressed || prefixes {
            self.announce(now);
        }
    }

    /// As [`reconfigure`](Self::reconfigure), but the epoch goes on and nothing is announced, which RFC 6887 forbids: for
    /// simulations of servers that do so.
    pub fn reconfigure_quietly(&mut self, now: Instant, config: ServerConfig) {
        self.statics = statics(&config);
        let before = std::mem::replace(&mut self.config, config);
        let same_pool = (&before.pool, &before.ports, &before.statics, &before.protocols)
            == (&self.config.pool, &self.config.ports, &self.config.statics, &self.config.protocols);
        if !same_pool {
            self.used_up.clear();
            self.rebuild_pool(now);
        }
    }

    /// Forgets every mapping, as a restart without storage does; the epoch begins anew, and that is announced.
    pub fn lose_state(&mut self, now: Instant) {
        self.abandon_all();
        self.table = Table::default();
        self.pool = Pool::new(&self.config);
        self.pending.clear();
        self.asked = 0;
        self.waiting.clear();
        self.batches.clear();
        self.flows = Flows::default();
        self.restoring = Restoring::default();
        self.updates = Updates::default();
        // First the new epoch, then the loss: else a stop in between would leave the old epoch without its mappings.
        self.begin_epoch(now, NewEpoch::Lost);
        self.outputs.push_back(Output::Store(Record::Clear));
        self.announce(now);
    }

    fn begin_epoch(&mut self, now: Instant, why: NewEpoch) {
        self.epoch = (now, Duration::ZERO);
        self.outputs.push_back(Output::Store(Record::Epoch));
        self.outputs.push_back(Output::Notice(Notice::EpochBegan(why)));
    }

    fn ticket(&mut self) -> Ticket {
        Ticket(self.number())
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn send(&mut self, arrival: &Arrival, bytes: Vec<u8>) {
        self.counters.sent += 1;
        let Arrival { from, to, softwire, interface, .. } = *arrival;
        self.outputs.push_back(Output::Send { to: from, from: to, softwire, interface, bytes });
    }
}

fn statics(config: &ServerConfig) -> BTreeMap<MappingKey, SocketAddr> {
    let key =
        |fixed: &StaticMapping| MappingKey::new(fixed.inside, fixed.protocol, fixed.internal_port, None);
    config.statics.iter().map(|fixed| (key(fixed), fixed.external)).collect()
}

/// No address of either family (RFC 6887 §5).
fn unless_unspecified(addr: std::net::Ipv6Addr) -> Option<IpAddr> {
    Some(pcp::ip_from_wire(addr)).filter(|addr| !addr.is_unspecified())
}

const _: () = assert!(SERVER_PORT == wire::natpmp::SERVER_PORT, "one socket hears both");
