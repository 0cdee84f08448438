//! GET and NEXT, the server's half; what they mean, and to whom a nonce is told, is written in [`wire::pcp::query`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::ops::Bound;

use wire::codec::Wire;
use wire::pcp::{
    self, Body, GetData, HEADER_LEN, MAX_LEN, NextMapping, Nonce, PcpOption, Protocol, Request, Response,
    ResultCode,
};

use super::{Internal, MAX_DESCRIPTION, MAX_FILTERS, Provider, ProviderMapping, Refused};
use crate::time::Instant;

// The longest answer with one mapping: GET's data, THIRD_PARTY, and a NEXT with all its FILTERs and its DESCRIPTION. So
// one always fits, and no list comes to a halt.
const _: () = assert!(HEADER_LEN + 40 + 20 + 60 + MAX_FILTERS * 24 + 4 + MAX_DESCRIPTION <= MAX_LEN);

impl Provider {
    pub(super) fn get(
        &self,
        now: Instant,
        from: IpAddr,
        filters: GetData,
        request: &Request,
    ) -> Result<Response, Refused> {
        let (mut host, mut seen, mut processed) = (None, None, Vec::new());
        for option in &request.options {
            match option {
                PcpOption::ThirdParty(addr) => {
                    host = Some(self.third_party(from, *addr)?);
                    processed.push(option.clone());
                }
                PcpOption::Next(_) if seen.is_some() => return Err(ResultCode::MALFORMED_OPTION.into()),
                PcpOption::Next(next) => seen = Some(next.key()),
                other if other.code().is_mandatory() => return Err(ResultCode::UNSUPP_OPTION.into()),
                _ => {}
            }
        }
        let mut wanted =
            self.behind(from, host, seen).filter(|mapping| self.selects(&filters, mapping)).peekable();
        if wanted.peek().is_none() {
            return Err(ResultCode::NON_EXIST_MAPPING.into());
        }
        let mut answer = self.response(now, ResultCode::SUCCESS, 0, Body::Get(filters), processed);
        let mut octets = answer.to_bytes();
        while let Some(mapping) = wanted.next() {
            let next = PcpOption::Next(self.listed(now, from, mapping, wanted.peek().is_some()));
            next.encode(&mut octets);
            if octets.len() > MAX_LEN {
                break; // The one before has said that there are more.
            }
            answer.options.push(next);
        }
        Ok(answer)
    }

    /// The mappings that `from` may see, in the order of the list: its own or those of one host, and only those behind
    /// `seen`.
    fn behind(
        &self,
        from: IpAddr,
        host: Option<IpAddr>,
        seen: Option<Internal>,
    ) -> impl Iterator<Item = &ProviderMapping> {
        let (all, first) = match host {
            None => (self.by_subscriber.get(&from), None),
            Some(host) => (Some(&self.by_internal), Some(pcp::ip_to_wire(host))),
        };
        let lower = match (seen, first) {
            (Some(seen), None) => Bound::Excluded(seen),
            (Some(seen), Some(host)) if seen.0 >= host => Bound::Excluded(seen),
            (_, Some(host)) => Bound::Included((host, Protocol::ALL, 0)),
            (None, None) => Bound::Unbounded,
        };
        all.into_iter()
            .flat_map(move |all| all.range((lower, Bound::Unbounded)))
            .take_while(move |((addr, ..), _)| first.is_none_or(|host| *addr == host))
            .map(|(_, port)| &self.mappings[port])
    }

    fn selects(&self, filters: &GetData, mapping: &ProviderMapping) -> bool {
        let addr = |wanted: Ipv6Addr, addr: Ipv4Addr| {
            let wanted = pcp::ip_from_wire(wanted);
            wanted.is_unspecified() || wanted == IpAddr::V4(addr)
        };
        let port = |wanted: u16, port: u16| wanted == 0 || wanted == port;
        let external = self.external(mapping);
        (filters.protocol == Protocol::ALL || filters.protocol == mapping.protocol)
            && addr(filters.internal_addr, *mapping.internal.ip())
            && addr(filters.external_addr, *external.ip())
            && port(filters.internal_port, mapping.internal.port())
            && port(filters.external_port, external.port())
    }

    fn listed(&self, now: Instant, from: IpAddr, mapping: &ProviderMapping, more: bool) -> NextMapping {
        let external = self.external(mapping);
        let filters = mapping.filters.iter().copied().map(PcpOption::Filter);
        let description = mapping.description.iter().map(|text| PcpOption::Description(text.clone().into()));
        NextMapping {
            nonce: if mapping.subscriber == from { mapping.nonce } else { Nonce::default() },
            protocol: mapping.protocol,
            more,
            internal_addr: mapping.internal.ip().to_ipv6_mapped(),
            external_addr: external.ip().to_ipv6_mapped(),
            lifetime: mapping.ends.secs_left(now),
            internal_port: mapping.internal.port(),
            external_port: external.port(),
            options: filters.chain(description).collect(),
        }
    }

    /// What a renewal would be answered now: the external address may have been changed since the mapping was made.
    fn external(&self, mapping: &ProviderMapping) -> SocketAddrV4 {
        SocketAddrV4::new(self.config.external, mapping.external.port())
    }
}
