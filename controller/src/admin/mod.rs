//! The admin socket: what only somebody on the controller's machine may do.
//!
//! `<data_dir>/admin.sock` is mode 0600 and the kernel tells who connects, so there is no password.
//! One connection is one command: a [`Request`] frame, then [`Reply`] frames until one that ends it;
//! after [`Reply::Opened`] both sides send exec frames. Both ends are the same program.

pub mod backup;
pub mod client;
mod exec;
mod server;
mod terminal;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::{Deserialize, Serialize};
use tianqi_common::wire::stream::PtySize;

pub use server::listen;

/// Commands for a running controller.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Give an account a new random password, print it, and end the account's sessions.
    ResetPassword {
        /// The account's name.
        user: String,
    },
    /// Run a program in an instance.
    Exec {
        /// The instance: its id, `owner/name`, or its name when only one account uses it.
        instance: String,
        /// The program and its arguments; a shell when left out.
        #[arg(last = true)]
        argv: Vec<String>,
    },
    /// The audit: who did what.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Write a copy of the database to a file (SQLite).
    Backup {
        /// Where to; must not exist.
        file: PathBuf,
    },
    /// Put a copy of the database back and start again (SQLite).
    Restore {
        /// A file written by `backup`.
        file: PathBuf,
    },
    /// Secrets at rest.
    #[command(subcommand)]
    Secrets(Secrets),
}

/// `secrets …`
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Secrets {
    /// Exchange the master key: seal every secret anew while the controller runs.
    Rotate,
}

/// Commands about the audit.
#[derive(Clone, Copy, Debug, Subcommand, Serialize, Deserialize)]
pub enum AuditCommand {
    /// Check that no row was changed, removed or slipped in; ends with 1 when one was.
    Verify,
    /// Say that what happened to the chain as a whole, such as a database restored by its own tools,
    /// was looked at: it stays written down and is a fault no longer.
    Accept,
}

/// What a client asks. Words are appended and never reordered, as on the wire: a program that was
/// replaced while the controller runs still speaks to it, and the benchmarks speak it too.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    ResetPassword { user: String },
    Exec { instance: String, argv: Vec<String>, pty: Option<PtySize> },
    Backup { file: PathBuf },
    Restore { file: PathBuf },
    RotateSecrets,
    Audit(AuditCommand),
}

/// What the server answers.
#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    /// It was done; print this.
    Done(String),
    /// It was not done; print this as an error.
    Failed(String),
    /// Exec frames follow.
    Opened,
    /// It was done and found something wrong; print this and end with 1.
    Wrong(String),
}

fn socket_path(data_dir: &Path) -> PathBuf {
    data_dir.join("admin.sock")
}
