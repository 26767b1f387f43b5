//! `/me/ssh-keys` and `/users/{id}/ssh-keys`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::key_actions;
use super::model::{AddSshKey, SshKeyView};
use crate::authz::policy::{MeSshKeys, UsersRead, UsersWrite};
use crate::authz::resource::UserRef;
use crate::authz::{Anything, Grant};
use crate::core::error::{ProblemBody, Result};
use crate::core::http::{Body, PathId, Query};
use crate::core::page::{Page, PageQuery};
use crate::features::Ctx;

/// The paths.
pub(super) fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new()
        .routes(routes!(own, add))
        .routes(routes!(remove_own))
        .routes(routes!(of_user))
        .routes(routes!(remove_of_user))
}

/// Lists one's own SSH public keys.
#[utoipa::path(get, path = "/me/ssh-keys", tag = "session", params(PageQuery), responses(
    (status = 200, body = Page<SshKeyView>),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn own(
    grant: Grant<Anything, MeSshKeys>,
    State(ctx): State<Ctx>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<SshKeyView>>> {
    key_actions::keys(&ctx, grant.actor().id, &query).await.map(Json)
}

/// Adds an SSH public key; whoever holds its private half may log in at the jumpbox. A key is added
/// once, so a repeated request adds no second one.
#[utoipa::path(post, path = "/me/ssh-keys", tag = "session", request_body = AddSshKey, responses(
    (status = 201, body = SshKeyView),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn add(
    grant: Grant<Anything, MeSshKeys>,
    State(ctx): State<Ctx>,
    Body(body): Body<AddSshKey>,
) -> Result<(StatusCode, Json<SshKeyView>)> {
    let added = key_actions::add(&ctx, &grant, body).await?;
    Ok((StatusCode::CREATED, Json(added.into())))
}

/// Removes one of one's own SSH public keys, and ends the SSH sessions that were begun with it.
#[utoipa::path(delete, path = "/me/ssh-keys/{id}", tag = "session", params(("id" = uuid::Uuid, Path)), responses(
    (status = 204),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn remove_own(
    grant: Grant<Anything, MeSshKeys>,
    State(ctx): State<Ctx>,
    PathId(id): PathId,
) -> Result<StatusCode> {
    let actor = grant.actor();
    key_actions::remove(&ctx, actor, "me:ssh_keys", actor.id, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists somebody's SSH public keys.
#[utoipa::path(get, path = "/users/{id}/ssh-keys", tag = "users", params(("id" = uuid::Uuid, Path), PageQuery), responses(
    (status = 200, body = Page<SshKeyView>),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn of_user(
    grant: Grant<UserRef, UsersRead>,
    State(ctx): State<Ctx>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<SshKeyView>>> {
    key_actions::keys(&ctx, grant.resource().id, &query).await.map(Json)
}

/// Removes one of somebody's SSH public keys, and ends the SSH sessions that were begun with it.
#[utoipa::path(delete, path = "/users/{id}/ssh-keys/{key}", tag = "users",
    params(("id" = uuid::Uuid, Path), ("key" = uuid::Uuid, Path)), responses(
    (status = 204),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn remove_of_user(
    grant: Grant<UserRef, UsersWrite>,
    State(ctx): State<Ctx>,
    PathId(key): PathId,
) -> Result<StatusCode> {
    let user = grant.resource().id;
    key_actions::remove(&ctx, grant.actor(), "users:write", user, key).await?;
    Ok(StatusCode::NO_CONTENT)
}
