//! The verbs: list and end sessions, make, list and withdraw API tokens.

use serde_json::{Value, json};
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::UserId;
use uuid::Uuid;

use super::model::{CreateToken, SessionView, TokenView};
use crate::authz::policy::{self, MeTokens, UsersWrite};
use crate::authz::resource::{Resource, UserRef};
use crate::authz::token::{self, ApiToken};
use crate::authz::{Actor, Anything, Grant, Reach, session};
use crate::core::audit::{self, Entry, Outcome};
use crate::core::db::Tx;
use crate::core::error::{Problem, Result};
use crate::core::event::Event;
use crate::core::page::{Page, PageQuery};
use crate::core::secret::Secret;
use crate::core::text;
use crate::features::Ctx;
use crate::features::users::actions::stays_within;
use crate::features::users::store;

const SESSION_SORTS: &[(&str, &str)] =
    &[("last_used_at", "last_used_at"), ("created_at", "created_at"), ("expires_at", "expires_at")];
const TOKEN_SORTS: &[(&str, &str)] = &[
    ("name", "name"),
    ("last_used_at", "last_used_at"),
    ("created_at", "created_at"),
    ("expires_at", "expires_at"),
];
/// Longest name of a token, in characters.
const NAME_MAX: usize = 50;
const DAY_SECONDS: u64 = 24 * 3_600;

/// Lists the sessions of `user` that live, as `actor` sees them.
///
/// # Errors
///
/// `bad_page` and `bad_sort` (422).
pub(super) async fn sessions(
    ctx: &Ctx,
    actor: &Actor,
    user: UserId,
    query: &PageQuery,
) -> Result<Page<SessionView>> {
    let paging = query.check(SESSION_SORTS, "-last_used_at", "id")?;
    let (rules, now) = (ctx.authz.sessions, ctx.clock.now());
    let (rows, total) = session::page(&ctx.db, rules, user, now, &paging).await?;
    let views = rows.into_iter().map(|it| SessionView::of(it, actor.session));
    Ok(paging.page(views.collect(), total))
}

/// Ends a session of `user`.
///
/// # Errors
///
/// `no_such_session` (404), `beyond_own_rights` (403).
pub(super) async fn end_session(
    ctx: &Ctx,
    actor: &Actor,
    action: &'static str,
    user: UserId,
    id: Uuid,
) -> Result<()> {
    let mut tx = begin(ctx, actor, user).await?;
    if !session::end_of(&mut tx, user, id).await? {
        return Err(Problem::not_found("no_such_session", "there is no such session"));
    }
    let what = What { action, kind: "session", id: id.to_string() };
    let detail = json!({ "event": "session_ended", "user_id": user });
    finish(ctx, tx, actor, what, detail, user).await
}

/// Ends every session of an account.
///
/// # Errors
///
/// `beyond_own_rights` (403).
pub(super) async fn end_all_sessions(ctx: &Ctx, grant: &Grant<UserRef, UsersWrite>) -> Result<()> {
    let user = grant.resource().id;
    let mut tx = begin(ctx, grant.actor(), user).await?;
    let ended = session::end_all(&mut tx, user, None).await?;
    let what = What { action: "users:write", kind: "user", id: user.to_string() };
    let detail = json!({ "event": "sessions_ended", "ended_sessions": ended });
    finish(ctx, tx, grant.actor(), what, detail, user).await
}

/// Lists the API tokens of `user`.
///
/// # Errors
///
/// `bad_page` and `bad_sort` (422).
pub(super) async fn tokens(ctx: &Ctx, user: UserId, query: &PageQuery) -> Result<Page<TokenView>> {
    let paging = query.check(TOKEN_SORTS, "name", "id")?;
    let (rows, total) = token::page(&ctx.db, user, &paging).await?;
    Ok(paging.page(rows.into_iter().map(TokenView::from).collect(), total))
}

/// Makes an API token of the caller's.
///
/// # Errors
///
/// `bad_field` (422), `beyond_own_rights` (403), `too_many_tokens` and `duplicate` (409).
pub(super) async fn create_token(
    ctx: &Ctx,
    grant: &Grant<Anything, MeTokens>,
    body: CreateToken,
) -> Result<(Secret, ApiToken)> {
    let (actor, now) = (grant.actor(), ctx.clock.now());
    let made = checked(ctx, actor, body, now)?;
    let (secret, most) = (token::random(), ctx.config.tokens.per_account);
    let mut tx = ctx.db.begin().await?;
    if token::count(&mut tx, actor.id, now).await? >= i64::from(most) {
        let detail = format!("this account has {most} API tokens already; withdraw one");
        return Err(Problem::conflict("too_many_tokens", detail));
    }
    token::insert(&mut tx, &made, &secret).await?;
    let detail = json!({
        "event": "token_made", "name": made.name, "permissions": made.permissions,
        "expires_at": made.expires_at,
    });
    let what = What { action: "me:tokens", kind: "api_token", id: made.id.to_string() };
    note(&mut tx, now, actor, what, detail).await?;
    tx.commit().await?;
    Ok((secret, made))
}

fn checked(ctx: &Ctx, actor: &Actor, body: CreateToken, now: UnixMillis) -> Result<ApiToken> {
    text::line("name", &body.name, 1, NAME_MAX)?;
    let mut permissions = body.permissions;
    permissions.sort_unstable();
    permissions.dedup();
    for name in &permissions {
        grantable(actor, name)?;
    }
    let rules = &ctx.config.tokens;
    let days = body.expires_in_days.unwrap_or(rules.default_days);
    if permissions.is_empty() {
        let detail = "permissions: name at least one, such as instances:read";
        return Err(Problem::invalid("bad_field", detail));
    }
    if !(1..=rules.max_days).contains(&days) {
        let detail = format!("expires_in_days is 1 to {}, not {days}", rules.max_days);
        return Err(Problem::invalid("bad_field", detail));
    }
    let lifetime = std::time::Duration::from_secs(u64::from(days) * DAY_SECONDS);
    Ok(ApiToken {
        id: Uuid::now_v7(),
        user: actor.id,
        name: body.name,
        permissions,
        created_at: now,
        expires_at: now.plus(lifetime),
        last_used_at: None,
        last_used_address: String::new(),
    })
}

/// Refuses what no token may do, and what its maker may not do.
fn grantable(actor: &Actor, name: &str) -> Result<()> {
    let Some(info) = policy::PERMISSIONS.iter().find(|info| info.name == name) else {
        let detail = format!("permissions: there is no permission {name:?}");
        return Err(Problem::invalid("bad_field", detail));
    };
    if !info.is_for_tokens() {
        let detail = format!("permissions: {name} is for people alone, not for tokens");
        return Err(Problem::invalid("bad_field", detail));
    }
    if actor.role.reach(name) == Reach::None {
        let detail = format!("your role {} lacks the permission {name}", actor.role);
        return Err(Problem::forbidden("beyond_own_rights", detail));
    }
    Ok(())
}

/// Withdraws an API token of `user`.
///
/// # Errors
///
/// `no_such_token` (404), `beyond_own_rights` (403).
pub(super) async fn withdraw_token(
    ctx: &Ctx,
    actor: &Actor,
    action: &'static str,
    user: UserId,
    id: Uuid,
) -> Result<()> {
    let mut tx = begin(ctx, actor, user).await?;
    let Some(name) = token::withdraw(&mut tx, user, id).await? else {
        return Err(Problem::not_found("no_such_token", "there is no such API token"));
    };
    let what = What { action, kind: "api_token", id: id.to_string() };
    let detail = json!({ "event": "token_withdrawn", "name": name, "user_id": user });
    finish(ctx, tx, actor, what, detail, user).await
}

/// Withdraws every API token of an account.
///
/// # Errors
///
/// `beyond_own_rights` (403).
pub(super) async fn withdraw_all_tokens(
    ctx: &Ctx,
    grant: &Grant<UserRef, UsersWrite>,
) -> Result<()> {
    let user = grant.resource().id;
    let mut tx = begin(ctx, grant.actor(), user).await?;
    let withdrawn = token::withdraw_all(&mut tx, user).await?;
    let what = What { action: "users:write", kind: "user", id: user.to_string() };
    let detail = json!({ "event": "tokens_withdrawn", "withdrawn_tokens": withdrawn });
    finish(ctx, tx, grant.actor(), what, detail, user).await
}

/// Begins a transaction that ends something of `user`: one's own, or that of somebody whose role
/// reaches no further than the actor's.
pub(super) async fn begin(ctx: &Ctx, actor: &Actor, user: UserId) -> Result<Tx> {
    let mut tx = ctx.db.begin().await?;
    if user != actor.id {
        let account = store::lock(&mut tx, user).await?.ok_or_else(UserRef::missing)?;
        stays_within(&mut tx, actor, &account.role).await?;
    }
    Ok(tx)
}

/// What was done, for the audit.
pub(super) struct What {
    /// The permission's name.
    pub action: &'static str,
    /// What kind of thing it was done to.
    pub kind: &'static str,
    /// To which.
    pub id: String,
}

/// Writes it down, makes it durable, and tells whoever holds something open for `user`.
pub(super) async fn finish(
    ctx: &Ctx,
    mut tx: Tx,
    actor: &Actor,
    what: What,
    detail: Value,
    user: UserId,
) -> Result<()> {
    note(&mut tx, ctx.clock.now(), actor, what, detail).await?;
    tx.commit().await?;
    ctx.events.send(Event::Revoked(user));
    Ok(())
}

/// Writes in `tx` what was done.
pub(super) async fn note(
    tx: &mut Tx,
    now: UnixMillis,
    actor: &Actor,
    what: What,
    detail: Value,
) -> Result<()> {
    let entry = Entry {
        doer: &actor.doer(),
        action: what.action,
        target_kind: what.kind,
        target_id: what.id,
        outcome: Outcome::Done,
        detail,
    };
    Ok(audit::record(tx, now, &entry).await?)
}
