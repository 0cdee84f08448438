//! What goes out, and the nonces.

use super::*;

/// and pcp.md 16: client 192.0.2.10, nonce 00..0b, TCP 8080 to 8080, 3600 s, PREFER_FAILURE.
#[test]
fn golden_map_request() {
    let mut rig = Rig { entropy: Box::new(Counting), ..Rig::new() };
    let out = rig.input(Input::Ask(FLOW, want()));
    let [Output::Transmit(bytes)] = &out[..] else { panic!("{out:?}") };
    assert_eq!(
        hex(bytes),
        "02010000 00000e10 00000000 00000000 0000ffff c000020a 00010203 04050607 08090a0b \
         06000000 1f901f90 00000000 00000000 0000ffff 00000000 02000000"
    );
}

/// T-1, T-5, decision 22 and iwf.md 2.2, the table of what a MAP request carries; pcp.md 16's octets of
/// THIRD_PARTY and FILTER.
#[test]
fn options_and_fields_by_what_is_wanted() {
    let third_party = PcpOption::ThirdParty(LAN_HOST.to_ipv6_mapped());
    let peer = Ipv4Addr::new(203, 0, 113, 9);
    let filter =
        PcpOption::Filter(Filter { prefix_len: 128, remote_port: 0, remote_addr: peer.to_ipv6_mapped() });
    for (want, lifetime, port, options) in [
        (want(), 3600, 8080, vec![PcpOption::PreferFailure]),
        // AddAnyPortMapping: a suggestion.
        (with(Terms { prefer_failure: false, ..want().terms }), 3600, 8080, vec![]),
        // PREFER_FAILURE with port 0 would be MALFORMED_OPTION (RFC 6887 §13.2).
        (Want { external_port: 0, ..want() }, 3600, 0, vec![]),
        (
            Want { third_party: Some(LAN_HOST.into()), ..want() },
            3600,
            8080,
            vec![third_party.clone(), PcpOption::PreferFailure],
        ),
        // T-5: it equals the packet's source.
        (Want { third_party: Some(SOURCE.into()), ..want() }, 3600, 8080, vec![PcpOption::PreferFailure]),
        (
            Want { remote_peers: RemotePeer::of(Some(peer)), ..want() },
            3600,
            8080,
            vec![PcpOption::PreferFailure, filter.clone()],
        ),
        // T-1: for ever is 2^32 - 1.
        (endless(), u32::MAX, 8080, vec![PcpOption::PreferFailure]),
        (with(Terms { longest: 600, ..extended(None) }), 600, 8080, vec![PcpOption::PreferFailure]),
        (with(Terms { longest: 600, ..want().terms }), 600, 8080, vec![PcpOption::PreferFailure]),
    ] {
        let mut rig = Rig::new();
        let request = rig.ask(FLOW, want.clone());
        let map = map_of(&request);
        let expected = Request {
            lifetime,
            client_addr: SOURCE.to_ipv6_mapped(),
            body: Body::Map(MapData {
                nonce: map.nonce,
                protocol: Protocol::TCP,
                internal_port: 8080,
                external_port: port,
                external_addr: NO_ADDR_V4,
            }),
            options,
        };
        assert_eq!(request, expected, "{want:?}");
    }
    assert_eq!(hex(&octets(&third_party)), "01000010 00000000 00000000 0000ffff 0a000005");
    assert_eq!(hex(&octets(&filter)), "03000014 00800000 00000000 00000000 0000ffff cb007109");
}

fn octets(option: &PcpOption) -> Vec<u8> {
    let request = |options| Request { lifetime: 0, client_addr: NO_ADDR_V4, body: Body::Announce, options };
    request(vec![option.clone()]).to_bytes().split_off(24)
}

/// R-4, RFC 6887 §11.1: another nonce for every mapping, and the same for the same client in every life, so that no crash
/// makes the server refuse us.
#[test]
fn every_client_has_its_own_nonce_for_ever() {
    let other = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 6);
    let hosts = [None, Some(LAN_HOST.into()), Some(Ipv4Addr::new(10, 0, 0, 6).into()), Some(other.into())];
    let wants: Vec<Want> = hosts
        .into_iter()
        .flat_map(|third_party| [Protocol::TCP, Protocol::UDP].map(|protocol| (third_party, protocol)))
        .flat_map(|(third_party, protocol)| {
            (1..50).map(move |internal_port| Want { third_party, protocol, internal_port, ..want() })
        })
        .collect();
    let nonces = |seed, server: &str| -> Vec<Nonce> {
        let mut rig = Rig::with_seed(seed);
        let server = server.parse().unwrap();
        rig.client = PcpClient::new(server, IpAddr::V4(SOURCE), Duration::from_secs(5));
        (0..).zip(&wants).map(|(n, want)| map_of(&rig.ask(FlowId(n), want.clone())).nonce).collect()
    };
    let first = nonces(1, "192.0.2.1:5351");
    assert_eq!(first.iter().collect::<std::collections::BTreeSet<_>>().len(), wants.len());
    assert_eq!(nonces(2, "192.0.2.1:5351"), first);
    assert!(nonces(1, "192.0.2.2:5351").iter().zip(&first).all(|(one, other)| one != other));
}

/// The same client insists on another port while its last mapping is being deleted: it waits for that, for the server has
/// one mapping for a client. So does nobody else.
#[test]
fn another_port_waits_for_the_delete() {
    let (mut rig, first) = Rig::holding(endless(), 3600);
    let delete = only_sent(&rig.input(Input::Delete(FLOW)));
    let other = Want { external_port: 9090, ..endless() };
    assert_eq!(rig.input(Input::Ask(FlowId(2), other.clone())), []);
    assert!(rig.client.has(FlowId(2)));
    rig.ask(FlowId(3), Want { internal_port: 1, ..other.clone() });
    let out = rig.answer(&rig.error(&delete, ResultCode::SUCCESS, 0));
    let [Output::Deleted(FLOW), Output::Transmit(bytes)] = &out[..] else { panic!("{out:?}") };
    let sent = map_of(&Request::parse(bytes).unwrap());
    assert_eq!((sent.external_port, sent.nonce), (9090, map_of(&first).nonce));
    // When the server refuses to delete, the answer is that the port cannot be had.
    let (mut rig, _) = Rig::holding(endless(), 3600);
    let delete = only_sent(&rig.input(Input::Delete(FLOW)));
    rig.input(Input::Ask(FlowId(2), other.clone()));
    let out = rig.answer(&rig.error(&delete, ResultCode::NOT_AUTHORIZED, 30));
    let refused = Output::Refused(FlowId(2), ResultCode::CANNOT_PROVIDE_EXTERNAL, Duration::ZERO);
    assert_eq!(out, [Output::DeleteRefused(FLOW, ResultCode::NOT_AUTHORIZED), refused]);
    // Who gives up waiting leaves nothing behind.
    let (mut rig, _) = Rig::holding(endless(), 3600);
    let delete = only_sent(&rig.input(Input::Delete(FLOW)));
    rig.input(Input::Ask(FlowId(2), other));
    assert_eq!(rig.input(Input::Delete(FlowId(2))), [Output::Deleted(FlowId(2))]);
    assert_eq!(rig.answer(&rig.error(&delete, ResultCode::SUCCESS, 0)), [Output::Deleted(FLOW)]);
    assert!(!rig.client.has(FlowId(2)));
}

/// What one request has taught counts for all: the copies of another one that went out before have an option that its last copy
/// lacks, and what they are refused with is not its answer. Nor is it that of a mapping which stands by then.
#[test]
fn an_option_that_was_given_up_meanwhile_is_not_what_a_request_is_refused_for() {
    let (unsupported, malformed) = (ResultCode::UNSUPP_OPTION, ResultCode::MALFORMED_OPTION);
    for (result, description) in [(unsupported, ""), (malformed, "game")] {
        let mut rig = Rig::new();
        let want = with(Terms { description: description.to_owned(), ..want().terms });
        let other = rig.ask(FlowId(2), Want { internal_port: 1, ..want.clone() });
        let first = rig.ask(FLOW, want);
        let out = rig.answer(&rig.error(&other, result, 1800));
        let [Output::Answering, Output::Transmit(bytes)] = &out[..] else { panic!("{out:?}") };
        let learned = rig.answer(&rig.success(&Request::parse(bytes).unwrap(), 3600));
        assert!(learned.iter().any(|output| matches!(output, Output::Lacks(_))), "{learned:?}");
        let mut copies = sent(&rig.run(1000));
        copies.retain(|(_, request)| map_of(request).internal_port == 8080);
        let [(_, last)] = &copies[..] else { panic!("{copies:?}") };
        assert!(last.options.len() < first.options.len(), "{result}");
        let refused = rig.error(&first, result, 1800);
        assert_eq!(rig.answer(&refused), [], "{result}");
        let out = rig.answer(&rig.success(last, 3600));
        assert!(matches!(out[..], [Output::Granted(FLOW, _)]), "{result}: {out:?}");
        assert_eq!(rig.answer(&refused), [], "{result}");
    }
}
