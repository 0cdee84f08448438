//! What has become of connections and requests, counted since the start.

use std::sync::atomic::{AtomicU64, Ordering};

/// See the module's description.
#[derive(Debug, Default)]
pub struct Counters {
    answered: Counter,
    faults: Counter,
    refused: Counter,
    turned_away: Counter,
    dropped: Counter,
}

/// The same at one moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counted {
    /// Requests that were answered as they wished.
    pub answered: u64,
    /// Actions that were answered with a UPnP error.
    pub faults: u64,
    /// Requests that were refused with a status of HTTP, and what was none.
    pub refused: u64,
    /// Connections that were closed at once: too many, or not from the LAN.
    pub turned_away: u64,
    /// Connections that were given up: too slow, cut off, or another host needed the place.
    pub dropped: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    /// An answer that goes out.
    pub(super) fn answer(&self, status: hyper::StatusCode) {
        match status.as_u16() {
            200..=299 => self.answered.count(),
            500 => self.faults.count(), // UDA: every UPnP error, and nothing else here
            _ => self.refused.count(),
        }
    }

    /// What was no request of HTTP, or one whose head was too large; hyper has said so.
    pub(super) fn malformed(&self) {
        self.refused.count();
    }

    pub(super) fn turned_away(&self) {
        self.turned_away.count();
    }

    pub(super) fn dropped(&self) {
        self.dropped.count();
    }

    /// How many there were.
    pub fn read(&self) -> Counted {
        Counted {
            answered: self.answered.value(),
            faults: self.faults.value(),
            refused: self.refused.value(),
            turned_away: self.turned_away.value(),
            dropped: self.dropped.value(),
        }
    }
}
