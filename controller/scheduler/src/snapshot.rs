//! The fleet in memory, kept ready for placing: changed node by node, never rebuilt.

use std::collections::BTreeMap;

use tianqi_common::id::{InstanceId, NodeId};

use crate::feasible::{Cards, Fleet, Node, check as check_node};
use crate::index::{Index, Slot};
use crate::model::{GpuRequest, NodeCapacity, Placement, Request};
use crate::reason::Reason;

/// Every node with its capacity, and an index over the nodes that take new work.
///
/// One snapshot serves many placements: [`Snapshot::apply`] and [`Snapshot::release`] follow what
/// is placed and freed, [`Snapshot::upsert`] follows a node that changed in another way.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    slots: Vec<Option<Node>>,
    by_id: BTreeMap<NodeId, Slot>,
    free: Vec<Slot>,
    index: Index,
}

impl Snapshot {
    /// Takes in `nodes`; of two with the same id the later counts.
    #[must_use]
    pub fn new(nodes: impl IntoIterator<Item = NodeCapacity>) -> Self {
        let mut snapshot = Self::default();
        for node in nodes {
            snapshot.upsert(node);
        }
        snapshot
    }

    /// Adds a node, or replaces the one with the same id.
    pub fn upsert(&mut self, node: NodeCapacity) {
        self.remove(node.id);
        let slot = self.free.pop().unwrap_or(self.slots.len());
        if slot == self.slots.len() {
            self.slots.push(None);
        }
        let node = Node::new(node);
        self.by_id.insert(node.capacity.id, slot);
        self.index.add(slot, &node);
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(node);
        }
    }

    /// Forgets a node and returns it.
    pub fn remove(&mut self, id: NodeId) -> Option<NodeCapacity> {
        let slot = self.by_id.remove(&id)?;
        let node = self.slots.get_mut(slot)?.take()?;
        self.index.remove(slot, &node);
        self.free.push(slot);
        Some(node.capacity)
    }

    /// Returns one node.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&NodeCapacity> {
        self.entry(id).map(|node| &node.capacity)
    }

    /// Returns every node, in id order.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeCapacity> {
        self.entries().map(|node| &node.capacity)
    }

    /// Books `placement` for `request`.
    ///
    /// # Errors
    ///
    /// As [`check`]; nothing is booked then.
    pub fn apply(&mut self, placement: &Placement, request: &Request) -> Result<(), Reason> {
        check(self, placement, request)?;
        self.change(placement, |node| {
            node.cpu_used = node.cpu_used.plus(request.cpu);
            node.memory_used = node.memory_used.plus(request.memory);
            node.disk_used = node.disk_used.plus(request.disk);
            for gpu in node.gpus.iter_mut().filter(|gpu| placement.gpus.contains(&gpu.uuid)) {
                match placement.slice {
                    Some(slice) => gpu.grant_slice(slice),
                    None => gpu.grant_whole(),
                }
            }
        });
        Ok(())
    }

    /// Takes back what [`Snapshot::apply`] booked. A node or card that is gone is passed over.
    pub fn release(&mut self, placement: &Placement, request: &Request) {
        self.change(placement, |node| {
            node.cpu_used = node.cpu_used.minus(request.cpu);
            node.memory_used = node.memory_used.minus(request.memory);
            node.disk_used = node.disk_used.minus(request.disk);
            for gpu in node.gpus.iter_mut().filter(|gpu| placement.gpus.contains(&gpu.uuid)) {
                match placement.slice {
                    Some(slice) => gpu.release_slice(slice),
                    None => gpu.release_whole(),
                }
            }
        });
    }

    /// Keeps a node free for one instance until [`Snapshot::drop_hold`].
    pub(crate) fn hold(&mut self, id: NodeId, instance: InstanceId) {
        self.set_hold(id, Some(instance));
    }

    /// Lets others use the node again.
    pub(crate) fn drop_hold(&mut self, id: NodeId) {
        self.set_hold(id, None);
    }

    /// Returns the node that ranks first for `request`.
    pub(crate) fn best(&self, request: &Request) -> Option<&Node> {
        if let Some(named) = request.node {
            let node = self.entry(named)?;
            return check_node(node, request, Fleet::Now, Cards::All).is_ok().then_some(node);
        }
        let slot = self.index.best(&self.slots, request)?;
        self.slots.get(slot)?.as_ref()
    }

    pub(crate) fn entry(&self, id: NodeId) -> Option<&Node> {
        self.slots.get(*self.by_id.get(&id)?)?.as_ref()
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Node> {
        self.by_id.values().filter_map(|slot| self.slots.get(*slot)?.as_ref())
    }

    fn change(&mut self, placement: &Placement, change: impl FnOnce(&mut NodeCapacity)) {
        let Some(slot) = self.by_id.get(&placement.node) else { return };
        let Some(Some(node)) = self.slots.get_mut(*slot) else { return };
        change(&mut node.capacity);
        self.index.refresh(*slot, &node.capacity);
    }

    fn set_hold(&mut self, id: NodeId, instance: Option<InstanceId>) {
        let Some(slot) = self.by_id.get(&id) else { return };
        let Some(Some(node)) = self.slots.get_mut(*slot) else { return };
        self.index.remove(*slot, node);
        node.held_for = instance;
        self.index.add(*slot, node);
    }
}

/// Checks that `placement` can be granted to `request` as the snapshot stands.
///
/// The controller calls it inside its transaction, on a snapshot of the one node built from fresh
/// rows, before it writes the grants.
///
/// # Errors
///
/// The [`Reason`] why not; [`Reason::InvalidRequest`] when the two do not belong together.
pub fn check(snapshot: &Snapshot, placement: &Placement, request: &Request) -> Result<(), Reason> {
    let Some(node) = snapshot.entry(placement.node) else {
        return Err(Reason::NodeGone);
    };
    matches_request(placement, request)?;
    let is_here = |uuid| node.capacity.gpus.iter().any(|gpu| &gpu.uuid == uuid);
    if let Some(gone) = placement.gpus.iter().find(|uuid| !is_here(*uuid)) {
        return Err(Reason::CardGone { gpu: gone.clone() });
    }
    check_node(node, request, Fleet::Now, Cards::These(&placement.gpus))
}

/// Checks that a placement has the shape that the request asks for.
fn matches_request(placement: &Placement, request: &Request) -> Result<(), Reason> {
    let (cards, slice) = match &request.gpu {
        GpuRequest::None => (0, None),
        GpuRequest::Whole { count, .. } => (*count, None),
        GpuRequest::Slice { memory, cores, .. } => (1, Some((*memory, *cores))),
    };
    let distinct: std::collections::BTreeSet<_> = placement.gpus.iter().collect();
    if distinct.len() != placement.gpus.len() {
        return Err(mismatch("the placement names a card twice"));
    }
    if u32::try_from(placement.gpus.len()) != Ok(cards) {
        let named = placement.gpus.len();
        return Err(mismatch(&format!("the placement names {named} cards, not {cards}")));
    }
    if placement.slice.map(|slice| (slice.memory, slice.cores)) != slice {
        return Err(mismatch("the placement's slice is not the one asked for"));
    }
    Ok(())
}

fn mismatch(problem: &str) -> Reason {
    Reason::InvalidRequest { problem: problem.into() }
}
