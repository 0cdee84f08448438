//! Enough of Rust to tell comments from strings, tests from code, and what stands above a test.

/// A comment without its slashes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Comment {
    /// The line that it begins in, from 1 on.
    pub(super) line: usize,
    /// Its text.
    pub(super) text: String,
}

/// A function with a `test` attribute.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Test {
    /// The function's name.
    pub(super) name: String,
    /// The line that it begins in, from 1 on.
    pub(super) line: usize,
    /// What stands directly above it, documentation or not, in one.
    pub(super) comment: String,
}

/// What a file has.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct File {
    /// Its tests.
    pub(super) tests: Vec<Test>,
    /// The comments outside of `#[cfg(test)]`; lines that follow each other are one comment.
    pub(super) code: Vec<Comment>,
    /// Those inside.
    pub(super) test_code: Vec<Comment>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Token<'a> {
    Comment(&'a str),
    Word(&'a str),
    Sign(char),
    /// A string, character or number.
    Literal,
}

/// Reads a Rust file that compiles.
pub(super) fn read(text: &str) -> File {
    let tokens = tokens(text);
    let mut file = File::default();
    // What stands above the next item: comments and attributes without an empty line between them.
    let mut above: Vec<&str> = Vec::new();
    let mut last_line = 0;
    let mut is_test = false;
    let mut depth = 0_usize;
    // The depth at which the item under `#[cfg(test)]` began, until it has ended.
    let mut in_tests: Option<usize> = None;
    let mut at = 0;
    while let Some((line, token)) = tokens.get(at) {
        at += 1;
        match token {
            Token::Comment(comment) => {
                if *line > last_line + 1 {
                    above.clear();
                }
                above.push(comment);
                last_line = line + comment.matches('\n').count();
                let comments = if in_tests.is_some() { &mut file.test_code } else { &mut file.code };
                append(comments, *line, comment);
            }
            Token::Sign('#') => {
                let end = attribute(&tokens[at..]);
                let words: Vec<&str> = tokens[at..at + end]
                    .iter()
                    .filter_map(|(_, token)| if let Token::Word(word) = token { Some(*word) } else { None })
                    .collect();
                at += end;
                last_line = tokens[at - 1].0;
                if words == ["cfg", "test"] && in_tests.is_none() {
                    in_tests = Some(depth);
                }
                is_test |= words.first() == Some(&"test") || words.starts_with(&["tokio", "test"]);
            }
            Token::Word("fn") => {
                if let Some((_, Token::Word(name))) = tokens.get(at)
                    && is_test
                {
                    let comment = above.join("\n");
                    file.tests.push(Test { name: (*name).to_owned(), line: *line, comment });
                }
                (is_test, above) = (false, Vec::new());
            }
            Token::Sign('(' | '[') => depth += 1,
            Token::Sign(')' | ']') => depth -= 1,
            Token::Sign('{') => {
                depth += 1;
                (is_test, above) = (false, Vec::new());
            }
            Token::Sign(sign @ ('}' | ';')) => {
                depth -= usize::from(*sign == '}');
                (is_test, above) = (false, Vec::new());
                if in_tests == Some(depth) {
                    in_tests = None;
                }
            }
            Token::Word(_) | Token::Sign(_) | Token::Literal => {}
        }
    }
    file
}

/// How many tokens an attribute has behind its `#`.
fn attribute(tokens: &[(usize, Token<'_>)]) -> usize {
    let mut depth = 0_usize;
    for (i, (_, token)) in tokens.iter().enumerate() {
        match token {
            Token::Sign('[') => depth += 1,
            Token::Sign(']') if depth <= 1 => return i + 1,
            Token::Sign(']') => depth -= 1,
            Token::Sign('!') => {}
            _ if depth == 0 => return i,
            _ => {}
        }
    }
    tokens.len()
}

/// One comment more, or another line of the last one.
fn append(comments: &mut Vec<Comment>, line: usize, text: &str) {
    match comments.last_mut() {
        Some(last) if last.line + last.text.matches('\n').count() + 1 == line => {
            last.text.push('\n');
            last.text.push_str(text);
        }
        _ => comments.push(Comment { line, text: text.to_owned() }),
    }
}

fn tokens(text: &str) -> Vec<(usize, Token<'_>)> {
    let mut tokens = Vec::new();
    let (mut rest, mut line) = (text, 1);
    while let Some(first) = rest.chars().next() {
        let (token, length) = next(rest, first);
        tokens.extend(token.map(|token| (line, token)));
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    tokens
}

fn next(rest: &str, first: char) -> (Option<Token<'_>>, usize) {
    if first.is_whitespace() {
        (None, first.len_utf8())
    } else if let Some(comment) = rest.strip_prefix("//") {
        let comment = comment.lines().next().unwrap_or_default();
        (Some(Token::Comment(comment.trim_start_matches(['/', '!']))), 2 + comment.len())
    } else if rest.starts_with("/*") {
        let length = block_comment(rest);
        (Some(Token::Comment(&rest[..length])), length)
    } else if let Some(length) = raw_string(rest) {
        (Some(Token::Literal), length)
    } else if let Some(quote) = ["\"", "b\"", "c\""].into_iter().find(|quote| rest.starts_with(quote)) {
        (Some(Token::Literal), quote.len() + quoted(&rest[quote.len()..], '"'))
    } else if first == '\'' || rest.starts_with("b'") {
        let begin = if first == '\'' { 1 } else { 2 };
        match character(&rest[begin..]) {
            Some(length) => (Some(Token::Literal), begin + length),
            None => (Some(Token::Sign('\'')), 1), // a lifetime
        }
    } else if first.is_alphanumeric() || first == '_' {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let token = if first.is_ascii_digit() { Token::Literal } else { Token::Word(&rest[..end]) };
        (Some(token), end)
    } else {
        (Some(Token::Sign(first)), first.len_utf8())
    }
}

/// The length of the comment that `rest` begins with; such comments nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        let (step, now) = if rest[at..].starts_with("/*") {
            (2, depth + 1)
        } else if rest[at..].starts_with("*/") {
            (2, depth - 1)
        } else {
            (rest[at..].chars().next().map_or(1, char::len_utf8), depth)
        };
        (at, depth) = (at + step, now);
        if depth == 0 {
            break;
        }
    }
    at
}

fn raw_string(rest: &str) -> Option<usize> {
    let prefix = ["r", "br", "cr"].into_iter().find(|prefix| {
        rest.strip_prefix(prefix).is_some_and(|rest| rest.trim_start_matches('#').starts_with('"'))
    })?;
    let hashes = rest[prefix.len()..].find('"')?;
    let begin = prefix.len() + hashes + 1;
    let close = format!("\"{}", "#".repeat(hashes));
    Some(begin + rest[begin..].find(&close)? + close.len())
}

/// The length of what is quoted, its end included.
fn quoted(rest: &str, end: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == end => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of a character's literal behind its quote; none for a lifetime.
fn character(rest: &str) -> Option<usize> {
    let mut chars = rest.chars();
    let first = chars.next()?;
    if first == '\\' {
        return Some(quoted(rest, '\''));
    }
    (chars.next() == Some('\'')).then_some(first.len_utf8() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_told_from_everything_else() {
        let file = read(concat!(
            "//! The file.\n",
            "fn f<'a>(x: &'a str) -> char { // one\n",
            "    let _ = (\"// no \\\" // no\", r#\"// \"no\"#, b\"//\", '\\'', '\"', b'/', '/'); // two\n",
            "    /* three /* inner */ // */ '}'\n",
            "}\n",
        ));
        let expected = [" The file.", " one", " two", "/* three /* inner */ // */"];
        assert_eq!(
            file.code,
            [Comment { line: 1, text: expected.join("\n") }],
            "line by line, and one in all"
        );
    }

    #[test]
    fn tests_have_what_stands_directly_above_them() {
        let file = read(concat!(
            "/// R-1, and it\n/// goes on.\n#[test]\nfn one() { let x = [0; 3]; }\n",
            "// A heading\n\n/// R-2.\n// R-3.\n#[allow(unused)] #[tokio::test(flavor = \"current_thread\")]\n",
            "async fn two() {}\n\n",
            "/// No test.\nfn helper() {}\n",
            "#[test]\nfn three() {}\n",
            "proptest! {\n    /// R-4.\n    #[test]\n    fn four(x: u8) {}\n}\n",
        ));
        let shown: Vec<(&str, String)> =
            file.tests.iter().map(|test| (&*test.name, test.comment.replace('\n', "/"))).collect();
        let expected =
            [("one", " R-1, and it/ goes on."), ("two", " R-2./ R-3."), ("three", ""), ("four", " R-4.")];
        assert_eq!(shown, expected.map(|(name, comment)| (name, comment.to_owned())));
    }

    #[test]
    fn test_code_is_told_from_code() {
        let file = read(concat!(
            "// a\nfn f() { g(); }\n\n",
            "#[cfg(test)]\nuse std::fmt; // b\n\n",
            "// c\nfn h() {}\n\n",
            "#[cfg(test)]\nfn i(x: [u8; 4]) { /* g */ }\n\n",
            "#[cfg(test)]\nmod tests {\n    // d\n    #[test]\n    fn t() { let x = 1; }\n    // e\n}\n\n",
            "#[cfg(test)]\nmod more;\n\n// f\n",
        ));
        let code: Vec<&str> = file.code.iter().map(|comment| comment.text.trim()).collect();
        let test_code: Vec<&str> = file.test_code.iter().map(|comment| comment.text.trim()).collect();
        assert_eq!((code, test_code), (vec!["a", "b", "c", "f"], vec!["/* g */", "d", "e"]));
    }
}
