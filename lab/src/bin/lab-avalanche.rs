//! `lab-avalanche [DIRECTORY]`: a million routers restart at once, or their PCP server does. It makes the tables and the picture
//! of docs/avalanche.md, in some minutes and always the same ones:
//!
//! ```text
//! cargo run --release -p lab --bin lab-avalanche -- docs
//! ```
//!
//! Without a directory it prints the tables only.

use std::path::Path;
use std::process::ExitCode;

use lab::avalanche::{Scale, Story, replace};

fn main() -> ExitCode {
    let story = Story::tell(Scale::town(), |chapter| {
        let last = chapter.outcome.last.map_or("never".to_owned(), |last| format!("{} s", last.as_secs()));
        eprintln!("{:?}, wait {}: the last after {last}", chapter.setup.restart, chapter.name);
    });
    println!("{}", story.tables());
    if let Some(unmade) = story.chapters.iter().find(|chapter| chapter.outcome.ended > 0) {
        // Where a lifetime ends the model's routers do less than real ones.
        eprintln!("{} mappings ended: {:?}", unmade.outcome.ended, unmade.setup);
        return ExitCode::FAILURE;
    }
    let Some(directory) = std::env::args().nth(1) else { return ExitCode::SUCCESS };
    match write(Path::new(&directory), &story) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{directory}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(directory: &Path, story: &Story) -> std::io::Result<()> {
    let path = directory.join("avalanche.md");
    let page = std::fs::read_to_string(&path)?;
    let page = replace(&page, &story.tables())
        .ok_or_else(|| std::io::Error::other("avalanche.md has no place for the tables"))?;
    std::fs::write(path, page)?;
    std::fs::write(directory.join("avalanche.svg"), story.picture())
}
