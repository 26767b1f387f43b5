//! How near the cards of a node are to each other, and which of them go together.

use tianqi_common::wire::inventory::{GpuLink, LinkKind};

use crate::model::GpuCapacity;

/// Cards of one node up to which distances count. Beyond it cards are taken in PCI order.
const MAX_CARDS: usize = 64;
/// Combinations of cards up to which every one is compared; beyond it groups are grown greedily.
const MAX_COMBINATIONS: u64 = 2_000;
/// What one NVLink is worth; more than any PCIe path.
const NVLINK: u64 = 100;
/// NVLinks of a pair that count.
const MAX_NVLINKS: u32 = 64;

/// A score per pair of cards; higher is nearer.
///
/// # Source
///
/// The values are HAMi's: 10 across CPUs to 60 on one board, and 100 per NVLink.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pairs {
    cards: usize,
    scores: Vec<u64>,
}

impl Pairs {
    pub(crate) fn new(gpus: &[GpuCapacity], links: &[GpuLink]) -> Self {
        let cards = gpus.len();
        if !(2..=MAX_CARDS).contains(&cards) {
            return Self::default();
        }
        let mut pairs = Self { cards, scores: vec![0; cards * cards] };
        for (a, card) in gpus.iter().enumerate() {
            for (b, other) in gpus.iter().enumerate() {
                pairs.set(a, b, numa_score(card.numa, other.numa));
            }
        }
        let position = |uuid| gpus.iter().position(|gpu| &gpu.uuid == uuid);
        for link in links {
            if let (Some(a), Some(b)) = (position(&link.a), position(&link.b)) {
                pairs.set(a, b, link_score(link));
                pairs.set(b, a, link_score(link));
            }
        }
        pairs
    }

    fn set(&mut self, a: usize, b: usize, score: u64) {
        if let Some(cell) = self.scores.get_mut(a * self.cards + b) {
            *cell = if a == b { 0 } else { score };
        }
    }

    fn between(&self, a: usize, b: usize) -> u64 {
        self.scores.get(a * self.cards + b).copied().unwrap_or(0)
    }

    /// Returns how near `card` is to `others` in all.
    pub(crate) fn connection(&self, card: usize, others: &[usize]) -> u64 {
        others.iter().map(|other| self.between(card, *other)).sum()
    }
}

fn numa_score(a: Option<u32>, b: Option<u32>) -> u64 {
    match (a, b) {
        (Some(a), Some(b)) if a == b => 20,
        (Some(_), Some(_)) => 10,
        (None, _) | (_, None) => 0,
    }
}

fn link_score(link: &GpuLink) -> u64 {
    let path = match link.kind {
        LinkKind::SameBoard => 60,
        LinkKind::SingleSwitch => 50,
        LinkKind::MultipleSwitches => 40,
        LinkKind::HostBridge => 30,
        LinkKind::SameNuma => 20,
        LinkKind::CrossCpu => 10,
    };
    path + NVLINK * u64::from(link.nvlinks.min(MAX_NVLINKS))
}

/// Chooses `count` of the cards at the positions `empty`, which are in PCI order.
///
/// One card: the worst connected, so that the well connected stay together. Several: the group
/// whose pairs are nearest in sum. Ties go to the lower PCI position.
pub(crate) fn choose(pairs: &Pairs, empty: &[usize], count: usize) -> Vec<usize> {
    if count >= empty.len() || pairs.scores.is_empty() {
        return empty.iter().copied().take(count).collect();
    }
    if count == 1 {
        return worst_connected(pairs, empty).into_iter().collect();
    }
    if combinations(empty.len(), count) <= MAX_COMBINATIONS {
        best_group(pairs, empty, count)
    } else {
        grown_group(pairs, empty, count)
    }
}

/// Returns the card of `cards` that is farthest from the others.
pub(crate) fn worst_connected(pairs: &Pairs, cards: &[usize]) -> Option<usize> {
    cards.iter().copied().min_by_key(|card| (pairs.connection(*card, cards), *card))
}

fn combinations(of: usize, take: usize) -> u64 {
    let take = take.min(of - take);
    let mut count: u64 = 1;
    for step in 0..take {
        count = count.saturating_mul((of - step) as u64) / (step as u64 + 1);
        if count > MAX_COMBINATIONS {
            break;
        }
    }
    count
}

fn best_group(pairs: &Pairs, empty: &[usize], count: usize) -> Vec<usize> {
    let mut best: Option<(u64, Vec<usize>)> = None;
    extend(pairs, empty, count, &mut Vec::with_capacity(count), 0, &mut best);
    best.map(|(_, group)| group).unwrap_or_default()
}

fn extend(
    pairs: &Pairs,
    rest: &[usize],
    count: usize,
    group: &mut Vec<usize>,
    sum: u64,
    best: &mut Option<(u64, Vec<usize>)>,
) {
    if group.len() == count {
        if best.as_ref().is_none_or(|(most, _)| sum > *most) {
            *best = Some((sum, group.clone()));
        }
        return;
    }
    let mut rest = rest;
    while let Some((card, after)) = rest.split_first() {
        if rest.len() + group.len() < count {
            return;
        }
        let nearer = pairs.connection(*card, group);
        group.push(*card);
        extend(pairs, after, count, group, sum + nearer, best);
        group.pop();
        rest = after;
    }
}

/// Grows a group from every card by the card nearest to it, and returns the best of them.
fn grown_group(pairs: &Pairs, empty: &[usize], count: usize) -> Vec<usize> {
    let mut best: Option<(u64, Vec<usize>)> = None;
    for seed in empty {
        let mut group = vec![*seed];
        let mut sum = 0;
        while group.len() < count {
            let outside = empty.iter().copied().filter(|card| !group.contains(card));
            let nearest = outside
                .map(|card| (pairs.connection(card, &group), card))
                .max_by_key(|(nearness, card)| (*nearness, std::cmp::Reverse(*card)));
            let Some((nearness, card)) = nearest else { break };
            sum += nearness;
            group.push(card);
        }
        if best.as_ref().is_none_or(|(most, _)| sum > *most) {
            best = Some((sum, group));
        }
    }
    let mut group = best.map(|(_, group)| group).unwrap_or_default();
    group.sort_unstable();
    group
}
