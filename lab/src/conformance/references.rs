//! How comments name rows: `R-18`, `T-3, T-4`, `R-23…R-26`, `decision 4`, `decisions 1–4`, `decisions 11, 13 and 16`;
//! and names of tests: `decision_23_internal_port`, `r_18_of_an_add`.

use std::fmt;

/// Which list a row is of, in the order of the page.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Series {
    /// R-: what RFC 6970 asks.
    Requirement,
    /// T-: traps and gaps.
    Trap,
    /// D-: the seeds of RFC 6970.
    Seed,
    /// What we decided.
    Decision,
}

/// A row's name.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct RowId {
    /// The list.
    pub(super) series: Series,
    /// From 1 on.
    pub(super) number: u16,
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = match self.series {
            Series::Requirement => "R-",
            Series::Trap => "T-",
            Series::Seed => "D-",
            Series::Decision => "decision ",
        };
        write!(f, "{prefix}{}", self.number)
    }
}

/// A word, number or sign of a comment.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Token {
    Row(RowId),
    /// `decision`, or `decisions`, after which a list may come.
    Decision {
        several: bool,
    },
    Number(u16),
    /// `…`, `..` or an en dash.
    To,
    /// A comma or `and`.
    And,
    Other,
}

/// The rows that `text` names, in its order, each range spelled out.
pub(super) fn find(text: &str) -> Vec<RowId> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    let mut rest = &tokens[..];
    while let [first, after @ ..] = rest {
        rest = after;
        match first {
            Token::Row(from) => match rest {
                [Token::To, Token::Row(to), after @ ..] if to.series == from.series => {
                    found.extend(range(from.series, from.number, to.number));
                    rest = after;
                }
                _ => found.push(*from),
            },
            Token::Decision { several } => rest = decisions(rest, *several, &mut found),
            _ => {}
        }
    }
    found
}

/// The rows that a test's name names; words are apart by `_` there.
pub(super) fn find_in_name(name: &str) -> Vec<RowId> {
    let words: Vec<&str> = name.split('_').collect();
    let mut text = String::new();
    for (i, word) in words.iter().enumerate() {
        let numbered = words.get(i + 1).is_some_and(|next| next.parse::<u16>().is_ok());
        match (*word, numbered) {
            ("r" | "t" | "d", true) => text.push_str(&format!("{}-", word.to_uppercase())),
            _ => text.push_str(&format!("{word} ")),
        }
    }
    find(&text)
}

/// The numbers behind `decision` or `decisions`; what is left of the tokens.
fn decisions<'a>(mut rest: &'a [Token], several: bool, found: &mut Vec<RowId>) -> &'a [Token] {
    loop {
        rest = match rest {
            [Token::Number(from), Token::To, Token::Number(to), after @ ..] if several => {
                found.extend(range(Series::Decision, *from, *to));
                after
            }
            [Token::Number(number), after @ ..] => {
                found.push(RowId { series: Series::Decision, number: *number });
                after
            }
            _ => return rest,
        };
        rest = match rest {
            [Token::And, Token::And, after @ ..] | [Token::And, after @ ..]
                if several && matches!(after, [Token::Number(_), ..]) =>
            {
                after
            }
            _ => return rest,
        };
    }
}

fn range(series: Series, from: u16, to: u16) -> impl Iterator<Item = RowId> {
    (from..=to).map(move |number| RowId { series, number })
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (token, length) = if first.is_whitespace() {
            (None, first.len_utf8())
        } else if first.is_alphabetic() {
            word(rest)
        } else if first.is_ascii_digit() {
            let length = run(rest, |c| c.is_alphanumeric());
            (Some(rest[..length].parse().map_or(Token::Other, Token::Number)), length)
        } else if let Some(sign) = ["…", "..", "–"].into_iter().find(|sign| rest.starts_with(sign)) {
            (Some(Token::To), sign.len())
        } else if first == ',' {
            (Some(Token::And), 1)
        } else {
            (Some(Token::Other), first.len_utf8())
        };
        tokens.extend(token);
        rest = &rest[length..];
    }
    tokens
}

/// The word that `rest` begins with, with the number of a row that belongs to it.
fn word(rest: &str) -> (Option<Token>, usize) {
    let length = run(rest, |c| c.is_alphanumeric() || c == '_');
    let word = &rest[..length];
    let series = match word {
        "R" => Some(Series::Requirement),
        "T" => Some(Series::Trap),
        "D" => Some(Series::Seed),
        _ => None,
    };
    if let Some((series, number)) = series.zip(rest[length..].strip_prefix('-')) {
        let digits = run(number, |c| c.is_alphanumeric());
        if let Ok(number) = number[..digits].parse() {
            return (Some(Token::Row(RowId { series, number })), length + 1 + digits);
        }
    }
    let token = match word.to_ascii_lowercase().as_str() {
        "decision" => Token::Decision { several: false },
        "decisions" => Token::Decision { several: true },
        "and" => Token::And,
        _ => Token::Other,
    };
    (Some(token), length)
}

/// How many octets of `text` are such characters.
fn run(text: &str, such: impl Fn(char) -> bool) -> usize {
    text.find(|c| !such(c)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        find(text).iter().map(RowId::to_string).collect()
    }

    #[test]
    fn rows_are_found_in_comments() {
        for (text, expected) in [
            ("R-18: as asked.", &["R-18"][..]),
            ("(spec T-6, K-17; decision 4)", &["T-6", "decision 4"]),
            ("R-30, R-31 and D-14", &["R-30", "R-31", "D-14"]),
            ("R-23…R-26", &["R-23", "R-24", "R-25", "R-26"]),
            ("T-1..T-3, T-1 – T-2", &["T-1", "T-2", "T-3", "T-1", "T-2"]),
            ("Decision 23: the port", &["decision 23"]),
            ("decisions 1–3", &["decision 1", "decision 2", "decision 3"]),
            ("Decisions 11 and 13, R-46", &["decision 11", "decision 13", "R-46"]),
            ("decisions 3, 5, and 7: all", &["decision 3", "decision 5", "decision 7"]),
            ("decisions 1–2 and\n4", &["decision 1", "decision 2", "decision 4"]),
            ("decision 1, 20 s later", &["decision 1"]),
            ("R-0 is found, to be refused", &["R-0"]),
        ] {
            assert_eq!(names(text), expected, "{text}");
        }
    }

    #[test]
    fn other_names_are_none() {
        for text in [
            "UDP-1, A-13, K-1, Q-9, xR-1",
            "R-18b, R -18, R- 18, R-x",
            "a decision of the vendor, 3 of them",
            "decisions, 3 of them",
            "RFC 6970 §5.6, T - 3, D-Bus, R-99999999",
        ] {
            assert_eq!(names(text), [] as [&str; 0], "{text}");
        }
    }

    #[test]
    fn rows_are_found_in_names() {
        for (name, expected) in [
            ("decision_23_internal_port_else_external_port_else_any", &["decision 23"][..]),
            ("decisions_27_and_28_row_by_row", &["decision 27", "decision 28"]),
            ("r_18_and_t_3", &["R-18", "T-3"]),
            ("a_2_the_whole_table", &[]),
            ("rfc6970_4_3_both_columns", &[]),
        ] {
            let found: Vec<String> = find_in_name(name).iter().map(RowId::to_string).collect();
            assert_eq!(found, expected, "{name}");
        }
    }
}
