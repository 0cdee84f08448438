//! PEER (RFC 6887 §12), beside what is kept: one request, and its answer.

use wire::pcp::PeerData;

use super::*;
use crate::uplink::nonces::derived_for_peer;
use crate::uplink::peer::PeerWant;

impl PcpClient {
    pub(super) fn ask_peer(&mut self, now: Instant, id: FlowId, want: PeerWant, entropy: &dyn Entropy) {
        if let Some((until, result)) = self.hold.filter(|(until, _)| now < *until) {
            return self.outputs.push_back(Output::PeerRefused(id, result, until - now));
        }
        let client = (want.third_party, want.protocol, want.internal_port);
        let nonce = derived_for_peer(&self.identity, client, want.remote, entropy);
        self.peers.add(now, id, nonce, want);
    }

    /// Sends what is due of them. It is no silence of the server's if nothing comes back: it may serve MAP and not this.
    pub(super) fn go_on_with_peers(&mut self, now: Instant, entropy: &mut dyn Entropy) {
        while let Some(request) = self.peers.due(now, self.source, entropy) {
            let bytes = if self.knocks { self.knock() } else { request.to_bytes() };
            if self.open {
                self.outputs.push_back(Output::Transmit(bytes));
            }
        }
    }

    pub(super) fn on_peer(
        &mut self,
        now: Instant,
        id: FlowId,
        data: &PeerData,
        response: &Response,
        entropy: &mut dyn Entropy,
    ) {
        self.heard(now, entropy);
        self.check_epoch(now, response.epoch, false, None, entropy);
        self.peers.forget(id);
        let wait = Duration::from_secs(u64::from(response.lifetime.min(MAX_ERROR_LIFETIME)));
        let external = SocketAddr::new(pcp::ip_from_wire(data.external_addr), data.external_port);
        let output = match response.result {
            ResultCode::SUCCESS if response.lifetime > 0 && external.is_ipv4() => {
                Output::PeerGranted(id, answers::granted(now, external, response.lifetime))
            }
            // A success of no use.
            ResultCode::SUCCESS => Output::PeerRefused(id, ResultCode::NETWORK_FAILURE, Duration::ZERO),
            result => Output::PeerRefused(id, result, wait),
        };
        self.outputs.push_back(output);
    }
}
