//! A host is one host by all of its addresses (K-3, decision 27): a control point that speaks over IPv6, and whose IPv4 addresses are
//! known.

use super::*;

/// Alice, on the LAN's link.
const ALICE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x10));
/// Everywhere, and nothing that a mapping leads to.
const ALICE_GLOBAL: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10));
/// Another address of hers.
const ALICE_TOO: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 20);

impl Lab {
    fn call_v6(
        &mut self,
        also: &[Ipv4Addr],
        version: u8,
        action: &str,
        args: &[(&'static str, String)],
    ) -> Heard {
        let also: Vec<IpAddr> = also.iter().copied().map(IpAddr::V4).chain([ALICE_GLOBAL]).collect();
        let id = self.start_from(ALICE_V6, &also, version, action, &borrowed(args));
        self.heard(id).unwrap_or_else(|| panic!("{action} is not answered yet"))
    }

    /// AddPortMapping with these words as NewInternalClient.
    fn add_v6(&mut self, also: &[Ipv4Addr], version: u8, external: u16, client: &str) -> Heard {
        let mut args = port(external).args(ALICE);
        args[4].1 = client.into();
        self.call_v6(also, version, "AddPortMapping", &args)
    }
}

/// Whom NewInternalClient may name, and what none of it means.
#[test]
fn who_may_be_the_internal_client() {
    for nat in BOTH {
        for (also, client, one, two, internal) in [
            (&[ALICE][..], "192.168.1.10", done(), done(), Some(ALICE)),
            (&[ALICE], "", done(), done(), Some(ALICE)),
            (&[ALICE], "192.168.1.11", Err(718), Err(606), None), // Bob
            (&[ALICE], "192.168.1.1", Err(718), Err(606), None),  // the router
            (&[], "192.168.1.10", Err(718), Err(606), None),      // nothing is known of it
            (&[], "", Err(715), Err(715), None),
            (&[ALICE, ALICE_TOO], "192.168.1.20", done(), done(), Some(ALICE_TOO)),
            (&[ALICE, ALICE_TOO], "", Err(715), Err(715), None), // which of them?
        ] {
            for (version, heard) in [(1, one), (2, two)] {
                let mut lab = Lab::up(nat);
                assert_eq!(lab.add_v6(also, version, 8080, client), heard, "{also:?} {client:?} :{version}");
                let mapped: Vec<_> = internal.map(|host| (8080, at(host, 8080))).into_iter().collect();
                assert_eq!(lab.mapped(), mapped);
            }
        }
    }
}

/// What is made by one address is the host's by another: again, looked at, deleted one by one and by ranges.
#[test]
fn by_whichever_address() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        let own = [ALICE];
        assert_eq!(lab.add(ALICE, 2, port(8080)), done());
        assert_eq!(lab.add_v6(&own, 2, 8080, ""), done(), "its own again");
        assert_eq!(lab.add_v6(&own, 2, 8081, ""), done());
        assert_eq!(lab.add(ALICE, 2, port(8081)), done());
        assert_eq!(lab.add(BOB, 2, port(8082)), done());
        assert_eq!(lab.mapped().len(), 3);
        //
        let external = lab.call_v6(&own, 2, "GetExternalIPAddress", &[]);
        assert_eq!(external, Ok(vec![E.to_string()]));

        assert_eq!(lab.call_v6(&[], 2, "DeletePortMapping", &key(8080)), Err(606), "nobody's host");
        assert_eq!(lab.call_v6(&own, 2, "DeletePortMapping", &key(8082)), Err(606), "Bob's");
        assert_eq!(lab.call_v6(&own, 2, "DeletePortMapping", &key(8080)), done());
        let range =
            [("NewStartPort", "1"), ("NewEndPort", "65535"), ("NewProtocol", "TCP"), ("NewManage", "1")];
        let range = range.map(|(name, value)| (name, value.to_owned()));
        assert_eq!(lab.call_v6(&[], 2, "DeletePortMappingRange", &range), Err(730));
        assert_eq!(lab.call_v6(&own, 2, "DeletePortMappingRange", &range), done());
        assert_eq!(lab.mapped(), [(8082, at(BOB, 8082))]);
        assert_eq!(lab.add_v6(&own, 2, 8083, ""), done());
        assert_eq!(lab.delete(ALICE, 2, 8083), done());
    }
}

/// R-24, T-2: what it asks about is held for the host.
#[test]
fn a_probe_is_for_the_host() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.call_v6(&[], 2, "GetSpecificPortMappingEntry", &key(8080)), Err(714));
    assert_eq!(lab.sent(), [], "there is nobody to hold it for");
    assert_eq!(lab.call_v6(&[ALICE], 2, "GetSpecificPortMappingEntry", &key(8080)), Err(714));
    assert_eq!(lab.sent().len(), 1);
    assert_eq!(lab.add(BOB, 2, port(8080)), Err(718));
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    assert_eq!(lab.upstream().len(), 1);
}

/// Decision 27: a host's quota is that of all of its addresses.
#[test]
fn a_quota_is_the_hosts() {
    for nat in BOTH {
        let mut settings = config(nat);
        settings.policy.mappings_per_host = 3;
        let mut lab = Lab::up_with(settings);
        let own = [ALICE, ALICE_TOO];
        assert_eq!(lab.add(ALICE, 2, port(5000)), done());
        assert_eq!(lab.add_v6(&own, 2, 5001, "192.168.1.20"), done());
        assert_eq!(lab.add_v6(&own, 2, 5002, "192.168.1.10"), done());
        assert_eq!(lab.add_v6(&own, 2, 5003, "192.168.1.10"), Err(728));
        assert_eq!(lab.add_v6(&own, 2, 5003, "192.168.1.20"), Err(728));
        assert_eq!(lab.add_v6(&own, 2, 5001, "192.168.1.20"), done(), "it has this one");
    }
}

/// A name for the internal client has to come out as one of the host's addresses; where none is known, nothing is looked up.
#[test]
fn a_name_is_looked_up_for_the_host() {
    for (addresses, heard) in [(&[BOB, ALICE][..], done()), (&[BOB], Err(606))] {
        let mut lab = Lab::up(NatMode::Own);
        let mut args = port(8080).args(ALICE);
        args[4].1 = "laptop".into();
        let remote = Add { remote: "peer.example", ..port(8080) }.args(ALICE);
        for args in [&args, &remote] {
            assert_eq!(lab.call_v6(&[], 2, "AddPortMapping", args), Err(606));
            assert_eq!(lab.lookups, []);
        }
        let id = lab.start_from(ALICE_V6, &[ALICE.into()], 2, "AddPortMapping", &borrowed(&args));
        let (lookup, _) = lab.lookups.pop().expect("it is looked up");
        lab.event(Event::Resolved { lookup, addresses: addresses.to_vec() });
        assert_eq!(lab.heard(id), Some(heard), "{addresses:?}");
    }
}
