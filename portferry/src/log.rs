//! Lines on stderr for the person who runs the router; never more than he can read.

use std::io::IsTerminal;

use engine::notice::{Level, Notice};
use engine::time::{Duration, Instant};
use tracing_subscriber::filter::LevelFilter;

use crate::config;

/// Lines a second, and as many warnings; what is more is counted.
const LINES: u32 = 10;

/// Starts the log. Under systemd the journal has the time, so the line does without.
pub fn start(level: config::Level) {
    let filter = match level {
        config::Level::Warning => LevelFilter::WARN,
        config::Level::Info => LevelFilter::INFO,
        config::Level::Debug => LevelFilter::DEBUG,
    };
    let builder =
        tracing_subscriber::fmt().with_max_level(filter).with_target(false).with_writer(std::io::stderr);
    let journal = std::env::var_os("JOURNAL_STREAM").is_some() && !std::io::stderr().is_terminal();
    // A second start in one process (in tests) keeps the first.
    let _ = if journal { builder.without_time().try_init() } else { builder.try_init() };
}

/// Writes the gateway's notices, at most ten a second, and ten warnings beside them: hosts of the LAN can bring about
/// either.
#[derive(Debug, Default)]
pub struct Notices {
    second: Instant,
    lines: u32,
    warnings: u32,
    left_out: u32,
}

impl Notices {
    /// Writes one, or counts it.
    pub fn write(&mut self, now: Instant, notice: &Notice) {
        self.line(now, notice.level(), notice);
    }

    /// The same for anything else that others can bring about.
    pub fn line(&mut self, now: Instant, level: Level, notice: &impl std::fmt::Display) {
        if level == Level::Debug && !tracing::enabled!(tracing::Level::DEBUG) {
            return; // what nobody sees takes nobody's place
        }
        if let Some(left_out) = self.next_second(now) {
            tracing::info!("{left_out} more lines were left out");
        }
        if !self.has_room(level) {
            return;
        }
        match level {
            Level::Debug => tracing::debug!("{notice}"),
            Level::Info => tracing::info!("{notice}"),
            Level::Warning => tracing::warn!("{notice}"),
        }
    }

    /// Starts a new second if it is time; says how many lines the last one left out, if any.
    fn next_second(&mut self, now: Instant) -> Option<u32> {
        if now - self.second < Duration::from_secs(1) {
            return None;
        }
        let left_out = self.left_out;
        *self = Self { second: now, ..Self::default() };
        (left_out > 0).then_some(left_out)
    }

    /// Takes the place of one line, or counts it as left out.
    fn has_room(&mut self, level: Level) -> bool {
        let used = if level == Level::Warning { &mut self.warnings } else { &mut self.lines };
        let room = *used < LINES;
        *used += u32::from(room);
        self.left_out += u32::from(!room);
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_a_second_and_ten_warnings() {
        let start = Instant::from_millis(5000);
        let mut notices = Notices::default();
        assert_eq!(notices.next_second(start), None);
        let written = |notices: &mut Notices, level| (0..50).filter(|_| notices.has_room(level)).count();
        assert_eq!(written(&mut notices, Level::Info), 10);
        assert_eq!(written(&mut notices, Level::Debug), 0);
        assert_eq!(written(&mut notices, Level::Warning), 10);
        assert_eq!(notices.next_second(start + Duration::from_millis(999)), None);
        assert_eq!(notices.next_second(start + Duration::from_secs(1)), Some(40 + 50 + 40));
        assert_eq!(written(&mut notices, Level::Info), 10);
    }
}
