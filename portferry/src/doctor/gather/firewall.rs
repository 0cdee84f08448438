//! The kernel's packet filter.

use std::io::ErrorKind;

use crate::doctor::facts::Unread;
use crate::nft::reading::Ruleset;

/// The rules, or why they cannot be read; and the tables of the older iptables, of which only the names can be seen.
pub(super) async fn read() -> (Result<Ruleset, Unread>, Vec<String>) {
    let rules = Ruleset::read().await.map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => Unread::NotAllowed,
        _ => Unread::Failed(error.to_string()),
    });
    let legacy = std::fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    (rules, legacy.lines().map(str::to_owned).collect())
}
