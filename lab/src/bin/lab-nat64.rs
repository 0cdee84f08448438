//! `lab-nat64 DEVICE ADDRESS PREFIX POOL [BINDING…]`: a stateful NAT64 (RFC 6146). PREFIX is the address of 96 bits of
//! prefix, such as `64:ff9b::`, ADDRESS that of its PCP server, POOL the external IPv4 addresses with commas between; all
//! of them have to be routed to the TUN device. Bindings are there from the start: see [`lab::nat::Binding`].

use std::net::Ipv6Addr;
use std::process::ExitCode;

use lab::carrier::Carrier;
use lab::nat::{Binding, Nat};
use lab::nat64::Nat64;
use lab::tun;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let read = || {
        let [device, address, prefix, pool, bindings @ ..] = &arguments[..] else { return None };
        let pool: Vec<_> = pool.split(',').map(|addr| addr.parse().ok()).collect::<Option<_>>()?;
        let prefix = prefix.parse::<Ipv6Addr>().ok()?.into();
        let bindings: Vec<Binding> = bindings.iter().map(|text| text.parse().ok()).collect::<Option<_>>()?;
        let plane = Nat64::new(address.parse().ok()?, prefix, Nat::new(pool, Some(prefix)));
        Some((device, Carrier::new(plane, bindings).ok()?))
    };
    let Some((device, carrier)) = read() else {
        eprintln!("see the first lines of lab-nat64.rs");
        return ExitCode::FAILURE;
    };
    if let Err(error) = tun::run(device, |_| carrier) {
        eprintln!("{device}: {error}");
    }
    ExitCode::FAILURE
}
