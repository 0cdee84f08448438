//! A clock that jumps: the machine slept, and between two events a week has passed. The clock counts that ([`crate::time`]), and
//! what was due meanwhile is due all at once.

use std::collections::BTreeSet;

use super::*;
use crate::table::Health;

const WEEK: u64 = 7 * 86_400;
/// So many of a recovery may be unanswered at once (decision 16).
const IN_TURN: usize = 4;

/// Internal ports that were asked for since the last look, each once, and those that were deleted.
fn asked(lab: &Lab) -> [BTreeSet<u16>; 2] {
    [false, true].map(|deletes| {
        let all = lab.sent().into_iter().filter(|(_, request)| (request.lifetime == 0) == deletes);
        all.map(|(_, request)| map_of(&request).internal_port).collect()
    })
}

/// When the first of the mappings ends at the provider, in milliseconds.
fn first_end(lab: &Lab) -> u64 {
    let left = lab.gateway.mappings(lab.instant()).map(|mapping| mapping.lifetime_left).min().unwrap();
    (lab.instant() + left).as_millis()
}

/// Decision 14: leases that have ended are gone; the others, which the provider has forgotten long ago, are asked for again, four at
/// a time, by their owners' ports.
#[test]
fn after_a_week_what_has_ended_is_gone_and_the_rest_is_asked_for_again() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        let (ending, lasting) = (8000..8010, 9000..9030);
        for n in ending {
            assert_eq!(lab.add(ALICE, 1, port(n)), done());
        }
        for n in lasting.clone() {
            assert_eq!(lab.add(BOB, 1, Add { lease: 0, ..port(n) }), done());
        }
        lab.pass(60);
        lab.effects.clear();

        // Nobody answers at first, so that what is in flight is seen.
        lab.silent = true;
        lab.now += WEEK * 1000;
        let now = lab.instant();
        lab.provider().handle_timeout(now);
        assert_eq!(lab.upstream(), [], "the provider has forgotten all");
        lab.event(Event::Timeout);
        lab.run(lab.now + 900);
        let [asked, deleted] = asked(&lab);
        assert!(!asked.is_empty() && asked.len() <= IN_TURN, "{nat:?}: {asked:?}");
        assert!(deleted.len() <= IN_TURN, "{nat:?}: {deleted:?}");
        let mapped = |lab: &Lab| lab.mapped().into_iter().map(|(port, _)| port).collect::<BTreeSet<_>>();
        assert_eq!(mapped(&lab), lasting.clone().collect(), "{nat:?}");
        lab.silent = false;
        lab.pass(120);
        assert_eq!(mapped(&lab), lasting.clone().collect(), "{nat:?}");
        assert!(
            lab.gateway.mappings(lab.instant()).all(|mapping| mapping.health == Health::Active),
            "{nat:?}"
        );
        let upstream: BTreeSet<u16> = lab.upstream().into_iter().map(|(port, _)| port).collect();
        assert_eq!(upstream, lasting.clone().collect(), "{nat:?}");
        if nat == NatMode::Own {
            assert_eq!(lab.rules.len(), lasting.len());
        }
        // Whoever asks anew meanwhile, or later, is served.
        assert_eq!(lab.add(ALICE, 1, port(8000)), done());
        assert_eq!(lab.wrong_nonces, 0);
    }
}

/// A short nap, in which a lifetime at the provider did not end: nobody notices.
#[test]
fn after_a_nap_all_stands() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        for n in 8000..8020 {
            assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(n) }), done());
        }
        lab.pass(60);
        lab.effects.clear();
        lab.silent = true;
        // Every renewal is overdue.
        lab.now = first_end(&lab) - 60_000;
        lab.event(Event::Timeout);
        lab.run(lab.now + 900);
        let [asked, deleted] = asked(&lab);
        assert!(!asked.is_empty() && asked.len() <= IN_TURN, "{nat:?}: {asked:?}");
        assert!(deleted.is_empty(), "{nat:?}: {deleted:?}");
        lab.silent = false;
        lab.pass(120);
        assert_eq!(lab.upstream().len(), 20);
        assert!(
            lab.gateway.mappings(lab.instant()).all(|mapping| mapping.health == Health::Active),
            "{nat:?}"
        );
        let removed = |(_, effect): &(u64, Effect)| matches!(effect, Effect::Store(Record::Remove(..)));
        assert!(!lab.effects.iter().any(removed), "{nat:?}");
    }
}

/// The provider was out of reach before the machine went to sleep, and is there when it wakes: what it may have heard of a renewal does
/// not keep a mapping from being asked for.
#[test]
fn renewals_that_were_not_answered_before_are_no_reason_to_give_up() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        for n in 8000..8006 {
            assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(n) }), done());
        }
        lab.silent = true;
        lab.run(first_end(&lab) - 60_000); // each was asked for, in vain
        assert!(
            lab.gateway.mappings(lab.instant()).all(|mapping| mapping.health == Health::Degraded),
            "{nat:?}"
        );
        lab.now += WEEK * 1000;
        lab.silent = false;
        lab.event(Event::Timeout);
        lab.pass(120);
        let upstream: BTreeSet<u16> = lab.upstream().into_iter().map(|(port, _)| port).collect();
        assert_eq!(upstream, (8000..8006).collect(), "{nat:?}");
        assert!(
            lab.gateway.mappings(lab.instant()).all(|mapping| mapping.health == Health::Active),
            "{nat:?}"
        );
        assert_eq!(lab.mapped().len(), 6);
    }
}

/// A machine that does not sleep, and a provider that does not answer: what decision 15 says.
#[test]
fn without_a_sleep_what_ends_ends() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8000) }), done());
    lab.silent = true;
    lab.pass(90_000);
    assert_eq!(lab.mapped(), []);
    assert!(!lab.notices().iter().any(|notice| matches!(notice, Notice::Woke(..))));
}
