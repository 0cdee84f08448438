//! LAN hosts of a [`World`]: what they ask by SOAP and SSDP, and what they hear.

use std::net::{IpAddr, SocketAddr, SocketAddrV4};

use engine::gateway::{ControlRequest, Event, RequestId};
use engine::time::Instant;
use wire::services::{Face, Service};
use wire::soap::{self, Answer, AnswerError, SoapError};
use wire::ssdp;

use super::{Happening, LAN_INDEX, World};

/// The answer to a control request.
#[derive(Clone, Debug)]
pub struct Reply {
    /// When it was asked.
    pub asked_at: Instant,
    /// When it was answered.
    pub at: Instant,
    /// The out arguments, or the error code; 400 for what is no SOAP, 0 for an answer that cannot be read.
    pub answer: Result<Answer, u16>,
}

/// What a LAN host heard in answer to a search.
#[derive(Clone, Debug)]
pub struct Heard {
    /// When.
    pub at: Instant,
    /// The host.
    pub to: SocketAddr,
    /// What.
    pub message: ssdp::Message,
}

impl World {
    pub(super) fn on_reply(&mut self, id: RequestId, answer: Result<String, wire::error::UpnpError>) {
        let Some((asked_at, who)) = self.asked.remove(&id) else {
            return self
                .violation(format!("an answer to {id:?}, which is answered already or was never asked"));
        };
        let text = answer.unwrap_or_else(soap::fault);
        let answer = soap::decode_answer(text.as_bytes()).map_err(|error| match error {
            AnswerError::Fault { code, .. } => code,
            AnswerError::Malformed => 0,
        });
        if answer == Err(0) {
            self.violation(format!("an answer that cannot be read: {text}"));
        }
        let line = match &answer {
            Ok(answer) => {
                let values: Vec<String> =
                    answer.values.iter().map(|(name, value)| format!(" {name}={value:?}")).collect();
                format!("{who}: ok{}", values.concat())
            }
            Err(code) => format!("{who}: error {code}"),
        };
        self.note(line);
        self.replies.insert(id, Reply { asked_at, at: self.now, answer });
        self.happenings.push(Happening::Answered(id));
    }

    pub(super) fn new_request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    /// What came of a request, so far.
    #[must_use]
    pub fn reply(&self, id: RequestId) -> Option<&Reply> {
        self.replies.get(&id)
    }

    /// Requests that are not answered yet, and since when.
    pub fn unanswered(&self) -> impl Iterator<Item = (RequestId, Instant)> {
        self.asked.iter().map(|(&id, &(asked_at, _))| (id, asked_at))
    }

    /// A control point calls an action of `service`, speaking `version` of it.
    pub fn call(
        &mut self,
        from: impl Into<IpAddr>,
        service: Service,
        version: u8,
        action: &str,
        args: &[(&str, &str)],
    ) -> RequestId {
        let from = from.into();
        let id = self.new_request();
        let service_type = service.service_type(version);
        let body = soap::encode_call(&service_type, action, args);
        let header = format!("\"{service_type}#{action}\"");
        let face = if version < 2 { Face::V1 } else { Face::V2 };
        self.asked.insert(id, (self.now, from.to_string()));
        match soap::decode(service, face, Some(&header), body.as_bytes()) {
            Ok(request) => {
                self.handle(Event::Control(ControlRequest { id, from, also: Vec::new(), face, request }));
            }
            Err(SoapError::Upnp(error)) => self.on_reply(id, Err(error)),
            Err(SoapError::BadRequest) => {
                self.asked.remove(&id);
                self.replies.insert(id, Reply { asked_at: self.now, at: self.now, answer: Err(400) });
            }
        }
        id
    }

    /// A control point searches; the answers come to [`World::heard`].
    pub fn search(&mut self, from: SocketAddrV4, target: &ssdp::Target, mx: u8) {
        let text = ssdp::search(ssdp::HOST_V4, target, Some(mx));
        self.note(format!("{from} searches for {target}"));
        let from = SocketAddr::V4(from);
        self.handle(Event::Ssdp { interface: LAN_INDEX, local: None, from, bytes: text.as_bytes() });
    }
}
