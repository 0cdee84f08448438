//! bytes

pub mod codec;
pub mod description;
pub mod error;
pub mod gena;
pub mod listing;
pub mod natpmp;
pub mod pcp;
pub mod services;
pub mod soap;
pub mod ssdp;
pub mod xml;
