//! The network process: everything but what needs a privilege.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::SocketType;
use rustix::thread::CapabilitySet;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::Kernel;
use super::channel::Channel;
use super::client::Client;
use super::sandbox::{self, Needs};
use super::user::is_shared;
use crate::config::Config;
use crate::dhcp::offer;
use crate::exit::Failure;
use crate::journal_file::Stamp;
use crate::run;

/// The whole life of it. Its standard input is the socket to the privileged process; `path` is where the configuration is, for
/// messages.
///
/// # Errors
/// As [`run::run`]'s; and if a person has started it.
pub(super) fn run(path: PathBuf) -> Result<(), Failure> {
    let by_hand = || Failure::usage("this is a part of `portferry run`, which starts it");
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(|_| by_hand())?;
    if rustix::net::sockopt::socket_type(&socket).ok() != Some(SocketType::SEQPACKET) {
        return Err(by_hand());
    }
    let system = |what: &str, error: io::Error| Failure::system(format!("{what}: {error}"));
    let unprivileged =
        sandbox::die_with_parent().and_then(|()| sandbox::keep_capabilities(CapabilitySet::empty()));
    unprivileged.map_err(|error| system("the network process keeps its capabilities", error))?;
    run::runtime()?.block_on(serve(socket, path))
}

async fn serve(socket: OwnedFd, path: PathBuf) -> Result<(), Failure> {
    let system = |error: io::Error| Failure::system(format!("the network process: {error}"));
    // What a terminal or a supervisor sends to both is the privileged process's to say.
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        let mut stream = signal(kind).map_err(system)?;
        tokio::spawn(async move { while stream.recv().await.is_some() {} });
    }
    let (signals, received) = mpsc::channel(8);
    let client = Client::start(Channel::new(socket).map_err(system)?, signals);
    let text = client.configuration().await.map_err(Failure::config)?;
    let config = Config::parse(&path, &text).map_err(|error| Failure::config(error.to_string()))?;
    crate::log::start(config.log.level);
    // While it can be read: how long ago something was stored is told by which start of the machine that was in.
    let _ = Stamp::now();
    enter_sandbox(&config);
    let control = client.control_socket().await;
    let control = control.map_err(|error| Failure::cannot_create(format!("no control socket: {error}")))?;
    let kernel = Kernel::apart(client);
    run::gateway(config, &path, kernel, received, control).await
}

/// The life of a process that looks up one host name: it prints the addresses, one a line.
///
/// # Errors
/// What the system says.
pub(super) fn resolve(name: &str) -> Result<(), Failure> {
    let system = |error: io::Error| Failure::system(format!("looking up {name}: {error}"));
    sandbox::die_with_parent().map_err(system)?;
    sandbox::keep_capabilities(CapabilitySet::empty()).map_err(system)?;
    // It reads what DNS servers send; the files are those of the system's resolver.
    let reads: Vec<&Path> = ["/etc", "/usr", "/lib", "/lib64", "/run"].iter().map(Path::new).collect();
    let _ = sandbox::enter(&Needs { writes: &[], reads: &reads, sockets: true });
    // In this thread: it may start none.
    let found = (name, 0).to_socket_addrs().map_err(system)?;
    let found: BTreeSet<Ipv4Addr> = found
        .filter_map(|addr| match addr.ip() {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        })
        .collect();
    let lines: Vec<String> = found.iter().map(|addr| format!("{addr}\n")).collect();
    crate::cli::print(&lines.concat());
    Ok(())
}

/// Where hooks of DHCP clients leave what they hear: the control socket's directory, if nobody else has things in it.
fn offers(socket: &Path) -> Option<PathBuf> {
    let directory = std::fs::canonicalize(offer::directory(socket)).ok()?;
    if is_shared(&directory) {
        tracing::warn!(
            "others have files in {}, so that what hooks of DHCP clients leave there is not read; give the control socket a directory of its own ([control] socket)",
            directory.display()
        );
        return None;
    }
    Some(directory)
}

fn enter_sandbox(config: &Config) {
    let state: &Path = &config.state.directory;
    let offers = offers(&config.control.socket);
    let reads: Vec<&Path> = offers.as_deref().into_iter().collect();
    let sandbox = sandbox::enter(&Needs { writes: &[state], reads: &reads, sockets: false });
    if sandbox.is_whole() {
        tracing::info!("what the network sends is read by a process without capabilities, {sandbox}");
    } else {
        tracing::warn!(
            "what the network sends is read by a process without capabilities, but its sandbox lacks a part on this machine: {sandbox}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Directory;

    /// All of /run would be more than a process should see that somebody has taken over.
    #[test]
    fn what_hooks_leave_is_read_where_nobody_else_has_files() {
        let scratch = Directory::new("offers");
        let own = std::fs::canonicalize(&scratch.0).unwrap();
        assert_eq!(offers(&scratch.0.join("control.sock")), Some(own));
        std::os::unix::fs::symlink("/run", scratch.0.join("run")).unwrap();
        for shared in ["/run/portferry.sock", "/tmp/portferry.sock", "/portferry.sock", "portferry.sock"] {
            assert_eq!(offers(Path::new(shared)), None, "{shared}");
        }
        assert_eq!(offers(&scratch.0.join("run/portferry.sock")), None);
    }
}
