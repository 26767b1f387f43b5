//! How well a request fits on a node where it fits at all: one function per term.
//!
//! score = purpose + locality + fill. `purpose` outweighs the other two together, so nodes are
//! compared by purpose first. Equal scores go to the lower node id.

use crate::feasible::{Node, empty_cards, takes_slice};
use crate::model::{GpuCapacity, GpuMode, GpuRequest, NodeCapacity, Policy, Request, WHOLE_CARD};
use crate::topology::{choose, worst_connected};

/// A full node, in the unit of [`fullness`].
pub(crate) const FULL: u32 = 1_000;
/// What holding the image already is worth: a tenth of a full node.
pub(crate) const LOCALITY: u32 = 100;
/// What serving the right purpose is worth: more than any fill and locality.
pub(crate) const PURPOSE: u32 = 10_000;

/// The cards chosen on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pick {
    /// Positions in PCI order.
    pub(crate) cards: Vec<usize>,
    /// Whether a slice joins a card that holds slices already.
    pub(crate) joins: bool,
}

/// Chooses the cards for a request that fits on `node`.
pub(crate) fn pick(node: &Node, request: &Request) -> Pick {
    let capacity = &node.capacity;
    match &request.gpu {
        GpuRequest::None => Pick::default(),
        GpuRequest::Whole { count, model } => {
            let empty = empty_cards(capacity, model.as_deref());
            let count = usize::try_from(*count).unwrap_or(usize::MAX);
            Pick { cards: choose(&node.pairs, &empty, count), joins: false }
        }
        GpuRequest::Slice { memory, cores, model } => {
            let model = model.as_deref();
            let fits = |gpu: &&GpuCapacity| takes_slice(gpu, model, *memory, *cores);
            let tightness = |gpu: &GpuCapacity| (gpu.free_memory(), gpu.free_cores());
            let tightest = capacity
                .gpus
                .iter()
                .enumerate()
                .filter(|(_, gpu)| !gpu.is_empty() && fits(gpu))
                .min_by_key(|(at, gpu)| (tightness(gpu), *at));
            if let Some((at, _)) = tightest {
                return Pick { cards: vec![at], joins: true };
            }
            let empty = || capacity.gpus.iter().enumerate().filter(|(_, gpu)| fits(gpu));
            let smallest = empty().map(|(_, gpu)| gpu.free_memory()).min();
            let alike: Vec<usize> = empty()
                .filter(|(_, gpu)| Some(gpu.free_memory()) == smallest)
                .map(|(at, _)| at)
                .collect();
            Pick { cards: worst_connected(&node.pairs, &alike).into_iter().collect(), joins: false }
        }
    }
}

/// Returns the score of `request` on `node` with the cards `pick`; higher is better.
pub(crate) fn score(node: &Node, request: &Request, pick: &Pick) -> u32 {
    purpose(&node.capacity, request, pick.joins)
        + locality(&node.capacity, request)
        + fill(request.policy, fullness(&node.capacity))
}

/// Rewards a node that suits the kind of request.
///
/// Work without cards goes to nodes without cards, whatever the policy: CPU and memory beside a
/// card are what makes the card usable. When filling up, a slice joins a card that is cut already,
/// so that cards stay empty for whole-card work.
fn purpose(node: &NodeCapacity, request: &Request, joins: bool) -> u32 {
    match (&request.gpu, request.policy) {
        (GpuRequest::None, _) => PURPOSE * u32::from(node.gpus.is_empty()),
        (GpuRequest::Slice { .. }, Policy::BinPack) => PURPOSE * u32::from(joins),
        (GpuRequest::Slice { .. }, Policy::Spread) | (GpuRequest::Whole { .. }, _) => 0,
    }
}

/// Rewards a node that holds the image already.
fn locality(node: &NodeCapacity, request: &Request) -> u32 {
    LOCALITY * u32::from(request.image.as_ref().is_some_and(|image| node.images.contains(image)))
}

/// Rewards full nodes or empty ones, as the policy says.
pub(crate) fn fill(policy: Policy, fullness: u32) -> u32 {
    match policy {
        Policy::BinPack => fullness.min(FULL),
        Policy::Spread => FULL.saturating_sub(fullness),
    }
}

/// Returns how full a node is, in thousandths: three parts its cards, one part the rest.
pub(crate) fn fullness(node: &NodeCapacity) -> u32 {
    let host = mean(&[
        per_mille(node.cpu_used.0, node.cpu_total.0),
        per_mille(node.memory_used.0, node.memory_total.0),
        per_mille(node.disk_used.0, node.disk_total.0),
    ]);
    let cards = || node.gpus.iter().filter(|gpu| gpu.mode != GpuMode::Disabled);
    let Ok(count) = u32::try_from(cards().count()) else { return FULL };
    if count == 0 {
        return host;
    }
    let gpu = cards().map(card_fullness).fold(0, u32::saturating_add) / count;
    (3 * gpu.min(FULL) + host) / 4
}

/// Returns how full a card is, in thousandths: memory, cores and shares weigh the same.
///
/// # Source
///
/// HAMi's default card score.
fn card_fullness(gpu: &GpuCapacity) -> u32 {
    if gpu.exclusive {
        return FULL;
    }
    mean(&[
        per_mille(gpu.memory_used.0, gpu.usable().0),
        per_mille(gpu.cores_used.0.into(), WHOLE_CARD.0.into()),
        per_mille(gpu.shares.into(), gpu.max_shares.into()),
    ])
}

fn mean(parts: &[u32; 3]) -> u32 {
    parts.iter().sum::<u32>() / 3
}

/// Returns `used` of `total` in thousandths, at most [`FULL`]; nothing of nothing is empty.
fn per_mille(used: u64, total: u64) -> u32 {
    if used == 0 {
        return 0;
    }
    if used >= total {
        return FULL;
    }
    let ratio = match used.checked_mul(FULL.into()) {
        Some(scaled) => scaled / total,
        None => used / (total / u64::from(FULL)),
    };
    u32::try_from(ratio).unwrap_or(FULL).min(FULL)
}
