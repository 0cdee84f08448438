//! The local control socket: `portferry status` and `portferry mappings` ask, the gateway answers in JSON.
//!
//! A question is one word and a line feed, the answer one JSON document, then the connection ends. Who may ask is a
//! matter of the socket's permissions.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use engine::claims::AskedBy;
use engine::gateway::LanCounters;
use engine::pinholes::Flows;
use engine::policy::{Device, Verb as ConsentVerb};
use engine::prefix::Prefix;
use engine::status::{MappingStatus, PinholeStatus, Status};
use engine::table::Health;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::config::hosts_text;
use crate::http::Counted;

mod policy;
mod socket;

use policy::refused;
pub use policy::{ConsentReport, ConsentsReport, DecidedReport, RefusedReport, WaitingReport, WishReport};
pub use socket::{Listening, Server, listen, query};

/// What can be asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Question {
    /// A [`StatusReport`].
    Status,
    /// A list of [`MappingReport`]s.
    Mappings,
    /// A list of [`PinholeReport`]s.
    Pinholes,
    /// A [`ReleaseReport`], after the mappings or pinholes of this LAN host are gone.
    Release(IpAddr),
    /// A [`ConsentsReport`].
    Consents,
    /// A [`ConsentReport`], after the owner's decision about this device counts.
    Consent(ConsentVerb, Device),
    /// An [`OfferReport`], after what hooks of DHCP clients have said is read again.
    DhcpServers,
}

impl Question {
    /// The line that asks it.
    pub(crate) fn line(self) -> String {
        match self {
            Question::Status => "status".to_owned(),
            Question::Mappings => "mappings".to_owned(),
            Question::Pinholes => "pinholes".to_owned(),
            Question::Release(host) => format!("release {host}"),
            Question::Consents => "consents".to_owned(),
            Question::Consent(verb, device) => format!("consent {} {device}", consent_word(verb)),
            Question::DhcpServers => "dhcp-servers".to_owned(),
        }
    }

    pub(crate) fn parse(line: &str) -> Option<Self> {
        match line.split_once(' ') {
            None if line == "status" => Some(Question::Status),
            None if line == "mappings" => Some(Question::Mappings),
            None if line == "pinholes" => Some(Question::Pinholes),
            None if line == "consents" => Some(Question::Consents),
            None if line == "dhcp-servers" => Some(Question::DhcpServers),
            Some(("release", host)) => host.parse().ok().map(Question::Release),
            Some(("consent", decision)) => {
                let (word, device) = decision.split_once(' ')?;
                let all = [ConsentVerb::Allow, ConsentVerb::Deny, ConsentVerb::Forget];
                let verb = all.into_iter().find(|&verb| consent_word(verb) == word)?;
                Some(Question::Consent(verb, device.parse().ok()?))
            }
            _ => None,
        }
    }
}

fn consent_word(verb: ConsentVerb) -> &'static str {
    match verb {
        ConsentVerb::Allow => "allow",
        ConsentVerb::Deny => "deny",
        ConsentVerb::Forget => "forget",
    }
}

/// A question on its way to the gateway.
#[derive(Debug)]
pub struct Asked {
    /// The question.
    pub question: Question,
    /// Where the answer goes.
    pub reply: oneshot::Sender<String>,
}

/// The gateway, as `portferry status --json` prints it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct StatusReport {
    /// portferry's version.
    pub version: String,
    /// LAN interfaces with their IPv4 addresses.
    pub lan: Vec<InterfaceReport>,
    /// The usual uplink.
    #[serde(flatten)]
    pub usual: UplinkReport,
    /// Those that hosts are bound to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra: Vec<ExtraReport>,
    /// What LAN hosts have asked in PCP and NAT-PMP since the start.
    #[serde(default)]
    pub lan_requests: LanRequestsReport,
    /// What policy has refused since the start, by reason and by rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedReport>,
    /// How many devices wait for the owner's consent.
    #[serde(default)]
    pub awaiting_consent: usize,
    /// What LAN hosts have sent over HTTP since the start.
    #[serde(default)]
    pub http: HttpReport,
    /// SSDP datagrams that were not answered.
    pub ignored_ssdp: u64,
    /// Searches that LAN hosts have sent since the start.
    #[serde(default)]
    pub searches: u64,
    /// Those of this router itself, such as `portferry doctor` sends.
    #[serde(default)]
    pub own_searches: u64,
}

/// What LAN hosts have asked at port 5351.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct LanRequestsReport {
    /// Requests in PCP that were answered with success.
    pub pcp: u64,
    /// The same in NAT-PMP.
    pub nat_pmp: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Datagrams without an answer: no requests, not from the LAN, too many.
    pub ignored: u64,
}

/// What has become of HTTP connections and requests of LAN hosts.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct HttpReport {
    /// Requests that were answered as they wished.
    pub answered: u64,
    /// Actions that were answered with a UPnP error.
    pub faults: u64,
    /// Requests that were refused by HTTP's own statuses, and what was no request.
    pub refused: u64,
    /// Connections that were closed at once: too many, or not from the LAN.
    pub turned_away: u64,
    /// Connections that were given up: too slow, cut off, or another host needed the place.
    pub dropped: u64,
}

impl From<Counted> for HttpReport {
    fn from(counted: Counted) -> Self {
        let Counted { answered, faults, refused, turned_away, dropped } = counted;
        Self { answered, faults, refused, turned_away, dropped }
    }
}

/// An uplink of a [`StatusReport`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct UplinkReport {
    /// "nftables" or "none".
    pub nat: String,
    /// The WAN interface in use.
    pub wan: WanReport,
    /// The provider's server.
    pub server: Option<SocketAddr>,
    /// All servers that may be asked, the best first.
    #[serde(default)]
    pub servers: Vec<SocketAddr>,
    /// How it is asked: "PCP", "NAT-PMP", "UPnP IGD", or "none".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// "unknown", "answering" or "silent".
    pub uplink: String,
    /// Seconds since it last answered.
    pub last_heard: Option<u64>,
    /// Its last Epoch Time, in seconds.
    pub epoch: Option<u32>,
    /// The address at the provider's NAT.
    pub external_address: Option<Ipv4Addr>,
    /// The external address of the provider's router, when that is of another NAT above it: nobody out there can reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat_above: Option<Ipv4Addr>,
    /// Seconds that the gateway has been connected.
    pub uptime: Option<u64>,
    /// How many mappings there are.
    pub mappings: usize,
    /// How many pinholes there are in the IPv6 firewall.
    #[serde(default)]
    pub pinholes: usize,
    /// The PCP server of the provider's IPv6 firewall, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firewall_server: Option<SocketAddr>,
    /// Mappings that the provider has given and no application has been told of, kept for a while in case one asks.
    pub held: usize,
    /// Why the state cannot be written at the moment, so that new mappings are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_error: Option<String>,
    /// Datagrams of the uplink that were not believed.
    pub ignored_upstream: u64,
    /// WANIPConnection:2's SystemUpdateID.
    pub system_update_id: u32,
}

/// An uplink that hosts are bound to.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ExtraReport {
    /// Whose it is: addresses and prefixes.
    pub hosts: Vec<String>,
    /// The uplink.
    #[serde(flatten)]
    pub uplink: UplinkReport,
}

/// An interface of a [`StatusReport`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct InterfaceReport {
    /// Its name.
    pub name: String,
    /// Its IPv4 addresses.
    pub addresses: Vec<Ipv4Addr>,
}

/// The WAN interface of a [`StatusReport`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct WanReport {
    /// Its name.
    pub name: String,
    /// Its IPv4 addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// The PCP servers that DHCP offers there, each by its addresses, in the order in which they are tried.
    #[serde(default)]
    pub offered_pcp_servers: Vec<Vec<IpAddr>>,
}

/// What a hook of a DHCP client hears.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct OfferReport {
    /// As in [`WanReport`].
    pub offered_pcp_servers: Vec<Vec<IpAddr>>,
}

/// What `portferry release --json` prints.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ReleaseReport {
    /// The LAN host.
    pub host: IpAddr,
    /// How many mappings, or pinholes, of it are gone.
    pub released: usize,
    /// That is stored; if not, a crash brings them back.
    pub stored: bool,
}

/// A mapping, as `portferry mappings --json` prints it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct MappingReport {
    /// The uplink that it is at, unless that is the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<String>,
    /// "TCP" or "UDP".
    pub protocol: String,
    /// Address and port at the provider's NAT.
    pub external: SocketAddrV4,
    /// The port of this router's own NAT.
    pub nat_port: Option<u16>,
    /// The LAN host and its port.
    pub internal: SocketAddrV4,
    /// The only remote host that may come in.
    pub remote_host: Option<Ipv4Addr>,
    /// The name that the application gave for it.
    pub remote_name: Option<String>,
    /// The application's own words.
    pub description: String,
    /// By which protocols its host has asked for it: "UPnP", "PCP", "NAT-PMP". It stands until the last of them has let it go.
    #[serde(default)]
    pub asked_by: Vec<String>,
    /// Seconds since it was made.
    pub age: u64,
    /// Seconds left of the lease; absent for ever.
    pub lease_left: Option<u64>,
    /// Seconds left of the lifetime that the provider granted.
    pub lifetime_left: u64,
    /// "active", "degraded" (the provider has not confirmed it for a while, or refuses to renew it), "deleting", or "local" (in
    /// this router only, until the provider answers; its external address is 0.0.0.0 as long).
    pub state: String,
}

/// A pinhole, as `portferry pinholes --json` prints it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct PinholeReport {
    /// The uplink that it is at, unless that is the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<String>,
    /// By which control points know it (`UniqueID`).
    pub id: u16,
    /// "TCP" or "UDP".
    pub protocol: String,
    /// The LAN host and its port.
    pub internal: SocketAddrV6,
    /// The only remote host that may come in.
    pub remote_host: Option<Ipv6Addr>,
    /// The only port that it may come from.
    pub remote_port: Option<u16>,
    /// The application's own words.
    pub description: String,
    /// By which protocols its host has asked for it: "UPnP", "PCP". It stands until the last of them has let it go.
    pub asked_by: Vec<String>,
    /// Seconds since it was asked for.
    pub age: u64,
    /// Seconds left of the lease.
    pub lease_left: Option<u64>,
    /// "open", "opening" while the provider is asked, or "degraded": the provider has not renewed it lately.
    pub state: String,
    /// Address and port at the provider's firewall, where that was asked and lets it in.
    pub at_provider: Option<SocketAddr>,
}

impl From<PinholeStatus> for PinholeReport {
    fn from(pinhole: PinholeStatus) -> Self {
        let Flows { to, remote, remote_port } = pinhole.flows;
        Self {
            uplink: None,
            id: pinhole.id,
            protocol: if to.protocol == wire::pcp::Protocol::UDP { "UDP" } else { "TCP" }.to_owned(),
            internal: SocketAddrV6::new(to.addr, to.port, 0, 0),
            remote_host: remote,
            remote_port,
            description: pinhole.description,
            asked_by: names(pinhole.asked_by),
            age: pinhole.age.as_secs(),
            lease_left: pinhole.lease_left.map(|left| left.as_secs()),
            state: match (pinhole.is_open, pinhole.is_degraded) {
                (false, _) => "opening",
                (true, true) => "degraded",
                (true, false) => "open",
            }
            .to_owned(),
            at_provider: pinhole.at_provider,
        }
    }
}

impl StatusReport {
    /// Of the usual uplink, and of those that hosts are bound to.
    pub fn new(usual: Status, extra: impl Iterator<Item = (Vec<Prefix>, Status)>, http: Counted) -> Self {
        let mut served = LanRequestsReport::default();
        let (mut denied, mut awaiting_consent) = (Vec::new(), 0);
        let mut add = |status: &Status| {
            served.add(status.lan_served);
            refused(&mut denied, &status.policy);
            awaiting_consent += status.policy.waiting;
        };
        add(&usual);
        let extra: Vec<_> = extra.inspect(|(_, status)| add(status)).collect();
        let extra = extra.into_iter();
        let extra = extra.map(|(hosts, status)| ExtraReport {
            hosts: hosts.iter().map(hosts_text).collect(),
            uplink: status.into(),
        });
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            lan: usual
                .lan
                .iter()
                .map(|(name, addresses)| InterfaceReport { name: name.clone(), addresses: addresses.clone() })
                .collect(),
            lan_requests: served,
            refused: denied,
            awaiting_consent,
            http: http.into(),
            ignored_ssdp: usual.ignored_ssdp,
            searches: usual.searches.hosts,
            own_searches: usual.searches.own,
            usual: usual.into(),
            extra: extra.collect(),
        }
    }
}

impl LanRequestsReport {
    fn add(&mut self, served: LanCounters) {
        self.pcp += served.pcp;
        self.nat_pmp += served.nat_pmp;
        self.refused += served.refused;
        self.ignored += served.ignored;
    }
}

impl From<Status> for UplinkReport {
    fn from(status: Status) -> Self {
        Self {
            nat: if status.own_nat { "nftables" } else { "none" }.to_owned(),
            wan: WanReport {
                name: status.wan,
                addresses: status.wan_addresses,
                offered_pcp_servers: status.offered,
            },
            server: status.server,
            servers: status.servers,
            protocol: status.protocol.map(|protocol| protocol.to_string()),
            uplink: match status.answering {
                None => "unknown",
                Some(true) => "answering",
                Some(false) => "silent",
            }
            .to_owned(),
            last_heard: status.last_heard.map(|d| d.as_secs()),
            epoch: status.epoch,
            external_address: status.external,
            nat_above: status.nat_above,
            uptime: status.uptime.map(|d| d.as_secs()),
            mappings: status.mappings,
            pinholes: status.pinholes,
            firewall_server: status.firewall,
            held: status.held,
            store_error: status.store_error,
            ignored_upstream: status.ignored_upstream,
            system_update_id: status.system_update_id,
        }
    }
}

impl From<MappingStatus> for MappingReport {
    fn from(mapping: MappingStatus) -> Self {
        Self {
            uplink: None,
            protocol: if mapping.protocol == wire::pcp::Protocol::UDP { "UDP" } else { "TCP" }.to_owned(),
            external: mapping.external,
            nat_port: mapping.nat_port,
            internal: mapping.internal,
            remote_host: mapping.remote_peer,
            remote_name: mapping.remote_name,
            description: mapping.description,
            asked_by: names(mapping.asked_by),
            age: mapping.age.as_secs(),
            lease_left: mapping.lease_left.map(|d| d.as_secs()),
            lifetime_left: mapping.lifetime_left.as_secs(),
            state: match mapping.health {
                Health::Degraded if mapping.external.ip().is_unspecified() => "local",
                Health::Active => "active",
                Health::Degraded => "degraded",
                Health::Deleting => "deleting",
            }
            .to_owned(),
        }
    }
}

fn names(by: AskedBy) -> Vec<String> {
    let all = [("UPnP", by.igd), ("PCP", by.pcp), ("NAT-PMP", by.nat_pmp)];
    all.into_iter().filter(|&(_, asks)| asks).map(|(name, _)| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is asked is what is heard, and whatever fits into the octets that are read; nothing else is a question.
    #[test]
    fn questions_as_they_are_written() {
        let hardware: Device = "02:00:5e:10:00:01".parse().unwrap();
        let long: Device = "2001:db8:1111:2222:3333:4444:5555:6666".parse().unwrap();
        for question in [
            Question::Status,
            Question::Mappings,
            Question::Pinholes,
            Question::DhcpServers,
            Question::Consents,
            Question::Release("192.168.1.10".parse().unwrap()),
            Question::Consent(ConsentVerb::Allow, hardware),
            Question::Consent(ConsentVerb::Deny, "192.168.1.10".parse().unwrap()),
            Question::Consent(ConsentVerb::Forget, long),
        ] {
            let line = question.line();
            assert_eq!(Question::parse(&line), Some(question), "{line}");
            assert!(line.len() < 64, "{line}");
        }
        for line in [
            "",
            "consent",
            "consent allow",
            "consent allow laptop",
            "consent permit 192.168.1.10",
            "status x",
        ] {
            assert_eq!(Question::parse(line), None, "{line}");
        }
    }
}
