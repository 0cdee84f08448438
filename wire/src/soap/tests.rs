use proptest::prelude::*;

use super::*;

const IP1: &str = "urn:schemas-upnp-org:service:WANIPConnection:1";
const IP2: &str = "urn:schemas-upnp-org:service:WANIPConnection:2";
const PPP: &str = "urn:schemas-upnp-org:service:WANPPPConnection:1";
const COMMON: &str = "urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1";

fn at(service: Service, header: &str, body: &str) -> Result<Request, SoapError> {
    decode(service, Face::V1, Some(header), body.as_bytes())
}

fn call(header: &str, body: &str) -> Result<Call, SoapError> {
    match at(Service::WanIpConnection, header, body)? {
        Request::Call(call) => Ok(call),
        Request::Query { .. } => panic!("a query"),
    }
}

/// An AddPortMapping of a :1 client with one argument set to `value`, or left out.
fn add_with(name: &str, value: Option<&str>) -> Result<Call, SoapError> {
    let mut args = vec![
        ("NewRemoteHost", ""),
        ("NewExternalPort", "4662"),
        ("NewProtocol", "TCP"),
        ("NewInternalPort", "4662"),
        ("NewInternalClient", "192.168.1.2"),
        ("NewEnabled", "1"),
        ("NewPortMappingDescription", "eMule"),
        ("NewLeaseDuration", "0"),
    ];
    let place = args.iter().position(|arg| arg.0 == name).expect("an argument of AddPortMapping");
    match value {
        Some(value) => args[place].1 = value,
        None => drop(args.remove(place)),
    }
    call(&format!("\"{IP1}#AddPortMapping\""), &encode_call(IP1, "AddPortMapping", &args))
}

fn refused(error: UpnpError) -> Result<(), SoapError> {
    Err(SoapError::Upnp(error))
}

const GOLDEN_REQUEST: &str = concat!(
    r#"<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" "#,
    r#"s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><u:GetExternalIPAddress "#,
    r#"xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1"></u:GetExternalIPAddress></s:Body></s:Envelope>"#
);
const GOLDEN_RESPONSE: &str = concat!(
    r#"<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" "#,
    r#"s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><u:GetExternalIPAddressResponse "#,
    r#"xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1"><NewExternalIPAddress>198.51.100.7"#,
    r#"</NewExternalIPAddress></u:GetExternalIPAddressResponse></s:Body></s:Envelope>"#
);
const GOLDEN_FAULT: &str = concat!(
    r#"<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" "#,
    r#"s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><s:Fault><faultcode>s:Client</faultcode>"#,
    r#"<faultstring>UPnPError</faultstring><detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0">"#,
    r#"<errorCode>718</errorCode><errorDescription>ConflictInMappingEntry</errorDescription></UPnPError></detail>"#,
    r#"</s:Fault></s:Body></s:Envelope>"#
);

/// The worked example of uda.md 8.
#[test]
fn golden_bodies() {
    assert_eq!((GOLDEN_REQUEST.len(), GOLDEN_RESPONSE.len(), GOLDEN_FAULT.len()), (281, 354, 427));
    assert_eq!(encode_call(IP1, "GetExternalIPAddress", &[]), GOLDEN_REQUEST);
    let request = call(&format!("\"{IP1}#GetExternalIPAddress\""), GOLDEN_REQUEST).unwrap();
    assert_eq!(request.response(&["198.51.100.7".into()]), GOLDEN_RESPONSE);
    assert_eq!(fault(UpnpError::CONFLICT), GOLDEN_FAULT);
    let answer = decode_answer(GOLDEN_RESPONSE.as_bytes()).unwrap();
    assert_eq!(answer.value("NewExternalIPAddress"), Some("198.51.100.7"));
    let refused = AnswerError::Fault { code: 718, description: "ConflictInMappingEntry".to_owned() };
    assert_eq!(decode_answer(GOLDEN_FAULT.as_bytes()), Err(refused));
    assert_eq!(decode_answer(GOLDEN_REQUEST.as_bytes()), Err(AnswerError::Malformed));
}

fn sample(service: Service, argument: &Argument) -> Value {
    match (argument.name, service.variable(argument.variable).unwrap().data_type) {
        ("NewProtocol", _) => "UDP".into(),
        (name, DataType::String) => Value::Text(format!("<{name}> & \"sons\" \u{fc}")),
        (_, DataType::Ui2) => Value::Number(65_535),
        (_, DataType::Ui4) => Value::Number(u32::MAX),
        (_, DataType::Boolean) => Value::Boolean(true),
    }
}

/// Client call → server, server answer → client, for every action, on both faces and in every version (K-8).
#[test]
fn every_action_makes_the_round_trip() {
    for service in Service::ALL {
        for (face, version) in
            Face::ALL.into_iter().flat_map(|f| (1..=service.highest_version()).map(move |v| (f, v)))
        {
            for action in service.actions() {
                let inputs: Vec<Value> = action.inputs.iter().map(|input| sample(service, input)).collect();
                let texts: Vec<String> = inputs.iter().map(ToString::to_string).collect();
                let args: Vec<(&str, &str)> =
                    action.inputs.iter().zip(&texts).map(|(input, text)| (input.name, &**text)).collect();
                let spoken = service.service_type(version);
                let header = format!("\"{spoken}#{}\"", action.name);
                let body = encode_call(&spoken, action.name, &args);
                let Ok(Request::Call(call)) = decode(service, face, Some(&header), body.as_bytes()) else {
                    panic!("{header} was refused")
                };
                assert_eq!((call.service, call.version, call.action), (service, version, action));
                for (input, value) in action.inputs.iter().zip(&inputs) {
                    assert!(call.has(input.name));
                    match value {
                        Value::Text(text) => assert_eq!(call.text(input.name), text),
                        Value::Number(number) => assert_eq!(call.number(input.name), *number),
                        Value::Boolean(boolean) => assert_eq!(call.boolean(input.name), *boolean),
                    }
                }
                let outputs: Vec<Value> =
                    action.outputs.iter().map(|output| sample(service, output)).collect();
                let response = call.response(&outputs);
                assert!(response.contains(&format!("<u:{}Response xmlns:u=\"{spoken}\">", action.name)));
                let expected: Vec<(String, String)> = action
                    .outputs
                    .iter()
                    .zip(&outputs)
                    .map(|(output, value)| (output.name.to_owned(), value.to_string()))
                    .collect();
                assert_eq!(decode_answer(response.as_bytes()).unwrap().values, expected);
            }
        }
    }
}

#[test]
fn every_fault_is_read_back() {
    for error in UpnpError::KNOWN {
        let expected = AnswerError::Fault { code: error.code, description: error.description.to_owned() };
        assert_eq!(decode_answer(fault(*error).as_bytes()), Err(expected));
    }
}

/// C-5, C-8, K-8, Q-8, Q-13 and the security policy: what the header may say, and what is refused.
#[test]
fn soapaction() {
    let body = |service: &str, action: &str| encode_call(service, action, &[]);
    let external = body(IP1, "GetExternalIPAddress");
    for (header, version, type_name) in [
        (format!("\"{IP1}#GetExternalIPAddress\""), 1, "WANIPConnection"),
        (format!("{IP1}#GetExternalIPAddress"), 1, "WANIPConnection"),
        (format!("  \"{IP2}#GetExternalIPAddress\" "), 2, "WANIPConnection"),
        (format!("\"{PPP}#GetExternalIPAddress\""), 1, "WANPPPConnection"),
    ] {
        let call = call(&header, &external).unwrap();
        assert_eq!((call.version, call.type_name), (version, type_name), "{header}");
        let spoken = format!("urn:schemas-upnp-org:service:{type_name}:{version}");
        assert_eq!(call.service_type(), spoken);
        assert!(call.response(&["".into()]).contains(&spoken));
    }
    for (header, error) in [
        (format!("\"{COMMON}#GetExternalIPAddress\""), UpnpError::INVALID_ACTION),
        (
            "\"urn:schemas-upnp-org:service:WANIPConnection:3#GetExternalIPAddress\"".to_owned(),
            UpnpError::INVALID_ACTION,
        ),
        (
            "\"urn:schemas-upnp-org:service:WANIPConnection#GetExternalIPAddress\"".to_owned(),
            UpnpError::INVALID_ACTION,
        ),
        (format!("\"{IP1}#AddPortMapping\""), UpnpError::INVALID_ACTION),
        (format!("\"{IP1}#\""), UpnpError::INVALID_ACTION),
        (format!("\"{IP1}\""), UpnpError::INVALID_ACTION),
        ("\"#GetExternalIPAddress\"".to_owned(), UpnpError::INVALID_ACTION),
        ("\"urn:schemas-upnp-org:control-1-0#GetExternalIPAddress\"".to_owned(), UpnpError::INVALID_ACTION),
    ] {
        assert_eq!(call(&header, &external).map(drop), refused(error), "{header}");
    }
    let unknown = body(IP1, "FormatDisk");
    assert_eq!(call(&format!("{IP1}#FormatDisk"), &unknown).map(drop), refused(UpnpError::INVALID_ACTION));
    for missing in [None, Some(""), Some("  "), Some("\"\"")] {
        let answer = decode(Service::WanIpConnection, Face::V1, missing, external.as_bytes());
        assert_eq!(answer, Err(SoapError::BadRequest));
    }
}

/// K-8, Q-13: prefixes, namespaces, declaration, order and blanks as real control points send them.
/// igd.md 5, Q-8: the additional actions of WANPPPConnection:1 are called as that, at WANIPConnection's URL.
#[test]
fn ppp_actions_are_called_as_ppp() {
    for action in Service::WanIpConnection.ppp_actions() {
        let args = [("NewUserName", "bob"), ("NewPassword", "x")];
        let body = encode_call(PPP, action.name, &args[..action.inputs.len()]);
        let decoded = call(&format!("\"{PPP}#{}\"", action.name), &body).unwrap();
        assert_eq!((decoded.action, decoded.type_name, decoded.version), (action, "WANPPPConnection", 1));
        for (service, spoken) in [
            (Service::WanIpConnection, IP1),
            (Service::WanIpConnection, IP2),
            (Service::WanCommonInterfaceConfig, PPP),
            (Service::WanCommonInterfaceConfig, COMMON),
        ] {
            let heard = at(service, &format!("\"{spoken}#{}\"", action.name), &body);
            assert_eq!(heard.map(drop), refused(UpnpError::INVALID_ACTION), "{} as {spoken}", action.name);
        }
    }
    let without = encode_call(PPP, "ConfigureConnection", &[("NewUserName", "bob")]);
    let heard = call(&format!("\"{PPP}#ConfigureConnection\""), &without);
    assert_eq!(heard.map(drop), refused(UpnpError::INVALID_ARGS));
}

#[test]
fn bodies_are_read_liberally() {
    for body in [
        "<Envelope><Body><GetExternalIPAddress/></Body></Envelope>",
        "<SOAP-ENV:Envelope xmlns:SOAP-ENV='http://schemas.xmlsoap.org/soap/envelope/'><SOAP-ENV:Header/>\
         <SOAP-ENV:Body><m:GetExternalIPAddress xmlns:m='urn:schemas-upnp-org:service:WANIPConnection:1'/>\
         </SOAP-ENV:Body></SOAP-ENV:Envelope>",
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\r\n<s:Envelope>\r\n<s:Body>\r\n<u:GetExternalIPAddress>\r\n\
         </u:GetExternalIPAddress>\r\n</s:Body>\r\n</s:Envelope>\r\n\r\n",
        "<s:Envelope xmlns:s='http://www.w3.org/2003/05/soap-envelope'><s:Body><GetExternalIPAddress \
         xmlns='urn:schemas-upnp-org:service:WANIPConnection:2'><Extra/><Extra/></GetExternalIPAddress></s:Body>\
         </s:Envelope>",
    ] {
        assert!(call(&format!("{IP1}#GetExternalIPAddress"), body).is_ok(), "{body}");
    }
    for (body, why) in [
        ("", "nothing"),
        ("<Envelope><Body/></Envelope>", "no action"),
        ("<Envelope/>", "no body"),
        ("<Envelope><Body><GetExternalIPAddress/><GetExternalIPAddress/></Body></Envelope>", "two actions"),
        ("<Envelope><Body><GetExternalIPAddress/></Body><Body/></Envelope>", "two bodies"),
        ("<Letter><Body><GetExternalIPAddress/></Body></Letter>", "no envelope"),
        ("<GetExternalIPAddress/>", "bare action"),
        ("<Envelope><Body><GetExternalIPAddress/></Body>", "not closed"),
        ("<Envelope><Body><GetExternalIPAddress></Body></Envelope>", "ends do not match"),
        ("<!DOCTYPE a><Envelope><Body><GetExternalIPAddress/></Body></Envelope>", "document type"),
        ("<Envelope><Body><?a?><GetExternalIPAddress/></Body></Envelope>", "processing instruction"),
        ("<Envelope><Body><GetExternalIPAddress/></Body></Envelope>x", "trailing text"),
        ("<Envelope><Body><GetExternalIPAddress/></Body></Envelope><Envelope/>", "two roots"),
        ("<Envelope><Body><GetExternalIPAddress>\0</GetExternalIPAddress></Body></Envelope>", "NUL"),
        ("NewExternalPort=80&NewProtocol=TCP", "a form"),
    ] {
        let answer = call(&format!("{IP1}#GetExternalIPAddress"), body);
        assert_eq!(answer.map(drop), Err(SoapError::BadRequest), "{why}");
    }
}

#[test]
fn arguments_come_in_any_order_and_blanks_are_cut() {
    let body = "<Envelope><Body><u:AddPortMapping><NewLeaseDuration>\n 0060 </NewLeaseDuration><Unknown>1</Unknown>\
                <NewEnabled>Yes</NewEnabled><NewInternalClient> 192.168.1.2\t</NewInternalClient>\
                <x:NewInternalPort> 1</x:NewInternalPort><NewProtocol> udp </NewProtocol>\
                <NewExternalPort>0</NewExternalPort></u:AddPortMapping></Body></Envelope>";
    let call = call(&format!("{IP1}#AddPortMapping"), body).unwrap();
    assert_eq!(call.number("NewLeaseDuration"), 60);
    assert_eq!((call.number("NewInternalPort"), call.number("NewExternalPort")), (1, 0));
    assert_eq!((call.text("NewInternalClient"), call.text("NewProtocol")), ("192.168.1.2", "UDP"));
    assert!(call.boolean("NewEnabled") && !call.has("NewRemoteHost") && call.has("NewEnabled"));
    assert_eq!(call.text("NewRemoteHost"), "");
    assert_eq!(
        (call.text("NewNothing"), call.number("NewNothing"), call.boolean("NewNothing")),
        ("", 0, false)
    );
}

/// C-6, A-6, A-18, Q-5, Q-11, Q-12, K-13, K-15: one row a value.
#[test]
fn argument_values() {
    let invalid = || refused(UpnpError::INVALID_ARGS);
    let range = || refused(UpnpError::VALUE_OUT_OF_RANGE);
    for (name, value, expected) in [
        ("NewExternalPort", Some("65535"), Ok(())),
        ("NewExternalPort", Some("65536"), range()),
        ("NewExternalPort", Some("99999999999999999999"), range()),
        ("NewExternalPort", Some("-1"), invalid()),
        ("NewExternalPort", Some("+1"), invalid()),
        ("NewExternalPort", Some("0x50"), invalid()),
        ("NewExternalPort", Some("80.0"), invalid()),
        ("NewExternalPort", Some("8 0"), invalid()),
        ("NewExternalPort", Some("\u{661}"), invalid()),
        ("NewExternalPort", Some(""), invalid()),
        ("NewExternalPort", None, invalid()),
        ("NewInternalPort", Some("0"), Ok(())),
        ("NewInternalPort", None, invalid()),
        ("NewProtocol", Some("udp"), Ok(())),
        ("NewProtocol", Some(""), range()),
        ("NewProtocol", Some("  "), range()),
        ("NewProtocol", None, invalid()),
        ("NewProtocol", Some("SCTP"), range()),
        ("NewProtocol", Some("BOTH"), range()),
        ("NewInternalClient", Some(""), Ok(())),
        ("NewInternalClient", None, invalid()),
        ("NewEnabled", Some("TRUE"), Ok(())),
        ("NewEnabled", Some("no"), Ok(())),
        ("NewEnabled", Some("2"), invalid()),
        ("NewEnabled", Some(""), Ok(())),
        ("NewEnabled", None, Ok(())),
        ("NewRemoteHost", None, Ok(())),
        ("NewRemoteHost", Some("*"), Ok(())),
        ("NewPortMappingDescription", None, Ok(())),
        ("NewLeaseDuration", None, Ok(())),
    ] {
        assert_eq!(add_with(name, value).map(drop), expected, "{name} {value:?}");
    }
    for (value, lease) in [
        (None, 0),
        (Some(""), 0),
        (Some("-1"), 0),
        (Some("forever"), 0),
        (Some("4294967295"), u32::MAX),
        (Some("4294967296"), u32::MAX),
        (Some("604801"), 604_801),
    ] {
        assert_eq!(
            add_with("NewLeaseDuration", value).unwrap().number("NewLeaseDuration"),
            lease,
            "{value:?}"
        );
    }
    assert!(add_with("NewEnabled", None).unwrap().boolean("NewEnabled"));
    assert!(!add_with("NewEnabled", Some("0")).unwrap().boolean("NewEnabled"));
    assert!(!add_with("NewEnabled", None).unwrap().has("NewEnabled"));
    let long = "h".repeat(MAX_TEXT + 1);
    assert_eq!(add_with("NewInternalClient", Some(&long)).map(drop), refused(UpnpError::STRING_TOO_LONG));
}

#[test]
fn a_doubled_argument_is_refused() {
    let args =
        [("NewRemoteHost", ""), ("NewExternalPort", "1"), ("NewExternalPort", "1"), ("NewProtocol", "TCP")];
    let answer = call(&format!("{IP1}#DeletePortMapping"), &encode_call(IP1, "DeletePortMapping", &args));
    assert_eq!(answer.map(drop), refused(UpnpError::INVALID_ARGS));
}

/// K-13.
#[test]
fn descriptions_are_kept_bounded_and_free_of_controls() {
    let description = |text: &str| {
        let call = add_with("NewPortMappingDescription", Some(text)).unwrap();
        call.text("NewPortMappingDescription").to_owned()
    };
    assert_eq!(description("  \u{b5}Torrent (TCP) \u{1f600} <&> "), "  \u{b5}Torrent (TCP) \u{1f600} <&> ");
    assert_eq!(description("a\tb\nc\u{7f}d\u{85}e"), "a b c d e");
    assert_eq!(description(&"\u{20ac}".repeat(400)), "\u{20ac}".repeat(341));
    assert_eq!(description(&"x".repeat(5000)).len(), MAX_TEXT);
}

/// K-13: in any encoding; what comes back is UTF-8.
#[test]
fn a_description_in_another_encoding_refuses_nothing() {
    let args =
        [("NewRemoteHost", ""), ("NewExternalPort", "1"), ("NewProtocol", "TCP"), ("NewInternalPort", "1")];
    let args =
        [&args[..], &[("NewInternalClient", "10.0.0.1"), ("NewPortMappingDescription", "caf?")]].concat();
    let mut body = encode_call(IP1, "AddPortMapping", &args).into_bytes();
    let at = body.windows(4).position(|part| part == b"caf?").unwrap();
    body[at + 3] = 0xe9; // Latin-1
    let header = format!("{IP1}#AddPortMapping");
    let request = decode(Service::WanIpConnection, Face::V1, Some(&header), &body).unwrap();
    let Request::Call(call) = request else { panic!("{request:?}") };
    assert_eq!(call.text("NewPortMappingDescription"), "caf\u{fffd}");
}

/// K-8: the version is no key, in either direction.
#[test]
fn version_2_actions_are_called_in_version_1() {
    let args = [
        ("NewStartPort", "1"),
        ("NewEndPort", "65535"),
        ("NewProtocol", "TCP"),
        ("NewManage", "0"),
        ("NewNumberOfPorts", "0"),
    ];
    let header = format!("{IP1}#GetListOfPortMappings");
    let call = call(&header, &encode_call(IP2, "GetListOfPortMappings", &args)).unwrap();
    assert_eq!((call.version, call.action.id), (1, crate::services::ActionId::GetListOfPortMappings));
    let response = call.response(&["<l>]]></l>".into()]);
    assert!(response.contains("<NewPortListing><![CDATA[<l>]]]]><![CDATA[></l>]]></NewPortListing>"));
    assert_eq!(decode_answer(response.as_bytes()).unwrap().value("NewPortListing"), Some("<l>]]></l>"));
}

/// C-8, K-9; igd.md 5: those of PPP, too, where WANIPConnection is.
#[test]
fn state_variables_are_queried() {
    let body = |name: &str| encode_call(CONTROL_NAMESPACE, QUERY, &[("varName", name)]);
    for face in Face::ALL {
        for service in Service::ALL {
            let of_ppp = (service == Service::WanIpConnection).then(|| format!("\"{PPP}#{QUERY}\""));
            let headers =
                [format!("\"{CONTROL_NAMESPACE}#{QUERY}\""), format!("{}#{QUERY}", service.service_type(1))];
            for header in headers.into_iter().chain(of_ppp) {
                for variable in service.variables().iter().chain(service.ppp_variables()) {
                    let expected = if variable.since <= service.version(face) {
                        Ok(Request::Query { service, variable })
                    } else {
                        Err(UpnpError::INVALID_VAR.into())
                    };
                    assert_eq!(
                        decode(service, face, Some(&header), body(variable.name).as_bytes()),
                        expected
                    );
                }
            }
        }
    }
    let header = format!("{CONTROL_NAMESPACE}#{QUERY}");
    let ask = |body: &str| at(Service::WanIpConnection, &header, body).map(drop);
    assert_eq!(ask(&body("WANAccessType")), refused(UpnpError::INVALID_VAR));
    let of_common = at(Service::WanCommonInterfaceConfig, &header, &body("UserName")).map(drop);
    assert_eq!(of_common, refused(UpnpError::INVALID_VAR));
    assert_eq!(ask(&body("")), refused(UpnpError::INVALID_VAR));
    assert_eq!(ask(&encode_call(CONTROL_NAMESPACE, QUERY, &[])), refused(UpnpError::INVALID_ARGS));
    let answer = decode_answer(query_response(&"Connected".into()).as_bytes()).unwrap();
    assert_eq!(answer.value("return"), Some("Connected"));
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300), header in any::<Option<String>>()) {
        for service in Service::ALL {
            let _ = decode(service, Face::V2, header.as_deref(), &bytes);
        }
        let _ = decode_answer(&bytes);
    }

    #[test]
    fn damaged_messages_are_survived(
        golden in prop::sample::select(vec![GOLDEN_REQUEST, GOLDEN_RESPONSE, GOLDEN_FAULT]),
        at in any::<prop::sample::Index>(),
        with in proptest::collection::vec(any::<u8>(), 0..4),
        cut in 0_usize..6,
    ) {
        let mut bytes = golden.as_bytes().to_vec();
        let start = at.index(bytes.len());
        let end = (start + cut).min(bytes.len());
        bytes.splice(start..end, with);
        let _ = decode(Service::WanIpConnection, Face::V1, Some(&format!("{IP1}#GetExternalIPAddress")), &bytes);
        let _ = decode_answer(&bytes);
    }

    #[test]
    fn every_prefix_is_refused(at in any::<prop::sample::Index>()) {
        let cut = &GOLDEN_REQUEST.as_bytes()[..at.index(GOLDEN_REQUEST.len())];
        let answer = decode(Service::WanIpConnection, Face::V1, Some(&format!("{IP1}#GetExternalIPAddress")), cut);
        prop_assert_eq!(answer, Err(SoapError::BadRequest));
    }

    #[test]
    fn every_prefix_of_an_answer_is_refused(at in any::<prop::sample::Index>()) {
        for golden in [GOLDEN_RESPONSE, GOLDEN_FAULT] {
            let cut = &golden.trim_end().as_bytes()[..at.index(golden.trim_end().len())];
            prop_assert_eq!(decode_answer(cut), Err(AnswerError::Malformed));
        }
    }

    #[test]
    fn any_description_makes_the_round_trip(text in any::<String>()) {
        let call = add_with("NewPortMappingDescription", Some(&text)).unwrap();
        let read = call.text("NewPortMappingDescription");
        prop_assert!(read.len() <= MAX_TEXT && !read.chars().any(char::is_control));
    }
}
