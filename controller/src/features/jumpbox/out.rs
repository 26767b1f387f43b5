//! The direction to the client of one channel, without a russh type for whoever uses it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use russh::ChannelWriteHalf;
use russh::server::Msg;
use tokio::io::AsyncWrite;

/// The number of the stream of errors.
const STDERR: u32 = 1;
/// How long a few words may take to reach a client that does not read.
const WORDS: Duration = Duration::from_secs(5);

/// The client is gone.
#[derive(Debug)]
pub(super) struct Gone;

/// Writes to a channel. Everything waits while the client takes no more.
#[derive(Debug)]
pub(super) struct Out {
    half: ChannelWriteHalf<Msg>,
    bytes: AtomicU64,
    has_terminal: AtomicBool,
}

impl Out {
    pub(super) fn new(half: ChannelWriteHalf<Msg>) -> Self {
        Self { half, bytes: AtomicU64::new(0), has_terminal: AtomicBool::new(false) }
    }

    /// Says that a terminal is at the other end: there, everything is output, in order.
    pub(super) fn is_terminal(&self) {
        self.has_terminal.store(true, Ordering::Relaxed);
    }

    /// Bytes written so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Writes output.
    pub(super) async fn stdout(&self, bytes: Bytes) -> Result<(), Gone> {
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.half.data_bytes(bytes).await.map_err(|_| Gone)
    }

    /// Writes error output.
    pub(super) async fn stderr(&self, bytes: Bytes) -> Result<(), Gone> {
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.half.extended_data_bytes(STDERR, bytes).await.map_err(|_| Gone)
    }

    /// Shows some text in a terminal; a client that does not read misses it.
    pub(super) async fn show(&self, text: impl Into<Bytes> + Send) {
        let text = text.into();
        if !text.is_empty() {
            let _ = tokio::time::timeout(WORDS, self.half.data_bytes(text)).await;
        }
    }

    /// Says a line: in a terminal, or beside the output when there is none.
    pub(super) async fn say(&self, text: &str) {
        let line = Bytes::from(format!("{text}\r\n"));
        if self.has_terminal.load(Ordering::Relaxed) {
            self.show(line).await;
            return;
        }
        let _ = tokio::time::timeout(WORDS, self.half.extended_data_bytes(STDERR, line)).await;
    }

    /// Says that no more output comes.
    pub(super) async fn end(&self) {
        let _ = tokio::time::timeout(WORDS, self.half.eof()).await;
    }

    /// Says how the program ended, and closes the channel.
    pub(super) async fn exit(&self, code: i32) {
        let last = async {
            // A negative code cannot be said; what shells make of it is its last byte.
            let code = u32::try_from(code & 0xff).unwrap_or(255);
            self.half.exit_status(code).await?;
            self.half.eof().await?;
            self.half.close().await
        };
        let _ = tokio::time::timeout(WORDS, last).await;
    }

    /// Closes the channel.
    pub(super) async fn close(&self) {
        let _ = tokio::time::timeout(WORDS, self.half.close()).await;
    }

    /// Returns the channel's output as a stream of bytes.
    pub(super) fn writer(&self) -> impl AsyncWrite + Send + 'static {
        self.half.make_writer()
    }
}
