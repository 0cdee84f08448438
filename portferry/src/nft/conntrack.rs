//! Ending flows that the kernel still tracks. NAT is decided by a flow's first packet, so a change of the table alone
//! never reaches a flow that exists.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddrV4},
};

use netlink_bindings::{
    conntrack::{self, IterableConntrackAttrs, NfCtStatus, Nfgenmsg, PROTONUM, PushConntrackAttrs},
    traits::{NetlinkRequest, Protocol},
    utils,
};
use netlink_socket2::{ReplyError, tokio::NetlinkSocket};

use super::Nat1Rule;

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE`; the bindings have only `get`.
const CT_DELETE: u16 = 0x102;
const AF_INET: u8 = 2;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;

// Which tuple fields a CTA_FILTER compares (`CTA_FILTER_F_*` of the kernel).
const BY_SOURCE_ADDRESS: u32 = 1;
const BY_PROTOCOL: u32 = 1 << 3;
const BY_SOURCE_PORT: u32 = 1 << 4;
const BY_DESTINATION_PORT: u32 = 1 << 5;

/// Neither answered nor translated: such a flow was here before its mapping, and would never be translated.
const UNANSWERED_MASK: u32 =
    NfCtStatus::SeenReply as u32 | NfCtStatus::SrcNat as u32 | NfCtStatus::DstNat as u32;

/// Up to this many, one walk of the kernel's table each; beyond, we read the table once.
const SINGLY: usize = 16;

/// Flows to be ended.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Flows {
    /// All that came in through this mapping.
    Mapped(Nat1Rule),
    /// All to this external port that nobody has answered and that no NAT applies to.
    Unanswered { protocol: u8, external_port: u16 },
}

/// Ends `flows`. The kernel selects them (Linux 6.10 and later); `kernel_filters` turns false when it can't, and then
/// the flows are listed and deleted one by one.
pub(super) async fn end(
    socket: &mut NetlinkSocket,
    flows: &[Flows],
    kernel_filters: &mut bool,
) -> Result<(), ReplyError> {
    if *kernel_filters && flows.len() <= SINGLY {
        for (done, one) in flows.iter().enumerate() {
            let asked = socket.request(&Delete(selection(one))).await?.recv_ack().await;
            match asked.as_ref().map_err(|e| e.as_io_error().raw_os_error()) {
                Err(Some(EINVAL | EOPNOTSUPP)) => {
                    *kernel_filters = false;
                    return list_and_delete(socket, &flows[done..]).await;
                }
                _ => asked?,
            }
        }
        return Ok(());
    }
    list_and_delete(socket, flows).await
}

async fn list_and_delete(socket: &mut NetlinkSocket, flows: &[Flows]) -> Result<(), ReplyError> {
    let flows: BTreeSet<_> = flows.iter().copied().collect();
    let mut header = Nfgenmsg::new();
    header.nfgen_family = AF_INET;
    let mut doomed = Vec::new();
    let request = conntrack::Request::new().op_get_dump(&header);
    let mut replies = socket.request(&request).await?;
    let mut seen = 0_u32;
    loop {
        match replies.recv().await {
            None => break,
            Some(reply) => {
                let (_, attrs) = reply?;
                if wanted(&flows, &attrs).unwrap_or(false) {
                    doomed.push(exactly(&attrs)?);
                }
            }
        }
        seen += 1;
        if seen.is_multiple_of(256) {
            tokio::task::yield_now().await;
        }
    }
    for payload in doomed {
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
    let (to, from) = (original.get_tuple_proto().ok()?, reply.get_tuple_proto().ok()?);
    let peer = original.get_tuple_ip().ok()?.get_ip_v4_src().ok()?;
    let protocol = to.get_proto_num().ok()?;
    let external_port = to.get_proto_dst_port().ok()?;
    let internal =
        SocketAddrV4::new(reply.get_tuple_ip().ok()?.get_ip_v4_src().ok()?, from.get_proto_src_port().ok()?);
    let mapped = |remote_peer: Option<Ipv4Addr>| {
        flows.contains(&Flows::Mapped(Nat1Rule { protocol, external_port, internal, remote_peer }))
    };
    let unanswered = attrs.get_status().ok()? & UNANSWERED_MASK == 0
        && flows.contains(&Flows::Unanswered { protocol, external_port });
    Some(unanswered || mapped(None) || mapped(Some(peer)))
}

/// The request that deletes just the flow with these attributes.
fn exactly(attrs: &IterableConntrackAttrs<'_>) -> Result<Vec<u8>, ReplyError> {
    const CTA_TUPLE_ORIG: u16 = 1;
    let mut payload = header();
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
    let mut payload = header();
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
        Flows::Mapped(Nat1Rule { protocol, external_port, internal, remote_peer }) => {
            let mut original = attrs.nested_tuple_orig();
            if let Some(peer) = remote_peer {
                original = original.nested_tuple_ip().push_ip_v4_src(peer).end_nested();
            }
            original
                .nested_tuple_proto()
                .push_proto_num(protocol)
                .push_proto_dst_port(external_port)
                .end_nested()
                .end_nested()
                .nested_tuple_reply()
                .nested_tuple_ip()
                .push_ip_v4_src(*internal.ip())
                .end_nested()
                .nested_tuple_proto()
                .push_proto_num(protocol)
                .push_proto_src_port(internal.port())
                .end_nested()
                .end_nested()
                .nested_filter()
                .push_orig_flags(
                    BY_PROTOCOL
                        | BY_DESTINATION_PORT
                        | if remote_peer.is_some() { BY_SOURCE_ADDRESS } else { 0 },
                )
                .push_reply_flags(BY_SOURCE_ADDRESS | BY_PROTOCOL | BY_SOURCE_PORT);
        }
    }
    payload
}

/// The kernel reads the family only if the version isn't 0.
fn header() -> Vec<u8> {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = AF_INET;
    header.version = 1;
    header.as_slice().to_vec()
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
