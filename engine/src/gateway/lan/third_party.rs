//! THIRD_PARTY (RFC 6887 §13.1): who may ask for whom. Off by default, for whoever may has the ports of others.

use std::net::{IpAddr, SocketAddr};

use wire::pcp::{self, PcpOption, Protocol, Request, ResultCode};

use super::super::Gateway;
use super::pcp_server::Refused;
use super::{LONG, LanArrival, canonical};
use crate::notice::Notice;
use crate::time::Instant;

impl Gateway {
    /// The host that a request is for: who asks, unless it names another one that it may ask for (O-2, security policy).
    pub(super) fn host_of(&self, request: &Request) -> Result<IpAddr, Refused> {
        let client = pcp::ip_from_wire(request.client_addr);
        let named = request.options.iter().find_map(|option| match option {
            PcpOption::ThirdParty(host) => Some(pcp::ip_from_wire(*host)),
            _ => None,
        });
        let Some(host) = named else { return Ok(client) };
        if self.config.third_party.is_empty() {
            return Err(Refused(ResultCode::UNSUPP_OPTION, LONG));
        }
        if host == client {
            return Err(Refused(ResultCode::MALFORMED_REQUEST, LONG));
        }
        if !self.may_name_others(client) {
            return Err(Refused(ResultCode::UNSUPP_OPTION, LONG)); // §13.1: an unauthorized host
        }
        let may = self.config.third_party.iter().any(|rule| rule.allows(client, host));
        if !may || !self.is_on_lan(host) {
            return Err(Refused(ResultCode::NOT_AUTHORIZED, LONG));
        }
        Ok(host)
    }

    fn may_name_others(&self, client: IpAddr) -> bool {
        self.config.third_party.iter().any(|rule| rule.client.contains(client))
    }

    /// Whether a host could be there; it is not said that it is (policy knows the rest).
    fn is_on_lan(&self, host: IpAddr) -> bool {
        let mut links = self.lan.iter().flat_map(|lan| &lan.addresses);
        let own = links.clone().any(|link| link.addr == host);
        let on_link = links.any(|link| match host {
            IpAddr::V4(addr) => link.contains(host) && !link.is_edge(addr),
            IpAddr::V6(_) => link.contains(host),
        });
        on_link && !own
    }

    /// Who asks for another host is in the log.
    pub(super) fn note_third_party(&mut self, client: IpAddr, protocol: Protocol, internal: SocketAddr) {
        if client != internal.ip() {
            self.notice(Notice::ForThirdParty(client, protocol, internal));
        }
    }

    /// A request for a host that has another uplink.
    pub(in super::super) fn refuse_elsewhere(&mut self, now: Instant, arrival: LanArrival, bytes: &[u8]) {
        if !self.config.pcp || !self.may_name_others(arrival.from.ip()) {
            return self.on_lan_datagram(now, arrival, bytes); // refused as well, and it knows how
        }
        let arrival = LanArrival { from: canonical(arrival.from), ..arrival };
        if self.is_lan_request(now, &arrival, bytes) {
            self.refuse_pcp(&arrival, bytes, ResultCode::NOT_AUTHORIZED, LONG);
        } else {
            self.lan_server.counters.ignored += 1;
        }
    }
}
