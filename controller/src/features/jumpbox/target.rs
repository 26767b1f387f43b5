//! From what somebody typed to the right to enter an instance.

use super::connection::Connection;
use super::model::Target;
use super::store;
use crate::authz::policy::InstancesSsh;
use crate::authz::resource::{InstanceRef, Resource as _};
use crate::authz::{Actor, Anything, Grant};
use crate::core::error::Result;

/// The right to enter one instance by SSH.
pub(super) type Entry = Grant<InstanceRef, InstancesSsh>;

/// Decides whether whoever is logged in may enter `target` now. An instance of somebody else is
/// answered like one that does not exist.
///
/// # Errors
///
/// `no_such_instance` (404), `forbidden` and `password_change_required` (403), `unauthorised` (401)
/// when the session has ended.
pub(super) async fn entry(connection: &Connection, target: &Target) -> Result<Entry> {
    let actor = present(connection).await?;
    let db = &connection.ctx().db;
    let id = match target {
        Target::Own(name) => store::own(db, actor.id, name).await?,
        Target::Id(id) => Some(*id),
        Target::Of { owner, name } => store::of(db, owner, name).await?,
        Target::Nothing => None,
    };
    let id = id.ok_or_else(InstanceRef::missing)?;
    let instance = InstanceRef::find(db, Some(&id.to_string())).await?;
    Grant::decide(actor, instance)
}

/// Returns who is logged in, as they are now, if they may use SSH at all.
///
/// # Errors
///
/// As [`entry`], but for the instance.
pub(super) async fn present(connection: &Connection) -> Result<Actor> {
    let actor = connection.ctx().authz.refresh(connection.actor()?).await?;
    // Decided before anything is looked up, so that nobody without the right learns a name.
    Grant::<Anything, InstancesSsh>::decide(actor.clone(), Anything)?;
    Ok(actor)
}
