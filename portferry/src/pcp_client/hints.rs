//! What a refusal means and what to do about it: one row for each result code of both registries.

use wire::{natpmp, pcp};

/// Why, and what to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Hint {
    pub(super) why: &'static str,
    pub(super) what_to_do: &'static str,
}

const fn hint(why: &'static str, what_to_do: &'static str) -> Hint {
    Hint { why, what_to_do }
}

/// For numbers that no registry has.
const UNREGISTERED: Hint =
    hint("the code is in no registry", "ask the server's maker, and look at the octets with --hex");

/// RFC 6887 §7.4, RFC 7652, RFC 7843, and the two of GET.
const PCP: [(pcp::ResultCode, Hint); 29] = {
    use pcp::ResultCode as R;
    const AUTHENTICATION: &str = "this client has no authentication; ask from where the server wants none";
    [
        (R::SUCCESS, hint("the request was granted", "nothing")),
        (
            R::UNSUPP_VERSION,
            hint(
                "the server does not speak this version of PCP",
                "if it names version 0, try --protocol nat-pmp",
            ),
        ),
        (
            R::NOT_AUTHORIZED,
            hint(
                "the server knows this mapping by another nonce, or does not allow it to you at all",
                "give the nonce that it was made with (--nonce or --nonce-file), or ask who runs the server for permission",
            ),
        ),
        (
            R::MALFORMED_REQUEST,
            hint(
                "the server cannot make sense of the request",
                "look at the octets with --hex; --third-party must not be the address that asks, and protocol all goes with \
                 port all only",
            ),
        ),
        (
            R::UNSUPP_OPCODE,
            hint("the server does not know this opcode", "do without: MAP is what every server has"),
        ),
        (
            R::UNSUPP_OPTION,
            hint(
                "the server does not know a mandatory option, or does not allow it to you",
                "leave out --third-party, --prefer-failure, --filter or --option one after the other to find which; THIRD_PARTY \
                 is for the server's administrator to allow",
            ),
        ),
        (
            R::MALFORMED_OPTION,
            hint(
                "an option's length or contents are not what the server takes",
                "look at them with --hex; miniupnpd says so to every option whose length is no multiple of 4, so add blanks to a \
                 --description",
            ),
        ),
        (
            R::NETWORK_FAILURE,
            hint(
                "the server's own uplink is out of order",
                "see whether it has an external address, then try again",
            ),
        ),
        (
            R::NO_RESOURCES,
            hint(
                "the server has no ports or memory left, for anybody; miniupnpd says so to the delete of a mapping that it \
                 does not have",
                "wait and try again; after a delete look whether the mapping is gone already",
            ),
        ),
        (
            R::UNSUPP_PROTOCOL,
            hint(
                "the server does not map this transport protocol, or not all of its ports at once",
                "try tcp or udp, and one port",
            ),
        ),
        (
            R::USER_EX_QUOTA,
            hint(
                "you have as many mappings as you may",
                "delete one (portferry pcp get may list them), or wait",
            ),
        ),
        (
            R::CANNOT_PROVIDE_EXTERNAL,
            hint(
                "the external address and port that were suggested cannot be had: taken, reserved, or not the server's",
                "try another, or leave out --prefer-failure and take what there is",
            ),
        ),
        (
            R::ADDRESS_MISMATCH,
            hint(
                "the server sees this packet come from another address than it says: there is a NAT between here and the server",
                "ask from behind that NAT's outside, or map the port there first and name its external address with \
                 --client-address",
            ),
        ),
        (
            R::EXCESSIVE_REMOTE_PEERS,
            hint(
                "these are more filters than the server keeps for a mapping",
                "give fewer or shorter prefixes, and --reset-filters",
            ),
        ),
        (R::INITIATION, hint("this is a client's code: the server mixes up its part", AUTHENTICATION)),
        (
            R::AUTHENTICATION_REQUIRED,
            hint("the server answers only those who prove who they are (RFC 7652)", AUTHENTICATION),
        ),
        (R::AUTHENTICATION_FAILED, hint("the server did not accept the credentials", AUTHENTICATION)),
        (
            R::AUTHENTICATION_SUCCEEDED,
            hint("the server ends an authentication that was not begun here", AUTHENTICATION),
        ),
        (
            R::AUTHORIZATION_FAILED,
            hint(
                "the server knows who asks, and does not allow it",
                "ask who runs the server for permission",
            ),
        ),
        (R::SESSION_TERMINATED, hint("the server ended an authenticated session", AUTHENTICATION)),
        (R::UNKNOWN_SESSION_ID, hint("the server does not know the authenticated session", AUTHENTICATION)),
        (
            R::DOWNGRADE_ATTACK_DETECTED,
            hint("somebody between here and the server changes what they say", "look for that somebody"),
        ),
        (R::AUTHENTICATION_REQUEST, hint("the server wants to know who asks", AUTHENTICATION)),
        (
            R::AUTHENTICATION_REPLY,
            hint("this is a client's code: the server mixes up its part", AUTHENTICATION),
        ),
        (
            R::THIRD_PARTY_ID_UNKNOWN,
            hint("the server does not know the subscriber of this THIRD_PARTY_ID", "see --option 13:HEX"),
        ),
        (
            R::THIRD_PARTY_MISSING_OPTION,
            hint(
                "the server wants to know which subscriber is meant",
                "give THIRD_PARTY_ID: --option 13:HEX",
            ),
        ),
        (
            R::UNSUPP_THIRD_PARTY_ID_LENGTH,
            hint("the server's THIRD_PARTY_ID has another length", "see --option 13:HEX"),
        ),
        (
            R::NON_EXIST_MAPPING,
            hint("the server has no such mapping for you", "nothing: there is nothing to list"),
        ),
        (
            R::AMBIGUOUS,
            hint("the server has several such mappings, and tells of one only", "filter more closely"),
        ),
    ]
};

/// RFC 6886 §3.5.
const NAT_PMP: [(natpmp::ResultCode, Hint); 6] = {
    use natpmp::ResultCode as R;
    [
        (R::SUCCESS, hint("the request was granted", "nothing")),
        (R::UNSUPPORTED_VERSION, hint("the gateway does not speak NAT-PMP", "try --protocol pcp")),
        (
            R::NOT_AUTHORIZED,
            hint(
                "the gateway does not allow it: port mapping is switched off, or not for you",
                "switch it on at the gateway",
            ),
        ),
        (
            R::NETWORK_FAILURE,
            hint("the gateway itself has no external address", "see to its uplink, then try again"),
        ),
        (R::OUT_OF_RESOURCES, hint("the gateway cannot make more mappings", "delete one, or wait")),
        (R::UNSUPPORTED_OPCODE, hint("the gateway does not know this opcode", "try --protocol pcp")),
    ]
};

/// For a PCP server's refusal.
pub(super) fn pcp(code: pcp::ResultCode) -> Hint {
    PCP.iter().find(|(known, _)| *known == code).map_or(UNREGISTERED, |(_, hint)| *hint)
}

/// For a NAT-PMP gateway's refusal.
pub(super) fn nat_pmp(code: natpmp::ResultCode) -> Hint {
    NAT_PMP.iter().find(|(known, _)| *known == code).map_or(UNREGISTERED, |(_, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_registered_code_has_its_hint() {
        assert!(PCP.iter().map(|(code, _)| *code).eq(pcp::ResultCode::KNOWN.iter().copied()));
        assert!(NAT_PMP.iter().map(|(code, _)| *code).eq(natpmp::ResultCode::KNOWN.iter().copied()));
        for hint in PCP.iter().map(|row| row.1).chain(NAT_PMP.iter().map(|row| row.1)) {
            assert!(!hint.why.is_empty() && !hint.what_to_do.is_empty());
        }
        assert_eq!(pcp(pcp::ResultCode(150)), UNREGISTERED);
        assert_eq!(nat_pmp(natpmp::ResultCode(6)), UNREGISTERED);
    }

    #[test]
    fn the_hints_that_people_need_most() {
        assert!(pcp(pcp::ResultCode::NOT_AUTHORIZED).why.contains("another nonce"));
        assert!(
            pcp(pcp::ResultCode::ADDRESS_MISMATCH).why.contains("there is a NAT between here and the server")
        );
        assert!(pcp(pcp::ResultCode::UNSUPP_VERSION).what_to_do.contains("nat-pmp"));
    }
}
