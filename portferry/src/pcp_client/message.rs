//! A question to a server, and whether a datagram is its answer (RFC 6887 §8.3, RFC 6886 §3.1).

use std::fmt;
use std::net::SocketAddr;

use wire::pcp::{Body, OptionCode, PcpOption, Request, Response, ResultCode, VersionRefusal};
use wire::{natpmp, pcp};

/// What is asked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Question {
    Pcp(Request),
    NatPmp(natpmp::Request),
}

impl Question {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Question::Pcp(request) => request.to_bytes(),
            Question::NatPmp(request) => request.to_bytes(),
        }
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Question::Pcp(request) => request.fmt(f),
            Question::NatPmp(request) => request.fmt(f),
        }
    }
}

/// What the server says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    Pcp(Response),
    /// It does not speak the version it was asked in.
    Version(VersionRefusal),
    NatPmp(natpmp::Response),
}

impl Answer {
    /// The server's epoch, where the answer has one.
    pub(super) fn epoch(&self) -> Option<u32> {
        match self {
            Answer::Pcp(response) => Some(response.epoch),
            Answer::Version(refusal) => refusal.epoch,
            Answer::NatPmp(response) => response.epoch(),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Pcp(response) => response.fmt(f),
            Answer::NatPmp(response) => response.fmt(f),
            Answer::Version(refusal) => {
                write!(f, "UNSUPP_VERSION, the server speaks version {}", refusal.version)?;
                match refusal.version {
                    0 => f.write_str(" (NAT-PMP)"),
                    2 => f.write_str(" (PCP)"),
                    _ => Ok(()),
                }
            }
        }
    }
}

/// Why a datagram is not believed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ignored {
    /// It does not come from the server that was asked.
    OtherSource(SocketAddr),
    /// Its octets are no answer of the protocol.
    Malformed,
    /// It is about another opcode.
    OtherOpcode,
    /// It repeats another nonce than ours.
    OtherNonce,
    /// It is about another protocol or internal port.
    OtherMapping,
    /// It is about another remote peer.
    OtherPeer,
    /// It is about another third party.
    OtherThirdParty,
    /// It repeats other filters of GET, or lists what was listed before.
    OtherPage,
    /// Nothing was asked.
    Unasked,
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ignored::OtherSource(from) => return write!(f, "it comes from {from}, which was not asked"),
            Ignored::Malformed => "it is no well-formed answer",
            Ignored::OtherOpcode => "it is about another opcode",
            Ignored::OtherNonce => "its nonce is not ours",
            Ignored::OtherMapping => "it is about another protocol or internal port",
            Ignored::OtherPeer => "it is about another remote peer",
            Ignored::OtherThirdParty => "it is about another third party",
            Ignored::OtherPage => "it answers an earlier question",
            Ignored::Unasked => "nothing was asked",
        })
    }
}

/// Reads what came from the server as the answer to `question`.
pub(super) fn read(question: &Question, datagram: &[u8]) -> Result<Answer, Ignored> {
    match question {
        Question::Pcp(request) => {
            if let Some(refusal) = pcp::version_refusal(datagram) {
                return Ok(Answer::Version(refusal));
            }
            let response = Response::parse(datagram).map_err(|_| Ignored::Malformed)?;
            match_pcp(request, &response)?;
            Ok(Answer::Pcp(response))
        }
        // A server that speaks PCP only says so in its own words.
        Question::NatPmp(_) if datagram.first() != Some(&natpmp::VERSION) => {
            pcp::version_refusal(datagram).map(Answer::Version).ok_or(Ignored::Malformed)
        }
        Question::NatPmp(request) => {
            let response = natpmp::Response::parse(datagram).map_err(|_| Ignored::Malformed)?;
            match_nat_pmp(request, &response)?;
            Ok(Answer::NatPmp(response))
        }
    }
}

/// RFC 6887 §8.3, §11.4, §12.4: server (the caller's), opcode, nonce, protocol, internal port, remote peer, third party.
fn match_pcp(request: &Request, response: &Response) -> Result<(), Ignored> {
    if request.body.opcode() != response.body.opcode() {
        return Err(Ignored::OtherOpcode);
    }
    match (&request.body, &response.body) {
        (Body::Map(asked), Body::Map(told)) => {
            same(asked.nonce == told.nonce, Ignored::OtherNonce)?;
            let mapping = (asked.protocol, asked.internal_port) == (told.protocol, told.internal_port);
            same(mapping, Ignored::OtherMapping)?;
        }
        (Body::Peer(asked), Body::Peer(told)) => {
            same(asked.nonce == told.nonce, Ignored::OtherNonce)?;
            let mapping = (asked.protocol, asked.internal_port) == (told.protocol, told.internal_port);
            same(mapping, Ignored::OtherMapping)?;
            let peer = (asked.remote_addr, asked.remote_port) == (told.remote_addr, told.remote_port);
            same(peer, Ignored::OtherPeer)?;
        }
        (Body::Get(asked), Body::Get(told)) => same(asked == told, Ignored::OtherPage)?,
        _ => {}
    }
    // An answer without the option is from a server that did not process it, or whose error lost it: that is told apart
    // later. One with another address is about somebody else.
    match (request.option(OptionCode::THIRD_PARTY), response.option(OptionCode::THIRD_PARTY)) {
        (asked, Some(PcpOption::ThirdParty(told))) => {
            let asked = asked == Some(&PcpOption::ThirdParty(*told));
            same(asked || response.result != ResultCode::SUCCESS, Ignored::OtherThirdParty)
        }
        _ => Ok(()),
    }
}

fn match_nat_pmp(request: &natpmp::Request, response: &natpmp::Response) -> Result<(), Ignored> {
    use natpmp::{Request as Q, Response as A};
    match (request, response) {
        (_, A::UnsupportedVersion { .. }) => Ok(()),
        (_, A::UnsupportedOpcode { opcode, .. }) => {
            same(request.to_bytes().get(1) == Some(opcode), Ignored::OtherOpcode)
        }
        (Q::ExternalAddress, A::ExternalAddress { .. }) => Ok(()),
        (Q::Map { protocol, internal_port, .. }, A::Map { protocol: told, internal_port: port, .. }) => {
            same((protocol, internal_port) == (told, port), Ignored::OtherMapping)
        }
        _ => Err(Ignored::OtherOpcode),
    }
}

fn same(same: bool, why: Ignored) -> Result<(), Ignored> {
    if same { Ok(()) } else { Err(why) }
}

#[cfg(test)]
mod tests {
    use wire::pcp::{MapData, Nonce, PeerData, Protocol};

    use super::*;

    fn map() -> MapData {
        MapData {
            nonce: Nonce([7; 12]),
            protocol: Protocol::TCP,
            internal_port: 8080,
            external_port: 8080,
            external_addr: pcp::mapped([198, 51, 100, 7].into()),
        }
    }

    fn peer() -> PeerData {
        let MapData { nonce, protocol, internal_port, external_port, external_addr } = map();
        let (remote_port, remote_addr) = (443, pcp::mapped([203, 0, 113, 9].into()));
        PeerData { nonce, protocol, internal_port, external_port, external_addr, remote_port, remote_addr }
    }

    fn question(body: Body, options: Vec<PcpOption>) -> Question {
        let client_addr = pcp::mapped([192, 0, 2, 10].into());
        Question::Pcp(Request { lifetime: 3600, client_addr, body, options })
    }

    fn answer(result: ResultCode, body: Body, options: Vec<PcpOption>) -> Vec<u8> {
        Response { result, lifetime: 3600, epoch: 100, body, options }.to_bytes()
    }

    fn ok(body: Body) -> Vec<u8> {
        answer(ResultCode::SUCCESS, body, vec![])
    }

    /// RFC 6887 §8.3 and §11.4: what an answer must repeat, and what it need not.
    #[test]
    fn a_map_answer_repeats_nonce_protocol_and_internal_port() {
        let asked = question(Body::Map(map()), vec![]);
        let believed = |body: MapData| read(&asked, &ok(Body::Map(body))).map(|_| ());
        assert_eq!(believed(map()), Ok(()));
        assert_eq!(believed(MapData { external_port: 9, external_addr: pcp::NO_ADDR_V4, ..map() }), Ok(()));
        assert_eq!(believed(MapData { nonce: Nonce([8; 12]), ..map() }), Err(Ignored::OtherNonce));
        assert_eq!(believed(MapData { protocol: Protocol::UDP, ..map() }), Err(Ignored::OtherMapping));
        assert_eq!(believed(MapData { internal_port: 8081, ..map() }), Err(Ignored::OtherMapping));
        assert_eq!(read(&asked, &ok(Body::Announce)), Err(Ignored::OtherOpcode));
        assert_eq!(read(&asked, &asked.to_bytes()), Err(Ignored::Malformed), "a request");
        assert_eq!(read(&asked, &[2, 0x81, 0]), Err(Ignored::Malformed));
    }

    /// RFC 6887 §12.4.
    #[test]
    fn a_peer_answer_repeats_the_remote_peer_too() {
        let asked = question(Body::Peer(peer()), vec![]);
        assert!(read(&asked, &ok(Body::Peer(peer()))).is_ok());
        for other in [
            PeerData { remote_port: 444, ..peer() },
            PeerData { remote_addr: pcp::mapped([203, 0, 113, 8].into()), ..peer() },
        ] {
            assert_eq!(read(&asked, &ok(Body::Peer(other))), Err(Ignored::OtherPeer));
        }
    }

    #[test]
    fn somebody_elses_mapping_is_not_ours() {
        let third = |last| PcpOption::ThirdParty(pcp::mapped([10, 0, 0, last].into()));
        let told = |options| answer(ResultCode::SUCCESS, Body::Map(map()), options);
        let asked = question(Body::Map(map()), vec![third(5)]);
        assert!(read(&asked, &told(vec![third(5)])).is_ok());
        assert!(read(&asked, &told(vec![])).is_ok(), "not processed");
        assert_eq!(read(&asked, &told(vec![third(6)])), Err(Ignored::OtherThirdParty));
        let plain = question(Body::Map(map()), vec![]);
        assert_eq!(read(&plain, &told(vec![third(5)])), Err(Ignored::OtherThirdParty));
    }

    /// RFC 6887 §9, RFC 6886 §3.5: in whoever's words.
    #[test]
    fn a_version_that_is_not_spoken() {
        let pcp = question(Body::Announce, vec![]);
        for refusal in [&[0, 128, 0, 1, 0, 0, 0, 9][..], &[0, 0, 0, 1, 0, 0, 0, 9]] {
            let expected = VersionRefusal { version: 0, lifetime: 0, epoch: Some(9) };
            assert_eq!(read(&pcp, refusal), Ok(Answer::Version(expected)));
        }
        let nat_pmp = Question::NatPmp(natpmp::Request::ExternalAddress);
        let of_pcp = pcp::error_response(&nat_pmp.to_bytes(), ResultCode::UNSUPP_VERSION, 1800, 9);
        let expected = VersionRefusal { version: 2, lifetime: 1800, epoch: Some(9) };
        assert_eq!(read(&nat_pmp, &of_pcp), Ok(Answer::Version(expected)));
    }

    #[test]
    fn nat_pmp_answers_repeat_opcode_and_internal_port() {
        use natpmp::{ResultCode, Transport};
        let protocol = Transport::Tcp;
        let asked = Question::NatPmp(natpmp::Request::Map {
            protocol,
            internal_port: 80,
            external_port: 80,
            lifetime: 60,
        });
        let told = |protocol, internal_port| {
            natpmp::Response::Map {
                result: ResultCode::SUCCESS,
                epoch: 1,
                protocol,
                internal_port,
                external_port: 81,
                lifetime: 60,
            }
            .to_bytes()
        };
        assert!(read(&asked, &told(protocol, 80)).is_ok());
        assert_eq!(read(&asked, &told(protocol, 81)), Err(Ignored::OtherMapping));
        assert_eq!(read(&asked, &told(Transport::Udp, 80)), Err(Ignored::OtherMapping));
        assert_eq!(read(&asked, &[0, 128, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4]), Err(Ignored::OtherOpcode));
        let unknown = natpmp::error_response(&asked.to_bytes(), ResultCode::UNSUPPORTED_OPCODE, 1);
        assert!(read(&asked, &unknown).is_ok());
    }
}
