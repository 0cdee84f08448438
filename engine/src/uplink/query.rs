//! Asks the server which mappings it holds for us (GET and NEXT, decision 17): page after page, with repetitions, until
//! the list is whole or the server has shown that it does not speak GET.

use std::net::IpAddr;

use wire::pcp::{self, Body, GetData, NextMapping, OptionCode, PcpOption, Request, Response, ResultCode};

use super::schedule::{first_rt, next_rt};
use crate::entropy::Entropy;
use crate::time::{Duration, Instant};

/// A page that is not answered is asked for so often.
const TRIES: u32 = 4;
/// More mappings than anybody has: what lists more makes no sense.
const MOST: usize = 20_000;

/// What an answer to a query means.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// It is none.
    Ignored,
    /// There is another page.
    GoOn,
    /// This is the list.
    Complete(Vec<NextMapping>),
    /// The server does not tell.
    Refused(ResultCode),
}

/// A query on its way.
#[derive(Debug)]
pub(super) struct Query {
    seen: Vec<NextMapping>,
    sent: u32,
    rt: Duration,
    due: Instant,
}

impl Query {
    /// One that begins at `due`.
    pub(super) fn new(due: Instant) -> Self {
        Self { seen: Vec::new(), sent: 0, rt: Duration::ZERO, due }
    }

    /// When the next request is due.
    pub(super) fn next_timeout(&self) -> Instant {
        self.due
    }

    /// The request for the page behind the last mapping seen; `None` when it was sent often enough.
    pub(super) fn request(
        &mut self,
        now: Instant,
        source: IpAddr,
        entropy: &mut dyn Entropy,
    ) -> Option<Request> {
        if self.sent >= TRIES {
            return None;
        }
        self.rt = if self.sent == 0 { first_rt(entropy.unit()) } else { next_rt(self.rt, entropy.unit()) };
        self.sent += 1;
        self.due = now + self.rt;
        let last = self.seen.last().map(|last| {
            let (more, lifetime, options) = (false, 0, Vec::new());
            PcpOption::Next(NextMapping { more, lifetime, options, ..last.clone() })
        });
        Some(Request {
            lifetime: 0,
            client_addr: pcp::ip_to_wire(source),
            body: Body::Get(GetData::ALL),
            options: last.into_iter().collect(),
        })
    }

    /// Takes in an answer of the server.
    pub(super) fn on_answer(&mut self, now: Instant, response: &Response) -> Answer {
        if response.body != Body::Get(GetData::ALL) {
            return Answer::Ignored;
        }
        match response.result {
            ResultCode::SUCCESS => {}
            ResultCode::NON_EXIST_MAPPING => return Answer::Complete(std::mem::take(&mut self.seen)),
            result => return Answer::Refused(result),
        }
        let is_next = |option: &&PcpOption| option.code() == OptionCode::NEXT;
        let page = response.options.iter().filter(is_next).filter_map(|option| match option {
            PcpOption::Next(mapping) => Some(mapping.clone()),
            _ => None,
        });
        let before = self.seen.len();
        for mapping in page {
            // In order, and behind what was seen: anything else is an answer to the request before, or nonsense.
            if self.seen.last().is_some_and(|last| mapping.key() <= last.key()) {
                self.seen.truncate(before);
                return Answer::Ignored;
            }
            // Options would only take room.
            self.seen.push(NextMapping { options: Vec::new(), ..mapping });
        }
        if self.seen.len() == before || self.seen.len() > MOST {
            return Answer::Refused(ResultCode::MALFORMED_REQUEST);
        }
        if !self.seen.last().is_some_and(|last| last.more) {
            return Answer::Complete(std::mem::take(&mut self.seen));
        }
        (self.sent, self.due) = (0, now);
        Answer::GoOn
    }
}
