//! Length-prefixed postcard frames, each kind with a maximum size.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The most bytes one frame of a kind may have, without its length prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(pub u32);

impl Limit {
    /// `hello`, `join` and their replies.
    pub const HELLO: Self = Self(64 << 10);
    /// Control frames. The largest is the desired state of a node full of instances: 10 000 of
    /// them at 1.5 KiB each fit.
    pub const CONTROL: Self = Self(16 << 20);
    /// One batch of samples.
    pub const TELEMETRY: Self = Self(1 << 20);
    /// The first frame of a work stream and its reply.
    pub const OPEN: Self = Self(256 << 10);
    /// What an agent and a guest say to each other before a stream carries anything.
    pub const GUEST: Self = Self(1 << 10);
    /// One piece of a work stream.
    pub const STREAM: Self = Self(256 << 10);
}

/// Bytes of stream data that a sender puts into one frame at most; well under [`Limit::STREAM`].
pub const CHUNK: usize = 64 << 10;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length prefix is over the limit of this kind.
    #[error("frame of {length} bytes is over the limit of {limit} bytes")]
    TooLong {
        /// Bytes announced, or needed.
        length: u64,
        /// Most bytes allowed.
        limit: u32,
    },
    /// The bytes are not a message of the expected kind.
    #[error("frame does not decode as {kind}")]
    Malformed {
        /// The Rust type that was expected.
        kind: &'static str,
        /// What the decoder said.
        #[source]
        source: postcard::Error,
    },
    /// The stream ended inside a frame.
    #[error("stream ended inside a frame")]
    Truncated,
    /// The stream itself failed.
    #[error("stream failed")]
    Io(#[source] std::io::Error),
}

/// Encodes `message` as one frame with its length prefix.
///
/// # Errors
///
/// [`FrameError::TooLong`] when it is over `limit`.
pub fn encode<T: Serialize>(message: &T, limit: Limit) -> Result<Vec<u8>, FrameError> {
    let mut bytes = postcard::to_extend(message, vec![0; 4])
        .map_err(|source| FrameError::Malformed { kind: std::any::type_name::<T>(), source })?;
    let length = bytes.len() - 4;
    match u32::try_from(length) {
        Ok(length) if length <= limit.0 => {
            if let Some(prefix) = bytes.get_mut(..4) {
                prefix.copy_from_slice(&length.to_le_bytes());
            }
            Ok(bytes)
        }
        _ => Err(FrameError::TooLong { length: length as u64, limit: limit.0 }),
    }
}

/// Decodes the payload of one frame (without its length prefix).
///
/// # Errors
///
/// [`FrameError::Malformed`] when the bytes are not a `T`.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    postcard::from_bytes(payload)
        .map_err(|source| FrameError::Malformed { kind: std::any::type_name::<T>(), source })
}

#[cfg(feature = "wire")]
pub use io::{read, read_payload, write, write_payload};

#[cfg(feature = "wire")]
mod io {
    use serde::Serialize;
    use serde::de::DeserializeOwned;
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

    use super::{FrameError, Limit, decode, encode};

    /// Payloads up to this size are allocated at once; longer ones grow as bytes arrive, so that a
    /// peer cannot reserve memory by announcing a length.
    const TRUSTED_ALLOCATION: usize = 64 << 10;

    /// Reads the payload of one frame; nothing when the stream ended cleanly before it.
    ///
    /// # Errors
    ///
    /// [`FrameError`] when the frame is over `limit`, cut short, or the stream failed.
    pub async fn read_payload<R: AsyncRead + Unpin>(
        reader: &mut R,
        limit: Limit,
    ) -> Result<Option<Vec<u8>>, FrameError> {
        let mut prefix = [0; 4];
        let mut filled = 0;
        while let Some(rest) = prefix.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match reader.read(rest).await.map_err(FrameError::Io)? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(FrameError::Truncated),
                n => filled += n,
            }
        }
        let length = u32::from_le_bytes(prefix);
        if length > limit.0 {
            return Err(FrameError::TooLong { length: u64::from(length), limit: limit.0 });
        }
        let wanted = length as usize;
        let mut payload = Vec::with_capacity(wanted.min(TRUSTED_ALLOCATION));
        reader.take(u64::from(length)).read_to_end(&mut payload).await.map_err(FrameError::Io)?;
        if payload.len() == wanted { Ok(Some(payload)) } else { Err(FrameError::Truncated) }
    }

    /// Reads one message; nothing when the stream ended cleanly before it.
    ///
    /// # Errors
    ///
    /// As [`read_payload`], and [`FrameError::Malformed`].
    pub async fn read<T: DeserializeOwned, R: AsyncRead + Unpin>(
        reader: &mut R,
        limit: Limit,
    ) -> Result<Option<T>, FrameError> {
        match read_payload(reader, limit).await? {
            Some(payload) => decode(&payload).map(Some),
            None => Ok(None),
        }
    }

    /// Writes one message.
    ///
    /// # Errors
    ///
    /// [`FrameError`] when the message is over `limit` or the stream failed.
    pub async fn write<T: Serialize + Sync, W: AsyncWrite + Unpin>(
        writer: &mut W,
        message: &T,
        limit: Limit,
    ) -> Result<(), FrameError> {
        let bytes = encode(message, limit)?;
        writer.write_all(&bytes).await.map_err(FrameError::Io)
    }

    /// Writes bytes that are already a payload, with their length prefix.
    ///
    /// # Errors
    ///
    /// As [`write`].
    pub async fn write_payload<W: AsyncWrite + Unpin>(
        writer: &mut W,
        payload: &[u8],
        limit: Limit,
    ) -> Result<(), FrameError> {
        let too_long = || FrameError::TooLong { length: payload.len() as u64, limit: limit.0 };
        let length = u32::try_from(payload.len()).map_err(|_| too_long())?;
        if length > limit.0 {
            return Err(too_long());
        }
        writer.write_all(&length.to_le_bytes()).await.map_err(FrameError::Io)?;
        writer.write_all(payload).await.map_err(FrameError::Io)
    }
}
