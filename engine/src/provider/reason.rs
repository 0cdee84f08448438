//! Why a request gets no mapping or no answer at all, and how often that happened.

use std::collections::BTreeMap;
use std::fmt;

use wire::natpmp;
use wire::pcp::ResultCode;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident => $result:expr, $words:literal;)+) => {
        /// Why a datagram did not get what it asked for. Each has its counter ([`Counters`]).
        #[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// What a PCP client is told; `None` is silence.
            #[must_use]
            pub fn result(self) -> Option<ResultCode> {
                match self {
                    $(Self::$name => $result,)+
                }
            }
        }

        /// In a few words, for a status page.
        impl fmt::Display for Reason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$name => $words,)+
                })
            }
        }
    };
}

use ResultCode as R;

reasons! {
    /// It came by an interface of no subscriber (RFC 6887 §8.2, N-3).
    WrongInterface => None, "not from a subscriber";
    /// It is no message: shorter than two octets.
    TooShort => None, "too short";
    /// It is a response.
    IsResponse => None, "a response";
    /// Shorter than its protocol's header, or a NAT-PMP request cut short.
    HeaderTooShort => None, "without a whole header";
    /// The subscriber asks too often.
    RateLimited => None, "too many requests";
    /// The same as the one that waits for the data plane.
    Retransmission => None, "asked again while it is being done";
    /// Too much of this subscriber or about this mapping waits for the data plane.
    Busy => None, "too much in progress";
    /// Neither PCP 2 nor, where it is on, NAT-PMP.
    UnsupportedVersion => Some(R::UNSUPP_VERSION), "unsupported version";
    /// Longer than 1100 octets, no multiple of 4, too short for its opcode, or with values that no request may have.
    MalformedRequest => Some(R::MALFORMED_REQUEST), "malformed request";
    /// The packet's source is not the address inside it.
    AddressMismatch => Some(R::ADDRESS_MISMATCH), "another client address than the source";
    /// No such opcode here.
    UnsupportedOpcode => Some(R::UNSUPP_OPCODE), "unsupported opcode";
    /// An option that is not well-formed, or makes no sense where it is.
    MalformedOption => Some(R::MALFORMED_OPTION), "malformed option";
    /// A mandatory option that is not known or switched off.
    UnsupportedOption => Some(R::UNSUPP_OPTION), "unsupported option";
    /// THIRD_PARTY from who may not, or for whom it may not.
    ThirdPartyDenied => Some(R::UNSUPP_OPTION), "third party not allowed";
    /// THIRD_PARTY that names the source.
    ThirdPartyIsSource => Some(R::MALFORMED_REQUEST), "third party is the source";
    /// A protocol, all ports, all protocols or an address family that is not mapped here.
    UnsupportedProtocol => Some(R::UNSUPP_PROTOCOL), "unsupported protocol";
    /// The mapping belongs to another nonce.
    ForeignNonce => Some(R::NOT_AUTHORIZED), "another's nonce";
    /// A static mapping cannot be deleted.
    IsStatic => Some(R::NOT_AUTHORIZED), "a static mapping";
    /// MAP cannot delete what PEER made, nor NAT-PMP what PCP made.
    IsAnothers => Some(R::NOT_AUTHORIZED), "made by other means";
    /// A link-local client, or this machine itself: no mapping can be for it.
    NotMapped => Some(R::NOT_AUTHORIZED), "a client that no mapping can be for";
    /// The rules leave this client no external port.
    NotAllowed => Some(R::NOT_AUTHORIZED), "not allowed by the rules";
    /// All ports of this subscriber are used up.
    QuotaExceeded => Some(R::USER_EX_QUOTA), "quota used up";
    /// There are as many mappings as there may be.
    TableFull => Some(R::NO_RESOURCES), "table full";
    /// No port is left for this one.
    NoPort => Some(R::NO_RESOURCES), "no port left";
    /// The suggested external address and port cannot be had, and no other is wanted.
    CannotProvide => Some(R::CANNOT_PROVIDE_EXTERNAL), "suggestion cannot be had";
    /// More FILTERs than a mapping of so many ports can have, or such as the data plane cannot make.
    TooManyPeers => Some(R::EXCESSIVE_REMOTE_PEERS), "too many remote peers";
    /// There is no external address at the moment. RFC 6886 §3.5 has result 3 for just that, "NAT device itself has not
    /// obtained a DHCP lease", and it tells the client to try again. N-3's silence is for a device that is no NAT; this
    /// one is, or the protocol is switched off.
    NoAddress => Some(R::NETWORK_FAILURE), "no external address";
    /// The data plane is out of order.
    NatFailed => Some(R::NETWORK_FAILURE), "refused by the NAT";
    /// The data plane has no room.
    NatFull => Some(R::NO_RESOURCES), "no room in the NAT";
    /// A list with nothing in it, or nothing behind the last one seen.
    NothingToList => Some(R::NON_EXIST_MAPPING), "nothing to list";
}

impl Reason {
    /// What a NAT-PMP client is told (RFC 6886 §3.5).
    pub(super) fn natpmp_result(self) -> natpmp::ResultCode {
        match self.result() {
            Some(R::NOT_AUTHORIZED | R::MALFORMED_REQUEST) => natpmp::ResultCode::NOT_AUTHORIZED,
            Some(R::NETWORK_FAILURE) => natpmp::ResultCode::NETWORK_FAILURE,
            Some(R::UNSUPP_OPCODE) => natpmp::ResultCode::UNSUPPORTED_OPCODE,
            Some(R::UNSUPP_VERSION) => natpmp::ResultCode::UNSUPPORTED_VERSION,
            _ => natpmp::ResultCode::OUT_OF_RESOURCES,
        }
    }
}

/// A request that is not granted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Refused {
    pub(super) reason: Reason,
    /// Seconds that it is said to last.
    pub(super) lifetime: u32,
}

impl From<Reason> for Refused {
    fn from(reason: Reason) -> Self {
        Self { reason, lifetime: reason.result().map_or(0, ResultCode::recommended_lifetime) }
    }
}

impl Refused {
    pub(super) fn lasting(reason: Reason, lifetime: u32) -> Self {
        Self { reason, lifetime }
    }
}

/// What was asked for.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// PCP ANNOUNCE.
    Announce,
    /// PCP MAP, to make, renew or delete.
    Map,
    /// PCP PEER.
    Peer,
    /// PCP GET.
    Get,
    /// NAT-PMP, which external address there is.
    NatPmpAddress,
    /// NAT-PMP, to make, renew or delete.
    NatPmpMap,
}

impl Kind {
    /// All of them.
    pub const ALL: &[Self] =
        &[Self::Announce, Self::Map, Self::Peer, Self::Get, Self::NatPmpAddress, Self::NatPmpMap];
}

/// As in a status page.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Announce => "ANNOUNCE",
            Self::Map => "MAP",
            Self::Peer => "PEER",
            Self::Get => "GET",
            Self::NatPmpAddress => "NAT-PMP address",
            Self::NatPmpMap => "NAT-PMP map",
        })
    }
}

/// What has been asked since the start, and what came of it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Counters {
    /// Datagrams, all of them.
    pub received: u64,
    /// Those that were granted.
    pub granted: BTreeMap<Kind, u64>,
    /// Those that were not, answered or met with silence.
    pub refused: BTreeMap<Reason, u64>,
    /// Datagrams that were sent to one client, unasked ones too.
    pub sent: u64,
    /// Mappings that ended because nobody renewed them.
    pub ended: u64,
    /// Changes of the NAT that the data plane refused.
    pub nat_refusals: u64,
}

impl Counters {
    pub(super) fn grant(&mut self, kind: Kind) {
        *self.granted.entry(kind).or_default() += 1;
    }

    pub(super) fn refuse(&mut self, reason: Reason) {
        *self.refused.entry(reason).or_default() += 1;
    }

    /// How often that was the reason.
    #[must_use]
    pub fn refusals(&self, reason: Reason) -> u64 {
        self.refused.get(&reason).copied().unwrap_or(0)
    }

    /// How often that was granted.
    #[must_use]
    pub fn grants(&self, kind: Kind) -> u64 {
        self.granted.get(&kind).copied().unwrap_or(0)
    }
}
