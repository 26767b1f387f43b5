//! From a TLS connection to a node that is served, or a polite refusal.

use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use rustls_pki_types::CertificateDer;
use tianqi_common::id::NodeId;
use tianqi_common::wire::frame::{self, FrameError, Limit};
use tianqi_common::wire::hello::{
    Hello, HelloReply, decode_with_version, split_version, with_version,
};
use tianqi_common::wire::{CloseCode, Version};

use super::listener::{PATIENCE, Shared, close_code};
use crate::core::ca::AgentIdentity;
use crate::link::directory::{Admission, NodeDirectory};

/// How long a refused peer has to read why.
const FAREWELL: Duration = Duration::from_secs(1);

/// An agent whose hello was understood and whose certificate is good.
pub(super) struct Greeted {
    pub(super) hello: Hello,
    pub(super) serial: String,
    pub(super) version: Version,
    pub(super) send: SendStream,
    pub(super) recv: RecvStream,
}

/// Returns what the peer's certificate says, if it showed one.
pub(super) fn identity(quic: &Connection) -> Option<AgentIdentity> {
    let chain = quic.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    AgentIdentity::read(chain.first()?).ok()
}

/// Closes a connection and says why.
pub(super) fn close(quic: &Connection, code: CloseCode, message: &str) {
    quic.close(close_code(code), message.as_bytes());
}

/// Reads the hello and looks the node up. On any refusal the connection is closed and nothing comes.
pub(super) async fn greet<D: NodeDirectory>(
    shared: &Shared<D>,
    quic: &Connection,
) -> Option<Greeted> {
    let Some(identity) = identity(quic) else {
        close(quic, CloseCode::Unauthorised, "no certificate: run tianqi-agent join first");
        return None;
    };
    if identity.not_after < shared.clock.now() {
        close(quic, CloseCode::Unauthorised, "the certificate has expired; renew it first");
        return None;
    }
    let hello = tokio::time::timeout(PATIENCE, read_hello(quic));
    let (payload, mut send, recv) = match hello.await {
        Ok(Ok(read)) => read,
        Ok(Err(error)) => {
            close(quic, CloseCode::Protocol, &error.to_string());
            return None;
        }
        Err(_) => {
            close(quic, CloseCode::Protocol, "no hello in time");
            return None;
        }
    };
    let (hello, version) = match understand(shared.version, &payload, identity.node) {
        Ok(understood) => understood,
        Err(Misunderstood::Protocol(message)) => {
            close(quic, CloseCode::Protocol, &message);
            return None;
        }
        Err(Misunderstood::Version(theirs)) => {
            let message = format!(
                "the agent speaks protocol {theirs}, this controller {}; install the agent that \
                 came with this controller",
                shared.version
            );
            refuse(shared.version, quic, &mut send, "version", message, CloseCode::Version).await;
            return None;
        }
    };
    let admission = shared.directory.admit(identity.node, &identity.serial).await;
    let (code, message) = match admission {
        Ok(Admission::Admitted) => {
            let serial = identity.serial;
            return Some(Greeted { hello, serial, version, send, recv });
        }
        Ok(Admission::Removed) => {
            ("removed", "this node was removed; join it again with a new token")
        }
        Ok(Admission::Unknown) => (
            "unknown_node",
            "this controller does not know the node; was an older backup restored?",
        ),
        Err(error) => {
            tracing::error!(error = %error, node.id = %identity.node, "a node could not be looked up");
            close(quic, CloseCode::Shutdown, "the controller cannot look nodes up; try again");
            return None;
        }
    };
    tracing::warn!(node.id = %identity.node, "an agent was refused: {message}");
    let version = shared.version;
    refuse(version, quic, &mut send, code, message.to_owned(), CloseCode::Unauthorised).await;
    None
}

async fn read_hello(quic: &Connection) -> Result<(Vec<u8>, SendStream, RecvStream), FrameError> {
    let failed = |error: quinn::ConnectionError| FrameError::Io(error.into());
    let (send, mut recv) = quic.accept_bi().await.map_err(failed)?;
    let payload = frame::read_payload(&mut recv, Limit::HELLO).await?;
    Ok((payload.ok_or(FrameError::Truncated)?, send, recv))
}

enum Misunderstood {
    Version(Version),
    Protocol(String),
}

fn understand(
    ours: Version,
    payload: &[u8],
    node: NodeId,
) -> Result<(Hello, Version), Misunderstood> {
    let protocol = |error: FrameError| Misunderstood::Protocol(error.to_string());
    let (theirs, _) = split_version(payload).map_err(protocol)?;
    let version = ours.agree(theirs).ok_or(Misunderstood::Version(theirs))?;
    let (_, hello) = decode_with_version::<Hello>(payload).map_err(protocol)?;
    if hello.node != node {
        let message = "the hello names another node than the certificate".to_owned();
        return Err(Misunderstood::Protocol(message));
    }
    Ok((hello, version))
}

/// Sends a hello reply.
pub(super) async fn reply(
    version: Version,
    send: &mut SendStream,
    reply: &HelloReply,
) -> Result<(), FrameError> {
    let payload = with_version(version, reply)?;
    frame::write_payload(send, &payload, Limit::HELLO).await
}

/// Refuses in words, waits for them to be read, and closes.
pub(super) async fn refuse(
    version: Version,
    quic: &Connection,
    send: &mut SendStream,
    code: &str,
    message: String,
    close_with: CloseCode,
) {
    let refused = HelloReply::Refused { code: code.to_owned(), message: message.clone() };
    if reply(version, send, &refused).await.is_ok() {
        part(send).await;
    }
    close(quic, close_with, &message);
}

/// Ends a stream and waits a moment for the peer to have read it all.
pub(super) async fn part(send: &mut SendStream) {
    if send.finish().is_ok() {
        let _ = tokio::time::timeout(FAREWELL, send.stopped()).await;
    }
}
