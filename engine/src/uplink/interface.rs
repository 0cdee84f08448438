//! What every uplink is to the gateway, whichever protocol it speaks: flows in, datagrams out, and back.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use wire::pcp::{Nonce, OptionCode, ResultCode};

use super::filters::{Filtered, Filters};
use super::flow::{FlowId, Grant, RemotePeer, Terms, Unknown, Want};
use super::http::{HttpId, HttpOutcome, HttpRequest};
use super::igd_client::Leftover;
use super::peer::PeerWant;
use crate::entropy::Entropy;
use crate::time::{Duration, Instant};

/// How mappings are asked for, the best first (decision 20).
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum UplinkProtocol {
    /// RFC 6887.
    Pcp,
    /// RFC 6886.
    NatPmp,
    /// A router of the provider's in front of us, as a control point asks it.
    Igd,
    /// Nobody is asked: this router's own NAT is the last one.
    Local,
}

impl fmt::Display for UplinkProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Igd => "UPnP IGD",
            Self::Local => "none",
        })
    }
}

/// What happens to an uplink.
#[derive(Debug)]
pub enum Input<'a> {
    /// Get and keep a mapping.
    Ask(FlowId, Want),
    /// Get and keep a mapping that stood before, when its turn comes; its owner last asked at that time.
    AskInTurn(FlowId, Want, Instant),
    /// The server may hold this mapping from before; nothing is asked.
    Assume(FlowId, Want),
    /// The turns of those begin at this time, and not before.
    TurnsFrom(Instant),
    /// Somebody waits for a mapping that was asked for a while ago: repeat the request as if it were new.
    Hurry(FlowId),
    /// Its owner asked again for a kept mapping: these are the terms now.
    Extend(FlowId, Terms),
    /// Somebody waits for the server to confirm a mapping that it has given before.
    Confirm(FlowId),
    /// These remote peers are let in to a kept mapping, and nobody else; none for everybody.
    Filter(FlowId, Vec<RemotePeer>),
    /// Drop the mapping at the server.
    Delete(FlowId),
    /// Drop the mapping at the server, when its turn comes.
    DeleteInTurn(FlowId),
    /// Take over a mapping that the server turned out to hold; it stands until then, and is not renewed.
    Adopt(FlowId, Unknown, Instant),
    /// Ask the server which mappings it holds for us (GET and NEXT), from this time on.
    List(Instant),
    /// Where does this flow go out, and may it last (RFC 6887 §12)? It is asked until it is answered, or forgotten.
    Peer(FlowId, PeerWant),
    /// Stop caring about the flow; nothing is sent.
    Forget(FlowId),
    /// A datagram on the socket that is connected to the server.
    Datagram(SocketAddr, &'a [u8]),
    /// A datagram on the multicast group for announcements (RFC 6887 §14.1).
    Multicast(SocketAddr, &'a [u8]),
    /// There is a new socket, whose own address is this. If it is another one, what the server knows of us is lost
    ///
    Source(IpAddr),
    /// There is nobody at the server's port, says the machine that it is on.
    Unreachable,
    /// The socket is closed: nothing is sent, and nobody's silence means anything, until there is a new one.
    Closed,
    /// What became of an exchange of HTTP.
    Http(HttpId, &'a HttpOutcome),
    /// The machine has slept: much that was due is overdue. Every mapping is asked for again, in turn; what has ended is lost.
    Woke,
    /// An alarm is due.
    Timeout,
}

/// What an uplink wants done or known.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Output {
    /// Send this to the server.
    Transmit(Vec<u8>),
    /// Ask this by HTTP; every one has its outcome.
    Http(HttpRequest),
    /// What is sent next may leave filters at the server, for the next life to know.
    Filtered(Filtered),
    /// The mapping stands; comes again after every renewal.
    Granted(FlowId, Grant),
    /// The first request was refused, for so long; the flow is gone.
    Refused(FlowId, ResultCode, Duration),
    /// A kept mapping's renewal was not answered; it is sent again.
    Unrenewed(FlowId),
    /// A kept mapping was not renewed; it stands until its lifetime ends, and is asked for again.
    RenewalRefused(FlowId, ResultCode),
    /// A kept mapping has ended or was taken away. The flow is gone, or what the server may still hold is being deleted.
    Lost(FlowId),
    /// The delete is confirmed, or the lifetime is over; the flow is gone.
    Deleted(FlowId),
    /// The server refuses to delete; the flow is kept as before.
    DeleteRefused(FlowId, ResultCode),
    /// A flow that was asked for goes out there, for so long; that was all of it.
    PeerGranted(FlowId, Grant),
    /// The server does not say where it goes out, for so long; that was all of it.
    PeerRefused(FlowId, ResultCode, Duration),
    /// The server has lost its state; every mapping is being asked for again.
    StateLost,
    /// The server answers (again).
    Answering,
    /// The server has not answered the last datagrams.
    Silent,
    /// The server speaks this version of PCP and not ours, which is tried again later.
    VersionRefused(u8),
    /// The server speaks this, and better than or instead of what it was asked by (decision 20).
    Speaks(UplinkProtocol),
    /// The external address that the server has; `None`: it has none at the moment. From protocols that tell it without a mapping.
    External(Option<Ipv4Addr>),
    /// The server's external address is of another NAT above it, so that nobody out there can reach it: there is none to tell.
    NatAbove(Ipv4Addr),
    /// The server holds these for us as well, and there is no flow for them. It comes once, after [`Input::List`].
    Listed(Vec<Unknown>),
    /// The server does not tell what it holds, or for this reason.
    NotListed(Option<ResultCode>),
    /// The server does without this option: what it refused with it, it gave without.
    Lacks(OptionCode),
}

/// One server that gives mappings. It never judges what a grant is worth to a control point: a success is reported as it came, and
/// whoever asked compares it with what was asked.
pub trait Uplink: fmt::Debug {
    /// How it is asked.
    fn protocol(&self) -> UplinkProtocol;

    /// The server's address and port.
    fn server(&self) -> SocketAddr;

    /// Where requests really go, for people to read: another port than that of [`server`](Self::server) in some protocols.
    fn asked_at(&self) -> SocketAddr {
        self.server()
    }

    /// The address that requests come from.
    fn source(&self) -> IpAddr;

    /// Takes in one event; the outputs come from [`poll_output`](Self::poll_output).
    fn handle_input(&mut self, now: Instant, input: Input<'_>, entropy: &mut dyn Entropy);

    /// The next thing to do or know; call until `None`.
    fn poll_output(&mut self) -> Option<Output>;

    /// When [`Input::Timeout`] is due.
    fn next_timeout(&self) -> Option<Instant>;

    /// `None` before the first answer or silence.
    fn is_answering(&self) -> Option<bool>;

    /// When the server last answered.
    fn last_heard(&self) -> Option<Instant>;

    /// The server's last epoch, in seconds.
    fn server_epoch(&self) -> Option<u32>;

    /// Datagrams that were not believed: foreign, malformed, or not an answer to anything asked.
    fn ignored(&self) -> u64;

    /// When the first of those datagrams went out that nothing was answered to; `None`: there is none.
    fn unanswered_since(&self) -> Option<Instant>;

    /// What stands for `flow`, if anything.
    fn grant(&self, flow: FlowId) -> Option<Grant>;

    /// Whether the server has confirmed the mapping of this flow, and nothing has put that in doubt since.
    fn holds(&self, flow: FlowId) -> bool;

    /// Whether there is such a flow, in whatever phase.
    fn has(&self, flow: FlowId) -> bool;

    /// From now on mappings are asked for again within this time after the server lost its state.
    fn set_recovery_wait(&mut self, wait: Duration);

    /// Whether the server is believed to know PREFER_FAILURE, or something like it.
    fn takes_prefer_failure(&self) -> bool {
        false
    }

    /// Whether only a mapping tells the external address.
    fn needs_probe(&self) -> bool {
        false
    }

    /// What the server knows the owner of `flow` by, in PCP.
    fn nonce(&self, flow: FlowId) -> Option<Nonce> {
        let _ = flow;
        None
    }

    /// What [`remember`](Self::remember) was told of the owner of such a mapping, until that is asked for.
    fn remembered(&self, want: &Want) -> Option<Nonce> {
        let _ = want;
        None
    }

    /// The server may know the owner of such a mapping by this nonce: it is used when the mapping is asked for.
    fn remember(&mut self, want: &Want, nonce: Nonce) {
        let _ = (want, nonce);
    }

    /// The server may have filters for these.
    fn set_filters(&mut self, filters: Filters);

    /// What is to be told to the client of the next server, which may be the same machine.
    fn take_filters(&mut self) -> Filters;

    /// Another uplink is in its place. What has to be taken back all the same, because it would stand for ever; `None`: nothing.
    fn retire(self: Box<Self>) -> Option<Leftover> {
        None
    }
}
