//! A host on the LAN that asks for all there is, in all protocols, well and badly; one thread for each thing it does.
//!
//! It is told what to do by lines on its standard input (`play`, `report`, `finish`) and says lines of [`super::tally`].

use std::io::{self, BufRead as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::tally::Tally;
use super::{bad, events, pcp, upnp};
use crate::control_point::{self, Called, NEWER, Service, search};
use crate::http::Client;
use crate::netns::{ROUTER_LAN, ROUTER_LAN_V6};
use crate::pcp_load::Dice;
use crate::subject::HTTP_PORT;

/// Until it has to be found on the LAN, with an external address.
const FOUND_WITHIN: Duration = Duration::from_secs(30);

/// What all threads of a player know.
pub(super) struct Player {
    /// Its own address.
    pub(super) host: Ipv4Addr,
    /// Its other one.
    pub(super) host_v6: Ipv6Addr,
    /// No lease that it asks for is longer, in seconds, but for those without an end.
    pub(super) lease: u32,
    /// WANIPConnection:2.
    pub(super) connection: Service,
    /// WANIPv6FirewallControl:1.
    pub(super) firewall: Service,
    pub(super) tally: Tally,
    stop: AtomicBool,
    seed: u64,
}

impl Player {
    pub(super) fn plays(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Its own dice for each thread.
    pub(super) fn dice(&self, thread: u64) -> Dice {
        Dice::new(self.seed * 64 + thread + 1)
    }

    /// A pause of half to one and a half times so many milliseconds; shorter when the play ends.
    pub(super) fn pause(&self, dice: &mut Dice, millis: u64) {
        let until = Instant::now() + Duration::from_millis(millis / 2 + dice.roll(millis.max(1)));
        while self.plays() && Instant::now() < until {
            thread::sleep(Duration::from_millis(50).min(until.saturating_duration_since(Instant::now())));
        }
    }

    /// The gateway's HTTP.
    pub(super) fn gateway() -> SocketAddr {
        (ROUTER_LAN, HTTP_PORT).into()
    }

    /// The same over IPv6.
    pub(super) fn gateway_v6() -> SocketAddr {
        (ROUTER_LAN_V6, HTTP_PORT).into()
    }

    /// A good call. It is counted by its answer; no answer at all is trouble, and so is a refusal that is not among `may`.
    pub(super) fn call(
        &self,
        client: &mut Client,
        service: &Service,
        (action, arguments): (&str, &[(&str, &str)]),
        keep: bool,
        may: &[u16],
    ) -> Option<Called> {
        let since = super::tally::now();
        let kind = format!("UPnP {action}");
        let (head, body) = service.request(action, arguments);
        let called = match client.ask(&head, &body, keep) {
            Ok(answer) => match control_point::called(action, &answer) {
                Some(called) => called,
                None => {
                    self.tally.wrong(&kind, since, "no SOAP");
                    return None;
                }
            },
            Err(error) => {
                self.tally.silence(&kind, since, &error.to_string());
                return None;
            }
        };
        self.tally.count(&kind, &called.as_ref().map_or_else(ToString::to_string, |_| "done".to_owned()));
        if let Err(code) = called
            && !may.contains(&code)
        {
            self.tally.wrong(&kind, since, &format!("{code} for {arguments:?}"));
        }
        Some(called)
    }
}

/// Plays on `host` until it is told to finish, or its standard input ends.
///
/// # Errors
/// The gateway is not found.
pub fn play(host: Ipv4Addr, host_v6: Ipv6Addr, lease: u32) -> io::Result<()> {
    let seed = u64::from(host.octets()[3]);
    let services =
        control_point::services(Player::gateway(), &control_point::find(host, NEWER, FOUND_WITHIN)?)?;
    let service = |name: &str| {
        let found = services.iter().find(|service| service.name.contains(name)).cloned();
        found.ok_or_else(|| io::Error::other(format!("the description has no {name}")))
    };
    let player = Arc::new(Player {
        host,
        host_v6,
        lease,
        connection: service(":WANIPConnection:")?,
        firewall: service(":WANIPv6FirewallControl:")?,
        tally: Tally::default(),
        stop: AtomicBool::new(false),
        seed,
    });
    await_address(&player)?;
    println!("ready");
    let mut threads = Vec::new();
    for line in io::stdin().lock().lines() {
        match line?.as_str() {
            "play" => threads = start(&player),
            "report" => player.tally.report(),
            "finish" => break,
            other => return Err(io::Error::other(format!("what does `{other}` mean?"))),
        }
    }
    player.stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().map_err(|_| io::Error::other("a thread has panicked"))?;
    }
    player.tally.report();
    println!("done");
    Ok(())
}

fn start(player: &Arc<Player>) -> Vec<thread::JoinHandle<()>> {
    let roles: [fn(&Player); 11] = [
        |player| upnp::control_point(player, 0),
        |player| upnp::control_point(player, 1),
        upnp::pinholes,
        pcp::client,
        pcp::nat_pmp_client,
        searches,
        events::subscriber,
        bad::requests,
        bad::datagrams,
        bad::half_open,
        bad::idle,
    ];
    let of = |role: fn(&Player)| {
        let player = Arc::clone(player);
        thread::spawn(move || role(&player))
    };
    roles.into_iter().map(of).collect()
}

fn await_address(player: &Player) -> io::Result<()> {
    let deadline = Instant::now() + FOUND_WITHIN;
    let mut client = Client::new(Player::gateway());
    while Instant::now() < deadline {
        let call = ("GetExternalIPAddress", &[][..]);
        if let Some(Ok(values)) = player.call(&mut client, &player.connection, call, false, &[501])
            && values.iter().any(|(_, value)| value.parse::<Ipv4Addr>().is_ok())
        {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(200));
    }
    Err(io::Error::other("there is no external address"))
}

/// M-SEARCH, for what there is and for what there is not.
fn searches(player: &Player) {
    const TARGETS: [(&str, bool); 7] = [
        ("ssdp:all", true),
        ("upnp:rootdevice", true),
        ("urn:schemas-upnp-org:device:InternetGatewayDevice:1", true),
        ("urn:schemas-upnp-org:device:InternetGatewayDevice:2", true),
        ("urn:schemas-upnp-org:service:WANIPConnection:1", true),
        ("urn:schemas-upnp-org:service:WANIPConnection:2", true),
        ("urn:schemas-upnp-org:device:MediaServer:1", false),
    ];
    let mut dice = player.dice(5);
    while player.plays() {
        let (target, is_there) = TARGETS[usize::try_from(dice.roll(7)).unwrap_or(0)];
        let since = super::tally::now();
        // Datagrams get lost, so whoever searches does it twice or thrice (UPnP Device Architecture §1.3.2).
        let heard = (0..3).find_map(|_| {
            let wait = Duration::from_millis(if is_there { 2500 } else { 500 });
            search(player.host, target, wait).ok().flatten()
        });
        match (heard, is_there) {
            (Some(_), true) => player.tally.count("SSDP M-SEARCH", "answered"),
            (None, false) => player.tally.count("SSDP M-SEARCH for what is not there", "nothing"),
            (None, true) => player.tally.silence("SSDP M-SEARCH", since, target),
            (Some(location), false) => player.tally.wrong("SSDP M-SEARCH", since, &location),
        }
        player.pause(&mut dice, 1500);
    }
}
