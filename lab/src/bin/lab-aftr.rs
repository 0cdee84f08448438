//! `lab-aftr DEVICE ADDRESS POOL [BINDING…]`: the carrier's end of DS-Lite (RFC 6333 §6) with its NAT. ADDRESS is where
//! softwires lead to, POOL the external IPv4 addresses with commas between; all of them have to be routed to the TUN device.
//! Bindings are there from the start: see [`lab::nat::read_binding`].

use std::net::Ipv4Addr;
use std::process::ExitCode;

use lab::aftr::Aftr;
use lab::carrier::{Carrier, ds_lite_server};
use lab::nat::{Nat, read_binding};
use lab::tun;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let read = || {
        let [device, address, pool, bindings @ ..] = &arguments[..] else { return None };
        let pool: Vec<Ipv4Addr> = pool.split(',').map(|addr| addr.parse().ok()).collect::<Option<_>>()?;
        let bindings: Vec<_> = bindings.iter().map(|text| read_binding(text)).collect::<Option<_>>()?;
        Some((device, address.parse().ok()?, pool, bindings))
    };
    let Some((device, address, pool, bindings)) = read() else {
        eprintln!("see the first lines of lab-aftr.rs");
        return ExitCode::FAILURE;
    };
    let aftr = Aftr::new(address, Nat::new(pool.clone(), None));
    let run = tun::run(device, |now| Carrier::new(now, aftr, ds_lite_server(pool), bindings));
    if let Err(error) = run {
        eprintln!("{device}: {error}");
    }
    ExitCode::FAILURE
}
