//! `GET /audit-events` and its export.

use axum::Json;
use axum::extract::State;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::model::{AuditEvent, AuditQuery};
use super::{export, store};
use crate::authz::policy::AuditRead;
use crate::authz::{Anything, Grant};
use crate::core::error::{ProblemBody, Result};
use crate::core::http::Query;
use crate::core::page::{Page, PageQuery};
use crate::features::Ctx;

/// The room's paths.
pub fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(export_csv))
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
    // Ids are UUIDs of version 7: their order is the order in which events were written, and unlike
    // the time no two are equal.
    let paging = paging.check(&[("id", "id")], "-id", "id")?;
    let (rows, total) = store::page(&ctx.db, &query, &paging).await?;
    Ok(Json(paging.page(rows.into_iter().map(AuditEvent::from).collect(), total)))
}

/// Exports what was done, newest first, for spreadsheets: every event that the filters let through,
/// whatever the page. UTF-8 with a byte order mark; a cell that would be a formula begins with an
/// apostrophe.
#[utoipa::path(get, path = "/audit-events/export", tag = "audit", params(AuditQuery), responses(
    (status = 200, body = String, content_type = "text/csv"),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn export_csv(
    _grant: Grant<Anything, AuditRead>,
    State(ctx): State<Ctx>,
    Query(query): Query<AuditQuery>,
) -> Response {
    let headers = [
        (CONTENT_TYPE, "text/csv; charset=utf-8"),
        (CONTENT_DISPOSITION, "attachment; filename=\"audit-events.csv\""),
    ];
    (headers, export::body(ctx.db.clone(), query)).into_response()
}
