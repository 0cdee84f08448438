//! What the program reads: one JSON object on one line (docs/hooks.md).

use std::borrow::Cow;
use std::net::Ipv4Addr;

use engine::claims::AskedBy;
use engine::gateway::{Change, What};
use engine::notice::Cause;
use engine::status::MappingStatus;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use wire::soap::MAX_TEXT;

use super::queue::{News, Told, Waiting};
use crate::config::is_interface_name;

/// Every other number is another format.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    event: Event,
    time: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    uplink: Option<&'a str>,
    #[serde(flatten)]
    of: Of<'a>,
}

/// What stands in every line.
#[derive(Deserialize)]
struct Head {
    version: u32,
    event: Event,
    time: u64,
    uplink: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Event {
    Start,
    External,
    Present,
    Began,
    Moved,
    Changed,
    Ended,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Of<'a> {
    Start {},
    External(External),
    Mapping(Mapping<'a>),
}

#[derive(Deserialize, Serialize)]
struct External {
    external_address: Option<Ipv4Addr>,
    previous_external_address: Option<Ipv4Addr>,
}

#[derive(Deserialize, Serialize)]
struct Mapping<'a> {
    id: u64,
    protocol: Transport,
    external_address: Ipv4Addr,
    external_port: u16,
    internal_address: Ipv4Addr,
    internal_port: u16,
    remote_host: Option<Ipv4Addr>,
    description: Cow<'a, str>,
    /// In seconds.
    lease_left: Option<u64>,
    made_by: By,
    asked_by: Vec<By>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_external_address: Option<Ipv4Addr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_external_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<Word>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offered_external_address: Option<Ipv4Addr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offered_external_port: Option<u16>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
enum Transport {
    Tcp,
    Udp,
}

/// A protocol by which it was asked for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
enum By {
    Upnp,
    Pcp,
    NatPmp,
}

/// Why it has ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    Deleted,
    Replaced,
    LeaseEnded,
    Lost,
    Moved,
    NatRefused,
    NotStored,
    Released,
    OtherUplink,
    OffLan,
    ProtocolOff,
    Policy,
    Stopping,
}

/// A line that somebody says is one of [`line`]'s, written anew from what it says; who runs the program as root believes no other.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn checked(said: &str) -> Result<String, String> {
    let head: Head = read(said)?;
    let of = match head.event {
        Event::Start => Of::Start {},
        Event::External => Of::External(read(said)?),
        event => Of::Mapping(read(said).and_then(|mapping| mapping_of(event, mapping))?),
    };
    let begins = head.event == Event::Start;
    let is_named = head.uplink.as_ref().is_some_and(|name| is_interface_name(name));
    if head.version != VERSION || begins && head.uplink.is_some() || !begins && !is_named {
        return Err("it is of another version, or of no uplink".to_owned());
    }
    let line = json(head.event, head.time, head.uplink.as_deref(), of);
    // So it has nothing beside that, and all of it.
    if line == said { Ok(line) } else { Err("it is not written as it would be here".to_owned()) }
}

fn read<T: DeserializeOwned>(said: &str) -> Result<T, String> {
    serde_json::from_str(said).map_err(|error| error.to_string())
}

/// What an event of this kind says of a mapping.
fn mapping_of(event: Event, mapping: Mapping<'static>) -> Result<Mapping<'static>, String> {
    let has_previous = mapping.previous_external_address.is_some();
    let has_offered = mapping.offered_external_address.is_some();
    let are_both = has_previous == mapping.previous_external_port.is_some()
        && has_offered == mapping.offered_external_port.is_some();
    let fits = has_previous == (event == Event::Moved)
        && mapping.cause.is_some() == (event == Event::Ended)
        && has_offered == (mapping.cause == Some(Word::Moved));
    let each_once = mapping.asked_by.is_sorted_by(|one, next| one < next);
    if mapping.description.len() > MAX_TEXT || !are_both || !fits || !each_once {
        return Err(format!("no {event:?} says that of a mapping"));
    }
    Ok(mapping)
}

/// The line, with its line feed.
pub(super) fn line(waiting: &Waiting) -> String {
    let Told { uplink, change } = match &waiting.news {
        News::Start => return json(Event::Start, waiting.time, None, Of::Start {}),
        News::Change(told) => told,
    };
    let (event, of) = match change {
        Change::External { before, now } => {
            let told = External { external_address: *now, previous_external_address: *before };
            (Event::External, Of::External(told))
        }
        Change::Mapping { flow, what, mapping } => {
            let event = match what {
                What::Present => Event::Present,
                What::Began => Event::Began,
                What::Moved(_) => Event::Moved,
                What::Changed => Event::Changed,
                What::Ended(_) => Event::Ended,
            };
            (event, Of::Mapping(of_mapping(flow.0, *what, mapping)))
        }
    };
    json(event, waiting.time, Some(uplink), of)
}

fn json(event: Event, time: u64, uplink: Option<&str>, of: Of<'_>) -> String {
    let report = Report { version: VERSION, event, time, uplink, of };
    serde_json::to_string(&report).expect("plain values become JSON") + "\n"
}

fn of_mapping(id: u64, what: What, mapping: &MappingStatus) -> Mapping<'_> {
    let previous = match what {
        What::Moved(from) => Some(from),
        _ => None,
    };
    let offered = match what {
        What::Ended(Cause::MovedUpstream(to)) => Some(to),
        _ => None,
    };
    Mapping {
        id,
        protocol: if mapping.protocol == wire::pcp::Protocol::UDP { Transport::Udp } else { Transport::Tcp },
        external_address: *mapping.external.ip(),
        external_port: mapping.external.port(),
        internal_address: *mapping.internal.ip(),
        internal_port: mapping.internal.port(),
        remote_host: mapping.remote_peer,
        description: mapping.description.as_str().into(),
        lease_left: mapping.lease_left.map(|left| left.as_secs()),
        made_by: asked_by(mapping.asked_by).next().unwrap_or(By::Upnp),
        asked_by: asked_by(mapping.asked_by).collect(),
        previous_external_address: previous.map(|from| *from.ip()),
        previous_external_port: previous.map(|from| from.port()),
        cause: match what {
            What::Ended(cause) => Some(word(cause)),
            _ => None,
        },
        offered_external_address: offered.map(|to| *to.ip()),
        offered_external_port: offered.map(|to| to.port()),
    }
}

/// The first is the one to follow for who follows one only.
fn asked_by(by: AskedBy) -> impl Iterator<Item = By> {
    let all = [(by.igd, By::Upnp), (by.pcp, By::Pcp), (by.nat_pmp, By::NatPmp)];
    all.into_iter().filter_map(|(has, word)| has.then_some(word))
}

fn word(cause: Cause) -> Word {
    match cause {
        Cause::Deleted => Word::Deleted,
        Cause::Replaced => Word::Replaced,
        Cause::LeaseEnded => Word::LeaseEnded,
        Cause::LostUpstream => Word::Lost,
        Cause::MovedUpstream(_) => Word::Moved,
        Cause::LocalNat => Word::NatRefused,
        Cause::NotStored => Word::NotStored,
        Cause::Released => Word::Released,
        Cause::Rebound => Word::OtherUplink,
        Cause::OffLan => Word::OffLan,
        Cause::ProtocolOff => Word::ProtocolOff,
        Cause::Policy => Word::Policy,
        Cause::Stopping => Word::Stopping,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{mapping, of, told};
    use super::*;

    fn said(news: News) -> String {
        line(&Waiting { news, time: 1_750_000_000 })
    }

    /// docs/hooks.md shows every kind of line as it is.
    #[test]
    fn the_lines_of_the_documentation() {
        let documentation =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/hooks.md")).unwrap();
        let (now, before) = (mapping(40_112).external, mapping(40_007).external);
        for news in [
            News::Start,
            News::Change(told(Change::External { before: None, now: Some(*now.ip()) })),
            News::Change(of(7, What::Present, 40_007)),
            News::Change(of(7, What::Began, 40_007)),
            News::Change(of(7, What::Moved(before), 40_112)),
            News::Change(of(7, What::Changed, 40_112)),
            News::Change(of(7, What::Ended(Cause::LeaseEnded), 40_112)),
            News::Change(of(7, What::Ended(Cause::MovedUpstream(now)), 40_007)),
        ] {
            let line = said(news);
            assert!(documentation.contains(&line), "docs/hooks.md lacks: {line}");
            assert_eq!(checked(&line), Ok(line));
        }
        for cause in [
            Cause::Deleted,
            Cause::Replaced,
            Cause::LeaseEnded,
            Cause::LostUpstream,
            Cause::MovedUpstream(now),
            Cause::LocalNat,
            Cause::NotStored,
            Cause::Released,
            Cause::Rebound,
            Cause::OffLan,
            Cause::ProtocolOff,
            Cause::Stopping,
        ] {
            let word = serde_json::to_string(&word(cause)).unwrap().replace('"', "`");
            assert!(documentation.contains(&format!("| {word} |")), "docs/hooks.md lacks {cause:?}");
        }
    }

    /// Descriptions come from the LAN: whatever they hold, it is one line of JSON.
    #[test]
    fn a_description_stays_a_string() {
        let description = "\"},{\"event\":\"ended\"\n`reboot` $(reboot) \u{2028} ü".to_owned();
        let Change::Mapping { flow, what, mapping } = of(7, What::Began, 5000).change else { unreachable!() };
        let mapping = MappingStatus { description: description.clone(), ..mapping };
        let line = said(News::Change(told(Change::Mapping { flow, what, mapping })));
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&value["description"], &value["event"]), (&description.into(), &"began".into()));
        assert_eq!(checked(&line), Ok(line));
    }

    /// What the network process may have the program told is one of these lines, and nothing else.
    #[test]
    fn what_is_none_of_our_lines() {
        let began = said(News::Change(of(7, What::Began, 40_007)));
        let moved = said(News::Change(of(7, What::Moved(mapping(40_007).external), 40_112)));
        let ended = said(News::Change(of(7, What::Ended(Cause::LeaseEnded), 40_112)));
        let internal = mapping(40_007).internal.ip().to_string();
        let of_description = |text: &str| {
            let mut value: serde_json::Value = serde_json::from_str(&began).unwrap();
            let old = value["description"].take().to_string();
            began.replace(&old, &serde_json::to_string(text).unwrap())
        };
        assert!(checked(&of_description(&"x".repeat(MAX_TEXT))).is_ok());
        for (why, line) in [
            ("nothing", String::new()),
            ("no line feed", began.trim_end().to_owned()),
            ("two lines", format!("{began}{began}")),
            ("blanks", began.replace(':', ": ")),
            ("no address", began.replace(&format!("\"{internal}\""), "\"$(x)\"")),
            ("an address too long", began.replace(&internal, &format!("{internal} "))),
            ("an event that there is not", began.replace("began", "reboot")),
            ("a version that there is not", began.replace("\"version\":1", "\"version\":2")),
            ("a word more", began.replace("\"version\":1", "\"version\":1,\"path\":\"/bin/sh\"")),
            ("a word twice", began.replace("\"version\":1", "\"version\":1,\"version\":1")),
            ("a word less", ended.replace("\"cause\":\"lease-ended\"", "")),
            ("a cause that there is not", ended.replace("lease-ended", "$(x)")),
            ("an end without a cause", began.replace("began", "ended")),
            ("a beginning with one", ended.replace("ended\",\"time", "began\",\"time")),
            ("a change with an earlier place", moved.replace("moved", "changed")),
            ("no protocol", began.replace("\"TCP\"", "\"$(x)\"").replace("\"UDP\"", "\"$(x)\"")),
            ("nobody's protocol", began.replace("upnp", "$(x)")),
            ("a port too high", began.replace("40007", "400070")),
            ("no interface", began.replace("\"uplink\":\"", "\"uplink\":\"../")),
            ("a long description", of_description(&"x".repeat(MAX_TEXT + 1))),
        ] {
            assert!(checked(&line).is_err(), "{why}: {line}");
        }
    }
}
