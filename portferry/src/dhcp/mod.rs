//! PCP servers that DHCP offers on the WAN interface (RFC 7291): what DHCP clients' hooks have handed in, and for whom none has
//! spoken what our own questions are answered with. Who asks when is the engine's matter.

pub mod hook;
pub mod offer;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use engine::dhcp::{DhcpInquiry, Notice, Output, Source, Version};
use engine::entropy::Entropy;
use engine::time::Instant;
use tokio::sync::mpsc;
use wire::dhcp::ServerAddresses;

use crate::config::{Config, DhcpMode};
use crate::log::Notices;
use crate::netlink::Interface;
use crate::privileged::Sockets;
use crate::sockets::{Reading, Spec};

/// Files of hooks, sockets, and the engine's inquiry.
pub struct Dhcp {
    inquiry: DhcpInquiry,
    sockets: BTreeMap<Version, Reading>,
    /// The kernel's number of the WAN interface.
    index: u32,
    /// What hooks said when it was last looked, and which file could not be read then.
    said: BTreeMap<Version, Vec<ServerAddresses>>,
    unreadable: BTreeMap<Version, String>,
}

/// Something came on a socket of a DHCP client's port.
#[derive(Debug)]
pub struct Datagram {
    /// Which.
    pub version: Version,
    /// Its content.
    pub bytes: Vec<u8>,
}

impl Dhcp {
    /// Nobody is asked yet.
    pub fn new(entropy: Box<dyn Entropy>) -> Self {
        Self {
            inquiry: DhcpInquiry::new(entropy),
            sockets: BTreeMap::new(),
            index: 0,
            said: BTreeMap::new(),
            unreadable: BTreeMap::new(),
        }
    }

    /// Looks at what hooks say of `wan`, `None` while it does not exist, and has the rest asked for. What is offered now:
    /// DHCPv6's servers, then DHCPv4's. `is_named`: somebody has chosen the servers.
    pub fn offered(
        &mut self,
        now: Instant,
        config: &Config,
        is_named: bool,
        wan: Option<&Interface>,
    ) -> Vec<ServerAddresses> {
        let wan = wan.filter(|wan| wan.up);
        self.index = wan.map_or(self.index, |wan| wan.index);
        let mode = config.uplink.dhcp;
        let mut offered = Vec::new();
        for version in Version::ALL {
            let by_hook = wan
                .filter(|_| matches!(mode, DhcpMode::Auto | DhcpMode::Hooks))
                .and_then(|wan| self.by_hook(offer::directory(&config.control.socket), &wan.name, version));
            let asks = match mode {
                // Who names a server wants that one, and no packets to strangers.
                DhcpMode::Auto => by_hook.is_none() && !is_named,
                DhcpMode::Inform => true,
                DhcpMode::Hooks | DhcpMode::Off => false,
            };
            let source = wan.filter(|_| asks).and_then(|wan| source(wan, version));
            self.inquiry.set_source(now, version, source);
            offered.extend(by_hook.unwrap_or_else(|| self.inquiry.servers(version).to_vec()));
        }
        offered
    }

    /// What a hook has said, if one has. What is new of it is worth a line.
    fn by_hook(
        &mut self,
        directory: &Path,
        interface: &str,
        version: Version,
    ) -> Option<Vec<ServerAddresses>> {
        match offer::read(directory, interface, version) {
            Ok(said) => {
                self.unreadable.remove(&version);
                let before = match &said {
                    Some(said) => self.said.insert(version, said.clone()),
                    None => self.said.remove(&version),
                }
                .unwrap_or_default();
                let servers = said.clone().unwrap_or_default();
                if servers != before {
                    tracing::info!("{}", Notice::Offered(version, servers));
                }
                said
            }
            Err(error) => {
                let error = error.to_string();
                if self.unreadable.get(&version) != Some(&error) {
                    let path = offer::path(directory, interface, version);
                    tracing::warn!("what a {version} hook said is passed over: {}: {error}", path.display());
                }
                self.unreadable.insert(version, error);
                None
            }
        }
    }

    /// When [`Dhcp::handle_timeout`] is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.inquiry.next_timeout()
    }

    /// What is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.inquiry.handle_timeout(now);
    }

    /// Something came.
    pub fn handle_datagram(&mut self, now: Instant, datagram: &Datagram) {
        self.inquiry.handle_datagram(now, datagram.version, &datagram.bytes);
    }

    /// Does what the inquiry wants done; whether other servers are offered now.
    pub(crate) async fn perform<T: Send + 'static>(
        &mut self,
        now: Instant,
        interface: &str,
        sockets: &Sockets,
        (queue, wrap): (&mpsc::Sender<T>, impl Fn(Datagram) -> T + Clone + Send + 'static),
        notices: &mut Notices,
    ) -> bool {
        let mut changed = false;
        while let Some(output) = self.inquiry.poll_output() {
            match output {
                Output::Open(source) => {
                    let version = source.version();
                    let wrap = wrap.clone();
                    let wrap = move |_, bytes| wrap(Datagram { version, bytes });
                    let spec = Spec::Dhcp { interface: interface.to_owned(), source: source.socket() };
                    let opened = sockets.open(spec, self.index).await;
                    let opened = opened.and_then(|socket| Reading::start(socket.into(), queue.clone(), wrap));
                    match opened {
                        Ok(reading) => drop(self.sockets.insert(version, reading)),
                        Err(error) => self.inquiry.handle_unopened(now, version, error.to_string()),
                    }
                }
                Output::Send { version, to, bytes } => {
                    if let Some(socket) = self.sockets.get(&version)
                        && let Err(error) = socket.sender.send_to(&bytes, to)
                    {
                        // As if lost on the way: it is sent again.
                        tracing::debug!("{version} to {to}: {error}");
                    }
                }
                Output::Close(version) => drop(self.sockets.remove(&version)),
                Output::Changed(_) => changed = true,
                Output::Notice(notice) => notices.line(now, notice.level(), &notice),
            }
        }
        changed
    }
}

/// Who asks by this DHCP: for DHCPv4 the interface's first address, for DHCPv6 its link-local one.
fn source(wan: &Interface, version: Version) -> Option<Source> {
    wan.addresses.iter().find_map(|(addr, _)| match (version, addr) {
        (Version::V4, IpAddr::V4(v4)) => Some(Source::V4(*v4, wan.mac)),
        (Version::V6, IpAddr::V6(v6)) if v6.is_unicast_link_local() => Some(Source::V6(*v6)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use engine::entropy::SeededEntropy;

    use super::*;
    use crate::scratch::Directory;

    fn config(directory: &Path, uplink: &str) -> Config {
        let socket = directory.join("control.sock");
        let text = format!(
            "[lan]\ninterfaces = [\"lan\"]\n[wan]\ninterface = \"wan0\"\n[control]\nsocket = {socket:?}\n[uplink]\n{uplink}\n"
        );
        Config::parse(Path::new("test"), &text).unwrap()
    }

    fn wan() -> Interface {
        let addresses = ["100.64.0.2", "2001:db8::2", "fe80::2"].map(|addr| (addr.parse().unwrap(), 24));
        Interface {
            index: 3,
            name: "wan0".into(),
            up: true,
            addresses: addresses.to_vec(),
            mac: Some([2, 0, 0, 0, 0, 7]),
        }
    }

    /// `uplink.dhcp` row by row: what is offered, and whether DHCPv4 and DHCPv6 are asked.
    #[test]
    fn hooks_and_questions() {
        let directory = Directory::new("dhcp");
        let now = Instant::from_secs(100);
        let v4: Vec<ServerAddresses> = vec![vec!["192.0.2.1".parse().unwrap()]];
        let v6: Vec<ServerAddresses> = vec![vec!["2001:db8::1".parse().unwrap()]];
        offer::write(&directory.0, "wan0", Version::V4, &v4).unwrap();
        let asked = |uplink: &str, wan: Option<&Interface>| {
            let mut dhcp = Dhcp::new(Box::new(SeededEntropy::new(1)));
            let config = config(&directory.0, uplink);
            let offered = dhcp.offered(now, &config, !config.uplink.servers.is_empty(), wan);
            // After two seconds whoever asks has asked.
            dhcp.handle_timeout(now + std::time::Duration::from_secs(2));
            let opened =
                std::iter::from_fn(|| dhcp.inquiry.poll_output()).filter_map(|output| match output {
                    Output::Open(source) => Some(source.version()),
                    _ => None,
                });
            (offered, opened.collect::<Vec<_>>())
        };
        let wan = wan();
        let row = |uplink| asked(uplink, Some(&wan));
        assert_eq!(row(""), (v4.clone(), vec![Version::V6]), "auto: no DHCPv6 hook has spoken");
        assert_eq!(row("servers = [\"192.0.2.9\"]"), (v4.clone(), vec![]), "auto, with a server");
        assert_eq!(row("dhcp = \"hooks\""), (v4.clone(), vec![]));
        assert_eq!(row("dhcp = \"inform\""), (vec![], vec![Version::V6, Version::V4]));
        assert_eq!(row("dhcp = \"off\""), (vec![], vec![]));
        assert_eq!(asked("", None), (vec![], vec![]), "no WAN");
        assert_eq!(asked("", Some(&Interface { up: false, ..wan.clone() })), (vec![], vec![]));

        offer::write(&directory.0, "wan0", Version::V6, &v6).unwrap();
        assert_eq!(row(""), ([v6, v4].concat(), vec![]), "DHCPv6 first");
        offer::write(&directory.0, "wan0", Version::V4, &[]).unwrap();
        offer::remove(&directory.0, "wan0", Version::V6).unwrap();
        assert_eq!(row(""), (vec![], vec![Version::V6]), "a hook that says none has spoken");
        std::fs::write(offer::path(&directory.0, "wan0", Version::V4), "192.0.2.1; reboot\n").unwrap();
        assert_eq!(row("").1, [Version::V6, Version::V4], "what cannot be read is as nothing");
    }
}
