//! What is asked next: whose turn it is, which exchange brings a flow forward, and at which external port.

use super::*;

impl IgdClient {
    /// Begins what is next in the line, if nothing is out.
    pub(super) fn go_on(&mut self, now: Instant, entropy: &mut dyn Entropy) {
        while self.open && self.out.is_none() {
            let urgent = self.line.best() == Some(Rank::Urgent);
            let resume = if urgent { self.resume.1 } else { self.resume.0 };
            if resume > now && !self.line.is_empty(now) {
                return self.timers.set(Alarm::Resume, resume);
            }
            let Some((rank, what)) = self.line.next(now) else { return };
            self.begin(now, rank, what, entropy);
        }
    }

    /// The next exchange for it, if there is one to be had.
    pub(super) fn begin(&mut self, now: Instant, rank: Rank, what: What, entropy: &mut dyn Entropy) {
        let doing = match what {
            What::Address => Some(Doing::Address),
            What::Uptime => Some(Doing::Uptime),
            What::Look(id) => {
                let held = self.flows.get(&id).filter(|flow| matches!(flow.phase, Phase::Held { .. }));
                held.map(|flow| Doing::Look(flow.port))
            }
            What::Flow(id) => self.next_step(now, id, entropy),
        };
        let Some(doing) = doing else { return };
        let flow = match what {
            What::Flow(id) | What::Look(id) => self.flows.get_mut(&id),
            What::Address | What::Uptime => None,
        };
        let id = HttpId(self.next_id);
        self.next_id += 1;
        let Connection { control, service_type, .. } = &self.connection;
        let request = |call: Call<'_>| HttpRequest::call(id, control, service_type, &call);
        let request = match (doing, flow) {
            (Doing::Address, _) => request(Call::GetExternalIpAddress),
            (Doing::Uptime, _) => request(Call::GetStatusInfo),
            (_, None) => return,
            (Doing::Look(port), Some(flow)) => {
                request(Call::GetSpecificPortMappingEntry(port, flow.protocol()))
            }
            (Doing::Delete(port), Some(flow)) => request(Call::DeletePortMapping(port, flow.protocol())),
            (Doing::Add(external_port, lease) | Doing::AddAny(external_port, lease), Some(flow)) => {
                (flow.unanswered, flow.sent_at) = (true, now);
                let mapping = Mapping {
                    external_port,
                    protocol: flow.protocol(),
                    internal_port: flow.want.internal_port,
                    internal_client: self.source,
                    description: flow.description(),
                    lease,
                };
                let any = matches!(doing, Doing::AddAny(..));
                request(if any { Call::AddAnyPortMapping(mapping) } else { Call::AddPortMapping(mapping) })
            }
        };
        let due = now + request.within + GRACE;
        self.out = Some(Exchange { id, what, rank, doing, began: now });
        self.timers.set(Alarm::Due, due);
        self.outputs.push_back(Output::Http(request));
    }

    /// What comes next for a flow; `None` when it has come to its end here.
    fn next_step(&mut self, now: Instant, id: FlowId, entropy: &mut dyn Entropy) -> Option<Doing> {
        let flow = self.flows.get(&id)?;
        if flow.is_deleting() {
            let port = flow.port;
            return Some(if flow.looked == Looked::No { Doing::Look(port) } else { Doing::Delete(port) });
        }
        if self.external.is_none() {
            // It would be of no use to anybody; who does not wait is asked for when there is an address.
            if flow.want.urgent {
                self.refuse(now, id, ResultCode::NETWORK_FAILURE, entropy);
            }
            return None;
        }
        if flow.port == 0 && !self.choose_port(now, id, entropy) {
            return None;
        }
        let flow = self.flows.get(&id)?;
        let lease = match lifetime_to_ask(now, &flow.want.terms).min(LEASE) {
            // For a week in :2, which has no other.
            _ if (self.only_permanent || flow.permanent) && self.connection.version == 1 => 0,
            lease => lease,
        };
        let knows_any = self.connection.version >= 2 && !self.lacks_any;
        Some(match flow.looked {
            _ if flow.grant.is_none() && flow.takes_any() && knows_any => Doing::AddAny(flow.port, lease),
            Looked::No => Doing::Look(flow.port),
            Looked::ToClear => Doing::Delete(flow.port),
            Looked::Free | Looked::Ours | Looked::Cleared => Doing::Add(flow.port, lease),
        })
    }

    /// The first external port to try for a flow that has none; false when there is none to be had.
    fn choose_port(&mut self, now: Instant, id: FlowId, entropy: &mut dyn Entropy) -> bool {
        let want = &self.flows[&id].want;
        let wish = if want.external_port == 0 { want.internal_port } else { want.external_port };
        let key = (want.protocol, wish);
        match self.by_port.get(&key).copied() {
            // What is given back is overwritten in its place: both lead here.
            Some(old) if self.flows.get(&old).is_none_or(Flow::is_deleting) => {
                self.remove(old);
                self.outputs.push_back(Output::Deleted(old));
            }
            Some(_) if self.flows[&id].takes_any() && self.another_port(id, entropy) => return true,
            Some(_) => {
                self.refuse(now, id, ResultCode::CANNOT_PROVIDE_EXTERNAL, entropy);
                return false;
            }
            None => {}
        }
        self.take_port(id, wish);
        true
    }

    /// Tries another port for whoever takes any; false when it has been tried often enough.
    pub(super) fn another_port(&mut self, id: FlowId, entropy: &mut dyn Entropy) -> bool {
        let Some(flow) = self.flows.get_mut(&id) else { return false };
        flow.tries += 1;
        if flow.tries >= MOST_TRIES {
            return false;
        }
        let protocol = flow.want.protocol;
        for _ in 0..MOST_TRIES {
            let mut octets = [0; 2];
            entropy.fill(&mut octets);
            // Where the ports of outgoing connections seldom are.
            let port = 10_000 + u16::from_be_bytes(octets) % 20_000;
            if !self.by_port.contains_key(&(protocol, port)) {
                self.take_port(id, port);
                return true;
            }
        }
        false
    }

    pub(super) fn take_port(&mut self, id: FlowId, port: u16) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let (protocol, before) = (flow.want.protocol, std::mem::replace(&mut flow.port, port));
        flow.looked = Looked::No;
        self.leave_port((protocol, before), id);
        self.by_port.insert((protocol, port), id);
    }
}
