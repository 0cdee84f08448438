//! Our tables of nftables when another program has changed them: looked at, and made anew.

use super::Shell;
use crate::nft::watch::{Guard, Say};

impl Shell {
    /// Hears what others do to our tables from now on; before these are opened, that nothing goes by.
    pub(super) async fn watch_tables(&mut self) {
        self.guard = Guard::new(self.uplinks.iter().map(|uplink| uplink.line.table.as_str())).await;
    }

    /// Has them be as they were; `by` is the name of the program that has changed one, if it is known.
    pub(super) async fn restore_tables(&mut self, by: Option<String>) {
        let mut restored = Vec::new();
        for uplink in &mut self.uplinks {
            let table = uplink.line.table.clone();
            // The filter of one is no reason to leave the other away.
            let pinholes = match &mut uplink.pinholes {
                Some(pinholes) => (format!("ip6 {table}"), pinholes.restore().await),
                None => (String::new(), Ok(false)),
            };
            let nat = match &mut uplink.nft {
                Some(nft) => (format!("inet {table}"), nft.restore().await),
                None => (String::new(), Ok(false)),
            };
            for (table, outcome) in [pinholes, nat] {
                match outcome {
                    Ok(true) => restored.push(table),
                    Ok(false) => {}
                    Err(error) if self.guard.failed() => tracing::warn!(
                        "nftables: {table}: changed by another program, and cannot be made anew: {error}; trying again"
                    ),
                    Err(error) => tracing::debug!("nftables: {table}: {error}"),
                }
            }
        }
        if restored.is_empty() {
            return;
        }
        let by = by.map_or("another program".to_owned(), |name| {
            format!("another program ({})", name.escape_default())
        });
        let tables = restored.join(", ");
        match self.guard.restored() {
            Say::Restored => tracing::warn!("nftables: {tables}: changed by {by}, made anew"),
            Say::LastWord => tracing::warn!(
                "nftables: {tables}: changed by {by}, again and again: made anew every ten seconds at most, and not said any more until nobody has changed it for a minute"
            ),
            Say::Nothing => tracing::debug!("nftables: {tables}: changed by {by}, made anew"),
        }
    }
}
