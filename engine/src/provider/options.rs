//! What the options of a MAP or PEER request ask.

use wire::pcp::{self, Filter, PcpOption, PortSet, Prefix64, Request};

use super::Server;
use super::admission::Client;
use super::config::{Description, MAX_DESCRIPTION, PreferFailure};
use super::interface::Inside;
use super::reason::{Reason, Refused};

/// The options of a MAP request, read.
#[derive(Clone, Debug)]
pub(super) struct MapOptions {
    pub(super) inside: Inside,
    pub(super) strict: bool,
    pub(super) filters: Vec<Filter>,
    /// An empty one erases.
    pub(super) description: Option<String>,
    pub(super) port_set: Option<PortSet>,
    /// Whether the answer shall tell of the NAT64.
    pub(super) prefix64: bool,
    /// As the answer repeats them; PORT_SET and PREFIX64 are not among them.
    pub(super) processed: Vec<PcpOption>,
}

impl Server {
    /// In the order of their appearance (RFC 6887 §7.3).
    pub(super) fn map_options(&self, client: &Client, request: &Request) -> Result<MapOptions, Refused> {
        let mut asked = MapOptions {
            inside: client.host(),
            strict: false,
            filters: Vec::new(),
            description: None,
            port_set: None,
            prefix64: false,
            processed: Vec::new(),
        };
        for option in &request.options {
            match option {
                PcpOption::ThirdParty(addr) => asked.inside = self.third_party(client, *addr)?,
                PcpOption::PreferFailure => match self.config.prefer_failure {
                    PreferFailure::Honoured => asked.strict = true,
                    PreferFailure::PassedOver => {}
                    PreferFailure::Unsupported => return Err(Reason::UnsupportedOption.into()),
                },
                PcpOption::Filter(filter) => asked.filters.push(*filter),
                PcpOption::Description(octets) => {
                    let Some(text) = self.description(octets)?.filter(|_| request.lifetime != 0) else {
                        continue;
                    };
                    asked.processed.push(PcpOption::Description(text.clone().into()));
                    asked.description = Some(text);
                    continue;
                }
                PcpOption::PortSet(set) if self.config.port_set > 1 => {
                    asked.port_set = Some(*set);
                    continue;
                }
                PcpOption::Prefix64(prefix) => {
                    asked.prefix64 = self.wants_prefixes(prefix)?;
                    continue;
                }
                other if other.code().is_mandatory() => return Err(Reason::UnsupportedOption.into()),
                _ => continue,
            }
            asked.processed.push(option.clone());
        }
        // O-8: an answer has to have room for what it is asked for.
        if asked.prefix64 && self.prefixes(self.room(request, &asked).unwrap_or(0)).is_empty() {
            return Err(Reason::MalformedRequest.into());
        }
        Ok(asked)
    }

    /// Octets that are left for prefixes in the answer, a PORT_SET counted, for who asks for one port of a set is told of all; `None`
    /// if that is too long already.
    pub(super) fn room(&self, request: &Request, asked: &MapOptions) -> Option<usize> {
        let mut options = asked.processed.clone();
        let any = PortSet { size: 1, first_internal_port: 1, parity: false };
        options.push(PcpOption::PortSet(any));
        let answer = Request { options, ..request.clone() };
        pcp::MAX_LEN.checked_sub(answer.to_bytes().len())
    }

    /// Whether PREFIX64 is to be answered. In a request it is `::/96`, without a list (RFC 7225 §4).
    pub(super) fn wants_prefixes(&self, asked: &Prefix64) -> Result<bool, Refused> {
        if self.config.prefix64.is_empty() {
            return Ok(false);
        }
        if asked.prefix != [0; 12] || !asked.ipv4_prefixes.is_empty() {
            return Err(Reason::MalformedOption.into());
        }
        Ok(true)
    }

    /// What is kept of a description; `None` if it is passed over (RFC 7220).
    fn description(&self, octets: &[u8]) -> Result<Option<String>, Refused> {
        match self.config.description {
            Description::Ignored => return Ok(None),
            Description::Malformed if !octets.len().is_multiple_of(4) => {
                return Err(Reason::MalformedOption.into());
            }
            Description::Stored | Description::Malformed => {}
        }
        Ok(std::str::from_utf8(octets).ok().map(|text| {
            let end = text.floor_char_boundary(MAX_DESCRIPTION);
            text.get(..end).unwrap_or_default().to_owned()
        }))
    }
}

/// FILTERs accumulate; one of prefix length 0 drops those before it (RFC 6887 §13.3).
pub(super) fn add_filter(mut filters: Vec<Filter>, filter: Filter) -> Vec<Filter> {
    if filter.prefix_len == 0 {
        filters.clear();
    } else if !filters.contains(&filter) {
        filters.push(filter);
    }
    filters
}
