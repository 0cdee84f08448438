//! A home behind a router that the provider has put there, which speaks UPnP and nothing else: two NATs, the outer one
//! controlled as an application would. Needs root, see [`lab::netns`].
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test isp_router
//! ```

mod common;

use common::{
    BOTH, CASCADED, ControlPoint, NAT, SECOND, TCP, UDP, interworking_subject, listener, reaches,
    reaches_nobody, ready, redirected_port,
};
use lab::netns::{EXTERNAL, Host, Network, OTHER, PROVIDER, Process, ROUTER_WAN};
use lab::provider::{Options, Provider};
use lab::subject;
use lab::wait::eventually;
use serde_json::Value;

const BAD_IGD: &str = env!("CARGO_BIN_EXE_lab-bad-igd");

/// What the running portferry says of itself; `Null` while it does not.
fn status(network: &Network) -> Value {
    subject::ask(network, "status").and_then(|said| serde_json::from_str(&said).ok()).unwrap_or(Value::Null)
}

#[test]
fn an_isp_router_that_speaks_upnp_alone() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let mut provider = Provider::start(&network, Options { upnp: true, ..Options::default() });
    let mut daemon = subject.start(&network, NAT, "");
    eventually("the router in front", 40 * SECOND, || {
        (status(&network)["protocol"] == "UPnP IGD").then_some(())
    });
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let told = status(&network);
    assert_eq!(told["server"], format!("{PROVIDER}:5000"));
    assert_eq!(
        (&told["uplink"], &told["external_address"]),
        (&"answering".into(), &EXTERNAL.to_string().into())
    );

    let _listeners = BOTH.map(|protocol| listener(&network, Host::Lan1, protocol, 8080));
    for (protocol, name) in [(TCP, "TCP"), (UDP, "UDP")] {
        control_point.adds(8080, 9090, name, 3600);
        reaches(&network, protocol, 9090, "lan1");
        let to = provider.forwarding(protocol, 9090).expect("it stands at the outer NAT");
        assert_eq!(*to.ip(), ROUTER_WAN);
    }
    control_point.deletes(9090, "UDP");
    reaches_nobody(&network, UDP, 9090);
    assert_eq!(provider.forwardings().len(), 1);
    control_point.adds(8080, 9090, "UDP", 0);

    // It starts anew and has forgotten everything, without a word.
    provider.stop();
    provider.forget();
    reaches_nobody(&network, TCP, 9090);
    provider.restart();
    eventually("both mappings again", 90 * SECOND, || (provider.forwardings().len() == 2).then_some(()));
    for protocol in BOTH {
        reaches(&network, protocol, 9090, "lan1");
    }

    daemon.terminate(20 * SECOND);
    assert_eq!(provider.forwardings(), [], "everything is given back");
}

/// Decision 20: another firmware, which speaks PCP, too, and has one list for both protocols; it keeps what is there. Everything stands by
/// PCP, and is given back by that.
#[test]
fn an_isp_router_that_learns_pcp() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let mut provider = Provider::start(&network, Options { upnp: true, ..Options::default() });
    let mut daemon = subject.start(&network, NAT, "");
    eventually("the router in front", 40 * SECOND, || {
        (status(&network)["protocol"] == "UPnP IGD").then_some(())
    });
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    control_point.adds(8080, 9090, "TCP", 0);
    control_point.adds(8081, 9091, "TCP", 0);

    provider.stop();
    provider.learn_pcp();
    network.run(Host::Router, "ip", ["link", "set", "wan0", "down"]);
    provider.restart();
    network.run(Host::Router, "ip", ["link", "set", "wan0", "up"]);
    let router = PROVIDER.to_string();
    network.run(Host::Router, "ip", ["route", "replace", "default", "via", &router, "dev", "wan0"]);
    eventually("PCP", 40 * SECOND, || {
        let listed = subject::listed(&network)?;
        let active = listed.iter().filter(|one| one.state == "active").count();
        (active == 2 && status(&network)["protocol"] == "PCP").then_some(())
    });
    let ports: Vec<u16> =
        subject::listed(&network).expect("it runs").iter().map(|one| one.external.port()).collect();
    assert_eq!(ports, [9090, 9091]);
    reaches(&network, TCP, 9090, "lan1");
    control_point.deletes(9091, "TCP");
    daemon.terminate(20 * SECOND);
    assert_eq!(provider.forwardings(), [], "everything is given back");
}

/// kill -9, and a life after it: nothing is left that nobody knows.
#[test]
fn a_crash_behind_an_isp_router() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let provider = Provider::start(&network, Options { upnp: true, ..Options::default() });
    let mut daemon = subject.start(&network, NAT, "service_wait = 1.0\n");
    eventually("the router in front", 40 * SECOND, || {
        (status(&network)["protocol"] == "UPnP IGD").then_some(())
    });
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    control_point.adds(8080, 9090, "TCP", 0);
    daemon.signal("KILL");
    daemon.wait(5 * SECOND);
    let mut daemon = subject.start(&network, NAT, "service_wait = 1.0\n");
    eventually("the mapping again", 40 * SECOND, || {
        let listed = subject::listed(&network)?;
        (listed.len() == 1 && listed[0].state == "active" && status(&network)["protocol"] == "UPnP IGD")
            .then_some(())
    });
    reaches(&network, TCP, 9090, "lan1");
    daemon.terminate(20 * SECOND);
    assert_eq!(provider.forwardings(), []);
}

fn bad_igd(network: &Network, host: Host, own: &str, location: &str, mode: &str) -> Process {
    let mut process = network.spawn(host, &format!("bad-{mode}"), BAD_IGD, [own, location, mode]);
    process.await_log("listening", 5 * SECOND);
    process
}

/// A neighbour on the WAN that answers searches, and a default router that is hostile itself: counted, and nothing comes of it.
#[test]
fn hostile_answers() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let (router, neighbour) = (PROVIDER.to_string(), OTHER.to_string());
    let [by_router, by_neighbour] = [&router, &neighbour].map(|host| format!("http://{host}:5000/desc.xml"));
    let mut daemon = subject.start(&network, NAT, "");
    let mut ignored = 0;
    for (host, own, location, mode, asked) in [
        (Host::Other, &neighbour, &by_neighbour, "neighbour", false),
        (Host::Provider, &router, &by_neighbour, "location", false),
        (Host::Provider, &router, &by_router, "endless", true),
        (Host::Provider, &router, &by_router, "deep", true),
        (Host::Provider, &router, &by_router, "entities", true),
        (Host::Provider, &router, &by_router, "redirect", true),
        (Host::Provider, &router, &by_router, "elsewhere", true),
    ] {
        let bad = bad_igd(&network, host, own, location, mode);
        // The first search comes by itself, the others as soon as the WAN comes again.
        network.run(Host::Router, "ip", ["link", "set", "wan0", "down"]);
        eventually("the WAN is down", 10 * SECOND, || {
            (status(&network)["wan"]["addresses"].as_array()?.is_empty()).then_some(())
        });
        network.run(Host::Router, "ip", ["link", "set", "wan0", "up"]);
        network.run(Host::Router, "ip", ["route", "replace", "default", "via", &router, "dev", "wan0"]);
        let requests = |log: &str| log.lines().filter(|line| line.starts_with("asked ")).count();
        eventually(&format!("{mode} is ignored"), 60 * SECOND, || {
            assert_eq!(daemon.ended(), None, "the daemon lives");
            let log = bad.log();
            let now = status(&network)["ignored_upstream"].as_u64()?;
            let searched = log.contains("searched from 100.64.0.2:") && (!asked || requests(&log) > 0);
            // A control URL that leads elsewhere is no router, and no datagram.
            (searched && (now > ignored || mode == "elsewhere")).then(|| ignored = now)
        });
        let log = bad.log();
        assert_eq!(asked, requests(&log) > 0, "{mode}: {log}");
        assert!(requests(&log) <= 2, "no redirect is followed, nothing is asked twice: {log}");
        let told = status(&network);
        assert_ne!(told["protocol"], "UPnP IGD", "{mode}");
        assert_eq!((&told["uplink"], &told["external_address"]), (&"silent".into(), &Value::Null), "{mode}");
    }
    daemon.terminate(20 * SECOND);
}

/// A router in front whose own address is of another NAT: that is shown, and no application is told that it could be reached.
#[test]
fn an_isp_router_behind_another_nat() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let router = PROVIDER.to_string();
    let _bad =
        bad_igd(&network, Host::Provider, &router, &format!("http://{router}:5000/desc.xml"), "private");
    let mut daemon = subject.start(&network, NAT, "");
    let told = eventually("another NAT above", 40 * SECOND, || {
        let told = status(&network);
        (told["nat_above"] == "10.1.2.3").then_some(told)
    });
    assert_eq!((&told["protocol"], &told["external_address"]), (&"UPnP IGD".into(), &Value::Null));
    let control_point = ControlPoint { network: &network, host: Host::Lan1, location: None };
    let answer = control_point.add("-a", 8080, 9090, "TCP", 3600);
    assert_eq!(redirected_port(&answer, "TCP"), None, "{answer}");
    assert_eq!(subject::listed(&network), Some(Vec::new()));
    daemon.terminate(20 * SECOND);
}
