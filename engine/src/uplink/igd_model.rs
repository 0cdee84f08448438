//! A provider's router that maps ports by UPnP, for tests: it reads requests as a gateway does, and has the faults of real ones.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use wire::error::UpnpError;
use wire::services::{Face, Service, Value};
use wire::soap::{self, Call};

use super::http::{HttpOutcome, HttpRequest};
use crate::time::Instant;

/// An entry of its list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Entry {
    pub(crate) internal: (Ipv4Addr, u16),
    pub(crate) description: String,
    /// `None` for ever.
    pub(crate) ends: Option<Instant>,
}

/// See the module's description.
#[derive(Clone, Debug)]
pub(crate) struct IgdModel {
    pub(crate) external: &'static str,
    /// Of its service.
    pub(crate) version: u8,
    /// What it answers this action with.
    pub(crate) refuses: BTreeMap<&'static str, UpnpError>,
    /// Answers this, whatever it is asked.
    pub(crate) says: Option<HttpOutcome>,
    /// 725 to every lease but 0.
    pub(crate) only_permanent: bool,
    /// AddPortMapping repoints another host's entry.
    pub(crate) overwrites: bool,
    /// 718 also to who has the entry.
    pub(crate) never_renews: bool,
    /// 724 where the ports differ.
    pub(crate) same_port: bool,
    /// Says that it maps, and does not.
    pub(crate) lies: bool,
    /// The longest lease that it keeps, whatever was asked.
    pub(crate) longest: u32,
    pub(crate) began: Instant,
    /// It always says that it has just begun.
    pub(crate) never_counts: bool,
    pub(crate) entries: BTreeMap<(String, u16), Entry>,
    /// The actions that were called, with their external port.
    pub(crate) calls: Vec<String>,
}

impl IgdModel {
    pub(crate) fn new(external: &'static str) -> Self {
        Self {
            external,
            version: 2,
            refuses: BTreeMap::new(),
            says: None,
            only_permanent: false,
            overwrites: false,
            never_renews: false,
            same_port: false,
            lies: false,
            longest: u32::MAX,
            began: Instant::default(),
            never_counts: false,
            entries: BTreeMap::new(),
            calls: Vec::new(),
        }
    }

    /// Its description, with this service.
    pub(crate) fn description(version: u8) -> String {
        format!(
            "<root><device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><serviceList><service>\
             <serviceType>urn:schemas-upnp-org:service:WANIPConnection:{version}</serviceType>\
             <controlURL>/control</controlURL></service></serviceList></device></root>"
        )
    }

    pub(crate) fn maps(&mut self, protocol: &str, external: u16, internal: (Ipv4Addr, u16)) {
        let entry = Entry { internal, description: String::new(), ends: None };
        self.entries.insert((protocol.to_owned(), external), entry);
    }

    pub(crate) fn ports(&self) -> Vec<u16> {
        self.entries.keys().map(|(_, port)| *port).collect()
    }

    /// It starts anew, and has forgotten everything.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.began = now;
        self.entries.clear();
    }

    /// The calls since the last time.
    pub(crate) fn take_calls(&mut self) -> Vec<String> {
        std::mem::take(&mut self.calls)
    }

    pub(crate) fn answer(&mut self, now: Instant, from: Ipv4Addr, request: &HttpRequest) -> HttpOutcome {
        let action = request.action.as_deref();
        let Some(action) = action else {
            return HttpOutcome::Answer { status: 200, body: Self::description(self.version).into_bytes() };
        };
        let decoded = soap::decode(Service::WanIpConnection, Face::V2, Some(action), request.body.as_bytes());
        let Ok(soap::Request::Call(call)) = decoded else { panic!("{action}: {decoded:?}") };
        let port = call.number("NewExternalPort");
        let name = call.action.name;
        self.calls.push(if port == 0 { name.to_owned() } else { format!("{name} {port}") });
        if let Some(said) = &self.says {
            return said.clone();
        }
        self.entries.retain(|_, entry| entry.ends.is_none_or(|ends| ends > now));
        let told = match self.refuses.get(name) {
            Some(error) => Err(*error),
            None => self.act(now, from, &call),
        };
        match told {
            Ok(values) => HttpOutcome::Answer { status: 200, body: call.response(&values).into_bytes() },
            Err(error) => HttpOutcome::Answer { status: 500, body: soap::fault(error).into_bytes() },
        }
    }

    fn act(&mut self, now: Instant, from: Ipv4Addr, call: &Call) -> Result<Vec<Value>, UpnpError> {
        let port = u16::try_from(call.number("NewExternalPort")).expect("it was read as one");
        let key = (call.text("NewProtocol").to_owned(), port);
        match call.action.name {
            "GetExternalIPAddress" => Ok(vec![self.external.into()]),
            "GetStatusInfo" => {
                let uptime = u32::try_from((now - self.began).as_secs()).expect("it fits");
                let uptime = if self.never_counts { 0 } else { uptime };
                Ok(vec!["Connected".into(), "ERROR_NONE".into(), uptime.into()])
            }
            "GetSpecificPortMappingEntry" => {
                let entry = self.entries.get(&key).ok_or(UpnpError::NO_SUCH_ENTRY)?;
                let left = entry.ends.map_or(0, |ends| ends.secs_left(now));
                let (client, port) = entry.internal;
                Ok(vec![
                    port.into(),
                    client.to_string().into(),
                    true.into(),
                    entry.description.clone().into(),
                    left.into(),
                ])
            }
            "AddPortMapping" => {
                let other = self.entries.get(&key).is_some_and(|entry| entry.internal.0 != from);
                let there = self.entries.contains_key(&key);
                if other && !self.overwrites || there && self.never_renews {
                    return Err(UpnpError::CONFLICT);
                }
                self.add(now, from, key, call)?;
                Ok(Vec::new())
            }
            "AddAnyPortMapping" => {
                let mut key = key;
                while self.entries.get(&key).is_some_and(|entry| entry.internal.0 != from) {
                    key.1 += 1;
                }
                self.add(now, from, key.clone(), call)?;
                Ok(vec![key.1.into()])
            }
            "DeletePortMapping" => {
                self.entries.remove(&key).map(|_| Vec::new()).ok_or(UpnpError::NO_SUCH_ENTRY)
            }
            other => panic!("{other} is not called"),
        }
    }

    fn add(
        &mut self,
        now: Instant,
        from: Ipv4Addr,
        key: (String, u16),
        call: &Call,
    ) -> Result<(), UpnpError> {
        let lease = call.number("NewLeaseDuration");
        let internal_port = u16::try_from(call.number("NewInternalPort")).expect("it was read as one");
        assert_eq!(call.text("NewInternalClient"), from.to_string());
        assert_eq!(call.text("NewRemoteHost"), "");
        if self.only_permanent && lease != 0 {
            return Err(UpnpError::ONLY_PERMANENT_LEASES);
        }
        if self.same_port && key.1 != internal_port {
            return Err(UpnpError::SAME_PORT_REQUIRED);
        }
        if !self.lies {
            let kept = lease.min(self.longest);
            let ends = (lease != 0).then(|| now + crate::time::Duration::from_secs(kept.into()));
            let description = call.text("NewPortMappingDescription").to_owned();
            self.entries.insert(key, Entry { internal: (from, internal_port), description, ends });
        }
        Ok(())
    }
}
