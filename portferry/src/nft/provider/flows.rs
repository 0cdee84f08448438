//! Which tracked flows a change puts to an end: those that the table, asked again, would treat otherwise.

use std::{collections::BTreeSet, net::IpAddr};

use netlink_bindings::conntrack::NfCtStatus;
use netlink_socket2::{ReplyError, tokio::NetlinkSocket};

use super::super::conntrack::{Flow, Towards, UNANSWERED_MASK, cannot_select, end_each};
use super::state::{State, Step};

/// Up to this many, the kernel selects the flows, in two walks of its table each; beyond, we read the table once.
const SINGLY: usize = 8;

/// External endpoints whose flows are looked at: address, protocol and port, 0 meaning all.
#[derive(Debug)]
pub(super) struct Scopes(Option<BTreeSet<(IpAddr, u8, u16)>>);

impl Scopes {
    /// What a step has touched.
    pub(super) fn of(step: &Step) -> Self {
        Self(Some(step.slots().map(|slot| (slot.external, slot.protocol, slot.port)).collect()))
    }

    /// For a table that was away. Flows that come from nobody's mapping may then be somebody else's DNAT.
    pub(super) fn everything() -> Self {
        Self(None)
    }

    fn has(&self, endpoint: std::net::SocketAddr, protocol: u8) -> bool {
        let addr = endpoint.ip();
        self.0.as_ref().is_none_or(|scopes| {
            [(addr, protocol, endpoint.port()), (addr, protocol, 0), (addr, 0, 0)]
                .iter()
                .any(|scope| scopes.contains(scope))
        })
    }

    /// Whether the table would not let `flow` through, or not as it is.
    pub(super) fn doom(&self, state: &State, flow: &Flow) -> bool {
        let status = |bit: NfCtStatus| flow.status & bit as u32 != 0;
        // The remote peer as the host inside sees it, with hairpin too.
        let wanted = || state.destination(flow.protocol, flow.destination, flow.reply_destination);
        if self.has(flow.destination, flow.protocol) {
            let ends = if status(NfCtStatus::DstNat) || flow.destination.is_ipv6() {
                match wanted() {
                    Some(internal) => internal != flow.reply_source,
                    None => self.0.is_some(),
                }
            } else {
                flow.status & UNANSWERED_MASK == 0 && wanted().is_some()
            };
            if ends {
                return true;
            }
        }
        status(NfCtStatus::SrcNat)
            && self.has(flow.reply_destination, flow.protocol)
            && state.is_another_ones(flow.protocol, flow.reply_destination, flow.destination, flow.source)
    }
}

/// Ends them. `kernel_filters` turns false when the kernel can't select flows.
pub(super) async fn end(
    socket: &mut NetlinkSocket,
    state: &State,
    scopes: &Scopes,
    kernel_filters: &mut bool,
) -> Result<(), ReplyError> {
    let doomed = |flow: &Flow| scopes.doom(state, flow);
    if let Some(few) = scopes.0.as_ref().filter(|scopes| *kernel_filters && scopes.len() <= SINGLY) {
        for &(addr, protocol, port) in few {
            for answers in [false, true] {
                // Without a port there is no owner of one, and IPv6 sources are not translated.
                if answers && (port == 0 || addr.is_ipv6()) {
                    continue;
                }
                let some = |number| (number != 0).then_some(number);
                let port = (port != 0).then_some(port);
                let towards = Towards { addr, protocol: some(protocol), port, answers };
                match end_each(socket, addr.is_ipv6(), Some(towards), doomed).await {
                    Err(e) if cannot_select(&e) => {
                        *kernel_filters = false;
                        return read_all(socket, scopes, doomed).await;
                    }
                    outcome => outcome?,
                }
            }
        }
        return Ok(());
    }
    read_all(socket, scopes, doomed).await
}

async fn read_all(
    socket: &mut NetlinkSocket,
    scopes: &Scopes,
    doomed: impl Fn(&Flow) -> bool,
) -> Result<(), ReplyError> {
    for ipv6 in [false, true] {
        let concerned =
            scopes.0.as_ref().is_none_or(|scopes| scopes.iter().any(|(addr, ..)| addr.is_ipv6() == ipv6));
        if concerned {
            end_each(socket, ipv6, None, &doomed).await?;
        }
    }
    Ok(())
}
