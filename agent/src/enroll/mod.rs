//! From a join token to a key and a certificate on disk, and from an expired certificate to the next.

pub mod dial;
pub mod identity;
mod tls;

use std::path::PathBuf;

use quinn::{RecvStream, SendStream};
use rcgen::KeyPair;
use tianqi_common::clock::SharedClock;
use tianqi_common::wire::frame::{self, FrameError, Limit};
use tianqi_common::wire::hello::{decode_with_version, split_version, with_version};
use tianqi_common::wire::join::{JoinRefusal, JoinReply, JoinRequest, JoinToken};
use tianqi_common::wire::{CloseCode, Version};

pub use dial::DialError;
pub use identity::{Identity, IdentityError, IdentityStore, Validity, existing};

use dial::Dialled;

/// How long the controller may take to answer.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// How long a connection whose stream broke may take to say why.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(1);

/// What a join needs.
#[derive(Debug)]
pub struct Join {
    /// `HOST:PORT` of the controller.
    pub controller: String,
    /// The token that an admin made.
    pub token: JoinToken,
    /// Where the identity is kept.
    pub data_dir: PathBuf,
    /// Whether an identity that is there may be replaced.
    pub force: bool,
    /// What the machine calls itself.
    pub hostname: String,
    /// The version this agent speaks.
    pub version: Version,
}

/// Why a machine did not join, or a certificate was not renewed. One line says what to do.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The identity cannot be read or written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The controller was not reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The controller said no.
    #[error("the controller refused: {message}")]
    Refused {
        /// Why.
        code: JoinRefusal,
        /// The controller's sentence.
        message: String,
    },
    /// The controller speaks another major version.
    #[error(
        "the controller speaks protocol {theirs}, this agent {ours}; install the agent that came with the controller"
    )]
    Version {
        /// The controller's.
        theirs: Version,
        /// The agent's.
        ours: Version,
    },
    /// The answer makes no sense.
    #[error("the controller's answer cannot be understood")]
    Answer(#[source] FrameError),
    /// The answer did not come.
    #[error("the controller did not answer within {} s", PATIENCE.as_secs())]
    Silent,
}

/// Joins this machine to a controller and keeps its identity.
///
/// # Errors
///
/// [`EnrollError`]; nothing on disk is changed then but the pending key.
pub async fn join(wanted: &Join, clock: SharedClock) -> Result<Identity, EnrollError> {
    // A damaged identity is replaced by --force too.
    match (identity::existing(&wanted.data_dir), wanted.force) {
        (Ok(None), _) | (_, true) => {}
        (Ok(Some(Identity { node, controller, .. })), false) => {
            return Err(IdentityError::Exists { node, controller }.into());
        }
        (Err(error), false) => return Err(error.into()),
    }
    let key = identity::pending_key(&wanted.data_dir)?;
    let request = JoinRequest::Join {
        secret: wanted.token.secret.clone(),
        csr_pem: identity::request(&key)?,
        hostname: wanted.hostname.clone(),
        now: clock.now(),
    };
    let dialled =
        dial::to_join(&wanted.controller, wanted.token.fingerprint, clock.clone()).await?;
    let identity = ask(&wanted.controller, wanted.version, dialled, &request, &key).await?;
    identity::keep(&wanted.data_dir, &identity)?;
    Ok(identity)
}

/// Renews an expired certificate and keeps the new one.
///
/// # Errors
///
/// [`EnrollError`]; the old identity stays.
pub async fn renew_expired(
    store: &IdentityStore,
    version: Version,
    clock: SharedClock,
) -> Result<(), EnrollError> {
    let old = store.current();
    let key = KeyPair::generate().map_err(IdentityError::Key)?;
    let request = JoinRequest::Renew { csr_pem: identity::request(&key)?, now: clock.now() };
    let dialled = dial::to_renew(&old, clock).await?;
    let identity = ask(&old.controller, version, dialled, &request, &key).await?;
    store.replace(identity)?;
    Ok(())
}

/// Asks once and closes the connection.
async fn ask(
    controller: &str,
    version: Version,
    dialled: Dialled,
    request: &JoinRequest,
    key: &KeyPair,
) -> Result<Identity, EnrollError> {
    let quic = dialled.quic.clone();
    let asked = tokio::time::timeout(PATIENCE, async {
        let opened = quic.open_bi().await;
        let (send, recv) = opened.map_err(|error| DialError::from_end(controller, error))?;
        exchange(version, send, recv, request).await
    });
    let reply = match asked.await {
        Ok(Ok(reply)) => reply,
        Ok(Err(EnrollError::Answer(FrameError::Io(_) | FrameError::Truncated))) => {
            // The connection knows better why the stream broke, if it ended too.
            let ended = tokio::time::timeout(FAREWELL, quic.closed()).await;
            return Err(ended.map_or(EnrollError::Silent, |error| {
                DialError::from_end(controller, error).into()
            }));
        }
        Ok(Err(error)) => return Err(error),
        Err(_) => return Err(EnrollError::Silent),
    };
    dialled.close(CloseCode::Shutdown, "done").await;
    match reply {
        JoinReply::Accepted { node, certificate_pem, ca_pem } => Ok(Identity {
            controller: controller.to_owned(),
            node,
            key_pem: key.serialize_pem(),
            certificate_pem,
            ca_pem,
        }),
        JoinReply::Refused { code, message } => Err(EnrollError::Refused { code, message }),
    }
}

async fn exchange(
    version: Version,
    mut send: SendStream,
    mut recv: RecvStream,
    request: &JoinRequest,
) -> Result<JoinReply, EnrollError> {
    let payload = with_version(version, request).map_err(EnrollError::Answer)?;
    frame::write_payload(&mut send, &payload, Limit::HELLO).await.map_err(EnrollError::Answer)?;
    let answer = frame::read_payload(&mut recv, Limit::HELLO).await;
    let answer = answer
        .and_then(|answer| answer.ok_or(FrameError::Truncated))
        .map_err(EnrollError::Answer)?;
    let (theirs, _) = split_version(&answer).map_err(EnrollError::Answer)?;
    if version.agree(theirs).is_none() {
        return Err(EnrollError::Version { theirs, ours: version });
    }
    let (_, reply) = decode_with_version(&answer).map_err(EnrollError::Answer)?;
    Ok(reply)
}
