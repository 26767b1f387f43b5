//! The queue of pending instances.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::NodeId;

use super::{fleet, gpu_node, instance_id, node_id, request, slice_request, whole_request};
use crate::{
    Decision, NodeCapacity, Outcome, Pending, Placement, QueuePolicy, Request, Snapshot, place,
    plan_queue,
};

const NOW: UnixMillis = UnixMillis(1_000_000);
const POLICY: QueuePolicy = QueuePolicy { hold_after: Duration::from_secs(60), max_holds: 1 };

fn pending(number: u64, priority: i32, waited_seconds: i64, request: Request) -> Pending {
    let created_at = UnixMillis(NOW.0 - waited_seconds * 1_000);
    Pending { instance: instance_id(number), priority, created_at, request }
}

fn queue() -> impl Strategy<Value = Vec<Pending>> {
    vec((-1_i32..2, 0_i64..120, request()), 0..12).prop_map(|entries| {
        let numbered = (0_u64..).zip(entries);
        numbered
            .map(|(n, (priority, waited, request))| pending(n, priority, waited, request))
            .collect()
    })
}

fn placed(decision: &Decision) -> Option<&Placement> {
    match &decision.outcome {
        Outcome::Placed { placement } => Some(placement),
        Outcome::Waiting { .. } => None,
    }
}

fn held(decision: &Decision) -> Option<NodeId> {
    match &decision.outcome {
        Outcome::Placed { .. } => None,
        Outcome::Waiting { held_node, .. } => *held_node,
    }
}

fn find(queue: &[Pending], decision: &Decision) -> Pending {
    queue.iter().find(|entry| entry.instance == decision.instance).unwrap().clone()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_entry_is_decided_once_by_priority_then_age_then_id(nodes in fleet(), queue in queue()) {
        let decisions = plan_queue(&mut Snapshot::new(nodes), &queue, NOW, &POLICY);

        prop_assert_eq!(decisions.len(), queue.len());
        let order: Vec<Pending> = decisions.iter().map(|decision| find(&queue, decision)).collect();
        for pair in order.windows(2) {
            let key = |p: &Pending| (-i64::from(p.priority), p.created_at, p.instance);
            prop_assert!(key(&pair[0]) < key(&pair[1]));
        }
        let positions: Vec<u32> = decisions.iter().filter_map(|decision| match decision.outcome {
            Outcome::Placed { .. } => None,
            Outcome::Waiting { position, .. } => Some(position),
        }).collect();
        prop_assert_eq!(positions, (1..).take(decisions.iter().filter(|d| placed(d).is_none()).count()).collect::<Vec<u32>>());
    }

    #[test]
    fn the_plan_is_booked_and_nothing_else(nodes in fleet(), queue in queue()) {
        let mut planned = Snapshot::new(nodes.clone());
        let decisions = plan_queue(&mut planned, &queue, NOW, &POLICY);

        let mut replayed = Snapshot::new(nodes);
        for decision in &decisions {
            if let Some(placement) = placed(decision) {
                let entry = find(&queue, decision);
                prop_assert_eq!(replayed.apply(placement, &entry.request), Ok(()));
            }
        }
        let all = |snapshot: &Snapshot| snapshot.nodes().cloned().collect::<Vec<NodeCapacity>>();
        prop_assert_eq!(all(&planned), all(&replayed));
        // No hold stays behind either.
        for entry in &queue {
            prop_assert_eq!(place(&planned, &entry.request), place(&replayed, &entry.request));
        }
    }

    #[test]
    fn an_entry_waits_only_when_nothing_was_left_for_it(nodes in fleet(), queue in queue()) {
        let mut planned = Snapshot::new(nodes);
        let without_holds = QueuePolicy { max_holds: 0, ..POLICY };
        let decisions = plan_queue(&mut planned, &queue, NOW, &without_holds);

        for decision in decisions.iter().filter(|decision| placed(decision).is_none()) {
            prop_assert!(place(&planned, &find(&queue, decision).request).is_err());
        }
    }

    #[test]
    fn a_held_node_takes_nobody_who_stands_behind(nodes in fleet(), queue in queue()) {
        let decisions = plan_queue(&mut Snapshot::new(nodes), &queue, NOW, &POLICY);

        let holds: Vec<(usize, NodeId)> =
            decisions.iter().enumerate().filter_map(|(at, d)| Some((at, held(d)?))).collect();
        prop_assert!(holds.len() <= POLICY.max_holds);
        for (at, node) in holds {
            let behind = decisions[at..].iter().filter_map(placed);
            prop_assert!(behind.into_iter().all(|placement| placement.node != node));
            let entry = find(&queue, &decisions[at]);
            prop_assert!(NOW.since(entry.created_at) >= POLICY.hold_after);
        }
    }

    /// Small work arrives for ever and every piece ends after `life` rounds: without a hold the
    /// whole-node request at the head would never start.
    #[test]
    fn a_large_request_starts_although_small_ones_keep_coming(
        nodes in 1_u64..4,
        life in 1_usize..6,
        arrivals in 1_u64..20,
    ) {
        let mut snapshot = Snapshot::new((0..nodes).map(|number| gpu_node(number, 2)));
        let large = pending(0, 0, 0, whole_request(2));
        let small = slice_request(2_000, 20);
        let mut running: Vec<(usize, Placement)> = Vec::new();
        for number in 0..nodes * 10 {
            let Ok(placement) = place(&snapshot, &small) else { break };
            snapshot.apply(&placement, &small).unwrap();
            running.push((1 + usize::try_from(number).unwrap() % life, placement));
        }
        let mut started = None;
        for round in 0..60_usize {
            let now = UnixMillis(NOW.0 + i64::try_from(round).unwrap() * 30_000);
            running.retain(|(ends, placement)| {
                if *ends <= round {
                    snapshot.release(placement, &small);
                }
                *ends > round
            });
            let mut queue = vec![large.clone()];
            let fresh = 1 + u64::try_from(round).unwrap() * 100;
            queue.extend((fresh..fresh + arrivals).map(|number| Pending {
                created_at: now, ..pending(number, 0, 0, small.clone())
            }));
            for decision in plan_queue(&mut snapshot, &queue, now, &POLICY) {
                let Some(placement) = placed(&decision) else { continue };
                if decision.instance == large.instance {
                    started = Some(round);
                } else {
                    running.push((round + life, placement.clone()));
                }
            }
            if started.is_some() {
                break;
            }
        }
        // The hold begins after two rounds; one life of the last small ones later it is empty,
        // and the held node may change once for every node of the fleet.
        prop_assert!(started.is_some_and(|round| round <= 3 + life * (1 + usize::try_from(nodes).unwrap())));
    }
}

#[test]
fn a_smaller_request_passes_one_that_does_not_fit_now() {
    let mut snapshot = Snapshot::new([gpu_node(0, 2)]);
    super::put(&mut snapshot, &whole_request(1));
    let queue = [pending(1, 0, 30, whole_request(2)), pending(2, 0, 10, slice_request(100, 10))];

    let decisions = plan_queue(&mut snapshot, &queue, NOW, &POLICY);

    assert_eq!(decisions[0].instance, instance_id(1));
    assert!(
        matches!(&decisions[0].outcome, Outcome::Waiting { position: 1, held_node: None, reason }
        if !reason.is_impossible())
    );
    assert!(placed(&decisions[1]).is_some());
}

#[test]
fn a_request_that_nobody_can_ever_hold_holds_no_node() {
    let mut snapshot = Snapshot::new([gpu_node(0, 2)]);
    let queue = [pending(1, 0, 9_000, whole_request(3)), pending(2, 0, 10, whole_request(2))];

    let decisions = plan_queue(&mut snapshot, &queue, NOW, &POLICY);

    assert_eq!(held(&decisions[0]), None);
    assert!(placed(&decisions[1]).is_some());
}

#[test]
fn the_head_of_the_queue_holds_the_emptiest_node_after_waiting_too_long() {
    let mut snapshot = Snapshot::new([gpu_node(0, 2), gpu_node(1, 2)]);
    for (node, count) in [(0, 3), (1, 1)] {
        for _ in 0..count {
            let request = Request { node: Some(node_id(node)), ..slice_request(100, 10) };
            super::put(&mut snapshot, &request);
        }
    }
    let queue = [pending(1, 0, 60, whole_request(2)), pending(2, 0, 0, whole_request(1))];

    let decisions = plan_queue(&mut snapshot, &queue, NOW, &POLICY);

    assert_eq!(held(&decisions[0]), Some(node_id(1)));
    assert_eq!(placed(&decisions[1]).map(|placement| placement.node), Some(node_id(0)));
}

#[test]
fn a_held_node_refuses_also_those_who_name_it() {
    let mut snapshot = Snapshot::new([gpu_node(0, 2)]);
    super::put(&mut snapshot, &slice_request(100, 10));
    let named = Request { node: Some(node_id(0)), ..slice_request(100, 10) };
    let queue = [pending(1, 0, 60, whole_request(2)), pending(2, 0, 0, named)];

    let decisions = plan_queue(&mut snapshot, &queue, NOW, &POLICY);

    let Outcome::Waiting { reason, .. } = &decisions[1].outcome else { panic!("it was placed") };
    assert_eq!(reason.shortfall().reasons[0].code, "held");
}
