//! Calls as control points make them, and what becomes of their arguments.

use wire::services::{Face, Service};
use wire::soap::{self, SoapError, encode_call};

use super::*;

const ME: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

type Args<'a> = &'a [(&'a str, &'a str)];

/// Decodes a call of `action` and reads it as the engine does.
fn read(version: u8, action: &str, args: Args<'_>) -> Result<MappingAction, u16> {
    let service_type = Service::WanIpConnection.service_type(version);
    let body = encode_call(&service_type, action, args);
    let header = format!("\"{service_type}#{action}\"");
    let face = if version == 1 { Face::V1 } else { Face::V2 };
    match soap::decode(Service::WanIpConnection, face, Some(&header), body.as_bytes()) {
        Ok(soap::Request::Call(call)) => mapping_action(&call, Some(ME), Some(EXTERNAL))
            .expect("a mapping action")
            .map_err(|error| error.code),
        Err(SoapError::Upnp(error)) => Err(error.code),
        other => panic!("{other:?}"),
    }
}

const ADD: [(&str, &str); 8] = [
    ("NewRemoteHost", ""),
    ("NewExternalPort", "8080"),
    ("NewProtocol", "TCP"),
    ("NewInternalPort", "80"),
    ("NewInternalClient", "192.168.1.10"),
    ("NewEnabled", "1"),
    ("NewPortMappingDescription", "web"),
    ("NewLeaseDuration", "3600"),
];

/// [`ADD`] with one argument changed.
fn with(name: &str, value: &'static str) -> Vec<(&'static str, &'static str)> {
    ADD.iter().map(|&(known, old)| (known, if known == name { value } else { old })).collect()
}

fn added() -> MappingRequest {
    MappingRequest {
        protocol: Protocol::TCP,
        internal: SocketAddrV4::new(ME, 80),
        external_port: Some(8080),
        strict: true,
        external_addr: None,
        lease: Some(Duration::from_secs(3600)),
        remote_peer: None,
        remote_name: None,
        description: "web".into(),
        by: Asker::Igd,
    }
}

fn add(request: MappingRequest) -> MappingAction {
    MappingAction::Add(AddRequest { request, internal_name: None })
}

/// R-43, T-10, T-11, decision 8 and iwf.md 2.1: the variable table, one argument at a time.
#[test]
fn arguments_of_add_port_mapping() {
    let peer = Ipv4Addr::new(203, 0, 113, 9);
    for (name, value, expected) in [
        ("NewRemoteHost", "", Ok(added())),
        // K-7: what real clients send for "anyone", our own external address among it.
        ("NewRemoteHost", "*", Ok(added())),
        ("NewRemoteHost", " ", Ok(added())),
        ("NewRemoteHost", "0.0.0.0", Ok(added())),
        ("NewRemoteHost", "198.51.100.7", Ok(added())),
        ("NewRemoteHost", "203.0.113.9", Ok(MappingRequest { remote_peer: Some(peer), ..added() })),
        ("NewRemoteHost", "undefined", Err(402)),
        ("NewRemoteHost", "010.0.0.1", Err(402)), // no octal
        ("NewRemoteHost", "10.1", Err(402)),      // no short form
        ("NewExternalPort", "65535", Ok(MappingRequest { external_port: Some(65535), ..added() })),
        ("NewExternalPort", "0", Err(716)), // T-10
        ("NewExternalPort", "65536", Err(601)),
        ("NewExternalPort", "-1", Err(402)),
        ("NewExternalPort", "", Err(402)),
        ("NewProtocol", "udp", Ok(MappingRequest { protocol: Protocol::UDP, ..added() })),
        ("NewProtocol", "SCTP", Err(601)),
        ("NewProtocol", "", Err(601)),
        ("NewInternalClient", "", Ok(added())),
        ("NewInternalClient", " 192.168.1.10 ", Ok(added())),
        ("NewInternalClient", "255.255.255.255", Err(501)), // T-11
        ("NewInternalClient", "fe80::1", Err(402)),
        ("NewEnabled", "true", Ok(added())),
        ("NewEnabled", "0", Err(501)),
        ("NewEnabled", "no", Err(501)),
        ("NewEnabled", "2", Err(402)),
        ("NewPortMappingDescription", "", Ok(MappingRequest { description: String::new(), ..added() })),
    ] {
        for version in [1, 2] {
            let expected = expected.clone().map(add);
            let got = read(version, "AddPortMapping", &with(name, value));
            assert_eq!(got, expected, "{name}={value:?} :{version}");
        }
    }
    // 732 is a code of :2.
    assert_eq!(read(1, "AddPortMapping", &with("NewInternalPort", "0")), Err(402));
    assert_eq!(read(2, "AddPortMapping", &with("NewInternalPort", "0")), Err(732));
    assert_eq!(read(1, "AddPortMapping", &ADD[1..7]), Ok(add(MappingRequest { lease: None, ..added() })));
}

/// R-32, iwf.md 2.5, A-3, decisions 10 and 14, and Q-5: leases are clamped, never refused.
#[test]
fn leases_by_version() {
    for (lease, one, two) in [
        ("0", None, Some(604_800)),
        ("1", Some(1), Some(1)),
        ("604800", Some(604_800), Some(604_800)),
        ("604801", Some(604_801), Some(604_800)),
        ("4294967295", Some(u64::from(u32::MAX)), Some(604_800)),
        ("99999999999", Some(u64::from(u32::MAX)), Some(604_800)),
        ("-1", None, Some(604_800)),
        ("", None, Some(604_800)),
    ] {
        for (version, secs) in [(1, one), (2, two)] {
            let request = MappingRequest { lease: secs.map(Duration::from_secs), ..added() };
            let got = read(version, "AddPortMapping", &with("NewLeaseDuration", lease));
            assert_eq!(got, Ok(add(request)), "{lease:?} :{version}");
        }
    }
}

/// R-16, T-10, decision 8: a wish, and 0 for any port. K-8: it works whatever version was spoken.
#[test]
fn add_any_port_mapping() {
    for version in [1, 2] {
        let wish = MappingRequest { strict: false, ..added() };
        assert_eq!(read(version, "AddAnyPortMapping", &ADD), Ok(add(wish.clone())));
        let any = MappingRequest { external_port: None, ..wish };
        assert_eq!(read(version, "AddAnyPortMapping", &with("NewExternalPort", "0")), Ok(add(any)));
    }
}

/// K-15.
#[test]
fn keys_of_get_and_delete() {
    let key = |host, port, protocol| {
        [("NewRemoteHost", host), ("NewExternalPort", port), ("NewProtocol", protocol)]
    };
    let entry = |remote_host| Entry { protocol: Protocol::UDP, external_port: 53, remote_host };
    let peer = RemoteHost::Address(Ipv4Addr::new(1, 2, 3, 4));
    for version in [1, 2] {
        for (args, expected) in [
            (key("", "53", "UDP"), Ok(entry(None))),
            (key("*", "53", "UDP"), Ok(entry(None))),
            (key("1.2.3.4", "53", "UDP"), Ok(entry(Some(peer.clone())))),
            (key("", "0", "UDP"), Ok(Entry { external_port: 0, ..entry(None) })),
            (key("", "53", "both"), Err(601)),
            (key("", "x", "UDP"), Err(402)),
            (key("somebody", "53", "UDP"), Err(402)),
        ] {
            let got = read(version, "DeletePortMapping", &args);
            assert_eq!(got, expected.clone().map(MappingAction::Delete), "{args:?}");
            let got = read(version, "GetSpecificPortMappingEntry", &args);
            assert_eq!(got, expected.map(MappingAction::GetSpecific), "{args:?}");
        }
        assert_eq!(read(version, "DeletePortMapping", &key("", "53", "")), Err(402)); // K-15
        assert_eq!(read(version, "GetSpecificPortMappingEntry", &key("", "53", "")), Err(601));
    }
}

/// Iwf.md 2.1: names of hosts, as WANIPConnection:2 allows them; Q-11: in InternalClient they occur anyway.
#[test]
fn host_names() {
    for (version, name, value, expected) in [
        (2, "NewRemoteHost", "Peer.Example.NET", Some("peer.example.net")),
        (2, "NewRemoteHost", " peer-1.example.net. ", Some("peer-1.example.net")),
        (1, "NewRemoteHost", "peer.example.net", None),
        (2, "NewRemoteHost", "undefined", None), // K-7
        (2, "NewRemoteHost", "peer..example.net", None),
        (2, "NewRemoteHost", "-peer.example.net", None),
        (2, "NewRemoteHost", "peer.example.net:80", None),
        (2, "NewRemoteHost", "peer.exa mple.net", None),
        (2, "NewRemoteHost", "10.0.0.0x9", None), // security policy: no address in disguise
        (2, "NewRemoteHost", "1.2.3", None),
        (1, "NewInternalClient", "laptop", Some("laptop")),
        (2, "NewInternalClient", "laptop.lan", Some("laptop.lan")),
        (2, "NewInternalClient", "lap/top", None),
        (2, "NewInternalClient", "0x7f000001", None),
    ] {
        let got = match read(version, "AddPortMapping", &with(name, value)) {
            Ok(MappingAction::Add(AddRequest { request, internal_name })) => {
                assert_eq!(request.remote_peer, None);
                request.remote_name.or(internal_name)
            }
            other => {
                assert_eq!(other, Err(402), "{value}");
                None
            }
        };
        assert_eq!(got.as_deref(), expected, "{value} :{version}");
    }
    let long = format!("{}.net", "a".repeat(64));
    assert_eq!(host_name(&long), None);
    assert!(host_name(&long[1..]).is_some());
    assert_eq!(host_name(&"abc.".repeat(64)), None);
}

///
#[test]
fn indexes_and_ranges() {
    let get = |index| read(1, "GetGenericPortMappingEntry", &[("NewPortMappingIndex", index)]);
    assert_eq!(get("65535"), Ok(MappingAction::GetGeneric(65535)));
    assert_eq!(get("65536"), Ok(MappingAction::GetGeneric(65_536)));
    let range = |first, last| {
        [("NewStartPort", first), ("NewEndPort", last), ("NewProtocol", "TCP"), ("NewManage", "1")]
    };
    let typed = |first, last| Range { protocol: Protocol::TCP, first, last };
    for (first, last, expected) in [
        ("0", "65535", Ok(typed(0, 65535))),
        ("7", "7", Ok(typed(7, 7))),
        ("8", "7", Err(733)),
        ("1", "65536", Err(601)),
    ] {
        let got = read(2, "DeletePortMappingRange", &range(first, last));
        assert_eq!(got, expected.map(MappingAction::DeleteRange));
        for (most, limit) in [("0", usize::MAX), ("3", 3)] {
            let args = [&range(first, last)[..], &[("NewNumberOfPorts", most)]].concat();
            let got = read(2, "GetListOfPortMappings", &args);
            assert_eq!(got, expected.map(|range| MappingAction::List(range, limit)));
        }
    }
}

/// Who came by IPv6 and names nobody cannot be meant (K-3 needs the neighbour table).
#[test]
fn an_empty_internal_client_needs_an_ipv4_control_point() {
    let service_type = Service::WanIpConnection.service_type(2);
    let body = encode_call(&service_type, "AddPortMapping", &with("NewInternalClient", ""));
    let header = format!("{service_type}#AddPortMapping");
    let decoded = soap::decode(Service::WanIpConnection, Face::V2, Some(&header), body.as_bytes());
    let Ok(soap::Request::Call(call)) = decoded else { panic!("{decoded:?}") };
    let got = mapping_action(&call, None, None).unwrap();
    assert_eq!(got, Err(UpnpError::WILDCARD_SRC_IP)); // 715
}
