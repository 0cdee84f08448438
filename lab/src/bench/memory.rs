//! What a daemon keeps in memory.

use std::fs;
use std::time::Duration;

use super::Plan;
use super::page::Page;
use super::rig::Rig;
use super::upstream::Manner;

const MAPPINGS: u32 = 10_000;

pub(super) fn measure(plan: &Plan, page: &mut Page) {
    page.table(
        "Memory",
        "All processes of a daemon together, in KiB: what is in RAM, with the program's own pages and those of libraries counted for each; what no other process \
         has; and what each mapping adds to that, in octets.",
        &["", "mappings", "in RAM", "private", "private, a mapping"],
    );
    for (rig, full) in [
        (Rig::portferry(&plan.program, Manner::AT_ONCE), if plan.quick { 1000 } else { MAPPINGS }),
        (Rig::miniupnpd(), if plan.quick { 100 } else { 1000 }),
    ] {
        let before = rig.memory();
        page.row(
            rig.who.name(),
            &["0".to_owned(), before.rss.to_string(), before.private.to_string(), "–".to_owned()],
        );
        let there = rig.fill(0, full, Duration::from_secs(180));
        let now = rig.memory();
        let each = now.private.saturating_sub(before.private) * 1024 / u64::from(there.max(1));
        let cells = [there.to_string(), now.rss.to_string(), now.private.to_string(), each.to_string()];
        page.row(rig.who.name(), &cells);
    }
    let size = |path: &std::path::Path| fs::metadata(path).map_or(0, |file| file.len() / 1024);
    page.table("Size of the program", "In KiB, stripped.", &["", "KiB"]);
    page.row("portferry, release", &[size(&plan.program).to_string()]);
    if let Some(small) = plan.program.ancestors().nth(2).map(|target| target.join("small/portferry"))
        && small.is_file()
    {
        page.row("portferry, small", &[size(&small).to_string()]);
    }
    page.row("miniupnpd, without its libraries", &[size("/usr/sbin/miniupnpd".as_ref()).to_string()]);
}
