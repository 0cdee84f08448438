//! Invariant: `wire` and `engine` name no clock, socket, file, thread, environment or random source. A lint sees the
//! calls that it lists; this sees every word, in both crates.

use std::fs;
use std::path::{Path, PathBuf};

/// What has no business in a pure crate: a path or a word, and why.
const FORBIDDEN: [(&str, &str); 27] = [
    ("std::time as", "a clock by another name"),
    ("std::time::Instant", "a clock"),
    ("std::time::SystemTime", "a clock"),
    ("SystemTime", "a clock"),
    ("UNIX_EPOCH", "a clock"),
    ("Instant::now", "a clock"),
    ("elapsed", "a clock"),
    ("UdpSocket", "a socket"),
    ("TcpStream", "a socket"),
    ("TcpListener", "a socket"),
    ("UnixStream", "a socket"),
    ("UnixDatagram", "a socket"),
    ("ToSocketAddrs", "name resolution"),
    ("std::fs", "a file"),
    ("std::io", "a file"),
    ("File", "a file"),
    ("stdin", "a file"),
    ("println", "a file"),
    ("eprintln", "a file"),
    ("std::thread", "a thread"),
    ("std::sync", "a thread"),
    ("std::process", "the process"),
    ("std::env", "the environment"),
    ("getrandom", "a random source"),
    ("RandomState", "a random source"),
    ("HashMap", "an order that is random"),
    ("HashSet", "an order that is random"),
];

/// How an inline module of tests begins, and how it ends. Nothing follows it (see [`after_tests`]).
const TESTS: (&str, &str) = ("#[cfg(test)]\nmod tests {", "\n}\n");

/// The code of a source file: comments, the contents of strings and everything from `#[cfg(test)] mod` with a body on
/// are blanked; lines stay where they are.
fn code(text: &str) -> String {
    let text = text.find(TESTS.0).map_or(text, |at| &text[..at]);
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |at| at + 2)
        } else if let Some(end) = end_of_raw_string(rest).filter(|_| !code.ends_with(is_word)) {
            end
        } else if rest.starts_with('"') {
            end_of_string(rest)
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            rest[1..].find('\'').map_or(rest.len(), |at| at + 3).min(rest.len())
        } else {
            0
        };
        if skipped == 0 {
            code.push(next);
            rest = &rest[next.len_utf8()..];
        } else {
            code.extend(rest[..skipped].chars().filter(|&skipped| skipped == '\n'));
            rest = &rest[skipped..];
        }
    }
    code
}

/// What follows the inline module of tests, which is not looked at: there must be nothing.
fn after_tests(text: &str) -> Option<&str> {
    let (_, tests) = text.split_once(TESTS.0)?;
    let (_, after) = tests.split_once(TESTS.1)?;
    Some(after.trim()).filter(|after| !after.is_empty())
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Of `r"…"`, `r#"…"#` and so on, also with `b` or `c` before.
fn end_of_raw_string(text: &str) -> Option<usize> {
    let raw = text.strip_prefix(['b', 'c']).unwrap_or(text).strip_prefix('r')?;
    let quoted = raw.trim_start_matches('#');
    let content = quoted.strip_prefix('"')?;
    let end = format!("\"{}", &raw[..raw.len() - quoted.len()]);
    Some(content.find(&end).map_or(text.len(), |at| text.len() - content.len() + at + end.len()))
}

fn end_of_string(text: &str) -> usize {
    let mut escaped = false;
    for (at, octet) in text.bytes().enumerate().skip(1) {
        match octet {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Line and token of everything forbidden in the text of a source file, whole words only.
fn findings(text: &str) -> Vec<(usize, &'static str)> {
    let mut found = Vec::new();
    for (line, code) in code(text).lines().enumerate() {
        // `use std::{fs, net}` must not slip through: braces after a path are spelled out.
        let spelled = spell_out(code);
        for (token, _) in FORBIDDEN {
            let whole = spelled.match_indices(token).any(|(at, _)| {
                let before = spelled[..at].chars().next_back();
                let after = spelled[at + token.len()..].chars().next();
                !before.is_some_and(is_word) && !after.is_some_and(is_word)
            });
            if whole {
                found.push((line + 1, token));
            }
        }
    }
    found
}

/// `std::{fs, io::Read}` as `std::fs std::io::Read`, one level deep, which is all that rustfmt leaves on a line.
fn spell_out(code: &str) -> String {
    let Some((head, list)) = code.split_once("::{") else { return code.to_owned() };
    let prefix = head.rsplit([' ', '(']).next().unwrap_or(head);
    let items = list.split(['{', '}', ',']).map(|item| format!(" {prefix}::{}", item.trim()));
    std::iter::once(code.to_owned()).chain(items).collect()
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("the crate's sources are there") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            // Tests may do as they like, though they do not.
            if path.file_name().is_some_and(|name| name != "tests") {
                found.extend(sources(&path));
            }
        } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn wire_and_engine_are_pure() {
    let engine = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut wrong = Vec::new();
    for (directory, least) in [(engine.join("src"), 15), (engine.join("../wire/src"), 10)] {
        let files = sources(&directory);
        assert!(files.len() >= least, "only {} files in {}", files.len(), directory.display());
        for file in files {
            let text = fs::read_to_string(&file).expect("a readable source");
            if let Some(after) = after_tests(&text) {
                let line = after.lines().next().unwrap_or(after);
                wrong.push(format!("{}: after its tests: {line}", file.display()));
            }
            for (line, token) in findings(&text) {
                // The engine has a `Duration` from there, which is a number.
                wrong.push(format!("{}:{line}: {token}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "what the caller has to pass in:\n{}", wrong.join("\n"));
}

#[test]
fn every_planted_sample_is_found() {
    for (token, why) in FORBIDDEN {
        for sample in [format!("use {token};\n"), format!("fn f() {{\n    let x = {token}(1);\n}}\n")] {
            assert!(
                findings(&sample).iter().any(|(_, found)| *found == token),
                "{token}, {why}, in {sample:?}"
            );
        }
    }
    assert_eq!(findings("use std::{fs, net::IpAddr};"), [(1, "std::fs")]);
    assert_eq!(findings("let a = \"\\\"\"; let b = '\"'; std::env::var(\"x\")"), [(1, "std::env")]);
    assert_eq!(findings("fn a() {}\n\nlet t = std::time::Instant::now();").len(), 2);
    assert_eq!(findings("use std::time as t;"), [(1, "std::time as")]);
    assert_eq!(findings("use std::{collections::BTreeMap, time as t};"), [(1, "std::time as")]);
    for string in ["r#\"a \"quoted\" b\"#", "r##\"\"#\"##", "br\"\\\"", "r#\"one \" only\"#"] {
        assert_eq!(findings(&format!("let a = {string}; std::env::args()")), [(1, "std::env")], "{string}");
    }
    let tests = "fn a() {}\n\n#[cfg(test)]\nmod tests {\n    fn b() {\n    }\n}\n";
    assert_eq!(after_tests(tests), None);
    assert_eq!(
        after_tests(&format!("{tests}\nfn c() {{ std::fs::read(1) }}\n")),
        Some("fn c() { std::fs::read(1) }")
    );
}

#[test]
fn comments_strings_tests_and_other_words_are_not() {
    for harmless in [
        "// std::fs\n",
        "//! SystemTime\n",
        "/* std::env */ fn a() {}",
        "let a = \"std::thread \\\" HashMap\";",
        "let a = r#\"a \"std::thread\" HashMap\"#;",
        "use std::time::Duration as Time;",
        "use std::collections::BTreeMap;",
        "use std::time::Duration;",
        "use crate::time::{Duration, Instant};",
        "struct Profile; struct FileName; fn elapsed_time() {}",
        "fn a() {}\n\n#[cfg(test)]\nmod tests {\n    use std::collections::HashMap;\n}\n",
    ] {
        assert_eq!(findings(harmless), [], "{harmless:?}");
    }
    assert_eq!(code("a // b\nc"), "a \nc");
}
