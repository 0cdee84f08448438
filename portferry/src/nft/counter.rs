//! What the counters of our tables say.

use netlink_bindings::nftables::{ExprOps, IterableRuleAttrs, Nfgenmsg, Request};
use netlink_socket2::{ReplyError, tokio::NetlinkSocket};

use super::batch::NFPROTO_INET;

/// Packets that the rules of `chain` have counted.
pub(super) async fn packets(socket: &mut NetlinkSocket, table: &str, chain: &str) -> Result<u64, ReplyError> {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = NFPROTO_INET;
    let mut request = Request::new().op_getrule_dump(&header);
    let _ = request.encode().push_table_bytes(table.as_bytes()).push_chain_bytes(chain.as_bytes());
    let mut replies = socket.request(&request).await?;
    let mut sum = 0_u64;
    while let Some(reply) = replies.recv().await {
        let (_, rule) = reply?;
        sum = sum.saturating_add(counted(&rule));
    }
    Ok(sum)
}

fn counted(rule: &IterableRuleAttrs<'_>) -> u64 {
    let Ok(expressions) = rule.get_expressions() else { return 0 };
    let packets = expressions.get_elem().filter_map(|expression| match expression.get_data() {
        Ok(ExprOps::Counter(counter)) => counter.get_packets().ok(),
        _ => None,
    });
    packets.fold(0, u64::saturating_add)
}
