//! The `expect` lines.

use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use engine::table::Health;
use engine::time::Duration;
use wire::pcp::{self, Body, OptionCode, PcpOption, Protocol};
use wire::services::Service;

use super::words::{Fields, duration, plain, port, protocol, range, seconds};
use super::{Fault, Runner, unmet};
use crate::sim::{STRANGER, Sent, World};

/// What is expected of a MAP request.
struct Pattern {
    protocol: Protocol,
    /// As the server sees it: behind the router's own NAT, that NAT's port.
    internal_port: u16,
    external_port: Option<u16>,
    lifetime: Option<RangeInclusive<u32>>,
    prefer_failure: bool,
    third_party: Option<Ipv4Addr>,
    filter: Option<Ipv4Addr>,
    /// Any, if it does not matter.
    description: Option<String>,
    /// Since the last line that made something happen.
    at: Option<RangeInclusive<Duration>>,
    same_nonce: bool,
    times: Option<usize>,
}

impl Runner {
    pub(super) fn expect(&mut self, what: &[&str]) -> Result<(), Fault> {
        self.world();
        match *what {
            ["pcp", "MAP", internal, ref fields @ ..] => {
                let pattern = self.pattern(internal, fields)?;
                self.expect_pcp(&pattern)
            }
            ["no", "pcp", "MAP", internal] => {
                let (protocol, number) = port(internal)?;
                let world = self.ready();
                let found = world.sent()[self.window.sent..].iter().find(|sent| {
                    matches!(&sent.request.body, Body::Map(map) if (map.protocol, map.internal_port) == (protocol, number))
                });
                match found {
                    None => Ok(()),
                    Some(sent) => unmet("no such request", sent.request.to_string()),
                }
            }
            ["nothing", "on", "the", "uplink"] => match self.unclaimed().first() {
                None => Ok(()),
                Some(_) => unmet("nothing on the uplink", self.shown_unclaimed()),
            },
            ["nat", what, "->", to, ref fields @ ..] => {
                let ((protocol, number), to) = (port(what)?, self.endpoint(to)?);
                let mut fields = Fields::new(fields);
                let from = fields.parsed("from", |text| self.address(text))?;
                fields.finish()?;
                let rule = self.ready().nat.rule(protocol, number);
                same(Some((to, from)), rule.map(|rule| (rule.internal, rule.remote_peer)))
            }
            ["no", "nat"] => same(None, self.ready().nat.rules().next()),
            ["no", "nat", what] => {
                let (protocol, number) = port(what)?;
                same(None, self.ready().nat.rule(protocol, number))
            }
            ["mappings", count] => {
                let world = self.ready();
                same(plain::<usize>(count)?, world.gateway.mappings(world.now()).count())
            }
            ["mapping", what, "->", to, ref fields @ ..] => self.expect_mapping(what, to, fields),
            ["no", "mapping", what] => {
                let what = port(what)?;
                let world = self.ready();
                let found =
                    world.gateway.mappings(world.now()).find(|m| (m.protocol, m.external.port()) == what);
                same(None, found)
            }
            ["provider", "mappings", count] => {
                let ours = self.ready().provider.mappings().filter(|mapping| mapping.subscriber != STRANGER);
                same(plain::<usize>(count)?, ours.count())
            }
            ["provider", "mapping", what, "->", to, ref fields @ ..] => {
                let (what, to) = (port(what)?, self.endpoint(to)?);
                let mut fields = Fields::new(fields);
                let lifetime = fields.parsed("lifetime", |text| range(text, seconds))?;
                let filter = fields.parsed("filter", |text| self.address(text))?;
                let description = fields.value("description");
                fields.finish()?;
                let world = self.ready();
                let Some(mapping) =
                    world.provider.mappings().find(|m| (m.protocol, m.external.port()) == what)
                else {
                    return unmet("a mapping of the provider", "none");
                };
                same(to, mapping.internal)?;
                if let Some(wanted) = description {
                    same(wanted, mapping.description.as_deref().unwrap_or_default().trim_end())?;
                }
                let peers: Vec<_> =
                    mapping.filters.iter().map(|filter| filter.remote_addr.to_ipv4_mapped()).collect();
                same(filter.into_iter().map(Some).collect::<Vec<_>>(), peers)?;
                within(lifetime.as_ref(), mapping.ends.secs_left(world.now()))
            }
            ["no", "provider", "mapping", what] => {
                let what = port(what)?;
                let mut mappings = self.ready().provider.mappings();
                same(None, mappings.find(|m| (m.protocol, m.external.port()) == what))
            }
            ["external", addr] => self.expect_answer("GetExternalIPAddress", "NewExternalIPAddress", addr),
            ["connected"] => self.expect_answer("GetStatusInfo", "NewConnectionStatus", "Connected"),
            ["disconnected"] => self.expect_answer("GetStatusInfo", "NewConnectionStatus", "Disconnected"),
            ["update-id", number] => {
                let world = self.ready();
                same(plain::<u32>(number)?, world.gateway.status(world.now()).system_update_id)
            }
            ["reachable", what, "->", to, ref from @ ..] => {
                let to = self.endpoint(to)?;
                same(Some(to), self.reach(what, from)?)
            }
            ["unreachable", what, ref from @ ..] => same(None, self.reach(what, from)?),
            ["notice", words] => {
                let since = &self.ready().notices()[self.window.notices..];
                let lines: Vec<String> = since.iter().map(|(_, notice)| notice.to_string()).collect();
                if lines.iter().any(|line| line.contains(words)) {
                    Ok(())
                } else {
                    unmet(format!("a notice with {words:?}"), format!("{lines:?}"))
                }
            }
            ["held", count] => {
                let world = self.ready();
                same(plain::<usize>(count)?, world.gateway.status(world.now()).held)
            }
            ["stopped"] => same(true, self.ready().is_stopped()),
            _ => Err(Fault::Meaning("there is no such expectation".to_owned())),
        }
    }

    fn ready(&self) -> &World {
        self.world.as_ref().expect("every expectation makes the world first")
    }

    fn pattern(&self, internal: &str, fields: &[&str]) -> Result<Pattern, String> {
        let (protocol, internal_port) = port(internal)?;
        let mut fields = Fields::new(fields);
        let mut pattern = Pattern {
            protocol,
            internal_port,
            external_port: fields.parsed("ext", plain)?,
            lifetime: fields.parsed("lifetime", |text| range(text, seconds))?,
            prefer_failure: fields.flag("prefer-failure"),
            third_party: fields.parsed("third-party", |text| self.address(text))?,
            filter: fields.parsed("filter", |text| self.address(text))?,
            description: fields.value("description").map(str::to_owned),
            at: fields.parsed("at", |text| range(text, duration))?,
            same_nonce: fields.flag("same-nonce"),
            times: fields.parsed("times", plain)?,
        };
        if fields.flag("delete") {
            // RFC 6887 §15.1: both suggestions are zero.
            (pattern.external_port, pattern.lifetime) = (Some(0), Some(0..=0));
        }
        fields.finish()?;
        Ok(pattern)
    }

    /// Indexes of the datagrams that no expectation has claimed yet.
    fn unclaimed(&self) -> Vec<usize> {
        let all = self.window.sent..self.ready().sent().len();
        all.filter(|index| !self.window.claimed.contains(index)).collect()
    }

    fn shown_unclaimed(&self) -> String {
        let sent = self.ready().sent();
        let lines: Vec<String> = self
            .unclaimed()
            .iter()
            .map(|&index| format!("{} (after {:?})", sent[index].request, sent[index].at - self.window.begin))
            .collect();
        if lines.is_empty() { "nothing on the uplink".to_owned() } else { lines.join("\n            ") }
    }

    fn expect_pcp(&mut self, pattern: &Pattern) -> Result<(), Fault> {
        let sent = self.ready().sent();
        let fits = |&index: &usize| self.fits(pattern, &sent[index], &sent[..self.window.sent]);
        let found: Vec<usize> = self.unclaimed().into_iter().filter(fits).collect();
        match (pattern.times, found.first()) {
            (None, None) => unmet("such a request on the uplink", self.shown_unclaimed()),
            (Some(times), _) if times != found.len() => {
                unmet(format!("{times} such requests on the uplink"), self.shown_unclaimed())
            }
            (None, Some(&first)) => {
                self.window.claimed.insert(first);
                Ok(())
            }
            (Some(_), _) => {
                self.window.claimed.extend(found);
                Ok(())
            }
        }
    }

    fn fits(&self, pattern: &Pattern, sent: &Sent, before: &[Sent]) -> bool {
        let (request, at) = (&sent.request, sent.at - self.window.begin);
        let Body::Map(map) = &request.body else { return false };
        let v4 = |option: Option<&PcpOption>| match option {
            Some(PcpOption::ThirdParty(addr)) => addr.to_ipv4_mapped(),
            Some(PcpOption::Filter(filter)) => filter.remote_addr.to_ipv4_mapped(),
            _ => None,
        };
        let third_party = v4(request.option(OptionCode::THIRD_PARTY));
        let nonce_before = before.iter().rev().find_map(|earlier| match &earlier.request.body {
            Body::Map(other)
                if (other.protocol, other.internal_port) == (map.protocol, map.internal_port)
                    && v4(earlier.request.option(OptionCode::THIRD_PARTY)) == third_party =>
            {
                Some(other.nonce)
            }
            _ => None,
        });
        (map.protocol, map.internal_port) == (pattern.protocol, pattern.internal_port)
            && pattern.external_port.is_none_or(|port| port == map.external_port)
            && pattern.lifetime.as_ref().is_none_or(|range| range.contains(&request.lifetime))
            && pattern.at.as_ref().is_none_or(|range| range.contains(&at))
            && pattern.prefer_failure == request.option(OptionCode::PREFER_FAILURE).is_some()
            && pattern.third_party == third_party
            && pattern.filter == v4(request.option(OptionCode::FILTER))
            && pattern.description.as_ref().is_none_or(|wanted| *wanted == described(&sent.request))
            && (!pattern.same_nonce || nonce_before == Some(map.nonce))
    }

    fn expect_mapping(&mut self, what: &str, to: &str, fields: &[&str]) -> Result<(), Fault> {
        let (what, to) = (port(what)?, self.endpoint(to)?);
        let mut fields = Fields::new(fields);
        let health = match fields.value("health") {
            None => None,
            Some("active") => Some(Health::Active),
            Some("degraded") => Some(Health::Degraded),
            Some("deleting") => Some(Health::Deleting),
            Some(other) => return Err(Fault::Meaning(format!("{other}: active, degraded or deleting"))),
        };
        let lease = fields.parsed("lease", |text| range(text, seconds))?;
        let lifetime = fields.parsed("lifetime", |text| range(text, seconds))?;
        let external: Option<Ipv4Addr> = fields.parsed("external", plain)?;
        let nat: Option<u16> = fields.parsed("nat", plain)?;
        let peer = fields.parsed("peer", |text| self.address(text))?;
        let desc = fields.value("desc");
        fields.finish()?;
        let world = self.ready();
        let found = world.gateway.mappings(world.now()).find(|m| (m.protocol, m.external.port()) == what);
        let Some(mapping) = found else {
            let all: Vec<_> = world.gateway.mappings(world.now()).collect();
            return unmet("a mapping", format!("these: {all:?}"));
        };
        let left = |left: Option<Duration>| {
            left.map_or(u32::MAX, |left| u32::try_from(left.as_secs()).unwrap_or(u32::MAX))
        };
        same(to, mapping.internal)?;
        if let Some(health) = health {
            same(health, mapping.health)?;
        }
        if let Some(external) = external {
            same(external, *mapping.external.ip())?;
        }
        if nat.is_some() {
            same(nat, mapping.nat_port)?;
        }
        if peer.is_some() {
            same(peer, mapping.remote_peer)?;
        }
        if let Some(desc) = desc {
            same(desc, mapping.description.as_str())?;
        }
        within(lease.as_ref(), left(mapping.lease_left))?;
        within(lifetime.as_ref(), left(Some(mapping.lifetime_left)))
    }

    /// What a control point is told, by an action that is answered at once.
    fn expect_answer(&mut self, action: &str, argument: &str, expected: &str) -> Result<(), Fault> {
        let world = self.world();
        // Any address of the LAN may ask.
        let asker = Ipv4Addr::new(192, 168, 1, 250);
        let id = world.call(asker, Service::WanIpConnection, 1, action, &[]);
        let reply = world.run_until_reply(id, world.now());
        let answer = reply.and_then(|reply| reply.answer.ok());
        same(Some(expected), answer.as_ref().and_then(|answer| answer.value(argument)))
    }

    fn reach(&self, what: &str, from: &[&str]) -> Result<Option<std::net::SocketAddrV4>, String> {
        let (number, name) = what.split_once('/').ok_or_else(|| format!("{what} is not like 8080/TCP"))?;
        let remote = match *from {
            [] => Ipv4Addr::new(203, 0, 113, 99),
            ["from", addr] => self.address(addr)?,
            _ => return Err("after the port comes nothing, or: from ADDRESS".to_owned()),
        };
        Ok(self.ready().reach(protocol(name)?, plain(number)?, remote))
    }
}

/// The text of DESCRIPTION without the blanks that fill it up; empty where there is none.
fn described(request: &pcp::Request) -> String {
    match request.option(OptionCode::DESCRIPTION) {
        Some(PcpOption::Description(octets)) => String::from_utf8_lossy(octets).trim_end().to_owned(),
        _ => String::new(),
    }
}

fn same<T: Debug + PartialEq>(expected: T, got: T) -> Result<(), Fault> {
    if expected == got { Ok(()) } else { unmet(format!("{expected:?}"), format!("{got:?}")) }
}

fn within<T: Debug + PartialOrd>(expected: Option<&RangeInclusive<T>>, got: T) -> Result<(), Fault> {
    match expected {
        Some(range) if !range.contains(&got) => unmet(format!("{range:?}"), format!("{got:?}")),
        _ => Ok(()),
    }
}
