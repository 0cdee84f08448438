//! What happens while it storms: one random thing at a time.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::RangeInclusive;

use engine::gateway::{NatMode, RequestId};
use engine::status::MappingStatus;
use engine::time::Duration;
use wire::pcp::{Protocol, ResultCode};
use wire::services::{Face, Service};

use super::shadow::{Asked, Claim, Peer, Wanted};
use super::{
    Broken, EXTERNAL, HOSTS, Key, NAMES, OTHER_EXTERNAL, OTHER_WAN, PEERS, Simulation, WAN, broken, settings,
};
use crate::sim::{Callback, Server};

/// The external ports that everybody wants.
pub(super) const EXTERNAL_PORTS: RangeInclusive<u16> = 5000..=5011;

/// What a control point asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Add {
    pub(super) any: bool,
    pub(super) protocol: Protocol,
    /// 0 for any.
    pub(super) external: u16,
    pub(super) internal: u16,
    pub(super) lease: u32,
    pub(super) peer: Option<Peer>,
    /// Goes into the description.
    pub(super) number: u16,
}

impl Add {
    /// AddPortMapping of this TCP port to the same port, for ever.
    pub(super) fn new(port: u16) -> Self {
        let protocol = Protocol::TCP;
        Self { any: false, protocol, external: port, internal: port, lease: 0, peer: None, number: 0 }
    }
}

/// What a mapping is, as far as SystemUpdateID has to follow.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Shape {
    external: SocketAddrV4,
    internal: SocketAddrV4,
    /// Not looked at where it may be known by a name, which is what is shown wherever it moves.
    peer: Option<Option<Ipv4Addr>>,
    description: String,
}

impl Shape {
    pub(super) fn of(mapping: &MappingStatus, named: bool) -> Self {
        Self {
            external: mapping.external,
            internal: mapping.internal,
            peer: (!named).then_some(mapping.remote_peer),
            description: mapping.description.clone(),
        }
    }

    pub(super) fn differs(&self, other: &Self) -> bool {
        let what = |shape: &Self| (shape.external, shape.internal, shape.description.clone());
        what(self) != what(other)
            || self.peer.is_some_and(|peer| other.peer.is_some_and(|other| peer != other))
    }
}

fn name(protocol: Protocol) -> &'static str {
    if protocol == Protocol::UDP { "UDP" } else { "TCP" }
}

impl Simulation {
    /// One thing happens.
    pub(super) fn step(&mut self) -> Result<(), Broken> {
        let host = self.dice.pick(&HOSTS);
        let version = self.dice.pick(&[1, 2]);
        match self.dice.roll(100) {
            0..28 => self.somebody_adds(host, version),
            28..38 => self.somebody_deletes(host, version),
            38..40 => self.somebody_deletes_a_range(host),
            40..46 => self.somebody_reads(host, version),
            46..48 => return self.somebody_scans(host, version),
            48..53 => self.somebody_subscribes(host),
            53..57 => self.the_link_changes(),
            57..61 => self.the_provider_changes(),
            61..63 => self.the_wan_changes(),
            63..65 => self.the_provider_restarts(),
            65..70 => self.another_subscriber_acts(),
            70..73 => self.the_kernel_changes(),
            73..75 if self.dice.one_in(2) => {
                // In the middle of whatever comes next.
                let effects = self.dice.pick(&[0, 1, 1, 2, 2, 3, 4, 6, 10]);
                self.world.kill_after(effects);
            }
            75 if self.dice.one_in(12) => return self.refreshed_for_long(host),
            76 => self.the_settings_change(),
            77..79 => self.a_name_changes(),
            79 if self.dice.one_in(4) => return self.stop_and_start(),
            80 => self.the_disk_changes(),
            81 if self.dice.one_in(4) => self.a_host_is_released(host),
            _ => {
                let ms = self.dice.pick(&[5, 20, 200, 1000, 3000, 4000, 10_000, 30_000, 150_000]);
                return self.pass(Duration::from_millis(ms));
            }
        }
        self.check()
    }

    fn somebody_adds(&mut self, host: Ipv4Addr, version: u8) {
        let any = self.dice.one_in(3);
        let external = if any && self.dice.one_in(3) { 0 } else { 5000 + self.dice.roll(12) };
        let fresh = Add {
            any,
            protocol: if self.dice.one_in(4) { Protocol::UDP } else { Protocol::TCP },
            external,
            internal: 5000 + self.dice.roll(8),
            lease: self.dice.pick(&[0, 12, 61, 299, 3600]),
            peer: self.some_peer(),
            number: self.dice.roll(1000),
        };
        let nth = usize::from(self.dice.roll(12));
        let (host, version, add) = match self.recent.get(nth) {
            // The same again, perhaps to another port of its own.
            Some(&(host, version, add)) if self.dice.one_in(4) => {
                (host, version, Add { internal: 5000 + self.dice.roll(8), ..add })
            }
            Some(&recent) => recent,
            None => {
                self.recent.insert(0, (host, version, fresh));
                self.recent.truncate(6);
                (host, version, fresh)
            }
        };
        self.add(host, version, add);
    }

    /// The only remote host that may come in.
    fn some_peer(&mut self) -> Option<Peer> {
        match self.dice.roll(20) {
            0..2 => Some(Peer::Address(self.dice.pick(&PEERS))),
            2..4 => Some(Peer::Name(self.dice.pick(&[NAMES[0], NAMES[0], NAMES[1], NAMES[1], NAMES[2]]))),
            _ => None,
        }
    }

    /// A control point asks for a mapping.
    pub(super) fn add(&mut self, host: Ipv4Addr, version: u8, add: Add) -> RequestId {
        let Add { any, protocol, external, internal, lease, peer, number } = add;
        let description = format!("n{number}");
        // HOSTS[0] has a name of its own.
        let by_name = host == HOSTS[0] && number % 16 == 0;
        let (peer_text, host_text) =
            (Peer::text(peer), if by_name { "laptop".to_owned() } else { host.to_string() });
        let (external_text, internal_text) = (external.to_string(), internal.to_string());
        let lease_text = lease.to_string();
        let arguments = [
            ("NewRemoteHost", peer_text.as_str()),
            ("NewExternalPort", &external_text),
            ("NewProtocol", name(protocol)),
            ("NewInternalPort", &internal_text),
            ("NewInternalClient", &host_text),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", &description),
            ("NewLeaseDuration", &lease_text),
        ];
        let (action, version) = if any { ("AddAnyPortMapping", 2) } else { ("AddPortMapping", version) };
        self.tally.count(action);
        let lease = Wanted::lease(lease, version);
        let wanted = Wanted { internal_port: internal, description: description.clone(), lease, peer };
        let promised = self.keep_promise(host, &add).filter(|_| !by_name);
        let asked = Asked::Add { any, key: (protocol, external), host, wanted, promised };
        self.call(host, version, action, &arguments, asked)
    }

    /// A control point asks; what for is kept until the answer.
    pub(super) fn call(
        &mut self,
        host: Ipv4Addr,
        version: u8,
        action: &str,
        arguments: &[(&str, &str)],
        asked: Asked,
    ) -> RequestId {
        let words: Vec<String> = arguments
            .iter()
            .map(|(name, value)| format!(" {}={value}", name.trim_start_matches("New")))
            .collect();
        self.world.note(format!("* {host}: {action}:{version}{}", words.concat()));
        let at = self.world.now();
        let id = self.world.call(host, Service::WanIpConnection, version, action, arguments);
        self.open.insert(id, (at, asked));
        id
    }

    /// One of those that exist, by its owner mostly, or any.
    fn some_mapping(&mut self, host: Ipv4Addr) -> (Ipv4Addr, Protocol, u16, Option<Peer>) {
        let mappings = self.mappings();
        let nth = usize::from(self.dice.roll(30));
        match mappings.get(nth % mappings.len().max(1)) {
            Some(found) if nth < 25 => {
                let owner = if self.dice.one_in(8) { host } else { *found.internal.ip() };
                let key = (found.protocol, found.external.port());
                let name = self.shadow.claims.get(&key).and_then(Claim::peer_name);
                let peer = name.map(Peer::Name).or(found.remote_peer.map(Peer::Address));
                (owner, found.protocol, found.external.port(), peer)
            }
            _ => (host, Protocol::TCP, 5000 + self.dice.roll(12), None),
        }
    }

    fn somebody_deletes(&mut self, host: Ipv4Addr, version: u8) {
        let (host, protocol, port, peer) = self.some_mapping(host);
        self.delete(host, version, (protocol, port), peer);
    }

    /// A control point wants a mapping deleted.
    pub(super) fn delete(
        &mut self,
        host: Ipv4Addr,
        version: u8,
        key: (Protocol, u16),
        peer: Option<Peer>,
    ) -> RequestId {
        let (port_text, peer_text) = (key.1.to_string(), Peer::text(peer));
        let arguments = [
            ("NewRemoteHost", peer_text.as_str()),
            ("NewExternalPort", &port_text),
            ("NewProtocol", name(key.0)),
        ];
        self.tally.count("DeletePortMapping");
        self.call(host, version, "DeletePortMapping", &arguments, Asked::Delete { key, host, peer })
    }

    fn somebody_deletes_a_range(&mut self, host: Ipv4Addr) {
        let first = 5000 + self.dice.roll(12);
        self.delete_range(host, first, first + 3);
    }

    /// A control point wants all its TCP mappings of a range deleted.
    pub(super) fn delete_range(&mut self, host: Ipv4Addr, first: u16, last: u16) -> RequestId {
        let protocol = Protocol::TCP;
        let (first_text, last_text) = (first.to_string(), last.to_string());
        let arguments = [
            ("NewStartPort", first_text.as_str()),
            ("NewEndPort", &last_text),
            ("NewProtocol", name(protocol)),
            ("NewManage", "0"),
        ];
        self.tally.count("DeletePortMappingRange");
        let asked = Asked::DeleteRange { protocol, first, last, host };
        self.call(host, 2, "DeletePortMappingRange", &arguments, asked)
    }

    fn somebody_reads(&mut self, host: Ipv4Addr, version: u8) {
        self.tally.count("reads");
        match self.dice.roll(6) {
            0 | 1 => {
                let (host, protocol, port, peer) = self.some_mapping(host);
                self.ask_about(host, version, (protocol, port), peer);
            }
            2 => {
                let index = self.dice.roll(20);
                self.read_entry(host, version, index);
            }
            3 => {
                let (first, last) = (5000 + self.dice.roll(12), self.dice.pick(&[5003, 5011, 65_535]));
                let most: u16 = self.dice.pick(&[0, 1, 5]);
                let protocol = self.dice.pick(&[Protocol::TCP, Protocol::UDP]);
                let (first_text, last_text, most_text) =
                    (first.to_string(), last.to_string(), most.to_string());
                let arguments = [
                    ("NewStartPort", first_text.as_str()),
                    ("NewEndPort", &last_text),
                    ("NewProtocol", name(protocol)),
                    ("NewManage", "0"),
                    ("NewNumberOfPorts", &most_text),
                ];
                let most = if most == 0 { usize::MAX } else { usize::from(most) };
                let asked = match first <= last {
                    true => Asked::List { protocol, first, last, most },
                    false => Asked::Other,
                };
                self.call(host, 2, "GetListOfPortMappings", &arguments, asked);
            }
            4 if self.dice.one_in(3) => {
                let service = Service::WanCommonInterfaceConfig;
                self.world.call(host, service, version.min(1), "GetTotalBytesSent", &[]);
            }
            4 => {
                self.call(host, version, "GetExternalIPAddress", &[], Asked::ExternalAddress);
            }
            _ => {
                self.call(host, version, "GetStatusInfo", &[], Asked::Status);
            }
        }
    }

    /// GetSpecificPortMappingEntry.
    pub(super) fn ask_about(
        &mut self,
        host: Ipv4Addr,
        version: u8,
        key: Key,
        peer: Option<Peer>,
    ) -> RequestId {
        let (port_text, peer_text) = (key.1.to_string(), Peer::text(peer));
        let arguments = [
            ("NewRemoteHost", peer_text.as_str()),
            ("NewExternalPort", &port_text),
            ("NewProtocol", name(key.0)),
        ];
        // A name is an argument of WANIPConnection:2.
        let asked = match peer {
            Some(Peer::Name(_)) if version < 2 => Asked::Other,
            _ => Asked::Specific { key, host, peer },
        };
        self.call(host, version, "GetSpecificPortMappingEntry", &arguments, asked)
    }

    /// A control point looks for a free port as many do: it asks about one after the other, and adds the first that is
    /// said to be free.
    fn somebody_scans(&mut self, host: Ipv4Addr, version: u8) -> Result<(), Broken> {
        self.tally.count("scans");
        let protocol = if self.dice.one_in(4) { Protocol::UDP } else { Protocol::TCP };
        let first = 5000 + self.dice.roll(12);
        for external in first..first + 3 {
            let id = self.ask_about(host, version, (protocol, external), None);
            let ms = self.dice.pick(&[50, 300, 4000]);
            self.check()?;
            self.pass(Duration::from_millis(ms))?;
            let answer = self.world.reply(id).map(|reply| reply.answer.is_ok());
            if answer != Some(false) {
                continue; // it is mapped, or nobody says anything
            }
            if self.dice.one_in(4) {
                // Somebody else is quicker, or tries to be.
                let other = self.dice.pick(&HOSTS);
                self.add(other, version, Add { protocol, lease: 61, ..Add::new(external) });
            }
            let ms = self.dice.pick(&[0, 0, 500, 20_000, 58_000]);
            self.check()?;
            self.pass(Duration::from_millis(ms))?;
            let internal = if self.dice.one_in(4) { first } else { external };
            let lease = self.dice.pick(&[0, 61, 3600]);
            let number = self.dice.roll(1000);
            self.add(host, version, Add { protocol, internal, lease, number, ..Add::new(external) });
            break;
        }
        self.check()
    }

    pub(super) fn read_entry(&mut self, host: Ipv4Addr, version: u8, index: u16) -> RequestId {
        let text = index.to_string();
        let arguments = [("NewPortMappingIndex", text.as_str())];
        let asked = Asked::Generic(usize::from(index));
        self.call(host, version, "GetGenericPortMappingEntry", &arguments, asked)
    }

    fn somebody_subscribes(&mut self, host: Ipv4Addr) {
        let now = self.world.now();
        let going: Vec<_> = self
            .world
            .subscriptions()
            .filter(|(_, found)| !found.over && found.ends > now)
            .map(|(sid, _)| sid)
            .collect();
        let callbacks = [
            Callback::Works,
            Callback::Works,
            Callback::Takes(Duration::from_millis(700)),
            Callback::Takes(Duration::from_secs(9)),
            Callback::Fails,
            Callback::Forgets,
        ];
        let callback = self.dice.pick(&callbacks);
        let nth = usize::from(self.dice.roll(8));
        match (going.get(nth).copied(), self.dice.roll(3)) {
            (Some(sid), 0) => self.world.set_callback(sid, callback),
            (Some(sid), 1) => {
                let _ = self.world.renew(sid, 1800);
            }
            (Some(sid), _) => {
                let _ = self.world.unsubscribe(sid);
            }
            (None, _) if going.len() > 6 => {}
            (None, _) => {
                self.tally.count("subscriptions");
                let face = self.dice.pick(&[Face::V1, Face::V2]);
                let service = self.dice.pick(&[
                    Service::WanIpConnection,
                    Service::WanIpConnection,
                    Service::WanCommonInterfaceConfig,
                    Service::Layer3Forwarding,
                ]);
                let _ = self.world.subscribe(host, (face, service), 1800, callback);
            }
        }
    }

    fn the_link_changes(&mut self) {
        match self.dice.roll(4) {
            0 => self.world.link.lose_next = 1 + u32::from(self.dice.roll(4)),
            1 => self.world.link.loss = self.dice.pick(&[0.0, 0.0, 0.1, 0.5]),
            2 => self.world.link.doubled = self.dice.pick(&[0.0, 0.1, 0.5]),
            _ => {
                let ms = self.dice.pick(&[0, 0, 50, 1500, 5000]);
                self.world.link.jitter = Duration::from_millis(ms);
            }
        }
    }

    fn the_provider_changes(&mut self) {
        let code = self.dice.pick(&[
            ResultCode::CANNOT_PROVIDE_EXTERNAL,
            ResultCode::NETWORK_FAILURE,
            ResultCode::NOT_AUTHORIZED,
            ResultCode::NO_RESOURCES,
            ResultCode::USER_EX_QUOTA,
        ]);
        self.world.server = match self.dice.roll(12) {
            0..2 => Server::Silent,
            2 => Server::Mute,
            3..5 => Server::Refuses(code, 30),
            5 if self.dice.one_in(3) => Server::SaysNatPmpOnly,
            _ => Server::Serves,
        };
        self.disturb();
        if self.dice.one_in(4) {
            let quota = self.dice.pick(&[5, 40, 40]);
            let config = self.world.provider_config();
            config.quota = quota;
            settings::of_the_server(config, &mut self.dice);
        }
        let server = self.world.server;
        self.world.note(format!("* the server: {server:?}"));
    }

    fn the_wan_changes(&mut self) {
        self.disturb();
        match self.dice.roll(4) {
            0 | 1 if self.world.wan_address().is_some() => self.world.wan_down(),
            2 => self.readdress(OTHER_WAN),
            _ => self.readdress(WAN),
        }
    }

    /// It forgets everything, and may have another external address; or has that without forgetting anything.
    fn the_provider_restarts(&mut self) {
        self.disturb();
        if self.dice.one_in(2) {
            self.world.provider_config().external = self.dice.pick(&[EXTERNAL, OTHER_EXTERNAL]);
        }
        if self.dice.one_in(5) {
            return;
        }
        let announced = self.dice.one_in(2);
        self.tally.count("the provider restarts");
        self.world.lose_state(announced);
    }

    fn another_subscriber_acts(&mut self) {
        let protocol = if self.dice.one_in(4) { Protocol::UDP } else { Protocol::TCP };
        let port = 5000 + self.dice.roll(12);
        if self.dice.one_in(3) {
            self.world.vacate(protocol, port);
        } else if self.world.occupy(protocol, port, 300) {
            self.tally.count("ports taken by another subscriber");
        }
    }

    fn the_kernel_changes(&mut self) {
        self.disturb();
        match self.dice.roll(4) {
            0 => self.world.nat.takes = Duration::from_millis(self.dice.pick(&[1, 1, 300, 2500, 6000])),
            1 => self.world.nat.refuse_next = 1 + u32::from(self.dice.roll(2)),
            2 => self.world.nat.ports_in_use.clear(),
            _ => {
                let port = (Protocol::TCP, 5000 + self.dice.roll(8));
                if self.world.nat.rule(port.0, port.1).is_none() {
                    self.world.nat.ports_in_use.insert(port);
                }
            }
        }
    }

    /// Nothing can be written to it any more, or it can again.
    fn the_disk_changes(&mut self) {
        self.disturb();
        let full = !self.world.is_disk_full() && self.dice.one_in(2);
        if full && self.stale.is_none() {
            self.tally.count("the disk is full");
            self.stale = Some(self.shadow.claims.clone());
        }
        self.world.fill_disk(full);
    }

    /// the DHCP server says that a host is gone, and everything of it goes.
    fn a_host_is_released(&mut self, host: Ipv4Addr) {
        self.disturb();
        self.tally.count("hosts released");
        self.world.note(format!("* {host} is released"));
        self.promises.retain(|_, promise| !promise.is_for(host));
        self.world.release(host);
        if self.world.is_alive() {
            self.shadow.claims.retain(|_, claim| claim.host != host);
        } else {
            // Killed half-way: whoever said so has had no answer.
            self.shadow.doubt(self.world.now(), |_, claim| claim.host == host);
        }
    }

    /// An application that asks again every few seconds keeps its mapping, here and upstream, as long as there is a
    /// provider.
    fn refreshed_for_long(&mut self, host: Ipv4Addr) -> Result<(), Broken> {
        self.mend();
        self.calm = false;
        self.world.provider_config().longest = 120;
        self.check()?;
        self.pass(Duration::from_secs(60))?;
        let port = 6000 + self.dice.roll(100);
        let add = Add { lease: 3600, ..Add::new(port) };
        self.add(host, 1, add);
        self.pass(Duration::from_secs(30))?;
        let stands = |simulation: &Self| {
            let mappings = simulation.mappings();
            mappings.iter().any(|found| (found.protocol, found.external.port()) == (Protocol::TCP, port))
        };
        if !stands(self) {
            return Ok(()); // a refusal or a nonce of before counts still
        }
        self.tally.count("refreshed for long");
        let restart = self.dice.roll(200);
        for round in 0..80 {
            if round == restart {
                self.world.lose_state(true);
            }
            self.add(host, 1, add);
            let ms = 1000 + u64::from(self.dice.roll(2000));
            self.pass(Duration::from_millis(ms))?;
            if !stands(self) {
                return broken(format!("{port} is refreshed and lost"));
            }
        }
        self.pass(Duration::from_secs(20))?;
        let mut upstream = self.world.provider.mappings();
        if !upstream.any(|found| (found.protocol, found.external.port()) == (Protocol::TCP, port)) {
            return broken(format!("{port} is refreshed and lost upstream"));
        }
        Ok(())
    }

    /// As whom the provider knows a mapping, and where it leads as the provider sees it.
    pub(super) fn upstream_of(
        &self,
        mapping: &MappingStatus,
    ) -> Option<(super::ledger::Client, SocketAddrV4)> {
        match self.nat {
            NatMode::None => {
                let host = *mapping.internal.ip();
                Some(((Some(host), mapping.protocol, mapping.internal.port()), mapping.internal))
            }
            NatMode::Own => {
                let port = mapping.nat_port?;
                Some(((None, mapping.protocol, port), SocketAddrV4::new(self.wan, port)))
            }
        }
    }
}
