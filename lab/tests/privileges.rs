//! What the two processes of `portferry run` may do, read from the kernel while they run, and that each ends with the other.
//! What the sandbox keeps out is tried in `portferry/src/privileged/sandbox.rs`, what messages may ask for in `worker.rs` beside it.
//! Needs root, see [`lab::netns`].

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{CASCADED, NAT, SECOND, children, interworking_subject, network_process, ready, there_is};
use lab::netns::{Host, Network};
use lab::provider::{Options, Provider};
use lab::subject::{Subject, elements, listed};
use lab::wait::eventually;

/// A value of /proc/PID/status.
fn status(process: u32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key}:")));
    line.unwrap_or_default().split_whitespace().next().unwrap_or_default().to_owned()
}

fn is_alive(process: u32) -> bool {
    Path::new(&format!("/proc/{process}/fd")).exists()
}

/// Without what only the privileged one has, and with the rights that it needs and no others.
#[test]
fn who_has_which_rights() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    control_point.adds(8080, 8080, "TCP", 3600);
    let (privileged, other) = (daemon.id(), network_process(&daemon));
    assert_ne!(status(other, "Uid"), "0");
    assert_ne!(status(other, "Gid"), "0");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&status(other, set), 16), Ok(0), "{set}");
    }
    for (key, value) in [("NoNewPrivs", "1"), ("Seccomp", "2"), ("Threads", "1"), ("Groups", "")] {
        assert_eq!(status(other, key), value, "{key}");
    }
    // CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW (capability.h).
    let needed: u64 = [5, 6, 7, 10, 12, 13].iter().map(|bit| 1 << bit).sum();
    for set in ["CapPrm", "CapEff"] {
        assert_eq!(u64::from_str_radix(&status(privileged, set), 16).unwrap() & !needed, 0, "{set}");
    }
    let state = network.directory().join("state");
    let found = fs::metadata(&state).expect("it is there");
    assert_eq!((found.uid().to_string(), found.mode() & 0o777), (status(other, "Uid"), 0o700));
    for entry in fs::read_dir(&state).expect("it is there") {
        let found = entry.and_then(|entry| entry.metadata()).expect("it is there");
        assert_eq!((found.uid().to_string(), found.mode() & 0o077), (status(other, "Uid"), 0));
    }
    let socket = fs::metadata(network.directory().join("control.sock")).expect("it is there");
    assert_eq!((socket.uid(), socket.mode() & 0o777), (0, 0o660));
    // What a reload asks the privileged one for.
    daemon.signal("HUP");
    daemon.await_log("configuration read again", 10 * SECOND);
    assert!(daemon.terminate(20 * SECOND).success());
    assert_eq!(elements(&network), None);
    assert!(!is_alive(other));
}

/// Whichever is killed, nothing that was acknowledged is lost, and no half is left.
#[test]
fn neither_lives_without_the_other() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "service_wait = 0.1\n");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    control_point.adds(8080, 8080, "TCP", 3600);

    let other = network_process(&daemon);
    daemon.signal("KILL");
    daemon.wait(10 * SECOND);
    eventually("the end of the network process", 10 * SECOND, || (!is_alive(other)).then_some(()));
    assert_eq!(
        elements(&network).map(|rules| rules.len()),
        Some(1),
        "the rule goes on to let in what it lets in"
    );

    let mut daemon = subject.start(&network, NAT, "service_wait = 0.1\n");
    let again = |network: &Network| {
        eventually("the mapping again", 15 * SECOND, || {
            listed(network).filter(|all| all.len() == 1 && all[0].state == "active")
        })
    };
    again(&network);
    let other = network_process(&daemon);
    assert!(Command::new("kill").args(["-KILL", &other.to_string()]).status().unwrap().success());
    let ended = daemon.wait(10 * SECOND);
    assert_eq!(ended.code(), Some(71));
    assert!(daemon.log().contains("the network process was ended by signal 9"), "{}", daemon.log());
    assert_eq!(elements(&network).map(|rules| rules.len()), Some(1));

    let mut daemon = subject.start(&network, NAT, "service_wait = 0.1\n");
    again(&network);
    assert!(daemon.terminate(20 * SECOND).success());
}

/// For finding faults: one process, and it says so.
#[test]
fn without_a_sandbox() {
    let Some(Subject::Portferry(program)) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    fs::create_dir_all(network.directory().join("state")).expect("the directory is ours");
    let file = network.directory().join("portferry.toml");
    fs::write(&file, lab::subject::configuration(&network, NAT, "")).expect("the directory is ours");
    let arguments = ["run", "--no-sandbox", "--config", &file.display().to_string()];
    let mut daemon = network.spawn(Host::Router, "portferry", &program, arguments);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    control_point.adds(8080, 8080, "TCP", 3600);
    assert!(children(daemon.id()).is_empty());
    assert_eq!(status(daemon.id(), "Seccomp"), "0");
    assert!(daemon.log().contains("--no-sandbox"), "{}", daemon.log());
    assert!(daemon.terminate(20 * SECOND).success());
}

/// What a root with everything has left, a root with the unit's capabilities hands over: nothing is lost.
#[test]
fn the_unit_takes_over_what_ran_before_without_a_sandbox() {
    let Some(Subject::Portferry(program)) = interworking_subject() else { return };
    if !there_is("setpriv") {
        return;
    }
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    fs::create_dir_all(network.directory().join("state")).expect("the directory is ours");
    let file = network.directory().join("portferry.toml");
    let text = lab::subject::configuration(&network, NAT, "service_wait = 0.1\n");
    fs::write(&file, text).expect("the directory is ours");
    let file = file.display().to_string();

    // So that the directory is the network process's before root writes there.
    let mut daemon = network.spawn(Host::Router, "first", &program, ["run", "--config", &file]);
    ready(&network, &mut daemon, Host::Lan1);
    assert!(daemon.terminate(20 * SECOND).success());
    let mut daemon =
        network.spawn(Host::Router, "whole", &program, ["run", "--no-sandbox", "--config", &file]);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    control_point.adds(8080, 8080, "TCP", 3600);
    daemon.signal("KILL");
    daemon.wait(10 * SECOND);

    let unit =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/systemd/portferry.service"));
    let unit = unit.expect("it is there");
    let set = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("it has one");
    let given = set.split(' ').map(|name| name.replace("CAP_", "+").to_lowercase());
    let bounding: Vec<String> = std::iter::once("-all".to_owned()).chain(given).collect();
    let program = program.display().to_string();
    let arguments =
        ["--bounding-set", &bounding.join(","), "--no-new-privs", &program, "run", "--config", &file];
    let mut daemon = network.spawn(Host::Router, "portferry", "setpriv", arguments);
    eventually("the mapping again", 15 * SECOND, || {
        listed(&network).filter(|all| all.len() == 1 && all[0].state == "active")
    });
    assert!(!daemon.log().contains("damaged"), "{}", daemon.log());
    let other = network_process(&daemon);
    assert_ne!(status(other, "Uid"), "0");
    assert!(daemon.terminate(20 * SECOND).success());
}

/// The hidden words of the command line are nobody's to say.
#[test]
fn its_parts_are_not_started_by_hand() {
    let Some(Subject::Portferry(program)) = interworking_subject() else { return };
    let output = Command::new(program)
        .args(["network-process", "/etc/passwd"])
        .stdin(Stdio::null())
        .output()
        .expect("it can be run");
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("portferry run"));
}
