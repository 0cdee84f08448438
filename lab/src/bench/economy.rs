//! How many datagrams the provider's server is sent.

use super::Plan;
use super::page::Page;
use super::rig::Rig;
use super::upstream::Manner;

/// Of each kind.
const REQUESTS: u32 = 500;

pub(super) fn measure(plan: &Plan, page: &mut Page) {
    page.table(
        "Datagrams to the provider",
        "For each request of a control point; with losses one in ten datagrams disappears on its way there, and one in ten on its way back.",
        &["", "all arrive", "losses"],
    );
    let rig = Rig::portferry(&plan.program, Manner::AT_ONCE);
    let each = if plan.quick { 50 } else { REQUESTS };
    let count = |what: &mut (dyn FnMut(u32) + Send)| {
        let before = rig.upstream.datagrams();
        rig.on_lan(|| (0..each).for_each(&mut *what));
        let sent = u32::try_from(rig.upstream.datagrams() - before).unwrap_or(u32::MAX);
        f64::from(sent) / f64::from(each)
    };
    let add = |port: u32| {
        let called = rig.add(&mut rig.client(), port);
        called.expect("it is answered").expect("it is granted");
    };
    let delete = |port: u32| drop(rig.delete(&mut rig.client(), port));
    let mut columns = [Vec::new(), Vec::new()];
    for (column, lost) in columns.iter_mut().zip([0, 10]) {
        rig.upstream.set(Manner { lost, ..Manner::AT_ONCE });
        column.push(count(&mut |port| add(port)));
        column.push(count(&mut |port| add(port)));
        column.push(count(&mut |port| drop(rig.specific(&mut rig.client(), false, port))));
        column.push(count(&mut |_| drop(rig.call(&mut rig.client(), false, "GetExternalIPAddress", &[]))));
        column.push(count(&mut |port| delete(port)));
        rig.upstream.set(Manner::AT_ONCE);
    }
    let names = [
        "AddPortMapping",
        "the same again",
        "GetSpecificPortMappingEntry of one that stands",
        "GetExternalIPAddress",
        "DeletePortMapping",
    ];
    for (row, name) in names.iter().enumerate() {
        page.row(name, &columns.each_ref().map(|column| format!("{:.3}", column[row])));
    }
}
