//! One per GPU node: the local Docker engine, NVML, slices and the streams of a controller.

pub mod app;
pub mod config;
pub mod docker;
pub mod doctor;
pub mod enroll;
pub mod gpu;
pub mod guest;
pub mod inventory;
pub mod link;
pub mod reconcile;
pub mod streams;
pub mod telemetry;
