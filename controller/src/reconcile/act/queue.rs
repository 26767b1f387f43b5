//! Drains the queue: what fits is placed, what waits is told why.

use std::collections::{BTreeMap, BTreeSet};

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{InstanceId, NodeId};
use tianqi_scheduler::{Outcome, Pending, QueuePolicy, Snapshot, Unplaced, plan_queue};

use super::place::{self, BATCH, Plan};
use crate::core::db::{Db, DbError};
use crate::features::instances::change::Change;
use crate::features::instances::lifecycle::{Event, Next, next};
use crate::features::instances::store::{self, Instance, Why};

/// Most instances of the queue that one pass looks at; the rest waits for the next.
const LOOK_AHEAD: u32 = 10_000;
/// Instances at the head of the queue whose numbers are kept current at every pass; further back
/// they are brought up to date when their reason changes in kind, and by the timer.
const KEPT_CURRENT: u32 = 100;

/// What a pass over the queue did.
#[derive(Debug, Default)]
pub(crate) struct Drained {
    /// Instances whose rows changed.
    pub(crate) changed: Vec<InstanceId>,
    /// How many of them were placed.
    pub(crate) placed: usize,
    /// Nodes whose capacity in memory was wrong.
    pub(crate) lost: BTreeSet<NodeId>,
}

/// Goes through the queue once. `is_thorough` brings every reason up to date.
///
/// # Errors
///
/// [`DbError`] when the engine refuses; the snapshot must be read again then.
pub(crate) async fn drain(
    db: &Db,
    snapshot: &mut Snapshot,
    now: UnixMillis,
    is_thorough: bool,
) -> Result<Drained, DbError> {
    let mut drained = Drained::default();
    let queue = store::pending(db, LOOK_AHEAD).await?;
    if queue.is_empty() {
        return Ok(drained);
    }
    let pending: Vec<Pending> = queue.iter().map(waiting).collect();
    let decisions = plan_queue(snapshot, &pending, now, &QueuePolicy::default());
    let mut instances: BTreeMap<InstanceId, Instance> =
        queue.into_iter().map(|instance| (instance.id, instance)).collect();
    let (mut plans, mut excuses) = (Vec::new(), Vec::new());
    for decision in decisions {
        let Some(instance) = instances.remove(&decision.instance) else { continue };
        match decision.outcome {
            Outcome::Placed { placement } => plans.push(Plan { instance, placement }),
            Outcome::Waiting { reason, position, held_node } => {
                let is_due = is_thorough || position <= KEPT_CURRENT;
                excuses.extend(excuse(instance, &reason, held_node, is_due, now));
            }
        }
    }
    for batch in plans.chunks(BATCH) {
        let written = place::write(db, batch, now).await?;
        drained.placed += written.placed.len();
        drained.changed.extend(written.placed);
        drained.lost.extend(written.lost);
    }
    for batch in excuses.chunks(BATCH) {
        drained.changed.extend(write_excuses(db, batch, now).await?);
    }
    Ok(drained)
}

fn waiting(instance: &Instance) -> Pending {
    Pending {
        instance: instance.id,
        priority: instance.priority,
        created_at: instance.queued_at,
        request: instance.request(),
    }
}

/// Returns the change that tells a waiting instance why, unless it knows already.
fn excuse(
    instance: Instance,
    reason: &Unplaced,
    held: Option<NodeId>,
    is_due: bool,
    now: UnixMillis,
) -> Option<Change> {
    let code = if reason.is_impossible() { "impossible" } else { "no_capacity" };
    let mut detail = serde_json::to_value(reason).unwrap_or_default();
    if let (Some(fields), Some(held)) = (detail.as_object_mut(), held) {
        fields.insert("held_node".to_owned(), held.to_string().into());
    }
    let why = Why { code: code.to_owned(), text: reason.to_string(), detail: detail.to_string() };
    if instance.fail_if_full {
        let Next::To(state) = next(instance.state, Event::NothingFits) else { return None };
        let text = why.text.clone();
        return Some(Change::to(&instance, state, why, false, now).noting("failed", text));
    }
    if instance.why == why || (!is_due && instance.why.code == why.code) {
        return None;
    }
    let is_news = instance.why.code != why.code;
    let text = why.text.clone();
    let change = Change::to(&instance, instance.state, why, false, now);
    Some(if is_news { change.noting("waiting", text) } else { change })
}

/// Writes what waiting instances are told. Returns those that still waited.
async fn write_excuses(
    db: &Db,
    changes: &[Change],
    now: UnixMillis,
) -> Result<Vec<InstanceId>, DbError> {
    let mut tx = db.begin().await?;
    let mut changed = Vec::new();
    for change in changes {
        // One that was not written is no longer waiting; its new state says why.
        if change.write(&mut tx, now).await? {
            changed.push(change.before.id);
        }
    }
    tx.commit().await?;
    Ok(changed)
}
