//! The list of what the server holds for us, and what is taken over from it (GET and NEXT, decision 17).

use super::*;

impl PcpClient {
    pub(super) fn go_on_with_query(&mut self, now: Instant, entropy: &mut dyn Entropy) {
        let Some(query) = self.query.as_mut().filter(|query| query.next_timeout() <= now) else { return };
        match query.request(now, self.source, entropy) {
            Some(request) if self.open => self.outputs.push_back(Output::Transmit(request.to_bytes())),
            Some(_) => {}
            None => {
                self.query = None;
                self.outputs.push_back(Output::NotListed(None));
            }
        }
    }

    pub(super) fn on_list(&mut self, now: Instant, response: &Response, entropy: &mut dyn Entropy) {
        let answer = self.query.as_mut().map_or(Answer::Ignored, |query| query.on_answer(now, response));
        if answer == Answer::Ignored {
            self.ignored += 1;
            return;
        }
        self.heard(now, entropy);
        self.check_epoch(now, response.epoch, false, None, entropy);
        match answer {
            Answer::Ignored | Answer::GoOn => {}
            Answer::Complete(list) => {
                self.query = None;
                let known: BTreeSet<Client> = self.flows.values().map(|flow| client(&flow.want)).collect();
                let unknown = list.into_iter().filter_map(|mapping| self.unknown(now, &mapping));
                let client = |u: &Unknown| (u.third_party.map(IpAddr::V4), u.protocol, u.internal_port);
                let is_new = |unknown: &Unknown| !known.contains(&client(unknown));
                let unknown = unknown.filter(is_new).collect();
                self.outputs.push_back(Output::Listed(unknown));
            }
            Answer::Refused(result) => {
                self.query = None;
                self.outputs.push_back(Output::NotListed(Some(result)));
            }
        }
    }

    /// What is listed as a mapping of a NAT that could be ours: TCP or UDP, with the nonce that proves it.
    fn unknown(&self, now: Instant, mapping: &NextMapping) -> Option<Unknown> {
        let internal = mapping.internal_addr.to_ipv4_mapped()?;
        let external = (mapping.external_addr.to_ipv4_mapped()?, mapping.external_port).into();
        let lifetime = Duration::from_secs(u64::from(mapping.lifetime.min(MAX_LIFETIME)));
        let good = matches!(mapping.protocol, Protocol::TCP | Protocol::UDP)
            && mapping.internal_port != 0
            && mapping.external_port != 0
            && mapping.nonce != Nonce([0; 12]);
        good.then_some(Unknown {
            third_party: Some(internal).filter(|&host| IpAddr::V4(host) != self.source),
            protocol: mapping.protocol,
            internal_port: mapping.internal_port,
            grant: Grant { external, lifetime, since: now },
            nonce: mapping.nonce,
        })
    }

    pub(super) fn adopt(
        &mut self,
        now: Instant,
        id: FlowId,
        unknown: Unknown,
        until: Instant,
        entropy: &mut dyn Entropy,
    ) {
        let Unknown { third_party, protocol, internal_port, grant, nonce } = unknown;
        let terms = Terms {
            prefer_failure: false,
            lease_ends: Some(until.min(grant.ends())),
            longest: u32::MAX,
            description: String::new(),
        };
        let want = Want {
            third_party: third_party.map(IpAddr::V4),
            protocol,
            internal_port,
            external_port: grant.external.port(),
            remote_peers: Vec::new(),
            terms,
            urgent: false,
        };
        let flow = Flow {
            grant: Some(grant),
            phase: Phase::Held { attempts: 0 },
            // What filters it has is not told here: the first request with one drops them.
            reset_filters: true,
            ..Flow::new(now, nonce, false, want)
        };
        if self.by_nonce.contains_key(&flow.answers()) {
            // Whoever made them used one nonce for two hosts: answers could not be told apart.
            return self.outputs.push_back(Output::Lost(id));
        }
        self.filters.suspect(self.filtered(&flow.want));
        self.by_nonce.insert(flow.answers(), id);
        self.flows.insert(id, Box::new(flow));
        self.schedule_renewal(now, id, entropy);
    }
}
