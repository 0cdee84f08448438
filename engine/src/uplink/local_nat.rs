//! No uplink at all (decision 21): nobody was found who gives mappings, so this router's own NAT counts as the last one. What is asked
//! for stands at once, at the WAN's address, under the port that its NAT has taken for it.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use wire::natpmp;
use wire::pcp::{self, ResultCode};

use super::filters::Filters;
use super::flow::{FlowId, Grant, Want};
use super::interface::{Input, Output, Uplink, UplinkProtocol};
use crate::entropy::Entropy;
use crate::time::{Duration, Instant};

/// Nothing ends by itself, and the gateway is told so again in good time.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// See the module's description.
#[derive(Debug)]
pub struct LocalNat {
    /// The server that might be there and is not.
    server: SocketAddr,
    addr: Ipv4Addr,
    flows: BTreeMap<FlowId, Grant>,
    told_again: Instant,
    filters: Filters,
    outputs: VecDeque<Output>,
}

impl LocalNat {
    /// In the place of `server`; the WAN has this address.
    pub fn new(now: Instant, server: SocketAddr, addr: Ipv4Addr) -> Self {
        let outputs = [Output::Answering, Output::External(Some(addr))].into();
        let (flows, filters) = (BTreeMap::new(), Filters::default());
        Self { server, addr, flows, told_again: now + LIFETIME / 2, filters, outputs }
    }

    fn grant_to(&mut self, now: Instant, id: FlowId, want: &Want) {
        // The port is the one that our NAT has; a host without it would need another NAT.
        if want.third_party.is_some_and(|host| host != self.addr) {
            return self.outputs.push_back(Output::Refused(id, ResultCode::UNSUPP_OPTION, Duration::ZERO));
        }
        let external = (self.addr, want.internal_port).into();
        let grant = Grant { external, lifetime: LIFETIME, since: now };
        self.flows.insert(id, grant);
        self.outputs.push_back(Output::Granted(id, grant));
    }

    fn tell_again(&mut self, now: Instant) {
        for (&id, grant) in &mut self.flows {
            grant.external.set_ip(self.addr.into());
            grant.since = now;
            self.outputs.push_back(Output::Granted(id, *grant));
        }
    }
}

impl Uplink for LocalNat {
    fn protocol(&self) -> UplinkProtocol {
        UplinkProtocol::Local
    }

    fn server(&self) -> SocketAddr {
        self.server
    }

    fn source(&self) -> IpAddr {
        self.addr.into()
    }

    fn handle_input(&mut self, now: Instant, input: Input<'_>, _: &mut dyn Entropy) {
        match input {
            Input::Ask(id, want) | Input::AskInTurn(id, want, _) => self.grant_to(now, id, &want),
            Input::Assume(id, want) => {
                let external = (self.addr, want.internal_port).into();
                self.flows.insert(id, Grant { external, lifetime: LIFETIME, since: now });
            }
            Input::Confirm(id) | Input::Filter(id, _) => {
                if let Some(grant) = self.flows.get(&id) {
                    self.outputs.push_back(Output::Granted(id, *grant));
                }
            }
            Input::Delete(id) | Input::DeleteInTurn(id) => {
                if self.flows.remove(&id).is_some() {
                    self.outputs.push_back(Output::Deleted(id));
                }
            }
            Input::Peer(id, want) => {
                let external = (self.addr, want.internal_port).into();
                let lifetime = Duration::from_secs(u64::from(want.lifetime));
                self.outputs.push_back(match want.third_party.is_some_and(|host| host != self.addr) {
                    true => super::peer::not_served(id),
                    false => Output::PeerGranted(id, Grant { external, lifetime, since: now }),
                });
            }
            Input::Forget(id) => drop(self.flows.remove(&id)),
            // It has only been slow.
            Input::Datagram(from, bytes) if from == self.server => {
                let speaks = if pcp::Response::parse(bytes).is_ok() {
                    Some(UplinkProtocol::Pcp)
                } else {
                    natpmp::Response::parse(bytes).ok().map(|_| UplinkProtocol::NatPmp)
                };
                self.outputs.extend(speaks.map(Output::Speaks));
            }
            Input::Timeout if self.told_again <= now => {
                self.told_again = now + LIFETIME / 2;
                self.tell_again(now);
            }
            // There is nobody to hear, to hurry or to wait for.
            Input::TurnsFrom(_)
            | Input::Hurry(_)
            | Input::Extend(..)
            | Input::Adopt(..)
            | Input::List(_)
            | Input::Datagram(..)
            | Input::Multicast(..)
            | Input::Source(_)
            | Input::Unreachable
            | Input::Http(..)
            | Input::Closed
            | Input::Woke
            | Input::Timeout => {}
        }
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn next_timeout(&self) -> Option<Instant> {
        (!self.flows.is_empty()).then_some(self.told_again)
    }

    fn is_answering(&self) -> Option<bool> {
        Some(true)
    }

    fn last_heard(&self) -> Option<Instant> {
        None
    }

    fn server_epoch(&self) -> Option<u32> {
        None
    }

    fn ignored(&self) -> u64 {
        0
    }

    fn unanswered_since(&self) -> Option<Instant> {
        None
    }

    fn grant(&self, flow: FlowId) -> Option<Grant> {
        self.flows.get(&flow).copied()
    }

    fn holds(&self, flow: FlowId) -> bool {
        self.flows.contains_key(&flow)
    }

    fn has(&self, flow: FlowId) -> bool {
        self.flows.contains_key(&flow)
    }

    fn set_recovery_wait(&mut self, _: Duration) {}

    fn set_filters(&mut self, filters: Filters) {
        self.filters = filters;
    }

    fn take_filters(&mut self) -> Filters {
        std::mem::take(&mut self.filters)
    }
}
