//! Runs the program once: no shell, bounded time, bounded output, and nothing of it is left.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, geteuid, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

/// So much of what it says is kept, of each stream.
const SAID: usize = 4096;
/// What it is given of the daemon's environment.
const ENVIRONMENT: [&str; 4] = ["PATH", "LANG", "LC_ALL", "TZ"];
/// Where programs are, when the daemon does not know.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Between SIGTERM and SIGKILL, unless its whole time is shorter; and what the kernel may take after that.
const GRACE: Duration = Duration::from_secs(1);
/// What it has said and nobody has read yet is there at once.
const REST: Duration = Duration::from_millis(100);

/// Why it was not told, in words that follow its name.
#[derive(Debug)]
pub(super) enum Error {
    /// It must not be run.
    Unfit(String),
    Start(io::Error),
    Status(ExitStatus, String),
    Timeout(Duration, String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = match self {
            Error::Unfit(why) => return write!(f, "is not run: {why} ([hooks] on_change)"),
            Error::Start(error) => return write!(f, "cannot be run: {error} ([hooks] on_change)"),
            Error::Status(status, said) => {
                match (status.code(), status.signal()) {
                    (Some(code), _) => write!(f, "has failed with exit status {code}")?,
                    (None, Some(signal)) => write!(f, "was ended by signal {signal}")?,
                    (None, None) => write!(f, "has failed")?,
                }
                write!(f, "; that change is not told again ([hooks] on_change)")?;
                said
            }
            Error::Timeout(limit, said) => {
                write!(
                    f,
                    "was killed because it took longer than {} s: what hangs? ([hooks] timeout)",
                    limit.as_secs_f64()
                )?;
                said
            }
        };
        match said.is_empty() {
            true => write!(f, "; it said nothing"),
            false => write!(f, "; it said {said:?}"),
        }
    }
}

/// Who can change the file, or put another one in its place, becomes who portferry is: so only root, and the user that
/// portferry runs as, may be able to. `Err` says what to do.
pub(super) fn check(program: &str) -> Result<(), Error> {
    let unfit = |why: String| Err(Error::Unfit(why));
    let path = match Path::new(program).canonicalize() {
        Ok(path) => path,
        Err(error) => return unfit(error.to_string()),
    };
    let own = geteuid().as_raw();
    for (place, path) in path.ancestors().enumerate() {
        let metadata = match path.metadata() {
            Ok(metadata) => metadata,
            Err(error) => return unfit(format!("{}: {error}", path.display())),
        };
        let (mode, owner) = (metadata.mode(), metadata.uid());
        if place == 0 && !(metadata.is_file() && mode & 0o111 != 0) {
            return unfit("it is no executable file; chmod +x?".to_owned());
        }
        if owner != 0 && owner != own {
            return unfit(format!(
                "{} belongs to user {owner}, who could change it; chown root?",
                path.display()
            ));
        }
        // In a directory like /tmp nobody replaces what is another's.
        let sticky = metadata.is_dir() && mode & 0o1000 != 0;
        let by_group = mode & 0o020 != 0 && metadata.gid() != 0;
        if (by_group || mode & 0o002 != 0) && !sticky {
            return unfit(format!("others can write to {}; chmod go-w?", path.display()));
        }
    }
    Ok(())
}

/// Runs it with `line` on its standard input. It and its whole process group are over when this returns, or is dropped.
///
/// # Errors
/// It must not or cannot be run, fails, or takes longer than `limit`.
pub(super) async fn run(argv: &[String], limit: Duration, line: &str) -> Result<(), Error> {
    let (program, arguments) = argv.split_first().expect("only a program is run");
    check(program)?;
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(Error::Start)?;
    let group = Group(child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)));
    let mut stdin = child.stdin.take().expect("piped above");
    let stdout = child.stdout.take().expect("piped above");
    let stderr = child.stderr.take().expect("piped above");
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let talk = async {
        let write = async {
            // It need not read.
            let _ = stdin.write_all(line.as_bytes()).await;
            drop(stdin);
        };
        tokio::join!(write, keep(stdout, &mut out), keep(stderr, &mut err));
    };
    let mut talk = Box::pin(talk);
    let mut talked = false;
    let mut over = async |within: Duration| {
        let ended = async {
            loop {
                tokio::select! {
                    status = child.wait() => return status,
                    () = &mut talk, if !talked => talked = true,
                }
            }
        };
        timeout(within, ended).await
    };
    let in_time = over(limit).await;
    if in_time.is_err() {
        group.signal(Signal::TERM);
        let _ = over(GRACE.min(limit)).await;
        group.signal(Signal::KILL);
        let _ = over(GRACE).await;
    }
    drop(group); // also what it has left behind in the background, which could hold its output open
    if !talked {
        let _ = timeout(REST, &mut talk).await;
    }
    drop(talk);
    let said = [out, err].map(|said| String::from_utf8_lossy(&said).trim().to_owned());
    let said = said.into_iter().filter(|said| !said.is_empty()).collect::<Vec<_>>().join("\n");
    match in_time {
        Err(_) => Err(Error::Timeout(limit, said)),
        Ok(Err(error)) => Err(Error::Start(error)),
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(Error::Status(status, said)),
    }
}

/// Reads to the end, so that the program is not held up, and keeps the beginning.
async fn keep(mut stream: impl AsyncRead + Unpin, said: &mut Vec<u8>) {
    let mut part = [0; 1024];
    while let Ok(len @ 1..) = stream.read(&mut part).await {
        let room = SAID - said.len();
        said.extend_from_slice(&part[..len.min(room)]);
    }
}

/// A process group that is killed when nobody wants it any more.
struct Group(Option<Pid>);

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // There may be nobody left in it.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}
