//! From the start of the process to its first answers.

use std::time::Duration;

use super::Plan;
use super::cost::{Times, millis};
use super::page::Page;
use super::rig::{Rig, Who};

pub(super) fn measure(plan: &Plan, page: &mut Page) {
    page.table(
        "Start",
        "From the start of the process until a connection to its HTTP port is taken, and until a search to its address is answered, in ms; the median of several \
         starts, with the start of a program in a network namespace, which is some milliseconds, in it.",
        &["", "HTTP", "SSDP"],
    );
    let rounds = if plan.quick { 3 } else { 9 };
    for who in [Who::Portferry, Who::Miniupnpd] {
        let all: Vec<(Duration, Duration)> =
            (0..rounds).map(|_| Rig::start_times(who, &plan.program)).collect();
        let http: Times = all.iter().map(|times| times.0).collect();
        let ssdp: Times = all.iter().map(|times| times.1).collect();
        page.row(who.name(), &[millis(http.at(50)), millis(ssdp.at(50))]);
    }
}
