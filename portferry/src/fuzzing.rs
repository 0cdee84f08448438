//! The readers of text and files that live in the daemon, each with what must hold of it whatever it reads: for the crate `fuzz`.
//! The daemon calls nothing of this.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use engine::dhcp::Version;
use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use wire::dhcp::{MAX_ADDRESSES, MAX_SERVERS, ServerAddresses, is_usable};

use crate::control::Question;
use crate::dhcp::{hook, offer};
use crate::journal_file::{Contents, Damage, Read, Stamp, encode, line, read};
use crate::{http, pcp_server, store};

/// When everything here is read.
const NOW: Stamp = Stamp { at: 1_800_000_000, boot: 7, up: 100_000 };

/// What a start of the gateway loads from a file with these lines, whose checksums are put before them.
pub fn gateway_journal(data: &[u8]) -> store::Loaded {
    store::load(data, NOW)
}

/// The same of a PCP server.
pub fn server_journal(data: &[u8]) -> pcp_server::store::Loaded {
    pcp_server::store::load(data, NOW, Duration::from_secs(120))
}

/// Reads `data` as it is, and with the right checksum before each line: what that says is written and read again without a difference.
pub(crate) fn journal<C: Contents>(data: &[u8]) -> Read<C> {
    let octets = |contents: &C| -> Vec<u8> {
        let lines = contents.lines();
        assert_eq!(lines.len(), contents.line_count());
        lines.iter().flat_map(|line| encode(line).expect("every line can be written")).collect()
    };
    let of_file = read::<C>(data);
    assert!(of_file.damage.count() <= of_file.number && of_file.contents.line_count() <= of_file.number);
    let lines = data.split(|&octet| octet == b'\n').filter(|line| !line.is_empty());
    let found = read::<C>(&lines.flat_map(line).collect::<Vec<u8>>()[..]);
    let written = octets(&found.contents);
    let again = read::<C>(&written[..]);
    assert_eq!(again.damage, Damage::default(), "{}", String::from_utf8_lossy(&written));
    assert_eq!(octets(&again.contents), written);
    found
}

/// What hooks of DHCP clients hand in. The first line is the client, what happened and the interface, with blanks in between; then come
/// variables of the environment, `name=value`.
pub fn dhcp_hook(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.lines();
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (client, happened) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let interface = words.next().unwrap_or_default();
    let variables: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once('=')).collect();
    let Some(heard) = hook::heard(client, happened, interface, &variables) else { return };
    assert!(!heard.interface.contains(['/', '\n', '\0']) && (1..16).contains(&heard.interface.len()));
    if let Some((version, servers)) = heard.offered {
        comes_back(&heard.interface, version, &servers);
    }
    let told: usize = heard.wrong.iter().map(String::len).sum();
    assert!(told <= 4 * data.len() + 400, "what is wrong is said in few words");
    assert!(!heard.wrong.iter().any(|words| words.contains(char::is_control)));
}

/// The file that a hook leaves.
pub fn dhcp_offer(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(servers) = offer::parse(text) {
        comes_back("wan0", Version::V4, &servers);
    }
}

fn comes_back(interface: &str, version: Version, servers: &[ServerAddresses]) {
    assert!(servers.len() <= MAX_SERVERS);
    for addresses in servers {
        assert!((1..=MAX_ADDRESSES).contains(&addresses.len()));
        assert!(addresses.iter().all(|addr| is_usable(*addr)));
    }
    let text = offer::to_text(interface, version, servers);
    assert_eq!(offer::parse(&text).as_deref(), Some(servers), "{text}");
}

/// A question at the control socket.
pub fn control_question(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(question) = Question::parse(text.trim()) {
        assert_eq!(Question::parse(&question.line()), Some(question));
    }
}

/// The guards against web pages: Host, Origin and Sec-Fetch-Site, a line each; an empty line is none. Nothing but our own literal address
/// passes.
pub fn http_head(data: &[u8]) {
    let own = SocketAddr::from(([192, 168, 1, 1], 5000));
    let mut headers = HeaderMap::new();
    let names = [HOST, ORIGIN, HeaderName::from_static("sec-fetch-site")];
    for (name, value) in names.into_iter().zip(data.split(|&octet| octet == b'\n')) {
        if let (false, Ok(value)) = (value.is_empty(), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    for version in [hyper::Version::HTTP_10, hyper::Version::HTTP_11] {
        if http::guard(&headers, version, own).is_err() {
            continue;
        }
        let host = headers.get(HOST).map(|host| host.to_str().expect("what passes is text"));
        assert!(host.is_some() || version == hyper::Version::HTTP_10);
        let origin = headers.get(ORIGIN).map(|origin| origin.to_str().expect("what passes is text"));
        let origin = origin.map(|origin| origin.strip_prefix("http://").expect("no other scheme passes"));
        for name in host.into_iter().chain(origin) {
            let name = name.trim().trim_end_matches(":5000");
            let literal = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
            let addr = literal.split('%').next().and_then(|addr| addr.parse::<IpAddr>().ok());
            assert_eq!(addr, Some(own.ip()), "{name:?} is not our address");
        }
    }
}
