//! `portferry pcp …` on a host of the laboratory.

use std::path::{Path, PathBuf};
use std::process::Output;

use lab::netns::{Host, Network};
use serde_json::Value;

/// The program, on a host of the laboratory.
pub(crate) struct Pcp<'a> {
    network: &'a Network,
    program: PathBuf,
}

/// What came of one command.
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) errors: String,
}

impl<'a> Pcp<'a> {
    pub(crate) fn new(network: &'a Network, program: &Path) -> Self {
        Self { network, program: program.to_owned() }
    }

    #[track_caller]
    pub(crate) fn say(&self, host: Host, line: &str) -> Said {
        let mut command = self.network.command(host, "timeout");
        command.arg("30").arg(&self.program).arg("pcp").args(line.split(' '));
        let Output { status, stdout, stderr } = command.output().expect("it runs");
        Said {
            code: status.code().expect("it ends by itself"),
            out: String::from_utf8(stdout).expect("text"),
            errors: String::from_utf8(stderr).expect("text"),
        }
    }

    /// Succeeds; what it prints.
    #[track_caller]
    pub(crate) fn does(&self, line: &str) -> String {
        let said = self.say(Host::Router, line);
        assert_eq!(said.code, 0, "portferry pcp {line}\n{}{}", said.out, said.errors);
        said.out
    }

    /// With `--json`: one document, and the exit code that it says.
    #[track_caller]
    pub(crate) fn json(&self, line: &str) -> Value {
        self.json_of(Host::Router, line)
    }

    /// The same on another host.
    #[track_caller]
    pub(crate) fn json_of(&self, host: Host, line: &str) -> Value {
        let said = self.say(host, &format!("{line} --json"));
        let document: Value = serde_json::from_str(&said.out)
            .unwrap_or_else(|error| panic!("portferry pcp {line}: {error}\n{}", said.out));
        assert_eq!(document["exit_code"], said.code, "{}", said.out);
        document
    }
}
