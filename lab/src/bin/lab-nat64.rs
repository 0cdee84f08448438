//! `lab-nat64 DEVICE ADDRESS PREFIX POOL [BINDING…]`: a stateful NAT64 (RFC 6146). PREFIX is the address of 96 bits of
//! prefix, such as `64:ff9b::`, ADDRESS that of its PCP server, POOL the external IPv4 addresses with commas between; all
//! of them have to be routed to the TUN device. Bindings are there from the start: see [`lab::nat::read_binding`].

use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;

use lab::carrier::{Carrier, nat64_server};
use lab::nat::{Nat, read_binding};
use lab::nat64::Nat64;
use lab::packet::Prefix64;
use lab::tun;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let read = || {
        let [device, address, prefix, pool, bindings @ ..] = &arguments[..] else { return None };
        let pool: Vec<Ipv4Addr> = pool.split(',').map(|addr| addr.parse().ok()).collect::<Option<_>>()?;
        let prefix = Prefix64::from(prefix.parse::<Ipv6Addr>().ok()?);
        let bindings: Vec<_> = bindings.iter().map(|text| read_binding(text)).collect::<Option<_>>()?;
        Some((device, address.parse().ok()?, prefix, pool, bindings))
    };
    let Some((device, address, prefix, pool, bindings)) = read() else {
        eprintln!("see the first lines of lab-nat64.rs");
        return ExitCode::FAILURE;
    };
    let plane = Nat64::new(address, prefix, Nat::new(pool.clone(), Some(prefix)));
    let run = tun::run(device, None, |now| Carrier::new(now, plane, nat64_server(pool, prefix), bindings));
    if let Err(error) = run {
        eprintln!("{device}: {error}");
    }
    ExitCode::FAILURE
}
