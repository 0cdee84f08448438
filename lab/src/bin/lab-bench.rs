//! `lab-bench [--quick] [--write] [FIGURE…]`: what portferry costs beside Debian's miniupnpd, as tables in Markdown on standard output; with
//! `--write` into docs/performance.md, with its pictures. A FIGURE is one of `requests`, `waiting`, `crowd`, `economy`, `ssdp`, `memory`,
//! `start`, `idle`; without any it is all of them, some twenty minutes. Needs root. portferry is `PF_SUBJECT`, or the `portferry` beside
//! this program.

use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

use lab::bench::{self, FIGURES, Plan};
use lab::netns;
use lab::subject::Subject;

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<(), String> {
    let (options, figures): (Vec<String>, Vec<String>) =
        env::args().skip(1).partition(|word| word.starts_with('-'));
    let known =
        |word: &String| ["--quick", "--write"].contains(&word.as_str()) || FIGURES.contains(&word.as_str());
    if let Some(word) = options.iter().chain(&figures).find(|word| !known(word)) {
        return Err(format!("{word}: see the first lines of lab-bench.rs"));
    }
    if let Some(reason) = netns::reason_to_skip() {
        return Err(reason.to_owned());
    }
    let Subject::Portferry(program) = Subject::from_environment() else {
        return Err("miniupnpd is measured in any case; PF_SUBJECT is the portferry beside it".to_owned());
    };
    let has = |option: &str| options.iter().any(|word| word == option);
    let outcome = bench::run(&Plan { program, quick: has("--quick"), figures });
    if has("--write") {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let file = docs.join("performance.md");
        let page = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let page =
            bench::replace(&page, &outcome.page).ok_or("docs/performance.md has no place for the tables")?;
        let pictures = outcome.pictures.iter().map(|(name, svg)| (docs.join(name), svg));
        for (path, text) in pictures.chain([(file, &page)]) {
            fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    Ok(())
}
