//! What happens to a router while it is asked.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::tally;
use super::verdict::Window;
use crate::netns::{Host, Network, PROVIDER, Process, WAN_INTERFACE};
use crate::provider::QuickProvider;

/// Faults in their turn.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    /// SIGHUP, with another value of one setting.
    Reload,
    /// The provider's server begins anew without any mapping.
    StateLoss,
    /// Somebody deletes the daemon's tables.
    Flush,
    /// A host's cable is pulled for two seconds.
    Cable,
    /// The line to the provider is dead for three seconds.
    Line,
}

/// In this order, again and again.
pub(super) const ALL: [Fault; 5] = [Fault::Reload, Fault::StateLoss, Fault::Flush, Fault::Cable, Fault::Line];

/// Until mappings are at the provider again: the wait before, and the four at a time.
const RECOVERY: Duration = Duration::from_secs(15);
/// Until a TCP that lost something has sent it again.
const RETRANSMISSION: Duration = Duration::from_secs(12);

/// Does it, in that round of all; what it excuses.
pub(super) fn happen(
    fault: Fault,
    network: &Network,
    daemon: &Process,
    provider: &mut QuickProvider<'_>,
    round: usize,
) -> Option<Window> {
    let from = tally::now();
    let until = |more: Duration| (from, tally::now() + more);
    match fault {
        Fault::Reload => {
            reload(&network.directory().join("portferry.toml"), round);
            daemon.signal("HUP");
            None
        }
        Fault::StateLoss => {
            provider.lose_state();
            Some(Window { during: until(RECOVERY), player: None, silence: false })
        }
        Fault::Flush => {
            let tables = "table inet portferry\ndelete table inet portferry\n\
                          table ip6 portferry\ndelete table ip6 portferry\n";
            network.nft(Host::Router, tables);
            None
        }
        Fault::Cable => {
            let player = round % 2;
            let port = ["port1", "port2"][player];
            network.run(Host::Router, "ip", ["link", "set", port, "down"]);
            thread::sleep(Duration::from_secs(2));
            network.run(Host::Router, "ip", ["link", "set", port, "up"]);
            Some(Window { during: until(RETRANSMISSION), player: Some(player), silence: true })
        }
        Fault::Line => {
            network.run(Host::Router, "ip", ["link", "set", WAN_INTERFACE, "down"]);
            thread::sleep(Duration::from_secs(3));
            network.run(Host::Router, "ip", ["link", "set", WAN_INTERFACE, "up"]);
            // It went with the link, as it does on a router before its DHCP client speaks.
            network.run(Host::Router, "ip", ["route", "replace", "default", "via", &PROVIDER.to_string()]);
            Some(Window { during: until(RECOVERY), player: None, silence: false })
        }
    }
}

/// Writes another configuration into the file.
fn reload(file: &Path, round: usize) {
    let text = fs::read_to_string(file).expect("the daemon was started with it");
    let (then, now) = if round.is_multiple_of(2) { ("3.5", "3.4") } else { ("3.4", "3.5") };
    let set = |value: &str| format!("answer_within = {value}\n");
    fs::write(file, text.replace(&set(then), &set(now))).expect("the directory is ours");
}
