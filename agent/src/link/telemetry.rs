//! Samples: one stream of their own, so that slow charts never delay control.

use quinn::Connection;
use tianqi_common::wire::frame::{self, FrameError, Limit};
use tianqi_common::wire::telemetry::SampleBatch;
use tokio::sync::mpsc;

/// Sends batches until the stream fails; returns why.
pub(super) async fn send(
    quic: &Connection,
    samples: &mut mpsc::Receiver<SampleBatch>,
) -> FrameError {
    let mut stream = match quic.open_uni().await {
        Ok(stream) => stream,
        Err(error) => return FrameError::Io(error.into()),
    };
    while let Some(batch) = samples.recv().await {
        match frame::write(&mut stream, &batch, Limit::TELEMETRY).await {
            Ok(()) => {}
            Err(error @ FrameError::TooLong { .. }) => {
                tracing::error!(%error, "a batch of samples was not sent");
            }
            Err(error) => return error,
        }
    }
    // Nobody samples any more; the rest of the connection goes on.
    std::future::pending().await
}
