//! Who is a subscriber.

use std::net::IpAddr;

use engine::provider::Prefix;

use super::config::{Config, PrefixText};
use super::sockets;
use crate::netlink::Snapshot;

/// A prefix on the link of an inside interface.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Link {
    /// The interface.
    index: u32,
    /// The server's own address there.
    own: IpAddr,
    prefix: Prefix,
}

/// What the inside interfaces have on their links.
pub(super) fn links(config: &Config, snapshot: &Snapshot) -> Vec<Link> {
    let inside = |name: &str| config.inside.interfaces.0.iter().any(|one| one.0 == name);
    let interfaces = snapshot.interfaces.iter().filter(|interface| inside(&interface.name));
    let link = |index, &(own, len): &(IpAddr, u8)| Link { index, own, prefix: Prefix::new(own, len) };
    interfaces.flat_map(|one| one.addresses.iter().map(move |address| link(one.index, address))).collect()
}

/// Whether a packet from `source` that came by this interface is a subscriber's: nobody's own address, nor one that is on the
/// link of another inside interface, nor outside of the prefixes that subscribers have.
pub(super) fn is_subscriber(source: IpAddr, index: u32, prefixes: &[PrefixText], links: &[Link]) -> bool {
    if !sockets::is_unicast(source) || source.is_loopback() || links.iter().any(|link| link.own == source) {
        return false;
    }
    if is_link_local(source) {
        return true; // each link has its own
    }
    let on_link =
        links.iter().filter(|link| link.prefix.contains(source)).max_by_key(|link| link.prefix.bits());
    let here = on_link
        .is_none_or(|longest| links.iter().any(|link| link.index == index && link.prefix == longest.prefix));
    here && (prefixes.is_empty() || prefixes.iter().any(|prefix| prefix.0.contains(source)))
}

fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Security policy: the source is on-link there, unicast, not our own address; an address of another interface's link is
    /// a made-up one.
    #[test]
    fn who_is_a_subscriber() {
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        let link = |index, own: &str, on: &str| Link { index, own: own.parse().unwrap(), prefix: prefix(on) };
        let links = [
            link(2, "10.8.0.1", "10.8.0.0/24"),
            link(3, "10.9.0.1", "10.9.0.0/24"),
            link(4, "10.9.0.129", "10.9.0.128/25"),
            link(2, "fe80::1", "fe80::/64"),
        ];
        let named = [PrefixText(prefix("10.8.0.0/16")), PrefixText(prefix("192.168.0.0/16"))];
        for (source, index, prefixes, wanted) in [
            ("10.8.0.2", 2, &[][..], true),
            ("10.8.0.2", 3, &[], false),
            ("10.9.0.2", 3, &[], true),
            ("10.9.0.200", 3, &[], false),
            ("10.9.0.200", 4, &[], true),
            ("10.8.0.1", 2, &[], false),
            ("10.9.0.1", 2, &[], false),
            ("192.168.7.7", 2, &[], true),
            ("192.168.7.7", 2, &named, true),
            ("172.16.0.1", 2, &named, false),
            ("10.9.0.2", 3, &named, false),
            ("fe80::2", 3, &named, true),
            ("224.0.0.1", 2, &[], false),
            ("127.0.0.1", 2, &[], false),
            ("0.0.0.0", 2, &[], false),
        ] {
            let found = is_subscriber(source.parse().unwrap(), index, prefixes, &links);
            assert_eq!(found, wanted, "{source} by {index}");
        }
    }
}
