//! Pinholes of this router's IPv6 firewall: which uplinks have a table for them, and its changes. It stands beside the NAT's
//! table, also where there is no NAT, and filters IPv6 when that one filters IPv4.

use std::io::ErrorKind;
use std::path::Path;

use engine::gateway::{PinholeReading, UplinkEffect};
use engine::gateways::Place;
use engine::nat::NatFailure;
use engine::pinholes::{FirewallChange, Flows};
use wire::pcp::Protocol;

use super::nat1::make_all_anew;
use super::uplink::Uplink;
use super::{Datagram, Links, Outcome, Shell};
use crate::config::Config;
use crate::exit::Failure;
use crate::nft::pinholes::{Change, PinholeRule, Pinholes, PinholesConfig};
use crate::sockets;

impl Shell {
    /// At the start. Without the filter nothing depends on the table but pinholes themselves.
    pub(super) async fn open_pinholes(&mut self, place: Place) -> Result<(), Failure> {
        // The demonstration changes nothing of the machine it runs on.
        if let Links::Fixed(..) = self.links {
            return Ok(());
        }
        let uplink = &mut self.uplinks[place];
        let Some(table) = table(&self.config, uplink) else { return Ok(()) };
        let filter = table.filter;
        match Pinholes::open(table).await {
            Ok(pinholes) => uplink.pinholes = Some(pinholes),
            Err(error) if filter && has_ipv6() => return Err(super::nat1::failure(&error)),
            Err(error) => tracing::warn!(
                "no IPv6 pinholes by {}: {error} ([lan] ipv6_pinholes = false: nobody is offered any)",
                uplink.interface()
            ),
        }
        Ok(())
    }

    /// The interfaces of the LAN may be others now. True if the table is as it should be.
    pub(super) async fn move_pinholes(&mut self, place: Place) -> bool {
        let uplink = &mut self.uplinks[place];
        let table = table(&self.config, uplink);
        let (Some(pinholes), Some(table)) = (&mut uplink.pinholes, table) else { return true };
        if *pinholes.config() == table {
            return true;
        }
        let made = pinholes.reconfigure(table).await;
        if let Err(error) = &made {
            tracing::warn!("the table of IPv6 pinholes could not be made anew: {error}; trying again");
        }
        made.is_ok()
    }

    pub(super) async fn change_firewall(
        &mut self,
        place: Place,
        change: FirewallChange,
    ) -> Result<(), NatFailure> {
        match change {
            FirewallChange::Open(flows) => self.change_pinhole(place, true, rule(flows)).await,
            FirewallChange::Close(flows) => self.change_pinhole(place, false, rule(flows)).await,
        }
    }

    pub(super) async fn read_pinhole(&mut self, place: Place, what: PinholeReading) -> Option<u32> {
        match what {
            PinholeReading::Packets(flows) => self.pinhole_packets(place, rule(flows)).await,
            PinholeReading::Timeout(protocol) => Some(idle_timeout(protocol)),
        }
    }

    /// The socket towards the provider's IPv6 firewall.
    pub(super) fn perform_firewall_uplink(&mut self, place: Place, effect: UplinkEffect) {
        match effect {
            UplinkEffect::Open(server) => {
                self.uplinks[place].firewall = None;
                let wrap = |from, bytes| Datagram::Firewall { from, bytes };
                let refused = move || Datagram::FirewallUnreachable(server);
                let outcome = match self.connect(place, server, wrap, refused) {
                    Ok((reading, source)) => {
                        self.uplinks[place].firewall = Some((server, reading));
                        Outcome::FirewallOpened(server, source)
                    }
                    Err(error) => Outcome::FirewallFailed(server, error.to_string()),
                };
                self.outcomes.push_back((place, outcome));
            }
            UplinkEffect::Close => self.uplinks[place].firewall = None,
            UplinkEffect::Send { to, bytes } => {
                let socket = self.uplinks[place].firewall.as_ref().filter(|(server, _)| *server == to);
                if let Some((_, firewall)) = socket
                    && let Err(error) = firewall.sender.send(&bytes)
                {
                    // As if lost on the way: it is sent again. The error may be that of the last one.
                    tracing::debug!("to {to}: {error}");
                    if sockets::is_refused(&error) {
                        self.outcomes.push_back((place, Outcome::FirewallUnreachable(to)));
                    }
                }
            }
        }
    }

    /// Opens a pinhole, or closes it; one that is so already stays.
    pub(super) async fn change_pinhole(
        &mut self,
        place: Place,
        open: bool,
        rule: PinholeRule,
    ) -> Result<(), NatFailure> {
        let uplink = &mut self.uplinks[place];
        let Some(pinholes) = &mut uplink.pinholes else {
            return Err(NatFailure::Kernel("there is no table for IPv6 pinholes".to_owned()));
        };
        if pinholes.holds(&rule) == open {
            return Ok(());
        }
        let change = if open { Change::Open(rule) } else { Change::Close(rule) };
        let mut result = pinholes.apply(&[change]).await;
        if result.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            (result, _) = make_all_anew(uplink).await;
            if let (Ok(()), Some(pinholes)) = (&result, &mut uplink.pinholes) {
                result = pinholes.apply(&[change]).await;
            }
        }
        result.map_err(|error| NatFailure::Kernel(error.to_string()))
    }

    /// How many packets a pinhole has let in, as far as the answer has room for.
    async fn pinhole_packets(&mut self, place: Place, rule: PinholeRule) -> Option<u32> {
        let uplink = &mut self.uplinks[place];
        let mut counted = uplink.pinholes.as_mut()?.packets(&rule).await;
        let held = uplink.pinholes.as_ref()?.holds(&rule);
        if held && counted.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            make_all_anew(uplink).await.0.ok()?;
            counted = uplink.pinholes.as_mut()?.packets(&rule).await;
        }
        match counted {
            Ok(packets) => Some(u32::try_from(packets).unwrap_or(u32::MAX)),
            Err(error) => {
                tracing::debug!("{error}");
                None
            }
        }
    }
}

fn rule(flows: Flows) -> PinholeRule {
    PinholeRule {
        protocol: flows.to.protocol.0,
        internal: flows.to.addr,
        internal_port: flows.to.port,
        remote: flows.remote,
        remote_port: flows.remote_port,
    }
}

/// After how many seconds without a packet connection tracking forgets a flow that was answered; the kernel's usual ones where it
/// does not tell.
fn idle_timeout(protocol: Protocol) -> u32 {
    let (name, usual) = match protocol {
        Protocol::UDP => ("udp_timeout_stream", 120),
        _ => ("tcp_timeout_established", 432_000),
    };
    let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"));
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(usual)
}

/// What an uplink's table is to be like, if it is to have one. Which of its interfaces is in use makes no difference.
fn table(config: &Config, uplink: &Uplink) -> Option<PinholesConfig> {
    let filter = uplink.has_nat() && config.nat.forward_filter;
    (filter || config.lan.ipv6_pinholes).then(|| PinholesConfig {
        name: uplink.line.table.clone(),
        wan_interfaces: uplink.line.ways.iter().map(|way| way.interface.clone()).collect(),
        lan_interfaces: config.lan.interfaces.0.iter().map(|name| name.0.clone()).collect(),
        filter,
        mark: Some(config.mark()).filter(|mark| *mark != 0),
    })
}

/// Where the kernel has no IPv6, there is nothing to filter.
fn has_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::Ipv4Addr;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::config::{Interface, Interfaces};
    use crate::event_loop::nat1::open_nft;
    use crate::netlink::Netlink;
    use engine::nat::{NatChange, NatRule};
    use tokio::sync::mpsc;

    const INSIDE: &str = "PF_INSIDE_PINHOLES";

    /// A network namespace, gone when this is.
    struct Namespace(String);

    impl Drop for Namespace {
        fn drop(&mut self) {
            let _ = Command::new("ip").args(["netns", "del", &self.0]).stderr(Stdio::null()).status();
        }
    }

    /// Runs the test called `name` in a network namespace of its own; says so where that cannot be.
    fn alone(name: &str, body: impl AsyncFnOnce()) {
        if std::env::var_os(INSIDE).is_some() {
            return crate::run::runtime().unwrap().block_on(body());
        }
        let namespace = Namespace(format!("pfs-{}", std::process::id()));
        let made = Command::new("ip").args(["netns", "add", &namespace.0]).output();
        if !made.is_ok_and(|output| output.status.success()) {
            let _ = writeln!(std::io::stderr(), "SKIPPED: network namespaces need root and iproute2");
            return;
        }
        let status = Command::new("ip")
            .args(["netns", "exec", &namespace.0])
            .arg(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(INSIDE, "1")
            .status()
            .unwrap();
        assert!(status.success(), "failed inside the namespace, see above");
    }

    fn nft(command: &str) -> String {
        let output = Command::new("nft").arg(command).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn shell(more: &str) -> Shell {
        let text = format!("[wan]\ninterface = \"wan0\"\n{more}[lan]\ninterfaces = [\"lan0\"]\n");
        let config = Config::parse(Path::new("test"), &text).unwrap();
        let device = crate::run::device(&config, &crate::state::Identity::random());
        let (_, received) = mpsc::channel(1);
        Shell::new(config, None, device, Links::Kernel(Netlink::open().unwrap()), received)
    }

    /// What somebody has flushed is made anew by whichever change comes next, or who asks, both tables with all that was in them.
    #[test]
    fn both_tables_are_made_anew() {
        alone("event_loop::pinholes::tests::both_tables_are_made_anew", async || {
            let mut shell = shell("[nat]\nforward_filter = true\nmark = 0x10\n");
            shell.open_pinholes(0).await.unwrap();
            shell.uplinks[0].nft = Some(open_nft(&shell.config, &shell.uplinks[0]).await.unwrap());
            let rule = |port| PinholeRule {
                protocol: 6,
                internal: "2001:db8::2".parse().unwrap(),
                internal_port: port,
                remote: None,
                remote_port: None,
            };
            let install = |port| NatChange::Install {
                rule: NatRule {
                    protocol: Protocol::TCP,
                    port,
                    internal: std::net::SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), port),
                    remote_peer: None,
                },
                external: None,
            };
            let listed = || (nft("list table inet portferry"), nft("list table ip6 portferry"));
            shell.change_nat(0, install(81)).await.unwrap();
            for _ in 0..2 {
                shell.change_pinhole(0, true, rule(80)).await.unwrap();
            }
            nft("flush ruleset");
            shell.change_pinhole(0, true, rule(81)).await.unwrap();
            let (nat, pinholes) = listed();
            assert!(nat.contains("tcp . 81 : 10.0.0.2 . 81") && nat.contains("drop"), "{nat}");
            for wanted in ["tcp . 2001:db8::2 . 80", "tcp . 2001:db8::2 . 81", "drop", "mark | 0x00000010"] {
                assert!(pinholes.contains(wanted), "{wanted} in {pinholes}");
            }
            nft("flush ruleset");
            shell.change_nat(0, install(82)).await.unwrap();
            let (nat, pinholes) = listed();
            assert!(nat.contains("tcp . 81 :") && nat.contains("tcp . 82 :"), "{nat}");
            assert!(pinholes.contains("2001:db8::2 . 80") && pinholes.contains("drop"), "{pinholes}");
            nft("flush ruleset");
            assert_eq!(shell.pinhole_packets(0, rule(80)).await, Some(0));
            assert_eq!(shell.pinhole_packets(0, rule(9)).await, None);
            shell.change_pinhole(0, false, rule(80)).await.unwrap();
            shell.change_pinhole(0, false, rule(80)).await.unwrap();
            let (_, pinholes) = listed();
            assert!(!pinholes.contains("2001:db8::2 . 80") && pinholes.contains("2001:db8::2 . 81"));

            // The LAN has another interface.
            shell.config.lan.interfaces = Interfaces(vec![Interface("lan7".into())]);
            assert!(shell.move_pinholes(0).await);
            let (_, pinholes) = listed();
            assert!(pinholes.contains("lan7") && pinholes.contains("2001:db8::2 . 81"), "{pinholes}");
            shell.close().await;
            assert_eq!(nft("list ruleset"), "");
        });
    }

    /// Not where nobody wants it; with the filter also where nobody is to open any.
    #[test]
    fn which_uplinks_have_a_table() {
        for (more, wanted) in [
            ("", Some(false)),
            ("nat = \"none\"\n", Some(false)),
            ("nat = \"none\"\n[nat]\nforward_filter = true\n", Some(false)),
            ("[nat]\nforward_filter = true\n", Some(true)),
        ] {
            for offered in [true, false] {
                let text = format!(
                    "[wan]\ninterface = \"wan0\"\n{more}[lan]\ninterfaces = [\"lan0\"]\nipv6_pinholes = {offered}\n"
                );
                let config = Config::parse(Path::new("test"), &text).unwrap();
                let uplink = Uplink::new(config.lines().remove(0));
                let filter = table(&config, &uplink).map(|table| table.filter);
                let wanted = wanted.filter(|filter| offered || *filter);
                assert_eq!(filter, wanted, "{text}");
            }
        }
    }
}
