//! `/users`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::model::{CreateUser, DeleteUser, PatchUser, ResetPassword, User, UserQuery};
use super::{actions, leaving, store};
use crate::authz::policy::{UsersRead, UsersWrite};
use crate::authz::resource::{Resource, UserRef};
use crate::authz::{Anything, Grant, account};
use crate::core::error::{ProblemBody, Result};
use crate::core::http::{Body, Query};
use crate::core::page::{Page, PageQuery};
use crate::features::Ctx;

const SORTS: &[(&str, &str)] = &[
    ("name", "name"),
    ("display_name", "display_name"),
    ("email", "email"),
    ("role", "role"),
    ("created_at", "created_at"),
];

/// The paths.
pub fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, change, delete))
        .routes(routes!(reset_password))
}

/// Lists accounts.
#[utoipa::path(get, path = "/users", tag = "users", params(UserQuery), responses(
    (status = 200, body = Page<User>),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn list(
    _grant: Grant<Anything, UsersRead>,
    State(ctx): State<Ctx>,
    Query(query): Query<UserQuery>,
) -> Result<Json<Page<User>>> {
    let paging =
        PageQuery { page: query.page, page_size: query.page_size, sort: query.sort.clone() };
    let paging = paging.check(SORTS, "name", "id")?;
    let (accounts, total) = store::page(&ctx.db, &query, &paging).await?;
    Ok(Json(paging.page(accounts.into_iter().map(User::from).collect(), total)))
}

/// Makes an account. Names are unique, so a repeated request makes no second one.
#[utoipa::path(post, path = "/users", tag = "users", request_body = CreateUser, responses(
    (status = 201, body = User),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn create(
    grant: Grant<Anything, UsersWrite>,
    State(ctx): State<Ctx>,
    Body(body): Body<CreateUser>,
) -> Result<(StatusCode, Json<User>)> {
    let account = actions::create(&ctx, &grant, body).await?;
    Ok((StatusCode::CREATED, Json(User::from(account))))
}

/// Reads an account.
#[utoipa::path(get, path = "/users/{id}", tag = "users", params(("id" = uuid::Uuid, Path)), responses(
    (status = 200, body = User),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn get(grant: Grant<UserRef, UsersRead>, State(ctx): State<Ctx>) -> Result<Json<User>> {
    let account = account::account(&ctx.db, grant.resource().id).await?;
    Ok(Json(User::from(account.ok_or_else(UserRef::missing)?)))
}

/// Changes an account.
#[utoipa::path(patch, path = "/users/{id}", tag = "users", params(("id" = uuid::Uuid, Path)),
    request_body = PatchUser, responses(
    (status = 200, body = User),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn change(
    grant: Grant<UserRef, UsersWrite>,
    State(ctx): State<Ctx>,
    Body(patch): Body<PatchUser>,
) -> Result<Json<User>> {
    Ok(Json(User::from(actions::change(&ctx, &grant, patch).await?)))
}

/// Deletes an account with its sessions and API tokens, once nobody's work hangs on it: its instances
/// are gone, or become somebody else's in the same step. Names that the other has already get a number.
#[utoipa::path(delete, path = "/users/{id}", tag = "users",
    params(("id" = uuid::Uuid, Path), DeleteUser), responses(
    (status = 204),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn delete(
    grant: Grant<UserRef, UsersWrite>,
    State(ctx): State<Ctx>,
    Query(query): Query<DeleteUser>,
) -> Result<StatusCode> {
    leaving::delete(&ctx, &grant, query.hand_over_to).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sets somebody's password and ends all sessions of the account.
#[utoipa::path(put, path = "/users/{id}/password", tag = "users",
    params(("id" = uuid::Uuid, Path)), request_body = ResetPassword, responses(
    (status = 204),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn reset_password(
    grant: Grant<UserRef, UsersWrite>,
    State(ctx): State<Ctx>,
    Body(body): Body<ResetPassword>,
) -> Result<StatusCode> {
    actions::reset_password(&ctx, &grant, body).await?;
    Ok(StatusCode::NO_CONTENT)
}
