//! What is half-way when the rules are read again: what they deny by then does not come to stand, nor back.

use super::*;

const DENIES_ALICE: &str = "deny 0-65535 192.168.1.10/32 0-65535";

fn denies(nat: NatMode) -> Config {
    Config { nat, ..with_rules(&[DENIES_ALICE]) }
}

fn reload(lab: &mut Lab, config: Config) {
    lab.event(Event::Reconfigure(Box::new(config)));
}

/// A delete that the provider refuses leaves nothing standing that the rules deny.
#[test]
fn a_delete_that_is_refused() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.add(ALICE, 2, port(8080)), done());
        lab.script = [Reaction::Lose, Reaction::Refuse(ResultCode::NOT_AUTHORIZED, 30)].into();
        let id = lab.start_delete(ALICE, 2, 8080);
        reload(&mut lab, denies(nat));
        lab.pass(3);
        assert_eq!(lab.heard(id), Some(Err(606)), "{nat:?}: as the provider has it");
        assert_eq!((lab.mapped(), lab.rules.len(), lab.store.len()), (vec![], 0, 0), "{nat:?}");
        let gone = |notice: &Notice| matches!(notice, Notice::Removed(_, Cause::Policy));
        assert!(lab.notices().iter().any(gone), "{nat:?}");
        lab.pass(60);
        assert!(lab.gateway.is_idle());
    }
}

/// What another mapping was to replace, while another server comes.
#[test]
fn a_replacement_that_another_server_overtakes() {
    for denied in [true, false] {
        let second: SocketAddr = "192.0.2.2:5351".parse().unwrap();
        let mut lab = Lab::up(NatMode::None);
        let settings = ProviderConfig { third_party: true, ..ProviderConfig::new(E) };
        lab.providers.insert(second, Provider::new(lab.instant(), settings));
        assert_eq!(lab.add(ALICE, 2, port(8080)), done());
        lab.silent = true;
        let id = lab.start_add(ALICE, 2, port(8080).to(9090));
        lab.silent = false;
        let rules: &[&str] = if denied { &[DENIES_ALICE] } else { &[] };
        reload(&mut lab, Config { servers: vec![second], nat: NatMode::None, ..with_rules(rules) });
        lab.pass(30);
        assert!(lab.heard(id).is_some());
        assert_eq!(lab.mapped().len(), usize::from(!denied));
    }
}

/// A flow that the provider, or the kernel, is just asked about.
#[test]
fn a_flow_that_is_asked_about() {
    for slow_kernel in [true, false] {
        let mut lab = Lab::up(NatMode::Own);
        lab.provider().config_mut().peer = true;
        lab.flows_by(ALICE, &peer(5000), 5000);
        (lab.slow_nat, lab.silent) = (slow_kernel, !slow_kernel);
        let request = peer(5000).request(ALICE.into()).to_bytes();
        assert_eq!(lab.datagram(ALICE, &request).len(), 0);
        reload(&mut lab, denies(NatMode::Own));
        let before = lab.effects.len();
        (lab.slow_nat, lab.silent) = (false, false);
        lab.release_nat();
        lab.pass(5);
        lab.release_nat();
        let heard: Vec<_> =
            lab.sent_to(ALICE, before).iter().map(|bytes| Response::parse(bytes).unwrap().result).collect();
        assert_eq!(heard, [NOT_AUTHORIZED], "{slow_kernel}");
        assert_eq!((lab.rules.len(), lab.gateway.nat_ports_in_use()), (0, 0), "{slow_kernel}");
        assert_eq!(lab.gateway.peer_rules().count(), 0);
        assert!(lab.gateway.is_idle());
    }
}

/// A mapping that is just led to another port.
#[test]
fn a_mapping_that_is_led_elsewhere() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    lab.slow_nat = true;
    let id = lab.start_add(ALICE, 2, port(8080).to(9090));
    reload(&mut lab, with_rules(&["deny 0-65535 192.168.1.10/32 9090"]));
    assert_eq!(lab.mapped(), [(8080, at(ALICE, 8080))], "that is allowed");
    lab.slow_nat = false;
    lab.release_nat();
    assert_eq!(lab.heard(id), Some(Err(606)));
    assert_eq!((lab.mapped(), lab.rules.len(), lab.upstream()), (vec![], 0, vec![]));
}
