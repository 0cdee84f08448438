//! What policy has refused, and whom the owner has to decide on, as the control socket tells it.

use std::net::{IpAddr, SocketAddr};

use engine::policy::{Counted, Decided, Device, Verb, Wish};
use engine::status::{ConsentStatus, PolicyStatus, WaitingStatus};
use serde::{Deserialize, Serialize};

use super::{consent_word, names};

/// What one reason, or one rule, has refused.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct RefusedReport {
    /// Which, in one word: "other-host", "never-mapped", "off-lan", "low-port", "never-port", "rule", "default", "awaits-consent",
    /// "no-consent", "host-quota", "table-full", "too-often".
    pub reason: String,
    /// The rule, where it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The same in words.
    pub words: String,
    /// How often.
    pub times: u64,
    /// Who asked last.
    pub last_by: IpAddr,
    /// How many seconds ago that was.
    pub last: u64,
}

/// What `portferry consent --json` prints.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ConsentsReport {
    /// Decisions count: `policy.default` is "ask".
    pub asks: bool,
    /// Who waits, the longest first.
    pub waiting: Vec<WaitingReport>,
    /// Decisions.
    pub decided: Vec<DecidedReport>,
}

/// Somebody who waits for the owner.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct WaitingReport {
    /// By what it is known again: its hardware address, or an IP address where that is not known.
    pub device: String,
    /// Where it last spoke from.
    pub address: IpAddr,
    /// What it wanted first.
    pub first: WishReport,
    /// What it wanted last.
    pub last: WishReport,
    /// In which protocols: "UPnP", "PCP", "NAT-PMP".
    pub asked_by: Vec<String>,
    /// How many seconds it has waited.
    pub since: u64,
    /// How many seconds ago it asked last.
    pub last_asked: u64,
    /// How often it has asked.
    pub times: u64,
}

/// What somebody wanted.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct WishReport {
    /// "TCP" or "UDP".
    pub protocol: String,
    /// The external port; absent for any.
    pub external_port: Option<u16>,
    /// The LAN host and its port.
    pub internal: SocketAddr,
}

/// A decision of the owner's.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct DecidedReport {
    /// As in [`WaitingReport`].
    pub device: String,
    /// Where it was at the time.
    pub address: Option<IpAddr>,
    /// Yes or no.
    pub allowed: bool,
}

/// What `portferry consent allow`, `deny` and `forget` print with `--json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ConsentReport {
    /// As in [`WaitingReport`].
    pub device: String,
    /// "allow", "deny" or "forget".
    pub decision: String,
    /// Decisions count: `policy.default` is "ask".
    pub asks: bool,
    /// How many mappings and pinholes of it are gone.
    pub released: usize,
    /// That is stored; if not, a restart does not know of it.
    pub stored: bool,
}

impl ConsentReport {
    /// Of this decision.
    pub fn new(verb: Verb, device: Device, asks: bool, released: usize, stored: bool) -> Self {
        let (device, decision) = (device.to_string(), consent_word(verb).to_owned());
        Self { device, decision, asks, released, stored }
    }
}

impl ConsentsReport {
    /// Of all uplinks: each has its own hosts that wait, and all have the same decisions.
    pub fn new(all: impl Iterator<Item = ConsentStatus>) -> Self {
        let mut report = Self { asks: false, waiting: Vec::new(), decided: Vec::new() };
        for status in all {
            report.asks |= status.asks;
            report.waiting.extend(status.waiting.into_iter().map(WaitingReport::from));
            for decided in status.decided.into_iter().map(DecidedReport::from) {
                if !report.decided.contains(&decided) {
                    report.decided.push(decided);
                }
            }
        }
        report
    }
}

impl From<WaitingStatus> for WaitingReport {
    fn from(waiting: WaitingStatus) -> Self {
        let wish = |wish: Wish| WishReport {
            protocol: if wish.protocol == wire::pcp::Protocol::UDP { "UDP" } else { "TCP" }.to_owned(),
            external_port: wish.external_port,
            internal: wish.internal,
        };
        Self {
            device: waiting.of.device.to_string(),
            address: waiting.of.address,
            first: wish(waiting.of.first),
            last: wish(waiting.of.last),
            asked_by: names(waiting.of.asked_by),
            since: waiting.since.as_secs(),
            last_asked: waiting.last.as_secs(),
            times: waiting.of.times,
        }
    }
}

impl From<Decided> for DecidedReport {
    fn from(decided: Decided) -> Self {
        let Decided { device, address, allowed } = decided;
        Self { device: device.to_string(), address, allowed }
    }
}

/// The refusals of all uplinks, the same ones added up.
pub(super) fn refused(all: &mut Vec<RefusedReport>, of: &PolicyStatus) {
    for one in &of.refused {
        let rule = match &one.what {
            Counted::Rule(rule) => Some(rule.clone()),
            _ => None,
        };
        let (reason, words) = (one.what.name().to_owned(), one.what.to_string());
        let (times, last_by, last) = (one.times, one.last_by, one.last.as_secs());
        match all.iter_mut().find(|other| other.words == words) {
            Some(other) => {
                other.times = other.times.saturating_add(times);
                if last < other.last {
                    (other.last, other.last_by) = (last, last_by);
                }
            }
            None => all.push(RefusedReport { reason, rule, words, times, last_by, last }),
        }
    }
}
