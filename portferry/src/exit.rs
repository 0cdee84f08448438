//! How the program ends: the codes of sysexits(3), and one line on stderr that says what to do.

use std::fmt;
use std::process::ExitCode;

/// Why the program could not do what it was told.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// One that another process has met.
    pub fn of(code: u8, message: String) -> Self {
        Self { code, message }
    }

    /// One that has been said already.
    pub fn said(code: u8) -> Self {
        Self { code, message: String::new() }
    }

    /// Whether there is nothing more to say.
    pub fn is_said(&self) -> bool {
        self.message.is_empty()
    }

    /// The command line asks for what cannot be (EX_USAGE).
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: 64, message: message.into() }
    }

    /// A file cannot be read (EX_NOINPUT).
    pub fn no_input(message: impl Into<String>) -> Self {
        Self { code: 66, message: message.into() }
    }

    /// The other side of a connection is not there (EX_UNAVAILABLE).
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { code: 69, message: message.into() }
    }

    /// The system refused something (EX_OSERR).
    pub fn system(message: impl Into<String>) -> Self {
        Self { code: 71, message: message.into() }
    }

    /// A file could not be written (EX_CANTCREAT).
    pub fn cannot_create(message: impl Into<String>) -> Self {
        Self { code: 73, message: message.into() }
    }

    /// The other side refuses, for now (EX_TEMPFAIL): a PCP refusal says how long it holds.
    pub fn refused(message: impl Into<String>) -> Self {
        Self { code: 75, message: message.into() }
    }

    /// The other side said what cannot be (EX_PROTOCOL).
    pub fn protocol(message: impl Into<String>) -> Self {
        Self { code: 76, message: message.into() }
    }

    /// A privilege is missing (EX_NOPERM).
    pub fn no_permission(message: impl Into<String>) -> Self {
        Self { code: 77, message: message.into() }
    }

    /// The configuration is wrong (EX_CONFIG).
    pub fn config(message: impl Into<String>) -> Self {
        Self { code: 78, message: message.into() }
    }

    /// The code as a number.
    pub fn code(&self) -> u8 {
        self.code
    }

    /// The code for the shell.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
