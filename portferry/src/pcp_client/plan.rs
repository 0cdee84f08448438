//! What a command line asks for, before any server is known.

use std::net::IpAddr;
use std::time::Duration;

use wire::pcp::{Body, NO_ADDR_V4, ip_to_wire};
use wire::pcp::{Filter, GetData, MapData, Nonce, OptionCode, PcpOption, PeerData, Protocol, Request};
use wire::{natpmp, pcp};

use super::message::Question;
use super::parse::Suggestion;

/// Seconds that the probe for the external address lives if it cannot be deleted: what servers grant at least (RFC 6887 §15).
pub(super) const PROBE_LIFETIME: u32 = 120;

/// Which protocol is spoken.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub(super) enum Speak {
    /// PCP version 2 only
    Pcp,
    /// NAT-PMP only
    NatPmp,
    /// PCP, and NAT-PMP when the server says that it speaks version 0
    #[default]
    Auto,
}

/// The whole errand.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) job: Job,
    pub(super) speak: Speak,
    /// How long an answer is waited for.
    pub(super) patience: Duration,
    /// How often a question is repeated at most; `None`: as the time allows.
    pub(super) retries: Option<u32>,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub(super) enum Job {
    Mapping(Mapping),
    Announce {
        options: Vec<PcpOption>,
    },
    Get {
        filters: GetData,
        options: Vec<PcpOption>,
    },
    /// The external address, by a short mapping of UDP port `internal_port` where it cannot be asked for.
    External {
        nonce: Nonce,
        internal_port: u16,
    },
}

/// MAP, or PEER where there is a remote peer; a lifetime of 0 deletes.
#[derive(Clone, Debug)]
pub(super) struct Mapping {
    pub(super) nonce: Nonce,
    pub(super) protocol: Protocol,
    /// 0: all ports.
    pub(super) internal_port: u16,
    pub(super) suggestion: Suggestion,
    pub(super) lifetime: u32,
    pub(super) peer: Option<(IpAddr, u16)>,
    pub(super) options: Vec<PcpOption>,
    /// Renew it until somebody interrupts.
    pub(super) keep: bool,
}

/// Why a question cannot be put in NAT-PMP.
pub(super) type Inexpressible = String;

impl Mapping {
    /// The host inside, if it is not the one that asks.
    pub(super) fn third_party(&self) -> Option<IpAddr> {
        third_party(&self.options)
    }

    /// Whether a success with anything else than the suggestion is none (RFC 6887 §13.2).
    pub(super) fn prefers_failure(&self) -> bool {
        self.options.iter().any(|option| option.code() == OptionCode::PREFER_FAILURE)
    }

    /// The same mapping, to be deleted: what the delete must repeat stays, what it must not goes (RFC 6887 §15.1, RFC 7753).
    pub(super) fn deleted(&self) -> Self {
        let stays = [OptionCode::THIRD_PARTY, OptionCode::THIRD_PARTY_ID, OptionCode::PORT_SET];
        Self {
            lifetime: 0,
            suggestion: Suggestion::default(),
            options: self.options.iter().filter(|option| stays.contains(&option.code())).cloned().collect(),
            ..self.clone()
        }
    }

    /// The PCP request of a client with that address.
    pub(super) fn request(&self, client: IpAddr) -> Request {
        let Self { nonce, protocol, internal_port, .. } = *self;
        let external_port = self.suggestion.port;
        let external_addr = match self.suggestion.addr {
            Some(addr) => ip_to_wire(addr),
            // No preference is said in the family of the address inside (RFC 6887 §11.1).
            None if self.third_party().unwrap_or(client).is_ipv4() => NO_ADDR_V4,
            None => std::net::Ipv6Addr::UNSPECIFIED,
        };
        let body = match self.peer {
            None => Body::Map(MapData { nonce, protocol, internal_port, external_port, external_addr }),
            Some((remote, remote_port)) => Body::Peer(PeerData {
                nonce,
                protocol,
                internal_port,
                external_port,
                external_addr,
                remote_port,
                remote_addr: ip_to_wire(remote),
            }),
        };
        Request {
            lifetime: self.lifetime,
            client_addr: ip_to_wire(client),
            body,
            options: self.options.clone(),
        }
    }

    /// The same in NAT-PMP, which has TCP and UDP, one port, the sender itself, and no options (RFC 6886 §3.3). Options that
    /// a PCP server may ignore are left out.
    pub(super) fn nat_pmp(&self) -> Result<natpmp::Request, Inexpressible> {
        let protocol = match self.protocol {
            Protocol::TCP => natpmp::Transport::Tcp,
            Protocol::UDP => natpmp::Transport::Udp,
            other => return Err(format!("NAT-PMP maps TCP and UDP, not {other}")),
        };
        if self.peer.is_some() {
            return Err("NAT-PMP has no PEER".to_owned());
        }
        if self.internal_port == 0 && self.lifetime != 0 {
            return Err("NAT-PMP cannot map all ports".to_owned());
        }
        if let Some(option) = self.options.iter().find(|option| option.code().is_mandatory()) {
            return Err(format!("NAT-PMP has no options, and so no {}", option.code()));
        }
        if self.suggestion.addr.is_some_and(|addr| !addr.is_unspecified()) {
            return Err("NAT-PMP cannot suggest an external address, only a port".to_owned());
        }
        Ok(natpmp::Request::Map {
            protocol,
            internal_port: self.internal_port,
            external_port: self.suggestion.port,
            lifetime: self.lifetime,
        })
    }
}

impl Job {
    /// The mapping that is asked for, if one is: also the probe that tells the external address.
    pub(super) fn mapping(&self) -> Option<Mapping> {
        match self {
            Job::Mapping(mapping) => Some(mapping.clone()),
            Job::External { nonce, internal_port } => Some(Mapping {
                nonce: *nonce,
                protocol: Protocol::UDP,
                internal_port: *internal_port,
                suggestion: Suggestion::default(),
                lifetime: PROBE_LIFETIME,
                peer: None,
                options: Vec::new(),
                keep: false,
            }),
            Job::Announce { .. } | Job::Get { .. } => None,
        }
    }

    /// Whether somebody has to interrupt it.
    pub(super) fn keeps(&self) -> bool {
        matches!(self, Job::Mapping(mapping) if mapping.keep)
    }

    /// The first question, by PCP or by NAT-PMP. GET's last mapping seen, if any, is `seen`.
    pub(super) fn question(
        &self,
        nat_pmp: bool,
        client: IpAddr,
        seen: Option<&PcpOption>,
    ) -> Result<Question, Inexpressible> {
        let mapping = self.mapping();
        if nat_pmp {
            return Ok(Question::NatPmp(match (self, mapping) {
                (Job::Mapping(_), Some(mapping)) => mapping.nat_pmp()?,
                (Job::Get { .. }, _) => return Err("NAT-PMP cannot list mappings".to_owned()),
                // The nearest thing to ANNOUNCE: harmless, and its answer has the epoch.
                _ => natpmp::Request::ExternalAddress,
            }));
        }
        let client_addr = ip_to_wire(client);
        Ok(Question::Pcp(match (self, mapping) {
            (_, Some(mapping)) => mapping.request(client),
            (Job::Get { filters, options }, None) => Request {
                lifetime: 0,
                client_addr,
                body: Body::Get(*filters),
                options: options.iter().chain(seen).cloned().collect(),
            },
            (Job::Announce { options }, None) => {
                Request { lifetime: 0, client_addr, body: Body::Announce, options: options.clone() }
            }
            (Job::Mapping(_) | Job::External { .. }, None) => unreachable!("these have a mapping"),
        }))
    }
}

/// The address in a THIRD_PARTY.
pub(super) fn third_party(options: &[PcpOption]) -> Option<IpAddr> {
    options.iter().find_map(|option| match option {
        PcpOption::ThirdParty(addr) => Some(pcp::ip_from_wire(*addr)),
        _ => None,
    })
}

/// The FILTER that drops all before it; its address counts for nothing, and is of the family of those that follow.
pub(super) fn reset_filters(next: Option<&Filter>) -> PcpOption {
    let v6 = next.is_some_and(|next| next.remote_addr.to_ipv4_mapped().is_none());
    let remote_addr = if v6 { std::net::Ipv6Addr::UNSPECIFIED } else { NO_ADDR_V4 };
    PcpOption::Filter(Filter { prefix_len: 0, remote_port: 0, remote_addr })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pcp_client::hex;

    fn mapping() -> Mapping {
        Mapping {
            nonce: Nonce(std::array::from_fn(|n| u8::try_from(n).unwrap())),
            protocol: Protocol::TCP,
            internal_port: 8080,
            suggestion: Suggestion { addr: None, port: 8080 },
            lifetime: 3600,
            peer: None,
            options: vec![PcpOption::PreferFailure],
            keep: false,
        }
    }

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 10));

    /// The worked bytes of docs/spec/pcp.md, section 16.
    #[test]
    fn a_map_request_octet_by_octet() {
        assert_eq!(
            hex::lines(&mapping().request(CLIENT).to_bytes()),
            [
                "02010000 00000e10 00000000 00000000 0000ffff c000020a 00010203 04050607",
                "08090a0b 06000000 1f901f90 00000000 00000000 0000ffff 00000000 02000000",
            ]
        );
    }

    /// RFC 6887 §15.1, and RFC 7753 for PORT_SET.
    #[test]
    fn a_delete_repeats_what_tells_the_mapping_and_nothing_else() {
        let third = PcpOption::ThirdParty(pcp::mapped([10, 0, 0, 5].into()));
        let set = PcpOption::PortSet(pcp::PortSet { size: 2, first_internal_port: 8080, parity: false });
        let description = PcpOption::Description(b"x".to_vec());
        let options = vec![third.clone(), PcpOption::PreferFailure, description, set.clone()];
        let request = Mapping { options, ..mapping() }.deleted().request(CLIENT);
        assert_eq!((request.lifetime, request.options), (0, vec![third, set]));
        let Body::Map(map) = request.body else { panic!("MAP") };
        assert_eq!((map.external_port, map.external_addr), (0, NO_ADDR_V4));
        assert_eq!(map.nonce, mapping().nonce);
    }

    /// RFC 6887 §11.1: the family of what is not suggested; NAT64 is asked for by 0.0.0.0.
    #[test]
    fn no_preference_in_the_family_of_the_address_inside() {
        let external = |client: &str, suggestion: &str, options: Vec<PcpOption>| {
            let suggestion = crate::pcp_client::parse::suggestion(suggestion).unwrap();
            let request = Mapping { suggestion, options, ..mapping() }.request(client.parse().unwrap());
            let Body::Map(map) = request.body else { panic!("MAP") };
            map.external_addr
        };
        let unspecified = std::net::Ipv6Addr::UNSPECIFIED;
        assert_eq!(external("192.0.2.1", "80", vec![]), NO_ADDR_V4);
        assert_eq!(external("2001:db8::1", "80", vec![]), unspecified);
        assert_eq!(external("2001:db8::1", "0.0.0.0", vec![]), NO_ADDR_V4);
        // DS-Lite in plain IPv6: the host inside is an IPv4 one.
        let third = PcpOption::ThirdParty(pcp::mapped([10, 0, 0, 5].into()));
        assert_eq!(external("2001:db8::1", "80", vec![third]), NO_ADDR_V4);
    }

    /// RFC 6886 §3.3 has none of these.
    #[test]
    fn what_nat_pmp_cannot_say() {
        let plain = Mapping { options: vec![], ..mapping() };
        assert!(plain.nat_pmp().is_ok());
        let optional = vec![PcpOption::Description(b"left out".to_vec())];
        assert!(Mapping { options: optional, ..plain.clone() }.nat_pmp().is_ok());
        for (inexpressible, word) in [
            (mapping(), "PREFER_FAILURE"),
            (Mapping { protocol: Protocol::SCTP, ..plain.clone() }, "SCTP"),
            (Mapping { internal_port: 0, ..plain.clone() }, "all ports"),
            (Mapping { peer: Some((CLIENT, 80)), ..plain.clone() }, "PEER"),
            (
                Mapping { suggestion: Suggestion { addr: Some(CLIENT), port: 1 }, ..plain.clone() },
                "external address",
            ),
        ] {
            let why = inexpressible.nat_pmp().unwrap_err();
            assert!(why.contains(word), "{why}");
        }
        // RFC 6886 §3.4: all mappings of a protocol are deleted so.
        assert!(Mapping { internal_port: 0, lifetime: 0, ..plain }.nat_pmp().is_ok());
    }
}
