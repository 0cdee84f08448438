//! Flows that hosts have begun by themselves, RFC 6887's implicit mappings. Only the data plane knows them, and it is asked
//! where one goes out before a new mapping of the same internal endpoint gets a place: the client may have told others of it.
//!
//! PEER gets the place of its flow, whatever it suggests (§12.3), or none, where that place cannot be its own. MAP, and NAT-PMP, get
//! it where they leave the port to us. Where they suggest one they get that. §11.3 would have them get the flow's place, and has
//! a MUST that refuses PREFER_FAILURE for another one; but whoever suggests a port tells others of it, as each IGD client does,
//! and would have no port at all where another of its flows was first. The flow goes on where it is.

use std::collections::BTreeMap;
use std::net::{SocketAddr, SocketAddrV4};

use wire::pcp::Protocol;

use super::Server;
use super::admission::Client;
use super::interface::{Arrival, Inside, Output, Subscriber, Ticket};
use super::journal::MappingKey;
use super::nat::endpoint;
use super::pool::Want;
use super::reason::Refused;
use crate::time::Instant;

/// A question for the data plane: where packets of a flow go out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FlowQuery {
    /// The host inside.
    pub inside: Inside,
    /// One with ports.
    pub protocol: Protocol,
    /// Where the flow comes from.
    pub internal_port: u16,
    /// Where to; `None`: any flow of that internal endpoint is meant.
    pub remote: Option<SocketAddr>,
}

/// Open questions.
#[derive(Debug, Default)]
pub(super) struct Flows {
    by_ticket: BTreeMap<Ticket, Question>,
    by_key: BTreeMap<MappingKey, Ticket>,
    /// How many each subscriber has.
    by_subscriber: BTreeMap<Subscriber, usize>,
    /// The answer to the question that has just been answered, while who asked is served.
    answer: Option<(MappingKey, Option<SocketAddrV4>)>,
}

/// A question, and the request that it is for.
#[derive(Debug)]
struct Question {
    key: MappingKey,
    subscriber: Subscriber,
    arrival: Arrival,
    payload: Vec<u8>,
}

impl Flows {
    pub(super) fn len(&self) -> usize {
        self.by_ticket.len()
    }

    pub(super) fn of(&self, subscriber: Subscriber) -> usize {
        self.by_subscriber.get(&subscriber).copied().unwrap_or(0)
    }

    /// The request that has asked for this mapping's flow.
    pub(super) fn asker(&self, key: &MappingKey) -> Option<(&Arrival, &[u8])> {
        let question = self.by_key.get(key).and_then(|ticket| self.by_ticket.get(ticket))?;
        Some((&question.arrival, &question.payload))
    }

    /// The first of these mappings of MAP or NAT-PMP whose flow is asked for.
    pub(super) fn first_in(
        &self,
        inside: Inside,
        protocol: Protocol,
        port: u16,
        ports: u16,
    ) -> Option<MappingKey> {
        let key = |port| MappingKey::new(inside, protocol, port, None);
        let last = port.saturating_add(ports.saturating_sub(1));
        self.by_key.range(key(port)..=key(last)).next().map(|(&key, _)| key)
    }

    fn ask(&mut self, ticket: Ticket, question: Question) {
        self.by_key.insert(question.key, ticket);
        *self.by_subscriber.entry(question.subscriber).or_default() += 1;
        self.by_ticket.insert(ticket, question);
    }

    fn take(&mut self, ticket: Ticket) -> Option<Question> {
        let question = self.by_ticket.remove(&ticket)?;
        self.by_key.remove(&question.key);
        if let Some(count) = self.by_subscriber.get_mut(&question.subscriber) {
            *count -= 1;
            if *count == 0 {
                self.by_subscriber.remove(&question.subscriber);
            }
        }
        Some(question)
    }
}

impl Server {
    /// A new mapping of the pool wants to be where its flow is, if it has one. False: that is not known yet, and the request waits.
    pub(super) fn join_flow(
        &mut self,
        now: Instant,
        client: &Client,
        payload: &[u8],
        key: MappingKey,
        want: &mut Want,
    ) -> Result<bool, Refused> {
        // Where MAP goes is decided by what is mapped already; and what is refused in any case is not asked about.
        let is_decided = key.peer.is_none() && self.pool.of(endpoint(&key)).is_some();
        if key.port == 0 || is_decided || self.is_full(now, client) || !self.may_have(client, want) {
            return Ok(true);
        }
        if let Some((_, external)) = self.flows.answer.filter(|(of, _)| *of == key) {
            if let Some(external) = external {
                want.suggested = (Some(*external.ip()), external.port());
                want.strict = key.peer.is_some();
                want.has_flow = true;
            }
            return Ok(true);
        }
        if self.flows.by_key.contains_key(&key) {
            self.wait(key, client, payload)?;
            return Ok(false);
        }
        let ticket = self.ticket();
        let (subscriber, arrival, payload) = (client.subscriber, client.arrival, payload.to_vec());
        self.flows.ask(ticket, Question { key, subscriber, arrival, payload });
        let flow = FlowQuery {
            inside: key.inside(),
            protocol: key.protocol,
            internal_port: key.port,
            remote: key.peer,
        };
        self.outputs.push_back(Output::Flow { ticket, flow });
        Ok(false)
    }

    /// Answers an [`Output::Flow`]: the address of the pool and the port by which that flow goes out; `None` if there is none, or
    /// if that is not known. An answer that nobody waits for any more is passed over.
    pub fn handle_flow(&mut self, now: Instant, ticket: Ticket, external: Option<SocketAddrV4>) {
        let Some(Question { key, arrival, payload, .. }) = self.flows.take(ticket) else { return };
        let others = self.waiting.remove(&key).unwrap_or_default();
        self.flows.answer = Some((key, external));
        self.handle_again(now, &arrival, &payload);
        self.flows.answer = None;
        for (arrival, payload) in others {
            self.handle_again(now, &arrival, &payload);
        }
    }
}
