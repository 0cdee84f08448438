//! The PCP server as a queue: one request at a time, the next ones in the socket's buffer, and what does not fit is lost.

use std::collections::VecDeque;

use engine::time::Duration;

/// What a server of a provider can do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Capacity {
    /// The time that a request takes which makes a mapping.
    pub making: Duration,
    /// The same of one that finds its mapping there.
    pub renewing: Duration,
    /// So many datagrams wait in the socket's buffer at most.
    pub buffer: usize,
}

/// A request: whose, and for which mapping.
pub(super) type Request = (u32, u8);

pub(super) struct Server {
    capacity: Capacity,
    waiting: VecDeque<Request>,
    /// What is worked on, and when that is done.
    busy: Option<(u64, Request)>,
    /// What stands, a word for each router.
    mappings: Vec<u64>,
}

impl Server {
    pub(super) fn new(capacity: Capacity, routers: u32) -> Self {
        let mappings = vec![0; routers as usize];
        Self { capacity, waiting: VecDeque::new(), busy: None, mappings }
    }

    /// It has all mappings of this router already.
    pub(super) fn knows(&mut self, router: u32) {
        self.mappings[router as usize] = u64::MAX;
    }

    /// A request arrives; false when it is lost.
    pub(super) fn offer(&mut self, now: u64, request: Request) -> bool {
        if self.busy.is_none() {
            self.begin(now, request);
            return true;
        }
        let room = self.waiting.len() < self.capacity.buffer;
        if room {
            self.waiting.push_back(request);
        }
        room
    }

    /// When the next answer is ready, in microseconds.
    pub(super) fn next(&self) -> Option<u64> {
        self.busy.map(|(done, _)| done)
    }

    /// The answer that is ready goes, and the next request begins.
    pub(super) fn finish(&mut self) -> Option<Request> {
        let (now, done) = self.busy.take()?;
        if let Some(next) = self.waiting.pop_front() {
            self.begin(now, next);
        }
        Some(done)
    }

    fn begin(&mut self, now: u64, request: Request) {
        let (router, mapping) = request;
        let known = &mut self.mappings[router as usize];
        let stands = *known & 1 << mapping != 0;
        *known |= 1 << mapping;
        let takes = if stands { self.capacity.renewing } else { self.capacity.making };
        let takes = u64::try_from(takes.as_micros()).expect("far less than an age");
        self.busy = Some((now + takes, request));
    }
}
