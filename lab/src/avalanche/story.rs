//! Which runs docs/avalanche.md tells of.

use engine::time::Duration;

use super::{Capacity, Outcome, Restart, Setup, run};

/// How large the town is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Scale {
    /// How many.
    pub routers: u32,
    /// Of each router.
    pub mappings: u8,
    /// `service_wait` as it is when nobody sets it.
    pub service_wait: Duration,
    /// The same of `recovery_wait`.
    pub recovery_wait: Duration,
    /// The same seed is the same story.
    pub seed: u64,
}

impl Scale {
    /// The town of the page: a million routers.
    #[must_use]
    pub fn town() -> Self {
        Self {
            routers: 1_000_000,
            mappings: 2,
            service_wait: Duration::from_secs(30),
            recovery_wait: Duration::from_secs(5),
            seed: 1,
        }
    }

    /// A fortieth of it, with waits in proportion; for tests.
    #[must_use]
    pub fn hamlet() -> Self {
        Self {
            routers: 25_000,
            service_wait: Duration::from_millis(750),
            recovery_wait: Duration::from_millis(125),
            ..Self::town()
        }
    }

    /// What the server needs for one request of everybody: routers × mappings ÷ capacity.
    #[must_use]
    pub fn needs(&self, restart: Restart) -> Duration {
        let each = match restart {
            Restart::Routers => CAPACITY.renewing,
            Restart::RoutersForgotten | Restart::Server => CAPACITY.making,
        };
        each * self.routers * u32::from(self.mappings)
    }

    /// The run that this scale makes of an event and a wait.
    #[must_use]
    pub fn setup(&self, restart: Restart, wait: Duration) -> Setup {
        Setup {
            routers: self.routers,
            mappings: self.mappings,
            restart,
            wait,
            capacity: CAPACITY,
            delay: Duration::from_millis(5),
            lifetime: Duration::from_secs(7200),
            seed: self.seed,
            limit: Duration::from_secs(24 * 3600),
        }
    }
}

/// Of `portferry pcp-server` on one core of the laboratory (`lab-pcp-bench`), and the datagrams that the socket's buffer of
/// 2 MiB takes.
pub const CAPACITY: Capacity =
    Capacity { making: Duration::from_micros(280), renewing: Duration::from_micros(17), buffer: 2500 };

/// The rule: 1.25 of what the server needs.
pub const RULE: f64 = 1.25;

/// One run of the story.
#[derive(Clone, Debug, PartialEq)]
pub struct Chapter {
    /// How the wait was chosen.
    pub name: &'static str,
    /// What was run.
    pub setup: Setup,
    /// What came of it.
    pub outcome: Outcome,
}

/// All runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Story {
    /// The town.
    pub scale: Scale,
    /// By what happened, and then by the wait; each event has the same waits.
    pub chapters: Vec<Chapter>,
}

impl Story {
    /// Runs them all; `progress` hears of each.
    #[must_use]
    pub fn tell(scale: Scale, mut progress: impl FnMut(&Chapter)) -> Self {
        let mut chapters = Vec::new();
        for restart in [Restart::RoutersForgotten, Restart::Server, Restart::Routers] {
            let needs = scale.needs(restart);
            let default = if restart == Restart::Server { scale.recovery_wait } else { scale.service_wait };
            for (name, wait) in [
                ("none", Duration::ZERO),
                ("the default", default),
                ("half of what is needed", needs / 2),
                ("0.9 of it", needs.mul_f64(0.9)),
                ("the rule: 1.25 of it", needs.mul_f64(RULE)),
            ] {
                let setup = scale.setup(restart, wait);
                let chapter = Chapter { name, setup, outcome: run(&setup) };
                progress(&chapter);
                chapters.push(chapter);
            }
        }
        Self { scale, chapters }
    }

    /// The runs of one event.
    pub fn of(&self, restart: Restart) -> impl Iterator<Item = &Chapter> {
        self.chapters.iter().filter(move |chapter| chapter.setup.restart == restart)
    }
}
