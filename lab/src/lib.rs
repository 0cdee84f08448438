//! lab

pub mod capture;
pub mod netns;
pub mod provider;
pub mod scenario;
pub mod sim;
pub mod subject;
pub mod wait;
