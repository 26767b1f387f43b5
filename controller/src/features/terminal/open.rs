//! Opening a program, kept where its node can keep it, and coming back to one.

use std::time::Duration;

use tianqi_common::id::TerminalId;
use tianqi_common::wire::stream::{
    Command, Exec, ExecFrame, PtySize, Shell, StreamOpen, StreamRefusal, TERMINAL_KEPT_S,
    Terminal as Wanted,
};
use uuid::Uuid;

use super::frame::{Attach, GONE, Return, ToBrowser};
use super::pump::Line;
use super::store::{self, Kept};
use super::ticket::Ticket;
use super::{PER_ACCOUNT, keeper};
use crate::authz::Grant;
use crate::authz::policy::InstancesExec;
use crate::authz::resource::InstanceRef;
use crate::core::audit::Doer;
use crate::core::error::{Problem, Result};
use crate::features::Ctx;
use crate::link::{LinkError, WorkStream};

/// How long the first frame of a kept program may take.
const FIRST: Duration = Duration::from_secs(10);

/// A program that is open.
#[derive(Debug)]
pub(super) struct Opened {
    /// What is carried.
    pub line: Line,
    /// The shell that was asked for.
    pub shell: Shell,
    /// Where its output stands.
    pub offset: u64,
    /// Which kept terminal it is, and who is attached to it; nothing when it is not kept.
    pub kept: Option<(TerminalId, Uuid)>,
}

type ExecGrant = Grant<InstanceRef, InstancesExec>;

/// Starts a shell.
///
/// # Errors
///
/// `too_many_terminals` (429) when the account has as many as it may and is in all of them, and
/// why the node cannot be reached or refuses.
pub(super) async fn start(
    ctx: &Ctx,
    grant: &ExecGrant,
    shell: Shell,
    size: PtySize,
) -> Result<Opened> {
    let exec = exec(grant, shell, size);
    let id = TerminalId::new();
    let wanted = Wanted { exec: exec.clone(), id, resume: None };
    match ctx.link.open(grant, StreamOpen::Terminal(wanted)).await {
        Ok(mut work) => {
            let offset = position(&mut work).await?;
            let ticket = Ticket::random();
            let kept = Kept {
                id,
                instance: grant.resource().id,
                user: grant.actor().id,
                ticket_hash: ticket.hash(),
                attachment: Uuid::now_v7(),
                shell,
                created_at: ctx.clock.now(),
                detached_at: None,
            };
            if let Err(problem) = keep(ctx, &kept).await {
                // Nobody could come back to it, so it ends here. It is new and takes its input.
                let _ = work.writer.send(&ExecFrame::Hangup).await;
                return Err(problem);
            }
            Ok(opened(work, &kept, ticket, offset, false))
        }
        Err(LinkError::Refused { code: StreamRefusal::Unsupported, .. }) => {
            let work = ctx.link.open(grant, StreamOpen::Exec(exec)).await?;
            let line = Line { work, opened: ToBrowser::opened(), is_kept: false };
            Ok(Opened { line, shell, offset: 0, kept: None })
        }
        Err(error) => Err(error.into()),
    }
}

/// Comes back by a ticket, which is worth nothing afterwards.
///
/// # Errors
///
/// `terminal_gone` (409) whatever is wrong with the ticket, and why the node cannot be reached: then
/// the ticket stays good.
pub(super) async fn come_back(
    ctx: &Ctx,
    grant: &ExecGrant,
    attach: &Attach,
    size: PtySize,
) -> Result<Opened> {
    let (user, instance, now) = (grant.actor().id, grant.resource().id, ctx.clock.now());
    let found = store::by_ticket(&ctx.db, &attach.ticket).await?;
    let is_theirs = |it: &Kept| it.user == user && it.instance == instance && it.is_alive(now);
    let before = found.filter(is_theirs).ok_or_else(gone)?;
    let (ticket, attachment) = (Ticket::random(), Uuid::now_v7());
    // The row says first who is there: whoever is sent away by the agent finds it changed.
    if !store::attach(&ctx.db, &before, &ticket, attachment).await? {
        return Err(gone());
    }
    let seen = attach.offset.unwrap_or(0);
    match resume(ctx, grant, &before, seen, size).await {
        Ok((work, offset)) => {
            let kept = Kept { attachment, ..before };
            Ok(opened(work, &kept, ticket, offset, true))
        }
        Err(problem) if problem.code == "terminal_gone" => {
            store::forget(&ctx.db, before.id).await?;
            Err(problem)
        }
        Err(problem) => {
            store::put_back(&ctx.db, &before, attachment, ctx.clock.now()).await?;
            Err(problem)
        }
    }
}

async fn resume(
    ctx: &Ctx,
    grant: &ExecGrant,
    kept: &Kept,
    seen: u64,
    size: PtySize,
) -> Result<(WorkStream, u64)> {
    let exec = exec(grant, kept.shell, size);
    let wanted = Wanted { exec, id: kept.id, resume: Some(seen) };
    let mut work = match ctx.link.open(grant, StreamOpen::Terminal(wanted)).await {
        Ok(work) => work,
        Err(LinkError::Refused { code, .. }) if is_the_end(code) => return Err(gone()),
        Err(LinkError::NotPlaced(_)) => return Err(gone()),
        Err(error) => return Err(error.into()),
    };
    let offset = position(&mut work).await?;
    Ok((work, offset))
}

/// Whether this refusal means that there is nothing to come back to.
pub(super) fn is_the_end(code: StreamRefusal) -> bool {
    match code {
        StreamRefusal::Gone
        | StreamRefusal::NoContainer
        | StreamRefusal::NotRunning
        | StreamRefusal::Unsupported => true,
        StreamRefusal::TooMany
        | StreamRefusal::Docker
        | StreamRefusal::BadRequest
        | StreamRefusal::ConnectFailed => false,
    }
}

/// Writes the row of a new one. When the account has as many as it may, the one that it left for
/// longest makes room.
pub(super) async fn keep(ctx: &Ctx, kept: &Kept) -> Result<()> {
    let mut tx = ctx.db.begin().await?;
    store::lock(&mut tx, kept.user).await?;
    let all = store::of_user(&mut tx, kept.user).await?;
    let over = (all.len() + 1).saturating_sub(PER_ACCOUNT);
    let victims: Vec<Kept> = all.into_iter().take(over).collect();
    if victims.iter().any(|it| it.detached_at.is_none()) {
        let detail = format!("this account is in {PER_ACCOUNT} terminals already; end one");
        return Err(Problem::too_many("too_many_terminals", detail));
    }
    for victim in &victims {
        keeper::forget(ctx, &mut tx, &Doer::system(), victim, "made_room").await?;
    }
    store::insert(&mut tx, kept).await?;
    tx.commit().await?;
    for victim in victims {
        keeper::hang_up_soon(ctx, victim);
    }
    Ok(())
}

fn opened(work: WorkStream, kept: &Kept, ticket: Ticket, offset: u64, resumed: bool) -> Opened {
    let back = Return { ticket, expires_s: TERMINAL_KEPT_S, offset, resumed };
    let opened = ToBrowser::Opened { kept: true, back: Some(back) };
    let line = Line { work, opened, is_kept: true };
    Opened { line, shell: kept.shell, offset, kept: Some((kept.id, kept.attachment)) }
}

fn exec(grant: &ExecGrant, shell: Shell, size: PtySize) -> Exec {
    Exec {
        instance: grant.resource().id,
        command: Command::Shell(shell),
        pty: Some(size),
        env: Vec::new(),
    }
}

/// Reads where the output stands, which an agent says first.
async fn position(work: &mut WorkStream) -> Result<u64> {
    match tokio::time::timeout(FIRST, work.reader.next::<ExecFrame>()).await {
        Ok(Ok(Some(ExecFrame::Position { offset }))) => Ok(offset),
        Ok(Ok(Some(ExecFrame::Failed { message }))) => Err(Problem::unavailable("failed", message)),
        Ok(Ok(_)) => {
            let detail = "the agent did not say where the terminal's output stands";
            Err(Problem::unavailable("node_lost", detail))
        }
        Ok(Err(error)) => Err(error.into()),
        Err(_) => {
            let detail = format!("the terminal did not answer within {} s", FIRST.as_secs());
            Err(Problem::unavailable("node_lost", detail))
        }
    }
}

/// What is said of a ticket that is wrong in any way.
pub(super) fn gone() -> Problem {
    Problem::conflict("terminal_gone", GONE)
}
