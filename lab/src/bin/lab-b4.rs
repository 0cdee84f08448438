//! `lab-b4 DEVICE ADDRESS AFTR`: the home router's end of a DS-Lite softwire (RFC 6333 §5), between its own IPv6 address and
//! the AFTR's. What is routed to the TUN device goes out: IPv4 packets into the softwire, and IPv6 packets that came for
//! ADDRESS with IPv4 in them out of it.

use std::process::ExitCode;

use lab::b4::B4;
use lab::tun;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let read = || {
        let [device, own, aftr] = &arguments[..] else { return None };
        Some((device, B4 { own: own.parse().ok()?, aftr: aftr.parse().ok()? }))
    };
    let Some((device, b4)) = read() else {
        eprintln!("see the first lines of lab-b4.rs");
        return ExitCode::FAILURE;
    };
    if let Err(error) = tun::run_b4(device, b4) {
        eprintln!("{device}: {error}");
    }
    ExitCode::FAILURE
}
