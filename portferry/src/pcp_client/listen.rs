//! `portferry pcp listen`: what servers multicast when they have started or lost their state (RFC 6887 §14.1, RFC 6886 §3.2.1).

use std::collections::BTreeMap;
use std::future;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::mpsc;
use wire::natpmp;
use wire::pcp::{ANNOUNCE_GROUP_V4, ANNOUNCE_GROUP_V6, CLIENT_PORT, Response};

use super::args::{ListenArgs, Show};
use super::epochs::Epochs;
use super::message::Answer;
use super::shell::say;
use super::{hex, json};
use crate::clock;
use crate::exit::Failure;
use crate::netlink::{Interface, Netlink};
use crate::sockets::{self, Reading};
use crate::table::printable;

/// One datagram of one interface.
pub(super) struct Heard {
    interface: String,
    pub(super) from: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

/// What is announced on one link.
pub(super) struct Announcements {
    heard: mpsc::Receiver<Heard>,
    _sockets: Vec<Reading>,
}

impl Announcements {
    /// On the link that has this address of ours; `None` where nobody can listen, which is no reason not to go on.
    pub(super) async fn beside(own: IpAddr) -> Option<Self> {
        let snapshot = Netlink::open().ok()?.snapshot().await.ok()?;
        let has_own = |one: &&Interface| one.addresses.iter().any(|(addr, _)| *addr == own);
        let interface = snapshot.interfaces.iter().find(has_own)?;
        let (queue, heard) = mpsc::channel(64);
        let (_, sockets) = open(&[interface], &queue).ok()?;
        Some(Self { heard, _sockets: sockets })
    }

    /// The next one; for ever none if nobody listens.
    pub(super) async fn next(announcements: &mut Option<Self>) -> Heard {
        match announcements {
            Some(Self { heard, .. }) => match heard.recv().await {
                Some(heard) => heard,
                None => future::pending().await,
            },
            None => future::pending().await,
        }
    }
}

/// What is known of a server: the interface and address it speaks from, and its port.
type Speaker = (String, SocketAddr, bool);

/// More servers than any link has; of others each announcement is the first.
const MOST_SPEAKERS: usize = 1000;

/// Listens until it has heard enough, or waited long enough.
pub(super) async fn run(args: &ListenArgs) -> Result<(), Failure> {
    let no_netlink = |error| Failure::system(format!("cannot read the system's interfaces: {error}"));
    let snapshot = Netlink::open().map_err(no_netlink)?.snapshot().await.map_err(no_netlink)?;
    let (queue, mut heard) = mpsc::channel(64);
    let (listening, _sockets) = open(&chosen(&snapshot.interfaces, args)?, &queue)?;
    if !args.show.json {
        say(&format!("listening on UDP {CLIENT_PORT}: {}\n", listening.join(", ")));
    }
    let began = Instant::now();
    let mut ear = Ear { show: args.show, epochs: BTreeMap::new() };
    let mut count = 0;
    while args.count.is_none_or(|most| count < most) {
        let left = args.wait.map(|wait| wait.saturating_sub(began.elapsed()));
        tokio::select! {
            Some(datagram) = heard.recv() => {
                let (announcement, text) = ear.hear(began.elapsed(), clock::now(), &datagram);
                count += u64::from(announcement);
                if !say(&text) {
                    break;
                }
            }
            () = after(left) => break,
        }
    }
    if count == 0 {
        return Err(Failure::unavailable(
            "no server announced itself. Servers do so when they start or lose their state, and a provider's are not on this link",
        ));
    }
    Ok(())
}

/// The interfaces that are named, or all that may have a server beside them.
fn chosen<'a>(all: &'a [Interface], args: &ListenArgs) -> Result<Vec<&'a Interface>, Failure> {
    let loopback = |one: &Interface| one.addresses.iter().any(|(addr, _)| addr.is_loopback());
    if args.interfaces.is_empty() {
        return Ok(all.iter().filter(|one| one.up && !loopback(one) && !one.addresses.is_empty()).collect());
    }
    let find = |name: &String| {
        let found = all.iter().find(|one| one.name == *name);
        found.ok_or_else(|| Failure::usage(format!("there is no interface {name}: see `ip link`")))
    };
    args.interfaces.iter().map(find).collect()
}

/// A socket for each interface and family; one that cannot be had is left out as long as there is another.
fn open(
    interfaces: &[&Interface],
    queue: &mpsc::Sender<Heard>,
) -> Result<(Vec<String>, Vec<Reading>), Failure> {
    let (mut names, mut readings, mut failed) = (Vec::new(), Vec::new(), None);
    for interface in interfaces {
        let Interface { name, index, .. } = interface;
        for (group, socket) in [
            (ANNOUNCE_GROUP_V4.to_string(), sockets::announcements(name, *index)),
            (ANNOUNCE_GROUP_V6.to_string(), sockets::announcements_v6(name, *index)),
        ] {
            let heard = {
                let interface = name.clone();
                move |from, bytes| Heard { interface: interface.clone(), from, bytes }
            };
            match socket.and_then(|socket| Reading::start(socket, queue.clone(), heard)) {
                Ok(reading) => {
                    names.push(format!("{group} by {name}"));
                    readings.push(reading);
                }
                Err(error) => failed = Some(format!("{group} by {name}: {error}")),
            }
        }
    }
    if readings.is_empty() {
        return Err(match failed {
            Some(why) => Failure::system(format!("cannot listen to {why}")),
            None => Failure::system("there is no interface to listen on: name one with --interface"),
        });
    }
    Ok((names, readings))
}

/// Tells what is heard.
struct Ear {
    show: Show,
    epochs: BTreeMap<Speaker, Epochs>,
}

impl Ear {
    /// Whether it was an announcement, and what to print.
    fn hear(&mut self, at: Duration, now: engine::time::Instant, heard: &Heard) -> (bool, String) {
        let Heard { interface, from, bytes } = heard;
        let answer = announcement(bytes);
        let verdict = answer.as_ref().and_then(|answer| {
            answer.epoch()?;
            let speaker = (interface.clone(), *from, matches!(answer, Answer::Pcp(_)));
            Some(match self.epochs.get_mut(&speaker) {
                Some(epochs) => match epochs.is_consistent(now, answer) {
                    true => "state kept",
                    false => "state lost",
                },
                None => {
                    let mut epochs = Epochs::default();
                    epochs.is_consistent(now, answer);
                    if self.epochs.len() < MOST_SPEAKERS {
                        self.epochs.insert(speaker, epochs);
                    }
                    "first heard"
                }
            })
        });
        (answer.is_some(), self.text(at, heard, answer.as_ref(), verdict))
    }

    fn text(&self, at: Duration, heard: &Heard, answer: Option<&Answer>, verdict: Option<&str>) -> String {
        let Heard { interface, from, bytes } = heard;
        if self.show.json {
            let line = json!({
                "at_ms": (at.as_secs_f64() * 1e6).round() / 1e3,
                "interface": interface,
                "peer": json::peer(*from),
                "octets": hex::plain(bytes),
                "message": answer.map(|answer| json::answer(answer, bytes)),
                "state": verdict,
            });
            return format!("{line}\n");
        }
        if answer.is_none() && !self.show.verbose {
            return String::new();
        }
        let seconds = at.as_secs_f64();
        let what = match (answer, verdict) {
            (Some(answer), Some(verdict)) => format!("{answer} ({verdict})"),
            (Some(answer), None) => answer.to_string(),
            (None, _) => format!("ignored {} octets: no announcement", bytes.len()),
        };
        let mut text = format!("{seconds:>8.3} {interface} {from} < {}\n", printable(&what));
        if self.show.hex {
            text.extend(hex::lines(bytes).iter().map(|line| format!("{:11}{line}\n", "")));
        }
        text
    }
}

/// A response of either protocol; that nobody here has asked anything makes it unasked.
fn announcement(bytes: &[u8]) -> Option<Answer> {
    match bytes.first()? {
        0 => match natpmp::Response::parse(bytes).ok()? {
            response @ natpmp::Response::ExternalAddress { .. } => Some(Answer::NatPmp(response)),
            _ => None,
        },
        _ => Response::parse(bytes).ok().map(Answer::Pcp),
    }
}

async fn after(left: Option<Duration>) {
    match left {
        Some(left) => tokio::time::sleep(left).await,
        None => future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use engine::time::Instant;
    use wire::pcp::{Body, ResultCode};

    use super::*;

    fn heard(bytes: Vec<u8>) -> Heard {
        Heard { interface: "wan0".into(), from: "100.64.0.1:5351".parse().unwrap(), bytes }
    }

    fn announce(epoch: u32) -> Vec<u8> {
        let (result, body) = (ResultCode::SUCCESS, Body::Announce);
        Response { result, lifetime: 0, epoch, body, options: vec![] }.to_bytes()
    }

    fn ear(json: bool, verbose: bool) -> Ear {
        Ear { show: Show { hex: !json, json, verbose }, epochs: BTreeMap::new() }
    }

    /// RFC 6887 §14.1.3, §8.5: what an announcement's epoch says.
    #[test]
    fn announcements_tell_whether_the_state_is_lost() {
        let mut ear = ear(false, false);
        let mut said = |seconds, epoch| {
            let at = Duration::from_secs(seconds);
            ear.hear(at, Instant::from_secs(seconds), &heard(announce(epoch))).1
        };
        assert_eq!(
            said(1, 100),
            "   1.000 wan0 100.64.0.1:5351 < PCP ANNOUNCE SUCCESS, epoch 100 (first heard)\n           \
             02800000 00000000 00000064 00000000 00000000 00000000\n"
        );
        assert!(said(2, 101).contains("(state kept)"));
        assert!(said(3, 0).contains("(state lost)"));
        // NAT-PMP's epoch is another clock.
        let nat_pmp = heard(vec![0, 128, 0, 0, 0, 0, 0, 9, 198, 51, 100, 7]);
        let (announcement, text) = ear.hear(Duration::ZERO, Instant::from_secs(3), &nat_pmp);
        assert!(announcement);
        assert!(
            text.contains("NAT-PMP external address SUCCESS 198.51.100.7, epoch 9 (first heard)"),
            "{text}"
        );
    }

    /// Whoever floods the group from ever new ports does not fill the memory.
    #[test]
    fn so_many_servers_are_remembered() {
        let mut ear = ear(false, false);
        for port in 1..=u16::MAX {
            let from = SocketAddr::from(([100, 64, 0, 1], port));
            let heard = Heard { from, ..heard(announce(7)) };
            assert!(ear.hear(Duration::ZERO, Instant::from_secs(0), &heard).0);
        }
        assert!(ear.epochs.len() <= 1000, "{}", ear.epochs.len());
    }

    #[test]
    fn what_is_no_announcement_is_told_to_those_who_want_to_know() {
        for bytes in [vec![], vec![2, 0, 0, 0], vec![0, 1, 0, 0], vec![9; 24]] {
            let datagram = heard(bytes);
            let now = Instant::from_secs(0);
            assert_eq!(ear(false, false).hear(Duration::ZERO, now, &datagram), (false, String::new()));
            assert!(ear(false, true).hear(Duration::ZERO, now, &datagram).1.contains("no announcement"));
        }
    }

    #[test]
    fn one_json_document_a_line() {
        let (_, line) = ear(true, false).hear(Duration::ZERO, Instant::from_secs(0), &heard(announce(7)));
        let document: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(document["message"]["epoch"], 7);
        assert_eq!(document["state"], "first heard");
        assert_eq!(line.lines().count(), 1);
    }
}
