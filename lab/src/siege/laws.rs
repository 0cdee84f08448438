//! What has to hold after every turn, whoever means ill.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use engine::policy::is_usable_external;
use engine::provider::ProviderMapping;
use engine::status::{MappingStatus, PinholeStatus};
use engine::time::Duration;
use wire::pcp::Protocol;

use super::{HOSTS, IN_ALL, INTRUDER, OVER, PER_HOST, Siege, Standing};
use crate::sim::WAN;
use crate::simulation::{Broken, broken};

/// A control point's patience is measured in whole milliseconds.
const SLACK: Duration = Duration::from_millis(1);
/// Effects of one event: a few for each mapping that there may be.
const MOST_EFFECTS: usize = 12 * IN_ALL;
/// Datagrams to the server in one second.
const MOST_A_SECOND: usize = 250;
/// What the server has given and nobody was told of is bounded for each host.
const MOST_HELD: usize = 8 * 5 + 8;

/// What a host has, as far as others could change it.
pub(super) type Possessions = (Vec<MappingStatus>, Vec<PinholeStatus>);

impl Siege {
    /// Looks at what was said, and at everything that stands.
    pub(super) fn look(&mut self) -> Result<(), Broken> {
        self.violations()?;
        for answer in self.world.take_lan_answers() {
            if self.silenced.contains(&answer.to.ip()) {
                return broken(format!("{} is no host of the LAN, and is answered", answer.to));
            }
            match answer.to.ip() {
                IpAddr::V4(host) => self.on_lan_answer(&answer, host)?,
                IpAddr::V6(host) => self.on_lan_answer_v6(&answer, host)?,
            }
        }
        self.look_at_replies()?;
        self.look_at_pinhole_replies()?;
        self.check()
    }

    fn violations(&self) -> Result<(), Broken> {
        self.world.violations().first().map_or(Ok(()), broken)
    }

    fn check(&mut self) -> Result<(), Broken> {
        let now = self.world.now();
        let patience = self.world.config().answer_within + SLACK;
        let late = self.world.unanswered().find(|(_, since)| now - *since > patience);
        self.fail_if(late, "nobody answers this control point")?;
        let table = self.mappings();
        self.check_policy(&table)?;
        self.excuse_what_the_server_took();
        self.check_promises(&table)?;
        if self.ipv6 {
            self.check_pinholes()?;
        }
        let status = self.world.gateway.status(now);
        if status.mappings != table.len() || status.held > MOST_HELD {
            return broken(format!(
                "{} mappings are counted, {} listed, {} held",
                status.mappings,
                table.len(),
                status.held
            ));
        }
        if self.world.most_effects() > MOST_EFFECTS {
            return broken(format!("one event has had {} effects", self.world.most_effects()));
        }
        let sent = self.world.sent().iter().rev().take_while(|sent| now - sent.at < Duration::from_secs(1));
        if sent.count() > MOST_A_SECOND {
            return broken(format!("more than {MOST_A_SECOND} datagrams in one second"));
        }
        self.violations()
    }

    /// Nothing is mapped beyond policy, and the router's own NAT leads to nobody else.
    fn check_policy(&self, table: &[MappingStatus]) -> Result<(), Broken> {
        let is_allowed = self.standing == Standing::Allowed;
        let is_host = |host: &Ipv4Addr| HOSTS.contains(host) || is_allowed && INTRUDER.contains(host);
        let policy = &self.world.config().policy;
        // A rule for somebody opens these to him.
        let is_open = |port: u16| {
            self.standing == Standing::Unknown || !policy.never.iter().any(|never| never.contains(port))
        };
        let mut of_host: BTreeMap<Ipv4Addr, usize> = BTreeMap::new();
        for found in table {
            *of_host.entry(*found.internal.ip()).or_default() += 1;
            let fits = is_host(found.internal.ip())
                && found.internal.port() >= 1024
                && found.external.port() >= 1024
                && is_open(found.internal.port())
                && is_open(found.external.port())
                && is_usable_external(*found.external.ip());
            if !fits {
                return broken(format!("this is beyond policy: {found:?}"));
            }
        }
        self.fail_if(of_host.iter().find(|(_, count)| **count > PER_HOST), "a host has too many")?;
        if table.len() > IN_ALL {
            return broken(format!("there are {} mappings", table.len()));
        }
        let mut keys: Vec<_> = table.iter().map(|found| (found.protocol, found.external)).collect();
        keys.sort();
        keys.dedup();
        if keys.len() < table.len() {
            return broken(format!("two mappings have one external port: {table:?}"));
        }
        let rule =
            self.world.nat.rules().find(|rule| !is_host(rule.internal.ip()) || rule.internal.port() < 1024);
        self.fail_if(rule, "a rule leads to who cannot have asked")?;
        let pinholes = self.world.gateway.pinholes(self.world.now());
        let mut of_host: BTreeMap<_, usize> = BTreeMap::new();
        for found in &pinholes {
            *of_host.entry(found.flows.to.addr).or_default() += 1;
            let last = found.flows.to.addr.segments()[7];
            let is_host = matches!(last, 10..=12) || is_allowed && last == 66;
            if !is_host || found.flows.to.port < 1024 || !is_open(found.flows.to.port) {
                return broken(format!("this is beyond policy: {found:?}"));
            }
        }
        self.fail_if(of_host.iter().find(|(_, count)| **count > PER_HOST), "a host has too many pinholes")
    }

    /// What everybody else has than the intruder.
    pub(super) fn possessions_of_others(&self) -> Possessions {
        let now = self.world.now();
        let mut mappings = self.mappings();
        mappings.retain(|found| HOSTS.contains(found.internal.ip()));
        let mut pinholes = self.world.gateway.pinholes(now);
        pinholes.retain(|found| found.flows.to.addr != super::pinholes::INTRUDER);
        (mappings, pinholes)
    }

    /// All leases are over: nothing is left here, in the kernel or at the provider.
    pub(super) fn nothing_is_left(&mut self) -> Result<(), Broken> {
        let now = self.world.now();
        let table = self.mappings();
        let pinholes = self.world.gateway.pinholes(now);
        let status = self.world.gateway.status(now);
        let rules = self.world.nat.rules().count();
        // The one that tells the external address is the router's own.
        let is_probe =
            |found: &ProviderMapping| (found.protocol, *found.internal.ip()) == (Protocol::UDP, WAN);
        let (probes, upstream): (Vec<_>, Vec<_>) = self.world.provider.mappings().partition(is_probe);
        let at_firewall = self.world.pinholes_at_provider();
        let left = (table.len(), pinholes.len(), status.held, rules, upstream.len(), at_firewall);
        if left != (0, 0, 0, 0, 0, 0) || probes.len() > 1 {
            return broken(format!(
                "after {OVER:?} there is {left:?}: {table:?} {pinholes:?} {upstream:?} {probes:?}"
            ));
        }
        if !self.world.pinholes_open().is_empty() || !self.world.gateway.is_idle() {
            return broken("after all leases are over something is forgotten half-way".to_owned());
        }
        if !self.asked.is_empty() {
            return broken(format!("these wait for ever: {:?}", self.asked));
        }
        self.violations()
    }
}
