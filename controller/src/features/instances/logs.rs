//! An instance's output as a stream of bytes.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use serde_json::{Value, json};
use tianqi_common::wire::stream::{LogFrame, LogQuery as Wanted, StreamOpen, StreamRefusal};
use tokio::sync::broadcast::Receiver;
use tokio::sync::mpsc;

use super::log_query::{LogQuery, in_old_words};
use super::store;
use crate::authz::policy::{InstancesLogs, Permission as _};
use crate::authz::resource::{InstanceRef, Resource as _};
use crate::authz::watch::{self, InUse, Needs};
use crate::authz::{Authz, Grant};
use crate::core::audit::{Access, Ending};
use crate::core::error::{Chain, Problem, Result};
use crate::core::event::Event;
use crate::core::slots::Slots;
use crate::core::timestamp::Timestamp;
use crate::features::Ctx;
use crate::link::{LinkError, WorkReader, WorkStream};

/// Pieces that wait for a slow reader; when full, the agent waits, and Docker with it.
const QUEUE: usize = 16;
/// Outputs that a session may read at once.
pub(super) const PER_SESSION: usize = 16;
/// How long the last line may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Opens the output of an instance. Output and error come in one stream, as they were written; what
/// ends it before its end is said in a last line that begins with `[tianqi]`.
pub(super) async fn open(
    ctx: &Ctx,
    grant: Grant<InstanceRef, InstancesLogs>,
    query: &LogQuery,
    slots: &Slots,
) -> Result<Body> {
    let wanted = query.check(grant.resource().id, ctx.clock.now())?;
    let slot = slots.take(grant.actor().session).ok_or_else(|| {
        let detail = format!("this session reads {PER_SESSION} outputs already; end one");
        Problem::too_many("too_many_streams", detail)
    })?;
    let heard = ctx.events.listen();
    let (doer, face) = (grant.actor().doer(), (InstancesLogs::NAME, "logs"));
    let access = Access::begin(&ctx.db, &ctx.clock.0, doer, face, wanted.instance);
    let detail = detail(&wanted, query.is_download());
    let stream = match stream(ctx, &grant, wanted).await {
        Ok(stream) => stream,
        Err(problem) => {
            access.refused(problem.code).await?;
            return Err(problem);
        }
    };
    access.opened(detail).await?;
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

/// What the audit says of a reading. What was searched for may be somebody's secret.
fn detail(wanted: &Wanted, is_download: bool) -> Value {
    json!({
        "tail": wanted.tail, "follow": wanted.follow, "download": is_download,
        "since": wanted.since.map(Timestamp), "until": wanted.until.map(Timestamp),
        "searched": !wanted.search.is_empty(),
    })
}

/// Opens the stream; an agent of before is asked in its own words where it has some.
async fn stream(
    ctx: &Ctx,
    grant: &Grant<InstanceRef, InstancesLogs>,
    wanted: Wanted,
) -> Result<WorkStream> {
    if grant.resource().node.is_none() {
        return Err(not_placed(ctx, grant).await?);
    }
    let old = in_old_words(&wanted);
    match (ctx.link.open(grant, StreamOpen::LogQuery(wanted)).await, old) {
        (Err(LinkError::Refused { code: StreamRefusal::Unsupported, .. }), Some(old)) => {
            Ok(ctx.link.open(grant, StreamOpen::Logs(old)).await?)
        }
        (opened, _) => Ok(opened?),
    }
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
