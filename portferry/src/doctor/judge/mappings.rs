//! The mappings that stand, and whether they stand everywhere.

use super::and;
use super::firewall::hears;
use crate::control::MappingReport;
use crate::doctor::facts::{Facts, Gateway, Role, Says, UplinkSetup};
use crate::doctor::finding::Finding;
use crate::nft::reading::{Family, Ruleset, TableName};

/// How many are named.
const NAMED: usize = 5;

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let Gateway::Running { status, mappings, .. } = &facts.gateway else {
        return vec![Finding::new(
            "mappings-skipped",
            "the gateway was not asked: it does not run, or does not answer",
        )];
    };
    let mut all = Vec::new();
    let held = match status.usual.held {
        0 => String::new(),
        held => format!(", and {held} kept in case an application asks"),
    };
    let seen = match mappings.len() {
        0 => format!("no application has a port{held}"),
        1 => format!("one port is mapped{held}"),
        many => format!("{many} ports are mapped{held}"),
    };
    all.push(Finding::new("mappings", seen).with("mappings", mappings.len()));
    all.extend(clients(facts));
    let degraded: Vec<_> =
        mappings.iter().filter(|mapping| matches!(mapping.state.as_str(), "degraded" | "local")).collect();
    if !degraded.is_empty() {
        let seen = format!("the provider has not confirmed {}: {}", count(degraded.len()), list(&degraded));
        all.push(Finding::new("mapping-degraded", seen).todo(
            "portferry tries again until their lifetime ends; see under the provider's NAT whether its server answers",
        ));
    }
    let uplinks = facts.setup.uplinks.iter().filter(|uplink| uplink.role != Role::Spare);
    all.extend(uplinks.filter_map(|uplink| not_in_nat(facts, uplink, mappings)));
    all
}

/// Mappings of this uplink that its table lacks.
fn not_in_nat(facts: &Facts, uplink: &UplinkSetup, mappings: &[MappingReport]) -> Option<Finding> {
    let table = TableName { family: Family::Inet, name: uplink.table.clone() };
    let rules = facts.rules.as_ref().ok().filter(|rules| rules.has_table(Family::Inet, &table.name))?;
    let is_usual = uplink.role == Role::Usual;
    let here = |mapping: &&MappingReport| match &mapping.uplink {
        None => is_usual,
        Some(name) => *name == uplink.interface,
    };
    let standing = mappings.iter().filter(|mapping| mapping.state != "deleting").filter(here);
    let missing: Vec<_> = standing.filter(|mapping| !is_in(rules, &table, mapping)).collect();
    if missing.is_empty() {
        return None;
    }
    let seen = format!("the router's own NAT lacks {}: {}", count(missing.len()), list(&missing));
    Some(Finding::new("mapping-nat-missing", seen).at(&uplink.interface).todo(format!(
        "ask again in ten seconds, for portferry makes table inet {} anew by itself: its log says who changes it",
        table.name
    )))
}

/// Whether anybody listens where mappings lead to.
fn clients(facts: &Facts) -> Vec<Finding> {
    let those = |says| {
        let clients =
            facts.clients.iter().filter(move |client| client.says == says && hears(facts, client.at));
        clients.map(|client| client.at.to_string()).collect::<Vec<_>>()
    };
    let mut all = Vec::new();
    let refuses = those(Says::Refuses);
    if !refuses.is_empty() {
        let seen = format!(
            "nobody listens where mappings lead to: {} (TCP) refused a connection from this router",
            and(&refuses)
        );
        all.push(
            Finding::new("mapping-client-refuses", seen)
                .todo("start the application there, or see which port it listens on; that is nothing that the router can open"),
        );
    }
    let silent = those(Says::Silent);
    if !silent.is_empty() {
        let seen = format!("no answer from where mappings lead to: {} (TCP)", and(&silent));
        all.push(Finding::new("mapping-client-silent", seen).todo(
            "see whether that host is on, and whether a firewall of its own lets the application be reached",
        ));
    }
    all
}

fn count(many: usize) -> String {
    if many == 1 { "one mapping".to_owned() } else { format!("{many} mappings") }
}

fn list(mappings: &[&MappingReport]) -> String {
    let one = |mapping: &&MappingReport| {
        format!("{} {} to {}", mapping.protocol, mapping.external, mapping.internal)
    };
    let named: Vec<String> = mappings.iter().take(NAMED).map(one).collect();
    let more = if mappings.len() > NAMED { ", …" } else { "" };
    named.join(", ") + more
}

/// Whether the own NAT's map has the mapping (see `nft`: protocol, port and, for one remote host, its address).
fn is_in(rules: &Ruleset, table: &TableName, mapping: &MappingReport) -> bool {
    let Some(port) = mapping.nat_port else { return true };
    let protocol = if mapping.protocol == "TCP" { 6 } else { 17 };
    let mut key = vec![protocol, 0, 0, 0];
    key.extend(port.to_be_bytes());
    key.extend([0; 2]);
    let map = match mapping.remote_host {
        None => "ports",
        Some(host) => {
            key.extend(host.octets());
            "peers"
        }
    };
    let set = rules.sets.get(&(table.clone(), map.to_owned()));
    set.is_none_or(|set| set.incomplete || set.elements.iter().any(|element| element.key == key))
}
