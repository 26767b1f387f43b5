//! `/session` and `/me`: logging in and out, and one's own password.

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::model::{ChangeOwnPassword, LogIn, Session, SessionMode, User};
use crate::authz::actor::{COOKIE_NAME, refuse_foreign_origin};
use crate::authz::first_start::forget_password_file;
use crate::authz::login::{Credentials, Visitor};
use crate::authz::policy::{MePassword, SessionOwn};
use crate::authz::session::SessionKind;
use crate::authz::{Anything, Grant, account};
use crate::core::error::{Problem, ProblemBody, Result};
use crate::core::event::Event;
use crate::core::http::{Body, RequestInfo};
use crate::features::Ctx;

/// The paths.
pub fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new().routes(routes!(log_in, read, log_out)).routes(routes!(change_password))
}

/// Logs in. Anybody may try; after some failures the account and the address must wait (429), and a
/// challenge must be solved (403, `challenge_required`): find the `number` from 0 to `max_number` for
/// which PBKDF2-HMAC-SHA-256 over its decimal digits, with the given `salt` and `iterations`, gives the
/// 32 bytes `challenge`; send it with `salt`, `challenge` and `signature` as `challenge_solution`. Each
/// challenge serves one try within five minutes.
#[utoipa::path(post, path = "/session", tag = "session", request_body = LogIn, security(()), responses(
    (status = 201, body = Session),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn log_in(
    State(ctx): State<Ctx>,
    Extension(info): Extension<RequestInfo>,
    headers: HeaderMap,
    Body(body): Body<LogIn>,
) -> Result<Response> {
    refuse_foreign_origin(&ctx.authz, &headers, info.is_secure)?;
    let kind = match body.mode {
        SessionMode::Cookie => SessionKind::Cookie,
        SessionMode::Token => SessionKind::Token,
    };
    let visitor = Visitor::of(&info, &headers, kind);
    let solution = body.challenge_solution.as_ref();
    let credentials = Credentials { name: &body.username, password: &body.password, solution };
    let (begun, account) = ctx.authz.log_in(&visitor, credentials, kind).await?;
    let token = (kind == SessionKind::Token).then(|| begun.token.expose().to_owned());
    let permissions = ctx.authz.role_of(&account).await?.allowances();
    let (expires_at, user) = (begun.expires_at.into(), User::from(account));
    let session = Session { token, expires_at, user, permissions };
    let mut response = (StatusCode::CREATED, Json(session)).into_response();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if kind == SessionKind::Cookie {
        let seconds = ctx.authz.sessions.absolute.as_secs();
        set_cookie(&info, &mut response, begun.token.expose(), seconds)?;
    }
    Ok(response)
}

/// Says who is logged in.
#[utoipa::path(get, path = "/session", tag = "session", responses(
    (status = 200, body = Session),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn read(grant: Grant<Anything, SessionOwn>, State(ctx): State<Ctx>) -> Result<Json<Session>> {
    let actor = grant.actor();
    let account = account::account(&ctx.db, actor.id).await?;
    let gone = || Problem::unauthorised("unauthorised", "this account is gone");
    let user = User::from(account.ok_or_else(gone)?);
    let permissions = actor.role.allowances();
    Ok(Json(Session { token: None, expires_at: actor.expires_at.into(), user, permissions }))
}

/// Logs out.
#[utoipa::path(delete, path = "/session", tag = "session", responses(
    (status = 204),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn log_out(
    grant: Grant<Anything, SessionOwn>,
    State(ctx): State<Ctx>,
    Extension(info): Extension<RequestInfo>,
) -> Result<Response> {
    ctx.authz.log_out(grant.actor()).await?;
    ctx.events.send(Event::Revoked(grant.actor().id));
    let mut response = StatusCode::NO_CONTENT.into_response();
    set_cookie(&info, &mut response, "", 0)?;
    Ok(response)
}

/// Changes the caller's password and ends the account's other sessions.
#[utoipa::path(put, path = "/me/password", tag = "session", request_body = ChangeOwnPassword, responses(
    (status = 204),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn change_password(
    grant: Grant<Anything, MePassword>,
    State(ctx): State<Ctx>,
    Extension(info): Extension<RequestInfo>,
    Body(body): Body<ChangeOwnPassword>,
) -> Result<StatusCode> {
    let (actor, authz) = (grant.actor(), &ctx.authz);
    let (current, new) = (&body.current_password, &body.new_password);
    authz.change_own_password(actor, info.remote, current, new).await?;
    ctx.events.send(Event::Revoked(actor.id));
    if actor.name == crate::authz::first_start::ADMIN {
        forget_password_file(&ctx.config.data_dir);
    }
    Ok(StatusCode::NO_CONTENT)
}

fn set_cookie(
    info: &RequestInfo,
    response: &mut Response,
    token: &str,
    seconds: u64,
) -> Result<()> {
    let secure = if info.is_secure { "; Secure" } else { "" };
    let text = format!(
        "{COOKIE_NAME}={token}; HttpOnly; SameSite=Strict; Path=/; Max-Age={seconds}{secure}"
    );
    let mut value = HeaderValue::from_str(&text).map_err(|error| Problem::internal(&error))?;
    value.set_sensitive(true);
    response.headers_mut().append(SET_COOKIE, value);
    Ok(())
}
