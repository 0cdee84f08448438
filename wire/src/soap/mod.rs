//! SOAP 1.1 as UPnP control uses it: requests in, answers and faults out (UDA §3).
//!
//! The server half is here; [`encode_call`] and [`decode_answer`] are the other one. Nothing here decides
//! whether a request is allowed; values are checked against their types only, and what real control points
//! leave out is filled in (Q-11 to Q-14, K-8).

mod client;

pub use client::{Answer, AnswerError, decode_answer, decode_answer_to, encode_call};

use crate::error::UpnpError;
use crate::services::{
    Action, Argument, DataType, Face, PORT_LISTING, Service, Value, Variable, service_type,
};
use crate::xml::{Document, Element, cdata_into, element_into};

/// How many elements a request may have; the longest of ours has eleven.
const MAX_ELEMENTS: usize = 256;
/// Longest text that is kept of a request, in octets (K-13).
pub const MAX_TEXT: usize = 1024;

/// The namespace of `QueryStateVariable` and of error details.
const CONTROL_NAMESPACE: &str = "urn:schemas-upnp-org:control-1-0";
const QUERY: &str = "QueryStateVariable";

/// A control request that makes sense.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Request {
    /// An action is called.
    Call(Call),
    /// `QueryStateVariable`, which is deprecated and alive (C-8, K-9). The answer is [`query_response`].
    Query {
        /// The service at the URL.
        service: Service,
        /// Any of its state variables, `A_ARG_TYPE_…` included.
        variable: &'static Variable,
    },
}

/// An action call, every in argument typed and present.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Call {
    /// The service at the URL.
    pub service: Service,
    /// The service type that the control point spoke, without version: the service's own name or
    /// `WANPPPConnection`. The answer echoes it.
    pub type_name: &'static str,
    /// The version that the control point spoke. It governs the answer's namespace and which errors it may be
    /// told (decision 10); it says nothing about which actions it may call (K-8).
    pub version: u8,
    /// What is called.
    pub action: &'static Action,
    arguments: Vec<Given>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Given {
    name: &'static str,
    value: Value,
    /// Whether the request had it, or a default fills in.
    sent: bool,
}

/// Why there is no request to act on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SoapError {
    /// HTTP 400: not well-formed, no SOAP, no SOAPACTION.
    BadRequest,
    /// HTTP 500 with [`fault`].
    Upnp(UpnpError),
}

impl From<UpnpError> for SoapError {
    fn from(error: UpnpError) -> Self {
        Self::Upnp(error)
    }
}

impl Call {
    /// A text argument; "" if the action has none of that name.
    #[must_use]
    pub fn text(&self, name: &str) -> &str {
        match self.value(name) {
            Some(Value::Text(text)) => text,
            _ => "",
        }
    }

    /// A number argument; 0 if the action has none of that name.
    #[must_use]
    pub fn number(&self, name: &str) -> u32 {
        match self.value(name) {
            Some(Value::Number(number)) => *number,
            _ => 0,
        }
    }

    /// A boolean argument; `false` if the action has none of that name.
    #[must_use]
    pub fn boolean(&self, name: &str) -> bool {
        matches!(self.value(name), Some(Value::Boolean(true)))
    }

    /// Whether the request itself had the argument, rather than a default standing in.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.arguments.iter().any(|given| given.name == name && given.sent)
    }

    /// The service type as spoken.
    #[must_use]
    pub fn service_type(&self) -> String {
        service_type(self.type_name, self.version)
    }

    /// The answer's body (C-2): `values` are the out arguments, all of them, in the order of the table.
    #[must_use]
    pub fn response(&self, values: &[Value]) -> String {
        let outputs = self.action.outputs;
        debug_assert_eq!(outputs.len(), values.len(), "{} has other out arguments", self.action.name);
        let name = format!("{}Response", self.action.name);
        let mut arguments = String::new();
        for (output, value) in outputs.iter().zip(values) {
            if output.variable == PORT_LISTING {
                // miniupnpc finds the listing in a CDATA section only (igd.md 4).
                arguments.push_str(&format!("<{}>", output.name));
                cdata_into(&mut arguments, &value.to_string());
                arguments.push_str(&format!("</{}>", output.name));
            } else {
                element_into(&mut arguments, output.name, &value.to_string());
            }
        }
        envelope(&body_element(&name, &self.service_type(), &arguments))
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.arguments.iter().find(|given| given.name == name).map(|given| &given.value)
    }
}

/// Reads a control request that came to the control URL of a service on one of the faces.
///
/// The action is found by its name alone, on either face and in either version (K-8); SOAPACTION must name
/// the action of the body and a type of the service at the URL. Namespaces in the body are not looked at: the
/// header has said it all, and control points get them wrong.
///
/// # Errors
/// [`SoapError::BadRequest`] for no or an empty SOAPACTION and for what is no well-formed SOAP; 401 for another
/// service, a version we do not know, an unknown action, or header and body in disagreement; 402 for missing,
/// doubled, and ill-typed arguments; 404 for an unknown state variable; 601 for numbers too large for their
/// type and for protocols other than TCP and UDP; 605 for a text too long to be a name or an address.
pub fn decode(
    service_at_url: Service,
    face: Face,
    soapaction: Option<&str>,
    body: &[u8],
) -> Result<Request, SoapError> {
    let header = soapaction.map(unquote).filter(|value| !value.is_empty()).ok_or(SoapError::BadRequest)?;
    // Descriptions come in any encoding (K-13): what is no UTF-8 is replaced, never refused.
    let body = String::from_utf8_lossy(body);
    let document = Document::parse(body.as_bytes(), MAX_ELEMENTS).map_err(|_| SoapError::BadRequest)?;
    let element = only_body_element(&document).ok_or(SoapError::BadRequest)?;
    let (spoken, name) = header.rsplit_once('#').ok_or(UpnpError::INVALID_ACTION)?;
    if element.name() != name {
        return Err(UpnpError::INVALID_ACTION.into());
    }
    let of_service = service_at_url.spoken(spoken);
    if name == QUERY && (spoken == CONTROL_NAMESPACE || of_service.is_some()) {
        return query(service_at_url, face, element);
    }
    let (type_name, version) = of_service.ok_or(UpnpError::INVALID_ACTION)?;
    let action = service_at_url.action_as(type_name, name).ok_or(UpnpError::INVALID_ACTION)?;
    let mut arguments = Vec::with_capacity(action.inputs.len());
    for input in action.inputs {
        arguments.push(argument(service_at_url, input, element)?);
    }
    Ok(Request::Call(Call { service: service_at_url, type_name, version, action, arguments }))
}

fn query(service: Service, face: Face, element: Element<'_, '_>) -> Result<Request, SoapError> {
    let name = element.child("varName").ok_or(UpnpError::INVALID_ARGS)?.text().trim();
    let version = service.version(face);
    let described = service.variable(name).filter(|variable| variable.since <= version);
    let of_ppp = || service.ppp_variables().iter().find(|variable| variable.name == name);
    let variable = described.or_else(of_ppp);
    Ok(Request::Query { service, variable: variable.ok_or(UpnpError::INVALID_VAR)? })
}

/// SOAPACTION comes quoted, as it should, or bare.
fn unquote(value: &str) -> &str {
    let value = value.trim();
    value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value).trim()
}

/// The one element in the Body of the Envelope, by local names.
fn only_body_element<'d, 'a>(document: &'d Document<'a>) -> Option<Element<'d, 'a>> {
    let root = document.root();
    let mut bodies = root.children().filter(|child| child.name() == "Body");
    let (body, second) = (bodies.next()?, bodies.next());
    let mut elements = body.children();
    let (element, other) = (elements.next()?, elements.next());
    (root.name() == "Envelope" && second.is_none() && other.is_none()).then_some(element)
}

fn argument(service: Service, input: &Argument, call: Element<'_, '_>) -> Result<Given, UpnpError> {
    let mut found = call.children().filter(|child| child.name() == input.name);
    let element = found.next();
    // A value inside an element of its own would be read as none at all, and a filter that was sent would vanish.
    let nested = element.is_some_and(|element| element.children().next().is_some());
    if found.next().is_some() || nested {
        return Err(UpnpError::INVALID_ARGS);
    }
    let name = input.name;
    let text = element.map_or("", |element| element.text());
    if let Some(value) = default_of(name).filter(|_| text.trim_ascii().is_empty()) {
        return Ok(Given { name, value, sent: element.is_some() });
    }
    if element.is_none() {
        return Err(UpnpError::INVALID_ARGS);
    }
    let data_type = service.variable(input.variable).map_or(DataType::String, |variable| variable.data_type);
    let value = match (name, data_type) {
        ("NewLeaseDuration" | "LeaseTime" | "NewLeaseTime", _) => Value::Number(lease(text)),
        ("NewProtocol", _) if text.trim_ascii().is_empty() && call.name() == "DeletePortMapping" => {
            return Err(UpnpError::INVALID_ARGS); // K-15
        }
        ("NewProtocol", _) => Value::Text(protocol(text)?.to_owned()),
        // Behind the last entry like any other index.
        ("NewPortMappingIndex", _) => Value::Number(number(text, u32::MAX).or_else(|error| match error {
            UpnpError::VALUE_OUT_OF_RANGE => Ok(u32::MAX),
            error => Err(error),
        })?),
        ("NewPortMappingDescription", _) => Value::Text(description(text)),
        (_, DataType::String) => Value::Text(name_or_address(text)?),
        (_, DataType::Ui2) => Value::Number(number(text, u16::MAX.into())?),
        (_, DataType::Ui4) => Value::Number(number(text, u32::MAX)?),
        (_, DataType::Boolean) => Value::Boolean(boolean(text)?),
    };
    Ok(Given { name, value, sent: true })
}

/// What an absent or blank argument means, where we tolerate it.
fn default_of(name: &str) -> Option<Value> {
    match name {
        "NewRemoteHost" | "RemoteHost" | "NewPortMappingDescription" => Some(Value::Text(String::new())),
        "NewEnabled" => Some(Value::Boolean(true)),
        "NewLeaseDuration" | "LeaseTime" | "NewLeaseTime" | "RemotePort" => Some(Value::Number(0)),
        "NewManage" => Some(Value::Boolean(false)),
        _ => None,
    }
}

/// Decimal digits only; blanks around them and leading zeros are fine.
fn number(text: &str, maximum: u32) -> Result<u32, UpnpError> {
    let digits = text.trim_ascii();
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(UpnpError::INVALID_ARGS);
    }
    // All digits: what fails to parse is too large.
    digits.parse().ok().filter(|number| *number <= maximum).ok_or(UpnpError::VALUE_OUT_OF_RANGE)
}

/// A lease is never refused, because control points understand 402 as "no leases here": one too large
/// is cut, and one that is no number, such as -1, is taken as 0, the lease of those who have none in mind.
fn lease(text: &str) -> u32 {
    number(text, u32::MAX)
        .unwrap_or_else(|error| if error == UpnpError::VALUE_OUT_OF_RANGE { u32::MAX } else { 0 })
}

///
fn protocol(text: &str) -> Result<&'static str, UpnpError> {
    match text.trim_ascii() {
        tcp if tcp.eq_ignore_ascii_case("TCP") => Ok("TCP"),
        udp if udp.eq_ignore_ascii_case("UDP") => Ok("UDP"),
        _ => Err(UpnpError::VALUE_OUT_OF_RANGE),
    }
}

///
fn boolean(text: &str) -> Result<bool, UpnpError> {
    let text = text.trim_ascii();
    let is_one_of = |words: [&str; 3]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    if is_one_of(["1", "true", "yes"]) {
        Ok(true)
    } else if is_one_of(["0", "false", "no"]) {
        Ok(false)
    } else {
        Err(UpnpError::INVALID_ARGS)
    }
}

/// A description comes back as it was sent, but for control characters and length (K-13).
fn description(text: &str) -> String {
    without_controls(&text[..text.floor_char_boundary(MAX_TEXT)])
}

fn name_or_address(text: &str) -> Result<String, UpnpError> {
    let text = text.trim_ascii();
    if text.len() > MAX_TEXT { Err(UpnpError::STRING_TOO_LONG) } else { Ok(without_controls(text)) }
}

fn without_controls(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

/// The body of a fault, HTTP 500 (C-3).
#[must_use]
pub fn fault(error: UpnpError) -> String {
    let mut detail = String::new();
    element_into(&mut detail, "errorCode", &error.code.to_string());
    element_into(&mut detail, "errorDescription", error.description);
    envelope(&format!(
        "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>\
         <UPnPError xmlns=\"{CONTROL_NAMESPACE}\">{detail}</UPnPError></detail></s:Fault>"
    ))
}

/// The body of the answer to [`Request::Query`].
#[must_use]
pub fn query_response(value: &Value) -> String {
    let mut argument = String::new();
    element_into(&mut argument, "return", &value.to_string());
    envelope(&body_element("QueryStateVariableResponse", CONTROL_NAMESPACE, &argument))
}

fn body_element(name: &str, namespace: &str, arguments: &str) -> String {
    format!("<u:{name} xmlns:u=\"{}\">{arguments}</u:{name}>", crate::xml::escape(namespace))
}

fn envelope(body: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>{body}</s:Body></s:Envelope>"
    )
}

#[cfg(test)]
mod tests;
