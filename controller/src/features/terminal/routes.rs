//! The terminal over HTTP: an upgrade to a WebSocket.

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{State, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::Response;
use axum::{Extension, Json};
use serde::Deserialize;
use tianqi_common::id::TerminalId;
use tianqi_common::wire::stream::{PtySize, Shell};
use utoipa::IntoParams;

use super::actions::{self, Terminal};
use super::frame;
use super::model::TerminalView;
use crate::authz::Grant;
use crate::authz::policy::InstancesExec;
use crate::authz::resource::InstanceRef;
use crate::core::error::{Problem, ProblemBody, Result};
use crate::core::http::{PathId, Query};
use crate::core::page::{Page, PageQuery};
use crate::core::slots::Slots;
use crate::features::Ctx;

/// What the protocol itself lets through; over it, the connection is cut. Frames that are over their
/// own limits, but not over this, get a clear error.
const MESSAGE_MAX: usize = 2 * frame::BINARY_MAX;

/// Which terminal is wanted.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct TerminalQuery {
    /// `bash` (the default) or `sh`; what the image lacks is replaced by what it has.
    shell: Option<String>,
    /// Columns, 1 to 10 000; 80 when left out.
    cols: Option<u32>,
    /// Rows, 1 to 10 000; 24 when left out.
    rows: Option<u32>,
    /// `1` to come back to a terminal: the first frame then shows its ticket, which has no place in an
    /// address that is logged. `shell` says nothing then.
    attach: Option<String>,
}

impl TerminalQuery {
    /// Returns the shell, unless somebody comes back to one, and the size.
    fn check(&self) -> Result<(Option<Shell>, PtySize)> {
        let is_back = match self.attach.as_deref() {
            None | Some("0" | "false") => false,
            Some("1" | "true") => true,
            Some(_) => return Err(Problem::invalid("bad_attach", "attach is 1 or left out")),
        };
        let shell = match self.shell.as_deref() {
            None | Some("bash") => Shell::Bash,
            Some("sh") => Shell::Sh,
            Some(_) => return Err(Problem::invalid("bad_shell", "a shell is bash or sh")),
        };
        let number = |wanted: Option<u32>, usual| u16::try_from(wanted.unwrap_or(usual)).ok();
        let size = number(self.cols, 80).zip(number(self.rows, 24));
        let size = size.and_then(|(cols, rows)| frame::size(cols, rows));
        let size = size
            .ok_or_else(|| Problem::invalid("bad_size", "columns and rows are 1 to 10 000 each"))?;
        Ok((Some(shell).filter(|_| !is_back), size))
    }
}

/// Opens a terminal in an instance, or comes back to one.
#[utoipa::path(get, path = "/instances/{id}/terminal", tag = "instances", params(("id" = uuid::Uuid, Path), TerminalQuery),
    responses((status = 101, description = "A WebSocket; binary frames are bytes, text frames are JSON."), (status = 400, body = ProblemBody), (status = 404, body = ProblemBody), (status = 422, body = ProblemBody), (status = 429, body = ProblemBody)))]
pub(super) async fn open(
    State(ctx): State<Ctx>,
    grant: Grant<InstanceRef, InstancesExec>,
    Query(query): Query<TerminalQuery>,
    Extension(slots): Extension<Slots>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response> {
    let (shell, size) = query.check()?;
    let upgrade = upgrade
        .map_err(|_| Problem::bad_request("not_a_websocket", "open this path as a WebSocket"))?;
    let slot = slots.take(grant.actor().session).ok_or_else(|| {
        let detail = "this session has as many terminals open as it may; close one";
        Problem::too_many("too_many_terminals", detail)
    })?;
    let upgrade = upgrade.max_message_size(MESSAGE_MAX).max_frame_size(MESSAGE_MAX);
    let terminal = Terminal { grant, shell, size, slot };
    Ok(upgrade.on_upgrade(move |socket| actions::run(ctx, terminal, socket)))
}

/// Lists the caller's terminals in an instance that are kept: those in use, and those that wait for
/// their page to come back.
#[utoipa::path(get, path = "/instances/{id}/terminals", tag = "instances", params(("id" = uuid::Uuid, Path), PageQuery),
    responses((status = 200, body = Page<TerminalView>), (status = 404, body = ProblemBody), (status = 422, body = ProblemBody)))]
pub(super) async fn list(
    State(ctx): State<Ctx>,
    grant: Grant<InstanceRef, InstancesExec>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<TerminalView>>> {
    actions::list(&ctx, &grant, &query).await.map(Json)
}

/// Hangs up one of the caller's terminals, wherever it is open. When its node does not answer, the
/// program ends within ten minutes.
#[utoipa::path(delete, path = "/instances/{id}/terminals/{terminal}", tag = "instances",
    params(("id" = uuid::Uuid, Path), ("terminal" = uuid::Uuid, Path)),
    responses((status = 204), (status = 404, body = ProblemBody)))]
pub(super) async fn hang_up(
    State(ctx): State<Ctx>,
    grant: Grant<InstanceRef, InstancesExec>,
    PathId(id): PathId,
) -> Result<StatusCode> {
    actions::hang_up(&ctx, &grant, TerminalId(id)).await?;
    Ok(StatusCode::NO_CONTENT)
}
