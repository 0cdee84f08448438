//! Applications that let in what comes over IPv6, by UPnP and PCP. What they were told of stands until its lease ends, whatever becomes
//! of the provider's firewall.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use engine::gateway::RequestId;
use engine::pinholes::{Endpoint, Flows};
use engine::status::PinholeStatus;
use engine::time::{Duration, Instant};
use wire::pcp::{self, Body, MapData, Protocol, ResultCode};
use wire::services::Service;

use super::clients::{By, nonce, shortened};
use super::{Mood, Siege};
use crate::sim::LanAnswer;
use crate::simulation::{Broken, broken};

/// The hosts are those of IPv4, by their last octets.
pub(super) const HOSTS: [Ipv6Addr; 3] = [host(10), host(11), host(12)];
/// The intruder's.
pub(super) const INTRUDER: Ipv6Addr = host(66);
const PORTS: u16 = 6000;
/// A question has been answered by then, or never will be.
const BACKGROUND: Duration = Duration::from_secs(21);

pub(super) const fn host(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, last)
}

/// Whose a pinhole is, and by which protocol.
type Who = (Ipv6Addr, By, Protocol, u16);

/// What is asked, and not answered.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Add(Duration),
    Update(Duration),
    Delete,
}

/// See the module's description.
#[derive(Default)]
pub(super) struct Pinholes {
    /// Until when each stands.
    promises: BTreeMap<Who, Instant>,
    /// By what control points know theirs.
    ids: BTreeMap<Who, u16>,
    asked: BTreeMap<RequestId, (Who, Instant, Asked)>,
    changing: BTreeMap<Who, Instant>,
}

impl Pinholes {
    pub(super) fn forget_what_is_asked(&mut self, now: Instant) {
        for (_, (who, ..)) in std::mem::take(&mut self.asked) {
            self.promises.remove(&who);
        }
        for (who, _) in std::mem::take(&mut self.changing).into_iter().filter(|(_, until)| *until > now) {
            self.promises.remove(&who);
        }
        for until in self.promises.values_mut() {
            *until = shortened(*until);
        }
    }
}

fn flows((addr, _, protocol, port): Who) -> Flows {
    Flows { to: Endpoint { addr, protocol, port }, remote: None, remote_port: None }
}

impl Siege {
    /// An application wants a pinhole, or no longer.
    pub(super) fn somebody_lets_in(&mut self) -> Result<(), Broken> {
        let addr = self.dice.pick(&HOSTS);
        let protocol = if self.dice.one_in(4) { Protocol::UDP } else { Protocol::TCP };
        let port = PORTS + self.dice.roll(3);
        let lifetime = self.dice.pick(&[120, 600, 3600, 0]);
        let who = (addr, By::Igd, protocol, port);
        match (self.dice.roll(4), self.pinholes.ids.get(&who).copied()) {
            (0 | 1, _) => self.map_over_ipv6(addr, protocol, port, lifetime),
            (2, Some(id)) if lifetime > 0 => {
                let (id, lease) = (id.to_string(), lifetime.to_string());
                let arguments = [("UniqueID", id.as_str()), ("NewLeaseTime", &lease)];
                let asked = Asked::Update(Duration::from_secs(lifetime.into()));
                self.ask_firewall(who, "UpdatePinhole", &arguments, asked);
            }
            (2 | 3, Some(id)) => {
                let id = id.to_string();
                self.ask_firewall(who, "DeletePinhole", &[("UniqueID", id.as_str())], Asked::Delete);
            }
            _ => drop(self.add_pinhole(who, lifetime.max(120))),
        }
        self.look()
    }

    fn add_pinhole(&mut self, who: Who, lease: u32) -> RequestId {
        let (addr, _, protocol, port) = who;
        let [port, lease_text, number] =
            [port.into(), lease, protocol.0.into()].map(|number: u32| number.to_string());
        let client = addr.to_string();
        let arguments = [
            ("RemoteHost", ""),
            ("RemotePort", "0"),
            ("InternalClient", client.as_str()),
            ("InternalPort", &port),
            ("Protocol", &number),
            ("LeaseTime", &lease_text),
        ];
        self.ask_firewall(who, "AddPinhole", &arguments, Asked::Add(Duration::from_secs(lease.into())))
    }

    fn ask_firewall(
        &mut self,
        who: Who,
        action: &str,
        arguments: &[(&str, &str)],
        asked: Asked,
    ) -> RequestId {
        self.world.note(format!("* {}: {action} {arguments:?}", who.0));
        self.tally.count("control requests of IPv6");
        let at = self.world.now();
        let id = self.world.call(who.0, Service::WanIpv6FirewallControl, 1, action, arguments);
        self.pinholes.asked.insert(id, (who, at, asked));
        id
    }

    pub(super) fn map_over_ipv6(&mut self, addr: Ipv6Addr, protocol: Protocol, port: u16, lifetime: u32) {
        let now = self.world.now();
        self.pinholes.changing.insert((addr, By::Pcp, protocol, port), now + BACKGROUND);
        let nonce = nonce(IpAddr::V6(addr), port);
        let external_addr = Ipv6Addr::UNSPECIFIED;
        let map = MapData { nonce, protocol, internal_port: port, external_port: port, external_addr };
        let request = pcp::Request { lifetime, client_addr: addr, body: Body::Map(map), options: Vec::new() };
        self.world.note(format!("* {addr}: {request}"));
        self.world.ask_at_5351(SocketAddr::from((addr, 4000)), &request.to_bytes());
    }

    /// What a client of IPv6 hears at its port.
    pub(super) fn on_lan_answer_v6(&mut self, answer: &LanAnswer, addr: Ipv6Addr) -> Result<(), Broken> {
        let Ok(response) = pcp::Response::parse(&answer.bytes) else { return Ok(()) };
        let Body::Map(map) = response.body else { return Ok(()) };
        let who = (addr, By::Pcp, map.protocol, map.internal_port);
        self.pinholes.changing.remove(&who);
        if response.result != ResultCode::SUCCESS {
            return Ok(());
        }
        if response.lifetime == 0 {
            self.pinholes.promises.remove(&who);
            return Ok(());
        }
        let to = flows(who).to;
        let stands = |found: &&PinholeStatus| found.flows.to == to && found.is_open;
        let Some(found) = answer.pinholes.iter().find(stands) else {
            return broken(format!("{who:?} is told of success, and there is {:?}", answer.pinholes));
        };
        if !self.world.pinholes_open().contains(&found.flows) {
            return broken(format!("{who:?} is told of success, and the firewall has it not"));
        }
        if HOSTS.contains(&addr) {
            self.tally.count("pinholes by PCP");
            let until = answer.at + Duration::from_secs(response.lifetime.into());
            self.pinholes.promises.insert(who, until);
        }
        Ok(())
    }

    /// Answers to control requests.
    pub(super) fn look_at_pinhole_replies(&mut self) -> Result<(), Broken> {
        let reply = |(&id, &asked): (&RequestId, &(Who, Instant, Asked))| {
            self.world.reply(id).map(|reply| (id, asked, reply.answer.clone()))
        };
        let answered: Vec<_> = self.pinholes.asked.iter().filter_map(reply).collect();
        for (id, (who, at, asked), answer) in answered {
            self.pinholes.asked.remove(&id);
            match (answer, asked) {
                (Ok(answer), Asked::Add(lease)) => {
                    let id = answer.value("UniqueID").and_then(|id| id.parse().ok()).unwrap_or_default();
                    self.pinhole_stands(who)?;
                    self.pinholes.ids.insert(who, id);
                    self.pinholes.promises.insert(who, at + lease);
                    self.tally.count("pinholes by UPnP");
                }
                (Ok(_), Asked::Update(lease)) => {
                    self.pinhole_stands(who)?;
                    self.pinholes.promises.insert(who, at + lease);
                }
                (Ok(_), Asked::Delete) => drop(self.pinholes.promises.remove(&who)),
                // Refused, or perhaps changed all the same.
                (Err(501), _) => drop(self.pinholes.promises.remove(&who)),
                (Err(704), _) => drop(self.pinholes.ids.remove(&who)),
                (Err(_), _) => {}
            }
        }
        Ok(())
    }

    fn pinhole_stands(&self, who: Who) -> Result<(), Broken> {
        let all = self.world.gateway.pinholes(self.world.now());
        let stands = all.iter().any(|found| found.flows == flows(who) && found.is_open);
        if stands && self.world.pinholes_open().contains(&flows(who)) {
            return Ok(());
        }
        broken(format!("{who:?} is told of success, and there is {all:?}"))
    }

    /// What was told of stands, and the firewall lets nothing else in.
    pub(super) fn check_pinholes(&mut self) -> Result<(), Broken> {
        let now = self.world.now();
        let all = self.world.gateway.pinholes(now);
        let open = self.world.pinholes_open();
        self.pinholes.promises.retain(|_, until| *until > now);
        self.pinholes.changing.retain(|_, until| *until > now);
        for who in self.pinholes.promises.keys() {
            let asked = self.pinholes.asked.values().any(|(other, ..)| other == who);
            if asked || self.pinholes.changing.contains_key(who) {
                continue;
            }
            let stands = all.iter().any(|found| found.flows == flows(*who));
            // After a start the kernel takes a moment for each.
            let in_force = open.contains(&flows(*who)) || !self.world.nat_is_quiet();
            if !stands || !in_force {
                return broken(format!("{who:?} was told of it, and there is {all:?}, open {open:?}"));
            }
        }
        if self.world.nat_is_quiet()
            && let Some(flows) = open.iter().find(|flows| !all.iter().any(|found| found.flows == **flows))
        {
            return broken(format!("the firewall lets in {flows}, which is nobody's: {all:?}"));
        }
        Ok(())
    }

    /// After all that has happened a pinhole is made by both protocols.
    pub(super) fn pinholes_as_ever(&mut self) -> Result<(), Broken> {
        let (igd, pcp) = ((HOSTS[0], By::Igd, Protocol::TCP, 6100), (HOSTS[1], By::Pcp, Protocol::TCP, 6101));
        let id = self.add_pinhole(igd, 600);
        self.map_over_ipv6(HOSTS[1], Protocol::TCP, pcp.3, 600);
        self.pass(Duration::from_secs(5))?;
        let control = self.world.reply(id).map(|reply| reply.answer.clone());
        if !matches!(control, Some(Ok(_))) || !self.pinholes.promises.contains_key(&pcp) {
            return broken(format!("it is calm: {} hears {control:?}, {} nothing good", HOSTS[0], HOSTS[1]));
        }
        let wanted = if self.mood == Mood::Honest { 0 } else { 1 };
        self.tally.count(["pinholes as ever", "pinholes as ever after trouble"][wanted]);
        Ok(())
    }
}
