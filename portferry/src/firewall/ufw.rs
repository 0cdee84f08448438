//! ufw: chains of iptables, or of the older iptables, for each of the two IP versions. `ufw reload` flushes them.
//!
//! Whether the rule is there is read over netlink where it can be; what is changed, the program changes.

use std::fs;

use super::iptables::Program;
use super::{Ensured, Pass, State, Trouble};
use crate::nft::foreign::{COMMENT, Family, Place, Tables};

/// The chains that what is forwarded comes to first.
const CHAINS: [Place; 2] = [
    Place { family: Family::Ip, table: "filter", chain: "ufw-before-forward" },
    Place { family: Family::Ip6, table: "filter", chain: "ufw6-before-forward" },
];

/// See [`super::Foreign::place`].
pub(super) fn place() -> String {
    CHAINS.map(|place| place.chain).join(" and ")
}

/// A chain that is there, and who made it.
struct Found {
    place: Place,
    program: Program,
    /// How many rules of ours it has.
    ours: usize,
}

/// Those that are there; the two kinds of iptables may both have some.
async fn chains(tables: &mut Tables) -> Result<Vec<Found>, Trouble> {
    let mut found = Vec::new();
    for place in CHAINS {
        let ipv6 = place.family == Family::Ip6;
        if let Some(seen) = tables.look(place).await? {
            let program = Program { ipv6, legacy: false };
            found.push(Found { place, program, ours: seen.rules.len() });
        }
        let program = Program { ipv6, legacy: true };
        // Without the chain the program fails.
        if has_legacy_tables(ipv6)
            && let Ok(rules) = list(program, place).await
        {
            found.push(Found { place, program, ours: rules.len() });
        }
    }
    Ok(found)
}

/// Whether there are rules of the older iptables at all; to ask the program would load its modules.
fn has_legacy_tables(ipv6: bool) -> bool {
    let path = if ipv6 { "/proc/net/ip6_tables_names" } else { "/proc/net/ip_tables_names" };
    fs::read_to_string(path).unwrap_or_default().lines().any(|table| table == "filter")
}

/// Our rules in the chain, as the program prints them.
async fn list(program: Program, place: Place) -> Result<Vec<Vec<String>>, Trouble> {
    let printed = program.run(&["-S", place.chain]).await?;
    Ok(printed.lines().filter_map(ours).collect())
}

/// The words of a rule, if it is ours.
fn ours(line: &str) -> Option<Vec<String>> {
    let quoted = format!("\"{COMMENT}\"");
    let word = |word: &str| if word == quoted { COMMENT.to_owned() } else { word.to_owned() };
    let words: Vec<String> = line.split_whitespace().map(word).collect();
    let is_ours = words.windows(2).any(|pair| pair[0] == "--comment" && pair[1] == COMMENT);
    is_ours.then_some(words)
}

/// Mark and mask, as the program prints them.
fn mark(pass: &Pass) -> String {
    format!("{0:#x}/{0:#x}", pass.mark)
}

/// Whether a rule of ours is the one that is wanted.
fn is_wanted(words: &[String], pass: &Pass) -> bool {
    let has = |name: &str, value: &str| words.windows(2).any(|pair| pair[0] == name && pair[1] == value);
    has("--mark", &mark(pass)) && has("-j", "ACCEPT")
}

/// See [`super::Foreign::look`].
pub(super) async fn look(tables: &mut Tables) -> Result<State, Trouble> {
    let found = chains(tables).await?;
    Ok(match found.as_slice() {
        [] => State::Absent,
        all if all.iter().all(|chain| chain.ours > 0) => State::There,
        _ => State::Missing,
    })
}

/// See [`super::Foreign::ensure`].
pub(super) async fn ensure(tables: &mut Tables, pass: &Pass, anew: bool) -> Result<Ensured, Trouble> {
    let found = chains(tables).await?;
    if found.is_empty() {
        return Ok(Ensured::Absent);
    }
    let mut ensured = Ensured::There;
    for chain in found.iter().filter(|chain| anew || chain.ours != 1) {
        let rules = list(chain.program, chain.place).await?;
        if matches!(rules.as_slice(), [only] if is_wanted(only, pass)) {
            continue;
        }
        // First the new one, that nothing is closed in between; of two that are the same a deletion takes one.
        let mark = mark(pass);
        let rule = ["-m", "mark", "--mark", &mark, "-m", "comment", "--comment", COMMENT, "-j", "ACCEPT"];
        chain.program.run(&[["-I", chain.place.chain, "1"].as_slice(), &rule].concat()).await?;
        for old in &rules {
            delete(chain.program, old).await?;
        }
        ensured = Ensured::Put;
    }
    Ok(ensured)
}

/// See [`super::Foreign::remove`].
pub(super) async fn remove(tables: &mut Tables) -> Result<Vec<String>, Trouble> {
    let mut removed = Vec::new();
    for chain in chains(tables).await?.iter().filter(|chain| chain.ours > 0) {
        for rule in list(chain.program, chain.place).await? {
            delete(chain.program, &rule).await?;
            let legacy = if chain.program.legacy { " (iptables-legacy)" } else { "" };
            removed.push(format!("{}{legacy}", chain.place));
        }
    }
    Ok(removed)
}

/// Deletes a rule that was printed as one to add.
async fn delete(program: Program, words: &[String]) -> Result<(), Trouble> {
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let Some(first) = words.first_mut() {
        *first = "-D";
    }
    program.run(&words).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_as_the_program_prints_them() {
        let pass = Pass { mark: 0x2000_0000, interfaces: Vec::new() };
        for (line, is_ours, wanted) in [
            (
                "-A ufw-before-forward -m mark --mark 0x20000000/0x20000000 -m comment --comment portferry -j ACCEPT",
                true,
                true,
            ),
            (
                "-A ufw-before-forward -m comment --comment \"portferry\" -m mark --mark 0x10/0x10 -j ACCEPT",
                true,
                false,
            ),
            ("-A ufw-before-forward -m comment --comment \"portferry and more\" -j ACCEPT", false, false),
            ("-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", false, false),
            ("-N ufw-before-forward", false, false),
        ] {
            let words = ours(line);
            assert_eq!(words.is_some(), is_ours, "{line}");
            assert_eq!(words.is_some_and(|words| is_wanted(&words, &pass)), wanted, "{line}");
        }
    }
}
