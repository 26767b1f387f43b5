//! Writes placements: locks, reads again, checks again, and writes, in one transaction.

use std::collections::BTreeSet;

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{InstanceId, NodeId};
use tianqi_scheduler::{Placement, Snapshot};

use crate::core::db::{Db, DbError, Tx};
use crate::features::instances::change::Change;
use crate::features::instances::fleet;
use crate::features::instances::lifecycle::{Event, Next, next};
use crate::features::instances::store::{self, Instance, Why};

/// Placements of one transaction. More of them share one wait for the disk; fewer hold the locks
/// for a shorter time.
pub(crate) const BATCH: usize = 128;
/// How often a transaction is tried again when the engine chose it as a victim.
const ATTEMPTS: u32 = 5;

/// An instance and where it should go.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The instance as it was read.
    pub(crate) instance: Instance,
    /// Where.
    pub(crate) placement: Placement,
}

/// What became of some plans.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// Instances that have their place.
    pub(crate) placed: Vec<InstanceId>,
    /// Nodes on which a plan no longer fitted, or of which an instance changed meanwhile.
    pub(crate) lost: BTreeSet<NodeId>,
}

/// Writes `plans`, at most [`BATCH`] of them, all that still fit.
///
/// # Errors
///
/// [`DbError`] when the engine refuses; nothing was written then.
pub(crate) async fn write(db: &Db, plans: &[Plan], now: UnixMillis) -> Result<Written, DbError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match write_once(db, plans, now).await {
            Err(error) if error.is_retryable() && attempt < ATTEMPTS => {}
            written => return written,
        }
    }
}

async fn write_once(db: &Db, plans: &[Plan], now: UnixMillis) -> Result<Written, DbError> {
    let ids: BTreeSet<NodeId> = plans.iter().map(|plan| plan.placement.node).collect();
    let mut tx = db.begin().await?;
    fleet::lock_nodes(&mut tx, &ids).await?;
    let mut snapshot = Snapshot::new(fleet::some_nodes(&mut tx, &ids).await?);
    let mut written = Written::default();
    let mut touched: BTreeSet<NodeId> = BTreeSet::new();
    for plan in plans {
        let node = plan.placement.node;
        if write_one(&mut tx, &mut snapshot, plan, now).await? {
            written.placed.push(plan.instance.id);
            touched.insert(node);
        } else {
            written.lost.insert(node);
        }
    }
    store::touch_nodes(&mut tx, &touched).await?;
    tx.commit().await?;
    Ok(written)
}

async fn write_one(
    tx: &mut Tx,
    snapshot: &mut Snapshot,
    plan: &Plan,
    now: UnixMillis,
) -> Result<bool, DbError> {
    let (it, placement) = (&plan.instance, &plan.placement);
    let request = it.request();
    if let Err(reason) = snapshot.apply(placement, &request) {
        tracing::debug!(instance.id = %it.id, node.id = %placement.node, %reason, "lost a race for a place");
        return Ok(false);
    }
    let Next::To(state) = next(it.state, Event::Placed) else { return Ok(false) };
    let node_name = snapshot.node(placement.node).map(|node| node.name.clone());
    let message = format!("placed on {}", node_name.unwrap_or_default());
    let mut change = Change::to(it, state, Why::new("creating", message.clone()), false, now)
        .noting("placed", message);
    change.after.node = Some(placement.node);
    change.after.gpus.clone_from(&placement.gpus);
    if !change.write(tx, now).await? {
        snapshot.release(placement, &request);
        return Ok(false);
    }
    store::grant(tx, it, &request, placement, now).await?;
    Ok(true)
}
