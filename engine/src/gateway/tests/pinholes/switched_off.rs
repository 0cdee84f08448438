//! `[lan] pcp = false` closes what PCP alone has opened (security policy).

use super::*;

#[test]
fn pinholes_go_with_pcp() {
    for provider in [None, Some(model())] {
        let mut lab = Lab::up6(provider);
        assert_eq!(lab.map6(CAROL, &map6(8080)).0, OK);
        assert_eq!(lab.map6(CAROL, &map6(8081)).0, OK);
        assert!(lab.open(CAROL, &hole(8081)).is_ok());
        let settings = lab.gateway.config.clone();
        lab.event(Event::Reconfigure(Box::new(Config { pcp: false, ..settings.clone() })));
        lab.run(lab.now + 10_000);
        assert_eq!(lab.pinholes.open, BTreeSet::from([flows(CAROL, 8081)]));
        lab.agrees();
        let by: Vec<_> = lab.gateway.pinholes(lab.instant()).iter().map(|one| one.asked_by).collect();
        assert!(by.iter().all(|by| by.igd && !by.pcp), "{by:?}");
        let closed = |notice: &Notice| {
            matches!(notice, Notice::Pinhole(PinholeNews::Closed(_, PinholeEnd::ProtocolOff)))
        };
        assert_eq!(lab.notices().iter().filter(|notice| closed(notice)).count(), 1);
        // Also one that is being asked for.
        lab.event(Event::Reconfigure(Box::new(settings.clone())));
        if let Some(model) = &mut lab.pinholes.provider {
            model.silent = true;
            assert!(lab.pcp6(CAROL, &map6(8082).request(CAROL)).is_none());
            lab.event(Event::Reconfigure(Box::new(Config { pcp: false, ..settings })));
            lab.model().silent = false;
            lab.run(lab.now + 30_000);
            assert_eq!(lab.pinholes.open, BTreeSet::from([flows(CAROL, 8081)]));
            lab.agrees();
        }
    }
}

/// Who is served no more does not wait either: when the control point that asked beside it is told 501, nothing stays half-way.
#[test]
fn what_both_ask_for() {
    let mut lab = Lab::up6(Some(model()));
    lab.model().silent = true;
    let id = lab.start_hole(CAROL.into(), "AddPinhole", &hole(8080).args(CAROL));
    assert_eq!(lab.pcp6(CAROL, &map6(8080).request(CAROL)), None);
    let settings = Config { pcp: false, ..lab.gateway.config.clone() };
    lab.event(Event::Reconfigure(Box::new(settings)));
    lab.run(lab.now + 3600);
    assert_eq!(lab.heard(id), Some(Err(501)));
    lab.pass(60);
    assert_eq!(lab.gateway.pinholes(lab.instant()), []);
    lab.model().silent = false;
    lab.pass(60);
    assert!(lab.gateway.is_idle());
    lab.agrees();
}
