//! Subscribers to events: one whose callback answers, one whose callback is open and mute, one whose callback is closed.

use std::collections::BTreeSet;
use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::player::Player;
use super::tally;
use crate::http::{Client, head};

/// Subscriptions of a host at the same time; a gateway allows some.
const SUBSCRIPTIONS: usize = 10;
/// Until a subscriber that answers has its first event (UPnP Device Architecture §4.1.2: as soon as possible).
const FIRST_EVENT: Duration = Duration::from_secs(10);
/// Connections that the mute callback keeps.
const MUTE: usize = 8;

/// Who has been sent an event, by its SID.
type Heard = Arc<Mutex<BTreeSet<String>>>;

/// Where events are to go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Callback {
    Answers,
    Mute,
    Closed,
}

struct Subscription {
    sid: String,
    callback: Callback,
    since: Duration,
    first_event_until: Option<Instant>,
}

/// Subscribes, renews and unsubscribes until the end; then unsubscribes from all.
pub(super) fn subscriber(player: &Player) {
    let heard = Heard::default();
    let bound = || TcpListener::bind((player.host, 0));
    let Ok((answering, mute, closed)) = bound().and_then(|first| Ok((first, bound()?, bound()?))) else {
        return player.tally.wrong("GENA SUBSCRIBE", tally::now(), "no listener");
    };
    let at = |listener: &TcpListener| listener.local_addr().expect("it is bound");
    let callbacks = [at(&answering), at(&mute), at(&closed)];
    drop(closed);
    let ear = Arc::clone(&heard);
    // Both go with the process.
    thread::spawn(move || answer_all(&answering, &ear));
    thread::spawn(move || answer_none(&mute));

    let (mut client, mut dice) = (Client::new(Player::gateway()), player.dice(6));
    let mut has: Vec<Subscription> = Vec::new();
    while player.plays() {
        let nth = usize::try_from(dice.roll(u64::try_from(has.len()).unwrap_or(0).max(1))).unwrap_or(0);
        match dice.roll(5) {
            0 | 1 if has.len() < SUBSCRIPTIONS => {
                let callback = match dice.roll(6) {
                    0 => Callback::Mute,
                    1 => Callback::Closed,
                    _ => Callback::Answers,
                };
                has.extend(subscribe(player, &mut client, callback, callbacks));
            }
            2 | 3 if nth < has.len() => renew(player, &mut client, &has[nth]),
            // One that has not yet heard its first event would never.
            _ if has.get(nth).is_some_and(|one| one.first_event_until.is_none()) => {
                let gone = has.remove(nth);
                unsubscribe(player, &mut client, &gone);
            }
            _ => {}
        }
        look(player, &mut has, &heard);
        player.pause(&mut dice, 700);
    }
    for gone in &has {
        unsubscribe(player, &mut client, gone);
    }
}

fn subscribe(
    player: &Player,
    client: &mut Client,
    callback: Callback,
    callbacks: [SocketAddr; 3],
) -> Option<Subscription> {
    let to = callbacks[match callback {
        Callback::Answers => 0,
        Callback::Mute => 1,
        Callback::Closed => 2,
    }];
    let since = tally::now();
    let head = head(
        "SUBSCRIBE",
        &player.connection.events,
        &[("CALLBACK", &format!("<http://{to}/soak>")), ("NT", "upnp:event"), ("TIMEOUT", "Second-1800")],
    );
    match client.ask(&head, "", true) {
        Ok(answer) => {
            player.tally.count("GENA SUBSCRIBE", &answer.status.to_string());
            let sid = answer.field("sid").map(str::to_owned);
            if answer.status != 200 || sid.is_none() {
                player.tally.wrong("GENA SUBSCRIBE", since, &answer.status.to_string());
            }
            let first_event_until = (callback == Callback::Answers).then(|| Instant::now() + FIRST_EVENT);
            Some(Subscription { sid: sid?, callback, since, first_event_until })
        }
        Err(error) => {
            player.tally.silence("GENA SUBSCRIBE", since, &error.to_string());
            None
        }
    }
}

/// 412 is right for a subscription that the gateway has given up: because nobody answered, or did not hear.
fn ask(player: &Player, client: &mut Client, kind: &str, head: &str, of: &Subscription) {
    let since = tally::now();
    match client.ask(head, "", true) {
        Ok(answer) => {
            player.tally.count(kind, &answer.status.to_string());
            let given_up = answer.status == 412 && of.callback != Callback::Answers;
            if answer.status != 200 && !given_up {
                player.tally.wrong(kind, of.since, &answer.status.to_string());
            }
        }
        Err(error) => player.tally.silence(kind, since, &error.to_string()),
    }
}

fn renew(player: &Player, client: &mut Client, of: &Subscription) {
    let fields = [("SID", &*of.sid), ("TIMEOUT", "Second-1800")];
    let head = head("SUBSCRIBE", &player.connection.events, &fields);
    ask(player, client, "GENA SUBSCRIBE, renew", &head, of);
}

fn unsubscribe(player: &Player, client: &mut Client, of: &Subscription) {
    let head = head("UNSUBSCRIBE", &player.connection.events, &[("SID", &of.sid)]);
    ask(player, client, "GENA UNSUBSCRIBE", &head, of);
}

/// Whether those who answer have had their first events.
fn look(player: &Player, has: &mut [Subscription], heard: &Heard) {
    let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    for one in has.iter_mut() {
        let Some(until) = one.first_event_until else { continue };
        if heard.contains(&one.sid) {
            player.tally.count("GENA first event", "came");
            one.first_event_until = None;
        } else if Instant::now() > until {
            player.tally.silence("GENA first event", one.since, &one.sid);
            one.first_event_until = None;
        }
    }
}

fn answer_all(listener: &TcpListener, heard: &Heard) {
    for stream in listener.incoming().flatten() {
        let heard = Arc::clone(heard);
        // Whoever goes away in the middle of an event has had it.
        thread::spawn(move || hear(stream, &heard));
    }
}

fn hear(stream: TcpStream, heard: &Heard) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut stream = BufReader::new(stream);
    let mut octets = Vec::new();
    let mut part = [0; 2048];
    while !octets.ends_with(b"propertyset>") {
        match stream.read(&mut part)? {
            0 => return Ok(()),
            length => octets.extend_from_slice(&part[..length]),
        }
    }
    let text = String::from_utf8_lossy(&octets);
    if let Some(sid) = text.lines().find_map(|line| line.strip_prefix("SID: ")) {
        heard.lock().unwrap_or_else(PoisonError::into_inner).insert(sid.trim().to_owned());
    }
    stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
}

fn answer_none(listener: &TcpListener) {
    let mut held = Vec::new();
    for stream in listener.incoming().flatten() {
        if held.len() >= MUTE {
            held.remove(0);
        }
        held.push(stream);
    }
}
