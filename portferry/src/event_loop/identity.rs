//! Who is who: before a host is heard that counts by its network card (K-3, `policy.default = "ask"`), the neighbour table is looked at,
//! beside the loop.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use engine::gateway::{Event, LanArrival};
use engine::gateways::{Gateways, To};
use engine::policy::{Device, HardwareAddress, Verb};
use tokio::sync::oneshot;

use super::{Datagram, Shell, json};
use crate::clock::now;
use crate::config::PolicyDefault;
use crate::control::ConsentReport;

/// So many datagrams wait for that at once, and so many of one address, so that one that floods leaves room for others. What
/// comes beside them is counted, dropped, as in any full queue, and sent again.
const AT_ONCE: usize = 256;
const OF_ONE: usize = 16;

/// The datagrams that wait, by who has sent them.
#[derive(Debug, Default)]
pub(super) struct LookUps {
    by_client: HashMap<IpAddr, usize>,
    all: usize,
}

impl LookUps {
    /// Whether there is a place for one more, which is taken until [`LookUps::end`].
    fn begin(&mut self, client: IpAddr) -> bool {
        if self.all == AT_ONCE {
            return false;
        }
        let its = self.by_client.entry(client).or_default();
        let is_free = *its < OF_ONE;
        *its += usize::from(is_free);
        self.all += usize::from(is_free);
        is_free
    }

    pub(super) fn end(&mut self, client: IpAddr) {
        if let Entry::Occupied(mut its) = self.by_client.entry(client) {
            self.all -= 1;
            *its.get_mut() -= 1;
            if *its.get() == 0 {
                its.remove();
            }
        }
    }
}

/// The owner has decided, and it is known where the device is.
#[derive(Debug)]
pub(super) struct Decision {
    device: Device,
    verb: Verb,
    addresses: Vec<IpAddr>,
    /// Who has just said it; nobody, when it was said before and is to count now.
    reply: Option<oneshot::Sender<String>>,
}

/// Whom the owner means by a name. An address is the network card's that is there now, and only without one that of who was
/// there when it asked: somebody else may have had it since.
fn meant(named: Device, remembered: Device, verb: Verb, card: Option<HardwareAddress>) -> Device {
    match (named, verb) {
        (Device::Address(_), Verb::Allow | Verb::Deny) => card.map_or(remembered, Device::Hardware),
        // What was decided by an address is forgotten by that.
        _ => remembered,
    }
}

impl Shell {
    /// Whether a PCP or NAT-PMP client is looked up: over IPv6 it has as many addresses as it wants.
    pub(super) fn is_to_look_up(&self, client: IpAddr) -> bool {
        client.to_canonical().is_ipv6() || self.config.policy.default == PolicyDefault::Ask
    }

    /// Looks at who it is, if there is a place for that; it comes back as [`Datagram::Lan5351Known`].
    pub(super) fn look_up_client(&mut self, gateways: &mut Gateways, arrival: LanArrival, bytes: &[u8]) {
        let client = arrival.from.ip();
        if !self.looking_up.begin(client) {
            gateways.ignored(client);
            return;
        }
        let (context, found, bytes) = (Arc::clone(&self.context), self.datagrams.0.clone(), bytes.to_vec());
        tokio::spawn(async move {
            let known = context.neighbours.of(arrival.interface, client).await;
            // Behind what has come meanwhile; the loop has ended otherwise.
            let _ = found.send((0, Datagram::Lan5351Known { arrival, bytes, known })).await;
        });
    }

    /// The owner decides about a device; by whichever name he knows it, it is its network card that counts, if that is known.
    /// `remembered` is who has asked for a port by that name.
    pub(super) fn look_up_device(
        &self,
        named: Device,
        remembered: Device,
        verb: Verb,
        reply: Option<oneshot::Sender<String>>,
    ) {
        let (context, found) = (Arc::clone(&self.context), self.decisions.0.clone());
        tokio::spawn(async move {
            let (mut addresses, card) = context.neighbours.of_device(named).await;
            let device = meant(named, remembered, verb, card);
            if device == remembered && device != named {
                addresses = context.neighbours.of_device(device).await.0;
            }
            let _ = found.send(Decision { device, verb, addresses, reply }).await;
        });
    }

    /// Whom the owner has denied has nothing from now on, for he is asked: what there is of it is found by its network card.
    pub(super) fn look_up_denied(&self, gateways: &Gateways) {
        if self.config.policy.default != PolicyDefault::Ask {
            return;
        }
        for device in denied(gateways) {
            self.look_up_device(device, device, Verb::Deny, None);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_whose_it_is_now() {
        let [before, now] = [1, 2].map(|last| HardwareAddress([2, 0, 0, 0, 0, last]));
        let [before_it, now_it] = [before, now].map(Device::Hardware);
        let address = Device::Address("192.168.1.30".parse().unwrap());
        for (named, remembered, verb, card, expected) in [
            (address, before_it, Verb::Allow, Some(now), now_it),
            (address, before_it, Verb::Deny, Some(now), now_it),
            (address, before_it, Verb::Allow, None, before_it),
            (address, address, Verb::Allow, Some(now), now_it),
            (address, address, Verb::Deny, None, address),
            (address, before_it, Verb::Forget, Some(now), before_it),
            (address, address, Verb::Forget, Some(now), address),
            (before_it, before_it, Verb::Allow, Some(now), before_it),
        ] {
            assert_eq!(meant(named, remembered, verb, card), expected, "{named:?} {verb:?} {card:?}");
        }
    }

    #[test]
    fn one_that_floods_leaves_room() {
        let mut all = LookUps::default();
        let at = |n: u16| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n]);
        let begun = |all: &mut LookUps, client| (0..1000).filter(|_| all.begin(client)).count();
        assert_eq!(begun(&mut all, at(1)), OF_ONE);
        assert!(all.begin(at(2)));
        all.end(at(2));
        all.end(at(1));
        assert!(all.begin(at(1)) && !all.begin(at(1)));
        let room = AT_ONCE - OF_ONE;
        assert_eq!((2..1000).filter(|&n| all.begin(at(n))).count(), room, "in all");
        all.end(at(3000)); // nobody's
        assert!(!all.begin(at(1000)));
        (2..1000).for_each(|n| all.end(at(n)));
        (0..OF_ONE).for_each(|_| all.end(at(1)));
        assert_eq!((all.all, all.by_client.len()), (0, 0), "nothing is kept of who is gone");
    }
}
