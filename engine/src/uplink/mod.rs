//! The side that faces the provider: one [`Uplink`] for each protocol, and their clocks.
//!
//! Nothing here knows a control point, a mapping table or a router's own NAT; a *flow* is one mapping that the
//! server is asked for, kept alive or told to drop.

mod epoch;
mod filters;
mod flow;
mod http;
mod igd_client;
mod igd_finder;
mod interface;
mod line;
mod local_nat;
mod nat_pmp_client;
mod nonces;
mod pcp_client;
mod peer;
mod query;
mod remembered;
mod schedule;
mod turns;

pub use epoch::EpochClock;
pub use filters::{Filtered, Filters};
pub use flow::{FlowId, Grant, RemotePeer, Terms, Unknown, Want};
pub use http::{HttpId, HttpOutcome, HttpRequest, MAX_HTTP_BODY};
pub use igd_client::{IgdClient, Leftover};
pub use igd_finder::{Finding, FoundIgd, IgdFinder};
pub use interface::{Input, Output, Uplink, UplinkProtocol};
pub use local_nat::LocalNat;
pub use nat_pmp_client::NatPmpClient;
pub use nonces::{ServerIdentity, derived_nonce};
pub use pcp_client::{NUDGE_SPREAD, PcpClient, SILENT_AFTER, SILENT_FOR};
pub use peer::PeerWant;
pub use schedule::{MIN_RENEWAL_GAP, first_rt, next_rt, renewal_delay};
pub use turns::IN_FLIGHT;

#[cfg(test)]
pub(crate) mod igd_model;
#[cfg(test)]
mod tests;
