//! The data planes of DS-Lite at work: the AFTR, and both homes' ends of their softwires.

use std::net::Ipv6Addr;

use lab::netns::{
    AFTR, AFTR_DEVICE, B4_DEVICE, EXTERNAL, Host, Network, OTHER_ACCESS, Process, ROUTER_ACCESS,
};

use super::{SECOND, with_tun};

const LAB_AFTR: &str = env!("CARGO_BIN_EXE_lab-aftr");
const LAB_B4: &str = env!("CARGO_BIN_EXE_lab-b4");

/// `None` (after saying so) where there are no TUN devices.
pub(crate) fn network() -> Option<Network> {
    with_tun(Network::ds_lite)
}

/// The AFTR, with switches of `lab-aftr` and bindings of the start; `log` names its log.
#[track_caller]
pub(crate) fn aftr(network: &Network, log: &str, switches: &[String], bindings: &[String]) -> Process {
    let mut arguments = switches.to_vec();
    arguments.extend([AFTR_DEVICE.to_owned(), AFTR.to_string(), EXTERNAL.to_string()]);
    arguments.extend_from_slice(bindings);
    let mut aftr = network.spawn(Host::Provider, log, LAB_AFTR, arguments);
    aftr.await_log("ready", 5 * SECOND);
    aftr
}

/// Both homes' ends of their softwires.
#[track_caller]
pub(crate) fn b4s(network: &Network) -> [Process; 2] {
    let b4 = |router, own: Ipv6Addr| {
        let arguments = [B4_DEVICE.to_owned(), own.to_string(), AFTR.to_string()];
        network.spawn(router, &format!("b4-{router}"), LAB_B4, arguments)
    };
    let mut both = [b4(Host::Router, ROUTER_ACCESS), b4(Host::Other, OTHER_ACCESS)];
    both.iter_mut().for_each(|process| process.await_log("ready", 5 * SECOND));
    both
}
