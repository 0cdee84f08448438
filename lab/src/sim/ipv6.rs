//! IPv6 in a [`World`]: this router's firewall, and a provider's firewall that speaks PCP.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use engine::gateway::{Event, NatTicket, PinholeReading, RequestId, UplinkEffect, UplinkEvent};
use engine::pinholes::{FirewallChange, Flows};
use engine::time::{Duration, Instant};
use wire::pcp::{self, Body, Nonce, OptionCode, PcpOption, Protocol, ResultCode};

use super::{KERNEL, Parcel, World};

/// The gateway's address on the LAN, a /64.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// The router's address towards the provider.
pub const WAN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
/// The provider's firewall.
pub(super) const FIREWALL: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// The longest lifetime that the provider's firewall grants, in seconds.
const LONGEST: u32 = 600;

/// The IPv6 side of a world.
#[derive(Debug, Default)]
pub(super) struct Ipv6 {
    /// There is any.
    pub(super) is_there: bool,
    /// What this router lets in.
    pub(super) open: BTreeSet<Flows>,
    /// The provider has a firewall that is asked.
    provider: bool,
    /// What it lets in: by host, protocol and port, whose it is and until when.
    granted: BTreeMap<(Ipv6Addr, Protocol, u16), (Nonce, Instant)>,
    began: Instant,
    /// The socket that leads to it.
    socket: bool,
}

impl Ipv6 {
    /// `provider`: whether its firewall speaks PCP.
    pub(super) fn new(is_there: bool, provider: bool) -> Self {
        Self { is_there, provider: is_there && provider, ..Self::default() }
    }
}

pub(super) fn firewall() -> SocketAddr {
    SocketAddr::new(IpAddr::V6(FIREWALL), pcp::SERVER_PORT)
}

impl World {
    /// What this router's IPv6 firewall lets in.
    #[must_use]
    pub fn pinholes_open(&self) -> &BTreeSet<Flows> {
        &self.v6.open
    }

    /// How much the provider's IPv6 firewall lets in.
    #[must_use]
    pub fn pinholes_at_provider(&self) -> usize {
        self.v6.granted.values().filter(|(_, ends)| *ends > self.now).count()
    }

    pub(super) fn change_firewall(&mut self, ticket: NatTicket, change: FirewallChange) {
        if !self.v6.is_there {
            return self.violation("there is no IPv6 in these networks".to_owned());
        }
        let fits = match change {
            FirewallChange::Open(flows) => self.v6.open.insert(flows),
            FirewallChange::Close(flows) => self.v6.open.remove(&flows),
        };
        self.note(format!("the firewall: {change:?}"));
        if !fits {
            self.violation(format!("{change:?} of what is so already"));
        }
        self.tickets.insert(ticket);
        self.nat_told = self.nat_told.max(self.now + self.nat.takes);
        let after = self.nat_told - self.now;
        self.post(after, Parcel::Nat { ticket, outcome: Ok(()) });
    }

    pub(super) fn read_pinhole(&mut self, request: RequestId, what: PinholeReading) {
        let value = match what {
            PinholeReading::Packets(flows) => self.v6.open.contains(&flows).then_some(7),
            PinholeReading::Timeout(_) => Some(120),
        };
        self.post(KERNEL, Parcel::PinholeRead { request, value });
    }

    pub(super) fn on_scout(&mut self, to: SocketAddr, bytes: &[u8]) {
        if to == firewall() && self.v6.provider {
            if let Some(bytes) = self.firewall_answers(bytes) {
                self.post(self.link.delay, Parcel::Scouted { from: to, bytes });
            }
        } else {
            self.note(format!("looks at {to}, where nobody is"));
        }
    }

    pub(super) fn on_firewall_uplink(&mut self, effect: UplinkEffect) {
        if !self.v6.is_there {
            return self.violation("there is no IPv6 in these networks".to_owned());
        }
        match effect {
            UplinkEffect::Open(server) => {
                self.v6.socket = false;
                self.post(KERNEL, Parcel::FirewallOpened(server));
            }
            UplinkEffect::Close => self.v6.socket = false,
            UplinkEffect::Send { to, bytes } => {
                match pcp::Request::parse(&bytes) {
                    Ok(request) if bytes.len() <= pcp::MAX_LEN => self.note(format!("-> firewall {request}")),
                    _ => self.violation(format!("what is no request was sent to {to}")),
                }
                let answer = self.firewall_answers(&bytes);
                for (after, bytes) in self.on_the_way_back(answer) {
                    self.post(after, Parcel::ToFirewall(bytes));
                }
            }
        }
    }

    pub(super) fn deliver_v6(&mut self, parcel: Parcel) {
        match parcel {
            Parcel::Scouted { from, bytes } => self.handle(Event::Scouted { from, bytes: &bytes }),
            Parcel::FirewallOpened(server) => {
                self.v6.socket = true;
                let source = IpAddr::V6(WAN_V6);
                self.handle(Event::FirewallUplink(UplinkEvent::Opened { server, source }));
            }
            Parcel::ToFirewall(bytes) if self.v6.socket => {
                let from = firewall();
                self.handle(Event::FirewallUplink(UplinkEvent::Datagram { from, bytes: &bytes }));
            }
            Parcel::PinholeRead { request, value } => self.handle(Event::PinholeRead { request, value }),
            _ => {}
        }
    }

    /// It grants what it is asked for.
    fn firewall_answers(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let request = pcp::Request::parse(bytes).ok()?;
        let epoch = u32::try_from((self.now - self.v6.began).as_secs()).unwrap_or(u32::MAX);
        let (mut result, mut lifetime) = (ResultCode::SUCCESS, request.lifetime.min(LONGEST));
        let mut body = request.body.clone();
        if let Body::Map(map) = &mut body {
            let third_party = request.options.iter().find_map(|option| match option {
                PcpOption::ThirdParty(host) => Some(*host),
                _ => None,
            });
            let host = third_party.unwrap_or(request.client_addr);
            let key = (host, map.protocol, map.internal_port);
            let now = self.now;
            self.v6.granted.retain(|_, (_, ends)| *ends > now);
            match self.v6.granted.get(&key) {
                Some((nonce, ends)) if *nonce != map.nonce => {
                    result = ResultCode::NOT_AUTHORIZED;
                    lifetime = u32::try_from((*ends - now).as_secs()).unwrap_or(u32::MAX);
                }
                _ if request.lifetime == 0 => drop(self.v6.granted.remove(&key)),
                _ => {
                    let ends = now + Duration::from_secs(lifetime.into());
                    self.v6.granted.insert(key, (map.nonce, ends));
                    (map.external_addr, map.external_port) = (host, map.internal_port);
                }
            }
        }
        let known = |option: &PcpOption| option.code() != OptionCode::DESCRIPTION;
        let options = request.options.into_iter().filter(known).collect();
        Some(pcp::Response { result, lifetime, epoch, body, options }.to_bytes())
    }

    /// The provider's firewall forgets everything.
    pub(super) fn firewall_forgets(&mut self) {
        self.v6.granted.clear();
        self.v6.began = self.now;
    }
}
