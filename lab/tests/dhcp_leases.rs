//! A DHCP server on the router tells portferry whose lease has ended (R-36): Debian's dnsmasq with its hook from
//! packaging/dhcp, in network namespaces, so that needs root; and both hooks by themselves, which need nothing.
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test dhcp_leases
//! ```

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use common::{CASCADED, NAT, SECOND, TCP, interworking_subject, listener, reaches, reaches_nobody, ready};
use lab::netns::{Host, LAN_INTERFACE, LAN1, LAN2, Network, Process};
use lab::provider::{Options, Provider};
use lab::subject::{self, Subject};
use lab::wait::eventually;

const PACKAGING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/dhcp");
/// In 2100.
const FAR: &str = "4102444800";

fn program(path: &Path, script: &str) {
    fs::write(path, script).expect("the directory is ours");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("it is ours");
}

/// What `portferry` was called with, a line each.
fn calls(directory: &Path) -> Vec<String> {
    let calls = fs::read_to_string(directory.join("calls")).unwrap_or_default();
    calls.lines().map(str::to_owned).collect()
}

// ---- dnsmasq

/// The network, and the portferry that the hook calls: the real one, which keeps a list of that.
fn laboratory() -> Option<(Network, Subject)> {
    let subject = interworking_subject()?;
    let Subject::Portferry(portferry) = &subject else { return None };
    let network = Network::new(CASCADED);
    let directory = network.directory();
    fs::create_dir(directory.join("bin")).expect("the directory is ours");
    program(
        &directory.join("bin/portferry"),
        &format!(
            "#!/bin/sh\necho \"$@\" >>{0}/calls\nexec {1} \"$@\" --socket {0}/control.sock\n",
            directory.display(),
            portferry.display()
        ),
    );
    Some((network, subject))
}

/// So many seconds from now on until the end of a lease is told.
fn grace(network: &Network, secs: u32) {
    fs::write(network.directory().join("grace"), secs.to_string()).expect("the directory is ours");
}

/// Waits until the hook has been run for these events and no others, in this order or in the alphabet's.
#[track_caller]
fn hooked(network: &Network, in_order: bool, events: &[&str]) {
    eventually(&format!("dnsmasq's {events:?}"), 10 * SECOND, || {
        let so_far = fs::read_to_string(network.directory().join("events")).unwrap_or_default();
        let mut so_far: Vec<&str> = so_far.lines().collect();
        if !in_order {
            so_far.sort_unstable();
        }
        (so_far == events).then_some(())
    });
}

/// No end of a lease is still to be told.
fn no_lease_waits(network: &Network) -> bool {
    fs::read_dir(network.directory().join("marks")).expect("one has ended").next().is_none()
}

/// The router's DHCP server, with a pool of the address that lan1 has, and with these leases of an earlier life.
fn dhcp_server(network: &Network, leases: &str) -> Process {
    let directory = network.directory().display();
    fs::write(network.directory().join("dnsmasq.leases"), leases).expect("the directory is ours");
    let hook = format!(
        "#!/bin/sh\nPORTFERRY_GRACE=$(cat {directory}/grace) sh {PACKAGING}/dnsmasq-script \"$@\"\n\
         echo \"$1\" >>{directory}/events\n"
    );
    program(&network.directory().join("hook"), &hook);
    let path = std::env::var("PATH").unwrap_or_default();
    let mut server = network.spawn(
        Host::Router,
        "dnsmasq",
        "env",
        [
            &format!("PATH={directory}/bin:{path}"),
            &format!("PORTFERRY_LEASES={directory}/marks"),
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--user=root",
            "--port=0",
            &format!("--interface={LAN_INTERFACE}"),
            "--bind-dynamic",
            &format!("--dhcp-leasefile={directory}/dnsmasq.leases"),
            "--no-ping",
            "--dhcp-authoritative",
            "--pid-file=",
            "--log-dhcp",
            "--log-facility=-",
            &format!("--dhcp-range={LAN1},{LAN1},255.255.255.0,1h"),
            &format!("--dhcp-script={directory}/hook"),
        ],
    );
    server.await_log("DHCP, IP range", 5 * SECOND);
    server
}

/// A DHCP client on lan1, which releases its lease when it ends.
fn dhcp_client(network: &Network) -> Process {
    let script = network.directory().join("udhcpc.script");
    program(&script, "#!/bin/sh\necho \"now: $1\"\n");
    let script = script.display().to_string();
    let arguments = ["-f", "-R", "-i", "eth0", "-s", &script];
    let mut client = network.spawn(Host::Lan1, "udhcpc", "udhcpc", arguments);
    client.await_log("now: bound", 10 * SECOND);
    client
}

/// Waits until no hook runs in the router's namespace.
#[track_caller]
fn hooks_have_ended(network: &Network) {
    let namespace = network.namespace(Host::Router);
    eventually("the end of the hooks", 15 * SECOND, || {
        let pids = Command::new("ip").args(["netns", "pids", &namespace]).output().expect("it runs");
        let pids = String::from_utf8(pids.stdout).expect("numbers");
        let is_hook = |pid: &str| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            // dnsmasq has it among its arguments, the shell as its second word.
            command.split(|&octet| octet == 0).nth(1).is_some_and(|word| word.ends_with(b"/dnsmasq-script"))
        };
        (!pids.lines().any(is_hook)).then_some(())
    });
}

#[track_caller]
fn logs(process: &mut Process, text: &str, times: usize) {
    eventually(&format!("{times} × {text}"), 10 * SECOND, || {
        (process.log().matches(text).count() >= times).then_some(())
    });
}

/// R-36, decision 18: a lease that is released takes the host's mappings along, here and at the provider; one that is renewed, or
/// is the same host's again at once, does not.
#[test]
fn a_released_lease_takes_its_mappings_along() {
    let Some((network, subject)) = laboratory() else { return };
    let provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    grace(&network, 3600);
    let mut server = dhcp_server(&network, "");
    let mut client = dhcp_client(&network);
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    control_point.adds(8080, 9090, "TCP", 3600);
    reaches(&network, TCP, 9090, "lan1");

    client.signal("USR1");
    logs(&mut server, "DHCPACK", 2);
    client.signal("USR2");
    logs(&mut server, "DHCPRELEASE", 1);
    client.signal("USR1");
    logs(&mut server, "DHCPACK", 3);
    hooked(&network, true, &["add", "del", "add"]);
    assert!(no_lease_waits(&network));
    assert_eq!(calls(network.directory()), [""; 0], "{}", server.log());
    reaches(&network, TCP, 9090, "lan1");

    grace(&network, 0);
    assert!(client.terminate(10 * SECOND).success());
    eventually("the end of the mapping", 20 * SECOND, || subject::listed(&network)?.is_empty().then_some(()));
    assert_eq!(calls(network.directory()), [format!("release {LAN1}")]);
    eventually("its end at the provider", 5 * SECOND, || {
        provider.forwarding(TCP, 9090).is_none().then_some(())
    });
    reaches_nobody(&network, TCP, 9090);
    hooked(&network, true, &["add", "del", "add", "del"]);
    eventually("the end of the hook", 10 * SECOND, || no_lease_waits(&network).then_some(()));
    assert!(daemon.terminate(30 * SECOND).success());
}

/// R-36: a lease that ended while dnsmasq was away is told when it starts, and one that goes on is not; nor is one of an IPv6
/// address, to which nothing is mapped.
#[test]
fn a_lease_that_ended_meanwhile_takes_its_mappings_along() {
    let Some((network, subject)) = laboratory() else { return };
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let first = ready(&network, &mut daemon, Host::Lan1);
    first.adds(8080, 9090, "TCP", 3600);
    common::ControlPoint { host: Host::Lan2, ..first.clone() }.adds(8080, 9091, "TCP", 3600);
    grace(&network, 0);
    let _server = dhcp_server(
        &network,
        &format!(
            "1000000000 02:00:00:00:00:01 {LAN1} * *\n{FAR} 02:00:00:00:00:02 {LAN2} * *\n\
             duid 00:01:00:01:2c:00:00:00:02:00:00:00:00:01\n1000000000 1 fd00::5 * 00:01:00:01\n"
        ),
    );
    eventually("the end of one mapping", 20 * SECOND, || {
        let listed = subject::listed(&network)?;
        (listed.len() == 1 && *listed[0].internal.ip() == LAN2).then_some(())
    });
    hooked(&network, false, &["del", "del", "old"]);
    hooks_have_ended(&network);
    assert_eq!(calls(network.directory()), [format!("release {LAN1}")]);
    assert!(daemon.terminate(30 * SECOND).success());
}

// ---- The hooks by themselves

/// A directory with programs of ours, that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("portferry-leases-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let new = Self(std::env::temp_dir().join(name));
        fs::create_dir_all(new.0.join("bin")).expect("the temporary directory is writable");
        let directory = new.0.display();
        // It fails where `down` is, as when no gateway runs.
        program(
            &new.0.join("bin/portferry"),
            &format!("#!/bin/sh\necho \"$@\" >>{directory}/calls\n[ ! -e {directory}/down ]\n"),
        );
        program(&new.0.join("bin/pidof"), &format!("#!/bin/sh\nexec cat {directory}/pid\n"));
        program(&new.0.join("bin/uci"), "#!/bin/sh\nexit 1\n");
        new
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).expect("the directory is ours");
    }

    fn command(&self, hook: &str) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("sh");
        command
            .arg(Path::new(PACKAGING).join(hook))
            .env("PATH", format!("{}:{path}", self.0.join("bin").display()))
            .env("PORTFERRY_LEASES", self.0.join("marks"))
            .env("PORTFERRY_ODHCPD_LEASES", self.0.join("leases"))
            .env("PORTFERRY_GRACE", "0")
            .env_remove("ACTION");
        command
    }

    /// dnsmasq's hook with these words, to its end.
    fn dnsmasq(&self, words: &[&str]) {
        assert!(self.command("dnsmasq-script").args(words).status().expect("it runs").success(), "{words:?}");
    }

    /// odhcpd's hook, and what it has called, in the order of the alphabet.
    #[track_caller]
    fn odhcpd(&self) -> Vec<String> {
        let before = calls(&self.0).len();
        let output = self.command("odhcpd-trigger").output().expect("it runs");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let mut new = calls(&self.0).split_off(before);
        new.sort();
        new
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A hook that goes on beside its caller, for longer than the test.
struct Waiting(u32);

impl Waiting {
    fn of(command: &mut Command) -> Self {
        let mut hook = command.process_group(0).spawn().expect("it runs");
        let new = Self(hook.id());
        assert!(hook.wait().expect("it is our child").success());
        new
    }
}

impl Waiting {
    #[track_caller]
    fn has_ended(&self) {
        let group = format!("-{}", self.0);
        eventually("the end of the hook", 10 * SECOND, || {
            let alive = Command::new("kill").args(["-0", "--", &group]).output().expect("it runs");
            (!alive.status.success()).then_some(())
        });
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", self.0)]).output();
    }
}

/// What is in place of an address, and is none.
const HOSTILE: [&str; 9] =
    ["", "2001:db8::5", "../../etc/passwd", "1.2.3.4;reboot", "$(reboot)", "-h", "1.2.3.4 5", "..", "1..2"];

/// R-36: hostile words, and events that are no end of a lease, do nothing.
#[test]
fn dnsmasqs_hook_passes_over_what_is_no_end_of_a_lease() {
    let scratch = Scratch::new();
    for address in HOSTILE {
        for what in ["add", "old", "del"] {
            scratch.dnsmasq(&[what, "02:00:00:00:00:01", address, "a name; reboot"]);
        }
    }
    for what in ["add", "old", "arp-add", "arp-del", "tftp", "init", "relay-snoop", "$(reboot)"] {
        scratch.dnsmasq(&[what, "02:00:00:00:00:01", "192.168.1.10"]);
    }
    scratch.dnsmasq(&["init"]);
    assert_eq!(calls(&scratch.0), [""; 0]);
    assert!(!scratch.0.join("marks").exists());
}

/// R-36: told once, in dnsmasq's words and in those of OpenWrt's hotplug scripts; another host that gets the address does not
/// wait for it.
#[test]
fn dnsmasqs_hook_tells_the_end_of_a_lease() {
    let scratch = Scratch::new();
    let told = |times: usize| {
        eventually("the call", 10 * SECOND, || (calls(&scratch.0).len() >= times).then_some(()));
        eventually("its end", 10 * SECOND, || {
            fs::read_dir(scratch.0.join("marks")).ok()?.next().is_none().then_some(())
        });
    };
    scratch.dnsmasq(&["del", "02:00:00:00:00:01", "192.168.1.10", "$(reboot)"]);
    told(1);
    let mut openwrt = scratch.command("dnsmasq-script");
    openwrt.arg("dhcp").env("ACTION", "remove").env("MACADDR", "02:00:00:00:00:01");
    assert!(openwrt.env("IPADDR", "192.168.1.11").status().expect("it runs").success());
    told(2);
    let mut long = scratch.command("dnsmasq-script");
    long.env("PORTFERRY_GRACE", "3600").args(["del", "02:00:00:00:00:01", "192.168.1.12"]);
    let waiting = Waiting::of(&mut long);
    scratch.dnsmasq(&["add", "02:00:00:00:00:02", "192.168.1.12"]);
    told(3);
    assert_eq!(
        calls(&scratch.0),
        ["release 192.168.1.10", "release 192.168.1.11", "release 192.168.1.12"].map(str::to_owned)
    );
    drop(waiting);
}

/// R-36: a host that has its address again before the wait is over, and one that loses it twice.
#[test]
fn dnsmasqs_hook_forgets_a_lease_that_goes_on() {
    let scratch = Scratch::new();
    let go = scratch.0.join("go");
    // The wait is over when the test says so.
    let sleep = format!("#!/bin/sh\nwhile [ ! -e {} ]; do /bin/sleep 0.02; done\n", go.display());
    program(&scratch.0.join("bin/sleep"), &sleep);
    let end = |address| {
        let mut hook = scratch.command("dnsmasq-script");
        Waiting::of(hook.args(["del", "02:00:00:00:00:01", address]))
    };
    let (back, once, twice) = (end("192.168.1.10"), end("192.168.1.11"), end("192.168.1.11"));
    scratch.dnsmasq(&["add", "02:00:00:00:00:01", "192.168.1.10"]);
    fs::write(&go, "").expect("the directory is ours");
    for hook in [back, once, twice] {
        hook.has_ended();
    }
    assert_eq!(calls(&scratch.0), ["release 192.168.1.11"]);
}

/// R-36: while no gateway runs the hook does not forget, until the same host is back.
#[test]
fn dnsmasqs_hook_waits_for_a_gateway() {
    let scratch = Scratch::new();
    scratch.write("down", "");
    let mut hook = scratch.command("dnsmasq-script");
    let waiting = Waiting::of(hook.args(["del", "02:00:00:00:00:01", "192.168.1.10"]));
    eventually("the call", 10 * SECOND, || (!calls(&scratch.0).is_empty()).then_some(()));
    assert!(scratch.0.join("marks/192.168.1.10").exists());
    scratch.dnsmasq(&["old", "02:00:00:00:00:01", "192.168.1.10"]);
    assert!(!scratch.0.join("marks/192.168.1.10").exists());
    assert_eq!(calls(&scratch.0).len(), 1);
    drop(waiting);
}

/// A line of odhcpd's lease file.
fn lease(mac: &str, name: &str, end: &str, address: [u8; 4]) -> String {
    let [a, b, c, d] = address;
    format!("# br-lan {mac} ipv4 {name} {end} {a:x}{b:02x}{c:02x}{d:02x} 32 {a}.{b}.{c}.{d}/32\n")
}

const HOST: [u8; 4] = [10, 0, 0, 5];
const OTHER: [u8; 4] = [192, 168, 1, 11];

/// R-36: odhcpd's lease file, step by step.
#[test]
fn odhcpds_hook_finds_the_leases_that_have_ended() {
    let scratch = Scratch::new();
    scratch.write("pid", "77\n");
    let nobody: [&str; 0] = [];
    // No file, and the first one: nothing was seen before.
    assert_eq!(scratch.odhcpd(), nobody);
    let six = format!("# br-lan 00010001aabb 1 printer {FAR} 5 128 fd00::5/128 \n");
    let host = |end: &str| lease("00163e0a0b0c", "printer", end, HOST);
    let other = lease("0:16:3e:a:b:d", "broken\\x20Bob's\ttelephone", FAR, OTHER);
    let hosts = "10.0.0.5\tprinter.lan\tprinter\n";
    scratch.write("leases", &format!("{six}{hosts}{}{other}", host(FAR)));
    assert_eq!(scratch.odhcpd(), nobody);
    // Renewed; DHCPv6 has ended.
    scratch.write("leases", &format!("{hosts}{}{other}", host("4102445000")));
    assert_eq!(scratch.odhcpd(), nobody);
    scratch.write("leases", &host(FAR));
    assert_eq!(scratch.odhcpd(), ["release 192.168.1.11"]);
    assert_eq!(scratch.odhcpd(), nobody);
    // Another host has its address.
    scratch.write("leases", &lease("00163e0a0b0e", "-", "-1", HOST));
    assert_eq!(scratch.odhcpd(), ["release 10.0.0.5"]);
    // No gateway runs: again the next time, unless the host is back by then.
    scratch.write("leases", "");
    scratch.write("down", "");
    assert_eq!(scratch.odhcpd(), ["release 10.0.0.5"]);
    assert_eq!(scratch.odhcpd(), ["release 10.0.0.5"]);
    scratch.write("leases", &lease("00163e0a0b0e", "-", "-1", HOST));
    assert_eq!(scratch.odhcpd(), nobody);
    fs::remove_file(scratch.0.join("down")).expect("it was written");
    assert_eq!(scratch.odhcpd(), nobody);
    scratch.write("leases", "");
    assert_eq!(scratch.odhcpd(), ["release 10.0.0.5"]);
    assert_eq!(scratch.odhcpd(), nobody);
}

/// R-36: odhcpd begins without leases, which is the end of none.
#[test]
fn odhcpds_hook_knows_a_new_odhcpd() {
    let scratch = Scratch::new();
    let nobody: [&str; 0] = [];
    let host = lease("00163e0a0b0c", "printer", FAR, HOST);
    let over = lease("00163e0a0b0d", "-", "1000000000", OTHER);
    scratch.write("pid", "77\n");
    scratch.write("leases", &format!("{host}{over}"));
    assert_eq!(scratch.odhcpd(), nobody);
    scratch.write("pid", "78\n");
    scratch.write("leases", "");
    assert_eq!(scratch.odhcpd(), ["release 192.168.1.11"]);
    assert_eq!(scratch.odhcpd(), nobody);
    // It has come back to the new one, and goes from there.
    scratch.write("leases", &host);
    assert_eq!(scratch.odhcpd(), nobody);
    scratch.write("leases", "");
    assert_eq!(scratch.odhcpd(), ["release 10.0.0.5"]);
    // What the old one gave, and the new one gives somebody else.
    scratch.write("leases", &host);
    assert_eq!(scratch.odhcpd(), nobody);
    scratch.write("pid", "79\n");
    scratch.write("leases", &lease("00163e0a0b0f", "-", FAR, HOST));
    assert_eq!(scratch.odhcpd(), ["release 10.0.0.5"]);
}

/// R-36: names that are lines, and lines that are none, end nobody's lease.
#[test]
fn odhcpds_hook_passes_over_hostile_lines() {
    let scratch = Scratch::new();
    scratch.write("pid", "77\n");
    let nobody: [&str; 0] = [];
    let host = lease("00163e0a0b0c", "printer", FAR, HOST);
    let name = format!(
        "broken\\x20$(reboot) {FAR} c0a80101 32 192.168.1.1/32\n{}# br-lan 02 ipv4 -",
        lease("020000000001", "-", FAR, HOST)
    );
    let liar = lease("020000000001", &name, FAR, OTHER);
    let mut wrong = String::new();
    for address in HOSTILE {
        wrong += &format!("# br-lan 02 ipv4 - {FAR} a000006 32 {address}/32\n");
    }
    // The two forms differ, a part that is none, an end that is none, a MAC that is none, too little.
    wrong += &format!("# br-lan 02 ipv4 - {FAR} a000007 32 10.0.0.6/32\n");
    wrong += &format!("# br-lan 02 ipv4 - {FAR} a000100 32 10.0.0.256/32\n");
    wrong += "# br-lan 02 ipv4 - never a000006 32 10.0.0.6/32\n";
    wrong += &format!("# br-lan $(reboot) ipv4 - {FAR} a000006 32 10.0.0.6/32\n");
    wrong += &format!("# br-lan 02 ipv4 {FAR} a000006 32 10.0.0.6/32\n# br-lan\n#\n\0\n");
    scratch.write("leases", &format!("{liar}{wrong}{host}"));
    assert_eq!(scratch.odhcpd(), nobody);
    // The liar's lease ends, with its lines.
    scratch.write("leases", &host);
    assert_eq!(scratch.odhcpd(), ["release 192.168.1.1", "release 192.168.1.11"].map(str::to_owned));
    scratch.write("leases", "");
    assert_eq!(scratch.odhcpd(), ["release 10.0.0.5"]);
}
