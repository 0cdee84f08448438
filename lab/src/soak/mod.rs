//! The soak: a daemon under mixed load for as long as one likes, looked at from outside. Two hosts on the LAN ask it for all there is, in all
//! protocols, well and badly (`player`); the provider, the links and the kernel's tables fail it now and then, and its processes are
//! measured (`conductor`); what of that is good enough is decided by pure functions (`verdict`). `docs/soak.md` is the method.

mod bad;
mod conductor;
mod events;
mod faults;
mod pcp;
mod player;
mod samples;
mod tally;
mod upnp;
mod verdict;

pub use conductor::{Plan, beside, run};
pub use player::play;
