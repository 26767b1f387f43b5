//! An instance's output as a stream of bytes.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use serde::Deserialize;
use tianqi_common::wire::stream::{LogFrame, Logs, StreamOpen};
use tokio::sync::broadcast::Receiver;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::store;
use crate::authz::policy::{InstancesLogs, Permission as _};
use crate::authz::resource::{InstanceRef, Resource as _};
use crate::authz::watch::{self, InUse, Needs};
use crate::authz::{Authz, Grant};
use crate::core::audit::{Access, Ending};
use crate::core::error::{Chain, Problem, Result};
use crate::core::event::Event;
use crate::core::slots::Slots;
use crate::features::Ctx;
use crate::link::{WorkReader, WorkStream};

/// Lines from the end when the caller does not say.
const TAIL: u32 = 100;
/// Most lines from the end.
const TAIL_MAX: u32 = 10_000;
/// Pieces that wait for a slow reader; when full, the agent waits, and Docker with it.
const QUEUE: usize = 16;
/// Outputs that a session may read at once.
pub(super) const PER_SESSION: usize = 16;
/// How long the last line may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Which output is wanted.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LogQuery {
    /// Lines from the end, 0 to 10 000; 100 when left out.
    tail: Option<u32>,
    /// Whether to go on with what comes.
    follow: Option<bool>,
    /// Whether each line begins with its time.
    timestamps: Option<bool>,
}

/// Opens the output of an instance. Output and error come in one stream, as they were written; what
/// ends it before its end is said in a last line that begins with `[tianqi]`.
pub(super) async fn open(
    ctx: &Ctx,
    grant: Grant<InstanceRef, InstancesLogs>,
    query: &LogQuery,
    slots: &Slots,
) -> Result<Body> {
    let tail = query.tail.unwrap_or(TAIL);
    if tail > TAIL_MAX {
        let detail = format!("tail is at most {TAIL_MAX}, not {tail}");
        return Err(Problem::invalid("bad_tail", detail));
    }
    let slot = slots.take(grant.actor().session).ok_or_else(|| {
        let detail = format!("this session reads {PER_SESSION} outputs already; end one");
        Problem::too_many("too_many_streams", detail)
    })?;
    let heard = ctx.events.listen();
    let follow = query.follow.unwrap_or(false);
    let timestamps = query.timestamps.unwrap_or(false);
    let logs = Logs { instance: grant.resource().id, tail, follow, timestamps };
    if grant.resource().node.is_none() {
        return Err(not_placed(ctx, &grant).await?);
    }
    let (doer, face) = (grant.actor().doer(), (InstancesLogs::NAME, "logs"));
    let access = Access::begin(&ctx.db, &ctx.clock.0, doer, face, logs.instance);
    let stream = match ctx.link.open(&grant, StreamOpen::Logs(logs)).await.map_err(Problem::from) {
        Ok(stream) => stream,
        Err(problem) => {
            access.refused(problem.code).await?;
            return Err(problem);
        }
    };
    access.opened(serde_json::json!({ "tail": tail, "follow": follow })).await?;
    let (pieces, body) = mpsc::channel(QUEUE);
    let carry = carry(ctx.authz.clone(), grant, heard, stream, pieces);
    tokio::spawn(async move {
        let ending = carry.await;
        drop(slot);
        if let Err(error) = access.closed(ending).await {
            tracing::warn!(error = %Chain(&error), "the end of an output is missing from the audit");
        }
    });
    let pieces = futures_util::stream::unfold(body, |mut body| async move {
        body.recv().await.map(|piece| (Ok::<_, Infallible>(piece), body))
    });
    Ok(Body::from_stream(pieces))
}

async fn not_placed(ctx: &Ctx, grant: &Grant<InstanceRef, InstancesLogs>) -> Result<Problem> {
    let instance = store::get(&ctx.db, grant.resource().id).await?;
    let instance = instance.ok_or_else(InstanceRef::missing)?;
    let (phase, why) = (instance.state.phase.as_str(), instance.why.text);
    let because = if why.is_empty() { String::new() } else { format!(": {why}") };
    let detail = format!("there is no output: the instance is {phase}, on no node{because}");
    Ok(Problem::conflict("not_placed", detail))
}

/// Carries output until it ends, the reader goes, or the right to it ends.
async fn carry(
    authz: Authz,
    grant: Grant<InstanceRef, InstancesLogs>,
    mut heard: Receiver<Event>,
    stream: WorkStream,
    pieces: mpsc::Sender<Bytes>,
) -> Ending {
    // Keeps the agent's side open until the end.
    let _writer = stream.writer;
    let mut bytes_out = 0;
    // Output that runs through says nothing of whether anybody looks at it.
    let reading = InUse::default();
    let (reason, why) = tokio::select! {
        ended = pump(stream.reader, &pieces, &mut bytes_out) => ended,
        problem = watch::ended(&authz, &grant, Needs::Existence, &reading, &mut heard) => {
            (problem.code, Some(problem.detail))
        }
        () = pieces.closed() => ("client_left", None),
    };
    if let Some(why) = why {
        let line = format!("\n[tianqi] {why}\n");
        // A reader that does not read is not waited for.
        let _ = tokio::time::timeout(GOODBYE, pieces.send(line.into())).await;
    }
    Ending { reason: reason.to_owned(), bytes_out, ..Ending::default() }
}

/// Returns in one word how the output ended, and in a sentence why it broke off, if it did.
async fn pump(
    mut reader: WorkReader,
    pieces: &mpsc::Sender<Bytes>,
    bytes_out: &mut u64,
) -> (&'static str, Option<String>) {
    loop {
        let bytes = match reader.next::<LogFrame>().await {
            Ok(Some(LogFrame::Stdout(bytes) | LogFrame::Stderr(bytes))) => bytes,
            Ok(Some(LogFrame::End)) => return ("end", None),
            Ok(Some(LogFrame::Failed { message })) => return ("failed", Some(message)),
            Ok(None) => return ("node_lost", Some("the connection to the node ended".to_owned())),
            Err(error) => return ("node_lost", Some(error.to_string())),
        };
        let length = bytes.len() as u64;
        if pieces.send(bytes).await.is_err() {
            return ("client_left", None);
        }
        *bytes_out += length;
    }
}
