//! Control points: mappings and pinholes that come, change and go.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::player::Player;
use crate::control_point::Called;
use crate::http::Client;
use crate::pcp_load::Dice;

/// How many mappings one control point has at the same time.
const MAPPINGS: usize = 20;
/// How many ports it takes them from.
const PORTS: u16 = 60;
/// How many pinholes a host has at the same time.
const PINHOLES: usize = 6;

/// What a control point may hear of a wish for a port that others want as well: another host has it, or the other control point of
/// this host is giving it back at this moment.
const TAKEN: [u16; 2] = [718, 501];
/// There is no such entry.
const NO_SUCH_ENTRY: u16 = 714;

/// A control point and what it has.
struct ControlPoint<'a> {
    player: &'a Player,
    client: Client,
    dice: Dice,
    /// The first of its ports.
    first: u16,
    /// Protocol and external port of what it has, and when that ends at the latest.
    has: BTreeMap<(&'static str, u16), Option<Instant>>,
}

/// Plays until the end, then deletes all that it has. `which` of two that a host has.
pub(super) fn control_point(player: &Player, which: u16) {
    let host = u16::from(player.host.octets()[3]);
    let mut own = ControlPoint {
        player,
        client: Client::new(Player::gateway()),
        dice: player.dice(which.into()),
        first: 20_000 + host * 500 + which * 100,
        has: BTreeMap::new(),
    };
    while player.plays() {
        own.step();
        let dice = &mut own.dice;
        player.pause(dice, 250);
    }
    let has: Vec<_> = own.has.keys().copied().collect();
    for key in has {
        own.delete(key);
    }
    let last = own.call("GetExternalIPAddress", &[], &[]);
    player.tally.count("UPnP kept connections", if last.is_some() { "used" } else { "lost" });
    (0..own.client.reopened).for_each(|_| player.tally.count("UPnP kept connections", "opened again"));
}

impl ControlPoint<'_> {
    fn step(&mut self) {
        let now = Instant::now();
        self.has.retain(|_, ends| ends.is_none_or(|ends| ends > now));
        let full = self.has.len() >= MAPPINGS;
        match self.dice.roll(100) {
            0..30 if !full => self.add(),
            30..40 if !full => self.add_any(),
            0..58 => {
                if let Some(key) = self.one_of_its_own() {
                    self.delete(key);
                }
            }
            58..68 => self.refresh(),
            68..76 => self.specific(),
            76..82 => {
                let index = self.dice.roll(40).to_string();
                self.call("GetGenericPortMappingEntry", &[("NewPortMappingIndex", &index)], &[713]);
            }
            82..87 => {
                let arguments = [
                    ("NewStartPort", "1024"),
                    ("NewEndPort", "65535"),
                    ("NewProtocol", self.protocol()),
                    ("NewManage", "0"),
                    ("NewNumberOfPorts", "0"),
                ];
                self.call("GetListOfPortMappings", &arguments, &[730]);
            }
            87..89 => self.delete_range(),
            89..93 => {
                self.call("GetStatusInfo", &[], &[]);
            }
            _ => {
                self.call("GetExternalIPAddress", &[], &[]);
            }
        }
    }

    fn call(&mut self, action: &str, arguments: &[(&str, &str)], may: &[u16]) -> Option<Called> {
        let keep = self.dice.roll(4) != 0;
        self.player.call(&mut self.client, &self.player.connection, (action, arguments), keep, may)
    }

    fn protocol(&mut self) -> &'static str {
        if self.dice.roll(2) == 0 { "TCP" } else { "UDP" }
    }

    fn port(&mut self) -> u16 {
        self.first + u16::try_from(self.dice.roll(PORTS.into())).unwrap_or(0)
    }

    fn one_of_its_own(&mut self) -> Option<(&'static str, u16)> {
        let number = u64::try_from(self.has.len()).unwrap_or(0);
        let nth = self.dice.roll(number.max(1));
        self.has.keys().nth(usize::try_from(nth).unwrap_or(0)).copied()
    }

    /// Seconds; 0, which is for ever, now and then.
    fn lease(&mut self) -> u32 {
        let longest = u64::from(self.player.lease);
        if self.dice.roll(20) == 0 { 0 } else { u32::try_from(5 + self.dice.roll(longest)).unwrap_or(5) }
    }

    fn wish(&mut self, action: &str, key: (&'static str, u16), may: &[u16]) -> Option<Called> {
        let (lease, (protocol, port)) = (self.lease(), key);
        let (client, port, lease_text) = (self.player.host.to_string(), port.to_string(), lease.to_string());
        let description = format!("soak <{port}> & \"{}\" é", self.dice.roll(1000));
        let arguments = [
            ("NewRemoteHost", ""),
            ("NewExternalPort", &*port),
            ("NewProtocol", protocol),
            ("NewInternalPort", &port),
            ("NewInternalClient", &client),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", &description),
            ("NewLeaseDuration", &lease_text),
        ];
        let called = self.call(action, &arguments, may);
        let ends = (lease > 0).then(|| Instant::now() + Duration::from_secs(lease.into()));
        let port = match &called {
            // Without an answer nobody knows whether it stands.
            Some(Ok(values)) => values.first().and_then(|(_, port)| port.parse().ok()).unwrap_or(key.1),
            Some(Err(_)) => return called,
            None => key.1,
        };
        self.has.insert((protocol, port), ends);
        called
    }

    fn add(&mut self) {
        // Some ports are those of everybody on the LAN.
        let contested = self.dice.roll(12) == 0;
        let port =
            if contested { 19_000 + u16::try_from(self.dice.roll(8)).unwrap_or(0) } else { self.port() };
        let key = (self.protocol(), port);
        let may = if contested { &TAKEN[..] } else { &[] };
        self.wish("AddPortMapping", key, may);
    }

    fn add_any(&mut self) {
        let key = (self.protocol(), self.port());
        self.wish("AddAnyPortMapping", key, &[]);
    }

    fn refresh(&mut self) {
        if let Some(key) = self.one_of_its_own().filter(|(_, port)| *port >= self.first) {
            self.wish("AddPortMapping", key, &[]);
        }
    }

    fn delete(&mut self, key: (&'static str, u16)) {
        let (protocol, port) = (key.0, key.1.to_string());
        let arguments = [("NewRemoteHost", ""), ("NewExternalPort", &*port), ("NewProtocol", protocol)];
        // It may have ended by itself. What is contested may be another host's by now.
        let may = [NO_SUCH_ENTRY, 606];
        let called = self.call("DeletePortMapping", &arguments, &may);
        if called.is_some_and(|called| called.is_ok() || called.is_err_and(|code| may.contains(&code))) {
            self.has.remove(&key);
        }
    }

    fn delete_range(&mut self) {
        let from = self.port();
        let (start, end, protocol) = (from, from + 3, self.protocol());
        let arguments = [
            ("NewStartPort", &*start.to_string()),
            ("NewEndPort", &end.to_string()),
            ("NewProtocol", protocol),
            ("NewManage", "0"),
        ];
        if let Some(Ok(_)) = self.call("DeletePortMappingRange", &arguments, &[730]) {
            self.has.retain(|(own, port), _| *own != protocol || !(start..=end).contains(port));
        }
    }

    fn specific(&mut self) {
        let known = self.dice.roll(2) == 0;
        let Some((protocol, port)) = self.one_of_its_own().filter(|_| known).or_else(|| {
            let free = (self.protocol(), self.port());
            (!self.has.contains_key(&free)).then_some(free)
        }) else {
            return;
        };
        let arguments =
            [("NewRemoteHost", ""), ("NewExternalPort", &*port.to_string()), ("NewProtocol", protocol)];
        self.call("GetSpecificPortMappingEntry", &arguments, &[NO_SUCH_ENTRY]);
    }
}

/// Pinholes of this host's own IPv6 address, over IPv6, until the end; then deletes all.
pub(super) fn pinholes(player: &Player) {
    const NO_SUCH_PINHOLE: u16 = 704;
    let (mut client, mut dice) = (Client::new(Player::gateway_v6()), player.dice(2));
    let mut has: Vec<String> = Vec::new();
    let own = player.host_v6.to_string();
    let mut call = |action: &str, arguments: &[(&str, &str)], may: &[u16]| {
        player.call(&mut client, &player.firewall, (action, arguments), true, may)
    };
    while player.plays() {
        let nth = dice.roll(u64::try_from(has.len()).unwrap_or(0).max(1));
        let nth = usize::try_from(nth).unwrap_or(0);
        let lease = (5 + dice.roll(player.lease.into())).to_string();
        match (dice.roll(6), has.get(nth).cloned()) {
            (0, _) => {
                call("GetFirewallStatus", &[], &[]);
            }
            (1, Some(id)) => {
                call("UpdatePinhole", &[("UniqueID", &id), ("NewLeaseTime", &lease)], &[NO_SUCH_PINHOLE]);
            }
            (2, Some(id)) => {
                call("GetPinholePackets", &[("UniqueID", &id)], &[NO_SUCH_PINHOLE]);
            }
            (3, Some(id)) => {
                // 709: nothing has passed yet that would tell.
                call("CheckPinholeWorking", &[("UniqueID", &id)], &[NO_SUCH_PINHOLE, 709]);
            }
            (4, Some(id)) => {
                call("DeletePinhole", &[("UniqueID", &id)], &[NO_SUCH_PINHOLE]);
                has.remove(nth);
            }
            _ if has.len() < PINHOLES => {
                let port = (20_000 + dice.roll(20)).to_string();
                let arguments = [
                    ("RemoteHost", ""),
                    ("RemotePort", "0"),
                    ("InternalClient", &*own),
                    ("InternalPort", &port),
                    ("Protocol", if dice.roll(2) == 0 { "6" } else { "17" }),
                    ("LeaseTime", &lease),
                ];
                if let Some(Ok(values)) = call("AddPinhole", &arguments, &[])
                    && let Some((_, id)) = values.first()
                    && !has.contains(id)
                {
                    has.push(id.clone());
                }
            }
            (_, Some(id)) => {
                call("DeletePinhole", &[("UniqueID", &id)], &[NO_SUCH_PINHOLE]);
                has.remove(nth);
            }
            (_, None) => {}
        }
        player.pause(&mut dice, 900);
    }
    for id in has {
        call("DeletePinhole", &[("UniqueID", &id)], &[NO_SUCH_PINHOLE]);
    }
}
