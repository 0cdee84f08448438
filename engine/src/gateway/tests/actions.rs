//! Every action of the services, with its errors, as a control point calls it.

use wire::error::UpnpError;
use wire::listing::{self, ListingEntry};
use wire::services::{Action, DataType};

use super::*;
use crate::policy::Denied;

/// A-2, the whole table: against a mapping of Alice's of TCP 8080, by whom, for which remote host, how it is asked. Conflicts
/// are found here, without a packet (decision 3, D-12).
#[test]
fn a_2_the_whole_table() {
    let peer = "203.0.113.9";
    for nat in BOTH {
        for (remote, host, add, any) in [
            ("", ALICE, done(), Some(8080)), // overwrite
            ("", BOB, Err(718), None),
            (peer, ALICE, Err(718), None), // the vendor's choice: an error
            (peer, BOB, Err(718), None),
        ] {
            for by_any in [false, true] {
                let mut lab = Lab::up(nat);
                assert_eq!(lab.add(ALICE, 2, port(8080)), done());
                lab.seen();
                // Without a NAT another internal port, or T-3 would come first.
                let internal = if nat == NatMode::None && remote == peer { 8081 } else { 8080 };
                let wanted = Add { any: by_any, remote, ..port(8080) }.to(internal);
                let heard = lab.add(host, 2, wanted);
                let what = format!("{nat:?} {wanted:?} by {host}");
                match (by_any, any) {
                    (false, _) => assert_eq!(heard, add, "{what}"),
                    (true, Some(port)) => assert_eq!(heard, Ok(vec![port.to_string()]), "{what}"),
                    (true, None) => {
                        let port: u16 = heard.expect(&what)[0].parse().unwrap();
                        assert!(port != 8080 && lab.mapped().contains(&(port, at(host, internal))), "{what}");
                    }
                }
                let overwritten = remote.is_empty() && host == ALICE;
                if !by_any || overwritten {
                    assert_eq!(lab.sent(), [], "{what}: local first (decision 3)");
                    assert_eq!(lab.mapped().len(), 1, "{what}");
                }
            }
        }
        // Any difference in protocol or external port: success.
        let mut lab = Lab::up(nat);
        assert_eq!(lab.add(ALICE, 2, port(8080)), done());
        assert_eq!(lab.add(BOB, 2, port(8081)), done());
        let mut args = port(8080).args(BOB);
        args[2].1 = "UDP".into();
        assert_eq!(lab.call(BOB, 2, "AddPortMapping", &borrowed(&args)), done());
    }
}

/// A-2 between requests that are not answered yet: the first one has the port.
#[test]
fn a_2_against_what_is_in_flight() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        lab.script = [Reaction::Lose].into();
        let first = lab.start_add(ALICE, 2, port(8080));
        assert_eq!(lab.heard(first), None);
        assert_eq!(lab.add(BOB, 2, port(8080)), Err(718));
        assert_eq!(lab.add(BOB, 2, any(8080)), Ok(vec!["40001".into()]), "any other will do");
        assert_eq!(lab.add(ALICE, 2, port(8080).to(8081)), Err(718));
        if nat == NatMode::None {
            assert_eq!(lab.add(ALICE, 2, port(8082).to(8080)), Err(718), "T-3");
        }
        lab.pass(1);
        assert_eq!(lab.heard(first), Some(done()));
    }
}

/// Decision 2: identical requests in flight share one exchange.
#[test]
fn identical_requests_share_one_exchange() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        lab.script = [Reaction::Lose].into();
        let ids = [0, 1, 2].map(|_| lab.start_add(ALICE, 2, port(8080)));
        lab.pass(1);
        assert_eq!(ids.map(|id| lab.heard(id)), [Some(done()), Some(done()), Some(done())]);
        assert_eq!(lab.sent().len(), 2, "the lost one and its repetition");
        assert_eq!(lab.upstream().len(), 1);
    }
}

/// iwf.md 3, RFC 6970 §4.3: every PCP result, both columns, both add actions and the deletion (T-15), end to end; the same
/// with a NAT and without (D-3).
#[test]
fn both_error_columns() {
    for nat in BOTH {
        for (result, one, two) in [
            (2, 718, 606),
            (3, 501, 501),
            (4, 501, 501),
            (5, 501, 501),
            (6, 501, 501),
            (7, 501, 501),
            (8, 501, 728),
            (9, 501, 501),
            (10, 501, 728),
            (11, 718, 718),
            (12, 501, 501),
            (13, 501, 501),
            (15, 501, 501),
            (24, 501, 501),
            (192, 501, 501),
            (255, 501, 501),
        ] {
            let refuse = Reaction::Refuse(ResultCode(result), 30);
            for (version, code) in [(1, one), (2, two)] {
                for wanted in [port(8080), any(8080)] {
                    let mut lab = Lab::up(nat);
                    // Once more without the option, for those that are about an option.
                    lab.script = [refuse; 2].into();
                    assert_eq!(
                        lab.add(ALICE, version, wanted),
                        Err(code),
                        "{result} to {wanted:?}, :{version}"
                    );
                    assert_eq!((lab.mapped(), lab.rules.len()), (vec![], 0));
                    lab.script.clear();
                    lab.pass(60);
                    assert_eq!(lab.add(ALICE, version, port(8080)), done(), "nothing was left behind");
                }
                let mut lab = Lab::up(nat);
                assert_eq!(lab.add(ALICE, version, port(8080)), done());
                lab.script = [refuse].into();
                let heard = lab.delete(ALICE, version, 8080);
                match result {
                    8 => assert_eq!((heard, lab.mapped()), (done(), vec![]), "K-17: nothing to delete"),
                    11 => assert_eq!(heard, Err(714), "§5.8"),
                    _ => assert_eq!(heard, Err(code), "{result} to a delete, :{version}"),
                }
            }
        }
    }
}

/// mappings are listed and found from the table, never by an exchange; what is left of the
/// lease is the control point's, not the provider's (2.5).
#[test]
fn listing_by_index_and_key() {
    let settings = Config { get_specific: GetSpecific::Local, ..config(NatMode::Own) };
    let mut lab = Lab::up_with(settings);
    lab.provider().config_mut().longest = 600;
    for (n, host) in [(0, ALICE), (1, BOB), (2, ALICE)] {
        let lease = [3600, 0, 7200][usize::from(n)];
        let description = ["<one> & \"two\"", "", "drei ß"][usize::from(n)];
        assert_eq!(lab.add(host, 1, Add { lease, description, ..port(8080 + n).to(9090) }), done());
    }
    lab.pass(100);
    lab.effects.clear();
    let entry = |lab: &mut Lab, n: u16| {
        lab.call(BOB, 1, "GetGenericPortMappingEntry", &[("NewPortMappingIndex", &n.to_string())])
    };
    let row = |port: u16, host: Ipv4Addr, description: &str, lease: &str| -> Heard {
        let values = ["", &port.to_string(), "TCP", "9090", &host.to_string(), "1", description, lease];
        Ok(values.map(str::to_owned).to_vec())
    };
    assert_eq!(entry(&mut lab, 0), row(8080, ALICE, "<one> & \"two\"", "3500"));
    assert_eq!(entry(&mut lab, 1), row(8081, BOB, "", "0"), "for ever");
    assert_eq!(entry(&mut lab, 2), row(8082, ALICE, "drei ß", "7100"));
    assert_eq!(entry(&mut lab, 3), Err(713));
    assert_eq!(entry(&mut lab, 65535), Err(713));
    let specific = lab.call(BOB, 1, "GetSpecificPortMappingEntry", &borrowed(&key(8082)));
    assert_eq!(specific.unwrap(), ["9090", "192.168.1.10", "1", "drei ß", "7100"]);
    for (remote, port, protocol, code) in [
        ("", "8083", "TCP", 714),
        ("", "8080", "UDP", 714),
        ("203.0.113.9", "8080", "TCP", 714),
        ("", "0", "TCP", 714),
        ("undefined", "8080", "TCP", 402),
        ("", "8080", "ICMP", 601),
    ] {
        let args = [("NewRemoteHost", remote), ("NewExternalPort", port), ("NewProtocol", protocol)];
        for version in [1, 2] {
            assert_eq!(lab.call(BOB, version, "GetSpecificPortMappingEntry", &args), Err(code), "{args:?}");
        }
    }
    assert_eq!(lab.sent(), []);
    // Compacted on delete.
    assert_eq!(lab.delete(ALICE, 1, 8080), done());
    assert_eq!(entry(&mut lab, 0), row(8082, ALICE, "drei ß", "7100"));
    assert_eq!(entry(&mut lab, 1), row(8081, BOB, "", "0"));
    assert_eq!(entry(&mut lab, 2), Err(713));
}

/// D-10: ranges, whose entries they hold, how many; one MAP for each. Listings show everybody's
/// (decision 29).
#[test]
fn ranges() {
    let mut lab = Lab::up(NatMode::Own);
    for (host, external) in [(ALICE, 5000), (BOB, 5001), (ALICE, 5002), (ALICE, 6000)] {
        assert_eq!(lab.add(host, 2, Add { description: "a ]]> b", ..port(external) }), done());
    }
    let range = |first: u16, last: u16, protocol: &'static str| {
        vec![
            ("NewStartPort", first.to_string()),
            ("NewEndPort", last.to_string()),
            ("NewProtocol", protocol.to_owned()),
            ("NewManage", "1".to_owned()),
        ]
    };
    let list = |lab: &mut Lab, first, last, protocol, most: &str| {
        let mut args = range(first, last, protocol);
        args.push(("NewNumberOfPorts", most.to_owned()));
        let listing = lab.call(BOB, 2, "GetListOfPortMappings", &borrowed(&args))?.remove(0);
        Ok(listing::decode(&listing).expect("a well-formed listing"))
    };
    let entry = |external_port, host: Ipv4Addr| ListingEntry {
        remote_host: String::new(),
        external_port,
        protocol: "TCP".into(),
        internal_port: external_port,
        internal_client: host.to_string(),
        enabled: true,
        description: "a ]]> b".into(),
        lease: 3600,
    };
    // Decision 29: listings show everybody's.
    let all = vec![entry(5000, ALICE), entry(5001, BOB), entry(5002, ALICE)];
    assert_eq!(list(&mut lab, 5000, 5999, "TCP", "0"), Ok(all.clone()));
    assert_eq!(list(&mut lab, 5000, 5999, "TCP", "2"), Ok(all[..2].to_vec()));
    assert_eq!(list(&mut lab, 5001, 5001, "TCP", "9"), Ok(all[1..2].to_vec()));
    assert_eq!(list(&mut lab, 5003, 5999, "TCP", "0"), Err(730));
    assert_eq!(list(&mut lab, 5000, 5999, "UDP", "0"), Err(730));
    assert_eq!(list(&mut lab, 5999, 5000, "TCP", "0"), Err(733));

    let delete = |lab: &mut Lab, host, first, last, protocol| {
        lab.call(host, 2, "DeletePortMappingRange", &borrowed(&range(first, last, protocol)))
    };
    lab.effects.clear();
    assert_eq!(delete(&mut lab, ALICE, 5999, 5000, "TCP"), Err(733));
    assert_eq!(delete(&mut lab, ALICE, 5000, 5999, "UDP"), Err(730));
    assert_eq!(delete(&mut lab, ALICE, 5001, 5001, "TCP"), Err(730), "NewManage loosens nothing");
    assert_eq!(lab.sent(), []);
    assert_eq!(delete(&mut lab, ALICE, 5000, 5999, "TCP"), done());
    assert_eq!(lab.sent().len(), 2, "R-30: one MAP for each");
    assert_eq!(lab.mapped(), [(5001, at(BOB, 5001)), (6000, at(ALICE, 6000))]);
    assert_eq!(lab.upstream().len(), 2);
    assert_eq!(delete(&mut lab, ALICE, 0, 65535, "TCP"), done());
    assert_eq!(lab.mapped(), [(5001, at(BOB, 5001))]);
    assert_eq!(lab.rules, [tcp(5001, at(BOB, 5001))]);
}

/// whose it is first, then whether it is there, then the server's word.
#[test]
fn deleting() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.delete(ALICE, 1, 8080), Err(714));
        assert_eq!(lab.add(ALICE, 2, port(8080)), done());
        lab.seen();
        assert_eq!(lab.delete(BOB, 1, 8080), Err(714), "as :1 (Q-15)");
        assert_eq!(lab.delete(BOB, 2, 8080), Err(606));
        // K-15: by the internal port, or for another protocol, nothing is there.
        assert_eq!(lab.delete(ALICE, 2, 8081), Err(714));
        assert_eq!(lab.sent(), []);
        assert_eq!(lab.delete(ALICE, 2, 8080), done());
        let (_, sent) = lab.sent().remove(0);
        assert_eq!((sent.lifetime, map_of(&sent).external_port), (0, 0), "RFC 6887 §15.1");
        assert_eq!((lab.mapped(), lab.upstream(), lab.rules.len()), (vec![], vec![], 0));
        assert_eq!(lab.delete(ALICE, 2, 8080), Err(714));
    }
}

/// R-39, the security policy and decisions 27 and 28, end to end: the answer by version (decision 10), and not one packet.
#[test]
fn what_policy_refuses() {
    let mut lab = Lab::up(NatMode::Own);
    lab.seen();
    let client = |addr: [u8; 4]| Add { client: Some(addr.into()), ..port(8080) };
    for (wanted, denied) in [
        (port(80), Denied::LowPort(1024)),
        (port(8080).to(80), Denied::LowPort(1024)),
        (Add { client: Some(BOB), ..port(8080) }, Denied::OtherHost),
        (Add { client: Some(LAN), ..port(8080) }, Denied::NeverMapped),
        (client([127, 0, 0, 1]), Denied::NeverMapped),
        (client([224, 0, 0, 1]), Denied::NeverMapped),
        (client([192, 168, 1, 255]), Denied::NeverMapped),
        (client(W.octets()), Denied::NeverMapped),
        (client([8, 8, 8, 8]), Denied::OffLan),
    ] {
        for (version, code) in [(1, 718), (2, 606)] {
            lab.effects.clear();
            assert_eq!(lab.add(ALICE, version, wanted), Err(code), "{wanted:?}");
            let internal = at(wanted.client.unwrap_or(ALICE), wanted.internal);
            let told =
                Notice::Denied(IpAddr::V4(ALICE), Protocol::TCP, Some(wanted.external), internal, denied);
            assert_eq!(lab.notices(), [told]);
            assert!(matches!(lab.seen()[..], [Effect::Reply { .. }]));
        }
    }
}

/// R-41, decision 27: so many mappings a host, and in all; what a host has may be renewed, and joined, all the same.
#[test]
fn quotas() {
    for nat in BOTH {
        let mut settings = config(nat);
        settings.policy.mappings_per_host = 3;
        settings.policy.mappings = 5;
        let mut lab = Lab::up_with(settings);
        for n in 0..2 {
            assert_eq!(lab.add(ALICE, 2, port(5000 + n)), done());
        }
        lab.script = [Reaction::Lose].into();
        let third = lab.start_add(ALICE, 2, port(5002));
        let again = lab.start_add(ALICE, 2, port(5002));
        assert_eq!(lab.add(ALICE, 2, port(5003)), Err(728), "what is in flight counts");
        assert_eq!(lab.add(ALICE, 1, port(5003)), Err(501));
        lab.pass(1);
        assert_eq!((lab.heard(third), lab.heard(again)), (Some(done()), Some(done())));
        assert_eq!(lab.add(ALICE, 2, port(5002)), done(), "it has this one");
        assert_eq!(lab.add(BOB, 2, port(6000)), done());
        assert_eq!(lab.add(BOB, 2, port(6001)), done());
        assert_eq!(lab.add(BOB, 2, port(6002)), Err(728), "in all");
        // Its own port, but for somebody else: AddAnyPortMapping would make another mapping.
        let beside = Add { any: true, remote: "203.0.113.9", internal: 6010, ..port(6000) };
        assert_eq!(lab.add(BOB, 2, beside), Err(728), "in all, beside what it has");
        assert_eq!(lab.add(BOB, 2, Add { any: false, ..beside }), Err(718), "nothing new could come of it");
        assert_eq!(lab.delete(ALICE, 2, 5000), done());
        assert_eq!(lab.add(BOB, 2, port(6002)), done());
    }
}

/// A-15, igd.md 6 and 7, decision 12: what is answered from state, whatever the uplink does.
#[test]
fn answers_from_state() {
    let mut lab = Lab::up(NatMode::Own);
    let values = |values: &[&str]| -> Heard { Ok(values.iter().map(|&value| value.to_owned()).collect()) };
    let speed = "1000000000";
    for (action, one, two) in [
        ("GetConnectionTypeInfo", values(&["IP_Routed", "IP_Routed"]), None),
        ("GetStatusInfo", values(&["Connected", "ERROR_NONE", "10"]), None),
        ("GetNATRSIPStatus", values(&["0", "1"]), None),
        ("GetExternalIPAddress", values(&["198.51.100.7"]), None),
        ("RequestConnection", done(), None),
        ("RequestTermination", Err(501), Some(Err(606))),
        ("ForceTermination", Err(501), Some(Err(606))),
        ("GetCommonLinkProperties", values(&["Ethernet", speed, speed, "Up"]), None),
    ] {
        assert_eq!(lab.call(ALICE, 1, action, &[]), one, "{action} :1");
        assert_eq!(lab.call(ALICE, 2, action, &[]), two.unwrap_or(one), "{action} :2");
    }
    let args = [("NewConnectionType", "IP_Bridged")];
    assert_eq!(lab.call(ALICE, 1, "SetConnectionType", &args), Err(703));
    assert_eq!(lab.call(ALICE, 2, "SetConnectionType", &args), Err(731));
    assert!(lab.seen().iter().all(|effect| matches!(effect, Effect::Reply { .. })), "no exchange");

    let mut lab = Lab::new(config(NatMode::Own));
    assert_eq!(lab.call(ALICE, 2, "RequestConnection", &[]), Err(704));
    assert_eq!(lab.call(ALICE, 2, "GetStatusInfo", &[]), values(&["Disconnected", "ERROR_NONE", "0"]));
    assert_eq!(lab.call(ALICE, 2, "GetExternalIPAddress", &[]), values(&[""]));
    let link = lab.call(ALICE, 2, "GetCommonLinkProperties", &[]);
    assert_eq!(link, values(&["Ethernet", "100000000", "100000000", "Down"]));
}

/// igd.md 5: WANPPPConnection:1 is another name of WANIPConnection:1. What it has beyond that is answered by a router without PPP:
/// the link's rates are true, there is no user and no protocol, and no user can be set.
#[test]
fn wan_ppp_connection_by_another_name() {
    const PPP: &str = "urn:schemas-upnp-org:service:WANPPPConnection:1";
    let mut lab = Lab::up(NatMode::Own);
    let mut call = |action: &str, args: &[(&str, &str)]| -> Heard {
        let (id, face) = (RequestId(1_000_000), Face::V1);
        let body = encode_call(PPP, action, args);
        let header = format!("{PPP}#{action}");
        match soap::decode(Service::WanIpConnection, face, Some(&header), body.as_bytes()) {
            Ok(request) => lab.event(Event::Control(ControlRequest {
                id,
                from: ALICE.into(),
                also: Vec::new(),
                face,
                request,
            })),
            Err(SoapError::Upnp(error)) => return Err(error.code),
            Err(SoapError::BadRequest) => panic!("{body}"),
        }
        lab.heard.remove(&id).expect("answered at once")
    };
    let values = |values: &[&str]| -> Heard { Ok(values.iter().map(|&value| value.to_owned()).collect()) };
    let add = port(8080).args(ALICE);
    let (key, entry) = (key(8080), ["8080", "192.168.1.10", "1", "test", "3600"]);
    let (user, low) = ([("NewUserName", "bob"), ("NewPassword", "x")], port(80).args(ALICE));
    for (action, args, heard) in [
        ("GetConnectionTypeInfo", &[][..], values(&["IP_Routed", "IP_Routed"])),
        ("GetStatusInfo", &[], values(&["Connected", "ERROR_NONE", "10"])),
        ("GetExternalIPAddress", &[], values(&["198.51.100.7"])),
        ("GetNATRSIPStatus", &[], values(&["0", "1"])),
        ("RequestConnection", &[], done()),
        ("ForceTermination", &[], Err(501)),
        ("SetConnectionType", &[("NewConnectionType", "PPPoE_Bridged")], Err(703)),
        ("AddPortMapping", &borrowed(&add), done()),
        ("AddPortMapping", &borrowed(&low), Err(718)), // and no 606, as to :1
        ("GetSpecificPortMappingEntry", &borrowed(&key), values(&entry)),
        ("DeletePortMapping", &borrowed(&key), done()),
        ("DeletePortMapping", &borrowed(&key), Err(714)),
        ("GetLinkLayerMaxBitRates", &[], values(&["1000000000", "1000000000"])),
        ("GetPPPEncryptionProtocol", &[], values(&[""])),
        ("GetPPPCompressionProtocol", &[], values(&[""])),
        ("GetPPPAuthenticationProtocol", &[], values(&[""])),
        ("GetUserName", &[], values(&[""])),
        ("GetPassword", &[], values(&[""])),
        ("ConfigureConnection", &user, Err(501)),
        ("ConfigureConnection", &[], Err(402)),
        ("GetIdleDisconnectTime", &[], Err(401)),
    ] {
        assert_eq!(call(action, args), heard, "{action}");
    }
}

/// igd.md 7: the one connection service there is, by both faces; 720, 721 and 723 for the others.
#[test]
fn the_default_connection_service() {
    let mut lab = Lab::up(NatMode::Own);
    let own = lab.call(ALICE, 1, "GetDefaultConnectionService", &[]).unwrap().remove(0);
    let (device, service) = own.split_once(',').unwrap();
    assert!(device.starts_with("uuid:") && device.ends_with(":WANConnectionDevice:1"), "{own}");
    assert_eq!(service, "urn:upnp-org:serviceId:WANIPConn1");
    for (value, heard) in [
        (own.clone(), done()),
        (format!(" {own} "), done()),
        ("nonsense".to_owned(), Err(402)),
        (format!("uuid:00000000-0000-0000-0000-000000000000:WANConnectionDevice:1,{service}"), Err(720)),
        (format!("{device},urn:upnp-org:serviceId:WANPPPConn1"), Err(721)),
        (format!("{}:9,{service}", device.rsplit_once(':').unwrap().0), Err(723)),
    ] {
        let args = [("NewDefaultConnectionService", value.as_str())];
        assert_eq!(lab.call(ALICE, 1, "SetDefaultConnectionService", &args), heard, "{value}");
    }
}

/// igd.md 6: the counters are `ui4` and wrap; 501 when they cannot be read, or nobody reads them in time.
#[test]
fn traffic_counters() {
    let mut lab = Lab::up(NatMode::Own);
    let four = u64::from(u32::MAX) + 1;
    lab.counters = Some(Counters {
        bytes_sent: 5 * four + 7,
        bytes_received: four - 1,
        packets_sent: four,
        packets_received: 3,
    });
    for (action, value) in [
        ("GetTotalBytesSent", "7"),
        ("GetTotalBytesReceived", "4294967295"),
        ("GetTotalPacketsSent", "0"),
        ("GetTotalPacketsReceived", "3"),
    ] {
        assert_eq!(lab.call(ALICE, 1, action, &[]), Ok(vec![value.to_owned()]));
    }
    lab.counters = None;
    assert_eq!(lab.call(ALICE, 1, "GetTotalBytesSent", &[]), Err(501));
    lab.mute = true;
    let id = lab.start(ALICE, 1, "GetTotalBytesSent", &[]);
    lab.run(lab.now + 3499);
    assert_eq!(lab.heard(id), None);
    lab.run(lab.now + 1);
    assert_eq!(lab.heard(id), Some(Err(501)));
    // Answers to nothing.
    for request in [id, RequestId(999)] {
        lab.event(Event::Counters { request, counters: Some(Counters::default()) });
    }
}

/// K-9: every variable of every service has a value of its type and among its allowed ones, on an empty table and a
/// full one.
#[test]
fn query_state_variable() {
    for mappings in [0, 2] {
        let mut lab = Lab::up(NatMode::Own);
        for n in 0..mappings {
            assert_eq!(lab.add(ALICE, 2, Add { remote: "203.0.113.9", ..port(8080 + n).to(9090) }), done());
        }
        for service in Service::ALL {
            for variable in service.variables().iter().chain(service.ppp_variables()) {
                let id = RequestId(1_000_000);
                let request = soap::Request::Query { service, variable };
                let face = Face::V2;
                lab.event(Event::Control(ControlRequest {
                    id,
                    from: IpAddr::V4(BOB),
                    also: Vec::new(),
                    face,
                    request,
                }));
                let heard = lab.heard.remove(&id).unwrap();
                let value = heard.unwrap_or_else(|code| panic!("{}: {code}", variable.name)).remove(0);
                let fits = match variable.data_type {
                    DataType::String => true,
                    DataType::Ui2 => value.parse::<u16>().is_ok(),
                    DataType::Ui4 => value.parse::<u32>().is_ok(),
                    DataType::Boolean => ["0", "1"].contains(&value.as_str()),
                };
                assert!(fits, "{}: {value:?}", variable.name);
                if let wire::services::Allowed::Values(values) = variable.allowed {
                    assert!(values.contains(&value.as_str()), "{}: {value:?}", variable.name);
                }
                let expected = match variable.name {
                    "PortMappingNumberOfEntries" => mappings.to_string(),
                    "ExternalIPAddress" => "198.51.100.7".to_owned(),
                    "ConnectionStatus" => "Connected".to_owned(),
                    "InternalClient" if mappings > 0 => "192.168.1.10".to_owned(),
                    "RemoteHost" if mappings > 0 => "203.0.113.9".to_owned(),
                    "InternalPort" if mappings > 0 => "9090".to_owned(),
                    "PortMappingLeaseDuration" if mappings > 0 => "3600".to_owned(),
                    "UpstreamMaxBitRate" | "DownstreamMaxBitRate" => "1000000000".to_owned(),
                    "UserName" | "Password" | "PPPAuthenticationProtocol" => String::new(),
                    _ => continue,
                };
                assert_eq!(value, expected, "{}", variable.name);
            }
        }
    }
}

/// R-3, K-12: no action of the table is without an answer, and every answer has the out arguments of the table.
#[test]
fn every_action_of_the_table_is_answered() {
    for service in Service::ALL {
        for action in service.actions() {
            let mut lab = Lab::up(NatMode::Own);
            assert_eq!(lab.add(ALICE, 2, port(8080)), done());
            let Action { name, inputs, outputs, .. } = action;
            let args: Vec<(&str, &str)> =
                inputs.iter().map(|input| (input.name, usual(input.name))).collect();
            for version in [1, 2] {
                let heard = lab.call(ALICE, version, name, &args);
                match heard {
                    Ok(values) => assert_eq!(values.len(), outputs.len(), "{name}"),
                    Err(code) => {
                        assert!(UpnpError::from_code(code).is_some() && code != 401, "{name}: {code}");
                    }
                }
            }
        }
    }
}

fn usual(argument: &str) -> &'static str {
    match argument {
        "NewProtocol" => "TCP",
        "NewInternalClient" => "192.168.1.10",
        "NewRemoteHost" | "NewPortMappingDescription" => "",
        "NewEnabled" | "NewManage" => "1",
        "NewPortMappingIndex" | "NewNumberOfPorts" | "NewLeaseDuration" => "0",
        "NewStartPort" => "1024",
        "NewEndPort" => "65535",
        _ => "8080",
    }
}

/// A-13 and T-9: SystemUpdateID counts every change, once.
#[test]
fn system_update_id() {
    let mut lab = Lab::up(NatMode::Own);
    let id = |lab: &Lab| lab.status().system_update_id;
    assert_eq!(id(&lab), 0);
    assert_eq!(lab.add(ALICE, 2, Add { lease: 100, ..port(8080) }), done());
    assert_eq!(id(&lab), 1);
    assert_eq!(lab.add(BOB, 2, port(8080)), Err(718));
    assert_eq!(id(&lab), 1, "nothing has changed");
    assert_eq!(lab.add(ALICE, 2, Add { lease: 100, ..port(8080) }), done());
    assert_eq!(id(&lab), 2, "overwritten");
    lab.pass(101);
    assert_eq!((id(&lab), lab.mapped()), (3, vec![]), "its lease has ended");
}
