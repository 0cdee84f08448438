//! The provider's side: a PCP server that is honest until it is told to lie, and others who speak in its name.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use engine::provider::{Provider, ProviderConfig};
use lab::netns::{EXTERNAL, Host, LAN1, Network, OTHER, PROVIDER, ROUTER_WAN};
use lab::packet::{Ipv4, Sum, udp_v4};
use serde_json::Value;
use socket2::Socket;
use wire::pcp::{Body, Request, Response, mapped};

use crate::common::{SECOND, say};
use crate::scene::{Scene, arguments};
use crate::udp::{forge, raw, spoof};
use crate::{Row, row};

const IGNORED: &str = "/ignored_upstream";

/// A datagram that goes to the router, from whoever it says.
struct Said {
    from: (Ipv4Addr, u16),
    octets: Vec<u8>,
}

/// By the server itself.
fn itself(octets: Vec<u8>) -> Said {
    Said { from: (PROVIDER, 5351), octets }
}

/// What is said to a request, of which the right answer is known, in the place of that.
type Lies = Box<dyn FnMut(&[u8], &[u8]) -> Vec<Said> + Send>;

struct State {
    began: Instant,
    server: Provider,
    lies: Option<Lies>,
    /// Requests that came.
    asked: usize,
    /// The last one that the server has said no to while it lied, or yes for no time; and who asked it.
    refused: Option<(SocketAddr, Vec<u8>)>,
    /// The port that the router asked from the last time.
    port: u16,
}

impl State {
    fn now(&self) -> engine::time::Instant {
        engine::time::Instant::from_millis(
            u64::try_from(self.began.elapsed().as_millis()).expect("not that long"),
        )
    }

    /// What is said to a request.
    fn answer(&mut self, from: SocketAddr, request: &[u8]) -> Vec<Said> {
        self.asked += 1;
        self.port = from.port();
        let now = self.now();
        let right = self.server.handle_datagram(now, from, request).unwrap_or_default();
        let Some(lies) = &mut self.lies else { return vec![itself(right)] };
        let said = lies(request, &right);
        let says_no = |octets: &[u8]| octets.len() >= 24 && (octets[3] != 0 || octets[4..8] == [0; 4]);
        let asks = request.len() >= 24 && request[4..8] != [0; 4];
        if asks && said.last().is_some_and(|said| says_no(&said.octets)) {
            self.refused = Some((from, request.to_vec()));
        }
        said
    }
}

/// The server, on a thread in the provider's namespace.
pub(crate) struct Upstream {
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    pub(crate) fn start(network: &Network) -> Self {
        let server = Provider::new(engine::time::Instant::from_millis(0), ProviderConfig::new(EXTERNAL));
        let state = State { began: Instant::now(), server, lies: None, asked: 0, refused: None, port: 0 };
        let state = Arc::new(Mutex::new(state));
        let stop = Arc::new(AtomicBool::new(false));
        let socket = network
            .inside(Host::Provider, || UdpSocket::bind((PROVIDER, 5351)))
            .expect("nobody else is there");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("not zero");
        let thread = network.begin(Host::Provider, {
            let (state, stop) = (state.clone(), stop.clone());
            move || serve(&socket, &raw(), &state, &stop)
        });
        Self { state, stop, thread: Some(thread) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mappings but that which tells the external address.
    pub(crate) fn mappings(&self) -> Vec<String> {
        let state = self.state();
        let all = state.server.mappings().filter(|one| one.internal.port() != 9);
        all.map(|one| format!("{} at the provider", one.external)).collect()
    }

    fn lies(&self, lies: impl FnMut(&[u8], &[u8]) -> Vec<Said> + Send + 'static) {
        self.state().lies = Some(Box::new(lies));
    }

    pub(crate) fn is_honest(&self) {
        self.state().lies = None;
    }

    /// What the server has said no to it does not have.
    fn is_true_to_its_word(&self) {
        let mut state = self.state();
        if let Some((from, request)) = state.refused.take() {
            let request = Request::parse(&request).expect("the server has read it");
            // A delete wants no port for itself (RFC 6887 §13.2), and calls nothing by a name.
            let delete = Request { lifetime: 0, options: Vec::new(), ..request };
            let now = state.now();
            let said = state.server.handle_datagram(now, from, &delete.to_bytes()).unwrap_or_default();
            assert_eq!(said.get(3), Some(&0), "the harness's own server takes it back");
        }
    }

    /// No answer to anything.
    pub(crate) fn falls_silent(&self) {
        self.lies(|_, _| Vec::new());
    }

    fn asked(&self) -> usize {
        self.state().asked
    }

    fn port(&self) -> u16 {
        self.state().port
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, raw: &Socket, state: &Mutex<State>, stop: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
        let SocketAddr::V4(to) = from else { continue };
        let said = state.lock().unwrap_or_else(PoisonError::into_inner).answer(from, &buffer[..len]);
        for Said { from, octets } in said.into_iter().filter(|said| !said.octets.is_empty()) {
            if from == (PROVIDER, 5351) {
                let _ = socket.send_to(&octets, to);
            } else {
                spoof(raw, from, (*to.ip(), to.port()), &octets);
            }
        }
    }
}

/// A refusal of what was granted, as somebody would forge it who has seen the request.
fn refusal(right: &[u8]) -> Vec<u8> {
    let mut lie = right.to_vec();
    lie[3] = 2; // NOT_AUTHORIZED
    lie[4..8].copy_from_slice(&1800_u32.to_be_bytes());
    lie
}

/// The right answer, changed before it goes out.
fn response(right: &[u8], change: impl FnOnce(&mut Response)) -> Vec<u8> {
    let Ok(mut response) = Response::parse(right) else { return right.to_vec() };
    change(&mut response);
    response.to_bytes()
}

/// Whether a request is the one that the row is about, and not a renewal of the router's own.
fn is_of(request: &[u8], port: u16) -> bool {
    matches!(Request::parse(request), Ok(Request { body: Body::Map(map), .. }) if map.external_port == port)
}

/// What the attacked application hears; its mapping is gone afterwards.
fn adds(scene: &Scene<'_>, port: u16) -> String {
    let came = scene.call(Host::Lan1, "AddPortMapping", &arguments(LAN1, port, &[]), 5 * SECOND).verdict();
    let stands = came == "200" && scene.mappings().iter().any(|mapping| mapping.contains(&port.to_string()));
    scene.upstream.is_honest();
    if came == "200" {
        scene.delete(Host::Lan1, port, 2 * SECOND);
    }
    if came == "200" && !stands { "200, **and nothing stands**".to_owned() } else { came }
}

/// Somebody lies first, then the server says the truth.
fn before(
    name: &'static str,
    sent: &'static str,
    port: u16,
    counter: &'static str,
    lie: impl Fn(&[u8], &[u8]) -> Vec<Said> + Send + Sync + Clone + 'static,
) -> Row {
    row(name, sent, "200", counter, move |scene| {
        let lie = lie.clone();
        let lies = move |request: &[u8], right: &[u8]| {
            let mut said = if is_of(request, port) { lie(request, right) } else { Vec::new() };
            said.push(itself(right.to_vec()));
            said
        };
        tried(scene, port, lies)
    })
}

/// The server itself lies, and goes on to.
fn instead(
    name: &'static str,
    sent: &'static str,
    answer: &'static str,
    port: u16,
    lie: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + Clone + 'static,
) -> Row {
    row(name, sent, answer, "", move |scene| {
        let lie = lie.clone();
        let lies = move |request: &[u8], right: &[u8]| {
            let lied = is_of(request, port) && request[4..8] != [0; 4];
            vec![itself(if lied { lie(right) } else { right.to_vec() })]
        };
        let came = tried(scene, port, lies);
        scene.upstream.is_true_to_its_word();
        came
    })
}

fn tried(
    scene: &Scene<'_>,
    port: u16,
    lies: impl FnMut(&[u8], &[u8]) -> Vec<Said> + Send + 'static,
) -> String {
    if !scene.is_ours() {
        return ASKS_NOBODY.to_owned();
    }
    scene.upstream.lies(lies);
    adds(scene, port)
}

/// miniupnpd, which has no provider to ask.
const ASKS_NOBODY: &str = "asks nobody";

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = spoofed();
    rows.extend(lied());
    rows.extend(others());
    rows
}

fn spoofed() -> Vec<Row> {
    let from_itself = |change: fn(&mut Vec<u8>)| {
        move |_: &[u8], right: &[u8]| {
            let mut lie = refusal(right);
            change(&mut lie);
            vec![itself(lie)]
        }
    };
    vec![
        before("an answer from another address", "a refusal by another subscriber", 4500, "", |_, right| {
            vec![Said { from: (OTHER, 5351), octets: refusal(right) }]
        }),
        before(
            "an answer from another port",
            "a refusal from port 5350 of the server",
            4501,
            "",
            |_, right| vec![Said { from: (PROVIDER, 5350), octets: refusal(right) }],
        ),
        before("another nonce", "a refusal", 4502, IGNORED, from_itself(|lie| lie[24] ^= 1)),
        before("another protocol", "a refusal", 4503, IGNORED, from_itself(|lie| lie[36] = 17)),
        before("another internal port", "a refusal", 4504, IGNORED, from_itself(|lie| lie[41] ^= 1)),
        before("another opcode", "a refusal of PEER", 4505, IGNORED, from_itself(|lie| lie[1] = 0x82)),
        before("no response", "a refusal without R", 4506, IGNORED, from_itself(|lie| lie[1] &= 0x7f)),
        before("an answer cut short", "23 octets", 4507, IGNORED, from_itself(|lie| lie.truncate(23))),
        before(
            "an answer that is no multiple of four",
            "61 octets",
            4508,
            IGNORED,
            from_itself(|lie| lie.push(0)),
        ),
        before(
            "an answer that is too long",
            "1104 octets",
            4509,
            IGNORED,
            from_itself(|lie| lie.resize(1104, 0)),
        ),
        before("another version", "version 3", 4510, IGNORED, from_itself(|lie| lie[0] = 3)),
        before(
            "a downgrade to NAT-PMP, after PCP has worked",
            "version 0, result 1",
            4511,
            IGNORED,
            |_, _| vec![itself(vec![0, 128, 0, 1, 0, 0, 0, 1])],
        ),
        before("a downgrade to PCP's version 1", "UNSUPP_VERSION, version 1", 4512, IGNORED, |_, right| {
            let mut lie = refusal(right);
            (lie[0], lie[3]) = (1, 1);
            vec![itself(lie)]
        }),
        before("the answer 20 times", "the right one", 4513, "", |_, right| {
            std::iter::repeat_with(|| itself(right.to_vec())).take(20).collect()
        }),
        before(
            "a soup of options",
            "a refusal for another nonce, 1100 octets of options",
            4514,
            IGNORED,
            from_itself(|lie| {
                lie[24] ^= 1;
                while lie.len() + 8 <= 1100 {
                    lie.extend([200, 0, 0, 4, 1, 2, 3, 4]);
                }
            }),
        ),
    ]
}

fn lied() -> Vec<Row> {
    let address = |address: Ipv4Addr| {
        move |right: &[u8]| {
            response(right, |response| {
                if let Body::Map(map) = &mut response.body {
                    map.external_addr = mapped(address);
                }
            })
        }
    };
    vec![
        instead("a grant for no time", "SUCCESS, lifetime 0", "fault 501", 4520, |right| {
            response(right, |said| said.lifetime = 0)
        }),
        instead(
            "loopback as the external address",
            "127.0.0.1",
            "fault 501",
            4521,
            address(Ipv4Addr::LOCALHOST),
        ),
        instead("nobody's external address", "0.0.0.0", "fault 501", 4522, address(Ipv4Addr::UNSPECIFIED)),
        instead(
            "a group as the external address",
            "224.0.0.1",
            "fault 501",
            4523,
            address(Ipv4Addr::new(224, 0, 0, 1)),
        ),
        instead(
            "everybody as the external address",
            "255.255.255.255",
            "fault 501",
            4524,
            address(Ipv4Addr::BROADCAST),
        ),
        instead("another port than was asked for", "SUCCESS for the next port", "fault 718", 4525, |right| {
            response(right, |said| {
                if let Body::Map(map) = &mut said.body {
                    map.external_port += 1;
                }
            })
        }),
        instead("no external port", "SUCCESS for port 0", "fault 501", 4526, |right| {
            response(right, |said| {
                if let Body::Map(map) = &mut said.body {
                    map.external_port = 0;
                }
            })
        }),
        instead("an unknown result", "result 255", "fault 501", 4527, |right| {
            response(right, |said| said.result = wire::pcp::ResultCode(255))
        }),
        instead("options of all kinds beside the grant", "1100 octets", "200", 4528, |right| {
            let mut soup = right.to_vec();
            while soup.len() + 8 <= 1100 {
                soup.extend([200, 0, 0, 4, 1, 2, 3, 4]);
            }
            soup
        }),
        row("a grant for 136 years", "SUCCESS, lifetime 4294967295", "200, a day at most", "", |scene| {
            if !scene.is_ours() {
                return ASKS_NOBODY.to_owned();
            }
            scene.upstream.lies(|request, right| {
                let long = is_of(request, 4529) && request[4..8] != [0; 4];
                vec![itself(if long {
                    response(right, |said| said.lifetime = u32::MAX)
                } else {
                    right.to_vec()
                })]
            });
            let came =
                scene.call(Host::Lan1, "AddPortMapping", &arguments(LAN1, 4529, &[]), 5 * SECOND).verdict();
            let said = lab::subject::ask(scene.network, "mappings").unwrap_or_default();
            let listed: Value = serde_json::from_str(&said).unwrap_or_default();
            let left = listed[0]["lifetime_left"].as_u64().unwrap_or(u64::MAX);
            scene.upstream.is_honest();
            scene.delete(Host::Lan1, 4529, 2 * SECOND);
            if left <= 86_400 { format!("{came}, a day at most") } else { format!("{came}, {left} s") }
        }),
        instead(
            "a refusal for 136 years",
            "CANNOT_PROVIDE_EXTERNAL, lifetime 4294967295",
            "fault 718",
            4530,
            |right| {
                response(right, |said| {
                    said.result = wire::pcp::ResultCode::CANNOT_PROVIDE_EXTERNAL;
                    said.lifetime = u32::MAX;
                })
            },
        ),
    ]
}

fn others() -> Vec<Row> {
    vec![
        row(
            "an announcement by a stranger",
            "ANNOUNCE, epoch 0, by another subscriber",
            "nothing is asked",
            IGNORED,
            |scene| {
                if !scene.is_ours() {
                    return ASKS_NOBODY.to_owned();
                }
                let announce = [&[2, 0x80, 0, 0][..], &[0; 20]].concat();
                let asked = scene.upstream.asked();
                scene.network.inside(Host::Other, || {
                    let socket = UdpSocket::bind((OTHER, 5351)).expect("it is free");
                    socket.send_to(&announce, ("224.0.0.1", 5350)).expect("there is a way");
                });
                std::thread::sleep(SECOND / 2); // what would be asked is asked at once, or within five seconds: this is the first tenth
                match scene.upstream.asked() - asked {
                    0 => "nothing is asked".to_owned(),
                    more => format!("{more} requests"),
                }
            },
        ),
        row(
            "an epoch that jumps with every answer",
            "0, 4294967295, 1, …",
            "200 each time; at most 40 requests for 10 mappings",
            "",
            |scene| {
                if !scene.is_ours() {
                    return ASKS_NOBODY.to_owned();
                }
                let mut nth = 0_u32;
                scene.upstream.lies(move |_, right| {
                    nth += 1;
                    let epoch = if nth.is_multiple_of(2) { nth } else { u32::MAX - nth };
                    vec![itself(response(right, |said| said.epoch = epoch))]
                });
                let asked = scene.upstream.asked();
                let came: Vec<String> = (0..10)
                    .map(|n| {
                        let came = scene
                            .call(Host::Lan1, "AddPortMapping", &arguments(LAN1, 4540 + n, &[]), 5 * SECOND)
                            .verdict();
                        scene.delete(Host::Lan1, 4540 + n, 2 * SECOND);
                        came
                    })
                    .collect();
                let asked = scene.upstream.asked() - asked;
                scene.upstream.is_honest();
                let all = came.iter().all(|came| came == "200");
                let words = if all { "200 each time".to_owned() } else { came.join(" ") };
                if asked <= 40 {
                    format!("{words}; at most 40 requests for 10 mappings")
                } else {
                    format!("{words}; {asked} requests")
                }
            },
        ),
        row(
            "ICMP that says nobody is there",
            "port unreachable by another subscriber, for a port that was not used",
            "200",
            "",
            |scene| {
                if !scene.is_ours() {
                    return ASKS_NOBODY.to_owned();
                }
                let port = scene.upstream.port() ^ 1;
                let quoted = udp_v4((ROUTER_WAN, port), (PROVIDER, 5351), &[0; 24]).to_bytes();
                let mut message = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &quoted].concat();
                let checksum = Sum::default().octets(&message).checksum();
                message[2..4].copy_from_slice(&checksum.to_be_bytes());
                scene.network.inside(Host::Other, || {
                    let socket = raw();
                    for _ in 0..20 {
                        forge(&socket, &Ipv4::new(OTHER, ROUTER_WAN, 1, message.clone()));
                    }
                });
                scene.upstream.is_honest();
                adds(scene, 4560)
            },
        ),
        row(
            "a flood of answers",
            "as many as fit in a second, none of them asked for",
            "200",
            IGNORED,
            |scene| {
                if !scene.is_ours() {
                    return ASKS_NOBODY.to_owned();
                }
                let port = scene.upstream.port();
                let flood = scene.network.begin(Host::Provider, move || {
                    let socket = raw();
                    let packet = udp_v4((PROVIDER, 5351), (ROUTER_WAN, port), &[2; 60]);
                    let began = Instant::now();
                    let mut sent = 0_u64;
                    while began.elapsed() < SECOND {
                        forge(&socket, &packet);
                        sent += 1;
                    }
                    sent
                });
                std::thread::sleep(SECOND / 5);
                let came = adds(scene, 4561);
                say(&format!("upstream flood: {} answers in a second", flood.join().expect("it sends")));
                came
            },
        ),
    ]
}
