//! The socket itself: who may ask, how long that takes, and the answers' way; and `portferry status` and the others on its other side.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::{Asked, Question};
use crate::exit::Failure;

/// Who may ask: the owner and the group.
const MODE: u32 = 0o660;
/// As many as the standard library has wait.
const BACKLOG: i32 = 128;
/// Octets that are read of a question, with its line feed.
const MAX_QUESTION: u64 = 64;
/// How long an exchange may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the processes of one that was killed may take to be gone.
const DYING: Duration = Duration::from_secs(1);

/// The listening socket; its file goes with it.
#[derive(Debug)]
pub struct Listening {
    path: PathBuf,
    socket: OwnedFd,
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Listening {
    /// The socket.
    pub fn fd(&self) -> &OwnedFd {
        &self.socket
    }
}

/// Listens at `path`, for the owner and the group. A file that a killed gateway left is replaced; one that another
/// gateway listens on is not.
pub fn listen(path: &Path) -> Result<Listening, Failure> {
    let failed = |error: io::Error| {
        Failure::cannot_create(format!(
            "cannot make the control socket {}: {error}; choose another place ([control] socket)",
            path.display()
        ))
    };
    if somebody_listens(path) {
        return Err(Failure::unavailable(format!(
            "another portferry listens on {}: stop it, or choose another place ([control] socket)",
            path.display()
        )));
    }
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        std::fs::create_dir_all(directory).map_err(failed)?;
        // What hooks of DHCP clients leave there is for all to read, whatever the umask.
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
    }
    match std::fs::symlink_metadata(path) {
        // A slip of the pen in the configuration must not cost a file.
        Ok(found) if !found.file_type().is_socket() => {
            return Err(failed(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is a file that is no socket",
            )));
        }
        Ok(_) => std::fs::remove_file(path).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let socket = bind(path).map_err(failed)?;
    Ok(Listening { path: path.to_owned(), socket })
}

/// Whoever was killed may be there a moment longer with what it had started.
fn somebody_listens(path: &Path) -> bool {
    let began = Instant::now();
    while std::os::unix::net::UnixStream::connect(path).is_ok() {
        if began.elapsed() >= DYING {
            return true;
        }
        std::thread::sleep(DYING / 20);
    }
    false
}

/// Linux makes the file with the mode that the socket has, less the umask: at no moment may others ask.
fn bind(path: &Path) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    fchmod(&socket, Mode::from_raw_mode(MODE))?;
    socket.bind(&SockAddr::unix(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Answers who asks on the control socket.
#[derive(Debug)]
pub struct Server {
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Answers on a listening socket. Within a runtime.
    pub fn start(socket: OwnedFd, gateway: mpsc::Sender<Asked>) -> Result<Self, Failure> {
        let listener = UnixListener::from_std(socket.into())
            .map_err(|error| Failure::system(format!("the control socket: {error}")))?;
        let task = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => drop(tokio::spawn(answer(stream, gateway.clone()))),
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        });
        Ok(Self { task })
    }
}

async fn answer(stream: UnixStream, gateway: mpsc::Sender<Asked>) {
    let exchange = async {
        let (reader, mut writer) = stream.into_split();
        let mut line = String::new();
        BufReader::new(reader.take(MAX_QUESTION)).read_line(&mut line).await?;
        let text = match Question::parse(line.trim()) {
            Some(question) => ask(&gateway, question).await,
            None => Some(r#"{"error":"unknown question"}"#.to_owned()),
        };
        writer.write_all(text.unwrap_or_default().as_bytes()).await?;
        writer.shutdown().await
    };
    // Whoever hangs up early hears nothing.
    let _: Result<io::Result<()>, _> = tokio::time::timeout(PATIENCE, exchange).await;
}

async fn ask(gateway: &mpsc::Sender<Asked>, question: Question) -> Option<String> {
    let (reply, waiting) = oneshot::channel();
    gateway.send(Asked { question, reply }).await.ok()?;
    waiting.await.ok()
}

/// Asks a running gateway; its answer is JSON.
pub fn query(path: &Path, question: Question) -> Result<String, Failure> {
    let failed = |error: io::Error| {
        let what = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                "no portferry is running there; start it, or name its socket with --socket".to_owned()
            }
            io::ErrorKind::PermissionDenied => "permission denied; try as root".to_owned(),
            _ => error.to_string(),
        };
        Failure::unavailable(format!("{}: {what}", path.display()))
    };
    let mut stream = std::os::unix::net::UnixStream::connect(path).map_err(failed)?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(failed)?;
    writeln!(stream, "{}", question.line()).map_err(failed)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(failed)?;
    if text.starts_with("{\"error\"") {
        return Err(Failure::unavailable(format!(
            "{}: what answers there does not know that question; is it older, or the PCP server's?",
            path.display()
        )));
    }
    if text.is_empty() {
        return Err(Failure::unavailable(format!("{}: what answers there is stopping", path.display())));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Directory;

    #[test]
    fn what_is_no_socket_stays() {
        let path = std::env::temp_dir().join(format!("portferry-control-{}", std::process::id()));
        std::fs::write(&path, b"precious").unwrap();
        let failure = listen(&path).expect_err("a file is in the way").to_string();
        assert!(failure.contains("no socket") && failure.contains("[control] socket"), "{failure}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();
    }

    /// One that goes on is not disturbed; one that was killed is waited for.
    #[test]
    fn another_one_is_not_replaced() {
        let directory = Directory::new("control-another");
        let path = directory.0.join("control.sock");
        let other = listen(&path).unwrap();
        let failure = listen(&path).expect_err("another one listens").to_string();
        assert!(failure.contains("another portferry listens"), "{failure}");
        let dies = std::thread::spawn(move || {
            std::thread::sleep(DYING / 4);
            drop(other);
        });
        assert!(listen(&path).is_ok());
        dies.join().unwrap();
    }

    /// Whatever others make of it, a question is short, comes in time, and has one answer.
    #[test]
    fn what_is_asked_is_bounded() {
        let directory = Directory::new("control-bounds");
        let path = directory.0.join("control.sock");
        let listening = listen(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let runtime = crate::run::runtime().unwrap();
        runtime.block_on(async {
            let (asking, _asked) = mpsc::channel(4);
            let _server = Server::start(listening.fd().try_clone().unwrap(), asking).unwrap();
            let heard = async |question: &[u8]| {
                let mut stream = UnixStream::connect(&path).await.unwrap();
                stream.write_all(question).await.unwrap();
                let mut answer = Vec::new();
                // It is reset where something was left unread.
                while matches!(stream.read_buf(&mut answer).await, Ok(1..)) {}
                String::from_utf8(answer).unwrap()
            };
            let unknown = r#"{"error":"unknown question"}"#;
            for question in [&b"reboot\n"[..], &[b'a'; 64], &[b'\n'; 64], &[0; 1000], b"status\0\n"] {
                assert_eq!(heard(question).await, unknown);
            }
            // Neither who says nothing holds a connection for ever, nor who is not answered.
            tokio::time::pause();
            for question in [&b""[..], b"stat", b"status\n"] {
                let began = tokio::time::Instant::now();
                assert_eq!(heard(question).await, "");
                let took = began.elapsed();
                assert!(took >= PATIENCE && took < PATIENCE * 2, "{took:?}");
            }
        });
    }
}
