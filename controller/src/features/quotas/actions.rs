//! The verbs: set and clear.

use serde_json::json;
use tianqi_common::id::UserId;
use tianqi_scheduler::quota::Settings;

use super::model::{QuotaFields, RoleQuota, UserQuota};
use super::store::{self, Whose};
use crate::authz::policy::{Permission, QuotasWrite};
use crate::authz::quota::{self, Holder};
use crate::authz::resource::{Resource, RoleRef, UserRef};
use crate::authz::{Actor, Grant, RoleName, role};
use crate::core::audit::{self, Entry, Outcome};
use crate::core::db::{DbError, Tx};
use crate::core::error::{Problem, Result};
use crate::features::Ctx;
use crate::features::instances::actions::usage;

/// Replaces an account's own quota. It counts for the next create or start; nothing ends.
///
/// # Errors
///
/// `own_account` (409), `no_such_user` (404).
pub(super) async fn set_user(
    ctx: &Ctx,
    grant: &Grant<UserRef, QuotasWrite>,
    fields: QuotaFields,
) -> Result<UserQuota> {
    let (id, actor) = (grant.resource().id, grant.actor());
    refuse_own(actor, Some(id), None)?;
    let mut tx = ctx.db.begin().await?;
    quota::lock(&mut tx, id).await?.ok_or_else(UserRef::missing)?;
    write(ctx, &mut tx, actor, &Whose::User(id), Some(fields)).await?;
    tx.commit().await?;
    read_user(ctx, id).await
}

/// Removes an account's own quota, so that its role's applies.
///
/// # Errors
///
/// `own_account` (409), `no_such_quota` and `no_such_user` (404).
pub(super) async fn clear_user(ctx: &Ctx, grant: &Grant<UserRef, QuotasWrite>) -> Result<()> {
    let (id, actor) = (grant.resource().id, grant.actor());
    refuse_own(actor, Some(id), None)?;
    let mut tx = ctx.db.begin().await?;
    quota::lock(&mut tx, id).await?.ok_or_else(UserRef::missing)?;
    write(ctx, &mut tx, actor, &Whose::User(id), None).await?;
    Ok(tx.commit().await?)
}

/// Replaces a role's quota.
///
/// # Errors
///
/// `own_role` and `busy` (409), `no_such_role` (404).
pub(super) async fn set_role(
    ctx: &Ctx,
    grant: &Grant<RoleRef, QuotasWrite>,
    fields: QuotaFields,
) -> Result<RoleQuota> {
    let (name, actor) = (&grant.resource().name, grant.actor());
    refuse_own(actor, None, Some(name))?;
    let mut tx = ctx.db.begin().await?;
    role::find(&mut tx, name).await?.ok_or_else(RoleRef::missing)?;
    write(ctx, &mut tx, actor, &Whose::Role(name.clone()), Some(fields)).await?;
    tx.commit().await?;
    read_role(ctx, name).await
}

/// Removes a role's quota.
///
/// # Errors
///
/// `own_role` (409), `no_such_quota` and `no_such_role` (404).
pub(super) async fn clear_role(ctx: &Ctx, grant: &Grant<RoleRef, QuotasWrite>) -> Result<()> {
    let (name, actor) = (&grant.resource().name, grant.actor());
    refuse_own(actor, None, Some(name))?;
    let mut tx = ctx.db.begin().await?;
    write(ctx, &mut tx, actor, &Whose::Role(name.clone()), None).await?;
    Ok(tx.commit().await?)
}

/// Returns what an account may have and uses.
///
/// # Errors
///
/// `no_such_user` (404).
pub(super) async fn read_user(ctx: &Ctx, id: UserId) -> Result<UserQuota> {
    let Holder { name, role, limits } =
        quota::holder(&ctx.db, id).await?.ok_or_else(UserRef::missing)?;
    let own = store::find(&ctx.db, &Whose::User(id)).await?.unwrap_or_default();
    Ok(UserQuota {
        user_id: id.0,
        user_name: name,
        role,
        quota: own.into(),
        limits: limits.into(),
        used: usage(&ctx.db, id).await?.into(),
    })
}

/// Returns what a role's quota says.
pub(super) async fn read_role(ctx: &Ctx, name: &RoleName) -> Result<RoleQuota> {
    let found = store::find(&ctx.db, &Whose::Role(name.clone())).await?;
    Ok(RoleQuota { role: name.to_string(), quota: found.unwrap_or_default().into() })
}

/// Nobody but an admin, who may do everything anyway, gives more to themselves.
fn refuse_own(actor: &Actor, user: Option<UserId>, role: Option<&RoleName>) -> Result<()> {
    if *actor.role.name() == RoleName::ADMIN {
        return Ok(());
    }
    if user == Some(actor.id) {
        let detail = "nobody changes their own quota; ask an admin";
        return Err(Problem::conflict("own_account", detail));
    }
    if role == Some(actor.role.name()) {
        let detail = "nobody changes the quota of the role that they have; ask an admin";
        return Err(Problem::conflict("own_role", detail));
    }
    Ok(())
}

/// Writes what a row says from now on, or removes it, with its line in the audit.
async fn write(
    ctx: &Ctx,
    tx: &mut Tx,
    actor: &Actor,
    whose: &Whose,
    fields: Option<QuotaFields>,
) -> Result<()> {
    let now = ctx.clock.now();
    let old = store::find(&mut *tx, whose).await?;
    let new = fields.map(Settings::from);
    match (&old, &new) {
        (None, None) => return Err(no_such_quota()),
        (None, Some(new)) => store::insert(tx, whose, new, now).await.map_err(at_once)?,
        (Some(_), Some(new)) => store::update(tx, whose, new, now).await?,
        (Some(_), None) => store::delete(tx, whose).await?,
    }
    let (target_kind, target_id) = match whose {
        Whose::User(id) => ("user", id.to_string()),
        Whose::Role(name) => ("role", name.to_string()),
    };
    let entry = Entry {
        doer: &actor.doer(),
        action: QuotasWrite::NAME,
        target_kind,
        target_id,
        outcome: Outcome::Done,
        detail: json!({ "before": old.map(QuotaFields::from), "after": fields }),
    };
    Ok(audit::record(tx, now, &entry).await?)
}

fn no_such_quota() -> Problem {
    Problem::not_found("no_such_quota", "there is no quota of its own here; nothing was removed")
}

/// A role has no row to lock, so two who give it its first quota at once meet in the table.
fn at_once(error: DbError) -> Problem {
    if matches!(error, DbError::Duplicate(_)) {
        let detail = "somebody else sets this quota at the same time; try again";
        return Problem::conflict("busy", detail);
    }
    error.into()
}
