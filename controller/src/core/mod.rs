//! What every room shares. Imports nothing of the layers above it.

pub mod audit;
pub mod ca;
pub mod db;
pub mod epoch;
pub mod error;
pub mod event;
pub mod http;
pub mod idempotency;
pub mod job;
pub mod number;
pub mod page;
pub mod patch;
pub mod seal;
pub mod secret;
pub mod slots;
pub mod text;
pub mod timestamp;
pub mod tls;
