//! The protocol between agent and controller, version 1.
//!
//! # Transport
//!
//! QUIC with TLS 1.3 on one UDP port of the controller. The agent dials; the controller never does.
//! Two ALPNs share the port:
//!
//! - [`ALPN_JOIN`]: a machine without a certificate sends one [`join::JoinRequest`] on one
//!   bidirectional stream and reads one [`join::JoinReply`]. The same stream renews an expired
//!   certificate of a node that was not removed.
//! - [`ALPN`]: both sides show certificates. A connection without one is closed.
//!
//! # Streams of a `tianqi/1` connection
//!
//! | stream | opened by | first frame | then |
//! |---|---|---|---|
//! | control (bidirectional, exactly one, first) | agent | [`hello::Hello`] up, [`hello::HelloReply`] down | [`control::ToController`] up, [`control::ToAgent`] down |
//! | telemetry (one way) | agent | – | [`telemetry::SampleBatch`] |
//! | work (bidirectional, one per use) | controller | [`stream::StreamOpen`] down, [`stream::StreamReply`] up | what the kind says |
//!
//! # Frames
//!
//! A frame is its length as `u32`, little-endian, and that many bytes of postcard. Every kind has a
//! maximum ([`frame::Limit`]); a longer frame closes the connection before anything is allocated.
//! `hello` frames begin with the version in four fixed bytes, so that any two versions can tell each
//! other who they are.
//!
//! # Compatibility
//!
//! postcard carries no names and numbers variants by position, so compatibility is ours to keep:
//! variants are appended, never reordered; a struct that must change becomes a new variant. A new
//! *major* version is refused politely; a higher *minor* version speaks the lower one. The bytes
//! under `golden/` break the build when this is forgotten.

pub mod control;
pub mod desired;
pub mod frame;
pub mod guest;
pub mod hello;
pub mod inventory;
pub mod join;
pub mod observed;
pub mod stream;
pub mod telemetry;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

/// ALPN of a connection between a controller and a joined agent.
pub const ALPN: &[u8] = b"tianqi/1";
/// ALPN of a machine that asks for a certificate.
pub const ALPN_JOIN: &[u8] = b"tianqi-join/1";
/// The name in every controller's server certificate. Agents check this name whatever address
/// they dial, so a controller may move.
pub const SERVER_NAME: &str = "controller.tianqi.internal";
/// The version this build speaks.
pub const VERSION: Version = Version { major: 1, minor: 1 };

/// Seconds between keep-alive packets of an idle connection.
pub const KEEP_ALIVE_S: u64 = 5;
/// Seconds of silence after which either side gives a connection up.
pub const IDLE_TIMEOUT_S: u64 = 15;
/// Work streams that an agent allows at once (quinn's default of 100 makes the 101st wait).
pub const MAX_WORK_STREAMS: u32 = 4_096;

/// A protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// Changes when old and new cannot talk.
    pub major: u16,
    /// Changes when something is added.
    pub minor: u16,
}

impl Version {
    /// Returns the version that both sides speak, or nothing when the majors differ.
    #[must_use]
    pub fn agree(self, other: Self) -> Option<Self> {
        (self.major == other.major)
            .then_some(Self { major: self.major, minor: self.minor.min(other.minor) })
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Application codes with which a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CloseCode {
    /// The process is going away; come back.
    Shutdown = 0,
    /// The peer broke the protocol.
    Protocol = 1,
    /// No certificate, an unknown one, or one of a removed node.
    Unauthorised = 2,
    /// A newer start of the same node took over.
    Superseded = 3,
    /// The versions cannot talk.
    Version = 4,
}

impl CloseCode {
    /// Returns the code for a number, or nothing for one that this version does not know.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        [Self::Shutdown, Self::Protocol, Self::Unauthorised, Self::Superseded, Self::Version]
            .into_iter()
            .find(|code| u64::from(*code as u32) == number)
    }
}
