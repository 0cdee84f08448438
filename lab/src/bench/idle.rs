//! What a daemon does when nobody asks anything.

use std::thread;
use std::time::Duration;

use super::Plan;
use super::page::Page;
use super::rig::Rig;
use super::upstream::Manner;

const MAPPINGS: u32 = 1000;

pub(super) fn measure(plan: &Plan, page: &mut Page) {
    let minutes = if plan.quick { 1 } else { 3 };
    page.table(
        "Idle",
        "How often in a minute a process of the daemon is woken while nobody asks anything (voluntary context switches of all threads), and what it takes of the \
         processor meanwhile.",
        &["", "mappings", "wake-ups", "processor, ms a minute"],
    );
    for (rig, full) in
        [(Rig::portferry(&plan.program, Manner::AT_ONCE), MAPPINGS), (Rig::miniupnpd(), MAPPINGS / 10)]
    {
        for table in [0, full] {
            let there = rig.fill(0, table, Duration::from_secs(60));
            // What the requests have set off is over by then.
            thread::sleep(Duration::from_secs(10));
            let (wakes, cpu) = (rig.wakes(), rig.cpu());
            thread::sleep(Duration::from_secs(60 * minutes));
            let (wakes, cpu) = (rig.wakes() - wakes, rig.cpu() - cpu);
            let each = |much: f64| format!("{:.1}", much / minutes as f64);
            page.row(rig.who.name(), &[there.to_string(), each(wakes as f64), each(cpu.as_secs_f64() * 1e3)]);
        }
    }
}
