//! One thing at a time while it is calm, so that exactly one outcome is right: what a storm allows ten excuses for is
//! checked to the letter here.

use std::net::SocketAddrV4;

use engine::gateway::{Config, GetSpecific, NatMode, RequestId};
use engine::provider::PreferFailure;
use engine::table::Health;
use engine::time::Duration;
use wire::pcp::Body;

use super::promises::TCP;
use super::shadow::Peer;
use super::storm::Add;
use super::{Broken, HOSTS, LONGEST, NAMES, PEERS, Simulation, broken};
use crate::sim::{STRANGER, Server};

/// Requests that went in turn and may be unanswered at once.
const IN_FLIGHT: usize = 4;
/// A gateway has come to its end by then, whatever is unconfirmed.
const END: Duration = Duration::from_secs(76);
/// How long mappings that nobody knows are kept (decision 17), and what is asked of them takes.
const ORPHANED: Duration = Duration::from_secs(600 + 30);
const CONFLICT: u16 = 718;
const NO_SUCH_ENTRY: u16 = 714;
const ACTION_FAILED: u16 = 501;

impl Simulation {
    /// One of them.
    pub(super) fn drill(&mut self) -> Result<(), Broken> {
        // Nobody else uses these ports, and each drill its own; none of them is one that policy never opens.
        self.drills += 1;
        let base = 5020 + 3000 * self.drills + 100 * self.dice.roll(30);
        match self.dice.roll(7) {
            6 => self.give_back(base),
            0 => self.scan(base),
            1 => self.delete_a_range(base),
            2 => self.follow_a_name(base),
            3 => self.recover_in_turn(base),
            4 => self.lose_the_state_directory(base),
            _ => self.stop_and_start_in_calm(base),
        }
    }

    /// Decision 23: a port of the router's own NAT that nobody uses is free, so that who wants it has it.
    pub(super) fn look_for_lost_ports(&mut self) -> Result<(), Broken> {
        let port = 5000 + self.dice.roll(8);
        let used = self.mappings().iter().any(|found| found.nat_port == Some(port));
        if self.nat == NatMode::None || used {
            return Ok(());
        }
        let external = 25_000 + port;
        self.expect_success(|simulation| {
            simulation.add(HOSTS[2], 2, Add { lease: 3600, internal: port, ..Add::new(external) })
        })?;
        let of = |found: &engine::status::MappingStatus| (found.protocol, found.external.port());
        let nat_port = self
            .mappings()
            .iter()
            .find(|found| of(found) == (TCP, external))
            .and_then(|found| found.nat_port);
        if nat_port != Some(port) {
            return broken(format!(
                "nobody uses {port} of the router's NAT, and it is not free: {nat_port:?}"
            ));
        }
        self.expect_success(|simulation| simulation.delete(HOSTS[2], 2, (TCP, external), None))
    }

    fn seconds(&mut self, seconds: u64) -> Result<(), Broken> {
        self.pass(Duration::from_secs(seconds))
    }

    /// T-2, T-13: who asks about many ports at once hears that they are free, and the last eight are held; one is added
    /// without another exchange, none is given to somebody else, and the rest go back.
    fn scan(&mut self, base: u16) -> Result<(), Broken> {
        let probes = self.world.config().get_specific == GetSpecific::Probe;
        let before = self.world.gateway.status(self.world.now()).held;
        let ids: Vec<RequestId> =
            (base..base + 10).map(|port| self.ask_about(HOSTS[1], 1, (TCP, port), None)).collect();
        self.seconds(1)?;
        for id in ids {
            self.expect_answer(id, Err(NO_SUCH_ENTRY))?;
        }
        let held = self.world.gateway.status(self.world.now()).held;
        if before != 0 || held != if probes { 8 } else { 0 } {
            return broken(format!(
                "{before} mappings were held, and {held} are after ten probes of one host"
            ));
        }
        if probes {
            let (sent, last) = (self.world.sent().len(), base + 9);
            let id = self.add(HOSTS[1], 1, Add { lease: 3600, ..Add::new(last) });
            self.seconds(1)?;
            self.expect_answer(id, Ok(()))?;
            let asked = self.world.sent()[sent..]
                .iter()
                .any(|sent| matches!(&sent.request.body, Body::Map(map) if map.external_port == last));
            if asked {
                return broken(format!("{last} was held, and asked for all the same"));
            }
            let id = self.add(HOSTS[2], 1, Add { lease: 3600, ..Add::new(base + 8) });
            self.seconds(1)?;
            self.expect_answer(id, Err(CONFLICT))?;
            self.tally.count("scans in the calm");
        }
        self.seconds(70)?;
        let held = self.world.gateway.status(self.world.now()).held;
        let ours = self.upstream(base..base + 9).len();
        if (held, ours) != (0, 0) {
            return broken(format!("{held} mappings are held still, the provider has {ours} of them"));
        }
        Ok(())
    }

    /// T-6: a port that nobody asked for goes back at once.
    fn give_back(&mut self, port: u16) -> Result<(), Broken> {
        let config = self.world.config().clone();
        let strategy = engine::gateway::AddPortMapping::PreferFailure;
        self.world.reconfigure(Config { add_port_mapping: strategy, ..config.clone() });
        self.world.provider_config().prefer_failure = PreferFailure::PassedOver;
        if self.world.occupy(TCP, port, 300) {
            let before = self.world.provider.mappings().count();
            let id = self.add(HOSTS[0], 1, Add { lease: 3600, ..Add::new(port) });
            self.seconds(1)?;
            self.expect_answer(id, Err(CONFLICT))?;
            let after = self.world.provider.mappings().count();
            // A server that was found not to know PREFER_FAILURE is served by "hold".
            if after > before + self.world.gateway.status(self.world.now()).held {
                return broken(format!("another port than {port} was given, and is kept"));
            }
            self.tally.count("strays given back");
            self.world.vacate(TCP, port);
        }
        self.world.provider_config().prefer_failure = PreferFailure::Honoured;
        self.world.reconfigure(config);
        Ok(())
    }

    /// a range is deleted as one thing, when the provider has confirmed all of it or at once if so configured;
    /// what it has not confirmed by then follows when it does.
    fn delete_a_range(&mut self, base: u16) -> Result<(), Broken> {
        let ports = base..base + 3;
        for port in ports.clone() {
            self.expect_success(|simulation| {
                simulation.add(HOSTS[0], 2, Add { lease: 3600, ..Add::new(port) })
            })?;
        }
        let optimistic = self.world.config().optimistic_delete;
        // The first is lost; the server confirms two, and then says nothing more.
        self.world.link.lose_next = 1;
        let id = self.delete_range(HOSTS[0], base, base + 20);
        self.pass(Duration::from_millis(100))?;
        self.world.server = Server::Silent;
        let states = |simulation: &Self| -> Vec<Health> {
            let listed = simulation.mappings().into_iter();
            listed
                .filter(|found| ports.contains(&found.external.port()) && found.protocol == TCP)
                .map(|found| found.health)
                .collect()
        };
        let waits = vec![Health::Deleting; if optimistic { 1 } else { 3 }];
        if states(self) != waits {
            return broken(format!("two of three are confirmed, and they are: {:?}", states(self)));
        }
        self.seconds(4)?;
        self.expect_answer(id, if optimistic { Ok(()) } else { Err(ACTION_FAILED) })?;
        if states(self).len() != 1 {
            return broken(format!("nobody waits any more, and the range is {:?}", states(self)));
        }
        self.world.server = Server::Serves;
        self.tally.count(if optimistic { "ranges deleted at once" } else { "ranges deleted in part" });
        self.seconds(60)?;
        let (left, ours) = (states(self), self.upstream(ports).len());
        if !left.is_empty() || ours > 0 {
            return broken(format!("a range is deleted, and there are {left:?}, the provider has {ours}"));
        }
        Ok(())
    }

    /// A remote host that is known by its name is let in where it is now, when the mapping has been renewed.
    fn follow_a_name(&mut self, port: u16) -> Result<(), Broken> {
        let peer = Some(Peer::Name(NAMES[0]));
        let add = Add { lease: 7200, peer, number: 1, ..Add::new(port) };
        self.expect_success(|simulation| simulation.add(HOSTS[0], 2, add))?;
        for addr in [PEERS[1], PEERS[0]] {
            let other = if addr == PEERS[0] { PEERS[1] } else { PEERS[0] };
            self.world.names.insert(NAMES[0].to_owned(), vec![addr]);
            self.seconds(u64::from(LONGEST))?;
            let (in_, out) = (self.world.reach(TCP, port, addr), self.world.reach(TCP, port, other));
            let wanted = Some(SocketAddrV4::new(HOSTS[0], port));
            if (in_, out) != (wanted, None) {
                return broken(format!("{} is at {addr}: {in_:?}, not at {other}: {out:?}", NAMES[0]));
            }
            self.tally.count("names followed");
        }
        let id = self.add(HOSTS[0], 2, Add { peer: Some(Peer::Name(NAMES[2])), ..Add::new(port + 1) });
        self.seconds(1)?;
        self.expect_answer(id, Err(402))?;
        self.expect_success(|simulation| simulation.delete(HOSTS[0], 2, (TCP, port), peer))
    }

    /// So many mappings that not all are asked for at once.
    fn fill(&mut self, base: u16) -> Result<(), Broken> {
        let hosts = HOSTS.into_iter().cycle();
        let ids: Vec<RequestId> = (base..base + 9)
            .zip(hosts)
            .map(|(port, host)| self.add(host, 2, Add { lease: 7200, number: 1, ..Add::new(port) }))
            .collect();
        self.seconds(1)?;
        ids.into_iter().try_for_each(|id| self.expect_answer(id, Ok(())))
    }

    /// Decision 16: what the provider has lost is asked for again, at most four at once.
    fn recover_in_turn(&mut self, base: u16) -> Result<(), Broken> {
        self.fill(base)?;
        self.seconds(5)?;
        self.world.link.delay = Duration::from_millis(300);
        self.world.lose_state(true);
        // From here on nothing is renewed on its own account.
        self.pass(Duration::from_millis(320))?;
        self.ledger.forget_unanswered();
        self.most_unanswered = Some(IN_FLIGHT);
        self.seconds(40)?;
        self.most_unanswered = None;
        self.world.link.delay = Duration::from_millis(10);
        self.tally.count("recoveries in turn");
        match self.upstream(base..base + 9).len() {
            9 => Ok(()),
            some => broken(format!("the provider has {some} of 9 mappings again")),
        }
    }

    /// Decision 17: mappings of an installation that is no more are given back after ten minutes, unless somebody asks
    /// for them.
    fn lose_the_state_directory(&mut self, base: u16) -> Result<(), Broken> {
        // What was asked for from another address is not listed, and ends by itself.
        let elsewhere = {
            let mut ours = self.world.provider.mappings().filter(|found| found.subscriber != STRANGER);
            ours.any(|found| found.subscriber != self.wan)
        };
        if elsewhere {
            return Ok(());
        }
        self.world.provider_config().longest = 3600;
        self.world.provider_config().query = true;
        self.fill(base)?;
        self.world.provider_config().longest = LONGEST;
        let config = Config { list_mappings: true, ..self.world.config().clone() };
        self.world.reconfigure(config);
        self.world.kill();
        self.look_at_happenings()?;
        self.come_back(true)?;
        self.seconds(31)?; // the list is asked for within service_wait
        let orphans = self.upstream(base..base + 9).len();
        let held = self.world.gateway.status(self.world.now()).held;
        if held < orphans || orphans != 9 {
            return broken(format!("{orphans} of 9 mappings are left to nobody, and {held} held"));
        }
        // Whoever had it asks for it again, and has it, though the provider knows it by another nonce.
        self.expect_success(|simulation| {
            simulation.add(HOSTS[0], 2, Add { lease: 7200, number: 1, ..Add::new(base) })
        })?;
        self.pass(ORPHANED)?;
        self.tally.count("orphans given back");
        let left: Vec<u16> = self.upstream(base..base + 9);
        let held = self.world.gateway.status(self.world.now()).held;
        if left != [base] || held != 0 {
            return broken(format!("{left:?} are left of 9 orphans, {held} are held"));
        }
        Ok(())
    }

    fn stop_and_start_in_calm(&mut self, base: u16) -> Result<(), Broken> {
        self.fill(base)?;
        let keep = self.world.config().keep_on_stop;
        let before = self.mappings();
        self.end()?;
        let upstream = self.upstream(base..base + 9).len();
        if upstream != if keep { 9 } else { 0 } {
            return broken(format!("after a stop (keep_on_stop {keep}) the provider has {upstream} of 9"));
        }
        self.gone(keep)?;
        self.seconds(60)?;
        if self.lists {
            self.pass(ORPHANED)?; // what another address of the router has left behind may be listed
        }
        let after = self.mappings();
        let key = |found: &engine::status::MappingStatus| {
            (found.protocol, found.external, found.internal, found.description.clone())
        };
        let stands: Vec<_> = after.iter().map(key).collect();
        let lost = before.iter().find(|found| {
            !stands.contains(&key(found)) && found.lease_left.is_none_or(|left| left > END + END + ORPHANED)
        });
        match (keep, lost) {
            (true, Some(found)) => broken(format!("{found:?} was to be kept over a stop")),
            (false, _) if !after.is_empty() => broken(format!("{after:?} after a stop")),
            _ => Ok(()),
        }
    }

    /// A stop, and a start some time later, in the middle of everything.
    pub(super) fn stop_and_start(&mut self) -> Result<(), Broken> {
        self.world.note("* stop and start");
        let keep = self.world.config().keep_on_stop;
        self.end()?;
        self.gone(keep)?;
        self.check()
    }

    /// The gateway is stopped; it takes what is to be deleted in turns.
    pub(super) fn end(&mut self) -> Result<(), Broken> {
        self.world.spare();
        self.disturb();
        let calm = self.calm;
        if calm {
            self.world.link.delay = Duration::from_millis(300);
            self.ledger.follow(&self.world);
            self.ledger.forget_unanswered();
        }
        self.world.stop();
        let until = self.world.now() + END;
        while let Some(next) = self.world.next_due().filter(|&at| at <= until && !self.world.is_stopped()) {
            self.world.run_until(next);
            self.ledger.follow(&self.world);
            let unanswered = self.ledger.unanswered();
            if calm && unanswered > IN_FLIGHT {
                return broken(format!("{unanswered} deletes are unanswered at once"));
            }
        }
        if calm {
            self.world.link.delay = Duration::from_millis(10);
        }
        match self.world.is_stopped() {
            true => self.violations(),
            false => broken("the gateway does not stop"),
        }
    }

    /// The gateway has stopped, and is started again.
    fn gone(&mut self, keep: bool) -> Result<(), Broken> {
        self.look_at_happenings()?;
        if let Some((id, (_, asked))) = self.open.iter().next() {
            return broken(format!("this is not answered at a stop: {id:?} {asked:?}"));
        }
        let calm = self.calm;
        self.world.exit();
        self.tally.count(if keep { "stops that keep" } else { "stops" });
        if !keep && calm {
            self.shadow.forget();
        } else if !keep {
            // What the provider has not confirmed stands again at the next start.
            self.shadow.doubt(self.world.now(), |_, _| true);
        }
        self.come_back(false)?;
        if !keep && calm && !self.mappings().is_empty() {
            return broken(format!("{:?} after a stop", self.mappings()));
        }
        Ok(())
    }

    /// Which of these TCP ports the router has at the provider.
    fn upstream(&self, mut ports: std::ops::Range<u16>) -> Vec<u16> {
        let ours = |port: &u16| {
            let mut all = self.world.provider.mappings();
            all.any(|found| {
                found.subscriber != STRANGER && (found.protocol, found.external.port()) == (TCP, *port)
            })
        };
        ports.by_ref().filter(ours).collect()
    }
}
