//! The control point's half of SOAP: calls out, answers in.

use super::{body_element, envelope, only_body_element};
use crate::codec::Malformed;
use crate::xml::{Document, element_into};

/// How many elements an answer may have.
const MAX_ELEMENTS: usize = 256;

/// The out arguments of a call that succeeded.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Answer {
    /// Names and values in the order they came, references resolved, blanks kept.
    pub values: Vec<(String, String)>,
}

impl Answer {
    /// The first value of that name.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }
}

/// Why an answer has no values.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AnswerError {
    /// The gateway refuses.
    Fault {
        /// The UPnP error code.
        code: u16,
        /// What it says about it.
        description: String,
    },
    /// Not an answer that we understand.
    Malformed,
}

impl From<Malformed> for AnswerError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// The body of a call. `service_type` is the full `urn:…`, `args` are in the order of the specification; the
/// header that goes with it is `SOAPACTION: "service_type#action"`.
///
/// `action` and the names of the arguments must be XML names.
#[must_use]
pub fn encode_call(service_type: &str, action: &str, args: &[(&str, &str)]) -> String {
    let mut arguments = String::new();
    for (name, value) in args {
        element_into(&mut arguments, name, value);
    }
    envelope(&body_element(action, service_type, &arguments))
}

/// Reads the body of an answer or of a fault; which of the two it is does not depend on the HTTP status.
///
/// # Errors
/// The fault, or that this is neither.
pub fn decode_answer(body: &[u8]) -> Result<Answer, AnswerError> {
    decode(body, |name| name.ends_with("Response"))
}

/// Likewise the answer to this action: that to another one is none. Namespaces are not looked at, for gateways get them
/// wrong; what is no UTF-8 is replaced, and zeros behind the document are passed over.
///
/// # Errors
/// The fault, or that this is neither.
pub fn decode_answer_to(action: &str, body: &[u8]) -> Result<Answer, AnswerError> {
    let text = crate::foreign::text(body);
    decode(text.as_bytes(), |name| name.strip_suffix("Response") == Some(action))
}

fn decode(body: &[u8], is_answer: impl Fn(&str) -> bool) -> Result<Answer, AnswerError> {
    let document = Document::parse(body, MAX_ELEMENTS)?;
    let element = only_body_element(&document).ok_or(AnswerError::Malformed)?;
    if element.name() == "Fault" {
        let detail =
            |name| element.descendants().find(|inner| inner.name() == name).map(|inner| inner.text().trim());
        let code = detail("errorCode").and_then(|code| code.parse().ok()).ok_or(AnswerError::Malformed)?;
        let description = detail("errorDescription").unwrap_or_default().to_owned();
        return Err(AnswerError::Fault { code, description });
    }
    if !is_answer(element.name()) {
        return Err(AnswerError::Malformed);
    }
    let values = element.children().map(|value| (value.name().to_owned(), value.text().to_owned())).collect();
    Ok(Answer { values })
}
