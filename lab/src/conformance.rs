//! Which test holds which row: `docs/conformance.md`, made from the rows themselves (`docs/spec/iwf.md`,
//! `docs/decisions.md`), from the comments of the tests and scenarios that name them, and from the comments of the
//! code. What no test holds has a reason in `reasons`. The page never says more than the tests do: a row that has
//! neither, and a name that is no row, are faults.

mod page;
mod reasons;
mod references;
mod rows;
mod scan;
mod source;

use std::collections::BTreeMap;
use std::path::Path;

use reasons::{REASONS, Reason, Why};
use references::RowId;
use rows::Row;
use scan::Findings;

/// What the repository says about the rows.
#[derive(Debug)]
pub struct Report {
    /// The text of `docs/conformance.md`.
    pub page: String,
    /// Rows without a test or a reason, reasons beside the truth, and names that are no rows; a line each.
    pub faults: Vec<String>,
}

/// Reads the repository whose top directory is `root`.
///
/// # Panics
///
/// When a file that every copy of the repository has cannot be read.
#[must_use]
pub fn report(root: &Path) -> Report {
    let read = |path: &str| {
        std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let mut rows = rows::of_rfc_6970(&read("docs/spec/iwf.md"));
    rows.extend(rows::of_decisions(&read("docs/decisions.md")));
    let found = scan::repository(root);
    let (reasons, mut faults) = judge(&rows, &found, REASONS);
    faults.extend(rows::gaps(&rows));
    Report { page: page::write(&rows, &found, &reasons), faults }
}

/// The reasons by row, and everything that is wrong.
fn judge<'a>(
    rows: &[Row],
    found: &Findings,
    reasons: &'a [Reason],
) -> (BTreeMap<RowId, &'a Reason>, Vec<String>) {
    let mut faults = Vec::new();
    let known = |id: RowId| rows.iter().any(|row| row.id == id);
    for mention in found.mentions.iter().filter(|mention| !known(mention.row)) {
        faults.push(format!("{}:{}: there is no {}", mention.path, mention.line, mention.row));
    }
    let mut by_row = BTreeMap::new();
    for reason in reasons {
        let ids = references::find(reason.rows);
        if ids.is_empty() {
            faults.push(format!("the reasons name no row by `{}`", reason.rows));
        }
        for id in ids {
            if !known(id) {
                faults.push(format!("the reasons name {id}, which there is not"));
            }
            if by_row.insert(id, reason).is_some() {
                faults.push(format!("{id} has two reasons"));
            }
        }
    }
    for Row { id, .. } in rows {
        let tested = found.tests.contains_key(id);
        match by_row.get(id).map(|reason| reason.why) {
            None if !tested => faults.push(format!("{id}: no test names it, and no reason is given")),
            Some(Why::Part) if !tested => faults.push(format!("{id}: it is held in part, but by no test")),
            Some(Why::OutOfScope | Why::NotYet) if tested => {
                let test = &found.tests[id].first().expect("there is one");
                faults.push(format!("{id}: {} holds it, so the reason against it goes", test.name));
            }
            _ => {}
        }
    }
    (by_row, faults)
}

#[cfg(test)]
mod tests {
    use super::scan::{Mention, Place};
    use super::*;

    fn id(text: &str) -> RowId {
        references::find(text)[0]
    }

    fn row(text: &str) -> Row {
        Row { id: id(text), level: String::new(), requirement: text.to_owned(), ours: String::new() }
    }

    fn held(text: &str) -> Findings {
        let place = Place { name: "a_test".into(), path: "a.rs".into() };
        let mention = Mention { row: id(text), path: "a.rs".into(), line: 7 };
        Findings {
            tests: BTreeMap::from([(id(text), vec![place])]),
            mentions: vec![mention],
            ..Findings::default()
        }
    }

    fn faults(rows: &[Row], found: &Findings, reasons: &[Reason]) -> Vec<String> {
        judge(rows, found, reasons).1
    }

    #[test]
    fn a_row_has_a_test_or_a_reason_and_never_both() {
        let rows = [row("R-1")];
        let because = |why| [Reason { why, rows: "R-1", text: "because" }];
        let nothing = Findings::default();
        assert_eq!(faults(&rows, &held("R-1"), &[]), [] as [&str; 0]);
        assert_eq!(faults(&rows, &nothing, &[]), ["R-1: no test names it, and no reason is given"]);
        for why in [Why::OutOfScope, Why::NotYet] {
            assert_eq!(faults(&rows, &nothing, &because(why)), [] as [&str; 0]);
            let wrong = ["R-1: a_test holds it, so the reason against it goes"];
            assert_eq!(faults(&rows, &held("R-1"), &because(why)), wrong);
        }
        assert_eq!(faults(&rows, &held("R-1"), &because(Why::Part)), [] as [&str; 0]);
        let wrong = ["R-1: it is held in part, but by no test"];
        assert_eq!(faults(&rows, &nothing, &because(Why::Part)), wrong);
    }

    #[test]
    fn names_that_are_no_rows_are_found() {
        let rows = [row("R-1")];
        let reason = |rows| Reason { why: Why::OutOfScope, rows, text: "because" };
        let both = [reason("R-1")];
        assert_eq!(faults(&rows, &held("R-77"), &both), ["a.rs:7: there is no R-77"]);
        let nothing = Findings::default();
        let two = [reason("R-1"), reason("T-1"), reason("R-1"), reason("R1")];
        let wrong = [
            "the reasons name T-1, which there is not",
            "R-1 has two reasons",
            "the reasons name no row by `R1`",
        ];
        assert_eq!(faults(&rows, &nothing, &two), wrong);
    }
}
