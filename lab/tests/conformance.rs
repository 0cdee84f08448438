//! `docs/conformance.md` is what the tests say, and every row has its test or its reason. `PF_BLESS=1` writes it anew.

use std::path::Path;

#[test]
fn every_row_is_held_and_the_page_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = root.join("docs/conformance.md");
    let report = lab::conformance::report(&root);
    if std::env::var_os("PF_BLESS").is_some() {
        std::fs::write(&path, &report.page).expect("docs/ can be written");
    }
    assert!(report.faults.is_empty(), "{} faults:\n{}", report.faults.len(), report.faults.join("\n"));
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == report.page,
        "docs/conformance.md is out of date: PF_BLESS=1 cargo test -p lab --test conformance"
    );
}
