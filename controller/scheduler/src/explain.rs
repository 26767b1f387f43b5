//! Why a request goes where it goes, and why not elsewhere.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};
use tianqi_common::id::NodeId;
use tianqi_common::unit::{CorePercent, GpuMemoryMib};
use tianqi_common::wire::desired::GpuUuid;

use crate::feasible::{Cards, Fleet, Node, check};
use crate::model::Request;
use crate::score::{pick, score};
use crate::snapshot::Snapshot;
use crate::unplaced::{Refusal, unplaced};

/// One card of a candidate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardView {
    /// The card.
    pub gpu: GpuUuid,
    /// Memory that a slice could take.
    pub free_memory_mib: GpuMemoryMib,
    /// Cores that a slice could take.
    pub free_core_percent: CorePercent,
    /// Further slices that the card may hold.
    pub free_shares: u32,
    /// Whether the request would get this card.
    pub picked: bool,
}

/// A node on which the request fits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// How well it fits; higher is better.
    pub score: u32,
    /// The cards that the request would get, in PCI order.
    pub gpus: Vec<GpuUuid>,
    /// Every card of the node, in PCI order.
    pub cards: Vec<CardView>,
}

/// Every node, with its score or the reason why it is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Nodes on which the request fits, best first; the first is where it goes.
    pub candidates: Vec<Candidate>,
    /// All other nodes, in id order, each with one reason.
    pub refusals: Vec<Refusal>,
    /// Whether no listed node could ever hold the request.
    pub impossible: bool,
    /// One sentence for people.
    pub summary: String,
}

/// Looks at every node for `request`.
#[must_use]
pub fn explain(snapshot: &Snapshot, request: &Request) -> Explanation {
    let mut candidates = Vec::new();
    let mut refusals = Vec::new();
    for node in snapshot.entries() {
        match check(node, request, Fleet::Now, Cards::All) {
            Ok(()) => candidates.push(candidate(node, request)),
            Err(reason) => {
                let (node, name) = (node.capacity.id, node.capacity.name.clone());
                refusals.push(Refusal { node, name, reason });
            }
        }
    }
    candidates.sort_by_key(|candidate| (Reverse(candidate.score), candidate.node));
    let (impossible, summary) = match candidates.first() {
        Some(best) => (false, fits(best, candidates.len(), refusals.len())),
        None => {
            let why = unplaced(snapshot, request);
            (why.is_impossible(), why.to_string())
        }
    };
    Explanation { candidates, refusals, impossible, summary }
}

fn fits(best: &Candidate, candidates: usize, refusals: usize) -> String {
    let nodes = candidates.saturating_add(refusals);
    format!("fits on {candidates} of {nodes} nodes, best on {}", best.name)
}

fn candidate(node: &Node, request: &Request) -> Candidate {
    let pick = pick(node, request);
    let gpus = &node.capacity.gpus;
    Candidate {
        node: node.capacity.id,
        name: node.capacity.name.clone(),
        score: score(node, request, &pick),
        gpus: pick
            .cards
            .iter()
            .filter_map(|at| gpus.get(*at))
            .map(|gpu| gpu.uuid.clone())
            .collect(),
        cards: gpus
            .iter()
            .enumerate()
            .map(|(at, gpu)| CardView {
                gpu: gpu.uuid.clone(),
                free_memory_mib: gpu.free_memory(),
                free_core_percent: gpu.free_cores(),
                free_shares: gpu.free_shares(),
                picked: pick.cards.contains(&at),
            })
            .collect(),
    }
}
