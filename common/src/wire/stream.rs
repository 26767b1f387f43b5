//! Work streams: the first frame says what, the agent replies, then the kind's own frames.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::desired::NodeSettings;
use super::inventory::DockerEngine;
use super::observed::DockerState;
use crate::clock::UnixMillis;
use crate::id::{InstanceId, TerminalId};

/// What a work stream is for. Variants are appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamOpen {
    /// A program in an instance; both sides send [`ExecFrame`].
    Exec(Exec),
    /// An instance's output; the agent sends [`LogFrame`].
    Logs(Logs),
    /// Fetches an image; the agent sends [`PullFrame`].
    Pull(Pull),
    /// Tries settings without keeping them; the agent sends one [`CheckReport`].
    Check(NodeSettings),
    /// A program with a terminal that outlives its stream; both sides send [`ExecFrame`].
    Terminal(Terminal),
    /// A TCP connection made inside an instance; raw bytes each way, each half ended by itself.
    Tcp(Dial),
    /// One UDP flow made inside an instance; both sides send [`Datagram`].
    Udp(Dial),
    /// An SFTP server inside an instance; raw bytes of the SFTP protocol each way.
    Sftp(Sftp),
    /// An instance's output, chosen by time and text; the agent sends [`LogFrame`].
    LogQuery(LogQuery),
}

impl StreamOpen {
    /// The instance that the stream goes into; nothing for a stream that serves the node itself.
    #[must_use]
    pub fn instance(&self) -> Option<InstanceId> {
        match self {
            Self::Exec(exec) => Some(exec.instance),
            Self::Logs(logs) => Some(logs.instance),
            Self::Pull(_) | Self::Check(_) => None,
            Self::Terminal(terminal) => Some(terminal.exec.instance),
            Self::Tcp(dial) | Self::Udp(dial) => Some(dial.instance),
            Self::Sftp(sftp) => Some(sftp.instance),
            Self::LogQuery(query) => Some(query.instance),
        }
    }

    /// The lowest minor version of the protocol whose agents understand this. To an older one it
    /// would be a broken frame.
    #[must_use]
    pub fn since_minor(&self) -> u16 {
        match self {
            Self::Exec(Exec { command: Command::Line(_), .. }) => 1,
            Self::Exec(_) | Self::Logs(_) | Self::Pull(_) | Self::Check(_) => 0,
            Self::Terminal(_) | Self::Tcp(_) | Self::Udp(_) | Self::Sftp(_) | Self::LogQuery(_) => {
                1
            }
        }
    }

    /// A word for logs.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Logs(_) | Self::LogQuery(_) => "logs",
            Self::Pull(_) => "pull",
            Self::Check(_) => "check",
            Self::Terminal(_) => "terminal",
            Self::Tcp(_) => "tcp",
            Self::Udp(_) => "udp",
            Self::Sftp(_) => "sftp",
        }
    }
}

/// The agent's answer to [`StreamOpen`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamReply {
    /// The stream is open.
    Open,
    /// It is not.
    Refused {
        /// Why.
        code: StreamRefusal,
        /// One sentence.
        message: String,
    },
}

/// Why a work stream was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamRefusal {
    /// The node has no container for this instance.
    NoContainer,
    /// The instance does not run.
    NotRunning,
    /// Too many streams into this instance.
    TooMany,
    /// The agent does not know this kind of stream.
    Unsupported,
    /// The Docker engine does not answer or refused.
    Docker,
    /// The request itself is wrong.
    BadRequest,
    /// The kept terminal is gone: its program ended, or nobody came back in time.
    Gone,
    /// Nothing answers at that address and port, as seen from inside the instance.
    ConnectFailed,
}

/// A program to run in an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Where.
    pub instance: InstanceId,
    /// What.
    pub command: Command,
    /// Size of the terminal; without one, output and error come apart.
    pub pty: Option<PtySize>,
    /// Environment added to the instance's own.
    pub env: Vec<(String, String)>,
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The named shell when the image has it, else the next that it has (`bash`, `sh`).
    Shell(Shell),
    /// A program and its arguments; never passed through a shell.
    Argv(Vec<String>),
    /// A line for the account's shell, as an SSH server runs one (since minor version 1).
    Line(String),
}

/// A shell that people ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shell {
    /// `bash`, as a login shell.
    #[default]
    Bash,
    /// `sh`.
    Sh,
}

/// Size of a terminal in characters, each 1 to 10 000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PtySize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// One piece of an exec stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecFrame {
    /// Input (controller to agent).
    Stdin(Bytes),
    /// No more input (controller to agent).
    StdinEnd,
    /// Output; with a terminal, error output too.
    Stdout(Bytes),
    /// Error output, without a terminal.
    Stderr(Bytes),
    /// The terminal's new size (controller to agent).
    Resize(PtySize),
    /// A signal by name without `SIG`, such as `INT` (controller to agent).
    Signal(String),
    /// The program ended; the last frame.
    Exit {
        /// Exit code; 128 + signal number when a signal ended it.
        code: i32,
    },
    /// The stream failed after it was opened; the last frame.
    Failed {
        /// One sentence.
        message: String,
    },
    /// Ends the program of a kept terminal, which otherwise waits for somebody to come back
    /// (controller to agent; since minor version 1).
    Hangup,
    /// Where the output that follows stands; the first frame of a [`Terminal`] (since minor 1).
    Position {
        /// Bytes that the program had shown before it.
        offset: u64,
    },
}

/// A program with a terminal that waits [`TERMINAL_KEPT_S`] for somebody to come back when its
/// stream breaks. What it shows meanwhile is kept, the last [`TERMINAL_BACKLOG`] bytes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// The program; it must have a terminal. When coming back only its size counts.
    pub exec: Exec,
    /// The terminal's name, chosen by who starts it.
    pub id: TerminalId,
    /// Nothing to start it; else come back, and show what follows this many bytes, or as much of it
    /// as is kept. Whoever was there before is sent away.
    pub resume: Option<u64>,
}

/// Seconds that a kept terminal waits for somebody to come back.
pub const TERMINAL_KEPT_S: u64 = 600;
/// Bytes of output that a kept terminal remembers.
pub const TERMINAL_BACKLOG: usize = 256 << 10;

/// A connection made from inside an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dial {
    /// Where it is made.
    pub instance: InstanceId,
    /// Address or name, resolved inside the instance.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// One datagram of a [`StreamOpen::Udp`] flow; at most 65 507 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagram(pub Bytes);

/// A person's files inside an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sftp {
    /// Whose.
    pub instance: InstanceId,
}

/// Which output of an instance is wanted, by time and text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogQuery {
    /// Whose.
    pub instance: InstanceId,
    /// Lines from the end; everything when nothing.
    pub tail: Option<u32>,
    /// Nothing older.
    pub since: Option<UnixMillis>,
    /// Nothing newer.
    pub until: Option<UnixMillis>,
    /// Whether to go on with what comes.
    pub follow: bool,
    /// Whether each line begins with its time.
    pub timestamps: bool,
    /// Only lines that hold this text, whatever its case; empty for every line. `tail` counts the
    /// lines that match.
    pub search: String,
}

/// Which output of an instance is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logs {
    /// Whose.
    pub instance: InstanceId,
    /// Lines from the end; at most 10 000.
    pub tail: u32,
    /// Whether to go on with what comes.
    pub follow: bool,
    /// Whether each line begins with its time.
    pub timestamps: bool,
}

/// One piece of an instance's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogFrame {
    /// Standard output.
    Stdout(Bytes),
    /// Error output.
    Stderr(Bytes),
    /// Nothing more comes; the last frame.
    End,
    /// Reading failed; the last frame.
    Failed {
        /// One sentence.
        message: String,
    },
}

/// An image to fetch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pull {
    /// The image reference.
    pub image: String,
    /// For a private registry. Stays in memory.
    pub credentials: Option<RegistryCredentials>,
}

/// A name and a password for a registry. Never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryCredentials {
    /// Account at the registry.
    pub username: String,
    /// Its password or token.
    pub password: String,
}

impl fmt::Debug for RegistryCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryCredentials").finish_non_exhaustive()
    }
}

/// How a pull goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullFrame {
    /// It goes on.
    Progress {
        /// Bytes fetched, over all layers known so far.
        done_bytes: u64,
        /// Bytes to fetch, over all layers known so far; 0 while unknown.
        total_bytes: u64,
        /// Docker's own words, such as `Extracting`.
        status: String,
    },
    /// The image is on the node; the last frame.
    Done,
    /// It is not; the last frame.
    Failed {
        /// Docker's own words.
        message: String,
    },
}

/// What trying the settings of a node gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Whether the engine answers at that endpoint.
    pub docker: DockerState,
    /// The engine, when it answers.
    pub engine: Option<DockerEngine>,
    /// SHA-256 of the HAMi library found, hexadecimal; empty when none.
    pub hami_sha256: String,
    /// Why the HAMi library cannot be used; empty when it can.
    pub hami_problem: String,
}
