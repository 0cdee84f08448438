//! The rows of the table: actions and state variables, service by service (igd.md 2, 3, 5, 6, 7, 8).

use super::{Action, ActionId, Allowed, Argument, DataType, Variable};

const fn action(
    id: ActionId,
    name: &'static str,
    since: u8,
    inputs: &'static [Argument],
    outputs: &'static [Argument],
) -> Action {
    Action { id, name, since, inputs, outputs }
}

const fn arg(name: &'static str, variable: &'static str) -> Argument {
    Argument { name, variable }
}

const fn variable(name: &'static str, data_type: DataType) -> Variable {
    Variable { name, data_type, evented: false, since: 1, default: None, allowed: Allowed::Any }
}

impl Variable {
    const fn evented(self) -> Self {
        Self { evented: true, ..self }
    }

    const fn since(self, since: u8) -> Self {
        Self { since, ..self }
    }

    const fn default(self, since: u8, value: &'static str) -> Self {
        Self { default: Some((since, value)), ..self }
    }

    const fn values(self, values: &'static [&'static str]) -> Self {
        Self { allowed: Allowed::Values(values), ..self }
    }

    const fn range(self, since: u8, minimum: u32, maximum: u32) -> Self {
        Self { allowed: Allowed::Range { since, minimum, maximum }, ..self }
    }
}

pub(super) static LAYER3_FORWARDING_ACTIONS: &[Action] = &[
    action(
        ActionId::SetDefaultConnectionService,
        "SetDefaultConnectionService",
        1,
        &[arg("NewDefaultConnectionService", "DefaultConnectionService")],
        &[],
    ),
    action(
        ActionId::GetDefaultConnectionService,
        "GetDefaultConnectionService",
        1,
        &[],
        &[arg("NewDefaultConnectionService", "DefaultConnectionService")],
    ),
];

pub(super) static LAYER3_FORWARDING_VARIABLES: &[Variable] =
    &[variable("DefaultConnectionService", DataType::String).evented()];

pub(super) static WAN_COMMON_ACTIONS: &[Action] = &[
    action(
        ActionId::GetCommonLinkProperties,
        "GetCommonLinkProperties",
        1,
        &[],
        &[
            arg("NewWANAccessType", "WANAccessType"),
            arg("NewLayer1UpstreamMaxBitRate", "Layer1UpstreamMaxBitRate"),
            arg("NewLayer1DownstreamMaxBitRate", "Layer1DownstreamMaxBitRate"),
            arg("NewPhysicalLinkStatus", "PhysicalLinkStatus"),
        ],
    ),
    action(
        ActionId::GetTotalBytesSent,
        "GetTotalBytesSent",
        1,
        &[],
        &[arg("NewTotalBytesSent", "TotalBytesSent")],
    ),
    action(
        ActionId::GetTotalBytesReceived,
        "GetTotalBytesReceived",
        1,
        &[],
        &[arg("NewTotalBytesReceived", "TotalBytesReceived")],
    ),
    action(
        ActionId::GetTotalPacketsSent,
        "GetTotalPacketsSent",
        1,
        &[],
        &[arg("NewTotalPacketsSent", "TotalPacketsSent")],
    ),
    action(
        ActionId::GetTotalPacketsReceived,
        "GetTotalPacketsReceived",
        1,
        &[],
        &[arg("NewTotalPacketsReceived", "TotalPacketsReceived")],
    ),
];

pub(super) static WAN_COMMON_VARIABLES: &[Variable] = &[
    variable("WANAccessType", DataType::String).values(&["DSL", "POTS", "Cable", "Ethernet"]),
    variable("Layer1UpstreamMaxBitRate", DataType::Ui4),
    variable("Layer1DownstreamMaxBitRate", DataType::Ui4),
    variable("PhysicalLinkStatus", DataType::String).evented().values(&[
        "Up",
        "Down",
        "Initializing",
        "Unavailable",
    ]),
    variable("TotalBytesSent", DataType::Ui4),
    variable("TotalBytesReceived", DataType::Ui4),
    variable("TotalPacketsSent", DataType::Ui4),
    variable("TotalPacketsReceived", DataType::Ui4),
];

const REMOTE_HOST: Argument = arg("NewRemoteHost", "RemoteHost");
const EXTERNAL_PORT: Argument = arg("NewExternalPort", "ExternalPort");
const PROTOCOL: Argument = arg("NewProtocol", "PortMappingProtocol");
const INTERNAL_PORT: Argument = arg("NewInternalPort", "InternalPort");
const INTERNAL_CLIENT: Argument = arg("NewInternalClient", "InternalClient");
const ENABLED: Argument = arg("NewEnabled", "PortMappingEnabled");
const DESCRIPTION: Argument = arg("NewPortMappingDescription", "PortMappingDescription");
const LEASE_DURATION: Argument = arg("NewLeaseDuration", "PortMappingLeaseDuration");
const START_PORT: Argument = arg("NewStartPort", "ExternalPort");
const END_PORT: Argument = arg("NewEndPort", "ExternalPort");
const MANAGE: Argument = arg("NewManage", "A_ARG_TYPE_Manage");

/// A whole mapping: what is added, and what is listed.
static MAPPING: [Argument; 8] = [
    REMOTE_HOST,
    EXTERNAL_PORT,
    PROTOCOL,
    INTERNAL_PORT,
    INTERNAL_CLIENT,
    ENABLED,
    DESCRIPTION,
    LEASE_DURATION,
];
/// The key of a mapping.
static KEY: [Argument; 3] = [REMOTE_HOST, EXTERNAL_PORT, PROTOCOL];

pub(super) static WAN_IP_ACTIONS: &[Action] = &[
    action(
        ActionId::SetConnectionType,
        "SetConnectionType",
        1,
        &[arg("NewConnectionType", "ConnectionType")],
        &[],
    ),
    action(
        ActionId::GetConnectionTypeInfo,
        "GetConnectionTypeInfo",
        1,
        &[],
        &[
            arg("NewConnectionType", "ConnectionType"),
            arg("NewPossibleConnectionTypes", "PossibleConnectionTypes"),
        ],
    ),
    action(ActionId::RequestConnection, "RequestConnection", 1, &[], &[]),
    action(ActionId::RequestTermination, "RequestTermination", 1, &[], &[]),
    action(ActionId::ForceTermination, "ForceTermination", 1, &[], &[]),
    action(
        ActionId::GetStatusInfo,
        "GetStatusInfo",
        1,
        &[],
        &[
            arg("NewConnectionStatus", "ConnectionStatus"),
            arg("NewLastConnectionError", "LastConnectionError"),
            arg("NewUptime", "Uptime"),
        ],
    ),
    action(
        ActionId::GetNatRsipStatus,
        "GetNATRSIPStatus",
        1,
        &[],
        &[arg("NewRSIPAvailable", "RSIPAvailable"), arg("NewNATEnabled", "NATEnabled")],
    ),
    action(
        ActionId::GetGenericPortMappingEntry,
        "GetGenericPortMappingEntry",
        1,
        &[arg("NewPortMappingIndex", "PortMappingNumberOfEntries")],
        &MAPPING,
    ),
    action(
        ActionId::GetSpecificPortMappingEntry,
        "GetSpecificPortMappingEntry",
        1,
        &KEY,
        &[INTERNAL_PORT, INTERNAL_CLIENT, ENABLED, DESCRIPTION, LEASE_DURATION],
    ),
    action(ActionId::AddPortMapping, "AddPortMapping", 1, &MAPPING, &[]),
    action(
        ActionId::AddAnyPortMapping,
        "AddAnyPortMapping",
        2,
        &MAPPING,
        &[arg("NewReservedPort", "ExternalPort")],
    ),
    action(ActionId::DeletePortMapping, "DeletePortMapping", 1, &KEY, &[]),
    action(
        ActionId::DeletePortMappingRange,
        "DeletePortMappingRange",
        2,
        &[START_PORT, END_PORT, PROTOCOL, MANAGE],
        &[],
    ),
    action(
        ActionId::GetExternalIpAddress,
        "GetExternalIPAddress",
        1,
        &[],
        &[arg("NewExternalIPAddress", "ExternalIPAddress")],
    ),
    action(
        ActionId::GetListOfPortMappings,
        "GetListOfPortMappings",
        2,
        &[START_PORT, END_PORT, PROTOCOL, MANAGE, arg("NewNumberOfPorts", "PortMappingNumberOfEntries")],
        &[arg("NewPortListing", PORT_LISTING)],
    ),
];

/// The type of a port listing, the one text that answers carry in a CDATA section.
pub(crate) const PORT_LISTING: &str = "A_ARG_TYPE_PortListing";

pub(super) static WAN_IP_VARIABLES: &[Variable] = &[
    variable("ConnectionType", DataType::String).default(2, "IP_Routed").values(&[
        "Unconfigured",
        "IP_Routed",
        "IP_Bridged",
    ]),
    variable("PossibleConnectionTypes", DataType::String).evented(),
    variable("ConnectionStatus", DataType::String).evented().values(&[
        "Unconfigured",
        "Connecting",
        "Connected",
        "PendingDisconnect",
        "Disconnecting",
        "Disconnected",
    ]),
    variable("Uptime", DataType::Ui4),
    variable("LastConnectionError", DataType::String).values(&[
        "ERROR_NONE",
        "ERROR_COMMAND_ABORTED",
        "ERROR_NOT_ENABLED_FOR_INTERNET",
        "ERROR_ISP_DISCONNECT",
        "ERROR_USER_DISCONNECT",
        "ERROR_IDLE_DISCONNECT",
        "ERROR_FORCED_DISCONNECT",
        "ERROR_NO_CARRIER",
        "ERROR_IP_CONFIGURATION",
        "ERROR_UNKNOWN",
    ]),
    variable("RSIPAvailable", DataType::Boolean),
    variable("NATEnabled", DataType::Boolean),
    variable("ExternalIPAddress", DataType::String).evented(),
    variable("PortMappingNumberOfEntries", DataType::Ui2).evented(),
    variable("PortMappingEnabled", DataType::Boolean),
    variable("PortMappingLeaseDuration", DataType::Ui4).range(2, 0, 604_800),
    variable("RemoteHost", DataType::String),
    variable("ExternalPort", DataType::Ui2),
    variable("InternalPort", DataType::Ui2).range(2, 1, 65_535),
    variable("PortMappingProtocol", DataType::String).values(&["TCP", "UDP"]),
    variable("InternalClient", DataType::String),
    variable("PortMappingDescription", DataType::String),
    variable("SystemUpdateID", DataType::Ui4).since(2).evented(),
    variable("A_ARG_TYPE_Manage", DataType::Boolean).since(2),
    variable(PORT_LISTING, DataType::String).since(2),
];

const USER_NAME: Argument = arg("NewUserName", "UserName");
const PASSWORD: Argument = arg("NewPassword", "Password");

/// What WANPPPConnection:1 has beyond WANIPConnection:1 (igd.md 5).
pub(super) static WAN_PPP_ACTIONS: &[Action] = &[
    action(ActionId::ConfigureConnection, "ConfigureConnection", 1, &[USER_NAME, PASSWORD], &[]),
    action(
        ActionId::GetLinkLayerMaxBitRates,
        "GetLinkLayerMaxBitRates",
        1,
        &[],
        &[
            arg("NewUpstreamMaxBitRate", "UpstreamMaxBitRate"),
            arg("NewDownstreamMaxBitRate", "DownstreamMaxBitRate"),
        ],
    ),
    action(
        ActionId::GetPppEncryptionProtocol,
        "GetPPPEncryptionProtocol",
        1,
        &[],
        &[arg("NewPPPEncryptionProtocol", "PPPEncryptionProtocol")],
    ),
    action(
        ActionId::GetPppCompressionProtocol,
        "GetPPPCompressionProtocol",
        1,
        &[],
        &[arg("NewPPPCompressionProtocol", "PPPCompressionProtocol")],
    ),
    action(
        ActionId::GetPppAuthenticationProtocol,
        "GetPPPAuthenticationProtocol",
        1,
        &[],
        &[arg("NewPPPAuthenticationProtocol", "PPPAuthenticationProtocol")],
    ),
    action(ActionId::GetUserName, "GetUserName", 1, &[], &[USER_NAME]),
    action(ActionId::GetPassword, "GetPassword", 1, &[], &[PASSWORD]),
];

pub(super) static WAN_PPP_VARIABLES: &[Variable] = &[
    variable("UpstreamMaxBitRate", DataType::Ui4),
    variable("DownstreamMaxBitRate", DataType::Ui4),
    variable("PPPEncryptionProtocol", DataType::String),
    variable("PPPCompressionProtocol", DataType::String),
    variable("PPPAuthenticationProtocol", DataType::String),
    variable("UserName", DataType::String),
    variable("Password", DataType::String),
];

const REMOTE_HOST_V6: Argument = arg("RemoteHost", "A_ARG_TYPE_IPv6Address");
const REMOTE_PORT: Argument = arg("RemotePort", "A_ARG_TYPE_Port");
const INTERNAL_CLIENT_V6: Argument = arg("InternalClient", "A_ARG_TYPE_IPv6Address");
const INTERNAL_PORT_V6: Argument = arg("InternalPort", "A_ARG_TYPE_Port");
const PROTOCOL_NUMBER: Argument = arg("Protocol", "A_ARG_TYPE_Protocol");
const UNIQUE_ID: Argument = arg("UniqueID", "A_ARG_TYPE_UniqueID");

/// What a pinhole lets in.
static FLOWS: [Argument; 5] =
    [REMOTE_HOST_V6, REMOTE_PORT, INTERNAL_CLIENT_V6, INTERNAL_PORT_V6, PROTOCOL_NUMBER];

pub(super) static WAN_IPV6_FIREWALL_ACTIONS: &[Action] = &[
    action(
        ActionId::GetFirewallStatus,
        "GetFirewallStatus",
        1,
        &[],
        &[arg("FirewallEnabled", "FirewallEnabled"), arg("InboundPinholeAllowed", "InboundPinholeAllowed")],
    ),
    action(
        ActionId::GetOutboundPinholeTimeout,
        "GetOutboundPinholeTimeout",
        1,
        &FLOWS,
        &[arg("OutboundPinholeTimeout", "A_ARG_TYPE_OutboundPinholeTimeout")],
    ),
    action(
        ActionId::AddPinhole,
        "AddPinhole",
        1,
        &[
            REMOTE_HOST_V6,
            REMOTE_PORT,
            INTERNAL_CLIENT_V6,
            INTERNAL_PORT_V6,
            PROTOCOL_NUMBER,
            arg("LeaseTime", "A_ARG_TYPE_LeaseTime"),
        ],
        &[UNIQUE_ID],
    ),
    action(
        ActionId::UpdatePinhole,
        "UpdatePinhole",
        1,
        &[UNIQUE_ID, arg("NewLeaseTime", "A_ARG_TYPE_LeaseTime")],
        &[],
    ),
    action(ActionId::DeletePinhole, "DeletePinhole", 1, &[UNIQUE_ID], &[]),
    action(
        ActionId::GetPinholePackets,
        "GetPinholePackets",
        1,
        &[UNIQUE_ID],
        &[arg("PinholePackets", "A_ARG_TYPE_PinholePackets")],
    ),
    action(
        ActionId::CheckPinholeWorking,
        "CheckPinholeWorking",
        1,
        &[UNIQUE_ID],
        &[arg("IsWorking", "A_ARG_TYPE_Boolean")],
    ),
];

pub(super) static WAN_IPV6_FIREWALL_VARIABLES: &[Variable] = &[
    variable("FirewallEnabled", DataType::Boolean).evented(),
    variable("InboundPinholeAllowed", DataType::Boolean).evented(),
    variable("A_ARG_TYPE_OutboundPinholeTimeout", DataType::Ui4),
    variable("A_ARG_TYPE_IPv6Address", DataType::String),
    variable("A_ARG_TYPE_Port", DataType::Ui2),
    variable("A_ARG_TYPE_Protocol", DataType::Ui2),
    variable("A_ARG_TYPE_LeaseTime", DataType::Ui4).range(1, 1, 86_400),
    variable("A_ARG_TYPE_UniqueID", DataType::Ui2),
    variable("A_ARG_TYPE_PinholePackets", DataType::Ui4),
    variable("A_ARG_TYPE_Boolean", DataType::Boolean),
];
