//! Plans the queue of pending instances. Pure: the caller gives the time and acts on the plan.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{InstanceId, NodeId};

use crate::feasible::{Cards, Fleet, check};
use crate::model::{Placement, Request};
use crate::place;
use crate::score::fullness;
use crate::snapshot::Snapshot;
use crate::unplaced::Unplaced;

/// An instance that waits for a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Which instance.
    pub instance: InstanceId,
    /// Higher goes first.
    pub priority: i32,
    /// Since when it waits; among equal priorities the older goes first.
    pub created_at: UnixMillis,
    /// What it needs.
    pub request: Request,
}

/// How the queue treats an instance that keeps being passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePolicy {
    /// How long an instance may be passed by later ones before a node is kept free for it.
    pub hold_after: Duration,
    /// Most nodes kept free at once; 0 switches holding off.
    pub max_holds: usize,
}

impl Default for QueuePolicy {
    /// Ten minutes, one node.
    fn default() -> Self {
        Self { hold_after: Duration::from_secs(600), max_holds: 1 }
    }
}

/// What becomes of one pending instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It goes to a node; the snapshot has booked it.
    Placed {
        /// Where.
        placement: Placement,
    },
    /// It stays in the queue.
    Waiting {
        /// What it waits for.
        reason: Unplaced,
        /// Its place among those that wait, from 1.
        position: u32,
        /// The node kept free for it, when it has waited too long.
        held_node: Option<NodeId>,
    },
}

/// One pending instance and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Which instance.
    pub instance: InstanceId,
    /// What becomes of it.
    pub outcome: Outcome,
}

/// Places what fits, in the order of the queue, and books it in `snapshot`.
///
/// The order is priority, then age, then id. An instance that does not fit now is passed by later
/// ones that do. Passing is bounded: once an instance has waited `hold_after`, the emptiest open
/// node that could ever hold it takes no instance behind it in the queue, so that the node
/// drains. At most `max_holds` instances have such a node, the first ones in the queue. The plan
/// makes the holds anew each time; none is left in the snapshot.
///
/// Decisions come in the order of the queue, one per entry of `pending`.
#[must_use]
pub fn plan_queue(
    snapshot: &mut Snapshot,
    pending: &[Pending],
    now: UnixMillis,
    policy: &QueuePolicy,
) -> Vec<Decision> {
    let mut queue: Vec<&Pending> = pending.iter().collect();
    queue.sort_by_key(|entry| (Reverse(entry.priority), entry.created_at, entry.instance));
    let mut held: Vec<NodeId> = Vec::new();
    // Capacity only shrinks while the plan is made: what was refused once stays refused.
    let mut refused: BTreeMap<&Request, Unplaced> = BTreeMap::new();
    let mut position: u32 = 0;
    let mut decisions = Vec::with_capacity(queue.len());
    for entry in queue {
        let request = &entry.request;
        let result = match refused.get(request) {
            Some(reason) => Err(reason.clone()),
            None => take(snapshot, request),
        };
        let outcome = match result {
            Ok(placement) => Outcome::Placed { placement },
            Err(reason) => {
                position = position.saturating_add(1);
                let is_due = now.since(entry.created_at) >= policy.hold_after;
                let mut held_node = None;
                if is_due && held.len() < policy.max_holds {
                    held_node = hold(snapshot, entry);
                    held.extend(held_node);
                }
                refused.entry(request).or_insert_with(|| reason.clone());
                Outcome::Waiting { reason, position, held_node }
            }
        };
        decisions.push(Decision { instance: entry.instance, outcome });
    }
    for node in held {
        snapshot.drop_hold(node);
    }
    decisions
}

/// Places and books one request.
fn take(snapshot: &mut Snapshot, request: &Request) -> Result<Placement, Unplaced> {
    let placement = place(snapshot, request)?;
    match snapshot.apply(&placement, request) {
        Ok(()) => Ok(placement),
        Err(_) => Err(crate::unplaced::unplaced(snapshot, request)),
    }
}

/// Keeps the emptiest open node that could ever hold the instance free for it.
fn hold(snapshot: &mut Snapshot, entry: &Pending) -> Option<NodeId> {
    let node = snapshot
        .entries()
        .filter(|node| node.is_open())
        .filter(|node| check(node, &entry.request, Fleet::Ideal, Cards::All).is_ok())
        .min_by_key(|node| (fullness(&node.capacity), node.capacity.id))
        .map(|node| node.capacity.id)?;
    snapshot.hold(node, entry.instance);
    Some(node)
}
