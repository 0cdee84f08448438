//! Messages as JSON, documented in docs/pcp-json.md. Numbers of a registry come with their names, unknown ones too.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use serde_json::{Map, Value, json};
use wire::pcp::{
    AuthData, Body, GetData, MapData, NextMapping, PcpOption, PeerData, Protocol, Request, Response,
    ip_from_wire,
};
use wire::{codec::Wire, natpmp, pcp};

use super::hex;
use super::message::{Answer, Question};
use super::outcome::{Code, Grant};

/// A question, decoded.
pub(super) fn question(question: &Question) -> Value {
    match question {
        Question::Pcp(request) => pcp_request(request),
        Question::NatPmp(request) => nat_pmp_request(request),
    }
}

/// The protocol that an answer is in.
pub(super) fn protocol(answer: &Answer) -> &'static str {
    match answer {
        Answer::NatPmp(_) => "NAT-PMP",
        Answer::Version(refusal) if refusal.version == natpmp::VERSION => "NAT-PMP",
        Answer::Pcp(_) | Answer::Version(_) => "PCP",
    }
}

/// An answer, decoded, and its octets.
pub(super) fn answer(answer: &Answer, bytes: &[u8]) -> Value {
    match answer {
        Answer::Pcp(response) => pcp_response(response),
        Answer::Version(refusal) => json!({
            "protocol": protocol(answer),
            "kind": "response",
            // It repeats the question's, in whatever version.
            "opcode": bytes.get(1).map(|opcode| {
                let opcode = pcp::Opcode(opcode & 0x7f);
                numbered(opcode.0, opcode.name())
            }),
            "result": code(Code::Pcp(pcp::ResultCode::UNSUPP_VERSION)),
            "version": refusal.version,
            "lifetime": refusal.lifetime,
            "epoch": refusal.epoch,
        }),
        Answer::NatPmp(response) => nat_pmp_response(response),
    }
}

/// A result code of either protocol.
pub(super) fn code(code: Code) -> Value {
    numbered(code.number(), code.name())
}

/// A mapping that stands.
pub(super) fn grant(grant: &Grant) -> Value {
    json!({
        "transport": transport(grant.protocol),
        "internal": endpoint(grant.internal.ip(), grant.internal.port()),
        "external": json!({ "address": grant.external_addr, "port": grant.external_port }),
        "remote_peer": grant.peer.map(|peer| endpoint(peer.ip(), peer.port())),
        "lifetime": grant.lifetime,
        "nonce": grant.nonce.map(|nonce| nonce.to_string()),
    })
}

/// A mapping of GET's list.
pub(super) fn next(next: &NextMapping) -> Value {
    json!({
        "transport": transport(next.protocol),
        "internal": wire_endpoint(next.internal_addr, next.internal_port),
        "external": wire_endpoint(next.external_addr, next.external_port),
        "lifetime": next.lifetime,
        "nonce": next.nonce.to_string(),
        "more": next.more,
        "options": options(&next.options),
    })
}

/// All options, in their order.
pub(super) fn options(options: &[PcpOption]) -> Value {
    options.iter().map(option).collect()
}

fn pcp_request(request: &Request) -> Value {
    let mut all = message("PCP", "request", &request.body, &request.options);
    all.insert("lifetime".into(), json!(request.lifetime));
    all.insert("client_address".into(), json!(ip_from_wire(request.client_addr)));
    Value::Object(all)
}

fn pcp_response(response: &Response) -> Value {
    let mut all = message("PCP", "response", &response.body, &response.options);
    all.insert("result".into(), code(Code::Pcp(response.result)));
    all.insert("lifetime".into(), json!(response.lifetime));
    all.insert("epoch".into(), json!(response.epoch));
    Value::Object(all)
}

fn message(protocol: &str, kind: &str, body: &Body, options: &[PcpOption]) -> Map<String, Value> {
    let opcode = body.opcode();
    let mut all = Map::new();
    all.insert("protocol".into(), json!(protocol));
    all.insert("kind".into(), json!(kind));
    all.insert("opcode".into(), numbered(opcode.0, opcode.name()));
    match body {
        Body::Announce => {}
        Body::Map(map) => insert_mapping(&mut all, *map),
        Body::Peer(peer) => {
            let PeerData { nonce, protocol, internal_port, external_port, external_addr, .. } = *peer;
            insert_mapping(
                &mut all,
                MapData { nonce, protocol, internal_port, external_port, external_addr },
            );
            all.insert("remote_peer".into(), wire_endpoint(peer.remote_addr, peer.remote_port));
        }
        Body::Get(filters) => {
            let GetData { protocol, internal_addr, external_addr, internal_port, external_port } = *filters;
            all.insert("transport".into(), transport(protocol));
            all.insert("internal".into(), wire_endpoint(internal_addr, internal_port));
            all.insert("external".into(), wire_endpoint(external_addr, external_port));
        }
        Body::Authentication(AuthData { session, sequence, .. }) => {
            all.insert("session".into(), json!(session));
            all.insert("sequence".into(), json!(sequence));
        }
        Body::Other(_, octets) => {
            all.insert("data".into(), json!(hex::plain(octets)));
        }
    }
    all.insert("options".into(), self::options(options));
    all
}

fn insert_mapping(all: &mut Map<String, Value>, map: MapData) {
    all.insert("nonce".into(), json!(map.nonce.to_string()));
    all.insert("transport".into(), transport(map.protocol));
    all.insert("internal_port".into(), json!(map.internal_port));
    all.insert("external".into(), wire_endpoint(map.external_addr, map.external_port));
}

/// Code, name and data of every option; and what the data mean, where that is known.
fn option(option: &PcpOption) -> Value {
    let mut octets = Vec::new();
    option.encode(&mut octets);
    let length = octets.get(2..4).map_or(0, |len| len.iter().fold(0, |n, o| n << 8 | usize::from(*o)));
    let data = octets.get(4..4 + length).unwrap_or_default();
    let code = option.code();
    let mut all = Map::new();
    all.insert("code".into(), json!(code.0));
    all.insert("name".into(), json!(code.name()));
    all.insert("data".into(), json!(hex::plain(data)));
    match option {
        PcpOption::ThirdParty(addr) => {
            all.insert("address".into(), json!(ip_from_wire(*addr)));
        }
        PcpOption::Filter(filter) => {
            all.insert("filter".into(), json!(filter.to_string()));
        }
        PcpOption::Description(text) => {
            all.insert("text".into(), json!(String::from_utf8_lossy(text)));
        }
        PcpOption::PortSet(set) => {
            all.insert("size".into(), json!(set.size));
            all.insert("first_internal_port".into(), json!(set.first_internal_port));
            all.insert("parity".into(), json!(set.parity));
        }
        PcpOption::Prefix64(_) => {
            let text = option.to_string();
            all.insert("prefix".into(), json!(text.split_once(' ').map(|(_, prefix)| prefix)));
        }
        PcpOption::Next(next) => {
            all.insert("mapping".into(), self::next(next));
        }
        _ => {}
    }
    Value::Object(all)
}

fn nat_pmp_request(request: &natpmp::Request) -> Value {
    match *request {
        natpmp::Request::ExternalAddress => {
            json!({ "protocol": "NAT-PMP", "kind": "request", "opcode": numbered(0_u8, Some("external address")) })
        }
        natpmp::Request::Map { protocol, internal_port, external_port, lifetime } => json!({
            "protocol": "NAT-PMP",
            "kind": "request",
            "opcode": map_opcode(protocol),
            "transport": transport(protocol.into()),
            "internal_port": internal_port,
            "external": { "address": null, "port": external_port },
            "lifetime": lifetime,
        }),
    }
}

fn nat_pmp_response(response: &natpmp::Response) -> Value {
    let mut all = Map::new();
    all.insert("protocol".into(), json!("NAT-PMP"));
    all.insert("kind".into(), json!("response"));
    all.insert("result".into(), code(Code::NatPmp(response.result())));
    all.insert("epoch".into(), json!(response.epoch()));
    match response {
        natpmp::Response::ExternalAddress { addr, .. } => {
            all.insert("opcode".into(), numbered(0_u8, Some("external address")));
            all.insert("external".into(), json!({ "address": addr, "port": null }));
        }
        natpmp::Response::Map { protocol, internal_port, external_port, lifetime, .. } => {
            all.insert("opcode".into(), map_opcode(*protocol));
            all.insert("transport".into(), transport((*protocol).into()));
            all.insert("internal_port".into(), json!(internal_port));
            all.insert("external".into(), json!({ "address": null, "port": external_port }));
            all.insert("lifetime".into(), json!(lifetime));
        }
        natpmp::Response::UnsupportedVersion { opcode, .. } => {
            all.insert("opcode".into(), numbered(*opcode & 0x7f, None));
        }
        natpmp::Response::UnsupportedOpcode { opcode, rest } => {
            all.insert("opcode".into(), numbered(*opcode, None));
            all.insert("data".into(), json!(hex::plain(rest)));
        }
    }
    Value::Object(all)
}

fn map_opcode(protocol: natpmp::Transport) -> Value {
    match protocol {
        natpmp::Transport::Udp => numbered(1_u8, Some("map UDP")),
        natpmp::Transport::Tcp => numbered(2_u8, Some("map TCP")),
    }
}

fn transport(protocol: Protocol) -> Value {
    numbered(protocol.0, protocol.name())
}

fn numbered(number: impl Into<u16>, name: Option<&str>) -> Value {
    json!({ "number": number.into(), "name": name })
}

fn wire_endpoint(addr: Ipv6Addr, port: u16) -> Value {
    endpoint(ip_from_wire(addr), port)
}

fn endpoint(address: IpAddr, port: u16) -> Value {
    json!({ "address": address, "port": port })
}

/// `100.64.0.1:5351`
pub(super) fn peer(addr: SocketAddr) -> Value {
    json!(addr.to_string())
}
