//! Lines on stderr for the person who runs the router; never more than he can read.

use std::io::IsTerminal;

use engine::notice::{Level, Notice};
use engine::time::{Duration, Instant};
use tracing_subscriber::filter::LevelFilter;

use crate::config;

/// Lines a second; what is more is counted.
const LINES: u32 = 10;

/// Starts the log. Under systemd the journal has the time, so the line does without.
pub fn start(level: config::Level) {
    let filter = match level {
        config::Level::Warning => LevelFilter::WARN,
        config::Level::Info => LevelFilter::INFO,
        config::Level::Debug => LevelFilter::DEBUG,
    };
    let builder = tracing_subscriber::fmt().with_max_level(filter).with_target(false).with_writer(std::io::stderr);
    let journal = std::env::var_os("JOURNAL_STREAM").is_some() && !std::io::stderr().is_terminal();
    // A second start in one process (in tests) keeps the first.
    let _ = if journal { builder.without_time().try_init() } else { builder.try_init() };
}

/// Writes the gateway's notices, at most ten a second.
#[derive(Debug, Default)]
pub struct Notices {
    second: Instant,
    written: u32,
    left_out: u32,
}

impl Notices {
    /// Writes one, or counts it.
    pub fn write(&mut self, now: Instant, notice: &Notice) {
        if now - self.second >= Duration::from_secs(1) {
            if self.left_out > 0 {
                tracing::info!("{} more lines were left out", self.left_out);
            }
            *self = Self { second: now, written: 0, left_out: 0 };
        }
        if self.written >= LINES && notice.level() != Level::Warning {
            self.left_out += 1;
            return;
        }
        self.written += 1;
        match notice.level() {
            Level::Debug => tracing::debug!("{notice}"),
            Level::Info => tracing::info!("{notice}"),
            Level::Warning => tracing::warn!("{notice}"),
        }
    }
}
