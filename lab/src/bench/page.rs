//! Tables and pictures of docs/performance.md.

use std::fmt::Write as _;

use super::Outcome;

/// What the program writes stands between these two lines of docs/performance.md.
pub const BEGIN: &str = "<!-- lab-bench writes from here -->\n";
/// See [`BEGIN`].
pub const END: &str = "<!-- lab-bench writes to here -->\n";

/// A page with that part anew; `None` when it has none.
#[must_use]
pub fn replace(page: &str, tables: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{tables}{END}{after}"))
}

/// What is written so far. Everything goes to standard output, too.
#[derive(Default)]
pub(super) struct Page {
    text: String,
    pictures: Vec<(&'static str, String)>,
}

impl Page {
    /// The title of a table, what it says, and its head.
    pub(super) fn table(&mut self, title: &str, says: &str, head: &[&str]) {
        let columns = "---:|".repeat(head.len().saturating_sub(1));
        self.write(&format!("\n### {title}\n\n{says}\n\n| {} |\n|---|{columns}\n", head.join(" | ")));
    }

    pub(super) fn row(&mut self, name: &str, cells: &[String]) {
        self.write(&format!("| {name} | {} |\n", cells.join(" | ")));
    }

    pub(super) fn picture(&mut self, name: &'static str, title: &str, svg: String) {
        self.write(&format!("\n![{title}]({name})\n"));
        self.pictures.push((name, svg));
    }

    fn write(&mut self, text: &str) {
        print!("{text}");
        let _ = self.text.write_str(text);
    }

    pub(super) fn into_outcome(self) -> Outcome {
        Outcome { page: self.text, pictures: self.pictures }
    }
}

/// How many times as much.
pub(super) fn times(much: f64, little: f64) -> String {
    let times = much / little.max(1e-12);
    if times < 10.0 { format!("× {times:.2}") } else { format!("× {times:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_between_the_marks_is_replaced() {
        let page = format!("a\n{BEGIN}old\n{END}b\n");
        assert_eq!(replace(&page, "new\n"), Some(format!("a\n{BEGIN}new\n{END}b\n")));
        assert_eq!(replace("a\n", "new\n"), None);
    }

    #[test]
    fn a_table_is_markdown() {
        let mut page = Page::default();
        page.table("Title", "Says.", &["", "one", "two"]);
        page.row("x", &["1".to_owned(), "2".to_owned()]);
        let text = page.into_outcome().page;
        assert!(text.ends_with("|  | one | two |\n|---|---:|---:|\n| x | 1 | 2 |\n"), "{text}");
        assert_eq!((times(3.0, 2.0), times(300.0, 2.0)), ("× 1.50".to_owned(), "× 150".to_owned()));
    }
}
