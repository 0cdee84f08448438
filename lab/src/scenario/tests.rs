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
