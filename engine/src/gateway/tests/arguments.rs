//! Every argument of every action, as it should not be sent, and as it is sent all the same: igd.md 3, with UDA's own
//! rules (uda.md 7 and 8), those that real clients made (igd.md 9, clients.md), and the security policy.
//!
//! The rows go by argument and by what is odd about it. An action without a good request fails, and so do an argument
//! that lacks a row and a row that no argument needs.

use std::collections::BTreeSet;

use wire::services::{Action, ActionId};

use super::*;

/// All services but the one of pinholes, whose arguments have their rows in `pinholes`.
fn mappings() -> impl Iterator<Item = Service> {
    Service::ALL.into_iter().filter(|service| *service != Service::WanIpv6FirewallControl)
}

/// What is odd about an argument.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Oddity {
    Missing,
    Doubled,
    Empty,
    TooLong,
    WrongType,
    OutOfRange,
    Padded,
}

use Oddity::*;

const ODDITIES: [Oddity; 7] = [Missing, Doubled, Empty, TooLong, WrongType, OutOfRange, Padded];

/// What is sent in place of the good argument.
enum Sent {
    Nothing,
    Text(&'static str),
    /// Made of the good value.
    Like(fn(&str) -> String),
    /// The good one, and one made of it.
    Twice(fn(&str) -> String),
    /// Content as it stands, whether or not it is text.
    Octets(&'static [u8]),
}

use Sent::*;

/// What becomes of the request.
enum Outcome {
    /// What a control point of :1 hears, and one of :2.
    Refused(u16, u16),
    /// What one of :2 hears; one of :1 hears some code.
    RefusedIn2(u16),
    /// The good request's answer, and its effect.
    Served,
    /// The good request's mapping, but for what differs, by the version spoken.
    Makes(fn(&mut Made, u8)),
    /// The good request's mapping with another external port, which is answered.
    MakesAnother,
}

use Outcome::*;

/// Oddity, what is sent, what becomes of it, by which rule.
type Row = (Oddity, Sent, Outcome, &'static str);

/// The rows of these arguments in these actions; in all actions if none is named.
struct Rows {
    arguments: &'static [&'static str],
    of: &'static [ActionId],
    rows: &'static [Row],
}

impl Rows {
    fn fit(&self, action: &Action, argument: &str) -> bool {
        self.arguments.contains(&argument) && (self.of.is_empty() || self.of.contains(&action.id))
    }
}

/// What a control point can say about its mapping.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Made {
    protocol: Protocol,
    external: u16,
    internal: SocketAddrV4,
    remote: Option<Ipv4Addr>,
    description: String,
    lease: Option<Duration>,
}

const EVERY: &[ActionId] = &[];
const ADDS: &[ActionId] = &[ActionId::AddPortMapping, ActionId::AddAnyPortMapping];
const KEYED: &[ActionId] = &[ActionId::GetSpecificPortMappingEntry, ActionId::DeletePortMapping];
const RANGES: &[ActionId] = &[ActionId::DeletePortMappingRange, ActionId::GetListOfPortMappings];

/// 402.
const INVALID: Outcome = Refused(402, 402);
/// 601.
const OUTSIDE: Outcome = Refused(601, 601);
/// What policy refuses to an add action.
const DENIED: Outcome = Refused(718, 606);

const PEER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const WEEK: u64 = 604_800;
const LONGEST: u64 = u32::MAX as u64;

fn same(good: &str) -> String {
    good.to_owned()
}

fn padded(good: &str) -> String {
    format!(" \t{good}\r\n")
}

/// `text` so often that it is longer than what is kept of a text (K-13).
fn long(text: &str) -> String {
    text.repeat(soap::MAX_TEXT / text.len() + 1)
}

/// The number after the good one, by so many.
fn plus(good: &str, number: u64) -> String {
    (good.parse::<u64>().unwrap() + number).to_string()
}

/// The lease in :1 and in :2, in seconds; 0 is for ever.
fn lasts(made: &mut Made, version: u8, one: u64, two: u64) {
    let secs = if version == 1 { one } else { two };
    made.lease = (secs > 0).then(|| Duration::from_secs(secs));
}

static ROWS: &[Rows] = &[
    Rows {
        arguments: &[
            "NewExternalPort",
            "NewInternalPort",
            "NewStartPort",
            "NewEndPort",
            "NewNumberOfPorts",
            "NewPortMappingIndex",
        ],
        of: EVERY,
        rows: &[
            (Missing, Nothing, INVALID, "igd.md 3: 402"),
            (Doubled, Twice(same), INVALID, "C-6"),
            (Doubled, Twice(|_| String::new()), INVALID, "C-6"),
            (Doubled, Twice(|good| plus(good, 1)), INVALID, "C-6"),
            (Empty, Text(""), INVALID, "Q-17"),
            (Empty, Text(" \t\r\n"), INVALID, "Q-17"),
            (WrongType, Text("http"), INVALID, "Q-17"),
            (WrongType, Text("true"), INVALID, "Q-17"),
            (WrongType, Text("-1"), INVALID, "policy: digits only"),
            (WrongType, Like(|good| format!("-{good}")), INVALID, "policy: digits only"),
            (WrongType, Like(|good| format!("+{good}")), INVALID, "policy: digits only"),
            (WrongType, Like(|good| format!("0x{good}")), INVALID, "policy: digits only"),
            (WrongType, Like(|good| format!("{good}.0")), INVALID, "policy: digits only"),
            (WrongType, Like(|good| format!("{good}e0")), INVALID, "policy: digits only"),
            (WrongType, Like(|good| format!("{good} {good}")), INVALID, "policy: digits only"),
            (WrongType, Like(|good| format!("{good}-{good}")), INVALID, "policy: digits only"),
            (WrongType, Text("\u{668}\u{660}\u{668}\u{660}"), INVALID, "policy: digits only"),
            (WrongType, Octets(b"80\xb2"), INVALID, "policy: digits only"),
            (WrongType, Octets(b"<v>8080</v>"), INVALID, "C-6"),
            (Padded, Like(padded), Served, "uda.md 7: blanks"),
            (Padded, Like(|good| format!("000000{good}")), Served, "uda.md 7: leading zeros"),
        ],
    },
    Rows {
        arguments: &["NewExternalPort", "NewInternalPort", "NewStartPort", "NewEndPort", "NewNumberOfPorts"],
        of: EVERY,
        rows: &[
            (TooLong, Like(|_| long("9")), OUTSIDE, "igd.md 3: 601"),
            (OutOfRange, Text("65536"), OUTSIDE, "igd.md 3: 601"),
            (OutOfRange, Like(|good| plus(good, 1 << 16)), OUTSIDE, "igd.md 3: 601"),
            (OutOfRange, Like(|good| plus(good, 1 << 32)), OUTSIDE, "igd.md 3: 601"),
            (OutOfRange, Text("18446744073709551616"), OUTSIDE, "igd.md 3: 601"),
        ],
    },
    Rows {
        arguments: &["NewExternalPort"],
        of: ADDS,
        rows: &[
            (OutOfRange, Text("1"), DENIED, "policy: ports"),
            (OutOfRange, Text("1023"), DENIED, "policy: ports"),
            (Padded, Text("01024"), Makes(|made, _| made.external = 1024), "policy: ports"),
            (Padded, Text(" 65535"), Makes(|made, _| made.external = 65535), "igd.md 2: ui2"),
        ],
    },
    Rows {
        arguments: &["NewExternalPort"],
        of: &[ActionId::AddPortMapping],
        rows: &[(OutOfRange, Text("0"), Refused(716, 716), "T-10")],
    },
    Rows {
        arguments: &["NewExternalPort"],
        of: &[ActionId::AddAnyPortMapping],
        rows: &[(OutOfRange, Text("0"), MakesAnother, "T-10")],
    },
    Rows {
        arguments: &["NewExternalPort"],
        of: KEYED,
        rows: &[
            (OutOfRange, Text("0"), Refused(714, 714), "A-8, A-9"),
            (OutOfRange, Like(|good| plus(good, 1)), Refused(714, 714), "A-8, A-9"),
        ],
    },
    Rows {
        arguments: &["NewInternalPort"],
        of: EVERY,
        rows: &[
            (OutOfRange, Text("0"), Refused(402, 732), "A-6"),
            (OutOfRange, Text(" 000 "), Refused(402, 732), "A-6"),
            (OutOfRange, Text("1"), DENIED, "policy: ports"),
            (OutOfRange, Text("1023"), DENIED, "policy: ports"),
            (Padded, Text("01024"), Makes(|made, _| made.internal.set_port(1024)), "policy: ports"),
            (Padded, Text(" 65535"), Makes(|made, _| made.internal.set_port(65535)), "igd.md 2: ui2"),
        ],
    },
    Rows {
        arguments: &["NewStartPort"],
        of: EVERY,
        rows: &[
            (OutOfRange, Text("0"), Served, "A-10, A-11"),
            (OutOfRange, Text("65535"), RefusedIn2(733), "A-10, A-11"),
            (OutOfRange, Text("8999"), RefusedIn2(730), "A-10, A-11"),
        ],
    },
    Rows {
        arguments: &["NewEndPort"],
        of: EVERY,
        rows: &[
            (OutOfRange, Text("0"), RefusedIn2(733), "A-10, A-11"),
            (OutOfRange, Text("65535"), Served, "A-10, A-11"),
            (OutOfRange, Text("8000"), RefusedIn2(730), "A-10, A-11"),
        ],
    },
    Rows {
        arguments: &["NewNumberOfPorts"],
        of: EVERY,
        rows: &[
            (OutOfRange, Text("0"), Served, "A-11"),
            (OutOfRange, Text("1"), Served, "A-11"),
            (OutOfRange, Text("65535"), Served, "A-11"),
        ],
    },
    Rows {
        arguments: &["NewPortMappingIndex"],
        of: EVERY,
        rows: &[
            (OutOfRange, Text("1"), Refused(713, 713), "A-7"),
            (OutOfRange, Text("65535"), Refused(713, 713), "A-7"),
            (TooLong, Like(|_| long("9")), Refused(713, 713), "A-7: it is past the end, whatever its length"),
        ],
    },
    Rows {
        arguments: &["NewRemoteHost"],
        of: EVERY,
        rows: &[
            (Missing, Nothing, Served, "Q-12, K-7"),
            (Doubled, Twice(same), INVALID, "C-6"),
            (Doubled, Twice(|_| PEER.to_string()), INVALID, "C-6"),
            (Empty, Text(""), Served, "K-7"),
            (Empty, Text(" \t\r\n"), Served, "K-7"),
            (Padded, Text(" * "), Served, "K-7"),
            (Padded, Text("\n0.0.0.0\n"), Served, "K-7"),
            (Padded, Text(" 198.51.100.7 "), Served, "K-7: our external address"),
            (TooLong, Like(|_| long("h")), Refused(605, 605), "igd.md 3: 605"),
            (TooLong, Like(|_| long("10.0.0.1,")), Refused(605, 605), "igd.md 3: 605"),
            (WrongType, Text("undefined"), INVALID, "K-7"),
            (WrongType, Text("203.0.113.9:80"), INVALID, "policy: dotted quad"),
            (WrongType, Text("203.0.113.0/24"), INVALID, "policy: dotted quad"),
            (WrongType, Text("3405803785"), INVALID, "policy: short forms"),
            (WrongType, Text("203.113.9"), INVALID, "policy: short forms"),
            (WrongType, Text("0xcb.0.113.9"), INVALID, "policy: hex"),
            (WrongType, Text("203.0.0161.9"), INVALID, "policy: octal"),
            (WrongType, Text("203.000.113.009"), INVALID, "policy: octal"),
            (WrongType, Octets(b"\xff"), INVALID, "K-7"),
            (OutOfRange, Text("256.0.113.9"), INVALID, "policy: dotted quad"),
            (OutOfRange, Text("203.0.113.9.1"), INVALID, "policy: dotted quad"),
        ],
    },
    Rows {
        arguments: &["NewRemoteHost"],
        of: ADDS,
        rows: &[(Padded, Text(" 203.0.113.9\t"), Makes(|made, _| made.remote = Some(PEER)), "Q-11, A-5")],
    },
    Rows {
        arguments: &["NewRemoteHost"],
        of: KEYED,
        rows: &[(OutOfRange, Text("203.0.113.9"), Refused(714, 714), "A-8, A-9")],
    },
    Rows {
        arguments: &["NewProtocol"],
        of: EVERY,
        rows: &[
            (Missing, Nothing, INVALID, "igd.md 3: 402"),
            (Doubled, Twice(same), INVALID, "C-6"),
            (Doubled, Twice(|_| "UDP".to_owned()), INVALID, "C-6"),
            (TooLong, Like(long), OUTSIDE, "A-6"),
            (WrongType, Text("6"), OUTSIDE, "A-6"),
            (WrongType, Octets(b"TC\xd0"), OUTSIDE, "A-6"),
            (WrongType, Octets(b"<v>TCP</v>"), INVALID, "C-6"),
            (OutOfRange, Text("SCTP"), OUTSIDE, "A-6"),
            (OutOfRange, Text("TCP/UDP"), OUTSIDE, "A-6"),
            (OutOfRange, Text("TCP UDP"), OUTSIDE, "A-6"),
            (OutOfRange, Text("*"), OUTSIDE, "A-6"),
            (Padded, Like(padded), Served, "Q-11"),
        ],
    },
    Rows {
        arguments: &["NewProtocol"],
        of: &[ActionId::DeletePortMapping],
        rows: &[(Empty, Text(""), INVALID, "K-15"), (Empty, Text(" "), INVALID, "K-15")],
    },
    Rows {
        arguments: &["NewProtocol"],
        of: &[
            ActionId::AddPortMapping,
            ActionId::AddAnyPortMapping,
            ActionId::GetSpecificPortMappingEntry,
            ActionId::DeletePortMappingRange,
            ActionId::GetListOfPortMappings,
        ],
        rows: &[(Empty, Text(""), OUTSIDE, "A-6"), (Empty, Text(" "), OUTSIDE, "A-6")],
    },
    Rows {
        arguments: &["NewEnabled"],
        of: EVERY,
        rows: &[(Missing, Nothing, Served, "Q-14"), (Empty, Text(""), Served, "Q-14")],
    },
    Rows {
        arguments: &["NewPortMappingDescription"],
        of: EVERY,
        rows: &[(Missing, Nothing, Makes(|made, _| made.description.clear()), "Q-12: as if empty")],
    },
    Rows {
        arguments: &["NewProtocol"],
        of: ADDS,
        rows: &[(Padded, Text("UDP "), Makes(|made, _| made.protocol = Protocol::UDP), "igd.md 2")],
    },
    Rows {
        arguments: &["NewProtocol"],
        of: KEYED,
        rows: &[(OutOfRange, Text("UDP"), Refused(714, 714), "A-8, A-9")],
    },
    Rows {
        arguments: &["NewProtocol"],
        of: RANGES,
        rows: &[(OutOfRange, Text("UDP"), RefusedIn2(730), "A-10, A-11")],
    },
    Rows {
        arguments: &["NewInternalClient"],
        of: EVERY,
        rows: &[
            (Missing, Nothing, INVALID, "igd.md 3: 402"),
            (Doubled, Twice(same), INVALID, "C-6"),
            (Doubled, Twice(|_| BOB.to_string()), INVALID, "C-6"),
            (Empty, Text(""), Served, "Q-11"),
            (Empty, Text(" \t\r\n"), Served, "Q-11"),
            (TooLong, Like(|_| long("h")), Refused(605, 605), "igd.md 3: 605"),
            (TooLong, Like(|good| long(&format!("{good} "))), Refused(605, 605), "igd.md 3: 605"),
            (WrongType, Text("192.168.1.10:9001"), INVALID, "policy: dotted quad"),
            (WrongType, Text("192.168.1.10/24"), INVALID, "policy: dotted quad"),
            (WrongType, Text("http://192.168.1.10/"), INVALID, "policy: dotted quad"),
            (WrongType, Text("3232235786"), INVALID, "policy: short forms"),
            (WrongType, Text("192.168.266"), INVALID, "policy: short forms"),
            (WrongType, Text("0xc0.168.1.10"), INVALID, "policy: hex"),
            (WrongType, Text("192.168.1.012"), INVALID, "policy: octal"),
            (WrongType, Octets(b"192.168.1.10\xa0"), INVALID, "policy: dotted quad"),
            (OutOfRange, Text("192.168.1.266"), INVALID, "policy: dotted quad"),
            (OutOfRange, Text("255.255.255.255"), Refused(501, 501), "T-11"),
            (OutOfRange, Text("0.0.0.0"), DENIED, "policy: never mapped"),
            (OutOfRange, Text("127.0.0.1"), DENIED, "policy: never mapped"),
            (OutOfRange, Text("8.8.8.8"), DENIED, "policy: never mapped"),
            (OutOfRange, Text("192.168.1.11"), DENIED, "A-12, Q-15"),
            (Padded, Like(padded), Served, "Q-11"),
        ],
    },
    Rows {
        arguments: &["NewEnabled"],
        of: EVERY,
        rows: &[
            (OutOfRange, Text("0"), Refused(501, 501), "R-43"),
            (OutOfRange, Text("false"), Refused(501, 501), "R-43"),
            (OutOfRange, Text("no"), Refused(501, 501), "R-43"),
        ],
    },
    Rows {
        arguments: &["NewManage"],
        of: EVERY,
        rows: &[
            (Missing, Nothing, Served, "A-10: ignored"),
            (Empty, Text(""), Served, "A-10: ignored"),
            (OutOfRange, Text("0"), Served, "A-10: ignored"),
            (OutOfRange, Text("false"), Served, "A-10: ignored"),
            (OutOfRange, Text("no"), Served, "A-10: ignored"),
        ],
    },
    Rows {
        arguments: &["NewEnabled", "NewManage"],
        of: EVERY,
        rows: &[
            (Doubled, Twice(same), INVALID, "C-6"),
            (Doubled, Twice(|_| "0".to_owned()), INVALID, "C-6"),
            (TooLong, Like(long), INVALID, "Q-17"),
            (WrongType, Text("maybe"), INVALID, "A-18"),
            (WrongType, Text("on"), INVALID, "A-18"),
            (WrongType, Octets(b"1\xff"), INVALID, "A-18"),
            (OutOfRange, Text("2"), INVALID, "A-18"),
            (OutOfRange, Text("-1"), INVALID, "A-18"),
            (Padded, Like(padded), Served, "uda.md 7: blanks"),
            (Padded, Text(" true "), Served, "A-18"),
            (Padded, Text(" yes "), Served, "A-18"),
        ],
    },
    Rows {
        arguments: &["NewPortMappingDescription"],
        of: EVERY,
        rows: &[
            (Doubled, Twice(same), INVALID, "C-6"),
            (Doubled, Twice(|_| String::new()), INVALID, "C-6"),
            (Empty, Text(""), Makes(|made, _| made.description.clear()), "igd.md 2"),
            (TooLong, Like(|_| long("d")), Makes(|made, _| made.description = "d".repeat(1024)), "K-13"),
            (
                TooLong,
                Like(|_| "d".repeat(60_000)),
                Makes(|made, _| made.description = "d".repeat(1024)),
                "K-13",
            ),
            (
                TooLong,
                Like(|_| long("\u{20ac}")),
                Makes(|made, _| made.description = "\u{20ac}".repeat(341)),
                "K-13",
            ),
            (
                WrongType,
                Octets(b"caf\xe9"),
                Makes(|made, _| made.description = "caf\u{fffd}".to_owned()),
                "K-13: any encoding",
            ),
            (
                WrongType,
                Text("<b>&amp;</b> ]]> \u{1f600}"),
                Makes(|made, _| made.description = "<b>&amp;</b> ]]> \u{1f600}".to_owned()),
                "K-13: what came",
            ),
            (
                OutOfRange,
                Text("a\u{7f}b\u{85}c\nd"),
                Makes(|made, _| made.description = "a b c d".to_owned()),
                "policy: control characters",
            ),
            (OutOfRange, Text("\u{1}"), Refused(400, 400), "policy: well-formed"),
            (
                Padded,
                Text("  web "),
                Makes(|made, _| made.description = "  web ".to_owned()),
                "K-13: what came",
            ),
        ],
    },
    Rows {
        arguments: &["NewLeaseDuration"],
        of: EVERY,
        rows: &[
            (Missing, Nothing, Makes(|made, version| lasts(made, version, 0, WEEK)), "Q-5, A-3"),
            (Doubled, Twice(same), INVALID, "C-6"),
            (Doubled, Twice(|_| "0".to_owned()), INVALID, "C-6"),
            (Empty, Text(""), Makes(|made, version| lasts(made, version, 0, WEEK)), "Q-5, A-3"),
            (TooLong, Like(|_| long("9")), Makes(|made, version| lasts(made, version, LONGEST, WEEK)), "Q-5"),
            (WrongType, Text("forever"), Makes(|made, version| lasts(made, version, 0, WEEK)), "Q-5, A-3"),
            (WrongType, Text("-1"), Makes(|made, version| lasts(made, version, 0, WEEK)), "Q-5, A-3"),
            (OutOfRange, Text("0"), Makes(|made, version| lasts(made, version, 0, WEEK)), "A-3"),
            (OutOfRange, Text("1"), Makes(|made, version| lasts(made, version, 1, 1)), "A-3"),
            (OutOfRange, Text("604800"), Makes(|made, version| lasts(made, version, WEEK, WEEK)), "A-3"),
            (
                OutOfRange,
                Text("604801"),
                Makes(|made, version| lasts(made, version, WEEK + 1, WEEK)),
                "iwf.md 2.5",
            ),
            (
                OutOfRange,
                Text("4294967295"),
                Makes(|made, version| lasts(made, version, LONGEST, WEEK)),
                "iwf.md 2.5",
            ),
            (
                OutOfRange,
                Text("4294967296"),
                Makes(|made, version| lasts(made, version, LONGEST, WEEK)),
                "Q-5",
            ),
            (
                OutOfRange,
                Like(|good| plus(good, 1 << 32)),
                Makes(|made, version| lasts(made, version, LONGEST, WEEK)),
                "Q-5",
            ),
            (Padded, Like(padded), Served, "uda.md 7: blanks"),
            (Padded, Text("0003600"), Served, "uda.md 7: leading zeros"),
        ],
    },
    Rows {
        arguments: &["NewConnectionType"],
        of: EVERY,
        rows: &[
            (Missing, Nothing, INVALID, "igd.md 3: 402"),
            (Doubled, Twice(same), INVALID, "C-6"),
            (Doubled, Twice(|_| "IP_Bridged".to_owned()), INVALID, "C-6"),
            (Empty, Text(""), Refused(703, 731), "A-15"),
            (TooLong, Like(long), Refused(605, 605), "igd.md 3: 605"),
            (WrongType, Text("1"), Refused(703, 731), "A-15"),
            (OutOfRange, Text("IP_Bridged"), Refused(703, 731), "A-15"),
            (OutOfRange, Text("PPPoE_Relay"), Refused(703, 731), "A-15"),
            (Padded, Like(padded), Refused(703, 731), "A-15"),
        ],
    },
    Rows {
        arguments: &["NewDefaultConnectionService"],
        of: EVERY,
        rows: &[
            (Missing, Nothing, INVALID, "igd.md 7: 402"),
            (Doubled, Twice(same), INVALID, "C-6"),
            (Doubled, Twice(|_| String::new()), INVALID, "C-6"),
            (Empty, Text(""), INVALID, "igd.md 7: 402"),
            (TooLong, Like(long), Refused(605, 605), "igd.md 3: 605"),
            (WrongType, Text("WANIPConnection"), INVALID, "igd.md 7: 402"),
            (
                OutOfRange,
                Like(|good| good.replacen("uuid:", "uuid:0", 1)),
                Refused(720, 720),
                "igd.md 7: device",
            ),
            (
                OutOfRange,
                Like(|good| good.replace("WANIPConn1", "WANIPConn2")),
                Refused(721, 721),
                "igd.md 7: service",
            ),
            (
                OutOfRange,
                Like(|good| good.replace("Device:", "Device:9")),
                Refused(723, 723),
                "igd.md 7: selection",
            ),
            (Padded, Like(padded), Served, "Q-11"),
        ],
    },
];

/// What the good request does.
#[derive(Clone, Copy)]
enum Doing {
    Reads,
    Adds,
    Removes,
    /// What :1 hears, and :2.
    IsRefused(u16, u16),
}

use Doing::*;

const MAPPING: &[(&str, &str)] = &[
    ("NewRemoteHost", ""),
    ("NewExternalPort", "9000"),
    ("NewProtocol", "TCP"),
    ("NewInternalPort", "9001"),
    ("NewInternalClient", "192.168.1.10"),
    ("NewEnabled", "1"),
    ("NewPortMappingDescription", "web"),
    ("NewLeaseDuration", "3600"),
];
const KEY: &[(&str, &str)] = &[("NewRemoteHost", ""), ("NewExternalPort", "8080"), ("NewProtocol", "TCP")];
const RANGE: [(&str, &str); 4] =
    [("NewStartPort", "8000"), ("NewEndPort", "8999"), ("NewProtocol", "TCP"), ("NewManage", "1")];
const LIST: &[(&str, &str)] = &[RANGE[0], RANGE[1], RANGE[2], RANGE[3], ("NewNumberOfPorts", "9")];

type Good = (ActionId, Doing, &'static [(&'static str, &'static str)]);

/// A good request of every action, against the mapping of [`standing`].
static GOOD: &[Good] = &[
    (ActionId::SetConnectionType, IsRefused(703, 731), &[("NewConnectionType", "IP_Routed")]),
    (ActionId::GetConnectionTypeInfo, Reads, &[]),
    (ActionId::RequestConnection, Reads, &[]),
    (ActionId::RequestTermination, IsRefused(501, 606), &[]),
    (ActionId::ForceTermination, IsRefused(501, 606), &[]),
    (ActionId::GetStatusInfo, Reads, &[]),
    (ActionId::GetNatRsipStatus, Reads, &[]),
    (ActionId::GetGenericPortMappingEntry, Reads, &[("NewPortMappingIndex", "0")]),
    (ActionId::GetSpecificPortMappingEntry, Reads, KEY),
    (ActionId::AddPortMapping, Adds, MAPPING),
    (ActionId::AddAnyPortMapping, Adds, MAPPING),
    (ActionId::DeletePortMapping, Removes, KEY),
    (ActionId::DeletePortMappingRange, Removes, &RANGE),
    (ActionId::GetExternalIpAddress, Reads, &[]),
    (ActionId::GetListOfPortMappings, Reads, LIST),
    (ActionId::GetCommonLinkProperties, Reads, &[]),
    (ActionId::GetTotalBytesSent, Reads, &[]),
    (ActionId::GetTotalBytesReceived, Reads, &[]),
    (ActionId::GetTotalPacketsSent, Reads, &[]),
    (ActionId::GetTotalPacketsReceived, Reads, &[]),
    // The value is the gateway's own: GetDefaultConnectionService tells it.
    (ActionId::SetDefaultConnectionService, Reads, &[("NewDefaultConnectionService", "")]),
    (ActionId::GetDefaultConnectionService, Reads, &[]),
];

/// What AddPortMapping and AddAnyPortMapping make of [`MAPPING`].
fn good_mapping() -> Made {
    Made {
        protocol: Protocol::TCP,
        external: 9000,
        internal: at(ALICE, 9001),
        remote: None,
        description: "web".to_owned(),
        lease: Some(Duration::from_secs(3600)),
    }
}

/// The one mapping that is there before every request; it lasts for ever.
fn standing() -> Made {
    let (external, internal) = (8080, at(ALICE, 8080));
    Made { external, internal, description: "test".to_owned(), lease: None, ..good_mapping() }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn element(name: &str, content: &[u8]) -> Vec<u8> {
    [format!("<{name}>").as_bytes(), content, format!("</{name}>").as_bytes()].concat()
}

fn good_element(name: &str, value: &str) -> Vec<u8> {
    element(name, escaped(value).as_bytes())
}

/// All that stands for what is sent: an argument that is missing may be there by another name, and an empty one in short.
fn elements(sent: &Sent, name: &str, good: &str) -> Vec<Vec<u8>> {
    let text = |text: &str| vec![good_element(name, text)];
    match sent {
        Nothing => vec![
            Vec::new(),
            good_element(&name.to_lowercase(), good),
            good_element(name.trim_start_matches("New"), good),
            element("Extra", &good_element(name, good)),
        ],
        Text("") => vec![element(name, b""), format!("<{name}/>").into_bytes()],
        Text(value) => text(value),
        Like(make) => text(&make(good)),
        Twice(make) => {
            let (first, second) = (good_element(name, good), good_element(name, &make(good)));
            let apart = [&first[..], b"<Extra/>", &second].concat();
            vec![[&first[..], &second].concat(), [&second[..], &first].concat(), apart]
        }
        Octets(octets) => vec![element(name, octets)],
    }
}

/// K-8, Q-13, C-1: ways of writing a good argument.
fn spellings(name: &str, good: &str) -> Vec<Vec<u8>> {
    let good = &escaped(good);
    [
        format!("<u:{name}>{good}</u:{name}>"),
        format!("<{name} xmlns=\"\">{good}</{name}>"),
        format!("<{name} xmlns:dt=\"urn:schemas-microsoft-com:datatypes\" dt:dt=\"ui2\">{good}</{name}>"),
        format!("\r\n\t<{name}\n>{good}</{name}\t>\r\n"),
        format!("<{name}><![CDATA[{good}]]></{name}>"),
        format!("<!-- <{name}>0</{name}> --><{name}><!-- 0 -->{good}</{name}>"),
        format!(
            "<{name}>{}</{name}>",
            good.chars().map(|c| format!("&#{};", u32::from(c))).collect::<String>()
        ),
    ]
    .map(String::into_bytes)
    .to_vec()
}

/// C-6: what is no argument of the action is passed over.
fn extras(action: &Action) -> Vec<String> {
    let mut extras: Vec<String> = [
        "<NewUnknown>1</NewUnknown>",
        "<NewUnknown>1</NewUnknown><NewUnknown>2</NewUnknown>",
        "<NewUnknown/>",
        "text",
        "<x:NewUnknown xmlns:x=\"urn:x\"><NewExternalPort>1</NewExternalPort></x:NewUnknown>",
    ]
    .map(str::to_owned)
    .to_vec();
    let is_input = |name| action.inputs.iter().any(|input| input.name == name);
    let known = mappings().flat_map(Service::actions).flat_map(|a| a.inputs.iter().chain(a.outputs));
    extras
        .extend(known.filter(|known| !is_input(known.name)).map(|known| format!("<{0}>1</{0}>", known.name)));
    extras
}

struct Bench {
    lab: Lab,
    service: Service,
    action: &'static Action,
    version: u8,
    doing: Doing,
    good: Vec<(&'static str, String)>,
}

impl Bench {
    fn new(nat: NatMode, service: Service, action: &'static Action, version: u8) -> Self {
        let name = action.name;
        let good = GOOD.iter().find(|good| good.0 == action.id);
        let &(_, doing, good) = good.unwrap_or_else(|| panic!("{name} has no good request"));
        let good = good.iter().map(|&(name, value)| (name, value.to_owned())).collect();
        // The table is the answer to everything that only reads.
        let settings = Config { get_specific: GetSpecific::Local, ..config(nat) };
        let mut bench = Self { lab: Lab::up_with(settings), service, action, version, doing, good };
        if action.id == ActionId::SetDefaultConnectionService {
            bench.action = service.action("GetDefaultConnectionService").unwrap();
            bench.good[0].1 = bench.ask(&[]).unwrap().remove(0);
            bench.action = action;
        }
        let named = bench.good.iter().map(|argument| argument.0);
        assert!(named.eq(action.inputs.iter().map(|input| input.name)), "{name}");
        bench.settle();
        bench
    }

    /// A request of these elements, with octets that encode_call would not write.
    fn ask(&mut self, elements: &[Vec<u8>]) -> Heard {
        let lab = &mut self.lab;
        lab.next_id += 1;
        let id = RequestId(lab.next_id);
        let service_type = self.service.service_type(self.version.min(self.service.highest_version()));
        let name = self.action.name;
        let start = format!(
            "<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>\
             <u:{name} xmlns:u=\"{service_type}\">"
        );
        let end = format!("</u:{name}></s:Body></s:Envelope>");
        let body = [start.as_bytes(), &elements.concat(), end.as_bytes()].concat();
        let header = format!("\"{service_type}#{name}\"");
        let face = if self.version == 1 { Face::V1 } else { Face::V2 };
        match soap::decode(self.service, face, Some(&header), &body) {
            Ok(request) => {
                lab.event(Event::Control(ControlRequest {
                    id,
                    from: IpAddr::V4(ALICE),
                    also: Vec::new(),
                    face,
                    request,
                }));
                lab.heard(id).expect("answered at once")
            }
            Err(SoapError::Upnp(error)) => Err(error.code),
            Err(SoapError::BadRequest) => Err(400),
        }
    }

    fn good_elements(&self) -> Vec<Vec<u8>> {
        self.good.iter().map(|(name, value)| good_element(name, value)).collect()
    }

    fn made(&self) -> Vec<Made> {
        let mappings = self.lab.gateway.mappings(self.lab.instant());
        mappings
            .map(|m| Made {
                protocol: m.protocol,
                external: m.external.port(),
                internal: m.internal,
                remote: m.remote_peer,
                description: m.description,
                lease: m.lease_left,
            })
            .collect()
    }

    /// Sends these elements and looks at the answer, at the table, and at what went upstream.
    fn check(&mut self, elements: &[Vec<u8>], outcome: &Outcome, what: &str) {
        let what = &format!("{} :{} {what}", self.action.name, self.version);
        let like_good = match (self.doing, outcome) {
            (Reads, Served) => self.ask(&self.good_elements()),
            _ => done(),
        };
        self.lab.effects.clear();
        let heard = self.ask(elements);
        let mut expected = good_mapping();
        let refused = match (outcome, self.doing) {
            (&Refused(one, two), _) | (Served, IsRefused(one, two)) => {
                Some(if self.version == 1 { one } else { two })
            }
            (&RefusedIn2(two), _) if self.version == 2 => Some(two),
            (RefusedIn2(_), _) => Some(*heard.as_ref().expect_err(what)),
            (Makes(change), Adds) => {
                change(&mut expected, self.version);
                None
            }
            (MakesAnother, Adds) => {
                expected.external = heard.as_ref().expect(what)[0].parse().expect(what);
                assert!(![0, 8080, 9000].contains(&expected.external), "{what}");
                None
            }
            (Served, _) => None,
            _ => panic!("{what}: makes no mapping"),
        };
        let made = self.made();
        match (refused, self.doing) {
            (Some(code), _) => {
                assert_eq!(heard, Err(code), "{what}");
                assert_eq!((made, self.lab.sent()), (vec![standing()], vec![]), "{what}");
            }
            (None, Adds) => {
                let reserved = [expected.external.to_string()];
                let answer = &reserved[..self.action.outputs.len()];
                assert_eq!(heard.as_deref(), Ok(answer), "{what}");
                assert!(made.contains(&standing()) && made.len() == 2, "{what}: {made:?}");
                assert!(made.contains(&expected), "{what}: {made:?}, not {expected:?}");
            }
            (None, Removes) => assert_eq!((heard, made), (done(), vec![]), "{what}"),
            (None, _) => {
                assert!(heard.is_ok(), "{what}: {heard:?}");
                assert_eq!((heard, made), (like_good, vec![standing()]), "{what}");
            }
        }
        self.settle();
    }

    /// The next good requests: they take away what was made, and make what was taken away.
    fn settle(&mut self) {
        let made = self.made();
        if made == [standing()] {
            return;
        }
        for mapping in made.iter().filter(|mapping| **mapping != standing()) {
            let remote = mapping.remote.map_or(String::new(), |peer| peer.to_string());
            let port = mapping.external.to_string();
            let protocol = if mapping.protocol == Protocol::UDP { "UDP" } else { "TCP" };
            let key = [("NewRemoteHost", &*remote), ("NewExternalPort", &*port), ("NewProtocol", protocol)];
            assert_eq!(self.lab.call(ALICE, 2, "DeletePortMapping", &key), done(), "{mapping:?}");
        }
        if !made.contains(&standing()) {
            assert_eq!(self.lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
        }
        // The provider holds freed ports for two minutes (D-15).
        self.lab.pass(121);
        assert_eq!(self.made(), [standing()]);
        let own_rules = usize::from(self.lab.gateway.config.nat == NatMode::Own);
        assert_eq!((self.lab.upstream().len(), self.lab.rules.len()), (1, own_rules));
    }
}

/// Runs `test` for every action, in both versions, with and without a NAT of our own; then asks well.
fn for_every_action(test: fn(&mut Bench)) {
    for nat in BOTH {
        for service in mappings() {
            for action in service.actions() {
                for version in [1, 2] {
                    let mut bench = Bench::new(nat, service, action, version);
                    test(&mut bench);
                    bench.check(&bench.good_elements(), &Served, "the good request, after all that");
                }
            }
        }
    }
}

/// T-10, T-11, R-43 and the rules that the rows name: each argument of each action, each way to write it wrongly.
#[test]
fn every_argument_odd() {
    for_every_action(|bench| {
        for (place, input) in bench.action.inputs.iter().enumerate() {
            let fitting = ROWS.iter().filter(|rows| rows.fit(bench.action, input.name));
            for (oddity, sent, outcome, rule) in fitting.flat_map(|rows| rows.rows) {
                let mut request = bench.good_elements();
                for element in elements(sent, input.name, &bench.good[place].1) {
                    let text: String = String::from_utf8_lossy(&element).chars().take(100).collect();
                    request[place] = element;
                    bench.check(&request, outcome, &format!("{oddity:?}, {rule}: {text:?}"));
                }
            }
        }
    });
}

#[test]
fn every_argument_well_written() {
    for_every_action(|bench| {
        let good = bench.good_elements();
        for (place, input) in bench.action.inputs.iter().enumerate() {
            for spelling in spellings(input.name, &bench.good[place].1) {
                let text = String::from_utf8_lossy(&spelling).into_owned();
                let mut request = good.clone();
                request[place] = spelling;
                bench.check(&request, &Served, &text);
            }
        }
        let reversed: Vec<_> = good.iter().rev().cloned().collect();
        bench.check(&reversed, &Served, "arguments in another order");
        for extra in extras(bench.action) {
            for place in [0, good.len()] {
                let mut request = good.clone();
                request.insert(place, extra.clone().into_bytes());
                bench.check(&request, &Served, &extra);
            }
        }
    });
}

#[test]
fn every_argument_has_its_rows() {
    let inputs: Vec<(&Action, &str)> = mappings()
        .flat_map(Service::actions)
        .flat_map(|action| action.inputs.iter().map(move |input| (action, input.name)))
        .collect();
    let mut lacking = BTreeSet::new();
    for &(action, argument) in &inputs {
        for oddity in ODDITIES {
            let fitting = ROWS.iter().filter(|rows| rows.fit(action, argument));
            if !fitting.flat_map(|rows| rows.rows).any(|row| row.0 == oddity) {
                lacking.insert((argument, oddity));
            }
        }
    }
    assert_eq!(lacking, BTreeSet::new(), "arguments that lack a row");
    for rows in ROWS {
        for argument in rows.arguments {
            assert!(
                inputs.iter().any(|(action, input)| input == argument && rows.fit(action, input)),
                "{argument}"
            );
        }
        for id in rows.of {
            assert!(
                inputs.iter().any(|(action, input)| action.id == *id && rows.fit(action, input)),
                "{id:?}"
            );
        }
    }
}
