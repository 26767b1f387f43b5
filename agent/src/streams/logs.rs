//! An instance's output.

use futures_util::StreamExt;
use tianqi_common::wire::frame::{self, Limit};
use tianqi_common::wire::stream::{LogFrame, Logs};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use super::{StreamError, Streams, accept, container_of};
use crate::docker::{LogRequest, OutputKind};

/// Most lines from the end.
const MAX_TAIL: u32 = 10_000;

pub(super) async fn serve<R, W>(
    streams: &Streams,
    wanted: Logs,
    reader: &mut R,
    writer: &mut W,
) -> Result<(), StreamError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let docker = streams.docker();
    let container = container_of(&*docker, wanted.instance).await?;
    let request = LogRequest {
        tail: wanted.tail.min(MAX_TAIL),
        follow: wanted.follow,
        timestamps: wanted.timestamps,
    };
    let mut pieces = docker.logs(&container.id, request).await?;
    accept(writer).await?;
    // The controller sends nothing here; the end of its side means that nobody reads any more.
    let mut nothing = [0; 1];
    loop {
        let piece = tokio::select! {
            piece = pieces.next() => piece,
            _ = reader.read(&mut nothing) => return Ok(()),
        };
        let frame = match piece {
            Some(Ok(output)) => match output.kind {
                OutputKind::Stdout => LogFrame::Stdout(output.bytes),
                OutputKind::Stderr => LogFrame::Stderr(output.bytes),
            },
            Some(Err(error)) => LogFrame::Failed { message: error.to_string() },
            None => LogFrame::End,
        };
        frame::write(writer, &frame, Limit::STREAM).await?;
        if matches!(frame, LogFrame::Failed { .. } | LogFrame::End) {
            return Ok(());
        }
    }
}
