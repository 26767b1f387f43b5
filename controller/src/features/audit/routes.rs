//! `GET /audit-events`.

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::store::{self, AuditRow};
use crate::authz::policy::AuditRead;
use crate::authz::{Anything, Grant};
use crate::core::error::{ProblemBody, Result};
use crate::core::http::Query;
use crate::core::page::{Page, PageQuery};
use crate::features::Ctx;

/// The room's paths.
pub fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new().routes(routes!(list))
}

/// Which events are wanted. Text matches anywhere, whatever its case, where it says so.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditQuery {
    /// Part of the name of who did it.
    pub actor: Option<String>,
    /// Part of what was done, such as `instances:`.
    pub action: Option<String>,
    /// Kind of the thing it was done to, such as `instance`.
    pub target_kind: Option<String>,
    /// Id or name of that thing.
    pub target_id: Option<String>,
    /// `done`, `refused` or `failed`.
    pub outcome: Option<String>,
    /// From this time on.
    pub since: Option<DateTime<Utc>>,
    /// Before this time.
    pub until: Option<DateTime<Utc>>,
    /// Older than the event with this id.
    pub before: Option<Uuid>,
    /// Page, from 1.
    pub page: Option<u32>,
    /// Rows of a page, 1 to 200; 20 when left out.
    pub page_size: Option<u32>,
}

/// One thing that was done, refused or failed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuditEvent {
    /// Its id; later events have greater ones.
    id: Uuid,
    /// When.
    at: DateTime<Utc>,
    /// Which account, when it was one.
    actor_id: Option<Uuid>,
    /// Who.
    actor_name: String,
    /// `user`, `node`, `system`, `local` or `anonymous`.
    actor_kind: String,
    /// What.
    action: String,
    /// Kind of the thing it was done to.
    target_kind: String,
    /// Id or name of that thing.
    target_id: String,
    /// `done`, `refused` or `failed`.
    outcome: String,
    /// What else matters; never a secret.
    #[schema(value_type = Object)]
    detail: serde_json::Value,
    /// Where the request came from.
    remote_address: String,
    /// The request's id.
    request_id: String,
}

impl From<AuditRow> for AuditEvent {
    fn from(row: AuditRow) -> Self {
        Self {
            id: row.id,
            at: DateTime::from_timestamp_millis(row.at).unwrap_or_default(),
            actor_id: row.actor_id,
            actor_name: row.actor_name,
            actor_kind: row.actor_kind,
            action: row.action,
            target_kind: row.target_kind,
            target_id: row.target_id,
            outcome: row.outcome,
            detail: serde_json::from_str(&row.detail).unwrap_or_default(),
            remote_address: row.remote_address,
            request_id: row.request_id,
        }
    }
}

/// Lists what was done, newest first.
#[utoipa::path(get, path = "/audit-events", tag = "audit", params(AuditQuery), responses(
    (status = 200, body = Page<AuditEvent>),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn list(
    _grant: Grant<Anything, AuditRead>,
    State(ctx): State<Ctx>,
    Query(query): Query<AuditQuery>,
) -> Result<Json<Page<AuditEvent>>> {
    let paging = PageQuery { page: query.page, page_size: query.page_size, sort: None };
    // Ids are UUIDs of version 7: their order is the order in which events were written.
    let paging = paging.check(&[("at", "at")], "-at", "id")?;
    let (rows, total) = store::page(&ctx.db, &query, &paging).await?;
    Ok(Json(paging.page(rows.into_iter().map(AuditEvent::from).collect(), total)))
}
