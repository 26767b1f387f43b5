//! Pure placement: which node, which cards, and if none, why.
//!
//! No clock, no IO, no logging: what the scheduler has to say it returns. The problem, the goals
//! and the invariants are in `README.md` beside this crate.

mod explain;
mod feasible;
mod index;
mod model;
pub mod quota;
mod reason;
mod reconcile;
mod room;
mod score;
mod snapshot;
#[cfg(test)]
mod tests;
mod topology;
mod unplaced;

pub use explain::{Candidate, CardView, Explanation, explain};
pub use model::{
    DEFAULT_MAX_SHARES, GpuCapacity, GpuMode, GpuRequest, HEADROOM_FLOOR, NodeCapacity, NodeGate,
    Placement, Policy, Request, WHOLE_CARD, default_headroom,
};
pub use reason::Reason;
pub use reconcile::{Decision, Outcome, Pending, QueuePolicy, plan_queue};
pub use snapshot::{Snapshot, check};
pub use unplaced::{ReasonCount, Refusal, Shortfall, Unplaced};

use tianqi_common::wire::desired::GpuSlice;

/// Chooses a node and cards for `request`. Books nothing; see [`Snapshot::apply`].
///
/// The same snapshot and request give the same answer, whatever happened before.
///
/// # Errors
///
/// [`Unplaced`] with the reasons of every node, counted.
pub fn place(snapshot: &Snapshot, request: &Request) -> Result<Placement, Unplaced> {
    let valid = feasible::valid(request).is_ok();
    let Some(node) = valid.then(|| snapshot.best(request)).flatten() else {
        return Err(unplaced::unplaced(snapshot, request));
    };
    let pick = score::pick(node, request);
    let gpus = &node.capacity.gpus;
    let slice = match &request.gpu {
        GpuRequest::Slice { memory, cores, .. } => {
            Some(GpuSlice { memory: *memory, cores: *cores })
        }
        GpuRequest::None | GpuRequest::Whole { .. } => None,
    };
    Ok(Placement {
        node: node.capacity.id,
        gpus: pick
            .cards
            .iter()
            .filter_map(|at| gpus.get(*at))
            .map(|gpu| gpu.uuid.clone())
            .collect(),
        slice,
        score: score::score(node, request, &pick),
    })
}
