//! Which tracked flows a change puts to an end: those that the table, asked again, would treat otherwise.

use std::{collections::BTreeSet, net::IpAddr};

use netlink_bindings::conntrack::NfCtStatus;
use netlink_socket2::{ReplyError, tokio::NetlinkSocket};

use super::super::conntrack::{Flow, Towards, UNANSWERED_MASK, cannot_select, end_all, end_each};
use super::Binding;
use super::state::{Slot, State, Step};

/// Up to this many, the kernel selects the flows, in one or two walks of its table each; beyond, we read the table once.
const SINGLY: usize = 8;

/// External endpoints whose flows are looked at: address, protocol and port, 0 meaning all. `None`: those of all.
#[derive(Debug)]
pub(super) struct Scopes(Option<BTreeSet<(IpAddr, u8, u16)>>);

impl Default for Scopes {
    fn default() -> Self {
        Self(Some(BTreeSet::new()))
    }
}

impl Scopes {
    /// What a step has touched.
    pub(super) fn of(step: &Step) -> Self {
        Self(Some(step.slots().map(|(slot, _)| (slot.external, slot.protocol, slot.port)).collect()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.as_ref().is_some_and(BTreeSet::is_empty)
    }

    /// These, too.
    pub(super) fn add(&mut self, more: Self) {
        match (&mut self.0, more.0) {
            (Some(some), Some(more)) => some.extend(more),
            _ => self.0 = None,
        }
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
            && !has_connections(flow.protocol)
            && self.has(flow.reply_destination, flow.protocol)
            && state.is_another_ones(flow.protocol, flow.reply_destination, flow.destination, flow.source)
    }
}

/// Flows that end together: those towards somewhere whose status has the bits of a mask.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Selection {
    pub(super) towards: Towards,
    pub(super) status: (u32, u32),
}

/// What one slot's change puts to an end, when that can be said without looking at each flow; `None`: it can't.
pub(super) fn selections(state: &State, slot: &Slot, was: Option<&Binding>) -> Option<Vec<Selection>> {
    let now = state.slot(slot);
    if slot.port == 0 || state.has_others(slot) {
        return None;
    }
    let Slot { external: addr, protocol, port, .. } = *slot;
    let select = |answers, status| Selection {
        towards: Towards { addr, protocol: Some(protocol), port: Some(port), answers },
        status,
    };
    let bits = |some: NfCtStatus| (some as u32, some as u32);
    let came_in = if addr.is_ipv4() { bits(NfCtStatus::DstNat) } else { (0, 0) };
    match (was, now) {
        // Who was kept out before is not let in as the new host's.
        (None, Some(_)) if addr.is_ipv6() => Some(Vec::new()),
        (None, Some(_)) => {
            let mut both = vec![select(false, (0, UNANSWERED_MASK))];
            if !has_connections(protocol) && slot.peer.is_none() {
                // The owner's own among them begin again as they were.
                both.push(select(true, bits(NfCtStatus::SrcNat)));
            }
            Some(both)
        }
        (Some(_), None) if slot.peer.is_none() => Some(vec![select(false, came_in)]),
        (Some(was), Some(now)) if was.leads_elsewhere(now) => Some(vec![select(false, came_in)]),
        (Some(was), Some(now)) if now.lets_in_whom(was) => Some(Vec::new()),
        _ => None,
    }
}

/// Ends those that the kernel can select by itself; the answer is where all flows have to be looked at, which takes it longer
/// the more there are. `kernel_filters` turns false when the kernel can't select flows.
pub(super) async fn end(
    socket: &mut NetlinkSocket,
    state: &State,
    step: &Step,
    kernel_filters: &mut bool,
) -> Result<Scopes, ReplyError> {
    let few = step.slots().count() <= SINGLY;
    if !few || !*kernel_filters {
        return Ok(Scopes::of(step));
    }
    let mut left = BTreeSet::new();
    for (slot, was) in step.slots() {
        let done = match selections(state, slot, was) {
            Some(selections) => select(socket, &selections).await,
            None => {
                left.insert((slot.external, slot.protocol, slot.port));
                continue;
            }
        };
        match done {
            Err(e) if cannot_select(&e) => {
                *kernel_filters = false;
                return Ok(Scopes::of(step));
            }
            outcome => outcome?,
        }
    }
    Ok(Scopes(Some(left)))
}

async fn select(socket: &mut NetlinkSocket, selections: &[Selection]) -> Result<(), ReplyError> {
    for one in selections {
        end_all(socket, one.towards, one.status).await?;
    }
    Ok(())
}

/// TCP, DCCP and SCTP, whose flows can't begin again half way.
fn has_connections(protocol: u8) -> bool {
    matches!(protocol, 6 | 33 | 132)
}

/// Reads all flows, and ends those that are doomed.
pub(super) async fn sweep(
    socket: &mut NetlinkSocket,
    state: &State,
    scopes: &Scopes,
) -> Result<(), ReplyError> {
    for ipv6 in [false, true] {
        let concerned =
            scopes.0.as_ref().is_none_or(|scopes| scopes.iter().any(|(addr, ..)| addr.is_ipv6() == ipv6));
        if concerned {
            end_each(socket, ipv6, None, |flow| scopes.doom(state, flow)).await?;
        }
    }
    Ok(())
}
