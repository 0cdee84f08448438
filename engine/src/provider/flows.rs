//! Flows that hosts have begun by themselves, RFC 6887's implicit mappings. Only the data plane knows them, and it is asked
//! where one goes out before a new mapping of the same internal endpoint gets a place: the client may have told others of it.
//!
//! PEER gets the place of its flow, whatever it suggests (§12.3). MAP, and NAT-PMP, get it where they leave the port to us. Where
//! they suggest one they get that, and not what §11.3 would rather have: those who suggest a port tell others of it, too, as
//! each IGD client does, and a flow that is there goes on where it is.

use std::collections::BTreeMap;
use std::net::{SocketAddr, SocketAddrV4};

use wire::pcp::Protocol;

use super::Server;
use super::admission::Client;
use super::interface::{Arrival, Inside, Output, Ticket};
use super::journal::MappingKey;
use super::nat::endpoint;
use super::reason::{Reason, Refused};
use crate::time::Instant;

/// So many questions are open at once. The caller answers each before it takes in many datagrams.
const MAX_OPEN: usize = 256;

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
    by_ticket: BTreeMap<Ticket, Waiting>,
    by_key: BTreeMap<MappingKey, Ticket>,
    /// The answer to the question that has just been answered, while who asked is served.
    answer: Option<(MappingKey, Option<SocketAddrV4>)>,
}

/// The request that a question is for.
#[derive(Debug)]
struct Waiting {
    key: MappingKey,
    arrival: Arrival,
    payload: Vec<u8>,
}

/// What is known of a flow.
pub(super) enum Known {
    /// It goes out here, or there is none.
    Is(Option<SocketAddrV4>),
    /// Nothing yet: the request waits.
    Asked,
}

impl Flows {
    /// The request that has asked for this mapping's flow.
    pub(super) fn asker(&self, key: &MappingKey) -> Option<(&Arrival, &[u8])> {
        let waiting = self.by_key.get(key).and_then(|ticket| self.by_ticket.get(ticket))?;
        Some((&waiting.arrival, &waiting.payload))
    }
}

impl Server {
    /// The flow of a mapping that is to be made in the pool. One of all ports has none that counts, nor one whose place is decided
    /// by what is mapped already.
    pub(super) fn flow(
        &mut self,
        key: MappingKey,
        client: &Client,
        payload: &[u8],
    ) -> Result<Known, Refused> {
        if key.port == 0 || self.pool.of(endpoint(&key)).is_some() {
            return Ok(Known::Is(None));
        }
        if let Some((_, external)) = self.flows.answer.filter(|(of, _)| *of == key) {
            return Ok(Known::Is(external));
        }
        if self.flows.by_key.contains_key(&key) {
            self.wait(key, client, payload)?;
            return Ok(Known::Asked);
        }
        if self.flows.by_ticket.len() >= MAX_OPEN {
            return Err(Reason::Busy.into());
        }
        let ticket = self.ticket();
        self.flows.by_key.insert(key, ticket);
        let waiting = Waiting { key, arrival: client.arrival, payload: payload.to_vec() };
        self.flows.by_ticket.insert(ticket, waiting);
        let flow = FlowQuery {
            inside: key.inside(),
            protocol: key.protocol,
            internal_port: key.port,
            remote: key.peer,
        };
        self.outputs.push_back(Output::Flow { ticket, flow });
        Ok(Known::Asked)
    }

    /// Answers an [`Output::Flow`]: the address of the pool and the port by which that flow goes out; `None` if there is none, or
    /// if that is not known. An answer that nobody waits for any more is passed over.
    pub fn handle_flow(&mut self, now: Instant, ticket: Ticket, external: Option<SocketAddrV4>) {
        let Some(Waiting { key, arrival, payload }) = self.flows.by_ticket.remove(&ticket) else { return };
        self.flows.by_key.remove(&key);
        let others = self.waiting.remove(&key).unwrap_or_default();
        self.flows.answer = Some((key, external));
        self.handle_again(now, &arrival, &payload);
        for (arrival, payload) in others {
            self.handle_again(now, &arrival, &payload);
        }
        self.flows.answer = None;
    }
}
