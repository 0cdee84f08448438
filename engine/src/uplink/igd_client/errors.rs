//! What a router's refusal of a mapping means, in the words that the gateway knows.

use wire::error::UpnpError as E;
use wire::pcp::ResultCode as Rc;

/// A row for each error that a router may answer AddPortMapping with, in the order of the codes (docs/spec/igd.md, section 3). Those that
/// are another way's beginning (724, 725) count here when that way has led nowhere.
const ERRORS: [(E, Rc); 38] = [
    (E::INVALID_ACTION, Rc::UNSUPP_OPCODE),
    (E::INVALID_ARGS, Rc::MALFORMED_REQUEST),
    (E::INVALID_VAR, Rc::UNSUPP_OPCODE),
    (E::ACTION_FAILED, Rc::NETWORK_FAILURE),
    (E::VALUE_INVALID, Rc::MALFORMED_REQUEST),
    (E::VALUE_OUT_OF_RANGE, Rc::MALFORMED_REQUEST),
    (E::NOT_IMPLEMENTED, Rc::UNSUPP_OPCODE),
    (E::OUT_OF_MEMORY, Rc::NO_RESOURCES),
    (E::HUMAN_INTERVENTION_REQUIRED, Rc::NOT_AUTHORIZED),
    (E::STRING_TOO_LONG, Rc::MALFORMED_REQUEST),
    (E::NOT_AUTHORIZED, Rc::NOT_AUTHORIZED),
    (E::INACTIVE_CONNECTION_REQUIRED, Rc::NETWORK_FAILURE),
    (E::CONNECTION_SETUP_FAILED, Rc::NETWORK_FAILURE),
    (E::CONNECTION_SETUP_IN_PROGRESS, Rc::NETWORK_FAILURE),
    (E::CONNECTION_NOT_CONFIGURED, Rc::NETWORK_FAILURE),
    (E::DISCONNECT_IN_PROGRESS, Rc::NETWORK_FAILURE),
    (E::INVALID_LAYER2_ADDRESS, Rc::NETWORK_FAILURE),
    (E::INTERNET_ACCESS_DISABLED, Rc::NOT_AUTHORIZED),
    (E::INVALID_CONNECTION_TYPE, Rc::NETWORK_FAILURE),
    (E::CONNECTION_ALREADY_TERMINATED, Rc::NETWORK_FAILURE),
    (E::ARRAY_INDEX_INVALID, Rc::NETWORK_FAILURE),
    (E::NO_SUCH_ENTRY, Rc::NETWORK_FAILURE),
    (E::WILDCARD_SRC_IP, Rc::ADDRESS_MISMATCH),
    (E::WILDCARD_EXT_PORT, Rc::MALFORMED_REQUEST),
    (E::CONFLICT, Rc::CANNOT_PROVIDE_EXTERNAL),
    (E::INVALID_DEVICE_UUID, Rc::NETWORK_FAILURE),
    (E::INVALID_SERVICE_ID, Rc::NETWORK_FAILURE),
    (E::INVALID_CONN_SERVICE_SELECTION, Rc::NETWORK_FAILURE),
    (E::SAME_PORT_REQUIRED, Rc::CANNOT_PROVIDE_EXTERNAL),
    (E::ONLY_PERMANENT_LEASES, Rc::NETWORK_FAILURE),
    (E::REMOTE_HOST_ONLY_WILDCARD, Rc::MALFORMED_REQUEST),
    (E::EXTERNAL_PORT_ONLY_WILDCARD, Rc::CANNOT_PROVIDE_EXTERNAL),
    (E::NO_PORT_MAPS, Rc::NO_RESOURCES),
    (E::CONFLICT_WITH_OTHER_MECHANISMS, Rc::CANNOT_PROVIDE_EXTERNAL),
    (E::PORT_MAPPING_NOT_FOUND, Rc::NETWORK_FAILURE),
    (E::READ_ONLY, Rc::NOT_AUTHORIZED),
    (E::WILDCARD_INT_PORT, Rc::MALFORMED_REQUEST),
    (E::INCONSISTENT_PARAMETERS, Rc::MALFORMED_REQUEST),
];

/// What this error means; an unknown one may pass by itself.
pub(super) fn result(code: u16) -> Rc {
    ERRORS.iter().find(|(error, _)| error.code == code).map_or(Rc::NETWORK_FAILURE, |(_, result)| *result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_a_row() {
        for known in E::KNOWN {
            assert_eq!(ERRORS.iter().filter(|(error, _)| error == known).count(), 1, "{known}");
        }
        assert!(ERRORS.windows(2).all(|two| two[0].0.code < two[1].0.code));
        for (code, expected) in [
            (606, Rc::NOT_AUTHORIZED),
            (718, Rc::CANNOT_PROVIDE_EXTERNAL),
            (728, Rc::NO_RESOURCES),
            (501, Rc::NETWORK_FAILURE),
            (899, Rc::NETWORK_FAILURE),
        ] {
            assert_eq!(result(code), expected, "{code}");
        }
    }
}
