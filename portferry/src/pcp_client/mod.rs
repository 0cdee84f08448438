//! `portferry pcp …`: asks any PCP or NAT-PMP server from the command line, for diagnosis.
//!
//! `args` and `parse` make a `plan` of the command line; `client` carries it out without socket or clock, by `message`
//! (what is an answer), `reading` (what it says) and `schedule` (when to ask again), and ends in an `outcome`, with
//! `hints`; `shell` gives it sockets and time, and `voice` shows what happens. `listen` hears announcements.

mod args;
mod client;
#[cfg(test)]
mod client_tests;
mod epochs;
mod hex;
mod hints;
mod json;
mod listen;
mod message;
mod nonce;
mod note;
mod outcome;
mod parse;
mod plan;
pub(crate) mod quiet;
mod reading;
mod schedule;
mod server;
mod shell;
mod voice;
#[cfg(test)]
mod voice_tests;

pub(crate) use args::{EXAMPLES, PcpCommand};

use crate::exit::Failure;

/// Does what the command line says, and shows it.
pub(crate) fn run(command: &PcpCommand) -> Result<(), Failure> {
    let errand = command.errand()?;
    let runtime = crate::run::runtime()?;
    match (errand, command) {
        (Some(errand), _) => runtime.block_on(shell::run(errand)),
        (None, PcpCommand::Listen(args)) => runtime.block_on(listen::run(args)),
        (None, _) => unreachable!("every other command is an errand"),
    }
}
