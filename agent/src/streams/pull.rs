//! Fetching an image, with progress.

use std::time::Duration;

use futures_util::StreamExt;
use tianqi_common::wire::frame::{self, Limit};
use tianqi_common::wire::stream::{Pull, PullFrame, StreamRefusal};
use tokio::io::AsyncReadExt;

use super::{Sink, Source, StreamError, Streams, accept};

/// Progress is told at most this often; Docker tells it hundreds of times a second.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// Longest image reference.
const MAX_REFERENCE: usize = 500;

pub(super) async fn serve(
    streams: &Streams,
    wanted: Pull,
    reader: &mut impl Source,
    writer: &mut impl Sink,
) -> Result<(), StreamError> {
    if wanted.image.is_empty() || wanted.image.len() > MAX_REFERENCE {
        let message = format!("an image reference has 1 to {MAX_REFERENCE} characters");
        return Err(StreamError::Refused(StreamRefusal::BadRequest, message));
    }
    let docker = streams.docker();
    accept(writer).await?;
    let last = match docker.pull(&wanted.image, wanted.credentials).await {
        Err(error) => PullFrame::Failed { message: error.to_string() },
        Ok(mut pieces) => {
            // The controller sends nothing here; the end of its side means that it gave up.
            let mut nothing = [0; 1];
            let mut told_at = None;
            loop {
                let piece = tokio::select! {
                    piece = pieces.next() => piece,
                    _ = reader.read(&mut nothing) => return Ok(()),
                };
                let progress = match piece {
                    Some(Ok(progress)) => progress,
                    Some(Err(error)) => break PullFrame::Failed { message: error.to_string() },
                    None => break PullFrame::Done,
                };
                let now = streams.clock.monotonic();
                if told_at.is_some_and(|at| now.saturating_sub(at) < PROGRESS_EVERY) {
                    continue;
                }
                told_at = Some(now);
                let frame = PullFrame::Progress {
                    done_bytes: progress.done_bytes,
                    total_bytes: progress.total_bytes,
                    status: progress.status,
                };
                frame::write(writer, &frame, Limit::STREAM).await?;
            }
        }
    };
    if last == PullFrame::Done {
        streams.pulled.notify_one();
    }
    Ok(frame::write(writer, &last, Limit::STREAM).await?)
}
