//! `/me/tokens` and `/users/{id}/tokens`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::actions;
use super::model::{CreateToken, MadeToken, TokenView};
use crate::authz::policy::{MeTokens, UsersRead, UsersWrite};
use crate::authz::resource::UserRef;
use crate::authz::{Anything, Grant};
use crate::core::error::{ProblemBody, Result};
use crate::core::http::{Body, PathId, Query};
use crate::core::page::{Page, PageQuery};
use crate::features::Ctx;

/// The paths.
pub(super) fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new()
        .routes(routes!(own, create))
        .routes(routes!(withdraw_own))
        .routes(routes!(of_user, withdraw_all_of_user))
        .routes(routes!(withdraw_of_user))
}

/// Lists one's own API tokens.
#[utoipa::path(get, path = "/me/tokens", tag = "session", params(PageQuery), responses(
    (status = 200, body = Page<TokenView>),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn own(
    grant: Grant<Anything, MeTokens>,
    State(ctx): State<Ctx>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<TokenView>>> {
    actions::tokens(&ctx, grant.actor().id, &query).await.map(Json)
}

/// Makes an API token; it is shown this once. Names are unique, so a repeated request makes no second
/// one.
#[utoipa::path(post, path = "/me/tokens", tag = "session", request_body = CreateToken, responses(
    (status = 201, body = MadeToken),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn create(
    grant: Grant<Anything, MeTokens>,
    State(ctx): State<Ctx>,
    Body(body): Body<CreateToken>,
) -> Result<(StatusCode, Json<MadeToken>)> {
    let (token, made) = actions::create_token(&ctx, &grant, body).await?;
    let token = token.expose().to_owned();
    Ok((StatusCode::CREATED, Json(MadeToken { token, view: made.into() })))
}

/// Withdraws one of one's own API tokens, and ends what is open by it.
#[utoipa::path(delete, path = "/me/tokens/{id}", tag = "session", params(("id" = uuid::Uuid, Path)), responses(
    (status = 204),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn withdraw_own(
    grant: Grant<Anything, MeTokens>,
    State(ctx): State<Ctx>,
    PathId(id): PathId,
) -> Result<StatusCode> {
    let actor = grant.actor();
    actions::withdraw_token(&ctx, actor, "me:tokens", actor.id, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists somebody's API tokens.
#[utoipa::path(get, path = "/users/{id}/tokens", tag = "users", params(("id" = uuid::Uuid, Path), PageQuery), responses(
    (status = 200, body = Page<TokenView>),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn of_user(
    grant: Grant<UserRef, UsersRead>,
    State(ctx): State<Ctx>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<TokenView>>> {
    actions::tokens(&ctx, grant.resource().id, &query).await.map(Json)
}

/// Withdraws all of somebody's API tokens, and ends what is open by them.
#[utoipa::path(delete, path = "/users/{id}/tokens", tag = "users", params(("id" = uuid::Uuid, Path)), responses(
    (status = 204),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn withdraw_all_of_user(
    grant: Grant<UserRef, UsersWrite>,
    State(ctx): State<Ctx>,
) -> Result<StatusCode> {
    actions::withdraw_all_tokens(&ctx, &grant).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Withdraws one of somebody's API tokens, and ends what is open by it.
#[utoipa::path(delete, path = "/users/{id}/tokens/{token}", tag = "users",
    params(("id" = uuid::Uuid, Path), ("token" = uuid::Uuid, Path)), responses(
    (status = 204),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn withdraw_of_user(
    grant: Grant<UserRef, UsersWrite>,
    State(ctx): State<Ctx>,
    PathId(token): PathId,
) -> Result<StatusCode> {
    let user = grant.resource().id;
    actions::withdraw_token(&ctx, grant.actor(), "users:write", user, token).await?;
    Ok(StatusCode::NO_CONTENT)
}
