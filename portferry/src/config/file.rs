//! From a file's text to its values, or to the line and key that are wrong.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
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

/// The content of a configuration file of `most` octets at most.
///
/// # Errors
/// It cannot be read, is no text, or is longer.
pub fn read(path: &Path, most: usize) -> Result<String, ConfigError> {
    let refused = |message| ConfigError { path: path.to_owned(), place: None, message };
    let failed = |error: std::io::Error| refused(format!("cannot be read: {error}"));
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    // Of what is longer no more than that is read; where it is cut makes no difference.
    let mut octets = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut octets).map_err(failed)?;
    if octets.len() > most {
        return Err(refused(format!("expected {most} octets at most, got more")));
    }
    octets.as_slice().read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// Where values that are good by themselves make no sense together.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its full name.
    pub name: &'static str,
    /// In which of several sections of the same name.
    pub section: usize,
}

impl From<&'static str> for Key {
    fn from(name: &'static str) -> Self {
        Self { name, section: 0 }
    }
}

impl Key {
    /// Its line, or that of its section where it is not set.
    fn line(self, text: &str) -> Option<usize> {
        let count = text.lines().count();
        let all =
            |name: &str| (1..=count).filter(|&line| key_at(text, line).as_deref() == Some(name)).collect();
        let section = self.name.rsplit_once('.').map_or("", |(section, _)| section);
        let sections: Vec<usize> = all(&format!("[{section}]"));
        let (from, to) = (sections.get(self.section), sections.get(self.section + 1));
        let keys: Vec<usize> = all(self.name);
        let inside = |line: usize| from.is_none_or(|&from| line > from) && to.is_none_or(|&to| line < to);
        keys.into_iter().find(|&line| inside(line)).or(from.copied())
    }
}

/// Checks a file's content, each value by itself and then all together: `contradiction` names a key and what is wrong
/// with it.
pub fn parse<T: serde::de::DeserializeOwned, K: Into<Key>>(
    path: &Path,
    text: &str,
    contradiction: impl Fn(&T) -> Option<(K, String)>,
) -> Result<T, ConfigError> {
    let config: T = toml::from_str(text).map_err(|error| {
        let place = error.span().map(|span| place(text, span.start));
        ConfigError { path: path.to_owned(), place, message: error.message().trim().replace('\n', " ") }
    })?;
    match contradiction(&config) {
        None => Ok(config),
        Some((key, message)) => {
            let key = key.into();
            let place = key.line(text).map(|line| (line, Some(key.name.to_owned())));
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
            let name = name.trim_start_matches('['); // one of several
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
