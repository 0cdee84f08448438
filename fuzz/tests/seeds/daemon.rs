//! Seeds of what the daemon reads: journals, hooks of DHCP clients, the control socket, heads of HTTP requests; and of events of DHCP and of a
//! provider's router that speaks UPnP.

use super::Seed;

pub(super) fn seeds(seeds: &mut Vec<Seed>) {
    let mut add = |target, name: &str, data: &[u8]| seeds.push((target, name.to_owned(), data.to_vec()));
    for (name, text) in [
        ("dhclient", "dhclient BOUND wan0\nnew_pcp_server=4:c6:33:64:1:8:c0:0:2:1:c0:0:2:2\n"),
        ("dhclient6", "dhclient RENEW6 wan0\nnew_dhcp6_pcp_server=2001:db8::1 ::ffff:192.0.2.1\n"),
        ("dhcpcd", "dhcpcd INFORM wan0\nnew_pcp_servers=04c6336401\n"),
        ("dhcpcd-over", "dhcpcd NOCARRIER wan0\n"),
        ("udhcpc", "udhcpc bound wan0\nopt158=04c633640104c0000201\n"),
        ("odhcp6c", "odhcp6c informed wan0\nOPTION_86=20010db8000000000000000000000001\n"),
        ("set", "set4 x wan0\nserver=192.0.2.1,192.0.2.2\nserver=198.51.100.1\n"),
        ("set-octets", "set6 x wan0\noctets=20010db8000000000000000000000001\n"),
        ("no-interface", "dhclient BOUND ../wan0\nnew_pcp_server=04:$(reboot)\n"),
    ] {
        add("dhcp_hook", name, text.as_bytes());
    }
    for (name, text) in [
        ("two", "# a comment\n\n192.0.2.1 192.0.2.2\n2001:db8::1\n"),
        ("none", "# PCP servers that DHCPv4 offers on wan0, by portferry dhcp-servers\n"),
        ("unusable", "127.0.0.1 224.0.0.1\n::1 192.0.2.1\n"),
        ("no-address", "192.0.2.1; reboot\n"),
    ] {
        add("dhcp_offer", name, text.as_bytes());
    }
    for (name, text) in [
        ("status", "status\n"),
        ("mappings", "mappings\n"),
        ("pinholes", "pinholes"),
        ("release", "release 192.168.1.10\r\n"),
        ("release6", "release 2001:db8::10\n"),
        ("servers", "dhcp-servers\n"),
    ] {
        add("control_question", name, text.as_bytes());
    }
    for (name, text) in [
        ("ours", "192.168.1.1:5000"),
        ("ours-without-port", " 192.168.1.1\nhttp://192.168.1.1:5000\nsame-origin"),
        ("rebinding", "router.example:5000\nhttp://evil.example\ncross-site"),
        ("bracketed", "[192.168.1.1%25lan]:5000\nnull\nnone"),
        ("none", "\n\n"),
    ] {
        add("http_head", name, text.as_bytes());
    }
    let stamp = "\"at\":1799999000,\"boot\":7,\"up\":99000";
    let nonce = "[1,2,3,4,5,6,7,8,9,10,11,12]";
    let mapping = |port: u16, more: &str| {
        format!(
            "{{\"put\":{{\"protocol\":6,\"external\":\"198.51.100.7:{port}\",\"internal\":\"192.168.1.10:80\",\"nat_port\":{port},\
             \"remote_peer\":null,\"description\":\"a \\\"game\\\"\",\"strict\":true,\"made\":3,\"lease_left\":7200,{more}\
             \"nonce\":{nonce},{stamp}}}}}\n"
        )
    };
    let pinhole = format!(
        "{{\"pinhole\":{{\"id\":7,\"protocol\":17,\"internal\":\"[2001:db8:1::10]:8080\",\"remote\":\"2001:db8:9::1\",\
         \"remote_port\":53,\"description\":\"p\",\"igd\":3600,\"pcp\":[{nonce},600],{stamp}}}}}\n"
    );
    let rest = format!(
        "{{\"probe\":{{\"nonce\":{nonce},\"wan\":\"wan0\"}}}}\n{{\"filtered\":{{\"source\":\"100.64.0.2\",\"third_party\":null,\
         \"protocol\":6,\"internal_port\":8080,{stamp}}}}}\n{{\"remove\":{{\"protocol\":6,\"external_port\":8080}}}}\n\
         {{\"no_pinhole\":{{\"id\":7}}}}\n"
    );
    let claims =
        format!("\"claims\":{{\"igd\":null,\"pcp\":[{nonce},600],\"nat_pmp\":30}},\"wan\":\"wan0\",");
    let all = [mapping(8080, ""), mapping(8081, &claims), mapping(8082, "\"before\":8081,"), pinhole, rest];
    add("gateway_journal", "mapping", all[0].as_bytes());
    add("gateway_journal", "claims", all[1..3].concat().as_bytes());
    add("gateway_journal", "everything", all.concat().as_bytes());
    add("gateway_journal", "torn", &all.concat().as_bytes()[..700]);

    let key = "\"addr\":\"10.0.0.5\",\"protocol\":6,\"internal_port\":8080";
    let put = format!(
        "{{\"put\":{{{key},\"external\":\"198.51.100.7:8080\",\"ports\":1,\"nonce\":{nonce},\"companion\":false,\
         \"requester\":\"10.0.0.5\",\"filters\":[[128,0,\"::ffff:203.0.113.9\"]],\"description\":\"d\",\"left\":3600,{stamp}}}}}\n"
    );
    let hold = format!(
        "{{\"hold\":{{\"addr\":\"10.0.0.6\",\"protocol\":17,\"internal_port\":53,\"external\":\"198.51.100.7:9000\",\"ports\":2,\
         \"nonce\":null,\"requester\":\"10.0.0.6\",\"freed_after\":1200,\"held\":120,{stamp}}}}}\n"
    );
    let removed = format!("{{\"remove\":{{{key}}}}}\n");
    let ended = put.replace("3600", "10");
    add("server_journal", "mapping", put.as_bytes());
    add("server_journal", "hold", hold.as_bytes());
    add("server_journal", "ended", ended.as_bytes());
    add("server_journal", "everything", [put, hold, removed, ended].concat().as_bytes());

    // See `dhcp_events` for what the octets mean.
    let v4 = [&[0x08, 1, 12][..], &[0x04, 0, 5, 4, 192, 0, 2, 1, 1, 27]].concat();
    let mut v6 = vec![0x88, 1, 12, 0x84, 0, 16];
    v6.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 27, 0x80]);
    add("dhcp_events", "v4", &v4);
    add("dhcp_events", "v6", &v6);
    add("dhcp_events", "silence", &[0x08, 0x88, 1, 31, 1, 31, 0x02, 0x82, 1, 31, 0, 0x80]);
    add("dhcp_events", "both", &[v4, v6].concat());

    // See `gateway_events`: mode first, then steps; 6 is an answer of the router.
    let add_port = |host: u8, port: u8| [2, 0, host, 0, port, port, 3];
    let delete = |host: u8, port: u8| [2, 2, host, 0, port, port, 3];
    let helpful =
        [&[0][..], &add_port(0, 0), &add_port(1, 0), &[1, 20, 1, 22], &delete(0, 0), &[15, 255]].concat();
    let by_hand = |shape: u8| {
        let answers = [6, 0, 6, 0, 10, 1, 12, 6, shape, 0, 6, 0, 10];
        let mut data = vec![4, 6, 0, 6, 0, 12, 10];
        data.extend(add_port(0, 0));
        data.extend([12, 10]);
        data.extend(answers);
        data.extend(delete(0, 0));
        data.extend([answers, answers].concat());
        data
    };
    add("isp_router_events", "helpful", &helpful);
    add("isp_router_events", "by-hand", &by_hand(0));
    add("isp_router_events", "faults", &by_hand(1));
    add("isp_router_events", "lies", &by_hand(3));
}
