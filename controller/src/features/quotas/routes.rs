//! `/quotas` and `/me/quota`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::model::{OwnQuota, QuotaFields, QuotaQuery, QuotaView, RoleQuota, UserQuota};
use super::{actions, store};
use crate::authz::policy::{MeQuota, QuotasRead, QuotasWrite};
use crate::authz::resource::{RoleRef, UserRef};
use crate::authz::{Anything, Grant};
use crate::core::error::{ProblemBody, Result};
use crate::core::http::{Body, Query};
use crate::core::page::{Page, PageQuery};
use crate::core::timestamp::Timestamp;
use crate::features::Ctx;

const SORTS: &[(&str, &str)] =
    &[("name", "coalesce(u.name, q.role)"), ("updated_at", "q.updated_at")];

/// The room's paths.
pub fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get_user, set_user, clear_user))
        .routes(routes!(get_role, set_role, clear_role))
        .routes(routes!(own))
}

/// Lists the quotas that were set, of accounts and of roles.
#[utoipa::path(get, path = "/quotas", tag = "quotas", params(QuotaQuery), responses(
    (status = 200, body = Page<QuotaView>),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn list(
    _grant: Grant<Anything, QuotasRead>,
    State(ctx): State<Ctx>,
    Query(query): Query<QuotaQuery>,
) -> Result<Json<Page<QuotaView>>> {
    let paging =
        PageQuery { page: query.page, page_size: query.page_size, sort: query.sort.clone() };
    let paging = paging.check(SORTS, "name", "q.id")?;
    let (rows, total) = store::page(&ctx.db, &query, &paging).await?;
    let view = |row: store::ListRow| QuotaView {
        quota: row.settings().into(),
        user_id: row.user_id,
        user_name: row.user_name,
        role: row.role,
        updated_at: Timestamp::from_stored(row.updated_at),
    };
    Ok(Json(paging.page(rows.into_iter().map(view).collect(), total)))
}

/// Says what an account may have and uses.
#[utoipa::path(get, path = "/quotas/users/{id}", tag = "quotas",
    params(("id" = uuid::Uuid, Path)), responses(
    (status = 200, body = UserQuota),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn get_user(
    grant: Grant<UserRef, QuotasRead>,
    State(ctx): State<Ctx>,
) -> Result<Json<UserQuota>> {
    Ok(Json(actions::read_user(&ctx, grant.resource().id).await?))
}

/// Replaces an account's own quota. What is left out or null, the role's quota says.
#[utoipa::path(put, path = "/quotas/users/{id}", tag = "quotas",
    params(("id" = uuid::Uuid, Path)), request_body = QuotaFields, responses(
    (status = 200, body = UserQuota),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn set_user(
    grant: Grant<UserRef, QuotasWrite>,
    State(ctx): State<Ctx>,
    Body(fields): Body<QuotaFields>,
) -> Result<Json<UserQuota>> {
    Ok(Json(actions::set_user(&ctx, &grant, fields).await?))
}

/// Removes an account's own quota, so that its role's applies.
#[utoipa::path(delete, path = "/quotas/users/{id}", tag = "quotas",
    params(("id" = uuid::Uuid, Path)), responses(
    (status = 204),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn clear_user(
    grant: Grant<UserRef, QuotasWrite>,
    State(ctx): State<Ctx>,
) -> Result<StatusCode> {
    actions::clear_user(&ctx, &grant).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Says what every account of a role may have, unless its own quota says otherwise.
#[utoipa::path(get, path = "/quotas/roles/{id}", tag = "quotas",
    params(("id" = String, Path)), responses(
    (status = 200, body = RoleQuota),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn get_role(
    grant: Grant<RoleRef, QuotasRead>,
    State(ctx): State<Ctx>,
) -> Result<Json<RoleQuota>> {
    Ok(Json(actions::read_role(&ctx, &grant.resource().name).await?))
}

/// Replaces a role's quota. What is left out or null has no limit.
#[utoipa::path(put, path = "/quotas/roles/{id}", tag = "quotas",
    params(("id" = String, Path)), request_body = QuotaFields, responses(
    (status = 200, body = RoleQuota),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn set_role(
    grant: Grant<RoleRef, QuotasWrite>,
    State(ctx): State<Ctx>,
    Body(fields): Body<QuotaFields>,
) -> Result<Json<RoleQuota>> {
    Ok(Json(actions::set_role(&ctx, &grant, fields).await?))
}

/// Removes a role's quota.
#[utoipa::path(delete, path = "/quotas/roles/{id}", tag = "quotas",
    params(("id" = String, Path)), responses(
    (status = 204),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn clear_role(
    grant: Grant<RoleRef, QuotasWrite>,
    State(ctx): State<Ctx>,
) -> Result<StatusCode> {
    actions::clear_role(&ctx, &grant).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Says what the caller may have and uses.
#[utoipa::path(get, path = "/me/quota", tag = "quotas", responses(
    (status = 200, body = OwnQuota),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn own(grant: Grant<Anything, MeQuota>, State(ctx): State<Ctx>) -> Result<Json<OwnQuota>> {
    let UserQuota { limits, used, .. } = actions::read_user(&ctx, grant.actor().id).await?;
    Ok(Json(OwnQuota { limits, used }))
}
