use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter_map(|c| c.to_digit(16)).map(|d| u8::try_from(d).unwrap()).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

// Generators

fn nonce() -> impl Strategy<Value = Nonce> {
    any::<[u8; 12]>().prop_map(Nonce)
}

fn addr() -> impl Strategy<Value = Ipv6Addr> {
    prop_oneof![any::<Ipv6Addr>(), any::<Ipv4Addr>().prop_map(mapped)]
}

fn map_data() -> impl Strategy<Value = MapData> {
    (nonce(), any::<u8>(), any::<u16>(), any::<u16>(), addr()).prop_map(
        |(nonce, protocol, internal_port, external_port, external_addr)| MapData {
            nonce,
            protocol: Protocol(protocol),
            internal_port,
            external_port,
            external_addr,
        },
    )
}

fn peer_data() -> impl Strategy<Value = PeerData> {
    (map_data(), any::<u16>(), addr()).prop_map(|(map, remote_port, remote_addr)| {
        let MapData { nonce, protocol, internal_port, external_port, external_addr } = map;
        PeerData { nonce, protocol, internal_port, external_port, external_addr, remote_port, remote_addr }
    })
}

fn get_data() -> impl Strategy<Value = GetData> {
    (any::<u8>(), addr(), addr(), any::<u16>(), any::<u16>()).prop_map(
        |(protocol, internal_addr, external_addr, internal_port, external_port)| GetData {
            protocol: Protocol(protocol),
            internal_addr,
            external_addr,
            internal_port,
            external_port,
        },
    )
}

fn next_mapping() -> impl Strategy<Value = NextMapping> {
    (nonce(), get_data(), any::<bool>(), any::<u32>(), vec(plain_option(), 0..4)).prop_map(
        |(nonce, endpoints, more, lifetime, options)| {
            let GetData { protocol, internal_addr, external_addr, internal_port, external_port } = endpoints;
            NextMapping {
                nonce,
                protocol,
                more,
                internal_addr,
                external_addr,
                lifetime,
                internal_port,
                external_port,
                options,
            }
        },
    )
}

fn prefix64() -> impl Strategy<Value = Prefix64> {
    let list = vec((0..=32_u16, any::<Ipv4Addr>()), 0..4);
    (any::<[u8; 12]>(), prop_oneof![4..=8_usize, Just(12)], list).prop_map(|(octets, len, ipv4_prefixes)| {
        let (prefix, suffix) = octets.split_at(len);
        Prefix64 { prefix: prefix.to_vec(), suffix: suffix.to_vec(), ipv4_prefixes }
    })
}

fn unknown_option() -> impl Strategy<Value = PcpOption> {
    let code = any::<u8>().prop_map(OptionCode).prop_filter("known", |code| code.name().is_none());
    (code, vec(any::<u8>(), 0..40)).prop_map(|(code, data)| PcpOption::Unknown { code, data })
}

/// Any option a request may carry, lists and what only looks like one among them.
fn option() -> impl Strategy<Value = PcpOption> {
    let foreign_next =
        vec(any::<u8>(), 0..56).prop_map(|data| PcpOption::Unknown { code: OptionCode::NEXT, data });
    prop_oneof![
        15 => plain_option(),
        2 => next_mapping().prop_map(PcpOption::Next),
        1 => foreign_next,
    ]
}

/// Any option that may stand in a NEXT, too. Boxed, since what is made of it takes much stack otherwise.
fn plain_option() -> BoxedStrategy<PcpOption> {
    let octets = |least| vec(any::<u8>(), least..40);
    let filter = (addr(), any::<u16>()).prop_flat_map(|(remote_addr, remote_port)| {
        let least = if remote_addr.to_ipv4_mapped().is_some() { 96 } else { 0 };
        prop_oneof![Just(0), least..=128_u8].prop_map(move |prefix_len| Filter {
            prefix_len,
            remote_port,
            remote_addr,
        })
    });
    let port_set = (1..=u16::MAX, any::<u16>(), any::<bool>())
        .prop_map(|(size, first_internal_port, parity)| PortSet { size, first_internal_port, parity });
    prop_oneof![
        addr().prop_map(PcpOption::ThirdParty),
        Just(PcpOption::PreferFailure),
        filter.prop_map(PcpOption::Filter),
        any::<u32>().prop_map(PcpOption::Nonce),
        octets(12).prop_map(PcpOption::AuthenticationTag),
        octets(4).prop_map(PcpOption::PaAuthenticationTag),
        octets(0).prop_map(PcpOption::EapPayload),
        any::<u32>().prop_map(PcpOption::Prf),
        any::<u32>().prop_map(PcpOption::MacAlgorithm),
        prop_oneof![
            any::<u32>().prop_map(PcpOption::SessionLifetime),
            any::<u32>().prop_map(PcpOption::ReceivedPak),
            octets(0).prop_map(PcpOption::IdIndicator),
        ],
        octets(0).prop_map(PcpOption::ThirdPartyId),
        octets(0).prop_map(PcpOption::Description),
        prefix64().prop_map(PcpOption::Prefix64),
        port_set.prop_map(PcpOption::PortSet),
        unknown_option(),
    ]
    .boxed()
}

/// A list of options as a request may carry it: those allowed once are there once.
fn options() -> impl Strategy<Value = Vec<PcpOption>> {
    vec(option(), 0..8).prop_map(|mut all| {
        let mut seen = Vec::new();
        all.retain(|option| {
            let again = seen.contains(&option.code());
            seen.push(option.code());
            !(again && option.code().is_once_only())
        });
        all
    })
}

fn body(code: ResultCode) -> impl Strategy<Value = Body> {
    prop_oneof![
        Just(Body::Announce),
        map_data().prop_map(Body::Map),
        peer_data().prop_map(Body::Peer),
        get_data().prop_map(Body::Get),
        any::<(u32, u32)>().prop_map(move |(session, sequence)| Body::Authentication(AuthData {
            code,
            session,
            sequence
        })),
    ]
}

fn other() -> impl Strategy<Value = Body> {
    (4..128_u8, vec(any::<[u8; 4]>(), 0..20))
        .prop_map(|(opcode, octets)| Body::Other(Opcode(opcode), octets.concat()))
        .prop_filter("a GET", |body| !matches!(body, Body::Other(Opcode::GET, octets) if octets.len() >= 40))
}

/// Boxed, since it takes much stack otherwise.
fn with_options(code: ResultCode) -> BoxedStrategy<(Body, Vec<PcpOption>)> {
    let with_options = (body(code), options()).prop_map(|(body, mut options)| {
        options.retain(|option| !(body.is_get() && option.is_foreign_next()));
        (body, options)
    });
    prop_oneof![9 => with_options, 1 => (other(), Just(Vec::new()))].boxed()
}

/// An opcode that options may follow.
fn with_data(body: Body) -> Body {
    match body {
        Body::Other(..) => Body::Announce,
        body => body,
    }
}

fn request() -> impl Strategy<Value = Request> {
    (any::<u32>(), addr(), any::<u8>().prop_map(ResultCode).prop_flat_map(with_options))
        .prop_map(|(lifetime, client_addr, (body, options))| Request { lifetime, client_addr, body, options })
}

fn response() -> impl Strategy<Value = Response> {
    let result = prop_oneof![Just(0), any::<u8>()].prop_map(ResultCode);
    (result, any::<u32>(), any::<u32>())
        .prop_flat_map(|(result, lifetime, epoch)| (Just((result, lifetime, epoch)), with_options(result)))
        .prop_map(|((result, lifetime, epoch), (body, options))| Response {
            result,
            lifetime,
            epoch,
            body,
            options,
        })
}

// Laws

fn obeys_the_laws<T: Wire + PartialEq + core::fmt::Debug>(value: &T, len: Option<usize>) {
    let mut octets = Vec::new();
    value.encode(&mut octets);
    if let Some(len) = len {
        assert_eq!(octets.len(), len);
    }
    for n in 0..octets.len() {
        assert_eq!(T::decode(&mut Reader::new(&octets[..n])), Err(Malformed), "prefix of {n} octets");
    }
    octets.extend([1, 2, 3]);
    let mut r = Reader::new(&octets);
    assert_eq!(T::decode(&mut r).as_ref(), Ok(value));
    assert_eq!(r.rest(), [1, 2, 3]);
}

proptest! {
    #[test]
    fn opcode_data_obeys_the_laws(map in map_data(), peer in peer_data(), get in get_data()) {
        obeys_the_laws(&map, Some(36));
        obeys_the_laws(&peer, Some(56));
        obeys_the_laws(&get, Some(40));
    }

    /// The options of a mapping end with the NEXT, so it is its frame that tells where; a cut between two of them leaves
    /// the earlier ones, as in a message.
    #[test]
    fn next_obeys_the_laws(next in next_mapping()) {
        let mut octets = Vec::new();
        next.encode(&mut octets);
        let whole = NextMapping::decode(&mut Reader::new(&octets));
        prop_assert_eq!(whole.as_ref(), Ok(&next));
        for n in 0..octets.len() {
            if let Ok(shorter) = NextMapping::decode(&mut Reader::new(&octets[..n])) {
                prop_assert!(n >= 56 && next.options.starts_with(&shorter.options));
                let mut again = Vec::new();
                shorter.encode(&mut again);
                prop_assert_eq!(&again, &octets[..n]);
            }
        }
    }

    #[test]
    fn unknown_options_survive_in_a_next(next in next_mapping(), unknown in vec(unknown_option(), 1..5)) {
        let option = PcpOption::Next(NextMapping { options: unknown, ..next });
        obeys_the_laws(&option, None);
    }

    #[test]
    fn options_obey_the_laws(option in option()) {
        obeys_the_laws(&option, None);
        let mut octets = Vec::new();
        option.encode(&mut octets);
        prop_assert!(octets.len().is_multiple_of(4));
        prop_assert_eq!(octets[0], option.code().0);
    }

    #[test]
    fn unknown_options_survive_octet_for_octet(request in request(), unknown in vec(unknown_option(), 1..5)) {
        let body = with_data(request.body);
        let request = Request { body, options: unknown, ..request };
        let octets = request.to_bytes();
        prop_assert_eq!(Request::parse(&octets).map(|request| request.to_bytes()), Ok(octets));
    }

    #[test]
    fn requests_round_trip(request in request()) {
        let octets = request.to_bytes();
        prop_assert_eq!(RequestHeader::parse(&octets), Ok(RequestHeader {
            opcode: request.body.opcode(),
            lifetime: request.lifetime,
            client_addr: request.client_addr,
        }));
        prop_assert_eq!(Request::parse(&octets), Ok(request));
    }

    #[test]
    fn responses_round_trip(response in response()) {
        prop_assert_eq!(Response::parse(&response.to_bytes()), Ok(response));
    }

    /// A cut message is refused, unless the cut falls between two options: then the earlier ones are left.
    #[test]
    fn prefixes_lose_whole_options_or_are_refused(request in request(), response in response()) {
        let request = Request { body: with_data(request.body), ..request };
        let octets = request.to_bytes();
        for n in 0..octets.len() {
            if let Ok(shorter) = Request::parse(&octets[..n]) {
                prop_assert!(request.options.starts_with(&shorter.options));
                prop_assert_eq!(&shorter.to_bytes(), &octets[..n]);
            }
        }
        let response =
            Response { result: ResultCode::SUCCESS, body: with_data(response.body), ..response };
        let octets = response.to_bytes();
        for n in 0..octets.len() {
            if let Ok(shorter) = Response::parse(&octets[..n]) {
                prop_assert!(response.options.starts_with(&shorter.options));
                prop_assert_eq!(&shorter.to_bytes(), &octets[..n]);
            }
        }
    }

    #[test]
    fn no_octets_panic(octets in vec(any::<u8>(), 0..1300), result: u8) {
        let _ = Request::parse(&octets).map(|request| request.to_string());
        let _ = Response::parse(&octets).map(|response| response.to_string());
        let _ = version_refusal(&octets);
        check_error_response(&octets, ResultCode(result));
    }

    /// Random octets rarely get past the header, so give them one.
    #[test]
    fn no_octets_after_a_header_panic(octets in vec(any::<[u8; 4]>(), 5..80), opcode in 0..6_u8, result: u8) {
        let opcode = if opcode == 5 { Opcode::GET.0 } else { opcode };
        let octets = octets.concat();
        let request = [&[VERSION, opcode, 0, 0], &octets[..]].concat();
        let _ = Request::parse(&request).map(|request| request.to_string());
        check_error_response(&request, ResultCode(result));
        for result in [0, result] {
            let response = [&[VERSION, opcode | R, 0, result], &octets[..]].concat();
            let _ = Response::parse(&response).map(|response| response.to_string());
        }
    }

    /// Few codes and short lengths make many well-formed option areas.
    #[test]
    fn no_option_area_panics(area in vec((0..15_u8, 0..24_u8, any::<[u8; 24]>()), 0..12), result: u8) {
        let mut octets = hex("0201000000000e1000000000000000000000ffffc000020a");
        octets.resize(60, 7);
        for (code, len, data) in area {
            let padded = usize::from(len).next_multiple_of(4);
            match code {
                // A NEXT with one option inside.
                14 => {
                    let inside = 60 + u8::try_from(padded).expect("at most 24");
                    octets.extend([224, 0, 0, inside]);
                    octets.extend([5; 56]);
                    octets.extend([data[0] % 14, 0, 0, len]);
                }
                _ => octets.extend([if code == 0 { 129 } else { code }, 0, 0, len]),
            }
            octets.extend(&data[..padded]);
        }
        let _ = Request::parse(&octets).map(|request| request.to_string());
        octets.truncate(MAX_LEN);
        let answer = check_error_response(&octets, ResultCode(result.max(2)));
        let answer = Response::parse(&answer).expect("an error response is a response");
        prop_assert!(matches!(answer.body, Body::Map(_)));
    }
}

fn check_error_response(payload: &[u8], result: ResultCode) -> Vec<u8> {
    let answer = error_response(payload, result, 30, 100);
    assert!(answer.len().is_multiple_of(4) && (HEADER_LEN..=MAX_LEN).contains(&answer.len()));
    if result != ResultCode::SUCCESS {
        let response = Response::parse(&answer).expect("an error response is a response");
        assert_eq!((response.result, response.lifetime, response.epoch), (result, 30, 100));
    }
    assert_eq!(Request::parse(&answer), Err(Rejection::Silence));
    answer
}

// Worked octets

const NONCE: Nonce = Nonce([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
const MAP_REQUEST: &str = "
    02010000 00000e10 00000000 00000000 0000ffff c000020a 00010203 04050607 08090a0b
    06000000 1f901f90 00000000 00000000 0000ffff 00000000 02000000";

fn map_request() -> Request {
    Request {
        lifetime: 3600,
        client_addr: mapped(Ipv4Addr::new(192, 0, 2, 10)),
        body: Body::Map(MapData {
            nonce: NONCE,
            protocol: Protocol::TCP,
            internal_port: 8080,
            external_port: 8080,
            external_addr: NO_ADDR_V4,
        }),
        options: vec![PcpOption::PreferFailure],
    }
}

fn map_response(result: ResultCode, lifetime: u32, external_addr: Ipv6Addr) -> Response {
    let Body::Map(map) = map_request().body else { unreachable!("a MAP request") };
    Response {
        result,
        lifetime,
        epoch: 100,
        body: Body::Map(MapData { external_addr, ..map }),
        options: vec![PcpOption::PreferFailure],
    }
}

#[test]
fn worked_map_request() {
    assert_eq!(map_request().to_bytes(), hex(MAP_REQUEST));
    assert_eq!(Request::parse(&hex(MAP_REQUEST)), Ok(map_request()));
}

#[test]
fn worked_map_success() {
    let octets = hex("
        02810000 00000e10 00000064 00000000 00000000 00000000 00010203 04050607 08090a0b
        06000000 1f901f90 00000000 00000000 0000ffff c6336407 02000000");
    let response = map_response(ResultCode::SUCCESS, 3600, mapped(Ipv4Addr::new(198, 51, 100, 7)));
    assert_eq!(response.to_bytes(), octets);
    assert_eq!(response.option(OptionCode::PREFER_FAILURE), Some(&PcpOption::PreferFailure));
    assert_eq!(response.option(OptionCode::FILTER), None);
    assert_eq!(Response::parse(&octets), Ok(response));
}

#[test]
fn worked_map_refusal() {
    let octets = hex("
        0281000b 0000001e 00000064 00000000 00000000 00000000 00010203 04050607 08090a0b
        06000000 1f901f90 00000000 00000000 0000ffff 00000000 02000000");
    let response = map_response(ResultCode::CANNOT_PROVIDE_EXTERNAL, 30, NO_ADDR_V4);
    assert_eq!(response.to_bytes(), octets);
    assert_eq!(Response::parse(&octets), Ok(response));
    assert_eq!(error_response(&hex(MAP_REQUEST), ResultCode::CANNOT_PROVIDE_EXTERNAL, 30, 100), octets);
}

#[test]
fn worked_announce_request() {
    let octets = hex("02000000 00000000 00000000 00000000 0000ffff c000020a");
    let request = Request { lifetime: 0, body: Body::Announce, options: vec![], ..map_request() };
    assert_eq!(request.to_bytes(), octets);
    assert_eq!(Request::parse(&octets), Ok(request));
}

#[test]
fn worked_options() {
    let rows = [
        (
            "01000010 00000000 00000000 0000ffff 0a000005",
            PcpOption::ThirdParty(mapped(Ipv4Addr::new(10, 0, 0, 5))),
            "THIRD_PARTY 10.0.0.5",
        ),
        ("02000000", PcpOption::PreferFailure, "PREFER_FAILURE"),
        (
            "03000014 00800000 00000000 00000000 0000ffff cb007109",
            PcpOption::Filter(Filter {
                prefix_len: 128,
                remote_port: 0,
                remote_addr: mapped(Ipv4Addr::new(203, 0, 113, 9)),
            }),
            "FILTER 203.0.113.9/32",
        ),
        (
            "03000014 00300050 20010db8 00000000 00000000 00000000",
            PcpOption::Filter(Filter {
                prefix_len: 48,
                remote_port: 80,
                remote_addr: "2001:db8::".parse().unwrap(),
            }),
            "FILTER 2001:db8::/48 port 80",
        ),
        ("80000005 73656564 58000000", PcpOption::Description(b"seedX".to_vec()), "DESCRIPTION \"seedX\""),
        // RFC 7225: 64:ff9b::/96 for all of IPv4, and 2001:db8:122:344::/64 for 192.0.2.0/24.
        (
            "81000010 000c0064 ff9b0000 00000000 00000000",
            PcpOption::Prefix64(Prefix64 {
                prefix: hex("0064ff9b 00000000 00000000"),
                suffix: vec![],
                ipv4_prefixes: vec![],
            }),
            "PREFIX64 64:ff9b::/96",
        ),
        (
            "81000016 00082001 0db80122 03440000 00000001 0018c000 02000000",
            PcpOption::Prefix64(Prefix64 {
                prefix: hex("20010db8 01220344"),
                suffix: vec![0; 4],
                ipv4_prefixes: vec![(24, Ipv4Addr::new(192, 0, 2, 0))],
            }),
            "PREFIX64 2001:db8:122:344::/64",
        ),
        // RFC 7753.
        (
            "82000005 00041f90 01000000",
            PcpOption::PortSet(PortSet { size: 4, first_internal_port: 8080, parity: true }),
            "PORT_SET 4 from 8080 with parity",
        ),
        (
            "40000003 61626300",
            PcpOption::Unknown { code: OptionCode(64), data: b"abc".to_vec() },
            "option 64 (3 octets)",
        ),
    ];
    for (octets, option, text) in rows {
        let mut encoded = Vec::new();
        option.encode(&mut encoded);
        assert_eq!(encoded, hex(octets), "{text}");
        assert_eq!(PcpOption::decode(&mut Reader::new(&encoded)).as_ref(), Ok(&option));
        assert_eq!(option.to_string(), text);
    }
}

#[test]
fn a_prefix64_without_its_list_serves_all_of_ipv4() {
    let octets = hex("8100000e 000c0064 ff9b0000 00000000 00000000");
    let option = PcpOption::decode(&mut Reader::new(&octets));
    assert!(matches!(option, Ok(PcpOption::Prefix64(prefix)) if prefix.ipv4_prefixes.is_empty()));
}

#[test]
fn padding_may_hold_anything_but_must_be_there() {
    let text = Ok(PcpOption::Description(b"seedX".to_vec()));
    assert_eq!(PcpOption::decode(&mut Reader::new(&hex("80000005 73656564 58abcdef"))), text);
    assert_eq!(PcpOption::decode(&mut Reader::new(&hex("80000005 73656564 58abcd"))), Err(Malformed));
    // The reserved octet is ignored.
    assert_eq!(PcpOption::decode(&mut Reader::new(&hex("80ff0005 73656564 58000000"))), text);
}

// Server: validation order

const fn answer(result: ResultCode) -> Rejection {
    Rejection::Answer(result)
}

/// RFC 6887 §8.2, one row a check, and rows where two checks fail and the earlier one must win.
#[test]
fn requests_are_checked_in_the_rfcs_order() {
    let map = hex(MAP_REQUEST);
    let with = |at: usize, octets: &[u8]| {
        let mut changed = map.clone();
        changed[at..at + octets.len()].copy_from_slice(octets);
        changed
    };
    let longer = |len: usize| {
        let mut changed = map.clone();
        changed.resize(len, 0);
        changed
    };
    let rows: Vec<(&str, Vec<u8>, Rejection)> = vec![
        ("2: shorter than 2 octets", vec![], Rejection::Silence),
        ("2: shorter than 2 octets", vec![2], Rejection::Silence),
        ("3: R set", with(1, &[0x81]), Rejection::Silence),
        ("3 before 4", with(0, &[3, 0x81]), Rejection::Silence),
        ("4: version", with(0, &[1]), answer(ResultCode::UNSUPP_VERSION)),
        ("4: version", with(0, &[3]), answer(ResultCode::UNSUPP_VERSION)),
        ("4 before 5: a NAT-PMP request", vec![0, 0], answer(ResultCode::UNSUPP_VERSION)),
        ("5: shorter than 24", map[..2].to_vec(), Rejection::Silence),
        ("5: shorter than 24", map[..23].to_vec(), Rejection::Silence),
        ("7: longer than 1100", longer(1104), answer(ResultCode::MALFORMED_REQUEST)),
        ("7: not a multiple of 4", map[..63].to_vec(), answer(ResultCode::MALFORMED_REQUEST)),
        ("7: MAP without all its data", map[..56].to_vec(), answer(ResultCode::MALFORMED_REQUEST)),
        ("7: MAP without data", map[..24].to_vec(), answer(ResultCode::MALFORMED_REQUEST)),
        ("7: PEER needs 80", with(1, &[2])[..60].to_vec(), answer(ResultCode::MALFORMED_REQUEST)),
        ("7: AUTHENTICATION needs 32", with(1, &[3])[..28].to_vec(), answer(ResultCode::MALFORMED_REQUEST)),
        ("7 before 9", [with(60, &[3]), vec![0]].concat(), answer(ResultCode::MALFORMED_REQUEST)),
        ("9: options", with(60, &[3]), answer(ResultCode::MALFORMED_OPTION)),
    ];
    for (row, octets, rejection) in rows {
        assert_eq!(Request::parse(&octets), Err(rejection), "{row}");
    }
}

/// RFC 6887 §8.2: the address and the opcode can be judged before the options are.
#[test]
fn the_header_can_be_judged_before_the_options() {
    let mut octets = hex(MAP_REQUEST);
    octets[60] = 3;
    let header = RequestHeader::parse(&octets).unwrap();
    assert_eq!(header.opcode, Opcode::MAP);
    assert_eq!(ip_from_wire(header.client_addr), IpAddr::from([192, 0, 2, 10]));
}

#[test]
fn an_unknown_opcode_is_kept_whole_for_the_server_to_refuse() {
    let octets = hex("02630000 00000001 00000000 00000000 0000ffff c000020a ffffffff");
    let request = Request::parse(&octets).unwrap();
    assert_eq!(request.body, Body::Other(Opcode(99), vec![0xff; 4]));
    assert_eq!(request.to_bytes(), octets);
}

/// RFC 6887 §7.3 and the options' own sections: what is MALFORMED_OPTION, and what is left to the server.
#[test]
fn options_are_checked() {
    const V4: &str = "00000000 00000000 0000ffff cb007109";
    const V6: &str = "20010db8 00000000 00000000 00000001";
    let third_party = format!("01000010 {V4}");
    let filter = |bits: u8, addr: &str| format!("03000014 00{bits:02x}0050 {addr}");
    let text = |code: u8, len: u16| format!("{code:02x}00{len:04x} {}", "61".repeat(usize::from(len)));
    let malformed = [
        // Structure (RFC 6887 §7.3).
        ("length beyond the datagram", "80000001".to_owned()),
        ("length beyond the datagram", format!("40000014 {V4}")),
        ("length far beyond the datagram", "4000ffff 00000000".to_owned()),
        // Contents (each option's own section).
        ("THIRD_PARTY of 12", "0100000c 00000000 0000ffff cb007109".to_owned()),
        ("THIRD_PARTY of 20", format!("01000014 {V4} 00000000")),
        ("PREFER_FAILURE with data", "02000004 00000000".to_owned()),
        ("FILTER of 16", format!("03000010 {V4}")),
        ("FILTER, IPv4, below 96", filter(95, V4)),
        ("FILTER, IPv4, a length not counted from the mapped prefix", filter(32, V4)),
        ("FILTER, IPv4, above 128", filter(129, V4)),
        ("FILTER, IPv6, above 128", filter(129, V6)),
        ("NONCE of 8", "04000008 00000000 00000000".to_owned()),
        ("AUTHENTICATION_TAG below 12", "05000008 00000000 00000000".to_owned()),
        ("PA_AUTHENTICATION_TAG below 4", "06000003 00000000".to_owned()),
        ("PRF of 0", "08000000".to_owned()),
        ("THIRD_PARTY_ID above 1016", text(13, 1020)),
        ("DESCRIPTION above 1016", text(128, 1020)),
        ("PREFIX64, 9 octets", "8100000e 00090064 ff9b0000 00000000 00000000".to_owned()),
        ("PREFIX64, count too high", "81000010 000c0064 ff9b0000 00000000 00000001".to_owned()),
        ("PREFIX64, IPv4 /33", "81000016 000c0064 ff9b0000 00000000 00000001 0021c000 02000000".to_owned()),
        ("PREFIX64, octets left", "81000014 000c0064 ff9b0000 00000000 00000000 00000000".to_owned()),
        ("PORT_SET of 4", "82000004 00041f90".to_owned()),
        ("PORT_SET, no ports", "82000005 00001f90 00000000".to_owned()),
        // Known, allowed once, there twice (RFC 6887 §7.3).
        ("THIRD_PARTY twice", third_party.repeat(2)),
        ("PREFER_FAILURE twice", "02000000 02000000".to_owned()),
        ("PREFER_FAILURE twice, not side by side", format!("02000000 {} 02000000", filter(96, V4))),
        ("DESCRIPTION twice", "80000000 80000000".to_owned()),
        ("PORT_SET twice", "82000005 00041f90 00000000".repeat(2)),
    ];
    let kept = [
        ("FILTER, IPv4, least", filter(96, V4), 1),
        ("FILTER, IPv4, most", filter(128, V4), 1),
        ("FILTER, IPv6", filter(1, V6) + &filter(128, V6), 2),
        ("FILTER 0 drops filters, then a new one", filter(0, V4) + &filter(128, V4), 2),
        ("PRF many times", "08000004 00000005".repeat(3), 3),
        ("unknown mandatory, the server's to refuse", "60000001 61000000".to_owned(), 1),
        ("unknown mandatory twice", "60000000 60000000".to_owned(), 2),
        ("unknown optional", "e0000000".to_owned(), 1),
        ("DESCRIPTION of 1016", text(128, 1016), 1),
        ("DESCRIPTION that is not UTF-8", "80000001 ff000000".to_owned(), 1),
    ];
    let parse = |options: &str| Request::parse(&[&hex(MAP_REQUEST)[..60], &hex(options)].concat());
    for (row, options) in malformed {
        assert_eq!(parse(&options), Err(answer(ResultCode::MALFORMED_OPTION)), "{row}");
    }
    for (row, options, count) in kept {
        assert_eq!(parse(&options).map(|request| request.options.len()), Ok(count), "{row}");
    }
}

/// RFC 6887 §7.3 and the small RFCs: bit 7 decides, and the number of repetitions is per option.
#[test]
fn option_codes_know_their_kind() {
    for code in OptionCode::KNOWN {
        assert_eq!(code.is_mandatory(), code.0 < 128, "{code}");
        let many = [OptionCode::FILTER, OptionCode::PRF, OptionCode::MAC_ALGORITHM, OptionCode::NEXT];
        assert_eq!(code.is_once_only(), !many.contains(code), "{code}");
    }
    assert!(!OptionCode(96).is_once_only());
}

// Server: error responses

#[test]
fn an_error_response_pads_a_nat_pmp_request_to_a_header() {
    let octets = error_response(&[0, 0], ResultCode::UNSUPP_VERSION, 1800, 100);
    assert_eq!(octets, hex("02800001 00000708 00000064 00000000 00000000 00000000"));
    // As a NAT-PMP client sees it: result 1.
    assert_eq!(octets[2..4], [0, 1]);
}

#[test]
fn an_error_response_is_cut_to_1100_octets() {
    for len in [1100, 1101, 1104, 65535] {
        let payload: Vec<u8> = [&hex(MAP_REQUEST)[..], &vec![7; len]].concat()[..len].to_vec();
        let octets = error_response(&payload, ResultCode::MALFORMED_REQUEST, 1800, 100);
        assert_eq!(octets.len(), MAX_LEN, "{len}");
        assert_eq!(octets[24..], payload[24..MAX_LEN]);
    }
}

#[test]
fn an_error_response_pads_to_a_multiple_of_four() {
    let payload = [&hex(MAP_REQUEST)[..], &[0xee]].concat();
    let octets = error_response(&payload, ResultCode::MALFORMED_REQUEST, 1800, 100);
    assert_eq!(octets.len(), 68);
    assert_eq!(octets[64..], [0xee, 0, 0, 0]);
}

/// RFC 6887 §7.2: a request that was parsed gets zeros, another one its own last 96 bits of the address field.
#[test]
fn the_reserved_field_tells_whether_the_request_was_parsed() {
    let parsed = hex(MAP_REQUEST);
    assert_eq!(error_response(&parsed, ResultCode::NO_RESOURCES, 30, 100)[12..24], [0; 12]);
    let unparsed = [&parsed[..], &[1]].concat();
    assert_eq!(error_response(&unparsed, ResultCode::MALFORMED_REQUEST, 30, 100)[12..24], parsed[12..24]);
}

/// RFC 6887 §8.3: whatever an error returns of a MAP request, the client must be able to match it.
#[test]
fn an_error_with_odd_options_is_still_a_map_response() {
    let base = &hex(MAP_REQUEST)[..60];
    let rows = [
        ("80000001", 0),
        ("02000004 00000000", 0),
        ("02000000 03000010 00000000 00000000 00000000 00000000 80000000", 2),
        ("02000000 4000ffff", 1),
    ];
    for (options, kept) in rows {
        let octets = error_response(&[base, &hex(options)].concat(), ResultCode::MALFORMED_OPTION, 1800, 100);
        let response = Response::parse(&octets).unwrap();
        assert!(matches!(response.body, Body::Map(MapData { nonce: NONCE, .. })), "{options}");
        assert_eq!(response.options.len(), kept, "{options}");
    }
    let short = error_response(&base[..40], ResultCode::MALFORMED_REQUEST, 1800, 100);
    let response = Response::parse(&short).unwrap();
    assert_eq!(response.body, Body::Other(Opcode::MAP, base[24..40].to_vec()));
    assert_eq!(response.to_bytes()[24..], short[24..]);
}

// Client

/// RFC 6887 §8.3.
#[test]
fn responses_are_checked() {
    let success = map_response(ResultCode::SUCCESS, 3600, NO_ADDR_V4).to_bytes();
    let with = |at: usize, octets: &[u8]| {
        let mut changed = success.clone();
        changed[at..at + octets.len()].copy_from_slice(octets);
        changed
    };
    let rows = [
        ("empty", vec![]),
        ("shorter than 4", success[..3].to_vec()),
        ("R clear", with(1, &[1])),
        ("another version", with(0, &[1])),
        ("shorter than 24", success[..20].to_vec()),
        ("longer than 1100", [&success[..], &[0x80, 0, 4, 0x0c][..], &[0; 1036]].concat()),
        ("not a multiple of 4", success[..62].to_vec()),
        ("too short for the opcode", success[..56].to_vec()),
        ("option beyond the end", with(60, &[0x80, 0, 0, 1])),
        ("known option of the wrong length", [&with(60, &[2, 0, 0, 4])[..], &[0; 4]].concat()),
    ];
    for (row, octets) in rows {
        assert_eq!(Response::parse(&octets), Err(Malformed), "{row}");
    }
    // Unknown options are kept, mandatory ones too; so are repeated ones.
    let odd = [&success[..], &hex("60000000 e0000000 02000000")].concat();
    assert_eq!(Response::parse(&odd).map(|response| response.options.len()), Ok(4));
    // Reserved fields are ignored.
    let odd = with(12, &[0xff; 12]);
    assert_eq!(Response::parse(&odd), Response::parse(&success));
}

/// RFC 6887 §8.3 and §9, RFC 6886 §3.5.
#[test]
fn version_refusals_of_every_kind() {
    let refusal = |version, lifetime, epoch| Some(VersionRefusal { version, lifetime, epoch });
    let rows = [
        ("PCP, whole", "01810001 00000708 00000064 00000000 00000000 00000000", refusal(1, 1800, Some(100))),
        ("PCP, 4 octets", "03800001", refusal(3, 0, None)),
        ("PCP, no epoch", "03800001 0000001e", refusal(3, 30, None)),
        ("PCP, no whole lifetime", "03800001 0000", refusal(3, 0, None)),
        ("PCP, reserved octet set", "0381ff01 0000001e", refusal(3, 30, None)),
        (
            "PCP that names NAT-PMP",
            "00810001 00000708 00000064 00000000 00000000 00000000",
            refusal(0, 1800, Some(100)),
        ),
        ("PCP that names ours", "02810001 0000001e 00000064", refusal(2, 30, Some(100))),
        ("NAT-PMP, the RFC's figure", "00000001 00000064", refusal(0, 0, Some(100))),
        ("NAT-PMP, the figure, octets left", "00000001 00000064 00000000", refusal(0, 0, Some(100))),
        (
            "NAT-PMP, the figure, padded to a PCP header",
            "00000001 00000064 00000000 00000000 00000000 00000000",
            refusal(0, 0, Some(100)),
        ),
        ("NAT-PMP, 128 + opcode", "00810001 00000064", refusal(0, 0, Some(100))),
        ("NAT-PMP, 128", "00800001 00000064", refusal(0, 0, Some(100))),
        ("R set, 4 octets", "00800001", refusal(0, 0, None)),
        ("the figure, cut", "00000001 000000", None),
        ("a request's opcode", "00010001 00000064", None),
        ("another result", "00800000 00000064 c6336407", None),
        ("result 257", "00800101 00000064", None),
        ("result 257", "00000101 00000064", None),
        ("PCP, R clear", "01010001 00000708 00000064", None),
        ("PCP, success", "02810000 00000e10 00000064", None),
        ("3 octets", "038000", None),
        ("nothing", "", None),
    ];
    for (row, octets, expected) in rows {
        assert_eq!(version_refusal(&hex(octets)), expected, "{row}");
    }
}

/// What our own server says to NAT-PMP clients and to later PCP versions is a refusal to our own client.
#[test]
fn our_refusal_is_heard_by_our_client() {
    for payload in [&[0, 0][..], &[3, 1, 0, 0], &[1; 60]] {
        let octets = error_response(payload, ResultCode::UNSUPP_VERSION, 1800, 100);
        let expected = VersionRefusal { version: 2, lifetime: 1800, epoch: Some(100) };
        assert_eq!(version_refusal(&octets), Some(expected));
    }
}

// Registries, addresses, traces

/// RFC 6887 §7.4: short 30 s, long 30 min.
#[test]
fn result_codes_have_a_lifetime_class() {
    let short = [
        ResultCode::NETWORK_FAILURE,
        ResultCode::NO_RESOURCES,
        ResultCode::USER_EX_QUOTA,
        ResultCode::CANNOT_PROVIDE_EXTERNAL,
        ResultCode::NON_EXIST_MAPPING,
    ];
    for code in &ResultCode::KNOWN[1..] {
        let expected = if short.contains(code) { 30 } else { 1800 };
        assert_eq!(code.recommended_lifetime(), expected, "{code}");
    }
    assert_eq!(ResultCode::SUCCESS.recommended_lifetime(), 0);
    assert_eq!(ResultCode(200).recommended_lifetime(), 1800);
}

#[test]
fn registries_print_names_and_keep_unknown_numbers() {
    assert_eq!(ResultCode::SUCCESS.to_string(), "SUCCESS");
    assert_eq!(ResultCode(200).to_string(), "result 200");
    assert_eq!(format!("{:?}", Opcode(99)), "opcode 99");
    assert_eq!(Protocol(132).to_string(), "SCTP");
    assert_eq!(OptionCode::THIRD_PARTY_ID.name(), Some("THIRD_PARTY_ID"));
    let (results, opcodes, options) = (ResultCode::KNOWN, Opcode::KNOWN, OptionCode::KNOWN);
    assert!(results.iter().map(|code| code.0).filter(|code| *code < 192).eq(0..=26));
    assert!(opcodes.iter().map(|code| code.0).filter(|code| *code < 96).eq(0..=3));
    assert!(options.iter().map(|code| code.0).filter(|code| *code < 192).eq((1..=13).chain(128..=130)));
}

/// RFC 6887 §19: what no RFC has numbered has a number that no RFC will take.
#[test]
fn our_own_numbers_are_of_private_use() {
    let opcodes: Vec<u8> = Opcode::KNOWN.iter().map(|code| code.0).filter(|code| *code > 3).collect();
    assert_eq!(opcodes, [98]);
    assert!(opcodes.iter().all(|code| (96..=126).contains(code)));
    let options: Vec<u8> = OptionCode::KNOWN.iter().map(|code| code.0).filter(|code| *code > 130).collect();
    assert_eq!(options, [224]);
    assert!(options.iter().all(|code| (224..=254).contains(code)));
    let results: Vec<u8> = ResultCode::KNOWN.iter().map(|code| code.0).filter(|code| *code > 26).collect();
    assert_eq!(results, [192, 193]);
    assert!(results.iter().all(|code| (192..=254).contains(code)));
}

#[test]
fn addresses_keep_their_family() {
    let rows = [
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:0.0.0.0", "0.0.0.0"),
        ("::", "::"),
        // Not mapped: all 96 bits count (RFC 6887 §5).
        ("::192.0.2.1", "::192.0.2.1"),
        ("1::ffff:192.0.2.1", "1::ffff:192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
    ];
    for (wire, ip) in rows {
        let (wire, ip): (Ipv6Addr, IpAddr) = (wire.parse().unwrap(), ip.parse().unwrap());
        assert_eq!(ip_from_wire(wire), ip);
        assert_eq!(ip_to_wire(ip), wire);
    }
    assert_eq!(NO_ADDR_V4, mapped(Ipv4Addr::UNSPECIFIED));
}

// GET and NEXT

const GET_REQUEST: &str = "
    02620000 00000000 00000000 00000000 0000ffff c000020a
    06000000 00000000 00000000 0000ffff 0a000005 00000000 00000000 00000000 00000000 00000000
    e0000038 00000000 00000000 00000000 06000000 00000000 00000000 0000ffff 0a000005
    00000000 00000000 00000000 00000000 00000000 1f900000";

const GET_SUCCESS: &str = "
    02e20000 00000000 00000064 00000000 00000000 00000000
    06000000 00000000 00000000 0000ffff 0a000005 00000000 00000000 00000000 00000000 00000000
    e0000044 00010203 04050607 08090a0b 06000001 00000000 00000000 0000ffff 0a000005
    00000000 00000000 0000ffff c6336407 00000e10 1f912382
    80000005 73656564 58000000";

fn next(internal_port: u16) -> NextMapping {
    NextMapping {
        nonce: Nonce::default(),
        protocol: Protocol::TCP,
        more: false,
        internal_addr: mapped(Ipv4Addr::new(10, 0, 0, 5)),
        external_addr: Ipv6Addr::UNSPECIFIED,
        lifetime: 0,
        internal_port,
        external_port: 0,
        options: vec![],
    }
}

fn get_request() -> Request {
    let filters = GetData {
        protocol: Protocol::TCP,
        internal_addr: mapped(Ipv4Addr::new(10, 0, 0, 5)),
        ..GetData::ALL
    };
    Request {
        lifetime: 0,
        body: Body::Get(filters),
        options: vec![PcpOption::Next(next(8080))],
        ..map_request()
    }
}

#[test]
fn worked_get_request() {
    assert_eq!(get_request().to_bytes(), hex(GET_REQUEST));
    assert_eq!(Request::parse(&hex(GET_REQUEST)), Ok(get_request()));
    assert_eq!(
        get_request().to_string(),
        "PCP GET request for TCP, internal 10.0.0.5:0, \
         NEXT (TCP 10.0.0.5:8080 -> [::]:0, 0 s, nonce 0000…)"
    );
    let everything = Request { body: Body::Get(GetData::ALL), options: vec![], ..get_request() };
    assert_eq!(everything.to_bytes()[24..], [0; 40]);
    assert_eq!(everything.to_string(), "PCP GET request for all mappings");
}

#[test]
fn worked_get_success() {
    let listed = NextMapping {
        nonce: NONCE,
        more: true,
        external_addr: mapped(Ipv4Addr::new(198, 51, 100, 7)),
        lifetime: 3600,
        external_port: 9090,
        options: vec![PcpOption::Description(b"seedX".to_vec())],
        ..next(8081)
    };
    let response = Response {
        result: ResultCode::SUCCESS,
        lifetime: 0,
        epoch: 100,
        body: get_request().body,
        options: vec![PcpOption::Next(listed)],
    };
    assert_eq!(response.to_bytes(), hex(GET_SUCCESS));
    assert_eq!(
        response.to_string(),
        "PCP GET SUCCESS for TCP, internal 10.0.0.5:0, epoch 100, \
         NEXT (TCP 10.0.0.5:8081 -> 198.51.100.7:9090, 3600 s, nonce 0001…, more, DESCRIPTION \"seedX\")"
    );
    assert_eq!(Response::parse(&hex(GET_SUCCESS)), Ok(response));
}

/// What orders a list: internal address, protocol, internal port, each as a number.
#[test]
fn lists_are_ordered_by_internal_address_protocol_and_port() {
    let key = |last: u8, protocol, port| {
        let internal_addr = mapped(Ipv4Addr::new(10, 0, 0, last));
        NextMapping { internal_addr, protocol, nonce: Nonce([last; 12]), ..next(port) }.key()
    };
    let ordered = [
        key(5, Protocol::TCP, 9),
        key(5, Protocol::TCP, 80),
        key(5, Protocol::UDP, 9),
        key(200, Protocol::TCP, 9),
        NextMapping { internal_addr: "2001:db8::1".parse().unwrap(), ..next(1) }.key(),
    ];
    assert!(ordered.is_sorted_by(|a, b| a < b));
}

/// The numbers are of private use: what stands under them without our layout is somebody else's, unless GET says that
/// it is meant.
#[test]
fn strangers_may_use_our_private_numbers() {
    let cut = hex(GET_REQUEST)[..60].to_vec();
    let request = Request::parse(&cut).unwrap();
    assert_eq!(request.body, Body::Other(Opcode::GET, cut[24..].to_vec()), "too short for GET");
    assert_eq!(request.to_bytes(), cut);

    let map = |options: &str| [&hex(MAP_REQUEST)[..60], &hex(options)].concat();
    let get = |options: &str| [&hex(GET_REQUEST)[..64], &hex(options)].concat();
    let whole = |inside: &str| format!("e000{:04x} {} {inside}", 56 + hex(inside).len(), "07".repeat(56));
    let nested_next = whole(&format!("e0000038 {}", "07".repeat(56)));
    for (row, option) in [
        ("no data", "e0000000"),
        ("too short", "e0000004 00000000"),
        ("an option inside is cut", &whole("02000001")),
        ("a known option inside has the wrong length", &whole("02000004 00000000")),
        ("a list inside a list", &nested_next),
        ("lists without end", &format!("e0000408 {}", "e000003c".repeat(258))),
    ] {
        let request = Request::parse(&map(option)).unwrap();
        let data = hex(option)[4..].to_vec();
        assert_eq!(request.options, [PcpOption::Unknown { code: OptionCode::NEXT, data }], "{row}");
        assert_eq!(request.to_bytes(), map(option), "{row}");
        let malformed = Err(answer(ResultCode::MALFORMED_OPTION));
        assert_eq!(Request::parse(&get(option)), malformed, "{row}");

        let response = |mut octets: Vec<u8>, result: ResultCode| {
            (octets[1], octets[3]) = (octets[1] | R, result.0);
            Response::parse(&octets).map(|response| response.options.len())
        };
        assert_eq!(response(map(option), ResultCode::SUCCESS), Ok(1), "{row}");
        assert_eq!(response(get(option), ResultCode::SUCCESS), Err(Malformed), "{row}");
        assert_eq!(response(get(option), ResultCode::MALFORMED_OPTION), Ok(1), "{row}");
    }
    // Kept: options of a mapping that are not known, known ones whatever is in them, and any sign of more.
    let kept = get(&whole("60000003 61626300 e1000000 80000001 ff000000"));
    let request = Request::parse(&kept).unwrap();
    let Some(PcpOption::Next(next)) = request.option(OptionCode::NEXT) else { panic!("{request:?}") };
    assert_eq!((next.more, next.options.len()), (true, 3));
    // 131 is not 224.
    let theirs = get(&whole("").replacen("e0", "83", 1));
    assert!(matches!(
        Request::parse(&theirs).unwrap().options[..],
        [PcpOption::Unknown { code: OptionCode(131), .. }]
    ));
}

#[test]
fn requests_read_as_one_line() {
    let map = map_request();
    assert_eq!(
        map.to_string(),
        "PCP MAP request TCP internal 8080, suggested 0.0.0.0:8080, 3600 s, nonce 0001…, PREFER_FAILURE"
    );
    let delete = Request { lifetime: 0, options: vec![], ..map.clone() };
    assert_eq!(delete.to_string(), "PCP MAP request TCP internal 8080, delete, nonce 0001…");
    let announce = Request { body: Body::Announce, ..delete.clone() };
    assert_eq!(announce.to_string(), "PCP ANNOUNCE request");
    let peer = PeerData {
        nonce: NONCE,
        protocol: Protocol::UDP,
        internal_port: 5000,
        external_port: 0,
        external_addr: Ipv6Addr::UNSPECIFIED,
        remote_port: 53,
        remote_addr: "2001:db8::5".parse().unwrap(),
    };
    assert_eq!(
        Request { lifetime: 60, body: Body::Peer(peer), ..delete }.to_string(),
        "PCP PEER request UDP internal 5000, suggested [::]:0, remote peer [2001:db8::5]:53, 60 s, nonce 0001…"
    );
}

#[test]
fn responses_read_as_one_line() {
    let success = map_response(ResultCode::SUCCESS, 3600, mapped(Ipv4Addr::new(198, 51, 100, 7)));
    let success = Response { options: vec![], ..success };
    assert_eq!(success.to_string(), "PCP MAP SUCCESS TCP 8080 -> 198.51.100.7:8080, 3600 s, epoch 100");
    let deleted = Response { lifetime: 0, ..success.clone() };
    assert_eq!(deleted.to_string(), "PCP MAP SUCCESS TCP 8080 deleted, epoch 100");
    let refused = map_response(ResultCode::CANNOT_PROVIDE_EXTERNAL, 30, NO_ADDR_V4);
    assert_eq!(
        refused.to_string(),
        "PCP MAP CANNOT_PROVIDE_EXTERNAL TCP 8080, 30 s, epoch 100, PREFER_FAILURE"
    );
    let announce = Response { body: Body::Announce, ..deleted };
    assert_eq!(announce.to_string(), "PCP ANNOUNCE SUCCESS, epoch 100");
    let wildcard = MapData {
        nonce: NONCE,
        protocol: Protocol::ALL,
        internal_port: 0,
        external_port: 0,
        external_addr: NO_ADDR_V4,
    };
    assert_eq!(
        Response {
            result: ResultCode::UNSUPP_PROTOCOL,
            lifetime: 1800,
            body: Body::Map(wildcard),
            ..success
        }
        .to_string(),
        "PCP MAP UNSUPP_PROTOCOL all protocols, 1800 s, epoch 100"
    );
}
