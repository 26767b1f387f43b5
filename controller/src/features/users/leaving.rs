//! Deleting an account, and what becomes of its instances.

use serde_json::json;
use tianqi_common::id::{InstanceId, UserId};

use super::actions::{keep_an_admin, note, stays_within};
use super::store;
use crate::authz::Grant;
use crate::authz::account::Account;
use crate::authz::policy::UsersWrite;
use crate::authz::resource::{Resource, UserRef};
use crate::core::db::{DbError, Tx};
use crate::core::error::{Problem, Result};
use crate::core::event::Event;
use crate::features::Ctx;
use crate::features::instances::actions::{Owner, hand_over};

/// How often it is tried when others change the same rows at the same time.
const ATTEMPTS: u32 = 8;

/// Why an account was not deleted.
enum Failure {
    Db(DbError),
    Problem(Problem),
}

impl From<DbError> for Failure {
    fn from(error: DbError) -> Self {
        Self::Db(error)
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

/// Deletes an account with its sessions, API tokens and forwards. Its instances become those of `heir`; without
/// one, an account that has some is not deleted.
///
/// # Errors
///
/// `own_account`, `last_admin`, `in_use` (409), `bad_heir` (422), `beyond_own_rights` (403).
pub(super) async fn delete(
    ctx: &Ctx,
    grant: &Grant<UserRef, UsersWrite>,
    heir: Option<UserId>,
) -> Result<()> {
    let id = grant.resource().id;
    if id == grant.actor().id {
        return Err(Problem::conflict("own_account", "nobody deletes their own account"));
    }
    if heir == Some(id) {
        return Err(bad_heir("the instances of an account cannot be handed over to itself"));
    }
    let mut attempt = 0;
    let moved = loop {
        attempt += 1;
        match try_delete(ctx, grant, heir).await {
            Ok(moved) => break moved,
            Err(Failure::Db(error)) if error.is_retryable() && attempt < ATTEMPTS => {}
            Err(Failure::Db(error)) => return Err(error.into()),
            Err(Failure::Problem(problem)) => return Err(problem),
        }
    };
    ctx.events.send(Event::Revoked(id));
    for instance in moved {
        ctx.events.send(Event::Instance(instance));
    }
    Ok(())
}

async fn try_delete(
    ctx: &Ctx,
    grant: &Grant<UserRef, UsersWrite>,
    heir: Option<UserId>,
) -> Result<Vec<InstanceId>, Failure> {
    let (id, now, doer) = (grant.resource().id, ctx.clock.now(), grant.actor().doer());
    let mut tx = ctx.db.begin().await?;
    let admins = store::lock_admins(&mut tx).await?;
    let (leaver, heir) = lock(&mut tx, id, heir).await?;
    keep_an_admin(&admins, id)?;
    stays_within(&mut tx, grant.actor(), &leaver.role).await?;
    let moved = match &heir {
        Some(heir) => hand_over(&mut tx, &doer, owner(&leaver), owner(heir), now).await?,
        None => {
            leaves_nothing(&mut tx, &leaver).await?;
            Vec::new()
        }
    };
    let forwards = store::forwards(&mut tx, id).await?;
    store::delete(&mut tx, id).await?;
    let detail = json!({
        "name": leaver.name, "handed_over_to": heir.map(|heir| heir.id),
        "handed_over_instances": moved.len(), "deleted_forwards": forwards,
    });
    note(&mut tx, now, &doer, "users:delete", id, detail).await?;
    tx.commit().await?;
    Ok(moved)
}

fn owner(account: &Account) -> Owner<'_> {
    Owner { id: account.id, name: &account.name }
}

fn bad_heir(detail: impl Into<String>) -> Problem {
    Problem::invalid("bad_heir", detail)
}

/// Locks who leaves and who gets the instances.
async fn lock(
    tx: &mut Tx,
    leaver: UserId,
    heir: Option<UserId>,
) -> Result<(Account, Option<Account>), Failure> {
    let Some(heir) = heir else {
        let leaver = store::lock(tx, leaver).await?;
        return Ok((leaver.ok_or_else(UserRef::missing)?, None));
    };
    let (leaver, heir) = store::lock_both(tx, leaver, heir).await?;
    let leaver = leaver.ok_or_else(UserRef::missing)?;
    let heir = heir.ok_or_else(|| bad_heir("hand_over_to: there is no such account"))?;
    if heir.disabled {
        let detail = format!("hand_over_to: {} is disabled; name another account", heir.name);
        return Err(bad_heir(detail).into());
    }
    Ok((leaver, Some(heir)))
}

/// Refuses while the account has instances.
async fn leaves_nothing(tx: &mut Tx, leaver: &Account) -> Result<(), Failure> {
    let instances = store::live_instances(tx, leaver.id).await?;
    if instances == 0 {
        return Ok(());
    }
    let detail = format!(
        "{} owns {instances} instances; delete them first, or say by hand_over_to who gets them",
        leaver.name
    );
    let problem = Problem::conflict("in_use", detail);
    Err(problem.with(json!({ "instances": instances })).into())
}
