//! What happens to the instances of a node that fell silent, is drained, or was removed.

use std::collections::BTreeSet;

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{InstanceId, NodeId};

use crate::core::db::{Db, DbError};
use crate::features::instances::change::Change;
use crate::features::instances::fleet;
use crate::features::instances::lifecycle::{Event, Next, State, next};
use crate::features::instances::store::{self, Instance, Why};

/// Turns what ran on silent nodes `unknown`. Nothing is killed and no capacity given away.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub(crate) async fn lost(db: &Db, now: UnixMillis) -> Result<Vec<InstanceId>, DbError> {
    let mut changed = Vec::new();
    for it in store::active_on_lost_nodes(db).await? {
        let Next::To(state) = next(it.state, Event::NodeLost) else { continue };
        let why = Why::new("node_offline", "its node does not answer; nothing is known of it");
        let change =
            Change::to(&it, state, why, false, now).noting("unknown", "its node does not answer");
        if write(db, &change, now).await? {
            changed.push(it.id);
        }
    }
    Ok(changed)
}

/// Asks everything that runs on a node to stop.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub(crate) async fn drained(
    db: &Db,
    node: NodeId,
    now: UnixMillis,
) -> Result<Vec<InstanceId>, DbError> {
    let mut changed = Vec::new();
    for it in store::on_node(db, node).await? {
        let Next::To(state) = next(it.state, Event::StopRequested) else { continue };
        let why = Why::new("drained", "an admin drains its node");
        let change =
            Change::to(&it, state, why, false, now).noting("drained", "an admin drains its node");
        if write(db, &change, now).await? {
            changed.push(it.id);
        }
    }
    Ok(changed)
}

/// Settles the instances of nodes that are no longer in the database: what was on its way out is
/// gone, everything else failed and may be started elsewhere, without its data.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub(crate) async fn removed(db: &Db, now: UnixMillis) -> Result<Vec<InstanceId>, DbError> {
    let mut changed = Vec::new();
    for it in store::on_removed_nodes(db).await? {
        let was_written = match next(it.state, Event::NodeRemoved) {
            Next::Gone => bury(db, &it, now).await?,
            Next::To(state) => fail(db, &it, state, now).await?,
            Next::Same => fail(db, &it, it.state, now).await?,
            Next::Refused => false,
        };
        if was_written {
            changed.push(it.id);
        }
    }
    Ok(changed)
}

async fn bury(db: &Db, it: &Instance, now: UnixMillis) -> Result<bool, DbError> {
    let mut tx = db.begin().await?;
    let buried = store::bury(&mut tx, it.id, now).await?;
    store::note(&mut tx, it.id, now, "deleted", "its node was removed").await?;
    tx.commit().await?;
    Ok(buried)
}

async fn fail(db: &Db, it: &Instance, state: State, now: UnixMillis) -> Result<bool, DbError> {
    let text = "its node was removed from the platform, and its data with it";
    let mut change =
        Change::to(it, state, Why::new("node_removed", text), false, now).noting("failed", text);
    change.after.node = None;
    change.after.container_id = None;
    change.after.gpus.clear();
    let mut tx = db.begin().await?;
    if !change.write(&mut tx, now).await? {
        return Ok(false);
    }
    store::release_all(&mut tx, it.id).await?;
    tx.commit().await?;
    Ok(true)
}

async fn write(db: &Db, change: &Change, now: UnixMillis) -> Result<bool, DbError> {
    let mut tx = db.begin().await?;
    if let Some(node) = change.before.node {
        let node = BTreeSet::from([node]);
        if change.concerns_node() {
            store::touch_nodes(&mut tx, &node).await?;
        } else {
            fleet::lock_nodes(&mut tx, &node).await?;
        }
    }
    let was_written = change.write(&mut tx, now).await?;
    if was_written {
        tx.commit().await?;
    }
    Ok(was_written)
}
