//! Upper bounds that let the index skip nodes, and the tiers it searches.

use tianqi_common::unit::{CorePercent, DiskGib, GpuMemoryMib, MemoryMib, Millicores};

use crate::feasible::{Fleet, has_slice_room, host_free, is_whole_room};
use crate::model::{GpuRequest, NodeCapacity, Policy, Request};

/// The largest free amounts of a node, or of every node in a bucket.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Room {
    cpu: Millicores,
    memory: MemoryMib,
    disk: DiskGib,
    /// Over cards that hold a slice and may hold another.
    open_memory: GpuMemoryMib,
    open_cores: CorePercent,
    /// Over empty cards that may be cut.
    empty_memory: GpuMemoryMib,
    whole_cards: u32,
}

impl Room {
    pub(crate) fn of(node: &NodeCapacity) -> Self {
        let (cpu, memory, disk) = host_free(node, Fleet::Now);
        let mut room = Self { cpu, memory, disk, ..Self::default() };
        for gpu in &node.gpus {
            room.whole_cards += u32::from(is_whole_room(gpu));
            if node.slicing_unusable.is_some()
                || !has_slice_room(gpu, GpuMemoryMib(0), CorePercent(0))
            {
                continue;
            }
            if gpu.is_empty() {
                room.empty_memory = room.empty_memory.max(gpu.free_memory());
            } else {
                room.open_memory = room.open_memory.max(gpu.free_memory());
                room.open_cores = room.open_cores.max(gpu.free_cores());
            }
        }
        room
    }

    pub(crate) fn widen(&mut self, other: Self) {
        self.cpu = self.cpu.max(other.cpu);
        self.memory = self.memory.max(other.memory);
        self.disk = self.disk.max(other.disk);
        self.open_memory = self.open_memory.max(other.open_memory);
        self.open_cores = self.open_cores.max(other.open_cores);
        self.empty_memory = self.empty_memory.max(other.empty_memory);
        self.whole_cards = self.whole_cards.max(other.whole_cards);
    }

    /// Returns false only when the request surely does not fit.
    pub(crate) fn may_hold(&self, request: &Request, tier: Tier) -> bool {
        if self.cpu < request.cpu || self.memory < request.memory || self.disk < request.disk {
            return false;
        }
        match &request.gpu {
            GpuRequest::None => true,
            GpuRequest::Whole { count, .. } => self.whole_cards >= *count,
            GpuRequest::Slice { memory, cores, .. } => {
                let open = self.open_memory >= *memory && self.open_cores >= *cores;
                let empty = self.empty_memory >= *memory;
                open && tier != Tier::EmptyCard || empty && tier != Tier::OpenCard
            }
        }
    }
}

/// Nodes that serve a request's purpose equally; tiers are searched best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    CpuNodes,
    GpuNodes,
    /// Slices only: a card that holds slices already.
    OpenCard,
    /// Slices only: an empty card.
    EmptyCard,
}

impl Tier {
    pub(crate) fn of(request: &Request) -> &'static [Self] {
        match (&request.gpu, request.policy) {
            (GpuRequest::None, _) => &[Self::CpuNodes, Self::GpuNodes],
            (GpuRequest::Slice { .. }, Policy::BinPack) => &[Self::OpenCard, Self::EmptyCard],
            (GpuRequest::Slice { .. }, Policy::Spread) | (GpuRequest::Whole { .. }, _) => {
                &[Self::GpuNodes]
            }
        }
    }
}
