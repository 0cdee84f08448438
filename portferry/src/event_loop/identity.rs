//! Who is who: before a host is heard that counts by its network card (K-3, `policy.default = "ask"`), the neighbour table is looked at,
//! beside the loop.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use engine::gateway::{Event, LanArrival};
use engine::gateways::{Gateways, To};
use engine::policy::{Device, Verb};
use tokio::sync::oneshot;

use super::{Datagram, Shell, json};
use crate::clock::now;
use crate::config::PolicyDefault;
use crate::control::ConsentReport;

/// So many datagrams wait for that at once. What comes beside them is lost on the way, as in any full queue, and sent again.
pub(super) const AT_ONCE: usize = 256;

/// The owner has decided, and it is known where the device is.
#[derive(Debug)]
pub(super) struct Decision {
    device: Device,
    verb: Verb,
    addresses: Vec<IpAddr>,
    /// Who has just said it; nobody, when it was said before and is to count now.
    reply: Option<oneshot::Sender<String>>,
}

impl Shell {
    /// Whether a PCP or NAT-PMP client is looked up: over IPv6 it has as many addresses as it wants.
    pub(super) fn is_to_look_up(&self, client: IpAddr) -> bool {
        client.to_canonical().is_ipv6() || self.config.policy.default == PolicyDefault::Ask
    }

    pub(super) fn look_up_client(&self, arrival: LanArrival, bytes: &[u8]) {
        let Ok(place) = Arc::clone(&self.looking_up).try_acquire_owned() else { return };
        let (context, found, bytes) = (Arc::clone(&self.context), self.datagrams.0.clone(), bytes.to_vec());
        tokio::spawn(async move {
            let known = context.neighbours.of(arrival.interface, arrival.from.ip()).await;
            // Behind what has come meanwhile; the loop has ended otherwise.
            let _ = found.send((0, Datagram::Lan5351Known { arrival, bytes, known })).await;
            drop(place);
        });
    }

    /// The owner decides about a device; by whichever name he knows it, it is its network card that counts, if that is known.
    pub(super) fn look_up_device(&self, named: Device, verb: Verb, reply: Option<oneshot::Sender<String>>) {
        let (context, found) = (Arc::clone(&self.context), self.decisions.0.clone());
        tokio::spawn(async move {
            let (addresses, card) = context.neighbours.of_device(named).await;
            let device = match (named, verb) {
                // What was decided by an address is forgotten by that.
                (Device::Address(_), Verb::Allow | Verb::Deny) => card.map_or(named, Device::Hardware),
                _ => named,
            };
            let _ = found.send(Decision { device, verb, addresses, reply }).await;
        });
    }

    /// Whom the owner has denied has nothing from now on, for he is asked: what there is of it is found by its network card.
    pub(super) fn look_up_denied(&self, gateways: &Gateways) {
        if self.config.policy.default != PolicyDefault::Ask {
            return;
        }
        for device in denied(gateways) {
            self.look_up_device(device, Verb::Deny, None);
        }
    }

    pub(super) async fn on_decision(&mut self, gateways: &mut Gateways, decision: Decision) {
        let Decision { device, verb, addresses, reply } = decision;
        if reply.is_none() && !denied(gateways).contains(&device) {
            return; // he has thought better of it meanwhile
        }
        let standing = |gateways: &Gateways| -> usize {
            gateways
                .iter()
                .map(|(_, gateway)| gateway.mappings(now()).count() + gateway.pinholes(now()).len())
                .sum()
        };
        let before = standing(gateways);
        for place in 0..self.uplinks.len() {
            let event = Event::Consent { device, verb, addresses: addresses.clone() };
            gateways.handle(now(), To::Uplink(place), event);
            self.perform_all(gateways).await;
        }
        self.sync();
        let asks = self.config.policy.default == PolicyDefault::Ask;
        let released = before.saturating_sub(standing(gateways));
        let stored = !self.uplinks.iter().any(|uplink| uplink.store_failed);
        if let Some(reply) = reply {
            // Whoever asked may have hung up.
            let _ = reply.send(json(&ConsentReport::new(verb, device, asks, released, stored)));
        }
    }
}

/// Whom the owner has said no to.
fn denied(gateways: &Gateways) -> BTreeSet<Device> {
    let decided = gateways.iter().flat_map(|(_, gateway)| gateway.consents(now()).decided);
    decided.filter(|one| !one.allowed).map(|one| one.device).collect()
}
