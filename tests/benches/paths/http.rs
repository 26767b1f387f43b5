//! HTTP/1.1 on one open connection, with as little of our own time in the figures as can be.

use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// One connection.
#[derive(Debug)]
pub struct Wire<S> {
    io: S,
    buffer: Vec<u8>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Wire<TcpStream> {
    /// Connects to `address`.
    pub async fn tcp(address: &str) -> std::io::Result<Self> {
        let io = TcpStream::connect(address).await?;
        io.set_nodelay(true)?;
        Ok(Self { io, buffer: Vec::new() })
    }
}

impl Wire<UnixStream> {
    /// Connects to a socket in the file system.
    pub async fn unix(path: &Path) -> std::io::Result<Self> {
        Ok(Self { io: UnixStream::connect(path).await?, buffer: Vec::new() })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Sends a request made by [`request`] and reads the whole answer.
    pub async fn call(&mut self, request: &[u8]) -> std::io::Result<Answer> {
        self.io.write_all(request).await?;
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            self.fill().await?;
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).to_ascii_lowercase();
        let status = head.get(9..12).and_then(|code| code.parse().ok()).expect("a status line");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        assert!(!head.contains("\r\ntransfer-encoding:"), "an answer in chunks: {head}");
        let length = length.map_or(0, |length| length.trim().parse().expect("a length"));
        while self.buffer.len() < end + length {
            self.fill().await?;
        }
        let body = self.buffer[end..end + length].to_vec();
        self.buffer.drain(..end + length);
        Ok(Answer { status, body })
    }

    /// Gives the connection up: its bytes, and what of them was read already.
    pub fn into_parts(self) -> (S, Vec<u8>) {
        (self.io, self.buffer)
    }

    async fn fill(&mut self) -> std::io::Result<()> {
        self.buffer.reserve(64 << 10);
        match self.io.read_buf(&mut self.buffer).await? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// Writes a request; `headers` are whole lines, each with its end.
pub fn request(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let kind = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
    format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\n{headers}{kind}content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}
