//! The local control socket: `portferry status` and `portferry mappings` ask, the gateway answers in JSON.
//!
//! A question is one word and a line feed, the answer one JSON document, then the connection ends. Who may ask is a
//! matter of the socket's permissions.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use engine::claims::AskedBy;
use engine::gateway::LanCounters;
use engine::pinholes::Flows;
use engine::policy::{Device, Verb as ConsentVerb};
use engine::prefix::Prefix;
use engine::status::{MappingStatus, PinholeStatus, Status};
use engine::table::Health;
use rustix::fs::{Mode, fchmod};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use crate::config::hosts_text;
use crate::exit::Failure;
use crate::http::Counted;

mod policy;

use policy::refused;
pub use policy::{ConsentReport, ConsentsReport, DecidedReport, RefusedReport, WaitingReport, WishReport};

/// Who may ask: the owner and the group.
const MODE: u32 = 0o660;
/// As many as the standard library has wait.
const BACKLOG: i32 = 128;
/// Octets that are read of a question, with its line feed.
const MAX_QUESTION: u64 = 64;
/// How long an exchange may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the processes of one that was killed may take to be gone.
const DYING: Duration = Duration::from_secs(1);

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

/// The listening socket; its file goes with it.
#[derive(Debug)]
pub struct Listening {
    path: PathBuf,
    socket: OwnedFd,
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Listening {
    /// The socket.
    pub fn fd(&self) -> &OwnedFd {
        &self.socket
    }
}

/// Listens at `path`, for the owner and the group. A file that a killed gateway left is replaced; one that another
/// gateway listens on is not.
pub fn listen(path: &Path) -> Result<Listening, Failure> {
    let failed = |error: io::Error| {
        Failure::cannot_create(format!(
            "cannot make the control socket {}: {error}; choose another place ([control] socket)",
            path.display()
        ))
    };
    if somebody_listens(path) {
        return Err(Failure::unavailable(format!(
            "another portferry listens on {}: stop it, or choose another place ([control] socket)",
            path.display()
        )));
    }
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        std::fs::create_dir_all(directory).map_err(failed)?;
        // What hooks of DHCP clients leave there is for all to read, whatever the umask.
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
    }
    match std::fs::symlink_metadata(path) {
        // A slip of the pen in the configuration must not cost a file.
        Ok(found) if !found.file_type().is_socket() => {
            return Err(failed(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is a file that is no socket",
            )));
        }
        Ok(_) => std::fs::remove_file(path).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let socket = bind(path).map_err(failed)?;
    Ok(Listening { path: path.to_owned(), socket })
}

/// Whoever was killed may be there a moment longer with what it had started.
fn somebody_listens(path: &Path) -> bool {
    let began = Instant::now();
    while std::os::unix::net::UnixStream::connect(path).is_ok() {
        if began.elapsed() >= DYING {
            return true;
        }
        std::thread::sleep(DYING / 20);
    }
    false
}

/// Linux makes the file with the mode that the socket has, less the umask: at no moment may others ask.
fn bind(path: &Path) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    fchmod(&socket, Mode::from_raw_mode(MODE))?;
    socket.bind(&SockAddr::unix(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Answers who asks on the control socket.
#[derive(Debug)]
pub struct Server {
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Answers on a listening socket. Within a runtime.
    pub fn start(socket: OwnedFd, gateway: mpsc::Sender<Asked>) -> Result<Self, Failure> {
        let listener = UnixListener::from_std(socket.into())
            .map_err(|error| Failure::system(format!("the control socket: {error}")))?;
        let task = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => drop(tokio::spawn(answer(stream, gateway.clone()))),
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        });
        Ok(Self { task })
    }
}

async fn answer(stream: UnixStream, gateway: mpsc::Sender<Asked>) {
    let exchange = async {
        let (reader, mut writer) = stream.into_split();
        let mut line = String::new();
        BufReader::new(reader.take(MAX_QUESTION)).read_line(&mut line).await?;
        let text = match Question::parse(line.trim()) {
            Some(question) => ask(&gateway, question).await,
            None => Some(r#"{"error":"unknown question"}"#.to_owned()),
        };
        writer.write_all(text.unwrap_or_default().as_bytes()).await?;
        writer.shutdown().await
    };
    // Whoever hangs up early hears nothing.
    let _: Result<io::Result<()>, _> = tokio::time::timeout(PATIENCE, exchange).await;
}

async fn ask(gateway: &mpsc::Sender<Asked>, question: Question) -> Option<String> {
    let (reply, waiting) = oneshot::channel();
    gateway.send(Asked { question, reply }).await.ok()?;
    waiting.await.ok()
}

/// Asks a running gateway; its answer is JSON.
pub fn query(path: &Path, question: Question) -> Result<String, Failure> {
    let failed = |error: io::Error| {
        let what = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                "no portferry is running there; start it, or name its socket with --socket".to_owned()
            }
            io::ErrorKind::PermissionDenied => "permission denied; try as root".to_owned(),
            _ => error.to_string(),
        };
        Failure::unavailable(format!("{}: {what}", path.display()))
    };
    let mut stream = std::os::unix::net::UnixStream::connect(path).map_err(failed)?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(failed)?;
    writeln!(stream, "{}", question.line()).map_err(failed)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(failed)?;
    if text.starts_with("{\"error\"") {
        return Err(Failure::unavailable(format!(
            "{}: what answers there does not know that question; is it older, or the PCP server's?",
            path.display()
        )));
    }
    if text.is_empty() {
        return Err(Failure::unavailable(format!("{}: what answers there is stopping", path.display())));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Directory;

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

    #[test]
    fn what_is_no_socket_stays() {
        let path = std::env::temp_dir().join(format!("portferry-control-{}", std::process::id()));
        std::fs::write(&path, b"precious").unwrap();
        let failure = listen(&path).expect_err("a file is in the way").to_string();
        assert!(failure.contains("no socket") && failure.contains("[control] socket"), "{failure}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();
    }

    /// One that goes on is not disturbed; one that was killed is waited for.
    #[test]
    fn another_one_is_not_replaced() {
        let directory = Directory::new("control-another");
        let path = directory.0.join("control.sock");
        let other = listen(&path).unwrap();
        let failure = listen(&path).expect_err("another one listens").to_string();
        assert!(failure.contains("another portferry listens"), "{failure}");
        let dies = std::thread::spawn(move || {
            std::thread::sleep(DYING / 4);
            drop(other);
        });
        assert!(listen(&path).is_ok());
        dies.join().unwrap();
    }

    /// Whatever others make of it, a question is short, comes in time, and has one answer.
    #[test]
    fn what_is_asked_is_bounded() {
        let directory = Directory::new("control-bounds");
        let path = directory.0.join("control.sock");
        let listening = listen(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let runtime = crate::run::runtime().unwrap();
        runtime.block_on(async {
            let (asking, _asked) = mpsc::channel(4);
            let _server = Server::start(listening.fd().try_clone().unwrap(), asking).unwrap();
            let heard = async |question: &[u8]| {
                let mut stream = UnixStream::connect(&path).await.unwrap();
                stream.write_all(question).await.unwrap();
                let mut answer = Vec::new();
                // It is reset where something was left unread.
                while matches!(stream.read_buf(&mut answer).await, Ok(1..)) {}
                String::from_utf8(answer).unwrap()
            };
            let unknown = r#"{"error":"unknown question"}"#;
            for question in [&b"reboot\n"[..], &[b'a'; 64], &[b'\n'; 64], &[0; 1000], b"status\0\n"] {
                assert_eq!(heard(question).await, unknown);
            }
            // Neither who says nothing holds a connection for ever, nor who is not answered.
            tokio::time::pause();
            for question in [&b""[..], b"stat", b"status\n"] {
                let began = tokio::time::Instant::now();
                assert_eq!(heard(question).await, "");
                let took = began.elapsed();
                assert!(took >= PATIENCE && took < PATIENCE * 2, "{took:?}");
            }
        });
    }
}
