//! A seeded simulation of a home that is under attack: applications that ask by UPnP, PCP and NAT-PMP for mappings and pinholes, one host of
//! the LAN that means ill, and a provider's server that may; in virtual time.
//!
//! What holds whatever they do is looked at after every turn: nothing panics, nothing grows beyond its bound, nobody is told of success
//! where there is none, what a host has is changed by its own requests alone, whoever waits is answered in time, nothing is mapped beyond
//! policy. As long as the server is honest, what an application was told stands to the letter, whatever the host beside it does; and
//! what is told of a pinhole stands whatever the server does. In the end everybody is served as ever, and when all leases are over
//! nothing is left.
//!
//! The same seed is the same run: nothing here reads a clock, a thread or an address.

mod clients;
mod intruder;
mod laws;
mod pinholes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::panic::{AssertUnwindSafe, catch_unwind};

use engine::entropy::SeededEntropy;
use engine::gateway::{NatMode, RequestId};
use engine::policy::{ByDefault, Policy};
use engine::time::{Duration, Instant};

use crate::sim::{Server, Setup, World};
use crate::simulation::{Broken, Dice, Failure, Tally, Trace, broken, words_of};
use clients::{Asked, Promise, Who};
use pinholes::Pinholes;

/// Hosts that ask for what they need.
const HOSTS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(192, 168, 1, 10), Ipv4Addr::new(192, 168, 1, 11), Ipv4Addr::new(192, 168, 1, 12)];
/// Both addresses of the one that means ill.
const INTRUDER: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 1, 66), Ipv4Addr::new(192, 168, 1, 67)];
/// Mappings of a host, and in all: enough for everybody.
const PER_HOST: usize = 10;
const IN_ALL: usize = 5 * PER_HOST;
/// Things that happen before it is calm.
const STEPS: u32 = 60;
/// The longest lifetime that the provider grants, in seconds.
const LONGEST: u32 = 600;
/// By then a gateway that has believed a lie has found out, and whoever was refused may ask again.
const RECOVERED: Duration = Duration::from_secs(2400);
/// Every lease that has an end is over by then.
const OVER: Duration = Duration::from_secs(3600 + 600);

/// What kind of server there is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mood {
    /// It serves, and nothing is lost on the way.
    Honest,
    /// It is honest; it restarts, is silent for moments, and its link loses; and the gateway is killed.
    Troubled,
    /// It lies, or somebody on the way does.
    Hostile,
}

/// What the administrator knows of the host that means ill. Of every five seeds one has each of the first two.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Standing {
    /// There are rules against it.
    Denied,
    /// `policy.default = "ask"`, rules for all others, and nobody has said anything of this one.
    Unknown,
    /// It may have what all others may.
    Allowed,
}

impl Standing {
    fn of(seed: u64) -> Self {
        match seed % 5 {
            0 => Self::Denied,
            1 => Self::Unknown,
            _ => Self::Allowed,
        }
    }

    fn policy(self) -> Policy {
        let usual = Policy { mappings_per_host: PER_HOST, mappings: IN_ALL, ..Policy::default() };
        let of = |rules: Vec<String>| rules.iter().map(|rule| rule.parse().expect("it is one")).collect();
        let all = |verb: &str, host: IpAddr| format!("{verb} 1024-65535 {host} 1024-65535");
        match self {
            Self::Denied => {
                let hosts = INTRUDER.into_iter().map(IpAddr::V4).chain([IpAddr::V6(pinholes::INTRUDER)]);
                Policy { rules: of(hosts.map(|host| all("deny", host)).collect()), ..usual }
            }
            Self::Unknown => {
                let hosts =
                    HOSTS.into_iter().map(IpAddr::V4).chain(pinholes::HOSTS.into_iter().map(IpAddr::V6));
                let rules = of(hosts.map(|host| all("allow", host)).collect());
                Policy { rules, default: ByDefault::Ask, ..usual }
            }
            Self::Allowed => usual,
        }
    }
}

struct Siege {
    world: World,
    dice: Dice,
    mood: Mood,
    nat: NatMode,
    /// One host means ill.
    intruder: bool,
    standing: Standing,
    ipv6: bool,
    promises: BTreeMap<Who, Promise>,
    /// Control requests that are not answered.
    asked: BTreeMap<RequestId, Asked>,
    /// Whoever has asked in PCP or NAT-PMP for a change, and until when each may be on its way.
    changing: BTreeMap<Who, Vec<Instant>>,
    pinholes: Pinholes,
    /// Nobody may ask in the name of these any more: they were answered nothing.
    silenced: BTreeSet<IpAddr>,
    silent_until: Option<Instant>,
    calm: bool,
    /// So many notices have been looked at.
    noticed: usize,
    /// The last port that was asked for to see whether somebody is served.
    fresh: u16,
    tally: Tally,
}

/// Runs one seed to its end.
///
/// # Errors
/// What did not hold first; a panic of the gateway counts.
pub fn run(seed: u64) -> Result<Tally, Box<Failure>> {
    run_with_trace(seed).0
}

/// As [`run`], with everything that happened.
pub fn run_with_trace(seed: u64) -> (Result<Tally, Box<Failure>>, Trace) {
    let mut siege = Siege::new(seed);
    let outcome = catch_unwind(AssertUnwindSafe(|| siege.run()));
    let what = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(Broken(what))) => Some(what),
        Err(panic) => Some(format!("a panic: {}", words_of(&*panic))),
    };
    let trace = siege.world.trace().to_vec();
    let result = match what {
        None => Ok(siege.tally),
        Some(what) => Err(Box::new(Failure { test: "siege", seed, what, trace: trace.clone() })),
    };
    (result, trace)
}

impl Siege {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(SeededEntropy::new(seed ^ 0x51e6e));
        let nat = if seed % 2 == 1 { NatMode::Own } else { NatMode::None };
        let mood = dice.pick(&[Mood::Honest, Mood::Honest, Mood::Troubled, Mood::Hostile, Mood::Hostile]);
        let (intruder, ipv6) = (mood == Mood::Honest || !dice.one_in(3), dice.one_in(2));
        let mut setup = Setup { seed, ipv6: (ipv6, dice.one_in(2)), ..Setup::default() };
        setup.config.nat = nat;
        let standing = Standing::of(seed);
        setup.config.policy = standing.policy();
        setup.provider.third_party = nat == NatMode::None;
        setup.provider.longest = LONGEST;
        setup.provider.shortest = 30;
        setup.provider.quota = 1000;
        setup.provider.peer = mood == Mood::Honest;
        if mood == Mood::Troubled {
            let (loss, jitter, doubled) = dice.pick(&[(0.0, 0, 0.0), (0.1, 30, 0.05), (0.2, 1500, 0.1)]);
            (setup.link.loss, setup.link.doubled) = (loss, doubled);
            setup.link.jitter = Duration::from_millis(jitter);
        }
        let mut world = World::new(setup);
        world.note(format!("* {mood:?} {nat:?} intruder={intruder} ({standing:?}) ipv6={ipv6}"));
        if mood == Mood::Hostile {
            world.tamper(dice.pick(&[2, 8, 16]));
        }
        Self {
            world,
            dice,
            mood,
            nat,
            intruder,
            standing,
            ipv6,
            promises: BTreeMap::new(),
            asked: BTreeMap::new(),
            changing: BTreeMap::new(),
            pinholes: Pinholes::default(),
            silenced: BTreeSet::new(),
            silent_until: None,
            calm: false,
            noticed: 0,
            fresh: 10_000,
            tally: Tally::default(),
        }
    }

    fn run(&mut self) -> Result<(), Broken> {
        self.tally.count(match self.mood {
            Mood::Honest => "honest servers",
            Mood::Troubled => "troubled servers",
            Mood::Hostile => "hostile servers",
        });
        match self.standing {
            Standing::Denied if self.intruder => self.tally.count("intruders denied by rules"),
            Standing::Unknown if self.intruder => self.tally.count("intruders that wait for the owner"),
            _ => {}
        }
        self.pass(Duration::from_secs(2))?;
        for _ in 0..STEPS {
            self.step()?;
        }
        self.calm_down()?;
        self.end()
    }

    /// One thing happens, and some time passes.
    fn step(&mut self) -> Result<(), Broken> {
        match self.dice.roll(20) {
            0..8 => self.somebody_asks()?,
            8..10 if self.ipv6 => self.somebody_lets_in()?,
            10..17 if self.intruder => self.intruder_acts()?,
            17 if self.mood == Mood::Honest => self.is_served_at_once()?,
            18 | 19 => self.the_network_acts()?,
            _ => {}
        }
        self.look()?;
        let ms = self.dice.pick(&[0, 0, 5, 20, 200, 1000, 5000, 30_000, 200_000]);
        self.pass(Duration::from_millis(ms))
    }

    /// Lets `span` pass, and looks at everything after every turn.
    fn pass(&mut self, span: Duration) -> Result<(), Broken> {
        let until = self.world.now() + span;
        loop {
            if let Some(ends) = self.silent_until.filter(|&ends| ends <= self.world.now()) {
                self.silent_until = None;
                self.world.server = Server::Serves;
                self.world.note(format!("* the server answers again, as it was to by {ends:?}"));
            }
            let goal = self.silent_until.map_or(until, |ends| ends.min(until));
            if self.world.turn_until(goal) {
                self.look()?;
            } else if goal == until {
                return Ok(());
            }
        }
    }

    /// What the server and the link do beside answering.
    fn the_network_acts(&mut self) -> Result<(), Broken> {
        let what = self.dice.roll(10);
        match (self.mood, what) {
            (Mood::Honest, _) => {
                let takes = self.dice.pick(&[1, 1, 20]);
                self.world.nat.takes = Duration::from_millis(takes);
            }
            (Mood::Troubled, 0..4) => {
                let seconds = u64::from(1 + self.dice.roll(15));
                self.world.note(format!("* the server is silent for {seconds} s"));
                self.world.server = Server::Silent;
                self.silent_until = Some(self.world.now() + Duration::from_secs(seconds));
                self.tally.count("silences");
            }
            (Mood::Hostile, 0..4) => {
                let share = self.dice.pick(&[1, 4, 8, 16]);
                self.world.tamper(share);
            }
            (Mood::Hostile, 4..7) => {
                let count = self.dice.pick(&[1, 5, 40, 200]);
                self.world.note(format!("* the server says {count} things unasked"));
                for _ in 0..count {
                    self.world.server_says_something();
                    self.look()?;
                }
                self.tally.count("floods of the server");
            }
            (_, 7 | 8) => {
                let announced = self.dice.one_in(2);
                self.world.lose_state(announced);
                self.tally.count("servers that begin anew");
            }
            (_, 9) if self.dice.one_in(3) => return self.crash(),
            _ => {}
        }
        Ok(())
    }

    /// The gateway is killed, and started again.
    fn crash(&mut self) -> Result<(), Broken> {
        self.look()?;
        self.world.kill();
        self.tally.count("killed");
        let down = self.dice.pick(&[0, 500, 5000]);
        self.world.run(Duration::from_millis(down));
        self.forget_what_is_asked();
        self.world.start();
        self.look()
    }

    /// The server is honest, nobody means ill, and time passes: everybody is served as ever.
    fn calm_down(&mut self) -> Result<(), Broken> {
        self.world.note("* calm");
        self.calm = true;
        self.world.tamper(0);
        self.world.server = Server::Serves;
        self.silent_until = None;
        if self.mood == Mood::Hostile {
            // What was told on a liar's word may have been taken back since.
            self.promises.clear();
        }
        (self.world.link.loss, self.world.link.doubled) = (0.0, 0.0);
        self.world.link.jitter = Duration::ZERO;
        self.world.nat.takes = Duration::from_millis(1);
        self.pass(RECOVERED)?;
        self.everybody_is_served()
    }

    /// All leases end, and nothing is left.
    fn end(&mut self) -> Result<(), Broken> {
        self.world.note("* everything ends");
        self.pass(OVER)?;
        self.nothing_is_left()
    }

    fn fail_if<T: std::fmt::Debug>(&self, wrong: Option<T>, words: &str) -> Result<(), Broken> {
        wrong.map_or(Ok(()), |wrong| broken(format!("{words}: {wrong:?}")))
    }
}
