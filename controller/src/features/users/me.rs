//! `/me`: one's own account.

use axum::Json;
use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::actions;
use super::model::{PatchMe, User};
use crate::authz::policy::{MeRead, MeWrite};
use crate::authz::resource::{Resource, UserRef};
use crate::authz::{Anything, Grant, account};
use crate::core::error::{ProblemBody, Result};
use crate::core::http::Body;
use crate::features::Ctx;

/// The paths.
pub(super) fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new().routes(routes!(read, change))
}

/// Reads one's own account.
#[utoipa::path(get, path = "/me", tag = "session", responses(
    (status = 200, body = User),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn read(grant: Grant<Anything, MeRead>, State(ctx): State<Ctx>) -> Result<Json<User>> {
    let account = account::account(&ctx.db, grant.actor().id).await?;
    Ok(Json(User::from(account.ok_or_else(UserRef::missing)?)))
}

/// Changes what one's own account says of its owner; name and role are for others to change.
#[utoipa::path(patch, path = "/me", tag = "session", request_body = PatchMe, responses(
    (status = 200, body = User),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn change(
    grant: Grant<Anything, MeWrite>,
    State(ctx): State<Ctx>,
    Body(patch): Body<PatchMe>,
) -> Result<Json<User>> {
    Ok(Json(User::from(actions::change_own(&ctx, &grant, patch).await?)))
}
