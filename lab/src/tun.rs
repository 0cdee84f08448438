//! TUN devices, and the loop that carries packets between one and a data plane. The device is made before, by `ip tuntap add`
//! (see [`crate::netns`]), with its routes, so both outlive the program; a packet for either of its sides comes by the same
//! device, and goes back to it.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{self, Duration};

use engine::time::Instant;
use socket2::{Domain, Protocol, Socket, Type};
use tun_rs::{DeviceBuilder, SyncDevice};
use wire::pcp::SERVER_PORT;

use crate::b4::B4;
use crate::carrier::{Carrier, DataPlane};
use crate::nat::Taken;
use crate::packet::Refused;

/// Longer than the MTU of any device.
const PACKET: usize = 65_536;
/// Packets that are read and not worked on yet.
const BACKLOG: usize = 256;
/// When nothing else says how long to wait.
const LONG: Duration = Duration::from_secs(3600);

/// How often packets were refused, and why; says so at the first, the second, the fourth, the eighth …
#[derive(Debug, Default)]
struct Refusals(BTreeMap<Refused, u64>);

impl Refusals {
    fn count(&mut self, reason: Refused) {
        let count = self.0.entry(reason).or_default();
        *count += 1;
        if count.is_power_of_two() {
            eprintln!("refused: {reason}, {count} so far");
        }
    }
}

fn open(name: &str) -> io::Result<SyncDevice> {
    DeviceBuilder::new().name(name).build_sync()
}

/// Writes a packet; the kernel may find that it cannot be sent, which is no reason to stop.
fn write(device: &SyncDevice, packet: &[u8]) {
    if let Err(error) = device.send(packet) {
        eprintln!("{} octets not sent: {error}", packet.len());
    }
}

/// Carries packets through a softwire; ends only with an error.
///
/// # Errors
///
/// When the device cannot be opened or read.
pub fn run_b4(name: &str, b4: B4) -> io::Result<()> {
    let device = open(name)?;
    let (mut packet, mut refusals) = (vec![0; PACKET], Refusals::default());
    println!("ready");
    loop {
        let len = device.recv(&mut packet)?;
        match b4.handle_packet(&packet[..len]) {
            Ok(packet) => write(&device, &packet),
            Err(reason) => refusals.count(reason),
        }
    }
}

/// An interface on which subscribers are, and the address that they know the PCP server by.
#[derive(Clone, Debug)]
pub struct Link {
    /// Its name.
    pub interface: String,
    /// The server's address; it need not be one of the machine's if `net.ipv6.ip_nonlocal_bind` is on.
    pub server: Ipv6Addr,
}

impl Link {
    fn open(&self) -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
        socket.bind_device(Some(self.interface.as_bytes()))?;
        socket.bind(&SocketAddr::new(self.server.into(), SERVER_PORT).into())?;
        Ok(socket.into())
    }
}

/// Carries packets through a carrier's translator and serves its hosts; ends only with an error. Announcements go to the
/// groups of `link`, too.
///
/// # Errors
///
/// When the device or a socket on the link cannot be opened, when the device cannot be read, or when there are contradicting
/// bindings.
pub fn run<P: DataPlane>(
    name: &str,
    link: Option<Link>,
    make: impl FnOnce(Instant) -> Result<Carrier<P>, Taken>,
) -> io::Result<()> {
    let device = Arc::new(open(name)?);
    let packets = reading(Arc::clone(&device));
    let link = link.map(|link| link.open()).transpose()?;
    let began = time::Instant::now();
    let now = || Instant::from_millis(began.elapsed().as_millis().try_into().expect("not that many years"));
    let made = make(now()).map_err(|Taken| io::Error::other("two bindings contradict each other"));
    let (mut carrier, mut refusals) = (made?, Refusals::default());
    println!("ready");
    loop {
        while let Some(words) = carrier.poll_words() {
            eprintln!("{words}");
        }
        while let Some(packet) = carrier.poll_packet() {
            write(&device, &packet);
        }
        while let Some((group, announcement)) = carrier.poll_announcement() {
            let sent = link.as_ref().map_or(Ok(0), |link| link.send_to(&announcement, group));
            if let Err(error) = sent {
                eprintln!("to {group}: {error}");
            }
        }
        let wait = carrier.next_timeout().map_or(LONG, |at| at.since(now()));
        match packets.recv_timeout(wait) {
            Ok(packet) => {
                if let Err(reason) = carrier.handle_packet(now(), &packet?) {
                    refusals.count(reason);
                }
            }
            Err(RecvTimeoutError::Timeout) => carrier.handle_timeout(now()),
            Err(RecvTimeoutError::Disconnected) => return Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// A thread that reads: there is no reading with a deadline that needs no unsafe code. It ends with an error, or when
/// nobody listens.
fn reading(device: Arc<SyncDevice>) -> Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::sync_channel(BACKLOG);
    thread::spawn(move || {
        let mut packet = vec![0; PACKET];
        loop {
            let read = device.recv(&mut packet).map(|len| packet[..len].to_vec());
            let failed = read.is_err();
            if sender.send(read).is_err() || failed {
                return;
            }
        }
    });
    receiver
}
