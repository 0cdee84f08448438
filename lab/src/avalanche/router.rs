//! Routers in a few octets each: what [`engine::uplink::PcpClient`] does about mappings that are asked for in turn, with the
//! engine's own schedule, constants and randomness, and without datagrams. For the same seed every request goes out in the same
//! millisecond as the real client's, which `tests` holds it to.
//!
//! Left out is what does not happen here: refusals, deletes, control points that wait, lists. A mapping whose lifetime ends is
//! counted and not asked for again.

use engine::entropy::{Entropy, SeededEntropy};
use engine::time::{Duration, Instant};
use engine::uplink::{
    IN_FLIGHT, MIN_RENEWAL_GAP, NUDGE_SPREAD, SILENT_AFTER, SILENT_FOR, first_rt, next_rt, renewal_delay,
};

use super::{Answer, Routers, seed_of};

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// So many requests are out, and none is answered.
    Asking { sent: u32 },
    /// Granted; so many renewals have been tried since.
    Held { attempts: u32 },
    /// Its lifetime has ended.
    Ended,
}

/// One mapping.
#[derive(Clone, Copy, Debug)]
struct Flow {
    phase: Phase,
    /// The last retransmission time.
    rt: Duration,
    sent_at: Instant,
    /// Since when, and until when, the server has it.
    grant: Option<(Instant, Instant)>,
    alarm: Option<Instant>,
}

const UNASKED: Flow = Flow {
    phase: Phase::Asking { sent: 0 },
    rt: Duration::ZERO,
    sent_at: Instant::from_millis(0),
    grant: None,
    alarm: None,
};

/// What a router knows beside its mappings. Sets of mappings are bits, the lowest for the first.
#[derive(Clone, Debug)]
struct Router {
    entropy: SeededEntropy,
    /// Nothing of `queue` is sent before.
    due: Instant,
    /// Those wait for their turn; the last one begins.
    queue: u64,
    /// So many of those that had their turn are unanswered.
    asking: u64,
    answering: Option<bool>,
    unanswered: u32,
    unanswered_since: Option<Instant>,
    last_heard: Option<Instant>,
}

/// See the module's description.
pub struct Compact {
    mappings: usize,
    recovery_wait: Duration,
    routers: Vec<Router>,
    /// All mappings of a router stand together.
    flows: Vec<Flow>,
    ended: u64,
}

impl Compact {
    /// So many routers with so many mappings each, at most 64.
    ///
    /// # Panics
    ///
    /// When there are more.
    #[must_use]
    pub fn new(routers: u32, mappings: u8, recovery_wait: Duration, seed: u64) -> Self {
        assert!(mappings <= 64, "a set of mappings is 64 bits");
        let router = |number| Router {
            entropy: SeededEntropy::new(seed_of(seed, number)),
            due: Instant::default(),
            queue: 0,
            asking: 0,
            answering: None,
            unanswered: 0,
            unanswered_since: None,
            last_heard: None,
        };
        Self {
            mappings: usize::from(mappings),
            recovery_wait,
            routers: (0..routers).map(router).collect(),
            flows: vec![UNASKED; routers as usize * usize::from(mappings)],
            ended: 0,
        }
    }

    fn one(&mut self, router: u32) -> One<'_> {
        let first = router as usize * self.mappings;
        One {
            router: &mut self.routers[router as usize],
            flows: &mut self.flows[first..first + self.mappings],
            recovery_wait: self.recovery_wait,
            ended: &mut self.ended,
        }
    }
}

impl Routers for Compact {
    fn hold(&mut self, router: u32, now: Instant, answer: Answer) {
        let mut one = self.one(router);
        let mut sent = Vec::new();
        for mapping in 0..one.flows.len() {
            one.flows[mapping] = UNASKED;
            one.on_timer(now, mapping, &mut sent);
            one.on_answer(now, mapping, answer);
        }
    }

    fn start(&mut self, router: u32, now: Instant, wait: Duration, sent: &mut Vec<u8>) {
        let mut one = self.one(router);
        one.router.due = now + one.router.entropy.up_to(wait);
        for mapping in 0..one.flows.len() {
            one.router.queue |= bit(mapping);
            one.take_turns(now, sent);
        }
    }

    fn on_loss(&mut self, router: u32, now: Instant, _epoch: u32, sent: &mut Vec<u8>) {
        let mut one = self.one(router);
        one.heard(now);
        one.recover(now);
        one.take_turns(now, sent);
    }

    fn on_answer(&mut self, router: u32, mapping: u8, now: Instant, answer: Answer, sent: &mut Vec<u8>) {
        let mut one = self.one(router);
        if !matches!(one.flows[usize::from(mapping)].phase, Phase::Ended) {
            one.on_answer(now, usize::from(mapping), answer);
        }
        one.take_turns(now, sent);
    }

    fn on_timeout(&mut self, router: u32, now: Instant, sent: &mut Vec<u8>) {
        let mut one = self.one(router);
        while let Some(mapping) = one.due(now) {
            one.flows[mapping].alarm = None;
            one.on_timer(now, mapping, sent);
        }
        one.take_turns(now, sent);
    }

    fn next_timeout(&self, router: u32) -> Option<Instant> {
        let first = router as usize * self.mappings;
        let alarms = self.flows[first..first + self.mappings].iter().filter_map(|flow| flow.alarm);
        let router = &self.routers[router as usize];
        let may_go = router.queue != 0 && (router.asking.count_ones() as usize) < IN_FLIGHT;
        alarms.chain(may_go.then_some(router.due)).min()
    }

    fn ended(&self) -> u64 {
        self.ended
    }
}

/// One router at its turn.
struct One<'a> {
    router: &'a mut Router,
    flows: &'a mut [Flow],
    recovery_wait: Duration,
    ended: &'a mut u64,
}

impl One<'_> {
    /// The mapping whose alarm is due first.
    fn due(&self, now: Instant) -> Option<usize> {
        let alarms = self.flows.iter().enumerate().filter_map(|(mapping, flow)| Some((flow.alarm?, mapping)));
        alarms.min().filter(|(at, _)| *at <= now).map(|(_, mapping)| mapping)
    }

    fn take_turns(&mut self, now: Instant, sent: &mut Vec<u8>) {
        while now >= self.router.due
            && self.router.queue != 0
            && (self.router.asking.count_ones() as usize) < IN_FLIGHT
        {
            let mapping = self.router.queue.ilog2() as usize;
            self.router.queue &= !bit(mapping);
            self.router.asking |= bit(mapping);
            self.on_timer(now, mapping, sent);
        }
    }

    fn on_timer(&mut self, now: Instant, mapping: usize, sent: &mut Vec<u8>) {
        let flow = &mut self.flows[mapping];
        if flow.grant.is_some_and(|(_, ends)| ends <= now) {
            flow.phase = Phase::Ended;
            self.router.queue &= !bit(mapping);
            self.router.asking &= !bit(mapping);
            *self.ended += 1;
            return;
        }
        match &mut flow.phase {
            Phase::Asking { sent } => {
                if *sent >= 2 && self.router.last_heard.is_some_and(|heard| heard > flow.sent_at) {
                    self.router.asking &= !bit(mapping);
                }
                let roll = self.router.entropy.unit();
                flow.rt = if *sent == 0 { first_rt(roll) } else { next_rt(flow.rt, roll) };
                *sent += 1;
                let wake = now + flow.rt;
                flow.alarm = Some(flow.grant.map_or(wake, |(_, ends)| wake.min(ends)));
                flow.sent_at = now;
            }
            Phase::Held { attempts } => {
                *attempts += 1;
                flow.sent_at = now;
                self.schedule_renewal(now, mapping);
            }
            Phase::Ended => return,
        }
        sent.push(u8::try_from(mapping).expect("64 at most"));
        let router = &mut self.router;
        router.unanswered += 1;
        let since = *router.unanswered_since.get_or_insert(now);
        if router.unanswered >= SILENT_AFTER && now - since >= SILENT_FOR {
            router.answering = Some(false);
        }
    }

    fn schedule_renewal(&mut self, now: Instant, mapping: usize) {
        let flow = &mut self.flows[mapping];
        let (Some((since, ends)), Phase::Held { attempts }) = (flow.grant, flow.phase) else { return };
        let due = since + renewal_delay(ends - since, attempts + 1, self.router.entropy.unit());
        flow.alarm = Some(due.max(flow.sent_at + MIN_RENEWAL_GAP).max(now).min(ends));
    }

    fn heard(&mut self, now: Instant) {
        self.router.last_heard = Some(now);
        self.router.unanswered = 0;
        self.router.unanswered_since = None;
        if self.router.answering == Some(false) {
            self.nudge(now);
        }
        self.router.answering = Some(true);
    }

    fn nudge(&mut self, now: Instant) {
        for flow in &mut *self.flows {
            let earliest = match flow.phase {
                Phase::Held { attempts: 0 } | Phase::Asking { sent: 0 } | Phase::Ended => continue,
                Phase::Held { .. } => now.max(flow.sent_at + MIN_RENEWAL_GAP),
                Phase::Asking { .. } => now,
            };
            let spread = if flow.grant.is_none() { NUDGE_SPREAD } else { self.recovery_wait };
            let wake = earliest + self.router.entropy.up_to(spread);
            flow.alarm = Some(flow.grant.map_or(wake, |(_, ends)| wake.min(ends)));
        }
    }

    fn on_answer(&mut self, now: Instant, mapping: usize, answer: Answer) {
        self.heard(now);
        let flow = &mut self.flows[mapping];
        flow.grant = Some((now, now + answer.lifetime));
        flow.phase = Phase::Held { attempts: 0 };
        self.router.asking &= !bit(mapping);
        self.schedule_renewal(now, mapping);
    }

    fn recover(&mut self, now: Instant) {
        let mut due = now + self.router.entropy.up_to(self.recovery_wait);
        let mut lost = 0;
        for (mapping, flow) in self.flows.iter_mut().enumerate() {
            if let (Phase::Held { .. }, Some((_, ends))) = (flow.phase, flow.grant) {
                flow.phase = Phase::Asking { sent: 0 };
                due = due.min(now + (ends - now) / 2);
                flow.alarm = Some(ends);
                lost |= bit(mapping);
            }
        }
        self.router.due = due;
        self.router.queue |= lost;
    }
}

fn bit(mapping: usize) -> u64 {
    1 << mapping
}
