//! Another host is served while one floods; and how much one host can make the gateway remember.

use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lab::netns::{Host, LAN1, ROUTER_LAN};
use lab::wait::eventually;

use crate::common::{SECOND, say};
use crate::scene::{Scene, arguments, door, exchange};

/// How often the other host asks in each flood.
const ASKED: u32 = 40;
/// What one host's connections, subscriptions, mappings and requests under way may cost in all, in KiB.
const PER_CLIENT: u64 = 8 * 1024;

/// Sends a part of a flood; how much that was.
type Flood = Box<dyn Fn() -> u64 + Send + Sync>;

/// Floods by one host, each as fast as it can until it is told to stop; how much was sent.
fn floods(scene: &Scene<'_>) -> Vec<(&'static str, Flood)> {
    let get = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", scene.paths.scpd, door());
    let add = scene.add().octets();
    let search = b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: ssdp:all\r\n\r\n";
    let subscribe = format!(
        "SUBSCRIBE {} HTTP/1.1\r\nHost: {}\r\nCALLBACK: <http://{LAN1}:9/>\r\nNT: upnp:event\r\nConnection: close\r\n\r\n",
        scene.paths.event,
        door()
    );
    let map =
        [&[2, 1, 0, 0, 0, 0, 14, 16][..], &lan1(), &[7; 12], &[6, 0, 0, 0, 0x11, 0x5c, 0x11, 0x5c], &[0; 16]]
            .concat();
    let datagrams = |port: u16, datagram: Vec<u8>| {
        Box::new(move || {
            let socket = UdpSocket::bind((LAN1, 0)).expect("it is ours");
            let to = SocketAddr::from((ROUTER_LAN, port));
            let sent = (0..200).map(|_| u64::from(socket.send_to(&datagram, to).is_ok())).sum();
            // Of all threads together 20,000 a second: more than that is lost in the kernel already, with what others send.
            std::thread::sleep(Duration::from_millis(80));
            sent
        }) as Flood
    };
    let requests = |octets: Vec<u8>| {
        Box::new(move || {
            exchange(door(), &octets, SECOND);
            1_u64
        }) as Flood
    };
    vec![
        ("connections", Box::new(|| u64::from(TcpStream::connect_timeout(&door(), SECOND).is_ok()))),
        ("documents", requests(get.into_bytes())),
        ("AddPortMapping", requests(add)),
        ("SUBSCRIBE", requests(subscribe.into_bytes())),
        ("searches", datagrams(1900, search.to_vec())),
        ("PCP", datagrams(5351, map)),
        ("octets at port 5351", datagrams(5351, vec![9; 1000])),
    ]
}

fn lan1() -> [u8; 16] {
    LAN1.to_ipv6_mapped().octets()
}

/// Each flood comes from 8 threads of one host, while another host asks for the external address again and again.
pub(crate) fn another_is_served(scene: &Scene<'_>) {
    let request = scene.post("GetExternalIPAddress", "").octets();
    for (name, flood) in floods(scene) {
        let (over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        let heard: Vec<(String, Duration)> = std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    scene.network.inside(Host::Lan1, || {
                        while !over.load(Ordering::Relaxed) {
                            sent.fetch_add(flood(), Ordering::Relaxed);
                        }
                    });
                });
            }
            let heard = scene.network.inside(Host::Lan2, || {
                let one = |_| {
                    let began = Instant::now();
                    let verdict = exchange(door(), &request, 5 * SECOND).verdict();
                    (verdict, began.elapsed())
                };
                (0..ASKED).map(one).collect()
            });
            over.store(true, Ordering::Relaxed);
            heard
        });
        let refused: Vec<_> = heard.iter().filter(|(verdict, _)| verdict != "200").collect();
        assert!(refused.is_empty(), "in a flood of {name} the other host hears {refused:?}");
        let mut took: Vec<Duration> = heard.iter().map(|&(_, took)| took).collect();
        took.sort_unstable();
        let p95 = took[took.len() * 95 / 100];
        say(&format!(
            "flood of {name}: {} sent; the other host waits {p95:?} (p95 of {ASKED})",
            sent.load(Ordering::Relaxed)
        ));
        // What was on its way when the flood ended may come to something yet.
        eventually("a good request afterwards", 10 * SECOND, || {
            let _ = lab::subject::ask(scene.network, &format!("release {LAN1}"));
            scene.serves().then_some(())
        });
    }
}

/// Resident memory of the gateway, in KiB: of both of its processes, if it has two.
fn rss(scene: &Scene<'_>) -> u64 {
    let own = scene.process().to_string();
    let output = Command::new("pgrep").args(["-P", &own]).output().expect("procps is there");
    let children = String::from_utf8_lossy(&output.stdout).into_owned();
    let of = |process: &str| -> u64 {
        let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says that");
        line.trim_end_matches("kB").trim().parse().expect("a number")
    };
    children.split_whitespace().chain([&*own]).map(of).sum()
}

/// One host has all that it may have, at once: mappings, subscriptions, requests that the provider does not answer, and connections
/// with requests that are almost whole, octet by octet.
pub(crate) fn one_host_has_it_all(scene: &Scene<'_>) {
    let before = rss(scene);
    let text = "x".repeat(1024);
    for n in 0..100 {
        let other = [("NewPortMappingDescription", &*text)];
        let add = || {
            let arguments = arguments(LAN1, 20_000 + n, &other);
            let made = scene.call(Host::Lan1, "AddPortMapping", &arguments, 2 * SECOND);
            (made.verdict() == "200").then_some(())
        };
        // Ten a second, after fifty.
        eventually("a mapping", 10 * SECOND, add);
    }
    let mappings = scene.mappings().len() / 2;
    let path = "p".repeat(1000);
    let callbacks = format!("<http://{LAN1}:9/{path}>").repeat(4);
    let subscribe = format!(
        "SUBSCRIBE {} HTTP/1.1\r\nHost: {}\r\nCALLBACK: {callbacks}\r\nNT: upnp:event\r\nConnection: close\r\n\r\n",
        scene.paths.event,
        door()
    );
    let subscriptions = (0..40).filter(|_| scene.send(subscribe.as_bytes()).verdict() == "200").count();
    let with_state = rss(scene);

    scene.upstream.falls_silent();
    scene.network.inside(Host::Lan1, || {
        let socket = UdpSocket::bind((LAN1, 0)).expect("it is ours");
        for n in 0..50_u16 {
            let port = (30_000 + n).to_be_bytes();
            let map =
                [&[2, 1, 0, 0, 0, 0, 14, 16][..], &lan1(), &[7; 12], &[6, 0, 0, 0], &port, &port, &[0; 16]]
                    .concat();
            socket.send_to(&map, (ROUTER_LAN, 5351)).expect("there is a way");
        }
    });
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nSOAPAction: \"{}#AddPortMapping\"\r\nContent-Length: 65536\r\n\r\n",
        scene.paths.control,
        door(),
        scene.paths.service
    );
    let held: Vec<TcpStream> = scene.network.inside(Host::Lan1, || {
        let held: Vec<TcpStream> =
            (0..32).map(|_| TcpStream::connect_timeout(&door(), SECOND).expect("it listens")).collect();
        for mut stream in &held {
            stream.set_nodelay(true).expect("TCP has that");
            stream.write_all(head.as_bytes()).expect("it reads");
        }
        for _ in 0..2000 {
            for mut stream in &held {
                let _ = stream.write_all(b"x");
            }
        }
        for mut stream in &held {
            let _ = stream.write_all(&[b'x'; 62_000]);
        }
        held
    });
    let mut most = rss(scene);
    for _ in 0..10 {
        std::thread::sleep(SECOND / 20);
        most = most.max(rss(scene));
    }
    say(&format!(
        "memory: {before} KiB at first; {with_state} with {mappings} mappings and {subscriptions} subscriptions of one host; \
         {most} with 50 exchanges and {} connections of 64 KiB beside: {} KiB for one host",
        held.len(),
        most.saturating_sub(before)
    ));
    assert_eq!((mappings, subscriptions), (100, 32));
    assert!(
        most.saturating_sub(before) <= PER_CLIENT,
        "{before} to {most} KiB, and not {PER_CLIENT} more at most"
    );
    drop(held);
    scene.upstream.is_honest();
    let _ = lab::subject::ask(scene.network, &format!("release {LAN1}"));
    eventually("a good request afterwards", 20 * SECOND, || scene.serves().then_some(()));
}
