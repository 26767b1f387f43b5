//! An instance's output as a stream of bytes.

use axum::body::{Body, Bytes};
use serde::Deserialize;
use tianqi_common::wire::stream::{LogFrame, Logs, StreamOpen};
use tokio::sync::mpsc;
use utoipa::IntoParams;

use crate::authz::policy::InstancesLogs;
use crate::authz::resource::InstanceRef;
use crate::authz::{Grant, watch};
use crate::core::error::{Problem, Result};
use crate::features::Ctx;
use crate::link::WorkReader;

/// Lines from the end when the caller does not say.
const TAIL: u32 = 200;
/// Most lines from the end.
const TAIL_MAX: u32 = 10_000;
/// Pieces that wait for a slow reader; when full, the agent waits, and Docker with it.
const QUEUE: usize = 16;

/// Which output is wanted.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LogQuery {
    /// Lines from the end, 0 to 10 000; 200 when left out.
    tail: Option<u32>,
    /// Whether to go on with what comes.
    follow: Option<bool>,
    /// Whether each line begins with its time.
    timestamps: Option<bool>,
}

/// Opens the output of an instance. Output and error come in one stream, as they were written.
pub(super) async fn open(
    ctx: &Ctx,
    grant: Grant<InstanceRef, InstancesLogs>,
    query: &LogQuery,
) -> Result<Body> {
    let tail = query.tail.unwrap_or(TAIL);
    if tail > TAIL_MAX {
        let detail = format!("tail is at most {TAIL_MAX}, not {tail}");
        return Err(Problem::invalid("bad_tail", detail));
    }
    let heard = ctx.events.listen();
    let open = StreamOpen::Logs(Logs {
        instance: grant.resource().id,
        tail,
        follow: query.follow.unwrap_or(false),
        timestamps: query.timestamps.unwrap_or(false),
    });
    let stream = ctx.link.open(&grant, open).await?;
    let (pieces, body) = mpsc::channel(QUEUE);
    let authz = ctx.authz.clone();
    tokio::spawn(async move {
        // Keeps the agent's side open until the end.
        let _writer = stream.writer;
        let mut heard = heard;
        tokio::select! {
            () = pump(stream.reader, &pieces) => {}
            () = watch::ended(&authz, &grant, &mut heard) => {}
            () = pieces.closed() => {}
        }
    });
    let stream = futures_util::stream::unfold(body, |mut body| async move {
        body.recv().await.map(|piece| (piece, body))
    });
    Ok(Body::from_stream(stream))
}

async fn pump(mut reader: WorkReader, pieces: &mpsc::Sender<std::io::Result<Bytes>>) {
    loop {
        let piece = match reader.next::<LogFrame>().await {
            Ok(Some(LogFrame::Stdout(bytes) | LogFrame::Stderr(bytes))) => Ok(bytes),
            Ok(Some(LogFrame::End) | None) => return,
            Ok(Some(LogFrame::Failed { message })) => Err(std::io::Error::other(message)),
            Err(error) => Err(std::io::Error::other(error.to_string())),
        };
        let is_last = piece.is_err();
        if pieces.send(piece).await.is_err() || is_last {
            return;
        }
    }
}
