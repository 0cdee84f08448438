//! The errand in virtual time: what is sent when, what is believed, and how it ends.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use engine::entropy::SeededEntropy;
use engine::time::Instant;
use wire::natpmp;
use wire::pcp::{
    self, Body, GetData, MapData, NextMapping, Nonce, OptionCode, PcpOption, Protocol, Request, Response,
    ResultCode,
};

use super::client::{Client, Event, Route};
use super::message::{Answer, Ignored, Question};
use super::note::Note;
use super::outcome::{Code, Outcome, Refusal};
use super::parse::Suggestion;
use super::plan::{Job, Mapping, Plan, Speak};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(100, 64, 0, 2));
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 114, 1);
const NONCE: Nonce = Nonce([7; 12]);

fn server() -> SocketAddr {
    "100.64.0.1:5351".parse().unwrap()
}

fn mapping() -> Mapping {
    Mapping {
        nonce: NONCE,
        protocol: Protocol::TCP,
        internal_port: 8080,
        suggestion: Suggestion { addr: None, port: 8080 },
        lifetime: 3600,
        peer: None,
        options: vec![],
        keep: false,
    }
}

fn kept() -> Job {
    Job::Mapping(Mapping { keep: true, ..mapping() })
}

fn plan(job: Job) -> Plan {
    Plan { job, speak: Speak::Auto, patience: Duration::from_secs(10), retries: None }
}

/// A client, its clock and what it has done.
struct Rig {
    client: Client,
    entropy: SeededEntropy,
    now: Instant,
    sent: Vec<(Instant, Question)>,
    notes: Vec<Note>,
    ignored: Vec<Ignored>,
    told: u32,
    ended: Option<Outcome>,
}

impl Rig {
    fn new(plan: Plan) -> Self {
        let mut entropy = SeededEntropy::new(1);
        let now = Instant::from_secs(1000);
        let client = Client::new(now, plan, Route { server: server(), client: CLIENT }, &mut entropy);
        let mut rig =
            Self { client, entropy, now, sent: vec![], notes: vec![], ignored: vec![], told: 0, ended: None };
        rig.drain();
        rig
    }

    fn of(job: Job) -> Self {
        Self::new(plan(job))
    }

    fn drain(&mut self) {
        while let Some(event) = self.client.poll_event() {
            assert_eq!(self.ended, None, "nothing comes after the end");
            match event {
                Event::Send { bytes, question, .. } => {
                    assert_eq!(bytes, question.to_bytes());
                    self.sent.push((self.now, question));
                }
                Event::Note(note) => self.notes.push(note),
                Event::Ignored { why, .. } => self.ignored.push(why),
                Event::Told { .. } => self.told += 1,
                Event::Answered { .. } => {}
                Event::Ended(outcome) => self.ended = Some(outcome),
            }
        }
    }

    /// Lets time pass, and does all that is due in it.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.client.next_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.client.handle_timeout(self.now, &mut self.entropy);
            self.drain();
        }
        self.now = end;
    }

    fn pass_secs(&mut self, seconds: u64) {
        self.pass(Duration::from_secs(seconds));
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.receive_from(server(), bytes);
    }

    fn receive_from(&mut self, from: SocketAddr, bytes: &[u8]) {
        self.client.handle_datagram(self.now, from, bytes, &mut self.entropy);
        self.drain();
    }

    fn interrupt(&mut self) {
        self.client.handle_interrupt(self.now, &mut self.entropy);
        self.drain();
    }

    fn last(&self) -> Request {
        match self.sent.last() {
            Some((_, Question::Pcp(request))) => request.clone(),
            other => panic!("a PCP request, not {other:?}"),
        }
    }

    fn last_map(&self) -> MapData {
        match self.last().body {
            Body::Map(map) => map,
            other => panic!("MAP, not {other:?}"),
        }
    }

    /// Seconds since the beginning of all that was sent.
    fn times(&self) -> Vec<f64> {
        let start = self.sent[0].0;
        self.sent.iter().map(|(at, _)| (*at - start).as_secs_f64()).collect()
    }

    /// SUCCESS for the last MAP request, with another external port if wanted.
    fn grant(&mut self, external_port: u16, lifetime: u32) {
        let options = self.last().options;
        self.grant_with(external_port, lifetime, options);
    }

    fn grant_with(&mut self, external_port: u16, lifetime: u32, options: Vec<PcpOption>) {
        let bytes = self.success(external_port, lifetime, options);
        self.receive(&bytes);
    }

    fn success(&self, external_port: u16, lifetime: u32, options: Vec<PcpOption>) -> Vec<u8> {
        let external_addr = pcp::mapped(EXTERNAL);
        let body = Body::Map(MapData { external_port, external_addr, ..self.last_map() });
        self.response(ResultCode::SUCCESS, lifetime, body, options)
    }

    fn response(&self, result: ResultCode, lifetime: u32, body: Body, options: Vec<PcpOption>) -> Vec<u8> {
        let epoch = u32::try_from(self.now.as_secs()).unwrap();
        Response { result, lifetime, epoch, body, options }.to_bytes()
    }

    fn refuse(&mut self, result: ResultCode, lifetime: u32) {
        let Request { body, options, .. } = self.last();
        let bytes = self.response(result, lifetime, body, options);
        self.receive(&bytes);
    }
}

fn refused(code: ResultCode, lifetime: u32) -> Option<Outcome> {
    Some(Outcome::Refused(Refusal { code: Code::Pcp(code), lifetime, version: None }))
}

// ── One question ───────────────────────────────────────────────────────────────────────────────────────────────────

/// RFC 6887 §8.1.1, but 1 s at first: the same octets each time, ±10 %, until nobody waits any more.
#[test]
fn a_question_is_repeated_until_patience_ends() {
    let mut rig = Rig::of(Job::Mapping(mapping()));
    rig.pass_secs(60);
    let times = rig.times();
    assert_eq!(times.len(), 4, "{times:?}");
    let mut expected = 1.0;
    for pair in times.windows(2) {
        let wait = pair[1] - pair[0];
        assert!((wait / expected - 1.0).abs() < 0.1001, "{times:?}");
        expected = 2.0 * wait;
    }
    assert!(rig.sent.iter().all(|(_, question)| *question == rig.sent[0].1));
    let waited = Duration::from_secs(10);
    assert_eq!(rig.ended, Some(Outcome::Silent { tries: 4, waited, ignored: 0 }));
}

#[test]
fn retries_end_it_sooner() {
    let mut rig = Rig::new(Plan { retries: Some(0), ..plan(Job::Mapping(mapping())) });
    rig.pass_secs(60);
    let Some(Outcome::Silent { tries: 1, waited, .. }) = rig.ended else { panic!("{:?}", rig.ended) };
    assert!(waited < Duration::from_millis(1101), "{waited:?}");
}

/// RFC 6886 §3.1: 250 ms, doubling.
#[test]
fn nat_pmp_has_its_own_pace() {
    let mut rig = Rig::new(Plan { speak: Speak::NatPmp, ..plan(Job::Mapping(mapping())) });
    rig.pass_secs(5);
    assert_eq!(rig.times(), [0.0, 0.25, 0.75, 1.75, 3.75]);
}

#[test]
fn a_grant_ends_it() {
    let mut rig = Rig::of(Job::Mapping(mapping()));
    rig.grant(9090, 1800);
    let Some(Outcome::Granted(grant)) = &rig.ended else { panic!("{:?}", rig.ended) };
    assert_eq!((grant.external_addr, grant.external_port), (Some(EXTERNAL.into()), 9090));
    assert_eq!((grant.lifetime, grant.nonce), (1800, Some(NONCE)));
    assert_eq!(grant.internal, SocketAddr::new(CLIENT, 8080));
    rig.pass_secs(10_000);
    assert_eq!(rig.sent.len(), 1);
}

/// RFC 6887 §8.3: what is not believed is told, counted and changes nothing.
#[test]
fn what_is_not_believed_changes_nothing() {
    let mut rig = Rig::of(Job::Mapping(mapping()));
    let good = rig.success(8080, 60, vec![]);
    let stranger: SocketAddr = "100.64.0.9:5351".parse().unwrap();
    rig.receive_from(stranger, &good);
    rig.receive_from(SocketAddr::new(server().ip(), 5352), &good);
    let mut other_nonce = good.clone();
    other_nonce[24] ^= 1;
    rig.receive(&other_nonce);
    rig.receive(&good[..59]);
    rig.receive(&[]);
    assert_eq!(
        rig.ignored,
        [
            Ignored::OtherSource(stranger),
            Ignored::OtherSource(SocketAddr::new(server().ip(), 5352)),
            Ignored::OtherNonce,
            Ignored::Malformed,
            Ignored::Malformed,
        ]
    );
    assert_eq!(rig.ended, None);
    rig.pass_secs(10);
    assert!(matches!(rig.ended, Some(Outcome::Silent { ignored: 5, .. })), "{:?}", rig.ended);
}

#[test]
fn a_refusal_ends_it() {
    let mut rig = Rig::of(Job::Mapping(mapping()));
    rig.refuse(ResultCode::USER_EX_QUOTA, 30);
    assert_eq!(rig.ended, refused(ResultCode::USER_EX_QUOTA, 30));
}

/// O-6: a client learns from a missing option that it was not processed.
#[test]
fn options_that_the_server_ignored_are_told() {
    let options = vec![PcpOption::Description(b"web".to_vec()), reset()];
    let mut rig = Rig::of(Job::Mapping(Mapping { options, ..mapping() }));
    rig.grant_with(8080, 60, vec![reset()]);
    assert_eq!(rig.notes, [Note::NotProcessed(vec![OptionCode::DESCRIPTION])]);
    assert!(matches!(rig.ended, Some(Outcome::Granted(_))));
}

/// RFC 7753: PORT_SET is absent where one port was granted, which does not tell that it was ignored.
#[test]
fn one_port_instead_of_a_set() {
    let set = |size| PcpOption::PortSet(pcp::PortSet { size, first_internal_port: 8080, parity: false });
    for (size, told) in [(4, true), (1, false)] {
        let mut rig = Rig::of(Job::Mapping(Mapping { options: vec![set(size)], ..mapping() }));
        rig.grant_with(8080, 60, vec![]);
        let notes: Vec<_> = rig.notes.iter().map(ToString::to_string).collect();
        assert!(notes.iter().all(|note| note.contains("one port")), "{notes:?}");
        assert_eq!(notes.len(), usize::from(told));
    }
}

fn reset() -> PcpOption {
    super::plan::reset_filters(None)
}

#[test]
fn nobody_is_there() {
    let mut rig = Rig::of(Job::Announce { options: vec![] });
    rig.client.handle_unreachable(rig.now, true, "refused");
    rig.drain();
    assert_eq!(rig.ended, Some(Outcome::Unreachable { closed: true, error: "refused".into() }));
}

#[test]
fn announce_is_answered() {
    let mut rig = Rig::of(Job::Announce { options: vec![] });
    let bytes = rig.response(ResultCode::SUCCESS, 0, Body::Announce, vec![]);
    rig.receive(&bytes);
    assert_eq!(rig.ended, Some(Outcome::Alive));
}

#[test]
fn a_success_without_a_lifetime_is_no_mapping() {
    let mut rig = Rig::of(Job::Mapping(mapping()));
    rig.grant(8080, 0);
    assert!(matches!(&rig.ended, Some(Outcome::Nonsense(what)) if what.contains("0 s")), "{:?}", rig.ended);
}

// ── Versions ───────────────────────────────────────────────────────────────────────────────────────────────────────

const SPEAKS_NAT_PMP: [u8; 8] = [0, 129, 0, 1, 0, 0, 0, 9];

/// RFC 6887 §9: NAT-PMP only after the server has named version 0.
#[test]
fn auto_falls_back_to_nat_pmp() {
    let mut rig = Rig::of(Job::Mapping(mapping()));
    rig.receive(&SPEAKS_NAT_PMP);
    assert_eq!(rig.notes, [Note::FellBack]);
    let protocol = natpmp::Transport::Tcp;
    let request = natpmp::Request::Map { protocol, internal_port: 8080, external_port: 8080, lifetime: 3600 };
    assert_eq!(rig.sent[1].1, Question::NatPmp(request));
    let (result, epoch) = (natpmp::ResultCode::SUCCESS, 10);
    let (internal_port, external_port, lifetime) = (8080, 8081, 3600);
    rig.receive(
        &natpmp::Response::Map { result, epoch, protocol, internal_port, external_port, lifetime }.to_bytes(),
    );
    let Some(Outcome::Granted(grant)) = &rig.ended else { panic!("{:?}", rig.ended) };
    assert_eq!((grant.external_addr, grant.external_port, grant.nonce), (None, 8081, None));
}

/// Both copies of the question are answered with version 0.
#[test]
fn a_second_refusal_of_the_version_is_no_answer_to_nat_pmp() {
    let mut rig = Rig::of(Job::Mapping(mapping()));
    rig.pass(Duration::from_millis(1200));
    rig.receive(&SPEAKS_NAT_PMP);
    rig.receive(&SPEAKS_NAT_PMP);
    assert_eq!((rig.ended, rig.ignored), (None, vec![Ignored::OtherPage]));
}

#[test]
fn without_auto_version_0_is_a_refusal() {
    let mut rig = Rig::new(Plan { speak: Speak::Pcp, ..plan(Job::Mapping(mapping())) });
    rig.receive(&SPEAKS_NAT_PMP);
    let code = Code::Pcp(ResultCode::UNSUPP_VERSION);
    assert_eq!(rig.ended, Some(Outcome::Refused(Refusal { code, lifetime: 0, version: Some(0) })));
    assert_eq!(rig.sent.len(), 1);
}

#[test]
fn what_nat_pmp_has_no_words_for() {
    let job = Job::Get { filters: GetData::ALL, options: vec![] };
    let mut rig = Rig::of(job);
    rig.receive(&SPEAKS_NAT_PMP);
    assert!(matches!(rig.ended, Some(Outcome::Inexpressible(_))), "{:?}", rig.ended);
}

#[test]
fn nat_pmp_refuses_too() {
    let mut rig = Rig::new(Plan { speak: Speak::NatPmp, ..plan(Job::Mapping(mapping())) });
    rig.receive(&[0, 130, 0, 4, 0, 0, 0, 9, 0x1f, 0x90, 0, 0, 0, 0, 0, 0]);
    let code = Code::NatPmp(natpmp::ResultCode::OUT_OF_RESOURCES);
    assert_eq!(rig.ended, Some(Outcome::Refused(Refusal { code, lifetime: 0, version: None })));
}

// ── What is given back ─────────────────────────────────────────────────────────────────────────────────────────────

fn strict() -> Job {
    Job::Mapping(Mapping { options: vec![PcpOption::PreferFailure], ..mapping() })
}

/// RFC 6887 §13.2: `left` as in the outcome.
fn not_as_asked(left: Option<u32>) -> Outcome {
    let (option, asked, got) =
        (OptionCode::PREFER_FAILURE, "port 8080".to_owned(), "203.0.114.1:8081".to_owned());
    Outcome::NotAsAsked { option, asked, got, left }
}

/// RFC 6887 §13.2, K-17: a success with another port is none; its delete has the same nonce and no PREFER_FAILURE.
#[test]
fn prefer_failure_that_was_passed_over_is_given_back() {
    let mut rig = Rig::of(strict());
    rig.grant(8081, 3600);
    assert_eq!(rig.ended, None);
    let Request { lifetime, options, .. } = rig.last();
    assert_eq!((lifetime, options), (0, vec![]));
    assert_eq!((rig.last_map().nonce, rig.last_map().external_port), (NONCE, 0));
    rig.grant(0, 0);
    assert_eq!(rig.ended, Some(not_as_asked(Some(0))));
    assert_eq!(rig.notes, [Note::GivingBack]);
}

#[test]
fn prefer_failure_that_was_honoured() {
    let mut rig = Rig::of(strict());
    rig.grant(8080, 3600);
    assert!(matches!(rig.ended, Some(Outcome::Granted(_))));
    let addr = Some(IpAddr::from([198, 51, 100, 7]));
    let options = vec![PcpOption::PreferFailure];
    let suggestion = Suggestion { addr, port: 8080 };
    let mut rig = Rig::of(Job::Mapping(Mapping { suggestion, options, ..mapping() }));
    rig.grant(8080, 3600);
    assert_eq!(rig.notes, [Note::GivingBack], "another address is not what was asked for either");
}

#[test]
fn what_cannot_be_given_back_is_told() {
    let mut rig = Rig::of(strict());
    rig.grant(8081, 3600);
    rig.pass_secs(10);
    assert_eq!(rig.ended, Some(not_as_asked(Some(3590))));
    assert_eq!(rig.notes[1], Note::NotGivenBack("no answer".into()));

    let mut rig = Rig::of(strict());
    rig.grant(8081, 3600);
    rig.refuse(ResultCode::NOT_AUTHORIZED, 30);
    assert_eq!(rig.ended, Some(not_as_asked(Some(3600))));

    let mut rig = Rig::of(strict());
    rig.grant(8081, 3600);
    rig.client.handle_unreachable(rig.now, true, "refused");
    rig.drain();
    assert_eq!(rig.ended, Some(not_as_asked(Some(3600))));

    let mut rig = Rig::of(strict());
    rig.grant(8081, 3600);
    rig.grant(0, 90);
    rig.pass_secs(10);
    assert_eq!(rig.ended, Some(not_as_asked(Some(80))));
    assert_eq!(rig.notes[1], Note::NotGivenBack("the server keeps it for another 80 s".into()));
}

/// RFC 6887 §13.1: a success without THIRD_PARTY is a mapping of the one who asked. Nobody wanted that one.
#[test]
fn a_third_party_that_was_passed_over() {
    let third = vec![PcpOption::ThirdParty(pcp::mapped([10, 0, 0, 5].into()))];
    let ended = |left| {
        let (option, asked, got) = (OptionCode::THIRD_PARTY, "10.0.0.5".to_owned(), CLIENT.to_string());
        Some(Outcome::NotAsAsked { option, asked, got, left })
    };
    for keep in [false, true] {
        let mut rig = Rig::of(Job::Mapping(Mapping { keep, options: third.clone(), ..mapping() }));
        rig.grant_with(8080, 3600, vec![]);
        assert_eq!(rig.ended, None);
        let Request { lifetime, options, .. } = rig.last();
        assert_eq!((lifetime, options), (0, vec![]), "our own is deleted");
        rig.grant_with(0, 0, vec![]);
        assert_eq!(rig.ended, ended(Some(0)));
    }
    let mut rig = Rig::of(Job::Mapping(Mapping { options: third.clone(), ..mapping() }));
    rig.grant(8080, 3600);
    let Some(Outcome::Granted(grant)) = &rig.ended else { panic!("{:?}", rig.ended) };
    assert_eq!(grant.internal.to_string(), "10.0.0.5:8080");

    let Job::Mapping(delete) = delete() else { panic!("a mapping") };
    let mut rig = Rig::of(Job::Mapping(Mapping { options: third.clone(), ..delete }));
    rig.grant_with(0, 0, vec![]);
    assert_eq!(rig.ended, ended(None), "the third party's mapping is not deleted");

    let peer = Some((IpAddr::from([203, 0, 113, 9]), 443));
    let mut rig = Rig::of(Job::Mapping(Mapping { peer, options: third, ..mapping() }));
    let body = rig.last().body;
    let bytes = rig.response(ResultCode::SUCCESS, 300, body, vec![]);
    rig.receive(&bytes);
    assert_eq!(rig.ended, ended(Some(300)));
    assert_eq!(rig.notes, [Note::PeerStays { seconds: 300 }]);
}

/// A grant that comes late, or once more, is no answer to the delete: that one is waited for.
#[test]
fn a_late_grant_does_not_answer_the_delete() {
    let mut rig = Rig::of(kept());
    rig.interrupt();
    rig.grant(8080, 3600);
    assert_eq!((rig.ended.clone(), rig.told), (None, 1));
    rig.pass(Duration::from_millis(1200));
    assert_eq!((rig.sent.len(), rig.last().lifetime), (3, 0), "the delete again");
    rig.grant(0, 0);
    assert_eq!(rig.ended, Some(Outcome::Deleted { remaining: 0 }));

    for job in [strict(), Job::External { nonce: NONCE, internal_port: 8080 }] {
        let mut rig = Rig::of(job);
        rig.pass(Duration::from_millis(1200));
        assert_eq!(rig.sent.len(), 2);
        rig.grant(8081, 3600);
        rig.grant(8081, 3600);
        assert_eq!((rig.ended.clone(), rig.told), (None, 1), "the answer to the other copy");
        rig.grant(0, 0);
        assert!(rig.ended.is_some());
        assert_eq!(rig.notes, [Note::GivingBack]);
    }
}

/// RFC 6887 §15: what is still there when nobody waits any more is said.
#[test]
fn a_delete_that_leaves_a_rest() {
    let mut rig = Rig::of(kept());
    rig.grant(8080, 3600);
    rig.interrupt();
    rig.grant(0, 90);
    rig.pass_secs(10);
    assert_eq!(rig.ended, Some(Outcome::Deleted { remaining: 80 }));
}

/// Whoever does not keep a mapping has to wait, too, until what was not asked for is gone; or to say so twice.
#[test]
fn an_interrupt_does_not_stop_what_is_given_back() {
    let mut rig = Rig::of(strict());
    rig.grant(8081, 3600);
    rig.interrupt();
    assert_eq!(rig.ended, None);
    rig.grant(0, 0);
    assert!(matches!(rig.ended, Some(Outcome::NotAsAsked { .. })), "{:?}", rig.ended);
    let mut rig = Rig::of(strict());
    rig.grant(8081, 3600);
    rig.interrupt();
    rig.interrupt();
    assert!(rig.ended.is_some());
}

fn delete() -> Job {
    Job::Mapping(Mapping { lifetime: 0, suggestion: Suggestion::default(), ..mapping() })
}

/// RFC 6887 §15.1: a delete may answer that the mapping stays for a while.
#[test]
fn deletes() {
    for remaining in [0, 90] {
        let mut rig = Rig::of(delete());
        rig.grant(0, remaining);
        assert_eq!(rig.ended, Some(Outcome::Deleted { remaining }));
    }
    let mut rig = Rig::of(delete());
    rig.refuse(ResultCode::NOT_AUTHORIZED, 3580);
    assert_eq!(rig.ended, refused(ResultCode::NOT_AUTHORIZED, 3580));
}

/// The external address by a probe that does not stay.
#[test]
fn external_address_by_a_probe() {
    let mut rig = Rig::of(Job::External { nonce: NONCE, internal_port: 40_000 });
    assert_eq!((rig.last_map().protocol, rig.last_map().internal_port), (Protocol::UDP, 40_000));
    rig.grant(50_000, 120);
    assert_eq!((rig.ended.clone(), rig.last().lifetime), (None, 0));
    rig.grant(0, 0);
    assert_eq!(rig.ended, Some(Outcome::External(EXTERNAL.into())));

    let mut rig = Rig::of(Job::External { nonce: NONCE, internal_port: 40_000 });
    rig.grant(50_000, 120);
    rig.refuse(ResultCode::NOT_AUTHORIZED, 100);
    assert_eq!(rig.ended, Some(Outcome::External(EXTERNAL.into())), "it is known all the same");
    assert_eq!(rig.notes[1], Note::NotGivenBack("NOT_AUTHORIZED (2)".into()));

    let mut rig = Rig::of(Job::External { nonce: NONCE, internal_port: 40_000 });
    rig.receive(&SPEAKS_NAT_PMP);
    assert_eq!(rig.sent[1].1, Question::NatPmp(natpmp::Request::ExternalAddress));
    rig.receive(&[0, 128, 0, 0, 0, 0, 0, 9, 203, 0, 114, 1]);
    assert_eq!(rig.ended, Some(Outcome::External(EXTERNAL.into())));
}

// ── What is kept ───────────────────────────────────────────────────────────────────────────────────────────────────

/// RFC 6887 §11.2.1: 1/2 to 5/8, then 3/4 to 13/16, then 7/8 to 29/32 of the lifetime, one packet each, with what was
/// assigned as the suggestion; then it has ended, and is asked for anew as §8.1.1 says.
#[test]
fn a_kept_mapping_is_renewed_on_the_schedule_of_the_rfc() {
    let mut rig = Rig::of(kept());
    rig.grant(9090, 300);
    rig.pass_secs(299);
    let times = rig.times();
    for (n, from, to) in [(1, 150.0, 187.5), (2, 225.0, 243.75), (3, 262.5, 271.875)] {
        assert!((from..to).contains(&times[n]), "renewal {n}: {times:?}");
    }
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= 4.0), "never closer than 4 s: {times:?}");
    assert_eq!(rig.last_map().external_port, 9090);
    assert_eq!(rig.last_map().external_addr, pcp::mapped(EXTERNAL));
    rig.pass_secs(60);
    assert!(rig.notes.contains(&Note::Expired));
    assert_eq!(rig.last_map().external_port, 9090, "asked anew, with what it had");
    let anew: Vec<_> = rig.times().into_iter().filter(|at| *at >= 300.0).map(|at| at - 300.0).collect();
    assert!(anew.len() >= 4 && anew[0] == 0.0 && (2.7..=3.3).contains(&anew[1]), "{anew:?}");
    assert_eq!(rig.ended, None, "whoever keeps a mapping is patient");
}

#[test]
fn a_renewal_starts_the_schedule_again_and_an_interrupt_deletes() {
    let mut rig = Rig::of(kept());
    rig.grant(9090, 300);
    rig.pass_secs(200);
    assert_eq!(rig.sent.len(), 2);
    rig.grant(9090, 300);
    rig.pass_secs(140);
    assert_eq!(rig.sent.len(), 2, "half of the new lifetime has not passed");
    rig.interrupt();
    assert_eq!((rig.last().lifetime, rig.last_map().nonce), (0, NONCE));
    rig.grant(0, 0);
    assert_eq!(rig.ended, Some(Outcome::Deleted { remaining: 0 }));
    assert!(!rig.notes.contains(&Note::StateLost));
}

/// What was asked for may have been granted: it is deleted, too. Nobody waits for ever: the second interrupt ends it.
#[test]
fn an_interrupt_before_the_grant_deletes_too() {
    let mut rig = Rig::of(kept());
    rig.interrupt();
    assert_eq!(rig.last().lifetime, 0);
    rig.interrupt();
    assert_eq!(rig.ended, Some(Outcome::Interrupted));
    let mut rig = Rig::of(kept());
    rig.interrupt();
    rig.pass_secs(10);
    assert!(matches!(rig.ended, Some(Outcome::Silent { .. })), "a delete without an answer is no success");
}

/// RFC 6887 §12.3: PEER cannot delete.
#[test]
fn a_kept_peer_mapping_is_left_to_end() {
    let peer = Some((IpAddr::from([203, 0, 113, 9]), 443));
    let mut rig = Rig::of(Job::Mapping(Mapping { keep: true, peer, ..mapping() }));
    let Body::Peer(data) = rig.last().body else { panic!("PEER") };
    let bytes = rig.response(ResultCode::SUCCESS, 300, Body::Peer(data), vec![]);
    rig.receive(&bytes);
    let Some(held) = rig.notes.last().map(ToString::to_string) else { panic!("it says that it is held") };
    assert!(!held.contains("Ctrl-C"), "{held}");
    rig.pass_secs(100);
    rig.interrupt();
    assert_eq!(rig.sent.len(), 1);
    assert_eq!(rig.ended, Some(Outcome::Deleted { remaining: 200 }));
    assert_eq!(rig.notes.last(), Some(&Note::PeerStays { seconds: 200 }));
}

/// RFC 6887 §8.3: the same request is not repeated while an error lasts; the mapping stands until its end.
#[test]
fn a_refused_renewal_waits_as_long_as_the_error() {
    let mut rig = Rig::of(kept());
    rig.grant(9090, 300);
    rig.pass_secs(200);
    rig.refuse(ResultCode::NO_RESOURCES, 1800);
    rig.pass_secs(99);
    assert_eq!((rig.sent.len(), rig.ended.clone()), (2, None));
    rig.pass_secs(2);
    assert_eq!(rig.ended, refused(ResultCode::NO_RESOURCES, 1800));
}

/// RFC 6887 §14.2: an unasked MAP response is the mapping's new state; §14.1.3: an unasked ANNOUNCE with an epoch that is
/// not in range makes it be asked for within 5 s.
#[test]
fn what_the_server_says_unasked_about_a_kept_mapping() {
    let mut rig = Rig::of(kept());
    rig.grant(9090, 3600);
    rig.pass_secs(100);
    rig.grant(9191, 3600);
    let external = Some(SocketAddr::from((EXTERNAL, 9191)));
    assert!(rig.notes.contains(&Note::Moved { external, port: 9191 }));
    assert_eq!(rig.told, 1);
    rig.pass_secs(100);
    let announce = rig.response(ResultCode::SUCCESS, 0, Body::Announce, vec![]);
    rig.receive(&announce);
    rig.pass_secs(6);
    assert_eq!(rig.sent.len(), 1, "the epoch is in range");
    let (result, body) = (ResultCode::SUCCESS, Body::Announce);
    rig.receive(&Response { result, lifetime: 0, epoch: 0, body, options: vec![] }.to_bytes());
    assert!(rig.notes.contains(&Note::StateLost));
    rig.pass_secs(5);
    assert_eq!((rig.sent.len(), rig.last_map().external_port), (2, 9191));
}

/// RFC 6886 §3.2.1: a gateway that has lost its state says so with its external address.
#[test]
fn a_nat_pmp_gateway_that_starts_anew_is_asked_anew() {
    let mut rig = Rig::new(Plan { speak: Speak::NatPmp, ..plan(kept()) });
    let (result, protocol, lifetime) = (natpmp::ResultCode::SUCCESS, natpmp::Transport::Tcp, 3600);
    let (internal_port, external_port, epoch) = (8080, 9090, 1000);
    rig.receive(
        &natpmp::Response::Map { result, epoch, protocol, internal_port, external_port, lifetime }.to_bytes(),
    );
    rig.pass_secs(100);
    rig.receive(&natpmp::Response::ExternalAddress { result, epoch: 0, addr: EXTERNAL }.to_bytes());
    rig.pass_secs(5);
    let request = natpmp::Request::Map { protocol, internal_port, external_port, lifetime };
    assert!(rig.sent.len() >= 2, "{:?}", rig.times());
    assert!(rig.sent[1..].iter().all(|(_, question)| *question == Question::NatPmp(request)));
    assert_eq!(rig.told, 1);
}

/// RFC 6887 §8.5: it is asked for again at once, and until somebody answers (§8.1.1), with what was assigned.
#[test]
fn a_lost_state_is_recovered_from_though_datagrams_are_lost() {
    let mut rig = Rig::of(kept());
    rig.grant(9090, 3600);
    rig.pass_secs(100);
    rig.receive(&announce(0));
    rig.pass_secs(60);
    let times = rig.times();
    assert!(times.len() >= 5, "{times:?}");
    assert!((100.0..=105.0).contains(&times[1]) && (2.7..=3.3).contains(&(times[2] - times[1])), "{times:?}");
    assert_eq!((rig.last_map().external_port, rig.last_map().external_addr), (9090, pcp::mapped(EXTERNAL)));
    let body = Body::Map(rig.last_map());
    let (result, lifetime, epoch) = (ResultCode::SUCCESS, 3600, 60);
    rig.receive(&Response { result, lifetime, epoch, body, options: vec![] }.to_bytes());
    let sent = rig.sent.len();
    rig.pass_secs(1700);
    assert_eq!(rig.sent.len(), sent, "it is held again");
    assert_eq!(rig.notes.iter().filter(|note| **note == Note::StateLost).count(), 1);
}

/// RFC 6887 §8.3: a server that has lost the mapping and refuses it now is asked once more when the refusal is over.
#[test]
fn a_recovery_that_is_refused_is_tried_again() {
    let mut rig = Rig::of(kept());
    rig.grant(9090, 3600);
    rig.receive(&announce(0));
    rig.pass_secs(5);
    let body = Body::Map(rig.last_map());
    let (result, lifetime, epoch) = (ResultCode::NO_RESOURCES, 30, 5);
    rig.receive(&Response { result, lifetime, epoch, body, options: vec![] }.to_bytes());
    let sent = rig.sent.len();
    rig.pass_secs(29);
    assert_eq!(rig.sent.len(), sent);
    rig.pass_secs(2);
    assert_eq!((rig.sent.len(), rig.ended.clone()), (sent + 1, None));
}

fn announce(epoch: u32) -> Vec<u8> {
    let (result, body) = (ResultCode::SUCCESS, Body::Announce);
    Response { result, lifetime: 0, epoch, body, options: vec![] }.to_bytes()
}

/// `--retries` limits what nobody waits for, not what is asked for as long as it takes.
#[test]
fn few_retries_do_not_silence_what_is_kept() {
    let mut rig = Rig::new(Plan { retries: Some(0), ..plan(kept()) });
    rig.grant(9090, 300);
    rig.pass_secs(300);
    assert!(rig.notes.contains(&Note::Expired));
    let sent = rig.sent.len();
    rig.pass_secs(60);
    assert!(rig.sent.len() >= sent + 3, "{:?}", rig.times());
}

/// RFC 6887 §8.3: an absurd lifetime is one of 24 h.
#[test]
fn an_absurd_lifetime_is_renewed_within_a_day() {
    let mut rig = Rig::of(kept());
    rig.grant(9090, u32::MAX);
    rig.pass_secs(24 * 3600 * 5 / 8);
    assert_eq!(rig.sent.len(), 2, "{:?}", rig.times());
}

/// RFC 6887 §14.2: a mapping update may say no, and may not move what PREFER_FAILURE was asked for.
#[test]
fn an_update_is_judged_like_an_answer() {
    let options = vec![PcpOption::PreferFailure];
    let strict = Job::Mapping(Mapping { keep: true, options, ..mapping() });
    let mut rig = Rig::of(strict.clone());
    rig.grant(8080, 300);
    rig.pass_secs(100);
    rig.refuse(ResultCode::CANNOT_PROVIDE_EXTERNAL, 1800);
    assert_eq!(rig.told, 1);
    assert!(matches!(rig.notes.last(), Some(Note::RenewalRefused { left: 200, .. })), "{:?}", rig.notes);
    rig.pass_secs(201);
    assert_eq!(rig.ended, refused(ResultCode::CANNOT_PROVIDE_EXTERNAL, 1800));

    let mut rig = Rig::of(strict);
    rig.grant(8080, 300);
    rig.pass_secs(100);
    rig.grant(8081, 300);
    assert_eq!((rig.told, rig.last().lifetime), (1, 0), "given back");
    rig.grant(0, 0);
    assert!(matches!(rig.ended, Some(Outcome::NotAsAsked { .. })), "{:?}", rig.ended);
}

fn nat_pmp_map(external_port: u16, lifetime: u32) -> natpmp::Request {
    natpmp::Request::Map { protocol: natpmp::Transport::Tcp, internal_port: 8080, external_port, lifetime }
}

fn nat_pmp_granted(external_port: u16, lifetime: u32, epoch: u32) -> Vec<u8> {
    let (result, protocol, internal_port) = (natpmp::ResultCode::SUCCESS, natpmp::Transport::Tcp, 8080);
    natpmp::Response::Map { result, epoch, protocol, internal_port, external_port, lifetime }.to_bytes()
}

/// RFC 6887 §9: a server that has become one of NAT-PMP is asked by NAT-PMP, and the next time by PCP again.
#[test]
fn a_renewal_may_fall_back_to_nat_pmp() {
    let mut rig = Rig::of(kept());
    rig.grant(9090, 300);
    rig.pass_secs(200);
    assert_eq!(rig.sent.len(), 2);
    rig.receive(&SPEAKS_NAT_PMP);
    assert_eq!(rig.ended, None);
    assert_eq!(rig.sent[2].1, Question::NatPmp(nat_pmp_map(9090, 3600)));
    rig.receive(&nat_pmp_granted(9090, 300, 9));
    assert!(!rig.notes.contains(&Note::StateLost), "NAT-PMP's epoch is another clock: {:?}", rig.notes);
    rig.pass_secs(200);
    let Question::Pcp(_) = rig.sent[3].1 else { panic!("{:?}", rig.sent[3]) };
    rig.receive(&SPEAKS_NAT_PMP);
    assert_eq!(rig.sent[4].1, Question::NatPmp(nat_pmp_map(9090, 3600)));
    rig.interrupt();
    assert_eq!(rig.sent[5].1, Question::NatPmp(nat_pmp_map(0, 0)));
}

/// Whoever keeps a mapping is patient in both protocols.
#[test]
fn what_is_asked_anew_stays_patient_when_it_falls_back() {
    let mut rig = Rig::of(kept());
    rig.grant(9090, 300);
    rig.pass_secs(301);
    assert!(rig.notes.contains(&Note::Expired));
    rig.receive(&SPEAKS_NAT_PMP);
    let sent = rig.sent.len();
    rig.pass_secs(60);
    assert_eq!(rig.ended, None);
    assert!(rig.sent.len() > sent + 4, "{:?}", rig.times());
}

/// RFC 6886 §3.6: only a clock that is behind has been set back.
#[test]
fn nat_pmp_s_epoch_may_be_ahead() {
    let mut rig = Rig::new(Plan { speak: Speak::NatPmp, ..plan(kept()) });
    rig.receive(&nat_pmp_granted(9090, 3600, 1000));
    rig.pass_secs(80);
    let result = natpmp::ResultCode::SUCCESS;
    let told = |epoch| natpmp::Response::ExternalAddress { result, epoch, addr: EXTERNAL }.to_bytes();
    rig.receive(&told(5000));
    rig.pass_secs(80);
    rig.receive(&told(5068));
    assert!(!rig.notes.contains(&Note::StateLost));
    rig.pass_secs(80);
    rig.receive(&told(5135));
    assert!(rig.notes.contains(&Note::StateLost));
}

#[test]
fn an_unreachable_server_does_not_end_what_is_held() {
    let mut rig = Rig::of(kept());
    rig.grant(9090, 300);
    let refused = |rig: &mut Rig| {
        rig.client.handle_unreachable(rig.now, true, "refused");
        rig.drain();
        assert_eq!(rig.ended, None);
    };
    refused(&mut rig);
    rig.pass_secs(200);
    assert_eq!(rig.sent.len(), 2);
    rig.pass_secs(101);
    assert!(rig.notes.contains(&Note::Expired));
    refused(&mut rig);
    let before = rig.sent.len();
    rig.pass_secs(10);
    assert_eq!(rig.sent.len(), before + 2, "it is asked for anew");
}

// ── Lists ──────────────────────────────────────────────────────────────────────────────────────────────────────────

fn next(port: u16, more: bool) -> PcpOption {
    PcpOption::Next(NextMapping {
        nonce: NONCE,
        protocol: Protocol::TCP,
        more,
        internal_addr: pcp::mapped([10, 0, 0, 5].into()),
        external_addr: pcp::mapped(EXTERNAL),
        lifetime: 60,
        internal_port: port,
        external_port: port,
        options: vec![PcpOption::PreferFailure],
    })
}

fn list() -> Rig {
    Rig::of(Job::Get { filters: GetData::ALL, options: vec![] })
}

fn page(rig: &mut Rig, options: Vec<PcpOption>) {
    let bytes = rig.response(ResultCode::SUCCESS, 0, Body::Get(GetData::ALL), options);
    rig.receive(&bytes);
}

fn listed(rig: &Rig) -> Vec<u16> {
    match &rig.ended {
        Some(Outcome::Listed(all)) => all.iter().map(|next| next.internal_port).collect(),
        other => panic!("a list, not {other:?}"),
    }
}

/// `wire::pcp::query`: page after page, each asked for with the last mapping seen.
#[test]
fn a_list_is_read_to_its_end() {
    let mut rig = list();
    assert_eq!(rig.last().options, []);
    page(&mut rig, vec![next(1, true), next(2, true)]);
    let [PcpOption::Next(last)] = &rig.last().options[..] else { panic!("{:?}", rig.last()) };
    assert_eq!((last.internal_port, last.lifetime, last.options.len()), (2, 0, 0));
    page(&mut rig, vec![next(1, true), next(2, true)]);
    assert_eq!(rig.ignored, [Ignored::OtherPage], "the answer to a copy of the first question");
    rig.pass_secs(1);
    page(&mut rig, vec![next(3, true), next(4, false)]);
    assert_eq!(listed(&rig), [1, 2, 3, 4]);
}

#[test]
fn a_list_may_end_with_nothing() {
    let mut rig = list();
    rig.refuse(ResultCode::NON_EXIST_MAPPING, 30);
    assert!(listed(&rig).is_empty());
    let mut rig = list();
    page(&mut rig, vec![next(1, true)]);
    let bytes = rig.response(ResultCode::NON_EXIST_MAPPING, 30, Body::Get(GetData::ALL), vec![]);
    rig.receive(&bytes);
    assert_eq!(listed(&rig), [1]);
}

#[test]
fn a_list_that_makes_no_sense() {
    for options in [vec![], vec![next(2, true), next(1, false)], vec![next(2, true), next(2, false)]] {
        let mut rig = list();
        page(&mut rig, options);
        assert!(matches!(rig.ended, Some(Outcome::Nonsense(_))), "{:?}", rig.ended);
    }
    let mut rig = list();
    rig.refuse(ResultCode::UNSUPP_OPCODE, 1800);
    assert_eq!(rig.ended, refused(ResultCode::UNSUPP_OPCODE, 1800));
}

/// Nothing that a server says may panic, whatever state the client is in.
#[test]
fn hostile_answers() {
    let mut seeds = SeededEntropy::new(7);
    use engine::entropy::Entropy;
    for job in [
        Job::Mapping(mapping()),
        kept(),
        delete(),
        strict(),
        Job::Announce { options: vec![] },
        Job::Get { filters: GetData::ALL, options: vec![] },
        Job::External { nonce: NONCE, internal_port: 1 },
    ] {
        for _ in 0..300 {
            let mut rig = Rig::of(job.clone());
            for _ in 0..20 {
                let mut bytes = match rig.sent.last() {
                    Some((_, question)) => question.to_bytes(),
                    None => vec![],
                };
                if let Some(opcode) = bytes.get_mut(1) {
                    *opcode |= 0x80;
                }
                let mut dice = [0; 8];
                seeds.fill(&mut dice);
                let [position, value, cut, grow, ..] = dice;
                let index = usize::from(position) % bytes.len().max(1);
                if let Some(octet) = bytes.get_mut(index) {
                    *octet = value;
                }
                bytes.truncate(bytes.len().saturating_sub(usize::from(cut % 8) * usize::from(cut & 1)));
                bytes.extend(std::iter::repeat_n(value, usize::from(grow % 24)));
                rig.receive(&bytes);
                rig.pass_secs(u64::from(grow % 4));
                if value == 0 {
                    rig.interrupt();
                }
                if rig.ended.is_some() {
                    break;
                }
            }
        }
    }
}

#[test]
fn the_answer_types_tell_their_epoch() {
    let refusal = pcp::VersionRefusal { version: 0, lifetime: 0, epoch: Some(9) };
    assert_eq!(Answer::Version(refusal).epoch(), Some(9));
    assert_eq!(Answer::Version(refusal).to_string(), "UNSUPP_VERSION, the server speaks version 0 (NAT-PMP)");
}
