//! What the program reads: one JSON object on one line (docs/hooks.md).

use std::net::Ipv4Addr;

use engine::claims::AskedBy;
use engine::gateway::{Change, What};
use engine::notice::Cause;
use engine::status::MappingStatus;
use serde::Serialize;

use super::queue::{News, Told, Waiting};

/// Every other number is another format.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    event: &'static str,
    time: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    uplink: Option<&'a str>,
    #[serde(flatten)]
    of: Of<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Of<'a> {
    Start {},
    External { external_address: Option<Ipv4Addr>, previous_external_address: Option<Ipv4Addr> },
    Mapping(Mapping<'a>),
}

#[derive(Serialize)]
struct Mapping<'a> {
    id: u64,
    protocol: &'static str,
    external_address: Ipv4Addr,
    external_port: u16,
    internal_address: Ipv4Addr,
    internal_port: u16,
    remote_host: Option<Ipv4Addr>,
    description: &'a str,
    /// In seconds.
    lease_left: Option<u64>,
    made_by: &'static str,
    asked_by: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_external_address: Option<Ipv4Addr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_external_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offered_external_address: Option<Ipv4Addr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offered_external_port: Option<u16>,
}

/// The line, with its line feed.
pub(super) fn line(waiting: &Waiting) -> String {
    let Told { uplink, change } = match &waiting.news {
        News::Start => return json("start", waiting.time, None, Of::Start {}),
        News::Change(told) => told,
    };
    let (event, of) = match change {
        Change::External { before, now } => {
            ("external", Of::External { external_address: *now, previous_external_address: *before })
        }
        Change::Mapping { flow, what, mapping } => {
            let event = match what {
                What::Present => "present",
                What::Began => "began",
                What::Moved(_) => "moved",
                What::Changed => "changed",
                What::Ended(_) => "ended",
            };
            (event, Of::Mapping(of_mapping(flow.0, *what, mapping)))
        }
    };
    json(event, waiting.time, Some(uplink), of)
}

fn json(event: &'static str, time: u64, uplink: Option<&str>, of: Of<'_>) -> String {
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
        protocol: if mapping.protocol == wire::pcp::Protocol::UDP { "UDP" } else { "TCP" },
        external_address: *mapping.external.ip(),
        external_port: mapping.external.port(),
        internal_address: *mapping.internal.ip(),
        internal_port: mapping.internal.port(),
        remote_host: mapping.remote_peer,
        description: &mapping.description,
        lease_left: mapping.lease_left.map(|left| left.as_secs()),
        made_by: asked_by(mapping.asked_by).next().unwrap_or("upnp"),
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
fn asked_by(by: AskedBy) -> impl Iterator<Item = &'static str> {
    let all = [(by.igd, "upnp"), (by.pcp, "pcp"), (by.nat_pmp, "nat-pmp")];
    all.into_iter().filter_map(|(has, word)| has.then_some(word))
}

fn word(cause: Cause) -> &'static str {
    match cause {
        Cause::Deleted => "deleted",
        Cause::Replaced => "replaced",
        Cause::LeaseEnded => "lease-ended",
        Cause::LostUpstream => "lost",
        Cause::MovedUpstream(_) => "moved",
        Cause::LocalNat => "nat-refused",
        Cause::NotStored => "not-stored",
        Cause::Released => "released",
        Cause::Rebound => "other-uplink",
        Cause::OffLan => "off-lan",
        Cause::ProtocolOff => "protocol-off",
        Cause::Policy => "policy",
        Cause::Stopping => "stopping",
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
            assert!(
                documentation.contains(&format!("| `{}` |", word(cause))),
                "docs/hooks.md lacks {cause:?}"
            );
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
    }
}
