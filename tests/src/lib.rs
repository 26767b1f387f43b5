//! Equipment of the whole-path tests: real engines, images, databases, controllers and agents.

pub mod api;
pub mod binaries;
pub mod client;
pub mod cluster;
pub mod deadline;
pub mod disk;
pub mod dockerd;
pub mod dump;
pub mod images;
pub mod imagined;
pub mod model;
pub mod nginx;
pub mod node;
pub mod observation;
pub mod process;
pub mod raw;
pub mod raw_http;
pub mod registry;
pub mod relay;
pub mod ssh;
pub mod ssh_instance;
pub mod terminal;
pub mod transition;
pub mod wire;

/// Chooses the one crypto provider of this process; every test that makes TLS or an HTTP client
/// calls it first, as often as it likes.
pub fn install_crypto() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
