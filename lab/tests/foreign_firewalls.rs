//! `[firewall] integrate`: packet filters of somebody else's that drop what is forwarded let through what belongs to a mapping or a
//! pinhole, also after they were loaded anew, and nothing of it is left in them: not by a stop, not by kill -9 and
//! `portferry run --cleanup`. The real ufw and firewalld of Debian, and rules in fw4's layout. Needs root, see [`lab::netns`].
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test foreign_firewalls
//! ```

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::process::Output;

use common::firewalls::{Firewalld, arrives_v6, listener_v6, load_fw4, ufw_files, with_files, with_ipv6};
use common::{
    CASCADED, ControlPoint, NAT, SECOND, TCP, interworking_subject, listener, reaches, reaches_nobody, ready,
    skipped, there_is, try_reach,
};
use lab::netns::{Host, LAN1_V6, Network, Process, text};
use lab::provider::{Options, Provider};
use lab::subject::{self, Subject};
use lab::wait::eventually;
use serde_json::Value;

const INTEGRATED: &str = "[firewall]\nintegrate = \"auto\"\n";
/// Of IPv6, and open by a pinhole.
const PINHOLE: u16 = 8081;
/// Of IPv6, and nobody's.
const CLOSED: u16 = 8082;

/// A home with a mapping's listener, and one of IPv6.
struct Home<'a> {
    network: &'a Network,
    subject: Subject,
    _provider: Provider<'a>,
    _listeners: [Process; 3],
}

impl<'a> Home<'a> {
    fn new(network: &'a Network, subject: Subject) -> Self {
        with_ipv6(network);
        let provider = Provider::start(network, Options::default());
        let listener_v6 = |port| listener_v6(network, port);
        let listeners = [listener(network, Host::Lan1, TCP, 8080), listener_v6(PINHOLE), listener_v6(CLOSED)];
        for port in [PINHOLE, CLOSED] {
            eventually("IPv6 of the LAN", 10 * SECOND, || arrives_v6(network, port).then_some(()));
        }
        Self { network, subject, _provider: provider, _listeners: listeners }
    }

    fn start(&self, more: &str) -> Process {
        self.subject.start(self.network, NAT, more)
    }

    #[track_caller]
    fn ready(&self, daemon: &mut Process) -> ControlPoint<'_> {
        let control_point = ready(self.network, daemon, Host::Lan1);
        control_point.adds(8080, 8080, "TCP", 3600);
        let (own, port) = (LAN1_V6.to_string(), PINHOLE.to_string());
        let said = control_point.upnpc(&["-A", "", "0", &own, &port, "TCP", "3600"]);
        assert!(said.contains("Pinhole ID = "), "{said}");
        control_point
    }

    /// Everybody's rules without what they count, and the kernel's numbers of them.
    fn rules(&self) -> String {
        let nft = self.network.run(Host::Router, "nft", ["-a", "-j", "-s", "list", "ruleset"]);
        let saved =
            ["iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"];
        let saved = saved.map(|program| {
            let output = self.network.command(Host::Router, program).output();
            let printed = output.map(|output| text(&output)).unwrap_or_default();
            let lines = printed.lines().filter(|line| !line.starts_with('#'));
            lines
                .map(|line| line.split(" [").next().unwrap_or_default().to_owned() + "\n")
                .collect::<String>()
        });
        [nft, saved.concat()].concat()
    }

    /// How many rules of ours there are.
    fn ours(&self) -> usize {
        let rules = self.rules();
        // Twice in what iptables-nft has: nft shows it, too, but for the comment.
        rules.matches("\"comment\": \"portferry\"").count() + rules.matches("--comment portferry").count()
    }

    #[track_caller]
    fn kill(&self, daemon: &mut Process) {
        daemon.signal("KILL");
        daemon.wait(5 * SECOND);
    }

    fn cleanup(&self) -> Output {
        let Subject::Portferry(program) = &self.subject else { panic!("it interworks") };
        let mut command = self.network.command(Host::Router, "timeout");
        command.arg("60").arg(program).args(["run", "--cleanup", "--config"]);
        command.arg(self.network.directory().join("portferry.toml")).output().expect("it runs")
    }

    #[track_caller]
    fn cleans_up(&self) -> String {
        let output = self.cleanup();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).expect("it is text")
    }

    #[track_caller]
    fn is_open(&self) {
        reaches(self.network, TCP, 8080, "lan1");
        assert!(arrives_v6(self.network, PINHOLE), "the pinhole of IPv6");
        assert!(!arrives_v6(self.network, CLOSED), "anything else of IPv6 is closed");
    }

    /// Whether what has no mark is dropped as before; `v4`: so are mappings.
    #[track_caller]
    fn is_closed(&self, v4: bool) {
        if v4 {
            reaches_nobody(self.network, TCP, 8080);
        } else {
            reaches(self.network, TCP, 8080, "lan1");
        }
        assert!(!arrives_v6(self.network, PINHOLE), "IPv6");
    }

    /// What doctor says with this configuration, whatever the running gateway's is: id and firewall.
    #[track_caller]
    fn doctor(&self, more: &str) -> BTreeSet<(String, String)> {
        let Subject::Portferry(program) = &self.subject else { panic!("it interworks") };
        let file = self.network.directory().join("doctor.toml");
        fs::write(&file, subject::configuration(self.network, NAT, more)).expect("the directory is ours");
        let mut command = self.network.command(Host::Router, "timeout");
        command.arg("60").arg(program).args(["doctor", "--json", "--config"]).arg(file);
        let output = command.output().expect("it runs");
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", text(&output)));
        let findings = report["findings"].as_array().expect("a list of findings").iter();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        findings.map(|finding| (text(&finding["id"]), text(&finding["data"]["firewall"]))).collect()
    }

    /// A firewall that runs: `reload` has it load its rules anew, `v4` says that it drops mappings by itself, and it has so many
    /// rules of ours.
    fn lives_with(&self, firewall: &str, reload: impl Fn(), v4: bool, rules: usize, names: &[&str]) {
        let before = self.rules();
        let has = |found: &BTreeSet<(String, String)>, id: &str| {
            found.contains(&(id.to_owned(), firewall.to_owned()))
        };
        let mut daemon = self.start("");
        let _ = self.ready(&mut daemon);
        self.is_closed(v4);
        assert_eq!(self.ours(), 0, "its own table only");
        let found = self.doctor(INTEGRATED);
        assert!(has(&found, "firewall-rule-missing"), "{found:?}");
        daemon.terminate(30 * SECOND);
        assert_eq!(self.rules(), before);

        let mut daemon = self.start(INTEGRATED);
        let _ = self.ready(&mut daemon);
        assert_eq!(self.ours(), rules);
        self.is_open();
        let found = self.doctor(INTEGRATED);
        assert!(has(&found, "firewall-rule") && !has(&found, "firewall-forward-drops"), "{found:?}");
        // It is put back by itself, once.
        for _ in 0..2 {
            reload();
            let open = || try_reach(self.network, TCP, 8080) && arrives_v6(self.network, PINHOLE);
            eventually("both after the reload", 15 * SECOND, || open().then_some(()));
        }
        eventually("our rule, once", 15 * SECOND, || (self.ours() == rules).then_some(()));
        daemon.terminate(30 * SECOND);
        assert_eq!(self.ours(), 0, "a stop takes it out");
        let before = self.rules();

        // A killed one's is taken over.
        let mut daemon = self.start(INTEGRATED);
        let _ = self.ready(&mut daemon);
        self.kill(&mut daemon);
        assert_eq!(self.ours(), rules, "it stands, as the table does");
        reaches(self.network, TCP, 8080, "lan1");
        let mut daemon = self.start(INTEGRATED);
        daemon.await_log("is running", 15 * SECOND);
        assert_eq!(self.ours(), rules, "no second one");
        // What was stored is installed right after that line.
        let open = || try_reach(self.network, TCP, 8080) && arrives_v6(self.network, PINHOLE);
        eventually("the mapping and the pinhole", 5 * SECOND, || open().then_some(()));
        self.is_open();

        // Not while it runs.
        let refused = self.cleanup();
        assert_eq!(refused.status.code(), Some(69), "{}", text(&refused));
        assert_eq!(text(&refused).lines().count(), 1, "{}", text(&refused));
        self.is_open();
        self.kill(&mut daemon);
        let said = self.cleans_up();
        let mut expected = vec!["removed table inet portferry".to_owned()];
        expected.extend(names.iter().map(|name| format!("removed {name}")));
        // A table of pinholes is there where that is served.
        let said: Vec<&str> = said.lines().filter(|line| *line != "removed table ip6 portferry").collect();
        assert_eq!(said, expected);
        assert_eq!(self.rules(), before, "to the last octet");
        assert_eq!(self.cleans_up(), "nothing to remove\n");
    }
}

#[test]
fn fw4() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let home = Home::new(&network, subject);
    load_fw4(home.network);
    let names = ["fw4's rule for mappings in table inet fw4, chain forward"];
    home.lives_with("fw4", || load_fw4(home.network), true, 1, &names);
}

/// What is kept over a stop is kept whole; who wants it no more takes it out at the next start.
#[test]
fn kept_over_a_stop() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let home = Home::new(&network, subject);
    load_fw4(home.network);
    let before = home.rules();
    let kept = |more: &str| {
        let text = subject::configuration(home.network, NAT, more);
        let text = text.replacen("[state]\n", "[state]\nkeep_on_stop = true\n", 1);
        let Subject::Portferry(program) = &home.subject else { panic!("it interworks") };
        subject::run(home.network, Host::Router, "portferry", program, &text)
    };
    let mut daemon = kept("[firewall]\nintegrate = \"fw4\"\n");
    let _ = home.ready(&mut daemon);
    daemon.terminate(30 * SECOND);
    assert_eq!(home.ours(), 1);
    reaches(home.network, TCP, 8080, "lan1");
    let mut daemon = kept("[firewall]\nintegrate = \"none\"\n");
    daemon.await_log("that an earlier run left", 15 * SECOND);
    assert_eq!(home.ours(), 0);
    daemon.terminate(30 * SECOND);
    // Tables of both families, and of an uplink that was.
    fs::create_dir_all(network.directory().join("state/uplink-wg0")).expect("the directory is ours");
    network.nft(
        Host::Router,
        "table ip6 portferry {}\ntable inet portferry-wg0 {}\ntable inet portferry-else {}",
    );
    let said = home.cleans_up();
    for table in ["inet portferry", "ip6 portferry", "inet portferry-wg0"] {
        assert!(said.lines().any(|line| line == format!("removed table {table}")), "{said}");
    }
    assert_eq!(said.lines().count(), 3, "{said}");
    network.nft(Host::Router, "delete table inet portferry-else");
    assert_eq!(home.rules(), before);
    // Who may not, hears so.
    let Subject::Portferry(program) = &home.subject else { panic!("it interworks") };
    let mut command = network.command(Host::Router, "setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
    command.args(["run", "--cleanup", "--config"]).arg(network.directory().join("portferry.toml"));
    let refused = command.output().expect("it runs");
    assert_eq!(refused.status.code(), Some(77), "{}", text(&refused));
}

/// By its own table, which is gone for a moment, and comes late.
#[test]
fn fw4_that_comes_late() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let home = Home::new(&network, subject);
    let mut daemon = home.start(INTEGRATED);
    daemon.await_log("not running yet: fw4, firewalld, ufw", 15 * SECOND);
    let _ = home.ready(&mut daemon);
    reaches(home.network, TCP, 8080, "lan1");
    for _ in 0..2 {
        load_fw4(home.network);
        eventually("our rule", 5 * SECOND, || (home.ours() == 1).then_some(()));
        home.is_open();
        home.network.nft(Host::Router, "delete table inet fw4");
        daemon.await_log("fw4 is gone", 15 * SECOND);
    }
    load_fw4(home.network);
    eventually("our rule", 5 * SECOND, || (home.ours() == 1).then_some(()));
    // What hosts of the LAN send to each other's mappings passes, and other interfaces' does not.
    let rule = home.network.run(Host::Router, "nft", ["list", "chain", "inet", "fw4", "forward"]);
    // Of a set nft prints the elements in any order.
    let ours = ["\"br-lan\", \"wan0\"", "\"wan0\", \"br-lan\""].map(|names| {
        format!("iifname {{ {names} }} meta mark & 0x20000000 == 0x20000000 accept comment \"portferry\"")
    });
    let first = rule.lines().find(|line| line.contains("iifname")).expect("rules");
    assert!(ours.iter().any(|ours| first.trim() == ours), "{rule}");
    // Somebody takes it out by mistake, or puts another one there.
    home.network.nft(Host::Router, "flush chain inet fw4 forward");
    eventually("our rule", 5 * SECOND, || (home.ours() == 1).then_some(()));
    daemon.terminate(30 * SECOND);
    assert_eq!(home.ours(), 0);
}

#[test]
fn ufw() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let home = Home::new(&network, subject);
    if !there_is("ufw") {
        return;
    }
    let files = ufw_files(home.network);
    lives_with_ufw(&home, &files, "");
}

/// The same of the older iptables, of which the kernel gives no news.
#[test]
fn ufw_of_the_older_iptables() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let home = Home::new(&network, subject);
    if !there_is("ufw") || !there_is("iptables-legacy") {
        return;
    }
    let works = |program: &str| {
        let output = home.network.command(Host::Router, program).args(["-S"]).output();
        output.is_ok_and(|output| output.status.success())
    };
    if !works("iptables-legacy") || !works("ip6tables-legacy") {
        return skipped("the kernel has no rules of the older iptables");
    }
    let files = ufw_files(home.network);
    let (_, alternatives) = files.iter().find(|(at, _)| *at == "/etc/alternatives").expect("one of them");
    for name in
        ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"]
    {
        let (kind, rest) = name.split_once("tables").expect("that is their name");
        let link = alternatives.join(name);
        fs::remove_file(&link).expect("it is a copy");
        let legacy = format!("/usr/sbin/{kind}tables-legacy{rest}");
        std::os::unix::fs::symlink(legacy, &link).expect("the directory is ours");
    }
    lives_with_ufw(&home, &files, " (iptables-legacy)");
}

fn lives_with_ufw(home: &Home, files: &[(&str, std::path::PathBuf)], legacy: &str) {
    // What comes for the router itself is another matter.
    let enable = ["ufw allow in on br-lan >/dev/null", "ufw --force enable >/dev/null"];
    with_files(home.network, files, &enable);
    let names = [
        format!("ufw's rule for mappings in table ip filter, chain ufw-before-forward{legacy}"),
        format!("ufw's rule for mappings in table ip6 filter, chain ufw6-before-forward{legacy}"),
    ];
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let reload = || drop(with_files(home.network, files, &["ufw reload >/dev/null"]));
    home.lives_with("ufw", reload, true, 2, &names);
}

/// It lets pass what is translated, by itself; pinholes of IPv6 need the rule.
#[test]
fn firewalld() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let home = Home::new(&network, subject);
    if !there_is("firewalld") || !there_is("dbus-daemon") {
        return;
    }
    let firewall = Firewalld::start(home.network);
    for line in [
        "--zone=internal --change-interface=br-lan",
        "--zone=internal --add-port=5431/tcp",
        "--zone=internal --add-port=1900/udp",
    ] {
        firewall.tell(&format!("--permanent {line}"));
    }
    firewall.tell("--reload");
    let names = ["firewalld's rule for mappings in table inet firewalld, chain filter_FORWARD"];
    home.lives_with("firewalld", || drop(firewall.tell("--reload")), false, 1, &names);
}

/// Newer ones may be the only ones that change their table; nft stands in for one that does.
#[test]
fn firewalld_that_keeps_its_table_to_itself() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let home = Home::new(&network, subject);
    let rules = "add table inet firewalld { flags owner; }\n\
                 add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; }\n\
                 add rule inet firewalld filter_FORWARD ct state established,related accept\n\
                 add rule inet firewalld filter_FORWARD ct status dnat accept\n\
                 add rule inet firewalld filter_FORWARD iifname wan0 reject\n";
    let owner = format!("(printf '{rules}'; exec sleep 600) | exec nft -i");
    let _owner = network.spawn(Host::Router, "owner", "sh", ["-c", &owner]);
    let there = || network.run(Host::Router, "nft", ["list", "ruleset"]).contains("iifname \"wan0\" reject");
    eventually("the owned table", 10 * SECOND, || there().then_some(()));
    let mut daemon = home.start(INTEGRATED);
    daemon.await_log(
        "firewalld has no rule for mappings: it keeps its table to itself: set NftablesTableOwner=no",
        15 * SECOND,
    );
    let _ = home.ready(&mut daemon);
    home.is_closed(false);
    let found = home.doctor(INTEGRATED);
    assert!(found.contains(&("firewall-rule-closed".to_owned(), "firewalld".to_owned())), "{found:?}");
    daemon.terminate(30 * SECOND);
    assert_eq!(home.cleans_up(), "nothing to remove\n");
}
