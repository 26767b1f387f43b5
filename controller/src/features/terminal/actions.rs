//! Opening a terminal, and what is written down of it.

use axum::extract::ws::WebSocket;
use futures_util::StreamExt as _;
use serde_json::json;
use tianqi_common::wire::stream::{Command, Exec, PtySize, Shell, StreamOpen};

use super::frame::ToBrowser;
use super::pump::{self, Carried, End};
use crate::authz::Grant;
use crate::authz::policy::{InstancesExec, Permission as _};
use crate::authz::resource::InstanceRef;
use crate::authz::watch::{self, InUse, Needs};
use crate::core::audit::{Access, Ending};
use crate::core::error::{Chain, Problem, Result};
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
    let face = (InstancesExec::NAME, "terminal");
    let (doer, instance) = (grant.actor().doer(), grant.resource().id);
    let access = Access::begin(&ctx.db, &ctx.clock.0, doer, face, instance);
    let work = match open(&ctx, &grant, shell, size, &access).await {
        Ok(work) => work,
        Err(problem) => {
            pump::refuse(source, sink, problem.into()).await;
            return;
        }
    };
    let in_use = InUse::default();
    let right = watch::ended(&ctx.authz, &grant, Needs::Running, &in_use, &mut heard);
    let carried = pump::carry(source, sink, work, in_use.clone(), right).await;
    drop(slot);
    if let Err(error) = access.closed(ending(&carried)).await {
        tracing::warn!(error = %Chain(&error), "the end of a terminal is missing from the audit");
    }
}

async fn open(
    ctx: &Ctx,
    grant: &Grant<InstanceRef, InstancesExec>,
    shell: Shell,
    size: PtySize,
    access: &Access,
) -> Result<WorkStream> {
    let exec = Exec {
        instance: grant.resource().id,
        command: Command::Shell(shell),
        pty: Some(size),
        env: Vec::new(),
    };
    match ctx.link.open(grant, StreamOpen::Exec(exec)).await.map_err(Problem::from) {
        Ok(work) => {
            let detail = json!({ "shell": shell, "cols": size.cols, "rows": size.rows });
            access.opened(detail).await?;
            Ok(work)
        }
        Err(problem) => {
            access.refused(problem.code).await?;
            Err(problem)
        }
    }
}

fn ending(carried: &Carried) -> Ending {
    let (reason, exit_code) = match &carried.end {
        End::Program(ToBrowser::Exit { code }) => ("exit", Some(*code)),
        End::Program(ToBrowser::Error { code, .. })
        | End::Refused(ToBrowser::Error { code, .. }) => (code.as_str(), None),
        End::Program(_) | End::Refused(_) => ("failed", None),
        End::BrowserLeft => ("client_left", None),
        End::BrowserSilent => ("client_silent", None),
    };
    Ending {
        reason: reason.to_owned(),
        exit_code,
        bytes_in: carried.bytes_in,
        bytes_out: carried.bytes_out,
    }
}
