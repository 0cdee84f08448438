//! What asks the provider counts, also where the answer is there already.

use super::*;

/// A mapping that is in doubt is asked for at once when its owner asks again, but for no more than its exchanges.
#[test]
fn a_mapping_in_doubt_that_is_asked_for_again_and_again() {
    for nat in BOTH {
        let exchanges = Rate { per_second: 10, burst: 5 };
        let policy = Policy { exchanges, ..Policy::default() };
        let mut lab = Lab::up_with(Config { nat, policy, ..config(nat) });
        assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
        lab.silent = true;
        lab.provider_forgets();
        lab.pass(60);
        let health = |lab: &Lab| lab.gateway.mappings(lab.instant()).next().map(|one| one.health);
        assert_eq!(health(&lab), Some(crate::table::Health::Degraded), "{nat:?}");
        lab.effects.clear();
        for _ in 0..100 {
            assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done(), "from the table");
        }
        let sent = lab.sent().len();
        assert!((1..=5).contains(&sent), "{nat:?}: {sent}");
        assert_eq!(lab.refused(), [], "nobody is refused");
        // Another host's are another's.
        assert_eq!(lab.call(BOB, 1, "GetExternalIPAddress", &[]).map(|_| ()), Ok(()));
        lab.silent = false;
        lab.pass(1);
        assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
        assert_eq!(health(&lab), Some(crate::table::Health::Active), "{nat:?}");
    }
}
