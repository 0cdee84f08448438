//! Control points' actions: what is answered from state at once, and what goes on to the life of mappings.
//!
//! Everything that clients poll is answered from state (decision 12), and what is mapped from the table, to
//! everybody (decision 29): no exchange with the provider.

use wire::error::UpnpError;
use wire::listing::{self, ListingEntry};
use wire::pcp::Protocol;
use wire::services::{ActionId, DataType, Face, Service, Value, Variable};
use wire::soap::{self, Call};

use super::{Alarm, ControlRequest, Counters, Effect, Gateway, RequestId};
use crate::igd::{Asked, Entry, MappingAction, Range, mapping_action, pinhole_action, upnp_error};
use crate::policy::Requester;
use crate::request::Refusal;
use crate::table::{Key, Mapping};
use crate::time::Instant;

/// The only connection type there is.
const IP_ROUTED: &str = "IP_Routed";
/// What a link speed is said to be when the kernel does not know: that of the slowest Ethernet still sold.
const UNKNOWN_SPEED: u64 = 100_000_000;

impl Gateway {
    pub(super) fn on_control(&mut self, now: Instant, request: ControlRequest) {
        let ControlRequest { id, from, also, face, request } = request;
        let who = self.requester(from, &also);
        self.hasten_probe(now);
        match request {
            soap::Request::Query { variable, .. } if Counters::default().value(variable.name).is_some() => {
                self.count(now, id, Counting::Query(variable.name));
            }
            soap::Request::Query { service, variable } => {
                let answer = self
                    .variable(now, face, service, variable, &who)
                    .map(|value| soap::query_response(&value))
                    .ok_or(UpnpError::INVALID_VAR);
                self.effects.push_back(Effect::Reply { request: id, answer });
            }
            soap::Request::Call(call) => self.on_call(now, id, &who, face, call),
        }
    }

    fn on_call(&mut self, now: Instant, id: RequestId, who: &Requester, face: Face, call: Call) {
        if let Some(action) = pinhole_action(&call) {
            return self.on_pinhole_action(now, id, who, call, action);
        }
        match mapping_action(&call, who.address(), self.external) {
            Some(Ok(action)) => self.on_mapping_action(now, id, who, call, action),
            Some(Err(error)) => self.effects.push_back(Effect::Reply { request: id, answer: Err(error) }),
            None if counter(&call).is_some() => self.count(now, id, Counting::Call(call)),
            None => {
                let answer = self.simple(now, face, who, &call).map(|values| call.response(&values));
                self.effects.push_back(Effect::Reply { request: id, answer });
            }
        }
    }

    fn on_mapping_action(
        &mut self,
        now: Instant,
        id: RequestId,
        who: &Requester,
        call: Call,
        action: MappingAction,
    ) {
        let waits = !matches!(action, MappingAction::GetGeneric(_) | MappingAction::List(..));
        if waits && self.stopping {
            // There would be nobody left to answer.
            return self
                .effects
                .push_back(Effect::Reply { request: id, answer: Err(UpnpError::ACTION_FAILED) });
        }
        let answer = match action {
            MappingAction::Add(request) => {
                self.wait(now, id, call, Asked::Add);
                return self.add_by_names(now, id, who, request);
            }
            MappingAction::Delete(entry) => {
                self.wait(now, id, call, Asked::Delete);
                return self.delete(now, id, who, entry);
            }
            MappingAction::DeleteRange(range) => {
                self.wait(now, id, call, Asked::Range);
                return self.delete_range(now, id, who, range);
            }
            MappingAction::GetSpecific(entry) => return self.on_get_specific(now, id, who, call, &entry),
            MappingAction::GetGeneric(index) => {
                self.table.nth(index).map(|m| generic_entry(now, m)).ok_or(UpnpError::ARRAY_INDEX_INVALID)
            }
            MappingAction::List(range, most) => self
                .listing(now, range, most)
                .map(|text| vec![Value::Text(text)])
                .ok_or(upnp_error(Refusal::NoSuchEntry, Asked::Range, call.version)),
        };
        let answer = answer.map(|values| call.response(&values));
        self.effects.push_back(Effect::Reply { request: id, answer });
    }

    pub(super) fn specific(&self, entry: &Entry) -> Option<&Mapping> {
        let key = Key { protocol: entry.protocol, external_port: entry.external_port };
        self.table.find(key).filter(|mapping| entry.names_remote_host_of(mapping))
    }

    fn listing(&self, now: Instant, range: Range, most: usize) -> Option<String> {
        let entries: Vec<ListingEntry> = self
            .table
            .range(range.protocol, range.first, range.last)
            .take(most)
            .map(|mapping| ListingEntry {
                remote_host: remote_host(mapping),
                external_port: mapping.external.port(),
                protocol: protocol(mapping).to_owned(),
                internal_port: mapping.internal.port(),
                internal_client: mapping.internal.ip().to_string(),
                enabled: true,
                description: mapping.description.clone(),
                lease: lease_left(now, mapping),
            })
            .collect();
        (!entries.is_empty()).then(|| listing::encode(&entries))
    }

    /// The actions that neither touch mappings nor need anything from outside.
    fn simple(
        &self,
        now: Instant,
        face: Face,
        who: &Requester,
        call: &Call,
    ) -> Result<Vec<Value>, UpnpError> {
        let two = call.version >= 2;
        Ok(match call.action.id {
            ActionId::GetConnectionTypeInfo => vec![IP_ROUTED.into(), IP_ROUTED.into()],
            ActionId::GetStatusInfo => {
                vec![self.connection_status().into(), "ERROR_NONE".into(), Value::Number(self.uptime(now))]
            }
            ActionId::GetNatRsipStatus => vec![Value::Boolean(false), Value::Boolean(true)],
            ActionId::GetExternalIpAddress => vec![Value::Text(self.external_text(who))],
            // Spec A-15: a control point starts and ends nothing here.
            ActionId::RequestConnection if self.is_connected() => Vec::new(),
            ActionId::RequestConnection => return Err(UpnpError::CONNECTION_SETUP_FAILED),
            ActionId::SetConnectionType if two => return Err(UpnpError::READ_ONLY),
            ActionId::SetConnectionType => return Err(UpnpError::INACTIVE_CONNECTION_REQUIRED),
            ActionId::RequestTermination | ActionId::ForceTermination if two => {
                return Err(UpnpError::NOT_AUTHORIZED);
            }
            ActionId::RequestTermination | ActionId::ForceTermination => {
                return Err(UpnpError::ACTION_FAILED);
            }
            ActionId::GetCommonLinkProperties => {
                let speed = Value::Number(self.link_speed());
                vec!["Ethernet".into(), speed.clone(), speed, self.link_status().into()]
            }
            // igd.md 5: there is no PPP whose user could be set, so it has no user, and no protocols.
            ActionId::ConfigureConnection => return Err(UpnpError::ACTION_FAILED),
            ActionId::GetLinkLayerMaxBitRates => vec![Value::Number(self.link_speed()); 2],
            ActionId::GetPppEncryptionProtocol
            | ActionId::GetPppCompressionProtocol
            | ActionId::GetPppAuthenticationProtocol
            | ActionId::GetUserName
            | ActionId::GetPassword => vec!["".into()],
            ActionId::GetDefaultConnectionService => {
                vec![Value::Text(self.devices.identity().default_connection_service(face))]
            }
            ActionId::SetDefaultConnectionService => {
                self.check_default_service(face, call.text("NewDefaultConnectionService"))?;
                Vec::new()
            }
            ActionId::GetGenericPortMappingEntry
            | ActionId::GetSpecificPortMappingEntry
            | ActionId::AddPortMapping
            | ActionId::AddAnyPortMapping
            | ActionId::DeletePortMapping
            | ActionId::DeletePortMappingRange
            | ActionId::GetListOfPortMappings
            | ActionId::GetTotalBytesSent
            | ActionId::GetTotalBytesReceived
            | ActionId::GetTotalPacketsSent
            | ActionId::GetTotalPacketsReceived
            | ActionId::GetFirewallStatus
            | ActionId::GetOutboundPinholeTimeout
            | ActionId::AddPinhole
            | ActionId::UpdatePinhole
            | ActionId::DeletePinhole
            | ActionId::GetPinholePackets
            | ActionId::CheckPinholeWorking => unreachable!("the caller has taken these out"),
        })
    }

    /// There is one connection service in each tree, so only naming that one succeeds.
    fn check_default_service(&self, face: Face, wanted: &str) -> Result<(), UpnpError> {
        let own = self.devices.identity().default_connection_service(face);
        if wanted.trim() == own {
            return Ok(());
        }
        let (device, service) = wanted.trim().split_once(',').ok_or(UpnpError::INVALID_ARGS)?;
        let (own_device, own_service) = own.split_once(',').expect("we have just made it");
        let uuid = |device: &str| device.split(':').take(2).collect::<Vec<_>>().join(":");
        if uuid(device) != uuid(own_device) {
            Err(UpnpError::INVALID_DEVICE_UUID)
        } else if service != own_service {
            Err(UpnpError::INVALID_SERVICE_ID)
        } else {
            Err(UpnpError::INVALID_CONN_SERVICE_SELECTION)
        }
    }

    /// Traffic counters come from outside.
    fn count(&mut self, now: Instant, id: RequestId, counting: Counting) {
        if self.stopping {
            return self
                .effects
                .push_back(Effect::Reply { request: id, answer: Err(UpnpError::ACTION_FAILED) });
        }
        self.counting.insert(id, counting);
        self.timers.set(Alarm::Patience(id), now + self.config.answer_within);
        self.effects.push_back(Effect::ReadCounters { request: id });
    }

    pub(super) fn on_counters(&mut self, request: RequestId, counters: Option<Counters>) {
        let Some(counting) = self.counting.remove(&request) else { return };
        self.timers.cancel(Alarm::Patience(request));
        let value = |name| counters.and_then(|counters| counters.value(name)).map(Value::Number);
        let answer = match &counting {
            Counting::Call(call) => counter(call).and_then(value).map(|value| call.response(&[value])),
            Counting::Query(name) => value(name).map(|value| soap::query_response(&value)),
        };
        self.effects.push_back(Effect::Reply { request, answer: answer.ok_or(UpnpError::ACTION_FAILED) });
    }

    /// QueryStateVariable (K-9): every variable of the service has a value; those that are only the types of
    /// arguments have that of their type's default.
    pub(super) fn variable(
        &self,
        now: Instant,
        face: Face,
        service: Service,
        variable: &Variable,
        who: &Requester,
    ) -> Option<Value> {
        let newest = || self.table.nth(self.table.len().checked_sub(1)?);
        Some(match (service, variable.name) {
            (Service::Layer3Forwarding, _) => {
                Value::Text(self.devices.identity().default_connection_service(face))
            }
            (Service::WanCommonInterfaceConfig, "WANAccessType") => "Ethernet".into(),
            (Service::WanCommonInterfaceConfig, "PhysicalLinkStatus") => self.link_status().into(),
            (
                Service::WanCommonInterfaceConfig,
                "Layer1UpstreamMaxBitRate" | "Layer1DownstreamMaxBitRate",
            ) => Value::Number(self.link_speed()),
            (Service::WanCommonInterfaceConfig, _) => return None,
            (Service::WanIpv6FirewallControl, name) => match name {
                "FirewallEnabled" => Value::Boolean(true),
                "InboundPinholeAllowed" => Value::Boolean(self.allows_pinholes()),
                "A_ARG_TYPE_LeaseTime" => Value::Number(1), // its range has no 0
                _ => match variable.data_type {
                    DataType::String => "".into(),
                    DataType::Boolean => Value::Boolean(false),
                    DataType::Ui2 | DataType::Ui4 => Value::Number(0),
                },
            },
            (Service::WanIpConnection, name) => match name {
                "ConnectionType" | "PossibleConnectionTypes" => IP_ROUTED.into(),
                "ConnectionStatus" => self.connection_status().into(),
                "Uptime" => Value::Number(self.uptime(now)),
                "LastConnectionError" => "ERROR_NONE".into(),
                "RSIPAvailable" | "A_ARG_TYPE_Manage" => Value::Boolean(false),
                "NATEnabled" | "PortMappingEnabled" => Value::Boolean(true),
                "ExternalIPAddress" => Value::Text(self.external_text(who)),
                "PortMappingNumberOfEntries" => {
                    Value::Number(u32::try_from(self.table.len().min(65_535)).unwrap_or(65_535))
                }
                "SystemUpdateID" => Value::Number(self.system_update_id),
                "PortMappingLeaseDuration" => Value::Number(newest().map_or(0, |m| lease_left(now, m))),
                "RemoteHost" => Value::Text(newest().map_or(String::new(), remote_host)),
                "ExternalPort" => Value::Number(newest().map_or(0, |m| u32::from(m.external.port()))),
                "InternalPort" => Value::Number(newest().map_or(0, |m| u32::from(m.internal.port()))),
                "PortMappingProtocol" => newest().map_or("TCP", protocol).into(),
                "InternalClient" => {
                    Value::Text(newest().map_or(String::new(), |m| m.internal.ip().to_string()))
                }
                "PortMappingDescription" => {
                    Value::Text(newest().map_or(String::new(), |m| m.description.clone()))
                }
                "A_ARG_TYPE_PortListing" => Value::Text(listing::encode(&[])),
                "UpstreamMaxBitRate" | "DownstreamMaxBitRate" => Value::Number(self.link_speed()),
                "PPPEncryptionProtocol"
                | "PPPCompressionProtocol"
                | "PPPAuthenticationProtocol"
                | "UserName"
                | "Password" => "".into(),
                _ => return None,
            },
        })
    }

    pub(super) fn connection_status(&self) -> &'static str {
        if self.is_connected() { "Connected" } else { "Disconnected" }
    }

    fn uptime(&self, now: Instant) -> u32 {
        let since = self.connected_since.filter(|_| self.is_connected());
        since.map_or(0, |since| u32::try_from((now - since).as_secs()).unwrap_or(u32::MAX))
    }

    /// kept for each control point; one that has no mapping sees the gateway's own.
    fn external_text(&self, who: &Requester) -> String {
        let own = who.addresses().iter().find_map(|&host| self.table.external_of(host));
        // Without an uplink nobody has an external address, whatever mappings wait for its return.
        self.external.map_or(String::new(), |addr| own.unwrap_or(addr).to_string())
    }

    pub(super) fn link_status(&self) -> &'static str {
        if self.wan.up { "Up" } else { "Down" }
    }

    fn link_speed(&self) -> u32 {
        u32::try_from(self.wan.bits_per_second.unwrap_or(UNKNOWN_SPEED)).unwrap_or(u32::MAX)
    }
}

/// Who waits for the traffic counters.
#[derive(Debug)]
pub(super) enum Counting {
    /// One of the four actions.
    Call(Call),
    /// QueryStateVariable of this variable.
    Query(&'static str),
}

/// The state variable of an action that asks for a traffic counter.
fn counter(call: &Call) -> Option<&'static str> {
    let output = call.action.outputs.first()?;
    Counters::default().value(output.variable).map(|_| output.variable)
}

impl Counters {
    /// The counter that a state variable of WANCommonInterfaceConfig shows; as `ui4` it wraps (spec igd.md section 6).
    fn value(&self, variable: &str) -> Option<u32> {
        let total = match variable {
            "TotalBytesSent" => self.bytes_sent,
            "TotalBytesReceived" => self.bytes_received,
            "TotalPacketsSent" => self.packets_sent,
            "TotalPacketsReceived" => self.packets_received,
            _ => return None,
        };
        Some(u32::try_from(total & u64::from(u32::MAX)).expect("masked to 32 bits"))
    }
}

/// The out arguments of GetGenericPortMappingEntry; those of GetSpecificPortMappingEntry are its last five.
pub(super) fn generic_entry(now: Instant, mapping: &Mapping) -> Vec<Value> {
    vec![
        Value::Text(remote_host(mapping)),
        Value::Number(u32::from(mapping.external.port())),
        protocol(mapping).into(),
        Value::Number(u32::from(mapping.internal.port())),
        Value::Text(mapping.internal.ip().to_string()),
        Value::Boolean(true),
        Value::Text(mapping.description.clone()),
        Value::Number(lease_left(now, mapping)),
    ]
}

fn remote_host(mapping: &Mapping) -> String {
    let address = || mapping.remote_peer.map_or(String::new(), |peer| peer.to_string());
    mapping.remote_name.clone().unwrap_or_else(address)
}

fn protocol(mapping: &Mapping) -> &'static str {
    if mapping.protocol == Protocol::UDP { "UDP" } else { "TCP" }
}

/// What is left of the lease, in seconds: the control point's, not the provider's (spec iwf.md 2.5). A mapping that
/// lasts for ever says 0, and one that ends within the second 1, for 0 would mean for ever.
fn lease_left(now: Instant, mapping: &Mapping) -> u32 {
    mapping.lease_ends().map_or(0, |end| end.secs_left(now).max(1))
}
