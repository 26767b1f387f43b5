//! Sessions and API tokens as what they are sent for: a secret text that stands for an account.

use std::time::Duration;

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::UserId;
use uuid::Uuid;

use super::actor::Actor;
use super::{Authz, Role, token};
use crate::core::audit::Via;
use crate::core::db::{DbError, args, row};
use crate::core::error::Result;
use crate::core::secret::token_hash;

/// A use is written down at most this often, so that reading does not mean writing.
const TOUCH_EVERY: Duration = Duration::from_secs(60);

row! {
    struct CredentialRow {
        id: Uuid,
        user_id: Uuid,
        kind: String,
        allowed: Option<String>,
        last_used_at: Option<i64>,
        expires_at: i64,
        name: String,
        role: String,
        permissions: Option<String>,
        disabled: bool,
        must_change_password: bool,
    }
}

/// A session or an API token that may be used now.
#[derive(Debug)]
pub(super) struct Credential {
    pub(super) id: Uuid,
    pub(super) user: UserId,
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) via: Via,
    pub(super) expires_at: UnixMillis,
    pub(super) must_change_password: bool,
    last_used_at: Option<UnixMillis>,
}

const SESSIONS: &str = "select s.id, s.user_id, s.kind, null as allowed, s.last_used_at, \
     s.expires_at, u.name, u.role, r.permissions, u.disabled, u.must_change_password \
     from sessions s join users u on u.id = s.user_id left join roles r on r.name = u.role";
const TOKENS: &str = "select t.id, t.user_id, 'api_token' as kind, t.permissions as allowed, \
     t.last_used_at, t.expires_at, u.name, u.role, r.permissions, u.disabled, \
     u.must_change_password \
     from api_tokens t join users u on u.id = t.user_id left join roles r on r.name = u.role";

fn is_api_token(text: &str) -> bool {
    text.starts_with(token::PREFIX)
}

/// Returns what the kind of a session, or of a token, is to the audit.
fn via_of(kind: &str) -> Option<Via> {
    [Via::Cookie, Via::Token, Via::ApiToken, Via::Ssh].into_iter().find(|via| via.as_str() == kind)
}

/// Finds what a client sent, as a cookie or otherwise; nothing when it may not be used.
pub(super) async fn find(authz: &Authz, text: &str, by_cookie: bool) -> Result<Option<Credential>> {
    let from = if is_api_token(text) { TOKENS } else { SESSIONS };
    let hash = if is_api_token(text) { "t.token_hash" } else { "s.token_hash" };
    let sql = format!("{from} where {hash} = $1");
    let row: Option<CredentialRow> = authz.db.first(&sql, args![token_hash(text)]).await?;
    let found = row.map(|row| usable(authz, row)).transpose()?.flatten();
    // A session of SSH is its connection; its token was given to nobody.
    Ok(found.filter(|it| it.via != Via::Ssh && (it.via == Via::Cookie) == by_cookie))
}

/// Finds again what `actor` came by; nothing when it may not be used any more.
pub(super) async fn again(authz: &Authz, actor: &Actor) -> Result<Option<Credential>> {
    let sql = match actor.via {
        Via::ApiToken => format!("{TOKENS} where t.id = $1"),
        Via::Cookie
        | Via::Token
        | Via::Ssh
        | Via::Forward
        | Via::Local
        | Via::Agent
        | Via::System => {
            format!("{SESSIONS} where s.id = $1")
        }
    };
    let row: Option<CredentialRow> = authz.db.first(&sql, args![actor.session]).await?;
    Ok(row.map(|row| usable(authz, row)).transpose()?.flatten())
}

fn usable(authz: &Authz, row: CredentialRow) -> Result<Option<Credential>, DbError> {
    let (now, last_used_at) = (authz.clock.now(), row.last_used_at.map(UnixMillis));
    let via = via_of(&row.kind);
    let is_idle = via != Some(Via::ApiToken)
        && last_used_at.is_none_or(|last| now.since(last) >= authz.sessions.idle);
    let Some(via) = via.filter(|_| !row.disabled && now.0 < row.expires_at && !is_idle) else {
        return Ok(None);
    };
    let mut role = Role::of_row(&row.role, row.permissions.as_deref())?;
    if let Some(allowed) = &row.allowed {
        role = role.narrowed_to(&token::permissions(allowed)?);
    }
    Ok(Some(Credential {
        id: row.id,
        user: UserId(row.user_id),
        name: row.name,
        role,
        via,
        expires_at: UnixMillis(row.expires_at),
        must_change_password: row.must_change_password,
        last_used_at,
    }))
}

/// Notes a use, unless one was noted less than a minute ago.
pub(super) async fn note_use(authz: &Authz, it: &Credential, address: &str) -> Result<()> {
    let now = authz.clock.now();
    if it.last_used_at.is_some_and(|last| now.since(last) < TOUCH_EVERY) {
        return Ok(());
    }
    write_use(authz, it.id, it.via, address).await
}

/// Notes that an actor is at work in something that is open for long.
pub(super) async fn touch(authz: &Authz, actor: &Actor) -> Result<()> {
    write_use(authz, actor.session, actor.via, &actor.remote_address).await
}

async fn write_use(authz: &Authz, id: Uuid, via: Via, address: &str) -> Result<()> {
    const SESSION: &str = "update sessions set last_used_at = $1 where id = $2";
    const TOKEN: &str =
        "update api_tokens set last_used_at = $1, last_used_address = $3 where id = $2";
    let now = authz.clock.now();
    match via {
        Via::ApiToken => authz.db.run(TOKEN, args![now, id, address]).await?,
        Via::Cookie | Via::Token | Via::Ssh => authz.db.run(SESSION, args![now, id]).await?,
        Via::Forward | Via::Local | Via::Agent | Via::System => 0,
    };
    Ok(())
}
