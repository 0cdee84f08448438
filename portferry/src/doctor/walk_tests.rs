//! Rules as firewalls write them, in the form that they are read in.

use super::*;
use crate::nft::reading::{Family, TableName};

fn packet() -> Packet {
    Packet {
        hook: FORWARD,
        arrives: ("wan0".to_owned(), 2),
        leaves: Some(("br-lan".to_owned(), 3)),
        source: [198, 51, 100, 20].into(),
        destination: [192, 168, 77, 10].into(),
        protocol: 17,
        source_port: 50_000,
        destination_port: 8080,
        established: false,
        translated: true,
        mark: 0,
    }
}

fn table() -> TableName {
    TableName { family: Family::Inet, name: "filter".to_owned() }
}

fn chain(name: &str, base: Option<Base>, rules: Vec<Vec<Step>>) -> Chain {
    Chain { table: table(), name: name.to_owned(), base, rules }
}

fn base(drops: bool) -> Option<Base> {
    Some(Base { hook: FORWARD, priority: 0, kind: "filter".to_owned(), drops })
}

fn translated() -> Vec<Step> {
    vec![
        Step::Load { to: 0, len: 4, what: Load::Conntrack(2) },
        Step::Mask { from: 0, to: 0, mask: vec![0x20, 0, 0, 0], xor: vec![0; 4] },
        Step::Compare { from: 0, how: Compare::Unequal, value: vec![0; 4] },
    ]
}

fn with(mut steps: Vec<Step>, verdict: Verdict) -> Vec<Step> {
    steps.push(Step::Verdict(verdict));
    steps
}

fn arrives(name: &str) -> Vec<Step> {
    vec![
        Step::Load { to: 0, len: 16, what: Load::Meta(6) },
        Step::Compare { from: 0, how: Compare::Equal, value: name.as_bytes().to_vec() },
    ]
}

fn outcome(chains: Vec<Chain>) -> Outcome {
    walk(&Ruleset { chains, ..Ruleset::default() }, &packet())
}

fn dropped(chain: &str, by: &'static str) -> Outcome {
    Outcome::Dropped(Place { table: "inet filter".to_owned(), chain: chain.to_owned(), by })
}

#[test]
fn what_chains_decide() {
    let jump = |name: &str| Verdict::Jump(name.to_owned());
    let unknown = vec![Step::Unknown("socket".to_owned())];
    for (what, chains, expected) in [
        ("no chain", vec![], Outcome::Passes),
        ("a policy", vec![chain("forward", base(true), vec![])], dropped("forward", "its policy")),
        (
            "ct status dnat accept",
            vec![chain("forward", base(true), vec![with(translated(), Verdict::Accept)])],
            Outcome::Passes,
        ),
        (
            "a rule of another interface",
            vec![chain("forward", base(true), vec![with(arrives("wan1\0"), Verdict::Accept)])],
            dropped("forward", "its policy"),
        ),
        (
            "names by their beginning",
            vec![chain("forward", base(true), vec![with(arrives("wan"), Verdict::Accept)])],
            Outcome::Passes,
        ),
        (
            "a chain that is jumped to, and comes back",
            vec![
                chain(
                    "forward",
                    base(false),
                    vec![with(arrives("wan0\0"), jump("a")), with(vec![], jump("b"))],
                ),
                chain("a", None, vec![with(vec![], Verdict::Return), with(vec![], Verdict::Drop)]),
                chain("b", None, vec![with(vec![], Verdict::Reject)]),
            ],
            dropped("b", "a reject"),
        ),
        (
            "goto comes back to nobody",
            vec![
                chain(
                    "forward",
                    base(true),
                    vec![with(vec![], Verdict::Goto("a".to_owned())), with(vec![], Verdict::Accept)],
                ),
                chain("a", None, vec![]),
            ],
            dropped("forward", "its policy"),
        ),
        (
            "an accept here is none there",
            vec![
                chain("first", base(true), vec![with(translated(), Verdict::Accept)]),
                chain("second", base(true), vec![]),
            ],
            dropped("second", "its policy"),
        ),
        (
            "what may accept",
            vec![chain("forward", base(true), vec![with(unknown.clone(), Verdict::Accept)])],
            Outcome::Unclear(
                Place { table: "inet filter".to_owned(), chain: "forward".to_owned(), by: "its policy" },
                "table inet filter, chain forward".to_owned(),
            ),
        ),
        (
            "what may drop is passed over",
            vec![chain("forward", base(false), vec![with(unknown, Verdict::Drop)])],
            Outcome::Passes,
        ),
        (
            "a chain that calls itself",
            vec![
                chain("forward", base(true), vec![with(vec![], jump("a"))]),
                chain("a", None, vec![with(vec![], jump("a"))]),
            ],
            dropped("forward", "its policy"),
        ),
    ] {
        assert_eq!(outcome(chains), expected, "{what}");
    }
}

#[test]
fn sets_and_verdict_maps() {
    let element =
        |key: &[u8], ends, verdict| Element { key: key.to_vec(), key_end: None, ends, value: None, verdict };
    let states = Set {
        key_len: 4,
        elements: vec![
            element(&2_u32.to_ne_bytes(), false, Some(Verdict::Accept)),
            element(&8_u32.to_ne_bytes(), false, Some(Verdict::Drop)),
        ],
        ..Set::default()
    };
    let ports = Set {
        key_len: 2,
        intervals: true,
        elements: vec![
            element(&[0, 0], true, None),
            element(&8000_u16.to_be_bytes(), false, None),
            element(&8081_u16.to_be_bytes(), true, None),
        ],
        ..Set::default()
    };
    let load = |what, len| Step::Load { to: 0, len, what };
    // By something that is not known: it may be any of the map's verdicts.
    let by_label = vec![
        load(Load::Conntrack(13), 4),
        Step::Lookup { set: "states".to_owned(), from: 0, to: To::Verdict, inverted: false },
    ];
    let sets = [((table(), "states".to_owned()), states.clone())].into();
    let chains = vec![chain("forward", base(true), vec![by_label])];
    assert!(matches!(walk(&Ruleset { chains, sets }, &packet()), Outcome::Unclear(..)));
    let by_state = vec![
        load(Load::Conntrack(0), 4),
        Step::Lookup { set: "states".to_owned(), from: 0, to: To::Verdict, inverted: false },
    ];
    let by_port = |inverted| {
        vec![
            load(Load::Payload { base: 2, offset: 2 }, 2),
            Step::Lookup { set: "ports".to_owned(), from: 0, to: To::Nowhere, inverted },
            Step::Verdict(Verdict::Drop),
        ]
    };
    for (rule, expected) in [
        (by_state, dropped("forward", "a rule")),
        (by_port(false), dropped("forward", "a rule")),
        (by_port(true), Outcome::Passes),
    ] {
        let chains = vec![chain("forward", base(false), vec![rule])];
        let set = |name: &str, set: &Set| ((table(), name.to_owned()), set.clone());
        let sets = [set("states", &states), set("ports", &ports)].into();
        assert_eq!(walk(&Ruleset { chains, sets }, &packet()), expected);
    }
}

/// `meta l4proto . th dport`: each field has four octets, and what is in none of the elements may have one of its own.
#[test]
fn concatenations_and_what_catches_all() {
    let element = |key: &[u8], verdict| Element {
        key: key.to_vec(),
        key_end: None,
        ends: false,
        value: None,
        verdict: Some(verdict),
    };
    let open = element(&[17, 0, 0, 0, 0x1f, 0x90, 0, 0], Verdict::Accept);
    let other = element(&[6, 0, 0, 0, 0x1f, 0x90, 0, 0], Verdict::Accept);
    let all = element(&[], Verdict::Accept);
    let look_up = vec![
        Step::Load { to: 0, len: 1, what: Load::Meta(16) },
        Step::Load { to: 4, len: 2, what: Load::Payload { base: 2, offset: 2 } },
        Step::Lookup { set: "open".to_owned(), from: 0, to: To::Verdict, inverted: false },
    ];
    for (elements, intervals, expected) in [
        (vec![open], false, Outcome::Passes),
        (vec![other.clone()], false, dropped("forward", "its policy")),
        (vec![all.clone(), other.clone()], false, Outcome::Passes),
        (vec![all, Element { ends: true, ..other }], true, Outcome::Passes),
    ] {
        let set = Set { key_len: 8, intervals, elements, ..Set::default() };
        let chains = vec![chain("forward", base(true), vec![look_up.clone()])];
        let sets = [((table(), "open".to_owned()), set)].into();
        assert_eq!(walk(&Ruleset { chains, sets }, &packet()), expected);
    }
}

/// As soon as anybody sets marks, a packet may have any.
#[test]
fn marks() {
    let of_flow = vec![
        Step::Load { to: 0, len: 4, what: Load::Conntrack(3) },
        Step::Compare { from: 0, how: Compare::Equal, value: vec![1, 0, 0, 0] },
    ];
    let mut info = vec![0; 9];
    info[0] = 1;
    let xtables = vec![Step::Match { name: "mark".to_owned(), revision: 1, info }];
    let target = Step::Target { name: "CONNMARK".to_owned() };
    for asks in [of_flow, xtables] {
        let through = chain("forward", base(true), vec![with(asks, Verdict::Accept)]);
        assert_eq!(outcome(vec![through.clone()]), dropped("forward", "its policy"));
        for sets in [Step::SetsMark, target.clone()] {
            let elsewhere = chain("elsewhere", None, vec![vec![sets]]);
            assert!(matches!(outcome(vec![through.clone(), elsewhere]), Outcome::Unclear(..)));
        }
    }
}
