//! `/roles` and `/permissions`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::actions;
use super::model::{CreateRole, PatchRole, PermissionView, RoleQuery, RoleView};
use crate::authz::policy::{PERMISSIONS, RolesRead, RolesWrite};
use crate::authz::resource::RoleRef;
use crate::authz::{Anything, Grant};
use crate::core::error::{ProblemBody, Result};
use crate::core::http::{Body, Query};
use crate::core::page::{Page, PageQuery};
use crate::features::Ctx;

/// The room's paths.
pub fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new()
        .routes(routes!(permissions))
        .routes(routes!(list, create))
        .routes(routes!(get, change, delete))
}

/// Lists every permission with what it allows.
#[utoipa::path(get, path = "/permissions", tag = "roles", responses(
    (status = 200, body = Vec<PermissionView>),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn permissions(_grant: Grant<Anything, RolesRead>) -> Json<Vec<PermissionView>> {
    Json(PERMISSIONS.iter().map(PermissionView::from).collect())
}

/// Lists roles: the built-in ones, then the others by name.
#[utoipa::path(get, path = "/roles", tag = "roles", params(RoleQuery), responses(
    (status = 200, body = Page<RoleView>),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn list(
    _grant: Grant<Anything, RolesRead>,
    State(ctx): State<Ctx>,
    Query(query): Query<RoleQuery>,
) -> Result<Json<Page<RoleView>>> {
    let paging = PageQuery { page: query.page, page_size: query.page_size, sort: None };
    let paging = paging.check(&[("name", "name")], "name", "name")?;
    let all = actions::list(&ctx, &query).await?;
    Ok(Json(paging.cut(all)))
}

/// Makes a role. Names are unique, so a repeated request makes no second one.
#[utoipa::path(post, path = "/roles", tag = "roles", request_body = CreateRole, responses(
    (status = 201, body = RoleView),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn create(
    grant: Grant<Anything, RolesWrite>,
    State(ctx): State<Ctx>,
    Body(body): Body<CreateRole>,
) -> Result<(StatusCode, Json<RoleView>)> {
    Ok((StatusCode::CREATED, Json(actions::create(&ctx, &grant, body).await?)))
}

/// Reads a role. Its id is its name.
#[utoipa::path(get, path = "/roles/{id}", tag = "roles", params(("id" = String, Path)), responses(
    (status = 200, body = RoleView),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn get(grant: Grant<RoleRef, RolesRead>, State(ctx): State<Ctx>) -> Result<Json<RoleView>> {
    Ok(Json(actions::read(&ctx, &grant.resource().name).await?))
}

/// Changes a role; it counts at once, also for what is open.
#[utoipa::path(patch, path = "/roles/{id}", tag = "roles", params(("id" = String, Path)),
    request_body = PatchRole, responses(
    (status = 200, body = RoleView),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn change(
    grant: Grant<RoleRef, RolesWrite>,
    State(ctx): State<Ctx>,
    Body(patch): Body<PatchRole>,
) -> Result<Json<RoleView>> {
    Ok(Json(actions::change(&ctx, &grant, patch).await?))
}

/// Removes a role that no account has.
#[utoipa::path(delete, path = "/roles/{id}", tag = "roles", params(("id" = String, Path)), responses(
    (status = 204),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn delete(grant: Grant<RoleRef, RolesWrite>, State(ctx): State<Ctx>) -> Result<StatusCode> {
    actions::delete(&ctx, &grant).await?;
    Ok(StatusCode::NO_CONTENT)
}
