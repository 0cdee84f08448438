//! The tables of docs/avalanche.md, in words and figures.

use super::Restart;
use super::story::{CAPACITY, Chapter, Story};

/// What the program writes stands between these two lines of docs/avalanche.md.
pub const BEGIN: &str = "<!-- lab-avalanche writes from here -->\n";
/// See [`BEGIN`].
pub const END: &str = "<!-- lab-avalanche writes to here -->\n";

/// The part of a page that the program writes; `None` when it has none.
#[must_use]
pub fn between(page: &str) -> Option<&str> {
    let (_, rest) = page.split_once(BEGIN)?;
    Some(rest.split_once(END)?.0)
}

/// The page with that part anew; `None` when it has none.
#[must_use]
pub fn replace(page: &str, tables: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{tables}{END}{after}"))
}

/// What has happened, in a line.
pub(super) fn title(restart: Restart) -> &'static str {
    match restart {
        Restart::RoutersForgotten => "All routers restart, and the server has forgotten their mappings",
        Restart::Server => "The server loses its state, and every router hears of that at once",
        Restart::Routers => "All routers restart, and the server still has their mappings",
    }
}

impl Story {
    /// One table for each event, as Markdown.
    #[must_use]
    pub fn tables(&self) -> String {
        let scale = &self.scale;
        let mut text = format!(
            "{} routers with {} mappings each. One request takes the server {} µs when it makes a mapping and {} µs when the mapping \
             is there; {} datagrams wait at most. Seed {}.\n",
            grouped(scale.routers.into()),
            scale.mappings,
            CAPACITY.making.as_micros(),
            CAPACITY.renewing.as_micros(),
            grouped(CAPACITY.buffer as u64),
            scale.seed,
        );
        for restart in [Restart::RoutersForgotten, Restart::Server, Restart::Routers] {
            let needs = scale.needs(restart).as_secs_f64();
            text +=
                &format!("\n**{}.** The server needs {needs:.1} s for one request each.\n\n", title(restart));
            text += "| wait | seconds | datagrams | of them lost | most in a second | half of the routers whole | 99 of 100 | the last |\n";
            text += "|---|---|---|---|---|---|---|---|\n";
            self.of(restart).for_each(|chapter| text += &row(chapter));
        }
        text
    }
}

fn row(chapter: &Chapter) -> String {
    let outcome = &chapter.outcome;
    let last = outcome.last.map_or("never".to_owned(), |last| format!("{:.0} s", last.as_secs_f64()));
    format!(
        "| {} | {:.1} | {} | {} | {} | {} s | {} s | {last} |\n",
        chapter.name,
        chapter.setup.wait.as_secs_f64(),
        grouped(outcome.datagrams()),
        grouped(outcome.drops()),
        grouped(outcome.peak().into()),
        outcome.by(50),
        outcome.by(99),
    )
}

/// With a comma before every three digits.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.char_indices() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
