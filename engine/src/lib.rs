//! What portferry does, without a socket, a clock, a thread, a file or a random source.
//!
//! [`gateway::Gateway`] is the IGD–PCP interworking function (RFC 6970): events in, effects out, one
//! [`next_timeout`](gateway::Gateway::next_timeout). [`provider::Server`] is the other side in the same manner: a PCP and
//! NAT-PMP server, whose NAT is the caller's.

pub mod announcements;
pub mod claims;
pub mod device;
pub mod dhcp;
pub mod entropy;
pub mod gateway;
pub mod gateways;
pub mod gena;
pub mod igd;
pub mod journal;
pub mod limits;
pub mod nat;
pub mod notice;
pub mod pinholes;
pub mod policy;
pub mod prefix;
pub mod provider;
pub mod request;
pub mod ssdp;
pub mod status;
pub mod table;
pub mod time;
pub mod uplink;
