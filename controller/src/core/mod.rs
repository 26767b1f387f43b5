//! What every room shares. Imports nothing of the layers above it.

pub mod audit;
pub mod ca;
pub mod db;
pub mod epoch;
pub mod error;
pub mod event;
pub mod http;
pub mod page;
pub mod seal;
pub mod tls;
