//! What the kernel says of the daemon's processes.

use std::fmt;
use std::fs;
use std::io;
use std::time::Duration;

/// One process at one moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Process {
    /// All of its memory that is in RAM, in KiB (VmRSS).
    pub(super) rss: u64,
    /// What of that is neither program nor file, in KiB (RssAnon): heap and stacks.
    pub(super) anonymous: u64,
    /// Open descriptors.
    pub(super) descriptors: usize,
    /// Threads.
    pub(super) threads: u64,
    /// Processor time since its start, in its own code and in the kernel.
    pub(super) cpu: Duration,
}

impl Process {
    /// Reads it.
    ///
    /// # Errors
    /// There is no such process.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        Ok(Self { descriptors, ..Self::parse(&status, &stat) })
    }

    /// From `/proc/PID/status` and `stat`; descriptors are not in there.
    fn parse(status: &str, stat: &str) -> Self {
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        // Behind the program's name, which may contain anything: fields 3 and on; 14 and 15 are ticks, a hundred in a second.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let ticks: u64 =
            fields.get(11..13).unwrap_or_default().iter().filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Self {
            rss: number("VmRSS:"),
            anonymous: number("RssAnon:"),
            descriptors: 0,
            threads: number("Threads:"),
            cpu: Duration::from_millis(ticks * 10),
        }
    }
}

/// Everything at one moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Sample {
    /// Since the load began.
    pub(super) at: Duration,
    /// The process that the supervisor started.
    pub(super) privileged: Process,
    /// The one that reads the network.
    pub(super) network: Process,
    /// Mappings that the daemon lists.
    pub(super) mappings: usize,
    /// Pinholes that it lists.
    pub(super) pinholes: usize,
    /// What the kernel's tables let in: elements of the router's NAT, and pinholes of its firewall.
    pub(super) rules: usize,
    /// Requests by then.
    pub(super) requests: u64,
}

impl Sample {
    /// The heads of the table that [`Self`] is a row of.
    pub(super) const HEAD: &str = "\
| | privileged: RSS, RssAnon (KiB) | descriptors | threads | CPU (s) | network: RSS, RssAnon (KiB) | descriptors | threads | CPU (s) | mappings | pinholes | rules | requests |\n\
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|";
}

/// A row, from its second cell on.
impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Process { rss, anonymous, descriptors, threads, cpu } in [self.privileged, self.network] {
            write!(f, "{rss}, {anonymous} | {descriptors} | {threads} | {:.2} | ", cpu.as_secs_f64())?;
        }
        let Self { mappings, pinholes, rules, requests, .. } = self;
        write!(f, "{mappings} | {pinholes} | {rules} | {requests} |")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_as_the_kernel_prints_it() {
        let status = "Name:\tportferry\nVmRSS:\t    6412 kB\nRssAnon:\t     812 kB\nThreads:\t1\n";
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 25 0 0 20 0 1";
        let expected = Process {
            rss: 6412,
            anonymous: 812,
            descriptors: 0,
            threads: 1,
            cpu: Duration::from_millis(1750),
        };
        assert_eq!(Process::parse(status, stat), expected);
    }

    #[test]
    fn a_row_has_as_many_cells_as_the_head() {
        let cells = |line: &str| line.matches('|').count();
        let row = format!("| start | {}", Sample::default());
        let head = Sample::HEAD.lines().next().unwrap();
        assert_eq!(cells(&row), cells(head));
    }
}
