//! `portferry`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    portferry::cli::main()
}
