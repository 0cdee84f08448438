//! `lab-aftr DEVICE ADDRESS POOL [BINDING…]`: the carrier's end of DS-Lite (RFC 6333 §6) with its NAT. ADDRESS is where
//! softwires lead to, POOL the external IPv4 addresses with commas between; all of them have to be routed to the TUN device.
//! Bindings are there from the start: see [`lab::nat::Binding`].

use std::process::ExitCode;

use lab::aftr::Aftr;
use lab::carrier::Carrier;
use lab::nat::{Binding, Nat};
use lab::tun;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let read = || {
        let [device, address, pool, bindings @ ..] = &arguments[..] else { return None };
        let pool: Vec<_> = pool.split(',').map(|addr| addr.parse().ok()).collect::<Option<_>>()?;
        let bindings: Vec<Binding> = bindings.iter().map(|text| text.parse().ok()).collect::<Option<_>>()?;
        Some((device, Carrier::new(Aftr::new(address.parse().ok()?, Nat::new(pool, None)), bindings).ok()?))
    };
    let Some((device, carrier)) = read() else {
        eprintln!("see the first lines of lab-aftr.rs");
        return ExitCode::FAILURE;
    };
    if let Err(error) = tun::run(device, |_| carrier) {
        eprintln!("{device}: {error}");
    }
    ExitCode::FAILURE
}
