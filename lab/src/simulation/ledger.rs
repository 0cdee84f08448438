//! What the gateway may believe of the provider: worked out from the datagrams that reached it, not from the gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use engine::provider::ProviderMapping;
use engine::time::{Duration, Instant};
use wire::pcp::{self, Body, Nonce, OptionCode, PcpOption, Protocol, ResultCode};

use crate::sim::{WAN, World};

/// What the provider knows a client by: the third party, if it is one, protocol, internal port.
pub(super) type Client = (Option<Ipv4Addr>, Protocol, u16);

/// A success is never believed for longer.
const MOST: u32 = 24 * 3600;
/// What is asked for the mapping that tells the external address.
const PROBE_LIFETIME: u32 = 600;
/// How long something may stay at the provider, all going well, that nobody has any more: it may be held for somebody
/// meanwhile (decisions 1, 5 and 6).
const STRAY: Duration = Duration::from_secs(180);

/// What is asked for again until the same moment may last a little longer, by the provider's shortest lifetime.
const ROUNDED: Duration = Duration::from_secs(15);
/// What was lost may leave something behind until its lifetime ends.
const TROUBLE: Duration = Duration::from_secs(super::LONGEST as u64);

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
    /// The same of each line: two of them are two servers to the router.
    nonces_of_lines: BTreeMap<(&'static str, Client), Nonce>,
    beliefs: BTreeMap<Client, Belief>,
    /// When the provider last said that the port cannot be had, and when it said anything else but yes.
    taken: BTreeMap<Client, Instant>,
    refused: BTreeMap<Client, Instant>,
    /// When a success last named another port or address than the one before.
    moved: BTreeMap<Client, Instant>,
    probes: BTreeSet<Client>,
    /// Clients that have used more than one nonce on a line.
    other_nonces: Vec<Client>,
    /// Clients that wait for an answer; whether to a delete.
    unanswered: BTreeMap<Client, bool>,
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

fn client_of_answer(response: &pcp::Response) -> Option<Client> {
    let Body::Map(map) = &response.body else { return None };
    Some((third_party(response.option(OptionCode::THIRD_PARTY)), map.protocol, map.internal_port))
}

impl Ledger {
    /// Takes in what has come and gone since the last time.
    pub(super) fn follow(&mut self, world: &World) {
        self.follow_exchanges(world);
        for sent in &world.sent()[self.sent..] {
            let Some((client, nonce)) = client_of(&sent.request) else { continue };
            let line = world.line_of(sent.request.client_addr.to_ipv4_mapped().unwrap_or(WAN));
            let before = *self.nonces_of_lines.entry((line, client)).or_insert(nonce);
            if before != nonce {
                self.other_nonces.push(client);
            }
            if sent.request.lifetime == 0 {
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

    /// What is answered at a moment is heard before what is sent then.
    fn follow_exchanges(&mut self, world: &World) {
        let mut answers = world.answers()[self.answered..].iter().peekable();
        for sent in &world.sent()[self.sent..] {
            while let Some(answer) = answers.next_if(|answer| answer.at <= sent.at) {
                self.unanswered.retain(|client, _| client_of_answer(&answer.response) != Some(*client));
            }
            let deletes = sent.request.lifetime == 0;
            self.unanswered.extend(client_of(&sent.request).map(|(client, _)| (client, deletes)));
        }
        for answer in answers {
            self.unanswered.retain(|client, _| client_of_answer(&answer.response) != Some(*client));
        }
    }

    /// How many clients wait for an answer, the probe apart.
    pub(super) fn unanswered(&self) -> usize {
        self.unanswered.keys().filter(|client| !self.probes.contains(client)).count()
    }

    /// How many of them wait for that of a delete.
    pub(super) fn undeleted(&self) -> usize {
        let deletes = self.unanswered.iter().filter(|&(_, &deletes)| deletes);
        deletes.filter(|(client, _)| !self.probes.contains(client)).count()
    }

    /// Nobody waits for anything that was asked so far.
    pub(super) fn forget_unanswered(&mut self) {
        self.unanswered.clear();
    }

    /// Clients that have used more than one nonce.
    pub(super) fn other_nonces(&self) -> &[Client] {
        &self.other_nonces
    }

    /// When what was granted at this moment, with this external port, ends.
    pub(super) fn granted_at(&self, key: super::Key, at: Instant) -> Option<Instant> {
        let granted = self
            .beliefs
            .iter()
            .find(|(client, belief)| belief.heard == at && (client.1, belief.external.port()) == key);
        granted.map(|(_, belief)| belief.ends())
    }

    fn hear(&mut self, issued: Instant, heard: Instant, response: &pcp::Response) {
        let (Body::Map(map), Some(client)) = (&response.body, client_of_answer(response)) else { return };
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

    /// When the provider has met a nonce that was not the one it knew, since the last question.
    pub(super) fn wrong_nonces(&mut self, world: &World) -> Vec<(Client, Instant)> {
        let new = world.wrong_nonces()[self.wrong..]
            .iter()
            .filter_map(|wrong| client_of(&wrong.request).map(|(client, _)| (client, wrong.at)));
        let new = new.collect();
        self.wrong = world.wrong_nonces().len();
        new
    }

    /// `strays` is everything of ours at the provider that nobody has at this moment; somebody may be `waiting` for it.
    pub(super) fn follow_strays(
        &mut self,
        world: &World,
        strays: &[ProviderMapping],
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
            if late && found.ends > stray.ends + ROUNDED {
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
