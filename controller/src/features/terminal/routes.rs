//! The terminal over HTTP: an upgrade to a WebSocket.

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{State, WebSocketUpgrade};
use axum::response::Response;
use serde::Deserialize;
use tianqi_common::wire::frame::CHUNK;
use tianqi_common::wire::stream::{PtySize, Shell};
use utoipa::IntoParams;

use super::{frame, pump};
use crate::authz::Grant;
use crate::authz::policy::InstancesExec;
use crate::authz::resource::InstanceRef;
use crate::core::error::{Problem, ProblemBody, Result};
use crate::core::http::Query;
use crate::features::Ctx;

/// Which terminal is wanted.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct TerminalQuery {
    /// `bash` (the default) or `sh`; what the image lacks is replaced by what it has.
    shell: Option<String>,
    /// Columns, 1 to 10 000; 80 when left out.
    cols: Option<u16>,
    /// Rows, 1 to 10 000; 24 when left out.
    rows: Option<u16>,
}

impl TerminalQuery {
    fn check(&self) -> Result<(Shell, PtySize)> {
        let shell = match self.shell.as_deref() {
            None | Some("bash") => Shell::Bash,
            Some("sh") => Shell::Sh,
            Some(_) => return Err(Problem::invalid("bad_shell", "a shell is bash or sh")),
        };
        let size = frame::size(self.cols.unwrap_or(80), self.rows.unwrap_or(24));
        let size = size
            .ok_or_else(|| Problem::invalid("bad_size", "columns and rows are 1 to 10 000 each"))?;
        Ok((shell, size))
    }
}

/// Opens a terminal in an instance.
#[utoipa::path(get, path = "/instances/{id}/terminal", tag = "instances", params(("id" = uuid::Uuid, Path), TerminalQuery),
    responses((status = 101, description = "A WebSocket; binary frames are bytes, text frames are JSON."), (status = 400, body = ProblemBody), (status = 404, body = ProblemBody), (status = 422, body = ProblemBody)))]
pub(super) async fn open(
    State(ctx): State<Ctx>,
    grant: Grant<InstanceRef, InstancesExec>,
    Query(query): Query<TerminalQuery>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response> {
    let (shell, size) = query.check()?;
    let upgrade = upgrade
        .map_err(|_| Problem::bad_request("not_a_websocket", "open this path as a WebSocket"))?;
    let upgrade = upgrade.max_message_size(CHUNK).max_frame_size(CHUNK);
    Ok(upgrade.on_upgrade(move |socket| pump::run(ctx, grant, socket, shell, size)))
}
