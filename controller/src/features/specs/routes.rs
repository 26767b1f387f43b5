//! `/specs`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::actions;
use super::model::{PatchSpec, Spec, SpecFields, SpecQuery};
use super::store;
use crate::authz::policy::{SpecsRead, SpecsWrite};
use crate::authz::resource::{Resource, SpecRef};
use crate::authz::{Anything, Grant};
use crate::core::error::{ProblemBody, Result};
use crate::core::http::{Body, Query};
use crate::core::idempotency::Keyed;
use crate::core::page::{Page, PageQuery};
use crate::features::Ctx;

const SORTS: &[(&str, &str)] = &[
    ("name", "name"),
    ("gpu_count", "gpu_count"),
    ("cpu_cores", "cpu_millicores"),
    ("memory_mib", "memory_mib"),
    ("price_per_hour", "price_per_hour_micros"),
    ("created_at", "created_at"),
];

/// The room's paths.
pub fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get, change, delete))
}

/// Lists specs.
#[utoipa::path(get, path = "/specs", tag = "specs", params(SpecQuery), responses(
    (status = 200, body = Page<Spec>),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn list(
    grant: Grant<Anything, SpecsRead>,
    State(ctx): State<Ctx>,
    Query(query): Query<SpecQuery>,
) -> Result<Json<Page<Spec>>> {
    let paging =
        PageQuery { page: query.page, page_size: query.page_size, sort: query.sort.clone() };
    let paging = paging.check(SORTS, "name", "id")?;
    let listed_only = !grant.actor().sees_unlisted();
    let (rows, total) = store::page(&ctx.db, &query, listed_only, &paging).await?;
    Ok(Json(paging.page(rows.into_iter().map(Spec::from).collect(), total)))
}

/// Adds a spec. With an `Idempotency-Key` a repeated request gives the first one's spec.
#[utoipa::path(post, path = "/specs", tag = "specs", request_body = SpecFields, responses(
    (status = 201, body = Spec),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn create(
    grant: Grant<Anything, SpecsWrite>,
    State(ctx): State<Ctx>,
    Keyed { body, key }: Keyed<SpecFields>,
) -> Result<(StatusCode, Json<Spec>)> {
    let spec = actions::create(&ctx, &grant, body, key.as_ref()).await?;
    Ok((StatusCode::CREATED, Json(spec)))
}

/// Reads a spec.
#[utoipa::path(get, path = "/specs/{id}", tag = "specs", params(("id" = uuid::Uuid, Path)), responses(
    (status = 200, body = Spec),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn get(grant: Grant<SpecRef, SpecsRead>, State(ctx): State<Ctx>) -> Result<Json<Spec>> {
    let spec = actions::read(&ctx, grant.resource().id).await?;
    if spec.fields.listed || grant.actor().sees_unlisted() {
        Ok(Json(spec))
    } else {
        Err(SpecRef::missing())
    }
}

/// Changes a spec.
#[utoipa::path(patch, path = "/specs/{id}", tag = "specs", params(("id" = uuid::Uuid, Path)),
    request_body = PatchSpec, responses(
    (status = 200, body = Spec),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn change(
    grant: Grant<SpecRef, SpecsWrite>,
    State(ctx): State<Ctx>,
    Body(patch): Body<PatchSpec>,
) -> Result<Json<Spec>> {
    Ok(Json(actions::change(&ctx, &grant, patch).await?))
}

/// Removes a spec that no living instance was made from.
#[utoipa::path(delete, path = "/specs/{id}", tag = "specs", params(("id" = uuid::Uuid, Path)), responses(
    (status = 204),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn delete(grant: Grant<SpecRef, SpecsWrite>, State(ctx): State<Ctx>) -> Result<StatusCode> {
    actions::delete(&ctx, &grant).await?;
    Ok(StatusCode::NO_CONTENT)
}
