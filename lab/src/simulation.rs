//! A seeded simulation: control points, subscribers, a provider and a router on which everything goes wrong that can, in
//! virtual time. What the control points were told is kept in a shadow model, and after every step the gateway, the
//! router's own NAT, the provider and the model have to agree as far as they can at that moment. Once it is calm they
//! have to agree completely, and after a stop nothing may be left.
//!
//! The same seed is the same run: nothing here reads a clock, a thread or an address.

mod calm;
mod check;
mod drills;
mod ledger;
mod promises;
mod settings;
mod shadow;
mod storm;
mod sweep;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use engine::entropy::{Entropy, SeededEntropy};
use engine::gateway::{NatMode, RequestId};
use engine::provider::PreferFailure;
use engine::status::MappingStatus;
use engine::time::{Duration, Instant};
use wire::pcp::{OptionCode, Protocol};

use crate::sim::{Callback, EXTERNAL, Happening, Server, WAN, World};
use ledger::Ledger;
use shadow::{Asked, Shadow};
pub use sweep::test_seeds;

/// The control points.
const HOSTS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(192, 168, 1, 10), Ipv4Addr::new(192, 168, 1, 11), Ipv4Addr::new(192, 168, 1, 12)];
/// The WAN's other address.
const OTHER_WAN: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 3);
/// The provider's other external address.
const OTHER_EXTERNAL: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// Names of remote hosts: two that are somebody's, and move, and one that is nobody's.
const NAMES: [&str; 3] = ["peer.example.net", "other.example.net", "nobody.example.net"];
/// The addresses that they have.
const PEERS: [Ipv4Addr; 2] = [Ipv4Addr::new(203, 0, 113, 9), Ipv4Addr::new(203, 0, 113, 10)];
/// Things that happen before it is calm, the first and the second time.
const STEPS: [u32; 2] = [70, 40];
/// The longest lifetime that the provider grants when it is calm, in seconds.
const LONGEST: u32 = 600;
/// Long enough for everything that was asked for in vain to end by itself, and for a refusal that is remembered.
const CALM: Duration = Duration::from_secs(1500);
/// How many lines of the trace a failure shows.
const TAIL: usize = 80;

/// What happened, a line each.
pub type Trace = Vec<(Instant, String)>;

/// Why a seed failed.
#[derive(Debug)]
pub struct Failure {
    /// The test that runs it.
    pub test: &'static str,
    /// The seed.
    pub seed: u64,
    /// What did not hold.
    pub what: String,
    /// What happened until then.
    pub trace: Trace,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { test, seed, what, trace } = self;
        writeln!(f, "seed {seed}: {what}")?;
        writeln!(f, "  again: PF_SEED={seed} cargo test -p lab --test {test}")?;
        let first = trace.len().saturating_sub(TAIL);
        writeln!(f, "  the last {} of {} lines:", trace.len() - first, trace.len())?;
        for (at, line) in &trace[first..] {
            let ms = at.as_millis();
            writeln!(f, "  {:>10}.{:03} s  {line}", ms / 1000, ms % 1000)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// What happened in a run: a simulation in which nothing happens proves nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// By name, how often.
    pub counts: BTreeMap<&'static str, u64>,
}

impl Tally {
    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Tally) {
        for (what, count) in &other.counts {
            *self.counts.entry(what).or_default() += count;
        }
    }
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
    let mut simulation = Simulation::new(seed);
    let outcome = catch_unwind(AssertUnwindSafe(|| simulation.run()));
    let what = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(Broken(what))) => Some(what),
        Err(panic) => Some(format!("a panic: {}", words_of(&*panic))),
    };
    let trace = simulation.world.trace().to_vec();
    let result = match what {
        None => Ok(simulation.tally),
        Some(what) => Err(Box::new(Failure { test: "simulation", seed, what, trace: trace.clone() })),
    };
    (result, trace)
}

/// What a panic says.
pub(crate) fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let words = panic.downcast_ref::<String>().cloned();
    words.or_else(|| panic.downcast_ref::<&str>().map(|words| (*words).to_owned())).unwrap_or_default()
}

/// An invariant that does not hold, in words.
pub(crate) struct Broken(pub(crate) String);

pub(crate) fn broken<T>(what: impl Into<String>) -> Result<T, Broken> {
    Err(Broken(what.into()))
}

/// What identifies a mapping in the table.
type Key = (Protocol, u16);

/// A random choice, the same for the same seed.
pub(crate) struct Dice(pub(crate) SeededEntropy);

impl Dice {
    /// Uniform in `0..n`.
    pub(crate) fn roll(&mut self, n: u16) -> u16 {
        let mut bytes = [0; 2];
        self.0.fill(&mut bytes);
        u16::from_be_bytes(bytes) % n
    }

    pub(crate) fn one_in(&mut self, n: u16) -> bool {
        self.roll(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.roll(u16::try_from(of.len()).expect("short lists")))]
    }
}

struct Simulation {
    world: World,
    dice: Dice,
    shadow: Shadow,
    ledger: Ledger,
    nat: NatMode,
    open: BTreeMap<RequestId, (Instant, Asked)>,
    /// What was asked for last, to be asked for again.
    recent: Vec<(Ipv4Addr, u8, storm::Add)>,
    /// So many happenings of the world have been looked at.
    seen: usize,
    /// When everything was last looked at.
    checked: Instant,
    /// Mappings as they were then, and SystemUpdateID.
    before: Option<(BTreeMap<Key, storm::Shape>, u32)>,
    /// When a rule of the router's own NAT could not be set up.
    nat_failed: Option<Instant>,
    /// When the server last said that it speaks another protocol.
    version_refused: Option<Instant>,
    /// What control points had been told when the disk filled up, as long as something is not written since.
    stale: Option<BTreeMap<Key, shadow::Claim>>,
    /// When everything stored was last lost, and for whom a filter had been asked by then.
    wiped: Option<Instant>,
    forgotten: BTreeSet<ledger::Client>,
    /// Mappings of the server were listed, or may have been.
    lists: bool,
    /// It was changed whether descriptions are sent.
    descriptions_switched: bool,
    /// Ports that are held for who asked about them.
    promises: BTreeMap<Key, promises::Promise>,
    /// When something last happened that what is held need not survive, and when as much was held as may be of one host.
    disturbed: Instant,
    crowded: Instant,
    /// So many requests may be unanswered at once, at the moment.
    most_unanswered: Option<usize>,
    /// The WAN's address, or the last one that it had.
    wan: Ipv4Addr,
    /// When it was last taken from the other line.
    rerouted: Option<Instant>,
    /// Everything works, and nothing new is asked for.
    calm: bool,
    steps: u32,
    /// See [`Simulation::drill`].
    drills: u16,
    tally: Tally,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(SeededEntropy::new(seed ^ 0xd1ce));
        let nat = if seed % 2 == 1 { NatMode::Own } else { NatMode::None };
        let setup = settings::setup(seed, nat, &mut dice);
        let lists = setup.config.list_mappings;
        let mut world = World::new(setup);
        settings::name_everybody(&mut world);
        Self {
            world,
            dice,
            shadow: Shadow::default(),
            ledger: Ledger::default(),
            nat,
            open: BTreeMap::new(),
            recent: Vec::new(),
            seen: 0,
            checked: Instant::default(),
            before: None,
            nat_failed: None,
            version_refused: None,
            stale: None,
            wiped: None,
            forgotten: BTreeSet::new(),
            lists,
            descriptions_switched: false,
            promises: BTreeMap::new(),
            disturbed: Instant::default(),
            crowded: Instant::default(),
            most_unanswered: None,
            wan: WAN,
            rerouted: None,
            calm: false,
            steps: 0,
            drills: 0,
            tally: Tally::default(),
        }
    }

    fn run(&mut self) -> Result<(), Broken> {
        for steps in STEPS {
            self.calm = false;
            for _ in 0..steps {
                self.steps += 1;
                self.step()?;
            }
            self.calm_down()?;
        }
        self.stop()
    }

    /// Lets `span` pass, and looks at everything whenever something has happened.
    fn pass(&mut self, span: Duration) -> Result<(), Broken> {
        let until = self.world.now() + span;
        while self.world.now() < until {
            let soon = self.world.now() + Duration::from_millis(1);
            let next = self.world.next_due().unwrap_or(until);
            self.world.run_until(next.max(soon).min(until));
            self.check()?;
        }
        Ok(())
    }

    /// Everything works again, nothing new is asked for, and time passes: everybody agrees.
    fn calm_down(&mut self) -> Result<(), Broken> {
        self.world.note("* calm");
        self.mend();
        self.check()?;
        self.pass(CALM / 3)?;
        self.renew_subscriptions();
        self.pass(CALM / 3)?;
        // After all that happened a control point is served as ever, and what it gives back it can have again at once,
        // though the provider holds it from everybody else.
        let port = 6200 + self.dice.roll(100);
        let add = storm::Add { lease: 3600, ..storm::Add::new(port) };
        self.expect_success(|simulation| simulation.add(HOSTS[0], 1, add))?;
        self.expect_success(|simulation| simulation.delete(HOSTS[0], 1, (Protocol::TCP, port), None))?;
        self.expect_success(|simulation| simulation.add(HOSTS[0], 1, add))?;
        self.look_for_lost_ports()?;
        self.drill()?;
        let (sent, owners) = (self.world.sent().len(), self.mappings());
        self.pass(CALM / 3)?;
        self.check_owners(sent, &owners)?;
        self.check_calm()
    }

    fn expect_success(&mut self, ask: impl FnOnce(&mut Self) -> RequestId) -> Result<(), Broken> {
        let id = ask(self);
        self.pass(Duration::from_secs(5))?;
        self.expect_answer(id, Ok(()))
    }

    fn expect_answer(&self, id: RequestId, wanted: Result<(), u16>) -> Result<(), Broken> {
        let answer = self.world.reply(id).map(|reply| &reply.answer);
        match (answer, wanted) {
            (Some(Ok(_)), Ok(())) => Ok(()),
            (Some(Err(code)), Err(wanted)) if *code == wanted => Ok(()),
            _ => broken(format!("all is well, and a control point hears {answer:?} instead of {wanted:?}")),
        }
    }

    /// What the storm broke works.
    fn mend(&mut self) {
        self.calm = true;
        self.world.spare();
        self.disturb();
        let external = *self.dice.pick(&[&EXTERNAL, &OTHER_EXTERNAL]);
        let world = &mut self.world;
        world.server = Server::Serves;
        (world.link.loss, world.link.doubled, world.link.lose_next) = (0.0, 0.0, 0);
        world.link.jitter = Duration::ZERO;
        world.nat.refuse_next = 0;
        world.nat.takes = Duration::from_millis(1);
        world.nat.ports_in_use.clear();
        world.fill_disk(false);
        let config = world.provider_config();
        (config.longest, config.quota, config.external) = (LONGEST, 1000, external);
        config.prefer_failure = PreferFailure::Honoured;
        settings::name_everybody(world);
        world.resolver_takes = Duration::from_millis(1);
        for port in storm::EXTERNAL_PORTS {
            world.vacate(Protocol::TCP, port);
            world.vacate(Protocol::UDP, port);
        }
        // What the spare line has not is only given or lost once the usual one is back.
        let (_, on_spare) = world.has_spare();
        if world.wan_address().is_none() || on_spare {
            self.readdress(WAN);
        }
        let sids: Vec<_> = self.world.subscriptions().map(|(sid, _)| sid).collect();
        for sid in sids {
            self.world.set_callback(sid, Callback::Works);
        }
        self.renew_subscriptions();
    }

    fn renew_subscriptions(&mut self) {
        let now = self.world.now();
        let all: Vec<_> = self.world.subscriptions().map(|(sid, found)| (sid, found.clone())).collect();
        for (sid, found) in all.into_iter().filter(|(_, found)| !found.over && found.ends > now) {
            if !found.missed {
                let _ = self.world.renew(sid, 1800);
            } else if self.world.unsubscribe(sid).is_ok() {
                // A gap in SEQ tells it (E-5): it begins anew.
                let _ = self.world.subscribe(found.host, found.of, 1800, Callback::Works);
            }
        }
    }

    fn readdress(&mut self, addr: Ipv4Addr) {
        self.disturb();
        if self.wan != addr {
            if self.world.line_of(self.wan) != self.world.line_of(addr) {
                self.tally.count("lines changed");
                self.rerouted = Some(self.world.now());
            }
            self.wan = addr;
        }
        self.world.wan_up(addr);
    }

    /// What is stopped leaves nothing behind.
    fn stop(&mut self) -> Result<(), Broken> {
        self.world.note("* stop");
        let config = engine::gateway::Config { keep_on_stop: false, ..self.world.config().clone() };
        self.world.reconfigure(config);
        self.check()?;
        self.end()?;
        let ours = |world: &World| {
            world.provider.mappings().filter(|found| found.subscriber != crate::sim::STRANGER).count()
        };
        let left = (self.mappings().len(), ours(&self.world), self.world.nat.rules().count());
        if !self.world.is_stopped() || left != (0, 0, 0) {
            return broken(format!("after the stop there are mappings, upstream ones, NAT rules: {left:?}"));
        }
        self.violations()
    }

    fn mappings(&self) -> Vec<MappingStatus> {
        self.world.gateway.mappings(self.world.now()).collect()
    }

    fn violations(&self) -> Result<(), Broken> {
        self.world.violations().first().map_or(Ok(()), broken)
    }

    /// The gateway was killed: it is started again, after a while.
    fn restart(&mut self) -> Result<(), Broken> {
        self.tally.count("killed");
        self.look_at_happenings()?;
        let forgets = self.dice.one_in(6);
        self.come_back(forgets)
    }

    /// The gateway is gone: it is started again, after a while; with an empty state directory if it `forgets`.
    fn come_back(&mut self, forgets: bool) -> Result<(), Broken> {
        self.promises.clear();
        self.disturb();
        for (id, (_, asked)) in std::mem::take(&mut self.open) {
            if self.world.is_lost(id) {
                self.shadow.lose(self.world.now(), asked);
            }
        }
        let down = self.dice.pick(&[0, 0, 1500, 20_000]);
        self.world.run(Duration::from_millis(down));
        if forgets {
            self.tally.count("state directories lost");
            self.world.lose_disk();
            self.shadow.forget();
            self.wiped = Some(self.world.now());
        }
        if forgets || self.stale.is_some() {
            // Nothing is stored of what filters the provider may have, or not of the last ones.
            let filtered = |sent: &&crate::sim::Sent| sent.request.option(OptionCode::FILTER).is_some();
            let clients = self.world.sent().iter().filter(filtered);
            self.forgotten.extend(clients.filter_map(|sent| Some(ledger::client_of(&sent.request)?.0)));
        }
        self.lists |= self.world.config().list_mappings;
        self.world.start();
        let now = self.world.now();
        self.before = None;
        let mappings = self.mappings();
        let own_nat = self.nat == NatMode::Own;
        let moved = |key: Key, claim: &shadow::Claim| {
            claim
                .clients(key.0, own_nat)
                .into_iter()
                .any(|client| self.ledger.is_taken_since(client, self.checked))
        };
        if self.stale.is_some() {
            self.tally.count("killed when the disk was full");
        }
        self.shadow.restored(now, &mappings, self.stale.as_ref(), moved).map_err(Broken)?;
        // What is on a full disk is still what it was.
        let stale = self.stale.take().unwrap_or_default();
        let all = self.shadow.claims.clone().into_iter().chain(stale).collect();
        self.stale = self.world.is_disk_full().then_some(all);
        Ok(())
    }

    fn happenings(&mut self) -> Vec<Happening> {
        let new = self.world.happenings()[self.seen..].to_vec();
        self.seen += new.len();
        new
    }
}
