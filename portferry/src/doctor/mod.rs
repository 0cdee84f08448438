//! `portferry doctor`: looks at what stands between an application and the Internet, says what is wrong, and what to do.
//!
//! `gather` looks (I/O, nothing else) and leaves `facts`; `judge` makes findings of them, as pure functions, with the packet walk
//! of `walk` and `xtables`; `text` prints them for people, serde for programs. `ids` is the registry of findings. It changes nothing
//! on this machine, and at the provider nothing but a probe mapping that it deletes again.

mod facts;
mod finding;
mod gather;
mod ids;
mod judge;
mod text;
mod walk;
mod xtables;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;

use crate::config::{Config, DEFAULT_PATH};
use crate::exit::Failure;
use finding::{Finding, Report, Verdict};

/// What `portferry doctor` is told.
#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// The configuration file of the gateway
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// What `--help` says of how it ends.
pub(crate) const EXIT_CODES: &str = "Exit codes: 0 no fault, 1 at least one fault, 78 the configuration is wrong or cannot be \
read, and the rest was not looked at. As root it sees more: the packet filter, and whose ports are whose.";

/// Looks, prints, and gives the code for the shell: 0, 1 with a fault, 78 with a configuration that is none.
///
/// # Errors
/// The system does not even tell its interfaces.
pub(crate) fn run(command: &Doctor) -> Result<u8, Failure> {
    let file = command.config.display().to_string();
    let (findings, bad) = match Config::load(&command.config) {
        Ok(config) => {
            let good = Finding::new("configuration-good", format!("{file} is good"));
            let facts = crate::run::runtime()?.block_on(gather::gather(&config))?;
            ([vec![good], judge::judge(&facts)].concat(), false)
        }
        Err(error) => {
            let finding = Finding::new("configuration-bad", error.to_string())
                .todo("correct it, or name another file with --config; docs/portferry.example.toml has every key")
                .command(format!("portferry check {file}"));
            (vec![finding], true)
        }
    };
    let report = Report::new(file, findings);
    let mut out = std::io::stdout();
    let text = if command.json {
        let json = serde_json::to_string_pretty(&report);
        json.map_err(|error| Failure::system(format!("no JSON: {error}")))? + "\n"
    } else {
        let colours = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        text::render(&report, colours)
    };
    // A reader that went away, such as `head`, is no failure.
    let _ = out.write_all(text.as_bytes());
    Ok(match report.verdict {
        _ if bad => 78,
        Verdict::Fault => 1,
        _ => 0,
    })
}
