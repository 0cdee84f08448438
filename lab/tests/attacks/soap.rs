//! Requests that are well-formed and not allowed.

use std::net::Ipv4Addr;

use lab::netns::{Host, LAN1, LAN2};
use serde_json::Value;

use crate::common::SECOND;
use crate::scene::{Scene, arguments};
use crate::{Row, row};

const FAULTS: &str = "/http/faults";
/// The external port of the other host's mapping.
const THEIRS: u16 = 7000;

fn add(
    name: &'static str,
    sent: &'static str,
    answer: &'static str,
    other: &'static [(&'static str, &'static str)],
) -> Row {
    row(name, sent, answer, FAULTS, move |scene| {
        scene.call(Host::Lan1, "AddPortMapping", &arguments(LAN1, 4444, other), 4 * SECOND).verdict()
    })
}

/// While another host has a mapping; whether it is still what it was.
fn theirs(
    name: &'static str,
    sent: &'static str,
    answer: &'static str,
    action: &'static str,
    inner: &'static str,
) -> Row {
    row(name, sent, answer, FAULTS, move |scene| {
        let made =
            scene.call(Host::Lan2, "AddPortMapping", &arguments(LAN2, THEIRS, &[]), 4 * SECOND).verdict();
        let before = scene.mappings();
        let came = scene.call(Host::Lan1, action, inner, 4 * SECOND).verdict();
        let stands = scene.mappings() == before && !before.is_empty();
        scene.delete(Host::Lan2, THEIRS, 2 * SECOND);
        format!("{came}{}", if made == "200" && stands { "" } else { "; **it does not stand**" })
    })
}

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = numbers();
    rows.extend(addresses());
    rows.extend(others());
    rows.extend(texts());
    rows
}

fn numbers() -> Vec<Row> {
    vec![
        add("a sign", "NewExternalPort `-1`", "fault 402", &[("NewExternalPort", "-1")]),
        add("a plus", "NewExternalPort `+4444`", "fault 402", &[("NewExternalPort", "+4444")]),
        add("hexadecimal", "NewExternalPort `0x115c`", "fault 402", &[("NewExternalPort", "0x115c")]),
        add(
            "digits of another script",
            "NewExternalPort `٤٤٤٤`",
            "fault 402",
            &[("NewExternalPort", "٤٤٤٤")],
        ),
        add("a fraction", "NewExternalPort `4444.0`", "fault 402", &[("NewExternalPort", "4444.0")]),
        add("two numbers", "NewExternalPort `4444 80`", "fault 402", &[("NewExternalPort", "4444 80")]),
        add(
            "more than 16 bits",
            "NewExternalPort `69980` (4444 + 65536)",
            "fault 601",
            &[("NewExternalPort", "69980")],
        ),
        add(
            "more than 64 bits",
            "NewInternalPort `18446744073709556060`",
            "fault 601",
            &[("NewInternalPort", "18446744073709556060")],
        ),
        add("no number", "NewInternalPort empty", "fault 402", &[("NewInternalPort", "")]),
        add("octal", "NewExternalPort `0022`, which is 22", "fault 718", &[("NewExternalPort", "0022")]),
        add("the wildcard port", "NewExternalPort `0`", "fault 716", &[("NewExternalPort", "0")]),
        add("no internal port", "NewInternalPort `0`", "fault 402", &[("NewInternalPort", "0")]),
        add("a low external port", "NewExternalPort `80`", "fault 718", &[("NewExternalPort", "80")]),
        add("a low internal port", "NewInternalPort `22`", "fault 718", &[("NewInternalPort", "22")]),
        add("another protocol", "NewProtocol `SCTP`", "fault 601", &[("NewProtocol", "SCTP")]),
        add("a boolean that is none", "NewEnabled `2`", "fault 402", &[("NewEnabled", "2")]),
        row("a lease of -1", "NewLeaseDuration `-1`", "200, as 0", "/http/answered", |scene| {
            let inner = arguments(LAN1, 4444, &[("NewLeaseDuration", "-1")]);
            let came = scene.call(Host::Lan1, "AddPortMapping", &inner, 4 * SECOND).verdict();
            let entry = "<NewPortMappingIndex>0</NewPortMappingIndex>";
            let heard = scene.call(Host::Lan1, "GetGenericPortMappingEntry", entry, SECOND);
            let text = String::from_utf8_lossy(&heard.octets).into_owned();
            let lease = text
                .split_once("<NewLeaseDuration>")
                .and_then(|(_, rest)| Some(rest.split_once('<')?.0.to_owned()));
            scene.delete(Host::Lan1, 4444, 2 * SECOND);
            // What is left of a week is a second less already, perhaps.
            let lease = match lease.as_deref().and_then(|lease| lease.parse::<u32>().ok()) {
                Some(0) => "0".to_owned(),
                Some(604_000..=604_800) => "a week".to_owned(),
                other => format!("{other:?}"),
            };
            if came == "200" { format!("{came}, as {lease}") } else { came }
        }),
    ]
}

fn addresses() -> Vec<Row> {
    const CLIENTS: [(&str, &str, &str); 19] = [
        ("another host", "`192.168.77.11`", "192.168.77.11"),
        ("another host, in octal", "`0300.0250.0115.013`", "0300.0250.0115.013"),
        ("another host, in hexadecimal", "`0xc0a84d0b`", "0xc0a84d0b"),
        ("another host, as a number", "`3232255243`", "3232255243"),
        ("another host, with zeros", "`192.168.077.011`", "192.168.077.011"),
        ("another host, short", "`192.168.19723`", "192.168.19723"),
        ("another host, in IPv6", "`::ffff:192.168.77.11`", "::ffff:192.168.77.11"),
        ("the Internet (UPnProxy)", "`198.51.100.20`", "198.51.100.20"),
        ("another subscriber", "`100.64.0.3`", "100.64.0.3"),
        ("the router, on its LAN", "`192.168.77.1`", "192.168.77.1"),
        ("the router, on its WAN", "`100.64.0.2`", "100.64.0.2"),
        ("the external address", "`203.0.114.1`", "203.0.114.1"),
        ("loopback", "`127.0.0.1`", "127.0.0.1"),
        ("nobody", "`0.0.0.0`", "0.0.0.0"),
        ("everybody", "`255.255.255.255`", "255.255.255.255"),
        ("everybody on the LAN", "`192.168.77.255`", "192.168.77.255"),
        ("a group", "`239.255.255.250`", "239.255.255.250"),
        ("link-local", "`169.254.1.1`", "169.254.1.1"),
        ("class E", "`240.0.0.1`", "240.0.0.1"),
    ];
    let mut rows: Vec<Row> = CLIENTS
        .into_iter()
        .map(|(name, sent, client)| {
            let answer = match client.parse::<Ipv4Addr>() {
                Ok(Ipv4Addr::BROADCAST) => "fault 501", // T-11
                Ok(_) => "fault 718",
                Err(_) => "fault 402",
            };
            row(name, sent, answer, FAULTS, move |scene| {
                let inner = arguments(LAN1, 4444, &[("NewInternalClient", client)]);
                scene.call(Host::Lan1, "AddPortMapping", &inner, 4 * SECOND).verdict()
            })
        })
        .collect();
    rows.push(add("a name", "`localhost`", "fault 718", &[("NewInternalClient", "localhost")]));
    rows.push(add("a shell's words", "`$(reboot)`", "fault 402", &[("NewInternalClient", "$(reboot)")]));
    rows.push(add(
        "a remote host in octal",
        "NewRemoteHost `010.0.0.1`",
        "fault 402",
        &[("NewRemoteHost", "010.0.0.1")],
    ));
    rows.push(add(
        "words for a firewall",
        "NewRemoteHost `1.2.3.4; drop table inet filter`",
        "fault 402",
        &[("NewRemoteHost", "1.2.3.4; drop table inet filter")],
    ));
    rows.push(add(
        "a prefix as the remote host",
        "NewRemoteHost `0.0.0.0/0`",
        "fault 402",
        &[("NewRemoteHost", "0.0.0.0/0")],
    ));
    rows
}

fn others() -> Vec<Row> {
    vec![
        theirs(
            "overwriting another host's mapping",
            "AddPortMapping to its external port",
            "fault 718",
            "AddPortMapping",
            "<NewRemoteHost></NewRemoteHost><NewExternalPort>7000</NewExternalPort><NewProtocol>TCP</NewProtocol>\
             <NewInternalPort>4444</NewInternalPort><NewInternalClient>192.168.77.10</NewInternalClient><NewEnabled>1</NewEnabled>\
             <NewPortMappingDescription>x</NewPortMappingDescription><NewLeaseDuration>60</NewLeaseDuration>",
        ),
        theirs(
            "leading it to oneself for its owner",
            "the same with the owner's address",
            "fault 718",
            "AddPortMapping",
            "<NewRemoteHost></NewRemoteHost><NewExternalPort>7000</NewExternalPort><NewProtocol>TCP</NewProtocol>\
             <NewInternalPort>22</NewInternalPort><NewInternalClient>192.168.77.11</NewInternalClient><NewEnabled>1</NewEnabled>\
             <NewPortMappingDescription>x</NewPortMappingDescription><NewLeaseDuration>60</NewLeaseDuration>",
        ),
        theirs(
            "deleting another host's mapping",
            "DeletePortMapping",
            "fault 714",
            "DeletePortMapping",
            "<NewRemoteHost></NewRemoteHost><NewExternalPort>7000</NewExternalPort><NewProtocol>TCP</NewProtocol>",
        ),
        theirs(
            "deleting a range over another host's",
            "DeletePortMappingRange 1–65535, NewManage 0",
            "fault 730",
            "DeletePortMappingRange",
            "<NewStartPort>1</NewStartPort><NewEndPort>65535</NewEndPort><NewProtocol>TCP</NewProtocol><NewManage>0</NewManage>",
        ),
        theirs(
            "deleting everybody's",
            "the same with NewManage 1",
            "fault 730",
            "DeletePortMappingRange",
            "<NewStartPort>1</NewStartPort><NewEndPort>65535</NewEndPort><NewProtocol>TCP</NewProtocol><NewManage>1</NewManage>",
        ),
        row(
            "a listing of all ports there are",
            "GetListOfPortMappings 1–65535, 65535 entries",
            "fault 730",
            FAULTS,
            |scene| {
                let inner = "<NewStartPort>1</NewStartPort><NewEndPort>65535</NewEndPort><NewProtocol>TCP</NewProtocol>\
                         <NewManage>1</NewManage><NewNumberOfPorts>65535</NewNumberOfPorts>";
                scene.call(Host::Lan1, "GetListOfPortMappings", inner, 4 * SECOND).verdict()
            },
        ),
        row(
            "an entry far behind the last one",
            "NewPortMappingIndex `4294967296`",
            "fault 713",
            FAULTS,
            |scene| {
                let inner = "<NewPortMappingIndex>4294967296</NewPortMappingIndex>";
                scene.call(Host::Lan1, "GetGenericPortMappingEntry", inner, 4 * SECOND).verdict()
            },
        ),
        row("ending the connection", "ForceTermination", "fault 501", FAULTS, |scene| {
            scene.call(Host::Lan1, "ForceTermination", "", 4 * SECOND).verdict()
        }),
        row(
            "an action of another service",
            "`AddPinhole` at the URL of WANIPConnection",
            "fault 401",
            FAULTS,
            |scene| scene.call(Host::Lan1, "AddPinhole", "", 4 * SECOND).verdict(),
        ),
        row("no action at all", "`Reboot`", "fault 401", FAULTS, |scene| {
            scene.call(Host::Lan1, "Reboot", "", 4 * SECOND).verdict()
        }),
    ]
}

/// The description of the only mapping, as the control socket tells it.
fn described(scene: &Scene<'_>) -> Option<String> {
    let said: Value = serde_json::from_str(&lab::subject::ask(scene.network, "mappings")?).ok()?;
    Some(said[0]["description"].as_str()?.to_owned())
}

fn texts() -> Vec<Row> {
    vec![
        row(
            "a long description of markup",
            "60,000 octets of `&lt;script&gt;`",
            "200, 1024 octets, escaped",
            "/http/answered",
            |scene| {
                let inner =
                    arguments(LAN1, 4444, &[("NewPortMappingDescription", &"&lt;script&gt;".repeat(4285))]);
                let came = scene.call(Host::Lan1, "AddPortMapping", &inner, 4 * SECOND).verdict();
                let entry = "<NewPortMappingIndex>0</NewPortMappingIndex>";
                let heard = scene.call(Host::Lan1, "GetGenericPortMappingEntry", entry, SECOND);
                let escaped = !String::from_utf8_lossy(&heard.octets).contains("<script>");
                let kept = described(scene).map_or(String::new(), |text| format!(", {} octets", text.len()));
                scene.delete(Host::Lan1, 4444, 2 * SECOND);
                format!("{came}{kept}, {}", if escaped { "escaped" } else { "**as it is**" })
            },
        ),
        row(
            "a description that steers terminals",
            "`\\x9b31m`, a C1 control",
            "200, as a blank",
            "/http/answered",
            |scene| {
                let inner = arguments(LAN1, 4444, &[("NewPortMappingDescription", "a\u{9b}31m")]);
                let came = scene.call(Host::Lan1, "AddPortMapping", &inner, 4 * SECOND).verdict();
                let entry = "<NewPortMappingIndex>0</NewPortMappingIndex>";
                let heard = scene.call(Host::Lan1, "GetGenericPortMappingEntry", entry, SECOND);
                let steers = String::from_utf8_lossy(&heard.octets).contains('\u{9b}');
                scene.delete(Host::Lan1, 4444, 2 * SECOND);
                format!("{came}, {}", if steers { "as it is" } else { "as a blank" })
            },
        ),
        row("a remote host of 2,000 octets", "NewRemoteHost", "fault 605", FAULTS, |scene| {
            let inner = arguments(LAN1, 4444, &[("NewRemoteHost", &"a".repeat(2000))]);
            scene.call(Host::Lan1, "AddPortMapping", &inner, 4 * SECOND).verdict()
        }),
    ]
}
