//! The command line.

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use engine::policy::{Device, Verb};

use crate::config::{Config, DEFAULT_PATH, DEFAULT_SOCKET};
use crate::control::{
    ConsentReport, ConsentsReport, MappingReport, PinholeReport, Question, ReleaseReport, StatusReport, query,
};
use crate::exit::Failure;
use crate::pcp_client::{self, EXAMPLES, PcpCommand};
use crate::pcp_server::{self, report};
use crate::{demo, dhcp, doctor, privileged, run, table};

/// An Internet gateway (UPnP IGD) that gets its ports from the provider's NAT, by PCP.
#[derive(Debug, Parser)]
#[command(name = "portferry", version, about, disable_help_subcommand = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 64 wrong command line, 69 a port or socket is taken or nobody answers, \
71 the system refuses, 73 the state directory or the control socket cannot be written, 77 a privilege is missing, \
78 the configuration is wrong; those of pcp and doctor see there.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway in the foreground; SIGTERM stops it, SIGHUP reads the configuration again
    Run {
        /// Configuration file
        #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
        config: PathBuf,
        /// Instead of running, remove what a run that was killed has left in the kernel: portferry's own tables, and its rules
        /// in fw4, firewalld and ufw; refused while a gateway with this configuration runs
        #[arg(long)]
        cleanup: bool,
        /// One process that keeps all of its privileges, instead of two of which the one that reads what the network sends has none;
        /// for finding faults
        #[arg(long, conflicts_with = "cleanup")]
        no_sandbox: bool,
    },
    /// Say whether a configuration file is good
    Check {
        /// Configuration file
        #[arg(value_name = "FILE", default_value = DEFAULT_PATH)]
        file: PathBuf,
    },
    /// Show how the running gateway is doing
    Status(Ask),
    /// Show the running gateway's mappings
    Mappings(Ask),
    /// Show the running gateway's pinholes in the IPv6 firewall
    Pinholes(Ask),
    /// Find out why a port is closed: interfaces, NATs, the provider's server, firewall, multicast; and what to do
    #[command(after_help = doctor::EXIT_CODES)]
    Doctor(doctor::Doctor),
    /// Give all mappings or pinholes of a LAN host back, because its address is free again; for DHCP servers
    Release {
        /// The host's IPv4 or IPv6 address
        address: IpAddr,
        #[command(flatten)]
        ask: Ask,
    },
    /// Show which LAN hosts wait for your consent, and on which you have decided (policy.default = "ask")
    #[command(args_conflicts_with_subcommands = true)]
    Consent {
        #[command(flatten)]
        ask: Ask,
        #[command(subcommand)]
        command: Option<ConsentCommand>,
    },
    /// Hand in the PCP servers that a DHCP client was offered (RFC 7291); for its hook
    DhcpServers(dhcp::hook::DhcpServers),
    /// Ask a PCP or NAT-PMP server for this or that, and show what it says; for diagnosis
    #[command(after_help = EXAMPLES)]
    Pcp {
        #[command(subcommand)]
        command: Box<PcpCommand>,
    },
    /// Serve PCP and NAT-PMP on this machine's NAT, for a VPS, a small provider, a test bench
    #[command(args_conflicts_with_subcommands = true)]
    PcpServer {
        /// Configuration file; the server runs in the foreground, SIGTERM stops it, SIGHUP reads the file again
        #[arg(long, value_name = "FILE", default_value = pcp_server::config::DEFAULT_PATH)]
        config: PathBuf,
        /// Keep all privileges; for finding faults
        #[arg(long)]
        no_sandbox: bool,
        #[command(subcommand)]
        command: Option<ServerCommand>,
    },
    /// Play provider, gateway and application on the loopback interface, and show what they say
    Demo {
        /// End when the mapping is shown to work, instead of waiting for Ctrl-C
        #[arg(long)]
        once: bool,
    },
}

#[derive(Debug, Subcommand)]
enum ConsentCommand {
    /// Let a host have mappings and pinholes
    Allow(Decide),
    /// Let it have none; what it has is given back
    Deny(Decide),
    /// Forget what was decided: it waits again when it asks again
    Forget(Decide),
}

#[derive(Args, Debug)]
struct Decide {
    /// Its hardware address, or an IP address that it has now: its hardware address counts then, if that is known
    #[arg(value_name = "HOST")]
    host: Device,
    #[command(flatten)]
    ask: Ask,
}

#[derive(Debug, Subcommand)]
enum ServerCommand {
    /// Say whether a server's configuration file is good
    Check {
        /// Configuration file
        #[arg(value_name = "FILE", default_value = pcp_server::config::DEFAULT_PATH)]
        file: PathBuf,
    },
    /// Show how the running server is doing, and what it refused for which reasons
    Status(AskServer),
    /// Show the running server's mappings
    Mappings(AskServer),
}

#[derive(Args, Debug)]
struct AskServer {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// The running server's control socket ([control] socket)
    #[arg(long, value_name = "SOCKET", default_value = pcp_server::config::DEFAULT_SOCKET)]
    socket: PathBuf,
}

#[derive(Args, Debug)]
struct Ask {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// The running gateway's control socket ([control] socket)
    #[arg(long, value_name = "SOCKET", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
}

/// The command line's definition, which the man pages are made of.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses the command line, does what it says, and gives the code for the shell: 0, 64 for a wrong command line, and
/// those of [`Failure`].
pub fn main() -> ExitCode {
    if let Some(result) = privileged::part_of_run() {
        return result.map_or_else(|failure| fail(&failure), |()| ExitCode::SUCCESS);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` come this way too.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    match execute(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => fail(&failure),
    }
}

fn fail(failure: &Failure) -> ExitCode {
    if !failure.is_said() {
        let _ = writeln!(std::io::stderr(), "portferry: {failure}");
    }
    failure.exit_code()
}

/// The code for the shell: only doctor has another one than 0 for what it has done.
fn execute(command: Command) -> Result<u8, Failure> {
    if let Command::Doctor(command) = command {
        return doctor::run(&command);
    }
    other(command).map(|()| 0)
}

fn other(command: Command) -> Result<(), Failure> {
    match command {
        Command::Doctor(_) => unreachable!("it has a code of its own"),
        Command::Run { config, cleanup: true, .. } => run::clean_up(&config),
        Command::Run { config, no_sandbox, .. } => run::run(&config, !no_sandbox),
        Command::Check { file } => {
            let config = Config::load(&file).map_err(|error| Failure::config(error.to_string()))?;
            for warning in config.warnings() {
                print(&format!("{}: {warning}\n", file.display()));
            }
            print(&format!("{}: good\n", file.display()));
            Ok(())
        }
        Command::Status(ask) => show(&ask, Question::Status, |text| {
            serde_json::from_str::<StatusReport>(text).map(|report| table::status(&report))
        }),
        Command::Mappings(ask) => show(&ask, Question::Mappings, |text| {
            serde_json::from_str::<Vec<MappingReport>>(text).map(|report| table::mappings(&report))
        }),
        Command::Pinholes(ask) => show(&ask, Question::Pinholes, |text| {
            serde_json::from_str::<Vec<PinholeReport>>(text).map(|report| table::pinholes(&report))
        }),
        Command::Release { address, ask } => show(&ask, Question::Release(address), |text| {
            serde_json::from_str::<ReleaseReport>(text).map(|report| {
                let stored =
                    if report.stored { "" } else { ", but that cannot be stored: a crash brings them back" };
                let what = if report.host.is_ipv4() { "mappings" } else { "pinholes" };
                format!("{what} of {} released: {}{stored}\n", report.host, report.released)
            })
        }),
        Command::Consent { ask, command: None } => show(&ask, Question::Consents, |text| {
            serde_json::from_str::<ConsentsReport>(text).map(|report| table::consents(&report))
        }),
        Command::Consent { command: Some(command), .. } => {
            let (verb, Decide { host, ask }) = match command {
                ConsentCommand::Allow(decide) => (Verb::Allow, decide),
                ConsentCommand::Deny(decide) => (Verb::Deny, decide),
                ConsentCommand::Forget(decide) => (Verb::Forget, decide),
            };
            show(&ask, Question::Consent(verb, host), |text| {
                serde_json::from_str::<ConsentReport>(text).map(|report| table::consent(&report))
            })
        }
        Command::DhcpServers(command) => dhcp::hook::run(&command),
        Command::Pcp { command } => pcp_client::run(&command),
        Command::PcpServer { config, no_sandbox, command: None } => pcp_server::run(&config, !no_sandbox),
        Command::PcpServer { command: Some(command), .. } => match command {
            ServerCommand::Check { file } => {
                let checked = pcp_server::config::Config::load(&file);
                checked.map_err(|error| Failure::config(error.to_string()))?;
                print(&format!("{}: good\n", file.display()));
                Ok(())
            }
            ServerCommand::Status(AskServer { json, socket }) => {
                show(&Ask { json, socket }, Question::Status, |text| {
                    serde_json::from_str(text).map(|report| report::status_table(&report))
                })
            }
            ServerCommand::Mappings(AskServer { json, socket }) => {
                show(&Ask { json, socket }, Question::Mappings, |text| {
                    serde_json::from_str::<Vec<report::MappingReport>>(text)
                        .map(|reports| report::mappings_table(&reports))
                })
            }
        },
        Command::Demo { once } => demo::demo(once),
    }
}

fn show(
    ask: &Ask,
    question: Question,
    format: impl Fn(&str) -> serde_json::Result<String>,
) -> Result<(), Failure> {
    let text = query(&ask.socket, question)?;
    if ask.json {
        print(&format!("{text}\n"));
        return Ok(());
    }
    let table = format(&text).map_err(|error| {
        Failure::unavailable(format!(
            "{}: what answers there is not what was asked for ({error}); `portferry status` and `portferry pcp-server status` have a socket each (--socket), or is it another version than {}?",
            ask.socket.display(),
            env!("CARGO_PKG_VERSION")
        ))
    })?;
    print(&table);
    Ok(())
}

/// A reader that went away, such as `head`, is no failure.
pub(crate) fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
