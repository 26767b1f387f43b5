//! How a machine gets its certificate.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::id::NodeId;

/// The largest difference between the clocks of node and controller at which a node may join.
pub const MAX_CLOCK_SKEW_S: u64 = 300;

/// What a machine sends, after its version as in [`super::hello::with_version`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinRequest {
    /// A new node, by token.
    Join {
        /// The secret part of the join token.
        secret: String,
        /// A certificate request; only its public key is used.
        csr_pem: String,
        /// The machine's own name; becomes the node's name unless it is taken.
        hostname: String,
        /// The machine's clock.
        now: UnixMillis,
    },
    /// A known node whose certificate has expired; the connection itself showed that certificate.
    Renew {
        /// A certificate request; only its public key is used.
        csr_pem: String,
        /// The machine's clock.
        now: UnixMillis,
    },
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Join { hostname, .. } => {
                f.debug_struct("Join").field("hostname", hostname).finish_non_exhaustive()
            }
            Self::Renew { .. } => f.debug_struct("Renew").finish_non_exhaustive(),
        }
    }
}

/// What the controller answers, after its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinReply {
    /// The node is known from now on.
    Accepted {
        /// The node's id, also in the certificate.
        node: NodeId,
        /// The node's certificate, PEM.
        certificate_pem: String,
        /// The controller's CA certificates that the node must trust, PEM, newest first.
        ca_pem: String,
    },
    /// Refused.
    Refused {
        /// Why.
        code: JoinRefusal,
        /// One sentence that says what to do.
        message: String,
    },
}

/// Why a machine may not join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinRefusal {
    /// No such token.
    UnknownToken,
    /// The token was used as often as it may be.
    UsedUp,
    /// The token's lifetime is over.
    Expired,
    /// The major versions differ.
    Version,
    /// The clocks differ by more than [`MAX_CLOCK_SKEW_S`].
    ClockSkew,
    /// The certificate request is not usable.
    BadRequest,
    /// The node was removed, or its certificate expired too long ago.
    Removed,
    /// The controller failed; try again.
    Internal,
}

/// A join token as an admin copies it: `tqj1.<secret>.<fingerprint of the CA>`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The secret part; the controller stores only its hash.
    pub secret: String,
    /// SHA-256 of the CA certificate (DER).
    pub fingerprint: [u8; 32],
}

/// Why a text is not a join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a join token; copy it whole, it looks like tqj1.<secret>.<64 hex digits>")]
pub struct JoinTokenError;

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tqj1.{}.", self.secret)?;
        self.fingerprint.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(…)")
    }
}

impl FromStr for JoinToken {
    type Err = JoinTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.trim().split('.');
        let (Some("tqj1"), Some(secret), Some(digits), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(JoinTokenError);
        };
        // Checked here because `from_str_radix` also takes a sign.
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        if secret.is_empty() || secret.len() > 128 || digits.len() != 64 || !is_hex {
            return Err(JoinTokenError);
        }
        let mut fingerprint = [0; 32];
        for (byte, pair) in fingerprint.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| JoinTokenError)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| JoinTokenError)?;
        }
        Ok(Self { secret: secret.to_owned(), fingerprint })
    }
}
