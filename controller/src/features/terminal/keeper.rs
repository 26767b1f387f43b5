//! Looks after terminals that nobody is in: they end with the right to them, or with their time.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::json;
use tianqi_common::wire::stream::{
    Command, Exec, ExecFrame, PtySize, Shell, StreamOpen, Terminal as Wanted,
};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::open::is_the_end;
use super::store::{self, Kept, Of};
use crate::authz::policy::{InstancesExec, Permission as _};
use crate::authz::resource::{InstanceRef, Resource as _};
use crate::authz::watch::{self, Needs};
use crate::core::audit::{self, Doer, Entry, Outcome};
use crate::core::db::{DbError, Tx};
use crate::core::error::{Chain, Problem, Result};
use crate::core::event::Event;
use crate::features::Ctx;
use crate::link::LinkError;

/// How often all are looked at although nothing was heard.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// How long a program may take to end when it is hung up.
const ENDS: Duration = Duration::from_secs(5);
/// Terminals that are looked at side by side: a node that is stuck holds up no others.
const AT_ONCE: usize = 16;
/// How long terminals may take to write down that they were left when the controller ends.
const LEAVE: Duration = Duration::from_secs(3);
const LEAVE_POLL: Duration = Duration::from_millis(50);

/// Notes that nobody is in any terminal, because the controller starts. Called before anybody is let
/// in.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn begin(ctx: &Ctx) -> Result<(), DbError> {
    let left = store::detach_all(&ctx.db, ctx.clock.now()).await?;
    if left > 0 {
        tracing::info!("{left} terminals wait for their pages to come back");
    }
    Ok(())
}

/// Looks after them until the controller ends.
pub async fn run(ctx: Ctx, cancel: CancellationToken) {
    let mut heard = ctx.events.listen();
    let mut look_again = tokio::time::interval(LOOK_AGAIN);
    loop {
        let of = tokio::select! {
            () = cancel.cancelled() => break,
            _ = look_again.tick() => Of::Everybody,
            event = heard.recv() => match event {
                Ok(Event::Instance(id)) => Of::Instance(id),
                Ok(Event::Revoked(user)) => Of::User(user),
                Ok(Event::Roles) | Err(RecvError::Lagged(_)) => Of::Everybody,
                Ok(
                    Event::Node(_) | Event::Drain(_) | Event::Catalogue | Event::Forward(_),
                ) => continue,
                Err(RecvError::Closed) => break,
            },
        };
        if let Err(problem) = review(&ctx, of).await {
            tracing::warn!(error = %problem.detail, "terminals were not looked at this time");
        }
    }
    // The link ends now, and every terminal with it; they are left, and say so in the audit.
    let left = async {
        while store::attached(&ctx.db).await.is_ok_and(|count| count > 0) {
            tokio::time::sleep(LEAVE_POLL).await;
        }
    };
    let _ = tokio::time::timeout(LEAVE, left).await;
}

/// Ends those that nobody may come back to.
pub(super) async fn review(ctx: &Ctx, of: Of) -> Result<()> {
    let all = store::detached(&ctx.db, of).await?;
    let looks = futures_util::stream::iter(all);
    looks.for_each_concurrent(AT_ONCE, |kept| async move { look(ctx, kept).await }).await;
    Ok(())
}

async fn look(ctx: &Ctx, kept: Kept) {
    let ended = match why_not(ctx, &kept).await {
        Some(reason) => end(ctx, &Doer::system(), &kept, reason).await,
        None => return,
    };
    if let Err(problem) = ended {
        tracing::warn!(error = %problem.detail, "a terminal that should end is still kept");
    }
}

/// Returns why a terminal is kept no longer, if it is not.
async fn why_not(ctx: &Ctx, kept: &Kept) -> Option<&'static str> {
    if !kept.is_alive(ctx.clock.now()) {
        return Some("expired");
    }
    let (user, instance) = (kept.user, kept.instance);
    let stands =
        watch::account_may::<InstancesExec>(&ctx.authz, user, instance, Needs::Running).await;
    // A database that does not answer ends nothing: the next look decides.
    stands.err().filter(|problem| problem.status.is_client_error()).map(|problem| problem.code)
}

/// Ends one for `doer`; returns whether it was there. Its row goes first: whoever is sent away by
/// the agent finds it gone, and nobody comes back meanwhile.
pub(super) async fn end(ctx: &Ctx, doer: &Doer, kept: &Kept, reason: &str) -> Result<bool> {
    let mut tx = ctx.db.begin().await?;
    if !forget(ctx, &mut tx, doer, kept, reason).await? {
        return Ok(false);
    }
    tx.commit().await?;
    if kept.is_alive(ctx.clock.now()) {
        note(hang_up(ctx, kept).await);
    }
    Ok(true)
}

/// Takes the row of a terminal that ends without its page, and writes that it does. Returns whether
/// it was there.
pub(super) async fn forget(
    ctx: &Ctx,
    tx: &mut Tx,
    doer: &Doer,
    kept: &Kept,
    reason: &str,
) -> Result<bool, DbError> {
    if !store::remove(tx, kept.id).await? {
        return Ok(false);
    }
    let entry = Entry {
        doer,
        action: InstancesExec::NAME,
        target_kind: "instance",
        target_id: kept.instance.to_string(),
        outcome: Outcome::Done,
        detail: json!({
            "event": "ended", "face": "terminal", "terminal": kept.id, "reason": reason,
            "user_id": kept.user,
        }),
    };
    audit::record(tx, ctx.clock.now(), &entry).await?;
    Ok(true)
}

/// Ends the program of a terminal, whoever is in it. One that is gone already is fine.
///
/// # Errors
///
/// Why the node could not be reached; its agent ends the program by itself when nobody comes back.
async fn hang_up(ctx: &Ctx, kept: &Kept) -> Result<()> {
    let id = kept.instance;
    let instance = InstanceRef::find(&ctx.db, Some(&id.to_string())).await?;
    let Some(node) = instance.node else { return Ok(()) };
    let exec = Exec {
        instance: id,
        command: Command::Shell(Shell::default()),
        pty: Some(PtySize { cols: 80, rows: 24 }),
        env: Vec::new(),
    };
    let wanted = StreamOpen::Terminal(Wanted { exec, id: kept.id, resume: Some(0) });
    let mut work = match ctx.link.open_on_node(node, wanted).await {
        Ok(work) => work,
        Err(LinkError::Refused { code, .. }) if is_the_end(code) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    work.writer.send(&ExecFrame::Hangup).await?;
    let ended = async {
        // What it showed before comes first.
        while let Ok(Some(frame)) = work.reader.next::<ExecFrame>().await {
            if matches!(frame, ExecFrame::Exit { .. } | ExecFrame::Failed { .. }) {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(ENDS, ended).await;
    Ok(())
}

/// The same, beside what goes on.
pub(super) fn hang_up_soon(ctx: &Ctx, kept: Kept) {
    let ctx = ctx.clone();
    tokio::spawn(async move { note(hang_up(&ctx, &kept).await) });
}

fn note(hung_up: Result<()>) {
    if let Err(Problem { detail, .. }) = hung_up {
        tracing::info!("a terminal ends by itself, because its node does not answer: {detail}");
    }
}

/// Writes that somebody has gone from a terminal. What cannot be written is mended at the next start.
pub(super) fn noted(done: Result<(), DbError>) {
    if let Err(error) = done {
        tracing::warn!(error = %Chain(&error), "a terminal that was left still counts as in use");
    }
}
