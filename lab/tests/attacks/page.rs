//! `docs/attacks.md`: what stands between the marks of a section is made of its rows.

use std::fmt::Write as _;
use std::path::Path;

use super::Row;

/// Compares the section of that title, or writes it anew where there are answers of `other`; true when it is out of date.
pub(crate) fn section(title: &str, rows: &[Row], other: Option<&[String]>) -> bool {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/attacks.md");
    let page = std::fs::read_to_string(&path).expect("docs/attacks.md is there");
    let (begin, end) = (format!("<!-- begin {title} -->\n"), format!("<!-- end {title} -->"));
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("no {begin}"));
    let (old, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end}"));
    let noted = |nth: usize| match other {
        Some(answers) => cell(&answers[nth]),
        // What is there already; its cells are the last ones.
        None => {
            let line = old.lines().nth(nth + 2).unwrap_or_default();
            let cells: Vec<&str> = line.trim_end_matches(" |").split(" | ").collect();
            cells.last().copied().unwrap_or_default().to_owned()
        }
    };
    let mut new = "| attack | sent | portferry | counter | miniupnpd |\n|---|---|---|---|---|\n".to_owned();
    for (nth, row) in rows.iter().enumerate() {
        let counter = row.counter.trim_start_matches('/').replace('/', ".");
        let counter = if counter.is_empty() { "–".to_owned() } else { format!("`{counter}`") };
        let _ = writeln!(
            new,
            "| {} | {} | {} | {counter} | {} |",
            cell(row.name),
            cell(row.sent),
            cell(row.answer),
            noted(nth)
        );
    }
    if other.is_some() {
        std::fs::write(&path, format!("{before}{begin}{new}{end}{after}")).expect("docs/ can be written");
        return false;
    }
    new != old
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")
}
