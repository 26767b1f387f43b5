//! The verbs: open, come back, list, hang up; and what is written down of them.

use axum::extract::ws::WebSocket;
use futures_util::StreamExt;
use futures_util::stream::SplitStream;
use serde_json::json;
use tianqi_common::id::TerminalId;
use tianqi_common::wire::stream::{PtySize, Shell};
use uuid::Uuid;

use super::frame::{GONE, TAKEN_OVER, ToBrowser};
use super::goodbye;
use super::model::TerminalView;
use super::open::{self, Opened};
use super::pump::{self, Carried, End};
use super::{keeper, store};
use crate::authz::Grant;
use crate::authz::policy::{InstancesExec, Permission as _};
use crate::authz::resource::InstanceRef;
use crate::authz::watch::{self, InUse, Needs};
use crate::core::audit::{Access, Ending};
use crate::core::error::{Chain, Problem, Result};
use crate::core::page::{Page, PageQuery};
use crate::core::slots::Slot;
use crate::features::Ctx;

const SORTS: &[(&str, &str)] = &[("created_at", "created_at"), ("detached_at", "detached_at")];

/// Who opens what.
#[derive(Debug)]
pub(super) struct Terminal {
    /// The proof.
    pub grant: Grant<InstanceRef, InstancesExec>,
    /// The shell that is preferred; nothing when somebody comes back to one.
    pub shell: Option<Shell>,
    /// Its size at first.
    pub size: PtySize,
    /// The session's place for it.
    pub slot: Slot,
}

/// Opens the program, or comes back to it, and carries bytes until one side ends.
pub(super) async fn run(ctx: Ctx, terminal: Terminal, socket: WebSocket) {
    let mut heard = ctx.events.listen();
    let (sink, mut source) = socket.split();
    let face = (InstancesExec::NAME, "terminal");
    let (doer, instance) = (terminal.grant.actor().doer(), terminal.grant.resource().id);
    let access = Access::begin(&ctx.db, &ctx.clock.0, doer, face, instance);
    let Opened { line, kept, .. } = match open(&ctx, &terminal, &mut source, &access).await {
        Ok(Some(opened)) => opened,
        Ok(None) => return,
        Err(word) => return goodbye::refuse(source, sink, word).await,
    };
    let Terminal { grant, slot, .. } = terminal;
    let in_use = InUse::default();
    let right = watch::ended(&ctx.authz, &grant, Needs::Running, &in_use, &mut heard);
    let lost = |word| why_lost(&ctx, kept, word);
    let carried = pump::carry(source, sink, line, in_use.clone(), right, lost).await;
    drop(slot);
    if let Err(error) = access.closed(ending(&carried, kept.is_some())).await {
        tracing::warn!(error = %Chain(&error), "the end of a terminal is missing from the audit");
    }
    if let Some(kept) = kept {
        leave(&ctx, kept, &carried).await;
    }
}

/// Opens what was asked for; nothing when the page went away before it said what.
async fn open(
    ctx: &Ctx,
    terminal: &Terminal,
    source: &mut SplitStream<WebSocket>,
    access: &Access,
) -> Result<Option<Opened>, ToBrowser> {
    let Terminal { grant, shell, size, .. } = terminal;
    let opened = match shell {
        Some(shell) => open::start(ctx, grant, *shell, *size).await,
        None => match goodbye::ticket(source).await? {
            Some(attach) => open::come_back(ctx, grant, &attach, *size).await,
            None => return Ok(None),
        },
    };
    let written = match &opened {
        Ok(opened) => access.opened(detail(opened, terminal)).await,
        Err(problem) => access.refused(problem.code).await,
    };
    match (opened, written) {
        (Ok(opened), Ok(())) => Ok(Some(opened)),
        (Err(problem), Ok(())) => Err(problem.into()),
        (opened, Err(error)) => {
            // Nobody is let in without a row. A kept program waits for who comes back.
            if let Ok(Opened { kept: Some((id, attachment)), .. }) = opened {
                keeper::noted(store::detach(&ctx.db, id, attachment, ctx.clock.now()).await);
            }
            Err(Problem::from(error).into())
        }
    }
}

fn detail(opened: &Opened, terminal: &Terminal) -> serde_json::Value {
    json!({
        "shell": opened.shell, "cols": terminal.size.cols, "rows": terminal.size.rows,
        "terminal": opened.kept.map(|(id, _)| id), "offset": opened.offset,
        "resumed": terminal.shell.is_none(),
    })
}

/// Says why the way to a kept program ended: others may have taken it, or ended it.
async fn why_lost(ctx: &Ctx, kept: Option<(TerminalId, Uuid)>, word: ToBrowser) -> ToBrowser {
    let Some((id, attachment)) = kept else { return word };
    match store::get(&ctx.db, id).await {
        Ok(Some(row)) if row.attachment == attachment => word,
        Ok(Some(_)) => ToBrowser::error("taken_over", TAKEN_OVER),
        Ok(None) => ToBrowser::error("terminal_gone", GONE),
        Err(_) => word,
    }
}

/// Writes down what becomes of a kept program whose page has gone, and ends it where it must.
async fn leave(ctx: &Ctx, (id, attachment): (TerminalId, Uuid), carried: &Carried) {
    let is_over = matches!(carried.end, End::Program(_) | End::RightEnded(_)) || carried.is_hung_up;
    if !is_over {
        return keeper::noted(store::detach(&ctx.db, id, attachment, ctx.clock.now()).await);
    }
    // Whoever took it over decides what becomes of it.
    let row = store::get(&ctx.db, id).await.ok().flatten();
    let Some(kept) = row.filter(|row| row.attachment == attachment) else { return };
    keeper::noted(store::forget(&ctx.db, id).await);
    // A stream that was stuck could not carry the word.
    if matches!(carried.end, End::RightEnded(_)) && !carried.is_hung_up {
        keeper::hang_up_soon(ctx, kept);
    }
}

fn ending(carried: &Carried, is_kept: bool) -> Ending {
    let (reason, exit_code) = match &carried.end {
        End::Program(ToBrowser::Exit { code }) => ("exit", Some(*code)),
        End::Program(ToBrowser::Error { code, .. })
        | End::Lost(ToBrowser::Error { code, .. })
        | End::Refused(ToBrowser::Error { code, .. })
        | End::RightEnded(ToBrowser::Error { code, .. }) => (code.as_str(), None),
        End::Program(_) | End::Lost(_) | End::Refused(_) | End::RightEnded(_) => ("failed", None),
        End::BrowserLeft | End::HungUp if carried.is_hung_up => ("hung_up", None),
        End::HungUp => ("hung_up", None),
        End::BrowserLeft | End::BrowserSilent if is_kept => ("detached", None),
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

/// Lists the caller's kept terminals in an instance.
///
/// # Errors
///
/// `bad_page` and `bad_sort` (422).
pub(super) async fn list(
    ctx: &Ctx,
    grant: &Grant<InstanceRef, InstancesExec>,
    query: &PageQuery,
) -> Result<Page<TerminalView>> {
    let paging = query.check(SORTS, "created_at", "id")?;
    let whose = (grant.actor().id, grant.resource().id);
    let (rows, total) = store::page(&ctx.db, whose, ctx.clock.now(), &paging).await?;
    Ok(paging.page(rows.into_iter().map(TerminalView::from).collect(), total))
}

/// Ends the program of one of the caller's terminals, wherever it is open. When its node does not
/// answer, its agent ends it as one to which nobody came back.
///
/// # Errors
///
/// `no_such_terminal` (404).
pub(super) async fn hang_up(
    ctx: &Ctx,
    grant: &Grant<InstanceRef, InstancesExec>,
    id: TerminalId,
) -> Result<()> {
    let (user, instance) = (grant.actor().id, grant.resource().id);
    let found = store::get(&ctx.db, id).await?;
    let is_theirs = |it: &store::Kept| it.user == user && it.instance == instance;
    let kept = found.filter(is_theirs).ok_or_else(no_such_terminal)?;
    if keeper::end(ctx, &grant.actor().doer(), &kept, "hung_up").await? {
        Ok(())
    } else {
        Err(no_such_terminal())
    }
}

fn no_such_terminal() -> Problem {
    Problem::not_found("no_such_terminal", "there is no such terminal; it may have ended")
}
