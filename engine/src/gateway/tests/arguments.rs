//! Every argument of every action, as it should not be sent, and as it is sent all the same: igd.md 3, with UDA's rules
//! for arguments (uda.md 7 and 8), the rules that real clients made (igd.md 9, clients.md) and the security policy.
//!
//! The rows go by argument and by class of oddity; an argument of the table of services without a row of some class
//! fails, and so does a row that no action needs.

use wire::services::{Action, ActionId, Argument};

use super::*;

/// What is odd about an argument. Every argument has a row of each.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Class {
    Missing,
    Doubled,
    Empty,
    TooLong,
    WrongType,
    OutOfRange,
    Padded,
}

use Class::*;

const CLASSES: [Class; 7] = [Missing, Doubled, Empty, TooLong, WrongType, OutOfRange, Padded];

/// What is sent in place of the good argument.
#[derive(Clone, Copy)]
enum Sent {
    Nothing,
    /// The good one and then one of this value.
    Twice(&'static str),
    Text(&'static str),
    /// Made of the good value.
    Made(fn(&str) -> String),
    /// As it stands, whether or not it is UTF-8.
    Octets(&'static [u8]),
}

use Sent::*;

/// What comes of it: the codes that a control point of :1 and one of :2 hear, 400 being HTTP's, or what the good request
/// would have done.
#[derive(Clone, Copy)]
enum Outcome {
    Refused(u16, u16),
    /// The code that one of :2 hears. What one of :1 hears when it calls an action of :2 is not laid down.
    RefusedIn2(u16),
    Served,
    /// Served, and the mapping made differs from the good one.
    Makes(fn(&mut Made1, u8)),
    /// Served with an external port of the gateway's choice.
    MakesAny,
}

use Outcome::*;

/// A mapping, as far as arguments go.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Made1 {
    protocol: Protocol,
    external: u16,
    internal: SocketAddrV4,
    remote: Option<Ipv4Addr>,
    description: String,
    lease: Option<Duration>,
}

type Row = (Class, Sent, Outcome, &'static str);

/// Rows for these arguments of these actions; of all that have them if none is named.
struct Rows {
    arguments: &'static [&'static str],
    of: &'static [ActionId],
    rows: &'static [Row],
}

/// A value that the good one is not. No rule of the documents decides these.
const UNDECIDED: [(&str, Class); 0] = [];

const ADDS: &[ActionId] = &[ActionId::AddPortMapping, ActionId::AddAnyPortMapping];
