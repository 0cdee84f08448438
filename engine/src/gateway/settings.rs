//! What an administrator may set.

use std::net::SocketAddr;

use crate::device::DeviceConfig;
use crate::policy::Policy;
use crate::prefix::ThirdParty;
use crate::time::Duration;

/// Whether this router translates addresses itself (RFC 6970 §3: both deployments).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NatMode {
    /// It does: the provider's NAT is asked for mappings to a port of the WAN address, and this router's NAT leads
    /// on to the LAN host (RFC 6970 §5.5).
    Own,
    /// It does not: the provider's NAT is asked for mappings to the LAN host, by THIRD_PARTY.
    None,
}

/// How AddPortMapping, which wants one port or none, is carried to the provider (draft -00, 5.7.2; D-8, decision 5).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AddPortMapping {
    /// With PREFER_FAILURE (RFC 6970 §5.6.2, alternative 2). A server that does not know the option is served by
    /// [`Hold`](Self::Hold) all the same.
    #[default]
    PreferFailure,
    /// Without it (alternative 1): another port than the one that is wanted is a conflict to the control point, and
    /// held for it, should it ask for that one next.
    Hold,
    /// With it, and after a refusal without any port (alternative 3), held as above.
    AnyThenHold,
}

/// How GetSpecificPortMappingEntry learns whether a port is free (decision 6).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum GetSpecific {
    /// The provider is asked for the port (RFC 6970 §5.7).
    #[default]
    Probe,
    /// The own table is the answer (draft -00, 5.8).
    Local,
}

/// What a control point hears when the provider's server is known and silent (decision 21).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum WhenUnreachable {
    /// 501.
    #[default]
    Refuse,
    /// A mapping of the router's own NAT, which is carried to the provider as soon as it answers (draft -00, 5.6, D-6).
    /// Without a NAT of its own the router has nothing to give.
    Local,
}

/// What a control point hears when no server of the provider's was found at all (decision 21).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum WhenNoneFound {
    /// The router is an ordinary gateway of its own NAT, if that has an address of its own in the Internet.
    #[default]
    Local,
    /// 501.
    Refuse,
}

/// What an administrator may set, and what the installation is.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// See [`NatMode`].
    pub nat: NatMode,
    /// PCP servers, the best first. Empty: those that are found.
    pub servers: Vec<SocketAddr>,
    /// The anycast addresses of RFC 7723 are tried after the WAN's default router.
    pub anycast: bool,
    /// A control point hears 501 after this time without an answer from upstream.
    pub answer_within: Duration,
    /// Mappings are asked for again within this time after the server lost its state.
    pub recovery_wait: Duration,
    /// Mappings of before a restart are asked for again within this time (PCP_SERVICE_WAIT).
    pub service_wait: Duration,
    /// Look for a router of the provider's that speaks UPnP where neither PCP nor NAT-PMP is answered; with [`NatMode::Own`] only.
    pub isp_router: bool,
    /// Keep a mapping of the router itself, so that the external address is known before anybody asks.
    pub external_address_probe: bool,
    /// See [`AddPortMapping`].
    pub add_port_mapping: AddPortMapping,
    /// See [`GetSpecific`].
    pub get_specific: GetSpecific,
    /// See [`WhenUnreachable`].
    pub when_unreachable: WhenUnreachable,
    /// See [`WhenNoneFound`].
    pub when_none_found: WhenNoneFound,
    /// Serve PCP to LAN hosts (RFC 6887).
    pub pcp: bool,
    /// Serve NAT-PMP to LAN hosts (RFC 6886).
    pub nat_pmp: bool,
    /// Who on the LAN may ask for whom there, by THIRD_PARTY of PCP; for fully trusted clients alone (RFC 6887 §13.1).
    pub third_party: Vec<ThirdParty>,
    /// LAN hosts may have pinholes in the IPv6 firewall, by UPnP and by PCP.
    pub pinholes: bool,
    /// PCP servers of the provider's IPv6 firewall, the best first. Empty: those that are found.
    pub firewall_servers: Vec<SocketAddr>,
    /// Tell the provider what control points call their mappings (RFC 7220).
    pub send_descriptions: bool,
    /// Ask a new server which mappings it holds for us (GET and NEXT, of private use).
    pub list_mappings: bool,
    /// DeletePortMappingRange is answered before the provider has confirmed it (RFC 6970 §5.8).
    pub optimistic_delete: bool,
    /// A stop gives nothing back: mappings stand at the provider and in the store until the next start, or until their
    /// lifetimes end.
    pub keep_on_stop: bool,
    /// Who may map what.
    pub policy: Policy,
    /// What the gateway says of itself.
    pub device: DeviceConfig,
}

impl Config {
    /// The usual settings of a router with a NAT of its own.
    pub fn new(device: DeviceConfig) -> Self {
        Self {
            nat: NatMode::Own,
            servers: Vec::new(),
            anycast: true,
            answer_within: Duration::from_millis(3500),
            recovery_wait: Duration::from_secs(5),
            service_wait: Duration::from_secs(30),
            isp_router: true,
            external_address_probe: true,
            add_port_mapping: AddPortMapping::default(),
            get_specific: GetSpecific::default(),
            when_unreachable: WhenUnreachable::default(),
            when_none_found: WhenNoneFound::default(),
            pcp: true,
            nat_pmp: true,
            third_party: Vec::new(),
            pinholes: true,
            firewall_servers: Vec::new(),
            send_descriptions: true,
            list_mappings: false,
            optimistic_delete: false,
            keep_on_stop: false,
            policy: Policy::default(),
            device,
        }
    }
}
