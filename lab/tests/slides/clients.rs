//! The clients of the slides by what iwf.md section 6 says of them, as real SOAP over HTTP: each against a port that is free, one that
//! another LAN host holds, and one that another subscriber holds. MAPs are counted on the wire as the scenarios
//! (`lab/scenarios/client-*.txt`) count them in virtual time.

use std::net::SocketAddrV4;

use lab::netns::{Host, LAN1, Network};

use crate::bench::{Bench, CANNOT_PROVIDE_EXTERNAL, Deployment, FOR_EVER, SUCCESS, Terms, add};
use crate::common::{Caller, TCP, Told, UDP, lan_address, name, reaches, reaches_nobody};

/// The lifetime of a question.
const PROBE: u32 = 60;

/// The client on the first LAN host, somebody else on the second, and the bench.
struct Scene {
    client: Caller,
    neighbour: Caller,
    bench: Bench,
}

impl Scene {
    fn new(deployment: Deployment) -> Option<Self> {
        let bench = Bench::new(deployment, Terms::USUAL, "")?;
        let (client, neighbour) = (bench.caller(Host::Lan1, 1), bench.caller(Host::Lan2, 1));
        Some(Self { client, neighbour, bench })
    }

    fn network(&self) -> &Network {
        &self.bench.network
    }

    /// AddPortMapping by the client.
    #[track_caller]
    fn add(&mut self, protocol: u8, port: u16, description: &str) -> Told {
        add(&mut self.client, Host::Lan1, protocol, port, description)
    }

    /// The client has a free port, for one MAP.
    #[track_caller]
    fn adds_for_one_map(&mut self, protocol: u8, port: u16, description: &str) {
        let _listener = self.bench.listeners(&[Host::Lan1], protocol, port);
        assert_eq!(self.add(protocol, port, description), Told::done(), "{} {port}", name(protocol));
        self.bench.asked_once().is_strict(protocol, port, FOR_EVER, SUCCESS);
        reaches(self.network(), protocol, port, "lan1");
    }

    /// The client has what it asked about before, for none.
    #[track_caller]
    fn adds_for_nothing(&mut self, protocol: u8, port: u16, description: &str) {
        let _listener = self.bench.listeners(&[Host::Lan1], protocol, port);
        assert_eq!(self.add(protocol, port, description), Told::done(), "{} {port}", name(protocol));
        self.bench.asked_nothing();
        reaches(self.network(), protocol, port, "lan1");
    }

    /// The client hears of a conflict so many times, and the server nothing.
    #[track_caller]
    fn conflicts_for_nothing(&mut self, times: u32, protocol: u8, port: u16, description: &str) {
        for _ in 0..times {
            let told = self.add(protocol, port, description);
            assert_eq!(told, Told::Refused(718), "{} {port}", name(protocol));
            self.bench.asked_nothing();
        }
    }

    /// The client hears of a conflict, for one MAP.
    #[track_caller]
    fn conflicts_for_one_map(&mut self, protocol: u8, port: u16, description: &str) {
        let told = self.add(protocol, port, description);
        assert_eq!(told, Told::Refused(718), "{} {port}", name(protocol));
        self.bench.asked_once().is_strict(protocol, port, FOR_EVER, CANNOT_PROVIDE_EXTERNAL);
        let listener = self.bench.listeners(&[Host::Lan1], protocol, port);
        reaches_nobody(self.network(), protocol, port);
        drop(listener);
    }

    /// GetSpecificPortMappingEntry by the client.
    #[track_caller]
    fn looks(&mut self, protocol: u8, port: u16) -> Told {
        let arguments = [
            ("NewRemoteHost", ""),
            ("NewExternalPort", &port.to_string()),
            ("NewProtocol", &name(protocol).to_uppercase()),
        ];
        self.client.call("GetSpecificPortMappingEntry", &arguments)
    }

    /// The client is told that a port is free, for one MAP.
    #[track_caller]
    fn finds_free_for_one_map(&mut self, protocol: u8, port: u16) {
        assert_eq!(self.looks(protocol, port), Told::Refused(714), "{} {port}", name(protocol));
        self.bench.asked_once().is_strict(protocol, port, PROBE, SUCCESS);
    }

    /// The client is told whose a port is, for none.
    #[track_caller]
    fn finds_for_nothing(&mut self, protocol: u8, port: u16, whose: Host) {
        let told = self.looks(protocol, port);
        let Told::Done(entry) = &told else { panic!("{} {port}: {told:?}", name(protocol)) };
        let has = |name: &str, value: &str| entry.iter().any(|(own, is)| own == name && is == value);
        assert!(has("NewInternalClient", &lan_address(whose).to_string()), "{entry:?}");
        assert!(has("NewInternalPort", &port.to_string()), "{entry:?}");
        self.bench.asked_nothing();
    }

    /// The client is told that somebody outside has a port; for one MAP the first time, for none from then on.
    #[track_caller]
    fn finds_taken_for_one_map(&mut self, protocol: u8, port: u16) {
        for first in [true, false] {
            assert_eq!(self.looks(protocol, port), Told::Refused(718), "{} {port}", name(protocol));
            if first {
                self.bench.asked_once().is_strict(protocol, port, PROBE, CANNOT_PROVIDE_EXTERNAL);
            } else {
                self.bench.asked_nothing();
            }
        }
    }

    /// The other LAN host has that port from now on, for one MAP.
    #[track_caller]
    fn neighbour_takes(&mut self, protocol: u8, port: u16) {
        let told = add(&mut self.neighbour, Host::Lan2, protocol, port, "somebody else");
        assert_eq!(told, Told::done(), "{} {port}", name(protocol));
        self.bench.asked_once();
    }

    /// It is still the other LAN host's.
    #[track_caller]
    fn is_the_neighbours(&self, protocol: u8, port: u16) {
        let _listeners = self.bench.listeners(&[Host::Lan1, Host::Lan2], protocol, port);
        reaches(self.network(), protocol, port, "lan2");
    }
}

// ── uTorrent ───────────────────────────────────────────────────────────────────────────────────────────────────────

/// uTorrent 2.2: GetSpecificPortMappingEntry until a port is free, then AddPortMapping; also seen trying the same port again,
/// usually four times.
fn utorrent(deployment: Deployment) {
    const WORDS: &str = "uTorrent";
    let Some(mut scene) = Scene::new(deployment) else { return };
    for protocol in [TCP, UDP] {
        scene.finds_free_for_one_map(protocol, 32459);
        scene.adds_for_nothing(protocol, 32459, WORDS);
        scene.finds_for_nothing(protocol, 32459, Host::Lan1);
    }

    scene.neighbour_takes(TCP, 20001);
    scene.finds_for_nothing(TCP, 20001, Host::Lan2);
    scene.finds_free_for_one_map(TCP, 20002);
    scene.adds_for_nothing(TCP, 20002, WORDS);
    scene.conflicts_for_nothing(5, TCP, 20001, WORDS);
    scene.is_the_neighbours(TCP, 20001);

    scene.bench.other_takes(TCP, 30001);
    scene.finds_taken_for_one_map(TCP, 30001);
    scene.finds_free_for_one_map(TCP, 30002);
    scene.adds_for_nothing(TCP, 30002, WORDS);
    scene.conflicts_for_nothing(5, TCP, 30001, WORDS);
}

/// D-12, D-16, R-18, R-23…R-26, T-2, decisions 3, 4 and 6: at an AFTR.
#[test]
fn utorrent_at_an_aftr() {
    utorrent(Deployment::DsLite);
}

/// D-12, D-16, R-18, R-23…R-26, T-2, decisions 3, 4 and 6: at a NAT44.
#[test]
fn utorrent_at_a_nat44() {
    utorrent(Deployment::Nat44);
}

// ── Azureus ────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Azureus 4.6.0.2: AddPortMapping, and on conflict the same port five more times.
fn azureus(deployment: Deployment) {
    const WORDS: &str = "Azureus UPnP 6881 TCP";
    let Some(mut scene) = Scene::new(deployment) else { return };
    scene.adds_for_one_map(TCP, 6881, WORDS);

    scene.neighbour_takes(TCP, 6882);
    scene.conflicts_for_nothing(6, TCP, 6882, WORDS);
    scene.is_the_neighbours(TCP, 6882);

    scene.bench.other_takes(TCP, 6883);
    scene.conflicts_for_one_map(TCP, 6883, WORDS);
    scene.conflicts_for_nothing(5, TCP, 6883, WORDS);
}

/// D-12, D-16, R-18, R-20, T-14, decisions 3 and 4: at an AFTR.
#[test]
fn azureus_at_an_aftr() {
    azureus(Deployment::DsLite);
}

/// D-12, D-16, R-18, R-20, T-14, decisions 3 and 4: at a NAT44.
#[test]
fn azureus_at_a_nat44() {
    azureus(Deployment::Nat44);
}

// ── Shareaza ───────────────────────────────────────────────────────────────────────────────────────────────────────

/// Shareaza 2.5.4: GetSpecificPortMappingEntry; if the port is taken, an error without ever calling AddPortMapping.
fn shareaza(deployment: Deployment) {
    let Some(mut scene) = Scene::new(deployment) else { return };
    scene.finds_free_for_one_map(TCP, 6346);
    scene.adds_for_nothing(TCP, 6346, "Shareaza TCP");
    scene.adds_for_one_map(UDP, 6346, "Shareaza UDP");

    scene.neighbour_takes(TCP, 6347);
    scene.finds_for_nothing(TCP, 6347, Host::Lan2);
    scene.is_the_neighbours(TCP, 6347);

    scene.bench.other_takes(TCP, 6348);
    scene.finds_taken_for_one_map(TCP, 6348);
}

/// D-12, D-16, R-23…R-26, T-2, decisions 3, 4 and 6: at an AFTR.
#[test]
fn shareaza_at_an_aftr() {
    shareaza(Deployment::DsLite);
}

/// D-12, D-16, R-23…R-26, T-2, decisions 3, 4 and 6: at a NAT44.
#[test]
fn shareaza_at_a_nat44() {
    shareaza(Deployment::Nat44);
}

// ── eMule ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/// eMule 0.50a: AddPortMapping, TCP and UDP on different ports; on conflict, an error. At its end it deletes.
fn emule(deployment: Deployment) {
    let ports = [(TCP, 4662, "eMule_TCP_4662"), (UDP, 4672, "eMule_UDP_4672")];
    let Some(mut scene) = Scene::new(deployment) else { return };
    for (protocol, port, words) in ports {
        scene.adds_for_one_map(protocol, port, words);
    }

    scene.neighbour_takes(TCP, 4762);
    scene.conflicts_for_nothing(1, TCP, 4762, "eMule_TCP_4762");
    scene.is_the_neighbours(TCP, 4762);

    // The other transport protocol's port is its own story.
    scene.bench.other_takes(TCP, 4862);
    scene.conflicts_for_one_map(TCP, 4862, "eMule_TCP_4862");
    scene.adds_for_one_map(UDP, 4872, "eMule_UDP_4872");

    for (protocol, port, _) in ports {
        assert_eq!(scene.client.delete(protocol, port), Told::done());
        let delete = scene.bench.asked_once();
        assert!(delete.map.lifetime.is_zero() && delete.result() == SUCCESS, "{delete:#?}");
        reaches_nobody(scene.network(), protocol, port);
    }
}

/// D-12, D-16, R-18, R-20, R-29, decisions 3 and 4: at an AFTR.
#[test]
fn emule_at_an_aftr() {
    emule(Deployment::DsLite);
}

/// D-12, D-16, R-18, R-20, R-29, decisions 3 and 4: at a NAT44.
#[test]
fn emule_at_a_nat44() {
    emule(Deployment::Nat44);
}

// ── BitComet ───────────────────────────────────────────────────────────────────────────────────────────────────────

/// BitComet, of which no pattern is recorded: the plain one, AddPortMapping for TCP and UDP of one port.
fn bitcomet(deployment: Deployment) {
    const WORDS: &str = "BitComet";
    let Some(mut scene) = Scene::new(deployment) else { return };
    for protocol in [TCP, UDP] {
        scene.adds_for_one_map(protocol, 19955, WORDS);
    }
    // Started again without a delete.
    for protocol in [TCP, UDP] {
        scene.adds_for_nothing(protocol, 19955, WORDS);
    }

    scene.neighbour_takes(TCP, 19956);
    scene.conflicts_for_nothing(1, TCP, 19956, WORDS);
    scene.adds_for_one_map(UDP, 19956, WORDS);
    scene.is_the_neighbours(TCP, 19956);

    for protocol in [TCP, UDP] {
        scene.bench.other_takes(protocol, 19957);
        scene.conflicts_for_one_map(protocol, 19957, WORDS);
    }
}

/// D-12, D-16, R-18, R-20, decisions 3 and 4: at an AFTR.
#[test]
fn bitcomet_at_an_aftr() {
    bitcomet(Deployment::DsLite);
}

/// D-12, D-16, R-18, R-20, decisions 3 and 4: at a NAT44.
#[test]
fn bitcomet_at_a_nat44() {
    bitcomet(Deployment::Nat44);
}

// ── What a NAT in the router makes easier ──────────────────────────────────────────────────────────────────────────

/// Two external ports for one port inside, which PCP does not have.
fn a_second_external_port(deployment: Deployment) {
    let Some(mut scene) = Scene::new(deployment) else { return };
    let _listener = scene.bench.listeners(&[Host::Lan1], TCP, 7000);
    let internal = SocketAddrV4::new(LAN1, 7000);
    assert_eq!(scene.client.add(TCP, 8080, internal, 0, ""), Told::done());
    scene.bench.asked_once();
    let told = scene.client.add(TCP, 8081, internal, 0, "");
    if deployment == Deployment::DsLite {
        assert_eq!(told, Told::Refused(718));
        scene.bench.asked_nothing();
        reaches_nobody(scene.network(), TCP, 8081);
    } else {
        assert_eq!(told, Told::done());
        let second = scene.bench.asked_once();
        second.is_strict(TCP, 8081, FOR_EVER, SUCCESS);
        assert_ne!(second.map.internal_port, 7000, "another port of the router's NAT");
        reaches(scene.network(), TCP, 8081, "lan1");
    }
    reaches(scene.network(), TCP, 8080, "lan1");
}

/// T-3: without a NAT in the router that cannot be had.
#[test]
fn a_second_external_port_at_an_aftr() {
    a_second_external_port(Deployment::DsLite);
}

/// T-3: with one a second port of it stands in.
#[test]
fn a_second_external_port_at_a_nat44() {
    a_second_external_port(Deployment::Nat44);
}

/// The same external port for another port inside, from a server that holds what is freed.
fn an_overwritten_mapping(deployment: Deployment) {
    let Some(mut scene) = Scene::new(deployment) else { return };
    // Who answers says by which port it was reached.
    let _old = scene.bench.listeners(&[Host::Lan1], TCP, 7000);
    let _new = scene.bench.tagged(Host::Lan1, TCP, 7001, "new");
    assert_eq!(scene.client.add(TCP, 8080, SocketAddrV4::new(LAN1, 7000), 0, "old"), Told::done());
    scene.bench.asked_once();
    reaches(scene.network(), TCP, 8080, "lan1");
    let told = scene.client.add(TCP, 8080, SocketAddrV4::new(LAN1, 7001), 0, "new");
    if deployment == Deployment::DsLite {
        assert_eq!(told, Told::Refused(718));
        let asked = scene.bench.asked();
        let said: Vec<_> = asked
            .iter()
            .map(|one| (one.map.internal_port, one.map.lifetime.is_zero(), one.result()))
            .collect();
        let expected =
            [(7000, true, SUCCESS), (7001, false, CANNOT_PROVIDE_EXTERNAL), (7000, false, SUCCESS)];
        assert_eq!(said, expected, "deleted, held, and restored: {asked:#?}");
        reaches(scene.network(), TCP, 8080, "lan1");
    } else {
        assert_eq!(told, Told::done());
        scene.bench.asked_nothing();
        reaches(scene.network(), TCP, 8080, "new");
    }
}

/// T-4, D-15: without a NAT in the router it is another mapping, which meets the hold; the old one comes back.
#[test]
fn an_overwritten_mapping_at_an_aftr() {
    an_overwritten_mapping(Deployment::DsLite);
}

/// T-4, decision 9: with one only that is told.
#[test]
fn an_overwritten_mapping_at_a_nat44() {
    an_overwritten_mapping(Deployment::Nat44);
}

/// A question, which has no port inside, and then another port inside than the question supposed.
fn a_question_and_another_port(deployment: Deployment) {
    let Some(mut scene) = Scene::new(deployment) else { return };
    scene.finds_free_for_one_map(TCP, 8080);
    let _new = scene.bench.tagged(Host::Lan1, TCP, 7001, "new");
    let told = scene.client.add(TCP, 8080, SocketAddrV4::new(LAN1, 7001), 0, "");
    if deployment == Deployment::DsLite {
        assert_eq!(told, Told::Refused(718));
        let asked = scene.bench.asked();
        let said: Vec<_> = asked
            .iter()
            .map(|one| (one.map.internal_port, one.map.lifetime.is_zero(), one.result()))
            .collect();
        let expected = [(8080, true, SUCCESS), (7001, false, CANNOT_PROVIDE_EXTERNAL)];
        assert_eq!(said, expected, "given back, and held: {asked:#?}");
        reaches_nobody(scene.network(), TCP, 8080);
        assert_eq!(scene.bench.held(), []);
    } else {
        assert_eq!(told, Told::done());
        scene.bench.asked_nothing();
        reaches(scene.network(), TCP, 8080, "new");
    }
}

/// T-2, D-15: without a NAT in the router the question's own mapping is in the way, and then the hold.
#[test]
fn a_question_and_another_port_at_an_aftr() {
    a_question_and_another_port(Deployment::DsLite);
}

/// T-2: with one it leads to the other port.
#[test]
fn a_question_and_another_port_at_a_nat44() {
    a_question_and_another_port(Deployment::Nat44);
}
