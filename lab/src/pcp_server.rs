//! `portferry pcp-server` as the laboratory's provider, and what it costs.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::netns::{EXTERNAL, Host, Network, Process};

/// What the subscribers' addresses begin with.
pub const SUBSCRIBERS: &str = "100.64.0.0/24";

/// Where a provider is, and what it has.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// Its namespace.
    pub host: Host,
    /// What its files are called.
    pub name: &'static str,
    /// Its interface towards the subscribers.
    pub inside: &'static str,
    /// Its interface towards the Internet.
    pub outside: &'static str,
    /// Its external address.
    pub external: Ipv4Addr,
}

/// The provider of [`Network::new`].
pub const PROVIDER_SITE: Site =
    Site { host: Host::Provider, name: "pcp-server", inside: "cust0", outside: "inet0", external: EXTERNAL };

/// The running server.
pub struct PcpServer<'a> {
    network: &'a Network,
    site: Site,
    program: PathBuf,
    process: Process,
    runs: u32,
}

/// What a process has used.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Processor time, in its own code and in the kernel.
    pub cpu: Duration,
    /// Memory at the moment, in KiB.
    pub rss: u64,
    /// The most there ever was, in KiB.
    pub peak: u64,
}

impl<'a> PcpServer<'a> {
    /// Starts it in the provider's namespace, in the place of the namespace's own masquerading; returns when it serves. `prefixes` are
    /// the subscribers', `settings` whatever else the configuration is to say, from `[nat]` on.
    #[track_caller]
    #[must_use]
    pub fn start(network: &'a Network, program: &Path, prefixes: &[&str], settings: &str) -> Self {
        Self::start_at(network, program, prefixes, &[], settings)
    }

    /// The same, listening at these addresses, too.
    #[track_caller]
    #[must_use]
    pub fn start_at(
        network: &'a Network,
        program: &Path,
        prefixes: &[&str],
        addresses: &[&str],
        settings: &str,
    ) -> Self {
        Self::start_in(network, program, PROVIDER_SITE, prefixes, addresses, settings)
    }

    /// The same of another provider.
    #[track_caller]
    #[must_use]
    pub fn start_in(
        network: &'a Network,
        program: &Path,
        site: Site,
        prefixes: &[&str],
        addresses: &[&str],
        settings: &str,
    ) -> Self {
        network.nft(site.host, "table ip labnat\ndelete table ip labnat\n");
        let Site { name, inside, outside, external, .. } = site;
        let directory = network.directory().display();
        let configuration = format!(
            "[inside]\ninterfaces = [\"{inside}\"]\nprefixes = {prefixes:?}\naddresses = {addresses:?}\n\
             [outside]\ninterfaces = [\"{outside}\"]\naddresses = [\"{external}\"]\n\
             [state]\ndirectory = \"{directory}/{name}\"\n[control]\nsocket = \"{directory}/{name}.sock\"\n{settings}\n"
        );
        fs::write(network.directory().join(format!("{name}.toml")), configuration)
            .expect("the directory is ours");
        let process = Self::run(network, program, site, 0);
        Self { network, site, program: program.to_owned(), process, runs: 1 }
    }

    #[track_caller]
    fn run(network: &Network, program: &Path, site: Site, run: u32) -> Process {
        let config = network.directory().join(format!("{}.toml", site.name)).display().to_string();
        let arguments = ["pcp-server", "--config", &config];
        let mut process = network.spawn(site.host, &format!("{}-{run}", site.name), program, arguments);
        process.await_log("serves PCP", Duration::from_secs(60));
        process
    }

    /// Kills it (SIGKILL), and waits for its end.
    pub fn kill(&mut self) {
        self.process.signal("KILL");
        self.process.wait(Duration::from_secs(5));
    }

    /// Stops it (SIGTERM).
    #[track_caller]
    pub fn stop(&mut self) {
        let status = self.process.terminate(Duration::from_secs(30));
        assert!(status.success(), "{status}");
    }

    /// Starts it again.
    #[track_caller]
    pub fn restart(&mut self) {
        self.process = Self::run(self.network, &self.program, self.site, self.runs);
        self.runs += 1;
    }

    /// What `portferry pcp-server status --json` says.
    #[track_caller]
    #[must_use]
    pub fn status(&self) -> Value {
        self.ask("status")
    }

    /// What `portferry pcp-server mappings --json` says.
    #[track_caller]
    #[must_use]
    pub fn mappings(&self) -> Vec<Value> {
        self.ask("mappings").as_array().expect("a list").clone()
    }

    /// How many datagrams were refused for that reason.
    #[track_caller]
    #[must_use]
    pub fn refused(&self, reason: &str) -> u64 {
        self.status()["refused"][reason].as_u64().unwrap_or(0)
    }

    /// What it has used since its start.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage::of(&self.process)
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// What it has logged since its start.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    #[track_caller]
    fn ask(&self, what: &str) -> Value {
        let socket = self.network.directory().join(format!("{}.sock", self.site.name)).display().to_string();
        let said = self.network.run(
            self.site.host,
            &self.program,
            ["pcp-server", what, "--json", "--socket", &socket],
        );
        serde_json::from_str(&said).expect("a document")
    }
}

impl Usage {
    /// Of a process that runs.
    ///
    /// # Panics
    ///
    /// If it does not.
    #[must_use]
    pub fn of(process: &Process) -> Self {
        let read = |file: &str| {
            let path = format!("/proc/{}/{file}", process.id());
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
        };
        let status = read("status");
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        // Behind the program's name, which may contain anything: fields 3 and on; 14 and 15 are ticks, of which Linux has a
        // hundred in a second whatever its own are (USER_HZ).
        let stat = read("stat");
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Self { cpu: Duration::from_millis(ticks * 10), rss: kib("VmRSS:"), peak: kib("VmHWM:") }
    }
}
