//! The kernel's packet filter.

use crate::nft::reading::Ruleset;

/// The rules, or why they cannot be read; and the tables of the older iptables, of which only the names can be seen.
pub(super) async fn read() -> (Result<Ruleset, String>, Vec<String>) {
    let rules = Ruleset::read().await.map_err(|error| error.to_string());
    let legacy = std::fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    (rules, legacy.lines().map(str::to_owned).collect())
}
