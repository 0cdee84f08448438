//! PCP's number registries: opcodes, result codes, protocols, options.

use crate::codec::registry;

registry! {
    /// What a message is about: 7 bits beside the R bit (RFC 6887 §19, RFC 7652).
    ///
    /// 4 to 63 are assigned by IANA, 96 to 126 are private use. Of those this crate names one, GET.
    Opcode(u8), "opcode", {
        ANNOUNCE = 0, "Tells or asks the server's epoch; no opcode data (RFC 6887 §14.1).";
        MAP = 1, "Creates, renews or deletes an explicit inbound mapping (RFC 6887 §11).";
        PEER = 2, "Creates or extends a mapping towards one remote peer (RFC 6887 §12).";
        AUTHENTICATION = 3, "Carries EAP between client and server (RFC 7652).";
        GET = 98, "Private use, after an expired draft: lists a client's mappings ([`GetData`](super::GetData)).";
    }
}

registry! {
    /// The outcome of a request (RFC 6887 §7.4, RFC 7652, RFC 7843).
    ///
    /// 192 to 254 are private use. Of those this crate names two.
    ResultCode(u8), "result", {
        SUCCESS = 0, "The request was granted.";
        UNSUPP_VERSION = 1, "The server does not speak this version; octet 0 names one it does speak.";
        NOT_AUTHORIZED = 2, "Not allowed, or the mapping belongs to another nonce.";
        MALFORMED_REQUEST = 3, "The request could not be parsed.";
        UNSUPP_OPCODE = 4, "The server does not know the opcode.";
        UNSUPP_OPTION = 5, "A mandatory option is unknown or not allowed here.";
        MALFORMED_OPTION = 6, "An option, or the option area, is not well-formed.";
        NETWORK_FAILURE = 7, "The server's own uplink is out of order.";
        NO_RESOURCES = 8, "The server is short of something, for every client.";
        UNSUPP_PROTOCOL = 9, "The server does not map this transport protocol.";
        USER_EX_QUOTA = 10, "This subscriber has no ports left.";
        CANNOT_PROVIDE_EXTERNAL = 11, "The suggested external address and port cannot be had.";
        ADDRESS_MISMATCH = 12, "The packet's source is not the address inside it: a NAT lies between.";
        EXCESSIVE_REMOTE_PEERS = 13, "More FILTER options than the server can keep.";
        INITIATION = 14, "Request: the client begins authentication (RFC 7652).";
        AUTHENTICATION_REQUIRED = 15, "The server wants an authenticated request (RFC 7652).";
        AUTHENTICATION_FAILED = 16, "EAP failed (RFC 7652).";
        AUTHENTICATION_SUCCEEDED = 17, "EAP succeeded (RFC 7652).";
        AUTHORIZATION_FAILED = 18, "Authenticated, but not allowed (RFC 7652).";
        SESSION_TERMINATED = 19, "One side ended the authenticated session (RFC 7652).";
        UNKNOWN_SESSION_ID = 20, "No such authenticated session (RFC 7652).";
        DOWNGRADE_ATTACK_DETECTED = 21, "The algorithm lists were tampered with (RFC 7652).";
        AUTHENTICATION_REQUEST = 22, "The server's step of EAP (RFC 7652).";
        AUTHENTICATION_REPLY = 23, "Request: the client's step of EAP (RFC 7652).";
        THIRD_PARTY_ID_UNKNOWN = 24, "The identifier names nobody the server knows (RFC 7843).";
        THIRD_PARTY_MISSING_OPTION = 25, "THIRD_PARTY_ID is missing where it is needed (RFC 7843).";
        UNSUPP_THIRD_PARTY_ID_LENGTH = 26, "The identifier is longer or shorter than the server's (RFC 7843).";
        NON_EXIST_MAPPING = 192, "Private use, after an expired draft: GET finds no mapping, or no further one.";
        AMBIGUOUS = 193, "Private use, after an expired draft: GET finds several, and the server tells one only.";
    }
}

impl ResultCode {
    /// Lifetime of an error that may pass soon, in seconds (RFC 6887 §7.4).
    pub const SHORT: u32 = 30;
    /// Lifetime of an error that will not pass by itself, in seconds (RFC 6887 §7.4).
    pub const LONG: u32 = 30 * 60;

    /// How long an error should be said to last, in seconds (RFC 6887 §7.4); 0 for SUCCESS.
    ///
    /// Two codes have better values when the server knows more: NOT_AUTHORIZED for a nonce clash and
    /// CANNOT_PROVIDE_EXTERNAL for a taken port both last as long as the mapping in the way. An unregistered code
    /// counts as long.
    pub const fn recommended_lifetime(self) -> u32 {
        match self {
            Self::SUCCESS => 0,
            Self::NETWORK_FAILURE
            | Self::NO_RESOURCES
            | Self::USER_EX_QUOTA
            | Self::CANNOT_PROVIDE_EXTERNAL
            | Self::NON_EXIST_MAPPING => Self::SHORT,
            _ => Self::LONG,
        }
    }
}

registry! {
    /// The transport protocol of a mapping, as in the IP header (IANA protocol numbers; RFC 6887 §11.1).
    Protocol(u8), "protocol", {
        ALL = 0, "Every protocol, with internal port 0 only.";
        TCP = 6, "Transmission Control Protocol.";
        UDP = 17, "User Datagram Protocol.";
        DCCP = 33, "Datagram Congestion Control Protocol.";
        SCTP = 132, "Stream Control Transmission Protocol.";
        UDPLITE = 136, "UDP-Lite.";
    }
}

registry! {
    /// The kind of an option (RFC 6887 §13; RFC 7652, 7843, 7220, 7225, 7753).
    ///
    /// 96 to 126 and 224 to 254 are private use. Of those this crate names one, NEXT.
    OptionCode(u8), "option", {
        THIRD_PARTY = 1, "The mapping is for another internal address than the sender's (RFC 6887 §13.1).";
        PREFER_FAILURE = 2, "This external address and port or none (RFC 6887 §13.2).";
        FILTER = 3, "Only these remote peers may come in (RFC 6887 §13.3).";
        NONCE = 4, "Authentication: the client's session nonce (RFC 7652).";
        AUTHENTICATION_TAG = 5, "Authentication: MAC of a common PCP message (RFC 7652).";
        PA_AUTHENTICATION_TAG = 6, "Authentication: MAC of an AUTHENTICATION message (RFC 7652).";
        EAP_PAYLOAD = 7, "Authentication: one EAP message (RFC 7652).";
        PRF = 8, "Authentication: a pseudo-random function on offer (RFC 7652).";
        MAC_ALGORITHM = 9, "Authentication: a MAC algorithm on offer (RFC 7652).";
        SESSION_LIFETIME = 10, "Authentication: how long the session lasts (RFC 7652).";
        RECEIVED_PAK = 11, "Authentication: acknowledges a sequence number (RFC 7652).";
        ID_INDICATOR = 12, "Authentication: hints which credentials to use (RFC 7652).";
        THIRD_PARTY_ID = 13, "Tells subscribers with the same addresses apart (RFC 7843).";
        DESCRIPTION = 128, "A text for people (RFC 7220).";
        PREFIX64 = 129, "A NAT64's prefix (RFC 7225).";
        PORT_SET = 130, "Several ports with one request (RFC 7753).";
        NEXT = 224, "Private use, after an expired draft: one mapping of GET's list ([`NextMapping`](super::NextMapping)).";
    }
}

impl OptionCode {
    /// Whether a server that cannot process the option must refuse the request (RFC 6887 §7.3).
    pub const fn is_mandatory(self) -> bool {
        self.0 & 0x80 == 0
    }

    /// Whether a request may carry the option only once, repetition being MALFORMED_OPTION (RFC 6887 §7.3).
    ///
    /// Unregistered options and those of private use may always be repeated: their own specification says how often.
    pub const fn is_once_only(self) -> bool {
        self.name().is_some() && !matches!(self, Self::FILTER | Self::PRF | Self::MAC_ALGORITHM | Self::NEXT)
    }
}
