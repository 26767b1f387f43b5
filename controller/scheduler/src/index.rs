//! Finds the best node without looking at all of them.
//!
//! Open nodes are grouped by their set of card models and, within a group, by fullness. Each such
//! bucket keeps the largest free amounts among its members, so a bucket in which nothing can fit is
//! skipped in one comparison. Buckets are walked in order of their score and the walk ends at the
//! first node that fits: the answer is the one that an exhaustive search gives.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use tianqi_common::id::NodeId;

use crate::feasible::{Cards, Fleet, Node, check};
use crate::model::{NodeCapacity, Policy, Request, same_model};
use crate::room::{Room, Tier};
use crate::score::{FULL, LOCALITY, PURPOSE, fill, fullness, pick};

/// Position of a node in the snapshot.
pub(crate) type Slot = usize;

/// Nodes of one fullness.
#[derive(Clone, Debug, Default)]
struct Bucket {
    members: BTreeSet<(NodeId, Slot)>,
    /// At least as large as the room of every member; a member that leaves does not shrink it.
    room: Room,
    /// Members that left since `room` was last exact.
    left: usize,
}

/// Open nodes with the same set of card models.
#[derive(Clone, Debug, Default)]
struct Class {
    buckets: BTreeMap<u32, Bucket>,
}

/// Where a node stands in the index.
#[derive(Clone, Copy, Debug)]
struct Entry {
    room: Room,
    fullness: u32,
    class: usize,
    id: NodeId,
}

/// The index over a snapshot's open nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    classes: Vec<Class>,
    /// Small sorted model names, each once, to the class's position.
    class_of: BTreeMap<Vec<String>, usize>,
    entries: Vec<Option<Entry>>,
    images: BTreeMap<String, BTreeSet<(NodeId, Slot)>>,
}

/// A node with its place in the order: the higher score first, then the lower id.
#[derive(Clone, Copy, Debug)]
struct Ranked {
    score: u32,
    id: NodeId,
    slot: Slot,
}

impl Ranked {
    fn key(self) -> (u32, Reverse<NodeId>) {
        (self.score, Reverse(self.id))
    }
}

impl Index {
    /// Takes a node in, or leaves it out when it is closed.
    pub(crate) fn add(&mut self, slot: Slot, node: &Node) {
        if !node.is_open() {
            return;
        }
        let class = self.class(&node.capacity);
        let id = node.capacity.id;
        for image in &node.capacity.images {
            self.images.entry(image.clone()).or_default().insert((id, slot));
        }
        let (room, fullness) = (Room::of(&node.capacity), fullness(&node.capacity));
        self.enter(slot, Entry { room, fullness, class, id });
    }

    /// Takes a node out.
    pub(crate) fn remove(&mut self, slot: Slot, node: &Node) {
        let Some(entry) = self.leave(slot) else { return };
        for image in &node.capacity.images {
            if let Some(nodes) = self.images.get_mut(image) {
                nodes.remove(&(entry.id, slot));
                if nodes.is_empty() {
                    self.images.remove(image);
                }
            }
        }
    }

    /// Follows a change of what is taken on a node.
    pub(crate) fn refresh(&mut self, slot: Slot, node: &NodeCapacity) {
        let Some(entry) = self.leave(slot) else { return };
        self.enter(slot, Entry { room: Room::of(node), fullness: fullness(node), ..entry });
    }

    fn enter(&mut self, slot: Slot, entry: Entry) {
        if self.entries.len() <= slot {
            self.entries.resize(slot + 1, None);
        }
        if let Some(place) = self.entries.get_mut(slot) {
            *place = Some(entry);
        }
        if let Some(class) = self.classes.get_mut(entry.class) {
            let bucket = class.buckets.entry(entry.fullness).or_default();
            bucket.members.insert((entry.id, slot));
            bucket.room.widen(entry.room);
        }
    }

    fn leave(&mut self, slot: Slot) -> Option<Entry> {
        let entry = self.entries.get_mut(slot)?.take()?;
        let buckets = &mut self.classes.get_mut(entry.class)?.buckets;
        let bucket = buckets.get_mut(&entry.fullness)?;
        bucket.members.remove(&(entry.id, slot));
        bucket.left += 1;
        if bucket.members.is_empty() {
            buckets.remove(&entry.fullness);
        } else if bucket.left > bucket.members.len() / 4 {
            // Exact again after a share of the members left: the cost per leaving stays constant.
            bucket.left = 0;
            bucket.room = Room::default();
            for (_, member) in &bucket.members {
                if let Some(Some(other)) = self.entries.get(*member) {
                    bucket.room.widen(other.room);
                }
            }
        }
        Some(entry)
    }

    fn class(&mut self, node: &NodeCapacity) -> usize {
        let models: BTreeSet<String> =
            node.gpus.iter().map(|gpu| gpu.model.trim().to_ascii_lowercase()).collect();
        let next = self.classes.len();
        let class = *self.class_of.entry(models.into_iter().collect()).or_insert(next);
        if class == next {
            self.classes.push(Class::default());
        }
        class
    }

    /// Returns the node that ranks first among those where `request` fits.
    pub(crate) fn best(&self, nodes: &[Option<Node>], request: &Request) -> Option<Slot> {
        let best = |tier| self.best_in_tier(nodes, request, tier);
        Tier::of(request).iter().find_map(|tier| best(*tier)).map(|ranked| ranked.slot)
    }

    fn best_in_tier(
        &self,
        nodes: &[Option<Node>],
        request: &Request,
        tier: Tier,
    ) -> Option<Ranked> {
        let search = Search { index: self, nodes, request, tier };
        let mut best: Option<Ranked> = None;
        for class in self.classes_for(request, tier) {
            let found = search.first_fit(class, best);
            best = best.max_by_rank(found);
        }
        // A node that holds the image may beat fuller ones that do not.
        let first = best?;
        let holders = request.image.as_ref().and_then(|image| self.images.get(image));
        let Some(holders) = holders.filter(|set| !set.contains(&(first.id, first.slot))) else {
            return best;
        };
        best.max_by_rank(search.best_holder(holders, first))
    }

    fn classes_for<'a>(
        &'a self,
        request: &'a Request,
        tier: Tier,
    ) -> impl Iterator<Item = &'a Class> {
        let model = request.gpu.model();
        self.class_of
            .iter()
            .filter(move |(models, _)| {
                (tier == Tier::CpuNodes) == models.is_empty()
                    && model.is_none_or(|model| models.iter().any(|has| same_model(has, model)))
            })
            .filter_map(|(_, class)| self.classes.get(*class))
    }
}

trait Better {
    fn max_by_rank(self, other: Self) -> Self;
}

impl Better for Option<Ranked> {
    fn max_by_rank(self, other: Self) -> Self {
        [self, other].into_iter().flatten().max_by_key(|ranked| ranked.key())
    }
}

struct Search<'a> {
    index: &'a Index,
    nodes: &'a [Option<Node>],
    request: &'a Request,
    tier: Tier,
}

impl Search<'_> {
    /// Returns the first node of a class, by fill and then id, unless it ranks below `so_far`.
    fn first_fit(&self, class: &Class, so_far: Option<Ranked>) -> Option<Ranked> {
        let packs = self.request.policy == Policy::BinPack;
        let mut upward = class.buckets.iter();
        let next = || if packs { upward.next_back() } else { upward.next() };
        for (fullness, bucket) in std::iter::from_fn(next) {
            let score = fill(self.request.policy, *fullness);
            if so_far.is_some_and(|best| score < best.score) {
                return None;
            }
            if !bucket.room.may_hold(self.request, self.tier) {
                continue;
            }
            for (id, slot) in &bucket.members {
                if self.fits(*slot) {
                    return Some(Ranked { score, id: *id, slot: *slot });
                }
            }
        }
        None
    }

    /// Returns the best node among those that hold the image and rank above `first`, which does
    /// not hold it. Both are compared by fill and locality, as their tier is the same.
    fn best_holder(&self, holders: &BTreeSet<(NodeId, Slot)>, first: Ranked) -> Option<Ranked> {
        let mut best = Some(first);
        for (id, slot) in holders {
            let Some(Some(entry)) = self.index.entries.get(*slot) else { continue };
            let score = fill(self.request.policy, entry.fullness) + LOCALITY;
            let ranked = Ranked { score, id: *id, slot: *slot };
            if best.is_some_and(|best| ranked.key() < best.key()) {
                continue;
            }
            if self.is_in_tier(*slot) && self.fits(*slot) {
                best = Some(ranked);
            }
        }
        best
    }

    fn is_in_tier(&self, slot: Slot) -> bool {
        let node = self.nodes.get(slot).and_then(Option::as_ref);
        node.is_some_and(|node| (self.tier == Tier::CpuNodes) == node.capacity.gpus.is_empty())
    }

    fn fits(&self, slot: Slot) -> bool {
        let Some(Some(entry)) = self.index.entries.get(slot) else { return false };
        if !entry.room.may_hold(self.request, self.tier) {
            return false;
        }
        let Some(Some(node)) = self.nodes.get(slot) else { return false };
        check(node, self.request, Fleet::Now, Cards::All).is_ok()
            && (self.tier != Tier::OpenCard || pick(node, self.request).joins)
    }
}

// Fill and locality together must never outweigh a tier.
const _: () = assert!(FULL + LOCALITY < PURPOSE);
