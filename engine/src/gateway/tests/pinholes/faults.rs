//! Crashes, stops, a kernel that refuses and a store that is full: what is left of pinholes then.

use super::*;

/// D-4, decision 16: what was answered survives a crash, as long as it would have lasted, by its number; the provider knows the owner
/// again.
#[test]
fn a_crash() {
    let mut lab = Lab::up6(Some(model()));
    let id = lab.open(CAROL, &Hole { remote: PEER, ..hole(8080) }).unwrap().remove(0);
    lab.map6(DAVE, &map6(8080));
    lab.pass(1000);
    let stored: Vec<StoredPinhole> = lab.pinholes.stored.values().cloned().collect();
    let passed = Duration::from_secs(1000);
    let stored: Vec<StoredPinhole> =
        stored.into_iter().map(|one| StoredPinhole { claims: one.claims.after(passed), ..one }).collect();
    let mut after = Lab::new(Config { firewall_servers: vec![firewall()], ..config(NatMode::Own) });
    after.now = lab.now;
    after.pinholes.provider = lab.pinholes.provider.take();
    after.pinholes.stored = lab.pinholes.stored.clone();
    after.event(Event::RestorePinholes(stored));
    assert_eq!(after.pinholes.open.len(), 2, "at once");
    after.event(Event::Lan(lan6()));
    after.event(Event::Wan(wan6()));
    after.pass(60);
    after.agrees();
    assert_eq!(after.of_id(CAROL, "DeletePinhole", &id), done());
    assert_eq!(after.map6(DAVE, &Map6 { nonce: OTHERS, ..map6(8080) }).0, ResultCode::NOT_AUTHORIZED);
    after.pass(2600);
    after.agrees();
    assert!(after.pinholes.open.is_empty());
}

/// The kernel refuses: 501, and nothing is left anywhere. What cannot be stored is closed again.
#[test]
fn what_goes_wrong_leaves_nothing() {
    let mut lab = Lab::up6(Some(model()));
    lab.pinholes.broken = true;
    assert_eq!(lab.open(CAROL, &hole(8080)), Err(501));
    assert_eq!(lab.map6(CAROL, &map6(8081)).0, ResultCode::NO_RESOURCES);
    lab.pass(5);
    lab.agrees();
    lab.pinholes.broken = false;
    lab.open(CAROL, &hole(8080)).unwrap();
    lab.event(Event::StoreFailed("full".into()));
    lab.pass(5);
    lab.agrees();
    assert!(lab.pinholes.open.is_empty());
    // Somebody hangs up while the kernel is at work: it is kept for a moment, should he come back.
    lab.slow_nat = true;
    let id = lab.start_hole(CAROL.into(), "AddPinhole", &hole(9090).args(CAROL));
    lab.pass(5);
    assert_eq!(lab.heard(id), Some(Err(501)));
    lab.slow_nat = false;
    lab.release_nat();
    assert!(lab.pinholes.stored.is_empty() && lab.pinholes.open.len() == 1);
    lab.pass(31);
    lab.agrees();
    assert!(lab.pinholes.open.is_empty() && lab.gateway.is_idle());
}

/// What the kernel would not close is closed later, unless it is wanted again; and what it would not open after a start comes back no
/// more.
#[test]
fn a_kernel_that_refuses() {
    let mut lab = Lab::up6(Some(model()));
    let id = lab.open(CAROL, &hole(8080)).unwrap().remove(0);
    lab.pinholes.sticks = true;
    assert_eq!(lab.of_id(CAROL, "DeletePinhole", &id), done());
    assert_eq!(lab.pinholes.open.len(), 1, "the kernel would not");
    lab.pass(25);
    lab.pinholes.sticks = false;
    lab.pass(10);
    lab.agrees();
    assert!(lab.pinholes.open.is_empty() && lab.gateway.is_idle());
    lab.pinholes.sticks = true;
    let id = lab.open(CAROL, &hole(8080)).unwrap().remove(0);
    lab.of_id(CAROL, "DeletePinhole", &id).unwrap();
    lab.pinholes.open.clear(); // so that the model may open it
    lab.open(CAROL, &hole(8080)).unwrap();
    lab.pinholes.sticks = false;
    lab.pass(30);
    lab.agrees();
    assert_eq!(lab.pinholes.open.len(), 1, "it is wanted again");
    let stored: Vec<StoredPinhole> = lab.pinholes.stored.values().cloned().collect();
    let mut after = Lab::new(config(NatMode::Own));
    after.pinholes.broken = true;
    after.pinholes.stored = lab.pinholes.stored.clone();
    after.event(Event::RestorePinholes(stored));
    assert!(after.pinholes.stored.is_empty() && after.gateway.is_idle());
}

/// A stop gives everything back; with `keep_on_stop` it stays.
#[test]
fn a_stop() {
    for keep_on_stop in [false, true] {
        let mut lab = Lab::up6(Some(model()));
        let settings = Config { keep_on_stop, firewall_servers: vec![firewall()], ..config(NatMode::Own) };
        lab.event(Event::Reconfigure(Box::new(settings)));
        for port in [8080, 8081, 8082] {
            lab.open(CAROL, &hole(port)).unwrap();
        }
        lab.event(Event::Stop);
        lab.pass(5);
        let left = if keep_on_stop { 3 } else { 0 };
        assert_eq!((lab.pinholes.open.len(), lab.pinholes.stored.len()), (left, left));
        assert_eq!(lab.model().open.len(), left);
        assert!(lab.effects.iter().any(|(_, effect)| *effect == Effect::Stopped));
    }
}

/// The claims that are stored are those of whoever asked.
#[test]
fn who_asked_is_stored() {
    let mut lab = Lab::up6(None);
    lab.map6(CAROL, &map6(8080));
    let stored = lab.pinholes.stored.values().next().unwrap().clone();
    assert_eq!(stored.claims, crate::claims::Claims::of(Asker::Pcp(MINE), Some(Duration::from_secs(3600))));
    assert_eq!(stored.flows, flows(CAROL, 8080));
}

/// Invariant 11: what the provider does not confirm is left in the store, said, and taken up by the next start.
#[test]
fn a_stop_while_the_provider_is_silent() {
    let mut lab = Lab::up6(Some(model()));
    lab.open(CAROL, &hole(8080)).unwrap();
    lab.model().silent = true;
    lab.event(Event::Stop);
    lab.pass(90);
    assert!(lab.pinholes.open.is_empty() && lab.pinholes.stored.len() == 1);
    assert!(lab.notices().contains(&Notice::LeftBehind(1)));
    let last = lab.effects.last().map(|(_, effect)| effect.clone());
    assert_eq!(last, Some(Effect::Stopped));
}

/// O-6: a change that cannot be stored leaves what was there.
#[test]
fn a_filter_that_cannot_be_stored() {
    let mut lab = Lab::up6(None);
    lab.map6(CAROL, &map6(8080));
    lab.run(lab.now);
    let before = lab.pinholes.open.clone();
    let arrival = LanArrival { interface: 3, local: IpAddr::V6(LAN6), from: SocketAddr::from((CAROL, 4000)) };
    let request = map6(8080).with(&[filter(128, PEER, 0)]).request(CAROL);
    lab.event(Event::Lan5351 { arrival, bytes: &request.to_bytes() });
    lab.event(Event::StoreFailed("full".into()));
    lab.pass(1);
    assert_eq!(lab.pinholes.open, before);
}
