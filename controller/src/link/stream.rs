//! One work stream, without a QUIC type in sight.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tianqi_common::wire::frame::{self, FrameError, Limit};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::LinkError;

/// What to do when the agent breaks the protocol on this stream: its connection is closed.
pub(super) type OnViolation = Arc<dyn Fn(&FrameError) + Send + Sync>;

/// Both directions of a stream that the agent has accepted. Dropping both ends it; the agent then
/// ends what ran on it.
#[derive(Debug)]
pub struct WorkStream {
    /// To the agent.
    pub writer: WorkWriter,
    /// From the agent.
    pub reader: WorkReader,
}

/// The direction to the agent.
pub struct WorkWriter {
    inner: Pin<Box<dyn AsyncWrite + Send>>,
}

/// The direction from the agent.
pub struct WorkReader {
    inner: Pin<Box<dyn AsyncRead + Send>>,
    on_violation: OnViolation,
}

impl std::fmt::Debug for WorkWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WorkWriter")
    }
}

impl std::fmt::Debug for WorkReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WorkReader")
    }
}

impl WorkStream {
    /// Puts a stream together from any two halves, such as those of a test.
    pub fn from_halves(
        reader: impl AsyncRead + Send + 'static,
        writer: impl AsyncWrite + Send + 'static,
    ) -> Self {
        Self::with_violation(reader, writer, Arc::new(|_| ()))
    }

    pub(super) fn with_violation(
        reader: impl AsyncRead + Send + 'static,
        writer: impl AsyncWrite + Send + 'static,
        on_violation: OnViolation,
    ) -> Self {
        Self {
            writer: WorkWriter { inner: Box::pin(writer) },
            reader: WorkReader { inner: Box::pin(reader), on_violation },
        }
    }
}

impl WorkWriter {
    /// Sends one frame; waits while the agent takes no more.
    ///
    /// # Errors
    ///
    /// [`LinkError::Lost`], and [`LinkError::Frame`] when the message is too large.
    pub async fn send<T: Serialize + Sync>(&mut self, message: &T) -> Result<(), LinkError> {
        frame::write(&mut self.inner, message, Limit::STREAM).await.map_err(to_link_error)
    }

    /// Says that nothing more comes.
    ///
    /// # Errors
    ///
    /// [`LinkError::Lost`].
    pub async fn finish(&mut self) -> Result<(), LinkError> {
        self.inner.shutdown().await.map_err(LinkError::Lost)
    }
}

impl WorkReader {
    /// Reads one frame; nothing when the agent ended the stream. A frame that breaks the protocol
    /// closes the agent's connection.
    ///
    /// # Errors
    ///
    /// [`LinkError::Lost`] and [`LinkError::Frame`].
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, LinkError> {
        let read = frame::read(&mut self.inner, Limit::STREAM).await;
        read.map_err(|error| {
            if is_violation(&error) {
                (self.on_violation)(&error);
            }
            to_link_error(error)
        })
    }
}

/// Whether the peer, not the network, is to blame.
pub(super) fn is_violation(error: &FrameError) -> bool {
    match error {
        FrameError::TooLong { .. } | FrameError::Malformed { .. } => true,
        // A stream that is cut also ends inside a frame when the connection goes away.
        FrameError::Truncated | FrameError::Io(_) => false,
    }
}

pub(super) fn to_link_error(error: FrameError) -> LinkError {
    match error {
        FrameError::Io(source) => LinkError::Lost(source),
        FrameError::TooLong { .. } | FrameError::Malformed { .. } | FrameError::Truncated => {
            LinkError::Frame(error)
        }
    }
}

impl AsyncRead for WorkReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for WorkWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.inner.as_mut().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_shutdown(cx)
    }
}
