//! The daemon among real neighbours: control points (libminiupnpc, igd-next) on a LAN, a PCP server (miniupnpd) at the
//! provider, and somebody on the Internet who wants to get in. Needs root, see [`lab::netns`]; which daemon is tested says
//! [`lab::subject`].
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test end_to_end
//! PF_SUBJECT=miniupnpd cargo test -p lab --test end_to_end      # the competition, where the question makes sense to it
//! PF_LAB=skip cargo test                                        # root, but no laboratory
//! ```
//!
//! The tests wait more than they compute: `-- --test-threads=6` halves the minute they take on two processors. A test that
//! fails prints the logs of all that took part.

mod common;

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;

use common::{
    BOTH, CASCADED, ControlPoint, NAT, NO_NAT, PROBE, ROUTED, SECOND, TCP, UDP, answers,
    interworking_subject, listener, name, now, reaches, reaches_nobody, ready, redirected_port, requests,
    skipped, subject, try_reach,
};
use lab::capture::{Capture, MapMessage, Packet};
use lab::netns::{
    self, EXTERNAL, Host, LAN1, LAN2, Layout, Network, PROVIDER, Process, ROUTER_LAN, ROUTER_WAN,
    WAN_INTERFACE,
};
use lab::provider::{Options, Provider};
use lab::subject::{self, HTTP_PORT, Subject};
use lab::wait::eventually;

const IGD_NEXT: &str = env!("CARGO_BIN_EXE_lab-igd-next");

// ── What a control point sees ──────────────────────────────────────────────────────────────────────────────────────

/// R-2: a control point that knows nothing of PCP, against a PCP server that knows nothing of IGD.
#[test]
fn upnpc_adds_lists_refreshes_and_deletes() {
    let Some(subject) = subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let mut control_point = ready(&network, &mut daemon, Host::Lan1);
    control_point.location = None; // discovers anew with each command, as it is made to

    for protocol in ["TCP", "UDP"] {
        control_point.adds(8080, 8080, protocol, 3600);
        control_point.adds(8080, 8080, protocol, 3600); // refreshed
    }
    let list = control_point.upnpc(&["-l"]);
    assert!(list.contains(&format!("ExternalIPAddress = {EXTERNAL}")), "{list}");
    for protocol in ["TCP", "UDP"] {
        let entries: Vec<_> =
            list.lines().filter(|line| line.contains(&format!("{protocol}  8080->{LAN1}:8080"))).collect();
        assert_eq!(entries.len(), 1, "one entry for {protocol}\n{list}");
    }
    control_point.deletes(8080, "TCP");
    let list = control_point.upnpc(&["-l"]);
    assert!(!list.contains("TCP  8080->") && list.contains("UDP  8080->"), "{list}");
    control_point.deletes(8080, "UDP");
    let again = control_point.upnpc(&["-d", "8080", "UDP"]);
    // miniupnpd says yes to that.
    assert!(again.contains("714") || !subject.interworks(), "nothing is left to delete: {again}");
}

/// R-2, with another control point. R-16: `add-any` hears of the port that was assigned.
#[test]
fn igd_next_finds_adds_and_removes() {
    let Some(subject) = subject() else { return };
    let network = Network::new(CASCADED);
    let provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let _control_point = ready(&network, &mut daemon, Host::Lan1);
    let igd_next = |arguments: &[&str]| network.run(Host::Lan2, IGD_NEXT, arguments).trim().to_owned();
    let internal = format!("{LAN2}:7070");

    assert_eq!(igd_next(&["address"]), EXTERNAL.to_string());
    assert_eq!(igd_next(&["add", "tcp", "7070", &internal, "3600"]), "added");
    let port: u16 = igd_next(&["add-any", "udp", &internal, "3600"]).parse().expect("a port");
    if subject.interworks() {
        let _listeners =
            [listener(&network, Host::Lan2, TCP, 7070), listener(&network, Host::Lan2, UDP, 7070)];
        reaches(&network, TCP, 7070, "lan2");
        reaches(&network, UDP, port, "lan2");
    }
    assert_eq!(igd_next(&["remove", "tcp", "7070"]), "removed");
    assert_eq!(igd_next(&["remove", "udp", &port.to_string()]), "removed");
    assert_eq!(provider.forwarding(TCP, 7070), None);
    assert_eq!(provider.forwarding(UDP, port), None);
    let again =
        network.command(Host::Lan2, IGD_NEXT).args(["remove", "tcp", "7070"]).output().expect("it runs");
    assert!(!again.status.success() || !subject.interworks(), "nothing is left: {}", netns::text(&again));
}

// ── What the Internet sees ─────────────────────────────────────────────────────────────────────────────────────────

/// R-1, R-13, R-14, with packets from the Internet.
#[test]
fn a_mapping_leads_to_its_host_and_nowhere_else() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    leads_to_its_host_and_nowhere_else(&network, &mut daemon);
    assert!(!provider.forwardings().iter().any(|f| f.external_port == 8080), "deleted upstream");
}

/// R-1, R-12, D-3: the same without a NAT in the router; nobody can tell.
#[test]
fn without_a_nat_a_mapping_leads_to_its_host_and_nowhere_else() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(ROUTED);
    let provider = Provider::start(&network, Options { third_party: true, ..Options::default() });
    let mut daemon = subject.start(&network, NO_NAT, "");
    leads_to_its_host_and_nowhere_else(&network, &mut daemon);
    assert!(!provider.forwardings().iter().any(|f| f.external_port == 8080), "deleted upstream");
}

fn leads_to_its_host_and_nowhere_else(network: &Network, daemon: &mut Process) {
    let control_point = ready(network, daemon, Host::Lan1);
    let _mapped = BOTH.map(|protocol| listener(network, Host::Lan1, protocol, 8080));
    let _unmapped = BOTH.map(|protocol| listener(network, Host::Lan1, protocol, 8081));
    let others = BOTH.map(|protocol| listener(network, Host::Lan2, protocol, 8080));

    for (protocol, name) in [(TCP, "TCP"), (UDP, "UDP")] {
        reaches_nobody(network, protocol, 8080);
        control_point.adds(8080, 8080, name, 3600);
        reaches(network, protocol, 8080, "lan1");
        control_point.adds(8080, 8080, name, 3600);
        reaches(network, protocol, 8080, "lan1");
        reaches_nobody(network, protocol, 8081);
    }
    // Another internal port than the external one.
    let _another = listener(network, Host::Lan1, TCP, 8082);
    control_point.adds(8082, 9090, "TCP", 3600);
    reaches(network, TCP, 9090, "lan1");
    reaches(network, TCP, 8080, "lan1");
    control_point.deletes(9090, "TCP");
    reaches_nobody(network, TCP, 9090);

    for (protocol, name) in [(TCP, "TCP"), (UDP, "UDP")] {
        reaches(network, protocol, 8080, "lan1");
        control_point.deletes(8080, name);
        reaches_nobody(network, protocol, 8080);
    }
    for other in &others {
        assert_eq!(other.log(), "listening\n", "lan2 got what was sent to lan1");
    }
}

#[test]
fn a_lease_ends_with_the_lifetime_that_the_provider_granted() {
    a_lease_ends(4);
}

#[test]
fn a_lease_ends_before_the_lifetime_that_the_provider_granted() {
    a_lease_ends(120);
}

/// On a provider that grants at least `min_lifetime` seconds.
fn a_lease_ends(min_lifetime: u32) {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let provider = Provider::start(&network, Options { min_lifetime, ..Options::default() });
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    let wire = Capture::start(&network, Host::Provider, "cust0", "udp port 5351");

    control_point.adds(8080, 8080, "TCP", 8);
    let added = eventually("the MAP request", 5 * SECOND, || requests(&wire, TCP).into_iter().next()).0.at;
    reaches(&network, TCP, 8080, "lan1");
    let ended = eventually("the end of the lease", 20 * SECOND, || {
        // A slow machine may miss one answer; the lease has ended when there are no more at all.
        let first_miss = (!try_reach(&network, TCP, 8080)).then(now)?;
        (0..2).all(|_| !try_reach(&network, TCP, 8080)).then_some(first_miss)
    });
    let lasted = ended - added;
    // miniupnpd counts in whole seconds of its clock, and takes the running one for a full one.
    let least = Duration::from_millis(if min_lifetime <= 8 { 6_900 } else { 7_500 });
    assert!(lasted > least, "a lease of 8 s ended after {lasted:?}");
    eventually("the end upstream", 10 * SECOND, || provider.forwarding(TCP, 8080).is_none().then_some(()));
    let list = control_point.upnpc(&["-l"]);
    assert!(!list.contains("8080->"), "{list}");
}

/// T-3.
#[test]
fn two_external_ports_lead_to_one_internal_port() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    // PCP knows one mapping for each internal port; the router's NAT has others to offer (spec/iwf.md, T-3).
    control_point.adds(8080, 8080, "TCP", 3600);
    control_point.adds(8080, 9090, "TCP", 3600);
    reaches(&network, TCP, 8080, "lan1");
    reaches(&network, TCP, 9090, "lan1");
    control_point.deletes(8080, "TCP");
    reaches_nobody(&network, TCP, 8080);
    reaches(&network, TCP, 9090, "lan1");
}

// ── Ports that are not to be had ───────────────────────────────────────────────────────────────────────────────────

/// D-12, decision 3: refused here, not one packet goes upstream.
#[test]
fn a_port_that_another_lan_host_holds_is_a_conflict() {
    let Some(subject) = subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let holder = ready(&network, &mut daemon, Host::Lan1);
    let second = ControlPoint { host: Host::Lan2, ..holder.clone() };
    holder.adds(8080, 8080, "TCP", 3600);
    let wire = Capture::start(&network, Host::Provider, "cust0", "udp port 5351");

    let refused = second.add("-a", 8080, 8080, "TCP", 3600);
    assert!(refused.contains("failed with code 718"), "{refused}");
    assert_eq!(requests(&wire, TCP), [], "known here, not asked there");
    let any = second.add("-n", 8080, 8080, "TCP", 3600);
    let port = redirected_port(&any, "TCP").unwrap_or_else(|| panic!("{any}"));
    assert_ne!(port, 8080, "{any}");
    second.deletes(port, "TCP");
    holder.deletes(8080, "TCP");
    second.adds(8080, 8080, "TCP", 3600);
}

/// T-6, decision 5: the provider's server answers SUCCESS with another port; 718, and that one is given back.
#[test]
fn a_port_that_another_subscriber_holds_is_a_conflict() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    let held = network.run(
        Host::Other,
        "natpmpc",
        ["-g", &PROVIDER.to_string(), "-a", "8080", "8080", "tcp", "600"],
    );
    assert!(held.contains("Mapped public port 8080"), "{held}");

    let refused = control_point.add("-a", 8080, 8080, "TCP", 3600);
    assert!(refused.contains("failed with code 718"), "{refused}");
    eventually("the end of the stray mapping", 10 * SECOND, || {
        provider.forwardings().iter().all(|f| f.external_port == 8080 || f.protocol != TCP).then_some(())
    });
    control_point.adds(8080, 8080, "UDP", 3600); // the other protocol is free

    let any = control_point.add("-n", 8080, 8080, "TCP", 3600);
    let port = redirected_port(&any, "TCP").unwrap_or_else(|| panic!("{any}"));
    assert_ne!(port, 8080, "{any}");
    reaches(&network, TCP, port, "lan1");
    let holder = provider.forwarding(TCP, 8080).map(|to| *to.ip());
    assert_eq!(holder, Some(netns::OTHER), "the other subscriber keeps its port");
}

/// R-20: CANNOT_PROVIDE_EXTERNAL.
#[test]
fn a_port_that_the_provider_denies_is_a_conflict() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    // These rules make miniupnpd answer CANNOT_PROVIDE_EXTERNAL to PREFER_FAILURE.
    let rules = "deny 8000-8099 0.0.0.0/0 0-65535\nallow 1024-65535 0.0.0.0/0 0-65535\ndeny 0-65535 0.0.0.0/0 0-65535";
    let provider = Provider::start(&network, Options { rules, ..Options::default() });
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let _listener = listener(&network, Host::Lan1, TCP, 8080);

    let refused = control_point.add("-a", 8080, 8080, "TCP", 3600);
    assert!(refused.contains("failed with code 718"), "{refused}");
    let any = control_point.add("-n", 8080, 8080, "TCP", 3600);
    let port = redirected_port(&any, "TCP").unwrap_or_else(|| panic!("{any}"));
    reaches(&network, TCP, port, "lan1");
    control_point.deletes(port, "TCP");
    assert!(provider.forwardings().iter().all(|f| f.protocol != TCP), "{:?}", provider.forwardings());
}

// ── Lifetimes ──────────────────────────────────────────────────────────────────────────────────────────────────────

/// R-32, R-33, decision 14; R-4: the nonce stays.
#[test]
fn a_mapping_is_renewed_in_time_and_outlives_its_lifetimes() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider =
        Provider::start(&network, Options { min_lifetime: 4, max_lifetime: 24, ..Options::default() });
    let mut daemon = subject.start(&network, NAT, "");
    let first = renewed_in_time_and_outlives_its_lifetimes(&network, &mut daemon, 24 * SECOND);
    assert_eq!(first.option(1), None, "the router's own address needs no THIRD_PARTY");
}

/// R-32, R-33, decision 22: by THIRD_PARTY.
#[test]
fn without_a_nat_a_mapping_is_renewed_for_its_host() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(ROUTED);
    let options = Options { min_lifetime: 4, max_lifetime: 16, third_party: true, ..Options::default() };
    let _provider = Provider::start(&network, options);
    let mut daemon = subject.start(&network, NO_NAT, "");
    let first = renewed_in_time_and_outlives_its_lifetimes(&network, &mut daemon, 16 * SECOND);
    assert_eq!(first.third_party(), Some(LAN1));
    assert_eq!(first.internal_port, 8080);
}

/// The first request.
fn renewed_in_time_and_outlives_its_lifetimes(
    network: &Network,
    daemon: &mut Process,
    lifetime: Duration,
) -> MapMessage {
    let control_point = ready(network, daemon, Host::Lan1);
    let _listener = listener(network, Host::Lan1, TCP, 8080);
    let wire = Capture::start(network, Host::Provider, "cust0", "udp port 5351");
    control_point.adds(8080, 8080, "TCP", 3600);

    let (granted, grant) = eventually("the grant", 5 * SECOND, || answers(&wire, TCP).into_iter().next());
    assert_eq!((grant.result, grant.lifetime), (0, lifetime));
    let (renewal, second) = eventually("a renewal", lifetime, || {
        requests(&wire, TCP).into_iter().find(|(packet, _)| packet.at > granted.at)
    });
    let (_, first) = requests(&wire, TCP).remove(0);
    let after = renewal.at - granted.at;
    // Of the window from 1/2 to 5/8 (RFC 6887 §11.2.1); a loaded machine may be late, but not as late as the second
    // window, which begins at 3/4.
    let window = lifetime.mul_f64(0.495)..lifetime.mul_f64(0.625) + lifetime / 10;
    assert!(window.contains(&after), "renewed after {after:?} of {lifetime:?}");
    assert_eq!(second.client, Some(ROUTER_WAN.into()));
    assert_eq!(first.client, second.client);
    assert_eq!(first.nonce, second.nonce);
    assert_eq!(first.internal_port, second.internal_port);
    assert_eq!(first.third_party(), second.third_party());
    assert_eq!(second.external_port, 8080, "suggests what was assigned");
    assert_eq!(second.external_address, Some(EXTERNAL), "suggests what was assigned");

    // Past the end of the first lifetime it still works.
    eventually("the end of the first lifetime", lifetime, || {
        (now() > granted.at + lifetime + SECOND).then_some(())
    });
    reaches(network, TCP, 8080, "lan1");
    first
}

/// R-7, decisions 1 and 2.
#[test]
fn a_silent_provider_costs_neither_patience_nor_others() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    control_point.adds(8080, 8080, "TCP", 3600);
    // igd-next asks for nothing but the mapping; upnpc would ask what became of it, and wait a second time.
    let add = || {
        let arguments = ["add", "tcp", "9090", &format!("{LAN2}:9090"), "3600"];
        netns::text(&network.command(Host::Lan2, IGD_NEXT).args(arguments).output().expect("it runs"))
    };
    provider.freeze();

    std::thread::scope(|scope| {
        let answer = scope.spawn(|| {
            let asked = now();
            (add(), now() - asked)
        });
        let asked = now();
        while now() < asked + 2 * SECOND {
            let (before, list) = (now(), control_point.upnpc(&["-l"]));
            assert!(list.contains("8080->"), "{list}");
            // Whole processes on a machine that may be busy; the wait for the provider would be 3.5 s for each question.
            assert!(now() < before + 5 * SECOND, "what needs no provider waits for none");
        }
        let (answer, after) = answer.join().expect("it doesn't panic");
        assert!(answer.contains("501"), "{answer}");
        // The gateway answers after 3.5 s; what is above that is the start of a process on a busy machine.
        assert!(after < 15 * SECOND, "answered after {after:?}");
    });
    provider.thaw();
    eventually("service", 20 * SECOND, || add().contains("added").then_some(()));
}

/// R-38, decision 16: a real server's ANNOUNCE.
#[test]
fn a_provider_that_lost_its_mappings_gets_them_again() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let mut provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    control_point.adds(8080, 8080, "TCP", 3600);
    reaches(&network, TCP, 8080, "lan1");

    provider.stop();
    provider.forget();
    assert!(!try_reach(&network, TCP, 8080));
    provider.restart(); // which announces epoch 0 to 224.0.0.1:5350
    eventually("the mapping's return", 20 * SECOND, || provider.forwarding(TCP, 8080));
    reaches(&network, TCP, 8080, "lan1");
}

// ── The edges ──────────────────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn a_bad_neighbour_on_the_lan_changes_nothing() {
    let Some(subject) = subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let mut control_point = ready(&network, &mut daemon, Host::Lan1);

    let http = format!("{ROUTER_LAN}:{HTTP_PORT}");
    let requests = bad_http(&control_point.control_path("WANIPConnection"));
    let lines = blast(&network, Host::Lan1, &["tcp-blast", &http], &requests);
    let lines: Vec<_> = lines.lines().collect();
    assert_eq!(lines.len(), requests.len());
    let beginning =
        |request: &[u8]| String::from_utf8_lossy(&request[..request.len().min(1_000)]).into_owned();
    let served = lines.iter().zip(&requests).filter(|(line, _)| line.contains(" 200"));
    let served: Vec<_> = served.map(|(line, request)| (line, beginning(request))).collect();
    assert!(served.is_empty() || !subject.interworks(), "bad and served: {served:#?}");
    assert_eq!(daemon.ended(), None, "alive after bad HTTP");

    for to in ["239.255.255.250:1900".to_owned(), format!("{ROUTER_LAN}:1900")] {
        blast(&network, Host::Lan1, &["udp-blast", "0.0.0.0:0", &to], &bad_ssdp());
    }
    assert_eq!(daemon.ended(), None, "alive after bad SSDP");

    let pcp = format!("{ROUTER_LAN}:5351");
    blast(&network, Host::Lan1, &["udp-blast", "0.0.0.0:0", &pcp], &bad_pcp(0x01, LAN1));
    assert_eq!(daemon.ended(), None, "alive after bad PCP");

    control_point.location = None;
    control_point.adds(8080, 8080, "TCP", 3600);
    control_point.deletes(8080, "TCP");
}

#[test]
fn a_mad_provider_changes_nothing() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let mut provider = Provider::start(&network, Options::default());
    let wire = Capture::start(&network, Host::Provider, "cust0", "udp port 5351");
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    control_point.adds(8080, 8080, "TCP", 3600);

    let (request, map) =
        eventually("the MAP request", 5 * SECOND, || requests(&wire, TCP).into_iter().next());
    provider.stop(); // its port is ours now
    let from = format!("{PROVIDER}:5351");
    for to in [request.source.to_string(), format!("{ROUTER_WAN}:5350"), format!("{ROUTER_WAN}:5351")] {
        blast(&network, Host::Provider, &["udp-blast", &from, &to], &bad_pcp(0x81, ROUTER_WAN));
    }
    // The real nonce helps neither a wrong internal port nor a wrong sender.
    let mut forged = request.payload.clone();
    forged[1] |= 0x80;
    forged[40..42].copy_from_slice(&map.internal_port.wrapping_add(1).to_be_bytes());
    blast(&network, Host::Provider, &["udp-blast", &from, &request.source.to_string()], &[forged]);
    let elsewhere = [&[2, 0x81, 0, 11][..], &[0; 20], &request.payload[24..]].concat();
    blast(&network, Host::Other, &["udp-blast", "0.0.0.0:0", &request.source.to_string()], &[elsewhere]);
    assert_eq!(daemon.ended(), None, "alive after bad PCP");
    provider.restart();

    let list = control_point.upnpc(&["-l"]);
    assert!(list.contains(&format!("TCP  8080->{LAN1}:8080")), "{list}");
    reaches(&network, TCP, 8080, "lan1");
    control_point.adds(9090, 9090, "TCP", 3600);
    assert_eq!(provider.forwarding(TCP, 9090).map(|to| *to.ip()), Some(ROUTER_WAN));
}

#[test]
fn a_lan_that_appears_later_is_served() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(Layout { lan: false, ..CASCADED });
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let socket = network.directory().join("control.sock");
    eventually("the control socket", 10 * SECOND, || socket.exists().then_some(()));
    network.add_lan();
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    control_point.adds(8080, 8080, "TCP", 3600);
    assert_eq!(daemon.ended(), None);
}

#[test]
fn a_wan_that_goes_and_comes_back_is_used_again() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let provider = Provider::start(&network, Options::default());
    let ip = |arguments: &[&str]| network.run(Host::Router, "ip", arguments);
    ip(&["link", "set", WAN_INTERFACE, "down"]);
    let mut daemon = subject.start(&network, NAT, "");
    daemon.await_log("is down or has no IPv4 address", 10 * SECOND);
    ip(&["link", "set", WAN_INTERFACE, "up"]);
    ip(&["route", "replace", "default", "via", &PROVIDER.to_string()]); // it went with the link
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    control_point.adds(8080, 8080, "TCP", 3600);
    assert_eq!(provider.forwarding(TCP, 8080).map(|to| *to.ip()), Some(ROUTER_WAN));
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    reaches(&network, TCP, 8080, "lan1");
}

#[test]
fn a_reload_takes_in_what_is_good_and_refuses_what_is_not() {
    let Some(subject @ Subject::Portferry(_)) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let good = subject::configuration(&network, NAT, "");
    let elsewhere = good.replace("\"100.64.0.1\"", "\"100.64.0.77\"");
    let file = network.directory().join("bad.toml");
    let mut daemon = start_with_file(&subject, &network, &elsewhere);
    daemon.await_log("is running", 10 * SECOND);

    std::fs::write(&file, good.replace("http_port", "http_prot")).expect("the directory is ours");
    daemon.signal("HUP");
    daemon.await_log("reload refused, nothing changed", 5 * SECOND);
    daemon.await_log("lan.http_prot", 5 * SECOND);

    // Longer than what one half could tell the other.
    std::fs::write(&file, format!("{good}# {}", "\"".repeat(250_000))).expect("the directory is ours");
    daemon.signal("HUP");
    daemon.await_log("expected 65536 octets at most", 5 * SECOND);

    std::fs::write(&file, good.replace("5431", "5432")).expect("the directory is ours");
    daemon.signal("HUP");
    daemon.await_log("lan.http_port only counts after a restart", 5 * SECOND);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    control_point.adds(8080, 8080, "TCP", 3600);
}

/// R-10, decision 16: kill -9.
#[test]
fn a_killed_daemon_comes_back_with_its_mappings() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    control_point.adds(8080, 8080, "TCP", 3600);
    drop(daemon); // SIGKILL

    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let list = control_point.upnpc(&["-l"]);
    assert!(list.contains(&format!("TCP  8080->{LAN1}:8080")), "{list}");
    reaches(&network, TCP, 8080, "lan1");
    // The provider lets only the nonce that made it delete a mapping: it was kept.
    control_point.deletes(8080, "TCP");
    assert_eq!(provider.forwarding(TCP, 8080), None);
    reaches_nobody(&network, TCP, 8080);
}

/// T-9.
#[test]
fn a_subscriber_hears_of_every_change() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let gateway = format!("{ROUTER_LAN}:{HTTP_PORT}");
    let mut subscriber =
        network.spawn(Host::Lan2, "subscriber", PROBE, ["subscribe", &gateway, "/v2/igd.xml"]);
    subscriber.await_log("HTTP/1.1 200 OK", 5 * SECOND);
    subscriber.await_log("event 0: ", 5 * SECOND); // K-10
    subscriber.await_log("ConnectionStatus=Connected", 5 * SECOND);
    subscriber.await_log(&format!("ExternalIPAddress={EXTERNAL}"), 5 * SECOND);
    control_point.adds(8080, 8080, "TCP", 3600);
    subscriber.await_log("event 1: PortMappingNumberOfEntries=1 SystemUpdateID=1", 5 * SECOND);
    control_point.deletes(8080, "TCP");
    subscriber.await_log("event 2: PortMappingNumberOfEntries=0 SystemUpdateID=2", 5 * SECOND);
    network.run(Host::Router, "ip", ["link", "set", WAN_INTERFACE, "down"]);
    subscriber.await_log("event 3: ConnectionStatus=Disconnected ExternalIPAddress=", 5 * SECOND);
}

#[test]
fn a_flushed_ruleset_is_made_anew() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    control_point.adds(8080, 8080, "TCP", 3600);
    reaches(&network, TCP, 8080, "lan1");
    network.run(Host::Router, "nft", ["delete", "table", "inet", "portferry"]);
    reaches(&network, TCP, 8080, "lan1");
}

#[test]
fn status_and_mappings_are_shown_as_tables_and_as_json() {
    let Some(subject @ Subject::Portferry(_)) = interworking_subject() else { return };
    let Subject::Portferry(program) = &subject else { return };
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    control_point.adds(8080, 9090, "UDP", 3600);
    let socket = network.directory().join("control.sock").display().to_string();
    let asked = |arguments: &[&str]| {
        let output =
            network.command(Host::Router, program).args(arguments).args(["--socket", &socket]).output();
        let output = output.expect("it runs");
        assert!(output.status.success(), "{}", netns::text(&output));
        String::from_utf8(output.stdout).expect("text")
    };
    let status = asked(&["status"]);
    println!("{status}");
    assert!(status.contains(&format!("external address  {EXTERNAL}, for ")), "{status}");
    assert!(status.contains("PCP server        100.64.0.1:5351 answers, last "), "{status}");
    let mappings = asked(&["mappings"]);
    println!("{mappings}");
    let row = format!("UDP    {EXTERNAL}:9090  8080     {LAN1}:8080  ");
    assert!(mappings.contains(&row), "{mappings}");
    let json = asked(&["mappings", "--json"]);
    assert!(json.contains(&format!("\"external\":\"{EXTERNAL}:9090\"")), "{json}");
    assert!(asked(&["status", "--json"]).contains("\"uplink\":\"answering\""));
    // R-36: as a DHCP server's hook calls it.
    let host = LAN1.to_string();
    assert_eq!(asked(&["release", "192.168.77.250"]), "mappings of 192.168.77.250 released: 0\n");
    assert_eq!(asked(&["release", &host]), format!("mappings of {host} released: 1\n"));
    assert_eq!(asked(&["mappings"]), "no mappings\n");
}

#[test]
fn what_keeps_it_from_starting_is_said_in_one_line() {
    let Some(subject @ Subject::Portferry(_)) = interworking_subject() else { return };
    let Subject::Portferry(program) = &subject else { return };
    let network = Network::new(CASCADED);
    let file = network.directory().join("a.toml").display().to_string();
    std::fs::create_dir_all(network.directory().join("state")).expect("the directory is ours");
    std::fs::write(&file, subject::configuration(&network, NAT, "")).expect("the directory is ours");
    let fails = |wrapper: &[&str], code: i32, words: &str| {
        let mut command =
            network.command(Host::Router, wrapper.first().map_or(program.as_os_str(), |w| w.as_ref()));
        if let Some((_, more)) = wrapper.split_first() {
            command.args(more).arg(program);
        }
        let output = command.args(["run", "--config", &file]).output().expect("it runs");
        let text = netns::text(&output);
        assert_eq!(output.status.code(), Some(code), "{text}");
        let said: Vec<&str> = text.lines().filter(|line| line.starts_with("portferry: ")).collect();
        assert!(matches!(said[..], [line] if line.contains(words)), "{text}");
    };
    // Root without capabilities: it may still write its own directories.
    fails(&["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"], 77, "CAP_NET_ADMIN");
    let mut other = subject.start(&network, NAT, "");
    other.await_log("is running", 10 * SECOND);
    fails(&[], 69, "another portferry listens");
    std::fs::write(&file, subject::configuration(&network, NAT, "").replace("control.sock", "other.sock"))
        .expect("the directory is ours");
    fails(&[], 69, "TCP port 5431");
    assert_eq!(other.ended(), None);
}

#[test]
fn a_wrong_configuration_is_named_by_file_line_and_key() {
    let Some(subject @ Subject::Portferry(_)) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let good = subject::configuration(&network, NAT, "");
    for (right, wrong, key) in [
        ("http_port", "http_prot", "http_prot"),
        ("5431", "\"five\"", "http_port"),
        ("5431", "65536", "http_port"),
        ("[\"br-lan\"]", "[7]", "interfaces"),
        ("\"nftables\"", "\"pf\"", "nat"),
        ("\"100.64.0.1\"", "\"100.64.0.256\"", "servers"),
        ("[control]", "[contrl]", "contrl"),
        ("[wan]", "[wan", ""), // no TOML: there is no key to be named
    ] {
        let line = 1 + good.lines().position(|line| line.contains(right)).expect("the good one has it");
        let mut daemon = start_with_file(&subject, &network, &good.replace(right, wrong));
        let status = daemon.wait(10 * SECOND);
        let log = daemon.log();
        assert_eq!(status.code(), Some(78), "EX_CONFIG for {wrong}\n{log}");
        assert!(log.contains("bad.toml"), "the file, for {wrong}\n{log}");
        let named = [format!(":{line}"), format!("line {line}")].iter().any(|place| log.contains(place));
        assert!(named, "line {line}, for {wrong}\n{log}");
        assert!(log.contains(key), "`{key}`, for {wrong}\n{log}");
    }
}

#[test]
fn sigterm_says_byebye_and_leaves_nothing_behind() {
    let Some(subject) = subject() else { return };
    let network = Network::new(CASCADED);
    let provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    control_point.adds(8080, 8080, "TCP", 3600);
    let lan = Capture::start(&network, Host::Lan1, "eth0", "udp port 1900");

    let status = daemon.terminate(10 * SECOND);
    assert!(status.success(), "{status}");
    eventually("a byebye", 5 * SECOND, || lan.packets().into_iter().find(is_byebye));
    if subject.interworks() {
        assert!(
            provider.forwardings().iter().all(|f| *f.to.ip() != ROUTER_WAN),
            "{:?}",
            provider.forwardings()
        );
    }
}

// ── Helpers ────────────────────────────────────────────────────────────────────────────────────────────────────────

fn is_byebye(packet: &Packet) -> bool {
    let text = String::from_utf8_lossy(&packet.payload).to_ascii_lowercase();
    text.starts_with("notify * ") && text.contains("ssdp:byebye") && packet.source.ip() == ROUTER_LAN
}

/// Starts portferry with a configuration file of its own, `bad.toml`.
#[track_caller]
fn start_with_file(subject: &Subject, network: &Network, content: &str) -> Process {
    let Subject::Portferry(program) = subject else { panic!("only portferry reads it") };
    let file = network.directory().join("bad.toml");
    std::fs::write(&file, content).expect("the directory is ours");
    let log = network.directory().join("bad.log");
    let _ = std::fs::remove_file(log);
    network.spawn(Host::Router, "bad", program, ["run".as_ref(), "--config".as_ref(), file.as_os_str()])
}

/// Feeds messages to a blasting probe; what it printed.
#[track_caller]
fn blast(network: &Network, host: Host, arguments: &[&str], messages: &[Vec<u8>]) -> String {
    let mut child = network
        .command(host, PROBE)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut input = child.stdin.take().expect("piped above");
    let hex: String = messages
        .iter()
        .map(|message| message.iter().map(|octet| format!("{octet:02x}")).collect::<String>() + "\n")
        .collect();
    let writer = std::thread::spawn(move || input.write_all(hex.as_bytes()));
    let output = child.wait_with_output().expect("a child can be waited for");
    let _ = writer.join().expect("it doesn't panic");
    assert!(output.status.success(), "{arguments:?}: {}", output.status);
    netns::text(&output)
}

/// Octets that look random and are the same each time (xorshift).
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut octet = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| octet()).collect()
}

/// None of these may be answered with 200.
fn bad_http(control: &str) -> Vec<Vec<u8>> {
    const SERVICE: &str = "urn:schemas-upnp-org:service:WANIPConnection:1";
    let post = |headers: &str, body: &[u8]| {
        let head = format!("POST {control} HTTP/1.1\r\nHost: {ROUTER_LAN}:{HTTP_PORT}\r\n{headers}");
        [head.as_bytes(), b"\r\n\r\n", body].concat()
    };
    let soap = |action: &str, body: &str| {
        let action = format!("SOAPAction: \"{SERVICE}#{action}\"");
        post(
            &format!("{action}\r\nContent-Type: text/xml\r\nContent-Length: {}", body.len()),
            body.as_bytes(),
        )
    };
    let envelope = |action: &str, arguments: &str| {
        format!(
            "<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>\
             <u:{action} xmlns:u=\"{SERVICE}\">{arguments}</u:{action}></s:Body></s:Envelope>"
        )
    };
    let add = |port: &str, client: &str, lease: &str| {
        let arguments = format!(
            "<NewRemoteHost></NewRemoteHost><NewExternalPort>{port}</NewExternalPort><NewProtocol>TCP</NewProtocol>\
             <NewInternalPort>8080</NewInternalPort><NewInternalClient>{client}</NewInternalClient>\
             <NewEnabled>1</NewEnabled><NewPortMappingDescription>bad</NewPortMappingDescription>\
             <NewLeaseDuration>{lease}</NewLeaseDuration>"
        );
        soap("AddPortMapping", &envelope("AddPortMapping", &arguments))
    };
    let entities: String =
        (1..20).map(|n| format!("<!ENTITY e{n} \"{}\">", format!("&e{};", n - 1).repeat(10))).collect();
    let bomb = format!("<!DOCTYPE x [<!ENTITY e0 \"ha\">{entities}]>{}", envelope("AddPortMapping", "&e19;"));
    let deep = "<a>".repeat(20_000);
    let whole = add("8080", &LAN1.to_string(), "3600");
    let half = whole.len() / 2;
    let mut bad = vec![
        b"\r\n\r\n".to_vec(),
        b"GET".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"GET /../../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000)).into_bytes(),
        format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(100_000)).into_bytes(),
        format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(5_000)).into_bytes(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        post("Content-Length: -1", b""),
        post("Content-Length: 99999999999999999999", b"<a/>"),
        post("Content-Length: 4\r\nContent-Length: 5", b"<a/>"),
        post("Transfer-Encoding: chunked", b"zz\r\nnot a chunk\r\n"),
        post("Transfer-Encoding: chunked", b"ffffffffffffffff\r\n<a/>"),
        soap("AddPortMapping", ""),
        soap("AddPortMapping", "not XML"),
        soap("AddPortMapping", "<a><b></a>"),
        soap("AddPortMapping", "\0\0\0\0"),
        soap("AddPortMapping", &deep),
        soap("AddPortMapping", &bomb),
        soap("AddPortMapping", &envelope("AddPortMapping", "")),
        soap("NoSuchAction", &envelope("NoSuchAction", "")),
        soap("", &envelope("AddPortMapping", "")),
        post("Content-Length: 4", b"<a/>"),
        add("65536", &LAN1.to_string(), "3600"),
        add("-1", &LAN1.to_string(), "3600"),
        add("80&#x0;80", &LAN1.to_string(), "3600"),
        add("8080", "::1", "3600"),
        add("8080", "127.0.0.1", "3600"),
        add("8080", &LAN2.to_string(), "3600"),
        add("8080", &"a.".repeat(5_000), "3600"),
        whole[..half].to_vec(),
    ];
    bad.extend((0..20).map(|seed| noise(seed, 4_000)));
    bad
}

fn bad_ssdp() -> Vec<Vec<u8>> {
    let search = |headers: &str| {
        format!("M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n{headers}\r\n\r\n").into_bytes()
    };
    let good = search("MAN: \"ssdp:discover\"\r\nMX: 1\r\nST: upnp:rootdevice");
    let mut bad = vec![
        search("MAN: \"ssdp:discover\"\r\nMX: -1\r\nST: ssdp:all"),
        search("MAN: \"ssdp:discover\"\r\nMX: 99999999999999999999\r\nST: ssdp:all"),
        search("MAN: \"ssdp:discover\"\r\nMX: 1\r\nST: uuid:"),
        search(&format!("MAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {}", "a".repeat(60_000))),
        search(&":\r\n".repeat(10_000)),
        search("MAN: \"ssdp:discover\"\r\nMX: 1\r\nST: \u{fffd}\0"),
        b"NOTIFY * HTTP/1.1\r\nNTS: ssdp:alive\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nST: ssdp:all\r\n\r\n".to_vec(),
    ];
    bad.extend((0..good.len()).step_by(3).map(|length| good[..length].to_vec()));
    bad.extend((0..50).map(|seed| noise(seed, 700)));
    bad
}

/// `opcode` with or without the response bit; `client` stands where a request has its sender.
fn bad_pcp(opcode: u8, client: Ipv4Addr) -> Vec<Vec<u8>> {
    let client = client.to_ipv6_mapped().octets();
    let good =
        [&[2, opcode, 0, 0, 0, 0, 14, 16][..], &client, &[7; 12], &[6, 0, 0, 0, 31, 144, 31, 144], &[0; 16]]
            .concat();
    let with_option = |option: &[u8]| [&good[..], option].concat();
    let mut bad: Vec<_> = (0..good.len()).map(|length| good[..length].to_vec()).collect();
    bad.extend([
        with_option(&[1, 0, 0, 16]),
        with_option(&[1, 0, 255, 255, 0, 0, 0, 0]),
        with_option(&[2, 0, 0, 4, 0, 0, 0, 0]),
        with_option(&[3, 0, 0, 20, 0, 129, 0, 0]),
        with_option(&[128, 0, 0, 3, 0xff, 0xfe, 0, 0]),
        with_option(&[99, 0, 0, 0]),
        with_option(&[2, 0, 0, 0].repeat(400)),
        [&good[..], &[0; 2_000]].concat(),
    ]);
    bad.extend((0..=255).map(|version| [&[version], &good[1..]].concat()).filter(|message| message[0] != 2));
    bad.extend((2..128).map(|number| [&[2, opcode & 0x80 | number], &good[2..]].concat()));
    bad.extend((0..100).map(|seed| noise(seed, 60)));
    bad
}

#[test]
fn the_probes_of_this_suite_work() {
    if let Some(reason) = netns::reason_to_skip() {
        skipped(reason);
        return;
    }
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    // The Internet and the other subscriber, without any daemon of ours.
    let _listeners = BOTH.map(|protocol| listener(&network, Host::Other, protocol, 8080));
    for protocol in BOTH {
        reaches_nobody(&network, protocol, 8080);
        let port =
            ["-g", &PROVIDER.to_string(), "-a", "8080", "8080", name(protocol), "600"].map(str::to_owned);
        network.run(Host::Other, "natpmpc", port);
        reaches(&network, protocol, 8080, "other");
    }
}
