//! Drains the queue: what fits is placed, what waits is told why.

use std::collections::{BTreeMap, BTreeSet};

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{InstanceId, NodeId};
use tianqi_scheduler::{
    Outcome, Pending, Placement, QueuePolicy, Reason, Snapshot, Unplaced, plan_queue,
};

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
    let (mut plans, mut excuses) = (Vec::new(), Vec::new());
    for (instance, verdict) in decide(snapshot, queue, now) {
        match verdict {
            Verdict::Goes(placement) => plans.push(Plan { instance, placement }),
            Verdict::Waits { why, position } => {
                let is_due = is_thorough || position <= KEPT_CURRENT;
                excuses.extend(excuse(&instance, why, is_due, now));
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

/// What becomes of one instance of the queue.
#[derive(Debug)]
enum Verdict {
    Goes(Placement),
    Waits { why: Why, position: u32 },
}

/// Decides about everyone in the order of the queue, and books who goes.
fn decide(
    snapshot: &mut Snapshot,
    queue: Vec<Instance>,
    now: UnixMillis,
) -> Vec<(Instance, Verdict)> {
    let mut decided: Vec<(Instance, Verdict)> = Vec::with_capacity(queue.len());
    let mut free: Vec<Instance> = Vec::new();
    for instance in queue {
        let Some(placement) = fixed(&instance) else {
            free.push(instance);
            continue;
        };
        decide_free(snapshot, std::mem::take(&mut free), now, &mut decided);
        let verdict = match snapshot.apply(&placement, &instance.request()) {
            Ok(()) => Verdict::Goes(placement),
            Err(reason) => {
                let name = snapshot.node(placement.node).map(|node| node.name.clone());
                Verdict::Waits {
                    why: waits_for_its_cards(&name.unwrap_or_default(), &reason),
                    position: next_position(&decided),
                }
            }
        };
        decided.push((instance, verdict));
    }
    decide_free(snapshot, free, now, &mut decided);
    decided
}

/// Returns the only place of an instance whose container is made already: its cards are part of it,
/// and on others its system disk would be lost.
fn fixed(instance: &Instance) -> Option<Placement> {
    let node = instance.node.filter(|_| instance.container_id.is_some())?;
    if instance.gpus.is_empty() {
        return None;
    }
    let (gpus, slice) = (instance.gpus.clone(), instance.spec.slice());
    Some(Placement { node, gpus, slice, score: 0 })
}

fn waits_for_its_cards(node: &str, reason: &Reason) -> Why {
    Why {
        code: "no_capacity".to_owned(),
        text: format!("it waits for the cards of its container on {node}: {reason}"),
        detail: serde_json::json!({ "kind": "busy", "reason": reason, "remedy": reason.remedy() })
            .to_string(),
    }
}

fn next_position(decided: &[(Instance, Verdict)]) -> u32 {
    let waiting = decided.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Waits { .. }));
    u32::try_from(waiting.count()).unwrap_or(u32::MAX).saturating_add(1)
}

/// Decides about instances that may go anywhere, or anywhere on their node.
fn decide_free(
    snapshot: &mut Snapshot,
    free: Vec<Instance>,
    now: UnixMillis,
    decided: &mut Vec<(Instance, Verdict)>,
) {
    if free.is_empty() {
        return;
    }
    let before = next_position(decided).saturating_sub(1);
    let pending: Vec<Pending> = free.iter().map(waiting).collect();
    let decisions = plan_queue(snapshot, &pending, now, &QueuePolicy::default());
    // Decisions come in the order of the queue, which is the order of `free`.
    let mut by_id: BTreeMap<InstanceId, Instance> =
        free.into_iter().map(|instance| (instance.id, instance)).collect();
    for decision in decisions {
        let Some(instance) = by_id.remove(&decision.instance) else { continue };
        let verdict = match decision.outcome {
            Outcome::Placed { placement } => Verdict::Goes(placement),
            Outcome::Waiting { reason, position, held_node } => Verdict::Waits {
                why: waits(&reason, held_node),
                position: before.saturating_add(position),
            },
        };
        decided.push((instance, verdict));
    }
}

fn waiting(instance: &Instance) -> Pending {
    Pending {
        instance: instance.id,
        priority: instance.priority,
        created_at: instance.queued_at,
        request: instance.request(),
    }
}

fn waits(reason: &Unplaced, held: Option<NodeId>) -> Why {
    let code = if reason.is_impossible() { "impossible" } else { "no_capacity" };
    let mut detail = serde_json::to_value(reason).unwrap_or_default();
    if let (Some(fields), Some(held)) = (detail.as_object_mut(), held) {
        fields.insert("held_node".to_owned(), held.to_string().into());
    }
    Why { code: code.to_owned(), text: reason.to_string(), detail: detail.to_string() }
}

/// Returns the change that tells a waiting instance why, unless it knows already.
fn excuse(instance: &Instance, why: Why, is_due: bool, now: UnixMillis) -> Option<Change> {
    let text = why.text.clone();
    if instance.fail_if_full {
        let Next::To(state) = next(instance.state, Event::NothingFits) else { return None };
        return Some(Change::to(instance, state, why, false, now).noting("failed", text));
    }
    if instance.why == why || (!is_due && instance.why.code == why.code) {
        return None;
    }
    let is_news = instance.why.code != why.code;
    let change = Change::to(instance, instance.state, why, false, now);
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
