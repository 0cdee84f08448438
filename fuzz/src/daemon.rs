//! Targets in the daemon: what its journals, hooks of DHCP clients, the control socket and heads of HTTP requests say. The laws of the
//! readers are `portferry::fuzzing`'s; here what is read goes on into the engine.

use std::net::{IpAddr, Ipv4Addr};

use engine::entropy::SeededEntropy;
use engine::gateway::{Config, Event, Gateway, LanInterface, NatMode, Wan};
use engine::policy::InterfaceAddress;
use engine::provider::{Output, Server, ServerConfig};
use engine::time::{Duration, Instant};

pub use portferry::fuzzing::{control_question, dhcp_hook, dhcp_offer, http_head};

/// Effects of one event of a gateway that has just been started.
const MAX_EFFECTS: usize = 20_000;
/// So long it is watched.
const HOURS: Duration = Duration::from_secs(3 * 3600);

/// The gateway's journal, and a start with what it says.
pub fn gateway_journal(data: &[u8]) {
    let loaded = portferry::fuzzing::gateway_journal(data);
    if loaded.mappings.is_empty() && loaded.pinholes.is_empty() {
        return;
    }
    let nat = if data.len().is_multiple_of(2) { NatMode::Own } else { NatMode::None };
    let config = Config { nat, ..Config::new(crate::gateway::device()) };
    let (most, count) = (config.policy.mappings, loaded.mappings.len());
    let mut now = Instant::from_secs(100);
    let mut gateway = Gateway::new(config, Box::new(SeededEntropy::new(1)));
    let addresses = vec![InterfaceAddress { addr: IpAddr::from([192, 168, 1, 1]), prefix_len: 24 }];
    let mut handle = |now, event: Event<'_>| {
        gateway.handle(now, event);
        for effects in 0.. {
            assert!(effects < MAX_EFFECTS, "one event has too many effects");
            if gateway.poll_effect().is_none() {
                break;
            }
        }
        let mappings = gateway.mappings(now).count();
        assert!(mappings <= most.min(count), "{mappings} of {count} mappings");
        gateway.next_timeout()
    };
    handle(now, Event::Lan(vec![LanInterface { index: 2, name: "lan0".to_owned(), addresses }]));
    let portferry::store::Loaded { mappings, probe, filtered, pinholes, .. } = loaded;
    handle(now, Event::RestorePinholes(pinholes));
    handle(now, Event::Restore { mappings, probe, filtered });
    let wan = Wan {
        name: "wan0".to_owned(),
        up: true,
        addresses: vec![Ipv4Addr::new(100, 64, 0, 2)],
        router: Some(IpAddr::from([100, 64, 0, 1])),
        ..Wan::default()
    };
    let mut next = handle(now, Event::Wan(wan));
    let until = now + HOURS;
    // Nobody answers: a few hundred timers show what there is.
    for _ in 0..300 {
        let Some(at) = next.filter(|&at| at <= until) else { break };
        now = now.max(at);
        next = handle(now, Event::Timeout);
    }
}

/// The journal of a PCP server, and a start with what it says.
pub fn server_journal(data: &[u8]) {
    let loaded = portferry::fuzzing::server_journal(data);
    let count = loaded.mappings.len();
    let now = Instant::from_secs(1000);
    let mut config = ServerConfig::new(vec![Ipv4Addr::new(198, 51, 100, 7)]);
    config.firewall = data.len().is_multiple_of(2);
    let mut server = Server::new(now, config, now);
    server.restore(now, loaded.mappings, loaded.holds);
    while let Some(output) = server.poll_output() {
        if let Output::Nat { ticket, .. } = output {
            server.handle_nat(now, ticket, Ok(()));
        }
    }
    assert!(server.mappings().count() <= count);
    let mut now = now;
    for _ in 0..300 {
        let Some(at) = server.next_timeout() else { break };
        now = now.max(at);
        server.handle_timeout(now);
        while let Some(output) = server.poll_output() {
            if let Output::Nat { ticket, .. } = output {
                server.handle_nat(now, ticket, Ok(()));
            }
        }
    }
}
