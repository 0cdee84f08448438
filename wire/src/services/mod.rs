//! The one table of the gateway's devices, services, actions, arguments and state variables.
//!
//! The descriptions are generated from it, requests are decoded by it, answers are encoded by it, so that the
//! three cannot disagree (K-12). What the table must never hold is an action that the engine does not answer.
//!
//! A service is entered by a variant of [`Service`] and a row in each `match` below; an action by a variant of
//! [`ActionId`] and a row in its service's list in `tables`.

mod tables;

use std::fmt;

pub(crate) use tables::PORT_LISTING;
use tables::{
    LAYER3_FORWARDING_ACTIONS, LAYER3_FORWARDING_VARIABLES, WAN_COMMON_ACTIONS, WAN_COMMON_VARIABLES,
    WAN_IP_ACTIONS, WAN_IP_VARIABLES, WAN_IPV6_FIREWALL_ACTIONS, WAN_IPV6_FIREWALL_VARIABLES,
    WAN_PPP_ACTIONS, WAN_PPP_VARIABLES,
};

/// What every service type begins with.
const SERVICE_PREFIX: &str = "urn:schemas-upnp-org:service:";
/// What every device type begins with.
const DEVICE_PREFIX: &str = "urn:schemas-upnp-org:device:";
/// The service type, without version, that some control points say for `WANIPConnection`.
const WAN_PPP_CONNECTION: &str = "WANPPPConnection";

/// One of the two root devices that stand side by side (K-1): consoles and Windows reject IGD:2, and some
/// control points look for nothing else.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Face {
    /// `InternetGatewayDevice:1`, shown to everybody who does not ask for a `:2` type.
    V1,
    /// `InternetGatewayDevice:2`.
    V2,
}

impl Face {
    /// Both, the older first.
    pub const ALL: [Self; 2] = [Self::V1, Self::V2];

    /// The version of all three devices of this face.
    #[must_use]
    pub fn version(self) -> u8 {
        match self {
            Self::V1 => 1,
            Self::V2 => 2,
        }
    }

    /// The path of the root description. It is the one path without a token: SSDP tells it to everybody.
    #[must_use]
    pub fn description_path(self) -> &'static str {
        match self {
            Self::V1 => "/v1/igd.xml",
            Self::V2 => "/v2/igd.xml",
        }
    }

    fn segment(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

/// A device of the tree; each holds the next one.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Device {
    /// The root device.
    InternetGateway,
    /// `WANDevice`.
    Wan,
    /// `WANConnectionDevice`.
    WanConnection,
}

impl Device {
    /// All, from the root inwards.
    pub const ALL: [Self; 3] = [Self::InternetGateway, Self::Wan, Self::WanConnection];

    /// The name within the device type.
    #[must_use]
    pub fn type_name(self) -> &'static str {
        match self {
            Self::InternetGateway => "InternetGatewayDevice",
            Self::Wan => "WANDevice",
            Self::WanConnection => "WANConnectionDevice",
        }
    }

    /// `urn:schemas-upnp-org:device:…:n`.
    #[must_use]
    pub fn device_type(self, version: u8) -> String {
        device_type(self.type_name(), version)
    }

    /// The services that stand in this device itself, in the order of the description.
    pub fn services(self, face: Face) -> impl Iterator<Item = Service> {
        Service::of(face).filter(move |service| service.device() == self)
    }
}

/// `urn:schemas-upnp-org:device:NAME:VERSION`.
pub(crate) fn device_type(name: &str, version: u8) -> String {
    format!("{DEVICE_PREFIX}{name}:{version}")
}

/// `urn:schemas-upnp-org:service:NAME:VERSION`.
pub(crate) fn service_type(name: &str, version: u8) -> String {
    format!("{SERVICE_PREFIX}{name}:{version}")
}

/// Name and version out of a device type.
pub(crate) fn split_device_type(text: &str) -> Option<(&str, u8)> {
    split_version(text.strip_prefix(DEVICE_PREFIX)?)
}

/// Name and version out of a service type.
pub(crate) fn split_service_type(text: &str) -> Option<(&str, u8)> {
    split_version(text.strip_prefix(SERVICE_PREFIX)?)
}

/// `NAME:VERSION`, the version in plain digits without leading zeros and not 0.
fn split_version(text: &str) -> Option<(&str, u8)> {
    let (name, digits) = text.split_once(':')?;
    let plain = digits.bytes().all(|digit| digit.is_ascii_digit()) && !digits.starts_with('0');
    let version = if plain { digits.parse().ok()? } else { return None };
    (!name.is_empty()).then_some((name, version))
}

/// A service of the tree.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Service {
    /// In the root device; Windows XP wanted a service there.
    Layer3Forwarding,
    /// In `WANDevice`; without it miniupnpc sees no gateway.
    WanCommonInterfaceConfig,
    /// In `WANConnectionDevice`; the mappings.
    WanIpConnection,
    /// Beside it, in IGD:2 only; the pinholes.
    WanIpv6FirewallControl,
}

impl Service {
    /// All, from the root device inwards.
    pub const ALL: [Self; 4] = [
        Self::Layer3Forwarding,
        Self::WanCommonInterfaceConfig,
        Self::WanIpConnection,
        Self::WanIpv6FirewallControl,
    ];

    /// Those of a face, in the same order.
    pub fn of(face: Face) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |service| service.is_on(face))
    }

    /// Whether a face has it: who wants IGD:1 shall see nothing that IGD:1 does not have.
    #[must_use]
    pub fn is_on(self, face: Face) -> bool {
        self != Self::WanIpv6FirewallControl || face == Face::V2
    }

    /// The name within the service type.
    #[must_use]
    pub fn type_name(self) -> &'static str {
        match self {
            Self::Layer3Forwarding => "Layer3Forwarding",
            Self::WanCommonInterfaceConfig => "WANCommonInterfaceConfig",
            Self::WanIpConnection => "WANIPConnection",
            Self::WanIpv6FirewallControl => "WANIPv6FirewallControl",
        }
    }

    /// The version that a face announces.
    #[must_use]
    pub fn version(self, face: Face) -> u8 {
        match self {
            Self::Layer3Forwarding | Self::WanCommonInterfaceConfig | Self::WanIpv6FirewallControl => 1,
            Self::WanIpConnection => face.version(),
        }
    }

    /// The highest version there is of it here.
    #[must_use]
    pub fn highest_version(self) -> u8 {
        self.version(Face::V2)
    }

    /// `urn:schemas-upnp-org:service:…:n`.
    #[must_use]
    pub fn service_type(self, version: u8) -> String {
        service_type(self.type_name(), version)
    }

    /// `urn:upnp-org:serviceId:…`.
    #[must_use]
    pub fn service_id(self) -> String {
        format!("urn:upnp-org:serviceId:{}", self.segment())
    }

    /// The device that holds it.
    #[must_use]
    pub fn device(self) -> Device {
        match self {
            Self::Layer3Forwarding => Device::InternetGateway,
            Self::WanCommonInterfaceConfig => Device::Wan,
            Self::WanIpConnection | Self::WanIpv6FirewallControl => Device::WanConnection,
        }
    }

    /// Where control requests go: `/ctl/TOKEN/…`. The token is random and stable per installation, so that a
    /// page in a browser cannot know the path.
    #[must_use]
    pub fn control_path(self, face: Face, token: &str) -> String {
        format!("/ctl/{token}/{}/{}", face.segment(), self.segment())
    }

    /// Where subscriptions go: `/evt/TOKEN/…`.
    #[must_use]
    pub fn event_path(self, face: Face, token: &str) -> String {
        format!("/evt/{token}/{}/{}", face.segment(), self.segment())
    }

    /// Where the service description is read.
    #[must_use]
    pub fn scpd_path(self, face: Face) -> String {
        format!("/{}/{}.xml", face.segment(), self.segment())
    }

    /// The last part of the service id, and of the paths.
    fn segment(self) -> &'static str {
        match self {
            Self::Layer3Forwarding => "L3Forwarding1",
            Self::WanCommonInterfaceConfig => "WANCommonIFC1",
            Self::WanIpConnection => "WANIPConn1",
            Self::WanIpv6FirewallControl => "WANIPv6Firewall1",
        }
    }

    /// Every action of every version.
    #[must_use]
    pub fn actions(self) -> &'static [Action] {
        match self {
            Self::Layer3Forwarding => LAYER3_FORWARDING_ACTIONS,
            Self::WanCommonInterfaceConfig => WAN_COMMON_ACTIONS,
            Self::WanIpConnection => WAN_IP_ACTIONS,
            Self::WanIpv6FirewallControl => WAN_IPV6_FIREWALL_ACTIONS,
        }
    }

    /// The action of that name, whatever the version (K-8).
    #[must_use]
    pub fn action(self, name: &str) -> Option<&'static Action> {
        self.actions().iter().find(|action| action.name == name)
    }

    /// The action of that name for who speaks the service by `type_name`, which [`spoken`](Self::spoken) has given: as
    /// `WANPPPConnection` it has some more ([`ppp_actions`](Self::ppp_actions)).
    #[must_use]
    pub fn action_as(self, type_name: &str, name: &str) -> Option<&'static Action> {
        let more = if type_name == WAN_PPP_CONNECTION { self.ppp_actions() } else { &[] };
        self.action(name).or_else(|| more.iter().find(|action| action.name == name))
    }

    /// The actions of `WANPPPConnection:1` beyond those of `WANIPConnection:1` (igd.md 5). No description has them, as
    /// none has that service.
    #[must_use]
    pub fn ppp_actions(self) -> &'static [Action] {
        if self == Self::WanIpConnection { WAN_PPP_ACTIONS } else { &[] }
    }

    /// Their state variables. A query does not say as what it speaks to the service, so everybody may ask for them.
    #[must_use]
    pub fn ppp_variables(self) -> &'static [Variable] {
        if self == Self::WanIpConnection { WAN_PPP_VARIABLES } else { &[] }
    }

    /// Every state variable of every version.
    #[must_use]
    pub fn variables(self) -> &'static [Variable] {
        match self {
            Self::Layer3Forwarding => LAYER3_FORWARDING_VARIABLES,
            Self::WanCommonInterfaceConfig => WAN_COMMON_VARIABLES,
            Self::WanIpConnection => WAN_IP_VARIABLES,
            Self::WanIpv6FirewallControl => WAN_IPV6_FIREWALL_VARIABLES,
        }
    }

    /// The state variable of that name, whatever the version.
    #[must_use]
    pub fn variable(self, name: &str) -> Option<&'static Variable> {
        self.variables().iter().find(|variable| variable.name == name)
    }

    /// The state variables that a face events, in the order of the table.
    pub fn evented(self, face: Face) -> impl Iterator<Item = &'static Variable> {
        let version = self.version(face);
        self.variables().iter().filter(move |variable| variable.evented && variable.since <= version)
    }

    /// Name and version of a service type, if requests of that type belong to this service: its own name in a
    /// version we know, or `WANPPPConnection:1` for `WANIPConnection`, which some control points say whatever
    /// the description told them.
    #[must_use]
    pub fn spoken(self, service_type: &str) -> Option<(&'static str, u8)> {
        let (name, version) = split_service_type(service_type)?;
        if name == self.type_name() && version <= self.highest_version() {
            Some((self.type_name(), version))
        } else if self == Self::WanIpConnection && (name, version) == (WAN_PPP_CONNECTION, 1) {
            Some((WAN_PPP_CONNECTION, 1))
        } else {
            None
        }
    }
}

/// What a request path names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Resource {
    /// The root description.
    Description(Face),
    /// A service description.
    Scpd(Service, Face),
    /// Control of a service.
    Control(Service, Face),
    /// Subscriptions to a service.
    Event(Service, Face),
}

impl Resource {
    /// Finds the resource of a path; the whole path has to fit.
    #[must_use]
    pub fn at(path: &str, token: &str) -> Option<Self> {
        Face::ALL.into_iter().find_map(|face| {
            if path == face.description_path() {
                return Some(Self::Description(face));
            }
            Service::of(face).find_map(|service| {
                if path == service.control_path(face, token) {
                    Some(Self::Control(service, face))
                } else if path == service.event_path(face, token) {
                    Some(Self::Event(service, face))
                } else if path == service.scpd_path(face) {
                    Some(Self::Scpd(service, face))
                } else {
                    None
                }
            })
        })
    }
}

/// Every action of the table.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[allow(missing_docs, reason = "each is the specification's action of that name")]
pub enum ActionId {
    SetConnectionType,
    GetConnectionTypeInfo,
    RequestConnection,
    RequestTermination,
    ForceTermination,
    GetStatusInfo,
    GetNatRsipStatus,
    GetGenericPortMappingEntry,
    GetSpecificPortMappingEntry,
    AddPortMapping,
    AddAnyPortMapping,
    DeletePortMapping,
    DeletePortMappingRange,
    GetExternalIpAddress,
    GetListOfPortMappings,
    GetCommonLinkProperties,
    GetTotalBytesSent,
    GetTotalBytesReceived,
    GetTotalPacketsSent,
    GetTotalPacketsReceived,
    SetDefaultConnectionService,
    GetDefaultConnectionService,
    ConfigureConnection,
    GetLinkLayerMaxBitRates,
    GetPppEncryptionProtocol,
    GetPppCompressionProtocol,
    GetPppAuthenticationProtocol,
    GetUserName,
    GetPassword,
    GetFirewallStatus,
    GetOutboundPinholeTimeout,
    AddPinhole,
    UpdatePinhole,
    DeletePinhole,
    GetPinholePackets,
    CheckPinholeWorking,
}

/// An action of a service.
#[derive(Debug, Eq, PartialEq)]
pub struct Action {
    /// Which one.
    pub id: ActionId,
    /// The name on the wire.
    pub name: &'static str,
    /// The service version that brought it.
    pub since: u8,
    /// In arguments, in the order of the specification.
    pub inputs: &'static [Argument],
    /// Out arguments, in the order of the specification.
    pub outputs: &'static [Argument],
}

/// An argument of an action.
#[derive(Debug, Eq, PartialEq)]
pub struct Argument {
    /// The name on the wire.
    pub name: &'static str,
    /// The state variable that gives it its type.
    pub variable: &'static str,
}

/// A state variable.
#[derive(Debug, Eq, PartialEq)]
pub struct Variable {
    /// The name on the wire.
    pub name: &'static str,
    /// Its type.
    pub data_type: DataType,
    /// Whether subscribers are told of changes.
    pub evented: bool,
    /// The service version that brought it.
    pub since: u8,
    /// The default of the description, and the service version that brought it.
    pub default: Option<(u8, &'static str)>,
    /// The values of the description.
    pub allowed: Allowed,
}

/// The data types of the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DataType {
    /// Text.
    String,
    /// 16 bits, unsigned.
    Ui2,
    /// 32 bits, unsigned.
    Ui4,
    /// Sent as 0 or 1.
    Boolean,
}

impl DataType {
    /// The name in a service description.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Ui2 => "ui2",
            Self::Ui4 => "ui4",
            Self::Boolean => "boolean",
        }
    }
}

/// What a service description says about the values of a variable.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Allowed {
    /// Nothing beyond the type.
    Any,
    /// One of these.
    Values(&'static [&'static str]),
    /// Within bounds, both included, since a service version.
    Range {
        /// The service version that brought the bounds.
        since: u8,
        /// The least value.
        minimum: u32,
        /// The greatest value.
        maximum: u32,
    },
}

/// The value of an argument or a state variable.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Value {
    /// `string`.
    Text(String),
    /// `ui2` or `ui4`.
    Number(u32),
    /// `boolean`.
    Boolean(bool),
}

impl fmt::Display for Value {
    /// As on the wire, not escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(number) => number.fmt(f),
            Self::Boolean(boolean) => u8::from(*boolean).fmt(f),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number)
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<bool> for Value {
    fn from(boolean: bool) -> Self {
        Self::Boolean(boolean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every argument has its variable, of a version not above its own (SCPD rule of uda.md 7, K-12).
    #[test]
    fn every_argument_has_its_variable_and_every_variable_its_use() {
        for service in Service::ALL {
            let mut used: Vec<&str> = Vec::new();
            for action in service.actions() {
                assert!(action.since <= service.highest_version());
                for argument in action.inputs.iter().chain(action.outputs) {
                    let variable = service.variable(argument.variable).expect(argument.variable);
                    assert!(variable.since <= action.since, "{} {}", action.name, argument.name);
                    let plain = service == Service::WanIpv6FirewallControl && argument.name != "NewLeaseTime";
                    assert_eq!(argument.name.starts_with("New"), !plain, "{} {}", action.name, argument.name);
                    used.push(argument.variable);
                }
            }
            for variable in service.variables() {
                assert!(variable.evented || used.contains(&variable.name), "{} is idle", variable.name);
                if let (Some((_, default)), Allowed::Values(values)) = (variable.default, variable.allowed) {
                    assert!(values.contains(&default));
                }
            }
        }
    }

    #[test]
    fn names_and_ids_are_unique() {
        let mut ids: Vec<_> = Service::ALL.into_iter().flat_map(Service::actions).map(|a| a.id).collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!((count, ids.len()), (29, 29));
        for service in Service::ALL {
            for action in service.actions() {
                assert_eq!(service.action(action.name), Some(action));
            }
            for variable in service.variables() {
                assert_eq!(service.variable(variable.name), Some(variable));
            }
        }
    }

    /// igd.md 10 and the tables of sections 2, 6 and 7.
    #[test]
    fn versions_differ_by_three_actions_and_three_variables() {
        let added: Vec<_> =
            Service::WanIpConnection.actions().iter().filter(|a| a.since == 2).map(|a| a.name).collect();
        assert_eq!(added, ["AddAnyPortMapping", "DeletePortMappingRange", "GetListOfPortMappings"]);
        let evented = |service: Service, face| service.evented(face).map(|v| v.name).collect::<Vec<_>>();
        let base = [
            "PossibleConnectionTypes",
            "ConnectionStatus",
            "ExternalIPAddress",
            "PortMappingNumberOfEntries",
        ];
        assert_eq!(evented(Service::WanIpConnection, Face::V1), base);
        assert_eq!(
            evented(Service::WanIpConnection, Face::V2),
            [base.as_slice(), &["SystemUpdateID"]].concat()
        );
        assert_eq!(evented(Service::WanCommonInterfaceConfig, Face::V2), ["PhysicalLinkStatus"]);
        assert_eq!(evented(Service::Layer3Forwarding, Face::V1), ["DefaultConnectionService"]);
        let firewall = evented(Service::WanIpv6FirewallControl, Face::V2);
        assert_eq!(firewall, ["FirewallEnabled", "InboundPinholeAllowed"]);
    }

    /// igd.md 5, Q-8: the actions of PPP are there for who speaks that, and their arguments have their variables.
    #[test]
    fn ppp_is_spoken_and_not_described() {
        let ip = Service::WanIpConnection;
        let names: Vec<_> = ip.ppp_actions().iter().map(|action| action.name).collect();
        assert_eq!(names.len(), 7);
        for action in ip.ppp_actions() {
            assert_eq!(ip.action_as(WAN_PPP_CONNECTION, action.name), Some(action));
            assert_eq!((ip.action_as("WANIPConnection", action.name), ip.action(action.name)), (None, None));
            for argument in action.inputs.iter().chain(action.outputs) {
                assert!(ip.ppp_variables().iter().any(|variable| variable.name == argument.variable));
                assert_eq!(argument.name, format!("New{}", argument.variable));
            }
        }
        assert_eq!(
            ip.action_as(WAN_PPP_CONNECTION, "AddPortMapping").map(|action| action.id),
            Some(ActionId::AddPortMapping)
        );
        for variable in ip.ppp_variables() {
            assert_eq!(ip.variable(variable.name), None);
            assert!(!variable.evented);
        }
        for other in Service::ALL.into_iter().filter(|&service| service != ip) {
            assert!(other.ppp_actions().is_empty() && other.ppp_variables().is_empty());
        }
    }

    #[test]
    fn spoken_types() {
        let ip = Service::WanIpConnection;
        for (text, expected) in [
            ("urn:schemas-upnp-org:service:WANIPConnection:1", Some(("WANIPConnection", 1))),
            ("urn:schemas-upnp-org:service:WANIPConnection:2", Some(("WANIPConnection", 2))),
            ("urn:schemas-upnp-org:service:WANPPPConnection:1", Some(("WANPPPConnection", 1))),
            ("urn:schemas-upnp-org:service:WANPPPConnection:2", None),
            ("urn:schemas-upnp-org:service:WANIPConnection:3", None),
            ("urn:schemas-upnp-org:service:WANIPConnection:0", None),
            ("urn:schemas-upnp-org:service:WANIPConnection:01", None),
            ("urn:schemas-upnp-org:service:WANIPConnection:+1", None),
            ("urn:schemas-upnp-org:service:WANIPConnection:", None),
            ("urn:schemas-upnp-org:service:WANIPConnection", None),
            ("urn:schemas-upnp-org:service:WANIPConnection:1:1", None),
            ("urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1", None),
            ("", None),
        ] {
            assert_eq!(ip.spoken(text), expected, "{text}");
        }
        assert_eq!(Service::Layer3Forwarding.spoken("urn:schemas-upnp-org:service:WANPPPConnection:1"), None);
    }

    #[test]
    fn paths_lead_back() {
        for face in Face::ALL {
            assert_eq!(Resource::at(face.description_path(), "t0"), Some(Resource::Description(face)));
            for service in Service::of(face) {
                for (path, resource) in [
                    (service.control_path(face, "t0"), Resource::Control(service, face)),
                    (service.event_path(face, "t0"), Resource::Event(service, face)),
                    (service.scpd_path(face), Resource::Scpd(service, face)),
                ] {
                    assert_eq!(Resource::at(&path, "t0"), Some(resource));
                    assert_eq!(Resource::at(&path.replace("t0", "t1"), "t0").is_some(), !path.contains("t0"));
                }
            }
        }
        let firewall = Service::WanIpv6FirewallControl;
        assert_eq!(Resource::at(&firewall.control_path(Face::V1, "t0"), "t0"), None);
        assert_eq!(Resource::at("/", "t0"), None);
    }

    #[test]
    fn values_as_on_the_wire() {
        assert_eq!(Value::from(true).to_string(), "1");
        assert_eq!(Value::from(false).to_string(), "0");
        assert_eq!(Value::from(65_535_u16).to_string(), "65535");
        assert_eq!(Value::from("<a>").to_string(), "<a>");
    }
}
