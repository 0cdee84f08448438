//! What is printed, as it looks; and the documentation of the JSON, which has every key.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::Parser;
use serde_json::Value;
use wire::natpmp;
use wire::pcp::{self, Body, MapData, PcpOption, Response, ResultCode};

use super::args::{Errand, PcpCommand};
use super::client::Event;
use super::message::{Answer, Ignored, Question};
use super::note::Note;
use super::outcome::{Code, Grant, Outcome, Refusal};
use super::voice::{Ends, Voice};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));

fn ends() -> Ends {
    Ends {
        server: "192.0.2.1:5351".parse().unwrap(),
        source: "192.0.2.10:40000".parse().unwrap(),
        client: CLIENT,
    }
}

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: PcpCommand,
}

fn errand(line: &str) -> Errand {
    let words = std::iter::once("pcp").chain(line.split(' '));
    Line::parse_from(words).command.errand().unwrap().unwrap()
}

const MAP: &str = "map tcp 8080 8080 --nonce 000102030405060708090a0b --prefer-failure --filter 203.0.113.9 \
                   --description a\u{1b}[31m --port-set 2 --prefix64 --third-party 10.0.0.5 --option 96:00";

fn question(line: &str) -> Question {
    errand(line).plan.job.question(false, CLIENT, None).unwrap()
}

/// The answer that grants what was asked for.
fn granted(question: &Question) -> (Answer, Grant) {
    let Question::Pcp(request) = question else { panic!("PCP") };
    let Body::Map(map) = request.body else { panic!("MAP") };
    let external_addr = Ipv4Addr::new(198, 51, 100, 7);
    let body = Body::Map(MapData { external_addr: pcp::mapped(external_addr), ..map });
    // As they come from the wire.
    let (result, epoch) = (ResultCode::SUCCESS, 100);
    let bytes = Response { result, lifetime: 3600, epoch, body, options: request.options.clone() }.to_bytes();
    let response = Response::parse(&bytes).expect("it is well-formed");
    let grant = Grant {
        protocol: map.protocol,
        internal: SocketAddr::new(IpAddr::from([10, 0, 0, 5]), map.internal_port),
        external_addr: Some(external_addr.into()),
        external_port: map.external_port,
        peer: None,
        lifetime: 3600,
        nonce: Some(map.nonce),
        options: response.options.clone(),
    };
    (Answer::Pcp(response), grant)
}

fn bytes(answer: &Answer) -> Vec<u8> {
    match answer {
        Answer::Pcp(response) => response.to_bytes(),
        Answer::NatPmp(response) => response.to_bytes(),
        Answer::Version(_) => vec![0, 128, 0, 1, 0, 0, 0, 9],
    }
}

/// All that is printed of an exchange that ends so.
fn told(line: &str, question: &Question, answer: &Answer, more: &[Event], outcome: Outcome) -> String {
    let mut voice = Voice::new(&errand(line), ends());
    let at = Duration::from_micros;
    let mut text = voice.begin();
    let (octets, asked) = (question.to_bytes(), question.clone());
    text += &voice.hear(at(1_000), &Event::Send { bytes: octets.clone(), question: asked.clone(), tries: 1 });
    text += &voice.hear(at(1_001_000), &Event::Send { bytes: octets, question: asked, tries: 2 });
    text += &voice.hear(at(1_003_500), &Event::Answered { bytes: bytes(answer), answer: answer.clone() });
    for event in more {
        text += &voice.hear(at(1_004_000), event);
    }
    text + &voice.hear(at(1_005_000), &Event::Ended(outcome))
}

#[test]
fn a_granted_mapping_for_people() {
    let line = "map tcp 8080 8080 --nonce 000102030405060708090a0b --prefer-failure";
    let question = question(line);
    let (answer, grant) = granted(&question);
    let grant = Grant { internal: SocketAddr::new(CLIENT, 8080), ..grant };
    assert_eq!(
        told(&format!("{line} --hex"), &question, &answer, &[], Outcome::Granted(grant)),
        "\
asking 192.0.2.1:5351 from 192.0.2.10:40000
   0.001 > PCP MAP request TCP internal 8080, suggested 0.0.0.0:8080, 3600 s, nonce 0001…, PREFER_FAILURE
           02010000 00000e10 00000000 00000000 0000ffff c000020a 00010203 04050607
           08090a0b 06000000 1f901f90 00000000 00000000 0000ffff 00000000 02000000
   1.001 > PCP MAP request TCP internal 8080, suggested 0.0.0.0:8080, 3600 s, nonce 0001…, PREFER_FAILURE (try 2)
           02010000 00000e10 00000000 00000000 0000ffff c000020a 00010203 04050607
           08090a0b 06000000 1f901f90 00000000 00000000 0000ffff 00000000 02000000
   1.004 < PCP MAP SUCCESS TCP 8080 -> 198.51.100.7:8080, 3600 s, epoch 100, PREFER_FAILURE (2.5 ms)
           02810000 00000e10 00000064 00000000 00000000 00000000 00010203 04050607
           08090a0b 06000000 1f901f90 00000000 00000000 0000ffff c6336407 02000000

mapping      TCP 192.0.2.10:8080 -> 198.51.100.7:8080
lifetime     3600 s (1h 00m)
options      PREFER_FAILURE
server       192.0.2.1:5351 by PCP, its state is 1m 40s old (epoch 100), answered in 2.5 ms
delete with  portferry pcp delete tcp 8080 --server 192.0.2.1:5351 --nonce 000102030405060708090a0b
"
    );
}

/// Neither what somebody typed nor what a server echoes reaches the terminal raw.
#[test]
fn a_terminal_is_not_steered() {
    let question = question(MAP);
    let (answer, grant) = granted(&question);
    let text = told(MAP, &question, &answer, &[], Outcome::Granted(grant));
    assert!(!text.contains('\u{1b}'), "{text}");
    assert!(text.contains("option 96 (1 octets)"), "by its number: {text}");
    assert!(text.contains("--third-party 10.0.0.5 --port-set 2\n"), "what the delete takes: {text}");
}

/// Whoever copies the line deletes this mapping and no other: by the same server, seen from the same address.
#[test]
fn the_delete_that_is_suggested() {
    let line = "map tcp 8080 8080 --nonce 000102030405060708090a0b --third-party 10.0.0.5 --option 13:0a0b \
                --port-set 2 --source 192.0.2.10 --client-address 192.0.2.99";
    let question = question(line);
    let (answer, grant) = granted(&question);
    let mut voice = Voice::new(&errand(line), Ends { client: "192.0.2.99".parse().unwrap(), ..ends() });
    voice.hear(Duration::ZERO, &Event::Answered { bytes: bytes(&answer), answer });
    let text = voice.hear(Duration::ZERO, &Event::Ended(Outcome::Granted(grant)));
    let (_, delete) = text.split_once("delete with  portferry pcp ").unwrap();
    assert_eq!(
        delete,
        "delete tcp 8080 --server 192.0.2.1:5351 --source 192.0.2.10 --client-address 192.0.2.99 \
         --nonce 000102030405060708090a0b --third-party 10.0.0.5 --port-set 2 --option 13:0a0b\n"
    );
    errand(delete.trim());
}

#[test]
fn what_is_ignored_is_told_to_those_who_want_to_know() {
    let (from, why) = ("192.0.2.66:5351".parse().unwrap(), Ignored::OtherNonce);
    let ignored = [Event::Ignored { from, bytes: vec![2, 0x81, 0, 0], why }];
    let question = question("announce");
    let body = Body::Announce;
    let (result, lifetime, epoch, options) = (ResultCode::SUCCESS, 0, 100, vec![]);
    let answer = Answer::Pcp(Response { result, lifetime, epoch, body, options });
    let told = |line| told(line, &question, &answer, &ignored, Outcome::Alive);
    assert!(!told("announce").contains("ignored"));
    assert!(told("announce -v").contains("< ignored 4 octets: its nonce is not ours\n"));
}

fn keys(value: &Value, all: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                all.insert(key.clone());
                keys(value, all);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| keys(value, all)),
        _ => {}
    }
}

/// docs/pcp-json.md has every key and every outcome.
#[test]
fn the_json_is_documented() {
    let page = include_str!("../../../docs/pcp-json.md");
    let documents = documents();
    let mut all = BTreeSet::new();
    for document in &documents {
        keys(document, &mut all);
    }
    assert!(all.len() > 50, "{all:?}");
    for key in all {
        assert!(page.contains(&format!("`{key}`")) || page.contains(&format!("\"{key}\":")), "`{key}`");
    }
    for document in documents {
        let outcome = document["outcome"].as_str().unwrap();
        assert!(page.contains(&format!("`\"{outcome}\"`")), "{outcome}");
    }
}

fn not_as_asked(option: pcp::OptionCode, left: Option<u32>) -> Outcome {
    Outcome::NotAsAsked { option, asked: "a".into(), got: "b".into(), left }
}

/// Nothing is said to be gone that is not.
#[test]
fn what_stays_is_said() {
    let said = |option, left| {
        not_as_asked(option, left)
            .failure(ends().server)
            .map(|failure| failure.to_string())
            .unwrap_or_default()
    };
    use pcp::OptionCode as Code;
    assert!(said(Code::PREFER_FAILURE, Some(0)).contains("with SUCCESS for b, which was given back.\n"));
    let stays = "with SUCCESS for b, which could not be given back and stands for another 90 s.\n";
    assert!(said(Code::PREFER_FAILURE, Some(90)).contains(stays));
    assert!(said(Code::THIRD_PARTY, Some(0)).contains("answers THIRD_PARTY a with SUCCESS for b, which was"));
    assert!(said(Code::THIRD_PARTY, None).contains("with SUCCESS for b.\n"), "nothing was to be given back");
    let documents = documents();
    let seen: Vec<_> = documents[1..4].iter().map(|one| (&one["outcome"], &one["remaining"])).collect();
    assert_eq!(
        seen,
        [
            (&"not as asked".into(), &90.into()),
            (&"deleted".into(), &0.into()),
            (&"not yet deleted".into(), &90.into()),
        ]
    );
    assert_eq!(documents[0]["remaining"], Value::Null);
}

/// One document of each kind.
fn documents() -> Vec<Value> {
    let line = format!("{MAP} --json");
    let map = question(MAP);
    let (answer, grant) = granted(&map);
    let peer = question("peer tcp 80 203.0.113.9:80");
    let get = question("get");
    let next = pcp::NextMapping {
        nonce: pcp::Nonce([1; 12]),
        protocol: pcp::Protocol(47),
        more: false,
        internal_addr: pcp::mapped([10, 0, 0, 5].into()),
        external_addr: pcp::mapped([198, 51, 100, 7].into()),
        lifetime: 60,
        internal_port: 1,
        external_port: 2,
        options: vec![PcpOption::PreferFailure],
    };
    let pcp = |body, options| {
        let (result, lifetime, epoch) = (ResultCode::SUCCESS, 0, 100);
        Answer::Pcp(Response { result, lifetime, epoch, body, options })
    };
    let auth = Body::Authentication(pcp::AuthData { code: ResultCode::SUCCESS, session: 1, sequence: 2 });
    let other = Body::Other(pcp::Opcode(99), vec![1, 2, 3, 4]);
    let version = Answer::Version(pcp::VersionRefusal { version: 0, lifetime: 0, epoch: Some(9) });
    let nat_pmp = natpmp::Request::Map {
        protocol: natpmp::Transport::Udp,
        internal_port: 80,
        external_port: 80,
        lifetime: 60,
    };
    let nat_pmp_answers = [
        nat_pmp.refused(natpmp::ResultCode(9), 1),
        natpmp::Request::ExternalAddress.refused(natpmp::ResultCode::SUCCESS, 1),
        natpmp::Response::UnsupportedVersion { opcode: 128, epoch: 1 },
        natpmp::Response::UnsupportedOpcode { opcode: 9, rest: vec![1] },
    ];
    let stray = Event::Ignored { from: ends().server, bytes: vec![2], why: Ignored::Malformed };
    let refusal = |code| Outcome::Refused(Refusal { code, lifetime: 30, version: None });
    let mut cases = vec![
        (map.clone(), answer.clone(), Outcome::Granted(grant)),
        (map.clone(), answer.clone(), not_as_asked(pcp::OptionCode::PREFER_FAILURE, Some(90))),
        (map.clone(), answer.clone(), Outcome::Deleted { remaining: 0 }),
        (map.clone(), answer.clone(), Outcome::Deleted { remaining: 90 }),
        (map.clone(), answer.clone(), Outcome::Interrupted),
        (map.clone(), answer.clone(), refusal(Code::Pcp(ResultCode::NOT_AUTHORIZED))),
        (map.clone(), version, Outcome::Inexpressible("no".into())),
        (peer, pcp(auth, vec![]), Outcome::Nonsense("what".into())),
        (get, pcp(other, vec![PcpOption::Next(next.clone())]), Outcome::Listed(vec![next])),
        (map, answer, Outcome::Unreachable { closed: false, error: "no".into() }),
    ];
    for answer in nat_pmp_answers {
        let waited = Duration::from_secs(1);
        let outcome = match answer {
            natpmp::Response::ExternalAddress { addr, .. } => Outcome::External(addr.into()),
            natpmp::Response::Map { .. } => refusal(Code::NatPmp(natpmp::ResultCode(9))),
            natpmp::Response::UnsupportedVersion { .. } => Outcome::Alive,
            natpmp::Response::UnsupportedOpcode { .. } => Outcome::Silent { tries: 1, waited, ignored: 0 },
        };
        cases.push((Question::NatPmp(nat_pmp), Answer::NatPmp(answer), outcome));
    }
    let document = |(question, answer, outcome): (Question, Answer, Outcome)| {
        let more = [Event::Note(Note::FellBack), stray.clone()];
        let text = told(&line, &question, &answer, &more, outcome);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    };
    cases.into_iter().map(document).collect()
}

/// docs/pcp-json.md: `result` and `spoken` are those of the last answer, `tries` is of the last question.
#[test]
fn a_version_that_was_refused_and_then_silence() {
    let version = Answer::Version(pcp::VersionRefusal { version: 0, lifetime: 0, epoch: Some(9) });
    let asked = Question::NatPmp(natpmp::Request::ExternalAddress);
    let send = |tries| Event::Send { bytes: asked.to_bytes(), question: asked.clone(), tries };
    let more: Vec<_> = (1..=4).map(send).collect();
    let silent = Outcome::Silent { tries: 4, waited: Duration::from_secs(10), ignored: 0 };
    let text = told("announce --json", &question("announce"), &version, &more, silent);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["tries"], 4);
    assert_eq!(document["spoken"], "NAT-PMP");
    assert_eq!(document["result"], serde_json::json!({ "number": 1, "name": "UNSUPP_VERSION" }));
    let message = &document["datagrams"][2]["message"];
    assert_eq!(message["opcode"], serde_json::json!({ "number": 0, "name": "ANNOUNCE" }), "{message}");
    assert_eq!((&message["version"], &message["epoch"]), (&0.into(), &9.into()));
}

/// A flood of strays does not push out what was said.
#[test]
fn strays_go_first() {
    let mut voice = Voice::new(&errand("announce --json"), ends());
    let asked = question("announce");
    voice.hear(Duration::ZERO, &Event::Send { bytes: asked.to_bytes(), question: asked, tries: 1 });
    for _ in 0..1500 {
        let (from, why) = (ends().server, Ignored::Malformed);
        voice.hear(Duration::ZERO, &Event::Ignored { from, bytes: vec![], why });
    }
    let text = voice.hear(Duration::ZERO, &Event::Ended(Outcome::Interrupted));
    let document: Value = serde_json::from_str(&text).unwrap();
    let datagrams = document["datagrams"].as_array().unwrap();
    assert_eq!((datagrams.len(), &datagrams[0]["direction"]), (1000, &"sent".into()));
}

/// "0.0.0.0" is how a server says that it has none.
#[test]
fn an_external_address_that_is_not_there() {
    let documents = documents();
    let external = documents.iter().find(|document| document["outcome"] == "external").unwrap();
    assert_eq!(external["external_address"], Value::Null);
}

/// The keys that programs look at, with their values.
#[test]
fn a_granted_mapping_for_programs() {
    let document = &documents()[0];
    assert_eq!(document["outcome"], "granted");
    assert_eq!(document["exit_code"], 0);
    assert_eq!(document["result"]["number"], 0);
    assert_eq!((&document["lifetime"], &document["epoch"]), (&3600.into(), &100.into()));
    assert_eq!((&document["tries"], &document["round_trip_ms"]), (&2.into(), &2.5.into()));
    assert_eq!(document["mapping"]["nonce"], "000102030405060708090a0b");
    assert_eq!(document["external_address"], "198.51.100.7");
    let options = document["options"].as_array().unwrap();
    let codes: Vec<_> = options.iter().filter_map(|option| option["code"].as_u64()).collect();
    assert_eq!(codes, [1, 2, 3, 128, 130, 129, 96]);
    assert_eq!((&options[6]["name"], &options[6]["data"]), (&Value::Null, &"00".into()));
    assert_eq!(options[2]["filter"], "203.0.113.9/32");
    let datagrams = document["datagrams"].as_array().unwrap();
    assert_eq!(datagrams.len(), 4);
    assert_eq!(datagrams[3]["ignored"], "it is no well-formed answer");
    let refused = &documents()[5];
    assert_eq!((&refused["outcome"], &refused["exit_code"]), (&"refused".into(), &75.into()));
    assert!(refused["why"].as_str().unwrap().contains("another nonce"));
}
