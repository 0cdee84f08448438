//! The report for people: a line a finding, what to do beneath, and the faults once more at the end.

use super::finding::{Finding, Report, Verdict};
use crate::table::printable;

/// Columns.
const WIDTH: usize = 96;
/// Before a finding's text.
const INDENT: usize = 9;

/// The whole report; `colours` for a terminal.
pub(crate) fn render(report: &Report, colours: bool) -> String {
    let mut out = format!("portferry doctor {}, {}\n", report.version, printable(&report.configuration));
    let mut section = None;
    for finding in &report.findings {
        if section != Some(finding.section) {
            section = Some(finding.section);
            out += &format!("\n{}\n", finding.section.title());
        }
        out += &lines(&label(finding.verdict, colours), &finding.seen);
        if let Some(todo) = &finding.todo {
            out += &lines(&format!("{:>width$}", "-> ", width = INDENT), todo);
        }
        for command in &finding.commands {
            // In one line, to be copied.
            out += &format!("{:>width$}{}\n", "$ ", printable(command), width = INDENT + 2);
        }
    }
    out += &summary(report, colours);
    out
}

fn summary(report: &Report, colours: bool) -> String {
    let (faults, warnings) = (report.count(Verdict::Fault), report.count(Verdict::Warning));
    let plural = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let mut out = match (faults, warnings) {
        (0, 0) => "\nNo fault and no warning.\n".to_owned(),
        _ => format!("\n{}, {}\n", plural(faults, "fault"), plural(warnings, "warning")),
    };
    for verdict in [Verdict::Fault, Verdict::Warning] {
        for Finding { id, seen, .. } in report.findings.iter().filter(|finding| finding.verdict == verdict) {
            out += &lines(&label(verdict, colours), &format!("{id}: {seen}"));
        }
    }
    if report.count(Verdict::Fault) + report.count(Verdict::Warning) > 0 {
        out += "docs/doctor.md explains each.\n";
    }
    out
}

fn label(verdict: Verdict, colours: bool) -> String {
    let (word, colour) = match verdict {
        Verdict::Good => ("ok", "32"),
        Verdict::Note => ("note", "36"),
        Verdict::Skipped => ("skipped", "90"),
        Verdict::Warning => ("WARNING", "33;1"),
        Verdict::Fault => ("FAULT", "31;1"),
    };
    let padded = format!("{word:<width$}", width = INDENT - 1);
    if colours { format!("\u{1b}[{colour}m{padded}\u{1b}[0m ") } else { format!("{padded} ") }
}

/// `first`, then the text in lines that fit, each under the other.
fn lines(first: &str, text: &str) -> String {
    let mut out = first.to_owned();
    let mut column = INDENT;
    for (n, word) in printable(text).split(' ').enumerate() {
        let len = word.chars().count();
        if n > 0 && column + 1 + len > WIDTH {
            out.push('\n');
            out += &" ".repeat(INDENT);
            column = INDENT;
        } else if n > 0 {
            out.push(' ');
            column += 1;
        }
        out += word;
        column += len;
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_stand_out_and_are_repeated() {
        let fault = Finding::new("forwarding-off", "word ".repeat(30).trim_end())
            .todo("switch it on")
            .command("sysctl -w net.ipv4.ip_forward=1");
        let good = Finding::new("configuration-good", "it is \u{1b}[31mgood");
        let report = Report::new("/etc/x".to_owned(), vec![fault, good]);
        let text = render(&report, false);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.starts_with("portferry doctor "), "{text}");
        let good = text.find("ok       it is \u{fffd}[31mgood").unwrap();
        let fault = text.find("FAULT    word word").unwrap();
        assert!(good < fault, "in the order of sections: {text}");
        assert!(
            text.contains("\n      -> switch it on\n         $ sysctl -w net.ipv4.ip_forward=1\n"),
            "{text}"
        );
        assert!(text.contains("1 fault, 0 warnings\nFAULT    forwarding-off: word"), "{text}");
        assert!(render(&report, true).contains("\u{1b}[31;1mFAULT   \u{1b}[0m word"));
    }
}
