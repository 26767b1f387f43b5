//! The SSH jumpbox: ordinary SSH clients into instances that need no SSH server of their own.
//!
//! # Ways in
//!
//! | typed | leads to |
//! |---|---|
//! | `ssh alice@host` | a menu of one's own instances (an admin's: everybody's) |
//! | `ssh alice+train-7@host` | straight into an instance; also by id, and for admins by `owner/name` |
//! | `ssh alice@host train-7` | the same, when the command is exactly the name of one's own instance |
//! | `ssh -J alice@host train-7` | a nested SSH server with the instance's own host key |
//!
//! # One connection, top to bottom
//!
//! `listener` takes it in and counts it, `flow` is the bytes below SSH, `server` answers russh's
//! callbacks and never waits, `connection` is what its channels share. Each channel is one task:
//! `channel` for shells, commands and files, `forward` for connections and jumps; what a client sends
//! reaches it through its `intake`. A task finds out the instance (`target`), brings it up if its
//! owner likes (`ready`), writes the audit's rows (`access`) and carries bytes (`pump`) between the
//! channel and [`Link::open`](crate::link::Link::open).
//!
//! # What people are told
//!
//! `GET /instances/{id}/ssh` answers lines to paste (`guide`) and the fingerprints of the keys in use
//! (`entrance`).
//!
//! # What ends what
//!
//! A login is a session like any other (kind `ssh`): ended by its owner or an admin, by a disabled
//! account, by removing its key, it takes the connection with it within two seconds. A right that is
//! lost, or an instance that is stopped, ends the channels into it. The session ends with its
//! connection.
//!
//! # Left for later
//!
//! A recording of sessions belongs in `pump`, beside the counts of bytes each way; a second factor in
//! `authz/ssh.rs`, asked by `keyboard-interactive`.

mod access;
mod channel;
mod connection;
mod entrance;
mod flow;
mod forward;
mod guide;
mod host_key;
mod intake;
mod listener;
mod menu;
mod model;
mod out;
mod pump;
mod ready;
#[cfg(test)]
mod route_tests;
mod routes;
mod server;
mod settings;
mod setup;
mod store;
mod target;
#[cfg(test)]
mod tests;
mod texts;

use std::net::SocketAddr;
use std::path::PathBuf;

pub use entrance::Entrance;
pub use host_key::HostKeyError;
pub use listener::{Jumpbox, bind};
pub use routes::router;

/// Why the jumpbox cannot start.
#[derive(Debug, thiserror::Error)]
pub enum JumpboxError {
    /// The host key cannot be used.
    #[error("jumpbox.host_key: {} cannot be used", path.display())]
    HostKey {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: HostKeyError,
    },
    /// The port is taken, or not for this process.
    #[error("jumpbox.listen: cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}
