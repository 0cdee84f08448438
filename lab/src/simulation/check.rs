//! What has to hold after every step, as far as the gateway can know of it.

use std::collections::{BTreeMap, BTreeSet};

use engine::gateway::NatMode;
use engine::nat::NatRule;
use engine::notice::Notice;
use engine::status::MappingStatus;
use engine::table::Health;
use engine::time::{Duration, Instant};
use wire::pcp::Protocol;
use wire::soap::Answer;

use super::ledger::Client;
use super::shadow::{Asked, Claim, Wanted};
use super::storm::Shape;
use super::{Broken, HOSTS, Key, OTHER_EXTERNAL, Simulation, broken};
use crate::sim::{EXTERNAL, Happening, Reply, STRANGER};

/// A control point's patience is measured in whole milliseconds.
const SLACK: Duration = Duration::from_millis(1);
/// More datagrams than this in one second are a storm of the gateway's own making.
const MOST_A_SECOND: usize = 120;
/// How long a provider may know a client by a nonce of an installation before this one.
const FOREIGN: Duration = Duration::from_secs(3600 + 600);
/// How long after it heard that the provider has lost everything the gateway has asked for it again, all going well.
const RECOVERY: Duration = Duration::from_secs(60);

const INVALID_ARGS: u16 = 402;
const SPECIFIED_ARRAY_INDEX_INVALID: u16 = 713;
const NO_SUCH_ENTRY: u16 = 714;
const PORT_MAPPING_NOT_FOUND: u16 = 730;

type Table = BTreeMap<Key, MappingStatus>;

impl Simulation {
    /// What holds after every step.
    pub(super) fn check(&mut self) -> Result<(), Broken> {
        self.violations()?;
        while !self.world.is_alive() {
            self.ledger.follow(&self.world);
            self.restart()?;
        }
        self.ledger.follow(&self.world);
        self.look_at_happenings()?;
        if !self.world.is_disk_full() && !self.world.is_disk_behind() {
            self.stale = None;
        }
        let now = self.world.now();
        let patience = self.world.config().answer_within + SLACK;
        if let Some((id, since)) = self.world.unanswered().find(|(_, since)| now - *since > patience) {
            return broken(format!("{id:?} waits for its answer since {since:?}"));
        }
        let listed = self.mappings();
        let count = listed.len();
        let table: Table =
            listed.into_iter().map(|found| ((found.protocol, found.external.port()), found)).collect();
        if (table.len(), table.len()) != (count, self.world.gateway.status(now).mappings) {
            return broken("two mappings have one external port");
        }
        self.check_nonces()?;
        self.check_held()?;
        self.check_turns()?;
        self.check_claims(&table)?;
        self.check_router(&table)?;
        self.check_upstream(&table)?;
        self.check_strays(&table)?;
        self.check_update_id(&table)?;
        let sent = self.world.sent().iter().rev().take_while(|sent| now - sent.at < Duration::from_secs(1));
        if sent.count() > MOST_A_SECOND {
            return broken(format!("more than {MOST_A_SECOND} datagrams in one second"));
        }
        self.checked = now;
        self.violations()
    }

    /// What control points were told, and what the person who runs the router was told.
    pub(super) fn look_at_happenings(&mut self) -> Result<(), Broken> {
        for happening in self.happenings() {
            match happening {
                Happening::Noticed(notice) => match *notice {
                    Notice::NatFailed(_) => self.nat_failed = Some(self.world.now()),
                    Notice::VersionRefused(..) => self.version_refused = Some(self.world.now()),
                    _ => {}
                },
                Happening::Answered(id) => {
                    let reply = self.world.reply(id).expect("it is answered").clone();
                    if let Some((asked_at, asked)) = self.open.remove(&id) {
                        self.tally.count(if reply.answer.is_ok() { "successes" } else { "refusals" });
                        self.on_reply(asked_at, asked, &reply)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn on_reply(&mut self, asked_at: Instant, asked: Asked, reply: &Reply) -> Result<(), Broken> {
        let told = (asked_at, reply.at);
        match (asked, &reply.answer) {
            (Asked::Add { any, key, host, wanted, .. }, Ok(answer)) => {
                let asked_for = key;
                let key = if any { (key.0, number(answer, "NewReservedPort")?) } else { key };
                if key != asked_for && self.nat == NatMode::None {
                    // Its own mapping was to be led elsewhere (spec T-4), and could not keep its port.
                    let internal_port = wanted.internal_port;
                    self.shadow.doubt(reply.at, |other, claim| {
                        other == asked_for && claim.host == host && claim.may_lead_elsewhere(internal_port)
                    });
                }
                if let Some(before) = self.shadow.claims.get(&key).cloned()
                    && before.host != host
                    && !self.is_excused(key, &before)
                {
                    return broken(format!("{key:?} was given to {} and now to {host}", before.host));
                }
                self.check_promised_to(host, key, reply.at)?;
                self.shadow.told(key, (any, host, wanted), told);
                Ok(())
            }
            // It is no address, and nothing was looked at.
            (Asked::Add { .. }, Err(INVALID_ARGS)) => Ok(()),
            (Asked::Add { any, key, host, wanted, promised }, Err(code)) => {
                if let Some(since) = promised.filter(|&since| !self.is_disturbed_since(since)) {
                    return broken(format!("{key:?} is held for {host} since {since:?}: error {code}"));
                }
                self.shadow.refused((key, any), (host, wanted), told, self.nat == NatMode::Own);
                Ok(())
            }
            (Asked::Delete { key, host, peer }, answer) => {
                let its = move |other: Key, claim: &Claim| {
                    other == key && claim.host == host && claim.may_be_for(peer)
                };
                let means = move |claim: &Claim| claim.is_for(peer);
                self.on_deletion(asked_at, answer.as_ref().err() == Some(&NO_SUCH_ENTRY), (its, means))?;
                if answer.is_ok() {
                    self.shadow.deleted(asked_at, its);
                }
                Ok(())
            }
            (Asked::DeleteRange { protocol, first, last, host }, answer) => {
                let range = (protocol, first)..=(protocol, last);
                let its = |key: Key, claim: &Claim| range.contains(&key) && claim.host == host;
                let none = answer.as_ref().err() == Some(&PORT_MAPPING_NOT_FOUND);
                self.on_deletion(asked_at, none, (its, |_: &Claim| true))?;
                match answer {
                    // the provider has not said anything yet, and may refuse.
                    Ok(_) if reply.at == asked_at => self.check_marked(range, host),
                    Ok(_) => {
                        self.shadow.deleted(asked_at, its);
                        Ok(())
                    }
                    Err(_) => Ok(()),
                }
            }
            (Asked::Specific { key, host, peer }, answer) => {
                if answer.as_ref().err() == Some(&NO_SUCH_ENTRY) {
                    self.on_free(key, host, reply.at);
                }
                let claim = self.shadow.claims.get(&key).filter(|claim| claim.may_be_for(peer));
                match (answer, claim) {
                    (Ok(answer), Some(claim)) => self.check_entry(key, claim, answer),
                    (Ok(_), None) => broken(format!("GetSpecific finds {key:?}, which nobody was told of")),
                    (Err(code), Some(claim))
                        if claim.host == host
                            && claim.is_for(peer)
                            && claim.told_at < asked_at
                            && !self.is_excused(key, claim) =>
                    {
                        broken(format!("GetSpecific: {code} for {key:?}, which stands"))
                    }
                    (Err(_), _) => Ok(()),
                }
            }
            (Asked::Generic(index), Ok(answer)) => {
                let protocol = match answer.value("NewProtocol") {
                    Some("UDP") => Protocol::UDP,
                    _ => Protocol::TCP,
                };
                let key = (protocol, number(answer, "NewExternalPort")?);
                match self.shadow.claims.get(&key) {
                    Some(claim) => self.check_entry(key, claim, answer),
                    None => broken(format!("entry {index} is {key:?}, which nobody was told of")),
                }
            }
            (Asked::Generic(index), Err(code)) => {
                let count = self.mappings().len();
                if *code != SPECIFIED_ARRAY_INDEX_INVALID || index < count {
                    return broken(format!("entry {index} of {count}: error {code}"));
                }
                Ok(())
            }
            (Asked::List { protocol, first, last, most }, answer) => {
                self.check_listing((protocol, first)..=(protocol, last), most, answer)
            }
            (Asked::ExternalAddress, Ok(answer)) => match answer.value("NewExternalIPAddress") {
                Some("") => Ok(()),
                Some(text) if text == EXTERNAL.to_string() || text == OTHER_EXTERNAL.to_string() => Ok(()),
                other => broken(format!("GetExternalIPAddress: {other:?}")),
            },
            (Asked::Status, Ok(answer)) => match answer.value("NewConnectionStatus") {
                Some("Connected" | "Disconnected") => Ok(()),
                other => broken(format!("GetStatusInfo: {other:?}")),
            },
            (Asked::ExternalAddress | Asked::Status, Err(code)) => broken(format!("a state is error {code}")),
            (Asked::Other, _) => Ok(()),
        }
    }

    /// A deletion was answered, that `none` of those that are meant is there perhaps.
    fn on_deletion(
        &mut self,
        asked_at: Instant,
        none: bool,
        (its, means): (impl Fn(Key, &Claim) -> bool, impl Fn(&Claim) -> bool),
    ) -> Result<(), Broken> {
        if none {
            // A server that refuses the delete with CANNOT_PROVIDE_EXTERNAL sounds the same (RFC 6970 §5.8).
            let own_nat = self.nat == NatMode::Own;
            let stands = self.shadow.claims.iter().find(|&(&key, claim)| {
                let refused = |client| self.ledger.is_refused_since(client, asked_at);
                claim.told_at < asked_at
                    && its(key, claim)
                    && means(claim)
                    && !self.is_excused(key, claim)
                    && !claim.clients(key.0, own_nat).into_iter().any(refused)
            });
            if let Some((key, _)) = stands {
                return broken(format!("a deletion finds nothing, but {key:?} stands"));
            }
        }
        self.shadow.doubt(asked_at, its);
        Ok(())
    }

    /// What is deleted before the provider has confirmed it is marked, and lets nobody in any more.
    fn check_marked(
        &mut self,
        range: std::ops::RangeInclusive<Key>,
        host: std::net::Ipv4Addr,
    ) -> Result<(), Broken> {
        self.tally.count("ranges deleted at once");
        let stands = |found: &MappingStatus| {
            *found.internal.ip() == host
                && range.contains(&(found.protocol, found.external.port()))
                && found.health != Health::Deleting
        };
        match self.mappings().into_iter().find(stands) {
            Some(found) => broken(format!("its deletion is confirmed, and this is not marked: {found:?}")),
            None => Ok(()),
        }
    }

    /// Whether there is a reason for this mapping not to be there any more, that came up since everything was last
    /// looked at.
    fn is_excused(&self, key: Key, claim: &Claim) -> bool {
        self.is_lost(key, claim) || !claim.sure || self.is_being_changed(key, claim)
    }

    /// Whether its lease is over, or the provider or the kernel does not let it stand.
    fn is_lost(&self, key: Key, claim: &Claim) -> bool {
        let (now, since) = (self.world.now(), self.checked);
        let own_nat = self.nat == NatMode::Own;
        let lately = |at: Option<Instant>| at.is_some_and(|at| at >= since);
        let upstream = |client: Client| {
            let over = self.ledger.belief(client).is_none_or(|belief| belief.ends() <= now);
            // What was restored has no grant, so that any refusal is the end of it; the same on another line.
            let refused = self.ledger.is_refused_since(client, since) || lately(self.version_refused);
            self.ledger.is_taken_since(client, since)
                || over
                || self.was_moved_before_a_kill(key, claim, client)
                || (claim.restored.is_some() || self.is_unknown_here(client)) && refused
        };
        claim.may_be_over(now)
            || own_nat && lately(self.nat_failed)
            || claim.clients(key.0, own_nat).into_iter().any(upstream)
    }

    /// Whether the success that moved it was the last thing that a killed gateway heard.
    fn was_moved_before_a_kill(&self, key: Key, claim: &Claim, client: Client) -> bool {
        claim.restored.is_some()
            && self.ledger.belief(client).is_some_and(|belief| belief.external.port() != key.1)
    }

    /// Whether the line has changed since the provider last gave this.
    fn is_unknown_here(&self, client: Client) -> bool {
        let given_on_the_other =
            |rerouted| self.ledger.belief(client).is_none_or(|belief| belief.heard <= rerouted);
        self.rerouted.is_some_and(given_on_the_other)
    }

    /// Whether it is kept because the spare line has it not, and shown so; or because nobody was asked since the usual one is back.
    fn may_wait_for_its_line(&self, found: &MappingStatus, client: Client) -> bool {
        let (has_spare, on_spare) = self.world.has_spare();
        has_spare && found.health == Health::Degraded && (on_spare || self.is_unknown_here(client))
    }

    /// Whether its owner has asked for something that is not answered yet.
    fn is_being_changed(&self, key: Key, claim: &Claim) -> bool {
        self.open.values().any(|(_, asked)| match asked {
            Asked::Delete { key: other, host, .. } => *other == key && *host == claim.host,
            Asked::DeleteRange { protocol, first, last, host } => {
                ((*protocol, *first)..=(*protocol, *last)).contains(&key) && *host == claim.host
            }
            Asked::Add { key: other, host, wanted: Wanted { internal_port, .. }, .. } => {
                *other == key && *host == claim.host && claim.may_lead_elsewhere(*internal_port)
            }
            _ => false,
        })
    }

    /// What a control point was told is what the table says, and nothing else is in it.
    fn check_claims(&mut self, table: &Table) -> Result<(), Broken> {
        let now = self.world.now();
        let quiet = self.world.nat_is_quiet() && self.nat == NatMode::Own;
        for key in self.shadow.claims.keys().copied().collect::<Vec<_>>() {
            if !table.contains_key(&key) && self.rekey(key, table) {
                self.tally.count("mappings moved by the provider");
            }
        }
        for key in self.shadow.claims.keys().copied().collect::<Vec<_>>() {
            let claim = &self.shadow.claims[&key];
            match table.get(&key) {
                Some(found) if claim.fits(now, found) => {
                    let asked =
                        |asked: &Asked| matches!(asked, Asked::Add { key: other, .. } if *other == key);
                    let settled = quiet && !self.open.values().any(|(_, what)| asked(what));
                    self.shadow.seen(now, found, settled);
                }
                Some(found) => return broken(format!("{found:?} is not what its owner was told: {claim:?}")),
                None if !self.is_excused(key, &self.shadow.claims[&key]) => {
                    return broken(format!(
                        "{key:?} is lost without a reason: {claim:?}",
                        claim = self.shadow.claims[&key]
                    ));
                }
                None => {
                    let claim = &self.shadow.claims[&key];
                    let changing = self.nat == NatMode::None && self.is_being_changed(key, claim);
                    // Without a NAT of our own, what was to be led elsewhere may be restored (spec T-4).
                    let doubtful = self.nat == NatMode::None && !claim.sure || changing;
                    if claim.is_over(now) {
                        self.tally.count("leases over");
                        self.shadow.claims.remove(&key);
                    } else if changing || claim.may_be_over(now) {
                        self.shadow.claims.get_mut(&key).expect("it was there above").sure = false;
                    } else if self.is_lost(key, claim) && !doubtful {
                        self.tally.count("mappings lost");
                        self.shadow.claims.remove(&key);
                    }
                }
            }
        }
        match table.iter().find(|(key, _)| !self.shadow.claims.contains_key(key)) {
            Some((_, found)) => broken(format!("nobody was told of this: {found:?}")),
            None => Ok(()),
        }
    }

    /// The provider gave a mapping another port, and its owner does not insist on the old one.
    fn rekey(&mut self, key: Key, table: &Table) -> bool {
        let claim = &self.shadow.claims[&key];
        let (now, since) = (self.world.now(), self.checked);
        // Somebody was not told what became of his deletion: it is done, for there is one mapping with an external port.
        let is_over = |other: &Claim| !other.sure;
        let moved = table.iter().find(|(other, found)| {
            let Some((client, _)) = self.upstream_of(found) else { return false };
            !claim.is_strict()
                && other.0 == key.0
                && claim.fits(now, found)
                && self.shadow.claims.get(other).is_none_or(is_over)
                && claim.clients(key.0, self.nat == NatMode::Own).contains(&client)
                && (self.ledger.is_taken_since(client, since)
                    || self.was_moved_before_a_kill(key, claim, client))
        });
        let Some((&new, _)) = moved else { return false };
        self.shadow.moved(now, key, new);
        self.shadow.seen(now, &table[&new], false);
        true
    }

    /// The router's own NAT has what the table says, once it has said what became of every change.
    fn check_router(&self, table: &Table) -> Result<(), Broken> {
        if !self.world.nat_is_quiet() {
            return Ok(());
        }
        let standing = table.values().filter(|found| found.health != Health::Deleting);
        let mut wanted: Vec<NatRule> = standing
            .filter_map(|found| {
                let MappingStatus { protocol, internal, remote_peer, .. } = *found;
                Some(NatRule { protocol, port: found.nat_port?, internal, remote_peer })
            })
            .collect();
        wanted.sort_by_key(|rule| (rule.protocol, rule.port));
        let nat = &self.world.nat;
        let rules: Vec<NatRule> = nat.rules().filter(|rule| !nat.keeps(rule)).copied().collect();
        if rules != wanted {
            return broken(format!("the router's NAT has {rules:?} and should have {wanted:?}"));
        }
        for found in table.values().filter(|found| found.health != Health::Deleting) {
            let external = Some(found.external).filter(|external| !external.ip().is_unspecified());
            // What the kernel refused is asked for again after a while.
            if found.nat_port.is_some_and(|port| !nat.leads_by(found.protocol, port, external)) {
                return broken(format!("LAN hosts do not come to {found:?} by its external address"));
            }
        }
        Ok(())
    }

    /// What the table says stands at the provider, as far as the gateway can know.
    fn check_upstream(&self, table: &Table) -> Result<(), Broken> {
        let now = self.world.now();
        for (key, found) in table.iter().filter(|(_, found)| found.health != Health::Deleting) {
            let Some((client, internal)) = self.upstream_of(found) else {
                return broken(format!("{found:?} leads nowhere"));
            };
            let claim = &self.shadow.claims[key];
            if claim.restored.is_some() {
                if found.health != Health::Degraded {
                    return broken(format!("{found:?} was restored, and nobody has confirmed it"));
                }
                continue;
            }
            if self.may_wait_for_its_line(found, client) {
                continue;
            }
            let Some(belief) = self.ledger.belief(client).filter(|belief| belief.ends() > now) else {
                return broken(format!("{found:?} outlives its lifetime"));
            };
            if belief.external != found.external {
                return broken(format!("{found:?} is {} at the provider", belief.external));
            }
            let at_provider = self.world.provider.mappings().any(|upstream| {
                (upstream.protocol, upstream.internal, upstream.external.port())
                    == (found.protocol, internal, found.external.port())
            });
            // The provider begins anew, or knows this router by another address.
            let own_nat = self.nat == NatMode::Own;
            let readdressed = if own_nat { self.world.readdressed() } else { Instant::default() };
            let forgotten = self.world.announced().max(readdressed);
            // What it gave ends there a moment sooner than here: by as long as the answer took.
            let over = belief.issued + belief.lifetime <= now;
            let knows = belief.heard + Duration::from_secs(3) < forgotten && forgotten + RECOVERY < now;
            let calm = self.world.troubled() <= forgotten + Duration::from_secs(1)
                && self.world.wan_address().is_some();
            let active = found.health == Health::Active && claim.sure;
            if knows && calm && active && !at_provider && !over {
                return broken(format!("{found:?} was lost upstream, and nobody asks for it again"));
            }
            // A deletion that the provider carried out may be refused all the same, when it is repeated.
            let sure = claim.sure && !self.is_being_changed(*key, claim);
            if sure
                && !at_provider
                && self.ledger.is_dropped(found.protocol, internal, (&belief, claim.told_at))
            {
                return broken(format!("{found:?} is in the table, and the provider was made to drop it"));
            }
        }
        Ok(())
    }

    /// What is ours at the provider is somebody's.
    fn check_strays(&mut self, table: &Table) -> Result<(), Broken> {
        let own_nat = self.nat == NatMode::Own;
        let mapped = table.values().filter_map(|found| self.upstream_of(found)).map(|(client, _)| client);
        // One that is in doubt may be about to be restored.
        let claimed = self.shadow.claims.iter().flat_map(|(key, claim)| claim.clients(key.0, own_nat));
        let owned: BTreeSet<Client> = mapped.chain(claimed).collect();
        // For ten minutes somebody may claim what the server has listed (decision 17).
        let adopted = self.lists && self.world.gateway.status(self.world.now()).held > 0;
        let waiting = adopted
            || self
                .open
                .values()
                .any(|(_, asked)| matches!(asked, Asked::Add { .. } | Asked::Specific { .. }));
        let strays: Vec<_> = self
            .world
            .provider
            .mappings()
            .filter(|found| found.subscriber != STRANGER)
            .filter(|found| {
                let host = *found.internal.ip();
                let client = |host| (host, found.protocol, found.internal.port());
                if host == self.wan {
                    !owned.contains(&client(None)) && !self.ledger.is_probe(client(None))
                } else {
                    HOSTS.contains(&host) && !owned.contains(&client(Some(host)))
                }
            })
            .collect();
        self.ledger.follow_strays(&self.world, &strays, waiting).map_err(Broken)
    }

    /// What the provider knows a client by is the same for ever, also after a crash; until everything stored is lost.
    fn check_nonces(&mut self) -> Result<(), Broken> {
        for (client, at) in self.ledger.wrong_nonces(&self.world) {
            if self.wiped.is_none_or(|wiped| at > wiped + FOREIGN) {
                return broken(format!("the provider knows {client:?} by another nonce"));
            }
        }
        match self.ledger.other_nonces().first() {
            Some(client) if self.wiped.is_none() => {
                broken(format!("{client:?} has another nonce than it had before"))
            }
            _ => Ok(()),
        }
    }

    /// What goes in turns leaves room for what others ask.
    fn check_turns(&mut self) -> Result<(), Broken> {
        // A lease that ends meanwhile is given back at once; nothing else of it was asked for in turn.
        let unanswered = self.ledger.unanswered() - self.ledger.undeleted();
        match self.most_unanswered {
            Some(most) if unanswered > most => {
                broken(format!("{unanswered} requests are unanswered, that is more than {most}"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the remote host of this mapping may be known by a name.
    fn may_have_name(&self, key: Key) -> bool {
        self.shadow.claims.get(&key).is_some_and(Claim::may_have_name)
    }

    /// SystemUpdateID counts every change and never goes back.
    fn check_update_id(&mut self, table: &Table) -> Result<(), Broken> {
        let id = self.world.gateway.status(self.world.now()).system_update_id;
        let shapes: BTreeMap<Key, Shape> =
            table.iter().map(|(&key, found)| (key, Shape::of(found, self.may_have_name(key)))).collect();
        if let Some((before, last)) = &self.before {
            if id < *last {
                return broken(format!("SystemUpdateID goes from {last} to {id}"));
            }
            let same = before.len() == shapes.len()
                && before.iter().zip(&shapes).all(|(old, new)| old.0 == new.0 && !old.1.differs(new.1));
            if !same && id == *last {
                return broken(format!("SystemUpdateID stays at {id}: {before:?} became {shapes:?}"));
            }
        }
        self.before = Some((shapes, id));
        Ok(())
    }

    fn check_entry(&self, key: Key, claim: &Claim, answer: &Answer) -> Result<(), Broken> {
        let client = answer.value("NewInternalClient") == Some(&claim.host.to_string());
        let port = claim.has_internal_port(number(answer, "NewInternalPort")?);
        let enabled = answer.value("NewEnabled") == Some("1");
        let peer = answer.value("NewRemoteHost").is_none_or(|text| claim.may_show(text));
        if client && port && enabled && peer {
            return Ok(());
        }
        broken(format!("{key:?} is shown as {:?}, and its owner was told {claim:?}", answer.values))
    }

    fn check_listing(
        &self,
        range: std::ops::RangeInclusive<Key>,
        most: usize,
        answer: &Result<Answer, u16>,
    ) -> Result<(), Broken> {
        let standing: BTreeSet<u16> = self
            .shadow
            .claims
            .range(range.clone())
            .filter(|&(&key, claim)| !self.is_excused(key, claim))
            .map(|(key, _)| key.1)
            .collect();
        let listed: BTreeSet<u16> = match answer {
            Err(PORT_MAPPING_NOT_FOUND) => BTreeSet::new(),
            Err(code) => return broken(format!("GetListOfPortMappings: error {code}")),
            Ok(answer) => {
                let text = answer.value("NewPortListing").unwrap_or_default();
                let Ok(entries) = wire::listing::decode(text) else {
                    return broken(format!("a listing that cannot be read: {text}"));
                };
                for entry in &entries {
                    let key = (range.start().0, entry.external_port);
                    let claim = self.shadow.claims.get(&key).filter(|claim| {
                        claim.host.to_string() == entry.internal_client
                            && claim.has_internal_port(entry.internal_port)
                    });
                    if claim.is_none() || !range.contains(&key) {
                        return broken(format!("a listing of {range:?} has {entry:?}"));
                    }
                }
                entries.iter().map(|entry| entry.external_port).collect()
            }
        };
        if listed.len() > most || (listed.len() < most && !standing.is_subset(&listed)) {
            return broken(format!("a listing of {range:?} has {listed:?}, there are {standing:?}"));
        }
        Ok(())
    }
}

fn number(answer: &Answer, argument: &str) -> Result<u16, Broken> {
    let text = answer.value(argument).unwrap_or_default();
    text.parse().or_else(|_| broken(format!("{argument} is {text:?}")))
}
