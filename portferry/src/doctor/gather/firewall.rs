//! The kernel's packet filter.

use std::io::ErrorKind;

use crate::doctor::facts::{Setup, Unread};
use crate::firewall::{Foreign, State};
use crate::nft::foreign::Tables;
use crate::nft::reading::Ruleset;

/// The rules, or why they cannot be read; and the tables of the older iptables, of which only the names can be seen.
pub(super) async fn read(setup: &Setup) -> (Result<Ruleset, Unread>, Vec<String>) {
    let mut rules = Ruleset::read().await.map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => Unread::NotAllowed,
        _ => Unread::Failed(error.to_string()),
    });
    if let Ok(rules) = &mut rules {
        setup.uplinks.iter().for_each(|uplink| rules.knows_marks_of(&uplink.table));
    }
    let legacy = std::fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    (rules, legacy.lines().map(str::to_owned).collect())
}

/// Whether our rule is where the configuration wants it.
pub(super) async fn foreign(setup: &Setup) -> Vec<(Foreign, State)> {
    let mut tables = Tables::default();
    let mut all = Vec::new();
    for &foreign in Foreign::wanted(setup.integrate) {
        // Who may not see rules hears that elsewhere.
        if let Ok(state) = foreign.look(&mut tables).await {
            all.push((foreign, state));
        }
    }
    all
}
