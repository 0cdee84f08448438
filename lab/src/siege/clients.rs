//! Applications that ask for what they need, by all three protocols, and what they were told.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use engine::gateway::{NatMode, RequestId};
use engine::nat::NatRule;
use engine::notice::{Cause, Notice};
use engine::status::MappingStatus;
use engine::table::Mapping;
use engine::time::{Duration, Instant};
use wire::natpmp::{self, Transport};
use wire::pcp::{self, Body, Filter, MapData, Nonce, PcpOption, PeerData, Protocol, ResultCode};
use wire::services::Service;

use super::{HOSTS, INTRUDER, Mood, Siege};
use crate::sim::LanAnswer;
use crate::simulation::{Broken, broken};

/// Ports that applications use: those that let in everybody, and those that let in one remote host only.
const PORTS: u16 = 5000;
const FILTERED: std::ops::Range<u16> = 5020..5022;
/// That remote host.
const REMOTE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// A question in PCP or NAT-PMP has been answered by then, or never will be.
const BACKGROUND: Duration = Duration::from_secs(21);
/// A lease that was told may have begun so long before.
const SLACK: Duration = Duration::from_secs(5);
const WEEK: u64 = 604_800;

/// In which protocol somebody asks.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum By {
    Igd,
    Pcp,
    NatPmp,
}

/// By what an application knows what it was given: the port is the external one in UPnP, else the internal one.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Who {
    pub(super) host: Ipv4Addr,
    pub(super) by: By,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
}

/// What it was told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promise {
    /// `None`: it may be another one by now, and its owner asks again to learn it.
    external: Option<u16>,
    internal: u16,
    remote: Option<Ipv4Addr>,
    /// `None` for ever.
    until: Option<Instant>,
    told_at: Instant,
}

/// A control request that is not answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) who: Who,
    at: Instant,
    /// The internal port and the lease that are wanted; `None` for a deletion.
    add: Option<(u16, Option<Duration>)>,
}

/// What is stored is in whole seconds.
pub(super) fn shortened(until: Instant) -> Instant {
    Instant::default() + until.since(Instant::default()).saturating_sub(Duration::from_secs(3))
}

pub(super) fn nonce(host: IpAddr, port: u16) -> Nonce {
    let mut nonce = [7; 12];
    match host {
        IpAddr::V4(host) => nonce[..4].copy_from_slice(&host.octets()),
        IpAddr::V6(host) => nonce[..4].copy_from_slice(&host.octets()[12..]),
    }
    nonce[4..6].copy_from_slice(&port.to_be_bytes());
    Nonce(nonce)
}

pub(super) fn name(protocol: Protocol) -> &'static str {
    if protocol == Protocol::UDP { "UDP" } else { "TCP" }
}

pub(super) fn transport(protocol: Protocol) -> Transport {
    if protocol == Protocol::UDP { Transport::Udp } else { Transport::Tcp }
}

impl Siege {
    pub(super) fn mappings(&self) -> Vec<MappingStatus> {
        self.world.gateway.mappings(self.world.now()).collect()
    }

    /// An application asks for something.
    pub(super) fn somebody_asks(&mut self) -> Result<(), Broken> {
        let host = self.dice.pick(&HOSTS);
        let protocol = if self.dice.one_in(4) { Protocol::UDP } else { Protocol::TCP };
        let internal = PORTS + self.dice.roll(4);
        let external = if self.dice.one_in(4) { internal + 10 } else { internal };
        let lifetime = self.dice.pick(&[120, 600, 3600, 0]);
        match self.dice.roll(12) {
            0..3 => {
                let strict = lifetime > 0 && self.dice.one_in(3);
                let options = if strict { vec![PcpOption::PreferFailure] } else { vec![] };
                self.map(host, protocol, (internal, external), lifetime, options);
            }
            3 => {
                let internal = FILTERED.start + self.dice.roll(2);
                let remote_addr = REMOTE.to_ipv6_mapped();
                let filter = PcpOption::Filter(Filter { prefix_len: 128, remote_port: 0, remote_addr });
                let options = if lifetime > 0 { vec![filter] } else { vec![] };
                self.map(host, protocol, (internal, internal), lifetime, options);
            }
            4..6 => self.map_by_nat_pmp(host, protocol, (internal, external), lifetime),
            6..9 => {
                let lease = self.dice.pick(&[0, 300, 3600]);
                let any = self.dice.one_in(3);
                let external = if any { internal } else { external };
                self.add(host, any, protocol, (external, internal), lease);
            }
            9 => self.delete(host, protocol, external),
            10 if self.mood == Mood::Honest => self.keep_a_flow(host, protocol, internal),
            _ => return self.ask_for_the_epoch(host),
        }
        Ok(())
    }

    pub(super) fn map(
        &mut self,
        host: Ipv4Addr,
        protocol: Protocol,
        (internal_port, external_port): (u16, u16),
        lifetime: u32,
        options: Vec<PcpOption>,
    ) {
        self.is_changing(Who { host, by: By::Pcp, protocol, port: internal_port });
        let nonce = nonce(host.into(), internal_port);
        let external_addr = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
        let map = MapData { nonce, protocol, internal_port, external_port, external_addr };
        let (client_addr, body) = (host.to_ipv6_mapped(), Body::Map(map));
        let request = pcp::Request { lifetime, client_addr, body, options };
        self.world.note(format!("* {host}: {request}"));
        self.tally.count("MAP");
        self.world.ask_at_5351(SocketAddr::from((host, 4000)), &request.to_bytes());
    }

    pub(super) fn map_by_nat_pmp(
        &mut self,
        host: Ipv4Addr,
        protocol: Protocol,
        (internal_port, external_port): (u16, u16),
        lifetime: u32,
    ) {
        self.is_changing(Who { host, by: By::NatPmp, protocol, port: internal_port });
        let external_port = if lifetime == 0 { 0 } else { external_port };
        let protocol = transport(protocol);
        let request = natpmp::Request::Map { protocol, internal_port, external_port, lifetime };
        self.world.note(format!("* {host}: {request}"));
        self.tally.count("NAT-PMP requests");
        self.world.ask_at_5351(SocketAddr::from((host, 4001)), &request.to_bytes());
    }

    pub(super) fn add(
        &mut self,
        host: Ipv4Addr,
        any: bool,
        protocol: Protocol,
        (external, internal): (u16, u16),
        lease: u32,
    ) -> RequestId {
        let who = Who { host, by: By::Igd, protocol, port: external };
        let action = if any { "AddAnyPortMapping" } else { "AddPortMapping" };
        let [external, inside, text] = [external.into(), internal.into(), lease].map(|n: u32| n.to_string());
        let client = host.to_string();
        let arguments = [
            ("NewRemoteHost", ""),
            ("NewExternalPort", external.as_str()),
            ("NewProtocol", name(protocol)),
            ("NewInternalPort", inside.as_str()),
            ("NewInternalClient", &client),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", "a"),
            ("NewLeaseDuration", &text),
        ];
        self.world
            .note(format!("* {host}: {action} {} {external} -> {internal} for {lease}", name(protocol)));
        self.tally.count("control requests");
        let at = self.world.now();
        let version = if any { 2 } else { 1 };
        let id = self.world.call(host, Service::WanIpConnection, version, action, &arguments);
        let lasts = match lease {
            0 if any => Some(Duration::from_secs(WEEK)),
            0 => None,
            lease => Some(Duration::from_secs(lease.into())),
        };
        self.asked.insert(id, Asked { who, at, add: Some((internal, lasts)) });
        id
    }

    fn delete(&mut self, host: Ipv4Addr, protocol: Protocol, external: u16) {
        let who = Who { host, by: By::Igd, protocol, port: external };
        let text = external.to_string();
        let arguments =
            [("NewRemoteHost", ""), ("NewExternalPort", text.as_str()), ("NewProtocol", name(protocol))];
        self.world.note(format!("* {host}: DeletePortMapping {} {external}", name(protocol)));
        let at = self.world.now();
        let id = self.world.call(host, Service::WanIpConnection, 1, "DeletePortMapping", &arguments);
        self.asked.insert(id, Asked { who, at, add: None });
    }

    /// PEER for a flow that is there, or is not. What becomes of it may end by what others do; that it harms nobody is looked at.
    fn keep_a_flow(&mut self, host: Ipv4Addr, protocol: Protocol, internal_port: u16) {
        let (internal, remote) = (SocketAddrV4::new(host, internal_port), SocketAddrV4::new(REMOTE, 443));
        let port = self.dice.pick(&[None, Some(internal_port)]);
        self.world.set_flow((protocol, internal, remote), port);
        let data = PeerData {
            nonce: nonce(host.into(), internal_port),
            protocol,
            internal_port,
            external_port: 0,
            external_addr: Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
            remote_port: 443,
            remote_addr: REMOTE.to_ipv6_mapped(),
        };
        let (client_addr, body) = (host.to_ipv6_mapped(), Body::Peer(data));
        let request = pcp::Request { lifetime: 600, client_addr, body, options: vec![] };
        self.world.note(format!("* {host}: {request}"));
        self.tally.count("PEER");
        self.world.ask_at_5351(SocketAddr::from((host, 4000)), &request.to_bytes());
    }

    /// ANNOUNCE is answered at once; NAT-PMP's question for the external address when that is known.
    fn ask_for_the_epoch(&mut self, host: Ipv4Addr) -> Result<(), Broken> {
        self.look()?;
        let (client_addr, body) = (host.to_ipv6_mapped(), Body::Announce);
        let request = pcp::Request { lifetime: 0, client_addr, body, options: vec![] };
        let from = SocketAddr::from((host, 4000));
        self.world.ask_at_5351(from, &request.to_bytes());
        let answered = self.world.take_lan_answers().iter().any(|answer| {
            let response = pcp::Response::parse(&answer.bytes);
            answer.to == from && response.is_ok_and(|response| response.body == Body::Announce)
        });
        if !answered {
            return broken(format!("{host} asks whether there is a PCP server, and hears nothing"));
        }
        self.tally.count("ANNOUNCE");
        let request = natpmp::Request::ExternalAddress.to_bytes();
        self.world.ask_at_5351(SocketAddr::from((host, 4001)), &request);
        Ok(())
    }

    fn is_changing(&mut self, who: Who) {
        let now = self.world.now();
        self.changing.entry(who).or_default().push(now + BACKGROUND);
    }

    /// The gateway was killed: nobody is answered, and what was being changed may be as before or not.
    pub(super) fn forget_what_is_asked(&mut self) {
        let now = self.world.now();
        for (_, asked) in std::mem::take(&mut self.asked) {
            self.promises.remove(&asked.who);
        }
        for who in std::mem::take(&mut self.changing).into_keys() {
            self.promises.remove(&who);
        }
        for (who, promise) in &mut self.promises {
            promise.until = promise.until.map(shortened);
            // Where a PCP client was is forgotten. It hears of another epoch, and would ask again.
            if who.by != By::Igd {
                promise.external = None;
            }
        }
        self.pinholes.forget_what_is_asked(now);
    }

    /// What a client of IPv4 hears at its port.
    pub(super) fn on_lan_answer(&mut self, answer: &LanAnswer, host: Ipv4Addr) -> Result<(), Broken> {
        let is_ours = HOSTS.contains(&host);
        match natpmp::Response::parse(&answer.bytes) {
            Ok(natpmp::Response::Map {
                protocol, result, internal_port, external_port, lifetime, ..
            }) => {
                let protocol = if protocol == Transport::Udp { Protocol::UDP } else { Protocol::TCP };
                let success = result == natpmp::ResultCode::SUCCESS;
                let place = (internal_port, external_port);
                let who = Who { host, by: By::NatPmp, protocol, port: internal_port };
                return self.hears(answer, who, (success, place, lifetime));
            }
            Ok(_) => return Ok(()),
            Err(_) => {}
        }
        let Ok(response) = pcp::Response::parse(&answer.bytes) else { return Ok(()) };
        match response.body {
            Body::Map(map) => {
                let who = Who { host, by: By::Pcp, protocol: map.protocol, port: map.internal_port };
                if is_ours && map.nonce != nonce(host.into(), map.internal_port) {
                    return broken(format!("{host} hears of a nonce that is not its own: {response}"));
                }
                let success = response.result == ResultCode::SUCCESS;
                self.hears(answer, who, (success, (map.internal_port, map.external_port), response.lifetime))
            }
            Body::Peer(peer) if is_ours && peer.nonce != nonce(host.into(), peer.internal_port) => {
                broken(format!("{host} hears of a nonce that is not its own: {response}"))
            }
            _ => Ok(()),
        }
    }

    fn hears(
        &mut self,
        answer: &LanAnswer,
        who: Who,
        (success, (internal, external), lifetime): (bool, (u16, u16), u32),
    ) -> Result<(), Broken> {
        let is_ours = HOSTS.contains(&who.host);
        // Beside trouble nobody hears anything unasked.
        if self.mood == Mood::Honest
            && let Some(asked) = self.changing.get_mut(&who)
        {
            asked.remove(0);
            if asked.is_empty() {
                self.changing.remove(&who);
            }
        }
        if !success {
            self.tally.count(if is_ours { "refusals" } else { "refusals of the intruder" });
            return Ok(());
        }
        if lifetime == 0 {
            self.tally.count("deletes in PCP and NAT-PMP");
            let kind = |who: &Who| (who.host, who.by, who.protocol);
            let all = internal == 0;
            self.promises.retain(|other, _| *other != who && !(all && kind(other) == kind(&who)));
            return Ok(());
        }
        let stands = answer.mappings.iter().find(|found| {
            (found.protocol, found.external.port()) == (who.protocol, external)
                && found.internal == SocketAddrV4::new(who.host, internal)
        });
        let Some(stands) = stands else {
            return broken(format!("{who:?} is told of {external}, and there is {:?}", answer.mappings));
        };
        self.is_let_in(stands, answer.rules.iter())?;
        if !is_ours {
            self.tally.count("successes of the intruder");
            return Ok(());
        }
        let remote = stands.remote_peer;
        if FILTERED.contains(&internal) && remote != Some(REMOTE) {
            return broken(format!("{who:?} wants one remote host only: {stands:?}"));
        }
        if remote.is_some() {
            self.tally.count("filters");
        }
        let until = Some(answer.at + Duration::from_secs(lifetime.into()));
        let (external, told_at) = (Some(external), answer.at);
        self.promises.insert(who, Promise { external, internal, remote, until, told_at });
        self.tally.count(if who.by == By::Pcp { "successes in PCP" } else { "successes in NAT-PMP" });
        Ok(())
    }

    /// What is told of is in force in the router's own NAT.
    fn is_let_in<'a>(
        &self,
        mapping: &MappingStatus,
        mut rules: impl Iterator<Item = &'a NatRule>,
    ) -> Result<(), Broken> {
        let Some(port) = mapping.nat_port.filter(|_| self.nat == NatMode::Own) else { return Ok(()) };
        match rules.find(|rule| (rule.protocol, rule.port) == (mapping.protocol, port)) {
            Some(rule) if rule.internal == mapping.internal => Ok(()),
            other => broken(format!("the NAT has {other:?}, and this is told of: {mapping:?}")),
        }
    }

    /// Answers to control requests.
    pub(super) fn look_at_replies(&mut self) -> Result<(), Broken> {
        let reply = |(&id, &asked): (&RequestId, &Asked)| {
            self.world.reply(id).map(|reply| (id, asked, reply.answer.clone()))
        };
        let answered: Vec<_> = self.asked.iter().filter_map(reply).collect();
        for (id, Asked { mut who, at, add }, answer) in answered {
            self.asked.remove(&id);
            match (answer, add) {
                (Ok(answer), Some((internal, lasts))) => {
                    if let Some(port) = answer.value("NewReservedPort") {
                        who.port = port.parse().unwrap_or_default();
                    }
                    let table = self.mappings();
                    let stands = table.iter().find(|found| {
                        (found.protocol, found.external.port()) == (who.protocol, who.port)
                            && found.internal == SocketAddrV4::new(who.host, internal)
                    });
                    let Some(stands) = stands else {
                        return broken(format!("{who:?} is told of success, and there is {table:?}"));
                    };
                    self.is_let_in(stands, self.world.nat.rules())?;
                    if self.nat == NatMode::None {
                        // The router has one mapping for each internal port, and has led the other one here (spec T-4).
                        let kind = |who: &Who| (who.host, who.by, who.protocol);
                        self.promises.retain(|other, promise| {
                            *other == who || kind(other) != kind(&who) || promise.internal != internal
                        });
                    }
                    let until = lasts.map(|lasts| at + lasts.saturating_sub(SLACK));
                    let (external, told_at) = (Some(who.port), self.world.now());
                    let promise = Promise { external, internal, remote: None, until, told_at };
                    self.promises.insert(who, promise);
                    self.tally.count("successes in UPnP");
                }
                // Refused, or perhaps changed all the same.
                (Ok(_), None) | (Err(501), _) => drop(self.promises.remove(&who)),
                (Err(_), _) => self.tally.count("refusals"),
            }
        }
        Ok(())
    }

    /// A server that forgets, over a link that loses, may take a mapping away or move it, and who has it is told (decision 15).
    pub(super) fn excuse_what_the_server_took(&mut self) {
        let notices = self.world.notices();
        let new: Vec<Notice> = notices[self.noticed..].iter().map(|(_, notice)| notice.clone()).collect();
        self.noticed = notices.len();
        for notice in new.into_iter().filter(|_| self.mood == Mood::Troubled) {
            let of = |mapping: &Mapping, who: &Who, promise: &Promise| {
                (who.protocol, SocketAddrV4::new(who.host, promise.internal))
                    == (mapping.protocol, mapping.internal)
            };
            match notice {
                Notice::Removed(mapping, Cause::LostUpstream | Cause::MovedUpstream(_)) => {
                    self.promises.retain(|who, promise| !of(&mapping, who, promise));
                }
                Notice::Moved(mapping, _) => {
                    for (who, promise) in &mut self.promises {
                        if of(&mapping, who, promise) {
                            promise.external = None;
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// What an application was told stands, as told.
    pub(super) fn check_promises(&mut self, table: &[MappingStatus]) -> Result<(), Broken> {
        let now = self.world.now();
        self.promises.retain(|_, promise| promise.until.is_none_or(|until| until > now));
        if self.mood == Mood::Hostile && !self.calm {
            return Ok(()); // whose word the gateway has to take
        }
        self.forget_what_was_never_answered(now);
        for (who, promise) in &self.promises {
            // What a control point leads elsewhere, or deletes, it is told of when that is done.
            let asked = self.asked.values().any(|asked| asked.who == *who);
            if asked || self.changing.contains_key(who) {
                continue;
            }
            // NAT-PMP has no words for another port.
            let told = |port: u16| promise.external.is_none_or(|told| told == port) || who.by == By::NatPmp;
            let stands = table.iter().any(|found| {
                found.protocol == who.protocol
                    && told(found.external.port())
                    && found.internal == SocketAddrV4::new(who.host, promise.internal)
                    && (promise.remote.is_none() || found.remote_peer == promise.remote)
            });
            if !stands {
                return broken(format!("{who:?} was told of {promise:?}, and there is {table:?}"));
            }
        }
        Ok(())
    }

    /// Who has asked and has heard nothing does not know what there is.
    fn forget_what_was_never_answered(&mut self, now: Instant) {
        let Self { changing, promises, .. } = self;
        changing.retain(|who, asked| {
            let told_at = promises.get(who).map(|promise| promise.told_at);
            if asked.iter().any(|until| *until <= now && told_at.is_some_and(|at| at + BACKGROUND < *until)) {
                promises.remove(who);
            }
            asked.retain(|until| *until > now);
            !asked.is_empty()
        });
    }

    /// While the intruder does what it does, somebody who has room is served within a second.
    pub(super) fn is_served_at_once(&mut self) -> Result<(), Broken> {
        let host = self.dice.pick(&HOSTS);
        if self.mappings().iter().filter(|found| *found.internal.ip() == host).count() + 2 > super::PER_HOST {
            return Ok(());
        }
        // Nobody has used this port: what was given back the provider holds for who had it.
        self.fresh += 1;
        let port = self.fresh;
        if self.intruder {
            self.intruder_floods(60);
        }
        let id = self.add(host, false, Protocol::TCP, (port, port), 120);
        self.pass(Duration::from_secs(1))?;
        match self.world.reply(id).map(|reply| reply.answer.clone()) {
            Some(Ok(_)) => self.tally.count("served at once"),
            other => return broken(format!("{host} asks for {port} and hears {other:?} after a second")),
        }
        self.delete(host, Protocol::TCP, port);
        self.pass(Duration::from_secs(1))
    }

    /// After all that has happened everybody is served as ever, by every protocol.
    pub(super) fn everybody_is_served(&mut self) -> Result<(), Broken> {
        for host in INTRUDER.into_iter().chain(HOSTS) {
            self.world.release(host);
        }
        self.world.release(super::pinholes::INTRUDER);
        self.promises.clear();
        self.pass(Duration::from_secs(30))?;
        for (port, host) in (8000_u16..).step_by(10).zip(HOSTS) {
            let id = self.add(host, false, Protocol::TCP, (port, port), 600);
            self.map(host, Protocol::TCP, (port + 1, port + 1), 600, vec![]);
            self.map_by_nat_pmp(host, Protocol::UDP, (port + 2, port + 2), 600);
            self.pass(Duration::from_secs(4))?;
            let control = self.world.reply(id).map(|reply| reply.answer.clone());
            let told = |by, protocol, port| self.promises.contains_key(&Who { host, by, protocol, port });
            let others = (told(By::Pcp, Protocol::TCP, port + 1), told(By::NatPmp, Protocol::UDP, port + 2));
            if !matches!(control, Some(Ok(_))) || others != (true, true) {
                return broken(format!(
                    "it is calm: {host} hears {control:?}, in PCP and NAT-PMP {others:?}"
                ));
            }
        }
        self.tally.count("served as ever");
        if self.ipv6 { self.pinholes_as_ever() } else { Ok(()) }
    }
}
