//! Fuzz targets: one function for each decoder, one for the gateway as a whole and one for the provider's server. Each takes any octets and panics
//! when a law is broken: nothing panics, nothing grows beyond what came in, and what was read can be written and read
//! again without a difference.
//!
//! `targets/` makes them programs for cargo-fuzz; `tests/` runs them on stable, briefly, with every `cargo test`.

mod daemon;
mod gateway;
mod inquiry;
mod policy;
mod server;

use std::fmt::Display;

use wire::description::{self, ParsedDevice};
use wire::pcp::{self, Body, Rejection, ResultCode};
use wire::services::{Face, Service};
use wire::soap::{self, AnswerError, SoapError};
use wire::{dhcp, foreign, gena, listing, natpmp, ssdp};

pub use daemon::{control_question, dhcp_hook, dhcp_offer, gateway_journal, http_head, server_journal};
pub use gateway::{gateway_events, isp_router_events};
pub use inquiry::dhcp_events;
pub use policy::{check_verdict, may_have, policy_rules};
pub use server::server_events;

/// A target: its name, which is that of its binary and of its corpus, and the function.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 25] = [
    ("pcp_request", pcp_request),
    ("pcp_response", pcp_response),
    ("pcp_version_refusal", pcp_version_refusal),
    ("natpmp_request", natpmp_request),
    ("natpmp_response", natpmp_response),
    ("dhcp_ack", dhcp_ack),
    ("dhcp_reply", dhcp_reply),
    ("ssdp", ssdp),
    ("soap_request", soap_request),
    ("soap_answer", soap_answer),
    ("description", description),
    ("listing", listing),
    ("gena_headers", gena_headers),
    ("gena_property_set", gena_property_set),
    ("policy_rules", policy_rules),
    ("dhcp_hook", dhcp_hook),
    ("dhcp_offer", dhcp_offer),
    ("control_question", control_question),
    ("http_head", http_head),
    ("gateway_journal", gateway_journal),
    ("server_journal", server_journal),
    ("dhcp_events", dhcp_events),
    ("isp_router_events", isp_router_events),
    ("gateway_events", gateway_events),
    ("server_events", server_events),
];

/// What is printed for people is bounded by what came in.
fn prints_within(value: &dyn Display, data: &[u8]) {
    assert!(value.to_string().len() <= 1000 + 20 * data.len());
}

/// `pcp::Request::parse`, and the answer to what it refuses.
pub fn pcp_request(data: &[u8]) {
    let header = pcp::RequestHeader::parse(data);
    match pcp::Request::parse(data) {
        Ok(request) => {
            prints_within(&request, data);
            assert!(data.len() <= pcp::MAX_LEN);
            let header = header.expect("a request has a header that can be read");
            assert_eq!((header.lifetime, header.client_addr), (request.lifetime, request.client_addr));
            assert_eq!(header.opcode, request.body.opcode());
            let bytes = request.to_bytes();
            assert!(bytes.len().is_multiple_of(4));
            // PREFIX64 may leave its list out, and is written with an empty one: the only thing that grows.
            if bytes.len() <= pcp::MAX_LEN {
                assert_eq!(pcp::Request::parse(&bytes).as_ref(), Ok(&request));
            } else {
                let grows = |option: &pcp::PcpOption| option.code() == pcp::OptionCode::PREFIX64;
                let grew = request.options.iter().any(|option| match option {
                    pcp::PcpOption::Next(next) => next.options.iter().any(grows),
                    option => grows(option),
                });
                assert!(grew, "{request:?}");
            }
        }
        Err(Rejection::Silence) => {}
        Err(Rejection::Answer(result)) => {
            assert_ne!(result, ResultCode::SUCCESS);
            let answer = pcp::error_response(data, result, result.recommended_lifetime(), 7);
            assert!(answer.len() <= pcp::MAX_LEN && answer.len() >= pcp::HEADER_LEN);
            assert!(answer.len() <= data.len().next_multiple_of(4).max(pcp::HEADER_LEN), "no amplifier");
            let response = pcp::Response::parse(&answer).expect("our own error response can be read");
            assert_eq!((response.result, response.epoch), (result, 7));
        }
    }
}

/// `pcp::Response::parse`.
pub fn pcp_response(data: &[u8]) {
    let Ok(response) = pcp::Response::parse(data) else { return };
    prints_within(&response, data);
    let bytes = response.to_bytes();
    assert!(bytes.len().is_multiple_of(4));
    if bytes.len() <= pcp::MAX_LEN {
        let again = pcp::Response::parse(&bytes).expect("what was read can be written and read again");
        // What of a refusal cannot be read comes as raw octets; it stays that, or is read at last.
        if !matches!(response.body, Body::Other(..)) {
            assert_eq!(again, response);
        }
    }
}

/// PCP servers of an offer.
fn are_bounded(servers: &[dhcp::ServerAddresses], data: &[u8]) {
    assert!(servers.len() <= dhcp::MAX_SERVERS && servers.len() <= data.len());
    for addresses in servers {
        assert!((1..=dhcp::MAX_ADDRESSES).contains(&addresses.len()));
        assert!(addresses.iter().all(|addr| dhcp::is_usable(*addr)));
    }
}

/// `dhcp::v4::Ack::parse`, and the option alone.
pub fn dhcp_ack(data: &[u8]) {
    if let Ok(servers) = dhcp::decode_option_158(data) {
        are_bounded(&servers, data);
        assert!(data.len() >= 5);
    }
    let Ok(ack) = dhcp::v4::Ack::parse(data) else { return };
    if let Some(value) = &ack.pcp_servers {
        assert!(value.len() < data.len());
        if let Ok(servers) = dhcp::decode_option_158(value) {
            are_bounded(&servers, value);
        }
    }
    assert_eq!(dhcp::v4::Ack::parse(&ack.to_bytes()), Ok(ack));
}

/// `dhcp::v6::Reply::parse`, and the option alone.
pub fn dhcp_reply(data: &[u8]) {
    if let Ok(addresses) = dhcp::decode_option_86(data) {
        assert!(data.len().is_multiple_of(16));
        are_bounded(&dhcp::bounded([addresses]), data);
    }
    let Ok(reply) = dhcp::v6::Reply::parse(data) else { return };
    assert!(reply.pcp_servers.iter().map(Vec::len).sum::<usize>() < data.len());
    assert_eq!(dhcp::v6::Reply::parse(&reply.to_bytes()), Ok(reply));
}

/// `pcp::version_refusal`.
pub fn pcp_version_refusal(data: &[u8]) {
    let Some(refusal) = pcp::version_refusal(data) else { return };
    assert_eq!(refusal.version, data[0]);
    if refusal.version != 0 {
        let answer = pcp::error_response(data, ResultCode::UNSUPP_VERSION, refusal.lifetime, 3);
        let again = pcp::version_refusal(&answer).expect("our own refusal is one");
        assert_eq!((again.version, again.lifetime, again.epoch), (pcp::VERSION, refusal.lifetime, Some(3)));
    }
}

/// `natpmp::Request::parse`, and the answer to what it refuses.
pub fn natpmp_request(data: &[u8]) {
    match natpmp::Request::parse(data) {
        Ok(request) => {
            prints_within(&request, data);
            let bytes = request.to_bytes();
            assert!(bytes.len() <= data.len());
            assert_eq!(natpmp::Request::parse(&bytes), Ok(request));
            let refused = request.refused(natpmp::ResultCode::NETWORK_FAILURE, 7);
            assert_eq!(natpmp::Response::parse(&refused.to_bytes()), Ok(refused));
        }
        Err(natpmp::Rejection::Silence) => {}
        Err(natpmp::Rejection::Answer(result)) => {
            let answer = natpmp::error_response(data, result, 7);
            assert!(answer.len() <= data.len().max(8), "no amplifier");
            let response = natpmp::Response::parse(&answer).expect("our own error response can be read");
            assert_eq!(response.result(), result);
        }
    }
}

/// `natpmp::Response::parse`.
pub fn natpmp_response(data: &[u8]) {
    let Ok(response) = natpmp::Response::parse(data) else { return };
    prints_within(&response, data);
    let bytes = response.to_bytes();
    assert!(bytes.len() <= data.len());
    assert_eq!(natpmp::Response::parse(&bytes), Ok(response));
}

/// `ssdp::parse`.
pub fn ssdp(data: &[u8]) {
    let Ok(message) = ssdp::parse(data) else { return };
    assert!(data.len() <= ssdp::MAX_DATAGRAM);
    let target = match &message {
        ssdp::Message::Search(search) => &search.target,
        ssdp::Message::Notify(notify) => &notify.nt,
        ssdp::Message::Response(response) => &response.st,
    };
    assert_eq!(&ssdp::Target::parse(&target.to_string()), target);
    // Control characters are written as blanks, so what holds any does not come back as it was.
    let usn = match &message {
        ssdp::Message::Search(_) => "",
        ssdp::Message::Notify(ssdp::Notify { usn, .. })
        | ssdp::Message::Response(ssdp::Response { usn, .. }) => usn,
    };
    if target.to_string().contains(char::is_control) || usn.contains(char::is_control) {
        return;
    }
    match &message {
        ssdp::Message::Search(search) => {
            assert!(search.mx.is_none_or(|mx| mx <= ssdp::MAX_MX));
            let host = search.host.clone().unwrap_or_default();
            let written = ssdp::search(&host, target, search.mx);
            let Ok(ssdp::Message::Search(again)) = ssdp::parse(written.as_bytes()) else {
                assert!(written.len() > ssdp::MAX_DATAGRAM, "{written}");
                return;
            };
            assert_eq!((again.target, again.mx), (search.target.clone(), search.mx));
        }
        ssdp::Message::Notify(_) | ssdp::Message::Response(_) => {
            let sender = ssdp::Sender {
                location: "http://192.168.1.1:5000/igd.xml",
                server: "a/1 UPnP/1.1 b/1",
                max_age: 1800,
                boot_id: 7,
                config_id: 9,
            };
            let written = ssdp::search_response(&sender, target, usn, None);
            let Ok(ssdp::Message::Response(again)) = ssdp::parse(written.as_bytes()) else {
                assert!(written.len() > ssdp::MAX_DATAGRAM, "{written}");
                return;
            };
            assert_eq!((&again.st, again.boot_id, again.max_age), (target, Some(7), Some(1800)));
            assert_eq!(again.location, sender.location);
        }
    }
}

/// `soap::decode`, for the service that the header names and the one that the length picks, and both faces. The first line of `data` is
/// SOAPACTION.
pub fn soap_request(data: &[u8]) {
    let (header, body) = data.split_at(data.iter().position(|&octet| octet == b'\n').unwrap_or(0));
    let header = String::from_utf8_lossy(header);
    let picked = Service::ALL[data.len() % Service::ALL.len()];
    let is_named = |service: Service| {
        let of_type = service.service_type(1);
        header.contains(of_type.trim_end_matches('1'))
    };
    for service in Service::ALL.into_iter().filter(|&service| service == picked || is_named(service)) {
        for face in Face::ALL {
            match soap::decode(service, face, Some(&header), body) {
                Ok(soap::Request::Call(call)) => {
                    assert_eq!(call.service, service);
                    check_call(service, face, &call);
                }
                Ok(soap::Request::Query { service: of, variable }) => {
                    assert_eq!(of, service);
                    assert!(variable.since <= service.version(face));
                }
                Err(SoapError::BadRequest) => {}
                Err(SoapError::Upnp(error)) => {
                    let answer = soap::decode_answer(soap::fault(error).as_bytes());
                    let description = error.description.to_owned();
                    assert_eq!(answer, Err(AnswerError::Fault { code: error.code, description }));
                }
            }
        }
    }
}

/// A call that was read can be written as a control point would, and read again.
fn check_call(service: Service, face: Face, call: &soap::Call) {
    let values: Vec<(&str, String)> = call
        .action
        .inputs
        .iter()
        .map(|input| {
            let text = call.text(input.name);
            assert!(text.len() <= soap::MAX_TEXT, "{}: {} octets", input.name, text.len());
            let data_type = service.variable(input.variable).expect("every argument has a type").data_type;
            let value = match data_type {
                wire::services::DataType::String => text.to_owned(),
                wire::services::DataType::Boolean => u8::from(call.boolean(input.name)).to_string(),
                _ => call.number(input.name).to_string(),
            };
            (input.name, value)
        })
        .collect();
    let args: Vec<(&str, &str)> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let body = soap::encode_call(&call.service_type(), call.action.name, &args);
    let header = format!("\"{}#{}\"", call.service_type(), call.action.name);
    let Ok(soap::Request::Call(again)) = soap::decode(service, face, Some(&header), body.as_bytes()) else {
        panic!("a call that was read is not read again: {body}");
    };
    for (name, value) in &args {
        // A control character at the edge has become a blank, which does not survive a second reading.
        let same = again.text(name).trim() == call.text(name).trim()
            && again.number(name) == call.number(name)
            && again.boolean(name) == call.boolean(name);
        assert!(same, "{name}={value:?} comes back as {:?}", again.text(name));
    }
}

/// `soap::decode_answer`.
pub fn soap_answer(data: &[u8]) {
    match soap::decode_answer(data) {
        Ok(answer) => {
            let held: usize = answer.values.iter().map(|(name, value)| name.len() + value.len()).sum();
            assert!(held <= data.len());
            for (name, value) in &answer.values {
                assert!(answer.value(name).is_some(), "{name}={value}");
            }
            // What a provider's router says, as it is read where it was asked.
            if let Ok(entry) = foreign::Entry::read(&answer) {
                assert!(entry.internal_port != 0 && !entry.internal_client.trim().is_empty());
            }
            assert!(!matches!(foreign::read_external(&answer), Ok(Some(addr)) if addr.is_unspecified()));
            assert!(foreign::read_reserved(&answer) != Ok(0));
            let _ = foreign::read_uptime(&answer);
        }
        Err(AnswerError::Fault { description, .. }) => assert!(description.len() <= data.len()),
        Err(AnswerError::Malformed) => {}
    }
}

/// `description::parse` and `foreign::connections`.
pub fn description(data: &[u8]) {
    let location = foreign::Url::parse("http://192.168.1.1:5000/a/desc.xml").expect("it is a URL");
    for connection in foreign::connections(&location, data).unwrap_or_default() {
        let control = connection.control;
        assert_eq!(control.at.ip(), location.at.ip());
        assert_eq!(foreign::Url::parse(&control.to_string()), Some(control));
    }
    let Ok(device) = description::parse(data) else { return };
    assert!(!device.device_type.is_empty());
    let ParsedDevice { url_base, udn, device_type, friendly_name, services } = &device;
    let mut held =
        url_base.as_ref().map_or(0, String::len) + udn.len() + device_type.len() + friendly_name.len();
    for service in services {
        held += service.service_type.len() + service.service_id.len() + service.scpd_url.len();
        held += service.control_url.len() + service.event_url.len();
    }
    assert!(held <= data.len());
}

/// `listing::decode`.
pub fn listing(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(entries) = listing::decode(text) else { return };
    let again = listing::decode(&listing::encode(&entries)).expect("our own listing can be read");
    assert_eq!(again.len(), entries.len());
    for (again, entry) in again.iter().zip(&entries) {
        let numbers = |e: &listing::ListingEntry| (e.external_port, e.internal_port, e.lease, e.enabled);
        assert_eq!(numbers(again), numbers(entry));
        assert_eq!(again.internal_client, entry.internal_client.trim());
    }
}

/// The headers of SUBSCRIBE and UNSUBSCRIBE: CALLBACK, NT, SID and TIMEOUT, a line each; an empty line is no header.
pub fn gena_headers(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.split('\n').map(|line| (!line.is_empty()).then_some(line));
    let mut next = || lines.next().flatten();
    let (callback, nt, sid, timeout) = (next(), next(), next(), next());
    for url in gena::parse_callbacks(callback.unwrap_or_default()) {
        assert_eq!(gena::CallbackUrl::parse(&url.to_string()).as_ref(), Some(&url));
        let event = gena::notify(&url, wire::description::Uuid([7; 16]), 1, "body");
        let head = event.split_once("\r\n\r\n").map(|(head, _)| head.lines().count());
        assert_eq!(head, Some(9), "a callback adds no line: {event:?}");
    }
    let bounds = gena::MIN_TIMEOUT..=gena::MAX_TIMEOUT;
    match gena::Subscribe::parse(callback, nt, sid, timeout) {
        Ok(gena::Subscribe::New { callbacks, timeout }) => {
            assert!((1..=gena::MAX_CALLBACKS).contains(&callbacks.len()) && bounds.contains(&timeout));
        }
        Ok(gena::Subscribe::Renew { sid: renewed, timeout }) => {
            assert_eq!(gena::parse_unsubscribe(None, None, sid), Ok(renewed));
            assert!(bounds.contains(&timeout));
        }
        Err(error) => assert!(matches!(error.status(), 400 | 412)),
    }
}

/// `gena::parse_property_set`.
pub fn gena_property_set(data: &[u8]) {
    let Ok(properties) = gena::parse_property_set(data) else { return };
    let held: usize = properties.iter().map(|(name, value)| name.len() + value.len()).sum();
    assert!(held <= data.len());
    let borrowed: Vec<(&str, &dyn Display)> =
        properties.iter().map(|(name, value)| (name.as_str(), value as &dyn Display)).collect();
    let again = gena::parse_property_set(gena::property_set(&borrowed).as_bytes());
    let names = |set: &[(String, String)]| set.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(again.map(|set| names(&set)), Ok(names(&properties)));
}
