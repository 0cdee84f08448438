//! One daemon on its router, one control point that asks it, and what that costs the daemon.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use wire::ssdp;

use super::upstream::{Manner, Upstream};
use crate::control_point::{self, Called, NEWER, Service};
use crate::http::{Answer, Client, head};
use crate::netns::{
    EXTERNAL, Host, LAN_INTERFACE, LAN1, Layout, Network, Process, ROUTER_LAN, WAN_INTERFACE,
};
use crate::provider::{CHAIN_SETTINGS, CHAINS};
use crate::subject::{HTTP_PORT, configuration, network_process, run};
use crate::wait::eventually;

/// Nobody asks too often here, or for too much.
const NO_QUOTAS: &str = "[policy]\nmappings_per_host = 65000\nexchanges_per_second = 60000\nexchanges_burst = 60000\nnever = []\n";
/// Until a daemon serves.
const READY: Duration = Duration::from_secs(30);
/// The first external port of what stands. Below it is room for what comes and goes.
pub(super) const STANDING: u16 = 6000;

/// Whose cost it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Who {
    Portferry,
    Miniupnpd,
}

impl Who {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Portferry => "portferry",
            Self::Miniupnpd => "miniupnpd",
        }
    }
}

/// See the module's description.
pub(super) struct Rig {
    pub(super) who: Who,
    pub(super) upstream: Upstream,
    processes: Vec<u32>,
    pub(super) description: String,
    pub(super) connection: Service,
    daemon: Daemon,
    pub(super) network: Network,
}

/// Memory of the processes, in KiB.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Memory {
    /// Everything that is in RAM, what they share counted for each.
    pub(super) rss: u64,
    /// What each has for itself: heap, stacks, changed data.
    pub(super) private: u64,
}

impl Rig {
    /// portferry with a NAT of its own, its store and a provider.
    pub(super) fn portferry(program: &Path, manner: Manner) -> Self {
        let network = Network::new(Layout::default());
        let upstream = Upstream::start(&network, Manner::AT_ONCE);
        let daemon = run(
            &network,
            Host::Router,
            "portferry",
            program,
            &configuration(&network, "nftables", NO_QUOTAS),
        );
        let privileged = daemon.id();
        let reading = eventually("the network process", READY, || network_process(privileged).ok());
        let (description, connection) = discover(&network);
        let rig = Self {
            who: Who::Portferry,
            upstream,
            processes: vec![privileged, reading],
            description,
            connection,
            daemon: Daemon::Portferry(daemon),
            network,
        };
        rig.await_address();
        rig.upstream.set(manner);
        rig
    }

    /// Debian's miniupnpd with the NAT alone, and its messages in a log that nobody keeps.
    pub(super) fn miniupnpd() -> Self {
        let network = Network::new(Layout::default());
        let upstream = Upstream::start(&network, Manner::AT_ONCE);
        let daemon = Miniupnpd::prepare(&network);
        daemon.start(&network);
        let pid = daemon.pid(&network);
        let (description, connection) = discover(&network);
        Self {
            who: Who::Miniupnpd,
            upstream,
            processes: vec![pid],
            description,
            connection,
            daemon: Daemon::Miniupnpd(daemon),
            network,
        }
    }

    pub(super) fn gateway(&self) -> SocketAddr {
        (ROUTER_LAN, HTTP_PORT).into()
    }

    pub(super) fn client(&self) -> Client {
        Client::new(self.gateway())
    }

    /// The processor time of all its processes, in their own code and in the kernel.
    pub(super) fn cpu(&self) -> Duration {
        self.processes.iter().map(|&pid| cpu(pid).expect("the daemon runs")).sum()
    }

    pub(super) fn memory(&self) -> Memory {
        let all = self.processes.iter().map(|&pid| memory(pid).expect("the daemon runs"));
        all.fold(Memory::default(), |sum, one| Memory {
            rss: sum.rss + one.rss,
            private: sum.private + one.private,
        })
    }

    /// Calls an action from the LAN; call it from [`Self::on_lan`].
    pub(super) fn call(
        &self,
        client: &mut Client,
        keep: bool,
        action: &str,
        arguments: &[(&str, &str)],
    ) -> io::Result<Called> {
        let (head, body) = self.connection.request(action, arguments);
        let answer = client.ask(&head, &body, keep)?;
        control_point::called(action, &answer).ok_or_else(|| io::Error::other(format!("no SOAP: {answer:?}")))
    }

    /// The description.
    pub(super) fn root(&self, client: &mut Client, keep: bool) -> io::Result<Answer> {
        client.ask(&head("GET", &self.description, &[]), "", keep)
    }

    /// GetSpecificPortMappingEntry of the number's port.
    pub(super) fn specific(&self, client: &mut Client, keep: bool, number: u32) -> io::Result<Called> {
        let (protocol, port) = port(number);
        let arguments =
            [("NewRemoteHost", ""), ("NewExternalPort", &*port.to_string()), ("NewProtocol", protocol)];
        self.call(client, keep, "GetSpecificPortMappingEntry", &arguments)
    }

    /// How many GetListOfPortMappings lists of all TCP ports from [`STANDING`] on.
    pub(super) fn list(&self, client: &mut Client) -> io::Result<usize> {
        let arguments = [
            ("NewStartPort", &*STANDING.to_string()),
            ("NewEndPort", "65535"),
            ("NewProtocol", "TCP"),
            ("NewManage", "0"),
            ("NewNumberOfPorts", "0"),
        ];
        let called = self.call(client, false, "GetListOfPortMappings", &arguments)?;
        let list = called.ok().and_then(|values| values.into_iter().next()).map(|(_, list)| list);
        Ok(list.map_or(0, |list| list.matches("PortMappingEntry>").count() / 2))
    }

    /// So many further addresses of the LAN host, of which each is a host to the daemon.
    pub(super) fn hosts(&self, number: u16) -> Vec<Ipv4Addr> {
        let [a, b, c, _] = LAN1.octets();
        let host = |last: u16| Ipv4Addr::new(a, b, c, 100 + u8::try_from(last).expect("some hosts"));
        let hosts: Vec<Ipv4Addr> = (0..number).map(host).collect();
        for host in &hosts {
            let address = format!("{host}/24");
            self.network.run(Host::Lan1, "ip", ["addr", "replace", &address, "dev", "eth0"]);
        }
        hosts
    }

    /// How often its threads have been woken.
    pub(super) fn wakes(&self) -> u64 {
        self.processes.iter().map(|&pid| wakes(pid).expect("the daemon runs")).sum()
    }

    /// How long a start takes until HTTP, and until SSDP, is answered.
    pub(super) fn start_times(who: Who, program: &Path) -> (Duration, Duration) {
        let network = Network::new(Layout::default());
        let since = Instant::now();
        let answered = || {
            network.inside(Host::Lan1, || {
                let http = std::thread::spawn(move || until_http(since));
                let ssdp = until_ssdp(since);
                (http.join().expect("it does not panic"), ssdp)
            })
        };
        match who {
            Who::Portferry => {
                let _upstream = Upstream::start(&network, Manner::AT_ONCE);
                let configuration = configuration(&network, "nftables", NO_QUOTAS);
                let since_start = since.elapsed();
                let _daemon = run(&network, Host::Router, "portferry", program, &configuration);
                let (http, ssdp) = answered();
                (http - since_start, ssdp - since_start)
            }
            Who::Miniupnpd => {
                let daemon = Miniupnpd::prepare(&network);
                let since_start = since.elapsed();
                daemon.start(&network);
                let (http, ssdp) = answered();
                daemon.end(&network);
                (http - since_start, ssdp - since_start)
            }
        }
    }

    /// Runs on a LAN host.
    pub(super) fn on_lan<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        self.network.inside(Host::Lan1, what)
    }

    /// Maps ports from [`STANDING`] on, up to so many; how many there are when time is up.
    pub(super) fn fill(&self, from: u32, to: u32, within: Duration) -> u32 {
        let deadline = Instant::now() + within;
        self.on_lan(|| {
            let mut client = self.client();
            for number in from..to {
                if Instant::now() > deadline || !matches!(self.add(&mut client, number), Ok(Ok(_))) {
                    return number;
                }
            }
            to
        })
    }

    /// AddPortMapping of the number's port, for the LAN host.
    pub(super) fn add(&self, client: &mut Client, number: u32) -> io::Result<Called> {
        self.add_for(client, LAN1, number)
    }

    /// The same for another address of it.
    pub(super) fn add_for(&self, client: &mut Client, host: Ipv4Addr, number: u32) -> io::Result<Called> {
        let (protocol, port) = port(number);
        let port = port.to_string();
        let keep = self.who == Who::Portferry;
        let arguments = [
            ("NewRemoteHost", ""),
            ("NewExternalPort", &*port),
            ("NewProtocol", protocol),
            ("NewInternalPort", &port),
            ("NewInternalClient", &host.to_string()),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", "bench"),
            ("NewLeaseDuration", "0"),
        ];
        self.call(client, keep, "AddPortMapping", &arguments)
    }

    /// DeletePortMapping of the number's port.
    pub(super) fn delete(&self, client: &mut Client, number: u32) -> io::Result<Called> {
        let (protocol, port) = port(number);
        let arguments =
            [("NewRemoteHost", ""), ("NewExternalPort", &*port.to_string()), ("NewProtocol", protocol)];
        self.call(client, self.who == Who::Portferry, "DeletePortMapping", &arguments)
    }

    fn await_address(&self) {
        self.on_lan(|| {
            let mut client = self.client();
            eventually("the external address", READY, || {
                let called = self.call(&mut client, false, "GetExternalIPAddress", &[]).ok()?.ok()?;
                called.iter().any(|(_, value)| value.parse::<Ipv4Addr>().is_ok()).then_some(())
            });
        });
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Daemon::Miniupnpd(daemon) = &self.daemon {
            daemon.end(&self.network);
        }
    }
}

/// What runs; it ends with the rig.
enum Daemon {
    /// It is killed when this is dropped.
    #[expect(dead_code, reason = "it is there to be dropped")]
    Portferry(Process),
    Miniupnpd(Miniupnpd),
}

/// Debian's miniupnpd in the background, as it runs on a router.
struct Miniupnpd {
    _log: Option<LogSink>,
}

impl Miniupnpd {
    /// Writes what it reads.
    fn prepare(network: &Network) -> Self {
        network.nft(Host::Router, CHAINS);
        let path = |name: &str| network.directory().join(name).display().to_string();
        let settings = format!(
            "ext_ifname={WAN_INTERFACE}\next_ip={EXTERNAL}\nlistening_ip={LAN_INTERFACE}\nhttp_port={HTTP_PORT}\n\
             ipv6_disable=yes\nenable_upnp=yes\nenable_natpmp=yes\nsecure_mode=yes\nsystem_uptime=yes\n\
             uuid=8d5f1c2e-0000-4000-8000-{:012x}\n{CHAIN_SETTINGS}allow 0-65535 {ROUTER_LAN}/24 0-65535\n",
            std::process::id(),
        );
        fs::write(path("router.conf"), settings).expect("the directory is ours");
        Self { _log: LogSink::start() }
    }

    fn start(&self, network: &Network) {
        let path = |name: &str| network.directory().join(name).display().to_string();
        network.run(Host::Router, "miniupnpd", ["-f", &path("router.conf"), "-P", &path("router.pid")]);
    }

    fn pid(&self, network: &Network) -> u32 {
        let path = network.directory().join("router.pid");
        eventually("miniupnpd's process", READY, || fs::read_to_string(&path).ok()?.trim().parse().ok())
    }

    fn end(&self, network: &Network) {
        let pid = self.pid(network).to_string();
        let _ = std::process::Command::new("sh").args(["-c", &format!("kill -KILL {pid}")]).status();
    }
}

fn until_http(since: Instant) -> Duration {
    eventually_soon("HTTP", || {
        std::net::TcpStream::connect_timeout(&(ROUTER_LAN, HTTP_PORT).into(), Duration::from_secs(1)).ok()
    });
    since.elapsed()
}

fn until_ssdp(since: Instant) -> Duration {
    let socket = UdpSocket::bind((LAN1, 0)).expect("the host has this address");
    socket.connect((ROUTER_LAN, ssdp::PORT)).expect("UDP connects at once");
    socket.set_read_timeout(Some(Duration::from_millis(2))).expect("a socket has one");
    let request = ssdp::search(&format!("{ROUTER_LAN}:1900"), &ssdp::Target::RootDevice, None);
    eventually_soon("SSDP", || {
        let _ = socket.send(request.as_bytes());
        socket.recv(&mut [0; 2048]).ok()
    });
    since.elapsed()
}

/// As [`eventually`], without pauses that one would see in the figure.
fn eventually_soon<T>(what: &str, mut look: impl FnMut() -> Option<T>) {
    let deadline = Instant::now() + READY;
    while look().is_none() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn wakes(pid: u32) -> io::Result<u64> {
    let mut all = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("status"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        all += line.and_then(|number| number.trim().parse::<u64>().ok()).ok_or(io::ErrorKind::InvalidData)?;
    }
    Ok(all)
}

/// Protocol and port of what has this number: from [`STANDING`] on, first all of TCP, then UDP.
fn port(number: u32) -> (&'static str, u16) {
    let each = u32::from(u16::MAX - STANDING);
    let protocol = if number < each { "TCP" } else { "UDP" };
    (protocol, STANDING + u16::try_from(number % each).expect("less than all ports"))
}

fn discover(network: &Network) -> (String, Service) {
    let found = network.inside(Host::Lan1, || {
        let path = control_point::find(LAN1, NEWER, READY)?;
        let services = control_point::services((ROUTER_LAN, HTTP_PORT).into(), &path)?;
        let connection = services.into_iter().find(|service| service.name.contains(":WANIPConnection:"));
        connection.map(|service| (path, service)).ok_or_else(|| io::Error::other("no WANIPConnection"))
    });
    found.expect("a gateway is found")
}

/// Nanoseconds on a processor, of all threads.
fn cpu(pid: u32) -> io::Result<Duration> {
    let mut all = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        let first = text.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
        all += first.ok_or(io::ErrorKind::InvalidData)?;
    }
    Ok(Duration::from_nanos(all))
}

fn memory(pid: u32) -> io::Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let of = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    Ok(Memory { rss: of("Rss:"), private: of("Private_Dirty:") + of("Private_Clean:") })
}

/// Where miniupnpd's messages go when the machine has no log: without one each of them is tried on the console, which
/// costs more than what it tells of.
struct LogSink(PathBuf);

impl LogSink {
    fn start() -> Option<Self> {
        let path = PathBuf::from("/dev/log");
        if path.exists() {
            return None;
        }
        let socket = UnixDatagram::bind(&path).expect("root may log");
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while socket.recv(&mut buffer).is_ok() {}
        });
        Some(Self(path))
    }
}

impl Drop for LogSink {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
