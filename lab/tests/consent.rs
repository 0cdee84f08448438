//! `policy.default = "ask"`, rules and their reload (docs/policy.md), with real applications and a real neighbour table. Real processes in
//! network namespaces as in `end_to_end`, so it needs root.
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test consent
//! ```

mod common;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

use common::{
    CASCADED, Caller, ControlPoint, NAT, SECOND, TCP, Told, interworking_subject, listener, pcp, reaches,
    reaches_nobody, ready,
};
use lab::netns::{Host, LAN1, LAN2, Network, Process, ROUTER_LAN};
use lab::provider::{Options, Provider};
use lab::subject::{self, Subject, listed};
use lab::wait::eventually;
use serde_json::{Value, json};

const ASK: &str = "[policy]\ndefault = \"ask\"\n";

/// What the control socket answers.
fn asks(network: &Network, question: &str) -> Value {
    let answer = subject::ask(network, question).expect("the daemon answers");
    serde_json::from_str(&answer).expect("JSON")
}

/// With this `[policy]` from now on.
fn reloads(network: &Network, daemon: &Process, policy: &str) {
    let before = daemon.log().matches("read again").count();
    let text = subject::configuration(network, NAT, policy);
    std::fs::write(network.directory().join("portferry.toml"), text).expect("the directory is ours");
    daemon.signal("HUP");
    eventually("the configuration is read", 10 * SECOND, || {
        (daemon.log().matches("read again").count() > before).then_some(())
    });
}

fn at(host: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(host, port)
}

#[test]
fn a_new_host_waits_for_the_owner() {
    let Some(subject) = interworking_subject() else { return };
    let Subject::Portferry(program) = &subject else { return };
    let program: &Path = program;
    let network = Network::new(CASCADED);
    let provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, ASK);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let add = |control_point: &ControlPoint<'_>, version, port| {
        Caller::new(control_point, version).add(TCP, port, at(LAN1, 8080), 3600, "consent")
    };
    let by_pcp = || pcp(&network, Host::Lan2, program, ROUTER_LAN.into(), "map tcp 8080 9091");
    assert_eq!(add(&control_point, 1, 9090), Told::Refused(718));
    assert_eq!(add(&control_point, 2, 9092), Told::Refused(606));
    assert_eq!(by_pcp()["result"]["name"], "NOT_AUTHORIZED");

    // Each is known by its network card.
    let consents = asks(&network, "consents");
    assert_eq!((&consents["asks"], consents["waiting"].as_array().map(Vec::len)), (&json!(true), Some(2)));
    let [one, two] = [LAN1, LAN2].map(|host| {
        let all = consents["waiting"].as_array().expect("checked above");
        let found = all.iter().find(|waiting| waiting["address"] == json!(host)).expect("it waits");
        found["device"].as_str().expect("text").to_owned()
    });
    assert!(one.len() == 17 && two.len() == 17 && one != two, "{one} {two}");
    assert!(listed(&network).expect("the daemon answers").is_empty());
    assert!(
        daemon.log().contains(&format!("{LAN1} ({one}) asks for a port and waits for you")),
        "{}",
        daemon.log()
    );

    // By its address, or by its network card, it is the same one.
    let told = asks(&network, &format!("consent allow {LAN1}"));
    assert_eq!((&told["device"], &told["stored"]), (&json!(one), &json!(true)));
    assert_eq!(add(&control_point, 1, 9090), Told::done());
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    reaches(&network, TCP, 9090, "lan1");
    assert_eq!(by_pcp()["result"]["name"], "NOT_AUTHORIZED");
    asks(&network, &format!("consent allow {two}"));
    assert_eq!(by_pcp()["outcome"], "granted");
    let told = asks(&network, &format!("consent deny {LAN2}"));
    assert_eq!((&told["device"], &told["released"]), (&json!(two), &json!(1)));
    eventually("the provider has it back", 10 * SECOND, || {
        provider.forwarding(TCP, 9091).is_none().then_some(())
    });
    reaches_nobody(&network, TCP, 9091);

    // A restart knows.
    assert!(daemon.terminate(30 * SECOND).success());
    let mut daemon = subject.start(&network, NAT, ASK);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    assert_eq!(add(&control_point, 2, 9093), Told::done());
    assert_eq!(by_pcp()["result"]["name"], "NOT_AUTHORIZED");
    let consents = asks(&network, "consents");
    assert_eq!((&consents["waiting"], consents["decided"].as_array().map(Vec::len)), (&json!([]), Some(2)));

    // A rule that is written now counts for what stands.
    let rule = format!("deny 0-65535 {LAN1} 0-65535");
    reloads(&network, &daemon, &format!("{ASK}rules = [\"{rule}\"]\n"));
    eventually("the provider has it back", 10 * SECOND, || {
        provider.forwarding(TCP, 9093).is_none().then_some(())
    });
    assert!(listed(&network).expect("the daemon answers").is_empty());
    assert_eq!(daemon.log().matches("policy does not allow it any more").count(), 2, "{}", daemon.log());
    assert_eq!(add(&control_point, 2, 9093), Told::Refused(606));
    let status = asks(&network, "status");
    let refused = status["refused"].as_array().expect("there are some");
    let by_rule: Vec<_> = refused.iter().filter(|one| one["reason"] == "rule").collect();
    assert_eq!(by_rule.len(), 1, "{refused:?}");
    assert_eq!((&by_rule[0]["times"], &by_rule[0]["last_by"]), (&json!(1), &json!(LAN1)));
    assert!(daemon.terminate(30 * SECOND).success());
}
