//! The provider's router in front of us that speaks UPnP and nothing else (decision 20): when it is looked for, and what follows
//! from what it is asked and says.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{Effect, Gateway, NatMode, WhenUnreachable};
use crate::notice::{IspRouterNews, Notice};
use crate::time::{Duration, Instant};
use crate::uplink::{
    Finding, FoundIgd, HttpId, HttpOutcome, IgdClient, IgdFinder, Input, Leftover, Output, Uplink,
    UplinkProtocol,
};

/// The pause between two searches in vain: it doubles from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(15);
const LAST_PAUSE: Duration = Duration::from_secs(600);

/// The search, and what it has come to.
#[derive(Debug, Default)]
pub(super) struct IspRouter {
    finder: Option<IgdFinder>,
    /// Searches in vain, since it was last found.
    vain: u32,
    /// None before.
    search_at: Option<Instant>,
    /// Finders and clients there were: each numbers its exchanges from another number on.
    lives: u64,
    /// What searches that are over did not believe.
    ignored: u64,
    /// Its external address, when that is of another NAT above it.
    nat_above: Option<Ipv4Addr>,
    /// What is still there since another protocol has taken its place.
    leftover: Option<Leftover>,
}

impl IspRouter {
    /// The link is another one: so may be the router behind it.
    pub(super) fn forget_leftover(&mut self) {
        self.leftover = None;
    }

    fn first_id(&mut self) -> u64 {
        self.lives += 1;
        self.lives << 32
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let finder = self.finder.as_ref().and_then(IgdFinder::next_timeout);
        let leftover = self.leftover.as_ref().and_then(Leftover::next_timeout);
        [finder.or(self.search_at), leftover].into_iter().flatten().min()
    }

    pub(super) fn ignored(&self) -> u64 {
        self.ignored + self.finder.as_ref().map_or(0, IgdFinder::ignored)
    }

    pub(super) fn nat_above(&self) -> Option<Ipv4Addr> {
        self.nat_above
    }
}

impl Gateway {
    /// Searches, goes on searching, or stops that, as it is needed; whether there is something new of an uplink now.
    pub(super) fn tend_isp_router(&mut self, now: Instant) -> bool {
        if self.tend_leftover(now) {
            return true;
        }
        let Some(router) = self.router_to_search() else {
            self.end_search();
            (self.isp_router.vain, self.isp_router.search_at) = (0, None);
            return false;
        };
        if self.isp_router.finder.is_none() && self.isp_router.search_at.is_none_or(|at| at <= now) {
            let first_id = self.isp_router.first_id();
            self.isp_router.finder = Some(IgdFinder::new(now, router, first_id));
            self.isp_router.search_at = None;
        }
        let Some(finder) = &mut self.isp_router.finder else { return false };
        finder.on_timeout(now);
        let mut outcome = None;
        while let Some(finding) = finder.poll() {
            match finding {
                Finding::Search(to, bytes) => self.effects.push_back(Effect::Search { to, bytes }),
                Finding::Http(request) => self.effects.push_back(Effect::Http(request)),
                Finding::Done(found) => outcome = Some(found),
            }
        }
        let Some(outcome) = outcome else { return false };
        self.end_search();
        let vain = self.isp_router.vain;
        self.isp_router.vain += 1;
        let pause = (FIRST_PAUSE * 2_u32.saturating_pow(vain)).min(LAST_PAUSE);
        self.isp_router.search_at = Some(now + pause);
        outcome.is_some_and(|found| self.ask_isp_router(now, found))
    }

    /// The default router, when there is nobody better to ask: the server in use has never answered and is silent, or it is the
    /// provider's router itself, which may have another place for its control by now. Behind it, only mappings to this router can
    /// be had.
    fn router_to_search(&self) -> Option<Ipv4Addr> {
        let client = self.uplink.as_ref()?;
        let never = client.last_heard().is_none() || client.protocol() == UplinkProtocol::Igd;
        let silent = client.is_answering() == Some(false) && never;
        let may = self.config.isp_router && self.config.nat == NatMode::Own && self.uplink_open;
        match self.wan.router {
            Some(IpAddr::V4(router)) if silent && may && !self.stopping => Some(router),
            _ => None,
        }
    }

    fn end_search(&mut self) {
        if let Some(finder) = self.isp_router.finder.take() {
            self.isp_router.ignored += finder.ignored();
            self.effects.push_back(Effect::EndSearch);
        }
    }

    /// Everything is asked of what was found from now on.
    fn ask_isp_router(&mut self, now: Instant, found: FoundIgd) -> bool {
        let Some(before) = &self.uplink else { return false };
        let IpAddr::V4(source) = before.source() else { return false };
        let (server, wait) = (before.server(), self.config.recovery_wait);
        let at = SocketAddr::V4(found.connection.control.at);
        self.notice(Notice::Speaks(at, UplinkProtocol::Igd));
        self.refuse_half_done(now);
        let first_id = self.isp_router.first_id();
        self.serve_by(now, Box::new(IgdClient::new(now, server, source, found, wait, first_id)));
        true
    }

    /// A datagram came to the socket of the search.
    pub(super) fn on_search_answer(&mut self, from: SocketAddr, bytes: &[u8]) {
        if let Some(finder) = &mut self.isp_router.finder {
            finder.on_answer(from, bytes);
        }
    }

    /// What became of an exchange of HTTP; each knows its own.
    pub(super) fn on_http(&mut self, now: Instant, id: HttpId, outcome: &HttpOutcome) {
        if let Some(finder) = &mut self.isp_router.finder {
            finder.on_http(now, id, outcome);
        }
        if let Some(leftover) = &mut self.isp_router.leftover {
            leftover.handle_http(now, id, outcome, &mut *self.entropy);
        }
        self.input(now, Input::Http(id, outcome));
    }

    /// Whether the uplink is one of UPnP.
    pub(super) fn asks_isp_router(&self) -> bool {
        self.uplink.as_ref().is_some_and(|client| client.protocol() == UplinkProtocol::Igd)
    }

    /// Acts on what the uplink says that only a router which speaks UPnP says, or that is told otherwise of one; the rest comes back.
    pub(super) fn of_isp_router(&mut self, now: Instant, output: Output) -> Option<Output> {
        if let Output::Http(request) = output {
            self.effects.push_back(Effect::Http(request));
            return None;
        }
        let at = self.uplink.as_ref().filter(|client| client.protocol() == UplinkProtocol::Igd);
        let Some(at) = at.map(|client| client.asked_at()) else {
            if let (Output::Answering, Some(leftover)) = (&output, &mut self.isp_router.leftover) {
                leftover.begin(now, &mut *self.entropy); // it has really taken its place
            }
            return Some(output);
        };
        if let Output::External(_) = output {
            self.isp_router.nat_above = None;
        }
        let news = match output {
            Output::NatAbove(addr) => {
                self.isp_router.nat_above = Some(addr);
                self.forget_external();
                IspRouterNews::NatAbove(addr)
            }
            Output::Answering => {
                self.on_server_answers(now);
                self.note_connection(now);
                IspRouterNews::Answers
            }
            Output::Silent => {
                self.map_all_locally();
                self.note_connection(now);
                self.on_server_silent(now);
                IspRouterNews::Silent(self.config.when_unreachable == WhenUnreachable::Local)
            }
            Output::StateLost => {
                self.refusals.forget();
                self.doubt_all(|_| {});
                IspRouterNews::HasForgotten(self.table.len())
            }
            other => return Some(other),
        };
        self.notice(Notice::IspRouter(at, news));
        None
    }

    /// Another uplink is in use.
    pub(super) fn forget_isp_router(&mut self) {
        self.isp_router.nat_above = None;
    }

    /// `next` takes the place of `before`. What that leaves at the router is taken back once `next` is answered, at the same link: behind
    /// another one there may be somebody else's router, and another host with the address that was ours.
    pub(super) fn leave_behind(&mut self, before: Box<dyn Uplink>, next: &dyn Uplink) {
        let leftover = before.retire().or_else(|| self.isp_router.leftover.take());
        self.isp_router.leftover = leftover.filter(|leftover| {
            matches!(next.protocol(), UplinkProtocol::Pcp | UplinkProtocol::NatPmp)
                && leftover.source() == next.source()
                && self.uplink_on == self.wan.name
                && Some(leftover.asked_at().ip()) == self.wan.router
        });
    }

    /// Whether a mapping has to be asked for again: what was deleted may have been the same one, on a list of both protocols.
    fn tend_leftover(&mut self, now: Instant) -> bool {
        let Some(leftover) = &mut self.isp_router.leftover else { return false };
        if leftover.next_timeout().is_some_and(|at| at <= now) {
            leftover.handle_timeout(now, &mut *self.entropy);
        }
        let mut deleted = Vec::new();
        while let Some(output) = leftover.poll_output() {
            match output {
                Output::Http(request) => self.effects.push_back(Effect::Http(request)),
                Output::Deleted(flow) => deleted.push(flow),
                _ => {}
            }
        }
        if leftover.is_over(now) {
            self.isp_router.leftover = None;
        }
        deleted.retain(|&flow| self.uplink.as_ref().is_some_and(|uplink| uplink.holds(flow)));
        for &flow in &deleted {
            self.input(now, Input::Confirm(flow));
        }
        !deleted.is_empty()
    }
}
