//! Being found, also while somebody floods.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use wire::ssdp::{GROUP_V4, PORT, Target, search};

use super::Plan;
use super::cost::{Times, micros, millis};
use super::page::Page;
use super::rig::Rig;
use super::upstream::Manner;
use crate::control_point::{NEWER, find};
use crate::netns::{LAN1, ROUTER_LAN};

/// Searches for everything in a second.
const FLOOD: u64 = 4000;
const SECONDS: u64 = 5;

pub(super) fn measure(plan: &Plan, page: &mut Page) {
    page.table(
        "Searches",
        "M-SEARCH to the gateway's own address, which asks for an answer at once; the time until that, and the processor time of one. Then a host that sends \
         4,000 searches for everything in a second: what that costs, and how long another host with MX 1 searches beside it.",
        &["", "half of the answers, ms", "99 of 100, ms", "processor, µs", "under the flood: processor, %", "found after, ms (the longest of ten)", "memory, KiB more"],
    );
    for rig in [Rig::portferry(&plan.program, Manner::AT_ONCE), Rig::miniupnpd()] {
        let number = if plan.quick { 10 } else { 40 };
        let before = rig.cpu();
        let answers = rig.on_lan(|| unicast(number));
        let each = (rig.cpu() - before) / number;
        let hosts = rig.hosts(2);
        let memory = rig.memory().private;
        let before = rig.cpu();
        let (found, took) = flooded(&rig, hosts[1]);
        let share = 100.0 * (rig.cpu() - before).as_secs_f64() / took.as_secs_f64();
        let cells = [
            millis(answers.at(50)),
            millis(answers.at(99)),
            micros(each),
            format!("{share:.1}"),
            found.map_or(String::from("not found"), millis),
            rig.memory().private.saturating_sub(memory).to_string(),
        ];
        page.row(rig.who.name(), &cells);
    }
}

/// How long each of so many searches waits for its answer. A second is between them, for a source is not answered the same twice in one.
fn unicast(number: u32) -> Times {
    let socket = UdpSocket::bind((LAN1, 0)).expect("the host has this address");
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a socket has one");
    let one = |_| {
        thread::sleep(Duration::from_millis(1050));
        let request = search(&format!("{ROUTER_LAN}:{PORT}"), &Target::parse(NEWER), None);
        let since = Instant::now();
        socket.send_to(request.as_bytes(), (ROUTER_LAN, PORT)).expect("the gateway is on the link");
        socket.recv(&mut [0; 2048]).ok().map(|_| since.elapsed())
    };
    (0..number).filter_map(one).collect()
}

/// The longest that another host had to search, and how long the flood was.
fn flooded(rig: &Rig, flooder: Ipv4Addr) -> (Option<Duration>, Duration) {
    let ends = AtomicBool::new(false);
    rig.on_lan(|| {
        let began = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| {
                let socket = UdpSocket::bind((flooder, 0)).expect("the host has this address");
                let request = search("239.255.255.250:1900", &Target::All, Some(1));
                let mut sent = 0;
                while !ends.load(Ordering::Relaxed) {
                    let due = u64::try_from(began.elapsed().as_millis()).unwrap_or(0) * FLOOD / 1000;
                    while sent < due {
                        let _ = socket.send_to(request.as_bytes(), (GROUP_V4, PORT));
                        sent += 1;
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            });
            thread::sleep(Duration::from_secs(1));
            let mut longest = Some(Duration::ZERO);
            for _ in 0..10 {
                let since = Instant::now();
                let found = find(LAN1, NEWER, Duration::ZERO).ok().map(|_| since.elapsed());
                longest = longest.zip(found).map(|(longest, found)| longest.max(found));
                thread::sleep(Duration::from_millis(SECONDS * 100));
            }
            ends.store(true, Ordering::Relaxed);
            (longest, began.elapsed())
        })
    })
}
