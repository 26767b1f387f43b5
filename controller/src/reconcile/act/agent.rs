//! Tells agents what should be on their nodes.

use std::collections::HashMap;

use tianqi_common::id::NodeId;
use tianqi_common::unit::{DiskGib, MemoryMib, Millicores};
use tianqi_common::wire::desired::{InstanceDesired, InstanceSpec, NodeDesired, Revision, Run};

use crate::core::db::{Db, DbError};
use crate::core::epoch;
use crate::features::instances::lifecycle::Desired;
use crate::features::instances::model::PIDS_LIMIT;
use crate::features::instances::store::{self, Instance};
use crate::reconcile::Agents;

/// What every agent was told last.
#[derive(Debug, Default)]
pub(crate) struct Publisher {
    told: HashMap<NodeId, Revision>,
}

impl Publisher {
    /// An agent connected: whatever it was told before, it is told again.
    pub(crate) fn forget(&mut self, node: NodeId) {
        self.told.remove(&node);
    }

    /// Tells every connected agent whose node changed. Returns how many were told.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the engine refuses; who was not told is told at the next pass.
    pub(crate) async fn publish<A: Agents>(
        &mut self,
        db: &Db,
        agents: &A,
    ) -> Result<usize, DbError> {
        let epoch = epoch::current(db).await?;
        let mut told = 0;
        for (node, generation) in store::node_generations(db).await? {
            let revision = Revision { epoch, generation };
            if self.told.get(&node) == Some(&revision) || !agents.is_connected(node) {
                continue;
            }
            if agents.publish(node, desired(db, node, revision).await?) {
                self.told.insert(node, revision);
                told += 1;
            }
        }
        Ok(told)
    }
}

/// Reads what should be on a node.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub(crate) async fn desired(
    db: &Db,
    node: NodeId,
    revision: Revision,
) -> Result<NodeDesired, DbError> {
    let mut desired = NodeDesired { revision, ..NodeDesired::default() };
    for it in store::on_node(db, node).await? {
        match it.state.desired {
            Desired::Deleted => desired.tombstones.push(it.id),
            Desired::Running | Desired::Stopped => desired.instances.push(instance(it)),
        }
    }
    Ok(desired)
}

fn instance(it: Instance) -> InstanceDesired {
    let run = if it.state.runs_on_node() { Run::Running } else { Run::Stopped };
    let spec = InstanceSpec {
        cpu: Millicores(it.spec.cpu_millicores),
        memory: MemoryMib(it.spec.memory_mib),
        system_disk: DiskGib(it.spec.system_disk_gib),
        data_disk: DiskGib(it.spec.data_disk_gib),
        shm: it.spec.shm(),
        pids_limit: PIDS_LIMIT,
        slice: it.spec.slice(),
        container_name: it.container_name,
        image: it.image_address,
        gpus: it.gpus,
        env: it.env,
        restart: it.policy,
    };
    InstanceDesired { id: it.id, generation: it.generation, run, spec }
}
