//! The networks that portferry is tested on: simulated ones in virtual time, with a runner for scenario files (`sim`,
//! `scenario`), and real ones in network namespaces, with software that nobody here wrote (the rest). Never shipped.

pub mod aftr;
pub mod avalanche;
pub mod b4;
pub mod bench;
pub mod capture;
pub mod carrier;
pub mod conformance;
mod control_point;
mod http;
pub mod nat;
pub mod nat64;
pub mod netns;
pub mod packet;
pub mod pcp_load;
pub mod pcp_server;
pub mod provider;
pub mod scenario;
pub mod siege;
pub mod sim;
pub mod simulation;
pub mod soak;
pub mod subject;
pub mod tun;
pub mod wait;
