//! What the counters of our tables say.

use netlink_bindings::nftables::{ExprOps, IterableRuleAttrs, IterableSetelemAttrs, Nfgenmsg, Request};
use netlink_socket2::{ReplyError, tokio::NetlinkSocket};

use super::batch::NFPROTO_INET;

/// Packets that the rules of `chain` have counted.
pub(super) async fn packets(socket: &mut NetlinkSocket, table: &str, chain: &str) -> Result<u64, ReplyError> {
    let mut request = Request::new().op_getrule_dump(&header(NFPROTO_INET));
    let _ = request.encode().push_table_bytes(table.as_bytes()).push_chain_bytes(chain.as_bytes());
    let mut replies = socket.request(&request).await?;
    let mut sum = 0_u64;
    while let Some(reply) = replies.recv().await {
        let (_, rule) = reply?;
        sum = sum.saturating_add(counted(&rule));
    }
    Ok(sum)
}

/// Packets that the elements of a set that counts have matched, each with its key.
pub(super) async fn of_elements(
    socket: &mut NetlinkSocket,
    (family, table, set): (u8, &str, &str),
) -> Result<Vec<(Vec<u8>, u64)>, ReplyError> {
    let mut request = Request::new().op_getsetelem_dump(&header(family));
    let _ = request.encode().push_table_bytes(table.as_bytes()).push_set_bytes(set.as_bytes());
    let mut replies = socket.request(&request).await?;
    let mut all = Vec::new();
    while let Some(reply) = replies.recv().await {
        let (_, some) = reply?;
        let Ok(elements) = some.get_elements() else { continue };
        all.extend(elements.get_elem().filter_map(|element| of_element(&element)));
    }
    Ok(all)
}

/// The same of one element, which the kernel finds without looking at others.
pub(super) async fn of_one(
    socket: &mut NetlinkSocket,
    (family, table, set): (u8, &str, &str),
    key: &[u8],
) -> Result<u64, ReplyError> {
    let mut request = Request::new().op_getsetelem_do(&header(family));
    request
        .encode()
        .push_table_bytes(table.as_bytes())
        .push_set_bytes(set.as_bytes())
        .nested_elements()
        .nested_elem()
        .nested_key()
        .push_value(key);
    let mut replies = socket.request(&request).await?;
    let (_, found) = replies.recv_one().await?;
    let packets =
        found.get_elements().ok().and_then(|elements| elements.get_elem().find_map(|one| of_element(&one)));
    Ok(packets.map_or(0, |(_, packets)| packets))
}

fn of_element(element: &IterableSetelemAttrs<'_>) -> Option<(Vec<u8>, u64)> {
    let key = element.get_key().ok()?.get_value().ok()?.to_vec();
    match element.get_expr().ok()?.get_data() {
        Ok(ExprOps::Counter(counter)) => Some((key, counter.get_packets().ok()?)),
        _ => None,
    }
}

fn header(family: u8) -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = family;
    header
}

fn counted(rule: &IterableRuleAttrs<'_>) -> u64 {
    let Ok(expressions) = rule.get_expressions() else { return 0 };
    let packets = expressions.get_elem().filter_map(|expression| match expression.get_data() {
        Ok(ExprOps::Counter(counter)) => counter.get_packets().ok(),
        _ => None,
    });
    packets.fold(0, u64::saturating_add)
}
