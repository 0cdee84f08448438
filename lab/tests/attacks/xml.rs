//! Bodies that are no SOAP, and some that would cost whoever reads them.

use crate::scene::{Scene, arguments};
use crate::{Row, row};

const REFUSED: &str = "/http/refused";
const FAULTS: &str = "/http/faults";

/// The body of a good request for a mapping, changed.
fn changed(
    name: &'static str,
    sent: &'static str,
    answer: &'static str,
    counter: &'static str,
    change: impl Fn(String) -> Vec<u8> + 'static,
) -> Row {
    row(name, sent, answer, counter, move |scene: &Scene<'_>| {
        let add = scene.add();
        let body = change(add.text());
        scene.send(&add.body(body).octets()).verdict()
    })
}

/// What stands in front of the envelope.
fn in_front(text: &'static str) -> impl Fn(String) -> Vec<u8> {
    move |body| body.replace("<s:Envelope", &format!("{text}<s:Envelope")).into_bytes()
}

fn with(argument: &'static str, value: &'static str) -> impl Fn(String) -> Vec<u8> {
    move |body| {
        let inner = arguments(lab::netns::LAN1, 4444, &[(argument, value)]);
        let usual = arguments(lab::netns::LAN1, 4444, &[]);
        body.replace(&usual, &inner).into_bytes()
    }
}

pub(crate) fn rows() -> Vec<Row> {
    let bomb = "<!DOCTYPE b [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;\">\
                <!ENTITY c \"&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;\"><!ENTITY d \"&c;&c;&c;&c;&c;&c;&c;&c;&c;&c;\">]>";
    vec![
        changed("a document type", "`<!DOCTYPE s>`", "400", REFUSED, in_front("<!DOCTYPE s>")),
        changed("entities of entities", "\"billion laughs\"", "400", REFUSED, move |body| {
            body.replace("<s:Envelope", &format!("{bomb}<s:Envelope")).replace("attack", "&d;").into_bytes()
        }),
        changed("an external entity", "`SYSTEM \"file:///etc/passwd\"`", "400", REFUSED, |body| {
            let entity = "<!DOCTYPE x [<!ENTITY e SYSTEM \"file:///etc/passwd\">]>";
            body.replace("<s:Envelope", &format!("{entity}<s:Envelope")).replace("attack", "&e;").into_bytes()
        }),
        changed(
            "an entity that nobody has declared",
            "`&e;`",
            "400",
            REFUSED,
            with("NewPortMappingDescription", "&e;"),
        ),
        changed(
            "a character that is none",
            "`&#0;`",
            "400",
            REFUSED,
            with("NewPortMappingDescription", "&#0;"),
        ),
        changed(
            "a character beyond all",
            "`&#x110000;`",
            "400",
            REFUSED,
            with("NewPortMappingDescription", "&#x110000;"),
        ),
        changed(
            "a processing instruction",
            "`<?xml-stylesheet href=\"http://evil.example\"?>`",
            "400",
            REFUSED,
            in_front("<?xml-stylesheet href=\"http://evil.example\"?>"),
        ),
        changed("10,000 levels", "`<a>` 10,000 times", "400", REFUSED, |body| {
            body.replace("attack", &format!("{}{}", "<a>".repeat(10_000), "</a>".repeat(4_000))).into_bytes()
        }),
        changed("many elements", "10,000 times `<a/>`", "400", REFUSED, |body| {
            body.replace("attack", &"<a/>".repeat(10_000)).into_bytes()
        }),
        changed("attributes of 60 KiB", "one, 60,000 octets", "400", REFUSED, |body| {
            // Well-formed and harmless, if there were no end tag of another name.
            body.replace("<NewProtocol>", &format!("<NewProtocol a=\"{}\">", "x".repeat(60_000)))
                .replace("</NewProtocol>", "</NewProtocols>")
                .into_bytes()
        }),
        changed("5,000 attributes", "`a0=\"\"`, `a1=\"\"`, …", "400", REFUSED, |body| {
            let all: String = (0..5000).map(|n| format!(" a{n}=\"\"")).collect();
            body.replace("<NewProtocol>", &format!("<NewProtocol{all}>")).into_bytes()
        }),
        changed("an attribute twice", "`a=\"\" a=\"\"`", "400", REFUSED, |body| {
            body.replace("<NewProtocol>", "<NewProtocol a=\"\" a=\"\">").into_bytes()
        }),
        changed("octets that are no UTF-8", "`TC\\xff` as the protocol", "fault 601", FAULTS, |body| {
            let mut body = body.into_bytes();
            let at = body.windows(3).position(|window| window == b"TCP").expect("it is there");
            body[at + 2] = 0xff;
            body
        }),
        changed("UTF-16", "with its mark", "400", REFUSED, |body| {
            [0xfeff].into_iter().chain(body.encode_utf16()).flat_map(u16::to_le_bytes).collect()
        }),
        changed("an argument twice", "NewInternalClient, ours and another's", "fault 402", FAULTS, |body| {
            body.replace("<NewEnabled>", "<NewInternalClient>192.168.77.11</NewInternalClient><NewEnabled>")
                .into_bytes()
        }),
        changed(
            "an argument within an argument",
            "`<NewRemoteHost><a>1.2.3.4</a></NewRemoteHost>`",
            "fault 402",
            FAULTS,
            with("NewRemoteHost", "<a>1.2.3.4</a>"),
        ),
        changed("a missing argument", "no NewInternalPort", "fault 402", FAULTS, |body| {
            body.replace("<NewInternalPort>4444</NewInternalPort>", "").into_bytes()
        }),
        changed("another envelope", "`<s:Envelopes>`", "400", REFUSED, |body| {
            body.replace("s:Envelope", "s:Envelopes").into_bytes()
        }),
        changed("a prefix that is not declared", "`<x:AddPortMapping>`", "400", REFUSED, |body| {
            body.replace("<u:AddPortMapping", "<x:AddPortMapping").into_bytes()
        }),
        changed("two bodies", "AddPortMapping in each", "400", REFUSED, |body| {
            let (_, inner) = body.split_once("<s:Body>").expect("it has one");
            let (inner, _) = inner.split_once("</s:Body>").expect("it ends");
            body.replace("</s:Body>", &format!("</s:Body><s:Body>{inner}</s:Body>")).into_bytes()
        }),
        changed("a body that ends early", "half of it", "400", REFUSED, |body| {
            body.as_bytes()[..body.len() / 2].to_vec()
        }),
        changed("an end that is missing", "without `</s:Envelope>`", "400", REFUSED, |body| {
            body.replace("</s:Envelope>", "").into_bytes()
        }),
        changed("something behind the end", "a second document", "400", REFUSED, |body| {
            format!("{body}<a/>").into_bytes()
        }),
        changed("NUL", "within the description", "400", REFUSED, |body| {
            body.replace("attack", "a\0b").into_bytes()
        }),
        changed("nothing", "no octet", "400", REFUSED, |_| Vec::new()),
        changed("no XML", "60 KiB of `<`", "400", REFUSED, |_| b"<".repeat(61_440)),
    ]
}
