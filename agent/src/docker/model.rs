//! What the agent tells a Docker engine and hears from it, in words that hold for any engine.

use std::collections::BTreeMap;
use std::time::Duration;

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::InstanceId;
use tianqi_common::wire::desired::GpuUuid;
use tianqi_common::wire::observed::LimitState;
use tianqi_common::wire::stream::PtySize;

use crate::gpu::inject::Bind;

/// One container with our label, as inspect shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Docker's id.
    pub id: String,
    /// Docker's name, without the leading slash.
    pub name: String,
    /// The instance that its label names.
    pub instance: InstanceId,
    /// The generation that its label names; 0 when it names none.
    pub generation: u64,
    /// The cards that its label names.
    pub gpus: Vec<GpuUuid>,
    /// The limits that its label names.
    pub limits: Vec<LimitState>,
    /// When it was made.
    pub created_at: UnixMillis,
    /// When it last started.
    pub started_at: Option<UnixMillis>,
    /// When it last ended.
    pub finished_at: Option<UnixMillis>,
    /// How it stands.
    pub run: Run,
    /// Named and anonymous volumes mounted on it.
    pub volumes: Vec<String>,
    /// Process id of its first process on the engine's machine.
    pub pid: Option<u32>,
}

/// How a container stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Run {
    /// Made, not started yet.
    Created,
    /// Its first process runs, frozen or not.
    Running,
    /// Its first process ended.
    Exited {
        /// Exit code.
        code: i64,
        /// Whether the kernel ended it for lack of memory.
        out_of_memory: bool,
        /// What Docker adds, mostly nothing.
        error: String,
    },
    /// Docker is taking it away, or failed to.
    Removing,
}

impl Run {
    /// Returns whether its first process runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Running)
    }
}

/// How a container is made. Fields are named as in Docker's API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateContainer {
    /// Name.
    pub name: String,
    /// Image reference.
    pub image: String,
    /// Program that takes the place of the image's entrypoint; the image's own when empty.
    pub entrypoint: Vec<String>,
    /// Arguments; the image's own when empty and `entrypoint` is empty too.
    pub cmd: Vec<String>,
    /// Whether its input stays open, so that a shell waits instead of ending.
    pub keep_stdin_open: bool,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// CPU limit in billionths of a core.
    pub nano_cpus: i64,
    /// Memory limit in bytes; swap is not added to it.
    pub memory_bytes: i64,
    /// Most processes and threads.
    pub pids_limit: i64,
    /// Size of `/dev/shm` in bytes.
    pub shm_bytes: i64,
    /// Capabilities that Docker gives by default and this container does not get.
    pub cap_drop: Vec<String>,
    /// Security options.
    pub security_opt: Vec<String>,
    /// Log driver.
    pub log_driver: String,
    /// Its options.
    pub log_options: BTreeMap<String, String>,
    /// Network.
    pub network: String,
    /// Size of the writable layer, where the storage driver can hold it.
    pub disk_bytes: Option<u64>,
    /// How cards are asked for.
    pub gpus: GpuRequest,
    /// Files and directories of the node.
    pub binds: Vec<Bind>,
    /// Named volumes as (name, path in the container).
    pub volumes: Vec<(String, String)>,
}

/// How cards are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GpuRequest {
    /// None.
    #[default]
    None,
    /// By NVIDIA's hook, with uuids.
    Nvidia(Vec<String>),
    /// By the container device interface, with qualified names.
    Cdi(Vec<String>),
}

/// What an engine can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineFacts {
    /// Such as `overlay2`.
    pub storage_driver: String,
    /// Such as `extfs` or `xfs`.
    pub backing_filesystem: String,
    /// Whether that filesystem limits directories by project (xfs with `pquota`).
    pub project_quota: bool,
    /// Where the engine keeps its data, on its machine.
    pub root_dir: String,
    /// Qualified names of the CDI devices that the engine lists, such as `nvidia.com/gpu=GPU-…`.
    pub cdi_devices: Vec<String>,
    /// Whether the engine is on this machine.
    pub local: bool,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Name.
    pub name: String,
    /// Where it lies on the engine's machine.
    pub mountpoint: String,
}

/// How a volume is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateVolume {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Options of the volume driver.
    pub options: BTreeMap<String, String>,
}

/// The network that instances stand on.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkSpec {
    /// Docker's name of the network.
    pub name: String,
    /// The bridge interface, at most 15 characters.
    pub bridge: String,
    /// IPv4 range such as `10.213.0.0/16`; Docker chooses when empty.
    pub subnet: String,
}

impl Default for NetworkSpec {
    fn default() -> Self {
        Self { name: "tianqi".to_owned(), bridge: "tianqi0".to_owned(), subnet: String::new() }
    }
}

/// How the network of the instances stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkFacts {
    /// The bridge interface that it really has.
    pub bridge: String,
    /// Whether Docker keeps containers on it apart from each other.
    pub isolated: bool,
    /// Its ranges.
    pub subnets: Vec<String>,
}

/// An image of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageFacts {
    /// Its content id.
    pub id: String,
    /// Its entrypoint.
    pub entrypoint: Vec<String>,
    /// Its arguments.
    pub cmd: Vec<String>,
    /// Its environment as `NAME=value`.
    pub env: Vec<String>,
    /// Such as `amd64`.
    pub architecture: String,
    /// Volumes that it declares.
    pub volumes: Vec<String>,
}

/// How a pull goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullProgress {
    /// Bytes fetched, over all layers known so far.
    pub done_bytes: u64,
    /// Bytes to fetch, over all layers known so far; 0 while unknown.
    pub total_bytes: u64,
    /// Docker's own words, such as `Extracting`.
    pub status: String,
}

/// Which output of a container is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogRequest {
    /// Lines from the end; everything when nothing.
    pub tail: Option<u32>,
    /// Nothing older.
    pub since: Option<UnixMillis>,
    /// Nothing newer.
    pub until: Option<UnixMillis>,
    /// Whether to go on with what comes.
    pub follow: bool,
    /// Whether each line begins with its time.
    pub timestamps: bool,
}

/// What a running container uses. Counters grow from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContainerUsage {
    /// CPU time in nanoseconds.
    pub cpu_ns: u64,
    /// Bytes of memory without page cache that can be given back.
    pub memory_bytes: u64,
    /// Memory limit in bytes.
    pub memory_limit_bytes: u64,
    /// Bytes received.
    pub network_rx_bytes: u64,
    /// Bytes sent.
    pub network_tx_bytes: u64,
    /// Bytes read from disks.
    pub block_read_bytes: u64,
    /// Bytes written to disks.
    pub block_write_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
}

/// Something happened to a container with our label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerEvent {
    /// Docker's id.
    pub container: String,
    /// The instance that its label names.
    pub instance: Option<InstanceId>,
    /// Docker's word, such as `die`.
    pub action: String,
}

/// A program to start in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Environment added to the container's own.
    pub env: Vec<(String, String)>,
    /// Size of its terminal; without one, output and error come apart.
    pub pty: Option<PtySize>,
    /// Who it runs as; the container's own user when empty.
    pub user: String,
}

/// How a program stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExecState {
    /// Whether it runs.
    pub running: bool,
    /// Its exit code, once it ended.
    pub exit_code: Option<i32>,
    /// Its process id on the engine's machine.
    pub pid: Option<u32>,
}

/// What a container gets to end by itself before it is killed.
pub const STOP_GRACE: Duration = Duration::from_secs(10);
