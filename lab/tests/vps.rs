//! docs/vps.md, done: a home behind a tunnel, `portferry pcp-server` on the VPS at its other end, `portferry run` at home. Needs root.
//!
//! The configuration files, the firewalls, the units' command lines and the commands for looking are those of the page, taken
//! out of it by the marks in front of its code, and run where the page says: each machine sees its own /etc, /run and /var/lib. The
//! names and addresses of the laboratory are those of the page.
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test vps
//! ```

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};

use common::{
    BOTH, Caller, ControlPoint, PROBE, SECOND, TCP, Told, UDP, answer_to, interworking_subject, listener,
    name, reaches, reaches_nobody, ready, redirected_port, skipped,
};
use lab::capture::Capture;
use lab::netns::{
    self, ANOTHER_EXTERNAL, EXTERNAL, HOME_TUNNEL, Host, INTERNET, LAN1, Network, OTHER_TUNNEL, Process,
    TUNNEL_INTERFACE, VPS_INTERFACE, VPS_PRIVATE, VPS_TUNNEL,
};
use lab::subject::Subject;
use lab::wait::eventually;
use serde_json::Value;

const PAGE: &str = include_str!("../../docs/vps.md");

/// The machines of the page.
const VPS: Host = Host::Provider;
const HOME: Host = Host::Router;

/// Exit codes of `portferry pcp`: no answer, and one that refuses.
const NOBODY: i32 = 69;
const REFUSED: i32 = 75;

/// The two ways of the page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Variant {
    /// A NAT at home, too.
    A,
    /// Routed.
    B,
}

// ── The page ───────────────────────────────────────────────────────────────────────────────────────────────────────

/// The code that stands behind a mark of the page.
#[track_caller]
fn block(mark: &str) -> String {
    let (_, rest) =
        PAGE.split_once(&format!("<!-- lab: {mark} -->\n```")).unwrap_or_else(|| panic!("no {mark}"));
    let (_, code) = rest.split_once('\n').expect("a fence has an end");
    code.split_once("\n```").unwrap_or_else(|| panic!("{mark} does not end")).0.to_owned() + "\n"
}

/// A file with keys of another one put into its sections.
fn merged(file: &str, more: &str) -> String {
    let mut file = file.to_owned();
    let mut section = String::new();
    for line in more.lines().filter(|line| !line.is_empty()) {
        if line.starts_with('[') {
            section = format!("{line}\n");
        } else if let Some(at) = file.find(&section) {
            file.insert_str(at + section.len(), &format!("{line}\n"));
        } else {
            file += &format!("\n{section}{line}\n");
        }
    }
    file
}

/// `$ command` lines, each with what the page shows behind it.
fn shown(mark: &str) -> Vec<(String, Vec<String>)> {
    let mut all: Vec<(String, Vec<String>)> = Vec::new();
    for line in block(mark).lines() {
        match (line.strip_prefix("$ "), all.last_mut()) {
            (Some(command), _) => all.push((command.to_owned(), Vec::new())),
            (None, Some((_, output))) => output.push(line.to_owned()),
            (None, None) => panic!("{mark} begins with an output"),
        }
    }
    all
}

/// What two outputs of one command have in common: words, not numbers.
fn words(line: &str) -> String {
    let word = |word: &str| {
        // A cut nonce may have no digit in it.
        let number = word.contains(|c: char| c.is_ascii_digit()) || word.contains('…');
        if number { "#".to_owned() } else { word.to_owned() }
    };
    let mut words: Vec<String> = line.split_whitespace().map(word).collect();
    words.dedup_by(|a, b| a == b && a == "#");
    words.join(" ")
}

// ── The machines ───────────────────────────────────────────────────────────────────────────────────────────────────

/// The page's network, with its files in place and its firewalls up.
struct Recipe {
    network: Network,
}

impl Recipe {
    #[track_caller]
    fn new(variant: Variant, subject: &Subject) -> Self {
        Self::on(Network::vps(variant == Variant::B), variant, subject)
    }

    #[track_caller]
    fn on(network: Network, variant: Variant, subject: &Subject) -> Self {
        let recipe = Self { network };
        let Subject::Portferry(program) = subject else { panic!("it interworks") };
        for host in Host::ALL {
            let own = recipe.own(host);
            for directory in ["etc/portferry", "etc/sysctl.d", "etc/wireguard", "run", "lib", "bin"] {
                fs::create_dir_all(own.join(directory)).expect("the directory is ours");
            }
            // What programs look for in /etc.
            for file in ["protocols", "services", "passwd", "group", "nsswitch.conf", "hosts", "ld.so.cache"]
            {
                let _ = fs::copy(format!("/etc/{file}"), own.join("etc").join(file));
            }
            let program = fs::canonicalize(program).expect("it is there");
            symlink(program, own.join("bin/portferry")).expect("the directory is ours");
        }
        let (vps, home) = match variant {
            Variant::A => ("vps-a", "home-a"),
            Variant::B => ("vps-b", "home-b"),
        };
        for (host, marked) in [(VPS, vps), (HOME, home)] {
            let file = if host == VPS { "portferry/pcp-server.toml" } else { "portferry/portferry.toml" };
            recipe.write(host, file, &block(&format!("{marked} {file}")));
            let general = if host == VPS { "vps" } else { "home" };
            recipe.write(host, "nftables.conf", &block(&format!("{general} nftables.conf")));
            recipe.write(host, "sysctl.d/90-portferry.conf", &block("both sysctl.d/90-portferry.conf"));
            recipe.does(host, "sysctl -q -p /etc/sysctl.d/90-portferry.conf");
            recipe.does(host, "nft -f /etc/nftables.conf");
            recipe.does(host, "nft -f /etc/nftables.conf"); // again, as at a change
        }
        recipe
    }

    /// Where the machine's /etc, /run and /var/lib really are.
    fn own(&self, host: Host) -> PathBuf {
        self.network.directory().join(host.to_string())
    }

    #[track_caller]
    fn write(&self, host: Host, file: &str, content: &str) {
        fs::write(self.own(host).join("etc").join(file), content).expect("the directory is ours");
    }

    /// Puts keys of the page into a machine's configuration.
    #[track_caller]
    fn add(&self, host: Host, more: &str) {
        let file = if host == VPS { "portferry/pcp-server.toml" } else { "portferry/portferry.toml" };
        let before = fs::read_to_string(self.own(host).join("etc").join(file)).expect("it was written");
        self.write(host, file, &merged(&before, more));
    }

    /// What makes `program` see its machine's files.
    fn inside(&self, host: Host) -> Vec<String> {
        const OWN: &str = "mount --bind $1/etc /etc && mount --bind $1/run /run && mount --bind $1/lib /var/lib && \
                           mount --bind $1/bin /usr/local/bin && shift && exec \"$@\"";
        ["sh", "-c", OWN, "sh", &self.own(host).display().to_string()].map(str::to_owned).into()
    }

    /// A command line on a machine; what came of it.
    #[track_caller]
    fn output(&self, host: Host, line: &str) -> Output {
        let words = self.inside(host);
        let mut command = self.network.command(host, "timeout");
        command
            .arg("20")
            .args(words)
            .args(line.split_whitespace())
            .output()
            .expect("ip netns exec can be run")
    }

    /// One that succeeds; what it printed.
    #[track_caller]
    fn does(&self, host: Host, line: &str) -> String {
        let output = self.output(host, line);
        assert!(output.status.success(), "{host}: {line}: {}\n{}", output.status, netns::text(&output));
        String::from_utf8(output.stdout).expect("text")
    }

    #[track_caller]
    fn json(&self, host: Host, line: &str) -> Value {
        let text = self.does(host, &format!("{line} --json"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line} --json: {error}\n{text}"))
    }

    /// Starts what the unit of the page starts.
    #[track_caller]
    fn start(&self, host: Host) -> Process {
        let unit =
            block(if host == VPS { "vps portferry-pcp-server.service" } else { "home portferry.service" });
        let line =
            unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("a unit starts something");
        let mut words = self.inside(host);
        words.extend(line.split(' ').map(str::to_owned));
        let (program, arguments) = words.split_first().expect("sh at least");
        self.network.spawn(host, if host == VPS { "vps" } else { "home" }, program, arguments)
    }

    #[track_caller]
    fn start_server(&self) -> Process {
        let mut server = self.start(VPS);
        self.served(&mut server);
        server
    }

    /// Waits until the server answers.
    #[track_caller]
    fn served(&self, server: &mut Process) {
        eventually("the server", 15 * SECOND, || {
            assert_eq!(server.ended(), None, "{}", server.log());
            self.output(VPS, "portferry pcp-server status").status.success().then_some(())
        });
    }

    /// The home's gateway, once it serves `host`.
    #[track_caller]
    fn start_home(&self, host: Host) -> (Process, ControlPoint<'_>) {
        let mut daemon = self.start(HOME);
        let control_point = ready(&self.network, &mut daemon, host);
        (daemon, control_point)
    }

    /// The server's mappings that applications asked for, which have a description: protocol, external port, internal
    /// endpoint.
    #[track_caller]
    fn mappings(&self) -> Vec<(String, u64, String)> {
        let all = self.json(VPS, "portferry pcp-server mappings");
        let one = |mapping: &Value| {
            let text =
                |key: &str| mapping[key].as_str().unwrap_or_else(|| panic!("{key} of {mapping}")).to_owned();
            let external: SocketAddrV4 = text("external").parse().expect("an address and a port");
            (text("protocol"), u64::from(external.port()), text("internal"))
        };
        let all = all.as_array().expect("an array").iter();
        let mut all: Vec<_> = all.filter(|mapping| mapping["description"].is_string()).map(one).collect();
        all.sort();
        all
    }

    #[track_caller]
    fn epoch(&self) -> u64 {
        self.json(VPS, "portferry pcp-server status")["epoch"].as_u64().expect("a number")
    }

    /// How often the server refused for a reason.
    #[track_caller]
    fn refused(&self, reason: &str) -> u64 {
        self.json(VPS, "portferry pcp-server status")["refused"]
            .get(reason)
            .map_or(0, |n| n.as_u64().expect("a number"))
    }

    fn has_table(&self) -> bool {
        self.output(VPS, "nft list table inet portferry-provider").status.success()
    }
}

fn recipe(variant: Variant) -> Option<Recipe> {
    Some(Recipe::new(variant, &interworking_subject()?))
}

/// A TCP connection from the Internet that is there before anything is said.
struct Connection {
    child: Child,
}

impl Connection {
    #[track_caller]
    fn open(network: &Network, port: u16) -> Self {
        let script = format!(
            "exec 3<>/dev/tcp/{EXTERNAL}/{port} && echo connected && read -r go && echo knock >&3 && read -r answer <&3 && echo $answer"
        );
        let mut command = network.command(Host::Internet, "bash");
        let mut child = command
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("ip netns exec can be run");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("text");
        assert_eq!(line, "connected\n");
        Self { child }
    }

    /// What comes back now.
    #[track_caller]
    fn knock(mut self) -> String {
        let mut stdin = self.child.stdin.take().expect("piped");
        writeln!(stdin, "go").expect("it waits for that");
        let stdout = self.child.stdout.take().expect("piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("text");
        line.trim_end().to_owned()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a datagram from a port of a host to one of a listener on the Internet; whom that saw.
#[track_caller]
fn source_seen(network: &Network, from: Host, port: u16, tag: &str, listener: &Process) -> SocketAddrV4 {
    let mut command = network.command(from, PROBE);
    command
        .args(["udp-blast", &format!("0.0.0.0:{port}"), &format!("{INTERNET}:4000")])
        .stdin(Stdio::piped());
    let mut child = command.spawn().expect("ip netns exec can be run");
    let mut stdin = child.stdin.take().expect("piped");
    let hex: String = tag.bytes().map(|octet| format!("{octet:02x}")).collect();
    writeln!(stdin, "{hex}").expect("it reads");
    drop(stdin);
    child.wait().expect("a child can be waited for");
    eventually("the datagram", 5 * SECOND, || {
        let log = listener.log();
        let line = log.lines().find(|line| line.ends_with(&format!(" {tag}")))?;
        line.split(' ').next()?.parse().ok()
    })
}

// ── The way of the bytes ───────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn with_a_nat_at_home_applications_get_ports_of_the_vps() {
    let Some(recipe) = recipe(Variant::A) else { return };
    applications_get_ports_of_the_vps(&recipe, Variant::A);
}

/// THIRD_PARTY (RFC 6887 §13.1).
#[test]
fn routed_applications_get_ports_of_the_vps() {
    let Some(recipe) = recipe(Variant::B) else { return };
    applications_get_ports_of_the_vps(&recipe, Variant::B);
}

fn applications_get_ports_of_the_vps(recipe: &Recipe, variant: Variant) {
    let network = &recipe.network;
    let mut server = recipe.start_server();
    let (mut daemon, control_point) = recipe.start_home(Host::Lan1);
    let mapped = BOTH.map(|protocol| listener(network, Host::Lan1, protocol, 8080));
    let unmapped = BOTH.map(|protocol| listener(network, Host::Lan1, protocol, 8081));
    let _another = listener(network, Host::Lan1, TCP, 8082);
    let at_home = BOTH.map(|protocol| listener(network, HOME, protocol, 8083));

    for (protocol, word) in [(TCP, "TCP"), (UDP, "UDP")] {
        reaches_nobody(network, protocol, 8080);
        control_point.adds(8080, 8080, word, 3600);
        reaches(network, protocol, 8080, "lan1");
        reaches_nobody(network, protocol, 8081);
    }
    control_point.adds(8082, 9090, "TCP", 3600);
    reaches(network, TCP, 9090, "lan1");
    // The application sees who really talks to it.
    for process in &mapped {
        assert!(
            process.log().lines().any(|line| line.starts_with(&format!("{INTERNET}:"))),
            "{}",
            process.log()
        );
    }
    let internal = |port: u16| match variant {
        Variant::A => format!("{HOME_TUNNEL}:{port}"),
        Variant::B => format!("{LAN1}:{port}"),
    };
    let expected = [("TCP", 8080, 8080), ("TCP", 9090, 8082), ("UDP", 8080, 8080)]
        .map(|(protocol, external, port)| (protocol.to_owned(), external, internal(port)));
    assert_eq!(recipe.mappings(), expected);

    // What goes out.
    let outside = listener(network, Host::Internet, UDP, 4000);
    control_point.adds(7000, 7000, "UDP", 3600);
    assert_eq!(source_seen(network, Host::Lan1, 7000, "mapped", &outside), SocketAddrV4::new(EXTERNAL, 7000));
    control_point.adds(7001, 7002, "UDP", 3600);
    assert_eq!(
        source_seen(network, Host::Lan1, 7001, "elsewhere", &outside),
        SocketAddrV4::new(EXTERNAL, 7002)
    );
    assert_eq!(*source_seen(network, Host::Lan2, 7000, "unmapped", &outside).ip(), EXTERNAL);
    // And from within, by the address that the world knows (RFC 4787 REQ-9).
    assert_eq!(
        answer_to(network, Host::Lan2, TCP, 8080, 3 * SECOND),
        Some("lan1:knock".to_owned()),
        "{variant:?}"
    );

    // Nobody walks in by the addresses behind.
    for route in ["192.168.77.0/24", "10.8.0.0/24"] {
        network.run(Host::Internet, "ip", ["route", "add", route, "via", &EXTERNAL.to_string()]);
    }
    for address in [format!("{LAN1}:8081"), format!("{LAN1}:8080"), format!("{HOME_TUNNEL}:8083")] {
        for protocol in BOTH {
            let mode = format!("{}-send", name(protocol));
            let mut command = network.command(Host::Internet, PROBE);
            let output = command.args([&mode, &address, "knock", "500"]).output().expect("it runs");
            assert!(!output.status.success(), "{address} from the Internet: {}", netns::text(&output));
        }
    }
    for process in unmapped.iter().chain(&at_home) {
        assert_eq!(process.log(), "listening\n", "nothing was mapped there");
    }
    // Not even by the VPS's grace: a mapping of the router itself ends at the router's firewall.
    if variant == Variant::A {
        recipe.does(HOME, &format!("portferry pcp map tcp 8083 8083 --server {VPS_TUNNEL}"));
        reaches_nobody(network, TCP, 8083);
    }
    // The LAN does not reach the server past the gateway.
    let line = format!("portferry pcp external --server {VPS_TUNNEL} --retries 1 --wait 1");
    assert_eq!(recipe.output(Host::Lan1, &line).status.code(), Some(NOBODY));

    // RFC 6887 §13.3: the remote host is the VPS's business.
    let mut caller = Caller::new(&control_point, 1);
    let internal_endpoint = SocketAddrV4::new(LAN1, 8081);
    for (remote, gets_in) in [(INTERNET, true), (Ipv4Addr::new(198, 51, 100, 99), false)] {
        let told = caller.add_for(&remote.to_string(), TCP, 8443, internal_endpoint, 3600, "for one");
        assert_eq!(told, Told::done());
        let all = recipe.json(VPS, "portferry pcp-server mappings");
        let filters = all
            .as_array()
            .expect("an array")
            .iter()
            .find(|one| one["external"].as_str().is_some_and(|external| external.ends_with(":8443")));
        assert_eq!(filters.expect("it stands")["filters"], serde_json::json!([format!("{remote}/32")]));
        let answer =
            answer_to(network, Host::Internet, TCP, 8443, if gets_in { 3 * SECOND } else { SECOND / 2 });
        assert_eq!(answer.is_some(), gets_in, "from {INTERNET} to a port for {remote}");
        let told = caller.call(
            "DeletePortMapping",
            &[("NewRemoteHost", &remote.to_string()), ("NewExternalPort", "8443"), ("NewProtocol", "TCP")],
        );
        assert_eq!(told, Told::done());
    }

    // The VPS's own port: the tunnel must not be mapped away.
    let refused = control_point.add("-a", 51_820, 51_820, "UDP", 3600);
    assert!(refused.contains("failed with code 718"), "{refused}");
    let any = control_point.add("-n", 51_820, 51_820, "UDP", 3600);
    let port = redirected_port(&any, "UDP").unwrap_or_else(|| panic!("{any}"));
    assert_ne!(port, 51_820);

    for (protocol, word) in [(TCP, "TCP"), (UDP, "UDP")] {
        reaches(network, protocol, 8080, "lan1");
        control_point.deletes(8080, word);
        reaches_nobody(network, protocol, 8080);
    }

    // A stop at home gives everything back.
    let status = daemon.terminate(30 * SECOND);
    assert!(status.success(), "{status}");
    assert_eq!(recipe.mappings(), []);
    assert!(server.terminate(10 * SECOND).success());
}

// ── Looking ────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Every command of the page, in its order: it succeeds, and says what the page shows, with other numbers.
#[test]
fn the_commands_of_the_page_say_what_it_shows() {
    let Some(recipe) = recipe(Variant::A) else { return };
    let check = |host: Host, mark: &str| {
        for (command, page) in shown(mark) {
            let output = recipe.does(host, &command);
            let (is, page): (Vec<String>, Vec<String>) =
                (output.lines().map(words).collect(), page.iter().map(|line| words(line)).collect());
            // What others' programs print is their business.
            assert!(
                is == page || !command.starts_with("portferry"),
                "{host}: {command}\n{output}\n{is:#?}\n{page:#?}"
            );
        }
    };
    let mut server = recipe.start_server();
    check(VPS, "vps check");
    check(HOME, "home check");
    let (mut daemon, _) = recipe.start_home(Host::Lan1);
    check(Host::Lan1, "lan check");
    check(HOME, "home look");
    check(VPS, "vps look");
    recipe.add(VPS, &block("vps list"));
    server.signal("HUP");
    server.await_log("configuration read again", 5 * SECOND);
    check(HOME, "home list check");
    // Also for programs.
    let status = recipe.json(VPS, "portferry pcp-server status");
    assert_eq!(status["external"], serde_json::json!([EXTERNAL.to_string()]));
    assert_eq!(status["listening"], serde_json::json!([[TUNNEL_INTERFACE, VPS_TUNNEL.to_string()]]));
    let by_upnp = recipe.mappings();
    assert!(by_upnp.contains(&("TCP".to_owned(), 8080, format!("{HOME_TUNNEL}:8080"))), "{by_upnp:?}");
    assert!(daemon.terminate(30 * SECOND).success());
    assert!(server.terminate(10 * SECOND).success());
}

// ── What survives ──────────────────────────────────────────────────────────────────────────────────────────────────

/// RFC 6887 §8.5: the epoch goes on as long as nothing is lost, and begins anew when something is.
#[test]
fn mappings_survive_every_end_of_the_server() {
    let Some(recipe) = recipe(Variant::A) else { return };
    let network = &recipe.network;
    let mut server = recipe.start_server();
    let (_daemon, control_point) = recipe.start_home(Host::Lan1);
    let _listeners = BOTH.map(|protocol| listener(network, Host::Lan1, protocol, 8080));
    control_point.adds(8080, 8080, "TCP", 3600);
    control_point.adds(8080, 8080, "UDP", 3600);
    let before = recipe.mappings();
    assert_eq!(before.len(), 2, "{before:?}");
    let reach = || BOTH.iter().for_each(|&protocol| reaches(network, protocol, 8080, "lan1"));
    let nobody = || BOTH.iter().for_each(|&protocol| reaches_nobody(network, protocol, 8080));
    let mut epoch = recipe.epoch();
    let mut goes_on = |what: &str| {
        let now = recipe.epoch();
        assert!(now >= epoch, "{what}: {now} after {epoch}");
        epoch = now;
        assert_eq!(recipe.mappings(), before, "{what}");
    };
    eventually("an epoch that tells", 10 * SECOND, || (recipe.epoch() >= 3).then_some(()));

    // The page's keep_on_stop: nobody notices.
    let connection = Connection::open(network, 8080);
    assert!(server.terminate(10 * SECOND).success());
    assert!(recipe.has_table());
    reach();
    let mut server = recipe.start_server();
    goes_on("a restart with keep_on_stop");
    reach();
    assert_eq!(connection.knock(), "lan1:knock", "a connection goes on over a restart");

    // kill -9.
    let connection = Connection::open(network, 8080);
    server.signal("KILL");
    server.wait(5 * SECOND);
    reach();
    let mut server = recipe.start_server();
    goes_on("kill -9");
    reach();
    assert_eq!(connection.knock(), "lan1:knock", "a connection goes on over kill -9");

    // A reboot: nothing is left in the kernel.
    server.signal("KILL");
    server.wait(5 * SECOND);
    recipe.does(VPS, "nft flush ruleset");
    recipe.does(VPS, "nft -f /etc/nftables.conf");
    nobody();
    let server = recipe.start_server();
    goes_on("a reboot");
    reach();

    // Without keep_on_stop, from a reload on.
    let file = recipe.own(VPS).join("etc/portferry/pcp-server.toml");
    let text = fs::read_to_string(&file).expect("it was written");
    assert!(text.contains("keep_on_stop = true"));
    fs::write(&file, text.replace("keep_on_stop = true", "keep_on_stop = false"))
        .expect("the directory is ours");
    let mut server = server;
    server.signal("HUP");
    server.await_log("configuration read again", 5 * SECOND);
    assert!(server.terminate(10 * SECOND).success());
    assert!(!recipe.has_table(), "it is gone at once, and with it the way in");
    nobody();
    let mut server = recipe.start_server();
    goes_on("a restart without keep_on_stop");
    reach();

    // Everything lost: a new epoch, announced; the home asks again by itself (recovery_wait is 5 s).
    assert!(server.terminate(10 * SECOND).success());
    fs::remove_dir_all(recipe.own(VPS).join("lib/portferry-pcp-server")).expect("it is there");
    let last = epoch;
    let _server = recipe.start_server();
    assert!(recipe.epoch() < last, "a new epoch");
    eventually("the home's mappings", 15 * SECOND, || (recipe.mappings() == before).then_some(()));
    reach();
}

/// Decision 16 and 17, issue 4's GET and NEXT.
#[test]
fn mappings_survive_every_end_of_the_home() {
    let Some(recipe) = recipe(Variant::A) else { return };
    let network = &recipe.network;
    recipe.add(VPS, &block("vps list"));
    recipe.add(HOME, &block("home list"));
    recipe.add(HOME, "[uplink]\nservice_wait = 0.1\n");
    let _server = recipe.start_server();
    let (daemon, control_point) = recipe.start_home(Host::Lan1);
    let _listener = listener(network, Host::Lan1, TCP, 8080);
    control_point.adds(8080, 8080, "TCP", 3600);
    let before = recipe.mappings();
    reaches(network, TCP, 8080, "lan1");

    drop(daemon); // SIGKILL
    assert_eq!(recipe.mappings(), before);
    // A reboot of the router.
    recipe.does(HOME, "nft flush ruleset");
    recipe.does(HOME, "nft -f /etc/nftables.conf");
    let (daemon, _) = recipe.start_home(Host::Lan1);
    reaches(network, TCP, 8080, "lan1");
    assert_eq!(recipe.mappings(), before);

    // A new router: the list is all that knows of the mapping, until its application asks.
    drop(daemon);
    fs::remove_dir_all(recipe.own(HOME).join("lib/portferry")).expect("it is there");
    let (mut daemon, control_point) = recipe.start_home(Host::Lan1);
    daemon.await_log("mappings of ours that nobody here knows", 15 * SECOND);
    assert_eq!(recipe.mappings(), before, "kept for who asks");
    control_point.adds(8080, 8080, "TCP", 3600);
    reaches(network, TCP, 8080, "lan1");
    assert_eq!(recipe.mappings(), before, "the same one, not a second");
    assert!(daemon.terminate(30 * SECOND).success());
    assert_eq!(recipe.mappings(), [], "it could give back what an earlier installation had asked for");
}

/// RFC 6887 §8.5, §14.1.3; decision 12.
#[test]
fn the_home_follows_when_the_vps_gets_another_address() {
    let Some(recipe) = recipe(Variant::A) else { return };
    let network = &recipe.network;
    let mut server = recipe.start_server();
    let (_daemon, control_point) = recipe.start_home(Host::Lan1);
    let _listener = listener(network, Host::Lan1, TCP, 8080);
    // What AddAnyPortMapping made goes on with another address; AddPortMapping's too, its port being the same.
    control_point.adds(8080, 8080, "TCP", 3600);
    let wire = Capture::start(network, HOME, TUNNEL_INTERFACE, "udp port 5350");
    network.readdress_vps();
    server.await_log(&format!("external addresses are now: {ANOTHER_EXTERNAL}"), 10 * SECOND);
    eventually("an announcement", 5 * SECOND, || (!wire.packets().is_empty()).then_some(()));
    let said = format!("ExternalIPAddress = {ANOTHER_EXTERNAL}");
    eventually("the new address at home", 15 * SECOND, || {
        control_point.upnpc(&["-s"]).contains(&said).then_some(())
    });
    let mut command = network.command(Host::Internet, PROBE);
    let output = command
        .args(["tcp-send", &format!("{ANOTHER_EXTERNAL}:8080"), "knock", "3000"])
        .output()
        .expect("it runs");
    assert_eq!(netns::text(&output).trim(), "lan1:knock");
    reaches_nobody(network, TCP, 8080);
    assert_eq!(recipe.mappings(), [("TCP".to_owned(), 8080, format!("{HOME_TUNNEL}:8080"))]);
}

/// The same while the server is off: what it has stored follows, with the same port, though its client hears of that at a
/// renewal only.
#[test]
fn stored_mappings_follow_an_address_that_changed_meanwhile() {
    let Some(recipe) = recipe(Variant::A) else { return };
    let network = &recipe.network;
    let mut server = recipe.start_server();
    recipe.does(HOME, &format!("portferry pcp map tcp 8080 8080 --server {VPS_TUNNEL}"));
    let before = recipe.mappings();
    eventually("an epoch that tells", 10 * SECOND, || (recipe.epoch() >= 3).then_some(()));
    assert!(server.terminate(10 * SECOND).success());
    network.readdress_vps();
    let mut server = recipe.start_server();
    server.await_log(&format!("external addresses are now: {ANOTHER_EXTERNAL}"), 10 * SECOND);
    server.await_log("a new epoch begins: an external address has changed", 10 * SECOND);
    assert_eq!(recipe.mappings(), before);
    let table = recipe.does(VPS, "nft list map inet portferry-provider ports");
    assert!(table.contains(&format!("tcp . {ANOTHER_EXTERNAL} . 8080 : {HOME_TUNNEL} . 8080")), "{table}");
}

/// A link that flaps, a network that comes up late after a boot: nothing is lost, and nobody has to ask again.
#[test]
fn an_address_that_comes_back_costs_no_mapping() {
    let Some(recipe) = recipe(Variant::A) else { return };
    let network = &recipe.network;
    let mut server = recipe.start_server();
    let (_daemon, control_point) = recipe.start_home(Host::Lan1);
    let _listener = listener(network, Host::Lan1, TCP, 8080);
    control_point.adds(8080, 8080, "TCP", 3600);
    let before = recipe.mappings();
    eventually("an epoch that tells", 10 * SECOND, || (recipe.epoch() >= 3).then_some(()));
    let epoch = recipe.epoch();
    let gone = || recipe.does(VPS, &format!("ip addr del {EXTERNAL}/24 dev {VPS_INTERFACE}"));
    let back = || {
        recipe.does(VPS, &format!("ip addr add {EXTERNAL}/24 dev {VPS_INTERFACE}"));
        recipe.does(VPS, &format!("ip route replace default via {INTERNET} dev {VPS_INTERFACE} onlink"));
    };

    gone();
    server.await_log("the outside interface has no address", 5 * SECOND);
    back();
    reaches(network, TCP, 8080, "lan1");

    server.signal("KILL");
    server.wait(5 * SECOND);
    recipe.does(VPS, "nft delete table inet portferry-provider");
    gone();
    let mut server = recipe.start_server();
    server.await_log("stored mappings wait 30 s for theirs", SECOND);
    back();
    reaches(network, TCP, 8080, "lan1");
    assert_eq!(recipe.mappings(), before);
    assert!(recipe.epoch() >= epoch, "it went on all the time");
    assert!(!server.log().contains("external addresses are now"), "{}", server.log());
}

/// RFC 6887 §7.4: NETWORK_FAILURE, once the address has not come back.
#[test]
fn an_address_that_stays_away_ends_the_epoch() {
    let Some(recipe) = recipe(Variant::A) else { return };
    let mut server = recipe.start_server();
    let map = format!("portferry pcp map tcp 9000 9000 --server {VPS_TUNNEL}");
    recipe.does(HOME, &map);
    recipe.does(VPS, &format!("ip addr del {EXTERNAL}/24 dev {VPS_INTERFACE}"));
    server.await_log("external addresses are now: none", 45 * SECOND);
    let output = recipe.output(HOME, &map);
    assert_eq!(output.status.code(), Some(REFUSED));
    assert!(netns::text(&output).contains("NETWORK_FAILURE"), "{}", netns::text(&output));
    assert_eq!(recipe.json(VPS, "portferry pcp-server mappings"), serde_json::json!([]));
    assert!(recipe.epoch() < 10);
    recipe.does(VPS, &format!("ip addr add {EXTERNAL}/24 dev {VPS_INTERFACE}"));
    server.await_log(&format!("external addresses are now: {EXTERNAL}"), 5 * SECOND);
    recipe.does(HOME, &map);
}

/// Clients are told the public address; packets never have it.
#[test]
fn a_vps_whose_address_a_cloud_translates_gives_the_public_one() {
    let Some(recipe) = recipe(Variant::A) else { return };
    let network = &recipe.network;
    network.put_vps_into_a_cloud();
    recipe.add(VPS, &block("vps cloud"));
    let mut server = recipe.start_server();
    let (_daemon, control_point) = recipe.start_home(Host::Lan1);
    let _listeners = BOTH.map(|protocol| listener(network, Host::Lan1, protocol, 8080));
    for (protocol, word) in [(TCP, "TCP"), (UDP, "UDP")] {
        reaches_nobody(network, protocol, 8080);
        control_point.adds(8080, 8080, word, 3600);
        reaches(network, protocol, 8080, "lan1");
    }
    let outside = listener(network, Host::Internet, UDP, 4000);
    control_point.adds(7001, 7002, "UDP", 3600);
    let seen = source_seen(network, Host::Lan1, 7001, "mapped", &outside);
    assert_eq!(seen, SocketAddrV4::new(EXTERNAL, 7002));
    control_point.deletes(7002, "UDP");

    // Over a restart, and when the address behind becomes another one: then all begins anew, where it now is.
    let before = recipe.mappings();
    assert!(server.terminate(10 * SECOND).success());
    // A cloud's address may come late: nothing is lost by that.
    recipe.does(VPS, &format!("ip addr del {VPS_PRIVATE}/24 dev {VPS_INTERFACE}"));
    let mut server = recipe.start(VPS);
    server.await_log("it is waited for 30 s", 10 * SECOND);
    recipe.does(VPS, &format!("ip addr add {VPS_PRIVATE}/24 dev {VPS_INTERFACE}"));
    recipe.does(VPS, &format!("ip route replace default via {INTERNET} dev {VPS_INTERFACE} onlink"));
    recipe.served(&mut server);
    eventually("the mappings of before", 5 * SECOND, || (recipe.mappings() == before).then_some(()));
    assert_eq!(server.log().matches("a new epoch begins").count(), 1, "{}", server.log());
    BOTH.iter().for_each(|&protocol| reaches(network, protocol, 8080, "lan1"));
    eventually("an epoch that tells", 10 * SECOND, || (recipe.epoch() >= 3).then_some(()));
    let elsewhere = "10.99.0.6";
    for change in [format!("add {elsewhere}/32"), format!("del {VPS_PRIVATE}/24")] {
        recipe.does(VPS, &format!("ip addr {change} dev {VPS_INTERFACE}"));
    }
    recipe.does(VPS, &format!("ip route replace default via {INTERNET} dev {VPS_INTERFACE} onlink"));
    let table = || recipe.does(VPS, "nft list map inet portferry-provider ports");
    server.await_log("a new epoch begins", 10 * SECOND);
    eventually("mappings at the new place", 15 * SECOND, || {
        (table().contains(&format!("tcp . {elsewhere} . 8080")) && recipe.mappings() == before).then_some(())
    });
    assert!(!table().contains(&VPS_PRIVATE.to_string()), "{}", table());
}

// ── Who may not ────────────────────────────────────────────────────────────────────────────────────────────────────

/// RFC 6887 §18.1, the simple threat model.
#[test]
fn nobody_else_takes_lists_or_deletes_what_the_home_has() {
    let Some(recipe) = recipe(Variant::B) else { return };
    let network = &recipe.network;
    recipe.add(VPS, &block("vps list"));
    let _server = recipe.start_server();
    let (_daemon, control_point) = recipe.start_home(Host::Lan1);
    let _listener = listener(network, Host::Lan1, TCP, 8080);
    control_point.adds(8080, 8080, "TCP", 3600);
    let before = recipe.mappings();
    let pcp = |host: Host, line: &str, wanted: i32| {
        let output = recipe.output(host, &format!("portferry pcp {line} --retries 1 --wait 1"));
        let text = netns::text(&output);
        assert_eq!(output.status.code(), Some(wanted), "{host}: {line}\n{text}");
        text
    };
    let at = |rest: &str| format!("{rest} --server {VPS_TUNNEL}");

    // Another subscriber: takes, lists, deletes.
    pcp(Host::Other, &at("map tcp 8080 8080 --prefer-failure"), REFUSED);
    let taken = pcp(Host::Other, &at("map tcp 8080 8080 --nonce 000102030405060708090a0b"), 0);
    assert!(!taken.contains(&format!("-> {EXTERNAL}:8080\n")), "{taken}");
    let own = pcp(Host::Other, &at("get"), 0);
    assert!(own.contains(&OTHER_TUNNEL.to_string()) && !own.contains(&LAN1.to_string()), "{own}");
    for line in ["get", "map tcp 8080 8080", "delete tcp 8080 --nonce 000102030405060708090a0b"] {
        pcp(Host::Other, &at(&format!("{line} --third-party {LAN1}")), REFUSED);
        pcp(Host::Other, &at(&format!("{line} --third-party {HOME_TUNNEL}")), REFUSED);
    }
    assert!(recipe.refused("third party not allowed") >= 4);
    // The address in the header is another's.
    let mismatches = recipe.refused("another client address than the source");
    let spoofed =
        pcp(Host::Other, &at(&format!("map tcp 8080 8080 --client-address {HOME_TUNNEL}")), REFUSED);
    assert!(spoofed.contains("ADDRESS_MISMATCH"), "{spoofed}");
    assert_eq!(recipe.refused("another client address than the source"), mismatches + 1);
    pcp(Host::Other, &at("delete tcp 8080 --nonce 000102030405060708090a0b"), 0);
    assert_eq!(recipe.mappings(), before);
    reaches(network, TCP, 8080, "lan1");

    // From outside nobody answers, at neither address, whatever the firewall.
    recipe.does(VPS, "nft delete table inet firewall");
    network.run(Host::Internet, "ip", ["route", "add", "10.8.0.0/24", "via", &EXTERNAL.to_string()]);
    for server in [EXTERNAL, VPS_TUNNEL] {
        pcp(Host::Internet, &format!("announce --server {server}"), NOBODY);
        pcp(Host::Internet, &format!("external --server {server}"), NOBODY);
    }
    // Nor is there an answer to who is no subscriber.
    network.run(Host::Other, "ip", ["addr", "add", "10.9.0.3/32", "dev", TUNNEL_INTERFACE]);
    network.run(VPS, "ip", ["route", "add", "10.9.0.3/32", "dev", TUNNEL_INTERFACE]);
    pcp(Host::Other, &at("announce --source 10.9.0.3"), NOBODY);
    assert!(recipe.refused("not from a subscriber") >= 1);
}

// ── Another firewall ───────────────────────────────────────────────────────────────────────────────────────────────

/// The page's lines for UFW, whose own policy is to drop what comes in and what is forwarded.
#[test]
fn ufw_lets_mapped_ports_through_and_nothing_else() {
    let Some(recipe) = recipe(Variant::A) else { return };
    let network = &recipe.network;
    let there = |file: &str| Path::new(file).exists();
    if !there("/usr/sbin/ufw") || !there("/etc/default/ufw") {
        return skipped("there is no ufw: apt-get install ufw");
    }
    let own = recipe.own(VPS).join("etc");
    for directory in ["ufw", "default", "alternatives"] {
        let from = format!("/etc/{directory}");
        network.run(VPS, "cp", ["-r", &from, &own.display().to_string()]);
    }
    recipe.does(VPS, "nft delete table inet firewall");
    for line in block("vps ufw").lines() {
        recipe.does(VPS, line.split('#').next().expect("split yields one"));
    }
    let ruled = recipe.does(VPS, "ufw --force enable");
    assert!(ruled.contains("active"), "{ruled}");
    let status = recipe.does(VPS, "ufw status verbose");
    assert!(status.contains("deny (incoming)") && status.contains("deny (routed)"), "{status}");

    let _server = recipe.start_server();
    let (_daemon, control_point) = recipe.start_home(Host::Lan1);
    let _mapped = BOTH.map(|protocol| listener(network, Host::Lan1, protocol, 8080));
    let others = BOTH.map(|protocol| listener(network, VPS, protocol, 8081));
    for (protocol, word) in [(TCP, "TCP"), (UDP, "UDP")] {
        reaches_nobody(network, protocol, 8080);
        control_point.adds(8080, 8080, word, 3600);
        reaches(network, protocol, 8080, "lan1");
        assert_eq!(answer_to(network, Host::Lan2, protocol, 8080, 3 * SECOND), Some("lan1:knock".to_owned()));
        reaches_nobody(network, protocol, 8081);
    }
    for other in &others {
        assert_eq!(other.log(), "listening\n");
    }
}

// ── The tunnel itself ──────────────────────────────────────────────────────────────────────────────────────────────

/// The page's own WireGuard files, with keys. Where the kernel has no WireGuard, `wireguard-go` has it.
#[test]
fn it_works_through_wireguard() {
    works_through_wireguard(Variant::A);
}

#[test]
fn routed_it_works_through_wireguard() {
    works_through_wireguard(Variant::B);
}

fn works_through_wireguard(variant: Variant) {
    let Some(subject) = interworking_subject() else { return };
    if let Some(reason) = netns::reason_to_skip_tun() {
        return skipped(reason);
    }
    for tool in ["wg", "wg-quick", "wireguard-go", "bash"] {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|directory| directory.join(tool).is_file()) {
            return skipped(&format!("there is no {tool}: apt-get install wireguard-tools wireguard-go"));
        }
    }
    let recipe = Recipe::on(Network::vps_without_tunnel(), variant, &subject);
    let network = &recipe.network;
    let keys = [VPS, HOME].map(|host| {
        let script =
            format!("umask 077; wg genkey | tee {0}/private | wg pubkey", recipe.own(host).display());
        let public = network.run(host, "sh", ["-c", &script]).trim().to_owned();
        let private = fs::read_to_string(recipe.own(host).join("private")).expect("just written");
        (private.trim().to_owned(), public)
    });
    for (host, mark) in [(VPS, "vps wireguard/wg0.conf"), (HOME, "home wireguard/wg0.conf")] {
        let [(vps_private, vps_public), (home_private, home_public)] = &keys;
        let mut page = block(mark);
        if host == VPS && variant == Variant::B {
            let (_, more) = page.split_once("# For variant B also your LAN: ").expect("the page says so");
            let more = more.lines().next().expect("split yields one").to_owned();
            page = page
                .lines()
                .filter(|line| !line.starts_with("AllowedIPs"))
                .fold(String::new(), |all, line| all + line + "\n");
            page += &format!("AllowedIPs = {more}\n");
        }
        let file = page
            .replace("PRIVATE_KEY_OF_THE_VPS", vps_private)
            .replace("PUBLIC_KEY_OF_THE_VPS", vps_public)
            .replace("PRIVATE_KEY_OF_THE_HOME", home_private)
            .replace("PUBLIC_KEY_OF_THE_HOME", home_public);
        recipe.write(host, "wireguard/wg0.conf", &file);
        recipe.does(host, "wg-quick up wg0");
    }
    eventually("the tunnel", 20 * SECOND, || {
        recipe.output(HOME, &format!("{PROBE} ping {VPS_TUNNEL} 1000")).status.success().then_some(())
    });
    let mut server = recipe.start_server();
    let (_daemon, control_point) = recipe.start_home(Host::Lan1);
    let mapped = BOTH.map(|protocol| listener(network, Host::Lan1, protocol, 8080));
    for (protocol, word) in [(TCP, "TCP"), (UDP, "UDP")] {
        control_point.adds(8080, 8080, word, 3600);
        reaches(network, protocol, 8080, "lan1");
    }
    for process in &mapped {
        assert!(
            process.log().lines().any(|line| line.starts_with(&format!("{INTERNET}:"))),
            "{}",
            process.log()
        );
    }
    let before = recipe.mappings();
    // The announcement comes through, for the page allows it to.
    assert!(server.terminate(10 * SECOND).success());
    fs::remove_dir_all(recipe.own(VPS).join("lib/portferry-pcp-server")).expect("it is there");
    let _server = recipe.start_server();
    eventually("the home's mappings", 15 * SECOND, || (recipe.mappings() == before).then_some(()));
    reaches(network, TCP, 8080, "lan1");
}

/// The marks that the suite does not look for would rot unseen.
#[test]
fn every_mark_of_the_page_has_its_test() {
    let suite = include_str!("vps.rs");
    let marks: Vec<&str> = PAGE
        .split("<!-- lab: ")
        .skip(1)
        .map(|rest| rest.split(" -->").next().expect("split yields one"))
        .collect();
    assert!(marks.len() > 10, "{marks:?}");
    for mark in &marks {
        block(mark);
        let (machine, file) = mark.split_once(' ').expect("a machine, and what for");
        let known = suite.contains(&format!("\"{mark}\""))
            || suite.contains(&format!("\"{machine}\"")) && suite.contains(file);
        assert!(known, "{mark}");
    }
}
