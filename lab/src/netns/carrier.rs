//! Networks whose access side has IPv6 only: DS-Lite (RFC 6333) and NAT64 (RFC 6146).
//!
//! ```text
//!      lan1 ── router ─┐ access, IPv6 only               inet0
//!   .77.10   .77.1     ├───────────────── provider ─────────────── internet
//! other-lan ── other ──┘ 2001:db8:0:1::/64  TUN   198.51.100.1     198.51.100.20
//!   .77.10   .77.1                          203.0.114.1
//! ```
//!
//! The data planes are userland programs on TUN devices, and fragment nothing. The links of a softwire are so much longer
//! than others that none of its packets needs it, which is what RFC 6333 §5.3 asks of a provider. The route to a NAT64 has the
//! MTU that fits when it has become IPv6: the kernel tells senders so, and packets that may be fragmented are lost there.

use std::fs::{self, File};
use std::net::Ipv6Addr;
use std::path::Path;
use std::process::Command;

use super::{
    EXTERNAL, Host, INTERNET, LAN_INTERFACE, LAN1, LAN2, Network, PROVIDER_INTERNET, ROUTER_LAN,
    WAN_INTERFACE,
};

/// Where softwires lead to.
pub const AFTR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// The PCP server of the NAT64.
pub const NAT64_SERVER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x64);
/// The NAT64's prefix, the well-known one.
pub const NAT64_PREFIX: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);
/// The provider on the access network.
pub const PROVIDER_ACCESS: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 1);
/// The router on the access network, and its end of the softwire.
pub const ROUTER_ACCESS: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 2);
/// The other subscriber's router on the access network, and its end of the softwire.
pub const OTHER_ACCESS: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 3);
/// The router on an IPv6-only LAN.
pub const ROUTER_LAN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 1);
/// The first host of an IPv6-only LAN.
pub const LAN1_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 0x10);
/// The second host of an IPv6-only LAN.
pub const LAN2_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 0x11);

/// The provider's interface on the access network.
pub const ACCESS_INTERFACE: &str = "cust0";
/// The TUN device of a data plane, in its host's namespace.
pub const AFTR_DEVICE: &str = "aftr0";
/// Likewise, on both routers.
pub const B4_DEVICE: &str = "b4";
/// Likewise.
pub const NAT64_DEVICE: &str = "nat64";

/// Ethernet's.
const MTU: u16 = 1500;
/// What such a packet is inside of a softwire, behind 40 octets of IPv6 (RFC 6333 §5.3).
const SOFTWIRE_MTU: u16 = MTU + 40;
/// What fits Ethernet when it has become IPv6.
const TRANSLATED_MTU: u16 = MTU - 20;

/// Why there can be no TUN device here, or `None`. Makes the file of the devices where it is missing.
#[must_use]
pub fn reason_to_skip_tun() -> Option<&'static str> {
    const FILE: &str = "/dev/net/tun";
    super::reason_to_skip().or_else(|| {
        if !Path::new(FILE).exists() {
            let _ = fs::create_dir_all("/dev/net");
            let _ = Command::new("mknod").args([FILE, "c", "10", "200"]).status();
        }
        // Opening it loads the module where there is one.
        let opened = File::options().read(true).write(true).open(FILE);
        opened.is_err().then_some("/dev/net/tun cannot be opened: the kernel has no TUN devices")
    })
}

impl Network {
    /// IPv6 on the LAN: the router and both hosts get a link-local and a global address, at once.
    #[track_caller]
    pub fn add_ipv6(&self) {
        for (host, interface, address) in [
            (Host::Router, LAN_INTERFACE, ROUTER_LAN_V6),
            (Host::Lan1, "eth0", LAN1_V6),
            (Host::Lan2, "eth0", LAN2_V6),
        ] {
            for setting in ["accept_dad=0", "disable_ipv6=0"] {
                self.run(host, "sysctl", ["-qw", &format!("net.ipv6.conf.{interface}.{setting}")]);
            }
            self.run(host, "ip", ["addr", "add", &format!("{address}/64"), "dev", interface, "nodad"]);
        }
    }

    /// Two homes without IPv4 from their provider, with the same addresses inside, each with a B4 device, the first with a
    /// second host; and an AFTR device.
    ///
    /// # Panics
    ///
    /// As [`Network::new`].
    #[must_use]
    pub fn ds_lite() -> Self {
        const HOSTS: [Host; 7] = [
            Host::Lan1,
            Host::Lan2,
            Host::Router,
            Host::OtherLan,
            Host::Other,
            Host::Provider,
            Host::Internet,
        ];
        let network = Self::empty(&HOSTS);
        network
            .build_ipv6_access(&[(Host::Router, ROUTER_ACCESS), (Host::Other, OTHER_ACCESS)], SOFTWIRE_MTU);
        for (router, own) in [(Host::Router, ROUTER_ACCESS), (Host::Other, OTHER_ACCESS)] {
            network.ip(router, &format!("link add {LAN_INTERFACE} type bridge"));
            network.ip(router, &format!("addr add {ROUTER_LAN}/24 dev {LAN_INTERFACE}"));
            network.ip(router, &format!("link set {LAN_INTERFACE} up"));
            network.tun(router, B4_DEVICE, SOFTWIRE_MTU);
            network.ip(router, &format!("addr add {}/29 dev {B4_DEVICE}", crate::b4::B4_ADDRESS));
            network.ip(router, &format!("route add default dev {B4_DEVICE} mtu lock {MTU}"));
            // What comes in the softwire is for the B4 device, before the kernel sees that the address is its own.
            network.ip(router, "-6 rule add pref 100 lookup local");
            network.ip(router, "-6 rule del pref 0");
            network
                .ip(router, &format!("-6 rule add pref 10 iif {WAN_INTERFACE} to {own} ipproto 4 lookup 64"));
            network.ip(router, &format!("-6 route add default dev {B4_DEVICE} table 64"));
        }
        for (host, router, port, address) in [
            (Host::Lan1, Host::Router, "port1", LAN1),
            (Host::Lan2, Host::Router, "port2", LAN2),
            (Host::OtherLan, Host::Other, "port1", LAN1),
        ] {
            network.link(host, "eth0", router, port);
            network.ip(router, &format!("link set {port} master {LAN_INTERFACE}"));
            network.ip(host, &format!("addr add {address}/24 dev eth0"));
            network.ip(host, &format!("route add default via {ROUTER_LAN}"));
        }
        // The AFTR may announce itself on the access link, by an address that is the TUN device's.
        network.run(Host::Provider, "sysctl", ["-qw", "net.ipv6.ip_nonlocal_bind=1"]);
        network.tun(Host::Provider, AFTR_DEVICE, SOFTWIRE_MTU);
        network.ip(Host::Provider, &format!("-6 route add {AFTR}/128 dev {AFTR_DEVICE}"));
        network.ip(Host::Provider, &format!("route add {EXTERNAL}/32 dev {AFTR_DEVICE} mtu lock {MTU}"));
        network
    }

    /// A home with two hosts that have IPv6 only, and a NAT64 device at its provider.
    ///
    /// # Panics
    ///
    /// As [`Network::new`].
    #[must_use]
    pub fn nat64() -> Self {
        let network = Self::empty(&[Host::Lan1, Host::Lan2, Host::Router, Host::Provider, Host::Internet]);
        network.build_ipv6_access(&[(Host::Router, ROUTER_ACCESS)], MTU);
        network.ip(Host::Router, &format!("link add {LAN_INTERFACE} type bridge"));
        network.ip(Host::Router, &format!("addr add {ROUTER_LAN_V6}/64 dev {LAN_INTERFACE} nodad"));
        network.ip(Host::Router, &format!("link set {LAN_INTERFACE} up"));
        for (host, address, port) in [(Host::Lan1, LAN1_V6, "port1"), (Host::Lan2, LAN2_V6, "port2")] {
            network.link(host, "eth0", Host::Router, port);
            network.ip(Host::Router, &format!("link set {port} master {LAN_INTERFACE}"));
            network.ip(host, &format!("addr add {address}/64 dev eth0 nodad"));
            network.ip(host, &format!("-6 route add default via {ROUTER_LAN_V6}"));
        }
        let lan = Ipv6Addr::from(u128::from(LAN1_V6) & !0xffff);
        network.ip(Host::Provider, &format!("-6 route add {lan}/64 via {ROUTER_ACCESS}"));
        network.tun(Host::Provider, NAT64_DEVICE, MTU);
        network.ip(Host::Provider, &format!("-6 route add {NAT64_SERVER}/128 dev {NAT64_DEVICE}"));
        network.ip(Host::Provider, &format!("-6 route add {NAT64_PREFIX}/96 dev {NAT64_DEVICE}"));
        network.ip(
            Host::Provider,
            &format!("route add {EXTERNAL}/32 dev {NAT64_DEVICE} mtu lock {TRANSLATED_MTU}"),
        );
        network
    }

    /// Routers on one link with their provider, which routes them the rest of IPv6, and the Internet behind it. `mtu` is that
    /// link's.
    fn build_ipv6_access(&self, routers: &[(Host, Ipv6Addr)], mtu: u16) {
        for host in self.hosts() {
            self.ip(*host, "link set lo up");
            // There is nobody with the same address; looking for one takes a second.
            self.run(*host, "sysctl", ["-qw", "net.ipv6.conf.default.accept_dad=0"]);
            self.run(*host, "sysctl", ["-qw", "net.ipv6.conf.default.accept_ra=0"]);
        }
        for host in routers.iter().map(|(host, _)| *host).chain([Host::Provider]) {
            self.forward(host);
            self.run(host, "sysctl", ["-qw", "net.ipv6.conf.all.forwarding=1"]);
        }
        self.ip(Host::Provider, &format!("link add {ACCESS_INTERFACE} mtu {mtu} type bridge"));
        self.ip(Host::Provider, &format!("addr add {PROVIDER_ACCESS}/64 dev {ACCESS_INTERFACE} nodad"));
        self.ip(Host::Provider, &format!("link set {ACCESS_INTERFACE} up"));
        for (number, (router, address)) in routers.iter().enumerate() {
            let port = format!("sub{}", number + 1);
            self.link(*router, WAN_INTERFACE, Host::Provider, &port);
            self.ip(*router, &format!("link set {WAN_INTERFACE} mtu {mtu}"));
            self.ip(Host::Provider, &format!("link set {port} mtu {mtu} master {ACCESS_INTERFACE}"));
            self.ip(*router, &format!("addr add {address}/64 dev {WAN_INTERFACE} nodad"));
            self.ip(*router, &format!("-6 route add default via {PROVIDER_ACCESS}"));
        }
        self.link(Host::Internet, "eth0", Host::Provider, "inet0");
        self.ip(Host::Provider, &format!("addr add {PROVIDER_INTERNET}/24 dev inet0"));
        self.ip(Host::Internet, &format!("addr add {INTERNET}/24 dev eth0"));
        self.ip(Host::Internet, &format!("route add {EXTERNAL}/32 via {PROVIDER_INTERNET}"));
    }

    /// A device that a program may take over, and that stays when it ends.
    fn tun(&self, host: Host, name: &str, mtu: u16) {
        self.ip(host, &format!("tuntap add dev {name} mode tun"));
        // No link-local address, and so no solicitations that the program would have to tell from packets.
        self.ip(host, &format!("link set {name} addrgenmode none"));
        self.ip(host, &format!("link set {name} mtu {mtu} up"));
    }
}
