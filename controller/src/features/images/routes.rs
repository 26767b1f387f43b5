//! `/images`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::actions;
use super::model::{CreateImage, Image, ImageQuery, PatchImage};
use super::store;
use crate::authz::policy::{ImagesRead, ImagesWrite};
use crate::authz::resource::{ImageRef, Resource};
use crate::authz::{Anything, Grant};
use crate::core::error::{ProblemBody, Result};
use crate::core::http::{Body, Query};
use crate::core::idempotency::Keyed;
use crate::core::page::{Page, PageQuery};
use crate::features::Ctx;

const SORTS: &[(&str, &str)] =
    &[("name", "name"), ("address", "address"), ("created_at", "created_at")];

/// The room's paths.
pub fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get, change, delete))
}

/// Lists images.
#[utoipa::path(get, path = "/images", tag = "images", params(ImageQuery), responses(
    (status = 200, body = Page<Image>),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn list(
    grant: Grant<Anything, ImagesRead>,
    State(ctx): State<Ctx>,
    Query(query): Query<ImageQuery>,
) -> Result<Json<Page<Image>>> {
    let paging =
        PageQuery { page: query.page, page_size: query.page_size, sort: query.sort.clone() };
    let paging = paging.check(SORTS, "name", "id")?;
    let listed_only = !grant.actor().sees_unlisted();
    let (rows, total) = store::page(&ctx.db, &query, listed_only, &paging).await?;
    Ok(Json(paging.page(rows.into_iter().map(Image::from).collect(), total)))
}

/// Adds an image. With an `Idempotency-Key` a repeated request gives the first one's image.
#[utoipa::path(post, path = "/images", tag = "images", request_body = CreateImage, responses(
    (status = 201, body = Image),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn create(
    grant: Grant<Anything, ImagesWrite>,
    State(ctx): State<Ctx>,
    Keyed { body, key }: Keyed<CreateImage>,
) -> Result<(StatusCode, Json<Image>)> {
    let image = actions::create(&ctx, &grant, body, key.as_ref()).await?;
    Ok((StatusCode::CREATED, Json(image)))
}

/// Reads an image.
#[utoipa::path(get, path = "/images/{id}", tag = "images", params(("id" = uuid::Uuid, Path)), responses(
    (status = 200, body = Image),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn get(grant: Grant<ImageRef, ImagesRead>, State(ctx): State<Ctx>) -> Result<Json<Image>> {
    let image = actions::read(&ctx, grant.resource().id).await?;
    if image.listed || grant.actor().sees_unlisted() {
        Ok(Json(image))
    } else {
        Err(ImageRef::missing())
    }
}

/// Changes an image.
#[utoipa::path(patch, path = "/images/{id}", tag = "images", params(("id" = uuid::Uuid, Path)),
    request_body = PatchImage, responses(
    (status = 200, body = Image),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn change(
    grant: Grant<ImageRef, ImagesWrite>,
    State(ctx): State<Ctx>,
    Body(patch): Body<PatchImage>,
) -> Result<Json<Image>> {
    Ok(Json(actions::change(&ctx, &grant, patch).await?))
}

/// Removes an image that no living instance was made from.
#[utoipa::path(delete, path = "/images/{id}", tag = "images", params(("id" = uuid::Uuid, Path)), responses(
    (status = 204),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn delete(grant: Grant<ImageRef, ImagesWrite>, State(ctx): State<Ctx>) -> Result<StatusCode> {
    actions::delete(&ctx, &grant).await?;
    Ok(StatusCode::NO_CONTENT)
}
