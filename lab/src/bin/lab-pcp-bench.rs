//! `lab-pcp-bench PORTFERRY [MAPPINGS…]`: what MAP costs `portferry pcp-server` and Debian's miniupnpd, in one run on one machine, beside 0,
//! 100 and 1,000 mappings that stand. Run by hand, as root, with a release build:
//!
//! ```text
//! cargo build --release -p portferry && cargo build -p lab --bins && target/debug/lab-pcp-bench target/release/portferry
//! ```
//!
//! It prints the processor time of one request, of the server's process alone with what the kernel does for it, and memory; and
//! miniupnpd's as a multiple of ours. No time that passes is compared, for that is also the disk's and the other programs'.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use lab::netns::{self, Host, Layout, Network, OTHER, PROVIDER};
use lab::pcp_server::{PcpServer, SUBSCRIBERS, Usage};
use lab::provider::{Options, Provider};

/// How many mappings stand, unless the command line says otherwise.
const TABLES: [u16; 3] = [0, 100, 1000];
/// Filling a table may take so long; then what is there is measured.
const FILLING: &str = "150";
/// Each figure is taken for so long at most, and for [`ROUNDS`].
const MEASURING: Duration = Duration::from_secs(30);
const ROUNDS: u32 = 30;
/// The first ports of those that stand, and of those that come and go.
const STANDING: u16 = 10_000;
const PASSING: u16 = 30_000;

const SETTINGS: &str = "[mappings]\nhold = 0\nper_subscriber = 10000\n\
                        [access]\nrequests_per_second = 1000000\nburst = 1000000\n";

/// One server at one size of its table.
struct Figures {
    mappings: usize,
    /// Of a request that makes, renews, deletes.
    cpu: [Duration; 3],
    memory: u64,
}

fn main() -> ExitCode {
    let Some(program) = std::env::args().nth(1).map(PathBuf::from).filter(|program| program.is_file()) else {
        eprintln!("see the first lines of lab-pcp-bench.rs");
        return ExitCode::FAILURE;
    };
    if let Some(reason) = netns::reason_to_skip() {
        eprintln!("{reason}");
        return ExitCode::FAILURE;
    }
    let cell = |text: &str| print!("{text:>14}");
    let row = |name: &str, cells: &[String]| {
        print!("{name:<28}");
        cells.iter().for_each(|text| cell(text));
        println!();
    };
    row("", &["mappings", "make", "renew", "delete", "memory"].map(str::to_owned));
    let chosen: Vec<u16> = std::env::args().skip(2).filter_map(|text| text.parse().ok()).collect();
    for &table in if chosen.is_empty() { &TABLES[..] } else { &chosen } {
        let (ours, theirs) = (portferry(&program, table), miniupnpd(table));
        for (name, of) in [("portferry pcp-server", &ours), ("miniupnpd", &theirs)] {
            let cpu = of.cpu.map(|cpu| format!("{:.3} ms", cpu.as_secs_f64() * 1000.0));
            let cells = [vec![of.mappings.to_string()], cpu.to_vec(), vec![format!("{} KiB", of.memory)]];
            row(name, &cells.concat());
        }
        let ratio = |theirs: f64, ours: f64| format!("x {:.1}", theirs / ours);
        let mut cells = vec![String::new()];
        for (theirs, ours) in theirs.cpu.iter().zip(ours.cpu) {
            cells.push(ratio(theirs.as_secs_f64(), ours.as_secs_f64().max(1e-9)));
        }
        cells.push(format!(
            "x {:.2}",
            u32::try_from(theirs.memory).map_or(0.0, f64::from)
                / u32::try_from(ours.memory).map_or(1.0, f64::from)
        ));
        row("miniupnpd's of ours", &cells);
    }
    ExitCode::SUCCESS
}

fn network() -> Network {
    Network::new(Layout { router_nat: true, lan: false })
}

fn portferry(program: &Path, table: u16) -> Figures {
    let network = network();
    let server = PcpServer::start(&network, program, &[SUBSCRIBERS], SETTINGS);
    fill(&network, table);
    let mappings = server.mappings().len();
    Figures { mappings, ..measure(&network, 100, || server.usage()) }
}

fn miniupnpd(table: u16) -> Figures {
    let network = network();
    let provider = Provider::start(&network, Options::default());
    fill(&network, table);
    let mappings = provider.forwardings().len();
    Figures { mappings, ..measure(&network, 10, || provider.usage()) }
}

/// Makes the mappings that stand, as far as that goes.
fn fill(network: &Network, table: u16) {
    if table > 0 {
        work(network, STANDING, table, 7200, FILLING);
    }
}

fn measure(network: &Network, batch: u16, usage: impl Fn() -> Usage) -> Figures {
    let (mut cpu, mut requests) = ([Duration::ZERO; 3], 0);
    let began = Instant::now();
    for _ in 0..ROUNDS {
        for (cpu, lifetime) in cpu.iter_mut().zip([600, 900, 0]) {
            let before = usage().cpu;
            let done = work(network, PASSING, batch, lifetime, "300");
            assert!(done, "every request is answered");
            *cpu += usage().cpu - before;
        }
        requests += u32::from(batch);
        if began.elapsed() > MEASURING {
            break;
        }
    }
    Figures { mappings: 0, cpu: cpu.map(|cpu| cpu / requests), memory: usage().rss }
}

/// MAP for so many ports, one after the other, for so many seconds at most; whether all were answered.
fn work(network: &Network, first: u16, count: u16, lifetime: u32, seconds: &str) -> bool {
    let own = std::env::current_exe().expect("Linux knows a process's program");
    let load = own.parent().expect("it is in a directory").join("lab-pcp-load");
    let mut child = network
        .command(Host::Other, "timeout")
        .arg(seconds)
        .arg(load)
        .args(["work", &format!("{PROVIDER}:5351"), &OTHER.to_string(), &lifetime.to_string(), "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("it runs");
    let line = format!("6 {first} {count}\n");
    child.stdin.take().expect("piped above").write_all(line.as_bytes()).expect("it reads");
    child.wait().expect("a child can be waited for").success()
}
