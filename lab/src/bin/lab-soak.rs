//! `lab-soak [--seconds N] [--leftovers]`: portferry under mixed load for so long (60), and what that did to it; `docs/soak.md`. Exit code 1:
//! not good enough. With `--leftovers`, how requests were answered does not count, for a machine that may have better to do. Needs
//! root. The daemon is `PF_SUBJECT`, or the `portferry` beside this program.
//!
//! `lab-soak play ADDRESS ADDRESS6 LEASE` is one of its players, and runs on a LAN host.

use std::process::ExitCode;
use std::time::Duration;

use lab::netns;
use lab::soak::{self, Plan};
use lab::subject::Subject;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let good = match arguments[..] {
        ["play", host, host_v6, lease] => {
            let played = match (host.parse(), host_v6.parse(), lease.parse()) {
                (Ok(host), Ok(host_v6), Ok(lease)) => soak::play(host, host_v6, lease),
                _ => Err(std::io::ErrorKind::InvalidInput.into()),
            };
            played.map(|()| true).map_err(|error| error.to_string())
        }
        ref options => conduct(options),
    };
    match good {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{}: {error}", arguments.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn conduct(options: &[&str]) -> Result<bool, String> {
    let (options, judges_answers) = match options.split_last() {
        Some((&"--leftovers", options)) => (options, false),
        _ => (options, true),
    };
    let seconds = match options {
        [] => 60,
        ["--seconds", seconds] => seconds
            .parse()
            .map_err(|error: std::num::ParseIntError| format!("--seconds {seconds}: {error}"))?,
        _ => return Err("see the first lines of lab-soak.rs".to_owned()),
    };
    if let Some(reason) = netns::reason_to_skip() {
        return Err(reason.to_owned());
    }
    let player = std::env::current_exe().map_err(|error| error.to_string())?;
    let subject = match std::env::var_os("PF_SUBJECT") {
        None => soak::beside(&player, "portferry"),
        Some(_) => match Subject::from_environment() {
            Subject::Portferry(program) => program,
            Subject::Miniupnpd => return Err("miniupnpd is not what this looks at".to_owned()),
        },
    };
    let pcp_server = soak::beside(&player, "lab-pcp-server");
    let length = Duration::from_secs(seconds);
    Ok(soak::run(&Plan { player, pcp_server, subject, length, judges_answers }))
}
