//! The whole repository: which test, scenario and file of code names which row.

use std::collections::BTreeMap;
use std::path::Path;

use super::references::{self, RowId};
use super::source::{self, Comment};

/// A test, a scenario or a file.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Place {
    /// What it is called.
    pub(super) name: String,
    /// Its file, from the repository's top.
    pub(super) path: String,
}

/// A row's name somewhere, to be checked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Mention {
    pub(super) row: RowId,
    pub(super) path: String,
    pub(super) line: usize,
}

/// Everything that names rows.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Findings {
    /// The tests and scenarios that hold a row.
    pub(super) tests: BTreeMap<RowId, Vec<Place>>,
    /// The files whose code sees to it.
    pub(super) code: BTreeMap<RowId, Vec<Place>>,
    /// Every name of a row in any comment, and in the name of any test.
    pub(super) mentions: Vec<Mention>,
}

/// What is shipped; the other crates are tests as a whole.
const SHIPPED: [&str; 3] = ["wire", "engine", "portferry"];
const CRATES: [&str; 5] = ["wire", "engine", "portferry", "lab", "fuzz"];
/// These sources speak about rows that there are not.
const SELF: &str = "lab/src/conformance";

/// Reads all sources and scenarios under `root`.
pub(super) fn repository(root: &Path) -> Findings {
    let mut found = Findings::default();
    for name in CRATES {
        for path in files(root, name, "rs").into_iter().filter(|path| !path.starts_with(SELF)) {
            found.rust(&path, &read(root, &path));
        }
    }
    for path in files(root, "lab/scenarios", "txt") {
        found.scenario(&path, &read(root, &path));
    }
    found
}

impl Findings {
    fn rust(&mut self, path: &str, text: &str) {
        let file = source::read(text);
        for test in &file.tests {
            let by_name = references::find_in_name(&test.name);
            for &row in &by_name {
                self.mentions.push(Mention { row, path: path.to_owned(), line: test.line });
            }
            for row in references::find(&test.comment).into_iter().chain(by_name) {
                note(&mut self.tests, row, Place { name: test.name.clone(), path: path.to_owned() });
            }
        }
        if is_shipped(path) {
            for row in file.code.iter().flat_map(|comment| references::find(&comment.text)) {
                note(
                    &mut self.code,
                    row,
                    Place { name: path.replacen("/src/", "/", 1), path: path.to_owned() },
                );
            }
        }
        self.mention(path, file.code.iter().chain(&file.test_code));
    }

    fn scenario(&mut self, path: &str, text: &str) {
        let comments = scenario_comments(text);
        let name = path.rsplit('/').next().expect("split() has one piece at least");
        for row in comments.iter().flat_map(|comment| references::find(&comment.text)) {
            note(&mut self.tests, row, Place { name: name.to_owned(), path: path.to_owned() });
        }
        self.mention(path, &comments);
    }

    fn mention<'a>(&mut self, path: &str, comments: impl IntoIterator<Item = &'a Comment>) {
        for comment in comments {
            for row in references::find(&comment.text) {
                self.mentions.push(Mention { row, path: path.to_owned(), line: comment.line });
            }
        }
    }
}

/// Each place once for each row, in the order of the files.
fn note(places: &mut BTreeMap<RowId, Vec<Place>>, row: RowId, place: Place) {
    let places = places.entry(row).or_default();
    if !places.contains(&place) {
        places.push(place);
    }
}

/// Is what this file has outside of `#[cfg(test)]` part of the daemon?
fn is_shipped(path: &str) -> bool {
    let is_test = |part: &str| matches!(part, "tests" | "tests.rs");
    SHIPPED.iter().any(|name| path.starts_with(&format!("{name}/src/"))) && !path.split('/').any(is_test)
}

/// What stands behind a `#` outside of quotes; lines that hold nothing else and follow each other are one comment.
fn scenario_comments(text: &str) -> Vec<Comment> {
    let mut comments: Vec<Comment> = Vec::new();
    let mut whole_before = false;
    for (i, line) in text.lines().enumerate() {
        let mut in_quotes = false;
        let at = line.find(|c| {
            in_quotes ^= c == '"';
            c == '#' && !in_quotes
        });
        let whole = at == Some(0);
        if let Some(at) = at {
            let text = &line[at + 1..];
            match comments.last_mut() {
                Some(last) if whole && whole_before => last.text.push_str(&format!("\n{text}")),
                _ => comments.push(Comment { line: i + 1, text: text.to_owned() }),
            }
        }
        whole_before = whole;
    }
    comments
}

fn read(root: &Path, path: &str) -> String {
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The files under a directory, sorted, as paths from `root` with slashes.
fn files(root: &Path, directory: &str, extension: &str) -> Vec<String> {
    let mut found = Vec::new();
    let entries =
        std::fs::read_dir(root.join(directory)).unwrap_or_else(|error| panic!("{directory}: {error}"));
    for entry in entries {
        let entry = entry.expect("the directory can be read");
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{directory}/{name}");
        if entry.file_type().expect("the directory can be read").is_dir() {
            if name != "target" {
                found.extend(files(root, &path, extension));
            }
        } else if Path::new(&name).extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_code_is_told_from_tests() {
        for (path, shipped) in [
            ("engine/src/table.rs", true),
            ("engine/src/gateway/tests.rs", false),
            ("engine/src/gateway/tests/life.rs", false),
            ("engine/tests/purity.rs", false),
            ("lab/src/sim.rs", false),
        ] {
            assert_eq!(is_shipped(path), shipped, "{path}");
        }
    }

    #[test]
    fn a_file_names_rows_by_its_tests_and_by_its_code() {
        let mut found = Findings::default();
        let text = "//! R-1.\n#[cfg(test)]\nmod tests {\n    /// R-2.\n    #[test]\n    fn t_3_holds() {}\n    // R-4\n}\n";
        found.rust("engine/src/a.rs", text);
        let names = |places: &BTreeMap<RowId, Vec<Place>>| -> Vec<String> {
            places.iter().map(|(row, places)| format!("{row} {}", places[0].name)).collect()
        };
        assert_eq!(names(&found.code), ["R-1 engine/a.rs"]);
        assert_eq!(names(&found.tests), ["R-2 t_3_holds", "T-3 t_3_holds"]);
        let mentioned: Vec<(String, usize)> =
            found.mentions.iter().map(|m| (m.row.to_string(), m.line)).collect();
        let expected = [("T-3", 6), ("R-1", 1), ("R-2", 4), ("R-4", 7)];
        assert_eq!(mentioned, expected.map(|(row, line)| (row.to_owned(), line)));
    }

    #[test]
    fn a_scenario_names_rows_at_its_head_and_between_its_lines() {
        let text =
            "# A story (decisions 1,\n# 2 and 3).\n\nhost app # R-1\napp: says desc=\"# R-2\" # T-1\n# R-3\n";
        let shown: Vec<(usize, String)> =
            scenario_comments(text).into_iter().map(|c| (c.line, c.text.trim().to_owned())).collect();
        let expected = [(1, "A story (decisions 1,\n 2 and 3)."), (4, "R-1"), (5, "T-1"), (6, "R-3")];
        assert_eq!(shown, expected.map(|(line, text)| (line, text.to_owned())));
    }
}
