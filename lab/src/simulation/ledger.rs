//! What the gateway may believe of the provider: worked out from the datagrams that reached it, not from the gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use engine::provider::ProviderMapping;
use engine::time::{Duration, Instant};
use wire::pcp::{self, Body, Nonce, OptionCode, PcpOption, Protocol, ResultCode};

use crate::sim::World;

/// What the provider knows a client by: the third party, if it is one, protocol, internal port.
pub(super) type Client = (Option<Ipv4Addr>, Protocol, u16);

/// A success is never believed for longer.
const MOST: u32 = 24 * 3600;
/// What is asked for the mapping that tells the external address.
const PROBE_LIFETIME: u32 = 600;
/// How long something may stay at the provider, all going well, that nobody has any more.
const STRAY: Duration = Duration::from_secs(120);

/// What was lost may leave something behind until its lifetime ends.
const TROUBLE: Duration = Duration::from_secs(super::LONGEST as u64);
/// How long after a delete that was not confirmed it is sent again, at most.
const DELETING: Duration = Duration::from_secs(60);

/// The last success.
#[derive(Clone, Copy, Debug)]
pub(super) struct Belief {
    pub(super) external: SocketAddrV4,
    /// When the provider gave it.
    pub(super) issued: Instant,
    /// When it arrived.
    pub(super) heard: Instant,
    pub(super) lifetime: Duration,
}

impl Belief {
    pub(super) fn ends(&self) -> Instant {
        self.heard + self.lifetime
    }
}

/// See the module's description.
#[derive(Default)]
pub(super) struct Ledger {
    nonces: BTreeMap<Client, Nonce>,
    beliefs: BTreeMap<Client, Belief>,
    /// When the provider last said that the port cannot be had, and when it said anything else but yes.
    taken: BTreeMap<Client, Instant>,
    refused: BTreeMap<Client, Instant>,
    /// When a success last named another port or address than the one before.
    moved: BTreeMap<Client, Instant>,
    probes: BTreeSet<Client>,
    /// When each was last to be deleted, by every nonce that was used.
    deleting: BTreeMap<Client, BTreeMap<Nonce, Instant>>,
    strays: BTreeMap<(Protocol, u16, SocketAddrV4), Stray>,
    sent: usize,
    answered: usize,
    dropped: BTreeMap<(Protocol, SocketAddrV4), (Instant, Instant)>,
    drops: usize,
    wrong: usize,
}

#[derive(Clone, Copy)]
struct Stray {
    since: Instant,
    /// When somebody last waited for a mapping, which this may have become.
    waited: Instant,
    ends: Instant,
}

fn third_party(option: Option<&PcpOption>) -> Option<Ipv4Addr> {
    match option {
        Some(PcpOption::ThirdParty(addr)) => addr.to_ipv4_mapped(),
        _ => None,
    }
}

/// As whom a MAP request speaks, and its nonce.
pub(super) fn client_of(request: &pcp::Request) -> Option<(Client, Nonce)> {
    let Body::Map(map) = &request.body else { return None };
    let host = third_party(request.option(OptionCode::THIRD_PARTY));
    Some(((host, map.protocol, map.internal_port), map.nonce))
}

impl Ledger {
    /// Takes in what has come and gone since the last time.
    pub(super) fn follow(&mut self, world: &World) {
        for sent in &world.sent()[self.sent..] {
            let Some((client, nonce)) = client_of(&sent.request) else { continue };
            if sent.request.lifetime == 0 {
                self.deleting.entry(client).or_default().insert(nonce, sent.at);
                self.nonces.entry(client).or_insert(nonce);
            } else {
                self.nonces.insert(client, nonce);
            }
            if (client.0, client.1) == (None, Protocol::UDP) && sent.request.lifetime == PROBE_LIFETIME {
                self.probes.insert(client);
            }
        }
        self.sent = world.sent().len();
        for answer in &world.answers()[self.answered..] {
            self.hear(answer.issued, answer.at, &answer.response);
        }
        self.answered = world.answers().len();
        for dropped in &world.dropped()[self.drops..] {
            self.dropped.insert((dropped.protocol, dropped.internal), (dropped.sent, dropped.at));
        }
        self.drops = world.dropped().len();
    }

    fn hear(&mut self, issued: Instant, heard: Instant, response: &pcp::Response) {
        let Body::Map(map) = &response.body else { return };
        let client = (third_party(response.option(OptionCode::THIRD_PARTY)), map.protocol, map.internal_port);
        if self.nonces.get(&client) != Some(&map.nonce) {
            return;
        }
        match (response.result, map.external_addr.to_ipv4_mapped()) {
            (ResultCode::SUCCESS, Some(addr)) if response.lifetime > 0 => {
                let external = SocketAddrV4::new(addr, map.external_port);
                let lifetime = Duration::from_secs(u64::from(response.lifetime.min(MOST)));
                let new = Belief { external, issued, heard, lifetime };
                if self.beliefs.insert(client, new).is_some_and(|old| old.external != external) {
                    self.moved.insert(client, heard);
                }
            }
            (ResultCode::SUCCESS, _) => {}
            (ResultCode::CANNOT_PROVIDE_EXTERNAL, _) => {
                self.taken.insert(client, heard);
                self.refused.insert(client, heard);
            }
            _ => drop(self.refused.insert(client, heard)),
        }
    }

    pub(super) fn belief(&self, client: Client) -> Option<Belief> {
        self.beliefs.get(&client).copied()
    }

    /// Whether the provider has given the gateway a reason, since then, to let go of a mapping.
    pub(super) fn is_taken_since(&self, client: Client, since: Instant) -> bool {
        let later = |at: Option<&Instant>| at.is_some_and(|&at| at >= since);
        later(self.taken.get(&client)) || later(self.moved.get(&client))
    }

    /// Whether the provider has refused anything for this client since then.
    pub(super) fn is_refused_since(&self, client: Client, since: Instant) -> bool {
        self.refused.get(&client).is_some_and(|&at| at >= since)
    }

    pub(super) fn is_probe(&self, client: Client) -> bool {
        self.probes.contains(&client)
    }

    /// Whether the gateway has had this dropped though it knew of that success, and after its owner was told at `told`.
    pub(super) fn is_dropped(
        &self,
        protocol: Protocol,
        internal: SocketAddrV4,
        (belief, told): (&Belief, Instant),
    ) -> bool {
        let dropped = self.dropped.get(&(protocol, internal));
        dropped.is_some_and(|&(sent, at)| at >= belief.issued && sent > belief.heard.max(told))
    }

    /// When the provider has met a nonce that was not the one it knew, since the last question. A port whose deletion is
    /// not confirmed yet may be asked for by somebody else meanwhile, in vain.
    pub(super) fn wrong_nonces(&mut self, world: &World) -> Vec<(Client, Instant)> {
        let new = world.wrong_nonces()[self.wrong..].iter().filter_map(|wrong| {
            let (client, nonce) = client_of(&wrong.request)?;
            let mut deletes = self.deleting.get(&client).into_iter().flatten();
            let another = deletes.any(|(&other, &at)| other != nonce && wrong.at <= at + DELETING);
            let repeated = wrong.request.lifetime == 0 && self.nonces.get(&client) != Some(&nonce);
            (!repeated && !another).then_some((client, wrong.at))
        });
        let new = new.collect();
        self.wrong = world.wrong_nonces().len();
        new
    }

    /// `strays` is everything of ours at the provider that nobody has at this moment; somebody may be `waiting` for it.
    pub(super) fn follow_strays(
        &mut self,
        world: &World,
        strays: &[&ProviderMapping],
        waiting: bool,
    ) -> Result<(), String> {
        let now = world.now();
        let key = |found: &ProviderMapping| (found.protocol, found.external.port(), found.internal);
        let old = std::mem::take(&mut self.strays);
        for found in strays {
            let new = Stray { since: now, waited: now, ends: found.ends };
            let mut stray = old.get(&key(found)).copied().unwrap_or(new);
            if waiting {
                stray.waited = now;
            }
            let words = || {
                let (protocol, external, internal) = key(found);
                let since = stray.since;
                format!("{protocol} {external} -> {internal} at the provider is nobody's since {since:?}")
            };
            let late = now > stray.waited + STRAY;
            if late && found.ends > stray.ends {
                return Err(format!("{}, and was renewed", words()));
            }
            // With nothing lost in between or before there is no excuse.
            let troubled = world.troubled().max(world.server_started());
            if late && troubled + TROUBLE < stray.since {
                return Err(words());
            }
            self.strays.insert(key(found), Stray { ends: found.ends, ..stray });
        }
        Ok(())
    }
}
