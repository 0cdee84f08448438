//! Asks DHCP servers for PCP servers where no DHCP client hands them in (RFC 7291): by DHCPINFORM (RFC 2131 §4.4.3) and by
//! DHCPv6's Information-request (RFC 8415 §18.2.6). It never asks for an address.
//!
//! The ports of DHCP clients may belong to another program of the machine, too, and what comes there to nobody but the one
//! that opened it last. So the sockets are only open while an answer is due.

use std::collections::VecDeque;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use wire::dhcp::{self, ServerAddresses, v4, v6};

use crate::entropy::Entropy;
use crate::notice::Level;
use crate::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// A DHCP client sets an address first and runs its hooks then: who speaks by a hook is not asked for.
const HOOK_WAIT: Duration = Duration::from_secs(1);
/// The first question waits up to this long, so that not all of a town ask at once (INF_MAX_DELAY, RFC 8415 §7.6).
const MAX_DELAY: Duration = Duration::from_secs(1);

/// The first DHCPINFORM is repeated after so long, a second more or less (RFC 2131 §4.1) …
const INFORM_TIMEOUT: Duration = Duration::from_secs(4);
/// … then the time doubles, and after four there is nobody (§4.4.3).
const INFORM_TRIES: u32 = 4;
/// Then all of it begins again; no RFC says when.
const INFORM_AGAIN: Duration = Duration::from_secs(3600);

/// INF_TIMEOUT (RFC 8415 §7.6).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// INF_MAX_RT, unless a server says otherwise (RFC 8415 §7.6).
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);
/// What a server may say instead, in seconds (RFC 8415 §21.25).
const MAX_TIMEOUT_RANGE: std::ops::RangeInclusive<u32> = 60..=86_400;
/// So long an answer is listened for at least (MAX_WAIT_TIME, RFC 8415 §7.6, §15).
const LISTEN: Duration = Duration::from_secs(60);
/// IRT_MINIMUM and IRT_DEFAULT in seconds (RFC 8415 §7.6). DHCPv4 has no such time: the default is its, too.
const REFRESH_LEAST: u32 = 600;
const REFRESH_DEFAULT: u32 = 86_400;
/// The longest time until the next question, whatever a server says (RFC 8415 §21.23 allows one), in seconds.
const REFRESH_MOST: u32 = 7 * 86_400;

/// Which DHCP.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Version {
    /// Option 158.
    V4,
    /// Option 86.
    V6,
}

impl Version {
    /// Both, DHCPv6 first: in that order their servers are tried.
    pub const ALL: [Self; 2] = [Self::V6, Self::V4];
}

/// `DHCPv4`, `DHCPv6`.
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V4 => "DHCPv4",
            Self::V6 => "DHCPv6",
        })
    }
}

/// Who asks, on the WAN interface.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// Its first IPv4 address, and its Ethernet address if it has one.
    V4(Ipv4Addr, Option<[u8; 6]>),
    /// Its link-local IPv6 address (RFC 8415 §17.1).
    V6(Ipv6Addr),
}

impl Source {
    /// By which DHCP.
    pub fn version(self) -> Version {
        match self {
            Self::V4(..) => Version::V4,
            Self::V6(_) => Version::V6,
        }
    }

    /// The address and port that a socket is to have.
    pub fn socket(self) -> SocketAddr {
        match self {
            Self::V4(addr, _) => (addr, v4::CLIENT_PORT).into(),
            Self::V6(addr) => (addr, v6::CLIENT_PORT).into(),
        }
    }
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Open a socket for this source on the WAN interface; [`DhcpInquiry::handle_unopened`] hears when there is none.
    Open(Source),
    /// Send this by the socket.
    Send {
        /// Whose.
        version: Version,
        /// Broadcast, or multicast of the link.
        to: SocketAddr,
        /// The datagram.
        bytes: Vec<u8>,
    },
    /// Close the socket.
    Close(Version),
    /// [`DhcpInquiry::servers`] are others now.
    Changed(Version),
    /// Tell the person who runs the router.
    Notice(Notice),
}

/// A happening worth a line.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// A server answered, and these are its PCP servers; they are others than before.
    Offered(Version, Vec<ServerAddresses>),
    /// A server answered with an option that cannot be read.
    Malformed(Version),
    /// Nobody answers.
    Silence(Version),
    /// There is no socket, in the system's own words.
    NoSocket(Source, String),
}

impl Notice {
    /// How loud it is.
    pub fn level(&self) -> Level {
        match self {
            Self::Malformed(_) | Self::NoSocket(..) => Level::Warning,
            Self::Offered(..) | Self::Silence(_) => Level::Info,
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offered(version, servers) if servers.is_empty() => {
                write!(f, "{version} offers no PCP server any more")
            }
            Self::Offered(version, servers) => {
                write!(f, "{version} offers PCP servers:")?;
                for (nth, addresses) in servers.iter().enumerate() {
                    f.write_str(if nth == 0 { "" } else { ";" })?;
                    addresses.iter().try_for_each(|addr| write!(f, " {addr}"))?;
                }
                Ok(())
            }
            Self::Malformed(version) => {
                write!(f, "{version} offers PCP servers in an option that cannot be read; it counts as none")
            }
            Self::Silence(version) => {
                write!(
                    f,
                    "no DHCP server on the WAN says anything of PCP servers by {version}; asking goes on, seldom"
                )
            }
            Self::NoSocket(source, error) => write!(
                f,
                "cannot ask for PCP servers by {}, UDP port {}: {error}; if a DHCP client has it for itself, use its hook (docs/dhcp.md), \
                 or uplink.dhcp = \"off\"",
                source.version(),
                source.socket().port()
            ),
        }
    }
}

/// Both inquiries of one WAN interface.
pub struct DhcpInquiry {
    entropy: Box<dyn Entropy>,
    /// DUID of type UUID (RFC 8415 §11.5), the same in every life of this installation.
    duid: Vec<u8>,
    v4: Inquiry,
    v6: Inquiry,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Inquiry {
    source: Option<Source>,
    state: State,
    open: bool,
    servers: Vec<ServerAddresses>,
    /// What RFC 8415 calls INF_MAX_RT.
    max_timeout: Duration,
    /// That nobody answers, or cannot be asked, has been said.
    told: bool,
}

#[derive(Debug)]
enum State {
    /// There is nobody who could ask.
    Idle,
    /// The next question is due then.
    Waiting(Instant),
    /// An answer is due.
    Asking(Exchange),
}

#[derive(Clone, Copy, Debug)]
struct Exchange {
    /// xid, or in its last three octets transaction-id.
    id: u32,
    since: Instant,
    /// Questions sent.
    sent: u32,
    /// The last timeout drawn, RT of RFC 8415 §15, and when it ends.
    timeout: Duration,
    again: Instant,
    /// Nobody listens from then on.
    listen: Instant,
}

impl Default for Inquiry {
    fn default() -> Self {
        let (source, servers) = (None, Vec::new());
        Self { source, state: State::Idle, open: false, servers, max_timeout: MAX_TIMEOUT, told: false }
    }
}

impl DhcpInquiry {
    /// It asks nobody yet. The client identifier of DHCPv6 is derived from the installation's secret.
    pub fn new(entropy: Box<dyn Entropy>) -> Self {
        let mut uuid = entropy.derive(b"DHCPv6 client identifier");
        // A UUID of one's own making (RFC 9562 §5.8).
        uuid[6] = 0x80 | (uuid[6] & 0x0f);
        uuid[8] = 0x80 | (uuid[8] & 0x3f);
        let duid = [&[0, 4], &uuid[..]].concat();
        Self { entropy, duid, v4: Inquiry::default(), v6: Inquiry::default(), outputs: VecDeque::new() }
    }

    /// What the DHCP servers offered to this source, most wanted first; empty for want of an answer.
    pub fn servers(&self, version: Version) -> &[ServerAddresses] {
        match version {
            Version::V4 => &self.v4.servers,
            Version::V6 => &self.v6.servers,
        }
    }

    /// From now on `source` asks; `None`: nobody, because there is no address, or a DHCP client's hook has spoken. Another
    /// source may be at another network: what was offered to the last one is gone.
    pub fn set_source(&mut self, now: Instant, version: Version, source: Option<Source>) {
        let source = source.filter(|source| source.version() == version);
        if self.of(version).source == source {
            return;
        }
        let before = std::mem::replace(self.of(version), Inquiry { source, ..Inquiry::default() });
        if before.open {
            self.outputs.push_back(Output::Close(version));
        }
        if !before.servers.is_empty() {
            self.outputs.push_back(Output::Changed(version));
        }
        if source.is_some() {
            let at = now + HOOK_WAIT + self.entropy.up_to(MAX_DELAY);
            self.of(version).state = State::Waiting(at);
        }
    }

    /// A datagram came on the socket of `version`.
    pub fn handle_datagram(&mut self, now: Instant, version: Version, bytes: &[u8]) {
        let State::Asking(exchange) = self.of(version).state else { return };
        match version {
            Version::V4 => self.on_ack(now, exchange, bytes),
            Version::V6 => self.on_reply(now, exchange, bytes),
        }
    }

    /// There is no socket for `version`. It is tried again when the next question would have been due.
    pub fn handle_unopened(&mut self, now: Instant, version: Version, error: String) {
        let inquiry = self.of(version);
        inquiry.open = false;
        let Some(source) = inquiry.source else { return };
        inquiry.state = State::Waiting(now + INFORM_AGAIN);
        if !std::mem::replace(&mut inquiry.told, true) {
            self.outputs.push_back(Output::Notice(Notice::NoSocket(source, error)));
        }
    }

    /// [`DhcpInquiry::next_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        for version in Version::ALL {
            match self.of(version).state {
                State::Waiting(at) if at <= now => self.ask(now, version),
                State::Asking(exchange) if exchange.again <= now => self.ask_again(now, version, exchange),
                State::Asking(exchange) if exchange.listen <= now => self.close(version),
                _ => {}
            }
        }
    }

    /// Takes out what is to be done next; call until `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`DhcpInquiry::handle_timeout`] is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        let of = |inquiry: &Inquiry| match &inquiry.state {
            State::Idle => None,
            State::Waiting(at) => Some(*at),
            State::Asking(exchange) if inquiry.open => Some(exchange.again.min(exchange.listen)),
            State::Asking(exchange) => Some(exchange.again),
        };
        [of(&self.v4), of(&self.v6)].into_iter().flatten().min()
    }

    fn of(&mut self, version: Version) -> &mut Inquiry {
        match version {
            Version::V4 => &mut self.v4,
            Version::V6 => &mut self.v6,
        }
    }

    /// Begins an exchange.
    fn ask(&mut self, now: Instant, version: Version) {
        let mut id = [0; 4];
        self.entropy.fill(&mut id);
        let (id, timeout) = (u32::from_be_bytes(id), Duration::ZERO);
        let exchange = Exchange { id, since: now, sent: 0, timeout, again: now, listen: now };
        self.send(now, version, exchange);
    }

    fn ask_again(&mut self, now: Instant, version: Version, exchange: Exchange) {
        if version == Version::V4 && exchange.sent == INFORM_TRIES {
            self.close(version);
            self.of(version).state = State::Waiting(now + INFORM_AGAIN);
            return self.tell_silence(version);
        }
        // DHCPv6 goes on for ever (MRC and MRD are 0); after a minute it is worth a line.
        if now - exchange.since >= LISTEN {
            self.tell_silence(version);
        }
        self.send(now, version, exchange);
    }

    fn tell_silence(&mut self, version: Version) {
        if !std::mem::replace(&mut self.of(version).told, true) {
            self.outputs.push_back(Output::Notice(Notice::Silence(version)));
        }
    }

    fn send(&mut self, now: Instant, version: Version, exchange: Exchange) {
        let Some(source) = self.of(version).source else { return };
        let timeout = self.timeout(version, exchange);
        let passed = now - exchange.since;
        let bytes = match source {
            Source::V4(client, hardware) => {
                let secs = u16::try_from(passed.as_secs()).unwrap_or(u16::MAX);
                v4::Inform { xid: exchange.id, secs, client, hardware }.to_bytes()
            }
            Source::V6(_) => {
                let elapsed_time = u16::try_from(passed.as_millis() / 10).unwrap_or(u16::MAX);
                let (transaction, client) = (transaction(exchange.id), self.duid.clone());
                v6::InformationRequest { transaction, client, elapsed_time }.to_bytes()
            }
        };
        let to = match version {
            Version::V4 => (Ipv4Addr::BROADCAST, v4::SERVER_PORT).into(),
            Version::V6 => (v6::SERVERS, v6::SERVER_PORT).into(),
        };
        let (sent, again, listen) = (exchange.sent + 1, now + timeout, now + LISTEN);
        let inquiry = self.of(version);
        inquiry.state = State::Asking(Exchange { sent, timeout, again, listen, ..exchange });
        if !std::mem::replace(&mut inquiry.open, true) {
            self.outputs.push_back(Output::Open(source));
        }
        self.outputs.push_back(Output::Send { version, to, bytes });
    }

    /// How long the next question waits for its answer.
    fn timeout(&mut self, version: Version, exchange: Exchange) -> Duration {
        let roll = self.entropy.unit() * 2.0 - 1.0;
        match version {
            // RFC 2131 §4.1: 4, 8, 16, 32 s, each a second more or less.
            Version::V4 => {
                let seconds = INFORM_TIMEOUT.as_secs_f64() * f64::from(1 << exchange.sent.min(4)) + roll;
                Duration::from_secs_f64(seconds)
            }
            // RFC 8415 §15: RAND is up to a tenth of what it is added to.
            Version::V6 => {
                let (rand, limit) = (roll * 0.1, self.v6.max_timeout);
                let next = match exchange.sent {
                    0 => REQUEST_TIMEOUT.mul_f64(1.0 + rand),
                    _ => exchange.timeout.mul_f64(2.0 + rand),
                };
                if next > limit { limit.mul_f64(1.0 + rand) } else { next }
            }
        }
    }

    fn close(&mut self, version: Version) {
        if std::mem::take(&mut self.of(version).open) {
            self.outputs.push_back(Output::Close(version));
        }
    }

    /// Any server's DHCPACK ends the exchange (RFC 2131 §4.4.3).
    fn on_ack(&mut self, now: Instant, exchange: Exchange, bytes: &[u8]) {
        let Ok(ack) = v4::Ack::parse(bytes) else { return };
        if ack.xid != exchange.id {
            return; // to somebody else, or to an earlier question
        }
        let servers = ack.pcp_servers.as_deref().map(dhcp::decode_option_158);
        let malformed = matches!(servers, Some(Err(_)));
        self.answered(
            now,
            Version::V4,
            REFRESH_DEFAULT,
            servers.and_then(Result::ok).unwrap_or_default(),
            malformed,
        );
    }

    fn on_reply(&mut self, now: Instant, exchange: Exchange, bytes: &[u8]) {
        let Ok(reply) = v6::Reply::parse(bytes) else { return };
        // RFC 8415 §16.10.
        if reply.transaction != transaction(exchange.id) || reply.client.as_ref() != Some(&self.duid) {
            return;
        }
        // It counts with any status (§18.2.10).
        if let Some(limit) = reply.max_timeout.filter(|limit| MAX_TIMEOUT_RANGE.contains(limit)) {
            self.v6.max_timeout = Duration::from_secs(limit.into());
        }
        if reply.status.is_some_and(|status| status != 0) {
            return; // the question is repeated, ever more slowly
        }
        let servers: Vec<_> = reply.pcp_servers.iter().map(|value| dhcp::decode_option_86(value)).collect();
        let malformed = servers.iter().any(Result::is_err);
        let refresh = reply.refresh.unwrap_or(REFRESH_DEFAULT).clamp(REFRESH_LEAST, REFRESH_MOST);
        self.answered(now, Version::V6, refresh, dhcp::bounded(servers.into_iter().flatten()), malformed);
    }

    /// An answer without servers takes those of the last one back (RFC 8415 §18.2.10).
    fn answered(
        &mut self,
        now: Instant,
        version: Version,
        refresh: u32,
        servers: Vec<ServerAddresses>,
        malformed: bool,
    ) {
        self.close(version);
        // The next exchange begins at a random moment (RFC 8415 §21.23).
        let at = now + Duration::from_secs(refresh.into()) + self.entropy.up_to(MAX_DELAY);
        let inquiry = self.of(version);
        inquiry.state = State::Waiting(at);
        inquiry.told = false;
        if malformed {
            self.outputs.push_back(Output::Notice(Notice::Malformed(version)));
        }
        let inquiry = self.of(version);
        if inquiry.servers != servers {
            inquiry.servers.clone_from(&servers);
            self.outputs.push_back(Output::Notice(Notice::Offered(version, servers)));
            self.outputs.push_back(Output::Changed(version));
        }
    }
}

/// RFC 8415 §8: three octets.
fn transaction(id: u32) -> [u8; 3] {
    let [_, id @ ..] = id.to_be_bytes();
    id
}
