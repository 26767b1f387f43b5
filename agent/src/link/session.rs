//! One connection from hello to end.

use std::fmt;

use quinn::{Connection, RecvStream, SendStream};
use tianqi_common::wire::CloseCode;
use tianqi_common::wire::frame::{self, FrameError, Limit};
use tianqi_common::wire::hello::{
    Hello, HelloReply, decode_with_version, split_version, with_version,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{LinkParts, Start, StreamService, control, dispatch, renewal, telemetry};
use crate::enroll::dial;
use crate::enroll::{DialError, Identity};

/// How long the controller may take to answer the hello.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);
/// Requests of this side that wait for the control stream; whoever has one waits when it is full.
const REQUESTS: usize = 2;

/// How a connection ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// This process stops.
    Stopped,
    /// The controller was not reached, or did not let the node in.
    Unreached(DialError),
    /// The controller said no.
    Refused { message: String },
    /// It stood and broke.
    Lost { reason: String, was_served: bool },
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("the agent stops"),
            Self::Unreached(error) => error.fmt(f),
            Self::Refused { message } => write!(f, "the controller refused: {message}"),
            Self::Lost { reason, .. } => {
                write!(f, "the connection to the controller ended: {reason}")
            }
        }
    }
}

/// Dials once and serves the connection to its end.
pub(super) async fn run<S: StreamService>(
    parts: &mut LinkParts<S>,
    start: Start,
    stopping: &CancellationToken,
) -> Ended {
    let identity = parts.identity.current();
    let dialled = tokio::select! {
        dialled = dial::as_node(&identity, parts.clock.clone()) => dialled,
        () = stopping.cancelled() => return Ended::Stopped,
    };
    let dialled = match dialled {
        Ok(dialled) => dialled,
        Err(error) => return Ended::Unreached(error),
    };
    let ended = tokio::select! {
        ended = serve(parts, &identity, &dialled.quic, start) => ended,
        () = stopping.cancelled() => Ended::Stopped,
    };
    let (code, reason) = match &ended {
        Ended::Lost { reason, .. } => (CloseCode::Protocol, reason.as_str()),
        Ended::Stopped => (CloseCode::Shutdown, "the agent stops"),
        Ended::Unreached(_) | Ended::Refused { .. } => (CloseCode::Shutdown, "understood"),
    };
    dialled.close(code, reason).await;
    ended
}

async fn serve<S: StreamService>(
    parts: &mut LinkParts<S>,
    identity: &Identity,
    quic: &Connection,
    start: Start,
) -> Ended {
    let (send, recv) =
        match tokio::time::timeout(PATIENCE, greet(parts, identity, quic, start)).await {
            Ok(Ok(streams)) => streams,
            Ok(Err(Greeting::Refused(message))) => return Ended::Refused { message },
            Ok(Err(Greeting::Broken(error))) => return broken(identity, quic, &error, false).await,
            Err(_) => {
                let reason = "the controller did not answer the hello".to_owned();
                return Ended::Lost { reason, was_served: false };
            }
        };
    tracing::info!(node.id = %identity.node, "connected to {}", identity.controller);
    let (requests, outbox) = mpsc::channel(REQUESTS);
    let (renewed, answers) = mpsc::channel(REQUESTS);
    let reports = control::Reports::default();
    let error = tokio::select! {
        ended = control::write(send, parts.observed.clone(), parts.inventory.clone(), &reports, outbox) => ended,
        ended = control::read(recv, &parts.desired, &parts.settings, &reports, renewed) => match ended {
            Ok(control::Goodbye { code, message }) => {
                tracing::info!("the controller says goodbye ({code})");
                return if matches!(code.as_str(), "superseded" | "removed") {
                    Ended::Refused { message }
                } else {
                    Ended::Lost { reason: message, was_served: true }
                };
            }
            Err(error) => error,
        },
        ended = telemetry::send(quic, &mut parts.samples) => ended,
        ended = dispatch::accept(quic, &parts.streams) => ended,
        () = renewal::keep_valid(&parts.identity, &parts.clock, requests, answers) => {
            FrameError::Truncated
        }
    };
    broken(identity, quic, &error, true).await
}

enum Greeting {
    Refused(String),
    Broken(FrameError),
}

impl From<FrameError> for Greeting {
    fn from(error: FrameError) -> Self {
        Self::Broken(error)
    }
}

async fn greet<S>(
    parts: &LinkParts<S>,
    identity: &Identity,
    quic: &Connection,
    start: Start,
) -> Result<(SendStream, RecvStream), Greeting> {
    let hello = Hello {
        node: identity.node,
        boot: start.boot,
        started_at: start.started_at,
        now: parts.clock.now(),
        program: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let opened = quic.open_bi().await;
    let (mut send, mut recv) = opened.map_err(|error| FrameError::Io(error.into()))?;
    let payload = with_version(parts.version, &hello)?;
    frame::write_payload(&mut send, &payload, Limit::HELLO).await?;
    let answer = frame::read_payload(&mut recv, Limit::HELLO).await?;
    let answer = answer.ok_or(FrameError::Truncated)?;
    let (theirs, _) = split_version(&answer)?;
    if parts.version.agree(theirs).is_none() {
        let message = format!(
            "the controller speaks protocol {theirs}, this agent {}; install the agent that came \
             with the controller",
            parts.version
        );
        return Err(Greeting::Refused(message));
    }
    match decode_with_version(&answer)?.1 {
        HelloReply::Welcome { now, .. } => {
            tracing::debug!("the controller's clock is at {} ms", now.0);
            Ok((send, recv))
        }
        HelloReply::Refused { message, .. } => Err(Greeting::Refused(message)),
    }
}

/// Says why a connection broke: its own end tells more than the stream that noticed first.
async fn broken(
    identity: &Identity,
    quic: &Connection,
    error: &FrameError,
    was_served: bool,
) -> Ended {
    let violation = matches!(error, FrameError::TooLong { .. } | FrameError::Malformed { .. });
    if !violation {
        /// A stream breaks a moment before the connection says why.
        const MOMENT: std::time::Duration = std::time::Duration::from_millis(500);
        if let Ok(ended) = tokio::time::timeout(MOMENT, quic.closed()).await {
            let ended = DialError::from_end(&identity.controller, ended);
            return if was_served {
                Ended::Lost { reason: ended.to_string(), was_served }
            } else {
                Ended::Unreached(ended)
            };
        }
    }
    Ended::Lost { reason: error.to_string(), was_served }
}
