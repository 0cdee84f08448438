use std::net::UdpSocket;
use std::process::Command;

use super::*;
use crate::scratch::{Directory, in_namespace};
use crate::sockets::Spec;

fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Both ends of the privileged process, without a network process but this test.
struct Bench {
    worker: Worker,
    other: Channel,
    finished: mpsc::Receiver<(u64, Answer)>,
    next: u64,
}

impl Bench {
    async fn new(directory: &Path) -> Self {
        sh("ip link set lo up
            ip link add lan0 type veth peer name lan1; ip addr add 192.168.1.1/24 dev lan0
            ip link add wan0 type veth peer name wan1; ip addr add 100.64.0.2/24 dev wan0
            for link in lan0 lan1 wan0 wan1; do ip link set $link up; done
            ip route add default via 100.64.0.1 dev wan0");
        let socket = directory.join("control.sock");
        let text = format!(
            "[lan]\ninterfaces = [\"lan0\"]\n[wan]\ninterface = \"wan0\"\n[control]\nsocket = {socket:?}\n[nat]\nforward_filter = true\n[policy]\nmappings = 1\nmappings_per_host = 1\n"
        );
        let path = directory.join("portferry.toml");
        std::fs::write(&path, &text).unwrap();
        let config = Config::parse(&path, &text).unwrap();
        let (ours, its) = channel::pair().unwrap();
        let (later, finished) = mpsc::channel(16);
        let parts =
            (Netlink::open().unwrap(), control::listen(&socket).unwrap(), Channel::new(ours).unwrap());
        let mut worker = Worker::new(config, text, &path, parts, later);
        worker.look().await;
        Self { worker, other: Channel::new(its).unwrap(), finished, next: 0 }
    }

    /// Says these octets; the answer, if there is one.
    async fn say(&mut self, octets: &[u8]) -> Option<(Answer, Option<OwnedFd>)> {
        self.worker.on_message(octets).await;
        let mut buffer = vec![0; super::super::message::MAX_ANSWER];
        let receive = self.other.receive(&mut buffer);
        let message = tokio::time::timeout(Duration::from_millis(50), receive).await.ok()?.unwrap()?;
        match serde_json::from_slice(&buffer[..message.len]).unwrap() {
            Said::Answer { answer, .. } => Some((answer, message.fd)),
            other => panic!("{other:?}"),
        }
    }

    async fn ask(&mut self, request: Request) -> Answer {
        self.next += 1;
        let octets = serde_json::to_vec(&Asked { id: self.next, request }).unwrap();
        let answer = match self.say(&octets).await {
            Some((answer, _)) => answer,
            None => self.finished.recv().await.unwrap().1,
        };
        assert!(!matches!(&answer, Answer::Text(text) if text.contains("root:")));
        answer
    }
}

/// What a network process that somebody has taken over may say, and that nothing comes of it but mappings inside policy.
#[test]
fn a_hostile_network_process() {
    in_namespace("privileged::worker::tests::a_hostile_network_process", async || {
        let scratch = Directory::new("worker");
        let mut bench = Bench::new(&scratch.0).await;
        // That of `portferry pcp-server`, and one of an uplink of before.
        sh("nft add table inet portferry-provider; nft add table inet portferry-wan7");
        assert_eq!(bench.ask(Request::Open).await, Answer::Done);
        for former in ["provider", "wan7"] {
            assert_eq!(bench.ask(Request::Forget(former.to_owned())).await, Answer::Done);
        }
        let tables = sh("nft list ruleset");
        assert!(tables.contains("portferry-provider") && !tables.contains("portferry-wan7"), "{tables}");
        let rule = |internal: &str, port| Nat1Rule {
            protocol: 6,
            external_port: port,
            internal: internal.parse().unwrap(),
            remote_peer: None,
            outermost: None,
        };
        let install = |rule| Request::Nat { place: 0, change: NatChange::Install(rule) };
        // No messages at all.
        for octets in [
            &b""[..],
            b"\0",
            b"{}",
            b"[]",
            b"{\"id\":1}",
            b"{\"id\":1,\"request\":\"Shell\"}",
            b"{\"id\":1,\"request\":{\"Exec\":\"/bin/sh\"}}",
            b"{\"id\":-1,\"request\":\"Open\"}",
            b"{\"id\":1,\"request\":\"Open\",\"more\":1}",
            b"{\"id\":1,\"request\":{\"Nat\":{\"place\":0,\"change\":{\"Install\":{}}}}}",
            &[b'['; 10_000],
        ] {
            assert!(bench.say(octets).await.is_none(), "{:?}", String::from_utf8_lossy(octets));
        }
        // Messages that ask for too much.
        let interface = || "lan0".to_owned();
        for request in [
            install(rule("8.8.8.8:8080", 8080)),
            install(rule("127.0.0.1:8080", 8080)),
            install(rule("192.168.1.1:8080", 8080)),
            install(rule("192.168.1.10:22", 8080)),
            install(rule("192.168.1.10:8080", 22)),
            install(Nat1Rule { protocol: 47, ..rule("192.168.1.10:8080", 8080) }),
            Request::Forget("../../etc".to_owned()),
            Request::Forget("wan0".to_owned()),
            Request::Forget("a b; drop".to_owned()),
            Request::Follow { place: 7, way: 0 },
            Request::Follow { place: 0, way: 7 },
            Request::Flow {
                place: 0,
                protocol: 6,
                internal: "8.8.8.8:1".parse().unwrap(),
                remote: "8.8.4.4:1".parse().unwrap(),
            },
            Request::Resolve("-x".to_owned()),
            Request::Resolve("$(reboot)".to_owned()),
            Request::Resolve("a..b".to_owned()),
            Request::Resolve("10.0.0.1".to_owned()),
            Request::Resolve("x".repeat(300)),
            Request::Socket(Spec::Http { interface: "wan0".to_owned(), addr: [100, 64, 0, 2].into() }),
            Request::Socket(Spec::Http { interface: interface(), addr: [0, 0, 0, 0].into() }),
            Request::Socket(Spec::Callback { interface: interface(), to: "8.8.8.8:80".parse().unwrap() }),
            Request::Socket(Spec::Callback { interface: interface(), to: "192.168.1.1:80".parse().unwrap() }),
            Request::Socket(Spec::Ssdp { interface: "/etc/passwd".to_owned() }),
            Request::Socket(Spec::Uplink {
                interface: "wan0".to_owned(),
                server: "8.8.8.8:53".parse().unwrap(),
                from: None,
            }),
            Request::Hook("{}".to_owned()),
            Request::Hook("{}\n{}\n".to_owned()),
            Request::Hook("$(reboot)\n".to_owned()),
            Request::Hook("{}\n".to_owned()),
            Request::Close,
            Request::Socket(Spec::Router { interface: "wan0".to_owned(), to: "8.8.8.8:80".parse().unwrap() }),
        ] {
            let answer = bench.ask(request.clone()).await;
            assert!(matches!(answer, Answer::Refused(_)), "{request:?}: {answer:?}");
        }
        // However many names it asks for, 64 wait while others are looked up, and the rest is not known.
        let busy = bench.worker.lookups.clone().acquire_many_owned(4).await.unwrap();
        let resolve = || Request::Resolve("example.net".to_owned());
        for id in 0..64 {
            let octets = serde_json::to_vec(&Asked { id, request: resolve() }).unwrap();
            assert!(bench.worker.on_message(&octets).await);
        }
        for _ in 0..200 {
            assert_eq!(bench.ask(resolve()).await, Answer::Addresses(Vec::new()));
        }
        assert!(bench.finished.try_recv().is_err(), "nobody has waited for these");
        drop(busy);
        for _ in 0..64 {
            bench.finished.recv().await.unwrap();
        }
        // Where there is no program, and no such uplink, nothing happens.
        let start = "{\"version\":1,\"event\":\"start\",\"time\":1}\n".to_owned();
        assert_eq!(bench.ask(Request::Hook(start)).await, Answer::Done);
        let nowhere = Request::Nat { place: 9, change: NatChange::Install(rule("192.168.1.10:8080", 8080)) };
        assert!(matches!(bench.ask(nowhere).await, Answer::Refused(_)));
        let move_to = |outermost: &str| {
            let outermost = Some(outermost.parse().unwrap());
            Request::Nat { place: 0, change: NatChange::Move { protocol: 6, port: 8080, outermost } }
        };
        assert_eq!(bench.ask(move_to("1.1.1.1:443")).await, Answer::Done, "nothing is there to be moved");
        // A program of the router's has this one.
        let vpn = UdpSocket::bind("100.64.0.2:51820").unwrap();
        let taken = Nat1Rule { protocol: 17, ..rule("192.168.1.10:51820", 51820) };
        assert_eq!(bench.ask(install(taken)).await, Answer::PortInUse);
        drop(vpn);
        sh("nft add table inet portferry-wan8");
        let late = bench.ask(Request::Forget("wan8".to_owned())).await;
        assert!(matches!(late, Answer::Refused(_)), "{late:?}");
        sh("nft delete table inet portferry-wan8");
        assert_eq!(sh("nft list ruleset"), tables, "none of that has changed anything");
        // What it can do.
        assert_eq!(bench.ask(install(rule("192.168.1.10:8080", 8080))).await, Answer::Done);
        for hijack in ["1.1.1.1:443", "192.168.1.9:8080"] {
            assert!(matches!(bench.ask(move_to(hijack)).await, Answer::Refused(_)), "{hijack}");
        }
        assert_eq!(bench.ask(move_to("203.0.113.7:8080")).await, Answer::Done);
        assert_eq!(bench.ask(install(rule("192.168.1.11:8081", 8081))).await, Answer::Done);
        let full = bench.ask(install(rule("192.168.1.12:8082", 8082))).await;
        assert!(matches!(full, Answer::Refused(_)), "{full:?}");
        assert!(sh("nft list ruleset").contains("192.168.1.11 . 8081"));
        let remove = NatChange::Remove(rule("192.168.1.11:8081", 8081));
        assert_eq!(bench.ask(Request::Nat { place: 0, change: remove }).await, Answer::Done);
        assert!(!sh("nft list ruleset").contains("192.168.1.11 . 8081"));
        // Nor more than one look at the same configuration, whatever stands in its place.
        let Answer::Text(first) = bench.ask(Request::Configuration).await else { unreachable!() };
        let quoted = format!("[lan]\ninterfaces = ['{}']\n", "\"".repeat(60_000));
        for bad in ["[lan]\n".to_owned(), format!("{first}{}", "#\n".repeat(config::MAX_LEN / 2)), quoted] {
            std::fs::write(scratch.0.join("portferry.toml"), bad).unwrap();
            assert!(matches!(bench.ask(Request::Configuration).await, Answer::Failed(78, _)));
        }
        // The longest that there can be arrives.
        let longest = format!("{first}#{}", "\"".repeat(config::MAX_LEN - first.len() - 1));
        std::fs::write(scratch.0.join("portferry.toml"), &longest).unwrap();
        assert_eq!(bench.ask(Request::Configuration).await, Answer::Text(longest));
        // What cannot be said is no silence.
        let endless = Said::Answer { id: 0, answer: Answer::Text("x".repeat(8 << 20)) };
        assert!(!bench.worker.say(&endless, None).await);
        // What is forwarded is filtered until somebody stops the whole, whatever this process does: it ends, it reads nothing.
        let standing = sh("nft list ruleset");
        assert!(standing.contains("drop"), "{standing}");
        assert!(matches!(bench.ask(Request::Close).await, Answer::Refused(_)));
        bench.worker.end_for_it().await;
        assert_eq!(sh("nft list ruleset"), standing);
        bench.worker.stopping = true;
        assert_eq!(bench.ask(Request::Close).await, Answer::Done);
        assert_eq!(sh("nft list tables"), "table inet portferry-provider\n");
    });
}
