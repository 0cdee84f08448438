//! Every argument of every action, as it should not be sent, and as it is sent all the same: igd.md 3, with UDA's own
//! rules (uda.md 7 and 8), those that real clients made (igd.md 9, clients.md), and the security policy.
//!
//! The rows go by argument and by what is odd about it. An action without a good request fails, and so do an argument
//! that lacks a row and a row that no argument needs.

use wire::services::{Action, ActionId};

use super::*;

/// What is odd about an argument.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
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
    /// The good one, and one of this value.
    Twice(&'static str),
    Text(&'static str),
    /// Made of the good value.
    Made(fn(&str) -> String),
    /// Not UTF-8.
    Octets(&'static [u8]),
}

use Sent::*;

/// What becomes of the request.
enum Outcome {
    /// What a control point of :1 hears, and one of :2.
    Refused(u16, u16),
    /// What one of :2 hears.
    RefusedIn2(u16),
    /// The good request's answer, and its effect.
    Served,
    /// The good request's answer; its mapping, but for what differs by the version spoken.
    Makes(fn(&mut Made, u8)),
    /// The good request's mapping with the external port that is answered, which is another.
    MakesAnother,
}

use Outcome::*;

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

const UNSETTLED: [(&str, Oddity); 5] = [
    ("NewEnabled", Missing),
    ("NewEnabled", Empty),
    ("NewPortMappingDescription", Missing),
    ("NewPortMappingIndex", TooLong),
    ("NewProtocol", Empty),
];

const ADDS: &[ActionId] = &[ActionId::AddPortMapping, ActionId::AddAnyPortMapping];
const KEYED: &[ActionId] = &[ActionId::GetSpecificPortMappingEntry, ActionId::DeletePortMapping];
const RANGES: &[ActionId] = &[ActionId::DeletePortMappingRange, ActionId::GetListOfPortMappings];

const PEER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const WEEK: u64 = 604_800;
/// One octet more than is kept of a text (K-13).
const LONG: usize = soap::MAX_TEXT + 1;

fn padded(good: &str) -> String {
    format!(" \t{good}\r\n")
}

fn long(text: &str) -> String {
    text.repeat(LONG.div_ceil(text.len()))
}

/// `number` more than the good value.
fn plus(good: &str, number: u64) -> String {
    (good.parse::<u64>().unwrap() + number).to_string()
}

/// The lease in :1 and in :2; 0 is for ever.
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
        of: &[],
        rows: &[
            (Missing, Nothing, Refused(402, 402), "402, Q-17"),
            (Doubled, Made(str::to_owned), Refused(402, 402), "C-6"),
        ],
    },
];
