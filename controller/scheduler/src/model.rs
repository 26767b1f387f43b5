//! What the scheduler knows of the fleet and what it is asked for. Integers only.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tianqi_common::id::NodeId;
use tianqi_common::unit::{CorePercent, DiskGib, GpuMemoryMib, MemoryMib, Millicores};
use tianqi_common::wire::desired::{GpuSlice, GpuUuid};
use tianqi_common::wire::inventory::GpuLink;

/// Shares that one card may be cut into, unless the node says otherwise (HAMi's `deviceSplitCount`).
pub const DEFAULT_MAX_SHARES: u32 = 10;
/// Cores of one whole card, in percent.
pub const WHOLE_CARD: CorePercent = CorePercent(100);
/// Least memory kept free on a card for driver contexts.
pub const HEADROOM_FLOOR: GpuMemoryMib = GpuMemoryMib(512);

/// Returns the memory that slices leave free on a card: 2 % of it, at least [`HEADROOM_FLOOR`].
///
/// CUDA contexts take memory beyond what the slicing library counts; without headroom the last
/// slice of a card meets an out-of-memory error below its own limit.
#[must_use]
pub fn default_headroom(total: GpuMemoryMib) -> GpuMemoryMib {
    GpuMemoryMib(total.0 / 50).max(HEADROOM_FLOOR)
}

/// Whether a node takes new work, and why not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeGate {
    /// Whether the node is on offer. A node that is not listed never counts as possible.
    pub listed: bool,
    /// Whether an admin holds new work back.
    pub cordoned: bool,
    /// Why the agent cannot be reached; `None` when it is connected and healthy.
    pub offline: Option<String>,
    /// Why the Docker engine cannot be used; `None` when it is connected.
    pub docker_down: Option<String>,
}

impl NodeGate {
    /// Returns a gate that lets all work in.
    #[must_use]
    pub fn open() -> Self {
        Self { listed: true, ..Self::default() }
    }

    /// Returns whether new work may enter.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.listed && !self.cordoned && self.offline.is_none() && self.docker_down.is_none()
    }
}

/// A machine: what it has and what is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCapacity {
    /// Which node.
    pub id: NodeId,
    /// Its name, for people.
    pub name: String,
    /// Its region, for people; not a filter.
    pub region: String,
    /// Whether it takes new work.
    pub gate: NodeGate,
    /// CPU on offer.
    pub cpu_total: Millicores,
    /// CPU granted.
    pub cpu_used: Millicores,
    /// Memory on offer.
    pub memory_total: MemoryMib,
    /// Memory granted.
    pub memory_used: MemoryMib,
    /// Disk on offer.
    pub disk_total: DiskGib,
    /// Disk granted, system and data disks together.
    pub disk_used: DiskGib,
    /// The cards, in PCI order.
    pub gpus: Vec<GpuCapacity>,
    /// How near each pair of cards is. A pair that is not named is judged by its NUMA nodes.
    pub links: Vec<GpuLink>,
    /// Why slices cannot be enforced here; `None` when they can, and on simulated nodes.
    pub slicing_unusable: Option<String>,
    /// References of the images that the node holds already.
    pub images: BTreeSet<String>,
}

impl NodeCapacity {
    /// Returns an open node without capacity, to be filled in.
    #[must_use]
    pub fn new(id: NodeId, name: impl Into<String>) -> Self {
        Self {
            id,
            name: name.into(),
            region: String::new(),
            gate: NodeGate::open(),
            cpu_total: Millicores(0),
            cpu_used: Millicores(0),
            memory_total: MemoryMib(0),
            memory_used: MemoryMib(0),
            disk_total: DiskGib(0),
            disk_used: DiskGib(0),
            gpus: Vec::new(),
            links: Vec::new(),
            slicing_unusable: None,
            images: BTreeSet::new(),
        }
    }
}

/// What a card may be used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuMode {
    /// Only as a whole.
    Whole,
    /// In slices, or as a whole while it is empty.
    #[default]
    Shared,
    /// Not at all.
    Disabled,
}

/// One card: what it has and what is taken.
///
/// The counters are changed by [`GpuCapacity::grant_whole`] and [`GpuCapacity::grant_slice`], so
/// that a snapshot built from rows and one changed by placing agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuCapacity {
    /// NVML's uuid.
    pub uuid: GpuUuid,
    /// NVML's model name, such as `NVIDIA L40`.
    pub model: String,
    /// Total memory.
    pub memory_total: GpuMemoryMib,
    /// Memory that the driver keeps for itself.
    pub memory_reserved: GpuMemoryMib,
    /// Memory that slices leave free; see [`default_headroom`].
    pub headroom: GpuMemoryMib,
    /// Memory granted.
    pub memory_used: GpuMemoryMib,
    /// Cores granted, in percent.
    pub cores_used: CorePercent,
    /// Grants on this card.
    pub shares: u32,
    /// Most grants on this card.
    pub max_shares: u32,
    /// Whether one instance holds the whole card.
    pub exclusive: bool,
    /// What the card may be used for.
    pub mode: GpuMode,
    /// Why the card must not take work; `None` when it is healthy.
    pub sick: Option<String>,
    /// NUMA node, where it is known.
    pub numa: Option<u32>,
}

impl GpuCapacity {
    /// Returns an empty, healthy, shared card with the default headroom and share count.
    #[must_use]
    pub fn new(uuid: GpuUuid, model: impl Into<String>, memory_total: GpuMemoryMib) -> Self {
        Self {
            uuid,
            model: model.into(),
            memory_total,
            memory_reserved: GpuMemoryMib(0),
            headroom: default_headroom(memory_total),
            memory_used: GpuMemoryMib(0),
            cores_used: CorePercent(0),
            shares: 0,
            max_shares: DEFAULT_MAX_SHARES,
            exclusive: false,
            mode: GpuMode::Shared,
            sick: None,
            numa: None,
        }
    }

    /// Returns the memory that slices may take in all: total − reserved − headroom.
    #[must_use]
    pub fn usable(&self) -> GpuMemoryMib {
        self.memory_total.minus(self.memory_reserved).minus(self.headroom)
    }

    /// Returns whether nobody holds anything of this card.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shares == 0 && !self.exclusive && self.memory_used.0 == 0 && self.cores_used.0 == 0
    }

    /// Returns the memory that a further slice may take; none of a card that is held whole.
    #[must_use]
    pub fn free_memory(&self) -> GpuMemoryMib {
        if self.exclusive { GpuMemoryMib(0) } else { self.usable().minus(self.memory_used) }
    }

    /// Returns the cores that a further slice may take; none of a card that is held whole.
    #[must_use]
    pub fn free_cores(&self) -> CorePercent {
        if self.exclusive { CorePercent(0) } else { WHOLE_CARD.minus(self.cores_used) }
    }

    /// Returns how many further slices the card may hold; none when it is held whole.
    #[must_use]
    pub fn free_shares(&self) -> u32 {
        if self.exclusive { 0 } else { self.max_shares.saturating_sub(self.shares) }
    }

    /// Books the whole card for one instance.
    pub fn grant_whole(&mut self) {
        self.exclusive = true;
        self.shares = self.shares.saturating_add(1);
        self.memory_used = self.memory_used.plus(self.usable());
        self.cores_used = self.cores_used.plus(WHOLE_CARD);
    }

    /// Books a slice.
    pub fn grant_slice(&mut self, slice: GpuSlice) {
        self.shares = self.shares.saturating_add(1);
        self.memory_used = self.memory_used.plus(slice.memory);
        self.cores_used = self.cores_used.plus(slice.cores);
    }

    /// Takes back what [`GpuCapacity::grant_whole`] booked.
    pub fn release_whole(&mut self) {
        self.exclusive = false;
        self.shares = self.shares.saturating_sub(1);
        self.memory_used = self.memory_used.minus(self.usable());
        self.cores_used = self.cores_used.minus(WHOLE_CARD);
    }

    /// Takes back what [`GpuCapacity::grant_slice`] booked.
    pub fn release_slice(&mut self, slice: GpuSlice) {
        self.shares = self.shares.saturating_sub(1);
        self.memory_used = self.memory_used.minus(slice.memory);
        self.cores_used = self.cores_used.minus(slice.cores);
    }
}

/// Which nodes are filled first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The fullest node that fits, so that large requests find empty ones.
    #[default]
    BinPack,
    /// The emptiest node.
    Spread,
}

/// What a request asks of cards.
///
/// A model is compared with NVML's name, ignoring case and surrounding blanks.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum GpuRequest {
    /// No card.
    #[default]
    None,
    /// Whole empty cards.
    Whole {
        /// How many, at least 1.
        count: u32,
        /// The model; any when `None`.
        model: Option<String>,
    },
    /// A part of one card.
    Slice {
        /// Memory, at least 1 MiB.
        memory: GpuMemoryMib,
        /// Cores, 1 to 100 percent; 100 needs an empty card.
        cores: CorePercent,
        /// The model; any when `None`.
        model: Option<String>,
    },
}

impl GpuRequest {
    /// Returns the model asked for.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Whole { model, .. } | Self::Slice { model, .. } => model.as_deref(),
        }
    }
}

/// What one instance needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Request {
    /// CPU.
    pub cpu: Millicores,
    /// Memory.
    pub memory: MemoryMib,
    /// Disk, system and data together.
    pub disk: DiskGib,
    /// Cards.
    pub gpu: GpuRequest,
    /// The node that a person named; a filter like the others.
    pub node: Option<NodeId>,
    /// The image, which counts for a node that holds it already.
    pub image: Option<String>,
    /// Which nodes are filled first.
    pub policy: Policy,
}

/// Where an instance goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The node.
    pub node: NodeId,
    /// The cards, in PCI order; empty for none.
    pub gpus: Vec<GpuUuid>,
    /// Set when the instance gets a part of its one card.
    pub slice: Option<GpuSlice>,
    /// How well it fits; higher is better. Comparable between placements of one request only.
    pub score: u32,
}

/// Returns whether two model names mean the same card.
pub(crate) fn same_model(a: &str, b: &str) -> bool {
    a.trim().eq_ignore_ascii_case(b.trim())
}
