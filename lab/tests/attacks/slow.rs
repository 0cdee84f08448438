//! Who takes his time: all at once, while another host is served. What each bound is in seconds, the tests of `portferry`'s HTTP have in
//! virtual time; here it is seen to hold of real connections.

use std::cell::RefCell;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use lab::netns::Host;
use socket2::{Domain, Protocol, Socket, Type};

use crate::common::SECOND;
use crate::scene::{Scene, door};
use crate::{Row, row};

/// Longer than any bound.
const PATIENCE: Duration = Duration::from_secs(14);
/// Between two octets of who sends slowly.
const PAUSE: Duration = Duration::from_millis(400);

/// How the slow ones fared, in the order of the rows; of the other one and of portferry.
type Fared = Rc<RefCell<[Vec<String>; 2]>>;

pub(crate) fn rows() -> Vec<Row> {
    let fared = Fared::default();
    let slow = [
        // The first row lets all of them begin at once, so what counts them has counted when it is over.
        ("a slow head (Slowloris)", "an octet each 0.4 s", "let go within 11 s", "/http/dropped"),
        ("nothing", "a connection on which nothing is sent", "let go within 6 s", ""),
        ("nothing more", "silence after an answer", "let go within 6 s", ""),
        ("a slow body", "an octet each 0.4 s", "408 within 11 s", ""),
        ("a slow reader", "3000 GETs, no answer read", "let go within 12 s", ""),
        ("all of them", "and good requests of another host meanwhile", "all served", ""),
    ];
    let rows = slow.into_iter().enumerate().map(|(nth, (name, sent, answer, counter))| {
        let fared = fared.clone();
        row(name, sent, answer, counter, move |scene| {
            let known = &mut fared.borrow_mut()[usize::from(scene.is_ours())];
            if known.is_empty() {
                *known = try_all(scene);
            }
            known[nth].clone()
        })
    });
    rows.collect()
}

fn try_all(scene: &Scene<'_>) -> Vec<String> {
    let get = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", scene.paths.scpd, door());
    let post = scene.add().octets();
    let head = post.windows(4).position(|window| window == b"\r\n\r\n").expect("it has one") + 4;
    let (head, body) = post.split_at(head);
    thread::scope(|scope| {
        let slow: Vec<_> = [
            scope.spawn(|| scene.network.inside(Host::Lan1, || dribble(b"", get.as_bytes(), 11))),
            scope.spawn(|| scene.network.inside(Host::Lan1, || silence(b"", 6))),
            scope.spawn(|| scene.network.inside(Host::Lan1, || silence(get.as_bytes(), 6))),
            scope.spawn(|| scene.network.inside(Host::Lan1, || dribble(head, body, 11))),
            scope.spawn(|| scene.network.inside(Host::Lan1, || no_reader(&get, 12))),
        ]
        .into();
        let began = Instant::now();
        let mut served = true;
        while began.elapsed() < PATIENCE && slow.iter().any(|one| !one.is_finished()) {
            served &= scene.serves();
            thread::sleep(SECOND / 2);
        }
        let mut fared: Vec<String> = slow.into_iter().map(|one| one.join().expect("it ends")).collect();
        fared.push(if served { "all served" } else { "**not all served**" }.to_owned());
        fared
    })
}

/// `what`, and how long it took; `bound` is in seconds.
fn in_words(what: &str, began: Instant, bound: u64) -> String {
    match began.elapsed() {
        took if took < Duration::from_secs(bound) => format!("{what} within {bound} s"),
        took if took < PATIENCE => format!("{what} after {} s", took.as_secs()),
        _ => format!("held for {} s at least", PATIENCE.as_secs()),
    }
}

/// What ends the connection: its end, or a status.
fn ended(stream: &mut TcpStream, patience: Duration) -> Option<String> {
    let _ = stream.set_read_timeout(Some(patience.max(Duration::from_millis(1))));
    let mut answer = [0; 64];
    match stream.read(&mut answer) {
        Ok(0) => Some("let go".to_owned()),
        Ok(_) => Some(String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap_or("something").to_owned()),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => None,
        Err(_) => Some("let go".to_owned()),
    }
}

fn silence(request: &[u8], bound: u64) -> String {
    let mut stream = TcpStream::connect_timeout(&door(), SECOND).expect("it listens");
    stream.write_all(request).expect("it reads");
    let _ = stream.set_read_timeout(Some(SECOND / 2));
    let mut part = [0; 65_536];
    // The answer goes first.
    while !request.is_empty() && matches!(stream.read(&mut part), Ok(1..)) {}
    let began = Instant::now();
    let what = ended(&mut stream, PATIENCE).unwrap_or_default();
    in_words(&what, began, bound)
}

fn dribble(at_once: &[u8], slowly: &[u8], bound: u64) -> String {
    let mut stream = TcpStream::connect_timeout(&door(), SECOND).expect("it listens");
    stream.set_nodelay(true).expect("TCP has that");
    stream.write_all(at_once).expect("it reads");
    let began = Instant::now();
    for octet in slowly {
        let _ = stream.write_all(&[*octet]);
        if let Some(what) = ended(&mut stream, PAUSE) {
            return in_words(&what, began, bound);
        }
        if began.elapsed() >= PATIENCE {
            break;
        }
    }
    in_words("", began, bound)
}

fn no_reader(get: &str, bound: u64) -> String {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("small enough");
    socket.connect(&door().into()).expect("it listens");
    let stream: TcpStream = socket.into();
    stream.set_write_timeout(Some(PATIENCE)).expect("not zero");
    let began = Instant::now();
    // Whoever has given up resets the connection, since there is more to read than was read.
    let mut octets = get.repeat(3000).into_bytes();
    octets.extend(std::iter::repeat_n(b'\n', 1 << 20));
    let written = (&stream).write_all(&octets);
    let _ = stream.shutdown(Shutdown::Both);
    in_words(if written.is_ok() { "taken" } else { "let go" }, began, bound)
}
