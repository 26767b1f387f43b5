//! Carries bytes between a browser and an instance. No parsing, no lock, no SQL per keystroke.

use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tianqi_common::wire::stream::{Command, Exec, ExecFrame, PtySize, Shell, StreamOpen};

use super::frame::{self, ToBrowser};
use crate::authz::policy::{InstancesExec, Permission as _};
use crate::authz::resource::InstanceRef;
use crate::authz::{Grant, watch};
use crate::core::audit::{self, Entry, Outcome};
use crate::core::error::Problem;
use crate::features::Ctx;
use crate::link::{WorkReader, WorkStream, WorkWriter};

/// How often the browser is pinged.
const PING: Duration = Duration::from_secs(30);
/// A browser that says nothing for so long, not even to a ping, is gone.
const SILENCE: Duration = Duration::from_secs(90);
/// How long saying the last word may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// Opens the program and carries bytes until one side ends.
pub(super) async fn run(
    ctx: Ctx,
    grant: Grant<InstanceRef, InstancesExec>,
    socket: WebSocket,
    shell: Shell,
    size: PtySize,
) {
    let mut heard = ctx.events.listen();
    let (mut sink, source) = socket.split();
    let open = StreamOpen::Exec(Exec {
        instance: grant.resource().id,
        command: Command::Shell(shell),
        pty: Some(size),
        env: vec![("TERM".to_owned(), "xterm-256color".to_owned())],
    });
    let stream = match ctx.link.open(&grant, open).await {
        Ok(stream) => stream,
        Err(error) => {
            let problem = Problem::from(error);
            say_last(&mut sink, ToBrowser::error(problem.code, problem.detail)).await;
            return;
        }
    };
    let began = ctx.clock.monotonic();
    if record(&ctx, &grant, json!({ "shell": shell, "cols": size.cols, "rows": size.rows }))
        .await
        .is_err()
    {
        let message = "the terminal could not be written to the audit trail";
        say_last(&mut sink, ToBrowser::error("internal", message)).await;
        return;
    }
    let WorkStream { reader, writer } = stream;
    let last = tokio::select! {
        last = input(source, writer) => last,
        last = output(&mut sink, reader) => last,
        () = watch::ended(&ctx.authz, &grant, &mut heard) => {
            Some(ToBrowser::error("revoked", "the right to this terminal has ended"))
        }
    };
    if let Some(last) = last {
        say_last(&mut sink, last).await;
    }
    let seconds = ctx.clock.monotonic().saturating_sub(began).as_secs();
    // A failure is logged by the map from errors to answers; the terminal is over all the same.
    let _ = record(&ctx, &grant, json!({ "ended_after_s": seconds })).await;
}

async fn record(
    ctx: &Ctx,
    grant: &Grant<InstanceRef, InstancesExec>,
    detail: serde_json::Value,
) -> Result<(), Problem> {
    let doer = grant.actor().doer();
    let entry = Entry {
        doer: &doer,
        action: InstancesExec::NAME,
        target_kind: "instance",
        target_id: grant.resource().id.to_string(),
        outcome: Outcome::Done,
        detail,
    };
    audit::record_alone(&ctx.db, ctx.clock.now(), &entry).await.map_err(Problem::from)
}

/// From the browser to the program. Returns the last word to the browser, if it can still hear one.
async fn input(mut source: SplitStream<WebSocket>, mut writer: WorkWriter) -> Option<ToBrowser> {
    loop {
        let Ok(message) = tokio::time::timeout(SILENCE, source.next()).await else {
            return Some(ToBrowser::error("silent", "nothing was heard of the browser"));
        };
        let frame = match message {
            Some(Ok(Message::Binary(bytes))) => ExecFrame::Stdin(bytes),
            Some(Ok(Message::Text(text))) => match frame::read(&text) {
                Some(size) => ExecFrame::Resize(size),
                None => return Some(ToBrowser::error("bad_frame", "this text is not understood")),
            },
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(Message::Close(_))) | None => return None,
            Some(Err(_)) => return Some(ToBrowser::error("bad_frame", "a frame is too large")),
        };
        if let Err(error) = writer.send(&frame).await {
            let problem = Problem::from(error);
            return Some(ToBrowser::error(problem.code, problem.detail));
        }
    }
}

/// From the program to the browser. Returns the last word.
async fn output(
    sink: &mut SplitSink<WebSocket, Message>,
    mut reader: WorkReader,
) -> Option<ToBrowser> {
    let mut pings = tokio::time::interval(PING);
    loop {
        let next = {
            // A read that was begun is never dropped: it may hold half a frame.
            let next = reader.next::<ExecFrame>();
            tokio::pin!(next);
            loop {
                tokio::select! {
                    frame = &mut next => break frame,
                    _ = pings.tick() => sink.send(Message::Ping(Vec::new().into())).await.ok()?,
                }
            }
        };
        match next {
            Ok(Some(ExecFrame::Stdout(bytes) | ExecFrame::Stderr(bytes))) => {
                sink.send(Message::Binary(bytes)).await.ok()?;
            }
            Ok(Some(ExecFrame::Exit { code })) => return Some(ToBrowser::Exit { code }),
            Ok(Some(ExecFrame::Failed { message })) => {
                return Some(ToBrowser::error("broken", message));
            }
            Ok(Some(
                ExecFrame::Stdin(_)
                | ExecFrame::StdinEnd
                | ExecFrame::Resize(_)
                | ExecFrame::Signal(_),
            )) => {
                return Some(ToBrowser::error("broken", "the agent sent what only it may receive"));
            }
            Ok(None) => {
                return Some(ToBrowser::error("broken", "the stream ended without an exit"));
            }
            Err(error) => {
                let problem = Problem::from(error);
                return Some(ToBrowser::error(problem.code, problem.detail));
            }
        }
    }
}

async fn say_last(sink: &mut SplitSink<WebSocket, Message>, last: ToBrowser) {
    let saying = async {
        // A browser that is gone hears nothing.
        let _ = sink.send(Message::Text(last.text().into())).await;
        let _ = sink.close().await;
    };
    let _ = tokio::time::timeout(GOODBYE, saying).await;
}
