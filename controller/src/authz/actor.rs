//! Who is asking: a session's token, or an API token, becomes an [`Actor`].

use std::time::Duration;

use axum::http::header::{AUTHORIZATION, COOKIE, HOST, ORIGIN, UPGRADE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method};
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::UserId;
use uuid::Uuid;

use super::policy::{self, Permission as _};
use super::{Authz, Reach, Role, credential, standing};
use crate::config::Sessions;
use crate::core::audit::{Doer, Via};
use crate::core::error::{Problem, Result};
use crate::core::http::{RequestInfo, too_often};

/// Name of the console's session cookie.
pub const COOKIE_NAME: &str = "tianqi_session";

/// How long sessions live.
#[derive(Clone, Copy, Debug)]
pub struct SessionRules {
    /// A session that is not used for so long ends.
    pub idle: Duration,
    /// A session ends after so long whatever happens.
    pub absolute: Duration,
}

impl SessionRules {
    /// Reads `[sessions]`.
    #[must_use]
    pub fn of(sessions: &Sessions) -> Self {
        Self {
            idle: Duration::from_secs(u64::from(sessions.idle_minutes) * 60),
            absolute: Duration::from_secs(u64::from(sessions.absolute_hours) * 3_600),
        }
    }
}

/// Somebody who is logged in.
#[derive(Clone, Debug)]
pub struct Actor {
    /// Which account.
    pub id: UserId,
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// The session or the API token, for listing and revoking.
    pub session: Uuid,
    /// When the session ends at the latest.
    pub expires_at: UnixMillis,
    /// Whether somebody else set the password.
    pub must_change_password: bool,
    /// How they came in.
    pub via: Via,
    /// Where the request came from.
    pub remote_address: String,
    /// The request's id.
    pub request_id: String,
}

impl Actor {
    /// Stands for whoever sits at the controller's machine, whom the kernel has let through.
    #[must_use]
    pub fn local() -> Self {
        Self {
            id: UserId(Uuid::nil()),
            name: "local".to_owned(),
            role: Role::admin(),
            session: Uuid::nil(),
            expires_at: UnixMillis(i64::MAX),
            must_change_password: false,
            via: Via::Local,
            remote_address: String::new(),
            request_id: String::new(),
        }
    }

    /// Whether images and specs that are not on offer are shown, and may be used.
    #[must_use]
    pub fn sees_unlisted(&self) -> bool {
        self.role.reach(policy::CatalogueUnlisted::NAME) == Reach::All
    }

    /// Refuses to give a role, or to touch an account of it, that reaches further than this actor
    /// does: nobody gives what they do not have, and nobody takes over somebody who has more.
    ///
    /// # Errors
    ///
    /// `beyond_own_rights` (403) naming the first permission that is lacking.
    pub fn covers(&self, role: &Role) -> Result<()> {
        let Some(permission) = self.role.lacks(role) else { return Ok(()) };
        let detail =
            format!("the role {role} has {permission}, which reaches further than your own rights");
        Err(Problem::forbidden("beyond_own_rights", detail))
    }

    /// Returns who this is for the audit.
    #[must_use]
    pub fn doer(&self) -> Doer {
        Doer {
            id: Some(self.id),
            name: self.name.clone(),
            kind: "user",
            via: self.via,
            remote_address: self.remote_address.clone(),
            request_id: self.request_id.clone(),
        }
    }
}

/// Finds out who sent the request.
///
/// # Errors
///
/// `unauthorised` (401) without a live session or token, `foreign_origin` (403) when a cookie comes with a
/// write or a WebSocket from another site, `too_many_requests` (429) when the account asks too often.
pub(super) async fn authenticate(authz: &Authz, parts: &Parts) -> Result<Actor> {
    let (token, by_cookie) = presented_token(&parts.headers).ok_or_else(|| {
        Problem::unauthorised("unauthorised", "log in first: POST /api/v1/session")
    })?;
    check_origin(authz, parts, by_cookie)?;
    let found = credential::find(authz, &token, by_cookie).await?.ok_or_else(ended)?;
    let taken = authz.rates.take(found.user, authz.clock.monotonic());
    taken.map_err(|wait| too_often("this account", wait))?;
    let info = parts.extensions.get::<RequestInfo>();
    let remote_address = info.map(|info| info.remote.to_string()).unwrap_or_default();
    credential::note_use(authz, &found, &remote_address).await?;
    Ok(Actor {
        id: found.user,
        role: found.role,
        name: found.name,
        session: found.id,
        via: found.via,
        expires_at: found.expires_at,
        must_change_password: found.must_change_password,
        remote_address,
        request_id: info.map(|info| info.id.clone()).unwrap_or_default(),
    })
}

/// Returns the token and whether it came as a cookie.
fn presented_token(headers: &HeaderMap) -> Option<(String, bool)> {
    if let Some(value) = headers.get(AUTHORIZATION) {
        let token = value.to_str().ok()?.strip_prefix("Bearer ")?.trim();
        return Some((token.to_owned(), false));
    }
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs =
        cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE_NAME).map(|(_, token)| (token.to_owned(), true))
}

/// A cookie is sent by the browser whatever page asks, so a page of another site must not be able to
/// write or to open a WebSocket with it. A bearer token is never sent by itself; a foreign origin is
/// refused with it all the same.
fn check_origin(authz: &Authz, parts: &Parts, by_cookie: bool) -> Result<()> {
    let is_secure = parts.extensions.get::<RequestInfo>().is_some_and(|info| info.is_secure);
    refuse_foreign_origin(authz, &parts.headers, is_secure)?;
    let is_upgrade = parts.headers.contains_key(UPGRADE);
    let is_reading = matches!(parts.method, Method::GET | Method::HEAD) && !is_upgrade;
    let is_fine = is_reading || !by_cookie || parts.headers.contains_key(ORIGIN);
    if is_fine { Ok(()) } else { Err(foreign_origin()) }
}

/// Refuses a request that a page of another site makes, also where nobody is logged in yet. What
/// came by TLS (`is_secure`) is not for a page that did not: anybody on the way may have written it.
///
/// # Errors
///
/// `foreign_origin` (403).
pub fn refuse_foreign_origin(authz: &Authz, headers: &HeaderMap, is_secure: bool) -> Result<()> {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if !headers.contains_key(ORIGIN) {
        return Ok(());
    }
    let origin = header(ORIGIN);
    let own = origin.and_then(|origin| origin.split_once("://")).is_some_and(|(scheme, host)| {
        let is_scheme = scheme == "https" || scheme == "http" && !is_secure;
        is_scheme && Some(host) == header(HOST)
    });
    let is_public = origin.is_some() && origin == authz.public_origin.as_deref();
    if own || is_public { Ok(()) } else { Err(foreign_origin()) }
}

fn foreign_origin() -> Problem {
    Problem::forbidden("foreign_origin", "this request comes from a page of another site")
}

/// Reads again what an actor may do: its session must live and its account may have changed.
///
/// # Errors
///
/// `unauthorised` (401) when the session has ended or the account is disabled.
pub(super) async fn refresh(authz: &Authz, actor: &Actor) -> Result<Actor> {
    // A forward works on while nobody is logged in.
    if actor.via == Via::Forward {
        return standing::owner(authz, actor.id).await;
    }
    let found = credential::again(authz, actor).await?.ok_or_else(ended)?;
    let must_change_password = found.must_change_password;
    Ok(Actor { role: found.role, must_change_password, ..actor.clone() })
}

fn ended() -> Problem {
    Problem::unauthorised("unauthorised", "this session or token has ended; log in again")
}
