//! The words of a scenario's line, and what they mean one by one.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use engine::time::Duration;
use wire::pcp::{Protocol, ResultCode};

/// The words of a line: separated by blanks, quotes hold blanks together and are dropped, `#` begins a comment.
pub(super) fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    for character in line.chars() {
        match character {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '#' if !quoted && word.is_none() => break,
            blank if blank.is_whitespace() && !quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    if quoted { Err("a quote has no end".to_owned()) } else { Ok(words) }
}

/// The `key=value` and plain words of a line, each to be taken once.
pub(super) struct Fields<'a> {
    left: Vec<(&'a str, Option<&'a str>)>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(words: &[&'a str]) -> Self {
        let left = words.iter().map(|word| match word.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (*word, None),
        });
        Self { left: left.collect() }
    }

    /// The value of `key=value`.
    pub(super) fn value(&mut self, key: &str) -> Option<&'a str> {
        let index = self.left.iter().position(|(known, value)| *known == key && value.is_some())?;
        self.left.remove(index).1
    }

    /// The value of `key=value`, read by `parse`.
    pub(super) fn parsed<T>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&'a str) -> Result<T, String>,
    ) -> Result<Option<T>, String> {
        self.value(key).map(|value| parse(value).map_err(|why| format!("{key}: {why}"))).transpose()
    }

    /// Whether the plain word is there.
    pub(super) fn flag(&mut self, word: &str) -> bool {
        let index = self.left.iter().position(|field| *field == (word, None));
        index.is_some_and(|index| {
            self.left.remove(index);
            true
        })
    }

    /// All `key=value` that are left.
    pub(super) fn rest(&mut self) -> Vec<(&'a str, &'a str)> {
        let rest = self.left.iter().filter_map(|&(key, value)| Some((key, value?))).collect();
        self.left.retain(|(_, value)| value.is_none());
        rest
    }

    /// Nothing may be left over.
    pub(super) fn finish(self) -> Result<(), String> {
        match self.left.first() {
            None => Ok(()),
            Some((key, Some(value))) => Err(format!("{key}={value} has no meaning here")),
            Some((word, None)) => Err(format!("{word} has no meaning here")),
        }
    }
}

/// Any text that the standard library can read.
pub(super) fn plain<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text} is not understood"))
}

/// `3600`, `3600s`, `250ms`, `10min`, `2h`, `7d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| format!("{text} is no time"))?;
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(format!("{unit} is no unit: ms, s, min, h, d")),
    };
    // Whole milliseconds: 3.4 s is no power of two.
    Duration::try_from_secs_f64((number * seconds * 1000.0).round() / 1000.0).map_err(|why| why.to_string())
}

/// `A..B`, both included, or `A` alone.
pub(super) fn range<T: Clone>(
    text: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<RangeInclusive<T>, String> {
    match text.split_once("..") {
        Some((from, to)) => Ok(parse(from)?..=parse(to)?),
        None => parse(text).map(|value| value.clone()..=value),
    }
}

/// Seconds as PCP counts them; `forever` is all ones.
pub(super) fn seconds(text: &str) -> Result<u32, String> {
    if text == "forever" {
        return Ok(u32::MAX);
    }
    u32::try_from(duration(text)?.as_secs()).map_err(|_| format!("{text} is too long"))
}

/// `TCP`, `UDP`.
pub(super) fn protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "TCP" => Ok(Protocol::TCP),
        "UDP" => Ok(Protocol::UDP),
        _ => Err(format!("{text} is neither TCP nor UDP")),
    }
}

/// `8080/TCP`.
pub(super) fn port(text: &str) -> Result<(Protocol, u16), String> {
    let (number, name) = text.split_once('/').ok_or_else(|| format!("{text} is not like 8080/TCP"))?;
    Ok((protocol(name)?, plain(number)?))
}

/// A PCP result code, by name or number.
pub(super) fn result_code(text: &str) -> Result<ResultCode, String> {
    let known = ResultCode::KNOWN.iter().find(|code| code.name() == Some(text));
    known.copied().map_or_else(|| plain(text).map(ResultCode), Ok)
}

/// `on`, `off`.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{text} is neither on nor off")),
    }
}

/// Whether `got` is what `expected` says: `*` is anything, `a..b` a number in between.
pub(super) fn fits(expected: &str, got: &str) -> bool {
    let number = |text: &str| text.parse::<u64>().map_err(|_| String::new());
    match (range(expected, number), got.parse()) {
        (Ok(range), Ok(got)) => range.contains(&got),
        _ => expected == "*" || expected == got,
    }
}

/// The argument that a short name stands for, with its value; `ext=8080/TCP` is two.
pub(super) fn arguments(key: &str, value: &str) -> Result<Vec<(String, String)>, String> {
    let one = |name: &str| Ok(vec![(name.to_owned(), value.to_owned())]);
    match key {
        "ext" | "int" => {
            let name = if key == "ext" { "NewExternalPort" } else { "NewInternalPort" };
            let (number, protocol) = value.split_once('/').unzip();
            let mut both = vec![(name.to_owned(), number.unwrap_or(value).to_owned())];
            both.extend(protocol.map(|protocol| ("NewProtocol".to_owned(), protocol.to_owned())));
            Ok(both)
        }
        "protocol" => one("NewProtocol"),
        "client" => one("NewInternalClient"),
        "desc" => one("NewPortMappingDescription"),
        "peer" => one("NewRemoteHost"),
        "lease" => match value.parse::<u64>() {
            Err(_) if !value.contains("..") => {
                Ok(vec![("NewLeaseDuration".to_owned(), seconds(value)?.to_string())])
            }
            _ => one("NewLeaseDuration"),
        },
        "from" => one("NewStartPort"),
        "to" => one("NewEndPort"),
        "number" => one("NewNumberOfPorts"),
        "index" => one("NewPortMappingIndex"),
        "port" => one("NewReservedPort"),
        "address" => one("NewExternalIPAddress"),
        "status" => one("NewConnectionStatus"),
        name if name.starts_with("New") => one(name),
        _ => Err(format!("{key} is no argument")),
    }
}

/// An address, or a name of `known`.
pub(super) fn address(text: &str, known: impl Fn(&str) -> Option<Ipv4Addr>) -> Result<Ipv4Addr, String> {
    known(text).map_or_else(|| text.parse().map_err(|_| format!("{text} is no host")), Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_split_at_blanks_outside_quotes() {
        assert_eq!(split("a  b=\"c d\" # e").unwrap(), ["a", "b=c d"]);
        assert_eq!(split("a#b \"\"").unwrap(), ["a#b", ""]);
        assert!(split("# nothing").unwrap().is_empty());
        assert!(split("a \"b").is_err());
    }

    #[test]
    fn times_have_units() {
        for (text, ms) in
            [("3.5s", 3500), ("2", 2000), ("250ms", 250), ("10min", 600_000), ("7d", 604_800_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert!(duration("5 parsec").is_err() && duration("").is_err() && duration("1y").is_err());
    }

    #[test]
    fn values_fit() {
        for (expected, got, verdict) in [
            ("8080", "8080", true),
            ("3590..3600", "3599", true),
            ("3590..3600", "3601", false),
            ("*", "", true),
            ("a", "b", false),
            ("", "", true),
        ] {
            assert_eq!(fits(expected, got), verdict, "{expected} {got}");
        }
    }

    #[test]
    fn a_field_is_taken_once_and_none_is_left_over() {
        let mut fields = Fields::new(&["a=1", "b", "c=2"]);
        assert_eq!(fields.value("a"), Some("1"));
        assert_eq!(fields.value("a"), None);
        assert!(fields.flag("b") && !fields.flag("b"));
        assert!(fields.finish().is_err());
    }
}
