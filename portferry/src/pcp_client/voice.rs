//! What is shown of an errand: lines for people as it goes, or one JSON document at its end.

use std::collections::VecDeque;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};
use wire::pcp::{OptionCode, PcpOption, Protocol, ResultCode, ip_from_wire};

use super::args::{Errand, Show, option_words};
use super::client::Event;
use super::message::Answer;
use super::note::Note;
use super::outcome::{Code, Grant, Outcome};
use super::{hex, json};
use crate::exit::Failure;
use crate::table::{columns, duration, printable};

/// So many datagrams and notes of one errand stand in the JSON document at most: those of the end.
const MOST: usize = 1000;

/// Between whom, for the person who reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) server: SocketAddr,
    pub(super) source: SocketAddr,
    pub(super) client: IpAddr,
}

/// What has been said so far.
#[derive(Debug)]
pub(super) struct Voice {
    name: &'static str,
    show: Show,
    ends: Ends,
    /// As it was given.
    source: Option<IpAddr>,
    sent: Option<Duration>,
    tries: u32,
    answered: Option<Answered>,
    datagrams: VecDeque<Value>,
    notes: VecDeque<String>,
}

#[derive(Clone, Debug)]
struct Answered {
    answer: Answer,
    round_trip: Duration,
}

impl Voice {
    pub(super) fn new(errand: &Errand, ends: Ends) -> Self {
        Self {
            name: errand.name,
            show: errand.asking.show,
            ends,
            source: errand.asking.source,
            sent: None,
            tries: 0,
            answered: None,
            datagrams: VecDeque::new(),
            notes: VecDeque::new(),
        }
    }

    /// The first line.
    pub(super) fn begin(&self) -> String {
        if self.show.json {
            return String::new();
        }
        let Ends { server, source, client } = self.ends;
        let says = if client == source.ip() { String::new() } else { format!(", as {client}") };
        format!("asking {server} from {source}{says}\n")
    }

    /// Takes in what happens `at` this time since the beginning; what to print now.
    pub(super) fn hear(&mut self, at: Duration, event: &Event) -> String {
        match event {
            Event::Send { bytes, question, tries } => {
                (self.sent, self.tries) = (Some(at), *tries);
                self.keep(at, "sent", self.ends.server, bytes, json::question(question), None);
                let again = if *tries > 1 { format!(" (try {tries})") } else { String::new() };
                self.line(at, '>', &format!("{question}{again}"), bytes)
            }
            Event::Answered { bytes, answer } => {
                let round_trip = at.saturating_sub(self.sent.unwrap_or(at));
                self.answered = Some(Answered { answer: answer.clone(), round_trip });
                self.keep(at, "received", self.ends.server, bytes, json::answer(answer, bytes), None);
                self.line(at, '<', &format!("{answer} ({})", millis(round_trip)), bytes)
            }
            Event::Told { bytes, answer } => {
                self.keep(at, "received", self.ends.server, bytes, json::answer(answer, bytes), None);
                self.line(at, '<', &format!("{answer} (unasked)"), bytes)
            }
            Event::Ignored { from, bytes, why } => {
                let why = why.to_string();
                self.keep(at, "received", *from, bytes, Value::Null, Some(&why));
                if self.show.verbose {
                    self.line(at, '<', &format!("ignored {} octets: {why}", bytes.len()), bytes)
                } else {
                    String::new()
                }
            }
            Event::Note(note) => {
                // What is renewed every half an hour is no news for the end.
                if !matches!(note, Note::Held { .. }) {
                    push(&mut self.notes, note.to_string());
                }
                self.line(at, '-', &note.to_string(), &[])
            }
            Event::Ended(outcome) => self.end(outcome),
        }
    }

    fn keep(
        &mut self,
        at: Duration,
        direction: &str,
        peer: SocketAddr,
        bytes: &[u8],
        message: Value,
        ignored: Option<&str>,
    ) {
        if !self.show.json {
            return;
        }
        let datagram = json!({
            "at_ms": rounded_millis(at),
            "direction": direction,
            "peer": json::peer(peer),
            "octets": hex::plain(bytes),
            "message": message,
            "ignored": ignored,
        });
        // What anybody can send goes before what was said.
        let stray = |datagram: &Value| !datagram["ignored"].is_null();
        if self.datagrams.len() == MOST
            && let Some(at) = self.datagrams.iter().position(stray)
        {
            self.datagrams.remove(at);
        }
        if self.datagrams.len() < MOST || !stray(&datagram) {
            push(&mut self.datagrams, datagram);
        }
    }

    fn line(&self, at: Duration, sign: char, text: &str, bytes: &[u8]) -> String {
        if self.show.json {
            return String::new();
        }
        let mut out = format!("{:>8.3} {sign} {}\n", at.as_secs_f64(), printable(text));
        if self.show.hex {
            for line in hex::lines(bytes) {
                let _ = writeln!(out, "{:11}{line}", "");
            }
        }
        out
    }

    fn end(&self, outcome: &Outcome) -> String {
        if self.show.json { self.document(outcome) } else { self.summary(outcome) }
    }

    /// One document, see docs/pcp-json.md.
    fn document(&self, outcome: &Outcome) -> String {
        let failure = outcome.failure(self.ends.server);
        let answer = self.answered.as_ref();
        let result = match (outcome, answer.map(|answered| &answered.answer)) {
            (Outcome::Refused(refusal), _) => Some(refusal.code),
            (_, Some(Answer::Pcp(response))) => Some(Code::Pcp(response.result)),
            (_, Some(Answer::NatPmp(response))) => Some(Code::NatPmp(response.result())),
            (_, Some(Answer::Version(_))) => Some(Code::Pcp(ResultCode::UNSUPP_VERSION)),
            (_, None) => None,
        };
        let (lifetime, options) = match answer.map(|answered| &answered.answer) {
            Some(Answer::Pcp(response)) => (Some(response.lifetime), json::options(&response.options)),
            Some(Answer::NatPmp(wire::natpmp::Response::Map { lifetime, .. })) => {
                (Some(*lifetime), json!([]))
            }
            Some(Answer::Version(refusal)) => (Some(refusal.lifetime), json!([])),
            _ => (None, json!([])),
        };
        let spoken = answer.map(|answered| json::protocol(&answered.answer));
        let hint = match outcome {
            Outcome::Refused(refusal) => Some(refusal.code.hint()),
            _ => None,
        };
        let mapping = match outcome {
            Outcome::Granted(grant) => json::grant(grant),
            _ => Value::Null,
        };
        let external = match outcome {
            Outcome::External(addr) => Some(*addr),
            Outcome::Granted(grant) => grant.external_addr,
            _ => None,
        };
        let mappings = match outcome {
            Outcome::Listed(all) => all.iter().map(json::next).collect(),
            _ => Value::Null,
        };
        let document = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "command": self.name,
            "server": json::peer(self.ends.server),
            "source": json::peer(self.ends.source),
            "client_address": self.ends.client,
            "spoken": spoken,
            "outcome": outcome.word(),
            "exit_code": failure.as_ref().map_or(0, Failure::code),
            "message": failure.as_ref().map(ToString::to_string),
            "why": hint.map(|hint| hint.why),
            "what_to_do": hint.map(|hint| hint.what_to_do),
            "result": result.map(json::code),
            "lifetime": lifetime,
            "epoch": answer.and_then(|answered| answered.answer.epoch()),
            "options": options,
            "mapping": mapping,
            "remaining": outcome.remaining(),
            "external_address": external.filter(|addr| !addr.is_unspecified()),
            "mappings": mappings,
            "round_trip_ms": answer.map(|answered| rounded_millis(answered.round_trip)),
            "tries": self.tries,
            "notes": self.notes,
            "datagrams": self.datagrams,
        });
        format!("{document:#}\n")
    }

    /// A few lines; a failure's are the shell's.
    fn summary(&self, outcome: &Outcome) -> String {
        let mut rows: Vec<(&str, String)> = Vec::new();
        match outcome {
            Outcome::Granted(grant) => {
                rows.push(("mapping", mapping(grant)));
                rows.push((
                    "lifetime",
                    format!("{} s ({})", grant.lifetime, duration(grant.lifetime.into())),
                ));
                if !grant.options.is_empty() {
                    rows.push(("options", self::options(&grant.options)));
                }
                rows.push(("server", self.server()));
                rows.push(match grant.peer {
                    None => ("delete with", self.delete_line(grant)),
                    Some(_) => ("ends", "by itself: a PEER mapping cannot be deleted".to_owned()),
                });
            }
            Outcome::Deleted { remaining: 0 } => {
                rows.push(("deleted", "the mapping is gone, or was not there".to_owned()));
                rows.push(("server", self.server()));
            }
            Outcome::Deleted { remaining } => {
                rows.push(("not yet deleted", format!("the server keeps it for another {remaining} s")));
                rows.push(("server", self.server()));
            }
            Outcome::Alive => {
                rows.push(("server", self.server()));
                if let Some(Answer::NatPmp(response)) =
                    self.answered.as_ref().map(|answered| &answered.answer)
                    && let wire::natpmp::Response::ExternalAddress { addr, .. } = response
                {
                    rows.push(("external", addr.to_string()));
                }
            }
            Outcome::External(addr) if addr.is_unspecified() => {
                rows.push(("external", "none: the server has no external address".to_owned()));
                rows.push(("server", self.server()));
            }
            Outcome::External(addr) => {
                rows.push(("external", addr.to_string()));
                rows.push(("server", self.server()));
            }
            Outcome::Listed(all) if all.is_empty() => rows.push(("mappings", "none".to_owned())),
            Outcome::Listed(all) => {
                let head = ["PROTO", "INTERNAL", "EXTERNAL", "LEFT", "NONCE", "OPTIONS"].map(str::to_owned);
                let row = |next: &wire::pcp::NextMapping| {
                    [
                        next.protocol.to_string(),
                        endpoint(ip_from_wire(next.internal_addr), next.internal_port),
                        endpoint(ip_from_wire(next.external_addr), next.external_port),
                        duration(next.lifetime.into()),
                        next.nonce.to_string(),
                        printable(&self::options(&next.options)),
                    ]
                };
                return format!("\n{}", columns(std::iter::once(head).chain(all.iter().map(row))));
            }
            _ => {}
        }
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut out = if rows.is_empty() { String::new() } else { "\n".to_owned() };
        for (name, value) in rows {
            let _ = writeln!(out, "{name:<width$}  {}", printable(&value));
        }
        out
    }

    /// `100.64.0.1:5351 by PCP, its state is 12s old (epoch 12), answered in 0.8 ms`
    fn server(&self) -> String {
        let mut text = self.ends.server.to_string();
        if let Some(answered) = &self.answered {
            text += if matches!(answered.answer, Answer::NatPmp(_)) { " by NAT-PMP" } else { " by PCP" };
            if let Some(epoch) = answered.answer.epoch() {
                let _ = write!(text, ", its state is {} old (epoch {epoch})", duration(epoch.into()));
            }
            let _ = write!(text, ", answered in {}", millis(answered.round_trip));
        }
        text
    }

    /// What takes the mapping away again.
    fn delete_line(&self, grant: &Grant) -> String {
        let protocol = match grant.protocol.name() {
            Some(name) => name.to_ascii_lowercase(),
            None => grant.protocol.0.to_string(),
        };
        let port = grant.internal.port();
        let mut text = format!("portferry pcp delete {protocol} {port} --server {}", self.ends.server);
        if let Some(source) = self.source {
            let _ = write!(text, " --source {source}");
        }
        if self.ends.client != self.ends.source.ip() {
            let _ = write!(text, " --client-address {}", self.ends.client);
        }
        match grant.nonce {
            Some(nonce) => {
                let _ = write!(text, " --nonce {nonce}");
            }
            None => text += " --protocol nat-pmp",
        }
        text + &option_words(&grant.options)
    }
}

/// Whoever keeps a mapping for a year does not fill the memory with it.
fn push<T>(all: &mut VecDeque<T>, one: T) {
    if all.len() == MOST {
        all.pop_front();
    }
    all.push_back(one);
}

/// `TCP 192.168.1.10:8080 -> 203.0.114.1:9090`
fn mapping(grant: &Grant) -> String {
    let outside = match grant.external_addr {
        Some(addr) => endpoint(addr, grant.external_port),
        None => format!("port {} of the external address", grant.external_port),
    };
    let inside = endpoint(grant.internal.ip(), grant.internal.port());
    let protocol = match grant.protocol {
        Protocol::ALL => "all protocols".to_owned(),
        other => other.to_string(),
    };
    let size = grant.options.iter().find_map(|option| match option {
        PcpOption::PortSet(set) if set.size > 1 => Some(format!(", {} ports from these on", set.size)),
        _ => None,
    });
    let peer = grant.peer.map(|peer| format!(", for {peer} only"));
    format!("{protocol} {inside} -> {outside}{}{}", peer.unwrap_or_default(), size.unwrap_or_default())
}

/// Port 0 is every port.
fn endpoint(addr: IpAddr, port: u16) -> String {
    if port == 0 { format!("{addr}, all ports") } else { SocketAddr::new(addr, port).to_string() }
}

fn options(options: &[PcpOption]) -> String {
    let shown = options.iter().filter(|option| option.code() != OptionCode::NEXT);
    shown.map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn millis(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

/// Milliseconds with three digits behind the point.
fn rounded_millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
