//! From facts to findings: pure functions, a file for each concern. They never look at anything themselves.

mod address;
mod control_points;
mod firewall;
mod gateway;
mod links;
mod mappings;
mod multicast;
mod nats;
mod provider;
mod remedy;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr};

use super::facts::{Facts, UplinkFacts, UplinkSetup};
use super::finding::Finding;
use crate::netlink::Interface;

/// All findings about a configuration that could be read.
pub(crate) fn judge(facts: &Facts) -> Vec<Finding> {
    [
        gateway::judge(facts),
        links::judge(facts),
        provider::judge(facts),
        nats::judge(facts),
        firewall::judge(facts),
        multicast::judge(facts),
        control_points::judge(facts),
        mappings::judge(facts),
    ]
    .concat()
}

impl Facts {
    /// Each uplink with what was found of it.
    fn each_uplink(&self) -> impl Iterator<Item = (&UplinkSetup, &UplinkFacts)> {
        self.setup.uplinks.iter().zip(&self.uplinks)
    }

    fn interface(&self, name: &str) -> Option<&Interface> {
        self.links.interfaces.iter().find(|interface| interface.name == name)
    }

    /// The interface's IPv4 addresses, with the lengths of their prefixes.
    fn addresses(&self, name: &str) -> Vec<(Ipv4Addr, u8)> {
        let all = self.interface(name).into_iter().flat_map(|interface| &interface.addresses);
        let v4 = |(addr, len): &(IpAddr, u8)| match addr {
            IpAddr::V4(addr) => Some((*addr, *len)),
            IpAddr::V6(_) => None,
        };
        all.filter_map(v4).collect()
    }
}

/// "a", "a and b", "a, b and c".
fn and(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}
