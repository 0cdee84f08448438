//! From a file's text to its values, or to the line and key that are wrong.

use std::fmt;
use std::path::{Path, PathBuf};

/// Why a configuration file is refused: where, and what was expected.
#[derive(Debug, PartialEq)]
pub struct ConfigError {
    path: PathBuf,
    /// Line, and the key there.
    place: Option<(usize, Option<String>)>,
    message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some((line, key)) = &self.place {
            write!(f, ", line {line}")?;
            if let Some(key) = key {
                write!(f, ", {key}")?;
            }
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for ConfigError {}

/// The content of a configuration file.
pub fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|error| ConfigError {
        path: path.to_owned(),
        place: None,
        message: format!("cannot be read: {error}"),
    })
}

/// Checks a file's content, each value by itself and then all together: `contradiction` names a key and what is wrong
/// with it.
pub fn parse<T: serde::de::DeserializeOwned>(
    path: &Path,
    text: &str,
    contradiction: impl Fn(&T) -> Option<(&'static str, String)>,
) -> Result<T, ConfigError> {
    let config: T = toml::from_str(text).map_err(|error| {
        let place = error.span().map(|span| place(text, span.start));
        ConfigError { path: path.to_owned(), place, message: error.message().trim().replace('\n', " ") }
    })?;
    match contradiction(&config) {
        None => Ok(config),
        Some((key, message)) => {
            let mut lines = 1..=text.lines().count();
            let line = lines.find(|&line| key_at(text, line).as_deref() == Some(key));
            let place = line.map(|line| (line, Some(key.to_owned())));
            Err(ConfigError { path: path.to_owned(), place, message })
        }
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.get(..at).unwrap_or(text).matches('\n').count() + 1
}

/// The line of an offset, and the full name of the key that stands there.
fn place(text: &str, at: usize) -> (usize, Option<String>) {
    let line = line_of(text, at);
    (line, key_at(text, line))
}

/// The full name of the key in a line, or the section that begins there.
fn key_at(text: &str, line: usize) -> Option<String> {
    let mut section = None;
    for (number, content) in (1..=line).zip(text.lines()) {
        let content = content.trim();
        if let Some(name) = content.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            section = Some(name.trim());
            if number == line {
                return Some(format!("[{}]", name.trim()));
            }
        }
    }
    let (key, _) = text.lines().nth(line.checked_sub(1)?)?.split_once('=')?;
    let key = key.trim();
    Some(section.map_or(key.to_owned(), |section| format!("{section}.{key}")))
}
