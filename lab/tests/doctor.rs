//! `portferry doctor`: every fault and every warning that it can find, produced in a network of its own, and a healthy one in
//! which it finds none. Needs root, see [`lab::netns`].
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test doctor
//! ```

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use common::{
    CASCADED, NAT, NO_NAT, ROUTED, SECOND, TCP, UDP, interworking_subject, listener, reaches, reaches_nobody,
    ready, skipped,
};
use lab::netns::{EXTERNAL, Host, LAN1, Layout, Network, PROVIDER, Process, ROUTER_LAN, WAN_INTERFACE};
use lab::provider::{Options, Provider};
use lab::subject::{self, Subject};
use lab::wait::eventually;
use serde_json::Value;

/// What doctor says of a router.
struct Examined {
    code: i32,
    report: Value,
}

impl Examined {
    fn findings(&self) -> &[Value] {
        self.report["findings"].as_array().expect("a list of findings")
    }

    /// Ids of findings that have one of these verdicts.
    fn with(&self, verdicts: &[&str]) -> BTreeSet<&str> {
        let all = self.findings().iter();
        let wanted = all.filter(|finding| verdicts.contains(&finding["verdict"].as_str().unwrap_or_default()));
        wanted.filter_map(|finding| finding["id"].as_str()).collect()
    }

    fn bad(&self) -> BTreeSet<&str> {
        self.with(&["warning", "fault"])
    }

    #[track_caller]
    fn find(&self, id: &str) -> &Value {
        let found = self.findings().iter().find(|finding| finding["id"] == id);
        found.unwrap_or_else(|| panic!("no {id} in {:#}", self.report))
    }

    /// These faults and warnings, no others.
    #[track_caller]
    fn has_exactly(&self, ids: &[&str]) {
        assert_eq!(self.bad(), ids.iter().copied().collect(), "{:#}", self.report);
        let faults = !self.with(&["fault"]).is_empty();
        assert_eq!(self.code, i32::from(faults), "{:#}", self.report);
        for id in ids {
            assert!(self.find(id)["todo"].is_string(), "{id} says what to do");
        }
    }

    #[track_caller]
    fn has(&self, ids: &[&str]) {
        for id in ids {
            self.find(id);
        }
    }
}

fn program(subject: &Subject) -> PathBuf {
    let Subject::Portferry(program) = subject else { panic!("it interworks") };
    program.clone()
}

/// Runs doctor on the router with the configuration of [`Subject::start`], or another one.
#[track_caller]
fn examine(network: &Network, subject: &Subject, file: &str) -> Examined {
    let file = network.directory().join(file);
    let mut command = network.command(Host::Router, "timeout");
    command.arg("60").arg(program(subject)).args(["doctor", "--json", "--config"]).arg(file);
    let output = command.output().expect("it runs");
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", lab::netns::text(&output)));
    Examined { code: output.status.code().expect("it ends by itself"), report }
}

/// A configuration that nobody has started.
fn write(network: &Network, nat: &str, more: &str) -> &'static str {
    let text = subject::configuration(network, nat, more);
    fs::write(network.directory().join("portferry.toml"), text).expect("the directory is ours");
    "portferry.toml"
}

const FILE: &str = "portferry.toml";

#[test]
fn a_healthy_network() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    control_point.adds(8080, 9090, "TCP", 3600);
    reaches(&network, TCP, 9090, "lan1");
    let before = subject::listed(&network);
    let healthy = examine(&network, &subject, FILE);
    if std::env::var_os("PF_SHOW").is_some() {
        let mut command = network.command(Host::Router, program(&subject));
        command.args(["doctor", "--config"]).arg(network.directory().join(FILE));
        common::say(&lab::netns::text(&command.output().expect("it runs")));
        common::say(&format!("{:#}", healthy.report));
    }
    healthy.has_exactly(&[]);
}
