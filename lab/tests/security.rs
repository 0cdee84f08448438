//! `docs/security.md` says which test holds which promise: each that it names is there, and no rule of the policy is left out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const CRATES: [&str; 5] = ["wire", "engine", "portferry", "lab", "fuzz"];
/// What stands where there is none.
const NONE: &str = "**no test yet**";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of all tests in a crate, each with the directories and the file, without its ending, that it is in.
fn tests_of(directory: &Path, way: &[String], found: &mut BTreeMap<String, Vec<Vec<String>>>) {
    let entries = std::fs::read_dir(directory).unwrap_or_else(|error| panic!("{directory:?}: {error}"));
    for path in entries.map(|entry| entry.expect("it can be read").path()) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let way = [way, &[name]].concat();
        if path.is_dir() {
            tests_of(&path, &way, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = read(&path);
            let mut lines = text.lines().map(str::trim);
            while let Some(line) = lines.next() {
                // Of proptest's, too, which stand in its macro as they would outside.
                if !(line.starts_with("#[test]") || line.starts_with("#[tokio::test")) {
                    continue;
                }
                let head = lines.find(|line| line.starts_with("fn ") || line.starts_with("async fn "));
                let name = head.and_then(|head| head.split_once("fn ")?.1.split(['(', '<']).next());
                found.entry(name.unwrap_or_default().to_owned()).or_default().push(way.clone());
            }
        }
    }
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// `engine/gena::callstranger` in its parts: the crate, words of the path in their order, the test.
fn reference(word: &str) -> Option<(&str, Vec<&str>, &str)> {
    let (way, name) = word.split_once("::")?;
    let (first, words) = way.split_once('/')?;
    CRATES.contains(&first).then(|| (first, words.split('/').collect(), name))
}

/// Whether the words stand on the way, in their order.
fn leads_by(way: &[String], words: &[&str]) -> bool {
    let mut way = way.iter();
    words.iter().all(|word| way.any(|step| step == word))
}

/// The cells of the rows of the table under this heading.
fn rows<'a>(page: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let (_, section) = page.split_once(heading).unwrap_or_else(|| panic!("no section {heading:?}"));
    let section = section.split("\n## ").next().unwrap_or_default();
    let lines = section.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split(" | ").collect()).collect();
    rows.into_iter().skip(1).collect()
}

#[test]
fn every_test_of_the_page_is_there() {
    let page = read(&root().join("docs/security.md"));
    let mut tests = BTreeMap::new();
    for name in CRATES {
        let mut of_crate = BTreeMap::new();
        for part in
            ["src", "tests"].map(|part| root().join(name).join(part)).iter().filter(|part| part.is_dir())
        {
            tests_of(part, &[], &mut of_crate);
        }
        tests.insert(name, of_crate);
    }
    let references: Vec<_> = quoted(&page).filter_map(|word| Some((word, reference(word)?))).collect();
    assert!(references.len() > 200, "{} are named: is their form another one now?", references.len());
    let missing: Vec<&str> = references
        .iter()
        .filter(|(_, (first, words, name))| {
            let ways = tests[first].get(*name);
            !ways.is_some_and(|ways| ways.iter().any(|way| leads_by(way, words)))
        })
        .map(|(word, _)| *word)
        .collect();
    assert!(missing.is_empty(), "docs/security.md names tests that there are not:\n{}", missing.join("\n"));
}

/// A row that says nothing of tests would look as if it were held.
#[test]
fn every_row_has_a_test_or_says_that_it_has_none() {
    let page = read(&root().join("docs/security.md"));
    let holds = |cell: &str| cell.contains(NONE) || quoted(cell).any(|word| reference(word).is_some());
    for heading in [
        "\n## Promises\n",
        "\n## Bad input\n",
        "\n## The policy, row by row\n",
        "\n## What happened to others\n",
    ] {
        let rows = rows(&page, heading);
        assert!(rows.len() > 10, "{heading:?}: {} rows", rows.len());
        for row in rows.iter().filter(|row| !row.last().is_some_and(|cell| holds(cell))) {
            // The last promise is a section of its own.
            assert_eq!(row.last(), Some(&"[Privilege](#privilege)"), "{row:?}");
        }
    }
}

#[test]
fn every_rule_of_the_policy_has_its_row() {
    let page = read(&root().join("docs/security.md"));
    let policy = read(&root().join("docs/security-policy.md"));
    let rules = rows(&policy, "# Secure by default");
    let held = rows(&page, "\n## The policy, row by row\n");
    let of = |rule: &str| held.iter().filter(|row| rule.starts_with(row[0])).count();
    let wrong: Vec<_> = rules.iter().map(|row| row[0]).filter(|rule| of(rule) != 1).collect();
    assert!(wrong.is_empty(), "not one row in docs/security.md for each of: {wrong:#?}");
    assert_eq!(held.len(), rules.len(), "docs/security.md has a row of a rule that is gone");
}
