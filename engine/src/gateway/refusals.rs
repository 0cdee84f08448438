//! External ports that the provider has just refused (decision 4, spec T-14). Clients ask for the same port up to six
//! times in a row; RFC 6887 §8.3 asks not to send the same request again for as long as the server said.

use std::collections::BTreeMap;

use wire::pcp::ResultCode;

use crate::table::Key;
use crate::time::{Duration, Instant};

/// Ports that are remembered; beyond, those that end first are forgotten.
const MOST: usize = 1024;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    until: BTreeMap<Key, (Instant, ResultCode)>,
}

impl Refusals {
    /// The server has refused this port for so long.
    pub(super) fn remember(&mut self, now: Instant, key: Key, result: ResultCode, wait: Duration) {
        if wait.is_zero() {
            return;
        }
        if self.until.len() >= MOST && !self.until.contains_key(&key) {
            self.until.retain(|_, (until, _)| *until > now);
            let first = self.until.iter().min_by_key(|(_, (until, _))| *until).map(|(&key, _)| key);
            if let (Some(first), true) = (first, self.until.len() >= MOST) {
                self.until.remove(&first);
            }
        }
        self.until.insert(key, (now + wait, result));
    }

    /// What the server said of this port, if that still counts.
    pub(super) fn find(&self, now: Instant, key: Key) -> Option<ResultCode> {
        self.until.get(&key).filter(|(until, _)| *until > now).map(|(_, result)| *result)
    }

    /// Another server, another address, or a server that has forgotten everything: nothing of it counts any more.
    pub(super) fn forget(&mut self) {
        self.until.clear();
    }
}

#[cfg(test)]
mod tests {
    use wire::pcp::Protocol;

    use super::*;

    #[test]
    fn memory_is_bounded_and_ends_in_time() {
        let mut refusals = Refusals::default();
        let key = |external_port| Key { protocol: Protocol::TCP, external_port };
        let at = Instant::from_secs;
        for port in 0..2000 {
            let wait = Duration::from_secs(100 + u64::from(port));
            refusals.remember(at(0), key(port), ResultCode::CANNOT_PROVIDE_EXTERNAL, wait);
        }
        assert_eq!(refusals.until.len(), MOST);
        assert_eq!(refusals.find(at(1), key(0)), None, "those that end first went first");
        assert_eq!(refusals.find(at(2098), key(1999)), Some(ResultCode::CANNOT_PROVIDE_EXTERNAL));
        assert_eq!(refusals.find(at(2099), key(1999)), None);
        refusals.remember(at(0), key(1), ResultCode::CANNOT_PROVIDE_EXTERNAL, Duration::ZERO);
        assert_eq!(refusals.find(at(0), key(1)), None);
        refusals.forget();
        assert_eq!(refusals.find(at(1), key(1999)), None);
    }
}
