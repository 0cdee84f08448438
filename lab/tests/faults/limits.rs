//! What there is not enough of: file descriptors, memory, ports.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lab::netns::{Host, LAN2, Network, Process, ROUTER_LAN};
use lab::provider::QuickProvider;
use lab::subject::HTTP_PORT;
use lab::wait::{eventually, poll};

use crate::common::{
    CASCADED, PROBE, SECOND, TCP, Told, interworking_subject, listener, network_process, reaches, ready, say,
    skipped,
};
use crate::{LONG, PCP_SERVER, add, adds_soon, caller, lines_with, ports, start, start_by, took};

/// Both LAN hosts hold so many connections each, as many as one host may have, with so much of a request.
fn hold(network: &Network, path: &str, each: usize, octets: usize) -> [Process; 2] {
    let address = format!("{ROUTER_LAN}:{HTTP_PORT}");
    [Host::Lan1, Host::Lan2].map(|host| {
        let arguments = ["hold", &address, path, &each.to_string(), &octets.to_string()];
        network.spawn(host, &format!("hold-{host}"), PROBE, arguments)
    })
}

/// More connections than there may be files (EMFILE): nothing ends, what stands goes on, and once they are gone all is as before.
#[test]
fn more_connections_than_files() {
    const FILES: usize = 64;
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = QuickProvider::start(&network, PCP_SERVER);
    let mut daemon = start_by(&subject, &network, "prlimit", &[&format!("--nofile={FILES}")]);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let mut caller = caller(&control_point);
    let _listener = listener(&network, Host::Lan1, TCP, 7001);
    assert_eq!(add(&mut caller, 7001), Told::done());
    // Of the one that has the connections.
    let other = network_process(&daemon);
    let descriptors = || fs::read_dir(format!("/proc/{other}/fd")).expect("it lives").count();
    let before = descriptors();

    let path = control_point.control_path("WANIPConnection");
    let mut holding = hold(&network, &path, 32, 10);
    let sockets: Vec<_> = (0..FILES)
        .filter_map(|_| UnixStream::connect(network.directory().join("control.sock")).ok())
        .collect();
    eventually("the last file", LONG, || (descriptors() >= FILES).then_some(()));
    // Whatever needs a file now has none: news of interfaces, which are read anew, and a new journal.
    network.run(Host::Router, "ip", ["link", "add", "more", "type", "bridge"]);
    reaches(&network, TCP, 7001, &Host::Lan1.to_string());
    let _ = add(&mut caller, 7002); // refused or not even heard
    reaches(&network, TCP, 7001, &Host::Lan1.to_string());

    for process in &mut holding {
        process.signal("KILL");
    }
    drop((holding, sockets));
    let began = Instant::now();
    adds_soon(&mut caller, 7002);
    eventually("as many files as before", LONG, || (descriptors() <= before + 1).then_some(()));
    took(&format!("all {FILES} files in use"), began);
    assert!(ports(&network).is_some_and(|ports| ports.contains(&7001)));
    assert_eq!(daemon.ended(), None, "{}", daemon.log());
}

/// A group of processes that may have so much memory together, of either version; gone with it.
struct MemoryGroup {
    path: PathBuf,
    is_v2: bool,
}

impl MemoryGroup {
    fn new(name: &str) -> Option<Self> {
        [("/sys/fs/cgroup", true), ("/sys/fs/cgroup/memory", false)].into_iter().find_map(|(root, is_v2)| {
            let path = PathBuf::from(root).join(name);
            let file = path.join(if is_v2 { "memory.max" } else { "memory.limit_in_bytes" });
            if is_v2 && !PathBuf::from(root).join("cgroup.controllers").exists() {
                return None;
            }
            fs::create_dir(&path).ok()?;
            let group = Self { path, is_v2 };
            file.exists().then_some(group)
        })
    }

    /// What it has already may be counted elsewhere; what it takes from now on counts.
    fn take(&self, process: u32) {
        fs::write(self.path.join("cgroup.procs"), process.to_string()).expect("it is ours");
    }

    fn used(&self) -> u64 {
        let file = if self.is_v2 { "memory.current" } else { "memory.usage_in_bytes" };
        let text = fs::read_to_string(self.path.join(file)).expect("it is there");
        text.trim().parse().expect("a number")
    }

    fn limit(&self, octets: u64) {
        let file = if self.is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
        fs::write(self.path.join(file), octets.to_string()).expect("it may have more than it has");
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // The last process may be on its way out.
        let _ = poll(5 * SECOND, || fs::remove_dir(&self.path).ok());
    }
}

/// A daemon that the kernel kills for want of memory is started again by whoever looks after it, and everything that was
/// acknowledged is back.
#[test]
fn killed_for_want_of_memory() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let Some(group) = MemoryGroup::new(&network.namespace(Host::Router)) else {
        return skipped("there are no control groups for memory");
    };
    let _provider = QuickProvider::start(&network, PCP_SERVER);
    let mut daemon = start(&subject, &network);
    for process in [daemon.id(), network_process(&daemon)] {
        group.take(process);
    }
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let mut caller = caller(&control_point);
    let _listener = listener(&network, Host::Lan1, TCP, 7001);
    let mut acknowledged = Vec::new();
    for port in 7001..7021 {
        assert_eq!(add(&mut caller, port), Told::done());
        acknowledged.push(port);
    }
    let (used, path) = (group.used(), control_point.control_path("WANIPConnection"));
    group.limit(used + (256 << 10));
    // 64 connections of 64 KiB, each within what a host may have.
    let holding = hold(&network, &path, 32, 60_000);
    let mut more = 7100..7180;
    let status = poll(LONG, || {
        if let Some(port) = more.next()
            && add(&mut caller, port) == Told::done()
        {
            acknowledged.push(port);
        }
        daemon.ended()
    });
    drop(holding);
    let Some(status) = status else {
        panic!("it lives with {} of {} octets", group.used(), used + (256 << 10));
    };
    assert!(!status.success(), "{status}");

    let before = daemon.log();
    drop(daemon);
    let began = Instant::now();
    let mut daemon = start(&subject, &network);
    crate::runs(&mut daemon, &before);
    ready(&network, &mut daemon, Host::Lan1);
    let there = ports(&network).expect("it runs");
    took(&format!("killed at {} KiB ({status}), {} mappings", used >> 10, acknowledged.len()), began);
    assert!(acknowledged.iter().all(|port| there.contains(port)), "{acknowledged:?} in {there:?}");
    reaches(&network, TCP, 7001, &Host::Lan1.to_string());
}

/// EX_UNAVAILABLE of sysexits(3).
const UNAVAILABLE: i32 = 69;

/// Another daemon has SSDP's port or the one for HTTP: nothing works without, so the start says so and ends.
#[test]
fn another_program_has_a_port_that_is_needed() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    for (mode, port, what) in [("udp-listen", 1900, "SSDP's port"), ("tcp-listen", HTTP_PORT, "TCP port")] {
        let taken = network.spawn(Host::Router, mode, PROBE, [mode, &format!("0.0.0.0:{port}"), "other"]);
        let mut taken = taken;
        taken.await_log("listening", 5 * SECOND);
        let before = fs::read_to_string(network.directory().join("portferry.log")).unwrap_or_default();
        let mut daemon = start(&subject, &network);
        let status = daemon.wait(LONG);
        let said = daemon.log()[before.len()..].to_owned();
        assert_eq!(status.code(), Some(UNAVAILABLE), "{said}");
        assert_eq!(lines_with(&said, "is used by another program"), 1, "{said}");
        assert!(said.contains(what) && said.contains(&port.to_string()), "{said}");
        drop(daemon);
        drop(taken);
        let mut daemon = start(&subject, &network);
        crate::runs(&mut daemon, &format!("{before}{said}"));
    }
}

/// Another daemon has the port of PCP and NAT-PMP: UPnP is served, the log says so once, and the rest follows when it is free.
#[test]
fn another_program_has_the_port_of_pcp() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = QuickProvider::start(&network, PCP_SERVER);
    let mut taken = network.spawn(Host::Router, "other", PROBE, ["udp-listen", "0.0.0.0:5351", "other"]);
    taken.await_log("listening", 5 * SECOND);
    let mut daemon = start(&subject, &network);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let mut caller = caller(&control_point);
    assert_eq!(add(&mut caller, 7001), Told::done());
    const REFUSED: &str = "UDP port 5351 is used by another program";
    daemon.await_log(REFUSED, LONG);
    let said = daemon.log();
    assert!(!said.contains("serving PCP"), "{said}");
    // Long enough for another try, which is not said again.
    let again = poll(Duration::from_secs(7), || (lines_with(&daemon.log(), REFUSED) > 1).then_some(()));
    assert_eq!(again, None, "{}", daemon.log());
    drop(taken);
    let began = Instant::now();
    daemon.await_log("serving PCP and NAT-PMP at 192.168.77.1", LONG);
    took("the port of PCP is free", began);
    let answer = network.run(Host::Lan2, "timeout", ["10", "natpmpc", "-g", &ROUTER_LAN.to_string()]);
    assert!(answer.contains("Public IP address"), "{answer}");
    say(&format!("{LAN2} is served by NAT-PMP"));
}
