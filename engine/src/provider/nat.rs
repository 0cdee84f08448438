//! Two phases: the data plane is told what to do, and only when it has done it, the table has changed, the change is stored and
//! the client has its answer. Whoever asks about a mapping in between waits.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use wire::natpmp;
use wire::pcp::{
    self, Body, Filter, MapData, NO_ADDR_V4, Nonce, PcpOption, PeerData, PortSet, Protocol, Response,
    ResultCode,
};

use super::Server;
use super::admission::{Client, Served};
use super::interface::{Arrival, Binding, NatChange, NatRefused, Output, Ticket};
use super::journal::{MappingKey, Record, StoredHold, StoredMapping};
use super::map::{Place, Realm};
use super::notice::Notice;
use super::pool::{Endpoint, Freed, Use, Want};
use super::reason::{Kind, Reason, Refused};
use super::table::{LastAsked, ServerMapping};
use crate::time::{Duration, Instant};

/// Requests about one mapping that wait while it is being changed.
pub(super) const MAX_WAITING: usize = 4;
/// Changes and questions of one subscriber that the data plane has not answered yet; what is above it is met with silence.
const MAX_BUSY: usize = 64;
/// The same of all subscribers together.
const MAX_PENDING: usize = 4096;
/// When it is tried again to close what is over and could not be closed.
const AGAIN: Duration = Duration::from_secs(5);

/// So many mappings that are over are closed in one turn: between two turns, somebody may ask something.
const ENDS_AT_ONCE: usize = 64;
/// How often another external port is tried, where one is taken on this machine.
const TRIES: u32 = 8;
/// How long nobody gets a port that is taken on this machine.
const TAKEN: Duration = Duration::from_secs(600);

/// A change that the data plane has not answered yet.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) key: MappingKey,
    doing: Doing,
    pub(super) asker: Option<Asker>,
}

#[derive(Debug)]
enum Doing {
    /// A new mapping, which may get another external port, if that is taken on this machine.
    Open(Option<Elsewhere>),
    /// One that was there before a restart.
    Restore,
    /// Another one in its place.
    Change(Renewal),
    /// It moves to where its internal endpoint is now.
    Move(SocketAddr),
    /// It goes.
    Close,
}

/// A change of a mapping that counts no more: what the data plane has when it is done, and when it is not.
#[derive(Debug)]
pub(super) struct Abandoned {
    done: Option<Binding>,
    not_done: Option<Binding>,
}

/// What a new mapping wants outside, and how often another port has been tried for it.
#[derive(Debug)]
pub(super) struct Elsewhere {
    pub(super) want: Box<Want>,
    pub(super) tries: u32,
}

/// Who waits for a change, and for which answer.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    pub(super) arrival: Arrival,
    pub(super) payload: Vec<u8>,
    pub(super) asked: Asked,
}

#[derive(Clone, Debug)]
pub(super) enum Asked {
    Map {
        data: MapData,
        options: Vec<PcpOption>,
        /// Of the PORT_SET that was asked for.
        parity: bool,
        /// Prefixes of the NAT64, which come last.
        prefixes: Vec<PcpOption>,
    },
    Peer {
        data: PeerData,
        options: Vec<PcpOption>,
    },
    NatPmp(natpmp::Request),
    /// One of several deletes with one answer.
    Batch(u64),
}

impl Asked {
    /// The options of a success about so many ports, the first of them this one.
    fn options(&self, first_internal_port: u16, size: u16) -> Vec<PcpOption> {
        match self {
            Self::Map { options, parity, prefixes, .. } => {
                let set = PortSet { size, first_internal_port, parity: *parity };
                let set = (size > 1).then_some(PcpOption::PortSet(set));
                options.iter().cloned().chain(set).chain(prefixes.iter().cloned()).collect()
            }
            Self::Peer { options, .. } => options.clone(),
            Self::NatPmp(_) | Self::Batch(_) => Vec::new(),
        }
    }
}

/// Several deletes with one answer (N-9).
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) left: usize,
    /// Why not all of them could be carried out.
    pub(super) failed: Option<Reason>,
    pub(super) arrival: Arrival,
    pub(super) request: natpmp::Request,
}

/// What a granted request makes of a mapping.
#[derive(Clone, Debug)]
pub(super) struct Renewal {
    pub(super) granted: Duration,
    /// It ends no earlier than before.
    pub(super) extends_only: bool,
    pub(super) filters: Vec<Filter>,
    pub(super) description: Option<String>,
    /// `None` leaves it as it is.
    pub(super) nonce: Option<Nonce>,
    pub(super) asked: LastAsked,
}

impl Server {
    /// Tells what became of an [`Output::Nat`]. An outcome that nobody waits for any more is passed over.
    pub fn handle_nat(&mut self, now: Instant, ticket: Ticket, outcome: Result<(), NatRefused>) {
        if let Some(Abandoned { done, not_done }) = self.abandoned.remove(&ticket) {
            let left = if outcome.is_ok() { done } else { not_done };
            left.into_iter().for_each(|binding| self.close_abandoned(binding));
            return;
        }
        let Some(Pending { key, doing, asker }) = self.pending.remove(&ticket) else { return };
        self.asked -= usize::from(asker.is_some());
        self.tell_of_nat(now, outcome);
        self.table.change(&key, |mapping| mapping.busy = None);
        // What cannot be closed is tried again after a while, also when its place is gone.
        let stays = outcome.is_err() && matches!(doing, Doing::Close);
        match outcome {
            Ok(()) => self.done(now, key, doing, asker.as_ref()),
            Err(refused) => self.not_done(now, key, doing, asker, refused),
        }
        if !stays {
            self.settle(now, key);
        }
        for (arrival, payload) in self.waiting.remove(&key).unwrap_or_default() {
            self.handle_again(now, &arrival, &payload);
        }
    }

    fn done(&mut self, now: Instant, key: MappingKey, doing: Doing, asker: Option<&Asker>) {
        match doing {
            Doing::Open(_) => {
                let granted = self.table.get(&key).map_or(Duration::ZERO, |mapping| mapping.granted);
                self.table.change(&key, |mapping| {
                    mapping.open = true;
                    mapping.ends = now + granted;
                });
                self.store(now, &key, granted);
                self.answer(now, asker, &key);
            }
            Doing::Restore => {
                self.table.change(&key, |mapping| mapping.open = true);
                self.restored(now, true);
            }
            Doing::Change(renewal) => {
                self.renew(now, &key, renewal);
                self.answer(now, asker, &key);
            }
            Doing::Move(external) => {
                self.table.change(&key, |mapping| mapping.external = external);
                self.store_again(now, &key);
                self.has_moved(now, key);
            }
            Doing::Close => {
                // Its removal is stored first: what stands is not held.
                self.outputs.push_back(Output::Store(Record::Remove(key)));
                let ports = self.forget(now, &key).map_or(1, |mapping| mapping.ports);
                match asker {
                    Some(asker) => self.answer_deleted(now, asker, key.port, ports),
                    None => self.counters.ended += 1,
                }
            }
        }
    }

    fn not_done(
        &mut self,
        now: Instant,
        key: MappingKey,
        doing: Doing,
        asker: Option<Asker>,
        refused: NatRefused,
    ) {
        self.counters.nat_refusals += 1;
        let mapping = self.table.get(&key);
        let reason = match refused {
            NatRefused::Failed => Reason::NatFailed,
            NatRefused::Full => Reason::NatFull,
            NatRefused::Taken => Reason::NoPort,
            NatRefused::Unfit => {
                let filters = match &doing {
                    Doing::Change(renewal) => renewal.filters.len(),
                    _ => mapping.map_or(0, |mapping| mapping.filters.len()),
                };
                unfit(&key, filters)
            }
        };
        // Where it was tried, if that is where it still should be.
        let here = mapping.is_some_and(|mapping| self.place_of(mapping) == Some(mapping.external));
        let freed = if refused == NatRefused::Taken && here { Freed::Taken(TAKEN) } else { Freed::Free };
        match doing {
            // As if it had never been asked for: nothing is held for who has asked.
            Doing::Open(elsewhere) => {
                let removed = self.remove(now, &key, freed);
                if let (NatRefused::Taken, Some(elsewhere), Some(mapping), Some(asker)) =
                    (refused, elsewhere, removed, &asker)
                {
                    return self.open_elsewhere(now, mapping, elsewhere, asker);
                }
            }
            Doing::Restore => {
                self.restored_less(now);
                self.remove(now, &key, freed);
                self.outputs.push_back(Output::Store(Record::Remove(key)));
                self.restored(now, false);
            }
            // Its old place is another's by now.
            Doing::Move(_) => self.close(now, key, None),
            Doing::Change(_) | Doing::Close => {}
        }
        if let Some(asker) = asker {
            self.answer_refused(now, &asker, reason);
        }
    }

    /// A new mapping whose external port something else on this machine has: it gets another one, if its client takes one.
    fn open_elsewhere(&mut self, now: Instant, mapping: ServerMapping, elsewhere: Elsewhere, asker: &Asker) {
        let Elsewhere { want, tries } = elsewhere;
        let client = Client::new(&asker.arrival, &self.config);
        // One port and no other cannot be had, which is found out by looking for it.
        let found = if tries < TRIES || want.strict && want.suggested.1 != 0 {
            self.assign(now, &client, Realm::Pool, *want, NO_ADDR_V4.to_canonical())
        } else {
            Err(Reason::NoPort.into())
        };
        match found {
            Ok(Place { external, ports, elsewhere }) => {
                let elsewhere = elsewhere.map(|again| Elsewhere { tries: tries + 1, ..again });
                self.open(ServerMapping { external, ports, ..mapping }, Some(asker.clone()), elsewhere);
            }
            Err(refused) => self.answer_refused(now, asker, refused),
        }
    }

    /// Only what changes is told, and not each time that clients make it change. What says something of one binding says nothing of
    /// the data plane.
    fn tell_of_nat(&mut self, now: Instant, outcome: Result<(), NatRefused>) {
        let notice = match outcome {
            Ok(()) if self.nat_refuses.take().is_some() => Notice::NatWorks,
            Err(refused @ (NatRefused::Failed | NatRefused::Full))
                if self.nat_refuses != Some(refused) && self.told_of_nat.may_tell(now) =>
            {
                self.nat_refuses = Some(refused);
                Notice::NatRefuses(refused)
            }
            Ok(()) | Err(_) => return,
        };
        self.outputs.push_back(Output::Notice(notice));
    }

    /// What came up while a mapping was being changed: its internal endpoint has moved, or has no place any more.
    pub(super) fn settle(&mut self, now: Instant, key: MappingKey) {
        let Some(mapping) = self.table.get(&key).filter(|mapping| mapping.busy.is_none()) else { return };
        let Some(place) = self.place_of(mapping) else { return self.close(now, key, None) };
        if place == mapping.external {
            return;
        }
        let old = mapping.binding();
        let new = Binding { external: place, ..old.clone() };
        self.begin(key, Doing::Move(place), NatChange::Replace { old, new }, None);
    }

    /// Where a mapping should be; `None` when there is no place for it.
    fn place_of(&self, mapping: &ServerMapping) -> Option<SocketAddr> {
        if mapping.external.is_ipv6() {
            return Some(mapping.external);
        }
        let (first, of) = self.pool.of(endpoint(&mapping.key()))?;
        let port = match first.port {
            0 => 0,
            port => of.external.port() + (mapping.internal_port - port),
        };
        Some(SocketAddr::new((*of.external.ip()).into(), port))
    }

    /// External addresses have changed: what is not where it should be moves, unless it is being changed at the moment.
    pub(super) fn rebuild_pool(&mut self, now: Instant) {
        let config = &self.config;
        // The rules are about who asked, which with THIRD_PARTY is somebody else than the host.
        let mut asked = BTreeMap::new();
        for mapping in self.table.all() {
            asked.entry(endpoint(&mapping.key())).or_insert(mapping.requester.client());
        }
        let allowed = |endpoint: Endpoint| {
            let host = endpoint.inside.softwire.map_or(endpoint.inside.addr, Into::into);
            config.allowed(asked.get(&endpoint).copied().unwrap_or(host), endpoint.protocol)
        };
        self.pool.rebuild(now, config, allowed);
        let keys: Vec<MappingKey> = self.table.all().map(ServerMapping::key).collect();
        for key in keys {
            self.settle(now, key);
        }
    }

    /// No mapping counts any more: each is closed, at once or as soon as the data plane has said where the change that is on its way
    /// has left it.
    pub(super) fn abandon_all(&mut self) {
        let mut closed = Vec::new();
        for mapping in self.table.all() {
            let here = mapping.binding();
            let pending = mapping.busy.and_then(|ticket| Some((ticket, self.pending.get(&ticket)?)));
            let Some((ticket, pending)) = pending else {
                closed.push(here);
                continue;
            };
            let (done, not_done) = match &pending.doing {
                Doing::Open(_) | Doing::Restore => (Some(here), None),
                Doing::Close => (None, Some(here)),
                Doing::Move(external) => (Some(Binding { external: *external, ..here.clone() }), Some(here)),
                Doing::Change(renewal) => {
                    (Some(Binding { filters: renewal.filters.clone(), ..here.clone() }), Some(here))
                }
            };
            self.abandoned.insert(ticket, Abandoned { done, not_done });
        }
        closed.into_iter().for_each(|binding| self.close_abandoned(binding));
    }

    fn close_abandoned(&mut self, binding: Binding) {
        let ticket = self.ticket();
        self.outputs.push_back(Output::Nat { ticket, change: NatChange::Close(binding) });
    }

    /// The data plane is told.
    fn begin(&mut self, key: MappingKey, doing: Doing, change: NatChange, asker: Option<Asker>) {
        let ticket = self.ticket();
        self.asked += usize::from(asker.is_some());
        self.table.change(&key, |mapping| mapping.busy = Some(ticket));
        self.pending.insert(ticket, Pending { key, doing, asker });
        self.outputs.push_back(Output::Nat { ticket, change });
    }

    /// Whether a request of this client may still wait for the data plane.
    pub(super) fn may_begin(&self, client: &Client) -> Result<(), Refused> {
        let busy = self.table.account(client.subscriber).busy;
        let asked = self.flows.of(client.subscriber);
        if busy + asked >= MAX_BUSY || self.asked + self.flows.len() >= MAX_PENDING {
            return Err(Reason::Busy.into());
        }
        Ok(())
    }

    /// A new mapping; its external endpoint has been taken.
    pub(super) fn open(
        &mut self,
        mapping: ServerMapping,
        asker: Option<Asker>,
        elsewhere: Option<Elsewhere>,
    ) {
        let (key, binding) = (mapping.key(), mapping.binding());
        let doing = if asker.is_some() { Doing::Open(elsewhere) } else { Doing::Restore };
        self.table.insert(mapping);
        self.begin(key, doing, NatChange::Open(binding), asker);
    }

    /// A granted request for a mapping that is there.
    pub(super) fn change(&mut self, now: Instant, key: MappingKey, renewal: Renewal, asker: Asker) {
        let Some(mapping) = self.table.get(&key) else { return };
        if mapping.filters == renewal.filters {
            self.renew(now, &key, renewal);
            return self.answer(now, Some(&asker), &key);
        }
        let old = mapping.binding();
        let new = Binding { filters: renewal.filters.clone(), ..old.clone() };
        self.begin(key, Doing::Change(renewal), NatChange::Replace { old, new }, Some(asker));
    }

    /// A mapping that goes, because its owner says so or because its time is over.
    pub(super) fn close(&mut self, now: Instant, key: MappingKey, asker: Option<Asker>) {
        let Some(mapping) = self.table.get(&key) else { return };
        let change = NatChange::Close(mapping.binding());
        if asker.is_none() {
            // Should the data plane refuse, it is tried again.
            self.table.change(&key, |mapping| mapping.ends = mapping.ends.min(now));
        }
        self.begin(key, Doing::Close, change, asker);
    }

    pub(super) fn end_mappings(&mut self, now: Instant) {
        for _ in 0..ENDS_AT_ONCE {
            let Some(key) = self.table.ended(now, now + AGAIN) else { return };
            if self.table.get(&key).is_some_and(|mapping| mapping.busy.is_none()) {
                self.close(now, key, None);
            }
        }
    }

    /// Out of the table; its external endpoint goes back.
    fn remove(&mut self, now: Instant, key: &MappingKey, freed: Freed) -> Option<ServerMapping> {
        let mapping = self.table.remove(key)?;
        self.updates.cancel(*key);
        if let SocketAddr::V4(_) = mapping.external
            && let Some((first, of)) = self.pool.of(endpoint(key))
        {
            if let Some(told) = self.used_up.get_mut(of.external.ip()) {
                told.ends();
            }
            let held = self.pool.give_back(now, first, freed);
            if let (true, Freed::Held(nonce, left)) = (held, freed) {
                let key = MappingKey::new(first.inside, first.protocol, first.port, None);
                let Use { external, ports, subscriber, .. } = of;
                let hold =
                    StoredHold { key, external, ports, nonce, requester: subscriber.as_requester(), left };
                self.outputs.push_back(Output::Store(Record::Hold(hold)));
            }
        }
        if self.table.len() < self.config.capacity - self.config.capacity / 10 {
            self.table_full.ends();
        }
        Some(mapping)
    }

    fn forget(&mut self, now: Instant, key: &MappingKey) -> Option<ServerMapping> {
        let nonce = self.table.get(key)?.nonce;
        self.remove(now, key, Freed::Held(nonce, self.config.hold))
    }

    fn renew(&mut self, now: Instant, key: &MappingKey, renewal: Renewal) {
        self.updates.cancel(*key);
        let Some(before) = self.table.get(key) else { return };
        let ends = now + renewal.granted;
        let ends = if renewal.extends_only { ends.max(before.ends) } else { ends };
        let nonce = renewal.nonce.or(before.nonce);
        // What a renewal that changes nothing but the end leaves as it is.
        let same = (&before.filters, &before.description, before.nonce)
            == (&renewal.filters, &renewal.description, nonce);
        // Nor much longer than it was promised: after a restart its port would be kept for a client that has long gone.
        let longest = ends + renewal.granted * 2;
        let is_stored =
            ends <= before.stored_until && (renewal.extends_only || before.stored_until <= longest);
        self.table.change(key, |mapping| {
            mapping.ends = ends;
            mapping.granted = renewal.granted;
            mapping.filters = renewal.filters;
            mapping.description = renewal.description;
            mapping.nonce = nonce;
            mapping.asked = Some(renewal.asked);
        });
        if !same || !is_stored {
            self.store(now, key, renewal.granted);
        }
    }

    /// Stores a mapping: it stands for as long as was promised, and for `more` on top of that, so that a renewal needs not be
    /// stored each time.
    fn store(&mut self, now: Instant, key: &MappingKey, more: Duration) {
        self.table.change(key, |mapping| mapping.stored_until = mapping.ends + more);
        self.store_again(now, key);
    }

    fn store_again(&mut self, now: Instant, key: &MappingKey) {
        let Some(mapping) = self.table.get(key) else { return };
        let stored = StoredMapping {
            key: *key,
            external: mapping.external,
            ports: mapping.ports,
            nonce: mapping.nonce,
            companion: mapping.companion,
            requester: mapping.requester,
            filters: mapping.filters.clone(),
            description: mapping.description.clone(),
            left: mapping.stored_until - now,
        };
        self.outputs.push_back(Output::Store(Record::Put(stored)));
    }

    // Answers

    /// The mapping is there: its client is told.
    pub(super) fn answer(&mut self, now: Instant, asker: Option<&Asker>, key: &MappingKey) {
        let (Some(asker), Some(mapping)) = (asker, self.table.get(key)) else { return };
        let mut lifetime = mapping.ends.secs_left(now);
        if let Asked::NatPmp(natpmp::Request::Map { lifetime: asked, .. }) = asker.asked {
            // N-7: no longer than was asked for, though what PCP has made may last longer.
            lifetime = lifetime.min(asked);
        }
        let (external, internal_port, ports) = (mapping.external, mapping.internal_port, mapping.ports);
        self.answer_with(now, asker, external, internal_port, ports, lifetime);
    }

    /// The answer about whatever is mapped to `external`.
    pub(super) fn answer_with(
        &mut self,
        now: Instant,
        asker: &Asker,
        external: SocketAddr,
        internal_port: u16,
        ports: u16,
        lifetime: u32,
    ) {
        let epoch = self.epoch(now);
        let external_addr = pcp::ip_to_wire(external.ip());
        let external_port = external.port();
        let (kind, bytes) = match &asker.asked {
            Asked::Map { data, .. } => {
                let options = asker.asked.options(internal_port, ports);
                let body = Body::Map(MapData { internal_port, external_port, external_addr, ..*data });
                let result = ResultCode::SUCCESS;
                (Kind::Map, Response { result, lifetime, epoch, body, options }.to_bytes())
            }
            Asked::Peer { data, options } => {
                let body = Body::Peer(PeerData { external_port, external_addr, ..*data });
                let (result, options) = (ResultCode::SUCCESS, options.clone());
                (Kind::Peer, Response { result, lifetime, epoch, body, options }.to_bytes())
            }
            Asked::NatPmp(natpmp::Request::Map { protocol, internal_port: port, .. }) => {
                let response = natpmp::Response::Map {
                    result: natpmp::ResultCode::SUCCESS,
                    epoch,
                    protocol: *protocol,
                    internal_port: *port,
                    external_port: external_port + port.saturating_sub(internal_port),
                    lifetime,
                };
                (Kind::NatPmpMap, response.to_bytes())
            }
            Asked::NatPmp(natpmp::Request::ExternalAddress) | Asked::Batch(_) => return,
        };
        self.counters.grant(kind);
        self.send(&asker.arrival, bytes);
    }

    /// The mapping is gone: its client is told (RFC 6887 §15.1, N-8).
    pub(super) fn answer_deleted(&mut self, now: Instant, asker: &Asker, internal_port: u16, ports: u16) {
        let epoch = self.epoch(now);
        let (kind, bytes) = match &asker.asked {
            Asked::Map { data, .. } => {
                let options = asker.asked.options(internal_port, ports);
                let body = Body::Map(MapData { internal_port, ..*data });
                let result = ResultCode::SUCCESS;
                (Kind::Map, Response { result, lifetime: 0, epoch, body, options }.to_bytes())
            }
            Asked::Peer { data, options } => {
                let (result, body, options) = (ResultCode::SUCCESS, Body::Peer(*data), options.clone());
                (Kind::Peer, Response { result, lifetime: 0, epoch, body, options }.to_bytes())
            }
            Asked::NatPmp(request) => {
                (Kind::NatPmpMap, request.refused(natpmp::ResultCode::SUCCESS, epoch).to_bytes())
            }
            Asked::Batch(number) => return self.one_of_batch(now, *number, None),
        };
        self.counters.grant(kind);
        self.send(&asker.arrival, bytes);
    }

    fn answer_refused(&mut self, now: Instant, asker: &Asker, refused: impl Into<Refused>) {
        let refused: Refused = refused.into();
        let reason = refused.reason;
        let epoch = self.epoch(now);
        let bytes = match &asker.asked {
            Asked::Map { .. } | Asked::Peer { .. } => match self.refused(now, &asker.payload, refused) {
                Ok(Served::Answer(bytes)) => bytes,
                Ok(Served::Waits) | Err(_) => return,
            },
            Asked::NatPmp(request) => {
                self.counters.refuse(reason);
                request.refused(reason.natpmp_result(), epoch).to_bytes()
            }
            Asked::Batch(number) => return self.one_of_batch(now, *number, Some(reason)),
        };
        self.send(&asker.arrival, bytes);
    }

    /// One of several deletes is carried out, or is not; with the last one the client is told.
    pub(super) fn one_of_batch(&mut self, now: Instant, number: u64, failed: Option<Reason>) {
        let Some(batch) = self.batches.get_mut(&number) else { return };
        batch.left -= 1;
        batch.failed = batch.failed.or(failed);
        if batch.left > 0 {
            return;
        }
        let Some(batch) = self.batches.remove(&number) else { return };
        let result = batch.failed.map_or(natpmp::ResultCode::SUCCESS, Reason::natpmp_result);
        match batch.failed {
            None => self.counters.grant(Kind::NatPmpMap),
            Some(reason) => self.counters.refuse(reason),
        }
        let bytes = batch.request.refused(result, self.epoch(now)).to_bytes();
        self.send(&batch.arrival, bytes);
    }
}

/// Why the data plane cannot do what this mapping asks for, as far as that can be told. Its filters, if there are any: RFC 6887
/// §7.4 has a result for those that could not be made. Else a protocol that is a rare one, or all ports.
fn unfit(key: &MappingKey, filters: usize) -> Reason {
    if filters > 0 {
        Reason::TooManyPeers
    } else if key.port == 0 || !matches!(key.protocol, Protocol::TCP | Protocol::UDP) {
        Reason::UnsupportedProtocol
    } else {
        Reason::NatFailed
    }
}

/// The internal endpoint of a mapping.
pub(super) fn endpoint(key: &MappingKey) -> Endpoint {
    Endpoint { inside: key.inside(), protocol: key.protocol, port: key.port }
}
