//! Instances over HTTP.

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::actions::{self, Verb};
use super::log_query::LogQuery;
use super::logs;
use super::model::{CreateInstance, DELETE_MANY_MAX, PatchInstance};
use super::placements::{self, PlacementQuery};
use super::view::{self, EventView, InstanceQuery, InstanceView};
use crate::authz::policy::{
    InstancesCreate, InstancesDelete, InstancesLogs, InstancesRead, InstancesWrite, PlacementsRead,
};
use crate::authz::resource::{InstanceRef, Resource};
use crate::authz::{Anything, Grant};
use crate::core::error::{Problem, ProblemBody, Result};
use crate::core::http::{Body, Query};
use crate::core::idempotency::{self, Keyed};
use crate::core::page::{Page, PageQuery};
use crate::core::slots::Slots;
use crate::features::Ctx;
use tianqi_common::id::InstanceId;

/// Instances to delete.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DeleteMany {
    /// At most 100.
    ids: Vec<Uuid>,
}

/// What became of one of many.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct DeleteResult {
    /// Which.
    id: Uuid,
    /// Whether it is on its way out.
    accepted: bool,
    /// Why not, as a stable word.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    /// Why not, in one sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// What became of each of many.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct DeleteResults {
    /// In the order of the request.
    items: Vec<DeleteResult>,
}

async fn shown(ctx: &Ctx, id: InstanceId) -> Result<Json<InstanceView>> {
    view::one(&ctx.db, id).await?.map(Json).ok_or_else(InstanceRef::missing)
}

/// Creates an instance. It is queued, and on its way as soon as something fits.
#[utoipa::path(post, path = "/instances", tag = "instances", request_body = CreateInstance,
    params(("Idempotency-Key" = Option<String>, Header, description = "Repeating a request with the same key creates nothing twice.")),
    responses((status = 202, body = InstanceView), (status = 409, body = ProblemBody), (status = 422, body = ProblemBody)))]
pub(super) async fn create(
    State(ctx): State<Ctx>,
    grant: Grant<Anything, InstancesCreate>,
    Keyed { body, key }: Keyed<CreateInstance>,
) -> Result<(StatusCode, Json<InstanceView>)> {
    let id = actions::create(&ctx, &grant, body.check()?, key.as_ref()).await?;
    let made = view::one(&ctx.db, id).await?.ok_or_else(idempotency::made_and_gone)?;
    Ok((StatusCode::ACCEPTED, Json(made)))
}

/// Lists instances: one's own, or everybody's for admins and auditors.
#[utoipa::path(get, path = "/instances", tag = "instances", params(InstanceQuery),
    responses((status = 200, body = Page<InstanceView>), (status = 422, body = ProblemBody)))]
pub(super) async fn list(
    State(ctx): State<Ctx>,
    grant: Grant<Anything, InstancesRead>,
    Query(query): Query<InstanceQuery>,
) -> Result<Json<Page<InstanceView>>> {
    view::list(&ctx.db, grant.scope().owner(), query).await.map(Json)
}

/// Returns an instance.
#[utoipa::path(get, path = "/instances/{id}", tag = "instances", params(("id" = Uuid, Path)),
    responses((status = 200, body = InstanceView), (status = 404, body = ProblemBody)))]
pub(super) async fn get(
    State(ctx): State<Ctx>,
    grant: Grant<InstanceRef, InstancesRead>,
) -> Result<Json<InstanceView>> {
    shown(&ctx, grant.resource().id).await
}

/// Changes an instance's name and remark.
#[utoipa::path(patch, path = "/instances/{id}", tag = "instances", params(("id" = Uuid, Path)),
    request_body = PatchInstance,
    responses((status = 200, body = InstanceView), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody), (status = 422, body = ProblemBody)))]
pub(super) async fn patch(
    State(ctx): State<Ctx>,
    grant: Grant<InstanceRef, InstancesWrite>,
    Body(body): Body<PatchInstance>,
) -> Result<Json<InstanceView>> {
    actions::patch(&ctx, &grant, body).await?;
    shown(&ctx, grant.resource().id).await
}

/// Deletes an instance with its container and data.
#[utoipa::path(delete, path = "/instances/{id}", tag = "instances", params(("id" = Uuid, Path)),
    responses((status = 202), (status = 404, body = ProblemBody)))]
pub(super) async fn delete(
    State(ctx): State<Ctx>,
    grant: Grant<InstanceRef, InstancesDelete>,
) -> Result<StatusCode> {
    actions::delete(&ctx, &grant).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Deletes many instances; each is decided by itself.
#[utoipa::path(post, path = "/instances/delete", tag = "instances", request_body = DeleteMany,
    responses((status = 202, body = DeleteResults), (status = 422, body = ProblemBody)))]
pub(super) async fn delete_many(
    State(ctx): State<Ctx>,
    grant: Grant<Anything, InstancesDelete>,
    Body(body): Body<DeleteMany>,
) -> Result<(StatusCode, Json<DeleteResults>)> {
    if body.ids.is_empty() || body.ids.len() > DELETE_MANY_MAX {
        let detail = format!("name 1 to {DELETE_MANY_MAX} instances, not {}", body.ids.len());
        return Err(Problem::invalid("bad_ids", detail));
    }
    let mut items = Vec::with_capacity(body.ids.len());
    for id in body.ids {
        let problem = actions::delete_one_of_many(&ctx, &grant, id).await.err();
        let code = problem.as_ref().map(|problem| problem.code.to_owned());
        let detail = problem.map(|problem| problem.detail);
        items.push(DeleteResult { id, accepted: code.is_none(), code, detail });
    }
    Ok((StatusCode::ACCEPTED, Json(DeleteResults { items })))
}

async fn steer(
    ctx: &Ctx,
    grant: &Grant<InstanceRef, InstancesWrite>,
    verb: Verb,
) -> Result<(StatusCode, Json<InstanceView>)> {
    let instance = actions::steer(ctx, grant, verb).await?;
    Ok((StatusCode::ACCEPTED, shown(ctx, instance.id).await?))
}

/// Starts an instance: it is queued again for its node.
#[utoipa::path(post, path = "/instances/{id}/start", tag = "instances", params(("id" = Uuid, Path)),
    responses((status = 202, body = InstanceView), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub(super) async fn start(
    State(ctx): State<Ctx>,
    grant: Grant<InstanceRef, InstancesWrite>,
) -> Result<(StatusCode, Json<InstanceView>)> {
    steer(&ctx, &grant, Verb::Start).await
}

/// Stops an instance: CPU, memory and cards are released, node, disk and data are kept.
#[utoipa::path(post, path = "/instances/{id}/stop", tag = "instances", params(("id" = Uuid, Path)),
    responses((status = 202, body = InstanceView), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub(super) async fn stop(
    State(ctx): State<Ctx>,
    grant: Grant<InstanceRef, InstancesWrite>,
) -> Result<(StatusCode, Json<InstanceView>)> {
    steer(&ctx, &grant, Verb::Stop).await
}

/// Restarts an instance.
#[utoipa::path(post, path = "/instances/{id}/restart", tag = "instances", params(("id" = Uuid, Path)),
    responses((status = 202, body = InstanceView), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub(super) async fn restart(
    State(ctx): State<Ctx>,
    grant: Grant<InstanceRef, InstancesWrite>,
) -> Result<(StatusCode, Json<InstanceView>)> {
    steer(&ctx, &grant, Verb::Restart).await
}

/// Returns what happened to an instance, newest first.
#[utoipa::path(get, path = "/instances/{id}/events", tag = "instances", params(("id" = Uuid, Path), PageQuery),
    responses((status = 200, body = Page<EventView>), (status = 404, body = ProblemBody)))]
pub(super) async fn events(
    State(ctx): State<Ctx>,
    grant: Grant<InstanceRef, InstancesRead>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<EventView>>> {
    view::history(&ctx.db, grant.resource().id, &query).await.map(Json)
}

/// Returns an instance's output, as it was written; with `follow` it goes on, with `download` it is a
/// file.
#[utoipa::path(get, path = "/instances/{id}/logs", tag = "instances", params(("id" = Uuid, Path), LogQuery),
    responses((status = 200, body = String, content_type = "text/plain"), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody), (status = 422, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub(super) async fn logs(
    State(ctx): State<Ctx>,
    grant: Grant<InstanceRef, InstancesLogs>,
    Query(query): Query<LogQuery>,
    Extension(slots): Extension<Slots>,
) -> Result<Response> {
    // The name of an instance is letters, digits, `-` and `_`.
    let file = format!("attachment; filename=\"{}.log\"", grant.resource().name);
    let body = logs::open(&ctx, grant, &query, &slots).await?;
    let head = [(CONTENT_TYPE, "text/plain; charset=utf-8")];
    if query.is_download() {
        return Ok((head, [(CONTENT_DISPOSITION, file)], body).into_response());
    }
    Ok((head, body).into_response())
}

/// Says where a request would go, and why not elsewhere.
#[utoipa::path(get, path = "/placements", tag = "placements", params(PlacementQuery),
    responses((status = 200, body = serde_json::Value), (status = 422, body = ProblemBody)))]
pub(super) async fn placements(
    State(ctx): State<Ctx>,
    grant: Grant<Anything, PlacementsRead>,
    Query(query): Query<PlacementQuery>,
) -> Result<Json<serde_json::Value>> {
    placements::candidates(&ctx, &grant, &query).await.map(Json)
}
