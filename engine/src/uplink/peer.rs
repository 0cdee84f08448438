//! PEER (RFC 6887 §12): where a flow that somebody has begun goes out, and that it lasts. One exchange each; who wants it to last
//! longer asks again.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};

use wire::pcp::{
    self, Body, Nonce, OptionCode, PcpOption, PeerData, Protocol, Request, Response, ResultCode,
};

use super::flow::FlowId;
use super::interface::Output;
use super::schedule::{first_rt, next_rt};
use crate::entropy::Entropy;
use crate::time::{Duration, Instant, Timers};

/// How long an error lasts that does not pass by itself (RFC 6887 §7.4).
const NOT_SERVED: Duration = Duration::from_secs(30 * 60);

/// What the server is asked for, once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PeerWant {
    /// The LAN host whose flow it is; `None` when the server sees it come from the packet's own source.
    pub third_party: Option<IpAddr>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port that the server sees it come from.
    pub internal_port: u16,
    /// Whom it goes to.
    pub remote: SocketAddr,
    /// Suggested external address and port; zeros where any will do.
    pub suggested: SocketAddrV4,
    /// Requested Lifetime, in seconds.
    pub lifetime: u32,
}

/// Requests on their way.
#[derive(Debug, Default)]
pub(super) struct Peers {
    asked: BTreeMap<FlowId, Asked>,
    timers: Timers<FlowId>,
}

#[derive(Debug)]
struct Asked {
    want: PeerWant,
    nonce: Nonce,
    rt: Duration,
    sent: u32,
}

impl Peers {
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// It is asked for from now on, until it is answered or forgotten.
    pub(super) fn add(&mut self, now: Instant, id: FlowId, nonce: Nonce, want: PeerWant) {
        self.asked.insert(id, Asked { want, nonce, rt: Duration::ZERO, sent: 0 });
        self.timers.set(id, now);
    }

    pub(super) fn forget(&mut self, id: FlowId) {
        self.asked.remove(&id);
        self.timers.cancel(id);
    }

    /// Takes out all of them.
    pub(super) fn take_all(&mut self) -> Vec<FlowId> {
        let all = std::mem::take(self).asked;
        all.into_keys().collect()
    }

    /// What was sent in vain, for it was nothing else that was, goes out anew.
    pub(super) fn begin_again(&mut self, now: Instant) {
        for (&id, asked) in &mut self.asked {
            asked.sent = 0;
            self.timers.set(id, now);
        }
    }

    /// A request that is due, as RFC 6887 §8.1.1 says; call until `None`.
    pub(super) fn due(&mut self, now: Instant, source: IpAddr, entropy: &mut dyn Entropy) -> Option<Request> {
        let id = self.timers.pop_due(now)?;
        let asked = self.asked.get_mut(&id).expect("who is forgotten has no alarm");
        asked.rt = if asked.sent == 0 { first_rt(entropy.unit()) } else { next_rt(asked.rt, entropy.unit()) };
        asked.sent += 1;
        self.timers.set(id, now + asked.rt);
        Some(asked.request(source))
    }

    /// The request that this answers (RFC 6887 §12.4): nonce, protocol, internal address and port, remote peer.
    pub(super) fn matching(&self, source: IpAddr, data: &PeerData, response: &Response) -> Option<FlowId> {
        let third_party = match response.option(OptionCode::THIRD_PARTY) {
            Some(PcpOption::ThirdParty(addr)) => Some(*addr),
            _ => None,
        };
        let remote = SocketAddr::new(pcp::ip_from_wire(data.remote_addr), data.remote_port);
        let answers = |asked: &Asked| {
            let PeerWant { protocol, internal_port, remote: to, .. } = asked.want;
            (asked.nonce, protocol, internal_port, to)
                == (data.nonce, data.protocol, data.internal_port, remote)
                && asked.third_party(source).map(pcp::ip_to_wire) == third_party
        };
        self.asked.iter().find(|(_, asked)| answers(asked)).map(|(&id, _)| id)
    }
}

/// What other protocols have to say: they know mappings, and not where a flow goes out that has none. It is PCP's own word for that, and
/// lasts, for nothing but another server changes it; clients go on with keepalives (RFC 6887 §10.3).
pub(super) fn not_served(id: FlowId) -> Output {
    Output::PeerRefused(id, ResultCode::UNSUPP_OPCODE, NOT_SERVED)
}

impl Asked {
    /// It must not name the source itself (RFC 6887 §13.1).
    fn third_party(&self, source: IpAddr) -> Option<IpAddr> {
        self.want.third_party.filter(|&host| host != source)
    }

    fn request(&self, source: IpAddr) -> Request {
        let PeerWant { protocol, internal_port, remote, suggested, lifetime, .. } = self.want;
        let third_party = self.third_party(source).map(|host| PcpOption::ThirdParty(pcp::ip_to_wire(host)));
        Request {
            lifetime,
            client_addr: pcp::ip_to_wire(source),
            body: Body::Peer(PeerData {
                nonce: self.nonce,
                protocol,
                internal_port,
                external_port: suggested.port(),
                external_addr: suggested.ip().to_ipv6_mapped(),
                remote_port: remote.port(),
                remote_addr: pcp::ip_to_wire(remote.ip()),
            }),
            options: third_party.into_iter().collect(),
        }
    }
}
