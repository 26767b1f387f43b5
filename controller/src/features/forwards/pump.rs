//! Carries a TCP connection between a client and a stream into an instance.
//!
//! Each direction ends by itself, and its end is passed on. A direction holds one buffer; it reads no
//! further until the other side has taken it.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::live::{Meter, Tally, Way};
use crate::link::WorkStream;

/// Bytes that a direction holds.
const BUFFER: usize = 32 << 10;

/// Carries both ways until both have ended.
///
/// # Errors
///
/// Whatever ended a direction before its time; the connection is over then.
pub(super) async fn carry(
    client: TcpStream,
    work: WorkStream,
    meter: &Meter,
    tally: &Tally,
) -> io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let WorkStream { mut writer, mut reader } = work;
    let inwards = one_way(&mut from_client, &mut writer, Way::In, meter, tally);
    let outwards = one_way(&mut reader, &mut to_client, Way::Out, meter, tally);
    tokio::try_join!(inwards, outwards).map(|_| ())
}

async fn one_way<R, W>(
    from: &mut R,
    to: &mut W,
    way: Way,
    meter: &Meter,
    tally: &Tally,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER];
    loop {
        let came = from.read(&mut buffer).await?;
        let bytes = buffer.get(..came).unwrap_or_default();
        if bytes.is_empty() {
            return to.shutdown().await;
        }
        to.write_all(bytes).await?;
        tally.count(meter, way, came);
    }
}
