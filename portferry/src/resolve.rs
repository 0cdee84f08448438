//! Looks up host names that control points sent, by the system's resolver and beside the loop.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// A resolver that takes longer is not waited for.
const TIME: Duration = Duration::from_secs(5);

/// The IPv4 addresses of `name`, in an order that does not change from one look-up to the next; none when it has none, or
/// the resolver does not say so in time.
pub async fn addresses(name: &str) -> Vec<Ipv4Addr> {
    match tokio::time::timeout(TIME, tokio::net::lookup_host((name, 0))).await {
        Ok(Ok(found)) => {
            let v4 = |addr: IpAddr| match addr {
                IpAddr::V4(v4) => Some(v4),
                IpAddr::V6(_) => None,
            };
            found.filter_map(|addr| v4(addr.ip())).collect::<BTreeSet<_>>().into_iter().collect()
        }
        Ok(Err(error)) => {
            tracing::debug!("looking up {name}: {error}");
            Vec::new()
        }
        Err(_) => {
            tracing::debug!("looking up {name}: no answer within {} s", TIME.as_secs());
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_own_name_for_itself() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert!(runtime.block_on(addresses("localhost")).contains(&Ipv4Addr::LOCALHOST));
    }
}
