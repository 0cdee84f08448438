//! The task that has our rule stay where it belongs: it hears when somebody changes rules, and looks again.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::{Ensured, Foreign, Pass, Trouble};
use crate::config::Config;
use crate::nft::foreign::{Tables, Watch};

/// So often it is looked without news: the older iptables gives none, and what failed may work now.
const ROUND: Duration = Duration::from_secs(10);

/// Keeps the rules until it is told to stop.
pub(crate) struct Keeper {
    passes: mpsc::UnboundedSender<Pass>,
    task: JoinHandle<Work>,
}

impl Keeper {
    /// Puts the rules where the configuration wants them, takes out those of an earlier life where it does not, and looks after
    /// them from then on. `None`: it wants none.
    pub(crate) async fn start(config: &Config) -> Option<Self> {
        let wanted = Foreign::wanted(config.firewall.integrate);
        let mut tables = Tables::default();
        for foreign in Foreign::ALL.iter().filter(|foreign| !wanted.contains(foreign)) {
            match foreign.remove(&mut tables).await {
                Ok(places) => places.iter().for_each(|place| {
                    tracing::info!(
                        "{}: the rule that an earlier run left in {place} is removed",
                        foreign.name()
                    );
                }),
                // Without the right to see rules there are none of ours.
                Err(trouble) => tracing::debug!("{}: {trouble}", foreign.name()),
            }
        }
        if wanted.is_empty() {
            return None;
        }
        // Before the first look, that nothing goes by in between.
        let watch = Watch::open().map_err(|error| tracing::warn!("the kernel's news of rules: {error}")).ok();
        let mut work = Work { wanted, tables, pass: Pass::of(config), said: BTreeMap::new() };
        work.ensure(true).await;
        if work.said.values().all(|said| *said == Said::Absent) {
            let names: Vec<&str> = wanted.iter().map(|foreign| foreign.name()).collect();
            tracing::info!("not running yet: {}; a rule for mappings comes with it", names.join(", "));
        }
        let (passes, changed) = mpsc::unbounded_channel();
        Some(Self { passes, task: tokio::spawn(work.run(watch, changed)) })
    }

    /// What is to pass may have changed.
    pub(crate) fn configure(&self, config: &Config) {
        // It runs until this is gone.
        let _ = self.passes.send(Pass::of(config));
    }

    /// Takes the rules out again, unless they are to be kept.
    pub(crate) async fn stop(self, keep: bool) {
        drop(self.passes);
        let Ok(mut work) = self.task.await else { return };
        if !keep {
            work.remove().await;
        }
    }
}

/// What was last said of a firewall, so that it is said once.
#[derive(Debug, Eq, PartialEq)]
enum Said {
    Absent,
    There,
    Trouble(Trouble),
}

struct Work {
    wanted: &'static [Foreign],
    tables: Tables,
    pass: Pass,
    said: BTreeMap<&'static str, Said>,
}

impl Work {
    /// Until nobody can tell it anything any more.
    async fn run(mut self, mut watch: Option<Watch>, mut passes: mpsc::UnboundedReceiver<Pass>) -> Self {
        loop {
            let news = async {
                match &mut watch {
                    Some(watch) => watch.changed().await,
                    None => std::future::pending().await,
                }
            };
            let anew = tokio::select! {
                pass = passes.recv() => match pass {
                    None => return self,
                    Some(pass) if pass == self.pass => continue,
                    Some(pass) => {
                        self.pass = pass;
                        true
                    }
                },
                heard = news => {
                    if let Err(error) = heard {
                        tracing::warn!("the kernel's news of rules: {error}; looking every {} s", ROUND.as_secs());
                        watch = None;
                    }
                    false
                }
                () = sleep(ROUND) => {
                    watch = watch.or_else(|| Watch::open().ok());
                    false
                }
            };
            self.ensure(anew).await;
        }
    }

    async fn ensure(&mut self, anew: bool) {
        for &foreign in self.wanted {
            let name = foreign.name();
            let said = match foreign.ensure(&mut self.tables, &self.pass, anew).await {
                Ok(Ensured::Absent) => Said::Absent,
                Ok(Ensured::There) => Said::There,
                Ok(Ensured::Put) => {
                    let again = match self.said.get(name) {
                        Some(Said::There) if !anew => ": its rules were loaded anew",
                        _ => "",
                    };
                    tracing::info!(
                        "{name}: what belongs to mappings passes (mark {:#x}, {}){again}",
                        self.pass.mark,
                        foreign.place()
                    );
                    Said::There
                }
                Err(trouble) => Said::Trouble(trouble),
            };
            let before = self.said.get(name);
            match (&said, before) {
                (Said::Trouble(trouble), _) if before != Some(&said) => {
                    tracing::warn!("{name} has no rule for mappings: {trouble}; trying again");
                }
                (Said::Absent, Some(Said::There)) => {
                    tracing::info!("{name} is gone; its rule for mappings comes back with it");
                }
                _ => {}
            }
            self.said.insert(name, said);
        }
    }

    async fn remove(&mut self) {
        for foreign in self.wanted {
            if let Err(trouble) = foreign.remove(&mut self.tables).await {
                tracing::warn!(
                    "{}: the rule for mappings could not be removed: {trouble}; `portferry run --cleanup` tries again",
                    foreign.name()
                );
            }
        }
    }
}
