//! The network process's side of the messages.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use tokio::sync::{mpsc, oneshot};

use super::channel::Channel;
use super::message::{Answer, Asked, MAX_ANSWER, Request, Said};
use crate::event_loop::Signal;
use crate::exit::Failure;
use crate::sockets::Spec;

type Reply = (Answer, Option<OwnedFd>);

/// Asks the privileged process; as many of it as are wanted.
#[derive(Clone, Debug)]
pub(crate) struct Client(mpsc::Sender<(Request, oneshot::Sender<Reply>)>);

impl Client {
    /// Speaks on `channel` from now on; what the privileged process says unasked goes to `signals`. Within a runtime.
    pub(super) fn start(channel: Channel, signals: mpsc::Sender<Signal>) -> Self {
        let (asks, asked) = mpsc::channel(64);
        tokio::spawn(talk(channel, asked, signals));
        Self(asks)
    }

    /// Asks, and waits for the answer.
    pub(super) async fn ask(&self, request: Request) -> Answer {
        self.exchange(request).await.0
    }

    async fn exchange(&self, request: Request) -> Reply {
        let gone = || (Answer::System(None, "the privileged process is gone".to_owned()), None);
        let (reply, waiting) = oneshot::channel();
        if self.0.send((request, reply)).await.is_err() {
            return gone();
        }
        waiting.await.unwrap_or_else(|_| gone())
    }

    /// Asks for what has no answer but that it is done.
    pub(super) async fn tell(&self, request: Request) {
        match self.ask(request).await {
            Answer::Done => {}
            other => tracing::warn!("{}", other.error()),
        }
    }

    pub(super) async fn number(&self, request: Request) -> Option<u32> {
        match self.ask(request).await {
            Answer::Number(number) => number,
            other => {
                tracing::debug!("{}", other.error());
                None
            }
        }
    }

    pub(super) async fn follow(&self, place: usize, way: usize) -> bool {
        match self.ask(Request::Follow { place, way }).await {
            Answer::Yes(followed) => followed,
            other => {
                tracing::warn!("{}; trying again", other.error());
                false
            }
        }
    }

    pub(super) async fn open(&self) -> Result<(), Failure> {
        match self.ask(Request::Open).await {
            Answer::Done => Ok(()),
            Answer::Failed(code, line) => Err(Failure::of(code, line)),
            other => Err(Failure::system(other.error().to_string())),
        }
    }

    /// The text of the configuration file.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) async fn configuration(&self) -> Result<String, String> {
        match self.ask(Request::Configuration).await {
            Answer::Text(text) => Ok(text),
            other => Err(other.error().to_string()),
        }
    }

    pub(super) async fn socket(&self, spec: Spec) -> io::Result<OwnedFd> {
        self.descriptor(Request::Socket(spec)).await
    }

    /// The socket on which `portferry status` asks.
    pub(super) async fn control_socket(&self) -> io::Result<OwnedFd> {
        self.descriptor(Request::ControlSocket).await
    }

    async fn descriptor(&self, request: Request) -> io::Result<OwnedFd> {
        match self.exchange(request).await {
            (Answer::Done, Some(fd)) => Ok(fd),
            // It came, and there was no room for it here.
            (Answer::Done, None) => Err(io::Error::from_raw_os_error(libc::EMFILE)),
            (answer, _) => Err(answer.error()),
        }
    }

    pub(super) async fn resolve(&self, name: String) -> Vec<Ipv4Addr> {
        match self.ask(Request::Resolve(name)).await {
            Answer::Addresses(addresses) => addresses,
            other => {
                tracing::debug!("looking up a name: {}", other.error());
                Vec::new()
            }
        }
    }

    /// Has the program of `[hooks]` told `line`.
    ///
    /// # Errors
    /// Why it was not, in words that follow its name.
    pub(crate) async fn hook(&self, line: &str) -> Result<(), String> {
        match self.ask(Request::Hook(line.to_owned())).await {
            Answer::Done => Ok(()),
            other => Err(other.error().to_string()),
        }
    }
}

/// Until nobody asks any more, or nobody answers.
async fn talk(
    channel: Channel,
    mut asked: mpsc::Receiver<(Request, oneshot::Sender<Reply>)>,
    signals: mpsc::Sender<Signal>,
) {
    let mut waiting: BTreeMap<u64, oneshot::Sender<Reply>> = BTreeMap::new();
    let mut next = 0;
    let mut buffer = vec![0; MAX_ANSWER];
    loop {
        tokio::select! {
            received = channel.receive(&mut buffer) => {
                let message = match received {
                    Ok(Some(message)) => message,
                    // Whoever waits hears of it; there is nothing to do without it.
                    Ok(None) | Err(_) => {
                        tracing::error!("the privileged process is gone: this one ends, too");
                        std::process::exit(71);
                    }
                };
                match serde_json::from_slice(&buffer[..message.len]) {
                    Ok(Said::Answer { id, answer }) => {
                        if let Some(reply) = waiting.remove(&id) {
                            // Nobody may wait for it any more.
                            let _ = reply.send((answer, message.fd));
                        }
                    }
                    Ok(Said::Reload) => drop(signals.try_send(Signal::Reload)),
                    // However many reloads wait, it is heard.
                    Ok(Said::Stop) => {
                        let signals = signals.clone();
                        tokio::spawn(async move { signals.send(Signal::Stop).await });
                    }
                    Err(error) => tracing::error!("what the privileged process says: {error}"),
                }
            }
            ask = asked.recv() => {
                let Some((request, reply)) = ask else { return };
                next += 1;
                let octets = serde_json::to_vec(&Asked { id: next, request }).expect("plain values become JSON");
                match channel.send(&octets, None).await {
                    Ok(()) => drop(waiting.insert(next, reply)),
                    Err(error) => drop(reply.send((Answer::System(error.raw_os_error(), error.to_string()), None))),
                }
            }
        }
    }
}
