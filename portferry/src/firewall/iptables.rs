//! Runs iptables: a rule in a table of iptables-nft has to be of its making, or it refuses the whole table. Never through a
//! shell, for a bounded time, and what it says is bounded.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::Trouble;

/// Where it may be; nobody but root can write there.
const DIRECTORIES: [&str; 5] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"];
/// It waits for others that change rules (`-w`), and then has nothing to wait for.
const LOCK_SECONDS: &str = "5";
const LIMIT: Duration = Duration::from_secs(10);
/// A chain of ufw's has some ten rules.
const SAID: u64 = 64 * 1024;

/// Which rules the program speaks of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Program {
    pub(super) ipv6: bool,
    /// Those of the older iptables, which are not among the kernel's nftables.
    pub(super) legacy: bool,
}

impl Program {
    /// What it is called, the best name first: a distribution may have the one kind only, by the common name.
    fn names(self) -> [&'static str; 2] {
        match (self.ipv6, self.legacy) {
            (false, false) => ["iptables-nft", "iptables"],
            (false, true) => ["iptables-legacy", "iptables"],
            (true, false) => ["ip6tables-nft", "ip6tables"],
            (true, true) => ["ip6tables-legacy", "ip6tables"],
        }
    }

    fn path(self) -> Result<PathBuf, Trouble> {
        let paths =
            self.names().into_iter().flat_map(|name| DIRECTORIES.map(|at| PathBuf::from(at).join(name)));
        let found = paths.into_iter().find(|path| path.is_file());
        found.ok_or_else(|| Trouble::new(format!("there is no {}: install iptables", self.names()[1])))
    }

    /// Runs it; what it prints.
    ///
    /// # Errors
    /// It is not there, fails, or hangs.
    pub(super) async fn run(self, arguments: &[&str]) -> Result<String, Trouble> {
        let path = self.path()?;
        let failed =
            |what: String| Trouble::new(format!("{} {}: {what}", path.display(), arguments.join(" ")));
        let mut child = Command::new(&path)
            .args(["-w", LOCK_SECONDS])
            .args(arguments)
            .env_clear()
            .env("PATH", DIRECTORIES.join(":"))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let work = async { tokio::join!(child.wait(), keep(stdout), keep(stderr)) };
        let (status, said, errors) =
            timeout(LIMIT, work).await.map_err(|_| failed("it hangs, and was killed".to_owned()))?;
        match status {
            Ok(status) if status.success() => Ok(said),
            // A warning about the tables of the other kind may stand before.
            Ok(_) => Err(failed(errors.lines().last().unwrap_or("it failed and said nothing").to_owned())),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

/// Reads to the end, so that it is not held up, and keeps the beginning.
async fn keep(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let mut said = Vec::new();
    let _ = (&mut stream).take(SAID).read_to_end(&mut said).await;
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&said).into_owned()
}
