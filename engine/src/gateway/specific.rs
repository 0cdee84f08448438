//! GetSpecificPortMappingEntry (RFC 6970 §5.7: R-23…R-26; T-2, decision 6). Clients ask for one port after the other until one is free,
//! then add it; so an entry that is not ours is asked for at the provider, and what that gives is held for the
//! AddPortMapping that follows.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use wire::soap::Call;

use super::control::generic_entry;
use super::pending::{Pending, Purpose};
use super::{Effect, Gateway, GetSpecific, NatMode, RequestId};
use crate::claims::Asker;
use crate::igd::{Asked, Entry};
use crate::policy::Requester;
use crate::request::{MappingRequest, Refusal};
use crate::table::Key;
use crate::time::{Duration, Instant};
use crate::uplink::FlowId;

/// Requested Lifetime of a probe (RFC 6970 §4.2).
const PROBE_LEASE: Duration = Duration::from_secs(60);
/// Probes of one control point in a row, and how long until it may have one more (spec T-13): a client that looks for a
/// free port tries some ten.
const BURST: u32 = 10;
const REFILL: Duration = Duration::from_secs(2);

/// What control points have left of their probes; who has all of them is not in it.
#[derive(Debug, Default)]
pub(super) struct ProbeLimits {
    used: BTreeMap<Ipv4Addr, (u32, Instant)>,
}

impl ProbeLimits {
    /// Whether `host` may have one more probe now; if so, it has had it.
    fn take(&mut self, now: Instant, host: Ipv4Addr) -> bool {
        let refilled = |(used, since): (u32, Instant)| {
            let more = u32::try_from((now - since).as_millis() / REFILL.as_millis()).unwrap_or(u32::MAX);
            (used.saturating_sub(more), since + REFILL * more.min(used))
        };
        self.used.retain(|_, entry| {
            *entry = refilled(*entry);
            entry.0 > 0
        });
        let (used, _) = self.used.entry(host).or_insert((0, now));
        if *used >= BURST {
            return false;
        }
        *used += 1;
        true
    }
}

/// What is known of a port without asking the provider.
enum Known {
    /// There is no such entry.
    Free,
    /// Another LAN host has it, or the provider has just refused it.
    Taken,
    /// The provider is being asked.
    Asking(FlowId),
    /// Nothing: this would tell.
    Nothing(MappingRequest),
}

impl Gateway {
    /// The own table, then what is held, then what was refused, then the provider.
    pub(super) fn on_get_specific(
        &mut self,
        now: Instant,
        id: RequestId,
        who: &Requester,
        call: Call,
        entry: &Entry,
    ) {
        if let Some(mapping) = self.specific(entry) {
            let answer = Ok(call.response(&generic_entry(now, mapping)[3..]));
            return self.effects.push_back(Effect::Reply { request: id, answer });
        }
        self.wait(now, id, call, Asked::Specific);
        match self.known_of(now, who, entry) {
            Known::Free => self.refuse(id, Refusal::NoSuchEntry),
            Known::Taken => self.refuse(id, Refusal::Conflict),
            Known::Asking(flow) => self.join_exchange(now, id, flow),
            // D-6: the table is the answer while nobody else answers.
            Known::Nothing(_) if self.is_unreachable() => self.refuse(id, Refusal::NoSuchEntry),
            Known::Nothing(_) if !self.uplink_open => self.refuse(id, Refusal::NoAnswer),
            Known::Nothing(request)
                if self.probe_limits.take(now, *request.internal.ip()) && self.takes_exchange(now, who) =>
            {
                let probe = self.wanted(now, who, request, Purpose::Probe, vec![id]);
                self.begin(now, probe);
            }
            // T-13: the table is the answer.
            Known::Nothing(_) => self.refuse(id, Refusal::NoSuchEntry),
        }
    }

    fn known_of(&self, now: Instant, who: &Requester, entry: &Entry) -> Known {
        let key = Key { protocol: entry.protocol, external_port: entry.external_port };
        let Some(host) = who.address().filter(|_| key.external_port != 0) else { return Known::Free };
        if self.table.find(key).is_some() {
            return Known::Free; // for another remote host
        }
        if let Some((_, held)) = self.held.at(key) {
            return if held.is_for(host) { Known::Free } else { Known::Taken };
        }
        let same_port = |pending: &Pending| {
            pending.request.protocol == key.protocol
                && pending.request.external_port == Some(key.external_port)
                && !pending.any_port
        };
        if let Some(flow) = self.find_pending(same_port) {
            let pending = &self.pending[&flow];
            return match (who.is(*pending.request.internal.ip()), pending.purpose) {
                (true, Purpose::Probe) => Known::Asking(flow),
                (true, _) => Known::Free,
                (false, _) => Known::Taken,
            };
        }
        if self.refusals.find(now, key).is_some() {
            return Known::Taken;
        }
        // The action has no internal port: most clients use the same one (T-2).
        let request = MappingRequest {
            protocol: key.protocol,
            internal: SocketAddrV4::new(host, key.external_port),
            external_port: Some(key.external_port),
            strict: true,
            external_addr: None,
            lease: Some(PROBE_LEASE),
            remote_peer: None,
            remote_name: None,
            description: String::new(),
            by: Asker::Igd,
        };
        // Without a NAT of ours the server would tell of the mapping that this internal port has (T-3).
        let internal_taken = self.config.nat == NatMode::None
            && (self.find_own(&request).is_some()
                || self.held.of_host(host).any(|(_, held)| held.internal == Some(request.internal))
                || self.find_pending(|pending| pending.needs(request.internal)).is_some());
        let lan = self.lan_addresses();
        let facts = self.facts(now, who, &request, &lan);
        let denied = self.config.policy.check(who, &request, facts).is_err();
        if self.config.get_specific == GetSpecific::Local || internal_taken || denied || self.stopping {
            return Known::Free;
        }
        Known::Nothing(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T-13.
    #[test]
    fn ten_probes_in_a_row_then_one_every_other_second() {
        let mut limits = ProbeLimits::default();
        let (one, two) = (Ipv4Addr::new(192, 168, 1, 10), Ipv4Addr::new(192, 168, 1, 11));
        let at = Instant::from_millis;
        for _ in 0..10 {
            assert!(limits.take(at(0), one));
        }
        assert!(!limits.take(at(0), one));
        assert!(limits.take(at(0), two), "everybody for himself");
        assert!(!limits.take(at(1999), one));
        assert!(limits.take(at(2000), one));
        assert!(!limits.take(at(2001), one));
        assert!(!limits.take(at(3999), one));
        assert!(limits.take(at(4000), one));
        assert!(limits.take(at(1_000_000), two));
        assert_eq!(limits.used.len(), 1, "who has all of them is forgotten");
    }
}
