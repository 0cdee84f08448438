//! What /proc and /sys tell: forwarding, who has a port, who has joined a group, how a bridge treats multicast.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use crate::doctor::facts::{Bridge, Holder, Port, Setup};

const IFF_MULTICAST: u32 = 0x1000;

/// The interfaces of the setup that exist.
pub(super) fn ports(setup: &Setup) -> BTreeMap<String, Port> {
    let names = setup.lan.iter().chain(setup.uplinks.iter().map(|uplink| &uplink.interface));
    names.filter_map(|name| Some((name.clone(), port(name)?))).collect()
}

fn port(name: &str) -> Option<Port> {
    let directory = PathBuf::from("/sys/class/net").join(name);
    let flags = fs::read_to_string(directory.join("flags")).ok()?;
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).ok()?;
    let bridge = switch(&directory.join("bridge/multicast_snooping")).map(|snooping| Bridge {
        snooping,
        querier: switch(&directory.join("bridge/multicast_querier")).unwrap_or(false),
    });
    let forwarding = switch(&PathBuf::from("/proc/sys/net/ipv4/conf").join(name).join("forwarding"));
    Some(Port { multicast: flags & IFF_MULTICAST != 0, forwarding, bridge })
}

fn switch(file: &Path) -> Option<bool> {
    let text = fs::read_to_string(file).ok()?;
    Some(text.trim() != "0")
}

/// Where the group is joined; `None`: it cannot be seen.
pub(super) fn joined(group: Ipv4Addr) -> Option<BTreeSet<String>> {
    Some(joined_in(&fs::read_to_string("/proc/net/igmp").ok()?, group))
}

/// Lines of an interface (number, tab, name, at least ten wide, and a colon: `%d\t%-10s:`), each followed by lines of its groups,
/// indented.
fn joined_in(text: &str, group: Ipv4Addr) -> BTreeSet<String> {
    let mut interface = String::new();
    let mut found = BTreeSet::new();
    for line in text.lines().skip(1) {
        if line.starts_with(char::is_whitespace) {
            let word = line.split_whitespace().next().unwrap_or_default();
            let own = u32::from_str_radix(word, 16).map(|number| Ipv4Addr::from(number.to_ne_bytes()));
            if own == Ok(group) {
                found.insert(interface.clone());
            }
        } else {
            let name = line.split_once('\t').and_then(|(_, rest)| rest.rsplit_once(':'));
            interface = name.map_or("", |(name, _)| name.trim_end()).to_owned();
        }
    }
    found
}

/// Who has a port, by the kernel's tables of sockets; `listening`: of TCP, only those that listen.
pub(super) fn holders(tables: &[&str], port: u16, listening: bool) -> Vec<Holder> {
    let read = |table: &&str| {
        let text = fs::read_to_string(Path::new("/proc/net").join(table)).unwrap_or_default();
        sockets_in(&text, port, listening)
    };
    let sockets: Vec<(IpAddr, String)> = tables.iter().flat_map(read).collect();
    if sockets.is_empty() {
        return Vec::new();
    }
    let owners = owners(sockets.iter().map(|(_, inode)| inode.clone()).collect());
    let holder =
        |(address, inode): (IpAddr, String)| Holder { address, process: owners.get(&inode).cloned() };
    sockets.into_iter().map(holder).collect()
}

/// Address and inode.
fn sockets_in(table: &str, port: u16, listening: bool) -> Vec<(IpAddr, String)> {
    const LISTEN: &str = "0A";
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, own) = fields.get(1)?.split_once(':')?;
        let is_it =
            u16::from_str_radix(own, 16).ok()? == port && (!listening || fields.get(3) == Some(&LISTEN));
        is_it.then_some((address_in(address)?, (*fields.get(9)?).to_owned()))
    };
    table.lines().skip(1).filter_map(socket).collect()
}

/// One word of 32 bits, or four, each in the machine's order.
fn address_in(text: &str) -> Option<IpAddr> {
    let word = |n: usize| {
        let digits = text.get(8 * n..8 * n + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    match text.len() {
        8 => Some(IpAddr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (n, place) in octets.chunks_exact_mut(4).enumerate() {
                place.copy_from_slice(&word(n)?);
            }
            Some(IpAddr::from(octets).to_canonical())
        }
        _ => None,
    }
}

/// The processes that have these sockets, by inode. Those of others can be seen by root only.
fn owners(inodes: BTreeSet<String>) -> BTreeMap<String, (u32, String)> {
    let mut found = BTreeMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        for file in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(file.path()) else { continue };
            let target = target.to_string_lossy();
            let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            if let Some(inode) = inode.filter(|inode| inodes.contains(*inode)) {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                found.entry(inode.to_owned()).or_insert((pid, name.trim().to_owned()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn tables_as_the_kernel_prints_them() {
        let igmp = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                    1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n\
                    4\tbr-lan    :     2      V3\n\t\t\t\tFAFFFFEF     1 0:00000000\t\t0\n\t\t\t\t010000E0     1 0:00000000\t\t0\n";
        assert_eq!(joined_in(igmp, wire::ssdp::GROUP_V4), ["br-lan".to_owned()].into());
        let long = igmp.replace("br-lan    :", "br-lan.100:");
        assert_eq!(joined_in(&long, wire::ssdp::GROUP_V4), ["br-lan.100".to_owned()].into());
        let udp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                   22: 00000000:076C 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 7231 2 0 0\n\
                   23: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 7232 2 0 0\n";
        assert_eq!(sockets_in(udp, 1900, false), [(Ipv4Addr::UNSPECIFIED.into(), "7231".to_owned())]);
        assert_eq!(sockets_in(udp, 53, false), [(Ipv4Addr::LOCALHOST.into(), "7232".to_owned())]);
        assert_eq!(sockets_in(udp, 53, true), [], "it does not listen");
        let tcp6 = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                    0: 00000000000000000000000000000000:1537 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 8001 1 0 100 0 0 10 0\n\
                    1: 00000000000000000000000001000000:1537 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 8002 1 0 100 0 0 10 0\n\
                    2: 0000000000000000FFFF0000014DA8C0:1537 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 8003 1 0 100 0 0 10 0\n";
        let at = |text: &str, inode: &str| (text.parse().unwrap(), inode.to_owned());
        assert_eq!(
            sockets_in(tcp6, 5431, true),
            [at("::", "8001"), at("::1", "8002"), at("192.168.77.1", "8003")]
        );
    }
}
