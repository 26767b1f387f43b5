//! Pure: containers with our label that nobody desires. They are reported and left alone.

use std::collections::BTreeSet;

use tianqi_common::wire::desired::NodeDesired;
use tianqi_common::wire::observed::Orphan;

use super::Container;

/// Returns the containers that neither an instance nor a tombstone of `desired` names.
#[must_use]
pub fn orphans(containers: &[Container], desired: &NodeDesired) -> Vec<Orphan> {
    let mut known: BTreeSet<_> = desired.instances.iter().map(|instance| instance.id).collect();
    known.extend(&desired.tombstones);
    containers
        .iter()
        .filter(|container| !known.contains(&container.instance))
        .map(|container| Orphan {
            id: container.instance,
            container_id: container.id.clone(),
            container_name: container.name.clone(),
            running: container.run.is_running(),
            gpus: container.gpus.clone(),
        })
        .collect()
}
