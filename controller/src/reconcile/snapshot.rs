//! The fleet in memory: read once, then node by node as they change.

use std::collections::{BTreeMap, BTreeSet};

use tianqi_common::id::NodeId;
use tianqi_common::wire::observed::Orphan;
use tianqi_scheduler::{NodeCapacity, Snapshot};

use crate::core::db::{Db, DbError};
use crate::features::instances::fleet;

/// What the scheduler knows, and which parts of it are out of date.
#[derive(Debug)]
pub(super) struct Fleet {
    snapshot: Snapshot,
    is_stale: bool,
    stale_nodes: BTreeSet<NodeId>,
    orphans: BTreeMap<NodeId, Vec<Orphan>>,
}

impl Fleet {
    /// Starts with nothing read.
    pub(super) fn new() -> Self {
        Self {
            snapshot: Snapshot::default(),
            is_stale: true,
            stale_nodes: BTreeSet::new(),
            orphans: BTreeMap::new(),
        }
    }

    /// Marks everything as out of date.
    pub(super) fn forget_all(&mut self) {
        self.is_stale = true;
    }

    /// Marks one node as out of date.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.stale_nodes.insert(node);
    }

    /// Keeps the containers of a node that the database does not know. Returns those that are new.
    ///
    /// Their cards take no work while they run: after the restore of an old copy they are the
    /// instances that it does not know yet.
    pub(super) fn set_orphans(&mut self, node: NodeId, orphans: Vec<Orphan>) -> Vec<Orphan> {
        let known = self.orphans.get(&node).map(Vec::as_slice).unwrap_or_default();
        if known == orphans {
            return Vec::new();
        }
        let is_new =
            |orphan: &&Orphan| known.iter().all(|other| other.container_id != orphan.container_id);
        let fresh = orphans.iter().filter(is_new).cloned().collect();
        self.orphans.insert(node, orphans);
        self.forget(node);
        fresh
    }

    /// Reads what is out of date and returns the fleet.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the engine refuses; the same parts stay out of date then.
    pub(super) async fn fresh(&mut self, db: &Db) -> Result<&mut Snapshot, DbError> {
        if self.is_stale {
            let nodes = fleet::all_nodes(db).await?;
            self.snapshot = Snapshot::new(nodes.into_iter().map(|node| self.blocked(node)));
            self.is_stale = false;
            self.stale_nodes.clear();
        }
        while !self.stale_nodes.is_empty() {
            let ids: BTreeSet<NodeId> =
                self.stale_nodes.iter().copied().take(fleet::NODES_AT_ONCE).collect();
            let nodes = fleet::some_nodes(db, &ids).await?;
            for id in &ids {
                self.stale_nodes.remove(id);
                self.snapshot.remove(*id);
            }
            for node in nodes {
                let node = self.blocked(node);
                self.snapshot.upsert(node);
            }
        }
        Ok(&mut self.snapshot)
    }

    /// Takes cards that a running orphan holds out of use.
    fn blocked(&self, mut node: NodeCapacity) -> NodeCapacity {
        let orphans = self.orphans.get(&node.id).map(Vec::as_slice).unwrap_or_default();
        for orphan in orphans.iter().filter(|orphan| orphan.running) {
            for gpu in node.gpus.iter_mut().filter(|gpu| orphan.gpus.contains(&gpu.uuid)) {
                let why = format!(
                    "held by container {}, which the platform does not know",
                    orphan.container_name
                );
                gpu.sick.get_or_insert(why);
            }
        }
        node
    }
}
