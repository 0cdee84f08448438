//! The external addresses.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use engine::provider::StoredMapping;

use super::ADDRESSLESS;
use super::config::Config;
use crate::netlink::{Netlink, Snapshot};

/// The external addresses, as clients are told and as packets have them: those of the configuration, or those that the
/// outside interfaces have.
pub(super) fn external(config: &Config, snapshot: &Snapshot) -> Vec<(Ipv4Addr, Ipv4Addr)> {
    let own = own_external(config, snapshot);
    match &config.outside.public[..] {
        [] => own.into_iter().map(|addr| (addr, addr)).collect(),
        public => public.iter().copied().zip(own).collect(),
    }
}

/// Waits until there is an external address, but not for ever.
pub(super) async fn await_address(
    config: &Config,
    netlink: &mut Netlink,
    mut snapshot: Snapshot,
) -> (Snapshot, Vec<(Ipv4Addr, Ipv4Addr)>) {
    let until = tokio::time::Instant::now() + ADDRESSLESS;
    let mut pool = Vec::new();
    while pool.is_empty() {
        match tokio::time::timeout_at(until, netlink.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => tokio::time::sleep(Duration::from_secs(1)).await,
            Err(_) => break,
        }
        if let Ok(new) = netlink.snapshot().await {
            snapshot = new;
        }
        pool = external(config, &snapshot);
    }
    (snapshot, pool)
}

/// The IPv4 ones outside, each once.
pub(super) fn addresses_of(mappings: &[StoredMapping]) -> Vec<Ipv4Addr> {
    let outside = mappings.iter().filter_map(|stored| match stored.external.ip() {
        IpAddr::V4(addr) => Some(addr),
        IpAddr::V6(_) => None,
    });
    outside.collect::<BTreeSet<_>>().into_iter().collect()
}

/// As clients are told.
pub(super) fn told(pool: &[(Ipv4Addr, Ipv4Addr)]) -> Vec<Ipv4Addr> {
    pool.iter().map(|&(told, _)| told).collect()
}

fn own_external(config: &Config, snapshot: &Snapshot) -> Vec<Ipv4Addr> {
    if !config.outside.addresses.is_empty() {
        return config.outside.addresses.clone();
    }
    let outside = |name: &str| config.outside.interfaces.0.iter().any(|one| one.0 == name);
    // Also while there is no carrier: an address that comes back was never another one.
    let interfaces = snapshot.interfaces.iter().filter(|interface| outside(&interface.name));
    let addresses = interfaces.flat_map(|interface| interface.addresses.iter());
    let mut found: Vec<Ipv4Addr> = Vec::new();
    for (addr, _) in addresses {
        match addr {
            IpAddr::V4(v4) if !v4.is_link_local() && !found.contains(v4) => found.push(*v4),
            _ => {}
        }
    }
    // Clouds put private addresses beside the public one.
    if found.iter().any(is_public) {
        found.retain(is_public);
    }
    found
}

/// Neither private (RFC 1918) nor shared (RFC 6598).
fn is_public(addr: &Ipv4Addr) -> bool {
    !addr.is_private() && !matches!(addr.octets(), [100, 64..128, ..])
}

/// For a log line.
pub(super) fn listed(addresses: &[Ipv4Addr]) -> String {
    let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    if list.is_empty() { "none".to_owned() } else { list.join(", ") }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::netlink::Interface;

    #[test]
    fn which_addresses_are_external() {
        let text = "[inside]\ninterfaces = [\"tun0\"]\n[outside]\ninterfaces = [\"eth0\"]\n";
        for (more, there, wanted) in [
            ("", &[][..], &[][..]),
            ("", &["203.0.113.1"], &[("203.0.113.1", "203.0.113.1")]),
            ("", &["169.254.1.1", "10.0.0.5", "2001:db8::1"], &[("10.0.0.5", "10.0.0.5")]),
            ("", &["10.0.0.5", "100.64.0.5", "203.0.113.1"], &[("203.0.113.1", "203.0.113.1")]),
            ("addresses = [\"10.0.0.5\"]\n", &["203.0.113.1"], &[("10.0.0.5", "10.0.0.5")]),
            ("public = [\"203.0.113.9\"]\n", &["10.0.0.5"], &[("203.0.113.9", "10.0.0.5")]),
            ("public = [\"203.0.113.9\"]\n", &[], &[]),
        ] {
            let config = Config::parse(Path::new("s.toml"), &format!("{text}{more}")).unwrap();
            let of = |name: &str, addresses: &[&str]| Interface {
                index: 1,
                name: name.to_owned(),
                up: false,
                addresses: addresses.iter().map(|addr| (addr.parse().unwrap(), 24)).collect(),
                mac: None,
            };
            let interfaces = vec![of("tun0", &["203.0.113.77"]), of("eth0", there)];
            let snapshot = Snapshot { interfaces, default_routes: Vec::new(), ..Snapshot::default() };
            let found = external(&config, &snapshot);
            let found: Vec<_> = found.iter().map(|(told, own)| (told.to_string(), own.to_string())).collect();
            let wanted: Vec<_> =
                wanted.iter().map(|&(told, own)| (told.to_owned(), own.to_owned())).collect();
            assert_eq!(found, wanted, "{more} {there:?}");
        }
    }
}
