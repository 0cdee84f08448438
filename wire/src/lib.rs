//! The bytes of PCP, NAT-PMP, DHCP (what names PCP servers), SSDP, SOAP, UPnP descriptions and GENA, to values and back.
//! No time, no policy, no I/O; nothing here panics on what a peer sent.

pub mod codec;
pub mod description;
pub mod dhcp;
pub mod error;
pub mod foreign;
pub mod gena;
pub mod listing;
pub mod natpmp;
pub mod pcp;
pub mod services;
pub mod soap;
pub mod ssdp;
pub mod xml;
