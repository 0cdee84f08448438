//! Many at once: clients that each open a connection for every request, and creates in flight.

use std::thread;
use std::time::{Duration, Instant};

use super::Plan;
use super::cost::{Times, millis};
use super::page::Page;
use super::rig::{Rig, Who};
use super::upstream::Manner;
use crate::http::Client;

const CLIENTS: u32 = 128;
/// Each host may have some connections at once.
const HOSTS: u16 = 8;
const PROVIDER_TAKES: Duration = Duration::from_millis(20);

pub(super) fn measure(plan: &Plan, page: &mut Page) {
    page.table(
        "128 clients at once",
        "GetExternalIPAddress, a new connection for each request, sixteen clients on each of eight hosts, as fast as they are answered.",
        &["", "requests", "errors", "half of them, ms", "99 of 100, ms"],
    );
    let ours = Rig::portferry(&plan.program, Manner::AT_ONCE);
    for rig in [&ours, &Rig::miniupnpd()] {
        let (times, errors) = crowd(rig, if plan.quick { 10 } else { 40 });
        let cells = [
            (times.len() + errors).to_string(),
            errors.to_string(),
            millis(times.at(50)),
            millis(times.at(99)),
        ];
        page.row(rig.who.name(), &cells);
    }
    page.table(
        "Creates in flight",
        "AddPortMapping by so many clients at once on kept connections while the provider takes 20 ms; the ideal is that each waits for nothing else.",
        &["clients", "creates", "a second", "of the ideal"],
    );
    for clients in [16, CLIENTS] {
        let (creates, took) = in_flight(&ours, clients);
        let rate = f64::from(creates) / took.as_secs_f64();
        let ideal = f64::from(clients) / PROVIDER_TAKES.as_secs_f64();
        page.row(
            &clients.to_string(),
            &[creates.to_string(), format!("{rate:.0}"), format!("{:.2}", rate / ideal)],
        );
    }
}

fn crowd(rig: &Rig, each: u32) -> (Times, usize) {
    let hosts = rig.hosts(HOSTS);
    let all: Vec<Result<Duration, ()>> = rig.on_lan(|| {
        thread::scope(|scope| {
            let client = |number: u32| {
                let host = hosts[number as usize % hosts.len()];
                scope.spawn(move || {
                    let mut client = Client::from(rig.gateway(), host.into());
                    let one = |_| {
                        let since = Instant::now();
                        let called = rig.call(&mut client, false, "GetExternalIPAddress", &[]);
                        called.map_err(drop)?.map_err(drop)?;
                        Ok(since.elapsed())
                    };
                    (0..each).map(one).collect::<Vec<_>>()
                })
            };
            let threads: Vec<_> = (0..CLIENTS).map(client).collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("it does not panic")).collect()
        })
    });
    let errors = all.iter().filter(|one| one.is_err()).count();
    (all.into_iter().filter_map(Result::ok).collect(), errors)
}

/// How many were made, and in what time.
fn in_flight(rig: &Rig, clients: u32) -> (u32, Duration) {
    const EACH: u32 = 50;
    assert_eq!(rig.who, Who::Portferry);
    rig.upstream.set(Manner::after(PROVIDER_TAKES));
    let hosts = rig.hosts(HOSTS);
    let took = rig.on_lan(|| {
        let since = Instant::now();
        thread::scope(|scope| {
            for number in 0..clients {
                let host = hosts[number as usize % hosts.len()];
                scope.spawn(move || {
                    let mut client = Client::from(rig.gateway(), host.into());
                    for nth in 0..EACH {
                        let port = number * EACH + nth;
                        rig.add_for(&mut client, host, port).expect("it is answered").expect("it is granted");
                    }
                });
            }
        });
        since.elapsed()
    });
    rig.upstream.set(Manner::AT_ONCE);
    rig.on_lan(|| {
        for number in 0..clients * EACH {
            let host = hosts[(number / EACH) as usize % hosts.len()];
            let mut client = Client::from(rig.gateway(), host.into());
            let _ = rig.delete(&mut client, number);
        }
    });
    (clients * EACH, took)
}
