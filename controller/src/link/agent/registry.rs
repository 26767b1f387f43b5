//! Which node's agent is connected. Of two connections of one node the newer start wins.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tianqi_common::id::NodeId;

use super::connection::Connected;

/// The connected agents.
#[derive(Debug, Default)]
pub struct Registry {
    nodes: Mutex<HashMap<NodeId, Arc<Connected>>>,
}

/// A newer start of the same node is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Superseded;

impl Registry {
    /// Enters a connection and returns the one it takes the place of. The same start may connect
    /// again: its older connection is then known to be dead before the controller notices.
    pub(super) fn enter(
        &self,
        newer: &Arc<Connected>,
    ) -> Result<Option<Arc<Connected>>, Superseded> {
        match self.lock().entry(newer.node) {
            Entry::Occupied(mut held) if held.get().start() <= newer.start() => {
                Ok(Some(held.insert(newer.clone())))
            }
            Entry::Occupied(_) => Err(Superseded),
            Entry::Vacant(free) => {
                free.insert(newer.clone());
                Ok(None)
            }
        }
    }

    /// Takes a connection out, unless another one of the same node stands there already.
    pub(super) fn leave(&self, gone: &Arc<Connected>) {
        if let Entry::Occupied(held) = self.lock().entry(gone.node)
            && Arc::ptr_eq(held.get(), gone)
        {
            held.remove();
        }
    }

    pub(in crate::link) fn get(&self, node: NodeId) -> Option<Arc<Connected>> {
        self.lock().get(&node).cloned()
    }

    pub(in crate::link) fn nodes(&self) -> Vec<NodeId> {
        self.lock().keys().copied().collect()
    }

    pub(super) fn all(&self) -> Vec<Arc<Connected>> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Arc<Connected>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
