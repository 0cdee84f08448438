//! Looks up host names that control points sent, by the system's resolver and beside the loop. The hosts file goes first.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// A resolver that takes longer is not waited for.
const TIME: Duration = Duration::from_secs(5);
const HOSTS: &str = "/etc/hosts";

/// The IPv4 addresses of `name`, in an order that does not change from one look-up to the next; none when it has none, or
/// the resolver does not say so in time.
pub async fn addresses(name: &str) -> Vec<Ipv4Addr> {
    // The system's resolver would look there too, but for the name as it is asked: with the last dot.
    let hosts = tokio::task::spawn_blocking(|| std::fs::read(HOSTS).unwrap_or_default()).await;
    let listed = in_hosts(&String::from_utf8_lossy(&hosts.unwrap_or_default()), name);
    if !listed.is_empty() {
        return listed.into_iter().collect();
    }
    // Fully qualified where it has a dot: no search domain is tried, so that one name means one host.
    let query = if name.contains('.') { format!("{name}.") } else { name.to_owned() };
    match tokio::time::timeout(TIME, tokio::net::lookup_host((query, 0))).await {
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

/// What a hosts file says of `name`: a line is an address and its names, `#` begins a comment.
fn in_hosts(hosts: &str, name: &str) -> BTreeSet<Ipv4Addr> {
    let of_line = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let addr = words.next()?.parse().ok()?;
        let is_it = |own: &str| own.strip_suffix('.').unwrap_or(own).eq_ignore_ascii_case(name);
        words.any(is_it).then_some(addr)
    };
    hosts.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_file_as_it_is_written() {
        const HOSTS: &str = "\
            127.0.0.1\tlocalhost\n\
            # 192.0.2.9 a.example\n\
            \n\
            192.0.2.2 \t A.Example  b.example. # c.example\n\
            2001:db8::1 a.example\n\
            192.0.2.1 a.example\n\
            192.0.2.3 xa.example a.example.net 192.0.2.4";
        let found = |name| in_hosts(HOSTS, name).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(found("a.example"), ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(found("b.example"), ["192.0.2.2"]);
        assert_eq!(found("localhost"), ["127.0.0.1"]);
        for name in ["c.example", "example", "a", ""] {
            assert!(found(name).is_empty(), "{name}");
        }
    }

    #[test]
    fn the_machines_own_name_for_itself() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert!(runtime.block_on(addresses("localhost")).contains(&Ipv4Addr::LOCALHOST));
    }
}
