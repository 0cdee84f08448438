//! Every kind of uplink that a router is put behind, with real software at the other end. Needs root, see [`lab::netns`].
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test uplinks
//! ```

mod common;

use common::{
    BOTH, CASCADED, NAT, SECOND, TCP, interworking_subject, listener, reaches, reaches_nobody, ready,
};
use lab::netns::{EXTERNAL, Host, Network, ROUTER_WAN};
use lab::provider::{Options, Provider};
use lab::subject::Subject;
use lab::wait::eventually;
use serde_json::Value;

/// What `portferry status --json` says in the router.
fn status(network: &Network, subject: &Subject) -> Value {
    let Subject::Portferry(program) = subject else { panic!("only portferry is asked") };
    let socket = network.directory().join("control.sock").display().to_string();
    let said = network.run(Host::Router, program, ["status", "--json", "--socket", &socket]);
    serde_json::from_str(&said).expect("JSON")
}

/// A gateway from before PCP: whatever begins with PCP's version meets silence.
fn without_pcp(network: &Network) {
    network.nft(
        Host::Provider,
        "table inet before-pcp {\n chain input {\n  type filter hook input priority 0\n  udp dport 5351 @th,64,8 2 drop\n }\n}\n",
    );
}

/// Decision 20: a gateway that speaks NAT-PMP alone. Applications notice nothing.
#[test]
fn a_provider_that_speaks_nat_pmp_alone() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    without_pcp(&network);
    let mut provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let told = status(&network, &subject);
    assert_eq!((&told["protocol"], &told["uplink"]), (&"NAT-PMP".into(), &"answering".into()), "{told:#}");
    assert_eq!(told["external_address"], EXTERNAL.to_string());
    let _listeners = BOTH.map(|protocol| listener(&network, Host::Lan1, protocol, 8080));
    for protocol in BOTH {
        control_point.adds(8080, 9090, if protocol == TCP { "TCP" } else { "UDP" }, 3600);
        reaches(&network, protocol, 9090, "lan1");
    }
    let upstream = provider.forwardings();
    assert_eq!(upstream.iter().filter(|one| one.external_port == 9090).count(), 2, "{upstream:?}");
    assert!(upstream.iter().all(|one| *one.to.ip() == ROUTER_WAN), "{upstream:?}");
    control_point.deletes(9090, "UDP");
    assert_eq!(provider.forwardings().len(), 1);

    // Another firmware: it has learned PCP, and forgotten its mappings. It is asked by that from then on.
    network.nft(Host::Provider, "delete table inet before-pcp\n");
    provider.stop();
    provider.forget();
    provider.restart();
    eventually("PCP", 15 * SECOND, || {
        control_point.adds(7070, 7070, "TCP", 3600);
        (status(&network, &subject)["protocol"] == "PCP").then_some(())
    });
    eventually("all mappings", 15 * SECOND, || {
        let ports: Vec<u16> = provider.forwardings().iter().map(|one| one.external_port).collect();
        (ports.contains(&7070) && ports.contains(&9090)).then_some(())
    });
    reaches(&network, TCP, 9090, "lan1");
    daemon.terminate(10 * SECOND);
    reaches_nobody(&network, TCP, 9090);
    assert_eq!(provider.forwardings().len(), 0, "everything is given back");
}
