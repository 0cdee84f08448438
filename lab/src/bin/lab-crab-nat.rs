//! `lab-crab-nat`: a PCP and NAT-PMP client on the crab_nat crate, which shares nothing with portferry.
//!
//! | arguments | prints |
//! |---|---|
//! | `external SERVER` | the external address (NAT-PMP) |
//! | `pcp SERVER CLIENT PROTOCOL INTERNAL EXTERNAL LIFETIME` | see below |
//! | `nat-pmp SERVER CLIENT PROTOCOL INTERNAL EXTERNAL LIFETIME` | see below |
//!
//! Both map, and print `mapped EXTERNAL LIFETIME`, and for PCP the external address; then for each line of standard input: `renew`
//! renews, and prints `renewed EXTERNAL LIFETIME`; `drop` deletes, and prints `dropped`. A refusal goes to standard error,
//! with exit code 1.

use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::process::ExitCode;

use crab_nat::pcp::BaseMapRequest;
use crab_nat::{InternetProtocol, PortMapping, PortMappingOptions, PortMappingType, natpmp, pcp};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.expect("a runtime can be made").block_on(run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", arguments.join(" "));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    let (which, server, client, protocol, internal, external, lifetime) = match *arguments {
        ["external", server] => {
            let server: IpAddr = server.parse()?;
            println!("{}", natpmp::external_address(server.into(), None).await?);
            return Ok(());
        }
        [which, server, client, protocol, internal, external, lifetime] => {
            (which, server, client, protocol, internal, external, lifetime)
        }
        _ => return Err("see the first lines of lab-crab-nat.rs".into()),
    };
    let (server, client): (IpAddr, IpAddr) = (server.parse()?, client.parse()?);
    let protocol = if protocol == "tcp" { InternetProtocol::Tcp } else { InternetProtocol::Udp };
    let internal: NonZeroU16 = internal.parse()?;
    let options = PortMappingOptions {
        external_port: NonZeroU16::new(external.parse()?),
        lifetime_seconds: Some(lifetime.parse()?),
        timeout_config: None,
    };
    let mut mapping = if which == "pcp" {
        let request = BaseMapRequest::new(server.into(), client, protocol, internal);
        pcp::port_mapping(request, None, None, options).await?
    } else {
        natpmp::port_mapping(server.into(), protocol, internal, options).await?
    };
    let tell = |what: &str, mapping: &PortMapping| {
        let addr = match mapping.mapping_type() {
            PortMappingType::Pcp { external_ip, .. } => external_ip.to_string(),
            PortMappingType::NatPmp => String::new(),
        };
        println!("{what} {} {} {addr}", mapping.external_port(), mapping.lifetime());
    };
    tell("mapped", &mapping);
    for line in io::stdin().lines() {
        match line?.as_str() {
            "renew" => {
                mapping.renew().await?;
                tell("renewed", &mapping);
            }
            _ => {
                mapping.try_drop().await.map_err(|(error, _)| error)?;
                println!("dropped");
                return Ok(());
            }
        }
    }
    Ok(())
}
