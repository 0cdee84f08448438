//! `lab-igd-next`: a control point on the igd-next crate, which shares nothing with libminiupnpc.
//!
//! | arguments | prints |
//! |---|---|
//! | `address` | the external address |
//! | `add PROTOCOL EXTERNAL-PORT INTERNAL-ADDRESS LEASE` | `added` |
//! | `add-any PROTOCOL INTERNAL-ADDRESS LEASE` | the external port |
//! | `remove PROTOCOL EXTERNAL-PORT` | `removed` |
//!
//! A refusal or a failed discovery goes to standard error, with exit code 1.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use igd_next::{PortMappingProtocol, SearchOptions, search_gateway};

const DESCRIPTION: &str = "lab-igd-next";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(answer) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}: {error}", arguments.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<String, Box<dyn Error>> {
    let mut options = SearchOptions::default();
    options.timeout = Some(Duration::from_secs(5));
    let gateway = search_gateway(options)?;
    Ok(match *arguments {
        ["address"] => gateway.get_external_ip()?.to_string(),
        ["add", protocol, port, internal, lease] => {
            gateway.add_port(
                self::protocol(protocol)?,
                port.parse()?,
                internal.parse()?,
                lease.parse()?,
                DESCRIPTION,
            )?;
            "added".into()
        }
        ["add-any", protocol, internal, lease] => gateway
            .add_any_port(self::protocol(protocol)?, internal.parse()?, lease.parse()?, DESCRIPTION)?
            .to_string(),
        ["remove", protocol, port] => {
            gateway.remove_port(self::protocol(protocol)?, port.parse()?)?;
            "removed".into()
        }
        _ => return Err("see the first lines of lab-igd-next.rs".into()),
    })
}

fn protocol(name: &str) -> Result<PortMappingProtocol, String> {
    match name {
        "tcp" => Ok(PortMappingProtocol::TCP),
        "udp" => Ok(PortMappingProtocol::UDP),
        _ => Err(format!("{name} is neither tcp nor udp")),
    }
}
