use std::net::{SocketAddr, SocketAddrV4};

use wire::pcp::Protocol;

use super::*;
use crate::claims::Asker;

#[test]
fn addresses_behind_a_nat() {
    for (addr, behind) in [
        ("0.1.2.3", true),
        ("10.0.0.1", true),
        ("100.63.255.255", false),
        ("100.64.0.1", true),
        ("100.127.255.255", true),
        ("100.128.0.0", false),
        ("169.254.1.1", true),
        ("172.15.0.1", false),
        ("172.16.0.1", true),
        ("172.32.0.0", false),
        ("192.0.0.8", true),
        ("192.168.178.1", true),
        ("198.17.255.255", false),
        ("198.18.0.1", true),
        ("198.19.255.255", true),
        ("198.51.100.7", false),
        ("203.0.114.1", false),
    ] {
        assert_eq!(is_behind_nat(addr.parse().unwrap()), behind, "{addr}");
    }
}

fn request(host: [u8; 4], internal: u16, external: Option<u16>) -> MappingRequest {
    MappingRequest {
        protocol: Protocol::TCP,
        internal: SocketAddrV4::new(host.into(), internal),
        external_port: external,
        strict: true,
        external_addr: None,
        lease: None,
        remote_peer: None,
        remote_name: None,
        description: String::new(),
        by: Asker::Igd,
    }
}

#[test]
fn decisions_27_and_28_row_by_row() {
    let link = |addr: [u8; 4], prefix_len| InterfaceAddress { addr: IpAddr::from(addr), prefix_len };
    let lan = [link([192, 168, 1, 1], 24), link([169, 254, 0, 1], 16), link([127, 0, 0, 1], 8)];
    let wan = [Ipv4Addr::new(100, 64, 0, 2)];
    let facts = Facts { lan: &lan, wan: &wan, held_by_host: 0, held: 0, consent: Consent::Unknown };
    let me = [192, 168, 1, 10];
    for (from, host, internal, external, verdict) in [
        (me, me, 8080, Some(8080), Ok(())),
        (me, me, 8080, None, Ok(())),
        (me, me, 1024, Some(1024), Ok(())),
        (me, [192, 168, 1, 11], 8080, Some(8080), Err(Denied::OtherHost)),
        (me, me, 1023, Some(8080), Err(Denied::LowPort(1024))),
        (me, me, 8080, Some(80), Err(Denied::LowPort(1024))),
        (me, [192, 168, 2, 10], 8080, Some(8080), Err(Denied::OffLan)),
        (me, [8, 8, 8, 8], 8080, Some(8080), Err(Denied::OffLan)),
        (me, [192, 168, 1, 1], 8080, Some(8080), Err(Denied::NeverMapped)), // the router
        (me, [100, 64, 0, 2], 8080, Some(8080), Err(Denied::NeverMapped)),  // the router's WAN side
        (me, [192, 168, 1, 255], 8080, Some(8080), Err(Denied::NeverMapped)), // broadcast
        (me, [192, 168, 1, 0], 8080, Some(8080), Err(Denied::NeverMapped)), // network
        ([127, 0, 0, 2], [127, 0, 0, 2], 8080, Some(8080), Err(Denied::NeverMapped)),
        (me, [224, 0, 0, 1], 8080, Some(8080), Err(Denied::NeverMapped)),
        (me, [255, 255, 255, 255], 8080, Some(8080), Err(Denied::NeverMapped)),
        (me, [0, 0, 0, 0], 8080, Some(8080), Err(Denied::NeverMapped)),
        (me, [169, 254, 7, 7], 8080, Some(8080), Err(Denied::NeverMapped)),
        (me, [241, 0, 0, 1], 8080, Some(8080), Err(Denied::NeverMapped)),
    ] {
        let wanted = request(host, internal, external);
        let who = Requester::new(IpAddr::from(from), &[]);
        assert_eq!(Policy::default().check(&who, &wanted, facts), verdict, "{wanted:?}");
    }
}

/// K-3, decision 27: who speaks over IPv6 may map to the IPv4 addresses of the same host, and to no other.
#[test]
fn a_host_is_one_by_all_of_its_addresses() {
    let lan = [InterfaceAddress { addr: IpAddr::from([192, 168, 1, 1]), prefix_len: 24 }];
    let facts = Facts { lan: &lan, wan: &[], held_by_host: 0, held: 0, consent: Consent::Unknown };
    let (one, two, other) = ([192, 168, 1, 10], [192, 168, 1, 11], [192, 168, 1, 12]);
    let router = [192, 168, 1, 1];
    for (source, also, host, verdict, means) in [
        ("fe80::10", vec![one], one, Ok(()), Some(one)),
        ("fd00::10", vec![one], one, Ok(()), Some(one)),
        ("2001:db8::10", vec![one], one, Ok(()), Some(one)),
        ("::ffff:192.168.1.10", vec![], one, Ok(()), Some(one)),
        ("fe80::10", vec![one], other, Err(Denied::OtherHost), Some(one)),
        ("fe80::10", vec![], one, Err(Denied::OtherHost), None), // nothing is known of it
        ("fe80::10", vec![one, two], two, Ok(()), None),
        ("fe80::10", vec![one, one], one, Ok(()), Some(one)),
        ("fe80::10", vec![one, two], other, Err(Denied::OtherHost), None),
        ("192.168.1.10", vec![two], two, Ok(()), Some(one)),
        ("192.168.1.10", vec![two], other, Err(Denied::OtherHost), Some(one)),
        ("fe80::10", vec![router], router, Err(Denied::NeverMapped), Some(router)),
        ("fe80::10", vec![[8, 8, 8, 8]], [8, 8, 8, 8], Err(Denied::OffLan), Some([8, 8, 8, 8])),
    ] {
        let addresses: Vec<IpAddr> = also.into_iter().map(IpAddr::from).collect();
        let who = Requester::new(source.parse().unwrap(), &addresses);
        let wanted = request(host, 8080, Some(8080));
        assert_eq!(Policy::default().check(&who, &wanted, facts), verdict, "{who:?} {host:?}");
        assert_eq!(who.address(), means.map(Ipv4Addr::from), "{who:?}");
    }
}

/// Decisions 27 and 28 for pinholes; the subnet-router anycast address (RFC 4291 §2.6.1) is the router's.
#[test]
fn who_may_have_which_pinhole() {
    let link = |addr: &str| InterfaceAddress { addr: addr.parse().unwrap(), prefix_len: 64 };
    let lan = [link("2001:db8:1::1"), link("fe80::1"), link("fd00::1")];
    let wan = ["2001:db8::2".parse().unwrap()];
    let me = "2001:db8:1::10";
    for (from, addr, port, held, verdict) in [
        (me, me, 1024, (99, 100), Ok(())),
        (me, me, 1023, (0, 0), Err(Denied::LowPort(1024))),
        (me, me, 0, (0, 0), Err(Denied::LowPort(1024))),
        (me, "2001:db8:1::11", 8080, (0, 0), Err(Denied::OtherHost)),
        ("192.168.1.10", me, 8080, (0, 0), Err(Denied::OtherHost)), // nothing is known of it
        (me, "2001:db8:1::1", 8080, (0, 0), Err(Denied::NeverMapped)), // the router
        (me, "2001:db8::2", 8080, (0, 0), Err(Denied::NeverMapped)), // its WAN side
        ("2001:db8:1::", "2001:db8:1::", 8080, (0, 0), Err(Denied::NeverMapped)),
        (me, "2001:db8:2::10", 8080, (0, 0), Err(Denied::OffLan)),
        ("fe80::10", "fe80::10", 8080, (0, 0), Err(Denied::NeverMapped)),
        ("fd00::10", "fd00::10", 8080, (0, 0), Err(Denied::NeverMapped)),
        (me, "::1", 8080, (0, 0), Err(Denied::NeverMapped)),
        (me, "::", 8080, (0, 0), Err(Denied::NeverMapped)),
        (me, "ff02::1", 8080, (0, 0), Err(Denied::NeverMapped)),
        (me, "::ffff:192.168.1.10", 8080, (0, 0), Err(Denied::NeverMapped)),
        (me, me, 8080, (100, 100), Err(Denied::HostQuota(100))),
        (me, me, 8080, (0, 65_000), Err(Denied::TableFull(65_000))),
    ] {
        let facts = PinholeFacts {
            lan: &lan,
            wan: &wan,
            held_by_host: held.0,
            held: held.1,
            consent: Consent::Unknown,
        };
        let who = Requester::new(from.parse().unwrap(), &[]);
        let to = Endpoint { addr: addr.parse().unwrap(), protocol: Protocol::TCP, port };
        let checked = Policy::default().check_pinhole(&who, to, facts);
        assert_eq!(checked, verdict, "{from} for {addr} port {port}");
    }
}

/// K-3, both ways: what is whose, whoever speaks by which of his addresses.
#[test]
fn whose_an_address_is() {
    let addr = |text: &str| text.parse::<IpAddr>().unwrap();
    let who = |source: &str, also: &[&str]| {
        Requester::new(addr(source), &also.iter().map(|text| addr(text)).collect::<Vec<_>>())
    };
    let all = ["192.168.1.10", "192.168.1.11", "fe80::10", "2001:db8::10", "fd00::10"];
    for (source, also, own) in [
        ("192.168.1.10", &[][..], &["192.168.1.10"][..]),
        ("::ffff:192.168.1.10", &[], &["192.168.1.10"]),
        ("192.168.1.10", &["2001:db8::10", "fd00::10"], &["192.168.1.10", "2001:db8::10", "fd00::10"]),
        ("fe80::10", &["192.168.1.10", "192.168.1.10"], &["fe80::10", "192.168.1.10"]),
        ("2001:db8::10", &["fd00::10", "192.168.1.11"], &["2001:db8::10", "fd00::10", "192.168.1.11"]),
        ("fd00::10", &["::ffff:192.168.1.11"], &["fd00::10", "192.168.1.11"]),
    ] {
        let one = who(source, also);
        for known in all {
            assert_eq!(one.has(addr(known)), own.contains(&known), "{one:?} {known}");
            assert_eq!(one.is_same_host(&who(known, &[])), own.contains(&known), "{one:?} {known}");
        }
        assert!(one.has("::ffff:192.168.1.10".parse().unwrap()) == own.contains(&"192.168.1.10"));
        // What mappings lead to is IPv4, as ever.
        let v4 = own.iter().filter(|own| own.parse::<Ipv4Addr>().is_ok()).count();
        assert_eq!(one.addresses().len(), v4, "{one:?}");
        assert_eq!(one.source(), addr(source).to_canonical());
    }
    let (left, right) = (who("fe80::10", &["2001:db8::10"]), who("fd00::10", &["2001:db8::10"]));
    assert!(left.is_same_host(&right), "by an address that neither speaks from");
    assert!(!left.is_same_host(&who("fd00::10", &["192.168.1.10"])));
}

#[test]
fn decision_27_quotas() {
    let lan = [InterfaceAddress { addr: IpAddr::from([10, 0, 0, 1]), prefix_len: 8 }];
    let host = [10, 9, 8, 7];
    let check = |held_by_host, held| {
        let facts = Facts { lan: &lan, wan: &[], held_by_host, held, consent: Consent::Unknown };
        let who = Requester::new(IpAddr::from(host), &[]);
        Policy::default().check(&who, &request(host, 5000, None), facts)
    };
    assert_eq!(check(99, 64_999), Ok(()));
    assert_eq!(check(100, 100), Err(Denied::HostQuota(100)));
    assert_eq!(check(0, 65_000), Err(Denied::TableFull(65_000)));
}

#[test]
fn external_addresses_that_are_given_back() {
    for (addr, usable) in [
        ([198, 51, 100, 7], true),
        ([10, 0, 0, 1], true), // another NAT above: true as far as it goes, and shown
        ([0, 0, 0, 0], false),
        ([127, 0, 0, 1], false),
        ([224, 0, 0, 1], false),
        ([255, 255, 255, 255], false),
    ] {
        assert_eq!(is_usable_external(addr.into()), usable, "{addr:?}");
    }
}

/// Who and what, as a test writes it: `192.168.1.10:8080 8080`, `[2001:db8:1::10]:22 22`; the last word is the external port, or `any`.
fn ports(text: &str, protocol: Protocol) -> Ports {
    let (internal, external) = text.split_once(' ').unwrap();
    let internal: SocketAddr = internal.parse().unwrap();
    let external = (external != "any").then(|| external.parse().unwrap());
    Ports { protocol, host: internal.ip(), internal: internal.port(), external }
}

fn with(rules: &[&str]) -> Policy {
    Policy { rules: rules.iter().map(|rule| rule.parse().unwrap()).collect(), ..Policy::default() }
}

/// Decision 27 as it stands in docs/decisions.md: the order, what an `allow` lifts, ports never to be open, the default.
#[test]
fn rules_row_by_row() {
    let own = "allow 443 192.168.1.10 443 tcp";
    let deny_all = "deny 0-65535 0.0.0.0/0 0-65535";
    let (alice, bob) = ("192.168.1.10:8080 8080", "192.168.1.11:8080 8080");
    for (what, rules, of, verdict) in [
        ("no rules", &[][..], alice, Ok(())),
        ("no rule is about it", &["deny 80 192.168.1.0/24 80"], alice, Ok(())),
        ("denied", &["deny 8080 192.168.1.0/24 0-65535"], alice, Err(Denied::Rule(1))),
        ("by its internal port", &["deny 0-65535 192.168.1.0/24 8080"], alice, Err(Denied::Rule(1))),
        ("the first one wins", &["allow 8080 192.168.1.10 8080", deny_all], alice, Ok(())),
        ("the first one wins", &[deny_all, "allow 8080 192.168.1.10 8080"], alice, Err(Denied::Rule(1))),
        ("it is another's", &["allow 8080 192.168.1.10 8080", deny_all], bob, Err(Denied::Rule(2))),
        ("low ports", &[], "192.168.1.10:443 443", Err(Denied::LowPort(1024))),
        ("are lifted", &[own], "192.168.1.10:443 443", Ok(())),
        ("but for that alone", &[own], "192.168.1.10:443 80", Err(Denied::LowPort(1024))),
        ("but for that alone", &[own], "192.168.1.10:80 443", Err(Denied::LowPort(1024))),
        ("but for that alone", &[own], "192.168.1.11:443 443", Err(Denied::LowPort(1024))),
        ("RDP outside", &[], "192.168.1.10:8080 3389", Err(Denied::NeverPort(3389))),
        ("RDP inside", &[], "192.168.1.10:3389 50000", Err(Denied::NeverPort(3389))),
        ("RDP inside, whatever outside", &[], "192.168.1.10:3389 any", Err(Denied::NeverPort(3389))),
        ("is lifted", &["allow 50000 192.168.1.10 3389"], "192.168.1.10:3389 50000", Ok(())),
        ("is lifted", &["allow 50000 192.168.1.10 3389"], "192.168.1.10:3389 any", Ok(())),
        (
            "for that alone",
            &["allow 50000 192.168.1.10 3389"],
            "192.168.1.10:3389 50001",
            Err(Denied::NeverPort(3389)),
        ),
        ("any port", &[], "192.168.1.10:8080 any", Ok(())),
        ("any port, of which there are some", &["deny 8080 0.0.0.0/0 8080"], "192.168.1.10:8080 any", Ok(())),
        ("some left at the end", &["deny 0-65534 0.0.0.0/0 0-65535"], "192.168.1.10:8080 any", Ok(())),
        (
            "some left at the beginning",
            &["deny 1025-65535 0.0.0.0/0 0-65535"],
            "192.168.1.10:8080 any",
            Ok(()),
        ),
        ("some in between", &["allow 6000 192.168.1.10 8080", deny_all], "192.168.1.10:8080 any", Ok(())),
        ("none", &[deny_all], "192.168.1.10:8080 any", Err(Denied::Rule(1))),
        ("none", &["deny 1024-65535 0.0.0.0/0 0-65535"], "192.168.1.10:8080 any", Err(Denied::Rule(1))),
        (
            "0 is no port",
            &["allow 0 192.168.1.10 8080", deny_all],
            "192.168.1.10:8080 any",
            Err(Denied::Rule(2)),
        ),
        ("everybody is of IPv6, too", &[deny_all], "[2001:db8:1::10]:8080 8080", Err(Denied::Rule(1))),
        (
            "who opens names it",
            &["allow 22 0.0.0.0/0 22"],
            "[2001:db8:1::10]:22 22",
            Err(Denied::LowPort(1024)),
        ),
        ("who opens names it", &["allow 22 2001:db8:1::/64 22"], "[2001:db8:1::10]:22 22", Ok(())),
        ("IPv6", &["deny 0-65535 ::/0 0-65535"], "[2001:db8:1::10]:8080 8080", Err(Denied::Rule(1))),
        ("IPv6 alone", &["deny 0-65535 ::/0 0-65535"], alice, Ok(())),
        ("a pinhole to VNC", &[], "[2001:db8:1::10]:5900 5900", Err(Denied::NeverPort(5900))),
    ] {
        assert_eq!(
            with(rules).judge(&ports(of, Protocol::TCP), Consent::Unknown),
            verdict,
            "{what}: {rules:?} {of}"
        );
    }
    let udp = with(&[own, "deny 8080 192.168.1.0/24 8080 udp"]);
    assert_eq!(
        udp.judge(&ports("192.168.1.10:443 443", Protocol::UDP), Consent::Unknown),
        Err(Denied::LowPort(1024))
    );
    assert_eq!(udp.judge(&ports(alice, Protocol::UDP), Consent::Unknown), Err(Denied::Rule(2)));
    assert_eq!(udp.judge(&ports(alice, Protocol::TCP), Consent::Unknown), Ok(()));
}

/// Decision 27: a host is one by all of its addresses, so that a `deny` of one of them is of the host; an `allow` opens what it names.
#[test]
fn a_host_is_denied_by_any_of_its_addresses() {
    let (v4, v6) = ("192.168.1.10:8080 8080", "[2001:db8:1::10]:8080 8080");
    let all = ["192.168.1.10", "2001:db8:1::10", "fd00::10"].map(|addr| addr.parse::<IpAddr>().unwrap());
    let who = Requester::new(all[0], &all[1..]);
    for (rules, of, verdict) in [
        (&["deny 0-65535 192.168.1.10 0-65535"][..], v6, Err(Denied::Rule(1))),
        (&["deny 0-65535 192.168.1.0/24 0-65535"], v6, Err(Denied::Rule(1))),
        (&["deny 0-65535 192.168.1.10 0-65535 udp"], v6, Ok(())),
        (&["deny 0-65535 192.168.1.10 9090"], v6, Ok(())),
        (&["deny 0-65535 192.168.1.11 0-65535"], v6, Ok(())),
        (&["deny 0-65535 2001:db8:1::10 0-65535"], v4, Err(Denied::Rule(1))),
        (&["deny 0-65535 fd00::10 0-65535"], v6, Err(Denied::Rule(1))),
        (&["deny 0-65535 fd00::/64 0-65535"], v6, Ok(())), // a network of several
        (&["deny 0-65535 ::/0 0-65535"], v4, Ok(())),
        (&["allow 80 192.168.1.10 80"], "[2001:db8:1::10]:80 80", Err(Denied::LowPort(1024))),
        (&["allow 8080 2001:db8:1::10 8080", "deny 0-65535 192.168.1.10 0-65535"], v6, Ok(())), // the first
    ] {
        let of = ports(of, Protocol::TCP);
        assert_eq!(with(rules).judge_of(&who, &of, Consent::Unknown), verdict, "{rules:?} {of:?}");
    }
}

/// `policy.default`: what it says of what no rule is about. The owner is not asked about what is refused anyway.
#[test]
fn defaults_row_by_row() {
    use Consent::{Given, Refused, Unknown};
    let rules = ["allow 6000 192.168.1.10 6000", "deny 7000 192.168.1.10 7000"];
    for (default, of, consent, verdict) in [
        (ByDefault::Allow, "8080", Unknown, Ok(())),
        (ByDefault::Allow, "8080", Refused, Ok(())), // nobody was to ask
        (ByDefault::Deny, "8080", Given, Err(Denied::Default)),
        (ByDefault::Deny, "6000", Unknown, Ok(())),
        (ByDefault::Deny, "80", Unknown, Err(Denied::Default)),
        (ByDefault::Ask, "8080", Unknown, Err(Denied::AwaitsConsent)),
        (ByDefault::Ask, "8080", Given, Ok(())),
        (ByDefault::Ask, "8080", Refused, Err(Denied::NoConsent)),
        (ByDefault::Ask, "80", Unknown, Err(Denied::LowPort(1024))),
        (ByDefault::Ask, "3389", Given, Err(Denied::NeverPort(3389))),
        (ByDefault::Ask, "6000", Refused, Ok(())), // the rule is about it
        (ByDefault::Ask, "7000", Given, Err(Denied::Rule(2))),
    ] {
        let policy = Policy { default, ..with(&rules) };
        let of = ports(&format!("192.168.1.10:{of} {of}"), Protocol::TCP);
        assert_eq!(policy.judge(&of, consent), verdict, "{default:?} {of:?} {consent:?}");
    }
}

/// Decision 28 and the quotas hold whatever the rules say.
#[test]
fn no_rule_lifts_these() {
    let policy = with(&["allow 0-65535 0.0.0.0/0 0-65535", "allow 0-65535 ::/0 0-65535"]);
    let lan = [InterfaceAddress { addr: IpAddr::from([192, 168, 1, 1]), prefix_len: 24 }];
    let wan = [Ipv4Addr::new(100, 64, 0, 2)];
    let me = [192, 168, 1, 10];
    let check = |host, held_by_host, held| {
        let facts = Facts { lan: &lan, wan: &wan, held_by_host, held, consent: Consent::Given };
        let who = Requester::new(IpAddr::from(me), &[]);
        policy.check(&who, &request(host, 80, Some(80)), facts)
    };
    assert_eq!(check(me, 0, 0), Ok(()));
    assert_eq!(check([192, 168, 1, 11], 0, 0), Err(Denied::OtherHost));
    assert_eq!(check([192, 168, 1, 1], 0, 0), Err(Denied::NeverMapped));
    assert_eq!(check([100, 64, 0, 2], 0, 0), Err(Denied::NeverMapped));
    assert_eq!(check([127, 0, 0, 1], 0, 0), Err(Denied::NeverMapped));
    assert_eq!(check([8, 8, 8, 8], 0, 0), Err(Denied::OffLan));
    assert_eq!(check(me, 100, 100), Err(Denied::HostQuota(100)));
    assert_eq!(check(me, 0, 65_000), Err(Denied::TableFull(65_000)));
}

/// Every entry of the list is one, and none of them is a port that games, consoles or BitTorrent have.
#[test]
fn ports_that_are_never_open_and_those_that_have_to_be() {
    let policy = Policy::default();
    assert_eq!(policy.never.len(), NEVER.len());
    let judge = |port: u16| {
        policy.judge(&ports(&format!("192.168.1.10:{port} {port}"), Protocol::UDP), Consent::Unknown)
    };
    for port in [1433, 3389, 5900, 5985, 11_211] {
        assert_eq!(judge(port), Err(Denied::NeverPort(port)));
    }
    // Xbox Live, Teredo, PlayStation, STUN, Steam and Source servers, Minecraft, Quake, Unreal, BitTorrent, eMule, Plex, WireGuard,
    // IPsec NAT-T, Syncthing, Transmission, qBittorrent, what is ephemeral.
    for port in [
        3074, 3544, 3478, 3480, 9293, 9308, 27_000, 27_015, 27_017, 27_036, 27_100, 25_565, 19_132, 27_960,
        7777, 6881, 6889, 6969, 4662, 4672, 32_400, 51_820, 4500, 22_000, 51_413, 8999, 49_152, 65_535, 8080,
        5000, 1024,
    ] {
        assert_eq!(judge(port), Ok(()), "port {port}");
    }
}
