//! Descriptions and answers in the manner of real gateways, and of hostile ones.

use proptest::prelude::*;

use super::*;
use crate::services::{Face, Service};
use crate::soap::{self, AnswerError, decode_answer_to};

const WAN_IP_1: &str = "urn:schemas-upnp-org:service:WANIPConnection:1";
const WAN_IP_2: &str = "urn:schemas-upnp-org:service:WANIPConnection:2";
const WAN_PPP_1: &str = "urn:schemas-upnp-org:service:WANPPPConnection:1";

fn url(text: &str) -> Url {
    Url::parse(text).unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn urls() {
    for (text, expected) in [
        ("http://192.168.178.1:49000/igddesc.xml", Some("http://192.168.178.1:49000/igddesc.xml")),
        ("HTTP://192.168.178.1:49000/x", Some("http://192.168.178.1:49000/x")),
        (" http://192.168.1.1 ", Some("http://192.168.1.1:80/")),
        ("http://192.168.1.1?x=1", Some("http://192.168.1.1:80/?x=1")),
        ("https://192.168.1.1/x", None),
        ("http://router.local/x", None),
        ("http://192.168.1.1@10.0.0.1/x", None),
        ("http://user@192.168.1.1/x", None),
        ("http://0300.0250.1.1/x", None),
        ("http://3232235777/x", None),
        ("http://[fe80::1]/x", None),
        ("http://192.168.1.1:0/x", None),
        ("http://192.168.1.1:65536/x", None),
        ("http://192.168.1.1/a b", None),
        ("http://192.168.1.1/a\r\nX: y", None),
        ("", None),
    ] {
        assert_eq!(Url::parse(text).map(|url| url.to_string()).as_deref(), expected, "{text:?}");
    }
    assert_eq!(Url::parse(&format!("http://192.168.1.1/{}", "x".repeat(MAX_PATH))), None);
}

#[test]
fn references() {
    let base = url("http://192.168.1.1:5000/a/desc.xml?x=/y");
    for (reference, expected) in [
        ("/ctl/IPConn", Some("http://192.168.1.1:5000/ctl/IPConn")),
        ("ctl", Some("http://192.168.1.1:5000/a/ctl")),
        ("?control", Some("http://192.168.1.1:5000/a/?control")),
        ("http://192.168.1.1:49000/upnp", Some("http://192.168.1.1:49000/upnp")),
        ("//192.168.1.1:49000/upnp", Some("http://192.168.1.1:49000/upnp")),
        ("http://192.168.1.66:5000/ctl", None),
        ("//192.168.1.66/ctl", None),
        ("https://192.168.1.1/ctl", None),
        ("file:///etc/passwd", None),
        ("/a b", None),
        ("/a\nb", None),
    ] {
        assert_eq!(base.join(reference).map(|url| url.to_string()).as_deref(), expected, "{reference:?}");
    }
    assert_eq!(base.join(&"x".repeat(MAX_PATH)), None);
}

/// What stands around the services of a description.
fn description(root: &str, base: &str, services: &[(&str, &str)]) -> String {
    let services: String = services
        .iter()
        .map(|(service_type, control)| {
            format!(
                "<service><serviceType>{service_type}</serviceType><serviceId>x</serviceId>\
                 <controlURL>{control}</controlURL><eventSubURL>/e</eventSubURL><SCPDURL>/s.xml</SCPDURL></service>"
            )
        })
        .collect();
    format!(
        "<?xml version=\"1.0\"?>\n{root}<specVersion><major>1</major><minor>0</minor></specVersion>{base}<device>\
         <deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><friendlyName>r</friendlyName>\
         <deviceList><device><deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType><deviceList><device>\
         <deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType>\
         <serviceList>{services}</serviceList></device></deviceList></device></deviceList></device></root>"
    )
}

const ROOT: &str = "<root xmlns=\"urn:schemas-upnp-org:device-1-0\">";

/// One row a kind of device: where its description is, how it says it, and what is to be found.
#[test]
fn kinds_of_descriptions() {
    let common = "urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1";
    for (kind, location, body, expected) in [
        (
            "a DSL router of the central European kind: absolute paths, other services around",
            "http://192.168.178.1:49000/igd2desc.xml",
            description(
                ROOT,
                "",
                &[(common, "/igd2upnp/control/WANCommonIFC1"), (WAN_IP_2, "/igd2upnp/control/WANIPConn1")],
            ),
            vec![("http://192.168.178.1:49000/igd2upnp/control/WANIPConn1", WAN_IP_2, 2)],
        ),
        (
            "the most deployed daemon, with a namespace of its vendor's",
            "http://192.168.1.1:5000/rootDesc.xml",
            description(
                "<root xmlns=\"urn:schemas-upnp-org:device-1-0\" xmlns:v=\"urn:v\" configId=\"1337\">",
                "",
                &[(WAN_IP_1, "/ctl/IPConn")],
            ),
            vec![("http://192.168.1.1:5000/ctl/IPConn", WAN_IP_1, 1)],
        ),
        (
            "a provider's box with PPP, a URLBase, and relative URLs",
            "http://192.168.2.1:49152/rootdesc.xml",
            description(
                ROOT,
                "<URLBase>http://192.168.2.1:49153/upnp/</URLBase>",
                &[(WAN_PPP_1, "ctl/PPPConn1")],
            ),
            vec![("http://192.168.2.1:49153/upnp/ctl/PPPConn1", WAN_PPP_1, 1)],
        ),
        (
            "a cable router without namespace, with both connections",
            "http://192.168.0.1:1780/InternetGatewayDevice.xml",
            description(
                "<root>",
                "",
                &[(WAN_IP_1, "/control?WANIPConnection"), (WAN_PPP_1, "/control?WANPPPConnection")],
            ),
            vec![
                ("http://192.168.0.1:1780/control?WANIPConnection", WAN_IP_1, 1),
                ("http://192.168.0.1:1780/control?WANPPPConnection", WAN_PPP_1, 1),
            ],
        ),
        (
            "a 5G box whose URLBase is of an address that it had once, with zeros behind",
            "http://192.168.8.1:37215/desc.xml",
            description(ROOT, "<URLBase>http://192.168.1.1:37215</URLBase>", &[(WAN_IP_1, "/evt/IPConn")])
                + "\0\0\n\0",
            vec![("http://192.168.8.1:37215/evt/IPConn", WAN_IP_1, 1)],
        ),
        (
            "an older router with an undeclared prefix and blanks around values",
            "http://10.0.0.138:80/upnp/IGD.xml",
            description(
                "<u:root>",
                "",
                &[(
                    "\n  urn:schemas-upnp-org:service:WANIPConnection:1 ",
                    "\n  /upnp/control/igd/wanipcIPC \n",
                )],
            )
            .replace("</root>", "</u:root>"),
            vec![("http://10.0.0.138:80/upnp/control/igd/wanipcIPC", WAN_IP_1, 1)],
        ),
        (
            "a hostile one: elsewhere, nowhere, and one more that is fine",
            "http://192.168.1.1:5000/x",
            description(
                ROOT,
                "<URLBase>http://192.168.1.66/</URLBase>",
                &[
                    (WAN_IP_1, "http://192.168.1.66/ctl"),
                    (WAN_IP_1, ""),
                    (WAN_IP_1, "//198.51.100.1/ctl"),
                    ("urn:schemas-upnp-org:service:WANIPConnection:0", "/a"),
                    ("urn:schemas-wifialliance-org:service:WANIPConnection:1", "/b"),
                    ("urn:schemas-upnp-org:service:Layer3Forwarding:1", "/c"),
                    (WAN_IP_1, "/fine"),
                    (WAN_IP_1, "/fine"),
                ],
            ),
            vec![("http://192.168.1.1:5000/fine", WAN_IP_1, 1)],
        ),
    ] {
        let found = connections(&url(location), body.as_bytes()).unwrap_or_else(|_| panic!("{kind}"));
        let found: Vec<_> =
            found.iter().map(|one| (one.control.to_string(), &*one.service_type, one.version)).collect();
        let expected: Vec<_> = expected.iter().map(|one| (one.0.to_owned(), one.1, one.2)).collect();
        assert_eq!(found, expected, "{kind}");
    }
    let many: Vec<(&str, String)> = (0..100).map(|n| (WAN_IP_1, format!("/{n}"))).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(kind, path)| (*kind, &**path)).collect();
    let body = description(ROOT, "", &many);
    assert_eq!(connections(&url("http://192.168.1.1/"), body.as_bytes()).unwrap().len(), MAX_CONNECTIONS);
    // Umlauts of another time.
    let latin = description(ROOT, "", &[(WAN_IP_1, "/c")]).replace("<friendlyName>r", "<friendlyName>@");
    let latin: Vec<u8> = latin.bytes().map(|byte| if byte == b'@' { 0xfc } else { byte }).collect();
    assert_eq!(connections(&url("http://192.168.1.1/"), &latin).unwrap().len(), 1);
}

#[test]
fn what_is_no_description() {
    let here = url("http://192.168.1.1/");
    let deep = format!("<root>{}{}</root>", "<device>".repeat(100), "</device>".repeat(100));
    let wide = format!("<root><device><deviceType>x</deviceType>{}</device></root>", "<a/>".repeat(5000));
    let cut = description(ROOT, "", &[(WAN_IP_1, "/c")]);
    for body in [
        "",
        "\0\0",
        "<html><body>Log in</body></html>",
        "<!DOCTYPE root [<!ENTITY a \"aaaa\">]><root><device><deviceType>&a;</deviceType></device></root>",
        &deep,
        &wide,
        &cut[..cut.len() - 3],
    ] {
        assert!(connections(&here, body.as_bytes()).is_err(), "{:?}", &body[..body.len().min(60)]);
    }
}

fn mapping(external_port: u16) -> Mapping<'static> {
    Mapping {
        external_port,
        protocol: "TCP",
        internal_port: 8080,
        internal_client: Ipv4Addr::new(192, 168, 178, 2),
        description: "a <game>",
        lease: 3600,
    }
}

/// Every call is one that our own gateway takes.
#[test]
fn calls_are_what_a_gateway_reads() {
    for (call, action, version) in [
        (Call::GetExternalIpAddress, "GetExternalIPAddress", 1),
        (Call::GetStatusInfo, "GetStatusInfo", 1),
        (Call::GetSpecificPortMappingEntry(8080, "UDP"), "GetSpecificPortMappingEntry", 1),
        (Call::AddPortMapping(mapping(8080)), "AddPortMapping", 1),
        (Call::AddAnyPortMapping(mapping(8080)), "AddAnyPortMapping", 2),
        (Call::DeletePortMapping(8080, "TCP"), "DeletePortMapping", 1),
    ] {
        let service_type = if version == 2 { WAN_IP_2 } else { WAN_IP_1 };
        let (body, action_header) = call.encode(service_type);
        assert_eq!(action_header, format!("{service_type}#{action}"));
        let read = soap::decode(Service::WanIpConnection, Face::V2, Some(&action_header), body.as_bytes());
        let Ok(soap::Request::Call(read)) = read else { panic!("{call:?}: {read:?}") };
        assert_eq!((read.action.name, read.version), (action, version));
        assert!(read.action.inputs.iter().all(|input| read.has(input.name)), "{call:?}");
        if let Call::AddPortMapping(_) = call {
            let numbers = ["NewExternalPort", "NewInternalPort", "NewLeaseDuration"];
            assert_eq!(numbers.map(|name| read.number(name)), [8080, 8080, 3600]);
            assert_eq!(read.text("NewInternalClient"), "192.168.178.2");
            assert_eq!(read.text("NewPortMappingDescription"), "a <game>");
            assert!(read.boolean("NewEnabled"));
        }
    }
}

fn answer(action: &str, values: &str) -> Result<Answer, AnswerError> {
    let body = format!(
        "<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body><u:{action}Response>{values}\
         </u:{action}Response></s:Body></s:Envelope>\0"
    );
    decode_answer_to(action, body.as_bytes())
}

#[test]
fn external_addresses() {
    for (text, expected) in [
        ("203.0.114.1", Ok(Some(Ipv4Addr::new(203, 0, 114, 1)))),
        (" 10.0.0.1\n", Ok(Some(Ipv4Addr::new(10, 0, 0, 1)))),
        ("", Ok(None)),
        ("0.0.0.0", Ok(None)),
        ("203.0.114", Err(Malformed)),
        ("fe80::1", Err(Malformed)),
        ("(null)", Err(Malformed)),
    ] {
        let answer =
            answer("GetExternalIPAddress", &format!("<NewExternalIPAddress>{text}</NewExternalIPAddress>"));
        assert_eq!(read_external(&answer.unwrap()), expected, "{text:?}");
    }
    assert_eq!(read_external(&Answer::default()), Err(Malformed));
}

#[test]
fn entries() {
    let read = |values: &str| Entry::read(&answer("GetSpecificPortMappingEntry", values).unwrap());
    let whole = "<NewInternalPort>8080</NewInternalPort><NewInternalClient> 192.168.178.2 </NewInternalClient>\
                 <NewEnabled>1</NewEnabled><NewPortMappingDescription>x</NewPortMappingDescription><NewLeaseDuration>17</NewLeaseDuration>";
    let entry =
        Entry { internal_client: "192.168.178.2".to_owned(), internal_port: 8080, enabled: true, lease: 17 };
    assert_eq!(read(whole), Ok(entry.clone()));
    assert_eq!(
        read(&whole.replace(">1<", ">false<")).map(|entry| entry.enabled),
        Ok(false),
        "switched off by hand"
    );
    let short = "<NewInternalPort>8080</NewInternalPort><NewInternalClient>192.168.178.2</NewInternalClient>";
    assert_eq!(read(short), Ok(Entry { lease: 0, ..entry }));
    for broken in ["8080", "192.168.178.2"] {
        assert_eq!(read(&short.replace(broken, "")), Err(Malformed), "{broken}");
        assert_eq!(read(&short.replace("8080", "80800")), Err(Malformed));
    }
}

#[test]
fn uptimes_and_ports() {
    let status = |text: &str| {
        let values = format!(
            "<NewConnectionStatus>Connected</NewConnectionStatus><NewLastConnectionError>ERROR_NONE\
             </NewLastConnectionError><NewUptime>{text}</NewUptime>"
        );
        read_uptime(&answer("GetStatusInfo", &values).unwrap())
    };
    assert_eq!(
        (status(" 86400 "), status("soon"), status("-1")),
        (Ok(86_400), Err(Malformed), Err(Malformed))
    );
    let reserved = |text: &str| {
        let values = format!("<NewReservedPort>{text}</NewReservedPort>");
        read_reserved(&answer("AddAnyPortMapping", &values).unwrap())
    };
    assert_eq!(
        (reserved("8081"), reserved("0"), reserved("65536")),
        (Ok(8081), Err(Malformed), Err(Malformed))
    );
}

/// The answer to another action is no answer; a fault is one to any.
#[test]
fn answers_to_something_else() {
    let body = "<Envelope><Body><GetStatusInfoResponse><NewUptime>1</NewUptime></GetStatusInfoResponse></Body></Envelope>";
    assert!(decode_answer_to("GetStatusInfo", body.as_bytes()).is_ok(), "no namespace at all");
    assert_eq!(decode_answer_to("AddPortMapping", body.as_bytes()), Err(AnswerError::Malformed));
    let fault = "<s:Envelope><s:Body><s:Fault><faultCode>s:Client</faultCode><faultString>UPnPError</faultString><detail>\
                 <UPnPError xmlns=\"x\"><errorCode>725</errorCode></UPnPError></detail></s:Fault></s:Body></s:Envelope>";
    let expected = AnswerError::Fault { code: 725, description: String::new() };
    assert_eq!(decode_answer_to("AddPortMapping", fault.as_bytes()), Err(expected));
    for endless in ["<a>".repeat(30_000), format!("<Envelope><Body>{}", "<x/>".repeat(1000))] {
        assert_eq!(decode_answer_to("AddPortMapping", endless.as_bytes()), Err(AnswerError::Malformed));
    }
}

proptest! {
    #[test]
    fn whatever_a_description_says_it_stays_at_its_host(
        base in "[ -~]{0,40}",
        control in "(//|http://|http:|/)?[0-9./:@#?a-z]{0,30}",
    ) {
        let here = url("http://192.168.1.1:5000/a/b.xml");
        let escaped = crate::xml::escape(&base);
        let body = description(
            ROOT,
            &format!("<URLBase>{escaped}</URLBase>"),
            &[(WAN_IP_1, &crate::xml::escape(&control))],
        );
        for found in connections(&here, body.as_bytes()).unwrap() {
            prop_assert_eq!(found.control.at.ip(), here.at.ip());
            prop_assert!(found.control.path.starts_with('/') && found.control.path.len() <= MAX_PATH);
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = connections(&url("http://192.168.1.1/"), &bytes);
        let _ = decode_answer_to("AddPortMapping", &bytes);
    }
}
