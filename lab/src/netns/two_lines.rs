//! A router with two lines: its usual provider, and a second one behind another interface.
//!
//! ```text
//! lan1 192.168.77.10 ┐ br-lan         wan0 ── 100.64.0.1  provider  203.0.114.1 ─┐
//!                    ├─────── router ┤                                           ├─ internet
//! lan2 192.168.77.11 ┘ .77.1          wan1 ── 100.65.0.1  other     203.0.115.1 ─┘
//! ```

use std::net::Ipv4Addr;

use super::{Host, Layout, Network};

/// The router's interface towards the second provider.
pub const SECOND_WAN: &str = "wan1";
/// The second provider towards its subscribers, and its PCP server.
pub const SECOND_PROVIDER: Ipv4Addr = Ipv4Addr::new(100, 65, 0, 1);
/// The router as the second provider knows it.
pub const SECOND_ROUTER_WAN: Ipv4Addr = Ipv4Addr::new(100, 65, 0, 2);
/// The external address of mappings at the second provider.
pub const SECOND_EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 115, 1);

impl Network {
    /// Both lines are up; the usual one has the better default route (metrics 100 and 200).
    ///
    /// # Panics
    ///
    /// As [`Network::new`].
    #[must_use]
    pub fn two_lines() -> Self {
        let network = Self::new(Layout::default());
        network.ip(Host::Router, "route del default");
        network.usual_route();
        network.ip(Host::Other, "link del wan0");
        network.forward(Host::Other);
        network.link(Host::Router, SECOND_WAN, Host::Other, "cust0");
        network.ip(Host::Router, &format!("addr add {SECOND_ROUTER_WAN}/24 dev {SECOND_WAN}"));
        network.ip(Host::Router, &format!("route add default via {SECOND_PROVIDER} metric 200"));
        network.masquerade(Host::Router, SECOND_WAN);
        network.ip(Host::Other, &format!("addr add {SECOND_PROVIDER}/24 dev cust0"));
        network.link(Host::Internet, "eth1", Host::Other, "inet0");
        network.ip(Host::Other, "addr add 198.51.101.1/24 dev inet0");
        network.ip(Host::Other, &format!("addr add {SECOND_EXTERNAL}/32 dev inet0"));
        network.ip(Host::Other, "route add default via 198.51.101.20");
        network.ip(Host::Internet, "addr add 198.51.101.20/24 dev eth1");
        network.ip(Host::Internet, &format!("route add {SECOND_EXTERNAL}/32 via 198.51.101.1"));
        network
    }

    /// The router's default route by its usual line, which whoever watches over it puts there.
    pub fn usual_route(&self) {
        self.ip(Host::Router, &format!("route add default via {} metric 100", super::PROVIDER));
    }

    /// What a LAN host sends leaves by the second line: a rule, and a table of its own, as docs/uplinks.md has it.
    pub fn bind_to_second(&self, host: Ipv4Addr) {
        self.ip(
            Host::Router,
            &format!("route replace default via {SECOND_PROVIDER} dev {SECOND_WAN} table 101"),
        );
        self.ip(Host::Router, &format!("rule add from {host} lookup 101"));
    }
}
