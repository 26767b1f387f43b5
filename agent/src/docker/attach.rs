//! A program's input and output on one byte stream, as Docker's exec and attach carry them.
//!
//! With a terminal the stream is raw. Without one, Docker sends frames: one byte for which output,
//! three zero bytes, the length as `u32` big-endian, the bytes. bollard's decoder looks for frames
//! on terminals too and loses output that begins with a byte below 3, so this one is used for all.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadHalf, WriteHalf};

use super::DockerError;

/// Most bytes that are handed on in one piece.
pub const PIECE: usize = 32 << 10;

/// Where a piece of output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// Standard output, and everything a terminal shows.
    Stdout,
    /// Error output.
    Stderr,
}

/// A piece of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Where it came from.
    pub kind: OutputKind,
    /// The bytes, at least one.
    pub bytes: Bytes,
}

/// A byte stream in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A program started in a container. Dropping it closes the stream; the program itself may live on.
pub struct ExecSession {
    /// Docker's id of the program, for resize, signal and exit code.
    pub id: String,
    /// Its output.
    pub reader: ExecReader,
    /// Its input.
    pub writer: ExecWriter,
}

impl ExecSession {
    /// Wraps an attached byte stream.
    #[must_use]
    pub fn new(id: String, io: Box<dyn Duplex>, has_terminal: bool) -> Self {
        let (read, write) = tokio::io::split(io);
        let decoder = if has_terminal { Decoder::Raw } else { Decoder::between_frames() };
        Self {
            id,
            reader: ExecReader { io: read, buffer: BytesMut::new(), decoder },
            writer: ExecWriter { io: write },
        }
    }
}

/// A program's output.
pub struct ExecReader {
    io: ReadHalf<Box<dyn Duplex>>,
    buffer: BytesMut,
    decoder: Decoder,
}

impl ExecReader {
    /// Returns the next piece, at most [`PIECE`] bytes; nothing at the end. Cancelling loses nothing.
    ///
    /// # Errors
    ///
    /// [`DockerError::Protocol`] when the stream broke or its frames make no sense.
    pub async fn next(&mut self) -> Result<Option<Output>, DockerError> {
        loop {
            if let Some(output) = self.decoder.take(&mut self.buffer)? {
                return Ok(Some(output));
            }
            self.buffer.reserve(PIECE);
            match self.io.read_buf(&mut self.buffer).await {
                Ok(0) if self.buffer.is_empty() => return Ok(None),
                Ok(0) => return Err(broken("it ended inside a frame")),
                Ok(_) => {}
                Err(error) => return Err(broken(&error.to_string())),
            }
        }
    }
}

/// A program's input; shutting it down tells the program that nothing more comes.
pub struct ExecWriter {
    io: WriteHalf<Box<dyn Duplex>>,
}

impl AsyncWrite for ExecWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Takes pieces of output off a buffer.
pub(super) enum Decoder {
    /// Everything is output.
    Raw,
    /// `left` more bytes of the running frame, then the next header.
    Frames {
        /// Where the running frame came from.
        kind: OutputKind,
        /// Bytes left of it.
        left: usize,
    },
}

impl Decoder {
    pub(super) fn between_frames() -> Self {
        Self::Frames { kind: OutputKind::Stdout, left: 0 }
    }

    /// The same by whole frames. One that is longer than any message of Docker's is handed on in pieces
    /// all the same.
    pub(super) fn take_whole(
        &mut self,
        buffer: &mut BytesMut,
    ) -> Result<Option<Output>, DockerError> {
        if let (Self::Frames { left: 0, .. }, Some([_, _, _, _, a, b, c, d])) =
            (&*self, buffer.first_chunk::<8>())
        {
            let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            if length <= PIECE && buffer.len() < 8 + length {
                return Ok(None);
            }
        }
        self.take(buffer)
    }

    /// Returns the next piece of `buffer`; nothing when more bytes are needed. A frame is handed on
    /// as it arrives, so that its length never makes the buffer grow.
    pub(super) fn take(&mut self, buffer: &mut BytesMut) -> Result<Option<Output>, DockerError> {
        loop {
            if buffer.is_empty() {
                return Ok(None);
            }
            let (kind, left) = match self {
                Self::Raw => {
                    let bytes = buffer.split_to(buffer.len().min(PIECE)).freeze();
                    return Ok(Some(Output { kind: OutputKind::Stdout, bytes }));
                }
                Self::Frames { kind, left } => (kind, left),
            };
            if *left > 0 {
                let bytes = buffer.split_to(buffer.len().min(*left).min(PIECE)).freeze();
                *left -= bytes.len();
                return Ok(Some(Output { kind: *kind, bytes }));
            }
            let Some(header) = buffer.first_chunk::<8>().copied() else {
                return Ok(None);
            };
            let [stream, 0, 0, 0, a, b, c, d] = header else {
                return Err(broken("a frame header is not one"));
            };
            *kind = match stream {
                0 | 1 => OutputKind::Stdout,
                2 => OutputKind::Stderr,
                _ => return Err(broken("a frame names an unknown output")),
            };
            *left = u32::from_be_bytes([a, b, c, d]) as usize;
            let _ = buffer.split_to(8);
        }
    }
}

/// Returns how long the time at the beginning of a message is, with the space after it:
/// `2026-01-31T08:30:00.123456789Z `, or with an offset in place of `Z`. 0 when there is none.
#[must_use]
pub fn time_length(message: &[u8]) -> usize {
    let head = message.get(..36.min(message.len())).unwrap_or_default();
    let space = head.iter().position(|byte| *byte == b' ');
    let is_time = head.first().is_some_and(u8::is_ascii_digit) && head.get(10) == Some(&b'T');
    space.filter(|_| is_time).map_or(0, |space| space + 1)
}

fn broken(message: &str) -> DockerError {
    DockerError::Protocol { what: "exec", message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn all(
        has_terminal: bool,
        sent: &[u8],
    ) -> Result<Vec<(OutputKind, Vec<u8>)>, DockerError> {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        far.write_all(sent).await.unwrap();
        drop(far);
        let mut session = ExecSession::new("x".to_owned(), Box::new(near), has_terminal);
        let mut pieces = Vec::new();
        while let Some(piece) = session.reader.next().await? {
            pieces.push((piece.kind, piece.bytes.to_vec()));
        }
        Ok(pieces)
    }

    #[tokio::test]
    async fn terminal_output_is_raw_when_its_first_byte_looks_like_a_frame() {
        let pieces = all(true, b"\x01\x00\x00\x00\xff\xff\xff\xffhello").await.unwrap();

        assert_eq!(
            pieces,
            [(OutputKind::Stdout, b"\x01\x00\x00\x00\xff\xff\xff\xffhello".to_vec())]
        );
    }

    #[tokio::test]
    async fn frames_come_apart_by_output() {
        let sent =
            b"\x01\0\0\0\0\0\0\x02hi\x02\0\0\0\0\0\0\x03err\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x01!";

        let pieces = all(false, sent).await.unwrap();

        assert_eq!(
            pieces,
            [
                (OutputKind::Stdout, b"hi".to_vec()),
                (OutputKind::Stderr, b"err".to_vec()),
                (OutputKind::Stdout, b"!".to_vec()),
            ]
        );
    }

    #[tokio::test]
    async fn a_frame_of_four_gigabytes_is_handed_on_as_it_comes() {
        let pieces = all(false, b"\x01\0\0\0\xff\xff\xff\xffabc").await.unwrap();

        assert_eq!(pieces, [(OutputKind::Stdout, b"abc".to_vec())]);
    }

    #[tokio::test]
    async fn nonsense_and_cut_headers_are_errors() {
        assert!(all(false, b"plain text that is no frame").await.is_err());
        assert!(all(false, b"\x07\0\0\0\0\0\0\x01x").await.is_err());
        assert!(all(false, b"\x01\0\0").await.is_err());
    }
}
