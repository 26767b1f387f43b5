//! For whoever holds a grant for long: tells when it ends.

use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::resource::{InstanceRef, Resource};
use super::{Authz, Grant, Permission};
use crate::core::db::args;
use crate::core::error::Result;
use crate::core::event::Event;

/// How often a grant is looked at again although nothing was heard: sessions end by the clock too.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Returns when `grant` no longer stands: the session ended, the account lost the right, or the
/// instance is gone. `heard` must have listened since before the grant was used.
pub async fn ended<P: Permission>(
    authz: &Authz,
    grant: &Grant<InstanceRef, P>,
    heard: &mut Receiver<Event>,
) {
    let mut look_again = tokio::time::interval(LOOK_AGAIN);
    loop {
        tokio::select! {
            event = heard.recv() => match event {
                Ok(Event::Instance(id)) if id == grant.resource().id => {}
                Ok(Event::Revoked(user)) if user == grant.actor().id => {}
                Ok(
                    Event::Instance(_) | Event::Revoked(_) | Event::Node(_) | Event::Drain(_)
                    | Event::Catalogue,
                ) => continue,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            },
            _ = look_again.tick() => {}
        }
        // A database that does not answer ends nothing: the next look decides.
        if let Err(problem) = stands(authz, grant).await
            && problem.status.is_client_error()
        {
            return;
        }
    }
}

async fn stands<P: Permission>(authz: &Authz, grant: &Grant<InstanceRef, P>) -> Result<()> {
    const SQL: &str = "select count(*) from instances where id = $1 and owner_id = $2 \
         and desired <> 'deleted' and deleted_at is null";
    grant.recheck(authz).await?;
    let instance = grant.resource();
    if authz.db.number(SQL, args![instance.id, instance.owner]).await? == 0 {
        return Err(InstanceRef::missing());
    }
    Ok(())
}
