//! Both inquiries in virtual time. The rolls of the seeded generator make every time an interval.

use std::net::{Ipv4Addr, Ipv6Addr};

use wire::dhcp::v4::{Ack, Inform};
use wire::dhcp::v6::{InformationRequest, Reply};

use super::*;
use crate::entropy::SeededEntropy;

const WAN: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
const LINK: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
const V4: Source = Source::V4(WAN, Some([2, 0, 0, 0, 0, 7]));
const V6: Source = Source::V6(LINK);
const START: Instant = Instant::from_secs(1000);

struct Lab {
    inquiry: DhcpInquiry,
    now: Instant,
}

impl Lab {
    /// The source has just come.
    fn new(seed: u64, source: Source) -> Self {
        let mut inquiry = DhcpInquiry::new(Box::new(SeededEntropy::new(seed)));
        inquiry.set_source(START, source.version(), Some(source));
        Self { inquiry, now: START }
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.inquiry.poll_output()).collect()
    }

    /// Goes to the next timeout; what happens then, and after how long.
    fn step(&mut self) -> (Duration, Vec<Output>) {
        let at = self.inquiry.next_timeout().expect("something is due");
        assert!(at > self.now, "no busy loop");
        let passed = at - self.now;
        self.now = at;
        self.inquiry.handle_timeout(at);
        (passed, self.outputs())
    }

    /// Until the next question: it, and after how long; sockets are opened and closed on the way.
    fn question(&mut self) -> (Duration, Vec<u8>) {
        let mut passed = Duration::ZERO;
        for _ in 0..3 {
            let (more, outputs) = self.step();
            passed += more;
            let sent = outputs.into_iter().find_map(|output| match output {
                Output::Send { bytes, .. } => Some(bytes),
                _ => None,
            });
            if let Some(bytes) = sent {
                return (passed, bytes);
            }
        }
        panic!("no question")
    }

    fn answer(&mut self, version: Version, bytes: &[u8]) -> Vec<Output> {
        self.inquiry.handle_datagram(self.now, version, bytes);
        self.outputs()
    }
}

fn within(passed: Duration, least: f64, most: f64) {
    assert!((least..=most).contains(&passed.as_secs_f64()), "{passed:?} is not {least}..{most} s");
}

fn ack(question: &[u8], value: Option<&[u8]>) -> Ack {
    let question = Inform::parse(question).expect("a DHCPINFORM");
    Ack {
        xid: question.xid,
        client: question.client,
        server: Ipv4Addr::new(100, 64, 0, 1),
        pcp_servers: value.map(<[u8]>::to_vec),
    }
}

fn reply(question: &[u8], servers: &[&str]) -> Reply {
    let question = InformationRequest::parse(question).expect("an Information-request");
    let octets = |addr: &&str| addr.parse::<Ipv6Addr>().unwrap().octets().to_vec();
    Reply {
        transaction: question.transaction,
        client: Some(question.client),
        server: vec![0, 3, 0, 1, 7],
        pcp_servers: servers.iter().map(octets).collect(),
        ..Reply::default()
    }
}

fn servers(text: &str) -> Vec<ServerAddresses> {
    text.split(' ').map(|addr| vec![addr.parse().unwrap()]).collect()
}

/// RFC 2131 §4.4.3 and table 5: broadcast to the server's port, from the client's, with its address in ciaddr.
#[test]
fn an_inform_is_answered() {
    for seed in 0..50 {
        let mut lab = Lab::new(seed, V4);
        let (passed, outputs) = lab.step();
        within(passed, 1.0, 2.0);
        let [Output::Open(V4), Output::Send { version: Version::V4, to, bytes }] = &outputs[..] else {
            panic!("{outputs:?}")
        };
        assert_eq!(*to, "255.255.255.255:67".parse().unwrap());
        assert_eq!(V4.socket(), "100.64.0.2:68".parse().unwrap());
        let question = Inform::parse(bytes).unwrap();
        assert_eq!((question.client, question.secs), (WAN, 0));
        assert_eq!(question.hardware, Some([2, 0, 0, 0, 0, 7]));
        let answer = ack(bytes, Some(&[4, 192, 0, 2, 1])).to_bytes();
        let expected = servers("192.0.2.1");
        assert_eq!(
            lab.answer(Version::V4, &answer),
            [
                Output::Close(Version::V4),
                Output::Notice(Notice::Offered(Version::V4, expected.clone())),
                Output::Changed(Version::V4)
            ]
        );
        assert_eq!(lab.inquiry.servers(Version::V4), expected);
        assert_eq!(lab.answer(Version::V4, &answer), [], "the exchange is over");
        let (passed, next) = lab.question();
        within(passed, 86_400.0, 86_401.0);
        assert_ne!(Inform::parse(&next).unwrap().xid, question.xid);
        assert_eq!(lab.inquiry.servers(Version::V4), expected, "while it is asked again");
    }
}

/// RFC 2131 §4.1 (4, 8, 16, 32 s, a second more or less) and §4.4.3 (four tries), then an hour of rest.
#[test]
fn nobody_answers_an_inform() {
    for seed in 0..50 {
        let mut lab = Lab::new(seed, V4);
        let (_, first) = lab.question();
        let mut elapsed = Duration::ZERO;
        for timeout in [4.0, 8.0, 16.0] {
            let (passed, next) = lab.question();
            within(passed, timeout - 1.0, timeout + 1.0);
            elapsed += passed;
            let (first, next) = (Inform::parse(&first).unwrap(), Inform::parse(&next).unwrap());
            assert_eq!(next, Inform { secs: u16::try_from(elapsed.as_secs()).unwrap(), ..first });
        }
        let (passed, outputs) = lab.step();
        within(passed, 31.0, 33.0);
        let silence = Output::Notice(Notice::Silence(Version::V4));
        assert_eq!(outputs, [Output::Close(Version::V4), silence.clone()]);
        within(lab.question().0, 3600.0, 3600.0);
        let rest: Vec<_> = (0..8).flat_map(|_| lab.step().1).collect();
        assert!(!rest.contains(&silence), "said once");
    }
}

/// RFC 8415 §18.2.6 and §17.1: to all servers of the link; delayed, with INF_MAX_RT and refresh time asked for.
#[test]
fn an_information_request_is_answered() {
    for seed in 0..50 {
        let mut lab = Lab::new(seed, V6);
        let (passed, outputs) = lab.step();
        within(passed, 1.0, 2.0);
        let [Output::Open(V6), Output::Send { version: Version::V6, to, bytes }] = &outputs[..] else {
            panic!("{outputs:?}")
        };
        assert_eq!(*to, "[ff02::1:2]:547".parse().unwrap());
        assert_eq!(V6.socket(), "[fe80::2]:546".parse().unwrap());
        let question = InformationRequest::parse(bytes).unwrap();
        assert_eq!(question.elapsed_time, 0);
        assert_eq!((question.client.len(), &question.client[..2]), (18, &[0, 4][..]), "DUID-UUID, §11.5");
        let answer = reply(bytes, &["2001:db8::1", "::ffff:192.0.2.1"]);
        let outputs = lab.answer(Version::V6, &answer.to_bytes());
        assert_eq!(outputs.last(), Some(&Output::Changed(Version::V6)));
        assert_eq!(lab.inquiry.servers(Version::V6), servers("2001:db8::1 192.0.2.1"), "each a server, §3.2");
        within(lab.question().0, 86_400.0, 86_401.0);
    }
}

/// RFC 8415 §15: RT doubles, a tenth more or less, up to INF_MAX_RT; the elapsed time grows up to 0xffff, the transaction stays.
#[test]
fn nobody_answers_an_information_request() {
    for seed in 0..50 {
        let mut lab = Lab::new(seed, V6);
        let (_, first) = lab.question();
        let first = InformationRequest::parse(&first).unwrap();
        let (mut last, mut elapsed) = (Duration::ZERO, Duration::ZERO);
        for nth in 0..16 {
            let (passed, next) = lab.question();
            let last_timeout = last.as_secs_f64();
            match nth {
                0 => within(passed, 0.9, 1.1),
                _ if passed.as_secs() < 3240 => within(passed, 1.899 * last_timeout, 2.101 * last_timeout),
                _ => within(passed, 3239.0, 3961.0),
            }
            (last, elapsed) = (passed, elapsed + passed);
            let hundredths = u16::try_from(elapsed.as_millis() / 10).unwrap_or(0xffff);
            let expected = InformationRequest { elapsed_time: hundredths, ..first.clone() };
            assert_eq!(InformationRequest::parse(&next).unwrap(), expected);
        }
        within(last, 3239.0, 3961.0);
    }
}

/// RFC 8415 §15: a client may stop listening after MAX_WAIT_TIME, and there are others who want the port.
#[test]
fn the_socket_is_closed_while_nothing_is_due() {
    let mut lab = Lab::new(1, V6);
    let mut open = false;
    let (mut opened, mut closed, mut since) = (0, 0, START);
    for _ in 0..40 {
        for output in lab.step().1 {
            match output {
                Output::Open(_) => {
                    assert!(!open, "opened twice");
                    (open, opened) = (true, opened + 1);
                }
                Output::Send { .. } => {
                    assert!(open);
                    since = lab.now;
                }
                Output::Close(_) => {
                    assert_eq!(lab.now - since, LISTEN);
                    (open, closed) = (false, closed + 1);
                }
                Output::Notice(notice) => assert_eq!(notice, Notice::Silence(Version::V6)),
                Output::Changed(_) => panic!("nobody said anything"),
            }
        }
    }
    assert!(opened > 5 && closed >= opened - 1, "{opened} {closed}");
}

/// RFC 8415 §16.10, §18.2.10; RFC 2131 §4.4.3.
#[test]
fn what_is_no_answer_to_the_question() {
    let mut lab = Lab::new(1, V6);
    let (_, question) = lab.question();
    let good = reply(&question, &["2001:db8::1"]);
    for (what, bad) in [
        ("another transaction", Reply { transaction: [0, 0, 0], ..good.clone() }),
        ("another client", Reply { client: Some(vec![0, 4, 1]), ..good.clone() }),
        ("no client identifier", Reply { client: None, ..good.clone() }),
        ("UnspecFail", Reply { status: Some(1), ..good.clone() }),
    ] {
        assert_eq!(lab.answer(Version::V6, &bad.to_bytes()), [], "{what}");
    }
    assert_eq!(lab.answer(Version::V6, b"rubbish"), []);
    assert_eq!(lab.answer(Version::V4, &good.to_bytes()), []);
    assert_ne!(lab.answer(Version::V6, &good.to_bytes()), []);

    let mut lab = Lab::new(1, V4);
    let (_, question) = lab.question();
    let good = ack(&question, Some(&[4, 192, 0, 2, 1]));
    let bad = Ack { xid: good.xid ^ 1, ..good.clone() };
    assert_eq!(lab.answer(Version::V4, &bad.to_bytes()), []);
    // Not every server repeats ciaddr (RFC 2131 table 3 leaves it to them).
    let good = Ack { client: Ipv4Addr::UNSPECIFIED, ..good };
    assert_ne!(lab.answer(Version::V4, &good.to_bytes()), []);
}

/// An option of odd length says nothing, and is no reason to go on asking.
#[test]
fn a_malformed_option_counts_as_none() {
    let mut lab = Lab::new(1, V4);
    let (_, question) = lab.question();
    let outputs = lab.answer(Version::V4, &ack(&question, Some(&[5, 192, 0, 2, 1, 9])).to_bytes());
    assert_eq!(outputs, [Output::Close(Version::V4), Output::Notice(Notice::Malformed(Version::V4))]);
    assert!(lab.inquiry.servers(Version::V4).is_empty());

    let mut lab = Lab::new(1, V6);
    let (_, question) = lab.question();
    let mut answer = reply(&question, &["2001:db8::1", "2001:db8::2"]);
    answer.pcp_servers[0].push(7);
    let outputs = lab.answer(Version::V6, &answer.to_bytes());
    assert_eq!(outputs[1], Output::Notice(Notice::Malformed(Version::V6)));
    assert_eq!(lab.inquiry.servers(Version::V6), servers("2001:db8::2"), "the other one is good");
}

/// RFC 8415 §21.23 (least, default, infinity; a maximum is allowed) and §21.25 (its range, also in a failure).
#[test]
fn times_that_a_server_gives() {
    const WEEK: f64 = 604_800.0;
    for (refresh, seconds) in [
        (None, 86_400.0),
        (Some(0), 600.0),
        (Some(599), 600.0),
        (Some(601), 601.0),
        (Some(604_801), WEEK),
        (Some(u32::MAX), WEEK),
    ] {
        let mut lab = Lab::new(1, V6);
        let (_, question) = lab.question();
        lab.answer(Version::V6, &Reply { refresh, ..reply(&question, &[]) }.to_bytes());
        within(lab.question().0, seconds, seconds + 1.0);
    }
    for (limit, seconds) in [(59, 3600.0), (60, 60.0), (7200, 7200.0), (86_400, 86_400.0), (86_401, 3600.0)] {
        let mut lab = Lab::new(1, V6);
        let (_, question) = lab.question();
        let refused = Reply { status: Some(1), max_timeout: Some(limit), ..reply(&question, &[]) };
        lab.answer(Version::V6, &refused.to_bytes());
        let last = (0..24).map(|_| lab.question().0).last().unwrap();
        within(last, seconds * 0.899, seconds * 1.101);
    }
}

/// RFC 8415 §18.2.10: what a later answer does not say any more is gone.
#[test]
fn a_later_answer_takes_servers_back() {
    let mut lab = Lab::new(1, V6);
    let (_, question) = lab.question();
    lab.answer(Version::V6, &reply(&question, &["2001:db8::1"]).to_bytes());
    let (_, question) = lab.question();
    let same = lab.answer(Version::V6, &reply(&question, &["2001:db8::1"]).to_bytes());
    assert_eq!(same, [Output::Close(Version::V6)], "nothing has changed");
    let (_, question) = lab.question();
    let outputs = lab.answer(Version::V6, &reply(&question, &[]).to_bytes());
    assert_eq!(outputs.last(), Some(&Output::Changed(Version::V6)));
    assert!(lab.inquiry.servers(Version::V6).is_empty());
}

#[test]
fn another_source_begins_anew_and_none_ends_it() {
    let mut lab = Lab::new(1, V4);
    let (_, question) = lab.question();
    lab.answer(Version::V4, &ack(&question, Some(&[4, 192, 0, 2, 1])).to_bytes());
    let timeout = lab.inquiry.next_timeout();
    lab.inquiry.set_source(lab.now, Version::V4, Some(V4));
    assert_eq!((lab.outputs(), lab.inquiry.next_timeout()), (vec![], timeout), "the same");

    let moved = Source::V4(Ipv4Addr::new(100, 64, 0, 9), None);
    lab.inquiry.set_source(lab.now, Version::V4, Some(moved));
    assert_eq!(lab.outputs(), [Output::Changed(Version::V4)]);
    let (passed, question) = lab.question();
    within(passed, 1.0, 2.0);
    assert_eq!(Inform::parse(&question).unwrap().client, Ipv4Addr::new(100, 64, 0, 9));

    lab.inquiry.set_source(lab.now, Version::V4, None);
    assert_eq!(lab.outputs(), [Output::Close(Version::V4)]);
    assert_eq!(lab.inquiry.next_timeout(), None);
    assert_eq!(lab.answer(Version::V4, &ack(&question, Some(&[4, 192, 0, 2, 1])).to_bytes()), []);
}

/// Another program has the port for itself: one line, and another try after an hour.
#[test]
fn a_port_that_cannot_be_had() {
    for source in [V4, V6] {
        let mut lab = Lab::new(1, source);
        lab.step();
        lab.inquiry.handle_unopened(lab.now, source.version(), "taken".to_owned());
        assert_eq!(lab.outputs(), [Output::Notice(Notice::NoSocket(source, "taken".to_owned()))]);
        let (passed, outputs) = lab.step();
        within(passed, 3600.0, 3600.0);
        assert_eq!(outputs[0], Output::Open(source));
        lab.inquiry.handle_unopened(lab.now, source.version(), "taken".to_owned());
        assert_eq!(lab.outputs(), [], "said once");
    }
}

#[test]
fn the_client_identifier_is_the_installations() {
    let duid = |seed| {
        let mut lab = Lab::new(seed, V6);
        InformationRequest::parse(&lab.question().1).unwrap().client
    };
    assert_eq!(duid(1), duid(2));
    assert_eq!((duid(1)[8] >> 4, duid(1)[10] >> 6), (8, 2), "RFC 9562 §5.8");
}
