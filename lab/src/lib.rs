//! lab

pub mod capture;
pub mod netns;
pub mod provider;
pub mod subject;
pub mod wait;
