//! Ending flows that the kernel still tracks. NAT is decided by a flow's first packet, so a change of the table alone
//! never reaches a flow that exists.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
};

use netlink_bindings::{
    conntrack::{
        self, IterableConntrackAttrs, IterableTupleAttrs, NfCtStatus, Nfgenmsg, OpGetDump, PROTONUM,
        PushConntrackAttrs, PushTupleAttrs,
    },
    traits::{NetlinkRequest, Protocol, Pusher},
    utils,
};
use netlink_socket2::{ReplyError, tokio::NetlinkSocket};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE`; the bindings have only `get`.
const CT_DELETE: u16 = 0x102;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;

// Which tuple fields a CTA_FILTER compares (`CTA_FILTER_F_*` of the kernel).
const BY_SOURCE_ADDRESS: u32 = 1;
const BY_DESTINATION_ADDRESS: u32 = 1 << 1;
const BY_PROTOCOL: u32 = 1 << 3;
const BY_SOURCE_PORT: u32 = 1 << 4;
const BY_DESTINATION_PORT: u32 = 1 << 5;

/// Neither answered nor translated: such a flow was here before its mapping, and would never be translated.
pub(super) const UNANSWERED_MASK: u32 =
    NfCtStatus::SeenReply as u32 | NfCtStatus::SrcNat as u32 | NfCtStatus::DstNat as u32;

const TRANSLATED: u32 = NfCtStatus::DstNat as u32;
const LEFT: u32 = NfCtStatus::SrcNat as u32;

/// Up to this many, one walk of the kernel's table each; beyond, we read the table once.
const SINGLY: usize = 16;

/// Flows to be ended.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Flows {
    /// All that came in through a mapping, by a port of the WAN address.
    Mapped { protocol: u8, external_port: u16, internal: SocketAddrV4, remote_peer: Option<Ipv4Addr> },
    /// The same, by the outermost address and port.
    Hairpin { protocol: u8, outermost: SocketAddrV4, internal: SocketAddrV4, remote_peer: Option<Ipv4Addr> },
    /// All to this external port that nobody has answered and that no NAT applies to.
    Unanswered { protocol: u8, external_port: u16 },
    /// All to this outermost address and port that went out, for there was no mapping here.
    Missed { protocol: u8, outermost: SocketAddrV4 },
    /// All that this host began from this port, and that left by another address.
    From { protocol: u8, internal: SocketAddrV4 },
}

/// Ends `flows`. The kernel selects them (Linux 6.10 and later); `kernel_filters` turns false when it can't, and then
/// the flows are listed and deleted one by one.
pub(super) async fn end(
    socket: &mut NetlinkSocket,
    flows: &BTreeSet<Flows>,
    kernel_filters: &mut bool,
) -> Result<(), ReplyError> {
    if *kernel_filters && flows.len() <= SINGLY {
        for one in flows {
            let asked = socket.request(&Delete(selection(one))).await?.recv_ack().await;
            match asked.as_ref().map_err(|e| e.as_io_error().raw_os_error()) {
                Err(Some(EINVAL | EOPNOTSUPP)) => {
                    *kernel_filters = false;
                    return list_and_delete(socket, flows).await; // those that are gone are found no more
                }
                _ => asked?,
            }
        }
        return Ok(());
    }
    list_and_delete(socket, flows).await
}

async fn list_and_delete(socket: &mut NetlinkSocket, flows: &BTreeSet<Flows>) -> Result<(), ReplyError> {
    let request = conntrack::Request::new().op_get_dump(&header(AF_INET));
    sweep(socket, &request, AF_INET, |attrs| wanted(flows, attrs).unwrap_or(false)).await
}

/// One tracked flow as its first packet came, and as answers come. Ports are 0 where a protocol has none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Flow {
    pub(super) protocol: u8,
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) reply_source: SocketAddr,
    pub(super) reply_destination: SocketAddr,
    /// `IPS_*`, as in [`NfCtStatus`].
    pub(super) status: u32,
}

/// Which flows the kernel is to list: those to this destination, or those whose answers go there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Towards {
    pub(super) addr: IpAddr,
    /// `None`: all.
    pub(super) protocol: Option<u8>,
    /// `None`: all.
    pub(super) port: Option<u16>,
    pub(super) answers: bool,
}

/// Deletes each flow of a family that is `doomed`. The kernel lists only those `towards`, of IPv6 those of any address (Linux 5.8
/// and later; others list all, or refuse with EINVAL or EOPNOTSUPP).
pub(super) async fn end_each(
    socket: &mut NetlinkSocket,
    ipv6: bool,
    towards: Option<Towards>,
    doomed: impl Fn(&Flow) -> bool,
) -> Result<(), ReplyError> {
    let family = if ipv6 { AF_INET6 } else { AF_INET };
    let mut request = conntrack::Request::new().op_get_dump(&header(family));
    if let Some(towards) = towards {
        towards.write(request.encode());
    }
    sweep(socket, &request, family, |attrs| flow(attrs).is_some_and(|flow| doomed(&flow))).await
}

/// A flow that is looked for, by where it comes from as its host sees it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FlowFrom {
    /// IANA protocol number.
    pub protocol: u8,
    /// The host and its port. Of IPv6 none is found, for it is not translated.
    pub internal: SocketAddr,
    /// Whom it goes to; `None`: any flow from there.
    pub remote: Option<SocketAddr>,
}

/// Where these flows go out, if that is one of `addresses`.
pub(super) async fn places(
    socket: &mut NetlinkSocket,
    asked: &[FlowFrom],
    addresses: &[Ipv4Addr],
) -> Result<Vec<Option<SocketAddrV4>>, ReplyError> {
    let place = |flow: &Flow| match flow.reply_destination {
        SocketAddr::V4(place)
            if flow.status & NfCtStatus::SrcNat as u32 != 0 && addresses.contains(place.ip()) =>
        {
            Some(place)
        }
        _ => None,
    };
    let mut places = vec![None; asked.len()];
    let mut to_anybody: BTreeMap<(u8, SocketAddr), Vec<usize>> = BTreeMap::new();
    for (n, one) in asked.iter().enumerate() {
        match (one.internal, one.remote) {
            (SocketAddr::V4(internal), Some(SocketAddr::V4(remote))) => {
                places[n] = exact(socket, one.protocol, internal, remote).await?.as_ref().and_then(place);
            }
            (internal, _) => to_anybody.entry((one.protocol, internal)).or_default().push(n),
        }
    }
    if to_anybody.is_empty() {
        return Ok(places);
    }
    let mut request = conntrack::Request::new().op_get_dump(&header(AF_INET));
    if let (1, Some((&(protocol, SocketAddr::V4(internal)), _))) =
        (to_anybody.len(), to_anybody.first_key_value())
    {
        source(request.encode().nested_tuple_orig(), protocol, internal)
            .nested_filter()
            .push_orig_flags(BY_SOURCE_ADDRESS | BY_PROTOCOL | BY_SOURCE_PORT)
            .push_reply_flags(0);
    }
    let mut replies = socket.request(&request).await?;
    while let Some(reply) = replies.recv().await {
        // Kernels before 5.8 list all in any case.
        let (_, attrs) = reply?;
        let Some(flow) = flow(&attrs) else { continue };
        for &n in to_anybody.get(&(flow.protocol, flow.source)).into_iter().flatten() {
            places[n] = places[n].or_else(|| place(&flow));
        }
    }
    Ok(places)
}

/// One flow, which the kernel finds without looking at others.
async fn exact(
    socket: &mut NetlinkSocket,
    protocol: u8,
    internal: SocketAddrV4,
    remote: SocketAddrV4,
) -> Result<Option<Flow>, ReplyError> {
    let mut request = conntrack::Request::new().op_get_do(&header(AF_INET));
    request
        .encode()
        .nested_tuple_orig()
        .nested_tuple_ip()
        .push_ip_v4_src(*internal.ip())
        .push_ip_v4_dst(*remote.ip())
        .end_nested()
        .nested_tuple_proto()
        .push_proto_num(protocol)
        .push_proto_src_port(internal.port())
        .push_proto_dst_port(remote.port())
        .end_nested()
        .end_nested();
    match socket.request(&request).await?.recv_one().await {
        Ok((_, attrs)) => Ok(flow(&attrs)),
        Err(e) if e.as_io_error().kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn source<P: Pusher>(tuple: PushTupleAttrs<P>, protocol: u8, internal: SocketAddrV4) -> P {
    tuple
        .nested_tuple_ip()
        .push_ip_v4_src(*internal.ip())
        .end_nested()
        .nested_tuple_proto()
        .push_proto_num(protocol)
        .push_proto_src_port(internal.port())
        .end_nested()
        .end_nested()
}

/// Deletes all flows `towards` whose status has these bits of a mask. The kernel does it (Linux 6.10 and later; others
/// refuse with EINVAL or EOPNOTSUPP), some ten times faster than it lists: it locks no empty bucket. IPv6's are listed.
pub(super) async fn end_all(
    socket: &mut NetlinkSocket,
    towards: Towards,
    (status, mask): (u32, u32),
) -> Result<(), ReplyError> {
    if towards.addr.is_ipv6() {
        let doomed = |flow: &Flow| towards.has(flow) && flow.status & mask == status;
        return end_each(socket, true, Some(towards), doomed).await;
    }
    let mut payload = header(AF_INET).as_slice().to_vec();
    let attrs = PushConntrackAttrs::new(&mut payload).push_status(status).push_status_mask(mask);
    towards.write(attrs);
    socket.request(&Delete(payload)).await?.recv_ack().await
}

impl Towards {
    fn has(&self, flow: &Flow) -> bool {
        let there = if self.answers { flow.reply_destination } else { flow.destination };
        there.ip() == self.addr
            && self.protocol.is_none_or(|protocol| protocol == flow.protocol)
            && self.port.is_none_or(|port| port == there.port())
    }

    /// Kernels compare IPv6 addresses the wrong way round (all from 5.8 to 6.18): they select the flows to any other. So of IPv6
    /// they are not asked for the address, and select more than what is meant.
    fn write<P: Pusher>(self, attrs: PushConntrackAttrs<P>) {
        fn fill<P: Pusher>(towards: Towards, tuple: PushTupleAttrs<P>) -> P {
            let ip = tuple.nested_tuple_ip();
            let mut tuple = match towards.addr {
                IpAddr::V4(addr) => ip.push_ip_v4_dst(addr).end_nested(),
                IpAddr::V6(addr) => ip.push_ip_v6_dst(addr).end_nested(),
            };
            if let Some(protocol) = towards.protocol {
                let mut proto = tuple.nested_tuple_proto().push_proto_num(protocol);
                if let Some(port) = towards.port {
                    proto = proto.push_proto_dst_port(port);
                }
                tuple = proto.end_nested();
            }
            tuple.end_nested()
        }
        let mut flags = if self.addr.is_ipv4() { BY_DESTINATION_ADDRESS } else { 0 };
        if self.protocol.is_some() {
            flags |= BY_PROTOCOL;
            if self.port.is_some() {
                flags |= BY_DESTINATION_PORT;
            }
        }
        let (attrs, original, reply) = if self.answers {
            (fill(self, attrs.nested_tuple_reply()), 0, flags)
        } else {
            (fill(self, attrs.nested_tuple_orig()), flags, 0)
        };
        attrs.nested_filter().push_orig_flags(original).push_reply_flags(reply);
    }
}

/// Whether the kernel says that it can't select flows.
pub(super) fn cannot_select(error: &ReplyError) -> bool {
    matches!(error.as_io_error().raw_os_error(), Some(EINVAL | EOPNOTSUPP))
}

fn flow(attrs: &IterableConntrackAttrs<'_>) -> Option<Flow> {
    let (original, reply) = (attrs.get_tuple_orig().ok()?, attrs.get_tuple_reply().ok()?);
    let (protocol, source, destination) = ends(&original)?;
    let (_, reply_source, reply_destination) = ends(&reply)?;
    let status = attrs.get_status().ok()?;
    Some(Flow { protocol, source, destination, reply_source, reply_destination, status })
}

fn ends(tuple: &IterableTupleAttrs<'_>) -> Option<(u8, SocketAddr, SocketAddr)> {
    let (ip, proto) = (tuple.get_tuple_ip().ok()?, tuple.get_tuple_proto().ok()?);
    let (source, destination) = match (ip.get_ip_v4_src(), ip.get_ip_v4_dst()) {
        (Ok(source), Ok(destination)) => (IpAddr::V4(source), IpAddr::V4(destination)),
        _ => (IpAddr::V6(ip.get_ip_v6_src().ok()?), IpAddr::V6(ip.get_ip_v6_dst().ok()?)),
    };
    let port = |port: Result<u16, _>| port.unwrap_or(0);
    let source = SocketAddr::new(source, port(proto.get_proto_src_port()));
    let destination = SocketAddr::new(destination, port(proto.get_proto_dst_port()));
    Some((proto.get_proto_num().ok()?, source, destination))
}

/// Lists flows, then deletes those that are `doomed`.
async fn sweep(
    socket: &mut NetlinkSocket,
    request: &OpGetDump<'_>,
    family: u8,
    doomed: impl Fn(&IterableConntrackAttrs<'_>) -> bool,
) -> Result<(), ReplyError> {
    let mut found = Vec::new();
    let mut replies = socket.request(request).await?;
    let mut seen = 0_u32;
    loop {
        match replies.recv().await {
            None => break,
            Some(reply) => {
                let (_, attrs) = reply?;
                if doomed(&attrs) {
                    found.push(exactly(family, &attrs)?);
                }
            }
        }
        seen += 1;
        if seen.is_multiple_of(256) {
            tokio::task::yield_now().await;
        }
    }
    for payload in found {
        match socket.request(&Delete(payload)).await?.recv_ack().await {
            Err(e) if e.as_io_error().kind() == ErrorKind::NotFound => {} // it ended by itself
            outcome => outcome?,
        }
    }
    Ok(())
}

/// `None`: not TCP or UDP over IPv4.
fn wanted(flows: &BTreeSet<Flows>, attrs: &IterableConntrackAttrs<'_>) -> Option<bool> {
    let (original, reply) = (attrs.get_tuple_orig().ok()?, attrs.get_tuple_reply().ok()?);
    let (proto, ip) = (original.get_tuple_proto().ok()?, original.get_tuple_ip().ok()?);
    let protocol = proto.get_proto_num().ok()?;
    let peer = ip.get_ip_v4_src().ok()?;
    let source = SocketAddrV4::new(peer, proto.get_proto_src_port().ok()?);
    let outermost = SocketAddrV4::new(ip.get_ip_v4_dst().ok()?, proto.get_proto_dst_port().ok()?);
    let external_port = outermost.port();
    let internal = SocketAddrV4::new(
        reply.get_tuple_ip().ok()?.get_ip_v4_src().ok()?,
        reply.get_tuple_proto().ok()?.get_proto_src_port().ok()?,
    );
    let status = attrs.get_status().ok()?;
    let mapped = |remote_peer: Option<Ipv4Addr>| {
        flows.contains(&Flows::Mapped { protocol, external_port, internal, remote_peer })
            || flows.contains(&Flows::Hairpin { protocol, outermost, internal, remote_peer })
    };
    let unanswered =
        status & UNANSWERED_MASK == 0 && flows.contains(&Flows::Unanswered { protocol, external_port });
    let missed = status & TRANSLATED == 0 && flows.contains(&Flows::Missed { protocol, outermost });
    let left = status & LEFT != 0 && flows.contains(&Flows::From { protocol, internal: source });
    Some(unanswered || missed || left || mapped(None) || mapped(Some(peer)))
}

/// The request that deletes just the flow with these attributes.
fn exactly(family: u8, attrs: &IterableConntrackAttrs<'_>) -> Result<Vec<u8>, ReplyError> {
    const CTA_TUPLE_ORIG: u16 = 1;
    let mut payload = header(family).as_slice().to_vec();
    let tuple = utils::push_nested_header(&mut payload, CTA_TUPLE_ORIG);
    payload.extend(attrs.get_tuple_orig()?.get_buf());
    utils::finalize_nested_header(&mut payload, tuple);
    if let Ok(zone) = attrs.get_zone() {
        PushConntrackAttrs::new(&mut payload).push_zone(zone);
    }
    Ok(payload)
}

/// The request that deletes all flows of one kind. It always names an original tuple: kernels that know no filter
/// then refuse an incomplete tuple (EINVAL) where they would otherwise delete every flow there is.
fn selection(flows: &Flows) -> Vec<u8> {
    let mut payload = header(AF_INET).as_slice().to_vec();
    let attrs = PushConntrackAttrs::new(&mut payload);
    match *flows {
        Flows::Unanswered { protocol, external_port } => {
            attrs
                .nested_tuple_orig()
                .nested_tuple_proto()
                .push_proto_num(protocol)
                .push_proto_dst_port(external_port)
                .end_nested()
                .end_nested()
                .push_status(0)
                .push_status_mask(UNANSWERED_MASK)
                .nested_filter()
                .push_orig_flags(BY_PROTOCOL | BY_DESTINATION_PORT)
                .push_reply_flags(0);
        }
        Flows::Missed { protocol, outermost } => {
            attrs
                .nested_tuple_orig()
                .nested_tuple_ip()
                .push_ip_v4_dst(*outermost.ip())
                .end_nested()
                .nested_tuple_proto()
                .push_proto_num(protocol)
                .push_proto_dst_port(outermost.port())
                .end_nested()
                .end_nested()
                .push_status(0)
                .push_status_mask(TRANSLATED)
                .nested_filter()
                .push_orig_flags(BY_DESTINATION_ADDRESS | BY_PROTOCOL | BY_DESTINATION_PORT)
                .push_reply_flags(0);
        }
        Flows::From { protocol, internal } => {
            source(attrs.nested_tuple_orig(), protocol, internal)
                .push_status(LEFT)
                .push_status_mask(LEFT)
                .nested_filter()
                .push_orig_flags(BY_SOURCE_ADDRESS | BY_PROTOCOL | BY_SOURCE_PORT)
                .push_reply_flags(0);
        }
        Flows::Mapped { protocol, external_port, internal, remote_peer } => {
            came_in(attrs, protocol, (None, external_port), internal, remote_peer);
        }
        Flows::Hairpin { protocol, outermost, internal, remote_peer } => {
            came_in(attrs, protocol, (Some(*outermost.ip()), outermost.port()), internal, remote_peer);
        }
    }
    payload
}

fn came_in<P: Pusher>(
    attrs: PushConntrackAttrs<P>,
    protocol: u8,
    (addr, port): (Option<Ipv4Addr>, u16),
    internal: SocketAddrV4,
    remote_peer: Option<Ipv4Addr>,
) {
    let mut ip = attrs.nested_tuple_orig().nested_tuple_ip();
    let mut flags = BY_PROTOCOL | BY_DESTINATION_PORT;
    if let Some(peer) = remote_peer {
        ip = ip.push_ip_v4_src(peer);
        flags |= BY_SOURCE_ADDRESS;
    }
    if let Some(addr) = addr {
        ip = ip.push_ip_v4_dst(addr);
        flags |= BY_DESTINATION_ADDRESS;
    }
    let proto = ip.end_nested().nested_tuple_proto().push_proto_num(protocol).push_proto_dst_port(port);
    source(proto.end_nested().end_nested().nested_tuple_reply(), protocol, internal)
        .nested_filter()
        .push_orig_flags(flags)
        .push_reply_flags(BY_SOURCE_ADDRESS | BY_PROTOCOL | BY_SOURCE_PORT);
}

/// The kernel reads the family only if the version isn't 0.
fn header(family: u8) -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = family;
    header.version = 1;
    header
}

struct Delete(Vec<u8>);

impl NetlinkRequest for Delete {
    fn protocol(&self) -> Protocol {
        Protocol::Raw { protonum: PROTONUM, request_type: CT_DELETE }
    }
    fn flags(&self) -> u16 {
        0
    }
    fn payload(&self) -> &[u8] {
        &self.0
    }
    type ReplyType<'buf> = ();
    fn decode_reply(_: &[u8]) -> Self::ReplyType<'_> {}
}
