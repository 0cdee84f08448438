//! Requests one after the other beside tables of several sizes: what each costs, and whether that grows.

use std::time::Duration;

use super::Plan;
use super::cost::Cost;
use super::page::{Page, times};
use super::picture::{self, Line};
use super::rig::{Rig, Who};
use super::upstream::Manner;

/// Filling a table may take so long; then what is there is measured.
const FILLING: Duration = Duration::from_secs(180);

/// What is measured beside one table.
struct Row {
    who: Who,
    mappings: u32,
    costs: [Option<Cost>; 8],
}

const GET: usize = 0;
const CHANGE: usize = 6;
const LIST: usize = 7;
const HEAD: [&str; 10] = [
    "processor time, µs",
    "mappings",
    "GetExternalIPAddress, closed",
    "kept",
    "GetSpecificPortMappingEntry, closed",
    "kept",
    "description, closed",
    "kept",
    "AddPortMapping + DeletePortMapping, each",
    "GetListOfPortMappings of all",
];

pub(super) fn measure(plan: &Plan, page: &mut Page) {
    page.table(
        "Requests beside tables of several sizes",
        "The least of several rounds, in brackets the median; both of one request. A connection is closed after each request or kept; changes go by kept \
         ones where the daemon keeps any. portferry asks its provider for each change and stores it, miniupnpd has its own NAT alone.",
        &HEAD,
    );
    let ours: &[u32] = if plan.quick { &[0, 100, 1000] } else { &[0, 100, 1000, 10_000, 60_000] };
    let theirs: &[u32] = if plan.quick { &[0, 100] } else { &[0, 100, 1000] };
    let mut rows = beside(&Rig::portferry(&plan.program, Manner::AT_ONCE), plan, page, ours);
    rows.extend(beside(&Rig::miniupnpd(), plan, page, theirs));
    compare(&rows, page);
    if !plan.quick {
        draw(&rows, page);
    }
}

fn beside(rig: &Rig, plan: &Plan, page: &mut Page, tables: &[u32]) -> Vec<Row> {
    let mut there = 0;
    let mut rows = Vec::new();
    for &table in tables {
        there = rig.fill(there, table, FILLING);
        let row = Row { who: rig.who, mappings: there, costs: costs(rig, plan, there) };
        let cell = |cost: &Option<Cost>| cost.map_or(String::from("–"), |cost| cost.to_string());
        let cells: Vec<String> =
            std::iter::once(there.to_string()).chain(row.costs.iter().map(cell)).collect();
        page.row(rig.who.name(), &cells);
        rows.push(row);
    }
    rows
}

fn costs(rig: &Rig, plan: &Plan, there: u32) -> [Option<Cost>; 8] {
    // Where a request takes milliseconds a few of them are enough.
    let slow = rig.who == Who::Miniupnpd && there >= 1000;
    let rounds = if plan.quick { 5 } else { 12 };
    let many = if slow { 20 } else { 200 };
    let keeps = rig.who == Who::Portferry;
    let specific = there.saturating_sub(1);
    rig.on_lan(|| {
        let mut client = rig.client();
        let mut of = |number: u32, request: &mut dyn FnMut(&mut crate::http::Client)| {
            Some(Cost::of(rig, rounds, number, || (0..number).for_each(|_| request(&mut client))))
        };
        let mut read = |keep: bool, what: usize| {
            if keep && !keeps {
                return None; // it closes them whatever it is asked
            }
            of(many, &mut |client| match what {
                0 => drop(rig.call(client, keep, "GetExternalIPAddress", &[]).expect("it is answered")),
                1 => drop(rig.specific(client, keep, specific).expect("it is answered")),
                _ => drop(rig.root(client, keep).expect("it is answered")),
            })
        };
        let mut costs = [None; 8];
        for what in 0..3 {
            costs[what * 2] = read(false, what);
            costs[what * 2 + 1] = read(true, what);
        }
        let pairs = if slow { 3 } else { 50 };
        costs[CHANGE] = of(pairs, &mut |client| {
            rig.add(client, there).expect("it is answered").expect("the port is free");
            rig.delete(client, there).expect("it is answered").expect("it was just mapped");
        })
        .map(Cost::halved);
        if there > 0 && there <= 10_000 {
            costs[LIST] = of(if there > 1000 { 3 } else { 10 }, &mut |client| {
                let listed = rig.list(client).expect("it is answered");
                assert!(rig.who == Who::Miniupnpd || listed >= there as usize, "{listed} of {there}");
            });
        }
        costs
    })
}

/// Each daemon against itself beside no mapping, and one against the other beside as many.
fn compare(rows: &[Row], page: &mut Page) {
    page.table(
        "The same, compared",
        "The least against the least: each daemon beside a table against itself beside none, and miniupnpd against portferry beside the same table.",
        &["", "mappings", "GetExternalIPAddress, closed", "AddPortMapping + DeletePortMapping", "GetListOfPortMappings"],
    );
    let least = |row: &Row, what: usize| row.costs[what].map(|cost| cost.least.as_secs_f64());
    let ratio = |much: Option<f64>, little: Option<f64>| match (much, little) {
        (Some(much), Some(little)) => times(much, little),
        _ => String::from("–"),
    };
    for row in rows {
        let none = rows.iter().find(|other| other.who == row.who && other.mappings == 0);
        let Some(none) = none.filter(|_| row.mappings > 0) else { continue };
        let cells = [GET, CHANGE].map(|what| ratio(least(row, what), least(none, what)));
        let name = format!("{} against itself beside none", row.who.name());
        page.row(&name, &[vec![row.mappings.to_string()], cells.to_vec(), vec![String::from("–")]].concat());
    }
    for theirs in rows.iter().filter(|row| row.who == Who::Miniupnpd) {
        let same = |row: &&Row| row.who == Who::Portferry && row.mappings == theirs.mappings;
        let Some(ours) = rows.iter().find(same) else { continue };
        let cells = [GET, CHANGE, LIST].map(|what| ratio(least(theirs, what), least(ours, what)));
        page.row("miniupnpd against portferry", &[vec![ours.mappings.to_string()], cells.to_vec()].concat());
    }
}

fn draw(rows: &[Row], page: &mut Page) {
    let line = |who: Who, what: usize, name: &str, colour: &'static str| Line {
        name: name.to_owned(),
        colour,
        points: rows
            .iter()
            .filter(|row| row.who == who)
            .filter_map(|row| Some((f64::from(row.mappings), row.costs[what]?.least.as_secs_f64() * 1e6)))
            .collect(),
    };
    let lines = [
        line(Who::Portferry, CHANGE, "portferry: a change", picture::GREEN),
        line(Who::Portferry, GET, "portferry: GetExternalIPAddress", picture::VIOLET),
        line(Who::Miniupnpd, CHANGE, "miniupnpd: a change", picture::RED),
        line(Who::Miniupnpd, GET, "miniupnpd: GetExternalIPAddress", picture::OCHRE),
    ];
    let title = "Processor time of a request beside mappings";
    let svg = picture::plot(title, ("mappings", "µs"), &lines);
    page.picture("performance-table.svg", title, svg);
}

impl Cost {
    fn halved(self) -> Self {
        Self { least: self.least / 2, median: self.median / 2 }
    }
}
