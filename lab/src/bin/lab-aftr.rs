//! `lab-aftr [SWITCH…] DEVICE ADDRESS POOL [BINDING…]`: the carrier's end of DS-Lite (RFC 6333 §6) with its NAT. ADDRESS is
//! where softwires lead to, POOL the external IPv4 addresses with commas between; all of them have to be routed to the TUN
//! device. Bindings are there from the start: see [`lab::nat::read_binding`].
//!
//! What its PCP server does otherwise than [`ds_lite_server`] has it:
//!
//! | switch | meaning |
//! |---|---|
//! | `--hold SECONDS` | how long a freed port goes to nobody but its last owner |
//! | `--lifetimes SHORTEST-LONGEST` | what it grants, in seconds |
//! | `--quota PORTS` | what one subscriber may have |
//! | `--list` | GET and NEXT: clients may ask which mappings they have |
//! | `--link INTERFACE` | subscribers are on this interface: it announces itself to `ff02::1` there |

use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;

use engine::provider::{Binding, ServerConfig};
use engine::time::Duration;
use lab::aftr::Aftr;
use lab::carrier::{Carrier, ds_lite_server};
use lab::nat::{Nat, read_binding};
use lab::tun::{self, Link};

struct Arguments {
    device: String,
    address: Ipv6Addr,
    pool: Vec<Ipv4Addr>,
    server: ServerConfig,
    link: Option<String>,
    bindings: Vec<Binding>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(Arguments { device, address, pool, server, link, bindings }) = read(&arguments) else {
        eprintln!("see the first lines of lab-aftr.rs");
        return ExitCode::FAILURE;
    };
    let aftr = Aftr::new(address, Nat::new(pool, None));
    let link = link.map(|interface| Link { interface, server: address });
    let run = tun::run(&device, link, |now| Carrier::new(now, aftr, server, bindings));
    if let Err(error) = run {
        eprintln!("{device}: {error}");
    }
    ExitCode::FAILURE
}

fn read(mut arguments: &[String]) -> Option<Arguments> {
    // The pool comes behind the switches.
    let mut server = ds_lite_server(Vec::new());
    let mut link = None;
    while let [switch, rest @ ..] = arguments
        && switch.starts_with("--")
    {
        arguments = rest;
        if switch == "--list" {
            server.query = true;
            continue;
        }
        let [value, rest @ ..] = arguments else { return None };
        arguments = rest;
        match &switch[..] {
            "--hold" => server.hold = Duration::from_secs(value.parse().ok()?),
            "--lifetimes" => {
                let (shortest, longest) = value.split_once('-')?;
                (server.shortest, server.longest) = (shortest.parse().ok()?, longest.parse().ok()?);
            }
            "--quota" => server.quota = value.parse().ok()?,
            "--link" => link = Some(value.clone()),
            _ => return None,
        }
    }
    let [device, address, pool, bindings @ ..] = arguments else { return None };
    server.pool = pool.split(',').map(|addr| addr.parse().ok()).collect::<Option<_>>()?;
    let bindings = bindings.iter().map(|text| read_binding(text)).collect::<Option<_>>()?;
    Some(Arguments {
        device: device.clone(),
        address: address.parse().ok()?,
        pool: server.pool.clone(),
        server,
        link,
        bindings,
    })
}
