//! For whoever holds a grant for long: tells when it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{InstanceId, UserId};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use uuid::Uuid;

use super::account::account;
use super::resource::{InstanceRef, Resource};
use super::{Actor, Authz, Grant, Permission, credential};
use crate::core::audit::Via;
use crate::core::db::{args, row};
use crate::core::error::{Problem, Result};
use crate::core::event::Event;

/// How often a grant is looked at again although nothing was heard: sessions end by the clock too.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// What is asked of the instance besides that it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Existence,
    /// That it should run: who stops it ends what is open in it.
    Running,
}

/// Tells that somebody is at work in what is held open: it counts as a use of the session, which would
/// end as idle otherwise. Cheap to clone and to mark.
#[derive(Clone, Debug, Default)]
pub struct InUse(Arc<AtomicBool>);

impl InUse {
    /// Says that it was used just now.
    pub fn mark(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was used since this was asked last.
    #[must_use]
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// Waits until `grant` no longer stands and returns why: the session ended, the account lost the
/// right, or the instance is not what it `needs` to be. `heard` must have listened since before the
/// grant was used.
pub async fn ended<P: Permission>(
    authz: &Authz,
    grant: &Grant<InstanceRef, P>,
    needs: Needs,
    in_use: &InUse,
    heard: &mut Receiver<Event>,
) -> Problem {
    let mut look_again = tokio::time::interval(LOOK_AGAIN);
    loop {
        tokio::select! {
            event = heard.recv() => match event {
                Ok(Event::Instance(id)) if id == grant.resource().id => {}
                Ok(Event::Revoked(user)) if user == grant.actor().id => {}
                Ok(Event::Roles) => {}
                Ok(
                    Event::Instance(_) | Event::Revoked(_) | Event::Node(_) | Event::Drain(_)
                    | Event::Catalogue | Event::Forward(_),
                ) => continue,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => {
                    return Problem::unavailable("ending", "the controller is ending");
                }
            },
            _ = look_again.tick() => {}
        }
        // A database that does not answer ends nothing: the next look decides.
        if let Err(problem) = look(authz, grant, needs, in_use).await
            && problem.status.is_client_error()
        {
            return problem;
        }
    }
}

/// Waits until the session or the account of `actor` has ended and returns why. `heard` must have
/// listened since before the actor was made.
pub async fn left(
    authz: &Authz,
    actor: &Actor,
    in_use: &InUse,
    heard: &mut Receiver<Event>,
) -> Problem {
    let mut look_again = tokio::time::interval(LOOK_AGAIN);
    loop {
        tokio::select! {
            event = heard.recv() => match event {
                Ok(Event::Revoked(user)) if user == actor.id => {}
                Ok(_) => continue,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => {
                    return Problem::unavailable("ending", "the controller is ending");
                }
            },
            _ = look_again.tick() => {}
        }
        let looked = async {
            if in_use.take() {
                credential::touch(authz, actor).await?;
            }
            authz.refresh(actor).await
        };
        // A database that does not answer ends nothing: the next look decides.
        if let Err(problem) = looked.await
            && problem.status.is_client_error()
        {
            return problem;
        }
    }
}

/// Looks once whether `grant` stands, and notes a use of its session if there was one.
///
/// # Errors
///
/// Why it no longer stands: `unauthorised` (401), `forbidden` (403), `no_such_instance` (404),
/// `stopped` (409).
pub async fn look<P: Permission>(
    authz: &Authz,
    grant: &Grant<InstanceRef, P>,
    needs: Needs,
    in_use: &InUse,
) -> Result<()> {
    if in_use.take() {
        credential::touch(authz, grant.actor()).await?;
    }
    stands(authz, grant, needs).await
}

row! {
    struct DesiredRow { desired: String }
}

pub(super) async fn stands<P: Permission>(
    authz: &Authz,
    grant: &Grant<InstanceRef, P>,
    needs: Needs,
) -> Result<()> {
    grant.recheck(authz).await?;
    is_as_needed(authz, grant.resource(), needs).await
}

/// Whether an account could do `P` to an instance if it came: for what is kept while nobody is there.
/// It is no grant; whoever comes back needs one.
///
/// # Errors
///
/// Why not, as [`look`].
pub async fn account_may<P: Permission>(
    authz: &Authz,
    user: UserId,
    instance: InstanceId,
    needs: Needs,
) -> Result<()> {
    let found = account(&authz.db, user).await?.filter(|account| !account.disabled);
    let account = found.ok_or_else(|| {
        Problem::unauthorised("unauthorised", "the account is disabled, or there is none any more")
    })?;
    let actor = Actor {
        role: authz.role_of(&account).await?,
        id: account.id,
        name: account.name,
        session: Uuid::nil(),
        expires_at: UnixMillis(i64::MAX),
        must_change_password: account.must_change_password,
        via: Via::System,
        remote_address: String::new(),
        request_id: String::new(),
    };
    let instance = InstanceRef::find(&authz.db, Some(&instance.to_string())).await?;
    let grant = Grant::<InstanceRef, P>::decide(actor, instance)?;
    is_as_needed(authz, grant.resource(), needs).await
}

async fn is_as_needed(authz: &Authz, instance: &InstanceRef, needs: Needs) -> Result<()> {
    const SQL: &str = "select desired from instances where id = $1 and owner_id = $2 \
         and desired <> 'deleted' and deleted_at is null";
    let row: Option<DesiredRow> = authz.db.first(SQL, args![instance.id, instance.owner]).await?;
    let row = row.ok_or_else(InstanceRef::missing)?;
    if needs == Needs::Running && row.desired != "running" {
        return Err(Problem::conflict("stopped", "the instance was stopped; start it first"));
    }
    Ok(())
}
