//! What survives a crash (decisions 16 and 17; RFC 6970 §5.3, R-9, R-10).

use super::*;
use crate::claims::Claims;
use crate::table::Health;

impl Lab {
    /// Kill -9 and a start: the table of rules is made anew, and nothing is left but what was stored.
    pub(super) fn crash(&mut self, config: Config, seed: u64, down_for: u64) {
        self.now += down_for;
        self.gateway = Gateway::new(config, Box::new(SeededEntropy::new(seed)));
        self.follower = changes::Follower::default();
        self.rules.clear();
        self.hairpins.clear();
        self.socket = None;
        let now = self.now;
        let left = |(key, mapping): (&(Protocol, u16), &StoredMapping)| {
            let passed = Duration::from_millis(now - self.stored_at[key]);
            let claims = mapping.claims.after(passed);
            (claims != Claims::default()).then(|| StoredMapping { claims, ..mapping.clone() })
        };
        let mappings = self.store.iter().filter_map(left).collect();
        let filtered = self.filtered.clone();
        self.event(Event::RestoreConsents(self.decided.values().copied().collect()));
        self.event(Event::Restore { mappings, probe: self.probe_nonce.clone(), filtered });
    }
}

/// D-2, D-4, decisions 16 and 17: every acknowledged mapping is back at once, here and in our own NAT, and upstream
/// within service_wait, by the same nonce: the server of the RFC would refuse another one. R-44 asks for less.
#[test]
fn a_crash_loses_nothing_that_was_acknowledged() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.add(ALICE, 1, port(8080)), done());
        assert_eq!(lab.add(BOB, 2, port(9090)), done());
        let before: Vec<_> = lab.provider().mappings().collect();
        lab.crash(config(nat), 77, 1000);
        let shown: Vec<_> =
            lab.gateway.mappings(lab.instant()).map(|m| (m.external, m.internal, m.health)).collect();
        assert_eq!(shown.len(), 2);
        assert!(shown.iter().all(|(_, _, health)| *health == Health::Degraded));
        assert_eq!(lab.rules.len(), if nat == NatMode::Own { 2 } else { 0 });
        lab.event(Event::Lan(lan()));
        lab.event(Event::Wan(wan(&[W])));
        lab.run(lab.now + 35_000);
        assert!(
            lab.gateway.mappings(lab.instant()).all(|mapping| mapping.health == Health::Active),
            "{nat:?}"
        );
        let after: Vec<_> = lab.provider().mappings().collect();
        let ports = |all: &[crate::provider::ProviderMapping]| -> Vec<_> {
            all.iter().map(|m| (m.protocol, m.external, m.internal)).collect()
        };
        assert_eq!(ports(&after), ports(&before), "nothing twice, nothing lost, the probe included");
        // The nonce was kept, or the server would not let go.
        let id = lab.start_delete(ALICE, 1, 8080);
        assert_eq!(lab.heard(id), Some(done()));
        assert_eq!(lab.store.len(), 1);
    }
}

/// D-9, decisions 16 and 17: one wait, uniform over the whole of service_wait after a start, and over the whole of
/// recovery_wait after a state loss, for the list as for the mappings; whoever asks sooner is served at once.
#[test]
fn waits_are_uniform() {
    let mut starts = Vec::new();
    let mut losses = Vec::new();
    for seed in 0..60 {
        let settings = Config { list_mappings: true, ..config(NatMode::Own) };
        let mut lab = Lab::up_with(settings.clone());
        lab.provider().config_mut().query = true;
        for n in 0..3 {
            assert_eq!(lab.add(ALICE, 1, port(8080 + n)), done());
        }
        lab.crash(settings, 78 + seed, 1000);
        lab.event(Event::Lan(lan()));
        lab.effects.clear();
        let start = lab.now;
        lab.event(Event::Wan(wan(&[W])));
        assert_eq!(lab.add(BOB, 1, port(9090)), done());
        assert_eq!(lab.add(ALICE, 1, port(8081)), done());
        let at_once: Vec<u16> = lab.sent().iter().map(|(_, sent)| map_of(sent).internal_port).collect();
        assert_eq!(at_once, [9090, 8081], "and the probe: {seed}");
        lab.effects.clear();
        lab.run(start + 30_001);
        let sent = |lab: &Lab| -> Vec<u64> {
            let requests = lab.effects.iter().filter(|(_, effect)| matches!(effect, Effect::Send { .. }));
            requests.map(|(at, _)| *at).collect()
        };
        let first = sent(&lab);
        assert!(first.len() >= 3 && first.iter().all(|at| *at == first[0]), "{first:?}");
        starts.push(first[0] - start);
        lab.effects.clear();
        let (now, loss) = (lab.instant(), lab.now);
        let announcement = lab.provider().lose_state(now);
        lab.event(Event::Announcement { from: server(), bytes: &announcement });
        lab.run(loss + 5001);
        losses.push(sent(&lab)[0] - loss);
        assert_eq!(lab.upstream().len(), 4);
    }
    for (waits, longest) in [(starts, 30_000), (losses, 5000)] {
        assert!(waits.iter().all(|&wait| wait <= longest), "{waits:?}");
        for third in 0..3 {
            let range = longest / 3 * third..longest / 3 * (third + 1);
            let there = waits.iter().filter(|wait| range.contains(wait)).count();
            assert!((8..=32).contains(&there), "{there} of 60 in {range:?}");
        }
    }
}

impl Lab {
    /// Seconds from now until the probe is asked for, if it is within `limit`.
    fn probe_within(&mut self, limit: u64) -> Option<u64> {
        let start = self.now;
        self.run(start + limit * 1000);
        let probe = self.all_sent().into_iter().find(|(_, request)| is_probe(request));
        probe.map(|(at, _)| (at - start) / 1000)
    }

    /// A crash, and a start a second later with another seed.
    fn restart(&mut self, seed: u64) {
        self.crash(config(NatMode::Own), seed, 1000);
        self.event(Event::Lan(lan()));
        self.effects.clear();
        self.event(Event::Wan(wan(&[W])));
    }
}

/// D-9, decisions 11 and 17: also the mapping that tells the external address is spread over service_wait when a town starts. A
/// new installation asks at once, and so does one that a control point asks something.
#[test]
fn the_probe_waits_after_a_restart() {
    let mut waits = Vec::new();
    for seed in 0..60 {
        let mut lab = Lab::up(NatMode::Own);
        lab.restart(78 + seed);
        waits.push(lab.probe_within(30).expect("it is asked for"));
    }
    for third in 0..3 {
        let there = waits.iter().filter(|&&wait| (third * 10..third * 10 + 10).contains(&wait)).count();
        assert!((8..=32).contains(&there), "{there} of 60 in third {third}: {waits:?}");
    }
    let mut lab = Lab::new(config(NatMode::Own));
    lab.event(Event::Wan(wan(&[W])));
    assert_eq!(lab.probe_within(0), Some(0), "nothing was there before");
    let mut lab = Lab::up(NatMode::Own);
    lab.restart(78);
    // The WAN comes and goes before it is time.
    lab.event(Event::Wan(wan(&[])));
    lab.event(Event::Wan(wan(&[W])));
    assert_eq!(lab.probe_within(0), None);
    assert_eq!(lab.connection().0, "Disconnected");
    assert_eq!(lab.connection(), ("Connected".into(), E.to_string()), "somebody has asked");
}

/// D-9 and T-8: what stored mappings tell needs no probe, and one request less reaches the server from every router. When the
/// provider gives none of them again, there is one.
#[test]
fn stored_mappings_come_before_the_probe() {
    for refused in [false, true] {
        let mut lab = Lab::up(NatMode::Own);
        assert_eq!(lab.add(ALICE, 1, port(8080)), done());
        if refused {
            lab.script.push_back(Reaction::Refuse(ResultCode::NOT_AUTHORIZED, 60));
        }
        lab.restart(78);
        assert_eq!(lab.probe_within(60).is_some(), refused);
        assert_eq!(lab.mapped().len(), usize::from(!refused));
        assert_eq!(lab.connection(), ("Connected".into(), E.to_string()));
    }
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 1, port(8080)), done());
    lab.silent = true;
    lab.restart(78);
    assert_eq!(lab.probe_within(600), None, "it would be asked of the same silent server");
}

/// a success is only answered when the mapping is stored. The caller turns the answer into 501; what has come to stand
/// goes, and nothing else does.
#[test]
fn what_cannot_be_stored_does_not_stand() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.add(ALICE, 1, port(8080)), done());
        lab.event(Event::Timeout);
        lab.event(Event::StoreFailed("no space left".into()));
        assert_eq!(lab.mapped().len(), 1, "it was stored");
        assert_eq!(lab.add(BOB, 1, port(9090)), done());
        lab.event(Event::StoreFailed("no space left".into()));
        assert_eq!(lab.mapped(), [(8080, at(ALICE, 8080))], "{nat:?}");
        assert_eq!((lab.upstream().len(), lab.rules.len()), (1, usize::from(nat == NatMode::Own)));
        assert!(lab.notices().contains(&Notice::StoreFailed("no space left".into())));
        assert!(lab.gateway.is_idle());
    }
}

/// what an owner is told stands as it asked for it, also after a crash: when a change could not be stored, the same
/// request again has to be, though it changes nothing any more.
#[test]
fn what_could_not_be_stored_is_stored_when_asked_again() {
    let mut lab = Lab::up(NatMode::Own);
    let endless = Add { lease: 0, ..port(8080) };
    assert_eq!(lab.add(ALICE, 1, endless), done());
    let puts = |lab: &mut Lab| {
        let is_put = |effect: &Effect| matches!(effect, Effect::Store(Record::Put(_)));
        lab.seen().iter().filter(|effect| is_put(effect)).count()
    };
    assert_eq!(puts(&mut lab), 1);
    let renamed = Add { description: "other", ..endless };
    assert_eq!(lab.add(ALICE, 1, renamed), done());
    lab.event(Event::StoreFailed("no space left".into()));
    assert_eq!((puts(&mut lab), lab.mapped().len()), (1, 1));
    assert_eq!(lab.status().store_error.as_deref(), Some("no space left"));
    assert_eq!(lab.add(ALICE, 1, renamed), done());
    assert_eq!(puts(&mut lab), 1);
    lab.event(Event::StoreWorks);
    assert_eq!(lab.status().store_error, None);
    assert_eq!(lab.add(ALICE, 1, renamed), done());
    assert_eq!(puts(&mut lab), 0, "nothing has changed");
}

/// RFC 6887 §13.3: a filter that stands is said again twice a day, for what was said long ago is forgotten.
#[test]
fn filters_that_stand_are_stored_twice_a_day() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 2, Add { remote: "203.0.113.9", lease: 604_800, ..port(8080) }), done());
    lab.pass(3 * 86_400);
    let written = |(_, effect): &&(u64, Effect)| matches!(effect, Effect::Store(Record::Filtered(_)));
    let written = lab.effects.iter().filter(written).count();
    assert!((4..=6).contains(&written), "{written}");
}

/// RFC 6887 §13.3: a filter stays with the mapping at the server. One that was on its way when the gateway was killed is
/// dropped when the next life asks for that mapping.
#[test]
fn a_filter_of_before_a_crash_is_dropped() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        lab.script = [Reaction::LoseAnswer; 9].into();
        lab.start_add(ALICE, 2, Add { remote: "203.0.113.9", ..port(8080) });
        assert_eq!(lab.filters().len(), 1, "the server has it");
        lab.crash(config(nat), 82, 1000);
        lab.script.clear();
        lab.event(Event::Lan(lan()));
        lab.event(Event::Wan(wan(&[W])));
        lab.effects.clear();
        assert_eq!(lab.add(ALICE, 2, Add { lease: 0, ..port(8080) }), done());
        assert!(lab.filters().is_empty(), "{nat:?}");
        lab.pass(3 * 86_400);
        let written = |(_, effect): &&(u64, Effect)| matches!(effect, Effect::Store(Record::Filtered(_)));
        assert_eq!(lab.effects.iter().filter(written).count(), 1, "flash is spared");
    }
}

/// leases go on while the power is off, and a mapping that the server gave away meanwhile is gone.
#[test]
fn what_has_ended_meanwhile_does_not_come_back() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 1, Add { lease: 60, ..port(8080) }), done());
    assert_eq!(lab.add(ALICE, 1, port(9090)), done());
    lab.crash(config(NatMode::Own), 79, 50_000);
    let now = lab.instant();
    lab.provider().lose_state(now);
    lab.event(Event::Lan(lan()));
    lab.event(Event::Wan(wan(&[W])));
    lab.run(lab.now + 10_001);
    let left: Vec<u16> = lab.gateway.mappings(lab.instant()).map(|mapping| mapping.external.port()).collect();
    assert_eq!(left, [9090]);
    assert_eq!(lab.rules.len(), 1);
}

/// R-10, decision 16: renewals change nothing that is stored; every other change does, before it is answered.
#[test]
fn what_is_written() {
    let mut lab = Lab::up(NatMode::Own);
    let writes = |lab: &Lab| {
        lab.effects
            .iter()
            .filter(|(_, e)| matches!(e, Effect::Store(record) if !matches!(record, Record::Ended(..))))
            .count()
    };
    assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
    let order: Vec<bool> = lab
        .effects
        .iter()
        .filter_map(|(_, effect)| match effect {
            Effect::Store(_) => Some(true),
            Effect::Reply { .. } => Some(false),
            _ => None,
        })
        .collect();
    assert_eq!(order, [true, false], "stored, then acknowledged");
    assert_eq!(lab.store[&(Protocol::TCP, 8080)].claims.end(), None);
    lab.run(lab.now + 3 * 86_400_000);
    assert_eq!(writes(&lab), 1, "three days of renewals");
    assert_eq!(lab.add(ALICE, 1, port(8080)), done());
    assert_eq!(lab.store[&(Protocol::TCP, 8080)].claims.end(), Some(Duration::from_secs(3600)));
    lab.run(lab.now + 3_600_001);
    assert_eq!(writes(&lab), 2, "the end of a lease is not written");
    let ended = Effect::Store(Record::Ended(Protocol::TCP, 8080));
    assert_eq!(lab.effects.iter().filter(|(_, effect)| *effect == ended).count(), 1, "only told");
}

/// Another deployment than before, doubled ports, foreign things: dropped from the store, never a panic.
#[test]
fn a_store_that_does_not_fit() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 1, port(8080)), done());
    let stored = lab.store[&(Protocol::TCP, 8080)].clone();
    let other_port =
        StoredMapping { external: SocketAddrV4::new(*stored.external.ip(), 9999), ..stored.clone() };
    lab.store.insert((Protocol::TCP, 9999), other_port); // the same port of our own NAT
    lab.stored_at.insert((Protocol::TCP, 9999), lab.now);
    lab.crash(config(NatMode::Own), 80, 0);
    assert_eq!((lab.gateway.mappings(lab.instant()).count(), lab.store.len()), (1, 1));
    lab.crash(config(NatMode::None), 81, 0);
    assert_eq!((lab.gateway.mappings(lab.instant()).count(), lab.store.len()), (0, 0));
}
