//! The daemons, the gateway (`run`) and the provider's server (`pcp_server`), and the tools around them: sockets, kernel, files and
//! clock around the engine, which decides.

pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod demo;
pub mod dhcp;
mod doctor;
pub mod entropy;
pub mod event_loop;
pub mod exit;
mod firewall;
#[doc(hidden)]
pub mod fuzzing;
pub mod hooks;
pub mod http;
pub mod isp_router;
pub mod journal_file;
pub mod log;
pub mod memory_nat;
pub mod neighbours;
pub mod netlink;
pub mod nft;
pub mod notify;
mod pcp_client;
pub mod pcp_server;
mod privileged;
pub mod resolve;
pub mod run;
#[cfg(test)]
mod scratch;
pub mod set_aside;
pub mod sockets;
pub mod state;
pub mod store;
pub mod table;
