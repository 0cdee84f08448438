//! The NAT Port Mapping Protocol (RFC 6886), client and server side: whole messages, octets to values and back.
//!
//! IPv4 over UDP. What is granted, and when to ask again, is not decided here.

use core::fmt;
use core::net::Ipv4Addr;

use crate::codec::{Malformed, Reader, registry};
use crate::pcp;

/// UDP port a gateway listens on; PCP's too.
pub const SERVER_PORT: u16 = 5351;
/// UDP port clients hear multicast announcements on; PCP's too.
pub const CLIENT_PORT: u16 = 5350;
/// Where a gateway multicasts its external address (RFC 6886 §3.2.1).
pub const ANNOUNCE_GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
/// The version this module speaks, octet 0 of every message.
pub const VERSION: u8 = 0;
/// The lifetime a client is advised to ask for, in seconds (RFC 6886 §3.3).
pub const RECOMMENDED_LIFETIME: u32 = 7200;

/// Tells a response from a request: the top bit of the opcode.
const R: u8 = 0x80;
/// Opcode that asks for the external address.
const EXTERNAL_ADDRESS: u8 = 0;

registry! {
    /// The outcome of a request (RFC 6886 §3.5). A client treats an unregistered one as final for that request.
    ResultCode(u16), "result", {
        SUCCESS = 0, "The request was granted.";
        UNSUPPORTED_VERSION = 1, "The gateway does not speak this version.";
        NOT_AUTHORIZED = 2, "Not authorised or refused: mapping is switched off.";
        NETWORK_FAILURE = 3, "The gateway itself has no external address.";
        OUT_OF_RESOURCES = 4, "The gateway cannot make more mappings.";
        UNSUPPORTED_OPCODE = 5, "The gateway does not know the opcode.";
    }
}

/// The transport protocol of a mapping; its number here is an opcode, not an IP protocol.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Transport {
    /// Opcode 1.
    Udp,
    /// Opcode 2.
    Tcp,
}

impl Transport {
    fn from_opcode(opcode: u8) -> Option<Self> {
        match opcode {
            1 => Some(Self::Udp),
            2 => Some(Self::Tcp),
            _ => None,
        }
    }

    fn opcode(self) -> u8 {
        match self {
            Self::Udp => 1,
            Self::Tcp => 2,
        }
    }
}

impl From<Transport> for pcp::Protocol {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Udp => Self::UDP,
            Transport::Tcp => Self::TCP,
        }
    }
}

/// Fails for what NAT-PMP cannot map.
impl TryFrom<pcp::Protocol> for Transport {
    type Error = Malformed;

    fn try_from(protocol: pcp::Protocol) -> Result<Self, Malformed> {
        match protocol {
            pcp::Protocol::UDP => Ok(Self::Udp),
            pcp::Protocol::TCP => Ok(Self::Tcp),
            _ => Err(Malformed),
        }
    }
}

/// `UDP`, `TCP`.
impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        pcp::Protocol::from(*self).fmt(f)
    }
}

/// Why a datagram is not a request a gateway can look at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rejection {
    /// Drop the datagram without a word.
    Silence,
    /// Send [`error_response`] with this result.
    Answer(ResultCode),
}

/// What a client asks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Request {
    /// Which external address the gateway has; 2 octets (RFC 6886 §3.2).
    ExternalAddress,
    /// A mapping for the sender itself; 12 octets (RFC 6886 §3.3, §3.4).
    Map {
        /// UDP or TCP.
        protocol: Transport,
        /// 0 only to delete all mappings of this protocol, with external port and lifetime 0.
        internal_port: u16,
        /// Suggested; 0: any.
        external_port: u16,
        /// Seconds; 0 deletes.
        lifetime: u32,
    },
}

impl Request {
    /// The datagram.
    pub fn to_bytes(&self) -> Vec<u8> {
        match *self {
            Self::ExternalAddress => vec![VERSION, EXTERNAL_ADDRESS],
            Self::Map { protocol, internal_port, external_port, lifetime } => {
                let mut w = vec![VERSION, protocol.opcode(), 0, 0];
                w.extend(internal_port.to_be_bytes());
                w.extend(external_port.to_be_bytes());
                w.extend(lifetime.to_be_bytes());
                w
            }
        }
    }

    /// Reads a datagram as a gateway does (RFC 6886 §3.5).
    ///
    /// A response is met with silence before anything else is looked at, so that no two gateways talk to each other;
    /// then come version and opcode. Too short a request is met with silence, since no result code says so. Octets
    /// after the request are ignored.
    pub fn parse(payload: &[u8]) -> Result<Self, Rejection> {
        let mut r = Reader::new(payload);
        let [version, opcode] = r.array().map_err(|Malformed| Rejection::Silence)?;
        if opcode & R != 0 {
            return Err(Rejection::Silence);
        }
        if version != VERSION {
            return Err(Rejection::Answer(ResultCode::UNSUPPORTED_VERSION));
        }
        if opcode == EXTERNAL_ADDRESS {
            return Ok(Self::ExternalAddress);
        }
        let unsupported = Rejection::Answer(ResultCode::UNSUPPORTED_OPCODE);
        let protocol = Transport::from_opcode(opcode).ok_or(unsupported)?;
        Self::decode_map(protocol, &mut r).map_err(|Malformed| Rejection::Silence)
    }

    fn decode_map(protocol: Transport, r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let _reserved = r.u16()?;
        Ok(Self::Map { protocol, internal_port: r.u16()?, external_port: r.u16()?, lifetime: r.u32()? })
    }

    /// The answer when the request is refused: internal port echoed, external address or port and lifetime 0
    /// (RFC 6886 §3.2, §3.3).
    pub fn refused(&self, result: ResultCode, epoch: u32) -> Response {
        match *self {
            Self::ExternalAddress => Response::ExternalAddress { result, epoch, addr: Ipv4Addr::UNSPECIFIED },
            Self::Map { protocol, internal_port, .. } => {
                Response::Map { result, epoch, protocol, internal_port, external_port: 0, lifetime: 0 }
            }
        }
    }
}

/// `NAT-PMP map request TCP internal 8080, suggested 8080, 7200 s`
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ExternalAddress => f.write_str("NAT-PMP external address request"),
            Self::Map { protocol, internal_port, lifetime: 0, .. } => {
                write!(f, "NAT-PMP map request {protocol} internal {internal_port}, delete")
            }
            Self::Map { protocol, internal_port, external_port, lifetime } => write!(
                f,
                "NAT-PMP map request {protocol} internal {internal_port}, suggested {external_port}, {lifetime} s"
            ),
        }
    }
}

/// What a gateway answers, or announces unasked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Response {
    /// 12 octets; also the announcement after a restart or a change of address (RFC 6886 §3.2, §3.2.1).
    ExternalAddress {
        /// Any but UNSUPPORTED_VERSION and UNSUPPORTED_OPCODE, which have their own layouts.
        result: ResultCode,
        /// Seconds since the gateway's mapping table was initialised.
        epoch: u32,
        /// 0.0.0.0 if there is none.
        addr: Ipv4Addr,
    },
    /// 16 octets (RFC 6886 §3.3).
    Map {
        /// Any but UNSUPPORTED_VERSION and UNSUPPORTED_OPCODE, which have their own layouts.
        result: ResultCode,
        /// Seconds since the gateway's mapping table was initialised.
        epoch: u32,
        /// That of the request.
        protocol: Transport,
        /// That of the request.
        internal_port: u16,
        /// 0 in an error, and after a deletion.
        external_port: u16,
        /// Seconds; 0 in an error, and after a deletion.
        lifetime: u32,
    },
    /// 8 octets, result 1 (RFC 6886 §3.5).
    UnsupportedVersion {
        /// Octet 1 as it stands: 0 in the RFC's figure, 128 plus the request's opcode from deployed gateways.
        opcode: u8,
        /// Seconds since the gateway's mapping table was initialised.
        epoch: u32,
    },
    /// The request returned with result 5, so there is no epoch (RFC 6886 §3.5).
    UnsupportedOpcode {
        /// The request's, below 128.
        opcode: u8,
        /// The request's octets from the fifth on.
        rest: Vec<u8>,
    },
}

impl Response {
    /// The datagram.
    pub fn to_bytes(&self) -> Vec<u8> {
        let header = |opcode: u8, result: ResultCode| {
            let [high, low] = result.0.to_be_bytes();
            vec![VERSION, opcode, high, low]
        };
        match self {
            Self::ExternalAddress { result, epoch, addr } => {
                let mut w = header(EXTERNAL_ADDRESS | R, *result);
                w.extend(epoch.to_be_bytes());
                w.extend(addr.octets());
                w
            }
            Self::Map { result, epoch, protocol, internal_port, external_port, lifetime } => {
                let mut w = header(protocol.opcode() | R, *result);
                w.extend(epoch.to_be_bytes());
                w.extend(internal_port.to_be_bytes());
                w.extend(external_port.to_be_bytes());
                w.extend(lifetime.to_be_bytes());
                w
            }
            Self::UnsupportedVersion { opcode, epoch } => {
                let mut w = header(*opcode, ResultCode::UNSUPPORTED_VERSION);
                w.extend(epoch.to_be_bytes());
                w
            }
            Self::UnsupportedOpcode { opcode, rest } => {
                let mut w = header(opcode | R, ResultCode::UNSUPPORTED_OPCODE);
                w.extend(rest);
                w
            }
        }
    }

    /// Reads a datagram as a client does.
    ///
    /// A version refusal counts with opcode 0, as in the RFC's figure, or with any from 128. The version in octet 0
    /// must be 0: a PCP server's refusal is [`pcp::version_refusal`]'s. Octets after the response are ignored.
    pub fn parse(datagram: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(datagram);
        let [version, opcode] = r.array()?;
        let result = ResultCode(r.u16()?);
        let is_response = opcode & R != 0;
        if version != VERSION {
            return Err(Malformed);
        }
        if result == ResultCode::UNSUPPORTED_VERSION && (is_response || opcode == 0) {
            return Ok(Self::UnsupportedVersion { opcode, epoch: r.u32()? });
        }
        if !is_response {
            return Err(Malformed);
        }
        let opcode = opcode & !R;
        if result == ResultCode::UNSUPPORTED_OPCODE {
            return Ok(Self::UnsupportedOpcode { opcode, rest: r.rest().to_vec() });
        }
        let epoch = r.u32()?;
        if opcode == EXTERNAL_ADDRESS {
            return Ok(Self::ExternalAddress { result, epoch, addr: r.array::<4>()?.into() });
        }
        let protocol = Transport::from_opcode(opcode).ok_or(Malformed)?;
        let (internal_port, external_port, lifetime) = (r.u16()?, r.u16()?, r.u32()?);
        Ok(Self::Map { result, epoch, protocol, internal_port, external_port, lifetime })
    }

    /// SUCCESS, or why not.
    pub fn result(&self) -> ResultCode {
        match self {
            Self::ExternalAddress { result, .. } | Self::Map { result, .. } => *result,
            Self::UnsupportedVersion { .. } => ResultCode::UNSUPPORTED_VERSION,
            Self::UnsupportedOpcode { .. } => ResultCode::UNSUPPORTED_OPCODE,
        }
    }

    /// Seconds since the gateway's mapping table was initialised, where the layout has them.
    pub fn epoch(&self) -> Option<u32> {
        match self {
            Self::ExternalAddress { epoch, .. }
            | Self::Map { epoch, .. }
            | Self::UnsupportedVersion { epoch, .. } => Some(*epoch),
            Self::UnsupportedOpcode { .. } => None,
        }
    }
}

/// `NAT-PMP map SUCCESS TCP 8080 -> 8080, 7200 s, epoch 100`
impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let result = self.result();
        match self {
            Self::ExternalAddress { result: ResultCode::SUCCESS, epoch, addr } => {
                write!(f, "NAT-PMP external address {result} {addr}, epoch {epoch}")
            }
            Self::ExternalAddress { epoch, .. } => {
                write!(f, "NAT-PMP external address {result}, epoch {epoch}")
            }
            Self::Map { epoch, protocol, internal_port, external_port, lifetime, .. } => {
                write!(f, "NAT-PMP map {result} {protocol} {internal_port}")?;
                match (result, lifetime) {
                    (ResultCode::SUCCESS, 0) => f.write_str(" deleted")?,
                    (ResultCode::SUCCESS, _) => write!(f, " -> {external_port}, {lifetime} s")?,
                    _ => {}
                }
                write!(f, ", epoch {epoch}")
            }
            Self::UnsupportedVersion { epoch, .. } => write!(f, "NAT-PMP {result}, epoch {epoch}"),
            Self::UnsupportedOpcode { opcode, .. } => write!(f, "NAT-PMP {result} {opcode}"),
        }
    }
}

/// The answer to a datagram that [`Request::parse`] rejected with a result code.
///
/// UNSUPPORTED_OPCODE returns the request with the top bit of its opcode and the result set, padded with zeros to four
/// octets. Everything else gets the 8 octets of UNSUPPORTED_VERSION's layout, with opcode 128 plus the request's: the
/// RFC's figure has 0 there, which RFC 6887 §8.3 makes a PCP client drop.
pub fn error_response(payload: &[u8], result: ResultCode, epoch: u32) -> Vec<u8> {
    let opcode = payload.get(1).copied().unwrap_or(0);
    if result == ResultCode::UNSUPPORTED_OPCODE {
        let rest = payload.get(4..).unwrap_or_default().to_vec();
        return Response::UnsupportedOpcode { opcode, rest }.to_bytes();
    }
    let [high, low] = result.0.to_be_bytes();
    let mut w = vec![VERSION, opcode | R, high, low];
    w.extend(epoch.to_be_bytes());
    w
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn transport() -> impl Strategy<Value = Transport> {
        prop_oneof![Just(Transport::Udp), Just(Transport::Tcp)]
    }

    fn request() -> impl Strategy<Value = Request> {
        prop_oneof![
            Just(Request::ExternalAddress),
            (transport(), any::<u16>(), any::<u16>(), any::<u32>()).prop_map(
                |(protocol, internal_port, external_port, lifetime)| {
                    Request::Map { protocol, internal_port, external_port, lifetime }
                }
            ),
        ]
    }

    /// A result with the ordinary layout.
    fn ordinary() -> impl Strategy<Value = ResultCode> {
        any::<u16>().prop_filter("has its own layout", |n| !matches!(n, 1 | 5)).prop_map(ResultCode)
    }

    fn response() -> impl Strategy<Value = Response> {
        prop_oneof![
            (ordinary(), any::<u32>(), any::<Ipv4Addr>())
                .prop_map(|(result, epoch, addr)| Response::ExternalAddress { result, epoch, addr }),
            (ordinary(), any::<u32>(), transport(), any::<u16>(), any::<u16>(), any::<u32>()).prop_map(
                |(result, epoch, protocol, internal_port, external_port, lifetime)| {
                    Response::Map { result, epoch, protocol, internal_port, external_port, lifetime }
                }
            ),
            (prop_oneof![Just(0), 128..=255_u8], any::<u32>())
                .prop_map(|(opcode, epoch)| Response::UnsupportedVersion { opcode, epoch }),
            (0..128_u8, any::<Vec<u8>>())
                .prop_map(|(opcode, rest)| Response::UnsupportedOpcode { opcode, rest }),
        ]
    }

    proptest! {
        #[test]
        fn requests_round_trip_and_their_prefixes_are_silence(request in request()) {
            let octets = request.to_bytes();
            prop_assert_eq!(Request::parse(&octets), Ok(request));
            for n in 0..octets.len() {
                prop_assert_eq!(Request::parse(&octets[..n]), Err(Rejection::Silence));
            }
        }

        #[test]
        fn responses_round_trip_and_their_prefixes_are_malformed(response in response()) {
            let octets = response.to_bytes();
            prop_assert_eq!(Response::parse(&octets), Ok(response.clone()));
            let shortest = match &response {
                Response::UnsupportedOpcode { .. } => 4,
                _ => octets.len(),
            };
            for n in 0..shortest {
                prop_assert_eq!(Response::parse(&octets[..n]), Err(Malformed));
            }
        }

        #[test]
        fn no_octets_panic(octets: Vec<u8>, result: u16, epoch: u32) {
            let _ = Request::parse(&octets).map(|request| request.to_string());
            let _ = Response::parse(&octets).map(|response| response.to_string());
            let answer = error_response(&octets, ResultCode(result), epoch);
            prop_assert_eq!(Request::parse(&answer), Err(Rejection::Silence));
        }
    }

    /// RFC 6886 §3.3, with the octets worked out from its figures.
    #[test]
    fn worked_octets() {
        let request = Request::Map {
            protocol: Transport::Tcp,
            internal_port: 8080,
            external_port: 8080,
            lifetime: 7200,
        };
        let octets = [0, 2, 0, 0, 0x1f, 0x90, 0x1f, 0x90, 0, 0, 0x1c, 0x20];
        assert_eq!(request.to_bytes(), octets);
        assert_eq!(Request::parse(&octets), Ok(request));
        assert_eq!(request.to_string(), "NAT-PMP map request TCP internal 8080, suggested 8080, 7200 s");

        let response = Response::Map {
            result: ResultCode::SUCCESS,
            epoch: 100,
            protocol: Transport::Tcp,
            internal_port: 8080,
            external_port: 8080,
            lifetime: 7200,
        };
        let octets = [0, 0x82, 0, 0, 0, 0, 0, 100, 0x1f, 0x90, 0x1f, 0x90, 0, 0, 0x1c, 0x20];
        assert_eq!(response.to_bytes(), octets);
        assert_eq!(Response::parse(&octets), Ok(response.clone()));
        assert_eq!(response.to_string(), "NAT-PMP map SUCCESS TCP 8080 -> 8080, 7200 s, epoch 100");

        assert_eq!(Request::ExternalAddress.to_bytes(), [0, 0]);
        let response = Response::ExternalAddress {
            result: ResultCode::SUCCESS,
            epoch: 100,
            addr: Ipv4Addr::new(198, 51, 100, 7),
        };
        assert_eq!(response.to_bytes(), [0, 128, 0, 0, 0, 0, 0, 100, 198, 51, 100, 7]);
        assert_eq!(response.to_string(), "NAT-PMP external address SUCCESS 198.51.100.7, epoch 100");
    }

    /// RFC 6886 §3.5, in the order of the checks.
    #[test]
    fn rejections_in_order() {
        let rows: &[(&[u8], Rejection)] = &[
            (&[], Rejection::Silence),
            (&[0], Rejection::Silence),
            // A response, of whatever version.
            (&[0, 128], Rejection::Silence),
            (&[2, 0x81, 0, 1], Rejection::Silence),
            (&[1, 0], Rejection::Answer(ResultCode::UNSUPPORTED_VERSION)),
            // The version comes before the opcode.
            (&[3, 99], Rejection::Answer(ResultCode::UNSUPPORTED_VERSION)),
            (&[0, 3], Rejection::Answer(ResultCode::UNSUPPORTED_OPCODE)),
            (&[0, 127, 1, 2, 3], Rejection::Answer(ResultCode::UNSUPPORTED_OPCODE)),
            // Too short for its opcode.
            (&[0, 1, 0, 0, 0, 80, 0, 80, 0, 0, 0], Rejection::Silence),
        ];
        for (octets, rejection) in rows {
            assert_eq!(Request::parse(octets), Err(*rejection), "{octets:?}");
        }
    }

    #[test]
    fn an_unsupported_opcode_returns_the_whole_request() {
        let answer = error_response(&[0, 9, 7, 7, 1, 2, 3], ResultCode::UNSUPPORTED_OPCODE, 100);
        assert_eq!(answer, [0, 137, 0, 5, 1, 2, 3]);
        assert_eq!(error_response(&[0, 9], ResultCode::UNSUPPORTED_OPCODE, 100), [0, 137, 0, 5]);
        // Result 5 has this layout for known opcodes too: a returned map request is 12 octets, not 16.
        let response = Response::parse(&[0, 129, 0, 5, 0, 80, 0, 80, 0, 0, 0, 9]);
        assert_eq!(
            response,
            Ok(Response::UnsupportedOpcode { opcode: 1, rest: vec![0, 80, 0, 80, 0, 0, 0, 9] })
        );
    }

    #[test]
    fn an_unsupported_version_is_heard_with_either_opcode() {
        let answer = error_response(&[1, 0], ResultCode::UNSUPPORTED_VERSION, 100);
        assert_eq!(answer, [0, 128, 0, 1, 0, 0, 0, 100]);
        for opcode in [0, 128, 129, 255] {
            let octets = [0, opcode, 0, 1, 0, 0, 0, 100];
            assert_eq!(Response::parse(&octets), Ok(Response::UnsupportedVersion { opcode, epoch: 100 }));
        }
        // Opcode 1 is a request.
        assert_eq!(Response::parse(&[0, 1, 0, 1, 0, 0, 0, 100]), Err(Malformed));
    }

    /// RFC 6886 §3.3: the internal port is echoed, external port and lifetime are 0.
    #[test]
    fn a_refused_map_echoes_the_internal_port() {
        let request =
            Request::Map { protocol: Transport::Udp, internal_port: 4662, external_port: 4662, lifetime: 60 };
        let answer = request.refused(ResultCode::OUT_OF_RESOURCES, 7);
        assert_eq!(answer.to_bytes(), [0, 129, 0, 4, 0, 0, 0, 7, 0x12, 0x36, 0, 0, 0, 0, 0, 0]);
        assert_eq!(answer.to_string(), "NAT-PMP map OUT_OF_RESOURCES UDP 4662, epoch 7");
        let answer = Request::ExternalAddress.refused(ResultCode::NETWORK_FAILURE, 7);
        assert_eq!(answer.to_bytes(), [0, 128, 0, 3, 0, 0, 0, 7, 0, 0, 0, 0]);
    }

    #[test]
    fn result_codes_print_by_name() {
        assert_eq!(ResultCode::UNSUPPORTED_OPCODE.to_string(), "UNSUPPORTED_OPCODE");
        assert_eq!(ResultCode(6).to_string(), "result 6");
        assert!(ResultCode::KNOWN.iter().map(|code| code.0).eq(0..=5));
    }
}
