//! What was asked and what came of it; and what should not have come, at once, on standard output.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Requests by kind and answer.
pub(super) type Counts = BTreeMap<(String, String), u64>;

/// Since the Unix epoch: the players' clock and the conductor's are one.
pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// What the threads of a player count in.
#[derive(Default)]
pub(super) struct Tally(Mutex<Counts>);

impl Tally {
    pub(super) fn count(&self, kind: &str, answer: &str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((kind.to_owned(), answer.to_owned())).or_default() += 1;
    }

    /// A good request that was asked at `since` was not answered.
    pub(super) fn silence(&self, kind: &str, since: Duration, why: &str) {
        self.count(kind, "nothing");
        say("silence", kind, since, why);
    }

    /// It was answered, but a request like this one must not be answered so.
    pub(super) fn wrong(&self, kind: &str, since: Duration, why: &str) {
        say("wrong", kind, since, why);
    }

    /// Everything so far, a line for each.
    pub(super) fn report(&self) {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for ((kind, answer), number) in &*counts {
            println!("count\t{kind}\t{answer}\t{number}");
        }
        println!("reported");
    }
}

fn say(what: &str, kind: &str, since: Duration, why: &str) {
    let why = why.replace(['\n', '\r', '\t'], " ");
    println!("{what}\t{kind}\t{}\t{}\t{why}", since.as_millis(), now().as_millis());
}

/// A line that a player says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Line {
    /// It has found the gateway.
    Ready,
    /// See [`Tally::report`].
    Count(String, String, u64),
    /// The end of a report.
    Reported,
    /// Something that should not have been.
    Trouble(Trouble),
    /// It has let go of everything.
    Done,
}

/// What a player did not expect.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Trouble {
    /// There was no answer; otherwise a wrong one.
    pub(super) silent: bool,
    /// Of which request.
    pub(super) kind: String,
    /// When that was asked, and when this was known, as [`now`] tells it.
    pub(super) during: (Duration, Duration),
    /// What was seen.
    pub(super) why: String,
}

impl Line {
    /// `None`: a player does not talk like that.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split('\t').collect();
        let millis = |text: &str| Some(Duration::from_millis(text.parse().ok()?));
        match fields[..] {
            ["ready"] => Some(Self::Ready),
            ["reported"] => Some(Self::Reported),
            ["done"] => Some(Self::Done),
            ["count", kind, answer, number] => {
                Some(Self::Count(kind.to_owned(), answer.to_owned(), number.parse().ok()?))
            }
            [what @ ("silence" | "wrong"), kind, from, to, why] => Some(Self::Trouble(Trouble {
                silent: what == "silence",
                kind: kind.to_owned(),
                during: (millis(from)?, millis(to)?),
                why: why.to_owned(),
            })),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_players_say_them() {
        assert_eq!(Line::parse("ready"), Some(Line::Ready));
        assert_eq!(Line::parse("count\tPCP MAP\tSUCCESS\t7"), {
            Some(Line::Count("PCP MAP".into(), "SUCCESS".into(), 7))
        });
        let trouble = Trouble {
            silent: true,
            kind: "SSDP".into(),
            during: (Duration::from_secs(1), Duration::from_secs(2)),
            why: "x y".into(),
        };
        assert_eq!(Line::parse("silence\tSSDP\t1000\t2000\tx y"), Some(Line::Trouble(trouble)));
        assert_eq!(Line::parse("silence\tSSDP\t1000"), None);
        assert_eq!(Line::parse("count\ta\tb\tmany"), None);
    }
}
