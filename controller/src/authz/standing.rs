//! What an account may do while nobody is logged in: the right on which its port forwards stand.
//!
//! A forward works on after its owner has gone home. It does so with what the account may do now,
//! read from the account itself, because there is no session that would end.

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{InstanceId, UserId};
use uuid::Uuid;

use super::resource::{InstanceRef, Resource};
use super::watch::{self, Needs};
use super::{Actor, Anything, Authz, Grant, Permission, account};
use crate::core::audit::Via;
use crate::core::error::{Problem, Result};

/// Returns the owner of a forward as somebody who acts.
///
/// # Errors
///
/// `unauthorised` (401) when the account is gone or disabled.
pub(super) async fn owner(authz: &Authz, id: UserId) -> Result<Actor> {
    let account = account::account(&authz.db, id).await?.filter(|account| !account.disabled);
    let account = account.ok_or_else(|| {
        Problem::unauthorised("unauthorised", "the account of its owner is gone or disabled")
    })?;
    Ok(Actor {
        id,
        role: authz.role_of(&account).await?,
        name: account.name,
        session: Uuid::nil(),
        expires_at: UnixMillis(i64::MAX),
        must_change_password: account.must_change_password,
        via: Via::Forward,
        remote_address: String::new(),
        request_id: String::new(),
    })
}

/// Returns what the owner of a forward may do in an instance. Ask again when the instance, the account
/// or a role has changed.
///
/// # Errors
///
/// Why it may not: `unauthorised` (401), `forbidden` and `password_change_required` (403),
/// `no_such_instance` (404).
pub async fn in_instance<P: Permission>(
    authz: &Authz,
    id: UserId,
    instance: InstanceId,
) -> Result<Grant<InstanceRef, P>> {
    let actor = owner(authz, id).await?;
    let resource = InstanceRef::find(&authz.db, Some(&instance.to_string())).await?;
    let grant = Grant::decide(actor, resource)?;
    watch::stands(authz, &grant, Needs::Existence).await?;
    Ok(grant)
}

/// Returns whether the instance should run; a database that does not answer is no reason to think
/// otherwise.
pub async fn should_run<P: Permission>(authz: &Authz, grant: &Grant<InstanceRef, P>) -> bool {
    match watch::stands(authz, grant, Needs::Running).await {
        Ok(()) => true,
        Err(problem) => !problem.status.is_client_error(),
    }
}

/// Returns what the owner of a forward may do to no resource in particular.
///
/// # Errors
///
/// As [`in_instance`].
pub async fn anywhere<P: Permission>(authz: &Authz, id: UserId) -> Result<Grant<Anything, P>> {
    Grant::decide(owner(authz, id).await?, Anything)
}
