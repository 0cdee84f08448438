//! What an answer says about a mapping, and whether that is what was asked for.

use std::net::{IpAddr, SocketAddr};

use wire::natpmp;
use wire::pcp::{self, Body, OptionCode, PcpOption, Response, ResultCode, ip_from_wire};

use super::message::Answer;
use super::outcome::{Code, Grant, Outcome, Refusal};
use super::parse::Suggestion;
use super::plan::{Job, Mapping, third_party};

/// A grant to `client`, or a refusal of anything that `job` asks; `None`: something else.
pub(super) fn read_answer(
    job: &Job,
    client: IpAddr,
    nat_pmp: bool,
    answer: &Answer,
) -> Option<Result<Grant, Refusal>> {
    let refused = |code, lifetime, version| Some(Err(Refusal { code, lifetime, version }));
    match answer {
        Answer::Version(refusal) => {
            let code = match nat_pmp {
                true => Code::NatPmp(natpmp::ResultCode::UNSUPPORTED_VERSION),
                false => Code::Pcp(ResultCode::UNSUPP_VERSION),
            };
            refused(code, refusal.lifetime, Some(refusal.version))
        }
        Answer::Pcp(response) if response.result != ResultCode::SUCCESS => {
            let nothing = response.result == ResultCode::NON_EXIST_MAPPING;
            if nothing && matches!(job, Job::Get { .. }) {
                return None; // the end of a list
            }
            refused(Code::Pcp(response.result), response.lifetime, None)
        }
        Answer::NatPmp(response) if response.result() != natpmp::ResultCode::SUCCESS => {
            refused(Code::NatPmp(response.result()), 0, None)
        }
        Answer::Pcp(response) => pcp_grant(job, client, response).map(Ok),
        Answer::NatPmp(natpmp::Response::Map {
            protocol, internal_port, external_port, lifetime, ..
        }) => Some(Ok(Grant {
            protocol: (*protocol).into(),
            internal: SocketAddr::new(client, *internal_port),
            external_addr: None,
            external_port: *external_port,
            peer: None,
            lifetime: *lifetime,
            nonce: None,
            options: Vec::new(),
        })),
        Answer::NatPmp(_) => None,
    }
}

fn pcp_grant(job: &Job, client: IpAddr, response: &Response) -> Option<Grant> {
    job.mapping()?;
    // Whose it is says the answer: a server that passed over THIRD_PARTY has granted it to who asked.
    let internal = third_party(&response.options).unwrap_or(client);
    let (map, peer) = match &response.body {
        Body::Map(map) => (*map, None),
        Body::Peer(peer) => {
            let pcp::PeerData { nonce, protocol, internal_port, external_port, external_addr, .. } = *peer;
            let remote = SocketAddr::new(ip_from_wire(peer.remote_addr), peer.remote_port);
            (pcp::MapData { nonce, protocol, internal_port, external_port, external_addr }, Some(remote))
        }
        _ => return None,
    };
    Some(Grant {
        protocol: map.protocol,
        internal: SocketAddr::new(internal, map.internal_port),
        external_addr: Some(ip_from_wire(map.external_addr)),
        external_port: map.external_port,
        peer,
        lifetime: response.lifetime,
        nonce: Some(map.nonce),
        options: response.options.clone(),
    })
}

/// O-6: what a success does not repeat was not processed; but see [`is_one_of_many`].
pub(super) fn not_processed(mapping: &Mapping, grant: &Grant) -> Vec<OptionCode> {
    let has = |code| grant.options.iter().any(|option| option.code() == code);
    let mut missing: Vec<_> =
        mapping.options.iter().map(PcpOption::code).filter(|code| !has(*code)).collect();
    missing.retain(|code| *code != OptionCode::PORT_SET);
    missing.dedup();
    missing
}

/// PORT_SET is absent where one port was granted (RFC 7753), be it that the server has no more or that it ignored the option.
pub(super) fn is_one_of_many(mapping: &Mapping, grant: &Grant) -> bool {
    let many = |option: &PcpOption| matches!(option, PcpOption::PortSet(set) if set.size > 1);
    let set = |option: &PcpOption| option.code() == OptionCode::PORT_SET;
    mapping.options.iter().any(many) && !grant.options.iter().any(set)
}

/// What a success has to repeat and does not: the third party (RFC 6887 §13.1), or what PREFER_FAILURE insists on (§13.2).
pub(super) fn amiss(mapping: &Mapping, grant: &Grant) -> Option<Outcome> {
    let got_addr = grant.internal.ip();
    if let Some(third) = mapping.third_party().filter(|third| *third != got_addr) {
        let (asked, got) = (third.to_string(), got_addr.to_string());
        return Some(Outcome::NotAsAsked { option: OptionCode::THIRD_PARTY, asked, got, left: None });
    }
    let Suggestion { addr, port } = mapping.suggestion;
    let other_addr =
        addr.filter(|addr| !addr.is_unspecified()).is_some_and(|a| Some(a) != grant.external_addr);
    let other = other_addr || port != grant.external_port;
    if mapping.lifetime == 0 || !mapping.prefers_failure() || !other {
        return None;
    }
    let name = |addr: Option<IpAddr>, port: u16| match addr {
        Some(addr) => SocketAddr::new(addr, port).to_string(),
        None => format!("port {port}"),
    };
    let (asked, got) = (name(addr, port), name(grant.external_addr, grant.external_port));
    Some(Outcome::NotAsAsked { option: OptionCode::PREFER_FAILURE, asked, got, left: None })
}
