//! What a client has sent on one channel and nobody has taken yet.
//!
//! russh's callbacks put in and never wait; the channel's task takes out. How much can wait is bounded
//! by the window (`flow.rs`): at [`HIGH`] the client is held back, at [`LOW`] it may go on. Only a
//! client that ignores its window gets to [`MOST`], and loses the channel.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tianqi_common::wire::frame::CHUNK;
use tianqi_common::wire::stream::PtySize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::flow::{Flow, WINDOW};

/// Bytes that wait when the client is held back.
const HIGH: usize = 1 << 20;
/// Bytes that wait when it may go on.
const LOW: usize = 256 << 10;
/// Bytes that can never wait for a client that keeps to its window: what is let in before it is held
/// back, the window that it has then, one more that was opened just before, and sips meanwhile.
const MOST: usize = HIGH + 3 * WINDOW as usize;
/// Resizes and signals that wait; one more is dropped, except that the last size always counts.
const ODD_MOST: usize = 64;

/// Something that a client sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Bytes, at most [`CHUNK`].
    Data(Bytes),
    /// Its window's new size.
    Resize(PtySize),
    /// A signal, by name without `SIG`.
    Signal(String),
    /// No more bytes come.
    End,
    /// The channel is closed; nothing comes after this.
    Closed,
}

enum Item {
    Data(BytesMut),
    Other(Piece),
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    bytes: usize,
    odd: usize,
    /// Grows with every byte taken.
    taken: u64,
    /// The last size that was taken.
    size: Option<PtySize>,
    is_choking: bool,
    has_ended: bool,
    is_closed: bool,
    waker: Option<Waker>,
}

struct Shared {
    state: Mutex<State>,
    flow: Flow,
}

/// The side of russh's callbacks. Cheap to clone.
#[derive(Clone)]
pub(super) struct Intake(Arc<Shared>);

/// The side of the channel's task. Dropping it closes the channel for the callbacks too.
pub(super) struct Taker(Arc<Shared>);

/// The client ignores its window.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overrun;

/// Makes both sides.
pub(super) fn intake(flow: Flow) -> (Intake, Taker) {
    let shared = Arc::new(Shared { state: Mutex::default(), flow });
    (Intake(shared.clone()), Taker(shared))
}

impl Shared {
    /// The lock is held for as long as a piece is moved, never while anything is waited for.
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn close(&self) {
        let waker = self.with(|state| {
            if std::mem::take(&mut state.is_choking) {
                self.flow.release();
            }
            state.is_closed = true;
            state.waker.take()
        });
        wake(waker);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Intake {
    /// Takes bytes in.
    ///
    /// # Errors
    ///
    /// [`Overrun`] when more came than the window lets through; the channel is to be closed.
    pub(super) fn data(&self, data: &[u8]) -> Result<(), Overrun> {
        let taken = self.0.with(|state| {
            if state.is_closed || data.is_empty() {
                return Ok(None);
            }
            if state.bytes + data.len() > MOST {
                return Err(Overrun);
            }
            state.bytes += data.len();
            match state.items.back_mut() {
                Some(Item::Data(last)) if last.len() + data.len() <= CHUNK => {
                    last.extend_from_slice(data);
                }
                Some(_) | None => {
                    for piece in data.chunks(CHUNK) {
                        state.items.push_back(Item::Data(BytesMut::from(piece)));
                    }
                }
            }
            if state.bytes >= HIGH && !std::mem::replace(&mut state.is_choking, true) {
                self.0.flow.choke();
            }
            Ok(state.waker.take())
        });
        wake(taken?);
        Ok(())
    }

    /// The window changed. Sizes that wait one behind the other count as the last.
    pub(super) fn resize(&self, size: PtySize) {
        self.odd(|state| {
            if let Some(Item::Other(Piece::Resize(last))) = state.items.back_mut() {
                *last = size;
                return None;
            }
            Some(Piece::Resize(size))
        });
    }

    /// A signal came.
    pub(super) fn signal(&self, name: String) {
        self.odd(|_| Some(Piece::Signal(name)));
    }

    fn odd(&self, piece: impl FnOnce(&mut State) -> Option<Piece>) {
        let waker = self.0.with(|state| {
            if let Some(piece) = piece(state)
                && state.odd < ODD_MOST
            {
                state.odd += 1;
                state.items.push_back(Item::Other(piece));
            }
            state.waker.take()
        });
        wake(waker);
    }

    /// No more bytes come. It comes once; a client that says it again says nothing.
    pub(super) fn end(&self) {
        let waker = self.0.with(|state| {
            if !std::mem::replace(&mut state.has_ended, true) {
                state.items.push_back(Item::Other(Piece::End));
            }
            state.waker.take()
        });
        wake(waker);
    }

    /// The channel is closed. Bytes that wait are still taken before that is seen.
    pub(super) fn close(&self) {
        self.0.close();
    }

    /// Whether nothing of this channel is of interest any more.
    pub(super) fn is_closed(&self) -> bool {
        self.0.with(|state| state.is_closed)
    }
}

impl Taker {
    /// Waits for the next piece.
    pub(super) async fn next(&self) -> Piece {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Piece> {
        self.0.with(|state| {
            let Some(item) = state.items.pop_front() else {
                if state.is_closed {
                    return Poll::Ready(Piece::Closed);
                }
                state.waker = Some(cx.waker().clone());
                return Poll::Pending;
            };
            let piece = match item {
                Item::Data(data) => Piece::Data(data.freeze()),
                Item::Other(piece) => {
                    state.odd = state.odd.saturating_sub(1);
                    if let Piece::Resize(size) = piece {
                        state.size = Some(size);
                    }
                    return Poll::Ready(piece);
                }
            };
            if let Piece::Data(data) = &piece {
                state.bytes = state.bytes.saturating_sub(data.len());
                state.taken += data.len() as u64;
            }
            if state.bytes <= LOW && std::mem::take(&mut state.is_choking) {
                self.0.flow.release();
            }
            Poll::Ready(piece)
        })
    }

    /// The last size that somebody has taken from here, whoever it was.
    pub(super) fn size(&self) -> Option<PtySize> {
        self.0.with(|state| state.size)
    }

    /// Puts bytes back in front of what waits: a menu that has read more than its line.
    pub(super) fn put_back(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.0.with(|state| {
            state.bytes += bytes.len();
            state.items.push_front(Item::Data(BytesMut::from(bytes)));
        });
    }

    /// Returns when the channel has stood full for `limit` without a byte taken while `has_others`
    /// said that others are open beside it.
    pub(super) async fn stuck(&self, limit: Duration, has_others: impl Fn() -> bool) {
        const LOOKS: u32 = 6;
        let (mut before, mut looks) = (0, 0);
        loop {
            tokio::time::sleep(limit / LOOKS).await;
            let (is_choking, taken) = self.0.with(|state| (state.is_choking, state.taken));
            let is_stuck = is_choking && taken == before && has_others();
            looks = if is_stuck { looks + 1 } else { 0 };
            before = taken;
            if looks >= LOOKS {
                return;
            }
        }
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        self.0.close();
        self.0.with(|state| {
            state.items.clear();
            state.bytes = 0;
        });
    }
}

/// A channel as a stream of bytes, for an SSH server inside it.
pub(super) struct Bytestream {
    taker: Taker,
    rest: Bytes,
    has_ended: bool,
    writer: Pin<Box<dyn AsyncWrite + Send>>,
}

impl Bytestream {
    /// Reads from `taker` and writes to `writer`.
    pub(super) fn new(taker: Taker, writer: impl AsyncWrite + Send + 'static) -> Self {
        Self { taker, rest: Bytes::new(), has_ended: false, writer: Box::pin(writer) }
    }
}

impl AsyncRead for Bytestream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() && !self.has_ended {
            match ready!(self.taker.poll_next(cx)) {
                Piece::Data(bytes) => self.rest = bytes,
                Piece::End | Piece::Closed => self.has_ended = true,
                Piece::Resize(_) | Piece::Signal(_) => {}
            }
        }
        let count = self.rest.len().min(buf.remaining());
        buf.put_slice(self.rest.get(..count).unwrap_or_default());
        self.rest.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Bytestream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writer.as_mut().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer.as_mut().poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "intake_tests.rs"]
mod tests;
