//! The router's interfaces, addresses, default routes and neighbours, read over rtnetlink. It changes nothing and needs no
//! privilege.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use netlink_bindings::{
    rt_addr::{self, Ifaddrmsg},
    rt_link::{self, Ifinfomsg},
    rt_neigh::{self, Ndmsg, NudState},
    rt_route::{self, IterableRouteAttrs, Rtmsg},
    utils::find_attr,
};
use netlink_socket2::{
    ReplyError,
    tokio::{MulticastSocketRaw, NetlinkSocket},
};
use tokio::time::{Instant, timeout, timeout_at};

/// How long the kernel may take to answer.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// Changes come in flocks (an interface, its addresses, its routes): one is over after this much silence …
const QUIET: Duration = Duration::from_millis(50);
/// … or this long after its beginning.
const FLOCK: Duration = Duration::from_millis(300);

// Multicast groups of rtnetlink (`RTNLGRP_*`).
const GROUPS: [u32; 5] = [
    1,  // LINK
    5,  // IPV4_IFADDR
    7,  // IPV4_ROUTE
    9,  // IPV6_IFADDR
    11, // IPV6_ROUTE
];
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const ENODEV: i32 = 19;
const ENOBUFS: i32 = 105;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 0x1;
const IFF_RUNNING: u32 = 0x40;
const OPERSTATE_UNKNOWN: u8 = 0;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_OPTIMISTIC: u32 = 0x04;
const IFA_F_TENTATIVE: u32 = 0x40;
const RT_TABLE_MAIN: u32 = 254;
const RTN_UNICAST: u8 = 1;
const RTM_F_CLONED: u32 = 0x200;
const RTNH_F_DEAD: u32 = 1;
const NTF_PROXY: u8 = 0x08;
const RTA_GATEWAY: u16 = 5;
const RTA_VIA: u16 = 18;

/// One network interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Interface {
    /// The kernel's number for it, from 1.
    pub index: u32,
    /// Its name, 1..=15 octets; octets that are no UTF-8 are replaced.
    pub name: String,
    /// Switched on, and with a carrier or of a kind that can't tell.
    pub up: bool,
    /// Its own addresses of both families with their prefix lengths, IPv4 first; IPv6 addresses only once they are known
    /// to be unique. Within a family the order is the kernel's: the first IPv4 address is the source of what goes to a
    /// multicast group by this interface.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Its Ethernet address, if it has one that isn't all zero.
    pub mac: Option<[u8; 6]>,
}

/// A default route. A multipath route counts once for each of its ways.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct DefaultRoute {
    /// Index of the interface it leads out of.
    pub interface: u32,
    /// The next router; on a point-to-point link, whose routes name none, the other side, if its address is known. An IPv4 route
    /// may have an IPv6 gateway (RFC 8950).
    pub gateway: Option<IpAddr>,
    /// Its priority: the lowest wins. IPv4 and IPv6 count apart.
    pub metric: u32,
    /// Whose traffic takes it.
    pub is_ipv6: bool,
    /// The number of its table.
    pub table: u32,
}

/// Everything [`Netlink`] knows, at one moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Snapshot {
    /// By index.
    pub interfaces: Vec<Interface>,
    /// By metric, then interface.
    pub default_routes: Vec<DefaultRoute>,
    /// Those of other tables than the main one, which rules lead some of the traffic to.
    pub other_default_routes: Vec<DefaultRoute>,
}

/// An interface's traffic since it was created. Octets and packets, link-layer headers included; may start again from 0
/// when a driver is reset. The speed of the link is not among what rtnetlink tells.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct LinkStats {
    /// Octets received.
    pub rx_bytes: u64,
    /// Octets sent.
    pub tx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
}

/// A host on one of the router's links, as the kernel's neighbour table has it (ARP, neighbour discovery): one whose MAC it knows, or
/// knew when it last had to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Neighbour {
    /// Index of the interface.
    pub interface: u32,
    /// One of its addresses.
    pub addr: IpAddr,
    /// Its Ethernet address.
    pub mac: [u8; 6],
}

/// A subscription to changes of interfaces, addresses and routes, and the means to read them.
pub struct Netlink {
    events: MulticastSocketRaw,
    /// When the flock of changes at hand is over at the latest; `None` if there is none. Kept here, so that a cancelled
    /// `changed` loses nothing.
    flock_ends: Option<Instant>,
}

impl Netlink {
    /// Joins the multicast groups for links, and for IPv4 and IPv6 addresses and routes. Changes count from here on.
    ///
    /// # Errors
    /// What the kernel says when it refuses a socket; in practice only for want of memory or file descriptors.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    pub fn open() -> io::Result<Self> {
        let mut events = MulticastSocketRaw::new(rt_link::PROTONUM)?;
        for group in GROUPS {
            events.listen(group)?;
        }
        Ok(Self { events, flock_ends: None })
    }

    /// Reads interfaces, addresses and default routes. They are three separate answers: what changes between them is
    /// reported by the next [`Netlink::changed`].
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] without an answer within 5 s; else what the kernel says.
    pub async fn snapshot(&mut self) -> io::Result<Snapshot> {
        within("reading interfaces", async {
            // A socket of its own each time: a cancelled dump would block the next one on the same socket (EBUSY).
            let mut socket = NetlinkSocket::new();
            let mut interfaces = links(&mut socket).await?;
            let peers = addresses(&mut socket, &mut interfaces).await?;
            let (mut default_routes, mut other_default_routes) = default_routes(&mut socket, &peers).await?;
            let mut interfaces: Vec<_> = interfaces.into_values().collect();
            interfaces.iter_mut().for_each(|one| one.addresses.sort_by_key(|(addr, _)| addr.is_ipv6()));
            for routes in [&mut default_routes, &mut other_default_routes] {
                routes.sort_unstable_by_key(|route| (route.metric, route.interface, route.gateway));
            }
            Ok(Snapshot { interfaces, default_routes, other_default_routes })
        })
        .await
    }

    /// Resolves when something may have changed: after the last of several changes (50 ms of silence), but at most
    /// 300 ms after the first. Changes of other than default routes don't count; notifications that were lost
    /// (ENOBUFS) do. Cancel-safe.
    ///
    /// # Errors
    /// What the kernel says; a change may have gone by unnoticed then.
    pub async fn changed(&mut self) -> io::Result<()> {
        let flock_ends = match self.flock_ends {
            Some(ends) => ends,
            None => {
                next_change(&mut self.events).await?;
                *self.flock_ends.insert(Instant::now() + FLOCK)
            }
        };
        loop {
            let silence = flock_ends.min(Instant::now() + QUIET);
            match timeout_at(silence, next_change(&mut self.events)).await {
                Ok(more) if Instant::now() < flock_ends => more?,
                _ => break,
            }
        }
        self.flock_ends = None;
        Ok(())
    }

    /// By which interface a packet leaves that comes in by `arriving`, from one host for another; `None`: by none. Rules for routes
    /// are followed as far as they ask for addresses and interfaces.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`]: no answer within 5 s.
    pub async fn way_of(&mut self, from: Ipv4Addr, arriving: u32, to: Ipv4Addr) -> io::Result<Option<u32>> {
        within("asking for a route", async {
            let mut socket = NetlinkSocket::new();
            let mut header = Rtmsg::new();
            (header.rtm_family, header.rtm_src_len, header.rtm_dst_len) = (AF_INET, 32, 32);
            let mut request = rt_route::Request::new().op_getroute_do(&header);
            request.encode().push_dst(to.into()).push_src(from.into()).push_iif(arriving);
            let mut replies = socket.request(&request).await?;
            match replies.recv_one().await {
                Ok((header, attrs)) if header.rtm_type == RTN_UNICAST => Ok(attrs.get_oif().ok()),
                Ok(_) => Ok(None),
                // "No route to host", "network unreachable", and what rules say that forbid.
                Err(_) => Ok(None),
            }
        })
        .await
    }

    /// Reads the counters of the interface with this index.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]: there is no such interface. [`ErrorKind::TimedOut`]: no answer within 5 s.
    pub async fn link_stats(&mut self, index: u32) -> io::Result<LinkStats> {
        let missing = || io::Error::new(ErrorKind::NotFound, format!("no interface has index {index}"));
        let mut header = Ifinfomsg::new();
        header.ifi_index = i32::try_from(index).ok().filter(|index| *index > 0).ok_or_else(missing)?;
        within("reading interface counters", async {
            let mut socket = NetlinkSocket::new();
            let request = rt_link::Request::new().op_getlink_do(&header);
            let mut replies = socket.request(&request).await?;
            let (_, attrs) = match replies.recv_one().await {
                Err(e) if e.as_io_error().raw_os_error() == Some(ENODEV) => return Err(missing().into()),
                reply => reply?,
            };
            let stats = attrs.get_stats64()?;
            Ok(LinkStats {
                rx_bytes: stats.rx_bytes,
                tx_bytes: stats.tx_bytes,
                rx_packets: stats.rx_packets,
                tx_packets: stats.tx_packets,
            })
        })
        .await
    }
}

/// Reads the neighbour table of both families. Entries that are being asked for, or that nobody has answered for, are not in it,
/// nor are those that the router answers for itself (proxy ARP).
///
/// # Errors
/// [`ErrorKind::TimedOut`]: no answer within 5 s; else what the kernel says.
pub async fn neighbours() -> io::Result<Vec<Neighbour>> {
    const KNOWN: u16 = NudState::Reachable as u16
        | NudState::Stale as u16
        | NudState::Delay as u16
        | NudState::Probe as u16
        | NudState::Permanent as u16;
    within("reading neighbours", async {
        let mut all = Vec::new();
        let mut socket = NetlinkSocket::new();
        let request = rt_neigh::Request::new().op_getneigh_dump(&Ndmsg::new());
        let mut replies = socket.request(&request).await?;
        while let Some(reply) = replies.recv().await {
            let (header, attrs) = reply?;
            if header.ndm_state & KNOWN == 0 || header.ndm_flags & NTF_PROXY != 0 {
                continue;
            }
            let (Ok(addr), Ok(mac)) = (attrs.get_dst(), attrs.get_lladdr()) else { continue };
            let (Ok(interface), Ok(mac)) = (u32::try_from(header.ndm_ifindex), mac.try_into()) else {
                continue;
            };
            all.push(Neighbour { interface, addr, mac });
        }
        Ok(all)
    })
    .await
}

/// Waits for a notification that counts.
async fn next_change(events: &mut MulticastSocketRaw) -> io::Result<()> {
    loop {
        match events.recv().await {
            Ok((about, message)) => {
                let is_route = matches!(about.message_type, RTM_NEWROUTE | RTM_DELROUTE);
                // Second octet of `struct rtmsg`: the length of the destination's prefix.
                if !is_route || message.get(1) == Some(&0) {
                    return Ok(());
                }
            }
            Err(e) if e.as_io_error().raw_os_error() == Some(ENOBUFS) => return Ok(()),
            Err(e) if e.as_io_error().kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
}

async fn links(socket: &mut NetlinkSocket) -> Result<BTreeMap<u32, Interface>, ReplyError> {
    let mut all = BTreeMap::new();
    let request = rt_link::Request::new().op_getlink_dump(&Ifinfomsg::new());
    let mut replies = socket.request(&request).await?;
    while let Some(reply) = replies.recv().await {
        let (header, attrs) = reply?;
        let (Ok(index), Ok(name)) = (u32::try_from(header.ifi_index), attrs.get_ifname()) else { continue };
        let carrier = header.ifi_flags & IFF_RUNNING != 0
            || attrs.get_operstate().is_ok_and(|state| state == OPERSTATE_UNKNOWN);
        let interface = Interface {
            index,
            name: name.to_string_lossy().into_owned(),
            up: header.ifi_flags & IFF_UP != 0 && carrier,
            addresses: Vec::new(),
            mac: attrs
                .get_address()
                .ok()
                .and_then(|octets| octets.try_into().ok())
                .filter(|mac| *mac != [0; 6]),
        };
        all.insert(index, interface);
    }
    Ok(all)
}

/// Puts the addresses where they belong. The result: who is at the other side of point-to-point links.
async fn addresses(
    socket: &mut NetlinkSocket,
    interfaces: &mut BTreeMap<u32, Interface>,
) -> Result<Peers, ReplyError> {
    let mut peers = Peers::default();
    let request = rt_addr::Request::new().op_getaddr_dump(&Ifaddrmsg::new());
    let mut replies = socket.request(&request).await?;
    while let Some(reply) = replies.recv().await {
        let (header, attrs) = reply?;
        let flags = attrs.get_flags().unwrap_or_else(|_| u32::from(header.ifa_flags));
        let undecided = flags & IFA_F_TENTATIVE != 0 && flags & IFA_F_OPTIMISTIC == 0;
        if undecided || flags & IFA_F_DADFAILED != 0 {
            continue;
        }
        // On a point-to-point link IFA_ADDRESS is the other side's.
        let (local, address) = (attrs.get_local().ok(), attrs.get_address().ok());
        let Some(addr) = local.or(address) else { continue };
        if let Some(peer) = address
            && peer != addr
            && !peer.is_unspecified()
        {
            peers.0.entry((header.ifa_index, peer.is_ipv6())).or_insert(peer);
        }
        if let Some(interface) = interfaces.get_mut(&header.ifa_index) {
            interface.addresses.push((addr, header.ifa_prefixlen));
        }
    }
    Ok(peers)
}

/// The first peer of each interface and family (whether that is IPv6).
#[derive(Debug, Default)]
struct Peers(BTreeMap<(u32, bool), IpAddr>);

impl Peers {
    fn of(&self, interface: u32, family: u8) -> Option<IpAddr> {
        self.0.get(&(interface, family == AF_INET6)).copied()
    }
}

/// Those of the main table, and those of others.
async fn default_routes(
    socket: &mut NetlinkSocket,
    peers: &Peers,
) -> Result<(Vec<DefaultRoute>, Vec<DefaultRoute>), ReplyError> {
    let (mut all, mut others) = (Vec::new(), Vec::new());
    let mut seen = 0_u32;
    let request = rt_route::Request::new().op_getroute_dump(&Rtmsg::new());
    let mut replies = socket.request(&request).await?;
    while let Some(reply) = replies.recv().await {
        let (header, attrs) = reply?;
        let table = attrs.get_table().unwrap_or_else(|_| u32::from(header.rtm_table));
        let all = if table == RT_TABLE_MAIN { &mut all } else { &mut others };
        push_default_routes(&header, &attrs, peers, all);
        // The whole of every table comes by here: let others run.
        seen += 1;
        if seen.is_multiple_of(256) {
            tokio::task::yield_now().await;
        }
    }
    Ok((all, others))
}

fn push_default_routes(
    header: &Rtmsg,
    attrs: &IterableRouteAttrs<'_>,
    peers: &Peers,
    all: &mut Vec<DefaultRoute>,
) {
    if !matches!(header.rtm_family, AF_INET | AF_INET6)
        || header.rtm_dst_len != 0
        || header.rtm_type != RTN_UNICAST
        || header.rtm_flags & (RTM_F_CLONED | RTNH_F_DEAD) != 0
    {
        return;
    }
    let metric = attrs.get_priority().unwrap_or(0);
    let table = attrs.get_table().unwrap_or_else(|_| u32::from(header.rtm_table));
    let is_ipv6 = header.rtm_family == AF_INET6;
    let router = |interface, attrs| gateway(attrs).or_else(|| peers.of(interface, header.rtm_family));
    if let Ok(interface) = attrs.get_oif() {
        all.push(DefaultRoute {
            interface,
            gateway: router(interface, attrs.get_buf()),
            metric,
            is_ipv6,
            table,
        });
    }
    let mut ways = attrs.get_multipath().unwrap_or_default();
    // `struct rtnexthop`: length u16, flags u8, hops u8, interface i32; then attributes.
    while let Some((&[l0, l1, flags, _, i0, i1, i2, i3], rest)) = ways.split_first_chunk::<8>() {
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let Some(own) = len.checked_sub(8).and_then(|len| rest.get(..len)) else { break };
        if u32::from(flags) & RTNH_F_DEAD == 0 {
            let interface = u32::from_ne_bytes([i0, i1, i2, i3]);
            all.push(DefaultRoute { interface, gateway: router(interface, own), metric, is_ipv6, table });
        }
        ways = ways.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
}

/// The gateway among a route's or a way's attributes: RTA_GATEWAY, or RTA_VIA (family u16, address), which the bindings
/// take for a bare address.
fn gateway(attrs: &[u8]) -> Option<IpAddr> {
    let address = |octets: &[u8]| match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(|o| IpAddr::V4(Ipv4Addr::from(o))),
        16 => <[u8; 16]>::try_from(octets).ok().map(|o| IpAddr::V6(Ipv6Addr::from(o))),
        _ => None,
    };
    let via = || find_attr(attrs, RTA_VIA).and_then(|via| via.get(2..)).and_then(address);
    find_attr(attrs, RTA_GATEWAY).and_then(address).or_else(via)
}

/// Waits for the kernel, and says what for when it refuses.
async fn within<T>(what: &str, work: impl Future<Output = Result<T, ReplyError>>) -> io::Result<T> {
    match timeout(REPLY_TIMEOUT, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(io::Error::new(e.as_io_error().kind(), format!("{what}: {e}"))),
        Err(_) => Err(io::Error::new(ErrorKind::TimedOut, format!("{what}: the kernel does not answer"))),
    }
}
