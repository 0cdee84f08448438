//! Whether portferry runs, as the configuration that was read says, and can store what it promises.

use crate::config::NatMode;
use crate::control::StatusReport;
use crate::doctor::facts::{Facts, Gateway, Role, Setup};
use crate::doctor::finding::Finding;

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let status = match &facts.gateway {
        Gateway::Running { status, .. } => status,
        Gateway::NotRunning => {
            let seen = "portferry is not running: no application can get a port";
            let todo = "start it; `portferry run` in the foreground shows what it says when it starts";
            return vec![Finding::new("gateway-not-running", seen).todo(todo)];
        }
        Gateway::Unanswering(why) => {
            let seen = format!("a portferry has the control socket and does not answer: {why}");
            return vec![Finding::new("gateway-unanswering", seen).todo(
                "look at its log, then restart it; if it does not end by SIGTERM, end it by SIGKILL: its mappings are stored",
            )];
        }
        Gateway::NotAllowed => {
            let seen = "whether portferry runs was not asked: its control socket is for root and its group";
            return vec![Finding::new("gateway-not-asked", seen).todo("run doctor as root")];
        }
    };
    let seen = format!("portferry {} is running, nat = \"{}\"", status.version, status.usual.nat);
    let mut all = vec![Finding::new("gateway-running", seen).with("version", status.version.clone())];
    if status.version != env!("CARGO_PKG_VERSION") {
        let seen =
            format!("portferry {} is running, and this is {}", status.version, env!("CARGO_PKG_VERSION"));
        all.push(Finding::new("gateway-other-version", seen).todo("restart it to run the new one"));
    }
    let others = differences(status, &facts.setup);
    if !others.is_empty() {
        let seen = format!("the running portferry has another configuration: {}", others.join("; "));
        all.push(
            Finding::new("gateway-other-configuration", seen)
                .todo("restart portferry, or name the file that it was started with (--config)"),
        );
    }
    if let Some(error) = &status.usual.store_error {
        let seen = format!("the state cannot be written, so new mappings are refused: {error}");
        all.push(Finding::new("store-error", seen).todo(
            "make room on the file system of state.directory, or name a directory elsewhere; portferry goes on by itself then",
        ));
    }
    all
}

/// Where the file and the running gateway disagree, in words.
fn differences(status: &StatusReport, setup: &Setup) -> Vec<String> {
    let mut all = Vec::new();
    let main = setup.uplinks.iter().find(|uplink| uplink.role == Role::Usual);
    let nat = match main.map_or(NatMode::None, |uplink| uplink.nat) {
        NatMode::Nftables => "nftables",
        NatMode::None => "none",
    };
    let mut differ = |key: &str, runs: &str, says: &str| {
        if runs != says {
            all.push(format!("{key} is \"{runs}\" there and \"{says}\" in the file"));
        }
    };
    differ("wan.nat", &status.usual.nat, nat);
    // A spare one may have taken its place.
    let wan = &status.usual.wan.name;
    if !setup.uplinks.iter().any(|uplink| uplink.interface == *wan) {
        differ("wan.interface", wan, main.map_or("", |uplink| &uplink.interface));
    }
    for lan in &status.lan {
        if !setup.lan.contains(&lan.name) {
            all.push(format!("it serves {}, which lan.interfaces does not name", lan.name));
        }
    }
    let servers = setup
        .uplinks
        .iter()
        .find(|uplink| uplink.interface == *wan)
        .map_or(&[][..], |uplink| &uplink.servers);
    if let Some(server) =
        status.usual.server.filter(|server| !servers.is_empty() && !servers.contains(server))
        && status.usual.protocol.as_deref() != Some("UPnP IGD")
    {
        all.push(format!("it asks {server}, which uplink.servers does not name"));
    }
    all
}
