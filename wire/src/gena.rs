//! GENA: subscriptions and the events that go out to subscribers (UDA §4).
//!
//! The callback of a subscription is an address that strangers choose (CVE-2020-12695): it is read as a literal
//! address or not at all. Whether it is the subscriber's own is for the caller to check.

use std::fmt::{self, Display, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::codec::Malformed;
use crate::description::Uuid;
use crate::xml::{Document, element_into};

/// The namespace of events.
const NAMESPACE: &str = "urn:schemas-upnp-org:event-1-0";
/// The shortest and the usual subscription (E-2).
pub const MIN_TIMEOUT: Duration = Duration::from_secs(1800);
/// The longest subscription (E-2).
pub const MAX_TIMEOUT: Duration = Duration::from_secs(86_400);
/// How many callbacks of one subscription are kept.
pub const MAX_CALLBACKS: usize = 4;
/// The longest path of a callback, in octets.
const MAX_PATH: usize = 1024;
/// How many elements a foreign event may have.
const MAX_ELEMENTS: usize = 512;

/// Where events are delivered: `http://HOST:PORT/PATH`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct CallbackUrl {
    /// Always written as an address; an IPv4 one in IPv6 clothes comes as IPv4. A zone is dropped.
    pub host: IpAddr,
    /// 80 if the URL names none.
    pub port: u16,
    /// With query, starting with `/`.
    pub path: String,
}

impl CallbackUrl {
    /// Reads a URL; `None` if events cannot be sent there (E-10).
    #[must_use]
    pub fn parse(url: &str) -> Option<Self> {
        let scheme = url.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("http://"))?;
        let rest = &url[scheme.len()..];
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (host, port) = if let Some(inside) = authority.strip_prefix('[') {
            let (literal, port) = inside.split_once(']')?;
            let address = literal.split('%').next()?;
            (IpAddr::V6(address.parse::<Ipv6Addr>().ok()?).to_canonical(), port)
        } else {
            let (address, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            (IpAddr::V4(address.parse().ok()?), port)
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => 80,
            Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => digits.parse().ok()?,
            _ => return None,
        };
        let path = path.split('#').next()?;
        if port == 0 || path.len() > MAX_PATH || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        Some(Self { host, port, path: format!("{slash}{path}") })
    }
}

impl Display for CallbackUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", Authority(self), self.path)
    }
}

/// The HOST header of an event.
struct Authority<'a>(&'a CallbackUrl);

impl Display for Authority<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.host {
            IpAddr::V4(host) => write!(f, "{host}:{}", self.0.port),
            IpAddr::V6(host) => write!(f, "[{host}]:{}", self.0.port),
        }
    }
}

/// The usable URLs of a CALLBACK header, each in angle brackets, in their order.
#[must_use]
pub fn parse_callbacks(header: &str) -> Vec<CallbackUrl> {
    let urls = header.split('<').skip(1).filter_map(|part| part.split_once('>'));
    urls.filter_map(|(url, _)| CallbackUrl::parse(url.trim())).take(MAX_CALLBACKS).collect()
}

/// The timeout to grant for a TIMEOUT header: never `infinite`, and within bounds (E-2).
#[must_use]
pub fn parse_timeout(header: Option<&str>) -> Duration {
    let value = header.unwrap_or_default().trim();
    let digits =
        value.get(..7).filter(|word| word.eq_ignore_ascii_case("second-")).map(|word| &value[word.len()..]);
    let Some(digits) =
        digits.filter(|text| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit()))
    else {
        return MIN_TIMEOUT;
    };
    // All digits: what fails to parse is too large.
    digits.parse().map_or(MAX_TIMEOUT, Duration::from_secs).clamp(MIN_TIMEOUT, MAX_TIMEOUT)
}

/// A SUBSCRIBE request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Subscribe {
    /// A subscription begins.
    New {
        /// Where to send events, in the order to try; at least one.
        callbacks: Vec<CallbackUrl>,
        /// To be granted.
        timeout: Duration,
    },
    /// A subscription goes on.
    Renew {
        /// Which one.
        sid: Uuid,
        /// To be granted.
        timeout: Duration,
    },
}

/// Why a GENA request fails, as an HTTP status (E-1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GenaError {
    /// 400: headers that exclude each other.
    BadRequest,
    /// 412: a header missing or of no use, or no such subscription.
    PreconditionFailed,
}

impl GenaError {
    /// The HTTP status code.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::PreconditionFailed => 412,
        }
    }
}

impl Subscribe {
    /// Reads the headers of a SUBSCRIBE request.
    ///
    /// # Errors
    /// 400 for SID together with NT or CALLBACK; 412 for NT missing or other than `upnp:event`, for a
    /// CALLBACK that is missing or has no usable URL, and for a SID that is none of ours.
    pub fn parse(
        callback: Option<&str>,
        nt: Option<&str>,
        sid: Option<&str>,
        timeout: Option<&str>,
    ) -> Result<Self, GenaError> {
        let timeout = parse_timeout(timeout);
        if sid.is_some() {
            return Ok(Self::Renew { sid: parse_sid(callback, nt, sid)?, timeout });
        }
        if nt.map(str::trim) != Some("upnp:event") {
            return Err(GenaError::PreconditionFailed);
        }
        let callbacks = parse_callbacks(callback.unwrap_or_default());
        if callbacks.is_empty() {
            Err(GenaError::PreconditionFailed)
        } else {
            Ok(Self::New { callbacks, timeout })
        }
    }
}

/// Reads the headers of an UNSUBSCRIBE request: which subscription ends.
///
/// # Errors
/// 400 for SID together with NT or CALLBACK; 412 for a SID that is missing or none of ours.
pub fn parse_unsubscribe(
    callback: Option<&str>,
    nt: Option<&str>,
    sid: Option<&str>,
) -> Result<Uuid, GenaError> {
    parse_sid(callback, nt, sid)
}

fn parse_sid(callback: Option<&str>, nt: Option<&str>, sid: Option<&str>) -> Result<Uuid, GenaError> {
    let sid = sid.ok_or(GenaError::PreconditionFailed)?;
    if callback.is_some() || nt.is_some() {
        return Err(GenaError::BadRequest);
    }
    let uuid = sid.trim().strip_prefix("uuid:").and_then(|uuid| uuid.parse().ok());
    uuid.ok_or(GenaError::PreconditionFailed)
}

/// SEQ of the event after the one numbered `seq`: 0 is for the first of all only (E-5).
#[must_use]
pub fn next_seq(seq: u32) -> u32 {
    seq.checked_add(1).unwrap_or(1)
}

/// The body of an event: names and values of state variables.
///
/// Names must be XML names; values are escaped.
#[must_use]
pub fn property_set(properties: &[(&str, &dyn Display)]) -> String {
    let mut out = format!("<?xml version=\"1.0\"?><e:propertyset xmlns:e=\"{NAMESPACE}\">");
    for (name, value) in properties {
        out.push_str("<e:property>");
        element_into(&mut out, name, &value.to_string());
        out.push_str("</e:property>");
    }
    out.push_str("</e:propertyset>");
    out
}

/// Reads the body of an event.
///
/// # Errors
/// It is not well-formed, or no property set.
pub fn parse_property_set(body: &[u8]) -> Result<Vec<(String, String)>, Malformed> {
    let document = Document::parse(body, MAX_ELEMENTS)?;
    let root = document.root();
    if root.name() != "propertyset" {
        return Err(Malformed);
    }
    let properties = root.children().filter(|child| child.name() == "property");
    let variables = properties.flat_map(|property| property.children());
    Ok(variables.map(|variable| (variable.name().to_owned(), variable.text().to_owned())).collect())
}

/// A whole event request, head and body (E-7). The connection is for this one event.
#[must_use]
pub fn notify(callback: &CallbackUrl, sid: Uuid, seq: u32, body: &str) -> String {
    let mut out = format!("NOTIFY {} HTTP/1.1\r\nHOST: {}\r\n", callback.path, Authority(callback));
    out.push_str("CONTENT-TYPE: text/xml; charset=\"utf-8\"\r\nNT: upnp:event\r\nNTS: upnp:propchange\r\n");
    let _ = write!(out, "SID: uuid:{sid}\r\nSEQ: {seq}\r\nCONTENT-LENGTH: {}\r\n", body.len());
    out.push_str("CONNECTION: close\r\n\r\n");
    out.push_str(body);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::services::Value;

    const SID: &str = "uuid:00112233-4455-6677-8899-aabbccddeeff";

    fn url(host: &str, port: u16, path: &str) -> Option<CallbackUrl> {
        Some(CallbackUrl { host: host.parse().unwrap(), port, path: path.to_owned() })
    }

    /// E-10, K-10, security policy: addresses strict, nothing else.
    #[test]
    fn callback_urls() {
        for (text, expected) in [
            ("http://192.168.1.2:5000/event?x=1", url("192.168.1.2", 5000, "/event?x=1")),
            ("HTTP://192.168.1.2/", url("192.168.1.2", 80, "/")),
            ("http://192.168.1.2", url("192.168.1.2", 80, "/")),
            ("http://192.168.1.2:5000", url("192.168.1.2", 5000, "/")),
            ("http://192.168.1.2:5000?q", url("192.168.1.2", 5000, "/?q")),
            ("http://192.168.1.2:5000/a#b", url("192.168.1.2", 5000, "/a")),
            ("http://[2001:db8::1]:5000/a", url("2001:db8::1", 5000, "/a")),
            ("http://[fe80::1%25eth0]/a", url("fe80::1", 80, "/a")),
            ("http://[::ffff:192.168.1.2]/a", url("192.168.1.2", 80, "/a")),
            ("https://192.168.1.2/", None),
            ("ftp://192.168.1.2/", None),
            ("//192.168.1.2/", None),
            ("http://", None),
            ("http:///a", None),
            ("http://host.lan/", None),
            ("http://user@192.168.1.2/", None),
            ("http://user:pass@192.168.1.2/", None),
            ("http://192.168.1.2@203.0.113.1/", None),
            ("http://192.168.1.2:0/", None),
            ("http://192.168.1.2:/", None),
            ("http://192.168.1.2:65536/", None),
            ("http://192.168.1.2:+80/", None),
            ("http://192.168.1.2:80:80/", None),
            ("http://192.168.1/", None),
            ("http://0300.0250.1.2/", None),
            ("http://192.168.01.2/", None),
            ("http://3232235778/", None),
            ("http://0xc0a80102/", None),
            ("http://[192.168.1.2]/", None),
            ("http://[::1/", None),
            ("http://::1/", None),
            ("http://[::1]x/", None),
            ("http://192.168.1.2/a b", None),
            ("http://192.168.1.2/a\r\nX: y", None),
            ("http://192.168.1.2/\u{e4}", None),
        ] {
            assert_eq!(CallbackUrl::parse(text), expected, "{text}");
        }
        let long = format!("http://192.168.1.2/{}", "x".repeat(MAX_PATH));
        assert_eq!(CallbackUrl::parse(&long), None);
        assert_eq!(url("2001:db8::1", 5000, "/a").unwrap().to_string(), "http://[2001:db8::1]:5000/a");
    }

    #[test]
    fn callback_lists() {
        let ports = |header: &str| parse_callbacks(header).iter().map(|url| url.port).collect::<Vec<_>>();
        assert_eq!(ports("<http://10.0.0.1:1/>"), [1]);
        assert_eq!(ports(" <http://10.0.0.1:1/> <http://10.0.0.1:2/>"), [1, 2]);
        assert_eq!(ports("<http://10.0.0.1:1/><http://name:2/><http://10.0.0.1:3/>"), [1, 3]);
        assert_eq!(ports(&"<http://10.0.0.1:1/>".repeat(50)).len(), MAX_CALLBACKS);
        for none in ["", "http://10.0.0.1:1/", "<http://10.0.0.1:1/", "http://10.0.0.1:1/>", "<>", "<<>>"] {
            assert!(ports(none).is_empty(), "{none}");
        }
    }

    /// E-2, K-10.
    #[test]
    fn timeouts() {
        for (header, seconds) in [
            (None, 1800),
            (Some("Second-60"), 1800),
            (Some("Second-1800"), 1800),
            (Some("Second-1801"), 1801),
            (Some("second-3600"), 3600),
            (Some(" Second-3600 "), 3600),
            (Some("Second-86401"), 86_400),
            (Some("Second-99999999999999999999999"), 86_400),
            (Some("Second-infinite"), 1800),
            (Some("infinite"), 1800),
            (Some("Second--1"), 1800),
            (Some("Second-+9000"), 1800),
            (Some("Second-"), 1800),
            (Some("9000"), 1800),
            (Some("S\u{e9}cond-9000"), 1800),
            (Some(""), 1800),
        ] {
            assert_eq!(parse_timeout(header), Duration::from_secs(seconds), "{header:?}");
        }
    }

    /// The header table of uda.md 9 and E-1.
    #[test]
    fn subscriptions() {
        let (url, event) = (Some("<http://10.0.0.1:1/>"), Some("upnp:event"));
        let timeout = Duration::from_secs(1800);
        let new = Ok(Subscribe::New { callbacks: parse_callbacks("<http://10.0.0.1:1/>"), timeout });
        let sid: Uuid = SID[5..].parse().unwrap();
        let (bad, failed) = (Err(GenaError::BadRequest), Err(GenaError::PreconditionFailed));
        for (callback, nt, id, expected) in [
            (url, event, None, new),
            (None, None, Some(SID), Ok(Subscribe::Renew { sid, timeout })),
            (url, event, Some(SID), bad.clone()),
            (url, None, Some(SID), bad.clone()),
            (None, event, Some(SID), bad),
            (url, None, None, failed.clone()),
            (url, Some("upnp:evil"), None, failed.clone()),
            (None, event, None, failed.clone()),
            (Some("<http://a.b/>"), event, None, failed.clone()),
            (None, None, Some(""), failed.clone()),
            (None, None, Some("uuid:"), failed.clone()),
            (None, None, Some("uuid:0"), failed.clone()),
            (None, None, None, failed),
        ] {
            assert_eq!(Subscribe::parse(callback, nt, id, None), expected, "{callback:?} {nt:?} {id:?}");
        }
        assert_eq!(parse_unsubscribe(None, None, Some(SID)), Ok(sid));
        assert_eq!(parse_unsubscribe(None, event, Some(SID)), Err(GenaError::BadRequest));
        assert_eq!(parse_unsubscribe(None, None, None), Err(GenaError::PreconditionFailed));
        assert_eq!((GenaError::BadRequest.status(), GenaError::PreconditionFailed.status()), (400, 412));
    }

    /// The example body of uda.md 9.
    #[test]
    fn golden_event() {
        let golden = concat!(
            r#"<?xml version="1.0"?><e:propertyset xmlns:e="urn:schemas-upnp-org:event-1-0"><e:property>"#,
            "<ExternalIPAddress>198.51.100.7</ExternalIPAddress></e:property></e:propertyset>"
        );
        assert_eq!(golden.len(), 169);
        assert_eq!(property_set(&[("ExternalIPAddress", &Value::from("198.51.100.7"))]), golden);
        let read = parse_property_set(golden.as_bytes());
        assert_eq!(read, Ok(vec![("ExternalIPAddress".to_owned(), "198.51.100.7".to_owned())]));
        for refused in ["", "<a/>", "<propertyset>"] {
            assert_eq!(parse_property_set(refused.as_bytes()), Err(Malformed));
        }
    }

    /// E-5, E-7.
    #[test]
    fn events_as_we_send_them() {
        let callback = CallbackUrl::parse("http://[fe80::1]/cb").unwrap();
        assert_eq!(
            notify(&callback, SID[5..].parse().unwrap(), 7, "<a/>"),
            format!(
                "NOTIFY /cb HTTP/1.1\r\nHOST: [fe80::1]:80\r\nCONTENT-TYPE: text/xml; charset=\"utf-8\"\r\n\
                 NT: upnp:event\r\nNTS: upnp:propchange\r\nSID: {SID}\r\nSEQ: 7\r\nCONTENT-LENGTH: 4\r\n\
                 CONNECTION: close\r\n\r\n<a/>"
            )
        );
        assert_eq!((next_seq(0), next_seq(u32::MAX - 1), next_seq(u32::MAX)), (1, u32::MAX, 1));
    }

    proptest! {
        #[test]
        fn any_headers_are_survived(a in any::<Option<String>>(), b in any::<Option<String>>(), c in any::<Option<String>>()) {
            let _ = Subscribe::parse(a.as_deref(), Some("upnp:event"), None, b.as_deref());
            let _ = Subscribe::parse(None, None, a.as_deref(), c.as_deref());
            let _ = parse_unsubscribe(a.as_deref(), b.as_deref(), c.as_deref());
        }

        #[test]
        fn url_like_text_is_survived(text in "[<>htp:/\\[\\]0-9.@%#? ]{0,60}") {
            if let Some(url) = CallbackUrl::parse(&format!("http://{text}")) {
                prop_assert_eq!(CallbackUrl::parse(&url.to_string()), Some(url));
            }
            let _ = parse_callbacks(&text);
        }

        #[test]
        fn any_body_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_property_set(&bytes);
        }

        #[test]
        fn every_prefix_of_a_body_is_refused(value in "\\PC{0,40}", at in any::<prop::sample::Index>()) {
            let body = property_set(&[("A", &value), ("B", &1)]);
            let body = body.trim_end();
            prop_assert!(parse_property_set(&body.as_bytes()[..at.index(body.len())]).is_err());
        }

        #[test]
        fn printable_values_come_back(value in "\\PC{0,40}") {
            let body = property_set(&[("A", &value), ("B", &1)]);
            let expected = vec![("A".to_owned(), value), ("B".to_owned(), "1".to_owned())];
            prop_assert_eq!(parse_property_set(body.as_bytes()), Ok(expected));
        }
    }
}
