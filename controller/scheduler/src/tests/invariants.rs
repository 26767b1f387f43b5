//! What must be true of every placement on every fleet.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{fleet, node, node_id, request};
use crate::{GpuRequest, NodeCapacity, Placement, Request, Snapshot, check, explain, place};

/// One thing that happens to a fleet.
#[derive(Clone, Debug)]
enum Step {
    Place(Request),
    Release(prop::sample::Index),
    Replace(Box<NodeCapacity>),
    Remove(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => request().prop_map(Step::Place),
        3 => any::<prop::sample::Index>().prop_map(Step::Release),
        1 => (0_u64..9).prop_flat_map(node).prop_map(|node| Step::Replace(Box::new(node))),
        1 => (0_u64..9).prop_map(Step::Remove),
    ]
}

/// Walks `steps` and calls `look` after each; nodes that were replaced forget their instances.
fn walk(
    nodes: Vec<NodeCapacity>,
    steps: Vec<Step>,
    mut look: impl FnMut(&Snapshot) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    let mut snapshot = Snapshot::new(nodes);
    let mut placed: Vec<(Placement, Request)> = Vec::new();
    for step in steps {
        match step {
            Step::Place(request) => {
                if let Ok(placement) = place(&snapshot, &request) {
                    prop_assert_eq!(snapshot.apply(&placement, &request), Ok(()));
                    placed.push((placement, request));
                }
            }
            Step::Release(index) if !placed.is_empty() => {
                let (placement, request) = placed.swap_remove(index.index(placed.len()));
                snapshot.release(&placement, &request);
            }
            Step::Release(_) => {}
            Step::Replace(node) => {
                placed.retain(|(placement, _)| placement.node != node.id);
                snapshot.upsert(*node);
            }
            Step::Remove(number) => {
                placed.retain(|(placement, _)| placement.node != node_id(number));
                snapshot.remove(node_id(number));
            }
        }
        look(&snapshot)?;
    }
    Ok(())
}

fn within_capacity(node: &NodeCapacity) -> Result<(), TestCaseError> {
    prop_assert!(node.cpu_used <= node.cpu_total);
    prop_assert!(node.memory_used <= node.memory_total);
    prop_assert!(node.disk_used <= node.disk_total);
    for gpu in &node.gpus {
        prop_assert!(gpu.memory_used <= gpu.usable());
        prop_assert!(gpu.cores_used.0 <= 100);
        prop_assert!(gpu.shares <= gpu.max_shares);
        prop_assert!(!gpu.exclusive || gpu.shares == 1);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_node_and_no_card_is_ever_overcommitted(nodes in fleet(), steps in vec(step(), 0..40)) {
        walk(nodes, steps, |snapshot| snapshot.nodes().try_for_each(within_capacity))?;
    }

    #[test]
    fn the_index_answers_as_an_exhaustive_search_does(
        nodes in fleet(),
        steps in vec(step(), 0..25),
        requests in vec(request(), 1..6),
    ) {
        walk(nodes, steps, |snapshot| {
            for request in &requests {
                let placed = place(snapshot, request);
                let searched = explain(snapshot, request);
                let found = placed.as_ref().ok().map(|p| (p.node, p.score, p.gpus.clone()));
                let best = searched.candidates.first().map(|c| (c.node, c.score, c.gpus.clone()));
                prop_assert_eq!(found, best);
            }
            Ok(())
        })?;
    }

    #[test]
    fn a_placement_has_the_shape_asked_for_on_an_open_node(
        nodes in fleet(),
        request in request(),
    ) {
        let snapshot = Snapshot::new(nodes);
        let Ok(placement) = place(&snapshot, &request) else { return Ok(()) };

        let node = snapshot.node(placement.node).unwrap();
        prop_assert!(node.gate.is_open());
        prop_assert!(request.node.is_none_or(|named| named == node.id));
        let distinct: BTreeSet<_> = placement.gpus.iter().collect();
        prop_assert_eq!(distinct.len(), placement.gpus.len());
        let cards: Vec<_> =
            node.gpus.iter().filter(|gpu| placement.gpus.contains(&gpu.uuid)).collect();
        prop_assert_eq!(cards.len(), placement.gpus.len());
        for card in &cards {
            prop_assert!(card.sick.is_none());
            let model = request.gpu.model().map(|model| model.trim().to_ascii_lowercase());
            prop_assert!(model.is_none_or(|model| model == card.model.to_ascii_lowercase()));
        }
        match &request.gpu {
            GpuRequest::None => prop_assert!(cards.is_empty() && placement.slice.is_none()),
            GpuRequest::Whole { count, .. } => {
                prop_assert_eq!(cards.len(), *count as usize);
                prop_assert!(cards.iter().all(|card| card.is_empty()));
                prop_assert!(placement.slice.is_none());
            }
            GpuRequest::Slice { cores, .. } => {
                prop_assert_eq!(cards.len(), 1);
                prop_assert!(placement.slice.is_some() && node.slicing_unusable.is_none());
                prop_assert!(!cards[0].exclusive);
                prop_assert!(cores.0 < 100 || cards[0].cores_used.0 == 0);
            }
        }
    }

    #[test]
    fn release_restores_what_was_before(nodes in fleet(), requests in vec(request(), 1..10)) {
        let mut snapshot = Snapshot::new(nodes);
        let before: Vec<NodeCapacity> = snapshot.nodes().cloned().collect();
        let mut placed = Vec::new();
        for request in requests {
            if let Ok(placement) = place(&snapshot, &request) {
                snapshot.apply(&placement, &request).unwrap();
                placed.push((placement, request));
            }
        }

        for (placement, request) in &placed {
            snapshot.release(placement, request);
        }

        prop_assert_eq!(snapshot.nodes().cloned().collect::<Vec<_>>(), before);
    }

    #[test]
    fn the_order_in_which_nodes_came_does_not_matter(nodes in fleet(), request in request()) {
        let forward = Snapshot::new(nodes.clone());
        let backward = Snapshot::new(nodes.into_iter().rev());

        prop_assert_eq!(place(&forward, &request), place(&backward, &request));
        prop_assert_eq!(explain(&forward, &request), explain(&backward, &request));
    }

    #[test]
    fn check_accepts_what_place_chose_and_nothing_stale(nodes in fleet(), request in request()) {
        let mut snapshot = Snapshot::new(nodes);
        let Ok(placement) = place(&snapshot, &request) else { return Ok(()) };
        let fresh = Snapshot::new(snapshot.node(placement.node).cloned());
        prop_assert_eq!(check(&fresh, &placement, &request), Ok(()));

        // Granted again and again it must come to an end before anything is overcommitted.
        for _ in 0..40 {
            if snapshot.apply(&placement, &request).is_err() {
                break;
            }
        }
        within_capacity(snapshot.node(placement.node).unwrap())?;
        if !placement.gpus.is_empty() {
            prop_assert!(check(&snapshot, &placement, &request).is_err());
        }
        snapshot.remove(placement.node);
        prop_assert_eq!(check(&snapshot, &placement, &request), Err(crate::Reason::NodeGone));
    }

    #[test]
    fn any_numbers_give_an_answer(
        nodes in fleet(),
        numbers in vec(prop::sample::select(vec![0, 1, u64::MAX - 1, u64::MAX]), 40),
        requests in vec(request(), 1..5),
    ) {
        let mut numbers = numbers.into_iter().cycle();
        let mut next = || numbers.next().unwrap_or_default();
        let wild = nodes.into_iter().map(|mut node| {
            (node.cpu_total.0, node.cpu_used.0) = (next(), next());
            (node.memory_used.0, node.disk_used.0) = (next(), next());
            for gpu in &mut node.gpus {
                (gpu.memory_total.0, gpu.memory_used.0) = (next(), next());
                (gpu.memory_reserved.0, gpu.headroom.0) = (next(), next());
                gpu.shares = u32::try_from(next()).unwrap_or(u32::MAX);
                gpu.cores_used.0 = u32::try_from(next()).unwrap_or(u32::MAX);
            }
            node
        });
        let mut snapshot = Snapshot::new(wild);
        for request in requests {
            let searched = explain(&snapshot, &request);
            let placed = place(&snapshot, &request);
            prop_assert_eq!(placed.is_ok(), !searched.candidates.is_empty());
            if let Ok(placement) = placed {
                prop_assert_eq!(snapshot.apply(&placement, &request), Ok(()));
                within_capacity_where_placed(&snapshot, &placement)?;
                snapshot.release(&placement, &request);
            }
        }
    }
}

/// A node may come overcommitted; nothing is placed on what is.
fn within_capacity_where_placed(
    snapshot: &Snapshot,
    placement: &Placement,
) -> Result<(), TestCaseError> {
    let node = snapshot.node(placement.node).unwrap();
    for gpu in node.gpus.iter().filter(|gpu| placement.gpus.contains(&gpu.uuid)) {
        prop_assert!(gpu.memory_used <= gpu.usable() && gpu.cores_used.0 <= 100);
        prop_assert!(gpu.shares <= gpu.max_shares);
    }
    Ok(())
}
