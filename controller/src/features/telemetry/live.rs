//! The last sample of each instance.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{InstanceId, NodeId};
use tianqi_common::wire::telemetry::{InstanceSample, SampleBatch};
use tokio_util::sync::CancellationToken;

use crate::link::samples::SampleReceiver;

/// The last sample of one instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Last {
    /// When it was read, by the node's clock.
    pub at: UnixMillis,
    /// What was read.
    pub sample: InstanceSample,
}

/// Holds the last samples. Cheap to clone; what a node no longer reports is forgotten.
#[derive(Clone, Debug, Default)]
pub struct Live {
    nodes: Arc<RwLock<BTreeMap<NodeId, BTreeMap<InstanceId, Last>>>>,
}

impl Live {
    /// Takes in what a node sent.
    pub fn take(&self, node: NodeId, batch: &SampleBatch) {
        let Some(newest) = batch.samples.last() else { return };
        let at = newest.at;
        let last = newest.instances.iter();
        let last = last.map(|sample| (sample.id, Last { at, sample: sample.clone() }));
        let last = last.collect();
        self.nodes.write().unwrap_or_else(PoisonError::into_inner).insert(node, last);
    }

    /// Returns the last sample of an instance that is on `node`.
    #[must_use]
    pub fn last(&self, node: NodeId, instance: InstanceId) -> Option<Last> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.get(&node)?.get(&instance).cloned()
    }
}

/// Takes in samples until `cancel`.
pub async fn ingest(live: Live, mut samples: SampleReceiver, cancel: CancellationToken) {
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            (node, batch) = samples.recv() => live.take(node, &batch),
        }
    }
}

#[cfg(test)]
mod tests {
    use tianqi_common::wire::telemetry::{NodeSample, Sample};

    use super::*;

    fn batch(at: i64, ids: &[InstanceId]) -> SampleBatch {
        let instances = ids.iter().map(|id| InstanceSample {
            id: *id,
            cpu_millicores: 250,
            memory_used_bytes: 1,
            memory_limit_bytes: 2,
            network_rx_bytes: 3,
            network_tx_bytes: 4,
            block_read_bytes: 5,
            block_write_bytes: 6,
            pids: 7,
            gpu_memory_used_bytes: None,
        });
        let sample = Sample {
            at: UnixMillis(at),
            node: NodeSample::default(),
            gpus: Vec::new(),
            instances: instances.collect(),
        };
        SampleBatch { dropped: 0, samples: vec![sample] }
    }

    #[test]
    fn the_newest_sample_counts_and_an_instance_that_stopped_has_none() {
        let (live, node) = (Live::default(), NodeId::new());
        let (stays, goes) = (InstanceId::new(), InstanceId::new());

        live.take(node, &batch(1, &[stays, goes]));
        live.take(node, &batch(2, &[stays]));

        assert_eq!(live.last(node, stays).map(|last| last.at), Some(UnixMillis(2)));
        assert_eq!(live.last(node, goes), None);
        assert_eq!(live.last(NodeId::new(), stays), None, "another node spoke for it");
    }
}
