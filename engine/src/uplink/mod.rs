//! The side that faces the provider: the PCP client and its clocks.
//!
//! Nothing here knows a control point, a mapping table or a router's own NAT; a *flow* is one mapping that the PCP
//! server is asked for, kept alive or told to drop.

mod epoch;
mod nonces;
mod pcp_client;
mod schedule;

pub use epoch::EpochClock;
pub use pcp_client::{FlowId, Grant, Input, Output, PcpClient, Want};
pub use schedule::{MIN_RENEWAL_GAP, renewal_delay};

#[cfg(test)]
mod tests;
