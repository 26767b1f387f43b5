//! Holding a client back without holding up its connection.
//!
//! SSH gives each channel a window, which the receiver opens again as it consumes. russh opens it as
//! soon as bytes arrive, and its session ends up waiting for a full queue, which stops every channel of
//! the connection: 50 MB through `cat` never end, because output waits behind input. Here nothing ever
//! waits inside russh: what a client sends goes into the channel's [`Intake`](super::intake), and what
//! bounds it is the window itself. russh asks after each opening how far to open the next time, for the
//! whole connection; while any channel has more waiting than it should, the answer is [`SIP`]. A client
//! then uses up the window that it has and sips two bytes at a time, which [`Transport`] spaces out,
//! until the channel has caught up. Output, keys, resizes and everything else go on meanwhile; uploads
//! on other channels of the same connection are slow for that time, and a channel that stands full
//! while others wait is ended after [`STUCK`].

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How many bytes a client may send on a channel without being told to go on; what OpenSSH gives.
pub(super) const WINDOW: u32 = 2 << 20;
/// How far a window is opened while some channel of the connection has too much waiting. russh opens
/// a window that has shrunk below half of this, so it must be at least 2.
const SIP: u32 = 2;
/// How long a channel may stand full, with nothing taken, while other channels are open beside it.
pub(super) const STUCK: Duration = Duration::from_secs(30);
/// Pause between two reads of a connection that is being held back.
const PAUSE: Duration = Duration::from_millis(1);
/// Bytes read at once. Packets come with two reads each, most of them small.
const READ: usize = 16 << 10;
/// Longest version line of a client (RFC 4253).
const VERSION_MAX: usize = 255;

/// How many channels of a connection have too much waiting. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Flow(Arc<AtomicUsize>);

impl Flow {
    /// One channel more has too much waiting.
    pub(super) fn choke(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    /// One channel has caught up, or is gone.
    pub(super) fn release(&self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }

    fn is_choked(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }

    /// How far windows are opened now.
    pub(super) fn window(&self) -> u32 {
        if self.is_choked() { SIP } else { WINDOW }
    }
}

/// The bytes below SSH: paced while the client is held back, and cut when the connection is to end.
/// russh's own task cannot be stopped from outside; a transport that fails ends it.
pub(super) struct Transport<S> {
    inner: BufReader<S>,
    flow: Flow,
    pause: Option<Pin<Box<Sleep>>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    version: Version,
}

/// The first line that a client sends, such as `SSH-2.0-OpenSSH_9.2`.
#[derive(Clone, Debug, Default)]
pub(super) struct Version(Arc<OnceLock<String>>);

impl Version {
    /// Returns the line; empty until it has come.
    pub(super) fn get(&self) -> String {
        self.0.get().cloned().unwrap_or_default()
    }

    /// Reads it from the first bytes of a connection. They nearly always come at once; when they do
    /// not, what has come counts.
    fn note(&self, bytes: &[u8]) {
        if self.0.get().is_none() && !bytes.is_empty() {
            let line = bytes.split(|b| *b == b'\r' || *b == b'\n').next().unwrap_or_default();
            let text =
                line.iter().take(VERSION_MAX).filter(|b| b.is_ascii_graphic() || **b == b' ');
            // Whoever was first counts.
            let _ = self.0.set(text.map(|b| char::from(*b)).collect());
        }
    }
}

impl<S: AsyncRead + AsyncWrite> Transport<S> {
    /// Wraps the bytes of one connection.
    pub(super) fn new(inner: S, flow: Flow, version: Version, cut: CancellationToken) -> Self {
        Self {
            inner: BufReader::with_capacity(READ, inner),
            flow,
            pause: None,
            cut: Box::pin(cut.cancelled_owned()),
            version,
        }
    }
}

impl<S> Transport<S> {
    fn is_cut(&mut self, cx: &mut Context<'_>) -> bool {
        self.cut.as_mut().poll(cx).is_ready()
    }
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was ended")
}

impl<S: AsyncRead + Unpin> AsyncRead for Transport<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_cut(cx) {
            return Poll::Ready(Err(cut_off()));
        }
        if self.flow.is_choked() {
            let pause = self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(PAUSE)));
            ready!(pause.as_mut().poll(cx));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        self.pause = None;
        self.version.note(buf.filled().get(before..).unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Transport<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_cut(cx) {
            return Poll::Ready(Err(cut_off()));
        }
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_cut_ends_a_read_that_waits_and_every_write() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let (cut, version) = (CancellationToken::new(), Version::default());
        let mut transport = Transport::new(ours, Flow::default(), version.clone(), cut.clone());
        theirs.write_all(b"SSH-2.0-Test_1\x07 x\r\nrest").await.unwrap();
        let mut buf = [0; 64];
        let read = transport.read(&mut buf).await.unwrap();
        assert_eq!((&buf[..8], version.get().as_str()), (&b"SSH-2.0-"[..], "SSH-2.0-Test_1 x"));
        assert!(read > 8);

        let waiting = tokio::spawn(async move {
            let ended = transport.read(&mut [0; 8]).await;
            (ended, transport.write(b"x").await)
        });
        tokio::task::yield_now().await;
        cut.cancel();

        let (read, written) = waiting.await.unwrap();
        assert!(read.is_err() && written.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_held_back_is_read_slowly_but_read() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let flow = Flow::default();
        let cut = CancellationToken::new();
        let mut transport = Transport::new(ours, flow.clone(), Version::default(), cut);
        theirs.write_all(&[7; 100]).await.unwrap();
        flow.choke();
        assert_eq!(flow.window(), SIP);

        let began = tokio::time::Instant::now();
        for _ in 0..100 {
            transport.read_exact(&mut [0]).await.unwrap();
        }
        assert!(began.elapsed() >= PAUSE * 100, "{:?}", began.elapsed());

        flow.release();
        assert_eq!(flow.window(), WINDOW);
    }
}
