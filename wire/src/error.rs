//! UPnP error codes: what a control point is told when its action fails. Answers, not failures of ours.

use std::fmt;

/// An error as it stands in a SOAP fault: a number and its name (UDA §3.2.2, `WANIPConnection` §2.4).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct UpnpError {
    /// 401–699 common, 700–799 of the service, 800–899 the vendor's.
    pub code: u16,
    /// The name the specification gives the code; under 256 characters.
    pub description: &'static str,
}

macro_rules! errors {
    ($($(#[$doc:meta])+ $name:ident = $code:literal, $description:literal;)+) => {
        impl UpnpError {
            $($(#[$doc])+ pub const $name: Self = Self { code: $code, description: $description };)+

            /// Every error this crate knows, in the order of the codes.
            pub const KNOWN: &'static [Self] = &[$(Self::$name),+];
        }
    };
}

errors! {
    /// No such action here.
    INVALID_ACTION = 401, "Invalid Action";
    /// A missing, doubled or ill-typed argument.
    INVALID_ARGS = 402, "Invalid Args";
    /// `QueryStateVariable` for a variable that does not exist.
    INVALID_VAR = 404, "Invalid Var";
    /// The present state prevents it; all that :1 has for most refusals.
    ACTION_FAILED = 501, "Action Failed";
    /// A value that makes no sense.
    VALUE_INVALID = 600, "Argument Value Invalid";
    /// A value outside its range or list.
    VALUE_OUT_OF_RANGE = 601, "Argument Value Out of Range";
    /// An action that the service lists and this device does not carry out.
    NOT_IMPLEMENTED = 602, "Optional Action Not Implemented";
    /// No room.
    OUT_OF_MEMORY = 603, "Out of Memory";
    /// Somebody has to do something at the device.
    HUMAN_INTERVENTION_REQUIRED = 604, "Human Intervention Required";
    /// A text longer than we keep.
    STRING_TOO_LONG = 605, "String Argument Too Long";
    /// Not for this control point (:2 only).
    NOT_AUTHORIZED = 606, "Action not authorized";
    /// The connection must be down for this.
    INACTIVE_CONNECTION_REQUIRED = 703, "InactiveConnectionStateRequired";
    /// The connection could not be set up.
    CONNECTION_SETUP_FAILED = 704, "ConnectionSetupFailed";
    /// The connection is being set up.
    CONNECTION_SETUP_IN_PROGRESS = 705, "ConnectionSetupInProgress";
    /// The connection has no configuration.
    CONNECTION_NOT_CONFIGURED = 706, "ConnectionNotConfigured";
    /// The connection is being taken down.
    DISCONNECT_IN_PROGRESS = 707, "DisconnectInProgress";
    /// The layer 2 address does not fit.
    INVALID_LAYER2_ADDRESS = 708, "InvalidLayer2Address";
    /// `EnabledForInternet` is 0.
    INTERNET_ACCESS_DISABLED = 709, "InternetAccessDisabled";
    /// Not with this connection type.
    INVALID_CONNECTION_TYPE = 710, "InvalidConnectionType";
    /// The connection is down already.
    CONNECTION_ALREADY_TERMINATED = 711, "ConnectionAlreadyTerminated";
    /// `GetGenericPortMappingEntry` past the end.
    ARRAY_INDEX_INVALID = 713, "SpecifiedArrayIndexInvalid";
    /// No mapping with this key.
    NO_SUCH_ENTRY = 714, "NoSuchEntryInArray";
    /// An empty internal client.
    WILDCARD_SRC_IP = 715, "WildCardNotPermittedInSrcIP";
    /// External port 0.
    WILDCARD_EXT_PORT = 716, "WildCardNotPermittedInExtPort";
    /// Another client holds the external port.
    CONFLICT = 718, "ConflictInMappingEntry";
    /// Layer3Forwarding: no such device.
    INVALID_DEVICE_UUID = 720, "InvalidDeviceUUID";
    /// Layer3Forwarding: no such service.
    INVALID_SERVICE_ID = 721, "InvalidServiceID";
    /// Layer3Forwarding: this service cannot be the default.
    INVALID_CONN_SERVICE_SELECTION = 723, "InvalidConnServiceSelection";
    /// Internal and external port must be equal (:1 only).
    SAME_PORT_REQUIRED = 724, "SamePortValuesRequired";
    /// Only lease 0 (:1 only).
    ONLY_PERMANENT_LEASES = 725, "OnlyPermanentLeasesSupported";
    /// Only "anyone" as remote host (:1 only).
    REMOTE_HOST_ONLY_WILDCARD = 726, "RemoteHostOnlySupportsWildcard";
    /// Only external port 0 (:1 only).
    EXTERNAL_PORT_ONLY_WILDCARD = 727, "ExternalPortOnlySupportsWildcard";
    /// No external port is left (:2 only).
    NO_PORT_MAPS = 728, "NoPortMapsAvailable";
    /// A static rule or the like holds the port (:2 only).
    CONFLICT_WITH_OTHER_MECHANISMS = 729, "ConflictWithOtherMechanisms";
    /// No mapping in the range (:2 only).
    PORT_MAPPING_NOT_FOUND = 730, "PortMappingNotFound";
    /// Fixed by configuration (:2 only).
    READ_ONLY = 731, "ReadOnly";
    /// Internal port 0 (:2 only).
    WILDCARD_INT_PORT = 732, "WildCardNotPermittedInIntPort";
    /// The start of a range behind its end (:2 only).
    INCONSISTENT_PARAMETERS = 733, "InconsistentParameters";
}

/// Those of `WANIPv6FirewallControl`: 701 to 709 mean other things elsewhere (igd.md 8), so that no code leads back to them.
impl UpnpError {
    /// No room for another pinhole.
    pub const PINHOLE_SPACE_EXHAUSTED: Self = Self { code: 701, description: "PinholeSpaceExhausted" };
    /// There is no firewall, or it is switched off.
    pub const FIREWALL_DISABLED: Self = Self { code: 702, description: "FirewallDisabled" };
    /// Nobody may have pinholes.
    pub const INBOUND_PINHOLE_NOT_ALLOWED: Self = Self { code: 703, description: "InboundPinholeNotAllowed" };
    /// No pinhole with this `UniqueID`.
    pub const NO_SUCH_PINHOLE: Self = Self { code: 704, description: "NoSuchEntry" };
    /// A protocol without pinholes.
    pub const PROTOCOL_NOT_SUPPORTED: Self = Self { code: 705, description: "ProtocolNotSupported" };
    /// `InternalPort` 0.
    pub const INTERNAL_PORT_WILDCARD: Self =
        Self { code: 706, description: "InternalPortWildcardingNotAllowed" };
    /// All protocols at once.
    pub const PROTOCOL_WILDCARD: Self = Self { code: 707, description: "ProtocolWildcardingNotAllowed" };
    /// An empty `InternalClient`.
    pub const WILDCARD_INTERNAL_CLIENT: Self = Self { code: 708, description: "WildCardNotPermittedInSrcIP" };
    /// `CheckPinholeWorking` where nothing has come in.
    pub const NO_TRAFFIC_RECEIVED: Self = Self { code: 709, description: "NoTrafficReceived" };
}

impl UpnpError {
    /// The known error of that code, as the services know it that IGD:1 has.
    #[must_use]
    pub fn from_code(code: u16) -> Option<Self> {
        Self::KNOWN.iter().copied().find(|known| known.code == code)
    }
}

impl fmt::Display for UpnpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.description)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_errors_are_in_order_and_found_by_code() {
        assert!(UpnpError::KNOWN.windows(2).all(|pair| pair[0].code < pair[1].code));
        for error in UpnpError::KNOWN {
            assert_eq!(UpnpError::from_code(error.code), Some(*error));
            assert!(error.description.len() < 256);
        }
        assert_eq!(UpnpError::from_code(799), None);
        assert_eq!(UpnpError::CONFLICT.to_string(), "718 ConflictInMappingEntry");
    }
}
