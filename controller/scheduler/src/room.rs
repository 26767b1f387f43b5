//! Upper bounds that let the index skip nodes, and the tiers it searches.

use tianqi_common::unit::{CorePercent, DiskGib, GpuMemoryMib, MemoryMib, Millicores};

use crate::feasible::{Fleet, has_slice_room, host_free, is_whole_room};
use crate::model::{GpuRequest, NodeCapacity, Policy, Request};

/// Free cores by which the open cards of a node are told apart. A card with much memory and few
/// cores and one with the reverse must not look like one card with much of both.
const CORE_STEPS: [CorePercent; 7] = [
    CorePercent(0),
    CorePercent(5),
    CorePercent(10),
    CorePercent(20),
    CorePercent(30),
    CorePercent(50),
    CorePercent(75),
];

/// The largest free amounts of a node, or of every node in a bucket.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Room {
    cpu: Millicores,
    memory: MemoryMib,
    disk: DiskGib,
    /// Over cards that hold a slice and may hold another, by least free cores: one entry for each
    /// of [`CORE_STEPS`].
    open_memory: [GpuMemoryMib; CORE_STEPS.len()],
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
                for (memory, cores) in room.open_memory.iter_mut().zip(CORE_STEPS) {
                    if gpu.free_cores() >= cores {
                        *memory = gpu.free_memory().max(*memory);
                    }
                }
            }
        }
        room
    }

    pub(crate) fn widen(&mut self, other: Self) {
        self.cpu = self.cpu.max(other.cpu);
        self.memory = self.memory.max(other.memory);
        self.disk = self.disk.max(other.disk);
        for (memory, other) in self.open_memory.iter_mut().zip(other.open_memory) {
            *memory = other.max(*memory);
        }
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
                let steps = self.open_memory.iter().zip(CORE_STEPS);
                let reached = steps.rev().find(|(_, step)| step <= cores);
                let open = reached.is_some_and(|(most, _)| most >= memory);
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
