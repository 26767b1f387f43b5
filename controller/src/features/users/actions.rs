//! The verbs: create, change, reset a password.

use serde_json::json;
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::UserId;
use tianqi_common::name::UserName;

use super::model::{CreateUser, PatchMe, PatchUser, ResetPassword, User};
use super::{profile, store};
use crate::authz::account::{self, Account};
use crate::authz::policy::{MeWrite, UsersWrite};
use crate::authz::resource::{Resource, UserRef};
use crate::authz::{Actor, Anything, Grant, RoleName, role, session, token};
use crate::core::audit::{self, Doer, Entry, Outcome};
use crate::core::db::Tx;
use crate::core::error::{Problem, Result};
use crate::core::event::Event;
use crate::features::Ctx;

/// Makes an account.
///
/// # Errors
///
/// `bad_field` and `weak_password` (422), `duplicate` (409), `beyond_own_rights` (403), `busy` (503).
pub(super) async fn create(
    ctx: &Ctx,
    grant: &Grant<Anything, UsersWrite>,
    body: CreateUser,
) -> Result<Account> {
    let name = UserName::parse(&body.name)
        .map_err(|error| Problem::invalid("bad_field", format!("name: {error}")))?;
    let now = ctx.clock.now();
    let mut account = Account {
        display_name: body.display_name,
        email: body.email,
        phone: body.phone,
        avatar_color: body.avatar_color,
        must_change_password: body.must_change_password,
        ..Account::new(name.into(), body.role, now)
    };
    profile::check(&mut account)?;
    ctx.authz.check_new_password(&body.password, &account.name)?;
    let hash = ctx.authz.hasher.hash(&body.password).await?;
    let mut tx = ctx.db.begin().await?;
    stays_within(&mut tx, grant.actor(), &account.role).await?;
    account::insert(&mut tx, &account, &hash).await?;
    let detail = json!({ "name": account.name, "role": account.role });
    note(&mut tx, now, &grant.actor().doer(), "users:create", account.id, detail).await?;
    tx.commit().await?;
    Ok(account)
}

/// Changes an account. Disabling it ends its sessions and withdraws its API tokens.
///
/// # Errors
///
/// `bad_field` (422), `own_account` and `last_admin` (409), `beyond_own_rights` (403).
pub(super) async fn change(
    ctx: &Ctx,
    grant: &Grant<UserRef, UsersWrite>,
    patch: PatchUser,
) -> Result<Account> {
    let (id, now) = (grant.resource().id, ctx.clock.now());
    let mut tx = ctx.db.begin().await?;
    let admins = store::lock_admins(&mut tx).await?;
    let old = store::lock(&mut tx, id).await?.ok_or_else(UserRef::missing)?;
    let (display_name, email) = (patch.display_name, patch.email);
    let (phone, avatar_color) = (patch.phone, patch.avatar_color);
    let said = PatchMe { display_name, email, phone, avatar_color };
    let new = Account {
        role: patch.role.over_required("role", old.role.clone())?,
        disabled: patch.disabled.over_required("disabled", old.disabled)?,
        updated_at: now,
        ..profile::changed(&old, said)?
    };
    let loses_rights = new.role != old.role || (new.disabled && !old.disabled);
    if loses_rights && id == grant.actor().id {
        let detail =
            "nobody changes the role of their own account or disables it; ask another admin";
        return Err(Problem::conflict("own_account", detail));
    }
    if new.disabled || new.role != RoleName::ADMIN {
        keep_an_admin(&admins, id)?;
    }
    stays_within(&mut tx, grant.actor(), &old.role).await?;
    stays_within(&mut tx, grant.actor(), &new.role).await?;
    store::update(&mut tx, &new, now).await?;
    if new.disabled {
        session::end_all(&mut tx, id, None).await?;
        token::withdraw_all(&mut tx, id).await?;
    }
    let changes = audit::changes(&User::from(old.clone()), &User::from(new.clone()));
    let detail = json!({ "name": new.name, "changes": changes });
    note(&mut tx, now, &grant.actor().doer(), "users:change", id, detail).await?;
    tx.commit().await?;
    if loses_rights {
        ctx.events.send(Event::Revoked(id));
    }
    Ok(new)
}

/// Changes what the caller's own account says of its owner.
///
/// # Errors
///
/// `bad_field` (422).
pub(super) async fn change_own(
    ctx: &Ctx,
    grant: &Grant<Anything, MeWrite>,
    patch: PatchMe,
) -> Result<Account> {
    let (id, now) = (grant.actor().id, ctx.clock.now());
    let mut tx = ctx.db.begin().await?;
    let old = store::lock(&mut tx, id).await?.ok_or_else(UserRef::missing)?;
    let new = Account { updated_at: now, ..profile::changed(&old, patch)? };
    store::update(&mut tx, &new, now).await?;
    note(&mut tx, now, &grant.actor().doer(), "me:write", id, json!({})).await?;
    tx.commit().await?;
    Ok(new)
}

/// Sets somebody else's password, ends all sessions of the account and withdraws its API tokens.
///
/// # Errors
///
/// `weak_password` (422), `own_account` (409), `beyond_own_rights` (403), `busy` (503).
pub(super) async fn reset_password(
    ctx: &Ctx,
    grant: &Grant<UserRef, UsersWrite>,
    body: ResetPassword,
) -> Result<()> {
    let id = grant.resource().id;
    if id == grant.actor().id {
        let detail = "change your own password at PUT /api/v1/me/password";
        return Err(Problem::conflict("own_account", detail));
    }
    let name = account::account(&ctx.db, id).await?.ok_or_else(UserRef::missing)?.name;
    ctx.authz.check_new_password(&body.password, &name)?;
    let hash = ctx.authz.hasher.hash(&body.password).await?;
    let doer = grant.actor().doer();
    let mut tx = ctx.db.begin().await?;
    let account = store::lock(&mut tx, id).await?.ok_or_else(UserRef::missing)?;
    stays_within(&mut tx, grant.actor(), &account.role).await?;
    ctx.authz.reset_password(&mut tx, &doer, id, &hash, body.must_change_password).await?;
    tx.commit().await?;
    ctx.events.send(Event::Revoked(id));
    Ok(())
}

/// Refuses to touch an account, or to give a role, that reaches further than `actor` does: nobody
/// gives what they do not have, and nobody takes over somebody who has more.
pub(super) async fn stays_within(tx: &mut Tx, actor: &Actor, name: &RoleName) -> Result<()> {
    let Some(role) = role::find(tx, name).await? else {
        let detail =
            format!("role: there is no role {:?}; GET /api/v1/roles lists them", name.as_str());
        return Err(Problem::invalid("bad_field", detail));
    };
    actor.covers(&role)
}

/// Refuses to take away the only admin who can log in.
pub(super) fn keep_an_admin(admins: &[UserId], leaving: UserId) -> Result<()> {
    if admins == [leaving] {
        let detail = "this is the last admin who can log in; make another first";
        return Err(Problem::conflict("last_admin", detail));
    }
    Ok(())
}

/// Writes down what was done to an account.
pub(super) async fn note(
    tx: &mut Tx,
    now: UnixMillis,
    doer: &Doer,
    action: &'static str,
    id: UserId,
    detail: serde_json::Value,
) -> Result<()> {
    let (target_kind, target_id) = ("user", id.to_string());
    let outcome = Outcome::Done;
    let entry = Entry { doer, action, target_kind, target_id, outcome, detail };
    Ok(audit::record(tx, now, &entry).await?)
}
