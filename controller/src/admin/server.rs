//! The controller's side of the admin socket.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use anyhow::{Context, Result};
use tianqi_common::wire::frame::{self, Limit};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{AuditCommand, Reply, Request, backup, exec, socket_path};
use crate::core::audit::{self, Doer, Entry, Outcome};
use crate::core::event::Event;
use crate::core::seal::rotate::{self, Rotated};
use crate::features::{self, Ctx};

/// Commands at once; another waits.
const MAX_COMMANDS: usize = 32;

/// Listens at `<data_dir>/admin.sock` until `cancel`; a restore cancels `restart`.
///
/// # Errors
///
/// When the socket cannot be made.
pub fn listen(
    ctx: Ctx,
    cancel: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + 'static> {
    let path = socket_path(&ctx.config.data_dir);
    if path.exists() {
        // A socket without a listener is left by a process that was killed.
        std::fs::remove_file(&path)
            .with_context(|| format!("cannot replace {}", path.display()))?;
    }
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("cannot listen at {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(async move {
        let slots = Arc::new(Semaphore::new(MAX_COMMANDS));
        loop {
            let accepted = tokio::select! {
                () = cancel.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else { continue };
            let Ok(slot) = slots.clone().acquire_owned().await else { break };
            let (ctx, cancel) = (ctx.clone(), cancel.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = cancel.cancelled() => {}
                    ended = serve(ctx, stream, &cancel) => if let Err(error) = ended {
                        tracing::debug!(error = format!("{error:#}"), "admin connection ended");
                    },
                }
                drop(slot);
            });
        }
        let _ = std::fs::remove_file(&path);
    })
}

async fn serve(ctx: Ctx, mut stream: UnixStream, restart: &CancellationToken) -> Result<()> {
    let Some(request) = frame::read::<Request, _>(&mut stream, Limit::OPEN).await? else {
        return Ok(());
    };
    let is_restore = matches!(request, Request::Restore { .. });
    let outcome = match request {
        Request::Exec { instance, argv, pty } => {
            match exec::run(&ctx, &mut stream, &instance, argv, pty).await {
                Ok(()) => return Ok(()),
                Err(error) => Err(error),
            }
        }
        Request::ResetPassword { user } => reset_password(&ctx, &user).await.map(Reply::Done),
        Request::Audit(AuditCommand::Verify) => verify(&ctx).await,
        Request::Audit(AuditCommand::Accept) => accept(&ctx).await.map(Reply::Done),
        Request::Backup { file } => {
            let done = backup::backup(&ctx.db, &file).await;
            note(&ctx, "local:backup", &file.display().to_string(), &done).await?;
            done.map(Reply::Done)
        }
        Request::Restore { file } => {
            let done = backup::prepare_restore(&ctx.config, &ctx.db, &file).await;
            note(&ctx, "local:restore", &file.display().to_string(), &done).await?;
            let text = "the copy is in place; the controller starts again with it";
            done.map(|()| Reply::Done(text.to_owned()))
        }
        Request::RotateSecrets => {
            let done = rotate_secrets(&ctx).await;
            note(&ctx, "local:secrets-rotate", "", &done).await?;
            done.map(Reply::Done)
        }
    };
    let is_done = outcome.is_ok();
    let reply = outcome.unwrap_or_else(|error| Reply::Failed(format!("{error:#}")));
    frame::write(&mut stream, &reply, Limit::OPEN).await?;
    if is_restore && is_done {
        restart.cancel();
    }
    Ok(())
}

async fn reset_password(ctx: &Ctx, user: &str) -> Result<String> {
    let done = ctx.authz.reset_to_random(&Doer::local(), user).await;
    let (password, account) = done.map_err(|problem| anyhow::anyhow!(problem.detail))?;
    ctx.events.send(Event::Revoked(account.id));
    let text = "to be changed at the next login; every session of the account has ended";
    Ok(format!("new password of {user}: {}\n{text}", password.expose()))
}

async fn rotate_secrets(ctx: &Ctx) -> Result<String> {
    let Rotated { values, foreign } = rotate::rotate(&ctx.db, &ctx.seal, features::SEALED).await?;
    let path = ctx.seal.path();
    let mut text = format!(
        "{values} secrets are sealed with a new master key, {}; copies of the database from before \
         need the key of their time",
        path.display()
    );
    if !foreign.is_empty() {
        let list = foreign.join(", ");
        text.push_str(&format!("\nsealed with another key and left as they were: {list}"));
    }
    Ok(text)
}

async fn verify(ctx: &Ctx) -> Result<Reply> {
    let report = ctx.chain.verify().await?;
    Ok(if report.is_fine { Reply::Done(report.text) } else { Reply::Wrong(report.text) })
}

async fn accept(ctx: &Ctx) -> Result<String> {
    let accepted = ctx.chain.accept(&Doer::local()).await?;
    if accepted.is_empty() {
        return Ok("there is nothing to accept".to_owned());
    }
    Ok(format!("accepted, and written to the audit:\n{}", accepted.join("\n")))
}

async fn note<T>(ctx: &Ctx, action: &'static str, target: &str, done: &Result<T>) -> Result<()> {
    let entry = Entry {
        doer: &Doer::local(),
        action,
        target_kind: "database",
        target_id: target.to_owned(),
        outcome: if done.is_ok() { Outcome::Done } else { Outcome::Failed },
        detail: serde_json::json!({}),
    };
    audit::record_alone(&ctx.db, ctx.clock.now(), &entry).await?;
    Ok(())
}
