//! The centre of Tianqi: database, REST API, scheduler and reconcile loop.

pub mod admin;
pub mod app;
pub mod authz;
pub mod config;
pub mod core;
pub mod features;
pub mod link;
pub mod reconcile;
pub mod serve;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
