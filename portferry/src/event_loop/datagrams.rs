//! What comes in by sockets, and whom it is for.

use std::net::{IpAddr, SocketAddr};

use engine::gateway::{Event, LanArrival, UplinkEvent};
use engine::gateways::{Gateways, Place, To};
use engine::policy::Known;

use super::Shell;
use crate::clock::now;
use crate::dhcp::{self, Dhcp};
use crate::exit::Failure;

/// What comes in by sockets.
#[derive(Debug)]
pub(super) enum Datagram {
    Ssdp {
        interface: u32,
        local: Option<IpAddr>,
        from: SocketAddr,
        bytes: Vec<u8>,
    },
    Uplink {
        from: SocketAddr,
        bytes: Vec<u8>,
    },
    UplinkUnreachable(SocketAddr),
    Firewall {
        from: SocketAddr,
        bytes: Vec<u8>,
    },
    FirewallUnreachable(SocketAddr),
    Scouted {
        from: SocketAddr,
        bytes: Vec<u8>,
    },
    Announcement {
        from: SocketAddr,
        bytes: Vec<u8>,
    },
    SearchAnswer {
        from: SocketAddr,
        bytes: Vec<u8>,
    },
    Lan5351 {
        arrival: LanArrival,
        bytes: Vec<u8>,
    },
    /// The same, once its client has been looked up.
    Lan5351Known {
        arrival: LanArrival,
        bytes: Vec<u8>,
        known: Known,
    },
    Dhcp(dhcp::Datagram),
}

impl Shell {
    /// It becomes an event of the uplink at `place`, or of whoever serves the host that it comes from.
    pub(super) async fn on_datagram(
        &mut self,
        gateways: &mut Gateways,
        place: Place,
        datagram: Datagram,
    ) -> Result<(), Failure> {
        let event = match &datagram {
            Datagram::Ssdp { interface, local, from, bytes } => {
                Event::Ssdp { interface: *interface, local: *local, from: *from, bytes }
            }
            Datagram::Uplink { from, bytes } => Event::Uplink { from: *from, bytes },
            Datagram::UplinkUnreachable(server) => Event::UplinkUnreachable(*server),
            Datagram::Firewall { from, bytes } => {
                Event::FirewallUplink(UplinkEvent::Datagram { from: *from, bytes })
            }
            Datagram::FirewallUnreachable(server) => Event::FirewallUplink(UplinkEvent::Unreachable(*server)),
            Datagram::Scouted { from, bytes } => Event::Scouted { from: *from, bytes },
            Datagram::Announcement { from, bytes } => Event::Announcement { from: *from, bytes },
            Datagram::SearchAnswer { from, bytes } => Event::SearchAnswer { from: *from, bytes },
            Datagram::Lan5351 { arrival, bytes } if self.is_to_look_up(arrival.from.ip()) => {
                self.look_up_client(gateways, *arrival, bytes);
                return Ok(());
            }
            Datagram::Lan5351Known { arrival, bytes, known } => {
                self.looking_up.end(arrival.from.ip());
                gateways.know(arrival.from.ip(), known);
                let event = Event::Lan5351 { arrival: *arrival, bytes };
                gateways.handle(now(), To::Host(arrival.from.ip()), event);
                return Ok(());
            }
            Datagram::Lan5351 { arrival, bytes } => {
                let event = Event::Lan5351 { arrival: *arrival, bytes };
                gateways.handle(now(), To::Host(arrival.from.ip()), event);
                return Ok(());
            }
            Datagram::Dhcp(datagram) => {
                let happens = |dhcp: &mut Dhcp| dhcp.handle_datagram(now(), datagram);
                return self.on_dhcp(gateways, place, happens).await;
            }
        };
        gateways.handle(now(), To::Uplink(place), event);
        Ok(())
    }
}
