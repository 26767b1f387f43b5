//! What the link asks about nodes. The room of nodes answers.

use std::net::SocketAddr;

use tianqi_common::id::NodeId;
use tianqi_common::wire::join::JoinRefusal;

use crate::core::ca::AgentCertificate;

/// Whether a certificate may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The node is known and the certificate was not revoked.
    Admitted,
    /// The node was removed, or the certificate revoked.
    Removed,
    /// This controller never made that certificate; perhaps its database is an older copy.
    Unknown,
}

/// A machine that asks to join.
#[derive(Clone, Debug)]
pub struct JoinAttempt {
    /// SHA-256 of the token's secret.
    pub secret_hash: [u8; 32],
    /// What the machine calls itself.
    pub hostname: String,
    /// SHA-256 of its public key. A machine whose first answer was lost asks again with the same key
    /// and must become the same node.
    pub key_hash: [u8; 32],
    /// Where it dials from.
    pub address: SocketAddr,
    /// Its clock minus the controller's, in milliseconds.
    pub skew_ms: i64,
}

/// Why a machine may not join, by its token.
#[derive(Debug, thiserror::Error)]
pub enum JoinDenied {
    /// The token says no.
    #[error("{1}")]
    Refused(JoinRefusal, String),
    /// The directory failed.
    #[error(transparent)]
    Failed(#[from] DirectoryError),
}

/// A refusal, for the audit trail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Where the machine dialled from.
    pub address: SocketAddr,
    /// A stable word, such as `unknown_token`, `fingerprint` or `clock_skew`.
    pub code: &'static str,
    /// One sentence.
    pub message: String,
    /// The node, when a certificate named one.
    pub node: Option<NodeId>,
}

/// The directory could not answer.
#[derive(Debug, thiserror::Error)]
#[error("the directory of nodes failed")]
pub struct DirectoryError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Knows which nodes there are.
pub trait NodeDirectory: Send + Sync + 'static {
    /// Says whether the certificate `serial` of `node` may be used. Asked at every connection.
    fn admit(
        &self,
        node: NodeId,
        serial: &str,
    ) -> impl Future<Output = Result<Admission, DirectoryError>> + Send;

    /// Uses a join token once and makes the node, in one transaction.
    fn join(&self, attempt: JoinAttempt)
    -> impl Future<Output = Result<NodeId, JoinDenied>> + Send;

    /// Keeps the serial of a new certificate, before the agent gets it.
    fn record_certificate(
        &self,
        node: NodeId,
        certificate: &AgentCertificate,
    ) -> impl Future<Output = Result<(), DirectoryError>> + Send;

    /// Puts a refusal on the audit trail. Failing to do so is logged, not returned.
    fn record_refusal(&self, refusal: Refusal) -> impl Future<Output = ()> + Send;
}
