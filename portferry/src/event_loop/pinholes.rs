//! Pinholes of this router's IPv6 firewall, and the way to the provider's.

use engine::gateway::{PinholeReading, UplinkEffect};
use engine::gateways::Place;
use engine::nat::NatFailure;
use engine::pinholes::{FirewallChange, Flows};

use super::{Datagram, Outcome, Shell};
use crate::nft::pinholes::PinholeRule;
use crate::sockets;

impl Shell {
    pub(super) async fn change_firewall(
        &mut self,
        place: Place,
        change: FirewallChange,
    ) -> Result<(), NatFailure> {
        match change {
            FirewallChange::Open(flows) => self.kernel.change_pinhole(place, true, rule(flows)).await,
            FirewallChange::Close(flows) => self.kernel.change_pinhole(place, false, rule(flows)).await,
        }
    }

    pub(super) async fn read_pinhole(&mut self, place: Place, what: PinholeReading) -> Option<u32> {
        match what {
            PinholeReading::Packets(flows) => self.kernel.pinhole_packets(place, rule(flows)).await,
            PinholeReading::Timeout(protocol) => self.kernel.idle_timeout(protocol.0).await,
        }
    }

    /// The socket towards the provider's IPv6 firewall.
    pub(super) async fn perform_firewall_uplink(&mut self, place: Place, effect: UplinkEffect) {
        match effect {
            UplinkEffect::Open(server) => {
                self.uplinks[place].firewall = None;
                let wrap = |from, bytes| Datagram::Firewall { from, bytes };
                let refused = move || Datagram::FirewallUnreachable(server);
                let outcome = match self.connect(place, server, wrap, refused).await {
                    Ok((reading, source)) => {
                        self.uplinks[place].firewall = Some((server, reading));
                        Outcome::FirewallOpened(server, source)
                    }
                    Err(error) => Outcome::FirewallFailed(server, error.to_string()),
                };
                self.outcomes.push_back((place, outcome));
            }
            UplinkEffect::Close => self.uplinks[place].firewall = None,
            UplinkEffect::Send { to, bytes } => {
                let socket = self.uplinks[place].firewall.as_ref().filter(|(server, _)| *server == to);
                if let Some((_, firewall)) = socket
                    && let Err(error) = firewall.sender.send(&bytes)
                {
                    // As if lost on the way: it is sent again. The error may be that of the last one.
                    tracing::debug!("to {to}: {error}");
                    if sockets::is_refused(&error) {
                        self.outcomes.push_back((place, Outcome::FirewallUnreachable(to)));
                    }
                }
            }
        }
    }
}

fn rule(flows: Flows) -> PinholeRule {
    PinholeRule {
        protocol: flows.to.protocol.0,
        internal: flows.to.addr,
        internal_port: flows.to.port,
        remote: flows.remote,
        remote_port: flows.remote_port,
    }
}
