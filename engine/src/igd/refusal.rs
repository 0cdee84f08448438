//! Refusals as a control point hears them. Two columns, by the service version that it spoke: IGD:1 knows none of
//! the codes that IGD:2 added, and clients of it break on them.

use wire::error::UpnpError as E;
use wire::pcp::ResultCode as Rc;

use crate::request::Refusal;

/// RFC 6970 §4.3 (R-20, T-15): PCP result, error in WANIPConnection:1, error in :2. Codes that are not here, which RFC 6970 does
/// not know, are 501.
pub const REFUSALS: [(Rc, E, E); 13] = [
    (Rc::UNSUPP_VERSION, E::ACTION_FAILED, E::ACTION_FAILED),
    (Rc::NOT_AUTHORIZED, E::CONFLICT, E::NOT_AUTHORIZED),
    (Rc::MALFORMED_REQUEST, E::ACTION_FAILED, E::ACTION_FAILED),
    (Rc::UNSUPP_OPCODE, E::ACTION_FAILED, E::ACTION_FAILED),
    (Rc::UNSUPP_OPTION, E::ACTION_FAILED, E::ACTION_FAILED),
    (Rc::MALFORMED_OPTION, E::ACTION_FAILED, E::ACTION_FAILED),
    (Rc::NETWORK_FAILURE, E::ACTION_FAILED, E::ACTION_FAILED),
    (Rc::NO_RESOURCES, E::ACTION_FAILED, E::NO_PORT_MAPS),
    (Rc::UNSUPP_PROTOCOL, E::ACTION_FAILED, E::ACTION_FAILED),
    (Rc::USER_EX_QUOTA, E::ACTION_FAILED, E::NO_PORT_MAPS),
    (Rc::CANNOT_PROVIDE_EXTERNAL, E::CONFLICT, E::CONFLICT),
    (Rc::ADDRESS_MISMATCH, E::ACTION_FAILED, E::ACTION_FAILED),
    (Rc::EXCESSIVE_REMOTE_PEERS, E::ACTION_FAILED, E::ACTION_FAILED),
];

/// What was asked for when it was refused: the same refusal has other names for other actions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Asked {
    /// AddPortMapping or AddAnyPortMapping.
    Add,
    /// DeletePortMapping.
    Delete,
    /// DeletePortMappingRange or GetListOfPortMappings.
    Range,
    /// GetSpecificPortMappingEntry.
    Specific,
    /// An action of WANIPv6FirewallControl.
    Pinhole,
}

/// The error that a control point which spoke `version` of the service is told.
pub fn upnp_error(refusal: Refusal, asked: Asked, version: u8) -> E {
    let by_version = |one, two| if version < 2 { one } else { two };
    match (refusal, asked) {
        (_, Asked::Pinhole) => super::pinholes::pinhole_error(refusal),
        (Refusal::Conflict | Refusal::OtherPeer, _) => E::CONFLICT,
        (Refusal::NotAuthorized, Asked::Add) => by_version(E::CONFLICT, E::NOT_AUTHORIZED),
        (Refusal::NotAuthorized, Asked::Range) => E::PORT_MAPPING_NOT_FOUND,
        (Refusal::NotAuthorized, _) => by_version(E::NO_SUCH_ENTRY, E::NOT_AUTHORIZED),
        (Refusal::Quota | Refusal::Full, _) => by_version(E::ACTION_FAILED, E::NO_PORT_MAPS),
        (Refusal::NoSuchEntry, Asked::Range) => E::PORT_MAPPING_NOT_FOUND,
        (Refusal::NoSuchEntry, _) => E::NO_SUCH_ENTRY,
        (Refusal::Upstream(Rc::CANNOT_PROVIDE_EXTERNAL), Asked::Delete | Asked::Range) => E::NO_SUCH_ENTRY,
        (Refusal::Upstream(result), _) => REFUSALS
            .iter()
            .find(|row| row.0 == result)
            .map_or(E::ACTION_FAILED, |&(_, one, two)| by_version(one, two)),
        (
            // It passes by itself, which the codes for quotas do not say.
            Refusal::TooOften
            | Refusal::NoAnswer
            | Refusal::Unusable
            | Refusal::LocalNat
            | Refusal::Released
            | Refusal::Stopping,
            _,
        ) => E::ACTION_FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spec iwf.md section 3, the whole table, by number: PCP, IGD:1, IGD:2; no answer is 501.
    #[test]
    fn rfc6970_4_3_both_columns() {
        for (result, one, two) in [
            (1, 501, 501),
            (2, 718, 606),
            (3, 501, 501),
            (4, 501, 501),
            (5, 501, 501),
            (6, 501, 501),
            (7, 501, 501),
            (8, 501, 728),
            (9, 501, 501),
            (10, 501, 728),
            (11, 718, 718),
            (12, 501, 501),
            (13, 501, 501),
            (14, 501, 501), // RFC 7652 and later: not in RFC 6970
            (26, 501, 501),
            (200, 501, 501),
        ] {
            let refusal = Refusal::Upstream(Rc(result));
            assert_eq!(upnp_error(refusal, Asked::Add, 1).code, one, "result {result}, IGD:1");
            assert_eq!(upnp_error(refusal, Asked::Add, 2).code, two, "result {result}, IGD:2");
        }
        assert_eq!(upnp_error(Refusal::Upstream(Rc(11)), Asked::Delete, 2).code, 714); // §5.8
        assert_eq!(upnp_error(Refusal::NoAnswer, Asked::Add, 1).code, 501);
        assert_eq!(upnp_error(Refusal::NoAnswer, Asked::Delete, 2).code, 501);
    }

    /// Every result code that RFC 6887 defines has its row.
    #[test]
    fn every_code_of_rfc6887_has_a_row() {
        for code in 1..=13 {
            assert!(REFUSALS.iter().any(|row| row.0 == Rc(code)), "result {code}");
        }
    }

    /// Spec igd.md Q-15 and the security policy: the answers to what policy refuses.
    #[test]
    fn policy_refusals_by_version() {
        for (refusal, asked, one, two) in [
            (Refusal::NotAuthorized, Asked::Add, 718, 606),
            (Refusal::NotAuthorized, Asked::Delete, 714, 606),
            (Refusal::NotAuthorized, Asked::Range, 730, 730),
            (Refusal::Quota, Asked::Add, 501, 728),
            (Refusal::Full, Asked::Add, 501, 728),
            (Refusal::TooOften, Asked::Add, 501, 501),
            (Refusal::TooOften, Asked::Pinhole, 501, 501),
            (Refusal::Conflict, Asked::Add, 718, 718),
            (Refusal::NoSuchEntry, Asked::Delete, 714, 714),
            (Refusal::NoSuchEntry, Asked::Range, 730, 730),
            (Refusal::NoSuchEntry, Asked::Specific, 714, 714),
            (Refusal::Released, Asked::Add, 501, 501),
            (Refusal::Stopping, Asked::Add, 501, 501),
        ] {
            assert_eq!(upnp_error(refusal, asked, 1).code, one, "{refusal:?} {asked:?} :1");
            assert_eq!(upnp_error(refusal, asked, 2).code, two, "{refusal:?} {asked:?} :2");
        }
    }

    /// Decision 10: no code that IGD:2 added ever reaches a client of IGD:1, except where the action itself is an IGD:2 one.
    #[test]
    fn igd1_clients_hear_igd1_codes_only() {
        let mut refusals: Vec<Refusal> = (0..=255).map(|code| Refusal::Upstream(Rc(code))).collect();
        refusals.extend([Refusal::Conflict, Refusal::NotAuthorized, Refusal::Quota, Refusal::NoSuchEntry]);
        refusals.extend([
            Refusal::Full,
            Refusal::TooOften,
            Refusal::NoAnswer,
            Refusal::Unusable,
            Refusal::LocalNat,
            Refusal::Released,
            Refusal::Stopping,
        ]);
        for refusal in refusals {
            for asked in [Asked::Add, Asked::Delete, Asked::Specific] {
                let code = upnp_error(refusal, asked, 1).code;
                assert!(matches!(code, 501 | 714 | 718), "{refusal:?} {asked:?}: {code}");
            }
        }
    }
}
