//! Samples: numbers with a time, read on the node.

use serde::{Deserialize, Serialize};

use super::desired::GpuUuid;
use crate::clock::UnixMillis;
use crate::id::InstanceId;

/// Some samples and how many were lost before them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SampleBatch {
    /// Samples dropped since the last batch because the queue was full.
    pub dropped: u64,
    /// Oldest first.
    pub samples: Vec<Sample>,
}

/// Everything read at one time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// When, by the node's clock.
    pub at: UnixMillis,
    /// The machine.
    pub node: NodeSample,
    /// Its cards.
    pub gpus: Vec<GpuSample>,
    /// Its running instances.
    pub instances: Vec<InstanceSample>,
}

/// The machine as a whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeSample {
    /// Thousandths of a core in use since the last sample.
    pub cpu_millicores: u64,
    /// Bytes of memory in use.
    pub memory_used_bytes: u64,
    /// Free bytes where Docker keeps its data.
    pub disk_free_bytes: u64,
}

/// One card. What a card does not support is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuSample {
    /// Which card.
    pub uuid: GpuUuid,
    /// Percent of time that a kernel ran.
    pub utilisation_percent: Option<u32>,
    /// Bytes in use.
    pub memory_used_bytes: Option<u64>,
    /// Degrees Celsius.
    pub temperature_c: Option<u32>,
    /// Milliwatts.
    pub power_mw: Option<u32>,
}

/// One running instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceSample {
    /// Which instance.
    pub id: InstanceId,
    /// Thousandths of a core in use since the last sample.
    pub cpu_millicores: u64,
    /// Bytes of memory in use, without page cache.
    pub memory_used_bytes: u64,
    /// Most bytes allowed; 0 for no limit.
    pub memory_limit_bytes: u64,
    /// Bytes received since the container started.
    pub network_rx_bytes: u64,
    /// Bytes sent since the container started.
    pub network_tx_bytes: u64,
    /// Bytes read from disks since the container started.
    pub block_read_bytes: u64,
    /// Bytes written to disks since the container started.
    pub block_write_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes of GPU memory that its processes hold, as NVML tells; absent without NVML.
    pub gpu_memory_used_bytes: Option<u64>,
}
