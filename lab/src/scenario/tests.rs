use super::run;

fn failure(text: &str) -> super::Failure {
    *run("a.txt", text, 1).expect_err("it must fail")
}

#[test]
fn what_is_not_understood_fails_where_it_stands() {
    for line in [
        "nonsense",
        "provider dances",
        "provider colour=blue",
        "gateway nat=maybe",
        "expect miracles",
        "app: ok",
        "nobody: AddPortMapping:1 ext=1/TCP int=1",
        "app: AddPortMapping ext=8080/TCP int=8080",
        "app: AddPortMapping:1 ext=8080/TCP",
        "app: AddPortMapping:1 ext=8080/TCP int=8080 colour=blue",
        "app: MakeCoffee:1",
        "app: subscribes WANIPConnection:3",
        "app: subscribes Coffee:1",
        "app: renews",
        "app: hears nothing",
        "app: callback sings",
        "after tea",
        "expect pcp MAP 8080/TCP with milk",
    ] {
        let failure = failure(&format!("host app 192.168.1.10\n# a comment\n{line}\n"));
        assert_eq!((failure.line, failure.text.as_str()), (3, line));
        assert_eq!(failure.expected, "a directive", "{line}");
    }
}

#[test]
fn what_is_not_met_says_what_was_there_and_how_it_came() {
    let failure =
        failure("host app 192.168.1.10\napp: AddPortMapping:1 ext=8080/TCP int=8080\napp: error 718\n");
    let text = failure.to_string();
    assert!(text.starts_with("a.txt:3: app: error 718\n"), "{text}");
    assert_eq!((failure.expected.as_str(), &failure.got[..8]), ("error 718", "ok after"), "{text}");
    assert!(text.contains("-> PCP MAP request TCP internal 8080"), "{text}");
    assert!(text.contains("* app: AddPortMapping:1"), "{text}");
}

#[test]
fn a_request_without_a_line_about_its_answer_fails() {
    let failure = failure("host app 192.168.1.10\napp: AddPortMapping:1 ext=8080/TCP int=8080\n");
    assert_eq!(failure.got, "the end");
}

#[test]
fn an_event_without_a_line_or_another_than_expected_fails() {
    let begin = "host app 192.168.1.10\napp: subscribes WANCommonInterfaceConfig:1\n";
    for (end, expected, got) in [
        ("after 1s\n", "a line about each event of app", "event 0: PhysicalLinkStatus=\"Up\""),
        ("after 1s\napp: hears nothing\n", "app hears nothing", "event 0: PhysicalLinkStatus=\"Up\""),
        (
            "app: hears PhysicalLinkStatus=Down\n",
            "app hears PhysicalLinkStatus=Down",
            "event 0: PhysicalLinkStatus=\"Up\"",
        ),
        (
            "app: hears PhysicalLinkStatus=Up Uptime=*\n",
            "app hears PhysicalLinkStatus=Up Uptime=*",
            "event 0: PhysicalLinkStatus=\"Up\"",
        ),
        ("app: hears PhysicalLinkStatus=Up seq=1\n", "seq=1", "event 0: PhysicalLinkStatus=\"Up\""),
        (
            "app: hears PhysicalLinkStatus=Up\napp: hears PhysicalLinkStatus=*\n",
            "app hears PhysicalLinkStatus=*",
            "it hears nothing",
        ),
    ] {
        let failure = failure(&format!("{begin}{end}"));
        assert_eq!((failure.expected.as_str(), failure.got.as_str()), (expected, got), "{end}");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let text = "host app 192.168.1.10\nlink loss=0.3 jitter=40ms\n\
        app: AddPortMapping:1 ext=8080/TCP int=8080 lease=600\nafter 2h\napp: error 1\n";
    let lines = |seed| {
        let failure = run("a.txt", text, seed).expect_err("no answer is error 1");
        (failure.got, failure.trace)
    };
    assert_eq!(lines(3), lines(3));
    assert_ne!(lines(3), lines(4));
}
