//! Streams that the controller opens: the first frame says what for.

use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use tianqi_common::wire::CloseCode;
use tianqi_common::wire::frame::{self, FrameError, Limit};
use tianqi_common::wire::stream::StreamOpen;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::streams::Streams;

/// How long the first frame may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Keystrokes go before everything else but control.
const PRIORITY_EXEC: i32 = 10;

/// Serves one stream to its end.
pub trait StreamService: Clone + Send + Sync + 'static {
    /// Serves the stream that `open` describes; the reply is still to be sent.
    fn serve<R, W>(
        &self,
        open: StreamOpen,
        reader: R,
        writer: W,
    ) -> impl Future<Output = ()> + Send
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static;
}

impl StreamService for Streams {
    async fn serve<R, W>(&self, open: StreamOpen, reader: R, writer: W)
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        Self::serve(self, open, reader, writer).await;
    }
}

/// Takes streams until the connection ends; returns why. Streams being served are not cut off: each
/// notices by itself that its connection is gone and cleans up after its program.
pub(super) async fn accept<S: StreamService>(quic: &Connection, streams: &S) -> FrameError {
    loop {
        match quic.accept_bi().await {
            Ok((send, recv)) => {
                tokio::spawn(serve(quic.clone(), streams.clone(), send, recv));
            }
            Err(error) => return FrameError::Io(error.into()),
        }
    }
}

async fn serve<S: StreamService>(
    quic: Connection,
    streams: S,
    send: SendStream,
    mut recv: RecvStream,
) {
    let first = frame::read::<StreamOpen, _>(&mut recv, Limit::OPEN);
    match tokio::time::timeout(PATIENCE, first).await {
        Ok(Ok(Some(open))) => {
            if matches!(open, StreamOpen::Exec(_) | StreamOpen::Terminal(_)) {
                // Fails only for a stream that is closed already.
                let _ = send.set_priority(PRIORITY_EXEC);
            }
            streams.serve(open, recv, send).await;
        }
        Ok(Err(error @ (FrameError::TooLong { .. } | FrameError::Malformed { .. }))) => {
            quic.close((CloseCode::Protocol as u32).into(), error.to_string().as_bytes());
        }
        Ok(Ok(None) | Err(_)) | Err(_) => tracing::debug!("a stream was opened and not used"),
    }
}
