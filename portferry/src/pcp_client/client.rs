//! The errand as a state machine, without socket or clock: datagrams and time go in, events come out.
//!
//! One question is on its way at a time. What is sent is an event too: the shell sends it and shows it.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use engine::entropy::Entropy;
use engine::time::Instant;
use engine::uplink::{MIN_RENEWAL_GAP, renewal_delay};
use wire::natpmp;
use wire::pcp::{Body, NextMapping, OptionCode, PcpOption, Response, ResultCode};

use super::epochs::Epochs;
use super::message::{self, Answer, Ignored, Question};
use super::note::Note;
use super::outcome::{Grant, Outcome, Refusal};
use super::parse::Suggestion;
use super::plan::{Job, Mapping, Plan, Speak};
use super::reading::{amiss, is_one_of_many, not_processed, read_answer};
use super::schedule::Pace;

/// More mappings than anybody has: a list that goes on beyond makes no sense.
const MOST_LISTED: usize = 100_000;
/// A renewal after the server lost its state waits at most so long (RFC 6887 §14.1.3).
const RECOVERY_WAIT: Duration = Duration::from_secs(5);
/// A longer lifetime is taken for this one (RFC 6887 §8.3).
const LONGEST_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// What happens, for the shell to do or to show.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Event {
    /// To be sent, and shown; `tries` counts from 1.
    Send { bytes: Vec<u8>, question: Question, tries: u32 },
    /// The server's answer to the question.
    Answered { bytes: Vec<u8>, answer: Answer },
    /// What the server says unasked.
    Told { bytes: Vec<u8>, answer: Answer },
    /// A datagram that is not believed.
    Ignored { from: SocketAddr, bytes: Vec<u8>, why: Ignored },
    /// A line for the person who watches.
    Note(Note),
    /// The end.
    Ended(Outcome),
}

/// Between whom.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Route {
    pub(super) server: SocketAddr,
    /// What the packets carry as PCP Client's IP Address: their source, unless somebody says otherwise.
    pub(super) client: IpAddr,
}

/// What the question on its way is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    Ask,
    Renew,
    /// The server has lost its state.
    Recover,
    GiveBack,
}

#[derive(Debug)]
struct Exchange {
    step: Step,
    question: Question,
    /// What was held once is asked for as long as it takes.
    patient: bool,
    pace: Pace,
    began: Instant,
    tries: u32,
    wait: Option<Duration>,
    /// When it is asked again; `None`: it is not.
    again: Option<Instant>,
    /// When nobody waits any more.
    gives_up: Option<Instant>,
    answered: bool,
    /// Of a delete: the server said that the mapping stands until then, if that was not the answer to something earlier.
    stands_until: Option<Instant>,
}

/// The end that waits for a mapping to be given back.
#[derive(Debug)]
struct After {
    outcome: Outcome,
    /// When the mapping ends by itself.
    ends: Instant,
    /// Somebody wants the end, and wants it at once if they say so again.
    interrupted: bool,
}

impl After {
    /// A server that passed over THIRD_PARTY has made a mapping of our own.
    fn is_ours(&self) -> bool {
        matches!(self.outcome, Outcome::NotAsAsked { option: OptionCode::THIRD_PARTY, .. })
    }
}

/// A mapping that is kept.
#[derive(Debug)]
struct Held {
    grant: Grant,
    since: Instant,
    ends: Instant,
    /// Renewals asked for since the last grant.
    attempts: u32,
    due: Instant,
    /// What is due is to ask again after a loss of state.
    recover: bool,
    refused: Option<Refusal>,
}

impl Held {
    /// When it ends as the server said, however long that is.
    fn ends_by_itself(&self) -> Instant {
        self.since + Duration::from_secs(self.grant.lifetime.into())
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Client {
    plan: Plan,
    route: Route,
    nat_pmp: bool,
    fell_back: bool,
    exchange: Option<Exchange>,
    held: Option<Held>,
    /// What a kept mapping was given last.
    assigned: Option<Suggestion>,
    listed: Vec<NextMapping>,
    epochs: Epochs,
    ignored: u32,
    after: Option<After>,
    events: VecDeque<Event>,
    ended: bool,
}

impl Client {
    /// Begins; the first question is the first event.
    pub(super) fn new(now: Instant, plan: Plan, route: Route, entropy: &mut dyn Entropy) -> Self {
        let mut client = Self {
            nat_pmp: plan.speak == Speak::NatPmp,
            plan,
            route,
            fell_back: false,
            exchange: None,
            held: None,
            assigned: None,
            listed: Vec::new(),
            epochs: Epochs::default(),
            ignored: 0,
            after: None,
            events: VecDeque::new(),
            ended: false,
        };
        client.ask(now, Step::Ask, false, entropy);
        client
    }

    /// What happened, one thing at a time.
    pub(super) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let exchange = self.exchange.as_ref().filter(|exchange| !exchange.answered);
        let again = exchange.and_then(|exchange| exchange.again);
        let gives_up = exchange.and_then(|exchange| exchange.gives_up);
        let due = self.held.as_ref().map(|held| held.due);
        [again, gives_up, due].into_iter().flatten().min()
    }

    /// A datagram came to our port.
    pub(super) fn handle_datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: &[u8],
        entropy: &mut dyn Entropy,
    ) {
        if self.ended {
            return;
        }
        if from != self.route.server {
            return self.ignore(from, bytes, Ignored::OtherSource(from));
        }
        let Some(exchange) = &self.exchange else { return self.ignore(from, bytes, Ignored::Unasked) };
        match message::read(&exchange.question, bytes) {
            Ok(answer) if !exchange.answered => {
                let step = exchange.step;
                if self.is_page_seen(&answer) || self.is_version_known(&answer) {
                    return self.ignore(from, bytes, Ignored::OtherPage);
                }
                if let (Step::GiveBack, Some(Ok(grant))) = (step, self.reading(&answer))
                    && grant.lifetime != 0
                {
                    return self.on_grant_before_delete(now, bytes, answer, grant.lifetime);
                }
                self.events.push_back(Event::Answered { bytes: bytes.to_vec(), answer: answer.clone() });
                let lost = !self.check_epoch(now, &answer);
                if let Some(exchange) = &mut self.exchange {
                    exchange.answered = true;
                }
                let step = if lost && step == Step::Renew { Step::Recover } else { step };
                self.on_answer(now, step, &answer, entropy);
            }
            // A mapping update (RFC 6887 §14.2), or the answer to an earlier copy of the question.
            Ok(answer) if self.held.is_some() => {
                self.events.push_back(Event::Told { bytes: bytes.to_vec(), answer: answer.clone() });
                let step = if self.check_epoch(now, &answer) { Step::Renew } else { Step::Recover };
                if !matches!(answer, Answer::Version(_)) && !self.is_version_known(&answer) {
                    self.on_answer(now, step, &answer, entropy);
                }
            }
            Ok(_) => self.ignore(from, bytes, Ignored::Unasked),
            Err(why) => match self.announcement(bytes) {
                Some(answer) => {
                    self.events.push_back(Event::Told { bytes: bytes.to_vec(), answer: answer.clone() });
                    if !self.check_epoch(now, &answer)
                        && let Some(held) = &mut self.held
                    {
                        (held.due, held.recover) = (now + entropy.up_to(RECOVERY_WAIT), true);
                    }
                }
                None => self.ignore(from, bytes, why),
            },
        }
    }

    /// What a server says unasked about its epoch, in the protocol that is spoken (RFC 6887 §14.1.3, RFC 6886 §3.2.1); it counts
    /// only while something is held from it.
    fn announcement(&self, bytes: &[u8]) -> Option<Answer> {
        self.held.as_ref()?;
        if self.nat_pmp {
            let response = natpmp::Response::parse(bytes).ok()?;
            let announces = matches!(response, natpmp::Response::ExternalAddress { .. });
            return announces.then_some(Answer::NatPmp(response));
        }
        let response = Response::parse(bytes).ok()?;
        (response.body == Body::Announce).then_some(Answer::Pcp(response))
    }

    /// The network says that nobody is there; `closed` when the host is and the port is not.
    pub(super) fn handle_unreachable(&mut self, now: Instant, closed: bool, error: &str) {
        let patient = self.exchange.as_ref().is_some_and(|exchange| exchange.patient);
        if self.ended || self.held.is_some() || patient {
            return; // what is kept is asked for again when it is due
        }
        self.fail(now, error.to_owned(), Outcome::Unreachable { closed, error: error.to_owned() });
    }

    /// Somebody wants it to end: what was granted or may have been is given back. At the second time nothing is waited for.
    pub(super) fn handle_interrupt(&mut self, now: Instant, entropy: &mut dyn Entropy) {
        if self.ended {
            return;
        }
        if let Some(after) = &mut self.after {
            if after.interrupted {
                return self.fail(now, "interrupted".to_owned(), Outcome::Interrupted);
            }
            after.interrupted = true;
            return self.events.push_back(Event::Note(Note::StillGivingBack));
        }
        let held = self.held.take();
        match &self.plan.job {
            Job::Mapping(mapping) if mapping.lifetime != 0 => {
                let asked = now + Duration::from_secs(mapping.lifetime.into());
                let ends = held.map_or(asked, |held| held.ends_by_itself());
                if mapping.peer.is_some() {
                    let left = ends.secs_left(now);
                    self.events.push_back(Event::Note(Note::PeerStays { seconds: left }));
                    return self.end(Outcome::Deleted { remaining: left });
                }
                let outcome = Outcome::Deleted { remaining: 0 };
                self.give_back(now, After { outcome, ends, interrupted: true }, entropy);
            }
            _ => self.end(Outcome::Interrupted),
        }
    }

    /// What is due at `now` happens.
    pub(super) fn handle_timeout(&mut self, now: Instant, entropy: &mut dyn Entropy) {
        if self.ended {
            return;
        }
        if self.held.as_ref().is_some_and(|held| held.due <= now) {
            return self.on_due(now, entropy);
        }
        let Some(exchange) = self.exchange.as_ref().filter(|exchange| !exchange.answered) else { return };
        if exchange.gives_up.is_some_and(|at| at <= now) {
            let (tries, waited, ignored) = (exchange.tries, now - exchange.began, self.ignored);
            match exchange.stands_until {
                Some(until) => self.on_kept(until.secs_left(now)),
                None => self.fail(now, "no answer".to_owned(), Outcome::Silent { tries, waited, ignored }),
            }
        } else if exchange.again.is_some_and(|at| at <= now) {
            self.transmit(now, entropy);
        }
    }

    /// A kept mapping's next renewal, or its end.
    fn on_due(&mut self, now: Instant, entropy: &mut dyn Entropy) {
        let roll = entropy.unit();
        // RFC 6886 §1.1: PCP first each time; a gateway may have become a PCP server.
        self.nat_pmp = self.plan.speak == Speak::NatPmp;
        let Some(held) = &mut self.held else { return };
        if held.ends <= now {
            let refused = held.refused;
            self.held = None;
            self.events.push_back(Event::Note(Note::Expired));
            match refused {
                Some(refusal) => self.end(Outcome::Refused(refusal)),
                None => self.ask(now, Step::Ask, true, entropy),
            }
            return;
        }
        if held.recover {
            (held.due, held.recover) = (held.ends, false);
            return self.ask(now, Step::Recover, true, entropy);
        }
        held.attempts += 1;
        let next = held.since + renewal_delay(held.ends - held.since, held.attempts + 1, roll);
        held.due = next.max(now + MIN_RENEWAL_GAP).min(held.ends);
        self.ask(now, Step::Renew, true, entropy);
    }

    /// Puts the question of `step` on its way; who is patient waits as long as it takes.
    fn ask(&mut self, now: Instant, step: Step, patient: bool, entropy: &mut dyn Entropy) {
        let question = match self.question(step) {
            Ok(question) => question,
            Err(why) => return self.end(Outcome::Inexpressible(why)),
        };
        let pace = match (self.nat_pmp, patient) {
            (true, _) => Pace::NatPmp,
            (false, true) => Pace::Rfc,
            (false, false) => Pace::Watched,
        };
        self.exchange = Some(Exchange {
            step,
            question,
            patient,
            pace,
            began: now,
            tries: 0,
            wait: None,
            again: None,
            gives_up: (!patient).then(|| now + self.plan.patience),
            answered: false,
            stands_until: None,
        });
        self.transmit(now, entropy);
    }

    fn transmit(&mut self, now: Instant, entropy: &mut dyn Entropy) {
        let Some(exchange) = &mut self.exchange else { return };
        exchange.tries += 1;
        let wait = exchange.pace.wait(exchange.wait, entropy.unit());
        exchange.wait = Some(wait);
        let last = !exchange.patient && self.plan.retries.is_some_and(|most| exchange.tries > most);
        // RFC 6887 §11.2.1: one packet for each renewal.
        exchange.again = (exchange.step != Step::Renew && !last).then(|| now + wait);
        if last && let Some(gives_up) = &mut exchange.gives_up {
            *gives_up = (*gives_up).min(now + wait);
        }
        let (question, tries) = (exchange.question.clone(), exchange.tries);
        self.events.push_back(Event::Send { bytes: question.to_bytes(), question, tries });
    }

    fn question(&self, step: Step) -> Result<Question, String> {
        let client = self.route.client;
        let mapping = match (step, self.plan.job.mapping(), self.assigned) {
            (Step::GiveBack, Some(mapping), _) => {
                let mut delete = mapping.deleted();
                if self.after.as_ref().is_some_and(After::is_ours) {
                    let third = [OptionCode::THIRD_PARTY, OptionCode::THIRD_PARTY_ID];
                    delete.options.retain(|option| !third.contains(&option.code()));
                }
                delete
            }
            // RFC 6887 §11.2.1, §14.1.3: what was assigned is suggested.
            (_, Some(mapping), Some(assigned)) => {
                // NAT-PMP has no address, and PREFER_FAILURE insists on none after a loss that was not asked for.
                let lost = step != Step::Renew && mapping.prefers_failure();
                let addr = assigned.addr.filter(|_| !self.nat_pmp && !lost).or(mapping.suggestion.addr);
                Mapping { suggestion: Suggestion { addr, port: assigned.port }, ..mapping }
            }
            _ => {
                let seen = self.listed.last().map(|last| {
                    let (more, lifetime, options) = (false, 0, Vec::new());
                    PcpOption::Next(NextMapping { more, lifetime, options, ..last.clone() })
                });
                return self.plan.job.question(self.nat_pmp, client, seen.as_ref());
            }
        };
        if self.nat_pmp {
            return mapping.nat_pmp().map(Question::NatPmp);
        }
        Ok(Question::Pcp(mapping.request(client)))
    }

    fn give_back(&mut self, now: Instant, after: After, entropy: &mut dyn Entropy) {
        self.after = Some(after);
        self.events.push_back(Event::Note(Note::GivingBack));
        self.ask(now, Step::GiveBack, false, entropy);
    }

    fn on_answer(&mut self, now: Instant, step: Step, answer: &Answer, entropy: &mut dyn Entropy) {
        if let Answer::Version(refusal) = answer
            && refusal.version == 0
            && self.plan.speak == Speak::Auto
            && !self.nat_pmp
        {
            self.nat_pmp = true;
            if !std::mem::replace(&mut self.fell_back, true) {
                self.events.push_back(Event::Note(Note::FellBack));
            }
            let patient = self.exchange.as_ref().is_some_and(|exchange| exchange.patient);
            return self.ask(now, step, patient, entropy);
        }
        let Some(reading) = self.reading(answer) else { return self.on_other(now, answer, entropy) };
        match (step, reading) {
            (Step::GiveBack, Ok(_)) => self.on_kept(0),
            (Step::GiveBack, Err(refusal)) => {
                self.fail(now, refusal.code.to_string(), Outcome::Refused(refusal));
            }
            (Step::Ask, Err(refusal)) => self.end(Outcome::Refused(refusal)),
            (Step::Renew | Step::Recover, Err(refusal)) => self.on_renewal_refused(now, step, refusal),
            (_, Ok(grant)) => self.on_granted(now, grant, entropy),
        }
    }

    /// RFC 6887 §8.3: not the same again while the error lasts.
    fn on_renewal_refused(&mut self, now: Instant, step: Step, refusal: Refusal) {
        let Some(held) = &mut self.held else { return };
        let over = now + Duration::from_secs(refusal.lifetime.into());
        held.due = match step {
            // The server no longer has it: it is asked for as soon as may be.
            Step::Recover => over.max(now + MIN_RENEWAL_GAP),
            _ => held.due.max(over),
        };
        held.recover |= step == Step::Recover;
        held.due = held.due.min(held.ends);
        if held.refused.replace(refusal) != Some(refusal) {
            let left = held.ends.secs_left(now);
            self.events.push_back(Event::Note(Note::RenewalRefused { refusal, left }));
        }
    }

    fn on_granted(&mut self, now: Instant, grant: Grant, entropy: &mut dyn Entropy) {
        let ends = now + Duration::from_secs(grant.lifetime.into());
        if let Job::External { .. } = self.plan.job {
            let outcome = Outcome::External(grant.external_addr.unwrap_or(IpAddr::from([0, 0, 0, 0])));
            return self.give_back(now, After { outcome, ends, interrupted: false }, entropy);
        }
        let Job::Mapping(mapping) = &self.plan.job else { return };
        let amiss = amiss(mapping, &grant);
        if mapping.lifetime == 0 {
            return self.end(amiss.unwrap_or(Outcome::Deleted { remaining: grant.lifetime }));
        }
        if grant.lifetime == 0 && self.held.is_none() {
            let what = "it answers SUCCESS with a lifetime of 0 s, which is no mapping";
            return self.end(Outcome::Nonsense(what.to_owned()));
        }
        if let Some(outcome) = amiss.filter(|_| grant.lifetime != 0) {
            if mapping.peer.is_some() {
                self.events.push_back(Event::Note(Note::PeerStays { seconds: grant.lifetime }));
                return self.end(outcome.leaving(grant.lifetime));
            }
            self.held = None;
            return self.give_back(now, After { outcome, ends, interrupted: false }, entropy);
        }
        let not_processed = not_processed(mapping, &grant);
        if !not_processed.is_empty() && self.held.is_none() {
            self.events.push_back(Event::Note(Note::NotProcessed(not_processed)));
        }
        if self.held.is_none() && is_one_of_many(mapping, &grant) {
            self.events.push_back(Event::Note(Note::OnePort));
        }
        if mapping.keep { self.hold(now, grant, entropy) } else { self.end(Outcome::Granted(grant)) }
    }

    fn hold(&mut self, now: Instant, grant: Grant, entropy: &mut dyn Entropy) {
        if grant.lifetime == 0 {
            // A mapping update may say so: it is gone.
            if let Some(held) = &mut self.held {
                (held.ends, held.due) = (now, now);
            }
            return;
        }
        let lifetime = Duration::from_secs(grant.lifetime.into()).min(LONGEST_LIFETIME);
        let first = renewal_delay(lifetime, 1, entropy.unit()).max(MIN_RENEWAL_GAP).min(lifetime);
        let renewed = self.held.is_some();
        let moved = self.held.as_ref().is_some_and(|held| {
            (held.grant.external_addr, held.grant.external_port) != (grant.external_addr, grant.external_port)
        });
        let external = grant.external_addr.map(|addr| SocketAddr::new(addr, grant.external_port));
        if moved {
            self.events.push_back(Event::Note(Note::Moved { external, port: grant.external_port }));
        }
        let (next, deletable) = (first, grant.peer.is_none());
        let note = Note::Held { renewed, lifetime: grant.lifetime, next, deletable };
        self.events.push_back(Event::Note(note));
        let (due, ends) = (now + first, now + lifetime);
        self.assigned = Some(Suggestion { addr: grant.external_addr, port: grant.external_port });
        self.held = Some(Held { grant, since: now, ends, attempts: 0, due, recover: false, refused: None });
    }

    /// A grant that comes late, or once more, looks like the answer to a delete which leaves a rest (RFC 6887 §15): the delete is
    /// repeated, and the rest counts if nothing better comes.
    fn on_grant_before_delete(&mut self, now: Instant, bytes: &[u8], answer: Answer, lifetime: u32) {
        self.check_epoch(now, &answer);
        self.events.push_back(Event::Told { bytes: bytes.to_vec(), answer });
        if let Some(exchange) = &mut self.exchange {
            exchange.stands_until = Some(now + Duration::from_secs(lifetime.into()));
        }
    }

    /// What was given back is gone, or the server keeps it for so many seconds.
    fn on_kept(&mut self, left: u32) {
        let Some(After { outcome, .. }) = self.after.take() else { return };
        if left != 0 && !matches!(outcome, Outcome::Deleted { .. }) {
            let why = format!("the server keeps it for another {left} s");
            self.events.push_back(Event::Note(Note::NotGivenBack(why)));
        }
        self.end(outcome.leaving(left));
    }

    /// No answer, or no good one: that is the end, unless something else has ended already and was only to be given back. A
    /// delete that was wanted and is not confirmed is no success.
    fn fail(&mut self, now: Instant, why: String, failure: Outcome) {
        match self.after.take() {
            Some(After { outcome, ends, .. }) if !matches!(outcome, Outcome::Deleted { .. }) => {
                self.events.push_back(Event::Note(Note::NotGivenBack(why)));
                self.end(outcome.leaving(ends.secs_left(now)));
            }
            _ => self.end(failure),
        }
    }

    fn reading(&self, answer: &Answer) -> Option<Result<Grant, Refusal>> {
        read_answer(&self.plan.job, self.route.client, self.nat_pmp, answer)
    }

    /// ANNOUNCE, the external address of NAT-PMP, and lists.
    fn on_other(&mut self, now: Instant, answer: &Answer, entropy: &mut dyn Entropy) {
        match (&self.plan.job, answer) {
            (Job::External { .. }, Answer::NatPmp(natpmp::Response::ExternalAddress { addr, .. })) => {
                self.end(Outcome::External(IpAddr::V4(*addr)));
            }
            (Job::Announce { .. }, _) => self.end(Outcome::Alive),
            (Job::Get { .. }, Answer::Pcp(response)) => self.on_page(now, response, entropy),
            _ => self.end(Outcome::Nonsense("its answer does not belong to the question".to_owned())),
        }
    }

    /// A page whose mappings are not behind those seen answers an earlier copy of an earlier question.
    fn is_page_seen(&self, answer: &Answer) -> bool {
        let (Job::Get { .. }, Answer::Pcp(response), Some(last)) =
            (&self.plan.job, answer, self.listed.last())
        else {
            return false;
        };
        nexts(response).next().is_some_and(|first| first.key() <= last.key())
    }

    /// The gateway named version 0 before: that is why it is asked in it, and this the answer to an earlier copy.
    fn is_version_known(&self, answer: &Answer) -> bool {
        let again = matches!(answer, Answer::NatPmp(natpmp::Response::UnsupportedVersion { .. }));
        again && self.plan.speak == Speak::Auto
    }

    fn on_page(&mut self, now: Instant, response: &Response, entropy: &mut dyn Entropy) {
        if response.result == ResultCode::NON_EXIST_MAPPING {
            return self.end_list();
        }
        let page: Vec<_> = nexts(response).cloned().collect();
        if page.is_empty() || !page.windows(2).all(|pair| pair[0].key() < pair[1].key()) {
            return self.end(Outcome::Nonsense("its list is empty or not in order".to_owned()));
        }
        self.listed.extend(page);
        if self.listed.len() > MOST_LISTED {
            return self.end(Outcome::Nonsense(format!("its list has more than {MOST_LISTED} mappings")));
        }
        if self.listed.last().is_some_and(|last| last.more) {
            return self.ask(now, Step::Ask, false, entropy);
        }
        self.end_list();
    }

    fn end_list(&mut self) {
        let listed = std::mem::take(&mut self.listed);
        self.end(Outcome::Listed(listed));
    }

    /// Whether the server still has the state that it had; says so if not (RFC 6887 §8.5).
    fn check_epoch(&mut self, now: Instant, answer: &Answer) -> bool {
        let consistent = self.epochs.is_consistent(now, answer);
        if !consistent {
            self.events.push_back(Event::Note(Note::StateLost));
        }
        consistent
    }

    fn ignore(&mut self, from: SocketAddr, bytes: &[u8], why: Ignored) {
        self.ignored += 1;
        self.events.push_back(Event::Ignored { from, bytes: bytes.to_vec(), why });
    }

    fn end(&mut self, outcome: Outcome) {
        (self.exchange, self.held, self.ended) = (None, None, true);
        self.events.push_back(Event::Ended(outcome));
    }
}

fn nexts(response: &Response) -> impl Iterator<Item = &NextMapping> {
    response.options.iter().filter_map(|option| match option {
        PcpOption::Next(mapping) => Some(mapping),
        _ => None,
    })
}
