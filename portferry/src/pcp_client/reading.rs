//! What an answer says about a mapping.

use std::net::{IpAddr, SocketAddr};

use wire::natpmp;
use wire::pcp::{self, Body, Response, ResultCode, ip_from_wire};

use super::message::Answer;
use super::outcome::{Code, Grant, Refusal};
use super::plan::{Job, third_party};

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
