//! The side that faces the provider: the PCP client and its clocks.
//!
//! Nothing here knows a control point, a mapping table or a router's own NAT; a *flow* is one mapping that the PCP
//! server is asked for, kept alive or told to drop.

mod epoch;
mod filters;
mod flow;
mod nonces;
mod pcp_client;
mod query;
mod remembered;
mod schedule;
mod turns;

pub use epoch::EpochClock;
pub use filters::{Filtered, Filters};
pub use flow::{FlowId, Grant, Terms, Unknown, Want};
pub use pcp_client::{Input, NUDGE_SPREAD, Output, PcpClient, SILENT_AFTER, SILENT_FOR};
pub use schedule::{MIN_RENEWAL_GAP, first_rt, next_rt, renewal_delay};
pub use turns::IN_FLIGHT;

#[cfg(test)]
mod tests;
