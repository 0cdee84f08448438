//! The provider's PCP server as a bench needs it: it grants whatever it is asked for, at once or after a time, or never; it keeps
//! nothing, and counts.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use wire::pcp::{Body, MapData, Request, Response, ResultCode, SERVER_PORT, mapped};

use crate::netns::{EXTERNAL, Host, Network, PROVIDER};
use crate::pcp_load::Dice;

/// No lifetime is longer, in seconds.
const LIFETIME: u32 = 7200;
/// It looks so often whether it is to end.
const LOOK: Duration = Duration::from_millis(20);

/// How it answers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Manner {
    /// How long it takes; `None`: it says nothing.
    pub(super) after: Option<Duration>,
    /// Of a hundred datagrams so many are lost, on their way here and on their way back.
    pub(super) lost: u64,
}

impl Manner {
    pub(super) const AT_ONCE: Self = Self { after: Some(Duration::ZERO), lost: 0 };
    pub(super) const SILENT: Self = Self { after: None, lost: 0 };

    pub(super) fn after(after: Duration) -> Self {
        Self { after: Some(after), lost: 0 }
    }
}

/// See the module's description; it ends when it is dropped.
pub(super) struct Upstream {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    manner: Mutex<Manner>,
    datagrams: AtomicU64,
    ends: AtomicBool,
}

impl Upstream {
    /// Begins to serve at the provider's address.
    pub(super) fn start(network: &Network, manner: Manner) -> Self {
        let shared = Arc::new(Shared { manner: Mutex::new(manner), ..Shared::default() });
        let socket = network.inside(Host::Provider, || UdpSocket::bind((PROVIDER, SERVER_PORT)));
        let socket = socket.expect("nobody else serves PCP there");
        let of = Arc::clone(&shared);
        let serve = move || serve(&socket, &of).expect("a UDP socket can be served");
        Self { shared, thread: Some(network.begin(Host::Provider, serve)) }
    }

    /// From now on it answers like this.
    pub(super) fn set(&self, manner: Manner) {
        *self.shared.manner.lock().unwrap_or_else(PoisonError::into_inner) = manner;
    }

    /// Datagrams that it was sent, also those that count as lost.
    pub(super) fn datagrams(&self) -> u64 {
        self.shared.datagrams.load(Ordering::Relaxed)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, shared: &Shared) -> io::Result<()> {
    let began = Instant::now();
    let mut waiting: BinaryHeap<Reverse<(Instant, SocketAddr, Vec<u8>)>> = BinaryHeap::new();
    let mut dice = Dice::new(7);
    let mut buffer = [0; 1500];
    while !shared.ends.load(Ordering::Relaxed) {
        while let Some(Reverse((at, ..))) = waiting.peek() {
            if *at > Instant::now() {
                break;
            }
            if let Some(Reverse((_, to, answer))) = waiting.pop() {
                let _ = socket.send_to(&answer, to); // who has gone needs none
            }
        }
        let next =
            waiting.peek().map_or(LOOK, |Reverse((at, ..))| at.saturating_duration_since(Instant::now()));
        socket.set_read_timeout(Some(next.clamp(Duration::from_micros(50), LOOK)))?;
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        shared.datagrams.fetch_add(1, Ordering::Relaxed);
        let manner = *shared.manner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lost = || manner.lost > 0 && dice.roll(100) < manner.lost;
        let (Some(after), false) = (manner.after, lost() || lost()) else { continue };
        let Some(answer) = grant(&buffer[..length], began) else { continue };
        if after.is_zero() {
            let _ = socket.send_to(&answer, from);
        } else {
            waiting.push(Reverse((Instant::now() + after, from, answer)));
        }
    }
    Ok(())
}

/// What is wished for is granted.
fn grant(datagram: &[u8], began: Instant) -> Option<Vec<u8>> {
    let request = Request::parse(datagram).ok()?;
    let body = match request.body {
        Body::Map(map) => {
            let external_port = if map.external_port == 0 { map.internal_port } else { map.external_port };
            Body::Map(MapData { external_port, external_addr: mapped(EXTERNAL), ..map })
        }
        Body::Announce => Body::Announce,
        _ => return None,
    };
    let response = Response {
        result: ResultCode::SUCCESS,
        lifetime: request.lifetime.min(LIFETIME),
        epoch: u32::try_from(began.elapsed().as_secs()).unwrap_or(u32::MAX),
        body,
        options: request.options,
    };
    Some(response.to_bytes())
}
