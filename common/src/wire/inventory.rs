//! What a machine is.

use serde::{Deserialize, Serialize};

use super::desired::GpuUuid;
use crate::unit::{GpuMemoryMib, MemoryMib};

/// Everything the agent finds out about its machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeInventory {
    /// The machine's name.
    pub hostname: String,
    /// Such as `Debian GNU/Linux 12 (bookworm)`.
    pub os: String,
    /// Kernel release.
    pub kernel: String,
    /// Such as `x86_64`.
    pub architecture: String,
    /// Model of the first CPU.
    pub cpu_model: String,
    /// Logical CPUs.
    pub cpu_cores: u32,
    /// Main memory.
    pub memory: MemoryMib,
    /// Mounted disks; the one that holds Docker's data comes first.
    pub disks: Vec<Disk>,
    /// The Docker engine, when it answered.
    pub docker: Option<DockerEngine>,
    /// The cards.
    pub gpus: GpuInventory,
    /// The slicing library.
    pub hami: HamiLibrary,
    /// Version of the agent's program.
    pub agent_program: String,
}

/// One mounted disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Where it is mounted.
    pub mount: String,
    /// Such as `ext4`.
    pub filesystem: String,
    /// Size in bytes.
    pub total_bytes: u64,
    /// Free bytes.
    pub free_bytes: u64,
    /// Whether Docker keeps its data here.
    pub holds_docker: bool,
}

/// The Docker engine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerEngine {
    /// Such as `20.10.24`.
    pub version: String,
    /// Such as `1.41`.
    pub api_version: String,
    /// `cgroupfs` or `systemd`.
    pub cgroup_driver: String,
    /// `1` or `2`.
    pub cgroup_version: String,
    /// Such as `overlay2`.
    pub storage_driver: String,
    /// Filesystem under Docker's data.
    pub backing_filesystem: String,
    /// Whether containers outlive a restart of the engine.
    pub live_restore: bool,
    /// Whether the engine can hand out NVIDIA cards, and how.
    pub gpu_support: GpuSupport,
    /// Whether the engine is on this machine.
    pub local: bool,
}

/// How the engine hands out NVIDIA cards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuSupport {
    /// It cannot, or it is not known.
    #[default]
    None,
    /// By the NVIDIA container toolkit's hook.
    Hook,
    /// By the container device interface.
    Cdi,
}

/// The cards of a machine, or why there are none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuInventory {
    /// Why no card can be read, in words; empty when NVML works.
    pub unavailable: String,
    /// Whether these cards are imaginary (`--simulate-gpus`).
    pub simulated: bool,
    /// Driver version.
    pub driver_version: String,
    /// Newest CUDA version that the driver supports, such as `12.4`.
    pub cuda_version: String,
    /// The cards, in PCI order.
    pub cards: Vec<GpuCard>,
    /// How near each pair of cards is.
    pub links: Vec<GpuLink>,
}

/// One physical card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuCard {
    /// NVML's uuid.
    pub uuid: GpuUuid,
    /// NVML's index; not stable over reboots, for people only.
    pub index: u32,
    /// Such as `NVIDIA L40`.
    pub model: String,
    /// Total memory.
    pub memory_total: GpuMemoryMib,
    /// Memory that the driver keeps for itself.
    pub memory_reserved: GpuMemoryMib,
    /// Such as `00000000:3B:00.0`.
    pub pci_bus_id: String,
    /// NUMA node, where the system knows it.
    pub numa_node: Option<u32>,
    /// Minor number of `/dev/nvidia<minor>`.
    pub minor: Option<u32>,
    /// Why the card must not take work, in words; empty when it is healthy.
    pub sick: String,
    /// Whether MIG is switched on; such a card takes no work yet.
    pub mig_enabled: bool,
}

/// How near two cards are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuLink {
    /// One card.
    pub a: GpuUuid,
    /// The other.
    pub b: GpuUuid,
    /// What the path between them crosses.
    pub kind: LinkKind,
    /// Active NVLinks between them.
    pub nvlinks: u32,
}

/// What the PCIe path between two cards crosses, from nearest to farthest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// Both are on one board.
    SameBoard,
    /// One PCIe switch.
    SingleSwitch,
    /// Several PCIe switches.
    MultipleSwitches,
    /// A host bridge.
    HostBridge,
    /// The interconnect inside a NUMA node.
    SameNuma,
    /// The interconnect between CPUs.
    CrossCpu,
}

/// The slicing library of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HamiLibrary {
    /// The directory in use.
    pub dir: String,
    /// SHA-256 of `libvgpu.so`, hexadecimal; empty when there is none.
    pub sha256: String,
    /// Why slices cannot be enforced on this node; empty when they can.
    pub unusable: String,
}
