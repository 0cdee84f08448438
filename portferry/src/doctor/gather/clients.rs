//! Whether the LAN hosts that have TCP mappings listen: a connection to each, closed at once. UDP is left alone, for nothing is known
//! of what a datagram would do.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::SocketAddrV4;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::doctor::facts::{Client, Gateway, Says};

/// So many are knocked at.
const MOST: usize = 32;
/// A host of the LAN answers within a few milliseconds, unless it has to be woken up.
const PATIENCE: Duration = Duration::from_secs(3);

/// Knocks at all of them at once.
pub(super) async fn knock(gateway: &Gateway) -> Vec<Client> {
    let Gateway::Running { mappings, .. } = gateway else { return Vec::new() };
    let tcp = mappings.iter().filter(|mapping| mapping.protocol == "TCP");
    let all: BTreeSet<SocketAddrV4> = tcp.map(|mapping| mapping.internal).collect();
    let mut knocks = tokio::task::JoinSet::new();
    for at in all.into_iter().take(MOST) {
        knocks.spawn(async move { Client { at, says: says(at).await } });
    }
    let mut clients = knocks.join_all().await;
    clients.sort_by_key(|client| client.at);
    clients
}

async fn says(at: SocketAddrV4) -> Says {
    match timeout(PATIENCE, TcpStream::connect(at)).await {
        Ok(Ok(_)) => Says::Accepts,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Says::Refuses,
        Ok(Err(_)) | Err(_) => Says::Silent,
    }
}
