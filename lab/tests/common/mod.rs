//! What the suites in network namespaces share: control points, and who reaches whom.
#![allow(dead_code, reason = "each suite uses a part of it")]

pub(crate) mod ds_lite;
pub(crate) mod firewalls;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use lab::capture::{Capture, MapMessage, Packet};
use lab::netns::{self, EXTERNAL, Host, LAN1, LAN2, Layout, Network, Process, ROUTER_LAN};
use lab::subject::{HTTP_PORT, Subject};
use lab::wait::eventually;
use serde_json::Value;

pub(crate) mod pcp;

pub(crate) const PROBE: &str = env!("CARGO_BIN_EXE_lab-probe");

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const BOTH: [u8; 2] = [TCP, UDP];

pub(crate) const CASCADED: Layout = Layout { router_nat: true, lan: true };
pub(crate) const ROUTED: Layout = Layout { router_nat: false, lan: true };

pub(crate) const NAT: &str = "nftables";
pub(crate) const NO_NAT: &str = "none";

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// What is tested, or `None` (after saying so) where there is no laboratory.
pub(crate) fn subject() -> Option<Subject> {
    if let Some(reason) = netns::reason_to_skip() {
        skipped(reason);
        return None;
    }
    Some(Subject::from_environment())
}

/// This network, or `None` (after saying so) where there are no TUN devices.
pub(crate) fn with_tun(network: fn() -> Network) -> Option<Network> {
    if let Some(reason) = netns::reason_to_skip_tun() {
        skipped(reason);
        return None;
    }
    Some(network())
}

/// Only an interworking function.
pub(crate) fn interworking_subject() -> Option<Subject> {
    let subject = subject()?;
    if !subject.interworks() {
        skipped("the subject is no interworking function");
        return None;
    }
    Some(subject)
}

/// The link-local address of a member there.
pub(crate) fn link_local(network: &Network, host: Host, interface: &str) -> Ipv6Addr {
    let line = network.run(host, "ip", ["-6", "-o", "addr", "show", "dev", interface, "scope", "link"]);
    let address = line.split_whitespace().find(|word| word.starts_with("fe80:")).expect("it has one");
    address.split('/').next().and_then(|address| address.parse().ok()).expect("ip prints addresses")
}

/// The number that a LAN host has for its interface.
pub(crate) fn zone(network: &Network, host: Host) -> u32 {
    let index = network.run(host, "cat", ["/sys/class/net/eth0/ifindex"]);
    index.trim().parse().expect("a number")
}

/// Past libtest's capturing, which keeps what passing tests print to itself.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

pub(crate) fn skipped(reason: &str) {
    say(&format!("SKIPPED: {reason}"));
}

/// A program that the lab may lack; says so.
pub(crate) fn there_is(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|directory| directory.join(program).is_file());
    if !found {
        skipped(&format!("there is no {program}: see the list in ./do"));
    }
    found
}

/// Since the Unix epoch, as in captures.
pub(crate) fn now() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970")
}

/// upnpc on a LAN host.
#[derive(Clone)]
pub(crate) struct ControlPoint<'a> {
    pub(crate) network: &'a Network,
    pub(crate) host: Host,
    /// The description; `None`: found anew each time, which takes two seconds.
    pub(crate) location: Option<String>,
}

/// Waits until the daemon is found on the LAN and knows its external address.
#[track_caller]
pub(crate) fn ready<'a>(network: &'a Network, daemon: &mut Process, host: Host) -> ControlPoint<'a> {
    const TARGET: &str = "urn:schemas-upnp-org:device:InternetGatewayDevice:2";
    let location = eventually("an answer to M-SEARCH", 15 * SECOND, || {
        assert_eq!(daemon.ended(), None, "the daemon lives");
        let output = network.command(host, PROBE).args(["search", TARGET, "1500"]).output().expect("it runs");
        output.status.success().then(|| netns::text(&output).trim().to_owned())
    });
    let control_point = ControlPoint { network, host, location: Some(location) };
    eventually("the external address", 15 * SECOND, || {
        control_point.upnpc(&["-s"]).contains(&format!("ExternalIPAddress = {EXTERNAL}")).then_some(())
    });
    control_point
}

impl ControlPoint<'_> {
    pub(crate) fn upnpc(&self, arguments: &[&str]) -> String {
        let mut command = self.network.command(self.host, "timeout");
        command.args(["20", "upnpc"]);
        if let Some(location) = &self.location {
            command.args(["-u", location]);
        }
        netns::text(&command.args(arguments).output().expect("it runs"))
    }

    /// `how` is `-a` (AddPortMapping) or `-n` (AddAnyPortMapping).
    pub(crate) fn add(&self, how: &str, internal: u16, external: u16, protocol: &str, lease: u32) -> String {
        self.upnpc(&[
            how,
            &lan_address(self.host).to_string(),
            &internal.to_string(),
            &external.to_string(),
            protocol,
            &lease.to_string(),
        ])
    }

    #[track_caller]
    pub(crate) fn adds(&self, internal: u16, external: u16, protocol: &str, lease: u32) {
        let answer = self.add("-a", internal, external, protocol, lease);
        assert_eq!(redirected_port(&answer, protocol), Some(external), "{answer}");
    }

    #[track_caller]
    pub(crate) fn deletes(&self, external: u16, protocol: &str) {
        let answer = self.upnpc(&["-d", &external.to_string(), protocol]);
        assert!(answer.contains("UPNP_DeletePortMapping() returned : 0"), "{answer}");
    }

    /// Where the description says that this service is controlled.
    #[track_caller]
    pub(crate) fn control_path(&self, service: &str) -> String {
        let location = self.location.as_deref().expect("found before");
        let rest = location.strip_prefix("http://").expect("HTTP");
        let (address, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let description = self.network.run(self.host, PROBE, ["get", address, path]);
        let control = || {
            let (_, service) = description.split_once(&format!(":{service}:"))?;
            let (_, url) = service.split_once("<controlURL>")?;
            Some(url.split_once('<')?.0.to_owned())
        };
        control().unwrap_or_else(|| panic!("no control URL in {description}"))
    }
}

/// A control point that keeps running and calls actions one by one; its end of the line is `lab-probe control`.
pub(crate) struct Caller {
    child: Child,
    calls: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// What a control point was told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Told {
    /// Success, with the out arguments.
    Done(Vec<(String, String)>),
    /// The UPnP error code.
    Refused(u16),
    /// Nothing: no connection, or one that ended without an answer.
    Nothing(String),
}

impl Caller {
    /// On the host of `control_point`, speaking `WANIPConnection` of that version.
    pub(crate) fn new(control_point: &ControlPoint<'_>, version: u8) -> Self {
        Self::at(control_point, &format!("{ROUTER_LAN}:{HTTP_PORT}"), version)
    }

    /// Likewise to another address and port of the gateway.
    pub(crate) fn at(control_point: &ControlPoint<'_>, address: &str, version: u8) -> Self {
        Self::of_service(control_point, address, "WANIPConnection", version)
    }

    /// Likewise of another service.
    pub(crate) fn of_service(
        control_point: &ControlPoint<'_>,
        address: &str,
        service: &str,
        version: u8,
    ) -> Self {
        let mut child = control_point
            .network
            .command(control_point.host, PROBE)
            .args(["control", address, &control_point.control_path(service)])
            .arg(format!("urn:schemas-upnp-org:service:{service}:{version}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("ip netns exec can be run");
        let calls = child.stdin.take().expect("piped above");
        let answers = BufReader::new(child.stdout.take().expect("piped above"));
        Self { child, calls, answers }
    }

    /// Calls an action and waits for what comes of it.
    #[track_caller]
    pub(crate) fn call(&mut self, action: &str, arguments: &[(&str, &str)]) -> Told {
        let mut line = action.to_owned();
        for (name, value) in arguments {
            line += &format!("\t{name}={value}");
        }
        writeln!(self.calls, "{line}").expect("the probe runs");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("the probe prints text");
        let mut fields = answer.trim_end_matches('\n').split('\t');
        let what = fields.next().expect("split yields one at least");
        match (what, what.parse()) {
            ("done", _) => Told::Done(
                fields
                    .map(|field| field.split_once('=').expect("the probe prints names and values"))
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect(),
            ),
            (_, Ok(code)) => Told::Refused(code),
            ("nothing", _) => Told::Nothing(fields.collect()),
            _ => panic!("the probe ended, or said `{answer}`"),
        }
    }

    /// AddPortMapping to a port of `internal`, for everybody.
    #[track_caller]
    pub(crate) fn add(
        &mut self,
        protocol: u8,
        external_port: u16,
        internal: SocketAddrV4,
        lease: u32,
        description: &str,
    ) -> Told {
        self.add_for("", protocol, external_port, internal, lease, description)
    }

    /// AddPortMapping to a port of `internal`, for a remote host by address or name.
    #[track_caller]
    pub(crate) fn add_for(
        &mut self,
        remote_host: &str,
        protocol: u8,
        external_port: u16,
        internal: SocketAddrV4,
        lease: u32,
        description: &str,
    ) -> Told {
        self.call(
            "AddPortMapping",
            &[
                ("NewRemoteHost", remote_host),
                ("NewExternalPort", &external_port.to_string()),
                ("NewProtocol", &name(protocol).to_uppercase()),
                ("NewInternalPort", &internal.port().to_string()),
                ("NewInternalClient", &internal.ip().to_string()),
                ("NewEnabled", "1"),
                ("NewPortMappingDescription", description),
                ("NewLeaseDuration", &lease.to_string()),
            ],
        )
    }

    /// DeletePortMapping.
    #[track_caller]
    pub(crate) fn delete(&mut self, protocol: u8, external_port: u16) -> Told {
        self.call(
            "DeletePortMapping",
            &[
                ("NewRemoteHost", ""),
                ("NewExternalPort", &external_port.to_string()),
                ("NewProtocol", &name(protocol).to_uppercase()),
            ],
        )
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Told {
    /// Success without out arguments.
    pub(crate) fn done() -> Self {
        Self::Done(Vec::new())
    }
}

/// The LAN address of a LAN host.
pub(crate) fn lan_address(host: Host) -> Ipv4Addr {
    if host == Host::Lan2 { LAN2 } else { LAN1 }
}

/// `external 203.0.114.1:8080 TCP is redirected to internal 192.168.77.10:8080 (duration=3600)`.
pub(crate) fn redirected_port(answer: &str, protocol: &str) -> Option<u16> {
    let line = answer.lines().find(|line| line.contains(&format!("{protocol} is redirected to internal")))?;
    line.split_once(' ')?.1.split(' ').next()?.rsplit_once(':')?.1.parse().ok()
}

pub(crate) fn name(protocol: u8) -> &'static str {
    if protocol == TCP { "tcp" } else { "udp" }
}

/// Answers with the host's name.
#[track_caller]
pub(crate) fn listener(network: &Network, host: Host, protocol: u8, port: u16) -> Process {
    tagged(network, host, protocol, (Ipv4Addr::UNSPECIFIED, port), &host.to_string())
}

/// Answers with `tag`, at an address of either version.
#[track_caller]
pub(crate) fn tagged(
    network: &Network,
    host: Host,
    protocol: u8,
    at: impl Into<SocketAddr>,
    tag: &str,
) -> Process {
    let (mode, at) = (format!("{}-listen", name(protocol)), at.into());
    let log = format!("{mode}-{tag}-{}", at.port());
    let mut process = network.spawn(host, &log, PROBE, [&mode, &at.to_string(), tag]);
    process.await_log("listening", 5 * SECOND);
    process
}

/// What a host hears when it sends to somebody, or why it hears nothing.
pub(crate) fn ask(
    network: &Network,
    from: Host,
    protocol: u8,
    to: impl Into<SocketAddr>,
    text: &str,
) -> Result<String, String> {
    ask_within(3 * SECOND, network, from, protocol, to, text)
}

/// Likewise for so long.
pub(crate) fn ask_within(
    wait: Duration,
    network: &Network,
    from: Host,
    protocol: u8,
    to: impl Into<SocketAddr>,
    text: &str,
) -> Result<String, String> {
    let (mode, to, wait) = (format!("{}-send", name(protocol)), to.into().to_string(), wait.as_millis());
    let mut command = network.command(from, PROBE);
    let output = command.args([&mode, &to, text, &wait.to_string()]).output().expect("the probe runs");
    let heard = netns::text(&output).trim().to_owned();
    if output.status.success() { Ok(heard) } else { Err(heard) }
}

/// Whether an echo request is answered.
pub(crate) fn pings(network: &Network, from: Host, to: impl Into<IpAddr>, wait: Duration) -> bool {
    let (to, wait) = (to.into().to_string(), wait.as_millis().to_string());
    network.command(from, PROBE).args(["ping", &to, &wait]).output().expect("the probe runs").status.success()
}

/// What answers a host that sends to a port of the external address.
pub(crate) fn answer_to(
    network: &Network,
    from: Host,
    protocol: u8,
    port: u16,
    wait: Duration,
) -> Option<String> {
    ask_within(wait, network, from, protocol, (EXTERNAL, port), "knock").ok()
}

/// `portferry pcp …` on a host; its JSON.
#[track_caller]
pub(crate) fn pcp(network: &Network, host: Host, program: &Path, server: IpAddr, line: &str) -> Value {
    let mut command = network.command(host, "timeout");
    command.arg("20").arg(program).arg("pcp").args(line.split(' '));
    command.args(["--json", "--server", &server.to_string()]);
    let output = command.output().expect("it runs");
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("portferry pcp {line}: {error}\n{output:?}"))
}

/// At once: what was acknowledged works.
#[track_caller]
pub(crate) fn reaches(network: &Network, protocol: u8, port: u16, host: &str) {
    let answer = answer_to(network, Host::Internet, protocol, port, 3 * SECOND);
    assert_eq!(answer, Some(format!("{host}:knock")), "{} {port} from the Internet", name(protocol));
}

pub(crate) fn try_reach(network: &Network, protocol: u8, port: u16) -> bool {
    answer_to(network, Host::Internet, protocol, port, Duration::from_millis(500)).is_some()
}

#[track_caller]
pub(crate) fn reaches_nobody(network: &Network, protocol: u8, port: u16) {
    let answer = answer_to(network, Host::Internet, protocol, port, Duration::from_millis(500));
    assert_eq!(answer, None, "{} {port} from the Internet", name(protocol));
}

/// MAP requests for a transport protocol, deletes left out.
pub(crate) fn requests(wire: &Capture, protocol: u8) -> Vec<(Packet, MapMessage)> {
    let maps = wire.maps().into_iter();
    maps.filter(|(_, map)| !map.response && map.protocol == protocol && map.lifetime > Duration::ZERO)
        .collect()
}

/// MAP responses for a transport protocol.
pub(crate) fn answers(wire: &Capture, protocol: u8) -> Vec<(Packet, MapMessage)> {
    wire.maps().into_iter().filter(|(_, map)| map.response && map.protocol == protocol).collect()
}

/// The processes that this one has started.
pub(crate) fn children(process: u32) -> Vec<u32> {
    let output = std::process::Command::new("pgrep")
        .args(["-P", &process.to_string()])
        .output()
        .expect("procps is there");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// The one that reads what the network sends.
pub(crate) fn network_process(daemon: &Process) -> u32 {
    eventually("the network process", 10 * SECOND, || lab::subject::network_process(daemon.id()).ok())
}

/// A file system of 64 KiB.
pub(crate) struct Small(PathBuf);

impl Small {
    pub(crate) fn mount(at: PathBuf) -> Self {
        std::fs::create_dir_all(&at).expect("the directory is ours");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "portferry-lab"]).arg(&at);
        assert!(mount.status().expect("it runs").success(), "a tmpfs at {}", at.display());
        Self(at)
    }

    /// Fills it to the last octet, or makes room again.
    pub(crate) fn fill(&self, full: bool) {
        let filler = self.0.join("filler");
        if full {
            let mut file = std::fs::File::create(filler).expect("there is room for a name");
            let refused = std::iter::repeat_with(|| file.write_all(&[0; 512])).find_map(Result::err);
            assert_eq!(refused.map(|error| error.kind()), Some(std::io::ErrorKind::StorageFull));
        } else {
            std::fs::remove_file(filler).expect("it was filled");
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // The daemon may be in it still, when a test has failed.
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
