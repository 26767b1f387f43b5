//! The first message each way on the control stream.
//!
//! A hello payload is the sender's version in four fixed bytes (major, minor: `u16` little-endian)
//! and then postcard. The four bytes never change, whatever the major version, so that a refusal can
//! always be put into words.

use serde::{Deserialize, Serialize};

use super::Version;
use super::frame::{FrameError, decode};
use crate::clock::UnixMillis;
use crate::id::{BootId, NodeId};

/// What an agent says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The node that the certificate names; the controller checks that both agree.
    pub node: NodeId,
    /// This start of the agent.
    pub boot: BootId,
    /// When this start began by the node's clock; of two connections the later start wins.
    pub started_at: UnixMillis,
    /// The node's clock now, from which the controller tells skew.
    pub now: UnixMillis,
    /// Version of the agent's program, for people.
    pub program: String,
}

/// What the controller answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HelloReply {
    /// Served, with the version that both speak.
    Welcome {
        /// The agreed version.
        version: Version,
        /// The controller's clock, for the agent's log.
        now: UnixMillis,
    },
    /// Not served.
    Refused {
        /// A stable word: `version`, `superseded`, `unknown_node`, `removed`.
        code: String,
        /// One sentence that says what to do.
        message: String,
    },
}

/// Puts the sender's version before a hello message.
///
/// # Errors
///
/// [`FrameError::Malformed`] when the message cannot be encoded.
pub fn with_version<T: Serialize>(version: Version, message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = Vec::with_capacity(128);
    bytes.extend_from_slice(&version.major.to_le_bytes());
    bytes.extend_from_slice(&version.minor.to_le_bytes());
    postcard::to_extend(message, bytes)
        .map_err(|source| FrameError::Malformed { kind: std::any::type_name::<T>(), source })
}

/// Splits a hello payload into the sender's version and the bytes of its message.
///
/// # Errors
///
/// [`FrameError::Truncated`] when there are fewer than four bytes.
pub fn split_version(payload: &[u8]) -> Result<(Version, &[u8]), FrameError> {
    match payload {
        [a, b, c, d, rest @ ..] => {
            let major = u16::from_le_bytes([*a, *b]);
            let minor = u16::from_le_bytes([*c, *d]);
            Ok((Version { major, minor }, rest))
        }
        _ => Err(FrameError::Truncated),
    }
}

/// Reads a hello payload whole; only meaningful when the majors agree.
///
/// # Errors
///
/// [`FrameError`] when it is cut short or not a `T`.
pub fn decode_with_version<T: serde::de::DeserializeOwned>(
    payload: &[u8],
) -> Result<(Version, T), FrameError> {
    let (version, rest) = split_version(payload)?;
    Ok((version, decode(rest)?))
}
