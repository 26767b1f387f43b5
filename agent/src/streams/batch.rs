//! Output on its way to the controller, put together: a line of a log is often a few bytes.

use bytes::BytesMut;
use tianqi_common::wire::frame::{self, FrameError, Limit};
use tianqi_common::wire::stream::LogFrame;
use tokio::io::AsyncWrite;

use crate::docker::OutputKind;

/// Bytes of a frame.
const FULL: usize = 32 << 10;

/// Bytes of one kind that wait to be sent together; when they are many they are sent, and whoever
/// adds more waits for that.
pub(super) struct Batch<'a, W> {
    writer: &'a mut W,
    kind: OutputKind,
    bytes: BytesMut,
}

impl<'a, W: AsyncWrite + Unpin> Batch<'a, W> {
    pub(super) fn new(writer: &'a mut W) -> Self {
        Self { writer, kind: OutputKind::Stdout, bytes: BytesMut::new() }
    }

    pub(super) async fn add(&mut self, kind: OutputKind, more: &[u8]) -> Result<(), FrameError> {
        if kind != self.kind {
            self.flush().await?;
            self.kind = kind;
        }
        for piece in more.chunks(FULL) {
            if self.bytes.len() + piece.len() > FULL {
                self.flush().await?;
            }
            self.bytes.extend_from_slice(piece);
        }
        Ok(())
    }

    pub(super) async fn flush(&mut self) -> Result<(), FrameError> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        let bytes = self.bytes.split().freeze();
        let frame = match self.kind {
            OutputKind::Stdout => LogFrame::Stdout(bytes),
            OutputKind::Stderr => LogFrame::Stderr(bytes),
        };
        frame::write(self.writer, &frame, Limit::STREAM).await
    }
}
