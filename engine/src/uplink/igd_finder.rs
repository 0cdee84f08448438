//! Finds the provider's router in front of us that speaks UPnP: a search, its descriptions, and who of its WAN connections has an
//! external address. Without socket or clock.
//!
//! Only the default router itself is believed, by the source of its answers and by every URL that it names (a machine next to us
//! on the WAN may answer a search as well). A router that has no external address is not found; it is looked for again.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use wire::foreign::{self, Call, Connection, Url};
use wire::soap::{AnswerError, decode_answer_to};
use wire::ssdp::{self, Message, Target};

use super::http::{GRACE, HttpId, HttpOutcome, HttpRequest};
use crate::policy::{is_behind_nat, is_usable_external};
use crate::time::{Duration, Instant};

/// The search is repeated after this time, for datagrams are lost.
const REPEAT: Duration = Duration::from_millis(700);
/// Answers are waited for so long.
const LISTEN: Duration = Duration::from_millis(2000);
/// MX: how many seconds answers may be spread over.
const MX: u8 = 1;
/// How many descriptions are read.
const MAX_DESCRIPTIONS: usize = 8;

/// A router that maps ports.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FoundIgd {
    /// What is asked.
    pub connection: Connection,
    /// Its external address, which may be one of another NAT above it.
    pub external: Ipv4Addr,
}

/// What the search wants done or has found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Finding {
    /// Send this from a socket on the WAN, always the same one; what comes back there is for [`IgdFinder::on_answer`].
    Search(SocketAddrV4, Vec<u8>),
    /// Ask this by HTTP.
    Http(HttpRequest),
    /// The search is over, with what it has found. It comes once, last.
    Done(Option<FoundIgd>),
}

#[derive(Debug)]
enum State {
    /// Searches are out; descriptions that were named, and how much is expected of each.
    Listening {
        repeat_at: Option<Instant>,
        until: Instant,
    },
    /// A description is fetched.
    Describing {
        id: HttpId,
        due: Instant,
        location: Url,
    },
    /// A connection is asked for its external address.
    Asking {
        id: HttpId,
        due: Instant,
        connection: Connection,
    },
    Done,
}

/// See the module's description.
#[derive(Debug)]
pub struct IgdFinder {
    router: Ipv4Addr,
    next_id: u64,
    state: State,
    /// Those to read, the most promising first.
    locations: Vec<(u8, Url)>,
    connections: VecDeque<Connection>,
    /// Answers, but is behind another NAT itself.
    second_best: Option<FoundIgd>,
    ignored: u64,
    findings: VecDeque<Finding>,
}

impl IgdFinder {
    /// Begins to look for what speaks UPnP at `router`. Its exchanges are numbered from `first_id` on.
    pub fn new(now: Instant, router: Ipv4Addr, first_id: u64) -> Self {
        let mut new = Self {
            router,
            next_id: first_id,
            state: State::Listening { repeat_at: Some(now + REPEAT), until: now + LISTEN },
            locations: Vec::new(),
            connections: VecDeque::new(),
            second_best: None,
            ignored: 0,
            findings: VecDeque::new(),
        };
        new.search();
        new
    }

    /// To the router itself, whose answer every firewall lets in, and to the group, for those that answer nothing else.
    fn search(&mut self) {
        let device = |version| Target::Device { name: "InternetGatewayDevice".to_owned(), version };
        for target in [device(2), device(1), Target::RootDevice] {
            let router = SocketAddrV4::new(self.router, ssdp::PORT);
            let unicast = ssdp::search(&router.to_string(), &target, None);
            self.findings.push_back(Finding::Search(router, unicast.into_bytes()));
            let group = SocketAddrV4::new(ssdp::GROUP_V4, ssdp::PORT);
            let multicast = ssdp::search(ssdp::HOST_V4, &target, Some(MX));
            self.findings.push_back(Finding::Search(group, multicast.into_bytes()));
        }
    }

    /// A datagram came to the socket of the search.
    pub fn on_answer(&mut self, from: SocketAddr, bytes: &[u8]) {
        let State::Listening { .. } = self.state else { return };
        let location = match ssdp::parse(bytes) {
            Ok(Message::Response(response)) if from.ip() == IpAddr::V4(self.router) => {
                let promising =
                    match &response.st {
                        Target::Device { name, version } if name == "InternetGatewayDevice" => {
                            if *version == 1 { 1 } else { 0 }
                        }
                        _ => 2,
                    };
                let url = Url::parse(&response.location).filter(|url| *url.at.ip() == self.router);
                url.map(|url| (promising, url))
            }
            _ => None,
        };
        let Some((promising, url)) = location else {
            self.ignored += 1;
            return;
        };
        let full = self.locations.len() >= MAX_DESCRIPTIONS;
        match self.locations.iter_mut().find(|(_, known)| *known == url) {
            Some((known, _)) => *known = promising.min(*known),
            None if full => self.ignored += 1,
            None => self.locations.push((promising, url)),
        }
    }

    /// What became of an exchange; another one's is passed over.
    pub fn on_http(&mut self, now: Instant, id: HttpId, outcome: &HttpOutcome) {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Describing { id: own, location, .. } if own == id => {
                let read = match outcome {
                    HttpOutcome::Answer { status: 200, body } => foreign::connections(&location, body).ok(),
                    _ => None,
                };
                match read {
                    Some(connections) => self.connections = connections.into(),
                    None => self.ignored += 1,
                }
                self.go_on(now);
            }
            State::Asking { id: own, connection, .. } if own == id => {
                match external(outcome) {
                    Some(Some(external)) if is_usable_external(external) => {
                        let found = FoundIgd { connection, external };
                        if !is_behind_nat(external) {
                            return self.finish(Some(found));
                        }
                        self.second_best.get_or_insert(found);
                    }
                    Some(None) => {}
                    Some(Some(_)) | None => self.ignored += 1,
                }
                self.go_on(now);
            }
            before => self.state = before,
        }
    }

    /// The next connection, the next description, or the end.
    fn go_on(&mut self, now: Instant) {
        let id = HttpId(self.next_id);
        self.next_id += 1;
        let request = if let Some(connection) = self.connections.pop_front() {
            let call = Call::GetExternalIpAddress;
            let request = HttpRequest::call(id, &connection.control, &connection.service_type, &call);
            let due = now + request.within + GRACE;
            self.state = State::Asking { id, due, connection };
            request
        } else if !self.locations.is_empty() {
            let (_, location) = self.locations.remove(0);
            let request = HttpRequest::fetch(id, &location);
            self.state = State::Describing { id, due: now + request.within + GRACE, location };
            request
        } else {
            let second_best = self.second_best.take();
            return self.finish(second_best);
        };
        self.findings.push_back(Finding::Http(request));
    }

    fn finish(&mut self, found: Option<FoundIgd>) {
        self.state = State::Done;
        self.findings.push_back(Finding::Done(found));
    }

    /// An alarm may be due.
    pub fn on_timeout(&mut self, now: Instant) {
        match &mut self.state {
            State::Listening { until, .. } if *until <= now => {
                self.locations.sort_by_key(|(promising, _)| *promising);
                self.go_on(now);
            }
            State::Listening { repeat_at, .. } if repeat_at.is_some_and(|at| at <= now) => {
                *repeat_at = None;
                self.search();
            }
            State::Describing { id, due, .. } | State::Asking { id, due, .. } if *due <= now => {
                let id = *id;
                self.on_http(now, id, &HttpOutcome::Failed);
            }
            _ => {}
        }
    }

    /// The next thing to do or know; call until `None`.
    pub fn poll(&mut self) -> Option<Finding> {
        self.findings.pop_front()
    }

    /// When [`on_timeout`](Self::on_timeout) has something to do.
    pub fn next_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Listening { repeat_at, until } => Some(repeat_at.unwrap_or(*until).min(*until)),
            State::Describing { due, .. } | State::Asking { due, .. } => Some(*due),
            State::Done => None,
        }
    }

    /// What was not believed: answers of others and those that lead elsewhere, documents that are none.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }
}

/// `None` for what is no answer; `Some(None)` for who has no address at the moment, or refuses to tell.
fn external(outcome: &HttpOutcome) -> Option<Option<Ipv4Addr>> {
    let HttpOutcome::Answer { body, .. } = outcome else { return None };
    match decode_answer_to(Call::GetExternalIpAddress.action(), body) {
        Ok(answer) => foreign::read_external(&answer).ok(),
        Err(AnswerError::Fault { .. }) => Some(None),
        Err(AnswerError::Malformed) => None,
    }
}

#[cfg(test)]
mod tests;
