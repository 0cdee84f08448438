//! The man pages in `docs/man` are those that the command line's definition gives. `PF_BLESS=1` writes them anew.

use std::path::PathBuf;

fn page(command: &clap::Command, title: &str) -> String {
    let mut out = Vec::new();
    clap_mangen::Man::new(command.clone())
        .title(title)
        .section("8")
        .manual("portferry")
        // No date: a page changes with what it says and with nothing else.
        .date("")
        .render(&mut out)
        .expect("it is written to memory");
    String::from_utf8(out).expect("man pages are text")
}

/// Those of all subcommands, and of theirs.
fn pages(command: &clap::Command, all: &mut Vec<(String, String)>) {
    for sub in command.get_subcommands() {
        let name = sub.get_display_name().expect("build() has named it").to_owned();
        all.push((name.clone(), page(sub, &name)));
        pages(sub, all);
    }
}

#[test]
fn man_pages_are_those_of_the_command_line() {
    let directory = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/man"));
    let mut command = portferry::cli::command();
    command.build();
    let mut all = vec![("portferry".to_owned(), page(&command, "portferry"))];
    pages(&command, &mut all);
    for (name, wanted) in all {
        let path = directory.join(format!("{name}.8"));
        if std::env::var_os("PF_BLESS").is_some() {
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(&path, &wanted).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            found, wanted,
            "docs/man/{name}.8 is out of date: PF_BLESS=1 cargo test -p portferry --test man"
        );
    }
}
