//! What should be on a node.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::InstanceId;
use crate::unit::{CorePercent, DiskGib, GpuMemoryMib, MemoryMib, Millicores};

/// Orders desired states. A restore of the database raises the epoch, which orders before the
/// generation, so that an older generation number of a restored database still counts as newer.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Revision {
    /// Raised by a restore.
    pub epoch: u64,
    /// Grows with every change for this node.
    pub generation: u64,
}

/// The complete desired state of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDesired {
    /// Which state this is.
    pub revision: Revision,
    /// Every instance placed on this node that should exist.
    pub instances: Vec<InstanceDesired>,
    /// Instances that must go, with container and volumes. Nothing else is ever deleted.
    pub tombstones: Vec<InstanceId>,
}

/// One instance as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceDesired {
    /// Which instance.
    pub id: InstanceId,
    /// Grows with every start, stop and restart that a person asks for. An agent that has acted on
    /// a generation does not act on it again, so a container that ended by itself stays ended
    /// unless its restart policy says otherwise.
    pub generation: u64,
    /// Running or stopped.
    pub run: Run,
    /// How its container is made.
    pub spec: InstanceSpec,
}

/// Whether an instance should run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Run {
    /// It should run.
    Running,
    /// It should stand still and keep its disk and data.
    Stopped,
}

/// What the agent does when the instance's process ends by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// It stays ended.
    #[default]
    Never,
    /// It starts again when the exit code is not zero.
    OnFailure,
    /// It starts again.
    Always,
}

/// How the container of an instance is made. Fixed at creation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// The container's name: `<name>-<instance id>-<unix time>`.
    pub container_name: String,
    /// The image reference, as Docker takes it.
    pub image: String,
    /// CPU limit.
    pub cpu: Millicores,
    /// Memory limit.
    pub memory: MemoryMib,
    /// Size of the writable layer; 0 means no limit. Enforced where the storage driver can.
    pub system_disk: DiskGib,
    /// Size of the volume at `/data`; 0 means no volume. Enforced where the storage driver can.
    pub data_disk: DiskGib,
    /// Size of `/dev/shm`.
    pub shm: MemoryMib,
    /// Most processes and threads.
    pub pids_limit: u32,
    /// The cards this instance holds, in PCI order. Empty for none.
    pub gpus: Vec<GpuUuid>,
    /// Set when the instance holds a part of its one card; the card is whole otherwise.
    pub slice: Option<GpuSlice>,
    /// Environment variables that the user gave; reserved names were refused by the API.
    pub env: Vec<(String, String)>,
    /// What happens when the process ends by itself.
    pub restart: RestartPolicy,
}

/// The uuid that NVML gives a card, such as `GPU-5c89852c-…`; simulated cards begin with `SIM-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GpuUuid(pub String);

impl fmt::Display for GpuUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A part of one card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuSlice {
    /// Memory that the instance may use.
    pub memory: GpuMemoryMib,
    /// Share of the card's multiprocessors, 1 to 100.
    pub cores: CorePercent,
}

/// What an admin set on the node's page. Empty fields leave the agent's own configuration.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSettings {
    /// Directory of the HAMi-core library on the node.
    pub hami_dir: Option<String>,
    /// Docker endpoint: `unix:///…` or `tcp://host:port`.
    pub docker_endpoint: Option<String>,
    /// PEM of the CA that signs the engine's certificate.
    pub docker_tls_ca: Option<String>,
    /// PEM of the client certificate shown to the engine.
    pub docker_tls_cert: Option<String>,
    /// PEM of the client certificate's key. Never printed.
    pub docker_tls_key: Option<String>,
}

impl fmt::Debug for NodeSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeSettings")
            .field("hami_dir", &self.hami_dir)
            .field("docker_endpoint", &self.docker_endpoint)
            .field("has_tls_key", &self.docker_tls_key.is_some())
            .finish_non_exhaustive()
    }
}
