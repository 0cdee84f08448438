//! The page, in Markdown.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::reasons::{Reason, Why};
use super::references::{RowId, Series};
use super::rows::{self, Row};
use super::scan::{Findings, Place};

const INTRODUCTION: &str = "\
# Conformance

What RFC 6970 and our own decisions ask, where it is done, and which test holds it. Rows are those of
[spec/iwf.md](spec/iwf.md) (the RFC as a checklist, its traps, the drafts and slides before it) and of
[decisions.md](decisions.md); here they are shortened, there is the whole text.

This page is made from the tests: the comment above a test, and the comments of a [scenario](../lab/scenarios/), name the
rows that they hold; comments in the code name the rows that it sees to. CI fails when a row has neither a test nor a
reason ([the list](../lab/src/conformance/reasons.rs)), when a row has a test and a reason against it, when a comment names
a row that there is not, and when this page is out of date. `PF_BLESS=1 cargo test -p lab --test conformance` writes it anew.
";

/// Heading, words before the table, and the table's head.
fn section(series: Series) -> (&'static str, &'static str, &'static str) {
    match series {
        Series::Requirement => (
            "Requirements of RFC 6970",
            "[spec/iwf.md, section 1](spec/iwf.md#1-requirement-checklist). \"—\": the RFC states it without a keyword.",
            "| Row | Level | Requirement | Implemented in | Held by |\n|---|---|---|---|---|\n",
        ),
        Series::Trap => (
            "Traps and gaps of RFC 6970",
            "[spec/iwf.md, section 4](spec/iwf.md#4-what-rfc-6970-leaves-out-traps-and-gaps).",
            "| Row | What is left out | Implemented in | Held by |\n|---|---|---|---|\n",
        ),
        Series::Seed => (
            "The seeds of RFC 6970: draft -00 and the slides",
            "[spec/iwf.md, section 5](spec/iwf.md#5-the-seeds-draft--00-oct-2010-and-slides-of--02-ietf-81-july-2011-v).",
            "| Row | Seed | For us | Implemented in | Held by |\n|---|---|---|---|---|\n",
        ),
        Series::Decision => (
            "Decisions",
            "[decisions.md](decisions.md).",
            "| Decision | What we do | Implemented in | Held by |\n|---|---|---|---|\n",
        ),
    }
}

/// The whole page.
pub(super) fn write(rows: &[Row], found: &Findings, reasons: &BTreeMap<RowId, &Reason>) -> String {
    let mut page = format!("{INTRODUCTION}\n{}\n", summary(rows, reasons));
    for series in [Series::Requirement, Series::Trap, Series::Seed, Series::Decision] {
        let (heading, words, head) = section(series);
        write!(page, "\n## {heading}\n\n{words}\n\n{head}").expect("it is written to memory");
        for row in rows.iter().filter(|row| row.id.series == series) {
            let name = match series {
                Series::Decision => row.id.number.to_string(),
                _ => row.id.to_string(),
            };
            let mut cells = vec![name];
            if series == Series::Requirement {
                cells.push(row.level.clone());
            }
            cells.push(rows::short(&row.requirement));
            if series == Series::Seed {
                cells.push(rows::short(&row.ours));
            }
            cells.push(links(found.code.get(&row.id)));
            cells.push(held_by(row.id, found, reasons));
            writeln!(page, "| {} |", cells.join(" | ")).expect("it is written to memory");
        }
    }
    page
}

fn summary(rows: &[Row], reasons: &BTreeMap<RowId, &Reason>) -> String {
    let count = |why| rows.iter().filter(|row| reasons.get(&row.id).map(|r| r.why) == why).count();
    format!(
        "**{} rows: {} held by tests, {} held in part, {} not yet, {} out of scope.**",
        rows.len(),
        count(None),
        count(Some(Why::Part)),
        count(Some(Why::NotYet)),
        count(Some(Why::OutOfScope)),
    )
}

fn held_by(id: RowId, found: &Findings, reasons: &BTreeMap<RowId, &Reason>) -> String {
    let tests = links(found.tests.get(&id));
    match reasons.get(&id) {
        None => tests,
        Some(Reason { why: Why::Part, text, .. }) => format!("{tests}<br>*Not yet:* {text}"),
        Some(Reason { why: Why::NotYet, text, .. }) => format!("*Not yet:* {text}"),
        Some(Reason { why: Why::OutOfScope, text, .. }) => format!("*Out of scope:* {text}"),
    }
}

/// Links from `docs/`.
fn links(places: Option<&Vec<Place>>) -> String {
    let link = |place: &Place| format!("[{}](../{})", place.name, place.path);
    match places {
        Some(places) => places.iter().map(link).collect::<Vec<_>>().join(", "),
        None => "—".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::references;
    use super::*;

    #[test]
    fn a_page_has_a_line_for_each_row() {
        let id = |text: &str| references::find(text)[0];
        let row = |name: &str, level: &str, ours: &str| Row {
            id: id(name),
            level: level.into(),
            requirement: "Do it.".into(),
            ours: ours.into(),
        };
        let rows =
            [row("R-1", "MUST", ""), row("T-1", "", ""), row("D-1", "", "yes"), row("decision 1", "", "")];
        let place = |name: &str, path: &str| vec![Place { name: name.into(), path: path.into() }];
        let found = Findings {
            tests: BTreeMap::from([
                (id("R-1"), place("one", "engine/src/a/tests.rs")),
                (id("decision 1"), place("two.txt", "lab/scenarios/two.txt")),
            ]),
            code: BTreeMap::from([(id("R-1"), place("engine/a.rs", "engine/src/a.rs"))]),
            mentions: Vec::new(),
        };
        let reasons = [
            Reason { why: Why::NotYet, rows: "T-1", text: "later." },
            Reason { why: Why::OutOfScope, rows: "D-1", text: "no." },
            Reason { why: Why::Part, rows: "decision 1", text: "half." },
        ];
        let by_row = reasons.iter().map(|reason| (id(reason.rows), reason)).collect();
        let page = write(&rows, &found, &by_row);
        for line in [
            "**4 rows: 1 held by tests, 1 held in part, 1 not yet, 1 out of scope.**",
            "| R-1 | MUST | Do it. | [engine/a.rs](../engine/src/a.rs) | [one](../engine/src/a/tests.rs) |",
            "| T-1 | Do it. | — | *Not yet:* later. |",
            "| D-1 | Do it. | yes | — | *Out of scope:* no. |",
            "| 1 | Do it. | — | [two.txt](../lab/scenarios/two.txt)<br>*Not yet:* half. |",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
    }
}
