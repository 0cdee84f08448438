//! Which server is asked (decision 19, R-5): the configured ones, else those that DHCP offers (RFC 7291), the WAN's default router and
//! the anycast addresses (RFC 7723), in this order. The first that answers serves, the others are kept for failover (RFC 7488).
//!
//! The first is asked for mappings at once, also where it is but guessed at: a default router is at this link, and who asks has its
//! answer as soon as can be. An anycast address that nobody has named may lead out into the Internet, so that one is asked for what
//! tells of nobody first (RFC 7723). As long as the first does not answer, the others are *scouted*: each is sent what makes no
//! state there (PCP's ANNOUNCE, NAT-PMP's question for the address), and one that answers takes its place. So nothing is asked
//! of another server that is not there, and nobody waits for the end of a list. A server that has served is not left over a lost packet;
//! one that is preferred is gone back to once it has answered for a while.

use std::net::{IpAddr, SocketAddr};

use wire::natpmp;
use wire::pcp::{self, Body, Nonce, ResultCode, SERVER_PORT};

use super::{Alarm, Effect, Gateway, NatMode, WhenNoneFound};
use crate::notice::Notice;
use crate::policy::is_behind_nat;
use crate::time::{Duration, Instant};
use crate::uplink::{ServerIdentity, UplinkProtocol, Want, derived_nonce};

/// IPv4's anycast address (RFC 7723 §4.1), and IPv6's (§4.2).
const ANYCAST_V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 0, 9));
pub(super) const ANYCAST_V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 1, 0, 0, 0, 0, 0, 1));

/// In the place of a server where there is none; nobody can be asked at this address.
const NO_SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), SERVER_PORT);

/// How long a server may take for its first answer before others are looked at.
const FIRST_ANSWER: Duration = Duration::from_secs(3);
/// How long one that has served may be silent before another one takes its place: its mappings may stand all the while.
const SILENCE: Duration = Duration::from_secs(30);
/// How often others are looked at while nobody answers: at first, and at most; the gap doubles.
const FIRST_GAP: Duration = Duration::from_secs(3);
/// Also how often a preferred one is looked at while another one serves, and each of several that are configured.
const GAP: Duration = Duration::from_secs(60);
/// Nobody has named a server, and so long nobody was found.
pub(super) const NOBODY: Duration = Duration::from_secs(10);
/// How often it is looked whether there is one now (RFC 7488 §3).
const GAP_ALONE: Duration = Duration::from_secs(15 * 60);
/// How long an answer to a look is waited for.
const LOOK: Duration = Duration::from_secs(10);
/// So many looks in a row have to be answered before a preferred server is gone back to, or unanswered before one that is
/// configured among several counts as silent.
const IN_A_ROW: u32 = 3;

/// A server that may be asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Candidate {
    server: SocketAddr,
    /// When it was looked at, and has not answered yet.
    asked: Option<Instant>,
    /// Looks in a row that it has answered, and those that it has not.
    answered: u32,
    unanswered: u32,
    /// It has answered a look and then nothing else: it is not tried again before.
    shunned_until: Option<Instant>,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Servers {
    /// The best first.
    candidates: Vec<Candidate>,
    current: Option<SocketAddr>,
    /// Since when the one that serves has been silent.
    silent_since: Option<Instant>,
    /// It was looked at several times in vain.
    given_up: bool,
    /// When others were last looked at, and how long until they are again.
    looked_at: Option<Instant>,
    gap: Duration,
    /// When it is asked, or was, for mappings of before.
    due: Instant,
    /// The socket to another one is on its way.
    opening: bool,
    /// To this one none can be opened, since then.
    unopened: Option<(SocketAddr, Instant)>,
    /// It has taken the place of another one, as it may have done for a whole town.
    failed_over: bool,
}

impl Default for Servers {
    fn default() -> Self {
        Self {
            candidates: Vec::new(),
            current: None,
            silent_since: None,
            given_up: false,
            looked_at: None,
            gap: FIRST_GAP,
            due: Instant::default(),
            unopened: None,
            opening: false,
            failed_over: false,
        }
    }
}

impl Servers {
    pub(super) fn current(&self) -> Option<SocketAddr> {
        self.current
    }

    pub(super) fn all(&self) -> impl Iterator<Item = SocketAddr> {
        self.candidates.iter().map(|candidate| candidate.server)
    }

    /// Nobody listens there, says the machine itself (RFC 7488 §3): another one is next at once.
    pub(super) fn give_up(&mut self) {
        self.given_up = true;
    }

    /// They were another WAN's, which may have gone down for a whole town.
    pub(super) fn forget(&mut self) {
        *self = Self { due: self.due, failed_over: true, ..Self::default() };
    }

    /// The link is gone: that no socket could be opened says nothing of the next one.
    pub(super) fn link_is_gone(&mut self) {
        self.unopened = None;
    }

    /// It answers looks, and nothing else.
    fn shun(&mut self, server: SocketAddr, until: Instant) {
        let mut candidates = self.candidates.iter_mut();
        if let Some(candidate) = candidates.find(|one| one.server == server && one.answered > 0) {
            (candidate.answered, candidate.shunned_until) = (0, Some(until));
        }
    }

    /// When there may be something to say of a server that was not asked yet: after a restart it is left alone for a while.
    fn when_asked(&self, now: Instant) -> Instant {
        if self.due > now { self.due + FIRST_ANSWER } else { now + GAP }
    }

    /// Whether the server that is in use now was not the one before, because of that one's silence; told once.
    pub(super) fn take_failed_over(&mut self) -> bool {
        std::mem::take(&mut self.failed_over)
    }

    /// When a server is asked again for what it may have: no sooner than was once decided.
    pub(super) fn not_before(&mut self, due: Instant) -> Instant {
        self.due = self.due.max(due);
        self.due
    }

    fn place(&self, server: SocketAddr) -> Option<usize> {
        self.candidates.iter().position(|candidate| candidate.server == server)
    }

    /// What was learned of those that stay is kept. The one that serves goes on, if it is still among them and `serves`.
    fn set(&mut self, list: &[SocketAddr], serves: bool) {
        let known = std::mem::take(&mut self.candidates);
        let new = |server| Candidate { server, asked: None, answered: 0, unanswered: 0, shunned_until: None };
        let candidate = |&server: &SocketAddr| {
            known.iter().find(|one| one.server == server).copied().unwrap_or(new(server))
        };
        self.candidates = list.iter().map(candidate).collect();
        // One that was chosen because it answered a look has perhaps had no time for more.
        let answered = |place: usize| self.candidates.get(place).is_some_and(|one| one.answered > 0);
        let stays = self
            .current
            .filter(|&current| self.place(current).is_some_and(|place| serves || answered(place)));
        self.current = stays.or(list.first().copied());
    }
}

impl Gateway {
    /// The server to use.
    pub(super) fn server(&self) -> Option<SocketAddr> {
        self.servers.current()
    }

    /// Those that somebody has chosen.
    fn configured(&self) -> &[SocketAddr] {
        self.wan.servers.as_deref().unwrap_or(&self.config.servers)
    }

    /// The settings or the WAN have changed: who may be asked now.
    pub(super) fn list_servers(&mut self) {
        let list = self.server_list();
        let reachable: Vec<SocketAddr> =
            list.iter().copied().filter(|server| !self.ways_to(*server).is_empty()).collect();
        let of_use = !self.wan.addresses.is_empty()
            || self.config.nat == NatMode::None && !self.wan.addresses_v6.is_empty();
        let gone = list.is_empty() && of_use;
        if reachable.is_empty() && self.configured().is_empty() && self.servers.current.is_some() && !gone {
            return; // what is found on a WAN without an address is nothing new
        }
        let current = self.servers.current;
        let uplink = self.uplink.as_ref().filter(|uplink| Some(uplink.server()) == current);
        let serves = uplink.is_some_and(|uplink| uplink.last_heard().is_some());
        // Where none can be reached, the first of them says why.
        let first = &list[..list.len().min(1)];
        self.servers.set(if reachable.is_empty() { first } else { &reachable }, serves);
    }

    /// The same while one of them may be serving: should there be better ones now, they are looked at in a while.
    pub(super) fn list_servers_again(&mut self, now: Instant) {
        let before: Vec<SocketAddr> = self.servers.all().collect();
        self.list_servers();
        let changed = !self.servers.all().eq(before);
        if changed && self.uplink_open && self.servers.candidates.len() > 1 {
            let gap = if self.table.is_empty() { FIRST_GAP } else { GAP };
            self.timers.set(Alarm::Scout, now + gap);
        }
    }

    /// What the server is known by: DHCP names one by several addresses.
    pub(super) fn identity(&self, server: SocketAddr) -> ServerIdentity {
        let of_it = self.wan.offered.iter().find(|addresses| addresses.contains(&server.ip()));
        let first = of_it
            .filter(|_| self.configured().is_empty())
            .and_then(|addresses| addresses.first())
            .copied()
            .unwrap_or(server.ip());
        ServerIdentity { addr: first, interface: self.wan.name.clone() }
    }

    /// Whether it is the nonce by which another server of the list knows us.
    pub(super) fn is_of_another_server(&self, server: SocketAddr, want: &Want, nonce: Nonce) -> bool {
        let identity = self.identity(server);
        // What stood at nobody's was for this router alone.
        let others = self.servers.all().chain([NO_SERVER]).map(|other| self.identity(other));
        let mut others = others.filter(|other| *other != identity);
        others.any(|other| derived_nonce(&other, want, &*self.entropy) == nonce)
    }

    /// Whether it is an anycast address that nobody has named and that has not answered: it may lead out into the Internet.
    pub(super) fn may_be_nobody(&self, server: SocketAddr) -> bool {
        let mut candidates = self.servers.candidates.iter();
        [ANYCAST_V4, ANYCAST_V6].contains(&server.ip())
            && self.configured().is_empty()
            && !self.wan.offered.iter().flatten().any(|&offered| offered == server.ip())
            && candidates.all(|one| one.server != server || one.answered == 0)
    }

    fn server_list(&self) -> Vec<SocketAddr> {
        let at_port = |addr| SocketAddr::new(addr, SERVER_PORT);
        let mut list = if self.configured().is_empty() {
            let offered = self.wan.offered.iter().flatten().copied();
            let anycast = [ANYCAST_V4, ANYCAST_V6].into_iter().filter(|_| self.config.anycast);
            // Asked in IPv6, a server maps to LAN hosts (decision 22), and not to the NAT in between.
            let of_use = |addr: &IpAddr| self.config.nat == NatMode::None || addr.is_ipv4();
            offered.chain(self.wan.router).chain(anycast).filter(of_use).map(at_port).collect()
        } else {
            self.configured().to_vec()
        };
        let mut seen = Vec::new();
        list.retain(|&server| {
            let new = !seen.contains(&server);
            seen.push(server);
            new
        });
        list
    }

    /// A socket to the server was opened, and its client made: how long until somebody else is looked at.
    pub(super) fn await_server(&mut self, now: Instant) {
        (self.servers.silent_since, self.servers.given_up, self.servers.opening) = (None, false, false);
        (self.servers.gap, self.servers.unopened) = (FIRST_GAP, None);
        if self.servers.candidates.len() > 1 {
            self.timers.set(Alarm::Scout, now + FIRST_ANSWER);
        }
        if self.may_go_alone() {
            self.timers.set(Alarm::Alone, now + NOBODY);
        }
    }

    /// Whether no server is known: nobody has named one, and those that are guessed at may not be there (decision 21).
    pub(super) fn may_go_alone(&self) -> bool {
        let named = !self.configured().is_empty() || !self.wan.offered.is_empty();
        let of_its_own = self.wan.addresses.first().is_some_and(|&addr| !is_behind_nat(addr));
        self.config.nat == NatMode::Own
            && self.config.when_none_found == WhenNoneFound::Local
            && !named
            && of_its_own
            // One that has served is known, unless it is gone from the list, and nobody is left there.
            && (self.server().is_none()
                || self.uplink.as_ref().is_none_or(|uplink| uplink.last_heard().is_none()))
    }

    /// A setting or an offer that was against it is gone.
    pub(super) fn go_alone_by_and_by(&mut self, now: Instant, might: bool) {
        if might || !self.may_go_alone() {
            return;
        }
        if self.server().is_none() {
            self.open_uplink(now);
        } else {
            self.timers.set(Alarm::Alone, now + NOBODY);
        }
    }

    /// Whether this router's own NAT counts as the last one.
    pub(super) fn is_alone(&self) -> bool {
        self.uplink.as_ref().is_some_and(|uplink| uplink.protocol() == UplinkProtocol::Local)
    }

    /// Nobody has been found: until somebody is, this is an ordinary gateway.
    pub(super) fn go_alone(&mut self, now: Instant) {
        if !self.may_go_alone() || self.is_alone() && self.uplink_open || self.stopping {
            return;
        }
        let Some(&addr) = self.wan.addresses.first() else { return };
        let Some(server) = self.server() else { return self.serve_alone(now, NO_SERVER, addr) };
        if !self.uplink_open {
            return;
        }
        let asked = self.uplink.as_ref().and_then(|uplink| uplink.unanswered_since());
        let due = asked.map_or_else(|| self.servers.when_asked(now), |since| since + NOBODY);
        if due > now {
            self.timers.set(Alarm::Alone, due);
        } else {
            self.serve_alone(now, server, addr);
            self.timers.set(Alarm::Scout, now + GAP_ALONE);
        }
    }

    /// No socket to `server` can be opened. Whether that changes nothing: this router's own NAT counts as the last one, at the address
    /// that it has.
    pub(super) fn is_alone_all_the_same(&mut self) -> bool {
        let alone = self.is_alone() && self.uplink_open && self.may_go_alone();
        let at = self.uplink.as_ref().filter(|_| alone).map(|uplink| uplink.source());
        let same = at.is_some() && at == self.wan.addresses.first().map(|&addr| addr.into());
        if same {
            self.servers.opening = false;
        }
        same
    }

    /// The same, where that changes something. For so long that none can be found there, either.
    pub(super) fn go_alone_unopened(&mut self, now: Instant, server: SocketAddr) {
        let before = self.servers.unopened.filter(|&(one, _)| one == server);
        let (_, since) = *self.servers.unopened.insert(before.unwrap_or((server, now)));
        let Some(&addr) = self.wan.addresses.first() else { return };
        if now < since + NOBODY || !self.may_go_alone() || self.stopping {
            return;
        }
        self.servers.unopened = None;
        self.timers.cancel(Alarm::Uplink);
        self.serve_alone(now, server, addr);
        self.timers.set(Alarm::Scout, now + GAP_ALONE);
    }

    /// The server does not answer, says its client, or cannot be asked.
    pub(super) fn on_server_silent(&mut self, now: Instant) {
        self.servers.opening = false;
        if self.servers.candidates.len() < 2 {
            return;
        }
        if self.servers.silent_since.is_none() {
            self.servers.silent_since = Some(now);
            self.servers.gap = FIRST_GAP;
        }
        if self.servers.looked_at != Some(now) {
            self.scout(now);
        }
    }

    /// It answers (again).
    pub(super) fn on_server_answers(&mut self, now: Instant) {
        (self.servers.silent_since, self.servers.given_up) = (None, false);
        for candidate in &mut self.servers.candidates {
            candidate.unanswered = 0;
        }
        if self.servers.candidates.len() > 1 {
            self.timers.set(Alarm::Scout, now + GAP);
        }
    }

    /// Looks at those that might serve instead.
    pub(super) fn scout(&mut self, now: Instant) {
        let Some(current) = self.servers.current.filter(|_| !self.stopping) else { return };
        let alone = self.is_alone();
        let answering = !alone
            && self.uplink_open
            && self.uplink.as_ref().is_some_and(|uplink| uplink.is_answering() == Some(true));
        let unasked = !alone
            && self.uplink_open
            && !answering
            && self.uplink.as_ref().is_some_and(|uplink| uplink.unanswered_since().is_none());
        if unasked && self.servers.silent_since.is_none() {
            return self.timers.set(Alarm::Scout, self.servers.when_asked(now));
        }
        let place = self.servers.place(current).unwrap_or(0);
        // Only those that somebody has chosen are looked at for their own sake: a town of routers would be too many for others.
        let all = !answering || self.configured().len() > 1;
        let mut asked = Vec::new();
        for (n, candidate) in self.servers.candidates.iter_mut().enumerate() {
            if candidate.asked.take().is_some() {
                (candidate.answered, candidate.unanswered) = (0, candidate.unanswered.saturating_add(1));
            }
            if n < place || all && (answering || alone || n != place) {
                candidate.asked = Some(now);
                asked.push(candidate.server);
            }
        }
        let given_up = self.servers.candidates.get(place).is_some_and(|one| one.unanswered >= IN_A_ROW);
        let last_heard = self.uplink.as_ref().and_then(|uplink| uplink.last_heard());
        let unheard = last_heard.is_none_or(|then| now - then >= GAP * IN_A_ROW);
        self.servers.given_up |= answering && given_up && unheard;
        for server in &asked {
            self.look_at(*server);
        }
        if !asked.is_empty() {
            self.servers.looked_at = Some(now);
            let gap = match (answering, alone) {
                (true, _) => GAP,
                (false, true) => GAP_ALONE,
                (false, false) => self.servers.gap,
            };
            self.servers.gap = (self.servers.gap * 2).min(GAP);
            self.timers.set(Alarm::Scout, now + gap);
        }
    }

    fn look_at(&mut self, server: SocketAddr) {
        let Some(&source) = self.ways_to(server).first() else { return };
        let client_addr = pcp::ip_to_wire(source);
        let announce = pcp::Request { lifetime: 0, client_addr, body: Body::Announce, options: Vec::new() };
        self.effects.push_back(Effect::Scout { to: server, bytes: announce.to_bytes() });
        if server.is_ipv4() && self.config.nat == NatMode::Own {
            let bytes = natpmp::Request::ExternalAddress.to_bytes();
            self.effects.push_back(Effect::Scout { to: server, bytes });
        }
    }

    /// A server that was looked at answers, if that is one.
    pub(super) fn on_scouted(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        let Some(current) = self.servers.current else { return };
        let lately = |at: Option<Instant>| at.is_some_and(|at| now - at < LOOK);
        let asked = self.servers.candidates.iter_mut().find(|one| one.server == from && lately(one.asked));
        let Some(candidate) = asked.filter(|_| is_server(bytes)) else { return };
        candidate.asked = None;
        let shunned = candidate.shunned_until.is_some_and(|until| until > now);
        (candidate.answered, candidate.unanswered) = (candidate.answered.saturating_add(1), 0);
        // Where nothing is mapped, going to the better one costs nobody anything.
        let stable = candidate.answered >= IN_A_ROW || self.table.is_empty();
        let alone = self.is_alone();
        if from == current && !alone || self.servers.opening || shunned {
            return;
        }
        let uplink = self.uplink.as_ref().filter(|uplink| self.uplink_open && uplink.server() == current);
        let answering = !alone && uplink.is_some_and(|uplink| uplink.is_answering() == Some(true));
        let has_served = uplink.is_some_and(|uplink| uplink.last_heard().is_some());
        let silent_for = self.servers.silent_since.map_or(Duration::ZERO, |since| now - since);
        let preferred = self.servers.place(from) < self.servers.place(current);
        let gone = silent_for >= SILENCE || self.servers.given_up;
        if gone || !answering && !has_served || answering && preferred && stable {
            if alone {
                self.notice(Notice::Found(from));
            } else {
                self.notice(Notice::OtherServer { from: current, to: from, preferred: answering && !gone });
            }
            if !has_served {
                self.servers.shun(current, now + GAP_ALONE);
            }
            self.servers.current = Some(from);
            (self.servers.silent_since, self.servers.given_up) = (None, false);
            (self.servers.failed_over, self.servers.opening) = (true, true);
            self.open_uplink(now);
        }
    }
}

/// Whether that is said by a server that gives mappings, by one protocol or the other. One that does not know ANNOUNCE may be one.
fn is_server(bytes: &[u8]) -> bool {
    let speaks_pcp = pcp::Response::parse(bytes)
        .is_ok_and(|response| matches!(response.result, ResultCode::SUCCESS | ResultCode::UNSUPP_OPCODE));
    let speaks_nat_pmp = natpmp::Response::parse(bytes).is_ok_and(|response| {
        matches!(response, natpmp::Response::ExternalAddress { result: natpmp::ResultCode::SUCCESS, .. })
    });
    speaks_pcp || speaks_nat_pmp
}
