//! What must be true of every refusal.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{fleet, request};
use crate::{NodeCapacity, NodeGate, Reason, Refusal, Snapshot, Unplaced, explain, place};

/// Returns the listed nodes with every instance gone and everything healthy and connected.
fn ideal(nodes: &[NodeCapacity]) -> Snapshot {
    let listed = nodes.iter().filter(|node| node.gate.listed).cloned();
    Snapshot::new(listed.map(|mut node| {
        node.gate = NodeGate::open();
        node.slicing_unusable = None;
        (node.cpu_used.0, node.memory_used.0, node.disk_used.0) = (0, 0, 0);
        for gpu in &mut node.gpus {
            (gpu.memory_used.0, gpu.cores_used.0) = (0, 0);
            (gpu.shares, gpu.exclusive, gpu.sick) = (0, false, None);
        }
        node
    }))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn impossible_means_that_the_empty_fleet_cannot_hold_it_either(
        nodes in fleet(),
        request in request(),
    ) {
        let fits_when_empty = place(&ideal(&nodes), &request).is_ok();

        match place(&Snapshot::new(nodes), &request) {
            Ok(_) | Err(Unplaced::Busy(_)) => prop_assert!(fits_when_empty),
            Err(Unplaced::Impossible(_)) => prop_assert!(!fits_when_empty),
        }
    }

    #[test]
    fn every_node_is_a_candidate_or_has_exactly_one_reason(
        nodes in fleet(),
        request in request(),
    ) {
        let snapshot = Snapshot::new(nodes.clone());

        let explanation = explain(&snapshot, &request);

        let candidates = explanation.candidates.iter().map(|candidate| candidate.node);
        let refused = explanation.refusals.iter().map(|refusal| refusal.node);
        let named: Vec<_> = candidates.chain(refused).collect();
        prop_assert_eq!(named.len(), nodes.len());
        prop_assert_eq!(named.into_iter().collect::<BTreeSet<_>>().len(), nodes.len());
        prop_assert_eq!(explanation.candidates.is_empty(), place(&snapshot, &request).is_err());
    }

    #[test]
    fn the_counts_of_a_refusal_add_up_to_the_fleet(nodes in fleet(), request in request()) {
        let Err(unplaced) = place(&Snapshot::new(nodes.clone()), &request) else { return Ok(()) };

        let shortfall = unplaced.shortfall();

        prop_assert_eq!(shortfall.nodes as usize, nodes.len());
        prop_assert_eq!(shortfall.reasons.iter().map(|r| r.nodes).sum::<u32>(), shortfall.nodes);
        prop_assert!(!shortfall.summary.is_empty());
        for count in &shortfall.reasons {
            prop_assert!((1..=3).contains(&count.examples.len()));
            prop_assert!(count.examples.iter().all(|example| example.reason.code() == count.code));
        }
    }

    #[test]
    fn a_refusal_survives_json_with_its_code_message_and_remedy(
        nodes in fleet(),
        request in request(),
    ) {
        for refusal in explain(&Snapshot::new(nodes), &request).refusals {
            let json = serde_json::to_value(&refusal).unwrap();

            prop_assert_eq!(json["reason"]["code"].as_str(), Some(refusal.reason.code()));
            prop_assert_eq!(json["message"].as_str(), Some(&*refusal.reason.to_string()));
            prop_assert_eq!(json["remedy"].as_str(), Some(&*refusal.reason.remedy()));
            prop_assert_eq!(serde_json::from_value::<Refusal>(json).unwrap(), refusal);
        }
    }

    #[test]
    fn doing_what_the_remedy_of_missing_card_memory_says_leaves_another_reason_or_none(
        nodes in fleet(),
        request in request(),
    ) {
        let snapshot = Snapshot::new(nodes);
        for refusal in explain(&snapshot, &request).refusals {
            let Reason::NotEnoughGpuMemory { most_free_mib, .. } = refusal.reason else { continue };
            if most_free_mib.0 == 0 {
                continue;
            }
            let mut smaller = request.clone();
            if let crate::GpuRequest::Slice { memory, .. } = &mut smaller.gpu {
                *memory = most_free_mib;
            }

            let after = explain(&snapshot, &smaller).refusals;

            let still = after.iter().find(|other| other.node == refusal.node);
            prop_assert!(still.is_none_or(|other| other.reason.code() != "not_enough_gpu_memory"));
        }
    }
}
