//! An avalanche: power comes back in a whole town, or the provider's PCP server has lost its state, and every router asks for
//! its mappings again (D-9, decisions 16 and 17). What the server gets, when, and what is lost of it, with the random waits that
//! portferry has against that, and without. In virtual time, and the same for the same seed. docs/avalanche.md is made of it.

mod page;
mod plot;
mod router;
mod server;
mod story;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use engine::entropy::{Entropy, SeededEntropy};
use engine::time::{Duration, Instant};

pub use page::{BEGIN, END, between, replace};
pub use router::Compact;
pub use server::Capacity;
use server::Server;
pub use story::{CAPACITY, Chapter, RULE, Scale, Story};

/// What has happened at time 0.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Restart {
    /// All routers start at once; the server has kept their mappings.
    Routers,
    /// The same after so long that the server has none of them any more.
    RoutersForgotten,
    /// The server has lost its state, and every router hears of that at once.
    Server,
}

/// A run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Setup {
    /// How many.
    pub routers: u32,
    /// Of each router, 1 to 64.
    pub mappings: u8,
    /// What has happened.
    pub restart: Restart,
    /// `service_wait` or `recovery_wait`, whichever counts.
    pub wait: Duration,
    /// The server's.
    pub capacity: Capacity,
    /// From a router to the server, and back.
    pub delay: Duration,
    /// Of a mapping, as the server grants it.
    pub lifetime: Duration,
    /// The same seed is the same run.
    pub seed: u64,
    /// What has not come to stand by then never does.
    pub limit: Duration,
}

/// What the server saw, and the routers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Outcome {
    /// Requests that arrived in each second, the first being number 0.
    pub requests: Vec<u32>,
    /// Those that the buffer had no room for.
    pub lost: Vec<u32>,
    /// Routers whose last mapping came to stand in each second.
    pub whole: Vec<u32>,
    /// When the last of them was, unless some never were.
    pub last: Option<Duration>,
    /// Mappings whose lifetime ended before they were made again.
    pub ended: u64,
}

impl Outcome {
    /// All requests.
    #[must_use]
    pub fn datagrams(&self) -> u64 {
        sum(&self.requests)
    }

    /// All that were lost.
    #[must_use]
    pub fn drops(&self) -> u64 {
        sum(&self.lost)
    }

    /// The most requests of a second.
    #[must_use]
    pub fn peak(&self) -> u32 {
        self.requests.iter().copied().max().unwrap_or(0)
    }

    /// By this second so many of a hundred routers have everything that they will ever have.
    #[must_use]
    pub fn by(&self, percent: u64) -> u64 {
        let wanted = sum(&self.whole) * percent;
        let mut so_far = 0;
        let second = self.whole.iter().position(|&here| {
            so_far += u64::from(here) * 100;
            so_far >= wanted
        });
        second.map_or(0, |second| second as u64 + 1)
    }
}

fn sum(seconds: &[u32]) -> u64 {
    seconds.iter().copied().map(u64::from).sum()
}

/// A success of the server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Answer {
    /// Granted lifetime.
    pub lifetime: Duration,
    /// The server's Epoch Time.
    pub epoch: u32,
}

/// All routers. A request that goes out is put into `sent`, by the number of its mapping.
pub trait Routers {
    /// All of its mappings are asked for and granted, before anything happens.
    fn hold(&mut self, router: u32, now: Instant, answer: Answer);
    /// It starts, and knows which mappings it had; `wait` is its `service_wait`.
    fn start(&mut self, router: u32, now: Instant, wait: Duration, sent: &mut Vec<u8>);
    /// The server announces that it has lost its state, and has this Epoch Time now.
    fn on_loss(&mut self, router: u32, now: Instant, epoch: u32, sent: &mut Vec<u8>);
    /// A request for a mapping is answered.
    fn on_answer(&mut self, router: u32, mapping: u8, now: Instant, answer: Answer, sent: &mut Vec<u8>);
    /// An alarm is due.
    fn on_timeout(&mut self, router: u32, now: Instant, sent: &mut Vec<u8>);
    /// When the next one is.
    fn next_timeout(&self, router: u32) -> Option<Instant>;
    /// Mappings whose lifetime has ended.
    fn ended(&self) -> u64;
}

/// A run with the routers of this module.
#[must_use]
pub fn run(setup: &Setup) -> Outcome {
    let mut routers = Compact::new(setup.routers, setup.mappings, setup.wait, setup.seed);
    run_with(setup, &mut routers, |_, _, _| {})
}

/// A run with these routers; `watch` sees each request as it goes out: the microsecond, the router and the mapping.
///
/// # Panics
///
/// When a setup makes no sense.
pub fn run_with<R: Routers>(setup: &Setup, routers: &mut R, watch: impl FnMut(u64, u32, u8)) -> Outcome {
    assert!((1..=64).contains(&setup.mappings), "a set of mappings is 64 bits");
    let mut town = Town::new(setup, routers, watch);
    town.begin();
    while town.unfinished > 0 && town.turn() {}
    town.outcome.ended = town.routers.ended();
    town.outcome
}

/// The randomness of one router among many.
fn seed_of(seed: u64, router: u32) -> u64 {
    // Neighbours in number are no neighbours in what they draw (splitmix64).
    let mut mixed = seed.wrapping_add(u64::from(router).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// Times in it are microseconds; time 0 of the outcome is `began`.
struct Town<'a, R, W> {
    setup: &'a Setup,
    routers: &'a mut R,
    watch: W,
    server: Server,
    began: u64,
    /// Routers' alarms; only the one that `alarms` has too is still set.
    queue: BinaryHeap<Reverse<(u64, u32)>>,
    alarms: Vec<Option<u64>>,
    /// What is on its way, in the order of its arrival.
    to_server: VecDeque<(u64, server::Request)>,
    to_routers: VecDeque<(u64, server::Request, u32)>,
    /// Mappings that have come to stand since time 0, a word for each router.
    standing: Vec<u64>,
    unfinished: u32,
    outcome: Outcome,
}

impl<'a, R: Routers, W: FnMut(u64, u32, u8)> Town<'a, R, W> {
    fn new(setup: &'a Setup, routers: &'a mut R, watch: W) -> Self {
        let count = setup.routers as usize;
        Self {
            setup,
            routers,
            watch,
            server: Server::new(setup.capacity, setup.routers),
            began: 0,
            queue: BinaryHeap::new(),
            alarms: vec![None; count],
            to_server: VecDeque::new(),
            to_routers: VecDeque::new(),
            standing: vec![0; count],
            unfinished: setup.routers,
            outcome: Outcome::default(),
        }
    }

    fn begin(&mut self) {
        if self.setup.restart == Restart::Server {
            // No mapping is older than half of its lifetime, when it is renewed for the first time.
            let oldest = self.setup.lifetime / 2;
            self.began = micros(oldest);
            let mut entropy = SeededEntropy::new(self.setup.seed);
            for router in 0..self.setup.routers {
                let at = Instant::default() + entropy.up_to(oldest);
                let epoch = u32::try_from(at.as_secs()).expect("a day at most") + 1_000_000;
                self.routers.hold(router, at, Answer { lifetime: self.setup.lifetime, epoch });
            }
        }
        let mut sent = Vec::new();
        for router in 0..self.setup.routers {
            if self.setup.restart == Restart::Routers {
                self.server.knows(router);
            }
            let now = millis(self.began);
            match self.setup.restart {
                Restart::Server => self.routers.on_loss(router, now, 0, &mut sent),
                _ => self.routers.start(router, now, self.setup.wait, &mut sent),
            }
            self.after_turn(self.began, router, &mut sent);
        }
    }

    /// The next thing happens; false when there is none within the limit.
    fn turn(&mut self) -> bool {
        let arrival = self.to_server.front().map(|(at, _)| *at);
        let answer = self.to_routers.front().map(|(at, ..)| *at);
        let alarm = self.queue.peek().map(|Reverse((at, _))| *at);
        let times = [arrival, self.server.next(), answer, alarm];
        let Some(now) = times.into_iter().flatten().min() else { return false };
        if now - self.began >= micros(self.setup.limit) {
            return false;
        }
        let is_now = |time: Option<u64>| time == Some(now);
        let mut sent = Vec::new();
        if is_now(self.server.next()) {
            let request = self.server.finish().expect("it is busy");
            let epoch = u32::try_from((now - self.began) / 1_000_000).expect("a day at most");
            self.to_routers.push_back((now + micros(self.setup.delay), request, epoch));
        } else if is_now(arrival) {
            let (_, request) = self.to_server.pop_front().expect("it was there");
            let second = self.second(now);
            count(&mut self.outcome.requests, second);
            if !self.server.offer(now, request) {
                count(&mut self.outcome.lost, second);
            }
        } else if is_now(answer) {
            let (_, (router, mapping), epoch) = self.to_routers.pop_front().expect("it was there");
            let answer = Answer { lifetime: self.setup.lifetime, epoch };
            self.routers.on_answer(router, mapping, millis(now), answer, &mut sent);
            self.note_standing(now, router, mapping);
            self.after_turn(now, router, &mut sent);
        } else {
            let Reverse((_, router)) = self.queue.pop().expect("it was there");
            if self.alarms[router as usize] == Some(now) {
                self.alarms[router as usize] = None;
                self.routers.on_timeout(router, millis(now), &mut sent);
                self.after_turn(now, router, &mut sent);
            }
        }
        true
    }

    /// What it has sent goes on its way, and its next alarm is set.
    fn after_turn(&mut self, now: u64, router: u32, sent: &mut Vec<u8>) {
        for mapping in sent.drain(..) {
            (self.watch)(now, router, mapping);
            self.to_server.push_back((now + micros(self.setup.delay), (router, mapping)));
        }
        // What has been due since this millisecond began is due now.
        let next = self.routers.next_timeout(router).map(|at| (at.as_millis() * 1000).max(now));
        if next != self.alarms[router as usize] {
            self.alarms[router as usize] = next;
            self.queue.extend(next.map(|at| Reverse((at, router))));
        }
    }

    fn note_standing(&mut self, now: u64, router: u32, mapping: u8) {
        let standing = &mut self.standing[router as usize];
        let before = standing.count_ones();
        *standing |= 1 << mapping;
        if before < standing.count_ones() && standing.count_ones() == u32::from(self.setup.mappings) {
            let second = self.second(now);
            count(&mut self.outcome.whole, second);
            self.unfinished -= 1;
            if self.unfinished == 0 {
                self.outcome.last = Some(Duration::from_micros(now - self.began));
            }
        }
    }

    fn second(&self, now: u64) -> usize {
        usize::try_from((now - self.began) / 1_000_000).expect("a day at most")
    }
}

fn count(seconds: &mut Vec<u32>, second: usize) {
    if seconds.len() <= second {
        seconds.resize(second + 1, 0);
    }
    seconds[second] += 1;
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).expect("a day at most")
}

/// The millisecond that has begun, as a router's clock tells it.
fn millis(micros: u64) -> Instant {
    Instant::from_millis(micros / 1000)
}
