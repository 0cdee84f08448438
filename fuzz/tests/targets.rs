//! Every target on stable: over random octets, over its corpus, and over the corpus with octets changed. A few seconds
//! in all, and always the same; `PF_FUZZ_CASES=100000` makes it longer and different each time. `PF_FUZZ_TARGET=ssdp` runs
//! that one only. `PF_WRITE_SEEDS=1` writes the seeds of `seeds.rs` into the corpus.

mod seeds;

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// The committed inputs of a target, by the names of their files.
fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(corpus(target)).expect("every target has a corpus");
    let mut inputs: Vec<(String, Vec<u8>)> = entries
        .map(|entry| {
            let path = entry.expect("the corpus can be read").path();
            let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
            (name, std::fs::read(&path).expect("the corpus can be read"))
        })
        .collect();
    inputs.sort();
    inputs
}

/// How many inputs a strategy makes, where somebody wants to know better.
fn cases() -> Option<u32> {
    std::env::var("PF_FUZZ_CASES").ok().map(|cases| cases.parse().expect("PF_FUZZ_CASES is a number"))
}

fn targets() -> impl Iterator<Item = fuzz::Target> {
    let only = std::env::var("PF_FUZZ_TARGET").ok();
    fuzz::TARGETS.into_iter().filter(move |(name, _)| only.as_deref().is_none_or(|only| only == *name))
}

/// Runs `target` over what `strategy` makes; a failure is shrunk and shown as octets.
fn hold(target: fuzz::Target, strategy: &impl Strategy<Value = Vec<u8>>) {
    let config = Config { cases: cases().unwrap_or(300), failure_persistence: None, ..Config::default() };
    let mut runner = match cases() {
        Some(_) => TestRunner::new(config),
        None => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    };
    let result = runner.run(strategy, |data| {
        (target.1)(&data);
        Ok::<(), TestCaseError>(())
    });
    if let Err(error) = result {
        panic!("{}: {error}", target.0);
    }
}

/// One change of a valid input: an octet set, octets cut out, inserted or doubled, or two inputs joined.
fn mutated(inputs: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let change = (0..6_u8, any::<prop::sample::Index>(), any::<u8>(), 1..24_usize);
    let inputs = prop::sample::select(inputs);
    (inputs.clone(), inputs, prop::collection::vec(change, 1..6)).prop_map(|(mut data, other, changes)| {
        for (kind, place, octet, length) in changes {
            let at = place.index(data.len() + 1);
            let end = (at + length).min(data.len());
            match kind {
                0 if at < data.len() => data[at] = octet,
                1 if at < data.len() => data[at] ^= 1 << (octet % 8),
                2 => drop(data.drain(at..end)),
                3 => data.splice(at..at, vec![octet; length]).for_each(drop),
                4 => {
                    let part = data[at..end].to_vec();
                    data.splice(at..at, part).for_each(drop);
                }
                _ => {
                    data.truncate(at);
                    data.extend(&other[at.min(other.len())..]);
                }
            }
        }
        data
    })
}

#[test]
fn the_corpus_holds_and_is_small() {
    for (name, target) in targets() {
        let inputs = inputs(name);
        assert!(inputs.len() >= 2, "{name} has too few seeds");
        for (file, data) in inputs {
            assert!(data.len() <= 8192, "{name}/{file} is large");
            println!("{name}/{file}");
            target(&data);
        }
    }
}

/// The corpus is what `seeds.rs` makes, and what failed once and was added by hand.
#[test]
fn every_seed_is_in_the_corpus() {
    let write = std::env::var_os("PF_WRITE_SEEDS").is_some();
    for (target, file, data) in seeds::all() {
        let path = corpus(target).join(&file);
        if write {
            std::fs::create_dir_all(corpus(target)).expect("the corpus can be written");
            std::fs::write(&path, &data).expect("the corpus can be written");
        }
        let committed = std::fs::read(&path).unwrap_or_default();
        assert!(committed == data, "{target}/{file} differs: run with PF_WRITE_SEEDS=1");
    }
}

#[test]
fn random_octets() {
    for target in targets() {
        hold(target, &prop::collection::vec(any::<u8>(), 0..600));
    }
}

/// Octets with which random text has more to say to the parsers of text.
#[test]
fn random_markup() {
    let piece = prop::sample::select(vec![
        "<",
        ">",
        "</",
        "/>",
        "a",
        "s:Envelope",
        "s:Body",
        "=",
        "\"",
        "'",
        "&",
        "&#13;",
        ";",
        "&amp;",
        "\r\n",
        " ",
        ":",
        "<!--",
        "-->",
        "<![CDATA[",
        "]]>",
        "xmlns",
        "<?xml version=\"1.0\"?>",
        "M-SEARCH * HTTP/1.1",
        "ST",
        "MAN",
        "ssdp:discover",
        "uuid:",
        "http://192.168.1.2:80/",
        "\u{e9}",
        "\u{85}",
        "65535",
        "-1",
        "allow ",
        "deny ",
        "0-65535",
        "192.168.1.0/24",
        "0.0.0.0/0",
        "::/0",
        " tcp",
        "\n",
    ]);
    let text = prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat().into_bytes());
    for target in targets() {
        hold(target, &text);
    }
}

#[test]
fn valid_inputs_with_changes() {
    for target in targets() {
        let inputs = inputs(target.0).into_iter().map(|(_, data)| data).collect();
        hold(target, &mutated(inputs));
    }
}
