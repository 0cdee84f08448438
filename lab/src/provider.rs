//! The provider's PCP server in the laboratory: Debian's miniupnpd, the implementation met most often.
//!
//! What it does (2.3.1, nftables, seen on the wire) and a test must reckon with:
//!
//! * PREFER_FAILURE does not fail when the port is taken: SUCCESS with the next free port. CANNOT_PROVIDE_EXTERNAL comes
//!   only where its permission rules deny the port ([`Options::rules`]), or when another external address is suggested.
//! * The nonce is not checked on MAP (another one replaces), only on delete (NOT_AUTHORIZED).
//! * One internal port may get several external ones; a delete takes one of them away at a time.
//! * THIRD_PARTY needs `pcp_allow_thirdparty`; then everyone may, and senders need not be subscribers.
//! * A mapping outlives the server: SIGTERM leaves the rules in the kernel.
//! * Each request costs it time that grows faster than the number of its mappings: half a second at one hundred and
//!   fifty. Where there are hundreds, [`QuickProvider`] takes its place.

use std::fs;
use std::net::SocketAddrV4;
use std::time::Duration;

use crate::netns::{EXTERNAL, Host, Network, PROVIDER, Process};
use crate::pcp_server::Usage;
use crate::wait;

/// The chains that miniupnpd changes, in a table of its own, for the namespace it runs in.
pub(crate) const CHAINS: &str = "\
table inet miniupnpd {
 chain forward {
  type filter hook forward priority 0; policy accept;
  jump miniupnpd
 }
 chain miniupnpd {
 }
 chain prerouting {
  type nat hook prerouting priority -100; policy accept;
  jump prerouting_miniupnpd
 }
 chain postrouting {
  type nat hook postrouting priority 100; policy accept;
  jump postrouting_miniupnpd
 }
 chain prerouting_miniupnpd {
 }
 chain postrouting_miniupnpd {
 }
}
";

/// The lines of miniupnpd's configuration that name [`CHAINS`].
pub(crate) const CHAIN_SETTINGS: &str = "\
upnp_table_name=miniupnpd
upnp_nat_table_name=miniupnpd
upnp_forward_chain=miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
";

/// How generous the provider is.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The least lifetime it grants, in seconds.
    pub min_lifetime: u32,
    /// The greatest lifetime it grants, in seconds; must be greater than the least.
    pub max_lifetime: u32,
    /// Whether THIRD_PARTY is allowed.
    pub third_party: bool,
    /// Permission rules, `allow|deny external-ports address/mask internal-ports`; the first match wins.
    pub rules: &'static str,
    /// It speaks UPnP and neither PCP nor NAT-PMP: a router that the provider has put into somebody's home.
    pub upnp: bool,
}

impl Default for Options {
    /// miniupnpd's own lifetimes, no THIRD_PARTY, all ports.
    fn default() -> Self {
        Self {
            min_lifetime: 120,
            max_lifetime: 86_400,
            third_party: false,
            rules: "allow 0-65535 0.0.0.0/0 0-65535",
            upnp: false,
        }
    }
}

/// A mapping as the provider's kernel enforces it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Forwarding {
    /// 6 TCP, 17 UDP.
    pub protocol: u8,
    /// External port, on any of the provider's Internet addresses.
    pub external_port: u16,
    /// Where to: a subscriber, or with THIRD_PARTY a LAN host.
    pub to: SocketAddrV4,
}

/// The running PCP server.
pub struct Provider<'a> {
    network: &'a Network,
    /// What it says when it listens.
    listens: &'static str,
    process: Process,
}

impl<'a> Provider<'a> {
    /// Starts it; returns when it listens.
    #[track_caller]
    #[must_use]
    pub fn start(network: &'a Network, options: Options) -> Self {
        network.nft(Host::Provider, CHAINS);
        let directory = network.directory();
        let Options { min_lifetime, max_lifetime, third_party, rules, upnp } = options;
        let word = |yes| if yes { "yes" } else { "no" };
        let (third_party, enable_upnp, enable_natpmp) = (word(third_party), word(upnp), word(!upnp));
        let uuid = format!("8d5f1c2e-0001-4000-8000-{:012x}", std::process::id());
        let settings = format!(
            "ext_ifname=inet0\next_ip={EXTERNAL}\nlistening_ip=cust0\nipv6_disable=yes\nenable_upnp={enable_upnp}\nenable_natpmp={enable_natpmp}\n\
             http_port=5000\nsecure_mode=yes\nuuid={uuid}\n\
             min_lifetime={min_lifetime}\nmax_lifetime={max_lifetime}\npcp_allow_thirdparty={third_party}\nsystem_uptime=no\n\
             {CHAIN_SETTINGS}{rules}\n"
        );
        let listens = if upnp { "HTTP listening on port" } else { "Listening for NAT-PMP/PCP" };
        fs::write(directory.join("provider.conf"), settings).expect("the directory is ours");
        Self { network, listens, process: Self::run(network, listens) }
    }

    /// What it has used since its start.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage::of(&self.process)
    }

    /// The server dies, its rules stay.
    #[track_caller]
    pub fn stop(&mut self) {
        // Once is not enough: it looks whether it is to end, then waits without end for a packet. A signal that comes in
        // between is seen at the next one.
        wait::eventually("the end of the provider's miniupnpd", Duration::from_secs(5), || {
            self.process.signal("TERM");
            self.process.ended()
        });
    }

    /// The server comes back, its epoch starts at zero again.
    #[track_caller]
    pub fn restart(&mut self) {
        self.process = Self::run(self.network, self.listens);
    }

    /// Another firmware: it speaks everything from its next start on.
    pub fn learn_pcp(&mut self) {
        let file = self.network.directory().join("provider.conf");
        let settings = fs::read_to_string(&file).expect("it was written before");
        fs::write(file, settings.replace("enable_natpmp=no", "enable_natpmp=yes"))
            .expect("the directory is ours");
        self.listens = "Listening for NAT-PMP/PCP";
    }

    /// The server falls silent: no answer, not even ICMP.
    #[track_caller]
    pub fn freeze(&self) {
        self.process.signal("STOP");
    }

    /// The end of [`Self::freeze`]: what it was asked meanwhile is answered now.
    #[track_caller]
    pub fn thaw(&self) {
        self.process.signal("CONT");
    }

    /// Its rules are gone, as after a reboot; the server itself doesn't notice.
    #[track_caller]
    pub fn forget(&self) {
        for chain in ["miniupnpd", "prerouting_miniupnpd", "postrouting_miniupnpd"] {
            self.network.run(Host::Provider, "nft", ["flush", "chain", "inet", "miniupnpd", chain]);
        }
    }

    /// All mappings in force, read from the kernel.
    #[track_caller]
    #[must_use]
    pub fn forwardings(&self) -> Vec<Forwarding> {
        let rules = self.network.run(
            Host::Provider,
            "nft",
            ["-n", "list", "chain", "inet", "miniupnpd", "prerouting_miniupnpd"],
        );
        rules.lines().filter(|line| line.contains("dnat")).map(forwarding).collect()
    }

    /// Where an external port leads to.
    #[track_caller]
    #[must_use]
    pub fn forwarding(&self, protocol: u8, external_port: u16) -> Option<SocketAddrV4> {
        let all = self.forwardings();
        all.iter().find(|f| (f.protocol, f.external_port) == (protocol, external_port)).map(|f| f.to)
    }

    #[track_caller]
    fn run(network: &Network, listens: &str) -> Process {
        let file = |name: &str| network.directory().join(name).display().to_string();
        let arguments = ["-d".into(), "-f".into(), file("provider.conf"), "-P".into(), file("provider.pid")];
        // A log of its own for each run: the line waited for must be this run's.
        let run = (0..).find(|run| !network.directory().join(format!("provider-{run}.log")).exists());
        let name = format!("provider-{}", run.expect("numbers don't end"));
        let mut process = network.spawn(Host::Provider, &name, "miniupnpd", arguments);
        process.await_log(listens, Duration::from_secs(10));
        process
    }
}

/// A provider with the engine's own PCP server (`lab-pcp-server`) on a NAT of the kernel: for hundreds of mappings, and strict
/// (another nonce is NOT_AUTHORIZED, a freed port is held for its last owner). FILTER is answered and not enforced.
pub struct QuickProvider<'a> {
    network: &'a Network,
    program: &'a str,
    /// The longest that it grants, in seconds.
    lifetime: Option<u32>,
    runs: u32,
    process: Process,
}

impl<'a> QuickProvider<'a> {
    /// Starts `program`, which is `lab-pcp-server`; returns when it listens.
    #[track_caller]
    #[must_use]
    pub fn start(network: &'a Network, program: &'a str) -> Self {
        Self::begin(network, program, None)
    }

    /// The same, with lifetimes of so many seconds at most.
    #[track_caller]
    #[must_use]
    pub fn granting(network: &'a Network, program: &'a str, lifetime: u32) -> Self {
        Self::begin(network, program, Some(lifetime))
    }

    #[track_caller]
    fn begin(network: &'a Network, program: &'a str, lifetime: Option<u32>) -> Self {
        Self { network, program, lifetime, runs: 1, process: Self::run(network, program, lifetime, 0) }
    }

    /// It dies and comes back without any mapping; announces that, too.
    #[track_caller]
    pub fn lose_state(&mut self) {
        self.process.terminate(Duration::from_secs(5));
        self.process = Self::run(self.network, self.program, self.lifetime, self.runs);
        self.runs += 1;
    }

    /// All mappings in force, read from the kernel.
    #[track_caller]
    #[must_use]
    pub fn forwardings(&self) -> Vec<Forwarding> {
        let all = self.network.elements(Host::Provider, "labpcp", "ports").expect("its table is there");
        let all = all.into_iter();
        all.map(|(protocol, external_port, to)| Forwarding { protocol, external_port, to }).collect()
    }

    #[track_caller]
    fn run(network: &Network, program: &str, lifetime: Option<u32>, run: u32) -> Process {
        let addresses = [PROVIDER, EXTERNAL].map(|address| address.to_string());
        let arguments = addresses.into_iter().chain(lifetime.map(|lifetime| lifetime.to_string()));
        let mut process = network.spawn(Host::Provider, &format!("quick-provider-{run}"), program, arguments);
        process.await_log("listening", Duration::from_secs(10));
        process
    }
}

/// `iif "inet0" @nh,72,8 0x6 th dport 8080 dnat ip to 100.64.0.2:8080`: how nft prints miniupnpd's rules.
#[track_caller]
fn forwarding(line: &str) -> Forwarding {
    let after = |word: &str| {
        let mut words = line.split_whitespace().skip_while(|own| *own != word).skip(1);
        words.next().unwrap_or_default()
    };
    let read = || {
        let protocol = u8::from_str_radix(after("@nh,72,8").strip_prefix("0x")?, 16).ok()?;
        Some(Forwarding {
            protocol,
            external_port: after("dport").parse().ok()?,
            to: after("to").parse().ok()?,
        })
    };
    read().unwrap_or_else(|| panic!("not a rule that miniupnpd makes: {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_read_as_nft_prints_it() {
        let line = r#"		iif "inet0" @nh,72,8 0x11 th dport 5351 dnat ip to 100.64.0.2:5352"#;
        let expected =
            Forwarding { protocol: 17, external_port: 5351, to: "100.64.0.2:5352".parse().unwrap() };
        assert_eq!(forwarding(line), expected);
    }
}
