//! Interfaces that go and come, and news of them that are lost.

use std::process::Stdio;
use std::time::Instant;

use lab::netns::{Host, LAN_INTERFACE, Network, PROVIDER, ROUTER_LAN, ROUTER_WAN, WAN_INTERFACE};
use lab::provider::QuickProvider;
use lab::subject;
use lab::wait::eventually;

use crate::common::{CASCADED, SECOND, TCP, Told, interworking_subject, listener, reaches, ready, try_reach};
use crate::{LONG, PCP_SERVER, add, adds_soon, caller, start, took};

fn ip(network: &Network, host: Host, line: &str) {
    network.run(host, "ip", line.split(' '));
}

#[test]
fn the_lan_goes_and_comes_back() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = QuickProvider::start(&network, PCP_SERVER);
    let mut daemon = start(&subject, &network);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let mut caller = caller(&control_point);
    let _listener = listener(&network, Host::Lan1, TCP, 7001);
    assert_eq!(add(&mut caller, 7001), Told::done());
    for round in ["deleted", "down"] {
        if round == "deleted" {
            ip(&network, Host::Router, &format!("link del {LAN_INTERFACE}"));
        } else {
            ip(&network, Host::Router, &format!("link set {LAN_INTERFACE} down"));
        }
        assert!(matches!(add(&mut caller, 7002), Told::Nothing(_)));
        assert!(subject::listed(&network).is_some_and(|all| all.len() == 1), "it is kept");
        if round == "deleted" {
            // By the same name, with another number.
            ip(&network, Host::Router, &format!("link add {LAN_INTERFACE} type bridge"));
            ip(&network, Host::Router, &format!("addr add {ROUTER_LAN}/24 dev {LAN_INTERFACE}"));
            for port in ["port1", "port2"] {
                ip(&network, Host::Router, &format!("link set {port} master {LAN_INTERFACE}"));
            }
        }
        ip(&network, Host::Router, &format!("link set {LAN_INTERFACE} up"));
        let began = Instant::now();
        adds_soon(&mut caller, 7002);
        reaches(&network, TCP, 7001, &Host::Lan1.to_string());
        ready(&network, &mut daemon, Host::Lan1);
        took(&format!("LAN interface {round}"), began);
        assert_eq!(caller.delete(TCP, 7002), Told::done());
    }
}

#[test]
fn the_wan_goes_and_comes_back() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = QuickProvider::start(&network, PCP_SERVER);
    let mut daemon = start(&subject, &network);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let mut caller = caller(&control_point);
    let _listeners = [7001, 7002].map(|port| listener(&network, Host::Lan1, TCP, port));
    assert_eq!(add(&mut caller, 7001), Told::done());
    for round in ["deleted", "down"] {
        if round == "deleted" {
            ip(&network, Host::Router, &format!("link del {WAN_INTERFACE}"));
        } else {
            ip(&network, Host::Router, &format!("link set {WAN_INTERFACE} down"));
        }
        eventually("that it knows", LONG, || {
            let status = subject::ask(&network, "status")?;
            status.contains("\"external_address\":null").then_some(())
        });
        assert!(!try_reach(&network, TCP, 7001));
        assert_eq!(add(&mut caller, 7002), Told::Refused(501));
        if round == "deleted" {
            let provider = network.namespace(Host::Provider);
            ip(
                &network,
                Host::Router,
                &format!("link add {WAN_INTERFACE} type veth peer name sub1 netns {provider}"),
            );
            ip(&network, Host::Provider, "link set sub1 master cust0");
            ip(&network, Host::Provider, "link set sub1 up");
            ip(&network, Host::Router, &format!("addr add {ROUTER_WAN}/24 dev {WAN_INTERFACE}"));
        }
        ip(&network, Host::Router, &format!("link set {WAN_INTERFACE} up"));
        ip(&network, Host::Router, &format!("route replace default via {PROVIDER}"));
        let began = Instant::now();
        adds_soon(&mut caller, 7002);
        eventually("the old mapping", LONG, || try_reach(&network, TCP, 7001).then_some(()));
        reaches(&network, TCP, 7002, &Host::Lan1.to_string());
        took(&format!("WAN interface {round}"), began);
        assert_eq!(caller.delete(TCP, 7002), Told::done());
    }
}

/// A daemon that does not run for a while misses news: the kernel says so (ENOBUFS), and everything is read anew.
#[test]
fn lost_news_of_interfaces_are_made_up_for() {
    const CHANGES: usize = 4000;
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = QuickProvider::start(&network, PCP_SERVER);
    let mut daemon = start(&subject, &network);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let mut caller = caller(&control_point);
    assert_eq!(add(&mut caller, 7001), Told::done());
    daemon.signal("STOP");
    ip(&network, Host::Router, "link add many type bridge");
    let mut batch = network
        .command(Host::Router, "ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("it runs");
    let lines: String = (0..CHANGES)
        .map(|n| format!("addr {} 10.9.8.7/32 dev many\n", if n % 2 == 0 { "add" } else { "del" }))
        .collect();
    std::io::Write::write_all(&mut batch.stdin.take().expect("piped above"), lines.as_bytes())
        .expect("it reads");
    assert!(batch.wait().expect("a child can be waited for").success());
    // The news of this one are lost.
    ip(&network, Host::Router, &format!("addr add 192.168.78.1/24 dev {LAN_INTERFACE}"));
    let sockets = network.run(Host::Router, "cat", ["/proc/net/netlink"]);
    let own = daemon.id().to_string();
    // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
    let drops = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let drops: u64 =
        drops.filter(|words| words[2] == own).filter_map(|words| words[8].parse::<u64>().ok()).sum();
    assert!(drops > 0, "nothing was lost:\n{sockets}");
    daemon.signal("CONT");
    let began = Instant::now();
    daemon.await_log("at 192.168.78.1", LONG);
    took(&format!("{drops} news of interfaces lost"), began);
    assert_eq!(add(&mut caller, 7002), Told::done());
    assert_eq!(daemon.ended(), None);
    eventually("an answer on the control socket", 5 * SECOND, || subject::listed(&network));
}
