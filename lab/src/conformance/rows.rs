//! The rows: the tables and lists of `docs/spec/iwf.md` and `docs/decisions.md`.

use super::references::{self, RowId, Series};

/// One row.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Row {
    /// Its name.
    pub(super) id: RowId,
    /// MUST, SHOULD, MAY or "—"; empty where the list has no levels.
    pub(super) level: String,
    /// What it asks, in Markdown; for a seed, what the seed asks.
    pub(super) requirement: String,
    /// What we make of a seed; empty for all others.
    pub(super) ours: String,
}

/// R-, T- and D-: table rows that begin with the name, and list items that begin with it in bold.
pub(super) fn of_rfc_6970(text: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    for block in blocks(text) {
        if let Some(cells) = cells(&block) {
            let Some(id) = cells.first().and_then(|name| only(name)) else { continue };
            match (id.series, &cells[1..]) {
                (Series::Requirement, [level, requirement, _section]) => rows.push(Row {
                    id,
                    level: (*level).to_owned(),
                    requirement: (*requirement).to_owned(),
                    ours: String::new(),
                }),
                (Series::Seed, [seed, _rfc, ours]) => rows.push(Row {
                    id,
                    level: String::new(),
                    requirement: (*seed).to_owned(),
                    ours: (*ours).to_owned(),
                }),
                _ => {}
            }
        } else if let Some(item) = block.strip_prefix("- **")
            && let Some((name, rest)) = item.split_once(' ')
            && let Some(id) = only(name)
        {
            rows.push(Row {
                id,
                level: String::new(),
                requirement: format!("**{rest}"),
                ours: String::new(),
            });
        }
    }
    rows.sort_by_key(|row| row.id);
    rows
}

/// The numbered items.
pub(super) fn of_decisions(text: &str) -> Vec<Row> {
    let row = |block: String| {
        let (number, requirement) = block.split_once(". ")?;
        Some(Row {
            id: RowId { series: Series::Decision, number: number.parse().ok()? },
            level: String::new(),
            requirement: requirement.to_owned(),
            ours: String::new(),
        })
    };
    blocks(text).into_iter().filter_map(row).collect()
}

/// Numbers that are missing or doubled: then the documents are not read as they are meant.
pub(super) fn gaps(rows: &[Row]) -> Vec<String> {
    let mut faults = Vec::new();
    for series in [Series::Requirement, Series::Trap, Series::Seed, Series::Decision] {
        let numbers: Vec<u16> = rows.iter().filter(|r| r.id.series == series).map(|r| r.id.number).collect();
        let expected: Vec<u16> = (1..).take(numbers.len()).collect();
        if numbers.is_empty() || numbers != expected {
            faults.push(format!("{series:?}: the rows are not numbered 1, 2, 3, …: {numbers:?}"));
        }
    }
    faults
}

/// `text` as one line, as short as it makes sense: the first sentence, or two when that says little, and the title before
/// it; cut at the end of a clause when it is longer than a table bears.
pub(super) fn short(text: &str) -> String {
    const LEAST: usize = 50;
    const MOST: usize = 150;
    let (title, rest) = match text.strip_prefix("**").and_then(|text| text.split_once("**")) {
        Some((title, rest)) => (format!("**{title}**"), rest),
        None => (String::new(), text),
    };
    let first = sentence(rest);
    let rest = if first < LEAST { &rest[..first + sentence(&rest[first..])] } else { &rest[..first] };
    let room = MOST.saturating_sub(title.chars().count());
    let rest = match rest.char_indices().nth(room) {
        None => rest.to_owned(),
        Some((end, _)) => {
            let cut = &rest[..end];
            let clause = cut.rfind([',', ';', ':', '(']).filter(|&at| at > end / 2);
            let at = clause.or_else(|| cut.rfind(' ')).unwrap_or(end);
            // Half a piece of code, or of what is bold, would run on to the end of the table.
            let cut = cut[..at].trim_end();
            let whole = ["`", "**"].into_iter().fold(cut, |cut, mark| match cut.rfind(mark) {
                Some(at) if cut.matches(mark).count() % 2 == 1 => &cut[..at],
                _ => cut,
            });
            let open = whole.matches('(').count() > whole.matches(')').count();
            let aside = whole.rfind('(').filter(|&at| open && at > whole.len() / 2);
            format!("{} …", whole[..aside.unwrap_or(whole.len())].trim_end())
        }
    };
    format!("{title}{rest}").replace('|', "\\|")
}

/// Where the first sentence ends: at a stop before a capital letter or a sign, so not at "e.g. 60 s".
fn sentence(text: &str) -> usize {
    let ends = |at: &usize| {
        let next = text[at + 1..].trim_start().chars().next();
        // A stop right at the beginning is that of the title.
        *at > 1
            && text[at + 1..].starts_with(' ')
            && next.is_some_and(|c| !c.is_lowercase() && !c.is_ascii_digit())
    };
    text.match_indices('.').map(|(at, _)| at).find(ends).map_or(text.len(), |at| at + 1)
}

/// Table rows, and list items with their lines of continuation joined.
fn blocks(text: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    let mut in_item = false;
    for line in text.lines() {
        if in_item && line.starts_with(' ') && !line.trim().is_empty() {
            let item = blocks.last_mut().expect("an item has begun");
            item.push(' ');
            item.push_str(line.trim());
        } else {
            in_item = line.starts_with("- ") || line.starts_with(|c: char| c.is_ascii_digit());
            blocks.push(line.to_owned());
        }
    }
    blocks
}

fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(str::trim).collect())
}

/// The row that is all of `name`.
fn only(name: &str) -> Option<RowId> {
    match references::find(name)[..] {
        [id] if id.to_string() == name => Some(id),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_lists_are_read() {
        let text = "\
## 1. Title

| ID | Level | Requirement | RFC |
|---|---|---|---|
| R-1 | MUST | Do this (R-2). | 5.1 |
| R-2 | — | Do that. | 5.2 |

| PCP | R-1 |
- R-7 is mentioned here only.
- **T-1 A title.** Text
  that goes on.
- **T-2 4 = 5** text.

| D-1 | A seed | Something | Ours |
";
        let rows = of_rfc_6970(text);
        let shown: Vec<[String; 4]> = rows
            .iter()
            .map(|r| [r.id.to_string(), r.level.clone(), r.requirement.clone(), r.ours.clone()])
            .collect();
        assert_eq!(
            shown,
            [
                ["R-1", "MUST", "Do this (R-2).", ""],
                ["R-2", "—", "Do that.", ""],
                ["T-1", "", "**A title.** Text that goes on.", ""],
                ["T-2", "", "**4 = 5** text.", ""],
                ["D-1", "", "A seed", "Ours"],
            ]
        );
        let decisions = of_decisions("# Title\n\n1. **One.** A\n   b.\n2. Two.\n\n## More\n\n3. Three.\n");
        let shown: Vec<&str> = decisions.iter().map(|r| r.requirement.as_str()).collect();
        assert_eq!(shown, ["**One.** A b.", "Two.", "Three."]);
        let all = [rows.clone(), decisions.clone()].concat();
        assert_eq!(gaps(&all), [] as [&str; 0]);
        assert_eq!(gaps(&all[1..]).len(), 1, "R-1 is missing");
        assert_eq!(gaps(&decisions).len(), 3);
    }

    #[test]
    fn requirements_are_shortened() {
        for (text, expected) in [
            ("One sentence. Another one. A third one.", "One sentence. Another one."),
            (
                "This is quite a long sentence, and it will do alone. Another one.",
                "This is quite a long sentence, and it will do alone.",
            ),
            (
                "A short lifetime (e.g. 60 s; a | b) counts, and no other one. No.",
                "A short lifetime (e.g. 60 s; a \\| b) counts, and no other one.",
            ),
            ("**Title.** First one. Second one. No.", "**Title.** First one. Second one."),
            ("**4294967296** = 2³² does not fit. Use less.", "**4294967296** = 2³² does not fit. Use less."),
        ] {
            assert_eq!(short(text), expected);
        }
        let long = format!("{}, and then `code that {}`", "word ".repeat(20), "goes on ".repeat(20));
        let cut = short(&long);
        assert!(short(&"an aside (and ".repeat(20)).ends_with("aside …"));
        assert!(cut.ends_with(" …") && cut.chars().count() <= 152 && !cut.contains('`'), "{cut}");
    }
}
