//! Filters: does a request fit on a node, and if not, the one reason why.

use std::collections::BTreeSet;

use tianqi_common::id::InstanceId;
use tianqi_common::unit::{CorePercent, DiskGib, GpuMemoryMib, MemoryMib, Millicores};
use tianqi_common::wire::desired::GpuUuid;

use crate::model::{
    GpuCapacity, GpuMode, GpuRequest, NodeCapacity, Request, WHOLE_CARD, same_model,
};
use crate::reason::Reason;
use crate::topology::Pairs;

/// A node as the snapshot keeps it.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) capacity: NodeCapacity,
    pub(crate) pairs: Pairs,
    /// The instance that waits for this node to drain; nobody else is placed here meanwhile.
    pub(crate) held_for: Option<InstanceId>,
}

impl Node {
    /// Takes a node in; of two cards with the same uuid the first counts, as grants name uuids.
    pub(crate) fn new(mut capacity: NodeCapacity) -> Self {
        let mut seen = BTreeSet::new();
        capacity.gpus.retain(|gpu| seen.insert(gpu.uuid.clone()));
        let pairs = Pairs::new(&capacity.gpus, &capacity.links);
        Self { capacity, pairs, held_for: None }
    }

    /// Returns whether new work may enter.
    pub(crate) fn is_open(&self) -> bool {
        self.capacity.gate.is_open() && self.held_for.is_none()
    }
}

/// Against what a request is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fleet {
    /// The nodes as they are.
    Now,
    /// The listed nodes when every instance is gone and everything is healthy and connected.
    Ideal,
}

/// The cards that may be used; a re-check looks at the chosen ones only.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cards<'a> {
    All,
    These(&'a [GpuUuid]),
}

impl Cards<'_> {
    fn allow(self, gpu: &GpuCapacity) -> bool {
        match self {
            Self::All => true,
            Self::These(uuids) => uuids.contains(&gpu.uuid),
        }
    }
}

/// Checks `request` on `node`: the request itself, the gates, the cards, then CPU, memory, disk.
///
/// # Errors
///
/// The first [`Reason`] in that order.
pub(crate) fn check(
    node: &Node,
    request: &Request,
    fleet: Fleet,
    cards: Cards<'_>,
) -> Result<(), Reason> {
    valid(request)?;
    if request.node.is_some_and(|named| named != node.capacity.id) {
        return Err(Reason::NotNamed);
    }
    gates(node, fleet)?;
    gpus(&node.capacity, request, fleet, cards)?;
    host(&node.capacity, request, fleet)
}

/// Checks that the request makes sense on some node.
pub(crate) fn valid(request: &Request) -> Result<(), Reason> {
    let problem = match &request.gpu {
        GpuRequest::Whole { count: 0, .. } => "it asks for 0 whole cards; ask for at least 1",
        GpuRequest::Slice { memory: GpuMemoryMib(0), .. } => {
            "its slice has no memory; ask for at least 1 MiB"
        }
        GpuRequest::Slice { cores, .. } if cores.0 == 0 || *cores > WHOLE_CARD => {
            "its slice's cores are not between 1 and 100 percent"
        }
        GpuRequest::None | GpuRequest::Whole { .. } | GpuRequest::Slice { .. } => return Ok(()),
    };
    Err(Reason::InvalidRequest { problem: problem.into() })
}

fn gates(node: &Node, fleet: Fleet) -> Result<(), Reason> {
    let gate = &node.capacity.gate;
    if !gate.listed {
        return Err(Reason::NotListed);
    }
    if fleet == Fleet::Ideal {
        return Ok(());
    }
    if let Some(why) = &gate.offline {
        return Err(Reason::Offline { why: why.clone() });
    }
    if gate.cordoned {
        return Err(Reason::Cordoned);
    }
    if let Some(why) = &gate.docker_down {
        return Err(Reason::DockerDown { why: why.clone() });
    }
    if node.held_for.is_some() {
        return Err(Reason::Held);
    }
    Ok(())
}

fn gpus(
    node: &NodeCapacity,
    request: &Request,
    fleet: Fleet,
    cards: Cards<'_>,
) -> Result<(), Reason> {
    let wanted = request.gpu.model();
    let matching = || node.gpus.iter().filter(move |gpu| is_candidate(gpu, wanted, cards));
    if request.gpu == GpuRequest::None {
        return Ok(());
    }
    if node.gpus.is_empty() {
        return Err(Reason::NoGpus);
    }
    if matching().next().is_none() {
        return Err(model_mismatch(node, wanted.unwrap_or_default()));
    }
    if !matching().any(|gpu| works(gpu, fleet)) {
        return Err(no_healthy_card(matching()));
    }
    match &request.gpu {
        GpuRequest::None => Ok(()),
        GpuRequest::Whole { count, .. } => {
            let (mut cards, mut empty) = (0, 0);
            for gpu in matching() {
                cards += 1;
                empty += u32::from(is_free_whole(gpu, fleet));
            }
            if empty >= *count {
                return Ok(());
            }
            Err(Reason::NotEnoughEmptyCards { needed: *count, empty, cards })
        }
        GpuRequest::Slice { memory, cores, .. } => {
            if fleet == Fleet::Now
                && let Some(why) = &node.slicing_unusable
            {
                return Err(Reason::SlicingUnusable { why: why.clone() });
            }
            slice(matching().filter(|gpu| works(gpu, fleet)), *memory, *cores, fleet)
        }
    }
}

/// Checks a slice against the working cards of the right model.
fn slice<'a>(
    working: impl Iterator<Item = &'a GpuCapacity> + Clone,
    memory: GpuMemoryMib,
    cores: CorePercent,
    fleet: Fleet,
) -> Result<(), Reason> {
    let shared = || working.clone().filter(|gpu| gpu.mode == GpuMode::Shared);
    if shared().next().is_none() {
        return Err(Reason::NoSharedCard { cards: count(working) });
    }
    let most_free = shared().map(|gpu| free_memory(gpu, fleet)).max().unwrap_or_default();
    if most_free < memory {
        return Err(Reason::NotEnoughGpuMemory {
            needed_mib: memory,
            most_free_mib: most_free,
            largest_mib: shared().map(GpuCapacity::usable).max().unwrap_or_default(),
        });
    }
    let roomy = || shared().filter(|gpu| free_memory(gpu, fleet) >= memory);
    let with_share = || roomy().filter(|gpu| free_shares(gpu, fleet) > 0);
    if with_share().next().is_none() {
        let max_shares = roomy().map(|gpu| gpu.max_shares).max().unwrap_or_default();
        return Err(Reason::NoShareLeft { max_shares });
    }
    let most_free = with_share().map(|gpu| free_cores(gpu, fleet)).max().unwrap_or_default();
    if most_free < cores {
        return Err(Reason::NotEnoughGpuCores {
            needed_percent: cores,
            most_free_percent: most_free,
        });
    }
    Ok(())
}

fn host(node: &NodeCapacity, request: &Request, fleet: Fleet) -> Result<(), Reason> {
    let (cpu, memory, disk) = host_free(node, fleet);
    if cpu < request.cpu {
        return Err(Reason::NotEnoughCpu {
            needed_millicores: request.cpu,
            free_millicores: cpu,
            total_millicores: node.cpu_total,
        });
    }
    if memory < request.memory {
        return Err(Reason::NotEnoughMemory {
            needed_mib: request.memory,
            free_mib: memory,
            total_mib: node.memory_total,
        });
    }
    if disk < request.disk {
        return Err(Reason::NotEnoughDisk {
            needed_gib: request.disk,
            free_gib: disk,
            total_gib: node.disk_total,
        });
    }
    Ok(())
}

/// Returns the free CPU, memory and disk of a node.
pub(crate) fn host_free(node: &NodeCapacity, fleet: Fleet) -> (Millicores, MemoryMib, DiskGib) {
    match fleet {
        Fleet::Ideal => (node.cpu_total, node.memory_total, node.disk_total),
        Fleet::Now => (
            node.cpu_total.minus(node.cpu_used),
            node.memory_total.minus(node.memory_used),
            node.disk_total.minus(node.disk_used),
        ),
    }
}

/// Returns whether a card counts for a request: the right model, and among the chosen ones.
fn is_candidate(gpu: &GpuCapacity, wanted: Option<&str>, cards: Cards<'_>) -> bool {
    wanted.is_none_or(|model| same_model(model, &gpu.model)) && cards.allow(gpu)
}

/// Returns whether a card takes work at all.
fn works(gpu: &GpuCapacity, fleet: Fleet) -> bool {
    gpu.mode != GpuMode::Disabled && (fleet == Fleet::Ideal || gpu.sick.is_none())
}

/// Returns whether a card can be given out as a whole.
fn is_free_whole(gpu: &GpuCapacity, fleet: Fleet) -> bool {
    works(gpu, fleet) && gpu.max_shares > 0 && (fleet == Fleet::Ideal || gpu.is_empty())
}

fn free_memory(gpu: &GpuCapacity, fleet: Fleet) -> GpuMemoryMib {
    if fleet == Fleet::Ideal { gpu.usable() } else { gpu.free_memory() }
}

fn free_cores(gpu: &GpuCapacity, fleet: Fleet) -> CorePercent {
    if fleet == Fleet::Ideal { WHOLE_CARD } else { gpu.free_cores() }
}

fn free_shares(gpu: &GpuCapacity, fleet: Fleet) -> u32 {
    if fleet == Fleet::Ideal { gpu.max_shares } else { gpu.free_shares() }
}

fn count<'a>(cards: impl Iterator<Item = &'a GpuCapacity>) -> u32 {
    u32::try_from(cards.count()).unwrap_or(u32::MAX)
}

fn model_mismatch(node: &NodeCapacity, wanted: &str) -> Reason {
    let mut found: Vec<String> = Vec::new();
    for gpu in &node.gpus {
        if !found.iter().any(|model| same_model(model, &gpu.model)) {
            found.push(gpu.model.clone());
        }
    }
    Reason::ModelMismatch { wanted: wanted.trim().into(), found }
}

fn no_healthy_card<'a>(cards: impl Iterator<Item = &'a GpuCapacity> + Clone) -> Reason {
    Reason::NoHealthyCard {
        sick: count(cards.clone().filter(|gpu| gpu.mode != GpuMode::Disabled)),
        disabled: count(cards.clone().filter(|gpu| gpu.mode == GpuMode::Disabled)),
        why: cards.filter(|gpu| gpu.mode != GpuMode::Disabled).find_map(|gpu| gpu.sick.clone()),
    }
}

/// Returns the positions of the cards that could be given out as a whole, in PCI order.
pub(crate) fn empty_cards(node: &NodeCapacity, model: Option<&str>) -> Vec<usize> {
    let usable =
        |gpu: &GpuCapacity| is_candidate(gpu, model, Cards::All) && is_free_whole(gpu, Fleet::Now);
    node.gpus.iter().enumerate().filter(|(_, gpu)| usable(gpu)).map(|(at, _)| at).collect()
}

/// Returns whether one card can take a slice.
pub(crate) fn takes_slice(
    gpu: &GpuCapacity,
    model: Option<&str>,
    memory: GpuMemoryMib,
    cores: CorePercent,
) -> bool {
    is_candidate(gpu, model, Cards::All) && has_slice_room(gpu, memory, cores)
}

/// Returns whether one card, whatever its model, can take a slice.
pub(crate) fn has_slice_room(gpu: &GpuCapacity, memory: GpuMemoryMib, cores: CorePercent) -> bool {
    works(gpu, Fleet::Now)
        && gpu.mode == GpuMode::Shared
        && gpu.free_shares() > 0
        && gpu.free_memory() >= memory
        && gpu.free_cores() >= cores
}

/// Returns whether a card could be given out as a whole.
pub(crate) fn is_whole_room(gpu: &GpuCapacity) -> bool {
    is_free_whole(gpu, Fleet::Now)
}
