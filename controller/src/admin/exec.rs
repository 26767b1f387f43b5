//! `exec`: a program in an instance, for whoever sits at the controller's machine.

use anyhow::{Context, Result, bail};
use tianqi_common::id::InstanceId;
use tianqi_common::wire::frame::{self, Limit};
use tianqi_common::wire::stream::{Command, Exec, ExecFrame, PtySize, Shell, StreamOpen};
use tokio::net::UnixStream;
use uuid::Uuid;

use super::Reply;
use crate::authz::policy::InstancesExec;
use crate::authz::resource::{InstanceRef, Resource};
use crate::authz::{Actor, Grant};
use crate::core::audit::{Access, Doer, Ending};
use crate::core::db::{Db, args, row};
use crate::features::Ctx;
use crate::link::WorkStream;

/// Opens the stream, answers [`Reply::Opened`], and carries frames until the program ends.
///
/// # Errors
///
/// Why the stream could not be opened, or that the client went away.
pub(super) async fn run(
    ctx: &Ctx,
    stream: &mut UnixStream,
    instance: &str,
    argv: Vec<String>,
    pty: Option<PtySize>,
) -> Result<()> {
    let id = find(&ctx.db, instance).await?;
    let resource = InstanceRef::find(&ctx.db, Some(&id.to_string())).await;
    let resource = resource.map_err(|problem| anyhow::anyhow!(problem.detail))?;
    let grant = Grant::<_, InstancesExec>::decide(Actor::local(), resource)
        .map_err(|problem| anyhow::anyhow!(problem.detail))?;
    let command = if argv.is_empty() { Command::Shell(Shell::Bash) } else { Command::Argv(argv) };
    let open = StreamOpen::Exec(Exec { instance: id, command, pty, env: Vec::new() });
    let face = ("local:exec", "exec");
    let access = Access::begin(&ctx.db, &ctx.clock.0, Doer::local(), face, id);
    let work = match ctx.link.open(&grant, open).await {
        Ok(work) => work,
        Err(error) => {
            access.refused("not_opened").await?;
            return Err(error.into());
        }
    };
    access.opened(serde_json::json!({ "terminal": pty.is_some() })).await?;
    let mut ending = Ending { reason: "client_left".to_owned(), ..Ending::default() };
    let carried = carry(stream, work, &mut ending).await;
    access.closed(ending).await?;
    if let Err(error) = carried {
        let message = format!("{error:#}");
        frame::write(stream, &ExecFrame::Failed { message }, Limit::STREAM).await?;
    }
    Ok(())
}

/// Says that the stream is open and carries frames until one side ends; `ending` tells how it went.
async fn carry(stream: &mut UnixStream, work: WorkStream, ending: &mut Ending) -> Result<()> {
    frame::write(stream, &Reply::Opened, Limit::OPEN).await?;
    let (mut from_client, mut to_client) = stream.split();
    let WorkStream { mut reader, mut writer } = work;
    let Ending { reason, exit_code, bytes_in, bytes_out } = ending;
    let input = async {
        let mut takes_input = true;
        while let Some(frame) = frame::read::<ExecFrame, _>(&mut from_client, Limit::STREAM).await?
        {
            if let ExecFrame::Stdin(bytes) = &frame {
                *bytes_in += bytes.len() as u64;
            }
            if takes_input {
                // A program that has ended takes no more; how it ended comes with its output.
                takes_input = writer.send(&frame).await.is_ok();
            }
        }
        anyhow::Ok("client_left")
    };
    let output = async {
        loop {
            let Some(frame) = reader.next::<ExecFrame>().await? else {
                return anyhow::Ok("node_lost");
            };
            if let ExecFrame::Stdout(bytes) | ExecFrame::Stderr(bytes) = &frame {
                *bytes_out += bytes.len() as u64;
            }
            frame::write(&mut to_client, &frame, Limit::STREAM).await?;
            if let ExecFrame::Exit { code } = frame {
                *exit_code = Some(code);
                return Ok("exit");
            }
            if matches!(frame, ExecFrame::Failed { .. }) {
                return Ok("failed");
            }
        }
    };
    let ended = tokio::select! {
        ended = input => ended,
        ended = output => ended,
    };
    ended.as_ref().map_or("failed", |word| *word).clone_into(reason);
    ended.map(|_| ())
}

row! {
    struct IdRow { id: Uuid }
}

/// Finds an instance by its id, by `owner/name`, or by a name that only one account uses.
async fn find(db: &Db, text: &str) -> Result<InstanceId> {
    const BY_NAME: &str = "select i.id from instances i join users u on u.id = i.owner_id \
         where i.live_name = $1 and (u.name = $2 or $2 = '') order by i.id limit 2";
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let (owner, name) = text.split_once('/').unwrap_or(("", text));
    let found: Vec<IdRow> =
        db.all(BY_NAME, args![name, owner]).await.context("the instances cannot be read")?;
    match found.as_slice() {
        [one] => Ok(InstanceId(one.id)),
        [] => bail!("there is no instance {text}"),
        _ => bail!("several accounts have an instance {text}; say owner/{name}, or its id"),
    }
}
