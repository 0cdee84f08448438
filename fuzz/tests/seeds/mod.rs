//! Valid inputs for every target: what fuzzing begins with.

mod daemon;

use std::net::Ipv4Addr;

use wire::description::{self, Identity, Udns, Uuid};
use wire::error::UpnpError;
use wire::listing::{self, ListingEntry};
use wire::pcp::{
    self, Body, Filter, MapData, Nonce, PcpOption, PeerData, PortSet, Prefix64, Protocol, ResultCode,
};
use wire::services::{Face, Service};
use wire::{dhcp, gena, natpmp, soap, ssdp};

type Seed = (&'static str, String, Vec<u8>);

/// Target, file, content.
pub(crate) fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    pcp(&mut seeds);
    natpmp(&mut seeds);
    dhcp(&mut seeds);
    ssdp(&mut seeds);
    soap(&mut seeds);
    documents(&mut seeds);
    gena(&mut seeds);
    rules(&mut seeds);
    gateway(&mut seeds);
    server(&mut seeds);
    daemon::seeds(&mut seeds);
    seeds
}

fn map() -> MapData {
    MapData {
        nonce: Nonce(*b"twelve bytes"),
        protocol: Protocol::TCP,
        internal_port: 8080,
        external_port: 8081,
        external_addr: pcp::mapped(Ipv4Addr::new(198, 51, 100, 1)),
    }
}

fn rules(seeds: &mut Vec<Seed>) {
    let miniupnpd = "allow 1024-65535 192.168.0.0/24 1024-65535\nallow 1024-65535 192.168.1.0/255.255.255.0 1024-65535\n\
        allow 12345 192.168.7.113/32 54321\ndeny 0-65535 0.0.0.0/0 0-65535\n";
    let ours = "allow 443 192.168.1.10 443 tcp\ndeny 8080 192.168.1.0/24 8080 udp\nallow 22 2001:db8:1::10 22\n\
        deny 0-65535 ::/0 0-65535\n";
    let none = "allow 80 192.168.1.1 80 \"^game .*\"\nallow 80-70 192.168.1.1 80\npermit 80 192.168.1.1 80\n";
    for (name, text) in [("miniupnpd", miniupnpd), ("ours", ours), ("none", none)] {
        seeds.push(("policy_rules", name.to_owned(), text.as_bytes().to_vec()));
    }
}

fn pcp(seeds: &mut Vec<Seed>) {
    let addr = pcp::mapped(Ipv4Addr::new(192, 168, 1, 10));
    let MapData { nonce, protocol, internal_port, external_port, external_addr } = map();
    let peer = PeerData {
        nonce,
        protocol,
        internal_port,
        external_port,
        external_addr,
        remote_port: 443,
        remote_addr: pcp::mapped(Ipv4Addr::new(203, 0, 113, 9)),
    };
    let options = vec![
        PcpOption::ThirdParty(addr),
        PcpOption::PreferFailure,
        PcpOption::Filter(Filter { prefix_len: 128, remote_port: 0, remote_addr: addr }),
        PcpOption::Description(b"game".to_vec()),
        PcpOption::PortSet(PortSet { size: 4, first_internal_port: 8080, parity: true }),
        PcpOption::Prefix64(Prefix64 {
            prefix: vec![0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0],
            suffix: vec![],
            ipv4_prefixes: vec![(24, Ipv4Addr::new(192, 0, 2, 0))],
        }),
        PcpOption::Unknown { code: pcp::OptionCode(222), data: vec![1, 2, 3, 4, 5] },
    ];
    let filters = pcp::GetData { protocol, internal_addr: addr, ..pcp::GetData::ALL };
    let next = |more, options| {
        PcpOption::Next(pcp::NextMapping {
            nonce,
            protocol,
            more,
            internal_addr: addr,
            external_addr,
            lifetime: 120,
            internal_port,
            external_port,
            options,
        })
    };
    for (name, body, options) in [
        ("get", Body::Get(filters), vec![next(true, options.clone()), next(false, vec![])]),
        ("announce", Body::Announce, vec![]),
        ("map", Body::Map(map()), vec![]),
        ("map-options", Body::Map(map()), options.clone()),
        ("peer", Body::Peer(peer), vec![]),
        ("other", Body::Other(pcp::Opcode(99), vec![1; 8]), vec![]),
    ] {
        let request =
            pcp::Request { lifetime: 3600, client_addr: addr, body: body.clone(), options: options.clone() };
        seeds.push(("pcp_request", name.to_owned(), request.to_bytes()));
        let refusal = pcp::error_response(&request.to_bytes(), ResultCode::UNSUPP_VERSION, 30, 7);
        seeds.push(("pcp_version_refusal", name.to_owned(), refusal));
        let refused = pcp::error_response(&request.to_bytes(), ResultCode::CANNOT_PROVIDE_EXTERNAL, 30, 7);
        seeds.push(("pcp_response", format!("{name}-refused"), refused));
        let response = pcp::Response { result: ResultCode::SUCCESS, lifetime: 120, epoch: 7, body, options };
        seeds.push(("pcp_response", name.to_owned(), response.to_bytes()));
    }
    seeds.push(("pcp_request", "version-1".to_owned(), vec![1, 1, 0, 0]));
    seeds.push(("pcp_version_refusal", "nat-pmp".to_owned(), vec![0, 128, 0, 1, 0, 0, 0, 9]));
}

fn dhcp(seeds: &mut Vec<Seed>) {
    let (client, server) = (Ipv4Addr::new(100, 64, 0, 2), Ipv4Addr::new(100, 64, 0, 1));
    let option: Vec<u8> = vec![4, 192, 0, 2, 1, 8, 198, 51, 100, 1, 198, 51, 100, 2];
    for (name, pcp_servers) in [
        ("none", None),
        ("two", Some(option.clone())),
        ("parts", Some([&[252], &[9; 252][..]].concat().repeat(2))),
    ] {
        let ack = dhcp::v4::Ack { xid: 7, client, server, pcp_servers };
        seeds.push(("dhcp_ack", name.to_owned(), ack.to_bytes()));
    }
    seeds.push(("dhcp_ack", "option".to_owned(), option));
    let address = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).octets().to_vec();
    let reply = dhcp::v6::Reply {
        transaction: [1, 2, 3],
        client: Some(vec![0, 4, 7]),
        server: vec![0, 3, 0, 1, 2],
        status: Some(0),
        refresh: Some(86_400),
        max_timeout: Some(600),
        pcp_servers: vec![address.clone(), address.repeat(2)],
    };
    seeds.push(("dhcp_reply", "full".to_owned(), reply.to_bytes()));
    seeds.push(("dhcp_reply", "option".to_owned(), address));
}

fn natpmp(seeds: &mut Vec<Seed>) {
    let map = natpmp::Request::Map {
        protocol: natpmp::Transport::Udp,
        internal_port: 4662,
        external_port: 4662,
        lifetime: 7200,
    };
    for (name, request) in [("address", natpmp::Request::ExternalAddress), ("map", map)] {
        seeds.push(("natpmp_request", name.to_owned(), request.to_bytes()));
        for (suffix, result) in
            [("", natpmp::ResultCode::SUCCESS), ("-refused", natpmp::ResultCode::NOT_AUTHORIZED)]
        {
            let response = request.refused(result, 7);
            seeds.push(("natpmp_response", format!("{name}{suffix}"), response.to_bytes()));
        }
    }
    let unknown = natpmp::error_response(&[0, 9, 7, 7], natpmp::ResultCode::UNSUPPORTED_OPCODE, 7);
    seeds.push(("natpmp_response", "opcode".to_owned(), unknown));
    seeds.push(("natpmp_request", "opcode".to_owned(), vec![0, 9, 7, 7, 1]));
}

fn ssdp(seeds: &mut Vec<Seed>) {
    let sender = ssdp::Sender {
        location: "http://192.168.1.1:5000/v1/igd.xml",
        server: "Linux/6 UPnP/1.1 portferry/0",
        max_age: 1800,
        boot_id: 7,
        config_id: 9,
    };
    let target = ssdp::Target::parse("urn:schemas-upnp-org:device:InternetGatewayDevice:1");
    let usn = "uuid:00112233-4455-6677-8899-aabbccddeeff::upnp:rootdevice";
    for (name, text) in [
        ("search", ssdp::search(ssdp::HOST_V4, &target, Some(2))),
        ("search-all", ssdp::search(ssdp::HOST_V4, &ssdp::Target::All, Some(120))),
        ("search-unicast", ssdp::search("192.168.1.1:1900", &ssdp::Target::RootDevice, None)),
        ("alive", ssdp::alive(&sender, ssdp::HOST_V4, &target, usn)),
        ("byebye", ssdp::byebye(&sender, ssdp::HOST_V4, &target, usn)),
        ("response", ssdp::search_response(&sender, &target, usn, None)),
        ("liberal", "m-search\n".to_owned()),
        ("careless", "M-SEARCH * HTTP/1.0\nman:ssdp:discover\nst: upnp:rootdevice\nMx:x\n".to_owned()),
    ] {
        seeds.push(("ssdp", name.to_owned(), text.into_bytes()));
    }
}

fn soap(seeds: &mut Vec<Seed>) {
    for (service, version, action, args) in [
        (
            Service::WanIpConnection,
            1,
            "AddPortMapping",
            vec![
                ("NewRemoteHost", ""),
                ("NewExternalPort", "8080"),
                ("NewProtocol", "TCP"),
                ("NewInternalPort", "8080"),
                ("NewInternalClient", "192.168.1.10"),
                ("NewEnabled", "1"),
                ("NewPortMappingDescription", "a <game> & \"more\""),
                ("NewLeaseDuration", "3600"),
            ],
        ),
        (
            Service::WanIpConnection,
            2,
            "DeletePortMappingRange",
            vec![
                ("NewStartPort", "1"),
                ("NewEndPort", "65535"),
                ("NewProtocol", "UDP"),
                ("NewManage", "true"),
            ],
        ),
        (Service::WanIpConnection, 1, "GetGenericPortMappingEntry", vec![("NewPortMappingIndex", "0")]),
        (Service::WanCommonInterfaceConfig, 1, "GetTotalBytesSent", vec![]),
        (
            Service::Layer3Forwarding,
            1,
            "SetDefaultConnectionService",
            vec![("NewDefaultConnectionService", "uuid:x,urn:y")],
        ),
    ] {
        let service_type = service.service_type(version);
        let body = soap::encode_call(&service_type, action, &args);
        let request = format!("\"{service_type}#{action}\"\n{body}");
        seeds.push(("soap_request", action.to_owned(), request.into_bytes()));
        let answer = body.replace(action, &format!("{action}Response"));
        seeds.push(("soap_answer", action.to_owned(), answer.into_bytes()));
    }
    let query = "urn:schemas-upnp-org:control-1-0#QueryStateVariable\n<Envelope><Body><QueryStateVariable>\
        <varName>ConnectionStatus</varName></QueryStateVariable></Body></Envelope>";
    seeds.push(("soap_request", "query".to_owned(), query.into()));
    seeds.push(("soap_answer", "fault".to_owned(), soap::fault(UpnpError::CONFLICT).into_bytes()));
}

fn documents(seeds: &mut Vec<Seed>) {
    let identity = Identity {
        friendly_name: "Router <&>".to_owned(),
        manufacturer: "m".to_owned(),
        model_description: "d".to_owned(),
        model_name: "n".to_owned(),
        model_number: "1".to_owned(),
        serial: "2".to_owned(),
        v1: Udns::derive([7; 16], Face::V1),
        v2: Udns::derive([7; 16], Face::V2),
        presentation_url: Some("http://192.168.1.1/".to_owned()),
        url_token: "token".to_owned(),
        eventing: true,
        config_id: 1,
    };
    for (name, face) in [("v1", Face::V1), ("v2", Face::V2)] {
        let text = description::root_description(face, &identity);
        seeds.push(("description", name.to_owned(), text.into_bytes()));
    }
    let small = "<root><URLBase>http://a/</URLBase><device><deviceType>t</deviceType><serviceList><service>\
        <serviceType>s</serviceType></service></serviceList></device></root>";
    seeds.push(("description", "small".to_owned(), small.into()));
    let entry = ListingEntry {
        remote_host: "203.0.113.9".to_owned(),
        external_port: 8080,
        protocol: "TCP".to_owned(),
        internal_port: 8081,
        internal_client: "192.168.1.10".to_owned(),
        enabled: true,
        description: "a <game> ]]> & more".to_owned(),
        lease: 3600,
    };
    seeds.push(("listing", "empty".to_owned(), listing::encode(&[]).into_bytes()));
    seeds.push(("listing", "two".to_owned(), listing::encode(&[entry.clone(), entry]).into_bytes()));
}

fn gena(seeds: &mut Vec<Seed>) {
    let sid = format!("uuid:{}", Uuid([7; 16]));
    for (name, text) in [
        (
            "subscribe",
            "<http://192.168.1.10:5000/event><http://[fe80::1%25eth0]/>\nupnp:event\n\nSecond-1800"
                .to_owned(),
        ),
        ("renew", format!("\n\n{sid}\nSecond-infinite")),
        ("both", format!("<http://192.168.1.10/>\nupnp:event\n{sid}\n")),
    ] {
        seeds.push(("gena_headers", name.to_owned(), text.into_bytes()));
    }
    let set =
        gena::property_set(&[("ConnectionStatus", &"Connected"), ("ExternalIPAddress", &"198.51.100.1")]);
    seeds.push(("gena_property_set", "two".to_owned(), set.into_bytes()));
    seeds.push(("gena_property_set", "none".to_owned(), gena::property_set(&[]).into_bytes()));
}

/// See `gateway_events` for what the octets mean: mode first, then steps.
fn gateway(seeds: &mut Vec<Seed>) {
    let add = |host: u8, shape: u8, port: u8| [2, 0, host, shape, port, port, 3];
    let delete = |host: u8, shape: u8, port: u8| [2, 2, host, shape, port, port, 3];
    let helpful: Vec<u8> = [
        vec![0],
        add(0, 0, 0).to_vec(),
        add(1, 0, 0).to_vec(),
        add(1, 0, 1).to_vec(),
        vec![1, 20, 1, 22],
        delete(0, 0, 0).to_vec(),
        vec![11, 0, 11, 3, 1, 13, 5, 2, 7, 15, 255],
    ]
    .concat();
    let without_nat = [vec![1], helpful[1..].to_vec()].concat();
    let slow: Vec<u8> = [
        vec![4, 12],
        vec![6, 0, 0],
        add(0, 0, 0).to_vec(),
        vec![10, 6, 0, 0, 10],
        add(0, 0, 1).to_vec(),
        vec![10, 6, 0, 4, 1, 14, 1, 12],
        vec![9, 3, 0, 0, 1, 20, 6, 0, 0],
        delete(0, 0, 0).to_vec(),
        vec![10, 6, 0, 0, 1, 11],
    ]
    .concat();
    let slow_without_nat = [vec![5], slow[1..].to_vec()].concat();
    let pinhole = |shape: u8, port: u8| [15, 232, shape, 0, 0, port, 2];
    let firewall_is_there = [15, 238, 0, 9];
    let pinholes: Vec<u8> = [
        vec![0],
        firewall_is_there.to_vec(),
        pinhole(0x20, 0).to_vec(),
        vec![15, 232, 0x20, 2, 2, 0, 2, 15, 232, 0x21, 3, 0, 1, 2],
        vec![15, 235, 0x62, 0, 15, 235, 0x0a, 1, 15, 235, 0x2a, 1, 1, 20],
        vec![15, 232, 0x18, 0, 0, 0, 0, 15, 239, 2, 15, 232, 0x08, 0, 0, 0, 0],
        vec![11, 0, 11, 3, 15, 238, 0, 9, 1, 22, 15, 255],
    ]
    .concat();
    let slow_pinholes: Vec<u8> = [
        vec![4],
        firewall_is_there.to_vec(),
        vec![15, 237],
        pinhole(0x20, 0).to_vec(),
        vec![15, 236, 0, 0, 10],
        pinhole(0x28, 1).to_vec(),
        vec![
            15, 236, 0, 3, 15, 235, 0x6a, 2, 15, 236, 0, 0, 10, 1, 12, 15, 232, 0x10, 0, 0, 0, 0, 15, 236, 0,
            0, 10,
        ],
    ]
    .concat();
    for (name, data) in [
        ("helpful", helpful),
        ("pinholes", pinholes),
        ("slow-pinholes", slow_pinholes),
        ("helpful-without-nat", without_nat),
        ("slow", slow),
        ("slow-without-nat", slow_without_nat),
    ] {
        seeds.push(("gateway_events", name.to_owned(), data));
    }
}

/// See `server_events` for what the octets mean: two of settings, then steps. A datagram is who, how long, and what.
fn server(seeds: &mut Vec<Seed>) {
    let datagram = |how: u8, from: u8, payload: Vec<u8>| {
        let len = u8::try_from(payload.len()).expect("short enough");
        [vec![how << 4, from, len], payload].concat()
    };
    let request = |lifetime, body, options| {
        pcp::Request { lifetime, client_addr: pcp::NO_ADDR_V4, body, options }.to_bytes()
    };
    let peer = PeerData {
        nonce: map().nonce,
        protocol: Protocol::TCP,
        internal_port: 8080,
        external_port: 0,
        external_addr: pcp::NO_ADDR_V4,
        remote_port: 443,
        remote_addr: pcp::mapped(Ipv4Addr::new(203, 0, 113, 9)),
    };
    let filter = Filter { prefix_len: 128, remote_port: 0, remote_addr: peer.remote_addr };
    let set = PortSet { size: 8, first_internal_port: 8080, parity: true };
    let all_ports = MapData { internal_port: 0, external_port: 0, ..map() };
    let third = PcpOption::ThirdParty(pcp::mapped(Ipv4Addr::new(10, 0, 0, 5)));
    let natpmp = natpmp::Request::Map {
        protocol: natpmp::Transport::Udp,
        internal_port: 8080,
        external_port: 8081,
        lifetime: 600,
    };
    let all = natpmp::Request::Map {
        protocol: natpmp::Transport::Udp,
        internal_port: 0,
        external_port: 0,
        lifetime: 0,
    };
    let day: Vec<Vec<u8>> = vec![
        datagram(0, 0, request(600, Body::Map(map()), vec![])),
        datagram(0, 1, request(600, Body::Map(map()), vec![PcpOption::PreferFailure])),
        datagram(0, 0, request(900, Body::Map(map()), vec![PcpOption::Filter(filter)])),
        datagram(0, 0, request(600, Body::Peer(peer), vec![])),
        datagram(0, 2, request(600, Body::Map(map()), vec![PcpOption::PortSet(set)])),
        datagram(0, 2, request(600, Body::Map(map()), vec![third])),
        datagram(2, 2, request(600, Body::Map(map()), vec![])),
        datagram(0, 4, request(600, Body::Map(map()), vec![])),
        datagram(1, 3, natpmp.to_bytes()),
        datagram(0, 0, request(0, Body::Get(pcp::GetData::ALL), vec![])),
        datagram(0, 0, request(0, Body::Announce, vec![])),
        vec![0x1f],
        datagram(0, 3, request(600, Body::Map(all_ports), vec![])),
        datagram(1, 3, all.to_bytes()),
        datagram(0, 0, request(0, Body::Map(map()), vec![])),
        datagram(8, 0, request(600, Body::Map(map()), vec![])),
        vec![0x3e, 2, 0x0e, 0x2b, 255, 0xfb, 255],
    ];
    let day = day.concat();
    // The data plane says everything late, and some of it is no.
    let late = |day: &[u8]| [&[0x0d][..], day, day, &[0x09, 2, 0x19, 1, 0x29, 1, 0x09, 60, 0x0f]].concat();
    for (name, settings) in [("plain", [0, 0]), ("everything", [0x7f, 0x80]), ("narrow", [0xa9, 0x3c])] {
        seeds.push(("server_events", name.to_owned(), [&settings[..], &day].concat()));
        seeds.push(("server_events", format!("{name}-late"), [&settings[..], &late(&day)].concat()));
    }
}
