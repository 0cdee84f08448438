//! SSDP: the datagrams by which a gateway and control points find each other (UDA §1).
//!
//! Reading is liberal in everything that real control points get wrong (K-4, S-1); it never decides whether
//! a message deserves an answer. [`advertisements`] and [`matches()`] say what there is to
//! announce and to answer.

use std::fmt::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::codec::Malformed;
use crate::description::Identity;
use crate::services::{Device, Face, device_type, service_type, split_device_type, split_service_type};

/// The port of all groups, and of unicast searches.
pub const PORT: u16 = 1900;
/// The IPv4 group.
pub const GROUP_V4: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
/// The link-local IPv6 group.
pub const GROUP_V6_LINK: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xc);
/// The site-local IPv6 group.
pub const GROUP_V6_SITE: Ipv6Addr = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 0xc);
/// HOST of what goes to [`GROUP_V4`].
pub const HOST_V4: &str = "239.255.255.250:1900";
/// HOST of what goes to [`GROUP_V6_LINK`].
pub const HOST_V6_LINK: &str = "[FF02::C]:1900";
/// HOST of what goes to [`GROUP_V6_SITE`].
pub const HOST_V6_SITE: &str = "[FF05::C]:1900";
/// A longer datagram is not read.
pub const MAX_DATAGRAM: usize = 2048;
/// What we send stays within this.
pub const MAX_SENT: usize = 512;
/// The longest wait that a control point may ask for, in seconds (S-2).
pub const MAX_MX: u8 = 5;

/// What NT and ST name.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Target {
    /// `ssdp:all`, in searches only.
    All,
    /// `upnp:rootdevice`.
    RootDevice,
    /// `uuid:…`, without the prefix and as it was written.
    Uuid(String),
    /// `urn:schemas-upnp-org:device:NAME:VERSION`.
    Device {
        /// Such as `WANDevice`.
        name: String,
        /// At least 1.
        version: u8,
    },
    /// `urn:schemas-upnp-org:service:NAME:VERSION`.
    Service {
        /// Such as `WANIPConnection`.
        name: String,
        /// At least 1.
        version: u8,
    },
    /// Something of other people's.
    Other(String),
}

impl Target {
    /// Reads an NT or ST value. Comparisons are exact and case-sensitive; a version is plain digits (S-5).
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "ssdp:all" => return Self::All,
            "upnp:rootdevice" => return Self::RootDevice,
            _ => {}
        }
        if let Some(uuid) = text.strip_prefix("uuid:") {
            Self::Uuid(uuid.to_owned())
        } else if let Some((name, version)) = split_device_type(text) {
            Self::Device { name: name.to_owned(), version }
        } else if let Some((name, version)) = split_service_type(text) {
            Self::Service { name: name.to_owned(), version }
        } else {
            Self::Other(text.to_owned())
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("ssdp:all"),
            Self::RootDevice => f.write_str("upnp:rootdevice"),
            Self::Uuid(uuid) => write!(f, "uuid:{uuid}"),
            Self::Device { name, version } => f.write_str(&device_type(name, *version)),
            Self::Service { name, version } => f.write_str(&service_type(name, *version)),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// A datagram that was understood.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Message {
    /// `M-SEARCH`.
    Search(Search),
    /// `NOTIFY`.
    Notify(Notify),
    /// The answer to a search.
    Response(Response),
}

/// A search.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Search {
    /// What is sought.
    pub target: Target,
    /// How many seconds the answers may be spread over, at most [`MAX_MX`]; garbage is 1 (S-2). Absent in
    /// unicast searches, and in multicast ones of careless control points.
    pub mx: Option<u8>,
    /// HOST, as it was written.
    pub host: Option<String>,
    /// USER-AGENT, as it was written.
    pub user_agent: Option<String>,
}

/// An announcement of somebody's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Notify {
    /// What is announced.
    pub nt: Target,
    /// What happens to it.
    pub nts: Nts,
    /// Which one it is.
    pub usn: String,
    /// Where its description is; not in a byebye.
    pub location: Option<String>,
    /// Seconds that the announcement holds.
    pub max_age: Option<u32>,
    /// Changes when the device restarts.
    pub boot_id: Option<u32>,
    /// What the device runs.
    pub server: Option<String>,
}

/// NTS: what a NOTIFY says of its subject.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Nts {
    /// `ssdp:alive`.
    Alive,
    /// `ssdp:byebye`.
    Byebye,
    /// `ssdp:update`.
    Update,
}

/// An answer to a search.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Response {
    /// What was sought.
    pub st: Target,
    /// Which one was found.
    pub usn: String,
    /// Where its description is.
    pub location: String,
    /// Seconds that this holds.
    pub max_age: Option<u32>,
    /// Changes when the device restarts.
    pub boot_id: Option<u32>,
    /// What the device runs.
    pub server: Option<String>,
}

/// Reads a datagram: header names in any case and order, blanks around the colon or none, bare line feeds, a
/// missing or doubled last empty line, MAN with or without quotes, any HTTP version. Of a doubled header the
/// first counts, lines that are no header are skipped.
///
/// # Errors
/// Longer than [`MAX_DATAGRAM`], not one of the three messages, or without a header that it makes no sense
/// without.
pub fn parse(datagram: &[u8]) -> Result<Message, Malformed> {
    if datagram.len() > MAX_DATAGRAM {
        return Err(Malformed);
    }
    let text = String::from_utf8_lossy(datagram);
    let (start, rest) = text.trim_start_matches(['\r', '\n']).split_once('\n').ok_or(Malformed)?;
    let headers = Headers { text: rest };
    let mut words = start.split_ascii_whitespace();
    match words.next().ok_or(Malformed)? {
        "M-SEARCH" if words.next() == Some("*") => headers.search().map(Message::Search),
        "NOTIFY" if words.next() == Some("*") => headers.notify().map(Message::Notify),
        version if version.starts_with("HTTP/1.") && words.next() == Some("200") => {
            headers.response().map(Message::Response)
        }
        _ => Err(Malformed),
    }
}

/// The lines after the first one.
struct Headers<'a> {
    text: &'a str,
}

impl<'a> Headers<'a> {
    /// The trimmed value of the first header of that name.
    fn value(&self, name: &str) -> Option<&'a str> {
        let lines = self.text.lines().take_while(|line| !line.trim_end().is_empty());
        lines
            .filter_map(|line| line.split_once(':'))
            .find_map(|(known, value)| known.trim().eq_ignore_ascii_case(name).then(|| value.trim()))
    }

    fn owned(&self, name: &str) -> Option<String> {
        self.value(name).map(str::to_owned)
    }

    fn required(&self, name: &str) -> Result<&'a str, Malformed> {
        self.value(name).filter(|value| !value.is_empty()).ok_or(Malformed)
    }

    fn number(&self, name: &str) -> Option<u32> {
        self.value(name).filter(|value| value.bytes().all(|digit| digit.is_ascii_digit()))?.parse().ok()
    }

    /// `max-age` out of CACHE-CONTROL; other directives are passed over.
    fn max_age(&self) -> Option<u32> {
        self.value("CACHE-CONTROL")?.split(',').find_map(|directive| {
            let (name, seconds) = directive.split_once('=')?;
            if name.trim().eq_ignore_ascii_case("max-age") { seconds.trim().parse().ok() } else { None }
        })
    }

    /// UDA 1.1's BOOTID, or what stands in for it in UDA 1.0.
    fn boot_id(&self) -> Option<u32> {
        self.number("BOOTID.UPNP.ORG").or_else(|| self.number("01-NLS"))
    }

    fn search(&self) -> Result<Search, Malformed> {
        if self.required("MAN")?.trim_matches(['"', '\'', ' ']) != "ssdp:discover" {
            return Err(Malformed);
        }
        let mx = self.value("MX").map(|value| {
            let digits = !value.is_empty() && value.bytes().all(|digit| digit.is_ascii_digit());
            // All digits: what fails to parse is too large.
            if digits { value.parse().unwrap_or(MAX_MX).min(MAX_MX) } else { 1 }
        });
        Ok(Search {
            target: Target::parse(self.required("ST")?),
            mx,
            host: self.owned("HOST"),
            user_agent: self.owned("USER-AGENT"),
        })
    }

    fn notify(&self) -> Result<Notify, Malformed> {
        let nts = match self.required("NTS")? {
            "ssdp:alive" => Nts::Alive,
            "ssdp:byebye" => Nts::Byebye,
            "ssdp:update" => Nts::Update,
            _ => return Err(Malformed),
        };
        Ok(Notify {
            nt: Target::parse(self.required("NT")?),
            nts,
            usn: self.required("USN")?.to_owned(),
            location: self.owned("LOCATION"),
            max_age: self.max_age(),
            boot_id: self.boot_id(),
            server: self.owned("SERVER"),
        })
    }

    fn response(&self) -> Result<Response, Malformed> {
        Ok(Response {
            st: Target::parse(self.required("ST")?),
            usn: self.required("USN")?.to_owned(),
            location: self.required("LOCATION")?.to_owned(),
            max_age: self.max_age(),
            boot_id: self.boot_id(),
            server: self.owned("SERVER"),
        })
    }
}

/// What is the same in all messages of a device on one interface.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sender<'a> {
    /// The description's URL, its host a literal address of the interface (K-5).
    pub location: &'a str,
    /// `OS/version UPnP/1.1 product/version`.
    pub server: &'a str,
    /// Seconds that announcements and answers hold; at least 1800.
    pub max_age: u32,
    /// Rises at each start; below 2^31.
    pub boot_id: u32,
    /// Follows the documents; below 2^24. See [`Identity::config_id`].
    pub config_id: u32,
}

/// `ssdp:alive`, for the group that `host` names.
#[must_use]
pub fn alive(sender: &Sender<'_>, host: &str, nt: &Target, usn: &str) -> String {
    let mut out = Lines::start("NOTIFY * HTTP/1.1");
    out.header("HOST", &host);
    out.header("CACHE-CONTROL", &format_args!("max-age={}", sender.max_age));
    out.header("LOCATION", &sender.location);
    out.header("NT", nt);
    out.header("NTS", &"ssdp:alive");
    out.header("SERVER", &sender.server);
    out.header("USN", &usn);
    out.identity(sender);
    out.end()
}

/// `ssdp:byebye`, for the group that `host` names.
#[must_use]
pub fn byebye(sender: &Sender<'_>, host: &str, nt: &Target, usn: &str) -> String {
    let mut out = Lines::start("NOTIFY * HTTP/1.1");
    out.header("HOST", &host);
    out.header("NT", nt);
    out.header("NTS", &"ssdp:byebye");
    out.header("USN", &usn);
    out.identity(sender);
    out.end()
}

/// The answer to a search; `date` is an HTTP date.
#[must_use]
pub fn search_response(sender: &Sender<'_>, st: &Target, usn: &str, date: Option<&str>) -> String {
    let mut out = Lines::start("HTTP/1.1 200 OK");
    out.header("CACHE-CONTROL", &format_args!("max-age={}", sender.max_age));
    if let Some(date) = date {
        out.header("DATE", &date);
    }
    out.0.push_str("EXT:\r\n");
    out.header("LOCATION", &sender.location);
    out.header("SERVER", &sender.server);
    out.header("ST", st);
    out.header("USN", &usn);
    out.identity(sender);
    out.end()
}

/// A control point's search; without `mx` it is one for unicast, `host` then being the device's address.
#[must_use]
pub fn search(host: &str, target: &Target, mx: Option<u8>) -> String {
    let mut out = Lines::start("M-SEARCH * HTTP/1.1");
    out.header("HOST", &host);
    out.header("MAN", &"\"ssdp:discover\"");
    if let Some(mx) = mx {
        out.header("MX", &mx);
    }
    out.header("ST", target);
    out.end()
}

/// A message under construction.
struct Lines(String);

impl Lines {
    fn start(line: &str) -> Self {
        let mut text = String::with_capacity(MAX_SENT);
        text.push_str(line);
        text.push_str("\r\n");
        Self(text)
    }

    /// Control characters in a value become spaces: a value can never start a line of its own.
    fn header(&mut self, name: &str, value: &dyn fmt::Display) {
        self.0.push_str(name);
        self.0.push_str(": ");
        let begin = self.0.len();
        let _ = write!(self.0, "{value}");
        // Most values are printable ASCII, which is seen at once.
        let plain = self.0.as_bytes()[begin..].iter().all(|octet| matches!(octet, b' '..=b'~'));
        if !plain && self.0[begin..].contains(char::is_control) {
            let safe = self.0[begin..].replace(char::is_control, " ");
            self.0.truncate(begin);
            self.0.push_str(&safe);
        }
        self.0.push_str("\r\n");
    }

    /// Boot and configuration, the former for UDA 1.0 control points as well.
    fn identity(&mut self, sender: &Sender<'_>) {
        let boot_id = sender.boot_id & 0x7fff_ffff;
        self.header("OPT", &"\"http://schemas.upnp.org/upnp/1/0/\"; ns=01");
        self.header("01-NLS", &boot_id);
        self.header("BOOTID.UPNP.ORG", &boot_id);
        self.header("CONFIGID.UPNP.ORG", &(sender.config_id & 0x7fff_ffff));
    }

    fn end(mut self) -> String {
        self.0.push_str("\r\n");
        self.0
    }
}

/// The whole set of a face as (NT, USN): 3 + 2d + k, the root device first (uda.md 2). The same for alive,
/// byebye, and the answers to `ssdp:all`.
#[must_use]
pub fn advertisements(face: Face, identity: &Identity) -> Vec<(Target, String)> {
    let mut set = Vec::new();
    for device in Device::ALL {
        let udn = identity.udn(face, device);
        if device == Device::InternetGateway {
            set.push(with_usn(&udn, Target::RootDevice));
        }
        set.push((Target::Uuid(identity.udns(face).of(device).to_string()), udn.clone()));
        set.push(with_usn(
            &udn,
            Target::Device { name: device.type_name().to_owned(), version: face.version() },
        ));
        for service in device.services(face) {
            let (name, version) = (service.type_name().to_owned(), service.version(face));
            set.push(with_usn(&udn, Target::Service { name, version }));
        }
    }
    set
}

/// What a face that announces this set answers to a search, as (ST, USN); empty means silence (S-4). A search for a lower
/// version is answered with that version in both (S-5).
#[must_use]
pub fn matches(set: &[(Target, String)], target: &Target) -> Vec<(Target, String)> {
    let is_sought = |announced: &Target| match (target, announced) {
        (Target::All, _) | (Target::RootDevice, Target::RootDevice) => true,
        (Target::Uuid(sought), Target::Uuid(uuid)) => uuid.eq_ignore_ascii_case(sought),
        (Target::Device { name: sought, version: asked }, Target::Device { name, version })
        | (Target::Service { name: sought, version: asked }, Target::Service { name, version }) => {
            name == sought && (1..=*version).contains(asked)
        }
        _ => false,
    };
    let echoed = |(nt, usn): &(Target, String)| match (target, usn.split_once("::")) {
        (Target::Device { .. } | Target::Service { .. }, Some((udn, _))) => {
            (target.clone(), format!("{udn}::{target}"))
        }
        _ => (nt.clone(), usn.clone()),
    };
    set.iter().filter(|(nt, _)| is_sought(nt)).map(echoed).collect()
}

fn with_usn(udn: &str, nt: Target) -> (Target, String) {
    let usn = format!("{udn}::{nt}");
    (nt, usn)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::description::tests::identity;

    const SENDER: Sender<'_> = Sender {
        location: "http://192.168.100.100:65535/v1/igd.xml",
        server: "Linux/6.12 UPnP/1.1 portferry/0.1.0",
        max_age: 1800,
        boot_id: 1_700_000_000,
        config_id: 16_777_215,
    };

    fn sought(datagram: &str) -> Result<Search, Malformed> {
        match parse(datagram.as_bytes())? {
            Message::Search(search) => Ok(search),
            other => panic!("{other:?} is no search"),
        }
    }

    #[test]
    fn targets_are_written_as_they_are_read() {
        for text in [
            "ssdp:all",
            "upnp:rootdevice",
            "uuid:00000000-0000-0000-0000-000000000000",
            "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
            "urn:schemas-upnp-org:service:WANIPConnection:2",
            "urn:dial-multiscreen-org:service:dial:1",
            "urn:schemas-upnp-org:service:WANIPConnection:",
            "urn:schemas-upnp-org:service:WANIPConnection:1x",
            "urn:schemas-upnp-org:service:WANIPConnection:01",
            "urn:schemas-upnp-org:service:WANIPConnection:999",
            "",
        ] {
            assert_eq!(Target::parse(text).to_string(), text);
        }
        for other in
            ["SSDP:ALL", "urn:schemas-upnp-org:service:WANIPConnection:1x", "urn:schemas-upnp-org:device::1"]
        {
            assert!(matches!(Target::parse(other), Target::Other(_)), "{other}");
        }
    }

    /// K-4, S-1, S-2, uda.md 10: what control points really send.
    #[test]
    fn searches_are_read_liberally() {
        let all =
            |mx| Ok(Search { target: Target::All, mx, host: Some(HOST_V4.to_owned()), user_agent: None });
        for (datagram, mx) in [
            (
                "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\nST: ssdp:all\r\n\r\n",
                Some(2),
            ),
            // libtorrent: no blank after the colon, MX 3, one empty line too many.
            (
                "M-SEARCH * HTTP/1.1\r\nHOST:239.255.255.250:1900\r\nST:ssdp:all\r\nMAN:\"ssdp:discover\"\r\nMX:3\r\n\r\n\r\n",
                Some(3),
            ),
            (
                "M-SEARCH * HTTP/1.1\r\nhost: 239.255.255.250:1900\r\nman: ssdp:discover\r\nmx: 1\r\nst: ssdp:all\r\n\r\n",
                Some(1),
            ),
            ("M-SEARCH * HTTP/1.0\nHost: 239.255.255.250:1900\nMan: \"ssdp:discover\"\nST: ssdp:all\n", None),
            (
                "M-SEARCH * HTTP/1.1\r\nHOST : 239.255.255.250:1900\r\nMX: 120\r\nST:\tssdp:all \r\nMAN: \"ssdp:discover\" ",
                Some(5),
            ),
            (
                "\r\nM-SEARCH  *  HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: 'ssdp:discover'\r\nMX: 0\r\nST: ssdp:all",
                Some(0),
            ),
            (
                "M-SEARCH *\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: soon\r\nST: ssdp:all\r\nnonsense\r\n\r\n",
                Some(1),
            ),
            (
                "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 99999999999999999999\r\nST: ssdp:all\r\n\r\n",
                Some(5),
            ),
            (
                "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 300\r\nST: ssdp:all\r\nST: upnp:rootdevice\r\n\r\n",
                Some(5),
            ),
        ] {
            assert_eq!(sought(datagram), all(mx), "{datagram}");
        }
        let agent = sought(
            "M-SEARCH * HTTP/1.1\r\nMAN: \"ssdp:discover\"\r\nST: upnp:rootdevice\r\nUSER-AGENT: a/1 UPnP/1.1 b/2\r\nX: \u{fffd}\r\n\r\n",
        );
        assert_eq!(agent.unwrap().user_agent.as_deref(), Some("a/1 UPnP/1.1 b/2"));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for datagram in [
            "",
            "\r\n",
            "M-SEARCH",
            "M-SEARCH * HTTP/1.1\r\n\r\n",
            "M-SEARCH * HTTP/1.1\r\nMAN: \"ssdp:discover\"\r\n\r\n",
            "M-SEARCH * HTTP/1.1\r\nMAN: \"ssdp:discover\"\r\nST: \r\n\r\n",
            "M-SEARCH * HTTP/1.1\r\nST: ssdp:all\r\n\r\n",
            "M-SEARCH * HTTP/1.1\r\nMAN: \"ssdp:delete\"\r\nST: ssdp:all\r\n\r\n",
            "M-SEARCH * HTTP/1.1\r\nMAN: \"ssdp:discover\"\r\n\r\nST: ssdp:all\r\n",
            "M-SEARCH /x HTTP/1.1\r\nMAN: \"ssdp:discover\"\r\nST: ssdp:all\r\n\r\n",
            "GET / HTTP/1.1\r\nMAN: \"ssdp:discover\"\r\nST: ssdp:all\r\n\r\n",
            "NOTIFY * HTTP/1.1\r\nNT: upnp:rootdevice\r\nUSN: x\r\n\r\n",
            "NOTIFY * HTTP/1.1\r\nNT: upnp:rootdevice\r\nNTS: ssdp:hello\r\nUSN: x\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\nST: ssdp:all\r\nUSN: x\r\nLOCATION: y\r\n\r\n",
            "HTTP/1.1 200 OK\r\nST: ssdp:all\r\nUSN: x\r\n\r\n",
        ] {
            assert_eq!(parse(datagram.as_bytes()), Err(Malformed), "{datagram}");
        }
        let long = format!(
            "M-SEARCH * HTTP/1.1\r\nMAN: \"ssdp:discover\"\r\nST: ssdp:all\r\nX: {}\r\n\r\n",
            "x".repeat(MAX_DATAGRAM)
        );
        assert_eq!(parse(long.as_bytes()), Err(Malformed));
    }

    /// uda.md 1.1, header by header.
    #[test]
    fn messages_as_we_send_them() {
        let nt = Target::RootDevice;
        assert_eq!(
            alive(&SENDER, HOST_V4, &nt, "uuid:u::upnp:rootdevice"),
            "NOTIFY * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nCACHE-CONTROL: max-age=1800\r\n\
             LOCATION: http://192.168.100.100:65535/v1/igd.xml\r\nNT: upnp:rootdevice\r\nNTS: ssdp:alive\r\n\
             SERVER: Linux/6.12 UPnP/1.1 portferry/0.1.0\r\nUSN: uuid:u::upnp:rootdevice\r\n\
             OPT: \"http://schemas.upnp.org/upnp/1/0/\"; ns=01\r\n01-NLS: 1700000000\r\n\
             BOOTID.UPNP.ORG: 1700000000\r\nCONFIGID.UPNP.ORG: 16777215\r\n\r\n"
        );
        let bye = byebye(&SENDER, HOST_V6_LINK, &nt, "uuid:u::upnp:rootdevice");
        assert!(bye.starts_with(
            "NOTIFY * HTTP/1.1\r\nHOST: [FF02::C]:1900\r\nNT: upnp:rootdevice\r\nNTS: ssdp:byebye\r\n"
        ));
        assert!(!bye.contains("LOCATION") && !bye.contains("CACHE-CONTROL") && !bye.contains("SERVER"));
        let date = "Thu, 01 Jan 1970 00:00:00 GMT";
        let answer = search_response(&SENDER, &nt, "uuid:u::upnp:rootdevice", Some(date));
        assert!(answer.starts_with(
            "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=1800\r\nDATE: Thu, 01 Jan 1970 00:00:00 GMT\r\nEXT:\r\nLOCATION: "
        ));
        assert!(!search_response(&SENDER, &nt, "u", None).contains("DATE"));
        assert_eq!(
            search(HOST_V4, &Target::All, Some(2)),
            "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\nST: ssdp:all\r\n\r\n"
        );
        let unicast = search("192.168.1.1:1900", &Target::All, None);
        assert_eq!(sought(&unicast).unwrap().mx, None);
    }

    #[test]
    fn a_value_starts_no_line_of_its_own() {
        let sender = Sender { server: "a\r\nX-Evil: 1\r\n\r\nb", ..SENDER };
        let text = alive(&sender, HOST_V4, &Target::RootDevice, "u");
        assert!(text.contains("SERVER: a  X-Evil: 1    b\r\n"));
    }

    #[test]
    fn what_we_send_we_read_and_it_is_short() {
        for face in Face::ALL {
            for (nt, usn) in advertisements(face, &identity()) {
                for (text, nts) in [
                    (alive(&SENDER, HOST_V4, &nt, &usn), Nts::Alive),
                    (byebye(&SENDER, HOST_V4, &nt, &usn), Nts::Byebye),
                ] {
                    assert!(text.len() <= MAX_SENT, "{} octets", text.len());
                    let Ok(Message::Notify(notify)) = parse(text.as_bytes()) else { panic!("{text}") };
                    assert_eq!((&notify.nt, notify.nts, &notify.usn), (&nt, nts, &usn));
                    assert_eq!(notify.boot_id, Some(1_700_000_000));
                    let of_alive = (nts == Nts::Alive).then_some(1800);
                    assert_eq!((notify.max_age, notify.location.is_some()), (of_alive, nts == Nts::Alive));
                }
                let date = Some("Thu, 01 Jan 1970 00:00:00 GMT");
                let text = search_response(&SENDER, &nt, &usn, date);
                assert!(text.len() <= MAX_SENT, "{} octets", text.len());
                let Ok(Message::Response(response)) = parse(text.as_bytes()) else { panic!("{text}") };
                assert_eq!(
                    (response.st, response.usn, &*response.location),
                    (nt.clone(), usn, SENDER.location)
                );
                let text = search(HOST_V4, &nt, Some(5));
                assert_eq!(sought(&text).map(|search| (search.target, search.mx)), Ok((nt, Some(5))));
            }
        }
    }

    /// 3 + 2d + k of uda.md 2 with d = 2, k = 3, and 4 in IGD:2, and its NT and USN table.
    #[test]
    fn the_set_of_advertisements() {
        let identity = identity();
        for face in Face::ALL {
            let set = advertisements(face, &identity);
            assert_eq!(set.len(), if face == Face::V1 { 10 } else { 11 });
            let (v, udns) = (face.version(), identity.udns(face));
            let (root, wan, connection) = (udns.root, udns.wan, udns.connection);
            let lines: Vec<String> = set.iter().map(|(nt, usn)| format!("{nt} {usn}")).collect();
            let typed = |udn, urn: String| format!("{urn} uuid:{udn}::{urn}");
            let expected = [
                format!("upnp:rootdevice uuid:{root}::upnp:rootdevice"),
                format!("uuid:{root} uuid:{root}"),
                typed(root, format!("urn:schemas-upnp-org:device:InternetGatewayDevice:{v}")),
                typed(root, "urn:schemas-upnp-org:service:Layer3Forwarding:1".to_owned()),
                format!("uuid:{wan} uuid:{wan}"),
                typed(wan, format!("urn:schemas-upnp-org:device:WANDevice:{v}")),
                typed(wan, "urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1".to_owned()),
                format!("uuid:{connection} uuid:{connection}"),
                typed(connection, format!("urn:schemas-upnp-org:device:WANConnectionDevice:{v}")),
                typed(connection, format!("urn:schemas-upnp-org:service:WANIPConnection:{v}")),
            ];
            let firewall = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1".to_owned();
            let firewall = (face == Face::V2).then(|| typed(connection, firewall));
            let expected: Vec<String> = expected.into_iter().chain(firewall).collect();
            assert_eq!(lines, expected);
            assert_eq!(matches(&set, &Target::All), set);
        }
    }

    /// S-4, S-5: one row a search; face, ST, how many answers.
    #[test]
    fn searches_find_what_there_is() {
        let identity = identity();
        let (wan1, wan2) = (identity.v1.wan, identity.v2.wan);
        for (face, st, count) in [
            (Face::V1, "upnp:rootdevice".to_owned(), 1),
            (Face::V1, "urn:schemas-upnp-org:device:InternetGatewayDevice:1".to_owned(), 1),
            (Face::V1, "urn:schemas-upnp-org:device:InternetGatewayDevice:2".to_owned(), 0),
            (Face::V2, "urn:schemas-upnp-org:device:InternetGatewayDevice:2".to_owned(), 1),
            (Face::V2, "urn:schemas-upnp-org:device:InternetGatewayDevice:1".to_owned(), 1),
            (Face::V2, "urn:schemas-upnp-org:device:InternetGatewayDevice:3".to_owned(), 0),
            (Face::V2, "urn:schemas-upnp-org:device:InternetGatewayDevice:0".to_owned(), 0),
            (Face::V2, "urn:schemas-upnp-org:device:InternetGatewayDevice:12".to_owned(), 0),
            (Face::V2, "urn:schemas-upnp-org:device:InternetGatewayDevice:1 ".to_owned(), 0),
            (Face::V2, "urn:schemas-upnp-org:device:InternetGateway:1".to_owned(), 0),
            (Face::V1, "urn:schemas-upnp-org:service:WANIPConnection:1".to_owned(), 1),
            (Face::V1, "urn:schemas-upnp-org:service:WANIPConnection:2".to_owned(), 0),
            (Face::V2, "urn:schemas-upnp-org:service:WANIPConnection:1".to_owned(), 1),
            (Face::V2, "urn:schemas-upnp-org:service:Layer3Forwarding:2".to_owned(), 0),
            (Face::V1, "urn:schemas-upnp-org:service:WANPPPConnection:1".to_owned(), 0),
            (Face::V1, "urn:schemas-upnp-org:service:WANDevice:1".to_owned(), 0),
            (Face::V1, format!("uuid:{wan1}"), 1),
            (Face::V1, format!("uuid:{}", wan1.to_string().to_uppercase()), 1),
            (Face::V1, format!("uuid:{wan2}"), 0),
            (Face::V2, format!("uuid:{wan2}"), 1),
            (Face::V1, "uuid:".to_owned(), 0),
            (Face::V1, "urn:dial-multiscreen-org:service:dial:1".to_owned(), 0),
        ] {
            let answers = matches(&advertisements(face, &identity), &Target::parse(&st));
            assert_eq!(answers.len(), count, "{face:?} {st}");
            for (echoed, usn) in answers {
                assert!(echoed.to_string().eq_ignore_ascii_case(&st));
                assert!(st.starts_with("uuid:") || usn.ends_with(&format!("::{st}")), "{usn}");
            }
        }
    }

    #[test]
    fn every_cut_of_a_message_is_survived() {
        let (nt, usn) = advertisements(Face::V2, &identity()).remove(2);
        for text in [alive(&SENDER, HOST_V4, &nt, &usn), search_response(&SENDER, &nt, &usn, None)] {
            for end in 0..text.len() {
                let _ = parse(&text.as_bytes()[..end]);
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
            let _ = parse(&[b"M-SEARCH * HTTP/1.1\r\n", bytes.as_slice()].concat());
        }

        #[test]
        fn damaged_searches_are_survived(
            at in any::<prop::sample::Index>(),
            with in proptest::collection::vec(any::<u8>(), 0..4),
            cut in 0_usize..6,
        ) {
            let mut bytes = search(HOST_V4, &Target::All, Some(3)).into_bytes();
            let start = at.index(bytes.len());
            let end = (start + cut).min(bytes.len());
            bytes.splice(start..end, with);
            if let Ok(Message::Search(search)) = parse(&bytes) {
                prop_assert!(search.mx.is_none_or(|mx| mx <= MAX_MX));
                let _ = matches(&advertisements(Face::V1, &identity()), &search.target);
            }
        }

        #[test]
        fn any_target_is_written_as_read(text in any::<String>()) {
            prop_assert_eq!(Target::parse(&text).to_string(), text);
        }
    }
}
