//! What portferry costs, beside Debian's miniupnpd for the same on the same machine in the same run (docs/performance.md).
//!
//! Processor time is the daemon's own, all its processes and what the kernel does for them (`/proc/PID/task/*/schedstat`), which is what can be
//! compared on a machine that has other things to do; of several rounds the least counts. Time that passes is shown where it is what a
//! user feels.

mod cost;
mod crowd;
mod economy;
mod idle;
mod memory;
mod page;
mod picture;
mod requests;
mod rig;
mod ssdp;
mod start;
mod upstream;
mod waiting;

use std::path::PathBuf;

use page::Page;
pub use page::{BEGIN, END, replace};

/// What is measured, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// portferry, as it is shipped.
    pub program: PathBuf,
    /// Smaller tables and fewer rounds.
    pub quick: bool,
    /// Names of [`FIGURES`]; none: all of them.
    pub figures: Vec<String>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Tables, as Markdown.
    pub page: String,
    /// Pictures, as SVG, by their names.
    pub pictures: Vec<(&'static str, String)>,
}

type Figure = fn(&Plan, &mut Page);

/// All that can be measured, by name.
pub const FIGURES: [&str; 8] = ["requests", "waiting", "crowd", "economy", "ssdp", "memory", "start", "idle"];

const MEASURES: [Figure; 8] = [
    requests::measure,
    waiting::measure,
    crowd::measure,
    economy::measure,
    ssdp::measure,
    memory::measure,
    start::measure,
    idle::measure,
];

/// Measures; the tables go to standard output as they come, too.
///
/// # Panics
/// If there can be no laboratory here, or a daemon does not do what it is asked.
#[must_use]
pub fn run(plan: &Plan) -> Outcome {
    let mut page = Page::default();
    for (name, measure) in FIGURES.into_iter().zip(MEASURES) {
        if plan.figures.is_empty() || plan.figures.iter().any(|wanted| wanted == name) {
            measure(plan, &mut page);
        }
    }
    page.into_outcome()
}
