//! `[hooks] on_change`: one program that is told of every change of the mappings, as one line of JSON on its standard input.
//! docs/hooks.md is what it is promised.
//!
//! A task runs it, once for each change, one after the other. The gateway only ever puts a change in the queue, so that no
//! program, however slow, holds up a turn.

mod program;
mod queue;
mod report;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use engine::time::Instant;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::clock::now;
use crate::config;
use crate::privileged::Client;
use queue::Queue;
pub use queue::Told;
pub(crate) use report::checked;

/// What is not told by the end is told within this, or the program's timeout if that is shorter: the service manager
/// loses its patience soon after the gateway has waited for the provider.
const STOP: Duration = Duration::from_secs(10);
/// One line about failures in this time; the others are counted.
const QUIET: Duration = Duration::from_secs(60);

/// The queue, and the task that empties it.
#[derive(Debug)]
pub struct Hooks {
    shared: Arc<Shared>,
    task: Option<JoinHandle<()>>,
    /// Where the program is run; `None`: here.
    elsewhere: Option<Client>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There is something to tell, or an end.
    news: Notify,
}

#[derive(Debug)]
struct State {
    settings: config::Hooks,
    queue: Queue,
    /// The task ends when the queue is empty.
    closing: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with the lock")
    }
}

impl Hooks {
    /// Nothing is run before [`start`](Self::start).
    pub fn new(settings: config::Hooks) -> Self {
        let state = State { settings, queue: Queue::default(), closing: false };
        let shared = Shared { state: Mutex::new(state), news: Notify::new() };
        Self { shared: Arc::new(shared), task: None, elsewhere: None }
    }

    /// The program is run by the privileged process, which looks at it, too.
    pub(crate) fn run_by(&mut self, elsewhere: Option<Client>) {
        self.elsewhere = elsewhere;
    }

    /// Starts the task, and tells the program that it knows nothing yet. Within a runtime.
    pub fn start(&mut self) {
        let settings = self.shared.state().settings.clone();
        if self.elsewhere.is_none() {
            complain_early(&settings);
        }
        self.task = Some(tokio::spawn(work(self.shared.clone(), self.elsewhere.clone())));
        self.begin(std::iter::empty());
    }

    /// The settings as they are from now on. The program is told what stands, also when it is the same: whatever it missed, it
    /// has then.
    pub fn configure(&mut self, settings: config::Hooks, standing: impl Iterator<Item = Told>) {
        if self.elsewhere.is_none() {
            complain_early(&settings);
        }
        self.shared.state().settings = settings;
        self.begin(standing);
    }

    fn begin(&mut self, standing: impl Iterator<Item = Told>) {
        let mut state = self.shared.state();
        state.queue = Queue::default();
        if !state.settings.on_change.0.is_empty() {
            state.queue.begin(standing);
        }
        drop(state);
        self.shared.news.notify_one();
    }

    /// Has the program told of a change, when its turn comes.
    pub fn tell(&mut self, told: Told) {
        let mut state = self.shared.state();
        if state.settings.on_change.0.is_empty() {
            return;
        }
        if state.queue.push(told) {
            let (program, waiting) = (state.settings.on_change.0[0].clone(), state.queue.len());
            tracing::warn!(
                "{program} is slower than the mappings change: of each of the {waiting} that it has not heard of it is told only how it is now ([hooks] on_change)"
            );
        }
        drop(state);
        self.shared.news.notify_one();
    }

    /// Tells what is left, for a bounded time, and ends.
    pub async fn finish(&mut self) {
        let Some(mut task) = self.task.take() else { return };
        let timeout = {
            let mut state = self.shared.state();
            state.closing = true;
            state.settings.timeout.duration()
        };
        self.shared.news.notify_one();
        if tokio::time::timeout(timeout.min(STOP), &mut task).await.is_err() {
            task.abort();
            let _ = task.await; // the program dies with it
            let state = self.shared.state();
            tracing::warn!(
                "{} was ended, with {} changes that it was not told of: there was no time left; it hears what stands after the next start",
                state.settings.on_change.0.first().map_or("the program", String::as_str),
                state.queue.len()
            );
        }
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// Tells one after the other.
async fn work(shared: Arc<Shared>, elsewhere: Option<Client>) {
    let mut complaints = Complaints::default();
    loop {
        let next = {
            let mut state = shared.state();
            let next = state.queue.pop();
            if next.is_none() && state.closing {
                return;
            }
            next.map(|waiting| (waiting, state.settings.clone()))
        };
        let Some((waiting, settings)) = next else {
            shared.news.notified().await;
            continue;
        };
        let line = report::line(&waiting);
        let told = match &elsewhere {
            None => run(&settings, &line).await,
            Some(client) => client.hook(&line).await,
        };
        if let Err(error) = told
            && let Some(others) = complaints.count(now())
        {
            let others = if others == 0 {
                String::new()
            } else {
                format!(" ({others} times since the last such line)")
            };
            tracing::warn!("{} {error}{others}", settings.on_change.0[0]);
        }
    }
}

/// Has the program told one line, if there is one.
///
/// # Errors
/// Why it was not, in words that follow its name.
pub(crate) async fn run(settings: &config::Hooks, line: &str) -> Result<(), String> {
    if settings.on_change.0.is_empty() {
        return Ok(());
    }
    let told = program::run(&settings.on_change.0, settings.timeout.duration(), line).await;
    told.map_err(|error| error.to_string())
}

/// What is plainly wrong is said before anything happens; the program may still be put there, or right.
pub(crate) fn complain_early(settings: &config::Hooks) {
    if let Some(program) = settings.on_change.0.first()
        && let Err(error) = program::check(program)
    {
        tracing::warn!("{program} {error}");
    }
}

/// Failures, of which not every one is worth a line.
#[derive(Debug, Default)]
struct Complaints {
    last: Option<Instant>,
    left_out: u32,
}

impl Complaints {
    /// Whether this one is, and how many were not since the last.
    fn count(&mut self, now: Instant) -> Option<u32> {
        if self.last.is_some_and(|last| now - last < QUIET) {
            self.left_out += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests;
