//! Agents over QUIC: one UDP port, two ALPNs, one connection for each node.

mod connection;
mod enroll;
mod handshake;
mod limit;
pub mod listener;
pub mod registry;
mod tls;
