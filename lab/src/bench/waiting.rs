//! Reads while creates wait for the provider: nobody is to feel that somebody else does.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use super::Plan;
use super::cost::{Times, millis};
use super::page::{Page, times};
use super::picture::{self, Line};
use super::rig::Rig;
use super::upstream::Manner;
use crate::netns::ROUTER_LAN;
use crate::pcp_load::{self, Wish};

/// How many reads are timed.
const READS: usize = 1500;
/// Hosts that ask by PCP, each from its own address.
const HOSTS: u16 = 8;

pub(super) fn measure(plan: &Plan, page: &mut Page) {
    let rig = Rig::portferry(&plan.program, Manner::AT_ONCE);
    let hosts = rig.hosts(HOSTS);
    page.table(
        "Reads while creates wait for the provider",
        "GetExternalIPAddress on a kept connection, the time that passes in ms, while so many requests to make a mapping (PCP MAP of eight LAN hosts) \
         are on their way to a provider that takes so long; in brackets against the same with nobody else.",
        &["the provider answers", "creates that wait", "half of the reads", "99 of 100"],
    );
    let alone = reads(&rig);
    page.row("at once", &[String::from("0"), millis(alone.at(50)), millis(alone.at(99))]);
    let mut points = Vec::new();
    let manners = [
        ("after 20 ms", 20.0, Manner::after(Duration::from_millis(20))),
        ("after 2 s", 2000.0, Manner::after(Duration::from_secs(2))),
        ("never", 20_000.0, Manner::SILENT),
    ];
    let crowds: &[u16] = if plan.quick { &[16] } else { &[16, 512] };
    let mut first = 10_000;
    for &creates in crowds {
        for (name, delay, manner) in manners {
            rig.upstream.set(manner);
            let ports = first..first + creates;
            let with = thread::scope(|scope| {
                scope.spawn(|| rig.on_lan(|| ask_for_all(&hosts, ports.clone())));
                // They are on their way by then.
                thread::sleep(Duration::from_millis(50));
                reads(&rig)
            });
            first += creates;
            let of = |percent| {
                let (with, alone) = (with.at(percent), alone.at(percent));
                format!("{} ({})", millis(with), times(with.as_secs_f64(), alone.as_secs_f64()))
            };
            page.row(name, &[creates.to_string(), of(50), of(99)]);
            points.push((creates, delay, with.at(99).as_secs_f64() * 1e3));
            rig.upstream.set(Manner::AT_ONCE);
            thread::sleep(Duration::from_secs(3)); // whatever waited is over
        }
    }
    if !plan.quick {
        let line = |creates: u16, colour| Line {
            name: format!("{creates} creates wait"),
            colour,
            points: points.iter().filter(|one| one.0 == creates).map(|one| (one.1, one.2)).collect(),
        };
        let title = "99 of 100 reads take no longer, while creates wait (the last point: for ever)";
        let lines = [line(16, picture::GREEN), line(512, picture::VIOLET)];
        page.picture(
            "performance-waiting.svg",
            title,
            picture::plot(title, ("ms that the provider takes", "ms"), &lines),
        );
    }
}

fn reads(rig: &Rig) -> Times {
    rig.on_lan(|| {
        let mut client = rig.client();
        let mut read = || {
            let since = Instant::now();
            let called = rig.call(&mut client, true, "GetExternalIPAddress", &[]);
            called.expect("it is answered").expect("there is an address");
            since.elapsed()
        };
        read();
        (0..READS).map(|_| read()).collect()
    })
}

/// Asks for these ports by PCP, and again after a while, for as long as the reads take or so: somebody always waits.
fn ask_for_all(hosts: &[Ipv4Addr], ports: std::ops::Range<u16>) {
    let socket = |host: &Ipv4Addr| {
        let socket = UdpSocket::bind((*host, 0)).expect("the host has this address");
        socket.connect((ROUTER_LAN, wire::pcp::SERVER_PORT)).expect("UDP connects at once");
        (*host, socket)
    };
    let sockets: Vec<(Ipv4Addr, UdpSocket)> = hosts.iter().map(socket).collect();
    let until = Instant::now() + Duration::from_millis(900);
    let mut lifetime = 3600;
    while Instant::now() < until {
        for (port, (host, socket)) in ports.clone().zip(sockets.iter().cycle()) {
            let wish = Wish { protocol: 6, internal_port: port, suggested: port, lifetime };
            let _ = socket.send(&pcp_load::map(IpAddr::V4(*host), wish));
        }
        // A longer lifetime is asked for at the provider, too.
        lifetime += 600;
        thread::sleep(Duration::from_millis(100));
    }
}
