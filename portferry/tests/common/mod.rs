//! Tests against a real kernel: a LAN host, a router and an Internet host, each a network namespace.
//!
//! A test runs twice. The outer run, as root, makes the namespaces and starts this program again inside the router's;
//! there, agents (this program once more) hold the sockets of the two hosts. Without root, or where namespaces can't be
//! made, every test says that it is skipped. The host's own namespace is never touched.

#![allow(dead_code)] // no test program uses all of it

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

pub(crate) const WAN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(crate) const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
pub(crate) const OTHER_REMOTE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 3);
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 2);
pub(crate) const OTHER_HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 3);
pub(crate) const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 2);
pub(crate) const OTHER_HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 3);
pub(crate) const REMOTE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 2);
pub(crate) const OTHER_REMOTE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 3);
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
const INSIDE: &str = "PFK_INSIDE";
const AGENT: &str = "PFK_AGENT";

/// Runs a program to its end; what it prints.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) struct World {
    prefix: String,
    pub(crate) lan: Agent,
    pub(crate) wan: Agent,
}

impl World {
    pub(crate) fn namespace(&self, which: &str) -> String {
        format!("{}-{which}", self.prefix)
    }

    /// Gives everybody IPv6 addresses, and routes through the router.
    pub(crate) fn with_ipv6(&self) {
        let (lan, wan) = (self.namespace("lan"), self.namespace("wan"));
        let ip = |namespace: Option<&String>, rest: &[&str]| {
            let at = namespace.map_or(Vec::new(), |namespace| vec!["-n", namespace.as_str()]);
            run("ip", &[&at[..], &["-6"], rest].concat());
        };
        // Neighbours are asked from link-local addresses; those that the kernel has made are being tested for a second or two.
        for (namespace, device, addr) in [
            (None, "wan0", "fe80::1/64"),
            (None, "lan0", "fe80::1/64"),
            (Some(&wan), "eth0", "fe80::2/64"),
            (Some(&lan), "eth0", "fe80::2/64"),
        ] {
            ip(namespace, &["addr", "flush", "dev", device, "scope", "link"]);
            ip(namespace, &["addr", "add", addr, "dev", device, "nodad"]);
        }
        for (namespace, device, addr) in [
            (None, "wan0", "2001:db8:51::1/64"),
            (None, "lan0", "2001:db8:77::1/64"),
            (Some(&wan), "eth0", "2001:db8:51::2/64"),
            (Some(&wan), "eth0", "2001:db8:51::3/64"),
            (Some(&lan), "eth0", "2001:db8:77::2/64"),
            (Some(&lan), "eth0", "2001:db8:77::3/64"),
        ] {
            ip(namespace, &["addr", "add", addr, "dev", device, "nodad"]);
        }
        ip(Some(&lan), &["route", "add", "default", "via", "2001:db8:77::1"]);
        ip(Some(&wan), &["route", "add", "2001:db8:77::/64", "via", "2001:db8:51::1"]);
        run("sysctl", &["-qw", "net.ipv6.conf.all.forwarding=1"]);
    }
}

/// Runs the test called `name`: its `body` in the router's namespace.
pub(crate) fn in_router(name: &str, body: impl AsyncFnOnce(&mut World)) {
    if let Ok(prefix) = env::var(INSIDE) {
        let agent = |which| Agent::start(&format!("{prefix}-{which}"));
        let mut world = World { lan: agent("lan"), wan: agent("wan"), prefix: prefix.clone() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(body(&mut world));
    }
    let Some(namespaces) = Namespaces::make() else { return };
    let this = env::current_exe().unwrap();
    let status = Command::new("ip")
        .args(["netns", "exec", &format!("{}-router", namespaces.0)])
        .arg(this)
        .args([name, "--exact", "--nocapture"])
        .env(INSIDE, &namespaces.0)
        .status()
        .unwrap();
    assert!(status.success(), "failed inside the router, see above");
}

/// Three namespaces, gone when this is.
struct Namespaces(String);

impl Namespaces {
    /// `None`, with a line that says so, where we may not.
    fn make() -> Option<Self> {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let this = Self(format!("pfk-{}-{number}", std::process::id()));
        let made = Command::new("ip").args(["netns", "add", &this.name("router")]).output();
        if !made.is_ok_and(|output| output.status.success()) {
            // Past libtest's capturing, which keeps what passing tests print to itself.
            let _ = writeln!(std::io::stderr(), "SKIPPED: network namespaces need root and iproute2");
            return None;
        }
        run("ip", &["netns", "add", &this.name("lan")]);
        run("ip", &["netns", "add", &this.name("wan")]);
        for which in ["lan", "wan"] {
            let near = format!("{which}0");
            let far = this.name(which);
            run(
                "ip",
                &[
                    "-n",
                    &this.name("router"),
                    "link",
                    "add",
                    &near,
                    "type",
                    "veth",
                    "peer",
                    "eth0",
                    "netns",
                    &far,
                ],
            );
            run("ip", &["-n", &this.name("router"), "link", "set", &near, "up"]);
            run("ip", &["-n", &far, "link", "set", "eth0", "up"]);
        }
        for which in ["lan", "router", "wan"] {
            run("ip", &["-n", &this.name(which), "link", "set", "lo", "up"]);
        }
        let address = |which, interface, addr: &str| {
            run("ip", &["-n", &this.name(which), "addr", "add", addr, "dev", interface]);
        };
        address("router", "wan0", "198.51.100.1/24");
        address("router", "lan0", "192.168.77.1/24");
        address("wan", "eth0", "198.51.100.2/24");
        address("wan", "eth0", "198.51.100.3/24");
        address("lan", "eth0", "192.168.77.2/24");
        address("lan", "eth0", "192.168.77.3/24");
        let route = |which, to, via| run("ip", &["-n", &this.name(which), "route", "add", to, "via", via]);
        route("lan", "default", "192.168.77.1");
        route("wan", "192.168.77.0/24", "198.51.100.1");
        route("router", "default", "198.51.100.2");
        run("ip", &["netns", "exec", &this.name("router"), "sysctl", "-qw", "net.ipv4.ip_forward=1"]);
        Some(this)
    }

    fn name(&self, which: &str) -> String {
        format!("{}-{which}", self.0)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for which in ["lan", "router", "wan"] {
            let _ =
                Command::new("ip").args(["netns", "del", &self.name(which)]).stderr(Stdio::null()).status();
        }
    }
}

/// How long we wait for what shall come, and for what shall not.
const PATIENCE: Duration = Duration::from_millis(500);

/// The sockets of one host, held by a process in its namespace. One line asks, one line answers.
pub(crate) struct Agent {
    process: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Agent {
    fn start(namespace: &str) -> Self {
        let mut process = Command::new("ip")
            .args(["netns", "exec", namespace])
            .arg(env::current_exe().unwrap())
            .args(["common::agent", "--exact", "--ignored", "--nocapture"])
            .env(AGENT, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let questions = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Self { process, questions, answers }
    }

    fn ask(&mut self, question: &str) -> Result<String, String> {
        writeln!(self.questions, "{question}").unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "the agent is gone");
            let line = line.trim_end_matches('\n');
            if let Some((_, answer)) = line.split_once("@ok ") {
                return Ok(answer.to_owned());
            }
            if let Some((_, answer)) = line.split_once("@err ") {
                return Err(answer.to_owned());
            }
        }
    }

    fn socket(&mut self, question: &str) -> Result<usize, String> {
        self.ask(question).map(|id| id.parse().unwrap())
    }
    pub(crate) fn udp(&mut self, addr: impl Into<IpAddr>, port: u16) -> usize {
        self.socket(&format!("udp {}", SocketAddr::new(addr.into(), port))).unwrap()
    }
    /// A datagram socket of a protocol like UDP, if the kernel has it.
    pub(crate) fn datagrams(&mut self, addr: Ipv4Addr, port: u16, protocol: u8) -> Result<usize, String> {
        self.socket(&format!("datagrams {addr}:{port} {protocol}"))
    }
    /// A socket for a protocol without ports; what it receives starts with the IP header.
    pub(crate) fn raw(&mut self, addr: Ipv4Addr, protocol: u8) -> usize {
        self.socket(&format!("raw {addr}:0 {protocol}")).unwrap()
    }
    pub(crate) fn listen(&mut self, addr: impl Into<IpAddr>, port: u16) -> usize {
        self.socket(&format!("listen {}", SocketAddr::new(addr.into(), port))).unwrap()
    }
    pub(crate) fn connect(&mut self, addr: impl Into<IpAddr>, port: u16) -> Result<usize, String> {
        match addr.into() {
            IpAddr::V4(addr) => self.connect_from(Ipv4Addr::UNSPECIFIED, 0, addr, port),
            IpAddr::V6(addr) => self.connect_from(Ipv6Addr::UNSPECIFIED, 0, addr, port),
        }
    }
    pub(crate) fn connect_from(
        &mut self,
        from: impl Into<IpAddr>,
        from_port: u16,
        to: impl Into<IpAddr>,
        port: u16,
    ) -> Result<usize, String> {
        let (from, to) = (SocketAddr::new(from.into(), from_port), SocketAddr::new(to.into(), port));
        self.socket(&format!("connect {from} {to}"))
    }
    pub(crate) fn accept(&mut self, listener: usize) -> Option<(usize, SocketAddr)> {
        let answer = self.ask(&format!("accept {listener}")).ok()?;
        let (id, peer) = answer.split_once(' ').unwrap();
        Some((id.parse().unwrap(), peer.parse().unwrap()))
    }
    pub(crate) fn send(&mut self, stream: usize, text: &str) {
        let _ = self.ask(&format!("send {stream} {text}"));
    }
    /// “(nothing)” if nothing comes in time, “(end)” or an error's name if the connection is over.
    pub(crate) fn recv(&mut self, stream: usize) -> String {
        self.ask(&format!("recv {stream}")).unwrap_or_else(|e| e)
    }
    pub(crate) fn send_to(&mut self, socket: usize, addr: impl Into<IpAddr>, port: u16, text: &str) {
        let _ = self.ask(&format!("sendto {socket} {} {text}", SocketAddr::new(addr.into(), port)));
    }
    pub(crate) fn recv_from(&mut self, socket: usize) -> Option<(String, SocketAddr)> {
        let answer = self.ask(&format!("recvfrom {socket}")).ok()?;
        let (from, text) = answer.split_once(' ').unwrap();
        Some((text.to_owned(), from.parse().unwrap()))
    }
    /// Whether an ICMPv6 echo request is answered.
    pub(crate) fn ping(&mut self, addr: Ipv6Addr) -> bool {
        self.ask(&format!("ping {}", SocketAddr::from((addr, 0)))).is_ok()
    }
    /// What has come already; it does not wait longer than packets take.
    pub(crate) fn recv_from_now(&mut self, socket: usize) -> Option<(String, SocketAddr)> {
        self.ask(&format!("patience {socket} 20")).unwrap();
        let received = self.recv_from(socket);
        self.ask(&format!("patience {socket} {}", PATIENCE.as_millis())).unwrap();
        received
    }
    pub(crate) fn close(&mut self, socket: usize) {
        self.ask(&format!("close {socket}")).unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

enum Held {
    Udp(UdpSocket),
    Listener(TcpListener),
    Stream(TcpStream),
}

/// Not a test, but the process behind [`Agent`].
#[test]
#[ignore = "started by the other tests"]
fn agent() {
    if env::var_os(AGENT).is_none() {
        return;
    }
    let mut held = BTreeMap::new();
    let mut next = 0;
    println!();
    for line in std::io::stdin().lines() {
        let answer = match answer(&line.unwrap(), &mut held, &mut next) {
            Ok(answer) => format!("@ok {answer}"),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                "@err (nothing)".to_owned()
            }
            Err(e) => format!("@err {:?}", e.kind()),
        };
        println!("{answer}");
    }
}

fn answer(line: &str, held: &mut BTreeMap<usize, Held>, next: &mut usize) -> std::io::Result<String> {
    let (verb, rest) = line.split_once(' ').unwrap();
    let (first, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let mut keep = |socket, held: &mut BTreeMap<usize, Held>| {
        *next += 1;
        held.insert(*next, socket);
        next.to_string()
    };
    match verb {
        "udp" => {
            let socket = UdpSocket::bind(first)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            return Ok(keep(Held::Udp(socket), held));
        }
        "raw" | "datagrams" => {
            let kind = if verb == "raw" { socket2::Type::RAW } else { socket2::Type::DGRAM };
            let protocol = socket2::Protocol::from(rest.parse::<i32>().unwrap());
            let socket = socket2::Socket::new(socket2::Domain::IPV4, kind, Some(protocol))?;
            socket.bind(&first.parse::<SocketAddr>().unwrap().into())?;
            socket.set_read_timeout(Some(PATIENCE))?;
            return Ok(keep(Held::Udp(socket.into()), held));
        }
        "ping" => {
            let socket = socket2::Socket::new(
                socket2::Domain::IPV6,
                socket2::Type::RAW,
                Some(socket2::Protocol::ICMPV6),
            )?;
            socket.connect(&first.parse::<SocketAddr>().unwrap().into())?;
            let socket = UdpSocket::from(socket);
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send(&[128, 0, 0, 0, 0, 7, 0, 1])?; // the kernel makes the checksum
            let mut octets = [0; 1500];
            while socket.recv(&mut octets)? == 0 || octets[0] != 129 {}
            return Ok(String::new());
        }
        "listen" => {
            let socket = TcpListener::bind(first)?;
            socket.set_nonblocking(true)?;
            return Ok(keep(Held::Listener(socket), held));
        }
        "connect" => {
            let from = first.parse::<SocketAddr>().unwrap();
            let socket =
                socket2::Socket::new(socket2::Domain::for_address(from), socket2::Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&from.into())?;
            socket.connect_timeout(&rest.parse::<SocketAddr>().unwrap().into(), PATIENCE)?;
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(PATIENCE))?;
            return Ok(keep(Held::Stream(stream), held));
        }
        _ => {}
    }
    let id = first.parse().unwrap();
    if verb == "close" {
        held.remove(&id);
        return Ok(String::new());
    }
    match (verb, held.get_mut(&id).unwrap()) {
        ("accept", Held::Listener(listener)) => {
            let until = Instant::now() + PATIENCE;
            let (stream, peer) = loop {
                match listener.accept() {
                    Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < until => {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    other => break other?,
                }
            };
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(format!("{} {peer}", keep(Held::Stream(stream), held)))
        }
        ("send", Held::Stream(stream)) => stream.write_all(rest.as_bytes()).map(|()| String::new()),
        ("recv", Held::Stream(stream)) => {
            let mut octets = [0; 1500];
            let len = stream.read(&mut octets)?;
            Ok(if len == 0 {
                "(end)".to_owned()
            } else {
                String::from_utf8_lossy(&octets[..len]).into_owned()
            })
        }
        ("patience", Held::Udp(socket)) => {
            let patience = Duration::from_millis(rest.parse().unwrap());
            socket.set_read_timeout(Some(patience)).map(|()| String::new())
        }
        ("sendto", Held::Udp(socket)) => {
            let (to, text) = rest.split_once(' ').unwrap();
            socket.send_to(text.as_bytes(), to).map(|_| String::new())
        }
        ("recvfrom", Held::Udp(socket)) => {
            let mut octets = [0; 1500];
            let (len, from) = socket.recv_from(&mut octets)?;
            // An answer is one line, whatever a raw packet's header has in it.
            Ok(format!("{from} {}", String::from_utf8_lossy(&octets[..len]).replace('\n', " ")))
        }
        _ => panic!("what is {line:?}?"),
    }
}
