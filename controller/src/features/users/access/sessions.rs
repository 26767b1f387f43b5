//! `/me/sessions` and `/users/{id}/sessions`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::actions;
use super::model::SessionView;
use crate::authz::policy::{MeSessions, UsersRead, UsersWrite};
use crate::authz::resource::UserRef;
use crate::authz::{Anything, Grant};
use crate::core::error::{ProblemBody, Result};
use crate::core::http::{PathId, Query};
use crate::core::page::{Page, PageQuery};
use crate::features::Ctx;

/// The paths.
pub(super) fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new()
        .routes(routes!(own))
        .routes(routes!(end_own))
        .routes(routes!(of_user, end_all_of_user))
        .routes(routes!(end_of_user))
}

/// Lists one's own sessions.
#[utoipa::path(get, path = "/me/sessions", tag = "session", params(PageQuery), responses(
    (status = 200, body = Page<SessionView>),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn own(
    grant: Grant<Anything, MeSessions>,
    State(ctx): State<Ctx>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<SessionView>>> {
    let actor = grant.actor();
    actions::sessions(&ctx, actor, actor.id, &query).await.map(Json)
}

/// Ends one of one's own sessions, and what is open by it.
#[utoipa::path(delete, path = "/me/sessions/{id}", tag = "session", params(("id" = uuid::Uuid, Path)), responses(
    (status = 204),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn end_own(
    grant: Grant<Anything, MeSessions>,
    State(ctx): State<Ctx>,
    PathId(id): PathId,
) -> Result<StatusCode> {
    let actor = grant.actor();
    actions::end_session(&ctx, actor, "me:sessions", actor.id, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists somebody's sessions.
#[utoipa::path(get, path = "/users/{id}/sessions", tag = "users", params(("id" = uuid::Uuid, Path), PageQuery), responses(
    (status = 200, body = Page<SessionView>),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn of_user(
    grant: Grant<UserRef, UsersRead>,
    State(ctx): State<Ctx>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<SessionView>>> {
    actions::sessions(&ctx, grant.actor(), grant.resource().id, &query).await.map(Json)
}

/// Ends all of somebody's sessions, and what is open by them.
#[utoipa::path(delete, path = "/users/{id}/sessions", tag = "users", params(("id" = uuid::Uuid, Path)), responses(
    (status = 204),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn end_all_of_user(
    grant: Grant<UserRef, UsersWrite>,
    State(ctx): State<Ctx>,
) -> Result<StatusCode> {
    actions::end_all_sessions(&ctx, &grant).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends one of somebody's sessions, and what is open by it.
#[utoipa::path(delete, path = "/users/{id}/sessions/{session}", tag = "users",
    params(("id" = uuid::Uuid, Path), ("session" = uuid::Uuid, Path)), responses(
    (status = 204),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn end_of_user(
    grant: Grant<UserRef, UsersWrite>,
    State(ctx): State<Ctx>,
    PathId(session): PathId,
) -> Result<StatusCode> {
    let user = grant.resource().id;
    actions::end_session(&ctx, grant.actor(), "users:write", user, session).await?;
    Ok(StatusCode::NO_CONTENT)
}
