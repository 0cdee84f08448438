//! What has to hold once everything has worked for long: everybody agrees completely.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use engine::provider::Description;
use engine::status::MappingStatus;
use engine::table::Health;
use engine::time::Duration;
use wire::pcp::Protocol;
use wire::services::Service;

use super::ledger::{Client, client_of};
use super::shadow::Asked;
use super::{Broken, HOSTS, Key, LONGEST, Simulation, broken};
use crate::sim::STRANGER;

/// Every mapping has been renewed by then.
const RENEWED: Duration = Duration::from_secs(LONGEST as u64);

impl Simulation {
    /// Everything has worked for long: everybody agrees completely.
    pub(super) fn check_calm(&mut self) -> Result<(), Broken> {
        if !self.world.gateway.is_idle() {
            self.pass(Duration::from_secs(5))?; // a lease has ended just now
        }
        self.check()?;
        if !self.open.is_empty() {
            return broken(format!("these wait for ever: {:?}", self.open));
        }
        let table = self.mappings();
        let keys: BTreeSet<Key> = table.iter().map(|found| (found.protocol, found.external.port())).collect();
        self.shadow.claims.retain(|key, claim| claim.sure || keys.contains(key));
        for claim in self.shadow.claims.values_mut() {
            claim.sure = true;
        }
        if let Some(found) = table.iter().find(|found| found.health != Health::Active) {
            return broken(format!("it is calm, and this is not: {found:?}"));
        }
        if let Some(rule) = self.world.nat.rules().find(|rule| self.world.nat.keeps(rule)) {
            return broken(format!("it is calm, and nobody removes {rule:?}"));
        }
        let held = self.world.gateway.status(self.world.now()).held;
        if held > 0 {
            return broken(format!("{held} mappings are held, for nobody"));
        }
        if !self.world.gateway.is_idle() {
            return broken("it is calm, and something is forgotten half-way".to_owned());
        }
        let external = self.world.provider_config().external;
        let mine: BTreeSet<(Protocol, u16, SocketAddrV4)> = table
            .iter()
            .filter_map(|found| Some((found.protocol, found.external.port(), self.upstream_of(found)?.1)))
            .collect();
        let (mut upstream, mut probes) = (BTreeSet::new(), 0);
        for found in self.world.provider.mappings().filter(|found| found.subscriber != STRANGER) {
            let what = (found.protocol, found.external.port(), found.internal);
            let client = (None, found.protocol, found.internal.port());
            if !mine.contains(&what) && self.ledger.is_probe(client) {
                probes += 1;
            } else {
                upstream.insert(what);
            }
        }
        // Decision 11: only while there is nothing else that tells the address.
        // Beside a mapping one may be lapsing still.
        let probing = usize::from(self.world.config().external_address_probe);
        let wanted = if table.is_empty() { probing..=probing } else { 0..=probing };
        if upstream != mine || !wanted.contains(&probes) {
            return broken(format!(
                "the provider has {upstream:?} and {probes} probes, the table {mine:?} and {wanted:?}"
            ));
        }
        for found in &table {
            let remote = found.remote_peer.unwrap_or(Ipv4Addr::new(203, 0, 113, 77));
            let reached = self.world.reach(found.protocol, found.external.port(), remote);
            // With all that was stored the gateway has forgotten what filters the provider may have.
            let filtered =
                self.upstream_of(found).is_some_and(|(client, _)| self.forgotten.contains(&client));
            if *found.external.ip() != external || reached != Some(found.internal) && !filtered {
                return broken(format!("{found:?} leads to {reached:?}"));
            }
        }
        self.check_descriptions(&table)?;
        self.check_what_is_read(&table, external)?;
        self.check_subscribers(&table, external)
    }

    /// the provider knows what control points call their mappings, or it is not told at all.
    fn check_descriptions(&mut self, table: &[MappingStatus]) -> Result<(), Broken> {
        let config = self.world.config();
        let (sends, switched) = (config.send_descriptions, self.descriptions_switched);
        if self.world.provider_config().description == Description::Ignored || switched {
            return Ok(());
        }
        for found in table {
            let Some((_, internal)) = self.upstream_of(found) else { continue };
            let key = (found.protocol, found.external.port());
            let claim = self.shadow.claims.get(&key);
            // Another text reaches the provider with the next renewal.
            let fresh = claim.is_none_or(|claim| claim.told_at + RENEWED > self.world.now());
            let mut all = self.world.provider.mappings();
            let upstream =
                all.find(|upstream| (upstream.protocol, upstream.internal) == (found.protocol, internal));
            let told = upstream.and_then(|upstream| upstream.description);
            let wanted = sends.then_some(found.description.as_str());
            if !fresh && told.as_deref().map(str::trim_end) != wanted {
                return broken(format!("the provider calls it {told:?}: {found:?}"));
            }
        }
        if sends {
            self.tally.count("descriptions compared");
        }
        Ok(())
    }

    /// Indexes have no gaps, and everybody sees the address there is.
    fn check_what_is_read(&mut self, table: &[MappingStatus], external: Ipv4Addr) -> Result<(), Broken> {
        for index in 0..=u16::try_from(table.len()).unwrap_or(u16::MAX) {
            self.read_entry(HOSTS[1], 2, index);
        }
        let known = self.world.config().external_address_probe || !table.is_empty();
        for host in HOSTS.into_iter().filter(|_| known) {
            let ask = |simulation: &mut Self, action, argument, asked| {
                let id = simulation.call(host, 1, action, &[], asked);
                let reply = simulation.world.reply(id).and_then(|reply| reply.answer.clone().ok());
                reply.and_then(|answer| answer.value(argument).map(str::to_owned))
            };
            let address = ask(self, "GetExternalIPAddress", "NewExternalIPAddress", Asked::ExternalAddress);
            let status = ask(self, "GetStatusInfo", "NewConnectionStatus", Asked::Status);
            if (address.clone(), status.as_deref()) != (Some(external.to_string()), Some("Connected")) {
                return broken(format!("{host} sees {address:?} {status:?}, the provider has {external}"));
            }
        }
        self.check()
    }

    /// A subscriber that took every event knows the state.
    fn check_subscribers(&mut self, table: &[MappingStatus], external: Ipv4Addr) -> Result<(), Broken> {
        let now = self.world.now();
        let id = self.world.gateway.status(now).system_update_id.to_string();
        let entries = table.len().to_string();
        let known = self.world.config().external_address_probe || !table.is_empty();
        let mut checked = 0;
        for (sid, found) in self.world.subscriptions().filter(|(_, found)| !found.over && found.ends > now) {
            let (face, service) = found.of;
            for variable in service.evented(face) {
                let wanted = match (service, variable.name) {
                    (Service::WanIpConnection, "ConnectionStatus") if known => "Connected".to_owned(),
                    (Service::WanIpConnection, "ExternalIPAddress") if known => external.to_string(),
                    (Service::WanIpConnection, "PortMappingNumberOfEntries") => entries.clone(),
                    (Service::WanIpConnection, "SystemUpdateID") => id.clone(),
                    (Service::WanCommonInterfaceConfig, "PhysicalLinkStatus") => "Up".to_owned(),
                    _ => continue,
                };
                let seen = found.view.get(variable.name);
                if seen != Some(&wanted) {
                    return broken(format!(
                        "{} ({sid}) thinks that {} is {seen:?}, and it is {wanted}",
                        found.host, variable.name
                    ));
                }
                checked += 1;
            }
        }
        if checked > 0 {
            self.tally.count("views of subscribers compared");
        }
        Ok(())
    }

    /// No exchange without an owner: what was sent since then was for a mapping, for the probe, or a delete.
    pub(super) fn check_owners(&self, since: usize, before: &[MappingStatus]) -> Result<(), Broken> {
        let table = self.mappings();
        let owners = before.iter().chain(&table).filter_map(|found| self.upstream_of(found));
        let owned: BTreeSet<Client> = owners.map(|(client, _)| client).collect();
        for sent in &self.world.sent()[since..] {
            let Some((client, _)) = client_of(&sent.request) else { continue };
            if sent.request.lifetime > 0 && !owned.contains(&client) && !self.ledger.is_probe(client) {
                return broken(format!("this was sent for nobody, at {:?}: {}", sent.at, sent.request));
            }
        }
        Ok(())
    }
}
