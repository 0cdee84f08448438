//! GET and NEXT, the server's half; what they mean, and to whom a nonce is told, is written in [`wire::pcp::query`].
//!
//! Mappings of PEER are in no list: those of one internal port have one key, and NEXT has no place for a remote endpoint.

use std::net::{IpAddr, Ipv6Addr};
use std::ops::Bound;

use wire::codec::Wire;
use wire::pcp::{
    self, Body, GetData, HEADER_LEN, MAX_LEN, NextMapping, PcpOption, PortSet, Protocol, Request, Response,
    ResultCode,
};

use super::admission::{Client, Served, is_b4};
use super::config::{MAX_DESCRIPTION, MAX_FILTERS};
use super::interface::Inside;
use super::journal::MappingKey;
use super::reason::{Kind, Reason, Refused};
use super::table::ServerMapping;
use super::Server;
use crate::time::Instant;

// The longest answer with one mapping: GET's data, THIRD_PARTY, and a NEXT with all its FILTERs, its DESCRIPTION and its
// PORT_SET. So one always fits, and no list comes to a halt.
const _: () = assert!(HEADER_LEN + 40 + 20 + 60 + MAX_FILTERS * 24 + 4 + MAX_DESCRIPTION + 12 <= MAX_LEN);

impl Server {
    pub(super) fn get(
        &mut self,
        now: Instant,
        client: &Client,
        filters: GetData,
        request: &Request,
    ) -> Result<Served, Refused> {
        let (mut host, mut seen, mut processed) = (None, None, Vec::new());
        for option in &request.options {
            match option {
                PcpOption::ThirdParty(addr) => {
                    host = Some(self.third_party(client, *addr)?);
                    processed.push(option.clone());
                }
                PcpOption::Next(_) if seen.is_some() => return Err(Reason::MalformedOption.into()),
                PcpOption::Next(next) => seen = Some(next.key()),
                other if other.code().is_mandatory() => return Err(Reason::UnsupportedOption.into()),
                _ => {}
            }
        }
        let (result, epoch) = (ResultCode::SUCCESS, self.epoch(now));
        let mut answer = Response { result, lifetime: 0, epoch, body: Body::Get(filters), options: processed };
        let mut octets = answer.to_bytes();
        let mut wanted =
            self.behind(client, host, seen).filter(|mapping| selects(&filters, mapping)).peekable();
        if wanted.peek().is_none() {
            drop(wanted);
            return Err(Reason::NothingToList.into());
        }
        while let Some(mapping) = wanted.next() {
            let next = PcpOption::Next(listed(now, client, mapping, wanted.peek().is_some()));
            next.encode(&mut octets);
            if octets.len() > MAX_LEN {
                break; // The one before has said that there are more.
            }
            answer.options.push(next);
        }
        drop(wanted);
        self.counters.grant(Kind::Get);
        Ok(Served::Answer(answer.to_bytes()))
    }

    /// The mappings that the client may see, in the order of the list: its own or those of one host, and only those behind
    /// `seen`.
    fn behind(
        &self,
        client: &Client,
        host: Option<Inside>,
        seen: Option<(Ipv6Addr, Protocol, u16)>,
    ) -> impl Iterator<Item = &ServerMapping> {
        // A B4 that talks outside of its softwire lists its IPv4 hosts, which are behind it.
        let softwire = |addr: Ipv6Addr| match (client.requester.softwire, client.requester.addr) {
            (Some(b4), _) => Some(b4),
            (None, IpAddr::V6(b4)) if addr.to_ipv4_mapped().is_some() && is_b4(&self.config, b4) => Some(b4),
            (None, _) => None,
        };
        let place = seen.map(|(addr, protocol, port)| {
            let softwire = host.map_or_else(|| softwire(addr), |host| host.softwire);
            MappingKey { addr, softwire, protocol, peer: None, port }
        });
        let made = host.is_none().then(|| {
            self.table.made_by(client.requester, place.map_or(Bound::Unbounded, Bound::Excluded))
        });
        let of_host = host.map(|host| {
            let first = MappingKey::new(host, Protocol::ALL, 0, None);
            let lower = match place {
                Some(place) if place > first => Bound::Excluded(place),
                _ => Bound::Included(first),
            };
            let all = self.table.from((lower, Bound::Unbounded));
            all.take_while(move |mapping| mapping.inside == host).filter(|mapping| mapping.peer.is_none())
        });
        let all = made.into_iter().flatten().chain(of_host.into_iter().flatten());
        all.filter(|mapping| mapping.is_open())
    }
}

fn selects(filters: &GetData, mapping: &ServerMapping) -> bool {
    let addr = |wanted: Ipv6Addr, addr: IpAddr| {
        let wanted = pcp::ip_from_wire(wanted);
        wanted.is_unspecified() || wanted == addr
    };
    let port = |wanted: u16, port: u16| wanted == 0 || wanted == port;
    (filters.protocol == Protocol::ALL || filters.protocol == mapping.protocol)
        && addr(filters.internal_addr, mapping.inside.addr)
        && addr(filters.external_addr, mapping.external.ip())
        && port(filters.internal_port, mapping.internal_port)
        && port(filters.external_port, mapping.external.port())
}

fn listed(now: Instant, client: &Client, mapping: &ServerMapping, more: bool) -> NextMapping {
    let filters = mapping.filters.iter().copied().map(PcpOption::Filter);
    let description = mapping.description.iter().map(|text| PcpOption::Description(text.clone().into()));
    let set = (mapping.ports > 1).then_some(PcpOption::PortSet(PortSet {
        size: mapping.ports,
        first_internal_port: mapping.internal_port,
        parity: false,
    }));
    NextMapping {
        nonce: mapping.nonce.filter(|_| mapping.requester == client.requester).unwrap_or_default(),
        protocol: mapping.protocol,
        more,
        internal_addr: pcp::ip_to_wire(mapping.inside.addr),
        external_addr: pcp::ip_to_wire(mapping.external.ip()),
        lifetime: mapping.ends.secs_left(now),
        internal_port: mapping.internal_port,
        external_port: mapping.external.port(),
        options: filters.chain(description).chain(set).collect(),
    }
}
