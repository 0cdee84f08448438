//! Exchanges of HTTP, which somebody else carries out: one request, one answer, bounded in time and size, no redirect followed.

use std::net::SocketAddrV4;

use wire::foreign::{Call, Url};

use crate::time::Duration;

/// An answer is never read beyond so many octets; a longer one has failed.
pub const MAX_HTTP_BODY: usize = 64 * 1024;
/// How long one exchange may take, from the connection to the last octet.
const WITHIN: Duration = Duration::from_secs(8);
/// So long after that, an exchange whose outcome nobody told has failed, too.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// Which exchange; no two have the same.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct HttpId(pub u64);

/// A request: GET without an action, else POST.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HttpRequest {
    /// To be named in the outcome.
    pub id: HttpId,
    /// Whom to connect to, which is HOST, too.
    pub to: SocketAddrV4,
    /// Path and query, beginning with a slash; printable ASCII.
    pub path: String,
    /// SOAPACTION, without its quotes.
    pub action: Option<String>,
    /// What is posted.
    pub body: String,
    /// The exchange has failed after this time.
    pub within: Duration,
}

impl HttpRequest {
    /// Fetches a document.
    pub(super) fn fetch(id: HttpId, url: &Url) -> Self {
        let path = url.path.clone();
        Self { id, to: url.at, path, action: None, body: String::new(), within: WITHIN }
    }

    /// Calls an action of the service of this type that is controlled there.
    pub(super) fn call(id: HttpId, control: &Url, service_type: &str, call: &Call<'_>) -> Self {
        let (body, action) = call.encode(service_type);
        let (to, path) = (control.at, control.path.clone());
        Self { id, to, path, action: Some(action), body, within: WITHIN }
    }
}

/// What became of an exchange.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HttpOutcome {
    /// An answer, whatever it says.
    Answer {
        /// The status code.
        status: u16,
        /// At most [`MAX_HTTP_BODY`] octets.
        body: Vec<u8>,
    },
    /// No connection, no answer in time, too much of it, or none of HTTP.
    Failed,
}
