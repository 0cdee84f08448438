//! Host names that control points send, in network namespaces. Real processes as in `end_to_end`, so it needs root.
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test host_names
//! ```

mod common;

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};

use common::{
    CASCADED, Caller, NAT, SECOND, TCP, Told, interworking_subject, listener, reaches, reaches_nobody, ready,
};
use lab::capture::Capture;
use lab::netns::{Host, INTERNET, LAN1, LAN2, Network, PROVIDER_INTERNET, Process, WAN_INTERFACE};
use lab::provider::QuickProvider;
use lab::subject::{self, Subject};
use lab::wait::eventually;

const PCP_SERVER: &str = env!("CARGO_BIN_EXE_lab-pcp-server");

/// Where the Internet's host is not, before it moves.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 21);

/// RemoteHost and InternalClient by name (iwf.md section 2.4, K-7; decision 25): the address that the router's own hosts
/// file has for it is let in and nobody else, by the router itself, and the provider is told.
#[test]
fn a_remote_host_by_name_is_let_in_and_nobody_else() {
    const FRIEND: u16 = 7001;
    const OTHER: u16 = 7002;
    const EVERYBODY: u16 = 7003;
    const FILTER: u8 = 3;
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = QuickProvider::start(&network, PCP_SERVER);
    let hosts = format!(
        "127.0.0.1 localhost\n{INTERNET} friend.example # at first\n{ELSEWHERE}\tother.example Other.Example.NET\n\
         {LAN1} tv\n{LAN2} printer\n"
    );
    let mut daemon = start_with_hosts(&subject, &network, &hosts);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let mut caller = Caller::new(&control_point, 2);
    let _listeners = [FRIEND, OTHER, EVERYBODY].map(|port| listener(&network, Host::Lan1, TCP, port));
    let wire = Capture::start(&network, Host::Router, WAN_INTERFACE, "udp port 5351");
    let mut add = |remote_host: &str, port: u16, client: &str| {
        caller.call(
            "AddPortMapping",
            &[
                ("NewRemoteHost", remote_host),
                ("NewExternalPort", &port.to_string()),
                ("NewProtocol", "TCP"),
                ("NewInternalPort", &port.to_string()),
                ("NewInternalClient", client),
                ("NewEnabled", "1"),
                ("NewPortMappingDescription", "by name"),
                ("NewLeaseDuration", "3600"),
            ],
        )
    };
    assert_eq!(add("friend.example", FRIEND, &LAN1.to_string()), Told::done());
    assert_eq!(add("other.example.net", OTHER, "tv"), Told::done());
    assert_eq!(add("", EVERYBODY, "tv"), Told::done(), "its own name");
    assert_eq!(add("", 7004, "printer"), Told::Refused(606), "somebody else's name");

    let internal = |port| SocketAddrV4::new(LAN1, port);
    let mut table: Vec<_> =
        subject::listed(&network).expect("the daemon lives").into_iter().map(|m| m.internal).collect();
    table.sort_unstable();
    assert_eq!(table, [FRIEND, OTHER, EVERYBODY].map(internal));

    let reach = |port| reaches(&network, TCP, port, &Host::Lan1.to_string());
    reach(EVERYBODY);
    reach(FRIEND);
    reaches_nobody(&network, TCP, OTHER);
    // The Internet's host moves.
    for arguments in [
        "addr flush dev eth0".to_owned(),
        format!("addr add {ELSEWHERE}/24 dev eth0"),
        format!("route replace {} via {PROVIDER_INTERNET}", lab::netns::EXTERNAL),
    ] {
        network.run(Host::Internet, "ip", arguments.split(' '));
    }
    reach(EVERYBODY);
    reach(OTHER);
    reaches_nobody(&network, TCP, FRIEND);

    let filter_of = |port: u16| {
        let maps = wire.maps().into_iter().map(|(_, map)| map);
        let mut requests = maps.filter(|map| !map.response && map.internal_port == port);
        requests.next().map(|map| map.option(FILTER).map(<[u8]>::to_vec))
    };
    for (port, peer) in [(FRIEND, Some(INTERNET)), (OTHER, Some(ELSEWHERE)), (EVERYBODY, None)] {
        // RFC 6887 §13.3: prefix length, remote port, remote address.
        let expected = peer.map(|peer| [&[0, 128, 0, 0][..], &peer.to_ipv6_mapped().octets()].concat());
        let filter = eventually("the request in the capture", 10 * SECOND, || filter_of(port));
        assert_eq!(filter, expected, "{port}");
    }
    let status = daemon.terminate(30 * SECOND);
    assert!(status.success(), "{status}");
}

/// With a hosts file of its own. It lies over the machine's in the daemon's mount namespace alone, which `ip netns exec` has
/// made for it: nothing is there to be removed.
fn start_with_hosts(subject: &Subject, network: &Network, hosts: &str) -> Process {
    let Subject::Portferry(program) = subject else { panic!("only an interworking function knows names") };
    let path = |name: &str| network.directory().join(name).display().to_string();
    fs::create_dir_all(path("state")).expect("the directory is ours");
    fs::write(path("hosts"), hosts).expect("the directory is ours");
    fs::write(path("portferry.toml"), subject::configuration(network, NAT, ""))
        .expect("the directory is ours");
    let program = program.display().to_string();
    let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
    let arguments = ["-c", script, &path("hosts"), &program, "run", "--config", &path("portferry.toml")]
        .map(String::from);
    network.spawn(Host::Router, "portferry", "sh", arguments)
}
