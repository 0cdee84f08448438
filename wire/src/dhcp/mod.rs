//! What DHCP says of PCP servers (RFC 7291), and the two exchanges that ask for it: DHCPINFORM and DHCPACK ([`v4`]),
//! Information-request and Reply ([`v6`]). It never asks for an address, and reads nothing else of an answer.

pub mod v4;
pub mod v6;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::codec::{Malformed, Reader};

/// How many PCP servers of one offer count; those that come after are passed over. Whoever sends more fills memory.
pub const MAX_SERVERS: usize = 16;
/// How many addresses of one PCP server count.
pub const MAX_ADDRESSES: usize = 8;

/// One PCP server: its addresses in the order in which they were offered, 1 to [`MAX_ADDRESSES`] of them.
pub type ServerAddresses = Vec<IpAddr>;

/// Reads the value of DHCPv4's option 158, OPTION_V4_PCP_SERVER (RFC 7291 §4.1): one or more lists, each an octet with its
/// length in octets (a multiple of 4) and IPv4 addresses. Each list is a PCP server. What came in several parts has to be
/// joined before (RFC 3396 §7).
///
/// Addresses that cannot be a server's are passed over ([`is_usable`]), and servers that have no other.
///
/// # Errors
/// A list is empty, ends amidst an address or behind the end of the option; or there is none. Nothing of such an option
/// counts, for nobody knows where its next list begins.
pub fn decode_option_158(value: &[u8]) -> Result<Vec<ServerAddresses>, Malformed> {
    let mut r = Reader::new(value);
    let mut servers = Vec::new();
    loop {
        let len = r.u8()?;
        let addresses = r.take(usize::from(len))?;
        servers.push(addresses_of::<4>(addresses)?);
        if r.is_empty() {
            return Ok(bounded(servers));
        }
    }
}

/// Reads the value of one DHCPv6 option 86, OPTION_V6_PCP_SERVER (RFC 7291 §3.1): one or more IPv6 addresses of one PCP
/// server. Those of the IPv4-mapped form are IPv4 addresses (§3.2). Each instance of the option is a server of its own.
///
/// It is empty when no address can be a server's ([`is_usable`]).
///
/// # Errors
/// Its length is 0, or no multiple of 16.
pub fn decode_option_86(value: &[u8]) -> Result<ServerAddresses, Malformed> {
    let addresses = addresses_of::<16>(value)?;
    Ok(bounded(vec![addresses]).pop().unwrap_or_default())
}

/// Whether a PCP server may have this address. A DHCP client has to discard multicast and loopback addresses (RFC 7291
/// §3.2, §4.2). The unspecified address and IPv4's broadcast address are nobody's either.
pub fn is_usable(addr: IpAddr) -> bool {
    let broadcast = addr == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(addr.is_multicast() || addr.is_loopback() || addr.is_unspecified() || broadcast)
}

/// What of an offer counts: usable addresses, each once, no more than [`MAX_SERVERS`] of [`MAX_ADDRESSES`].
pub fn bounded(servers: impl IntoIterator<Item = ServerAddresses>) -> Vec<ServerAddresses> {
    let server = |addresses: ServerAddresses| {
        let mut kept = ServerAddresses::new();
        for addr in addresses {
            let addr = addr.to_canonical();
            if is_usable(addr) && !kept.contains(&addr) && kept.len() < MAX_ADDRESSES {
                kept.push(addr);
            }
        }
        kept
    };
    servers.into_iter().map(server).filter(|addresses| !addresses.is_empty()).take(MAX_SERVERS).collect()
}

/// Addresses of `N` octets, 4 or 16, one at least.
fn addresses_of<const N: usize>(octets: &[u8]) -> Result<ServerAddresses, Malformed> {
    if octets.is_empty() || !octets.len().is_multiple_of(N) {
        return Err(Malformed);
    }
    let address = |octets: &[u8]| match *octets {
        [a, b, c, d] => Ok(IpAddr::V4(Ipv4Addr::new(a, b, c, d))),
        _ => <[u8; 16]>::try_from(octets).map(|octets| Ipv6Addr::from(octets).into()).map_err(|_| Malformed),
    };
    octets.chunks(N).map(address).collect()
}
