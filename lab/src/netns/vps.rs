//! A home whose way into the Internet is a tunnel to a machine with a public address (docs/vps.md).
//!
//! ```text
//! lan1 192.168.77.10 ┐ br-lan                        wg0 ┐ wg0                  eth0
//!                    ├─────── router ────────────────────┤ 10.8.0.1  VPS ─────────── internet
//! lan2 192.168.77.11 ┘ .77.1               10.8.0.2      │       203.0.114.1   198.51.100.20
//!                                    other 10.8.0.3 ─────┘
//! ```
//!
//! The VPS is [`Host::Provider`]. Its `wg0` is a bridge, the others' are veth pairs into it: as with WireGuard, one interface
//! leads to all that have a tunnel. Nothing here translates or filters; what is tested does.

use std::net::Ipv4Addr;

use super::{EXTERNAL, Host, INTERNET, Network};

/// The tunnel, at both of its ends.
pub const TUNNEL_INTERFACE: &str = "wg0";
/// The VPS's interface towards the Internet.
pub const VPS_INTERFACE: &str = "eth0";
/// The VPS in the tunnel, and its PCP server.
pub const VPS_TUNNEL: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 1);
/// The router in the tunnel.
pub const HOME_TUNNEL: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 2);
/// Somebody else with a tunnel to the same VPS.
pub const OTHER_TUNNEL: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 3);
/// Another public address, of the VPS's network; nobody's at first.
pub const ANOTHER_EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 114, 2);

/// A VPS's address in a cloud.
pub const VPS_PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 5);

impl Network {
    /// The home, the VPS, another home and the Internet; the VPS routes the LAN into the tunnel if `routed`.
    ///
    /// # Panics
    ///
    /// As [`Network::new`].
    #[must_use]
    pub fn vps(routed: bool) -> Self {
        let network = Self::vps_and_lan();
        network.ip(Host::Provider, &format!("link add {TUNNEL_INTERFACE} type bridge"));
        network.ip(Host::Provider, &format!("addr add {VPS_TUNNEL}/24 dev {TUNNEL_INTERFACE}"));
        network.ip(Host::Provider, &format!("link set {TUNNEL_INTERFACE} up"));
        for (host, address, port) in
            [(Host::Router, HOME_TUNNEL, "peer1"), (Host::Other, OTHER_TUNNEL, "peer2")]
        {
            network.link(host, TUNNEL_INTERFACE, Host::Provider, port);
            network.ip(Host::Provider, &format!("link set {port} master {TUNNEL_INTERFACE}"));
            network.ip(host, &format!("addr add {address}/24 dev {TUNNEL_INTERFACE}"));
            network.ip(host, &format!("route add default via {VPS_TUNNEL}"));
        }
        if routed {
            network.ip(Host::Provider, &format!("route add 192.168.77.0/24 via {HOME_TUNNEL}"));
        }
        network
    }

    /// The same places without a tunnel: the router is behind the Internet's own carrier-grade NAT, by `isp0`, and reaches
    /// the VPS's public address.
    ///
    /// # Panics
    ///
    /// As [`Network::new`].
    #[must_use]
    pub fn vps_without_tunnel() -> Self {
        let network = Self::vps_and_lan();
        network.forward(Host::Internet);
        network.link(Host::Router, "isp0", Host::Internet, "customer");
        network.ip(Host::Router, "addr add 100.64.0.2/24 dev isp0");
        network.ip(Host::Internet, "addr add 100.64.0.1/24 dev customer");
        network.ip(Host::Router, "route add default via 100.64.0.1");
        network.masquerade(Host::Internet, "eth0");
        network
    }

    fn vps_and_lan() -> Self {
        let network = Self::empty(&Host::ALL);
        for host in Host::ALL {
            network.run(host, "sysctl", ["-qw", "net.ipv6.conf.all.disable_ipv6=1"]);
            network.ip(host, "link set lo up");
        }
        // See `forward`; forwarding itself is up to the page.
        for host in [Host::Router, Host::Provider] {
            network.run(host, "sysctl", ["-eqw", "net.bridge.bridge-nf-call-iptables=0"]);
        }
        network.vps_uplink();
        network.add_lan();
        network
    }

    /// One link between the VPS and the Internet, on which both know where the other's addresses are.
    fn vps_uplink(&self) {
        self.link(Host::Internet, "eth0", Host::Provider, VPS_INTERFACE);
        self.ip(Host::Provider, &format!("addr add {EXTERNAL}/24 dev {VPS_INTERFACE}"));
        self.ip(Host::Internet, &format!("addr add {INTERNET}/24 dev eth0"));
        self.ip(Host::Internet, "route add 203.0.114.0/24 dev eth0");
        self.ip(Host::Provider, &format!("route add default via {INTERNET} dev {VPS_INTERFACE} onlink"));
    }

    /// Gives the VPS [`VPS_PRIVATE`] instead of [`EXTERNAL`], which a cloud in front of it translates to that, one to one.
    pub fn put_vps_into_a_cloud(&self) {
        self.ip(Host::Provider, &format!("addr del {EXTERNAL}/24 dev {VPS_INTERFACE}"));
        self.ip(Host::Provider, &format!("addr add {VPS_PRIVATE}/24 dev {VPS_INTERFACE}"));
        self.ip(Host::Provider, &format!("route replace default via {INTERNET} dev {VPS_INTERFACE} onlink"));
        // Without connection tracking, so that each packet is as a cloud's router makes it.
        self.nft(
            Host::Internet,
            &format!(
                "table ip cloud {{\n chain out {{\n  type filter hook postrouting priority 300;\n  \
                 ip daddr {EXTERNAL} ip daddr set {VPS_PRIVATE}\n }}\n chain in {{\n  \
                 type filter hook prerouting priority -310;\n  ip saddr {VPS_PRIVATE} ip saddr set {EXTERNAL}\n }}\n}}\n"
            ),
        );
        self.ip(Host::Internet, &format!("route add {VPS_PRIVATE}/32 dev eth0"));
        self.ip(Host::Internet, &format!("route replace 203.0.114.0/24 via {VPS_PRIVATE} dev eth0 onlink"));
    }

    /// Gives the VPS [`ANOTHER_EXTERNAL`] instead of [`EXTERNAL`].
    pub fn readdress_vps(&self) {
        self.ip(Host::Provider, &format!("addr add {ANOTHER_EXTERNAL}/32 dev {VPS_INTERFACE}"));
        self.ip(Host::Provider, &format!("addr del {EXTERNAL}/24 dev {VPS_INTERFACE}"));
        // With its subnet go the routes by it.
        self.ip(Host::Provider, &format!("route replace default via {INTERNET} dev {VPS_INTERFACE} onlink"));
    }
}
