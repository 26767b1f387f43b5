//! `/forwards`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::actions;
use super::model::{CreateForward, DELETE_MANY_MAX, Forward, ForwardQuery, PatchForward, Switch};
use super::view::{Addresses, Totals};
use crate::authz::policy::{ForwardsRead, ForwardsWrite};
use crate::authz::resource::ForwardRef;
use crate::authz::{Anything, Grant};
use crate::core::error::{Problem, ProblemBody, Result};
use crate::core::http::{Body, Query};
use crate::core::idempotency::Keyed;
use crate::core::page::{Page, PageQuery};
use crate::features::Ctx;

const SORTS: &[(&str, &str)] = &[("created_at", "f.created_at"), ("listen_port", "f.listen_port")];

/// The room's paths.
pub fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(addresses))
        .routes(routes!(totals))
        .routes(routes!(delete_many))
        .routes(routes!(get, change, delete))
        .routes(routes!(switch))
}

/// Forwards to delete.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = DeleteForwards)]
#[serde(deny_unknown_fields)]
struct DeleteMany {
    /// At most 100.
    ids: Vec<Uuid>,
}

/// What became of one of many.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = DeletedForward)]
struct DeleteResult {
    /// Which.
    id: Uuid,
    /// Whether it is gone.
    deleted: bool,
    /// Why not, as a stable word.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    /// Why not, in one sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// What became of each of many.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = DeletedForwards)]
struct DeleteResults {
    /// In the order of the request.
    items: Vec<DeleteResult>,
}

/// Lists forwards, newest first, each with how it stands: one's own, or everybody's.
#[utoipa::path(get, path = "/forwards", tag = "forwards", params(ForwardQuery), responses(
    (status = 200, body = Page<Forward>),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn list(
    grant: Grant<Anything, ForwardsRead>,
    State(ctx): State<Ctx>,
    Query(query): Query<ForwardQuery>,
) -> Result<Json<Page<Forward>>> {
    let paging =
        PageQuery { page: query.page, page_size: query.page_size, sort: query.sort.clone() };
    let paging = paging.check(SORTS, "-created_at", "f.id")?;
    actions::list(&ctx, grant.scope().owner(), &query, &paging).await.map(Json)
}

/// Makes a forward. The answer says whether it listens, or why not. With an `Idempotency-Key` a repeated
/// request gives the first one's forward.
#[utoipa::path(post, path = "/forwards", tag = "forwards", request_body = CreateForward, responses(
    (status = 201, body = Forward),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn create(
    grant: Grant<Anything, ForwardsWrite>,
    State(ctx): State<Ctx>,
    Keyed { body, key }: Keyed<CreateForward>,
) -> Result<(StatusCode, Json<Forward>)> {
    let forward = actions::create(&ctx, &grant, body, key.as_ref()).await?;
    Ok((StatusCode::CREATED, Json(forward)))
}

/// Says on which addresses and ports the caller may listen.
#[utoipa::path(get, path = "/forwards/addresses", tag = "forwards", responses(
    (status = 200, body = Addresses),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn addresses(
    grant: Grant<Anything, ForwardsRead>,
    State(ctx): State<Ctx>,
) -> Result<Json<Addresses>> {
    Ok(Json(actions::where_to_listen(&ctx, &grant)))
}

/// Returns all forwards that the caller may see, in numbers.
#[utoipa::path(get, path = "/forwards/totals", tag = "forwards", responses(
    (status = 200, body = Totals),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn totals(
    grant: Grant<Anything, ForwardsRead>,
    State(ctx): State<Ctx>,
) -> Result<Json<Totals>> {
    actions::totals(&ctx, grant.scope().owner()).await.map(Json)
}

/// Deletes many forwards; each is decided by itself.
#[utoipa::path(post, path = "/forwards/delete", tag = "forwards", request_body = DeleteMany, responses(
    (status = 200, body = DeleteResults),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn delete_many(
    grant: Grant<Anything, ForwardsWrite>,
    State(ctx): State<Ctx>,
    Body(body): Body<DeleteMany>,
) -> Result<Json<DeleteResults>> {
    if body.ids.is_empty() || body.ids.len() > DELETE_MANY_MAX {
        let detail = format!("name 1 to {DELETE_MANY_MAX} forwards, not {}", body.ids.len());
        return Err(Problem::invalid("bad_ids", detail));
    }
    let mut items = Vec::with_capacity(body.ids.len());
    for id in body.ids {
        let problem = actions::delete_one_of_many(&ctx, &grant, id).await.err();
        let code = problem.as_ref().map(|problem| problem.code.to_owned());
        let detail = problem.map(|problem| problem.detail);
        items.push(DeleteResult { id, deleted: code.is_none(), code, detail });
    }
    Ok(Json(DeleteResults { items }))
}

/// Reads a forward with how it stands.
#[utoipa::path(get, path = "/forwards/{id}", tag = "forwards", params(("id" = Uuid, Path)), responses(
    (status = 200, body = Forward),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn get(
    grant: Grant<ForwardRef, ForwardsRead>,
    State(ctx): State<Ctx>,
) -> Result<Json<Forward>> {
    actions::read(&ctx, grant.resource().id).await.map(Json)
}

/// Changes a forward. Its connections end when the way itself or who may take it changes.
#[utoipa::path(patch, path = "/forwards/{id}", tag = "forwards", params(("id" = Uuid, Path)),
    request_body = PatchForward, responses(
    (status = 200, body = Forward),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn change(
    grant: Grant<ForwardRef, ForwardsWrite>,
    State(ctx): State<Ctx>,
    Body(patch): Body<PatchForward>,
) -> Result<Json<Forward>> {
    actions::change(&ctx, &grant, patch).await.map(Json)
}

/// Puts a forward on or off. Off, its connections end at once.
#[utoipa::path(put, path = "/forwards/{id}/enabled", tag = "forwards", params(("id" = Uuid, Path)),
    request_body = Switch, responses(
    (status = 200, body = Forward),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn switch(
    grant: Grant<ForwardRef, ForwardsWrite>,
    State(ctx): State<Ctx>,
    Body(switch): Body<Switch>,
) -> Result<Json<Forward>> {
    actions::switch(&ctx, &grant, switch.enabled).await.map(Json)
}

/// Deletes a forward; its connections end at once.
#[utoipa::path(delete, path = "/forwards/{id}", tag = "forwards", params(("id" = Uuid, Path)), responses(
    (status = 204),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn delete(
    grant: Grant<ForwardRef, ForwardsWrite>,
    State(ctx): State<Ctx>,
) -> Result<StatusCode> {
    actions::delete(&ctx, grant.actor(), grant.resource().id).await?;
    Ok(StatusCode::NO_CONTENT)
}
