//! Opening a terminal, and what is written down of it.

use std::time::Duration;

use axum::extract::ws::WebSocket;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tianqi_common::wire::stream::{Command, Exec, PtySize, Shell, StreamOpen};
use uuid::Uuid;

use super::frame::ToBrowser;
use super::pump::{self, Carried, End};
use crate::authz::Grant;
use crate::authz::policy::{InstancesExec, Permission as _};
use crate::authz::resource::InstanceRef;
use crate::authz::watch::{self, InUse, Needs};
use crate::core::audit::{self, Entry, Outcome};
use crate::core::error::{Problem, Result};
use crate::core::slots::Slot;
use crate::features::Ctx;
use crate::link::WorkStream;

/// Who may open what.
#[derive(Debug)]
pub(super) struct Terminal {
    /// The proof.
    pub grant: Grant<InstanceRef, InstancesExec>,
    /// The shell that is preferred.
    pub shell: Shell,
    /// Its size at first.
    pub size: PtySize,
    /// The session's place for it.
    pub slot: Slot,
}

/// Opens the program and carries bytes until one side ends.
pub(super) async fn run(ctx: Ctx, terminal: Terminal, socket: WebSocket) {
    let mut heard = ctx.events.listen();
    let Terminal { grant, shell, size, slot } = terminal;
    let (sink, source) = socket.split();
    // Ties the two rows of one terminal together.
    let id = Uuid::now_v7();
    let work = match open(&ctx, &grant, shell, size, id).await {
        Ok(work) => work,
        Err(problem) => {
            pump::refuse(source, sink, problem.into()).await;
            return;
        }
    };
    let began = ctx.clock.monotonic();
    let in_use = InUse::default();
    let right = watch::ended(&ctx.authz, &grant, Needs::Running, &in_use, &mut heard);
    let carried = pump::carry(source, sink, work, in_use.clone(), right).await;
    drop(slot);
    let duration = ctx.clock.monotonic().saturating_sub(began);
    let detail = closing(id, duration, &carried);
    // A failure is logged by the map from errors to answers; the terminal is over all the same.
    let _ = record(&ctx, &grant, Outcome::Done, detail).await;
}

async fn open(
    ctx: &Ctx,
    grant: &Grant<InstanceRef, InstancesExec>,
    shell: Shell,
    size: PtySize,
    id: Uuid,
) -> Result<WorkStream> {
    let exec = Exec {
        instance: grant.resource().id,
        command: Command::Shell(shell),
        pty: Some(size),
        env: Vec::new(),
    };
    let opened = ctx.link.open(grant, StreamOpen::Exec(exec)).await.map_err(Problem::from);
    let (outcome, event, code) = match &opened {
        Ok(_) => (Outcome::Done, "opened", None),
        Err(problem) => (Outcome::Failed, "refused", Some(problem.code)),
    };
    let detail = json!({
        "event": event, "code": code, "terminal": id, "shell": shell,
        "cols": size.cols, "rows": size.rows,
    });
    record(ctx, grant, outcome, detail).await?;
    opened
}

fn closing(id: Uuid, duration: Duration, carried: &Carried) -> Value {
    let (reason, exit_code) = match &carried.end {
        End::Program(ToBrowser::Exit { code }) => ("exit", Some(*code)),
        End::Program(ToBrowser::Error { code, .. })
        | End::Refused(ToBrowser::Error { code, .. }) => (code.as_str(), None),
        End::Program(_) | End::Refused(_) => ("failed", None),
        End::BrowserLeft => ("client_left", None),
        End::BrowserSilent => ("client_silent", None),
    };
    json!({
        "event": "closed",
        "terminal": id,
        "duration_ms": u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        "reason": reason,
        "exit_code": exit_code,
        "bytes_in": carried.bytes_in,
        "bytes_out": carried.bytes_out,
    })
}

async fn record(
    ctx: &Ctx,
    grant: &Grant<InstanceRef, InstancesExec>,
    outcome: Outcome,
    detail: Value,
) -> Result<()> {
    let doer = grant.actor().doer();
    let entry = Entry {
        doer: &doer,
        action: InstancesExec::NAME,
        target_kind: "instance",
        target_id: grant.resource().id.to_string(),
        outcome,
        detail,
    };
    Ok(audit::record_alone(&ctx.db, ctx.clock.now(), &entry).await?)
}
