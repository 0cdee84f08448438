//! Attacks on a running gateway, from the LAN and from the provider's side: each is a row with what is sent, the right answer and the
//! counter that moves; and after each one a good request of another host is served within a second, and no mapping has been
//! made. `docs/attacks.md` shows the rows. Needs root, see [`lab::netns`].
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test attacks
//! ```
//!
//! `PF_BLESS=1` writes that page anew, after the same rows have been tried on Debian's miniupnpd, whose answers are noted and not
//! judged.

#[path = "../common/mod.rs"]
mod common;
mod flood;
mod gena;
mod http;
mod page;
mod pcp;
mod scene;
mod slow;
mod soap;
mod ssdp;
mod udp;
mod upstream;
mod xml;

use std::sync::{Mutex, PoisonError};

use common::{say, skipped, subject};
use lab::subject::Subject;
use scene::Scene;

/// What one row does; what came of it, in a few words.
type Attack = Box<dyn Fn(&Scene<'_>) -> String>;

/// One attack.
struct Row {
    /// What it is.
    name: &'static str,
    /// What is sent.
    sent: &'static str,
    /// What comes of it here.
    answer: &'static str,
    /// Which number of `portferry status --json` counts it, as a JSON pointer; empty for none.
    counter: &'static str,
    attack: Attack,
}

fn row(
    name: &'static str,
    sent: &'static str,
    answer: &'static str,
    counter: &'static str,
    attack: impl Fn(&Scene<'_>) -> String + 'static,
) -> Row {
    Row { name, sent, answer, counter, attack: Box::new(attack) }
}

/// One at a time: what others do must not cost a row its second.
static ALONE: Mutex<()> = Mutex::new(());

/// portferry; miniupnpd has its column on the page.
fn attacked() -> Option<Subject> {
    let subject = subject()?;
    if !subject.interworks() {
        skipped("miniupnpd is tried beside portferry, with PF_BLESS=1");
        return None;
    }
    Some(subject)
}

/// Tries every row on portferry, and on miniupnpd where the page is to be written.
fn surface(title: &str, rows: &[Row]) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(subject) = attacked() else { return };
    let network = Scene::network();
    let mut scene = Scene::start(&network, subject);
    let mut wrong = Vec::new();
    for row in rows {
        let (came, is_counted) = scene.suffer(row);
        if came != row.answer {
            wrong.push(format!("{}: {came}\n    and not {}", row.name, row.answer));
        }
        if !is_counted {
            wrong.push(format!("{}: {} does not count it", row.name, row.counter));
        }
    }
    drop(scene);
    drop(network);
    let bless = std::env::var_os("PF_BLESS").is_some();
    let other = bless.then(|| {
        let network = Scene::network();
        let mut scene = Scene::start(&network, Subject::Miniupnpd);
        rows.iter().map(|row| scene.suffer(row).0).collect::<Vec<_>>()
    });
    let stale = page::section(title, rows, other.as_deref());
    assert!(wrong.is_empty(), "{} of {} rows of {title}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    assert!(!stale, "docs/attacks.md is out of date: PF_BLESS=1 cargo test -p lab --test attacks");
    say(&format!("{title}: {} rows", rows.len()));
}

#[test]
fn http() {
    surface("HTTP", &http::rows());
}

#[test]
fn xml() {
    surface("XML", &xml::rows());
}

#[test]
fn soap() {
    surface("SOAP", &soap::rows());
}

#[test]
fn gena() {
    surface("GENA", &gena::rows());
}

#[test]
fn ssdp() {
    surface("SSDP", &ssdp::rows());
}

#[test]
fn pcp() {
    surface("PCP and NAT-PMP on the LAN", &pcp::rows());
}

#[test]
fn upstream() {
    surface("Upstream", &upstream::rows());
}

#[test]
fn slowness() {
    surface("Slowness", &slow::rows());
}

/// Security policy: in any flood of one host another one is served.
#[test]
fn another_host_is_served_in_any_flood() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(subject) = attacked() else { return };
    let network = Scene::network();
    flood::another_is_served(&Scene::start(&network, subject));
}

/// Security policy: what one host can make the gateway remember is bounded, by 8 MiB.
#[test]
fn one_host_has_all_that_it_may_have() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(subject) = attacked() else { return };
    let network = Scene::network();
    flood::one_host_has_it_all(&Scene::start(&network, subject));
}
