//! What was last seen on a node.

use serde::{Deserialize, Serialize};

use super::desired::{GpuUuid, Revision};
use crate::clock::UnixMillis;
use crate::id::InstanceId;

/// Everything that the agent sees of instances on its node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeObserved {
    /// The desired state that the agent has taken in, or its ledger's after a restart.
    pub revision: Revision,
    /// The Docker engine.
    pub docker: DockerState,
    /// One entry for each instance of that desired state.
    pub instances: Vec<InstanceObserved>,
    /// Tombstones that were carried out. Repeated until the tombstone is gone.
    pub removed: Vec<Removed>,
    /// Containers with our label that desired state does not know. They are left alone.
    pub orphans: Vec<Orphan>,
}

/// The Docker engine, as the agent finds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerState {
    /// Whether it answers.
    pub status: DockerStatus,
    /// Why not, in Docker's or the system's own words; empty when it answers.
    pub reason: String,
}

/// Whether the Docker engine answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DockerStatus {
    /// Not tried yet, or the agent is not connected.
    #[default]
    Unknown,
    /// It answers.
    Connected,
    /// It does not.
    Failed,
}

/// One instance, as the agent sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceObserved {
    /// Which instance.
    pub id: InstanceId,
    /// The generation that the agent last acted on; 0 before the first.
    pub generation: u64,
    /// Where its container is.
    pub state: ContainerState,
    /// Docker's id of the container, when there is one.
    pub container_id: Option<String>,
    /// When the container last started.
    pub started_at: Option<UnixMillis>,
    /// Times the agent restarted it by its policy since the last start that a person asked for.
    pub restarts: u32,
    /// What the node could and could not enforce.
    pub limits: Vec<LimitState>,
    /// The cards that the container really got, as Docker recorded the request.
    pub gpus: Vec<GpuUuid>,
}

/// Where a container is. Another type than the controller's phase on purpose: a phase also knows
/// what people want.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// There is none, and none is being made.
    Absent,
    /// It cannot be made because the image is not on the node. The controller answers with a pull.
    ImageMissing,
    /// It is being made or started.
    Creating,
    /// Its first process runs.
    Running,
    /// It was asked to stop and has not yet.
    Stopping,
    /// Its first process ended.
    Exited {
        /// Exit code.
        code: i64,
        /// Whether the kernel ended it for lack of memory.
        out_of_memory: bool,
        /// What else is known, such as who stopped it; may be empty.
        message: String,
    },
    /// It could not be made or started.
    Failed {
        /// Docker's own words.
        message: String,
        /// Whether the agent tries again by itself.
        retrying: bool,
    },
    /// The Docker engine does not answer, so nothing is known.
    Unknown,
}

/// How the message of [`ContainerState::Exited`] begins when the agent itself ended the instance
/// for going over its limits. Such an end holds, whatever the restart policy, until a person says
/// otherwise.
pub const STOPPED_BY_WATCHDOG: &str = "stopped by the watchdog";

/// A limit of an instance and whether the node holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitState {
    /// Which limit.
    pub kind: LimitKind,
    /// Whether it is enforced.
    pub enforced: bool,
    /// Why not; empty when it is.
    pub reason: String,
}

/// The limits that some nodes cannot enforce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitKind {
    /// GPU memory and cores of a slice.
    Slice,
    /// Size of the writable layer.
    SystemDisk,
    /// Size of the volume at `/data`.
    DataDisk,
    /// Walls between instances, and between an instance and its node.
    Network,
}

/// A tombstone that was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Which instance.
    pub id: InstanceId,
    /// What could not be removed, in words; empty when nothing is left. The agent keeps trying.
    pub leftovers: Vec<String>,
}

/// A container with our label that desired state does not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orphan {
    /// The instance that its label names.
    pub id: InstanceId,
    /// Docker's id of the container.
    pub container_id: String,
    /// Docker's name of the container.
    pub container_name: String,
    /// Whether it runs.
    pub running: bool,
    /// The cards it holds.
    pub gpus: Vec<GpuUuid>,
}
