//! Every file of `lab/scenarios`, in virtual time, each with several seeds: what a scenario expects must not hang on
//! the luck of one run. `PF_SEED=7` runs that seed only, `PF_SCENARIO=renewal` only the files with that in their names.

use std::path::{Path, PathBuf};

/// Enough that a random time falls early and late.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=8;

fn files() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let entries = std::fs::read_dir(&directory).expect("lab/scenarios is there");
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("lab/scenarios can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    files
}

#[test]
fn there_are_scenarios() {
    assert!(!files().is_empty(), "lab/scenarios has no .txt file");
}

#[test]
fn every_scenario_holds() {
    let wanted = std::env::var("PF_SCENARIO").unwrap_or_default();
    let seed = std::env::var("PF_SEED").ok().map(|seed| seed.parse().expect("PF_SEED is a number"));
    let seeds: Vec<u64> = seed.map_or_else(|| SEEDS.collect(), |seed| vec![seed]);
    let mut failures = Vec::new();
    for path in files() {
        let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
        if !name.contains(&wanted) {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a scenario can be read");
        let shown = format!("lab/scenarios/{name}");
        let failure = seeds.iter().find_map(|&seed| lab::scenario::run(&shown, &text, seed).err());
        println!("{} {name}", if failure.is_some() { "FAILED" } else { "ok    " });
        failures.extend(failure.map(|failure| failure.to_string()));
    }
    assert!(failures.is_empty(), "{} scenarios failed\n\n{}", failures.len(), failures.join("\n"));
}
