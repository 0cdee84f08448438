//! The probe: a mapping of the router itself that stands for a moment. Its port is bound meanwhile, so that no program and no
//! mapping of the gateway has it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::{asks_by_upnp, own_address, together};
use crate::config::NatMode;
use crate::doctor::facts::{Candidate, Gateway, Granted, Probe, Setup, UplinkFacts, UplinkSetup};
use crate::exit::Failure;
use crate::netlink::Snapshot;
use crate::pcp_client::quiet::{Asked, Stopped, Told, map};

/// Seconds: what servers grant at least (RFC 6887 §15).
const LIFETIME: u32 = 120;
const PATIENCE: Duration = Duration::from_secs(4);

/// One probe for each uplink, all at once. Who interrupts it leaves nothing behind.
///
/// # Errors
/// It was interrupted.
pub(super) async fn all(
    setup: &Setup,
    links: &Snapshot,
    gateway: &Gateway,
    mut uplinks: Vec<UplinkFacts>,
) -> Result<Vec<UplinkFacts>, Failure> {
    let no_signals = |error| Failure::system(format!("no signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let (stop, stopped) = watch::channel(false);
    let listen = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.send_replace(true);
        std::future::pending::<()>().await;
    };
    let each = setup.uplinks.iter().zip(&uplinks);
    let probes =
        together(each.map(|(uplink, facts)| one(setup, links, gateway, uplink, facts, stopped.clone())));
    let probes = tokio::select! {
        probes = probes => probes,
        () = listen => Vec::new(),
    };
    if *stopped.borrow() {
        return Err(Failure::system("interrupted"));
    }
    for (facts, probed) in uplinks.iter_mut().zip(probes) {
        if let Some(probed) = probed {
            (facts.probe, facts.prefer_failure) = probed;
        }
    }
    Ok(uplinks)
}

/// Nothing where nobody can be asked.
async fn one(
    setup: &Setup,
    links: &Snapshot,
    gateway: &Gateway,
    uplink: &UplinkSetup,
    facts: &UplinkFacts,
    stopped: Stopped,
) -> Option<(Probe, Option<bool>)> {
    let skipped = |why: &str| Some((Probe::Skipped(why.to_owned()), None));
    let used = gateway.uplink(&uplink.interface).and_then(|status| status.server);
    let answering = |candidate: &&Candidate| candidate.answers().is_some();
    let candidates = facts.candidates.iter().filter(answering);
    let chosen = candidates.clone().find(|candidate| Some(candidate.server) == used);
    let candidate = chosen.or(candidates.clone().next())?;
    if asks_by_upnp(gateway, &uplink.interface) {
        return skipped("the gateway asks the provider's router by UPnP");
    }
    // Without a NAT of its own everything depends on THIRD_PARTY.
    let lan = setup.lan.iter().find_map(|lan| own_address(links, lan));
    let third_party = match (uplink.nat, lan) {
        (NatMode::Nftables, _) => None,
        (NatMode::None, Some(lan)) => Some(IpAddr::V4(lan)),
        (NatMode::None, None) => return skipped("no LAN interface has an address to map to"),
    };
    let nat_pmp = candidate.answers().is_some_and(|(protocol, _)| protocol == "NAT-PMP");
    Some(probe(candidate.server, nat_pmp, uplink.interface.clone(), third_party, stopped).await)
}

async fn probe(
    server: SocketAddr,
    nat_pmp: bool,
    interface: String,
    third_party: Option<IpAddr>,
    stopped: Stopped,
) -> (Probe, Option<bool>) {
    let reserved = [(); 2].map(|()| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)));
    let ports: Vec<u16> =
        reserved.iter().flatten().filter_map(|s| Some(s.local_addr().ok()?.port())).collect();
    let &[first, second] = &ports[..] else {
        return (Probe::Skipped("no port of this machine is free".to_owned()), None);
    };
    let asked = Asked {
        server,
        nat_pmp,
        interface,
        internal_port: first,
        lifetime: LIFETIME,
        third_party,
        rival: Some(second),
        patience: PATIENCE,
    };
    let is_third = third_party.is_some();
    match map(&asked, stopped).await {
        Told::Granted { nat_pmp, external, port, lifetime, left, prefers_failure } => {
            let granted = Granted {
                server,
                protocol: if nat_pmp { "NAT-PMP" } else { "PCP" },
                external,
                port,
                lifetime,
                third_party,
                left: if left == Some(0) { None } else { Some(left.unwrap_or(lifetime)) },
            };
            (Probe::Granted(granted), prefers_failure)
        }
        Told::Refused { code, why, todo } => {
            (Probe::Refused { code, why, todo, third_party: is_third }, None)
        }
        Told::Otherwise(got) => {
            (Probe::NoThirdParty(format!("{server} passes over it and maps to {got}")), None)
        }
        Told::Inexpressible => {
            let seen = format!("{server} speaks NAT-PMP only, which has no words for it");
            (Probe::NoThirdParty(seen), None)
        }
        Told::Failed(what) => (Probe::Failed(what), None),
    }
}
